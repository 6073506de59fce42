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
# (nb-adaptive-purify)=
# # Through a purification
#
# :::{admonition} What you will be able to do
# :class: tip
# - Differentiate through a defence: exactly with checkpoints, or with a stand-in in the backward pass.
# - Run the Lagrange attack and the feature attack, and say what each can and cannot find.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-adaptive` and {ref}`nb-optimal`. Covers Eq. 10, Table 2 and
# appendix B.2 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
steps: int = 10  # gradient steps of PGD on the network
eps: str | float = 8 / 255  # Linf radius, image units
n_purify: int = 20  # images for the purified network
purify_steps: list[int] = [1, 4]  # steps N of the purification
eps_purify: str | float = (
    16 / 255
)  # Linf radius for the purified network, image units
n_train: int = 1000  # training images in the optimal classifier
n_optimal: int = 20  # images for attacks on it

# %% tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.attack.feature import feature
from rdc.attack.lagrange import lagrange
from rdc.attack.losses import margin
from rdc.autograd import iterate, value_and_gradient
from rdc.classify import OptimalClassifier
from rdc.data import load
from rdc.defend.preprocessed import Preprocessed, one_denoising_step
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy, robust_accuracy
from rdc.notebook import check_parameters, claim, close_to
from rdc.plots import image_grid, style
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
optimal = OptimalClassifier(
    train.x[:n_train], train.y[:n_train], levels("elbo", 16), seed=seed
).to(device)
xo, yo = x[:n_optimal], y[:n_optimal]
denoiser = load_denoiser(data, device=device)
xp, yp = x[:n_purify], y[:n_purify]


def purify(
    x: Tensor,
    count: int,
    recompute: bool = True,
    sigma: float = 0.4,
    rate: float = 0.5,
) -> Tensor:
    """``count`` steps towards the denoised image, images in [0, 1] to images
    in [0, 1].
    """
    level = torch.full((len(x),), sigma, device=x.device)
    found = iterate(
        lambda z, _: z + rate * (denoiser(z, level) - z),
        2 * x - 1,
        count,
        recompute,
    )
    return ((found + 1) / 2).clamp(0, 1)


# %% [markdown]
# **What does an attacker gain who differentiates through the defence?** Our example is a {term}`purification`: it moves an image towards a denoised one before the network sees it.

# %% mystnb={"figure": {"caption": "Six test images (above), after one step of the purification (middle) and after four (below).", "name": "fig-adaptive-purify"}, "image": {"alt": "Three rows of six garments; from row to row they lose detail", "width": "70%"}} tags=["hide-input"]
with torch.no_grad():
    rows = [xp[:6], purify(xp[:6], 1), purify(xp[:6], 4)]
image_grid(torch.cat(rows), columns=6, size=0.95)
plt.show()


# %% [markdown]
# (sec-adaptive-exact)=
# ## Through the step: exact gradients
#
# {term}`BPDA` is a guess, and a defence that moves the image far can make it a poor one. When the process is differentiable we need not guess.
#
# The purification takes $N$ steps that pull the image towards its denoised version,
#
# ```{math}
# :label: eq-purify
# z_{i+1} = z_i + \eta \big( D(z_i; \sigma) - z_i \big), \qquad i = 0 \dots N - 1,
# ```
#
# followed by the network. With the score $\nabla_z \log p_\sigma = (D - z) / \sigma^2$ ({ref}`nb-diffusion`) this is gradient ascent
# on a log-likelihood, a simple relative of the {term}`likelihood maximisation` of {cite:t}`chen2024rdc`.
#
# Backpropagation through $N$ steps keeps the activations of $N$ networks. *Checkpointing* keeps only the $N$ images $z_i$ and runs
# each step again when the backward pass arrives there {cite}`chen2016training`: one more forward pass, the memory of one step,
# and the same gradient.


# %%
def slope_and_bytes(count: int, recompute: bool) -> tuple[Tensor, int]:
    """Gradient of the margin through the purification, and the bytes that
    autograd saves for it on the way.
    """
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel() * t.element_size())
        return t

    point = xp.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = margin(cnn(purify(point, count, recompute)), yp).sum()
    return torch.autograd.grad(loss, point)[0], sum(saved)


one_step = slope_and_bytes(1, False)[1]
for n in purify_steps:
    plain_slope, saved = slope_and_bytes(n, False)
    gap = float(
        (slope_and_bytes(n, True)[0] - plain_slope).norm() / plain_slope.norm()
    )
    with_checkpoints = (
        one_step + n * xp.numel() * xp.element_size()
    )  # by construction: one step at a time, and the images
    print(
        f"N = {n}: plain {saved / 2**20:5.1f} MiB, checkpoints "
        f"{with_checkpoints / 2**20:5.1f}; gradients agree: {gap < 1e-3}"
    )

# %% tags=["remove-cell"]
assert gap < 1e-3
claim(saved > 2 * one_step)

# %% [markdown]
# Now three gradients of one defence, by name ({py:class}`rdc.defend.preprocessed.Preprocessed`). `bpda` takes the identity for the
# purification, `denoise` the Jacobian of a single denoising step, `exact` all of it. The verdict is always that of the defence.
# The radius was chosen after a look at a smaller one, at which the three hardly differed.

# %%
surrogate = one_denoising_step(denoiser, 0.4)
purified: dict[tuple[int, str], tuple[Accuracy, float]] = {}
print(
    f"{n_purify} images, Linf {255 * eps_purify:.0f}/255, PGD-{steps}: "
    f"surviving images (mean margin reached)"
)
for n in purify_steps:
    process = partial(purify, count=n)
    defence = Preprocessed(process, cnn)
    for name in ("bpda", "denoise", "exact"):
        attacked = Preprocessed(
            process, cnn, name, surrogate if name == "denoise" else None
        )
        x_adv = pgd(attacked, xp, yp, eps=eps_purify, steps=steps, seed=seed)
        with torch.no_grad():
            reached = float(margin(defence(x_adv), yp).mean())
        purified[n, name] = robust_accuracy(defence, xp, yp, x_adv), reached
    line = "   ".join(
        f"{k} {purified[n, k][0].correct:2d} ({purified[n, k][1]:+.2f})"
        for k in ("bpda", "denoise", "exact")
    )
    print(f"N = {n}: clean {accuracy(defence, xp, yp).correct:2d}   {line}")

# %% tags=["remove-cell"]
# the exact gradient climbs at least as high as a guess, up to the luck of so few images
for n in purify_steps:
    claim(
        purified[n, "exact"][1]
        >= max(purified[n, "bpda"][1], purified[n, "denoise"][1]) - 0.5
    )


# %% [markdown]
# The mean {term}`margin` is the finer measure here: positive is wrong, and it moves when the count does not. Compare the columns as $N$ grows.
#
# :::{admonition} A question to the paper
# :class: note
# Table 2 of {cite:t}`chen2024rdc` finds BPDA about as strong as the exact gradient, and says that the exact gradient was affordable
# for $N = 1$ only. Does it hold for $N = 5$, the setting of the defence? Checkpoints make the comparison affordable; {ref}`nb-lm-attacks` makes it.
# :::
#
# (sec-adaptive-likely)=
# ## Staying likely: Lagrange and feature attacks
#
# A purification moves an image until it is likely. An attacker may look for an {term}`adversarial image` that is likely already, and will
# therefore stay where it is. The *Lagrange attack* (Eq. 10 of {cite:t}`chen2024rdc`) climbs
#
# ```{math}
# :label: eq-lagrange
# \begin{gathered}
# \ell(f(x), y) - l \cdot P(x), \\
# P(x) = \norm{z - D(z; \sigma)}^2 \text{ or another diffusion loss},
# \end{gathered}
# ```
#
# for several weights $l$, and an image counts as broken if any weight breaks it. The union matters: the weight $l = 0$ is the plain
# attack, so the union over weights *cannot* be weaker than the attack that it contains. If a table says that it is, then the base loss of
# one was worse than that of the other.
#
# We attack the purified network of {ref}`sec-adaptive-exact`, with the identity for its gradient, so that the penalty has something to add.


# %% tags=["hide-input"]
def unlikely(x: Tensor) -> Tensor:
    """How far denoising moves each image, squared, model units, ``(N,)``."""
    level = torch.full((len(x),), 0.4, device=x.device)
    return (denoiser(2 * x - 1, level) - (2 * x - 1)).square().flatten(1).sum(1)


process = partial(purify, count=max(purify_steps))
defence, attacked = (
    Preprocessed(process, cnn),
    Preprocessed(process, cnn, "bpda"),
)
by_weight: dict[float, Tensor] = {}
for weight in (0.0, 1.0, 10.0):
    by_weight[weight] = lagrange(
        attacked,
        xp,
        yp,
        unlikely,
        weights=(weight,),
        eps=eps_purify,
        steps=steps,
        seed=seed,
    )
    with torch.no_grad():
        print(
            f"l = {weight:4.0f}: surviving "
            f"{robust_accuracy(defence, xp, yp, by_weight[weight]).correct:2d} of {n_purify},",
            end=" ",
        )
        print(
            f"penalty {float(unlikely(by_weight[weight]).mean()):6.1f} (clean "
            f"{float(unlikely(xp).mean()):.1f})"
        )
union = robust_accuracy(defence, xp, yp, list(by_weight.values()))
print(f"union of the weights: surviving {union.correct:2d}")

# %% tags=["remove-cell"]
claim(
    union.correct
    <= min(
        robust_accuracy(defence, xp, yp, a).correct for a in by_weight.values()
    )
)
with torch.no_grad():
    claim(
        float(unlikely(by_weight[10.0]).mean())
        <= float(unlikely(by_weight[0.0]).mean()) * 1.02,
        "the penalty does its work",
    )

# %% [markdown]
# :::{admonition} A question to the paper
# :class: note
# In Table 2 the Lagrange attack leaves *more* images than BPDA. Its weight $l = 0$ is a cross-entropy attack; BPDA ran,
# by the paper, in AutoAttack, and in the released code with the DLR loss alone. So how much of the comparison is about the penalty, and how much about the loss?
# :::
#
# The *feature attack* {cite}`sabour2016adversarial` has another aim: an image near $x$ that the model represents like a real image
# $x_t$ of another class. With the {term}`logits` as representation,
#
# ```{math}
# :label: eq-feature
# \min_{x' \in \mathcal B(x, \epsilon)} \norm{f(x') - f(x_t)}^2 .
# ```
#
# It fools a detector of strange logits along with the classifier. As a pure attack on the classifier it asks for too much: to
# match all logits where passing one would do. Appendix B.2 of {cite:t}`chen2024rdc` finds it weaker than BPDA. One must take care with the
# sign and the scale: pulling logits that are minus a loss of hundreds towards a small positive number makes an image *more* likely
# under every class.

# %% tags=["hide-input"]
feature_rows: dict[str, Accuracy] = {}
for name, model in {"CNN": cnn, "optimal classifier": optimal}.items():
    attacks = {
        "feature": partial(feature, steps=2 * steps),
        "feature as released": partial(
            feature, steps=2 * steps, variant="released"
        ),
        "PGD": partial(pgd, steps=2 * steps),
    }
    for key, attack in attacks.items():
        with torch.no_grad():
            x_adv = attack(model, xo, yo, eps=eps, seed=seed)
            raised = float(
                (model(x_adv) - model(xo)).gather(1, yo[:, None]).mean()
            )
        feature_rows[f"{name}, {key}"] = value = robust_accuracy(
            model, xo, yo, x_adv
        )
        print(
            f"{name:18s} {key:20s} surviving {value.correct:2d} of "
            f"{n_optimal}; logit of the true class {raised:+.2f}"
        )

# %% tags=["remove-cell"]
for name in ("CNN", "optimal classifier"):
    claim(
        feature_rows[f"{name}, PGD"].correct
        <= feature_rows[f"{name}, feature"].correct + 1
    )

# %% [markdown]
# ## What to remember
#
# - A differentiable process can be attacked exactly: checkpoints keep one step's memory, for one more forward pass.
# - The union over the weights of a Lagrange attack contains the plain attack, and cannot be weaker.
# - A feature attack asks for more than an attack on the classifier needs.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-memory
# :::
# **A thousand steps** (5 minutes, easy). One step of a purification saves 45 MiB for autograd, its images take 0.06 MiB. How much memory do 1000 steps need, plainly and with checkpoints (the images, and one step at a time)? How many forward evaluations of the network does a gradient take with checkpoints?
#
# :::{hint}
# :class: dropdown
# With checkpoints each step runs once on the way there and once more on the way back.
# :::

# %%
# your code here
plain_mib, checkpoint_mib, forward_passes = None, None, None

# %%
# check
fine = None not in (plain_mib, checkpoint_mib) and (
    abs(plain_mib - 45_000) < 1
    and abs(checkpoint_mib - 105) < 1
    and forward_passes == 2000
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-memory
# :label: sol-adaptive-memory
# :class: dropdown
# :::
# "The exact gradient does not fit" is seldom true: it costs a third more time, not a thousand times the memory.

# %%
plain_mib, checkpoint_mib = 1000 * 45, 45 + 1000 * 0.06
forward_passes = 2 * 1000
print(plain_mib, checkpoint_mib, forward_passes)

# %% tags=["remove-cell"]
claim(plain_mib > 400 * checkpoint_mib)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-union
# :::
# **The union of the weights** (5 minutes, easy). A Lagrange attack breaks the images 1, 2, 3 of ten with the weight 0, the images 3, 4 with the weight 1, and 2, 5 with the weight 10. How many survive the best single weight, and how many the union? What does a table show that prints only the weight 10?
#
# :::{hint}
# :class: dropdown
# An image is broken if any weight breaks it.
# :::

# %%
# your code here
left_by_best, left_by_union = None, None

# %%
# check
fine = (left_by_best, left_by_union) == (7, 5)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-union
# :label: sol-adaptive-union
# :class: dropdown
# :::
# The union is the attack; a weight is a part of it. Such a table would show eight, and an attack that is weaker than the plain one with the weight 0.

# %%
broken_by = [{1, 2, 3}, {3, 4}, {2, 5}]
left_by_best = 10 - max(map(len, broken_by))
left_by_union = 10 - len(set.union(*broken_by))
print(left_by_best, left_by_union)

# %% tags=["remove-cell"]
claim(left_by_union <= left_by_best)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-jacobian
# :::
# **When is the identity fair?** (10 minutes, medium). One step of the purification has the Jacobian $(1 - \eta) I + \eta J_D$. What is it for a {term}`denoiser` that returns a constant, and for one that returns its
# input? Measure the mean cosine of the exact gradient and of BPDA, for one and for four steps, at the images `xp`.
#
# :::{hint}
# :class: dropdown
# `Preprocessed(process, cnn, "bpda")` and `Preprocessed(process, cnn)` have the same values; `value_and_gradient` gives both gradients.
# :::

# %%
# your code here
cosines = {1: None, 4: None}  # by the number of steps

# %%
# check
fine = close_to(cosines, {1: 0.88, 4: 0.46}, within=0.04)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-jacobian
# :label: sol-adaptive-jacobian
# :class: dropdown
# :::
# $(1 - \eta) I$ and $I$: in both cases the identity points in the right direction. A denoiser between the two keeps some directions and removes others, and with every step the identity is less like it.

# %%
for n in purify_steps:
    parts = []
    for how in ("exact", "bpda"):
        model = Preprocessed(partial(purify, count=n), cnn, how)
        parts.append(
            value_and_gradient(lambda p, f=model: margin(f(p), yp), xp)[1]
        )
    alike = nn.functional.cosine_similarity(*(p.flatten(1) for p in parts))
    cosines[n] = float(alike.mean())
    print(f"N = {n}: cosine of exact gradient and BPDA {cosines[n]:.2f}")

# %% tags=["remove-cell"]
claim(cosines[max(purify_steps)] < cosines[min(purify_steps)])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Checkpoints are due to {cite:t}`chen2016training`, BPDA to {cite:t}`athalye2018obfuscated`, the feature attack to {cite:t}`sabour2016adversarial`. The Lagrange attack and the questions come from
# {cite:t}`chen2024rdc`.
