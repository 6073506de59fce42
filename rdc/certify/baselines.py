r"""Base classifiers of noisy images to compare with: denoise and classify, a network trained with noise, a clean classifier.

| :class:`Carlini`  :math:`\mathrm{network}(D(z_\tau, \tau))`: one step of a denoiser without class, at :math:`\tau = 2 \sigma`,
                    then a network for clean images (Carlini et al., 2023; denoised smoothing, Salman et al., 2020)
| :class:`Cohen`    a network trained on noisy images (Cohen et al., 2019)
| :class:`Clipped`  any classifier of clean images, after the noisy image was clipped to [0, 1]

References:
    | (Certified!!) Adversarial Robustness for Free! (Carlini et al., 2023), https://arxiv.org/abs/2206.10550
    | Denoised Smoothing: A Provable Defense for Pretrained Classifiers (Salman et al., 2020), https://arxiv.org/abs/2003.01908
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), https://arxiv.org/abs/1902.02918
"""

__all__ = ["Carlini", "Clipped", "Cohen"]


import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.classify.networks import CNN
from rdc.denoise.base import Denoiser, check_unlabelled, from_model, to_model
from rdc.quantities import number


class Carlini(nn.Module):
    """Noisy images, not clipped, to logits ``(N, K)``: denoised once, clipped to [0, 1], classified.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`, used without a label.
        network: Classifier of clean images.
        sigma: Smoothing noise, image units.
    """

    def __init__(self, denoiser: Denoiser, network: nn.Module, sigma: float | str) -> None:
        super().__init__()
        check_unlabelled(denoiser)
        self.denoiser, self.network, self.sigma = denoiser, network, number(sigma, "sigma", low=0, strict=True)

    def denoised(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the estimate of the clean images, in [0, 1]."""
        tau = torch.full((len(x),), 2 * self.sigma, dtype=x.dtype, device=x.device)
        return from_model(self.denoiser(to_model(x), tau, None)).clamp(0, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the denoised images."""
        return self.network(self.denoised(x))


class Cohen(nn.Module):
    """A network trained with noise, without the check that images lie in [0, 1].

    Arguments:
        network: From :func:`rdc.train.classifiers.train_classifier` with ``noise``.
    """

    def __init__(self, network: CNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of noisy images."""
        return self.network.layers(x)


class Clipped(nn.Module):
    """A classifier of clean images that sees the noisy image clipped to [0, 1].

    Arguments:
        network: Images in [0, 1] to logits, for instance a :class:`rdc.classify.DiffusionClassifier`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the clipped images."""
        return self.network(x.clamp(0, 1))
