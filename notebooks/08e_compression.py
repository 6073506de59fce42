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
# (nb-gradients-compression)=
# # How far a purification contracts
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say how far a purification contracts an attack, and how much of the attacker's own direction it leaves.
# - Tell where BPDA with the identity stops being fair.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-gradients` and {ref}`nb-lm`. Asks of the readings of {cite:t}`chen2024rdc` what {cite:t}`yuezhang2025diffusion` ask of purification.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels T of the diffusion classifier
n: int = 5  # images for steps along gradients
n_smooth: int = 3  # images for rates and for Jacobians

# %% tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    ascent_path,
    compression_rate,
    jacobian_rms,
    top_singular_value,
)
from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import (
    RDC,
    DiffusionClassifier,
    LikelihoodMaximization,
    Purify,
)
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.models import build
from rdc.notebook import check_parameters, claim, close_to
from rdc.plots import style
from rdc.randomness import known_noise
from rdc.rng import randn
from rdc.schedule import levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
heads = load_denoiser(heads_name, device=device)
# the unconditional network, for LM and DiffPure
trunk = load_denoiser(data, device=device)
cnn = build("cnn", data, device)


def diffusion_classifier(
    count: int = count, noise: str = "fresh", seed: int = seed
) -> DiffusionClassifier:
    """A diffusion classifier on ``count`` levels of the likelihood bound."""
    return DiffusionClassifier(
        heads,
        levels("elbo", count, sigma_min=0.1),
        noise=noise,
        seed=seed,
        chunk=2560,
    )


def likelihood(
    reading: str = "released", noise: str = "fresh", **options: object
) -> LikelihoodMaximization:
    """Likelihood maximisation after one of its readings."""
    return LikelihoodMaximization(
        trunk, **{**READINGS[reading], "noise": noise, "seed": seed, **options}
    )


dc = diffusion_classifier()

right = (
    predict(cnn, test.x[: 6 * n].to(device)) == test.y[: 6 * n].to(device)
).nonzero()[:, 0]
xg, yg = test.x.to(device)[right][:n], test.y.to(device)[right][:n]
xs, ys = xg[:n_smooth], yg[:n_smooth]


def reading(name: str) -> LikelihoodMaximization:
    """A reading of likelihood maximisation, its noise fixed."""
    options = {**READINGS[name], "noise": "fixed"}
    return LikelihoodMaximization(trunk, **options)


fixed_processes = {
    "LM, printed": reading("printed"),
    "LM, mi-fgsm": reading("mi-fgsm"),
    "LM, mean-l1": reading("mean-l1"),
    "LM, clamped": LikelihoodMaximization(trunk, **READINGS["clamped"]),
    "DiffPure": Purify(trunk, seed=seed),
}
attacked = (
    ascent_path(known_noise(dc, seed), xs, ys, eps=16 / 255, steps=3)[-1] - xs
)
scattered = (
    16
    / 255
    * randn(tuple(xs.shape[1:]), seed, "scattered", like=xs)
    .sign()
    .expand_as(xs)
)


def response(
    process: nn.Module, before: Tensor, after: Tensor, change: Tensor
) -> tuple[float, float]:
    """Compression rate and alignment, means over images."""
    out, size = (after - before).flatten(1), change.flatten(1).norm(dim=1)
    return float((out.norm(dim=1) / size).mean()), float(
        ((out * change.flatten(1)).sum(1) / size.square()).mean()
    )


# %% [markdown]
# **What is left of an attack behind a purification?** Two numbers say it, how far the output moves and whether it moves the attacker's way: {numref}`fig-gradients-compression`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %%
radii = [1, 2, 4, 8, 16]
rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
moved_by: dict[str, float] = {}
with torch.no_grad():
    for name, process in fixed_processes.items():
        before = process(xs)
        moved_by[name] = float((before - xs).flatten(1).norm(dim=1).mean())
        for kind, change in (("random", scattered), ("adversarial", attacked)):
            others = [(xs + r / 16 * change).clamp(0, 1) for r in radii]
            rates[name, kind] = [
                response(process, before, process(other), other - xs)
                for other in others
            ]

# %% tags=["hide-input"]
print(
    f"{n_smooth} images, all noise fixed. At 1/255 and 16/255: rate "
    f"(alignment); P moves a clean image by |P(x) - x|"
)
print(
    "process         |P(x) - x|    random                        adversarial "
    "(against DC)"
)
for name in fixed_processes:
    cells = [
        f"{k:5.2f} ({a:5.2f})"
        for kind in ("random", "adversarial")
        for k, a in (rates[name, kind][0], rates[name, kind][-1])
    ]
    print(
        f"{name:14s}    {moved_by[name]:6.2f}      {'  '.join(cells[:2])}     "
        f"{'  '.join(cells[2:])}"
    )

# %% mystnb={"figure": {"caption": "Compression rate (left) and alignment (right) against the size of the change, for random signs (dotted) and for the direction of an attack on the diffusion classifier (solid), all noise fixed. BPDA with the identity pretends that both are one.", "name": "fig-gradients-compression"}, "image": {"alt": "Two panels of curves over the Linf size of a change; DiffPure lies far below one, the readings of likelihood maximisation near or above one at small changes", "width": "95%"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 4))
for part, ax in enumerate(axes):
    for i, name in enumerate(fixed_processes):
        for kind, line in (("random", ":"), ("adversarial", "-")):
            ax.plot(
                radii,
                [v[part] for v in rates[name, kind]],
                f"o{line}",
                ms=3,
                color=f"C{i}",
                label=name if line == "-" else None,
            )
    ax.axhline(1, color="0.6", lw=0.8)
    ax.set(
        xscale="log",
        xlabel="size of the change, Linf (1/255)",
        ylabel=("rate $\\kappa$", "alignment $a$")[part],
    )
axes[0].set(yscale="log")
axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
check = compression_rate(
    fixed_processes["DiffPure"], xs, (xs + attacked).clamp(0, 1), draws=1
)
assert abs(float(check.mean()) - rates["DiffPure", "adversarial"][-1][0]) < 1e-3
claim(
    rates["LM, printed", "random"][-1][1] > 0.9,
    "the printed reading hardly does anything",
)
claim(rates["DiffPure", "random"][-1][0] < 0.8)
claim(
    rates["LM, mean-l1", "random"][0][0] > 1.2,
    "sign flips spread a small change",
)
claim(0.3 < rates["LM, mi-fgsm", "random"][-1][1] < 0.8)
claim(
    rates["LM, clamped", "random"][-1][1]
    < rates["LM, printed", "random"][-1][1]
)

# %% [markdown]
# (sec-gradients-compression)=
# ## Rate and alignment
#
# {cite:t}`yuezhang2025diffusion` ask, for purification with known noise, by which factor a change of the input arrives at the output:
#
# ```{math}
# :label: eq-gradients-rate
# \kappa = \frac{\norm{P(x') - P(x)}_2}{\norm{x' - x}_2}, \qquad
# a = \frac{(P(x') - P(x)) \cdot (x' - x)}{\norm{x' - x}_2^2}.
# ```
#
# The rate $\kappa$ is theirs. Beside it we print the alignment $a$: what is left of the attacker's *own* direction. BPDA with the identity
# pretends that $P(x') - P(x) = x' - x$, that is $\kappa = a = 1$. Two things make it unfair: $a$ near 0, when the change is wiped out, and $\kappa \gg a$, when the
# output moves, but elsewhere.
#
# We compute in 32-bit numbers, as on every page with gradients. A tiny change of the image drowns in the rounding of a 16-bit network, and so does
# more ({ref}`nb-gradients-bits`).
#
# At small changes the two sides of {numref}`fig-gradients-compression` differ: a purification made of sign steps can *spread* a small change (rate above one), because it flips signs, while
# little of it lies along the change. The Jacobian shows the same at a point: $\kappa$ over all directions is $\norm{J}_F / \sqrt D$, and at worst the
# largest singular value.

# %% tags=["hide-input"]
print(
    f"{n_smooth} images: root mean square of the singular values by finite "
    f"differences, and the largest by power iteration (from below)"
)
singular: dict[str, tuple[float, float]] = {}
for name in ("LM, printed", "LM, mi-fgsm", "LM, clamped", "DiffPure"):
    process = fixed_processes[name]
    values, _ = top_singular_value(
        process, xs, iterations=2, step=1e-2, seed=seed
    )
    singular[name] = (
        float(jacobian_rms(process, xs, draws=3, step=1e-2, seed=seed).mean()),
        float(values.mean()),
    )
    print(
        f"{name:14s}  rms {singular[name][0]:6.2f}   largest, at least "
        f"{singular[name][1]:6.2f}"
    )

# %% [markdown]
# A mean cannot exceed the largest value, and where it seems to, the two columns have not looked at the same function. Both measure
# $\norm{J v}$ over a small but finite step. The first takes random directions $v$, along which many pixels flip a sign; the second looks for
# its direction with autograd, which does not see a flip. So for the readings made of sign steps "at least" is far from the truth:
# their largest response is a jump, and no gradient leads to it. DiffPure is smooth, and there the order is the right one.
#
# ### Where BPDA stops being fair
#
# What counts is what a gradient does for the attacker. We take a step along the sign of each gradient of RDC, with all noise fixed and known,
# and look at the margin that the defence then has.

# %%
fixed_lm, fixed_dc = likelihood(noise="fixed"), known_noise(dc, seed)
defence = RDC(fixed_lm, fixed_dc)
offers = {
    "BPDA": defence,
    "exact": RDC(fixed_lm, fixed_dc, "exact"),
    "smoothed": RDC(fixed_lm.smoothed(0.3), fixed_dc, "exact"),
}
directions = {
    k: value_and_gradient(lambda p, m=m: margin(m(p), yg), xg)[1].sign()
    for k, m in offers.items()
}
directions["random"] = (
    randn(tuple(xg.shape[1:]), seed, "direction", like=xg).sign().expand_as(xg)
)
lengths = [0.25, 1, 4, 16]
with torch.no_grad():
    base = margin(defence(xg), yg)
    rise = {
        k: [
            float(
                (
                    margin(defence((xg + s / 255 * d).clamp(0, 1)), yg) - base
                ).mean()
            )
            for s in lengths
        ]
        for k, d in directions.items()
    }

# %% tags=["hide-input"]
print(
    f"{n} images: mean rise of the margin of RDC (nats) after a sign step of "
    f"{lengths} / 255"
)
for k, values in rise.items():
    print(f"{k:10s}", "   ".join(f"{v:7.2f}" for v in values))

# %% tags=["remove-cell"]
claim(
    rise["smoothed"][-1] > rise["BPDA"][-1] + 0.3
    and rise["exact"][1] > rise["BPDA"][1]
)
claim(rates["LM, clamped", "adversarial"][-1][1] < 0.3)

# %% [markdown]
# The identity stops being fair where the alignment in {numref}`fig-gradients-compression` has gone. For the printed reading it is near one: there BPDA and the exact
# gradient are the same thing, because this LM does nothing. For the budgeted readings about half of a step of the attack's size survives. For the
# clamped one the alignment is near zero or *below*: five Adam steps of a fixed size drive a pixel back past where it came from, so that the identity does
# not even have the right sign, and a step along BPDA's gradient helps the defence.
#
# The exact gradient is right at a point and wrong a sign flip further, and still it climbs; the smoothed one climbs further. No single gradient
# is "the" gradient of this defence, and an evaluation takes the union of all.
#
# ## What to remember
#
# - A rate says how far the output moves, an alignment how much of the attacker's direction is left.
# - BPDA with the identity is fair where both are one, and wrong where the alignment is near zero.
# - No single gradient is the gradient of a defence with LM; an evaluation takes the union of all.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-turn
# :::
# **A turn** (5 minutes, easy). A purification turns every change by 60 degrees and keeps its length. What are $\kappa$ and $a$? What does a step along BPDA's gradient do, compared with a step along the right one?
#
# :::{hint}
# :class: dropdown
# The alignment is a cosine times the rate.
# :::

# %%
# your code here
kappa, alignment = None, None

# %%
# check
fine = None not in (kappa, alignment) and (
    abs(kappa - 1) < 1e-6 and abs(alignment - 0.5) < 1e-6
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-turn
# :label: sol-gradients-turn
# :class: dropdown
# :::
# $\kappa = 1$ and $a = \cos 60° = 1/2$: nothing is contracted, and BPDA still gets half of what its step could. A rate alone does not see it.

# %%
angle = torch.tensor(torch.pi / 3)
kappa, alignment = 1.0, float(angle.cos())
print(f"{kappa:.2f}, {alignment:.2f}")

# %% tags=["remove-cell"]
claim(abs(alignment - 0.5) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-singular
# :::
# **The mean and the largest** (10 minutes, medium). A linear purification keeps 10 of 784 directions and wipes out the rest. What is its $\kappa$ for random changes (root mean square), and what for the worst change?
#
# :::{hint}
# :class: dropdown
# $\norm{M}_F / \sqrt D$, and the largest singular value.
# :::

# %%
# your code here
typical, worst = None, None

# %%
# check
fine = abs((typical or 0) - 0.1129) < 1e-3 and worst == 1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-singular
# :label: sol-gradients-singular
# :class: dropdown
# :::
# $\sqrt{10 / 784}$ and 1. An attacker does not choose at random: the directions that pass are the ones to use.

# %%
typical, worst = (10 / 784) ** 0.5, 1
print(f"{typical:.3f}, {worst}")

# %% tags=["remove-cell"]
claim(typical < worst)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-sign-lm
# :::
# **A reading without spikes** (20 minutes, hard). Take the `mi-fgsm` reading of LM and compare its exact gradient with BPDA: the cosine of the two at each image, with the noise fixed. Explain the result, and what is left of the difference away from the walls of $[0, 1]$.
#
# :::{hint}
# :class: dropdown
# What is the derivative of a sign? And of a clamp?
# :::

# %%
# your code here
# cosines over all pixels, and over those that are never at a wall
alike, inside = None, None

# %%
# check
fine = alike is not None and inside is not None
if fine:
    alike_mean = torch.as_tensor(alike).double().mean()
    fine = close_to(alike_mean, 0.56, within=0.05)
    least = torch.as_tensor(inside).double().min()
    fine = fine and close_to(least, 1, within=1e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-sign-lm
# :label: sol-gradients-sign-lm
# :class: dropdown
# :::
# A sign has derivative zero, so a sign step has the identity for its Jacobian, and so has a chain of them. Only the walls of $[0, 1]$ make a difference: a pixel that is held
# there has derivative zero, where BPDA says one. So for this reading "exact" has nothing to add to BPDA, for any number of steps, and a comparison of the two says
# nothing about LM. With the pixels at the walls left out, the two agree. (In 32-bit numbers: with 16 bits the two ways of computing round
# differently, and a pixel whose gradient is within rounding of zero then steps the other way.)

# %% tags=["hide-input"]
at_step = partial(
    LikelihoodMaximization,
    trunk,
    **{**READINGS["mi-fgsm"], "noise": "fixed"},
)
sign_lm = at_step()
pair = [
    value_and_gradient(lambda p, k=k: margin(RDC(sign_lm, cnn, k)(p), yg), xg)[
        1
    ]
    for k in ("exact", "bpda")
]
with torch.no_grad():  # the noise of a step does not depend on how many follow
    visited = torch.stack(
        [
            at_step(steps=k, step_size=sign_lm.step_size)(xg)
            for k in range(1, sign_lm.steps + 1)
        ]
    )
inner = (
    ((visited > 1e-6) & (visited < 1 - 1e-6)).all(0).float()
)  # never at a wall
alike = nn.functional.cosine_similarity(*(g.flatten(1) for g in pair), dim=1)
inside = nn.functional.cosine_similarity(
    *((g * inner).flatten(1) for g in pair), dim=1
)
print(
    f"cosine of exact and BPDA: {float(alike.mean()):.2f}; over pixels away "
    f"from the walls {float(inside.mean()):.2f}"
)

# %% tags=["remove-cell"]
claim(float(inside.min()) > 0.999)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The compression rate comes from {cite:t}`yuezhang2025diffusion`, the likelihood maximisation from {cite:t}`chen2024rdc`, DiffPure from {cite:t}`nie2022diffpure`. The images are those of {cite:t}`xiao2017fashion`.
