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
# (nb-adaptive-audit)=
# # Auditing an attack
#
# :::{admonition} What you will be able to do
# :class: tip
# - Run the black boxes, and say what each can and cannot find.
# - Audit an attack, and read the audit before quoting a {term}`robust accuracy`.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-adaptive`, {ref}`nb-optimal` and {ref}`nb-classifier`. The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
steps: int = 10  # gradient steps of PGD on the network
eps: str | float = 8 / 255  # Linf radius, image units
n_train: int = 1000  # training images in the optimal classifier
queries: int = 150  # queries of the black boxes
count: int = 4  # noise levels of the diffusion classifier
n_dc: int = 5  # images for attacks on it
eps_dc: str | float = 8 / 255  # Linf radius for it, image units
n_audit: int = 12  # images of an audit
n_audit_dc: int = 2  # images of the diffusion classifier's audit
audit_steps_dc: int = 3  # gradient steps there
audit_queries_dc: int = 10  # queries there

# %% tags=["hide-input"]
import math
import warnings
from contextlib import redirect_stdout
from io import StringIO

import matplotlib.pyplot as plt
import torch

from rdc.attack import pgd
from rdc.attack.blackbox import square, transfer
from rdc.classify import DiffusionClassifier, OptimalClassifier
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, predict, robust_accuracy
from rdc.evaluate.audit import audit
from rdc.notebook import check_parameters, claim
from rdc.plots import style
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
x_pgd = pgd(cnn, x, y, eps=eps, steps=steps, seed=seed)
plain = robust_accuracy(cnn, x, y, x_pgd)
zoo = broken_defences(cnn, seed)
denoiser = load_denoiser(data, device=device)
optimal = OptimalClassifier(
    train.x[:n_train], train.y[:n_train], levels("elbo", 16), seed=seed
).to(device)
main = levels("elbo", count, sigma_min=0.1, sigma_max=5.0)
judge = DiffusionClassifier(denoiser, main, seed=seed)
right = (predict(judge, x[: 3 * n_dc]) == y[: 3 * n_dc]).nonzero()[:n_dc, 0]
xd, yd = x[right], y[right]
other = train_classifier(
    train,
    max(1, epochs // 2),
    batch=64,
    lr=1e-2,
    width=16,
    seed=seed + 1,
    device=device,
)

# %% [markdown]
# **Is an attack to be believed?** An attacker who knows less must not do better. That, and many other checks, can be run without thinking:

# %% tags=["hide-input"]
right_optimal = predict(optimal, x[: 3 * n_audit]) == y[: 3 * n_audit]
plan = {
    "CNN": (
        cnn,
        x[:n_audit],
        y[:n_audit],
        {"eps": eps, "steps": steps, "queries": queries},
    ),
    "optimal": (
        optimal,
        x[: 3 * n_audit][right_optimal][:n_audit],
        y[: 3 * n_audit][right_optimal][:n_audit],
        {"eps": eps, "steps": steps, "queries": queries},
    ),
    "diffusion": (
        judge,
        xd[:n_audit_dc],
        yd[:n_audit_dc],
        {"eps": eps_dc, "steps": audit_steps_dc, "queries": audit_queries_dc},
    ),
    "quantised": (
        zoo["quantised-input"],
        x[:n_audit],
        y[:n_audit],
        {"eps": eps, "steps": steps, "queries": queries},
    ),
}
with redirect_stdout(StringIO()):  # AutoAttack prints advice
    reports = {
        name: audit(
            m, a, b, surrogate=other, seed=seed, everything=True, **options
        )
        for name, (m, a, b, options) in plan.items()
    }
checks = [row.name for row in reports["CNN"].rows]
print(f"{'check':24s}", *(f"{name:>10s}" for name in reports))
for i, check in enumerate(checks):
    print(
        f"{check:24s}",
        *(f"{report.rows[i].verdict:>10s}" for report in reports.values()),
    )
print(f"{'ok':24s}", *(f"{report.ok!s:>10s}" for report in reports.values()))

# %% tags=["remove-cell"]
assert all(
    [row.name for row in report.rows] == checks for report in reports.values()
)
claim(not reports["quantised"].ok)

# %% mystnb={"figure": {"caption": "The audit of PGD on three models, and on a planted defence (right): what each check says.", "name": "fig-adaptive-audit"}, "image": {"alt": "A table of four columns of verdicts; the planted defence fails several checks", "width": "75%"}} tags=["hide-input"]
code = {"pass": 0, "warn": 1, "fail": 2}
grid = [
    [code.get(r.rows[i].verdict, math.nan) for r in reports.values()]
    for i in range(len(checks))
]
fig, ax = plt.subplots(figsize=(5.5, 5))
ax.imshow(grid, cmap="cividis", vmin=0, vmax=2, aspect="auto")
ax.set_xticks(range(len(reports)), list(reports))
ax.set_yticks(range(len(checks)), checks)
for i in range(len(checks)):
    for j, report in enumerate(reports.values()):
        verdict = report.rows[i].verdict
        ax.text(
            j,
            i,
            verdict,
            ha="center",
            va="center",
            color="black" if verdict == "fail" else "white",
        )
ax.grid(False)
fig.tight_layout()
plt.show()

# %% [markdown]
# The reasons for what did not pass:

# %%
for name, report in reports.items():
    for row in report.rows:
        if row.verdict != "pass":
            print(f"{name:10s} {row.verdict:4s}  {row.name}: {row.reason}")

# %% [markdown]
# How to read it: a `fail` says that the robust accuracy tells more about the attack than about the model, a `warn` that its reason must stand
# beside the number, and a column of `pass` that *these* tests found nothing, which is not a proof.
#
# With so few images of the {term}`diffusion classifier` the audit is a rehearsal: it can find a gross fault, and no small one.
#
# (sec-adaptive-audit)=
# ## What the audit does
#
# Nearly everything on these pages is a test that one can run without thinking: rescale the {term}`logits`, compare with a black box,
# add steps and restarts, look at the gradient, ask twice. {py:func}`rdc.evaluate.audit.audit` runs them on any classifier. It
# adds the binarisation test of {cite:t}`zimmermann2022increasing`, which builds small problems with a known solution and asks if the attack finds it.
#
# We audit {term}`PGD` on three models, and on a planted defence for comparison.
#
# (sec-adaptive-black)=
# ## No gradient at all
#
# A black box sees outputs only. It is the test of every suspicion on these pages: an attacker who knows less must not do better.
#
# - **Square** {cite}`andriushchenko2020square` changes random squares to the corners of the ball and keeps what raises the {term}`margin`.
# - **Transfer** attacks another network, trained without the defence, and hands the images over. It needs no queries.

# %% tags=["hide-input"]
percent: dict[str, float] = {}
for name in (
    "none",
    "saturated-softmax",
    "quantised-input",
    "shattered-gradient",
    "detached-preprocessing",
):
    defence = cnn if name == "none" else zoo[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            x_adv = pgd(defence, x, y, eps=eps, steps=steps, seed=seed)
        except (RuntimeError, ValueError):
            x_adv = x  # "the attack does not apply"
    percent[name] = 100 * robust_accuracy(defence, x, y, x_adv).value

# %%
black: dict[str, dict[str, Accuracy]] = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255: surviving images")
for name in percent:
    defence = cnn if name == "none" else zoo[name]
    with (
        warnings.catch_warnings(),
        redirect_stdout(StringIO()),
    ):  # both tools warn of probabilities
        warnings.simplefilter("ignore")
        by_square = square(
            defence, x, y, eps=eps, queries=queries, seed=seed, batch=len(x)
        )
        by_transfer = transfer(
            defence, x, y, other, eps=eps, steps=steps, seed=seed
        )
    found = {"Square": by_square, "transfer": by_transfer}
    black[name] = {
        key: robust_accuracy(defence, x, y, x_adv)
        for key, x_adv in found.items()
    }
    line = "   ".join(
        f"{key} {value.correct:3d}" for key, value in black[name].items()
    )
    print(f"{name:24s} careless PGD {percent[name]:3.0f} %   {line}")

# %% tags=["remove-cell"]
for name in ("quantised-input", "shattered-gradient", "detached-preprocessing"):
    best = min(value.value for value in black[name].values())
    claim(
        100 * best < percent[name] - 5,
        f"{name}: who knows less does better: the gradient was hidden",
    )
claim(
    min(value.correct for value in black["none"].values()) >= plain.correct - 3,
    "and here it was not",
)

# %% [markdown]
# On the plain network PGD does better than both. Behind the hidden gradients both do better than PGD, although they know less.
# *That* is the signature of obfuscation. Square needs outputs with information in them, and a saturated softmax that answers exactly one
# and zero gives it less of that; transfer needs no output at all.
#
# ## What to remember
#
# - An attacker who knows less must not do better: where a black box or a transfer beats PGD, the gradient was hidden.
# - A `fail` tells more about the attack than about the model; a column of `pass` is not a proof.
# - Audit the attack before you quote the number, and compute both in float32 ({ref}`nb-gradients-bits`).
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-knows-less
# :::
# **Who knows less** (5 minutes, easy). Behind a defence, PGD leaves 70 of 100 images and a black box 29 of the same images. How many images did only the black box break, at least? What is the most that an honest table may print as robust?
#
# :::{hint}
# :class: dropdown
# PGD broke 30, the black box 71.
# :::

# %%
# your code here
only_black_box, at_most_robust = None, None

# %%
# check
fine = (only_black_box, at_most_robust) == (41, 29)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-knows-less
# :label: sol-adaptive-knows-less
# :class: dropdown
# :::
# At least 41 images, if everything that PGD broke is among the 71. An image is broken if any attack breaks it, so at most 29 are left, and fewer if the attacks broke different images.

# %%
only_black_box, at_most_robust = 71 - 30, min(70, 29)
print(only_black_box, at_most_robust)

# %% tags=["remove-cell"]
claim(only_black_box > 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-no-queries
# :::
# **No queries at all** (5 minutes, easy). For which of the five models above is transfer nearest to Square, and why? What would you try first against a defence of which you know nothing?
#
# :::{hint}
# :class: dropdown
# `black[name]["Square"].correct` counts surviving images. Square needs outputs with information in them.
# :::

# %%
# your code here
nearest_model = None  # a key of black

# %%
# check
leads = {
    name: rows["transfer"].correct - rows["Square"].correct
    for name, rows in black.items()
}
fine = nearest_model == min(leads, key=leads.get)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-no-queries
# :label: sol-adaptive-no-queries
# :class: dropdown
# :::
# Where the outputs are saturated, Square learns little from them; transfer does not look at them. So try both, and take the union.

# %%
nearest_model = min(leads, key=leads.get)
print(leads, nearest_model)

# %% tags=["remove-cell"]
claim(nearest_model == "saturated-softmax")

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-audited
# :::
# **Two audited images** (10 minutes, medium). A fault of an attack shows on one image in five. With which probability does an audit of two images see it? How many images does it take for 95 %?
#
# :::{hint}
# :class: dropdown
# All $n$ miss it with probability $0.8^n$.
# :::

# %%
# your code here
seen_by_two, images_needed = None, None

# %%
# check
fine = abs((seen_by_two or 0) - 0.36) < 1e-6 and images_needed == 14
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-audited
# :label: sol-adaptive-audited
# :class: dropdown
# :::
# A column of `pass` from few images finds faults that show everywhere, such as a gradient of zero, and few others.

# %%
seen_by_two = 1 - 0.8**2
images_needed = next(n for n in range(1, 100) if 0.8**n <= 0.05)
print(f"{seen_by_two:.2f}, {images_needed}")

# %% tags=["remove-cell"]
claim(images_needed == 14)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Square is due to {cite:t}`andriushchenko2020square`, the binarisation test to {cite:t}`zimmermann2022increasing`, the practice of adaptive attacks to {cite:t}`tramer2020adaptive`.
