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
# (nb-guidance-argument)=
# # An argument, and what is left of it
#
# :::{admonition} What you will be able to do
# :class: tip
# - Test an argument about gradients in twenty lines, and repair it.
# - Say why neither loss guarantees gradients.
# - Say what robust training converges to for two Gaussians.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-guidance` and {ref}`nb-adaptive`. Covers section 3.2 and Appendix B of {cite:t}`kawar2023guidance`.
#
# A quick ripple on the {term}`logits` ruins the gradient that guides. Does a loss notice, clean
# or attacked? {numref}`fig-guide-ripple` shows both.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
n_ripple: int = 30  # images
ripple_sigma: float = 0.3  # their noise level

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from rdc.data import load
from rdc.denoise.base import to_model
from rdc.guide import (
    ClassifierGuide,
    Threat,
    load_classifier,
    perturb,
    shift_effect,
)
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    glue,
    show_table,
)
from rdc.plots import style
from rdc.rng import randn

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
classes, size = len(test.classes), test.x[0].numel()
names = {"vanilla": vanilla_name, "robust": robust_name}
x_rip, y_rip = (
    test.x[:n_ripple].double().to(device),
    test.y[:n_ripple].to(device),
)
eps_rip = torch.stack(
    [
        randn(tuple(test.x.shape[1:]), seed, "guide", "appendix", i)
        for i in range(n_ripple)
    ]
).to(x_rip)
z_rip, level_rip = (
    to_model(x_rip) + ripple_sigma * eps_rip,
    torch.full((n_ripple,), ripple_sigma).to(x_rip),
)
exact_guides = {
    name: load_classifier(file, device, torch.float64)
    for name, file in names.items()
}


class Rippled(nn.Module):
    """A classifier with a ripple on each logit."""

    def __init__(
        self, classifier: nn.Module, amplitude: float, frequency: float
    ) -> None:
        super().__init__()
        self.classifier, self.a, self.omega = classifier, amplitude, frequency
        u = randn((size, classes), seed, "guide", "ripple").to(z_rip)
        self.u = u / u.norm(dim=0)

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        return self.classifier(z, sigma) + self.a * torch.sin(
            self.omega * z.flatten(1) @ self.u
        )


@torch.no_grad()
def loss_at(h: nn.Module, z: Tensor) -> float:
    """Mean cross-entropy."""
    return float(F.cross_entropy(h(z, level_rip), y_rip))


calm, ripple_a = exact_guides["vanilla"], 0.1
full = Threat(
    eps=0.5, radius="image", stop=False
)  # radius 1 in model units at every level, and no early stop
found_points = perturb(calm, z_rip, level_rip, y_rip, full)
calm_gradient = ClassifierGuide(calm)(z_rip, level_rip, y_rip)
ripple_rows: list[dict[str, float]] = []
for omega in (0.0, 1.0, 10.0, 100.0):
    h = Rippled(calm, ripple_a, omega)
    change = float(
        (ClassifierGuide(h)(z_rip, level_rip, y_rip) - calm_gradient).norm()
        / calm_gradient.norm()
    )
    own_points = perturb(h, z_rip, level_rip, y_rip, full)
    ripple_rows.append({"omega": omega, "loss": loss_at(h, z_rip), "loss, own attack": loss_at(h, own_points),
                        "loss, attack on the calm one": loss_at(h, found_points), "change of the gradient": change})  # fmt: skip

# %% mystnb={"figure": {"caption": "A small ripple on each logit of the vanilla classifier, by its frequency (0 is none). Left: the loss, clean and attacked. Right: how far it changes the gradient that guides, relative to its length.", "name": "fig-guide-ripple"}, "image": {"alt": "Left: three nearly level lines of losses. Right: the change of the gradient rises with the frequency to several times its length"}} tags=["hide-input"]
omegas = [r["omega"] for r in ripple_rows]
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
for i, what in enumerate(
    ("loss", "loss, own attack", "loss, attack on the calm one")
):
    axes[0].plot(
        omegas, [r[what] for r in ripple_rows], marker="os^"[i], label=what
    )
axes[0].set(
    xlabel=r"frequency $\omega$ of the ripple",
    ylabel="cross-entropy (nats)",
    ylim=(0, None),
)
axes[0].legend()
axes[1].plot(
    omegas,
    [r["change of the gradient"] for r in ripple_rows],
    marker="o",
    color="C3",
)
axes[1].set(
    xlabel=r"frequency $\omega$ of the ripple",
    ylabel="relative change of the gradient",
)
fig.tight_layout()
plt.show()

# %% [markdown]
# (sec-guide-appendix)=
# ## A function that cancels
#
# Why should a *robust* classifier guide better? The argument of {cite:t}`kawar2023guidance` (section 3.2, Appendix B, after
# {cite:t}`srinivas2021rethinking`): add any function $q(z)$ to all {term}`logits`. Loss and accuracy stay as they are, but the gradients of the logits change
# arbitrarily. So vanilla training does not constrain gradients. Under {term}`adversarial training` the attack depends on gradients, and so "the adversarial loss …
# changes".
#
# Guidance, however, takes the gradient of $\log p(y \mid z) = h_y - \log \sum_j e^{h_j}$, and
#
# $$
# h_y + q - \log \sum_j e^{h_j + q} = h_y + q - q - \log \sum_j e^{h_j} = h_y - \log \sum_j e^{h_j} .
# $$
#
# The function $q$ cancels, in the gradient as in the loss. And if the loss is the same *at every point*, so is its gradient, every step of the attack, and
# the adversarial loss. Here is the check, with a $q$ that is a large wave.

# %%
wave = randn((size,), seed, "guide", "wave").to(x_rip)
wave = wave / wave.norm()


def q(z: Tensor) -> Tensor:
    """Any function of the image, the same for all classes."""
    return 100 * torch.sin(10 * z.flatten(1) @ wave)


shifted: dict[str, dict[str, float]] = {}
some = z_rip[:20], level_rip[:20], y_rip[:20]
for name, h in exact_guides.items():
    shifted[name] = shift_effect(h, q, *some, Threat())
    each = ", ".join(f"{k} {v:.1e}" for k, v in shifted[name].items())
    print(f"{name:8s} relative change: {each}")

# %% tags=["remove-cell"]
for found in shifted.values():
    assert (
        found["raw"] > 1
        and max(found["log_softmax"], found["attack"], found["loss"]) < 1e-6
    )
glue("guide-raw", f"{min(v['raw'] for v in shifted.values()):.0f}")

# %% [markdown]
# The gradient of the raw logit changes by more than {glue:text}`guide-raw` times its length. The gradient that guides, the points that the attack finds and the
# adversarial loss change by rounding errors. As printed the argument is about a quantity that guidance does not use, and it does not tell the two trainings
# apart.
#
# ## What is left: ripples
#
# Let us give the argument a second chance. Put a small, quick ripple on *each* logit, with its own direction $u_k$ of length 1:
#
# ```{math}
# :label: eq-guide-ripple
# \tilde h_k(z) = h_k(z) + a \sin(\omega\, u_k \cdot z) .
# ```
#
# It moves logits by at most $a$ and gradients by up to $a \omega$. With $a$ small and $\omega$ large the gradient is ruined and the loss does not notice.
# Does the adversarial loss? To first order in the radius $r$,
#
# ```{math}
# :label: eq-guide-first-order
# \max_{\norm{\delta} \le r} \mathcal L(z + \delta) = \mathcal L(z) + r\, \norm{\nabla \mathcal L(z)} + O(r^2) ,
# ```
#
# so that adversarial training looks like a penalty on the length of the gradient. But the first order holds only while $\omega r$ is small. A log-softmax
# moves by at most $2a$ when all logits move by at most $a$, hence
#
# ```{math}
# :label: eq-guide-bounded
# \Big| \max_{\norm{\delta} \le r} \widetilde{\mathcal L}(z + \delta) - \max_{\norm{\delta} \le r} \mathcal L(z + \delta) \Big| \le 2a \qquad \text{for every } \omega .
# ```
#
# We measure: the loss, the adversarial loss by the attack on the rippled classifier itself, the loss at the points that the attack found for the calm one,
# and the change of the gradient relative to its length.
#
# The numbers of {numref}`fig-guide-ripple`:

# %% tags=["hide-input"]
show_table(
    ripple_rows,
    f"Vanilla classifier, {n_ripple} images, sigma = {ripple_sigma:g}, a = {ripple_a:g}, radius 1; omega = 0: no ripple",
)

# %% tags=["remove-cell"]
none_r, slow_r, quick_r = ripple_rows[0], ripple_rows[1], ripple_rows[-1]
claim(
    quick_r["change of the gradient"] > 2
    and abs(quick_r["loss"] - none_r["loss"]) < ripple_a
)
claim(quick_r["loss, own attack"] < none_r["loss, own attack"] + 2 * ripple_a)
glue("guide-ripple-gradient", f"{quick_r['change of the gradient']:.1f}")
glue("guide-ripple-loss", f"{abs(quick_r['loss'] - none_r['loss']):.3f}")
glue(
    "guide-ripple-own",
    f"{quick_r['loss, own attack'] - none_r['loss, own attack']:+.2f}",
)

# %% [markdown]
# The quickest ripple changes the gradient by {glue:text}`guide-ripple-gradient` times its length, and the loss by {glue:text}`guide-ripple-loss`. The loss
# under its own attack moves by {glue:text}`guide-ripple-own`: an attack that follows a ruined gradient is a bad attack ({ref}`nb-adaptive`), so that such
# training may even *reward* ripples. What a low adversarial loss does promise is small changes over the distance $r$. That bounds the gradient of a *smooth*
# classifier, and no other.
#
# So neither loss guarantees gradients. Whether training leaves ripples is a question of fact, and has to be measured. Before that, what would the two
# trainings find with endless data?
#
# - Vanilla training is right. At $\sigma > 0$ noisy images fill all of space, and the only minimum of the cross-entropy is $p(y \mid z_\sigma)$ itself, with
#   the exact gradient *everywhere*.
# - Robust training is not. Its minimum is another function.
#
# (sec-guide-minimum)=
# ## What robust training converges to
#
# :::{prf:proposition} The robust classifier of two Gaussians
# :label: prop-guide-robust
# Let $z_\sigma \sim \mathcal N(\pm m, \Sigma)$ for two equally frequent classes, $\Sigma$ with the noise included, and let the attack have the radius
# $r < \norm{m}$ in L2. Over *all* functions the adversarial cross-entropy is smallest for
#
# $$
# h(z) = 2\, (m - \delta^*)^\top \Sigma^{-1} z , \qquad m - \delta^* = (I + \mu\, \Sigma^{-1})^{-1} m ,
# $$
#
# where $\mu > 0$ is such that $\norm{\delta^*} = r$. Its gradient has the direction of $(\Sigma + \mu I)^{-1} m$, and the vanilla one that of
# $\Sigma^{-1} m$.
# :::
#
# :::{prf:proof}
# The attacker may always shift class $\pm$ by $\mp \delta$ for any fixed $\norm\delta \le r$. Against that, no function does better than Bayes' rule for
# $\mathcal N(\pm (m - \delta), \Sigma)$, which is $h_\delta(z) = 2 (m - \delta)^\top \Sigma^{-1} z$. Its loss grows as the two shifted classes come closer,
# so the attacker takes the $\delta^*$ that minimizes $(m - \delta)^\top \Sigma^{-1} (m - \delta)$ in the ball. The condition is
# $\Sigma^{-1} (m - \delta^*) = \delta^* / \mu$ with $\mu > 0$, which gives the formula. But then $\delta^*$ is parallel to the gradient of $h_{\delta^*}$:
# the best attack on this function is the shift itself. So it attains the lower bound.
# :::
#
# Two things follow, for this model.
#
# - **The direction is that of more noise.** $\Sigma = C + \sigma^2 I$ for data with covariance $C$, so the robust classifier at the level $\sigma$ points
#   where the exact one points at $\sqrt{\sigma^2 + \mu}$. It has learned to ignore directions with little variance. This is why its gradients look smooth,
#   and it is *not* what the score at the level $\sigma$ needs.
# - **It is shorter.** For $\Sigma = v I$ the direction is the same and the length is multiplied by $1 - r / \norm m$. To guide as much, it needs a larger
#   scale ({ref}`ex-guide-minimum`). In the paper the best scale is 0.5 for the vanilla and 1 for the robust classifier.
#
# ## The verdict
#
# By the one rule of the book ({doc}`/book/how_to_read`); this one is a proof.

# %%
claims_table("C1")

# %% [markdown]
# ## What to remember
#
# - A function added to all logits cancels in everything that guidance and adversarial training use. Ripples on single logits hide from both
#   losses.
# - Vanilla training has the exact gradient as its limit.
# - Robust training has another one: for Gaussians, that of more noise, and shorter.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-minimum
# :::
# **The robust minimum, by numbers** (20 minutes, hard). Take $m = (1, 1)$ and $\Sigma = \operatorname{diag}(0.05, 1)$.
# For a linear $h(z) = w \cdot z$ the worst attack of radius $r$ lowers $h$ by $r \norm{w}$. Minimize the adversarial
# cross-entropy over $w$ numerically, for $r = 1$, and compare with {prf:ref}`prop-guide-robust`. To which noise level
# does the direction belong?
#
# :::{hint}
# :class: dropdown
# By symmetry class $+$ is enough: $w \cdot z \sim \mathcal N(w \cdot m, w^\top \Sigma w)$, and the loss is $\E \log(1 +
# e^{-(w \cdot z) + r \norm{w}})$, a sum over Gauss-Hermite nodes. `minimize(loss, start, method="Nelder-Mead")` finds
# $w$.
# :::

# %%
# your code here
found_w = None  # two numbers, for r = 1

# %%
# check
mean_2, variance_2 = np.array([1.0, 1.0]), np.array([0.05, 1.0])
low_mu, high_mu = 0.0, 1e3  # the formula needs the mu whose attack has length 1
for _ in range(100):
    mu = (low_mu + high_mu) / 2
    length = np.linalg.norm(mean_2 - mean_2 / (1 + mu / variance_2))
    low_mu, high_mu = (mu, high_mu) if length < 1 else (low_mu, mu)
by_formula = 2 * (mean_2 / (1 + mu / variance_2)) / variance_2
fine = close_to(found_w, by_formula, within=0.02)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-minimum
# :label: sol-guide-minimum
# :class: dropdown
# :::
# The formula needs the $\mu$ with $\norm{\delta^*} = r$, where $\delta^* = m - (I + \mu \Sigma^{-1})^{-1} m$; the check
# finds it by bisection. With $\Sigma = C + \sigma^2 I$ the direction is that of the noise level $\sqrt{\sigma^2 +
# \mu}$. The direction of little variance, which decides most, is given up first.

# %%
nodes, shares = np.polynomial.hermite_e.hermegauss(80)


def adversarial_loss(w: np.ndarray) -> float:
    """Adversarial cross-entropy of a linear classifier at r = 1."""
    margin = w @ mean_2 + math.sqrt(w**2 @ variance_2) * nodes
    margin = margin - np.linalg.norm(w)
    return float(np.logaddexp(0, -margin) @ shares / shares.sum())


how = {"method": "Nelder-Mead", "options": {"xatol": 1e-6, "fatol": 1e-12}}
found_w = minimize(adversarial_loss, np.array([3.0, 1.0]), **how).x
print("by numbers", found_w.round(3), "by formula", by_formula.round(3))

# %% tags=["remove-cell"]
claim(np.abs(found_w - by_formula).max() < 0.02)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-one-logit
# :::
# **On one logit only** (5 minutes, easy). A function $q$ with a gradient of length 5 is added to the logit of class $k$ alone, at a point where $p(k \mid z) = 0.2$ stays as it is. By
# how much, in length, does the gradient of $\log p(y \mid z)$ change for $y = k$, and for another class?
#
# :::{hint}
# :class: dropdown
# The derivative of $\log \sum_j e^{h_j}$ in $h_k$ is $p(k \mid z)$.
# :::

# %%
# your code here
own_class, other_class = None, None

# %%
# check
fine = None not in (own_class, other_class)
fine = fine and abs(own_class - 4) < 1e-6 and abs(other_class - 1) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-one-logit
# :label: sol-guide-one-logit
# :class: dropdown
# :::
# $(1 - p_k) \nabla q$ and $-p_k \nabla q$. Nothing cancels, so the loss changes as well: between classes a function cannot hide, unless it is
# small.

# %%
own_class, other_class = (1 - 0.2) * 5, 0.2 * 5
print(f"{own_class:g} and {other_class:g}")

# %% tags=["remove-cell"]
claim(own_class > other_class)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-order
# :::
# **Where the first order fails** (10 minutes, medium). A ripple $a \sin(\omega t)$ with $a = 0.1$ and $\omega = 100$ at $t = 0$. By how much can it rise within the radius 1, and by how much to first
# order? Up to which radius is the first order right to 10 %?
#
# :::{hint}
# :class: dropdown
# The rise is $a \sin(\omega r)$ up to $\omega r = \pi / 2$, and $a$ from there on. Bisect for $\sin(u) / u$.
# :::

# %%
# your code here
rise, first_order, radius_of_order = None, None, None

# %%
# check
fine = None not in (rise, first_order, radius_of_order)
fine = fine and abs(rise - 0.1) < 1e-6 and abs(first_order - 10) < 1e-6
at = 100 * (radius_of_order or 1)
fine = fine and at > 0 and abs(at / math.sin(at) - 1.1) < 2e-2
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-order
# :label: sol-guide-order
# :class: dropdown
# :::
# It rises by $a$ at most, where the first order says $a \omega$, a hundred times as much. That is right while $u / \sin(u) < 1.1$ for
# $u = \omega r$: only within a tiny radius.

# %%
rise, first_order = 0.1, 0.1 * 100 * 1
low, high = 1e-6, math.pi / 2
for _ in range(60):
    u = (low + high) / 2
    low, high = (u, high) if u / math.sin(u) < 1.1 else (low, u)
radius_of_order = u / 100
print(f"{rise} against {first_order:g}; radius {radius_of_order:.4f}")

# %% tags=["remove-cell"]
claim(radius_of_order < 0.01)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. The argument of Appendix B: {cite:t}`srinivas2021rethinking`. The images are those
# of {cite:t}`xiao2017fashion`.
