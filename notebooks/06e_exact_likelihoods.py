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
# (nb-lm-laboratory)=
# (sec-lm-laboratory)=
# # Does it maximise a likelihood?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive what the loss of one {term}`noise level` measures.
# - Compute what descending it does to the exact likelihoods.
# - Say why an image can become more likely, under its own class too, and stay misclassified.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-optimal` and {ref}`nb-lm`.
# Covers section 3.4 and appendices A.4, A.5 of {cite:t}`chen2024rdc`.
#
# Does {term}`likelihood maximisation` (LM) maximise a likelihood? With a trained network it takes a solver
# and its errors ({ref}`nb-ood`), and the data's own likelihood stays unknown. With the {term}`optimal denoiser` of a finite
# data set ({ref}`nb-optimal`) all densities are exact: a laboratory.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
n_train: int = 2000  # training images in the optimal denoiser
n_lab: int = 30  # test images in the laboratory
eps_lab: str | float = 24 / 255  # Linf radius there, image units

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.analyse.laboratory import QUANTITIES, likelihoods
from rdc.attack import pgd
from rdc.classify import DiffusionClassifier, LikelihoodMaximization
from rdc.classify.energy import class_normalisers
from rdc.classify.score_gradient import pathwise_gradient, score_gradient
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise import OptimalDenoiser
from rdc.evaluate import predict
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    show_table,
    stored_cells,
)
from rdc.plots import legend_below, style
from rdc.rng import randn
from rdc.schedule import levels

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
train, test = load(data, "train"), load(data, "test")
x, y = test.x[:n_lab].to(device), test.y[:n_lab].to(device)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of images whose exact likelihood, likelihood of the true class and log-odds of the true class rise by likelihood maximisation: the smallest share over the four noise levels of the density. The likelihoods rise nearly always; for adversarial images the log-odds, which decide, mostly fall.", "name": "fig-lm-laboratory"}, "image": {"alt": "Three panels with shares of images for clean, border and adversarial images; in the first two nearly all lines lie at 100 percent, in the third they fall to below 30 percent for adversarial images"}}
cells = stored_cells("laboratory")
readings = list(dict.fromkeys(cell.row.about["LM"] for cell in cells))
kinds, at = ("clean", "border", "adversarial"), (0.1, 0.2, 0.5, 1.0)
rises = {
    (cell.row.about["LM"], cell.row.about["images"], q): [
        [v > 0 for v in cell.value(f"{q}, sigma {s:g}").values() if v is not None] for s in at
    ]
    for cell in cells
    for q in QUANTITIES
}
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.8), sharey=True)
for ax, q in zip(axes, QUANTITIES, strict=True):
    for i, reading in enumerate(readings):
        share = [100 * min(sum(b) / len(b) for b in rises[reading, kind, q]) for kind in kinds]
        name = "clamped" if reading == "released" else reading  # these rows clamp after every step
        ax.plot(range(3), share, "o-", color=f"C{i}", label=name)
    ax.axhline(50, color="black", lw=0.8)
    ax.set(title=q, ylim=(-3, 103), xlim=(-0.3, 2.3))
    ax.set_xticks(range(3), kinds)
axes[0].set_ylabel("images for which it rises (%)")
legend_below(fig)
plt.show()
counted = {kind: len(rises["released", kind, "log-odds"][0]) for kind in kinds}
print("images:", ", ".join(f"{n} {kind}" for kind, n in counted.items()))

# %% [markdown]
# ## The loss of one level is a slope
#
# LM descends the loss of *one* noise level. What does that measure?
#
# :::{prf:proposition} The loss of one level is a slope
# :label: prop-lm-slope
# Let $D$ be the optimal denoiser of $p$, a distribution of bounded images, $p_\sigma$ the density of its images after noise of level
# $\sigma$, and $n$ the number of pixels. Then for every fixed image $z$
#
# $$
# \E_\varepsilon \norm{z - D(z + \sigma \varepsilon, \sigma)}^2
# = n \sigma^2 + \sigma^3\, \frac{d}{d\sigma}\, \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon) .
# $$
# :::
#
# :::{prf:proof}
# Let $u = z + \sigma \varepsilon$ and $s = \nabla \log p_\sigma(u) = (D - u) / \sigma^2$. The density obeys the
# heat equation $\partial_\sigma p_\sigma = \sigma \Delta p_\sigma$, so that $\partial_\sigma \log p_\sigma =
# \sigma (\operatorname{div} s + \norm{s}^2)$, and $u$ moves with $\sigma$ at the rate $\varepsilon$. Stein's
# identity is $\E\, \varepsilon \cdot s = \sigma\, \E \operatorname{div} s$. Together
#
# $$
# \begin{aligned}
# \frac{d}{d\sigma} \E \log p_\sigma(u)
# &= \E \big[ \sigma \operatorname{div} s + \sigma \norm{s}^2 + \varepsilon \cdot s \big] \\
# &= \E \big[ 2\, \varepsilon \cdot s + \sigma \norm{s}^2 \big]
# = \frac1\sigma\, \E \norm{\sigma s + \varepsilon}^2 - \frac n\sigma ,
# \end{aligned}
# $$
#
# and $\sigma s + \varepsilon = (D - u) / \sigma + (u - z) / \sigma = (D - z) / \sigma$.
# :::
#
# Two things follow. Summed over levels with the weights $\sigma^{-3} d\sigma$ of the {term}`ELBO`, from $a$ to $b$, the
# slopes add up to a difference of log-likelihoods: for large $b$ the full loss is $-\E \log p_a(z + a
# \varepsilon)$ up to a constant, and descending it *is* likelihood maximisation, of data blurred by $a$. A
# single level is only the slope at this level. To make it small is to look for an image whose likelihood *falls
# fast* when noise is added. That is no bound on $\log p$, and nothing says that it raises it. So we compute.

# %%
digits = load("digits", "train")
small = OptimalDenoiser(digits.x[:40].double(), digits.y[:40])
z_digit, at, step = 2 * digits.x[50:51].double() - 1, 0.5, 1e-3
drawn = [randn(small.shape, seed, "slope", r).double() for r in range(4000)]
noise = torch.stack(drawn)
counts = torch.tensor(small.counts).double()
prior = counts.log() - counts.sum().log()


def mean_log(sigma: float) -> Tensor:
    """Mean of ``log p_sigma(z + sigma eps)`` over the noise."""
    by_class = small.log_density(z_digit + sigma * noise, sigma)
    return (by_class + prior).logsumexp(1).mean()


error = z_digit - small(z_digit + at * noise, at)
left = error.square().flatten(1).sum(1).mean()
slope = (mean_log(at + step) - mean_log(at - step)) / (2 * step)
right = z_digit.numel() * at**2 + at**3 * slope
print(f"one digit, sigma = {at}, 4000 draws: loss {float(left):.2f},")
print(f"from the slope of the log-likelihood {float(right):.2f}")

# %% tags=["remove-cell"]
claim(abs(float(left - right)) < 0.1 * float(left) + 0.3)

# %% [markdown]
# Now the images. The data are `n_train` training images, and the classifier is the diffusion classifier of their optimal
# denoiser. We attack test images that it gets right, and ask the exact model about those that {term}`PGD` breaks, before and after LM:
#
# - $\log p_\sigma(z)$ and $\log p_\sigma(z \mid y)$ for the true class $y$,
# - the log-odds $\log p_\sigma(z \mid y) - \max_{k \ne y} \log p_\sigma(z \mid k)$, which decide the class.

# %%
images, labels = train.x[:n_train].to(device), train.y[:n_train].to(device)
optimal = OptimalDenoiser(images, labels)
grid = levels("elbo", 8, sigma_min=0.1)
exact = DiffusionClassifier(optimal, grid, seed=seed)
x_adv = pgd(exact, x, y, eps=eps_lab, steps=10, seed=seed)
broken = (predict(exact, x) == y) & (predict(exact, x_adv) != y)
xb, yb = x_adv[broken], y[broken]
lm = LikelihoodMaximization(optimal, seed=seed, **READINGS["clamped"])
before, after = (likelihoods(optimal, z, yb, 0.5) for z in (xb, lm(xb)))
rows = []
for name in QUANTITIES:
    rise = after[name] - before[name]
    up, middle = int((rise > 0).sum()), float(rise.median())
    rows.append({"": name, "rises for": up, "median, nats": f"{middle:+.0f}"})
again = int((predict(exact, lm(xb)) == yb).sum())
show_table(
    rows,
    f"{len(yb)} adversarial images after LM (clamped), densities at sigma 0.5; "
    f"right again: {again}",
)

# %% tags=["remove-cell"]
claim(len(yb) >= 5)

# %% [markdown]
# {numref}`fig-lm-laboratory` has the same with more images, five readings (`clamped` and `mi-fgsm` as in {ref}`nb-lm`, `mi-fgsm` with the attacker's radius for
# its budget, signs in small steps, and the loss over all levels with the weights of the {term}`ELBO`), and images that stand just beyond the border ("border":
# the first misclassified one on the straight line to the adversarial image). The claims, and what it says of them:

# %% tags=["hide-input"]
claims_table("A11", "A11a", "A27", "A30", "A30a")

# %% [markdown]
# That $\log p(z \mid y)$ rises says little about the class, because the likelihood of the *wrong* class can rise as much
# or more: LM does not know which class to prefer, and an adversarial image is by construction one that the model finds more likely
# under a wrong class. The argument of section 3.4 needs the log-odds, and speaks of the likelihood. Whether the log-odds rise
# depends on where the image stands, just beyond the border or deep in the wrong class, and on the levels at which LM looks.
#
# ## What to remember
#
# - The loss of one level is the slope of a log-likelihood in the noise level; only the ELBO-weighted sum is a log-likelihood.
# - A rising $\log p(x \mid y)$ does not decide the class; the log-odds do.
# - LM does not know which class to prefer: the likelihood of the wrong class rises with it.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-score
# :::
# **Without the network's Jacobian** (15 minutes, medium). Eqs. 14 and 15 of the paper write the gradient of the
# diffusion loss with the score of the noise in the place of the network's Jacobian: $\nabla L = w\, \E [ 2 (z - D) +
# \norm{z - D}^2 \varepsilon / \sigma ]$. Check it on the optimal denoiser of a few digits: what is the cosine between
# the mean of 256 draws and the gradient *through* the denoiser, with antithetic pairs and without a baseline?
#
# :::{hint}
# :class: dropdown
# `score_gradient(small, z_digit, one_level, draws=..., baseline=..., seed=seed)` has the estimate,
# `pathwise_gradient(..., antithetic=True)` the gradient through the denoiser.
# :::

# %%
# your code here
one_level = levels("elbo", 1, sigma_min=0.4, sigma_max=0.6)
cosine = {"pairs": None, "none": None}  # with 256 draws

# %%
# check
fine = close_to(cosine["pairs"], 0.988, within=6e-3)
fine = fine and close_to(cosine["none"], 0.63, within=0.08)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-score
# :label: sol-lm-score
# :class: dropdown
# :::
# Both are unbiased; the difference is variance. Without a baseline the size of the loss multiplies the noise. Pairs
# $\varepsilon, -\varepsilon$ remove the even part of the loss. {py:mod}`rdc.classify.score_gradient` has the
# derivation.

# %%
reference = pathwise_gradient(
    small, z_digit, one_level, draws=2048, antithetic=True, seed=seed + 1
)
for baseline in cosine:
    for r in (16, 256):
        estimate = score_gradient(
            small, z_digit, one_level, draws=r, baseline=baseline, seed=seed
        )
        sides = estimate.flatten(1), reference.flatten(1)
        cosine[baseline] = float(F.cosine_similarity(*sides).median())
        print(f"{baseline:6s} {r:4d} draws: cosine {cosine[baseline]:.3f}")

# %% tags=["remove-cell"]
claim(cosine["pairs"] > 0.9 and cosine["pairs"] > cosine["none"])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-energy
# :::
# **The energy that is not normalised** (15 minutes, hard). Appendix A.4 reads the diffusion loss as an energy, $p(z
# \mid y) = e^{-E_y(z)} / Z(y)$. The classifier compares $E_y$ and drops $Z(y)$. Is $Z$ the same for all classes? Take
# images of one pixel and three classes: two points close together, two far apart, and forty points along an interval.
# By how many nats does $\log Z$ differ between classes, for the ELBO weights and for those of {term}`EDM`?
#
# :::{hint}
# :class: dropdown
# `class_normalisers(pixel, levels("elbo", 60, sigma_min=0.05, sigma_max=50.0), grid, nodes=65)` integrates over a
# `grid` of images, say 401 from -4 to 4 in float64.
# :::

# %%
# your code here
two, line = torch.tensor([0.495, 0.505, 0.2, 0.8]), torch.linspace(0.2, 0.8, 40)
pixel_x = torch.cat([two, line]).double().reshape(-1, 1, 1, 1)
pixel_y = torch.tensor([0, 0, 1, 1] + 40 * [2])
pixel = OptimalDenoiser(pixel_x, pixel_y)
spread = {"elbo": None, "edm": None}  # largest minus smallest log Z

# %%
# check
fine = close_to(spread, {"elbo": 0.46, "edm": 0.88}, within=0.015)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-energy
# :label: sol-lm-energy
# :class: dropdown
# :::
# For the ELBO weights from $a$ to a large $b$, $\log Z(y)$ lies within half a nat of $\tfrac12 \log(2 \pi a^2)$ for one
# pixel: at the lower end for isolated points, towards the upper one for a density that is smooth at the scale $a$
# ({py:mod}`rdc.classify.energy`). So it is not constant, and with $n$ pixels the classes may differ by up to $n / 2$
# nats. For other weights there is no such bound.

# %%
grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
for kind in spread:
    weights = levels(kind, 60, sigma_min=0.05, sigma_max=50.0)
    value = class_normalisers(pixel, weights, grid, nodes=65)
    spread[kind] = float(value.max() - value.min())
    words = ", ".join(f"{v:.2f}" for v in value.tolist())
    print(f"{kind:5s} log Z(y) = {words}; spread {spread[kind]:.2f} nats")

# %% tags=["remove-cell"]
claim(0.05 < spread["elbo"] < 0.6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-both
# :::
# **More likely, and wrong** (5 minutes, easy). Two classes with the same prior. LM raises $\log p(z \mid y)$ from $-100$ to $-50$
# and that of the other class from $-90$ to $-30$. By how many nats do $\log p(z)$ and the log-odds of $y$ change?
#
# :::{hint}
# :class: dropdown
# `torch.logaddexp`. The prior adds the same constant before and after.
# :::

# %%
# your code here
rise_of_log_p, rise_of_odds = None, None

# %%
# check
own, other = torch.tensor([-100.0, -50.0]), torch.tensor([-90.0, -30.0])
log_p, odds = torch.logaddexp(own, other), own - other
fine = None not in (rise_of_log_p, rise_of_odds)
fine = fine and abs(rise_of_log_p - float(log_p[1] - log_p[0])) < 0.01
fine = fine and rise_of_odds == float(odds[1] - odds[0])
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-both
# :label: sol-lm-both
# :class: dropdown
# :::
# The image becomes more likely under every class, and the larger of the two likelihoods is nearly all of $\log p(z)$. The log-odds,
# which decide, fall.

# %%
rise_of_log_p = float(log_p[1] - log_p[0])
rise_of_odds = (-50 + 30) - (-100 + 90)
print(f"log p(z) {rise_of_log_p:+.2f}, log-odds {rise_of_odds:+d} nats")

# %% tags=["remove-cell"]
claim(rise_of_log_p > 0 > rise_of_odds)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The claims judged here are from {cite:t}`chen2024rdc`; {prf:ref}`prop-lm-slope` is a form of the identity
# between mutual information and denoising error of {cite:t}`guo2005immse`.
