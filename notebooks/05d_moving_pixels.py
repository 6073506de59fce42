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
# (nb-adaptive-stadv)=
# # Moving pixels
#
# :::{admonition} What you will be able to do
# :class: tip
# - Run {term}`StAdv`, and say why its accuracy needs the scale of the {term}`logits` beside it.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-adaptive`, {ref}`nb-optimal` and {ref}`nb-classifier`. Covers the StAdv columns of
# Table 1 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
eps: str | float = 8 / 255  # Linf radius, image units
n_stadv: int = 30  # images for StAdv
stadv_steps: int = 60  # steps of StAdv
stadv_eps: str | float = 0.05  # bound of its flow; the side of the image is 2
factors: list[float] = [1.0, 1e-2, 1e-4]  # scales of the logits
n_train: int = 1000  # training images in the optimal classifier
n_optimal: int = 20  # images for attacks on it
count: int = 4  # noise levels of the diffusion classifier
n_dc: int = 5  # images for attacks on it
n_dc_stadv: int = 3  # images for StAdv on it
dc_stadv_steps: int = 15  # steps of StAdv on it

# %% tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.attack.stadv import flow_field, stadv, warp
from rdc.classify import DiffusionClassifier, OptimalClassifier
from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
cnn = train_classifier(
    train, epochs, batch=64, lr=1e-2, width=16, seed=seed, device=device
)
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
denoiser = load_denoiser(data, device=device)
optimal = OptimalClassifier(
    train.x[:n_train], train.y[:n_train], levels("elbo", 16), seed=seed
).to(device)
xo, yo = x[:n_optimal], y[:n_optimal]
main = levels("elbo", count, sigma_min=0.1, sigma_max=5.0)
judge = DiffusionClassifier(denoiser, main, seed=seed)
right = (predict(judge, x[: 3 * n_dc]) == y[: 3 * n_dc]).nonzero()[:n_dc, 0]
xd, yd = x[right], y[right]
xs, ys = x[:n_stadv], y[:n_stadv]

# %% [markdown]
# **Are all attacks small changes of grey values?** No: one can move pixels instead. And one accuracy under such an attack depends on the unit of the logits.

# %% mystnb={"figure": {"caption": "StAdv with the scale-free margin. Each row: the image with the network's prediction, the flow (arrows at every second pixel show from where a pixel takes its value, at twice their length), the warped image with the new prediction, and the difference in grey values from -1 (black) to 1 (white).", "name": "fig-adaptive-flow"}, "image": {"alt": "Three rows of four pictures: an article of clothing, a field of small arrows, the warped article with ragged edges, and a difference along its edges", "width": "85%"}} tags=["hide-input"]
flow = flow_field(cnn, xs, ys, eps=stadv_eps, steps=stadv_steps, seed=seed)
moved = warp(xs, flow)
before, after = predict(cnn, xs), predict(cnn, moved)
chosen = ((before == ys) & (after != ys)).nonzero()[:3, 0].tolist()
fig, axes = plt.subplots(
    len(chosen), 4, figsize=(6.8, 2 * len(chosen)), squeeze=False
)
side = x.shape[-1]
for row, i in zip(axes, chosen, strict=True):
    picture = {"cmap": "gray", "vmin": 0, "vmax": 1}
    row[0].imshow(xs[i, 0].cpu(), **picture)
    row[0].set_title(test.classes[before[i]])
    shift = (flow[i].cpu() * side / 2)[:, ::2, ::2]
    places = torch.arange(0, side, 2)
    row[1].imshow(xs[i, 0].cpu(), **picture, alpha=0.35)
    row[1].quiver(
        places,
        places,
        shift[0],
        shift[1],
        color="C1",
        angles="xy",
        scale_units="xy",
        scale=0.5,
        width=0.006,
    )
    row[2].imshow(moved[i, 0].cpu(), **picture)
    row[2].set_title(test.classes[after[i]])
    row[3].imshow((moved - xs)[i, 0].cpu(), cmap="gray", vmin=-1, vmax=1)
    for ax in row:
        ax.set_axis_off()
fig.tight_layout(pad=0.3)
plt.show()

# %%
change = norm_of(moved[chosen] - xs[chosen], "Linf")
print(f"flow at most {float(flow.abs().max()) * side / 2:.2f} pixels")
print(
    "largest change of a grey value:",
    [round(c, 2) for c in change.tolist()],
    f"; the Linf ball above allows {eps:.2f}",
)


# %% [markdown]
# (sec-adaptive-stadv)=
# ## Moving pixels: StAdv
#
# A norm ball is not the only threat. *Spatially transformed* examples (StAdv, {cite:t}`xiao2018spatially`) do not change grey values but
# move them. A flow $u$ gives each pixel a shift, and the image is read, with bilinear interpolation, at the shifted places:
#
# ```{math}
# :label: eq-stadv
# x'(p) = x(p + u(p)), \qquad \norm{u}_\infty \le \epsilon .
# ```
#
# In $\ell_\infty$ such a change can be enormous: along an edge a shift of one pixel turns black into white.
#
# The released attack maximises the {term}`margin` minus a penalty on the roughness of the flow. That is a sum of two things in different units:
# the penalty is about flows, the margin about logits. Multiply the logits by a small number, and the attack smooths the flow
# and forgets to attack. A loss free of scale has no such fault.


# %%
class Scaled(nn.Module):
    """A model with its logits times a factor: the same decisions."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """Scaled logits."""
        return self.factor * self.model(x)


attack_flow = partial(stadv, eps=stadv_eps, steps=stadv_steps, seed=seed)
warped: dict[tuple[str, float], Accuracy] = {}
kept_images: dict[tuple[str, float], Tensor] = {}
print(
    f"StAdv, {n_stadv} images, {stadv_steps} steps, clean "
    f"{accuracy(cnn, xs, ys).correct}: surviving images"
)
for loss in ("released", "margin"):
    for factor in factors:
        kept_images[loss, factor] = attack_flow(
            Scaled(cnn, factor), xs, ys, loss=loss
        )
        warped[loss, factor] = robust_accuracy(
            cnn, xs, ys, kept_images[loss, factor]
        )
    print(
        f"{loss:9s}",
        "   ".join(
            f"logits x {f:g}: {warped[loss, f].correct:2d}" for f in factors
        ),
    )

# %% mystnb={"figure": {"caption": "Accuracy under StAdv against the factor on the logits, which changes no decision, with 95 % intervals. The released loss reports a robustness that grows as the logits shrink; the scale-free margin does not.", "name": "fig-adaptive-stadv"}, "image": {"alt": "Two lines over the factor on the logits; one is flat, the other rises to the clean accuracy as the factor falls", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5, 3.2))
for loss, style_of in (("released", "o-"), ("margin", "s--")):
    rows = [warped[loss, f] for f in factors]
    bars = [
        [100 * (r.value - r.low) for r in rows],
        [100 * (r.high - r.value) for r in rows],
    ]
    ax.errorbar(
        factors,
        [100 * r.value for r in rows],
        yerr=bars,
        fmt=style_of,
        capsize=3,
        label=loss,
    )
ax.set(
    xscale="log",
    xlabel="factor on the logits",
    ylabel="accuracy (%)",
    ylim=(-3, 103),
)
ax.legend(title="loss")
plt.show()

# %% tags=["remove-cell"]
low, high = min(factors), max(factors)
glue(
    "adaptive-stadv-released",
    f"{warped['released', high].correct} and {warped['released', low].correct}",
)
glue(
    "adaptive-stadv-margin",
    f"{warped['margin', high].correct} and {warped['margin', low].correct}",
)
claim(
    warped["released", low].correct > warped["released", high].correct,
    "the factor hides the weakness from one loss",
)
claim(
    abs(warped["margin", low].correct - warped["margin", high].correct) <= 1,
    "and not from the other",
)
claim(warped["margin", high].high < accuracy(cnn, xs, ys).value)

# %% [markdown]
# At the largest and the smallest factor, {glue:text}`adaptive-stadv-released` images survive the released loss and
# {glue:text}`adaptive-stadv-margin` the scale-free one. On logits of ordinary size neither need be the stronger one, and an evaluation should count
# an image as broken if either breaks it. {numref}`fig-adaptive-flow` shows what a successful flow looks like.
#
# :::{admonition} A question to the paper
# :class: note
# Table 1 of {cite:t}`chen2024rdc` has a {term}`diffusion classifier` that loses *no* accuracy under StAdv. Its released logits are means, not sums,
# over thousands of pixels, so their margins are thousands of times smaller than those of the theorem. Is it the classifier that resists,
# or the scale?
# :::
#
# We ask two diffusion classifiers: the optimal one of {ref}`nb-optimal`, which we can attack in seconds, and the trained one of
# {ref}`nb-classifier` with few noise levels. Each has its logits as the theorem does, summed over pixels, and as the released code does,
# averaged over them. The lead is the median by which the right class wins on clean images, in each unit.

# %%
stadv_cases = {
    "optimal": (optimal, xo, yo, stadv_steps),
    "trained": (judge, xd[:n_dc_stadv], yd[:n_dc_stadv], dc_stadv_steps),
}
units = {"sum": 1.0, "mean": 1 / x[0].numel()}
stadv_left: dict[tuple[str, str, str], int] = {}
print(
    "classifier  logits    lead     clean   released   margin   (surviving "
    "images)"
)
for name, (model, a, b, n) in stadv_cases.items():
    with torch.no_grad():
        lead = -margin(model(a), b)
    for unit, factor in units.items():
        for loss in ("released", "margin"):
            x_adv = stadv(
                Scaled(model, factor),
                a,
                b,
                eps=stadv_eps,
                steps=n,
                loss=loss,
                seed=seed,
            )
            stadv_left[name, unit, loss] = robust_accuracy(
                model, a, b, x_adv
            ).correct
        counts = (
            stadv_left[name, unit, loss] for loss in ("released", "margin")
        )
        clean = int((lead > 0).sum())
        print(
            f"{name:10s}  {unit:6s}  "
            f"{factor * float(lead[lead > 0].median()):8.2g}   {clean:3d}    "
            + "      ".join(f"{c:3d}" for c in counts)
        )

# %% tags=["remove-cell"]
# the unit may help the released loss to report robustness, and changes nothing for the other
for name in stadv_cases:
    claim(
        stadv_left[name, "mean", "released"]
        >= stadv_left[name, "sum", "released"] - 1
    )
    claim(
        abs(
            stadv_left[name, "mean", "margin"]
            - stadv_left[name, "sum", "margin"]
        )
        <= 1
    )

# %% [markdown]
# What decides is the lead against the penalty, not the word "mean". Where the lead is still large after the division, the released loss finds its
# flow; where it is small the loss goes blind, and reports a robustness that the margin does not confirm. So an accuracy under StAdv needs
# its logit scale beside it, or a loss that has none.
#
# ## What to remember
#
# - A flow of a fraction of a pixel can change a grey value from black to white, and fool a network.
# - A loss that adds a penalty to the margin sees the scale of the logits: so can StAdv report a robustness that is not there.
# - State the scale of the logits, or use a loss that has none.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-pixels
# :::
# **In pixels** (5 minutes, easy). A flow of at most 0.05 counts in a coordinate that goes from -1 to 1 over the side of the image. How many pixels is that for a side of 28, and for a side of 224?
#
# :::{hint}
# :class: dropdown
# The side is 2 units long.
# :::

# %%
# your code here
pixels_28, pixels_224 = None, None

# %%
# check
fine = None not in (pixels_28, pixels_224) and (
    abs(pixels_28 - 0.7) < 1e-6 and abs(pixels_224 - 5.6) < 1e-6
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-pixels
# :label: sol-adaptive-pixels
# :class: dropdown
# :::
# The same bound is less than a pixel here, and many on a photograph: an accuracy under StAdv needs its bound in pixels beside it.

# %%
pixels_28, pixels_224 = (0.05 * side_n / 2 for side_n in (28, 224))
print(f"{pixels_28:.1f}, {pixels_224:.1f}")

# %% tags=["remove-cell"]
claim(pixels_28 < 1 < pixels_224)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-blind
# :::
# **When the loss goes blind** (10 minutes, easy). A flow would raise the {term}`margin` of the logits by 10, and its roughness is 40. The released loss subtracts 0.05 times the roughness. Below which factor on the logits does the loss prefer not to move? And how far must a flow raise the margin of *summed* logits, so that the mean over 784 pixels still sees it?
#
# :::{hint}
# :class: dropdown
# Compare the gain with the penalty, both in the unit of the loss.
# :::

# %%
# your code here
smallest_factor, gain_needed = None, None

# %%
# check
fine = None not in (smallest_factor, gain_needed) and (
    abs(smallest_factor - 0.2) < 1e-6 and abs(gain_needed - 1568) < 1e-6
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-blind
# :label: sol-adaptive-blind
# :class: dropdown
# :::
# The penalty is 2, so $10 c > 2$ and $g / 784 > 2$. No classifier has become more robust in between.

# %%
penalty = 0.05 * 40
smallest_factor, gain_needed = penalty / 10, penalty * 784
print(smallest_factor, gain_needed)

# %% tags=["remove-cell"]
claim(smallest_factor < 1 < gain_needed)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-warp
# :::
# **What a shift changes** (10 minutes, medium). Shift the images `xs` by one pixel to the right, all of them alike, with `warp`. What is the largest change of a grey value, and how many predictions of `cnn` change?
#
# :::{hint}
# :class: dropdown
# The flow has the shape `(n, 2, 28, 28)`, its first channel is the direction to the right. A pixel takes its value from where its arrow points.
# :::

# %%
# your code here
largest_change, changed_by_shift = None, None

# %%
# check
fine = close_to(largest_change, 1, within=0.01)
fine = fine and close_to(changed_by_shift, n_stadv * 4 / 30, within=1)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-warp
# :label: sol-adaptive-warp
# :class: dropdown
# :::
# An edge turns from black to nearly white, although hardly anything has changed to the eye.

# %%
uniform = torch.zeros(len(xs), 2, x.shape[-1], x.shape[-1], device=device)
uniform[:, 0] = -2 / x.shape[-1]
shifted = warp(xs, uniform)
largest_change = float((shifted - xs).abs().amax())
changed_by_shift = int((predict(cnn, shifted) != predict(cnn, xs)).sum())
print(
    f"largest change {largest_change:.2f}; {changed_by_shift} of {len(xs)} "
    f"predictions"
)

# %% tags=["remove-cell"]
claim(largest_change > 0.9)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# StAdv is due to {cite:t}`xiao2018spatially`; the question comes from {cite:t}`chen2024rdc`.
