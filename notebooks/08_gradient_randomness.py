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
# (nb-gradients)=
# # Gradient randomness
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what "640 times more random" means, derive the curve behind it, and measure it in two ways.
# - Find out *where* the randomness of a gradient comes from: the noise, the loss, or the steps of a purification.
# - Compare gradients of different models in units that mean the same for all of them.
# - Separate three properties that are often confused: gradients that agree, gradients that are smooth, and values that are quiet.
# - Judge a randomised defence by an attacker who knows its random numbers, and say how far a purification contracts an attack.
# :::
#
# **Time** 60 minutes · **Needs** {ref}`nb-adaptive`, {ref}`nb-lm` and {ref}`nb-multihead`.
# Covers the gradient analysis of section 4.4, Figure 2(a), Table 4 and parts of appendix B.2 of {cite:t}`chen2024rdc`.
#
# A defence may look robust because its gradients are useless. Their paper answers with two measurements: the gradients of their
# models hardly change from call to call, and they are as large as those of other models. This chapter repeats both, and asks what they prove.
#
# The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
heads_name: str = "fashion-mini-multihead"  # the multi-head denoiser distilled from it
count: int = 8  # noise levels T of the diffusion classifier
n: int = 5  # images whose gradients are taken
repeats: int = 6  # gradients of each image and model
eot: list[int] = [1, 2, 3]  # gradients averaged
level_counts: list[int] = [4, 8, 16]  # numbers T of levels for the sweep
n_smooth: int = 3  # images for smoothness and for Jacobians
path_steps: int = 4  # steps of the path of an attack
draws: int = 5  # draws of the noise for losses and verdicts
n_attack: int = 5  # images for the attacks
steps: int = 5  # gradient steps of an attack
eps: str | float = 16 / 255  # Linf radius of an attack, image units
lm_count: int = 3  # noise levels for likelihood maximisation over all levels

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    SignalNoise,
    ascent_path,
    compression_rate,
    eot_cosine,
    gradient_cosine,
    gradient_lipschitz,
    gradients_along,
    jacobian_rms,
    linearised_distance,
    lipschitz,
    loss_noise,
    margin_to,
    path_cosine,
    repeated_gradients,
    runner_up,
    signal_to_noise,
    top_singular_value,
)
from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, predict, robust_accuracy
from rdc.models import build
from rdc.notebook import check_parameters, claim, claims_table, glue, stored_cells, stored_rows, stored_table
from rdc.plots import style
from rdc.randomness import known_noise
from rdc.rng import randn
from rdc.schedule import levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")

# %% [markdown]
# ## The models
#
# All models see the same images. The diffusion classifier (DC) uses the multi-head network of {ref}`nb-multihead`, with few noise levels.
# Likelihood maximisation (LM) is the released reading of {ref}`nb-lm`: five steps of Adam. DiffPure takes ten ancestral steps from
# $t^* = 0.1$. Every noise is *fresh*: another one at each call.
#
# For a model with LM in front there are several gradients, and we shall see that they have little in common. `BPDA` is the gradient behind LM,
# moved unchanged to the image. `exact` goes through all five steps. Later we meet `smoothed`, which has the same values and blurs the sign
# steps in the backward pass.

# %%
dtype = fast_dtype(device)
heads = load_denoiser(heads_name, device=device, dtype=dtype)
trunk = load_denoiser(data, device=device, dtype=dtype)  # the unconditional network, for LM and DiffPure
cnn, hard = (build(name, data, device) for name in ("cnn", "at-linf"))


def diffusion_classifier(count: int = count, noise: str = "fresh", seed: int = seed) -> DiffusionClassifier:
    """A diffusion classifier on ``count`` levels of the likelihood bound."""
    return DiffusionClassifier(heads, levels("elbo", count, sigma_min=0.1), noise=noise, seed=seed, chunk=2560)


def likelihood(reading: str = "released", noise: str = "fresh", **options: object) -> LikelihoodMaximization:
    """Likelihood maximisation after one of its readings."""
    return LikelihoodMaximization(trunk, **{**READINGS[reading], "noise": noise, "seed": seed, **options})


dc, lm, purify = diffusion_classifier(), likelihood(), Purify(trunk, noise="fresh", seed=seed)
models: dict[str, nn.Module] = {
    "CNN": cnn,
    "DC": dc,
    "RDC, BPDA": RDC(lm, dc, "bpda"),
    "RDC, exact": RDC(lm, dc, "exact"),
    "LM+CNN, exact": RDC(lm, cnn, "exact"),
    "DiffPure+CNN": DiffPure(purify, cnn),
}
right = (predict(cnn, test.x[: 6 * n].to(device)) == test.y[: 6 * n].to(device)).nonzero()[:, 0]
x, y = test.x.to(device)[right][: max(n, n_attack)], test.y.to(device)[right][: max(n, n_attack)]
xg, yg = x[:n], y[:n]
print(f"{len(x)} images that the CNN gets right; the adversarially trained CNN gets {int((predict(hard, x) == y).sum())}")

# %% [markdown]
# (sec-gradients-random)=
# ## What the randomness of a gradient is
#
# Call a randomised model twice and differentiate: two gradients $g$, $g'$ of one image. If they point the same way, the noise did not
# matter for the direction. Figure 2(a) of {cite:t}`chen2024rdc` shows their cosine, averaged over pairs and images, for single gradients and for
# means of $m$ gradients (EOT, {eq}`eq-eot`). How the curve rises with $m$ follows from two numbers.
#
# :::{prf:proposition} The curve of the cosine
# :label: prop-gradients-cosine
# Let $g_r = s + n_r$ with $\E\, n_r = 0$ and independent $n_r$ of covariance $C$, and let $\bar g$, $\bar g'$ be means of disjoint groups of $m$.
# Then
#
# ```{math}
# :label: eq-gradients-cosine
# \rho(m) := \frac{\E\, \bar g \cdot \bar g'}{\E \norm{\bar g}^2} = \frac{\norm{s}^2}{\norm{s}^2 + \operatorname{tr}(C) / m}
#     = \frac{1}{1 + h / m}, \qquad h = \frac{\operatorname{tr} C}{\norm{s}^2}.
# ```
# :::
#
# :::{prf:proof}
# 1. $\bar g = s + \bar n$ with $\E\, \bar n = 0$, and the covariance of a mean of $m$ independent terms is $C / m$.
# 2. Disjoint groups are independent, so $\E\, \bar g \cdot \bar g' = \E\, \bar g \cdot \E\, \bar g' = \norm{s}^2$.
# 3. $\E \norm{\bar g}^2 = \norm{s}^2 + \E \norm{\bar n}^2$, as the mixed term has mean zero.
# 4. $\E \norm{\bar n}^2 = \operatorname{tr}(C / m)$, the sum of the variances of the coordinates.
# 5. Divide.
# :::
#
# The number $h$ is all there is: $m = h$ calls bring the cosine to one half. Two models have the same curve, shifted along a logarithmic axis of
# $m$ by the ratio of their $h$. So "**640 times more random**" is the statement that $h$ of one model is 640 times that of the other.
# It is not about what an attack achieves, and no sweep to EOT 640 is needed to see it: a few single gradients give $\operatorname{tr} C$ and, without
# bias, $\norm{s}^2$.
#
# The proposition is about a ratio of expectations. The mean cosine is an expectation of ratios. The two agree when $\norm{\bar g}^2$ varies little from draw
# to draw. We measure both, and also the share of the largest of $R$ draws in $\sum_r \norm{g_r}^2$: near $1 / R$ all is well, near 1 a single
# draw decides everything.
#
# One more choice hides in "the gradient": of what loss? The margin $\max_{j \ne y} f_j - f_y$ may take another rival $j$ at each call. We take it first
# against a rival that is held fixed (`margin_to`), for each model its own `runner_up`, and come back to the choice.


# %%
def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the logit of the true class."""
    return -logits.gather(1, y[:, None])[:, 0]


gradients: dict[str, Tensor] = {}
rivals: dict[str, Tensor] = {}
for name, model in models.items():
    rivals[name] = runner_up(model, xg, yg)
    gradients[name] = repeated_gradients(model, xg, yg, repeats, loss=margin_to(rivals[name]), seed=seed)
found: dict[str, SignalNoise] = {name: signal_to_noise(g) for name, g in gradients.items()}


def largest_share(g: Tensor) -> float:
    """Share of the largest draw in the sum of the squared lengths, median over images."""
    energy = g.double().square().flatten(2).sum(2)
    return float((energy.max(0).values / energy.sum(0)).median())


def from_cosine(cosine: float) -> float:
    """The h that a cosine of single gradients belongs to."""
    return 1 / max(cosine, 1e-3) - 1


cosine = {name: float(gradient_cosine(g).mean()) for name, g in gradients.items()}
ratio = {name: float(s.half_eot.median()) for name, s in found.items()}
print(f"{n} images, {repeats} gradients each, margin to a fixed rival")
print("model            cosine    h from the cosine    h = tr C/|s|^2 (median)   share of the largest draw")
for name in models:
    print(
        f"{name:16s} {cosine[name]:6.3f}       {from_cosine(cosine[name]):10.3f}          {ratio[name]:10.3g}"
        f"                 {largest_share(gradients[name]):.2f}"
    )

# %% mystnb={"figure": {"caption": "Mean cosine of two gradients, each the mean of m calls: measured on disjoint groups (points) and the closed form of the proposition from the two estimated numbers of each image (lines). The axis of m is logarithmic, so that models differ by a shift where the closed form holds.", "name": "fig-gradients-cosine"}, "image": {"alt": "Curves that rise with m; that of the diffusion classifier starts near one, those of the exact gradients through likelihood maximisation near zero", "width": "75%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.5, 3.8))
many = torch.logspace(0, 4, 60)
for i, (name, g) in enumerate(gradients.items()):
    ax.plot(eot, eot_cosine(g, eot).mean(1).cpu(), "o", color=f"C{i}", label=name)
    ax.plot(many, [float(found[name].cosine(m).nanmean()) for m in many.tolist()], "-", color=f"C{i}", lw=1)
ax.set(xscale="log", xlabel="gradients averaged, m", ylabel="cosine of two means", ylim=(-0.05, 1.05))
ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
plt.show()

# %% tags=["remove-cell"]
claim(cosine["CNN"] > 0.999 and cosine["DC"] > 0.7)
claim(cosine["DC"] >= max(value for name, value in cosine.items() if name != "CNN") - 0.02)
claim(cosine["DC"] > cosine["RDC, exact"] + 0.3 and cosine["RDC, BPDA"] > cosine["RDC, exact"] + 0.3)
claim(cosine["DiffPure+CNN"] > cosine["LM+CNN, exact"] + 0.1)
for name in ("DC", "RDC, BPDA", "DiffPure+CNN"):  # the closed form predicts what the groups measure
    gap = (eot_cosine(gradients[name], eot).mean(1) - torch.stack([found[name].cosine(m).mean() for m in eot])).abs().max()
    claim(gap < 0.12, str((name, gap)))
claim(largest_share(gradients["RDC, exact"]) > 2.5 / repeats > largest_share(gradients["DC"]))
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    glue(f"gradients-cosine-{name.replace(', ', '-').replace('+', '-').lower()}", f"{cosine[name]:.2f}")
glue("gradients-share", f"{largest_share(gradients['RDC, exact']):.2f}")
glue("gradients-fair-share", f"{1 / repeats:.2f}")

# %% [markdown]
# In {numref}`fig-gradients-cosine` points and lines agree where the draws have similar lengths: DC, RDC under BPDA, DiffPure.
#
# **The randomness of RDC depends on which gradient one asks.** Under BPDA its cosine is {glue:text}`gradients-cosine-rdc-bpda`, that of the
# classifier behind it. The exact gradient through LM has {glue:text}`gradients-cosine-rdc-exact`: more random than DiffPure
# ({glue:text}`gradients-cosine-diffpure-cnn`), not less. BPDA does not measure the noise of LM. It leaves it out.
#
# For the exact gradient the closed form is no guide. The largest draw has the share {glue:text}`gradients-share` of the energy, where
# {glue:text}`gradients-fair-share` would be fair. The reason is the first steps of Adam ({py:mod}`rdc.defend.lm_updates`): nearly signs, flat almost everywhere,
# with a slope of up to $1 / \varepsilon$ where a pixel's gradient passes through zero. A few pixels in a few draws make up $\operatorname{tr} C$, so that $R$ draws
# say little about it. The mean of the cosine over pairs is still meaningful, and we quote that.
#
# ### Where the noise comes from: levels
#
# DC is itself an average: over $T$ noise levels, each with a noise of its own. So its $h$ should fall like $1 / T$. Each level is one network
# evaluation.

# %%
sweep: dict[int, dict[str, float]] = {}
print(f"DC, {n} images: h against the number T of levels, for three losses")
print("   T    fixed rival     T h     margin    true logit")
for t in level_counts:
    model = diffusion_classifier(t)
    losses = {"rival": margin_to(rivals["DC"]), "margin": margin, "logit": true_logit}
    sweep[t] = {}
    for key, loss in losses.items():
        r = 4 if key == "rival" or t <= 8 else 0  # the expensive ones only where they are asked about
        if r:
            sweep[t][key] = float(
                signal_to_noise(repeated_gradients(model, xg, yg, r, loss=loss, seed=seed + 1)).half_eot.median()
            )
    rest = "   ".join(f"{sweep[t][key]:8.3f}" if key in sweep[t] else "        " for key in ("margin", "logit"))
    print(f"{t:4d}     {sweep[t]['rival']:8.4f}   {t * sweep[t]['rival']:8.2f}   {rest}")
per_level = float(torch.tensor([t * v["rival"] for t, v in sweep.items()]).median())
print(f"h of one level about {per_level:.2f}; for T = 1000 levels the law T h = const gives h about {per_level / 1000:.1g}")

# %% tags=["remove-cell"]
products = [t * v["rival"] for t, v in sweep.items()]
claim(max(products) < 1.6 * min(products), "h falls like 1 / T")
claim(all(v["logit"] > 2 * v["rival"] for v in sweep.values() if "logit" in v))
diffpure_over_dc = from_cosine(cosine["DiffPure+CNN"]) / from_cosine(cosine["DC"])
for_640 = 640 * count / diffpure_over_dc
per_evaluation = diffpure_over_dc * purify.evaluations / count
glue("gradients-ratio", f"{diffpure_over_dc:.0f}")
glue("gradients-levels-640", f"{for_640:.0f}")
glue("gradients-per-evaluation", f"{per_evaluation:.0f}")
glue("gradients-count", count)
glue("gradients-ratio-1000", f"{diffpure_over_dc * 1000 / count:.0f}")

# %% [markdown]
# The product $T h$ is constant: **low randomness is bought with evaluations**. At $T =$ {glue:text}`gradients-count` DiffPure is
# {glue:text}`gradients-ratio` times more random than DC. By the law $h \propto 1 / T$ the factor 640 is reached at about
# {glue:text}`gradients-levels-640` levels; the paper's classifier has a thousand, for which the law says {glue:text}`gradients-ratio-1000` (an extrapolation, not a
# measurement). So Figure 2(a) is plausible, and a factor of that size says first of all how many levels are averaged. DiffPure could
# average too: at an equal number of network evaluations the factor is {glue:text}`gradients-per-evaluation`.
#
# ### Where the noise comes from: the loss
#
# The gradient of a *single logit* is noisier than that of a difference. The ten losses share their noise, and what is common to all classes cancels in
# a difference. The released script for Figure 2(a) takes gradients of single logits (of one image, without EOT; for DiffPure of one class only).
#
# The full margin may change its rival, and a gradient that points now towards a shirt and now towards a coat is random whatever the noise
# of each. How much of the randomness is that?

# %%
switching: dict[str, tuple[float, float]] = {}
print(f"{n} images, {repeats // 2} gradients each: cosine")
print("model            fixed rival    margin")
for name in ("DC", "DiffPure+CNN"):
    g = repeated_gradients(models[name], xg, yg, repeats // 2, seed=seed)
    switching[name] = float(gradient_cosine(gradients[name][: repeats // 2]).mean()), float(gradient_cosine(g).mean())
    print(f"{name:16s}    {switching[name][0]:6.3f}      {switching[name][1]:6.3f}")

# %% tags=["remove-cell"]
claim(all(fixed > free - 0.1 for fixed, free in switching.values()), "a rival that is free to change adds randomness")

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
    f"noise fixed as released: cosine {float(gradient_cosine(same).min()):.6f}, equal bit for bit: {torch.equal(same[0], same[1])}"
)


class Reseeds(nn.Module):
    """Noise from the global generator, which the model restarts at each call."""

    def forward(self, x: Tensor) -> Tensor:
        """A slightly noisy image."""
        torch.manual_seed(1)
        return x + 0.1 * torch.randn_like(x)


with torch.random.fork_rng():
    starts = []
    for _ in range(3):  # an attacker who takes random starts from the same generator, as tools do
        Reseeds()(xg)
        starts.append(torch.rand(4))
print(f"the attacker's random starts after it are all the same: {all(torch.equal(s, starts[0]) for s in starts)}")

# %% tags=["remove-cell"]
assert torch.equal(same[0], same[1]) and float(gradient_cosine(same).min()) > 0.9999

# %% [markdown]
# Two calls agree to the last bit. A cosine of one says that nothing random was left, not that the exact gradient is a good one, and EOT over such a
# model averages equal terms. Worse, the restart reaches into the attack: its "random restarts" all start at the same point.
#
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

# %%
sized = {
    "CNN": cnn,
    "CNN, adversarial": hard,
    **{k: models[k] for k in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN")},
}
distance: dict[tuple[str, int], Tensor] = {}
mean_size: dict[str, float] = {}
print(f"{n} images; distances are medians over the images that the model gets right, in units of 1/255")
print("model              mean |g|    over pixels    and a batch    d, EOT 1    d, EOT 4")
for name, model in sized.items():
    random = name in models and name != "CNN"
    g = gradients[name][:1] if name in gradients else repeated_gradients(model, xg, yg, 1)
    mean_size[name] = float(g.abs().mean())
    for m in (1, 4) if random else (1,):
        distance[name, m] = linearised_distance(model, xg, yg, eot=m, seed=seed)
    distance.setdefault((name, 4), distance[name, 1])
    d = [255 * float(v[v > 0].median()) for v in (distance[name, 1], distance[name, 4])]
    print(
        f"{name:16s} {mean_size[name]:10.2g}     {mean_size[name] / x[0].numel():9.2g}      {mean_size[name] / x[0].numel() / 32:9.2g}"
        f"    {d[0]:8.2f}    {d[1]:8.2f}"
    )

# %% [markdown]
# The columns "over pixels" and "and a batch" are the first one divided by the number of pixels and by 32: the same model, the same decisions, numbers that
# differ by orders of magnitude. One can make Table 4 come out as one likes.
#
# Does the distance mean anything? A first-order estimate is right where the model is linear. We take the step that should close the margin, and twice as
# long ones, under the noise of the gradient.


# %%
def crossed(model: nn.Module, factors: tuple[int, ...]) -> list[tuple[int, int]]:
    """How many right images a step of each factor times the linearised distance takes over the boundary, and of how many."""
    known = known_noise(model, seed)
    value, slope = value_and_gradient(lambda p: margin(known(p), yg), xg)
    d = -value / slope.abs().flatten(1).sum(1)
    todo, step = (d > 0) & d.isfinite(), d.reshape(-1, 1, 1, 1) * slope.sign()
    wrong = [predict(known, (xg + factor * step).clamp(0, 1)) != yg for factor in factors]
    return [(int(w[todo].sum()), int(todo.sum())) for w in wrong]


crossings: dict[str, list[tuple[int, int]]] = {}
print("right images that cross after a step of 1, 2 and 4 times the linearised distance")
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


assert torch.allclose(linearised_distance(Scaled(cnn, 1e-3), xg, yg), scaled, rtol=1e-3)  # free of the scale
for key, name in (("dc", "DC"), ("bpda", "RDC, BPDA"), ("exact", "RDC, exact")):
    glue(f"gradients-crossed-{key}", "{} of {}".format(*crossings[name][2]))
claim(crossings["DC"][2][0] > max(crossings["RDC, BPDA"][2][0], crossings["RDC, exact"][2][0]))
claim(float(distance["DC", 4].median()) < 0.5, "no vanishing: the boundary is within the image's range")

# %% [markdown]
# A DC whose gradient had vanished would sit at an enormous distance. It does not: its linearised distance is of ordinary size, and a few such steps cross the
# boundary. That supports the paper's claim for DC.
#
# For RDC the same table is a warning. BPDA's gradient has DC's size by construction, since it *is* DC's gradient, moved; it is no slope of RDC, and the
# steps that it promises ({glue:text}`gradients-crossed-bpda` cross at four times the distance, for DC {glue:text}`gradients-crossed-dc`) do not arrive: LM takes them
# back. The exact gradient is a slope, with spikes so tall that $d$ is short and one long step along them misses
# ({glue:text}`gradients-crossed-exact`). A magnitude excludes that a gradient has *vanished*. It does not say that it leads anywhere.
#
# (sec-gradients-smooth)=
# ## How smooth
#
# A gradient may be quiet and right, and yet of no use a step further. Two measurements, both with the noise held fixed: by how much the gradient changes
# between nearby points, relative to its size ({py:func}`rdc.analyse.gradient_lipschitz`; one over it is the $\ell_2$ length over which it changes by as much as itself), and the cosine
# between the gradient at the start of an attack's path and later on it.

# %%
xs, ys = x[:n_smooth], y[:n_smooth]
rough: dict[str, float] = {}
on_path: dict[str, Tensor] = {}
print(
    f"{n_smooth} images; relative change of the gradient over an L2 distance of 1 (random points of the 2/255 ball), and along the path"
)
for name in ("CNN", "DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    fixed = known_noise(models[name], seed)
    near = gradient_lipschitz(fixed, xs, ys, eps=2 / 255, draws=1, seed=seed)
    path = ascent_path(fixed, xs, ys, eps=eps, steps=path_steps, seed=seed)
    slopes = gradients_along(fixed, path, ys, seed=seed)
    rough[name], on_path[name] = float(near.median()), path_cosine(slopes).mean(1).cpu()
    along = float(lipschitz(path, slopes).nanmedian())
    print(
        f"{name:16s} near {rough[name]:8.2f}   along {along:8.2f}   cosine with the start: {[round(v, 2) for v in on_path[name].tolist()]}"
    )

# %% mystnb={"figure": {"caption": "Cosine between the gradient at each point of an attack's path (steps along the sign of the model's own gradient, within an Linf ball) and the gradient at its start, the noise held fixed.", "name": "fig-gradients-path"}, "image": {"alt": "Lines that fall from one with the steps; those of the exact gradient through likelihood maximisation fall to zero at the first step", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))
for i, (name, values) in enumerate(on_path.items()):
    ax.plot(range(path_steps + 1), values, "o-", ms=4, color=f"C{i}", label=name)
ax.set(xlabel="step of the attack", ylabel="cosine with the first gradient", ylim=(-0.2, 1.05))
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
claim(on_path["RDC, exact"][1] < on_path["DC"][1] - 0.2)
claim(rough["RDC, exact"] > 2 * rough["DC"])

# %% [markdown]
# {numref}`fig-gradients-path` shows it: with *all noise known*, the exact gradient through Adam's steps is as good as forgotten after one step of the attack. This is not randomness. It is
# roughness: an obfuscated gradient in the sense of {ref}`nb-adaptive`, shattered rather than stochastic. BPDA hides it, because it never looks at LM's Jacobian.
# Whether that makes BPDA the weaker or the stronger attack is for the attacks to decide ({ref}`sec-lm-question`); the honest evaluation takes
# the union of both, and of the smoothed one.
#
# (sec-gradients-values)=
# ## A high cosine does not exclude noisy values
#
# An attack climbs by gradients and *decides by values*: it keeps the iterate of larger loss, halves a step, declares a success. Let the loss be
# $\ell(x) + b_\omega$ with a random number $b_\omega$ that does not depend on $x$. All gradients agree, the cosine is one, and the values are as noisy
# as one likes. If both points of a comparison see the *same* noise, it cancels; if each call draws its own, it does not.
#
# So we measure losses at a point and after one step of an attack: their noise, and the noise of the difference with common and with independent noise,
# relative to the difference itself ({py:func}`rdc.analyse.loss_noise`). A ratio above one means that a single comparison is nearly a coin toss.

# %%
quiet: dict[str, tuple[float, float]] = {}
print(f"{n} images, {draws} draws; one sign step of {255 * 2 * eps / steps:.1f}/255; medians over images")
print("model            loss      std    change by the step   std of it / |change|: common   independent noise")
for name in ("DC", "RDC, BPDA", "DiffPure+CNN"):
    direction = gradients[name].mean(0).sign()
    step_to = (xg + 2 * eps / steps * direction).clamp(0, 1)
    noise = loss_noise(models[name], xg, step_to, yg, draws, seed=seed)
    quiet[name] = float(noise.ratio().median()), float(noise.ratio(common=False).median())
    print(
        f"{name:14s} {float(noise.at.mean()):8.2f} {float(noise.std.median()):7.2f}        {float(noise.difference.median()):7.2f}"
        f"                       {quiet[name][0]:5.2f}       {quiet[name][1]:5.2f}"
    )

# %% tags=["remove-cell"]
claim(quiet["DC"][1] > quiet["DC"][0])
glue("gradients-dc-common", f"{quiet['DC'][0]:.2f}")
glue("gradients-dc-independent", f"{quiet['DC'][1]:.2f}")

# %% [markdown]
# The direction of the step is the mean of the gradients above. Under BPDA it raises the margin of DC and hardly that of RDC, whose gradients agree just as well:
# agreement says nothing about progress.
#
# DC has gradients with the highest cosine of the randomised models, and its ratio goes from {glue:text}`gradients-dc-common` with common
# noise to {glue:text}`gradients-dc-independent` with independent noise. A search that compares fresh values is led by chance; one that holds the noise fixed
# during a comparison, or averages, is not.
#
# The same happens *between classes*. With a noise of its own for each class the margin is a difference of independent numbers. The evaluation in the
# released code shares the noise among classes, its gradient pass does not ({ref}`sec-adaptive-noise`). Here is what sharing is worth.

# %%
spread: dict[str, tuple[float, float]] = {}
few = slice(0, 3)
for noise in ("shared", "per_class"):
    copies = [diffusion_classifier(noise=noise, seed=seed + r) for r in range(4)]
    with torch.no_grad():
        values = torch.stack([margin_to(rivals["DC"][few])(m(xg[few]), yg[few]) for m in copies])
    slopes = torch.stack(
        [value_and_gradient(lambda p, m=m: margin_to(rivals["DC"][few])(m(p), yg[few]), xg[few])[1] for m in copies]
    )
    spread[noise] = float(values.std(0).median()), float(gradient_cosine(slopes).mean())
    print(
        f"{noise:10s} margin to the rival {float(values.mean()):7.2f}, std {spread[noise][0]:6.2f} nats; cosine of gradients {spread[noise][1]:.2f}"
    )

# %% tags=["remove-cell"]
claim(spread["per_class"][0] > 1.5 * spread["shared"][0])
claim(spread["per_class"][1] < spread["shared"][1])

# %% [markdown]
# (sec-gradients-known)=
# ## Randomness that the attacker knows
#
# Does a defence owe its robustness to its randomness? Give the random numbers to the attacker ({cite:t}`liu2025stochastic`,
# {cite:t}`yuezhang2025diffusion`): freeze the noise, attack the deterministic model with its own gradient, and let the same frozen model judge. That is protocol `known` of {ref}`sec-adaptive-verdict`.
# Beside it an attacker without that knowledge, judged by a majority of fresh draws (`draws`) and by the worst of them (`resubmit`).

# %%
xa, ya = x[:n_attack], y[:n_attack]


def wrong(model: nn.Module, images: Tensor) -> Tensor:
    """Which verdicts about the images are wrong, ``(draws, n)``."""
    return torch.stack([predict(model, images) != ya for _ in range(draws)])


def surviving(*verdicts: Tensor, worst: bool = False) -> Accuracy:
    """Images right by the majority of each set of verdicts, or by all of them."""
    lost = torch.stack([w.any(0) if worst else w.float().mean(0) >= 0.5 for w in verdicts]).any(0)
    return Accuracy.of(int((~lost).sum()), len(lost))


judged: dict[str, dict[str, Accuracy]] = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} on the margin, {draws} fresh verdicts: surviving images")
print("model              clean   draws   resubmit   known")
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    model, frozen = models[name], known_noise(models[name], seed + 7)
    blind = wrong(model, pgd(model, xa, ya, eps=eps, steps=steps, seed=seed))
    told = pgd(frozen, xa, ya, eps=eps, steps=steps, seed=seed)
    clean = wrong(model, xa)
    judged[name] = {
        "clean": surviving(clean),
        "draws": surviving(clean, blind),
        "resubmit": surviving(clean, blind, worst=True),
        "known": robust_accuracy(frozen, xa, ya, told, draws=1),
    }
    if name == "RDC, BPDA":
        averaged = wrong(model, pgd(model, xa, ya, eps=eps, steps=steps, eot=3, seed=seed))
        judged[name]["EOT 3"] = surviving(clean, averaged)
    print(f"{name:18s}", "   ".join(f"{v.correct:5d}" for k, v in judged[name].items() if k != "EOT 3"))
print(f"RDC, BPDA with EOT 3, judged by draws: {judged['RDC, BPDA']['EOT 3'].correct}")

# %% tags=["remove-cell"]
for name, row in judged.items():
    claim(row["resubmit"].correct <= row["draws"].correct, name)

# %% [markdown]
# Three columns, three questions. Where `known` is far below `draws`, the attacker lacked the random numbers, and the defence lives on that. Where `resubmit`
# is far below `draws`, single verdicts are a lottery. And where two gradients of *one* defence leave different numbers of images, the larger number is about
# the attack. So few images decide nothing by themselves; the longer runs of the record do. If it is here, this is its table of EOT.

# %%
stored = stored_rows("rdc-gradient", "rdc-settings")
stored_table([row for row in stored if row["table"] == "eot"], "Gradients averaged over the noise")

# %% [markdown]
# (sec-gradients-compression)=
# ## How far a purification contracts
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
# We compute in 32-bit numbers here. A tiny change of the image drowns in the rounding of a 16-bit network.

# %%
exact_trunk = load_denoiser(data, device=device)
fixed_processes = {
    "LM, printed": LikelihoodMaximization(exact_trunk, **{**READINGS["printed"], "noise": "fixed"}),
    "LM, mi-fgsm": LikelihoodMaximization(exact_trunk, **{**READINGS["mi-fgsm"], "noise": "fixed"}),
    "LM, mean-l1": LikelihoodMaximization(exact_trunk, **{**READINGS["mean-l1"], "noise": "fixed"}),
    "LM, released": LikelihoodMaximization(exact_trunk, **READINGS["clamped"]),
    "DiffPure": Purify(exact_trunk, seed=seed),
}
attacked = ascent_path(known_noise(dc, seed), xs, ys, eps=16 / 255, steps=3)[-1] - xs
scattered = 16 / 255 * randn(tuple(xs.shape[1:]), seed, "scattered", like=xs).sign().expand_as(xs)


def response(process: nn.Module, before: Tensor, after: Tensor, change: Tensor) -> tuple[float, float]:
    """Compression rate and alignment, means over images."""
    out, size = (after - before).flatten(1), change.flatten(1).norm(dim=1)
    return float((out.norm(dim=1) / size).mean()), float(((out * change.flatten(1)).sum(1) / size.square()).mean())


radii = [1, 2, 4, 8, 16]
rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
moved_by: dict[str, float] = {}
with torch.no_grad():
    for name, process in fixed_processes.items():
        before = process(xs)
        moved_by[name] = float((before - xs).flatten(1).norm(dim=1).mean())
        for kind, change in (("random", scattered), ("adversarial", attacked)):
            others = [(xs + r / 16 * change).clamp(0, 1) for r in radii]
            rates[name, kind] = [response(process, before, process(other), other - xs) for other in others]
print(f"{n_smooth} images, all noise fixed. At 1/255 and 16/255: rate (alignment); P moves a clean image by |P(x) - x|")
print("process         |P(x) - x|    random                        adversarial (against DC)")
for name in fixed_processes:
    cells = [
        f"{k:5.2f} ({a:5.2f})" for kind in ("random", "adversarial") for k, a in (rates[name, kind][0], rates[name, kind][-1])
    ]
    print(f"{name:14s}    {moved_by[name]:6.2f}      {'  '.join(cells[:2])}     {'  '.join(cells[2:])}")

# %% mystnb={"figure": {"caption": "Compression rate (left) and alignment (right) against the size of the change, for random signs (dotted) and for the direction of an attack on the diffusion classifier (solid), all noise fixed. BPDA with the identity pretends that both are one.", "name": "fig-gradients-compression"}, "image": {"alt": "Two panels of curves over the Linf size of a change; DiffPure lies far below one, the readings of likelihood maximisation near or above one at small changes", "width": "95%"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5))
for part, ax in enumerate(axes):
    for i, name in enumerate(fixed_processes):
        for kind, line in (("random", ":"), ("adversarial", "-")):
            ax.plot(
                radii, [v[part] for v in rates[name, kind]], f"o{line}", ms=3, color=f"C{i}", label=name if line == "-" else None
            )
    ax.axhline(1, color="0.6", lw=0.8)
    ax.set(xscale="log", xlabel="size of the change, Linf (1/255)", ylabel=("rate $\\kappa$", "alignment $a$")[part])
axes[0].set(yscale="log")
axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
check = compression_rate(fixed_processes["DiffPure"], xs, (xs + attacked).clamp(0, 1), draws=1)
assert abs(float(check.mean()) - rates["DiffPure", "adversarial"][-1][0]) < 1e-3
claim(rates["LM, printed", "random"][-1][1] > 0.9, "the printed reading hardly does anything")
claim(rates["DiffPure", "random"][-1][0] < 0.8)
claim(rates["LM, mean-l1", "random"][0][0] > 1.2, "sign flips spread a small change")
claim(0.3 < rates["LM, mi-fgsm", "random"][-1][1] < 0.8)
claim(rates["LM, released", "random"][-1][1] < rates["LM, printed", "random"][-1][1])

# %% [markdown]
# At small changes the two sides of {numref}`fig-gradients-compression` differ: a purification made of sign steps can *spread* a small change (rate above one), because it flips signs, while
# little of it lies along the change. The Jacobian shows the same at a point: $\kappa$ over all directions is $\norm{J}_F / \sqrt D$, and at worst the
# largest singular value.

# %%
print(
    f"{n_smooth} images: root mean square of the singular values by finite differences, and the largest by power iteration (from below)"
)
singular: dict[str, tuple[float, float]] = {}
for name in ("LM, printed", "LM, mi-fgsm", "LM, released", "DiffPure"):
    process = fixed_processes[name]
    values, _ = top_singular_value(process, xs, iterations=2, step=1e-2, seed=seed)
    singular[name] = float(jacobian_rms(process, xs, draws=3, step=1e-2, seed=seed).mean()), float(values.mean())
    print(f"{name:14s}  rms {singular[name][0]:6.2f}   largest, at least {singular[name][1]:6.2f}")

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
offers = {"BPDA": defence, "exact": RDC(fixed_lm, fixed_dc, "exact"), "smoothed": RDC(fixed_lm.smoothed(0.3), fixed_dc, "exact")}
directions = {k: value_and_gradient(lambda p, m=m: margin(m(p), yg), xg)[1].sign() for k, m in offers.items()}
directions["random"] = randn(tuple(xg.shape[1:]), seed, "direction", like=xg).sign().expand_as(xg)
lengths = [0.25, 1, 4, 16]
with torch.no_grad():
    base = margin(defence(xg), yg)
    rise = {
        k: [float((margin(defence((xg + s / 255 * d).clamp(0, 1)), yg) - base).mean()) for s in lengths]
        for k, d in directions.items()
    }
print(f"{n} images: mean rise of the margin of RDC (nats) after a sign step of {lengths} / 255")
for k, values in rise.items():
    print(f"{k:10s}", "   ".join(f"{v:7.2f}" for v in values))

# %% tags=["remove-cell"]
claim(rise["smoothed"][-1] > rise["BPDA"][-1] + 0.3 and rise["exact"][1] > rise["BPDA"][1])
claim(rates["LM, released", "adversarial"][-1][1] < 0.3)

# %% [markdown]
# The identity stops being fair where the alignment in {numref}`fig-gradients-compression` has gone. For the printed reading it is near one: there BPDA and the exact
# gradient are the same thing, because this LM does nothing. For the budgeted readings about half of a step of the attack's size survives. For the
# released one the alignment is near zero or *below*: five Adam steps of a fixed size drive a pixel back past where it came from, so that the identity does
# not even have the right sign, and a step along BPDA's gradient helps the defence.
#
# The exact gradient is right at a point and wrong a sign flip further, and still it climbs; the smoothed one climbs further. No single gradient
# is "the" gradient of this defence, and an evaluation takes the union of all.
#
# (sec-gradients-more)=
# ## More randomness in LM
#
# The paper finds LM with one random level a step far more robust than LM over all levels, and explains it by randomness: it smooths the landscape.
# The released variant over all levels has faults of its own, and the released noise is not random. We compare
# at equal displacement (sign steps, the same budget), one level or all of the same range, noise fixed and known or fresh; against fresh noise the
# attacker averages. The classifier behind it is the undefended network, so that any robustness comes from LM.

# %%
lm_cases: dict[tuple[str, str], tuple[float, Accuracy]] = {}
print(f"LM+CNN, {n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} with BPDA, {draws} verdicts where fresh")
print("levels   noise    cosine    surviving")
for timesteps in ("one", "all"):
    for noise in ("fixed", "fresh"):
        process = likelihood("mi-fgsm", noise=noise, timesteps=timesteps, count=lm_count)
        model = RDC(process, cnn, "bpda")
        agree = float(gradient_cosine(repeated_gradients(model, xa[:4], ya[:4], 4, seed=seed)).mean())
        x_adv = pgd(model, xa, ya, eps=eps, steps=steps, eot=1 if noise == "fixed" else 3, seed=seed)
        lm_cases[timesteps, noise] = agree, robust_accuracy(model, xa, ya, x_adv, draws=1 if noise == "fixed" else draws)
        print(f"{timesteps:6s}   {noise:6s}   {agree:5.2f}     {lm_cases[timesteps, noise][1].correct} of {n_attack}")
stored_table([row for row in stored if row["table"] == "timesteps"], "One level a step, or all of them")

# %% tags=["remove-cell"]
claim(lm_cases["one", "fixed"][0] > 0.999 and lm_cases["all", "fixed"][0] > 0.999)
claim(lm_cases["one", "fresh"][0] < 0.999)

# %% [markdown]
# (sec-gradients-verdict)=
# ## The verdict
#
# Four statements of the paper. Each number below is of this page; what the longer runs say of the claims that they can decide is in
# the table after it.

# %%
far = 255 * float(distance["DC", 4][distance["DC", 4] > 0].median())
near_cnn = 255 * float(distance["CNN", 1][distance["CNN", 1] > 0].median())
by_eot = judged["RDC, BPDA"]["draws"].correct - judged["RDC, BPDA"]["EOT 3"].correct
print(f"A18 DiffPure over DC, h: {diffpure_over_dc:.0f} at T = {count}, by the law 1/T {diffpure_over_dc * 1000 / count:.0f} at 1000;"
      f" per evaluation {per_evaluation:.1f}")  # fmt: skip
print("    cosines of RDC under BPDA, RDC exact, DiffPure:",
      *(f"{cosine[name]:.2f}" for name in ("RDC, BPDA", "RDC, exact", "DiffPure+CNN")))  # fmt: skip
print(f"A19 linearised distance: DC {far:.1f}/255, CNN {near_cnn:.1f}/255; the published unit depends on the scale of the logits")
print(f"A20 fresh noise, BPDA: EOT 3 breaks {by_eot:+d} of {n_attack} images more than EOT 1; none where the noise is fixed")
for name in ("DC", "RDC, BPDA", "RDC, exact"):
    known, blind = (judged[name][key].correct for key in ("known", "draws"))
    print(f"A29 {name}: {known} of {n_attack} survive an attacker who knows the noise, {blind} one who does not")
claims_table("A18", "A19", "A20", "A29")

# %% [markdown]
# The same measurements on more images:

# %%
print("model             fixed rival: cosine      h       margin: cosine    largest share")
for found in stored_cells("gradient-randomness"):
    if "levels" not in found.row.about:
        half, values = found.mean("half eot"), [found.mean(k) for k in ("cosine 1", "cosine margin", "largest share")]
        h = "unseen" if half is None else f"{half:.3g}"
        print(f"{found.row.about['model']:19s}         {values[0]:6.3f}  {h:>8s}            {values[1]:6.3f}          {values[2]:.2f}")
sweep_rows = {found.row.about.get("levels"): found.mean("half eot") for found in stored_cells("gradient-randomness")}
print("T h of DC:", "  ".join(f"T = {t}: {t * h:.2f}" for t, h in sweep_rows.items() if t))

# %% [markdown]
# ## Summary
#
# - The cosine of repeated gradients follows one number, $h = \operatorname{tr} C / \norm{s}^2$: $\rho(m) = 1 / (1 + h / m)$. "Times more random" is a ratio of $h$.
# - A diffusion classifier averages over its levels: $h \propto 1 / T$. Its low randomness is real, and paid for in evaluations.
# - The randomness of a gradient belongs to a loss and to a way of differentiating. A free rival adds noise, and BPDA removes that of LM.
# - Mean absolute gradients have no unit. The linearised distance does.
# - Quiet gradients may be rough, and quiet values are a third thing: compare points under the same noise.
# - Noise fixed by the seed is not randomness. Give it to the attacker, and see what is left.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-signs
# :::
# **Signs.** An $\ell_\infty$ attack uses signs only. For jointly normal $(u, v)$ with correlation $\rho$ the signs agree with probability
# $1 - \arccos(\rho) / \pi$. Does the law hold for the pixels of two gradients of one image?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-signs
# :label: sol-gradients-signs
# :class: dropdown
# :::
# Nearly, where gradients look normal; less where few pixels carry the length and many the signs.

# %%
agree: dict[str, tuple[float, float]] = {}
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    a, b = gradients[name][:2].flatten(2)
    share = float(((a > 0) == (b > 0)).float().mean())
    rho = nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    agree[name] = share, float((1 - rho.arccos() / torch.pi).mean())
    print(f"{name:14s} signs agree in {share:.2f} of the pixels; the law says {agree[name][1]:.2f}")

# %% tags=["remove-cell"]
claim(abs(agree["DC"][0] - agree["DC"][1]) < 0.15)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-offset
# :::
# **Quiet and noisy.** Build a model from `cnn` whose gradients are the same at every call and whose margins are not. What do
# {py:func}`rdc.analyse.loss_noise` and the cosine say? Where would PGD be misled?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-offset
# :label: sol-gradients-offset
# :class: dropdown
# :::
# Add random numbers to the logits. The cosine is one and common noise cancels, as long as the rival stays. Independent noise drowns the comparison: the attack walks the right
# path and keeps the wrong point of it.


# %%
class Offset(nn.Module):
    """A model with a random number, new at each call, on every logit."""

    def __init__(self, model: nn.Module, size: float) -> None:
        super().__init__()
        self.model, self.size, self.calls = model, size, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits plus noise that does not depend on the image."""
        self.calls += 1
        f = self.model(x)
        return f + self.size * randn((f.shape[1],), 0, "offset", self.calls, like=f)


loud, fixed_loss = Offset(cnn, 20.0), margin_to(rivals["CNN"])
equal = float(gradient_cosine(repeated_gradients(loud, xg, yg, 4, loss=fixed_loss)).mean())
noise = loss_noise(loud, xg, (xg + 1 / 255 * gradients["CNN"][0].sign()).clamp(0, 1), yg, draws, fixed_loss)
print(
    f"cosine {equal:.3f}; std of the change over the change: common {float(noise.ratio().median()):.3f}, independent {float(noise.ratio(common=False).median()):.1f}"
)

# %% tags=["remove-cell"]
claim(equal > 0.999 and float(noise.ratio().median()) < 0.01 and float(noise.ratio(common=False).median()) > 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-batch
# :::
# **Divided by 32.** Show that the mean absolute gradient of the mean cross-entropy over a batch of $B$ images is $1 / B$ of what it is for single images. What
# does that do to a comparison in which one model was measured in batches and the other one image at a time?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-batch
# :label: sol-gradients-batch
# :class: dropdown
# :::
# $\nabla_{x_i} \frac1B \sum_j \ell_j = \frac1B \nabla_{x_i} \ell_i$, as $\ell_j$ does not depend on $x_i$. The comparison is off by the factor $B$, before any scale of
# logits.

# %%
batch = test.x[:32].to(device).requires_grad_()
loss = nn.functional.cross_entropy(cnn(batch), test.y[:32].to(device), reduction="none")
by_sum, by_mean = (torch.autograd.grad(v, batch, retain_graph=True)[0].abs().mean() for v in (loss.sum(), loss.mean()))
print(f"single images over batch mean: {float(by_sum / by_mean):.2f}")  # NBVAL_CHECK_OUTPUT

# %% tags=["remove-cell"]
assert abs(float(by_sum / by_mean) - 32) < 1e-2

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-sign-lm
# :::
# **A reading without spikes.** Take the `mi-fgsm` reading of LM and compare its exact gradient with BPDA: the cosine of the two at each image, with the noise
# fixed. Explain the result, and what is left of the difference.

# %%
# your code here

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

# %%
at_step = partial(LikelihoodMaximization, exact_trunk, **{**READINGS["mi-fgsm"], "noise": "fixed"})
sign_lm = at_step()
pair = [value_and_gradient(lambda p, k=k: margin(RDC(sign_lm, cnn, k)(p), yg), xg)[1] for k in ("exact", "bpda")]
with torch.no_grad():  # the image after each step; the noise of a step does not depend on how many follow
    visited = torch.stack([at_step(steps=k, step_size=sign_lm.step_size)(xg) for k in range(1, sign_lm.steps + 1)])
inner = ((visited > 1e-6) & (visited < 1 - 1e-6)).all(0).float()  # never at a wall
alike = nn.functional.cosine_similarity(*(g.flatten(1) for g in pair), dim=1)
inside = nn.functional.cosine_similarity(*((g * inner).flatten(1) for g in pair), dim=1)
print(f"cosine of exact and BPDA: {float(alike.mean()):.2f}; over pixels away from the walls {float(inside.mean()):.2f}")

# %% tags=["remove-cell"]
claim(float(inside.min()) > 0.999)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The measurements of gradients follow {cite:t}`chen2024rdc`. Obfuscated gradients are due to {cite:t}`athalye2018obfuscated` and EOT to
# {cite:t}`athalye2018synthesizing`; DiffPure to {cite:t}`nie2022diffpure`. Fixed randomness that the attacker knows is studied by {cite:t}`liu2025stochastic` and
# {cite:t}`yuezhang2025diffusion`, from whom the compression rate comes.
