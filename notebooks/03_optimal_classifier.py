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
# (nb-optimal)=
# # The optimal classifier
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive the best possible {term}`denoiser` of a finite data set, its density and its score, and check them to rounding error.
# - Turn it into a classifier (Corollary 3.3).
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-diffusion`, {ref}`nb-first-attack`, {doc}`/book/notation`. Covers
# Theorem 3.2, Corollary 3.3 and appendix A.2 of {cite:t}`chen2024rdc`. Four pages follow: what the losses know
# ({ref}`nb-optimal-nearest`), when they are likelihoods ({ref}`nb-optimal-gap`), what "100 % robust" means ({ref}`nb-optimal-stored`), and
# what would not change it ({ref}`nb-optimal-same`).

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0
data: str = "fashion-mini"  # data set

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import OptimalDenoiser, to_model
from rdc.notebook import check_parameters, close_to
from rdc.plots import image_grid, style
from rdc.rng import generator, randn
from rdc.schedule import alpha_to_sigma, levels, vp_alphas

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

# %% [markdown]
# **What is the best that a denoiser can do, and what classifier does it make?** A {term}`diffusion classifier` compares how well a denoiser explains
# an image under each label. Before we trust a *trained* denoiser, we study the *best* one. For a finite set of images it has a closed
# form, so every quantity of the theory can be computed instead of bounded.
#
# The data set is written $\mathcal D$, its images of class $y$ are $\mathcal D_y = \{z_1, \dots, z_{N_y}\}$, and $D$ is
# the number of pixels.

# %% mystnb={"figure": {"caption": "A test image under more and more noise (above), and what the best denoiser of 4 000 training images makes of it, told the right class (middle) and a wrong one (below). At low noise it returns one stored image, at high noise the mean of the class.", "name": "fig-optimal-denoiser"}, "image": {"alt": "Three rows of four pictures: a T-shirt that drowns in noise; T-shirts, the last one blurred; boots, the last one blurred", "width": "80%"}} tags=["hide-input"]
best, one = (
    OptimalDenoiser(train.x[:4000], train.y[:4000]),
    to_model(test.x[:1]),
)
sigmas = torch.tensor([0.3, 1.0, 3.0, 10.0], device=device)
noise = sigmas.reshape(-1, 1, 1, 1) * randn(
    one.shape[1:], seed, "picture", like=one
)
seen = best.all_classes(
    one + noise, sigmas
)  # (levels, classes, 1, height, width)
right = int(test.y[0])
wrong = (right + 9) % 10
rows = [
    (one + noise) / 2 + 0.5,
    seen[:, right] / 2 + 0.5,
    seen[:, wrong] / 2 + 0.5,
]
what = ["noisy", f"as {test.classes[right]}", f"as {test.classes[wrong]}"]
titles = [f"{w},\n$\\sigma$ = {s:g}" for w in what for s in sigmas.tolist()]
image_grid(torch.cat(rows), columns=4, titles=titles, size=1.5)
plt.show()


# %% [markdown]
# ## The best denoiser of a finite set
#
# Draw an image $z$ uniformly from $\mathcal D_y$, and add noise: $z_\sigma = z + \sigma \varepsilon$. A denoiser sees
# $z_\sigma$, $\sigma$ and $y$ and has to guess $z$.
#
# :::{prf:theorem} Optimal denoiser (Theorem 3.2 of the paper, VE form)
# :label: thm-optimal-denoiser
# Among all measurable functions $h$, the expected square error $\E \norm{h(z_\sigma, \sigma, y) - z}^2$ is smallest for
# ```{math}
# :label: eq-optimal-denoiser
# \begin{aligned}
# D(z_\sigma, \sigma, y) &= \E[z \mid z_\sigma, y] = \sum_{i=1}^{N_y} s_i\, z_i, \\
# s_i &= \frac{\exp\big(-\norm{z_\sigma - z_i}^2 / 2\sigma^2\big)}{\sum_j \exp\big(-\norm{z_\sigma - z_j}^2 / 2\sigma^2\big)} ,
# \end{aligned}
# ```
# and every other minimiser equals it almost everywhere.
# :::
#
# :::{prf:proof}
# *The minimum is pointwise.* Condition on $z_\sigma$. The choice of $h(z_\sigma)$ at one point does not affect any other
# point, so minimise $q(h) = \E\big[\norm{h - z}^2 \mid z_\sigma, y\big]$ at each point on its own. With
# $m = \E[z \mid z_\sigma, y]$ the cross term vanishes, and
# ```{math}
# q(h) = \norm{h - m}^2 + \E\big[\norm{z - m}^2 \mid z_\sigma, y\big],
# ```
# a quadratic with the one minimiser $h = m$.
#
# *Bayes gives the weights.* The prior of $z_i$ is $1/N_y$ and $z_\sigma$ given $z_i$ is normal, so
# ```{math}
# s_i = P(z = z_i \mid z_\sigma, y)
#     = \frac{\tfrac1{N_y} (2\pi\sigma^2)^{-D/2} \exp(-\norm{z_\sigma - z_i}^2 / 2\sigma^2)}
#            {\sum_j \tfrac1{N_y} (2\pi\sigma^2)^{-D/2} \exp(-\norm{z_\sigma - z_j}^2 / 2\sigma^2)} .
# ```
# The factors in front do not depend on $i$ and cancel.
# :::
#
# :::{note}
# Appendix A.2.1 of the paper prints the normaliser of the Gaussian as $(2\pi\sigma_t)^{n/2}$. It is
# $(2\pi\sigma_t^2)^{n/2}$. Since it cancels, Equation (7) of the paper is right all the same.
# :::
#
# ### The same theorem for the noise, in VP form
#
# The paper predicts the noise from $x_t = \sqrt{\alpha_t}\, z + \sigma_t \varepsilon$ with $\sigma_t^2 = 1 - \alpha_t$.
# Given $x_t$, noise and image determine each other, $\varepsilon = (x_t - \sqrt{\alpha_t} z) / \sigma_t$. So the best noise
# prediction follows from the best denoiser, and the squared errors differ by a constant factor:
#
# ```{math}
# :label: eq-optimal-vp
# \begin{aligned}
# \hat\varepsilon(x_t, t, y) &= \sum_i s_i \frac{x_t - \sqrt{\alpha_t}\, z_i}{\sigma_t}, \\
# \norm{\hat\varepsilon - \varepsilon}^2 &= \frac{\norm{D - z}^2}{\sigma^2}, \qquad
# \sigma^2 = \frac{1 - \alpha_t}{\alpha_t} .
# \end{aligned}
# ```
#
# The weights are those of {eq}`eq-optimal-denoiser`, because
# $\norm{x_t - \sqrt{\alpha_t} z_i}^2 / \sigma_t^2 = \norm{x_t / \sqrt{\alpha_t} - z_i}^2 / \sigma^2$.
#
# ### Density and score
#
# The density of $z_\sigma$ is a mixture of Gaussians, one for each image. Its gradient is the score:
#
# ```{math}
# :label: eq-optimal-score
# \begin{aligned}
# \log p_\sigma(z_\sigma \mid y) &= \log \frac1{N_y} \sum_i \frac{e^{-\norm{z_\sigma - z_i}^2 / 2\sigma^2}}{(2\pi\sigma^2)^{D/2}}, \\
# \nabla \log p_\sigma(z_\sigma \mid y) &= \frac{D(z_\sigma, \sigma, y) - z_\sigma}{\sigma^2} .
# \end{aligned}
# ```
#
# Differentiate the first formula: each term gives $(z_i - z_\sigma)/\sigma^2$ with weight $s_i$. This is known as Tweedie's formula.
#
# We check all three against a reference that is slow and obvious: one loop, one image at a time, no matrix product.


# %%
def reference(z: Tensor, points: Tensor, sigma: float) -> tuple[Tensor, float]:
    """Posterior mean and log-density of one noisy image by a loop over the
    images of a class, all flat float64.
    """
    numbers = [
        float(torch.exp(-((z - p) ** 2).sum() / (2 * sigma**2))) for p in points
    ]
    mean = sum(n * p for n, p in zip(numbers, points, strict=True)) / sum(
        numbers
    )
    normaliser = (2 * math.pi * sigma**2) ** (len(z) / 2)
    return mean, math.log(sum(numbers) / len(points) / normaliser)


rand = generator(seed, "tiny")
tiny_x = torch.rand(
    (24, 1, 3, 3), generator=rand, dtype=torch.float64
)  # 24 images of 3x3 pixels, 3 classes
tiny_y = torch.randint(3, (24,), generator=rand)
tiny = OptimalDenoiser(tiny_x, tiny_y)
noisy = to_model(torch.rand((5, 1, 3, 3), generator=rand, dtype=torch.float64))


def check_denoiser(sigma: float) -> tuple[float, float, float]:
    """Largest error of posterior mean, log-density and score on the small
    mixture.
    """
    point = noisy.clone().requires_grad_()
    density = tiny.log_density(point, sigma)
    error = [0.0, 0.0, 0.0]
    for k in range(3):
        (slope,) = torch.autograd.grad(
            density[:, k].sum(), point, retain_graph=True
        )
        score = tiny.score(noisy, sigma, torch.full((5,), k))
        error[2] = max(error[2], float((slope - score).abs().max()))
        for n in range(5):
            mean, log_density = reference(
                noisy[n].flatten(),
                to_model(tiny_x[tiny_y == k]).flatten(1),
                sigma,
            )
            error[0] = max(
                error[0],
                float(
                    (tiny.all_classes(noisy, sigma)[n, k].flatten() - mean)
                    .abs()
                    .max()
                ),
            )
            error[1] = max(error[1], abs(density[n, k].item() - log_density))
    return tuple(error)


errors = np.array([check_denoiser(sigma) for sigma in (0.1, 0.5, 2.0)])
for name, error in zip(
    ("posterior mean", "log-density", "score = gradient of log-density"),
    errors.max(axis=0),
    strict=True,
):
    print(f"{name:32s} largest error {error:.0e}")

# %% tags=["remove-cell"]
assert errors.max() < 1e-9


# %% [markdown]
# The VP form is Equation (7) of the paper, written out for one image, one class and a few time steps.


# %% tags=["hide-input"]
def noise_prediction(x_t: Tensor, alpha: Tensor, points: Tensor) -> Tensor:
    """Equation (7) of the paper for one flat image: the optimal noise
    prediction in VP form.
    """
    sigma_t = (1 - alpha).sqrt()
    s = torch.softmax(
        -((x_t - alpha.sqrt() * points) ** 2).sum(dim=1) / (2 * sigma_t**2),
        dim=0,
    )
    return s @ (x_t - alpha.sqrt() * points) / sigma_t


z0, eps0 = noisy[0], randn((1, 3, 3), seed, "vp", like=noisy)
points0 = to_model(tiny_x[tiny_y == 0]).flatten(1)
for step in (50, 200, 500, 900):
    alpha = vp_alphas()[step - 1]
    sigma = float(alpha_to_sigma(alpha))
    predicted = noise_prediction(
        (alpha.sqrt() * z0 + (1 - alpha).sqrt() * eps0).flatten(),
        alpha,
        points0,
    )
    denoised = tiny((z0 + sigma * eps0)[None], sigma, torch.tensor([0]))[0]
    noise_error = float((predicted - eps0.flatten()).square().sum())
    image_error = float((denoised - z0).square().sum()) / sigma**2
    print(
        f"t = {step:3d}, sigma = {sigma:6.3f}:  |noise error|^2 = "
        f"{noise_error:8.4f},  |D - z|^2 / sigma^2 = {image_error:8.4f}"
    )
    assert abs(noise_error - image_error) < 1e-9 * (1 + noise_error)


# %% [markdown]
# ## From denoiser to classifier
#
# :::{prf:corollary} Optimal diffusion classifier (Corollary 3.3 of the paper)
# :label: cor-optimal-classifier
# With the {term}`optimal denoiser`, the loss at level $t$ for any image $z$ and class $y$ is
# ```{math}
# :label: eq-optimal-classifier
# \begin{aligned}
# \norm{\hat\varepsilon(x_t, t, y) - \varepsilon}^2 &= \frac{\alpha_t}{\sigma_t^2}\, \Big\lVert \sum_i s_i\, (z - z_i) \Big\rVert^2, \\
# x_t &= \sqrt{\alpha_t}\, z + \sigma_t \varepsilon .
# \end{aligned}
# ```
# :::
#
# :::{prf:proof}
# Put $x_t$ into {eq}`eq-optimal-vp`:
# ```{math}
# \begin{aligned}
# \hat\varepsilon - \varepsilon &= \sum_i s_i \Big( \frac{\sqrt{\alpha_t}}{\sigma_t} (z - z_i) + \varepsilon \Big) - \varepsilon \\
# &= \frac{\sqrt{\alpha_t}}{\sigma_t} \sum_i s_i (z - z_i) + \Big( \sum_i s_i - 1 \Big) \varepsilon ,
# \end{aligned}
# ```
# and the weights sum to one, so $\varepsilon$ cancels. (The noise does not vanish from the problem: the $s_i$ depend on it.)
# :::
#
# Since $\sum_i s_i (z - z_i) = z - D$, this is the loss $\norm{z - D}^2$ of every diffusion classifier in this book with the
# weight $1/\sigma^2$. That choice is the level kind `"vp"`. Other kinds change the weight, not the formula.
#
# Two implementations must agree. The first runs the general classifier on the optimal denoiser. The second is
# {eq}`eq-optimal-classifier` typed in. A third one, which is fast, is derived in {ref}`nb-optimal-nearest`.


# %%
def corollary(z: Tensor, points: Tensor, alpha: Tensor, eps: Tensor) -> Tensor:
    """The corollary for one flat image, one class and one draw of noise."""
    sigma2 = 1 - alpha
    exponent = -((alpha.sqrt() * (z - points) + sigma2.sqrt() * eps) ** 2).sum(
        dim=1
    ) / (2 * sigma2)
    return (
        alpha
        / sigma2
        * (torch.softmax(exponent, dim=0) @ (z - points)).square().sum()
    )


vp = levels("vp", count=20)
alphas = vp_alphas()[49::50]
images = (noisy + 1) / 2
general = DiffusionClassifier(tiny, vp, seed=seed)(images)
noise = [
    randn((9,), seed, 0, t, 0, 0, like=noisy) for t in range(len(vp))
]  # the classifier's own noise
classes = [to_model(tiny_x[tiny_y == k]).flatten(1) for k in range(3)]
typed = -torch.stack(
    [
        torch.stack(
            [
                sum(
                    corollary(z, p, a, e)
                    for a, e in zip(alphas, noise, strict=True)
                )
                / 20
                for p in classes
            ]
        )
        for z in noisy.flatten(1)
    ]
)
error_general = float(((general - typed) / typed).abs().max())
print(
    f"general classifier against the corollary: relative error "
    f"{error_general:.0e}"
)

# %% tags=["remove-cell"]
assert error_general < 1e-9

# %% [markdown]
# ## What to remember
#
# - The best denoiser of a finite set is a softmax average of its images. Density, score and losses are closed forms, checked here
#   to rounding error.
# - The noise cancels in Corollary 3.3 because the softmax weights sum to one; the weights still depend on it.
# - The loss in the paper's units is $\norm{z - D}^2 / \sigma^2$. Other weights change the factor, not the formula.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-optimal-half
# :::
# **One against a hundred** (5 minutes, easy). A point $z_\sigma$ has the squared distance 10 to one stored image of a class, and 12 to a hundred others. At which $\sigma$ does the one have half of the weight?
#
# :::{hint}
# :class: dropdown
# Its weight is $1 / (1 + 100\, e^{-2 / 2 \sigma^2})$.
# :::

# %%
# your code here
half_weight_at = None

# %%
# check
fine = half_weight_at is not None and abs(half_weight_at - 0.466) < 2e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-half
# :label: sol-optimal-half
# :class: dropdown
# :::
# $100\, e^{-1 / \sigma^2} = 1$, so $\sigma = 1 / \sqrt{\ln 100}$. Number counts only through its logarithm, distance through its square over $\sigma^2$: that is why one image wins at low noise.

# %%
half_weight_at = 1 / math.sqrt(math.log(100))
squared = torch.tensor([10.0] + [12.0] * 100)
for s in (0.3, half_weight_at, 1.0):
    weight = (-squared / (2 * s**2)).softmax(dim=0)[0]
    print(f"sigma {s:.3f}: weight of the nearest {float(weight):.3f}")

# %% tags=["remove-cell"]
assert abs(half_weight_at - 0.466) < 1e-3

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-two-points
# :::
# **Two points on a line** (5 minutes, easy). Let $\mathcal D_y = \{-1, 1\}$, images of one pixel. Compute $D(z_\sigma, \sigma)$ by hand. What does the denoiser make of $z_\sigma = 0.5$ at $\sigma = 0.1$, and what at $\sigma = 3$?
#
# :::{hint}
# :class: dropdown
# The factor $e^{-(z_\sigma^2 + 1) / 2 \sigma^2}$ is common to both weights.
# :::

# %%
# your code here
at_half = {0.1: None, 3.0: None}  # D(0.5, sigma)

# %%
# check
fine = None not in at_half.values() and (
    abs(at_half[0.1] - 1) < 1e-3 and abs(at_half[3.0] - 0.0555) < 1e-3
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-two-points
# :label: sol-optimal-two-points
# :class: dropdown
# :::
# The weights are proportional to $e^{\pm z_\sigma / \sigma^2}$, so $D = \tanh(z_\sigma / \sigma^2)$: nearly a sign at low noise, nearly zero, the mean of the
# class, at high noise.

# %%
at_half = {s: math.tanh(0.5 / s**2) for s in at_half}
line = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(
    2, 1, 1, 1
)  # -1 and 1
two = OptimalDenoiser(line, torch.zeros(2, dtype=torch.long))
place = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
for s, by_hand in at_half.items():
    estimate = float(two(place, s, torch.zeros(1, dtype=torch.long)))
    print(f"sigma {s:.1f}: {by_hand:.4f}, error {abs(estimate - by_hand):.0e}")
    assert abs(estimate - by_hand) < 1e-9

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-unconditional
# :::
# **Without a label** (10 minutes, medium). Show that the best denoiser which does not know the class is $\sum_y p(y \mid z_\sigma)\, D(z_\sigma, \sigma, y)$. Compute that sum for the points `noisy` of
# the small mixture at $\sigma = 0.7$. The check compares it with a denoiser of the same images in *one* class.
#
# :::{hint}
# :class: dropdown
# The tower rule: average $\E[z \mid z_\sigma, y]$ over $y$ given $z_\sigma$. The prior of a class is its share of the images. `tiny.log_density` and `tiny.all_classes` give the parts.
# :::

# %%
# your code here
mixed = None  # (5, 1, 3, 3)

# %%
# check
nobody = torch.zeros(len(tiny_x), dtype=torch.long)
free = OptimalDenoiser(tiny_x, nobody)(noisy, 0.7, nobody[:5])
fine = close_to(mixed, free, within=1e-5)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-unconditional
# :label: sol-optimal-unconditional
# :class: dropdown
# :::
# By the tower rule $\E[z \mid z_\sigma] = \E\big[ \E[z \mid z_\sigma, y] \mid z_\sigma \big]$, and $p(y \mid z_\sigma) \propto N_y\, p_\sigma(z_\sigma \mid y)$.

# %%
prior = torch.bincount(tiny_y).double().log()
posterior = (tiny.log_density(noisy, 0.7) + prior).softmax(dim=1)
mixed = torch.einsum("nk,nkchw->nchw", posterior, tiny.all_classes(noisy, 0.7))
print(f"largest error {float((mixed - free).abs().max()):.0e}")

# %% tags=["remove-cell"]
assert torch.allclose(mixed, free, atol=1e-9)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The theorems are those of {cite:t}`chen2024rdc`. Levels and weights are from {cite:t}`ho2020ddpm`, the images from {cite:t}`xiao2017fashion`.
