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
# (nb-guidance-numbers)=
# # Judging samples by numbers
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what a Frechet distance, precision, recall and agreement measure, and in which network.
# - Measure how much of a distance is only the number of images.
# - Read a sweep over guidance scales that was made on the same seeds.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-guidance-samples`. Covers the metrics, and Tables 5 and 6, of {cite:t}`kawar2023guidance`.
#
# A guide pulls samples towards what its classifier is sure of. Does each image get better? Are there fewer kinds? The moving figure
# shows what numbers say: choose a setting and a scale, and watch precision and recall.
#
# ```{moving} scale
# ```

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
denoiser_name: str = "fashion-mini"  # guided; it knows the class
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
pairs_per_class: int = 10  # same-seed pairs of samples of each class
path_levels: int = 12  # levels of the sampler for them
scale: float = 1.0  # guidance scale of all classifiers
floor_sizes: list[int] = [50, 100, 200, 500, 1000, 2000, 5000]  # real images

# %% tags=["hide-input"]
import itertools

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise.base import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.guide import (
    ClassifierGuide,
    FeatureNetwork,
    SamplingPlan,
    bootstrap,
    edm_path,
    frechet_distance,
    load_classifier,
    precision_recall,
    sample,
)
from rdc.guide.reading import chosen, difference, one, pick
from rdc.notebook import (
    check_parameters,
    claim,
    samples_table,
    setting,
    stored_found,
)
from rdc.plots import legend_below, plot_intervals, style
from rdc.rng import generator

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
classes = len(test.classes)
names = {"vanilla": vanilla_name, "robust": robust_name}
guides = {
    name: ClassifierGuide(load_classifier(file, device))
    for name, file in names.items()
}
denoiser = load_denoiser(denoiser_name, device, fast_dtype(device))
judge_net, judge_name = reference_network("cnn", data, device), "reference CNN"
sweep = stored_found("guidance-scales")

# %% [markdown]
# (sec-guide-metrics)=
# ## Three measures
#
# **Frechet distance.** Fit Gaussians to the features of real and generated images in some network:
#
# ```{math}
# :label: eq-guide-frechet
# d^2 = \norm{\mu_1 - \mu_2}^2 + \operatorname{tr}\big( C_1 + C_2 - 2 (C_1 C_2)^{1/2} \big) .
# ```
#
# With the features of Inception it is called FID. With others it is *not*, and numbers of different networks cannot be compared. Every number below names its
# network: *plain* features are those of a network that was trained without attacks, *robust* ones those of an adversarially trained one.
#
# **Precision and recall.** The manifold of a set is the union of balls around its points, each as large as the distance to its third neighbour ({cite:t}`kynkaanniemi2019improved`). *Precision* is the share of generated images in the manifold of the real ones, *recall* the share of real
# images in that of the generated ones.
#
# **Agreement.** How often a network that took no part sees the class that was asked for. A guide that makes perfect clichés wins here: more agreement than
# real images have is no virtue.
#
# All of these depend on the number of images. A finite sample has other moments than its source, and the distance of two samples of the *same* source is
# positive, about $c / n$. We measure that floor with real images, as many of each class.

# %%
features = FeatureNetwork(judge_name, judge_net)
train_features = features(train.x.to(device))
test_features = features(test.x.to(device))
each = len(train) // classes
members = [(train.y == k).nonzero()[:each, 0] for k in range(classes)]
members = torch.stack(members)


def balanced(n: int, repeat: int) -> Tensor:
    """Positions of n training images, as many of each class."""
    name = (seed, "guide", "floor", n, repeat)
    keys = [generator(*name, k) for k in range(classes)]
    order = [torch.randperm(each, generator=k)[: n // classes] for k in keys]
    places = [members[k, picked] for k, picked in enumerate(order)]
    return torch.stack(places).T.flatten().to(device)


floor = {}
for n in [n for n in floor_sizes if 2 * n <= len(train)]:
    sets = [train_features[balanced(2 * n, repeat)] for repeat in range(4)]
    found = [
        [frechet_distance(s[:n], other) for other in (s[n:], test_features)]
        for s in sets
    ]
    floor[n] = np.mean(found, axis=0).tolist()
    a, b = floor[n]
    print(
        f"n = {n:5d}: two sets {a:6.3f}, times n {n * a:4.0f}; to test {b:.3f}"
    )
few_n, many_n = min(floor), max(floor)

# %% tags=["hide-input"]
# the images of the page before: same seeds, same classes
y_made = torch.arange(classes, device=device).repeat(pairs_per_class)
seeds_made = [10_000 * (seed + 1) + i for i in range(len(y_made))]
plan = SamplingPlan(edm_path(path_levels))
made = {
    name: sample(denoiser, y_made, seeds_made, plan, guide, scale)
    for name, guide in {"unguided": None, **guides}.items()
}
pairs = (("vanilla", "unguided"), ("robust", "unguided"), ("robust", "vanilla"))

# %% mystnb={"figure": {"caption": "What real images get, by their number: squared Frechet distance of two sets of training images of equal size, with a line of slope -1, and of one set to the test images. Crosses: the generated images of this page.", "name": "fig-guide-floor"}, "image": {"alt": "A straight falling line on logarithmic axes and one that levels off, with crosses near it", "width": "65%"}} tags=["hide-input"]
made_features = {name: features(s.x) for name, s in made.items()}
fig, ax = plt.subplots(figsize=(5.4, 4))
ax.plot(
    list(floor),
    [v[0] for v in floor.values()],
    marker="o",
    label="two training sets",
)
ax.plot(
    list(floor),
    [v[1] for v in floor.values()],
    marker="s",
    label="training to test images",
)
slope = [floor[few_n][0], floor[few_n][0] * few_n / many_n]
ax.plot([few_n, many_n], slope, ":", color="0.4", lw=1, label="slope -1")
for i, (name, f) in enumerate(made_features.items()):
    ax.plot(
        len(f),
        frechet_distance(f, test_features),
        "x",
        ms=8,
        mew=2,
        color=f"C{i + 2}",
        label=name,
    )
ax.set(
    xscale="log",
    yscale="log",
    xlabel="images $n$",
    ylabel="squared Frechet distance",
)
legend_below(fig)
plt.show()

# %% tags=["remove-cell"]
claim(
    floor[few_n][0] > 10 * floor[many_n][0]
    and floor[many_n][1] > floor[many_n][0]
)

# %% [markdown]
# So a distance without its $n$ says nothing, and two distances may be compared only at the same $n$. Their *difference* is nearly free of the bias, above all
# on the same seeds, where much of the chance is shared. An interval comes from resampling pairs, or better from repetitions with other seeds, as in the
# record.

# %%
real = train_features[balanced(len(y_made), 0)]
for name, f in {**made_features, "real training images": real}.items():
    both = precision_recall(test_features, f)
    print(f"{name}: distance {frechet_distance(f, test_features):.2f}")
    print(f"    precision {both.precision}, recall {both.recall}")
print(
    f"{len(y_made)} images each, against {len(test)} test images, in features"
)
print(f"of the {judge_name}. Differences, 95 % bootstrap intervals:")
for a, b in pairs:

    def gap(index: Tensor, a: str = a, b: str = b) -> float:
        """Difference of two distances on the same resampled pairs."""
        first, second = made_features[a][index], made_features[b][index]
        distance = frechet_distance(first, test_features)
        return distance - frechet_distance(second, test_features)

    every = torch.arange(len(y_made), device=device)
    found = bootstrap(gap, every, repeats=100, seed=seed)
    print(f"{a} - {b}: {found:+.3f}")

# %% [markdown]
# A hundred images are few: where an interval holds 0, this page cannot tell.
#
# (sec-guide-sweep)=
# ## By scale
#
# The experiment `guidance-scales` makes more images, on seeds of its own. Three settings occur: `heun` is the sampler of this page with
# fewer levels; `ddpm` is the paper's chain and form of guidance with 25 steps; and the denoiser knows the class (*class known*) or not
# (*unconditional*). Intervals are Student's t over repetitions with other seeds.

# %% mystnb={"figure": {"caption": "The scale sweep (Tables 5 and 6 of the paper), from the record: Frechet distance in plain features, precision, recall and agreement by scale, less those without a guide on the same seeds, with 95 % intervals. One column for each setting.", "name": "fig-guide-scales"}, "image": {"alt": "Three columns of four panels with lines for the vanilla and the robust guide against the scale, around a dotted line at zero"}} tags=["hide-input"]
METRICS = ("frechet", "precision", "recall", "agreement")
SETTINGS = (("heun", True), ("heun", False), ("ddpm", True))
fig, axes = plt.subplots(4, 3, figsize=(8, 7.4), sharex="col")
for column, (plan_name, conditional) in zip(axes.T, SETTINGS, strict=True):
    mine = pick(
        sweep,
        plan=plan_name,
        conditional=conditional,
        guide=("none", "vanilla", "robust", "classifier-free"),
    )
    zero = one(mine, guide="none")
    for ax, metric in zip(column, METRICS, strict=True):
        for i, name in enumerate(("vanilla", "robust", "classifier-free")):
            tried = sorted(
                pick(mine, guide=name), key=lambda f: f.row.about["scale"]
            )
            at = [f.row.about["scale"] * 1.06 ** (i - 1) for f in tried]
            plot_intervals(
                ax, at, [difference(f, zero, metric) for f in tried], name, ms=3
            )
        ax.axhline(0, color="0.4", ls=":", lw=1)
        ticks = [f.row.about["scale"] for f in pick(mine, guide="vanilla")]
        ax.set(xscale="log")
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    column[0].set_title(setting(zero))
    column[-1].set_xlabel("scale $s$")
for ax, metric in zip(axes[:, 0], METRICS, strict=True):
    ax.set_ylabel(metric)
legend_below(fig)
plt.show()

# %% tags=["hide-input"]
for guide, (plan_name, conditional) in itertools.product(
    ("vanilla", "robust", "wide", "classifier-free"), SETTINGS
):
    tried = pick(sweep, guide=guide, plan=plan_name, conditional=conditional)
    if tried:
        best = chosen(tried)
        print(
            f"chosen: {guide} {best.row.about['scale']:g} ({setting(best)}), {best.n} repetitions of 200 images"
        )

# %% [markdown]
# All rows of the sweep, folded:

# %% tags=["hide-cell"]
samples_table(sweep)

# %% [markdown]
# ## What to remember
#
# - A Frechet distance belongs to a network and a number of images. Compare at equal $n$, on the same seeds, with intervals.
# - Real images have a distance, too: about $c / n$ between two sets of the same source.
# - More agreement than real images have is no virtue. Where precision rises, look at recall.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-frechet
# :::
# **A distance of a thing to itself** (10 minutes, medium). The Frechet distance of two Gaussian fits is $\norm{m_1 -
# m_2}^2 + \operatorname{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$. Predict what its first term is on average, if both sets
# are $n$ draws from $\mathcal N(0, I)$ in 64 dimensions, and check it with 20 repetitions, for $n = 500$ and $n =
# 2000$.
#
# :::{hint}
# :class: dropdown
# The mean of $n$ draws has variance $1 / n$ in each dimension. Two means are compared.
# :::

# %%
# your code here
predicted = {500: None, 2000: None}


# %%
# check
def measured(n: int) -> float:
    """Mean squared distance of the means of two sets of n draws."""
    g = np.random.default_rng(seed)
    means = [g.normal(size=(2, n, 64)).mean(1) for _ in range(20)]
    return float(np.mean([((a - b) ** 2).sum() for a, b in means]))


fine = None not in predicted.values() and all(
    abs(value / measured(n) - 1) < 0.15 for n, value in predicted.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-frechet
# :label: sol-guide-frechet
# :class: dropdown
# :::
# $2 \cdot 64 / n$: zero only in the limit. The second term is biased upwards as well. So a Frechet distance compares
# two sets of samples only at equal $n$, and a model that is perfect does not reach 0.

# %%
for n in predicted:
    predicted[n] = 2 * 64 / n
    print(f"n = {n}: predicted {predicted[n]:.3f}, measured {measured(n):.3f}")

# %% tags=["remove-cell"]
claim(predicted[500] == 4 * predicted[2000])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-shrunk
# :::
# **Fewer kinds** (5 minutes, easy). Real images have the features $\mathcal N(0, I)$ in 64 dimensions. A model makes perfect images, but shrunk towards the cliché:
# $\mathcal N(0, 0.8^2 I)$. Which squared Frechet distance {eq}`eq-guide-frechet` has it? How far would its mean have to be off,
# with the right covariance, for the same distance?
#
# :::{hint}
# :class: dropdown
# For covariances $a^2 I$ and $b^2 I$ the trace is $64\, (a - b)^2$.
# :::

# %%
# your code here
squared_distance, shift = None, None

# %%
# check
fine = None not in (squared_distance, shift)
fine = fine and abs(squared_distance - 2.56) < 1e-3
fine = fine and abs(shift - 1.6) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-shrunk
# :label: sol-guide-shrunk
# :class: dropdown
# :::
# $64 \cdot 0.2^2 = 2.56$, as much as a mean that is off by 1.6. One number cannot say which of the two it is: precision and recall
# can.

# %%
squared_distance = 64 * (1 - 0.8) ** 2
shift = squared_distance**0.5
print(f"squared distance {squared_distance:.2f}, shift {shift:.2f}")

# %% tags=["remove-cell"]
claim(abs(shift - 1.6) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-floor
# :::
# **How many images?** (5 minutes, easy). From how many images a set on is the distance of two sets of training images below 0.1? Extrapolate with $c / n$ from the largest
# set of this page, `many_n` images with the distance `floor[many_n][0]`.
#
# :::{hint}
# :class: dropdown
# $c = n d^2$ is printed for every size.
# :::

# %%
# your code here
needed_n = None

# %%
# check
fine = needed_n is not None
fine = fine and abs(needed_n * 0.1 / (many_n * floor[many_n][0]) - 1) < 0.05
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-floor
# :label: sol-guide-floor
# :class: dropdown
# :::
# $n = c / 0.1$. Differences that are much smaller than such a floor can be seen at far smaller $n$, if both sides have the same seeds.

# %%
needed_n = many_n * floor[many_n][0] / 0.1
print(f"about {needed_n:.0f} images")

# %% tags=["remove-cell"]
claim(needed_n > many_n)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Frechet distance in Inception features: {cite:t}`heusel2017gans`; its bias:
# {cite:t}`chong2020effectively`. Precision and recall: {cite:t}`kynkaanniemi2019improved`.
