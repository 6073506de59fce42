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
# - Make pairs of images that differ only in the guide, and look at them without choosing.
# - Show failures that were picked by a rule, and count both kinds.
# - Say why the diffusion classifier and classifier-free guidance are guides of the same kind.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-guidance-classifiers`. Covers Figures 2, 5 and 6 and Table 2 of {cite:t}`kawar2023guidance`.
#
# The images of this page are few, so that it runs in minutes. {ref}`nb-guidance-numbers` says how to judge images by numbers,
# {ref}`nb-guidance-record` has the larger runs.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
denoiser_name: str = "fashion-mini"  # guided; it knows the class
heads_name: str = "fashion-mini-multihead"  # of the diffusion classifier
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
wide_name: str = "fashion-mini-wide"
pairs_per_class: int = 10  # same-seed pairs of samples of each class
path_levels: int = 12  # levels of the sampler for them
n_wide: int = 12  # same-seed samples of the wide guide
scale: float = 1.0  # guidance scale of the shown pairs, for all classifiers
free_scale: float = 2.0  # scale where the guide alone knows the class

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
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
    RatioGuide,
    SamplingPlan,
    agreement,
    edm_path,
    load_classifier,
    sample,
)
from rdc.notebook import check_parameters, claim, close_to
from rdc.plots import image_grid, style
from rdc.runs.verdict import decide

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
classes = len(test.classes)
names = {"vanilla": vanilla_name, "robust": robust_name, "wide": wide_name}
guides = {
    name: ClassifierGuide(load_classifier(file, device))
    for name, file in names.items()
}
wide = guides.pop("wide")
denoiser = load_denoiser(denoiser_name, device, fast_dtype(device))
heads = load_denoiser(heads_name, device, fast_dtype(device))
candidates = guides | {"diffusion classifier": DiffusionGuide(heads, seed=seed)}
judge_net = reference_network("cnn", data, device)

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
    print(f"{name:9s} the judge sees the class in {seen}")
pairs = (("vanilla", "unguided"), ("robust", "unguided"), ("robust", "vanilla"))
for a, b in pairs:
    gap = float((made[a].x - made[b].x).abs().mean())
    print(f"mean difference of a pixel, {a} - {b}: {gap:.3f}")
other_seed = float(
    (made["unguided"].x - made["unguided"].x.roll(classes, 0)).abs().mean()
)
print(f"two seeds: {other_seed:.3f}")

# %% mystnb={"figure": {"caption": "Same seeds, same classes (Figure 2 of the paper): in each block of three rows unguided, vanilla guide, robust guide; one class a column. Not selected.", "name": "fig-guide-pairs"}, "image": {"alt": "Two blocks of three rows of generated clothes; within a block the pictures of a column are alike"}} tags=["hide-input"]
blocks = [
    made[name].x[k * classes : (k + 1) * classes]
    for k in range(2)
    for name in made
]
image_grid(torch.cat(blocks).cpu(), columns=classes, size=0.5)
plt.show()

# %% [markdown]
# Which row is better? Nobody should judge that knowing which is which. A page of this book shows such pairs in random order, without names, and counts your
# choices: {ref}`blind-pairs`.
#
# The same with the *wide* guide, trained at six times the radius ({ref}`sec-guide-wide`):

# %% mystnb={"figure": {"caption": "Same seeds, same classes, not selected. Rows: unguided, vanilla guide, wide guide.", "name": "fig-guide-wide-pairs"}, "image": {"alt": "Three rows of generated clothes; the pictures of a column are alike"}} tags=["hide-input"]
some = slice(0, n_wide)
wide_made = sample(
    denoiser, y_made[some], seeds_made[some], plan, wide, scale
).x
rows = [made["unguided"].x[some], made["vanilla"].x[some], wide_made]
image_grid(torch.cat(rows).cpu(), columns=len(wide_made), size=0.5)
plt.show()

# %% [markdown]
# ### Along the path
#
# What does the denoiser make of the guided image on its way (Figure 5)? We take the pair in which the two guides disagree most.

# %% mystnb={"figure": {"caption": "The denoised image at every level of the path, noise falling from left to right, for the pair with the largest difference. Rows: unguided, vanilla, robust.", "name": "fig-guide-path"}, "image": {"alt": "Three rows of pictures that start as a grey blur and become sharp clothes"}} tags=["hide-input"]
most = int(
    (made["vanilla"].z - made["robust"].z).flatten(1).norm(dim=1).argmax()
)
seen = ", ".join(
    f"{test.classes[int(v[most])]} ({name})" for name, v in said.items()
)
print(
    f"class asked for: {test.classes[int(y_made[most])]}; the judge sees {seen}"
)
image_grid(
    torch.cat(
        [from_model(s.estimates[most]).clamp(0, 1) for s in made.values()]
    ).cpu(),
    columns=path_levels,
    size=0.5,
)
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
    print(f"seed {seeds_made[i]}: {wanted}, seen as {seen}")

# %% mystnb={"figure": {"caption": "The failures: the first ten pairs in which the judge agrees with the vanilla image and not with the robust one. Rows: vanilla, robust.", "name": "fig-guide-failures"}, "image": {"alt": "Two rows of generated clothes, one pair a column", "width": "80%"}} tags=["hide-input"]
if worse:
    image_grid(
        torch.cat([made[name].x[worse] for name in guides]).cpu(),
        columns=len(worse),
        size=0.5,
    )
    plt.show()
else:
    print("no such pair on this page")

# %% [markdown]
# ## When only the guide knows the class
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
free_guides = {
    "none": None,
    **candidates,
    "classifier-free": RatioGuide(denoiser),
}
free: dict[str, Tensor] = {}
for name, guide in free_guides.items():
    slow = name == "diffusion classifier"  # makes fewer
    count = classes if slow else len(y_made) // 2
    free[name] = sample(
        denoiser, y_made[:count], seeds_made[:count], alone, guide, free_scale
    ).x
    seen = agreement(judge_net, free[name], y_made[:count])
    print(f"{name:21s} the judge sees the class in {seen}")

# %% mystnb={"figure": {"caption": "An unconditional denoiser, and the class from the guide alone, one class a column, same seeds. Rows: no guide, vanilla, robust, diffusion classifier, classifier-free.", "name": "fig-guide-free"}, "image": {"alt": "Five rows of generated clothes; in the first row the classes are random, in the others mostly those of the columns"}} tags=["hide-input"]
print(
    f"{free_scale:g} is the scale of all guides; columns: {', '.join(test.classes)}"
)
image_grid(
    torch.cat([x[:classes] for x in free.values()]).cpu(),
    columns=classes,
    size=0.5,
)
plt.show()

# %% [markdown]
# ## What to remember
#
# - An image follows from its seed and class: two guides on the same seeds make pairs, and only the guide differs.
# - Examples say something if a rule picks them that was fixed beforehand, and the opposite cases are counted, too.
# - The diffusion classifier and classifier-free guidance are guides of the same kind: differences of denoisers.
#
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
# :label: ex-guide-chosen
# :::
# **Chosen pairs** (5 minutes, easy). Two guides are equally good: in each pair either image is the better one with probability $\frac12$. A figure shows six
# pairs, and in all of them the first guide did better. How probable is such a figure, if the six are picked at random?
# And if its author may choose them from a hundred pairs?
#
# :::{hint}
# :class: dropdown
# Six fair coins. Then: at least six heads among a hundred, `binom.sf`.
# :::

# %%
# your code here
at_random, by_choice = None, None  # probabilities

# %%
# check
fine = close_to(at_random, 1 / 64, within=5e-4)
fine = fine and close_to(by_choice, 1, within=1e-6)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-chosen
# :label: sol-guide-chosen
# :class: dropdown
# :::
# One in 64, and a certainty. So a figure of chosen pairs says nothing, and the rule that picked them says everything.

# %%
from scipy.stats import binom

at_random, by_choice = 0.5**6, float(binom.sf(5, 100, 0.5))
print(f"at random {at_random:.4f}, by choice {by_choice:.6f}")

# %% tags=["remove-cell"]
claim(at_random < 0.05 and by_choice > 0.999)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-weights
# :::
# **Two ways to write it** (5 minutes, easy). Equation {eq}`eq-guide-free` starts from the unconditional denoiser. Others start from the conditional one and write
# $D_y + w\, (D_y - D)$. Which $w$ belongs to $s = 2$, and which to no guidance at all, $D$?
#
# :::{hint}
# :class: dropdown
# Collect the factors of $D_y$ and of $D$.
# :::

# %%
# your code here
w_two, w_none = None, None

# %%
# check
ratio = 0.25  # stands for D_y - D
fine = None not in (w_two, w_none)
fine = fine and abs((1 + w_two) * ratio - 2 * ratio) < 1e-9
fine = fine and abs((1 + w_none) * ratio) < 1e-9
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-weights
# :label: sol-guide-weights
# :class: dropdown
# :::
# $D + s\, (D_y - D) = D_y + (s - 1)(D_y - D)$, so $w = s - 1$: 1 for $s = 2$, and $-1$ for none. At $w = 0$ it samples the
# class as it is. Two papers that print the same number may mean different scales.

# %%
w_two, w_none = 2 - 1, 0 - 1
print(f"w = {w_two} for s = 2, w = {w_none} for no guidance")

# %% tags=["remove-cell"]
claim((w_two, w_none) == (1, -1))

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Guidance without a classifier: {cite:t}`ho2022classifierfree`. The sampler:
# {cite:t}`karras2022elucidating`.
