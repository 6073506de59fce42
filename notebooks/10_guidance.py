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
# (nb-guidance)=
# # Robust classifier guidance
#
# :::{admonition} What you will be able to do
# :class: tip
# - Derive classifier {term}`guidance` from Bayes' rule, and say what the scale does.
# - Check on a finite data set that a guided sampler is a conditional one.
# - Tell the score form from the form of {term}`DDPM`.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-diffusion` and {ref}`nb-optimal`. The first page on {cite:t}`kawar2023guidance`: section 3.1.
#
# A diffusion model that has never heard of classes, and a classifier that says where to go: {numref}`fig-guide-digits` shows what they make
# together. The next pages ask whether the classifier should be robust ({ref}`nb-guidance-argument`), train and attack such
# classifiers ({ref}`nb-guidance-classifiers`), and look at what they make ({ref}`nb-guidance-samples`).

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
n_digits: int = 500  # images of the digits behind the optimal denoiser
form_steps: list[int] = [8, 16, 32, 64, 128]  # steps, two forms compared
n_forms: int = 20  # images of that comparison

# %% tags=["hide-input"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import norm

from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import from_model, to_model
from rdc.guide import PosteriorGuide, SamplingPlan, edm_path, sample
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import image_grid, style
from rdc.rng import randn

check_parameters()
style()
digits_train, digits_test = (
    load("digits", "train")[:n_digits],
    load("digits", "test"),
)
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)
posterior = PosteriorGuide(digits)
y_forms, seeds_forms = torch.arange(n_forms) % 10, list(range(n_forms))
asked = {"dtype": torch.float64}
free = SamplingPlan(conditional=False)
knows = sample(digits, y_forms, seeds_forms, SamplingPlan(), **asked).z
unguided = sample(digits, y_forms, seeds_forms, free, **asked).z
guided_z = sample(
    digits, y_forms, seeds_forms, free, guide=posterior, scale=1.0, **asked
).z
zero = sample(
    digits, y_forms, seeds_forms, free, guide=posterior, scale=0.0, **asked
).z

# %% mystnb={"figure": {"caption": "Digits from the same noise, one class a column, 0 to 9. Rows: a denoiser that knows no classes; the same, guided by the exact classifier with the scale 1; a denoiser that knows the class.", "name": "fig-guide-digits"}, "image": {"alt": "Three rows of small digits; the first row is in no order, the second and the third count from 0 to 9 and are the same"}} tags=["hide-input"]
rows = [unguided[:10], guided_z[:10], knows[:10]]
image_grid(from_model(torch.cat(rows)).clamp(0, 1), columns=10, size=0.5)
plt.show()

# %% [markdown]
# ## What guidance is
#
# A diffusion model samples by following the score, $\nabla \log p_\sigma(z_\sigma) = (D - z_\sigma) / \sigma^2$ ({ref}`nb-diffusion`). Suppose it has never
# heard of classes, and we want an image of class $y$. Bayes' rule at the {term}`noise level` $\sigma$ reads
# $p_\sigma(z_\sigma \mid y) \propto p_\sigma(z_\sigma)\, p(y \mid z_\sigma)$, so
#
# ```{math}
# :label: eq-guide-bayes
# \nabla \log p_\sigma(z_\sigma \mid y) = \nabla \log p_\sigma(z_\sigma) + \underbrace{\nabla \log p(y \mid z_\sigma)}_{g} .
# ```
#
# A classifier of *noisy* images, with its gradient, turns an unconditional sampler into a conditional one. In terms of the {term}`denoiser`, $D$ becomes
#
# ```{math}
# :label: eq-guide-score
# \widetilde D = D + s\, \sigma^2 g ,
# ```
#
# and $s = 1$ is Bayes. A scale $s > 1$ makes the score that of $p_\sigma(z_\sigma)\, p(y \mid z_\sigma)^s$: images of which the classifier is surer, and
# fewer kinds of them. (In this chapter $s$ is the scale of guidance, as in the paper.)
#
# Two facts about $s \ne 1$ are easily missed.
#
# - The densities $p_\sigma\, p(y \mid \cdot)^s$ of the levels are *not* the noisy versions of one density (the paper says so, too), so that no theorem says
#   what comes out at the end ({ref}`ex-guide-tilt`).
# - {cite:t}`kawar2023guidance` guide a model that *knows the class already*. If both were exact, the score would be
#   $\nabla \log p_\sigma(z_\sigma) + (1 + s)\, g$. There $s = 0$ is Bayes, and every $s > 0$ sharpens.
#
# ## Exactly, on the digits
#
# For a finite data set everything is known ({ref}`nb-optimal`): $D$, the denoiser $D_y$ of a class, and the posterior $p(y \mid z_\sigma)$, whose gradient we
# take by automatic differentiation. Equation {eq}`eq-guide-score` with $s = 1$ must be $D_y$.

# %%
# NBVAL_CHECK_OUTPUT
z_forms = to_model(digits_test.x[:n_forms].double())
noises = [
    randn(digits.shape, seed, "guide", "digits", i) for i in range(n_forms)
]
noise_forms = torch.stack(noises).double()
gap = 0.0
for sigma in (0.1, 0.5, 2.0, 10.0, 80.0):
    z_sigma = z_forms + sigma * noise_forms
    level = torch.full((n_forms,), sigma).double()
    wanted = digits(z_sigma, level, y_forms)
    g = posterior(z_sigma, level, y_forms)
    found = digits(z_sigma, level) + sigma**2 * g
    gap = max(gap, float((found - wanted).abs().max()))
same = float((guided_z - knows).abs().max())
print(f"largest |D + sigma^2 g - D_y| below 1e-6: {gap < 1e-6}")
print(f"samples, guided and conditional, within 1e-6: {same < 1e-6}")
print(f"scale 0 equals unguided, bit for bit: {torch.equal(zero, unguided)}")

# %% tags=["remove-cell"]
assert gap < 1e-6 and torch.equal(zero, unguided) and same < 1e-6
claim(float((unguided - knows).abs().max()) > 0.1)

# %% [markdown]
# So in the ideal case there is nothing to choose between a conditional model and a guided one. All that follows is about classifiers that are *not* exact.
#
# (sec-guide-forms)=
# ## The form of DDPM
#
# {cite:t}`kawar2023guidance` write it differently, after {cite:t}`dhariwal2021diffusion`: each reverse step draws from a
# Gaussian, and guidance moves its mean by $s\, \Sigma\, \nabla_{x_t} \log p(y \mid x_t)$, with $\Sigma$ the variance of the step. Is that the same?
#
# Take a step from $\sigma$ to $\sigma' < \sigma$. The coordinates are $x_t = z_\sigma / \sqrt{1 + \sigma^2}$ ({eq}`eq-vp-ve`), hence
# $\nabla_{x_t} = \sqrt{1 + \sigma^2}\, \nabla_{z_\sigma}$, and $\Sigma = \Sigma_z / (1 + \sigma'^2)$. Back in $z$ the mean moves by
#
# ```{math}
# :label: eq-guide-ddpm
# s\, \Sigma_z \sqrt{\frac{1 + \sigma^2}{1 + \sigma'^2}}\; g \qquad \text{(DDPM)}, \qquad\qquad
# s\, (\sigma^2 - \sigma'^2)\; g \qquad \text{(score)} .
# ```
#
# The second is what {eq}`eq-guide-score` does to the mean, $\widetilde D + \frac{\sigma'^2}{\sigma^2} (z_\sigma - \widetilde D)$. There are two usual
# variances. `posterior`, $\Sigma_z = \sigma'^2 (\sigma^2 - \sigma'^2) / \sigma^2$, is exact for data that are one point. `bound`,
# $\Sigma_z = (1 + \sigma'^2)(\sigma^2 - \sigma'^2) / (1 + \sigma^2)$, is exact for data $\mathcal N(0, I)$. The ratio of DDPM's move to the score's is
#
# ```{math}
# :label: eq-guide-ratio
# \frac{\sigma'^2}{\sigma^2} \sqrt{\frac{1 + \sigma^2}{1 + \sigma'^2}} \quad \text{(posterior)}, \qquad
# \sqrt{\frac{1 + \sigma'^2}{1 + \sigma^2}} \quad \text{(bound)} .
# ```
#
# Both are below 1, by an amount of the order of the step. So the DDPM form guides a little less; with few steps, a lot less; and with `posterior` not at all
# in the last step. We sample the digits with the same noise in both forms, and compare the denoised images along the whole path. (Their ends are training
# images: the same ones or other ones.)

# %%
form_gap: dict[str, list[float]] = {}
variances = ("posterior", "bound")
for variance, count in itertools.product(variances, form_steps):
    path, made = edm_path(count), []
    for form in ("score", "ddpm"):
        plan = SamplingPlan(
            path, "ancestral", form, variance, conditional=False
        )
        run = sample(
            digits,
            y_forms,
            seeds_forms,
            plan,
            posterior,
            1.0,
            keep=True,
            **asked,
        )
        made.append(run.estimates)
    gap_image = (made[0] - made[1]).square().flatten(1).mean(dim=1).sqrt()
    form_gap.setdefault(variance, []).append(float(gap_image.median()))
for variance, values in form_gap.items():
    each = zip(form_steps, values, strict=True)
    said = ", ".join(f"{n} steps {v:.3f}" for n, v in each)
    print(f"{variance:9s} difference of a pixel: {said}")

# %% mystnb={"figure": {"caption": "The DDPM form against the score form. Left: how far DDPM moves the mean, relative to the score form, along the path, for several numbers of steps; posterior variance solid, bound dashed. Right: root mean square difference of a pixel (model units) between the denoised images along the path in the two forms, median over images of the digits, same noise, exact guide with s = 1.", "name": "fig-guide-forms"}, "image": {"alt": "Left: ratios below one that come closer to one with more steps. Right: two falling lines on logarithmic axes"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
for i, count in enumerate(form_steps[::2]):
    path = edm_path(count)
    above, below = path[:-1], path[1:]
    root = ((1 + above**2) / (1 + below**2)).sqrt()
    axes[0].plot(
        above,
        (below / above) ** 2 * root,
        color=f"C{i}",
        label=f"{count} steps",
    )
    axes[0].plot(above, 1 / root, "--", color=f"C{i}")
axes[0].set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="DDPM / score",
    ylim=(0, 1.03),
)
axes[0].legend()
for variance, ls in (("posterior", "-"), ("bound", "--")):
    axes[1].plot(form_steps, form_gap[variance], ls, marker="o", label=variance)
axes[1].plot(form_steps, [form_gap["posterior"][0] * form_steps[0] / n for n in form_steps], ":", color="0.4", lw=1, label="slope -1")  # fmt: skip
axes[1].set(xscale="log", yscale="log", xlabel="steps", ylabel="difference")
axes[1].set_xticks(form_steps, [str(n) for n in form_steps])
axes[1].minorticks_off()
axes[1].legend()
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
claim(
    form_gap["posterior"][-1] < 0.5 * form_gap["posterior"][0]
    and form_gap["bound"][-1] < 0.5 * form_gap["bound"][0]
)
glue("guide-form-few", f"{form_gap['posterior'][0]:.2f}")
glue("guide-form-many", f"{form_gap['posterior'][-1]:.2f}")

# %% [markdown]
# The difference falls from {glue:text}`guide-form-few` to {glue:text}`guide-form-many`: with the 250 steps of the paper the two forms agree
# closely, and a scale chosen for one serves the other. With few steps it does not.
#
# ## What to remember
#
# - Guidance adds the gradient of $\log p(y \mid z_\sigma)$ to the score. With exact parts and $s = 1$ it *is* conditional sampling; with a
#   denoiser that knows the class, $s = 0$ is.
# - For $s > 1$ no density says what comes out.
# - The DDPM form guides a little less than the score form, by the order of a step.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-guide-tilt
# :::
# **No density for s = 3** (20 minutes, hard). Two classes of numbers, $x \mid y \sim \mathcal N(\pm 1, 0.5^2)$. Tilt
# the clean density, $q(x) \propto p(x)\, p(+ \mid x)^s$, and add noise $\sigma$. Compare with the tilted noisy density
# $p_\sigma(z)\, p_\sigma(+ \mid z)^s$, normalised, that guidance uses. Which total variation distance do they have at
# $\sigma = 1$, for $s = 1$ and for $s = 3$? Where would the guided flow end?
#
# :::{hint}
# :class: dropdown
# Put everything on a grid from -12 to 12. Noise is a convolution; the total variation is half the integral of the
# absolute difference.
# :::

# %%
# your code here
distance = {1.0: None, 3.0: None}  # total variation, by s

# %%
# check
fine = None not in distance.values()
fine = fine and distance[1.0] < 1e-3 and abs(distance[3.0] - 0.202) < 2e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-tilt
# :label: sol-guide-tilt
# :class: dropdown
# :::
# For $s = 1$ both are the noisy density of the class: the distance is 0. For $s = 3$ they agree only in the limits: as
# $\sigma \to 0$, and as $\sigma \to \infty$, where the noise hides both.
# In the flow the guidance of the high levels has pushed too far, or not far enough, by the time the low levels matter:
# mean and spread of what comes out are not those of $q$.

# %%
line = np.linspace(-12, 12, 4001)
cell = line[1] - line[0]


def tilted(v: float, s: float) -> np.ndarray:
    """``p p(+)^s``, normalised; both classes have variance v."""
    both = np.stack([norm.pdf(line, m, math.sqrt(v)) for m in (-1.0, 1.0)])
    value = both.mean(0) * (both[1] / both.sum(0).clip(1e-300)) ** s
    return value / value.sum() / cell


for s in distance:
    after = np.convolve(tilted(0.25, s), norm.pdf(line), "same") * cell
    distance[s] = 0.5 * np.abs(after - tilted(1.25, s)).sum() * cell
    print(f"s = {s:g}: total variation {distance[s]:.4f}")

# %% tags=["remove-cell"]
claim(distance[1.0] < 1e-3 < 0.1 < distance[3.0])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-twice
# :::
# **Guided twice** (10 minutes, medium). Show that guiding a conditional denoiser with scale $s$ is guiding the
# unconditional one with $1 + s$, if denoisers and guide are exact, and that it is $D_y + w (D_y - D)$ for some $w$.
# Compute all three on the digits, for $s = 2.5$. What does the prior $p(y)$ do to all this?
#
# :::{hint}
# :class: dropdown
# $D_y = D + \sigma^2 g$, with the gradient $g$ of the log-posterior of the class, `posterior(z, level, y)`.
# :::

# %%
# your code here
z_twice, s_twice = z_forms + 0.7 * noise_forms, 2.5
level_twice = torch.full((n_forms,), 0.7).double()
g_twice = posterior(z_twice, level_twice, y_forms)
d_free = digits(z_twice, level_twice)
d_own = digits(z_twice, level_twice, y_forms)
ways = [None, None, None]  # conditional, unconditional, without a classifier

# %%
# check
guided_twice = d_own + s_twice * (d_own - d_free)
fine = all(
    w is not None and bool((w - guided_twice).abs().max() < 1e-6) for w in ways
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-twice
# :label: sol-guide-twice
# :class: dropdown
# :::
# $D_y + s \sigma^2 g = D + (1 + s)\, \sigma^2 g = D_y + s (D_y - D)$, and $w = s$. The prior does nothing to $g$
# directly, since $\log p(y)$ has no gradient. But the normaliser $\log \sum_j p(j)\, p_\sigma(z \mid j)$ has: it is the
# density behind the *unconditional* $D$. A classifier trained on other class frequencies than the denoiser is not its
# partner in {eq}`eq-guide-score`.

# %%
ways = [
    d_own + s_twice * 0.7**2 * g_twice,
    d_free + (1 + s_twice) * 0.7**2 * g_twice,
    d_own + s_twice * (d_own - d_free),
]
apart = max(float((w - ways[0]).abs().max()) for w in ways)
print(f"largest difference of the three below 1e-6: {apart < 1e-6}")

# %% tags=["remove-cell"]
claim(apart < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-guide-halved
# :::
# **A step that halves the noise** (5 minutes, easy). A step goes from $\sigma$ to $\sigma / 2$. Which share of the score form's move does the DDPM form make, with either variance, at very low
# noise and at very high noise?
#
# :::{hint}
# :class: dropdown
# Put $\sigma' = \sigma / 2$ into {eq}`eq-guide-ratio`, and let $\sigma$ go to 0 and to infinity.
# :::

# %%
# your code here
low_noise = {"posterior": None, "bound": None}
high_noise = {"posterior": None, "bound": None}


# %%
# check
def ratio(s: float, variance: str) -> float:
    """DDPM's move relative to the score's, from s to s / 2."""
    root = math.sqrt((1 + s**2) / (1 + s**2 / 4))
    return root / 4 if variance == "posterior" else 1 / root


fine = None not in (*low_noise.values(), *high_noise.values())
fine = fine and all(
    abs(found[v] - ratio(s, v)) < 1e-3
    for found, s in ((low_noise, 1e-4), (high_noise, 1e4))
    for v in found
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-guide-halved
# :label: sol-guide-halved
# :class: dropdown
# :::
# At low noise the root is 1, at high noise 2. With `posterior` a quarter and a half, with `bound` all and a half.

# %%
low_noise = {"posterior": 1 / 4, "bound": 1.0}
high_noise = {"posterior": 1 / 2, "bound": 1 / 2}
print("low", low_noise, "high", high_noise)

# %% tags=["remove-cell"]
claim(low_noise["posterior"] < high_noise["posterior"])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Classifier guidance: {cite:t}`dhariwal2021diffusion`. The chain of DDPM:
# {cite:t}`ho2020ddpm`; the flow and its sampler: {cite:t}`karras2022elucidating`. The digits are those of {cite:t}`alpaydin1998digits`.
