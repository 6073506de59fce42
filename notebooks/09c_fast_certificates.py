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
# (nb-fast-certificates)=
# # What a certificate costs
#
# :::{admonition} What you will be able to do
# :class: tip
# - Count the network evaluations of a {term}`certificate`.
# - Say why a few levels are as often right as many, and still give other answers.
# - Let a few levels predict a slow classifier, with its noise.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-noised-inner`. Covers the number of levels of {cite:t}`chen2024ndc`.
#
# A certificate as released takes $n_0$ draws to choose the class and $n$ to count it. Each noisy image is denoised once and then compared
# at 124 levels, with one evaluation for each of the $K$ classes: $(n_0 + n)(1 + 124 K)$ network evaluations.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set of the certificate
heads_name: str = "fashion-mini-multihead"  # its denoiser, all classes at once
alpha: float = 0.001  # probability that a certificate is wrong
sigma: float = 0.25  # smoothing noise of the certificate, image units
live_n0: int = 20  # draws that choose the class
live_n: int = 250  # draws that bound its probability
race_sigma: float = 0.5  # smoothing noise of the race
n_images: int = 500  # images of the digits behind the optimal denoiser
n_race: int = 150  # noisy digits of the race, and as many to learn from

# %% tags=["hide-input"]
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from rdc.certify import APNDC, EPNDC, certify
from rdc.certify.clopper_pearson import radius_from_counts, reach
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.early_exit import learn_rounds
from rdc.notebook import check_parameters, claim, show_table, stored_cells
from rdc.plots import legend_below, plot_accuracy, style
from rdc.rng import randn_each
from rdc.runs.statistics import Accuracy

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")
level_cells = stored_cells("certificates-levels")

# %%
as_released = (100 + 10_000) * (1 + 124 * 10)
print(f"n0 = 100, n = 10 000, K = 10: {as_released:,} for one image")

# %% [markdown]
# A {term}`multi-head` network serves all classes in one evaluation. Are all those levels needed, too?


# %% mystnb={"figure": {"caption": "From stored cells: answers to noisy images against the passes they take, with 95 % intervals. Agrees: as with 124 single-head levels. Right: the true class; horizontal lines are the three other base classifiers.", "name": "fig-cert-levels"}, "image": {"alt": "Agreement with the reference and accuracy against passes, one panel for each smoothing noise"}} tags=["hide-input"]
def kind_of(about: dict[str, Any]) -> str:
    """The curve that a row belongs to; empty if it belongs to none."""
    plain = (
        about["coupling"] == "shared"
        and "fresh" not in about["noise"]
        and about["seed"] is None
    )
    if (
        not plain
        or about["base"] not in ("EPNDC", "APNDC", "Cascade", "Race")
        or about["form"] == "condition-on-y"
    ):
        return ""
    name = ", ".join(
        str(about[k]) for k in ("base", "denoiser", "form") if about[k]
    )
    return name + ", mirror" * ("mirror" in about["noise"])


kinds: dict[str, list[Any]] = {}
for f in sorted(level_cells, key=lambda f: f.mean("passes")):
    if kind := kind_of(f.row.about):
        kinds.setdefault(kind, []).append(f)
level_sigmas = sorted({f.row.about["sigma"] for f in level_cells})
panels = [("agrees", level_sigmas[0]), *(("right", s) for s in level_sigmas)]
fig, axes = plt.subplots(2, 2, figsize=(8, 7.4))
for ax, (key, s) in zip(axes.flat, panels, strict=True):
    for i, (kind, every) in enumerate(kinds.items()):
        shown = [f for f in every if f.row.about["sigma"] == s]
        if len(shown) > 1:
            at, shares = (
                [f.mean("passes") for f in shown],
                [f.accuracy(key) for f in shown],
            )
            plot_accuracy(ax, at, shares, kind, ms=3, lw=1, color=f"C{i}")
    for base, ls in (
        (("Carlini", ":"), ("Cohen", "--"), ("DC, clipped", "-."))
        if key == "right"
        else ()
    ):
        (f,) = (
            f
            for f in level_cells
            if (f.row.about["base"], f.row.about["sigma"]) == (base, s)
        )
        ax.axhline(
            100 * f.accuracy("right").value,
            color="0.5",
            ls=ls,
            lw=1,
            label=base,
        )
    ax.set(
        xscale="log",
        title=rf"{key}, $\sigma$ = {s:g}",
        xlabel="passes for a noisy image",
        ylabel="images (%)",
    )
    ax.autoscale(axis="y")
    low, high = ax.get_xlim()
    ticks = [x for x in (1, 3, 10, 30, 100, 300, 1000) if low < x < high]
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.minorticks_off()
legend_below(fig, 2)
plt.show()

# %% [markdown]
# (sec-cert-levels)=
# ## How many levels?
#
# The stored cells of {numref}`fig-cert-levels` ask several base classifiers about the same noisy images. *Agrees* counts those on which
# the class is that of 124 single-head levels. A few levels are as often right as many. They agree less: two classifiers of one
# quality are two classifiers. Horizontal lines: Carlini denoises once and asks a network for clean images, Cohen is a network trained
# with that noise, and the last one is the clean diffusion classifier on the clipped image. The rows behind the figure:

# %% tags=["hide-input", "hide-output"]
for s in level_sigmas:
    rows = []
    for f in level_cells:
        about = f.row.about
        if about["sigma"] == s:
            asked = "reference" in f.row.arguments
            names = (about[k] for k in ("base", "denoiser", "form") if about[k])
            row = {"classifier": ", ".join(names), "levels": about["levels"]}
            row |= {"noise": about["noise"], "passes": f.mean("passes")}
            row |= {"right": str(f.accuracy("right"))}
            row |= {"agrees": str(f.accuracy("agrees")) if asked else None}
            rows.append(row)
    show_table(rows, f"Answers to noisy images, smoothing noise {s:g}")

# %% [markdown]
# ### One certificate
#
# With heads, eight levels and one step of denoising, a noisy image costs nine passes. One can ask for the full radius, or whether it is at
# least so much ({ref}`nb-early-stopping`):

# %%
heads = load_denoiser(heads_name, device=device, dtype=fast_dtype(device))
base, image = APNDC(heads, sigma, count=8, seed=seed), test.x[0].to(device)
ask = partial(certify, sigma=sigma, n0=live_n0, n=live_n, alpha=alpha)
most = reach(live_n, sigma, alpha)
for question, target in {"full radius": {}, "0.25?": {"target": 0.25}}.items():
    found = ask(base, image, seed=seed, index=0, **target)
    passes = found.calls * base.evaluations
    print(f"{question:11s} {found.k} of {found.n} draws, {passes} passes,")
    print(f"{'':11s} radius {found.radius:.3f} of at most {most:.3f}")

# %% [markdown]
# The same on the command line, for many images, continued after an interruption:
# `rdc certify --model apndc --sigma 0.25 --n 1000 --count 50 --rows runs/c.jsonl`.
#
# (sec-cert-race)=
# ## A race, with the noise of the slow one
#
# Certificates from other answers have other radii. Part of the sum
#
# $$
# f_y = -\sum_t \ell_{y,t}
# $$
#
# is what its noise happened to be. The noise is fixed, so that $f$ is one function of the image; with another seed it is another one. A fast
# classifier with levels of its own has its own noise: where two classes are close, it answers otherwise, however good it is.
#
# So look at levels *of f itself*, noise included, and predict the sum:
#
# ```{math}
# :label: eq-cert-race
# \hat f_y = -\sum_{t \in S} a_t\, \ell_{y,t} .
# ```
#
# The weights are a least-squares fit to differences of close classes, $f_y - f_j$, on other noisy images; $S$ grows by the level that helps the fit most
# ({py:mod}`rdc.early_exit.race_rounds`). Noisy digits with the optimal denoiser, half of them to learn from:

# %% tags=["hide-input"]
digits_train = load("digits", "train")[:n_images]
digits_test = load("digits", "test")
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)
sizes_race = (2, 4, 8, 16, 32)


def noisy_digits(count: int, sigma: float) -> Tensor:
    """Test images of the digits with smoothing noise, float64."""
    x = digits_test.x[:count].double()
    keys = [(seed, "certify", "digits", i) for i in range(count)]
    return x + sigma * randn_each(tuple(x.shape[1:]), keys, like=x)


def all_levels(noise_seed: int) -> EPNDC:
    """The slow classifier, of 124 levels."""
    one_draw = {"form": "fixed", "antithetic": False, "chunk": 20_000}
    return EPNDC(digits, race_sigma, count=124, seed=noise_seed, **one_draw)


# %% tags=["hide-input"]
x_race = noisy_digits(2 * n_race, race_sigma)
with torch.no_grad():
    losses_race = all_levels(seed).losses(x_race)
    again = all_levels(seed + 1).losses(x_race[n_race:])
    few_levels = [
        EPNDC(digits, race_sigma, count=m // 2, seed=seed)(
            x_race[n_race:]
        ).argmax(dim=1)
        for m in sizes_race
    ]
again = again.sum(dim=2).argmin(dim=1)

# %%
learn_from, raced = losses_race.split(n_race)
slow_answer = raced.sum(dim=2).argmin(dim=1)
predicted = []
for m in sizes_race:
    opening, _ = learn_rounds(
        learn_from, learn_from, sizes=(m, 1), gaps=(0.0,), keep=(1,)
    )
    weights = torch.tensor(opening.weights, dtype=torch.float64)
    some = raced[:, :, list(opening.levels)]
    predicted.append((some @ weights).argmin(dim=1))

# %% mystnb={"figure": {"caption": "Noisy digits, optimal denoiser: answers of 124 levels that are given again, with 95 % intervals, by evaluations of one class. Levels of its own: quadrature with mirror images. Levels of the slow one: some of the 124, with the same noise and learned weights. Line and band: all 124 with another seed.", "name": "fig-cert-race"}, "image": {"alt": "The curve of levels of the slow one rises above the band of another seed; that of levels of its own stays at or below it"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))


def share_same(answer: Tensor, wanted: Tensor) -> Accuracy:
    """How many answers are the same."""
    return Accuracy.of(int((answer == wanted).sum()), len(wanted))


for name, found in {
    "levels of its own": few_levels,
    "levels of the slow one": predicted,
}.items():
    plot_accuracy(
        ax,
        sizes_race,
        [share_same(answer, slow_answer) for answer in found],
        name,
        ms=4,
        lw=1,
    )
seed_share = share_same(again, slow_answer)
ax.axhline(
    100 * seed_share.value, color="0.4", lw=1, label="124 levels, another seed"
)
ax.axhspan(
    100 * seed_share.low, 100 * seed_share.high, color="0.4", alpha=0.15, lw=0
)
ax.set(
    xscale="log",
    ylim=(50, 102),
    xlabel="evaluations of a class",
    ylabel="answers of 124 levels (%)",
)
ax.set_xticks(sizes_race, [str(m) for m in sizes_race])
ax.minorticks_off()
ax.legend()
plt.show()

# %% tags=["hide-input"]
bayes = digits.log_density(to_model(x_race[n_race:]), 2 * race_sigma)
bayes = bayes.argmax(dim=1)
print("Bayes' class is given")
for name, answer in {
    "by 124 levels": slow_answer,
    "by these, another seed": again,
    f"by {sizes_race[-1]} evaluations of its own": few_levels[-1],
}.items():
    print(f"    {name:28s} {share_same(answer, bayes)}")

# %% tags=["remove-cell"]
claim(
    share_same(predicted[-1], slow_answer).correct
    > max(seed_share.correct, share_same(few_levels[-1], slow_answer).correct)
)

# %% [markdown]
# The noise of the slow one is worth nothing in itself. Judged by the truth, in the lines above, these classifiers are hard to tell apart at this $n$. It is worth
# a lot if the question is, as here, what *that* classifier would have certified.
#
# {py:class}`rdc.early_exit.race.Race` runs on it in rounds. The first looks at all classes at four of the 124 levels, with the multi-head network and the same noise.
# Later rounds add levels of the single-head network for the classes that are left, to which the first prediction is carried over; who falls more than some nats
# behind is out. From stored cells, on other noisy images than those that it learned from.
# Its sizes and gaps were chosen on them, which flatters it a little; the certificates of {ref}`nb-certificate-factors` are of other images:

# %% tags=["hide-input"]
for f in level_cells:
    about = f.row.about
    if about["rounds"] or about["seed"] is not None:
        race = f"race, {about['rounds']}:"
        print(race if about["rounds"] else "124 levels, another seed:")
        print(f"    {f.mean('passes'):.1f} evaluations,")
        print(f"    the answer of 124 levels to {f.accuracy('agrees')}")

# %% [markdown]
# ## What to remember
#
# - As released, a certificate of ten classes takes more than ten million network evaluations.
# - A few levels are as often right as many, yet give other answers: inner noise is part of a base classifier.
# - Whoever wants the radius of a slow classifier cheaply must look at levels of it, with its noise.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-budget
# :::
# **What may it cost?** (5 minutes, easy). One image is certified with $n_0 = 100$ and $n = 10\,000$ by EPNDC with heads and 8 levels with
# mirror images. How many evaluations does that take, and how many times fewer is it than the number at the top of this page?
#
# :::{hint}
# :class: dropdown
# A mirror image is an evaluation of its own. Heads serve all classes at once.
# :::

# %%
# your code here
with_heads, times_fewer = None, None

# %%
# check
fine = None not in (with_heads, times_fewer)
fine = fine and with_heads == 10_100 * EPNDC(heads, sigma).evaluations
fine = fine and abs(times_fewer - as_released / with_heads) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-budget
# :label: sol-cert-budget
# :class: dropdown
# :::
# Sixteen evaluations for a noisy image, instead of 1 + 124 for each class.

# %%
with_heads = (100 + 10_000) * 2 * 8
times_fewer = as_released / with_heads
print(f"{with_heads:,} evaluations, {times_fewer:.1f} times fewer")

# %% tags=["remove-cell"]
claim(times_fewer > 50)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-two-noises
# :::
# **Equally good, not the same** (10 minutes, medium). The difference of two classes is $m + \varepsilon_1$ for one classifier and $m + \varepsilon_2$
# for another, with normal noise of standard deviation $m$. How often is each right? How often do they agree if the noises are independent, and
# how often if their correlation is $0.8$?
#
# :::{hint}
# :class: dropdown
# `multivariate_normal(cov=[[1, c], [c, 1]]).cdf([1, 1])` is the probability that two normal numbers of correlation `c` are both below 1.
# :::

# %%
# your code here
right, agree, agree_correlated = None, None, None

# %%
# check
fine = None not in (right, agree, agree_correlated)
fine = fine and abs(right - 0.841) < 2e-3 and abs(agree - 0.733) < 2e-3
fine = fine and abs(agree_correlated - 0.878) < 2e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-two-noises
# :label: sol-cert-two-noises
# :class: dropdown
# :::
# Each is right with probability $p = \Phi(1)$. Independent noises agree with probability $p^2 + (1 - p)^2$, less often than one of them is
# right. Noise that is shared makes them agree, and neither of them better. That is what the levels of the slow one do.

# %%
right = float(norm.cdf(1))
agree = right**2 + (1 - right) ** 2
both = multivariate_normal(cov=[[1, 0.8], [0.8, 1]]).cdf([1, 1])
agree_correlated = float(1 - 2 * (right - both))
print(f"right {right:.3f}, agree {agree:.3f} or {agree_correlated:.3f}")

# %% tags=["remove-cell"]
claim(agree < right < agree_correlated)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-calibrate
# :::
# **A classifier that knows the image** (15 minutes, hard). A fast classifier errs by an offset that depends on the
# image. Why not measure the offset on the $n_0$ first draws, correct the {term}`logits`, and certify with the $n$ others? They
# are independent. Take two classes on a line, the slow logit $s(u) = u$ of class 1 against class 0, and the fast one
# $h(u) = 0$. Which radius does $x = 0.1$ get with $\sigma = 0.25$, $n_0 = 100$, $n = 1000$, $\alpha = 0.001$? How many
# of the 1000 answers at $x' = -0.1$ are class 1? Which assumption fails? May the *weights* of a race be learned from
# data?
#
# :::{hint}
# :class: dropdown
# The corrected logit is $h(u) + b(x)$, and $b(x)$ is the mean of $s - h$ at the $n_0$ draws: a constant.
# :::

# %%
# your code here
claimed, answers_there = None, None

# %%
# check
fine = None not in (claimed, answers_there)
fine = fine and abs(claimed - 0.25 * 2.4624) < 0.01 and answers_there == 0
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-calibrate
# :label: sol-cert-calibrate
# :class: dropdown
# :::
# All draws agree, so the radius is the largest that $n$ draws reach. But whoever classifies $x' = -0.1$ measures $b(x')
# < 0$ there and answers otherwise. Cohen's theorem is about *one* base classifier at $x$ and at $x + \rho$.
# Independence of the draws does not help; here the classifier changes with the image. The weights of a race were
# learned from other images and are the same for all: one function.

# %%
rng = np.random.default_rng(seed)


def ones(x: float) -> int:
    """How many of 1000 draws the corrected fast classifier calls 1."""
    b = (x + 0.25 * rng.normal(size=100)).mean()  # slow less fast
    return 1000 * int(b > 0)


claimed = radius_from_counts(ones(0.1), 1000, 0.25, 0.001)
answers_there = ones(-0.1)
print(f"certified {claimed:.2f} at 0.1; at -0.1 {answers_there} answers of 1")

# %% tags=["remove-cell"]
claim(claimed > 0.2 and answers_there == 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Noised diffusion classifiers: {cite:t}`chen2024ndc`. The images are those of {cite:t}`xiao2017fashion` and {cite:t}`alpaydin1998digits`.
