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
# (nb-lm-attacks)=
# # What is left of the robustness
#
# :::{admonition} What you will be able to do
# :class: tip
# - Attack the robust {term}`diffusion classifier` with three gradients, and read off what {term}`likelihood maximisation` adds to it.
# - Compare two attacks on the same images with an exact test.
# - Say which attack is to be believed.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-lm-stairs` and {ref}`nb-adaptive`. Covers section 4.4, Table 2 and appendix B.2 of
# {cite:t}`chen2024rdc`.
#
# {term}`RDC` is a diffusion classifier behind likelihood maximisation (LM). How many images it keeps depends on the gradient that the
# attacker takes *through* LM:

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
n_attack: int = 6  # images for attacks on RDC and DC
steps: int = 4  # gradient steps of those attacks
eps: str | float = 8 / 255  # Linf radius, image units
lm_steps: list[int] = [1, 5]  # steps N of likelihood maximisation
n_fresh: int = 3  # images for attacks on RDC with fresh noise
eot: int = 2  # calls averaged there
draws: int = 5  # fresh verdicts there

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.attack import pgd
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import accuracy, predict, robust_accuracy
from rdc.experiments import experiment
from rdc.findings import rate
from rdc.findings.figure import draw_headline, headline
from rdc.findings.sides import (
    FIVE,
    alone,
    rdc,
    released,
    strongest,
)
from rdc.notebook import (
    audits,
    check_parameters,
    claim,
    claims_table,
    close_to,
    glue,
    gradients_table,
    show_table,
    stored_rows,
)
from rdc.plots import style
from rdc.schedule import levels

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")
x, y = test.x.to(device), test.y.to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
grid = levels("elbo", count, sigma_min=0.1)
classifier = DiffusionClassifier(heads, grid, seed=seed, chunk=2560)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Robust accuracy on the first test images of Fashion-MNIST, with 95 % intervals, from the record. RDC, with likelihood maximisation as released, keeps the most under BPDA, which does not see it; the more the gradient sees of it, the less is left. BPDA, the exact and the smoothed gradient together are the union: an image counts if it withstands each of them. Beside it (blue) adversarial training and a nearest neighbour, whose bar is a proof, and (grey) the classifier without LM and an undefended network. Below, the same on CIFAR-10 with a small denoiser, without the smoothed gradient.", "name": "fig-lm-headline"}, "image": {"alt": "Bars of robust accuracy: under BPDA RDC is about as high as an adversarially trained network, under the exact gradient lower, and lowest under the smoothed one"}}
fig, ax = plt.subplots(figsize=(7, 3.6))
draw_headline(ax)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
kept = headline()
glue("lm-out", f"RDC keeps {kept['rdc-bpda']} of its images when the attacker uses BPDA, and {kept['rdc-all']} under all "
     f"gradients of this page. The diffusion classifier without LM keeps {kept['dc']}, adversarial training {kept['at']}.")  # fmt: skip

glue("lm-union", str(rate(strongest("rdc", **FIVE))))

# %% [markdown]
# {glue:text}`lm-out` A longer list, five gradients, restarts and nine targets ({ref}`sec-lm-more-steps`), leaves {glue:text}`lm-union`.
# {ref}`nb-lm-stairs` says why: BPDA and the exact gradient see the treads of a staircase, the smoothed one
# sees the stairs.
#
# (sec-lm-question)=
# ## Attacks with three gradients
#
# The paper's Table 2 has RDC with $N = 5$ at 75.67 % under {term}`BPDA`. The exact gradient was affordable for $N = 1$
# only: 69.53 %, and BPDA 0.39 points more, from which it concludes "that BPDA suffices for evaluating RDC". We
# attack both settings with all gradients, on few images, and DC alone beside it. The verdict is always that of
# the defence. "Transfer" are the images that were made against DC, by an attacker who does not know of LM; the
# *union* counts an image as broken if any of them broke it.

# %%
def three(lm: LikelihoodMaximization) -> dict[str, RDC]:
    """The defence as the attacker sees it, by gradient."""
    return {
        "bpda": RDC(lm, classifier),
        "exact": RDC(lm, classifier, "exact"),
        "smoothed 0.3": RDC(lm.smoothed(0.3), classifier, "exact"),
    }


xa, ya = x[:n_attack], y[:n_attack]
attack: dict[str, Any] = {"eps": eps, "steps": steps, "seed": seed}
x_dc = pgd(classifier, xa, ya, **attack)
kept: dict[int, dict[str, Tensor]] = {}
for n in lm_steps:
    reading = {**READINGS["clamped"], "steps": n}
    lm = LikelihoodMaximization(heads, seed=seed, **reading)
    defence = RDC(lm, classifier)
    made = {g: pgd(seen, xa, ya, **attack) for g, seen in three(lm).items()}
    made["transfer"] = x_dc
    clean = predict(defence, xa) == ya
    kept[n] = {"clean": clean}
    for name, images in made.items():
        kept[n][name] = clean & (predict(defence, images) == ya)
    kept[n]["union"] = torch.stack(list(kept[n].values())).all(0)
rows = [
    {"images": name}
    | {f"N = {n}": int(found[name].sum()) for n, found in kept.items()}
    for name in kept[lm_steps[0]]
]

# %% tags=["hide-input"]
own = int((predict(classifier, x_dc) == ya).sum())
show_table(
    rows,
    f"Images of RDC that are right, of {n_attack}, Linf {255 * eps:.0f}/255, PGD-{steps}; "
    f"DC alone: {accuracy(classifier, xa, ya).correct} clean, {own} attacked",
)

# %% [markdown]
# An attacker who knows less must not do better: where transfer breaks as many images as BPDA, BPDA's gradient was worth
# nothing. Few images and steps show the method; the record has more of both.
#
# ## The record
#
# `clamped` is the released reading with a clamp after every step, `released` clamps once, at the end, as the code does. The
# classifier behind it has the weights of the bound, and in the last row the weights of the released code, on eight levels spread
# evenly, as there, but from 0.1 on; they leave DC alone with nothing.

# %% tags=["hide-input"]
seen = ("bpda", "exact", "smoothed 0.3")
rows = []
for lm, n, noise, radius in (
    ("released", 5, "fixed", 8),
    ("clamped", 5, "fixed", 8),
    ("clamped", 5, "fixed", 16),
    ("clamped", 1, "fixed", 8),
    ("clamped", 5, "fresh", 8),
):
    sides = {g: rdc(lm, n, g, radius / 255, noise) for g in seen}
    sides |= {"all": rdc(lm, n, seen, radius / 255, noise)}
    sides |= {"DC alone": alone("DC", radius / 255)}
    found = {g: rate(side) for g, side in sides.items()}
    shown = {g: f"{v.correct}/{v.n}" if v else "not run" for g, v in found.items()}
    words = f"{lm}, N = {n}, {radius}/255" + ", fresh noise" * (noise == "fresh")
    rows.append({"LM": words, **shown})
sides = {g: released("RDC", g) for g in seen}
sides |= {"all": released("RDC", seen), "DC alone": released("DC", "plain")}
found = {g: rate(side) for g, side in sides.items()}
shown = {g: f"{v.correct}/{v.n}" if v else "not run" for g, v in found.items()}
rows.append({"LM": "released, N = 5, 8/255, weights too", **shown})
show_table(rows, "Images of RDC that are right under PGD with each gradient, and under all of them; DC under its own")

# %% [markdown]
# The verdicts compare two attacks on the same images, by the exact {term}`McNemar` test or the interval of the difference: if
# neither were better, each image on which they differ would be a toss of a coin ({ref}`ex-lm-mcnemar`).

# %% tags=["hide-input"]
claims_table("A8", "A16", "A16a", "A16b", "A16e")

# %% [markdown]
# :::{admonition} How to read "no stronger"
# :class: note
# That two attacks break about the same number of images shows that they are equally strong. It does not show
# that they are strong. {prf:ref}`prop-lm-jacobian` says that at $N = 1$ neither sees the stairs. A fair
# stand-in has to agree with what *happens* over a step of the attack's length, and {numref}`fig-lm-rise` is the
# test of that.
# :::
#
# ## Fresh noise, and other attacks
#
# Does *fresh* noise in LM help? Then nobody knows the noise of the verdict, and the attacker averages over `eot` calls
# ({eq}`eq-eot`). An image counts as right if most of `draws` fresh verdicts are.

# %%
xf, yf = x[:n_fresh], y[:n_fresh]
reading = {**READINGS["clamped"], "noise": "fresh"}
attackers = three(LikelihoodMaximization(heads, seed=seed, **reading))
fresh = attackers["bpda"]
made = {
    g: pgd(seen, xf, yf, eot=eot, **attack) for g, seen in attackers.items()
}
for name, images in (*made.items(), ("union", list(made.values()))):
    value = robust_accuracy(fresh, xf, yf, images, draws=draws)
    print(f"{name:12s} {value.correct} of {n_fresh}")

# %% [markdown]
# The record averages more calls. Where the noise is fixed, more calls do not matter, because all of them are the same.
# Two more attacks of the paper: the Lagrange attack asks for an image that fools the
# classifier *and* has a small diffusion loss, so that LM leaves it alone; the feature attack asks for the
# {term}`logits` of an image of another class.

# %% tags=["hide-input"]
tables: dict[str, list[dict[str, Any]]] = {}
for row in stored_rows("rdc-gradient", "rdc-attacks"):
    tables.setdefault(row["table"], []).append(row)
drawn = [r for r in tables.get("eot", []) if r["protocol"] == "draws"]
gradients_table(drawn, "Fresh noise, majority of fresh verdicts, by calls averaged; all: "
    "in the last row over every row, on the images that all have", "EOT")
others = tables.get("lagrange", []) + tables.get("feature", [])
gradients_table(others, "Other attacks, fixed noise, N = 5, Linf 8/255", "attack")

# %% tags=["hide-input", "hide-output"]
again = [r for r in tables.get("eot", []) if r["protocol"] == "resubmit"]
gradients_table(again, "Fresh noise, if the attacker may ask again until a verdict is wrong", "EOT")

# %% tags=["hide-input"]
claims_table("A17", "A20", "A21", "A29")

# %% [markdown]
# An attack that breaks next to nothing where another one breaks many images is a weak attack. Its row says
# nothing in favour of the defence.
#
# (sec-lm-audit)=
# ## Which of the attacks is to be believed?
#
# {ref}`nb-adaptive-audit` audits an attack: does its gradient raise the loss as it forecasts, does it find
# adversarial examples that were planted, does a larger radius break everything? The same audit, of the attack
# on RDC with each gradient, from the record:

# %% tags=["hide-input"]
lines = audits("rdc-audit")
row = experiment("rdc-audit").rows[0]
code = [line for line in lines if "of the code" in line["attack on"]]
show_table(
    [line for line in lines if line not in code],
    f"Audit of PGD-{row.arguments['steps']} on the right ones of {row.n} "
    f"images, {row.arguments['norm']} {row.arguments['eps']}, LM released, N = 5",
)
doubted = [line["attack on"] for line in lines if line["to be believed"] == "no"]
by_model: dict[str, list[str]] = {}
for name in doubted:
    model, _, gradient = name.partition(", ")
    word = "BPDA" if gradient == "bpda" else (gradient or "own").split()[0]
    by_model.setdefault(model, []).append(f"the {word}")
said = [f"{m} with {' and '.join([', '.join(w[:-1])] * (len(w) > 1) + w[-1:])} gradient" for m, w in by_model.items()]
glue("lm-audit", f"The audit rejects the attack on {', on '.join(said)}." if said else "The audit rejects none of them.")

# %% tags=["hide-cell"]
show_table(code, "The same, with the weights of the released code")

# %% [markdown]
# {glue:text}`lm-audit` An attack that the audit rejects may still break images, but what it leaves standing is no evidence. For
# BPDA a step along the gradient gains nothing of what it forecasts ({numref}`fig-lm-rise`), and it misses the planted examples. The
# exact and the smoothed gradient pass along their own direction and fail for random steps of a fiftieth of the radius: over such a
# step the loss changes otherwise than either of them says. So the counts under each gradient are upper bounds.
#
# ## What to remember
#
# - "No stronger" compares two attacks; it does not say that either is strong.
# - A {term}`robust accuracy` is that of the strongest attack, and gradients are compared on the same images with an exact test.
# - An attack that the audit rejects is no evidence for what it leaves standing.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-mcnemar
# :::
# **A toss for each difference** (10 minutes, easy). On the same images 9 are broken by attack A alone, 2 by attack B
# alone. What two-sided p-value does the exact McNemar test give? If all differences point one way, how many must there be
# for p below 0.05?
#
# :::{hint}
# :class: dropdown
# If neither were better, each image on which they differ would be a toss of a fair coin: 2 or fewer heads of 11, twice.
# `math.comb` counts.
# :::

# %%
# your code here
p_value, fewest = None, None

# %%
# check
from scipy.stats import binomtest

fine = close_to(p_value, binomtest(2, 11).pvalue, within=1e-3)
fine = fine and fewest == 6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-mcnemar
# :label: sol-lm-mcnemar
# :class: dropdown
# :::
# $2 (1 + 11 + 55) / 2^{11}$, not below 0.05 in spite of 9 against 2. And $2 / 2^k < 0.05$ from $k = 6$ on. With few
# images most comparisons cannot be decided, however strong the attack: a reason to say "not decided", not "equal".

# %%
import math

p_value = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
fewest = next(k for k in range(1, 20) if 2 / 2**k < 0.05)
print(f"p = {p_value:.3f}, at least {fewest} differences")

# %% tags=["remove-cell"]
claim(p_value > 0.05)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-union
# :::
# **Two attacks together** (5 minutes, easy). Of 100 images 60 withstand attack A and 50 attack B. How many withstand both, at
# least and at most? What does a table of the two counts say about the *union* of the attacks?
#
# :::{hint}
# :class: dropdown
# 40 are broken by A and 50 by B. How do the two sets lie when most, and when fewest, are broken?
# :::

# %%
# your code here
at_least, at_most = None, None

# %%
# check
both = []
for shift in range(101):  # B's images begin somewhere, and go round
    by_b = {(shift + i) % 100 for i in range(50)}
    both.append(len(by_b & set(range(60))))
fine = (at_least, at_most) == (min(both), max(both))
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-union
# :label: sol-lm-union
# :class: dropdown
# :::
# At least $100 - 40 - 50$, at most the smaller count. Counts alone leave the union open; that is why a record stores which images
# each attack broke.

# %%
at_least, at_most = 100 - 40 - 50, min(60, 50)
print(f"between {at_least} and {at_most}")

# %% tags=["remove-cell"]
claim(at_least < at_most)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-only
# :::
# **What only BPDA finds** (10 minutes, medium). `wrong` holds, for RDC as released, the images that are not right after
# {term}`PGD` with each gradient. How many of those that the smoothed gradient breaks does BPDA leave standing, and how many the
# other way round? What does that say about an attacker who runs only one of them?
#
# :::{hint}
# :class: dropdown
# Differences of sets.
# :::

# %%
# your code here
wrong = {
    row["gradient"]: set(row["wrong"])
    for row in tables["gradient"]
    if row["lm"] == "released" and row["gradient"] != "union"
}
only_smoothed, only_bpda = None, None  # counts of images

# %%
# check
every = wrong["smoothed 0.3"] | wrong["bpda"]
fine = None not in (only_smoothed, only_bpda)
fine = fine and only_smoothed == len(every) - len(wrong["bpda"])
fine = fine and only_bpda == len(every) - len(wrong["smoothed 0.3"])
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-only
# :label: sol-lm-only
# :class: dropdown
# :::
# Everything that BPDA breaks the smoothed gradient breaks, too, and many images more. Whoever runs BPDA alone counts these as
# robust.

# %%
only_smoothed = len(wrong["smoothed 0.3"] - wrong["bpda"])
only_bpda = len(wrong["bpda"] - wrong["smoothed 0.3"])
print(f"only smoothed {only_smoothed}, only BPDA {only_bpda}")

# %% tags=["remove-cell"]
claim(only_smoothed > 3 and only_bpda == 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# RDC and the claims judged here are from {cite:t}`chen2024rdc`. BPDA is due to {cite:t}`athalye2018obfuscated`, the rule that an
# evaluation must adapt to the defence to {cite:t}`tramer2020adaptive`.
