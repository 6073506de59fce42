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
# (nb-gradients-known)=
# # Randomness that the attacker knows
#
# :::{admonition} What you will be able to do
# :class: tip
# - Judge a randomised defence by an attacker who knows its random numbers.
# - Say what more randomness in LM does, at equal displacement.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-gradients` and {ref}`sec-adaptive-verdict`. Covers parts of appendix B.2 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels T of the diffusion classifier
draws: int = 5  # draws of the noise for verdicts
n_attack: int = 5  # images for the attacks
steps: int = 5  # gradient steps of an attack
eps: str | float = 16 / 255  # Linf radius of an attack, image units
lm_count: int = 3  # noise levels of likelihood maximisation over all

# %% tags=["hide-input"]
from math import comb

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from rdc.analyse import (
    gradient_cosine,
    repeated_gradients,
)
from rdc.attack import pgd
from rdc.classify import (
    RDC,
    DiffPure,
    DiffusionClassifier,
    LikelihoodMaximization,
    Purify,
)
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, predict, robust_accuracy
from rdc.models import build
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    stored_rows,
    stored_table,
)
from rdc.plots import legend_below, style
from rdc.randomness import known_noise
from rdc.schedule import levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
heads = load_denoiser(heads_name, device=device)
# the unconditional network, for LM and DiffPure
trunk = load_denoiser(data, device=device)
cnn = build("cnn", data, device)


def diffusion_classifier(
    count: int = count, noise: str = "fresh", seed: int = seed
) -> DiffusionClassifier:
    """A diffusion classifier on ``count`` levels of the likelihood bound."""
    return DiffusionClassifier(
        heads,
        levels("elbo", count, sigma_min=0.1),
        noise=noise,
        seed=seed,
        chunk=2560,
    )


def likelihood(
    reading: str = "released", noise: str = "fresh", **options: object
) -> LikelihoodMaximization:
    """Likelihood maximisation after one of its readings."""
    return LikelihoodMaximization(
        trunk, **{**READINGS[reading], "noise": noise, "seed": seed, **options}
    )


dc = diffusion_classifier()
lm, purify = likelihood(), Purify(trunk, noise="fresh", seed=seed)
models: dict[str, nn.Module] = {
    "DC": dc,
    "RDC, BPDA": RDC(lm, dc, "bpda"),
    "RDC, exact": RDC(lm, dc, "exact"),
    "DiffPure+CNN": DiffPure(purify, cnn),
}

right = (
    predict(cnn, test.x[: 6 * n_attack].to(device))
    == test.y[: 6 * n_attack].to(device)
).nonzero()[:, 0]
xa, ya = (
    test.x.to(device)[right][:n_attack],
    test.y.to(device)[right][:n_attack],
)


def wrong(model: nn.Module, images: Tensor) -> Tensor:
    """Which verdicts about the images are wrong, ``(draws, n)``."""
    return torch.stack([predict(model, images) != ya for _ in range(draws)])


def surviving(*verdicts: Tensor, worst: bool = False) -> Accuracy:
    """Images right by the majority of each set of verdicts, or by all of
    them.
    """
    lost = torch.stack(
        [w.any(0) if worst else w.float().mean(0) >= 0.5 for w in verdicts]
    ).any(0)
    return Accuracy.of(int((~lost).sum()), len(lost))


# %% [markdown]
# **Does a defence owe its robustness to its randomness?** Give the random numbers to the attacker: {numref}`fig-gradients-known`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %%
judged: dict[str, dict[str, Accuracy]] = {}
told: dict[str, Tensor] = {}  # images made with the noise known
for name in ("DC", "RDC, BPDA", "RDC, exact", "DiffPure+CNN"):
    model, frozen = models[name], known_noise(models[name], seed + 7)
    blind = wrong(model, pgd(model, xa, ya, eps=eps, steps=steps, seed=seed))
    told[name] = pgd(frozen, xa, ya, eps=eps, steps=steps, seed=seed)
    clean = wrong(model, xa)
    judged[name] = {
        "clean": surviving(clean),
        "draws": surviving(clean, blind),
        "resubmit": surviving(clean, blind, worst=True),
        "known": robust_accuracy(frozen, xa, ya, told[name], draws=1),
    }
    if name == "RDC, BPDA":
        averaged = wrong(
            model, pgd(model, xa, ya, eps=eps, steps=steps, eot=3, seed=seed)
        )
        judged[name]["EOT 3"] = surviving(clean, averaged)

# %% tags=["hide-input"]
print(
    f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} on the margin, "
    f"{draws} fresh verdicts: surviving images"
)
print("model              clean   draws   resubmit   known")
for name, row in judged.items():
    counts = (row[k].correct for k in ("clean", "draws", "resubmit", "known"))
    print(f"{name:18s}", "   ".join(f"{v:5d}" for v in counts))
print(
    f"RDC, BPDA with EOT 3, judged by draws: "
    f"{judged['RDC, BPDA']['EOT 3'].correct}"
)

# %% mystnb={"figure": {"caption": "Images left of those attacked, by model and by what is asked: clean, judged by a majority of fresh draws, by the worst of them, and after an attack that knows the noise.", "name": "fig-gradients-known"}, "image": {"alt": "Four marks in each of four rows; the marks of known noise lie apart from the others where a defence lives on its noise", "width": "80%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.4, 3.8))
for i, key in enumerate(("clean", "draws", "resubmit", "known")):
    counts = [row[key].correct for row in judged.values()]
    places = [k + 0.15 * (i - 1.5) for k in range(len(judged))]
    ax.plot(counts, places, "os^D"[i], color=f"C{i}", label=key)
ax.set_yticks(range(len(judged)), list(judged))
ax.set(xlabel="images left", xlim=(-0.3, n_attack + 0.3))
ax.invert_yaxis()
legend_below(fig, 4)
plt.show()

# %% tags=["remove-cell"]
for name, row in judged.items():
    claim(row["resubmit"].correct <= row["draws"].correct, name)

# %% [markdown]
# (sec-gradients-known)=
# ## Randomness that the attacker knows
#
# Give the random numbers to the attacker ({cite:t}`liu2025stochastic`,
# {cite:t}`yuezhang2025diffusion`): freeze the noise, attack the deterministic model with its own gradient, and let the same frozen model judge. That is protocol `known` of {ref}`sec-adaptive-verdict`.
# Beside it an attacker without that knowledge, judged by a majority of fresh draws (`draws`) and by the worst of them (`resubmit`).
#
# Three columns, three questions. Where `known` is far below `draws`, the attacker lacked the random numbers, and the defence lives on that. Where `resubmit`
# is far below `draws`, single verdicts are a lottery. And where two gradients of *one* defence leave different numbers of images, the larger number is about
# the attack. So few images decide nothing by themselves; the longer runs of the record do. If it is here, this is its table of EOT.

# %% tags=["hide-input"]
stored = stored_rows("rdc-gradient", "rdc-settings")
stored_table(
    [row for row in stored if row["table"] == "eot"],
    "Gradients averaged over the noise",
)

# %% [markdown]
# (sec-gradients-more)=
# ## More randomness in LM
#
# The paper finds LM with one random level a step far more robust than LM over all levels, and explains it by randomness: it smooths the landscape.
# The released variant over all levels has faults of its own, and the released noise is not random. We compare
# at equal displacement (sign steps, the same budget), one level or all of the same range, noise fixed and known or fresh; against fresh noise the
# attacker averages. The classifier behind it is the undefended network, so that any robustness comes from LM.

# %% tags=["hide-input"]
lm_cases: dict[tuple[str, str], tuple[float, Accuracy]] = {}
print(
    f"LM+CNN, {n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} with "
    f"BPDA, {draws} verdicts where fresh"
)
print("levels   noise    cosine    surviving")
for timesteps in ("one", "all"):
    for noise in ("fixed", "fresh"):
        process = likelihood(
            "mi-fgsm", noise=noise, timesteps=timesteps, count=lm_count
        )
        model = RDC(process, cnn, "bpda")
        agree = float(
            gradient_cosine(
                repeated_gradients(model, xa[:4], ya[:4], 4, seed=seed)
            ).mean()
        )
        x_adv = pgd(
            model,
            xa,
            ya,
            eps=eps,
            steps=steps,
            eot=1 if noise == "fixed" else 3,
            seed=seed,
        )
        lm_cases[timesteps, noise] = (
            agree,
            robust_accuracy(
                model, xa, ya, x_adv, draws=1 if noise == "fixed" else draws
            ),
        )
        print(
            f"{timesteps:6s}   {noise:6s}   {agree:5.2f}     "
            f"{lm_cases[timesteps, noise][1].correct} of {n_attack}"
        )
stored_table(
    [row for row in stored if row["table"] == "timesteps"],
    "One level a step, or all of them",
)

# %% [markdown]
# One level a step or all of them, fixed noise or fresh: the counts of this page do not tell them apart, nor does the stored
# table, whose model is RDC with fixed noise. At equal displacement no gain from more randomness is seen here.

# %% tags=["remove-cell"]
claim(
    lm_cases["one", "fixed"][0] > 0.999 and lm_cases["all", "fixed"][0] > 0.999
)
claim(lm_cases["one", "fresh"][0] < 0.999)

# %% [markdown]
# ## The verdict
#
# The numbers are of this page; what the longer runs say of the claims is in the table.

# %% tags=["hide-input"]
by_eot = (
    judged["RDC, BPDA"]["draws"].correct - judged["RDC, BPDA"]["EOT 3"].correct
)
print(
    f"A20 fresh noise, BPDA: EOT 3 breaks {by_eot:+d} of {n_attack} images "
    f"more than EOT 1; none where the noise is fixed"
)
for name in ("DC", "RDC, BPDA", "RDC, exact"):
    known, blind = (judged[name][key].correct for key in ("known", "draws"))
    print(
        f"A29 {name}: {known} of {n_attack} survive an attacker who knows the "
        f"noise, {blind} one who does not"
    )
claims_table("A20", "A29")

# %% [markdown]
# ## What to remember
#
# - Noise fixed by the seed is not randomness. Give it to the attacker, and see what is left.
# - A majority of draws and the worst of them are two questions; a number belongs to one of them.
# - Where two gradients of one defence leave different numbers of images, the larger number is about the attack.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-majority
# :::
# **A lottery** (10 minutes, easy). A randomised model is right about an adversarial image with probability 0.7 at each call. With which probability does the image survive five calls, judged by the majority, and judged by the worst?
#
# :::{hint}
# :class: dropdown
# A sum of three terms of a binomial distribution, and one term.
# :::

# %%
# your code here
majority, worst = None, None

# %%
# check
fine = abs((majority or 0) - 0.83692) < 1e-4 and (
    abs((worst or 0) - 0.16807) < 1e-4
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-majority
# :label: sol-gradients-majority
# :class: dropdown
# :::
# $\sum_{k \ge 3} \binom5k 0.7^k\, 0.3^{5 - k}$ and $0.7^5$. The same model and the same image: the protocol alone decides.

# %%
majority = sum(comb(5, k) * 0.7**k * 0.3 ** (5 - k) for k in (3, 4, 5))
worst = 0.7**5
print(f"{majority:.3f}, {worst:.3f}")

# %% tags=["remove-cell"]
claim(majority > 0.8 > 0.2 > worst)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-carry
# :::
# **Does it carry over?** (10 minutes, medium). An attack that knew the noise of DC made the images `told["DC"]`. How many of them does DC still get right with fresh noise, by the majority of draws? What would it mean if these were all?
#
# :::{hint}
# :class: dropdown
# `wrong(model, images)` gives fresh verdicts, `surviving` counts.
# :::

# %%
# your code here
carried = None

# %%
# check
again = surviving(wrong(models["DC"], told["DC"])).correct
fine = carried is not None and abs(carried - again) <= 1
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-carry
# :label: sol-gradients-carry
# :class: dropdown
# :::
# If they all survived, the attack had found the weak side of one draw, not of the model. What breaks under other noise as well belongs to the model.

# %%
carried = surviving(wrong(models["DC"], told["DC"])).correct
own = judged["DC"]["known"].correct
print(f"left: {own} with the known noise, {carried} with fresh noise")

# %% tags=["remove-cell"]
claim(carried in range(n_attack + 1))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-resubmit
# :::
# **Try again** (5 minutes, easy). A randomised model is wrong about an adversarial image in one call of ten. An attacker may submit it as often as he likes. How often until he succeeds with probability 0.99? What does a majority of five calls at each submission change?
#
# :::{hint}
# :class: dropdown
# All $m$ calls are right with probability $0.9^m$.
# :::

# %%
# your code here
tries = None

# %%
# check
fine = tries == 44
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-resubmit
# :label: sol-gradients-resubmit
# :class: dropdown
# :::
# $0.9^m \le 0.01$ for $m \ge 44$. A majority of five is wrong with probability 0.0086, so that it takes some 540 submissions: harder, and no defence. What counts is whether an attacker gets to try again.

# %%
tries = next(m for m in range(1, 100) if 0.9**m <= 0.01)
five = sum(comb(5, k) * 0.1**k * 0.9 ** (5 - k) for k in (3, 4, 5))
print(f"{tries} tries; a majority of five is wrong with {five:.4f}")

# %% tags=["remove-cell"]
claim(tries == 44 and abs(five - 0.00856) < 1e-5)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Fixed randomness that the attacker knows is studied by {cite:t}`liu2025stochastic` and {cite:t}`yuezhang2025diffusion`. The claims are those of {cite:t}`chen2024rdc`. The images are those of {cite:t}`xiao2017fashion`.
