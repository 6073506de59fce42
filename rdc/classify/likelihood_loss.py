r"""The unconditional diffusion loss of an image: small where it looks like the data.

.. math:: \ell(x) = \sum_{t=1}^T w_t\, \lVert z - D(z + \sigma_t \epsilon_t, \sigma_t) \rVert^2, \qquad z = 2x - 1,

summed over pixels: the units of the logits of :class:`rdc.classify.DiffusionClassifier`, whose noise it shares when the seeds
agree. The mean over levels of Eq. 10 is in the weights: those of :func:`rdc.noise.levels` hold density, step and 1/T.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eqs. 4 and 10
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["diffusion_loss"]

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rdc.data import check_images
from rdc.denoise.base import Denoiser, to_model
from rdc.noise import Levels
from rdc.rng import randn


def diffusion_loss(denoiser: Denoiser, levels: Levels, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function from images ``(N, C, H, W)`` in [0, 1] to their losses ``(N,)``, differentiable.

    The noise is a fixed function of the seed, the same for every image. Under autograd each level runs again in the backward
    pass, so that memory is that of one level.

    Arguments:
        denoiser: Called without a label: the unconditional denoiser.
        levels: Noise levels and weights.
        seed: Owner of the noise.
    """

    def loss(x: Tensor) -> Tensor:
        check_images(x, denoiser.shape)
        z = to_model(x)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for t in range(len(levels)):
            sigma = levels.sigma[t].to(z)
            eps = randn(denoiser.shape, seed, 0, t, 0, 0, like=z)
            if torch.is_grad_enabled() and z.requires_grad:
                error = checkpoint(_error, denoiser, z, sigma, eps, use_reentrant=False, preserve_rng_state=False)
            else:
                error = _error(denoiser, z, sigma, eps)
            total = total + levels.weight[t].to(z) * error
        return total

    return loss


def _error(denoiser: Denoiser, z: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """``|z - D(z + sigma eps, sigma)|^2``, ``(N,)``."""
    return (z - denoiser(z + sigma * eps, sigma.expand(len(z)), None)).square().flatten(1).sum(dim=1)
