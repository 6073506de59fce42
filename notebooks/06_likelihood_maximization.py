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
# - Name the different procedures that have been called "{term}`likelihood maximisation`".
# - Derive the steps of five updates, and say how far each moves an image.
# :::
#
# **Time** 25 minutes · **Needs** {ref}`nb-optimal`, {ref}`nb-classifier` and {doc}`/book/notation`.
# Covers sections 3.4 and 4.1, Eq. 8 and Algorithm 1 of {cite:t}`chen2024rdc`.
#
# Before it is classified, an image is moved to where its diffusion loss is smaller. How far depends on how one reads the paper:

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
n_move: int = 24  # images for the displacement of every reading

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullFormatter, ScalarFormatter
from torch import Tensor

from rdc.attack.norms import norm_of
from rdc.classify import LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.defend.lm_updates import EPS, METHODS, memory_size, update
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, close_to, show_table
from rdc.plots import image_grid, style
from rdc.rng import randn

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")
x = test.x[:n_move].to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
size = x[0].numel()
cases: dict[str, dict[str, Any]] = {
    **READINGS,
    "released, N = 1": {**READINGS["clamped"], "steps": 1},
    "rmsprop, 0.01": {**READINGS["clamped"], "method": "rmsprop", "step_size": 0.01},
}
moved: dict[str, Tensor] = {name: LikelihoodMaximization(heads, seed=seed, **case)(x) for name, case in cases.items()}

# %% mystnb={"figure": {"caption": "Four test images: as they are, and after LM as printed, as MI-FGSM with a budget of 8/255, and as released (the names are those of READINGS).", "name": "fig-lm-images"}, "image": {"alt": "Four rows of four garments; the printed reading looks unchanged, the released one has visible changes", "width": "60%"}} tags=["hide-input"]
shown = {"test image": x} | {name: moved[name] for name in ("printed", "mi-fgsm", "released")}
few = min(4, len(x))
fig = image_grid(torch.cat([pictures[:few] for pictures in shown.values()]), columns=few, size=0.7)
for name, ax in zip(shown, fig.axes[::few], strict=True):
    ax.text(-0.1, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=11)
plt.show()

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
# ## One name, several procedures
#
# Eq. 8 says what is wanted, not how to get there. Four answers can be found, and they exclude each other:
#
# :::{table} Four readings of likelihood maximisation
#
# | name in the code, and source | loss of a step | step | budget | noise |
# |---|---|---|---|---|
# | **expectation**: Eq. 8, and the text of 3.4 | all $T$ levels, weight $w_t$ | "gradient-based" | Linf, $\eta = 8/255$ | not said |
# | **printed**: Algorithm 1 as printed | one random level | $m \leftarrow \mu m - g / \norm{g}_1$, then $x \leftarrow x + \gamma m$; $\gamma = 0.1$, $\mu = 1$, $N = 5$ | Linf, $\eta$ | fresh |
# | **mi-fgsm**: Algorithm 1 read as MI-FGSM | one random level | $\pm \eta / N$ along $\operatorname{sign}(m)$ | Linf, $\eta$ | fresh |
# | **released**: the code, commit 8a82504 | one level $\sigma \sim U(0.4, 0.6)$, weight 1, mean over pixels | Adam with rate 0.1 on $z$, $N = 5$; clamped to $[-1, 1]$ once, at the end | an L2 ball larger than the cube of all images | the same at every call |
#
# :::
#
# In the public thread of [issue 2](https://github.com/huanranchen/DiffusionClassifier/issues/2) of the released
# code an author says that there were two versions: one with all levels and momentum signs, with a budget
# (2023), and one with a single level and Adam, without an effective budget. The text of Algorithm 1, the values
# of $\gamma$, $\mu$, $\eta$ and Figure 2(b) belong to the first, "one randomly sampled $t$" and the headline
# number to the second. Three more facts about the released code: it calls `set_seed(1)` inside LM, so that LM
# is deterministic; its VP twin conditions on class 0 ({ref}`ex-lm-zero`); its version with all levels stops
# with an error at the second step.
#
# {py:class}`rdc.classify.LikelihoodMaximization` implements all of these; `READINGS` holds their arguments. `expectation` takes the
# loss over all levels, an expectation, and since Eq. 8 names no step, those of `mi-fgsm`. Two entries are ours: `mean-l1` is `printed`
# with the mean of $|g|$ in the place of the sum, `clamped` is `released` clamped after every step.

# %% tags=["hide-input"]
rows = []
for name, options in READINGS.items():
    lm = LikelihoodMaximization(heads, **options)
    budget = "none" if lm.budget is None else f"{255 * lm.budget:.0f}/255"
    rows.append(
        {
            "reading": name,
            "update": lm.method,
            "step": f"{255 * lm.step_size / 2:.2f}/255",
            "budget": budget,
            "levels": f"{lm.timesteps}, {lm.evaluations} evaluations",
            "noise": lm.noise,
        }
    )
show_table(rows, f"What READINGS holds, N = {lm.steps}")

# %% [markdown]
# ## Five updates
#
# Let $g = \nabla_z \ell$ be the gradient of the loss that is to fall. "A step along $g$" leaves its length open. Write
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
# times $1 / \sqrt{1 - \alpha} = 10$, with $\alpha = 0.99$.
#
# **adam** also averages $g$, and divides both averages by what they lack at the start: $\hat m = m / (1 -
# \beta_1^{n+1})$, $\hat v = v / (1 - \beta_2^{n+1})$. At $n = 0$ they are $g$ and $g^2$, and the step is
#
# ```{math}
# :label: eq-lm-adam
# u(g) = - \frac{g}{|g| + \varepsilon}, \qquad \varepsilon = 10^{-8} ,
# ```
#
# a sign wherever $|g| \gg \varepsilon$. So the released rate of 0.1 on $z$ moves *every* pixel that no wall holds by
# $0.05 = 12.75 / 255$ of the image's range in the first step, whatever the image.
#
# Ten lines, checked against the package for three steps:

# %%
def by_hand(method: str, slopes: Tensor) -> Tensor:
    """The last of the changes for gradients ``(N, C, H, W)`` of an image."""
    m, v = torch.zeros_like(slopes[0]), torch.zeros_like(slopes[0])
    for n, g in enumerate(slopes):
        if method == "rmsprop":
            v = 0.99 * v + 0.01 * g**2
            change = -g / (v.sqrt() + EPS)
        elif method == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            root = (v / (1 - 0.999 ** (n + 1))).sqrt()
            change = -(m / (1 - 0.9 ** (n + 1))) / (root + EPS)
        else:
            mean = method == "mean-l1"
            m = m - g / (g.abs().mean() if mean else g.abs().sum())
            change = m.sign() if method == "sign" else m
    return change


slopes = randn((3, *test.x.shape[1:]), seed, "slopes").double()
rows = []
for method in METHODS:
    zero = torch.zeros_like(slopes[:1])
    memory = tuple(zero for _ in range(memory_size(method)))
    row = {"update": method}
    for n in range(3):
        change, memory = update(method, slopes[n : n + 1], memory, n)
        row[f"step {n + 1}"] = f"{change.abs().max():.4f}"
    same = torch.allclose(change[0], by_hand(method, slopes))
    rows.append(row | {"as by hand": "yes" if same else "no"})
show_table(rows, "Largest change of a pixel")

# %% tags=["remove-cell"]
assert all(row["as by hand"] == "yes" for row in rows)

# %% [markdown]
# ## How far does each move an image?
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
# For $\gamma = 0.1$ and $N = 5$ that is 1.5 *for all pixels together*, whatever their number. On average over the 3072
# numbers of a CIFAR-10 image it is an eighth of a grey level each. Single pixels may move further; on our images none
# reaches the budget $\eta = 8/255$. Now measure, and beside the six entries of `READINGS` two that differ from `clamped` in one thing:
# one step in the place of five, and RMSprop with rate 0.01.

# %% tags=["hide-input", "hide-output"]
far = {name: {p: norm_of(found - x, p) for p in ("L1", "L2", "Linf")} for name, found in moved.items()}
rows = []
for name, d in far.items():
    beyond = float(((moved[name] - x).abs() > 8.01 / 255).float().mean())
    rows.append(
        {
            "reading": name,
            "L1": f"{d['L1'].mean():.2f}",
            "L2": f"{d['L2'].mean():.2f}",
            "Linf, of 255": f"{255 * d['Linf'].mean():.1f}",
            "pixels beyond 8/255": f"{100 * beyond:.0f} %",
        }
    )
show_table(rows, f"Mean displacement, {len(x)} images")

# %% tags=["remove-cell"]
claim(float(far["printed"]["L1"].max()) <= 1.5 + 1e-3)
claim(float(far["printed"]["Linf"].max()) < 7 / 255 and float(far["printed"]["L2"].max()) < 0.25)
claim(abs(255 * float(far["released, N = 1"]["Linf"].mean()) - 12.75) < 0.01)
claim(float(far["mi-fgsm"]["Linf"].max()) <= 8.01 / 255)
claim(float(far["released"]["L2"].mean()) > 2 * float(far["mi-fgsm"]["L2"].mean()))

# %% mystnb={"figure": {"caption": "How far each reading moves an image: mean over test images, with the smallest and largest (bars). Lines: the paper's radii for an attacker, 8/255 in Linf and 0.5 in L2, and (dotted) the largest L2 norm that an Linf attacker of 8/255 can reach here.", "name": "fig-lm-displacement"}, "image": {"alt": "Two panels with the L2 and Linf displacement of eight readings on log scales"}} tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True)
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

# %% [markdown]
# In L2 the printed reading moves an image by a small part of what an attacker may. The released one leaves the ball of radius
# 8/255 with its first step. It is not a small correction inside a budget but a new image, drawn from the same
# loss. An ablation of the budget $\eta$ (Figure 2(b) of the paper) can belong to neither.
#
# In what follows, "LM" without more words is the released reading, clamped after every step (`clamped` above;
# `released` clamps once, at the end, as the code does), with the same noise at every call: the computations of this
# chapter, the laboratory, and the tables on the parts of RDC ({ref}`nb-lm-parts`) that do not say otherwise were made with it.
# Rows and tables that say *RDC as released* or *LM as released* (the headline, the union of attacks, more steps, other seeds,
# CIFAR-10), and the audit, clamp once. The classifier behind it has the weights of the bound unless a table says
# otherwise. The released reading is the one behind the paper's headline number, and noise that
# is the same at every call is noise that the attacker knows.
#
# What LM does to the likelihood is the question of {ref}`sec-lm-laboratory`. {ref}`nb-lm-attacks` attacks what is built here,
# {ref}`nb-lm-parts` asks which part of it does the work.
#
# ## What to remember
#
# - "Likelihood maximisation" names several procedures, and they exclude each other.
# - To the letter, Algorithm 1 moves an image by at most $\gamma N (N + 1) / 2$ in L1, which is nothing.
# - The first step of the released one is 12.75/255 for every pixel that no wall holds, whatever the image.

# %% [markdown]
# ## Exercises
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
fine = close_to(bound, total, within=4e-3)
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
# :::{exercise-start}
# :label: ex-lm-first-step
# :::
# **The same first step** (5 minutes, easy). Adam with a rate of 0.1 on $z$ begins with a step of 0.1 for every pixel. Which rate
# gives rmsprop ($\alpha = 0.99$) the same first step? And by how many grey levels of 255 does a pixel then move?
#
# :::{hint}
# :class: dropdown
# $z = 2x - 1$: one unit of $z$ is half of the image's range. {eq}`eq-lm-adam` and the paragraph before it have the steps.
# :::

# %%
# your code here
rate, grey_levels = None, None

# %%
# check
slope = torch.tensor([[[[0.3]]]]).double()
steps = {}
for method in ("adam", "rmsprop"):
    memory = tuple(0 * slope for _ in range(memory_size(method)))
    steps[method] = abs(float(update(method, slope, memory, 0)[0]))
fine = None not in (rate, grey_levels)
fine = fine and abs(rate * steps["rmsprop"] - 0.1 * steps["adam"]) < 1e-6
fine = fine and close_to(grey_levels, 255 * 0.1 / 2, within=0.06)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-first-step
# :label: sol-lm-first-step
# :class: dropdown
# :::
# A tenth of Adam's rate, since the first step of rmsprop is $1 / \sqrt{1 - \alpha} = 10$ times a sign. In the image it is half
# of the step in $z$.

# %%
rate = 0.1 * (1 - 0.99) ** 0.5
grey_levels = 255 * 0.1 / 2
print(f"rate {rate:.3f}; {grey_levels} grey levels")

# %% tags=["remove-cell"]
claim(abs(rate - 0.01) < 1e-9)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-farthest
# :::
# **As far as it goes** (10 minutes, easy). Five steps of the released LM: how far can a pixel move, in grey levels, if its gradient
# stays the same and no wall holds it? How far is that for a whole image of 784 pixels, in L2? And how far for five steps of MI-FGSM
# with a budget of 8/255?
#
# :::{hint}
# :class: dropdown
# Under a gradient that stays the same every step of Adam is a sign. A change of $a$ in each of 784 pixels has the L2 norm $28 a$.
# :::

# %%
# your code here
pixel, released_l2, budget_l2 = None, None, None

# %%
# check
memory, total = tuple(0 * slope for _ in range(memory_size("adam"))), 0.0
for n in range(5):
    change, memory = update("adam", slope, memory, n)
    total += 0.1 / 2 * abs(float(change))
fine = close_to(pixel, 255 * total, within=0.06)
lengths = 28 * total, 28 * 8 / 255
fine = fine and close_to((released_l2, budget_l2), lengths, within=5e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-farthest
# :label: sol-lm-farthest
# :class: dropdown
# :::
# Five steps of 12.75 grey levels. {numref}`fig-lm-displacement` shows that the farthest pixels nearly do it, but an image as a whole
# does not: most gradients turn, and the background stands at a wall.

# %%
pixel = 5 * 255 * 0.1 / 2
released_l2, budget_l2 = 28 * pixel / 255, 28 * 8 / 255
print(f"{pixel} grey levels; L2 {released_l2:.1f} and {budget_l2:.2f}")

# %% tags=["remove-cell"]
claim(float(far["released"]["L2"].max()) < released_l2)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# LM is from {cite:t}`chen2024rdc`; the released code is that of its repository at commit 8a82504. MI-FGSM is from
# {cite:t}`dong2018momentum`, Adam from {cite:t}`kingma2015adam`.
