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
# (nb-first-attack)=
# # A first attack
#
# :::{admonition} What you will be able to do
# :class: tip
# - State a {term}`threat model`: what an attacker may change, and what an attacker knows.
# - Derive projected gradient descent for the $\ell_\infty$ and the $\ell_2$ ball, and write it in ten lines.
# - Draw the curve of {term}`robust accuracy` against radius, with intervals, and say what it does and does not show.
# :::
#
# **Time** 25 minutes · **Needs** {doc}`/book/notation`, gradients, a network in PyTorch.
# Prepares for Section 4.1 (evaluation settings) of {cite:t}`chen2024rdc`.
#
# This chapter has no diffusion model in it.
# We train an ordinary network, break it, and learn the tools that the rest of the book turns on better defences.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of every random number
data: str = "fashion-mini"  # data set, see rdc.data.load
epochs: int = 10  # passes over the training images
n_clean: int = 1000  # test images for the clean accuracy
n_attack: int = 200  # test images for PGD
steps: int = 20  # gradient steps of PGD

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.attack import pgd
from rdc.attack.losses import LOSSES, cross_entropy
from rdc.attack.norms import norm_of
from rdc.data import load
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, glue, show_table
from rdc.plots import image_grid, plot_accuracy, style
from rdc.rng import generator
from rdc.train.classifiers import train_classifier

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## A network to break
#
# Fashion-MNIST has small grey images of ten kinds of clothing {cite}`xiao2017fashion`.
# The network is four convolutions, a mean over pixels and a linear layer, trained with cross-entropy and nothing else.

# %%
train, test = load(data, "train"), load(data, "test")
options = {"batch": 64, "lr": 1e-2, "width": 16}
model = train_classifier(train, epochs, seed=seed, device=device, **options)
x, y = test.x.to(device), test.y.to(device)
clean = accuracy(model, x[:n_clean], y[:n_clean])
xa, ya = x[:n_attack], y[:n_attack]
x_adv = pgd(model, xa, ya, "Linf", 8 / 255, steps, seed=seed)
print(f"clean accuracy {clean}")
print(f"after the attack {robust_accuracy(model, xa, ya, x_adv)}")

# %% mystnb={"figure": {"caption": "Top: the first images that were classified correctly and then broken, with the network's prediction. Middle: the perturbation of the $\\ell_\\infty$ attack with $\\epsilon = 8/255$, from $-\\epsilon$ (black) to $\\epsilon$ (white). Bottom: the sum of the two, with the new prediction.", "name": "fig-first-attack-pictures"}, "image": {"alt": "Three rows of eight pictures: clothes, noise-like patterns, and the same clothes again with other predicted names", "width": "95%"}} tags=["hide-input"]
columns, picture_eps = 8, 8 / 255
before, after = predict(model, xa), predict(model, x_adv)
shown = ((before == ya) & (after != ya)).nonzero()[:columns, 0]
delta = (x_adv - xa)[shown] / (2 * picture_eps) + 0.5
rows = torch.cat([xa[shown], delta.clamp(0, 1), x_adv[shown]])
names = [test.classes[i] for i in before[shown]] + [""] * len(shown) + [test.classes[i] for i in after[shown]]
image_grid(rows, columns=len(shown), titles=names, size=1.0)
plt.show()

# %% [markdown]
# The bracket is the Wilson 95 % interval {cite}`wilson1927`. It answers: which accuracies on *all* such images go with this count?
# With a few hundred images it is several points wide, and a difference smaller than that is not a finding.
#
# {numref}`fig-first-attack-pictures` shows what the attack did. The images keep their content, and the network changes its mind.
# The rest of the page makes such an attack, step by step.
#
# ## What an attacker may do
#
# A *threat model* answers three questions.
#
# **What may change?** The attacker picks a point in a ball around the image $x$, and the result must be an image:
#
# ```{math}
# :label: eq-ball
# \mathcal B(x, \epsilon) = \{ x' \in [0, 1]^D : \norm{x' - x}_p \le \epsilon \}, \qquad p \in \{2, \infty\} .
# ```
#
# For $p = \infty$ no pixel changes by more than $\epsilon$; all of them may.
# For $p = 2$ the squared changes add up to at most $\epsilon^2$; the attacker may spend them on a few pixels.
#
# **What is known?** In a *white box* the attacker knows everything: weights, architecture, the defence.
# In a *black box* the attacker sees only outputs, and must guess gradients from queries or from another network.
# A defence that holds only in the black box has hidden its gradient, not removed the weakness {cite}`athalye2018obfuscated`.
#
# **Who moves last?** The attacker does. An *adaptive* attack is designed after the defence, against it {cite}`tramer2020adaptive`.
# A defence that breaks an existing attack has shown little.
#
# :::{prf:definition} Adversarial example
# :label: def-adversarial
# Let $f$ map images to {term}`logits`, and let $x$ have label $y$.
# An *adversarial example* for $x$ is a point $x' \in \mathcal B(x, \epsilon)$ with $\arg\max_k f_k(x') \ne y$.
# The *robust accuracy* of $f$ at radius $\epsilon$ is the fraction of images that have none.
# :::
#
# A wrong prediction on $x$ itself counts: the attacker may choose to do nothing.
# So robust accuracy at $\epsilon = 0$ is the clean accuracy, and it can only fall as $\epsilon$ grows.
#
# Nobody can search the whole ball. An attack finds *some* adversarial examples, so
#
# ```{math}
# :label: eq-upper-bound
# \text{robust accuracy} \;\le\; \text{accuracy under the strongest attack that was run} .
# ```
#
# The right side is what evaluations print, and it is an *upper bound*. A {term}`certificate` would be a lower one.
#
# ## Steepest ascent, and back into the ball
#
# The attacker maximises a loss $L(x') = L(f(x'), y)$ over $\mathcal B(x, \epsilon)$. Near a point the loss is almost linear:
#
# ```{math}
# :label: eq-first-order
# L(x' + \delta) \approx L(x') + g \cdot \delta, \qquad g = \nabla L(x') .
# ```
#
# Which step of length $\eta$ raises the linear part most? That depends on how length is measured.
#
# :::{prf:proposition} Steepest ascent
# :label: prop-steepest
# Among all $\delta$ with $\norm{\delta}_p \le \eta$, the product $g \cdot \delta$ is largest at
#
# $$
# \delta_\infty = \eta \operatorname{sign}(g) \;\; (p = \infty), \qquad \delta_2 = \eta\, g / \norm{g}_2 \;\; (p = 2),
# $$
#
# with the values $\eta \norm{g}_1$ and $\eta \norm{g}_2$.
# :::
#
# :::{prf:proof}
# For $p = \infty$ every $|\delta_i| \le \eta$, so $g \cdot \delta \le \sum_i |g_i| |\delta_i| \le \eta \norm{g}_1$, and $\eta \operatorname{sign}(g)$ reaches it.
# The case $p = 2$ is an exercise ({ref}`ex-first-attack-dual`).
# :::
#
# This explains why $\ell_\infty$ attacks work so well in high dimension {cite}`goodfellow2015explaining`.
# The loss rises by $\epsilon \norm{g}_1$, a sum over all pixels, while no pixel moves by more than $\epsilon$.
#
# The step may leave the ball, so we go back to it. *Projected gradient descent* ({term}`PGD`) repeats the two {cite}`madry2018towards`:
#
# ```{math}
# :label: eq-pgd
# x^{(i+1)} = \Pi\big( x^{(i)} + \delta(g^{(i)}) \big), \qquad \Pi : \text{into the ball, then into } [0, 1]^D .
# ```
#
# For $p = \infty$ the first part clips each pixel, for $p = 2$ it shortens the perturbation to length $\epsilon$.
# Clipping to $[0, 1]$ moves every pixel towards $x$, so it does not leave the ball again.


# %%
def steepest(g: Tensor, norm: str) -> Tensor:
    """The unit step along which a linear function rises fastest."""
    if norm == "Linf":
        return g.sign()
    return g / norm_of(g, "L2").clamp(min=1e-12).reshape(-1, 1, 1, 1)


def into_ball(delta: Tensor, norm: str, eps: float) -> Tensor:
    """The nearest point of the ball around zero."""
    if norm == "Linf":
        return delta.clamp(-eps, eps)
    length = norm_of(delta, "L2").clamp(min=1e-12).reshape(-1, 1, 1, 1)
    return delta * (eps / length).clamp(max=1)


def pgd_by_hand(
    model, x, y, norm="Linf", eps=8 / 255, steps=20, loss=cross_entropy,
    step=None,
):  # fmt: skip
    """Projected ascent on a loss of logits and labels, from the image."""
    step = 2.5 * eps / steps if step is None else step
    x_adv = x.clone()
    for _ in range(steps):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(loss(model(x_adv), y).sum(), x_adv)
        x_adv = x_adv.detach() + step * steepest(g, norm)
        x_adv = (x + into_ball(x_adv - x, norm, eps)).clamp(0, 1)
    return x_adv


# %% [markdown]
# The step is $2.5\, \epsilon / \text{steps}$: long enough to cross the ball, short enough to settle.
#
# {py:func}`rdc.attack.pgd` is the same idea with the habits that later chapters need.
# It starts at a random point, lowers its step, and returns the best iterate instead of the last.
# By default it climbs the {term}`margin` instead of the cross-entropy; {ref}`nb-one-loss` says why.

# %%
rows = []
for norm, eps in (("Linf", 8 / 255), ("L2", 1.0)):
    by_hand = pgd_by_hand(model, xa, ya, norm, eps, steps)
    package = pgd(model, xa, ya, norm, eps, steps, seed=seed)
    row = {"norm": norm, "eps": f"{eps:.4f}"}
    row["by hand"] = str(robust_accuracy(model, xa, ya, by_hand))
    row["package"] = str(robust_accuracy(model, xa, ya, package))
    row["largest change"] = f"{norm_of(by_hand - xa, norm).max():.4f}"
    rows.append(row)
show_table(rows, f"Right after PGD with {steps} steps")

# %% [markdown]
# ## The whole curve
#
# One radius says little. $\epsilon = 8/255$ is the convention for small colour photographs such as CIFAR-10, and the one of {cite:t}`chen2024rdc`.
# Grey images of clothing on a black ground stand more, and larger radii are usual for them. We show the curve and let the reader choose.
#
# The curve also carries a control. *Random* perturbations of the same size show what the radius alone does,
# and the distance between the two lines is the work of the attacker.


# %%
def random_signs(x: Tensor, eps: float, seed: int) -> Tensor:
    """Every pixel moved by ``+eps`` or ``-eps``, then clipped to [0, 1]."""
    coin = torch.rand(x.shape, generator=generator(seed, "signs")).to(x)
    return (x + eps * (2 * (coin < 0.5) - 1)).clamp(0, 1)


radii = {
    "Linf": [e / 255 for e in (0, 1, 2, 4, 8, 12, 16, 24, 32, 64)],
    "L2": [0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0],
}
curve: dict[str, list[Accuracy]] = {norm: [] for norm in radii}
for norm, values in radii.items():
    for eps in values:
        broken = pgd(model, xa, ya, norm, eps, steps, seed=seed)
        curve[norm].append(robust_accuracy(model, xa, ya, broken))
noisy = [random_signs(xa, eps, seed) for eps in radii["Linf"]]
noise_curve = [accuracy(model, images, ya) for images in noisy]

# %% mystnb={"figure": {"caption": "Accuracy under PGD against the radius, with 95 % intervals. Left: $\\ell_\\infty$, with random perturbations of the same size as a control. Right: $\\ell_2$.", "name": "fig-first-attack-curve"}, "image": {"alt": "Two falling curves that reach zero; on the left the control with random signs falls much more slowly", "width": "90%"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True)
plot_accuracy(axes[0], [255 * e for e in radii["Linf"]], curve["Linf"], "PGD")
plot_accuracy(axes[0], [255 * e for e in radii["Linf"]], noise_curve, "random signs", marker="s", linestyle="--")
axes[0].axvline(8, color="0.6", linestyle=":")
axes[0].set(xlabel=r"$\ell_\infty$ radius $\epsilon$ (in 1/255)")
axes[0].legend()
plot_accuracy(axes[1], radii["L2"], curve["L2"], "PGD")
axes[1].set(xlabel=r"$\ell_2$ radius $\epsilon$ (image units)", ylabel="")
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
at_8 = curve["Linf"][radii["Linf"].index(8 / 255)]
noise_8 = noise_curve[radii["Linf"].index(8 / 255)]
glue("first-attack-clean", f"{clean}")
glue("first-attack-pgd8", f"{at_8}")
glue("first-attack-noise8", f"{noise_8}")
claim(clean.value > 0.75, "a network worth attacking")
claim(at_8.high < clean.low, "the attack at 8/255 is no accident")
claim(noise_8.low > at_8.high, "and it is the direction that counts")
claim(curve["Linf"][-1].correct == 0 and curve["L2"][-1].correct <= 0.02 * n_attack, "a radius large enough breaks everything")
for values in curve.values():  # larger radii never help by more than chance
    claim(all(b.correct <= a.correct + 2 for a, b in zip(values, values[1:], strict=False)))

# %% [markdown]
# Clean: {glue:text}`first-attack-clean`. Under random signs at 8/255: {glue:text}`first-attack-noise8`. Under PGD at 8/255: {glue:text}`first-attack-pgd8`.
#
# Read {numref}`fig-first-attack-curve` for its *shape* first.
# It starts at the clean accuracy, falls, and ends at zero or next to it. A curve that levels off well above zero accuses the attack, not the model:
# at an $\ell_\infty$ radius of 1 the attacker could paint any image at all.
#
# {ref}`nb-one-loss` asks what else can go wrong with an attack, and what an evaluation must report.
#
# ## What to remember
#
# - An adversarial example is a point of a ball around the image that the model gets wrong. Radii are in units of $x \in [0, 1]$.
# - PGD takes the steepest step of a linear model in the norm of the ball, and projects back.
# - Accuracy under attack is an upper bound of the robust accuracy. Draw the whole curve and see it reach zero.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-first-attack-fgsm
# :::
# **One step** (10 minutes, easy). The fast gradient sign method ({term}`FGSM`) takes a single step of length $\epsilon$
# {cite}`goodfellow2015explaining`. How many of the images are right after it at 8/255 and 32/255, compared with PGD?
# Where does it fail, and why?
#
# :::{hint}
# :class: dropdown
# It is `pgd_by_hand` with one step of length $\epsilon$; `robust_accuracy(...).correct` counts.
# :::

# %%
# your code here
after_one_step = {8: None, 32: None}  # images right, by radius

# %%
# check
def after_pgd(e: int) -> int:
    """Images right after PGD."""
    x_adv = pgd_by_hand(model, xa, ya, eps=e / 255, steps=steps)
    return robust_accuracy(model, xa, ya, x_adv).correct


def after_fgsm(e: int) -> int:
    """Images right after one step of the whole radius."""
    one = pgd_by_hand(model, xa, ya, eps=e / 255, steps=1, step=e / 255)
    return robust_accuracy(model, xa, ya, one).correct


fine = None not in after_one_step.values() and all(
    abs(after_fgsm(e) - right) <= 3 for e, right in after_one_step.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-first-attack-fgsm
# :label: sol-first-attack-fgsm
# :class: dropdown
# :::
# FGSM is the weaker attack at both radii. It trusts the linear model {eq}`eq-first-order` over the whole radius. Far
# from $x$ the gradient has turned, and a long step along the first one passes over the adversarial region. A model that
# resists FGSM at a large radius has shown that its loss is curved, not that it is robust.

# %%
for e in after_one_step:
    one = pgd_by_hand(model, xa, ya, eps=e / 255, steps=1, step=e / 255)
    after_one_step[e] = robust_accuracy(model, xa, ya, one).correct
    print(f"{e:2}/255: FGSM {after_one_step[e]}, PGD {after_pgd(e)}")

# %% tags=["remove-cell"]
claim(all(after_one_step[e] >= after_pgd(e) for e in (8, 32)))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-first-attack-targeted
# :::
# **A target** (10 minutes, medium). Make the network say the *next* class, $y + 1 \bmod K$. For how many of the images
# does that succeed at 8/255 and at 32/255, compared with any wrong class by an attack without a target?
#
# :::{hint}
# :class: dropdown
# Descend on the cross-entropy of the target: `pgd_by_hand` takes a `loss` of logits and labels, and climbs.
# :::

# %%
# your code here
says_target = {8: None, 32: None}  # images, by radius

# %%
# check
def after_target(e: int) -> int:
    """Images that the network calls the next class after PGD towards it."""
    goal = (ya + 1) % len(test.classes)
    towards = {"steps": steps, "loss": lambda f, t: -cross_entropy(f, t)}
    x_adv = pgd_by_hand(model, xa, goal, eps=e / 255, **towards)
    return int((predict(model, x_adv) == goal).sum())


fine = None not in says_target.values() and all(
    abs(after_target(e) - found) <= 3 for e, found in says_target.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-first-attack-targeted
# :label: sol-first-attack-targeted
# :class: dropdown
# :::
# A target is a stronger wish, so it is granted less often at a given radius. AutoAttack uses targets for another
# reason: with nine different directions, an image has nine chances to be broken.

# %%
target, wrong = (ya + 1) % len(test.classes), {}
for e in says_target:
    x_target = pgd_by_hand(
        model,
        xa,
        target,
        eps=e / 255,
        steps=steps,
        loss=lambda f, t: -cross_entropy(f, t),
    )
    says_target[e] = int((predict(model, x_target) == target).sum())
    wrong[e] = n_attack - after_pgd(e)  # by the attack without a target
    print(f"{e:2}/255: the target {says_target[e]}, any wrong {wrong[e]}")

# %% tags=["remove-cell"]
claim(says_target[8] < says_target[32])
claim(all(says_target[e] < wrong[e] for e in says_target))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-first-attack-dual
# :::
# **Other norms** (10 minutes, medium). Prove {prf:ref}`prop-steepest` for $p = 2$, and find the steepest step for $p =
# 1$. Give the step of length 1 for each $p$ and the gradient $g$ below; no direction may do better.
#
# :::{hint}
# :class: dropdown
# Cauchy and Schwarz for $p = 2$. For $p = 1$: which pixel would you spend the whole budget on?
# :::

# %%
# your code here
g = torch.randn(784, generator=generator(seed, "dual"))
best = {1: None, 2: None}  # a step for each p, of norm 1

# %%
# check
dual = {1: float(g.abs().max()), 2: float(g.norm())}  # what can be reached
fine = all(d is not None for d in best.values()) and all(
    abs(float(d.norm(p=p)) - 1) < 1e-5 and float(g @ d) > 0.9999 * dual[p]
    for p, d in best.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-first-attack-dual
# :label: sol-first-attack-dual
# :class: dropdown
# :::
# For $p = 2$ this is the Cauchy-Schwarz inequality, $g \cdot \delta \le \norm{g}_2 \norm{\delta}_2 \le \eta
# \norm{g}_2$, with equality for $\delta \propto g$.
#
# For $p = 1$ we have $g \cdot \delta \le \max_i |g_i| \sum_i |\delta_i| \le \eta \norm{g}_\infty$. Equality holds if
# the whole budget goes to one pixel, the one with the largest $|g_i|$. In general the value is $\eta$ times the *dual*
# norm of $g$. Random directions are far behind: in 784 dimensions they are nearly orthogonal to $g$.

# %%
trial = torch.randn(10_000, 784, generator=generator(seed, "trial"))
largest = g.abs().argmax()
best = {1: torch.zeros(784), 2: g / g.norm()}
best[1][largest] = g[largest].sign()
for p, step_p in best.items():
    tried = (trial / trial.norm(p=p, dim=1, keepdim=True)) @ g
    print(f"p = {p}: {float(g @ step_p):.3f}, random {float(tried.max()):.3f}")

# %% tags=["remove-cell"]
claim(float(g @ best[1]) > 0 and float(g @ best[2]) > float(tried.max()))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-first-attack-start
# :::
# **Does a random start matter?** (10 minutes, medium). At 4/255, how many images are right after `pgd_by_hand` (which
# starts at the image) with the margin loss, after the package's `pgd` with 1 and with 3 restarts, and after all of them
# together?
#
# :::{hint}
# :class: dropdown
# The margin loss is `LOSSES["margin"]`. `robust_accuracy` takes a list of attacked images; an image counts if none of
# them breaks it.
# :::

# %%
# your code here
still_right = dict.fromkeys(("image", "one", "three", "together"))

# %%
# check
small = {"eps": 4 / 255, "steps": steps}
known = [pgd_by_hand(model, xa, ya, loss=LOSSES["margin"], **small)]
known += [pgd(model, xa, ya, restarts=r, seed=seed, **small) for r in (1, 3)]
counts = [robust_accuracy(model, xa, ya, k).correct for k in (*known, known)]
fine = None not in still_right.values() and all(
    abs(a - b) <= 3 for a, b in zip(still_right.values(), counts, strict=True)
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-first-attack-start
# :label: sol-first-attack-start
# :class: dropdown
# :::
# For a smooth, undefended network they differ by few images: its loss has no traps. A large gain from restarts is a
# warning. It means that single runs get stuck, so still more restarts would find still more.

# %%
e, margin_loss = 4 / 255, LOSSES["margin"]
tries = [pgd_by_hand(model, xa, ya, eps=e, steps=steps, loss=margin_loss)]
for restarts in (1, 3):
    again = {"restarts": restarts, "seed": seed}
    tries.append(pgd(model, xa, ya, eps=e, steps=steps, **again))
for name, images in zip(still_right, [*tries, tries], strict=True):
    still_right[name] = robust_accuracy(model, xa, ya, images).correct
print(still_right)

# %% tags=["remove-cell"]
claim(still_right["together"] <= min(still_right.values()))

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Adversarial examples: {cite:t}`szegedy2014intriguing` and {cite:t}`goodfellow2015explaining`.
# PGD and robust optimisation: {cite:t}`madry2018towards`.
# How evaluations go wrong: {cite:t}`athalye2018obfuscated` and {cite:t}`tramer2020adaptive`. The data: {cite:t}`xiao2017fashion`.
