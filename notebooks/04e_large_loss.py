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
# (nb-classifier-loss)=
# # Is a large loss the reason?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Judge the paper's claim on the loss of adversarial examples.
# - Say at which noise levels an attack acts, and test it by an intervention.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-classifier-attack` and {ref}`nb-optimal-stored`. Covers section 3.3 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 16  # noise levels of the classifier
sigma_min: float = 0.1  # lowest noise level, model units
n_clean: int = 100  # test images for clean accuracy
n_attack: int = 6  # test images attacked
steps: int = 8  # gradient steps of PGD
restarts: int = 1  # random starts of PGD
floors: list[float] = [0.5, 2.0]  # lowest noise levels to try, model units

# %% tags=["hide-input"]
import math
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.classify.weightings import on_grid, weightings
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, robust_accuracy
from rdc.notebook import check_parameters, claim
from rdc.plots import plot_accuracy, style
from rdc.schedule import Levels, levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
denoiser = load_denoiser(data, device=device)
train, test = load(data, "train"), load(data, "test")
images, labels = test.x[:n_clean].to(device), test.y[:n_clean].to(device)
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
truth = labels.cpu()
eps = 8 / 255  # the paper's Linf radius, image units
grid, weights = weightings(count, sigma_min)
table = (
    DiffusionClassifier(
        denoiser, Levels(grid, torch.ones_like(grid)), seed=seed
    )
    .losses(images)
    .double()
    .cpu()
)

# %% [markdown]
# **The optimal classifier is robust and the trained one is not. Is a large loss the reason?** Section 3.3 of the paper offers this reason: on adversarial
# examples the diffusion loss of the trained model is much larger than that of the optimal one. We look at the losses.
#
# Three denoisers: the trained one; the optimal one of the training images; the optimal one of the training images *and* the
# clean versions of the attacked images. Never of the attacked images alone: a {term}`denoiser` that knows one image returns it
# whatever it sees.
#
# We take the {term}`ELBO` weight on a wide range of levels, $\sigma$ from 0.05 to 20, and the images that attack this classifier.

# %% tags=["hide-input"]
wide = levels("elbo", count, sigma_min=0.05, sigma_max=20.0)
wide_classifier = DiffusionClassifier(denoiser, wide, seed=seed)
x_wide = pgd(
    wide_classifier, x, y, eps=eps, steps=steps, restarts=restarts, seed=seed
)
joint = torch.cat([train.x.to(device), x]), torch.cat([train.y.to(device), y])
denoisers = {
    "trained": denoiser,
    "optimal, D = training images": OptimalDenoiser(
        train.x.to(device), train.y.to(device)
    ),
    "optimal, D with the images": OptimalDenoiser(*joint),
}
pictures = {"clean": x, "adversarial": x_wide}
nats = {
    (name, kind): DiffusionClassifier(d, wide, seed=seed)
    .losses(p)
    .double()
    .cpu()
    * wide.weight
    for name, d in denoisers.items()
    for kind, p in pictures.items()
}


def of_class(values: Tensor, label: Tensor) -> Tensor:
    """Entries of one class for each image, ``(N, K, T)`` to ``(N, T)``."""
    return values.gather(1, label[:, None, None].expand(-1, 1, count))[:, 0]


own = y.cpu()
rival = (
    nats["trained", "adversarial"]
    .sum(dim=2)
    .scatter(1, own[:, None], math.inf)
    .argmin(dim=1)
)
by_class = {"true class": own, "strongest wrong class": rival}
by_level = {
    key: {which: of_class(v, label) for which, label in by_class.items()}
    for key, v in nats.items()
}
gap = {
    key: v["strongest wrong class"] - v["true class"]
    for key, v in by_level.items()
}
print(
    f"{'weighted loss (nats), mean over images':46s} {'true':>8s} "
    f"{'wrong':>8s} {'wrong - true':>13s}"
)
for (name, kind), value in by_level.items():
    a, b = (float(v.sum(dim=1).mean()) for v in value.values())
    print(f"{name + ', ' + kind:46s} {a:8.0f} {b:8.0f} {b - a:13.1f}")

# %% mystnb={"figure": {"caption": "Weighted loss of each level, mean over the attacked images, for the true class and for the strongest wrong class of the adversarial image; clean images (solid) and adversarial ones at the paper's Linf radius (dashed).", "name": "fig-dc-losses"}, "image": {"alt": "Loss by noise level of three denoisers, on clean and adversarial images, in two panels"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.7), sharey=True)
for ax, which in zip(
    axes, ("true class", "strongest wrong class"), strict=True
):
    for i, name in enumerate(denoisers):
        for kind, ls in (("clean", "-"), ("adversarial", "--")):
            ax.plot(
                wide.sigma,
                by_level[name, kind][which].mean(dim=0),
                ls,
                color=f"C{i}",
                label=name if ls == "-" else None,
            )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=r"noise level $\sigma$ (model units)",
        title=which,
    )
axes[0].set(ylabel="weighted loss of a level (nats)", ylim=(1e-3, 1e5))
axes[1].legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# Read {numref}`fig-dc-losses` from the right. At high noise the three denoisers agree: every one of them knows what a class
# looks like on average. At low noise they differ by orders of magnitude, for reasons that have little to do with classes.
#
# - *Training images only*: as $\sigma \to 0$ the denoiser returns the nearest training image, so the loss tends to the
#   squared distance to it. A new image, clean or not, pays that distance, weighted by $\sigma^{-2}$. The trained network
#   generalises and pays far less. Here the claim is reversed: the *optimal* loss is the larger one.
# - *Images in D*: an {term}`adversarial image` pays only its distance to its clean version. That is the small loss that the paper
#   compares with. It says that D holds the answer.
#
# So the trained loss is the larger one against an optimal model that contains the clean image: by far on clean images, by
# a part on adversarial ones. It is the smaller one against a model that does not. And a loss that is
# large for all classes alike decides nothing. The decision lies in the *difference* of two classes.

# %% mystnb={"figure": {"caption": "Weighted loss of the strongest wrong class minus that of the true class, by level, mean over the attacked images: clean (solid) and adversarial (dashed). Below zero a level votes for the wrong class. Linear between -10 and 10 nats, logarithmic beyond.", "name": "fig-dc-gap-levels"}, "image": {"alt": "Differences of losses by level for three denoisers, clean and adversarial", "width": "75%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 3.8))
for i, name in enumerate(denoisers):
    for kind, ls in (("clean", "-"), ("adversarial", "--")):
        ax.plot(
            wide.sigma,
            gap[name, kind].mean(dim=0),
            ls,
            color=f"C{i}",
            label=name if ls == "-" else None,
        )
ax.axhline(0, color="0.4", lw=1)
ax.set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="difference (nats)",
)
ax.set_yscale("symlog", linthresh=10)
ax.legend()
fig.tight_layout()
plt.show()

# %%
for name in denoisers:
    before, after = (
        float(gap[name, kind].sum(dim=1).mean()) for kind in pictures
    )
    print(
        f"{name:30s} gap {before:8.1f} -> {after:8.1f} nats, a change of "
        f"{100 * (after - before) / before:.0f} %"
    )
change = {
    which: by_level["trained", "adversarial"][which]
    - by_level["trained", "clean"][which]
    for which in by_class
}
rise = {which: float(v.sum(dim=1).mean()) for which, v in change.items()}
print(
    "the attack changes the trained model's loss by (nats):",
    {k: round(v, 1) for k, v in rise.items()},
)
moved = (gap["trained", "clean"] - gap["trained", "adversarial"]).mean(dim=0)
print(
    f"it moves the gap by {float(moved.sum()):.1f} nats; share by level, from "
    f"low to high noise:"
)
print("sigma", [round(s, 2) for s in wide.sigma.tolist()])
print("share", [round(float(m / moved.sum()), 2) for m in moved])
half = float(wide.sigma[int((moved.cumsum(0) >= moved.sum() / 2).nonzero()[0])])
print(
    f"half of the change lies at sigma <= {half:.2f}; an image change of "
    f"8/255 per pixel is {2 * 8 / 255:.3f} in model units"
)

# %% [markdown]
# This is what the picture explains, and what it does not.
#
# - It shows *where* the attack acts: at the low levels, whose noise does not drown the perturbation.
# - It shows why the optimal classifier stands ({ref}`nb-optimal-stored`): its gap is so large that the same perturbation changes it
#   by a small part. The trained network's gap is a small difference of large losses, and the attack turns its sign.
# - It does not show that a smaller loss would make the classifier robust. The loss rises for the true class *and* for the wrong
#   one; only the difference of the two rises decides. A claim about cause needs an intervention: change something, attack
#   again, and see. The paper does so by likelihood maximization (section 3.4), the subject of {ref}`nb-lm`.
#
# ## An intervention: leave the low levels out
#
# If the low levels carry the attack, a classifier without them should be harder to attack. The attacker adapts, of course: {term}`PGD`
# runs on the classifier that it is to break. Clean accuracy comes from the table of losses.

# %%
floored: list[dict[str, Any]] = []
for floor in (0.0, *floors):
    kept_levels = wide[wide.sigma >= floor]
    weight = on_grid(
        levels("elbo", 1000, sigma_min=max(floor, 0.05), sigma_max=20.0), grid
    )
    without = Accuracy.of(
        int(((table * weight).sum(dim=2).argmin(dim=1) == truth).sum()), n_clean
    )
    model = DiffusionClassifier(denoiser, kept_levels, seed=seed)
    x_adv = (
        pgd(model, x, y, eps=eps, steps=steps, restarts=restarts, seed=seed)
        if floor
        else x_wide
    )
    floored.append(
        {
            "floor": floor,
            "levels": len(kept_levels),
            "clean": without,
            "robust": robust_accuracy(model, x, y, x_adv),
        }
    )
    print(
        f"sigma >= {floor:4.1f}: {len(kept_levels):2d} levels, clean "
        f"{without}; robust {floored[-1]['robust']}"
    )

# %% mystnb={"figure": {"caption": "Accuracy without the noise levels below a floor: clean, and under PGD at the paper's Linf radius against the classifier that is left; 95 % intervals. Clean accuracy is of more images.", "name": "fig-dc-floors"}, "image": {"alt": "Clean and robust accuracy against the lowest noise level kept", "width": "70%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))
lowest = [float(wide.sigma[wide.sigma >= r["floor"]].min()) for r in floored]
plot_accuracy(ax, lowest, [r["clean"] for r in floored], "clean")
plot_accuracy(
    ax, lowest, [r["robust"] for r in floored], "robust", ls="--", marker="s"
)
ax.set(xlabel=r"lowest noise level kept, $\sigma$ (model units)")
ax.legend()
plt.show()

# %% tags=["remove-cell"]
claim(half < 1.0, "the low levels carry the attack")
claim(all(r > 0 for r in rise.values()), "both losses rise")
level = {
    key: float(v["true class"].sum(dim=1).mean()) for key, v in by_level.items()
}
claim(
    level["optimal, D = training images", "clean"]
    > 2 * level["trained", "clean"],
    "the claim reversed",
)
claim(
    level["trained", "adversarial"]
    > level["optimal, D with the images", "adversarial"],
    "the claim as it holds",
)

# %% [markdown]
# A {term}`floor` is a choice of ours, not the paper's. It would have to be made on images that judge nothing else, and weighed
# against clean accuracy: the low levels carry detail. Two cautions. A classifier that is hard for one attack is not yet
# robust, and with ever higher floors what is left is the nearest-mean classifier {eq}`eq-dc-mean`.
#
# ## What to remember
#
# - The loss on adversarial images is larger than the optimal one only if the optimal model contains the image.
# - High noise levels approach the nearest-mean classifier; low ones see detail, and carry the attack.
# - A claim about a cause needs an intervention.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-dc-hidden
# :::
# **What noise hides** (5 minutes, easy). An attack changes each of 784 pixels by 8/255. From which $\sigma$ on (model units) is a draw of noise as long as the change, in root mean square? And from which $\sigma$ on is the part of the noise *along* the change as long, in standard deviation?
#
# :::{hint}
# :class: dropdown
# Model units are twice image units. A draw of noise has the mean square length $784 \sigma^2$; its part along one direction is a number with standard deviation $\sigma$.
# :::

# %%
# your code here
sigma_length, sigma_along = None, None

# %%
# check
fine = None not in (sigma_length, sigma_along) and (
    abs(sigma_length - 0.0627) < 1e-3 and abs(sigma_along - 1.757) < 5e-3
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-hidden
# :label: sol-dc-hidden
# :class: dropdown
# :::
# The change hides in the noise to the eye long before it does to a classifier that knows in which direction to look.

# %%
sigma_length = 2 * 8 / 255
sigma_along = sigma_length * 784**0.5
print(f"{sigma_length:.4f}, {sigma_along:.3f}")

# %% tags=["remove-cell"]
claim(sigma_length < 0.1 < 1 < sigma_along)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-constant
# :::
# **A large loss that does nothing** (5 minutes, easy). Add 1000 nats to the loss of every class of the adversarial images, `nats["trained", "adversarial"].sum(dim=2)`. How much does the mean loss of the true class grow, and how many decisions change? What would make the paper's explanation right?
#
# :::{hint}
# :class: dropdown
# The decision is an argmin over classes.
# :::

# %%
# your code here
growth, changed_decisions = None, None

# %%
# check
fine = changed_decisions == 0 and abs((growth or 0) - 1000) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-constant
# :label: sol-dc-constant
# :class: dropdown
# :::
# The loss grows as much as one likes, and no decision changes. The explanation would need the *difference* between the classes, and a cause.

# %%
losses = nats["trained", "adversarial"].sum(dim=2)
more = losses + 1000
growth = float((more - losses).gather(1, own[:, None]).mean())
changed_decisions = int((more.argmin(dim=1) != losses.argmin(dim=1)).sum())
print(f"{growth:.0f} nats; {changed_decisions} of {len(own)} decisions change")

# %% tags=["remove-cell"]
assert changed_decisions == 0

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-ceiling
# :::
# **Leave the high levels out** (10 minutes, medium). The other intervention: keep the levels from 0.05 to 1 only. How many of the `n_clean` clean images are right, from the table of losses? And with all levels from 0.05 to 20?
#
# :::{hint}
# :class: dropdown
# `on_grid(levels("elbo", 1000, sigma_min=0.05, sigma_max=...), grid)` is the weight of each level of `table`.
# :::

# %%
# your code here
right_below_one, right_with_all = None, None

# %%
# check
fine = None not in (right_below_one, right_with_all) and (
    abs(right_below_one - 66) <= 1 and abs(right_with_all - 81) <= 1
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-ceiling
# :label: sol-dc-ceiling
# :class: dropdown
# :::
# The low levels see detail and lack the outline. They need the high ones on clean images, although it is they that carry the attack: a weakness under attack and worth on clean images are two questions.

# %%
counted = []
for highest in (1.0, 20.0):
    kept = levels("elbo", 1000, sigma_min=0.05, sigma_max=highest)
    said = (table * on_grid(kept, grid)).sum(dim=2).argmin(dim=1)
    counted.append(int((said == truth).sum()))
right_below_one, right_with_all = counted
print(f"{right_below_one} and {right_with_all} of {n_clean}")

# %% tags=["remove-cell"]
claim(right_below_one < right_with_all - 5)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The explanation is that of {cite:t}`chen2024rdc`; the attack is from {cite:t}`madry2018towards`.
