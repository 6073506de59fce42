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
# (nb-certified)=
# # Certified accuracy
#
# :::{admonition} What you will be able to do
# :class: tip
# - Bound the slope of a {term}`diffusion classifier` without knowing its network, and say why the radius from it is small.
# - Judge the claims on certified robustness from measured numbers.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-noised`. Covers the {term}`Lipschitz` bound and the certification experiments of {cite:t}`chen2024ndc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set
heads_name: str = "fashion-mini-multihead"  # the denoiser of the certificate on this page: all classes in one pass
radii: list[str | float] = [0.25, 0.5, 0.75, 1.0]  # radii asked about, image units
n_slopes: int = 16  # random data sets whose slopes are climbed

# %% tags=["hide-input"]
import itertools
import math
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from rdc.certify import empirical_slope, lipschitz_constant
from rdc.certify.clopper_pearson import reach
from rdc.certify.grid import gaussian_grid
from rdc.certify.lipschitz import certified_radius
from rdc.certify.results import certified
from rdc.certify.results import radii as radii_of
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, glue, show_table, show_verdicts, stored_cells
from rdc.plots import style
from rdc.rng import generator
from rdc.runs.statistics import Accuracy
from rdc.runs.verdict import Comparison, Verdict, decide, decide_all
from rdc.schedule import Levels, levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
test = load(data, "test")
classes = len(test.classes)

# %% [markdown]
# (sec-cert-lipschitz)=
# ## Without smoothing: the Lipschitz bound
#
# {cite:t}`chen2024ndc` observe that the diffusion classifier is smooth by itself: its {term}`logits` are expectations over Gaussian noise. If a logit changes by at
# most $L$ per unit of distance, a {term}`margin` of $M$ lasts for $M / (2L)$.
#
# **Assumptions.** Denoised images and images lie in the box $[-1, 1]^d$ (clip the network). The expectation over the noise is exact. Weights are not negative.
# The network need not be continuous.
#
# :::{prf:proposition} Lipschitz constants of the diffusion classifier
# :label: prop-cert-lipschitz
# Let $d$ be the number of pixels and $f_k(x) = -\sum_t w_t \E \norm{D(z + \sigma_t \varepsilon, \sigma_t, k) - z}^2$. On images in $[0, 1]^d$ every logit, and
# every difference of two, have the Lipschitz constants
#
# $$
# L = 8 d \sum_t w_t \Big( \frac{1}{\sqrt{2 \pi}\, \sigma_t} + \frac{1}{\sqrt d} \Big), \qquad
# L_\Delta = 8 d \sum_t w_t \Big( \sqrt{\frac2\pi}\, \frac{1}{\sigma_t} + \frac{1}{\sqrt d} \Big) \le 2 L .
# $$
# :::
#
# :::{prf:proof}
# Put $g = \norm{D - z}^2 / (4d) \in [0, 1]$ and $m = \E g$, so that $f = -4d \sum_t w_t m_t$. The point $z$ enters $m$ twice: as the place of the noise, and as
# the target.
#
# *The place.* For a bounded function the derivative can be moved to the Gaussian density:
# $\nabla_z \E g(z + \sigma \varepsilon) = \frac1\sigma \E[g\, \varepsilon]$ (Stein). For a unit vector $v$ and $0 \le g \le 1$, $\E[g\, \varepsilon \cdot v]$
# is largest if $g$ is 1 where $\varepsilon \cdot v > 0$ and 0 elsewhere (rearrangement). Its value is $\E(\varepsilon \cdot v)_+ = 1 / \sqrt{2 \pi}$.
#
# *The target.* Its derivative is $-\frac{1}{2d} \E[D - z]$, and $\norm{D - z} \le 2 \sqrt d$.
#
# Together $\norm{\nabla_z m} \le \frac{1}{\sqrt{2\pi} \sigma} + \frac{1}{\sqrt d}$, and $z = 2x - 1$ gives another factor 2. For a difference of two classes,
# $g_j - g_k \in [-1, 1]$ and $\E |\varepsilon \cdot v| = \sqrt{2 / \pi}$, and $\norm{D_j - D_k} \le 2 \sqrt d$.
# :::
#
# So $R = M / L_\Delta$. For probabilities, $\nabla p_y = p_y \sum_j p_j \nabla (f_y - f_j)$, hence
# $\norm{\nabla p_y} \le p_y (1 - p_y) L_\Delta \le L_\Delta / 4$. A softmax divides by a constant; it does not make anything robust.
#
# **The constant of the paper**, $(1 + \sqrt{2/\pi}) \sum_t w_t / \sigma_t$ for losses averaged over pixels, is no bound where networks see $[-1, 1]$ and images
# are $[0, 1]$. A {term}`denoiser` that jumps across a plane is a counterexample, in closed form ({ref}`ex-cert-half-space`). The released script takes the *mean* over
# levels where the logits are a *sum*.


# %%
def one_level(s: float) -> Levels:
    """One noise level of weight 1."""
    return Levels(torch.tensor([s], dtype=torch.float64), torch.ones(1, dtype=torch.float64))


def half_space_slope(s: float, d: int, h: float = 1e-5) -> float:
    """Slope of one term, mean over pixels, at the white corner, for a denoiser that says all black or all white on two sides of a plane."""

    def m(
        t: float,
    ) -> np.ndarray:  # normalised losses of two opposite classes at the image 1 - t / sqrt(d)
        black, pixel = np.array([ndtr(-2 * t / s), ndtr(2 * t / s)]), 1 - 2 * t / math.sqrt(d)
        return (black * (pixel + 1) ** 2 + (1 - black) * (pixel - 1) ** 2) / 4

    return float(np.abs(m(h) - m(0)).max() * 4 / h)


size = test.x[0].numel()
many_sigma = np.logspace(-1, 1, 25)
curves: dict[str, np.ndarray] = {}
for name, kind in (("rigorous bound", "rigorous"), ("the paper's constant", "paper")):
    curves[name] = np.array(
        [lipschitz_constant(one_level(s), size, kind, reduce="mean") for s in many_sigma]
    )
curves["reached by a half-space"] = np.array([half_space_slope(s, size) for s in many_sigma])
excess = curves["reached by a half-space"] / curves["the paper's constant"]
print(
    f"half-space over the paper's constant: {excess.min():.2f} ... {excess.max():.2f}; over the rigorous bound at most "
    f"{(curves['reached by a half-space'] / curves['rigorous bound']).max():.3f}"
)
script_sigma = torch.linspace(0.5, 3, 126, dtype=torch.float64)[1:-1]
script = Levels(script_sigma, torch.ones_like(script_sigma))
constants = {
    kind: lipschitz_constant(script, 3072, kind, reduce="mean")
    for kind in ("rigorous", "paper", "released")
}
print(
    "the released script's 124 levels, w = 1, 3072 pixels:",
    ", ".join(f"{k} {v:.2f}" for k, v in constants.items()),
    f"; rigorous over released {constants['rigorous'] / constants['released']:.0f}",
)
glue("cert-half-space", f"{excess.max():.2f}")
glue("cert-released-constant", f"{constants['rigorous'] / constants['released']:.0f}")

# %% [markdown]
# Is the bound ever exceeded? We climb the slope on random data sets of two pixels, where the expectation is a sum over a grid.


# %% tags=["hide-input"]
class Exact(nn.Module):
    """The diffusion classifier of two pixels with the exact expectation over the noise."""

    def __init__(self, denoiser: OptimalDenoiser, levels: Levels) -> None:
        super().__init__()
        self.denoiser, self.levels = denoiser, levels
        self.eps, self.chance = gaussian_grid(33)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        z, logits = to_model(x), 0.0
        for s, w in zip(self.levels.sigma.tolist(), self.levels.weight.tolist(), strict=True):
            found = self.denoiser.all_classes(
                (z[:, None] + s * self.eps).flatten(0, 1), s
            ).unflatten(0, (len(z), -1))
            error = (found - z[:, None, None]).square().flatten(3).sum(dim=3)  # (N, nodes, K)
            logits = logits - w * torch.einsum("ngk,g->nk", error, self.chance)
        return logits


slopes: dict[bool, list[float]] = {False: [], True: []}
for i in range(n_slopes):
    rand = partial(
        torch.rand, generator=generator(seed, "certify", "slopes", i), dtype=torch.float64
    )
    x_set = rand(5, 1, 1, 2)
    x_set = (
        (x_set + 0.5).floor() if i % 2 else x_set
    )  # every other set in the corners of the box, where slopes are largest
    some, start = Levels(0.4 + 1.5 * rand(3).sort().values, 0.1 + rand(3)), rand(3, 1, 1, 2)
    model = Exact(OptimalDenoiser(x_set, torch.arange(5) % 2), some)
    label = torch.zeros(3, dtype=torch.int64)
    for difference in slopes:
        climbed = empirical_slope(
            model, start, label, 1 - label if difference else None, steps=4, size=0.15, seed=seed
        )
        slopes[difference] += (
            climbed / lipschitz_constant(some, 2, difference=difference)
        ).tolist()
for difference, values in slopes.items():
    what = "difference of logits" if difference else "one logit"
    print(
        f"{what:20s} slope over its bound: median {np.median(values):.3f}, largest {max(values):.3f}, {len(values)} starts"
    )

# %% mystnb={"figure": {"caption": "Left: Lipschitz constant of one term with weight 1, mean over pixels, by its noise level: the rigorous bound, what a half-space denoiser reaches, and the paper's constant. Right: steepest slopes met on random data sets, as a share of the bound.", "name": "fig-cert-lipschitz"}, "image": {"alt": "The half-space curve lies just below the rigorous bound and above the paper's constant at low noise; a histogram of slopes lies below one"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
for (name, v), ls in zip(curves.items(), ("-", "--", ":"), strict=True):
    axes[0].plot(many_sigma, v, ls, label=name)
axes[0].set(
    xscale="log",
    yscale="log",
    xlabel=r"noise level $\sigma_t$ (model units)",
    ylabel="slope, image units",
)
axes[0].legend(fontsize=8)
axes[1].hist(
    [slopes[False], slopes[True]], bins=np.linspace(0, 1, 21), label=["one logit", "difference"]
)
axes[1].axvline(1, color="k", lw=1)
axes[1].set(xlabel="slope / bound", ylabel="walks")
axes[1].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
worst_slope = max(max(v) for v in slopes.values())
claim(worst_slope <= 1 and excess.max() > 1.5)
claim((curves["reached by a half-space"] <= curves["rigorous bound"] * (1 + 1e-6)).all())

# %% [markdown]
# The half-space exceeds the paper's constant by a factor of up to {glue:text}`cert-half-space` and stays below the rigorous one. The constant of the released
# script is {glue:text}`cert-released-constant` times smaller than the rigorous constant for what it is used with, so its radii are larger by that factor than
# the bound allows.
#
# ### The local form
#
# The bound is for the worst function. At an image where a loss is small, $m \ll 1$, the slope must be small too. For a fixed target, $m$ is a function with
# values in $[0, 1]$ under Gaussian noise, and the proof of {prf:ref}`thm-cert-cohen` says that $\Phi^{-1}(m)$ is $1/\sigma_t$-Lipschitz. Moving the target by
# $r$ (model units) changes $\sqrt m = \big( \E \norm{D - z}^2 \big)^{1/2} / (2 \sqrt d)$ by at most $r / (2 \sqrt d)$, the triangle inequality. So within a
# distance of $r$
#
# ```{math}
# :label: eq-cert-local
# \Big( \sqrt{\Phi(\Phi^{-1}(m_t) - \tfrac{r}{\sigma_t})} - \tfrac{r}{2 \sqrt d} \Big)_+^2 \;\le\; m_t \;\le\; \Big( \sqrt{\Phi(\Phi^{-1}(m_t) + \tfrac{r}{\sigma_t})} + \tfrac{r}{2 \sqrt d} \Big)^2 ,
# ```
#
# and the {term}`certified radius` is the largest at which the weighted lower ends of every rival still exceed the upper ends of the class
# ({py:func}`rdc.certify.lipschitz.certified_radius`, by bisection).
#
# **Confidence.** The expectation over the noise is not available either. {py:func}`rdc.certify.lipschitz_certificate.lipschitz_certify` bounds the margin from $n$ fresh
# draws, with a bound for means of bounded numbers ({py:mod}`rdc.certify.betting_bound`): its error is at least about $\log(1/\alpha) / n$ of the *range*, and here lies
# the trouble.
#
# ### Why it is tiny on images
#
# The constant grows with the range $4d$ of a loss, the margin with the part of that range in which two classes differ. We compute both, the margin from a few
# draws and *without* any confidence bound, for the {term}`multi-head` network and several lowest levels.

# %%
heads = load_denoiser(heads_name, device=device, dtype=fast_dtype(device))
x_margin, y_margin = test.x[:6].to(device), test.y[:6].tolist()
tiny: list[dict[str, Any]] = []
for low_level in (0.1, 0.5, 1.0, 2.0):
    chosen_levels = levels("elbo", 8, sigma_min=low_level)
    model = DiffusionClassifier(heads, chosen_levels, draws=2, seed=seed)
    with torch.no_grad():
        m = model.losses(x_margin).double().cpu().numpy() / (4 * size)  # (N, K, T) in [0, 1]
    w = chosen_levels.weight.numpy()
    total, constant_of = (
        (m * w).sum(axis=2),
        lipschitz_constant(chosen_levels, size, difference=True),
    )
    margin_share = [
        float(np.delete(row, k).min() - row[k]) / w.sum()
        for row, k in zip(total, y_margin, strict=True)
    ]
    local = [
        certified_radius(a[k], np.delete(a, k, axis=0), chosen_levels, size)
        for a, k in zip(m, y_margin, strict=True)
    ]
    share, top_margin = float(np.median(margin_share)), 4 * size * w.sum()
    tiny.append(
        {
            "lowest level": low_level,
            "L of a difference": f"{constant_of:,.0f}",
            "range of the margin": f"{top_margin:,.0f}",
            "median margin": f"{top_margin * share:.1f}",
            "its share of the range": f"{share:.5f}",
            "radius, global": f"{max(0.0, top_margin * share) / constant_of:.5f}",
            "radius, local": f"{np.median(local):.4f}",
            "radius if it filled the range": f"{top_margin / constant_of:.2f}",
        }
    )
print(f"{len(x_margin)} images, medians; nats, and radii in image units")
show_table(tiny)

# %% [markdown]
# A class is told from another by a small part of the loss that is possible. Higher levels help the constant, and take away what the classes differ in. The last
# column shows what the bound could give to a classifier that uses its whole range: the theorem is not empty, the margins are small.
#
# With a confidence bound, from stored cells:

# %% tags=["hide-input"]
(lip,) = stored_cells("certificates-lipschitz")
lowest, count = lip.row.options["sigma_min"], lip.row.options["levels"]
lip_levels = levels("elbo", count, sigma_min=lowest)
constants = {k: lipschitz_constant(lip_levels, 784, k) for k in ("rigorous", "paper", "released")}
constants["difference"] = lipschitz_constant(lip_levels, 784, difference=True)
numbers = {
    k: np.array(list(lip.value(k).values())) for k in ("margin", "radius local", "radius global")
}
lip_right = np.array(list(lip.outcome("right").values()))
exact = numbers.pop("margin").clip(0) / constants["difference"]
lip_radii = {
    k: np.where(lip_right, v, 0.0) for k, v in {"radius if exact": exact, **numbers}.items()
}
print(
    f"{lip.n} images, {count} levels from {lowest}, n = {lip.row.arguments['n']} draws of all levels"
)
print("constants:", ", ".join(f"{k} {v:,.0f}" for k, v in constants.items()))
for key, values in lip_radii.items():
    positive = Accuracy.of(int((values > 0).sum()), len(values))
    print(
        f"{key:16s} median {np.median(values):.5f}, largest {values.max():.5f}; right and positive for {positive}"
    )

# %% [markdown]
# (sec-cert-curves)=
# ## Certified accuracy
#
# An image counts as certified at a radius if the smoothed class is right *and* its radius is at least that. The curve of a base classifier falls with the
# radius, and ends at the latest where {numref}`fig-cert-reach` says.
#
# | base | what it is |
# |---|---|
# | EPNDC, APNDC | the noised diffusion classifiers, no training for the noise |
# | Carlini | one step of the denoiser without class, then a network for clean images |
# | Cohen | a network trained with that noise |
# | Cascade | EPNDC with heads, then with a single head for close classes |
# | Race | some of EPNDC's 124 levels, the first with heads, until one class is left |
# | DC, clipped | the clean diffusion classifier on the clipped noisy image |
# | DC + Lipschitz | no smoothing: the local form above |


# %% tags=["hide-input"]
def words_of(f: Any) -> tuple[float, int, str]:
    """Smoothing noise, draws, and base of a row."""
    return f.row.about["sigma"], f.row.arguments["n"], f.row.about["base"]


def limit_of(f: Any) -> float:
    """The largest radius that the draws of a row can certify."""
    return reach(f.row.arguments["n"], f.row.arguments["sigma"], f.row.arguments["alpha"])


def share_at(f: Any, r: float) -> Accuracy:
    """Certified accuracy of a row at any radius."""
    return Accuracy.of(sum(certified(f, r)), f.n)


curve_cells = sorted(stored_cells("certificates-curves"), key=words_of)
curve_sigmas = sorted({words_of(f)[0] for f in curve_cells})
show_table(
    [
        {k: f.row.about[k] for k in ("base", "denoiser", "sigma")}
        | {"n": f.row.arguments["n"]}
        | {f"R = {r:g}": str(share_at(f, r)) if r <= limit_of(f) else "-" for r in (0, *radii)}
        for f in curve_cells
    ],
    "Certified accuracy",
)

# %% mystnb={"figure": {"caption": "From stored cells: certified accuracy against the radius, one panel for each smoothing noise, with 95 % Wilson intervals. The dotted line is the largest radius that the number of draws can certify.", "name": "fig-cert-curves"}, "image": {"alt": "Falling staircases of certified accuracy against the radius, one panel for each smoothing noise"}} tags=["hide-input"]
names = ("EPNDC", "APNDC", "Carlini", "Cohen", "Cascade", "DC, clipped", "Race")
colours = {name: f"C{i}" for i, name in enumerate(names)}
fig, axes = plt.subplots(1, len(curve_sigmas), figsize=(3.4 * len(curve_sigmas), 3.4), sharey=True)
for ax, s in zip(axes, curve_sigmas, strict=True):
    mine = [f for f in curve_cells if words_of(f)[0] == s]
    grid = np.linspace(0, 1.08 * max(map(limit_of, mine)), 120)
    for f in mine:
        _, n, base = words_of(f)
        name, ls = (base, "-") if n == words_of(mine[0])[1] else (f"{base}, n = {n:,}", "--")
        shares = [share_at(f, r) for r in grid]
        low, middle, high = (
            100 * np.array([getattr(a, k) for a in shares]) for k in ("low", "value", "high")
        )
        ax.plot(grid, middle, color=colours[base], ls=ls, label=name)
        ax.fill_between(grid, low, high, color=colours[base], alpha=0.1, lw=0)
        ax.axvline(limit_of(f), color="0.4", ls=":", lw=1)
    lipschitz = [100 * np.mean(lip_radii["radius local"] >= max(r, 1e-12)) for r in grid]
    ax.plot(grid, lipschitz, color="0.3", ls=":", label="DC + Lipschitz")
    ax.set(title=rf"$\sigma$ = {s:g}", xlabel="radius (image units)", ylim=(0, 103))
axes[0].set_ylabel("certified accuracy (%)")
fig.tight_layout()
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, fontsize=8, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 0.02))
plt.show()

# %% [markdown]
# What a {term}`certificate` costs: passes for a noisy image, noisy images (`calls`), seconds for a certificate.

# %% tags=["hide-input"]
show_table(
    [
        {k: f.row.about[k] for k in ("base", "denoiser", "sigma", "levels")}
        | {"passes": f.mean("passes"), "calls": f.row.arguments["n0"] + f.row.arguments["n"]}
        | {"seconds": f.seconds / f.n, "abstained": int((radii_of(f) == 0).sum())}
        for f in curve_cells
    ],
    "Costs of a certificate",
)

# %% [markdown]
# (sec-cert-verdict)=
# ## Verdicts
#
# From this page and from stored cells. Comparisons of certified accuracy are exact {term}`McNemar` tests on the same images, at every smoothing noise and every radius of
# the paper that the draws can reach; those of one claim are corrected together, and it holds only if all of them do ({py:mod}`rdc.runs.verdict`).

# %% tags=["hide-input"]
PAPER_RADII = (0.25, 0.5, 0.75)
comparisons: list[dict[str, Any]] = []


def compare(first: str, second: str) -> Verdict:
    """Whether one base certifies more than another, at the largest n that both have."""
    found, at = [], []
    for s, r in itertools.product(curve_sigmas, PAPER_RADII):
        rows = [
            [f for f in curve_cells if words_of(f)[::2] == (s, base)] for base in (first, second)
        ]
        pairs = [(a, b) for a, b in itertools.product(*rows) if words_of(a)[1] == words_of(b)[1]]
        if pairs and r <= limit_of(pairs[-1][0]):
            found.append(Comparison(*(certified(f, r) for f in pairs[-1])))
            at.append({"first": first, "second": second, "sigma": f"{s:g}", "R": f"{r:g}"})
    together, each = decide_all(found)
    for one, v in zip(at, each, strict=True):
        comparisons.append(
            one
            | {"only the first, only the second": v.reason, "p": f"{v.p:.2g}", "alone": v.outcome}
        )
    return together


reached = int((lip_radii["radius local"] >= PAPER_RADII[0]).sum())
lone = [
    share_at(f, PAPER_RADII[0])
    for f in curve_cells
    if words_of(f)[::2] in ((0.25, "EPNDC"), (0.25, "APNDC"))
]
verdicts = {
    "B1 the Lipschitz bound certifies most images at R = 0.25": decide((reached, lip.n), bound=0.5),
    "B3 APNDC certifies more than EPNDC": compare("APNDC", "EPNDC"),
}
for ndc, rival in itertools.product(("APNDC", "EPNDC", "Cascade", "Race"), ("Carlini", "Cohen")):
    verdicts[f"B4 {ndc} certifies more than {rival}"] = compare(ndc, rival)
chance = [Comparison((a.correct, a.n), bound=1 / classes) for a in lone]
verdicts["B5 EPNDC and APNDC, one diffusion model, are above chance at R = 0.25"] = decide_all(
    chance
)[0]
show_verdicts(verdicts)
passes = {words_of(f)[2]: f.mean("passes") for f in curve_cells if words_of(f)[0] == 0.25}
print(f"B3: APNDC takes {passes['APNDC'] / passes['EPNDC']:.2f} times the passes of EPNDC.")
print(f"B1: steepest slope met on this page, {worst_slope:.2f} of the proved bound;")
print(f"    the paper's constant is exceeded by a factor of {excess.max():.2f}.")

# %% tags=["hide-input", "hide-output"]
show_table(comparisons, "The comparisons behind B3 and B4")

# %% [markdown]
# :::{admonition} What these numbers are not
# :class: warning
# They are Fashion-MNIST and a small network. {cite:t}`chen2024ndc` report 82.2, 70.7 and 54.5 % at radii 0.25, 0.5 and 0.75 on CIFAR-10. We did
# not run that, and nothing here confirms or refutes it. Certified accuracies at the same radius are comparable only for the same data, $n$ and $\alpha$.
# :::

# %% [markdown]
# ### What was not run
#
# - CIFAR-10 and ImageNet, in any form; the networks of the paper.
# - The theorem numbers of the paper are not cited. "As released" is commit 410b09f of its code.
#
# ## Summary
#
# - The diffusion classifier is Lipschitz whatever its network. The constant is large and the margins are small, so the radius is tiny.
# - A comparison of certified accuracies needs the same images, $n$, $\alpha$ and radius, and more images than these.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-half-space
# :::
# **A denoiser that reaches the bound** (20 minutes, hard). Let $z^* = (1, \dots, 1)$ be the white image. Class 0's
# denoiser answers all black if $(z_\sigma - z^*) \cdot \mathbf 1 > 0$ and all white otherwise. Compute its loss at the
# images $x(t) = \mathbf 1 - t\, \mathbf 1 / \sqrt d$, find the slope of the logit at $t = 0$, and compare with $L$ for
# one level. Which part of the bound is not reached?
#
# :::{hint}
# :class: dropdown
# At $x(t)$ every pixel is $1 - 2t / \sqrt d$ in model units, and the plane lies at a distance of $2t$: black comes with
# probability $\Phi(-2t / \sigma)$.
# :::

# %%
# your code here
def closed(s: float) -> float | None:
    """The slope at noise level s, for d = size pixels."""
    return None


# %%
# check
found = {s: closed(s) for s in (0.1, 0.5, 2.0)}
fine = None not in found.values() and all(
    abs(half_space_slope(s, size) / value - 1) < 1e-3
    for s, value in found.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-half-space
# :label: sol-cert-half-space
# :class: dropdown
# :::
# With $p = \Phi(2t / \sigma)$ a quarter of the mean squared error of a pixel is
#
# $$
# m(t) = (1 - p) \Big( 1 - \frac{t}{\sqrt d} \Big)^2 + p\, \frac{t^2}{d}, \qquad
# m'(0) = -\frac{2}{\sqrt{2 \pi}\, \sigma} - \frac{1}{\sqrt d} .
# $$
#
# The slope of the logit is $4 d\, |m'(0)| = 8 d \big( \frac{1}{\sqrt{2\pi} \sigma} + \frac{1}{2 \sqrt d} \big)$, over
# $d$ for the mean over pixels. The first term is reached exactly. Of the second, half: at the border black is answered
# half the time only, so $\norm{\E[D - z]}$ is $\sqrt d$ and not $2 \sqrt d$.

# %%
def closed(s: float) -> float:
    """The slope at noise level s, for d = size pixels."""
    return 8 * (1 / (math.sqrt(2 * math.pi) * s) + 1 / (2 * math.sqrt(size)))


for s in (0.1, 0.5, 2.0, 10.0):
    bound = lipschitz_constant(one_level(s), size, reduce="mean")
    share = closed(s) / bound
    print(f"sigma {s:4g}: {closed(s):.4f}, of the bound {share:.3f}")

# %% tags=["remove-cell"]
claim(abs(half_space_slope(10.0, size) / closed(10.0) - 1) < 1e-3)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-reach
# :::
# **How much noise?** (10 minutes, easy). How many draws, all of the right class, certify an L2 radius of 1 at $\alpha =
# 0.001$ with $\sigma = 0.25$, and how many with $\sigma = 0.5$? What is the price of the larger $\sigma$?
#
# :::{hint}
# :class: dropdown
# If all $n$ succeed the bound is $\alpha^{1/n}$, and the radius $\sigma\, \Phi^{-1}(\alpha^{1/n})$. In float64,
# `ndtr(-r)` is exact where `1 - ndtr(r)` is not.
# :::

# %%
# your code here
draws = {0.25: None, 0.5: None}

# %%
# check
fine = None not in draws.values() and all(
    reach(n, s, 0.001) >= 0.9999 > reach(0.99 * n, s, 0.001)
    for s, n in draws.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-reach
# :label: sol-cert-reach
# :class: dropdown
# :::
# $n = \ln \alpha / \ln \Phi(r / \sigma)$: a radius of $4 \sigma$ takes hundreds of times the draws of one of $2
# \sigma$. But the classifier sees more noise with the larger $\sigma$, is right less often, and loses the images whose
# probability is not close to 1.

# %%
for s in draws:
    draws[s] = math.ceil(math.log(0.001) / math.log1p(-ndtr(-1 / s)))
    print(f"sigma {s}: {draws[s]} draws")

# %% tags=["remove-cell"]
claim(draws[0.25] > 100 * draws[0.5])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-images
# :::
# **How many images?** (10 minutes, medium). Two certificates hold for 60 % and 55 % of the images, and differ (one
# holds, the other one does not) for 15 % of them. How many images must be judged by both, so that 1.96 standard errors
# of the difference are less than 5 points? How many, if each is judged on images of its own?
#
# :::{hint}
# :class: dropdown
# Paired, the difference of an image is 1, 0 or -1: its variance is $0.15 - 0.05^2$. Unpaired, two binomial variances
# add.
# :::

# %%
# your code here
paired_n, unpaired_n = None, None

# %%
# check
fine = None not in (paired_n, unpaired_n)
fine = fine and abs(paired_n - 227) <= 4 and abs(unpaired_n - 749) <= 8
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-images
# :label: sol-cert-images
# :class: dropdown
# :::
# Pairs need less than a third. The same images are easy for both, and that common part drops out. All comparisons of
# this book are paired.

# %%
factor = (1.96 / 0.05) ** 2
paired_n = math.ceil(factor * (0.15 - 0.05**2))
unpaired_n = math.ceil(factor * (0.6 * 0.4 + 0.55 * 0.45))
print(f"paired {paired_n}, unpaired {unpaired_n} of each")

# %% tags=["remove-cell"]
claim(3 * paired_n < unpaired_n)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The Lipschitz bound: {cite:t}`chen2024ndc`; {term}`randomized smoothing`: {cite:t}`cohen2019certified`; denoise, then classify: {cite:t}`salman2020denoised` and
# {cite:t}`carlini2023certified`. The images are those of {cite:t}`xiao2017fashion`.
