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
# (nb-gradients-smooth)=
# # Quiet, smooth, and neither
#
# :::{admonition} What you will be able to do
# :class: tip
# - Separate three properties that are often confused: gradients that agree, gradients that are smooth, and values that are quiet.
# - Compare points of an attack under the same noise.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-gradients`. Goes beyond section 4.4 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels T of the diffusion classifier
n: int = 5  # images whose losses are taken
repeats: int = 6  # gradients of each image and model
n_smooth: int = 3  # images for smoothness
path_steps: int = 4  # steps of the path of an attack
draws: int = 5  # draws of the noise for losses and verdicts
steps: int = 5  # gradient steps of the attack whose step is taken
eps: str | float = 16 / 255  # Linf radius of an attack, image units

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    ascent_path,
    gradient_cosine,
    gradient_lipschitz,
    gradients_along,
    lipschitz,
    loss_noise,
    margin_to,
    path_cosine,
    repeated_gradients,
    runner_up,
)
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
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import legend_below, style
from rdc.randomness import known_noise
from rdc.rng import randn
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
cnn = build("cnn", data, device)


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
rival = {name: runner_up(models[name], xg, yg) for name in ("CNN", "DC")}

# %% [markdown]
# **Does a gradient that agrees with itself lead anywhere?** It may be right where it is taken, and of no use a step further: {numref}`fig-gradients-path`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["hide-input"]
xs, ys = xg[:n_smooth], yg[:n_smooth]
rough: dict[str, float] = {}
on_path: dict[str, Tensor] = {}
print(
    f"{n_smooth} images; relative change of the gradient over an L2 distance "
    f"of 1 (random points of the 2/255 ball), and along the path"
)
for name in ("CNN", "DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    fixed = known_noise(models[name], seed)
    near = gradient_lipschitz(fixed, xs, ys, eps=2 / 255, draws=1, seed=seed)
    path = ascent_path(fixed, xs, ys, eps=eps, steps=path_steps, seed=seed)
    slopes = gradients_along(fixed, path, ys, seed=seed)
    rough[name], on_path[name] = (
        float(near.median()),
        path_cosine(slopes).mean(1).cpu(),
    )
    along = float(lipschitz(path, slopes).nanmedian())
    print(
        f"{name:16s} near {rough[name]:8.2f}   along {along:8.2f}   cosine "
        f"with the start: {[round(v, 2) for v in on_path[name].tolist()]}"
    )

# %% mystnb={"figure": {"caption": "Cosine between the gradient at each point of an attack's path (steps along the sign of the model's own gradient, within an Linf ball) and the gradient at its start, the noise held fixed.", "name": "fig-gradients-path"}, "image": {"alt": "Lines that fall from one with the steps; the line of the exact gradient through likelihood maximisation falls most, and ends near zero", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.2, 3.9))
for i, (name, values) in enumerate(on_path.items()):
    ax.plot(
        range(path_steps + 1), values, "o-", ms=4, color=f"C{i}", label=name
    )
ax.set(
    xlabel="step of the attack",
    ylabel="cosine with the first gradient",
    ylim=(-0.2, 1.05),
)
legend_below(fig)
plt.show()

# %% tags=["remove-cell"]
claim(on_path["RDC, exact"][1] < on_path["DC"][1] - 0.2)
claim(rough["RDC, exact"] > 2 * rough["DC"])

# %% [markdown]
# (sec-gradients-smooth)=
# ## How smooth
#
# A gradient may be quiet and right, and yet of no use a step further. Two measurements, both with the noise held fixed: by how much the gradient changes
# between nearby points, relative to its size ({py:func}`rdc.analyse.gradient_lipschitz`; one over it is the $\ell_2$ length over which it changes by as much as itself), and the cosine
# between the gradient at the start of an attack's path and later on it.
#
# {numref}`fig-gradients-path` shows it: with *all noise known*, the exact gradient through Adam's steps is mostly forgotten after one step of the attack, and as good as forgotten after a few. This is not randomness. It is
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

# %% tags=["hide-input"]
quiet: dict[str, tuple[float, float]] = {}
print(
    f"{n} images, {draws} draws; one sign step of "
    f"{255 * 2 * eps / steps:.1f}/255; medians over images"
)
print(
    "model            loss      std    change by the step   std of it / "
    "|change|: common   independent noise"
)
for name in ("DC", "RDC, BPDA", "DiffPure+CNN"):
    model = models[name]
    loss = margin_to(runner_up(model, xg, yg))
    slopes = repeated_gradients(model, xg, yg, repeats, loss=loss, seed=seed)
    direction = slopes.mean(0).sign()
    step_to = (xg + 2 * eps / steps * direction).clamp(0, 1)
    noise = loss_noise(model, xg, step_to, yg, draws, seed=seed)
    quiet[name] = (
        float(noise.ratio().median()),
        float(noise.ratio(common=False).median()),
    )
    print(
        f"{name:14s} {float(noise.at.mean()):8.2f} "
        f"{float(noise.std.median()):7.2f}        "
        f"{float(noise.difference.median()):7.2f}"
        f"                       {quiet[name][0]:5.2f}       "
        f"{quiet[name][1]:5.2f}"
    )

# %% tags=["remove-cell"]
claim(quiet["DC"][1] > quiet["DC"][0])
glue("gradients-dc-common", f"{quiet['DC'][0]:.2f}")
glue("gradients-dc-independent", f"{quiet['DC'][1]:.2f}")

# %% [markdown]
# The direction of the step is the mean of several gradients. Under BPDA it raises the margin of DC and hardly that of RDC, whose gradients agree just as well:
# agreement says nothing about progress.
#
# DC has gradients with the highest cosine of the randomised models, and its ratio goes from {glue:text}`gradients-dc-common` with common
# noise to {glue:text}`gradients-dc-independent` with independent noise: more noise, and still no coin toss. For RDC under
# BPDA and for DiffPure the ratio rises above one: there a search that compares fresh values is led by chance. Holding the
# noise fixed during a comparison, or averaging, brings it down.
#
# The same happens *between classes*. With a noise of its own for each class the margin is a difference of independent numbers. The evaluation in the
# released code shares the noise among classes, its gradient pass does not ({ref}`sec-adaptive-noise`). Here is what sharing is worth.

# %%
spread: dict[str, tuple[float, float]] = {}
few = slice(0, 3)
to_rival = margin_to(rival["DC"][few])
for noise in ("shared", "per_class"):
    copies = [
        diffusion_classifier(noise=noise, seed=seed + r) for r in range(4)
    ]
    with torch.no_grad():
        values = torch.stack([to_rival(m(xg[few]), yg[few]) for m in copies])
    slopes = torch.stack(
        [
            value_and_gradient(lambda p, m=m: to_rival(m(p), yg[few]), xg[few])[
                1
            ]
            for m in copies
        ]
    )
    spread[noise] = (
        float(values.std(0).median()),
        float(gradient_cosine(slopes).mean()),
    )
    print(
        f"{noise:10s} margin to the rival {float(values.mean()):7.2f}, std "
        f"{spread[noise][0]:6.2f} nats; cosine of gradients "
        f"{spread[noise][1]:.2f}"
    )

# %% tags=["remove-cell"]
claim(spread["per_class"][0] > 1.5 * spread["shared"][0])
claim(spread["per_class"][1] < spread["shared"][1])

# %% [markdown]
# ## What to remember
#
# - Quiet gradients may be rough: with all noise known, the exact gradient through LM is mostly forgotten after a step.
# - Quiet values are a third thing. Compare points under the same noise.
# - Noise shared by the classes cancels in a margin; noise of their own does not.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-offset
# :::
# **Quiet and noisy** (15 minutes, medium). Build a model from `cnn` whose gradients are the same at every call and whose margins are not. What do {py:func}`rdc.analyse.loss_noise` and the cosine say? Where would PGD be misled?
#
# :::{hint}
# :class: dropdown
# A number that does not depend on the image has no gradient.
# :::

# %%
# your code here
equal = None  # cosine of its gradients
together, apart = None, None  # noise of a change over the change

# %%
# check
fine = None not in (equal, together, apart) and (
    equal > 0.999 and together < 0.01 < 2 < apart
)
print("right" if fine else "not yet")


# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-offset
# :label: sol-gradients-offset
# :class: dropdown
# :::
# Add random numbers to the logits. The cosine is one and common noise cancels, as long as the rival stays. Independent noise drowns the comparison: the attack walks the right path and keeps the wrong point of it.


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
        return f + self.size * randn(
            (f.shape[1],), 0, "offset", self.calls, like=f
        )


# %%
loud, to_rival = Offset(cnn, 20.0), margin_to(rival["CNN"])
slopes = repeated_gradients(loud, xg, yg, 4, loss=to_rival)
equal = float(gradient_cosine(slopes).mean())
ahead = (xg + 1 / 255 * slopes[0].sign()).clamp(0, 1)
noise = loss_noise(loud, xg, ahead, yg, draws, to_rival)
together = float(noise.ratio().median())
apart = float(noise.ratio(common=False).median())
print(f"cosine {equal:.3f}")
print(
    f"std of the change over the change: common {together:.3f}, "
    f"independent {apart:.1f}"
)

# %% tags=["remove-cell"]
claim(equal > 0.999 and together < 0.01 and apart > 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-coin
# :::
# **How often is the comparison wrong?** (10 minutes, medium). A step raises the loss by 1. Each value that an attack sees has independent normal noise of standard deviation 2. How often does it see the loss fall? How many draws has it to average at each of the two points, for less than 5 %?
#
# :::{hint}
# :class: dropdown
# The difference has the variance $2 \cdot 2^2$. `torch.special.ndtr` is the normal distribution function.
# :::

# %%
# your code here
wrong_share, draws_needed = None, None

# %%
# check
fine = abs((wrong_share or 0) - 0.3618) < 1e-3 and draws_needed == 22
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-coin
# :label: sol-gradients-coin
# :class: dropdown
# :::
# The difference is normal with mean 1 and standard deviation $2 \sqrt 2$, so $\Phi(-1 / (2 \sqrt 2))$ of the comparisons are wrong. The mean of $m$ draws at each point divides the deviation by $\sqrt m$: $m > 8 \cdot 1.645^2$.

# %%
many = torch.arange(1, 100)
wrongs = torch.special.ndtr(-((many / 8) ** 0.5))
wrong_share = float(wrongs[0])
draws_needed = int(many[wrongs < 0.05][0])
print(f"{wrong_share:.3f}, {draws_needed} draws")

# %% tags=["remove-cell"]
claim(draws_needed == 22)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-forgotten
# :::
# **Right at a point** (10 minutes, hard). Let $f(x) = x + a \sin(k x)$ on the line. Near which $k$ does $f'$ change its sign, and over which length does it? For $a = 0.01$ and $k = 300$: what does a step of 0.05 along the sign of $f'(x)$ gain, from the worst $x$?
#
# :::{hint}
# :class: dropdown
# $f'(x) = 1 + a k \cos(k x)$. Where it is negative the sign points left.
# :::

# %%
# your code here
worst_gain = None

# %%
# check
fine = worst_gain is not None and -0.07 <= worst_gain < -0.04
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-forgotten
# :label: sol-gradients-forgotten
# :class: dropdown
# :::
# The sign changes as soon as $a k > 1$, within a length of order $1 / k$. There the gradient is exact, smooth in the sense of calculus, and points down the slope that a step of any length sees: a step against the trend loses about its length. That is the roughness of the figure, in one dimension.

# %%
at = torch.linspace(0, 1, 10_001, dtype=torch.float64)


def wave(t: Tensor) -> Tensor:
    """A slope of one with ripples."""
    return t + 0.01 * (300 * t).sin()


slope = 1 + 3 * (300 * at).cos()
gain = wave(at + 0.05 * slope.sign()) - wave(at)
worst_gain = float(gain.min())
share = float((gain < 0).double().mean())
print(f"worst gain {worst_gain:.3f}; a loss at {share:.2f} of the points")

# %% tags=["remove-cell"]
claim(-0.07 <= worst_gain < -0.04 and share > 0.2)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The claims about gradients are those of {cite:t}`chen2024rdc`. Shattered and stochastic gradients are due to {cite:t}`athalye2018obfuscated`. The images are those of {cite:t}`xiao2017fashion`.
