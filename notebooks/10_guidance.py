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
# - Derive classifier {term}`guidance` from Bayes' rule, say what the scale does, and tell the score form from the form of {term}`DDPM`.
# - Test an argument about gradients in twenty lines, and repair it.
# - Say what robust training converges to for two Gaussians.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-diffusion` and {ref}`nb-optimal`. The first of three pages on {cite:t}`kawar2023guidance`: sections 3.1 and 3.2 and
# Appendix B. {ref}`nb-guidance-classifiers` trains and attacks the classifiers, {ref}`nb-guidance-samples` looks at what they make.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
vanilla_name: str = "fashion-mini-vanilla"  # time-dependent classifiers, by name or path
robust_name: str = "fashion-mini-robust"
n_digits: int = 500  # images of the digits behind the optimal denoiser
form_steps: list[int] = [8, 16, 32, 64, 128]  # steps of the sampler when the two forms are compared
n_forms: int = 20  # images of that comparison
n_ripple: int = 30  # images of Appendix B
ripple_sigma: float = 0.3  # their noise level

# %% tags=["hide-input"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor, nn

from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import to_model
from rdc.guide import (
    ClassifierGuide,
    PosteriorGuide,
    SamplingPlan,
    Threat,
    edm_path,
    load_classifier,
    perturb,
    sample,
    shift_effect,
)
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
from rdc.rng import randn

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")
classes, size = len(test.classes), test.x[0].numel()
names = {"vanilla": vanilla_name, "robust": robust_name}

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
# ### Exactly, on the digits
#
# For a finite data set everything is known ({ref}`nb-optimal`): $D$, the denoiser $D_y$ of a class, and the posterior $p(y \mid z_\sigma)$, whose gradient we
# take by automatic differentiation. Equation {eq}`eq-guide-score` with $s = 1$ must be $D_y$.

# %%
digits_train, digits_test = load("digits", "train")[:n_digits], load("digits", "test")
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)
posterior = PosteriorGuide(digits)
y_forms = torch.arange(n_forms) % 10
z_forms = to_model(digits_test.x[:n_forms].double())
noise_forms = torch.stack([randn(digits.shape, seed, "guide", "digits", i) for i in range(n_forms)]).double()
gap = 0.0
for sigma in (0.1, 0.5, 2.0, 10.0, 80.0):
    z_sigma, level = z_forms + sigma * noise_forms, torch.full((n_forms,), sigma).double()
    wanted = digits(z_sigma, level, y_forms)
    found = digits(z_sigma, level) + sigma**2 * posterior(z_sigma, level, y_forms)
    gap = max(gap, float((found - wanted).abs().max()))
print(f"largest |D + sigma^2 g - D_y| below 1e-6: {gap < 1e-6}")  # NBVAL_CHECK_OUTPUT
seeds_forms = list(range(n_forms))
common = {"dtype": torch.float64}
knows = sample(digits, y_forms, seeds_forms, SamplingPlan(), **common).z
guided_z = sample(digits, y_forms, seeds_forms, SamplingPlan(conditional=False), guide=posterior, scale=1.0, **common).z
unguided = sample(digits, y_forms, seeds_forms, SamplingPlan(conditional=False), **common).z
zero = sample(digits, y_forms, seeds_forms, SamplingPlan(conditional=False), guide=posterior, scale=0.0, **common).z
print(f"samples, unconditional and guided against conditional: within 1e-6: {float((guided_z - knows).abs().max()) < 1e-6}")
print(f"scale 0 equals unguided, bit for bit: {torch.equal(zero, unguided)}")  # NBVAL_CHECK_OUTPUT

# %% tags=["remove-cell"]
assert gap < 1e-6 and torch.equal(zero, unguided) and float((guided_z - knows).abs().max()) < 1e-6
claim(float((unguided - knows).abs().max()) > 0.1)

# %% [markdown]
# So in the ideal case there is nothing to choose between a conditional model and a guided one. All that follows is about classifiers that are *not* exact.
#
# ### The form of DDPM
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
for variance, count in itertools.product(("posterior", "bound"), form_steps):
    path, made = edm_path(count), []
    for form in ("score", "ddpm"):
        plan = SamplingPlan(path, "ancestral", form, variance, conditional=False)
        run = sample(digits, y_forms, seeds_forms, plan, posterior, 1.0, keep=True, **common)
        made.append(run.estimates)
    gap_image = (made[0] - made[1]).square().flatten(1).mean(dim=1).sqrt()
    form_gap.setdefault(variance, []).append(float(gap_image.median()))
for variance, values in form_gap.items():
    each = zip(form_steps, values, strict=True)
    print(f"{variance:9s} difference of a pixel:", ", ".join(f"{n} steps {v:.3f}" for n, v in each))

# %% mystnb={"figure": {"caption": "The DDPM form against the score form. Left: how far DDPM moves the mean, relative to the score form, along the path, for several numbers of steps; posterior variance solid, bound dashed. Right: root mean square difference of a pixel (model units) between the denoised images along the path in the two forms, median over images of the digits, same noise, exact guide with s = 1.", "name": "fig-guide-forms"}, "image": {"alt": "Left: ratios below one that come closer to one with more steps. Right: two falling lines on logarithmic axes"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
for i, count in enumerate(form_steps[::2]):
    path = edm_path(count)
    above, below = path[:-1], path[1:]
    root = ((1 + above**2) / (1 + below**2)).sqrt()
    axes[0].plot(above, (below / above) ** 2 * root, color=f"C{i}", label=f"{count} steps")
    axes[0].plot(above, 1 / root, "--", color=f"C{i}")
axes[0].set(xscale="log", xlabel=r"noise level $\sigma$ (model units)", ylabel="DDPM / score", ylim=(0, 1.03))
axes[0].legend(fontsize=8)
for variance, ls in (("posterior", "-"), ("bound", "--")):
    axes[1].plot(form_steps, form_gap[variance], ls, marker="o", label=variance)
axes[1].plot(form_steps, [form_gap["posterior"][0] * form_steps[0] / n for n in form_steps], ":", color="0.4", lw=1, label="slope -1")  # fmt: skip
axes[1].set(xscale="log", yscale="log", xlabel="steps", ylabel="difference")
axes[1].set_xticks(form_steps, [str(n) for n in form_steps])
axes[1].minorticks_off()
axes[1].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
claim(form_gap["posterior"][-1] < 0.5 * form_gap["posterior"][0] and form_gap["bound"][-1] < 0.5 * form_gap["bound"][0])
glue("guide-form-few", f"{form_gap['posterior'][0]:.2f}")
glue("guide-form-many", f"{form_gap['posterior'][-1]:.2f}")

# %% [markdown]
# The difference falls from {glue:text}`guide-form-few` to {glue:text}`guide-form-many`: with the 250 steps of the paper the two forms agree closely, and a
# scale chosen for one serves the other. With few steps it does not.
#
# (sec-guide-appendix)=
# ## An argument, and what is left of it
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

# %% tags=["hide-input"]
x_rip, y_rip = test.x[:n_ripple].double().to(device), test.y[:n_ripple].to(device)
eps_rip = torch.stack(
    [randn(tuple(test.x.shape[1:]), seed, "guide", "appendix", i) for i in range(n_ripple)]
).to(x_rip)
z_rip, level_rip = to_model(x_rip) + ripple_sigma * eps_rip, torch.full((n_ripple,), ripple_sigma).to(x_rip)
exact_guides = {name: load_classifier(file, device, torch.float64) for name, file in names.items()}
wave = randn((size,), seed, "guide", "wave").to(x_rip)
wave = wave / wave.norm()


def q(z: Tensor) -> Tensor:
    """Any function of the image, the same for all classes."""
    return 100 * torch.sin(10 * z.flatten(1) @ wave)


shifted: dict[str, dict[str, float]] = {}
for name, h in exact_guides.items():
    shifted[name] = shift_effect(h, q, z_rip[:20], level_rip[:20], y_rip[:20], Threat())
    print(f"{name:8s} relative change:", ", ".join(f"{k} {v:.1e}" for k, v in shifted[name].items()))

# %% tags=["remove-cell"]
for found in shifted.values():
    assert found["raw"] > 1 and max(found["log_softmax"], found["attack"], found["loss"]) < 1e-6
glue("guide-raw", f"{min(v['raw'] for v in shifted.values()):.0f}")


# %% [markdown]
# The gradient of the raw logit changes by a factor of more than {glue:text}`guide-raw`. The gradient that guides, the points that the attack finds and the
# adversarial loss change by rounding errors. As printed the argument is about a quantity that guidance does not use, and it does not tell the two trainings
# apart.
#
# ### What is left: ripples
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

# %% tags=["hide-input"]
class Rippled(nn.Module):
    """A classifier with a ripple on each logit."""

    def __init__(self, classifier: nn.Module, amplitude: float, frequency: float) -> None:
        super().__init__()
        self.classifier, self.a, self.omega = classifier, amplitude, frequency
        u = randn((size, classes), seed, "guide", "ripple").to(z_rip)
        self.u = u / u.norm(dim=0)

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        return self.classifier(z, sigma) + self.a * torch.sin(self.omega * z.flatten(1) @ self.u)


@torch.no_grad()
def loss_at(h: nn.Module, z: Tensor) -> float:
    """Mean cross-entropy."""
    return float(F.cross_entropy(h(z, level_rip), y_rip))


calm, ripple_a = exact_guides["vanilla"], 0.1
full = Threat(eps=0.5, radius="image", stop=False)  # radius 1 in model units at every level, and no early stop
found_points = perturb(calm, z_rip, level_rip, y_rip, full)
calm_gradient = ClassifierGuide(calm)(z_rip, level_rip, y_rip)
ripple_rows: list[dict[str, str | float]] = []
for omega in (0.0, 1.0, 10.0, 100.0):
    h = Rippled(calm, ripple_a, omega)
    change = float((ClassifierGuide(h)(z_rip, level_rip, y_rip) - calm_gradient).norm() / calm_gradient.norm())
    own_points = perturb(h, z_rip, level_rip, y_rip, full)
    ripple_rows.append({"omega": f"{omega:g}", "loss": loss_at(h, z_rip), "loss, own attack": loss_at(h, own_points),
                        "loss, attack on the calm one": loss_at(h, found_points), "change of the gradient": change})  # fmt: skip
print(f"vanilla classifier, {n_ripple} images, sigma = {ripple_sigma:g}, a = {ripple_a:g}, radius 1; omega = 0: no ripple")
display(pd.DataFrame(ripple_rows).style.hide(axis="index").format(precision=3))

# %% tags=["remove-cell"]
none_r, slow_r, quick_r = ripple_rows[0], ripple_rows[1], ripple_rows[-1]
claim(quick_r["change of the gradient"] > 2 and abs(quick_r["loss"] - none_r["loss"]) < ripple_a)
claim(quick_r["loss, own attack"] < none_r["loss, own attack"] + 2 * ripple_a)
glue("guide-ripple-gradient", f"{quick_r['change of the gradient']:.1f}")
glue("guide-ripple-loss", f"{abs(quick_r['loss'] - none_r['loss']):.3f}")
glue("guide-ripple-own", f"{quick_r['loss, own attack'] - none_r['loss, own attack']:+.2f}")

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
# ### What robust training converges to
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

# %% [markdown]
# ## Summary
#
# - Guidance adds the gradient of $\log p(y \mid z_\sigma)$ to the score. With exact parts and $s = 1$ it *is* conditional sampling; with a denoiser that
#   knows the class, $s = 0$ is.
# - The DDPM form guides a little less than the score form, by the order of a step.
# - A function added to all logits cancels in everything that guidance and adversarial training use. Ripples on single logits hide from both losses.
# - Vanilla training has the exact gradient as its limit. Robust training has another one: for Gaussians, that of more noise, and shorter.

# %% [markdown]
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
# For $s = 1$ both are the noisy density of the class: the distance is 0. For $s = 3$ they agree only as $\sigma \to 0$.
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
fine = all(w is not None for w in ways)
fine = fine and all(bool((w - ways[0]).abs().max() < 1e-6) for w in ways)
fine = fine and bool((ways[0] - d_own).abs().max() > 1e-3)
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
fine = found_w is not None and np.abs(found_w - by_formula).max() < 0.02
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
# ## References
#
# Robust classifier guidance: {cite:t}`kawar2023guidance`. Classifier guidance: {cite:t}`dhariwal2021diffusion`. The argument of Appendix B:
# {cite:t}`srinivas2021rethinking`. The chain of DDPM: {cite:t}`ho2020ddpm`; the flow and its sampler: {cite:t}`karras2022elucidating`. The images are those of
# {cite:t}`xiao2017fashion` and {cite:t}`alpaydin1998digits`.
