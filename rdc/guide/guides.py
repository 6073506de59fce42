r"""What guides: any callable ``(z_sigma, sigma, y) -> grad log p(y | z_sigma)``, in model units, ``(N, C, H, W)``.

| :class:`ClassifierGuide`  a time-dependent classifier: the gradient of its log-softmax, by autograd
| :class:`PosteriorGuide`   the exact posterior of the optimal denoiser, by autograd of its closed form
| :class:`RatioGuide`       any denoiser, without autograd: :math:`\nabla \log p(y \mid z_\sigma) = \nabla \log p(z_\sigma \mid y)
                            - \nabla \log p(z_\sigma) = (D_y - D) / \sigma^2`. Exact for the optimal denoiser; for a network this
                            is classifier-free guidance
| :class:`DiffusionGuide`   the noised diffusion classifier EPNDC at each level, by autograd: the gradient of a ratio of
                            likelihoods, here of their bounds

For an exact denoiser and equally frequent classes the last three are the same, up to the integrals of the last one. A trained
network's score is no gradient, and the bound has its own error.

References:
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233
    | Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
"""

__all__ = ["ClassifierGuide", "DiffusionGuide", "Guide", "PosteriorGuide", "RatioGuide", "log_gradient"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rdc.certify.noised import EPNDC
from rdc.denoise.base import Denoiser, expand_sigma, from_model
from rdc.denoise.optimal import OptimalDenoiser

#: ``(z_sigma, sigma, y) -> grad log p(y | z_sigma)`` with ``sigma`` of shape ``(N,)``.
Guide = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_model_space(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A classifier of images in [0, 1] as a function of images in model units."""
    return lambda point: model(from_model(point))


def log_gradient(
    logits: Callable[[Tensor], Tensor], z: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], normalised: bool = True
) -> Float[Tensor, "n c h w"]:
    """Gradient of ``log softmax(logits(z))_y``, or with ``normalised=False`` of the raw logit y, image by image.

    Raises:
        ValueError: if the gradient is not finite.
    """
    point = z.detach().requires_grad_()
    with torch.enable_grad():
        scores = logits(point)
        scores = scores.log_softmax(dim=1) if normalised else scores
        (gradient,) = torch.autograd.grad(scores.gather(1, y[:, None]).sum(), point)
    if not bool(gradient.isfinite().all()):
        bad = int((~gradient.isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"the gradient of the guide is not finite for {bad} of {len(z)} images; lower the scale")
    return gradient


@dataclass(frozen=True)
class ClassifierGuide:
    """A classifier ``(z_sigma, sigma) -> logits``; ``normalised=False`` takes its raw logit (:mod:`rdc.guide.align`)."""

    classifier: Callable[[Tensor, Tensor], Tensor]
    normalised: bool = True

    def __call__(self, z: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The gradient, ``(N, C, H, W)``."""
        return log_gradient(lambda point: self.classifier(point, sigma), z, y, self.normalised)


@dataclass(frozen=True)
class PosteriorGuide:
    """The exact ``p(y | z_sigma)`` of a finite data set, with its class frequencies as prior."""

    denoiser: OptimalDenoiser

    def __call__(self, z: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The gradient, ``(N, C, H, W)``."""
        prior = torch.tensor(self.denoiser.counts, dtype=z.dtype, device=z.device).log()
        return log_gradient(lambda point: self.denoiser.log_density(point, sigma) + prior, z, y)


@dataclass(frozen=True)
class RatioGuide:
    """``(D_y - D) / sigma^2`` of a denoiser that knows both; its prior is that of the unconditional answer."""

    denoiser: Denoiser

    def __call__(self, z: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The gradient, ``(N, C, H, W)``."""
        with torch.no_grad():
            return (self.denoiser(z, sigma, y) - self.denoiser(z, sigma, None)) / expand_sigma(sigma, z) ** 2


@dataclass(frozen=True)
class DiffusionGuide:
    """The noised diffusion classifier :class:`rdc.certify.noised.EPNDC` at the level of each image; equal priors.

    A call costs ``count draws 2 K`` evaluations of a single-head network for each image, and their backward passes.
    """

    denoiser: Denoiser
    count: int = 4  # levels above that of the image
    draws: int = 1
    form: str = "quadrature"
    coupling: str = "shared"
    antithetic: bool = True
    sigma_max: float = 20.0  # last level; four times the level of the image where that is more
    seed: int = 0
    chunk: int = 256

    def classifier(self, sigma: float) -> EPNDC:
        """The classifier of one noise level, model units."""
        return EPNDC(
            self.denoiser,
            sigma / 2,
            count=self.count,
            form=self.form,
            coupling=self.coupling,
            draws=self.draws,
            antithetic=self.antithetic,
            sigma_max=max(self.sigma_max, 4 * sigma),
            seed=self.seed,
            chunk=self.chunk,
        )

    def __call__(self, z: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """The gradient, ``(N, C, H, W)``."""
        sigma, found = expand_sigma(sigma, z).flatten(), torch.empty_like(z)
        for level in sigma.unique().tolist():
            here, model = (sigma == level).nonzero()[:, 0], self.classifier(level)
            found[here] = log_gradient(of_model_space(model), z[here], y[here])
        return found
