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
# (nb-certificate-factors)=
# # Where the factor comes from
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say which idea saves which factor of a {term}`certificate`, and which of them multiply.
# - Compare two classifiers by their radii on the same draws, without making the slow certificate.
# - Say what a single error in a thousand costs.
# :::
#
# **Time** 15 minutes · **Needs** {ref}`nb-fast-certificates`. Covers the costs of certificates in {cite:t}`chen2024ndc`.
#
# Fewer levels, fewer classes, all classes together, fewer draws: each makes a certificate cheaper. How much does each save, and
# is the radius still that of the slow classifier?

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from rdc.certify.clopper_pearson import radius_from_counts
from rdc.certify.results import kept, stopped
from rdc.notebook import (
    check_parameters,
    claim,
    close_to,
    show_table,
    show_verdicts,
    stored_cells,
)
from rdc.plots import legend_below, plot_accuracy, style
from rdc.runs.verdict import Comparison, decide_all

check_parameters()
style()
full_cells = stored_cells("certificates-full")
target_cells = stored_cells("certificates-target")
sampled_cells = stored_cells("certificates-sampled")
full = kept(full_cells[0])

# %% mystnb={"figure": {"caption": "From stored cells: certified radius with few levels and all classes in one pass against the estimated radius of 124 single-head levels on the same draws, with its 95 % interval. Solid: equal. Dashed: 5 % smaller.", "name": "fig-cert-full"}, "image": {"alt": "Points near the diagonal, one for each image, with horizontal intervals"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(3.8, 3.6))
ref = full.reference
ax.errorbar(
    ref[:, 0],
    full.radius,
    xerr=np.abs(ref[:, 1:].T - ref[:, 0]),
    fmt="o",
    ms=3,
    lw=0.8,
)
end = max(ref.max(), full.radius.max()) * 1.05
ax.plot([0, end], [0, end], "k-", lw=0.8)
ax.plot([0, end], [0, 0.95 * end], "k--", lw=0.8)
ax.set(
    xlabel="radius, 124 single-head levels (image units)",
    ylabel="radius, race (image units)",
)
plt.show()

# %% [markdown]
# (sec-cert-factors)=
# ## Full radius
#
# {numref}`fig-cert-full` compares the race of {ref}`sec-cert-race` with the 124 single-head levels that it stands for, on all $n$ draws.
#
# What would 124 levels have certified, with the same draws? To evaluate
# all of them is what we want to avoid, so it is estimated from a stratified sample of the same draws: those that the cheap classifier answered
# otherwise, those with small margins, and the rest. The expensive classifier answers the sampled ones, and its count follows with a 95 % interval. A few dozen
# draws do not see an error of one in a thousand. Near the largest radius that $n$ can reach, where one such error costs some percent, the estimate is therefore
# often too large, to the disadvantage of the cheap one. There are two such references: {term}`EPNDC`, of which the cheap classifier is an approximation, and APNDC,
# which the paper certifies. *Same label*: both certify the class, or neither certifies anything.


# %% tags=["hide-input"]
def beside(f: Any) -> dict[str, Any]:
    """What is kept of a reference's certificates, in words."""
    k = kept(f)
    return {
        "reference": f.row.about["reference"],
        "fewer evaluations": f"{k.factor:.0f} times",
        "same label": str(k.same_label),
        "at most 5 % smaller": str(k.within),
        "worst ratio": k.worst,
    }


show_table(
    [{"n": f.row.arguments["n"]} | beside(f) for f in full_cells],
    "Radius of the race beside 124 single-head levels; sigma 0.25, n0 = 100",
)

# %% tags=["hide-input", "hide-output"]
show_table(
    [
        {
            "n": f.row.arguments["n"],
            "reference": f.row.about["reference"],
            "evaluations": f"{kept(f).passes:.1f}",
            "median ratio": kept(f).median,
            "at most 5 % below the upper end": str(kept(f).within_high),
        }
        for f in full_cells
    ],
    "The same, more numbers",
)

# %% [markdown]
# A radius that is smaller for one image may be larger for another. Each is a valid certificate for its own classifier.
#
# Where does the factor come from?

# %% tags=["hide-input"]
few, slow, classes = full.passes, full.reference_passes, 10
opening, last = 4, 40  # levels of the first round, and of the last
every = few + (classes - 1) * opening  # without heads in the first round
before = [slow, classes * last, every, slow]
after = [classes * last, every, few, few]
ideas = [
    f"fewer levels: {slow / classes:.0f} -> {last} a class",
    "sifting: classes that are far behind get no further level",
    "heads: all classes together in the first round",
    "together",
]
show_table(
    [
        {
            "idea": idea,
            "evaluations before": f"{a:.0f}",
            "after": f"{b:.0f}",
            "factor": f"{a / b:.1f}",
        }
        for idea, a, b in zip(ideas, before, after, strict=True)
    ],
    "Factors of the race",
)

# %% [markdown]
# The factors multiply. Sifting by a rule alone ({ref}`nb-certificate-sift`) competes with *classes together*: where one pass
# serves all classes, dropping one saves nothing unless all levels end early. A race has both, one after the other.
#
# ## Target radius
#
# If the question is whether the radius is at least so much, early stopping comes on top ({ref}`nb-early-stopping`). An image is
# *clear* if its radius, estimated from the share of the answers, is well away from the target.
# Where the draws that were made do not answer the question, the certificate is counted as if it took all of them.

# %% tags=["hide-input"]
stops = [stopped(f, full_cells[0]) for f in target_cells]
sizes = target_cells[0].row.arguments
print("clear: more than 20 % above or below the target; certificates that")
print(f"may take {sizes['n']:,} draws, of which {sizes['known']:,} were made")
show_table(
    [
        {
            "target": f"{f.row.about['target']:g}",
            "stopping": f.row.about["stopping"],
            "median draws": f"{np.median(s.calls):.0f}",
            "fewer, all images": f"{s.factor:.1f} times",
            "fewer, clear ones": f"{s.factor_clear:.1f} times",
            "reaches it": f"{s.met.correct} of {s.answered}",
        }
        for f, s in zip(target_cells, stops, strict=True)
    ],
    f"Draws of the race for one answer, {len(stops[0].calls)} images",
)

# %% tags=["hide-input", "hide-output"]
show_table(
    [
        {k: f.row.about[k] for k in ("target", "stopping")}
        | {
            "mean draws": f"{s.calls.mean():.0f}",
            "clear": int(s.clear.sum()),
            "answered": f"{s.answered} of {len(s.calls)}",
            "reaches it, of these": str(s.met),
        }
        for f, s in zip(target_cells, stops, strict=True)
    ],
    "The same, more numbers",
)

# %% [markdown]
# ## How few evaluations?
#
# How many evaluations does it take to keep the radius? The stored cells ask other settings about those draws that the reference was asked about, and estimate their
# counts in the same way. A few dozen draws an image tell them apart, and no certificate has to be made.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "From stored cells: images of which a classifier keeps the radius of EPNDC with 124 single-head levels, as in the tables above, against its evaluations for a noisy image, with 95 % intervals.", "name": "fig-cert-keep"}, "image": {"alt": "Races keep the radius of most images at some ten evaluations, like the reference with another seed at over a thousand; EPNDC with heads keeps fewer", "width": "75%"}}
of_epndc = [
    (f.row.about, kept(f))
    for f in sampled_cells
    if f.row.about["reference"] == "EPNDC"
]
kinds: dict[str, list[Any]] = {}
for about, k in sorted(of_epndc, key=lambda one: one[1].passes):
    name = f"{about['base']}, {about['denoiser']}".removesuffix(", None")
    if about["levels"] == 124 and about["base"] != "Race":
        seed_too = ", another seed" * (about["seed"] is not None)
        name = f"{about['base']}, 124 levels{seed_too}"
    kinds.setdefault(name, []).append(k)
fig, ax = plt.subplots(figsize=(6, 4.4))
for kind, shown in kinds.items():
    at, shares = [k.passes for k in shown], [k.within for k in shown]
    plot_accuracy(ax, at, shares, kind, ms=4, ls="")
ax.set(xscale="log", ylim=(40, 103), xlabel="evaluations for a noisy image")
ax.set_ylabel("radius kept (% of images)")
ax.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
ax.minorticks_off()
legend_below(fig, 2)
plt.show()

# %% [markdown]
# The slow ones, at the right, say what can be asked: the reference itself, with another seed, is another classifier and certifies other radii.
# What a fast classifier loses beyond that is its own. APNDC with 124 levels stands there, too, a different classifier of the
# same noisy images.

# %% tags=["hide-input"]
(other_seed,) = (k for about, k in of_epndc if about["seed"] is not None)
print("EPNDC's reference with another seed:")
print(f"    label {other_seed.same_label},")
print(f"    95 % of the radius {other_seed.within}.")
fast = [one for one in of_epndc if one[1].factor >= 50]
about, best = max(fast, key=lambda one: (one[1].within.correct, one[1].factor))
print("Best of the settings with at least 50 times fewer evaluations,")
setting = about["rounds"] or about["gap"]
print(f"{about['base']}, {setting}, {best.factor:.0f} times:")
print(f"    label {best.same_label},")
print(f"    95 % of the radius {best.within}.")

# %% [markdown]
# All settings, beside both references. `first` are the levels of the heads of a cascade.

# %% tags=["hide-input", "hide-output"]
for reference in ("EPNDC", "APNDC"):
    rows = []
    for f in sorted(sampled_cells, key=lambda f: f.mean("passes")):
        about, k = f.row.about, kept(f)
        if about["reference"] == reference:
            names = [
                about[word] for word in ("base", "denoiser") if about[word]
            ]
            names += [f"{about['levels']} levels"]
            names += [f"first {about['first']}"] if about["first"] else []
            row = {"classifier": ", ".join([*names, about["noise"]])}
            row |= {"evaluations": f"{k.passes:.1f}"} | beside(f)
            del row["reference"]
            rows.append(row)
    show_table(rows, f"Other settings on the same draws, beside {reference}")

# %% [markdown]
# ## What holds
#
# The paper says that few levels suffice. A race, or the reference with another seed, must keep label and
# radius, each on more than 90 % of the images:

# %%
few_levels_do = {
    "B8 few levels suffice: the race keeps label and radius": full,
    "B8 ... the reference itself with another seed": other_seed,
}
verdicts = {}
for name, k in few_levels_do.items():
    shares = (k.within, k.same_label)
    pairs = [Comparison((a.correct, a.n), bound=0.9) for a in shares]
    verdicts[name] = decide_all(pairs)[0]
show_verdicts(verdicts)

# %% [markdown]
# Not run: the certificate with all $n$ draws of 124 single-head levels. Its
# radius is *estimated* on the same draws, and 124 levels are asked about the class and its closest rivals only.
#
# ## What to remember
#
# - Levels, sifting, classes together, and early stopping each save a factor of their own.
# - With another seed the slow classifier itself certifies other radii; ask no more of a fast one.
# - Near the largest radius that $n$ draws can reach, one error decides.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-factors
# :::
# **Do the factors multiply?** (5 minutes, easy). A certificate takes $n_0 = 100$ draws to guess the class and $n =
# 1000$ to certify it, with $K = 10$ classes at each of $T = 124$ levels. By which factor do 8 levels make it cheaper,
# by which factor does sifting that leaves 2 classes in the $n$ draws (not in the $n_0$), and by which both?
#
# :::{hint}
# :class: dropdown
# Count evaluations: $T (n_0 K + n m)$ with $m$ classes in the $n$ draws.
# :::

# %%
# your code here
by_levels, by_sifting, by_both = None, None, None

# %%
# check
cost = {(T, m): T * (1000 + 1000 * m) for T in (124, 8) for m in (10, 2)}
wanted = [cost[124, 10] / cost[c] for c in ((8, 10), (124, 2), (8, 2))]
fine = close_to((by_levels, by_sifting, by_both), wanted, within=0.05)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-factors
# :label: sol-cert-factors
# :class: dropdown
# :::
# They multiply, since sifting removes the same share at each level. Early stopping does not quite multiply with
# sifting: neither makes the $n_0$ draws cheaper, and the fewer evaluations are left, the more these weigh.

# %%
by_levels, by_sifting = 124 / 8, (100 * 10 + 1000 * 10) / (100 * 10 + 1000 * 2)
by_both = by_levels * by_sifting
print(f"{by_levels:.1f}, {by_sifting:.2f}, together {by_both:.1f}")

# %% tags=["remove-cell"]
claim(by_both > 50)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-one-error
# :::
# **One error in a thousand** (10 minutes, easy). The slow classifier gives the same answer to all draws, and the fast one to all but one in
# a thousand. How large is the fast radius as a share of the slow one, for $n = 1000$ and for $n = 10\,000$, at $\alpha = 0.001$?
#
# :::{hint}
# :class: dropdown
# `radius_from_counts(k, n, 1.0, 0.001)` is a radius in units of $\sigma$.
# :::

# %%
# your code here
share_of_radius = {1000: None, 10_000: None}

# %%
# check
fine = close_to(share_of_radius, {1000: 0.957, 10_000: 0.881}, within=2e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-one-error
# :label: sol-cert-one-error
# :class: dropdown
# :::
# The more draws, the larger the radius that a perfect count reaches, and the more an error costs. Images with such a radius
# decide how many radii are kept in the tables above.

# %%
for n in share_of_radius:
    k = n - n // 1000
    radii = [radius_from_counts(c, n, 1.0, 0.001) for c in (k, n)]
    share_of_radius[n] = float(radii[0] / radii[1])
    print(f"n = {n}: {share_of_radius[n]:.3f}")

# %% tags=["remove-cell"]
claim(share_of_radius[10_000] < share_of_radius[1000] < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-unclear
# :::
# **What unclear images cost** (10 minutes, medium). The last entry but one of `stops` is the target 0.5 with the {term}`confidence sequence`.
# `calls` are the draws of each image, `clear` says which of them are clear. Which share of all draws goes to images that are not?
#
# :::{hint}
# :class: dropdown
# `s.calls[~s.clear]` are the draws of the others.
# :::

# %%
# your code here
share_unclear = None

# %%
# check
s = stops[-2]
wanted = 1 - s.calls[s.clear].sum() / s.calls.sum()
fine = close_to(share_unclear, wanted, within=6e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-unclear
# :label: sol-cert-unclear
# :class: dropdown
# :::
# A few images take most of the draws. Whoever may leave their answers open, and says so, saves much more.

# %%
s = stops[-2]
share_unclear = s.calls[~s.clear].sum() / s.calls.sum()
print(f"{(~s.clear).sum()} of {len(s.clear)} images are not clear;")
print(f"they take {share_unclear:.2f} of all draws")

# %% tags=["remove-cell"]
claim(share_unclear > (~s.clear).mean())

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Noised diffusion classifiers: {cite:t}`chen2024ndc`. The images are those of {cite:t}`xiao2017fashion`.
