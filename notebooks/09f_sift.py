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
# (nb-certificate-sift)=
# # Sift and refine
#
# :::{admonition} What you will be able to do
# :class: tip
# - Drop classes early, with a guarantee that does not depend on their number.
# - Say when such a guarantee is needed, and when a rule saves nothing.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-fast-certificates` and {ref}`nb-early-stopping`. Covers sift-and-refine of {cite:t}`chen2024ndc`.
#
# With one evaluation for each class and level, a thousand classes are out of reach. Most of them are absurd after a few levels.
# Sift-and-refine drops them, and evaluates the rest in full.

# %% tags=["parameters"]
seed: int = 0  # seed of all random numbers
sigma: float = 0.25  # smoothing noise, image units
n_images: int = 500  # images of the digits behind the optimal denoiser
n_sift: int = 80  # images that are sifted
many_classes: int = 1000  # classes of the simulation

# %% tags=["hide-input"]
import math
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from rdc.certify import APNDC, EPNDC
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.early_exit import Leader, Paired, Threshold
from rdc.early_exit.sift import Sifted, Table, calibrate, released, sift_table
from rdc.notebook import (
    check_parameters,
    claim,
    glue,
    show_table,
    show_verdicts,
    stored_cells,
)
from rdc.plots import style
from rdc.rng import generator, randn, randn_each
from rdc.runs.statistics import Accuracy
from rdc.runs.verdict import Comparison, decide_all

check_parameters()
style()
digits_train = load("digits", "train")[:n_images]
digits = OptimalDenoiser(digits_train.x.double(), digits_train.y)
digits_test = load("digits", "test").x[: n_sift + 20].double()
keys = [(seed, "certify", "digits", i) for i in range(n_sift + 20)]
x_sift = digits_test + sigma * randn_each((1, 8, 8), keys, like=digits_test)
linear = APNDC(
    digits,
    sigma,
    count=124,
    placement="linear",
    sigma_max=3.0,
    weight="edm-released",
    seed=seed,
    chunk=20_000,
)
crowd_x = torch.rand(
    2 * many_classes,
    1,
    4,
    4,
    generator=generator(seed, "certify", "crowd"),
    dtype=torch.float64,
)
crowd = OptimalDenoiser(crowd_x, torch.arange(2 * many_classes) % many_classes)
crowd_model = APNDC(crowd, sigma, count=64, seed=seed, chunk=64 * many_classes)
noise_crowd = [
    randn((1, 4, 4), seed, "certify", "crowd", i) for i in range(n_sift + 4)
]
x_crowd = crowd_x[: n_sift + 4] + sigma * torch.stack(noise_crowd).double()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "One noisy image each: how far the losses of the classes, added up from the lowest level on, lie above those of the class that wins in the end (thick). Left: ten digits. Right: a hundred of many simulated classes. Most are far behind at once; a few stay close.", "name": "fig-cert-sift"}, "image": {"alt": "Thin lines rise from zero away from a thick horizontal line; on the right most of a hundred lines leave the picture early"}}
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
shown = {"ten digits": (linear, x_sift[20:21])}
shown[f"{many_classes} classes"] = (crowd_model, x_crowd[4:5])
for ax, (name, (model, one)) in zip(axes, shown.items(), strict=True):
    with torch.no_grad():
        sums = model.losses(one)[0].cumsum(dim=1)  # (K, T)
    best = int(sums[:, -1].argmin())
    behind = sums - sums[best]
    order = behind[:, -1].argsort()
    for k in order[:: max(1, len(order) // 100)].tolist():
        ax.plot(range(1, sums.shape[1] + 1), behind[k], color="C0", lw=0.7)
    ax.plot([1, sums.shape[1]], [0, 0], color="C1", lw=2.5)
    half = float(behind[:, -1].median())
    ax.set(xlabel="levels", title=name, ylim=(-0.1 * half, half))
axes[0].set_ylabel("losses above the winner's")
fig.tight_layout()
plt.show()

# %% [markdown]
# (sec-cert-sift)=
# ## Three rules
#
# For a smoothing certificate *no* guarantee is needed: the rule only changes which base classifier is certified. A guarantee
# matters for being the classifier that one wanted.
#
# Fix the noise. Then a classifier is a table of losses $\ell_{y,t} \ge 0$, and the full answer is $\arg\min_y \sum_t \ell_{y,t}$. Three rules
# ({py:mod}`rdc.early_exit.sift_rules`):
#
# **`Threshold`, as released.** Levels in ascending order; a class is dropped when its sum is above the smallest one by an absolute number, until ten are left;
# the best ten are refined. The number, $5 \cdot 10^{-5}$ in the units of the code, must be chosen anew for each weight, {term}`noise level` and data set.
#
# **`Leader`.** A few levels choose a leader $b$, whose losses are all evaluated. Then levels are drawn with probability
# $q_t = \ell_{b,t} / \sum_{t'} \ell_{b,t'}$, and class $y$ is dropped when
#
# ```{math}
# :label: eq-cert-leader
# W_y = \prod_i \Big( 1 + \lambda_i \Big( \frac{\ell_{y,t_i}}{\ell_{b,t_i}} - 1 \Big) \Big) \ge \frac1\alpha ,
# ```
#
# with stakes $0 \le \lambda_i < 1$ that depend on earlier draws only.
#
# :::{prf:proposition} One hypothesis, whatever K
# :label: prop-cert-leader
# With probability at least $1 - \alpha$ the answer is that of the full classifier.
# :::
#
# :::{prf:proof}
# Let $y$ be the full classifier's answer. If $y = b$, it is never dropped. Otherwise $\sum_t \ell_{y,t} \le \sum_t \ell_{b,t}$, so the ratio in
# {eq}`eq-cert-leader` has the mean $\sum_t q_t \frac{\ell_{y,t}}{\ell_{b,t}} = \sum_t \ell_{y,t} / \sum_t \ell_{b,t} \le 1$. Each factor of $W_y$ is
# non-negative with mean at most 1: a supermartingale. By {term}`Ville` it reaches $1 / \alpha$ with probability at most $\alpha$ ({prf:ref}`prop-cert-ville`). If $y$
# survives, it wins among the survivors. Other classes may be dropped wrongly; that does not matter, so $K$ does not enter.
# :::
#
# **`Paired`.** Bets on *differences* $\ell_{y,t} - \ell_{b,t}$, in which the noise that classes share cancels. Self-normalised, it is exact if differences are
# symmetric, and an approximation otherwise. It stops before all levels are evaluated, so that it also saves where one pass serves all classes.
#
# **`Cascade`** and **`Race`** are ours, and no rules but classifiers: a {term}`multi-head` network looks at all classes in one pass, and a single-head network at those
# that are within a few nats of the best, at levels of its own ({py:mod}`rdc.early_exit.cascade`) or at those of the slow one ({ref}`sec-cert-race`). Many noisy
# images never reach the second.
#
# ## Ten classes, and a thousand
#
# Digits first, then a thousand classes: random points, two for each class.


# %% tags=["hide-input"]
def stored(losses: Tensor) -> Table:
    """A table of known losses ``(N, K, T)``; it counts what a rule asks."""
    return Table(
        lambda image, label, level: losses[image, label, level][:, None],
        tuple(losses.shape),
    )


def sifted(
    model: APNDC | EPNDC, x: Tensor, rules: dict[str, Any]
) -> dict[str, tuple[Sifted, Accuracy]]:
    """What each rule decides, and how often as the full classifier."""
    with torch.no_grad():
        losses = model.losses(x)
    winner, found = losses.sum(dim=2).argmin(dim=1), {}
    for name, rule in rules.items():
        draws = [generator(seed, "certify", "sift", i) for i in range(len(x))]
        result = sift_table(stored(losses), rule, draws)
        same = int((result.label == winner).sum())
        found[name] = result, Accuracy.of(same, len(x))
    return found


digit_rules = sifted(
    linear,
    x_sift[20:],
    {
        "Threshold, as released": released(linear),
        "Leader": Leader(),
        "Paired": Paired(calibrate(linear, x_sift[:20])),
    },
)
with torch.no_grad():
    typical = crowd_model.losses(x_crowd[:4]).sum(dim=2).amin(dim=1).mean()
chosen_for_it = float(typical) / 2
crowd_rules = sifted(
    crowd_model,
    x_crowd[4:],
    {
        "Threshold, chosen for it": Threshold(chosen_for_it),
        "Leader": Leader(),
        "Paired": Paired(calibrate(crowd_model, x_crowd[:4])),
    },
)
show_table(
    [
        {
            "classes": k,
            "rule": name,
            "saved": f"{100 * cut.saved:.0f} %",
            "as the full classifier": str(same),
        }
        for k, found in ((10, digit_rules), (many_classes, crowd_rules))
        for name, (cut, same) in found.items()
    ],
    "Noisy images, optimal denoisers",
)

# %% tags=["remove-cell"]
for found in (digit_rules, crowd_rules):
    claim(found["Leader"][1].high >= 0.95 and found["Leader"][0].saved > 0)
claim(crowd_rules["Leader"][0].saved > 0.5)
glue("cert-crowd", f"{100 * crowd_rules['Leader'][0].saved:.0f}")

# %% [markdown]
# Ten classes leave the released threshold nothing to do: it stops when ten are left. With a thousand classes `Leader` saves {glue:text}`cert-crowd` % and keeps
# its guarantee. A threshold chosen for these very losses may save more; it promises nothing. Where classes differ by a few percent of their losses, ratios are
# close to 1, and `Leader` saves less.
#
# ## On images
#
# On `fashion-mini`, from stored cells, those rules that save anything. `Threshold` is not the released one here: it drops
# classes until one is left, and its number comes from other images.

# %% tags=["hide-input"]
sift_cells = stored_cells("certificates-sift")


def row_of(f: Any) -> dict[str, Any]:
    """One stored cell of sifting."""
    return {k: f.row.about[k] for k in ("base", "denoiser", "rule")} | {
        "evaluations saved": f"{100 * f.mean('saved'):.0f} %",
        "factor": f"{1 / (1 - f.mean('saved')):.1f}",
        "as the full classifier": str(f.accuracy("agrees")),
    }


at_work = [f for f in sift_cells if f.mean("saved") > 0]
rows = [row_of(f) for f in at_work]
show_table(rows, "Sifting by a rule, alone; ten classes")
idle = len(sift_cells) - len(at_work)
print(f"{idle} of {len(sift_cells)} rules save nothing with ten classes.")

# %% tags=["hide-input", "hide-output"]
levels_of = {f.row.about["base"]: f.row.about["levels"] for f in sift_cells}
words = ", ".join(f"{base} {count}" for base, count in levels_of.items())
rows = [row_of(f) for f in sift_cells]
show_table(rows, f"All of them; sigma 0.25, levels: {words}")

# %% [markdown]
# Where all classes come in one pass, a rule saves something only if it ends before all levels are seen: `Paired`, or a
# `Threshold` that may go on to a single class.
#
# ## What holds
#
# A rule that saves nothing does nothing; the other rules must keep more than 95 % of the answers:


# %% tags=["hide-input"]
def above(share: Accuracy, bound: float) -> Comparison:
    """A share that is claimed to be larger than a bound."""
    return Comparison((share.correct, share.n), bound=bound)


saving = [f.accuracy("agrees") for f in at_work]
simulated = [above(crowd_rules["Leader"][1], 0.95)]
sifting = {
    f"B7 sifting {many_classes} simulated classes, Leader": simulated,
    f"B7 ... ten classes, the {len(saving)} rules that save anything": [
        above(a, 0.95) for a in saving
    ],
}
show_verdicts({name: decide_all(all_)[0] for name, all_ in sifting.items()})

# %% [markdown]
# Not run: sift-and-refine with many classes on real images. A thousand classes are simulated. The claim itself asks for the threshold on more images
# ({claim}`B7`).
#
# ## What to remember
#
# - Sifting needs no guarantee for a certificate; it needs one to be the classifier that was wanted.
# - With many classes, one bet against the leader is enough: only the winner can be dropped wrongly.
# - With ten classes, and all of them in one pass, there is little to sift.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-cert-ratio
# :::
# **A mean of ratios** (5 minutes, easy). The leader has the losses $4, 1, 1$ at three levels, and another class $2, 2, 1$. Levels are drawn with
# probability $q_t$ as for `Leader`. What is the mean of the ratio $\ell_{y,t} / \ell_{b,t}$? What would it be if all levels had the same
# probability, and which of the two tells who wins?
#
# :::{hint}
# :class: dropdown
# $q = (4, 1, 1) / 6$.
# :::

# %%
# your code here
mean_q, mean_equal = None, None

# %%
# check
fine = None not in (mean_q, mean_equal)
fine = fine and abs(mean_q - 0.8333) < 1e-3 and abs(mean_equal - 1.1667) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-ratio
# :label: sol-cert-ratio
# :class: dropdown
# :::
# With $q$ it is the ratio of the sums, below 1: the other class wins, and its wealth does not grow. With equal probabilities it is above
# 1, and the bet would drop the winner.

# %%
leader, other = torch.tensor([[4.0, 1.0, 1.0], [2.0, 2.0, 1.0]])
mean_q = float((leader / leader.sum() * other / leader).sum())
mean_equal = float((other / leader).mean())
print(f"{mean_q:.3f} and {mean_equal:.3f}; sums {leader.sum()}, {other.sum()}")

# %% tags=["remove-cell"]
claim(mean_q < 1 < mean_equal)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-close
# :::
# **Close classes** (10 minutes, easy). All losses of a class are $1 + \delta$ times those of the leader, and the stake is always
# $\lambda = 0.95$. After how many draws does `Leader` drop it, at $\alpha = 0.05$, for $\delta = 1$, $0.1$ and $0.01$? With 124 levels, when is it
# cheaper to evaluate them all?
#
# :::{hint}
# :class: dropdown
# Each draw multiplies the wealth by $1 + \lambda \delta$. It must reach $1 / \alpha$.
# :::

# %%
# your code here
draws_until = {1.0: None, 0.1: None, 0.01: None}

# %%
# check
fine = list(draws_until.values()) == [5, 34, 317]
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-close
# :label: sol-cert-close
# :class: dropdown
# :::
# The number grows like $1 / \delta$. Classes that differ by a hundredth of their losses are dropped after more draws than there are levels. EPNDC's
# losses share the noise of the target and are of that kind; `Paired`, which bets on differences, is for them.

# %%
for delta in draws_until:
    needed = math.log(1 / 0.05) / math.log(1 + 0.95 * delta)
    draws_until[delta] = math.ceil(needed)
print(draws_until)

# %% tags=["remove-cell"]
claim(draws_until[0.1] < 124 < draws_until[0.01])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-cert-number
# :::
# **A number of its own** (10 minutes, medium). `Threshold(value, stop=1, keep=None)` drops classes until one is left. Which share of the evaluations does it save on
# `x_crowd[4:]`, and how many of the answers of `crowd_model` does it keep, for `chosen_for_it` and for a tenth of it?
#
# :::{hint}
# :class: dropdown
# `sifted(crowd_model, x_crowd[4:], {"name": rule})["name"]` is a pair: `saved` of the first, `correct` of the second.
# :::

# %%
# your code here
kept_of = {1.0: None, 0.1: None}  # answers that are kept

# %%
# check
rules = {p: Threshold(p * chosen_for_it, stop=1, keep=None) for p in kept_of}
wanted = sifted(crowd_model, x_crowd[4:], rules)
fine = all(kept_of[p] == wanted[p][1].correct for p in kept_of)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-cert-number
# :label: sol-cert-number
# :class: dropdown
# :::
# It saves nearly the same and loses answers. Nothing in the rule says which number is right: that takes the losses themselves.

# %%
for part in kept_of:
    rule = Threshold(part * chosen_for_it, stop=1, keep=None)
    cut, same = sifted(crowd_model, x_crowd[4:], {"it": rule})["it"]
    kept_of[part] = same.correct
    print(f"{part:g} of it: saves {cut.saved:.3f}, keeps {same}")

# %% tags=["remove-cell"]
claim(kept_of[0.1] < kept_of[1.0])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Sift-and-refine: {cite:t}`chen2024ndc`; bounds for means by betting: {cite:t}`waudbysmith2024estimating`. The images are those of
# {cite:t}`xiao2017fashion` and {cite:t}`alpaydin1998digits`.
