r"""Multi-head diffusion: one pass estimates the posterior mean of every class.

.. math::
    D(z_\sigma, \sigma, k) = c_\text{skip} z_\sigma + c_\text{out} F_k(c_\text{in} z_\sigma, \tfrac14 \log \sigma),
    \qquad k = 1, \dots, K + 1,

where head K + 1 is the unconditional denoiser and the coefficients are those of :mod:`rdc.denoise.edm`. A diffusion classifier
then costs T passes an image instead of T K. There are two ways to get K + 1 outputs:

| *wide*    one network without class input, whose last convolution has K + 1 outputs (the paper's): all that tells classes
            apart must be in the shared features
| *branch*  the unconditional answer of a single-head network, and a second, coarser network for what the classes add to it,
            :math:`F_k = F + G_k`, :math:`F_{K+1} = F`: what all classes share need not be learned again, and the second network
            reads what the first has seen

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), section 3.5 and appendix B.1
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["Branched", "MultiHead", "build_multihead"]

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.denoise.base import check_labels, expand_sigma
from rdc.denoise.edm import EDM, EDMConfig, coefficients
from rdc.denoise.unet import UNet, UNetConfig


class Branched(nn.Module):
    """``F_k = F + G_k`` and ``F_{K+1} = F``: a single-head network without label, and a network of K corrections.

    The corrections see the image and, folded to their resolution, three things of the trunk: its coarsest activations, what its
    last layer reads, and its answer. The sum is taken in float32 at least: corrections are small. The trunk is not differentiated
    with respect to its parameters when they do not require it.
    """

    def __init__(self, trunk: UNetConfig, branch: UNetConfig) -> None:
        super().__init__()
        self.trunk, self.branch = UNet(trunk), UNet(branch, context=context_channels(trunk, branch))

    def forward(self, x: Tensor, noise: Tensor, label: None = None) -> Tensor:
        """All heads, ``(N, (K + 1) C, H, W)``."""
        coarse, fine = self.trunk.features(x, noise, None)
        shared, grid = self.trunk.last(fine), self.branch.grid
        context = torch.cat([F.pixel_unshuffle(h, h.shape[-1] // grid) for h in (coarse, fine, shared)], dim=1)
        corrections = self.branch(x, noise, None, context)
        wide = torch.promote_types(shared.dtype, torch.float32)
        shared, corrections = shared.to(wide), corrections.to(wide)
        return torch.cat([corrections + shared.repeat(1, self.branch.config.heads, 1, 1), shared], dim=1)


def context_channels(trunk: UNetConfig, branch: UNetConfig) -> int:
    """Channels of what the trunk shows to the branch, folded to the resolution of the branch's first layer.

    Raises:
        ValueError: if the branch is finer than the coarsest level of the trunk, or does not divide it.
    """
    size, grid, last = trunk.resolution // trunk.patch, branch.resolution // branch.patch, len(trunk.channel_mult) - 1
    coarse = (size // 2**last, trunk.model_channels * trunk.channel_mult[-1])
    shown = [coarse, (size, trunk.model_channels * trunk.channel_mult[0]), (trunk.resolution, trunk.channels)]
    if any(s % grid for s, _ in shown):
        raise ValueError(f"a branch of {grid}x{grid} cannot read a trunk of {[s for s, _ in shown]}: use a larger patch")
    return sum(channels * (s // grid) ** 2 for s, channels in shown)


class MultiHead(nn.Module):
    """Denoiser around a raw network with K + 1 outputs; see :class:`rdc.denoise.EDM` for types and devices."""

    one_pass = True  # all classes cost one evaluation

    def __init__(self, model: nn.Module, config: EDMConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.config.unet.heads - 1 if self.config.branch is None else self.config.branch.heads

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data, model units, in the preconditioning."""
        return self.config.sigma_data

    @property
    def unlabelled(self) -> bool:
        """Whether the answer without a label was trained: hidden labels in training, or a network without labels."""
        return self.config.unlabelled

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        c = self.config.unet
        return (c.channels, c.resolution, c.resolution)

    def all_heads(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n heads c h w"]:
        """``D(z_sigma, sigma, k)`` for every class, then the unconditional one, ``(N, K + 1, C, H, W)``."""
        sigma = expand_sigma(sigma, z)
        c_skip, c_out, c_in = coefficients(sigma, self.config.sigma_data)
        return (c_skip * z)[:, None] + c_out[:, None] * self.raw(c_in * z, sigma)

    def raw(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The outputs ``F_k`` on a scaled input, ``(N, K + 1, C, H, W)``, with ``sigma`` of shape ``(N, 1, 1, 1)``."""
        dtype = next(self.model.parameters()).dtype
        found = self.model(x.to(dtype), sigma.flatten().log() / 4, None).to(x.dtype)
        return found.unflatten(1, (self.num_classes + 1, self.config.unet.channels))

    def trunk(self) -> EDM:
        """The single-head denoiser behind the *branch* form: its unconditional answer is head K + 1, without the branch's cost.

        Raises:
            ValueError: for the *wide* form, which has none.
        """
        if not isinstance(self.model, Branched):
            raise ValueError("a wide multi-head network has no trunk")
        return EDM(self.model.trunk, self.config)

    def all_classes(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k c h w"]:
        """``D(z_sigma, sigma, y)`` for every class y, ``(N, K, C, H, W)``, from one pass."""
        return self.all_heads(z, sigma)[:, :-1]

    def forward(
        self,
        z: Float[Tensor, "n c h w"],
        sigma: Float[Tensor, "*n"] | float,
        label: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """``D(z_sigma, sigma, y)``; ``label=None``, or -1 for single images, asks for the unconditional denoiser."""
        z = check_labels(self, z, label)
        if label is None and isinstance(self.model, Branched):
            return self.trunk()(z, sigma)
        heads = self.all_heads(z, sigma)
        if label is None:
            return heads[:, -1]
        return heads[torch.arange(len(z), device=z.device), label % heads.shape[1]]


def build_multihead(config: EDMConfig, seed: int = 0) -> MultiHead:
    """A freshly initialised multi-head denoiser; the global random state is left as it was.

    Raises:
        ValueError: if there are fewer than two classes, or the form is neither *wide* nor *branch*.
    """
    c = config
    heads, plain = (c.unet.heads - 1, c.unet) if c.branch is None else (c.branch.heads, c.branch)
    if heads < 2 or plain.label_dim or (c.branch is not None and c.unet.heads > 1):
        raise ValueError(
            "a multi-head network has unet.heads = K + 1 >= 3 without label_dim, or a branch with K >= 2 heads without label_dim "
            f"beside a single-head unet; got unet {c.unet} and branch {c.branch}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model = UNet(c.unet) if c.branch is None else Branched(c.unet, c.branch)
    return MultiHead(model, config)
