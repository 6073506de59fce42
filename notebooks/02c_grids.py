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
# (nb-diffusion-grids)=
# # What finite grids do
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what a finite grid of noise levels bounds, and what it does not.
# - Choose a rule for the weights of a grid.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-diffusion-likelihood`. Covers the discrete bound of {cite:t}`chen2024rdc`, and its
# form in the code of {cite:t}`chen2024ndc`.

# %% tags=["parameters"]
seed: int = 0  # owner of every random number
nodes: int = 128  # quadrature nodes per axis in the toy

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.certify.grid import averages, gaussian_grid
from rdc.denoise import OptimalDenoiser, to_model
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
from rdc.rng import generator
from rdc.schedule import chain_levels

check_parameters()
style()
corners = torch.rand(
    8, 1, 1, 2, generator=generator(seed, "toy"), dtype=torch.float64
)
toy_labels = torch.arange(8) % 2
toy = OptimalDenoiser(corners, toy_labels)
low, high = 0.25, 20.0
spot = torch.tensor([[[0.3, -0.4]]], dtype=torch.float64)


def log_grid(low: float, high: float, count: int) -> Tensor:
    """``count + 1`` levels, evenly spaced in ``log sigma``."""
    return low * (high / low) ** (
        torch.arange(count + 1, dtype=torch.float64) / count
    )

# %% [markdown]
# **A classifier has a handful of noise levels. What does its sum bound?** Not what one would think: with few steps it can rate a point between two images higher than the data does.

# %% tags=["hide-input"]
pair = OptimalDenoiser(
    torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1),
    torch.zeros(2, dtype=torch.long),
)
axis = torch.linspace(-1, 1, 1201, dtype=torch.float64)


def column(v: Tensor) -> Tensor:
    """Numbers as images of one pixel."""
    return v.reshape(-1, 1, 1, 1)


def chain_log_density(grid: Tensor, at: Tensor) -> Tensor:
    """Log density of the chain at the points ``at`` of level ``grid[0]``,
    started from the exact density at ``grid[-1]``.
    """
    points = axis * (1.5 + 8 * grid[-1])
    density = pair.log_density(column(points), float(grid[-1]))[:, 0].exp()
    for t in range(len(grid) - 2, -1, -1):
        now, then = float(grid[t]), float(grid[t + 1])
        estimate = pair(column(points), then).flatten()
        mean = ((then**2 - now**2) * estimate + now**2 * points) / then**2
        variance = now**2 * (then**2 - now**2) / then**2
        mass = density * (points[1] - points[0])
        points = axis * (1.5 + 8 * now) if t else at
        kernel = torch.exp(
            -((points[:, None] - mean) ** 2) / (2 * variance)
        ) / math.sqrt(2 * math.pi * variance)
        density = kernel @ mass
    return density.log()

# %% mystnb={"figure": {"caption": "Density at level $\\sigma_0 = 0.25$ of two images at $\\pm 1$: of the data, and of chains with $T$ steps and the optimal denoiser.", "name": "fig-diffusion-chain"}, "image": {"alt": "The data density has two peaks and almost nothing between; the chain of two steps is one broad hump, and more steps come closer to the data", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 3.2))
line = torch.linspace(-2, 2, 401, dtype=torch.float64)
ax.plot(
    line, pair.log_density(column(line), low)[:, 0].exp(), "k", label="data"
)
for i, t in enumerate((2, 8, 32)):
    ax.plot(
        line,
        chain_log_density(log_grid(low, high, t), line).exp(),
        f"C{i}--",
        label=f"chain, $T$ = {t}",
    )
ax.set(xlabel="$z_0$ (model units)", ylabel="density")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What finite grids do
#
# A classifier cannot afford the integral. It has a grid $\sigma_0 < \dots < \sigma_T$ and a rule. {py:func}`rdc.schedule.chain_levels` knows three:
#
# :::{table} Three rules for the sum over a grid
#
# | rule | weight of $m(\sigma_{t+1})$ in the interval $[\sigma_t, \sigma_{t+1}]$ | what it is |
# |---|---|---|
# | `chain` | $\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2})$ | the bound of {prf:ref}`thm-chain` |
# | `right` | $(\sigma_{t+1} - \sigma_t)\, \sigma_{t+1}^{-3}$ | a Riemann sum of $\sigma^{-3} d\sigma$, as in the code of {cite:t}`chen2024ndc` |
# | `trapezoid` | half of `chain`, and the other half on $m(\sigma_t)$ | the trapezoid rule in $-1 / (2 \sigma^2)$ |
#
# :::
#
# With $r = \sigma_{t+1} / \sigma_t$ the first weight is $r (r + 1) / 2$ times the second. So `right` is always too small, and {prf:ref}`thm-chain` does not cover it.
#
# To see the grid alone, give the chain the exact prior, $p(z_T \mid y) = p_{\sigma_T}$. Then the bound of {prf:ref}`thm-chain` reads
# $B_T = J(\sigma_T) + D \log (\sigma_T / \sigma_0) - \sum_t w_t\, m(\sigma_{t+1})$: the identity, with a sum for the integral.
#
# How far is each rule from $J(\sigma_0)$, for the {term}`optimal denoiser`? For `chain` we know the sign, on average: from {prf:ref}`thm-identity`,
#
# ```{math}
# :label: eq-grid-gap
# J(\sigma_0) - B_T = \sum_{t} \int_{\sigma_t}^{\sigma_{t+1}} \frac{m(\sigma_{t+1}) - m(\sigma)}{\sigma^3}\, d\sigma .
# ```
#
# Averaged over the data, $m$ is the minimal mean square error of the class. More noise cannot make that smaller, so the gap is not negative.
# Its size falls like $1/T$. The trapezoid rule is symmetric in the interval, and its error falls like $1/T^2$.

# %%
def sums(
    ceiling: float, losses: Tensor, grid: Tensor, rule: str, dims: int
) -> float:
    """``J(sigma_T) + D log(sigma_T / sigma_0)`` minus the weighted losses of
    a rule; ``losses`` are those at all nodes.
    """
    chosen = chain_levels(grid, rule)
    return (
        ceiling
        + dims * math.log(float(grid[-1] / grid[0]))
        - float(chosen.weight @ losses[-len(chosen) :])
    )


counts = (4, 8, 16, 32, 64, 128)
fine = log_grid(low, high, counts[-1])  # the coarser grids are parts of it
gaps = {rule: np.zeros(len(counts)) for rule in ("chain", "right", "trapezoid")}
atoms = list(zip(to_model(corners[:4]), toy_labels[:4].tolist(), strict=True))
for z_atom, k in atoms:
    j, m = (
        torch.stack(v)[:, k]
        for v in zip(
            *[averages(toy, z_atom, s, nodes) for s in fine.tolist()],
            strict=True,
        )
    )
    for rule in gaps:
        for i, t in enumerate(counts):
            part = slice(None, None, counts[-1] // t)
            gaps[rule][i] += float(
                j[0] - sums(float(j[-1]), m[part], fine[part], rule, dims=2)
            ) / len(atoms)
print("J - sum (nats), mean over data points; negative: the sum is above J")
print("T         " + "".join(f"{t:>10}" for t in counts))
for rule, values in gaps.items():
    print(f"{rule:10}" + "".join(f"{v:10.5f}" for v in values))

# %% mystnb={"figure": {"caption": "Distance between the sum over a finite grid and $J(\\sigma_0)$, against the number of intervals $T$, on the toy. Filled: the sum lies below $J$. Open: above. Dotted: slopes $-1$ and $-2$.", "name": "fig-diffusion-gap"}, "image": {"alt": "Three straight lines on logarithmic axes; two fall with slope minus one, the trapezoid rule with slope minus two", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 3.5))
for i, (rule, values) in enumerate(gaps.items()):
    ax.loglog(counts, np.abs(values), f"C{i}-", label=rule)
    for t, v in zip(counts, values, strict=True):
        ax.loglog(
            t, abs(v), f"C{i}o", markerfacecolor=f"C{i}" if v > 0 else "white"
        )
ax.loglog(
    counts, [3 / t for t in counts], color="0.6", linestyle=":", linewidth=1
)
ax.loglog(
    counts, [6 / t**2 for t in counts], color="0.6", linestyle=":", linewidth=1
)
ax.set(
    xlabel="number of intervals $T$", ylabel="distance to $J(\\sigma_0)$ (nats)"
)
ax.legend()
plt.show()

# %% tags=["remove-cell"]
slopes = {
    rule: math.log2(abs(values[-2]) / abs(values[-1]))
    for rule, values in gaps.items()
}
claim(
    gaps["chain"].min() > 0 and gaps["right"].max() < 0,
    "a bound on average; a sum that exceeds the target",
)
claim(
    0.8 < slopes["chain"] < 1.2
    and 0.8 < slopes["right"] < 1.2
    and 1.7 < slopes["trapezoid"] < 2.3
)
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
middle = torch.zeros(1, 1, 1, dtype=torch.float64)
eps_line, mass_line = gaussian_grid(nodes, 7.0, 1)
data_j = float(averages(pair, middle, low, nodes)[0])
table = {}
print("at z = 0:   T   bound B_T   E log p_chain   J of the data")
for t in (2, 4, 8, 16, 32):
    grid_t = log_grid(low, high, t)
    losses = torch.cat(
        [averages(pair, middle, v, nodes)[1] for v in grid_t.tolist()]
    )
    bound = sums(
        float(averages(pair, middle, high, nodes)[0]),
        losses,
        grid_t,
        "chain",
        dims=1,
    )
    table[t] = (
        bound,
        float(mass_line @ chain_log_density(grid_t, low * eps_line.flatten())),
    )
    print(f"{t:13} {table[t][0]:11.3f} {table[t][1]:15.3f} {data_j:15.3f}")

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
# Why here? Formula {eq}`eq-grid-gap` has the wrong sign where $m$ *decreases*. At $z = 0$ and low noise the {term}`denoiser` is sure that the image is $-1$ or $1$,
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
print(
    "sigma_T   tail (exact)   m / (2 sigma_T^2)   difference of the tails of "
    "the two classes: exact, estimated"
)
tails = {}
for last in (1.0, 2.0, 3.0, 5.0, 20.0):
    j, m = averages(toy, spot, last, nodes)
    tail, guess = (
        -j - math.log(2 * math.pi * math.e * last**2),
        m / (2 * last**2),
    )
    tails[last] = tail, guess
    differences = (
        f"{float(tail[0] - tail[1]):9.4f} {float(guess[0] - guess[1]):9.4f}"
    )
    print(
        f"{last:7.0f}   {float(tail[0]):12.5f}   {float(guess[0]):17.5f}   "
        f"{differences}"
    )

# %% tags=["remove-cell"]
for tail, guess in (tails[5.0], tails[20.0]):
    claim(((guess - tail).abs() < 0.1 * tail).all())
claim(((tails[3.0][0] - tails[3.0][1]).abs() < tails[3.0][0]).all())

# %% [markdown]
# ## What to remember
#
# - The right sum is no lower bound. The trapezoid rule and a tail term come closer at the same cost.
# - A finite grid bounds the density of the *chain*.
# - At a single point that can exceed the density of the data, as between two images.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-diffusion-between
# :::
# **Between two images** (10 minutes, easy). Take the two images at $\pm 1$ of `pair`. Compute the loss $m(\sigma)$ at $z = 0$ and at $z = 1$ for some levels. Where does it rise with the noise, and where does it fall? At which $\sigma$ are the two losses equal?
#
# :::{hint}
# :class: dropdown
# `averages(pair, z, sigma, nodes)[1]` is $m$, for `z` a tensor of shape `(1, 1, 1)`. Halve an interval.
# :::

# %%
# your code here
equal_at = None

# %%
# check
fine = equal_at is not None and abs(equal_at - 0.946) < 5e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-between
# :label: sol-diffusion-between
# :class: dropdown
# :::
# The denoiser is $\tanh(z_\sigma / \sigma^2)$. At $z = 0$ it is wrong by one at low noise, and right at high noise. At $z = 1$ it is the other way round. So {eq}`eq-grid-gap` has one sign at the images, and the other between them.

# %%
ends = [torch.full((1, 1, 1), v, dtype=torch.float64) for v in (0, 1)]


def between_and_at(s: float) -> list[float]:
    """The losses at 0 and at 1."""
    return [float(averages(pair, z, s, nodes)[1]) for z in ends]


for s in (0.25, 0.5, 1.0, 2.0, 4.0):
    print(f"sigma {s:4}: " + ", ".join(f"{m:.3f}" for m in between_and_at(s)))
lower, upper = 0.25, 4.0
for _ in range(30):
    equal_at = math.sqrt(lower * upper)
    zero, one = between_and_at(equal_at)
    lower, upper = (equal_at, upper) if zero > one else (lower, equal_at)
print(f"equal at {equal_at:.3f}")

# %% tags=["remove-cell"]
claim(abs(equal_at - 0.946) < 1e-3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-right
# :::
# **Always too small** (10 minutes, medium). With $r = \sigma_{t+1} / \sigma_t$, show that the weight of `chain` is $r (r + 1) / 2$ times that of `right`. How many intervals does the range from 0.25 to 20 need, at least, until the two differ by less than 1 %?
#
# :::{hint}
# :class: dropdown
# Factor $\sigma_{t+1}^2 - \sigma_t^2$. On an even grid in $\log \sigma$ all ratios are the same.
# :::

# %%
# your code here
intervals = None

# %%
# check
fine = intervals == 661
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-right
# :label: sol-diffusion-right
# :class: dropdown
# :::
# $\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2}) = (\sigma_{t+1} - \sigma_t)(\sigma_{t+1} + \sigma_t) / 2 \sigma_t^2 \sigma_{t+1}^2$; divide by $(\sigma_{t+1} - \sigma_t) / \sigma_{t+1}^3$.

# %%
def excess(count: int) -> float:
    """The largest weight of ``chain`` over that of ``right``, less one."""
    grid_c = log_grid(low, high, count)
    weights = [chain_levels(grid_c, rule).weight for rule in ("chain", "right")]
    return float((weights[0] / weights[1]).max()) - 1


for count in (4, 32, 128, 512, 1024):
    r = (high / low) ** (1 / count)
    law = r * (r + 1) / 2 - 1
    print(f"{count:5}: {excess(count):.4f}, by the formula {law:.4f}")
intervals = next(n for n in range(512, 1024) if excess(n) < 0.01)
print(intervals)

# %% tags=["remove-cell"]
claim(intervals == 661 and abs(excess(1024) - law) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-diffusion-order
# :::
# **One order more** (5 minutes, easy). How many intervals does `chain` need to come as close to $J$ as the trapezoid rule with 16, on the toy? Answer from `gaps`, to 10 %.
#
# :::{hint}
# :class: dropdown
# The distance of `chain` is about $c / T$; read $c$ off its last entry.
# :::

# %%
# your code here
chain_intervals = None

# %%
# check
fine = chain_intervals is not None and abs(chain_intervals - 111) < 11
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-diffusion-order
# :label: sol-diffusion-order
# :class: dropdown
# :::
# The distances of `chain` fall like $1/T$, so $T = c\, /$ distance. For half the distance it needs twice the intervals, where the trapezoid rule needs $\sqrt 2$ times as many.

# %%
wanted = abs(gaps["trapezoid"][counts.index(16)])
chain_intervals = round(gaps["chain"][-1] * counts[-1] / wanted)
print(chain_intervals)

# %% tags=["remove-cell"]
claim(abs(chain_intervals - 111) < 5)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The rule `right` is that of the code of {cite:t}`chen2024ndc`; the chain is from {cite:t}`ho2020ddpm` and {cite:t}`kingma2021vdm`.
