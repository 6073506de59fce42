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
# (nb-classifier-weights)=
# # Levels and weights
#
# :::{admonition} What you will be able to do
# :class: tip
# - Choose noise levels and weights, and tell a likelihood bound from a training weight.
# - Compare two classifiers on the same images with an exact test.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-classifier`. Covers section 3.2, Eqs. 3 and 4 and appendix B of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 16  # noise levels of the classifier
sigma_min: float = 0.1  # lowest noise level, model units
n_clean: int = 100  # test images for clean accuracy
n_small: int = 3  # images for the study of attack losses

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

from rdc.attack.losses import cross_entropy
from rdc.classify import DiffusionClassifier
from rdc.classify.weightings import weightings
from rdc.data import load
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import plot_accuracy, style
from rdc.rng import randn
from rdc.runs.verdict import Comparison, decide_all
from rdc.schedule import (
    Levels,
    levels,
    log_normal,
    log_normal_released,
    vp_alphas,
    vp_weights,
)

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
denoiser = load_denoiser(data, device=device)
test = load(data, "test")
images, labels = test.x[:n_clean].to(device), test.y[:n_clean].to(device)
main = levels("elbo", count, sigma_min=sigma_min)

# %% [markdown]
# **Which noise levels should a diffusion classifier look at, and how much should each of them count?** One table of losses answers for every choice at once.
#
# ## Levels and weights
#
# The unweighted losses $\norm{z - D}^2$ do not depend on the weights. One call of `losses` gives them for every image, class
# and level, and every weighting is then a product of that table with a vector.
#
# Our main configuration is `levels("elbo", count, sigma_min=sigma_min)`. We append some lower levels, in the same logarithmic spacing, because
# other weightings look there too. Appending them leaves the noise of the first ones as it is, so that the table contains
# our classifier exactly.

# %%
grid, weights = weightings(count, sigma_min)
table = (
    DiffusionClassifier(
        denoiser, Levels(grid, torch.ones_like(grid)), seed=seed
    )
    .losses(images)
    .double()
    .cpu()
)
truth = labels.cpu()
print(
    f"losses of {n_clean} images: {tuple(table.shape)}, {table.numel()} "
    f"evaluations"
)

# %% tags=["hide-input"]
right = {
    name: (table * weight).sum(dim=2).argmin(dim=1) == truth
    for name, weight in weights.items()
}
clean = {name: Accuracy.of(int(r.sum()), n_clean) for name, r in right.items()}

# %% mystnb={"figure": {"caption": "Above: accuracy of a classifier that looks at one noise level only (95 % intervals), and at all of them with the ELBO weight (line). Below: how each weighting spreads its weight of the noise error over the levels.", "name": "fig-dc-weights"}, "image": {"alt": "Accuracy of single levels against sigma, and weight profiles of the weightings against sigma"}} tags=["hide-input"]
single = [
    Accuracy.of(int((table[:, :, t].argmin(dim=1) == truth).sum()), n_clean)
    for t in range(len(grid))
]
order = grid.argsort()
fig, axes = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
plot_accuracy(
    axes[0], grid[order].tolist(), [single[i] for i in order], "one level"
)
axes[0].axhline(
    100 * clean["ELBO (main)"].value,
    ls="--",
    color="C1",
    label="all levels, ELBO",
)
axes[0].axhline(100 / len(test.classes), ls=":", color="0.5", label="guessing")
axes[0].legend(loc="lower center", ncols=3)
for i, (name, weight) in enumerate(weights.items()):
    share = weight * grid**2
    axes[1].plot(
        grid[order],
        (share / share.sum())[order],
        marker=".",
        ls=["-", "--", ":"][i % 3],
        color=f"C{i}",
        label=name,
    )
axes[1].set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="share of the weight",
)
axes[1].set_ylim(-0.01, 0.75)
axes[1].legend(ncols=2, loc="upper center")
fig.tight_layout()
plt.show()

# %% [markdown]
# ### Four families of weights
#
# All are written for the denoising error $\norm{z - D}^2$, as a density over $\sigma$ ({py:mod}`rdc.schedule`).
#
# - **ELBO**: $\sigma^{-3} d\sigma$, the weight of the likelihood bound ({ref}`nb-diffusion`).
# - **EDM**: $\lambda(\sigma)\, p(\sigma)\, d\sigma$, the *training* weight of {cite:t}`karras2022elucidating`, with $\ln
#   \sigma \sim \mathcal N(P_\text{mean}, P_\text{std}^2)$.
# - **EDM as released**: the same, but with another $p$, and only up to $\sigma = 3$. We add the correct weight with the same
#   end, to tell the two differences apart.
# - **VP**: a mean over the steps of a {term}`DDPM`, with $w_t = 1$ or with the $w_t$ of the paper's Eq. 4.
#
# Only the {term}`ELBO` weight, and the $w_t$ derived below, belong to a bound on $\log p(x \mid y)$. The softmax of the others is a
# score, not a posterior.
#
# **Operator precedence.** In the released code the exponent of the log-normal ends in `** 2) / 2 * P_std**2`. Python reads this
# from left to right. The square of $P_\text{std}$ *multiplies*, where it should divide:
#
# ```{math}
# :label: eq-dc-released
# \begin{aligned}
# p(\sigma) &\propto \frac1\sigma \exp\Big( -\frac{(\ln \sigma - P_\text{mean})^2}{2 P_\text{std}^2} \Big) \\
# \text{became}\quad
# p(\sigma) &\propto \frac1\sigma \exp\Big( -\frac{P_\text{std}^2 (\ln \sigma - P_\text{mean})^2}{2} \Big).
# \end{aligned}
# ```
#
# That is a log-normal of standard deviation $1 / P_\text{std}$ and of total mass $1 / P_\text{std}^2$. The mass does not
# matter for the decision; the shape does ({numref}`fig-dc-density`).

# %% mystnb={"figure": {"caption": "The density of the noise levels in the EDM weight, per unit of $\\ln\\sigma$: as Karras et al. define it, and as the released code computes it.", "name": "fig-dc-density"}, "image": {"alt": "Two bell curves over ln sigma with the same centre; the released one is narrower", "width": "60%"}} tags=["hide-input"]
sigma = torch.logspace(-3, 1.5, 400, dtype=torch.float64)
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(sigma, sigma * log_normal(sigma), label="correct")
ax.plot(sigma, sigma * log_normal_released(sigma), "--", label="as released")
ax.set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel=r"$\sigma\, p(\sigma)$",
)
ax.legend()
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
fine = torch.logspace(-6, 4, 20001, dtype=torch.float64)
mass = {
    f.__name__: float(torch.trapezoid(f(fine) * fine, fine.log()))
    for f in (log_normal, log_normal_released)
}
print({name: round(value, 4) for name, value in mass.items()})

# %% [markdown]
# **The weight of Eq. 4.** In the bound, step $t$ contributes a divergence of two Gaussians with variance $\tilde\sigma_t^2$,
# that is $\norm{\mu_q - \mu_\theta}^2 / (2 \tilde\sigma_t^2)$. Eq. 3 of the paper gives the means. Their difference is
#
# ```{math}
# :label: eq-dc-means
# \mu_q - \mu_\theta = \sqrt{\frac{\alpha_{t-1}}{\alpha_t}}\; \frac{\sigma_t^2 - \frac{\alpha_t}{\alpha_{t-1}} \sigma_{t-1}^2}{\sigma_t}
# \, (\hat\varepsilon - \varepsilon)
# = \sqrt{\frac{\alpha_{t-1}}{\alpha_t}}\; \frac{\beta_t}{\sigma_t}\, (\hat\varepsilon - \varepsilon),
# ```
#
# because $\sigma_t^2 = 1 - \alpha_t$ and $\alpha_t = \alpha_{t-1} (1 - \beta_t)$. Squared and divided, and *summed* over $t$,
#
# ```{math}
# :label: eq-dc-wt
# w_t = \frac{\alpha_{t-1}\, \beta_t^2}{2 \tilde\sigma_t^2 (1 - \alpha_t)\, \alpha_t}
# \qquad\text{where the paper prints}\qquad
# \frac{\alpha_{t-1}\, \sigma_t}{2 \tilde\sigma_t^2 (1 - \alpha_t)\, \alpha_t} .
# ```
#
# In the printed formula $\sigma_t$ stands where $\beta_t^2$ belongs. And a sum over $t$ becomes a mean only if $w_t$ takes a
# factor $T$.

# %%
# NBVAL_CHECK_OUTPUT
alpha = vp_alphas()
printed, derived = (
    float(vp_weights(alpha, which)[499]) for which in ("printed", "derived")
)
beta, noise = float(1 - alpha[499] / alpha[498]), float((1 - alpha[499]).sqrt())
print(
    f"w_500: printed {printed:.1f}, derived {derived:.5f}, ratio "
    f"{printed / derived:.0f}"
)
print(f"sigma_t / beta_t^2 at t = 500: {noise / beta**2:.0f}")

# %% [markdown]
# A constant ratio would not matter for the decision. This one changes with $t$.
#
# To compare on one table, we bring each weighting to our grid: a fine rule of a thousand nodes, with the weight of each node
# given to the nearest level of the grid. We move the weight of the *noise* error $\norm{\hat\varepsilon - \varepsilon}^2 =
# \norm{z - D}^2 / \sigma^2$, which varies slowly. VP steps beyond the grid, where the image has drowned, are left out.

# %%
for name, value in clean.items():
    print(f"{name:28s} {value}")

# %% [markdown]
# The EDM weight looks at much higher noise than the density $p$ suggests: for the noise error it is $(1 + \sigma^2 /
# \sigma_d^2)\, p(\sigma)$, with $\sigma_d = 0.5$. The released variant looks at less noise than the intended one.
#
# A single level is a classifier, and not the best one. The levels err on different images, and the sum over levels is
# better than most of its terms ({numref}`fig-dc-weights`).
#
# ### Are two weightings different?
#
# Intervals of two accuracies on the *same* images say little about their difference. The images that both get right, or both
# wrong, carry no information on it. McNemar's exact test looks at the others: if the weightings are equally good, each image
# on which they disagree is a fair coin. Seven questions at once need a correction, here Holm's. This is the book's one rule for
# verdicts ({py:mod}`rdc.runs.verdict`).

# %%
main_right, others = right["ELBO (main)"].tolist(), list(weights)[1:]
_, verdicts_on = decide_all(
    [Comparison(main_right, right[name].tolist()) for name in others]
)
for name, verdict in zip(others, verdicts_on, strict=True):
    print(f"better than {name:28s} {verdict}")

# %% mystnb={"figure": {"caption": "Clean accuracy of the weightings, from one table of losses, with 95 % intervals.", "name": "fig-dc-weightings"}, "image": {"alt": "Accuracy with interval for each of the weightings"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for i, a in enumerate(clean.values()):
    bars = [[100 * (a.value - a.low)], [100 * (a.high - a.value)]]
    ax.errorbar(100 * a.value, -i, xerr=bars, fmt="o", color="C0", capsize=3)
ax.set(
    xlabel="accuracy (%)",
    yticks=[-i for i in range(len(clean))],
    yticklabels=list(clean),
)
fig.tight_layout()
plt.show()

# %% [markdown]
# ### Sum or mean over pixels
#
# The theorem sums the squared error over pixels. The released code takes the mean. The decision is the same, since all {term}`logits`
# are divided by one number. The softmax is not, and with it everything that uses probabilities: the cross-entropy of an
# attack, or a threshold on confidence.

# %%
logits = -(table * weights["ELBO (main)"]).sum(dim=2)
pixels = test.x[0].numel()
top = {
    "sum": logits.softmax(dim=1).amax(dim=1),
    "mean": (logits / pixels).softmax(dim=1).amax(dim=1),
}
print(
    {
        name: f"median largest probability {float(p.median()):.3f}"
        for name, p in top.items()
    }
)
print(
    "decisions differ on",
    int((logits.argmax(1) != (logits / pixels).argmax(1)).sum()),
    "images",
)

# %% tags=["remove-cell"]
p_shares = {
    name: float((weight * grid**2)[grid > 1].sum() / (weight * grid**2).sum())
    for name, weight in weights.items()
}
assert abs(mass["log_normal_released"] - 1 / 1.2**2) < 1e-3
claim(abs(printed / derived - noise / beta**2) < 1)
claim(float(top["mean"].max()) < 0.3)
assert torch.equal(logits.argmax(1), (logits / pixels).argmax(1))
claim(float(top["sum"].median()) > 0.8)
claim(clean["ELBO (main)"].value > 0.6)
claim(
    clean["ELBO (main)"].value
    >= sorted(a.value for a in single)[len(single) // 2],
    "better than most single levels",
)
claim(
    p_shares["EDM"] > p_shares["EDM as released"],
    "the released weight looks at less noise",
)
glue("dc-clean", str(clean["ELBO (main)"]))

# %% [markdown]
# ## What to remember
#
# - The released {term}`EDM` weight differs from the intended one by an operator's precedence, and the printed $w_t$ of Eq. 4 from the
#   derived one by $\sigma_t / \beta_t^2$.
# - One table of losses answers what each choice costs in accuracy; the ELBO weight has {glue:text}`dc-clean` on this page.
# - A sum over pixels is in nats, a mean is not: the decision is the same, the probabilities are not.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-dc-prior
# :::
# **Ten times as many shirts** (5 minutes, easy). A shop sells ten times as many shirts as anything else. Add $\log \pi_y$ to `logits` (the classifier itself does it with `prior=`). How
# many decisions change with summed logits, and how many with their mean over `pixels`? Which of the two follows Bayes' rule?
#
# :::{hint}
# :class: dropdown
# In which unit is $\log \pi$? `test.classes.index("Shirt")` is the place of the shirts.
# :::

# %%
# your code here
changed_by = {"sum": None, "mean": None}

# %%
# check
shirt = test.classes.index("Shirt") if "Shirt" in test.classes else 0
wanted = {}
for name, f in (("sum", logits), ("mean", logits / pixels)):
    behind = f.amax(dim=1) - f[:, shirt]
    close_behind = (behind > 0) & (behind.exp() < 10)
    wanted[name] = int(close_behind.sum())
fine = close_to(changed_by, wanted, within=0)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-prior
# :label: sol-dc-prior
# :class: dropdown
# :::
# Only the sum is in nats, so only there $\log \pi$ has the right size: $\ln 10$ is 2.3 nats, less than most gaps.
# With the mean the same prior outweighs almost everything.

# %%
prior = torch.ones(len(test.classes), dtype=torch.float64)
prior[test.classes.index("Shirt") if "Shirt" in test.classes else 0] = 10
for name, f in (("sum", logits), ("mean", logits / pixels)):
    changed = (f + prior.log()).argmax(1) != f.argmax(1)
    changed_by[name] = int(changed.sum())
    print(f"{name:4s} {changed_by[name]} of {n_clean} decisions change")

# %% tags=["remove-cell"]
claim(changed_by["sum"] < 10 < 50 < changed_by["mean"])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-calibration
# :::
# **Too sure?** (10 minutes, medium). Is the softmax of `logits`, {eq}`eq-dc-posterior`, a probability? Find the temperature that minimises the mean cross-entropy on the first half of the images. On the second half, compare mean confidence
# (the largest probability) with accuracy, before and after.
#
# :::{hint}
# :class: dropdown
# A grid such as `torch.logspace(-1, 3, 100)` and `cross_entropy(logits / t, truth)` will do.
# :::

# %%
# your code here
best_temperature = None
confidence = {"before": None, "after": None}

# %%
# check
fine = close_to(best_temperature, 2.8, within=0.25)
fine = fine and close_to(confidence["before"], 0.95, within=0.01)
fine = fine and close_to(confidence["after"], 0.80, within=0.02)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-calibration
# :label: sol-dc-calibration
# :class: dropdown
# :::
# A temperature above 1 says that the raw softmax is too sure of itself. Even for a perfect bound, noise in the losses has
# this effect.

# %%
first, second = slice(0, n_clean // 2), slice(n_clean // 2, n_clean)
temperatures = torch.logspace(-1, 3, 100, dtype=torch.float64)
scores = torch.stack(
    [
        cross_entropy(logits[first] / t, truth[first]).mean()
        for t in temperatures
    ]
)
best_temperature = float(temperatures[scores.argmin()])
for when, t in (("before", 1.0), ("after", best_temperature)):
    p = (logits[second] / t).softmax(dim=1)
    hit = (p.argmax(1) == truth[second]).double()
    confidence[when] = float(p.amax(1).mean())
    print(
        f"temperature {t:.1f}: confidence {confidence[when]:.2f}, accuracy "
        f"{float(hit.mean()):.2f}"
    )

# %% tags=["remove-cell"]
claim(best_temperature > 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-dc-unconditional
# :::
# **Told nothing** (15 minutes, hard). In training the class was hidden for one image in ten, so `denoiser(z, sigma)` without a label estimates $\E[z \mid
# z_\sigma]$. For the optimal denoiser $\E[z \mid z_\sigma] = \sum_y p(y \mid z_\sigma)\, D(z_\sigma, \sigma, y)$. Where does
# the loss of the unconditional network lie between those of the true class and of the other classes, level by level? Compute its mean over `images[:n_small]` for the levels `main.sigma`.
#
# :::{hint}
# :class: dropdown
# The noise of the classifier has the key `seed, 0, t, 0, 0`: `randn(denoiser.shape, seed, 0, t, 0, 0, like=z)`. The losses of the classes are in `table`.
# :::

# %%
# your code here
free_loss = None  # one number a level

# %%
# check
fine = np.shape(free_loss) == (count,)
fine = fine and close_to(free_loss[0], 2.2, within=0.1)
fine = fine and close_to(free_loss[-2], 272, within=10)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-dc-unconditional
# :label: sol-dc-unconditional
# :class: dropdown
# :::
# At low noise the image names its own class, and the label adds next to nothing. At high noise the label is most of what the
# network knows. Between them it may even fall below the loss of the true class: the network is not the optimal denoiser,
# and the images are few.

# %%
z, rows = to_model(images[:n_small]), []
conditional = table[:n_small, :, :count]
for t, s in enumerate(main.sigma.tolist()):
    with torch.no_grad():
        estimate = denoiser(
            z + s * randn(denoiser.shape, seed, 0, t, 0, 0, like=z), s
        )
    rows.append((z - estimate).square().flatten(1).sum(1).cpu())
free_loss = torch.stack(rows, dim=1).mean(dim=0)
true_loss = conditional.gather(
    1, truth[:n_small, None, None].expand(-1, 1, count)
).mean(dim=(0, 1))
other_loss = (conditional.sum(dim=1).mean(dim=0) - true_loss) / (
    len(test.classes) - 1
)
for t in range(0, count, max(1, count // 8)):
    print(
        f"sigma {main.sigma[t]:7.3f}: true class {true_loss[t]:7.2f}, no class "
        f"{free_loss[t]:7.2f}, other classes {other_loss[t]:7.2f}"
    )

# %% tags=["remove-cell"]
claim(true_loss[-1] < free_loss[-1] < other_loss[-1])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The weight of the bound: {cite:t}`kingma2021vdm`; of the training: {cite:t}`karras2022elucidating`; the VP steps: {cite:t}`ho2020ddpm`. The released code is
# that of {cite:t}`chen2024rdc`.
