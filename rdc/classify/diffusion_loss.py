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
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from rdc.classify.denoising_loss import Losses, Samples, denoising_losses
from rdc.denoise.base import Denoiser, check_unlabelled, to_model
from rdc.door import check_images
from rdc.noise_source import Noise
from rdc.schedule import Levels


@dataclass(frozen=True, eq=False)
class DiffusionLoss:
    """A function from images to their diffusion losses; workers can have it, because it pickles.

    The noise is a fixed function of the seed, the same for every image. Differentiable once, at the memory of one chunk of
    evaluations (:mod:`rdc.classify.denoising_loss`).

    Arguments:
        denoiser: Called without a label: the unconditional denoiser.
        levels: Noise levels and weights.
        seed: Seed of the noise.
    """

    denoiser: Denoiser
    levels: Levels
    seed: int = 0

    def __post_init__(self) -> None:
        check_unlabelled(self.denoiser)

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Return the losses of images in [0, 1].

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        z = to_model(x)
        sigma, weight = self.levels.sigma.to(z), self.levels.weight.to(z.device)
        losses = Losses(self.denoiser, sigma, weight, self._samples(z), z, z[:, None], labelled=False)
        return denoising_losses(losses).sum(dim=(1, 2)).to(x.dtype)

    def _samples(self, z: Tensor) -> Samples:
        """The noise, drawn once and kept where the data are."""
        key = z.device, z.dtype
        if key not in self._drawn:
            self._drawn.clear()
            eps = Noise(self.seed).table(self.denoiser.shape, [(0,)], range(len(self.levels)), 1).to(z)
            self._drawn[key] = Samples(self.levels.sigma.to(z)[:, None, None, None] * eps)
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[object, Samples]:
        return {}


def diffusion_loss(denoiser: Denoiser, levels: Levels, seed: int = 0) -> DiffusionLoss:
    """Return the loss as a function of images, :class:`DiffusionLoss`."""
    return DiffusionLoss(denoiser, levels, seed)
