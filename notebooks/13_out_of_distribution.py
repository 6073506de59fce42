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
# (nb-ood)=
# # Out of distribution
#
# :::{admonition} What you will be able to do
# :class: tip
# - Compute the likelihood of an image by the probability flow of a {term}`denoiser`, and check it against a closed form.
# - Say which corruptions bits per dimension detect, with an interval, and why blur is not one of them.
# - Say what a classifier by these likelihoods keeps of its accuracy, and what it costs.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-diffusion`, {ref}`nb-optimal`. Covers Figure 3 and appendix B.5 of
# {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
severity: int = 3  # of the corruptions that are drawn and compared
image: int = 3  # the test image that is drawn
flow_steps: list[int] = [8, 16, 32, 64, 128]  # steps of the flow in the check
n_signs: int = 3  # images of the check of the signs

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from rdc.attack.losses import margin
from rdc.classify.flow import flow_grid, flow_log_density, probes
from rdc.data import load
from rdc.data.corruptions import CORRUPTIONS, corrupt
from rdc.denoise import OptimalDenoiser
from rdc.models import build
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    glue,
    needs,
    show_table,
    stored_cells,
)
from rdc.plots import image_grid, style
from rdc.rng import rand, randn
from rdc.runs.statistics import Interval, auroc

check_parameters()
style()
test = load("fashion-mini")
needs(0 <= image < len(test), f"there are {len(test)} test images")

# %% [markdown]
# A density knows what its data look like. So it should notice images that do not. The paper reports that bits per
# dimension tell blurred and noisy images of CIFAR-10-C from clean ones, but struggle with fog and frost. Here
# is our
# own set, on Fashion-MNIST:

# %% mystnb={"figure": {"caption": "One test image and its eight corruptions.", "name": "fig-ood-images"}, "image": {"alt": "A garment, clean, with noise, blurred, behind clouds, with bright ridges, brighter, with less contrast, in coarse pixels"}} tags=["hide-input"]
x = test.x[image : image + 1]
seen = [x, *(corrupt(x, name, severity, [image], seed) for name in CORRUPTIONS)]
titles = ["clean", *(name.replace("-", "\n") for name in CORRUPTIONS)]
image_grid(torch.cat(seen), columns=5, titles=titles, size=1.3)
plt.show()

# %% [markdown]
# ## The likelihood of an image
#
# Noise can be added without noise: the *probability flow* {cite:p}`song2021score` moves points so that their
# density at every level is that of noisy images,
#
# ```{math}
# :label: eq-ood-flow
# \begin{aligned}
# \frac{dz}{d\sigma} &= \frac{z - D(z, \sigma)}{\sigma}, \\
# \log p_a(z_a) &= \log p_b(z_b) + n \log \frac ba
# - \int_a^b \operatorname{tr} \frac{\partial D}{\partial z}\, \frac{d\sigma}\sigma .
# \end{aligned}
# ```
#
# The first part says that the score is $(D - z) / \sigma^2$. The second one is the change of variables: along a
# flow
# $\dot z = f$ the log-density falls by the divergence of $f$, here $(n - \operatorname{tr} \partial D /
# \partial z) / \sigma$. At a large
# $\sigma = b$ the density is nearly $\mathcal N(0, b^2 I)$. The trace is estimated by random signs.
#
# A mixture of five images with two pixels has a closed form. Heun's steps have an error of second order: with enough of
# them it falls about fourfold when the steps double.

# %%
points = rand((5, 1, 1, 2), seed, "points").double()
optimal = OptimalDenoiser(points, torch.tensor([0, 0, 0, 0, 0]))
z = 2 * rand((20, 1, 1, 2), seed, "z").double() - 1
exact, signs = optimal.log_density(z, 0.2)[:, 0], probes((1, 1, 2), 0, seed, z)
errors = {}
for count in flow_steps:
    grid = flow_grid(count, 0.2, 20.0)
    found = flow_log_density(
        optimal,
        z,
        grid,
        signs,
        prior=lambda end: optimal.log_density(end, 20.0)[:, 0],
    )
    errors[count] = float((found - exact).abs().max())
    print(f"{count:4d} steps: largest error {errors[count]:.4f} nats")

# %% tags=["remove-cell"]
claim(3 < errors[flow_steps[-2]] / errors[flow_steps[-1]] < 5)

# %% [markdown]
# *Bits per dimension* are $-\log_2 p / n + \log_2 \tfrac{255}2$, for 255 steps of grey on $[-1, 1]$. Here $p$ is the density
# at $\sigma = 0.1$, not at 0: most pixels of Fashion-MNIST are exactly black, and their density has no bound. The *bound* is
# the diffusion loss in the same units.
#
# ## Which corruptions are noticed?
#
# The {term}`AUROC` is how often a corrupted image has more bits than a clean one: one half is a toss of a coin. Below
# one half
# corrupted images look *more* likely than clean ones.


# %%
def by_image(**words: object) -> dict[str, dict[int, float]]:
    """The stored numbers of a row."""
    rows = stored_cells("ood", **words)
    names = ("flow", "elbo", "exact")
    return {n: rows[0].value(n) for n in names if rows and rows[0].value(n)}


def separation(
    density: str, score: str, name: str, level: int
) -> Interval | None:
    """AUROC of corrupted images, or digits, against clean images."""
    bad = by_image(density=density, corruption=name, severity=level).get(score)
    good = by_image(density=density, corruption="none").get(score)
    if not bad or not good:
        return None
    paired = name != "digits"  # of the same images
    return auroc(list(bad.values()), list(good.values()), paired=paired)


kinds = {
    "flow": ("trained", "flow"),
    "bound": ("trained", "elbo"),
    "exact, optimal denoiser": ("optimal", "exact"),
}
cases = {**dict.fromkeys(CORRUPTIONS, severity), "digits": 0}
areas = {
    (kind, name): separation(*which, name, level)
    for kind, which in kinds.items()
    for name, level in cases.items()
}

# %% mystnb={"figure": {"caption": "AUROC of bits per dimension with 95 % intervals (DeLong), 128 test images and their corruptions at severity 3, and 128 digits; dashed: chance. Trained denoiser by the flow and by the bound; exact density of the 10 000 training images with noise 0.1.", "name": "fig-ood-auroc"}, "image": {"alt": "Noise, fog, frost and brightness lie near one; blur lies below one half, coarse pixels near it", "width": "85%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for k, (kind, marker) in enumerate(zip(kinds, "os^", strict=True)):
    shown = [(i, areas[kind, n]) for i, n in enumerate(cases) if areas[kind, n]]
    at = [i + 0.2 * (k - 1) for i, _ in shown]
    value = [a.value for _, a in shown]
    ends = [
        [a.value - a.low for _, a in shown],
        [a.high - a.value for _, a in shown],
    ]
    ax.errorbar(at, value, ends, fmt=marker, capsize=3, label=kind)
ax.axhline(0.5, color="0.5", linestyle="--")
ax.set(ylabel="AUROC", ylim=(0, 1.03), xticks=range(len(cases)))
ax.set_xticklabels(cases, rotation=30, ha="right")
ax.legend(loc="lower right")
plt.show()

# %% tags=["hide-input"]
rows = stored_cells("ood", density="trained")
levels = sorted({row.row.about["severity"] for row in rows} - {0})
lines = []
for name in CORRUPTIONS:
    found = {s: separation("trained", "flow", name, s) for s in levels}
    words = {f"severity {s}": f"{a:.2f}" if a else "not run" for s, a in found.items()}
    lines.append({"corruption": name} | words)
show_table(lines, "AUROC of the flow's bits with 95 % intervals, trained denoiser")

# %% tags=["hide-input"]
display(claims_table("A28", "A28a"))

# %% tags=["remove-cell"]
blur, fog = areas["flow", "gaussian-blur"], areas["flow", "fog"]
glue("ood-blur", f"{blur:.2f}")
glue("ood-fog", f"{fog:.2f}")
claim(blur.high < 0.5 < 0.75 < fog.low)

# %% [markdown]
# Blur has an AUROC of {glue:text}`ood-blur`: blurred images do not have more bits than clean ones. Bits count
# details, and blur takes details away. A detector that looks for many bits cannot see it, one that looks for few
# sees a little, and must know beforehand ({ref}`ex-ood-blur`). Fog has {glue:text}`ood-fog`: it puts clouds where
# every training image
# is black. So what a density notices depends on the data at least as much as on the corruption, and a ranking of
# corruptions on one data set is no property of diffusion models.
#
# The exact density of the training images is no better a judge of blur: at this noise it measures the distance to
# the nearest training image, and blur does not increase it. It is a worse judge of weak noise than the trained
# network: on test images, which are far from all stored ones, noise adds little to a distance that is large anyway.
#
# ## And the classifiers?

# %% tags=["hide-input"]
lines = []
for name, level in {"none": 0, **dict.fromkeys(CORRUPTIONS, severity)}.items():
    rows = stored_cells("ood", corruption=name, severity=level)
    models = [r for r in rows if "model" in r.row.about]
    right = {r.row.about["model"]: str(r.accuracy("right")) for r in models}
    lines.append({"corruption": name} | right)
show_table(lines, f"Images right at severity {severity}, with 95 % intervals")

# %% [markdown]
# To be noticed and to do harm are different things. Pixels that are black or white by chance are noticed
# ({glue:text}`ood-noticed-impulse-noise`), and cost the classifiers little: {glue:text}`ood-right-impulse-noise` stay right. Fog is
# noticed as well, at {glue:text}`ood-noticed-fog`, and leaves {glue:text}`ood-right-fog`. Contrast is noticed least of these,
# {glue:text}`ood-noticed-contrast`, and leaves {glue:text}`ood-right-contrast`. Under fog, brightness and contrast, which move the
# ground of the image, all three fail, the {term}`diffusion classifier` and the adversarially trained network too.

# %% tags=["remove-cell"]
rate = {
    (name, model): found[0].accuracy("right").value
    for name in ("none", "impulse-noise", "fog", "brightness", "contrast")
    for model in ("cnn", "at-linf", "dc")
    if (found := stored_cells("ood", corruption=name, model=model, severity=0 if name == "none" else 3))
}
claim(all(value < 0.3 for (name, _), value in rate.items() if name in ("fog", "brightness", "contrast")))
claim(all(value > 0.7 for (name, _), value in rate.items() if name in ("none", "impulse-noise")))
for name in ("impulse-noise", "fog", "contrast"):
    kept = [100 * value for (which, _), value in rate.items() if which == name]
    glue(f"ood-right-{name}", f"{min(kept):.0f} to {max(kept):.0f} %")
    glue(f"ood-noticed-{name}", f"AUROC {areas['flow', name].value:.2f}")
claim(areas["flow", "contrast"].high < min(areas["flow", name].low for name in ("impulse-noise", "fog", "brightness")))

# %% [markdown]
# ## A classifier by likelihoods
#
# The score-based generative classifier {cite:p}`zimmermann2021score` compares {eq}`eq-ood-flow` between
# classes. It is
# a generative classifier without the bound's gap. It is also dear: for $K$ classes and $T$ steps $K (2T + 1)$
# evaluations, and
# $K (T + 1)$ gradients more; its own gradient needs second derivatives.

# %% tags=["hide-input"]
rows = stored_cells("flow", attack="none")
show_table(
    [
        {
            "data": r.row.about["data"],
            "model": r.row.about["model"],
            "right": str(r.accuracy("clean")),
        }
        for r in rows
    ],
    "Clean images right, with 95 % intervals; 'from' is the lowest noise level",
)

# %% [markdown]
# On the small digits it keeps up with the diffusion classifier of the same network. On Fashion-MNIST it does not.
# One reason is that a single random direction is too few: here is the {term}`margin` of the true class, in nats, of
# images that the
# table does not contain, with other signs.

# %%
held = slice(512, 512 + n_signs)
margins = {}
for s in range(3):
    with torch.no_grad():
        logits = build("sbgc", "fashion-mini", seed=s)(test.x[held])
    margins[s] = (-margin(logits, test.y[held])).tolist()
    print(f"signs {s}:", *(f"{value:6.1f}" for value in margins[s]))

# %% tags=["remove-cell"]
spread = torch.tensor(list(margins.values())).std(dim=0)
claim(float(spread.mean()) > 1)

# %% [markdown]
# Signs move the margins by nats, and many margins are not larger. More directions cost as many gradients more.
#
# Under attack each gradient takes second derivatives of all classes and steps, so only a few digits were attacked,
# with five steps of PGD:

# %% tags=["hide-input"]
attacked = stored_cells("flow", attack="pgd")
show_table(
    [
        {
            "model": r.row.about["model"],
            "right before": str(r.accuracy("clean")),
            "right after": str(r.accuracy("robust")),
        }
        for r in attacked
    ],
    "Small digits, Linf 0.06, PGD with five steps, with 95 % intervals",
)

# %% [markdown]
# With all levels the likelihood of the flow falls first, with those from 0.5 on both keep nearly all, so that the comparison is not
# decided: {claim}`A6b`. An energy-based model is another matter ({claim}`A6`,
# {doc}`11_baselines`). Five steps are a weak attack, so each count is an upper bound.
#
# ## What this does not say
#
# - The corruptions are our own, on images of one channel with a black ground. These numbers do not transfer to
# CIFAR-10-C.
# - One random direction estimates the trace, the same for all images. Severities that are not in the table were
# not run.
# - With the *optimal* denoiser the flow is stiff: far from the stored images $D$ jumps from one to the next,
# and even hundreds of
#   steps do not reach the closed form at $\sigma = 0.1$. That is why only its exact density is shown.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-ood-trace
# :::
# **Signs** (10 minutes, easy). For a $2 \times 2$ Jacobian $J$, which part of it makes a single random direction's
# estimate of the trace wrong? Write `noise(J)`, the variance of $v \cdot J v$ over the four sign vectors.
#
# :::{hint}
# :class: dropdown
# Multiply out. The squares of signs are 1.
# :::

# %%
# your code here
def noise(J: torch.Tensor) -> float | None:
    """The variance of the estimate."""
    return None


# %%
# check
J = torch.tensor([[1.0, 2.0], [-0.5, 3.0]])
v = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
wanted = float(((v @ J) * v).sum(1).var(correction=0))
fine = noise(J) is not None and abs(noise(J) - wanted) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-ood-trace
# :label: sol-ood-trace
# :class: dropdown
# :::
# $v \cdot J v = J_{11} + J_{22} + v_1 v_2 (J_{12} + J_{21})$, so the variance is $(J_{12} + J_{21})^2$: the symmetric
# part off the diagonal. With a diagonal $J$ one direction is exact.

# %%
def noise(J: torch.Tensor) -> float:
    """The variance of the estimate."""
    return float((J[0, 1] + J[1, 0]) ** 2)


print("variance", noise(J), "and of a diagonal one", noise(torch.eye(2)))

# %% tags=["remove-cell"]
claim(noise(torch.eye(2)) == 0 < noise(J))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-ood-blur
# :::
# **Two-sided** (10 minutes, medium). A detector calls an image corrupted if its bits are far from the *median* of the
# clean ones, on either side. Does it see blur? What does it lose for noise? Compute both AUROCs of the trained
# denoiser's flow.
#
# :::{hint}
# :class: dropdown
# `by_image(density="trained", corruption="fog", severity=3)["flow"]` has the bits of each image, `auroc` takes two
# lists and has a `value`. The clean images are the corruption `none`.
# :::

# %%
# your code here
areas_two_sided = {"gaussian-blur": None, "gaussian-noise": None}

# %%
# check
asked = {"none": 0, **dict.fromkeys(areas_two_sided, 3)}
found = {
    name: by_image(density="trained", corruption=name, severity=severity)
    for name, severity in asked.items()
}
bits = {n: torch.tensor(list(f["flow"].values())) for n, f in found.items()}
away = {n: (b - bits["none"].median()).abs().tolist() for n, b in bits.items()}
wanted = {n: auroc(away[n], away["none"]).value for n in areas_two_sided}
fine = None not in areas_two_sided.values() and all(
    abs(areas_two_sided[n] - wanted[n]) < 0.02 for n in wanted
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-ood-blur
# :label: sol-ood-blur
# :class: dropdown
# :::
# Subtract the median of the clean bits and take absolute values on both sides. Blur takes most from the images with
# most bits, so that blurred images lie *closer* to the median than clean ones: for this detector, too, they are more
# typical than the real ones. Noisy images lie beyond nearly all of the others, so little is lost for them.

# %%
clean = by_image(density="trained", corruption="none")["flow"]
middle = float(torch.tensor(list(clean.values())).median())
for name in areas_two_sided:
    bad = by_image(density="trained", corruption=name, severity=3)["flow"]
    far = [[abs(v - middle) for v in side.values()] for side in (bad, clean)]
    areas_two_sided[name] = auroc(*far, paired=True).value
    print(f"{name}: {areas_two_sided[name]:.2f}")

# %% tags=["remove-cell"]
claim(areas_two_sided["gaussian-blur"] < 0.5 < 0.9 < areas_two_sided["gaussian-noise"])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-ood-typical
# :::
# **The most likely image is none** (10 minutes, medium). Let images of 784 pixels be draws of $\mathcal N(0, I)$, and
# "blurred" ones the same draws times 0.9. By how many nats is the blurred one more likely on average? Then compute the
# AUROC of the log-density between 200 of either: how often has a blurred image *less* density than a clean one? Give four decimals.
#
# :::{hint}
# :class: dropdown
# $-\log p(z) = \tfrac12 \lVert z \rVert^2$ up to a constant. `randn((200, 784), seed, "typical")` of `rdc.rng` gives
# the draws.
# :::

# %%
# your code here
more_nats, area = None, None

# %%
# check
half = randn((200, 784), seed, "typical").double().square().sum(1) / 2
less = (0.81 * half[:, None] > half[None]).double().mean()  # of all pairs
fine = None not in (more_nats, area)
fine = fine and abs(more_nats - 392 * (1 - 0.81)) < 0.5
fine = fine and abs(area - float(less)) < 1e-4
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-ood-typical
# :label: sol-ood-typical
# :class: dropdown
# :::
# $\E \lVert z \rVert^2 = 784$, so the blurred image gains $\tfrac12 \cdot 784 \, (1 - 0.9^2) \approx 74$ nats, while
# the norm of a draw hardly varies. The densest image is the grey one, and no draw ever comes near it. A small loss of
# contrast thus looks like an image *more* likely than all real ones: what {numref}`fig-ood-auroc` shows for blur.

# %%
more_nats = 784 / 2 * (1 - 0.9**2)
draws = randn((200, 784), seed, "typical").double()
bits = [(z.square().sum(1) / 2).tolist() for z in (0.9 * draws, draws)]
area = auroc(*bits).value
print(f"{more_nats:.1f} nats, AUROC {area:.4f}")

# %% tags=["remove-cell"]
claim(area < 0.05)

# %% [markdown]
# :::{solution-end}
# :::
