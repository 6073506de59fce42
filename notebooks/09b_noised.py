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
# (nb-noised)=
# # Noised diffusion classifiers
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive the likelihood bound of a noisy image, and tell what {term}`EPNDC` estimates.
# - Say what the bound becomes for many levels, and why a classifier needs no bound.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-certification`, {ref}`nb-classifier` and {ref}`nb-multihead`. Covers the likelihood of noisy images in
# {cite:t}`chen2024ndc`.
#
# Smoothing certifies any base classifier that stands Gaussian noise. What does such a classifier see? The noise is not small. Below each
# noisy image (shown clipped) is the one-step estimate $\hat z = D(z_\tau, \tau)$, without a class, which is all that the classifier of
# {cite:t}`carlini2023certified` keeps of it.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
heads_name: str = "fashion-mini-multihead"  # its denoiser, all classes at once
sigmas: list[float] = [0.25, 0.5, 1.0]  # smoothing noise, image units
toy_sigma: float = 0.15  # smoothing noise for images of two pixels
gap_points: int = 27  # noisy images of two pixels for the gap of the bound
gap_counts: list[int] = [2, 4, 8, 16, 32, 64]  # numbers T of levels there

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.certify import APNDC, EPNDC
from rdc.certify.bridge import Steps, constant, noised_steps
from rdc.certify.grid import gaussian_grid
from rdc.data import load
from rdc.denoise import Denoiser, OptimalDenoiser
from rdc.denoise.base import fast_dtype, from_model, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import image_grid, style
from rdc.rng import generator, randn
from rdc.runs.statistics import Accuracy

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")
toy_x = torch.rand(
    9,
    1,
    1,
    2,
    generator=generator(seed, "certify", "toy 5"),
    dtype=torch.float64,
)
toy = OptimalDenoiser(toy_x, torch.arange(9) % 3)

# %% tags=["hide-input"]
heads = load_denoiser(heads_name, device=device, dtype=fast_dtype(device))
x_show, y_show, strips = test.x[:8].to(device), test.y[:8], []
noise_show = torch.stack(
    [
        randn(tuple(test.x.shape[1:]), seed, "certify", "show", i)
        for i in range(8)
    ]
).to(device)
right_of: dict[float, list[int]] = {}
for s in sigmas:
    noisy = x_show + s * noise_show
    two = EPNDC(heads, s, seed=seed), APNDC(heads, s, count=8, seed=seed)
    with torch.no_grad():
        level = torch.full((8,), 2 * s, device=device)
        estimate = from_model(heads(to_model(noisy), level))
        said = [model(noisy).argmax(dim=1).cpu() for model in two]
    strips += [noisy.clamp(0, 1), estimate.clamp(0, 1)]
    right_of[s] = [int((v == y_show).sum()) for v in said]

# %% mystnb={"figure": {"caption": "Test images with smoothing noise (first, third and fifth row, clipped for display) and their one-step estimates (below each), for rising noise.", "name": "fig-cert-images"}, "image": {"alt": "Noisy pictures of clothes in six rows; the estimates show the article at low noise and a blurred average at high noise", "width": "90%"}} tags=["hide-input"]
image_grid(torch.cat(strips).cpu().float(), columns=len(x_show), size=0.8)
plt.show()

# %% [markdown]
# (sec-cert-images)=
# ## What is still to be seen
#
# At the lowest noise the article is easy to tell; at the highest one the estimate is nearly an average of several. Two classifiers of this chapter,
# with the network behind the picture, on its eight images:

# %% tags=["hide-input"]
for s, (first, second) in right_of.items():
    print(f"sigma {s:4g}: EPNDC {first} of 8 right, APNDC {second}")

# %% [markdown]
# (sec-cert-noised)=
# ## The likelihood of a noisy image
#
# The {term}`diffusion classifier` of {ref}`nb-classifier` does not stand noise: it asks for the likelihood of a
# *clean* image, and a noisy one has none worth speaking of. {cite:t}`chen2024ndc` ask for the likelihood of the noisy image instead, which is what Bayes' rule
# needs:
#
# ```{math}
# :label: eq-cert-bayes
# p(y \mid z_\tau) \propto \pi_y\, p_\tau(z_\tau \mid y), \qquad z_\tau = z + \tau \varepsilon .
# ```
#
# ### The bound: a Brownian bridge
#
# Add more noise to the noisy image, $z_s = z_\tau + W_s$ with $W_s \sim \mathcal N(0, u_s^2 I)$ and $u_s^2 = s^2 - \tau^2$. Take levels
# $\tau = s_0 < s_1 < \dots < s_T$, and as model the chain {eq}`eq-chain` of {ref}`nb-diffusion`, which walks down with the {term}`denoiser`. Between neighbours
# $s < s'$ the process that made the levels is a Brownian bridge:
#
# ```{math}
# :label: eq-cert-bridge
# q(z_s \mid z_{s'}, z_\tau) = \mathcal N\Big( z_\tau + \frac{u_s^2}{u_{s'}^2} W_{s'},\; v_s I \Big), \qquad v_s = \frac{u_s^2 (s'^2 - s^2)}{u_{s'}^2} .
# ```
#
# :::{prf:proposition} The bound for a noisy image
# :label: prop-cert-bound
# With the *pseudo target* $\tilde z = z_\tau - \frac{\tau^2}{u_{s'}^2} W_{s'}$, and $\hat v_s$ the variance of the model's step,
#
# $$
# \log p(z_\tau \mid y) \ge C - \sum_{t} w_t\, \E \norm{D(z_{s'}, s', y) - \tilde z}^2, \qquad
# w_t = \frac{(s'^2 - s^2)^2}{2\, s'^4\, \hat v_s},
# $$
#
# where $p$ is the density of the chain. If $p(z_T)$ is the same for all classes, as $\mathcal N(0, s_T^2 I)$ is, $C$ does not depend on $y$. Moreover $\E[\tilde z \mid z_{s'}] = \E[z \mid z_{s'}]$.
# :::
#
# :::{prf:proof}
# As in {prf:ref}`thm-chain`, with everything conditioned on $z_\tau$ in the place of $z$, the bound is a sum of divergences of two Gaussians. A divergence is
# $\norm{\mu_q - \mu_p}^2 / (2 \hat v_s)$ plus a term of the variances alone. The chain's mean is
# $\mu_p = \big( (s'^2 - s^2) D + s^2 (z_\tau + W_{s'}) \big) / s'^2$, so
#
# $$
# \mu_q - \mu_p = \frac{s'^2 - s^2}{s'^2} (z_\tau - D) + \Big( \frac{u_s^2}{u_{s'}^2} - \frac{s^2}{s'^2} \Big) W_{s'}
# = \frac{s'^2 - s^2}{s'^2} \big( \tilde z - D \big),
# $$
#
# because $\frac{u_s^2}{u_{s'}^2} - \frac{s^2}{s'^2} = - \frac{\tau^2 (s'^2 - s^2)}{u_{s'}^2 s'^2}$. In the first step, $s = \tau$, the bridge has no variance;
# there the term is $\log p(z_\tau \mid z_{s'})$, and the same algebra holds. The last claim: $W_{s'}$ and $z_\tau$ given $z_{s'}$ and $z$ split the noise by
# variance, $\E[W_{s'} \mid z_{s'}, z] = \frac{u_{s'}^2}{s'^2} (z_{s'} - z)$, and $z_\tau = z_{s'} - W_{s'}$.
# :::
#
# What is left to choose is $\hat v_s$, and the grid. {py:mod}`rdc.certify.bridge` has four forms:
#
# :::{table} Four forms of the bound, and their weights
#
# | form | step variance $\hat v_s$ | weight |
# |---|---|---|
# | `fixed` | $s^2 (s'^2 - s^2) / s'^2$, that of the clean chain | $\frac12 (s^{-2} - s'^{-2})$, as for clean images |
# | `specific` | $v_s$, that of the bridge; $u_{s'}^2$ in the first step | $\frac12 (s'^2 - s^2) (u_{s'} / u_s)^2 s'^{-4}$ |
# | `quadrature` | no chain: Gauss-Legendre nodes in $1/s$ for the limit below, and its tail | of $s^{-3} ds$ |
# | `released` | as `specific`, times $\rho(s)\, s'^2 (s + s') / 2$; equal steps up to 3, the first five left out | of the EDM density $\rho$ |
#
# :::
#
# ### The limit: Bayes' rule, exactly
#
# :::{prf:theorem} In the limit, the bound is the likelihood
# :label: thm-cert-limit
# For the {term}`optimal denoiser` and up to a constant without $y$,
#
# $$
# \log p_\tau(z_\tau \mid y) = C - \int_\tau^{\infty} \E \norm{D(z_s, s, y) - \tilde z}^2\, \frac{ds}{s^3} .
# $$
#
# (The integral of the part that all classes share diverges at $\tau$; differences of classes converge.)
# :::
#
# :::{prf:proof}
# $p_\tau(\cdot \mid y)$ is itself a smooth density. Apply {prf:ref}`thm-identity`, or {eq}`eq-loglik`, to *it*, with noise $u$ and its own denoiser
# {eq}`eq-tau-denoiser`, $h_\tau = \E[z_\tau \mid z_s] = (u^2 D + \tau^2 z_s) / s^2$. The loss is
# $\norm{h_\tau - z_\tau}^2 = \frac{u^4}{s^4} \norm{D - \tilde z}^2$, and $u^{-3} du \cdot u^4 / s^4 = s^{-3} ds$, since $u\, du = s\, ds$.
# :::
#
# For clean images the identity was about an average of $\log p$ over noise. Here it is $\log p_\tau$ itself: EPNDC with a perfect model and exact integrals
# *is* Bayes' rule.
#
# ### Ten lines


# %%
def ten_lines(
    denoiser: Denoiser, x: Tensor, sigma: float, count: int = 8
) -> Tensor:
    """EPNDC by quadrature with mirror images; relative logits ``(N, K)``."""
    z, tau, logits = to_model(x), 2 * sigma, 0.0
    nodes = noised_steps(tau, count, "quadrature").levels
    pairs = zip(nodes.sigma.tolist(), nodes.weight.tolist(), strict=True)
    for t, (s, w) in enumerate(pairs):
        u = math.sqrt(s**2 - tau**2)
        eps = randn(denoiser.shape, seed, 0, t, 0, 0, like=x)
        for sign in (1, -1):
            gap = denoiser.all_classes(z + sign * u * eps, s) - z[:, None]
            loss = gap * (gap + 2 * sign * tau**2 / u * eps)
            logits = logits - w / 2 * loss.flatten(2).sum(dim=2)
    return logits


noisy_toy = randn(toy_x.shape, seed, "certify", "noisy toy", like=toy_x)
noisy_toy = toy_x + toy_sigma * noisy_toy
apart = ten_lines(toy, noisy_toy, toy_sigma) - EPNDC(toy, toy_sigma)(noisy_toy)
agreement = float(apart.abs().max())
# NBVAL_CHECK_OUTPUT
print(f"difference to rdc.certify.EPNDC below 1e-9: {agreement < 1e-9}")

# %% [markdown]
# With $g = D - z_\tau$ the square is $\norm{g}^2 - 2 g \cdot (\tilde z - z_\tau)$ plus $\norm{\tilde z - z_\tau}^2$. The last term is the same for all classes,
# and huge near $\tau$. It is left out.
#
# ### The gap of a finite grid
#
# Two pixels again, where expectations over the noise are sums on a grid. Nothing is random but the noisy images. We compare each form with the exact
# $\log p_\tau(z_\tau \mid y)$, as a bound and as a classifier.


# %% tags=["hide-input"]
def expected_losses(model: OptimalDenoiser, z: Tensor, steps: Steps) -> Tensor:
    """Losses with exact expectations, less what classes share."""
    eps, chance = (v.to(z) for v in gaussian_grid())
    total = torch.zeros(
        len(z), model.num_classes, dtype=torch.float64, device=z.device
    )
    for s, u, w in zip(
        steps.levels.sigma.tolist(),
        steps.spread.tolist(),
        steps.levels.weight.tolist(),
        strict=True,
    ):
        gap = (
            model.all_classes(
                (z[:, None] + u * eps).flatten(0, 1), s
            ).unflatten(0, (len(z), -1))
            - z[:, None, None]
        )
        value = (
            (gap * (gap + 2 * steps.tau**2 / u * eps[:, None]))
            .flatten(3)
            .sum(dim=3)
        )  # (N, nodes, K)
        total += w * torch.einsum("ngk,g->nk", value, chance)
    return total


tau = 2 * toy_sigma
own = torch.arange(gap_points) % 3
z_noisy = to_model(toy_x[torch.arange(gap_points) % 9])
z_noisy = z_noisy + tau * randn(
    tuple(z_noisy.shape), seed, "certify", "gap", like=z_noisy
)
log_p = toy.log_density(z_noisy, tau)
top = log_p.topk(2, dim=1).indices
square = z_noisy.flatten(1).square().sum(dim=1)
bound_gap: dict[str, list[float]] = {}
odds_error: dict[str, list[float]] = {}
for form in ("fixed", "specific", "quadrature"):
    for count in [
        c for c in gap_counts if c <= (16 if form == "quadrature" else 10**6)
    ]:
        steps = noised_steps(tau, count, form)
        loss = expected_losses(toy, z_noisy, steps)
        gap = (
            log_p - (constant(steps, form, square, 2)[:, None] - loss)
        ).gather(1, own[:, None])
        bound_gap.setdefault(form, []).append(float(gap.mean()))
        found, true = (a.gather(1, top).diff(dim=1) for a in (-loss, log_p))
        odds_error.setdefault(form, []).append(
            float((found - true).square().mean().sqrt())
        )
for name, values in (
    ("mean log p - bound", bound_gap),
    ("error of log odds", odds_error),
):
    print(f"{name:20s} T =" + "".join(f"{c:9d}" for c in gap_counts))
    for form, v in values.items():
        print(f"    {form:19s}" + "".join(f"{x:9.4f}" for x in v))
coded = expected_losses(
    toy, z_noisy, noised_steps(tau, 124, "released", "edm-released")
)
same_released = Accuracy.of(
    int((coded.argmin(1) == log_p.argmax(1)).sum()), gap_points
)
print("released form, 124 levels, exact expectations: decides as")
print(f"    Bayes' rule for {same_released}")
glue("cert-released-toy", f"{same_released.correct} of {gap_points}")

# %% mystnb={"figure": {"caption": "EPNDC with exact expectations on images of two pixels, by the number of levels T. Left: by how much the bound lies below the exact log-likelihood of the own class, mean over noisy images (quadrature is no bound: absolute value). Right: root mean square error of the log odds of the two most likely classes.", "name": "fig-cert-gap"}, "image": {"alt": "Falling lines on logarithmic axes; fixed and specific fall like one over T, quadrature much faster"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3))
for ax, values, label in zip(
    axes,
    (bound_gap, odds_error),
    ("gap of the bound (nats)", "error of log odds (nats)"),
    strict=True,
):
    for (form, v), mark in zip(values.items(), "os^", strict=True):
        ax.plot(gap_counts[: len(v)], np.abs(v), marker=mark, label=form)
    guide = np.array([gap_counts[0], gap_counts[-1]], dtype=float)
    ax.plot(
        guide,
        0.7 * values["fixed"][0] * guide[0] / guide,
        ":",
        color="0.4",
        lw=1,
        label="slope -1",
    )
    ax.set(xscale="log", yscale="log", xlabel="levels $T$", ylabel=label)
    ax.set_xticks(gap_counts, [str(c) for c in gap_counts])
    ax.minorticks_off()
axes[0].legend()
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
assert agreement < 1e-9
claim(
    min(bound_gap["fixed"] + bound_gap["specific"]) > 0, "a bound, on average"
)
claim(1.6 < bound_gap["fixed"][-2] / bound_gap["fixed"][-1] < 2.4, "like 1 / T")
claim(odds_error["quadrature"][2] < 0.2 * odds_error["fixed"][2])
glue(
    "cert-quadrature",
    f"{odds_error['fixed'][2] / odds_error['quadrature'][2]:.0f}",
)

# %% [markdown]
# - Both chains bound the log-likelihood from below on average over noisy images (at a single one the bound, which is for the chain, can exceed it), and the gap
#   falls like $1/T$. The `fixed` chain, which knows nothing of $\tau$, is the better one at equal
#   $T$.
# - The gap is not the same for all classes, so it moves decisions. For a *classifier* no bound is needed: at eight levels the quadrature has an error that is
#   {glue:text}`cert-quadrature` times smaller. That is why few levels can replace 124.
# - The released form is no bound: it re-weights, starts five steps late, and ends at 3. Its decisions are another matter: here they are those of Bayes' rule
#   for {glue:text}`cert-released-toy` images.
#
# The bound lay below the exact log-likelihood at every number of levels; the claim of the paper is {claim}`B2`. What is left is the noise of
# the expectations, which {ref}`nb-noised-inner` looks at.
#
#
# ## What to remember
#
# - The bound of a noisy image is a denoising loss with a pseudo target.
# - In the limit, with the {term}`optimal denoiser`, it is Bayes' rule itself, for every single noisy image.
# - For a classifier a quadrature beats a bound.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-bridge
# :::
# **Where the bridge stands** (5 minutes, easy). One pixel, $\tau = 0.5$ and levels $\tau < s = 1 < s' = 2$. The noisy image is $z_\tau = 0.3$ and
# $z_{s'} = 2.3$. Which mean and which variance does $z_s$ have, by {eq}`eq-cert-bridge`? And which value has the pseudo target $\tilde z$?
#
# :::{hint}
# :class: dropdown
# $u_s^2 = s^2 - \tau^2$, and $W_{s'} = z_{s'} - z_\tau$.
# :::

# %%
# your code here
mean, variance, pseudo_target = None, None, None

# %%
# check
fine = close_to((mean, variance), (0.7, 0.6), within=1e-6)
fine = fine and close_to(pseudo_target, 0.3 - 0.5 / 3.75, within=4e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-bridge
# :label: sol-cert-bridge
# :class: dropdown
# :::
# A Brownian bridge between the two: a fifth of the way by variance. The pseudo target lies on the *other* side of $z_\tau$ than $z_{s'}$. It undoes the
# part of the smoothing noise that the later noise says something about.

# %%
tau, s, s_next = 0.5, 1.0, 2.0
u, u_next = s**2 - tau**2, s_next**2 - tau**2  # squares
mean = 0.3 + u / u_next * (2.3 - 0.3)
variance = u * (s_next**2 - s**2) / u_next
pseudo_target = 0.3 - tau**2 / u_next * (2.3 - 0.3)
print(f"{mean:.2f}, {variance:.2f}, {pseudo_target:.4f}")

# %% tags=["remove-cell"]
claim(abs(mean - 0.7) < 1e-9 and pseudo_target < 0.3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-error
# :::
# **An error that matters** (10 minutes, medium). `odds_error["fixed"]` is the error of the log odds for the numbers of levels in `gap_counts`. If it falls like $c / T$,
# which $c$ fits its last entry, and how many levels make the error $0.01$? How many does the quadrature need for that?
#
# :::{hint}
# :class: dropdown
# `odds_error["quadrature"]` goes with the first entries of `gap_counts`.
# :::

# %%
# your code here
levels_fixed, levels_quadrature = None, None

# %%
# check
c = odds_error["fixed"][-1] * gap_counts[-1]
good = [e < 0.01 for e in odds_error["quadrature"]]
fine = None not in (levels_fixed, levels_quadrature)
fine = fine and abs(levels_fixed - c / 0.01) <= 1
fine = fine and levels_quadrature == gap_counts[good.index(True)]
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-error
# :label: sol-cert-error
# :class: dropdown
# :::
# A chain needs more than a hundred levels, which is about what the released code has. The quadrature needs a few: it is made for the integral of
# {prf:ref}`thm-cert-limit`, and the integrand is smooth.

# %%
c = odds_error["fixed"][-1] * gap_counts[-1]
levels_fixed = math.ceil(c / 0.01)
pairs = zip(gap_counts, odds_error["quadrature"], strict=False)
levels_quadrature = next(t for t, error in pairs if error < 0.01)
print(f"fixed {levels_fixed}, quadrature {levels_quadrature}")

# %% tags=["remove-cell"]
claim(levels_fixed > 10 * levels_quadrature)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-level
# :::
# **The wrong level** (10 minutes, medium). Two classes have one image each, $+1$ and $-1$, and noise $\tau = 0.5$ is
# added. An exact classifier believes that the noise is $t = 1$. How often is it right, and how sure is it on average
# (its posterior of the class that it names)? Compare with $t = \tau$.
#
# :::{hint}
# :class: dropdown
# The log-odds are $2 z / t^2$, so the class depends on the sign of $z$ alone. The mean is a sum over a fine grid of
# $z$, or over many draws.
# :::

# %%
# your code here
right, sure = None, None  # shares between 0 and 1

# %%
# check
eps = torch.randn(400_000, generator=generator(seed, "level")).double()
z = 1 + 0.5 * eps
known = float((z > 0).double().mean()), float((2 * z.abs()).sigmoid().mean())
fine = None not in (right, sure)
fine = fine and abs(right - known[0]) < 5e-3 and abs(sure - known[1]) < 5e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-level
# :label: sol-cert-level
# :class: dropdown
# :::
# Right with probability $\Phi(1 / \tau)$, whatever it believes. Its confidence is calibrated only for $t = \tau$, where
# both are the same number. With two classes a wrong level costs calibration, no accuracy; with many images a class it
# costs both.

# %%
grid = torch.linspace(-4, 6, 20_001).double()
density = (-((grid - 1) ** 2) / (2 * 0.5**2)).exp()
density = density / density.sum()
right = float(density[grid > 0].sum())
for t in (0.5, 1.0):
    sure = float((density * (2 * grid.abs() / t**2).sigmoid()).sum())
    print(f"t = {t}: right {right:.3f}, sure {sure:.3f}")

# %% tags=["remove-cell"]
claim(sure < right)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Noised diffusion classifiers: {cite:t}`chen2024ndc`; denoise, then classify: {cite:t}`salman2020denoised` and {cite:t}`carlini2023certified`. The identity behind
# the limit: {cite:t}`guo2005immse` and {cite:t}`kong2023information`. The images are those of {cite:t}`xiao2017fashion`.
