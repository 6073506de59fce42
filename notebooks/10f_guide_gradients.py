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
# (nb-guidance-gradients)=
# # What the gradients look like
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what the exact {term}`guidance` gradient is, in terms of denoisers.
# - Look at gradients beside the right answer, not alone.
# - Climb to a target class, and let a network that took no part judge.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-guidance-robust` and {ref}`nb-optimal`. Covers Figures 3 and 4 of {cite:t}`kawar2023guidance`.
#
# Figure 3 of the paper shows gradients of the true class at several times, and finds those of the robust classifier more meaningful.
# Meaningful to whom? There is a right answer to compare with, in the second row of {numref}`fig-guide-gradients`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
denoiser_name: str = "fashion-mini"  # knows the class
heads_name: str = "fashion-mini-multihead"  # of the diffusion classifier
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
wide_name: str = "fashion-mini-wide"  # trained at six times that radius
levels: list[float] = [0.1, 0.3, 1.0, 3.0, 10.0]  # noise levels
n_climb: int = 10  # images of targeted ascent
climb_sigma: float = 0.1  # its noise level: close to a clean image
climb_size: float = 0.45  # its radius a pixel: 100 / sqrt(3 * 128 * 128)

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import from_model, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.guide import (
    ClassifierGuide,
    DiffusionGuide,
    agreement,
    climb,
    load_classifier,
)
from rdc.guide.align import direction
from rdc.guide.reading import mean_of, pick
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    glue,
    show_table,
    stored_found,
)
from rdc.plots import image_grid, style
from rdc.rng import randn

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
classes, size = len(test.classes), test.x[0].numel()
names = {"vanilla": vanilla_name, "robust": robust_name, "wide": wide_name}
three = {name: load_classifier(file, device) for name, file in names.items()}
guides = {name: three[name] for name in ("vanilla", "robust")}
denoiser = load_denoiser(denoiser_name, device)
heads = load_denoiser(heads_name, device)
gradients = stored_found("guidance-gradients")
exact = OptimalDenoiser(train.x.double(), train.y).to(device)
diffusion_guide = DiffusionGuide(heads, seed=seed)
classifiers = {name: ClassifierGuide(h) for name, h in three.items()}
candidates = {name: classifiers[name] for name in guides} | {
    "diffusion classifier": diffusion_guide
}


def noise_of(what: str, n: int) -> Tensor:
    """Noise for n test images, each from its own stream."""
    return torch.stack(
        [
            randn(tuple(test.x.shape[1:]), seed, "guide", what, i)
            for i in range(n)
        ]
    )


def pictures(index: int, sigma: float, ways: dict) -> list[Tensor]:
    """The noisy image, and directions towards its class, each scaled to [0, 1] with grey for 0."""
    eps = randn(tuple(test.x.shape[1:]), seed, "guide", "shown", index).to(
        device
    )
    z, y = (
        (to_model(test.x[index].to(device)) + sigma * eps)[None],
        test.y[index : index + 1].to(device),
    )
    level = torch.full((1,), sigma, device=device)
    right = direction(exact, z.double(), level.double(), y)
    certain = float(right.norm()) < 1e-6 * size**0.5
    right = torch.zeros_like(z) if certain else right.float()
    found = [
        right,
        direction(denoiser, z, level, y),
        *(g(z, level, y) for g in ways.values()),
    ]
    shown = [w[0] / w.abs().max().clamp(min=1e-12) / 2 + 0.5 for w in found]
    return [from_model(z)[0].clamp(0, 1), *(w.cpu().float() for w in shown)]


def show_pictures(at: list[float], ways: dict, side: float) -> None:
    """Columns for a pullover and a sneaker at rising noise levels."""
    columns = [pictures(i, sigma, ways) for i in (2, 7) for sigma in at]
    tiles = torch.stack(
        [c[row].cpu() for row in range(len(columns[0])) for c in columns]
    )
    image_grid(tiles, columns=len(columns), size=side)
    plt.show()


# %% mystnb={"figure": {"caption": "Directions towards the true class at rising noise levels, for a pullover and a sneaker. Rows: the noisy image (clipped); the exact direction for the training images (grey where their posterior is certain); the same from the trained denoiser; gradient of the vanilla classifier; of the robust one; of the diffusion classifier. Each picture scaled by its largest value; grey is 0.", "name": "fig-guide-gradients"}, "image": {"alt": "A grid of grey pictures with shapes of clothes; the exact directions are sharp, those of the classifiers smooth"}} tags=["hide-input"]
show_pictures(levels, candidates, 0.5)

# %% [markdown]
# (sec-guide-gradients)=
# ## The right answer
#
# For an exact {term}`denoiser`
#
# ```{math}
# :label: eq-guide-direction
# \sigma^2 g = D(z_\sigma, \sigma, y) - D(z_\sigma, \sigma) ,
# ```
#
# the step from what the noisy image looks like to what it would look like *as class y*. We can compute it with the
# {term}`optimal denoiser` of the training images, or approximately with the trained network. The {term}`diffusion classifier` of
# {ref}`nb-noised` gives a gradient too: that of the noised classifier {term}`EPNDC` at each level.
#
# The first row of directions is the right answer, as far as ten thousand images know it. It is grey where their posterior has no doubt:
# there the exact guidance is zero, and whatever a classifier says is too much. The trained denoiser, in the next row, never is quite so
# sure. Both classifiers, trained on noisy images, have smooth gradients, and they resemble each other more than either resembles the right
# answer; how much is measured in {ref}`nb-guidance-alignment`.
#
# ### Trained at a radius that can be seen
#
# The wide guide of {ref}`sec-guide-wide` saw attacks of six times the radius.

# %% mystnb={"figure": {"caption": "Directions towards the true class for a pullover and a sneaker, at three noise levels each, rising from left to right. Rows: the noisy image (clipped); the exact direction (grey where the posterior is certain); that of the trained denoiser; gradient of the vanilla, the robust and the wide classifier. Each picture scaled by its largest value; grey is 0.", "name": "fig-guide-wide-gradients"}, "image": {"alt": "Six rows of six small pictures; the gradients of the wide classifier have larger, calmer shapes than those of the other two at the lowest level", "width": "80%"}} tags=["hide-input"]
show_pictures(levels[::2], classifiers, 0.6)

# %% [markdown]
# At the lowest level the wide gradient draws the garment, where the other two draw strokes: this is what Figure 3 of the paper shows. To
# the eye it is the better gradient. Is it nearer to the exact direction? {prf:ref}`prop-guide-robust` says that it is that of a higher
# noise level instead, the more so the larger the radius. {ref}`nb-guidance-alignment` measures it.
#
# ## Targeted ascent
#
# Figure 4 of the paper climbs the probability of a *target* class from a clean image, seven steps within a large ball:
# $\norm\delta_2 \le 100$ for images of $3 \times 128 \times 128$. For each pixel that is {glue:text}`guide-climb-size`, in $[-1, 1]$; we
# take the same for ours. Who judges whether the target was reached? Not the classifier that was climbed, but a network that took no
# part.

# %%
judge_net = reference_network("cnn", data, device)
radius_climb = climb_size * size**0.5
start_noise = noise_of("climb", n_climb).to(device)
z_climb = to_model(test.x[:n_climb].to(device)) + climb_sigma * start_noise
y_climb = (test.y[:n_climb].to(device) + 1) % classes
level_climb = torch.full((n_climb,), climb_sigma, device=device)
climbed: dict[str, Tensor] = {}
for name, guide in candidates.items():
    climbed[name] = climb(guide, z_climb, level_climb, y_climb, radius_climb)
    seen = agreement(judge_net, from_model(climbed[name]).clamp(0, 1), y_climb)
    print(f"{name}: the judge sees the target in {seen}")

# %% tags=["remove-cell"]
glue("guide-climb-size", f"{100 / math.sqrt(3 * 128 * 128):.2f}")

# %% mystnb={"figure": {"caption": "Targeted ascent, one start a column, each towards the next class in the list. Rows: start; vanilla; robust; diffusion classifier.", "name": "fig-guide-climb"}, "image": {"alt": "Ten clothes in the top row; below, the classifiers add soft bright shapes of the target, the diffusion classifier adds a grainy pattern"}} tags=["hide-input"]
rows_climb = [z_climb[:10], *(climbed[name][:10] for name in candidates)]
image_grid(
    from_model(torch.cat(rows_climb)).clamp(0, 1),
    columns=min(n_climb, 10),
    size=0.5,
)
plt.show()

# %% [markdown]
# The same on more images, from the record: how often the judge sees the target, with the largest radius and the lowest noise.

# %% tags=["hide-input"]
rows = []
for found in pick(gradients, measure="ascent"):
    about = found.row.about
    line = {name: about[name] for name in ("sigma", "radius", "guide")} | {
        "judge": about["judges"]
    }
    line |= {name: str(found.accuracy(name)) for name in ("before", "reached")}
    rows.append(line | {"alignment": mean_of(found, "alignment")})
low, wide_ball = min(r["sigma"] for r in rows), max(r["radius"] for r in rows)
shown = [
    dict(list(r.items())[2:])
    for r in rows
    if (r["sigma"], r["radius"]) == (low, wide_ball)
]
show_table(shown, f"Targeted ascent, sigma {low:g}, radius {wide_ball:g}")

# %% [markdown]
# All starts and radii:

# %% tags=["hide-cell"]
show_table(rows, "Targeted ascent, all rows")

# %% [markdown]
# Does a robust guide reach the target more often, by a change that is better aligned? By the one rule of the book: comparisons on the same
# images and noise, corrected together within a claim.

# %%
claims_table("C7a", "C7b", "C7c", "C7d")

# %% [markdown]
# ## What to remember
#
# - The exact guidance direction is $D_y - D$. It is zero where the posterior is certain.
# - A gradient that is pleasant to look at is one of more noise. That does not make it the right one.
# - Whether ascent reached its target is for a network to say that was not climbed.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-difference
# :::
# **The direction is a difference** (10 minutes, medium). {math}`D_y - D` over $\sigma^2$ is the gradient of $\log
# p_\sigma(y \mid z)$. Check it by differences on the optimal denoiser of forty digits: how fast does the log-posterior
# of the class $y$ rise along a direction $u$ of length 1 at $z$?
#
# :::{hint}
# :class: dropdown
# `small.posterior(z, sigma)` has the probabilities; a central difference with $h = 10^{-4}$ in float64 is accurate.
# :::

# %%
# your code here
forty = load("digits", "train")
small = OptimalDenoiser(forty.x[:40].double(), forty.y[:40])
z_small = to_model(forty.x[40:41].double())
y_small, sigma_small = forty.y[40:41], 1.0
u = randn(z_small.shape, "difference", seed, like=z_small)
u = u / u.norm()
slope = None  # nats per unit of length

# %%
# check
pair = small(z_small, sigma_small, y_small), small(z_small, sigma_small)
known = float(((pair[0] - pair[1]) / sigma_small**2 * u).sum())
fine = close_to(slope, known, within=6e-6)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-difference
# :label: sol-guide-difference
# :class: dropdown
# :::
# They agree. So an exact guide needs no classifier, and a classifier's gradient can be scored against the difference of
# two denoisers.

# %%
logs = [
    small.posterior(z_small + h * u, sigma_small)[0, y_small].log()
    for h in (1e-4, -1e-4)
]
slope = float(logs[0] - logs[1]) / 2e-4
print(f"by differences {slope:.5f}, by denoisers {known:.5f}")

# %% tags=["remove-cell"]
claim(abs(slope - known) < 1e-4 * abs(known) + 1e-8)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-certain
# :::
# **Grey where it is certain** (5 minutes, easy). There are two classes, and at a noisy image the denoisers of the two are 10 apart. The posterior of the true class is 0.999. How long is the
# exact direction $D_y - D$ towards the true class, and how long towards the other one?
#
# :::{hint}
# :class: dropdown
# $D$ is the mean of the two denoisers, weighted by the posterior.
# :::

# %%
# your code here
towards_true, towards_other = None, None

# %%
# check
fine = None not in (towards_true, towards_other)
fine = fine and abs(towards_true - 0.01) < 1e-4
fine = fine and abs(towards_other - 9.99) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-certain
# :label: sol-guide-certain
# :class: dropdown
# :::
# $D_y - D = (1 - p_y)(D_y - D_j)$. Towards the true class nothing is left to do; towards another one there always is a way.

# %%
towards_true, towards_other = (1 - 0.999) * 10, 0.999 * 10
print(f"{towards_true:.3f} and {towards_other:.3f}")

# %% tags=["remove-cell"]
claim(towards_true < towards_other)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-ball
# :::
# **How large is that ball?** (5 minutes, easy). The ball of Figure 4 has the radius 100 for $3 \times 128 \times 128$ numbers. Which radius has the same size for each pixel of $28 \times 28$
# numbers? How many times is it the training attack's, 0.5 in images of the paper's size, if that is scaled in the same way?
#
# :::{hint}
# :class: dropdown
# The root mean square of a pixel is the radius over $\sqrt D$.
# :::

# %%
# your code here
radius_28, times_attack = None, None

# %%
# check
fine = None not in (radius_28, times_attack)
fine = fine and abs(radius_28 - 12.63) < 0.02
fine = fine and abs(times_attack - 200) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-ball
# :label: sol-guide-ball
# :class: dropdown
# :::
# $100 \sqrt{784 / 49152}$, and 200 times: so far no classifier was trained to be robust.

# %%
radius_28 = 100 * math.sqrt(28 * 28 / (3 * 128 * 128))
times_attack = 100 / 0.5
print(f"radius {radius_28:.2f}, {times_attack:.0f} times the attack")

# %% tags=["remove-cell"]
claim(12 < radius_28 < 13)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Gradients of robust classifiers: {cite:t}`tsipras2019robustness`; the noised
# diffusion classifier: {cite:t}`chen2024ndc`.
