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
# (nb-gradients-bits)=
# # Gradients in fewer bits
#
# :::{admonition} What you will be able to do
# :class: tip
# - Say why a network can answer well in {term}`bfloat16` while the gradient of a defence around it points elsewhere.
# - Check with one line whether a gradient has enough bits.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-lm` and {ref}`nb-gradients-compression`. Goes beyond {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
data: str = "fashion-mini"  # data set, and the denoiser trained for it
n: int = 2  # images whose gradients are taken
steps: int = 1  # steps N of likelihood maximisation

# %% tags=["hide-input"]
import statistics

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import RDC, LikelihoodMaximization
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise.checkpoints import load_denoiser
from rdc.door import full_precision
from rdc.models import build
from rdc.notebook import (
    check_parameters,
    claim,
    glue,
    show_verdicts,
    stored_cells,
)
from rdc.plots import style
from rdc.runs.verdict import Means, decide

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
x, y = test.x[:n].to(device), test.y[:n].to(device)

# %% [markdown]
# **Does a gradient survive fewer bits?** GPUs multiply fastest in short numbers, and the answers of a network hardly change. {numref}`fig-gradients-bits` asks the gradient of each defence instead: its cosine with the same gradient in float32.

# %% mystnb={"figure": {"caption": "Cosine between the gradient of the margin with all denoisers in bfloat16 and that in float32, one dot an image, the noise fixed; bars are medians. From the record of the experiment precision.", "name": "fig-gradients-bits"}, "image": {"alt": "Five columns of dots; those of the diffusion classifier, BPDA and DiffPure lie at one, those of the smoothed gradient somewhat below, those of the exact gradient through likelihood maximisation scatter between zero and one, a few below", "width": "75%"}} tags=["hide-input"]
record = {c.row.about["model"]: c for c in stored_cells("precision")}
cosines = {
    name: [v for v in c.value("cosine").values() if v is not None]
    for name, c in record.items()
}
fig, ax = plt.subplots(figsize=(6.5, 3.3))
for i, values in enumerate(cosines.values()):
    spread = [i + 0.3 * (k / len(values) - 0.5) for k in range(len(values))]
    ax.plot(spread, values, "o", ms=3.5, color=f"C{i}", alpha=0.7)
    ax.hlines(statistics.median(values), i - 0.3, i + 0.3, color=f"C{i}", lw=2)
ax.axhline(0, color="0.6", lw=0.8)
ax.set(ylabel="cosine with float32", ylim=(-1.05, 1.1))
ax.set_xticks(
    range(len(cosines)), [name.replace(", ", ",\n") for name in cosines]
)
plt.show()

# %% tags=["remove-cell"]
middle = {name: statistics.median(v) for name, v in cosines.items()}
for key in ("exact", "smoothed", "BPDA"):
    glue(f"bits-{key}", middle[f"RDC, {key}"])
exact = record["RDC, exact"]
same = exact.outcome("same class")
glue("bits-same", sum(same.values()))
glue("bits-n", len(same))
claim(middle["RDC, exact"] < 0.4 and middle["DC"] > 0.99)
claim(middle["RDC, BPDA"] > 0.99 and middle["DiffPure + CNN"] > 0.99)
claim(middle["RDC, exact"] < middle["RDC, smoothed"] < middle["RDC, BPDA"])
claim(
    all(all(c.outcome("same class").values()) for c in record.values()),
    "the same class for every image",
)

# %% [markdown]
# For {glue:text}`bits-same` of {glue:text}`bits-n` images {term}`RDC` answers the same class in both. Its exact gradient does not agree: the median cosine is
# {glue:text}`bits-exact:.2f`, where {term}`BPDA` has {glue:text}`bits-BPDA:.3f` and the smoothed gradient {glue:text}`bits-smoothed:.2f`. An attack
# that follows such a gradient climbs less than it could, and the defence looks stronger than it is: a {term}`gradient masking` that nobody built in.

# %% tags=["hide-input"]
kept, lost = Means(cosines["RDC, BPDA"]), Means(cosines["RDC, exact"])
show_verdicts(
    {"bfloat16 turns the exact gradient more": decide(kept, lost)},
    "Cosine with float32: BPDA less exact, image by image",
)

# %% [markdown]
# ## Two images
#
# Here is the smallest case: {term}`likelihood maximisation` of the released reading with a single Adam step, before the CNN. Only the denoiser inside changes its type. The CNN stays in float32.


# %%
def defence(dtype: torch.dtype) -> RDC:
    """One step of LM, its denoiser in a type, and a CNN."""
    denoiser = load_denoiser(data, device, dtype)
    options = READINGS["released"] | {"steps": steps}
    lm = LikelihoodMaximization(denoiser, **options)
    return RDC(lm, build("cnn", data, device), "exact")


def slope(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Classes, and gradients of the margin."""
    model, seen = defence(dtype), []

    def loss(p: Tensor) -> Tensor:
        seen.append(model(p))
        return margin(seen[-1], y)

    with full_precision():  # no TF32 on a GPU
        gradient = value_and_gradient(loss, x)[1].flatten(1)
    return seen[0].argmax(1), gradient


wide, short = slope(torch.float32), slope(torch.bfloat16)
agreement = cosine_similarity(wide[1], short[1])
longer = short[1].norm(dim=1) / wide[1].norm(dim=1)
for i in range(n):
    print(
        f"image {i}: class {int(wide[0][i])} and {int(short[0][i])}, "
        f"cosine {float(agreement[i]):+.2f}, "
        f"length times {float(longer[i]):.1f}"
    )

# %% tags=["remove-cell"]
claim(bool((wide[0] == short[0]).all()), "the same classes")
claim(bool((agreement < 0.7).all()), "other gradients")

# %% [markdown]
# ## Why
#
# The released step divides the gradient $g$ of the denoising loss by its own size, as Adam does in its first step:
#
# ```{math}
# :label: eq-gradients-bits
# u(g) = \frac{g}{\lvert g \rvert + \varepsilon}, \qquad
# u'(g) = \frac{\varepsilon}{(\lvert g \rvert + \varepsilon)^2}, \qquad \varepsilon = 10^{-8}.
# ```
#
# The *value* $u$ is a sign nearly everywhere, and no rounding changes a sign unless $g$ is near zero. The *derivative* is the other way round:
# nearly zero everywhere, and as large as $1 / \varepsilon$ at zero. So the part of the exact gradient that BPDA leaves out is made of the few pixels whose $g$ is small.
# And just there $g$ is least known: it is a difference of larger terms that nearly cancel, and the rounding of those terms stays.
#
# One pixel says it. Take two terms that differ by a little:

# %%
terms = torch.tensor([1.00030e-4, 1.00000e-4], dtype=torch.float64)
print("type        bits     g          u(g)       u'(g)")
derivative: dict[str, float] = {}
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    a, b = terms.to(dtype).double()
    g = a - b
    u, slope_u = g / (g.abs() + 1e-8), 1e-8 / (g.abs() + 1e-8) ** 2
    kind = str(dtype).removeprefix("torch.")
    derivative[kind] = float(slope_u)
    bits = round(1 - float(torch.tensor(torch.finfo(dtype).eps).log2()))
    print(f"{kind:10s} {bits:4d}   {g:9.2e}   {u:8.5f}   {slope_u:9.2e}")

# %% tags=["remove-cell"]
claim(abs(derivative["float32"] / derivative["float64"] - 1) < 1e-3)
claim(derivative["bfloat16"] > 10 * derivative["float64"])

# %% [markdown]
# In both types of 16 bits the two terms are one number, the difference is zero, and the derivative is as large as it can be. float32 is right to within a thousandth:
# its 24 bits leave enough after the cancellation, 8 or 11 leave nothing. Short numbers are not at fault as such. The classifier behind,
# {term}`DiffPure` and BPDA differentiate a network *once*, and rounding stays as small as it was. What is differentiated
# *through* a sign or a normalisation of a gradient multiplies it. Smoothing ({ref}`nb-gradients-compression`) bounds the derivative, and lies between.
#
# {term}`TF32` is the hidden case. Its numbers are float32 to everyone who looks, but a GPU rounds the factors of a product to 11 bits first, and in PyTorch
# convolutions do so by default. No `dtype` shows it.
#
# ## What to do
#
# - Compute in float32 whatever is differentiated twice. The models of this book are built so, and every attack, audit and evaluation switches TF32 off
#   ({py:func}`rdc.door.full_precision`). In a script of your own: `torch.backends.cudnn.allow_tf32 = False`.
# - Keep short numbers for what is not attacked: sampling, training, clean accuracy.
# - Compare with float64 on a few images. With a function `grad(model, x)` of yours it is one line:
#
# ```python
# cosine_similarity(grad(model, x).double().flatten(1), grad(model.double(), x.double()).flatten(1))
# ```
#
# A cosine near one on every image is what you want to see. A cosine of one says that the gradient is computed well, not that it leads anywhere ({ref}`nb-gradients-smooth`).
#
# ## What to remember
#
# - The same answers do not mean the same gradients.
# - A derivative through a sign or through $g / \lvert g \rvert$ lives where $g$ is near zero, and there rounding is all there is.
# - An attack with a rounded gradient is a weak attack: report the type you computed in, and check it once against a longer one.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-gradients-bits-count
# :::
# **How close may two terms be?** (5 minutes, easy). Near 1, numbers of a type are `torch.finfo(dtype).eps` apart (just above 1). Two terms $1 + \delta$ and $1$ are rounded and subtracted. What is the smallest power of two $\delta$ for which the difference is not zero in bfloat16? And in float32?
#
# :::{hint}
# :class: dropdown
# Try $2^{-1}, 2^{-2}, \dots$, and note that halves are rounded to even.
# :::

# %%
# your code here
smallest_bf16, smallest_f32 = None, None

# %%
# check
fine = (smallest_bf16, smallest_f32) == (2**-7, 2**-23)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-bits-count
# :label: sol-gradients-bits-count
# :class: dropdown
# :::
# It is the spacing itself: half of it lies between two numbers and goes to the even one, which is 1. bfloat16 has 8 bits with the hidden one, float32 has 24.


# %%
def smallest(dtype: torch.dtype) -> float:
    """The smallest power of two that 1 can be told apart by."""
    powers = 2.0 ** -torch.arange(50, dtype=torch.float64)
    return float(powers[(1 + powers).to(dtype) > 1].min())


smallest_bf16, smallest_f32 = smallest(torch.bfloat16), smallest(torch.float32)
print(smallest_bf16, smallest_f32)

# %% tags=["remove-cell"]
claim(smallest_bf16 == torch.finfo(torch.bfloat16).eps)
claim(smallest_f32 == torch.finfo(torch.float32).eps)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-bits-where
# :::
# **Where the derivative lives** (15 minutes, hard). Let $g$ be uniform on $[-1, 1]$ and $u$ as in {eq}`eq-gradients-bits`, now with $\varepsilon = 10^{-3}$. What is the mean of $u'(g)$? Which share of it comes from $\lvert g \rvert < \varepsilon$, and how probable is that?
#
# :::{hint}
# :class: dropdown
# The antiderivative of $\varepsilon / (g + \varepsilon)^2$ for $g > 0$ is $-\varepsilon / (g + \varepsilon)$.
# :::

# %%
# your code here
mean, share, probability = None, None, None

# %%
# check
fine = None not in (mean, share, probability) and (
    abs(mean - 1 / 1.001) < 1e-6
    and abs(share - 0.5005) < 1e-6
    and abs(probability - 1e-3) < 1e-9
)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-bits-where
# :label: sol-gradients-bits-where
# :class: dropdown
# :::
# By symmetry the mean is $\int_0^1 \varepsilon / (g + \varepsilon)^2 \, dg = 1 / (1 + \varepsilon)$, and the part below $\varepsilon$ is one half. So one pixel in a thousand makes half of the derivative. With $\varepsilon = 10^{-8}$ it is far fewer. Each of them is known as well as a $g$ near zero is.

# %%
e = 1e-3
mean, probability = 1 / (1 + e), e
share = (1 - e / (2 * e)) / mean
print(f"{mean:.4f}, {share:.4f}, {probability}")

# %% tags=["remove-cell"]
claim(abs(share - 0.5005) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-gradients-bits-noise
# :::
# **A cosine from rounding** (10 minutes, medium). A gradient has $D$ entries of standard deviation 1, and rounding adds independent noise of standard deviation $s$ to each. For large $D$, what is the cosine of the two? Which $s$ belongs to a cosine of 0.1?
#
# :::{hint}
# :class: dropdown
# The inner product is $D$, the lengths are $\sqrt D$ and $\sqrt{D (1 + s^2)}$.
# :::

# %%
# your code here
s = None

# %%
# check
fine = s is not None and abs(s - 9.9499) < 1e-3
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-gradients-bits-noise
# :label: sol-gradients-bits-noise
# :class: dropdown
# :::
# It is $1 / \sqrt{1 + s^2}$, so $s = \sqrt{1 / c^2 - 1}$: the noise is ten times the gradient. Averaging does not help an attacker here, as it does in {ref}`nb-gradients`: rounding is the same at every call.

# %%
s = (1 / 0.1**2 - 1) ** 0.5
print(f"{s:.4f}")

# %% tags=["remove-cell"]
claim(abs(1 / (1 + s**2) ** 0.5 - 0.1) < 1e-9)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Likelihood maximisation is that of {cite:t}`chen2024rdc`. That a defence can look strong because gradients are computed badly is a point of {cite:t}`athalye2018obfuscated`. The images are those of {cite:t}`xiao2017fashion`.
