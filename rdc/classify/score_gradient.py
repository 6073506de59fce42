r"""The gradient of the diffusion loss without the network's Jacobian (Chen et al., 2024, Appendix A.5).

The loss of an image depends on it twice, as the target and as the mean of what the denoiser sees. With
:math:`u = z_\sigma = z + \sigma \epsilon`,

.. math:: L(z) = w\, \mathbb E_\epsilon \lVert z - D(z + \sigma \epsilon) \rVert^2
    = w \int \mathcal N(u; z, \sigma^2 I)\, \lVert z - D(u) \rVert^2\, du .

In the second form the network does not depend on z; the Gaussian does, with
:math:`\nabla_z \log \mathcal N(u; z, \sigma^2 I) = (u - z) / \sigma^2 = \epsilon / \sigma`. Hence, for every denoiser,

.. math:: \nabla L(z) = w\, \mathbb E_\epsilon \Big[ 2 (z - D) + \lVert z - D \rVert^2\, \frac{\epsilon}{\sigma} \Big] .

The gradient *through* the network, :math:`2 w\, \mathbb E_\epsilon (I - J_D)^\top (z - D)`, is the same: that the second terms
agree is Stein's identity. The first term alone, which both share, is score distillation. For the optimal denoiser it is the
gradient of :math:`-2 w \sigma^2\, \mathbb E_\epsilon \log p_\sigma(z + \sigma \epsilon)`, another function than L.

**In the units of the paper.** With :math:`x_t = \sqrt{\alpha_t}\, x + \sqrt{1 - \alpha_t}\, \epsilon` and
:math:`\sigma^2 = (1 - \alpha_t) / \alpha_t` the error of the noise is :math:`\epsilon_\theta - \epsilon = (z - D) / \sigma`, the
score is :math:`\nabla_x \log p(x_t \mid x) = \sqrt{\alpha_t / (1 - \alpha_t)}\, \epsilon = \epsilon / \sigma`, and the factor of
the other term is :math:`2 \sqrt{\alpha_t / (1 - \alpha_t)} = 2 / \sigma`. So the last lines of Eqs. 14 and 15 are the formula
above for :math:`w = 1 / \sigma^2`, without label and with one; they are right. The score term is a mean of
:math:`\epsilon` weighted by losses: only how the loss *varies* with :math:`\epsilon` counts, not its size.

**Variance.** That size is all noise: a baseline, subtracted from the loss, leaves the mean as it is. Pairs
:math:`\epsilon, -\epsilon` subtract it exactly, and the even part of the loss with it. What is left grows with the number n of
pixels. For the linear denoiser :math:`D(u) = a u` the total variance of a pair is

.. math:: 4 w^2 a^2 (1 - a)^2 (n + 1) \lVert z \rVert^2 \quad\text{against}\quad 2 w^2 a^2 (1 - a)^2 n\, \sigma^2

of two independent draws through the network, and zero of a pair through the network.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Lemma A.1, Eqs. 14 and 15
    | https://arxiv.org/abs/2305.15241
    | Natural Evolution Strategies (Wierstra et al., 2014), https://jmlr.org/papers/v15/wierstra14a.html
"""

__all__ = ["BASELINES", "pathwise_gradient", "score_gradient"]

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rdc.classify.denoising_loss import Losses, Samples, denoising_gradient
from rdc.denoise.base import Denoiser
from rdc.noise_source import Noise
from rdc.schedule import Levels

BASELINES = ("pairs", "others", "none")


def score_gradient(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    levels: Levels,
    label: Int64[Tensor, " n"] | None = None,
    draws: int = 16,
    baseline: str = "pairs",
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    r"""Unbiased estimate of :math:`\nabla_z \sum_t w_t\, \mathbb E_\epsilon \lVert z - D \rVert^2`; no autograd is used.

    Arguments:
        denoiser: Any; it need not be differentiable.
        z: Images in model units; the gradient is with respect to them (in image units it is twice as long).
        levels: Noise levels and weights.
        label: Class of each image; None for the unconditional denoiser.
        draws: Noise draws R per level, shared by all images.
        baseline: What is subtracted from each loss: ``pairs``, draws ``eps, -eps`` with their mean; ``others``, the mean loss of
            the other draws; ``none``.
        seed: Seed of the noise.

    Raises:
        ValueError: on an unknown baseline, and for too few draws: ``pairs`` need an even number, ``others`` two.
    """
    check_draws(draws, baseline)
    total, noise = torch.zeros_like(z), Noise(seed, draws, baseline == "pairs")
    table = noise.table(denoiser.shape, [(0,)], range(len(levels)), 1)[0].to(z)  # (R', T, C, H, W)
    signs = (1, -1) if noise.antithetic else (1,)
    with torch.no_grad():
        for t, (sigma, weight) in enumerate(zip(levels.sigma.to(z), levels.weight.to(z), strict=True)):
            noises = [sign * eps for eps in table[:, t] for sign in signs]
            errors = [z - denoiser(z + sigma * eps, sigma.expand(len(z)), label) for eps in noises]
            size = torch.stack([error.square().flatten(1).sum(dim=1) for error in errors])
            for error, centred, eps in zip(errors, size - baselines(size, baseline), noises, strict=True):
                total = total + weight / draws * integrand(error, centred, eps, sigma)
    return total


def integrand(error: Tensor, size: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """``2 (z - D) + |z - D|^2 eps / sigma`` from the errors ``z - D`` and their (centred) squares ``(N,)``."""
    return 2 * error + size[:, None, None, None] * eps / sigma


def baselines(size: Tensor, kind: str) -> Tensor:
    """The baseline of each loss in ``size``, ``(R, N)``; it does not depend on the draw's own sign or, for others, noise."""
    if kind == "none":
        return torch.zeros_like(size)
    if kind == "others":
        return (size.sum(dim=0) - size) / (len(size) - 1)
    return size.unflatten(0, (-1, 2)).mean(dim=1).repeat_interleave(2, dim=0)


def pathwise_gradient(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    levels: Levels,
    label: Int64[Tensor, " n"] | None = None,
    draws: int = 16,
    antithetic: bool = True,
    seed: int = 0,
) -> Float[Tensor, "n c h w"]:
    """The same gradient through the network, by autograd, from the same noise as :func:`score_gradient`.

    It is that of the logit of ``label`` of :class:`rdc.classify.DiffusionClassifier` with the same seed and draws, up to sign.
    """
    check_draws(draws, "pairs" if antithetic else "none")
    sigma, noise = levels.sigma.to(z), Noise(seed, draws, antithetic)
    eps = noise.table(denoiser.shape, [(0,)], range(len(levels)), 1).to(z)
    samples = Samples(sigma[:, None, None, None] * eps, signs=2 if antithetic else 1)
    z = z.detach()
    weight = levels.weight.to(z.device)
    return denoising_gradient(Losses(denoiser, sigma, weight, samples, z, z[:, None], labelled=label is not None), label)


def check_draws(draws: int, baseline: str) -> None:
    """Refuse an unknown baseline and too few draws."""
    if baseline not in BASELINES:
        raise ValueError(f"unknown baseline {baseline!r}; there are {', '.join(BASELINES)}")
    if draws < 1 or (baseline == "pairs" and draws % 2) or (baseline == "others" and draws < 2):
        raise ValueError(f"draws must be positive, even for pairs and at least 2 for others, got {draws}")
