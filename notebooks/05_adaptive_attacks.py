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
# (nb-adaptive)=
# # Adaptive attacks
#
# :::{admonition} What you will be able to do
# :class: tip
# - Recognise an obfuscated gradient, and name the attack that goes around it.
# - Differentiate through a defence: exactly with checkpoints, or with a stand-in in the backward pass (BPDA).
# - Attack and judge a randomised classifier, and say which of four protocols a number belongs to.
# - Run StAdv, the Lagrange attack, the feature attack and the black boxes, and say what each can and cannot find.
# - Audit an attack, and read the audit before quoting a robust accuracy.
# :::
#
# **Time** 75 minutes · **Needs** {ref}`nb-first-attack`, {ref}`nb-optimal`, {ref}`nb-classifier` and {doc}`/book/notation`.
# Covers the attacks of sections 4.1, 4.3 and 4.4 and of appendix B.2 of {cite:t}`chen2024rdc`. Their full defence, which first moves
# the image to a more likely one, is the subject of a later chapter.
#
# The numbers on this page come from few images, so that the page runs in minutes. Every table says how many.

# %% tags=["parameters"]
device: str = "auto"  # "cpu", "cuda" or "auto"
seed: int = 0  # owner of all random numbers
data: str = "fashion-mini"  # data set, and the denoiser trained for it
epochs: int = 5  # training of the undefended network
n_attack: int = 100  # test images for attacks on the network
steps: int = 10  # gradient steps of PGD on the network
eps: str | float = 8 / 255  # Linf radius, image units
n_purify: int = 20  # images for the purified network
purify_steps: list[int] = [1, 4]  # steps N of the purification
eps_purify: str | float = 16 / 255  # Linf radius for the purified network, image units
n_eot: int = 40  # images for the study of averaging
eot_draws: list[int] = [1, 4, 16]  # calls averaged
draws: int = 20  # verdicts on an image by a randomised model
n_verdict: int = 30  # images for the four protocols
n_stadv: int = 30  # images for StAdv
stadv_steps: int = 60  # steps of StAdv
stadv_eps: str | float = 0.05  # bound of its flow, as a fraction of the image
factors: list[float] = [1.0, 1e-2, 1e-4]  # scales of the logits
n_train: int = 1000  # training images in the optimal classifier
n_optimal: int = 20  # images for attacks on it
queries: int = 150  # queries of the black boxes
count: int = 4  # noise levels of the diffusion classifier
n_dc: int = 5  # images for attacks on it
dc_steps: int = 6  # gradient steps on it
n_dc_stadv: int = 3  # images for StAdv on it
dc_stadv_steps: int = 15  # steps of StAdv on it
eps_dc: str | float = 8 / 255  # Linf radius for it, image units
n_audit: int = 12  # images of an audit
n_audit_dc: int = 2  # images of the diffusion classifier's audit
audit_steps_dc: int = 3  # gradient steps there
audit_queries_dc: int = 10  # queries there

# %%
import warnings
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from scipy.special import comb
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.attack.blackbox import square, transfer
from rdc.attack.feature import feature
from rdc.attack.lagrange import lagrange
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of, random_start
from rdc.attack.stadv import flow_field, stadv, warp
from rdc.autograd import iterate, value_and_gradient
from rdc.classify import DiffusionClassifier, OptimalClassifier
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.defend.preprocessed import Preprocessed, one_denoising_step
from rdc.denoise.base import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, accuracy, predict, protocols, read_rows, robust_accuracy
from rdc.evaluate.audit import audit
from rdc.notebook import check_parameters, claim, glue
from rdc.plots import style
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

check_parameters()
style()
device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
train, test = load(data, "train"), load(data, "test")
cnn = train_classifier(train, epochs, batch=64, lr=1e-2, width=16, seed=seed, device=device)
x, y = test.x[:n_attack].to(device), test.y[:n_attack].to(device)
x_pgd = pgd(cnn, x, y, eps=eps, steps=steps, seed=seed)
plain = robust_accuracy(cnn, x, y, x_pgd)
print(f"undefended network, {n_attack} images: clean {accuracy(cnn, x, y)}")
print(f"under PGD-{steps}, Linf {255 * eps:.0f}/255:     {plain}")

# %% [markdown]
# ## A number is worth as much as its attack
#
# A robust accuracy is an upper bound ({eq}`eq-upper-bound`): it counts the images that *this attack* did not break. There are two
# ways to raise it. One is a better model. The other is a worse attack, and a defence can bring that about without meaning to.
#
# {cite:t}`athalye2018obfuscated` call it an *obfuscated gradient* when the defence spoils what the attack climbs. They name three
# kinds:
#
# - **shattered**: the gradient is missing, zero or noise, because a step is not differentiable or is very rough;
# - **stochastic**: the gradient belongs to one random draw, and the verdict to another;
# - **vanishing or exploding**: a long computation, or a saturated output, loses the gradient on its way.
#
# {cite:t}`tramer2020adaptive` took thirteen published defences, all of them evaluated with "adaptive" attacks, and broke each one.
# Their advice is not a tool but an attitude: find out *why* an attack fails, and then change the attack.
#
# To learn that, we need defences that we know to be broken. {py:mod}`rdc.defend.broken` plants eight. Each wraps our network,
# changes its decisions little, and makes one known mistake. Here is what a careless evaluation says of them: PGD, with the global
# random generator seeded for the attack, as tools do, and one verdict after it.


# %%
def careless(defence: nn.Module, loss: str) -> str:
    """Robust accuracy as a careless evaluation reports it, in percent."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of probabilities; a careless reader does not look
        torch.manual_seed(seed + 1)
        try:
            x_adv = pgd(defence, x, y, eps=eps, steps=steps, loss=loss, seed=seed)
        except (RuntimeError, ValueError):
            x_adv = x  # "the attack does not apply"
        torch.manual_seed(seed + 2)
        return f"{100 * robust_accuracy(defence, x, y, x_adv).value:4.0f} %"


zoo = broken_defences(cnn, seed)
reported: dict[tuple[str, str], str] = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps}   clean    CE    margin")
for name, defence in {"none": cnn, **zoo}.items():
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)
        clean = 100 * accuracy(defence, x, y).value
    reported |= {(name, loss): careless(defence, loss) for loss in ("ce", "margin")}
    print(f"{name:32s} {clean:7.0f} % {reported[name, 'ce']}  {reported[name, 'margin']}")

# %% tags=["remove-cell"]
percent = {key: float(value.split()[0]) for key, value in reported.items()}
glue("adaptive-plain", f"{plain}")
for name in ("saturated-softmax", "quantised-input", "shattered-gradient", "detached-preprocessing"):
    claim(percent[name, "margin"] > 100 * plain.high, name)
claim(abs(percent["tiny-logits", "margin"] - percent["none", "margin"]) <= 2)
claim(plain.high < accuracy(cnn, x, y).low)

# %% [markdown]
# Nothing here is robust. Without any defence the network keeps {glue:text}`adaptive-plain`, and most wrappers "raise" that.
# The rest of the chapter takes the mistakes one by one. Three are left to you ({ref}`ex-adaptive-softmax`,
# {ref}`ex-adaptive-shattered`, {ref}`ex-adaptive-reseeded`).
#
# A first look at the gradient often tells which mistake it is. We ask three questions at random points near the images. Does a gradient arrive?
# Is it zero? And if we take a small step along it, does the loss rise as far as the gradient promises?


# %%
def look(defence: nn.Module, step: float = 1 / 255) -> str:
    """What the gradient of the margin is worth at a random point of each ball."""
    objective = lambda p: margin(defence(p), y)  # noqa: E731
    start = random_start(x, "Linf", eps, torch.arange(len(x)), seed)
    try:
        before, slope = value_and_gradient(objective, start)
    except (RuntimeError, ValueError) as error:
        return str(error).split(";")[0]
    dead = norm_of(slope, "L2") == 0
    if dead.float().mean() > 0.5:
        return f"exactly zero at {100 * float(dead.float().mean()):.0f} % of the images"
    moved = (start + step * slope.sign()).clamp(0, 1)
    with torch.no_grad():
        rise = objective(moved) - before
    promised = ((moved - start) * slope).flatten(1).sum(1)
    return f"a step keeps {float((rise / promised)[~dead].median()):5.2f} of what the gradient promises (median)"


for name, defence in {"none": cnn, **zoo}.items():
    print(f"{name:24s} {look(defence)}")

# %% [markdown]
# (sec-adaptive-bpda)=
# ## Going around a step: BPDA
#
# Rounding has the derivative zero, and an image library has none. *Backward pass differentiable approximation* (BPDA,
# {cite:t}`athalye2018obfuscated`) runs the step as it is in the forward pass and puts a differentiable stand-in $s$ in its place in
# the backward pass:
#
# ```{math}
# :label: eq-bpda
# f(x) = c(g(x)), \qquad \nabla_x \ell(f(x)) \approx J_s(x)^\top\, \nabla \ell(c)\big|_{g(x)} .
# ```
#
# The verdict is never approximated, only the direction of the next step. For a process that changes the image little, $s(x) = x$ will
# do. In code, value and gradient are parted by a detached difference, `value + (s(x) - s(x).detach())`
# ({py:class}`rdc.autograd.BPDA`).

# %%
broken: dict[str, Accuracy] = {}
for name in ("quantised-input", "detached-preprocessing"):
    around = Preprocessed(zoo[name].process, cnn, gradient="bpda")
    x_adv = pgd(around, x, y, eps=eps, steps=steps, seed=seed)
    broken[name] = robust_accuracy(zoo[name], x, y, x_adv)  # judged by the defence itself
    print(f"{name:24s} careless {reported[name, 'margin']}   BPDA {broken[name]}")

# %% tags=["remove-cell"]
for name, value in broken.items():
    claim(value.value < plain.value + 0.1 and 100 * value.high < percent[name, "margin"], name)

# %% [markdown]
# (sec-adaptive-exact)=
# ## Through the step: exact gradients
#
# BPDA is a guess, and a defence that moves the image far can make it a poor one. When the process is differentiable we need not guess.
#
# Our example is a purification: $N$ steps that pull the image towards its denoised version,
#
# ```{math}
# :label: eq-purify
# z_{i+1} = z_i + \eta \big( D(z_i; \sigma) - z_i \big), \qquad i = 0 \dots N - 1,
# ```
#
# followed by the network. With the score $\nabla_z \log p_\sigma = (D - z) / \sigma^2$ ({ref}`nb-diffusion`) this is gradient ascent
# on a log-likelihood, a simple relative of the likelihood maximisation of {cite:t}`chen2024rdc`.
#
# Backpropagation through $N$ steps keeps the activations of $N$ networks. *Checkpointing* keeps only the $N$ images $z_i$ and runs
# each step again when the backward pass arrives there {cite}`chen2016training`: one more forward pass, the memory of one step,
# and the same gradient.

# %%
denoiser = load_denoiser(data, device=device, dtype=fast_dtype(device))
xp, yp = x[:n_purify], y[:n_purify]


def purify(x: Tensor, count: int, recompute: bool = True, sigma: float = 0.4, rate: float = 0.5) -> Tensor:
    """``count`` steps towards the denoised image, images in [0, 1] to images in [0, 1]."""
    level = torch.full((len(x),), sigma, device=x.device)
    found = iterate(lambda z, _: z + rate * (denoiser(z, level) - z), 2 * x - 1, count, recompute)
    return ((found + 1) / 2).clamp(0, 1)


def slope_and_bytes(count: int, recompute: bool) -> tuple[Tensor, int]:
    """Gradient of the margin through the purification, and the bytes that autograd saves for it on the way."""
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel() * t.element_size())
        return t

    point = xp.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = margin(cnn(purify(point, count, recompute)), yp).sum()
    return torch.autograd.grad(loss, point)[0], sum(saved)


one_step = slope_and_bytes(1, False)[1]
for n in purify_steps:
    plain_slope, saved = slope_and_bytes(n, False)
    gap = float((slope_and_bytes(n, True)[0] - plain_slope).norm() / plain_slope.norm())
    with_checkpoints = one_step + n * xp.numel() * xp.element_size()  # by construction: one step at a time, and the images
    print(f"N = {n}: plain {saved / 2**20:5.1f} MiB, checkpoints {with_checkpoints / 2**20:5.1f}; gradients agree: {gap < 1e-3}")

# %% tags=["remove-cell"]
assert gap < 1e-3
claim(saved > 2 * one_step)

# %% [markdown]
# Now three gradients of one defence, by name ({py:class}`rdc.defend.preprocessed.Preprocessed`). `bpda` takes the identity for the
# purification, `denoise` the Jacobian of a single denoising step, `exact` all of it. The verdict is always that of the defence.
# The radius was chosen after a look at a smaller one, at which the three hardly differed.

# %%
surrogate = one_denoising_step(denoiser, 0.4)
purified: dict[tuple[int, str], tuple[Accuracy, float]] = {}
print(f"{n_purify} images, Linf {255 * eps_purify:.0f}/255, PGD-{steps}: surviving images (mean margin reached)")
for n in purify_steps:
    process = partial(purify, count=n)
    defence = Preprocessed(process, cnn)
    for name in ("bpda", "denoise", "exact"):
        attacked = Preprocessed(process, cnn, name, surrogate if name == "denoise" else None)
        x_adv = pgd(attacked, xp, yp, eps=eps_purify, steps=steps, seed=seed)
        with torch.no_grad():
            reached = float(margin(defence(x_adv), yp).mean())
        purified[n, name] = robust_accuracy(defence, xp, yp, x_adv), reached
    line = "   ".join(f"{k} {purified[n, k][0].correct:2d} ({purified[n, k][1]:+.2f})" for k in ("bpda", "denoise", "exact"))
    print(f"N = {n}: clean {accuracy(defence, xp, yp).correct:2d}   {line}")

# %% tags=["remove-cell"]
for n in purify_steps:  # the exact gradient climbs at least as high as a guess, up to the luck of so few images
    claim(purified[n, "exact"][1] >= max(purified[n, "bpda"][1], purified[n, "denoise"][1]) - 0.5)

# %% [markdown]
# The mean margin is the finer measure here: positive is wrong, and it moves when the count does not. Compare the columns as $N$ grows.
#
# :::{admonition} A question to the paper
# :class: note
# Table 2 of {cite:t}`chen2024rdc` finds BPDA about as strong as the exact gradient, and says that the exact gradient was affordable
# for $N = 1$ only. Does it hold for $N = 5$, the setting of the defence? Checkpoints make the comparison affordable; the chapter on
# the full defence makes it.
# :::
#
# (sec-adaptive-eot)=
# ## Randomised models: averaging the gradient
#
# Let $\omega$ be the randomness of one call. The attacker wants an image that is wrong for *most* $\omega$, so the thing to climb is
# an expectation {cite}`athalye2018synthesizing`:
#
# ```{math}
# :label: eq-eot
# L(x) = \E_\omega\, \ell(f_\omega(x)), \qquad
# \hat g_R(x) = \frac1R \sum_{r=1}^R \nabla_x \ell(f_{\omega_r}(x)), \quad \omega_r \text{ independent}.
# ```
#
# :::{prf:proposition} Expectation over transformation is unbiased
# :label: prop-eot
# Let $x \mapsto \ell(f_\omega(x))$ be Lipschitz near $x$ with a constant $C(\omega)$ of finite variance, and differentiable at $x$ for
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
    return float(nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean())


xe, ye = x[:n_eot], y[:n_eot]
random_model = zoo["random-input"]
agreement, robust_eot = {}, {}
with torch.random.fork_rng():
    torch.manual_seed(seed + 3)
    for r in eot_draws:
        a, b = (value_and_gradient(lambda p: margin(random_model(p), ye), xe, eot=r)[1] for _ in range(2))
        agreement[r] = cosine(a, b)
        x_adv = pgd(random_model, xe, ye, eps=eps, steps=steps, eot=r, seed=seed)
        robust_eot[r] = robust_accuracy(random_model, xe, ye, x_adv, draws=draws)
        print(f"EOT {r:3d}: cosine of two gradients {agreement[r]:.2f}; robust, by majority of {draws} verdicts: {robust_eot[r]}")

# %% tags=["remove-cell"]
claim(agreement[max(eot_draws)] > agreement[min(eot_draws)] + 0.05, "averaging brings the gradients together")
claim(robust_eot[max(eot_draws)].correct <= robust_eot[min(eot_draws)].correct + 1, "and does not weaken the attack")

# %% [markdown]
# :::{admonition} A question to the paper
# :class: note
# Appendix B.2 of {cite:t}`chen2024rdc` reports that EOT does not help against their defence, because its gradients hardly differ from draw
# to draw. The gradients are one half of the matter. The other is the noise of the *values*, by which an attack chooses its best iterate and
# a judge decides. We come to it in {ref}`sec-adaptive-verdict`.
# :::
#
# ## The loss: scale, targets
#
# `tiny-logits` multiplies the logits by a constant. {ref}`nb-first-attack` did it with a large one, and saw cross-entropy stand still.
#
# :::{prf:proposition} The margin does not see the scale
# :label: prop-scale
# Let $c > 0$ and let PGD climb the margin $m(f)$ with sign steps ($\ell_\infty$) or normalised steps ($\ell_2$), from a fixed start, and
# return the iterate of largest margin. In exact arithmetic it returns the same image for $f$ and for $c f$.
# :::
#
# :::{prf:proof}
# The margin is positively homogeneous, $m(c f) = c\, m(f)$. So $\nabla_x m(c f) = c\, \nabla_x m(f)$, with the same sign and
# the same direction. By induction all iterates agree. Multiplication by $c > 0$ preserves the order of the margins, so that the same
# iterate is chosen.
# :::
#
# Cross-entropy has the gradient $\operatorname{softmax}(c f)_k - \mathbf 1[k = y]$ in the logits. For large $c$ it vanishes where the
# model is right. For $c \to 0$ it tends to $1 / K - \mathbf 1[k = y]$: it pulls at *all* wrong classes alike, not at the nearest.
#
# {py:func}`rdc.attack.pgd` offers two remedies. `scale="auto"` divides each image's logits by their own spread. And `targets=k` adds
# runs towards each of the $k$ most likely wrong classes, which helps where the best untargeted direction leads to a dead end.

# %%
tiny = zoo["tiny-logits"]
print(f"{n_attack} images, Linf {255 * eps:.0f}/255, PGD-{steps} on logits times {tiny.factor:g}")
auto = {"loss": "ce", "scale": "auto"}
variants = {"ce": {"loss": "ce"}, "ce, scale auto": auto, "margin": {}, "margin, 3 targets": {"targets": 3}}
scaled: dict[str, Accuracy] = {}
for name, options in variants.items():
    scaled[name] = robust_accuracy(tiny, x, y, pgd(tiny, x, y, eps=eps, steps=steps, seed=seed, **options))
    print(f"{name:18s} {scaled[name]}")

# %% tags=["remove-cell"]
claim(abs(scaled["margin"].correct - plain.correct) <= 2, "the proposition, up to rounding")
claim(scaled["ce, scale auto"].correct <= scaled["ce"].correct + 2)
claim(scaled["margin, 3 targets"].correct <= scaled["margin"].correct, "more runs never help the defence")

# %% [markdown]
# (sec-adaptive-stadv)=
# ## Moving pixels: StAdv
#
# A norm ball is not the only threat. *Spatially transformed* examples (StAdv, {cite:t}`xiao2018spatially`) do not change grey values but
# move them. A flow $u$ gives each pixel a shift, and the image is read, with bilinear interpolation, at the shifted places:
#
# ```{math}
# :label: eq-stadv
# x'(p) = x(p + u(p)), \qquad \norm{u}_\infty \le \epsilon .
# ```
#
# In $\ell_\infty$ such a change can be enormous: along an edge a shift of one pixel turns black into white.
#
# The released attack maximises the margin minus a penalty on the roughness of the flow. That is a sum of two things in different units:
# the penalty is about flows, the margin about logits. Multiply the logits by a small number, and the attack smooths the flow
# and forgets to attack. A loss free of scale has no such fault.

# %%
xs, ys = x[:n_stadv], y[:n_stadv]


class Scaled(nn.Module):
    """A model with its logits times a factor: the same decisions."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """Scaled logits."""
        return self.factor * self.model(x)


attack_flow = partial(stadv, eps=stadv_eps, steps=stadv_steps, seed=seed)
warped: dict[tuple[str, float], Accuracy] = {}
kept_images: dict[tuple[str, float], Tensor] = {}
print(f"StAdv, {n_stadv} images, {stadv_steps} steps, clean {accuracy(cnn, xs, ys).correct}: surviving images")
for loss in ("released", "margin"):
    for factor in factors:
        kept_images[loss, factor] = attack_flow(Scaled(cnn, factor), xs, ys, loss=loss)
        warped[loss, factor] = robust_accuracy(cnn, xs, ys, kept_images[loss, factor])
    print(f"{loss:9s}", "   ".join(f"logits x {f:g}: {warped[loss, f].correct:2d}" for f in factors))

# %% mystnb={"figure": {"caption": "Accuracy under StAdv against the factor on the logits, which changes no decision, with 95 % intervals. The released loss reports a robustness that grows as the logits shrink; the scale-free margin does not.", "name": "fig-adaptive-stadv"}, "image": {"alt": "Two lines over the factor on the logits; one is flat, the other rises to the clean accuracy as the factor falls", "width": "60%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5, 3.2))
for loss, style_of in (("released", "o-"), ("margin", "s--")):
    rows = [warped[loss, f] for f in factors]
    bars = [[100 * (r.value - r.low) for r in rows], [100 * (r.high - r.value) for r in rows]]
    ax.errorbar(factors, [100 * r.value for r in rows], yerr=bars, fmt=style_of, capsize=3, label=loss)
ax.set(xscale="log", xlabel="factor on the logits", ylabel="accuracy (%)", ylim=(-3, 103))
ax.legend(title="loss")
plt.show()

# %% tags=["remove-cell"]
low, high = min(factors), max(factors)
glue("adaptive-stadv-released", f"{warped['released', high].correct} and {warped['released', low].correct}")
glue("adaptive-stadv-margin", f"{warped['margin', high].correct} and {warped['margin', low].correct}")
claim(warped["released", low].correct > warped["released", high].correct, "the factor hides the weakness from one loss")
claim(abs(warped["margin", low].correct - warped["margin", high].correct) <= 1, "and not from the other")
claim(warped["margin", high].high < accuracy(cnn, xs, ys).value)

# %% [markdown]
# At the largest and the smallest factor, {glue:text}`adaptive-stadv-released` images survive the released loss and
# {glue:text}`adaptive-stadv-margin` the scale-free one. On logits of ordinary size neither need be the stronger one, and an evaluation should count
# an image as broken if either breaks it. {numref}`fig-adaptive-flow` shows what a successful flow looks like.

# %% mystnb={"figure": {"caption": "StAdv with the scale-free margin. Each row: the image with the network's prediction, the flow (arrows at every second pixel show from where a pixel takes its value, at twice their length), the warped image with the new prediction, and the difference in grey values from -1 (black) to 1 (white).", "name": "fig-adaptive-flow"}, "image": {"alt": "Three rows of four pictures: an article of clothing, a field of small arrows, the warped article that looks the same, and a difference along its edges", "width": "85%"}} tags=["hide-input"]
flow = flow_field(cnn, xs, ys, eps=stadv_eps, steps=stadv_steps, seed=seed)
moved = warp(xs, flow)
before, after = predict(cnn, xs), predict(cnn, moved)
chosen = ((before == ys) & (after != ys)).nonzero()[:3, 0].tolist()
fig, axes = plt.subplots(len(chosen), 4, figsize=(7.5, 2 * len(chosen)), squeeze=False)
side = x.shape[-1]
for row, i in zip(axes, chosen, strict=True):
    picture = {"cmap": "gray", "vmin": 0, "vmax": 1}
    row[0].imshow(xs[i, 0].cpu(), **picture)
    row[0].set_title(test.classes[before[i]], fontsize=8)
    shift = (flow[i].cpu() * side / 2)[:, ::2, ::2]
    places = torch.arange(0, side, 2)
    row[1].imshow(xs[i, 0].cpu(), **picture, alpha=0.35)
    row[1].quiver(places, places, shift[0], shift[1], color="C1", angles="xy", scale_units="xy", scale=0.5, width=0.006)
    row[2].imshow(moved[i, 0].cpu(), **picture)
    row[2].set_title(test.classes[after[i]], fontsize=8)
    row[3].imshow((moved - xs)[i, 0].cpu(), cmap="gray", vmin=-1, vmax=1)
    for ax in row:
        ax.set_axis_off()
fig.tight_layout(pad=0.3)
plt.show()

# %%
change = norm_of(moved[chosen] - xs[chosen], "Linf")
print(f"flow at most {float(flow.abs().max()) * side / 2:.2f} pixels")
print("largest change of a grey value:", [round(c, 2) for c in change.tolist()], f"; the Linf ball above allows {eps:.2f}")

# %% [markdown]
# :::{admonition} A question to the paper
# :class: note
# Table 1 of {cite:t}`chen2024rdc` has a diffusion classifier that loses *no* accuracy under StAdv. Its released logits are means, not sums,
# over thousands of pixels, so their margins are thousands of times smaller than those of the theorem. Is it the classifier that resists,
# or the scale?
# :::
#
# We ask two diffusion classifiers: the optimal one of {ref}`nb-optimal`, which we can attack in seconds, and the trained one of
# {ref}`nb-classifier` with few noise levels. Each has its logits as the theorem does, summed over pixels, and as the released code does,
# averaged over them. The lead is the median by which the right class wins on clean images, in each unit.

# %%
optimal = OptimalClassifier(train.x[:n_train], train.y[:n_train], levels("elbo", 16), seed=seed).to(device)
xo, yo = x[:n_optimal], y[:n_optimal]
main = levels("elbo", count, sigma_min=0.1, sigma_max=5.0)
judge = DiffusionClassifier(denoiser, main, seed=seed)
right = (predict(judge, x[: 3 * n_dc]) == y[: 3 * n_dc]).nonzero()[:n_dc, 0]
xd, yd = x[right], y[right]
stadv_cases = {
    "optimal": (optimal, xo, yo, stadv_steps),
    "trained": (judge, xd[:n_dc_stadv], yd[:n_dc_stadv], dc_stadv_steps),
}
units = {"sum": 1.0, "mean": 1 / x[0].numel()}
stadv_left: dict[tuple[str, str, str], int] = {}
print("classifier  logits    lead     clean   released   margin   (surviving images)")
for name, (model, a, b, n) in stadv_cases.items():
    with torch.no_grad():
        lead = -margin(model(a), b)
    for unit, factor in units.items():
        for loss in ("released", "margin"):
            x_adv = stadv(Scaled(model, factor), a, b, eps=stadv_eps, steps=n, loss=loss, seed=seed)
            stadv_left[name, unit, loss] = robust_accuracy(model, a, b, x_adv).correct
        counts = (stadv_left[name, unit, loss] for loss in ("released", "margin"))
        clean = int((lead > 0).sum())
        print(
            f"{name:10s}  {unit:6s}  {factor * float(lead[lead > 0].median()):8.2g}   {clean:3d}    "
            + "      ".join(f"{c:3d}" for c in counts)
        )

# %% tags=["remove-cell"]
for name in stadv_cases:  # the unit may help the released loss to report robustness, and changes nothing for the other
    claim(stadv_left[name, "mean", "released"] >= stadv_left[name, "sum", "released"] - 1)
    claim(abs(stadv_left[name, "mean", "margin"] - stadv_left[name, "sum", "margin"]) <= 1)

# %% [markdown]
# What decides is the lead against the penalty, not the word "mean". Where the lead is still large after the division, the released loss finds its
# flow; where it is small the loss goes blind, and reports a robustness that the margin does not confirm. So an accuracy under StAdv needs
# its logit scale beside it, or a loss that has none.
#
# (sec-adaptive-likely)=
# ## Staying likely: Lagrange and feature attacks
#
# A purification moves an image until it is likely. An attacker may look for an adversarial image that is likely already, and will
# therefore stay where it is. The *Lagrange attack* (Eq. 10 of {cite:t}`chen2024rdc`) climbs
#
# ```{math}
# :label: eq-lagrange
# \ell(f(x), y) - l \cdot P(x), \qquad P(x) = \norm{z - D(z; \sigma)}^2 \text{ or another diffusion loss},
# ```
#
# for several weights $l$, and an image counts as broken if any weight breaks it. The union matters: the weight $l = 0$ is the plain
# attack, so the union over weights *cannot* be weaker than the attack that it contains. If a table says that it is, then the base loss of
# one was worse than that of the other.
#
# We attack the purified network of {ref}`sec-adaptive-exact`, with the identity for its gradient, so that the penalty has something to add.


# %%
def unlikely(x: Tensor) -> Tensor:
    """How far denoising moves each image, squared, model units, ``(N,)``."""
    level = torch.full((len(x),), 0.4, device=x.device)
    return (denoiser(2 * x - 1, level) - (2 * x - 1)).square().flatten(1).sum(1)


process = partial(purify, count=max(purify_steps))
defence, attacked = Preprocessed(process, cnn), Preprocessed(process, cnn, "bpda")
by_weight: dict[float, Tensor] = {}
for weight in (0.0, 1.0, 10.0):
    by_weight[weight] = lagrange(attacked, xp, yp, unlikely, weights=(weight,), eps=eps_purify, steps=steps, seed=seed)
    with torch.no_grad():
        print(
            f"l = {weight:4.0f}: surviving {robust_accuracy(defence, xp, yp, by_weight[weight]).correct:2d} of {n_purify},",
            end=" ",
        )
        print(f"penalty {float(unlikely(by_weight[weight]).mean()):6.1f} (clean {float(unlikely(xp).mean()):.1f})")
union = robust_accuracy(defence, xp, yp, list(by_weight.values()))
print(f"union of the weights: surviving {union.correct:2d}")

# %% tags=["remove-cell"]
claim(union.correct <= min(robust_accuracy(defence, xp, yp, a).correct for a in by_weight.values()))
with torch.no_grad():
    claim(float(unlikely(by_weight[10.0]).mean()) <= float(unlikely(by_weight[0.0]).mean()) * 1.02, "the penalty does its work")

# %% [markdown]
# :::{admonition} A question to the paper
# :class: note
# In Table 2 the Lagrange attack leaves *more* images than BPDA. Its weight $l = 0$ is a cross-entropy attack, BPDA's loss was DLR. So how
# much of the comparison is about the penalty, and how much about the loss?
# :::
#
# The *feature attack* {cite}`sabour2016adversarial` has another aim: an image near $x$ that the model represents like a real image
# $x_t$ of another class. With the logits as representation,
#
# ```{math}
# :label: eq-feature
# \min_{x' \in \mathcal B(x, \epsilon)} \norm{f(x') - f(x_t)}^2 .
# ```
#
# It fools a detector of strange logits along with the classifier. As a pure attack on the classifier it asks for too much: to
# match all logits where passing one would do. Appendix B.2 of {cite:t}`chen2024rdc` finds it weaker than BPDA. One must take care with the
# sign and the scale: pulling logits that are minus a loss of hundreds towards a small positive number makes an image *more* likely
# under every class.

# %%
feature_rows: dict[str, Accuracy] = {}
for name, model in {"CNN": cnn, "optimal classifier": optimal}.items():
    attacks = {
        "feature": partial(feature, steps=2 * steps),
        "feature as released": partial(feature, steps=2 * steps, variant="released"),
        "PGD": partial(pgd, steps=2 * steps),
    }
    for key, attack in attacks.items():
        with torch.no_grad():
            x_adv = attack(model, xo, yo, eps=eps, seed=seed)
            raised = float((model(x_adv) - model(xo)).gather(1, yo[:, None]).mean())
        feature_rows[f"{name}, {key}"] = value = robust_accuracy(model, xo, yo, x_adv)
        print(f"{name:18s} {key:20s} surviving {value.correct:2d} of {n_optimal}; logit of the true class {raised:+.2f}")

# %% tags=["remove-cell"]
for name in ("CNN", "optimal classifier"):
    claim(feature_rows[f"{name}, PGD"].correct <= feature_rows[f"{name}, feature"].correct + 1)

# %% [markdown]
# (sec-adaptive-black)=
# ## No gradient at all
#
# A black box sees outputs only. It is the test of every suspicion in this chapter: an attacker who knows less must not do better.
#
# - **Square** {cite}`andriushchenko2020square` changes random squares to the corners of the ball and keeps what raises the margin.
# - **Transfer** attacks another network, trained without the defence, and hands the images over. It needs no queries.


# %%
names = ("none", "saturated-softmax", "quantised-input", "shattered-gradient", "detached-preprocessing")
other = train_classifier(train, max(1, epochs // 2), batch=64, lr=1e-2, width=16, seed=seed + 1, device=device)
black: dict[str, dict[str, Accuracy]] = {}
print(f"{n_attack} images, Linf {255 * eps:.0f}/255: surviving images")
for name in names:
    defence = cnn if name == "none" else zoo[name]
    with warnings.catch_warnings(), redirect_stdout(StringIO()):  # both tools warn of probabilities
        warnings.simplefilter("ignore")
        by_square = square(defence, x, y, eps=eps, queries=queries, seed=seed, batch=len(x))
        by_transfer = transfer(defence, x, y, other, eps=eps, steps=steps, seed=seed)
    found = {"Square": by_square, "transfer": by_transfer}
    black[name] = {key: robust_accuracy(defence, x, y, x_adv) for key, x_adv in found.items()}
    line = "   ".join(f"{key} {value.correct:3d}" for key, value in black[name].items())
    print(f"{name:24s} careless PGD {percent[name, 'margin']:3.0f} %   {line}")

# %% tags=["remove-cell"]
for name in ("quantised-input", "shattered-gradient", "detached-preprocessing"):
    best = min(value.value for value in black[name].values())
    claim(100 * best < percent[name, "margin"] - 5, f"{name}: who knows less does better: the gradient was hidden")
claim(min(value.correct for value in black["none"].values()) >= plain.correct - 3, "and here it was not")

# %% [markdown]
# On the plain network PGD does better than both. Behind the hidden gradients both do better than PGD, although they know less.
# *That* is the signature of obfuscation. Square needs outputs with information in them, and a saturated softmax that answers exactly one
# and zero gives it less of that; transfer needs no output at all.
#
# (sec-adaptive-noise)=
# ## Noise shared or not in the gradient pass
#
# The diffusion classifier compares ten losses on the *same* noise ({ref}`nb-classifier`). In the released code the evaluation restarts the
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
per_class = DiffusionClassifier(denoiser, main, noise="per_class", seed=seed + 1)
attackers = {
    "the judge's noise": judge,
    "fresh noise, shared by the classes": TwoNoises(judge, fresh),
    "other noise for each class": TwoNoises(judge, per_class),
}
reached: dict[str, Tensor] = {}
slopes = {name: value_and_gradient(lambda p, m=m: margin(m(p), yd), xd)[1] for name, m in attackers.items()}
print(f"{len(yd)} images that the judge gets right, Linf {255 * eps_dc:.0f}/255, PGD-{dc_steps}")
print("gradient on                          cosine   survive   mean margin (nats)")
for name, attacked in attackers.items():
    x_adv = pgd(attacked, xd, yd, eps=eps_dc, steps=dc_steps, seed=seed)
    with torch.no_grad():
        reached[name] = margin(judge(x_adv), yd)
    alike = cosine(slopes[name], slopes["the judge's noise"])
    print(f"{name:36s} {alike:6.2f}   {int((reached[name] <= 0).sum()):4d}      {float(reached[name].mean()):+.1f}")

# %% tags=["remove-cell"]
same = float(reached["the judge's noise"].mean())
claim(all(float(value.mean()) <= same + 0.1 * abs(same) + 1 for value in reached.values()), "the right noise climbs highest")

# %% [markdown]
# The cosine says how alike the gradient is to the judge's, at the clean images. The margin says what it cost. An attack on the wrong noise
# finds fewer or weaker adversarial images, and the difference is credited to the defence.
#
# (sec-adaptive-verdict)=
# ## One draw or twenty
#
# A randomised model has no robust accuracy until one says *who draws the noise and how often*. Four protocols are in use:
#
# | protocol | an image counts as robust if | it belongs to |
# |---|---|---|
# | `once` | one fresh verdict after the attack is right | a model that answers each image once, ever |
# | `draws` | most of $R$ fresh verdicts are right | a model that votes, or a judge who averages |
# | `resubmit` | all of $R$ fresh verdicts are right | an attacker who may send the image again |
# | `known` | the attack on the noise that will be used fails | an attacker who knows, or can predict, the noise |
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
# With $p = 1/2$ a single verdict calls half of the images robust, and two resubmissions leave a quarter. So `once` overstates the robustness
# against anyone who may try twice. And an attack that itself stops at its first lucky draw makes $p$ smaller than it needs to be.
# Both happen in the released evaluation: an attack by single draws, and a single verdict after it.
#
# {py:func}`rdc.evaluate.robust_accuracy` answers by all four at once. It attacks each image alone, with random numbers of its own, and writes
# one row an image to a file, so that a killed run continues where it stopped. {py:func}`rdc.evaluate.protocols` counts the rows.

# %%
fresh_judge = DiffusionClassifier(denoiser, main, noise="fresh", seed=seed + 1)
cases = {
    "random-input": (random_model, x[:n_verdict], y[:n_verdict], partial(pgd, eps=eps, steps=steps, eot=4)),
    "diffusion classifier": (fresh_judge, xd, yd, partial(pgd, eps=eps_dc, steps=dc_steps)),
}
named: dict[str, dict[str, Accuracy]] = {}
wrong: dict[str, Tensor] = {}
for name, (model, images, labels, attack) in cases.items():
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        robust_accuracy(model, images, labels, {"pgd": attack}, draws=draws, rows=file, seed=seed)
        named[name] = protocols(file)
        wrong[name] = torch.tensor([row["attacks"]["pgd"]["wrong"] for row in read_rows(file)[1]])
    print(f"{name}, fresh noise, {len(labels)} images, R = {draws}")
    for protocol, value in named[name].items():
        print(f"    {protocol:9s} {value}")

# %% mystnb={"figure": {"caption": "Expected accuracy if an image counts as robust only when all of R fresh verdicts are right, from the measured verdicts (solid), and if every image had the mean probability of a wrong verdict (dotted, the lower bound of the proposition). The left end belongs to the protocol once, the right end to resubmit (which also counts the clean images that are misclassified).", "name": "fig-adaptive-resubmit"}, "image": {"alt": "Solid lines fall from the accuracy by one verdict as R grows; the dotted bounds fall faster", "width": "65%"}} tags=["hide-input"]
fig, ax = plt.subplots(figsize=(5.5, 3.4))
tries = torch.arange(1, draws + 1)
for i, (name, w) in enumerate(wrong.items()):
    misses = (draws - w).numpy()
    solid = [100 * float((comb(misses, r) / comb(draws, r)).mean()) for r in tries.tolist()]
    ax.plot(tries, solid, color=f"C{i}", label=name)
    ax.plot(tries, 100 * (1 - float(w.float().mean()) / draws) ** tries, ":", color=f"C{i}")
ax.set(xlabel="number R of verdicts that must be right", ylabel="expected accuracy (%)", ylim=(-3, 103))
ax.legend(fontsize=8)
plt.show()

# %% tags=["remove-cell"]
for name, found in named.items():
    claim(found["resubmit"].correct <= min(found["once"].correct, found["draws"].correct))
    glue(f"adaptive-{name.split()[0]}-once", f"{found['once']}")
    glue(f"adaptive-{name.split()[0]}-resubmit", f"{found['resubmit']}")
claim(named["random-input"]["once"].correct >= named["random-input"]["resubmit"].correct + 2)

# %% [markdown]
# On the same adversarial images, `random-input` has {glue:text}`adaptive-random-input-once` by one verdict and
# {glue:text}`adaptive-random-input-resubmit` if the attacker may resubmit. Neither number is wrong. Printing one without its name is.
#
# The dotted bound would hold with equality if all images were equally uncertain. They are not: some are always wrong, others always right,
# and only those between are left to chance. So one should keep the verdicts of each image.
#
# (sec-adaptive-audit)=
# ## An audit
#
# Nearly everything in this chapter is a test that one can run without thinking: rescale the logits, compare with a black box,
# add steps and restarts, look at the gradient, ask twice. {py:func}`rdc.evaluate.audit.audit` runs them on any classifier. It
# adds the binarisation test of {cite:t}`zimmermann2022increasing`, which builds small problems with a known solution and asks if the attack finds it.
#
# We audit PGD on three models, and on a planted defence for comparison.

# %%
right_optimal = predict(optimal, x[: 3 * n_audit]) == y[: 3 * n_audit]
plan = {
    "CNN": (cnn, x[:n_audit], y[:n_audit], {"eps": eps, "steps": steps, "queries": queries}),
    "optimal": (optimal, x[: 3 * n_audit][right_optimal][:n_audit], y[: 3 * n_audit][right_optimal][:n_audit],
                {"eps": eps, "steps": steps, "queries": queries}),
    "diffusion": (judge, xd[:n_audit_dc], yd[:n_audit_dc],
                  {"eps": eps_dc, "steps": audit_steps_dc, "queries": audit_queries_dc}),
    "quantised": (zoo["quantised-input"], x[:n_audit], y[:n_audit], {"eps": eps, "steps": steps, "queries": queries}),
}  # fmt: skip
with redirect_stdout(StringIO()):  # AutoAttack prints advice
    reports = {name: audit(m, a, b, surrogate=other, seed=seed, everything=True, **options) for name, (m, a, b, options) in plan.items()}
checks = [row.name for row in reports["CNN"].rows]
print(f"{'check':24s}", *(f"{name:>10s}" for name in reports))
for i, check in enumerate(checks):
    print(f"{check:24s}", *(f"{report.rows[i].verdict:>10s}" for report in reports.values()))
print(f"{'ok':24s}", *(f"{report.ok!s:>10s}" for report in reports.values()))

# %% tags=["remove-cell"]
assert all([row.name for row in report.rows] == checks for report in reports.values())
claim(not reports["quantised"].ok)

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
# With so few images of the diffusion classifier the audit is a rehearsal: it can find a gross fault, and no small one.
#
# ## Summary
#
# - A robust accuracy is an upper bound, made by an attack. A failed attack needs an explanation before it counts as evidence.
# - Missing, zero and shattered gradients: BPDA goes around the step, checkpoints go through it. The verdict is never approximated.
# - The margin with sign or normalised steps does not see the scale of the logits. A loss that adds a penalty does: that
#   is how StAdv can report a robustness that is not there.
# - EOT estimates the gradient of an expectation without bias. The values are noisy too, and so is a single verdict.
# - For randomised models name the protocol: `once`, `draws`, `resubmit` or `known`. They answer different questions.
# - An attacker who knows less must not do better. Audit the attack before you quote the number.
#
# ## Exercises
#
# :::{exercise-start}
# :label: ex-adaptive-softmax
# :::
# **Saturated.** Break `zoo["saturated-softmax"]`. Why does the logarithm of its output not help?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-softmax
# :label: sol-adaptive-softmax
# :class: dropdown
# :::
# The softmax keeps the order, so the logits before it have the same decisions, and a gradient. The logarithm comes too late: where the
# smaller probabilities have underflowed to zero it is minus infinity, whatever the image.

# %%
softmax = zoo["saturated-softmax"]
x_adv = pgd(softmax.model, x, y, eps=eps, steps=steps, seed=seed)
solved_softmax = robust_accuracy(softmax, x, y, x_adv)
with torch.no_grad():
    lost = float((softmax(x) == 0).float().mean())
print(
    f"careless {reported['saturated-softmax', 'margin']}, on the logits {solved_softmax}; {100 * lost:.0f} % of the outputs are exactly zero"
)

# %% tags=["remove-cell"]
claim(solved_softmax.correct <= plain.correct + 2)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-shattered
# :::
# **Shattered.** `zoo["shattered-gradient"]` has a finite gradient everywhere. Show that it is useless, and break the defence.

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-shattered
# :label: sol-adaptive-shattered
# :class: dropdown
# :::
# Its gradients at two points a tiny distance apart have little in common. The wave moves each pixel by less than 1 % of its range, so
# the identity is an excellent stand-in.

# %%
shattered = zoo["shattered-gradient"]
here, near = (random_start(x, "Linf", 1e-3, torch.arange(len(x)), seed + k) for k in range(2))
apart = cosine(*(value_and_gradient(lambda p: margin(shattered(p), y), point)[1] for point in (here, near)))
apart_plain = cosine(*(value_and_gradient(lambda p: margin(cnn(p), y), point)[1] for point in (here, near)))
print(f"cosine of gradients about 1e-3 apart: {apart:.2f}, without the wave {apart_plain:.2f}")
x_adv = pgd(Preprocessed(shattered.process, cnn, "bpda"), x, y, eps=eps, steps=steps, seed=seed)
solved_shattered = robust_accuracy(shattered, x, y, x_adv)
print(f"careless {reported['shattered-gradient', 'margin']}, BPDA {solved_shattered}")

# %% tags=["remove-cell"]
claim(apart < 0.5 < apart_plain)
claim(solved_shattered.value <= plain.value + 0.1)

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-reseeded
# :::
# **Reseeded.** `zoo["reseeded-noise"]` gives the same answer twice. Is it deterministic? Find out what its noise depends on, and break it for
# a judge who has seeded the generator otherwise.

# %%
# your code here

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


reseeded = zoo["reseeded-noise"]
x_adv = pgd(ManySeeds(reseeded), x, y, eps=eps, steps=steps, eot=8, seed=seed)
with torch.random.fork_rng():
    torch.manual_seed(seed + 2)  # the judge's
    solved_reseeded = robust_accuracy(reseeded, x, y, x_adv)
print(f"careless {reported['reseeded-noise', 'margin']}, EOT over seeds {solved_reseeded}")

# %% tags=["remove-cell"]
claim(100 * solved_reseeded.value < percent["reseeded-noise", "margin"])

# %% [markdown]
# :::{solution-end}
# :::
#
# :::{exercise-start}
# :label: ex-adaptive-leak
# :::
# **In company.** How many predictions of `zoo["batch-leak"]` on clean images change when you sort the images by class and classify each class
# in a batch of its own? What does that mean for a published accuracy?

# %%
# your code here

# %% [markdown]
# :::{exercise-end}
# :::
#
# :::{solution-start} ex-adaptive-leak
# :label: sol-adaptive-leak
# :class: dropdown
# :::
# In a batch of one class the mean of the logits *is* the class, and it is subtracted. The accuracy belongs to the order in which the images
# happened to stand. And an attacker who shares a batch with others can attack them.

# %%
leak = zoo["batch-leak"]
mixed = predict(leak, x, batch=len(x))
alone = mixed.clone()
for label in y.unique():
    alone[y == label] = predict(leak, x[y == label], batch=len(x))
print(
    f"{int((mixed != alone).sum())} of {len(x)} predictions change; right: {int((mixed == y).sum())} mixed, {int((alone == y).sum())} sorted"
)

# %% tags=["remove-cell"]
claim(int((mixed != alone).sum()) > 0)

# %% [markdown]
# :::{solution-end}
# :::
#
# ## References
#
# Obfuscated gradients and BPDA are due to {cite:t}`athalye2018obfuscated`, EOT to {cite:t}`athalye2018synthesizing`, the practice of adaptive
# attacks to {cite:t}`tramer2020adaptive`, StAdv to {cite:t}`xiao2018spatially`, Square to {cite:t}`andriushchenko2020square`, the feature
# attack to {cite:t}`sabour2016adversarial`, checkpoints to {cite:t}`chen2016training` and the binarisation test to
# {cite:t}`zimmermann2022increasing`. {cite:t}`liu2025stochastic` and {cite:t}`yuezhang2025diffusion` judge randomised
# diffusion defences as deterministic ones with known noise. The Lagrange attack and the other questions of this chapter come from {cite:t}`chen2024rdc`.
