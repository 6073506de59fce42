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
# (nb-gradients)=
# # Gradient randomness
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say what "640 times more random" means, derive the curve behind it, and measure it in two ways.
# - Find out where the randomness of a gradient comes from.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-adaptive`, {ref}`nb-lm` and {ref}`nb-multihead`.
# Covers the gradient analysis of section 4.4 and Figure 2(a) of {cite:t}`chen2024rdc`. Five pages follow: the loss and the size of a gradient
# ({ref}`nb-gradients-size`), how smooth it is ({ref}`nb-gradients-smooth`), noise that the attacker knows ({ref}`nb-gradients-known`), how far
# a purification contracts ({ref}`nb-gradients-compression`), and in how many bits one may compute ({ref}`nb-gradients-bits`).

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels T of the diffusion classifier
n: int = 5  # images whose gradients are taken
repeats: int = 6  # gradients of each image and model
eot: list[int] = [1, 2, 3]  # gradients averaged
level_counts: list[int] = [4, 8, 16]  # numbers T of levels for the sweep

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    eot_cosine,
    gradient_cosine,
    margin_to,
    repeated_gradients,
    runner_up,
    signal_to_noise,
)
from rdc.attack.losses import margin
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
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    glue,
    stored_cells,
)
from rdc.plots import legend_below, style
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
    "LM+CNN, exact": RDC(lm, cnn, "exact"),
    "DiffPure+CNN": DiffPure(purify, cnn),
}

right = (
    predict(cnn, test.x[: 6 * n].to(device)) == test.y[: 6 * n].to(device)
).nonzero()[:, 0]
xg, yg = test.x.to(device)[right][:n], test.y.to(device)[right][:n]


def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the logit of the true class."""
    return -logits.gather(1, y[:, None])[:, 0]


def largest_share(g: Tensor) -> float:
    """Share of the largest draw in the sum of the squared lengths, median
    over images.
    """
    energy = g.double().square().flatten(2).sum(2)
    return float((energy.max(0).values / energy.sum(0)).median())


def from_cosine(cosine: float) -> float:
    """The h that a cosine of single gradients belongs to."""
    return 1 / max(cosine, 1e-3) - 1


# %% [markdown]
# **How random is a gradient?** A defence may look robust because its gradients are useless. The paper answers with two measurements: the gradients of its models hardly change from call to call, and they are as large
# as those of other models. This page repeats the first, {numref}`fig-gradients-cosine`, and asks what it proves. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %%
gradients: dict[str, Tensor] = {}
rivals: dict[str, Tensor] = {}
for name, model in models.items():
    rivals[name] = runner_up(model, xg, yg)
    loss = margin_to(rivals[name])
    gradients[name] = repeated_gradients(
        model, xg, yg, repeats, loss=loss, seed=seed
    )
found = {name: signal_to_noise(g) for name, g in gradients.items()}

# %% tags=["hide-input"]
cosine = {
    name: float(gradient_cosine(g).mean()) for name, g in gradients.items()
}
ratio = {name: float(s.half_eot.median()) for name, s in found.items()}
print(f"{n} images, {repeats} gradients each, margin to a fixed rival")
print(
    "model            cosine    h from the cosine    h = tr C/|s|^2 (median)  "
    " share of the largest draw"
)
for name in models:
    print(
        f"{name:16s} {cosine[name]:6.3f}       "
        f"{from_cosine(cosine[name]):10.3f}          {ratio[name]:10.3g}"
        f"                 {largest_share(gradients[name]):.2f}"
    )

# %% mystnb={"figure": {"caption": "Mean cosine of two gradients, each the mean of m calls: measured on disjoint groups (points) and the closed form of the proposition from the two estimated numbers of each image (lines). The axis of m is logarithmic, so that models differ by a shift where the closed form holds.", "name": "fig-gradients-cosine"}, "image": {"alt": "Curves that rise with m; that of the diffusion classifier starts near one, those of the exact gradients through likelihood maximisation near zero", "width": "75%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6, 4.4))
many = torch.logspace(0, 4, 60)
for i, (name, g) in enumerate(gradients.items()):
    ax.plot(
        eot, eot_cosine(g, eot).mean(1).cpu(), "o", color=f"C{i}", label=name
    )
    ax.plot(
        many,
        [float(found[name].cosine(m).nanmean()) for m in many.tolist()],
        "-",
        color=f"C{i}",
        lw=1,
    )
ax.set(
    xscale="log",
    xlabel="gradients averaged, m",
    ylabel="cosine of two means",
    ylim=(-0.05, 1.05),
)
legend_below(fig)
plt.show()

# %% tags=["remove-cell"]
claim(cosine["CNN"] > 0.999 and cosine["DC"] > 0.7)
claim(
    cosine["DC"]
    >= max(value for name, value in cosine.items() if name != "CNN") - 0.02
)
claim(
    cosine["DC"] > cosine["RDC, exact"] + 0.3
    and cosine["RDC, BPDA"] > cosine["RDC, exact"] + 0.3
)
claim(cosine["DiffPure+CNN"] > cosine["LM+CNN, exact"] + 0.1)
for name in (
    "DC",
    "RDC, BPDA",
    "DiffPure+CNN",
):  # the closed form predicts what the groups measure
    gap = (
        (
            eot_cosine(gradients[name], eot).mean(1)
            - torch.stack([found[name].cosine(m).mean() for m in eot])
        )
        .abs()
        .max()
    )
    claim(gap < 0.12, str((name, gap)))
claim(
    largest_share(gradients["RDC, exact"])
    > 2.5 / repeats
    > largest_share(gradients["DC"])
)
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    glue(
        f"gradients-cosine-{name.replace(', ', '-').replace('+', '-').lower()}",
        f"{cosine[name]:.2f}",
    )
glue("gradients-share", f"{largest_share(gradients['RDC, exact']):.2f}")
glue("gradients-fair-share", f"{1 / repeats:.2f}")

# %% [markdown]
# ## The models
#
# All models see the same images. The diffusion classifier (DC) uses the multi-head network of {ref}`nb-multihead`, with few noise levels.
# Likelihood maximisation (LM) is the released reading of {ref}`nb-lm`: five steps of Adam. DiffPure takes ten ancestral steps from
# $t^* = 0.1$. Every noise is *fresh*: another one at each call.
#
# For a model with LM in front there are several gradients, and we shall see that they have little in common. `BPDA` is the gradient behind LM,
# moved unchanged to the image. `exact` goes through all five steps. Later
# ({ref}`nb-gradients-compression`) we meet `smoothed`, which has the same values and blurs the sign steps in the backward pass.
#
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
# \begin{aligned}
# \rho(m) &:= \frac{\E\, \bar g \cdot \bar g'}{\E \norm{\bar g}^2} = \frac{\norm{s}^2}{\norm{s}^2 + \operatorname{tr}(C) / m}
#     = \frac{1}{1 + h / m}, \\
# h &\phantom{:}= \frac{\operatorname{tr} C}{\norm{s}^2}.
# \end{aligned}
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
# against a rival that is held fixed (`margin_to`), for each model its own `runner_up`, and come back to the
# choice in {ref}`nb-gradients-size`.
#
# In {numref}`fig-gradients-cosine` points and lines agree where the draws have similar lengths: DC, RDC under BPDA, DiffPure.
#
# **The randomness of RDC depends on which gradient one asks.** Under BPDA its cosine is {glue:text}`gradients-cosine-rdc-bpda`, close to that of the
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

# %% tags=["hide-input"]
sweep: dict[int, dict[str, float]] = {}
print(f"DC, {n} images: h against the number T of levels, for three losses")
print("   T    fixed rival     T h     margin    true logit")
for t in level_counts:
    model = diffusion_classifier(t)
    losses = {
        "rival": margin_to(rivals["DC"]),
        "margin": margin,
        "logit": true_logit,
    }
    sweep[t] = {}
    for key, loss in losses.items():
        r = (
            4 if key == "rival" or t <= 8 else 0
        )  # the expensive ones only where they are asked about
        if r:
            sweep[t][key] = float(
                signal_to_noise(
                    repeated_gradients(
                        model, xg, yg, r, loss=loss, seed=seed + 1
                    )
                ).half_eot.median()
            )
    rest = "   ".join(
        f"{sweep[t][key]:8.3f}" if key in sweep[t] else "        "
        for key in ("margin", "logit")
    )
    print(
        f"{t:4d}     {sweep[t]['rival']:8.4f}   {t * sweep[t]['rival']:8.2f}  "
        f" {rest}"
    )
per_level = float(
    torch.tensor([t * v["rival"] for t, v in sweep.items()]).median()
)
print(
    f"h of one level about {per_level:.2f}; for T = 1000 levels the law T h = "
    f"const gives h about {per_level / 1000:.1g}"
)

# %% tags=["remove-cell"]
products = [t * v["rival"] for t, v in sweep.items()]
claim(max(products) < 1.6 * min(products), "h falls like 1 / T")
claim(all(v["logit"] > 2 * v["rival"] for v in sweep.values() if "logit" in v))
diffpure_over_dc = from_cosine(cosine["DiffPure+CNN"]) / from_cosine(
    cosine["DC"]
)
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
# (sec-gradients-verdict)=
# ## The verdict
#
# A paper's "640 times" is a ratio of $h$. The first lines are of this page, the last of more images.

# %% tags=["hide-input"]
print(
    f"A18 DiffPure over DC, h: {diffpure_over_dc:.0f} at T = {count}, by the "
    f"law 1/T {diffpure_over_dc * 1000 / count:.0f} at 1000;"
    f" per evaluation {per_evaluation:.1f}"
)
print(
    "    cosines of RDC under BPDA, RDC exact, DiffPure:",
    *(
        f"{cosine[name]:.2f}"
        for name in ("RDC, BPDA", "RDC, exact", "DiffPure+CNN")
    ),
)
print(
    "model             fixed rival: cosine      h       margin: cosine    "
    "largest share"
)
for found in stored_cells("gradient-randomness"):
    if "levels" not in found.row.about:
        half, values = (
            found.mean("half eot"),
            [
                found.mean(k)
                for k in ("cosine 1", "cosine margin", "largest share")
            ],
        )
        h = "unseen" if half is None else f"{half:.3g}"
        print(
            f"{found.row.about['model']:19s}         {values[0]:6.3f}  "
            f"{h:>8s}            {values[1]:6.3f}          {values[2]:.2f}"
        )
sweep_rows = {
    found.row.about.get("levels"): found.mean("half eot")
    for found in stored_cells("gradient-randomness")
}
print(
    "T h of DC:",
    "  ".join(f"T = {t}: {t * h:.2f}" for t, h in sweep_rows.items() if t),
)
claims_table("A18")

# %% [markdown]
# ## What to remember
#
# - The cosine of repeated gradients follows one number, $h = \operatorname{tr} C / \norm{s}^2$: $\rho(m) = 1 / (1 + h / m)$. "Times more random" is a ratio of $h$.
# - A diffusion classifier averages over its levels: $h \propto 1 / T$. Its low randomness is real, and paid for in evaluations.
# - The randomness of a gradient belongs to a way of differentiating: BPDA leaves out the noise of LM.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-average
# :::
# **How many calls?** (5 minutes, easy). A defence has $h = 3$. How many gradients must an attacker average for a cosine of 0.9 between two means? And how many for the same after the defence was made 640 times more random?
#
# :::{hint}
# :class: dropdown
# Solve {eq}`eq-gradients-cosine` for $m$.
# :::

# %%
# your code here
calls, calls_640 = None, None

# %%
# check
fine = calls is not None and abs(calls - 27) < 0.5 and calls_640 == 640 * calls
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-average
# :label: sol-gradients-average
# :class: dropdown
# :::
# $m = h \rho / (1 - \rho) = 9 h$: 27 calls, and 640 times as many.

# %%
calls = round(3 * 0.9 / 0.1)
calls_640 = 640 * calls
print(calls, calls_640)

# %% tags=["remove-cell"]
claim(abs(1 / (1 + 3 / calls) - 0.9) < 1e-9 and calls_640 == 17_280)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-bias
# :::
# **A length without bias** (10 minutes, medium). Let $\norm{s}^2 = 1$ and $\operatorname{tr} C = 4$. What is $\E \norm{\bar g}^2$ of the mean of $R = 4$ gradients? How does one estimate $\norm{s}^2$ without bias?
#
# :::{hint}
# :class: dropdown
# Step 3 of the proof above.
# :::

# %%
# your code here
expected = None

# %%
# check
fine = expected is not None and abs(expected - 2) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-bias
# :label: sol-gradients-bias
# :class: dropdown
# :::
# $\norm{s}^2 + \operatorname{tr}(C) / R = 2$: the squared length of a mean is too large, here twice. Subtract $1 / R$ of the estimated trace, as {py:func}`rdc.analyse.signal_to_noise` does, or take products of *different* draws.

# %%
expected = 1 + 4 / 4
s = torch.zeros(100)
s[0] = 1
draw = s + 0.2 * randn((2000, 4, 100), seed, "bias")
naive = float(draw.mean(1).square().sum(1).mean())
apart = float((draw[:, 0] * draw[:, 1]).sum(1).mean())
print(f"of the mean {naive:.2f}, of different draws {apart:.2f}")

# %% tags=["remove-cell"]
claim(abs(naive - expected) < 0.1 and abs(apart - 1) < 0.1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-signs
# :::
# **Signs** (10 minutes, medium). An $\ell_\infty$ attack uses signs only. For jointly normal $(u, v)$ with correlation $\rho$ the signs agree with probability $1 - \arccos(\rho) / \pi$. Does the law hold for the pixels of two gradients of one image? Take the first two draws of DC.
#
# :::{hint}
# :class: dropdown
# `gradients["DC"][:2]` has the shape `(2, n, 1, 28, 28)`; the cosine over the pixels is $\rho$.
# :::

# %%
# your code here
# by model: the share of pixels whose signs agree, and the law
agree = {"DC": (None, None)}

# %%
# check
fine = close_to(agree["DC"], (0.86, 0.88), within=0.02)
print("right" if fine else "not yet")

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
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    a, b = gradients[name][:2].flatten(2)
    share = float(((a > 0) == (b > 0)).float().mean())
    rho = nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    agree[name] = share, float((1 - rho.arccos() / torch.pi).mean())
    print(
        f"{name:14s} signs agree in {share:.2f} of the pixels; the law says "
        f"{agree[name][1]:.2f}"
    )

# %% tags=["remove-cell"]
claim(abs(agree["DC"][0] - agree["DC"][1]) < 0.15)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The measurements of gradients follow {cite:t}`chen2024rdc`. EOT is due to {cite:t}`athalye2018synthesizing`; DiffPure to {cite:t}`nie2022diffpure`. The images are those of {cite:t}`xiao2017fashion`.
