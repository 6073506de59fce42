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
# (nb-lm-attacks)=
# # What is left of the robustness
#
# :::{admonition} What you will be able to do
# :class: tip
# - Differentiate through an optimisation, and say where the identity is a fair stand-in for its Jacobian and where it is not.
# - Attack the robust {term}`diffusion classifier` with three gradients, and read off what {term}`likelihood maximisation` adds to it.
# - Compare two attacks on the same images with an exact test.
# :::
#
# **Time** 35 minutes · **Needs** {ref}`nb-lm` and {ref}`nb-adaptive`. Covers section 4.4, Table 2 and appendix B.2 of
# {cite:t}`chen2024rdc`.
#
# {term}`RDC` is a diffusion classifier behind likelihood maximisation (LM). How many images it keeps depends on the gradient that the
# attacker takes *through* LM:

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
n_jacobian: int = 8  # images for the study of gradients
n_attack: int = 6  # images for attacks on RDC and DC
steps: int = 4  # gradient steps of those attacks
eps: str | float = 8 / 255  # Linf radius, image units
lm_steps: list[int] = [1, 5]  # steps N of likelihood maximisation that are attacked
n_fresh: int = 3  # images for attacks on RDC with fresh noise
eot: int = 2  # calls averaged there
draws: int = 5  # fresh verdicts there

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from rdc.analyse.stand_in import pulled_back, transmission
from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.defend.lm_updates import EPS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import accuracy, predict, robust_accuracy
from rdc.experiments import experiment
from rdc.findings import rate
from rdc.findings.figure import draw_headline, headline
from rdc.findings.robust_classification import alone, rdc
from rdc.notebook import check_parameters, claim, claims_table, glue
from rdc.plots import style
from rdc.rng import randn
from rdc.runs.record import book_folder
from rdc.runs.store import Store
from rdc.schedule import levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")
x, y = test.x.to(device), test.y.to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
classifier = DiffusionClassifier(heads, levels("elbo", count, sigma_min=0.1), seed=seed, chunk=2560)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Robust accuracy on the first test images of Fashion-MNIST, with 95 % intervals, from the record. RDC as released keeps the most under BPDA, which does not see likelihood maximisation; the more the gradient sees of it, the less is left. All the gradients of this page together are the union: an image counts if it withstands each of them.", "name": "fig-lm-headline"}, "image": {"alt": "Bars of robust accuracy: RDC falls from BPDA over exact to smoothed gradients, below an adversarially trained network"}}
fig, ax = plt.subplots(figsize=(7, 3.6))
draw_headline(ax)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
kept = headline()
glue("lm-out", f"RDC as released keeps {kept['rdc-bpda']} of its images when the attacker uses BPDA, and {kept['rdc-all']} under all "
     f"gradients of this page. The diffusion classifier without LM keeps {kept['dc']}, adversarial training {kept['at']}.")  # fmt: skip

# %% [markdown]
# {glue:text}`lm-out` The page explains these numbers: what a gradient through LM can tell, and what it cannot.
#
# (sec-lm-gradients)=
# ## The gradient of an optimisation
#
# RDC is the composition $\text{DC} \circ \text{LM}$, and LM is an optimisation with $N$ steps, each of which
# contains a gradient. To differentiate a step is to differentiate that gradient, a Hessian-vector product. The
# paper found the memory too large beyond $N = 1$. It need not be: {py:func}`rdc.autograd.iterate` keeps one
# state per step, here the image, the input and Adam's moments packed as channels, and runs each step again in
# the backward pass ({ref}`sec-adaptive-exact`). Memory is that of one step plus $N$ images.
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
# That the derivative is the identity does not mean that LM *acts* like the identity. A step of a sign is a
# staircase: flat almost everywhere, with jumps of $2 \gamma$. A derivative sees the treads, an attack climbs
# the stairs. If the image moves by $\delta$, the loss's gradient moves by about $H \delta$, and pixels with
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
# How large are the gradients of the trained network, and what are the entries of the diagonal?

# %%
right_all = predict(classifier, x[: 2 * n_jacobian]) == y[: 2 * n_jacobian]
xj, yj = x[: 2 * n_jacobian][right_all][:n_jacobian], y[: 2 * n_jacobian][right_all][:n_jacobian]
one = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": 1})
g = value_and_gradient(lambda p: one.loss(p, 0), xj)[1] / 2  # with respect to z
factor = one.step_size * EPS / (g.abs() + EPS) ** 2
quantiles = torch.tensor([0.001, 0.01, 0.5], device=device)
print(
    f"{len(yj)} images, loss of the first step: |g| at the quantiles 0.1 %, 1 %, 50 %:",
    *(f"{q:.1e}" for q in g.abs().flatten().quantile(quantiles)),
)
kick = torch.stack([randn(tuple(xj.shape[1:]), seed, "kick", i, like=xj).sign() for i in range(len(xj))])
hessian = float(torch.autograd.functional.hvp(lambda p: one.loss(p, 0).sum(), xj, kick)[1].square().mean().sqrt()) / 4  # in z
threshold = (one.step_size * EPS * hessian) ** 0.5
below = float((g.abs() < threshold).float().mean())
print(
    "gamma eps / (|g| + eps)^2: median",
    f"{float(factor.median()):.2g}, mean {float(factor.mean()):.2g}, largest {float(factor.max()):.2g}",
)
print(
    f"|H|, rms of H v for random signs v: {hessian:.1e}, so sqrt(gamma eps |H|) = {threshold:.1e}: {100 * below:.1f} % of the pixels have a smaller |g|"
)


# %% [markdown]
# Nearly all pixels obey the condition. But the *mean* of the factor is made by the few whose gradient is nearly
# zero, where Adam's slope is enormous, and $H$ spreads them over their neighbours. They are right: there the
# derivative really is that large, on an interval so short that no attack can use it.
#
# We measure how alike the gradients are. With $v$ the gradient of the classifier's {term}`margin` at $\hat x$, which
# BPDA takes as it is, the exact gradient is $J^\top v$.

# %%
def cosine(a: Tensor, b: Tensor) -> float:
    """Median over images of the cosine."""
    return float(F.cosine_similarity(a.flatten(1), b.flatten(1)).median())


options = {
    "literal": {"step_size": 0.2},
    "mean-l1": {"step_size": 0.02, "budget": None},
    "sign": {},
    "adam": {"step_size": 0.1, "budget": None},
    "rmsprop": {"step_size": 0.01, "budget": None},
}
alike = {}
print(
    f"{len(yj)} images: cosine of J^T v with v, length over that of v, share of pixels with the same sign (of those that LM does not hold at a wall)"
)
for method, option in options.items():
    for n in (1, 2, 5):
        v, back = pulled_back(LikelihoodMaximization(heads, method, steps=n, seed=seed, **option), classifier, xj, yj)
        signs = float((back.sign() == v.sign())[back != 0].float().mean())
        alike[method, n] = cosine(back, v), float((norm_of(back, "L2") / norm_of(v, "L2")).median()), signs
    print(f"{method:9s}", *("  N = {}: {:5.2f} {:6.2f} {:4.2f}".format(n, *alike[method, n]) for n in (1, 2, 5)))

# %% tags=["remove-cell"]
claim(alike["sign", 1][0] > 0.5)
claim(abs(alike["adam", 5][0]) < 0.5)

# %% [markdown]
# For `sign` what is missing to a cosine of 1 are the pixels at the walls: background pixels that are exactly 0,
# which LM would like to move below
# 0. For Adam the cosine is far from 1 even at $N = 1$: there the exact gradient is BPDA's plus the spikes of a
#   few pixels, and these swamp it. An Linf attack uses only the signs, which agree more often.
#
# Which one is *right*? All of them can be asked the same question: if the image moves along the gradient's own
# sign by $h$, what does it forecast, and what happens? The forecast is the sum of gradient times change. What
# happens is the margin of the defence itself.

# %%
names = {"identity (BPDA)": None, "exact": 0.0, "smoothed 0.1": 0.1, "smoothed 0.3": 0.3, "smoothed 1": 1.0}
lengths = [0.5, 2, 4, 8]
rises = {}
for n in lm_steps:
    lm = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": n})
    defence = RDC(lm, classifier)
    for name, width in names.items():
        attacked = defence if width is None else RDC(lm.smoothed(width), classifier, "exact")
        value, slope = value_and_gradient(lambda p, m=attacked: margin(m(p), yj), xj)
        rises[n, name] = []
        for h in lengths:
            there = (xj + h / 255 * slope.sign()).clamp(0, 1)
            with torch.no_grad():
                rise = margin(defence(there), yj) - value
            forecast = ((there - xj) * slope).flatten(1).sum(1)
            error = ((rise - forecast).abs() / forecast.abs()).median()
            rises[n, name].append((float(rise.mean()), float(forecast.mean()), float(error)))
    print(f"N = {n}, step 8/255 along the sign of each gradient, {len(yj)} images")
    for name in names:
        rise, forecast, error = rises[n, name][-1]
        print(f"    {name:16s} forecast {forecast:+6.2f}, happens {rise:+6.2f}   (median relative error {error:.2f})")

# %% mystnb={"figure": {"caption": "One step of length h along the sign of each gradient: the mean rise of the margin of RDC that happens. An attack wants it large; below zero the gradient points the wrong way.", "name": "fig-lm-rise"}, "image": {"alt": "Two panels, for one and five steps of LM, of the rise of the margin against the length of the step"}} tags=["hide-input"]
fig, axes = plt.subplots(1, len(lm_steps), figsize=(9.5, 3.5), sharey=True, squeeze=False)
for ax, n in zip(axes[0], lm_steps, strict=True):
    for i, name in enumerate(names):
        ax.plot(lengths, [r[0] for r in rises[n, name]], "o-", color=f"C{i}", label=name)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(title=f"N = {n}", xlabel="h (grey levels of 255)", xscale="log", xticks=lengths)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
axes[0, 0].set_ylabel("rise of the margin (nats)")
axes[0, -1].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
for n in lm_steps:
    claim(max(rises[n, f"smoothed {w}"][-1][0] for w in ("0.1", "0.3", "1")) > rises[n, "identity (BPDA)"][-1][0])
ends = {w: ", ".join(f"{rises[n, w][-1][0]:+.2f} (N = {n})" for n in lm_steps) for w in ("identity (BPDA)", "smoothed 0.3")}
wrong_way = [f"N = {n}" for n in lm_steps if rises[n, "identity (BPDA)"][-1][0] < 0]
way = f"For {' and '.join(wrong_way)} BPDA points the wrong way." if wrong_way else "BPDA does not point the wrong way here."
glue("lm-bpda-way", f"On these images a step of 8/255 along BPDA changes the mean margin by {ends['identity (BPDA)']}, and one along the "
     f"smoothed gradient of width 0.3 by {ends['smoothed 0.3']}. {way}")  # fmt: skip

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
# BPDA assumes 1. A projection onto the data would have nearly 0 for a change that leads away from them.
# Negative means that LM overshoots: it answers a change with a larger one the other way.

# %%
smooth = LikelihoodMaximization(heads, seed=seed, **READINGS["clamped"])
directions = {
    "random signs": torch.stack([randn(tuple(xj.shape[1:]), seed, "direction", i, like=xj) for i in range(len(xj))]).sign(),
    "BPDA": value_and_gradient(lambda p: margin(RDC(smooth, classifier)(p), yj), xj)[1].sign(),
}
passed = {}
processes = {
    "printed": LikelihoodMaximization(heads, seed=seed, **{**READINGS["printed"], "noise": "fixed"}),
    "mi-fgsm": LikelihoodMaximization(heads, seed=seed, **{**READINGS["mi-fgsm"], "noise": "fixed"}),
    "released, N = 1": one,
    "released, N = 5": smooth,
}
print(f"{len(yj)} images: share of a change that LM passes on")
print(f"{'':32s}", *(f"{h:g}/255".rjust(8) for h in (0.5, 2, 8)))
for name, process in processes.items():
    for kind, direction in directions.items():
        passed[name, kind] = [transmission(process, xj, direction, h / 255) for h in (0.5, 2, 8)]
        print(f"{name:18s} {kind:13s}", *(f"{value:8.2f}" for value in passed[name, kind]))

# %% tags=["remove-cell"]
claim(passed["printed", "BPDA"][-1] > 0.8 > passed["released, N = 5", "BPDA"][-1])

# %% [markdown]
# Where the printed values are far from 1, identity BPDA assumes something false about the defence. That it is
# harmless for the printed reading is no surprise: that one does nothing.
#
# (sec-lm-question)=
# ## What is left of the robustness?
#
# The paper's Table 2 has RDC with $N = 5$ at 75.67 % under BPDA. The exact gradient was affordable for $N = 1$
# only: 69.53 %, and BPDA 0.39 points more, from which it concludes "that BPDA suffices for evaluating RDC". We
# attack both settings with all gradients, on few images, and DC alone beside it. The verdict is always that of
# the defence. "Transfer" are the images that were made against DC, by an attacker who does not know of LM; the
# *union* counts an image as broken if any of them broke it.

# %%
xa, ya = x[:n_attack], y[:n_attack]
x_dc = pgd(classifier, xa, ya, eps=eps, steps=steps, seed=seed)
dc_right = predict(classifier, x_dc) == ya
survive = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps}, fixed noise: images right")
print(f"DC         clean {accuracy(classifier, xa, ya).correct:2d}   attacked {int(dc_right.sum()):2d}")
for n in lm_steps:
    lm = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": n})
    defence = RDC(lm, classifier)
    attackers = {
        "bpda": defence,
        "exact": RDC(lm, classifier, "exact"),
        "smoothed 0.3": RDC(lm.smoothed(0.3), classifier, "exact"),
    }
    clean_right = predict(defence, xa) == ya
    survive[n, "clean"] = clean_right
    for name, attacked in attackers.items():
        x_adv = pgd(attacked, xa, ya, eps=eps, steps=steps, seed=seed)
        survive[n, name] = clean_right & (predict(defence, x_adv) == ya)
    survive[n, "transfer"] = clean_right & (predict(defence, x_dc) == ya)
    survive[n, "union"] = torch.stack([survive[n, name] for name in (*attackers, "transfer")]).all(0)
    print(
        f"RDC N = {n}  "
        + "   ".join(f"{name} {int(survive[n, name].sum()):2d}" for name in ("clean", *attackers, "transfer", "union"))
    )

# %% [markdown]
# An attacker who knows less must not do better: where transfer breaks as many images as BPDA, BPDA's gradient was worth
# nothing.
#
# Does *fresh* noise in LM help? Then nobody knows the noise of the verdict, and the attacker averages over `eot` calls
# ({eq}`eq-eot`). An image counts as right if most of `draws` fresh verdicts are.

# %%
xf, yf = x[:n_fresh], y[:n_fresh]
lm_fresh = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "noise": "fresh"})
fresh = RDC(lm_fresh, classifier)
fresh_attackers = {
    "bpda": fresh,
    "exact": RDC(lm_fresh, classifier, "exact"),
    "smoothed 0.3": RDC(lm_fresh.smoothed(0.3), classifier, "exact"),
}
fresh_adv = {
    name: pgd(attacked, xf, yf, eps=eps, steps=steps, eot=eot, seed=seed)
    for name, attacked in fresh_attackers.items()
}
judged = {name: robust_accuracy(fresh, xf, yf, images, draws=draws) for name, images in fresh_adv.items()}
judged["union"] = robust_accuracy(fresh, xf, yf, list(fresh_adv.values()), draws=draws)
print(f"{n_fresh} images, N = 5, fresh noise, EOT {eot}, majority of {draws} verdicts: right")
print(
    "   ".join(f"{name} {value.correct}" for name, value in judged.items()),
    f"   (fixed noise, union: {int(survive[lm_steps[-1], 'union'][:n_fresh].sum())})",
)

# %% [markdown]
# ### The record
#
# The same question with more images, steps and radii. `clamped` is the released reading with a clamp after every step, `released`
# clamps once, at the end, as the code does. The verdicts compare two attacks on the same images, by the exact {term}`McNemar` test or the
# interval of the difference: if neither were better, each image on which they differ would be a toss of a coin.

# %% tags=["hide-input"]
three = ("bpda", "exact", "smoothed 0.3")
lines = []
for lm, n, noise, radius in (
    ("released", 5, "fixed", 8),
    ("clamped", 5, "fixed", 8),
    ("clamped", 5, "fixed", 16),
    ("clamped", 1, "fixed", 8),
    ("clamped", 5, "fresh", 8),
):
    sides = {g: rdc(lm, n, g, radius / 255, noise) for g in three} | {"all": rdc(lm, n, three, radius / 255, noise)}
    found = {g: rate(side) for g, side in sides.items()}
    own = rate(alone("DC", radius / 255))
    shown = {g: f"{v.correct}/{v.n}" if v else "not run" for g, v in {**found, "DC alone": own}.items()}
    lines.append({"LM": lm, "N": n, "noise": noise, "radius": f"{radius}/255", **shown})
caption = "Images of RDC that are right under PGD with each gradient, and under all of them; DC under its own"
display(pd.DataFrame(lines).style.hide(axis="index").set_caption(caption))
display(claims_table("A8", "A16", "A16a", "A16b", "A20", "A29"))

# %% [markdown]
# :::{admonition} How to read "no stronger"
# :class: note
# That two attacks break about the same number of images shows that they are equally strong. It does not show
# that they are strong. {prf:ref}`prop-lm-jacobian` says that at $N = 1$ neither sees the stairs. A fair
# stand-in has to agree with what *happens* over a step of the attack's length, and {numref}`fig-lm-rise` is the
# test of that.
# :::
#
# (sec-lm-audit)=
# ### Which of the attacks is to be believed?
#
# {ref}`nb-adaptive` audits an attack: does its gradient raise the loss as it forecasts, does it find
# adversarial examples that were planted, does a larger radius break everything? The same audit, of the attack
# on RDC with each gradient, from the record:

# %% tags=["hide-input"]
store, lines = Store.read(book_folder("results") / "rdc-audit.jsonl"), []
for row in experiment("rdc-audit").rows:
    for one in dict.fromkeys(id(v) for v in store.of(row).lines.values()):
        words = next(v for v in store.of(row).lines.values() if id(v) == one).words
        odd = {name: said for name, said in words.items() if not said.startswith("pass")}
        lines.append({
            "attack on": row.about["attack on"],
            "checks passed": f"{len(words) - len(odd)} of {len(words)}",
            "what was found": "; ".join(f"{name}: {said.partition(': ')[2]}" for name, said in odd.items()) or "-",
            "to be believed": "no" if any(said.startswith("fail") for said in words.values()) else "yes",
        })  # fmt: skip
caption = f"Audit of PGD-{row.arguments['steps']} on {row.n} images, {row.arguments['norm']} {row.arguments['eps']}, N = 5"
display(pd.DataFrame(lines).style.hide(axis="index").set_caption(caption))
doubted = [line["attack on"] for line in lines if line["to be believed"] == "no"]
glue("lm-audit", f"The audit rejects: {', '.join(doubted)}." if doubted else "The audit rejects none of them.")

# %% [markdown]
# {glue:text}`lm-audit` An attack that the audit rejects may still break images, but what it leaves standing is no evidence. The
# check of the slope is {numref}`fig-lm-rise` once more, and the planted examples say what the attack would
# miss.
#
# ## What to remember
#
# - At $N = 1$ the exact gradient of the released LM is BPDA's plus spikes, and for sign steps it is BPDA's for every $N$. That
#   "exact is no stronger than BPDA" there says nothing about either.
# - A derivative sees the treads of a staircase. Test a gradient by what happens over a step of the attack's length.
# - A {term}`robust accuracy` is that of the strongest attack, and gradients are compared on the same images with an exact test.

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
fine = None not in (agree, walls)
fine = fine and abs(agree + walls - 1) < 1e-6 and 0.2 < walls < 0.8
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
# :label: ex-lm-mcnemar
# :::
# **A toss for each difference** (10 minutes, easy). On the same images 9 are broken by attack A alone, 2 by attack B
# alone. Which two-sided p-value has the exact McNemar test? If all differences point one way, how many must there be
# for p below 0.05?
#
# :::{hint}
# :class: dropdown
# If neither were better, each image on which they differ would be a toss of a fair coin: 2 or fewer heads of 11, twice.
# `math.comb` counts.
# :::

# %%
# your code here
p_value, fewest = None, None

# %%
# check
from scipy.stats import binomtest

fine = None not in (p_value, fewest) and fewest == 6
fine = fine and abs(p_value - binomtest(2, 11).pvalue) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-mcnemar
# :label: sol-lm-mcnemar
# :class: dropdown
# :::
# $2 (1 + 11 + 55) / 2^{11}$, not below 0.05 in spite of 9 against 2. And $2 / 2^k < 0.05$ from $k = 6$ on. With few
# images most comparisons cannot be decided, however strong the attack: a reason to say "not decided", not "equal".

# %%
import math

p_value = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
fewest = next(k for k in range(1, 20) if 2 / 2**k < 0.05)
print(f"p = {p_value:.3f}, at least {fewest} differences")

# %% tags=["remove-cell"]
claim(p_value > 0.05)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# RDC and the claims judged here are from {cite:t}`chen2024rdc`. BPDA is due to {cite:t}`athalye2018obfuscated`, the rule that an
# evaluation must adapt to the defence to {cite:t}`tramer2020adaptive`.
