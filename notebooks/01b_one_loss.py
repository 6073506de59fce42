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
# (nb-one-loss)=
# # One loss is not enough
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say why a constant in a defence can hide a broken model from one attack.
# - Run {term}`AutoAttack`, and say what each of its parts is for.
# - List what an evaluation of robustness must report.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-first-attack`.
# Prepares for Section 4.1 (evaluation settings) of {cite:t}`chen2024rdc`.
#
# An attack that fails says little: it may be the attack that is broken. Here is the simplest way to break one.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of every random number
data: str = "fashion-mini"  # data set, see rdc.data.load
epochs: int = 10  # passes over the training images
n_attack: int = 200  # test images for PGD
n_auto: int = 40  # test images for AutoAttack
steps: int = 20  # gradient steps of PGD
auto_steps: int = 20  # iterations of APGD and FAB inside AutoAttack
auto_queries: int = 200  # queries of Square inside AutoAttack
eps_auto: str | float = 24 / 255  # Linf radius for AutoAttack, image units

# %% tags=["hide-input"]
import warnings

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.attack import autoattack, pgd
from rdc.attack.losses import LOSSES
from rdc.attack.norms import norm_of
from rdc.data import load
from rdc.evaluate import Accuracy, accuracy, robust_accuracy
from rdc.notebook import check_parameters, claim, close_to, glue, show_table
from rdc.plots import style
from rdc.train.classifiers import train_classifier

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
train, test = load(data, "train"), load(data, "test")
model = train_classifier(train, epochs, batch=64, lr=1e-2, width=16, seed=seed, device=device)
x, y = test.x.to(device), test.y.to(device)
xa, ya = x[:n_attack], y[:n_attack]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Size (L1 norm) of the gradient of three losses with respect to the logits (3, 1, 0, -1) of a right answer, which are multiplied by a factor. The classifier is the same at every factor. In float32 the gradient of the cross-entropy ends where the line does: beyond, it is exactly zero.", "name": "fig-one-loss"}, "image": {"alt": "The line of the margin is flat, that of the ratio of logits falls slowly, that of the cross-entropy falls off a cliff", "width": "70%"}}
factors = torch.logspace(-3, 3, 121)
logits = torch.tensor([3.0, 1.0, 0.0, -1.0]) * factors[:, None]
label = torch.zeros(len(factors), dtype=torch.long)
fig, ax = plt.subplots(figsize=(6, 3.3))
for name, words in {"ce": "cross-entropy", "margin": "margin", "dlr": "ratio (DLR)"}.items():
    point = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name](point, label).sum(), point)
    size = slope.abs().sum(dim=1)
    ax.loglog(factors[size > 0], size[size > 0], label=words)
ax.set(xlabel="factor on the logits", ylabel="size of the gradient", ylim=(1e-48, 1e6))
ax.legend()
plt.show()

# %% [markdown]
# ## A factor on the logits
#
# Multiply the logits by 1000. Every prediction stays the same, so the robust accuracy is the same. Does an attack still find it?
#
# The cross-entropy is $-\log \operatorname{softmax}(f)_y$. Its gradient with respect to the logits is
#
# ```{math}
# :label: eq-ce-gradient
# \frac{\partial L}{\partial f_k} = \operatorname{softmax}(f)_k - \mathbf 1[k = y] .
# ```
#
# If class $y$ leads every other by $m$, no entry is larger than $(K - 1)\, e^{-m}$.
# In float32 the softmax rounds to exactly one near $m = 17$, and its other entries to exactly zero near $m = 104$ (near 88 where the hardware drops subnormal numbers).
# Then the gradient is zero, its sign is zero, and the attack stands still.
#
# The *margin* $\max_{k \ne y} f_k - f_y$ has a gradient with one $+1$ and one $-1$ at every scale {cite}`carlini2017towards`.
# It is positive exactly when the prediction is wrong.
# The *difference of logits ratio* (DLR) divides the margin by the gap between the largest and the third largest logit, and is free of scale {cite}`croce2020autoattack`.


# %%
class Scaled(nn.Module):
    """A model whose logits have a factor: the same classifier."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


def dead_share(model: nn.Module, loss: str) -> float:
    """The share of right images at which the gradient is exactly zero."""
    point = xa.clone().requires_grad_()
    logits = model(point)
    (g,) = torch.autograd.grad(LOSSES[loss](logits, ya).sum(), point)
    right = logits.argmax(dim=1) == ya
    return float((norm_of(g[right], "L2") == 0).float().mean())


found: dict[tuple[str, float], Accuracy] = {}
dead: dict[tuple[str, float], float] = {}
rows = []
for loss in LOSSES:
    row = {"loss": loss}
    for factor in (1e-3, 1.0, 1e3):
        scaled, key = Scaled(model, factor), (loss, factor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # most gradients are zero
            x_adv = pgd(scaled, xa, ya, steps=steps, loss=loss, seed=seed)
        found[key] = robust_accuracy(model, xa, ya, x_adv)
        dead[key] = dead_share(scaled, loss)
        shown = f"{found[key].correct} ({100 * dead[key]:.0f} %)"
        row[f"factor {factor:g}"] = shown
    rows.append(row)
show_table(
    rows,
    f"Images right of {n_attack} after PGD-{steps}, Linf 8/255 (share of "
    "right images with no gradient at the start)",
)

# %% tags=["remove-cell"]
glue("first-attack-ce1000", f"{found['ce', 1e3]}")
glue("first-attack-margin1000", f"{found['margin', 1e3]}")
glue("first-attack-dead", 100 * dead["ce", 1e3])
claim(dead["ce", 1e3] > 0.5 and dead["margin", 1e3] == 0 and dead["dlr", 1e3] == 0)
claim(found["ce", 1e3].low > found["margin", 1e3].high, "the cross-entropy reports a robustness that is not there")
for name in ("margin", "dlr"):  # these do not notice the factor
    claim(abs(found[name, 1e3].correct - found[name, 1.0].correct) <= 0.03 * n_attack)

# %% [markdown]
# With logits times 1000, cross-entropy reports {glue:text}`first-attack-ce1000` and the margin {glue:text}`first-attack-margin1000`, on the same classifier.
# At {glue:text}`first-attack-dead:.0f` % of the images that are right there is no gradient at the image: the attack has its random start and little else.
#
# At the other two scales the order may be different, and cross-entropy may even be the strongest of the three.
# No loss wins everywhere, which is one more reason to run several and to count an image as broken if any of them breaks it.
#
# The lesson is not "use the margin". It is that a *constant in the code of a defence* can hide a broken model from one attack.
# Diffusion classifiers have such a constant: their logits are sums, or means, over hundreds of pixels and dozens of noise levels.
# Here the factor was ours, and we knew what to expect. In {ref}`nb-classifier` it is a choice of the method, and the check stays the same.
#
# ## AutoAttack
#
# PGD has knobs, and a careless setting looks like a robust model.
# AutoAttack is an ensemble of four attacks without knobs {cite}`croce2020autoattack`. Each runs on the images that the ones before it left over:
#
# :::{table} The four attacks of AutoAttack, in their order
#
# | attack | what it does | why it is there |
# |---|---|---|
# | APGD-CE | PGD on the cross-entropy, step size chosen from its own progress | the usual loss, without a step size to get wrong |
# | APGD-T | the same on a targeted, scale-free margin (DLR), one class after the other | losses that do not saturate |
# | FAB-T | the smallest perturbation to a class boundary | does not need a radius |
# | Square | random squares, accepted if the loss rises; no gradient | notices hidden gradients |
#
# :::
#
# The published setting takes 100 iterations and 5 000 queries. The budget here is smaller, and is printed with the result.

# %%
xs, ys = x[:n_auto], y[:n_auto]
budget = {"steps": auto_steps, "queries": auto_queries, "batch": 32}
x_auto = autoattack(model, xs, ys, eps=eps_auto, seed=seed, **budget)
auto = robust_accuracy(model, xs, ys, x_auto)
x_pgd = pgd(model, xs, ys, eps=eps_auto, steps=steps, seed=seed)
same_pgd = robust_accuracy(model, xs, ys, x_pgd)
print(f"{n_auto} images, Linf {255 * eps_auto:.0f}/255; AutoAttack with")
print(f"{auto_steps} iterations and {auto_queries} queries")
print(f"clean      {accuracy(model, xs, ys)}")
print(f"PGD        {same_pgd}")
print(f"AutoAttack {auto}")

# %% tags=["remove-cell"]
glue("first-attack-auto", f"{auto}")
glue("first-attack-auto-eps", round(255 * eps_auto))
claim(auto.correct <= 0.05 * n_auto, "the undefended network falls")
claim(auto.correct <= same_pgd.correct + 1, "and AutoAttack is not the weaker of the two")
assert norm_of(x_auto - xs, "Linf").max() <= eps_auto + 1e-6

# %% [markdown]
# At {glue:text}`first-attack-auto-eps`/255 the accuracy under AutoAttack is {glue:text}`first-attack-auto`.
# Note how wide the interval is, even at zero: a few dozen images cannot show a rate of exactly zero.
#
# ## What an evaluation must report
#
# 1. **The threat model**: norm, radius *and its units*, what the attacker knows. An $\epsilon$ without units is not a radius.
# 2. **Counts and intervals**, on named images. Percentages of 40 images look like percentages of 10 000.
# 3. **The strongest of several attacks**, image by image: an image counts as robust only if *no* attack broke it.
# 4. **The budget**: steps, restarts, queries, and for random models how many noise draws are averaged, in the attack and in the verdict.
# 5. **Checks of the attack itself**: the curve reaches zero; more steps do not help much; a black box is not stronger than the white box; a factor on the logits changes nothing.
# 6. **An adaptive attack**: an attempt designed against this defence, with its reasoning.
#
# ## What to remember
#
# - Cross-entropy saturates when logits are large. Margin and DLR do not, so run more than one loss and rescale the logits as a check.
# - An image counts as robust if *no* attack breaks it: take the union, image by image.
# - A number without threat model, units, counts and budget is none.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-first-attack-units
# :::
# **Why is an $\epsilon$ of 8 wrong?** (5 minutes, easy). Call the attack with `eps=8.0` on eight images. Which radius
# does the package's warning suggest? What is the largest change of a pixel then, and what would the result mean?
#
# :::{hint}
# :class: dropdown
# `warnings.catch_warnings(record=True)` collects warnings; `norm_of(x_adv - x, "Linf")` measures.
# :::

# %%
# your code here
suggested, largest_change = None, None  # a radius; in image units

# %%
# check
fine = None not in (suggested, largest_change)
fine = fine and abs(suggested - 8 / 255) < 1e-6 and largest_change <= 1
fine = fine and largest_change > 0.9
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-first-attack-units
# :label: sol-first-attack-units
# :class: dropdown
# :::
# Images lie in $[0, 1]$. A radius of 1 or more contains *every* image, so each classifier that ever says two different
# things has robust accuracy zero. The number would be true and worthless. The same mistake in the other direction,
# $8/255$ on images in $[0, 255]$, makes every model look robust.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x_adv = pgd(model, xa[:8], ya[:8], eps=8.0, steps=steps, seed=seed)
print(caught[0].message)
suggested = 8 / 255
largest_change = float(norm_of(x_adv - xa[:8], "Linf").max())
print(f"largest change {largest_change:.2f}")

# %% tags=["remove-cell"]
claim("8/255" in str(caught[0].message))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-one-loss-stop
# :::
# **Where the softmax stops** (10 minutes, medium). Two classes with the {term}`logits` $(m, 0)$, in float32. From which whole
# $m$ on is the softmax of the first class exactly 1, so that its own entry of {eq}`eq-ce-gradient` is zero? Compute it by hand first:
# numbers just above 1 have a spacing of $2^{-23}$, and rounding goes to the nearest.
#
# :::{hint}
# :class: dropdown
# The softmax divides 1 by $1 + e^{-m}$. When does that sum round to 1?
# :::

# %%
# your code here
first_m = None  # a whole number

# %%
# check
table = torch.zeros(60, 2)
table[:, 0] = torch.arange(60.0)
ones = (table.softmax(1)[:, 0] == 1).nonzero()[0, 0]
fine = first_m == int(ones)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-one-loss-stop
# :label: sol-one-loss-stop
# :class: dropdown
# :::
# $e^{-m} < 2^{-24}$, half of the spacing, means $m > 24 \log 2$. A network whose logits are a few times larger than usual gets there.

# %%
import math

first_m = math.ceil(24 * math.log(2))
print(f"from m = {first_m} on")

# %% tags=["remove-cell"]
claim(first_m == 17)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-one-loss-scale
# :::
# **Free of scale** (5 minutes, easy). The logits are $(3, 1, 0, -1)$ and the label is the first class. Which values have the margin and
# the DLR? Which ones after a factor of 1000, and after adding 5 to all logits?
#
# :::{hint}
# :class: dropdown
# The margin is the largest other logit less that of the label; the DLR divides it by the largest less the third largest logit.
# :::

# %%
# your code here
answers = {"margin": None, "dlr": None}  # lists: as it is, times 1000, plus 5

# %%
# check
four = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
three = torch.cat([four, 1000 * four, four + 5])
zero = torch.zeros(3, dtype=torch.long)
wanted = {name: LOSSES[name](three, zero) for name in ("margin", "dlr")}
fine = all(close_to(answers[k], w, within=5e-3) for k, w in wanted.items())
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-one-loss-scale
# :label: sol-one-loss-scale
# :class: dropdown
# :::
# Neither sees a constant that is added to all logits. The factor stretches the margin, whose *sign* stays; the DLR does not see it.

# %%
margin, gap = 1.0 - 3.0, 3.0 - 0.0
answers["margin"] = [margin, 1000 * margin, margin]
answers["dlr"] = 3 * [margin / gap]
print(answers)

# %% tags=["remove-cell"]
claim(answers["margin"][1] < answers["margin"][0] < 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Margin losses: {cite:t}`carlini2017towards`. AutoAttack: {cite:t}`croce2020autoattack`.
# How evaluations go wrong: {cite:t}`athalye2018obfuscated` and {cite:t}`tramer2020adaptive`. The data: {cite:t}`xiao2017fashion`.
