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
# (nb-adaptive)=
# # Adaptive attacks
#
# :::{admonition} What you will be able to do
# :class: tip
# - Recognise an obfuscated gradient, and name the attack that goes around it.
# - Attack through a step without a gradient ({term}`BPDA`), and through {term}`logits` of any scale.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-first-attack` and {doc}`/book/notation`. Four pages follow: exact gradients and
# likely images ({ref}`nb-adaptive-purify`), random models ({ref}`nb-adaptive-random`), moved pixels ({ref}`nb-adaptive-stadv`), and the audit
# ({ref}`nb-adaptive-audit`). They cover the attacks of sections 4.1, 4.3 and 4.4 and of appendix B.2 of {cite:t}`chen2024rdc`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
steps: int = 10  # gradient steps of PGD on the network
eps: str | float = 8 / 255  # Linf radius, image units

# %% tags=["hide-input"]
import warnings

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of, random_start
from rdc.autograd import value_and_gradient
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.defend.preprocessed import Preprocessed
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
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
x_pgd = pgd(cnn, x, y, eps=eps, steps=steps, seed=seed)
plain = robust_accuracy(cnn, x, y, x_pgd)
print(f"undefended network, {n_attack} images: clean {accuracy(cnn, x, y)}")
print(f"under PGD-{steps}, Linf {255 * eps:.0f}/255:     {plain}")


# %% [markdown]
# **A defence reports a high robust accuracy. Is the model good, or the attack bad?** The eight defences of {numref}`fig-adaptive-careless` are all broken, and a careless evaluation
# praises most of them.


# %% tags=["hide-input"]
def careless(defence: nn.Module, loss: str) -> str:
    """Robust accuracy as a careless evaluation reports it, in percent."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the package warns of probabilities; a careless reader does not look
        torch.manual_seed(seed + 1)
        try:
            x_adv = pgd(
                defence, x, y, eps=eps, steps=steps, loss=loss, seed=seed
            )
        except (RuntimeError, ValueError):
            x_adv = x  # "the attack does not apply"
        torch.manual_seed(seed + 2)
        return f"{100 * robust_accuracy(defence, x, y, x_adv).value:4.0f} %"


zoo = broken_defences(cnn, seed)
reported: dict[tuple[str, str], str] = {}
print(
    f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps}   clean    CE  "
    f"  margin"
)
for name, defence in {"none": cnn, **zoo}.items():
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)
        clean = 100 * accuracy(defence, x, y).value
    reported |= {
        (name, loss): careless(defence, loss) for loss in ("ce", "margin")
    }
    print(
        f"{name:32s} {clean:7.0f} % {reported[name, 'ce']}  "
        f"{reported[name, 'margin']}"
    )

# %% mystnb={"figure": {"caption": "Robust accuracy of a network and of eight wrappers around it, as a careless evaluation reports it. None of them is more robust than the network; the dashed line is what it keeps.", "name": "fig-adaptive-careless"}, "image": {"alt": "Points for nine models; several wrappers are reported far above the dashed line of the plain network"}} tags=["hide-input"]
percent = {key: float(value.split()[0]) for key, value in reported.items()}
names = ["none", *zoo]
fig, ax = plt.subplots(figsize=(7, 3.6))
for loss, shift, mark in (("ce", -0.15, "o"), ("margin", 0.15, "s")):
    at = [i + shift for i in range(len(names))]
    ax.plot([percent[n, loss] for n in names], at, mark, label=loss)
ax.axvline(percent["none", "margin"], color="0.4", ls="--", lw=1)
ax.set_yticks(range(len(names)), names)
ax.invert_yaxis()
ax.set(xlabel="reported robust accuracy (%)", xlim=(-3, 103))
ax.legend(title="loss of PGD")
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
glue("adaptive-plain", f"{plain}")
for name in (
    "saturated-softmax",
    "quantised-input",
    "shattered-gradient",
    "detached-preprocessing",
):
    claim(percent[name, "margin"] > 100 * plain.high, name)
claim(abs(percent["tiny-logits", "margin"] - percent["none", "margin"]) <= 2)
claim(plain.high < accuracy(cnn, x, y).low)


# %% [markdown]
# ## A number is worth as much as its attack
#
# A {term}`robust accuracy` is an upper bound ({eq}`eq-upper-bound`): it counts the images that *this attack* did not break. There are two
# ways to raise it. One is a better model. The other is a worse attack, and a defence can bring that about without meaning to.
#
# {cite:t}`athalye2018obfuscated` call it an *obfuscated gradient* when the defence spoils what the attack climbs. They name three
# kinds:
#
# - **shattered**: the gradient is missing, zero or noise, because a step is not differentiable or is very rough;
# - **stochastic**: the gradient belongs to one random draw, and the verdict to another;
# - **vanishing or exploding**: a long computation, or a saturated output, loses the gradient on its way.
#
# {cite:t}`tramer2020adaptive` took thirteen published defences, all of them evaluated with "adaptive" attacks, and broke each one.
# Their advice is not a tool but an attitude: find out *why* an attack fails, and then change the attack.
#
# To learn that, we need defences that we know to be broken. {py:mod}`rdc.defend.broken` plants eight. Each wraps our network,
# changes its decisions little (but for `batch-leak`), and makes one known mistake. {numref}`fig-adaptive-careless` shows what a careless evaluation says of them: {term}`PGD`, with
# the global random generator seeded for the attack, as tools do, and one verdict after it.
#
# Nothing here is robust. Without any defence the network keeps {glue:text}`adaptive-plain`, and most wrappers "raise" that.
# This page and the next ones take the mistakes one by one. Some are left to you.
#
# A first look at the gradient often tells which mistake it is. We ask three questions at random points near the images. Does a gradient arrive?
# Is it zero? And if we take a small step along it, does the loss rise as far as the gradient promises?


# %% tags=["hide-input"]
def look(defence: nn.Module, step: float = 1 / 255) -> str:
    """What the gradient of the margin is worth at a random point of each
    ball.
    """
    objective = lambda p: margin(defence(p), y)  # noqa: E731
    start = random_start(x, "Linf", eps, torch.arange(len(x)), seed)
    try:
        before, slope = value_and_gradient(objective, start)
    except (RuntimeError, ValueError) as error:
        return str(error).split(";")[0]
    dead = norm_of(slope, "L2") == 0
    if dead.float().mean() > 0.5:
        return f"exactly zero at {100 * float(dead.float().mean()):.0f} % of the images"
    moved = (start + step * slope.sign()).clamp(0, 1)
    with torch.no_grad():
        rise = objective(moved) - before
    promised = ((moved - start) * slope).flatten(1).sum(1)
    return f"a step keeps {float((rise / promised)[~dead].median()):5.2f} of what the gradient promises (median)"


for name, defence in {"none": cnn, **zoo}.items():
    print(f"{name:24s} {look(defence)}")

# %% [markdown]
# (sec-adaptive-bpda)=
# ## Going around a step: BPDA
#
# Rounding has the derivative zero, and an image library has none. *Backward pass differentiable approximation* (BPDA,
# {cite:t}`athalye2018obfuscated`) runs the step as it is in the forward pass and puts a differentiable stand-in $s$ in its place in
# the backward pass:
#
# ```{math}
# :label: eq-bpda
# f(x) = c(g(x)), \qquad \nabla_x \ell(f(x)) \approx J_s(x)^\top\, \nabla \ell(c)\big|_{g(x)} .
# ```
#
# The verdict is never approximated, only the direction of the next step. For a process that changes the image little, $s(x) = x$ will
# do. In code, value and gradient are parted by a detached difference, `value + (s(x) - s(x).detach())`
# ({py:class}`rdc.autograd.BPDA`).

# %%
broken: dict[str, Accuracy] = {}
for name in ("quantised-input", "detached-preprocessing"):
    around = Preprocessed(zoo[name].process, cnn, gradient="bpda")
    x_adv = pgd(around, x, y, eps=eps, steps=steps, seed=seed)
    broken[name] = robust_accuracy(
        zoo[name], x, y, x_adv
    )  # judged by the defence itself
    print(
        f"{name:24s} careless {reported[name, 'margin']}   BPDA {broken[name]}"
    )

# %% tags=["remove-cell"]
for name, value in broken.items():
    claim(
        value.value < plain.value + 0.1
        and 100 * value.high < percent[name, "margin"],
        name,
    )

# %% [markdown]
# ## The loss: scale, targets
#
# `tiny-logits` multiplies the logits by a constant. {ref}`nb-one-loss` did it with a large one, and saw cross-entropy stand still.
#
# :::{prf:proposition} The margin does not see the scale
# :label: prop-scale
# Let $c > 0$ and let PGD climb the {term}`margin` $m(f)$ with sign steps ($\ell_\infty$) or normalised steps ($\ell_2$), from a fixed start, and
# return the iterate of largest margin. In exact arithmetic it returns the same image for $f$ and for $c f$.
# :::
#
# :::{prf:proof}
# The margin is positively homogeneous, $m(c f) = c\, m(f)$. So $\nabla_x m(c f) = c\, \nabla_x m(f)$, with the same sign and
# the same direction. By induction all iterates agree. Multiplication by $c > 0$ preserves the order of the margins, so that the same
# iterate is chosen.
# :::
#
# Cross-entropy has the gradient $\operatorname{softmax}(c f)_k - \mathbf 1[k = y]$ in the logits. For large $c$ it vanishes where the
# model is right. For $c \to 0$ it tends to $1 / K - \mathbf 1[k = y]$: it pulls at *all* wrong classes alike, not at the nearest.
#
# {py:func}`rdc.attack.pgd` offers two remedies. `scale="auto"` divides each image's logits by their own spread. And `targets=k` adds
# runs towards each of the $k$ most likely wrong classes, which helps where the best untargeted direction leads to a dead end.

# %%
tiny = zoo["tiny-logits"]
print(
    f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} on logits "
    f"times {tiny.factor:g}"
)
auto = {"loss": "ce", "scale": "auto"}
variants = {
    "ce": {"loss": "ce"},
    "ce, scale auto": auto,
    "margin": {},
    "margin, 3 targets": {"targets": 3},
}
scaled: dict[str, Accuracy] = {}
for name, options in variants.items():
    scaled[name] = robust_accuracy(
        tiny, x, y, pgd(tiny, x, y, eps=eps, steps=steps, seed=seed, **options)
    )
    print(f"{name:18s} {scaled[name]}")

# %% tags=["remove-cell"]
claim(
    abs(scaled["margin"].correct - plain.correct) <= 2,
    "the proposition, up to rounding",
)
claim(scaled["ce, scale auto"].correct <= scaled["ce"].correct + 2)
claim(
    scaled["margin, 3 targets"].correct <= scaled["margin"].correct,
    "more runs never help the defence",
)

# %% [markdown]
# ## What to remember
#
# - A robust accuracy is an upper bound, made by an attack. A failed attack needs an explanation before it counts as evidence.
# - Missing, zero and shattered gradients: BPDA goes around the step. The verdict is never approximated.
# - The margin with sign or normalised steps does not see the scale of the logits; cross-entropy does.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-softmax
# :::
# **Saturated** (5 minutes, easy). Break `zoo["saturated-softmax"]`: make adversarial images in the ball of radius `eps` of which it keeps no more than the plain network does. Why does the logarithm of its output not help?
#
# :::{hint}
# :class: dropdown
# `zoo["saturated-softmax"].model` is the network behind the softmax.
# :::

# %%
# your code here
x_softmax = None  # adversarial images

# %%
# check
softmax = zoo["saturated-softmax"]
fine = (
    x_softmax is not None
    and float((x_softmax - x).abs().max()) <= eps + 1e-6
    and robust_accuracy(softmax, x, y, x_softmax).correct <= plain.correct + 2
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-softmax
# :label: sol-adaptive-softmax
# :class: dropdown
# :::
# The softmax keeps the order, so the logits before it have the same decisions, and a gradient. The logarithm comes too late: where the
# smaller probabilities have underflowed to zero it is minus infinity, whatever the image.

# %%
x_softmax = pgd(softmax.model, x, y, eps=eps, steps=steps, seed=seed)
solved_softmax = robust_accuracy(softmax, x, y, x_softmax)
with torch.no_grad():
    lost = float((softmax(x) == 0).float().mean())
print(
    f"careless {reported['saturated-softmax', 'margin']}, on the logits "
    f"{solved_softmax}; {100 * lost:.0f} % of the outputs are exactly zero"
)

# %% tags=["remove-cell"]
claim(solved_softmax.correct <= plain.correct + 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-leak
# :::
# **In company** (10 minutes, medium). How many predictions of `zoo["batch-leak"]` on clean images change when you sort the images by class and classify each class
# in a batch of its own? What does that mean for a published accuracy?
#
# :::{hint}
# :class: dropdown
# `predict(..., batch=len(x))` classifies all of them together.
# :::

# %%
# your code here
changed_predictions = None

# %%
# check
among = predict(zoo["batch-leak"], x, batch=len(x))
by_class = among.clone()
for label in y.unique():
    mine = y == label
    by_class[mine] = predict(zoo["batch-leak"], x[mine], batch=int(mine.sum()))
fine = changed_predictions == int((among != by_class).sum())
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-leak
# :label: sol-adaptive-leak
# :class: dropdown
# :::
# In a batch of one class the mean of the logits *is* the class, and it is subtracted. The *predictions* belong to the order in which the
# images happened to stand: {glue:text}`adaptive-leak` So a published accuracy says little about any one image. And an attacker who shares a batch with others can attack them.

# %%
leak = zoo["batch-leak"]
mixed = predict(leak, x, batch=len(x))
alone = mixed.clone()
for label in y.unique():
    alone[y == label] = predict(leak, x[y == label], batch=len(x))
changed_predictions = int((mixed != alone).sum())
print(
    f"{changed_predictions} of {len(x)} predictions change; right: "
    f"{int((mixed == y).sum())} mixed, {int((alone == y).sum())} sorted"
)

# %% tags=["remove-cell"]
kept, kept_alone = int((mixed == y).sum()), int((alone == y).sum())
glue(
    "adaptive-leak",
    f"{changed_predictions} of {len(x)} change with it, though about as many are right, {kept} mixed and {kept_alone} sorted.",
)
claim(changed_predictions > 0.2 * len(x) and abs(kept - kept_alone) <= 0.1 * len(x))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-shattered
# :::
# **Shattered** (15 minutes, medium). `zoo["shattered-gradient"]` has a finite gradient everywhere. Show that it is useless, and break the defence.
#
# :::{hint}
# :class: dropdown
# Compare the gradients at two points a tiny distance apart. Then choose a stand-in: `Preprocessed(process, network, "bpda")`.
# :::

# %%
# your code here
x_shattered = None  # adversarial images

# %%
# check
shattered = zoo["shattered-gradient"]
fine = (
    x_shattered is not None
    and float((x_shattered - x).abs().max()) <= eps + 1e-6
    and robust_accuracy(shattered, x, y, x_shattered).correct
    <= plain.correct + 5
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-shattered
# :label: sol-adaptive-shattered
# :class: dropdown
# :::
# Its gradients at two points a tiny distance apart have little in common. The wave moves each pixel by less than 1 % of its range, so
# the identity is an excellent stand-in.

# %%
def slope_at(model: nn.Module, k: int) -> Tensor:
    """Gradient of the margin at random points near the images, flat."""
    near = random_start(x, "Linf", 1e-3, torch.arange(len(x)), seed + k)
    objective = lambda p: margin(model(p), y)  # noqa: E731
    return value_and_gradient(objective, near)[1].flatten(1)


apart, apart_plain = (
    float(
        nn.functional.cosine_similarity(
            slope_at(model, 0), slope_at(model, 1)
        ).mean()
    )
    for model in (shattered, cnn)
)
print(
    f"cosine of gradients about 1e-3 apart: {apart:.2f}, without the wave "
    f"{apart_plain:.2f}"
)
around_wave = Preprocessed(shattered.process, cnn, "bpda")
x_shattered = pgd(around_wave, x, y, eps=eps, steps=steps, seed=seed)
solved_shattered = robust_accuracy(shattered, x, y, x_shattered)
print(
    f"careless {reported['shattered-gradient', 'margin']}, BPDA "
    f"{solved_shattered}"
)

# %% tags=["remove-cell"]
claim(apart < 0.5 < apart_plain)
claim(solved_shattered.value <= plain.value + 0.1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Obfuscated gradients and BPDA are due to {cite:t}`athalye2018obfuscated`, the practice of adaptive attacks to {cite:t}`tramer2020adaptive`.
