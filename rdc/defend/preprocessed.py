r"""A defence that first processes its input, ``x -> classifier(process(x))``, and three gradients of the process, by name.

| ``exact``    through every operation; an iterated process keeps only one image a step (:func:`rdc.autograd.iterate`)
| ``bpda``     the identity: the gradient at the processed image, moved unchanged to the image
| ``denoise``  the Jacobian of one denoising step at a noise level about as strong as the process

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
"""

__all__ = ["GRADIENTS", "Preprocessed", "one_denoising_step"]

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.autograd import BPDA, Process
from rdc.denoise.base import Denoiser

GRADIENTS = ("exact", "bpda", "denoise")


def one_denoising_step(denoiser: Denoiser, sigma: float, label: int | None = None) -> Process:
    """``x -> D(z; sigma)`` in image units, with the noise level in model units: a surrogate of a purification.

    Only its Jacobian is used; no noise is added to the image. Workers can have it, because it pickles.
    """
    return partial(_denoised, denoiser, sigma, label)


def _denoised(denoiser: Denoiser, sigma: float, label: int | None, x: Tensor) -> Tensor:
    labels = None if label is None else torch.full((len(x),), label, dtype=torch.int64, device=x.device)
    return (denoiser(2 * x - 1, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), labels) + 1) / 2


class Preprocessed(nn.Module):
    """The defence ``classifier(process(x))`` with the gradient of the process taken by name.

    Arguments:
        process: Images in [0, 1] to images in [0, 1].
        classifier: Images to logits.
        gradient: ``exact``, ``bpda`` (identity) or ``denoise`` (Jacobian of ``surrogate``).
        surrogate: For ``denoise``: usually :func:`one_denoising_step`.

    Raises:
        ValueError: on an unknown gradient, or a surrogate missing or given for another gradient.
    """

    def __init__(
        self, process: Process, classifier: nn.Module, gradient: str = "exact", surrogate: Process | None = None
    ) -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {gradient!r}; there are {', '.join(GRADIENTS)}")
        if (gradient == "denoise") != (surrogate is not None):
            raise ValueError("a surrogate belongs to gradient='denoise' and to no other")
        self.process = process if gradient == "exact" else BPDA(process, surrogate)
        self.classifier, self.gradient = classifier, gradient

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the processed images."""
        return self.classifier(self.process(x))
