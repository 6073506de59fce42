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
# (nb-classifier-steps)=
# # How many time steps?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say which noise levels a choice of time steps looks at.
# - Judge the paper's claims on timesteps.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-classifier-weights`. Covers section 4.5 and Figure 2(c) of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 16  # noise levels of the classifier
sigma_min: float = 0.1  # lowest noise level, model units
n_clean: int = 100  # test images for clean accuracy
n_attack: int = 6  # test images attacked
steps: int = 8  # gradient steps of PGD
eps_ablation: str | float = 2 / 255  # Linf radius of the ablation of time steps
n_ablation: int = 10  # images for the ablation of time steps
timesteps: int = 64  # largest number T' of VP time steps
robust_timesteps: list[int] = [2, 8]  # numbers T' that are attacked

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, robust_accuracy
from rdc.notebook import check_parameters, claim, stored_cells
from rdc.plots import plot_accuracy, style
from rdc.runs.verdict import decide
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
truth = labels.cpu()
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
main = levels("elbo", count, sigma_min=sigma_min)

# %% [markdown]
# **How many time steps does a diffusion classifier need?** The paper takes $T' \le T$ of the VP steps, $w = 1$: the `first` ones, $1 \dots T'$, or `uniform` ones, $i T / T'$. Its Fig.
# 2(c) and section 4.5 claim that both choices are alike, that fewer steps hardly change clean accuracy, and that they hurt
# {term}`robust accuracy`.

# %% tags=["hide-input"]
halves = [2**i for i in range(int(math.log2(timesteps)) + 1)]
both = torch.cat(
    [
        levels("vp", timesteps, placement).sigma
        for placement in ("first", "uniform")
    ]
)
unweighted = DiffusionClassifier(
    denoiser, Levels(both, torch.ones_like(both)), seed=seed
)
errors = (
    unweighted.losses(images[:n_ablation]).double().cpu() / both**2
)  # noise errors, w = 1
chosen = {
    "first": lambda total: slice(0, total),
    "uniform": lambda total: slice(
        timesteps + timesteps // total - 1, 2 * timesteps, timesteps // total
    ),
}
by_steps: dict[str, list[Accuracy]] = {}
for name, pick in chosen.items():
    verdict = [
        errors[:, :, pick(total)].mean(dim=2).argmin(dim=1) for total in halves
    ]
    by_steps[name] = [
        Accuracy.of(int((v == truth[:n_ablation]).sum()), n_ablation)
        for v in verdict
    ]
for name, values in by_steps.items():
    print(
        f"clean, {name:8s}",
        "; ".join(
            f"T'={t}: {a.correct}/{a.n}"
            for t, a in zip(halves, values, strict=True)
        ),
    )

# %% tags=["hide-input"]
robust_by_steps: dict[str, list[Accuracy]] = {"first": [], "uniform": []}
for placement, values in robust_by_steps.items():
    for total in robust_timesteps:
        model = DiffusionClassifier(
            denoiser, levels("vp", total, placement), seed=seed
        )
        x_adv = pgd(model, x, y, eps=eps_ablation, steps=steps, seed=seed)
        values.append(robust_accuracy(model, x, y, x_adv))
        print(
            f"robust at Linf {eps_ablation:.4f}, {placement:8s} T' = "
            f"{total:3d}: {values[-1]}"
        )

# %% mystnb={"figure": {"caption": "Accuracy against the number of VP time steps $T'$ ($w=1$), clean and under PGD at the Linf radius `eps_ablation`, for the two placements; 95 % intervals. Clean and attacked images are different in number.", "name": "fig-dc-timesteps"}, "image": {"alt": "Clean and robust accuracy against the number of time steps for two placements"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.5, 3.6))
for i, name in enumerate(by_steps):
    at = [
        [t * (0.96 + 0.08 * i) for t in counts]
        for counts in (halves, robust_timesteps)
    ]
    plot_accuracy(ax, at[0], by_steps[name], f"{name}, clean", color=f"C{i}")
    plot_accuracy(
        ax,
        at[1],
        robust_by_steps[name],
        f"{name}, robust",
        color=f"C{i}",
        ls="--",
        marker="s",
    )
ax.set(xscale="log", xlabel="number of time steps $T'$")
ax.set_xticks(halves, [str(t) for t in halves])
ax.legend()
fig.tight_layout()
plt.show()


# %% [markdown]
# ## Which noise levels are these?

# %%
# NBVAL_CHECK_OUTPUT
for total in (1, 4, 16, timesteps):
    first, uniform = (
        levels("vp", total, placement).sigma
        for placement in ("first", "uniform")
    )
    print(
        f"T' = {total:2d}: first {first[0]:.3f} ... {first[-1]:.3f}; uniform "
        f"{uniform[0]:.3f} ... {uniform[-1]:.1f}"
    )

# %% [markdown]
# The two placements look at different noise, so there is no reason why they should be alike. The `first` steps see an almost
# clean image. A single `uniform` step is the last one, $t = T$, where nothing of the image is left in $z_\sigma$.
#
# That classifier does not guess. The loss compares the estimate with $z$ itself, and without information the best estimate is
# the mean of the class:
#
# ```{math}
# :label: eq-dc-mean
# \sigma \to \infty: \qquad D(z_\sigma, \sigma, y) \to \E[z \mid y], \qquad \norm{z - D}^2 \to \norm{z - \E[z \mid y]}^2 .
# ```
#
# The highest levels approach the nearest-mean classifier in plain pixels. It is crude, and an attack of small radius can hardly
# move it.

# %%
top = main[-1:]
losses = DiffusionClassifier(denoiser, top, seed=seed).losses(images)
highest = losses[:, :, 0].argmin(dim=1).cpu()
means = torch.stack(
    [train.x[train.y == k].mean(dim=0) for k in range(len(train.classes))]
).flatten(1)
nearest = torch.cdist(images.cpu().flatten(1), means).argmin(dim=1)
print(
    f"nearest class mean: {Accuracy.of(int((nearest == truth).sum()), n_clean)}"
)
print(
    f"level sigma = {float(top.sigma):.1f} decides as the nearest mean on "
    f"{int((nearest == highest).sum())} of {n_clean} images"
)

# %% tags=["remove-cell"]
claim(float((nearest == highest).float().mean()) > 0.6)
for placement, pick in chosen.items():
    for total in halves:
        assert torch.equal(
            both[pick(total)], levels("vp", total, placement).sigma
        )

# %% [markdown]
# ## Clean and robust
#
# Clean accuracy for every $T'$ comes from one table: the uniform placements are nested when $T'$ doubles, and the first ones
# always.
#
# The same classifiers were then attacked: {term}`PGD` on the {term}`margin`, each classifier by itself with its exact gradient. {numref}`fig-dc-timesteps` shows both. Four remarks.
#
# - The radius is smaller than the paper's, so that some classifiers survive and can be told apart.
# - Clean and robust points of one $T'$ use different numbers of images, so compare along a line, not across lines.
# - A small $T'$ is also a cheap target. Its gradient is exact, so the attack is as honest as at a large $T'$.
# - The paper explains the loss of robustness by a weaker tie between objective and likelihood. With $w = 1$ the objective
#   is not a likelihood bound at any $T'$.
#
# ## More images
#
# The same question on more images, from the stored results of the experiment `dc-settings`:

# %% tags=["hide-input"]
for found in stored_cells("dc-settings", what="time steps"):
    robust = found.row.attack is not None
    words = " ".join(str(value) for value in found.row.about.values())
    print(f"{words:44s} {found.accuracy('robust' if robust else 'clean')}")

# %%
kept = {}
for found in stored_cells("dc-settings", what="time steps", attack="pgd"):
    rate, about = found.accuracy("robust"), found.row.about
    kept[about["placement"], about["steps"]] = rate.correct, rate.n
for place in ("first", "uniform"):
    if (place, 8) in kept:
        more = decide(kept[place, 8], kept[place, 2])
        print(f"eight steps more robust than two, {place}: {more}")

# %% [markdown]
# So the two placements are not alike here, least of all under attack. Clean accuracy does fall with few steps, for both.
# Whether few steps cost robustness, two against eight do not decide.

# %% [markdown]
# ## What to remember
#
# - The `first` steps see a nearly clean image, a single `uniform` step sees nothing of it: the placements look at different noise.
# - The highest levels approach the nearest-mean classifier, which is crude and hard to move.
# - With $w = 1$ the objective is a likelihood bound at no $T'$.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-dc-placement
# :::
# **When are they alike?** (5 minutes, easy). For which $T'$ do the two placements look at the same noise levels?
#
# :::{hint}
# :class: dropdown
# There are $T = 1000$ time steps in all.
# :::

# %%
# your code here
same_for = None

# %%
# check
fine = same_for == 1000
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-placement
# :label: sol-dc-placement
# :class: dropdown
# :::
# Only for $T' = T$: then both take all of them.

# %%
same_for = 1000
every = [levels("vp", same_for, p).sigma for p in ("first", "uniform")]
print(f"the same: {torch.equal(*every)}")

# %% tags=["remove-cell"]
assert torch.equal(*every)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-disagreements
# :::
# **How many disagreements?** (5 minutes, easy). Two classifiers are attacked on the same images, and a few images survive on one of them only. If all of these favour the same classifier, how many must there be until the exact two-sided {term}`McNemar's test` says $p < 0.05$? And how many for $p < 0.01$?
#
# :::{hint}
# :class: dropdown
# Each of them is a fair coin. All heads or all tails: $2 \cdot 2^{-k}$.
# :::

# %%
# your code here
needed_5, needed_1 = None, None

# %%
# check
fine = (needed_5, needed_1) == (6, 8)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-disagreements
# :label: sol-dc-disagreements
# :class: dropdown
# :::
# So six attacked images cannot decide anything unless they *all* differ in the same direction.

# %%
needed_5, needed_1 = (
    next(k for k in range(1, 50) if 2 * 0.5**k < p) for p in (0.05, 0.01)
)
print(needed_5, needed_1)

# %% tags=["remove-cell"]
claim((needed_5, needed_1) == (6, 8))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-nearest-mean
# :::
# **A robust but crude rule** (10 minutes, medium). How far does an attacker have to move an image, in $\ell_2$, to change the decision of the nearest-mean classifier? Give the median over those of `images` that it gets right.
#
# :::{hint}
# :class: dropdown
# The border between two means is a plane. `means` are flat images in [0, 1].
# :::

# %%
# your code here
median_radius = None

# %%
# check
fine = median_radius is not None and abs(median_radius - 1.85) < 0.02
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-nearest-mean
# :label: sol-dc-nearest-mean
# :class: dropdown
# :::
# The border between the means $\mu_y$ and $\mu_j$ is a plane at the distance $(\norm{x - \mu_j}^2 - \norm{x - \mu_y}^2) / 2 \norm{\mu_j - \mu_y}$. The smallest over $j$ is the radius.

# %%
distance = torch.cdist(images.cpu().flatten(1), means).square()
own = distance.gather(1, truth[:, None])
apart = 2 * torch.cdist(means, means)[truth]
radius = ((distance - own) / apart).scatter(1, truth[:, None], math.inf)
radius = radius.amin(dim=1)
median_radius = float(radius[radius > 0].median())
print(f"median of those it gets right: {median_radius:.2f}")

# %% tags=["remove-cell"]
assert bool(((radius > 0) == (nearest == truth)).all())

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The question and the placements are from {cite:t}`chen2024rdc`, the VP steps from {cite:t}`ho2020ddpm`, the attack from {cite:t}`madry2018towards`.
