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
# (nb-lm)=
# # Likelihood maximisation and RDC
#
# :::{admonition} What you will be able to do
# :class: tip
# - Name the different procedures that have been called "likelihood maximisation", and say how far each moves an image.
# - Derive what the loss of one noise level measures, and compute what descending it does to the exact likelihoods.
# - Differentiate through an optimisation, and say where the identity is a fair stand-in for its Jacobian and where it is not.
# - Attack the robust diffusion classifier with four gradients, and read off what likelihood maximisation adds to it.
# - Compare two attacks on the same images with an exact test.
# :::
#
# **Time** 75 minutes · **Needs** {ref}`nb-optimal`, {ref}`nb-classifier`, {ref}`nb-adaptive` and {doc}`/book/notation`.
# Covers sections 3.4 and 4.4, Eq. 8, Algorithm 1, Table 2, Figure 2(b) and appendices A.4, A.5 and B.2 of {cite:t}`chen2024rdc`.
#
# The numbers on this page come from few images, so that the page runs in minutes; every table says how many. The larger runs are
# read
# from a record.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
n_move: int = 24  # images for the displacement of every reading
n_train: int = 2000  # training images in the optimal denoiser
n_lab: int = 60  # test images in the laboratory
eps_lab: str | float = 24 / 255  # Linf radius there, image units
n_jacobian: int = 12  # images for the study of gradients
n_attack: int = 16  # images for attacks on RDC and DC
steps: int = 6  # gradient steps of those attacks
eps: str | float = 8 / 255  # Linf radius, image units
lm_steps: list[int] = [1, 5]  # steps N of likelihood maximisation that are attacked
n_fresh: int = 6  # images for attacks on RDC with fresh noise
eot: int = 2  # calls averaged there
draws: int = 5  # fresh verdicts there
n_static: int = 36  # images for the comparison at equal displacement
n_purify: int = 12  # images for the comparison with DiffPure
audit_file: str = "results/rdc_audit.json"  # the audit of their attacks

# %%
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy.stats import binomtest
from torch import Tensor

from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.classify.energy import class_normalisers
from rdc.classify.score_gradient import pathwise_gradient, score_gradient
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.defend.lm_updates import EPS, METHODS, memory_size, update
from rdc.denoise import OptimalDenoiser
from rdc.denoise.base import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy
from rdc.notebook import check_parameters, claim, glue, stored_rows
from rdc.plots import image_grid, plot_accuracy, style
from rdc.rng import randn
from rdc.runs.record import stored_record
from rdc.schedule import levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
train, test = load(data, "train"), load(data, "test")
heads = load_denoiser(f"{data}-multihead", device=device, dtype=fast_dtype(device))
classifier = DiffusionClassifier(heads, levels("elbo", count, sigma_min=0.1), seed=seed, chunk=2560)
size = test.x[0].numel()

# %% [markdown]
# The first thing on this page is its result. A longer run compared the gradients that an attacker may take, on the same images;
# its
# record is read here.

# %% tags=["hide-input"]
Row = dict[str, Any]
stored: list[Row] = stored_rows("rdc-gradient", "rdc-suite", "rdc-settings", "rdc-attacks", "dc-noise")
NOT_RUN = "not run here: the record has no rows for this yet."


def rows_of(table: str, **wanted: str | float | None) -> list[Row]:
    """Rows of a table of the record whose fields have the wanted values; fresh noise by the majority of the verdicts."""
    chosen = [row for row in stored if row["table"] == table and row.get("protocol") != "resubmit"]
    return [row for row in chosen if all(row.get(k) == v for k, v in wanted.items())]


def threat(row: Row) -> str:
    """Norm and radius, in grey levels for Linf."""
    return f"{row['norm']} {255 * row['eps']:.3g}/255" if row["norm"] == "Linf" else f"{row['norm']} {row['eps']:.3g}"


def robust(row: Row) -> Accuracy:
    """Robust accuracy of a row."""
    return Accuracy(**row["robust"])


def strongest(rows: list[Row]) -> Row | None:
    """The row of the strongest attack, of those on the most images, if there is any."""
    return min(rows, key=lambda row: (-row["robust"]["n"], row["robust"]["value"]), default=None)


def mcnemar(a: Row, b: Row) -> tuple[int, int, float]:
    """Images broken in row ``a`` only and in row ``b`` only, of those in both runs, and the exact two-sided McNemar p."""
    total = min(a["robust"]["n"], b["robust"]["n"])
    first, second = ({i for i in row["wrong"] if a["robust"]["n"] == b["robust"]["n"] or i < total} for row in (a, b))
    only, other = len(first - second), len(second - first)
    return only, other, float(binomtest(only, only + other).pvalue) if only + other else 1.0


def gradient_pairs(
    n: int, noise: str, model: str = "RDC", gradient: str = "union", lm: str = "clamped"
) -> list[tuple[Row, Row]]:
    """BPDA and another gradient, for every threat of the table "gradient"; the highest EOT of each."""
    found = []
    chosen = rows_of("gradient", N=n, noise=noise, model=model, lm=lm)
    for name in dict.fromkeys(threat(row) for row in chosen):
        mine = [row for row in chosen if threat(row) == name]
        calls = {g: max((row["eot"] for row in mine if row["gradient"] == g), default=1) for g in ("bpda", gradient)}
        bpda, other = (strongest([r for r in mine if (r["gradient"], r["eot"]) == (g, m)]) for g, m in calls.items())
        if bpda and other:
            found.append((bpda, other))
    return found


def own(union: Row) -> Row | None:
    """DC without LM under the same threat."""
    return strongest([row for row in rows_of("gradient", model="DC") if threat(row) == threat(union)])


def answer(bpda: Row, union: Row) -> dict[str, str]:
    """A line of the answer: RDC under BPDA and under all gradients, DC under its own, and who breaks more."""
    more, _, p = mcnemar(union, bpda)
    dc = own(union)
    lost, saved, p_gain = mcnemar(union, dc) if dc else (0, 0, 1.0)
    return {
        "N": str(union["N"]),
        "noise": union["noise"],
        "threat": threat(union),
        "images": str(union["robust"]["n"]),
        "clean": str(union["clean"]["correct"]),
        "BPDA": str(bpda["robust"]["correct"]),
        "all gradients": str(union["robust"]["correct"]),
        "broken by all, not by BPDA": f"{more} (p = {p:.1g})",
        "DC": f"{dc['robust']['correct']} of {dc['robust']['n']}" if dc else "-",
        "saved by LM : lost by LM": f"{saved} : {lost} (p = {p_gain:.1g})" if dc else "-",
    }


pairs = {(n, noise): gradient_pairs(n, noise) for n, noise in ((5, "fixed"), (1, "fixed"), (5, "fresh"))}
answers = [answer(*pair) for found in pairs.values() for pair in found]
headline = NOT_RUN
if pairs[5, "fixed"]:
    bpda_row, union_row = pairs[5, "fixed"][0]
    headline = (
        f"RDC as released (N = 5, noise fixed and known) under {threat(union_row)} keeps {robust(bpda_row)} of its images when the "
        f"attacker uses BPDA, and {robust(union_row)} when all gradients of this chapter are tried."
    )
    if dc_row := own(union_row):
        headline += f" The diffusion classifier without LM keeps {robust(dc_row)}."
glue("lm-out", headline)
if answers:
    caption = "Images right: RDC as released under BPDA and under all gradients together, and DC under its own gradient"
    display(pd.DataFrame(answers).style.hide(axis="index").set_caption(caption))

# %% [markdown]
# :::{admonition} What came out
# :class: important
# {glue:text}`lm-out`
#
# Are these attacks to be believed ({ref}`sec-lm-audit`)? {glue:text}`lm-audit`
#
# The table has the other radii, one LM step in the place of five, and noise that is fresh at every call. "As released" is here the
# reading `clamped`, which clamps after every step; {ref}`sec-lm-question` has the rows of `released`, which clamps once, at the end.
# :::
#
# The union contains BPDA, so it cannot break fewer images; the test asks whether so many more are luck. {ref}`sec-lm-question`
# has the symmetric comparison, one gradient against another at the same number of steps.
#
# The rest of the chapter explains these numbers: what likelihood maximisation is, what it does to the likelihood, and what a
# gradient
# through it can tell.
#
# ## Why move the image?
#
# {cite:t}`chen2024rdc` find the optimal diffusion classifier robust and the trained one less so (their section 3.3). They blame
# the
# diffusion loss, which on adversarial images is much larger than it should be. If the loss is too large there, one may look for
# an image
# nearby where it is smaller, and classify that. This is their Eq. 8:
#
# ```{math}
# :label: eq-lm
# \hat x = \arg\min_{x'} \; \E_{t, \varepsilon} \big[ w_t \norm{\epsilon_\theta(x'_t, t) - \varepsilon}^2 \big]
# \quad \text{subject to} \quad \norm{x' - x}_\infty \le \eta .
# ```
#
# The loss is that of the *unconditional* denoiser, and a bound on $-\log p(x')$. Hence the name *likelihood maximisation* (LM),
# and
# the argument: an adversarial image lies near an image of its true class $y$, so that moving towards higher $\log p(x)$ probably
# raises
# $\log p(x \mid y)$ too. The *robust diffusion classifier* is $\text{RDC}(x) = \text{DC}(\text{LM}(x))$.
#
# ### One name, several procedures
#
# Eq. 8 says what is wanted, not how to get there. Four answers can be found, and they exclude each other:
#
# | | loss of a step | step | budget | noise |
# |---|---|---|---|---|
# | Eq. 8, and the text of 4.1 | all $T$ levels, weight $w_t$ | "gradient-based" | Linf, $\eta = 8/255$ | not said |
# | Algorithm 1 as printed | one random level | $m \leftarrow \mu m - g / \norm{g}_1$, then $x \leftarrow x + \gamma m$; $\gamma = 0.1$, $\mu = 1$, $N = 5$ | Linf, $\eta$ | fresh |
# | Algorithm 1 read as MI-FGSM | one random level | $\pm \eta / N$ along $\operatorname{sign}(m)$ | Linf, $\eta$ | fresh |
# | released code, commit 8a82504 | one level $\sigma \sim U(0.4, 0.6)$, weight 1, mean over pixels | Adam with rate 0.1 on $z$, $N = 5$; clamped to $[-1, 1]$ once, at the end | an L2 ball larger than the cube of all images | the same at every call |
#
# In the public thread of [issue 2](https://github.com/huanranchen/DiffusionClassifier/issues/2) of the released code an author
# says
# that there were two versions: one with all levels and momentum signs, with a budget (2023), and one with a single level and
# Adam,
# without an effective budget. The text of Algorithm 1, the values of $\gamma$, $\mu$, $\eta$ and Figure 2(b) belong to the
# first, "one
# randomly sampled $t$" and the headline number to the second. Three more facts about the released code: it calls `set_seed(1)`
# inside
# LM, so that LM is deterministic; its VP twin conditions on class 0 ({ref}`ex-lm-zero`); its version with all levels stops with
# an
# error at the second step.
#
# {py:class}`rdc.classify.LikelihoodMaximization` implements all of these; `READINGS` holds their arguments.

# %%
for name, options in READINGS.items():
    lm = LikelihoodMaximization(heads, **options)
    budget = "none" if lm.budget is None else f"{255 * lm.budget:.0f}/255"
    print(f"{name:12s} {lm.method:8s} N = {lm.steps}, step {255 * lm.step_size / 2:5.2f}/255, budget {budget:5s} "
          f"{lm.timesteps} level, {lm.noise} noise, {lm.evaluations} evaluations")  # fmt: skip

# %% [markdown]
# ### Five updates
#
# Let $g = \nabla_z \ell$ be the gradient that falls. "A step along $g$" leaves its length open. Write $\norm{g}_1$ for the sum
# of $|g|$ over
# the pixels of an image and $\overline{|g|}$ for their mean.
#
# **literal** and **mean-l1**. Momentum adds the directions, each divided by its size: $m \leftarrow \mu m - g / \norm{g}_1$.
# With the sum a direction has
# L1 length 1, so that a pixel gets about $1 / D$ of it. With the mean a pixel gets about 1. The two differ by the factor $D$, the
# number of pixels, and by nothing else.
#
# **sign**. The steepest descent in an Linf ball is $-\operatorname{sign}(g)$: it minimises $g \cdot \delta$ over
# $\norm{\delta}_\infty \le 1$, pixel by
# pixel. With the same momentum, and steps $\eta / N$ that together reach $\eta$, this is MI-FGSM
# {cite}`dong2018momentum`, where the normalisation by $\norm{g}_1$ comes from; there only the
# sign of $m$ is used.
#
# **rmsprop** divides by a running root mean square: $v \leftarrow \alpha v + (1 - \alpha) g^2$, step $-g / (\sqrt v +
# \varepsilon)$. From $v = 0$ the
# first step is $-g / (|g| \sqrt{1 - \alpha} + \varepsilon)$: a sign times $1 / \sqrt{1 - \alpha} = 10$.
#
# **adam** also averages $g$, and divides both averages by what they lack at the start: $\hat m = m / (1 - \beta_1^{n+1})$,
# $\hat v = v / (1 - \beta_2^{n+1})$. At $n = 0$ they are $g$ and $g^2$, and the step is
#
# ```{math}
# :label: eq-lm-adam
# u(g) = - \frac{g}{|g| + \varepsilon}, \qquad \varepsilon = 10^{-8} ,
# ```
#
# a sign wherever $|g| \gg \varepsilon$. So the released rate of 0.1 on $z$ moves *every* pixel by $0.05 = 12.75 / 255$ of the
# image's range in the
# first step, whatever the image.
#
# Ten lines, checked against the package for three steps:


# %%
def by_hand(method: str, slopes: Tensor) -> Tensor:
    """The last of the changes for a sequence of gradients ``(N, C, H, W)`` of one image."""
    m, v = torch.zeros_like(slopes[0]), torch.zeros_like(slopes[0])
    for n, g in enumerate(slopes):
        if method == "rmsprop":
            v = 0.99 * v + 0.01 * g**2
            change = -g / (v.sqrt() + EPS)
        elif method == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            change = -(m / (1 - 0.9 ** (n + 1))) / ((v / (1 - 0.999 ** (n + 1))).sqrt() + EPS)
        else:
            m = m - g / (g.abs().mean() if method == "mean-l1" else g.abs().sum())
            change = m.sign() if method == "sign" else m
    return change


slopes = randn((3, *test.x.shape[1:]), seed, "slopes").double()
print("largest change of a pixel at step")
for method in METHODS:
    memory = tuple(torch.zeros_like(slopes[:1]) for _ in range(memory_size(method)))
    largest = []
    for n in range(3):
        change, memory = update(method, slopes[n : n + 1], memory, n)
        largest.append(float(change.abs().max()))
    print(
        f"{method:9s}",
        *(f"{value:9.4f}" for value in largest),
        "  as by hand:",
        torch.allclose(change[0], by_hand(method, slopes)),
    )

# %% tags=["remove-cell"]
assert torch.allclose(change[0], by_hand(METHODS[-1], slopes))

# %% [markdown]
# ### How far does each move an image?
#
# :::{prf:proposition} Algorithm 1 to the letter does nothing
# :label: prop-lm-literal
# With $m \leftarrow \mu m - g / \norm{g}_1$, $\mu \le 1$, and $x \leftarrow \operatorname{clip}(x + \gamma m)$, where the clip
# is to a box that
# contains $x$, $N$ steps move an image by at most $\gamma N (N + 1) / 2$ in L1.
# :::
#
# :::{prf:proof}
# By induction $\norm{m_n}_1 \le \mu \norm{m_{n-1}}_1 + 1 \le n$. Clipping to a box is done pixel by pixel, fixes the point
# before the step,
# which lies in the box, and never enlarges a distance. So step $n$ moves the image by at most $\gamma \norm{m_n}_1 \le \gamma
# n$, and
# $\sum_{n=1}^{N} n = N (N + 1) / 2$.
# :::
#
# For $\gamma = 0.1$ and $N = 5$ that is 1.5 *for all pixels together*, whatever their number. On the 3072 pixels of CIFAR-10 it
# is an eighth
# of a grey level each; the budget $\eta = 8/255$ is never reached. Now measure:

# %%
x, y = test.x.to(device), test.y.to(device)
cases: dict[str, dict[str, Any]] = {
    **READINGS,
    "released, N = 1": {**READINGS["clamped"], "steps": 1},
    "rmsprop, 0.01": {**READINGS["clamped"], "method": "rmsprop", "step_size": 0.01},
}
moved: dict[str, Tensor] = {name: LikelihoodMaximization(heads, seed=seed, **case)(x[:n_move]) for name, case in cases.items()}
far = {name: {p: norm_of(found - x[:n_move], p) for p in ("L1", "L2", "Linf")} for name, found in moved.items()}
print(f"{n_move} images: mean displacement")
print(f"{'reading':18s} {'L1':>8s} {'L2':>7s} {'Linf, x 255':>12s}   pixels beyond 8/255")
for name, d in far.items():
    beyond = float(((moved[name] - x[:n_move]).abs() > 8.01 / 255).float().mean())
    print(
        f"{name:18s} {float(d['L1'].mean()):8.2f} {float(d['L2'].mean()):7.2f} {255 * float(d['Linf'].mean()):12.1f} {100 * beyond:12.0f} %"
    )

# %% tags=["remove-cell"]
claim(float(far["printed"]["L1"].max()) <= 1.5 + 1e-3)
claim(abs(255 * float(far["released, N = 1"]["Linf"].mean()) - 12.75) < 0.01)
claim(float(far["mi-fgsm"]["Linf"].max()) <= 8.01 / 255)
claim(float(far["released"]["L2"].mean()) > 2 * float(far["mi-fgsm"]["L2"].mean()))

# %% mystnb={"figure": {"caption": "How far each reading moves an image: mean over test images, with the smallest and largest (bars). Lines: the paper's radii for an attacker, 8/255 in Linf and 0.5 in L2, and (dotted) the largest L2 norm that an Linf attacker of 8/255 can reach here.", "name": "fig-lm-displacement"}, "image": {"alt": "Two panels with the L2 and Linf displacement of eight readings on log scales"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for ax, p, lines in ((axes[0], "L2", [(0.5, "--"), (8 / 255 * size**0.5, ":")]), (axes[1], "Linf", [(8 / 255, "--")])):
    scale = 255 if p == "Linf" else 1
    for i, d in enumerate(far.values()):
        v = scale * d[p].cpu()
        ax.errorbar(
            float(v.mean()), i, xerr=[[float(v.mean() - v.min())], [float(v.max() - v.mean())]], fmt="o", color="C0", capsize=3
        )
    for at, line in lines:
        ax.axvline(scale * at, ls=line, color="C3")
    ax.set(xscale="log", xlabel="L2 displacement (image units)" if p == "L2" else "Linf displacement (grey levels of 255)")
    ax.set_xticks([0.1, 0.5, 1, 2] if p == "L2" else [4, 8, 16, 32, 64])
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
axes[0].set_yticks(range(len(far)), list(far))
axes[0].invert_yaxis()
fig.tight_layout()
plt.show()

# %% mystnb={"figure": {"caption": "Four test images: as they are, and after LM as printed, as MI-FGSM with a budget of 8/255, and as released.", "name": "fig-lm-images"}, "image": {"alt": "Four rows of four garments; the printed reading looks unchanged, the released one has visible changes", "width": "45%"}} tags=["hide-input"]
image_grid(torch.cat([pictures[:4] for pictures in (x, moved["printed"], moved["mi-fgsm"], moved["released"])]), columns=4)
plt.show()

# %% [markdown]
# The printed reading is the identity for all practical purposes. The released one leaves the ball of radius 8/255 with its first
# step.
# It is not a small correction inside a budget but a new image, drawn from the same loss. An ablation of the budget $\eta$
# (Figure 2(b)
# of the paper) can belong to neither.
#
# In what follows, "LM" without more words is the released reading, clamped after every step (`clamped` above; `released` clamps
# once, at the end, as the code does), with the same noise at every call: the records of this chapter were made with it. The
# released reading is the one behind the paper's headline number, and noise that is the same at every call is noise that the
# attacker knows.
#
# (sec-lm-laboratory)=
# ## A laboratory: exact likelihoods
#
# Does LM maximise a likelihood? With a trained network nobody can tell. With the optimal denoiser of a finite data set
# ({ref}`nb-optimal`) all densities are exact. First the theory. What does the loss of *one* noise level measure?
#
# :::{prf:proposition} The loss of one level is a slope
# :label: prop-lm-slope
# Let $D$ be the optimal denoiser of $p$, $p_\sigma$ the density of $z + \sigma \varepsilon$, and $n$ the number of pixels. Then
# for every image $z$
#
# $$
# \E_\varepsilon \norm{z - D(z + \sigma \varepsilon, \sigma)}^2
# = n \sigma^2 + \sigma^3\, \frac{d}{d\sigma}\, \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon) .
# $$
# :::
#
# :::{prf:proof}
# Let $u = z + \sigma \varepsilon$ and $s = \nabla \log p_\sigma(u) = (D - u) / \sigma^2$. The density obeys the heat equation
# $\partial_\sigma p_\sigma = \sigma \Delta p_\sigma$, so that $\partial_\sigma \log p_\sigma = \sigma (\operatorname{div} s +
# \norm{s}^2)$, and $u$ moves with
# $\sigma$ at the rate $\varepsilon$. Stein's identity is $\E\, \varepsilon \cdot s = \sigma\, \E \operatorname{div} s$. Together
#
# $$
# \frac{d}{d\sigma} \E \log p_\sigma(u) = \E \big[ \sigma \operatorname{div} s + \sigma \norm{s}^2 + \varepsilon \cdot s \big]
# = \E \big[ 2\, \varepsilon \cdot s + \sigma \norm{s}^2 \big] = \frac1\sigma\, \E \norm{\sigma s + \varepsilon}^2 - \frac
# n\sigma ,
# $$
#
# and $\sigma s + \varepsilon = (D - u) / \sigma + (u - z) / \sigma = (D - z) / \sigma$.
# :::
#
# Two things follow. Summed over levels with the weights $\sigma^{-3} d\sigma$ of the ELBO, from $a$ to $b$, the slopes add up to
# a
# difference of log-likelihoods: for large $b$ the full loss is $-\E \log p_a(z + a \varepsilon)$ up to a constant, and
# descending it *is*
# likelihood maximisation, of data blurred by $a$. A single level is only the slope at this level. To make it small is to look
# for an image whose
# likelihood *falls fast* when noise is added. That is no bound on $\log p$, and nothing says that it raises it. So we compute.

# %%
digits = load("digits", "train")
small = OptimalDenoiser(digits.x[:40].double(), digits.y[:40])
z_digit, at, step = 2 * digits.x[50:51].double() - 1, 0.5, 1e-3
noise = torch.stack([randn(small.shape, seed, "slope", r).double() for r in range(4000)])
prior = torch.tensor(small.counts).double().log() - torch.tensor(small.counts).sum().log()


def mean_log(sigma: float) -> Tensor:
    """Mean of ``log p_sigma(z + sigma eps)`` over the noise."""
    return (small.log_density(z_digit + sigma * noise, sigma) + prior).logsumexp(1).mean()


left = (z_digit - small(z_digit + at * noise, at)).square().flatten(1).sum(1).mean()
right = z_digit.numel() * at**2 + at**3 * (mean_log(at + step) - mean_log(at - step)) / (2 * step)
print(f"one digit, sigma = {at}, 4000 draws: loss {float(left):.2f}, from the slope of the log-likelihood {float(right):.2f}")

# %% tags=["remove-cell"]
claim(abs(float(left - right)) < 0.1 * float(left) + 0.3)

# %% [markdown]
# Now the images. The data are `n_train` training images, the classifier is the diffusion classifier of their optimal denoiser,
# and
# the test images are those that it gets right; the adversarial ones are those of them that PGD breaks. PGD goes on to the worst
# image it can
# find, so we add "border" images: the first misclassified ones on the way there. For every image we compute, before and
# after LM, the loss that LM descends, on noise that LM has not seen, and with $p_\sigma$ of the optimal model
#
# - $\log p_\sigma(z)$ and $\log p_\sigma(z \mid y)$ for the true class $y$,
# - the log-odds $\log p_\sigma(z \mid y) - \max_{k \ne y} \log p_\sigma(z \mid k)$, which decide the class.

# %%
optimal = OptimalDenoiser(train.x[:n_train].to(device), train.y[:n_train].to(device))
lab_model = DiffusionClassifier(optimal, levels("elbo", count, sigma_min=0.1), seed=seed, chunk=2560)
right_lab = predict(lab_model, x[: 2 * n_lab]) == y[: 2 * n_lab]
x_lab, y_lab = x[: 2 * n_lab][right_lab][:n_lab], y[: 2 * n_lab][right_lab][:n_lab]
x_broken = pgd(lab_model, x_lab, y_lab, eps=eps_lab, steps=10, seed=seed)
broken_lab = predict(lab_model, x_broken) != y_lab
a, b = x_lab[broken_lab], x_broken[broken_lab]
low, high = torch.zeros(len(a), 1, 1, 1, device=a.device), torch.ones(len(a), 1, 1, 1, device=a.device)
for _ in range(6):  # where the straight line from the clean image to the adversarial one crosses the border
    middle = (low + high) / 2
    crossed = (predict(lab_model, torch.lerp(a, b, middle)) != y_lab[broken_lab]).reshape(-1, 1, 1, 1)
    low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
lab_images = {
    "clean": (x_lab, y_lab),
    "border": (torch.lerp(a, b, high), y_lab[broken_lab]),
    "adversarial": (b, y_lab[broken_lab]),
}
lab_cases: dict[str, dict[str, Any]] = {
    "small steps": {"method": "sign", "budget": 2 / 255},
    "mi-fgsm": READINGS["mi-fgsm"],
    "mi-fgsm, eta = eps": {"method": "sign", "budget": eps_lab},
    "all ELBO levels": {"method": "sign", "sigma": levels("elbo", 16, sigma_min=0.1), "timesteps": "all"},
    "released": READINGS["clamped"],
}
sigmas = [0.1, 0.2, 0.5, 1.0]
log_prior = (torch.tensor(optimal.counts) / n_train).log().to(device)


def exact(at: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Exact log-likelihoods, log-odds and posterior of the true class, each ``(levels, N)``."""
    found: dict[str, list[Tensor]] = {"log p(z)": [], "log p(z | y)": [], "log-odds": [], "posterior": []}
    for sigma in sigmas:
        by_class = optimal.log_density(2 * at - 1, sigma)
        found["log p(z)"].append((by_class + log_prior).logsumexp(1))
        found["log p(z | y)"].append(by_class.gather(1, label[:, None])[:, 0])
        found["log-odds"].append(-margin(by_class, label))
        found["posterior"].append(optimal.posterior(2 * at - 1, sigma).gather(1, label[:, None])[:, 0])
    return {k: torch.stack(v) for k, v in found.items()}


lab: dict[tuple[str, str], dict[str, Tensor]] = {}
print(f"{len(y_lab)} clean images, {int(broken_lab.sum())} adversarial ones (Linf {255 * eps_lab:.0f}/255)")
print("share of images for which it rises, worst of the levels             mean posterior of the true class, sigma = 0.5")
print(
    f"{'':20s} {'':12s} {'loss falls':>10s} {'log p(z)':>9s} {'log p(z|y)':>11s} {'log-odds':>9s}    before  after   accuracy after"
)
for name, case in lab_cases.items():
    lm = LikelihoodMaximization(optimal, seed=seed, **case)
    other = LikelihoodMaximization(optimal, **{**case, "noise": "fixed"}, seed=seed + 1)  # noise that lm has not seen
    for kind, (a, b) in lab_images.items():
        found = lm(a)
        before, after = exact(a, b), exact(found, b)
        change = {k: after[k] - before[k] for k in before}
        change["loss"] = torch.stack([other.loss(found, n) - other.loss(a, n) for n in range(lm.steps)]).mean(0)[None]
        change["accuracy"] = (predict(lab_model, found) == b)[None].float()
        lab[name, kind] = change
        up = [float((change[k] > 0).float().mean(1).min()) for k in ("log p(z)", "log p(z | y)", "log-odds")]
        falls, post = float((change["loss"] < 0).float().mean()), [float(s["posterior"][2].mean()) for s in (before, after)]
        print(f"{name:20s} {kind:12s} {falls:10.2f} {up[0]:9.2f} {up[1]:11.2f} {up[2]:9.2f} {post[0]:9.2f} {post[1]:6.2f} "
              f"{float(change['accuracy'].mean()):12.2f}")  # fmt: skip

# %% tags=["remove-cell"]
claim(all(float((lab["small steps", kind]["loss"] < 0).float().mean()) > 0.8 for kind in ("clean", "adversarial")))
claim(int(broken_lab.sum()) >= 5)

# %% mystnb={"figure": {"caption": "Laboratory, adversarial images: mean change in nats of the exact log-likelihood, of that of the true class, and of the log-odds of the true class, by noise level of the density.", "name": "fig-lm-laboratory"}, "image": {"alt": "Three panels of bars by reading and noise level"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4))
for ax, quantity in zip(axes, ("log p(z)", "log p(z | y)", "log-odds"), strict=True):
    for i, name in enumerate(lab_cases):
        ax.plot(sigmas, lab[name, "adversarial"][quantity].mean(1).cpu(), "o-", color=f"C{i}", label=name)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(xscale="log", xlabel="sigma of the density", title=f"change of {quantity}", yscale="symlog")
axes[0].set_ylabel("nats")
axes[0].legend(fontsize=7)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
main_lab = ("mi-fgsm", "all ELBO levels", "released")


def share_up(name: str, kind: str, quantity: str) -> float:
    """Share of images for which a quantity rises, the worst of the levels."""
    return float((lab[name, kind][quantity] > 0).float().mean(1).min())


likelihood_up = all(min(share_up(n, k, q) for q in ("log p(z)", "log p(z | y)")) > 0.75 for n in main_lab for k in lab_images)
odds_up = [share_up(n, "adversarial", "log-odds") for n in main_lab]
restored = {n: float(lab[n, "adversarial"]["accuracy"].mean()) for n in lab_cases}
raised = "rise" if likelihood_up else "do not all rise"


def percents(values: list[float]) -> str:
    """Shares as text."""
    return ", ".join(f"{100 * v:.0f} %" for v in values)


at_border = percents([float(lab[n, "border"]["accuracy"].mean()) for n in main_lab])
glue("lm-lab-verdict", f"For the readings with a budget of 8/255 and the released one, log p(z) and log p(z | y) {raised} for more than "
     f"three quarters of the images of each kind. The log-odds of the true class rise for {percents(odds_up)} of the adversarial images "
     f"(MI-FGSM, all levels, released), and the classifier is right again about {percents([restored[n] for n in main_lab])} of them. "
     f"Of the images just beyond the border it is right again about {at_border}.")  # fmt: skip

# %% [markdown]
# {glue:text}`lm-lab-verdict`
#
# Read the columns of the table together. That $\log p(z \mid y)$ rises says little about the class, because the likelihood of the
# *wrong* class can rise as much or more: LM does not know which class to prefer, and an adversarial image is by construction one
# that the model
# finds more likely under a wrong class. The argument of section 3.4 needs the log-odds, and speaks of the likelihood. Whether the
# log-odds rise depends on where the image stands, just beyond the border or deep in the wrong class, and on the levels at which
# LM looks.
#
# (sec-lm-gradients)=
# ## The gradient of an optimisation
#
# RDC is the composition $\text{DC} \circ \text{LM}$, and LM is an optimisation with $N$ steps, each of which contains a
# gradient. To differentiate a step
# is to differentiate that gradient, a Hessian-vector product. The paper found the memory too large beyond $N = 1$.
# It need not be: {py:func}`rdc.autograd.iterate` keeps one state per step, here the image, the input and Adam's moments
# packed as channels, and
# runs each step again in the backward pass ({ref}`sec-adaptive-exact`). Memory is that of one step plus $N$ images.
#
# The stand-in is BPDA with the identity ({eq}`eq-bpda`): the gradient at $\hat x$, moved unchanged to $x$. Is it a fair one? Ask
# the
# formula.
#
# :::{prf:proposition} The Jacobian of one step of LM
# :label: prop-lm-jacobian
# Let $g = \nabla \ell(z)$, $H = \nabla^2 \ell(z)$, and let no pixel be held by a bound. The first step of Adam with rate
# $\gamma$ has the
# Jacobian
#
# $$
# J = I - \operatorname{diag} \Big( \frac{\gamma\, \varepsilon}{(|g| + \varepsilon)^2} \Big) H .
# $$
#
# The step of `sign` has $J = I$ wherever no $m$ is zero, and so have $N$ such steps. A pixel held by the ball
# around $x$ moves with $x$ (derivative 1), one held at 0 or 1 does not move (derivative 0).
# :::
#
# :::{prf:proof}
# From {eq}`eq-lm-adam`, $u(g) = -g / (|g| + \varepsilon)$ has the slope $-\varepsilon / (|g| + \varepsilon)^2$, also at $g = 0$.
# The chain rule gives
# $\partial (z + \gamma u) / \partial z = I + \gamma \operatorname{diag}(u'(g)) H$. The sign is locally constant. The rest is the
# derivative of
# a clip whose bounds move with $x$, or do not.
# :::
#
# So where $|g| \gg \sqrt{\gamma \varepsilon |H|}$ the exact gradient of one step *is* BPDA with the identity. A comparison of
# the two at $N = 1$,
# as in the paper's Table 2, sets BPDA against itself plus spikes at the few pixels near a change of sign. It can show that the
# spikes do not help. It cannot show
# that BPDA is a fair stand-in, nor say anything about $N = 5$. For `sign` no $N$ will do.
#
# That the derivative is the identity does not mean that LM *acts* like the identity. A step of a sign is a staircase: flat
# almost everywhere, with jumps
# of $2 \gamma$. A derivative sees the treads, an attack climbs the stairs. If the image moves by $\delta$, the loss's gradient
# moves by about $H \delta$, and pixels with
# $|g| < |H \delta|$ may change sign, and then move by $2 \gamma$ in the direction opposite to $\delta$. On average over pixels
# with density
# $\rho(0)$ of $g$ at zero, the step acts like
#
# ```{math}
# :label: eq-lm-effective
# J_\text{effective} \approx I - 2 \gamma\, \rho(0)\, H .
# ```
#
# The package offers this as a third gradient: `lm.smoothed(width)` keeps every value of LM, bit for bit, and differentiates
# signs that are blurred
# to `width` times the mean size. It is a stand-in for the backward pass, as BPDA is, with the right staircase in mind.
#
# How large are the gradients of the trained network, and what are the entries of the diagonal?

# %%
right_all = predict(classifier, x[: 2 * n_jacobian]) == y[: 2 * n_jacobian]
xj, yj = x[: 2 * n_jacobian][right_all][:n_jacobian], y[: 2 * n_jacobian][right_all][:n_jacobian]
one = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": 1})
g = value_and_gradient(lambda p: one.loss(p, 0), xj)[1] / 2  # with respect to z
factor = one.step_size * EPS / (g.abs() + EPS) ** 2
quantiles = torch.tensor([0.001, 0.01, 0.5], device=device)
print(
    f"{len(yj)} images, loss of the first step: |g| at the quantiles 0.1 %, 1 %, 50 %:",
    *(f"{q:.1e}" for q in g.abs().flatten().quantile(quantiles)),
)
kick = torch.stack([randn(tuple(xj.shape[1:]), seed, "kick", i, like=xj).sign() for i in range(len(xj))])
hessian = float(torch.autograd.functional.hvp(lambda p: one.loss(p, 0).sum(), xj, kick)[1].square().mean().sqrt()) / 4  # in z
threshold = (one.step_size * EPS * hessian) ** 0.5
below = float((g.abs() < threshold).float().mean())
print(
    "gamma eps / (|g| + eps)^2: median",
    f"{float(factor.median()):.2g}, mean {float(factor.mean()):.2g}, largest {float(factor.max()):.2g}",
)
print(
    f"|H|, rms of H v for random signs v: {hessian:.1e}, so sqrt(gamma eps |H|) = {threshold:.1e}: {100 * below:.1f} % of the pixels have a smaller |g|"
)

# %% [markdown]
# Nearly all pixels obey the condition. But the *mean* of the factor is made by the few whose gradient is nearly zero, where
# Adam's slope is
# enormous, and $H$ spreads them over their neighbours. They are right: there the derivative really is that large, on an interval
# so short that no attack can
# use it.
#
# We measure how alike the gradients are. With $v$ the gradient of the classifier's margin at $\hat x$, which BPDA takes as it
# is, the exact gradient is $J^\top v$.


# %%
def cosine(a: Tensor, b: Tensor) -> float:
    """Median over images of the cosine."""
    return float(torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).median())


def pulled(process: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``v`` at the processed image, and ``J^T v``."""
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        out = process(point)
        there = out.detach().requires_grad_()
        (v,) = torch.autograd.grad(margin(classifier(there), y).sum(), there)
        return v, torch.autograd.grad(out, point, v)[0]


options: dict[str, dict[str, Any]] = {
    "literal": {"step_size": 0.2},
    "mean-l1": {"step_size": 0.02, "budget": None},
    "sign": {},
    "adam": {"step_size": 0.1, "budget": None},
    "rmsprop": {"step_size": 0.01, "budget": None},
}
alike: dict[tuple[str, int], tuple[float, float, float]] = {}
print(
    f"{len(yj)} images: cosine of J^T v with v, length over that of v, share of pixels with the same sign (of those that LM does not hold at a wall)"
)
for method, option in options.items():
    for n in (1, 2, 5):
        v, back = pulled(LikelihoodMaximization(heads, method, steps=n, seed=seed, **option), xj, yj)
        signs = float((back.sign() == v.sign())[back != 0].float().mean())
        alike[method, n] = cosine(back, v), float((norm_of(back, "L2") / norm_of(v, "L2")).median()), signs
    print(f"{method:9s}", *("  N = {}: {:5.2f} {:6.2f} {:4.2f}".format(n, *alike[method, n]) for n in (1, 2, 5)))

# %% tags=["remove-cell"]
claim(alike["sign", 1][0] > 0.5)
claim(abs(alike["adam", 5][0]) < 0.5)

# %% [markdown]
# For `sign` what is missing to a cosine of 1 are the pixels at the walls: background pixels that are exactly 0, which LM would
# like to move below
# 0. For Adam the cosine is far from 1 even at $N = 1$: there the exact gradient is BPDA's plus the spikes of a few pixels, and
# these swamp it. An Linf attack uses only
# the signs, which agree more often.
#
# Which one is *right*? All of them can be asked the same question: if the image moves along the gradient's own sign by $h$, what
# does it forecast, and what happens? The forecast is the sum of
# gradient times change. What happens is the margin of the defence itself.

# %%
names = {"identity (BPDA)": None, "exact": 0.0, "smoothed 0.1": 0.1, "smoothed 0.3": 0.3, "smoothed 1": 1.0}
lengths = [0.5, 2, 4, 8]
rises: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
for n in lm_steps:
    lm = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": n})
    defence = RDC(lm, classifier)
    for name, width in names.items():
        attacked = defence if width is None else RDC(lm.smoothed(width), classifier, "exact")
        value, slope = value_and_gradient(lambda p, m=attacked: margin(m(p), yj), xj)
        rises[n, name] = []
        for h in lengths:
            there = (xj + h / 255 * slope.sign()).clamp(0, 1)
            with torch.no_grad():
                rise = margin(defence(there), yj) - value
            forecast = ((there - xj) * slope).flatten(1).sum(1)
            error = ((rise - forecast).abs() / forecast.abs()).median()
            rises[n, name].append((float(rise.mean()), float(forecast.mean()), float(error)))
    print(f"N = {n}, step 8/255 along the sign of each gradient, {len(yj)} images")
    for name in names:
        rise, forecast, error = rises[n, name][-1]
        print(f"    {name:16s} forecast {forecast:+6.2f}, happens {rise:+6.2f}   (median relative error {error:.2f})")

# %% mystnb={"figure": {"caption": "One step of length h along the sign of each gradient: the mean rise of the margin of RDC that happens. An attack wants it large; below zero the gradient points the wrong way.", "name": "fig-lm-rise"}, "image": {"alt": "Two panels, for one and five steps of LM, of the rise of the margin against the length of the step"}} tags=["hide-input"]
fig, axes = plt.subplots(1, len(lm_steps), figsize=(9.5, 3.5), sharey=True, squeeze=False)
for ax, n in zip(axes[0], lm_steps, strict=True):
    for i, name in enumerate(names):
        ax.plot(lengths, [r[0] for r in rises[n, name]], "o-", color=f"C{i}", label=name)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(title=f"N = {n}", xlabel="h (grey levels of 255)", xscale="log", xticks=lengths)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
axes[0, 0].set_ylabel("rise of the margin (nats)")
axes[0, -1].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% tags=["remove-cell"]
for n in lm_steps:
    claim(max(rises[n, f"smoothed {w}"][-1][0] for w in ("0.1", "0.3", "1")) > rises[n, "identity (BPDA)"][-1][0])
ends = {w: ", ".join(f"{rises[n, w][-1][0]:+.2f} (N = {n})" for n in lm_steps) for w in ("identity (BPDA)", "smoothed 0.3")}
wrong_way = [f"N = {n}" for n in lm_steps if rises[n, "identity (BPDA)"][-1][0] < 0]
way = f"For {' and '.join(wrong_way)} BPDA points the wrong way." if wrong_way else "BPDA does not point the wrong way here."
glue("lm-bpda-way", f"On these images a step of 8/255 along BPDA changes the mean margin by {ends['identity (BPDA)']}, and one along the "
     f"smoothed gradient of width 0.3 by {ends['smoothed 0.3']}. {way}")  # fmt: skip

# %% [markdown]
# {glue:text}`lm-bpda-way`
#
# How can the identity be the exact derivative and yet lead astray? Because of the stairs. Here is what LM passes on of a change
# $\delta$, the finite version of a derivative along it:
#
# ```{math}
# :label: eq-lm-transmission
# \tau(\delta) = \frac{\langle \text{LM}(x + \delta) - \text{LM}(x),\, \delta \rangle}{\norm{\delta}^2} .
# ```
#
# BPDA assumes 1. A projection onto the data would have nearly 0 for a change that leads away from them. Negative means that LM
# overshoots: it answers a
# change with a larger one the other way.

# %%
smooth = LikelihoodMaximization(heads, seed=seed, **READINGS["clamped"])
directions = {
    "random signs": torch.stack([randn(tuple(xj.shape[1:]), seed, "direction", i, like=xj) for i in range(len(xj))]).sign(),
    "BPDA": value_and_gradient(lambda p: margin(RDC(smooth, classifier)(p), yj), xj)[1].sign(),
}
passed: dict[tuple[str, str], list[float]] = {}
processes = {
    "printed": LikelihoodMaximization(heads, seed=seed, **{**READINGS["printed"], "noise": "fixed"}),
    "mi-fgsm": LikelihoodMaximization(heads, seed=seed, **{**READINGS["mi-fgsm"], "noise": "fixed"}),
    "released, N = 1": one,
    "released, N = 5": smooth,
}


def transmission(process: Callable[[Tensor], Tensor], direction: Tensor, h: float) -> float:
    """What a process passes on of a change of ``h`` grey levels, mean over images."""
    there = (xj + h / 255 * direction).clamp(0, 1)
    with torch.no_grad():
        change = process(there) - process(xj)
    delta = there - xj
    return float(((change * delta).flatten(1).sum(1) / delta.square().flatten(1).sum(1)).mean())


print(f"{len(yj)} images: share of a change that LM passes on")
print(f"{'':32s}", *(f"{h:g}/255".rjust(8) for h in (0.5, 2, 8)))
for name, process in processes.items():
    for kind, direction in directions.items():
        passed[name, kind] = [transmission(process, direction, h) for h in (0.5, 2, 8)]
        print(f"{name:18s} {kind:13s}", *(f"{value:8.2f}" for value in passed[name, kind]))

# %% tags=["remove-cell"]
claim(passed["printed", "BPDA"][-1] > 0.8 > passed["released, N = 5", "BPDA"][-1])

# %% [markdown]
# Where the printed values are far from 1, identity BPDA assumes something false about the defence. That it is harmless for the
# printed reading is no surprise: that
# one does nothing.
#
# (sec-lm-question)=
# ## What is left of the robustness?
#
# The paper's Table 2 has RDC with $N = 5$ at 75.67 % under BPDA. The exact gradient was affordable for $N = 1$ only: 69.53 %,
# and BPDA 0.39 points more, from
# which it concludes "that BPDA suffices for evaluating RDC". We attack both settings with all
# gradients, on few images, and DC alone beside it. The verdict is always that of the defence. "Transfer" are the images that
# were made against DC, by an attacker
# who does not know of LM; the *union* counts an image as broken if any of them broke it.

# %%
xa, ya = x[:n_attack], y[:n_attack]
x_dc = pgd(classifier, xa, ya, eps=eps, steps=steps, seed=seed)
dc_right = predict(classifier, x_dc) == ya
survive: dict[tuple[int, str], Tensor] = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps}, fixed noise: images right")
print(f"DC         clean {accuracy(classifier, xa, ya).correct:2d}   attacked {int(dc_right.sum()):2d}")
for n in lm_steps:
    lm = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "steps": n})
    defence = RDC(lm, classifier)
    attackers = {
        "bpda": defence,
        "exact": RDC(lm, classifier, "exact"),
        "smoothed 0.3": RDC(lm.smoothed(0.3), classifier, "exact"),
    }
    clean_right = predict(defence, xa) == ya
    survive[n, "clean"] = clean_right
    for name, attacked in attackers.items():
        x_adv = pgd(attacked, xa, ya, eps=eps, steps=steps, seed=seed)
        survive[n, name] = clean_right & (predict(defence, x_adv) == ya)
    survive[n, "transfer"] = clean_right & (predict(defence, x_dc) == ya)
    survive[n, "union"] = torch.stack([survive[n, name] for name in (*attackers, "transfer")]).all(0)
    print(
        f"RDC N = {n}  "
        + "   ".join(f"{name} {int(survive[n, name].sum()):2d}" for name in ("clean", *attackers, "transfer", "union"))
    )


def discordant(a: Tensor, b: Tensor) -> str:
    """The exact McNemar test of two attacks on the same images, from who survives."""
    first, second = int((b & ~a).sum()), int((a & ~b).sum())
    p = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return f"{first} images broken by the first only, {second} by the second only, exact McNemar p = {p:.2g}"


for n in lm_steps:
    for name in ("exact", "smoothed 0.3"):
        print(f"N = {n}, {name} and BPDA: {discordant(survive[n, name], survive[n, 'bpda'])}")
print("RDC (union, largest N) and DC:", discordant(survive[lm_steps[-1], "union"], dc_right))

# %% [markdown]
# An attacker who knows less must not do better: where transfer breaks as many images as BPDA, BPDA's gradient was worth nothing.
#
# McNemar's test looks at the images on which two attacks differ: if neither were better, each such image would be a toss of a
# coin. With so
# few images it decides only gross differences; the record has more.
#
# Does *fresh* noise in LM help? Then nobody knows the noise of the verdict, and the attacker averages over `eot` calls
# ({eq}`eq-eot`). An image counts as right
# if most of `draws` fresh verdicts are.

# %%
xf, yf = x[:n_fresh], y[:n_fresh]
lm_fresh = LikelihoodMaximization(heads, seed=seed, **{**READINGS["clamped"], "noise": "fresh"})
fresh = RDC(lm_fresh, classifier)
fresh_attackers = {
    "bpda": fresh,
    "exact": RDC(lm_fresh, classifier, "exact"),
    "smoothed 0.3": RDC(lm_fresh.smoothed(0.3), classifier, "exact"),
}
fresh_adv = {name: pgd(attacked, xf, yf, eps=eps, steps=steps, eot=eot, seed=seed) for name, attacked in fresh_attackers.items()}
judged = {name: robust_accuracy(fresh, xf, yf, images, draws=draws) for name, images in fresh_adv.items()}
judged["union"] = robust_accuracy(fresh, xf, yf, list(fresh_adv.values()), draws=draws)
print(f"{n_fresh} images, N = 5, fresh noise, EOT {eot}, majority of {draws} verdicts: right")
print(
    "   ".join(f"{name} {value.correct}" for name, value in judged.items()),
    f"   (fixed noise, union: {int(survive[lm_steps[-1], 'union'][:n_fresh].sum())})",
)

# %% [markdown]
# ### The record
#
# The same question with more images, steps, radii and models. `N` is the number of LM steps; "more" counts the images that the
# union breaks and BPDA does not, $p$ is the exact McNemar
# test of these; "exact" and "smoothed" are compared with BPDA at equal steps, as only exact : only BPDA.

# %% tags=["hide-input"]
GRADIENTS = ("plain", "transfer", "bpda", "exact", "smoothed 0.1", "smoothed 0.3", "smoothed 1", "union")


def kept(rows: list[Row], name: str) -> str:
    """Surviving images under one gradient."""
    row = strongest([row for row in rows if row["gradient"] == name])
    return f"{row['robust']['correct']}/{row['robust']['n']}" if row else "-"


def versus(rows: list[Row], name: str) -> str:
    """Discordant images of a gradient and BPDA, and p."""
    a, b = (strongest([row for row in rows if row["gradient"] == g]) for g in (name, "bpda"))
    if not (a and b):
        return "-"
    first, second, p = mcnemar(a, b)
    return f"{first}:{second} p={p:.1g}"


FIELDS = ("model", "lm", "N", "noise", "norm", "eps", "protocol")
table = rows_of("gradient")
survivors, discordances = [], []
for key in dict.fromkeys(tuple(row[f] for f in FIELDS) for row in table):
    rows = [row for row in table if tuple(row[f] for f in FIELDS) == key]
    model, reading, n_lm, noise_kind, *_, protocol = key
    name = f"{model}, {reading}, N = {n_lm}" if reading else model
    about = {"defence": name, "noise": noise_kind, "judged by": protocol, "threat": threat(rows[0])}
    clean_row = max(rows, key=lambda row: row["clean"]["n"])["clean"]
    survivors.append({**about, "clean": f"{clean_row['correct']}/{clean_row['n']}", **{g: kept(rows, g) for g in GRADIENTS}})
    if reading:
        discordances.append({**about, **{f"{g} : bpda": versus(rows, g) for g in ("exact", "smoothed 0.3", "union")}})
if table:
    display(pd.DataFrame(survivors).style.hide(axis="index").set_caption("Images right under each gradient"))
    display(pd.DataFrame(discordances).style.hide(axis="index").set_caption("Images broken by one of two only, and McNemar's p"))
else:
    print(NOT_RUN)

# %% mystnb={"figure": {"caption": "Robust accuracy of RDC as released (N = 5) by gradient, with 95 % intervals, and of DC under its own gradient, from the record; one panel for each kind of noise. Empty where the record has no rows yet.", "name": "fig-lm-question"}, "image": {"alt": "Robust accuracy against the radius for several gradients, fixed and fresh noise"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
for ax, noise_kind in zip(axes, ("fixed", "fresh"), strict=True):
    chosen = rows_of("gradient", model="RDC", lm="clamped", N=5, noise=noise_kind, norm="Linf")
    lines = {g: [row for row in chosen if row["gradient"] == g] for g in GRADIENTS} | {
        "DC": rows_of("gradient", model="DC", norm="Linf")
    }
    for i, (name, found_rows) in enumerate(lines.items()):
        best = [strongest([row for row in found_rows if row["eps"] == e]) for e in sorted({row["eps"] for row in found_rows})]
        if best:
            plot_accuracy(
                ax,
                [255 * row["eps"] + 0.1 * i for row in best],
                [robust(row) for row in best],
                name,
                color="black" if name == "DC" else f"C{i}",
            )
    ax.set(xlabel="Linf radius (grey levels of 255)", title=f"{noise_kind} noise")
    if ax.has_data():
        ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# :::{admonition} How to read "no stronger"
# :class: note
# That two attacks break about the same number of images shows that they are equally strong. It does not show that they are
# strong. {prf:ref}`prop-lm-jacobian` says that
# at $N = 1$ neither sees the stairs. A fair stand-in has to agree with what *happens* over a step of the attack's length, and
# {numref}`fig-lm-rise` is the test of that.
# :::
#
# (sec-lm-audit)=
# ### Which of the attacks is to be believed?
#
# {ref}`nb-adaptive` audits an attack: does its gradient raise the loss as it forecasts, does it find adversarial examples that
# were planted, does a larger radius break everything? The same audit, of the attack on RDC with each gradient, from the record:

# %% tags=["hide-input"]
audits = stored_record(audit_file) or {"results": {}, "config": {}}
audit_lines = [
    {
        "attack on": name,
        "checks passed": f"{sum(row['verdict'] == 'pass' for row in found['rows'])} of {len(found['rows'])}",
        "what was found": "; ".join(f"{row['name']}: {row['reason']}" for row in found["rows"] if row["verdict"] != "pass") or "-",
        "to be believed": "yes" if found["ok"] else "no",
    }
    for name, found in audits["results"].items()
]
if audit_lines:
    c = audits["config"]
    caption = f"Audit of PGD-{c['steps']} on {c['n']} images, {c['norm']} {255 * c['eps']:.0f}/255, noise fixed and known, N = 5"
    display(pd.DataFrame(audit_lines).style.hide(axis="index").set_caption(caption))
else:
    print(NOT_RUN)
doubted = [line["attack on"] for line in audit_lines if line["to be believed"] == "no"]
glue("lm-audit", f"The audit rejects: {', '.join(doubted)}." if doubted else "The audit rejects none of them." if audit_lines else NOT_RUN)

# %% [markdown]
# {glue:text}`lm-audit` An attack that the audit rejects may still break images, but what it leaves standing is no evidence. The
# check of the slope is {numref}`fig-lm-rise` once more, and the planted examples say what the attack would miss.
#
# (sec-lm-ablations)=
# ## Which part of LM does the work?
#
# LM has a direction and a length. Readings that differ in both cannot be compared in the direction. So we choose each step size
# such
# that the *mean L2 displacement is about the same*, without a budget, and ask again. `literal` and `mean-l1` then coincide: they
# differ by a factor.
#
# For each we print, at that displacement, the accuracy on clean images and on *static* adversarial images, those that were made
# against DC
# alone. That is not a robust accuracy, since this attacker does not know of LM; it says whether LM leads back to the class.


# %%
xs, ys = x[:n_static], y[:n_static]
x_static = (
    torch.cat([x_dc, pgd(classifier, xs[n_attack:], ys[n_attack:], eps=eps, steps=4, seed=seed)])
    if n_static > n_attack
    else x_dc[:n_static]
)


def displacement(lm: LikelihoodMaximization, images: Tensor) -> float:
    """Mean L2 displacement."""
    return float(norm_of(lm(images) - images, "L2").mean())


def matched(target: float, tries: int = 3, **case: Any) -> LikelihoodMaximization:  # noqa: ANN401
    """LM whose step size gives the mean displacement ``target``; the displacement is nearly proportional to the step."""
    lm = LikelihoodMaximization(heads, step_size=0.02, budget=None, seed=seed, **case)
    for _ in range(tries):
        lm.step_size *= target / displacement(lm, xs[::3])
    return lm


targets = {"0.55 (as MI-FGSM)": 0.55, "2 (as released)": 2.0}
matched_cases: dict[str, dict[str, Any]] = {
    "sign": {"method": "sign"},
    "mean-l1": {"method": "mean-l1"},
    "adam": {"method": "adam"},
    "rmsprop": {"method": "rmsprop"},
    "sign, all (4)": {"method": "sign", "timesteps": "all", "count": 4},
}
static: dict[tuple[str, str], tuple[float, Accuracy, Accuracy]] = {}
print(
    f"{n_static} images; without LM: clean {accuracy(classifier, xs, ys).correct}, static adversarial {accuracy(classifier, x_static, ys).correct}"
)
for kind, target in targets.items():
    print(f"mean L2 displacement about {kind}")
    for name, case in matched_cases.items():
        lm = matched(target, **case)
        with torch.no_grad():
            after, back = lm(xs), lm(x_static)
        static[kind, name] = (
            float(norm_of(after - xs, "L2").mean()),
            accuracy(classifier, after, ys),
            accuracy(classifier, back, ys),
        )
        d, clean_value, static_value = static[kind, name]
        print(
            f"    {name:14s} step {lm.step_size:.4f}, displacement {d:.2f}: clean {clean_value.correct:2d}, static adversarial {static_value.correct:2d}"
        )

# %% [markdown]
# The differences between two rows with the same displacement are what the update, or the number of levels, contributes. Those
# between the two blocks are what the
# length contributes.
#
# Compare with the laboratory. There an adversarial image is one that the *exact* model finds more likely under a wrong class,
# and descending its loss has no reason to
# undo that. An adversarial image of the trained network may also exploit errors of the network, and those need not be the same
# at the noise levels where LM looks. So what LM
# restores here can come from the network being wrong in different ways, rather than from the likelihood. That is a conjecture,
# not a result.
#
# The robust accuracies at equal displacement, under attackers who know LM, need more time and are in the record.


# %% tags=["hide-input"]
def cells(row: Row) -> dict[str, str]:
    """What a row says, by column."""
    d = row.get("displacement")
    return {
        "model": row["model"],
        "LM": row.get("lm") or "-",
        "N": str(row.get("N") or "-"),
        "budget": "none" if row.get("budget") is None else f"{255 * row['budget']:.3g}/255",
        "sigma": "-" if not row.get("sigma") else f"{row['sigma'][0]:g} to {row['sigma'][1]:g}",
        "levels": row.get("timesteps") or "-",
        "noise": row["noise"],
        "judged by": row["protocol"],
        "gradient": row["gradient"],
        "EOT": str(row["eot"]),
        "attack": row["attack"],
        "threat": threat(row),
        "moved, L2": f"{d['L2']:.2f}" if d else "-",
        "clean": str(Accuracy(**row["clean"]).correct),
        "robust": str(robust(row)),
    }


def show(name: str) -> None:
    """Show a table of the record, what is the same in all rows in its caption, or say that it is not there."""
    if not rows_of(name):
        print(f"{name}: {NOT_RUN}")
        return
    found = pd.DataFrame([cells(row) for row in rows_of(name)])
    constant = [c for c in found if c not in ("robust", "clean") and found[c].nunique() == 1]
    caption = f'Table "{name}": ' + ", ".join(f"{c} {found[c].iloc[0]}" for c in constant if found[c].iloc[0] != "-")
    display(found.drop(columns=constant).style.hide(axis="index").set_caption(caption))


for name in ("budget", "steps", "sigma", "optimiser", "timesteps"):
    show(name)

# %% mystnb={"figure": {"caption": "From the record: robust accuracy against the budget eta (left, the paper's Figure 2(b)) and against the number N of LM steps (right), with 95 % intervals, one line for each reading and gradient. Empty where the record has no rows yet.", "name": "fig-lm-budget"}, "image": {"alt": "Robust accuracy against the budget and against the number of steps of likelihood maximisation"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
for ax, (name, field, scale) in zip(axes, (("budget", "budget", 255), ("steps", "N", 1)), strict=True):
    chosen = [row for row in rows_of(name) if row.get(field) is not None]
    for i, line in enumerate(dict.fromkeys((row["lm"], row["gradient"], threat(row)) for row in chosen)):
        mine = sorted((row for row in chosen if (row["lm"], row["gradient"], threat(row)) == line), key=lambda row: row[field])
        plot_accuracy(
            ax, [scale * row[field] for row in mine], [robust(row) for row in mine], " ".join(map(str, line)), color=f"C{i}"
        )
    ax.set(xlabel="budget eta (grey levels of 255)" if name == "budget" else "steps N of LM")
    if ax.has_data():
        ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# Three more attacks of the paper, from the record. The Lagrange attack asks for an image that fools the classifier *and* has a
# small diffusion loss, so that LM leaves
# it alone; the feature attack asks for the logits of an image of another class; and more calls in EOT should not matter where
# the noise is fixed, because all calls are the same.

# %% tags=["hide-input"]
for name in ("lagrange", "feature", "eot"):
    show(name)
feature_rows = [row for row in rows_of("feature") if row["gradient"] != "union"]
broken = sum(row["clean"]["correct"] - row["robust"]["correct"] for row in feature_rows)
tried = sum(row["clean"]["correct"] for row in feature_rows)
if feature_rows:
    print(f"feature attack, {feature_rows[0]['steps']} steps: breaks {broken} of {tried} images that were right, all gradients counted.")

# %% [markdown]
# An attack that breaks next to nothing where another one breaks many images is a weak attack. Its row says nothing in favour of
# the defence.

# %% [markdown]
# (sec-lm-diffpure)=
# ## Does LM act like DiffPure?
#
# DiffPure {cite}`nie2022diffpure` adds noise of level $\sigma$ and runs the reverse process back to zero. LM with $\sigma$ near
# 0.5 looks at the image through the same noise, and takes five steps of a
# fixed length. We match the noise level and compare what they do to an image. `Purify` returns a *sample* of $p(z_0 \mid
# z_\sigma)$: its displacement is that of the noise it could not remove.

# %%
t_star = (-0.1 + (0.01 + 4 * 9.95 * torch.tensor(1 + 0.5**2).log().item()) ** 0.5) / (2 * 9.95)  # sigma(t*) = 0.5
pure = Purify(heads, t=t_star, steps=10, seed=seed)
xp, yp = xj[:n_purify], yj[:n_purify]
acts: dict[str, tuple[float, float, float, float]] = {}
print(f"{len(yp)} images that DC gets right, sigma = {pure.sigma:.2f}")
print(f"{'':22s} displacement L2   cosine of J^T v with v   |J^T v| / |v|   passed on of BPDA's 8/255   right after it")
for name, process in {"LM, released": smooth, "LM, mi-fgsm": processes["mi-fgsm"], "DiffPure": pure}.items():
    v, back = pulled(process, xp, yp)
    with torch.no_grad():
        there = process(xp)
    acts[name] = (
        float(norm_of(there - xp, "L2").mean()),
        cosine(back, v),
        float((norm_of(back, "L2") / norm_of(v, "L2")).median()),
        transmission(process, directions["BPDA"], 8),
    )
    d, c, ratio, share = acts[name]
    print(
        f"{name:22s} {d:15.2f} {c:24.2f} {ratio:15.2f} {share:27.2f} {int((predict(classifier, there) == yp).sum()):12d}/{len(yp)}"
    )

# %% [markdown]
# A $\tau$ well below 1 is a contraction: what the attacker adds is mostly removed. Then the gradient of the process is short,
# and far from the identity. In that sense a process with a small $\tau$ *is* a purification, whatever its
# name. The suite compares the defences under one attack:

# %% tags=["hide-input"]
show("suite")
if rows_of("suite"):
    taken = {row["attack"]: row["steps"] for row in rows_of("suite")}
    print("Settings that are easier than the paper's:", ", ".join(f"{name} {k} steps" for name, k in taken.items()), end="; ")
    print(f"{pure.steps} reverse steps of DiffPure; noise fixed and known, so that one call a gradient is enough.")
if bent := [row for row in rows_of("suite") if row["attack"] == "stadv"]:
    best = max((strongest([row for row in bent if row["model"] == m]) for m in {row["model"] for row in bent}), key=lambda row: row["robust"]["value"])
    print(f"StAdv, bound {best['eps']}: the best defence, {best['model']}, keeps {robust(best)}. It bends the image and adds nothing,")
    print("so that there is no noise to remove: what LM and DiffPure gain against Linf, they do not gain here.")

# %% [markdown]
# The paper gives StAdv 100 iterations, and attacks DiffPure with 200 steps of PGD, ten or more calls a step, fresh noise and a reverse process
# of about a hundred steps. Fewer steps of an attack flatter the defence. Known noise does the opposite: it is all that an
# attacker can wish for. So the table compares defences with each other, and its numbers are no estimates of the paper's.

# %% [markdown]
# What the defences cost for one image, in network evaluations and in time, measured in turns on one machine (the paper's Table 3):

# %% tags=["hide-input"]
costs = pd.DataFrame(
    [
        {
            "defence": row["model"],
            "N": str(row["N"] or "-"),
            "evaluations": row["nfe"][0],
            "with gradient": row["nfe"][1],
            "ms an image": f"{1000 * row['seconds_an_image']:.1f}",
        }
        for row in stored_record("results/rdc_costs.json").get("results", {}).get("rows", [])
    ]
)
display(costs.style.hide(axis="index")) if len(costs) else print(f"cost: {NOT_RUN}")

# %% [markdown]
# ## Verdicts
#
# What this page and its record can say about the claims of the paper. The criterion stands beside the verdict; differences count
# when the exact McNemar test on the same images gives $p < 0.05$.

# %% tags=["hide-input"]
HOLDS, FAILS, OPEN, MISSING = "holds here", "does not hold here", "not decided at this size", "not run here"
ALPHA = 0.05


def better(a: Row | None, b: Row | None) -> str:
    """Whether the model or setting of row ``a`` is more robust than that of ``b``: breaks of ``b`` only against those of ``a`` only."""
    if not (a and b):
        return MISSING
    lost, saved, p = mcnemar(a, b)
    return OPEN if p >= ALPHA else HOLDS if saved > lost else FAILS


def no_stronger(other: Row | None, bpda: Row | None) -> str:
    """Whether an attack is no stronger than BPDA: refuted if it breaks significantly more, held if its interval allows 5 points at most."""
    if not (other and bpda):
        return MISSING
    only, less, p = mcnemar(other, bpda)
    if p < ALPHA and only > less:
        return FAILS
    return HOLDS if only - less <= 0 or Accuracy.of(only, other["robust"]["n"]).high <= 0.05 else OPEN


def together(verdicts: list[str]) -> str:
    """One refutation refutes; all must hold; otherwise open. Comparisons that were not run do not count."""
    verdicts = [v for v in verdicts if v != MISSING]
    if not verdicts:
        return MISSING
    return FAILS if FAILS in verdicts else HOLDS if all(v == HOLDS for v in verdicts) else OPEN


def suite(model: str, norm: str = "Linf") -> Row | None:
    """The strongest attack on a model in the suite."""
    return strongest(rows_of("suite", model=model, norm=norm))


def rise_and_fall() -> str:
    """Claim A13, for the strongest gradient at every budget."""
    found = rows_of("budget", model="RDC")
    budgets = sorted({row["budget"] for row in found if row["budget"] is not None})
    line = [strongest([row for row in found if row["budget"] == b]) for b in budgets]
    if len(line) < 3:
        return MISSING
    best = max(line, key=lambda row: row["robust"]["value"])
    ends = [better(best, line[0]), better(best, line[-1])]
    return HOLDS if ends == [HOLDS, HOLDS] else FAILS if best in (line[0], line[-1]) and HOLDS in ends else OPEN


def against_bpda(table: str, **wanted: str) -> str:
    """Another attack of a table against BPDA of the same threat in the table "gradient"."""
    verdicts = []
    for row in rows_of(table, **wanted):
        bpda = strongest(
            [
                b
                for b in rows_of("gradient", model="RDC", lm=row["lm"], N=row["N"], noise=row["noise"], gradient="bpda")
                if threat(b) == threat(row)
            ]
        )
        verdicts.append(no_stronger(row, bpda))
    return together(verdicts)


def more_calls(noise: str) -> str:
    """The highest EOT against one call, same gradient and noise."""
    verdicts = []
    chosen = rows_of("eot", noise=noise, model="RDC")
    for line in dict.fromkeys((row["gradient"], row["lm"], row["N"], threat(row)) for row in chosen):
        mine = sorted(
            (row for row in chosen if (row["gradient"], row["lm"], row["N"], threat(row)) == line), key=lambda row: row["eot"]
        )
        if len(mine) > 1:
            verdicts.append(no_stronger(mine[-1], mine[0]))
    return together(verdicts)


def gradients_alike(n: int, gradient: str) -> str:
    """Whether another gradient, or the union of all, is no stronger than BPDA at N = n."""
    return together([no_stronger(other, bpda) for bpda, other in gradient_pairs(n, "fixed", gradient=gradient)])


def one_or_all() -> str:
    """Claim A12: one random level against all, the strongest attack on each."""
    found = [strongest(rows_of("timesteps", timesteps=kind, norm="Linf")) for kind in ("one", "all")]
    return better(found[0], found[1])


def in_the_lab(quantity: str, names_: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    """A quantity rises for more than 3/4 of the images at every level; or, for some reading, at every level for fewer than half."""
    shares = [(lab[n, kind][quantity] > 0).float().mean(1) for n in names_ for kind in kinds]
    worst, best = min(float(s.min()) for s in shares), min(float(s.max()) for s in shares)
    return HOLDS if worst > 0.75 else FAILS if best < 0.5 else OPEN


every, attacked_kinds = tuple(lab_images), ("border", "adversarial")
rows_out = [
    (
        "A10",
        "LM makes a plain CNN robust (Linf)",
        better(suite("LM+CNN"), suite("CNN")),
        "strongest attacks of the suite, against the CNN alone",
    ),
    (
        "A11",
        "LM raises log p(x) and log p(x | y)",
        together([in_the_lab(q, main_lab, every) for q in ("log p(z)", "log p(z | y)")]),
        "laboratory: > 3/4 of images, every level, every kind of image",
    ),
    (
        "A11'",
        "... and with it the log-odds of y",
        in_the_lab("log-odds", main_lab, attacked_kinds),
        "laboratory, border and adversarial images (not claimed in these words)",
    ),
    ("A12", "one level per step beats all", one_or_all(), "table timesteps, strongest attack on each"),
    ("A13", "robustness rises, then falls with eta", rise_and_fall(), "table budget, best against both ends"),
    ("A16", "exact is no stronger, N = 1", gradients_alike(1, "exact"), "exact against BPDA, all radii"),
    ("A16'", "exact is no stronger, N = 5", gradients_alike(5, "exact"), "exact against BPDA, all radii"),
    ("A16''", "BPDA suffices, N = 1", gradients_alike(1, "union"), "union of gradients against BPDA, all radii"),
    ("A16''", "BPDA suffices, N = 5", gradients_alike(5, "union"), "union of gradients against BPDA, all radii"),
    ("A17", "Lagrange is no stronger than BPDA", against_bpda("lagrange"), "same threat"),
    ("A20", "EOT does not help, fixed noise", more_calls("fixed"), "most calls against one"),
    ("A20'", "EOT does not help, fresh noise", more_calls("fresh"), "most calls against one"),
    ("A21", "the feature attack is no stronger", against_bpda("feature"), f"same threat; breaks {broken} of {tried}"),
    (
        "A22",
        "DiffPure+DC beats DiffPure+CNN",
        better(suite("DiffPure+DC"), suite("DiffPure+CNN")),
        "suite, strongest attacks, Linf",
    ),
    ("A22'", "RDC beats DiffPure+DC", better(suite("RDC"), suite("DiffPure+DC")), "suite, strongest attacks, Linf"),
    (
        "A27",
        "descending the loss raises log p(x)",
        in_the_lab("log p(z)", tuple(lab_cases), every),
        "laboratory: all readings, > 3/4 of images; the formula is an exercise",
    ),
]
print(f"{'claim':6s} {'in short':38s} {'verdict':26s} criterion")
for statement, text, verdict, criterion in rows_out:
    print(f"{statement:6s} {text:38s} {verdict:26s} {criterion}")

# %% tags=["remove-cell"]
assert all(verdict in (HOLDS, FAILS, OPEN, MISSING) for _, _, verdict, _ in rows_out)

# %% [markdown]
# Everything here is Fashion-MNIST with a small network. "Not run here" stands where the record has no rows; the lines A11' and
# below with a prime are our own additions.
#
# ## Summary
#
# - "Likelihood maximisation" names several procedures. To the letter, Algorithm 1 moves an image by at most $\gamma N (N + 1) /
#   2$ in L1, which is nothing; the released one moves every pixel by 12.75/255 in its first step.
# - The loss of one level is the slope of a log-likelihood in the noise level; only the ELBO-weighted sum is a log-likelihood.
#   What either does to exact likelihoods can be computed with the optimal denoiser.
# - A rising $\log p(x \mid y)$ does not decide the class; the log-odds do.
# - At $N = 1$ the exact gradient of the released LM is BPDA's plus spikes, and for sign steps it is BPDA's for every $N$. That
#   "exact is no stronger than BPDA" there says nothing about either.
# - A derivative sees the treads of a staircase. Test a gradient by what happens over a step of the attack's length.
# - Compare readings at equal displacement, and gradients on the same images with an exact test.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-score
# :::
# **Without the network's Jacobian.** Eqs. 14 and 15 of the paper write the gradient of the diffusion loss with the score of the
# noise in the place of the network's Jacobian:
# $\nabla L = w\, \E [ 2 (z - D) + \norm{z - D}^2 \varepsilon / \sigma ]$. Check it on the optimal denoiser of a few digits: how
# does the cosine with the gradient *through* the denoiser grow with the number of draws, with antithetic pairs and without a
# baseline?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-score
# :label: sol-lm-score
# :class: dropdown
# :::
# Both are unbiased; the difference is variance. Without a baseline the size of the loss multiplies the noise. Pairs
# $\varepsilon, -\varepsilon$ remove the even part of the loss, and what is left needs many draws even so.
# {py:mod}`rdc.classify.score_gradient` has the derivation.

# %%
one_level = levels("elbo", 1, sigma_min=0.4, sigma_max=0.6)
reference = pathwise_gradient(small, z_digit, one_level, draws=2048, antithetic=True, seed=seed + 1)
score_cosine: dict[tuple[str, int], float] = {}
for baseline in ("pairs", "none"):
    for r in (16, 256, 2048):
        estimate = score_gradient(small, z_digit, one_level, draws=r, baseline=baseline, seed=seed)
        score_cosine[baseline, r] = cosine(estimate, reference)
    print(f"{baseline:6s}", *(f"  {r:4d} draws: cosine {score_cosine[baseline, r]:.3f}" for r in (16, 256, 2048)))

# %% tags=["remove-cell"]
claim(score_cosine["pairs", 2048] > 0.9)
claim(score_cosine["pairs", 2048] > score_cosine["none", 2048])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-energy
# :::
# **The energy that is not normalised.** Appendix A.4 reads the diffusion loss as an energy, $p(z \mid y) = e^{-E_y(z)} / Z(y)$.
# The classifier compares $E_y$ and drops $Z(y)$. Is $Z$ the same for all classes? Take images of one pixel
# and three classes: two points close together, two far apart, and forty points along an interval. Compare the ELBO weights with
# those of EDM.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-energy
# :label: sol-lm-energy
# :class: dropdown
# :::
# For the ELBO weights from $a$ to a large $b$, $\log Z(y)$ lies within half a nat of $\tfrac12 \log(2 \pi a^2)$ for one pixel:
# at the lower end for isolated points, towards the upper one for a density that is smooth at the scale $a$
# ({py:mod}`rdc.classify.energy`). So it is not constant, and with $n$ pixels the classes may differ by up to $n / 2$ nats. For
# other weights there is no such bound.

# %%
pixel_x = torch.cat([torch.tensor([0.495, 0.505]), torch.tensor([0.2, 0.8]), torch.linspace(0.2, 0.8, 40)]).double()
pixel_y = torch.cat([torch.zeros(2), torch.ones(2), torch.full((40,), 2.0)]).long()
pixel = OptimalDenoiser(pixel_x.reshape(-1, 1, 1, 1), pixel_y)
grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
normalisers = {
    "elbo": class_normalisers(pixel, levels("elbo", 60, sigma_min=0.05, sigma_max=50.0), grid, nodes=65),
    "edm": class_normalisers(pixel, levels("edm", 60, sigma_min=0.05, sigma_max=50.0), grid, nodes=65),
}
for name, value in normalisers.items():
    print(
        f"{name:5s} log Z(y) = "
        + ", ".join(f"{v:.2f}" for v in value.tolist())
        + f"; spread {float(value.max() - value.min()):.2f} nats"
    )

# %% tags=["remove-cell"]
claim(0.05 < float(normalisers["elbo"].max() - normalisers["elbo"].min()) < 0.6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-zero
# :::
# **Class 0.** The VP version of the released code runs LM with the denoiser of class 0 in place of the unconditional one. What
# does that do to clean images, and to the share of them that is then taken for class 0?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-zero
# :label: sol-lm-zero
# :class: dropdown
# :::
# LM now descends the loss that *is* the logit of class 0. Whatever the image, it becomes more like that class; with the
# unconditional denoiser it need not.

# %%
as_zero: dict[str, tuple[int, int]] = {"no LM": (int((predict(classifier, xs) == 0).sum()), accuracy(classifier, xs, ys).correct)}
for name, label in {"unconditional": None, "class 0": 0}.items():
    found = LikelihoodMaximization(heads, label=label, seed=seed, **READINGS["clamped"])(xs)
    as_zero[name] = int((predict(classifier, found) == 0).sum()), accuracy(classifier, found, ys).correct
for name, (zeros, hits) in as_zero.items():
    print(f"{name:14s} {zeros:2d} of {n_static} taken for {test.classes[0]!r}, {hits} right")

# %% tags=["remove-cell"]
claim(as_zero["class 0"][0] >= as_zero["unconditional"][0])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-sign
# :::
# **The same gradient.** Show by computation that for `sign`, $N = 5$, the exact gradient of RDC is BPDA's, except at pixels that
# a wall of $[0, 1]$ has held. How many pixels is that? What does it say about an evaluation that reports
# "the exact gradient is no stronger" for this reading?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-sign
# :label: sol-lm-sign
# :class: dropdown
# :::
# At every other pixel the two agree bit for bit. The report would be true and empty: both are blind to the stairs, and only a
# blurred derivative, or a black-box attack, can tell.

# %%
v, back = pulled(processes["mi-fgsm"], xj, yj)
same = back == v
held = back == 0
print(
    f"pixels with the same gradient {100 * float(same.float().mean()):.1f} %, held by a wall {100 * float((held & ~same).float().mean()):.1f} %"
)

# %% tags=["remove-cell"]
claim(bool((same | held).all()))

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# LM, RDC and the claims judged here are from {cite:t}`chen2024rdc`; the released code is that of its repository at commit
# 8a82504. BPDA is due to {cite:t}`athalye2018obfuscated`, the rule that an evaluation must adapt to the
# defence to {cite:t}`tramer2020adaptive`, DiffPure to {cite:t}`nie2022diffpure`. MI-FGSM is from {cite:t}`dong2018momentum`, Adam from
# {cite:t}`kingma2015adam`; {prf:ref}`prop-lm-slope` is a form of the identity between mutual
# information and denoising error of {cite:t}`guo2005immse`.
