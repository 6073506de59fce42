r"""The unconditional diffusion loss of an image: small where it looks like the data.

.. math:: \ell(x) = \sum_{t=1}^T w_t\, \lVert z - D(z + \sigma_t \epsilon_t, \sigma_t) \rVert^2, \qquad z = 2x - 1,

summed over pixels: the units of the logits of :class:`rdc.classify.DiffusionClassifier`, whose noise it shares when the seeds
agree. The mean over levels of Eq. 10 is in the weights: those of :func:`rdc.schedule.levels` hold density, step and 1/T.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eqs. 4 and 10
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["DiffusionLoss", "diffusion_loss"]

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rdc.data import check_images
from rdc.denoise.base import Denoiser, to_model
from rdc.rng import randn
from rdc.schedule import Levels


@dataclass(frozen=True, eq=False)
class DiffusionLoss:
    """A function from images to their diffusion losses; workers can have it, because it pickles.

    The noise is a fixed function of the seed, the same for every image. Under autograd each level runs again in the backward
    pass, so that memory is that of one level.

    Arguments:
        denoiser: Called without a label: the unconditional denoiser.
        levels: Noise levels and weights.
        seed: Owner of the noise.
    """

    denoiser: Denoiser
    levels: Levels
    seed: int = 0

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Losses of images in [0, 1], differentiable.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        z = to_model(x)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for t in range(len(self.levels)):
            sigma = self.levels.sigma[t].to(z)
            eps = randn(self.denoiser.shape, self.seed, 0, t, 0, 0, like=z)
            if torch.is_grad_enabled() and z.requires_grad:
                error = checkpoint(_error, self.denoiser, z, sigma, eps, use_reentrant=False, preserve_rng_state=False)
            else:
                error = _error(self.denoiser, z, sigma, eps)
            total = total + self.levels.weight[t].to(z) * error
        return total


def diffusion_loss(denoiser: Denoiser, levels: Levels, seed: int = 0) -> DiffusionLoss:
    """The loss as a function of images, :class:`DiffusionLoss`."""
    return DiffusionLoss(denoiser, levels, seed)


def _error(denoiser: Denoiser, z: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """``|z - D(z + sigma eps, sigma)|^2``, ``(N,)``."""
    return (z - denoiser(z + sigma * eps, sigma.expand(len(z)), None)).square().flatten(1).sum(dim=1)
