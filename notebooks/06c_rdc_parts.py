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
# - Tell a {term}`purification` from an optimisation by what they do to a change of the image.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-lm` and {ref}`nb-lm-attacks`. Covers Figure 2(b), Tables 1, 3 and 5 and appendix B.2 of
# {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
eps: str | float = 8 / 255  # Linf radius, image units
n_static: int = 36  # images for the comparison at equal displacement
n_purify: int = 12  # images for the comparison with DiffPure

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from torch import Tensor

from rdc.analyse.stand_in import pulled_back, transmission
from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy, predict
from rdc.notebook import check_parameters, claim, claims_table, stored_rows, stored_table
from rdc.plots import plot_accuracy, style
from rdc.runs.record import stored_record
from rdc.schedule import levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")
x, y = test.x.to(device), test.y.to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
classifier = DiffusionClassifier(heads, levels("elbo", count, sigma_min=0.1), seed=seed, chunk=2560)
stored = stored_rows("rdc-settings", "rdc-suite", "rdc-attacks", "rdc-gradient")
tables = {name: [row for row in stored if row["table"] == name] for name in dict.fromkeys(r["table"] for r in stored)}

# %% [markdown]
# Robust accuracy against the budget of LM and against its steps, from the record; every attacker knows LM and its noise:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Robust accuracy against the budget of likelihood maximisation (left, the paper's Figure 2(b)) and against the number N of its steps (right), with 95 % intervals, one line for each gradient of the attacker.", "name": "fig-lm-budget"}, "image": {"alt": "Robust accuracy against the budget and against the number of steps of likelihood maximisation"}}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
for ax, (name, field, scale) in zip(axes, (("budget", "budget", 255), ("steps", "N", 1)), strict=True):
    chosen = [row for row in tables.get(name, []) if row[field] is not None]
    for i, gradient in enumerate(dict.fromkeys(row["gradient"] for row in chosen)):
        mine = sorted((row for row in chosen if row["gradient"] == gradient), key=lambda row: row[field])
        values = [Accuracy(**row["robust"]) for row in mine]
        plot_accuracy(ax, [scale * row[field] for row in mine], values, gradient, color=f"C{i}")
    ax.set(xlabel="budget (grey levels of 255), MI-FGSM" if name == "budget" else "steps N, released")
    ax.legend(fontsize=9)
plt.show()

# %% [markdown]
# (sec-lm-ablations)=
# ## Equal displacement
#
# LM has a direction and a length. Readings that differ in both cannot be compared in the direction. So we
# choose each step size such that the *mean L2 displacement is about the same*, without a budget, and ask again.
# `literal` and `mean-l1` then coincide: they differ by a factor.
#
# For each we print, at that displacement, the accuracy on clean images and on *static* adversarial images,
# those that were made against DC alone. That is not a {term}`robust accuracy`, since this attacker does not know of LM;
# it says whether LM leads back to the class.

# %%
xs, ys = x[:n_static], y[:n_static]
x_static = pgd(classifier, xs, ys, eps=eps, steps=4, seed=seed)


def displacement(lm: LikelihoodMaximization, images: Tensor) -> float:
    """Mean L2 displacement."""
    return float(norm_of(lm(images) - images, "L2").mean())


def matched(target: float, tries: int = 3, **case: Any) -> LikelihoodMaximization:  # noqa: ANN401
    """LM whose step size gives the mean displacement ``target``; the displacement is nearly proportional to the step."""
    lm = LikelihoodMaximization(heads, step_size=0.02, budget=None, seed=seed, **case)
    for _ in range(tries):
        lm.step_size *= target / displacement(lm, xs[::3])
    return lm


targets = {"0.55 (as MI-FGSM)": 0.55, "2 (as released)": 2.0}
matched_cases = {
    "sign": {"method": "sign"},
    "mean-l1": {"method": "mean-l1"},
    "adam": {"method": "adam"},
    "rmsprop": {"method": "rmsprop"},
    "sign, all (4)": {"method": "sign", "timesteps": "all", "count": 4},
}
static = {}
print(
    f"{n_static} images; without LM: clean {accuracy(classifier, xs, ys).correct}, static adversarial {accuracy(classifier, x_static, ys).correct}"
)
for kind, target in targets.items():
    print(f"mean L2 displacement about {kind}")
    for name, case in matched_cases.items():
        lm = matched(target, **case)
        with torch.no_grad():
            after, back = lm(xs), lm(x_static)
        static[kind, name] = (
            float(norm_of(after - xs, "L2").mean()),
            accuracy(classifier, after, ys),
            accuracy(classifier, back, ys),
        )
        d, clean_value, static_value = static[kind, name]
        print(
            f"    {name:14s} step {lm.step_size:.4f}, displacement {d:.2f}: clean {clean_value.correct:2d}, static adversarial {static_value.correct:2d}"
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
# The robust accuracies at equal displacement, under attackers who know LM, need more time; the record has them:

# %% tags=["hide-input"]
for name in ("optimiser", "sigma", "timesteps"):
    display(stored_table(tables.get(name, []), f'Table "{name}"'))

# %% tags=["hide-input"]
claims_table("A12", "A13")

# %% [markdown]
# Three more attacks of the paper, from the record. The Lagrange attack asks for an image that fools the
# classifier *and* has a small diffusion loss, so that LM leaves it alone; the feature attack asks for the
# {term}`logits` of an image of another class; and more calls in {term}`EOT` should not matter where the noise is fixed, because
# all calls are the same.

# %% tags=["hide-input"]
for name in ("lagrange", "feature", "eot"):
    display(stored_table(tables.get(name, []), f'Table "{name}"'))
display(claims_table("A17", "A21"))

# %% [markdown]
# An attack that breaks next to nothing where another one breaks many images is a weak attack. Its row says
# nothing in favour of the defence.

# %% [markdown]
# (sec-lm-diffpure)=
# ## Does LM act like DiffPure?
#
# {term}`DiffPure` {cite}`nie2022diffpure` adds noise of level $\sigma$ and runs the reverse process back to zero. LM
# with $\sigma$ near 0.5 looks at the image through the same noise, and takes five steps of a fixed length. We
# match the noise level and compare what they do to an image. `Purify` returns a *sample* of $p(z_0 \mid
# z_\sigma)$: its displacement is that of the noise it could not remove.

# %%
t_star = (-0.1 + (0.01 + 4 * 9.95 * torch.tensor(1 + 0.5**2).log().item()) ** 0.5) / (2 * 9.95)  # sigma(t*) = 0.5
pure = Purify(heads, t=t_star, steps=10, seed=seed)
right = predict(classifier, x[: 2 * n_purify]) == y[: 2 * n_purify]
xp, yp = x[: 2 * n_purify][right][:n_purify], y[: 2 * n_purify][right][:n_purify]
smooth = LikelihoodMaximization(heads, seed=seed, **READINGS["clamped"])
signs = LikelihoodMaximization(heads, seed=seed, **{**READINGS["mi-fgsm"], "noise": "fixed"})
along = value_and_gradient(lambda p: margin(RDC(smooth, classifier)(p), yp), xp)[1].sign()  # BPDA
acts = {}
print(f"{len(yp)} images that DC gets right, sigma = {pure.sigma:.2f}")
print(f"{'':22s} displacement L2   cosine of J^T v with v   |J^T v| / |v|   passed on of BPDA's 8/255   right after it")
for name, process in {"LM, released": smooth, "LM, mi-fgsm": signs, "DiffPure": pure}.items():
    v, back = pulled_back(process, classifier, xp, yp)
    with torch.no_grad():
        there = process(xp)
    acts[name] = (
        float(norm_of(there - xp, "L2").mean()),
        float(F.cosine_similarity(back.flatten(1), v.flatten(1)).median()),
        float((norm_of(back, "L2") / norm_of(v, "L2")).median()),
        transmission(process, xp, along, 8 / 255),
    )
    d, c, ratio, share = acts[name]
    print(
        f"{name:22s} {d:15.2f} {c:24.2f} {ratio:15.2f} {share:27.2f} {int((predict(classifier, there) == yp).sum()):12d}/{len(yp)}"
    )

# %% [markdown]
# A $\tau$ well below 1 is a contraction: what the attacker adds is mostly removed. Then the gradient of the
# process is short, and far from the identity. In that sense a process with a small $\tau$ *is* a purification,
# whatever its name. The suite compares the defences under one attack:

# %% tags=["hide-input"]
display(stored_table(tables.get("suite", []), 'Table "suite"'))
display(claims_table("A7", "A9", "A10", "A22"))

# %% [markdown]
# The paper gives {term}`StAdv` 100 iterations, and attacks DiffPure with 200 steps of {term}`PGD`, ten or more calls a step,
# fresh noise and a reverse process of about a hundred steps. Fewer steps of an attack flatter the defence.
# Known noise does the opposite: it is all that an attacker can wish for. So the table compares defences with
# each other, and its numbers are no estimates of the paper's.

# %% [markdown]
# What the defences cost for one image, in network evaluations and in time, measured in turns on one machine
# (the paper's Table 3):

# %% tags=["hide-input"]
costs = stored_record("results/rdc_costs.json")["results"]["rows"]
found = [
    {
        "defence": row["model"],
        "N": str(row["N"] or "-"),
        "evaluations": row["nfe"][0],
        "with gradient": row["nfe"][1],
        "ms an image": f"{1000 * row['seconds_an_image']:.1f}",
    }
    for row in costs
]
display(pd.DataFrame(found).style.hide(axis="index").set_caption("Cost of one answer"))

# %% [markdown]
# Everything here is Fashion-MNIST with a small network.
#
# ## What to remember
#
# - Compare readings at equal displacement: direction and length are different things.
# - An attack that breaks next to nothing where another one breaks many images says nothing in favour of the defence.
# - A process that passes on little of a change is a purification, whatever its name.

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
fine = None not in (change, taken) and abs(change - known) < 0.01 * abs(known)
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
# LM now descends a loss that is a part of the logit of class 0, at the levels where it looks. The logit rises compared
# with the unconditional LM, but five steps at one level need not carry an image over the border.

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
# :label: ex-lm-contraction
# :::
# **A purification in a line** (10 minutes, medium). A process pulls an image towards the data: $x \leftarrow x + a (D -
# x)$ with a fixed $D$ and $a = 0.2$, $N$ times. What does it pass on of a change, and how long is the gradient that
# comes back? After how many steps is less than a tenth passed on? How far must an attacker who is confined to 8/255
# then expect to move the result?
#
# :::{hint}
# :class: dropdown
# Each step multiplies a difference of two images by $1 - a$, and so does its transpose.
# :::

# %%
# your code here
contraction_steps, moved_by = None, None  # a count; grey levels of 255

# %%
# check
pair = torch.tensor([0.0, 8.0]).double()
count_steps = 0
while float(pair[1] - pair[0]) >= 0.8:
    pair, count_steps = pair + 0.2 * (3.0 - pair), count_steps + 1
fine = None not in (contraction_steps, moved_by)
fine = fine and contraction_steps == count_steps
fine = fine and abs(moved_by - float(pair[1] - pair[0])) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-contraction
# :label: sol-lm-contraction
# :class: dropdown
# :::
# $\tau = (1 - a)^N$ for every change, and the gradient is shorter by the same factor: $0.8^{11} < 0.1$. Then 8 grey
# levels arrive as 0.7. A constant $D$ would forget the image, too; real processes pass on different directions
# differently, and an attacker looks for those that get through.

# %%
contraction_steps = next(n for n in range(1, 99) if 0.8**n < 0.1)
moved_by = 8 * 0.8**contraction_steps
print(f"{contraction_steps} steps; 8 grey levels arrive as {moved_by:.2f}")

# %% tags=["remove-cell"]
claim(moved_by < 0.8)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The defences and claims judged here are from {cite:t}`chen2024rdc`, DiffPure from {cite:t}`nie2022diffpure`.
