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
# (nb-diffusion)=
# # Diffusion in one chapter
#
# :::{admonition} What you will be able to do
# :class: tip
# - Move between the two ways of adding noise, and between the forms of a denoiser.
# - Show that the best denoiser is a posterior mean, and read a score off it.
# - Sample from a trained denoiser with twenty lines of code.
# - Derive the likelihood bound of a diffusion chain, and prove that in the limit it is an identity.
# - Say what a finite grid of noise levels bounds, what it does not, and what a changed weight does to a likelihood.
# :::
#
# **Time** 90 minutes · **Needs** {doc}`/book/notation`, Gaussian densities, integration by parts.
# Covers Section 3.1 and Appendix A.3 of {cite:t}`chen2024rdc`: the preliminaries, and the bound behind their Theorem 3.1.
#
# A diffusion classifier scores a label by how well a denoiser, told that label, removes noise from the image.
# This chapter says why such a score is a likelihood, and how far.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of every random number
data: str = "fashion-mini"  # data set: "fashion-mini", or "fashion" if the files are there
checkpoint: str = "fashion-mini"  # trained denoiser, by name or path
n_loss: int = 64  # images per noise level for the denoising loss
per_class: int = 3  # samples drawn of each class
sampler_steps: int = 18  # steps of the sampler
nodes: int = 128  # quadrature nodes per axis in the toy
digit_draws: int = 48  # noise draws for the digits
digit_levels: int = 64  # noise levels for the digits

# %%
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.data import load
from rdc.denoise import OptimalDenoiser, fast_dtype, from_model, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import image_grid, style
from rdc.rng import generator, randn
from rdc.schedule import alpha_to_sigma, chain_levels, levels, sigma_to_alpha, vp_alphas, vp_weights

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

# %% [markdown]
# ## Adding noise
#
# Take an image $z$ in model units. There are two customs, {eq}`eq-ve` and {eq}`eq-vp`:
#
# | | noisy image | as the noise grows |
# |---|---|---|
# | variance exploding (VE) | $z_\sigma = z + \sigma \varepsilon$ | the image stays, the noise drowns it |
# | variance preserving (VP) | $x_t = \sqrt{\alpha_t}\, z + \sqrt{1 - \alpha_t}\, \varepsilon$ | the image fades, the total variance stays |
#
# They are the same thing in other units.
#
# :::{prf:proposition} VP is VE
# :label: prop-vp-ve
# Let $\sigma_t^2 = (1 - \alpha_t) / \alpha_t$. Then, with the same $\varepsilon$,
# $x_t = \sqrt{\alpha_t}\, z_{\sigma_t}$, and $\alpha_t = 1 / (1 + \sigma_t^2)$.
# :::
#
# :::{prf:proof}
# $\sqrt{\alpha_t}\,(z + \sigma_t \varepsilon) = \sqrt{\alpha_t}\, z + \sqrt{1 - \alpha_t}\, \varepsilon$. Solve $\sigma_t^2 = 1 / \alpha_t - 1$ for $\alpha_t$.
# :::
#
# So a network trained in one custom serves in the other: rescale its input. The book computes in VE and names VP steps by their $\sigma_t$.

# %%
test, train = load(data, "test"), load(data, "train")
shown = [int((test.y == k).nonzero()[0, 0]) for k in (1, 5, 9)]  # a trouser, a sandal, an ankle boot
z = to_model(test.x[shown])
alpha = vp_alphas()[[9, 99, 249, 499, 749]]  # the linear schedule of Ho et al. (2020), at t = 10, 100, 250, 500, 750
sigma_t = alpha_to_sigma(alpha)
eps = randn(tuple(z.shape), seed, "forward")
ve = [z + s * eps for s in sigma_t.tolist()]
vp = [math.sqrt(a) * z + math.sqrt(1 - a) * eps for a in alpha.tolist()]
gap = max(float((math.sqrt(a) * v - x).abs().max()) for a, v, x in zip(alpha.tolist(), ve, vp, strict=True))
print("t        ", [10, 100, 250, 500, 750])
print("sigma_t  ", [round(s, 3) for s in sigma_t.tolist()])
print(
    f"largest difference of sqrt(alpha) z_sigma and x_t: {gap:.0e};  alpha recovered: {torch.allclose(sigma_to_alpha(sigma_t), alpha)}"
)

# %% mystnb={"figure": {"caption": "Two images under growing noise. Rows 1 and 3: variance exploding, cut to the range of an image. Rows 2 and 4: variance preserving, the same noise, in grey for zero.", "name": "fig-diffusion-forward"}, "image": {"alt": "A trouser and a sandal that disappear in noise from left to right; the VP rows turn grey, the VE rows turn black and white", "width": "75%"}} tags=["hide-input"]
titles = [rf"$\sigma$ = {s:.2g}" for s in [0.0, *sigma_t.tolist()]]
rows = [torch.stack([z[i], *(images[i] for images in kind)]) for i in (0, 1) for kind in (ve, vp)]
scaled = [from_model(r) if i % 2 == 0 else r / 4 + 0.5 for i, r in enumerate(rows)]
image_grid(torch.cat(scaled), columns=6, titles=titles + [""] * 18, size=1.0)
plt.show()

# %% [markdown]
# ## The denoiser
#
# A denoiser sees $z_\sigma$, the level $\sigma$ and perhaps the label $y$, and guesses $z$.
#
# :::{prf:proposition} The best denoiser is the posterior mean
# :label: prop-posterior-mean
# Among all functions $h$ of $z_\sigma$, the mean square error $\E \norm{h(z_\sigma) - z}^2$ is smallest for
# $D(z_\sigma, \sigma, y) = \E[z \mid z_\sigma, y]$.
# :::
#
# :::{prf:proof}
# Given $z_\sigma$ and $y$, the difference $z - D$ has mean zero. So $\E \norm{h - z}^2 = \E \norm{D - z}^2 + \E \norm{h - D}^2$.
# :::
#
# Write $p_\sigma(\cdot \mid y)$ for the density of $z_\sigma$. It is the density of the images, blurred by a Gaussian.
# Its gradient is a denoiser in disguise:
#
# :::{prf:theorem} Tweedie's formula
# :label: thm-tweedie
# For every $\sigma > 0$,
#
# $$
# \nabla \log p_\sigma(z_\sigma \mid y) = \frac{D(z_\sigma, \sigma, y) - z_\sigma}{\sigma^2} .
# $$
# :::
#
# :::{prf:proof}
# $p_\sigma(v) = \E_z\, \mathcal N(v; z, \sigma^2 I)$, so $\nabla p_\sigma(v) = \E_z\, \mathcal N(v; z, \sigma^2 I)\, (z - v) / \sigma^2$.
# Divide by $p_\sigma(v)$: the weights $\mathcal N(v; z, \sigma^2 I) / p_\sigma(v)$ are those of the posterior.
# :::
#
# The left side is the *score*. Every network of the literature predicts one of these, and each gives the others:
#
# | a network predicts | in terms of $D$ | its squared error is |
# |---|---|---|
# | the image | $D$ | $\norm{D - z}^2$ |
# | the noise $\hat\varepsilon$ | $(z_\sigma - D) / \sigma$ | $\norm{\hat\varepsilon - \varepsilon}^2 = \norm{D - z}^2 / \sigma^2$ |
# | the score | $(D - z_\sigma) / \sigma^2$ | $\norm{\text{score} + \varepsilon / \sigma}^2 = \norm{D - z}^2 / \sigma^4$ |
# | the noise of $x_t$ (VP) | $(x_t - \sqrt{\alpha_t} D(x_t / \sqrt{\alpha_t}, \sigma_t, y)) / \sqrt{1 - \alpha_t}$ | the same as for $\hat\varepsilon$ |
# | the raw output $F$ (EDM) | $(D - c_\text{skip} z_\sigma) / c_\text{out}$ | $\norm{D - z}^2 / c_\text{out}^2$ |
#
# If the images are a *finite set*, everything is exact: $p_\sigma$ is a mixture of Gaussians, one around each image.
# {py:class}`rdc.denoise.OptimalDenoiser` is that closed form, and {ref}`nb-optimal` is about it.
# Here it is our measuring instrument. Tweedie's formula, checked by automatic differentiation on the digits:

# %%
digits = load("digits", "train")
exact = OptimalDenoiser(digits.x.double(), digits.y)
point = (to_model(load("digits", "test").x[:4].double()) + 0.5 * randn((4, 1, 8, 8), seed, "tweedie").double()).requires_grad_()
label = load("digits", "test").y[:4]
log_p = exact.log_density(point, 0.5).gather(1, label[:, None]).sum()
(slope,) = torch.autograd.grad(log_p, point)
tweedie = (exact(point.detach(), 0.5, label) - point.detach()) / 0.5**2
print(
    f"largest difference of the two scores: {float((slope - tweedie).abs().max()):.0e} (scores up to {float(slope.abs().max()):.1f})"
)

# %% tags=["remove-cell"]
assert float((slope - tweedie).abs().max()) < 1e-9 * float(slope.abs().max())
assert gap < 1e-5

# %% [markdown]
# ## A trained denoiser
#
# The checkpoint that comes with the book is a small network, trained on all 60 000 training images with the loss of {cite:t}`karras2022elucidating`,
#
# ```{math}
# :label: eq-edm-loss
# \mathcal L = \E_{z, y, \sigma, \varepsilon}\, \lambda(\sigma)\, \tfrac1D \norm{D_\theta(z + \sigma \varepsilon, \sigma, y) - z}^2,
# \qquad \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2} ,
# ```
#
# where $\ln \sigma$ is drawn from a normal distribution. The weight $\lambda$ is $1 / c_\text{out}^2$, so by the last row of the table every noise level asks the raw network for an output of unit size.
# In one of ten cases the label is hidden, so the network also denoises without a label.

# %%
denoiser = load_denoiser(checkpoint, device, fast_dtype(device))
parameters = sum(p.numel() for p in denoiser.parameters())
print(f"{parameters} parameters, images {denoiser.shape}, {denoiser.num_classes} classes")

# %% mystnb={"figure": {"caption": "One image at six noise levels. Top: $z_\\sigma$. Middle: the trained denoiser, told the label. Bottom: the same, told nothing.", "name": "fig-diffusion-denoise"}, "image": {"alt": "Noise in the top row; below it an ankle boot that is sharp at low noise and becomes a blurred average at high noise", "width": "75%"}} tags=["hide-input"]
boot, boot_label = z[2:].to(device), test.y[shown[2:]].to(device)
boot_levels = (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
noisy = [boot + s * randn(tuple(boot.shape), seed, "boot", like=boot) for s in boot_levels]
with torch.no_grad():
    told = [denoiser(v, s, boot_label) for v, s in zip(noisy, boot_levels, strict=True)]
    untold = [denoiser(v, s) for v, s in zip(noisy, boot_levels, strict=True)]
titles = [rf"$\sigma$ = {s:g}" for s in boot_levels]
image_grid(from_model(torch.cat(noisy + told + untold)), columns=6, titles=titles + [""] * 12, size=1.0)
plt.show()

# %% [markdown]
# At low noise the denoiser sees the image and polishes it. At high noise it sees nothing and returns the average image:
# of the class if it knows the label, of all images if it does not.
# In between it must use the label, and there the labels can be told apart. Diffusion classifiers live in that range.
#
# How good is the network? The closed form over the training images of `data` gives a yardstick.
# On average over *its own* images no denoiser is better. On new images it is another matter.

# %%
grid = torch.logspace(math.log10(0.05), math.log10(30), 10).tolist()
memory = OptimalDenoiser(train.x, train.y).to(device)


def mean_loss(model: Callable, images: Tensor, label: Tensor | None, sigma: float) -> float:
    """The denoising loss ``|D - z|^2``, summed over pixels, averaged over images with one draw of noise each."""
    z = to_model(images).to(device)
    eps = randn(tuple(z.shape), seed, "loss", like=z)
    with torch.no_grad():
        return float((model(z + sigma * eps, sigma, label) - z).square().flatten(1).sum(1).mean())


cases = {
    "network, test": (denoiser, test, True),
    "network, test, no label": (denoiser, test, False),
    "closed form, test": (memory, test, True),
    "network, train": (denoiser, train, True),
    "closed form, train": (memory, train, True),
}
loss_at = {
    name: [mean_loss(model, images.x[:n_loss], images.y[:n_loss].to(device) if labelled else None, s) for s in grid]
    for name, (model, images, labelled) in cases.items()
}

# %% mystnb={"figure": {"caption": "Denoising loss, relative to the noise $D \\sigma^2$, against the noise level. The closed form over the training images is nearly perfect on them and poor on new images at low noise.", "name": "fig-diffusion-loss"}, "image": {"alt": "Five falling curves over the noise level; the closed form on test images lies above the network at low noise, the closed form on training images lies at the bottom", "width": "60%"}} tags=["hide-input"]
pixels = math.prod(denoiser.shape)
fig, ax = plt.subplots(figsize=(6, 3.8))
styles = ("C0o-", "C0s:", "C1o-", "C0^--", "C1^--")
for (name, values), mark in zip(loss_at.items(), styles, strict=True):
    ax.loglog(grid, [max(v, 1e-9) / (pixels * s**2) for v, s in zip(values, grid, strict=True)], mark, label=name, markersize=4)
ax.set(xlabel=r"noise level $\sigma$ (model units)", ylabel=r"loss / ($D \sigma^2$)", ylim=(1e-5, 300))
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
near = 2  # a level near 0.2
claim(loss_at["closed form, test"][near] > 2 * loss_at["network, test"][near], "memory does not generalise")
claim(loss_at["closed form, train"][near] < loss_at["network, train"][near], "and cannot be beaten on its own images")
claim(loss_at["network, test, no label"][6] > loss_at["network, test"][6], "the label helps in between")

# %% [markdown]
# {numref}`fig-diffusion-loss` holds the tension of this book in one picture.
# The *optimal* denoiser of a finite set can only answer with images of that set, so at low noise it fails on a new image.
# The network is worse on the training images and far better on new ones: it generalises, and for that it must *not* be optimal.
#
# ## Samples
#
# To sample, follow the score from noise to images. The *probability flow* moves points so that at each $\sigma$ they are distributed like $z_\sigma$ {cite}`song2021score`:
#
# ```{math}
# :label: eq-flow
# \frac{d z}{d \sigma} = -\sigma\, \nabla \log p_\sigma(z) = \frac{z - D(z, \sigma, y)}{\sigma} .
# ```
#
# It is an ordinary differential equation. Start at $\sigma_\text{max} \varepsilon$, take Heun steps (predict with the slope here, correct with the slope there), and
# place the levels evenly in $\sigma^{1/7}$, so that steps are short where images form {cite}`karras2022elucidating`.


# %%
def sampling_levels(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> list[float]:
    """Decreasing noise levels, even in ``sigma^(1/rho)``, and a zero at the end."""
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return [*((high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho).tolist(), 0.0]


@torch.no_grad()
def sample(model: Callable, label: Tensor, start: Tensor, steps: int) -> Tensor:
    """Images of the given classes: Heun's method on the probability flow, from ``start`` (standard normal), in model units."""
    sigma = sampling_levels(steps)
    z = sigma[0] * start
    for now, then in zip(sigma, sigma[1:], strict=False):
        slope = (z - model(z, now, label)) / now
        guess = z + (then - now) * slope
        if then > 0:  # at zero the slope is not defined: the last step is Euler's
            slope = (slope + (guess - model(guess, then, label)) / then) / 2
        z = z + (then - now) * slope
    return z


labels = torch.arange(denoiser.num_classes, device=device).repeat(per_class)
samples = sample(denoiser, labels, randn((len(labels), *denoiser.shape), seed, "sample").to(device), sampler_steps)
inside = float(((samples > -1.1) & (samples < 1.1)).float().mean())
print(f"{len(labels)} samples, {2 * sampler_steps - 1} evaluations each; share of pixels within 0.1 of [-1, 1]: {inside:.3f}")

# %% mystnb={"figure": {"caption": "Samples of the shipped network, one class a column.", "name": "fig-diffusion-samples"}, "image": {"alt": "A grid of generated grey pictures of clothes, shoes and bags", "width": "90%"}} tags=["hide-input"]
image_grid(
    from_model(samples), columns=denoiser.num_classes, titles=test.classes + [""] * (len(labels) - denoiser.num_classes), size=0.9
)
plt.show()

# %% tags=["remove-cell"]
claim(inside > 0.95)

# %% [markdown]
# A sampler judges a denoiser by eye. A classifier needs numbers, so we turn to the likelihood.
#
# ## A chain and its bound
#
# Take levels $\sigma_0 < \sigma_1 < \dots < \sigma_T$ and write $z_t$ for the noisy image at level $\sigma_t$.
# The *forward chain* adds noise, $z_{t+1} = z_t + \sqrt{\sigma_{t+1}^2 - \sigma_t^2}\, \varepsilon$.
# Given the clean image $z$, one step back is Gaussian (multiply two Gaussian densities):
#
# ```{math}
# :label: eq-posterior
# q(z_t \mid z_{t+1}, z) = \mathcal N\Big( \frac{(\sigma_{t+1}^2 - \sigma_t^2)\, z + \sigma_t^2 z_{t+1}}{\sigma_{t+1}^2},\;
# \frac{\sigma_t^2 (\sigma_{t+1}^2 - \sigma_t^2)}{\sigma_{t+1}^2} I \Big) .
# ```
#
# The *model chain* walks back without knowing $z$. It puts the denoiser in its place:
#
# ```{math}
# :label: eq-chain
# \begin{aligned}
# p(z_t \mid z_{t+1}, y) &= q\big(z_t \mid z_{t+1}, z = D(z_{t+1}, \sigma_{t+1}, y)\big), \\
# p(z_{0} \mid y) &= \int p(z_T \mid y) \prod_{t<T} p(z_t \mid z_{t+1}, y)\, dz_1 \dots dz_T .
# \end{aligned}
# ```
#
# :::{prf:theorem} The bound of a chain
# :label: thm-chain
# For every denoiser, every $z$ and $z_0 = z + \sigma_0 \varepsilon$,
#
# $$
# \begin{aligned}
# \E \log p(z_0 \mid y) \ge {} & - \operatorname{KL}\big(q(z_T \mid z) \,\|\, p(z_T \mid y)\big) - \tfrac D2 \log (2 \pi e \sigma_0^2) \\
# & - \sum_{t=0}^{T-1} w_t\, \E \norm{D(z_{t+1}, \sigma_{t+1}, y) - z}^2,
# \end{aligned}
# $$
#
# with $w_t = \tfrac12 \big( \sigma_t^{-2} - \sigma_{t+1}^{-2} \big)$.
# :::
#
# :::{prf:proof}
# By Jensen's inequality, for fixed $z_0$,
# $\log p(z_0) \ge \E_{q(z_{1:T} \mid z_0, z)}[\log p(z_{0:T}) - \log q(z_{1:T} \mid z_0, z)]$. Average over $q(z_0 \mid z)$, and write
# $q(z_{0:T} \mid z) = q(z_T \mid z) \prod_t q(z_t \mid z_{t+1}, z)$. The terms pair up into
# $-\operatorname{KL}(q(z_T|z) \| p(z_T)) - \sum_t \E \operatorname{KL}_t$ minus the entropy of $q(z_0 \mid z)$, which is $\tfrac D2 \log(2 \pi e \sigma_0^2)$.
#
# The two Gaussians in $\operatorname{KL}_t$ have the same variance, so the divergence is the squared distance of their means over twice that variance:
#
# $$
# \begin{aligned}
# \operatorname{KL}_t &= \Big( \frac{\sigma_{t+1}^2 - \sigma_t^2}{\sigma_{t+1}^2} \Big)^2 \norm{D - z}^2 \Big/ \frac{2 \sigma_t^2 (\sigma_{t+1}^2 - \sigma_t^2)}{\sigma_{t+1}^2}
# \\ &= \frac{\sigma_{t+1}^2 - \sigma_t^2}{2 \sigma_t^2 \sigma_{t+1}^2} \norm{D - z}^2 = w_t \norm{D - z}^2 .
# \end{aligned}
# $$
# :::
#
# With $p(z_T) = \mathcal N(0, \sigma_T^2 I)$ the first term is $-\norm{z}^2 / (2 \sigma_T^2)$.
# Then only the sum depends on the label: $-\sum_t w_t \E \norm{D - z}^2$ is the logit of a diffusion classifier, and the rest cancels in a softmax.
#
# Note where things are evaluated. The weight is an interval's, and the loss is taken at its *right* end.
#
# ## In the limit, an identity
#
# With more and more levels, $w_t \to \sigma^{-3} d\sigma$ and the sum becomes an integral. Two averages over the noise are all we need:
#
# ```{math}
# :label: eq-jm
# J_y(\sigma) = \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon \mid y), \qquad
# m_y(\sigma) = \E_\varepsilon \norm{D(z + \sigma \varepsilon, \sigma, y) - z}^2 .
# ```
#
# :::{prf:theorem} The bound is an identity
# :label: thm-identity
# Let the images of class $y$ be bounded and $D$ their posterior mean. Then for *every* point $z$ and every $\sigma > 0$
#
# $$
# \frac{d J_y}{d \sigma} = \frac{m_y(\sigma)}{\sigma^3} - \frac D\sigma,
# $$
#
# and therefore
#
# $$
# J_y(\sigma_0) = J_y(\sigma_T) + D \log \frac{\sigma_T}{\sigma_0} - \int_{\sigma_0}^{\sigma_T} \frac{m_y(\sigma)}{\sigma^3}\, d\sigma .
# $$
# :::
#
# :::{prf:proof}
# Write $s = \nabla \log p_\sigma$, always at $z_\sigma = z + \sigma \varepsilon$. The density solves the heat equation in $\sigma^2 / 2$, so $\partial_\sigma p_\sigma = \sigma \Delta p_\sigma$, and
# $\partial_\sigma \log p_\sigma = \sigma \Delta p_\sigma / p_\sigma = \sigma (\Delta \log p_\sigma + \norm{s}^2)$.
# The point itself moves with velocity $\varepsilon$. Together,
#
# $$
# J' = \sigma \E[\Delta \log p_\sigma + \norm{s}^2] + \E[\varepsilon \cdot s] .
# $$
#
# Gaussian integration by parts gives $\E[\varepsilon \cdot s] = \sigma \E[\Delta \log p_\sigma]$.
# So $J' = \E[\sigma \norm{s}^2 + 2 \varepsilon \cdot s] = \sigma\, \E \norm{s + \varepsilon / \sigma}^2 - D / \sigma$.
# By {prf:ref}`thm-tweedie`, $s + \varepsilon / \sigma = (D(z_\sigma) - z_\sigma + \sigma \varepsilon) / \sigma^2 = (D(z_\sigma) - z) / \sigma^2$.
# For bounded images all terms grow at most like a polynomial in $\varepsilon$, which justifies exchanging derivative and expectation.
# :::
#
# This is a pointwise form of the relation between information and estimation {cite}`guo2005immse,kong2023information`.
# If the images have a smooth density $p$, both ends can go to their limits:
#
# ```{math}
# :label: eq-loglik
# \log p(z \mid y) = - \tfrac D2 \log(2 \pi e) - \int_0^\infty \Big( \frac{m_y(\sigma)}{\sigma^3} - \frac{D}{\sigma (1 + \sigma^2)} \Big) d\sigma .
# ```
#
# (As $\sigma_0 \to 0$, $J \to \log p(z \mid y)$. As $\sigma_T \to \infty$, $J(\sigma_T) + \tfrac D2 \log(2 \pi e \sigma_T^2) \to 0$. The added term has the integral $-D \log \sigma_0$ in these limits.)
#
# The second term of the integrand has no label in it. So *for the optimal denoiser, integrated losses are log-likelihoods, exactly*.
#
# ### The laboratory
#
# A theorem should survive an experiment. We take eight points in the plane, four of each of two classes, and write them as images of one by two pixels.
# In two dimensions the noise can be replaced by a grid: the trapezoid rule converges exponentially fast for smooth functions that vanish at both ends.
# Nothing is random here.

# %%
corners = torch.rand(8, 1, 1, 2, generator=generator(seed, "toy"), dtype=torch.float64)
toy_labels = torch.arange(8) % 2
toy = OptimalDenoiser(corners, toy_labels)


def gaussian_grid(count: int, dims: int = 2) -> tuple[Tensor, Tensor]:
    """Nodes ``(count^dims, 1, 1, dims)`` and weights of the trapezoid rule for a standard normal, on [-7, 7] per axis."""
    line = torch.linspace(-7, 7, count, dtype=torch.float64)
    density = torch.exp(-(line**2) / 2)
    points = torch.cartesian_prod(*[line] * dims).reshape(-1, 1, 1, dims)
    return points, torch.cartesian_prod(*[density / density.sum()] * dims).reshape(len(points), -1).prod(dim=1)


def average(model: OptimalDenoiser, z: Tensor, sigma: float, count: int = nodes) -> tuple[Tensor, Tensor]:
    """``J`` and ``m`` at one point ``z`` ``(1, 1, dims)`` for every class, by quadrature: two tensors ``(K,)``."""
    eps, w = (v.to(z) for v in gaussian_grid(count, z.shape[-1]))
    noisy = z + sigma * eps
    loss = (model.all_classes(noisy, sigma) - z).square().flatten(2).sum(dim=2)
    return w @ model.log_density(noisy, sigma), w @ loss


def legendre(low: float, high: float, count: int) -> tuple[list[float], Tensor]:
    """Gauss-Legendre rule for ``d sigma`` on [low, high], in ``log sigma``: nodes and weights."""
    u, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
    span = math.log(high / low)
    sigma = low * torch.exp(span * (u + 1) / 2)
    return sigma.tolist(), w * sigma * span / 2


low, high = 0.25, 20.0
spot = torch.tensor([[[0.3, -0.4]]], dtype=torch.float64)  # any point will do; this one is no data point
print("levels   J(low) from the integral    error (nats), class 0 and 1")
truth, ceiling = average(toy, spot, low)[0], average(toy, spot, high)[0]
errors = {}
for count in (4, 8, 16, 32, 64):
    sigma, weight = legendre(low, high, count)
    area = sum(w * average(toy, spot, s)[1] / s**3 for s, w in zip(sigma, weight, strict=True))
    estimate = ceiling + 2 * math.log(high / low) - area
    errors[count] = (estimate - truth).abs()
    print(f"{count:6}   {float(estimate[0]):22.8f}    " + "  ".join(f"{e:.0e}" for e in errors[count].tolist()))

# %% [markdown]
# The same for {eq}`eq-loglik`. As a smooth density take the eight points blurred by noise of level $\tau = 0.3$: that *is* $p_\tau$, which we know.
# To denoise $z_\tau + u \varepsilon$ back to $z_\tau$, mix the clean estimate with the noisy point: with $s^2 = \tau^2 + u^2$,
#
# ```{math}
# :label: eq-tau-denoiser
# \E[z_\tau \mid z_s] = \frac{u^2 D(z_s, s, y) + \tau^2 z_s}{s^2} .
# ```

# %%
tau = 0.3


def smooth_loss(z: Tensor, u: float, count: int) -> Tensor:
    """``m(u)`` of the smooth density ``p_tau`` at ``z``, for every class."""
    eps, w = (v.to(z) for v in gaussian_grid(count))
    noisy, s = z + u * eps, math.hypot(tau, u)
    mean = (u**2 * toy.all_classes(noisy, s) + tau**2 * noisy[:, None]) / s**2
    return w @ (mean - z).square().flatten(2).sum(dim=2)


log_u = torch.arange(-12, 12.001, 0.125, dtype=torch.float64)  # the trapezoid rule on the whole line converges fast
exact_log_p = toy.log_density(spot[None], tau)[0]
print("nodes per axis   error of the integral against log p (nats), class 0 and 1")
smooth_errors = {}
for count in (8, 16, 32, 64):
    integrand = [smooth_loss(spot, math.exp(v), count) / math.exp(2 * v) - 2 / (1 + math.exp(2 * v)) for v in log_u.tolist()]
    estimate = -math.log(2 * math.pi * math.e) - 0.125 * torch.stack(integrand).sum(dim=0)
    smooth_errors[count] = (estimate - exact_log_p).abs()
    print(f"{count:14}   " + "  ".join(f"{e:.0e}" for e in smooth_errors[count].tolist()))

# %% tags=["remove-cell"]
assert errors[64].max() < 1e-6 and errors[64].max() < 1e-3 * errors[4].max()
assert smooth_errors[64].max() < 1e-6 and smooth_errors[64].max() < 1e-3 * smooth_errors[8].max()
glue("diffusion-identity", f"{float(errors[64].max()):.0e}")
glue("diffusion-loglik", f"{float(smooth_errors[64].max()):.0e}")

# %% [markdown]
# The errors fall to {glue:text}`diffusion-identity` and {glue:text}`diffusion-loglik` nats. The losses of a denoiser, added up, *are* the log-likelihood.
#
# ## What finite grids do
#
# A classifier cannot afford the integral. It has a grid $\sigma_0 < \dots < \sigma_T$ and a rule. {py:func}`rdc.schedule.chain_levels` knows three:
#
# | rule | weight of $m(\sigma_{t+1})$ in the interval $[\sigma_t, \sigma_{t+1}]$ | what it is |
# |---|---|---|
# | `chain` | $\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2})$ | the bound of {prf:ref}`thm-chain` |
# | `right` | $(\sigma_{t+1} - \sigma_t)\, \sigma_{t+1}^{-3}$ | a Riemann sum of $\sigma^{-3} d\sigma$, as in the released code |
# | `trapezoid` | half of `chain`, and the other half on $m(\sigma_t)$ | the trapezoid rule in $-1 / (2 \sigma^2)$ |
#
# With $r = \sigma_{t+1} / \sigma_t$ the first weight is $r (r + 1) / 2$ times the second. So `right` is always too small, and {prf:ref}`thm-chain` does not cover it.
#
# To see the grid alone, give the chain the exact prior, $p(z_T \mid y) = p_{\sigma_T}$. Then the bound of {prf:ref}`thm-chain` reads
# $B_T = J(\sigma_T) + D \log (\sigma_T / \sigma_0) - \sum_t w_t\, m(\sigma_{t+1})$: the identity, with a sum for the integral.
#
# How far is each rule from $J(\sigma_0)$, for the optimal denoiser? For `chain` we know the sign, on average: from {prf:ref}`thm-identity`,
#
# ```{math}
# :label: eq-grid-gap
# J(\sigma_0) - B_T = \sum_{t} \int_{\sigma_t}^{\sigma_{t+1}} \frac{m(\sigma_{t+1}) - m(\sigma)}{\sigma^3}\, d\sigma .
# ```
#
# Averaged over the data, $m$ is the minimal mean square error of the class. More noise cannot make that smaller, so the gap is not negative.
# Its size falls like $1/T$. The trapezoid rule is symmetric in the interval, and its error falls like $1/T^2$.


# %%
def sums(ceiling: float, losses: Tensor, grid: Tensor, rule: str, dims: int) -> float:
    """``J(sigma_T) + D log(sigma_T / sigma_0)`` minus the weighted losses of a rule; ``losses`` are those at all nodes."""
    chosen = chain_levels(grid, rule)
    return ceiling + dims * math.log(float(grid[-1] / grid[0])) - float(chosen.weight @ losses[-len(chosen) :])


def log_grid(low: float, high: float, count: int) -> Tensor:
    """``count + 1`` levels, evenly spaced in ``log sigma``."""
    return low * (high / low) ** (torch.arange(count + 1, dtype=torch.float64) / count)


counts = (4, 8, 16, 32, 64, 128)
fine = log_grid(low, high, counts[-1])  # the coarser grids are parts of it
gaps = {rule: np.zeros(len(counts)) for rule in ("chain", "right", "trapezoid")}
atoms = list(zip(to_model(corners[:4]), toy_labels[:4].tolist(), strict=True))
for z_atom, k in atoms:
    j, m = (torch.stack(v)[:, k] for v in zip(*[average(toy, z_atom, s) for s in fine.tolist()], strict=True))
    for rule in gaps:
        for i, t in enumerate(counts):
            part = slice(None, None, counts[-1] // t)
            gaps[rule][i] += float(j[0] - sums(float(j[-1]), m[part], fine[part], rule, dims=2)) / len(atoms)
print("J - sum (nats), mean over data points; negative: the sum is above J")
print("T         " + "".join(f"{t:>10}" for t in counts))
for rule, values in gaps.items():
    print(f"{rule:10}" + "".join(f"{v:10.5f}" for v in values))

# %% mystnb={"figure": {"caption": "Distance between the sum over a finite grid and $J(\\sigma_0)$, against the number of intervals $T$, on the toy. Filled: the sum lies below $J$. Open: above. Dotted: slopes $-1$ and $-2$.", "name": "fig-diffusion-gap"}, "image": {"alt": "Three straight lines on logarithmic axes; two fall with slope minus one, the trapezoid rule with slope minus two", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.6))
for i, (rule, values) in enumerate(gaps.items()):
    ax.loglog(counts, np.abs(values), f"C{i}-", label=rule)
    for t, v in zip(counts, values, strict=True):
        ax.loglog(t, abs(v), f"C{i}o", markerfacecolor=f"C{i}" if v > 0 else "white")
ax.loglog(counts, [3 / t for t in counts], color="0.6", linestyle=":", linewidth=1)
ax.loglog(counts, [6 / t**2 for t in counts], color="0.6", linestyle=":", linewidth=1)
ax.set(xlabel="number of intervals $T$", ylabel="distance to $J(\\sigma_0)$ (nats)")
ax.legend()
plt.show()

# %% tags=["remove-cell"]
slopes = {rule: math.log2(abs(values[-2]) / abs(values[-1])) for rule, values in gaps.items()}
claim(gaps["chain"].min() > 0 and gaps["right"].max() < 0, "a bound on average; a sum that exceeds the target")
claim(0.8 < slopes["chain"] < 1.2 and 0.8 < slopes["right"] < 1.2 and 1.7 < slopes["trapezoid"] < 2.3)
glue("diffusion-right-excess", -gaps["right"][counts.index(32)])
glue("diffusion-chain-gap", gaps["chain"][counts.index(32)])
glue("diffusion-trapezoid-gap", abs(gaps["trapezoid"][counts.index(32)]))

# %% [markdown]
# With 32 intervals the chain lies {glue:text}`diffusion-chain-gap:.3f` nats below $J$, the right sum {glue:text}`diffusion-right-excess:.3f` nats *above* it,
# and the trapezoid rule is {glue:text}`diffusion-trapezoid-gap:.3f` nats away.
# So the right sum is no lower bound. It is an approximation, and the trapezoid rule is a better one for the same evaluations.
#
# ### A bound on which density?
#
# Even `chain` needs care. {prf:ref}`thm-chain` bounds the density of the *chain* {eq}`eq-chain`, which for finite $T$ is another density than that of the data.
# On average over the data the bound lies below $J$. At a single point it need not.
#
# The smallest example has one pixel and two images, at $z = -1$ and $z = 1$. Ask for the point between them.
# At $\sigma_0 = 0.25$ the data has almost no mass there. A chain with few steps walks back in long strides and leaves some.
# In one dimension the integrals of {eq}`eq-chain` are sums over a dense grid, so both densities can be computed.

# %%
# NBVAL_CHECK_OUTPUT
pair = OptimalDenoiser(torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1), torch.zeros(2, dtype=torch.long))
axis = torch.linspace(-1, 1, 1201, dtype=torch.float64)


def column(v: Tensor) -> Tensor:
    """Numbers as images of one pixel."""
    return v.reshape(-1, 1, 1, 1)


def chain_log_density(grid: Tensor, at: Tensor) -> Tensor:
    """Log density of the chain at the points ``at`` of level ``grid[0]``, started from the exact density at ``grid[-1]``."""
    points = axis * (1.5 + 8 * grid[-1])
    density = pair.log_density(column(points), float(grid[-1]))[:, 0].exp()
    for t in range(len(grid) - 2, -1, -1):
        now, then = float(grid[t]), float(grid[t + 1])
        estimate = pair(column(points), then).flatten()
        mean = ((then**2 - now**2) * estimate + now**2 * points) / then**2
        variance = now**2 * (then**2 - now**2) / then**2
        mass = density * (points[1] - points[0])
        points = axis * (1.5 + 8 * now) if t else at
        kernel = torch.exp(-((points[:, None] - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        density = kernel @ mass
    return density.log()


middle = torch.zeros(1, 1, 1, dtype=torch.float64)
eps_line, mass_line = gaussian_grid(nodes, dims=1)
data_j = float(average(pair, middle, low)[0])
table = {}
print("at z = 0:   T   bound B_T   E log p_chain   J of the data")
for t in (2, 4, 8, 16, 32):
    grid_t = log_grid(low, high, t)
    losses = torch.cat([average(pair, middle, v)[1] for v in grid_t.tolist()])
    bound = sums(float(average(pair, middle, high)[0]), losses, grid_t, "chain", dims=1)
    table[t] = bound, float(mass_line @ chain_log_density(grid_t, low * eps_line.flatten()))
    print(f"{t:13} {table[t][0]:11.3f} {table[t][1]:15.3f} {data_j:15.3f}")

# %% mystnb={"figure": {"caption": "Density at level $\\sigma_0 = 0.25$ of two images at $\\pm 1$: of the data, and of chains with $T$ steps and the optimal denoiser.", "name": "fig-diffusion-chain"}, "image": {"alt": "The data density has two peaks and almost nothing between; the chain of two steps is one broad hump, and more steps come closer to the data", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.8, 3.4))
line = torch.linspace(-2, 2, 401, dtype=torch.float64)
ax.plot(line, pair.log_density(column(line), low)[:, 0].exp(), "k", label="data")
for i, t in enumerate((2, 8, 32)):
    ax.plot(line, chain_log_density(log_grid(low, high, t), line).exp(), f"C{i}--", label=f"chain, $T$ = {t}")
ax.set(xlabel="$z_0$ (model units)", ylabel="density")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
for bound, chain in table.values():
    claim(data_j < bound < chain, "above the data, below the chain")
claim(table[2][0] - data_j > 1)
glue("diffusion-excess-2", table[2][0] - data_j)
glue("diffusion-excess-32", table[32][0] - data_j)

# %% [markdown]
# The bound lies *below* the chain's log density in every row, as it must, and *above* that of the data:
# by {glue:text}`diffusion-excess-2:.2f` nats with two steps, {glue:text}`diffusion-excess-32:.2f` with 32.
#
# Why here? Formula {eq}`eq-grid-gap` has the wrong sign where $m$ *decreases*. At $z = 0$ and low noise the denoiser is sure that the image is $-1$ or $1$,
# and wrong by one; with more noise it says "somewhere in the middle", which is right.
# An adversarial example may well be such a point between the classes. A finite grid can rate it higher than the data does.
#
# ### What lies beyond the grid
#
# The grid ends at $\sigma_T$. With a Gaussian prior in the bound, the class-dependent part of the integral beyond is dropped. It is
#
# ```{math}
# :label: eq-tail
# \int_{\sigma_T}^\infty \frac{m(\sigma)}{\sigma^3}\, d\sigma \;\approx\; \frac{m(\sigma_T)}{2 \sigma_T^2},
# ```
#
# because $m$ is nearly constant there. `chain_levels(..., tail=True)` adds it to the last weight.

# %%
print("sigma_T   tail (exact)   m / (2 sigma_T^2)   difference of the tails of the two classes: exact, estimated")
tails = {}
for last in (1.0, 2.0, 3.0, 5.0, 20.0):
    j, m = average(toy, spot, last)
    tail, guess = -j - math.log(2 * math.pi * math.e * last**2), m / (2 * last**2)
    tails[last] = tail, guess
    differences = f"{float(tail[0] - tail[1]):9.4f} {float(guess[0] - guess[1]):9.4f}"
    print(f"{last:7.0f}   {float(tail[0]):12.5f}   {float(guess[0]):17.5f}   {differences}")

# %% tags=["remove-cell"]
for tail, guess in (tails[5.0], tails[20.0]):
    claim(((guess - tail).abs() < 0.1 * tail).all())
claim(((tails[3.0][0] - tails[3.0][1]).abs() < tails[3.0][0]).all())

# %% [markdown]
# ## The same on images
#
# In 64 dimensions quadrature is out of reach and noise takes its place. Does the identity hold for real images?
# The data are the training digits; the images are test digits, which the denoiser has not seen. Every draw of noise serves all levels, so that each draw gives one
# difference between the two sides, and the mean of the differences has a standard error.

# %%
test_digits = load("digits", "test")
z_digits = to_model(test_digits.x[:6].double())
draws = randn((digit_draws, 1, 8, 8), seed, "digits").double()
ends = (0.25, 20.0)
rule = chain_levels(log_grid(*ends, digit_levels), "trapezoid")


def two_sides(z: Tensor) -> tuple[Tensor, Tensor]:
    """``log p`` at the low end, and its value from the losses; both for each draw and class, ``(R, K)``."""
    total = exact.log_density(z + ends[1] * draws, ends[1]) + 64 * math.log(ends[1] / ends[0])
    for s, w in zip(rule.sigma.tolist(), rule.weight.tolist(), strict=True):
        total = total - w * (exact.all_classes(z + s * draws, s) - z).square().flatten(2).sum(dim=2)
    return exact.log_density(z + ends[0] * draws, ends[0]), total


same_class, t_values = [], []
print("digit   J of the true class   from the losses   difference   standard error   best class: J, losses")
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
claim(max(abs(t) for t in t_values) < 4.5, "within the noise")
claim(sum(same_class) >= len(same_class) - 1)

# %% [markdown]
# The two sides agree within their standard errors, and the class with the highest likelihood is the class with the smallest losses.
#
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
# {numref}`fig-diffusion-weights` shows $g$ for the weights of this book, each scaled to 1 at $\sigma = 1$.


# %%
def relative_weight(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and ``g = w sigma^3`` of a kind of levels, with ``g(1) = 1``; densities come from weights over spacings."""
    if kind.startswith("vp"):
        chosen = levels(kind, 1000)[1:]  # the first VP step has no predecessor, its weight is a convention
    else:
        chosen = levels(kind, 2000, placement="log", sigma_min=0.01, sigma_max=3.0 if kind == "edm-released" else 150.0)
    sigma = chosen.sigma.numpy()
    g = chosen.weight.numpy() / np.gradient(sigma) * sigma**3
    return sigma, g / np.interp(1.0, sigma, g)


curves = {kind: relative_weight(kind) for kind in ("elbo", "edm", "edm-released", "vp", "vp-printed", "vp-derived")}

# %% mystnb={"figure": {"caption": "Weights relative to the likelihood, $g(\\sigma) = w(\\sigma)\\, \\sigma^3$, scaled to 1 at $\\sigma = 1$. A flat line is a likelihood.", "name": "fig-diffusion-weights"}, "image": {"alt": "Six curves over the noise level: the ELBO and the derived VP weight are flat, the EDM weight is a hump that peaks at high noise, its released form a hump that peaks below one and ends at three, the printed VP weight changes by orders of magnitude", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3.8))
for i, (kind, (sigma, g)) in enumerate(curves.items()):
    ax.loglog(
        sigma, g, f"C{i}", linestyle="--" if kind == "vp-derived" else "-", label=kind, linewidth=3 if kind == "elbo" else 1.5
    )
ax.set(xlabel=r"noise level $\sigma$ (model units)", ylabel=r"$g(\sigma)$", ylim=(1e-4, 1e3), xlim=(0.01, 150))
ax.legend(fontsize=8, ncols=2)
plt.show()

# %% tags=["remove-cell"]
inner = {kind: g[(s > 0.1) & (s < 50)] for kind, (s, g) in curves.items()}
assert np.abs(inner["elbo"] - 1).max() < 1e-3 and np.abs(inner["vp-derived"] - 1).max() < 0.1  # these two are likelihoods
claim(inner["edm"].max() / inner["edm"].min() > 5 and inner["vp-printed"].max() / inner["vp-printed"].min() > 10)
glue("diffusion-peak-edm", float(curves["edm"][0][curves["edm"][1].argmax()]))
glue("diffusion-peak-released", float(curves["edm-released"][0][curves["edm-released"][1].argmax()]))

# %% [markdown]
# Two curves are flat: the ELBO weight by definition, and the VP weight as it follows from the chain, by calculation ({ref}`ex-diffusion-vp`).
# (At its very first steps the VP schedule is coarse compared with $\sigma$, and a weight over a spacing is not quite a density.)
# The EDM weight peaks at $\sigma =$ {glue:text}`diffusion-peak-edm:.1f`, its released form at {glue:text}`diffusion-peak-released:.2f`:
# the exponent of the log-normal is multiplied by $P_\text{std}^2$ where it should be divided.
#
# What does that do to logits? On the toy we know the true log-likelihood ratio of the two classes.

# %%
spots = to_model(torch.rand(48, 1, 1, 2, generator=generator(seed, "spots"), dtype=torch.float64))
kinds = {
    "elbo": chain_levels(log_grid(low, high, 32), "trapezoid", tail=True),
    "edm": levels("edm", 32, placement="log", sigma_min=low, sigma_max=high),
    "vp": levels("vp", 50),
}
kinds["vp"] = kinds["vp"][kinds["vp"].sigma > low]
ratio = torch.stack([average(toy, s, low, 64)[0] for s in spots]) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
logit_ratio = {}
for kind, chosen in kinds.items():
    m = torch.stack([torch.stack([average(toy, s, v, 48)[1] for v in chosen.sigma.tolist()]) for s in spots])  # (48, T, 2)
    logit_ratio[kind] = (m[..., 1] - m[..., 0]) @ chosen.weight
    slope_of = float((logit_ratio[kind] @ ratio) / (ratio @ ratio))
    agree = int((logit_ratio[kind].sign() == ratio.sign()).sum())
    print(
        f"{kind:5} logit ratio = {slope_of:.3f} x likelihood ratio (least squares); same sign at {agree} of {len(spots)} points"
    )

# %% tags=["remove-cell"]
fits = {kind: float((v @ ratio) / (ratio @ ratio)) for kind, v in logit_ratio.items()}
claim(abs(fits["elbo"] - 1) < 0.03, "nats")
claim(fits["edm"] < 0.8 and fits["vp"] < 0.5, "other units")

# %% [markdown]
# Most decisions stay, the *units* do not: a reweighted ratio is a fraction of the true one. Whoever compares logits with a threshold, or feeds a softmax into an attack or a calibration, must know which weight was used.
#
# ## Summary
#
# - VE and VP are one process in two units; image, noise and score predictions are one denoiser in different units.
# - The best denoiser is the posterior mean. Over a finite set it is known in closed form, and at low noise it only remembers.
# - A chain of denoising steps has a likelihood bound, with weight $\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2})$ on the loss at the right end.
# - In the limit, for the optimal denoiser, the bound is an identity at every point.
# - A finite grid bounds the density of the chain, and can exceed that of the data. The trapezoid rule and a tail term come closer at the same cost.
# - Any other weight gives a mixture of blurred log-likelihoods: a score, not a likelihood.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-diffusion-vp
# :::
# **The weight of a VP chain.** Write the weight of {prf:ref}`thm-chain` for noise prediction, in terms of $\alpha_t$, for the step between $t - 1$ and $t$.
# Compare with `vp_weights(alpha, "derived")` and `"printed"` (Eq. 4 of the paper).

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-vp
# :label: sol-diffusion-vp
# :class: dropdown
# :::
# The signal-to-noise ratio is $\gamma_t = \sigma_t^{-2} = \alpha_t / (1 - \alpha_t)$, and $\norm{D - z}^2 = \sigma_t^2 \norm{\hat\varepsilon - \varepsilon}^2$.
# So the weight is $\tfrac12 (\gamma_{t-1} - \gamma_t) / \gamma_t = \tfrac12 (\gamma_{t-1} / \gamma_t - 1)$.

# %%
alphas = vp_alphas()
snr = alphas / (1 - alphas)
ours = 0.5 * (snr[:-1] / snr[1:] - 1)
print(
    f"derived / ours: {float((vp_weights(alphas, 'derived')[1:] / ours).min()):.6f} to {float((vp_weights(alphas, 'derived')[1:] / ours).max()):.6f}"
)
printed = vp_weights(alphas, "printed")[1:] / ours
print(f"printed / ours: {float(printed.min()):.1f} to {float(printed.max()):.1f}")
assert torch.allclose(vp_weights(alphas, "derived")[1:], ours)

# %% [markdown]
# The derived weight is the chain's. The printed one has $\sigma_t$ where $\beta_t^2$ should stand, so the two differ by a factor that changes with $t$:
# not a constant that a classifier could ignore.
#
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-memory
# :::
# **A sampler with a perfect memory.** Feed the optimal denoiser of the digits to `sample`. What do you get? Measure the distance of each sample to the nearest training image.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-memory
# :label: sol-diffusion-memory
# :class: dropdown
# :::

# %%
wanted = torch.arange(10)
copies = sample(exact, wanted, randn((10, 1, 8, 8), seed, "memory").double(), 40)
distance = exact.distances(copies).min(dim=1).values.sqrt()
between = exact.distances(to_model(test_digits.x[:10].double())).min(dim=1).values.sqrt()
print(
    f"sample to nearest training image: at most {float(distance.max()):.4f}; test image to nearest training image: {float(between.mean()):.2f} on average"
)
claim(distance.max() < 0.1 * between.mean())

# %% [markdown]
# Every sample *is* a training image. As $\sigma \to 0$ the optimal denoiser points to one of them.
# A sampler that makes new images needs a denoiser that is not optimal for its training set.
#
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-reweight
# :::
# **Check the reweighting identity** {eq}`eq-reweighting` on the toy, with $g(\sigma) = \sigma$ on $[0.25, 20]$ (then $w = \sigma^{-2}$).

# %%
# your code here

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
pairs = [average(toy, spot, s) for s in sigma]
left = -sum(w * m / s**2 for (_, m), s, w in zip(pairs, sigma, weight, strict=True))
right = (
    low * average(toy, spot, low)[0]
    - high * average(toy, spot, high)[0]
    + sum(w * j for (j, _), w in zip(pairs, weight, strict=True))
    - 2 * (high - low)
)
print(f"left {[round(v, 6) for v in left.tolist()]}, right {[round(v, 6) for v in right.tolist()]}")
assert (left - right).abs().max() < 1e-6

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise}
# :label: ex-diffusion-learned
# **A learned denoiser.** Let $D_\theta$ be any denoiser, with losses $m_\theta$. By how much does its continuous bound fall short of $J(\sigma_0)$?
# Show that the shortfall, averaged over the data, is not negative, and give an example of a single point where it is.
# :::
#
# :::{solution} ex-diffusion-learned
# :label: sol-diffusion-learned
# :class: dropdown
# By {prf:ref}`thm-identity` the shortfall is $\int \sigma^{-3} (m_\theta - m)\, d\sigma$, with $m$ the loss of the posterior mean. Averaged over $z$ of class $y$, and at every $\sigma$,
# $m_\theta \ge m$ by {prf:ref}`prop-posterior-mean`.
#
# At a single point it can be negative: take $D_\theta(\cdot) = z$, a constant. Its loss at that $z$ is zero, so it rates this one image above all bounds, and pays for it elsewhere.
# The exact bound holds for the *chain* of $D_\theta$, which produces that image and nothing else.
# :::
#
# ## References
#
# Diffusion chains: {cite:t}`ho2020ddpm`; the continuous view and the probability flow: {cite:t}`song2021score`; the likelihood in terms of the signal-to-noise ratio: {cite:t}`kingma2021vdm`.
# Preconditioning, noise levels and sampler: {cite:t}`karras2022elucidating`.
# Information and estimation: {cite:t}`guo2005immse`, {cite:t}`kong2023information`.
# Denoising as classification: {cite:t}`li2023zeroshot`, {cite:t}`clark2023zeroshot` and {cite:t}`chen2024rdc`.
