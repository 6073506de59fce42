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
# (nb-diffusion-likelihood)=
# # A likelihood from losses
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive the likelihood bound of a diffusion chain.
# - Prove that in the limit it is an identity, and check it without any randomness.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-diffusion`. Covers appendix A.3 of {cite:t}`chen2024rdc`: the bound behind their
# Theorem 3.1.

# %% tags=["parameters"]
seed: int = 0  # owner of every random number
nodes: int = 128  # quadrature nodes per axis in the toy

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.certify.grid import averages, gaussian_grid, legendre
from rdc.denoise import OptimalDenoiser
from rdc.notebook import check_parameters, close_to, glue
from rdc.plots import style
from rdc.rng import generator
from rdc.schedule import vp_alphas, vp_weights

check_parameters()
style()

# %% [markdown]
# **Why is a sum of denoising losses a likelihood?** A chain of denoising steps has a likelihood, a bound on it is a weighted sum of losses, and with more and more levels the bound becomes an identity.

# %% tags=["hide-input"]
corners = torch.rand(
    8, 1, 1, 2, generator=generator(seed, "toy"), dtype=torch.float64
)
toy_labels = torch.arange(8) % 2
toy = OptimalDenoiser(corners, toy_labels)

# %% tags=["hide-input"]
low, high = 0.25, 20.0
spot = torch.tensor(
    [[[0.3, -0.4]]], dtype=torch.float64
)  # any point will do; this one is no data point
print("levels   J(low) from the integral    error (nats), class 0 and 1")
truth, ceiling = (averages(toy, spot, s, nodes)[0] for s in (low, high))
errors = {}
for count in (4, 8, 16, 32, 64):
    sigma, weight = legendre(low, high, count)
    area = sum(
        w * averages(toy, spot, s, nodes)[1] / s**3
        for s, w in zip(sigma, weight, strict=True)
    )
    estimate = ceiling + 2 * math.log(high / low) - area
    errors[count] = (estimate - truth).abs()
    print(
        f"{count:6}   {float(estimate[0]):22.8f}    "
        + "  ".join(f"{e:.0e}" for e in errors[count].tolist())
    )

# %% mystnb={"figure": {"caption": "How far the weighted sum of losses of the optimal denoiser is from the log-likelihood, against the number of noise levels (Gauss-Legendre rule, eight points in the plane, larger of two classes).", "name": "fig-diffusion-identity"}, "image": {"alt": "A curve that falls from above one to below a millionth of a nat", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 3.2))
ax.loglog(list(errors), [float(e.max()) for e in errors.values()], "o-")
ax.set(xlabel="noise levels in the sum", ylabel="error (nats)")
ax.set_xticks(list(errors), [str(n) for n in errors])
ax.minorticks_off()
plt.show()

# %% [markdown]
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
# The *model chain* walks back without knowing $z$. It puts the {term}`denoiser` in its place:
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
# Then only the sum depends on the label: $-\sum_t w_t \E \norm{D - z}^2$ is the logit of a {term}`diffusion classifier`, and the rest cancels in a softmax.
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
# Let the images of class $y$ be bounded, or bounded plus independent Gaussian noise, and $D$ their posterior mean. Then for *every* point $z$ and every $\sigma > 0$
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
# For such images all terms grow at most like a polynomial in $\varepsilon$, which justifies exchanging derivative and expectation.
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
# The second term of the integrand has no label in it. So *for the {term}`optimal denoiser`, integrated losses are log-likelihoods, exactly*.
#
# ### The laboratory
#
# A theorem should survive an experiment. We take eight points in the plane, four of each of two classes, and write them as images of one by two pixels.
# In two dimensions the noise can be replaced by a grid: the trapezoid rule converges exponentially fast for smooth functions that vanish at both ends.
# Nothing is random here.

# %%
area = sum(
    w * averages(toy, spot, s, nodes)[1] / s**3
    for s, w in zip(*legendre(low, high, 64), strict=True)
)
by_losses = ceiling + 2 * math.log(high / low) - area
print("J(low):         ", [round(v, 6) for v in truth.tolist()])
print("from the losses:", [round(v, 6) for v in by_losses.tolist()])

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
    eps, w = (v.to(z) for v in gaussian_grid(count, 7.0))
    noisy, s = z + u * eps, math.hypot(tau, u)
    mean = (u**2 * toy.all_classes(noisy, s) + tau**2 * noisy[:, None]) / s**2
    return w @ (mean - z).square().flatten(2).sum(dim=2)


log_u = torch.arange(
    -12, 12.001, 0.125, dtype=torch.float64
)  # the trapezoid rule on the whole line converges fast
exact_log_p = toy.log_density(spot[None], tau)[0]
print(
    "nodes per axis   error of the integral against log p (nats), class 0 and 1"
)
smooth_errors = {}
for count in (8, 16, 32, 64):
    integrand = [
        smooth_loss(spot, math.exp(v), count) / math.exp(2 * v)
        - 2 / (1 + math.exp(2 * v))
        for v in log_u.tolist()
    ]
    estimate = -math.log(2 * math.pi * math.e) - 0.125 * torch.stack(
        integrand
    ).sum(dim=0)
    smooth_errors[count] = (estimate - exact_log_p).abs()
    print(
        f"{count:14}   "
        + "  ".join(f"{e:.0e}" for e in smooth_errors[count].tolist())
    )

# %% tags=["remove-cell"]
assert errors[64].max() < 1e-6 and errors[64].max() < 1e-3 * errors[4].max()
assert (
    smooth_errors[64].max() < 1e-6
    and smooth_errors[64].max() < 1e-3 * smooth_errors[8].max()
)
glue("diffusion-identity", f"{float(errors[64].max()):.0e}")
glue("diffusion-loglik", f"{float(smooth_errors[64].max()):.0e}")

# %% [markdown]
# The errors fall to {glue:text}`diffusion-identity` and {glue:text}`diffusion-loglik` nats. The losses of a denoiser, added up, *are* the log-likelihood.
#
# ## What to remember
#
# - A chain of denoising steps has a likelihood bound, with weight $\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2})$ on the loss at the right end.
# - In the limit, for the optimal denoiser, the bound is an identity at every point.
# - Only the losses depend on the label: minus their weighted sum is the logit of a diffusion classifier.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-diffusion-gaussian
# :::
# **A class that is a Gaussian** (10 minutes, medium). Let the images of a class be normal numbers with mean 0 and variance 1. What is the best denoiser, and what is its loss $m(\sigma)$ at $z = 0$? Put it into {eq}`eq-loglik`. Does the density come out? Give $m(2)$ and $\log p(0)$.
#
# :::{hint}
# :class: dropdown
# $\E[z \mid z_\sigma] = z_\sigma / (1 + \sigma^2)$. Then substitute $v = 1 + \sigma^2$.
# :::

# %%
# your code here
loss_at_two, log_density = None, None

# %%
# check
fine = close_to((loss_at_two, log_density), (0.16, -0.9189), 2e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-gaussian
# :label: sol-diffusion-gaussian
# :class: dropdown
# :::
# $m(\sigma) = \E (\sigma \varepsilon)^2 / (1 + \sigma^2)^2 = \sigma^2 / (1 + \sigma^2)^2$. The integrand is
# $\frac{1}{\sigma (1 + \sigma^2)^2} - \frac{1}{\sigma (1 + \sigma^2)} = -\frac{\sigma}{(1 + \sigma^2)^2}$, with integral $-\tfrac12$. So
# $\log p(0) = -\tfrac12 \log(2 \pi e) + \tfrac12 = -\tfrac12 \log 2 \pi$, as it should be.

# %%
loss_at_two = 2**2 / (1 + 2**2) ** 2
steps = torch.arange(-12, 12.001, 0.125, dtype=torch.float64).exp()
area_of = 0.125 * float((-((steps / (1 + steps**2)) ** 2)).sum())
log_density = -0.5 * math.log(2 * math.pi * math.e) - area_of
print(f"{loss_at_two:.2f}, {log_density:.4f}")

# %% tags=["remove-cell"]
assert abs(log_density + 0.5 * math.log(2 * math.pi)) < 1e-6

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-vp
# :::
# **The weight of a VP chain** (15 minutes, medium). Write the weight of {prf:ref}`thm-chain` for noise prediction, in terms of $\alpha_t$, for the step between $t - 1$ and $t$. Compute it for $t = 2, \dots, 1000$ of the schedule `vp_alphas()`.
# Which of `vp_weights(alpha, "derived")` and `"printed"` (Eq. 4 of the paper) is it?
#
# :::{hint}
# :class: dropdown
# Use the signal-to-noise ratio $\gamma_t = \alpha_t / (1 - \alpha_t)$. The first weight of `vp_weights` is a convention: leave it out.
# :::

# %%
# your code here
ours = None  # 999 numbers

# %%
# check
derived = vp_weights(vp_alphas(), "derived")[1:]
fine = close_to(ours, derived, within=1e-3 * derived)
print("right" if fine else "not yet")

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
for kind in ("derived", "printed"):
    over = vp_weights(alphas, kind)[1:] / ours
    print(f"{kind} / ours: {float(over.min()):.6f} to {float(over.max()):.6f}")

# %% tags=["remove-cell"]
assert torch.allclose(vp_weights(alphas, "derived")[1:], ours)

# %% [markdown]
# The derived weight is the chain's. The printed one has $\sqrt{1 - \alpha_t}$ (the paper's $\sigma_t$) where $\beta_t^2$ should stand, with
# $\beta_t = 1 - \alpha_t / \alpha_{t-1}$, so the two differ by a factor that changes with $t$:
# not a constant that a classifier could ignore.
#
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-learned
# :::
# **A learned denoiser** (15 minutes, hard). Let $D_\theta$ be any {term}`denoiser`, with losses $m_\theta$. By how much does its continuous bound fall short of $J(\sigma_0)$?
# Show that the shortfall, averaged over the data, is not negative. Compute it for a denoiser that always answers `spot`, at the point `spot`, from `low` to `high`, for both classes.
#
# :::{hint}
# :class: dropdown
# Compare {prf:ref}`thm-identity` for $m$ with the bound for $m_\theta$. `truth` and `ceiling` are $J$ at both ends.
# :::

# %%
# your code here
shortfall = None  # two numbers, in nats

# %%
# check
wanted = truth - ceiling - 2 * math.log(high / low)
fine = close_to(shortfall, wanted, within=5e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-learned
# :label: sol-diffusion-learned
# :class: dropdown
# :::
# By {prf:ref}`thm-identity` the shortfall is $\int \sigma^{-3} (m_\theta - m)\, d\sigma$, with $m$ the loss of the posterior mean. Averaged over $z$ of class $y$, and at every $\sigma$,
# $m_\theta \ge m$ by {prf:ref}`prop-posterior-mean`.
#
# At a single point it can be negative. A constant answer $z$ has the loss zero at that $z$, so it rates this one image above all bounds, and pays for it elsewhere.
# The exact bound holds for the *chain* of $D_\theta$, which produces that image and nothing else.

# %%
shortfall = -area
print([round(v, 4) for v in shortfall.tolist()])

# %% tags=["remove-cell"]
assert (shortfall < 0).all()

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The likelihood in terms of the signal-to-noise ratio: {cite:t}`kingma2021vdm`. Information and estimation: {cite:t}`guo2005immse`, {cite:t}`kong2023information`. The bound:
# {cite:t}`ho2020ddpm` and {cite:t}`chen2024rdc`.
