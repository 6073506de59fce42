"""Denoising losses ``|z - D(z + sigma eps, sigma, y)|^2``: of single images here."""

__all__ = ["denoising_error"]

from jaxtyping import Float, Int64
from torch import Tensor

from rdc.denoise.base import Denoiser


def denoising_error(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, ""] | Float[Tensor, " n"],
    eps: Float[Tensor, "*n c h w"],
    label: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """Return ``|z - D(z + sigma eps, sigma, y)|^2``, summed over pixels; differentiable as often as the denoiser is.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        z: Images, model units.
        sigma: Noise level, model units: one, or one for each image.
        eps: Standard normal noise: one image of it, or one for each image.
        label: Class of each image; None for the unconditional denoiser.
    """
    sigma = sigma.expand(len(z))
    return (z - denoiser(z + sigma[:, None, None, None] * eps, sigma, label)).square().flatten(1).sum(dim=1)
