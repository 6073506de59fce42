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
# (nb-multihead-work)=
# # The heads at work
#
# :::{admonition} What you will be able to do
# :class: tip
# - Measure what one pass for all classes costs in accuracy, and saves in time.
# - Judge the claims on robustness and samples from measured numbers.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-multihead`. Covers Table 3, Figure 4 and appendix B.2 of {cite:t}`chen2024rdc`.
# Larger runs are read from the records in
# `results/`, where they exist.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = (
    "fashion-mini"  # data set, and its single-head denoiser, the teacher
)
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels of the classifiers
sigma_min: float = 0.1  # lowest noise level, model units
n_clean: int = 100  # test images that both classify
n_attack: int = 8  # test images attacked
steps: int = 8  # gradient steps of PGD
eps: list[str | float] = [2 / 255, 8 / 255]  # Linf radii, image units
sampler_steps: int = 18  # steps of the sampler
per_class: int = 8  # samples of each class that are shown
n_frechet: int = 250  # samples for the distance; ten times a whole number

# %% tags=["hide-input"]
import time

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, predict, robust_accuracy
from rdc.guide.metrics import FeatureNetwork, frechet_distance
from rdc.guide.plan import SamplingPlan, edm_path
from rdc.guide.sampling import sample
from rdc.models import build
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    glue,
    show_table,
    show_verdicts,
    stored_cells,
    stored_rows,
    stored_table,
)
from rdc.plots import image_grid, style
from rdc.rng import generator, randn
from rdc.runs.verdict import Comparison, decide, decide_all
from rdc.schedule import levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
teacher = load_denoiser(data, device)
heads = load_denoiser(heads_name, device)
chosen = levels("elbo", count, sigma_min=sigma_min)
slow = DiffusionClassifier(teacher, chosen, seed=seed)
quick = DiffusionClassifier(
    heads, chosen, seed=seed, chunk=256 * heads.num_classes
)  # 256 passes at a time

# %% [markdown]
# **Are the heads as good as their teacher?** They classify, they are attacked, and they draw, in the place of a network that needs ten times as many passes.

# %% tags=["hide-input"]
classes = len(test.classes)
label = torch.arange(classes, device=device).repeat(n_frechet // classes)
plan = SamplingPlan(edm_path(sampler_steps, sigma_min=0.002))
made = {
    name: sample(net, label, range(len(label)), plan).x
    for name, net in (("teacher", teacher), ("heads", heads))
}
apart = float((made["teacher"] - made["heads"]).abs().mean())
other = float((made["teacher"] - made["teacher"].roll(classes, 0)).abs().mean())
print(
    f"mean difference of a pixel: {apart:.3f} between teacher and heads on "
    f"the same seed, {other:.3f} between two seeds of a class"
)

# %% mystnb={"figure": {"caption": "Samples, one class a row: the teacher (left half) and the heads (right half), the same starting noise in the same place.", "name": "fig-mh-samples"}, "image": {"alt": "Grid of generated pictures of clothes, shoes and bags, one class a row, two halves that look alike", "width": "100%"}} tags=["hide-input"]
shown = [
    made[name][: per_class * classes]
    .unflatten(0, (per_class, classes))
    .transpose(0, 1)
    for name in made
]
image_grid(
    torch.cat(shown, dim=1).flatten(0, 1).cpu(), columns=2 * per_class, size=0.5
)
plt.show()


# %% [markdown]
# (sec-mh-classify)=
# ## The heads as a classifier
#
# Teacher and heads classify the same images, with the same levels and noise, in turns, so that both meet the same machine.


# %% tags=["hide-input"]
def compare(
    x: Tensor, block: int = 25
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Predictions of both, and the seconds of each for an image; blocks of
    images take turns.
    """
    models = {"teacher": slow, "heads": quick}
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    for model in models.values():
        predict(model, x[:4])  # warm up
    for i, images in enumerate(x.split(block)):
        for name in list(models)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            parts[name].append(predict(models[name], images).cpu())
            seconds[name] += (time.perf_counter() - start) / len(x)
    return {name: torch.cat(p) for name, p in parts.items()}, seconds


said, seconds = compare(test.x[:n_clean].to(device))
truth = test.y[:n_clean]
right = {name: value == truth for name, value in said.items()}
clean = {
    name: Accuracy.of(int(value.sum()), n_clean)
    for name, value in right.items()
}
worse = decide(right["teacher"].tolist(), right["heads"].tolist(), effect=0.02)
agree = Accuracy.of(int((said["teacher"] == said["heads"]).sum()), n_clean)
speed = seconds["teacher"] / seconds["heads"]
show_table(
    [
        {"classifier": name, "right": str(clean[name]), "ms an image": f"{1000 * seconds[name]:.1f}"}
        for name in said
    ],
    f"Clean images; the same answer for {agree}; {speed:.1f} times faster, passes fall by a factor of {teacher.num_classes}",
)
show_verdicts({"the teacher is right more often": worse}, "The same images, one by one")

# %% tags=["remove-cell"]
glue("mh-speed", f"{speed:.1f}")
glue("mh-agree", f"{agree}")
claim(speed > 2)
claim(clean["heads"].high > clean["teacher"].low - 0.05)

# %% [markdown]
# Passes fall by the number of classes, time by a factor of {glue:text}`mh-speed`: each pass costs more than one of the teacher's. The
# same answer was given for {glue:text}`mh-agree`. The verdict is that of the book's one rule
# ({py:mod}`rdc.runs.verdict`), which looks only at the images on which exactly one of the two is right.
#
# How can heads classify whose class differences err as in {numref}`fig-mh-error`? A mean square counts every direction, the logit
# {eq}`eq-mh-logit` only the component along $r$ and the length; and not every level matters. The losses of all classes and levels
# ({py:meth}`rdc.classify.DiffusionClassifier.losses`) say what each level would decide alone.

# %% tags=["hide-output"]
by_level: dict[str, Tensor] = {}
for name, model in (("teacher", slow), ("heads", quick)):
    votes = (
        model.losses(test.x[:n_clean].to(device)).argmin(dim=1).cpu()
    )  # (N, T)
    by_level[name] = (votes == truth[:, None]).double().mean(dim=0)
rows = [
    {"sigma": f"{s:.2f}"}
    | {name: f"{n_clean * v[i]:.0f}/{n_clean}" for name, v in by_level.items()}
    for i, s in enumerate(chosen.sigma.tolist())
]
show_table(rows, "Images right from a single noise level")

# %% mystnb={"figure": {"caption": "Accuracy of teacher and heads from a single noise level, by level, and from all of them together (horizontal lines); chance is 1/K.", "name": "fig-mh-levels"}, "image": {"alt": "Accuracy by noise level for teacher and heads", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))
for i, (name, ls) in enumerate((("teacher", "-"), ("heads", "--"))):
    ax.plot(
        chosen.sigma,
        100 * by_level[name],
        ls,
        color=f"C{i}",
        marker="o",
        ms=4,
        label=name,
    )
    ax.axhline(100 * clean[name].value, ls=ls, color=f"C{i}", lw=1, alpha=0.6)
ax.set(
    xscale="log",
    ylim=(0, 103),
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="accuracy (%)",
)
ax.legend()
plt.show()

# %% [markdown]
# On this page, with few levels, the verdict goes against the heads. The same comparison with more images and levels, from
# the record:

# %% tags=["hide-input"]
kept: dict[tuple[float, str], list[bool]] = {}
for found in stored_cells("multihead", what="compared"):
    place = found.row.about["from"], found.row.about["network"]
    kept[place] = list(found.outcome("clean").values())
lowest = list(dict.fromkeys(low for low, _ in kept))
show_table(
    [
        {"lowest level": f"{low:g}"}
        | {name: str(Accuracy.of(sum(bits), len(bits))) for (at, name), bits in kept.items() if at == low}
        for low in lowest
    ],
    "Clean images right, from the record",
)
show_verdicts(
    {
        f"heads less than two points worse, from {low:g}": decide(kept[low, "heads"], kept[low, "teacher"], bound=-0.02)
        for low in lowest
    },
    "The same images, one by one",
)
chosen_on: dict[float, dict[str, str]] = {}
for found in stored_cells("multihead", what="chosen on"):
    line = chosen_on.setdefault(found.row.about["from"], {"lowest level": f"{found.row.about['from']:g}"})
    line[found.row.about["network"]] = str(found.accuracy("clean"))
show_table(list(chosen_on.values()), "Right by the lowest level, on other images, on which the second range was chosen")

# %% [markdown]
# What the heads get wrong lies at low noise, where the differences are smallest ({numref}`fig-mh-error`) and the likelihood weight is
# largest. Leaving those levels out costs the teacher nothing either: what they add to the higher levels is little, for both.
#
# (sec-mh-robust)=
# ## Robustness
#
# A student that copies the teacher on images of the data might differ from it on adversarial ones. We attack both classifiers, each
# with its own gradient, and then judge each on the other's adversarial images: an attack on the cheap student may serve against the expensive
# teacher.

# %% tags=["hide-input"]
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
robust: dict[tuple[float, str], Accuracy] = {}
crossed: dict[tuple[float, str], Accuracy] = {}
rows = []
for radius in eps:
    start = time.perf_counter()
    x_adv = {
        name: pgd(model, x, y, eps=radius, steps=steps, seed=seed)
        for name, model in (("teacher", slow), ("heads", quick))
    }
    for name, model, source in (
        ("teacher", slow, "heads"),
        ("heads", quick, "teacher"),
    ):
        robust[radius, name] = robust_accuracy(model, x, y, x_adv[name])
        crossed[radius, name] = robust_accuracy(model, x, y, x_adv[source])
        rows.append(
            {
                "Linf": f"{255 * radius:.0f}/255",
                "classifier": name,
                "on its own adversarial images": str(robust[radius, name]),
                "on the other's": str(crossed[radius, name]),
            }
        )
show_table(rows, f"Images right after PGD-{steps} on the margin; fixed noise, known to the attacker")

# %% tags=["remove-cell"]
# the own gradient is not weaker than a transferred one, up to the luck of few images
for key in robust:
    claim(robust[key].correct <= crossed[key].correct + 2)

# %% [markdown]
# On the larger record, over the attacks of its suite:

# %% tags=["hide-input"]
suite = [
    r
    for r in stored_rows("rdc-gradient", "rdc-suite")
    if r["model"] in ("DC", "DC single-head")
]
pairs = [
    (a, b)
    for a in suite
    if a["model"] == "DC single-head"
    for b in suite
    if b["model"] == "DC"
    if all(
        a[k] == b[k]
        for k in ("table", "norm", "eps", "attack", "protocol", "gradient")
    )
    and set(a["images"]) <= set(b["images"])
]
rows, verdicts = [], {}
for a, b in pairs:
    keeps = [[i not in r["wrong"] for i in a["images"]] for r in (a, b)]
    broken = sum(not v for v in keeps[1])
    words = f"{a['norm']} {255 * a['eps']:.3g}/255, {a['attack']}"
    single, several = (f"{sum(v)}/{len(v)}" for v in keeps)
    rows.append({"attack": words, "single head": single, "heads": several})
    verdicts[f"single head more robust, {words}"] = decide(*keeps, broken=broken)
show_table(rows, "Images right, single head and heads on the same images")
show_verdicts(verdicts, "The same images, one by one")
stored_table(
    [r for r in suite if r["table"] == "suite" and r["gradient"] != "union"],
    "Heads as a classifier, under attack",
)

# %% [markdown]
# :::{admonition} What the paper's table says
# :class: note
# Table 3 of {cite:t}`chen2024rdc` gives 82.42 % average {term}`robust accuracy` for the full defence with the single-head network and 78.85 % with the
# {term}`multi-head` one, at 9.86 and 1.43 seconds an image. Appendix B.2 says that robustness and accuracy "remain intact". By the table
# the heads gain 1.67 points of clean accuracy and lose 3.57 of robust accuracy, and time falls by 6.9, not by the ten of the passes.
# :::
#
# (sec-mh-samples)=
# ## Samples
#
# Figure 4 of the paper shows images made by the multi-head network. We use the deterministic sampler of {ref}`nb-diffusion` (Heun's
# method on the probability flow), with the same starting noise for teacher and heads.
#
# To compare with a number, the usual one is the {term}`Frechet distance` of two Gaussians, fitted to features of made and of real images:
#
# ```{math}
# :label: eq-mh-frechet
# d^2 = \norm{\mu_1 - \mu_2}^2 + \operatorname{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big).
# ```
#
# The well-known FID takes the features of an Inception network trained on ImageNet, and tens of thousands of images. Ours is *not* an FID: it
# takes the last features of the book's reference network, and a few hundred images. It can only be
# compared with itself, at the same number of images. So we add its floor: other real images in the place of made ones.

# %% tags=["hide-input"]
cnn = build("cnn", data, device)
cnn_features = FeatureNetwork("cnn", cnn)
real = cnn_features(test.x.to(device)).cpu()
sets = {
    name: cnn_features(x).cpu()
    for name, x in (
        made | {"real images": train.x[:n_frechet].to(device)}
    ).items()
}
distance = {
    name: frechet_distance(features, real) for name, features in sets.items()
}
with torch.no_grad():
    meant = {
        name: Accuracy.of(int((cnn(x).argmax(1) == label).sum()), len(label))
        for name, x in made.items()
    }
show_table(
    [
        {"images": name, "squared distance": f"{value:.3f}", "seen as the class meant": str(meant.get(name, "-"))}
        for name, value in distance.items()
    ],
    f"Frechet distance of {n_frechet} images to the test images",
)

# %% [markdown]
# The starting noise is shared, so we resample pairs: 200 {term}`bootstrap` samples of the seeds give an interval for the difference of the two distances.

# %%
picks = [
    torch.randint(
        n_frechet, (n_frechet,), generator=generator(seed, "bootstrap", i)
    )
    for i in range(200)
]
difference = torch.tensor(
    [
        frechet_distance(sets["heads"][pick], real)
        - frechet_distance(sets["teacher"][pick], real)
        for pick in picks
    ]
)
low_d, high_d = (
    float(v) for v in torch.quantile(difference, torch.tensor([0.025, 0.975]))
)
print(
    f"heads minus teacher: {distance['heads'] - distance['teacher']:+.3f}, 95 "
    f"% bootstrap interval [{low_d:+.3f}, {high_d:+.3f}]"
)

# %% tags=["remove-cell"]
claim(meant["heads"].value > 0.25 and low_d < high_d)
claim(
    distance["heads"] < 10 * distance["real images"] + 10 * distance["teacher"],
    "not noise",
)

# %% [markdown]
# ## Verdicts
#
# First what the few images of this page say of robustness and of samples, then the claims, from the record. They ask different things. The
# first claim ({claim}`A25`) is about the accuracy on *clean* images, and allows the heads five points less; with two points less, above,
# the same images decide nothing. The robustness
# of heads is another claim ({claim}`A25a`), decided on the digits; the few attacked images of this page decide nothing about it.
# For the samples ({claim}`A26`) there is no record.

# %% tags=["hide-input"]
lines: list[tuple[str, Comparison]] = []


def counted(value: Accuracy) -> tuple[int, int]:
    """Counts of an accuracy."""
    return value.correct, value.n


for radius in eps:
    a, b = (counted(robust[radius, name]) for name in ("heads", "teacher"))
    lines.append(
        (
            f"heads as robust as the teacher, less five points, Linf {255 * radius:.0f}/255",
            Comparison(a, b, bound=-0.05),
        )
    )
lines.append(
    (
        "samples of the heads show their class as often, less five points",
        Comparison(
            counted(meant["heads"]), counted(meant["teacher"]), bound=-0.05
        ),
    )
)

_, parts = decide_all([c for _, c in lines])
show_verdicts(dict(zip([statement for statement, _ in lines], parts, strict=True)), "On this page")
claims_table("A25", "A25a", "A26")

# %% [markdown]
# ## What to remember
#
# - Passes fall by the number of classes, time by less: each pass costs more.
# - The heads err at low noise, where the differences are smallest; leaving those levels out costs the teacher nothing either.
# - Attack heads and teacher each with its own gradient, and judge each on the other's adversarial images too.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-mh-transfer
# :::
# **Whose adversarial images?** (5 minutes, easy). An attacker can afford only the heads. How many of the attacked images does the teacher lose to its own attack, and how many to the one on the heads, at the largest radius?
#
# :::{hint}
# :class: dropdown
# `robust` and `crossed` count the images that are left, by radius and model.
# :::

# %%
# your code here
own, transferred = None, None  # images that the teacher loses

# %%
# check
lost = [n_attack - r[eps[-1], "teacher"].correct for r in (robust, crossed)]
fine = [own, transferred] == lost
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-transfer
# :label: sol-mh-transfer
# :class: dropdown
# :::
# Where the two counts are close, an attack on the cheap student serves against the expensive teacher. Where the second is far smaller,
# the images break the student only, and an evaluation of the teacher needs the teacher's own gradient.

# %%
for radius in eps:
    own = n_attack - robust[radius, "teacher"].correct
    transferred = n_attack - crossed[radius, "teacher"].correct
    print(
        f"{255 * radius:.0f}/255: teacher loses {own} to its own attack, "
        f"{transferred} to that on the heads"
    )

# %% tags=["remove-cell"]
claim(transferred <= own + 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-cost
# :::
# **What a pass costs** (5 minutes, easy). The heads take a tenth of the passes, and a larger part of the time. How many passes of the teacher does one of theirs cost? Use the measured `seconds` of this page.
#
# :::{hint}
# :class: dropdown
# Time is passes times the cost of one.
# :::

# %%
# your code here
pass_cost = None  # in passes of the teacher

# %%
# check
fine = pass_cost is not None and abs(pass_cost * speed - 10) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-cost
# :label: sol-mh-cost
# :class: dropdown
# :::
# The ratio of the times is $K / c$, with $c$ the cost of a pass. So $c$ is the number of classes over the factor by which the heads are faster. The branch form runs two networks in a pass.

# %%
pass_cost = teacher.num_classes * seconds["heads"] / seconds["teacher"]
print(f"a pass of the heads costs {pass_cost:.1f} of the teacher's")

# %% tags=["remove-cell"]
claim(pass_cost > 0.5)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-frechet
# :::
# **A distance with a closed form** (10 minutes, medium). What is $d^2$ of {eq}`eq-mh-frechet` between the normal distributions $\mathcal N(0, 1)$ and $\mathcal N(1, 4)$ on the line? And what does {py:func}`rdc.guide.metrics.frechet_distance` say of 250 points of the first and another 250 points of it?
#
# :::{hint}
# :class: dropdown
# In one dimension the trace is the square of a difference.
# :::

# %%
# your code here
squared, floor = None, None

# %%
# check
fine = squared == 2 and 0 < (floor or 0) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-frechet
# :label: sol-mh-frechet
# :class: dropdown
# :::
# $(0 - 1)^2 + (1 - 2)^2 = 2$. Two samples of one distribution are at a distance above zero, which falls like one over their number: hence the floor in the table, and no comparison at different numbers of images.

# %%
points = randn((4, 250, 1), seed, "frechet")
squared = round((0 - 1) ** 2 + (1 - 2) ** 2)
floor = frechet_distance(points[0], points[1])
wide = frechet_distance(points[2], 1 + 2 * points[3])
print(f"closed form {squared}, from 250 points {wide:.2f}; floor {floor:.4f}")

# %% tags=["remove-cell"]
claim(abs(wide - squared) < 0.8 and 0 < floor < 0.1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The claims are those of {cite:t}`chen2024rdc`; the sampler is due to {cite:t}`karras2022elucidating`. The images are those of {cite:t}`xiao2017fashion`.
