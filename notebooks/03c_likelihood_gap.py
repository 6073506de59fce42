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
# (nb-optimal-gap)=
# # When is a loss a likelihood?
#
# :::{admonition} What you will be able to do
# :class: tip
# - State Theorem 3.1 with the hypothesis that it needs.
# - *Compute* the gap between likelihood and loss, and say when it matters.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-optimal`, and the identity of {ref}`nb-diffusion-likelihood`. Covers Theorem 3.1 and
# appendix A.1 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0
data: str = "fashion-mini"  # data set
n_clean: int = 200  # test images for clean accuracy and agreement
n_gap: int = 6  # images for the gap d(x, y)

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from rdc.classify import OptimalClassifier
from rdc.data import Images, load
from rdc.denoise import OptimalDenoiser, to_model
from rdc.evaluate import Accuracy
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.rng import randn
from rdc.schedule import chain_levels, levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
train, test = (
    Images(s.x.to(device), s.y.to(device), s.classes) for s in (train, test)
)
x_clean, y_clean = test.x[:n_clean], test.y[:n_clean]


# %% [markdown]
# **Is the softmax of the losses a posterior?** The paper's Theorem 3.1 says when. With the {term}`optimal denoiser` the distance between loss and
# likelihood is computed, not bounded:


# %% tags=["hide-input"]
def jensen_gap(
    model: OptimalDenoiser, z: Tensor, sigma: float, eps: Tensor
) -> Tensor:
    """``G_y`` for flat antithetic noise ``eps`` ``(R, D)``, shape ``(images,
    K)``, in nats.
    """
    own = (z.flatten(1) - model.center) @ eps.T
    noise = (
        own[:, None] - (model.points @ eps.T)[None]
    ) / sigma  # eps . (z - z_i) / sigma, (images, N, R)
    a = -model.distances(z) / (2 * sigma**2)
    parts = zip(
        a.split(model.counts, dim=1),
        noise.split(model.counts, dim=1),
        strict=True,
    )
    return torch.stack(
        [
            (p[..., None] - e).logsumexp(dim=1).mean(dim=1) - p.logsumexp(dim=1)
            for p, e in parts
        ],
        dim=1,
    )


train64, z_gap = train.x.double(), to_model(test.x[:n_gap].double())
exact = OptimalDenoiser(train64, train.y)
half = randn((16, exact.points.shape[1]), seed, "gap", like=exact.points)
eps_gap = torch.cat([half, -half])
dimension = exact.points.shape[1]
s0_grid = torch.logspace(
    math.log10(0.002), math.log10(30), 22, dtype=torch.float64
).tolist()
gap = torch.stack(
    [dimension / 2 - jensen_gap(exact, z_gap, s, eps_gap) for s in s0_grid]
).cpu()  # (levels, images, K)
likelihood = torch.stack([exact.log_density(z_gap, s) for s in s0_grid]).cpu()
spread_gap, spread_likelihood = (
    v.amax(dim=2) - v.amin(dim=2) for v in (gap, likelihood)
)
relative = spread_gap / spread_likelihood
same_decision = Accuracy.of(
    int(((likelihood - gap).argmax(dim=2) == likelihood.argmax(dim=2)).sum()),
    relative.numel(),
)

# %% mystnb={"figure": {"caption": "Left: the gap $d(z, y)$ of Theorem 3.1 for one test image and all classes against the lowest noise level; the dotted line is $D/2$. Right: spread over the classes of the gap and of the exact log-likelihood, for several test images.", "name": "fig-optimal-gap"}, "image": {"alt": "Left: ten curves that leave the line D/2 in the middle range of noise levels. Right: the spread of the gap lies below the spread of the log-likelihood."}} tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
for k, name in enumerate(train.classes):
    left.semilogx(s0_grid, gap[:, 0, k], label=name)
left.axhline(dimension / 2, color="black", linestyle=":")
left.set(
    xlabel="lowest level $s_0$ (model units)", ylabel="gap $d(z, y)$ (nats)"
)
left.legend(ncol=2)
right.loglog(s0_grid, spread_likelihood, color="C0", alpha=0.7)
right.loglog(s0_grid, spread_gap.clamp(min=1e-4), color="C1", alpha=0.7)
right.plot([], [], color="C0", label="log-likelihood")
right.plot([], [], color="C1", label="gap")
right.set(
    xlabel="lowest level $s_0$ (model units)",
    ylabel="max - min over classes (nats)",
)
right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Theorem 3.1: when is the softmax of losses a posterior?
#
# Let $L_y(z)$ be the weighted loss of class $y$ and $p(z \mid y)$ any conditional density. The gap between the two is
#
# ```{math}
# :label: eq-gap
# d(z, y) = \log p(z \mid y) + L_y(z) .
# ```
#
# The paper's Theorem 3.1 concludes that the softmax of $-L_y$ is the posterior if $d(z, y) \to 0$ for all $y$. The
# hypothesis asks for too much.
#
# :::{prf:theorem} Theorem 3.1 with the hypothesis that it needs
# :label: thm-gap
# Let all class probabilities $\pi_y$ be positive. Then $p(y \mid z) = \operatorname{softmax}_y(\log \pi_y - L_y(z))$ **if and only
# if** $d(z, y)$ is the same number for all $y$. In general
# ```{math}
# :label: eq-gap-odds
# \underbrace{\log \frac{p(y \mid z)}{p(y' \mid z)}}_{\text{exact log-odds}}
# = \underbrace{\Big[ \log \frac{\pi_y}{\pi_{y'}} + L_{y'}(z) - L_y(z) \Big]}_{\text{log-odds of the classifier}} + d(z, y) - d(z, y') ,
# ```
# so the classifier's decision is Bayes' decision whenever its lead over the second class exceeds $\max_y d - \min_y d$.
# :::
#
# :::{prf:proof}
# By Bayes, $p(y \mid z) \propto \pi_y\, p(z \mid y) = \pi_y\, e^{d(z, y)} e^{-L_y(z)}$. Ratios of two classes give
# {eq}`eq-gap-odds`. A distribution with positive entries is determined by its ratios, so the two agree exactly when all
# differences $d(z, y) - d(z, y')$ vanish. If the classifier prefers $y$ by more than the spread of $d$, every right side of
# {eq}`eq-gap-odds` is positive for every $y'$.
# :::
#
# ### The gap, exactly
#
# For a trained network $d$ is unknown. For the optimal denoiser everything in {eq}`eq-gap` is computable. Choose the
# weights of the likelihood bound, $\sigma^{-3} d\sigma$ above a lowest level $s_0$. The identity of {ref}`nb-diffusion-likelihood` says,
# with $J_y(\sigma; z) = \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon \mid y)$,
#
# ```{math}
# :label: eq-optimal-identity
# J_y(s_0; z) = J_y(s_T; z) + D \log \frac{s_T}{s_0} - \int_{s_0}^{s_T} \sigma^{-3} m_y(\sigma; z)\, d\sigma .
# ```
#
# For large $s_T$ the first two terms on the right no longer depend on the class. So $-L_y$, up to a constant, *is*
# $J_y(s_0; z)$, and we call that constant part of $L_y$.
#
# :::{prf:proposition} The gap is a Jensen gap
# :label: prop-gap
# With exact weights in continuous time, $d(z, y) = \log p_{s_0}(z \mid y) - J_y(s_0; z) = \tfrac D2 - G_y(z)$, where
# ```{math}
# :label: eq-jensen-gap
# \begin{aligned}
# G_y = {} & \E_\varepsilon\, \operatorname{LSE}_i\Big( -\frac{\norm{z - z_i}^2}{2 s_0^2} - \frac{\varepsilon \cdot (z - z_i)}{s_0} \Big) \\
# & - \operatorname{LSE}_i\Big( -\frac{\norm{z - z_i}^2}{2 s_0^2} \Big) \ \ge 0
# \end{aligned}
# ```
# and $\operatorname{LSE}$ is log-sum-exp. Hence $d \le D/2$. If the nearest image of class $y$ is unique, $d(z, y) \to D/2$ for
# $s_0 \to 0$; and $d(z, y) \to D/2$ for $s_0 \to \infty$.
# :::
#
# :::{prf:proof}
# Expand $\norm{z + s_0 \varepsilon - z_i}^2 / 2 s_0^2 = \norm{z - z_i}^2 / 2 s_0^2 + \varepsilon \cdot (z - z_i) / s_0 + \norm{\varepsilon}^2 / 2$.
# The last term comes out of the sum over $i$, and $\E \norm{\varepsilon}^2 / 2 = D/2$. The normalisers of
# $\log p_{s_0}$ and $J_y$ are equal and cancel: that gives the formula. LSE is convex and its argument has a mean over
# $\varepsilon$ equal to the argument of the second LSE, so $G_y \ge 0$ by Jensen's inequality.
#
# As $s_0 \to 0$ the term of the nearest image exceeds the others by an amount of order $s_0^{-2}$ against noise of order
# $s_0^{-1}$; both LSE then equal this one term, whose noise has mean zero. As $s_0 \to \infty$ the noise disappears.
# :::
#
# So the gap does *not* go to zero, at any end: it goes to $D/2$, and harmlessly so, since it goes there for every class. How fast
# is another question, and only the numbers can answer it.

# %%
print(
    f"D/2 = {dimension / 2:.0f} nats; d lies between {gap.min():.1f} and "
    f"{gap.max():.1f}"
)
print("spread over classes, mean over images, in nats")
for i in range(0, len(s0_grid), 3):
    print(
        f"  s_0 = {s0_grid[i]:6.3f}:  gap {spread_gap[i].mean():8.3f}   "
        f"log-likelihood {spread_likelihood[i].mean():10.2f}"
    )
print(
    f"decision by losses = decision by likelihood, over images and levels: "
    f"{same_decision}"
)

# %% [markdown]
# The left panel of {numref}`fig-optimal-gap` shows both limits, and a dip between them, deeper for some classes than for others. The
# right panel has a surprise: for one image the spread of the gap keeps growing as $s_0$ falls. The cause is a near tie. If
# two images of a class are at almost the same distance from $z$, then LSE of the noisy exponents is the larger of two numbers whose
# difference has standard deviation $\norm{z_1 - z_2} / s_0$, and for an exact tie
#
# ```{math}
# :label: eq-tie
# G_y \approx \frac{\norm{z_1 - z_2}}{\sqrt{2 \pi}\, s_0} .
# ```
#
# The limit $D/2$ is reached only when $s_0$ is small against $(\norm{z - z_2}^2 - \norm{z - z_1}^2) / \norm{z_1 - z_2}$, with $z_1$, $z_2$ the
# two nearest images, far below any level in use. We
# check this for the class with the largest $G$ at the lowest level, where two images give $\E \max(0, X)$ for a normal $X$.

# %%
worst_image, worst_class = divmod(int(gap[0].argmin()), gap.shape[2])
points_worst = to_model(train64[train.y == worst_class]).flatten(1)
d_sorted, order = (
    (z_gap[worst_image].flatten() - points_worst).square().sum(dim=1).sort()
)
tie_std = (
    float((points_worst[order[0]] - points_worst[order[1]]).norm()) / s0_grid[0]
)
tie_mean = -float(d_sorted[1] - d_sorted[0]) / (2 * s0_grid[0] ** 2)
unit = tie_mean / tie_std
tie = tie_std * (
    math.exp(-(unit**2) / 2) / math.sqrt(2 * math.pi)
    + unit * 0.5 * math.erfc(-unit / math.sqrt(2))
)
print(
    f"two nearest images of class {train.classes[worst_class]}: squared "
    f"distances {d_sorted[0]:.4f} and {d_sorted[1]:.4f}"
)
print(
    f"G at s_0 = {s0_grid[0]:.3f}: {dimension / 2 - float(gap[0].min()):.0f} "
    f"nats; these two images alone give {tie:.0f} nats"
)

# %% tags=["remove-cell"]
glue("optimal-gap-median", 100 * float(relative.median()))
glue("optimal-gap-lowest", 100 * float(relative[0].max()))
glue("optimal-gap-same", 100 * same_decision.value)

# %% [markdown]
# So the spread of the gap is many nats over most of the range, and for near ties it grows like $1/s_0$. There the softmax of the losses is
# *not* the exact posterior: its odds are wrong by $e$ to that many nats. But the spread of the likelihoods grows like
# $1/s_0^2$. Relative to it the gap has a median of {glue:text}`optimal-gap-median:.1f` % over images and levels, and is at most
# {glue:text}`optimal-gap-lowest:.3f` % at the lowest level. By {eq}`eq-gap-odds` that is what decisions need: losses and
# likelihoods decide alike in {glue:text}`optimal-gap-same:.1f` % of the cases. The loss is not the likelihood, but it ranks the
# classes as the likelihood does.
#
# The proposition can be tested from the other side: compute $L_y$ as a *weighted sum of losses*, with the trapezoid weights
# of {ref}`nb-diffusion-grids`, and compare $\log p_{s_0} + L_y$ with $D/2 - G_y$. They may differ by a constant in $y$.

# %%
s0 = 1.0
integral = chain_levels(
    torch.logspace(math.log10(s0), 2, 600, dtype=torch.float64),
    rule="trapezoid",
    tail=True,
)
by_losses = OptimalClassifier(
    train64, train.y, integral, seed=seed, draws=64, nodes=40
)
from_losses = exact.log_density(z_gap, s0) - by_losses(test.x[:n_gap].double())
from_jensen = dimension / 2 - jensen_gap(exact, z_gap, s0, by_losses.eps)
difference = from_losses - from_jensen
residual = float(
    (difference - difference.mean(dim=1, keepdim=True)).abs().max()
)
spread_here = float((from_jensen.amax(dim=1) - from_jensen.amin(dim=1)).max())
print(
    f"s_0 = {s0}: gap from losses and from Jensen differ by a constant, up to "
    f"{residual:.2f} nats; spread of the gap {spread_here:.1f} nats"
)

# %% tags=["remove-cell"]
claim(
    float(gap.max()) <= dimension / 2 + 1e-6,
    "antithetic draws make the sample gap obey Jensen exactly",
)
claim(relative[0].max() < 0.01 and same_decision.value > 0.9)
claim(residual < 0.2 * spread_here)


# %% [markdown]
# ### Weights that are not those of the bound
#
# The weights of {term}`EDM` training and $w_t = 1$ in VP form make another score of the losses. Its unit is not the nat. We regress
# the differences of {term}`logits` between classes on the differences of the exact $\log p_{s_0}(z \mid y)$.


# %%
def slope_and_correlation(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Least squares slope and correlation of logits against truth, both
    centred over classes.
    """
    a, b = (v - v.mean(dim=1, keepdim=True) for v in (logits, truth))
    return float((a * b).sum() / (b * b).sum()), float(
        (a * b).sum() / (a.norm() * b.norm())
    )


s0 = 0.05
truth = exact.log_density(to_model(x_clean.double()), s0)
calibration = {}
for kind in ("elbo", "edm", "edm-released", "vp"):
    with torch.no_grad():
        model = OptimalClassifier(
            train.x, train.y, levels(kind, count=1000), seed=seed
        )
        logits = model(x_clean).double()
    agree = Accuracy.of(
        int((logits.argmax(dim=1) == truth.argmax(dim=1)).sum()), n_clean
    )
    calibration[kind] = (*slope_and_correlation(logits, truth), agree)
    slope, r, _ = calibration[kind]
    print(
        f"{kind:13s} slope {slope:9.5f}   correlation {r:.4f}   same decision "
        f"as the exact posterior: {agree}"
    )

# %% tags=["remove-cell"]
claim(0.8 < calibration["elbo"][0] < 1.2)
claim(
    all(
        slope < 0.5
        for slope, _, _ in (
            calibration[k] for k in ("edm", "edm-released", "vp")
        )
    )
)
claim(
    all(r > 0.9 and agree.value > 0.9 for _, r, agree in calibration.values())
)
glue("optimal-slope-elbo", calibration["elbo"][0])
glue("optimal-slope-edm", calibration["edm"][0])
glue("optimal-slope-vp", calibration["vp"][0])

# %% [markdown]
# With the exact weights the slope is {glue:text}`optimal-slope-elbo:.2f`, close to one. With the EDM weight it is
# {glue:text}`optimal-slope-edm:.4f` and with $w_t = 1$ it is {glue:text}`optimal-slope-vp:.4f`: as probabilities these
# softmaxes are far too cautious. The *order* of the classes is nearly untouched, and {eq}`eq-optimal-one-hot` says why: any
# positive weights at low levels multiply the same nearest distances.
#
# So Theorem 3.1 is a statement about calibrated probabilities. A decision needs much less.
#
# ## What to remember
#
# - Theorem 3.1 needs a gap that is *constant in the label*, not zero. For the optimal model it is a Jensen gap below $D/2$.
# - Its spread over classes can be many nats, but is small against that of the likelihoods: fine for decisions, not for probabilities.
# - With other weights than those of the bound the unit of a logit is not the nat, and the order of the classes is nearly the same.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-optimal-one-gap
# :::
# **One image a class** (5 minutes, easy). Let every class have exactly one image of `dimension` pixels. Show that the gap of {prf:ref}`prop-gap` is the same at every level and for every class. How large is it, in nats?
#
# :::{hint}
# :class: dropdown
# What is log-sum-exp of one number?
# :::

# %%
# your code here
gap_of_one = None

# %%
# check
fine = gap_of_one is not None and abs(gap_of_one - dimension / 2) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-one-gap
# :label: sol-optimal-one-gap
# :class: dropdown
# :::
# With one image LSE is its argument, and the noise has mean zero, so $G_y = 0$ and $d = D/2$.

# %%
firsts = torch.stack(
    [(train.y == k).nonzero()[0, 0] for k in range(len(train.classes))]
)
single = OptimalDenoiser(train64[firsts], train.y[firsts])
largest = float(jensen_gap(single, z_gap, 0.5, eps_gap).abs().max())
gap_of_one = dimension / 2 - largest
print(f"gap {gap_of_one:.0f}; largest G: {largest:.0e}")

# %% tags=["remove-cell"]
assert largest < 1e-9

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-lead
# :::
# **Enough of a lead?** (5 minutes, easy). Three classes have the losses $L = (100, 103, 104)$, the gaps $d = (386, 391, 390)$ and equal priors. Which class does the classifier choose, with which probability? What is the exact posterior? Why does {prf:ref}`thm-gap` not forbid it?
#
# :::{hint}
# :class: dropdown
# $\log p(z \mid y) = d - L_y$.
# :::

# %%
# your code here
exact_posterior = None  # three numbers

# %%
# check
fine = close_to(exact_posterior, (0.1065, 0.7870, 0.1065), within=4e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-lead
# :label: sol-optimal-lead
# :class: dropdown
# :::
# The classifier chooses the first class and is fairly sure of it; the posterior prefers the second. The lead of 3 nats is less than the spread of the gap, 5 nats. A constant added to all gaps would change nothing.

# %%
losses_3 = torch.tensor([100.0, 103.0, 104.0]).double()
gaps_3 = torch.tensor([386.0, 391.0, 390.0]).double()
exact_posterior = (gaps_3 - losses_3).softmax(dim=0)
print("classifier", [round(p, 3) for p in (-losses_3).softmax(dim=0).tolist()])
print("posterior ", [round(p, 3) for p in exact_posterior.tolist()])

# %% tags=["remove-cell"]
assert int(exact_posterior.argmax()) == 1

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-optimal-prior
# :::
# **Unbalanced classes** (15 minutes, medium). The paper assumes a uniform prior. Let the data have from 400 images of the first class down to 40 of the last (the first `counts[k]` of each), and let the test images come with these frequencies. What has to be added to the logits?
# On which share of `x_clean` does it change the decision of the likelihood, at $\sigma = 0.1$ and at 100?
#
# :::{hint}
# :class: dropdown
# Bayes' rule, and `OptimalDenoiser.log_density`. To check yourself: with the frequencies of the data as prior, every stored image has the same weight.
# :::

# %%
# your code here
counts = np.geomspace(400, 40, len(train.classes)).astype(int)
changed_share = {0.1: None, 100.0: None}

# %%
# check
fine = close_to(changed_share[0.1], 0, within=0.01)
fine = fine and close_to(changed_share[100.0], 0.925, within=0.02)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-optimal-prior
# :label: sol-optimal-prior
# :class: dropdown
# :::
# Add $\log \pi_y$, as the paper remarks after Theorem 3.1. At low noise likelihoods differ by hundreds of nats and the prior by a few, so
# nothing changes. When noise has removed the evidence, the prior decides.
#
# For the check note that $\pi_y / N_y = 1/N$: with the frequencies of the data as prior, every image of $\mathcal D$ has the same weight,
# and the posterior of a class is the sum of its softmax weights over *all* images.

# %%
picked = torch.cat(
    [(train.y == k).nonzero()[: counts[k], 0] for k in range(len(counts))]
)
skewed = OptimalDenoiser(train.x[picked].double(), train.y[picked])
log_prior = torch.from_numpy(counts / counts.sum()).log().to(device)
for s in (0.1, 1.0, 10.0, 100.0):
    evidence = skewed.log_density(to_model(x_clean.double()), s)
    posterior = torch.softmax(evidence + log_prior, dim=1)
    weights = torch.softmax(
        -skewed.distances(to_model(x_clean.double())) / (2 * s**2), dim=1
    ).split(skewed.counts, dim=1)
    summed = torch.stack([w.sum(dim=1) for w in weights], dim=1)
    error = float((posterior - summed).abs().max())
    changed = posterior.argmax(dim=1) != evidence.argmax(dim=1)
    changed_share[s] = float(changed.double().mean())
    print(
        f"sigma = {s:5.1f}: error against the exact posterior {error:.0e}; "
        f"prior changes {100 * changed_share[s]:5.1f} % of the decisions"
    )
    assert error < 1e-9

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Theorem 3.1 is from {cite:t}`chen2024rdc`. The link between denoising errors and likelihood goes back to {cite:t}`guo2005immse`, and
# {cite:t}`kong2023information` use it for diffusion models. Weights are from {cite:t}`karras2022elucidating` and {cite:t}`ho2020ddpm`.
