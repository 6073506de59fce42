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
# (nb-lm-parts)=
# # Which part of likelihood maximisation does the work?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Compare readings of {term}`likelihood maximisation` at equal displacement.
# - Say what budget, steps, {term}`noise level` and number of levels change under attackers who know the defence.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-lm` and {ref}`nb-lm-attacks`. Covers Figure 2(b), Table 1 and appendix B.2 of
# {cite:t}`chen2024rdc`.
#
# Likelihood maximisation (LM) has a budget, a number of steps, a noise level, an update and one level or many. Which of them
# keeps images? Every attacker on this page knows LM and its noise, but for the *static* one of the first table.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
eps: str | float = 8 / 255  # Linf radius, image units
n_static: int = 36  # images for the comparison at equal displacement

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.attack import pgd
from rdc.attack.norms import norm_of
from rdc.classify import DiffusionClassifier, LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy
from rdc.findings.evidence import Evidence, compared
from rdc.findings.side import Side, outcomes
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    glue,
    gradients_table,
    show_table,
    show_verdicts,
    stored_rows,
)
from rdc.plots import plot_accuracy, style
from rdc.runs.verdict import decide_all
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
tables: dict[str, list[dict[str, Any]]] = {}
for row in stored_rows("rdc-settings"):
    tables.setdefault(row["table"], []).append(row)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Robust accuracy against the budget of likelihood maximisation (left, the paper's Figure 2(b)) and against the number N of its steps (right), with 95 % intervals, one line for each gradient of the attacker. A line that is missing lies under the union. From the record.", "name": "fig-lm-budget"}, "image": {"alt": "Left: under BPDA the accuracy rises with the budget, under the union it rises and then stays or falls. Right: under BPDA it is flat in the number of steps, under the union it rises"}}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
for ax, (name, field, scale) in zip(axes, (("budget", "budget", 255), ("steps", "N", 1)), strict=True):
    chosen = [row for row in tables.get(name, []) if row[field] is not None]
    for i, gradient in enumerate(dict.fromkeys(row["gradient"] for row in chosen)):
        mine = sorted((row for row in chosen if row["gradient"] == gradient), key=lambda row: row[field])
        values = [Accuracy(**row["robust"]) for row in mine]
        plot_accuracy(ax, [scale * row[field] for row in mine], values, gradient, color=f"C{i}")
    ax.set(xlabel="budget (grey levels of 255), MI-FGSM" if name == "budget" else "steps N, clamped")
    ax.legend()
plt.show()

# %% [markdown]
# Read each panel from the top line to the lowest: the space between {term}`BPDA` and the union of the gradients is what an
# attacker gains who differentiates through LM ({ref}`sec-lm-gradients`).
#
# (sec-lm-ablations)=
# ## Equal displacement
#
# LM has a direction and a length. Readings that differ in both cannot be compared in the direction. So we
# choose each step size such that the *mean L2 displacement is about the same*, without a budget, and ask again.
# `literal` and `mean-l1` then coincide: they differ by a factor.
#
# For each we show, at that displacement, how many images are right: clean ones and *static* adversarial ones,
# those that were made against the {term}`diffusion classifier` alone. That is not a {term}`robust accuracy`, since this attacker
# does not know of LM; it says whether LM leads back to the class.

# %%
xs, ys = x[:n_static], y[:n_static]
x_static = pgd(classifier, xs, ys, eps=eps, steps=4, seed=seed)


def displacement(lm: LikelihoodMaximization, images: Tensor) -> float:
    """Mean L2 displacement."""
    return float(norm_of(lm(images) - images, "L2").mean())


def matched(target: float, **case: Any) -> LikelihoodMaximization:
    """LM that moves images by ``target`` on average, about as its step."""
    options = {"step_size": 0.02, "budget": None, "seed": seed}
    lm = LikelihoodMaximization(heads, **options, **case)
    for _ in range(3):
        lm.step_size *= target / displacement(lm, xs[::3])
    return lm


def right(images: Tensor) -> int:
    """Images that the diffusion classifier gets right."""
    return accuracy(classifier, images, ys).correct


cases: dict[str, dict[str, Any]] = {
    "sign": {"method": "sign"},
    "mean-l1": {"method": "mean-l1"},
    "adam": {"method": "adam"},
    "rmsprop": {"method": "rmsprop"},
    "sign, all (4)": {"method": "sign", "timesteps": "all", "count": 4},
}
rows = [{"LM": "none", "clean": right(xs), "static": right(x_static)}]
for target in (0.55, 2.0):  # about as MI-FGSM, and as released
    for name, case in cases.items():
        lm = matched(target, **case)
        with torch.no_grad():
            after, back = lm(xs), lm(x_static)
        moved = float(norm_of(after - xs, "L2").mean())
        row = {"LM": name, "step": lm.step_size, "moved, L2": moved}
        rows.append(row | {"clean": right(after), "static": right(back)})

# %% tags=["hide-input"]
order = ("LM", "step", "moved, L2", "clean", "static")
show_table(
    [{key: row.get(key) for key in order} for row in rows],
    f"Right of {n_static} images, without LM and after it at two displacements",
)

# %% [markdown]
# The differences between two rows with the same displacement are what the update, or the number of levels,
# contributes. Those between the two blocks are what the length contributes.
#
# Compare with {ref}`the laboratory <sec-lm-laboratory>`. There an {term}`adversarial image` is one that the *exact*
# model finds more likely under a wrong class, and descending its loss has no reason to undo that. An
# adversarial image of the trained network may also exploit errors of the network, and those need not be the
# same at the noise levels where LM looks. So what LM restores here can come from the network being wrong in
# different ways, rather than from the likelihood. That is a conjecture, not a result.
#
# ## Under attackers who know it
#
# Robust accuracies at equal displacement need more time; the record has them. Each cell counts the images that stay right
# under {term}`PGD` with that gradient, and in the last column under all of them.

# %% tags=["hide-input"]
same = "N = 5, no budget, fixed noise, PGD, Linf 8/255"
gradients_table(
    tables.get("optimiser", []), f"The update; {same}", "LM", "moved, L2"
)
gradients_table(
    tables.get("sigma", []), f"The noise levels; {same}", "sigma", "moved, L2"
)
gradients_table(
    tables.get("timesteps", []),
    f"One level a step or the mean of four; {same}",
    "levels",
    "moved, L2",
)

# %% [markdown]
# A dash is a gradient that was not run. What the paper says of budget and levels, and what these rows say of it:

# %% tags=["hide-input"]
claims_table("A12", "A13")

# %% [markdown]
# (sec-lm-more-steps)=
# ## More steps
#
# In the right panel of {numref}`fig-lm-budget` the union rises with $N$. Is that a better defence, or a gradient that is harder to follow? The
# next rows ask the {term}`union <robust accuracy>` of seven attacks, one after the other on the images that are left: PGD through five
# gradients, with restarts, with nine targets. Zero steps are the diffusion classifier alone, which has one gradient.

# %% tags=["hide-input"]
def kept(steps: int, outcome: str = "robust") -> Side:
    """Images that are right behind so many steps; none is the classifier alone."""
    rdc = {"model": "rdc", "N": steps, "noise seed": 0}
    about = rdc if steps else {"model": "dc"}
    return Side("union", {**about, "attacks": "strong"}, outcome)


def first(steps: int) -> str:
    """The outcome after the first attack."""
    return "after smoothed 0.3" if steps else "after pgd"


many = [n for n in (0, 1, 2, 5, 10) if outcomes(kept(n))]
shared = set.intersection(*(set(outcomes(kept(n))) for n in many))
lines = []
for n in many:
    line: dict[str, Any] = {"steps N": n}
    asked = {"clean": "clean", "after one attack": first(n), "after all": "robust"}
    for column, outcome in asked.items():
        right_of = outcomes(kept(n, outcome))
        line[column] = str(Accuracy.of(sum(right_of[i] for i in shared), len(shared)))
    lines.append(line)
show_table(lines, "Linf 8/255, LM as released, the images that all rows have")

# %% tags=["hide-input"]
questions = {
    f"N = {n} keeps more images than N = 0": Evidence(kept(n), kept(0))
    for n in many[1:]
}
questions["N = 10 keeps more images than N = 5"] = Evidence(kept(10), kept(5))
made = {name: found for name, q in questions.items() if (found := compared(q))}
_, verdicts = decide_all([one[0] for one in made.values()])
show_verdicts(dict(zip(made, verdicts, strict=True)), "Corrected together")

# %% [markdown]
# Compare the last two columns of the table. Where later attacks find nothing that the first one left, two readings are open: the images
# withstand, or all these gradients stop at the same place ({ref}`nb-adaptive-audit` tells them apart). An attack through more steps needs more
# of everything: gradients of more steps, more of its own steps, restarts. So these rows are upper bounds, and the highest row is the one
# to distrust first.

# %% [markdown]
# ## Another noise
#
# LM draws its noise once, by a seed that the attacker knows. Was ours a lucky draw? The same five gradients against four other
# seeds, of LM and of the classifier behind it:

# %% tags=["hide-input"]
def drawn(number: int, outcome: str = "after bpda") -> dict[int, bool]:
    """Images that are right with another seed of the noise."""
    about = {"model": "rdc", "N": 5, "noise seed": number, "attacks": "strong"}
    return outcomes(Side("union", about, outcome))


seeds = [k for k in range(5) if drawn(k)]
shared = set.intersection(*(set(drawn(k)) for k in seeds))
lines = [
    {
        "seed": k,
        "clean": sum(drawn(k, "clean")[i] for i in shared),
        "after five gradients": str(
            Accuracy.of(sum(drawn(k)[i] for i in shared), len(shared))
        ),
    }
    for k in seeds
]
show_table(lines, f"Linf 8/255, N = 5, LM as released, {len(shared)} images")
every = sum(all(drawn(k)[i] for k in seeds) for i in shared)
some = sum(any(drawn(k)[i] for k in seeds) for i in shared)
glue("lm-noise", f"{every} images are kept with every seed, {some} with at least one.")

# %% [markdown]
# {glue:text}`lm-noise` The rows are close, so no seed is the defence; *which* images withstand depends on it. An attacker who may
# try until the noise is kind gains from that ({ref}`nb-adaptive-random`).

# %% [markdown]
# Everything here is Fashion-MNIST with a small network.
#
# ## What to remember
#
# - Compare readings at equal displacement: direction and length are different things.
# - What leads a static image back to its class need not withstand an attacker who knows of it.
# - Judge a part of a defence under the strongest attack that knows it, not under BPDA alone.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-zero
# :::
# **Class 0** (10 minutes, medium). The VP version of the released code runs LM with the {term}`denoiser` of class 0 in place of
# the unconditional one. Predict what that does to the logit of class 0, then compute its mean change over six clean
# images (through LM with the label 0, less through the unconditional LM). How many of the six are then taken for class
# 0?
#
# :::{hint}
# :class: dropdown
# `LikelihoodMaximization(heads, label=0, seed=seed, **READINGS["clamped"])`; without a label it is the unconditional
# one.
# :::

# %%
# your code here
some = x[:6]
change, taken = None, None  # nats; images

# %%
# check
lms = [
    LikelihoodMaximization(heads, label=k, seed=seed, **READINGS["clamped"])
    for k in (0, None)
]
with torch.no_grad():
    logits = [classifier(lm(some)) for lm in lms]
known = float((logits[0] - logits[1])[:, 0].mean())
fine = taken is not None and close_to(change, known, within=6e-3)
fine = fine and taken == int((logits[0].argmax(1) == 0).sum())
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-zero
# :label: sol-lm-zero
# :class: dropdown
# :::
# LM now descends one term of the loss of class 0, at other levels and with other noise than those of the classifier. One
# expects the logit to rise; here its mean does not. A loss at one level is not the logit, and five steps need not carry an
# image over the border.

# %%
out = {}
for label in (0, None):
    lm = LikelihoodMaximization(
        heads, label=label, seed=seed, **READINGS["clamped"]
    )
    with torch.no_grad():
        out[label] = classifier(lm(some))
change = float((out[0] - out[None])[:, 0].mean())
taken = int((out[0].argmax(dim=1) == 0).sum())
print(f"logit of class 0: {change:+.2f} nats; {taken} of 6 taken for it")

# %% tags=["remove-cell"]
claim(taken >= int((out[None].argmax(dim=1) == 0).sum()))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-equal
# :::
# **Which step for which length?** (10 minutes, easy). Five sign steps move each of the 784 pixels by the same length.
# Which length of a step, in grey levels of 255, gives an L2 displacement of 0.55 if all steps of a pixel point the same
# way and no wall holds it? Is the true step that reaches 0.55 larger or smaller?
#
# :::{hint}
# :class: dropdown
# A displacement of $a$ at each of 784 pixels has the L2 norm $28 a$.
# :::

# %%
# your code here
grey, larger = None, None  # a length; True or False

# %%
# check
fine = grey is not None and larger is True
fine = fine and abs(5 * grey / 255 * 784**0.5 - 0.55) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-equal
# :label: sol-lm-equal
# :class: dropdown
# :::
# $0.55 / (5 \cdot 28)$, one grey level. Steps that turn, and pixels at a wall, go less far, so the matched step is
# larger. Hence a comparison at equal *step* is none at equal displacement.

# %%
grey = 255 * 0.55 / (5 * 784**0.5)
larger = True
straight = LikelihoodMaximization(
    heads, "sign", budget=None, seed=seed, step_size=2 * grey / 255
)
far = float(norm_of(straight(some) - some, "L2").mean())
print(f"{grey:.3f} grey levels; with this step LM moves by {far:.2f}, not 0.55")

# %% tags=["remove-cell"]
claim(far < 0.55)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-budget
# :::
# **A budget for the attacker** (10 minutes, medium). LM with a budget of $\eta$ moves no pixel by more than $\eta$, an attacker
# no pixel by more than $\epsilon$. How far can the image that the classifier sees be from the clean one, in grey levels, for
# $\eta = \epsilon = 8/255$? And which is the smallest budget with which LM can undo every change of the attacker?
#
# :::{hint}
# :class: dropdown
# For one pixel: the triangle inequality, and the way back.
# :::

# %%
# your code here
farthest, smallest = None, None  # grey levels of 255

# %%
# check
moves = torch.arange(-8, 9)
ends = moves[:, None] + moves  # attacker, then LM
undone = [int(b) for b in range(9) if bool((moves.abs() <= b).all())]
fine = farthest == int(ends.max()) and smallest == undone[0]
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-budget
# :label: sol-lm-budget
# :class: dropdown
# :::
# $\eta + \epsilon$, 16 grey levels, if both point the same way; and $\eta = \epsilon$ is enough to go back. So a budget of
# 8/255 can undo an attack of 8/255 and can double it. What LM does depends on its direction.

# %%
farthest, smallest = 8 + 8, 8
print(f"up to {farthest} grey levels; a budget of {smallest} can undo it")

# %% tags=["remove-cell"]
claim(farthest == 2 * smallest)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The defences and claims judged here are from {cite:t}`chen2024rdc`.
