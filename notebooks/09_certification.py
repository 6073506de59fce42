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
# - Prove the radius of {term}`randomized smoothing`, turn counts into a radius, and say what a number of draws can certify at most.
# - Stop early without losing the guarantee, and show why peeking loses it.
# :::
#
# **Time** 35 minutes · **Needs** {ref}`nb-diffusion` and {ref}`nb-optimal`. Three pages follow: {ref}`nb-noised` (which base classifier?),
# {ref}`nb-fast-certificates` (what does a {term}`certificate` cost?) and {ref}`nb-certified` (which claims of {cite:t}`chen2024ndc` hold?).

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
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

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from scipy.special import betainc
from scipy.stats import binom, norm
from torch import Tensor, nn

from rdc.certify import certify, clopper_pearson
from rdc.certify.clopper_pearson import radius, radius_from_counts, reach
from rdc.certify.confidence_sequence import Plan, log_mixture, sequence_lower, split_alpha
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import to_model
from rdc.notebook import check_parameters, claim, glue, show_table
from rdc.plots import style
from rdc.rng import generator, randn
from rdc.runs.statistics import Accuracy

check_parameters()
style()

# %% [markdown]
# ## What a certificate says
#
# An attack that fails proves nothing about the next attack. A certificate does: *no* image within the L2 distance $R(x)$ of $x$ gets another answer.
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
# **Units.** In this chapter, as in the package, $\sigma$ is the smoothing noise and $R$ a radius on images in $[0, 1]$. A {term}`denoiser` works on $z = 2x - 1$ and
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
# That is the lemma of {term}`Neyman and Pearson`. And $Q(H) = \Phi\big( \Phi^{-1}(p) - \norm{\rho} / \sigma \big) > \frac12$ exactly if $\norm{\rho} < R$. If $f$ *is*
# the half-space $H$, there is equality throughout: the radius is the best possible.
# :::
#
# The proof never used that $A$ is a set. For a random base classifier, put the probability of answering $c$ in the place of $1_A$. So a {term}`diffusion classifier`
# with fresh noise may be smoothed too, as long as draws are independent.
#
# ### A laboratory with two pixels
#
# Nine images of two pixels, three of each class. The base classifier is Bayes' rule for the noisy image, from the exact density of {ref}`nb-optimal`. Its class
# probabilities under noise are two integrals on a grid, so we know the smoothed classifier and its true radius.


# %% tags=["hide-input"]
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
region = (
    bayes(torch.from_numpy(plane.reshape(-1, 1, 1, 2)))
    .argmax(1)
    .numpy()
    .reshape(len(axis), len(axis))
)
kernel = norm.pdf((axis[:, None] - axis) / toy_sigma) / toy_sigma * step  # noise of one pixel
mass = np.stack(
    [kernel @ (region == c) @ kernel.T for c in range(3)]
)  # P(f(x + sigma delta) = c) at every point
smoothed = mass.argmax(0)


def truth(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At a point of the grid: the class probabilities, and the distance to the nearest other class of g, for every class."""
    at = np.unravel_index(np.linalg.norm(plane - point, axis=-1).argmin(), smoothed.shape)
    away = np.linalg.norm(plane - plane[at], axis=-1)
    return mass[(slice(None), *at)], np.array([away[smoothed != c].min() for c in range(3)])


nodes = [plane[tuple(np.round((p - axis[0]) / step).astype(int))] for p in toy_x.flatten(1).numpy()]
ranked = sorted(nodes, key=lambda node: -truth(node)[0].max())
spots = [
    ranked[i] for i in (0, 4, 8)
]  # the most certain of the nine images, the middle one, the least certain
known = [truth(spot) for spot in spots]
for p, distance in known:
    c = int(p.argmax())
    print(
        f"class {c}: probability {p[c]:.4f}, sigma Phi^-1(p) = {toy_sigma * norm.ppf(p[c]):.3f}, true radius {distance[c]:.3f}"
    )

# %% mystnb={"figure": {"caption": "Images of two pixels. Left: what the base classifier answers, and its nine images. Right: what the smoothed classifier answers, and for three images the radius from the exact probability (solid) and the true radius (dashed).", "name": "fig-cert-toy"}, "image": {"alt": "Two maps of three coloured regions; on the right a solid and a dashed circle around each of three points, the dashed one touching the nearest other region"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
colours = ListedColormap(["#8ecae6", "#ffd6a5", "#b7e4c7"])
for ax, shown in zip(axes, (region, smoothed), strict=True):
    ax.imshow(
        shown.T,
        origin="lower",
        extent=(axis[0], axis[-1], axis[0], axis[-1]),
        cmap=colours,
        vmin=0,
        vmax=2,
    )
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
claim(
    all(toy_sigma * norm.ppf(p.max()) <= distance[p.argmax()] + 2 * step for p, distance in known)
)

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
def repeated(
    model: nn.Module, x: Tensor, sigma: float, n0: int, n: int, runs: int, key: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen classes and counts of independent certificates of one image."""
    noise = randn((runs * (n0 + n), *x.shape), seed, "certify", "repeat", key, like=x)
    answers = model(x + sigma * noise).argmax(dim=1).reshape(runs, n0 + n).cpu().numpy()
    chosen = np.stack([(answers[:, :n0] == c).sum(1) for c in range(3)], axis=1).argmax(axis=1)
    return chosen, (answers[:, n0:] == chosen[:, None]).sum(axis=1)


limit = int(binom.ppf(0.999, toy_runs, toy_alpha))
claims: list[tuple[np.ndarray, float, float]] = []
print(
    f"{toy_runs} certificates of each image, n0 = 20, n = {toy_n}, alpha = {toy_alpha:g}; false ones expected at most "
    f"{toy_runs * toy_alpha:.0f}, by chance up to {limit}"
)
for i, (spot, (p, distance)) in enumerate(zip(spots, known, strict=True)):
    chosen, k = repeated(
        bayes, torch.from_numpy(spot.copy()).reshape(1, 1, 2), toy_sigma, 20, toy_n, toy_runs, i
    )
    found = radius_from_counts(k, toy_n, toy_sigma, toy_alpha)
    exact = np.array([max(0.0, toy_sigma * norm.ppf(p[c])) for c in range(3)])
    beyond_truth = int(((found > distance[chosen] + 2 * step) & (found > 0)).sum())
    too_high = int((found > exact[chosen] + 1e-12).sum())
    claims.append((found, float(exact[p.argmax()]), float(distance[p.argmax()])))
    none = int((found == 0).sum())
    print(
        f"image {i}: above sigma Phi^-1(p) in {too_high}, above the true radius in {beyond_truth}; abstained {none}"
    )
    claim(max(beyond_truth, too_high) <= limit)
x_one = torch.from_numpy(spots[0].copy()).reshape(1, 1, 2)
one = certify(bayes, x_one, sigma=toy_sigma, n0=20, n=toy_n, alpha=toy_alpha, seed=seed)
print(
    f"by rdc.certify, once: class {one.label}, {one.k} of {one.n}, p at least {one.p_low:.4f}, radius {one.radius:.3f}"
)

# %% mystnb={"figure": {"caption": "Certified radii of the three images over repetitions. Solid line: the radius from the exact probability, which at most a share alpha may exceed. Dashed line: the true radius.", "name": "fig-cert-repetitions"}, "image": {"alt": "Three histograms of radii, nearly all of their mass left of a solid line, which is left of or at a dashed line"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(9, 2.7))
for i, (ax, (found, exact_radius, true_radius)) in enumerate(zip(axes, claims, strict=True)):
    ax.hist(found, bins=18, color="C0", alpha=0.7)
    ax.axvline(exact_radius, color="k")
    ax.axvline(true_radius, color="k", ls="--")
    ax.set(
        title=f"image {i}", xlabel="certified radius", xlim=(0, 1.1 * max(t for _, _, t in claims))
    )
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
#
# ```{moving} certificate
# ```

# %%
rows = []
for s in sigmas:
    fewest = [math.ceil(math.log(alpha) / norm.logcdf(r / s)) for r in radii]
    rows.append(
        {
            "sigma": s,
            **{f"n = {n:,}": f"{reach(n, s, alpha):.3f}" for n in (100, 1000, 10_000, 100_000)},
            **{f"draws for R = {r:g}": f"{n:,}" for r, n in zip(radii, fewest, strict=True)},
        }
    )
show_table(rows)
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


# %% tags=["hide-input"]
def error_of_claims(n: int, m: int) -> np.ndarray:
    """For every count that certifies something, the largest probability that its claim is false."""
    k = np.arange(n // 2 + 1, n + 1)
    claimed = clopper_pearson(m * k, m * n, alpha)
    return betainc(k, n - k + 1, claimed)[claimed > 0.5]


settings = {
    "1000 draws": (1000, 1),
    "1000 draws, times 10": (1000, 10),
    "100 draws, times 100": (100, 100),
}
errors = {name: error_of_claims(*setting) for name, setting in settings.items()}
for name, wrong in errors.items():
    m = settings[name][1]
    print(
        f"{name:22s} false with probability {wrong.min():.3f} ... {wrong.max():.3f}; alpha^(1/{m}) = {alpha ** (1 / m):.3f}"
    )
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

# %% tags=["hide-input"]
p_target = float(norm.cdf(1.0))  # radius sigma
uniform = torch.rand(peek_runs, peek_n, generator=generator(seed, "certify", "peek")).numpy()
k_all = (uniform < p_target).cumsum(axis=1)
looks = np.arange(10, peek_n + 1, 10)
at_looks = k_all[:, looks - 1]
tail = np.where(
    at_looks > 0, betainc(np.maximum(at_looks, 1), looks - at_looks + 1, p_target), 1.0
)  # P(Bin(n, p) >= k)
geometric = np.unique((20 * 1.5 ** np.arange(40)).astype(int))
geometric = geometric[geometric <= peek_n]
k_geometric = k_all[:, geometric - 1]
tail_geometric = betainc(np.maximum(k_geometric, 1), geometric - k_geometric + 1, p_target)
false = {
    "peeking every 10 draws": (looks, tail <= toy_alpha),
    "split alpha, geometric looks": (
        geometric,
        tail_geometric <= split_alpha(toy_alpha, np.arange(1, len(geometric) + 1)),
    ),
    "confidence sequence, every 10 draws": (
        looks,
        log_mixture(at_looks, looks, p_target) >= -math.log(toy_alpha),
    ),
}
ever = {
    name: Accuracy.of(int(hit.any(axis=1).sum()), peek_runs) for name, (_, hit) in false.items()
}
for name, share in ever.items():
    print(f"{name:36s} ever false: {share}")
glue("cert-peek", f"{100 * ever['peeking every 10 draws'].value:.0f}")

# %% mystnb={"figure": {"caption": "Share of runs that have claimed too much by the n-th draw, with alpha = 0.05 (dotted).", "name": "fig-cert-peek"}, "image": {"alt": "Peeking rises far above the dotted line; the two valid rules stay below it", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.2))
for (name, (n, hit)), ls in zip(false.items(), ("-", "--", "-."), strict=True):
    ax.plot(
        n, np.maximum.accumulate(hit, axis=1).mean(axis=0), ls, label=name, drawstyle="steps-post"
    )
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
# {term}`Ville's inequality`: stop at the first $n$ with $M_n \ge 1 / \alpha$, or at $N$. The mean at that moment is at most 1, and at least $\frac1\alpha$ times the
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

# %% tags=["hide-input"]
rows = []
for share in (1.0, 0.99, 0.9):
    for n in (1000, 10_000):
        k, j = round(share * n), len(Plan("split", n, p_target, alpha).looks)
        single = radius_from_counts(k, n, 1.0, alpha)
        split = radius(clopper_pearson(k, n, float(split_alpha(alpha, j))), 1.0)
        rows.append(
            {
                "successes": f"{k} of {n}",
                "single look": single,
                "split alpha, last look": split,
                "confidence sequence": radius(sequence_lower(k, n, alpha), 1.0),
            }
        )
show_table(rows)
cost = 1 - rows[1]["confidence sequence"] / rows[1]["single look"]
glue("cert-sequence-cost", f"{100 * cost:.1f}")
claim(0 < cost < 0.05)

# %% [markdown]
# At ten thousand draws that all agree, the {term}`confidence sequence` gives up {glue:text}`cert-sequence-cost` % of the radius. In return it stops. We simulate
# counts, with the same random numbers for every $p$, and ask for a radius of $\sigma$ and of $2 \sigma$.


# %% tags=["hide-input"]
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
true_radii = np.array(
    [-1.0, 0.0, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 1.9, 2.0, 2.1, 2.25, 2.5, 3.0, 3.5]
)
draws_needed: dict[tuple[float, str], np.ndarray] = {}
for target in (1.0, 2.0):
    for stopping in ("sequence", "split"):
        plan = Plan(stopping, plan_n, float(norm.cdf(target)), alpha)
        draws_needed[target, stopping] = np.array(
            [simulate(plan, float(norm.cdf(r)), u) for r in true_radii]
        )
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
    ax.plot(
        true_radii,
        v[:, 0],
        ls,
        marker=".",
        color=color,
        label=rf"target {target:g}$\sigma$, {stopping}",
    )
    ax.axvline(target, color=color, lw=0.8, alpha=0.6)
ax.axhline(plan_n, color="0.4", ls=":", lw=1)
ax.set(yscale="log", xlabel=r"true radius, in units of $\sigma$", ylabel="mean draws")
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
for target in (1.0, 2.0):
    at_target = int(np.flatnonzero(true_radii == target)[0])
    for stopping in ("sequence", "split"):
        claim(
            draws_needed[target, stopping][at_target, 1] <= 0.02,
            "at the target itself every claim is false",
        )
        claim(draws_needed[target, stopping][-1, 1] > 0.99)
claim(min(v.min() for v in clear.values()) > 10)

# %% [markdown]
# Far from the target the number of draws falls by a factor of {glue:text}`cert-clear` or more. Near it there is no free lunch: to tell a radius from one that
# is a little larger takes many draws with any method.

# %% [markdown]
# ## Summary
#
# - A certificate is a probability bound, $\sigma\, \Phi^{-1}(\underline p)$. Its error is over the draws, for each image.
# - $n$ draws reach $\sigma\, \Phi^{-1}(\alpha^{1/n})$. Counts that were not drawn certify nothing.
# - Looking on the way needs a bound that holds at all times: a supermartingale and Ville, or a split $\alpha$. Clear images then take few draws.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-counts
# :::
# **By hand** (10 minutes, easy). A log says: $\sigma = 0.5$, $n = 1000$, $\alpha = 0.001$, 990 answers of class 3.
# Which radius is certified? How many draws, all successful, would certify the radius that the *share* 0.99 suggests?
# With the same share, how large must $n$ be (to within a hundred) to certify 95 % of it?
#
# :::{hint}
# :class: dropdown
# The bound solves $P(\mathrm{Bin}(1000, p) \ge 990) = \alpha$; `radius_from_counts(k, n, sigma, alpha)` has it. If all
# succeed, it is $\alpha^{1/n}$. The last question has no closed form: try.
# :::

# %%
# your code here
certified, all_agree, enough = None, None, None

# %%
# check
naive = 0.5 * norm.ppf(0.99)
fine = None not in (certified, all_agree, enough)
fine = fine and abs(certified - 0.989) < 1e-3 and all_agree == 688
fine = fine and abs(enough - 9600) <= 100
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-counts
# :label: sol-cert-counts
# :class: dropdown
# :::
# All $n$ successful gives $\alpha^{1/n}$, so $\alpha^{1/n} = 0.99$ or $n = \ln \alpha / \ln 0.99$, rounded up. For the
# last question the numbers are tried in turn.

# %%
certified = radius_from_counts(990, 1000, 0.5, 0.001)
all_agree = math.ceil(math.log(0.001) / math.log(0.99))
enough = next(
    n
    for n in range(100, 100_000, 100)
    if radius_from_counts(round(0.99 * n), n, 0.5, 0.001) >= 0.95 * naive
)
print(f"certified {certified:.3f}; the share suggests {naive:.3f}")
print(f"{all_agree} in a row; with 99 % successes n = {enough}")

# %% tags=["remove-cell"]
claim(certified < naive and all_agree == 688)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-prior
# :::
# **Another prior** (20 minutes, hard). The mixture of {eq}`eq-cert-mixture` has a beta prior with $a = 1$, $b =
# \frac12$. Is the proposition true for others? For $b = 0.1$ and $b = 5$: how many draws certify a radius of $3 \sigma$
# if all succeed? Which prior would you take, and when must you have decided?
#
# :::{hint}
# :class: dropdown
# `log_mixture(n, n, float(norm.cdf(3)), 1.0, b)` must reach $-\log \alpha$. What of the prior does the proof use?
# :::

# %%
# your code here
in_a_row = {0.1: None, 5.0: None}  # draws

# %%
# check
def surplus(n: float, b: float) -> float:
    """Log of the mixture after n successes, above what is needed."""
    odds = log_mixture(int(n), int(n), float(norm.cdf(3)), 1.0, b)
    return odds + math.log(alpha)


fine = None not in in_a_row.values() and all(
    surplus(n, b) >= 0 > surplus(0.98 * n, b) for b, n in in_a_row.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-prior
# :label: sol-cert-prior
# :class: dropdown
# :::
# The proof uses nothing of $\pi$ but that it is a density on $(p, 1)$. A prior with its mass near 1 (small $b$) is
# quick where all draws agree, and slow where one in a hundred fails. The choice is free as long as it is made before
# the draws; the best of several, chosen afterwards, is peeking again.

# %%
for b in in_a_row:
    n = 1
    while surplus(n, b) < 0:
        n += max(1, n // 200)
    in_a_row[b] = n
    after = radius(sequence_lower(9900, 10_000, alpha, 1.0, b), 1.0)
    print(f"b = {b:3g}: {n} draws; after 9900 of 10 000 {after:.3f} sigma")

# %% tags=["remove-cell"]
claim(in_a_row[0.1] < in_a_row[5.0])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-two-sided
# :::
# **The runner-up** (20 minutes, hard). Cohen et al. also prove $R = \frac\sigma2 \big( \Phi^{-1}(\underline{p_A}) -
# \Phi^{-1}(\overline{p_B}) \big)$, where $\overline{p_B}$ bounds the probability of *every* other class. With
# $\overline{p_B} = 1 - \underline{p_A}$ it is the radius of this chapter. When is it worth to estimate $p_B$? Share
# $\alpha$ fairly, and write the radius for counts $k_A$, $k_B$ of $n$ and nine rivals.
#
# :::{hint}
# :class: dropdown
# Which class is the runner-up is not known beforehand, so all rivals need a bound. `clopper_pearson(k, n, alpha)` is a
# lower bound; an upper one is that of the failures.
# :::

# %%
# your code here
def two_sided(k_a: int, k_b: int, n: int, rivals: int) -> float | None:
    """Radius in units of sigma."""
    return None


# %%
# check
wanted = {(9900, 100): 2.195, (7000, 400): 1.072, (4500, 700): 0.618}
found = {k: two_sided(*k, 10_000, 9) for k in wanted}
fine = None not in found.values() and all(
    abs(found[k] - r) < 2e-3 for k, r in wanted.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-two-sided
# :label: sol-cert-two-sided
# :class: dropdown
# :::
# $\alpha / 2$ for $p_A$, and $\alpha / (2 (K - 1))$ for each rival; the largest bound belongs to the largest count. If
# all failures go to one class, that is worse than $1 - \underline{p_A}$, which needs no share. If they scatter over
# many classes, $p_B$ is far below $1 - p_A$ and the radius grows. It even exists for $p_A < \frac12$.

# %%
def two_sided(k_a: int, k_b: int, n: int, rivals: int) -> float:
    """Radius in units of sigma."""
    low = clopper_pearson(k_a, n, alpha / 2)
    high = 1 - clopper_pearson(n - k_b, n, alpha / (2 * rivals))
    return max(0.0, float(norm.ppf(low) - norm.ppf(high)) / 2)


for k_a, k_b in wanted:
    alone = radius_from_counts(k_a, 10_000, 1.0, alpha)
    both = two_sided(k_a, k_b, 10_000, 9)
    print(f"{k_a}, {k_b}: with p_B {both:.3f}, with 1 - p_A {alone:.3f}")

# %% tags=["remove-cell"]
claim(two_sided(4500, 700, 10_000, 9) > 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Randomized smoothing: {cite:t}`cohen2019certified`. The exact binomial bound: {cite:t}`clopper1934use`; confidence sequences:
# {cite:t}`darling1967confidence` and {cite:t}`robbins1970statistical`; bounds for means by betting: {cite:t}`waudbysmith2024estimating`.
# Wilson's interval: {cite:t}`wilson1927`.
