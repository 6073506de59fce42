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
# (nb-guidance-alignment)=
# # Alignment, measured
#
# :::{admonition} What you will be able to do
# :class: tip
# - Measure how far a classifier's gradient points in the right direction.
# - Find the noise level that a gradient belongs to.
# - Tell a gradient that is pleasant to look at from one that is right.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-guidance-gradients`. Goes beyond {cite:t}`kawar2023guidance`, whose Figure 3 it puts in numbers.
#
# Pictures of gradients please or do not please. {numref}`fig-guide-alignment` gives each guide a number instead: the cosine of its gradient
# with the right answer {eq}`eq-guide-direction`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
wide_name: str = "fashion-mini-wide"  # trained at six times that radius
n_align: int = 32  # images compared with the exact direction
own_level: float = 0.3  # noise level of their gradients

# %% tags=["hide-input"]
import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import to_model
from rdc.guide import ClassifierGuide, load_classifier
from rdc.guide.align import direction
from rdc.guide.reading import boot, mean_of, one, paired_means, pick
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    glue,
    show_table,
    stored_found,
)
from rdc.plots import plot_intervals, style
from rdc.rng import randn

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
classes, size = len(test.classes), test.x[0].numel()
names = {"vanilla": vanilla_name, "robust": robust_name, "wide": wide_name}
three = {name: load_classifier(file, device) for name, file in names.items()}
guides = {name: three[name] for name in ("vanilla", "robust")}
gradients = stored_found("guidance-gradients")
exact = OptimalDenoiser(train.x.double(), train.y).to(device)
classifiers = {name: ClassifierGuide(h) for name, h in three.items()}
judged_guides = ("vanilla", "robust", "diffusion classifier", "classifier-free")
levels = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0)


def noise_of(what: str, n: int) -> Tensor:
    """Noise for n test images, each from its own stream."""
    return torch.stack(
        [
            randn(tuple(test.x.shape[1:]), seed, "guide", what, i)
            for i in range(n)
        ]
    )


# %% mystnb={"figure": {"caption": "Mean cosine of a guide's gradient with the exact direction, by noise level, with 95 % bootstrap intervals, from the experiment: towards the true class and towards another one.", "name": "fig-guide-alignment"}, "image": {"alt": "Lines of alignment against the noise level for several guides, rising with the noise"}} tags=["hide-input"]
panels = [
    ("true class", pick(gradients, measure="alignment", towards="true class")),
    (
        "another class",
        pick(gradients, measure="alignment", towards="another class"),
    ),
]
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.4), sharey=True)
for ax, (title, found) in zip(axes, panels, strict=True):
    for i, name in enumerate(judged_guides):
        mine = [
            f
            for f in pick(found, guide=name)
            if len(f.lines)
            and sum(v is not None for v in f.value("cosine").values()) > 1
        ]
        values = [
            boot([v for v in f.value("cosine").values() if v is not None])
            for f in mine
        ]
        plot_intervals(
            ax,
            [f.row.about["sigma"] for f in mine],
            values,
            name,
            color=f"C{i}",
        )
    ax.axhline(0, color="0.4", ls=":", lw=1)
    ax.set(
        xscale="log",
        xlabel=r"noise level $\sigma$",
        title=f"towards {'the ' * (title == 'true class')}{title}",
    )
axes[0].set(ylabel="alignment", ylim=(None, 1.02))
axes[0].legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# (sec-guide-alignment)=
# ## A cosine and a strength
#
# :::{prf:definition} Alignment
# :label: def-guide-alignment
# The *alignment* of a guide at a noisy image is the cosine of its gradient with the exact direction {eq}`eq-guide-direction`. Its *strength* is the ratio of
# the lengths, $\sigma^2 \norm{g} / \norm{D_y - D}$: 1 for the exact posterior, and what a scale $s$ has to make up for.
# :::
#
# The exact direction is that of the *training images*, and the noisy images are test images. At low noise this is its limit: the optimal denoiser knows
# nothing between its images. Towards the *true* class there is often no direction left at low noise, because the posterior is certain. So mostly we ask
# for the direction towards *another* class, the next in the list, which there always is; the record has both. (Its {term}`classifier-free guidance` is the guide
# $(D_y - D) / \sigma^2$ of the trained denoiser.)
#
# Guides are compared on the same noisy images, first less second, mean difference of the cosines. The record, at the lowest, a middle and the
# highest level, towards another class:

# %% tags=["hide-input"]
rows = []
for (a, b), to, sigma in itertools.product(
    (("robust", "vanilla"), ("wide", "vanilla"), ("wide", "robust")),
    ("true class", "another class"),
    levels,
):
    two = [
        pick(gradients, measure="alignment", guide=g, towards=to, sigma=sigma)
        for g in (a, b)
    ]
    if all(two):
        found, n = paired_means(two[0][0], two[1][0], "cosine")
        rows.append(
            {
                "towards": to,
                "first": a,
                "second": b,
                "sigma": sigma,
                "images": n,
                "difference": found,
            }
        )
few = [
    r
    for r in rows
    if r["towards"] == "another class" and r["sigma"] in (0.02, 1.0, 10.0)
]
show_table(
    [{k: v for k, v in r.items() if k != "towards"} for r in few],
    "Mean difference of cosines towards another class",
)

# %% [markdown]
# All of them:

# %% tags=["hide-cell"]
show_table(rows, "Mean difference of cosines on the same noisy images")


# %% tags=["remove-cell"]
def measured_mean(guide: str, sigma: float, what: str = "cosine") -> float:
    """Mean over images, towards another class."""
    words = {
        "measure": "alignment",
        "towards": "another class",
        "guide": guide,
        "sigma": sigma,
    }
    return mean_of(one(gradients, **words), what)


for key, sigma in (("low", min(levels)), ("high", max(levels))):
    for name in ("vanilla", "robust", "diffusion classifier"):
        glue(
            f"guide-align-{key}-{name.split()[0]}",
            f"{measured_mean(name, sigma):.2f}",
        )
ratios = [
    measured_mean("robust", s, "strength")
    / measured_mean("vanilla", s, "strength")
    for s in levels
]
glue("guide-shorter", f"{np.median(ratios):.2f}")
claim(measured_mean("diffusion classifier", max(levels)) > 0.9)

# %% [markdown]
# At the highest level the diffusion classifier has an alignment of {glue:text}`guide-align-high-diffusion`, the vanilla classifier
# {glue:text}`guide-align-high-vanilla`, the robust one {glue:text}`guide-align-high-robust`. At the lowest level they have
# {glue:text}`guide-align-low-diffusion`, {glue:text}`guide-align-low-vanilla` and {glue:text}`guide-align-low-robust`. The robust gradient is
# {glue:text}`guide-shorter` times as long as the vanilla one (median over levels; {prf:ref}`prop-guide-robust` says shorter).
#
# Which differences are more than chance, the verdicts say, by the one rule of the book:

# %%
claims_table("C2a", "C2b", "C2c", "C2d")

# %% [markdown]
# (sec-guide-level)=
# ## Which noise level does a gradient belong to?
#
# {prf:ref}`prop-guide-robust` predicts, for Gaussians, that a robust gradient is that of a *higher* noise level. That can be tested. We keep the noisy image,
# and compare a gradient at $\sigma$ with the exact directions $D(z_\sigma, \tau, y) - D(z_\sigma, \tau)$ of other levels $\tau$.

# %%
x_align = test.x[:n_align].double().to(device)
y_next = (test.y[:n_align].to(device) + 1) % classes
factors = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
z_other = to_model(x_align) + own_level * noise_of("level", n_align).to(x_align)
here = torch.full((n_align,), own_level, dtype=torch.float64, device=device)
ways_at = [
    direction(exact, z_other, factor * here, y_next).flatten(1)
    for factor in factors
]
far = [way.norm(dim=1) > 1e-6 * size**0.5 for way in ways_at]
kept = torch.stack(far).all(dim=0)
own_gradients = {
    name: guide(z_other, here, y_next).flatten(1)
    for name, guide in classifiers.items()
}
by_factor = {
    name: [
        boot(F.cosine_similarity(g, way, dim=1)[kept].tolist(), seed)
        for way in ways_at
    ]
    for name, g in own_gradients.items()
}
print(f"mean cosine, {int(kept.sum())} images, gradient at {own_level:g}")
for name, found in by_factor.items():
    pairs = zip(factors, found, strict=True)
    each = [f"{f * own_level:g}: {i.value:.2f}" for f, i in pairs]
    print(f"{name:8s}", ", ".join(each))
    peak = factors[int(np.argmax([i.value for i in found]))] * own_level
    glue(f"guide-peak-{name}", f"{peak:g}")
for a, b in itertools.combinations(own_gradients, 2):
    first, second = own_gradients[a], own_gradients[b]
    alike = float(F.cosine_similarity(first, second, dim=1).mean())
    print(f"cosine of the {a} and the {b} gradient: {alike:.2f}")
    if (a, b) == ("vanilla", "robust"):
        glue("guide-alike", f"{alike:.2f}")
        closest = max(by_factor[name][0].value for name in (a, b))
        claim(alike > closest, "they resemble each other more")

# %% tags=["remove-cell"]
best = {n: np.argmax([i.value for i in f]) for n, f in by_factor.items()}
claim(
    min(best.values()) > 0 and best["wide"] == max(best.values()),
    "all at a higher level",
)

# %% mystnb={"figure": {"caption": "Cosine of the gradient at one noise level with the exact directions of higher levels at the same noisy images, with 95 % bootstrap intervals.", "name": "fig-guide-level"}, "image": {"alt": "Three lines of cosines against the level of the exact direction; that of the wide classifier rises highest", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.4, 3.3))
for name, found in by_factor.items():
    plot_intervals(ax, [f * own_level for f in factors], found, name)
ax.axvline(own_level, color="0.4", ls=":", lw=1)
ax.set(
    xscale="log",
    xlabel=r"level $\tau$ of the exact direction",
    ylabel="mean cosine",
)
ax.set_xticks(
    [f * own_level for f in factors], [f"{f * own_level:g}" for f in factors]
)
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# The maximum lies at $\tau =$ {glue:text}`guide-peak-vanilla` for the vanilla gradient and at {glue:text}`guide-peak-robust` for the robust one. To the right
# of the dotted line a gradient is one of more noise. It may be pleasant to look at for that very reason, and still not be the one that the sampler asks for.
# What {prf:ref}`prop-guide-robust` says of robust training, a small network does anyway: it is smooth. And the two gradients, vanilla and
# robust, have a cosine of {glue:text}`guide-alike` with each other; the line of the wide one still rises at the end of the grid.
#
# ## What to remember
#
# - The alignment of a guide is the cosine of its gradient with $D_y - D$: gradients can be scored, instead of looked at.
# - The gradient of a smooth classifier is closest to the exact direction of a *higher* noise level, attacked in training or not.
# - Robustness at a radius that can be seen, gradients that look like something, and gradients that are right are three properties. Each has
#   to be measured.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-tau
# :::
# **The gradient of a higher level** (10 minutes, medium). Two classes of Gaussian images with means $\pm m$, $m = (1,
# 1)$, and the covariance $C = \operatorname{diag}(0.05, 1)$. At the noise level $\tau$ the exact direction is $(C +
# \tau^2 I)^{-1} m$. Which cosine has the direction at $\tau = 1$ with that of $\tau = 0$? For which $\tau$ is the
# cosine with the mean difference $m$ at least 0.99?
#
# :::{hint}
# :class: dropdown
# The cosine with $m$ rises with $\tau$: bisect, or try a grid of $\tau$.
# :::

# %%
# your code here
cosine_one, tau_needed = None, None


# %%
# check
def exact_direction(tau: float) -> np.ndarray:
    """The direction at this level, of length 1."""
    v = np.array([1, 1]) / (np.array([0.05, 1]) + tau**2)
    return v / np.linalg.norm(v)


fine = None not in (cosine_one, tau_needed)
fine = fine and abs(cosine_one - exact_direction(0) @ exact_direction(1)) < 1e-3
fine = fine and abs(exact_direction(tau_needed).sum() / 2**0.5 - 0.99) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-tau
# :label: sol-guide-tau
# :class: dropdown
# :::
# At a high level the direction turns to the difference of the means, which can be seen; the fine coordinate, which
# decides most, counts less and less. A robust classifier's gradient is that of a higher level by
# {prf:ref}`prop-guide-robust`, so it looks better and is further from the direction of its own level.

# %%
cosine_one = float(exact_direction(0) @ exact_direction(1))
low, high = 0.0, 100.0
for _ in range(60):
    tau_needed = (low + high) / 2
    enough = exact_direction(tau_needed).sum() / 2**0.5 >= 0.99
    low, high = (low, tau_needed) if enough else (tau_needed, high)
print(f"cosine {cosine_one:.3f}, tau {tau_needed:.3f}")

# %% tags=["remove-cell"]
claim(0 < cosine_one < 1 < tau_needed)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-chance
# :::
# **A cosine by chance** (5 minutes, easy). Two directions in 784 dimensions are random and independent. Which standard deviation has their cosine? And the mean of the cosines of 32
# images? Compare with the smallest alignments of this page.
#
# :::{hint}
# :class: dropdown
# Each coordinate of a random direction of length 1 has the mean square $1 / 784$.
# :::

# %%
# your code here
spread_one, spread_mean = None, None

# %%
# check
v = np.random.default_rng(seed).normal(size=(20_000, 784))
measured = (v[:, 0] / np.linalg.norm(v, axis=1)).std()
fine = None not in (spread_one, spread_mean)
fine = fine and abs(spread_one / measured - 1) < 0.03
fine = fine and abs(spread_mean / (measured / 32**0.5) - 1) < 0.03
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-chance
# :label: sol-guide-chance
# :class: dropdown
# :::
# $1 / \sqrt{784}$, and $1 / \sqrt{784 \cdot 32}$. A mean cosine may be small, and far from chance all the same.

# %%
spread_one, spread_mean = 784**-0.5, (784 * 32) ** -0.5
print(f"one {spread_one:.4f}, mean of 32 {spread_mean:.4f}")

# %% tags=["remove-cell"]
claim(spread_mean < spread_one)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-best-scale
# :::
# **What the best scale repairs** (10 minutes, medium). A gradient has the cosine 0.5 with the exact direction and is twice as long (strength 2). Which scale $s$ makes the squared error of $s g$
# smallest, and which share of the squared length of the exact direction is left as an error?
#
# :::{hint}
# :class: dropdown
# Project the exact direction on the gradient.
# :::

# %%
# your code here
best_scale, error_left = None, None

# %%
# check
fine = None not in (best_scale, error_left)
fine = fine and abs(best_scale - 0.25) < 1e-6
fine = fine and abs(error_left - 0.75) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-best-scale
# :label: sol-guide-best-scale
# :class: dropdown
# :::
# $s = c / \text{strength}$ and $1 - c^2$: a scale repairs lengths, not directions.

# %%
best_scale, error_left = 0.5 / 2, 1 - 0.5**2
print(f"scale {best_scale:g}, error left {error_left:g}")

# %% tags=["remove-cell"]
claim(error_left == 0.75)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Gradients of robust classifiers: {cite:t}`tsipras2019robustness`.
