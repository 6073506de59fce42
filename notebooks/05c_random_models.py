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
# (nb-adaptive-random)=
# # Models that draw random numbers
#
# :::{admonition} What you will be able to do
# :class: tip
# - Average a gradient over the randomness of a model, and say what that does not repair.
# - Judge a randomised classifier, and say which of four protocols a number belongs to.
# :::
#
# **Time** 30 minutes · **Needs** {ref}`nb-adaptive` and {ref}`nb-classifier`. Covers section 4.1 and appendix B.2 of
# {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
steps: int = 10  # gradient steps of PGD on the network
eps: str | float = 8 / 255  # Linf radius, image units
n_eot: int = 40  # images for the study of averaging
eot_draws: list[int] = [1, 4, 16]  # calls averaged
draws: int = 20  # verdicts on an image by a randomised model
n_verdict: int = 30  # images for the four protocols
count: int = 4  # noise levels of the diffusion classifier
n_dc: int = 5  # images for attacks on it
dc_steps: int = 6  # gradient steps on it
eps_dc: str | float = 8 / 255  # Linf radius for it, image units

# %% tags=["hide-input"]
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from scipy.special import comb
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import (
    Accuracy,
    predict,
    protocols,
    read_rows,
    robust_accuracy,
)
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
from rdc.rng import generator
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
cnn = train_classifier(
    train, epochs, batch=64, lr=1e-2, width=16, seed=seed, device=device
)
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
zoo = broken_defences(cnn, seed)
random_model = zoo["random-input"]
denoiser = load_denoiser(data, device=device)
main = levels("elbo", count, sigma_min=0.1, sigma_max=5.0)
judge = DiffusionClassifier(denoiser, main, seed=seed)
right = (predict(judge, x[: 3 * n_dc]) == y[: 3 * n_dc]).nonzero()[:n_dc, 0]
xd, yd = x[right], y[right]

# %% [markdown]
# **A model that draws random numbers has no robust accuracy until one says who draws them, and how often.** And its gradient is one of many.

# %% tags=["hide-input"]
fresh_judge = DiffusionClassifier(denoiser, main, noise="fresh", seed=seed + 1)
cases = {
    "random-input": (
        random_model,
        x[:n_verdict],
        y[:n_verdict],
        partial(pgd, eps=eps, steps=steps, eot=4),
    ),
    "diffusion classifier": (
        fresh_judge,
        xd,
        yd,
        partial(pgd, eps=eps_dc, steps=dc_steps),
    ),
}
named: dict[str, dict[str, Accuracy]] = {}
wrong: dict[str, Tensor] = {}
for name, (model, images, labels, attack) in cases.items():
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        robust_accuracy(
            model,
            images,
            labels,
            {"pgd": attack},
            draws=draws,
            rows=file,
            seed=seed,
        )
        named[name] = protocols(file)
        wrong[name] = torch.tensor(
            [row["attacks"]["pgd"]["wrong"] for row in read_rows(file)[1]]
        )
    print(f"{name}, fresh noise, {len(labels)} images, R = {draws}")
    for protocol, value in named[name].items():
        print(f"    {protocol:9s} {value}")

# %% mystnb={"figure": {"caption": "Expected accuracy if an image counts as robust only when all of R fresh verdicts are right, from the measured verdicts (solid), and if every image had the mean probability of a wrong verdict (dotted, the lower bound of the proposition). The left end belongs to the protocol once, the right end to resubmit (which also counts the clean images that are misclassified).", "name": "fig-adaptive-resubmit"}, "image": {"alt": "Solid lines fall from the accuracy by one verdict as R grows; the dotted bounds fall faster", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))
tries = torch.arange(1, draws + 1)
for i, (name, w) in enumerate(wrong.items()):
    misses = (draws - w).numpy()
    solid = [
        100 * float((comb(misses, r) / comb(draws, r)).mean())
        for r in tries.tolist()
    ]
    ax.plot(tries, solid, color=f"C{i}", label=name)
    ax.plot(
        tries,
        100 * (1 - float(w.float().mean()) / draws) ** tries,
        ":",
        color=f"C{i}",
    )
ax.set(
    xlabel="number R of verdicts that must be right",
    ylabel="expected accuracy (%)",
    ylim=(-3, 103),
)
ax.legend()
plt.show()

# %% tags=["remove-cell"]
for name, found in named.items():
    claim(
        found["resubmit"].correct
        <= min(found["once"].correct, found["draws"].correct)
    )
    glue(f"adaptive-{name.split()[0]}-once", f"{found['once']}")
    glue(f"adaptive-{name.split()[0]}-resubmit", f"{found['resubmit']}")
claim(
    named["random-input"]["once"].correct
    >= named["random-input"]["resubmit"].correct + 2
)


# %% [markdown]
# (sec-adaptive-eot)=
# ## Randomised models: averaging the gradient
#
# Let $\omega$ be the randomness of one call. The attacker wants an image that is wrong for *most* $\omega$, so the thing to climb is
# an expectation {cite}`athalye2018synthesizing`:
#
# ```{math}
# :label: eq-eot
# \begin{aligned}
# L(x) &= \E_\omega\, \ell(f_\omega(x)), \\
# \hat g_R(x) &= \frac1R \sum_{r=1}^R \nabla_x \ell(f_{\omega_r}(x)), \quad \omega_r \text{ independent}.
# \end{aligned}
# ```
#
# :::{prf:proposition} Expectation over transformation is unbiased
# :label: prop-eot
# Let $x \mapsto \ell(f_\omega(x))$ be {term}`Lipschitz` near $x$ with a constant $C(\omega)$ of finite variance, and differentiable at $x$ for
# almost every $\omega$. Then $L$ is differentiable at $x$, $\E\, \hat g_R = \nabla L(x)$, and the covariance of $\hat g_R$ is that of
# a single gradient divided by $R$.
# :::
#
# :::{prf:proof}
# Along a direction $v$ the difference quotient $(\ell(f_\omega(x + hv)) - \ell(f_\omega(x))) / h$ tends to $v \cdot \nabla_x
# \ell(f_\omega(x))$ for almost every $\omega$ and is at most $C(\omega) \norm{v}$ in size. By dominated convergence limit and
# expectation may change places: the derivative of $L$ along $v$ is $v \cdot \E \nabla_x \ell(f_\omega(x))$. The same holds along every
# sequence $h_i v_i \to 0$, so that $L$ is differentiable. Hence one draw is unbiased, so is a mean of
# draws, and the covariance of a mean of $R$ independent terms is that of one divided by $R$.
# :::
#
# Two warnings come with it. The *sign* of an unbiased estimate is not an unbiased estimate of the sign, so that averaging does more than
# the same number of small steps. And the loss is noisy too: the largest of many noisy losses is in part the luckiest, and an attack that
# keeps it keeps luck.
#
# The planted `random-input` shifts, resizes and adds noise. How alike are two gradients of it at the same image?


# %%
def cosine(a: Tensor, b: Tensor) -> float:
    """Mean cosine between the rows of two batches."""
    return float(
        nn.functional.cosine_similarity(
            a.flatten(1), b.flatten(1), dim=1
        ).mean()
    )


xe, ye = x[:n_eot], y[:n_eot]
random_model = zoo["random-input"]
agreement, robust_eot = {}, {}
with torch.random.fork_rng():
    torch.manual_seed(seed + 3)
    for r in eot_draws:
        a, b = (
            value_and_gradient(
                lambda p: margin(random_model(p), ye), xe, eot=r
            )[1]
            for _ in range(2)
        )
        agreement[r] = cosine(a, b)
        x_adv = pgd(
            random_model, xe, ye, eps=eps, steps=steps, eot=r, seed=seed
        )
        robust_eot[r] = robust_accuracy(
            random_model, xe, ye, x_adv, draws=draws
        )
        print(
            f"EOT {r:3d}: cosine of two gradients {agreement[r]:.2f}; robust, "
            f"by majority of {draws} verdicts: {robust_eot[r]}"
        )

# %% tags=["remove-cell"]
claim(
    agreement[max(eot_draws)] > agreement[min(eot_draws)] + 0.05,
    "averaging brings the gradients together",
)
claim(
    robust_eot[max(eot_draws)].correct
    <= robust_eot[min(eot_draws)].correct + 1,
    "and does not weaken the attack",
)


# %% [markdown]
# :::{admonition} A question to the paper
# :class: note
# Appendix B.2 of {cite:t}`chen2024rdc` reports that {term}`EOT` does not help against their defence, because its gradients hardly differ from draw
# to draw. The gradients are one half of the matter. The other is the noise of the *values*, by which an attack chooses its best iterate and
# a judge decides. We come to it in {ref}`sec-adaptive-verdict`.
# :::
#
# (sec-adaptive-noise)=
# ## Noise shared or not in the gradient pass
#
# The {term}`diffusion classifier` compares ten losses on the *same* noise ({ref}`nb-classifier`). In the released code the evaluation restarts the
# noise for each class, and the pass that gives the gradient does not. How much does that weaken an attack?
#
# The judge here is the deterministic classifier with shared noise. Three attackers take their values from the judge; they differ in the noise
# on which they take the gradient. The radius was chosen after a look at a smaller one, at which all three left nearly every image: so the table
# shows that the noise *can* decide an attack, not how often it does.


# %%
class TwoNoises(nn.Module):
    """The values of one classifier with the gradient of another."""

    def __init__(self, value: nn.Module, slope: nn.Module) -> None:
        super().__init__()
        self.value, self.slope = value, slope

    def forward(self, x: Tensor) -> Tensor:
        """``value(x)``; backward the Jacobian of ``slope``."""
        with torch.no_grad():
            value = self.value(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        slope = self.slope(x)
        return value + (slope - slope.detach())


fresh = DiffusionClassifier(denoiser, main, noise="fresh", seed=seed + 1)
per_class = DiffusionClassifier(
    denoiser, main, noise="per_class", seed=seed + 1
)
attackers = {
    "the judge's noise": judge,
    "fresh noise, shared by the classes": TwoNoises(judge, fresh),
    "other noise for each class": TwoNoises(judge, per_class),
}
reached: dict[str, Tensor] = {}
slopes = {
    name: value_and_gradient(lambda p, m=m: margin(m(p), yd), xd)[1]
    for name, m in attackers.items()
}
print(
    f"{len(yd)} images that the judge gets right, Linf "
    f"{255 * eps_dc:.0f}/255, PGD-{dc_steps}"
)
print(
    "gradient on                          cosine   survive   mean margin (nats)"
)
for name, attacked in attackers.items():
    x_adv = pgd(attacked, xd, yd, eps=eps_dc, steps=dc_steps, seed=seed)
    with torch.no_grad():
        reached[name] = margin(judge(x_adv), yd)
    alike = cosine(slopes[name], slopes["the judge's noise"])
    print(
        f"{name:36s} {alike:6.2f}   {int((reached[name] <= 0).sum()):4d}      "
        f"{float(reached[name].mean()):+.1f}"
    )

# %% tags=["remove-cell"]
same = float(reached["the judge's noise"].mean())
claim(
    all(
        float(value.mean()) <= same + 0.1 * abs(same) + 1
        for value in reached.values()
    ),
    "the right noise climbs highest",
)


# %% [markdown]
# The cosine says how alike the gradient is to the judge's, at the clean images. The {term}`margin` says what it cost. An attack on the wrong noise
# finds fewer or weaker adversarial images, and the difference is credited to the defence.
#
# (sec-adaptive-verdict)=
# ## One draw or twenty
#
# A randomised model has no {term}`robust accuracy` until one says *who draws the noise and how often*. Four protocols are in use:
#
# :::{table} Four protocols for a randomised model
#
# | protocol | an image counts as robust if | it belongs to |
# |---|---|---|
# | `once` | one fresh verdict after the attack is right | a model that answers each image once, ever |
# | `draws` | most of $R$ fresh verdicts are right | a model that votes, or a judge who averages |
# | `resubmit` | all of $R$ fresh verdicts are right | an attacker who may send the image again |
# | `known` | the attack on the noise that will be used fails | an attacker who knows, or can predict, the noise |
#
# :::
#
# :::{prf:proposition} The worst of R verdicts
# :label: prop-resubmit
# Let the verdicts on an image be independent, each wrong with probability $p$. Then at least one of $R$ is wrong with probability
# $1 - (1 - p)^R$. Over images with probabilities $p_1, \dots, p_n$, the expected accuracies are $\frac1n \sum_i (1 - p_i)$
# for `once` and $\frac1n \sum_i (1 - p_i)^R$ for `resubmit`; and $(1 - \bar p)^R \le \frac1n \sum_i (1 - p_i)^R \le 1 - \bar p$.
# :::
#
# :::{prf:proof}
# All $R$ verdicts are right with probability $(1 - p)^R$. Expectations over images add. The left inequality is Jensen's for the convex
# function $p \mapsto (1 - p)^R$; the right one is $(1 - p)^R \le 1 - p$.
# :::
#
# With $p = 1/2$ a single verdict calls half of the images robust, and a second one leaves a quarter. So `once` overstates the robustness
# against anyone who may try twice. And an attack that itself stops at its first lucky draw makes $p$ smaller than it needs to be.
# Both happen in the released evaluation: an attack by single draws, and a single verdict after it.
#
# {py:func}`rdc.evaluate.robust_accuracy` answers by all four at once. It attacks each image alone, with random numbers of its own, and writes
# one row an image to a file, so that a killed run continues where it stopped. {py:func}`rdc.evaluate.protocols` counts the rows.
#
# On the same adversarial images, `random-input` has {glue:text}`adaptive-random-input-once` by one verdict and
# {glue:text}`adaptive-random-input-resubmit` if the attacker may resubmit. Neither number is wrong. Printing one without its name is.
#
# The dotted bound would hold with equality if all images were equally uncertain. They are not: some are always wrong, others always right,
# and only those between are left to chance. So one should keep the verdicts of each image.
#
# ## What to remember
#
# - EOT estimates the gradient of an expectation without bias. The values are noisy too, and so is a single verdict.
# - An attack on other noise than the judge's finds less, and the difference is credited to the defence.
# - For randomised models name the protocol: `once`, `draws`, `resubmit` or `known`. They answer different questions.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-resubmit
# :::
# **Twice is enough** (5 minutes, easy). A defence is right with probability $0.9$ on every image, independently at each call. What do `once`, `resubmit` and `draws` report with $R = 20$?
#
# :::{hint}
# :class: dropdown
# {prf:ref}`prop-resubmit`; for `draws` the binomial distribution, or a simulation.
# :::

# %%
# your code here
reports = {"once": None, "resubmit": None, "draws": None}

# %%
# check
fine = None not in reports.values() and (
    abs(reports["once"] - 0.9) < 0.01
    and abs(reports["resubmit"] - 0.1216) < 0.01
    and 0.99 < reports["draws"] <= 1
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-resubmit
# :label: sol-adaptive-resubmit
# :class: dropdown
# :::
# $0.9$, $0.9^{20}$ and nearly 1: one model, three numbers.

# %%
from math import comb as choose

most = sum(choose(20, k) * 0.9**k * 0.1 ** (20 - k) for k in range(11, 21))
reports = {"once": 0.9, "resubmit": 0.9**20, "draws": most}
print({name: round(value, 3) for name, value in reports.items()})
once_right = torch.rand((10_000, 20), generator=generator(seed, "twice")) < 0.9
print(f"resubmit, simulated: {float(once_right.all(dim=1).float().mean()):.3f}")

# %% tags=["remove-cell"]
assert abs(float(once_right.all(dim=1).float().mean()) - 0.9**20) < 0.02

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-average
# :::
# **How many to average?** (10 minutes, medium). Two gradients of a randomised model at one image have the cosine 0.48. Take each as a common part plus independent noise, orthogonal to it and to one another. Which cosine do two means of 4 gradients have, and two means of 16? Compare with the table of {ref}`sec-adaptive-eot`.
#
# :::{hint}
# :class: dropdown
# The noise has $h$ times the squared length of the common part. What is $h$? A mean of $m$ divides it by $m$.
# :::

# %%
# your code here
cosine_of_4, cosine_of_16 = None, None

# %%
# check
fine = None not in (cosine_of_4, cosine_of_16) and (
    abs(cosine_of_4 - 0.787) < 2e-3 and abs(cosine_of_16 - 0.937) < 2e-3
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-average
# :label: sol-adaptive-average
# :class: dropdown
# :::
# The cosine of two means of $m$ is $1 / (1 + h / m)$, and $h = 1 / 0.48 - 1$. The table is near it: averaging pays as long as the noise is about as long as the signal, and little beyond.

# %%
h = 1 / 0.48 - 1
cosine_of_4, cosine_of_16 = (1 / (1 + h / m) for m in (4, 16))
print(f"h {h:.2f}; {cosine_of_4:.3f}, {cosine_of_16:.3f}")

# %% tags=["remove-cell"]
claim(0.48 < cosine_of_4 < cosine_of_16 < 1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-reseeded
# :::
# **Reseeded** (15 minutes, hard). `zoo["reseeded-noise"]` gives the same answer twice. Is it deterministic? Find out what its noise depends on, and break it for
# a judge who has seeded the generator otherwise: make adversarial images in the ball of radius `eps` around `x`.
#
# :::{hint}
# :class: dropdown
# Seed the global generator before the call, with two different seeds. Then give the attack a model that is called under another seed each time, and `eot=8`.
# :::

# %%
# your code here
x_reseeded = None  # adversarial images

# %%
# check
reseeded = zoo["reseeded-noise"]
fine = x_reseeded is not None and (
    float((x_reseeded - x).abs().max()) <= eps + 1e-6
)
if fine:
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)  # the judge's
        left_reseeded = robust_accuracy(reseeded, x, y, x_reseeded)
    fine = left_reseeded.value < 0.34
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-reseeded
# :label: sol-adaptive-reseeded
# :class: dropdown
# :::
# It restarts the global generator at the seed that it was last given. An attack under one seed fits one noise. So the attacker
# changes the seed at every call and averages.

# %%
class ManySeeds(nn.Module):
    """A model called after another global seed each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits under the next seed."""
        self.calls += 1
        with torch.random.fork_rng():
            torch.manual_seed(10_000 + self.calls)
            return self.model(x)


with torch.random.fork_rng():  # one seed for the attack, one verdict
    torch.manual_seed(seed + 1)
    x_adv = pgd(reseeded, x, y, eps=eps, steps=steps, seed=seed)
    torch.manual_seed(seed + 2)
    careless = robust_accuracy(reseeded, x, y, x_adv)
many = ManySeeds(reseeded)
x_reseeded = pgd(many, x, y, eps=eps, steps=steps, eot=8, seed=seed)
with torch.random.fork_rng():
    torch.manual_seed(seed + 2)  # the judge's
    solved_reseeded = robust_accuracy(reseeded, x, y, x_reseeded)
print(f"careless {careless}, EOT over seeds {solved_reseeded}")

# %% tags=["remove-cell"]
claim(solved_reseeded.value < careless.value)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# EOT is due to {cite:t}`athalye2018synthesizing`. {cite:t}`liu2025stochastic` and {cite:t}`yuezhang2025diffusion` judge randomised
# diffusion defences as deterministic ones with known noise. The questions come from {cite:t}`chen2024rdc`.
