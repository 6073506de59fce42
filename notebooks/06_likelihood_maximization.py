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
# # Likelihood maximisation
#
# :::{admonition} What you will be able to do
# :class: tip
# - Name the different procedures that have been called "{term}`likelihood maximisation`", and say how far each moves an image.
# - Derive what the loss of one {term}`noise level` measures, and compute what descending it does to the exact likelihoods.
# - Say why an image can become more likely, under its own class too, and stay misclassified.
# :::
#
# **Time** 35 minutes · **Needs** {ref}`nb-optimal`, {ref}`nb-classifier` and {doc}`/book/notation`.
# Covers sections 3.4 and 4.1, Eq. 8, Algorithm 1 and appendices A.4, A.5 of {cite:t}`chen2024rdc`.
# {ref}`nb-lm-attacks` attacks what is built here, {ref}`nb-lm-parts` asks which part of it does the work.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
n_move: int = 24  # images for the displacement of every reading
n_train: int = 2000  # training images in the optimal denoiser
n_lab: int = 30  # test images in the laboratory
eps_lab: str | float = 24 / 255  # Linf radius there, image units

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from rdc.analyse.laboratory import QUANTITIES, likelihoods
from rdc.attack import pgd
from rdc.attack.norms import norm_of
from rdc.classify import DiffusionClassifier, LikelihoodMaximization
from rdc.classify.energy import class_normalisers
from rdc.classify.score_gradient import pathwise_gradient, score_gradient
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.defend.lm_updates import EPS, METHODS, memory_size, update
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.experiments import experiment
from rdc.notebook import check_parameters, claim, claims_table
from rdc.plots import image_grid, style
from rdc.rng import randn
from rdc.runs.record import book_folder
from rdc.runs.store import Store
from rdc.schedule import levels

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
train, test = load(data, "train"), load(data, "test")
heads = load_denoiser(f"{data}-multihead", device=device)
size = test.x[0].numel()

# %% [markdown]
# ## Why move the image?
#
# {cite:t}`chen2024rdc` find the optimal {term}`diffusion classifier` robust and the trained one less so (their section
# 3.3). They blame the diffusion loss, which on adversarial images is much larger than it should be. If the loss
# is too large there, one may look for an image nearby where it is smaller, and classify that. This is their Eq.
# 8:
#
# ```{math}
# :label: eq-lm
# \hat x = \arg\min_{x'} \; \E_{t, \varepsilon} \big[ w_t \norm{\epsilon_\theta(x'_t, t) - \varepsilon}^2 \big]
# \quad \text{subject to} \quad \norm{x' - x}_\infty \le \eta .
# ```
#
# The loss is that of the *unconditional* {term}`denoiser`, and a bound on $-\log p(x')$. Hence the name *likelihood
# maximisation* (LM), and the argument: an {term}`adversarial image` lies near an image of its true class $y$, so that
# moving towards higher $\log p(x)$ probably raises $\log p(x \mid y)$ too. The *robust diffusion classifier* is
# $\text{RDC}(x) = \text{DC}(\text{LM}(x))$.
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
# In the public thread of [issue 2](https://github.com/huanranchen/DiffusionClassifier/issues/2) of the released
# code an author says that there were two versions: one with all levels and momentum signs, with a budget
# (2023), and one with a single level and Adam, without an effective budget. The text of Algorithm 1, the values
# of $\gamma$, $\mu$, $\eta$ and Figure 2(b) belong to the first, "one randomly sampled $t$" and the headline
# number to the second. Three more facts about the released code: it calls `set_seed(1)` inside LM, so that LM
# is deterministic; its VP twin conditions on class 0 ({ref}`ex-lm-zero`); its version with all levels stops
# with an error at the second step.
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
# Let $g = \nabla_z \ell$ be the gradient that falls. "A step along $g$" leaves its length open. Write
# $\norm{g}_1$ for the sum of $|g|$ over the pixels of an image and $\overline{|g|}$ for their mean.
#
# **literal** and **mean-l1**. Momentum adds the directions, each divided by its size: $m \leftarrow \mu m - g /
# \norm{g}_1$. With the sum a direction has L1 length 1, so that a pixel gets about $1 / D$ of it. With the mean
# a pixel gets about 1. The two differ by the factor $D$, the number of pixels, and by nothing else.
#
# **sign**. The steepest descent in an Linf ball is $-\operatorname{sign}(g)$: it minimises $g \cdot \delta$
# over $\norm{\delta}_\infty \le 1$, pixel by pixel. With the same momentum, and steps $\eta / N$ that together
# reach $\eta$, this is MI-FGSM {cite}`dong2018momentum`, where the normalisation by $\norm{g}_1$ comes from;
# there only the sign of $m$ is used.
#
# **rmsprop** divides by a running root mean square: $v \leftarrow \alpha v + (1 - \alpha) g^2$, step $-g /
# (\sqrt v + \varepsilon)$. From $v = 0$ the first step is $-g / (|g| \sqrt{1 - \alpha} + \varepsilon)$: a sign
# times $1 / \sqrt{1 - \alpha} = 10$.
#
# **adam** also averages $g$, and divides both averages by what they lack at the start: $\hat m = m / (1 -
# \beta_1^{n+1})$, $\hat v = v / (1 - \beta_2^{n+1})$. At $n = 0$ they are $g$ and $g^2$, and the step is
#
# ```{math}
# :label: eq-lm-adam
# u(g) = - \frac{g}{|g| + \varepsilon}, \qquad \varepsilon = 10^{-8} ,
# ```
#
# a sign wherever $|g| \gg \varepsilon$. So the released rate of 0.1 on $z$ moves *every* pixel by $0.05 = 12.75
# / 255$ of the image's range in the first step, whatever the image.
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
# With $m \leftarrow \mu m - g / \norm{g}_1$, $\mu \le 1$, and $x \leftarrow \operatorname{clip}(x + \gamma m)$,
# where the clip is to a box that contains $x$, $N$ steps move an image by at most $\gamma N (N + 1) / 2$ in L1.
# :::
#
# :::{prf:proof}
# By induction $\norm{m_n}_1 \le \mu \norm{m_{n-1}}_1 + 1 \le n$. Clipping to a box is done pixel by pixel,
# fixes the point before the step, which lies in the box, and never enlarges a distance. So step $n$ moves the
# image by at most $\gamma \norm{m_n}_1 \le \gamma n$, and $\sum_{n=1}^{N} n = N (N + 1) / 2$.
# :::
#
# For $\gamma = 0.1$ and $N = 5$ that is 1.5 *for all pixels together*, whatever their number. On the 3072
# pixels of CIFAR-10 it is an eighth of a grey level each; the budget $\eta = 8/255$ is never reached. Now
# measure:

# %% tags=["hide-input"]
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
# The printed reading is the identity for all practical purposes. The released one leaves the ball of radius
# 8/255 with its first step. It is not a small correction inside a budget but a new image, drawn from the same
# loss. An ablation of the budget $\eta$
# (Figure 2(b)
# of the paper) can belong to neither.
#
# In what follows, "LM" without more words is the released reading, clamped after every step (`clamped` above;
# `released` clamps once, at the end, as the code does), with the same noise at every call: the records of this
# chapter were made with it. The released reading is the one behind the paper's headline number, and noise that
# is the same at every call is noise that the attacker knows.
#
# (sec-lm-laboratory)=
# ## A laboratory: exact likelihoods
#
# Does LM maximise a likelihood? With a trained network nobody can tell. With the {term}`optimal denoiser` of a finite
# data set
# ({ref}`nb-optimal`) all densities are exact. First the theory. What does the loss of *one* noise level measure?
#
# :::{prf:proposition} The loss of one level is a slope
# :label: prop-lm-slope
# Let $D$ be the optimal denoiser of $p$, $p_\sigma$ the density of $z + \sigma \varepsilon$, and $n$ the number
# of pixels. Then for every image $z$
#
# $$
# \E_\varepsilon \norm{z - D(z + \sigma \varepsilon, \sigma)}^2
# = n \sigma^2 + \sigma^3\, \frac{d}{d\sigma}\, \E_\varepsilon \log p_\sigma(z + \sigma \varepsilon) .
# $$
# :::
#
# :::{prf:proof}
# Let $u = z + \sigma \varepsilon$ and $s = \nabla \log p_\sigma(u) = (D - u) / \sigma^2$. The density obeys the
# heat equation $\partial_\sigma p_\sigma = \sigma \Delta p_\sigma$, so that $\partial_\sigma \log p_\sigma =
# \sigma (\operatorname{div} s + \norm{s}^2)$, and $u$ moves with $\sigma$ at the rate $\varepsilon$. Stein's
# identity is $\E\, \varepsilon \cdot s = \sigma\, \E \operatorname{div} s$. Together
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
# Two things follow. Summed over levels with the weights $\sigma^{-3} d\sigma$ of the {term}`ELBO`, from $a$ to $b$, the
# slopes add up to a difference of log-likelihoods: for large $b$ the full loss is $-\E \log p_a(z + a
# \varepsilon)$ up to a constant, and descending it *is* likelihood maximisation, of data blurred by $a$. A
# single level is only the slope at this level. To make it small is to look for an image whose likelihood *falls
# fast* when noise is added. That is no bound on $\log p$, and nothing says that it raises it. So we compute.

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
# Now the images. The data are `n_train` training images, and the classifier is the diffusion classifier of their optimal
# denoiser. We attack test images that it gets right, and ask the exact model about those that {term}`PGD` breaks, before and after LM:
#
# - $\log p_\sigma(z)$ and $\log p_\sigma(z \mid y)$ for the true class $y$,
# - the log-odds $\log p_\sigma(z \mid y) - \max_{k \ne y} \log p_\sigma(z \mid k)$, which decide the class.

# %%
optimal = OptimalDenoiser(train.x[:n_train].to(device), train.y[:n_train].to(device))
exact = DiffusionClassifier(optimal, levels("elbo", 8, sigma_min=0.1), seed=seed)
xl, yl = x[:n_lab], y[:n_lab]
x_adv = pgd(exact, xl, yl, eps=eps_lab, steps=10, seed=seed)
broken = (predict(exact, xl) == yl) & (predict(exact, x_adv) != yl)
xb, yb = x_adv[broken], yl[broken]
lm = LikelihoodMaximization(optimal, seed=seed, **READINGS["clamped"])
before, after = (likelihoods(optimal, z, yb, 0.5) for z in (xb, lm(xb)))
print(f"{len(yb)} adversarial images, LM as released, sigma = 0.5")
for name in QUANTITIES:
    rise = after[name] - before[name]
    print(f"{name:13s} rises for {int((rise > 0).sum()):2d}, median {float(rise.median()):+.0f} nats")
print(f"right again: {int((predict(exact, lm(xb)) == yb).sum())}")

# %% tags=["remove-cell"]
claim(len(yb) >= 5)

# %% [markdown]
# The same with more images, five readings, and images that stand just beyond the border ("border": the first misclassified
# one on the straight line to the adversarial image), from the record:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Share of images whose exact likelihood, likelihood of the true class and log-odds of the true class rise by likelihood maximisation, the lowest of four noise levels of the density. The likelihoods rise nearly always; for adversarial images the log-odds, which decide, mostly fall.", "name": "fig-lm-laboratory"}, "image": {"alt": "Three panels with shares of images for clean, border and adversarial images; in the first two nearly all lines lie at 100 percent, in the third they fall to below 30 percent for adversarial images"}}
store, rows = Store.read(book_folder("results") / "laboratory.jsonl"), experiment("laboratory").rows
readings = list(dict.fromkeys(row.about["LM"] for row in rows))
kinds, at = ("clean", "border", "adversarial"), (0.1, 0.2, 0.5, 1.0)
rises = {
    (row.about["LM"], row.about["images"], q): [
        [v > 0 for v in store.of(row).value(f"{q}, sigma {s:g}").values() if v is not None] for s in at
    ]
    for row in rows
    for q in QUANTITIES
}
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), sharey=True)
for ax, q in zip(axes, QUANTITIES, strict=True):
    for i, reading in enumerate(readings):
        share = [100 * min(sum(b) / len(b) for b in rises[reading, kind, q]) for kind in kinds]
        ax.plot(range(3), share, "o-", color=f"C{i}", label=reading)
    ax.axhline(50, color="black", lw=0.8)
    ax.set(title=q, ylim=(-3, 103), xlim=(-0.3, 2.3))
    ax.set_xticks(range(3), kinds)
axes[0].set_ylabel("images for which it rises (%)")
axes[0].legend(fontsize=9)
fig.tight_layout()
plt.show()
counted = {kind: len(rises["released", kind, "log-odds"][0]) for kind in kinds}
print("images:", ", ".join(f"{n} {kind}" for kind, n in counted.items()))

# %% tags=["hide-input"]
claims_table("A11", "A11a", "A27")

# %% [markdown]
# That $\log p(z \mid y)$ rises says little about the class, because the likelihood of the *wrong* class can rise as much
# or more: LM does not know which class to prefer, and an adversarial image is by construction one that the model finds more likely
# under a wrong class. The argument of section 3.4 needs the log-odds, and speaks of the likelihood. Whether the log-odds rise
# depends on where the image stands, just beyond the border or deep in the wrong class, and on the levels at which LM looks.
#
# ## What to remember
#
# - "Likelihood maximisation" names several procedures. To the letter, Algorithm 1 moves an image by at most
#   $\gamma N (N + 1) / 2$ in L1, which is nothing; the released one moves every pixel by 12.75/255 in its first step.
# - The loss of one level is the slope of a log-likelihood in the noise level; only the ELBO-weighted sum is a log-likelihood.
# - A rising $\log p(x \mid y)$ does not decide the class; the log-odds do.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-score
# :::
# **Without the network's Jacobian** (15 minutes, medium). Eqs. 14 and 15 of the paper write the gradient of the
# diffusion loss with the score of the noise in the place of the network's Jacobian: $\nabla L = w\, \E [ 2 (z - D) +
# \norm{z - D}^2 \varepsilon / \sigma ]$. Check it on the optimal denoiser of a few digits: which cosine with the
# gradient *through* the denoiser has the mean of 256 draws, with antithetic pairs and without a baseline?
#
# :::{hint}
# :class: dropdown
# `score_gradient(small, z_digit, one_level, draws=..., baseline=..., seed=seed)` has the estimate,
# `pathwise_gradient(..., antithetic=True)` the gradient through the denoiser.
# :::

# %%
# your code here
one_level = levels("elbo", 1, sigma_min=0.4, sigma_max=0.6)
cosine = {"pairs": None, "none": None}  # with 256 draws

# %%
# check
fine = None not in cosine.values() and cosine["pairs"] > 0.95
fine = fine and 0.3 < cosine["none"] < 0.9
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-score
# :label: sol-lm-score
# :class: dropdown
# :::
# Both are unbiased; the difference is variance. Without a baseline the size of the loss multiplies the noise. Pairs
# $\varepsilon, -\varepsilon$ remove the even part of the loss. {py:mod}`rdc.classify.score_gradient` has the
# derivation.

# %%
reference = pathwise_gradient(
    small, z_digit, one_level, draws=2048, antithetic=True, seed=seed + 1
)
for baseline in cosine:
    for r in (16, 256):
        estimate = score_gradient(
            small, z_digit, one_level, draws=r, baseline=baseline, seed=seed
        )
        sides = estimate.flatten(1), reference.flatten(1)
        cosine[baseline] = float(F.cosine_similarity(*sides).median())
        print(f"{baseline:6s} {r:4d} draws: cosine {cosine[baseline]:.3f}")

# %% tags=["remove-cell"]
claim(cosine["pairs"] > 0.9 and cosine["pairs"] > cosine["none"])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-energy
# :::
# **The energy that is not normalised** (15 minutes, hard). Appendix A.4 reads the diffusion loss as an energy, $p(z
# \mid y) = e^{-E_y(z)} / Z(y)$. The classifier compares $E_y$ and drops $Z(y)$. Is $Z$ the same for all classes? Take
# images of one pixel and three classes: two points close together, two far apart, and forty points along an interval.
# By how many nats does $\log Z$ differ between classes, for the ELBO weights and for those of {term}`EDM`?
#
# :::{hint}
# :class: dropdown
# `class_normalisers(pixel, levels("elbo", 60, sigma_min=0.05, sigma_max=50.0), grid, nodes=65)` integrates over a
# `grid` of images, say 401 from -4 to 4 in float64.
# :::

# %%
# your code here
two, line = torch.tensor([0.495, 0.505, 0.2, 0.8]), torch.linspace(0.2, 0.8, 40)
pixel_x = torch.cat([two, line]).double().reshape(-1, 1, 1, 1)
pixel_y = torch.tensor([0, 0, 1, 1] + 40 * [2])
pixel = OptimalDenoiser(pixel_x, pixel_y)
spread = {"elbo": None, "edm": None}  # largest minus smallest log Z

# %%
# check
fine = None not in spread.values()
fine = fine and 0.4 < spread["elbo"] < 0.5 and 0.8 < spread["edm"] < 1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-energy
# :label: sol-lm-energy
# :class: dropdown
# :::
# For the ELBO weights from $a$ to a large $b$, $\log Z(y)$ lies within half a nat of $\tfrac12 \log(2 \pi a^2)$ for one
# pixel: at the lower end for isolated points, towards the upper one for a density that is smooth at the scale $a$
# ({py:mod}`rdc.classify.energy`). So it is not constant, and with $n$ pixels the classes may differ by up to $n / 2$
# nats. For other weights there is no such bound.

# %%
grid = torch.linspace(-4, 4, 401, dtype=torch.float64)
for kind in spread:
    weights = levels(kind, 60, sigma_min=0.05, sigma_max=50.0)
    value = class_normalisers(pixel, weights, grid, nodes=65)
    spread[kind] = float(value.max() - value.min())
    words = ", ".join(f"{v:.2f}" for v in value.tolist())
    print(f"{kind:5s} log Z(y) = {words}; spread {spread[kind]:.2f} nats")

# %% tags=["remove-cell"]
claim(0.05 < spread["elbo"] < 0.6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-letter
# :::
# **To the letter, with less momentum** (10 minutes, easy). {prf:ref}`prop-lm-literal` bounds the displacement for $\mu
# \le 1$. What is the bound for a given $\mu < 1$? Compute it for $\gamma = 0.1$, $N = 5$, $\mu = 0.5$.
#
# :::{hint}
# :class: dropdown
# $\norm{m_n}_1 \le \mu \norm{m_{n-1}}_1 + 1$ is a geometric sum. When do two momenta add up without loss?
# :::

# %%
# your code here
bound = None  # L1, for all pixels together

# %%
# check
total, m = 0.0, torch.zeros(784, dtype=torch.float64)
for _ in range(5):
    g = torch.ones(784, dtype=torch.float64)  # the same gradient at each step
    m = 0.5 * m - g / g.abs().sum()
    total += 0.1 * float(m.abs().sum())
fine = bound is not None and abs(bound - total) < 1e-6
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-letter
# :label: sol-lm-letter
# :class: dropdown
# :::
# $\norm{m_n}_1 \le (1 - \mu^n) / (1 - \mu)$, so the bound is $\gamma \sum_n (1 - \mu^n) / (1 - \mu)$. Any gradient that
# stays the same attains it, away from the walls. Less momentum moves the image even less.

# %%
bound = 0.1 * sum((1 - 0.5**n) / (1 - 0.5) for n in range(1, 6))
print(f"at most {bound:.4f}, where momentum 1 has 1.5")

# %% tags=["remove-cell"]
claim(bound < 1.5 and abs(bound - total) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# LM and the claims judged here are from {cite:t}`chen2024rdc`; the released code is that of its repository at commit 8a82504.
# MI-FGSM is from {cite:t}`dong2018momentum`, Adam from {cite:t}`kingma2015adam`; {prf:ref}`prop-lm-slope` is a form of the identity
# between mutual information and denoising error of {cite:t}`guo2005immse`.
