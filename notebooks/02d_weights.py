# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (nb-diffusion-weights)=
# # Other weights
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what a changed weight does to a likelihood.
# - Check the identity between losses and likelihood on images.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-diffusion-likelihood` and {ref}`nb-diffusion-grids`. Covers the weights of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
seed: int = 0  # owner of every random number
nodes: int = 128  # quadrature nodes per axis in the toy
digit_draws: int = 48  # noise draws for the digits
digit_levels: int = 64  # noise levels for the digits

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.certify.grid import averages, legendre
from rdc.data import load
from rdc.denoise import OptimalDenoiser, to_model
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.rng import generator, randn
from rdc.schedule import chain_levels, levels

check_parameters()
style()
corners = torch.rand(
    8, 1, 1, 2, generator=generator(seed, "toy"), dtype=torch.float64
)
toy_labels = torch.arange(8) % 2
toy = OptimalDenoiser(corners, toy_labels)
low, high = 0.25, 20.0
spot = torch.tensor([[[0.3, -0.4]]], dtype=torch.float64)
digits = load("digits", "train")
exact = OptimalDenoiser(digits.x.double(), digits.y)


def log_grid(low: float, high: float, count: int) -> Tensor:
    """``count + 1`` levels, evenly spaced in ``log sigma``."""
    return low * (high / low) ** (
        torch.arange(count + 1, dtype=torch.float64) / count
    )

# %% [markdown]
# **Trained networks rarely come with the weight of the likelihood. What do their losses say?** {numref}`fig-diffusion-weights` shows the weights of this book beside it.

# %% tags=["hide-input"]
def relative_weight(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and ``g = w sigma^3`` of a kind of levels, with ``g(1) = 1``;
    densities come from weights over spacings.
    """
    if kind.startswith("vp"):
        chosen = levels(kind, 1000)[
            1:
        ]  # the first VP step has no predecessor, its weight is a convention
    else:
        chosen = levels(
            kind,
            2000,
            placement="log",
            sigma_min=0.01,
            sigma_max=3.0 if kind == "edm-released" else 150.0,
        )
    sigma = chosen.sigma.numpy()
    g = chosen.weight.numpy() / np.gradient(sigma) * sigma**3
    return sigma, g / np.interp(1.0, sigma, g)


curves = {
    kind: relative_weight(kind)
    for kind in (
        "elbo",
        "edm",
        "edm-released",
        "vp",
        "vp-printed",
        "vp-derived",
    )
}

# %% mystnb={"figure": {"caption": "Weights relative to the likelihood, $g(\\sigma) = w(\\sigma)\\, \\sigma^3$, scaled to 1 at $\\sigma = 1$. A flat line is a likelihood.", "name": "fig-diffusion-weights"}, "image": {"alt": "Six curves over the noise level: the ELBO and the derived VP weight are flat, the EDM weight is a hump that peaks at high noise, its released form a hump that peaks below one and ends at three, the printed VP weight changes by orders of magnitude", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3.8))
for i, (kind, (sigma, g)) in enumerate(curves.items()):
    ax.loglog(
        sigma,
        g,
        f"C{i}",
        linestyle="--" if kind == "vp-derived" else "-",
        label=kind,
        linewidth=3 if kind == "elbo" else 1.5,
    )
ax.set(
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel=r"$g(\sigma)$",
    ylim=(1e-4, 1e3),
    xlim=(0.01, 150),
)
ax.legend(ncols=2)
plt.show()

# %% tags=["remove-cell"]
inner = {kind: g[(s > 0.1) & (s < 50)] for kind, (s, g) in curves.items()}
assert (
    np.abs(inner["elbo"] - 1).max() < 1e-3
    and np.abs(inner["vp-derived"] - 1).max() < 0.1
)  # these two are likelihoods
claim(
    inner["edm"].max() / inner["edm"].min() > 5
    and inner["vp-printed"].max() / inner["vp-printed"].min() > 10
)
glue("diffusion-peak-edm", float(curves["edm"][0][curves["edm"][1].argmax()]))
glue(
    "diffusion-peak-released",
    float(curves["edm-released"][0][curves["edm-released"][1].argmax()]),
)

# %% [markdown]
# ## Other weights
#
# Trained networks rarely come with the weight $\sigma^{-3}$. Write a weight as $w(\sigma) = g(\sigma) / \sigma^3$, so that $g = 1$ is the likelihood. Integrating {prf:ref}`thm-identity` by parts gives,
# for any smooth $g$,
#
# ```{math}
# :label: eq-reweighting
# \begin{aligned}
# - \int_{\sigma_0}^{\sigma_T} w\, m\, d\sigma = {} & g(\sigma_0) J(\sigma_0) - g(\sigma_T) J(\sigma_T) \\
# & + \int_{\sigma_0}^{\sigma_T} g'(\sigma) J(\sigma)\, d\sigma - D \int_{\sigma_0}^{\sigma_T} w \sigma^2 d\sigma .
# \end{aligned}
# ```
#
# A reweighted logit is a mixture of log-likelihoods of *noisier and noisier* images: with positive coefficients where $g$ rises, negative ones where it falls.
# It may classify better or worse, but it is no longer a log-likelihood, and its softmax is no posterior.
#
# {numref}`fig-diffusion-weights` shows $g$, scaled to 1 at $\sigma = 1$. There `vp` is weight 1 on the error of the noise, as networks are
# trained, `vp-derived` the weight of the chain, and `vp-printed` Eq. 4 of {cite:t}`chen2024rdc` as printed.
#
# Two curves are flat: the {term}`ELBO` weight by definition, and the VP weight as it follows from the chain, by calculation ({ref}`ex-diffusion-vp`).
# (At its very first steps the VP schedule is coarse compared with $\sigma$, and a weight over a spacing is not quite a density.)
# The {term}`EDM` weight peaks at $\sigma =$ {glue:text}`diffusion-peak-edm:.1f`, its released form at {glue:text}`diffusion-peak-released:.2f`:
# the exponent of the log-normal is multiplied by $P_\text{std}^2$ where it should be divided.
#
# What does that do to {term}`logits`? On the toy we know the true log-likelihood ratio of the two classes.

# %%
spots = to_model(
    torch.rand(
        48, 1, 1, 2, generator=generator(seed, "spots"), dtype=torch.float64
    )
)
kinds = {
    "elbo": chain_levels(log_grid(low, high, 32), "trapezoid", tail=True),
    "edm": levels("edm", 32, placement="log", sigma_min=low, sigma_max=high),
    "vp": levels("vp", 50),
}
kinds["vp"] = kinds["vp"][kinds["vp"].sigma > low]
ratio = torch.stack(
    [averages(toy, s, low, 64)[0] for s in spots]
) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
logit_ratio = {}
for kind, chosen in kinds.items():
    m = torch.stack(
        [
            torch.stack(
                [averages(toy, s, v, 48)[1] for v in chosen.sigma.tolist()]
            )
            for s in spots
        ]
    )  # (48, T, 2)
    logit_ratio[kind] = (m[..., 1] - m[..., 0]) @ chosen.weight
    slope_of = float((logit_ratio[kind] @ ratio) / (ratio @ ratio))
    agree = int((logit_ratio[kind].sign() == ratio.sign()).sum())
    print(
        f"{kind:5} logit ratio = {slope_of:.3f} x likelihood ratio (least "
        f"squares); same sign at {agree} of {len(spots)} points"
    )

# %% tags=["remove-cell"]
fits = {
    kind: float((v @ ratio) / (ratio @ ratio))
    for kind, v in logit_ratio.items()
}
claim(abs(fits["elbo"] - 1) < 0.03, "nats")
claim(fits["edm"] < 0.8 and fits["vp"] < 0.5, "other units")

# %% [markdown]
# Most decisions stay, the *units* do not: a reweighted ratio is a fraction of the true one. Whoever compares logits with a threshold, or feeds a softmax into an attack or a calibration, must know which weight was used.
#
# ## The same on images
#
# In 64 dimensions quadrature is out of reach and noise takes its place. Does the identity hold for real images?
# The data are the training digits; the images are test digits, which the {term}`denoiser` has not seen. Every draw of noise serves all levels, so that each draw gives one
# difference between the two sides, and the mean of the differences has a standard error.

# %% tags=["hide-input"]
test_digits = load("digits", "test")
z_digits = to_model(test_digits.x[:6].double())
draws = randn((digit_draws, 1, 8, 8), seed, "digits").double()
ends = (0.25, 20.0)
rule = chain_levels(log_grid(*ends, digit_levels), "trapezoid")


def two_sides(z: Tensor) -> tuple[Tensor, Tensor]:
    """``log p`` at the low end, and its value from the losses; both for each
    draw and class, ``(R, K)``.
    """
    total = exact.log_density(z + ends[1] * draws, ends[1]) + 64 * math.log(
        ends[1] / ends[0]
    )
    for s, w in zip(rule.sigma.tolist(), rule.weight.tolist(), strict=True):
        total = total - w * (
            exact.all_classes(z + s * draws, s) - z
        ).square().flatten(2).sum(dim=2)
    return exact.log_density(z + ends[0] * draws, ends[0]), total


same_class, t_values = [], []
print(
    "digit   J of the true class   from the losses   difference   standard "
    "error   best class: J, losses"
)
for z_one, k in zip(z_digits, test_digits.y[:6].tolist(), strict=True):
    left, right = two_sides(z_one)
    difference = (right - left)[:, k]
    error = float(difference.std() / math.sqrt(digit_draws))
    best = int(left.mean(0).argmax()), int(right.mean(0).argmax())
    same_class.append(best[0] == best[1])
    t_values.append(float(difference.mean()) / error)
    means = f"{float(left[:, k].mean()):17.2f} {float(right[:, k].mean()):17.2f} {float(difference.mean()):12.2f}"
    print(f"{k:5}   {means} {error:16.2f}             {best[0]}, {best[1]}")

# %% tags=["remove-cell"]
glue("diffusion-worst-t", max(abs(t) for t in t_values))
claim(max(abs(t) for t in t_values) < 4.5, "within the noise")
claim(sum(same_class) >= len(same_class) - 1)

# %% [markdown]
# No difference is larger than {glue:text}`diffusion-worst-t:.1f` standard errors, and the class with the highest likelihood is the class with the
# smallest losses.
#
# ## What to remember
#
# - Any other weight gives a mixture of blurred log-likelihoods: a score, not a likelihood.
# - Most decisions stay, the units do not: say which weight was used before comparing a logit with a threshold.
# - On real images the identity holds within the noise of the draws.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-diffusion-cut
# :::
# **Leave out the high levels** (10 minutes, easy). Let $g = 1$ up to $\sigma = 1$, and 0 above. Of which images is the reweighted logit a difference of log-likelihoods? Compute the logit of class 1 minus that of class 0 at `spot`, from $\sigma_0 =$ `low`.
#
# :::{hint}
# :class: dropdown
# {prf:ref}`thm-identity` with $\sigma_T = 1$. `averages(toy, spot, sigma, nodes)[0]` is $J(\sigma)$ of both classes.
# :::

# %%
# your code here
cut_ratio = None

# %%
# check
fine = close_to(cut_ratio, 0.1221, within=1e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-cut
# :label: sol-diffusion-cut
# :class: dropdown
# :::
# The sum is $J(\sigma_0) - J(1)$, up to a constant without a label: the log-likelihood of slightly noisy images *minus* that of noisier ones. What both see cancels, so the logit is not that of any density.

# %%
j_low, j_one = (averages(toy, spot, s, nodes)[0] for s in (low, 1.0))
cut_ratio = float((j_low - j_one) @ torch.tensor([-1.0, 1.0]).double())
whole = float(j_low[1] - j_low[0])
print(f"without the high levels {cut_ratio:.4f}, with them {whole:.4f}")

# %% tags=["remove-cell"]
claim(abs(cut_ratio - 0.1221) < 1e-3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-reweight
# :::
# **Check the reweighting identity** (10 minutes, medium). Check {eq}`eq-reweighting` on the toy at `spot`, with $g(\sigma) = \sigma$ on $[0.25, 20]$ (then $w = \sigma^{-2}$). Compute both sides, for both classes.
#
# :::{hint}
# :class: dropdown
# What are $g'$ and $w \sigma^2$? `legendre(low, high, 64)` gives nodes and weights of an integral.
# :::

# %%
# your code here
left, right = None, None  # two numbers each

# %%
# check
known = [-0.679, -0.750]
fine = all(close_to(side, known, within=2e-3) for side in (left, right))
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-reweight
# :label: sol-diffusion-reweight
# :class: dropdown
# :::
# With $g' = 1$ and $w \sigma^2 = 1$, the right side is $\sigma_0 J(\sigma_0) - \sigma_T J(\sigma_T) + \int J\, d\sigma - D (\sigma_T - \sigma_0)$.

# %%
sigma, weight = legendre(low, high, 64)
pairs = [averages(toy, spot, s, nodes) for s in sigma]
left = -sum(
    w * m / s**2 for (_, m), s, w in zip(pairs, sigma, weight, strict=True)
)
right = (
    low * averages(toy, spot, low, nodes)[0]
    - high * averages(toy, spot, high, nodes)[0]
    + sum(w * j for (j, _), w in zip(pairs, weight, strict=True))
    - 2 * (high - low)
)
print(
    f"left {[round(v, 6) for v in left.tolist()]}, right "
    f"{[round(v, 6) for v in right.tolist()]}"
)

# %% tags=["remove-cell"]
assert (left - right).abs().max() < 1e-6

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-temperature
# :::
# **Can a temperature repair it?** (5 minutes, easy). Divide the logit ratio of each weight by its least-squares factor. How far is it then from the true ratio, relative to its size (norm of the difference over the norm of `ratio`)?
#
# :::{hint}
# :class: dropdown
# `slope_of` of a kind is `logit_ratio[kind] @ ratio / (ratio @ ratio)`.
# :::

# %%
# your code here
left_over = {"elbo": None, "edm": None, "vp": None}

# %%
# check
def rest(v: Tensor) -> float:
    """What no factor repairs."""
    scaled = v * (ratio @ ratio) / (v @ ratio)
    return float((scaled - ratio).norm() / ratio.norm())


wanted = {k: rest(v) for k, v in logit_ratio.items()}
fine = close_to(left_over, wanted, within=6e-4)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-temperature
# :label: sol-diffusion-temperature
# :class: dropdown
# :::
# A factor repairs the unit, not the mixture: what is left is the difference between one log-likelihood and a mean of blurred ones.

# %%
for kind, value in logit_ratio.items():
    factor = (value @ ratio) / (ratio @ ratio)
    left_over[kind] = float((value / factor - ratio).norm() / ratio.norm())
    print(f"{kind:5} relative error: {left_over[kind]:.3f}")

# %% tags=["remove-cell"]
claim(left_over["elbo"] < left_over["edm"])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The weights are from {cite:t}`karras2022elucidating`, {cite:t}`ho2020ddpm` and {cite:t}`chen2024rdc`; information and estimation: {cite:t}`guo2005immse`, {cite:t}`kong2023information`.
