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
# (nb-certification)=
# # Certification
#
# :::{admonition} What you will be able to do
# :class: tip
# - Prove the radius of randomized smoothing, turn counts into a radius, and say what a number of draws can certify at most.
# - Stop early without losing the guarantee, and show why peeking loses it.
# - Derive the likelihood bound of a noisy image, and tell what EPNDC and the variants of APNDC estimate.
# - Count the network evaluations of a certificate, and say which idea saves which factor.
# - Bound the slope of a diffusion classifier without knowing its network, and say why the radius from it is small.
# - Judge the claims on certified robustness from measured numbers.
# :::
#
# **Time** 80 minutes · **Needs** {ref}`nb-diffusion`, {ref}`nb-optimal`, {ref}`nb-classifier` and {ref}`nb-multihead`. Covers the method and the certification
# experiments of {cite:t}`chen2024ndc`: the Lipschitz bound, the noised diffusion classifiers, shared noise, and sift-and-refine.
#
# The numbers on this page come from few images and small models, so that the page runs in minutes. Larger runs are read from `results/certificates.json`, where
# they exist.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set
heads_name: str = "fashion-mini-multihead"  # the denoiser of the certificate on this page: all classes in one pass
record_file: str = "results/certificates.json"  # the larger runs
alpha: float = 0.001  # probability that a certificate is wrong
sigmas: list[float] = [0.25, 0.5, 1.0]  # smoothing noise, image units
radii: list[str | float] = [0.25, 0.5, 0.75, 1.0]  # radii asked about, image units
toy_sigma: float = 0.15  # smoothing noise for images of two pixels
toy_alpha: float = 0.05  # alpha there, so that errors can be seen
toy_n: int = 300  # draws of each certificate there
toy_runs: int = 1000  # repetitions of each certificate
peek_runs: int = 2000  # runs of counts that are looked at again and again
peek_n: int = 2000  # draws of each
plan_n: int = 10_000  # largest number of draws with early stopping
plan_runs: int = 300  # runs of counts behind its mean
gap_points: int = 27  # noisy images of two pixels for the gap of the bound
gap_counts: list[int] = [2, 4, 8, 16, 32, 64]  # numbers T of levels there
n_images: int = 500  # images of the digits behind the optimal denoiser
n_digits: int = 200  # noisy digits for the variants
n_noise: int = 40  # noisy digits for the study of noise
n_sift: int = 80  # images that are sifted
n_race: int = 150  # noisy digits of the race, and as many to learn from
many_classes: int = 1000  # classes of the simulation
n_slopes: int = 16  # random data sets whose slopes are climbed
live_n0: int = 20  # draws that choose the class, for the certificate on this page
live_n: int = 250  # draws that bound its probability

# %%
import itertools
import math
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from scipy.special import betainc, ndtr
from scipy.stats import binom, binomtest, norm
from torch import Tensor, nn

from rdc.certify import APNDC, EPNDC, certify, clopper_pearson, empirical_slope, lipschitz_constant
from rdc.certify.bridge import Steps, constant, noised_steps
from rdc.certify.clopper_pearson import radius, radius_from_counts, reach
from rdc.certify.confidence_sequence import Plan, log_mixture, sequence_lower, split_alpha
from rdc.certify.lipschitz import certified_radius
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import Denoiser, OptimalDenoiser
from rdc.denoise.base import fast_dtype, from_model, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.early_exit import Leader, Paired, Threshold, learn_rounds
from rdc.early_exit.sift import Sifted, Table, calibrate, released, sift_table
from rdc.evaluate import Accuracy
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import image_grid, style
from rdc.rng import generator, randn
from rdc.runs.reading import Reading, accuracy_of, fields
from rdc.schedule import Levels, levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")
classes = len(test.classes)

# %% tags=["hide-input"]
Row = dict[str, Any]
reading = Reading.of(record_file, "tools/certificates.py")
part, show, acc = reading.part, reading.show, accuracy_of
print(reading.provenance())

# %% [markdown]
# ## What a certificate says
#
# An attack that fails proves nothing about the next attack. A certificate does: *no* image within the L2 distance $R(x)$ of $x$ gets another answer, whoever
# looks for it.
#
# The answer is that of a *smoothed* classifier. A base classifier $f$ takes noisy images, and
#
# ```{math}
# :label: eq-cert-smoothed
# g(x) = \arg\max_c\, P\big( f(x + \sigma \delta) = c \big), \qquad \delta \sim \mathcal N(0, I) .
# ```
#
# So what is certified is $g$, not $f$, and whoever uses $g$ has to sample as well ({py:func}`rdc.certify.smoothing.predict`).
#
# **Units.** In this chapter, as in the package, $\sigma$ is the smoothing noise and $R$ a radius on images in $[0, 1]$. A denoiser works on $z = 2x - 1$ and
# sees noise of level $\tau = 2 \sigma$. Levels beyond, always in the units of the denoiser, are $s \ge \tau$. Noisy images are *not* clipped: the proof needs
# Gaussian noise.
#
# | | image units | model units |
# |---|---|---|
# | smoothing noise | $\sigma$ | $\tau = 2 \sigma$ |
# | radius | $R$ | $2R$ |
#
# **Chance.** Probabilities are estimated from draws, so a certificate can be wrong. The promise is
#
# ```{math}
# :label: eq-cert-promise
# P\big( R(x) > R^*(x) \big) \le \alpha \qquad \text{for every image } x ,
# ```
#
# with $R^*$ the true radius, and the probability over the draws of the run that made the certificate. Among $N$ images up to $\alpha N$ false certificates are
# expected at worst. A statement about all of them at once takes $\alpha / N$, which costs little, since only $\log \alpha$ enters.
#
# ## Randomized smoothing
#
# :::{prf:theorem} Radius of a smoothed classifier (Cohen et al., Theorem 1)
# :label: thm-cert-cohen
# If $P(f(x + \sigma \delta) = c) \ge p > \frac12$, then $g(x + \rho) = c$ for all $\norm{\rho} < R = \sigma\, \Phi^{-1}(p)$. No larger radius follows from $p$
# alone.
# :::
#
# :::{prf:proof}
# Let $A$ be the set of noisy images that $f$ calls $c$. Write $P$ for the law of $x + \sigma \delta$ and $Q$ for that of $x + \rho + \sigma \delta$. Their
# ratio at $x + \sigma \delta$ is
#
# $$
# \frac{dQ}{dP} = \exp\Big( \frac{\rho \cdot \delta}{\sigma} - \frac{\norm{\rho}^2}{2 \sigma^2} \Big),
# $$
#
# which grows with $\rho \cdot \delta$. Take the half-space $H = \{ \rho \cdot \delta \le \norm{\rho}\, \Phi^{-1}(p) \}$, so that $P(H) = p$, and let $\ell$ be
# the ratio on its border. Outside $H$ the ratio is at least $\ell$, inside at most $\ell$. In both cases $(1_A - 1_H) \big( \frac{dQ}{dP} - \ell \big) \ge 0$.
# Hence
#
# $$
# Q(A) - Q(H) = \int (1_A - 1_H)\, \frac{dQ}{dP}\, dP \ge \ell\, \big( P(A) - P(H) \big) \ge 0 .
# $$
#
# That is the lemma of Neyman and Pearson. And $Q(H) = \Phi\big( \Phi^{-1}(p) - \norm{\rho} / \sigma \big) > \frac12$ exactly if $\norm{\rho} < R$. If $f$ *is*
# the half-space $H$, there is equality throughout: the radius is the best possible.
# :::
#
# The proof never used that $A$ is a set. For a random base classifier, put the probability of answering $c$ in the place of $1_A$. So a diffusion classifier
# with fresh noise may be smoothed too, as long as draws are independent.
#
# ### A laboratory with two pixels
#
# Nine images of two pixels, three of each class. The base classifier is Bayes' rule for the noisy image, from the exact density of {ref}`nb-optimal`. Its class
# probabilities under noise are two integrals on a grid, so we know the smoothed classifier and its true radius.


# %%
class Bayes(nn.Module):
    """The best classifier of noisy images: log p_tau(z_tau | y) of a finite data set with equally many images a class."""

    def __init__(self, known: OptimalDenoiser, sigma: float) -> None:
        super().__init__()
        self.known, self.tau = known, 2 * sigma

    def forward(self, x: Tensor) -> Tensor:
        """Exact log densities ``(N, K)`` of noisy images."""
        return self.known.log_density(to_model(x), self.tau)


toy_x = torch.rand(9, 1, 1, 2, generator=generator(seed, "certify", "toy 5"), dtype=torch.float64)
toy = OptimalDenoiser(toy_x, torch.arange(9) % 3)
bayes = Bayes(toy, toy_sigma)
axis = np.linspace(-0.8, 1.8, 521)
step = axis[1] - axis[0]
plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
region = bayes(torch.from_numpy(plane.reshape(-1, 1, 1, 2))).argmax(1).numpy().reshape(len(axis), len(axis))
kernel = norm.pdf((axis[:, None] - axis) / toy_sigma) / toy_sigma * step  # noise of one pixel
mass = np.stack([kernel @ (region == c) @ kernel.T for c in range(3)])  # P(f(x + sigma delta) = c) at every point
smoothed = mass.argmax(0)


def truth(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At a point of the grid: the class probabilities, and the distance to the nearest other class of g, for every class."""
    at = np.unravel_index(np.linalg.norm(plane - point, axis=-1).argmin(), smoothed.shape)
    away = np.linalg.norm(plane - plane[at], axis=-1)
    return mass[(slice(None), *at)], np.array([away[smoothed != c].min() for c in range(3)])


nodes = [plane[tuple(np.round((p - axis[0]) / step).astype(int))] for p in toy_x.flatten(1).numpy()]
ranked = sorted(nodes, key=lambda node: -truth(node)[0].max())
spots = [ranked[i] for i in (0, 4, 8)]  # the most certain of the nine images, the middle one, the least certain
known = [truth(spot) for spot in spots]
for p, distance in known:
    c = int(p.argmax())
    print(f"class {c}: probability {p[c]:.4f}, sigma Phi^-1(p) = {toy_sigma * norm.ppf(p[c]):.3f}, true radius {distance[c]:.3f}")

# %% mystnb={"figure": {"caption": "Images of two pixels. Left: what the base classifier answers, and its nine images. Right: what the smoothed classifier answers, and for three images the radius from the exact probability (solid) and the true radius (dashed).", "name": "fig-cert-toy"}, "image": {"alt": "Two maps of three coloured regions; on the right a solid and a dashed circle around each of three points, the dashed one touching the nearest other region"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
colours = ListedColormap(["#8ecae6", "#ffd6a5", "#b7e4c7"])
for ax, shown in zip(axes, (region, smoothed), strict=True):
    ax.imshow(shown.T, origin="lower", extent=(axis[0], axis[-1], axis[0], axis[-1]), cmap=colours, vmin=0, vmax=2)
    ax.grid(False)
    ax.set(xlim=(-0.4, 1.4), ylim=(-0.4, 1.4), xlabel="first pixel", ylabel="second pixel")
for k, mark in enumerate("osD"):
    axes[0].plot(*toy_x[k::3].flatten(1).T, mark, color="k", ms=5)
for spot, (p, distance) in zip(spots, known, strict=True):
    axes[1].plot(*spot, "k.", ms=6)
    for r, ls in ((toy_sigma * norm.ppf(p.max()), "-"), (distance[p.argmax()], "--")):
        axes[1].add_patch(plt.Circle(spot, max(r, 0), fill=False, ec="k", ls=ls, lw=1.2))
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
claim(all(toy_sigma * norm.ppf(p.max()) <= distance[p.argmax()] + 2 * step for p, distance in known))

# %% [markdown]
# The solid circles lie inside the dashed ones. They touch only where the border is a straight line.
#
# ### From draws to a certificate
#
# Nobody knows $p$. So one takes $n_0$ draws to choose the class $c$, and $n$ *other* draws to count how often it is answered. A lower bound $\underline p$ for
# its probability that is too high with probability at most $\alpha$ gives a radius that is too large with probability at most $\alpha$. If
# $\underline p \le \frac12$, one abstains. Using the first draws again would bias the count: they were why $c$ was chosen.
#
# We make the certificate of each of the three images many times, with new noise each time.


# %%
def repeated(model: nn.Module, x: Tensor, sigma: float, n0: int, n: int, runs: int, key: int) -> tuple[np.ndarray, np.ndarray]:
    """Chosen classes and counts of independent certificates of one image."""
    noise = randn((runs * (n0 + n), *x.shape), seed, "certify", "repeat", key, like=x)
    answers = model(x + sigma * noise).argmax(dim=1).reshape(runs, n0 + n).cpu().numpy()
    chosen = np.stack([(answers[:, :n0] == c).sum(1) for c in range(3)], axis=1).argmax(axis=1)
    return chosen, (answers[:, n0:] == chosen[:, None]).sum(axis=1)


limit = int(binom.ppf(0.999, toy_runs, toy_alpha))
claims: list[tuple[np.ndarray, float, float]] = []
print(f"{toy_runs} certificates of each image, n0 = 20, n = {toy_n}, alpha = {toy_alpha:g}; false ones expected at most "
      f"{toy_runs * toy_alpha:.0f}, by chance up to {limit}")  # fmt: skip
for i, (spot, (p, distance)) in enumerate(zip(spots, known, strict=True)):
    chosen, k = repeated(bayes, torch.from_numpy(spot.copy()).reshape(1, 1, 2), toy_sigma, 20, toy_n, toy_runs, i)
    found = radius_from_counts(k, toy_n, toy_sigma, toy_alpha)
    exact = np.array([max(0.0, toy_sigma * norm.ppf(p[c])) for c in range(3)])
    beyond_truth = int(((found > distance[chosen] + 2 * step) & (found > 0)).sum())
    too_high = int((found > exact[chosen] + 1e-12).sum())
    claims.append((found, float(exact[p.argmax()]), float(distance[p.argmax()])))
    none = int((found == 0).sum())
    print(f"image {i}: above sigma Phi^-1(p) in {too_high}, above the true radius in {beyond_truth}; abstained {none}")
    claim(max(beyond_truth, too_high) <= limit)
x_one = torch.from_numpy(spots[0].copy()).reshape(1, 1, 2)
one = certify(bayes, x_one, sigma=toy_sigma, n0=20, n=toy_n, alpha=toy_alpha, seed=seed)
print(f"by rdc.certify, once: class {one.label}, {one.k} of {one.n}, p at least {one.p_low:.4f}, radius {one.radius:.3f}")

# %% mystnb={"figure": {"caption": "Certified radii of the three images over repetitions. Solid line: the radius from the exact probability, which at most a share alpha may exceed. Dashed line: the true radius.", "name": "fig-cert-repetitions"}, "image": {"alt": "Three histograms of radii, nearly all of their mass left of a solid line, which is left of or at a dashed line"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9, 2.7))
for i, (ax, (found, exact_radius, true_radius)) in enumerate(zip(axes, claims, strict=True)):
    ax.hist(found, bins=18, color="C0", alpha=0.7)
    ax.axvline(exact_radius, color="k")
    ax.axvline(true_radius, color="k", ls="--")
    ax.set(title=f"image {i}", xlabel="certified radius", xlim=(0, 1.1 * max(t for _, _, t in claims)))
axes[0].set_ylabel("certificates")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Counts
#
# With $k$ successes in $n$ draws, the exact bound of Clopper and Pearson is the $p$ at which $k$ or more successes have probability $\alpha$:
#
# ```{math}
# :label: eq-cert-cp
# P(\mathrm{Bin}(n, \underline p) \ge k) = \alpha, \qquad
# \underline p = \text{the } \alpha \text{ quantile of } \mathrm{Beta}(k, n - k + 1), \qquad \underline p = \alpha^{1/n} \text{ for } k = n .
# ```
#
# Why it holds: the bound grows with $k$. Let $k^*$ be the smallest count whose bound is above the true $p$. The bound is too high exactly if $k^*$ or more
# successes come, and that has probability at most $\alpha$, since it would have probability $\alpha$ at a bound that is larger than $p$.
#
# ### What $n$ draws can certify at most
#
# Even if all draws agree, $R \le \sigma\, \Phi^{-1}(\alpha^{1/n})$.

# %%
rows = []
for s in sigmas:
    fewest = [math.ceil(math.log(alpha) / norm.logcdf(r / s)) for r in radii]
    rows.append({"sigma": s, **{f"n = {n:,}": f"{reach(n, s, alpha):.3f}" for n in (100, 1000, 10_000, 100_000)},
                 **{f"draws for R = {r:g}": f"{n:,}" for r, n in zip(radii, fewest, strict=True)}})  # fmt: skip
show(rows)
glue("cert-reach", f"{reach(10_000, 0.25, 0.001):.2f}")

# %% mystnb={"figure": {"caption": "The largest radius that n draws can certify, if all of them agree. The dotted lines are the radii that are asked about.", "name": "fig-cert-reach"}, "image": {"alt": "Three slowly rising curves of the radius against the number of draws, one for each smoothing noise", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.4))
many_n = np.unique(np.logspace(1, 6, 80).round().astype(int))
for s in sigmas:
    ax.plot(many_n, [reach(int(n), s, alpha) for n in many_n], label=rf"$\sigma$ = {s:g}")
for r in radii:
    ax.axhline(r, color="0.6", lw=0.8, ls=":")
ax.set(xscale="log", ylim=(0, 2), xlabel="draws $n$", ylabel="largest certified radius")
ax.legend()
plt.show()

# %% [markdown]
# At $\sigma = 0.25$ and $\alpha = 0.001$ ten thousand draws end at {glue:text}`cert-reach`. A certified accuracy of zero beyond that says nothing about the
# classifier.
#
# ### Counts may not be multiplied
#
# Some scripts of the released code of {cite:t}`chen2024ndc` (commit 410b09f) draw 1000 or 100 noisy images, and then certify with both counts multiplied by 10
# or by 100. (A comment in one of them says that those are not the numbers of the paper.) How often is such a bound too high? For every claim we can ask for the
# worst case: a true $p$ just below what is claimed from $k$. Then the claim is false whenever $k$ or more successes come, which has probability
#
# ```{math}
# :label: eq-cert-multiplied
# P(\mathrm{Bin}(n, \underline p) \ge k), \qquad \underline p = \text{bound from } (m k, m n) .
# ```
#
# For $m = 1$ that is $\alpha$ by {eq}`eq-cert-cp`. For $k = n$ it is $(\alpha^{1/(mn)})^n = \alpha^{1/m}$.


# %%
def error_of_claims(n: int, m: int) -> np.ndarray:
    """For every count that certifies something, the largest probability that its claim is false."""
    k = np.arange(n // 2 + 1, n + 1)
    claimed = clopper_pearson(m * k, m * n, alpha)
    return betainc(k, n - k + 1, claimed)[claimed > 0.5]


settings = {"1000 draws": (1000, 1), "1000 draws, times 10": (1000, 10), "100 draws, times 100": (100, 100)}
errors = {name: error_of_claims(*setting) for name, setting in settings.items()}
for name, wrong in errors.items():
    m = settings[name][1]
    print(f"{name:22s} false with probability {wrong.min():.3f} ... {wrong.max():.3f}; alpha^(1/{m}) = {alpha ** (1 / m):.3f}")
low_error, high_error = errors["1000 draws, times 10"].min(), errors["1000 draws, times 10"].max()
glue("cert-multiplied", f"{low_error:.2f} to {high_error:.2f}")

# %% tags=["remove-cell"]
assert np.allclose(errors["1000 draws"], alpha) and low_error > 100 * alpha
assert abs(errors["1000 draws, times 10"][-1] - alpha**0.1) < 1e-6

# %% [markdown]
# The stated $\alpha$ is $0.001$; multiplying by ten makes it {glue:text}`cert-multiplied`. Such numbers estimate what more draws *might* certify. They are no
# certificates.
#
# ## Early stopping
#
# Most images are clear: their radius is far above what is asked, or far below. To draw ten thousand noisy copies of these is a waste. May one look at the
# counts on the way, and stop?
#
# ### Peeking
#
# Not with the bound of a single look. Here the truth is a $p$ that equals the target, and a run that ever claims more is false.

# %%
p_target = float(norm.cdf(1.0))  # radius sigma
uniform = torch.rand(peek_runs, peek_n, generator=generator(seed, "certify", "peek")).numpy()
k_all = (uniform < p_target).cumsum(axis=1)
looks = np.arange(10, peek_n + 1, 10)
at_looks = k_all[:, looks - 1]
tail = np.where(at_looks > 0, betainc(np.maximum(at_looks, 1), looks - at_looks + 1, p_target), 1.0)  # P(Bin(n, p) >= k)
geometric = np.unique((20 * 1.5 ** np.arange(40)).astype(int))
geometric = geometric[geometric <= peek_n]
k_geometric = k_all[:, geometric - 1]
tail_geometric = betainc(np.maximum(k_geometric, 1), geometric - k_geometric + 1, p_target)
false = {
    "peeking every 10 draws": (looks, tail <= toy_alpha),
    "split alpha, geometric looks": (geometric, tail_geometric <= split_alpha(toy_alpha, np.arange(1, len(geometric) + 1))),
    "confidence sequence, every 10 draws": (looks, log_mixture(at_looks, looks, p_target) >= -math.log(toy_alpha)),
}
ever = {name: Accuracy.of(int(hit.any(axis=1).sum()), peek_runs) for name, (_, hit) in false.items()}
for name, share in ever.items():
    print(f"{name:36s} ever false: {share}")
glue("cert-peek", f"{100 * ever['peeking every 10 draws'].value:.0f}")

# %% mystnb={"figure": {"caption": "Share of runs that have claimed too much by the n-th draw, with alpha = 0.05 (dotted).", "name": "fig-cert-peek"}, "image": {"alt": "Peeking rises far above the dotted line; the two valid rules stay below it", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.2))
for (name, (n, hit)), ls in zip(false.items(), ("-", "--", "-."), strict=True):
    ax.plot(n, np.maximum.accumulate(hit, axis=1).mean(axis=0), ls, label=name, drawstyle="steps-post")
ax.axhline(toy_alpha, color="0.4", ls=":", lw=1)
ax.set(xscale="log", xlabel="draws $n$", ylabel="share of runs ever false")
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
claim(ever["peeking every 10 draws"].low > 2 * toy_alpha)
claim(all(ever[name].low <= toy_alpha for name in list(ever)[1:]))

# %% [markdown]
# Peeking is false in {glue:text}`cert-peek` % of the runs at a stated 5 %, and the more often one looks, the worse.
#
# ### Two valid ways
#
# **Split alpha.** Look at times fixed beforehand, and give look $j$ the share $\alpha / (j (j + 1))$. The shares sum to $\alpha$; by the union bound all looks
# are right at once. Few looks at growing distances keep the shares large.
#
# **Confidence sequence.** Bet against the hypothesis that the probability is at most $p$, with a mixture of likelihood ratios:
#
# ```{math}
# :label: eq-cert-mixture
# M_n(p) = \int_p^1 \Big( \frac{q}{p} \Big)^{S} \Big( \frac{1 - q}{1 - p} \Big)^{F} \pi(q)\, dq, \qquad S \text{ successes},\; F \text{ failures},\; S + F = n,
# ```
#
# with a prior density $\pi$ on $(p, 1)$: a beta density cut off at $p$, so that the integral is a ratio of beta functions ({py:mod}`rdc.certify.confidence_sequence`).
#
# :::{prf:proposition} Looking as often as one likes
# :label: prop-cert-ville
# If the true probability is at most $p$, then $P(\exists n: M_n(p) \ge 1 / \alpha) \le \alpha$. So the smallest $p$ with $M_n(p) < 1/\alpha$ is a lower bound
# that holds at all $n$ at once with probability $1 - \alpha$.
# :::
#
# :::{prf:proof}
# Let the true probability be $p' \le p$, and fix $q > p$. One more draw multiplies the ratio by $q / p$ or by $(1 - q) / (1 - p)$, on average by
# $p' \frac qp + (1 - p') \frac{1 - q}{1 - p}$. This is increasing in $p'$, and 1 at $p' = p$. So every ratio, and their mixture, is a non-negative
# supermartingale that starts at 1.
#
# Ville's inequality: stop at the first $n$ with $M_n \ge 1 / \alpha$, or at $N$. The mean at that moment is at most 1, and at least $\frac1\alpha$ times the
# probability of having crossed by $N$. Let $N \to \infty$.
#
# For the bound, let $p'$ be the truth. $\log M_n(p)$ falls in $p$ below $S / n$, so the bound exceeds $p'$ only if $M_n(p') \ge 1 / \alpha$.
# :::
#
# The other direction is free. To give up, "this will not be certified", claims nothing, and may use any rule ({py:class}`rdc.certify.confidence_sequence.Plan`).
#
# ### What it costs
#
# A bound that may be looked at any time is lower than one for a single look. In units of $\sigma$:

# %%
rows = []
for share in (1.0, 0.99, 0.9):
    for n in (1000, 10_000):
        k, j = round(share * n), len(Plan("split", n, p_target, alpha).looks)
        single = radius_from_counts(k, n, 1.0, alpha)
        split = radius(clopper_pearson(k, n, float(split_alpha(alpha, j))), 1.0)
        rows.append({"successes": f"{k} of {n}", "single look": single, "split alpha, last look": split,
                     "confidence sequence": radius(sequence_lower(k, n, alpha), 1.0)})  # fmt: skip
show(rows)
cost = 1 - rows[1]["confidence sequence"] / rows[1]["single look"]
glue("cert-sequence-cost", f"{100 * cost:.1f}")
claim(0 < cost < 0.05)

# %% [markdown]
# At ten thousand draws that all agree, the confidence sequence gives up {glue:text}`cert-sequence-cost` % of the radius. In return it stops. We simulate
# counts, with the same random numbers for every $p$, and ask for a radius of $\sigma$ and of $2 \sigma$.


# %%
def simulate(plan: Plan, p: float, u: np.ndarray) -> tuple[float, float]:
    """Mean number of draws, and share of runs that meet the target, when the probability of success is p."""
    k_at = (u < p).cumsum(axis=1, dtype=np.int32)[:, np.array(plan.looks) - 1]
    running, met, made = np.ones(len(u), bool), np.zeros(len(u), bool), np.zeros(len(u))
    for look, n in enumerate(plan.looks):
        made[running] = n
        yes = running & plan.met(k_at[:, look], look)
        met |= yes
        running &= ~(yes | plan.futile(k_at[:, look], look))
        if not running.any():
            break
    return float(made.mean()), float(met.mean())


u = torch.rand(plan_runs, plan_n, generator=generator(seed, "certify", "plan")).numpy()
true_radii = np.array([-1.0, 0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 1.9, 2.0, 2.1, 2.25, 2.5, 3.0, 3.5])
draws_needed: dict[tuple[float, str], np.ndarray] = {}
for target in (1.0, 2.0):
    for stopping in ("sequence", "split"):
        plan = Plan(stopping, plan_n, float(norm.cdf(target)), alpha)
        draws_needed[target, stopping] = np.array([simulate(plan, float(norm.cdf(r)), u) for r in true_radii])
print("asked    true radius     draws: sequence    split    target met: sequence    split")
for target in (1.0, 2.0):
    for r in (0.0, target - 0.25, target, target + 0.25, 3.5):
        i = int(np.abs(true_radii - r).argmin())
        (n_1, yes_1), (n_2, yes_2) = (draws_needed[target, s][i] for s in ("sequence", "split"))
        met = f"{100 * yes_1:20.1f} % {100 * yes_2:8.1f} %"
        print(f"{target:g} sigma   {true_radii[i]:5.2f} sigma   {n_1:15.0f} {n_2:8.0f} {met}")
clear = {t: plan_n / draws_needed[t, "sequence"][[1, -1], 0] for t in (1.0, 2.0)}
glue("cert-clear", f"{min(v.min() for v in clear.values()):.0f}")

# %% mystnb={"figure": {"caption": "Mean number of draws until it is clear whether the radius is at least the target (vertical lines), by the true radius, for the two valid ways. Dotted: the fixed number of draws.", "name": "fig-cert-draws"}, "image": {"alt": "Peaks at the two targets that reach thousands of draws, and a hundred or fewer far from them", "width": "70%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3.4))
for (target, stopping), v in draws_needed.items():
    ls, color = "-" if stopping == "sequence" else "--", f"C{int(target) - 1}"
    ax.plot(true_radii, v[:, 0], ls, marker=".", color=color, label=rf"target {target:g}$\sigma$, {stopping}")
    ax.axvline(target, color=color, lw=0.8, alpha=0.6)
ax.axhline(plan_n, color="0.4", ls=":", lw=1)
ax.set(yscale="log", xlabel=r"true radius, in units of $\sigma$", ylabel="mean draws")
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
for target in (1.0, 2.0):
    at_target = int(np.flatnonzero(true_radii == target)[0])
    for stopping in ("sequence", "split"):
        claim(draws_needed[target, stopping][at_target, 1] <= 0.02, "at the target itself every claim is false")
        claim(draws_needed[target, stopping][-1, 1] > 0.99)
claim(min(v.min() for v in clear.values()) > 10)

# %% [markdown]
# Far from the target the number of draws falls by a factor of {glue:text}`cert-clear` or more. Near it there is no free lunch: to tell a radius from one that
# is a little larger takes many draws with any method.
#
# (sec-cert-noised)=
# ## The noised diffusion classifier
#
# Smoothing certifies any base classifier that stands Gaussian noise. The diffusion classifier of {ref}`nb-classifier` does not: it asks for the likelihood of a
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
# $\tau = s_0 < s_1 < \dots < s_T$, and as model the chain {eq}`eq-chain` of {ref}`nb-diffusion`, which walks down with the denoiser. Between neighbours
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
# where $p$ is the density of the chain and $C$ does not depend on $y$. Moreover $\E[\tilde z \mid z_{s'}] = \E[z \mid z_{s'}]$.
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
# | form | step variance $\hat v_s$ | weight |
# |---|---|---|
# | `fixed` | $s^2 (s'^2 - s^2) / s'^2$, that of the clean chain | $\frac12 (s^{-2} - s'^{-2})$, as for clean images |
# | `specific` | $v_s$, that of the bridge; $u_{s'}^2$ in the first step | $\frac12 (s'^2 - s^2) (u_{s'} / u_s)^2 s'^{-4}$ |
# | `quadrature` | no chain: Gauss-Legendre nodes in $1/s$ for the limit below, and its tail | of $s^{-3} ds$ |
# | `released` | as `specific`, times $\rho(s) s^3$; equal steps up to 3, the first five left out | of the EDM density $\rho$ |
#
# ### The limit: Bayes' rule, exactly
#
# :::{prf:theorem} In the limit, the bound is the likelihood
# :label: thm-cert-limit
# For the optimal denoiser and up to a constant without $y$,
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
def ten_lines(denoiser: Denoiser, x: Tensor, sigma: float, count: int = 8, seed: int = 0) -> Tensor:
    """EPNDC, quadrature with mirror images; minus the loss, less what all classes share, ``(N, K)``."""
    z, tau, steps = to_model(x), 2 * sigma, noised_steps(2 * sigma, count, "quadrature")
    logits = torch.zeros(len(x), denoiser.num_classes, dtype=torch.float64, device=x.device)
    for t, (s, w) in enumerate(zip(steps.levels.sigma.tolist(), steps.levels.weight.tolist(), strict=True)):
        u, eps = math.sqrt(s**2 - tau**2), randn(denoiser.shape, seed, 0, t, 0, 0, like=x)
        for sign in (1, -1):
            gap = denoiser.all_classes(z + sign * u * eps, s) - z[:, None]
            logits -= w / 2 * (gap * (gap + 2 * sign * tau**2 / u * eps)).flatten(2).sum(dim=2)
    return logits


noisy_toy = toy_x + toy_sigma * randn(tuple(toy_x.shape), seed, "certify", "noisy toy", like=toy_x)
agreement = float((ten_lines(toy, noisy_toy, toy_sigma) - EPNDC(toy, toy_sigma)(noisy_toy)).abs().max())
print(f"largest difference to rdc.certify.EPNDC below 1e-9: {agreement < 1e-9}")  # NBVAL_CHECK_OUTPUT

# %% [markdown]
# With $g = D - z_\tau$ the square is $\norm{g}^2 - 2 g \cdot (\tilde z - z_\tau)$ plus $\norm{\tilde z - z_\tau}^2$. The last term is the same for all classes,
# and huge near $\tau$. It is left out.
#
# ### The gap of a finite grid
#
# Two pixels again, where expectations over the noise are sums on a grid. Nothing is random but the noisy images. We compare each form with the exact
# $\log p_\tau(z_\tau \mid y)$, as a bound and as a classifier.


# %%
def gaussian_grid(count: int = 37, end: float = 6.0) -> tuple[Tensor, Tensor]:
    """Nodes ``(count^2, 1, 1, 2)`` and weights for two standard normal numbers."""
    line = torch.linspace(-end, end, count, dtype=torch.float64)
    density = torch.exp(-(line**2) / 2)
    return torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2), torch.outer(density, density).flatten() / density.sum() ** 2


def expected_losses(model: OptimalDenoiser, z: Tensor, steps: Steps) -> Tensor:
    """Weighted losses with the exact expectation over the noise, less what classes share, ``(N, K)``."""
    eps, chance = (v.to(z) for v in gaussian_grid())
    total = torch.zeros(len(z), model.num_classes, dtype=torch.float64, device=z.device)
    for s, u, w in zip(steps.levels.sigma.tolist(), steps.spread.tolist(), steps.levels.weight.tolist(), strict=True):
        gap = model.all_classes((z[:, None] + u * eps).flatten(0, 1), s).unflatten(0, (len(z), -1)) - z[:, None, None]
        value = (gap * (gap + 2 * steps.tau**2 / u * eps[:, None])).flatten(3).sum(dim=3)  # (N, nodes, K)
        total += w * torch.einsum("ngk,g->nk", value, chance)
    return total


tau = 2 * toy_sigma
own = torch.arange(gap_points) % 3
z_noisy = to_model(toy_x[torch.arange(gap_points) % 9])
z_noisy = z_noisy + tau * randn(tuple(z_noisy.shape), seed, "certify", "gap", like=z_noisy)
log_p = toy.log_density(z_noisy, tau)
top = log_p.topk(2, dim=1).indices
square = z_noisy.flatten(1).square().sum(dim=1)
bound_gap: dict[str, list[float]] = {}
odds_error: dict[str, list[float]] = {}
for form in ("fixed", "specific", "quadrature"):
    for count in [c for c in gap_counts if c <= (16 if form == "quadrature" else 10**6)]:
        steps = noised_steps(tau, count, form)
        loss = expected_losses(toy, z_noisy, steps)
        gap = (log_p - (constant(steps, form, square, 2)[:, None] - loss)).gather(1, own[:, None])
        bound_gap.setdefault(form, []).append(float(gap.mean()))
        found, true = (a.gather(1, top).diff(dim=1) for a in (-loss, log_p))
        odds_error.setdefault(form, []).append(float((found - true).square().mean().sqrt()))
for name, values in (("mean log p - bound", bound_gap), ("error of log odds", odds_error)):
    print(f"{name:20s} T =" + "".join(f"{c:9d}" for c in gap_counts))
    for form, v in values.items():
        print(f"    {form:19s}" + "".join(f"{x:9.4f}" for x in v))
coded = expected_losses(toy, z_noisy, noised_steps(tau, 124, "released", "edm-released"))
same_released = Accuracy.of(int((coded.argmin(1) == log_p.argmax(1)).sum()), gap_points)
print(f"released form, 124 levels, exact expectations: decides as Bayes' rule for {same_released}")
glue("cert-released-toy", f"{same_released.correct} of {gap_points}")

# %% mystnb={"figure": {"caption": "EPNDC with exact expectations on images of two pixels, by the number of levels T. Left: by how much the bound lies below the exact log-likelihood of the own class, mean over noisy images (quadrature is no bound: absolute value). Right: root mean square error of the log odds of the two most likely classes.", "name": "fig-cert-gap"}, "image": {"alt": "Falling lines on logarithmic axes; fixed and specific fall like one over T, quadrature much faster"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.3))
for ax, values, label in zip(axes, (bound_gap, odds_error), ("gap of the bound (nats)", "error of log odds (nats)"), strict=True):
    for (form, v), mark in zip(values.items(), "os^", strict=True):
        ax.plot(gap_counts[: len(v)], np.abs(v), marker=mark, label=form)
    guide = np.array([gap_counts[0], gap_counts[-1]], dtype=float)
    ax.plot(guide, 0.7 * values["fixed"][0] * guide[0] / guide, ":", color="0.4", lw=1, label="slope -1")
    ax.set(xscale="log", yscale="log", xlabel="levels $T$", ylabel=label)
    ax.set_xticks(gap_counts, [str(c) for c in gap_counts])
    ax.minorticks_off()
axes[0].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
assert agreement < 1e-9
claim(min(bound_gap["fixed"] + bound_gap["specific"]) > 0, "a bound, on average")
claim(1.6 < bound_gap["fixed"][-2] / bound_gap["fixed"][-1] < 2.4, "like 1 / T")
claim(odds_error["quadrature"][2] < 0.2 * odds_error["fixed"][2])
glue("cert-quadrature", f"{odds_error['fixed'][2] / odds_error['quadrature'][2]:.0f}")

# %% [markdown]
# - Both chains bound the log-likelihood from below, and the gap falls like $1/T$. The `fixed` chain, which knows nothing of $\tau$, is the better one at equal
#   $T$.
# - The gap is not the same for all classes, so it moves decisions. For a *classifier* no bound is needed: at eight levels the quadrature has an error that is
#   {glue:text}`cert-quadrature` times smaller. That is why few levels can replace 124.
# - The released form is no bound: it re-weights, starts five steps late, and ends at 3. Its decisions are another matter: here they are those of Bayes' rule
#   for {glue:text}`cert-released-toy` images.
#
# ### Two kinds of noise, and mirror images
#
# The smoothing noise is given. The noise $W$ inside the classifier is ours, and its variance costs accuracy. In $\norm{g}^2 - 2 g \cdot (\tilde z - z_\tau)$
# the second term is $2 \frac{\tau^2}{u} g \cdot \varepsilon$. Expand $g$ in the noise: $g(\varepsilon) = g(0) + u J \varepsilon + \dots$ Then
#
# ```{math}
# :label: eq-cert-odd
# \frac{2 \tau^2}{u}\, g(\varepsilon) \cdot \varepsilon = \underbrace{\frac{2 \tau^2}{u}\, g(0) \cdot \varepsilon}_{\text{odd, mean } 0} + \underbrace{2 \tau^2\, \varepsilon \cdot J \varepsilon}_{\text{even, mean } 2 \tau^2 \operatorname{tr} J} + \dots
# ```
#
# The odd term has no mean and grows like $1/u$ at the lowest levels. A mirror image, $-\varepsilon$, cancels it. The losses of a clean target have no term with
# $1/u$.
#
# A third way is one Brownian path through all levels of a chain. Then the loss is the log ratio of chain and noise *along the path*, and for the optimal
# denoiser and many levels that is $\log p$ for every single path (Girsanov).
#
# We measure on the digits with the optimal denoiser, where the exact log odds are known.

# %%
digits_train, digits_test = load("digits", "train")[:n_images], load("digits", "test")
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)


def noisy_digits(count: int, sigma: float) -> Tensor:
    """Test images of the digits with smoothing noise, float64."""
    x = digits_test.x[:count].double()
    return x + sigma * torch.stack([randn(tuple(x.shape[1:]), seed, "certify", "digits", i) for i in range(count)]).double()


x_noise = noisy_digits(n_noise, sigmas[0])
exact_odds = digits.log_density(to_model(x_noise), 2 * sigmas[0])
pair = exact_odds.topk(2, dim=1).indices
exact_odds = exact_odds.gather(1, pair).diff(dim=1)


def odds(make: Any, seeds: int = 3, **options: Any) -> Tensor:
    """Log odds of the two most likely classes for several seeds, ``(seeds, N, 1)``."""
    models = [make(digits, sigmas[0], seed=seed + s, chunk=20_000, **options) for s in range(seeds)]
    return torch.stack([model(x_noise).gather(1, pair).diff(dim=1) for model in models])


passes = [16, 32, 64, 128]
single = {"count": 8, "antithetic": False}
designs = {
    "own noise for each class": [single | {"coupling": "per_class", "draws": n // 8} for n in passes[:2]],
    "shared by classes": [single | {"draws": n // 8} for n in passes],
    "shared, mirror images": [{"count": 8, "draws": n // 16} for n in passes],
    "one Brownian path": [{"count": n, "form": "fixed", "coupling": "path", "antithetic": False} for n in passes],
}
noise_error: dict[str, list[float]] = {}
for name, made in designs.items():
    noise_error[name] = [float((odds(EPNDC, **o) - exact_odds).square().mean().sqrt()) for o in made]
print("error of log odds (nats), levels times draws:" + "".join(f"{n:8d}" for n in passes))
for name, v in noise_error.items():
    print(f"    {name:41s}" + "".join(f"{x:8.2f}" for x in v))
shared_gain = (noise_error["own noise for each class"][0] / noise_error["shared by classes"][0]) ** 2
mirror_gain = (noise_error["shared by classes"][0] / noise_error["shared, mirror images"][0]) ** 2
print(f"squared error at {passes[0]}: own noise over shared {shared_gain:.1f}, single draws over mirror images {mirror_gain:.1f}")
print("APNDC, spread of log odds over seeds, 32 levels times draws:")
choices = {"16 levels, mirror images": {"antithetic": True}, "16 levels, two draws": {"draws": 2}, "32 levels": {"count": 32}}
for name, o in choices.items():
    print(f"    {name:26s} {float(odds(APNDC, seeds=4, **o).var(dim=0).mean().sqrt()):.2f}")

# %% mystnb={"figure": {"caption": "Error of EPNDC's log odds on noisy digits with the optimal denoiser, by levels times draws, for four kinds of noise. Own noise for each class also needs a pass for each class.", "name": "fig-cert-noise"}, "image": {"alt": "Four falling lines; mirror images far below single draws, shared below own noise", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.3))
for (name, v), mark in zip(noise_error.items(), "osD^", strict=True):
    ax.plot(passes[: len(v)], v, marker=mark, label=name)
ax.set(xscale="log", yscale="log", xlabel="levels times draws", ylabel="error of log odds (nats)")
ax.set_xticks(passes, [str(n) for n in passes])
ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
claim(mirror_gain > 1.5 and shared_gain > 1)
glue("cert-mirror", f"{mirror_gain:.1f}")
glue("cert-shared", f"{shared_gain:.1f}")

# %% [markdown]
# At the same number of evaluations, mirror images divide the squared error by {glue:text}`cert-mirror`, and sharing the noise between classes divides it by
# {glue:text}`cert-shared`. Sharing also lets one pass of a multi-head network serve all classes.
#
# With this perfect model the path does as well as mirror images, or better. It needs a chain, whose error at few levels is that of {numref}`fig-cert-gap`, and a trained network has no
# theorem behind it. The default of the package is the quadrature with mirror images; the record below says how that does on images.
#
# ### APNDC
#
# The second classifier of {cite:t}`chen2024ndc` denoises first, $\hat z = D(z_\tau, \tau)$ without a class, and takes $\hat z$ as the target:
# $f_y = -\sum_t w_t \E \norm{D(z_s, s, y) - \hat z}^2$. The released code has three variants of it:
#
# | variant | start of the noise | target | what it estimates |
# |---|---|---|---|
# | `ensemble` | $\hat z + s \varepsilon$ | $\hat z$ | an average of EPNDC, see below; what the released scripts certify |
# | `correct` | $z_\tau + u_s \varepsilon$ | $\hat z$ | on average EPNDC, with less noise in the target |
# | `condition-on-y` | $z_\tau + u_s \varepsilon$ | $D(z_\tau, \tau, y)$ | how well class $y$ reproduces its own guess |
#
# :::{prf:proposition} What APNDC estimates, for the optimal denoiser
# :label: prop-cert-apndc
# With exact integrals, and up to numbers without $y$: **(a)** `ensemble` is $\E_{z' \sim \mathcal N(\hat z, \tau^2 I)} \log p_\tau(z' \mid y)$, less the same
# at the last level. **(b)** For $z_\tau$ from the mixture of all classes, `correct` and EPNDC have the same mean, level by level.
# :::
#
# :::{prf:proof}
# (a) This is {prf:ref}`thm-identity` at the point $\hat z$, from $\sigma_0 = \tau$ upwards. (b)
# $\norm{D_y - \tilde z}^2 - \norm{D_y - \hat z}^2 = -2 D_y \cdot (\tilde z - \hat z)$ plus terms without $y$. Given $z_s$, both $\tilde z$ and $\hat z$ have
# the mean $\E[z \mid z_s]$: the first by {prf:ref}`prop-cert-bound`, the second because $z_\tau$ knows more than $z_s$. As $D_y$ is a function of $z_s$, the
# product has mean zero.
# :::
#
# So `ensemble` forgets what $z_\tau$ says beyond $\hat z$, and averages EPNDC over new noise around it. It gives up information, and is rid of the noise of the
# pseudo target. Which of the two weighs more has to be measured, and again for a trained model. In (b) it mattered that the target is the *same* for all
# classes ({ref}`ex-cert-target`).
#
# The variants classify noisy digits, beside the exact posterior.

# %%
variants: dict[str, Any] = {
    "EPNDC, 16 levels, one draw": partial(EPNDC, count=16, antithetic=False),
    "EPNDC, 8 levels, mirror images": partial(EPNDC),
    "EPNDC, 8 levels, 8 mirrored draws": partial(EPNDC, draws=8),
    "EPNDC as released": partial(EPNDC, form="released", weight="edm-released", count=124, antithetic=False),
    "APNDC, ensemble": partial(APNDC),
    "APNDC, correct": partial(APNDC, variant="correct"),
    "APNDC, condition-on-y": partial(APNDC, variant="condition-on-y"),
    "APNDC, ensemble, as released": partial(APNDC, released=True, weight="edm-released", count=124),
}
answers: dict[tuple[str, float], Tensor] = {}
table: list[Row] = []
labels = digits_test.y[:n_digits]
for s in sigmas:
    x_s = noisy_digits(n_digits, s)
    answers["Bayes' rule", s] = digits.log_density(to_model(x_s), 2 * s).argmax(dim=1)
    for name, make in variants.items():
        answers[name, s] = make(digits, s, seed=seed, chunk=20_000)(x_s).argmax(dim=1)
for name in ("Bayes' rule", *variants):
    row: Row = {"classifier": name, "passes": "-" if name == "Bayes' rule" else variants[name](digits, 0.25).evaluations}
    for s in sigmas:
        for what, wanted in (("right", labels), ("as Bayes", answers["Bayes' rule", s])):
            row[f"{what}, {s:g}"] = f"{100 * float((answers[name, s] == wanted).double().mean()):.1f} %"
    table.append(row)
print(f"{n_digits} noisy digits; right, and as Bayes' rule, for smoothing noise {sigmas}; passes with all classes in one")
show(table)

# %% tags=["remove-cell"]
right_share = {key: float((value == labels).double().mean()) for key, value in answers.items()}
for s in sigmas:
    claim(right_share["APNDC, condition-on-y", s] < right_share["APNDC, correct", s])
as_bayes = {key: float((value == answers["Bayes' rule", key[1]]).double().mean()) for key, value in answers.items()}
for s in sigmas:
    claim(as_bayes["EPNDC, 8 levels, 8 mirrored draws", s] > as_bayes["EPNDC, 16 levels, one draw", s])
claim(as_bayes["APNDC, ensemble", sigmas[0]] >= as_bayes["EPNDC, 8 levels, mirror images", sigmas[0]])
claim(as_bayes["APNDC, ensemble", sigmas[-1]] < as_bayes["EPNDC, 8 levels, 8 mirrored draws", sigmas[-1]])

# %% [markdown]
# With a perfect model, EPNDC is limited by the noise inside it: with many draws it becomes Bayes' rule. APNDC is nearly without that noise. At low smoothing
# noise it decides like Bayes' rule at a few passes; at high noise the estimate $\hat z$ has lost too much, and more passes would not bring it back.
# `condition-on-y` is no classifier.
#
# (sec-cert-images)=
# ## On images
#
# What does a base classifier see? The noise is not small. Below each noisy image (shown clipped) is the one-step estimate $\hat z$, which is all that
# `ensemble` and the classifier of {cite:t}`carlini2023certified` keep of it.

# %%
heads = load_denoiser(heads_name, device=device, dtype=fast_dtype(device))
x_show, y_show, strips = test.x[:8].to(device), test.y[:8], []
noise_show = torch.stack([randn(tuple(test.x.shape[1:]), seed, "certify", "show", i) for i in range(8)]).to(device)
for s in sigmas:
    noisy = x_show + s * noise_show
    with torch.no_grad():
        estimate = from_model(heads(to_model(noisy), torch.full((8,), 2 * s, device=device)))
        said = [m(noisy).argmax(dim=1).cpu() for m in (EPNDC(heads, s, seed=seed), APNDC(heads, s, count=8, seed=seed))]
    strips += [noisy.clamp(0, 1), estimate.clamp(0, 1)]
    print(f"sigma {s:4g}: EPNDC and APNDC right on {' and '.join(str(int((v == y_show).sum())) for v in said)} of 8")

# %% mystnb={"figure": {"caption": "Test images with smoothing noise (first, third and fifth row, clipped for display) and their one-step estimates (below each), for rising noise.", "name": "fig-cert-images"}, "image": {"alt": "Noisy pictures of clothes in six rows; the estimates show the article at low noise and a blurred average at high noise", "width": "90%"}} tags=["hide-input"]
image_grid(torch.cat(strips).cpu().float(), columns=len(x_show), size=0.8)
plt.show()

# %% [markdown]
# ### One certificate
#
# With a multi-head network, eight levels and one step of denoising, a noisy image costs nine passes. The two questions that one can ask, on one image:

# %%
base = APNDC(heads, sigmas[0], count=8, seed=seed)
for ask in ({}, {"target": 0.25}):
    found = certify(base, x_show[0], sigma=sigmas[0], n0=live_n0, n=live_n, alpha=alpha, seed=seed, index=0, **ask)
    print(f"{'is it 0.25?' if ask else 'full radius'}: class {found.label} (true {int(y_show[0])}), {found.k} of {found.n} draws, "
          f"radius {found.radius:.3f} (at most {reach(live_n, sigmas[0], alpha):.3f}); {found.calls * base.evaluations} passes")  # fmt: skip

# %% [markdown]
# The same on the command line, for many images, continued after an interruption:
# `rdc certify --model apndc --sigma 0.25 --n 1000 --count 50 --rows runs/c.jsonl`.
#
# ### How many levels?
#
# The released setting has 124 levels, and one evaluation for each class and level. Do a few levels answer the same? The record asks several base classifiers
# about the same noisy images. *Agrees* counts those on which the class is that of 124 single-head levels.

# %% tags=["hide-input", "hide-output"]
level_rows = part("levels").get("rows", [])


def noise_of(r: Row) -> str:
    """How a row of the part "levels" draws its inner noise, in words."""
    mirror, fresh = "mirror images" if r.get("antithetic") else "", "fresh" if r.get("noise") == "fresh" else ""
    return ", ".join(w for w in (r.get("coupling"), mirror, fresh, f"gap {r['gap']:g}" if r.get("gap") else "",
                               rounds_of(r), "another seed" if r.get("seed") is not None else "") if w) or "-"  # fmt: skip


def rounds_of(r: Row) -> str:
    """The rounds of a race in words: levels of the heads, levels in all of the single head, and gaps between."""
    return f"levels {' | '.join(map(str, r['sizes']))}, gaps {' '.join(f'{g:g}' for g in r['gaps'])}" if r.get("sizes") else ""


print(f"{len(level_rows)} rows")
what = ("sigma", "base", "denoiser", "form", "levels", "passes")
show(
    [
        fields(r, *what) | {"noise": noise_of(r), "right": str(acc(r["right"])), "agrees": str(acc(r.get("agrees")) or "-")}
        for r in level_rows
    ],
    "levels",
)

# %% mystnb={"figure": {"caption": "From the record: answers to noisy images against the passes they take, with 95 % intervals. Agrees: as with 124 single-head levels. Right: the true class; horizontal lines are the base classifiers without noise levels.", "name": "fig-cert-levels"}, "image": {"alt": "Agreement with the reference and accuracy against passes, one panel for each smoothing noise"}} tags=["hide-input"]
lines: dict[str, list[Row]] = {}
for r in sorted(level_rows, key=lambda r: r.get("passes") or 0):
    plain = r.get("coupling") == "shared" and r.get("noise") in ("fixed", None) and r.get("form") != "condition-on-y"
    if plain and r.get("seed") is None and r["base"] in ("EPNDC", "APNDC", "Cascade", "Race"):
        kind = ", ".join(str(r[k]) for k in ("base", "denoiser", "form") if r.get(k)) + ", mirror" * bool(r.get("antithetic"))
        lines.setdefault(kind, []).append(r)
level_sigmas = sorted({r["sigma"] for r in level_rows})
panels = [("agrees", s) for s in level_sigmas if any(r.get("agrees") for r in level_rows if r["sigma"] == s)]
panels += [("right", s) for s in level_sigmas]
if panels:
    fig, axes = plt.subplots(math.ceil(len(panels) / 2), 2, figsize=(8, 3 * math.ceil(len(panels) / 2)), squeeze=False)
    for ax, (key, s) in zip(axes.flat, panels, strict=False):
        for i, (kind, every) in enumerate(lines.items()):
            chosen = [r for r in every if r["sigma"] == s and r.get(key)]
            shares = [acc(r[key]) for r in chosen]
            if len(chosen) > 1:
                bars = 100 * np.array([[a.value - a.low, a.high - a.value] for a in shares]).T
                heights = [100 * a.value for a in shares]
                ax.errorbar([r["passes"] for r in chosen], heights, yerr=bars, fmt="o-", ms=3, lw=1, color=f"C{i}", label=kind)
        for r, ls in zip([r for r in level_rows if r["sigma"] == s and not r.get("form")], (":", "--", "-."), strict=False):
            if key == "right" and r["base"] not in ("Cascade", "Race"):
                ax.axhline(100 * r["right"]["value"], color="0.5", ls=ls, lw=1, label=r["base"])
        ax.set(xscale="log", title=rf"{key}, $\sigma$ = {s:g}", xlabel="passes for a noisy image", ylabel="images (%)")
        low, high = ax.get_xlim()
        ticks = [x for x in (1, 3, 10, 30, 100, 300, 1000) if low < x < high]
        ax.set_xticks(ticks, [str(x) for x in ticks])
        ax.minorticks_off()
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    fig.tight_layout()
    named = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(named.values(), named, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    plt.show()
else:
    print(reading.missing("levels"))

# %% [markdown]
# (sec-cert-race)=
# ## A race, with the noise of the slow one
#
# A few levels can be as often right as 124. Yet they do not give the same answers, and so not the same radii. Part of the sum
#
# $$
# f_y = -\sum_t \ell_{y,t}
# $$
#
# is what its noise happened to be. The noise is fixed, so that $f$ is one function of the image. With another seed it is another one. A fast classifier with
# levels of its own has its own noise: where two classes are close, it answers otherwise, however good it is.
#
# So look at levels *of f itself*, noise included, and predict the sum:
#
# ```{math}
# :label: eq-cert-race
# \hat f_y = -\sum_{t \in S} a_t\, \ell_{y,t} .
# ```
#
# The weights are a least-squares fit to differences of close classes, $f_y - f_j$, on other noisy images; $S$ grows by the level that helps the fit most
# ({py:mod}`rdc.early_exit.race_rounds`). Noisy digits with the optimal denoiser, half of them to learn from:

# %%
s_race = sigmas[min(1, len(sigmas) - 1)]
x_race, sizes_race = noisy_digits(2 * n_race, s_race), (2, 4, 8, 16, 32)
chain = partial(EPNDC, digits, s_race, count=124, form="fixed", antithetic=False, chunk=20_000)
with torch.no_grad():
    losses_race = chain(seed=seed).losses(x_race)
    again = chain(seed=seed + 1).losses(x_race[n_race:]).sum(dim=2).argmin(dim=1)
    few_levels = [EPNDC(digits, s_race, count=m // 2, seed=seed)(x_race[n_race:]).argmax(dim=1) for m in sizes_race]
learned_on, raced = losses_race.split(n_race)
slow_answer = raced.sum(dim=2).argmin(dim=1)
predicted = []
for m in sizes_race:
    opening, _ = learn_rounds(learned_on, learned_on, sizes=(m, 1), gaps=(0.0,), keep=(1,))
    weights = torch.tensor(opening.weights, dtype=torch.float64)
    predicted.append((raced[:, :, list(opening.levels)] @ weights).argmin(dim=1))

# %% mystnb={"figure": {"caption": "Noisy digits, optimal denoiser: answers of 124 levels that are given again, with 95 % intervals, by evaluations of one class. Levels of its own: quadrature with mirror images. Levels of the slow one: some of the 124, with the same noise and learned weights. Line and band: all 124 with another seed.", "name": "fig-cert-race"}, "image": {"alt": "The curve of levels of the slow one rises above the band of another seed; that of levels of its own stays at or below it"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))


def share_same(answer: Tensor, wanted: Tensor) -> Accuracy:
    """How many answers are the same."""
    return Accuracy.of(int((answer == wanted).sum()), len(wanted))


for (name, found), marker in zip({"levels of its own": few_levels, "levels of the slow one": predicted}.items(), "os", strict=True):
    shares = [share_same(answer, slow_answer) for answer in found]
    bars = 100 * np.array([[a.value - a.low, a.high - a.value] for a in shares]).T
    ax.errorbar(sizes_race, [100 * a.value for a in shares], yerr=bars, fmt=f"{marker}-", ms=4, lw=1, capsize=3, label=name)
seed_share = share_same(again, slow_answer)
ax.axhline(100 * seed_share.value, color="0.4", lw=1, label="124 levels, another seed")
ax.axhspan(100 * seed_share.low, 100 * seed_share.high, color="0.4", alpha=0.15, lw=0)
ax.set(xscale="log", xlabel="evaluations of a class", ylabel="answers of 124 levels (%)")
ax.set_xticks(sizes_race, [str(m) for m in sizes_race])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %% tags=["hide-input", "wrap"]
bayes = digits.log_density(to_model(x_race[n_race:]), 2 * s_race).argmax(dim=1)
print(f"Bayes' class is given by 124 levels to {share_same(slow_answer, bayes)}, by them with another seed to {share_same(again, bayes)},")
print(f"by {sizes_race[-1]} evaluations at levels of its own to {share_same(few_levels[-1], bayes)}.")

# %% tags=["remove-cell"]
claim(share_same(predicted[-1], slow_answer).correct > max(seed_share.correct, share_same(few_levels[-1], slow_answer).correct))

# %% [markdown]
# The noise of the slow one is worth nothing in itself. Judged by the truth, in the lines above, these classifiers are hard to tell apart at this $n$. It is worth
# a lot if the question is, as here, what *that* classifier would have certified.
#
# {py:class}`rdc.early_exit.race.Race` runs on it in rounds. The first looks at all classes at four of the 124 levels, with the multi-head network and the same noise.
# Later rounds add levels of the single-head network for the classes that are left, to which the first prediction is carried over; who falls more than some nats
# behind is out. From the record, on other noisy images than those that it learned from.
# Its sizes and gaps were chosen on them, which flatters it a little; the certificates of the next section are of other images:

# %% tags=["hide-input", "wrap"]
for r in level_rows:
    if r["base"] == "Race" or (r.get("seed") is not None and r["levels"] == 124):
        name = f"race, {rounds_of(r)}" if r["base"] == "Race" else "124 levels, another seed"
        print(f"{name}: {r['passes']:.1f} evaluations, the answer of 124 levels to {acc(r['agrees'])}")
if not level_rows:
    print(reading.missing("levels"))

# %% [markdown]
# (sec-cert-factors)=
# ## Where the factor comes from
#
# A certificate as released takes $(n_0 + n)(1 + 124 K)$ network evaluations.

# %%
as_released = (100 + 10_000) * (1 + 124 * classes)
print(f"n0 = 100, n = 10 000, K = {classes}: {as_released:,} evaluations for one image")
claim(as_released == 12_534_100 or classes != 10)

# %% [markdown]
# The record holds two measurements.
#
# *Full radius*: all $n$ draws, with the second of the races above. What would 124 single-head levels have certified, with the same draws? To evaluate
# all of them is what we want to avoid, so the record estimates it from a stratified sample of the same draws: those that the cheap classifier answered
# otherwise, those with small margins, and the rest. The expensive classifier answers the sampled ones, and its count follows with a 95 % interval. A few dozen
# draws do not see an error of one in a thousand. Near the largest radius that $n$ can reach, where one such error costs some percent, the estimate is therefore
# often too large, to the disadvantage of the cheap one. There are two such references: EPNDC, of which the cheap classifier is an approximation, and APNDC,
# which the paper certifies.
#
# *Target radius*: is the radius at least so much? There early stopping comes on top.


# %% tags=["hide-input", "wrap"]
full, published, large, target_part = part("full"), part("published"), part("large"), part("target")


def of_base(key: str, f: Row) -> Any:
    """A setting of a base: in its line of the summary, or one for all bases, or one for each."""
    value = f.get(key, full.get(key))
    return value.get(f["base"]) if isinstance(value, dict) else value


summary, against = full.get("summary", []), [(run, f) for run in (full, published, large) for f in run.get("summary", [])]
if full:
    print(f"sigma {full['sigma']:g}, n0 = {full['n0']}, n = {full['n']}, alpha = {full['alpha']:g}; references: {full['reference']['levels']} "
          f"levels, {full['reference']['denoiser']}")  # fmt: skip
show(
    [
        {"base": f["base"], "n": run["n"], "reference": run["reference"]["base"], "evaluations": f"{f['passes']:.1f}"}
        | {"fewer": f"{f['factor']:.0f} times", "same label": str(acc(f["same label"]))}
        | {"at most 5 % smaller": str(acc(f["within 5 %"])), "than its upper end": str(acc(f["within 5 %, upper end"]))}
        | fields(f, "median ratio", "worst ratio")
        for run, f in against
    ],
    "full",
)

# %% tags=["hide-input"]
factors: list[tuple[str, str, float]] = []
for f in summary:
    few, reference = f["passes"], f["reference passes"]
    opening, *_, last = f["sizes"]
    every = few + (classes - 1) * opening  # if the first round, too, took an evaluation for each class
    factors.append((f["base"], f"fewer levels: {reference / classes:.0f} -> {last} a class", reference / classes / last))
    factors.append((f["base"], f"sifting: {classes * last} -> {every:.1f} evaluations", classes * last / every))
    factors.append((f["base"], f"heads, classes together in the first round: {every:.1f} -> {few:.1f} evaluations", every / few))
    factors.append((f["base"], "together, full radius", reference / few))
for r in target_part.get("summary", []):
    what = f"early stopping ({r['stopping']}), target {r['target']:g}"
    factors.append((r["base"], f"{what}, all {r['images']} images", r["factor"]))
    if r.get("factor on clear images") is not None:
        factors.append((r["base"], f"{what}, the {r['clear']} clear images", r["factor on clear images"]))
for r in part("sift").get("rows", []):
    if r["saved"] < 1:
        what = f"sifting by a rule, alone ({r['rule']}, {r.get('denoiser')}, sigma {r['sigma']:g})"
        factors.append((r["base"], what, 1 / (1 - r["saved"])))
factors.sort(key=lambda found: found[0])
show([{"base": name, "idea": idea, "factor": f"{value:.1f}"} for name, idea, value in factors], "full")

# %% [markdown]
# The factors of one base multiply: levels, sifting, classes together, early stopping. Sifting by a rule alone competes with *classes together*: where one pass
# serves all classes, dropping one saves nothing unless all levels end early. A race ({ref}`sec-cert-race`) has both, one after the other.
#
# Early stopping in draws, noisy images to classify. An image is *clear* if its radius, estimated from the share of the answers, is well away from the target.
# Where the draws that were made do not answer the question, the certificate is counted as if it took all of them.

# %% tags=["hide-input"]
if target_part.get("clear"):
    print(f"clear: more than {100 * target_part['clear']:.0f} % above or below the target; certificates that may take {target_part['n']:,} "
          f"draws, of which {target_part['known']:,} were made")  # fmt: skip
show(
    [
        fields(r, "base", "target", "stopping", "median calls", "mean calls", "clear")
        | {"answered": f"{r['answered']} of {r['images']}", "met, of these": str(acc(r["met"]))}
        for r in target_part.get("summary", [])
    ],
    "target",
)

# %% mystnb={"figure": {"caption": "From the record: certified radius with few levels and all classes in one pass against the estimated radius of 124 single-head levels on the same draws, with its 95 % interval. Solid: equal. Dashed: 5 % smaller.", "name": "fig-cert-full"}, "image": {"alt": "Points near the diagonal, one for each image, with horizontal intervals"}} tags=["hide-input"]
full_rows = [r for r in full.get("rows", []) if r.get("reference radius") is not None]
if full_rows:
    bases = sorted({r["base"] for r in full_rows})
    fig, axes = plt.subplots(1, len(bases), figsize=(3.8 * len(bases), 3.6), squeeze=False)
    for ax, name in zip(axes[0], bases, strict=True):
        mine = [r for r in full_rows if r["base"] == name]
        ref = np.array([[r["reference radius"], r["reference low"], r["reference high"]] for r in mine], dtype=float)
        bars = np.abs(ref[:, 1:].T - ref[:, 0])
        ax.errorbar(ref[:, 0], [r["radius"] for r in mine], xerr=bars, fmt="o", ms=3, lw=0.8)
        end = max(ref.max(), max(r["radius"] for r in mine)) * 1.05
        ax.plot([0, end], [0, end], "k-", lw=0.8)
        ax.plot([0, end], [0, 0.95 * end], "k--", lw=0.8)
        ax.set(title=name, xlabel="radius, 124 single-head levels", ylabel="radius, few levels")
    fig.tight_layout()
    plt.show()
else:
    print(reading.missing("full"))

# %% [markdown]
# How many evaluations does it take to keep the radius? The record asks other settings about those draws that the reference was asked about, and estimates their
# counts in the same way. A few dozen draws an image tell them apart, and no certificate has to be made. `first` are the levels of the heads of a cascade,
# `rounds` those of a race.

# %% tags=["hide-input"]
show(
    [
        fields(r, "reference", "base", "denoiser", "first", "levels", "gap")
        | {"rounds": rounds_of(r) or "-", "passes": f"{r['passes']:.1f}", "fewer": f"{r['factor']:.0f} times", "same label": str(acc(r["same label"]))}
        | {"at most 5 % smaller": str(acc(r["within 5 %"]))}
        | fields(r, "median ratio", "worst ratio")
        for r in sorted(part("sampled").get("rows", []), key=lambda r: (r["reference"] != "EPNDC", r["passes"]))
    ],
    "sampled",
)

# %% [markdown]
# The slow rows say what can be asked: the reference itself, with another seed, is another classifier and certifies other radii. What a fast classifier loses
# beyond that is its own. EPNDC's reference stands beside APNDC's, too: different classifiers of the same noisy images, so that more levels of one need not
# close the gap to the other.

# %% tags=["hide-input", "wrap"]
sampled_rows = [r for r in part("sampled").get("rows", []) if r["reference"] == "EPNDC"]
fast = [r for r in sampled_rows if r["factor"] >= 50]
for r in sampled_rows:
    if r.get("seed") is not None:
        print(f"EPNDC's reference with another seed: label {acc(r['same label'])}, 95 % of the radius {acc(r['within 5 %'])}.")
if fast:
    best = max(fast, key=lambda r: (r["within 5 %"]["correct"], r["factor"]))
    print(f"Best of the settings with at least 50 times fewer evaluations ({best['base']} {rounds_of(best) or best['gap']}; "
          f"{best['factor']:.0f} times): label {acc(best['same label'])}, 95 % of the radius {acc(best['within 5 %'])}.")  # fmt: skip
if not sampled_rows:
    print(reading.missing("sampled"))

# %% [markdown]
# A radius that is smaller for one image may be larger for another. Each is a valid certificate for its own classifier.

# %% [markdown]
# (sec-cert-sift)=
# ## Sift and refine
#
# With one evaluation for each class and level, a thousand classes are out of reach. Most of them are absurd after a few levels. Sift-and-refine drops them, and
# evaluates the rest in full. For a smoothing certificate *no* guarantee is needed: the rule only changes which base classifier is certified. A guarantee
# matters for being the classifier that one wanted.
#
# Fix the noise. Then a classifier is a table of losses $\ell_{y,t} \ge 0$, and the full answer is $\arg\min_y \sum_t \ell_{y,t}$. Three rules
# ({py:mod}`rdc.early_exit.sift_rules`):
#
# **`Threshold`, as released.** Levels in ascending order; a class is dropped when its sum is above the smallest one by an absolute number, until ten are left;
# the best ten are refined. The number, $5 \cdot 10^{-5}$ in the units of the code, must be chosen anew for each weight, noise level and data set.
#
# **`Leader`.** A few levels choose a leader $b$, whose losses are all evaluated. Then levels are drawn with probability
# $q_t = \ell_{b,t} / \sum_{t'} \ell_{b,t'}$, and class $y$ is dropped when
#
# ```{math}
# :label: eq-cert-leader
# W_y = \prod_i \Big( 1 + \lambda_i \Big( \frac{\ell_{y,t_i}}{\ell_{b,t_i}} - 1 \Big) \Big) \ge \frac1\alpha ,
# ```
#
# with stakes $0 \le \lambda_i < 1$ that depend on earlier draws only.
#
# :::{prf:proposition} One hypothesis, whatever K
# :label: prop-cert-leader
# With probability at least $1 - \alpha$ the answer is that of the full classifier.
# :::
#
# :::{prf:proof}
# Let $y$ be the full classifier's answer. If $y = b$, it is never dropped. Otherwise $\sum_t \ell_{y,t} \le \sum_t \ell_{b,t}$, so the ratio in
# {eq}`eq-cert-leader` has the mean $\sum_t q_t \frac{\ell_{y,t}}{\ell_{b,t}} = \sum_t \ell_{y,t} / \sum_t \ell_{b,t} \le 1$. Each factor of $W_y$ is
# non-negative with mean at most 1: a supermartingale. By Ville it reaches $1 / \alpha$ with probability at most $\alpha$ ({prf:ref}`prop-cert-ville`). If $y$
# survives, it wins among the survivors. Other classes may be dropped wrongly; that does not matter, so $K$ does not enter.
# :::
#
# **`Paired`.** Bets on *differences* $\ell_{y,t} - \ell_{b,t}$, in which the noise that classes share cancels. Self-normalised, it is exact if differences are
# symmetric, and an approximation otherwise. It stops before all levels are evaluated, so that it also saves where one pass serves all classes.
#
# **`Cascade`** and **`Race`** are ours, and no rules but classifiers: a multi-head network looks at all classes in one pass, and a single-head network at those
# that are within a few nats of the best, at levels of its own ({py:mod}`rdc.early_exit.cascade`) or at those of the slow one ({ref}`sec-cert-race`). Many noisy
# images never reach the second.
#
# Digits first, then a thousand classes: random points, two for each class.


# %%
def stored(losses: Tensor) -> Table:
    """A table of known losses ``(N, K, T)``, which counts what a rule looks at; an evaluation a class and level."""
    return Table(lambda image, label, level: losses[image, label, level][:, None], tuple(losses.shape))


def sifted(model: APNDC | EPNDC, x: Tensor, other: Tensor, rules: dict[str, Any]) -> dict[str, tuple[Sifted, Accuracy]]:
    """What each rule decides on the losses of a classifier, and how often as the full one."""
    with torch.no_grad():
        losses = model.losses(x)
    rules = rules | {"Paired": Paired(calibrate(model, other))}
    winner, found = losses.sum(dim=2).argmin(dim=1), {}
    for name, rule in rules.items():
        result = sift_table(stored(losses), rule, [generator(seed, "certify", "sift", i) for i in range(len(x))])
        found[name] = result, Accuracy.of(int((result.label == winner).sum()), len(x))
    return found


x_sift, n_other = noisy_digits(n_sift + 20, sigmas[0]), 20
linear = APNDC(digits, sigmas[0], count=124, placement="linear", sigma_max=3.0, weight="edm-released", seed=seed, chunk=20_000)
digit_rules = sifted(linear, x_sift[n_other:], x_sift[:n_other], {"Threshold, as released": released(linear), "Leader": Leader()})

crowd_x = torch.rand(2 * many_classes, 1, 4, 4, generator=generator(seed, "certify", "crowd"), dtype=torch.float64)
crowd = OptimalDenoiser(crowd_x, torch.arange(2 * many_classes) % many_classes)
crowd_model = APNDC(crowd, sigmas[0], count=64, seed=seed, chunk=64 * many_classes)
noise_crowd = torch.stack([randn((1, 4, 4), seed, "certify", "crowd", i) for i in range(n_sift + 4)]).double()
x_crowd = crowd_x[: n_sift + 4] + sigmas[0] * noise_crowd
chosen_for_it = float(crowd_model.losses(x_crowd[:4]).sum(dim=2).amin(dim=1).mean()) / 2
crowd_names = {"Threshold, chosen for it": Threshold(chosen_for_it), "Leader": Leader()}
crowd_rules = sifted(crowd_model, x_crowd[4:], x_crowd[:4], crowd_names)
rows = []
for k, found in ((10, digit_rules), (many_classes, crowd_rules)):
    for name, (cut, same) in found.items():
        rows.append({"classes": k, "rule": name, "saved": f"{100 * cut.saved:.0f} %", "as the full classifier": str(same)})
show(rows)

# %% tags=["remove-cell"]
for found in (digit_rules, crowd_rules):
    claim(found["Leader"][1].high >= 0.95 and found["Leader"][0].saved > 0)
claim(crowd_rules["Leader"][0].saved > 0.5)
glue("cert-crowd", f"{100 * crowd_rules['Leader'][0].saved:.0f}")

# %% [markdown]
# Ten classes leave the released threshold nothing to do: it stops when ten are left. With a thousand classes `Leader` saves {glue:text}`cert-crowd` % and keeps
# its guarantee. A threshold chosen for these very losses may save more; it promises nothing. Where classes differ by a few percent of their losses, ratios are
# close to 1, and `Leader` saves less.
#
# On `fashion-mini`, from the record:

# %% tags=["hide-input"]
show(
    [
        fields(r, "base", "denoiser", "rule", "sigma", "levels")
        | {"evaluations saved": f"{100 * r['saved']:.0f} %", "as the full classifier": str(acc(r["agrees"]))}
        for r in part("sift").get("rows", [])
    ],
    "sift",
)

# %% [markdown]
# (sec-cert-lipschitz)=
# ## Without smoothing: the Lipschitz bound
#
# {cite:t}`chen2024ndc` observe that the diffusion classifier is smooth by itself: its logits are expectations over Gaussian noise. If a logit changes by at
# most $L$ per unit of distance, a margin of $M$ lasts for $M / (2L)$.
#
# **Assumptions.** Denoised images and images lie in the box $[-1, 1]^d$ (clip the network). The expectation over the noise is exact. Weights are not negative.
# The network need not be continuous.
#
# :::{prf:proposition} Lipschitz constants of the diffusion classifier
# :label: prop-cert-lipschitz
# Let $d$ be the number of pixels and $f_k(x) = -\sum_t w_t \E \norm{D(z + \sigma_t \varepsilon, \sigma_t, k) - z}^2$. On images in $[0, 1]^d$ every logit, and
# every difference of two, have the Lipschitz constants
#
# $$
# L = 8 d \sum_t w_t \Big( \frac{1}{\sqrt{2 \pi}\, \sigma_t} + \frac{1}{\sqrt d} \Big), \qquad
# L_\Delta = 8 d \sum_t w_t \Big( \sqrt{\frac2\pi}\, \frac{1}{\sigma_t} + \frac{1}{\sqrt d} \Big) \le 2 L .
# $$
# :::
#
# :::{prf:proof}
# Put $g = \norm{D - z}^2 / (4d) \in [0, 1]$ and $m = \E g$, so that $f = -4d \sum_t w_t m_t$. The point $z$ enters $m$ twice: as the place of the noise, and as
# the target.
#
# *The place.* For a bounded function the derivative can be moved to the Gaussian density:
# $\nabla_z \E g(z + \sigma \varepsilon) = \frac1\sigma \E[g\, \varepsilon]$ (Stein). For a unit vector $v$ and $0 \le g \le 1$, $\E[g\, \varepsilon \cdot v]$
# is largest if $g$ is 1 where $\varepsilon \cdot v > 0$ and 0 elsewhere (rearrangement). Its value is $\E(\varepsilon \cdot v)_+ = 1 / \sqrt{2 \pi}$.
#
# *The target.* Its derivative is $-\frac{1}{2d} \E[D - z]$, and $\norm{D - z} \le 2 \sqrt d$.
#
# Together $\norm{\nabla_z m} \le \frac{1}{\sqrt{2\pi} \sigma} + \frac{1}{\sqrt d}$, and $z = 2x - 1$ gives another factor 2. For a difference of two classes,
# $g_j - g_k \in [-1, 1]$ and $\E |\varepsilon \cdot v| = \sqrt{2 / \pi}$, and $\norm{D_j - D_k} \le 2 \sqrt d$.
# :::
#
# So $R = M / L_\Delta$. For probabilities, $\nabla p_y = p_y \sum_j p_j \nabla (f_y - f_j)$, hence
# $\norm{\nabla p_y} \le p_y (1 - p_y) L_\Delta \le L_\Delta / 4$. A softmax divides by a constant; it does not make anything robust.
#
# **The constant of the paper**, $(1 + \sqrt{2/\pi}) \sum_t w_t / \sigma_t$ for losses averaged over pixels, is no bound where networks see $[-1, 1]$ and images
# are $[0, 1]$. A denoiser that jumps across a plane is a counterexample, in closed form ({ref}`ex-cert-half-space`). The released script takes the *mean* over
# levels where the logits are a *sum*.


# %%
def one_level(s: float) -> Levels:
    """One noise level of weight 1."""
    return Levels(torch.tensor([s], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def half_space_slope(s: float, d: int, h: float = 1e-5) -> float:
    """Slope of one term, mean over pixels, at the white corner, for a denoiser that says all black or all white on two sides of a plane."""

    def m(t: float) -> np.ndarray:  # normalised losses of two opposite classes at the image 1 - t / sqrt(d)
        black, pixel = np.array([ndtr(-2 * t / s), ndtr(2 * t / s)]), 1 - 2 * t / math.sqrt(d)
        return (black * (pixel + 1) ** 2 + (1 - black) * (pixel - 1) ** 2) / 4

    return float(np.abs(m(h) - m(0)).max() * 4 / h)


size = test.x[0].numel()
many_sigma = np.logspace(-1, 1, 25)
curves: dict[str, np.ndarray] = {}
for name, kind in (("rigorous bound", "rigorous"), ("the paper's constant", "paper")):
    curves[name] = np.array([lipschitz_constant(one_level(s), size, kind, reduce="mean") for s in many_sigma])
curves["reached by a half-space"] = np.array([half_space_slope(s, size) for s in many_sigma])
excess = curves["reached by a half-space"] / curves["the paper's constant"]
print(f"half-space over the paper's constant: {excess.min():.2f} ... {excess.max():.2f}; over the rigorous bound at most "
      f"{(curves['reached by a half-space'] / curves['rigorous bound']).max():.3f}")  # fmt: skip
script_sigma = torch.linspace(0.5, 3, 126, dtype=torch.float64)[1:-1]
script = Levels(script_sigma, torch.ones_like(script_sigma))
constants = {kind: lipschitz_constant(script, 3072, kind, reduce="mean") for kind in ("rigorous", "paper", "released")}
print("the released script's 124 levels, w = 1, 3072 pixels:", ", ".join(f"{k} {v:.2f}" for k, v in constants.items()),
      f"; rigorous over released {constants['rigorous'] / constants['released']:.0f}")  # fmt: skip
glue("cert-half-space", f"{excess.max():.2f}")
glue("cert-released-constant", f"{constants['rigorous'] / constants['released']:.0f}")

# %% [markdown]
# Is the bound ever exceeded? We climb the slope on random data sets of two pixels, where the expectation is a sum over a grid.


# %%
class Exact(nn.Module):
    """The diffusion classifier of two pixels with the exact expectation over the noise."""

    def __init__(self, denoiser: OptimalDenoiser, levels: Levels) -> None:
        super().__init__()
        self.denoiser, self.levels = denoiser, levels
        self.eps, self.chance = gaussian_grid(33)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        z, logits = to_model(x), 0.0
        for s, w in zip(self.levels.sigma.tolist(), self.levels.weight.tolist(), strict=True):
            found = self.denoiser.all_classes((z[:, None] + s * self.eps).flatten(0, 1), s).unflatten(0, (len(z), -1))
            error = (found - z[:, None, None]).square().flatten(3).sum(dim=3)  # (N, nodes, K)
            logits = logits - w * torch.einsum("ngk,g->nk", error, self.chance)
        return logits


slopes: dict[bool, list[float]] = {False: [], True: []}
for i in range(n_slopes):
    rand = partial(torch.rand, generator=generator(seed, "certify", "slopes", i), dtype=torch.float64)
    x_set = rand(5, 1, 1, 2)
    x_set = (x_set + 0.5).floor() if i % 2 else x_set  # every other set in the corners of the box, where slopes are largest
    some, start = Levels(0.4 + 1.5 * rand(3).sort().values, 0.1 + rand(3)), rand(3, 1, 1, 2)
    model = Exact(OptimalDenoiser(x_set, torch.arange(5) % 2), some)
    label = torch.zeros(3, dtype=torch.int64)
    for difference in slopes:
        climbed = empirical_slope(model, start, label, 1 - label if difference else None, steps=4, size=0.15, seed=seed)
        slopes[difference] += (climbed / lipschitz_constant(some, 2, difference=difference)).tolist()
for difference, values in slopes.items():
    what = "difference of logits" if difference else "one logit"
    print(f"{what:20s} slope over its bound: median {np.median(values):.3f}, largest {max(values):.3f}, {len(values)} starts")

# %% mystnb={"figure": {"caption": "Left: Lipschitz constant of one term with weight 1, mean over pixels, by its noise level: the rigorous bound, what a half-space denoiser reaches, and the paper's constant. Right: steepest slopes met on random data sets, as a share of the bound.", "name": "fig-cert-lipschitz"}, "image": {"alt": "The half-space curve lies just below the rigorous bound and above the paper's constant at low noise; a histogram of slopes lies below one"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
for (name, v), ls in zip(curves.items(), ("-", "--", ":"), strict=True):
    axes[0].plot(many_sigma, v, ls, label=name)
axes[0].set(xscale="log", yscale="log", xlabel=r"noise level $\sigma_t$ (model units)", ylabel="slope, image units")
axes[0].legend(fontsize=8)
axes[1].hist([slopes[False], slopes[True]], bins=np.linspace(0, 1, 21), label=["one logit", "difference"])
axes[1].axvline(1, color="k", lw=1)
axes[1].set(xlabel="slope / bound", ylabel="walks")
axes[1].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
worst_slope = max(max(v) for v in slopes.values())
claim(worst_slope <= 1 and excess.max() > 1.5)
claim((curves["reached by a half-space"] <= curves["rigorous bound"] * (1 + 1e-6)).all())

# %% [markdown]
# The half-space exceeds the paper's constant by a factor of up to {glue:text}`cert-half-space` and stays below the rigorous one. The constant of the released
# script is {glue:text}`cert-released-constant` times smaller than the rigorous constant for what it is used with, so its radii are larger by that factor than
# the bound allows.
#
# ### The local form
#
# The bound is for the worst function. At an image where a loss is small, $m \ll 1$, the slope must be small too. For a fixed target, $m$ is a function with
# values in $[0, 1]$ under Gaussian noise, and the proof of {prf:ref}`thm-cert-cohen` says that $\Phi^{-1}(m)$ is $1/\sigma_t$-Lipschitz. Moving the target by
# $r$ (model units) changes $\sqrt m = \big( \E \norm{D - z}^2 \big)^{1/2} / (2 \sqrt d)$ by at most $r / (2 \sqrt d)$, the triangle inequality. So within a
# distance of $r$
#
# ```{math}
# :label: eq-cert-local
# \Big( \sqrt{\Phi(\Phi^{-1}(m_t) - \tfrac{r}{\sigma_t})} - \tfrac{r}{2 \sqrt d} \Big)_+^2 \;\le\; m_t \;\le\; \Big( \sqrt{\Phi(\Phi^{-1}(m_t) + \tfrac{r}{\sigma_t})} + \tfrac{r}{2 \sqrt d} \Big)^2 ,
# ```
#
# and the certified radius is the largest at which the weighted lower ends of every rival still exceed the upper ends of the class
# ({py:func}`rdc.certify.lipschitz.certified_radius`, by bisection).
#
# **Confidence.** The expectation over the noise is not available either. {py:func}`rdc.certify.lipschitz_certificate.lipschitz_certify` bounds the margin from $n$ fresh
# draws, with a bound for means of bounded numbers ({py:mod}`rdc.certify.betting_bound`): its error is at least about $\log(1/\alpha) / n$ of the *range*, and here lies
# the trouble.
#
# ### Why it is tiny on images
#
# The constant grows with the range $4d$ of a loss, the margin with the part of that range in which two classes differ. We compute both, the margin from a few
# draws and *without* any confidence bound, for the multi-head network and several lowest levels.

# %%
x_margin, y_margin = test.x[:6].to(device), test.y[:6].tolist()
tiny: list[Row] = []
for low_level in (0.1, 0.5, 1.0, 2.0):
    chosen_levels = levels("elbo", 8, sigma_min=low_level)
    model = DiffusionClassifier(heads, chosen_levels, draws=2, seed=seed)
    with torch.no_grad():
        m = model.losses(x_margin).double().cpu().numpy() / (4 * size)  # (N, K, T) in [0, 1]
    w = chosen_levels.weight.numpy()
    total, constant_of = (m * w).sum(axis=2), lipschitz_constant(chosen_levels, size, difference=True)
    margin_share = [float(np.delete(row, k).min() - row[k]) / w.sum() for row, k in zip(total, y_margin, strict=True)]
    local = [certified_radius(a[k], np.delete(a, k, axis=0), chosen_levels, size) for a, k in zip(m, y_margin, strict=True)]
    share, top_margin = float(np.median(margin_share)), 4 * size * w.sum()
    tiny.append({"lowest level": low_level, "L of a difference": f"{constant_of:,.0f}", "range of the margin": f"{top_margin:,.0f}",
                 "median margin": f"{top_margin * share:.1f}", "its share of the range": f"{share:.5f}",
                 "radius, global": f"{max(0.0, top_margin * share) / constant_of:.5f}", "radius, local": f"{np.median(local):.4f}",
                 "radius if it filled the range": f"{top_margin / constant_of:.2f}"})  # fmt: skip
print(f"{len(x_margin)} images, medians; nats, and radii in image units")
show(tiny)

# %% [markdown]
# A class is told from another by a small part of the loss that is possible. Higher levels help the constant, and take away what the classes differ in. The last
# column shows what the bound could give to a classifier that uses its whole range: the theorem is not empty, the margins are small.
#
# With a confidence bound, from the record:

# %% tags=["hide-input"]
lip = part("lipschitz")
lip_rows = lip.get("rows", [])


def lip_radius(r: Row, key: str) -> float:
    """A radius of the part "lipschitz"; 0 if the class is known to be wrong."""
    return (r.get(key) or 0.0) if r.get("candidate") == r.get("true") else 0.0


if lip_rows:
    count = lip.get("count", lip.get("levels"))
    print(f"{len(lip_rows)} images, {count} levels from {lip.get('sigma_min')}, n = {lip.get('n')} draws of all levels")
    print("constants:", ", ".join(f"{k} {v:,.0f}" for k, v in (lip.get("constants") or {}).items()))
    for key in ("radius if exact", "radius local", "radius global"):
        values = np.array([lip_radius(r, key) for r in lip_rows])
        positive = Accuracy.of(int((values > 0).sum()), len(values))
        print(f"{key:16s} median {np.median(values):.5f}, largest {values.max():.5f}; right and positive for {positive}")
else:
    print(reading.missing("lipschitz"))

# %% [markdown]
# (sec-cert-curves)=
# ## Certified accuracy
#
# An image counts as certified at a radius if the smoothed class is right *and* its radius is at least that. The curve of a base classifier falls with the
# radius, and ends at the latest where {numref}`fig-cert-reach` says.
#
# | base | what it is |
# |---|---|
# | EPNDC, APNDC | the noised diffusion classifiers, no training for the noise |
# | Carlini | one step of the denoiser without class, then a network for clean images |
# | Cohen | a network trained with that noise |
# | Cascade | EPNDC with heads, then with a single head for close classes |
# | Race | some of EPNDC's 124 levels, the first with heads, until one class is left |
# | DC, clipped | the clean diffusion classifier on the clipped noisy image |
# | DC + Lipschitz | no smoothing: the local form above |

# %% tags=["hide-input"]
curve_rows = part("curves").get("rows", [])
curve_sigmas = sorted({r["sigma"] for r in curve_rows if r.get("sigma") is not None})
COLOURS = {name: f"C{i}" for i, name in enumerate(("EPNDC", "APNDC", "Carlini", "Cohen", "Cascade", "DC, clipped", "Race"))}


def curves_at(s: float, base: str | None = None) -> list[Row]:
    """Rows of the part "curves" for a smoothing noise, fewest draws first; without noise they belong to all of them."""
    found = [r for r in curve_rows if r.get("sigma") in (s, None) and base in (r["base"], None)]
    return sorted(found, key=lambda r: (r["n"], r["base"]))


def certified(row: Row, r: float) -> Accuracy:
    """Certified accuracy of a row at any radius, from its points."""
    return Accuracy.of(sum(bool(right) and found >= r for right, found in row["points"]), len(row["points"]))


sorted_curves = sorted(curve_rows, key=lambda r: (r.get("sigma") or 0, r["n"], r["base"]))
limits = [reach(r["n"], r["sigma"], part("curves")["alpha"]) for r in sorted_curves]
cells = [
    {f"R = {at:g}": str(certified(r, at)) if at <= limit else "-" for at in (0, *radii)}
    for r, limit in zip(sorted_curves, limits, strict=True)
]
keys = ("base", "denoiser", "sigma", "n")
show([fields(r, *keys) | cell for r, cell in zip(sorted_curves, cells, strict=True)], "curves")

# %% mystnb={"figure": {"caption": "From the record: certified accuracy against the radius, one panel for each smoothing noise, with 95 % Wilson intervals. The dotted line is the largest radius that the number of draws can certify.", "name": "fig-cert-curves"}, "image": {"alt": "Falling staircases of certified accuracy against the radius, one panel for each smoothing noise"}} tags=["hide-input"]
if curve_sigmas:
    fig, axes = plt.subplots(1, len(curve_sigmas), figsize=(3.4 * len(curve_sigmas), 3.4), sharey=True, squeeze=False)
    for ax, s in zip(axes[0], curve_sigmas, strict=True):
        end = max(reach(r["n"], s, part("curves")["alpha"]) for r in curve_rows if r.get("sigma") == s)
        grid = np.linspace(0, 1.08 * end, 120)
        fewest = min(r["n"] for r in curves_at(s))
        for r in curves_at(s):
            values, colour = [certified(r, at) for at in grid], COLOURS.get(r["base"], "C7")
            name, ls = (r["base"], "-") if r["n"] == fewest else (f"{r['base']}, n = {r['n']:,}", "--")
            ax.plot(grid, [100 * a.value for a in values], color=colour, ls=ls, label=name)
            ax.fill_between(grid, [100 * a.low for a in values], [100 * a.high for a in values], color=colour, alpha=0.1, lw=0)
        if lip_rows:
            shares = [100 * np.mean([lip_radius(r, "radius local") >= max(at, 1e-12) for r in lip_rows]) for at in grid]
            ax.plot(grid, shares, color="0.3", ls=":", label="DC + Lipschitz")
        for end in {reach(r["n"], s, part("curves")["alpha"]) for r in curves_at(s)}:
            ax.axvline(end, color="0.4", ls=":", lw=1)
        ax.set(title=rf"$\sigma$ = {s:g}", xlabel="radius (image units)", ylim=(0, 103))
    axes[0, 0].set_ylabel("certified accuracy (%)")
    fig.tight_layout()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 0.02))
    plt.show()
else:
    print(reading.missing("curves"))

# %% [markdown]
# What a certificate costs: passes for a noisy image, noisy images (`calls`), seconds for a certificate.

# %% tags=["hide-input"]
costs = ("levels", "passes", "calls", "seconds", "abstained")
show([fields(r, "base", "denoiser", "sigma", *costs) for r in sorted_curves], "curves")

# %% [markdown]
# (sec-cert-verdict)=
# ## Verdicts
#
# Computed from this page and from the record. Comparisons of certified accuracy are exact McNemar tests on the same images, at every smoothing noise and every
# radius of the paper that the draws can reach, with Bonferroni's correction for their number. "In part" stands where some are better and others worse.

# %% tags=["hide-input"]
HOLDS, FAILS, OPEN, PART, MISSING = "holds here", "does not hold here", "not decided at this size", "in part", "not run here"
PAPER_RADII, LEVEL = (0.25, 0.5, 0.75), 0.05
verdicts: list[tuple[str, str, str]] = []
comparisons: list[Row] = []


def judge(claim: str, verdict: str, evidence: str = "") -> None:
    """Keep a verdict with its evidence."""
    verdicts.append((claim, verdict, evidence))


def beyond(share: Accuracy | None, limit: float) -> str:
    """Whether a share is above a limit, by its interval."""
    return MISSING if share is None else HOLDS if share.low > limit else FAILS if share.high < limit else OPEN


def together(found: list[str]) -> str:
    """One verdict for several comparisons of the same kind."""
    kinds = set(found) - {OPEN}
    return MISSING if not found else OPEN if not kinds else PART if len(kinds) > 1 else kinds.pop()


def compare(first: str, second: str) -> tuple[str, str]:
    """Whether one base certifies more than another, over all smoothing noises and radii."""
    tests: list[tuple[int, int, float]] = []
    for s, r in itertools.product(curve_sigmas, PAPER_RADII):
        pairs = [(a, b) for a in curves_at(s, first) for b in curves_at(s, second) if a["n"] == b["n"]]
        if not pairs or r > reach(pairs[-1][0]["n"], s, part("curves")["alpha"]):
            continue
        two = pairs[-1]  # the same n, the largest that both have
        n = min(len(row["points"]) for row in two)
        a, b = (np.array([right and found >= r for right, found in row["points"][:n]], dtype=bool) for row in two)
        won, lost = int((a & ~b).sum()), int((b & ~a).sum())
        p = binomtest(won, won + lost).pvalue if won + lost else 1.0
        tests.append((won, lost, p))
        comparisons.append({"first": first, "second": second, "sigma": f"{s:g}", "n": two[0]["n"], "R": f"{r:g}", "images": n, "only the first": won,
                            "only the second": lost, "p": f"{p:.2g}"})  # fmt: skip
    sure = [won > lost for won, lost, p in tests if p * len(tests) < LEVEL]
    found = [HOLDS if more else FAILS for more in sure] + [OPEN] * (len(tests) - len(sure))
    return together(found), f"significantly more in {sum(sure)}, fewer in {len(sure) - sum(sure)} of {len(tests)} comparisons"


bounds = bound_gap["fixed"] + bound_gap["specific"]
steepest, times = f"proved; steepest slope {worst_slope:.2f} of the bound", f"exceeded by a factor of {excess.max():.2f}"
judge("B1 the logits are Lipschitz; here", HOLDS if worst_slope <= 1 else FAILS, steepest)
judge("B1 ... with the paper's constant; here", FAILS if excess.max() > 1 else OPEN, times)
reached = sum(lip_radius(r, "radius local") >= PAPER_RADII[0] for r in lip_rows)
hits = Accuracy.of(reached, len(lip_rows)) if lip_rows else None
judge("B1 ... hence certified at R = 0.25 without smoothing, most images; record", beyond(hits, 0.5), str(hits))
judge("B2 the ELBO of a noisy image is a bound; here", HOLDS if min(bounds) > 0 else FAILS,
      f"two pixels, exact: mean gap {bounds[0]:.2f} nats at T = {gap_counts[0]}, {bound_gap['fixed'][-1]:.3f} at T = {gap_counts[-1]}")  # fmt: skip
judge("B3 APNDC certifies more than EPNDC; record", *compare("APNDC", "EPNDC"))
two_rows = [(a, e) for s in curve_sigmas for a in curves_at(s, "APNDC")[:1] for e in curves_at(s, "EPNDC")[:1]]
ratios = [a["passes"] / e["passes"] for a, e in two_rows]
judge("B3 ... at no more than 1.2 times the passes; record", MISSING if not ratios else HOLDS if max(ratios) <= 1.2 else FAILS,
      f"passes of APNDC over EPNDC {', '.join(f'{v:.2f}' for v in ratios)}")  # fmt: skip
for ndc, rival in itertools.product(("APNDC", "EPNDC", "Cascade", "Race"), ("Carlini", "Cohen")):
    judge(f"B4 {ndc} certifies more than {rival}; record", *compare(ndc, rival))
lone = [certified(row, PAPER_RADII[0]) for base in ("EPNDC", "APNDC") for s in curve_sigmas[:1] for row in curves_at(s, base)]
best = max(lone, key=lambda a: a.value, default=None)
judge("B5 one diffusion model is enough, above chance at R = 0.25; record", beyond(best, 1 / classes), "; ".join(map(str, lone)))
judge("B6 shared noise saves evaluations; here", HOLDS if shared_gain > 1.2 else FAILS if shared_gain < 1 else OPEN,
      f"digits, optimal denoiser: squared error of log odds divided by {shared_gain:.1f} at equal levels and draws")  # fmt: skip
alike = ("sigma", "base", "denoiser", "form", "levels", "antithetic", "noise")
coupled = [(a, b) for a, b in itertools.product(level_rows, level_rows) if (a.get("coupling"), b.get("coupling")) == ("shared", "per_class")
           and all(a.get(k) == b.get(k) for k in alike)]  # fmt: skip
shares = [(a[key], b[key]) for a, b in coupled for key in ("right", "agrees") if a.get(key) and b.get(key)]
order = [HOLDS if a["low"] > b["high"] else FAILS if a["high"] < b["low"] else OPEN for a, b in shares]
judge("B6 ... more noisy images right, or as with 124 levels, at equal levels; record", together(order),
      f"intervals apart: higher {order.count(HOLDS)}, lower {order.count(FAILS)} of {len(order)} shares")  # fmt: skip
crowd_saved, crowd_agrees = crowd_rules["Leader"][0].saved, crowd_rules["Leader"][1]
judge(f"B7 sifting {many_classes} simulated classes: as the full classifier for more than 95 %; here", beyond(crowd_agrees, 0.95),
      f"Leader: {crowd_agrees}, {100 * crowd_saved:.0f} % saved")  # fmt: skip
for r in part("sift").get("rows", []):
    judge(f"B7 ... {r['base']}, {r['rule']}, {r.get('denoiser')}, sigma {r['sigma']:g}; record",
          FAILS if r["saved"] <= 0 else beyond(acc(r["agrees"]), 0.95), f"{acc(r['agrees'])}, {100 * r['saved']:.0f} % saved")  # fmt: skip
for f in summary:
    parts = [beyond(acc(f[key]), 0.9) for key in ("within 5 %", "same label")]
    judge(f"B8 few levels: {f['base']}, same label and radius within 5 %, each for more than 90 %; record",
          FAILS if FAILS in parts else OPEN if OPEN in parts else HOLDS,
          f"radius {acc(f['within 5 %'])}, label {acc(f['same label'])}, {of_base('factor', f) or math.nan:.0f} times fewer evaluations")  # fmt: skip
if not summary:
    judge("B8 few levels suffice; record", MISSING)
seeds = [r for r in sampled_rows if r.get("seed") is not None]
for r in seeds:
    parts = [beyond(acc(r[key]), 0.9) for key in ("within 5 %", "same label")]
    judge("B8 ... the same of the reference itself with another seed; record", FAILS if FAILS in parts else OPEN if OPEN in parts else HOLDS,
          f"radius {acc(r['within 5 %'])}, label {acc(r['same label'])}")  # fmt: skip
for statement, verdict, numbers in verdicts:
    print(f"{statement}\n    {verdict}{'' if verdict == MISSING else ': ' + numbers}")

# %% tags=["hide-input"]
show(comparisons, "curves")

# %% tags=["remove-cell"]
assert {statement[:2] for statement, _, _ in verdicts} == {f"B{i}" for i in range(1, 9)}
assert all(verdict in (HOLDS, FAILS, OPEN, PART, MISSING) for _, verdict, _ in verdicts)

# %% [markdown]
# :::{admonition} What these numbers are not
# :class: warning
# They are Fashion-MNIST and a small network. {cite:t}`chen2024ndc` report 82.2, 70.7 and 54.5 % at radii 0.25, 0.5 and 0.75 on CIFAR-10. We did
# not run that, and nothing here confirms or refutes it. Certified accuracies at the same radius are comparable only for the same data, $n$ and $\alpha$.
# :::
#
# ### What was not run
#
# - CIFAR-10 and ImageNet, in any form; the networks of the paper.
# - The certificate with all $n$ draws of 124 single-head levels: its radius is *estimated* on the same draws, and 124 levels are asked about
#   the class and its closest rivals only (see {ref}`sec-cert-factors`).
# - Sift-and-refine with many classes on real images: a thousand classes are simulated.
# - The theorem numbers of the paper are not cited. "As released" is commit 410b09f of its code.

# %% tags=["hide-input"]
absent = [name for name in ("levels", "full", "sampled", "target", "sift", "lipschitz", "curves") if not part(name)]
print("parts of the record that were not run here:", ", ".join(absent) or "none")

# %% [markdown]
# ## Summary
#
# - A certificate is a probability bound, $\sigma\, \Phi^{-1}(\underline p)$. Its error is over the draws, for each image.
# - $n$ draws reach $\sigma\, \Phi^{-1}(\alpha^{1/n})$. Counts that were not drawn certify nothing.
# - Looking on the way needs a bound that holds at all times: a supermartingale and Ville, or a split $\alpha$. Clear images then take few draws.
# - The bound of a noisy image is a denoising loss with a pseudo target. In the limit, with the optimal denoiser, it is Bayes' rule.
# - For a classifier a quadrature beats a bound. Mirror images remove the odd noise of EPNDC; noise shared by the classes helps, too.
# - APNDC `ensemble` classifies the denoised image. Its target must not depend on the class.
# - Inner noise is part of a base classifier. Whoever wants the radius of a slow one cheaply must look at levels of it, with its noise; with another seed the slow
#   one itself certifies other radii.
# - The diffusion classifier is Lipschitz whatever its network. The constant is large and the margins are small, so the radius is tiny.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-counts
# :::
# **By hand.** A log says: $\sigma = 0.5$, $n = 1000$, $\alpha = 0.001$, 990 answers of class 3. Which radius is certified? How many draws, all successful,
# would certify the radius that the *share* 0.99 suggests? With the same share, how large must $n$ be to certify 95 % of it?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-counts
# :label: sol-cert-counts
# :class: dropdown
# :::
# The bound solves $P(\mathrm{Bin}(1000, p) \ge 990) = \alpha$. All $n$ successful gives $\alpha^{1/n}$, so $\alpha^{1/n} = 0.99$ or
# $n = \ln \alpha / \ln 0.99$. The last question has no closed form; doubling and bisection do it.

# %%
naive = 0.5 * norm.ppf(0.99)
enough = next(n for n in range(100, 100_000, 100) if radius_from_counts(round(0.99 * n), n, 0.5, 0.001) >= 0.95 * naive)
print(f"certified {radius_from_counts(990, 1000, 0.5, 0.001):.3f}; the share suggests {naive:.3f}")  # NBVAL_CHECK_OUTPUT
all_agree = math.ceil(math.log(0.001) / math.log(0.99))
print(f"{all_agree} successful draws certify that; with 99 % successes 95 % of it takes n = {enough}")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-prior
# :::
# **Another prior.** The mixture of {eq}`eq-cert-mixture` has a beta prior with $a = 1$, $b = \frac12$. Is the proposition true for others? Compare
# $b \in \{0.1, 0.5, 1, 5\}$: draws needed for a radius of $\sigma$, $2\sigma$ and $3\sigma$ if all succeed, and the radius after 9900 of 10 000. Which prior
# would you take, and when must you have decided?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-prior
# :label: sol-cert-prior
# :class: dropdown
# :::
# The proof uses nothing of $\pi$ but that it is a density on $(p, 1)$. A prior with its mass near 1 (small $b$) is quick where all draws agree, and slow where
# one in a hundred fails. The choice is free as long as it is made before the draws; the best of several, chosen afterwards, is peeking again.


# %%
def fewest_successes(target: float, b: float) -> int:
    """Successes in a row after which the probability Phi(target) is exceeded for sure, at level alpha."""
    n = 1
    while log_mixture(n, n, float(norm.cdf(target)), 1.0, b) < -math.log(alpha):
        n += max(1, n // 200)
    return n


for b in (0.1, 0.5, 1.0, 5.0):
    needed = [fewest_successes(t, b) for t in (1.0, 2.0, 3.0)]
    share = radius(sequence_lower(9900, 10_000, alpha, 1.0, b), 1.0)
    print(f"b = {b:3g}: all succeed: {needed[0]:3d}, {needed[1]:4d}, {needed[2]:5d} draws; 9900 of 10 000: {share:.3f} sigma")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-calibrate
# :::
# **A classifier that knows the image.** A fast classifier errs by an offset that depends on the image. Why not measure the offset on the $n_0$ first draws,
# correct the logits, and certify with the $n$ others? They are independent. Take two classes on a line, the slow logit $s(u) = u$ of class 1 against class 0,
# and the fast one $h(u) = 0$. Certify $x = 0.1$ with $\sigma = 0.25$, and compare with the distance to the image at which the smoothed answer changes. Which
# assumption fails? May the *weights* of a race be learned from data?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-calibrate
# :label: sol-cert-calibrate
# :class: dropdown
# :::
# The corrected logit is $h(u) + b(x)$ with $b(x)$ the mean of $s - h$ near $x$: a constant, so that all draws agree and the radius is the largest that $n$ draws
# reach. But whoever classifies $x' = -0.1$ measures $b(x') < 0$ there and answers otherwise. Cohen's theorem is about *one* base classifier at $x$ and at
# $x + \rho$. Independence of the draws does not help; here the classifier changes with the image. The weights of a race were learned from other images and are
# the same for all: one function.

# %%
rng = np.random.default_rng(seed)


def calibrated_answers(x: float, n0: int = 100, n: int = 1000, s: float = 0.25) -> np.ndarray:
    """Answers to n draws around x of the fast classifier, corrected with n0 others."""
    b = (x + s * rng.normal(size=n0)).mean()  # slow less fast logit, measured at x
    return 0 * rng.normal(size=n) + b > 0


ones = [int(calibrated_answers(x).sum()) for x in (0.1, -0.1)]
claimed = radius_from_counts(ones[0], 1000, 0.25, 0.001)
print(f"answers of class 1: {ones[0]} of 1000 at 0.1, {ones[1]} at -0.1; certified radius at 0.1: {claimed:.2f}")  # NBVAL_CHECK_OUTPUT
print("false:", claimed > 0.2 and ones[1] == 0)  # NBVAL_CHECK_OUTPUT

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-target
# :::
# **Its own target.** Write the loss with a target $c$ as $\E \norm{D_y}^2 - 2 \E[D_y \cdot c] + \E \norm{c}^2$. Why may a common target take the place of
# $\tilde z$, and what goes wrong with a target $c_y = D(z_\tau, \tau, y)$ of each class? Count on the digits which classes `condition-on-y` prefers.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-target
# :label: sol-cert-target
# :class: dropdown
# :::
# For a common $c$ with $\E[c \mid z_s] = \E[z \mid z_s]$ the middle term is that of EPNDC in the mean, and the last one cancels between classes. For
# $c_y = D(z_\tau, \tau, y)$ the mean given $z_s$ *under class y* is $D_y$ itself: if the image were of class $y$, the loss would be the spread of its guesses.
# The loss of class $y$ then measures how much $D_y$ changes when noise is added, for *every* class, whether it fits or not. It is smallest for classes of few,
# similar images.

# %%
x_target = noisy_digits(n_digits, sigmas[0])
make = partial(APNDC, digits, sigmas[0], seed=seed, chunk=20_000)
votes = {name: make(variant=name)(x_target).argmax(dim=1) for name in ("correct", "condition-on-y")}
within = torch.stack([to_model(digits_train.x[digits_train.y == k]).flatten(1).var(dim=0).sum() for k in range(10)])
print("class             ", "  ".join(f"{k:4d}" for k in range(10)))
print("spread of images  ", "  ".join(f"{v:4.0f}" for v in within.tolist()))
for name, vote in {"true": labels, **votes}.items():
    print(f"{name:18s}", "  ".join(f"{int((vote == k).sum()):4d}" for k in range(10)))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-two-sided
# :::
# **The runner-up.** Cohen et al. also prove $R = \frac\sigma2 \big( \Phi^{-1}(\underline{p_A}) - \Phi^{-1}(\overline{p_B}) \big)$, where $\overline{p_B}$
# bounds the probability of *every* other class. With $\overline{p_B} = 1 - \underline{p_A}$ it is the radius of this chapter. When is it worth to estimate
# $p_B$? Share $\alpha$ fairly, and compare for counts $(k_A, k_B)$ of 10 000.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-two-sided
# :label: sol-cert-two-sided
# :class: dropdown
# :::
# Which class is the runner-up is not known beforehand, so all $K - 1$ rivals need a bound: $\alpha / 2$ for $p_A$, and $\alpha / (2 (K - 1))$ for each rival.
# The largest bound belongs to the largest count. If all failures go to one class, that is worse than $1 - \underline{p_A}$, which needs no share. If they
# scatter over many classes, $p_B$ is far below $1 - p_A$ and the radius grows. It even exists for $p_A < \frac12$.


# %%
def two_sided(k_a: int, k_b: int, n: int, rivals: int) -> float:
    """Radius in units of sigma from the counts of the class and of the most frequent rival."""
    low = clopper_pearson(k_a, n, alpha / 2)
    high = 1 - clopper_pearson(n - k_b, n, alpha / (2 * rivals))
    return max(0.0, (norm.ppf(low) - norm.ppf(high)) / 2)


for k_a, k_b in ((9900, 100), (9900, 20), (7000, 3000), (7000, 400), (4500, 700)):
    both, alone = two_sided(k_a, k_b, 10_000, 9), radius_from_counts(k_a, 10_000, 1.0, alpha)
    print(f"k_A = {k_a}, largest rival {k_b:4d}: with p_B {both:.3f} sigma, with 1 - p_A {alone:.3f} sigma")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-half-space
# :::
# **A denoiser that reaches the bound.** Let $z^* = (1, \dots, 1)$ be the white image. Class 0's denoiser answers all black if
# $(z_\sigma - z^*) \cdot \mathbf 1 > 0$ and all white otherwise. Compute its loss at the images $x(t) = \mathbf 1 - t\, \mathbf 1 / \sqrt d$, take the slope at
# $t = 0$, and compare with $L$ for one level. Which part of the bound is not reached?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-half-space
# :label: sol-cert-half-space
# :class: dropdown
# :::
# At $x(t)$ every pixel is $1 - 2t / \sqrt d$ in model units, and the plane lies at a distance of $2t$: black comes with probability $\Phi(-2t / \sigma)$. So
#
# $$
# m(t) = \Phi\big( -\tfrac{2t}{\sigma} \big) \Big( 1 - \frac{t}{\sqrt d} \Big)^2 + \Phi\big( \tfrac{2t}{\sigma} \big) \frac{t^2}{d}, \qquad
# m'(0) = -\frac{2}{\sqrt{2 \pi}\, \sigma} - \frac{1}{\sqrt d} .
# $$
#
# The slope of the logit is $4 d\, |m'(0)| = 8 d \big( \frac{1}{\sqrt{2\pi} \sigma} + \frac{1}{2 \sqrt d} \big)$. The first term is reached exactly. Of the
# second, half: at the border black is answered half the time only, so $\norm{\E[D - z]}$ is $\sqrt d$ and not $2 \sqrt d$.

# %%
for s in (0.1, 0.5, 2.0, 10.0):
    closed = 8 * (1 / (math.sqrt(2 * math.pi) * s) + 1 / (2 * math.sqrt(size)))
    bound = lipschitz_constant(one_level(s), size, reduce="mean")
    slope = half_space_slope(s, size)
    print(f"sigma {s:4g}: by differences {slope:.4f}, closed form {closed:.4f}, of the bound {closed / bound:.3f}")
    assert abs(slope / closed - 1) < 1e-3

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Noised diffusion classifiers, their Lipschitz bound and sift-and-refine: {cite:t}`chen2024ndc`. Randomized smoothing: {cite:t}`cohen2019certified`; denoise,
# then classify: {cite:t}`salman2020denoised` and {cite:t}`carlini2023certified`. The exact binomial bound:
# {cite:t}`clopper1934use`; confidence sequences: {cite:t}`darling1967confidence`
# and {cite:t}`robbins1970statistical`; bounds for means by betting: {cite:t}`waudbysmith2024estimating`.
# The identity behind the limit: {cite:t}`guo2005immse` and {cite:t}`kong2023information`. Wilson's interval: {cite:t}`wilson1927`. The images are those of
# {cite:t}`xiao2017fashion` and {cite:t}`alpaydin1998digits`.
