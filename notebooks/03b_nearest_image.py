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
# (nb-optimal-nearest)=
# # One nearest image
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what the loss of one {term}`noise level` knows about an image, and why the weights of the levels hardly matter.
# - Compute the optimal classifier of a whole training set with one matrix product an image.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-optimal`. Covers section 3.3 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0
data: str = "fashion-mini"  # data set
n_clean: int = 200  # test images for clean accuracy and agreement

# %% tags=["hide-input"]
import math
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from rdc.classify import DiffusionClassifier, NearestNeighbor, OptimalClassifier
from rdc.data import Images, load
from rdc.denoise import OptimalDenoiser, to_model
from rdc.evaluate import Accuracy, accuracy, predict
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.rng import generator, randn
from rdc.schedule import Levels, levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
train, test = (
    Images(s.x.to(device), s.y.to(device), s.classes) for s in (train, test)
)
x_clean, y_clean = test.x[:n_clean], test.y[:n_clean]
neighbour = NearestNeighbor(train.x, train.y)
flat_train = to_model(train.x).flatten(1)


# %% [markdown]
# **What do the losses of the optimal denoiser know about an image?** In the dimension of images, nearly nothing but the distance to the nearest
# stored image of each class. And **how does one compute them** for a whole training set? Ten lines are enough.
#
# ## What the losses know: one nearest image
#
# Look at the loss $m_y(\sigma; z) = \E_\varepsilon \norm{z - D(z + \sigma\varepsilon, \sigma, y)}^2$ of test images,
# divided by the squared distance $d_y$ to the nearest training image of class $y$. A classifier with this one level decides
# for the smallest loss.


# %%
def one_level(x: Tensor, y: Tensor, sigma: float) -> nn.Module:
    """The optimal classifier of ``(x, y)`` with the one level ``sigma`` of
    weight 1: logits ``-m_y``.
    """
    level = Levels(
        torch.tensor([sigma], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    if sigma < 4:
        return OptimalClassifier(x, y, level, seed=seed)
    return DiffusionClassifier(
        OptimalDenoiser(x, y), level, noise="antithetic", draws=2, seed=seed
    )


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float64 on the CPU, without a gradient."""
    with torch.no_grad():
        return model(x).double().cpu()


x_level = x_clean[:100]
nearest = -logits_of(
    NearestNeighbor(train.x, train.y), x_level
)  # squared distances, model units
grid = torch.logspace(
    math.log10(0.05), math.log10(50), 16, dtype=torch.float64
).tolist()
ratio = torch.stack(
    [
        -logits_of(one_level(train.x, train.y, s), x_level) / nearest
        for s in grid
    ]
)  # (levels, images, classes)
one_hot_share = ((ratio - 1).abs() < 0.1).double().mean(dim=(1, 2))
decisions = (ratio * nearest).argmin(dim=2)
same_vote = (decisions == nearest.argmin(dim=1)).double().mean(dim=1)
for i in range(0, len(grid), 3):
    print(
        f"sigma = {grid[i]:6.2f}: {100 * one_hot_share[i]:5.1f} % of the "
        f"losses within 10 % of d_y; "
        f"decision of this level = 1-NN for {100 * same_vote[i]:5.1f} % of "
        f"the images"
    )

# %% mystnb={"figure": {"caption": "Left: loss of the first test image under each class, relative to the squared distance to the nearest training image of that class; it is 1 where one training image holds all of the softmax weight (thick: the true class). Right: how often a classifier with this one level decides as 1-NN, and how many losses are within 10 % of the nearest distance.", "name": "fig-optimal-one-hot"}, "image": {"alt": "Left: ten curves that are flat at one for low noise levels and then move apart. Right: agreement with nearest neighbour stays near 100 percent at low levels and falls at high ones."}} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
for k, name in enumerate(train.classes):
    left.semilogx(
        grid,
        ratio[:, 0, k],
        label=name,
        linewidth=3 if k == int(y_clean[0]) else 1.2,
    )
left.set(
    xlabel="noise level $\\sigma$ (model units)", ylabel="$m_y(\\sigma) / d_y$"
)
left.legend(ncol=2, loc="upper left")
left.set_ylim(top=7)
right.semilogx(grid, 100 * same_vote, marker="o", label="same decision as 1-NN")
right.semilogx(
    grid, 100 * one_hot_share, marker="s", label="losses within 10 % of $d_y$"
)
right.set(
    xlabel="noise level $\\sigma$ (model units)",
    ylabel="share (%)",
    ylim=(-3, 103),
)
right.legend()
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
low = [i for i, s in enumerate(grid) if s < 1]
vote_low, vote_high = float(same_vote[low].min()), float(same_vote[-1])
glue("optimal-one-hot-low", 100 * one_hot_share[low].min())
glue("optimal-vote-low", 100 * vote_low)
glue("optimal-vote-high", 100 * vote_high)
claim(vote_low > 0.85 and vote_high < 0.85 and one_hot_share[0] > 0.95)


# %% [markdown]
# In $D$ dimensions two images differ by distances that are large against a small $\sigma$. Then one image takes all of the weight, and
#
# ```{math}
# :label: eq-optimal-one-hot
# m_y(\sigma; z) \approx d_y = \min_i \norm{z - z_i}^2 .
# ```
#
# {numref}`fig-optimal-one-hot` shows how far this goes. Below $\sigma = 1$ the losses are within 10 % of the nearest distance in
# {glue:text}`optimal-one-hot-low:.0f` % of the cases or more, and every single level decides as the nearest neighbour (1-NN) on at least
# {glue:text}`optimal-vote-low:.0f` % of the images. At the highest level it is {glue:text}`optimal-vote-high:.0f` %. Levels that
# cast the same vote can be weighted in any way without a change of the decision. Keep this picture in mind: it explains most of
# what follows.
#
# (sec-optimal-compute)=
# ## How to compute it for a whole training set
#
# Typed in as printed, the corollary {eq}`eq-optimal-classifier` needs $N \times T \times D$ numbers for each image and each draw. Two
# observations reduce that to one matrix product an image.
#
# **The softmax factorises.** Write $d_i = \norm{z - z_i}^2$ and $E_i = \varepsilon \cdot z_i$. Then
#
# ```{math}
# :label: eq-factorised
# \begin{gathered}
# -\frac{\norm{z + \sigma\varepsilon - z_i}^2}{2\sigma^2} = -\frac{d_i}{2\sigma^2} + \frac{E_i}{\sigma} + \text{const} \\
# \Longrightarrow\quad
# s_i \propto p_i\, u_i, \qquad p_i = e^{-d_i / 2\sigma^2}, \quad u_i = e^{E_i / \sigma} .
# \end{gathered}
# ```
#
# The factor $p$ knows the image but not the noise. The factor $u$ knows the noise but not the image, so it is computed once for
# all images. Every sum over $i$ is a thin product $p \cdot u$ of a row and a few columns.
#
# **Stein's identity removes the denoised image.** Put $g(\varepsilon) = D(z + \sigma\varepsilon)$. For the {term}`optimal denoiser`
# $\operatorname{div}_z D = \sigma^{-2} \sum_i s_i \norm{z_i - D}^2$, and Stein's lemma says
# $\E[\varepsilon \cdot g] = \sigma\, \E[\operatorname{div} D]$. Now
#
# ```{math}
# :label: eq-stein
# \begin{aligned}
# \norm{z - D}^2 &= \sum_i s_i d_i - \sum_i s_i \norm{z_i - D}^2 \\
# \Longrightarrow\quad
# \E \norm{z - D}^2 &= \E \Big[ \sum_i s_i d_i - \sigma \big( \sum_i s_i E_i - \varepsilon \cdot z \big) \Big] .
# \end{aligned}
# ```
#
# The first equation is the decomposition of a second moment into mean and variance. The second replaces the variance
# by $\sigma^2 \operatorname{div} D$, this by $\sigma\, \varepsilon \cdot D$, and subtracts $\sigma\, \varepsilon \cdot z$, which has mean zero.
# No sum over pixels is left, except in $d_i$ and $E_i$.
#
# In ten lines, checked against the plain formula on images of three by three pixels:


# %%
def stein(z: Tensor, points: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """Stein's form of |z - D|^2 for one flat image, class and draw; equal to
    it in expectation only.
    """
    s = torch.softmax(
        -((z + sigma * eps - points) ** 2).sum(dim=1) / (2 * sigma**2), dim=0
    )
    return s @ ((z - points) ** 2).sum(dim=1) - sigma * (s @ points - z) @ eps


def losses_at(z: Tensor, points: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """``E|z - D|^2`` of flat images ``(B, D)`` under one class ``(N, D)``,
    mean over draws ``(R, D)``; shape ``(B,)``.
    """
    d = torch.cdist(z, points) ** 2  # the one large product
    e = points @ eps.T  # knows no image: once for all
    p = torch.exp(-(d - d.amin(dim=1, keepdim=True)) / (2 * sigma**2))
    u = torch.exp((e - e.amax(dim=0)) / sigma)
    norm = p @ u
    mean_d, mean_e = (p * d) @ u / norm, p @ (u * e) / norm
    return (mean_d - sigma * (mean_e - z @ eps.T)).mean(dim=1)


rand = generator(seed, "tiny")
points0, flat = (
    to_model(torch.rand((n, 9), generator=rand, dtype=torch.float64))
    for n in (8, 5)
)
draws = randn((6, 9), seed, "ten lines", like=flat)
ten_lines = losses_at(flat, points0, 0.7, draws)
slow = torch.stack(
    [sum(stein(z, points0, 0.7, e) for e in draws) / len(draws) for z in flat]
)
print(
    f"ten lines against the plain formula: largest error "
    f"{float((ten_lines - slow).abs().max()):.0e}"
)

# %% tags=["remove-cell"]
assert float((ten_lines - slow).abs().max()) < 1e-9

# %% [markdown]
# Stein's form equals $\norm{z - D}^2$ in expectation only. That is checked in one dimension, where Gauss-Hermite quadrature replaces the draws.

# %%
nodes, masses = np.polynomial.hermite_e.hermegauss(200)
masses = torch.from_numpy(masses / masses.sum())
line = torch.linspace(-1, 1, 5, dtype=torch.float64)[
    :, None
]  # five images of one pixel
for sigma in (0.5, 1.0, 3.0):
    z1 = torch.tensor([0.3], dtype=torch.float64)
    draws1 = torch.from_numpy(nodes)[:, None]
    by_stein = sum(
        m * stein(z1, line, sigma, e)
        for m, e in zip(masses, draws1, strict=True)
    )
    weights = torch.softmax(
        -((z1 + sigma * draws1)[:, None] - line).square().sum(dim=2)
        / (2 * sigma**2),
        dim=1,
    )
    direct = masses @ (z1 - weights @ line).square().sum(dim=1)
    print(
        f"sigma = {sigma:.1f}:  E|z - D|^2 = {float(direct):.8f},  by Stein "
        f"{float(by_stein):.8f}"
    )
    assert abs(float(direct - by_stein)) < 1e-8


# %% [markdown]
# `OptimalClassifier` adds three details. Draws come in pairs $\pm\varepsilon$, which removes the noise of
# $\varepsilon \cdot z$. At low levels, where $u$ would overflow, only the nearest images of each class can carry weight, and the
# softmax is taken over those. And the losses are smooth in $\log \sigma$, so a thousand levels are integrated from a few
# nodes. Stein's form has little variance at low noise, but more than the direct form at high noise. In a weighted sum that does not
# matter, because high levels have small weights; for a single high level we use the direct form.
#
# How long does it take? The unit is the one distance product that any method needs. All times are for one image.


# %% tags=["hide-input"]
def per_image(f: Callable[[], object], count: int, repeats: int = 3) -> float:
    """Shortest of several wall times of ``f``, divided by ``count``, in
    seconds.
    """
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            f()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) / count


def direct_form(
    z: Tensor, points: Tensor, level: Levels, eps: Tensor
) -> Tensor:
    """The corollary as printed, one level at a time: an (N, D) array of
    differences for each level.
    """
    total = torch.zeros((), device=z.device)
    for sigma, weight in zip(
        level.sigma.tolist(), level.weight.tolist(), strict=True
    ):
        s = torch.softmax(
            -(z + sigma * eps - points).square().sum(dim=1) / (2 * sigma**2),
            dim=0,
        )
        total = total + weight * (s @ (z - points)).square().sum()
    return total


whole = OptimalDenoiser(train.x, train.y)
thousand = OptimalClassifier(
    train.x, train.y, levels("elbo", count=1000), seed=seed
)
batch = test.x[:32]
flat_train = to_model(train.x).flatten(1)
time_product = per_image(
    lambda: to_model(batch).flatten(1) @ flat_train.T, len(batch)
)
time_fast = per_image(lambda: thousand(batch), len(batch))
time_levels = (
    per_image(
        lambda: DiffusionClassifier(whole, levels("elbo", count=8), seed=seed)(
            batch[:8]
        ),
        8,
        1,
    )
    * 1000
    / 8
)
z_direct, eps_direct = (
    to_model(test.x[0]).flatten(),
    randn((flat_train.shape[1],), seed, "direct", like=flat_train),
)
time_direct = (
    per_image(
        lambda: direct_form(
            z_direct, flat_train[:1000], levels("elbo", count=10), eps_direct
        ),
        1,
    )
    * 10
)
fast_small = OptimalClassifier(
    train.x[:1000], train.y[:1000], levels("elbo", count=100), seed=seed
)
time_small = per_image(lambda: fast_small(batch), len(batch))
print(
    f"N = {len(train)}, T = 1000 levels, {thousand.eps.shape[0]} draws: "
    f"{time_fast / time_product:8.1f} times one distance product"
)
print(
    f"a distance product for each level (from 8 levels):  "
    f"{time_levels / time_fast:8.0f} times slower than that, for one draw"
)
print(
    f"N = 1000, T = 100, as printed (from 10 levels):     "
    f"{time_direct / time_small:8.0f} times slower than the fast form, for "
    f"one draw"
)

# %% tags=["remove-cell"]
claim(time_direct > 5 * time_small)
claim(time_levels > 5 * time_fast)

# %% [markdown]
# ## What to remember
#
# - In the dimension of images the softmax is one-hot at all but high noise levels: the optimal classifier is the nearest-neighbour rule
#   (1-NN), nearly whatever the weights.
# - The softmax factorises into a part that knows the image and a part that knows the noise.
# - Stein's identity removes the denoised image: one matrix product an image is left.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-optimal-count
# :::
# **What the factors save** (5 minutes, easy). Count multiplications for one image and one draw, $N = 60\,000$ images of $D = 784$ pixels and $T = 1000$ levels: as printed ($N \times T \times D$), and with the factors of {eq}`eq-factorised` ($N \times D$ for the distances, $N$ for each level). What is the ratio? How large can it become with more levels?
#
# :::{hint}
# :class: dropdown
# $N$ cancels.
# :::

# %%
# your code here
saved, limit = None, None

# %%
# check
fine = None not in (saved, limit) and (
    abs(saved - 439.5) < 1 and abs(limit - 784) < 1
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-count
# :label: sol-optimal-count
# :class: dropdown
# :::
# $T D / (D + T)$, at most $D$: with very many levels the thin products cost more than the distances. For that the losses are interpolated in $\log \sigma$.

# %%
pixels_n, levels_n = 784, 1000
saved, limit = pixels_n * levels_n / (pixels_n + levels_n), pixels_n
print(f"{saved:.1f}, at most {limit}")

# %% tags=["remove-cell"]
claim(440 > saved > 439)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-loo
# :::
# **Leave one out** (5 minutes, easy). The optimal classifier is always right on its own training images. Compute the leave-one-out accuracy of 1-NN on the first
# 500 training images, and compare it with the accuracy on test images.
#
# :::{hint}
# :class: dropdown
# `torch.cdist` gives all distances; the diagonal has to go.
# :::

# %%
# your code here
right_of_500 = None

# %%
# check
fine = close_to(right_of_500, 410, within=5)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-loo
# :label: sol-optimal-loo
# :class: dropdown
# :::
# Set the distance of every image to itself to infinity. What is left is an honest estimate: the accuracy on *stored* images says nothing,
# the one on left-out images is like that on test images.

# %%
own = to_model(train.x[:500]).flatten(1)
between = torch.cdist(own, flat_train)
between[torch.arange(len(own)), torch.arange(len(own))] = math.inf
right_of_500 = int(
    (train.y[between.argmin(dim=1)] == train.y[: len(own)]).sum()
)
print(f"stored      {accuracy(neighbour, train.x[:500], train.y[:500])}")
print(f"left out    {Accuracy.of(right_of_500, len(own))}")
print(f"test        {accuracy(neighbour, x_clean, y_clean)}")

# %% tags=["remove-cell"]
claim(0.6 < right_of_500 / 500 < 0.97)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-limits
# :::
# **Two limits** (15 minutes, medium). Show that a classifier with the one level $\sigma$ becomes 1-NN for $\sigma \to 0$ and the rule of the nearest
# class mean for $\sigma \to \infty$. Which rule does the *density* $p_\sigma(z \mid y)$ give for $\sigma \to \infty$? Check on
# `x_clean`: how often do loss and density at $\sigma = 300$ decide as the nearest mean?
#
# :::{hint}
# :class: dropdown
# Write the exponents as $-d_i / 2 \sigma^2 + E_i / \sigma$, and let $\sigma$ grow. For the density expand to first order in $1 / \sigma^2$. `one_level` makes the classifier, `OptimalDenoiser.log_density` gives the density; use float64 for it.
# :::

# %%
# your code here
as_mean = {"loss": None, "density": None}  # shares between 0 and 1

# %%
# check
fine = close_to(as_mean, {"loss": 1, "density": 0.74}, within=0.03)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-limits
# :label: sol-optimal-limits
# :class: dropdown
# :::
# For $\sigma \to 0$ the softmax weight of the nearest image tends to one, so $\norm{z - D}^2 \to d_y$. For $\sigma \to \infty$ the exponents
# $-d_i / 2\sigma^2 + E_i / \sigma$ tend to zero, all weights to $1/N_y$, and $D$ to the class mean $\mu_y$.
#
# The density is another matter: to first order in $1/\sigma^2$, $\log p_\sigma(z \mid y)$ is a constant minus the *mean* of $d_i / 2\sigma^2$, and
# the mean of $d_i$ is $\norm{z - \mu_y}^2$ plus the total variance of the class. So the density prefers compact classes.

# %%
exact = OptimalDenoiser(train.x.double(), train.y)
by_class = [
    to_model(train.x[train.y == k]).flatten(1)
    for k in range(len(train.classes))
]
means = torch.stack([points.mean(dim=0) for points in by_class])
variances = torch.stack(
    [points.var(dim=0, unbiased=False).sum() for points in by_class]
)
to_means = torch.cdist(to_model(x_clean).flatten(1), means) ** 2
rules = {
    "1-NN": predict(neighbour, x_clean),
    "nearest mean": to_means.argmin(dim=1),
    "smallest mean distance": (to_means + variances).argmin(dim=1),
}
agrees = {}
for s in (0.1, 300.0):
    losses_say = predict(one_level(train.x, train.y, s), x_clean)
    density_says = exact.log_density(to_model(x_clean.double()), s).argmax(
        dim=1
    )
    for who, verdict in (("loss", losses_say), ("density", density_says)):
        agrees[s, who] = {
            name: float((verdict == rule).double().mean())
            for name, rule in rules.items()
        }
        row = "   ".join(
            f"{name} {100 * share:5.1f} %"
            for name, share in agrees[s, who].items()
        )
        print(f"sigma = {s:5.1f}, {who:7s} agrees with  {row}")
as_mean = {who: agrees[300.0, who]["nearest mean"] for who in as_mean}

# %% tags=["remove-cell"]
claim(agrees[0.1, "loss"]["1-NN"] > 0.98)
claim(agrees[300.0, "loss"]["nearest mean"] > 0.95)
claim(agrees[300.0, "density"]["smallest mean distance"] > 0.95)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The optimal classifier is from {cite:t}`chen2024rdc`, levels and weights are from {cite:t}`karras2022elucidating` and {cite:t}`ho2020ddpm`.
