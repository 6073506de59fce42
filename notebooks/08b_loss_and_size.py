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
# (nb-gradients-size)=
# # The loss and the size of a gradient
#
# :::{admonition} What you will be able to do
# :class: tip
# - Separate the noise of a model from the changes of a loss.
# - Compare gradients of different models in units that mean the same for all of them.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-gradients`. Covers Table 4 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels T of the diffusion classifier
n: int = 5  # images whose gradients are taken
repeats: int = 3  # gradients of each image and loss

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    gradient_cosine,
    linearised_distance,
    margin_to,
    repeated_gradients,
    runner_up,
)
from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import (
    RDC,
    DiffPure,
    DiffusionClassifier,
    LikelihoodMaximization,
    Purify,
)
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.models import build
from rdc.notebook import check_parameters, claim, claims_table, close_to, glue
from rdc.plots import legend_below, style
from rdc.randomness import known_noise
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
cnn, hard = (build(name, data, device) for name in ("cnn", "at-linf"))


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
lm, purify = likelihood(), Purify(trunk, noise="fresh", seed=seed)
models: dict[str, nn.Module] = {
    "CNN": cnn,
    "DC": dc,
    "RDC, BPDA": RDC(lm, dc, "bpda"),
    "RDC, exact": RDC(lm, dc, "exact"),
    "DiffPure+CNN": DiffPure(purify, cnn),
}

right = (
    predict(cnn, test.x[: 6 * n].to(device)) == test.y[: 6 * n].to(device)
).nonzero()[:, 0]
xg, yg = test.x.to(device)[right][:n], test.y.to(device)[right][:n]

sized = {
    "CNN": cnn,
    "CNN, adversarial": hard,
    **{k: m for k, m in models.items() if k != "CNN"},
}

# %% [markdown]
# **How large is a gradient?** The question has no answer without a unit: {numref}`fig-gradients-units`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["hide-input"]
distance: dict[tuple[str, int], Tensor] = {}
mean_size: dict[str, float] = {}
print(
    f"{n} images; distances are medians over the images that the model gets "
    f"right, in units of 1/255"
)
print(
    "model              mean |g|    over pixels    and a batch    d, EOT 1    "
    "d, EOT 4"
)
for name, model in sized.items():
    random = name in models and name != "CNN"
    loss = margin_to(runner_up(model, xg, yg))
    g = repeated_gradients(model, xg, yg, 1, loss=loss, seed=seed)
    mean_size[name] = float(g.abs().mean())
    for m in (1, 4) if random else (1,):
        distance[name, m] = linearised_distance(model, xg, yg, eot=m, seed=seed)
    distance.setdefault((name, 4), distance[name, 1])
    d = [
        255 * float(v[v > 0].median())
        for v in (distance[name, 1], distance[name, 4])
    ]
    size, pixels = mean_size[name], xg[0].numel()
    print(
        f"{name:16s} {size:10.2g}     {size / pixels:9.2g}      "
        f"{size / pixels / 32:9.2g}"
        f"    {d[0]:8.2f}    {d[1]:8.2f}"
    )

# %% mystnb={"figure": {"caption": "The mean absolute gradient of the margin, for six models: as it is, with logits that are means over pixels, and with a loss that is also averaged over a batch of 32. Logarithmic axis. No decision of any model differs between the three.", "name": "fig-gradients-units"}, "image": {"alt": "Three marks in each of six rows, a factor of hundreds apart within a row; models overlap between the kinds of mark", "width": "85%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.6, 4))
for i, (label, factor) in enumerate(
    (
        ("as it is", 1),
        ("mean over pixels", pixels),
        ("and over a batch", 32 * pixels),
    )
):
    ax.plot(
        [v / factor for v in mean_size.values()],
        range(len(mean_size)),
        "osv"[i],
        color=f"C{i}",
        label=label,
    )
ax.set_yticks(range(len(mean_size)), list(mean_size))
ax.set(xscale="log", xlabel="mean absolute gradient")
ax.invert_yaxis()
legend_below(fig)
plt.show()


# %% [markdown]
# (sec-gradients-size)=
# ## How large: units that mean the same
#
# Table 4 of {cite:t}`chen2024rdc` compares the mean absolute gradient $\frac1D \norm{g}_1$ of their model with that of adversarially trained
# networks. Multiply the logits by a constant, and it changes by the constant while no decision does. The released logits are means over pixels, those of the
# theorem sums. The only released code for the table, commented out, averages the loss of the other networks over a batch of 32. Each moves the number by
# orders of magnitude.
#
# What an attacker needs to know is how far the boundary is. To first order, the smallest $\ell_\infty$ step that closes the margin
# $m = f_y - \max_{j \ne y} f_j$ is
#
# ```{math}
# :label: eq-gradients-distance
# d = \frac{m(x)}{\norm{\nabla m(x)}_1},
# ```
#
# in units of the image, whatever the scale of the logits ({py:func}`rdc.analyse.linearised_distance`). A vanished gradient shows as an enormous $d$.
# For a random model there is a catch: noise adds to $\norm{g}_1$ and makes a useless gradient look large. So we take it at EOT 1 and 4.
# Here $d$ does not grow when we average. For the exact gradient of RDC it even shrinks: a mean of a few draws contains the
# spikes of each, so averaging so few repairs nothing.
#
# The columns "over pixels" and "and a batch" are the first one divided by the number of pixels and by 32: the same model, the same decisions, numbers that
# differ by orders of magnitude. One can make Table 4 come out as one likes.
#
# Does the distance mean anything? A first-order estimate is right where the model is linear. We take the step that should close the margin,
# and steps twice and four times as long, under the noise of the gradient.


# %% tags=["hide-input"]
def crossed(
    model: nn.Module, factors: tuple[int, ...]
) -> list[tuple[int, int]]:
    """How many right images a step of each factor times the linearised
    distance takes over the boundary, and of how many.
    """
    known = known_noise(model, seed)
    value, slope = value_and_gradient(lambda p: margin(known(p), yg), xg)
    d = -value / slope.abs().flatten(1).sum(1)
    todo, step = (d > 0) & d.isfinite(), d.reshape(-1, 1, 1, 1) * slope.sign()
    wrong = [
        predict(known, (xg + factor * step).clamp(0, 1)) != yg
        for factor in factors
    ]
    return [(int(w[todo].sum()), int(todo.sum())) for w in wrong]


crossings: dict[str, list[tuple[int, int]]] = {}
print(
    "right images that cross after a step of 1, 2 and 4 times the linearised "
    "distance"
)
for name, model in sized.items():
    crossings[name] = crossed(model, (1, 2, 4))
    print(f"{name:18s}", "   ".join(f"{a} of {b}" for a, b in crossings[name]))

# %% tags=["remove-cell"]
scaled = linearised_distance(cnn, xg, yg)


class Scaled(nn.Module):
    """A model with its logits times a factor: the same decisions."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """Scaled logits."""
        return self.factor * self.model(x)


assert torch.allclose(
    linearised_distance(Scaled(cnn, 1e-3), xg, yg), scaled, rtol=1e-3
)  # free of the scale
for key, name in (("dc", "DC"), ("bpda", "RDC, BPDA"), ("exact", "RDC, exact")):
    glue(f"gradients-crossed-{key}", "{} of {}".format(*crossings[name][2]))
claim(
    crossings["DC"][2][0]
    > max(crossings["RDC, BPDA"][2][0], crossings["RDC, exact"][2][0])
)
claim(
    float(distance["DC", 4].median()) < 0.5,
    "no vanishing: the boundary is within the image's range",
)

# %% [markdown]
# A DC whose gradient had vanished would sit at an enormous distance. It does not: its linearised distance is of ordinary size, and a few such steps cross the
# boundary. That supports the paper's claim for DC.
#
# For RDC the same table is a warning. BPDA's gradient has DC's size by construction, since it *is* DC's gradient, moved; it is no slope of RDC, and the
# steps that it promises ({glue:text}`gradients-crossed-bpda` cross at four times the distance, for DC {glue:text}`gradients-crossed-dc`) do not arrive: LM takes them
# back. The exact gradient is a slope, with spikes so tall that $d$ says little, and one long step along them misses
# ({glue:text}`gradients-crossed-exact`). A magnitude excludes that a gradient has *vanished*. It does not say that it leads anywhere.
#
# (sec-gradients-loss)=
# ## Where the noise comes from: the loss
#
# The gradient of a *single logit* is noisier than that of a difference. The ten losses share their noise, and what is common to all classes cancels in
# a difference. The released script for Figure 2(a) takes gradients of single logits (of one image, without EOT; for DiffPure of one class only).
#
# The full margin may change its rival, and a gradient that points now towards a shirt and now towards a coat is random whatever the noise
# of each. How much of the randomness is that?

# %%
switching: dict[str, tuple[float, float]] = {}
print(f"{n} images, {repeats} gradients each: cosine")
print("model            fixed rival    margin")
for name in ("DC", "DiffPure+CNN"):
    loss = margin_to(runner_up(models[name], xg, yg))
    held = repeated_gradients(
        models[name], xg, yg, repeats, loss=loss, seed=seed
    )
    g = repeated_gradients(models[name], xg, yg, repeats, seed=seed)
    switching[name] = tuple(float(gradient_cosine(v).mean()) for v in (held, g))
    print(
        f"{name:16s}    {switching[name][0]:6.3f}      "
        f"{switching[name][1]:6.3f}"
    )

# %% tags=["remove-cell"]
claim(
    all(fixed > free - 0.1 for fixed, free in switching.values()),
    "a rival that is free to change adds randomness",
)

# %% [markdown]
# For a diffusion classifier much of what looks like noisy gradients is a change of rival. It is a property of the loss, and targets
# (`targets=` of {py:func}`rdc.attack.pgd`) remove it. "The same loss for all models" is therefore part of the measurement.
#
# ### A cosine of one by construction
#
# The released LM restarts all random generators at the same seed in every call. So it is deterministic, and so is what follows it.

# %%
reseeded = RDC(likelihood(noise="fixed"), known_noise(dc, seed), "exact")
same = repeated_gradients(reseeded, xg[:4], yg[:4], 3, seed=seed)
print(
    f"noise fixed as released: cosine "
    f"{float(gradient_cosine(same).min()):.6f}, equal bit for bit: "
    f"{torch.equal(same[0], same[1])}"
)


class Reseeds(nn.Module):
    """Noise from the global generator, which the model restarts at each
    call.
    """

    def forward(self, x: Tensor) -> Tensor:
        """A slightly noisy image."""
        torch.manual_seed(1)
        return x + 0.1 * torch.randn_like(x)


with torch.random.fork_rng():
    starts = []
    for _ in range(3):  # random starts of an attacker, from the same generator
        Reseeds()(xg)
        starts.append(torch.rand(4))
print(
    f"the attacker's random starts after it are all the same: "
    f"{all(torch.equal(s, starts[0]) for s in starts)}"
)

# %% tags=["remove-cell"]
assert (
    torch.equal(same[0], same[1])
    and float(gradient_cosine(same).min()) > 0.9999
)

# %% [markdown]
# Two calls agree to the last bit. A cosine of one says that nothing random was left, not that the exact gradient is a good one, and EOT over such a
# model averages equal terms. Worse, the restart reaches into the attack: its "random restarts" all start at the same point.
#
# ## The verdict

# %% tags=["hide-input"]
far = 255 * float(distance["DC", 4][distance["DC", 4] > 0].median())
near_cnn = 255 * float(distance["CNN", 1][distance["CNN", 1] > 0].median())
print(
    f"A19 linearised distance: DC {far:.1f}/255, CNN {near_cnn:.1f}/255; the "
    f"published unit depends on the scale of the logits"
)
claims_table("A19")

# %% [markdown]
# ## What to remember
#
# - Mean absolute gradients have no unit. The linearised distance does.
# - A rival that is free to change adds randomness, which belongs to the loss and not to the model.
# - Noise fixed by a seed gives a cosine of one. It says that nothing random was left, not that the gradient is good.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-batch
# :::
# **Divided by 32** (10 minutes, easy). Show that the mean absolute gradient of the mean cross-entropy over a batch of $B$ images is $1 / B$ of what it is for single images. Measure the factor for 32 images and the CNN. What does that do to a comparison in which one model was measured in batches and the other one image at a time?
#
# :::{hint}
# :class: dropdown
# The loss of an image does not depend on the others. Take the gradient of the sum, and of the mean.
# :::

# %%
# your code here
factor = None

# %%
# check
fine = factor is not None and abs(factor - 32) < 0.1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-batch
# :label: sol-gradients-batch
# :class: dropdown
# :::
# $\nabla_{x_i} \frac1B \sum_j \ell_j = \frac1B \nabla_{x_i} \ell_i$, as $\ell_j$ does not depend on $x_i$. The comparison is off by the factor $B$, before any scale of logits.

# %%
batch = test.x[:32].to(device).requires_grad_()
loss = nn.functional.cross_entropy(
    cnn(batch), test.y[:32].to(device), reduction="none"
)
by_sum, by_mean = (
    torch.autograd.grad(v, batch, retain_graph=True)[0].abs().mean()
    for v in (loss.sum(), loss.mean())
)
factor = float(by_sum / by_mean)
print(f"single images over batch mean: {factor:.2f}")

# %% tags=["remove-cell"]
assert abs(factor - 32) < 1e-2

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-unit
# :::
# **Which number changes?** (10 minutes, medium). Somebody multiplies the logits by 10 and stores images as numbers from 0 to 255. By which factors do the mean absolute gradient and the linearised distance change?
#
# :::{hint}
# :class: dropdown
# The gradient is that of logits by pixels; the distance is in pixels.
# :::

# %%
# your code here
size_factor, distance_factor = None, None

# %%
# check
fine = close_to(size_factor, 10 / 255, within=1e-3)
fine = fine and close_to(distance_factor, 255, within=0.1)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-unit
# :label: sol-gradients-unit
# :class: dropdown
# :::
# The gradient by $10 / 255$. The distance by 255, the unit of the image; the 10 stands above and below the fraction. A distance of $16/255$ is then 16, and everybody knows what it means.

# %%
size_factor, distance_factor = 10 / 255, 255
print(f"{size_factor:.3f}, {distance_factor}")

# %% tags=["remove-cell"]
claim(size_factor < 1 < distance_factor)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-rival
# :::
# **A coin between two rivals** (10 minutes, medium). A model has no noise in its gradients but in its rival: with probability $p$ the gradient is $a$, otherwise $b$, of the same length and orthogonal. What is the expected cosine of two independent gradients at $p = 1/2$, and what is $h$?
#
# :::{hint}
# :class: dropdown
# Two draws agree with probability $p^2 + (1 - p)^2$.
# :::

# %%
# your code here
cosine_half, h_half = None, None

# %%
# check
fine = (cosine_half, h_half) == (0.5, 1)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-rival
# :label: sol-gradients-rival
# :class: dropdown
# :::
# The cosine is $p^2 + (1 - p)^2 = 1/2$, and $h = 1 / \rho(1) - 1 = 1$: as random as a gradient with as much noise as signal, though every logit is quiet.

# %%
p = 1 / 2
cosine_half = p**2 + (1 - p) ** 2
h_half = 1 / cosine_half - 1
print(cosine_half, h_half)

# %% tags=["remove-cell"]
claim(h_half == 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The measurements of gradients follow {cite:t}`chen2024rdc`. Obfuscated gradients are due to {cite:t}`athalye2018obfuscated`, DiffPure to {cite:t}`nie2022diffpure`. The images are those of {cite:t}`xiao2017fashion`.
