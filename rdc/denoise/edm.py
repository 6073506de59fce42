r"""A trained denoiser in the preconditioning of Karras et al. (2022).

.. math::
    D(z_\sigma, \sigma, y) = c_\text{skip} z_\sigma + c_\text{out} F(c_\text{in} z_\sigma, \tfrac14 \log \sigma, y)

with :math:`c_\text{skip} = \sigma_d^2 / (\sigma^2 + \sigma_d^2)`,
:math:`c_\text{out} = \sigma \sigma_d / \sqrt{\sigma^2 + \sigma_d^2}` and
:math:`c_\text{in} = 1 / \sqrt{\sigma^2 + \sigma_d^2}` (their Table 1), so that input and target of ``F`` have unit
variance at every noise level.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
"""

__all__ = ["EDM", "EDMConfig", "build"]

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.denoise.base import check_labels, expand_sigma
from rdc.denoise.unet import UNet, UNetConfig
from rdc.quantities import number


@dataclass(frozen=True)
class EDMConfig:
    """What it takes to build an :class:`EDM` or, with ``unet.heads > 1`` or a ``branch``, a :class:`rdc.denoise.MultiHead`.

    ``data`` names the data set it is for, ``unlabelled`` says whether its answer without a label was trained.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    sigma_data: float = 0.5
    data: str = ""
    branch: UNetConfig | None = None
    unlabelled: bool = True

    def __post_init__(self) -> None:
        number(self.sigma_data, "sigma_data", low=0, strict=True)

    @property
    def multihead(self) -> bool:
        """Whether one pass gives all classes."""
        return self.branch is not None or self.unet.heads > 1


class EDM(nn.Module):
    """Denoiser around a raw network ``F``.

    The coefficients are computed in the dtype of ``z``, the network runs in the dtype of its parameters
    (``denoiser.to(torch.bfloat16)``), and the result has the dtype of ``z``.
    """

    def __init__(self, model: nn.Module, config: EDMConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    one_pass = False  # all classes cost K evaluations

    @property
    def num_classes(self) -> int:
        """Number of classes K; 0 for an unconditional network."""
        return self.config.unet.label_dim

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data, model units, in the preconditioning."""
        return self.config.sigma_data

    @property
    def unlabelled(self) -> bool:
        """Whether the answer without a label was trained: hidden labels in training, or a network without labels."""
        return self.config.unlabelled or self.num_classes == 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        c = self.config.unet
        return (c.channels, c.resolution, c.resolution)

    def forward(
        self,
        z: Float[Tensor, "n c h w"],
        sigma: Float[Tensor, "*n"] | float,
        label: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """``D(z_sigma, sigma, y)``, in model units [-1, 1].

        Arguments:
            z: Noisy images ``z_sigma = z + sigma eps``.
            sigma: Noise level, one number or one per image.
            label: Classes; None, or -1 for single images, asks for the unconditional denoiser.

        Raises:
            ValueError: without a label if that answer was not trained, and with one if the network has none.
        """
        if label is not None and self.num_classes == 0:
            raise ValueError("this denoiser is unconditional; ask it without a label")
        z = check_labels(self, z, label)
        sigma = expand_sigma(sigma, z)
        c_skip, c_out, c_in = coefficients(sigma, self.config.sigma_data)
        return c_skip * z + c_out * self.raw(c_in * z, sigma, label)

    def raw(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The network ``F`` on a scaled input, with ``sigma`` of shape ``(N, 1, 1, 1)``."""
        dtype = next(self.model.parameters()).dtype
        onehot = None if label is None else one_hot(label, self.num_classes)
        return self.model(x.to(dtype), sigma.flatten().log() / 4, onehot).to(x.dtype)

    def all_classes(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k c h w"]:
        """``D(z_sigma, sigma, y)`` for every class y, ``(N, K, C, H, W)``."""
        n, k = len(z), self.num_classes
        sigma = expand_sigma(sigma, z).flatten().repeat_interleave(k)
        label = torch.arange(k, device=z.device).repeat(n)
        return self(z.repeat_interleave(k, dim=0), sigma, label).unflatten(0, (n, k))


def coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """``c_skip, c_out, c_in`` of Karras et al. (2022), Table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt()


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """One-hot rows; label -1 gives a row of zeros."""
    return F.one_hot(label + 1, num_classes + 1)[:, 1:].float()


def build(config: EDMConfig, seed: int = 0) -> EDM:
    """A freshly initialised denoiser; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return EDM(UNet(config.unet), config)
