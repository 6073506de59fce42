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
# (nb-classifier)=
# # The trained diffusion classifier
#
# :::{admonition} What you will be able to do
# :class: tip
# - Write the classifier of Theorem 3.1 in ten lines, and say what one logit and one gradient cost.
# - Show why all classes must see the same noise.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-first-attack`, {ref}`nb-diffusion`, {ref}`nb-optimal` and {doc}`/book/notation`.
# Covers sections 3.2 and 4.5 of {cite:t}`chen2024rdc`. Four pages follow: which levels and weights ({ref}`nb-classifier-weights`), how many
# time steps ({ref}`nb-classifier-steps`), how robust it is ({ref}`nb-classifier-attack`) and whether a large loss is the reason
# ({ref}`nb-classifier-loss`). The numbers on these pages come from a few images, so that they run in minutes; the larger run is in
# {ref}`sec-dc-record`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 16  # noise levels of the classifier
sigma_min: float = 0.1  # lowest noise level, model units
n_noise: int = 4  # images for the study of noise
noise_seeds: int = 6  # noise draws for the study of variance; even

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.attack.losses import LOSSES, margin
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import Denoiser
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import image_grid, legend_below, style
from rdc.rng import randn
from rdc.schedule import Levels, levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
denoiser = load_denoiser(data, device=device)
test = load(data, "test")
images, labels = test.x[:n_noise].to(device), test.y[:n_noise].to(device)
x, y = images, labels
main = levels("elbo", count, sigma_min=sigma_min)

# %% [markdown]
# **How does a denoiser that nobody trained to classify tell garments apart?** It explains the image under every label; the label with the smallest
# error wins. The {term}`denoiser` of this chapter is a network. It was trained on the training split only, once, for all classes together.

# %% mystnb={"figure": {"caption": "A test image, the same with noise at $\\sigma = 1$, and what the denoiser makes of it under each of the ten labels, with the squared error. At one level a wrong label may have the smallest error; the diffusion classifier adds up many levels.", "name": "fig-dc-labels"}, "image": {"alt": "Twelve small pictures: a T-shirt, the T-shirt in noise, and ten estimates, all of which look like T-shirts"}} tags=["hide-input"]
z = to_model(x[:1]).expand(10, -1, -1, -1)
seen = z + randn(denoiser.shape, seed, "picture", like=z)
with torch.no_grad():
    shown = denoiser(seen, 1.0, torch.arange(10, device=device)).float()
error = (z - shown).square().flatten(1).sum(1).tolist()
pairs = zip(test.classes, error, strict=True)
titles = ["image", "noisy", *(f"{name}: {e:.1f}" for name, e in pairs)]
pictures = torch.cat([z[:1], seen[:1], shown]) / 2 + 0.5
image_grid(pictures, columns=6, titles=titles, size=1.3)
plt.show()


# %% [markdown]
# Move the {term}`noise level`: at which levels do the errors tell the classes apart?
#
# ```{moving} levels
# ```
#
# ## From the theorem to code
#
# :::{prf:theorem} Theorem 3.1 of the paper, with a weaker hypothesis
# :label: thm-dc
# Let $L_y(z)$ be the diffusion loss {eq}`eq-diffusion-loss` and $d(x, y) = \log p(x \mid y) + L_y(z)$ its gap to the
# log-likelihood. Let $\pi_y$ be the class prior. If $d(x, y)$ is the same number $d(x)$ for all $y$, then
#
# ```{math}
# :label: eq-dc-posterior
# p(y \mid x) = \operatorname{softmax}_y\big( \log \pi_y - L_y(z) \big).
# ```
# :::
#
# :::{prf:proof}
# By Bayes' rule $p(y \mid x) \propto \pi_y\, p(x \mid y) = \pi_y\, e^{d(x)} e^{-L_y(z)}$. The factor $e^{d(x)}$ does not
# depend on $y$ and cancels when we normalise.
# :::
#
# The paper asks for $d \to 0$. That is more than is needed: constants cancel. What hurts is the part of the gap that
# differs between classes. {ref}`nb-optimal-gap` computes it exactly for the {term}`optimal denoiser`.
#
# Here is the whole classifier.


# %%
def ten_lines(
    denoiser: Denoiser, levels: Levels, x: Tensor, seed: int = 0
) -> Tensor:
    """Logits ``-sum_t w_t |z - D(z + sigma_t eps_t, sigma_t, k)|^2``, ``(N,
    K)``, the same noise for all classes.
    """
    z, columns = to_model(x), []
    for label in range(denoiser.num_classes):
        loss = torch.zeros(len(x), device=x.device)
        for t, (sigma, weight) in enumerate(
            zip(levels.sigma.tolist(), levels.weight.tolist(), strict=True)
        ):
            eps = randn(
                denoiser.shape, seed, 0, t, 0, 0, like=x
            )  # the key of rdc: seed, call, level, draw, class
            estimate = denoiser(
                z + sigma * eps,
                sigma,
                torch.full((len(x),), label, device=x.device),
            )
            loss = loss + weight * (z - estimate).square().flatten(1).sum(1)
        columns.append(-loss)
    return torch.stack(columns, dim=1)


# %% [markdown]
# {py:class}`rdc.classify.DiffusionClassifier` computes the same numbers, in chunks of (level, image, class) that keep the
# processor busy and the memory flat. We compare in float32, on two images and four levels.

# %%
exact = load_denoiser(data, device=device)  # float32
four = levels("elbo", 4)
plain = ten_lines(exact, four, x[:2], seed)
packaged = DiffusionClassifier(exact, four, seed=seed)(x[:2])
difference = float((plain - packaged).abs().max() / packaged.abs().max())
print(
    f"largest relative difference of the logits below 1e-4: {difference < 1e-4}"
)  # NBVAL_CHECK_OUTPUT


# %% [markdown]
# One image costs $T \cdot R \cdot K$ evaluations of the network: levels times draws times classes. A CNN costs one.
#
# ### The gradient in two passes
#
# An attack needs $\nabla_x \ell(f(x))$ for a loss $\ell$ of the {term}`logits`. Autograd through all evaluations keeps every
# activation of every one of them. The chain rule offers something better. With $g_k = \partial \ell / \partial f_k$,
#
# ```{math}
# :label: eq-dc-two-pass
# \nabla_z \ell = \sum_k g_k \nabla_z f_k
# = - \sum_{k :\, g_k \ne 0} g_k \sum_{t} w_t\, \nabla_z \norm{z - D(z + \sigma_t \varepsilon_t, \sigma_t, k)}^2 .
# ```
#
# The numbers $g_k$ follow from the logits alone. So a first pass without autograd gives the logits, the loss and $g$. A second
# pass differentiates one chunk after the other and adds up. It uses the same noise, and it leaves out every class with
# $g_k = 0$. Nothing is approximated.
#
# The {term}`margin` $\max_{j \ne y} f_j - f_y$ touches two classes of ten. Its gradient costs $2T$ evaluations with gradient on top
# of the $KT$ without.


# %%
class Counting(nn.Module):
    """A denoiser that counts its evaluations, without and with gradient."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.one_pass, self.shape, self.num_classes = (
            inner,
            inner.one_pass,
            inner.shape,
            inner.num_classes,
        )
        self.plain = self.graded = 0

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """``D(z_sigma, sigma, y)``."""
        self.graded += len(z) * z.requires_grad
        self.plain += len(z) * (not z.requires_grad)
        return self.inner(z, sigma, label)


def gradient(model: nn.Module | Any, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Gradient of an attack's loss at ``x``."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(LOSSES[loss](model(point), y).sum(), point)[0]


whole = gradient(
    lambda p: ten_lines(exact, four, p, seed), x[:2], y[:2], "margin"
)
counter = Counting(exact)
two_pass = gradient(
    DiffusionClassifier(counter, four, seed=seed), x[:2], y[:2], "margin"
)
slope_error = float((whole - two_pass).norm() / whole.norm())
print(
    f"relative difference to autograd through everything below 1e-4: "
    f"{slope_error < 1e-4}"
)
print(
    f"2 images, 4 levels, 10 classes: {counter.plain} evaluations without "
    f"gradient, {counter.graded} with"
)

# %% tags=["remove-cell"]
assert difference < 1e-4
assert slope_error < 1e-4
assert (counter.plain, counter.graded) == (80, 16)


# %% [markdown]
# ## Noise: what has to be shared
#
# The decision depends on *differences* of losses between classes. Write the loss of class $k$ on one draw as
# $\ell_k(\varepsilon)$. Then
#
# ```{math}
# :label: eq-dc-variance
# \operatorname{Var}[\ell_j - \ell_y]
# = \operatorname{Var}[\ell_j] + \operatorname{Var}[\ell_y] - 2 \operatorname{Cov}[\ell_j, \ell_y] .
# ```
#
# With independent noise for each class the covariance is zero. With the same noise the two losses rise and fall together: both
# ask the network about the *same* noisy image, and most of the error has nothing to do with the class. These are common random
# numbers, as old as {term}`Monte Carlo` itself, and they cost nothing.
#
# The paper tries more draws, the same noise across classes and the same noise across levels. It reports that none of them
# improves accuracy or robustness (section 4.5). With `share_noise` on, the released evaluation shares the noise across
# classes. Its gradient path, which the attack uses, seeds once before the loop over classes, so that there each class sees other
# noise. The attack then climbs a noisier function than the one that judges it.
#
# We measure the standard deviation over seeds of the gap between the true class and the best other one.


# %% tags=["hide-input"]
def gaps(noise: str, repeats: int, **options: Any) -> Tensor:
    """Gap ``f_y - max f_j`` of the small set of images for several seeds,
    ``(seeds, N)``.
    """
    model = [
        DiffusionClassifier(
            denoiser, main, noise=noise, seed=seed + 1 + s, **options
        )
        for s in range(repeats)
    ]
    with torch.no_grad():
        return torch.stack(
            [-margin(m(images[:n_noise]), labels[:n_noise]) for m in model]
        ).cpu()


shared = gaps("shared", noise_seeds)
couplings = {
    "own noise for each class": (gaps("per_class", noise_seeds), 1),
    "shared by classes": (shared, 1),
    "shared by classes and levels": (
        gaps("shared", noise_seeds, share_levels=True),
        1,
    ),
    "shared by classes, antithetic pair": (
        gaps("antithetic", noise_seeds // 2, draws=2),
        2,
    ),
}
spread = {
    name: float(g.var(dim=0).mean().sqrt())
    for name, (g, _) in couplings.items()
}
print(
    f"{'coupling':36s} {'evaluations':>11s} {'std of gap':>10s} {'wrong':>8s}"
)
for name, (g, cost) in couplings.items():
    evaluations = cost * count * denoiser.num_classes
    print(
        f"{name:36s} {evaluations:11d} {spread[name]:7.2f} nats "
        f"{int((g < 0).sum()):3d}/{g.numel()}"
    )
factor = (spread["own noise for each class"] / spread["shared by classes"]) ** 2
print(
    f"two independent shared draws would have std "
    f"{spread['shared by classes'] / 2**0.5:.2f}"
)
print(f"variance of the gap, own noise over shared: {factor:.0f}")

# %% tags=["remove-cell"]
claim(factor > 2)
claim(spread["shared by classes and levels"] > spread["shared by classes"])
glue("dc-variance-factor", factor)

# %% mystnb={"figure": {"caption": "The gap between the true class and the best other class for several noise seeds (points), for each image. Below zero the verdict is wrong.", "name": "fig-dc-noise"}, "image": {"alt": "Gaps of a few images under four couplings of the noise; own noise for each class scatters most"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7, 3.6))
for i, (name, (g, _)) in enumerate(couplings.items()):
    for j in range(g.shape[1]):
        ax.plot(
            [j + 0.18 * (i - 1.5)] * len(g),
            g[:, j],
            "o",
            ms=4,
            color=f"C{i}",
            alpha=0.7,
            label=name if j == 0 else None,
        )
ax.axhline(0, color="0.4", lw=1)
ax.set(xlabel="image", ylabel="gap (nats)", xticks=range(n_noise))
legend_below(fig, columns=2)
plt.show()

# %% [markdown]
# At equal cost, own noise for each class multiplies the variance of the gap by {glue:text}`dc-variance-factor:.0f` here. To
# undo that with more draws one would need as many times more evaluations.
#
# Sharing across *levels* is another matter. The gap is a sum over levels, and sharing makes its terms correlated. There the
# covariances add up, and independent noise is the better choice.
#
# So the paper's "makes no difference" is true of the accuracy as long as gaps are much larger than their noise. It stops being
# true where gaps are small, and small gaps are what an attack produces.
#
# `noise="fresh"` is the shared noise with a new seed at every call. It makes the classifier random. {ref}`nb-classifier-attack` uses it, only to
# judge.
#
# ## What to remember
#
# - A {term}`diffusion classifier` is $-\sum_t w_t \norm{z - D}^2$ for each class: $T \cdot R \cdot K$ evaluations of the network an image.
# - Its exact gradient needs two passes and only the classes that the loss touches.
# - Share the noise across classes, always; do not share it across levels.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-dc-price
# :::
# **The price of an answer** (5 minutes, easy). A classifier has 16 levels, one draw and ten classes. How many evaluations of the network does one answer take? How many does PGD on the {term}`margin` take in 20 gradient steps, those with and those without gradient together?
#
# :::{hint}
# :class: dropdown
# The first pass has all classes, the second one two of them.
# :::

# %%
# your code here
answer_cost, attack_cost = None, None

# %%
# check
fine = (answer_cost, attack_cost) == (160, 3840)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-price
# :label: sol-dc-price
# :class: dropdown
# :::
# $T K$ for an answer, $T (K + 2)$ for a step. Without the second pass by class a step would take gradients of all $T K$.

# %%
answer_cost = 16 * 10
attack_cost = 20 * 16 * (10 + 2)
print(answer_cost, attack_cost)

# %% tags=["remove-cell"]
claim((counter.plain + counter.graded) / (2 * len(four)) == 10 + 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-dlr
# :::
# **Classes of the DLR loss** (10 minutes, medium). How many classes does the gradient of the DLR loss (`"dlr"`) need, for an image that is classified correctly, and for one whose label is the last of the ranking? Think first, then check with `Counting`.
#
# :::{hint}
# :class: dropdown
# Which logits enter the numerator, which the denominator? `counter.graded` counts levels times classes.
# :::

# %%
# your code here
classes_if_right, classes_if_last = None, None

# %%
# check
fine = (classes_if_right, classes_if_last) == (3, 3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-dlr
# :label: sol-dc-dlr
# :class: dropdown
# :::
# The numerator takes the true class and the best other one, the denominator the first and the third of the ranking. If the
# image is right, the true class is the first and the best other one the second: three classes. If it is wrong, the best other
# class is the first: the true class and the first and third of the ranking, hence three again, or two when the true class is
# third itself.

# %%
def classes_of_dlr(label: Tensor) -> int:
    """Classes in the gradient for the first image with this label."""
    watched = Counting(exact)
    model = DiffusionClassifier(watched, four, seed=seed)
    gradient(model, x[:1], label[None], "dlr")
    return watched.graded // len(four)


classes_if_right = classes_of_dlr(plain[0].argmax())
classes_if_last = classes_of_dlr(plain[0].argmin())
print(classes_if_right, classes_if_last)

# %% tags=["remove-cell"]
assert (classes_if_right, classes_if_last) == (3, 3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-common
# :::
# **What sharing saves** (5 minutes, easy). Let $\ell_j$ and $\ell_y$ have the same variance and the correlation $\rho$. By which factor does sharing divide the variance of their
# difference {eq}`eq-dc-variance`? What correlation belongs to the `factor` of the table above?
#
# :::{hint}
# :class: dropdown
# Own noise gives $2 \operatorname{Var}$.
# :::

# %%
# your code here
correlation = None

# %%
# check
fine = correlation is not None and abs(factor * (1 - correlation) - 1) < 0.03
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-common
# :label: sol-dc-common
# :class: dropdown
# :::
# Own noise gives $2 \operatorname{Var}$, shared noise $2 \operatorname{Var} (1 - \rho)$. The factor is $1 / (1 - \rho)$.

# %%
correlation = 1 - 1 / factor
print(f"correlation {correlation:.3f}")

# %% tags=["remove-cell"]
claim(0.5 < correlation < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The classifier, its theorem and its ablations: {cite:t}`chen2024rdc`. Zero-shot relatives: {cite:t}`li2023zeroshot` and
# {cite:t}`clark2023zeroshot`.
