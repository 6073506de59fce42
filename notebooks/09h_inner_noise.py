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
# (nb-noised-inner)=
# # The noise inside
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say where the noise of a loss comes from, and cancel its odd part.
# - Say what noise that the classes share saves.
# - Tell what {term}`EPNDC` and the variants of APNDC estimate.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-noised`. Covers shared noise and APNDC of {cite:t}`chen2024ndc`.
#
# The smoothing noise of a noisy image is given. The noise inside the classifier is ours, and its variance costs accuracy. {numref}`fig-cert-noise`
# measures it on the digits with the {term}`optimal denoiser`, where the exact log odds are known.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
sigmas: list[float] = [0.25, 0.5, 1.0]  # smoothing noise, image units
n_images: int = 500  # images of the digits behind the optimal denoiser
n_digits: int = 200  # noisy digits for the variants
n_noise: int = 40  # noisy digits for the study of noise

# %% tags=["hide-input"]
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.certify import APNDC, EPNDC
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import to_model
from rdc.notebook import (
    check_parameters,
    claim,
    close_to,
    glue,
    show_table,
    show_verdicts,
    stored_cells,
)
from rdc.plots import style
from rdc.rng import generator, randn_each
from rdc.runs.verdict import Comparison, decide_all

check_parameters()
style()
digits_train = load("digits", "train")[:n_images]
digits_test = load("digits", "test")
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)


def noisy_digits(count: int, sigma: float) -> Tensor:
    """Test images of the digits with smoothing noise, float64."""
    x = digits_test.x[:count].double()
    keys = [(seed, "certify", "digits", i) for i in range(count)]
    return x + sigma * randn_each(tuple(x.shape[1:]), keys, like=x)


x_noise = noisy_digits(n_noise, sigmas[0])
exact_odds = digits.log_density(to_model(x_noise), 2 * sigmas[0])
pair = exact_odds.topk(2, dim=1).indices
exact_odds = exact_odds.gather(1, pair).diff(dim=1)


def odds(make: Any, seeds: int = 3, **options: Any) -> Tensor:
    """Log odds of the two most likely classes, ``(seeds, N, 1)``."""
    found = []
    for s in range(seed, seed + seeds):
        model = make(digits, sigmas[0], seed=s, chunk=20_000, **options)
        found.append(model(x_noise).gather(1, pair).diff(dim=1))
    return torch.stack(found)


passes = [16, 32, 64, 128]
single = {"count": 8, "antithetic": False}
path = {"form": "fixed", "coupling": "path", "antithetic": False}
designs = {
    "own noise for each class": [
        single | {"coupling": "per_class", "draws": n // 8} for n in passes[:2]
    ],
    "shared by classes": [single | {"draws": n // 8} for n in passes],
    "shared, mirror images": [{"count": 8, "draws": n // 16} for n in passes],
    "one Brownian path": [{"count": n} | path for n in passes],
}
noise_error: dict[str, list[float]] = {}
for name, made in designs.items():
    errors = [odds(EPNDC, **o) - exact_odds for o in made]
    noise_error[name] = [float(e.square().mean().sqrt()) for e in errors]

# %% mystnb={"figure": {"caption": "Error of EPNDC's log odds on noisy digits with the optimal denoiser, by levels times draws, for four kinds of noise. Own noise for each class also needs a pass for each class.", "name": "fig-cert-noise"}, "image": {"alt": "Four falling lines; mirror images far below single draws, shared below own noise", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.6, 3.3))
for (name, v), mark in zip(noise_error.items(), "osD^", strict=True):
    ax.plot(passes[: len(v)], v, marker=mark, label=name)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="levels times draws",
    ylabel="error of log odds (nats)",
)
ax.set_xticks(passes, [str(n) for n in passes])
ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# ## Two kinds of noise, and mirror images
#
# In $\norm{g}^2 - 2 g \cdot (\tilde z - z_\tau)$, the loss of {ref}`sec-cert-noised`,
# the second term is $2 \frac{\tau^2}{u} g \cdot \varepsilon$. Expand $g$ in the noise: $g(\varepsilon) = g(0) + u J \varepsilon + \dots$ Then
#
# ```{math}
# :label: eq-cert-odd
# \frac{2 \tau^2}{u}\, g(\varepsilon) \cdot \varepsilon = \underbrace{\frac{2 \tau^2}{u}\, g(0) \cdot \varepsilon}_{\text{odd, mean } 0} + \underbrace{2 \tau^2\, \varepsilon \cdot J \varepsilon}_{\text{even, mean } 2 \tau^2 \operatorname{tr} J} + \dots
# ```
#
# The odd term has no mean and grows like $1/u$ at the lowest levels. A mirror image, $-\varepsilon$, cancels it. The losses of a clean target have no term with
# $1/u$.
#
# A third way is one Brownian path through all levels of a chain. Then the loss is the log ratio of chain and noise *along the path*, and for the optimal
# denoiser and many levels that is $\log p$ for every single path (Girsanov).

# %% tags=["hide-input"]
print("error of log odds (nats), levels times draws")
print(f"    {'':26s}" + "".join(f"{n:8d}" for n in passes))
for name, v in noise_error.items():
    print(f"    {name:26s}" + "".join(f"{x:8.2f}" for x in v))
first_of = {name: v[0] for name, v in noise_error.items()}
shared = first_of["shared by classes"]
shared_gain = (first_of["own noise for each class"] / shared) ** 2
mirror_gain = (shared / first_of["shared, mirror images"]) ** 2
print("APNDC, spread of log odds over seeds, 32 levels times draws:")
choices = {
    "16 levels, mirror images": {"antithetic": True},
    "16 levels, two draws": {"draws": 2},
    "32 levels": {"count": 32},
}
for name, o in choices.items():
    spread = odds(APNDC, seeds=4, **o).var(dim=0).mean().sqrt()
    print(f"    {name:26s}{float(spread):8.2f}")

# %% tags=["remove-cell"]
claim(mirror_gain > 1.5 and shared_gain > 1)
glue("cert-mirror", f"{mirror_gain:.1f}")
glue("cert-shared", f"{shared_gain:.1f}")

# %% [markdown]
# At the same number of evaluations, mirror images divide the squared error by {glue:text}`cert-mirror`, and sharing the noise between classes divides it by
# {glue:text}`cert-shared`. Sharing also lets one pass of a {term}`multi-head` network serve all classes.
#
# With this perfect model the path does as well as mirror images, or better. It needs a chain, whose error at few levels is that of {numref}`fig-cert-gap`, and a trained network has no
# theorem behind it. The default of the package is the quadrature with mirror images.
#
# ## APNDC
#
# The second classifier of {cite:t}`chen2024ndc` denoises first, $\hat z = D(z_\tau, \tau)$ without a class, and takes $\hat z$ as the target:
# $f_y = -\sum_t w_t \E \norm{D(z_s, s, y) - \hat z}^2$. The released code has three variants of it:
#
# :::{table} Three variants of APNDC
#
# | variant | start of the noise | target | what it estimates |
# |---|---|---|---|
# | `ensemble` | $\hat z + s \varepsilon$ | $\hat z$ | an average of EPNDC, see below; what the released scripts certify |
# | `correct` | $z_\tau + u_s \varepsilon$ | $\hat z$ | on average EPNDC, with less noise in the target |
# | `condition-on-y` | $z_\tau + u_s \varepsilon$ | $D(z_\tau, \tau, y)$ | how well class $y$ reproduces its own guess |
#
# :::
#
# :::{prf:proposition} What APNDC estimates, for the optimal denoiser
# :label: prop-cert-apndc
# With exact integrals, and up to numbers without $y$: **(a)** with the exact weight, $\sigma^{-3}$, `ensemble` is
# $\E_{z' \sim \mathcal N(\hat z, \tau^2 I)} \log p_\tau(z' \mid y)$, less the same at the last level. **(b)** With any weight, and
# for $z_\tau$ from the mixture of all classes, `correct` and EPNDC have the same mean, level by level.
# :::
#
# :::{prf:proof}
# (a) This is {prf:ref}`thm-identity` at the point $\hat z$, from $\sigma_0 = \tau$ upwards. (b)
# $\norm{D_y - \tilde z}^2 - \norm{D_y - \hat z}^2 = -2 D_y \cdot (\tilde z - \hat z)$ plus terms without $y$. Given $z_s$, both $\tilde z$ and $\hat z$ have
# the mean $\E[z \mid z_s]$: the first by {prf:ref}`prop-cert-bound`, the second because $z_\tau$ knows more than $z_s$. As $D_y$ is a function of $z_s$, the
# product has mean zero.
# :::
#
# So `ensemble` forgets what $z_\tau$ says beyond $\hat z$, and averages EPNDC over new noise around it. It gives up information, and is rid of the noise of the
# pseudo target. Which of the two weighs more has to be measured, and again for a trained model. In (b) it mattered that the target is the *same* for all
# classes ({ref}`ex-cert-target`).
#
# The variants classify noisy digits, beside the exact posterior.

# %% tags=["hide-input"]
variants: dict[str, Any] = {
    "EPNDC, 16 levels, one draw": partial(EPNDC, count=16, antithetic=False),
    "EPNDC, 8 levels, mirror images": partial(EPNDC),
    "EPNDC, 8 levels, 8 mirrored draws": partial(EPNDC, draws=8),
    "EPNDC as released": partial(
        EPNDC,
        form="released",
        weight="edm-released",
        count=124,
        antithetic=False,
    ),
    "APNDC, ensemble": partial(APNDC),
    "APNDC, correct": partial(APNDC, variant="correct"),
    "APNDC, condition-on-y": partial(APNDC, variant="condition-on-y"),
    "APNDC, ensemble, as released": partial(
        APNDC, released=True, weight="edm-released", count=124
    ),
}
answers: dict[tuple[str, float], Tensor] = {}
labels = digits_test.y[:n_digits]
for s in sigmas:
    x_s = noisy_digits(n_digits, s)
    exact = digits.log_density(to_model(x_s), 2 * s)
    answers["Bayes' rule", s] = exact.argmax(dim=1)
    for name, make in variants.items():
        model = make(digits, s, seed=seed, chunk=20_000)
        answers[name, s] = model(x_s).argmax(dim=1)
right_share, as_bayes = {}, {}
for key, found in answers.items():
    wanted = answers["Bayes' rule", key[1]]
    right_share[key] = float((found == labels).double().mean())
    as_bayes[key] = float((found == wanted).double().mean())


def table_of(shares: dict[tuple[str, float], float], what: str) -> None:
    """One row a classifier, one column a smoothing noise."""
    rows = []
    for name in ("Bayes' rule", *variants):
        cost = (
            variants[name](digits, 0.25).evaluations
            if name in variants
            else None
        )
        row = {"classifier": name, "passes": cost}
        rows.append(
            row | {f"{s:g}": f"{100 * shares[name, s]:.1f} %" for s in sigmas}
        )
    show_table(rows, f"{what}, by smoothing noise; {n_digits} noisy digits")


table_of(as_bayes, "Answers of Bayes' rule")

# %% tags=["hide-input", "hide-output"]
table_of(right_share, "Right answers")

# %% tags=["remove-cell"]
eight = "EPNDC, 8 levels, 8 mirrored draws"
for s in sigmas:
    own = right_share["APNDC, condition-on-y", s]
    claim(own < right_share["APNDC, correct", s])
    claim(as_bayes[eight, s] > as_bayes["EPNDC, 16 levels, one draw", s])
low, high = sigmas[0], sigmas[-1]
few = as_bayes["EPNDC, 8 levels, mirror images", low]
claim(as_bayes["APNDC, ensemble", low] >= few)
claim(as_bayes["APNDC, ensemble", high] < as_bayes[eight, high])

# %% [markdown]
# Passes are counted with all classes in one.
# With a perfect model, EPNDC is limited by the noise inside it: with many draws it becomes Bayes' rule. APNDC is nearly without that noise. At low smoothing
# noise it decides like Bayes' rule at a few passes; at high noise the estimate $\hat z$ has lost too much, and more passes would not bring it back.
# `condition-on-y` is no classifier with this model. With trained heads it can still be right often (the rows behind
# {numref}`fig-cert-levels`); but nothing says that it must be.
#
# ## What holds
#
# On this page noise that the
# classes share divided the squared error of the log odds by {glue:text}`cert-shared` at equal evaluations. The stored cells say whether shared noise gets more noisy images
# of `fashion-mini` right, and more answers of 124 levels, with eight single-head levels:

# %% tags=["hide-input"]
level_cells = stored_cells("certificates-levels")


def counts_of(base: str, coupling: str, key: str) -> tuple[int, int]:
    """How many of how many noisy images, with eight single-head levels."""
    wanted = {
        "base": base,
        "coupling": coupling,
        "denoiser": "single head",
        "levels": 8,
        "sigma": 0.25,
    }
    (share,) = (
        f.accuracy(key)
        for f in level_cells
        if wanted.items() <= f.row.about.items()
    )
    return share.correct, share.n


pairs = [
    Comparison(
        counts_of(base, "shared", key), counts_of(base, "per_class", key)
    )
    for base in ("EPNDC", "APNDC")
    for key in ("right", "agrees")
]
words = "B6 shared noise: more images right, more as with 124 levels"
show_verdicts({words: decide_all(pairs)[0]})

# %% [markdown]
# Not run: CIFAR-10 and ImageNet, in any form; the networks of the paper. "As released" is commit 410b09f of its code.
#
# ## What to remember
#
# - Mirror images remove the odd noise of EPNDC; noise shared by the classes helps, too.
# - APNDC `ensemble` classifies the denoised image, without the noise of the pseudo target.
# - A target that depends on the class has no theorem behind it, and fails with a perfect model.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-target
# :::
# **Its own target** (15 minutes, hard). Write the loss with a target $c$ as $\E \norm{D_y}^2 - 2 \E[D_y \cdot c] + \E
# \norm{c}^2$. Why may a common target take the place of $\tilde z$, and what goes wrong with a target $c_y = D(z_\tau,
# \tau, y)$ of each class? Which digit should the variant `condition-on-y` then prefer? Compute it from the training
# images, before you count answers.
#
# :::{hint}
# :class: dropdown
# Under class $y$ the mean of $c_y$ given $z_s$ is $D_y$ itself. What does the loss then measure, and for which images
# is that small?
# :::

# %%
# your code here
preferred = None  # a digit

# %%
# check
make = partial(APNDC, digits, sigmas[0], seed=seed, chunk=20_000)
answers = make(variant="condition-on-y")(noisy_digits(n_digits, sigmas[0]))
counts = answers.argmax(dim=1).bincount(minlength=10)
fine = preferred == int(counts.argmax())
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-target
# :label: sol-cert-target
# :class: dropdown
# :::
# For a common $c$ with $\E[c \mid z_s] = \E[z \mid z_s]$ the middle term is that of EPNDC in the mean, and the last one
# cancels between classes. For $c_y$ the mean given $z_s$ *under class y* is $D_y$ itself: the loss of class $y$
# measures how much $D_y$ changes when noise is added, for *every* class, whether it fits or not. It is smallest for the
# class of the most similar images.

# %%
within = torch.stack(
    [
        to_model(digits_train.x[digits_train.y == k])
        .flatten(1)
        .var(dim=0)
        .sum()
        for k in range(10)
    ]
)
preferred = int(within.argmin())
print("spread ", *(f"{v:4.0f}" for v in within.tolist()))
print("answers", *(f"{v:4d}" for v in counts.tolist()))

# %% tags=["remove-cell"]
claim(preferred == int(counts.argmax()))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-mirror
# :::
# **When do mirror images pay?** (10 minutes, medium). A loss depends on one noise $\varepsilon \sim \mathcal N(0, 1)$
# as $a \varepsilon + b \varepsilon^2$. Which variance has the mean of two independent draws, and which the mean of
# $\varepsilon$ and $-\varepsilon$, for $a = 2$ and $b = 0.5$? From which $b / a$ on is the mirror image the worse
# choice?
#
# :::{hint}
# :class: dropdown
# $\operatorname{var} \varepsilon^2 = 2$, and $\varepsilon$ and $\varepsilon^2$ are uncorrelated.
# :::

# %%
# your code here
independent, mirrored, turn = None, None, None

# %%
# check
fine = close_to((independent, mirrored), (2.25, 0.5), within=1e-2)
fine = fine and turn is not None and turn > 0 and abs(turn**2 - 0.5) < 1e-2
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-mirror
# :label: sol-cert-mirror
# :class: dropdown
# :::
# Independent: $(a^2 + 2 b^2) / 2$. Mirrored: the odd part is gone and the even one is the same twice, $2 b^2$. They are
# equal at $b / a = 1 / \sqrt 2$. The loss of EPNDC is mostly odd in the noise of the target, so mirror images pay
# there.

# %%
a, b = 2.0, 0.5
independent, mirrored, turn = (a**2 + 2 * b**2) / 2, 2 * b**2, 0.5**0.5
eps = torch.randn(2, 200_000, generator=generator(seed, "mirror"))
loss = a * eps + b * eps**2
pairs = (loss[0] + a * -eps[0] + b * eps[0] ** 2) / 2
print(f"independent {float(loss.mean(0).var()):.2f}, by formula {independent}")
print(f"mirrored {float(pairs.var()):.2f}, by formula {mirrored}")

# %% tags=["remove-cell"]
claim(abs(float(pairs.var()) - mirrored) < 0.05)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-shared
# :::
# **What sharing saves** (5 minutes, easy). The losses of two classes have noise of the same variance. With a noise of its own for each class they are independent, with shared
# noise their correlation is $c$. By which factor does the variance of their difference fall for $c = 0.9$? And which correlation belongs to `shared_gain`,
# the factor measured above?
#
# :::{hint}
# :class: dropdown
# The variance of a difference is $2 s^2 (1 - c)$.
# :::

# %%
# your code here
factor_of, correlation = None, None

# %%
# check
fine = close_to(factor_of, 10, within=1e-6) and correlation is not None
fine = fine and close_to(shared_gain * (1 - correlation), 1, within=0.02)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-shared
# :label: sol-cert-shared
# :class: dropdown
# :::
# The factor is $1 / (1 - c)$. The correlation behind a measured factor is that of the part of the noise that averages out in the same way; other
# errors, of the grid, stay in both.

# %%
factor_of, correlation = 1 / (1 - 0.9), 1 - 1 / shared_gain
print(f"factor {factor_of:.0f}; correlation {correlation:.2f}")

# %% tags=["remove-cell"]
claim(0 < correlation < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Noised diffusion classifiers: {cite:t}`chen2024ndc`; denoise, then classify: {cite:t}`carlini2023certified`. The images are those of
# {cite:t}`xiao2017fashion` and {cite:t}`alpaydin1998digits`.
