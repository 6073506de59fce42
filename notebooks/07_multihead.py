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
# (nb-multihead)=
# # Multi-head diffusion
#
# :::{admonition} What you will be able to do
# :class: tip
# - Explain how one network pass can answer for all classes, and what it costs and saves.
# - Say which part of a {term}`denoiser` decides a classification, and measure how small it is.
# :::
#
# **Time** 20 minutes · **Needs** {ref}`nb-diffusion`, {ref}`nb-classifier` and {doc}`/book/notation`. Covers section 3.5
# of {cite:t}`chen2024rdc`. Three pages follow: how the heads are trained ({ref}`nb-multihead-training`), how they classify and draw
# ({ref}`nb-multihead-work`), and what similar features mean ({ref}`nb-multihead-similar`).

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = (
    "fashion-mini"  # data set, and its single-head denoiser, the teacher
)
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
count: int = 8  # noise levels of the classifiers
sigma_min: float = 0.1  # lowest noise level, model units
n_heads: int = 40  # test images on which the heads are compared
# noise levels of that comparison, model units
sigmas: list[float] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import EDM, MultiHead
from rdc.denoise.base import fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.edm import coefficients
from rdc.denoise.multihead import Branched
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.rng import randn
from rdc.schedule import levels

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
train, test = load(data, "train"), load(data, "test")
teacher = load_denoiser(data, device, fast_dtype(device))
heads = load_denoiser(heads_name, device, fast_dtype(device))


# %% [markdown]
# **How can one pass of a network answer for all classes?** By moving the label from its input to its output. What then decides is a small part of what the network produces: {numref}`fig-mh-size`.


# %% tags=["hide-input"]
@torch.no_grad()
def answers(
    model: EDM | MultiHead, z: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """``D_k`` of every class ``(N, K, C, H, W)`` and the unconditional answer
    ``(N, C, H, W)``, on noise that depends on sigma.
    """
    z_sigma = z + sigma * randn(
        tuple(z.shape), seed, "heads", str(sigma), like=z
    )
    return model.all_classes(z_sigma, sigma), model(z_sigma, sigma)


z = to_model(test.x[:n_heads]).to(device)
table: list[dict[str, float]] = []
head_losses = []  # by level: images, heads
print(
    "sigma   target   unexplained   class differences   heads' error in them, "
    "relative"
)
for sigma in sigmas:
    c_skip, c_out, _ = coefficients(
        torch.tensor(sigma), teacher.config.sigma_data
    )
    (d, free), (d_heads, free_heads) = (
        answers(teacher, z, sigma),
        answers(heads, z, sigma),
    )
    z_sigma = z + sigma * randn(
        tuple(z.shape), seed, "heads", str(sigma), like=z
    )
    wanted, found = d - free[:, None], d_heads - free_heads[:, None]
    row = {
        "sigma": sigma,
        "target": float(((z - c_skip * z_sigma) / c_out).square().mean()),
        "unexplained": float(((z - free) / c_out).square().mean()),
        "size": float((wanted / c_out).square().mean()),
        "error": float(
            (found - wanted).square().mean() / wanted.square().mean()
        ),
    }
    table.append(row)
    head_losses.append(((d_heads - d) / c_out).square().flatten(2).mean(2))
    print(
        f"{sigma:5.2f}   {row['target']:6.3f}   {row['unexplained']:11.4f}   "
        f"{row['size']:17.5f}   {row['error']:10.2f}"
    )

# %% mystnb={"figure": {"caption": "Parts of the network's target by noise level, mean over images and pixels: its mean square, what the teacher without label leaves unexplained, and the class differences, which alone decide. Both axes logarithmic.", "name": "fig-mh-size"}, "image": {"alt": "The class differences lie far below the target at low noise and come closer at high noise", "width": "70%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.8, 3.6))
for key, label, mark in (
    ("target", "target", "s"),
    ("unexplained", r"unexplained, $\rho$", "o"),
    ("size", r"class differences, $v$", "^"),
):
    ax.plot(sigmas, [row[key] for row in table], marker=mark, label=label)
ax.set(
    xscale="log",
    yscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="mean square (network units)",
)
ax.legend()
plt.show()

# %%
for name, net in (("teacher", teacher), ("multi-head", heads)):
    size = sum(p.numel() for p in net.parameters())
    print(
        f"{name:10s} {type(net).__name__:9s} {size:8d} parameters, "
        f"{net.num_classes} classes, all in one pass: {net.one_pass}"
    )

# %% [markdown]
# ## From T K passes to T
#
# A {term}`diffusion classifier` asks the network once for each level, image *and class* ({ref}`nb-classifier`). Of all its inputs
# only the label differs between the $K$ questions about one noisy image. {cite:t}`chen2024rdc` take the label out of the input and put it
# into the output: the last convolution gets $K$ outputs in the place of one, and a pass answers for every class.
#
# :::{prf:definition} Multi-head denoiser
# :label: def-multihead
# With the coefficients of {ref}`nb-diffusion`, and a network $F = (F_1, \dots, F_{K+1})$ that does not see a label,
#
# ```{math}
# :label: eq-multihead
# \begin{aligned}
# D(z_\sigma, \sigma, k) &= c_\text{skip}\, z_\sigma + c_\text{out}\, F_k\big(c_\text{in} z_\sigma, \tfrac14 \ln \sigma\big), \\
# k &= 1, \dots, K+1.
# \end{aligned}
# ```
#
# Head $K + 1$ is the unconditional denoiser $\E[z \mid z_\sigma]$.
# :::
#
# :::{table} Passes of the network, with one head and with a head for each class
#
# | | single head | multi-head |
# |---|---|---|
# | passes for the logits of an image | $T R K$ | $T R$ |
# | passes with gradient for a margin | $2\, T R$ | $T R$ |
#
# :::
#
# $T$ are the levels and $R$ the draws. The second row matters as much as the first, for an attack takes many gradients. For the full
# defence of {cite:t}`chen2024rdc`, which takes $N$ steps of likelihood maximization first, $N + T K$ passes become $N + T$.
#
# **What it does not change.** Logits, levels, weights, noise and the two-pass gradient are those of
# {py:class}`rdc.classify.DiffusionClassifier`. It is one classifier with another denoiser.

# %%
chosen = levels("elbo", count, sigma_min=sigma_min)
slow = DiffusionClassifier(teacher, chosen, seed=seed)
quick = DiffusionClassifier(
    heads, chosen, seed=seed, chunk=256 * heads.num_classes
)  # 256 passes at a time
print(
    f"passes for the logits of an image: {slow.evaluations} single-head, "
    f"{quick.evaluations} multi-head"
)

# %% tags=["remove-cell"]
assert slow.evaluations == heads.num_classes * quick.evaluations

# %% [markdown]
# (sec-mh-differences)=
# ## What a decision is made of
#
# What must the heads get right? Not what one would think.
#
# :::{prf:proposition} Only differences decide
# :label: prop-mh-differences
# Let $f_k = -\sum_t w_t \norm{z - D_k}^2$, where $D_k = D(z + \sigma_t \varepsilon_t, \sigma_t, k)$, and let $D_0$ be any common
# reference, such as the unconditional answer. Put $\Delta_k = D_k - D_0$ and $r = z - D_0$. Then
#
# ```{math}
# :label: eq-mh-logit
# f_k - f_j = \sum_t w_t \Big( 2 \langle \Delta_k - \Delta_j,\, r \rangle - \norm{\Delta_k}^2 + \norm{\Delta_j}^2 \Big).
# ```
#
# An error common to all heads, $D_k \to D_k + e$, changes it by $-2 \sum_t w_t \langle \Delta_k - \Delta_j, e \rangle$, which is zero where
# the heads agree.
# :::
#
# :::{prf:proof}
# $\norm{z - D_k}^2 = \norm{r - \Delta_k}^2 = \norm{r}^2 - 2 \langle \Delta_k, r \rangle + \norm{\Delta_k}^2$. The first term is the same for
# all classes. A common error replaces $r$ by $r - e$ and leaves $\Delta_k$ as it is.
# :::
#
# So the classifier reads the *class differences* $\Delta_k$. The denoising loss, however, is mostly $\norm{r}^2$. We
# measure both on the teacher, in the units of the network, in which the target $(z - c_\text{skip} z_\sigma) / c_\text{out}$
# has about unit variance at every {term}`noise level`:
#
# ```{math}
# :label: eq-mh-size
# v(\sigma) = \frac{1}{K} \sum_k \frac{\norm{\Delta_k}^2}{c_\text{out}^2\, D}, \qquad
# \rho(\sigma) = \frac{\norm{r}^2}{c_\text{out}^2\, D},
# ```
#
# averaged over images, with $D$ the number of pixels.

# %%
low = min(table, key=lambda row: row["sigma"])
ratio_low = low["size"] / low["target"]
largest = max(table, key=lambda row: row["size"] / row["target"])
print(
    f"at sigma {low['sigma']}: the class differences are "
    f"1/{1 / ratio_low:.0f} of the target's mean square;"
)
print(
    f"at most (sigma {largest['sigma']}) they are "
    f"1/{largest['target'] / largest['size']:.0f}"
)

# %% tags=["remove-cell"]
glue("mh-ratio", f"1/{1 / ratio_low:.0f}")
claim(ratio_low < 0.05, "the text says: a small part")
claim(all(row["size"] < row["target"] for row in table))

# %% [markdown]
# At low noise the picture itself says what it shows, and a label adds little: {glue:text}`mh-ratio` of what the network has to produce
# at the lowest level of the table. A student with a small relative error in its *output* may still have nothing right in
# the *differences*. This one fact explains the difficulty of this chapter.
#
# ### Two forms
#
# {py:mod}`rdc.denoise.multihead` has two ways to make $K + 1$ outputs.
#
# - **wide** is the paper's: one network without label, whose last convolution is $K + 1$ times as wide. It must learn
#   the common part again, and the features before that convolution must hold everything that tells the classes apart.
# - **branch** is ours, and not in the paper: $F_k = F + G_k$ and $F_{K+1} = F$. The trunk $F$ is the teacher itself, without label,
#   and stays as it is. The branch $G$ is a second, coarser network with $K$ outputs, and spends all it has on the differences. It
#   reads the noisy image and what the trunk has made of it: where classes differ depends on what the picture shows, and the trunk
#   has found that out already.
#
# In the branch form the reference $D_0$ of {prf:ref}`prop-mh-differences` is exact, and $\Delta_k = c_\text{out} G_k$. The price is a second
# network in every pass. The shipped network has the branch form.

# %% tags=["hide-input"]
shipped_branch = isinstance(heads.model, Branched)
if shipped_branch:
    trunk, branch = (
        sum(p.numel() for p in part.parameters())
        for part in (heads.model.trunk, heads.model.branch)
    )
    print(
        f"branch form: a trunk of {trunk} parameters, frozen, and a branch of "
        f"{branch}"
    )
_, free = answers(teacher, z, 1.0)
_, free_heads = answers(heads, z, 1.0)
gap = float(
    (free - free_heads).square().mean().sqrt() / free.square().mean().sqrt()
)
print(
    f"the unconditional answers of teacher and heads differ by {gap:.4f} of "
    f"their size"
)

# %% mystnb={"figure": {"caption": "Relative squared error of the distilled heads' class differences, by noise level: 0 is the teacher, 1 is as bad as heads that are all alike (dashed).", "name": "fig-mh-error"}, "image": {"alt": "Relative error of the class differences against the noise level, with a dashed line at one", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.2))
ax.plot(sigmas, [row["error"] for row in table], marker="o")
ax.axhline(1, ls="--", color="0.4", lw=1)
ax.set(
    xscale="log",
    ylim=(0, None),
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="relative squared error",
)
plt.show()

# %% tags=["remove-cell"]
claim(shipped_branch and gap < 0.05)
claim(
    min(row["error"] for row in table) < 0.9,
    "somewhere the heads follow the teacher",
)

# %% tags=["remove-cell"]
claim(table[0]["error"] > table[-1]["error"])

# %% [markdown]
# ## What to remember
#
# - Moving the label from input to output turns $T K$ passes into $T$, and $2 T$ passes with gradient into $T$.
# - A decision reads only the differences of the classes, a small part of what a denoiser produces at low noise.
# - The branch form keeps the teacher's unconditional answer and learns the differences alone; it is ours, not the paper's.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-mh-passes
# :::
# **Passes** (5 minutes, easy). The full defence takes $N$ steps of {term}`likelihood maximisation`, one pass each and without a label, and then classifies. How many passes of the network does it take for the {term}`logits` of one image with $N = 5$, $T = 8$ levels, one draw and ten classes: with one head, and with ten?
#
# :::{hint}
# :class: dropdown
# The two formulas stand below the table of passes.
# :::

# %%
# your code here
one_head, ten_heads = None, None  # passes

# %%
# check
fine = (one_head, ten_heads) == (5 + 8 * 10, 5 + 8)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-passes
# :label: sol-mh-passes
# :class: dropdown
# :::
# $N + T K$ and $N + T$. Likelihood maximisation asks the unconditional head, so the heads save nothing there.

# %%
one_head, ten_heads = 5 + 8 * 10, 5 + 8
print(one_head, ten_heads)

# %% tags=["remove-cell"]
claim((one_head, ten_heads) == (85, 13))

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-rank
# :::
# **Is the last layer too narrow?** (20 minutes, hard). In the wide form all outputs at a pixel are a linear function of the features around it. Show that the class differences at one position then have rank at most $9 C$, with $C$ the number of features and a $3 \times 3$
# convolution. How large is the bound for the teacher's last convolution? Does it bind for ten classes? If not, is the *content* of the features the limit? Freeze the teacher's features without label, fit
# the best last layer to its class differences by least squares, and compare with the differences on other images, at $\sigma = 0.8$.
#
# :::{hint}
# :class: dropdown
# At a position all outputs are one matrix times the $9 C$ numbers around it. The last convolution is the layer of `teacher.model.dec` whose name ends in `aux_conv`; `F.unfold` gives the neighbourhoods.
# :::

# %%
# your code here
bound, probe_error = None, None  # rank; squared error, relative

# %%
# check
fine = bound == 288 and close_to(probe_error, 0.84, within=0.03)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-rank
# :label: sol-mh-rank
# :class: dropdown
# :::
# Write the neighbourhood of a position as $\phi \in \mathbb R^{9C}$. Head $k$ is $W_k \phi + b_k$, so the vector of all differences is $\widetilde W \phi + \tilde b$ with a matrix of $9C$ columns: over all inputs
# it moves in an affine space of dimension at most $9C$. There are $K p^2$ numbers at a position ($p$ the patch). As long as $K p^2 \le 9C$ the bound says nothing. What can fail is that no linear function of *these*
# features is the class difference, as the fit shows. A feature that is only good for the unconditional answer need not hold it.

# %%
last = next(
    m for name, m in teacher.model.dec.items() if name.endswith("aux_conv")
)
patch = teacher.config.unet.patch
bound = 9 * last.in_channels
print(
    f"numbers at a position: {teacher.num_classes * patch**2}; bound on their "
    f"rank: {bound}"
)

# %% tags=["hide-input"]
sigma_probe = 0.8


@torch.no_grad()
def probe_data(images: Images, key: str) -> tuple[Tensor, Tensor]:
    """Neighbourhoods of the features without label ``(rows, 9C + 1)`` and
    class differences ``(rows, K p^2)``.
    """
    zs, seen = to_model(images.x).to(device), []
    zs = zs + sigma_probe * randn(tuple(zs.shape), seed, key, like=zs)
    layer = next(
        m for name, m in teacher.model.dec.items() if name.endswith("aux_norm")
    )
    hook = layer.register_forward_hook(
        lambda _, __, out: seen.append(F.silu(out).float())
    )
    free = teacher(zs, sigma_probe)
    hook.remove()
    difference = (teacher.all_classes(zs, sigma_probe) - free[:, None]).flatten(
        1, 2
    )
    phi = F.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    target = (
        F.pixel_unshuffle(difference, patch)
        .flatten(2)
        .transpose(1, 2)
        .flatten(0, 1)
    )
    return torch.cat(
        [phi, torch.ones_like(phi[:, :1])], dim=1
    ).double(), target.double()


(phi, target), (phi_new, target_new) = (
    probe_data(train[: 10 * n_heads], "fit"),
    probe_data(test[:n_heads], "check"),
)
gram = phi.T @ phi
best = torch.linalg.solve(
    gram
    + 1e-4
    * gram.diagonal().mean()
    * torch.eye(len(gram), dtype=torch.float64, device=gram.device),
    phi.T @ target,
)
probe_error = float(
    (phi_new @ best - target_new).square().mean() / target_new.square().mean()
)
mean_error = float(
    (target.mean(0) - target_new).square().mean() / target_new.square().mean()
)
near = min(table, key=lambda row: abs(row["sigma"] - sigma_probe))
print(
    f"relative error of the class differences at sigma {sigma_probe}: "
    f"{probe_error:.2f} with the best last layer on features without label,"
)
print(
    f"{mean_error:.2f} for the mean difference at each place in a patch, "
    f"{near['error']:.2f} for the distilled heads (sigma {near['sigma']})"
)

# %% tags=["remove-cell"]
claim(bound > teacher.num_classes * patch**2)
claim(probe_error < 1.05)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-subset
# :::
# **A few heads or all?** (20 minutes, medium). {py:mod}`rdc.train.heads` lets an image teach $s$ random heads of $H$. Show that the mean over them estimates the mean over all heads without bias. Let $a$ be the variance of an image's mean loss between images, and
# $b$ the mean squared deviation of its heads from that mean. With a budget of $B$ teacher passes, an image costs $s + 1$ (the unconditional answer is needed as well). Which $s$ gives the least variance? Measure $a$ and $b$ for the shipped heads.
#
# :::{hint}
# :class: dropdown
# Of $s$ draws without replacement from $H$ the mean has the variance $\frac{b}{s} \frac{H - s}{H - 1}$. `torch.cat(head_losses)` holds the losses of the shipped heads, a row for each image and level, a column for each head.
# :::

# %%
# your code here
a, b, best_s = None, None, None

# %%
# check
rows_of = torch.cat(head_losses).double()
mean_of = rows_of.mean(1)
a_of = float(mean_of.var())
b_of = float((rows_of - mean_of[:, None]).square().mean())
costs = [(s + 1) * (a_of + b_of / s * (10 - s) / 9) for s in range(1, 11)]
fine = None not in (a, b) and best_s == 1 + costs.index(min(costs))
fine = fine and abs(a / a_of - 1) < 0.02 and abs(b / b_of - 1) < 0.02
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-subset
# :label: sol-mh-subset
# :class: dropdown
# :::
# Each head is drawn with probability $s / H$, so the mean over the subset has the mean over all heads as its expectation. With $n = B / (s + 1)$ images the variance is
# $\frac{s + 1}{B} \big( a + \frac{b}{s} \frac{H - s}{H - 1} \big)$, least near $s = \sqrt{b' / a'}$ with $b' = b H / (H - 1)$ and $a' = a - b / (H - 1)$. Large $a$, images that differ more than heads do, asks for more images and few heads.

# %% tags=["hide-input"]
per_head = torch.cat(head_losses).double()  # (images and levels, K)
a, b, total = (
    float(per_head.mean(1).var()),
    float(per_head.var(1, correction=0).mean()),
    per_head.shape[1],
)
variance = {
    s: (s + 1) * (a + b / s * (total - s) / (total - 1))
    for s in range(1, total + 1)
}
best_s = min(variance, key=lambda s: variance[s])
print(
    f"between images (and levels) {a:.2e}, between heads {b:.2e}: the best "
    f"subset has s = {best_s}"
)
print(
    "variance at the same budget, relative to all heads:",
    {
        s: round(v / variance[total], 2)
        for s, v in variance.items()
        if s in (1, 2, 3, 5, 10)
    },
)

# %% tags=["remove-cell"]
claim(variance[best_s] <= variance[total])

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Multi-head diffusion is due to {cite:t}`chen2024rdc`; the denoiser's coefficients to {cite:t}`karras2022elucidating`. The images are those of {cite:t}`xiao2017fashion`.
