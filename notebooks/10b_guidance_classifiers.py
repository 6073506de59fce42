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
# (nb-guidance-classifiers)=
# # Classifiers that guide
#
# :::{admonition} What you will be able to do
# :class: tip
# - Train and attack a classifier of noisy images.
# - Compare the radius of an attack with the noise it hides in.
# - Say what early stopping of an attack does.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-guidance` and {ref}`nb-noised`. Covers section 4 of {cite:t}`kawar2023guidance`.
#
# At all but the lowest levels an attack on a noisy image is small beside its noise. Is it hidden by it? {numref}`fig-guide-radius`
# compares the two, at the left by length and at the right by what a test could tell.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers
robust_name: str = "fashion-mini-robust"
wide_name: str = "fashion-mini-wide"  # trained at six times that radius
n_few: int = 20  # images attacked

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn

from rdc.data import load
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import read_checkpoint
from rdc.guide import Threat, load_classifier, perturb
from rdc.guide.classifier import SHIPPED
from rdc.guide.guides import log_gradient
from rdc.notebook import check_parameters, claim, glue, show_table
from rdc.plots import style
from rdc.rng import randn
from rdc.schedule import alpha_to_sigma, vp_alphas

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
classes, size = len(test.classes), test.x[0].numel()
names = {"vanilla": vanilla_name, "robust": robust_name, "wide": wide_name}
three = {name: load_classifier(file, device) for name, file in names.items()}
guides = {name: three[name] for name in ("vanilla", "robust")}


def noise_of(what: str, n: int) -> Tensor:
    """Noise for n test images, each from its own stream."""
    return torch.stack(
        [
            randn(tuple(test.x.shape[1:]), seed, "guide", what, i)
            for i in range(n)
        ]
    )


for name, net in guides.items():
    print(
        f"{name:8s} {sum(p.numel() for p in net.parameters())} parameters, {net.num_classes} classes"
    )
threat = Threat()  # L2, 0.5 in the units of [-1, 1], 7 steps, early stopping: as the released code reads the paper

# %% mystnb={"figure": {"caption": "The radius of the attack for epsilon = 0.5 by rule and noise level. Left: relative to the length of the noise. Right: probability that the best test tells the attacked image from the clean one, for a fixed attack of that length.", "name": "fig-guide-radius"}, "image": {"alt": "Left: falling lines that level off far below one. Right: lines that fall from one to levels between one half and three quarters; the scaled rule is constant"}} tags=["hide-input"]
grid = torch.logspace(-2, 2, 100, dtype=torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
for rule in ("paper", "released", "image", "scaled"):
    r = Threat(radius=rule).radius_at(grid)
    axes[0].plot(grid, r / (grid * size**0.5), label=rule)
    axes[1].plot(grid, norm.cdf(r / (2 * grid)), label=rule)
axes[0].set(
    xscale="log",
    yscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="radius / length of the noise",
)
axes[1].set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="told from noise",
    ylim=(0.45, 1.03),
)
axes[0].legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# (sec-guide-classifiers)=
# ## Classifiers of noisy images
#
# A guide needs a classifier $h(z_\sigma, \sigma)$ at *every* {term}`noise level`. Ours is the encoder of the denoiser's network with a linear layer
# ({py:mod}`rdc.guide.classifier`), once trained with noisy images and once with attacked noisy images (Eq. 5 of the paper):
#
# ```{math}
# :label: eq-guide-training
# \min_\phi\; \E_{(z, y),\, \sigma,\, \varepsilon}\; \mathcal L_{CE}\big( h_\phi(\tilde z_\sigma, \sigma),\, y \big)
# ```
#
# with $\tilde z_\sigma = z_\sigma$ (vanilla) or $\tilde z_\sigma = z_\sigma + \delta$ with an attack $\norm\delta \le r(\sigma)$ (robust).
#
# Both have the same network, data, number of steps and learning rate. The attack is projected gradient ascent from $\delta = 0$. It has a peculiarity,
# **early stopping**: an image takes a step only while it is classified correctly. So the attack finds points just across the border, not the worst ones, and
# an image that is wrong from the start is not attacked at all. Here it is in ten lines.


# %%
def ten_lines(h: nn.Module, z: Tensor, sigma: float, y: Tensor) -> tuple:
    """The attack with early stopping: images, and steps of each."""
    point, used = z.clone(), torch.zeros_like(y)
    level = torch.tensor(sigma)
    r = float(threat.radius_at(level))
    for _ in range(threat.steps):
        g = log_gradient(lambda p: h(p, level), point, y)
        with torch.no_grad():
            right = h(point, level).argmax(dim=1) == y
        downhill = F.normalize(g.flatten(1), dim=1).view_as(z)
        moved = point - z - 2.5 * r / threat.steps * downhill
        length = moved.flatten(1).norm(dim=1).clamp(min=r)
        moved = moved * (r / length).view(-1, 1, 1, 1)
        point = torch.where(right.view(-1, 1, 1, 1), z + moved, point)
        used = used + right
    return point, used


y_few = test.y[:n_few].to(device)
z_few = to_model(test.x[:n_few].to(device))
z_few = z_few + 0.3 * noise_of("attack", n_few).to(z_few)
own, steps_used = ten_lines(guides["vanilla"], z_few, 0.3, y_few)
packaged = perturb(guides["vanilla"], z_few, 0.3, y_few, threat)
same_attack = float((own - packaged).abs().max())
print(f"as rdc.guide.perturb to 1e-4: {same_attack < 1e-4}")
print(f"steps taken: {steps_used.tolist()}")

# %% tags=["remove-cell"]
assert same_attack < 1e-4

# %% [markdown]
# (sec-guide-size)=
# ## How large is the attack?
#
# The paper says $\norm\delta_2 \le 0.5$ for $x_t$, at every $t$, and names no unit. Its code has images in $[-1, 1]$. For our
# $z_\sigma = x_t \sqrt{1 + \sigma^2}$ that is one of several rules:
#
# :::{table} Four rules for the size of the attack
#
# | rule | radius $r(\sigma)$ in model units | meaning |
# |---|---|---|
# | `paper` | $2 \epsilon \sqrt{1 + \sigma^2}$ | constant in $x_t$, $\epsilon$ in units of $[0, 1]$, in which 0.5 is usual |
# | `released` | $\epsilon \sqrt{1 + \sigma^2}$ | constant in $x_t$, $\epsilon$ in units of $[-1, 1]$ |
# | `image` | $2 \epsilon$ | what $\epsilon$ does to a clean image, at every level |
# | `scaled` | $\epsilon\, \sigma$ | $\epsilon$ standard deviations of the noise |
#
# :::
#
# Is such an attack large or small? The noise has the length $\sigma \sqrt D$, at all but the lowest levels far more than $r$.
# But length is not what counts. In any *one* direction the
# noise is only $\sigma$. With even odds, the best test between $\mathcal N(z, \sigma^2 I)$ and $\mathcal N(z + \delta, \sigma^2 I)$ is right with probability
# $\Phi(\norm\delta / 2 \sigma)$. Where that is near $\frac12$ the noise hides the attack; where it is near 1 the attack is plain to see, and a good
# classifier of noisy images might be asked to withstand it.

# %%
vp_sigma = alpha_to_sigma(vp_alphas())
rows = []
for t in (0, 10, 100, 300, 500, 999):
    s_t = float(vp_sigma[t])
    r = float(threat.radius_at(torch.tensor(s_t)))
    length = s_t * size**0.5
    rows.append(
        {
            "t": t,
            "sigma": f"{s_t:.3g}",
            "radius": f"{r:.3g}",
            "length of the noise": f"{length:.3g}",
            "radius / length": f"{r / length:.4f}",
            "told from noise": f"{norm.cdf(r / (2 * s_t)):.2f}",
        }
    )
show_table(rows, "Linear schedule, 1000 steps; rule released, 0.5; model units")

# %% tags=["remove-cell"]
r_100 = float(threat.radius_at(vp_sigma[100]))
claim(
    r_100 < 0.1 * float(vp_sigma[100]) * size**0.5
    and norm.cdf(r_100 / (2 * float(vp_sigma[100]))) > 0.7
)
glue(
    "guide-length-100",
    f"{100 * r_100 / (float(vp_sigma[100]) * size**0.5):.1f}",
)
glue(
    "guide-told-100",
    f"{100 * norm.cdf(r_100 / (2 * float(vp_sigma[100]))):.0f}",
)

# %% [markdown]
# At $t = 100$ the attack has {glue:text}`guide-length-100` % of the length of the noise, and would still be told from it in {glue:text}`guide-told-100` % of
# the cases. So it is weak there, but not nothing. At high noise `released` becomes `scaled`: half a standard deviation, at any level.
#
# There are two **step rules** as well. Section 5.1 of the paper has steps of 0.083 for $\epsilon = 0.5$, which is $r / 6$ (`main`): seven of them reach
# $1.17\, r$ if all point the same way. Appendix E has $2.5\, r / \text{steps}$ (`appendix`): they reach $2.5\, r$, and so can turn. Ours are trained with the
# latter.
#
# ## The training curves
#
# They come with the weights: the loss, and the accuracy on held-out images, clean and under the attack of the training.

# %%
curves = {}
for name, file in names.items():
    stored = SHIPPED / f"{file}.safetensors"
    curves[name] = read_checkpoint(stored, "classifier")[1]
    recipe, last = curves[name]["recipe"], curves[name]["curve"][-1]
    attack = recipe["threat"]
    how = f"{attack['norm']} {attack['eps']:g}" if attack else "no attack"
    minutes = curves[name]["seconds"] / 60
    each = f"{recipe['steps']} steps of {recipe['batch']} images"
    print(f"{name:8s} {how}: {each} in {minutes:.0f} minutes")
    for row in last["levels"]:
        counts = f"right {row['clean']}, attacked {row['adversarial']}"
        print(f"    sigma {row['sigma']:4g}: {counts} of {row['n']}")
wide_threat = Threat(**curves["wide"]["recipe"]["threat"])

# %% mystnb={"figure": {"caption": "Training. Left: the loss of the batch (of the attacked one, for the robust classifier), smoothed. Right: held-out accuracy under the attack of the training, at three noise levels; vanilla dashed, robust solid.", "name": "fig-guide-training"}, "image": {"alt": "Left: two falling loss curves, the robust one higher. Right: rising accuracies under attack"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
for i, (name, ls) in enumerate((("vanilla", "--"), ("robust", "-"))):
    at, loss = np.array(curves[name]["losses"]).T
    kernel = np.ones(5) / 5
    if len(loss) > 10:
        axes[0].plot(
            at[2:-2],
            np.convolve(loss, kernel, "valid"),
            ls,
            color=f"C{i}",
            label=name,
        )
    for j, row in enumerate(curves[name]["curve"][0]["levels"][::2]):
        held = [
            (
                c["step"],
                next(r for r in c["levels"] if r["sigma"] == row["sigma"]),
            )
            for c in curves[name]["curve"]
        ]
        share = [100 * r["adversarial"] / r["n"] for _, r in held]
        label = rf"$\sigma$ = {row['sigma']:g}" if ls == "-" else None
        axes[1].plot(
            [s for s, _ in held],
            share,
            ls,
            color=f"C{j}",
            marker=".",
            label=label,
        )
axes[0].set(xlabel="step", ylabel="loss (nats)")
axes[1].set(xlabel="step", ylabel="right under attack (%)", ylim=(0, 100))
for ax in axes:
    ax.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## What to remember
#
# - A guide is a classifier of noisy images. A robust one is trained on noisy images that were attacked.
# - With early stopping the attack finds points just across the border, not the worst ones.
# - An attack that is small beside the noise may still be told from it: compare its radius with one standard deviation, not with the
#   length of the noise.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-small
# :::
# **Small beside the noise?** (10 minutes, easy). Two classes are one image each, 6 apart in L2, and noise of level
# $\sigma = 2$ is added in 784 dimensions. How often is the best classifier right, without an attack and under an L2
# attack of radius 2 on the noisy image? Compare the radius with the length of the noise.
#
# :::{hint}
# :class: dropdown
# Only the coordinate along the line between the images matters. There the noise has one standard deviation $\sigma$.
# :::

# %%
# your code here
unattacked, attacked = None, None  # shares between 0 and 1

# %%
# check
wanted = norm.cdf([3 / 2, (3 - 2) / 2])
fine = None not in (unattacked, attacked)
fine = fine and abs(unattacked - wanted[0]) + abs(attacked - wanted[1]) < 2e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-small
# :label: sol-guide-small
# :class: dropdown
# :::
# $\Phi(3 / \sigma)$, and $\Phi((3 - 2) / \sigma)$ under attack. The noise is $2 \sqrt{784} = 56$ long, so the attack is
# a thirtieth of it, and yet it costs a quarter of the images: it is a whole standard deviation in the only direction
# that counts.

# %%
unattacked, attacked = norm.cdf(3 / 2), norm.cdf((3 - 2) / 2)
print(f"right {unattacked:.3f}, under attack {attacked:.3f}")

# %% tags=["remove-cell"]
claim(attacked < unattacked)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-hidden
# :::
# **Where the noise hides it** (10 minutes, medium). Under the rule `image` the attack of $\epsilon = 0.5$ has the length 1 at every level. From which $\sigma$ on is the best test right in
# at most 60 % of the cases? And under `scaled`?
#
# :::{hint}
# :class: dropdown
# $\Phi(r / 2 \sigma) = 0.6$; `norm.ppf` is the inverse of $\Phi$. Under `scaled` $\sigma$ cancels.
# :::

# %%
# your code here
sigma_image, told_scaled = None, None  # a level, a probability

# %%
# check
fine = None not in (sigma_image, told_scaled)
fine = fine and abs(norm.cdf(1 / (2 * sigma_image)) - 0.6) < 1e-3
fine = fine and abs(told_scaled - norm.cdf(0.25)) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-hidden
# :label: sol-guide-hidden
# :class: dropdown
# :::
# $\sigma = 1 / (2 \Phi^{-1}(0.6))$. Under `scaled` the answer is $\Phi(1/4)$ at every level: the noise always hides it equally
# well.

# %%
sigma_image = 1 / (2 * norm.ppf(0.6))
told_scaled = norm.cdf(0.5 / 2)
print(f"image: sigma {sigma_image:.2f}; scaled: {told_scaled:.3f} at any")

# %% tags=["remove-cell"]
claim(1.9 < sigma_image < 2.1 and told_scaled < 0.6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-turn
# :::
# **Can seven steps turn?** (5 minutes, easy). An attack stands at the edge of the ball, and the loss is highest at the opposite edge, $2 r$ away. How many steps does it need with the
# step $r / 6$ of section 5.1, and how many with $2.5\, r / 7$ of Appendix E?
#
# :::{hint}
# :class: dropdown
# Divide, and round up.
# :::

# %%
# your code here
steps_main, steps_appendix = None, None

# %%
# check
fine = (steps_main, steps_appendix) == (12, 6)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-turn
# :label: sol-guide-turn
# :class: dropdown
# :::
# Twelve, more than the seven that there are; and six.

# %%
steps_main, steps_appendix = math.ceil(2 * 6), math.ceil(2 * 7 / 2.5)
print(f"main {steps_main}, appendix {steps_appendix}")

# %% tags=["remove-cell"]
claim(steps_appendix < 7 < steps_main)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Adversarial training: {cite:t}`madry2018towards`; the noised diffusion
# classifier: {cite:t}`chen2024ndc`.
