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
# (nb-why)=
# # When exact ascent of the likelihood cannot repair
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say how fast the log-odds of a class change while an image climbs to higher likelihood, and prove it in two
#   lines.
# - Prove that deep inside a cell exact ascent never changes the class, at any {term}`noise level` that is small enough.
# - Find the places where the simple story is wrong: behind an image, near a border, and with steps by signs.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-optimal`, {ref}`nb-lm`. About section 3.4 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # images of the second half
n_train: int = 2000  # training images behind the optimal denoiser
n_images: int = 60  # test images that are attacked
eps: str | float = 24 / 255  # radius of the attack
sigmas: list[float] = [0.1, 0.2, 0.5, 1.0, 2.0]  # noise levels, model units

# %% tags=["hide-input"]
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.analyse.capture import captured, log_odds, log_odds_rate
from rdc.attack import pgd
from rdc.classify import NearestNeighbor
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
from rdc.quantities import number

check_parameters()
style()
eps = number(eps, "eps", low=0)


def plane(points: list[list[float]], labels: list[int]) -> OptimalDenoiser:
    """The optimal denoiser of 'images' of two pixels, given in model units."""
    x = (torch.tensor(points, dtype=torch.float64) + 1) / 2
    return OptimalDenoiser(x.reshape(-1, 1, 1, 2), torch.tensor(labels))


def at(*point: float) -> Tensor:
    """One image of two pixels."""
    return torch.tensor(point, dtype=torch.float64).reshape(1, 1, 1, 2)


# %% [markdown]
# Likelihood maximisation moves an image to where images are more likely, and hopes that this is its own class.
# For the {term}`optimal denoiser` the ascent can be followed exactly: its score is $(D(z) - z) / \sigma^2$. Two classes
# of images with two pixels:

# %%
five = [[-0.6, 0.5], [-0.7, -0.2], [0.0, 0.7], [0.0, -0.7], [0.8, 0.0]]
sigma, y = 0.2, torch.tensor([0])
optimal = plane(five, [1, 1, 1, 1, 0])


def ascent(optimal: OptimalDenoiser, z: Tensor, sigma: float) -> Tensor:
    """The path of z under steps of exact ascent."""
    path = [z]
    for _ in range(150):
        path.append(path[-1] + 0.05 * (optimal(path[-1], sigma) - path[-1]))
    return torch.cat(path)


starts = {"in a cell without an exit": at(-0.45, 0.65)}
starts["near the other class"] = at(0.09, 0.0)
paths = {name: ascent(optimal, z, sigma) for name, z in starts.items()}
odds = {
    name: log_odds(optimal, path, y.expand(len(path)), sigma)
    for name, path in paths.items()
}

# %% mystnb={"figure": {"caption": "Left: images of the right class (square) and of another one (dots); red where the nearest image is of the right class, blue where it is of the other one; strong where exact ascent provably never leaves the cell (a cell without an exit), pale where the proof says nothing; the paths of two wrong images, from the triangles. Right: log-odds of the right class along them; above zero the image is right.", "name": "fig-why"}, "image": {"alt": "One path, in a strong blue cell, runs to a dot, and its log-odds fall; the other one, from the pale region near the red one, runs to the square, and its log-odds rise through zero", "width": "95%"}} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")
side = torch.linspace(-1.1, 1.1, 111, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
found = captured(optimal, grid.reshape(-1, 1, 1, 2), sigma)
shade = (found.label * 2 - 1) * (0.35 + 0.45 * found.holds)
left.contourf(side, side, -shade.reshape(111, 111), levels=[-1, -0.5, 0, 0.5, 1], cmap="RdBu_r", alpha=0.6)
left.plot(*torch.tensor(five[:-1]).T, "ko")
left.plot(*torch.tensor(five[-1:]).T, "ks", markersize=9)
for (name, path), line, colour in zip(paths.items(), ("-", "--"), ("C1", "C2"), strict=True):
    xy = path.reshape(-1, 2)
    left.plot(*xy.T, line, color=colour, linewidth=3)
    left.plot(*xy[0], "^", color=colour, markersize=10, markeredgecolor="k")
    right.plot(odds[name], line, color=colour, linewidth=3, label=name)
left.set(xlabel="first pixel", ylabel="second pixel", aspect="equal")
right.axhline(0, color="0.5")
right.set(xlabel="step", ylabel="log-odds of the right class, nats")
right.legend()
plt.show()

# %% tags=["remove-cell"]
claim(float(odds["in a cell without an exit"][-1]) < float(odds["in a cell without an exit"][0]) < 0)
claim(float(odds["near the other class"][0]) < 0 < float(odds["near the other class"][-1]))
held = {name: captured(optimal, z, sigma) for name, z in starts.items()}
claim(all(int(h.label) == 1 for h in held.values()))
claim(bool(held["in a cell without an exit"].holds) and not bool(held["near the other class"].holds))

# %% [markdown]
# Both images are nearest to a wrong one. One is lost for good, the other one is repaired. What decides?
#
# ## The rate of the log-odds
#
# :::{prf:proposition} The log-odds along exact ascent
# :label: prop-why-rate
# Let $\pi = p(y \mid z)$, and $s_y$, $s_r$ the scores of class $y$ and of all other images. Along
# $\dot z = \nabla \log p(z)$ the log-odds $L = \log \pi - \log(1 - \pi)$ change by
# ```{math}
# :label: eq-why-rate
# \dot L = \pi \norm{s_y}^2 - (1 - \pi) \norm{s_r}^2 + (1 - 2 \pi)\, s_y \cdot s_r .
# ```
# :::
#
# :::{prf:proof}
# The density is $p = P_y p_y + P_r p_r$, so its score is $s = \pi s_y + (1 - \pi) s_r$. And
# $L = \log p_y - \log p_r$ plus a constant, so $\dot L = s \cdot (s_y - s_r)$. Multiply out.
# :::
#
# Nothing here is special to mixtures. Three cases say what it means.
#
# **A sure mistake**, $\pi \to 0$: $\dot L = s_r \cdot (s_y - s_r)$. Let one image $z_k$ carry all weight of the
# rest, and $z_y$ that of the
# class. Then $s_r = (z_k - z) / \sigma^2$, and the log-odds fall if and only if
#
# ```{math}
# :label: eq-why-fall
# (z_k - z_y) \cdot (z_k - z) > 0 .
# ```
#
# Where that is wrong, $z$ lies *behind* $z_k$, seen from $z_y$. Then they rise, but only to their value at $z_k$:
# $-\norm{z_k - z_y}^2 / 2 \sigma^2$, below zero. To rise is not to be repaired.
#
# **At the border**, $\pi = \tfrac12$: $\dot L = \tfrac12 (\norm{s_y}^2 - \norm{s_r}^2)$. The ascent leads to
# the class with the longer score, the one whose posterior mean is *further* away.
#
# **A sure hit**, $\pi \to 1$: $\dot L = s_y \cdot (s_y - s_r)$. It falls where the image lies behind its own.

# %% tags=["remove-cell"]
z = starts["in a cell without an exit"]
claim(float(log_odds_rate(optimal, z, y, sigma)) < 0 < float(log_odds_rate(optimal, starts["near the other class"], y, sigma)))

# %% [markdown]
# ## Cells without an exit
#
# At low noise one image carries all weight, and ascent runs straight to it. The points that are nearest to
# $z_k$ are a convex set that holds $z_k$, so the straight line stays inside. With noise the line bends. How
# far inside is enough? Write $d_i = \norm{z_i - z_k}$ and
# $g_i(z) = \norm{z - z_i}^2 - \norm{z - z_k}^2$: zero at the border to $z_i$, and $d_i^2$ at $z_k$.
#
# :::{prf:proposition} No exit
# :label: prop-why-cell
# Let $0 < \theta < 1$ with
# ```{math}
# :label: eq-why-cell
# \begin{gathered}
# g_i(z) \ge \theta d_i^2 \text{ for all } i \ne k, \\
# \sum_{i \ne k} d_i\, e^{-\theta d_i^2 / 2 \sigma^2} \le \tfrac12 (1 - \theta) \min_{i \ne k} d_i .
# \end{gathered}
# ```
# Then every step $z + \eta (D(z) - z)$ with $0 \le \eta \le 1$, and every further one, keeps the first
# condition. So $z_k$ stays the nearest image, and each class but its own has $p(y \mid z) < \tfrac12$.
# :::
#
# :::{prf:proof}
# The weight of $z_i$ is at most $e^{-g_i / 2 \sigma^2}$. So $D = \sum_i w_i z_i$ is at most
# $r = \sum_i d_i e^{-\theta d_i^2 / 2 \sigma^2}$ away from $z_k$. $g_i$ is affine with slope $2 (z_k - z_i)$, so
# $g_i(D) \ge d_i^2 - 2 d_i r \ge \theta d_i^2$ by the second condition. After the step $g_i$ is
# $(1 - \eta) g_i(z) + \eta g_i(D) \ge \theta d_i^2$. Finally the weights of all other images sum to at most
# $r / \min_i d_i \le \tfrac12 (1 - \theta)$.
# :::
#
# The dark regions of {numref}`fig-why` are the points with such a $\theta$. They do not reach the borders. There
# two images of one class, on either side of a point, pull it apart and cancel, and a single image of the other
# class wins.
#
# ## How many images are lost?
#
# Now images: the nearest neighbour among the training images, which is what the optimal classifier becomes at
# low noise, and {term}`PGD` against it. Which of the images that it gets wrong are in a cell without an exit?

# %%
train, test = load(data, "train")[:n_train], load(data, "test")[:n_images]
model = NearestNeighbor(train.x.double(), train.y)
x_adv = pgd(model, test.x.double(), test.y, eps=eps, steps=10, seed=seed)
optimal = OptimalDenoiser(train.x.double(), train.y)
wrong = captured(optimal, 2 * x_adv - 1, 0.1).label != test.y
lost = {
    s: captured(optimal, 2 * x_adv[wrong] - 1, s).holds for s in sigmas
}
count = int(wrong.sum())
print(f"{count} of {n_images} attacked images are wrong; lost for good:")
for s, holds in lost.items():
    print(f"sigma {s:g}: {int(holds.sum())}")

# %% tags=["remove-cell"]
low = lost[min(sigmas)]
glue("why-lost", f"{int(low.sum())} of {int(wrong.sum())}")
claim(int(wrong.sum()) > 0)
claim(all(int(a.sum()) >= int(b.sum()) for a, b in pairwise(lost.values())))

# %% [markdown]
# At the lowest level {glue:text}`why-lost` of them can never come back, however long the ascent. With more
# noise the proposition covers fewer of them: its sum runs over all images. The other side of the coin is that a right image
# deep in its cell is safe, too.
#
# ## What this does not say
#
# - It is about *exact* ascent of the density at one level. The paper's maximisation takes steps by signs,
#   descends a noisy bound at random levels, and stops at a budget. Steps by signs do not run straight, and can
#   leave a cell however small they are ({ref}`ex-why-sign`). That is luck, not repair: they leave right cells,
#   too.
# - A trained {term}`denoiser` is no mixture of its images. What it does to exact likelihoods is measured in
#   {ref}`sec-lm-laboratory`, with the verdicts on A11 and A11a in {doc}`/book/findings`, and what signs do to
#   gradients is {prf:ref}`prop-lm-jacobian`.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-why-sign
# :::
# **Signs** (10 minutes, medium). The other class has its image at $(0, 0)$, the right one at $(0.5, -0.6)$. Find a
# point in a cell without exit of the wrong class, $\sigma = 0.05$, from which steps of 0.01 by signs reach the right
# one.
#
# :::{hint}
# :class: dropdown
# With equal steps in both pixels the smaller difference is used up first. Where does the path go then?
# :::

# %%
# your code here
two = plane([[0.0, 0.0], [0.5, -0.6]], [1, 0])
answer = None  # at(..., ...)

# %%
# check
fine = False
if answer is not None:
    path = answer
    for _ in range(300):
        path = path + 0.01 * (two(path, 0.05) - path).sign()
    start, end = captured(two, answer, 0.05), captured(two, path, 0.05)
    fine = bool(start.holds and start.label == 1 and end.label == 0)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-why-sign
# :label: sol-why-sign
# :class: dropdown
# :::
# The path runs diagonally until the smaller difference is used up, then along an axis, so it can cut a corner of the
# other cell. From $(0.865, 0.25)$ it comes to the axis at $(0.615, 0)$, which is nearer to the right image.

# %%
answer = at(0.865, 0.25)
first = captured(two, answer, 0.05)
print("class", int(first.label), "without exit:", bool(first.holds))

# %% tags=["remove-cell"]
claim(bool(first.holds) and int(first.label) == 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-why-border
# :::
# **Between two** (15 minutes, hard). Wrong images at $(0, \pm h)$, the right one at $(1, 0)$, the same weight for each.
# Show that on the axis a point moves towards the right image as long as $\pi$ exceeds its first coordinate, and that for
# $h^2 > 1/3$ and small $\sigma$ some points with a wrong nearest image are repaired. For $h = 0.7$ and $\sigma = 0.2$: what is the smallest first coordinate, to a
# thousandth, from which exact ascent along the axis reaches the right class?
#
# :::{hint}
# :class: dropdown
# What is $D$ on the axis? Its fixed point is a root of one equation in one unknown.
# :::

# %%
# your code here
between = plane([[0.0, 0.7], [0.0, -0.7], [1.0, 0.0]], [1, 1, 0])
smallest = None  # a first coordinate

# %%
# check
fine = False
if smallest is not None:
    ends = [
        ascent(between, at(smallest + step, 0.0), 0.2)[-1:]
        for step in (-0.002, 0.002)
    ]
    labels = [int(captured(between, end, 0.2).label) for end in ends]
    fine = labels == [1, 0]
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-why-border
# :label: sol-why-border
# :class: dropdown
# :::
# On the axis $D = (\pi, 0)$, so the point moves to the right if $\pi$ exceeds its coordinate $a$. Where the three are
# equally far, $a = (1 - h^2) / 2$, the weights are equal and $\pi = 1/3$. If $h^2 > 1/3$, then $a < 1/3$: points just
# left of it have a wrong nearest image and still move right, to the next root of $\pi(a) = a$. For small $\sigma$ that lies
# near 1, at the right image; for large $\sigma$ it lies where the images still blur, and nothing is repaired. The border of the
# repaired points is the root before; bisection finds it. It lies left of $a = 0.255$, where the nearest image changes.

# %%
low, high = 0.0, 0.255
for _ in range(40):
    smallest = (low + high) / 2
    pi = float(between.posterior(at(smallest, 0.0), 0.2)[0, 0])
    low, high = (low, smallest) if pi > smallest else (smallest, high)
print(f"repaired from {smallest:.4f}; the nearest image changes at 0.2550")

# %% tags=["remove-cell"]
claim(0.2 < smallest < 0.2549)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-why-measured
# :::
# **The rate, measured** (10 minutes, easy). {prf:ref}`prop-why-rate` is about an instant. Check it by a difference: by
# how much do the log-odds change per unit of time along $\dot z = \nabla \log p$, at both points in `starts`?
#
# :::{hint}
# :class: dropdown
# A step of length $h$ goes to $z + h \,(D(z) - z) / \sigma^2$. In float64 $h = 10^{-6}$ is small and not too small.
# :::

# %%
# your code here
optimal_2 = plane(five, [1, 1, 1, 1, 0])
measured = dict.fromkeys(starts)  # a rate for each of the two points

# %%
# check
fine = None not in measured.values() and all(
    abs(measured[k] / float(log_odds_rate(optimal_2, z, y, sigma)) - 1) < 1e-3
    for k, z in starts.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-why-measured
# :label: sol-why-measured
# :class: dropdown
# :::
# The two agree to many digits: the proposition is exact, and holds for every density.

# %%
h = 1e-6
for k, z in starts.items():
    moved = z + h * (optimal_2(z, sigma) - z) / sigma**2
    change = log_odds(optimal_2, moved, y, sigma)
    change = change - log_odds(optimal_2, z, y, sigma)
    measured[k] = float(change) / h
    print(f"{k}: {measured[k]:+.3f} nats per unit of time")

# %% tags=["remove-cell"]
claim(measured["in a cell without an exit"] < 0 < measured["near the other class"])

# %% [markdown]
# :::{solution-end}
# :::
