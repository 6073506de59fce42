# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (nb-lm-stairs)=
# # What the attacker's gradient sees
#
# :::{admonition} What you will be able to do
# :class: tip
# - Differentiate through an optimisation.
# - Say where the identity is a fair stand-in for its Jacobian, and where it is not.
# - Test a gradient by what happens over a step of the attack's length.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-lm` and {ref}`nb-adaptive`. Covers appendix B.2 of {cite:t}`chen2024rdc`.
#
# The robust {term}`diffusion classifier` ({term}`RDC`) is $\text{DC} \circ \text{LM}$: a diffusion classifier behind
# {term}`likelihood maximisation`. An attacker needs its gradient, and so has to go *through* LM. What does a gradient see there?

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
n_jacobian: int = 8  # images for the study of gradients
lm_steps: list[int] = [1, 5]  # steps N of likelihood maximisation

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from rdc.analyse.stand_in import pulled_back, transmission
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.defend.lm_updates import EPS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.notebook import check_parameters, claim, glue, show_table
from rdc.plots import legend_below, style
from rdc.rng import randn
from rdc.schedule import levels

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")[: 2 * n_jacobian]
x, y = test.x.to(device), test.y.to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
grid = levels("elbo", count, sigma_min=0.1)
classifier = DiffusionClassifier(heads, grid, seed=seed, chunk=2560)
right = predict(classifier, x) == y
xj, yj = x[right][:n_jacobian], y[right][:n_jacobian]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Likelihood maximisation of one pixel by a step of a sign. Its derivative is 1 almost everywhere (left), as the slope of each tread; a finite change across the jump goes the other way. A blurred sign (dashed) has the slope (right) of what happens on average.", "name": "fig-lm-stairs"}, "image": {"alt": "Left: a line of slope one that jumps down at zero, and a smooth curve through the jump. Right: the derivative of the first is one, that of the second dips far below zero at the jump", "width": "85%"}}
at = torch.linspace(-0.3, 0.3, 601).double()
width = 0.05
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3))
for ax in axes:
    ax.axvline(0, color="0.7", lw=0.8)
    ax.set(xlabel="pixel before LM")
blurred = at - 0.1 * torch.erf(at / width / 2**0.5)
slope = 1 - 0.2 * torch.exp(-((at / width) ** 2) / 2) / width / (2 * torch.pi) ** 0.5
for side in (at < 0, at > 0):
    axes[0].plot(at[side], (at - 0.1 * at.sign())[side], color="C0", label="sign" if side[0] else None)
axes[0].plot(at, blurred, "--", color="C1", label="blurred")
axes[0].set(ylabel="pixel after LM")
axes[0].legend()
axes[1].plot(at, torch.ones_like(at), color="C0")
axes[1].plot(at, slope, "--", color="C1")
axes[1].set(ylabel="derivative")
fig.tight_layout()
plt.show()

# %% [markdown]
# (sec-lm-gradients)=
# ## The gradient of an optimisation
#
# LM has $N$ steps, each of which contains a gradient. To differentiate a step is to differentiate that gradient, a
# Hessian-vector product. The paper found the memory too large beyond $N = 1$. It need not be:
# {py:func}`rdc.autograd.iterate` keeps one state per step, here the image, the input and Adam's moments packed as channels, and
# runs each step again in the backward pass ({ref}`sec-adaptive-exact`). Memory is that of one step plus $N$ images.
#
# The stand-in is {term}`BPDA` with the identity ({eq}`eq-bpda`): the gradient at $\hat x$, moved unchanged to $x$. Is
# it a fair one? Ask the formula.
#
# :::{prf:proposition} The Jacobian of one step of LM
# :label: prop-lm-jacobian
# Let $g = \nabla \ell(z)$, $H = \nabla^2 \ell(z)$, and let no pixel be held by a bound. The first step of Adam
# with rate $\gamma$ has the Jacobian
#
# $$
# J = I - \operatorname{diag} \Big( \frac{\gamma\, \varepsilon}{(|g| + \varepsilon)^2} \Big) H .
# $$
#
# The step of `sign` has $J = I$ wherever no $m$ is zero, and so have $N$ such steps. A pixel held by the ball
# around $x$ moves with $x$ (derivative 1), one held at 0 or 1 does not move (derivative 0).
# :::
#
# :::{prf:proof}
# From {eq}`eq-lm-adam`, $u(g) = -g / (|g| + \varepsilon)$ has the slope $-\varepsilon / (|g| + \varepsilon)^2$,
# also at $g = 0$. The chain rule gives $\partial (z + \gamma u) / \partial z = I + \gamma
# \operatorname{diag}(u'(g)) H$. The sign is locally constant. The rest is the derivative of a clip whose bounds
# move with $x$, or do not.
# :::
#
# So where $|g| \gg \sqrt{\gamma \varepsilon |H|}$ the exact gradient of one step *is* BPDA with the identity. A
# comparison of the two at $N = 1$, as in the paper's Table 2, sets BPDA against itself plus spikes at the few
# pixels near a change of sign. It can show that the spikes do not help. It cannot show that BPDA is a fair
# stand-in, nor say anything about $N = 5$. For `sign` no $N$ will do.
#
# How large are the gradients of the trained network, and what are the entries of the diagonal?

# %%
def random_signs(name: str) -> Tensor:
    """A random direction for each image."""
    shape = tuple(xj.shape[1:])
    drawn = [randn(shape, seed, name, i, like=xj) for i in range(len(xj))]
    return torch.stack(drawn).sign()


single = {**READINGS["clamped"], "steps": 1}
one = LikelihoodMaximization(heads, seed=seed, **single)
g = value_and_gradient(lambda p: one.loss(p, 0), xj)[1] / 2  # in z
factor = one.step_size * EPS / (g.abs() + EPS) ** 2
kicked = torch.autograd.functional.hvp(
    lambda p: one.loss(p, 0).sum(), xj, random_signs("kick")
)[1]
hessian = float(kicked.square().mean().sqrt()) / 4  # in z
threshold = (one.step_size * EPS * hessian) ** 0.5
below = float((g.abs() < threshold).float().mean())
share = torch.tensor([0.001, 0.01, 0.5], device=device)
low, middle, half = g.abs().flatten().quantile(share).tolist()
print(f"|g|: {low:.1e} at 0.1 %, {middle:.1e} at 1 %, {half:.1e} at 50 %")
print(f"factor: median {factor.median():.2g}, mean {factor.mean():.2g}")
print(f"|H| about {hessian:.1e}, so sqrt(gamma eps |H|) = {threshold:.1e}")
print(f"pixels with a smaller |g|: {100 * below:.1f} %")

# %% [markdown]
# Nearly all pixels obey the condition. But the *mean* of the factor is made by the few whose gradient is nearly
# zero, where Adam's slope is enormous, and $H$ spreads them over their neighbours. They are right: there the
# derivative really is that large, on an interval so short that no attack can use it ({ref}`ex-lm-spike`).
#
# We measure how alike the gradients are. With $v$ the gradient of the classifier's {term}`margin` at $\hat x$, which
# BPDA takes as it is, the exact gradient is $J^\top v$.

# %%
options = {
    "literal": {"step_size": 0.2},
    "mean-l1": {"step_size": 0.02, "budget": None},
    "sign": {},
    "adam": {"step_size": 0.1, "budget": None},
    "rmsprop": {"step_size": 0.01, "budget": None},
}
alike, rows = {}, []
for method, option in options.items():
    row = {"update": method}
    for n in (1, 2, 5):
        lm = LikelihoodMaximization(
            heads, method, steps=n, seed=seed, **option
        )
        v, back = pulled_back(lm, classifier, xj, yj)
        pair = back.flatten(1), v.flatten(1)
        alike[method, n] = float(F.cosine_similarity(*pair).median())
        longer = float((norm_of(back, "L2") / norm_of(v, "L2")).median())
        row[f"N = {n}"] = f"{alike[method, n]:.2f} ({longer:.2f})"
    agree = (back.sign() == v.sign())[back != 0]  # not at a wall
    rows.append(row | {"same sign": float(agree.float().mean())})
show_table(
    rows,
    "Cosine of the exact gradient with BPDA's (and their ratio of lengths), "
    f"{len(yj)} images; share of pixels with the same sign at N = 5",
)

# %% tags=["remove-cell"]
claim(alike["sign", 1] > 0.5)
claim(abs(alike["adam", 5]) < 0.5)

# %% [markdown]
# For `sign` what is missing to a cosine of 1 are the pixels at the walls: background pixels that are exactly 0,
# which LM would like to move below 0; they are left out of the last column. For Adam the cosine is far from 1 even at $N = 1$:
# there the exact gradient is BPDA's plus the spikes of a few pixels, and these swamp it. An Linf attack uses
# only the signs, and even those need not agree: see the last column.
#
# ## Treads and stairs
#
# That the derivative is the identity does not mean that LM *acts* like the identity. A step of a sign is a
# staircase whose treads have slope one: where a pixel's $g$ rises through zero, it jumps by $2 \gamma$ *down*. A derivative sees
# the treads, an attack climbs the stairs. If the image moves by $\delta$, the loss's gradient moves by about $H \delta$, and pixels with
# $|g| < |H \delta|$ may change sign, and then move by $2 \gamma$ in the direction opposite to $\delta$. On
# average over pixels with density $\rho(0)$ of $g$ at zero, the step acts like
#
# ```{math}
# :label: eq-lm-effective
# J_\text{effective} \approx I - 2 \gamma\, \rho(0)\, H .
# ```
#
# The package offers this as a third gradient: `lm.smoothed(width)` keeps every value of LM, bit for bit, and
# differentiates signs that are blurred to `width` times the mean size. It is a stand-in for the backward pass,
# as BPDA is, with the right staircase in mind.
#
# ## Which one is right?
#
# All of them can be asked the same question: if the image moves along the gradient's own
# sign by $h$, what does it forecast, and what happens? The forecast is the sum of gradient times change. What
# happens is the margin of the defence itself.

# %%
names = {"identity (BPDA)": None, "exact": 0.0}
names |= {f"smoothed {w}": w for w in (0.1, 0.3, 1)}
lengths = [0.5, 2, 4, 8]
rises, rows = {}, []
for n in lm_steps:
    reading = {**READINGS["clamped"], "steps": n}
    lm = LikelihoodMaximization(heads, seed=seed, **reading)
    defence = RDC(lm, classifier)
    for name, width in names.items():
        seen = defence
        if width is not None:
            seen = RDC(lm.smoothed(width), classifier, "exact")
        value, slope = value_and_gradient(
            lambda p, m=seen: margin(m(p), yj), xj
        )
        rises[n, name] = []
        for h in lengths:
            there = (xj + h / 255 * slope.sign()).clamp(0, 1)
            with torch.no_grad():
                rise = (margin(defence(there), yj) - value).mean()
            rises[n, name].append(float(rise))
        forecast = ((there - xj) * slope).flatten(1).sum(1).mean()
        row = {"N": n, "gradient": name, "forecast": f"{forecast:+.2f}"}
        rows.append(row | {"happens": f"{rise:+.2f}"})

# %% mystnb={"figure": {"caption": "One step of length h along the sign of each gradient: the mean rise of the margin of RDC that happens. An attack wants it large; below zero the gradient points the wrong way.", "name": "fig-lm-rise"}, "image": {"alt": "Two panels, for one and five steps of LM, of the rise of the margin against the length of the step"}} tags=["hide-input"]
fig, axes = plt.subplots(1, len(lm_steps), figsize=(8.4, 3.4), sharey=True, squeeze=False)
for ax, n in zip(axes[0], lm_steps, strict=True):
    for i, name in enumerate(names):
        ax.plot(lengths, rises[n, name], "o-", color=f"C{i}", label=name)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(title=f"N = {n}", xlabel="h (grey levels of 255)", xscale="log", xticks=lengths)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
axes[0, 0].set_ylabel("rise of the margin (nats)")
legend_below(fig)
plt.show()

# %% tags=["hide-input", "hide-output"]
show_table(rows, f"Rise of the margin, step of {lengths[-1]}/255, {len(yj)} images")

# %% tags=["remove-cell"]
bpda = {n: rises[n, "identity (BPDA)"][-1] for n in lm_steps}
blurred = {n: rises[n, "smoothed 0.3"][-1] for n in lm_steps}
for n in lm_steps:
    claim(max(rises[n, f"smoothed {w}"][-1] for w in ("0.1", "0.3", "1")) > bpda[n])
ends = [", ".join(f"{v[n]:+.2f} (N = {n})" for n in lm_steps) for v in (bpda, blurred)]
wrong_way = [f"N = {n}" for n in lm_steps if bpda[n] < 0]
way = f"For {' and '.join(wrong_way)} BPDA points the wrong way." if wrong_way else "BPDA does not point the wrong way here."
glue("lm-bpda-way", f"On these images a step of 8/255 along BPDA changes the mean margin by {ends[0]}, and one along the "
     f"smoothed gradient of width 0.3 by {ends[1]}. {way}")  # fmt: skip

# %% [markdown]
# {glue:text}`lm-bpda-way`
#
# How can the identity be the exact derivative and yet lead astray? Because of the stairs. Here is what LM
# passes on of a change $\delta$, the finite version of a derivative along it:
#
# ```{math}
# :label: eq-lm-transmission
# \tau(\delta) = \frac{\langle \text{LM}(x + \delta) - \text{LM}(x),\, \delta \rangle}{\norm{\delta}^2} .
# ```
#
# It is a projection: a response at a right angle to the change has 0, however long it is. BPDA assumes 1. A projection onto the data would have nearly 0 for a change that leads away from them.
# Negative means that LM overshoots: it answers a change with a larger one the other way.

# %%
clamped = LikelihoodMaximization(heads, seed=seed, **READINGS["clamped"])
known = RDC(clamped, classifier)
directions = {
    "random signs": random_signs("direction"),
    "BPDA": value_and_gradient(lambda p: margin(known(p), yj), xj)[1].sign(),
}
processes = {"clamped, N = 1": one, "clamped, N = 5": clamped}
for name in ("mi-fgsm", "printed"):
    reading = {**READINGS[name], "noise": "fixed"}
    processes[name] = LikelihoodMaximization(heads, seed=seed, **reading)
passed, rows = {}, []
for name, process in processes.items():
    for kind, direction in directions.items():
        row = {"reading": name, "change along": kind}
        for h in (0.5, 2, 8):
            share = transmission(process, xj, direction, h / 255)
            row[f"{h:g}/255"] = f"{share:.2f}"
        passed[name, kind] = share
        rows.append(row)
show_table(rows, f"Share of a change that LM passes on, {len(yj)} images")

# %% tags=["remove-cell"]
claim(passed["printed", "BPDA"] > 0.8 > passed["clamped, N = 5", "BPDA"])

# %% [markdown]
# Where the values are far from 1, identity BPDA assumes something false about the defence. That it is
# harmless for the printed reading is no surprise: that one does next to nothing. {ref}`nb-lm-attacks` attacks with all of these gradients.
#
# ## What to remember
#
# - At $N = 1$ the exact gradient of the released LM is BPDA's plus spikes, and for sign steps it is BPDA's for every $N$, but for
#   pixels at a wall, which do not move. That "exact is no stronger than BPDA" there says nothing about either.
# - A derivative sees the treads of a staircase. Test a gradient by what happens over a step of the attack's length.
# - Blur the signs in the backward pass alone: the verdict stays that of the defence.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-sign
# :::
# **The same gradient** (10 minutes, medium). Show by computation that for `sign`, $N = 5$, the exact gradient of RDC is
# BPDA's, except at pixels that a wall of $[0, 1]$ has held. Which share of the pixels has the same gradient, and which
# share is held by a wall? What does it say about an evaluation that reports "the exact gradient is no stronger" for
# this reading?
#
# :::{hint}
# :class: dropdown
# `v, back = pulled_back(lm, classifier, xj, yj)` gives the classifier's gradient after LM, and what the exact gradient
# makes of it. A held pixel has an exact gradient of 0.
# :::

# %%
# your code here
signs = {**READINGS["mi-fgsm"], "noise": "fixed"}
lm = LikelihoodMaximization(heads, seed=seed, **signs)
agree, walls = None, None  # shares between 0 and 1

# %%
# check
fresh = LikelihoodMaximization(heads, seed=seed, **signs)
here, there = pulled_back(fresh, classifier, xj, yj)
share = float((there == here).double().mean())
fine = None not in (agree, walls)
fine = fine and abs(agree - share) < 0.005 and abs(walls - (1 - share)) < 0.005
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-sign
# :label: sol-lm-sign
# :class: dropdown
# :::
# At every other pixel the two agree bit for bit. The report would be true and empty: both are blind to the stairs, and
# only a blurred derivative, or a black-box attack, can tell.

# %%
v, back = pulled_back(lm, classifier, xj, yj)
same = back == v
agree = float(same.double().mean())
walls = float(((back == 0) & ~same).double().mean())
print(f"same {100 * agree:.1f} %, held by a wall {100 * walls:.1f} %")

# %% tags=["remove-cell"]
claim(abs(agree + walls - 1) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-stairs
# :::
# **A derivative on stairs** (10 minutes, medium). A toy of one pixel: $\text{LM}(x) = x - 0.1 \operatorname{sign}(x)$.
# Its derivative is 1 almost everywhere. What does it pass on of a change from $-0.05$ to $0.05$
# ({eq}`eq-lm-transmission`)? And which derivative has the mean of $\text{LM}(x + w \xi)$ over $\xi \sim \mathcal N(0,
# 1)$ at $x = 0$, for $w = 0.1$?
#
# :::{hint}
# :class: dropdown
# The first is a quotient of differences. For the second: the derivative of $\E \operatorname{sign}(x + w \xi) = 2
# \Phi(x / w) - 1$.
# :::

# %%
# your code here
def toy(p: Tensor) -> Tensor:
    """Likelihood maximisation of a pixel."""
    return p - 0.1 * p.sign()


passed_on, smooth_slope = None, None


# %%
# check
ends = toy(torch.tensor([-0.05, 0.05]).double())
xi = randn((200_000,), "stairs", seed).double()
mean = [toy(p + 0.1 * xi).mean() for p in (-0.02, 0.02)]
fine = None not in (passed_on, smooth_slope)
fine = fine and abs(passed_on - float(ends[1] - ends[0]) / 0.1) < 1e-6
fine = fine and abs(smooth_slope - float(mean[1] - mean[0]) / 0.04) < 0.05
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-stairs
# :label: sol-lm-stairs
# :class: dropdown
# :::
# $(-0.05 - 0.05) / 0.1 = -1$: it answers a change by as much the other way, where its derivative says $+1$. The blurred
# one is $1 - 0.2\, \varphi(0) / w$, which is 0.2 here and negative for a narrower blur. So the width decides what a
# smoothed gradient sees.

# %%
passed_on = (toy(torch.tensor(0.05)) - toy(torch.tensor(-0.05))) / 0.1
passed_on = float(passed_on)
smooth_slope = 1 - 0.2 / (2 * torch.pi) ** 0.5 / 0.1
print(f"passed on {passed_on:.2f}, slope of the mean {smooth_slope:.2f}")

# %% tags=["remove-cell"]
claim(passed_on < 0 < smooth_slope < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-spike
# :::
# **How wide is a spike?** (10 minutes, medium). The factor $\gamma \varepsilon / (|g| + \varepsilon)^2$ of
# {prf:ref}`prop-lm-jacobian` is largest at $g = 0$. For $\gamma = 0.1$, $\varepsilon = 10^{-8}$: how large is it there, and below
# which $|g|$ is it more than a tenth of that? If $g$ changes by 0.0025 per unit of $z$, how far may a pixel move, in grey levels
# of 255, before it has left that interval? (An image in $[0, 1]$ is $z = 2x - 1$.)
#
# :::{hint}
# :class: dropdown
# $(|g| + \varepsilon)^2 = 10\, \varepsilon^2$. From $-|g|$ to $|g|$ is twice that, and one unit of $z$ is 127.5 grey levels.
# :::

# %%
# your code here
peak, half_width, grey_levels = None, None, None

# %%
# check
def spike(g: float) -> float:
    """The factor of a pixel."""
    return 0.1 * EPS / (abs(g) + EPS) ** 2


fine = None not in (peak, half_width, grey_levels)
fine = fine and abs(peak / spike(0) - 1) < 1e-6
fine = fine and abs(10 * spike(half_width) / peak - 1) < 1e-2
fine = fine and abs(grey_levels / (255 * half_width / 0.0025) - 1) < 1e-2
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-spike
# :label: sol-lm-spike
# :class: dropdown
# :::
# Ten million at the peak, and over after a few thousandths of a grey level. An attack of eight grey levels passes over it in one
# step; the derivative there is exact and useless.

# %%
peak = 0.1 / EPS
half_width = (10**0.5 - 1) * EPS
grey_levels = 2 * half_width / 0.0025 * 127.5
print(f"{peak:.0e}, |g| < {half_width:.2e}, {grey_levels:.4f} grey levels")

# %% tags=["remove-cell"]
claim(grey_levels < 0.01)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# RDC is from {cite:t}`chen2024rdc`; BPDA is due to {cite:t}`athalye2018obfuscated`.
