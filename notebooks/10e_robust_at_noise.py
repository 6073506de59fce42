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
# (nb-guidance-robust)=
# # Robust at every noise level?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Name three things that can stand between robust training and robustness, and measure each.
# - Audit an attack that fails before you believe the classifier.
# - Say what a radius that can be seen changes.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-guidance-classifiers` and {ref}`nb-adaptive`. Covers section 5.1 of {cite:t}`kawar2023guidance`.
#
# Robust against what? Against the attack they were trained with, first of all. {numref}`fig-guide-robust` has the accuracy of the
# vanilla and the robust classifier at each noise level, clean and under that attack.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
data: str = "fashion-mini"  # data set
wide_name: str = "fashion-mini-wide"  # trained at six times the radius
n_near: int = 50  # images whose nearest neighbour is sought

# %% tags=["hide-input"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm

from rdc.data import load
from rdc.denoise.checkpoints import read_checkpoint
from rdc.guide import Threat
from rdc.guide.classifier import SHIPPED
from rdc.guide.reading import boot, one, paired, pick
from rdc.notebook import (
    attacks_table,
    check_parameters,
    claim,
    glue,
    stored_found,
)
from rdc.plots import legend_below, plot_intervals, style

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
audits, gradients = (
    stored_found("guidance-audit"),
    stored_found("guidance-gradients"),
)
at_radius = {t: pick(audits, measure="noisy", times=t) for t in (1, 4, 6)}
levels = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0)
threat = (
    Threat()
)  # the paper's: L2, 0.5 in the units of [-1, 1], 7 steps, early stopping
recipe = read_checkpoint(SHIPPED / f"{wide_name}.safetensors", "classifier")[1][
    "recipe"
]
wide_threat = Threat(**recipe["threat"])
x, y = test.x[:n_near].to(device), test.y[:n_near].to(device)
nearest = torch.cdist(x.flatten(1), train.x.flatten(1).to(device))
nearest = nearest.masked_fill(y[:, None] == train.y.to(device), math.inf)
nearest_other = 2 * float(nearest.amin(dim=1).median())  # model units

# %% mystnb={"figure": {"caption": "Accuracy by noise level, with 95 % intervals: clean (solid) and under the attack of the training (dashed). The dotted line is the exact posterior of the training images under attack, at the higher levels.", "name": "fig-guide-robust"}, "image": {"alt": "Accuracies that fall with the noise, those under attack below the clean ones; the two classifiers lie close together", "width": "70%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3.6))
for i, (name, outcome) in enumerate(
    itertools.product(
        ("vanilla", "robust", "exact posterior"), ("clean", "trained")
    )
):
    mine = pick(at_radius[1], guide=name)
    if (name, outcome) != ("exact posterior", "clean"):
        ls = ":" if i > 3 else "-" if outcome == "clean" else "--"
        label = f"{name}, {'clean' if outcome == 'clean' else 'attacked'}"
        at = [f.row.about["sigma"] for f in mine]
        plot_intervals(
            ax,
            at,
            [f.accuracy(outcome) for f in mine],
            label,
            ls=ls,
            color=f"C{i // 2}",
        )
ax.set(
    xscale="log",
    ylim=(0, 1.03),
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="accuracy",
)
ax.legend()
plt.show()

# %% [markdown]
# (sec-guide-robust)=
# ## Under the attack of the training
#
# The experiment `guidance-audit` attacks 300 test images at each level with the attack of the training, and with a stronger one: more steps
# and no early stop. Beside them stands the exact posterior of the training images. It is no upper limit: Bayes' rule is best
# without an attack, and the test images are not among its own. It hints at how much the classes overlap within the reach of
# an attack. Everything on this page is read from its record.

# %% tags=["hide-input"]
outcomes = ("holds", "does not hold", "not decided")
by_level = {}
for far, sigma in itertools.product((1, 4), levels):
    two = [
        one(at_radius[far], guide=g, sigma=sigma) for g in ("robust", "vanilla")
    ]
    by_level[far, sigma] = paired(*two, "robust")


def said(far: int) -> str:
    """At which levels the robust classifier keeps more."""
    mine = {s: v.outcome for (t, s), v in by_level.items() if t == far}
    words = [
        (o, [f"{s:g}" for s, v in mine.items() if v == o]) for o in outcomes
    ]
    return "; ".join(f"{o} at sigma {', '.join(at)}" for o, at in words if at)


print(
    "under the strongest attack at that radius the robust one keeps more:",
    said(1),
)


# %% tags=["remove-cell"]
def points(name: str, outcome: str) -> float:
    """Accuracy in percent, mean over levels."""
    return 100 * float(
        np.mean(
            [f.accuracy(outcome).value for f in pick(at_radius[1], guide=name)]
        )
    )


glue("guide-radius-low", f"{float(threat.radius_at(torch.tensor(0.1))):.2f}")
glue("guide-nearest", f"{nearest_other:.1f}")
glue(
    "guide-price",
    f"{points('robust', 'clean') - points('vanilla', 'clean'):+.1f}",
)
for name in ("vanilla", "robust", "exact posterior"):
    glue(
        f"guide-drop-{name.split()[0]}",
        f"{points(name, 'clean') - points(name, 'trained'):.1f}",
    )

# %% [markdown]
# Three things can stand between robust training and robustness, and the numbers above say which of them do.
#
# - **The vanilla one is robust already.** It was trained on noisy images, and a classifier that must give the same answer for all noisy copies of an image
#   cannot change much within a small distance. And the radius is small: at low noise {glue:text}`guide-radius-low` in model units, where the nearest training
#   image of another class is {glue:text}`guide-nearest` away (median).
# - **Robustness has a price.** At equal training the clean accuracy of the robust one, mean over levels, differs from that of the vanilla one by
#   {glue:text}`guide-price` points. A loss would have to be won back under attack, which takes {glue:text}`guide-drop-vanilla` points from the vanilla one
#   and {glue:text}`guide-drop-robust` from the robust one.
# - **The attack is strong.** At high noise it is a shift of half a standard deviation. Of the exact posterior it takes
#   {glue:text}`guide-drop-exact` points at the levels from 1 on: there the classes overlap. That is no limit of what training
#   can do; at some of these levels the networks lie above the dotted line.
#
# ## The audit
#
# An attack that fails may be a bad attack. The experiment `guidance-audit` adds the audit of
# {ref}`nb-adaptive`: a larger radius must reach 0 %, more steps must not matter much, gradients must not be masked. It also attacks with
# four times the radius, which no longer is the attack of the training.

# %% tags=["hide-input"]
print("at four times the radius the robust one keeps more:", said(4))
for found in pick(audits, measure="audit"):
    about, line = found.row.about, next(iter(found.lines.values()))
    for check, said in line.words.items():
        if not said.startswith("pass"):
            print(
                f"audit, {about['guide']}, sigma {about['sigma']:g}, {about['times']} times: {check}, {said}"
            )
failed = sum(
    line.counts["failed"]
    for f in pick(audits, measure="audit")
    for line in f.lines.values()
)
print(
    f"checks that failed in {len(pick(audits, measure='audit'))} audits: {failed}"
)

# %% [markdown]
# All rows, and the differences behind these words:

# %% tags=["hide-cell"]
for (far, sigma), verdict in by_level.items():
    print(
        f"sigma {sigma:4g}, {far:g} times the radius, robust less vanilla: {verdict}"
    )
attacks_table(
    [f for t in (1, 4) for f in pick(at_radius[t], guide=("vanilla", "robust"))]
)

# %% [markdown]
# (sec-guide-wide)=
# ## A radius that can be seen
#
# So far the vanilla and the robust guide were nearly the same classifier: an attack of radius 0.5 (L2, in the units of $[-1, 1]$) changes
# little that the noise does not change anyway. Is the idea wrong, or the radius too small for images of this size? The *wide* guide is
# trained in the same way at {glue:text}`guide-wide-times` times that radius. At $\sigma = $ {glue:text}`guide-wide-level` its attack has
# the length {glue:text}`guide-wide-radius` in model units, of the {glue:text}`guide-nearest` to the nearest training image of another
# class. The attacks are those of the audit, at both radii, on the same images and noise for all three.

# %% mystnb={"figure": {"caption": "From the record, by noise level, with 95 % intervals. Left and middle: accuracy under PGD at the paper's radius and at that of the wide guide's training; dotted, the exact posterior of the training images under the attack of the training. Right: alignment of the gradient towards another class.", "name": "fig-guide-wide-audit"}, "image": {"alt": "Three panels with one line for each of the guides vanilla, robust and wide against the noise level"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(8.2, 3.5))
for i, name in enumerate(("vanilla", "robust", "wide", "exact posterior")):
    look = {
        "color": f"C{i}" if i < 3 else "0.4",
        "ls": "-" if i < 3 else ":",
        "marker": "os^x"[i],
    }
    for ax, found in zip(axes, (at_radius[1], at_radius[6]), strict=False):
        mine, outcome = (
            pick(found, guide=name),
            "robust" if i < 3 else "trained",
        )
        shares = [f.accuracy(outcome) for f in mine]
        plot_intervals(
            ax,
            [f.row.about["sigma"] * 1.05 ** (i - 1) for f in mine],
            shares,
            name,
            **look,
        )
    mine = pick(
        gradients, measure="alignment", towards="another class", guide=name
    )
    values = [
        boot([v for v in f.value("cosine").values() if v is not None])
        for f in mine
    ]
    plot_intervals(
        axes[-1],
        [f.row.about["sigma"] * 1.05 ** (i - 1) for f in mine],
        values,
        **look,
    )
for ax, title in zip(
    axes,
    ("the paper's radius", "6 times that radius", "alignment, another class"),
    strict=True,
):
    ax.set(
        xscale="log",
        xlabel=r"noise level $\sigma$",
        ylabel="alignment" if "align" in title else "under attack",
    )
    ax.set_title(title, fontsize=11)
legend_below(fig, 4)
plt.show()

# %% tags=["hide-input"]
for outcome, t, b in [
    ("robust", 1, "vanilla"),
    ("robust", 1, "robust"),
    ("robust", 6, "vanilla"),
    ("robust", 6, "robust"),
    ("clean", 1, "vanilla"),
    ("clean", 1, "robust"),
]:
    groups: dict[str, list[str]] = {}
    for found in pick(at_radius[t], guide="wide"):
        sigma = found.row.about["sigma"]
        low, high = paired(
            found, one(at_radius[t], guide=b, sigma=sigma), outcome
        ).interval
        word = "more" if low > 0 else "less" if high < 0 else "not decided"
        groups.setdefault(word, []).append(f"{sigma:g}")
    each = "; ".join(
        f"{word} at sigma {', '.join(at)}"
        for word, at in sorted(groups.items())
    )
    print(
        f"right {'under attack' if outcome == 'robust' else 'unattacked'}, {t} times the radius, wide less {b}: {each}"
    )

# %% tags=["remove-cell"]
for name in ("vanilla", "robust", "wide"):
    found = one(at_radius[6], guide=name, sigma=0.02)
    glue(
        f"guide-wide-hit-{name}", f"{100 * found.accuracy('robust').value:.0f}"
    )
    glue(
        f"guide-wide-clean-{name}", f"{100 * found.accuracy('clean').value:.0f}"
    )
lost = one(at_radius[6], guide="exact posterior", sigma=10.0)
glue("guide-wide-hit-exact", f"{100 * lost.accuracy('trained').value:.0f}")
glue("guide-wide-times", f"{wide_threat.eps / threat.eps:g}")
glue("guide-wide-level", f"{0.1:g}")
glue(
    "guide-wide-radius",
    f"{float(wide_threat.radius_at(torch.tensor(0.1))):.1f}",
)
glue("guide-wide-low", "0.02")
glue("guide-wide-high", "10")
glue(
    "guide-wide-deviations",
    f"{float(wide_threat.radius_at(torch.tensor(10.0))) / 10:.1f}",
)

# %% [markdown]
# At $\sigma = $ {glue:text}`guide-wide-low` and the larger radius {glue:text}`guide-wide-hit-wide` % of the images survive with the wide classifier,
# {glue:text}`guide-wide-hit-robust` % with the robust and {glue:text}`guide-wide-hit-vanilla` % with the vanilla one. Without an attack
# {glue:text}`guide-wide-clean-wide` %, {glue:text}`guide-wide-clean-robust` % and {glue:text}`guide-wide-clean-vanilla` % are right. At high noise the attack
# is a shift by {glue:text}`guide-wide-deviations` standard deviations of the noise in the worst direction, of which the exact posterior survives
# {glue:text}`guide-wide-hit-exact` % at $\sigma = $ {glue:text}`guide-wide-high`: too much for anybody, and no training can help.
#
# What its gradients look like, and where they point, is on the next two pages; what it makes, in {ref}`nb-guidance-record`.
#
# ## What to remember
#
# - A classifier of noisy images is trained to ignore small changes already. A small radius adds little.
# - Where the noise is high, the classes overlap, and an attack may be too strong for anybody. The exact posterior gives a hint,
#   not a limit.
# - Robustness needs a radius that can be seen, and then it has a price at low noise.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-nobody
# :::
# **Too much for anybody** (10 minutes, medium). Two classes are one image each, 6 apart in L2. The attack has half a standard deviation of the noise, $r = \sigma / 2$. From which $\sigma$
# on is no classifier right in more than 75 % of the noisy images under this attack?
#
# :::{hint}
# :class: dropdown
# The best classifier cuts half-way: it is right with probability $\Phi((3 - r) / \sigma)$.
# :::

# %%
# your code here
sigma_limit = None

# %%
# check
fine = sigma_limit is not None
fine = fine and abs(norm.cdf(3 / sigma_limit - 0.5) - 0.75) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-nobody
# :label: sol-guide-nobody
# :class: dropdown
# :::
# $3 / \sigma - \frac12 = \Phi^{-1}(0.75)$, so $\sigma = 3 / (\frac12 + \Phi^{-1}(0.75))$. Above it training cannot help.

# %%
sigma_limit = 3 / (0.5 + norm.ppf(0.75))
print(f"sigma {sigma_limit:.2f}")

# %% tags=["remove-cell"]
claim(2.5 < sigma_limit < 2.6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-none
# :::
# **Nothing found** (5 minutes, easy). An attack changes the class of none of 50 images. Which share of all images may it change at most, with 95 % (one-sided)? And if it was
# tried on 1 000 images?
#
# :::{hint}
# :class: dropdown
# At a share $p$ nothing is found with the probability $(1 - p)^n$.
# :::

# %%
# your code here
few_at_most, many_at_most = None, None  # shares between 0 and 1

# %%
# check
shares = (few_at_most, many_at_most)
fine = None not in shares and all(
    abs((1 - p) ** n - 0.05) < 2e-3
    for p, n in zip(shares, (50, 1000), strict=True)
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-none
# :label: sol-guide-none
# :class: dropdown
# :::
# $p = 1 - 0.05^{1/n}$, nearly $3 / n$: the rule of three. And only by *this* attack.

# %%
few_at_most, many_at_most = (1 - 0.05 ** (1 / n) for n in (50, 1000))
print(f"{few_at_most:.4f} and {many_at_most:.4f}")

# %% tags=["remove-cell"]
claim(many_at_most < few_at_most)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-reach
# :::
# **Half the way** (5 minutes, easy). At $\sigma = 0.1$: how many times the radius of the paper's attack, `threat`, is half the distance to the nearest training image of another
# class (median, `nearest_other`)? Is the radius of the wide guide larger than that?
#
# :::{hint}
# :class: dropdown
# `float(threat.radius_at(torch.tensor(0.1)))` is in model units, as `nearest_other` is.
# :::

# %%
# your code here
times_needed, wide_is_larger = None, None

# %%
# check
half_way = nearest_other / 2 / float(threat.radius_at(torch.tensor(0.1)))
far_radius = float(wide_threat.radius_at(torch.tensor(0.1)))
fine = times_needed is not None and abs(times_needed / half_way - 1) < 0.01
fine = fine and wide_is_larger == (far_radius > nearest_other / 2)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-reach
# :label: sol-guide-reach
# :class: dropdown
# :::
# Half-way to the nearest training image of another class both may claim the same point. For the typical image no classifier
# can keep its answer further than that, and be right on that training image as far.

# %%
here = torch.tensor(0.1)
times_needed = nearest_other / 2 / float(threat.radius_at(here))
wide_is_larger = float(wide_threat.radius_at(here)) > nearest_other / 2
print(f"{times_needed:.1f} times; the wide one is larger: {wide_is_larger}")

# %% tags=["remove-cell"]
claim(times_needed > 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Adversarial training: {cite:t}`madry2018towards`.
