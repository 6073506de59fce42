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
# (nb-optimal-same)=
# # What would change the result?
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what the size of the data set, the weights and the formula each decide.
# - Find an error that no accuracy shows.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-optimal-stored`. Covers the released code of
# {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0
data: str = "fashion-mini"  # data set
n_clean: int = 200  # test images for clean accuracy and agreement
n_attack: int = 20  # attacked test images, the first ones
n_small: int = 100  # test images in the small set D
steps: int = 10  # steps of PGD
eps_linf: list[float] = [8, 16, 32, 64]  # radii in units of 1/255
eps_l2: list[str | float] = [0.5, 1.0, 2.0, 4.0]  # radii in image units
sizes: list[int] = [
    250,
    1000,
    4000,
    10_000,
]  # sizes of D in the growth experiment

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.classify import (
    DiffusionClassifier,
    NearestNeighbor,
    OptimalClassifier,
    ReleasedOptimalClassifier,
)
from rdc.data import Images, load
from rdc.denoise import OptimalDenoiser
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, close_to, glue, needs
from rdc.plots import legend_below, plot_accuracy, style
from rdc.schedule import Levels, levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
train, test = (
    Images(s.x.to(device), s.y.to(device), s.classes) for s in (train, test)
)
x_clean, y_clean = test.x[:n_clean], test.y[:n_clean]
x_attack, y_attack = test.x[:n_attack], test.y[:n_attack]
sets = {
    "attacked": (test.x[:n_small], test.y[:n_small]),
    "train+test": (torch.cat([train.x, test.x]), torch.cat([train.y, test.y])),
    "train": (train.x, train.y),
}
optimal = {
    name: OptimalClassifier(*points, levels("elbo", count=16), seed=seed).to(
        device
    )
    for name, points in sets.items()
    if name != "train+test"
}
neighbour = {"train": NearestNeighbor(*sets["train"]).to(device)}
benchmark = [("Linf", eps_linf[0] / 255), ("L2", eps_l2[0])]


def one_level(x: Tensor, y: Tensor, sigma: float) -> nn.Module:
    """The optimal classifier of ``(x, y)`` with the one level ``sigma`` of
    weight 1: logits ``-m_y``.
    """
    level = Levels(
        torch.tensor([sigma], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    if sigma < 4:
        return OptimalClassifier(x, y, level, seed=seed)
    return DiffusionClassifier(
        OptimalDenoiser(x, y), level, noise="antithetic", draws=2, seed=seed
    )


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in float64 on the CPU, without a gradient."""
    with torch.no_grad():
        return model(x).double().cpu()


# %% tags=["remove-cell"]
needs(
    n_attack <= n_small <= len(test),
    f"n_small = {n_small} must lie in n_attack...{len(test)} = "
    f"{n_attack}...{len(test)}",
)
needs(n_attack <= n_clean, f"n_attack must be at most n_clean = {n_clean}")

# %% [markdown]
# **What would change the result of the optimal classifier?** Neither three errors in its formula, nor the weights, nor the size of its data set make it anything
# else than the nearest-neighbour rule. That says how little some tests test.
#
# ## A larger data set
#
# If $\mathcal D$ is the training set, more data bring the neighbours nearer. Does the classifier become accurate, robust, or
# something other than 1-NN?

# %% tags=["hide-input"]
KINDS = ("elbo", "edm")
growth: dict[str, dict[int, dict[str, Accuracy]]] = {kind: {} for kind in KINDS}
for size_d in [n for n in sizes if n <= len(train)]:
    points = train.x[:size_d], train.y[:size_d]
    nn_rule = NearestNeighbor(*points).to(device)
    for kind in KINDS:
        model = OptimalClassifier(
            *points, levels(kind, count=16), seed=seed
        ).to(device)
        row = {
            "clean": accuracy(model, x_clean, y_clean),
            "clean, attacked images": accuracy(model, x_attack, y_attack),
        }
        row["as 1-NN"] = Accuracy.of(
            int((predict(model, x_clean) == predict(nn_rule, x_clean)).sum()),
            n_clean,
        )
        for norm, eps in benchmark:
            found = pgd(
                model,
                x_attack,
                y_attack,
                norm=norm,
                eps=eps,
                steps=steps,
                seed=seed,
            )
            row[norm] = robust_accuracy(model, x_attack, y_attack, found)
            same = int((predict(model, found) == predict(nn_rule, found)).sum())
            row[f"as 1-NN, {norm}"] = Accuracy.of(same, n_attack)
        growth[kind][size_d] = row
        cells = "  ".join(
            f"{name} {100 * value.value:5.1f}" for name, value in row.items()
        )
        print(f"{kind:4s} |D| = {size_d:6d} (%):  {cells}")

# %% mystnb={"figure": {"caption": "The optimal classifier as its data set grows, with the attacked images outside: clean accuracy, robust accuracy under PGD at 8/255 and 0.5, and agreement with 1-NN on clean images, for two weightings.", "name": "fig-optimal-growth"}, "image": {"alt": "Two panels, ELBO and EDM weights; accuracy grows slowly with the number of images, robust accuracy stays below it, agreement with nearest neighbour is close to 100 percent."}} tags=["hide-input"]
LINES = {
    "as 1-NN": "same decision as 1-NN",
    "clean": "clean",
    "clean, attacked images": "clean, attacked images",
    "L2": "$\\ell_2$, first radius",
    "Linf": "$\\ell_\\infty$, first radius",
}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
for ax, (kind, rows) in zip(axes, growth.items(), strict=True):
    for name, label in LINES.items():
        plot_accuracy(
            ax, list(rows), [row[name] for row in rows.values()], label
        )
    ax.set_xscale("log")
    ax.set(xlabel="images in D", title=f"{kind} weights")
axes[1].set_ylabel("")
legend_below(fig)
plt.show()

# %% tags=["remove-cell"]
first, final = min(growth["elbo"]), max(growth["elbo"])
claim(
    growth["elbo"][final]["clean"].value > growth["elbo"][first]["clean"].value
)
every_row = [row for rows in growth.values() for row in rows.values()]
claim(
    all(
        row[norm].value <= row["clean, attacked images"].value
        for row in every_row
        for norm in ("L2", "Linf")
    )
)
claim(
    growth["elbo"][final]["Linf"].value
    < growth["elbo"][final]["clean, attacked images"].value
)
claim(
    all(
        row["as 1-NN"].value > 0.8
        for rows in growth.values()
        for row in rows.values()
    )
)
glue("optimal-grow-first", first)
glue("optimal-grow-final", final)
glue("optimal-grow-clean-first", 100 * growth["elbo"][first]["clean"].value)
glue("optimal-grow-clean-final", 100 * growth["elbo"][final]["clean"].value)
glue(
    "optimal-grow-agree",
    100
    * min(
        row["as 1-NN"].value
        for rows in growth.values()
        for row in rows.values()
    ),
)

# %% [markdown]
# From {glue:text}`optimal-grow-first` to {glue:text}`optimal-grow-final` images the clean accuracy grows from
# {glue:text}`optimal-grow-clean-first:.1f` % to {glue:text}`optimal-grow-clean-final:.1f` %. The decisions agree with those of 1-NN on
# at least {glue:text}`optimal-grow-agree:.1f` % of the clean images in every row, whatever the weights. Robust accuracy stays
# below clean accuracy, at any size: a test image that is not in $\mathcal D$ starts with a lead $\norm{x - x_j} - \norm{x - x_i}$ that
# may be small, and {prf:ref}`prop-certificate` turns a small lead into a small radius.
#
# ## The formula of the released code
#
# The released code does not compute Corollary 3.3. It differs in three places, here as in the docstring of
# `ReleasedOptimalClassifier`:
#
# 1. The softmax divides by $2\sigma_t$ where the formula has $2\sigma_t^2$: its temperature is too high by $1/\sigma_t$.
# 2. It sums the squares, $\sum_i s_i^2 \norm{x - x_i}^2$, where the formula has the square of the sum.
# 3. Images stay in [0, 1] where the model's are in [-1, 1], so every {term}`noise level` is effectively twice as high.
#
# Does it matter? First for decisions, with the training set as $\mathcal D$, on clean images and on attacked ones.

# %%
n_released = min(60, n_clean)
released = ReleasedOptimalClassifier(*sets["train"], seed=seed).to(device)
verdicts = {
    "released": predict(released, x_clean[:n_released]),
    "formula": predict(
        OptimalClassifier(
            *sets["train"], levels("vp", count=1000), seed=seed
        ).to(device),
        x_clean[:n_released],
    ),
    "1-NN": predict(neighbour["train"], x_clean[:n_released]),
}
released_clean = Accuracy.of(
    int((verdicts["released"] == y_clean[:n_released]).sum()), n_released
)
agreement = {
    k: Accuracy.of(int((verdicts["released"] == verdicts[k]).sum()), n_released)
    for k in ("formula", "1-NN")
}
print(f"clean accuracy of the released formula:   {released_clean}")
for name, value in agreement.items():
    print(f"same decision as {name:8s}                 {value}")

released_small = ReleasedOptimalClassifier(*sets["attacked"], seed=seed).to(
    device
)
released_robust: dict[str, dict[str, Accuracy]] = {"attacked": {}, "train": {}}
for norm, eps in benchmark:
    transferred = {
        name: pgd(
            optimal[name],
            x_attack,
            y_attack,
            norm=norm,
            eps=eps,
            steps=steps,
            seed=seed,
        )
        for name in ("attacked", "train")
    }
    direct = pgd(
        released_small,
        x_attack,
        y_attack,
        norm=norm,
        eps=eps,
        steps=steps,
        seed=seed,
    )
    released_robust["attacked"][norm] = robust_accuracy(
        released_small, x_attack, y_attack, [direct, transferred["attacked"]]
    )
    released_robust["train"][norm] = robust_accuracy(
        released, x_attack, y_attack, transferred["train"]
    )
    for name, how in (
        ("attacked", "direct PGD and transfer"),
        ("train", "transfer from the formula"),
    ):
        print(
            f"D = {name:9s} {norm:4s}  released formula, {how}: "
            f"{released_robust[name][norm]}"
        )

# %% tags=["remove-cell"]
glue("optimal-agree-released", 100 * agreement["1-NN"].value)
claim(agreement["1-NN"].value > 0.75)
claim(all(v.value == 1 for v in released_robust["attacked"].values()))

# %% [markdown]
# With {glue:text}`optimal-agree-released:.0f` % of the decisions shared with 1-NN, three errors in one line change few of them. They sit
# inside a softmax that is nearly one-hot anyway at the low levels that carry most of the weight. With the attacked images in
# $\mathcal D$ the {term}`robust accuracy` does not change at all.
#
# They do change the loss at high noise. For flat weights $s_i = 1/N_y$ the sum of squares is
# $\frac{1}{N_y}$ times the mean of $\norm{x - x_i}^2$: the loss shrinks with the size of the class, and a large class wins. To see
# it, take classes of different sizes and look only at the noisiest step.

# %% tags=["hide-input"]
counts = np.geomspace(400, 40, len(train.classes)).astype(int)
picked = torch.cat(
    [(train.y == k).nonzero()[: counts[k], 0] for k in range(len(counts))]
)
unbalanced = train.x[picked], train.y[picked]
last = {
    "formula": one_level(*unbalanced, float(levels("vp", count=1).sigma)),
    "released": ReleasedOptimalClassifier(*unbalanced, steps=1, seed=seed),
}
size = torch.from_numpy(counts / counts.sum())
bias = {}
for name, model in last.items():
    loss = -logits_of(model.to(device), x_clean[:n_released])
    corr = float(
        np.corrcoef((1 / size).repeat(len(loss)), loss.flatten())[0, 1]
    )
    share = float((loss.argmin(dim=1) == 0).double().mean())
    bias[name] = corr, share
    glue(f"optimal-share-{name}", 100 * share)
    print(
        f"noisiest step, {name:8s}: correlation of loss and 1/N_y "
        f"{corr:5.2f}; largest class predicted for {100 * share:.0f} % of "
        f"images"
    )

# %% tags=["remove-cell"]
claim(
    bias["released"][0] > 0.7 > abs(bias["formula"][0])
    and bias["released"][1] > 3 * bias["formula"][1]
)

# %% [markdown]
# There the released formula predicts the largest class for {glue:text}`optimal-share-released:.0f` % of the images
# (the formula of the paper: {glue:text}`optimal-share-formula:.0f` %). On balanced data with weight on low levels
# nobody notices. That is worth a thought: *a result that does not change under three errors tests very little of the formula.*
#
# ## What to remember
#
# - The optimal classifier is 1-NN, whatever the weights, the size of its data set, and small errors of the formula.
# - Robust accuracy on images that are not stored stays below clean accuracy, at any size.
# - A result that does not change under three errors tests very little of the formula.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-optimal-temperature
# :::
# **Two wrong temperatures** (5 minutes, easy). Take a level $\sigma = 0.04$ and correct all but one error of the list. Which level in model units does the classifier see with the third error alone (images in [0, 1])? And with the first alone: which $\sigma$ has the same divisor in the right formula?
#
# :::{hint}
# :class: dropdown
# Distances in [0, 1] are half of those in model units. Solve $2 s^2 = 2 \sigma$.
# :::

# %%
# your code here
sigma_of_third, sigma_of_first = None, None

# %%
# check
fine = None not in (sigma_of_third, sigma_of_first) and (
    abs(sigma_of_third - 0.08) < 1e-6 and abs(sigma_of_first - 0.2) < 1e-6
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-temperature
# :label: sol-optimal-temperature
# :class: dropdown
# :::
# $2 \sigma$ and $\sqrt \sigma$. Both errors say "more noise" at low levels. But the softmax is one-hot at all of these, so neither changes a decision.

# %%
sigma_of_third, sigma_of_first = 2 * 0.04, 0.04**0.5
print(f"{sigma_of_third:.2f}, {sigma_of_first:.2f}")

# %% tags=["remove-cell"]
claim(max(sigma_of_third, sigma_of_first) < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-lead-proved
# :::
# **A small lead** (10 minutes, medium). Take the training images as $\mathcal D$, and the bound $\tfrac12 \min_j (\norm{x - x_j} - \norm{x - x_i})$ of {prf:ref}`prop-certificate`. For how many of the images `x_clean` does it prove that 1-NN is right within the $\ell_2$ radius 0.5? How many does 1-NN get right at all?
#
# :::{hint}
# :class: dropdown
# `torch.cdist` of flat images; `masked_fill` leaves one class out. Images keep their units, [0, 1].
# :::

# %%
# your code here
proved_half, right_at_all = None, None

# %%
# check
counted = [0.445 * n_clean, 0.825 * n_clean]
fine = close_to((proved_half, right_at_all), counted, within=0.02 * n_clean)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-lead-proved
# :label: sol-optimal-lead-proved
# :class: dropdown
# :::
# The lead is the difference of two distances of about the same size. Compare with an image that is stored: there the second distance is zero.

# %%
apart = torch.cdist(x_clean.flatten(1), train.x.flatten(1))
same = train.y[None] == y_clean[:, None]
own = apart.masked_fill(~same, float("inf")).amin(dim=1)
other = apart.masked_fill(same, float("inf")).amin(dim=1)
proved_half = int(((other - own) / 2 > 0.5).sum())
right_at_all = int((other > own).sum())
print(f"{proved_half} proved, {right_at_all} right, of {n_clean}")

# %% tags=["remove-cell"]
claim(0 < proved_half < right_at_all < n_clean)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-bias
# :::
# **Which error does it?** (15 minutes, medium). The released formula has three errors. Which of them makes the loss at the noisiest step depend on the size of a class? Compute the loss
# at the noisiest step by hand, with flat weights, for the data set `unbalanced` and the images `x_clean[:n_released]`: as a sum of squares, and as the square of a sum. For which share of the images has the largest class the smallest loss?
#
# :::{hint}
# :class: dropdown
# At the noisiest step all $s_i$ are $1 / N_y$. Write the loss as printed in the list above, and as in Corollary 3.3.
# :::

# %%
# your code here
largest_class = {"sum of squares": None, "square of sum": None}

# %%
# check
wanted = {"sum of squares": 0.78, "square of sum": 0.08}
fine = close_to(largest_class, wanted, within=0.03)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-bias
# :label: sol-optimal-bias
# :class: dropdown
# :::
# Only the second: the sum of squares is $\frac1{N_y}$ times the mean of $\norm{x - x_i}^2$. The first and the third change the temperature and the level, and with flat
# weights neither matters. The square of the sum is $\norm{x - \mu_y}^2$, whatever the size.

# %%
flat_x, sums, means = x_clean[:n_released].flatten(1), [], []
for k in range(len(train.classes)):
    points = unbalanced[0][unbalanced[1] == k].flatten(1)
    distance = torch.cdist(flat_x, points).square()
    sums.append(distance.mean(dim=1) / len(points))  # sum of s_i^2 |x - x_i|^2
    means.append((flat_x - points.mean(dim=0)).square().sum(dim=1))
for name, losses in (("sum of squares", sums), ("square of sum", means)):
    predicted = torch.stack(losses, dim=1).argmin(dim=1)
    largest_class[name] = float((predicted == 0).double().mean())
    print(f"{name}: largest class for {100 * largest_class[name]:.0f} %")

# %% tags=["remove-cell"]
claim(largest_class["sum of squares"] > 3 * largest_class["square of sum"])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The classifier and its released code are from {cite:t}`chen2024rdc`. Weights are from {cite:t}`karras2022elucidating` and {cite:t}`ho2020ddpm`, the attack from
# {cite:t}`madry2018towards`.
