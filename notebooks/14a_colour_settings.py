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
# (nb-colour-settings)=
# # Colour: other settings, and a floor
#
# :::{admonition} What you will be able to do
# :class: tip
# - Try one change at a time on a defence that is broken, and say what each one moves.
# - Tell which of four verdicts a defence with fresh noise is given.
# :::
#
# **Time** 15 minutes · **Needs** {ref}`nb-colour` and {ref}`nb-floor`. Covers settings of {cite:t}`chen2024rdc`.
#
# On CIFAR-10 one setting of RDC falls with the gradient of the attacker ({ref}`nb-colour`). Would another one stand? Fewer
# steps of likelihood maximisation, its other reading, noise that the attacker does not know, half the radius, a floor under the levels:
# one change at a time.

# %% tags=["parameters"]
margin: float = -0.05  # difference that "as many" allows for

# %% tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt

from rdc.findings.colour import colour as kept
from rdc.findings.evidence import Evidence, compared
from rdc.findings.side import Side
from rdc.notebook import (
    check_parameters,
    claim,
    close_to,
    out_of,
    show_table,
    show_verdicts,
    stored_cells,
)
from rdc.plots import legend_below, plot_accuracy, style
from rdc.runs.store import Found
from rdc.runs.verdict import decide_all

check_parameters()
style()

# %% [markdown]
# ## One change at a time

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Images of CIFAR-10 that RDC keeps under PGD with 20 steps in six settings, with 95 % intervals and counts, against the attacker's gradient through likelihood maximisation; the short grey lines are the images that are right before the attack. The first line is the setting of the page before; each other line changes one thing. Lines rest on different numbers of images.", "name": "fig-colour-settings"}, "image": {"alt": "Points in six settings. Under BPDA a quarter or more are left in three of five, under the exact gradient one image or none; before the attack between two fifths and two thirds are right", "width": "100%"}}
GRADIENTS = {
    "bpda": ("BPDA", "o", "C0"),
    "exact": ("exact gradient", "s", "C1"),
    "smoothed 0.3": ("smoothed gradient", "^", "C2"),
}
USUAL = {"N": 5, "lm": "released", "noise": "fixed", "eps": "8/255"}
SETTINGS = {
    "N = 5, released": {},
    "N = 1": {"N": 1},
    "clamped": {"lm": "clamped"},
    "fresh noise": {"noise": "fresh"},
    "radius 4/255": {"eps": "4/255"},
}
cells = {
    name: stored_cells("cifar10", what="attacked", model="RDC", **USUAL | one)
    for name, one in SETTINGS.items()
}
above = {"what": "judged", "model": "RDC", "floor": 1.0}
cells["levels from 1 on"] = stored_cells("cifar10-floor", **above)
cells = {name: found for name, found in cells.items() if found}

fig, ax = plt.subplots(figsize=(6.8, 0.8 + 0.8 * len(cells)))
for name, mark, colour in GRADIENTS.values():
    ax.plot([], [], mark, color=colour, label=name)
ax.plot([], [], "|", color="0.5", ms=12, mew=3, label="before the attack")
for i, found in enumerate(reversed(cells.values())):
    for cell in found:
        name = cell.row.about["gradient"]
        _, mark, colour = GRADIENTS[name]
        at = i + 0.25 - 0.25 * [*GRADIENTS].index(name)
        before, value = cell.accuracy("clean"), cell.accuracy("robust")
        ends = value.value - value.low, value.high - value.value
        ends = [[100 * max(end, 0)] for end in ends]
        ax.errorbar(100 * value.value, at, xerr=ends, fmt=mark, color=colour, capsize=3)
        ax.plot(100 * before.value, at, "|", color="0.5", ms=12, mew=3)
        words = f"{value.correct} of {value.n}"
        ax.text(108, at, words, va="center", ha="right")
ax.set_yticks(range(len(cells)), list(reversed(cells)))
ax.set(xlim=(-2, 110), xlabel="images right (%)")
ax.grid(axis="y", visible=False)
legend_below(fig, 2)
plt.show()

# %% tags=["remove-cell"]
shares = {
    (name, cell.row.about["gradient"]): (cell.accuracy("clean").value, cell.accuracy("robust").value)
    for name, found in cells.items()
    for cell in found
}
exact = [cell for found in cells.values() for cell in found if cell.row.about["gradient"] == "exact"]
five, one, higher = "N = 5, released", "N = 1", "levels from 1 on"
claim(len(exact) == len(cells) and all(cell.accuracy("robust").correct <= 1 for cell in exact))
claim(all(shares[name, "bpda"][1] > 0.2 for name in (five, "clamped")) and shares[one, "bpda"][1] < 0.1)
claim(all(shares[name, "exact"][0] > shares[five, "exact"][0] + 0.1 for name in (one, higher)))

# %% [markdown]
# Five steps of likelihood maximisation, in either reading, cost images before anybody attacks, and BPDA leaves some of the rest. The
# gradient that sees the steps takes those: in every setting one image is left or none, however few were tried. With one step more
# images are right beforehand, and BPDA itself leaves nearly none. So the images that BPDA leaves come with the steps, and go with the
# gradient. Levels from 1 on give back what the steps have cost, not what the attack takes. With fresh noise so few images were tried that
# the two gradients cannot be told apart.
#
# Does BPDA overstate the defence in every setting? Both gradients meet the same images of a setting:

# %% tags=["hide-input"]
def both(**one: object) -> Evidence:
    """Whether RDC keeps as many under the exact gradient as under BPDA."""
    side = partial(kept, **one)
    return Evidence(
        side(gradient="exact"), side(gradient="bpda"), bound=margin
    )


asked = {
    f"{name}: as many under the exact gradient": both(**one)
    for name, one in SETTINGS.items()
}
pairs = {w: pair for w, q in asked.items() if (pair := compared(q))}
_, said = decide_all([pair[0] for pair in pairs.values()])
show_verdicts(
    dict(zip(pairs, said, strict=True)),
    "RDC under the exact gradient against BPDA, corrected together",
)

# %% [markdown]
# ## Which verdict, if the noise is fresh?
#
# A defence that draws its noise anew may answer differently each time ({ref}`nb-gradients-known`). Of twenty answers after the
# attack, one may be asked, or most of them, or all; and an attacker may be given the noise that judges.

# %% tags=["hide-input"]
VERDICTS = {
    " once": "one answer",
    "": "most of 20",
    " resubmit": "all of 20",
    " known": "noise known",
}


def judged(cell: Found, stage: str) -> dict[str, str]:
    """Images right by each verdict, before the attack or after it."""
    return {
        words: out_of(cell.accuracy(stage + which))
        for which, words in VERDICTS.items()
    }


fresh = cells["fresh noise"]
lines = [{"gradient": "no attack", **judged(fresh[0], "clean")}]
for cell in fresh:
    name = GRADIENTS[cell.row.about["gradient"]][0]
    lines.append({"gradient": name, **judged(cell, "robust")})
show_table(
    lines,
    "RDC with fresh noise on CIFAR-10, Linf 8/255, images right",
)

# %% tags=["remove-cell"]
claim(fresh[0].accuracy("clean resubmit").value < 0.2 and fresh[0].accuracy("clean").value > 0.3)

# %% [markdown]
# The first three columns judge one and the same attack. Even if nobody attacks, few images or none have twenty right answers: who may ask
# again until an answer is wrong needs no attack. The last column is an attack of its own, by one who knows the noise, and need not be the strongest.
#
# (sec-colour-floor)=
# ## A floor for colour
#
# Clothes gained more from a {term}`floor` under the levels than from likelihood maximisation ({ref}`nb-floor`). Does colour? The same
# experiment, five levels from the floor up to 4, under attack by one who knows the levels and the noise:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Right before (dashed) and after (solid) PGD with 20 steps, Linf 8/255, against the lowest of five levels, of the diffusion classifier, with 95 % intervals. CIFAR-10, small denoiser, the first test images.", "name": "fig-colour-floor"}, "image": {"alt": "Before the attack accuracy falls as the floor rises, from about four fifths to a half; after it the line stays near the bottom", "width": "100%"}}
floors = stored_cells("cifar10-floor", what="judged", model="DC")
fig, ax = plt.subplots(figsize=(6.8, 3.4))
at = [c.row.about["floor"] for c in floors]
dashes = {"clean": ("--", "before the attack"), "robust": ("-", "after it")}
for outcome, (dash, name) in dashes.items():
    values = [c.accuracy(outcome) for c in floors]
    plot_accuracy(ax, at, values, name, ls=dash, color="C0")
ax.set(xscale="log", xlabel="floor (model units)", ylabel="images right")
ax.set_xticks(at, [f"{a:g}" for a in at])
ax.minorticks_off()
legend_below(fig)
plt.show()

# %% tags=["hide-input"]
def floored(floor: float) -> Side:
    """Images that the classifier keeps with levels from a floor on."""
    about = {"what": "judged", "model": "DC", "floor": floor}
    return Side("cifar10-floor", about)


higher = [0.5, 0.75, 1.0, 1.5, 2.0]
question = {
    f"from {f:g} on it keeps more than from 0.33 on": Evidence(
        floored(f), floored(0.33)
    )
    for f in higher
}
pairs = {w: pair for w, q in question.items() if (pair := compared(q))}
if pairs:
    _, verdicts = decide_all([pair[0] for pair in pairs.values()])
    show_verdicts(
        dict(zip(pairs, verdicts, strict=True)),
        "DC with a floor, PGD with 20 steps, corrected together",
    )

# %% tags=["remove-cell"]
claim(all(c.accuracy("robust").value < 0.2 for c in floors))
gains = [v.interval[1] for v in verdicts]
clothes = {
    c.row.about["floor"]: c.accuracy("robust").value
    for c in stored_cells("floor", what="screened")
}
claim(max(gains) < max(clothes.values()) - clothes[min(clothes)])

# %% [markdown]
# A floor leaves few images, if any; so few that whether it helps at all stays open until more are run. A gain as large as that of
# clothes ({numref}`fig-floor`) lies outside the intervals, a smaller one does not. Compare the margins of single levels on the page
# before: those of clothes grow with the level, those of colour do not, so above a floor an attacker has about as little to
# overcome as below it. That is a reading, not a result.
#
# The denoiser was trained in no other range. So this page cannot say what *lower* levels would do to it, as {ref}`nb-floor` does
# for clothes.
#
# ## What to remember
#
# - A broken setting does not break its neighbours: each one costs a row. Say which were tried.
# - A defence with fresh noise has several robust accuracies. Name the verdict beside the number.
# - A number at half the radius is another number, no better one.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-colour-twenty
# :::
# **Twenty answers** (5 minutes, easy). After an attack a defence with fresh noise is wrong about an image one time in five, each time
# anew. How probable is it that one answer is right, that fewer than half of twenty are wrong, and that none of twenty is?
#
# :::{hint}
# :class: dropdown
# The number of wrong ones is binomial. `math.comb` counts; sum from zero to nine.
# :::

# %%
# your code here
one, most, every = None, None, None

# %%
# check
answers, wanted = [one, most, every], [0.8, 0.9974, 0.0115]
print("right" if close_to(answers, wanted, 6e-4) else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-colour-twenty
# :label: sol-colour-twenty
# :class: dropdown
# :::
# The same defence, the same image, the same attack: nearly certain of itself, or nearly certainly broken. Whoever may ask again
# until an answer is wrong needs no better attack.

# %%
import math

one, share = 0.8, lambda k: math.comb(20, k) * 0.2**k * 0.8 ** (20 - k)
most, every = sum(share(k) for k in range(10)), share(0)
print(round(one, 4), round(most, 4), round(every, 4))

# %% tags=["remove-cell"]
claim(close_to([one, most, every], wanted, 6e-4))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-colour-nothing
# :::
# **Nothing left** (5 minutes, medium). An attack leaves none of n images. Up to which robust accuracy $p$ would that happen in at least
# five cases of a hundred? Answer for n = 32 and n = 128, to three decimals.
#
# :::{hint}
# :class: dropdown
# $(1 - p)^n = 0.05$.
# :::

# %%
# your code here
largest = {32: None, 128: None}

# %%
# check
wanted = {32: 0.0894, 128: 0.0231}
print("right" if close_to(largest, wanted, 6e-4) else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-colour-nothing
# :label: sol-colour-nothing
# :class: dropdown
# :::
# About $3 / n$: none of n is no proof of zero, and four times as many images bring the bound down to a quarter. The intervals of this
# book have two sides, so that theirs reaches a little higher.

# %%
largest = {n: 1 - 0.05 ** (1 / n) for n in (32, 128)}
print({n: round(p, 3) for n, p in largest.items()})

# %% tags=["remove-cell"]
claim(abs(largest[128] - 3 / 128) < 1e-3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-colour-nested
# :::
# **Two radii** (5 minutes, easy). After PGD with radius 4/255 the images 1, 2 and 5 of eight are still right; after PGD with radius 8/255
# the images 1 and 6. How many images has the defence kept at 8/255 for all that is known, and how many at 4/255?
#
# :::{hint}
# :class: dropdown
# The smaller ball lies in the larger one. What was found in it was found in both.
# :::

# %%
# your code here
at_eight, at_four = None, None

# %%
# check
print("right" if close_to([at_eight, at_four], [1, 3], 0) else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-colour-nested
# :label: sol-colour-nested
# :class: dropdown
# :::
# Image 6 was broken with the smaller radius, so it is broken with the larger one: that PGD missed it there is a weakness of PGD, which
# the audit calls *monotone in eps*. Nothing follows the other way round.

# %%
four, eight = {1, 2, 5}, {1, 6}
at_eight, at_four = len(eight & four), len(four)
print(at_eight, at_four)

# %% tags=["remove-cell"]
claim((at_eight, at_four) == (1, 3))

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# CIFAR-10 is from {cite:t}`krizhevsky2009learning`, the defence from {cite:t}`chen2024rdc`.
