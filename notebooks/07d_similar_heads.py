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
# (nb-multihead-similar)=
# # Similar features, similar predictions
#
# :::{admonition} What you will be able to do
# :class: tip
# - Tell the similarity of features from the similarity of predictions, and know which of the two a cosine near 1 speaks of.
# :::
#
# **Time** 15 minutes · **Needs** {ref}`nb-multihead`. Covers appendix B.1 of {cite:t}`chen2024rdc`.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = (
    "fashion-mini"  # data set, and its single-head denoiser, the teacher
)
# the multi-head denoiser distilled from it
heads_name: str = "fashion-mini-multihead"
n_heads: int = 40  # test images on which the heads are compared
# noise levels of that comparison, model units
sigmas: list[float] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
n_feature: int = 10  # test images whose features are compared

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.data import load
from rdc.denoise import EDM, MultiHead
from rdc.denoise.base import fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.notebook import check_parameters, claim, close_to, glue
from rdc.plots import style
from rdc.rng import randn
from rdc.tasks.heads import mean_cosine

check_parameters()
style()
device = (
    ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "auto"
    else device
)
test = load(data, "test")
teacher = load_denoiser(data, device, fast_dtype(device))
heads = load_denoiser(heads_name, device, fast_dtype(device))
z = to_model(test.x[:n_heads]).to(device)


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


# %% [markdown]
# **Are the heads too alike?** Appendix B.1 explains the failure of heads trained directly by their features: for a conventional network the features of one $x_t$ under
# different labels "differ from each other", while for the {term}`multi-head` network "the cosine similarity of these predictions exceeds
# 0.98". Two different things stand in these sentences.
#
# - **Features**, the input of the last convolution. In a multi-head network they do not depend on the class, so their cosine
#   is 1 *by construction*, whether it classifies well or not. A number such as 0.98 cannot be theirs.
# - **Predictions**, the outputs. So the number must be about them. But how similar are those of a *good* classifier?
#
# We measure three outputs, each as the mean cosine over pairs of classes: the denoised images $D_k$, the noise
# predictions $(z_\sigma - D_k) / \sigma$, in which the paper writes its network, and the class differences $\Delta_k$.


# %% tags=["hide-input"]
@torch.no_grad()
def last_features(model: EDM, z_sigma: Tensor, sigma: float) -> Tensor:
    """Input of the last convolution under each label, ``(N, K, channels, h,
    w)``.
    """
    seen: list[Tensor] = []
    layer = next(
        m for name, m in model.model.dec.items() if name.endswith("aux_norm")
    )
    hook = layer.register_forward_hook(
        lambda _, __, out: seen.append(F.silu(out).float())
    )
    model.all_classes(z_sigma, sigma)
    hook.remove()
    return seen[0].unflatten(0, (len(z_sigma), model.num_classes))


similar: dict[tuple[str, str], list[float]] = {}
for sigma in sigmas:
    z_sigma = z + sigma * randn(
        tuple(z.shape), seed, "heads", str(sigma), like=z
    )
    similar.setdefault(("teacher", "features"), []).append(
        float(mean_cosine(last_features(teacher, z_sigma[:n_feature], sigma)))
    )
    similar.setdefault(("heads", "features"), []).append(1.0)  # by construction
    for name, model in (("teacher", teacher), ("heads", heads)):
        d, free = answers(model, z, sigma)
        noise = (z_sigma[:, None] - d) / sigma
        for kind, v in (
            ("D", d),
            ("noise", noise),
            ("differences", d - free[:, None]),
        ):
            similar.setdefault((name, kind), []).append(float(mean_cosine(v)))
print(
    "cosine between classes, sigma   ", "  ".join(f"{s:6.1f}" for s in sigmas)
)
for (name, kind), values in sorted(similar.items(), reverse=True):
    print(f"{name:8s} {kind:22s} ", "  ".join(f"{v:6.3f}" for v in values))

# %% mystnb={"figure": {"caption": "Cosine between classes by noise level, mean over images and pairs: teacher (solid) and distilled heads (dashed). The dotted line is the 0.98 of appendix B.1. The features of the heads are 1 by construction and not drawn.", "name": "fig-mh-cosine"}, "image": {"alt": "Cosines of predictions of teacher and heads run close together near one, those of class differences lie far below", "width": "75%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(6.2, 3.8))
for i, kind in enumerate(("D", "noise", "differences", "features")):
    for name, ls in (("teacher", "-"), ("heads", "--")):
        if (name, kind) != ("heads", "features"):
            ax.plot(
                sigmas,
                similar[name, kind],
                ls,
                color=f"C{i}",
                marker="o",
                ms=3,
                label=kind if ls == "-" else None,
            )
ax.axhline(0.98, ls=":", color="0.4", lw=1)
ax.set(
    xscale="log",
    xlabel=r"noise level $\sigma$ (model units)",
    ylabel="mean cosine between classes",
)
ax.legend()
plt.show()

# %%
above = [
    s
    for s, v in zip(sigmas, similar["teacher", "noise"], strict=True)
    if v > 0.98
]
print(
    f"noise predictions of the teacher, the good classifier, exceed 0.98 at "
    f"{len(above)} of {len(sigmas)} levels: {above}"
)
print(
    f"its features lie between {min(similar['teacher', 'features']):.2f} and "
    f"{max(similar['teacher', 'features']):.2f}"
)

# %% tags=["remove-cell"]
glue("mh-above", f"{len(above)} of {len(sigmas)}")
claim(len(above) >= 1)
claim(max(similar["teacher", "differences"]) < max(similar["teacher", "noise"]))

# %% [markdown]
# The teacher, whose classification nobody calls a failure, has noise predictions with a cosine above 0.98 at {glue:text}`mh-above` of our
# levels. A high cosine of predictions does not show that the heads are too alike: the common part dominates both. In the noise
# predictions it is the noise itself, at every level; in the denoised images it is what the noisy image shows. The number that separates is that of the differences, and even better their error against the
# teacher ({numref}`fig-mh-error`).
#
# A caution on the features of the single-head network: they come out of a SiLU, most of them are positive or nearly zero, and vectors
# with a large common mean have a high cosine whatever they say about classes.
#
# ## What to remember
#
# - Features of a multi-head network are the same for all classes by construction.
# - A cosine of predictions near 1 belongs to the teacher too: the common part dominates.
# - The number that separates is the error of the differences.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-mh-common
# :::
# **A large common part** (5 minutes, easy). Let $D_k = c + \Delta_k$ with $\Delta_k$ orthogonal to $c$ and to each other, all of the same length. What is the cosine between two $D_k$? How many times longer than the differences must the common part be for 0.98?
#
# :::{hint}
# :class: dropdown
# Only $c$ contributes to the inner product.
# :::

# %%
# your code here
times_longer = None

# %%
# check
fine = times_longer is not None and abs(times_longer - 7) < 0.05
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-common
# :label: sol-mh-common
# :class: dropdown
# :::
# $\norm{c}^2 / (\norm{c}^2 + \norm{\Delta}^2)$: 0.98 when the common part is seven times as long as the differences.

# %%
times_longer = (0.98 / 0.02) ** 0.5
c = torch.tensor([7.0, 0.0, 0.0])
pair = torch.stack([c, c])
pair[0, 1], pair[1, 2] = 1.0, 1.0
print(f"cosine {float(F.cosine_similarity(pair[0], pair[1], dim=0)):.3f}")

# %% tags=["remove-cell"]
claim(abs(times_longer - 7) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-simplex
# :::
# **How different can ten differences be?** (10 minutes, medium). What is the smallest mean cosine between the pairs of $K$ vectors? Which number is it for ten classes, and does the table above come near it?
#
# :::{hint}
# :class: dropdown
# The sum of unit vectors has a length, and that is not negative.
# :::

# %%
# your code here
smallest = None

# %%
# check
fine = close_to(smallest, -1 / 9, within=2e-3)
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-simplex
# :label: sol-mh-simplex
# :class: dropdown
# :::
# For unit vectors $0 \le \norm{\sum_k u_k}^2 = K + K (K - 1) \bar c$, so $\bar c \ge -1 / (K - 1)$, with equality where they add up to zero. The corners of a regular simplex do. Where no class is excluded yet, the unconditional
# answer is close to the mean of the others, and the differences nearly add up to zero. The table does not come near it: its
# cosines are all positive, for even at its highest level the noisy image excludes classes. Only at much higher noise does the
# mean cosine become negative.

# %%
smallest = -1 / 9
corners = torch.eye(10) - 0.1  # ten vectors that add up to zero
print(f"{mean_cosine(corners[None]):.4f}")

# %% tags=["remove-cell"]
claim(abs(mean_cosine(corners[None]) - smallest) < 1e-6)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-mh-positive
# :::
# **Alike because positive** (10 minutes, medium). Take two independent vectors of standard normal numbers and set the negative ones to zero, as a ReLU does. What is their cosine in high dimension, though nothing connects them?
#
# :::{hint}
# :class: dropdown
# $\E \max(u, 0) = 1 / \sqrt{2 \pi}$, and the mean square is one half.
# :::

# %%
# your code here
unrelated = None

# %%
# check
fine = unrelated is not None and abs(unrelated - 0.3183) < 0.01
print("right" if fine else "not yet")

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-mh-positive
# :label: sol-mh-positive
# :class: dropdown
# :::
# The inner product of two is $d / (2 \pi)$ and the squared length $d / 2$, so the cosine is $1 / \pi$. The common mean alone makes it.

# %%
u, v = randn((2, 100_000), seed, "positive").relu()
unrelated = float(F.cosine_similarity(u, v, dim=0))
print(f"{unrelated:.3f}, in the limit {1 / torch.pi:.3f}")

# %% tags=["remove-cell"]
claim(abs(unrelated - 1 / torch.pi) < 0.01)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# The sentences are those of {cite:t}`chen2024rdc`.
