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
# (nb-early-stopping)=
# # Early stopping
#
# :::{admonition} What you will be able to do
# :class: tip
# - Show why peeking loses a guarantee.
# - Stop early without losing it, by a split $\alpha$ or a {term}`confidence sequence`.
# - Say for which images that saves draws.
# :::
#
# **Time** 15 minutes · **Needs** {ref}`nb-certification`. Goes beyond {cite:t}`chen2024ndc`.
#
# Most images are clear: their radius is far above what is asked, or far below. To draw ten thousand noisy copies of these is a waste. May one look at the
# counts on the way, and stop? Not with the bound of a single look, as {numref}`fig-cert-peek` shows.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
alpha: float = 0.001  # probability that a certificate is wrong
toy_alpha: float = 0.05  # a larger one, so that errors can be seen
peek_runs: int = 2000  # runs of counts that are looked at again and again
peek_n: int = 2000  # draws of each
plan_n: int = 10_000  # largest number of draws with early stopping
plan_runs: int = 300  # runs of counts behind its mean

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import betainc
from scipy.stats import norm

from rdc.certify import clopper_pearson
from rdc.certify.clopper_pearson import radius, radius_from_counts
from rdc.certify.confidence_sequence import (
    Plan,
    log_mixture,
    sequence_lower,
    split_alpha,
)
from rdc.notebook import check_parameters, claim, close_to, glue, show_table
from rdc.plots import legend_below, style
from rdc.rng import generator
from rdc.runs.statistics import Accuracy

check_parameters()
style()

# %% tags=["hide-input"]
p_target = float(norm.cdf(1.0))  # radius sigma
uniform = torch.rand(
    peek_runs, peek_n, generator=generator(seed, "certify", "peek")
).numpy()
k_all = (uniform < p_target).cumsum(axis=1)
looks = np.arange(10, peek_n + 1, 10)
at_looks = k_all[:, looks - 1]
# P(Bin(n, p) >= k)
tail = betainc(np.maximum(at_looks, 1), looks - at_looks + 1, p_target)
tail = np.where(at_looks > 0, tail, 1.0)
geometric = np.unique((20 * 1.5 ** np.arange(40)).astype(int))
geometric = geometric[geometric <= peek_n]
k_geometric = k_all[:, geometric - 1]
tail_geometric = betainc(
    np.maximum(k_geometric, 1), geometric - k_geometric + 1, p_target
)
shares = split_alpha(toy_alpha, np.arange(1, len(geometric) + 1))
false = {
    "peeking every 10 draws": (looks, tail <= toy_alpha),
    "split alpha, geometric looks": (
        geometric,
        tail_geometric <= shares,
    ),
    "confidence sequence, every 10 draws": (
        looks,
        log_mixture(at_looks, looks, p_target) >= -math.log(toy_alpha),
    ),
}
ever = {
    name: Accuracy.of(int(hit.any(axis=1).sum()), peek_runs)
    for name, (_, hit) in false.items()
}

# %% mystnb={"figure": {"caption": "Share of runs that have claimed too much by the n-th draw, with alpha = 0.05 (dotted).", "name": "fig-cert-peek"}, "image": {"alt": "Peeking rises far above the dotted line; the two valid rules stay below it", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.2))
for (name, (n, hit)), ls in zip(false.items(), ("-", "--", "-."), strict=True):
    ax.plot(
        n,
        np.maximum.accumulate(hit, axis=1).mean(axis=0),
        ls,
        label=name,
        drawstyle="steps-post",
    )
ax.axhline(toy_alpha, color="0.4", ls=":", lw=1)
ax.set(xscale="log", xlabel="draws $n$", ylabel="share of runs ever false")
ax.legend()
plt.show()

# %% tags=["remove-cell"]
claim(ever["peeking every 10 draws"].low > 2 * toy_alpha)
claim(all(ever[name].low <= toy_alpha for name in list(ever)[1:]))

# %% [markdown]
# ## Peeking
#
# In the simulation the truth is a $p$ that equals the target, and a run that ever claims more is false.

# %% tags=["hide-input"]
for name, share in ever.items():
    print(f"{name:36s} ever false: {share}")
glue("cert-peek", f"{100 * ever['peeking every 10 draws'].value:.0f}")

# %% [markdown]
# Peeking is false in {glue:text}`cert-peek` % of the runs at a stated 5 %, and the more often one looks, the worse.
#
# ## Two valid ways
#
# **Split alpha.** Look at times fixed beforehand, and give look $j$ the share $\alpha / (j (j + 1))$. The shares sum to $\alpha$; by the union bound all looks
# are right at once. Few looks at growing distances keep the shares large.
#
# **Confidence sequence.** Bet against the hypothesis that the probability is at most $p$, with a mixture of likelihood ratios:
#
# ```{math}
# :label: eq-cert-mixture
# M_n(p) = \int_p^1 \Big( \frac{q}{p} \Big)^{S} \Big( \frac{1 - q}{1 - p} \Big)^{F} \pi(q)\, dq ,
# ```
#
# with $S$ successes and $F$ failures in $n$ draws and a prior density $\pi$ on $(p, 1)$: a beta density cut off at $p$, so that the integral is a ratio of beta functions ({py:mod}`rdc.certify.confidence_sequence`).
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
# For the bound, let $p'$ be the truth. The bound is the smallest $p$ with $M_n(p) < 1 / \alpha$, so it exceeds $p'$ only if $M_n(p') \ge 1 / \alpha$. (That
# $\log M_n$ falls in $p$ below $S / n$ serves to find it by bisection only.)
# :::
#
# The other direction is free. To give up, "this will not be certified", claims nothing, and may use any rule ({py:class}`rdc.certify.confidence_sequence.Plan`).
#
# ## What it costs
#
# A bound that may be looked at any time is lower than one for a single look. In units of $\sigma$:

# %% tags=["hide-input"]
rows = []
for share in (1.0, 0.99, 0.9):
    for n in (1000, 10_000):
        k, j = round(share * n), len(Plan("split", n, p_target, alpha).looks)
        single = radius_from_counts(k, n, 1.0, alpha)
        last = float(split_alpha(alpha, j))
        split = radius(clopper_pearson(k, n, last), 1.0)
        rows.append(
            {
                "successes": f"{k} of {n}",
                "single look": single,
                "split alpha, last look": split,
                "confidence sequence": radius(sequence_lower(k, n, alpha), 1.0),
            }
        )
show_table(rows, "Radius in units of sigma")
cost = 1 - rows[1]["confidence sequence"] / rows[1]["single look"]
glue("cert-sequence-cost", f"{100 * cost:.1f}")
claim(0 < cost < 0.05)

# %% [markdown]
# At ten thousand draws that all agree, the {term}`confidence sequence` gives up {glue:text}`cert-sequence-cost` % of the radius. In return it stops. We simulate
# counts, with the same random numbers for every $p$, and ask for a radius of $\sigma$ and of $2 \sigma$.


# %% tags=["hide-input"]
def simulate(plan: Plan, p: float, u: np.ndarray) -> tuple[float, float]:
    """Mean number of draws, and share of runs that meet the target."""
    k_at = (u < p).cumsum(axis=1, dtype=np.int32)
    k_at = k_at[:, np.array(plan.looks) - 1]
    running, met = np.ones(len(u), bool), np.zeros(len(u), bool)
    made = np.zeros(len(u))
    for look, n in enumerate(plan.looks):
        made[running] = n
        yes = running & plan.met(k_at[:, look], look)
        met |= yes
        running &= ~(yes | plan.futile(k_at[:, look], look))
        if not running.any():
            break
    return float(made.mean()), float(met.mean())


draws = generator(seed, "certify", "plan")
u = torch.rand(plan_runs, plan_n, generator=draws).numpy()
around = (-0.25, -0.1, 0.0, 0.1, 0.25)
near = [round(t + off, 2) for t in (1.0, 2.0) for off in around]
true_radii = np.array(sorted([-1.0, 0.0, 0.5, *near, 1.5, 2.5, 3.0, 3.5]))
draws_needed: dict[tuple[float, str], np.ndarray] = {}
for target in (1.0, 2.0):
    for stopping in ("sequence", "split"):
        plan = Plan(stopping, plan_n, float(norm.cdf(target)), alpha)
        draws_needed[target, stopping] = np.array(
            [simulate(plan, float(norm.cdf(r)), u) for r in true_radii]
        )
rows = []
for target in (1.0, 2.0):
    for r in (0.0, target - 0.25, target, target + 0.25, 3.5):
        i = int(np.abs(true_radii - r).argmin())
        row = {"asked": f"{target:g}", "true radius": f"{true_radii[i]:g}"}
        for stopping in ("sequence", "split"):
            n, _ = draws_needed[target, stopping][i]
            row[f"draws, {stopping}"] = f"{n:.0f}"
        _, yes = draws_needed[target, "sequence"][i]
        rows.append(row | {"met, sequence": f"{100 * yes:.1f} %"})
show_table(rows, "Mean number of draws; radii in units of sigma")
clear = {
    t: plan_n / draws_needed[t, "sequence"][[1, -1], 0] for t in (1.0, 2.0)
}
glue("cert-clear", f"{min(v.min() for v in clear.values()):.0f}")

# %% mystnb={"figure": {"caption": "Mean number of draws until it is clear whether the radius is at least the target (vertical lines), by the true radius, for the two valid ways. Dotted: the fixed number of draws.", "name": "fig-cert-draws"}, "image": {"alt": "Peaks at the two targets that reach thousands of draws, and a hundred or fewer far from them", "width": "70%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.8, 4))
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
ax.set(
    yscale="log",
    xlabel=r"true radius, in units of $\sigma$",
    ylabel="mean draws",
)
legend_below(fig, 2)
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
#
# ## What to remember
#
# - A bound of a single look may be looked at once.
# - Looking on the way needs a bound that holds at all times: a supermartingale and Ville, or a split $\alpha$.
# - Clear images then take few draws; near the target there is nothing to save.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-ville
# :::
# **One bet, looked at all the time** (10 minutes, medium). A bettor starts with 1, and each fair toss multiplies the
# wealth by 1.3 or by 0.7. Ville's inequality says that it *ever* reaches 20 with probability at most 1/20. Simulate
# 4000 bettors and 400 tosses: which share reaches 20 at some time? Which share of honest $z$-tests, looked at after
# each of the 400 tosses with the threshold 1.645, rejects at some time?
#
# :::{hint}
# :class: dropdown
# Use `np.cumsum` of log-wealths and the maximum over time. The $z$-statistic after $k$ tosses of $\pm 1$ is their sum
# over $\sqrt k$; look from the tenth toss on.
# :::

# %%
# your code here
ever_rich, ever_rejected = None, None  # shares

# %%
# check
fine = close_to(ever_rich, 0.045, within=0.012)
fine = fine and close_to(ever_rejected, 0.326, within=0.03)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-ville
# :label: sol-cert-ville
# :class: dropdown
# :::
# The bet may be looked at all the time; that is what the certificate with early stopping rests on. A test that is valid
# at one fixed time is not: it rejects far more often than its 5 % if it may choose when.

# %%
tosses = np.random.default_rng(seed).choice((-1, 1), (4000, 400))
wealth = np.cumsum(np.log(1 + 0.3 * tosses), axis=1)
ever_rich = float((wealth.max(axis=1) >= np.log(20)).mean())
scores = np.cumsum(tosses, axis=1) / np.sqrt(np.arange(1, 401))
ever_rejected = float((scores[:, 9:].max(axis=1) > 1.645).mean())
print(f"bet {ever_rich:.3f}, test {ever_rejected:.3f}")

# %% tags=["remove-cell"]
claim(ever_rich <= 0.05 < ever_rejected)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-split
# :::
# **Shares of alpha** (5 minutes, easy). Someone looks at $20 \cdot 1.5^j$ draws for $j = 0, 1, \dots$, up to 10 000. How many looks are these? Which part of
# $\alpha$ do they use up together, if look $i$ (from 1 on) has the share $\alpha / (i (i + 1))$? How many times smaller than $\alpha$ is the last share?
#
# :::{hint}
# :class: dropdown
# $\frac1{i (i + 1)} = \frac1i - \frac1{i + 1}$: the sum telescopes.
# :::

# %%
# your code here
looks_in_all, used, smaller = None, None, None

# %%
# check
fine = close_to((looks_in_all, smaller), (16, 16 * 17), within=0)
fine = fine and close_to(used, 16 / 17, within=1.5e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-split
# :label: sol-cert-split
# :class: dropdown
# :::
# Nearly all of $\alpha$ is used. The last look is a test at a level that is some hundred times smaller, which costs little, since only its logarithm
# enters the radius. With a look after every ten draws it would be a million times smaller.

# %%
looks_in_all = math.floor(math.log(10_000 / 20) / math.log(1.5)) + 1
used = float(split_alpha(1.0, np.arange(1, looks_in_all + 1)).sum())
smaller = looks_in_all * (looks_in_all + 1)
print(f"{looks_in_all} looks use {used:.3f} of alpha; last share 1/{smaller}")

# %% tags=["remove-cell"]
claim(looks_in_all == 16 and abs(used - 16 / 17) < 1e-9)

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
# ## References
#
# Confidence sequences: {cite:t}`darling1967confidence` and {cite:t}`robbins1970statistical`; bounds for means by betting: {cite:t}`waudbysmith2024estimating`.
# Wilson's interval: {cite:t}`wilson1927`.
