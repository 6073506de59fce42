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
# (nb-diffusion)=
# # Noise and denoisers
#
# :::{admonition} What you will be able to do
# :class: tip
# - Move between the two ways of adding noise, and between the forms of a {term}`denoiser`.
# - Show that the best denoiser is a posterior mean, and read a score off it.
# - Sample from a trained denoiser with twenty lines of code.
# :::
#
# **Time** 30 minutes · **Needs** {doc}`/book/notation`, Gaussian densities, integration by parts. Covers section 3.1
# of {cite:t}`chen2024rdc`. Three pages follow: why a sum of losses is a likelihood ({ref}`nb-diffusion-likelihood`), what a finite grid does
# ({ref}`nb-diffusion-grids`), and other weights ({ref}`nb-diffusion-weights`).

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of every random number
data: str = "fashion-mini"  # data set; "fashion" if its files are there
checkpoint: str = "fashion-mini"  # trained denoiser, by name or path
n_loss: int = 64  # images per noise level for the denoising loss
per_class: int = 3  # samples drawn of each class
sampler_steps: int = 18  # steps of the sampler

# %% tags=["hide-input"]
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.data import load
from rdc.denoise import OptimalDenoiser, fast_dtype, from_model, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, close_to
from rdc.plots import image_grid, style
from rdc.rng import randn
from rdc.schedule import alpha_to_sigma, sigma_to_alpha, vp_alphas

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)

# %% [markdown]
# **What does a network see of a noisy image, and what does it make of it?** A {term}`diffusion classifier` scores a label by how well a denoiser, told that label, removes noise from
# the image. Here are the noise, the denoiser and the images that it can make.

# %% tags=["hide-input"]
denoiser = load_denoiser(checkpoint, device, fast_dtype(device))
parameters = sum(p.numel() for p in denoiser.parameters())
print(
    f"{parameters} parameters, images {denoiser.shape}, "
    f"{denoiser.num_classes} classes"
)

# %% tags=["hide-input"]
test, train = load(data, "test"), load(data, "train")
shown = [int((test.y == k).nonzero()[0, 0]) for k in (1, 5, 9)]
z = to_model(test.x[shown])

# %% mystnb={"figure": {"caption": "One image at six noise levels. Top: $z_\\sigma$. Middle: the trained denoiser, told the label. Bottom: the same, told nothing.", "name": "fig-diffusion-denoise"}, "image": {"alt": "Noise in the top row; below it an ankle boot that is sharp at low noise and becomes a blurred average at high noise", "width": "75%"}} tags=["hide-input"]
boot, boot_label = z[2:].to(device), test.y[shown[2:]].to(device)
boot_levels = (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
noisy = [
    boot + s * randn(tuple(boot.shape), seed, "boot", like=boot)
    for s in boot_levels
]
with torch.no_grad():
    told = [
        denoiser(v, s, boot_label)
        for v, s in zip(noisy, boot_levels, strict=True)
    ]
    untold = [denoiser(v, s) for v, s in zip(noisy, boot_levels, strict=True)]
titles = [rf"$\sigma$ = {s:g}" for s in boot_levels]
image_grid(
    from_model(torch.cat(noisy + told + untold)),
    columns=6,
    titles=titles + [""] * 12,
    size=1.0,
)
plt.show()

# %% [markdown]
# At low noise the denoiser sees the image and polishes it. At high noise it sees nothing and returns the average image:
# of the class if it knows the label, of all images if it does not.
# In between it must use the label, and there the labels can be told apart. Diffusion classifiers live in that range.
#
# ## Adding noise
#
# Take an image $z$ in model units. There are two customs, {eq}`eq-ve` and {eq}`eq-vp`:
#
# :::{table} Two customs of adding noise
#
# | | noisy image | as the noise grows |
# |---|---|---|
# | variance exploding (VE) | $z_\sigma = z + \sigma \varepsilon$ | the image stays, the noise drowns it |
# | variance preserving (VP) | $x_t = \sqrt{\alpha_t}\, z + \sqrt{1 - \alpha_t}\, \varepsilon$ | the image fades, the total variance stays (of images of variance 1) |
#
# :::
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
alpha = vp_alphas()[
    [9, 99, 249, 499, 749]
]  # the linear schedule of Ho et al. (2020), at t = 10, 100, 250, 500, 750
sigma_t = alpha_to_sigma(alpha)
eps = randn(tuple(z.shape), seed, "forward")
ve = [z + s * eps for s in sigma_t.tolist()]
vp = [math.sqrt(a) * z + math.sqrt(1 - a) * eps for a in alpha.tolist()]
gap = max(
    float((math.sqrt(a) * v - x).abs().max())
    for a, v, x in zip(alpha.tolist(), ve, vp, strict=True)
)
print("t        ", [10, 100, 250, 500, 750])
print("sigma_t  ", [round(s, 3) for s in sigma_t.tolist()])
print(
    f"largest difference of sqrt(alpha) z_sigma and x_t: {gap:.0e};  alpha "
    f"recovered: {torch.allclose(sigma_to_alpha(sigma_t), alpha)}"
)

# %% mystnb={"figure": {"caption": "Two images under growing noise. Rows 1 and 3: variance exploding, cut to the range of an image. Rows 2 and 4: variance preserving, the same noise, in grey for zero.", "name": "fig-diffusion-forward"}, "image": {"alt": "A trouser and a sandal that disappear in noise from left to right; the VP rows turn grey, the VE rows turn black and white", "width": "75%"}} tags=["hide-input"]
titles = [rf"$\sigma$ = {s:.2g}" for s in [0.0, *sigma_t.tolist()]]
rows = [
    torch.stack([z[i], *(images[i] for images in kind)])
    for i in (0, 1)
    for kind in (ve, vp)
]
scaled = [
    from_model(r) if i % 2 == 0 else r / 4 + 0.5 for i, r in enumerate(rows)
]
image_grid(torch.cat(scaled), columns=6, titles=titles + [""] * 18, size=1.0)
plt.show()

# %% [markdown]
# ## The denoiser
#
# A denoiser sees $z_\sigma$, the level $\sigma$ and perhaps the label $y$, and guesses $z$.
#
# :::{prf:proposition} The best denoiser is the posterior mean
# :label: prop-posterior-mean
# Among all functions $h$ of $z_\sigma$ and $y$, the mean square error $\E \norm{h(z_\sigma, y) - z}^2$ is smallest for
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
# :::{table} What networks predict, and what it says about the denoiser $D$
#
# | a network predicts | in terms of $D$ | its squared error is |
# |---|---|---|
# | the image | $D$ | $\norm{D - z}^2$ |
# | the noise $\hat\varepsilon$ | $(z_\sigma - D) / \sigma$ | $\norm{D - z}^2 / \sigma^2$ |
# | the score | $(D - z_\sigma) / \sigma^2$ | $\norm{D - z}^2 / \sigma^4$ |
# | the noise of $x_t$ (VP) | $(x_t - \sqrt{\alpha_t} D(x_t / \sqrt{\alpha_t}, \sigma_t, y)) / \sqrt{1 - \alpha_t}$ | the same as for $\hat\varepsilon$ |
# | the raw output $F$ (EDM) | $(D - c_\text{skip} z_\sigma) / c_\text{out}$ | $\norm{D - z}^2 / c_\text{out}^2$ |
#
# :::
#
# If the images are a *finite set*, everything is exact: $p_\sigma$ is a mixture of Gaussians, one around each image.
# {py:class}`rdc.denoise.OptimalDenoiser` is that closed form, and {ref}`nb-optimal` is about it.
# Here it is our measuring instrument. Tweedie's formula, checked by automatic differentiation on the digits:

# %%
digits = load("digits", "train")
exact = OptimalDenoiser(digits.x.double(), digits.y)
point = (
    to_model(load("digits", "test").x[:4].double())
    + 0.5 * randn((4, 1, 8, 8), seed, "tweedie").double()
).requires_grad_()
label = load("digits", "test").y[:4]
log_p = exact.log_density(point, 0.5).gather(1, label[:, None]).sum()
(slope,) = torch.autograd.grad(log_p, point)
tweedie = (exact(point.detach(), 0.5, label) - point.detach()) / 0.5**2
print(
    f"largest difference of the two scores: "
    f"{float((slope - tweedie).abs().max()):.0e} (scores up to "
    f"{float(slope.abs().max()):.1f})"
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
# where $\ln \sigma$ is drawn from a normal distribution. The weight $\lambda$ is $1 / c_\text{out}^2$, so by the last row of the table every {term}`noise level` asks the raw network for an output of unit size.
# In one of ten cases the label is hidden, so the network also denoises without a label.
#
# How good is the network? The closed form over the training images of `data` gives a yardstick.
# On average over *its own* images no denoiser is better. On new images it is another matter.

# %% tags=["hide-input"]
grid = torch.logspace(math.log10(0.05), math.log10(30), 10).tolist()
memory = OptimalDenoiser(train.x, train.y).to(device)


def mean_loss(
    model: Callable, images: Tensor, label: Tensor | None, sigma: float
) -> float:
    """The denoising loss ``|D - z|^2``, summed over pixels, averaged over
    images with one draw of noise each.
    """
    z = to_model(images).to(device)
    eps = randn(tuple(z.shape), seed, "loss", like=z)
    with torch.no_grad():
        return float(
            (model(z + sigma * eps, sigma, label) - z)
            .square()
            .flatten(1)
            .sum(1)
            .mean()
        )


cases = {
    "network, test": (denoiser, test, True),
    "network, test, no label": (denoiser, test, False),
    "closed form, test": (memory, test, True),
    "network, train": (denoiser, train, True),
    "closed form, train": (memory, train, True),
}
loss_at = {
    name: [
        mean_loss(
            model,
            images.x[:n_loss],
            images.y[:n_loss].to(device) if labelled else None,
            s,
        )
        for s in grid
    ]
    for name, (model, images, labelled) in cases.items()
}

# %% mystnb={"figure": {"caption": "Denoising loss, relative to the noise $D \\sigma^2$, against the noise level. The closed form over the training images is nearly perfect on them and poor on new images at low noise.", "name": "fig-diffusion-loss"}, "image": {"alt": "Loss over the noise level. The curves of the network fall together; the closed form on test images starts far above them at low noise and joins them at high noise; on training images it is off the picture below a level of one, and joins them, too", "width": "60%"}} tags=["hide-input"]
pixels = math.prod(denoiser.shape)
fig, ax = plt.subplots(figsize=(5.2, 3.6))
styles = ("C0o-", "C0s:", "C1o-", "C0^--", "C1^--")
for (name, values), mark in zip(loss_at.items(), styles, strict=True):
    ax.loglog(
        grid,
        [
            max(v, 1e-9) / (pixels * s**2)
            for v, s in zip(values, grid, strict=True)
        ],
        mark,
        label=name,
        markersize=4,
    )
ax.set(
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel=r"loss / ($D \sigma^2$)",
    ylim=(1e-5, 300),
)
ax.legend()
plt.show()

# %% tags=["remove-cell"]
near = 2  # a level near 0.2
claim(
    loss_at["closed form, test"][near] > 2 * loss_at["network, test"][near],
    "memory does not generalise",
)
claim(
    loss_at["closed form, train"][near] < loss_at["network, train"][near],
    "and cannot be beaten on its own images",
)
claim(
    loss_at["network, test, no label"][6] > loss_at["network, test"][6],
    "the label helps in between",
)


# %% [markdown]
# {numref}`fig-diffusion-loss` holds the tension of this book in one picture.
# The *optimal* denoiser of a finite set can only answer with images of that set, so at low noise it fails on a new image.
# At low noise the network is worse on the training images and far better on new ones; at high noise the two agree. It generalises, and for that it must *not* be optimal.
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
# It is an ordinary differential equation. Start at $\sigma_\text{max} \varepsilon$, take {term}`Heun` steps (predict with the slope here, correct with the slope there), and
# place the levels evenly in $\sigma^{1/7}$, so that steps are short where images form {cite}`karras2022elucidating`.


# %%
def sampling_levels(
    steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> list[float]:
    """Decreasing noise levels, even in ``sigma^(1/rho)``, and a zero at the
    end.
    """
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return [
        *(
            (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho)))
            ** rho
        ).tolist(),
        0.0,
    ]


@torch.no_grad()
def sample(model: Callable, label: Tensor, start: Tensor, steps: int) -> Tensor:
    """Images of the given classes: Heun's method on the probability flow,
    from ``start`` (standard normal), in model units.
    """
    sigma = sampling_levels(steps)
    z = sigma[0] * start
    for now, then in zip(sigma, sigma[1:], strict=False):
        slope = (z - model(z, now, label)) / now
        guess = z + (then - now) * slope
        if (
            then > 0
        ):  # at zero the slope is not defined: the last step is Euler's
            slope = (slope + (guess - model(guess, then, label)) / then) / 2
        z = z + (then - now) * slope
    return z


labels = torch.arange(denoiser.num_classes, device=device).repeat(per_class)
samples = sample(
    denoiser,
    labels,
    randn((len(labels), *denoiser.shape), seed, "sample").to(device),
    sampler_steps,
)
inside = float(((samples > -1.1) & (samples < 1.1)).float().mean())
print(
    f"{len(labels)} samples, {2 * sampler_steps - 1} evaluations each; share "
    f"of pixels within 0.1 of [-1, 1]: {inside:.3f}"
)

# %% mystnb={"figure": {"caption": "Samples of the shipped network, one class a column.", "name": "fig-diffusion-samples"}, "image": {"alt": "A grid of generated grey pictures of clothes, shoes and bags", "width": "90%"}} tags=["hide-input"]
image_grid(
    from_model(samples),
    columns=denoiser.num_classes,
    titles=test.classes + [""] * (len(labels) - denoiser.num_classes),
    size=0.72,
)
plt.show()

# %% tags=["remove-cell"]
claim(inside > 0.95)

# %% [markdown]
# A sampler judges a denoiser by eye. A classifier needs numbers, so we turn to the likelihood.
#
# ## What to remember
#
# - VE and VP are one process in two units; image, noise and score predictions are one denoiser in different units.
# - The best denoiser is the posterior mean. Over a finite set it is known in closed form, and at low noise it only remembers.
# - A sampler follows the score from noise to images; a network that makes new ones must not be optimal for its training set.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-diffusion-half
# :::
# **Half noise** (5 minutes, easy). Let the images have variance one. At which $\sigma$ is half of the variance of a noisy image noise? After how many steps $t$ of the schedule `vp_alphas()` is it half or more?
#
# :::{hint}
# :class: dropdown
# In VP form the two parts of the variance are $\alpha_t$ and $1 - \alpha_t$. The entry 0 of the schedule is $t = 1$.
# :::

# %%
# your code here
half_sigma, half_step = None, None

# %%
# check
fine = (half_sigma, half_step) == (1, 260)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-half
# :label: sol-diffusion-half
# :class: dropdown
# :::
# Half means $\alpha_t = 1/2$, and $\sigma_t^2 = (1 - \alpha_t) / \alpha_t = 1$: noise as large as the signal. The schedule spends about a quarter of its steps below that level.

# %%
half_sigma = alpha_to_sigma(torch.tensor(0.5)).item()
half_step = int((vp_alphas() <= 0.5).nonzero()[0, 0]) + 1
print(half_sigma, half_step)

# %% tags=["remove-cell"]
claim(half_sigma == 1 and half_step == 260)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-memory
# :::
# **A sampler with a perfect memory** (10 minutes, medium). Feed the {term}`optimal denoiser` of the digits to `sample`, with 40 steps and one sample a class. What do you get? Which training image is the nearest to each sample, and how far away is the farthest of the ten?
#
# :::{hint}
# :class: dropdown
# `exact` takes the place of `denoiser`, and `exact.distances` gives squared distances to the stored images, a column for each. The start has the type of `exact`: `randn((10, 1, 8, 8), seed, "memory").double()`.
# :::

# %%
# your code here
nearest = None  # ten places of stored images, one a class
farthest = None  # distance of ten samples, in model units

# %%
# check
begin = randn((10, 1, 8, 8), seed, "memory").double()
again = exact.distances(sample(exact, torch.arange(10), begin, 40))
wanted_far, wanted_at = float(again.min(1).values.max().sqrt()), again.argmin(1)
fine = close_to(nearest, wanted_at, within=0)
fine = fine and close_to(farthest, wanted_far, within=1e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-memory
# :label: sol-diffusion-memory
# :class: dropdown
# :::
# The distances are far below those between a test digit and its nearest training digit.

# %%
wanted = torch.arange(10)
test_digits = load("digits", "test")
copies = sample(
    exact, wanted, randn((10, 1, 8, 8), seed, "memory").double(), 40
)
apart = exact.distances(copies).min(dim=1)
nearest, farthest = apart.indices, float(apart.values.sqrt().max())
between = (
    exact.distances(to_model(test_digits.x[:10].double()))
    .min(dim=1)
    .values.sqrt()
)
print(
    f"sample to nearest training image: at most {farthest:.4f}; "
    f"test image to nearest training image: {float(between.mean()):.2f} on "
    f"average"
)

# %% tags=["remove-cell"]
claim(farthest < 0.1 and farthest < 0.1 * between.mean())

# %% [markdown]
# Every sample *is* a training image. As $\sigma \to 0$ the optimal denoiser points to one of them.
# A sampler that makes new images needs a denoiser that is not optimal for its training set.
#
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-label
# :::
# **Where does the label matter?** (5 minutes, easy). At which {term}`noise level` of `grid` does the label lower the network's loss on test images most?
#
# :::{hint}
# :class: dropdown
# Subtract two rows of `loss_at`.
# :::

# %%
# your code here
best_level = None

# %%
# check
fine = best_level is not None and abs(best_level - 30) < 0.5
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-label
# :label: sol-diffusion-label
# :class: dropdown
# :::
# At the highest level, where all that can be said is the mean of the class. At low noise the image names its own class, and the label adds nothing.
#
# That is the plain loss. Divided by $\sigma^2$, as in the error of the noise, the saving falls again at high levels: there the image is
# drowned in noise, and with the weights of the likelihood these levels count for little.

# %%
gain = [
    without - told
    for without, told in zip(
        loss_at["network, test, no label"],
        loss_at["network, test"],
        strict=True,
    )
]
most = max(range(len(grid)), key=lambda i: gain[i])
best_level = grid[most]
print(f"the label saves most at sigma {best_level:.2g}: {gain[most]:.1f}")

# %% tags=["remove-cell"]
claim(abs(best_level - max(grid)) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Diffusion chains: {cite:t}`ho2020ddpm`; the continuous view and the probability flow: {cite:t}`song2021score`.
# Preconditioning, noise levels and sampler: {cite:t}`karras2022elucidating`. Denoising as classification: {cite:t}`li2023zeroshot`, {cite:t}`clark2023zeroshot` and
# {cite:t}`chen2024rdc`.
