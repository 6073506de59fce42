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
# (nb-guidance-samples)=
# # What guides make
#
# :::{admonition} What you will be able to do
# :class: tip
# - Judge generated images by numbers with intervals, and know their bias.
# - Ask first how far another seed of a training moves a number.
# - Judge the claims on robust classifier guidance from measured numbers.
# :::
#
# **Time** 40 minutes · **Needs** {ref}`nb-guidance-classifiers`. Covers Figures 2, 5 and 6 and Tables 1, 2 and 4 to 6 of {cite:t}`kawar2023guidance`.
#
# The images of this page are few, so that it runs in minutes. Larger runs are read from the experiments `guidance-scales`, `guidance-main` and
# `guidance-threats`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
denoiser_name: str = "fashion-mini"  # the denoiser that is guided; it knows the class
heads_name: str = "fashion-mini-multihead"  # the denoiser of the diffusion classifier
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
wide_name: str = "fashion-mini-wide"
pairs_per_class: int = 10  # same-seed pairs of samples of each class
path_levels: int = 12  # levels of the sampler for them
n_wide: int = 12  # same-seed samples of the wide guide
scale: float = 1.0  # guidance scale of the shown pairs, for all classifiers
free_scale: float = 2.0  # scale where the guide alone knows the class
floor_sizes: list[int] = [50, 100, 200, 500, 1000, 2000, 5000]  # real images behind the floor of the Frechet distance

# %% tags=["hide-input"]
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display
from scipy.stats import binomtest
from torch import Tensor

from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise.base import fast_dtype, from_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, predict
from rdc.guide import (
    ClassifierGuide,
    DiffusionGuide,
    FeatureNetwork,
    RatioGuide,
    SamplingPlan,
    agreement,
    bootstrap,
    edm_path,
    frechet_distance,
    load_classifier,
    precision_recall,
    sample,
)
from rdc.guide.plan import PLANS, share
from rdc.guide.reading import chosen, difference, of_seeds, one, pick
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    differences_table,
    samples_table,
    setting,
    stored_found,
)
from rdc.notebook.guided import threat_name
from rdc.plots import image_grid, plot_intervals, style
from rdc.rng import generator
from rdc.runs.statistics import beside, main_effects, ratio_of_spreads
from rdc.runs.verdict import decide

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
train, test = load(data, "train"), load(data, "test")
classes = len(test.classes)
names = {"vanilla": vanilla_name, "robust": robust_name, "wide": wide_name}
guides = {name: ClassifierGuide(load_classifier(file, device)) for name, file in names.items()}
wide = guides.pop("wide")
denoiser = load_denoiser(denoiser_name, device, fast_dtype(device))
heads = load_denoiser(heads_name, device, fast_dtype(device))
candidates = guides | {"diffusion classifier": DiffusionGuide(heads, seed=seed)}
judge_net, judge_name = reference_network("cnn", data, device), "reference CNN"
sweep, main = stored_found("guidance-scales"), stored_found("guidance-main")
threats = stored_found("guidance-threats")

# %% [markdown]
# (sec-guide-samples)=
# ## Samples
#
# Now guide. The denoiser knows the class, as in the paper; the sampler is Heun's method on the probability flow with guidance in score form. An image follows
# from its seed and class alone, so that the same seed with and without a guide, or with two guides, makes a *pair*.

# %%
plan = SamplingPlan(edm_path(path_levels))
y_made = torch.arange(classes, device=device).repeat(pairs_per_class)
seeds_made = [10_000 * (seed + 1) + i for i in range(len(y_made))]
made = {
    name: sample(denoiser, y_made, seeds_made, plan, guide, scale, keep=True)
    for name, guide in {"unguided": None, **guides}.items()
}
said = {name: predict(judge_net, s.x) for name, s in made.items()}
agrees = {name: v == y_made for name, v in said.items()}
for name, right in agrees.items():
    seen = Accuracy.of(int(right.sum()), len(right))
    print(f"{name:9s} the judge sees the class that was asked for in {seen}")
pairs = (("vanilla", "unguided"), ("robust", "unguided"), ("robust", "vanilla"))
for a, b in pairs:
    print(f"mean difference of a pixel, {a} - {b}: {float((made[a].x - made[b].x).abs().mean()):.3f}")
other_seed = float((made["unguided"].x - made["unguided"].x.roll(classes, 0)).abs().mean())
print(f"two seeds: {other_seed:.3f}")

# %% mystnb={"figure": {"caption": "Same seeds, same classes (Figure 2 of the paper): in each block of three rows unguided, vanilla guide, robust guide; one class a column. Not selected.", "name": "fig-guide-pairs"}, "image": {"alt": "Two blocks of three rows of generated clothes; within a block the pictures of a column are alike"}} tags=["hide-input"]
blocks = [made[name].x[k * classes : (k + 1) * classes] for k in range(2) for name in made]
image_grid(torch.cat(blocks).cpu(), columns=classes, size=0.5)
plt.show()

# %% [markdown]
# Which row is better? Nobody should judge that knowing which is which. A page of this book shows such pairs in random order, without names, and counts your
# choices: {ref}`blind-pairs`.
#
# ### Along the path
#
# What does the denoiser make of the guided image on its way (Figure 5)? We take the pair in which the two guides disagree most.

# %% mystnb={"figure": {"caption": "The denoised image at every level of the path, noise falling from left to right, for the pair with the largest difference. Rows: unguided, vanilla, robust.", "name": "fig-guide-path"}, "image": {"alt": "Three rows of pictures that start as a grey blur and become sharp clothes"}} tags=["hide-input"]
most = int((made["vanilla"].z - made["robust"].z).flatten(1).norm(dim=1).argmax())
seen = ", ".join(f"{test.classes[int(v[most])]} ({name})" for name, v in said.items())
print(f"class asked for: {test.classes[int(y_made[most])]}; the judge sees {seen}")
image_grid(torch.cat([from_model(s.estimates[most]).clamp(0, 1) for s in made.values()]).cpu(), columns=path_levels, size=0.5)
plt.show()

# %% [markdown]
# ### Failures, chosen by a rule
#
# Figure 6 of the paper shows cases in which the vanilla guide did better, and does not say how they were found. Ours are chosen by a rule that was fixed
# beforehand: the pairs in which the judge sees the wanted class in the vanilla image and another one in the robust image. The opposite pairs are counted too.

# %%
verdict = decide(agrees["robust"].tolist(), agrees["vanilla"].tolist())
print(f"{len(y_made)} pairs, seen as asked for, robust less vanilla: {verdict}")
worse = (agrees["vanilla"] & ~agrees["robust"]).nonzero()[:10, 0].tolist()
for i in worse:
    seen = {name: test.classes[int(said[name][i])] for name in guides}
    wanted = test.classes[int(y_made[i])]
    print(f"    seed {seeds_made[i]}: {wanted}, seen as {seen['vanilla']} (vanilla) and {seen['robust']} (robust)")

# %% mystnb={"figure": {"caption": "The failures: the first ten pairs in which the judge agrees with the vanilla image and not with the robust one. Rows: vanilla, robust.", "name": "fig-guide-failures"}, "image": {"alt": "Two rows of generated clothes, one pair a column", "width": "80%"}} tags=["hide-input"]
if worse:
    image_grid(torch.cat([made[name].x[worse] for name in guides]).cpu(), columns=len(worse), size=0.5)
    plt.show()
else:
    print("no such pair on this page")

# %% [markdown]
# ### When only the guide knows the class
#
# With a denoiser that knows the class a guide has little left to do. The harder task is the original one: an *unconditional* denoiser, and the class from the
# guide alone. Here the diffusion classifier takes part, and classifier-free guidance, which with an unconditional start is
#
# ```{math}
# :label: eq-guide-free
# \widetilde D = D + s\, (D_y - D) , \qquad \text{that is } g = (D_y - D) / \sigma^2 .
# ```
#
# It needs no classifier and no gradient. {cite:t}`kawar2023guidance` name it as another direction of research; in the light of {eq}`eq-guide-direction` it is
# the same one, with a guide that was trained as a denoiser. So is the diffusion classifier: its gradient is that of a ratio of two likelihoods (here of their
# bounds).

# %%
alone = SamplingPlan(edm_path(path_levels), "euler", conditional=False)
free_guides = {"none": None, **candidates, "classifier-free": RatioGuide(denoiser)}
free: dict[str, Tensor] = {}
for name, guide in free_guides.items():
    count = classes if name == "diffusion classifier" else len(y_made) // 2  # the slow one makes fewer
    free[name] = sample(denoiser, y_made[:count], seeds_made[:count], alone, guide, free_scale).x
    seen = agreement(judge_net, free[name], y_made[:count])
    print(f"{name:21s} the judge sees the class that was asked for in {seen}")

# %% mystnb={"figure": {"caption": "An unconditional denoiser, and the class from the guide alone, one class a column, same seeds. Rows: no guide, vanilla, robust, diffusion classifier, classifier-free.", "name": "fig-guide-free"}, "image": {"alt": "Five rows of generated clothes; in the first row the classes are random, in the others mostly those of the columns"}} tags=["hide-input"]
print(f"{free_scale:g} is the scale of all guides; columns: {', '.join(test.classes)}")
image_grid(torch.cat([x[:classes] for x in free.values()]).cpu(), columns=classes, size=0.5)
plt.show()

# %% [markdown]
# (sec-guide-metrics)=
# ## Judging samples by numbers
#
# **Frechet distance.** Fit Gaussians to the features of real and generated images in some network:
#
# ```{math}
# :label: eq-guide-frechet
# d^2 = \norm{\mu_1 - \mu_2}^2 + \operatorname{tr}\big( C_1 + C_2 - 2 (C_1 C_2)^{1/2} \big) .
# ```
#
# With the features of Inception it is called FID. With others it is *not*, and numbers of different networks cannot be compared. Every number below names its
# network.
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
train_features, test_features = features(train.x.to(device)), features(test.x.to(device))
members = torch.stack([(train.y == k).nonzero()[: len(train) // classes, 0] for k in range(classes)])


def balanced(n: int, repeat: int) -> Tensor:
    """Positions of n training images, as many of each class, in random order."""
    keys = [generator(seed, "guide", "floor", n, repeat, k) for k in range(classes)]
    order = [torch.randperm(members.shape[1], generator=key)[: n // classes] for key in keys]
    return torch.stack([members[k, picked] for k, picked in enumerate(order)]).T.flatten().to(device)


floor = {}
for n in [n for n in floor_sizes if 2 * n <= len(train)]:
    sets = [train_features[balanced(2 * n, repeat)] for repeat in range(4)]
    found = [(frechet_distance(s[:n], s[n:]), frechet_distance(s[:n], test_features)) for s in sets]
    floor[n] = np.mean(found, axis=0).tolist()
    print(f"n = {n:5d}: two sets {floor[n][0]:6.3f}, times n {n * floor[n][0]:4.0f}; to the test images {floor[n][1]:.3f}")
few_n, many_n = min(floor), max(floor)

# %% mystnb={"figure": {"caption": "What real images get, by their number: squared Frechet distance of two sets of training images of equal size, with a line of slope -1, and of one set to the test images. Crosses: the generated images of this page.", "name": "fig-guide-floor"}, "image": {"alt": "A straight falling line on logarithmic axes and one that levels off, with crosses near it", "width": "65%"}} tags=["hide-input"]
made_features = {name: features(s.x) for name, s in made.items()}
fig, ax = plt.subplots(figsize=(5.4, 3.5))
ax.plot(list(floor), [v[0] for v in floor.values()], marker="o", label="two training sets")
ax.plot(list(floor), [v[1] for v in floor.values()], marker="s", label="training to test images")
slope = [floor[few_n][0], floor[few_n][0] * few_n / many_n]
ax.plot([few_n, many_n], slope, ":", color="0.4", lw=1, label="slope -1")
for i, (name, f) in enumerate(made_features.items()):
    ax.plot(len(f), frechet_distance(f, test_features), "x", ms=8, mew=2, color=f"C{i + 2}", label=name)
ax.set(xscale="log", yscale="log", xlabel="images $n$", ylabel="squared Frechet distance")
ax.legend(fontsize=7)
plt.show()

# %% tags=["remove-cell"]
claim(floor[few_n][0] > 10 * floor[many_n][0] and floor[many_n][1] > floor[many_n][0])

# %% [markdown]
# So a distance without its $n$ says nothing, and two distances may be compared only at the same $n$. Their *difference* is nearly free of the bias, above all
# on the same seeds, where much of the chance is shared. An interval comes from resampling pairs, or better from repetitions with other seeds, as in the
# record.

# %%
real = train_features[balanced(len(y_made), 0)]
for name, f in {**made_features, "real training images": real}.items():
    both = precision_recall(test_features, f)
    print(f"{name:21s} distance {frechet_distance(f, test_features):.2f}, precision {both.precision}, recall {both.recall}")
print(f"{len(y_made)} images each, against {len(test)} test images; features of the {judge_name}")
for a, b in pairs:

    def gap(index: Tensor, a: str = a, b: str = b) -> float:
        """Difference of two squared distances on the same resampled pairs."""
        return frechet_distance(made_features[a][index], test_features) - frechet_distance(
            made_features[b][index], test_features
        )

    found = bootstrap(gap, torch.arange(len(y_made), device=device), repeats=100, seed=seed)
    print(f"{a} - {b}: {found:+.3f}, 95 % bootstrap interval")

# %% [markdown]
# A hundred images are few: where an interval holds 0, this page cannot tell, and the agreement of a guided set may pass that of real images.
#
# (sec-guide-record)=
# ## The tables, larger
#
# From here on the numbers are those of the experiments. Three settings occur: `heun` is the sampler of this page with fewer levels; `ddpm` is the paper's chain
# and form of guidance with 25 steps; and either denoiser, the one that knows the class (*class known*) and the unconditional one. Scales are chosen on seeds of their own.
# Intervals are Student's t over repetitions with other seeds.
#
# ```{moving} scale
# ```

# %% mystnb={"figure": {"caption": "The scale sweep (Tables 5 and 6 of the paper), from the record: Frechet distance in plain features, precision, recall and agreement by scale, less those without a guide on the same seeds, with 95 % intervals. One row for each setting.", "name": "fig-guide-scales"}, "image": {"alt": "Rows of four panels with lines for the vanilla and the robust guide against the scale, around a dotted line at zero"}} tags=["hide-input"]
METRICS = ("frechet", "precision", "recall", "agreement")
SETTINGS = (("heun", True), ("heun", False), ("ddpm", True))
fig, axes = plt.subplots(3, 4, figsize=(10, 6.9))
for line, (plan_name, conditional) in zip(axes, SETTINGS, strict=True):
    mine = pick(sweep, plan=plan_name, conditional=conditional, guide=("none", "vanilla", "robust", "classifier-free"))
    zero = one(mine, guide="none")
    for ax, metric in zip(line, METRICS, strict=True):
        for i, name in enumerate(("vanilla", "robust", "classifier-free")):
            tried = sorted(pick(mine, guide=name), key=lambda f: f.row.about["scale"])
            at = [f.row.about["scale"] * 1.06 ** (i - 1) for f in tried]
            plot_intervals(ax, at, [difference(f, zero, metric) for f in tried], name, ms=3)
        ax.axhline(0, color="0.4", ls=":", lw=1)
        ticks = [f.row.about["scale"] for f in pick(mine, guide="vanilla")]
        ax.set(xscale="log", xlabel="scale $s$", title=metric)
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.tick_params(labelsize=8)
    line[0].set_ylabel(setting(zero), fontsize=8)
axes[0, 0].legend(fontsize=7)
fig.tight_layout()
plt.show()

# %% tags=["hide-input"]
for guide, (plan_name, conditional) in itertools.product(("vanilla", "robust", "wide", "classifier-free"), SETTINGS):
    tried = pick(sweep, guide=guide, plan=plan_name, conditional=conditional)
    if tried:
        best = chosen(tried)
        print(f"chosen: {guide} {best.row.about['scale']:g} ({setting(best)}), {best.n} repetitions of 200 images")

# %% tags=["hide-cell"]
samples_table(sweep)

# %% [markdown]
# ### Without a guide, vanilla, robust (Table 1), and the others
#
# On fresh seeds. The floor, real images in the place of generated ones, stands at the end.

# %% tags=["hide-input"]
large = pick(main, measure="samples", images=200, plan=("heun", "ddpm")) + pick(main, guide="diffusion classifier")
display(samples_table([f for f in large if f.row.about["guide"] != "wide"] + pick(main, measure="real")))

# %% [markdown]
# Every row that was run, those with fewer images beside the slow guide and those in 32 bits included, with what an image cost:

# %% tags=["hide-cell"]
samples_table(pick(main, measure="samples"), cost=True)


# %% [markdown]
# Differences on the same seeds, first less second. Where an interval holds 0, nothing was found. The figure shows them for the larger number of images; all of
# them are in the folded table.

# %% tags=["hide-cell"]
def both(a: str, b: str, rows: list, **words: object) -> list:
    """Pairs of rows of two guides in the same setting, of the same size."""
    found = []
    for first, second in itertools.product(pick(rows, guide=a, **words), pick(rows, guide=b, **words)):
        alike = ("plan", "conditional", "images", "dtype")
        if all(first.row.about[k] == second.row.about[k] for k in alike):
            found.append((first, second))
    return found


made_rows = pick(main, measure="samples")
named = [("vanilla", "none"), ("robust", "none"), ("robust", "vanilla"), ("classifier-free", "none"),
         ("classifier-free", "robust"), ("diffusion classifier", "none"), ("diffusion classifier", "robust")]
short = [pair for a, b in named for pair in both(a, b, made_rows, plan=("heun", "ddpm"))]
display(differences_table(short))

# %% mystnb={"figure": {"caption": "From the record: differences of two guides on the same seeds, at the scales chosen for each, with 95 % intervals over repetitions. Frechet distances: left is better. Precision and recall: right is better.", "name": "fig-guide-main"}, "image": {"alt": "Four panels of horizontal intervals around a line at zero, one line for each pair of guides, one mark for each setting; those of robust less vanilla lie at or near zero"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 4, figsize=(10, 3.7), sharey=True)
metrics = ("frechet", "frechet robust features", "precision", "recall")
labels = [pair for pair in named if pair[0] != "diffusion classifier"]
for ax, metric in zip(axes, metrics, strict=True):
    for i, (plan_name, conditional) in enumerate(SETTINGS):
        where = {"plan": plan_name, "conditional": conditional, "images": 200, "dtype": "fast"}
        found = [(k, pair) for k, (a, b) in enumerate(labels) for pair in both(a, b, made_rows, **where)]
        at = [-k + 0.2 * (1 - i) for k, _ in found]
        name = f"{plan_name}, {'class known' if conditional else 'unconditional'}"
        plot_intervals(ax, at, [difference(*pair, metric) for _, pair in found], name, True, marker="os^"[i], color=f"C{i}")
    ax.axvline(0, color="0.4", ls=":", lw=1)
    ax.set_title(metric, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", nbins=4)
axes[0].set_yticks([-k for k in range(len(labels))], [f"{a} - {b}" for a, b in labels])
fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=3)
fig.tight_layout(rect=(0, 0.08, 1, 1))
plt.show()

# %% [markdown]
# (sec-guide-chain)=
# ### With all 250 steps
#
# The `ddpm` rows have 25 steps, the paper's chain 250. Does the scale mean the same? By {eq}`eq-guide-ratio` the DDPM form moves the mean by a share of what
# the score form moves it, less than 1 by something of the order of a step. So in the limit of many steps $s$ means the same at any number of steps, and with
# few steps the same $s$ guides less. At the scales that were chosen with 25 steps, on the same seeds:

# %% tags=["hide-input", "wrap"]
for name, sigma in itertools.product(("ddpm", "ddpm250"), (0.1, 0.3, 1.0, 3.0, 10.0)):
    steps = len(PLANS[name].path) - 1
    print(f"{steps:3d} steps: {share(PLANS[name], sigma):.2f} of the score form's move at sigma {sigma:g}")
long_rows = pick(main, plan="ddpm250")
few_rows = [one(main, plan="ddpm", guide=f.row.about["guide"]) for f in long_rows]
display(samples_table(long_rows))
chain = [pair for a, b in named[:3] for pair in both(a, b, long_rows)]
display(differences_table(chain + list(zip(long_rows, few_rows, strict=True))))

# %% [markdown]
# ### Threat models (Table 4)
#
# Fifteen short trainings of the guide, one for each threat model and number of attack steps of the paper's table, everything else equal. One training a cell
# says nothing about what *another training of the same* would give. So the paper's own threat model, L2 0.5 with 7 steps, was trained with several seeds. The
# fifteen change the threat model and keep the seed (first weights, images and noise of the training), the others change the seed and keep the threat model.
# All images are made from the same noise.

# %% tags=["hide-input"]
SIZES = (("L2", 0.25), ("L2", 0.5), ("L2", 1.0), ("Linf", 4 / 255), ("Linf", 8 / 255))
PAPER, BOTH = {"norm": "L2", "eps": 0.5, "steps": 7}, {True: "class known", False: "unconditional"}


def trained(threat: dict | None, conditional: bool, seeds: tuple[int, ...] = (0,)) -> list[float]:
    """Frechet distances of short trainings, one a seed."""
    words = {"measure": "samples", "threat": threat, "conditional": conditional, "training seed": seeds}
    return of_seeds(pick(threats, **words), "frechet")


again = {c: trained(PAPER, c, tuple(range(5))) for c in BOTH}
grid = {
    c: [[trained({"norm": norm, "eps": eps, "steps": k}, c)[0] for k in (5, 7, 9)] for norm, eps in SIZES] for c in BOTH
}

# %% mystnb={"figure": {"caption": "Table 4 redone, from the record: squared Frechet distance in plain features by threat model and number of attack steps, one training each. The band and the circles at the left are trainings of the paper's own threat model (L2 0.5, 7 steps) with other seeds. Lower is better.", "name": "fig-guide-threats"}, "image": {"alt": "Two panels, one for each denoiser: fifteen marks in five groups of three over a grey band; most marks lie in the band or close to it"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.5))
size_names = [threat_name({"norm": norm, "eps": eps, "steps": 7}).split(",")[0] for norm, eps in SIZES]
for ax, conditional in zip(axes, BOTH, strict=True):
    ax.axhspan(min(again[conditional]), max(again[conditional]), color="0.5", alpha=0.2, lw=0)
    ax.plot([-1] * 5, again[conditional], "o", mfc="none", color="0.45", ms=6, label="5 seeds of L2 0.5, 7 steps")
    for k, (count, marker) in enumerate(zip((5, 7, 9), "os^", strict=True)):
        at = [x + 0.22 * (k - 1) for x in range(len(SIZES))]
        ax.plot(at, [line[k] for line in grid[conditional]], marker, color=f"C{k}", label=f"{count} steps")
    ax.set_xticks(range(-1, len(SIZES)), ["seeds", *size_names], fontsize=8)
    ax.set_title("denoiser knows the class" if conditional else "unconditional denoiser", fontsize=10)
    ax.set_ylabel("squared Frechet distance", fontsize=9)
fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="lower center", ncols=4)
fig.tight_layout(rect=(0, 0.08, 1, 1))
plt.show()

# %% [markdown]
# Does the choice of the threat model matter more than the seed of the training? Standard deviations of cells and of seeds, their ratio with its interval, and
# the F test, one-sided both ways. The seeds have few degrees of freedom, so that the interval of the ratio is wide:

# %% tags=["hide-input", "wrap"]
for c, name in BOTH.items():
    ratio = ratio_of_spreads([v for line in grid[c] for v in line], again[c])
    low, high = ratio.interval.low, ratio.interval.high
    word = "changes less than the seed" if high < 1 else "changes more than the seed" if low > 1 else "is not told from the seed"
    print(f"{name}: cells {ratio.cells:.2f}, seeds {ratio.seeds:.2f}, ratio {ratio.interval:.2f}; F test on {ratio.degrees[0]} and "
          f"{ratio.degrees[1]} degrees of freedom: p = {ratio.p:.3f} that cells differ more, {1 - ratio.p:.3f} that seeds do. "
          f"The choice {word}")

# %% [markdown]
# The table's own margins: means over the numbers of steps for each threat model, and over threat models for each number of steps, less the mean of all fifteen.
# The error of the intervals is what an additive model leaves in the table. It knows one seed only: an effect here may be one of this seed, and where it is
# smaller than the spread of the seeds another seed may turn it round.

# %% tags=["hide-input"]
found = {c: main_effects(grid[c]) for c in BOTH}
lines = []
for k, (labels_of, what) in enumerate(((size_names, "threat models"), (("5 steps", "7 steps", "9 steps"), "steps"))):
    for i, label in enumerate(labels_of):
        lines.append({"mean of": label} | {BOTH[c]: f"{found[c][k].effects[i]:.2f}" for c in BOTH})
    lines.append({"mean of": f"{what}: p of no difference"} | {BOTH[c]: f"{found[c][k].p:.2g}" for c in BOTH})
display(pd.DataFrame(lines).style.hide(axis="index"))


# %% [markdown]
# Beside the fifteen: no attack, no early stop, a large radius, one that grows with the noise, three steps. *Robust* is the accuracy at one noise level under
# the same attack for all. The last columns hold the Frechet distance less the mean of the seeds; their interval is that of *prediction*, where another training
# of the paper's own would fall with 95 %.

# %% tags=["hide-input"]
def training_line(threat: dict | None, number: int) -> dict[str, str]:
    """What a short training is good for, beside the seeds of the paper's own."""
    words = {"threat": threat, "training seed": number}
    accuracy = one(threats, measure="noisy", **words)
    line = {"threat": threat_name(threat), "training seed": str(number)}
    rates = {"clean": accuracy.accuracy("clean"), "robust": accuracy.accuracy("trained")}
    line |= {name: f"{100 * rate.value:.1f} %" for name, rate in rates.items()}
    line["alignment"] = f"{one(threats, measure='alignment', **words).mean('cosine'):.3f}"
    for c, what in BOTH.items():
        value = trained(threat, c, (number,))[0]
        line |= {f"frechet, {what}": f"{value:.2f}", f"less seeds, {what}": f"{beside(value, again[c]):.2f}"}
    return line


everything = [(f.row.about["threat"], f.row.about["training seed"]) for f in pick(threats, measure="noisy")]
others = [t for t, number in everything if number == 0 and (t is None or "radius" in t or "stop" in t or t["eps"] == 3 or t["steps"] == 3)]
display(pd.DataFrame([training_line(t, 0) for t in [*others, PAPER]]).style.hide(axis="index"))

# %% [markdown]
# All trainings, folded:

# %% tags=["hide-cell"]
pd.DataFrame([training_line(*each) for each in everything]).style.hide(axis="index")

# %% [markdown]
# :::{admonition} What the paper's tables say
# :class: note
# Table 1 (ImageNet, 50 000 images): FID 5.91 without a guide, 2.97 vanilla, 2.85 robust; precision 0.70, 0.78, 0.82; recall 0.65, 0.59, 0.56. Table 4
# (CIFAR-10, 10 000 images): FID between 7.60 and 7.67 for all fifteen threat models. Table 5: 7.58 to 7.79 robust, 7.62 to 7.87 vanilla, and 7.67 without. No
# repetition and no interval is reported, so that differences of a few hundredths cannot be told from those of another seed.
# :::

# %% [markdown]
# ### Does it guide better?
#
# Same seeds as in {ref}`sec-guide-samples`, at the scale of that section; and in the experiment each guide at the scale that the sweep chose for it. The
# *wide* guide is that of {ref}`sec-guide-wide`.

# %% mystnb={"figure": {"caption": "Same seeds, same classes, not selected. Rows: unguided, vanilla guide, wide guide.", "name": "fig-guide-wide-pairs"}, "image": {"alt": "Three rows of generated clothes; the pictures of a column are alike"}} tags=["hide-input"]
some = slice(0, n_wide)
wide_made = sample(denoiser, y_made[some], seeds_made[some], plan, wide, scale).x
rows = [made["unguided"].x[some], made["vanilla"].x[some], wide_made]
image_grid(torch.cat(rows).cpu(), columns=len(wide_made), size=0.5)
plt.show()

# %% tags=["hide-input", "wrap"]
beside_wide = {"plan": "heun", "images": 200, "dtype": "fast"}
display(samples_table(pick(main, **beside_wide, guide=("none", "vanilla", "robust", "wide"))))
pairs_wide = [pair for b in ("none", "vanilla", "robust") for pair in both("wide", b, made_rows, **beside_wide)]
display(differences_table(pairs_wide))

# %% [markdown]
# (sec-guide-verdict)=
# ## Verdicts
#
# By the one rule of the book ({doc}`/book/how_to_read`): a comparison of two guides takes their differences on the same seeds, repetition by repetition, by
# Student's test; the comparisons of one claim are corrected together. One comparison that goes against a claim is enough for *does not hold*.

# %%
groups = {"C3": "abcdefgh", "C4": "ab", "C5": "", "C6": "ab", "C8": "", "C9": "abc", "C10": "abcd"}
ids = [f"{group}{letter}" for group, letters in groups.items() for letter in letters or [""]]
claims_table(*[f"{name}{i}" for name in ids for i in (("1", "2", "3") if name in ("C3a", "C3b", "C3c", "C3d", "C3e") else ("",))])

# %% [markdown]
# :::{admonition} What these numbers are not
# :class: warning
# They are Fashion-MNIST, a denoiser and classifiers of a few hundred thousand parameters, trained for some thousand steps, and at most some hundred images a
# repetition. {cite:t}`kawar2023guidance` worked on ImageNet at 128 x 128. Nothing here confirms or refutes their numbers; it tests the reasons that they
# give.
# :::
#
# ### What was not run
#
# - ImageNet and CIFAR-10, in any form; the networks of the paper; variances that are learned; 50 000 images.
# - A survey. Nobody was asked.
# - Guides trained for as long as those of the paper. Ours are compared with each other at equal training. The three long ones (vanilla, robust, wide) were
#   trained once each: what their own seeds change is not in any interval of this page.
# - Frechet distances in Inception features.

# %% [markdown]
# - Four short trainings without early stopping, which would be pairs with the seeds of the paper's own threat model.
#
# ## Summary
#
# - A Frechet distance belongs to a network and a number of images. Compare at equal $n$, on the same seeds, with intervals.
# - The diffusion classifier and classifier-free guidance are guides of the same kind: differences of denoisers.
# - One training a cell compares nothing: first measure how far another seed of the training moves the number.
# - Robustness at a radius that can be seen, gradients that look like something, and better guidance are three properties. Each has to be measured.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-survey
# :::
# **By hand: the survey** (10 minutes, easy). Table 2 of the paper counts 200 pairs: at a threshold of 50 % the robust
# image is preferred in 61.5 %, the vanilla one in 31.5 %, neither in 7.0 %. At 60 % the row reads 51.0, 28.5, 28.5.
# Which percentage would make its last number consistent with the first two? And is the preference at 50 % significant
# over pairs, by a sign test? The text also counts 5018 answers, 40.4 % robust and 32.4 % vanilla. Why is a test on
# those too optimistic?
#
# :::{hint}
# :class: dropdown
# Pairs without a preference say nothing: `binomtest(a, a + b)`.
# :::

# %%
# your code here
consistent, p_value = None, None  # percent, and a p-value

# %%
# check
fine = None not in (consistent, p_value) and abs(consistent - 20.5) < 1e-6
fine = fine and abs(np.log10(p_value / 1.3e-5)) < 0.05
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-survey
# :label: sol-guide-survey
# :class: dropdown
# :::
# The row must sum to 100, and 51.0 + 28.5 + 28.5 = 108. Over pairs a sign test on 123 against 63 is clear. Answers
# about one pair are not independent, and neither are the answers of one rater. The pair is the unit of which there are
# 200. All of it is about *these* two classifiers: another training of each would be another pair of guides.

# %%
consistent = 100 - 51.0 - 28.5
table = ((50, 61.5, 31.5), (60, 51.0, 28.5), (70, 35.0, 13.5), (80, 21.5, 8.5))
for threshold, *shares in reversed(table):
    a, b = (round(2 * percent) for percent in shares)
    p_value = binomtest(a, a + b).pvalue
    print(f"threshold {threshold} %: {a} against {b} pairs, p = {p_value:.1e}")

# %% tags=["remove-cell"]
claim(p_value < 1e-4)

# %% [markdown]
# :::{solution-end}
# :::
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
# :label: ex-guide-trainings
# :::
# **How many trainings?** (10 minutes, medium). Another seed of the training moves a number by a standard deviation of
# 2. Two recipes differ by 3 in truth. One training of each, and the sign of the difference is believed: how often is it
# wrong? How many trainings of each make 1.96 standard errors of the difference smaller than 3?
#
# :::{hint}
# :class: dropdown
# The difference of two trainings has the standard deviation $2 \sqrt 2$. `scipy.stats.norm` has $\Phi$.
# :::

# %%
# your code here
wrong_sign, trainings = None, None  # a share, and a count of each

# %%
# check
tries = 3 + 2 * np.random.default_rng(seed).normal(size=(200_000, 2)) @ [1, -1]
fine = None not in (wrong_sign, trainings) and trainings == 4
fine = fine and abs(wrong_sign - (tries < 0).mean()) < 5e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-trainings
# :label: sol-guide-trainings
# :class: dropdown
# :::
# $\Phi(-3 / 2 \sqrt 2)$: one time in seven. And $1.96 \cdot 2 \sqrt{2 / k} < 3$ needs $k > 3.4$. Intervals over images
# do not help: they are about the images, not about the trainings.

# %%
from scipy.stats import norm

wrong_sign = float(norm.cdf(-3 / (2 * 2**0.5)))
trainings = next(k for k in range(1, 99) if 1.96 * 2 * (2 / k) ** 0.5 < 3)
print(f"wrong sign {wrong_sign:.3f}, {trainings} trainings of each")

# %% tags=["remove-cell"]
claim(0.1 < wrong_sign < 0.2)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Guidance without a classifier: {cite:t}`ho2022classifierfree`. Frechet distance in Inception
# features: {cite:t}`heusel2017gans`; its bias: {cite:t}`chong2020effectively`. Precision and recall: {cite:t}`kynkaanniemi2019improved`.
