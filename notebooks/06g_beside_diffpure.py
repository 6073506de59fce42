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
# (nb-lm-diffpure)=
# # Likelihood maximisation beside DiffPure
#
# :::{admonition} What you will be able to do
# :class: tip
# - Tell a {term}`purification` from an optimisation by what they do to a change of the image.
# - Compare defences under several threats, each under all gradients that were tried.
# - Say what a fair comparison of attacks and of costs needs.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-lm-attacks` and {ref}`nb-adaptive`. Covers Tables 1, 3 and 5 of {cite:t}`chen2024rdc`.
#
# {term}`DiffPure` {cite}`nie2022diffpure` adds noise of level $\sigma$ and runs the reverse process back to zero. Likelihood
# maximisation (LM) with $\sigma$ near 0.5 looks at the image through the same noise, and takes five steps of a fixed length. Do
# they act alike?

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # seed of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
count: int = 8  # noise levels of the diffusion classifier
n_purify: int = 12  # images for the comparison with DiffPure

# %% tags=["hide-input"]
from typing import Any

import matplotlib.pyplot as plt
import torch

from rdc.analyse.stand_in import pulled_back, transmission
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.notebook import (
    check_parameters,
    claim,
    claims_table,
    close_to,
    gradients_table,
    show_table,
    stored_rows,
)
from rdc.plots import image_grid, style
from rdc.runs.record import stored_record
from rdc.schedule import levels

check_parameters()
style()
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
test = load(data, "test")[: 2 * n_purify]
x, y = test.x.to(device), test.y.to(device)
heads = load_denoiser(f"{data}-multihead", device=device)
grid = levels("elbo", count, sigma_min=0.1)
classifier = DiffusionClassifier(heads, grid, seed=seed, chunk=2560)
suite = stored_rows("rdc-suite")
right = predict(classifier, x) == y
xp, yp = x[right][:n_purify], y[right][:n_purify]
t_star = (-0.1 + (0.01 + 4 * 9.95 * torch.tensor(1 + 0.5**2).log().item()) ** 0.5) / (2 * 9.95)  # sigma(t*) = 0.5
pure = Purify(heads, t=t_star, steps=10, seed=seed)
clamped = LikelihoodMaximization(heads, seed=seed, **READINGS["clamped"])
signs = LikelihoodMaximization(heads, seed=seed, **{**READINGS["mi-fgsm"], "noise": "fixed"})
processes = {"LM, clamped": clamped, "LM, mi-fgsm": signs, "DiffPure": pure}
bpda = RDC(clamped, classifier)
along = value_and_gradient(lambda p: margin(bpda(p), yp), xp)[1].sign()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Test images (top), and what LM (clamped, middle) and DiffPure at the same noise level (bottom) make of them.", "name": "fig-lm-purified"}, "image": {"alt": "Three rows of garments: the originals, the same with fine speckles and a fainter print after likelihood maximisation, and with redrawn details after DiffPure", "width": "75%"}}
with torch.no_grad():
    made = {name: process(xp) for name, process in processes.items()}
shown = (xp, made["LM, clamped"], made["DiffPure"])
image_grid(torch.cat([row[:8] for row in shown]), columns=min(8, len(xp)), size=0.75)
plt.show()

# %% [markdown]
# (sec-lm-diffpure)=
# ## Does LM act like DiffPure?
#
# We match the noise level and compare what they do to an image, and to a *change* of it. What arrives of a change has a length,
# and $\tau$ of {eq}`eq-lm-transmission` is its part along the change: a change that is turned by a right angle has $\tau = 0$,
# whatever its length. $v$ is the gradient of the classifier's {term}`margin` after the process, and $J^\top v$ what the exact
# gradient makes of it. Both lengths are ratios, and 1 for the identity. `Purify` returns a *sample* of
# $p(z_0 \mid z_\sigma)$, not its mean: its displacement is that between two images which this noise does not tell apart.

# %%
rows = []
there = (xp + 8 / 255 * along).clamp(0, 1)
for name, process in processes.items():
    v, back = pulled_back(process, classifier, xp, yp)
    ratio = (norm_of(back, "L2") / norm_of(v, "L2")).median()
    with torch.no_grad():
        arrived = norm_of(process(there) - made[name], "L2")
    moved = norm_of(made[name] - xp, "L2").mean()
    kept = int((predict(classifier, made[name]) == yp).sum())
    rows.append(
        {
            "process": name,
            "moved, L2": float(moved),
            "length of Jᵀv": float(ratio),
            "length that arrives": float(
                (arrived / norm_of(there - xp, "L2")).mean()
            ),
            "passed on, τ": transmission(process, xp, along, 8 / 255),
            "right after it": f"{kept}/{len(yp)}",
        }
    )
show_table(
    rows,
    f"{len(yp)} images, sigma {pure.sigma:.2f}, a change of 8/255 along BPDA",
)

# %% tags=["remove-cell"]
scattered, _, purified = rows
claim(abs(scattered["passed on, τ"]) < 0.1 and scattered["length of Jᵀv"] > 1 and scattered["length that arrives"] > 0.5)
claim(all(purified[k] < 0.5 for k in ("passed on, τ", "length of Jᵀv", "length that arrives")))

# %% [markdown]
# A $\tau$ near 0 says that what arrives no longer points along the change. Only with a short gradient beside it is that a
# contraction: DiffPure has a small $\tau$ *and* a short gradient, and little arrives. LM (clamped) has $\tau$ near 0 and a
# gradient *longer* than the identity's, and most of the length arrives: it scatters the change, and does not remove it.
#
# ## Defences beside each other
#
# How do they compare under attack? Seven defences, three threats, from the record; each count is of the images that stay right
# under *all* gradients that were tried against that defence. The claims on DiffPure (A22) and on LM before a network (A10) are
# judged by the longer list of attacks of {ref}`nb-floor`, on other numbers of images than this table.

# %% tags=["hide-input"]
best: dict[str, dict[str, Any]] = {}
for row in suite:
    if row["gradient"] in ("plain", "union"):
        threat = "StAdv" if row["attack"] == "stadv" else row["norm"]
        kept = row["robust"]
        line = best.setdefault(row["model"], {"defence": row["model"], "clean": f"{row['clean']['correct']}/{row['clean']['n']}"})
        line[threat] = f"{kept['correct']}/{kept['n']}"
show_table(
    list(best.values()),
    "Images right under all gradients: Linf 8/255, L2 1, StAdv 0.05; LM clamped, N = 5",
)

# %% tags=["hide-input", "hide-output"]
for threat in dict.fromkeys((row["attack"], row["norm"]) for row in suite):
    mine = [row for row in suite if (row["attack"], row["norm"]) == threat]
    gradients_table(mine, f"Gradient by gradient: {threat[0]}, {threat[1]}", "model")

# %% tags=["hide-input"]
claims_table("A7", "A9", "A10", "A10a", "A22")

# %% [markdown]
# The paper gives {term}`StAdv` 100 iterations, and attacks DiffPure with 200 steps of {term}`PGD`, ten calls a step,
# fresh noise and a reverse process of about a hundred steps. Fewer steps of an attack flatter the defence.
# Known noise does the opposite: it is all that an attacker can wish for. So the table compares defences with
# each other, and its numbers are no estimates of the paper's.
#
# ## What they cost
#
# Network evaluations and time for one image, measured in turns on one machine (the paper's Table 3):

# %% tags=["hide-input"]
costs = stored_record("results/rdc_costs.json")["results"]["rows"]
show_table(
    [
        {
            "defence": row["model"],
            "N": str(row["N"] or "-"),
            "evaluations": row["nfe"][0],
            "with gradient": row["nfe"][1],
            "ms an image": f"{1000 * row['seconds_an_image']:.1f}",
        }
        for row in costs
    ],
    "Cost of one answer",
)

# %% [markdown]
# Everything here is Fashion-MNIST with a small network.
#
# ## What to remember
#
# - A small share passed on *and* a short gradient make a purification; a small share alone does not.
# - Compare defences under the same threat and budget of the attack, each under the strongest gradient against it.
# - Evaluations with a gradient cost more than those without; a table of costs keeps them apart.

# %% [markdown]
# ## Exercises
#
# :::{exercise-start}
# :label: ex-lm-contraction
# :::
# **A purification in a line** (10 minutes, medium). A process pulls an image towards the data: $x \leftarrow x + a (D -
# x)$ with a fixed $D$ and $a = 0.2$, $N$ times. What does it pass on of a change, and how long is the gradient that
# comes back? After how many steps is less than a tenth passed on? How far can an attacker who is confined to 8/255
# then move the result?
#
# :::{hint}
# :class: dropdown
# Each step multiplies a difference of two images by $1 - a$, and so does its transpose.
# :::

# %%
# your code here
contraction_steps, moved_by = None, None  # a count; grey levels of 255

# %%
# check
pair = torch.tensor([0.0, 8.0]).double()
count_steps = 0
while float(pair[1] - pair[0]) >= 0.8:
    pair, count_steps = pair + 0.2 * (3.0 - pair), count_steps + 1
fine = contraction_steps == count_steps
fine = fine and close_to(moved_by, pair[1] - pair[0], within=4e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-contraction
# :label: sol-lm-contraction
# :class: dropdown
# :::
# $\tau = (1 - a)^N$ for every change, and the gradient is shorter by the same factor: $0.8^{11} < 0.1$. Then 8 grey
# levels arrive as 0.7. A constant $D$ would forget the image, too; real processes pass on different directions
# differently, and an attacker looks for those that get through.

# %%
contraction_steps = next(n for n in range(1, 99) if 0.8**n < 0.1)
moved_by = 8 * 0.8**contraction_steps
print(f"{contraction_steps} steps; 8 grey levels arrive as {moved_by:.2f}")

# %% tags=["remove-cell"]
claim(moved_by < 0.8)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-time
# :::
# **Which time has this noise?** (10 minutes, easy). In the VP process with $\beta$ from 0.1 to 20 an image at time $t$ has the
# noise $\sigma(t)^2 = e^{0.1 t + 9.95 t^2} - 1$, in model units. At which $t$ is $\sigma = 0.5$? DiffPure is often run at
# $t = 0.1$ on CIFAR-10: which $\sigma$ is that?
#
# :::{hint}
# :class: dropdown
# A quadratic equation in $t$, with $\log(1 + \sigma^2)$ on the right.
# :::

# %%
# your code here
time_at, noise_at = None, None  # t for sigma 0.5; sigma for t = 0.1

# %%
# check
def variance(t: float) -> float:
    """Of the noise at a time."""
    return float(torch.tensor(0.1 * t + 9.95 * t**2).double().exp()) - 1


fine = None not in (time_at, noise_at)
fine = fine and abs(variance(time_at) - 0.25) < 1e-3
fine = fine and abs(noise_at**2 - variance(0.1)) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-time
# :label: sol-lm-time
# :class: dropdown
# :::
# $9.95\, t^2 + 0.1\, t - \log 1.25 = 0$ has one positive root. The usual time is a lower noise than the one where LM looks.

# %%
goal = float(torch.tensor(1.25).log())
time_at = (-0.1 + (0.1**2 + 4 * 9.95 * goal) ** 0.5) / (2 * 9.95)
noise_at = variance(0.1) ** 0.5
print(f"t = {time_at:.4f}; sigma = {noise_at:.3f} at t = 0.1")

# %% tags=["remove-cell"]
claim(noise_at < 0.5 and abs(time_at - t_star) < 1e-4)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-lm-strongest
# :::
# **Which gradient is the strongest?** (10 minutes, easy). `suite` holds a row for each defence, threat and gradient, with
# `row["robust"]["correct"]`. For Linf and PGD: which gradient leaves the fewest images of `"RDC"`, and which of
# `"DiffPure+DC"`? What would a table with one gradient for all defences say?
#
# :::{hint}
# :class: dropdown
# Leave out the rows whose `row["gradient"]` is `"union"`, and take those with `row["norm"] == "Linf"` and
# `row["attack"] == "pgd"`.
# :::

# %%
# your code here
strongest = {"RDC": None, "DiffPure+DC": None}  # names of gradients

# %%
# check
kept = {
    (row["model"], row["gradient"]): row["robust"]["correct"]
    for row in suite
    if (row["norm"], row["attack"]) == ("Linf", "pgd")
    and row["gradient"] != "union"
}
fine = all(
    (model, gradient) in kept
    and kept[model, gradient] == min(n for (m, _), n in kept.items() if m == model)
    for model, gradient in strongest.items()
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-lm-strongest
# :label: sol-lm-strongest
# :class: dropdown
# :::
# Through LM it is the smoothed gradient, through DiffPure the exact one. Under BPDA alone both look better, and LM gains the
# most by it: a comparison under one gradient ranks the defences by how badly that gradient fits them.

# %%
for model in strongest:
    mine = {g: n for (m, g), n in kept.items() if m == model}
    strongest[model] = min(mine, key=lambda g: mine[g])
    print(model, mine)

# %% tags=["remove-cell"]
claim(kept["RDC", "bpda"] - kept["RDC", "smoothed 0.3"] > kept["DiffPure+DC", "bpda"] - kept["DiffPure+DC", "exact"])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The defences and claims judged here are from {cite:t}`chen2024rdc`, DiffPure from {cite:t}`nie2022diffpure`.
