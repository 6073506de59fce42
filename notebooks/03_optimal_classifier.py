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
# (nb-optimal)=
# # The optimal classifier
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive the best possible denoiser of a finite data set, its density and its score, and check them to rounding error.
# - Turn it into a classifier (Corollary 3.3) and compute it for a whole training set with one matrix product an image.
# - State Theorem 3.1 with the hypothesis that it needs, and *compute* the gap between likelihood and loss.
# - Certify a nearest-neighbour rule, and predict from the certificate which attacks must fail.
# - Say what "the optimal diffusion classifier is 100 % robust" shows, and what it does not show.
#
# **Time** 90 minutes · **Needs** {ref}`nb-diffusion`, {ref}`nb-first-attack`, {doc}`/book/notation` ·
# **Paper** sections 3.2 and 3.3, appendices A.1 and A.2 of {cite:t}`chen2024rdc`
# :::
#
# A diffusion classifier compares how well a denoiser explains an image under each label. Before we trust a *trained*
# denoiser, we study the *best* one. For a finite set of images it has a closed form, so every quantity of the theory
# can be computed instead of bounded.
#
# The data set is written $\mathcal D$, its images of class $y$ are $\mathcal D_y = \{z_1, \dots, z_{N_y}\}$, and $D$ is
# the number of pixels.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0
data: str = "fashion-mini"  # data set
n_clean: int = 200  # test images for clean accuracy and agreement
n_attack: int = 20  # attacked test images, the first ones
n_small: int = 100  # test images that make up the small set D, the attacked ones among them
n_gap: int = 6  # images for the gap d(x, y)
n_aa: int = 10  # images for AutoAttack
steps: int = 10  # steps of PGD
aa_steps: int = 8  # iterations of each part of AutoAttack
aa_queries: int = 50  # queries of its Square attack
eps_linf: list[float] = [8, 16, 32, 64]  # radii in units of 1/255
eps_l2: list[str | float] = [0.5, 1.0, 2.0, 4.0]  # radii in image units
sizes: list[int] = [250, 1000, 4000, 10_000]  # sizes of D in the growth experiment
record: bool = False  # whether to write results/optimal_classifier.json

# %%
import math
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from rdc.attack import autoattack, pgd
from rdc.classify import DiffusionClassifier, NearestNeighbor, OptimalClassifier, ReleasedOptimalClassifier
from rdc.data import Images, load
from rdc.denoise import OptimalDenoiser, to_model
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, glue, needs
from rdc.plots import plot_accuracy, style
from rdc.rng import generator, randn
from rdc.runs.record import read_record, record_path, write_record
from rdc.schedule import Levels, alpha_to_sigma, chain_levels, levels, vp_alphas

check_parameters()
style()
started = time.perf_counter()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
train, test = load(data, "train"), load(data, "test")
train, test = (Images(s.x.to(device), s.y.to(device), s.classes) for s in (train, test))
print(f"{data}: {len(train)} training and {len(test)} test images, {len(train.classes)} classes, D = {train.x[0].numel()}")

# %% tags=["remove-cell"]
needs(n_attack <= n_small <= len(test), f"n_small = {n_small} must lie in n_attack...{len(test)} = {n_attack}...{len(test)}")
needs(max(n_gap, n_aa) <= n_attack <= n_clean, f"n_gap and n_aa must be at most n_attack = {n_attack}, and that at most n_clean = {n_clean}")

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
# D(z_\sigma, \sigma, y) = \E[z \mid z_\sigma, y] = \sum_{i=1}^{N_y} s_i\, z_i, \qquad
# s_i = \frac{\exp\big(-\norm{z_\sigma - z_i}^2 / 2\sigma^2\big)}{\sum_j \exp\big(-\norm{z_\sigma - z_j}^2 / 2\sigma^2\big)} ,
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
# \hat\varepsilon(x_t, t, y) = \sum_i s_i \frac{x_t - \sqrt{\alpha_t}\, z_i}{\sigma_t}, \qquad
# \norm{\hat\varepsilon - \varepsilon}^2 = \frac{\norm{D - z}^2}{\sigma^2}, \qquad
# \sigma^2 = \frac{1 - \alpha_t}{\alpha_t} .
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
# \log p_\sigma(z_\sigma \mid y) = \log \frac1{N_y} \sum_i \frac{e^{-\norm{z_\sigma - z_i}^2 / 2\sigma^2}}{(2\pi\sigma^2)^{D/2}},
# \qquad
# \nabla \log p_\sigma(z_\sigma \mid y) = \frac{D(z_\sigma, \sigma, y) - z_\sigma}{\sigma^2} .
# ```
#
# Differentiate the first formula: each term gives $(z_i - z_\sigma)/\sigma^2$ with weight $s_i$. This is known as Tweedie's formula.
#
# We check all three against a reference that is slow and obvious: one loop, one image at a time, no matrix product.


# %%
def reference(z: Tensor, points: Tensor, sigma: float) -> tuple[Tensor, float]:
    """Posterior mean and log-density of one noisy image by a loop over the images of a class, all flat float64."""
    numbers = [float(torch.exp(-((z - p) ** 2).sum() / (2 * sigma**2))) for p in points]
    mean = sum(n * p for n, p in zip(numbers, points, strict=True)) / sum(numbers)
    normaliser = (2 * math.pi * sigma**2) ** (len(z) / 2)
    return mean, math.log(sum(numbers) / len(points) / normaliser)


rand = generator(seed, "tiny")
tiny_x = torch.rand((24, 1, 3, 3), generator=rand, dtype=torch.float64)  # 24 images of 3x3 pixels, 3 classes
tiny_y = torch.randint(3, (24,), generator=rand)
tiny = OptimalDenoiser(tiny_x, tiny_y)
noisy = to_model(torch.rand((5, 1, 3, 3), generator=rand, dtype=torch.float64))


def check_denoiser(sigma: float) -> tuple[float, float, float]:
    """Largest error of posterior mean, log-density and score on the small mixture."""
    point = noisy.clone().requires_grad_()
    density = tiny.log_density(point, sigma)
    error = [0.0, 0.0, 0.0]
    for k in range(3):
        (slope,) = torch.autograd.grad(density[:, k].sum(), point, retain_graph=True)
        score = tiny.score(noisy, sigma, torch.full((5,), k))
        error[2] = max(error[2], float((slope - score).abs().max()))
        for n in range(5):
            mean, log_density = reference(noisy[n].flatten(), to_model(tiny_x[tiny_y == k]).flatten(1), sigma)
            error[0] = max(error[0], float((tiny.all_classes(noisy, sigma)[n, k].flatten() - mean).abs().max()))
            error[1] = max(error[1], abs(density[n, k].item() - log_density))
    return tuple(error)


errors = np.array([check_denoiser(sigma) for sigma in (0.1, 0.5, 2.0)])
for name, error in zip(("posterior mean", "log-density", "score = gradient of log-density"), errors.max(axis=0), strict=True):
    print(f"{name:32s} largest error {error:.0e}")

# %% tags=["remove-cell"]
assert errors.max() < 1e-9

# %% [markdown]
# The VP form is Equation (7) of the paper, written out for one image, one class and a few time steps.


# %%
def noise_prediction(x_t: Tensor, alpha: Tensor, points: Tensor) -> Tensor:
    """Equation (7) of the paper for one flat image: the optimal noise prediction in VP form."""
    sigma_t = (1 - alpha).sqrt()
    s = torch.softmax(-((x_t - alpha.sqrt() * points) ** 2).sum(dim=1) / (2 * sigma_t**2), dim=0)
    return s @ (x_t - alpha.sqrt() * points) / sigma_t


z0, eps0 = noisy[0], randn((1, 3, 3), seed, "vp", like=noisy)
points0 = to_model(tiny_x[tiny_y == 0]).flatten(1)
for step in (50, 200, 500, 900):
    alpha = vp_alphas()[step - 1]
    sigma = float(alpha_to_sigma(alpha))
    predicted = noise_prediction((alpha.sqrt() * z0 + (1 - alpha).sqrt() * eps0).flatten(), alpha, points0)
    denoised = tiny((z0 + sigma * eps0)[None], sigma, torch.tensor([0]))[0]
    noise_error = float((predicted - eps0.flatten()).square().sum())
    image_error = float((denoised - z0).square().sum()) / sigma**2
    print(
        f"t = {step:3d}, sigma = {sigma:6.3f}:  |noise error|^2 = {noise_error:8.4f},  |D - z|^2 / sigma^2 = {image_error:8.4f}"
    )
    assert abs(noise_error - image_error) < 1e-9 * (1 + noise_error)

# %% [markdown]
# ## From denoiser to classifier
#
# :::{prf:corollary} Optimal diffusion classifier (Corollary 3.3 of the paper)
# :label: cor-optimal-classifier
# With the optimal denoiser, the loss at level $t$ for any image $z$ and class $y$ is
# ```{math}
# :label: eq-optimal-classifier
# \norm{\hat\varepsilon(x_t, t, y) - \varepsilon}^2 = \frac{\alpha_t}{\sigma_t^2}\, \Big\| \sum_i s_i\, (z - z_i) \Big\|^2,
# \qquad x_t = \sqrt{\alpha_t}\, z + \sigma_t \varepsilon .
# ```
# :::
#
# :::{prf:proof}
# Put $x_t$ into {eq}`eq-optimal-vp`:
# ```{math}
# \hat\varepsilon - \varepsilon = \sum_i s_i \Big( \frac{\sqrt{\alpha_t}}{\sigma_t} (z - z_i) + \varepsilon \Big) - \varepsilon
# = \frac{\sqrt{\alpha_t}}{\sigma_t} \sum_i s_i (z - z_i) + \Big( \sum_i s_i - 1 \Big) \varepsilon ,
# ```
# and the weights sum to one, so $\varepsilon$ cancels. (The noise does not vanish from the problem: the $s_i$ depend on it.)
# :::
#
# Since $\sum_i s_i (z - z_i) = z - D$, this is the loss $\norm{z - D}^2$ of every diffusion classifier in this book with the
# weight $1/\sigma^2$. That choice is the level kind `"vp"`. Other kinds change the weight, not the formula.
#
# Three implementations must agree. The first runs the general classifier on the optimal denoiser. The second is
# {eq}`eq-optimal-classifier` typed in. The third, `OptimalClassifier`, is the fast one that we derive
# {ref}`below <sec-optimal-compute>`; it rewrites the expectation, so it is compared with its own formula on its own noise.


# %%
def corollary(z: Tensor, points: Tensor, alpha: Tensor, eps: Tensor) -> Tensor:
    """The corollary for one flat image, one class and one draw of noise."""
    sigma2 = 1 - alpha
    exponent = -((alpha.sqrt() * (z - points) + sigma2.sqrt() * eps) ** 2).sum(dim=1) / (2 * sigma2)
    return alpha / sigma2 * (torch.softmax(exponent, dim=0) @ (z - points)).square().sum()


def stein(z: Tensor, points: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """Stein's form of |z - D|^2 for one flat image, class and draw; equal to it in expectation only."""
    s = torch.softmax(-((z + sigma * eps - points) ** 2).sum(dim=1) / (2 * sigma**2), dim=0)
    return s @ ((z - points) ** 2).sum(dim=1) - sigma * (s @ points - z) @ eps


vp = levels("vp", count=20)
alphas = vp_alphas()[49::50]
images = (noisy + 1) / 2
general = DiffusionClassifier(tiny, vp, seed=seed)(images)
noise = [randn((9,), seed, 0, t, 0, 0, like=noisy) for t in range(len(vp))]  # the classifier's own noise
classes = [to_model(tiny_x[tiny_y == k]).flatten(1) for k in range(3)]
typed = -torch.stack(
    [
        torch.stack([sum(corollary(z, p, a, e) for a, e in zip(alphas, noise, strict=True)) / 20 for p in classes])
        for z in noisy.flatten(1)
    ]
)
fast = OptimalClassifier(tiny_x, tiny_y, vp, seed=seed, nodes=20)
typed_stein = torch.zeros(5, 3, dtype=torch.float64)
for n, z in enumerate(noisy.flatten(1)):
    for k, p in enumerate(classes):
        for sigma, weight in zip(vp.sigma.tolist(), vp.weight.tolist(), strict=True):
            typed_stein[n, k] -= weight * sum(stein(z, p, sigma, e) for e in fast.eps) / len(fast.eps)
error_general = float(((general - typed) / typed).abs().max())
error_fast = float(((fast(images) - typed_stein) / typed_stein).abs().max())
print(f"general classifier against the corollary:         relative error {error_general:.0e}")
print(f"OptimalClassifier against its formula (Stein):    relative error {error_fast:.0e}")

# %% tags=["remove-cell"]
assert max(error_general, error_fast) < 1e-9

# %% [markdown]
# That Stein's form has the same expectation is checked in one dimension, where Gauss-Hermite quadrature replaces the draws.

# %%
nodes, masses = np.polynomial.hermite_e.hermegauss(200)
masses = torch.from_numpy(masses / masses.sum())
line = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]  # five images of one pixel
for sigma in (0.5, 1.0, 3.0):
    z1 = torch.tensor([0.3], dtype=torch.float64)
    draws1 = torch.from_numpy(nodes)[:, None]
    by_stein = sum(m * stein(z1, line, sigma, e) for m, e in zip(masses, draws1, strict=True))
    weights = torch.softmax(-((z1 + sigma * draws1)[:, None] - line).square().sum(dim=2) / (2 * sigma**2), dim=1)
    direct = masses @ (z1 - weights @ line).square().sum(dim=1)
    print(f"sigma = {sigma:.1f}:  E|z - D|^2 = {float(direct):.8f},  by Stein {float(by_stein):.8f}")
    assert abs(float(direct - by_stein)) < 1e-8

# %% [markdown]
# ## What the losses know: one nearest image
#
# Look at the loss $m_y(\sigma; z) = \E_\varepsilon \norm{z - D(z + \sigma\varepsilon, \sigma, y)}^2$ of test images,
# divided by the squared distance $d_y$ to the nearest training image of class $y$. A classifier with this one level decides
# for the smallest loss.


# %%
def one_level(x: Tensor, y: Tensor, sigma: float) -> nn.Module:
    """The optimal classifier of ``(x, y)`` with the one level ``sigma`` of weight 1: logits ``-m_y``."""
    level = Levels(torch.tensor([sigma], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    if sigma < 4:
        return OptimalClassifier(x, y, level, seed=seed)
    return DiffusionClassifier(OptimalDenoiser(x, y), level, noise="antithetic", draws=2, seed=seed)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float64 on the CPU, without a gradient."""
    with torch.no_grad():
        return model(x).double().cpu()


x_clean, y_clean = test.x[:n_clean], test.y[:n_clean]
x_level = x_clean[:100]
nearest = -logits_of(NearestNeighbor(train.x, train.y), x_level)  # squared distances, model units
grid = torch.logspace(math.log10(0.05), math.log10(50), 16, dtype=torch.float64).tolist()
ratio = torch.stack([-logits_of(one_level(train.x, train.y, s), x_level) / nearest for s in grid])  # (levels, images, classes)
one_hot_share = ((ratio - 1).abs() < 0.1).double().mean(dim=(1, 2))
decisions = (ratio * nearest).argmin(dim=2)
same_vote = (decisions == nearest.argmin(dim=1)).double().mean(dim=1)
for i in range(0, len(grid), 3):
    print(
        f"sigma = {grid[i]:6.2f}: {100 * one_hot_share[i]:5.1f} % of the losses within 10 % of d_y; "
        f"decision of this level = 1-NN for {100 * same_vote[i]:5.1f} % of the images"
    )

# %% mystnb={"figure": {"caption": "Left: loss of the first test image under each class, relative to the squared distance to the nearest training image of that class; it is 1 where one training image holds all of the softmax weight (thick: the true class). Right: how often a classifier with this one level decides as 1-NN, and how many losses are within 10 % of the nearest distance.", "name": "fig-optimal-one-hot"}, "image": {"alt": "Left: ten curves that are flat at one for low noise levels and then move apart. Right: agreement with nearest neighbour stays near 100 percent at low levels and falls at high ones."}} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
for k, name in enumerate(train.classes):
    left.semilogx(grid, ratio[:, 0, k], label=name, linewidth=3 if k == int(y_clean[0]) else 1.2)
left.set(xlabel="noise level $\\sigma$ (model units)", ylabel="$m_y(\\sigma) / d_y$")
left.legend(fontsize=7, ncol=2)
right.semilogx(grid, 100 * same_vote, marker="o", label="same decision as 1-NN")
right.semilogx(grid, 100 * one_hot_share, marker="s", label="losses within 10 % of $d_y$")
right.set(xlabel="noise level $\\sigma$ (model units)", ylabel="share (%)", ylim=(-3, 103))
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
# ## Theorem 3.1: when is the softmax of losses a posterior?
#
# Let $L_y(z)$ be the weighted loss of class $y$ and $p(z \mid y)$ any conditional density. The gap between the two is
#
# ```{math}
# :label: eq-gap
# d(z, y) = \log p(z \mid y) + L_y(z) .
# ```
#
# The paper's Theorem 3.1 concludes that the softmax of $-L_y$ is the posterior if $d(z, y) \to 0$ for all $y$. The
# hypothesis asks for too much.
#
# :::{prf:theorem} Theorem 3.1 with the hypothesis that it needs
# :label: thm-gap
# Let all class probabilities $\pi_y$ be positive. Then $p(y \mid z) = \operatorname{softmax}_y(\log \pi_y - L_y(z))$ **if and only
# if** $d(z, y)$ is the same number for all $y$. In general
# ```{math}
# :label: eq-gap-odds
# \underbrace{\log \frac{p(y \mid z)}{p(y' \mid z)}}_{\text{exact log-odds}}
# = \underbrace{\Big[ \log \frac{\pi_y}{\pi_{y'}} + L_{y'}(z) - L_y(z) \Big]}_{\text{log-odds of the classifier}} + d(z, y) - d(z, y') ,
# ```
# so the classifier's decision is Bayes' decision whenever its lead over the second class exceeds $\max_y d - \min_y d$.
# :::
#
# :::{prf:proof}
# By Bayes, $p(y \mid z) \propto \pi_y\, p(z \mid y) = \pi_y\, e^{d(z, y)} e^{-L_y(z)}$. Ratios of two classes give
# {eq}`eq-gap-odds`. A distribution with positive entries is determined by its ratios, so the two agree exactly when all
# differences $d(z, y) - d(z, y')$ vanish. If the classifier prefers $y$ by more than the spread of $d$, every right side of
# {eq}`eq-gap-odds` is positive for every $y'$.
# :::
#
# ### The gap, exactly
#
# For a trained network $d$ is unknown. For the optimal denoiser everything in {eq}`eq-gap` is computable. Choose the
# weights of the likelihood bound, $\sigma^{-3} d\sigma$ above a lowest level $s_0$. The identity of {ref}`nb-diffusion` says,
# with $J_y(\sigma; z) = \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon \mid y)$,
#
# ```{math}
# :label: eq-optimal-identity
# J_y(s_0; z) = J_y(s_T; z) + D \log \frac{s_T}{s_0} - \int_{s_0}^{s_T} \sigma^{-3} m_y(\sigma; z)\, d\sigma .
# ```
#
# For large $s_T$ the first two terms on the right no longer depend on the class. So $-L_y$, up to a constant, *is*
# $J_y(s_0; z)$, and we call that constant part of $L_y$.
#
# :::{prf:proposition} The gap is a Jensen gap
# :label: prop-gap
# With exact weights in continuous time, $d(z, y) = \log p_{s_0}(z \mid y) - J_y(s_0; z) = \tfrac D2 - G_y(z)$, where
# ```{math}
# :label: eq-jensen-gap
# G_y = \E_\varepsilon\, \operatorname{LSE}_i\Big( -\frac{\norm{z - z_i}^2}{2 s_0^2} - \frac{\varepsilon \cdot (z - z_i)}{s_0} \Big)
# - \operatorname{LSE}_i\Big( -\frac{\norm{z - z_i}^2}{2 s_0^2} \Big) \ \ge 0
# ```
# and $\operatorname{LSE}$ is log-sum-exp. Hence $d \le D/2$. If the nearest image of class $y$ is unique, $d(z, y) \to D/2$ for
# $s_0 \to 0$; and $d(z, y) \to D/2$ for $s_0 \to \infty$.
# :::
#
# :::{prf:proof}
# Expand $\norm{z + s_0 \varepsilon - z_i}^2 / 2 s_0^2 = \norm{z - z_i}^2 / 2 s_0^2 + \varepsilon \cdot (z - z_i) / s_0 + \norm{\varepsilon}^2 / 2$.
# The last term comes out of the sum over $i$, and $\E \norm{\varepsilon}^2 / 2 = D/2$. The normalisers of
# $\log p_{s_0}$ and $J_y$ are equal and cancel: that gives the formula. LSE is convex and its argument has a mean over
# $\varepsilon$ equal to the argument of the second LSE, so $G_y \ge 0$ by Jensen's inequality.
#
# As $s_0 \to 0$ the term of the nearest image exceeds the others by an amount of order $s_0^{-2}$ against noise of order
# $s_0^{-1}$; both LSE then equal this one term, whose noise has mean zero. As $s_0 \to \infty$ the noise disappears.
# :::
#
# So the gap does *not* go to zero, at any end: it goes to $D/2$, and harmlessly so, since it goes there for every class. How fast
# is another question, and only the numbers can answer it.


# %%
def jensen_gap(model: OptimalDenoiser, z: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """``G_y`` for flat antithetic noise ``eps`` ``(R, D)``, shape ``(images, K)``, in nats."""
    own = (z.flatten(1) - model.center) @ eps.T
    noise = (own[:, None] - (model.points @ eps.T)[None]) / sigma  # eps . (z - z_i) / sigma, (images, N, R)
    a = -model.distances(z) / (2 * sigma**2)
    parts = zip(a.split(model.counts, dim=1), noise.split(model.counts, dim=1), strict=True)
    return torch.stack([(p[..., None] - e).logsumexp(dim=1).mean(dim=1) - p.logsumexp(dim=1) for p, e in parts], dim=1)


train64, z_gap = train.x.double(), to_model(test.x[:n_gap].double())
exact = OptimalDenoiser(train64, train.y)
half = randn((16, exact.points.shape[1]), seed, "gap", like=exact.points)
eps_gap = torch.cat([half, -half])
dimension = exact.points.shape[1]
s0_grid = torch.logspace(math.log10(0.002), math.log10(30), 22, dtype=torch.float64).tolist()
gap = torch.stack([dimension / 2 - jensen_gap(exact, z_gap, s, eps_gap) for s in s0_grid]).cpu()  # (levels, images, K)
likelihood = torch.stack([exact.log_density(z_gap, s) for s in s0_grid]).cpu()
spread_gap, spread_likelihood = (v.amax(dim=2) - v.amin(dim=2) for v in (gap, likelihood))
relative = spread_gap / spread_likelihood
same_decision = Accuracy.of(int(((likelihood - gap).argmax(dim=2) == likelihood.argmax(dim=2)).sum()), relative.numel())
print(f"D/2 = {dimension / 2:.0f} nats; d lies between {gap.min():.1f} and {gap.max():.1f}")
print("spread over classes, mean over images, in nats")
for i in range(0, len(s0_grid), 3):
    print(f"  s_0 = {s0_grid[i]:6.3f}:  gap {spread_gap[i].mean():8.3f}   log-likelihood {spread_likelihood[i].mean():10.2f}")
print(f"decision by losses = decision by likelihood, over images and levels: {same_decision}")

# %% mystnb={"figure": {"caption": "Left: the gap $d(z, y)$ of Theorem 3.1 for one test image and all classes against the lowest noise level; the dotted line is $D/2$. Right: spread over the classes of the gap and of the exact log-likelihood, for several test images.", "name": "fig-optimal-gap"}, "image": {"alt": "Left: ten curves that leave the line D/2 in the middle range of noise levels. Right: the spread of the gap lies below the spread of the log-likelihood."}} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
for k, name in enumerate(train.classes):
    left.semilogx(s0_grid, gap[:, 0, k], label=name)
left.axhline(dimension / 2, color="black", linestyle=":")
left.set(xlabel="lowest level $s_0$ (model units)", ylabel="gap $d(z, y)$ (nats)")
left.legend(fontsize=7, ncol=2)
right.loglog(s0_grid, spread_likelihood, color="C0", alpha=0.7)
right.loglog(s0_grid, spread_gap.clamp(min=1e-4), color="C1", alpha=0.7)
right.plot([], [], color="C0", label="log-likelihood")
right.plot([], [], color="C1", label="gap")
right.set(xlabel="lowest level $s_0$ (model units)", ylabel="max - min over classes (nats)")
right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# The left panel of {numref}`fig-optimal-gap` shows both limits, and a dip between them, deeper for some classes than for others. The
# right panel has a surprise: for one image the spread of the gap keeps growing as $s_0$ falls. The cause is a near tie. If
# two images of a class are at almost the same distance from $z$, then LSE of the noisy exponents is the larger of two numbers whose
# difference has standard deviation $\norm{z_1 - z_2} / s_0$, and for an exact tie
#
# ```{math}
# :label: eq-tie
# G_y \approx \frac{\norm{z_1 - z_2}}{\sqrt{2 \pi}\, s_0} .
# ```
#
# The limit $D/2$ is reached only when $s_0$ is small against $(d_2 - d_1) / \norm{z_1 - z_2}$, far below any level in use. We
# check this for the class with the largest $G$ at the lowest level, where two images give $\E \max(0, X)$ for a normal $X$.

# %%
worst_image, worst_class = divmod(int(gap[0].argmin()), gap.shape[2])
points_worst = to_model(train64[train.y == worst_class]).flatten(1)
d_sorted, order = (z_gap[worst_image].flatten() - points_worst).square().sum(dim=1).sort()
tie_std = float((points_worst[order[0]] - points_worst[order[1]]).norm()) / s0_grid[0]
tie_mean = -float(d_sorted[1] - d_sorted[0]) / (2 * s0_grid[0] ** 2)
unit = tie_mean / tie_std
tie = tie_std * (math.exp(-(unit**2) / 2) / math.sqrt(2 * math.pi) + unit * 0.5 * math.erfc(-unit / math.sqrt(2)))
print(f"two nearest images of class {train.classes[worst_class]}: squared distances {d_sorted[0]:.4f} and {d_sorted[1]:.4f}")
print(f"G at s_0 = {s0_grid[0]:.3f}: {dimension / 2 - float(gap[0].min()):.0f} nats; these two images alone give {tie:.0f} nats")

# %% tags=["remove-cell"]
glue("optimal-gap-median", 100 * float(relative.median()))
glue("optimal-gap-lowest", 100 * float(relative[0].max()))
glue("optimal-gap-same", 100 * same_decision.value)

# %% [markdown]
# So the spread of the gap is many nats over most of the range, and for near ties it grows like $1/s_0$. There the softmax of the losses is
# *not* the exact posterior: its odds are wrong by $e$ to that many nats. But the spread of the likelihoods grows like
# $1/s_0^2$. Relative to it the gap has a median of {glue:text}`optimal-gap-median:.1f` % over images and levels, and is at most
# {glue:text}`optimal-gap-lowest:.3f` % at the lowest level. By {eq}`eq-gap-odds` that is what decisions need: losses and
# likelihoods decide alike in {glue:text}`optimal-gap-same:.1f` % of the cases. The loss is not the likelihood, but it ranks the
# classes as the likelihood does.
#
# The proposition can be tested from the other side: compute $L_y$ as a *weighted sum of losses*, with the trapezoid weights
# of {ref}`nb-diffusion`, and compare $\log p_{s_0} + L_y$ with $D/2 - G_y$. They may differ by a constant in $y$.

# %%
s0 = 1.0
integral = chain_levels(torch.logspace(math.log10(s0), 2, 600, dtype=torch.float64), rule="trapezoid", tail=True)
by_losses = OptimalClassifier(train64, train.y, integral, seed=seed, draws=64, nodes=40)
from_losses = exact.log_density(z_gap, s0) - by_losses(test.x[:n_gap].double())
from_jensen = dimension / 2 - jensen_gap(exact, z_gap, s0, by_losses.eps)
difference = from_losses - from_jensen
residual = float((difference - difference.mean(dim=1, keepdim=True)).abs().max())
spread_here = float((from_jensen.amax(dim=1) - from_jensen.amin(dim=1)).max())
print(
    f"s_0 = {s0}: gap from losses and from Jensen differ by a constant, up to {residual:.2f} nats; spread of the gap {spread_here:.1f} nats"
)

# %% tags=["remove-cell"]
claim(float(gap.max()) <= dimension / 2 + 1e-6, "antithetic draws make the sample gap obey Jensen exactly")
claim(relative[0].max() < 0.01 and same_decision.value > 0.9)
claim(residual < 0.2 * spread_here)

# %% [markdown]
# ### Weights that are not those of the bound
#
# The weights of EDM training and $w_t = 1$ in VP form make another score of the losses. Its unit is not the nat. We regress
# the differences of logits between classes on the differences of the exact $\log p_{s_0}(z \mid y)$.


# %%
def slope_and_correlation(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Least squares slope and correlation of logits against truth, both centred over classes."""
    a, b = (v - v.mean(dim=1, keepdim=True) for v in (logits, truth))
    return float((a * b).sum() / (b * b).sum()), float((a * b).sum() / (a.norm() * b.norm()))


s0 = 0.05
truth = exact.log_density(to_model(x_clean.double()), s0)
calibration = {}
for kind in ("elbo", "edm", "edm-released", "vp"):
    with torch.no_grad():
        model = OptimalClassifier(train.x, train.y, levels(kind, count=1000), seed=seed)
        logits = model(x_clean).double()
    agree = Accuracy.of(int((logits.argmax(dim=1) == truth.argmax(dim=1)).sum()), n_clean)
    calibration[kind] = (*slope_and_correlation(logits, truth), agree)
    slope, r, _ = calibration[kind]
    print(f"{kind:13s} slope {slope:9.5f}   correlation {r:.4f}   same decision as the exact posterior: {agree}")

# %% tags=["remove-cell"]
claim(0.8 < calibration["elbo"][0] < 1.2)
claim(all(slope < 0.5 for slope, _, _ in (calibration[k] for k in ("edm", "edm-released", "vp"))))
claim(all(r > 0.9 and agree.value > 0.9 for _, r, agree in calibration.values()))
glue("optimal-slope-elbo", calibration["elbo"][0])
glue("optimal-slope-edm", calibration["edm"][0])
glue("optimal-slope-vp", calibration["vp"][0])

# %% [markdown]
# With the exact weights the slope is {glue:text}`optimal-slope-elbo:.2f`, close to one. With the EDM weight it is
# {glue:text}`optimal-slope-edm:.4f` and with $w_t = 1$ it is {glue:text}`optimal-slope-vp:.4f`: as probabilities these
# softmaxes are far too cautious. The *order* of the classes is nearly untouched, and {eq}`eq-optimal-one-hot` says why: any
# positive weights at low levels multiply the same nearest distances.
#
# So Theorem 3.1 is a statement about calibrated probabilities. A decision needs much less.
#
# (sec-optimal-compute)=
# ## How to compute it for a whole training set
#
# Typed in as printed, {eq}`eq-optimal-classifier` needs $N \times T \times D$ numbers for each image and each draw. Two
# observations reduce that to one matrix product an image.
#
# **The softmax factorises.** Write $d_i = \norm{z - z_i}^2$ and $E_i = \varepsilon \cdot z_i$. Then
#
# ```{math}
# :label: eq-factorised
# -\frac{\norm{z + \sigma\varepsilon - z_i}^2}{2\sigma^2} = -\frac{d_i}{2\sigma^2} + \frac{E_i}{\sigma} + \text{const}
# \quad\Longrightarrow\quad
# s_i \propto p_i\, u_i, \qquad p_i = e^{-d_i / 2\sigma^2}, \quad u_i = e^{E_i / \sigma} .
# ```
#
# The factor $p$ knows the image but not the noise. The factor $u$ knows the noise but not the image, so it is computed once for
# all images. Every sum over $i$ is a thin product $p \cdot u$ of a row and a few columns.
#
# **Stein's identity removes the denoised image.** Put $g(\varepsilon) = D(z + \sigma\varepsilon)$. For the optimal denoiser
# $\operatorname{div}_z D = \sigma^{-2} \sum_i s_i \norm{z_i - D}^2$, and Stein's lemma says
# $\E[\varepsilon \cdot g] = \sigma\, \E[\operatorname{div} D]$. Now
#
# ```{math}
# :label: eq-stein
# \norm{z - D}^2 = \sum_i s_i d_i - \sum_i s_i \norm{z_i - D}^2
# \quad\Longrightarrow\quad
# \E \norm{z - D}^2 = \E \Big[ \sum_i s_i d_i - \sigma \big( \sum_i s_i E_i - \varepsilon \cdot z \big) \Big] .
# ```
#
# The first equation is the decomposition of a second moment into mean and variance. The second replaces the variance
# by $\sigma^2 \operatorname{div} D$, this by $\sigma\, \varepsilon \cdot D$, and subtracts $\sigma\, \varepsilon \cdot z$, which has mean zero.
# No sum over pixels is left, except in $d_i$ and $E_i$.
#
# In ten lines:


# %%
def losses_at(z: Tensor, points: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """``E|z - D|^2`` of flat images ``(B, D)`` under one class ``(N, D)``, mean over draws ``(R, D)``; shape ``(B,)``."""
    d = torch.cdist(z, points) ** 2  # the one large product
    e = points @ eps.T  # knows no image: once for all
    p = torch.exp(-(d - d.amin(dim=1, keepdim=True)) / (2 * sigma**2))
    u = torch.exp((e - e.amax(dim=0)) / sigma)
    norm = p @ u
    mean_d, mean_e = (p * d) @ u / norm, p @ (u * e) / norm
    return (mean_d - sigma * (mean_e - z @ eps.T)).mean(dim=1)


flat = noisy.flatten(1)
draws = randn((6, 9), seed, "ten lines", like=flat)
ten_lines = losses_at(flat, points0, 0.7, draws)
slow = torch.stack([sum(stein(z, points0, 0.7, e) for e in draws) / len(draws) for z in flat])
print(f"ten lines against the plain formula: largest error {float((ten_lines - slow).abs().max()):.0e}")

# %% tags=["remove-cell"]
assert float((ten_lines - slow).abs().max()) < 1e-9

# %% [markdown]
# `OptimalClassifier` adds three details. Draws come in pairs $\pm\varepsilon$, which removes the noise of
# $\varepsilon \cdot z$. At low levels, where $u$ would overflow, only the nearest images of each class can carry weight, and the
# softmax is taken over those. And the losses are smooth in $\log \sigma$, so a thousand levels are integrated from a few
# nodes. Stein's form has little variance at low noise, but more than the direct form at high noise. In a weighted sum that does not
# matter, because high levels have small weights; for a single high level we use the direct form.
#
# How long does it take? The unit is the one distance product that any method needs. All times are for one image.


# %%
def per_image(f: Callable[[], object], count: int, repeats: int = 3) -> float:
    """Shortest of several wall times of ``f``, divided by ``count``, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            f()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) / count


def direct_form(z: Tensor, points: Tensor, level: Levels, eps: Tensor) -> Tensor:
    """The corollary as printed, one level at a time: an (N, D) array of differences for each level."""
    total = torch.zeros((), device=z.device)
    for sigma, weight in zip(level.sigma.tolist(), level.weight.tolist(), strict=True):
        s = torch.softmax(-(z + sigma * eps - points).square().sum(dim=1) / (2 * sigma**2), dim=0)
        total = total + weight * (s @ (z - points)).square().sum()
    return total


whole = OptimalDenoiser(train.x, train.y)
thousand = OptimalClassifier(train.x, train.y, levels("elbo", count=1000), seed=seed)
batch = test.x[:32]
flat_train = to_model(train.x).flatten(1)
time_product = per_image(lambda: to_model(batch).flatten(1) @ flat_train.T, len(batch))
time_fast = per_image(lambda: thousand(batch), len(batch))
time_levels = per_image(lambda: DiffusionClassifier(whole, levels("elbo", count=8), seed=seed)(batch[:8]), 8, 1) * 1000 / 8
z_direct, eps_direct = to_model(test.x[0]).flatten(), randn((flat_train.shape[1],), seed, "direct", like=flat_train)
time_direct = per_image(lambda: direct_form(z_direct, flat_train[:1000], levels("elbo", count=10), eps_direct), 1) * 10
fast_small = OptimalClassifier(train.x[:1000], train.y[:1000], levels("elbo", count=100), seed=seed)
time_small = per_image(lambda: fast_small(batch), len(batch))
print(
    f"N = {len(train)}, T = 1000 levels, {thousand.eps.shape[0]} draws: {time_fast / time_product:8.1f} times one distance product"
)
print(f"a distance product for each level (from 8 levels):  {time_levels / time_fast:8.0f} times slower than that, for one draw")
print(
    f"N = 1000, T = 100, as printed (from 10 levels):     {time_direct / time_small:8.0f} times slower than the fast form, for one draw"
)

# %% tags=["remove-cell"]
claim(time_direct > 5 * time_small)
claim(time_levels > 5 * time_fast)

# %% [markdown]
# ## Robust accuracy: which images are in the data set?
#
# Section 3.3 of the paper introduces the optimal model as the one with minimal loss "over both the training set and the
# test set", and reports 100 % robust accuracy ($\ell_\infty$ 8/255 and $\ell_2$ 0.5, AutoAttack, CIFAR-10). The script of the
# released code (commit 8a82504) takes as $\mathcal D$ the first 100 *test* images, which are also the attacked ones.
#
# We attack the same test images with three choices of $\mathcal D$:
#
# | name | $\mathcal D$ | attacked images in it? |
# |---|---|---|
# | `attacked` | the first test images, as in the released script | yes |
# | `train+test` | all images, as in the text of section 3.3 | yes |
# | `train` | the training images | no |

# %%
elbo = levels("elbo", count=16)
x_attack, y_attack = test.x[:n_attack], test.y[:n_attack]
sets = {
    "attacked": (test.x[:n_small], test.y[:n_small]),
    "train+test": (torch.cat([train.x, test.x]), torch.cat([train.y, test.y])),
    "train": (train.x, train.y),
}
optimal = {name: OptimalClassifier(*points, elbo, seed=seed).to(device) for name, points in sets.items()}
neighbour = {name: NearestNeighbor(*points).to(device) for name, points in sets.items()}
clean = {name: accuracy(model, x_clean, y_clean) for name, model in optimal.items() if name != "attacked"}
clean["attacked"] = accuracy(optimal["attacked"], test.x[:n_small], test.y[:n_small])
for name in sets:
    print(f"D = {name:11s} clean accuracy {clean[name]}")

# %% tags=["remove-cell"]
claim(clean["attacked"].value == clean["train+test"].value == 1)
claim(clean["train"].value < 0.97)
glue("optimal-clean-train", 100 * clean["train"].value)

# %% [markdown]
# Already without any attack: an image that lies in $\mathcal D$ is at distance zero from its own class, and the classifier
# is right. On images that are not in $\mathcal D$ its accuracy is {glue:text}`optimal-clean-train:.1f` %.
#
# ### A certificate, before the attack
#
# By {eq}`eq-optimal-one-hot` we are attacking something close to 1-NN, and 1-NN can be certified with pencil and paper.
#
# :::{prf:proposition} Radius of a nearest-neighbour rule
# :label: prop-certificate
# Let $x$ have label $y$, let $x_i$ be an image of class $y$ in $\mathcal D$, and let $x_j$ run over the other classes, with
# $\norm{x - x_j} > \norm{x - x_i}$ for all of them. With $1/p + 1/q = 1$, no perturbation with
# ```{math}
# :label: eq-certificate
# \norm{\delta}_p < r_p, \qquad r_p = \min_j \frac{\norm{x - x_j}_2^2 - \norm{x - x_i}_2^2}{2 \norm{x_j - x_i}_q}
# ```
# changes the decision of 1-NN. In particular ($p = q = 2$)
# $r_2 \ge \tfrac12 \min_j \big( \norm{x - x_j} - \norm{x - x_i} \big)$, and if $x$ itself is in $\mathcal D$, then
# $r_2 = \tfrac12 \min_j \norm{x - x_j}$.
# :::
#
# :::{prf:proof}
# The perturbed image is nearer to $x_i$ than to $x_j$ if and only if
# $2\, \delta \cdot (x_j - x_i) < \norm{x - x_j}^2 - \norm{x - x_i}^2$: a half-space. By Hölder's inequality the left side is at most
# $2 \norm{\delta}_p \norm{x_j - x_i}_q$. If this holds for all $j$, some image of class $y$ is nearer than all others. For the
# second claim use $\norm{x_j - x_i} \le \norm{x - x_j} + \norm{x - x_i}$ in the denominator. With $x_i = x$ the
# formula is the third claim.
# :::
#
# The proposition says that 1-NN *with the attacked image in* $\mathcal D$ cannot flip unless an image of another class
# lies within $2\epsilon$. Nothing was learned, and no test of generalisation was made: only the distance between test images
# of different classes enters.


# %%
def certificates(x: Tensor, y: Tensor, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Certified radii of 1-NN in image units for each image, 0 if it is wrong: ``{"Linf": (N,), "L2": (N,)}``."""
    radii = {"Linf": [], "L2": []}
    flat_points = points.flatten(1)
    for image, label in zip(x.flatten(1), y, strict=True):
        d = (flat_points - image).square().sum(dim=1)
        same = labels == label
        own = d.masked_fill(~same, math.inf).argmin()
        lead = (d - d[own])[~same]
        step = flat_points[~same] - flat_points[own]
        radii["Linf"].append((lead / (2 * step.abs().sum(dim=1))).amin().clamp(min=0))
        radii["L2"].append((lead / (2 * step.norm(dim=1))).amin().clamp(min=0))
    return {norm: torch.stack(r).cpu() for norm, r in radii.items()}


certified = {name: certificates(x_attack, y_attack, *points) for name, points in sets.items()}
for name, radii in certified.items():
    print(
        f"D = {name:11s} smallest and median certified radius:  Linf {255 * radii['Linf'].min():5.1f}/255, {255 * radii['Linf'].median():5.1f}/255"
        f"    L2 {radii['L2'].min():.2f}, {radii['L2'].median():.2f}"
    )

# %% tags=["remove-cell"]
inside = {norm: min(float(certified[name][norm].min()) for name in ("attacked", "train+test")) for norm in ("Linf", "L2")}
glue("optimal-inside-linf", 255 * inside["Linf"])
glue("optimal-inside-l2", inside["L2"])
if inside["Linf"] < 8 / 255 or inside["L2"] < 0.5:
    print("some attacked image is not certified at the usual radii although it lies in D")

# %% [markdown]
# With the attacked images in $\mathcal D$, the *smallest* certified radii over all attacked images are
# {glue:text}`optimal-inside-linf:.1f`/255 in $\ell_\infty$ and {glue:text}`optimal-inside-l2:.2f` in $\ell_2$. Compare with
# the radii of the usual benchmark, 8/255 and 0.5. The outcome of the attack is known before it starts.
#
# ### The attack
#
# PGD on the margin of the logits, from a random start, with exact gradients, at radii up to where things break. 1-NN is attacked
# directly, and also with the images found against the optimal classifier; an image counts only if it survives both.


# %%
RADII = {"Linf": [e / 255 for e in eps_linf], "L2": list(eps_l2)}


def attack_all(model: nn.Module) -> dict[tuple[str, float], Tensor]:
    """PGD at every norm and radius: ``{(norm, eps): adversarial images}``."""
    return {
        (norm, eps): pgd(model, x_attack, y_attack, norm=norm, eps=eps, steps=steps, seed=seed)
        for norm, radii in RADII.items()
        for eps in radii
    }


adversarial = {name: attack_all(model) for name, model in optimal.items()}
robust = {
    name: {key: robust_accuracy(optimal[name], x_attack, y_attack, x_adv) for key, x_adv in found.items()}
    for name, found in adversarial.items()
}
robust_nn = {
    name: {
        key: robust_accuracy(neighbour[name], x_attack, y_attack, [x_adv, direct[key]])
        for key, x_adv in adversarial[name].items()
    }
    for name, direct in ((name, attack_all(neighbour[name])) for name in ("attacked", "train"))
}
certified_share = {
    name: {(norm, eps): float((radii[norm] > eps).double().mean()) for norm, all_eps in RADII.items() for eps in all_eps}
    for name, radii in certified.items()
}
for norm, radii in RADII.items():
    for eps in radii:
        label = f"{255 * eps:.0f}/255" if norm == "Linf" else f"{eps:.1f}"
        row = "   ".join(f"{name} {100 * robust[name][norm, eps].value:5.1f}" for name in sets)
        print(f"{norm:4s} eps {label:7s} robust accuracy (%):   {row}   (n = {n_attack})")

# %% mystnb={"figure": {"caption": "Robust accuracy of the optimal classifier (ELBO weights) under PGD against the radius, for three data sets, with 95 % intervals; crosses: 1-NN. Dashed: the share of images whose 1-NN decision is certified.", "name": "fig-optimal-robust"}, "image": {"alt": "Two panels. The curves for data sets with the attacked images stay at 100 percent at the usual radii and fall at large ones; the curve for the training set only is far lower."}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
for ax, (norm, radii) in zip(axes, RADII.items(), strict=True):
    scale = 255 if norm == "Linf" else 1
    at = [scale * e for e in radii]
    for i, name in enumerate(sets):
        plot_accuracy(ax, at, [robust[name][norm, e] for e in radii], f"optimal, D = {name}", color=f"C{i}")
        ax.plot(at, [100 * certified_share[name][norm, e] for e in radii], color=f"C{i}", linestyle="--")
        if name in robust_nn:
            ax.plot(at, [100 * robust_nn[name][norm, e].value for e in radii], "x", color=f"C{i}", markersize=10)
    ax.set_xscale("log", base=2)
    ax.set_xticks(at, [f"{a:g}" for a in at])
    ax.set(xlabel="radius $\\epsilon$ (1/255)" if norm == "Linf" else "radius $\\epsilon$", title=norm)
axes[1].set_ylabel("")
axes[0].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
benchmark = [("Linf", RADII["Linf"][0]), ("L2", RADII["L2"][0])]
largest = [("Linf", RADII["Linf"][-1]), ("L2", RADII["L2"][-1])]
for key in benchmark:
    claim(all(robust[name][key].value >= certified_share[name][key] - 0.02 for name in ("attacked", "train+test")))
    claim(min(robust[name][key].value for name in ("attacked", "train+test")) > robust["train"][key].value + 0.1)
    claim(robust["train"][key].value <= clean["train"].value + 0.15)
for key in largest:
    claim(robust["attacked"][key].value < 0.7 and robust["train"][key].value < 0.2)
for name, results in robust_nn.items():  # a certificate that an attack breaks would be a bug
    claim(all(results[key].value >= certified_share[name][key] - 1e-9 for key in results))
glue("optimal-robust-in-linf", 100 * robust["train+test"][benchmark[0]].value)
glue("optimal-robust-in-l2", 100 * robust["train+test"][benchmark[1]].value)
glue("optimal-robust-out-linf", 100 * robust["train"][benchmark[0]].value)
glue("optimal-robust-out-l2", 100 * robust["train"][benchmark[1]].value)
glue("optimal-break-linf", 100 * robust["train+test"][largest[0]].value)
glue("optimal-break-l2", 100 * robust["train+test"][largest[1]].value)
glue("optimal-n-attack", n_attack)

# %% [markdown]
# At the benchmark's radii the classifier with all test images inside keeps
# {glue:text}`optimal-robust-in-linf:.0f` % ($\ell_\infty$) and {glue:text}`optimal-robust-in-l2:.0f` % ($\ell_2$) of
# {glue:text}`optimal-n-attack` images. The 100 % of the paper is reproduced, on other data. With the training set alone, the same
# images, the same classifier and the same attack give {glue:text}`optimal-robust-out-linf:.0f` % and
# {glue:text}`optimal-robust-out-l2:.0f` %.
#
# {numref}`fig-optimal-robust` also shows that the attack works: at the largest radii it brings `train+test` down to
# {glue:text}`optimal-break-linf:.0f` % and {glue:text}`optimal-break-l2:.0f` %. So the 100 % is not an effect of masked gradients.
# The certificate, which knows nothing of the attack, explains where each curve starts to fall.
#
# ### AutoAttack
#
# The standard ensemble (APGD-CE, APGD-T, FAB-T, Square) at a small budget, on fewer images. The accuracy printed is that of the
# images that survive PGD *and* AutoAttack.

# %%
aa_results: dict[str, dict[str, Accuracy]] = {}
for name in ("attacked", "train"):
    aa_results[name] = {}
    for norm, eps in benchmark:
        kept = slice(0, n_aa)
        found = autoattack(
            optimal[name],
            x_attack[kept],
            y_attack[kept],
            norm=norm,
            eps=eps,
            steps=aa_steps,
            queries=aa_queries,
            seed=seed,
            batch=32,
        )
        both = [adversarial[name][norm, eps][kept], found]
        aa_results[name][norm] = robust_accuracy(optimal[name], x_attack[kept], y_attack[kept], both)
        alone = robust_accuracy(optimal[name], x_attack[kept], y_attack[kept], both[:1])
        print(f"D = {name:9s} {norm:4s}  PGD {alone}   PGD and AutoAttack {aa_results[name][norm]}")

# %% tags=["remove-cell"]
claim(all(result.value == 1 for result in aa_results["attacked"].values()))

# %%
point = x_attack.clone().requires_grad_()
cross = nn.functional.cross_entropy(optimal["train"](point), y_attack, reduction="sum")
(slope_ce,) = torch.autograd.grad(cross, point)
right = predict(optimal["train"], x_attack) == y_attack
vanished = Accuracy.of(int((slope_ce[right].flatten(1).abs().amax(dim=1) == 0).sum()), int(right.sum()))
print(f"correctly classified images at which the cross-entropy has a gradient of exactly zero: {vanished}")

# %% tags=["remove-cell"]
glue("optimal-ce-zero", 100 * vanished.value)
claim(vanished.value > 0.5)

# %% [markdown]
# Logits in nats are large here: for {glue:text}`optimal-ce-zero:.0f` % of the images the cross-entropy has no gradient at all in float32, and
# APGD-CE can do nothing with them. The attacks on margins and on ratios of logits do the work. {ref}`nb-first-attack` treats this
# trap.
#
# ## The formula of the released code
#
# The released code does not compute Corollary 3.3. It differs in three places, here as in the docstring of
# `ReleasedOptimalClassifier`:
#
# 1. The softmax divides by $2\sigma_t$ where the formula has $2\sigma_t^2$: its temperature is too high by $1/\sigma_t$.
# 2. It sums the squares, $\sum_i s_i^2 \norm{x - x_i}^2$, where the formula has the square of the sum.
# 3. Images stay in [0, 1] where the model's are in [-1, 1], so every noise level is effectively twice as high.
#
# Does it matter? First for decisions, with the training set as $\mathcal D$, on clean images and on attacked ones.

# %%
n_released = min(60, n_clean)
released = ReleasedOptimalClassifier(*sets["train"], seed=seed).to(device)
verdicts = {
    "released": predict(released, x_clean[:n_released]),
    "formula": predict(OptimalClassifier(*sets["train"], levels("vp", count=1000), seed=seed).to(device), x_clean[:n_released]),
    "1-NN": predict(neighbour["train"], x_clean[:n_released]),
}
released_clean = Accuracy.of(int((verdicts["released"] == y_clean[:n_released]).sum()), n_released)
agreement = {k: Accuracy.of(int((verdicts["released"] == verdicts[k]).sum()), n_released) for k in ("formula", "1-NN")}
print(f"clean accuracy of the released formula:   {released_clean}")
for name, value in agreement.items():
    print(f"same decision as {name:8s}                 {value}")

released_small = ReleasedOptimalClassifier(*sets["attacked"], seed=seed).to(device)
released_robust: dict[str, dict[str, Accuracy]] = {"attacked": {}, "train": {}}
for norm, eps in benchmark:
    direct = pgd(released_small, x_attack, y_attack, norm=norm, eps=eps, steps=steps, seed=seed)
    released_robust["attacked"][norm] = robust_accuracy(
        released_small, x_attack, y_attack, [direct, adversarial["attacked"][norm, eps]]
    )
    released_robust["train"][norm] = robust_accuracy(released, x_attack, y_attack, adversarial["train"][norm, eps])
    for name, how in (("attacked", "direct PGD and transfer"), ("train", "transfer from the formula")):
        print(f"D = {name:9s} {norm:4s}  released formula, {how}: {released_robust[name][norm]}")

# %% tags=["remove-cell"]
glue("optimal-agree-released", 100 * agreement["1-NN"].value)
claim(agreement["1-NN"].value > 0.75)
claim(all(v.value == 1 for v in released_robust["attacked"].values()))

# %% [markdown]
# With {glue:text}`optimal-agree-released:.0f` % of the decisions shared with 1-NN, three errors in one line change few of them. They sit
# inside a softmax that is nearly one-hot anyway at the low levels that carry most of the weight. With the attacked images in
# $\mathcal D$ the robust accuracy does not change at all.
#
# They do change the loss at high noise. For flat weights $s_i = 1/N_y$ the sum of squares is
# $\frac{1}{N_y}$ times the mean of $\norm{x - x_i}^2$: the loss shrinks with the size of the class, and a large class wins. To see
# it, take classes of different sizes and look only at the noisiest step.

# %%
counts = np.geomspace(400, 40, len(train.classes)).astype(int)
picked = torch.cat([(train.y == k).nonzero()[: counts[k], 0] for k in range(len(counts))])
unbalanced = train.x[picked], train.y[picked]
last = {
    "formula": one_level(*unbalanced, float(levels("vp", count=1).sigma)),
    "released": ReleasedOptimalClassifier(*unbalanced, steps=1, seed=seed),
}
size = torch.from_numpy(counts / counts.sum())
bias = {}
for name, model in last.items():
    loss = -logits_of(model.to(device), x_clean[:n_released])
    corr = float(np.corrcoef((1 / size).repeat(len(loss)), loss.flatten())[0, 1])
    share = float((loss.argmin(dim=1) == 0).double().mean())
    bias[name] = corr, share
    glue(f"optimal-share-{name}", 100 * share)
    print(
        f"noisiest step, {name:8s}: correlation of loss and 1/N_y {corr:5.2f}; largest class predicted for {100 * share:.0f} % of images"
    )

# %% tags=["remove-cell"]
claim(bias["released"][0] > 0.7 > abs(bias["formula"][0]) and bias["released"][1] > 3 * bias["formula"][1])

# %% [markdown]
# There the released formula predicts the largest class for {glue:text}`optimal-share-released:.0f` % of the images
# (the formula of the paper: {glue:text}`optimal-share-formula:.0f` %). On balanced data with weight on low levels
# nobody notices. That is worth a thought: *a result that does not change under three errors tests very little of the formula.*
#
# ## A larger data set
#
# If $\mathcal D$ is the training set, more data bring the neighbours nearer. Does the classifier become accurate, robust, or
# something other than 1-NN?

# %%
KINDS = ("elbo", "edm")
growth: dict[str, dict[int, dict[str, Accuracy]]] = {kind: {} for kind in KINDS}
for size_d in [n for n in sizes if n <= len(train)]:
    points = train.x[:size_d], train.y[:size_d]
    nn_rule = NearestNeighbor(*points).to(device)
    for kind in KINDS:
        model = OptimalClassifier(*points, levels(kind, count=16), seed=seed).to(device)
        row = {"clean": accuracy(model, x_clean, y_clean), "clean, attacked images": accuracy(model, x_attack, y_attack)}
        row["as 1-NN"] = Accuracy.of(int((predict(model, x_clean) == predict(nn_rule, x_clean)).sum()), n_clean)
        for norm, eps in benchmark:
            found = pgd(model, x_attack, y_attack, norm=norm, eps=eps, steps=steps, seed=seed)
            row[norm] = robust_accuracy(model, x_attack, y_attack, found)
            same = int((predict(model, found) == predict(nn_rule, found)).sum())
            row[f"as 1-NN, {norm}"] = Accuracy.of(same, n_attack)
        growth[kind][size_d] = row
        cells = "  ".join(f"{name} {100 * value.value:5.1f}" for name, value in row.items())
        print(f"{kind:4s} |D| = {size_d:6d} (%):  {cells}")

# %% mystnb={"figure": {"caption": "The optimal classifier as its data set grows, with the attacked images outside: clean accuracy, robust accuracy under PGD at 8/255 and 0.5, and agreement with 1-NN on clean images, for two weightings.", "name": "fig-optimal-growth"}, "image": {"alt": "Two panels, ELBO and EDM weights; accuracy grows slowly with the number of images, robust accuracy stays below it, agreement with nearest neighbour is close to 100 percent."}} tags=["hide-input"]
LINES = {
    "as 1-NN": "same decision as 1-NN",
    "clean": "clean",
    "clean, attacked images": "clean, attacked images",
    "L2": "$\\ell_2$, first radius",
    "Linf": "$\\ell_\\infty$, first radius",
}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for ax, (kind, rows) in zip(axes, growth.items(), strict=True):
    for name, label in LINES.items():
        plot_accuracy(ax, list(rows), [row[name] for row in rows.values()], label)
    ax.set_xscale("log")
    ax.set(xlabel="images in D", title=f"{kind} weights")
axes[1].set_ylabel("")
axes[0].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
first, final = min(growth["elbo"]), max(growth["elbo"])
claim(growth["elbo"][final]["clean"].value > growth["elbo"][first]["clean"].value)
every_row = [row for rows in growth.values() for row in rows.values()]
claim(all(row[norm].value <= row["clean, attacked images"].value for row in every_row for norm in ("L2", "Linf")))
claim(growth["elbo"][final]["Linf"].value < growth["elbo"][final]["clean, attacked images"].value)
claim(all(row["as 1-NN"].value > 0.8 for rows in growth.values() for row in rows.values()))
glue("optimal-grow-first", first)
glue("optimal-grow-final", final)
glue("optimal-grow-clean-first", 100 * growth["elbo"][first]["clean"].value)
glue("optimal-grow-clean-final", 100 * growth["elbo"][final]["clean"].value)
glue("optimal-grow-agree", 100 * min(row["as 1-NN"].value for rows in growth.values() for row in rows.values()))

# %% [markdown]
# From {glue:text}`optimal-grow-first` to {glue:text}`optimal-grow-final` images the clean accuracy grows from
# {glue:text}`optimal-grow-clean-first:.1f` % to {glue:text}`optimal-grow-clean-final:.1f` %. The decisions agree with those of 1-NN on
# at least {glue:text}`optimal-grow-agree:.1f` % of the clean images in every row, whatever the weights. Robust accuracy stays
# below clean accuracy, at any size: a test image that is not in $\mathcal D$ starts with a lead $\norm{x - x_j} - \norm{x - x_i}$ that
# may be small, and {prf:ref}`prop-certificate` turns a small lead into a small radius.
#
# ### At full scale
#
# The numbers above come from few images and short attacks. The `full` profile repeats this section and the attacks on 60 000 training
# images, and stores its numbers with counts, intervals and configuration.

# %% tags=["hide-input"]
RECORD = record_path("results/optimal_classifier.json")


def keyed(results: dict[tuple[str, float], Accuracy]) -> dict[str, Accuracy]:
    """Keys ``norm eps`` that JSON can hold."""
    return {f"{norm} {eps:.4f}": value for (norm, eps), value in results.items()}


if record:
    config = {
        "data": data, "seed": seed, "n_clean": n_clean, "n_attack": n_attack, "n_small": n_small, "n_aa": n_aa, "steps": steps,
        "aa_steps": aa_steps, "aa_queries": aa_queries, "sizes": sizes, "levels": "elbo, 16", "device": device,
    }  # fmt: skip
    results = {
        "clean": clean,
        "pgd": {name: keyed(rows) for name, rows in robust.items()},
        "pgd_1nn": {name: keyed(rows) for name, rows in robust_nn.items()},
        "certified_1nn": {
            name: keyed({key: Accuracy.of(round(share * n_attack), n_attack) for key, share in rows.items()})
            for name, rows in certified_share.items()
        },
        "pgd_and_autoattack": aa_results,
        "released_formula": {"clean": released_clean, "agrees": agreement, "robust": released_robust},
        "growth": {kind: {str(n): row for n, row in rows.items()} for kind, rows in growth.items()},
    }
    write_record(RECORD, config, results, time.perf_counter() - started)

if RECORD.exists():
    stored = read_record(RECORD)
    c = stored["config"]
    print(
        f"{c['data']}, {c['n_attack']} attacked images, PGD with {c['steps']} steps; {stored['seconds']:.0f} s; robust accuracy, k/n [95 %]"
    )
    for name, rows in stored["results"]["pgd"].items():
        for key, value in rows.items():
            certificate = stored["results"]["certified_1nn"][name][key]
            print(f"D = {name:11s} {key:12s} {Accuracy(**value)}    1-NN certified {certificate['correct']}/{certificate['n']}")
    for name, rows in stored["results"]["pgd_and_autoattack"].items():
        for norm, value in rows.items():
            print(f"D = {name:11s} {norm:4s} PGD and AutoAttack ({c['aa_steps']} steps)  {Accuracy(**value)}")
else:
    print("No record of the full run in results/optimal_classifier.json: not run here.")

# %% [markdown]
# ## What "100 % robust" does and does not show
#
# **It shows** that a classifier which has stored the attacked images, and measures distances in pixels, gives them their stored label
# within a radius of half the distance to the next class. {prf:ref}`prop-certificate` proves it, and the attacks
# confirm it, up to the radius at which they succeed.
#
# **It shows** that the *rule* "compare denoising losses" adds no weakness of its own: with exact densities the decision is nearly always that of the
# exact posterior ({prf:ref}`prop-gap` and the numbers below it), gradients are informative, and the attack fails where a certificate says it must.
#
# **It does not show** that a diffusion classifier is robust on images that it has not stored. With the training set as
# $\mathcal D$ the same classifier loses a part of its accuracy to the same attack, and starts lower.
#
# **It does not show** that better training makes a robust classifier. Minimising the loss on $\mathcal D$ perfectly *is* 1-NN on
# $\mathcal D$. A trained network is useful exactly because it is not optimal for its training set: it interpolates. Whether that
# helps under attack is a question about networks, which {ref}`nb-classifier` asks.
#
# **It does not test** the formula. Three changes to it leave the 100 % as it is.
#
# A fair upper bound for generalisation would use the density of the *population*, which nobody has. The optimal classifier over
# training and test set is an upper bound for memory.
#
# ## Summary
#
# - The best denoiser of a finite set is a softmax average of its images. Density, score and losses are closed forms, checked here
#   to rounding error.
# - The noise cancels in Corollary 3.3 because the softmax weights sum to one.
# - Theorem 3.1 needs a gap that is *constant in the label*, not zero. For the optimal model it is a Jensen gap below $D/2$. Its spread over
#   classes can be many nats, but is small against that of the likelihoods: fine for decisions, not for probabilities.
# - In the dimension of images the softmax is one-hot at all but high noise levels: the optimal classifier is 1-NN, whatever the
#   weights, and whatever small errors the formula has.
# - "100 % robust" holds when the attacked images are in the data set, follows from a certificate in one line, and disappears when they
#   are taken out.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-optimal-limits
# :::
# *Two limits.* Show that a classifier with the one level $\sigma$ becomes 1-NN for $\sigma \to 0$ and the rule of the nearest
# class mean for $\sigma \to \infty$. Which rule does the *density* $p_\sigma(z \mid y)$ give for $\sigma \to \infty$? Check on
# test images.

# %%
# your code here

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
means = torch.stack([to_model(train.x[train.y == k]).flatten(1).mean(dim=0) for k in range(len(train.classes))])
variances = torch.stack([to_model(train.x[train.y == k]).flatten(1).var(dim=0, unbiased=False).sum() for k in range(len(means))])
to_means = torch.cdist(to_model(x_clean).flatten(1), means) ** 2
rules = {
    "1-NN": predict(neighbour["train"], x_clean),
    "nearest mean": to_means.argmin(dim=1),
    "smallest mean distance": (to_means + variances).argmin(dim=1),
}
agrees = {}
for s in (0.1, 300.0):
    losses_say = predict(one_level(train.x, train.y, s), x_clean)
    density_says = exact.log_density(to_model(x_clean.double()), s).argmax(dim=1)
    for who, verdict in (("loss", losses_say), ("density", density_says)):
        agrees[s, who] = {name: float((verdict == rule).double().mean()) for name, rule in rules.items()}
        row = "   ".join(f"{name} {100 * share:5.1f} %" for name, share in agrees[s, who].items())
        print(f"sigma = {s:5.1f}, {who:7s} agrees with  {row}")

# %% tags=["remove-cell"]
claim(agrees[0.1, "loss"]["1-NN"] > 0.98)
claim(agrees[300.0, "loss"]["nearest mean"] > 0.95)
claim(agrees[300.0, "density"]["smallest mean distance"] > 0.95)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-prior
# :::
# *Unbalanced classes.* The paper assumes a uniform prior. Let the test images come with the class frequencies of the unbalanced
# data set above. What has to be added to the logits? Check that the result is the exact posterior, and find a noise level at
# which the prior changes decisions.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-prior
# :label: sol-optimal-prior
# :class: dropdown
# :::
# Add $\log \pi_y$, as the paper remarks after Theorem 3.1. At low noise likelihoods differ by hundreds of nats and the prior by a few, so
# nothing changes. When noise has removed the evidence, the prior decides.
#
# For the check note that $\pi_y / N_y = 1/N$: with the frequencies of the data as prior, every image of $\mathcal D$ has the same weight,
# and the posterior of a class is the sum of its softmax weights over *all* images.

# %%
skewed = OptimalDenoiser(unbalanced[0].double(), unbalanced[1])
log_prior = torch.log(size).to(device)
for s in (0.1, 1.0, 10.0, 100.0):
    evidence = skewed.log_density(to_model(x_clean.double()), s)
    posterior = torch.softmax(evidence + log_prior, dim=1)
    shares = torch.softmax(-skewed.distances(to_model(x_clean.double())) / (2 * s**2), dim=1).split(skewed.counts, dim=1)
    error = float((posterior - torch.stack([share.sum(dim=1) for share in shares], dim=1)).abs().max())
    changed = float((posterior.argmax(dim=1) != evidence.argmax(dim=1)).double().mean())
    print(
        f"sigma = {s:5.1f}: error against the exact posterior {error:.0e}; prior changes {100 * changed:5.1f} % of the decisions"
    )
    assert error < 1e-9

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-loo
# :::
# *Leave one out.* The optimal classifier is always right on its own training images. Compute the leave-one-out accuracy of 1-NN on the first
# 500 training images, and compare it with the accuracy on test images.

# %%
# your code here

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
left_out = Accuracy.of(int((train.y[between.argmin(dim=1)] == train.y[: len(own)]).sum()), len(own))
print(f"stored      {accuracy(neighbour['train'], train.x[:500], train.y[:500])}")
print(f"left out    {left_out}")
print(f"test        {accuracy(neighbour['train'], x_clean, y_clean)}")

# %% tags=["remove-cell"]
claim(0.6 < left_out.value < 0.97)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-one-image
# :::
# *One image a class.* Let every class have exactly one image. Show that the gap of {prf:ref}`prop-gap` is $D/2$ for every level, that
# the classifier is linear in the image, and that the certificate of {prf:ref}`prop-certificate` for $\ell_2$ cannot be improved.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-one-image
# :label: sol-optimal-one-image
# :class: dropdown
# :::
# With one image LSE is its argument, and the noise has mean zero, so $G_y = 0$. The denoiser is the constant $z_y$, the logit is
# $-W \norm{z - z_y}^2$ with the total weight $W$, and differences of two logits are linear in $z$. Decision boundaries are half-spaces, and
# the shortest way to the nearest one is the direction $x_j - x_i$, for which Hölder's inequality is an equality. (The box [0, 1] may stand in
# the way.) We walk that way.

# %%
firsts = torch.stack([(train.y == k).nonzero()[0, 0] for k in range(len(train.classes))])
sparse = OptimalClassifier(train.x[firsts].double(), train.y[firsts], elbo, seed=seed)
x_i, y_i = train.x[firsts[0]].double(), train.y[firsts[0]]
one_gap = jensen_gap(sparse.data, z_gap, 0.5, eps_gap).abs().max()
radius = float(certificates(x_i[None], y_i[None], train.x[firsts].double(), train.y[firsts])["L2"])
others = train.x[firsts[1:]].double()
target = others[(others - x_i).flatten(1).norm(dim=1).argmin()]
way = (target - x_i) / (target - x_i).norm()
decisions = [int(sparse((x_i + c * radius * way)[None]).argmax()) == int(y_i) for c in (0.99, 1.01)]
print(
    f"largest G: {float(one_gap):.0e};  radius {radius:.3f};  still right at 99 % of it: {decisions[0]}, at 101 %: {decisions[1]}"
)

# %% tags=["remove-cell"]
assert decisions == [True, False] and one_gap < 1e-9

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The theorems are those of {cite:t}`chen2024rdc`. The link between denoising errors and likelihood goes back to {cite:t}`guo2005immse`, and
# {cite:t}`kong2023information` use it for diffusion models. Levels and weights are from {cite:t}`karras2022elucidating` and
# {cite:t}`ho2020ddpm`, the attacks from {cite:t}`madry2018towards` and {cite:t}`croce2020autoattack`, the images from
# {cite:t}`xiao2017fashion`.
