"""The DDPM++ U-Net of Song et al. (2021) in the form used by Karras et al. (2022, "EDM").

Parameter names and shapes follow the published EDM checkpoints (``enc.32x32_block0.conv0.weight``,
``dec.16x16_up.skip.bias``, ...), so that one class trains the small networks of the book and holds the
CIFAR-10 weights. A block computes, with the embedding ``e`` of noise level and class,

    h = conv1(silu(norm1(conv0(resample(silu(norm0(x)))) + affine(e))))
    x = (skip(resample(x)) + h) / sqrt(2)          then, optionally,     x = (x + attention(x)) / sqrt(2)

``patch > 1`` folds ``patch x patch`` pixels into channels before the first layer and unfolds them after the
last (a network of stride ``patch``): a quarter of the work for ``patch = 2``. ``heads > 1`` widens the last layer to
that many outputs of ``channels`` channels each (multi-head diffusion). ``inner`` gives, for each level, the
channels between the two convolutions of a block, if not as many as behind it: most of the work lies there.

References:
    | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
    | https://arxiv.org/abs/2011.13456
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), appendix F
    | https://arxiv.org/abs/2206.00364
"""

__all__ = ["UNet", "UNetConfig"]

import math
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MOST_BLOCKS = 1000
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a :class:`UNet`; the defaults are those of the CIFAR-10 checkpoints of EDM."""

    resolution: int = 32
    channels: int = 3
    label_dim: int = 10
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    augment_dim: int = 0
    patch: int = 1
    heads: int = 1
    inner: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = [self.resolution, self.channels, self.num_blocks, self.patch, self.heads, *self.channel_mult, *self.inner]
        if min(sizes) < 1 or min(self.label_dim, self.augment_dim) < 0 or self.model_channels < 4 or not self.channel_mult:
            raise ValueError(f"the sizes of a network must be positive, and model_channels at least 4, got {self}")
        if self.num_blocks > MOST_BLOCKS:
            raise ValueError(f"a network has at most {MOST_BLOCKS} blocks a level, got {self.num_blocks}")
        if self.inner and len(self.inner) != len(self.channel_mult):
            raise ValueError(f"inner needs one entry for each of the {len(self.channel_mult)} levels, got {self.inner}")


class UNet(nn.Module):
    """Maps a scaled noisy image, a noise condition and a one-hot class to the raw network output ``F``.

    ``context`` is the number of channels that a caller joins to the folded input, at the resolution of the first layer.
    """

    def __init__(self, config: UNetConfig, context: int = 0) -> None:
        super().__init__()
        c = self.config = config
        folds = 2 ** (len(c.channel_mult) - 1)
        if c.resolution % (c.patch * folds):
            raise ValueError(f"resolution {c.resolution} is not a multiple of patch x 2^(levels-1) = {c.patch * folds}")
        width, emb = c.model_channels, 4 * c.model_channels
        blocks = [partial(Block, emb=emb, inner=inner) for inner in c.inner or (0,) * len(c.channel_mult)]
        self.map_label = linear(c.label_dim, width) if c.label_dim else None
        self.map_augment = linear(c.augment_dim, width, bias=False) if c.augment_dim else None
        self.map_layer0, self.map_layer1 = linear(width, emb), linear(emb, emb)

        sizes = [c.resolution // c.patch // 2**level for level in range(len(c.channel_mult))]
        inputs = c.channels * c.patch**2
        self.enc = nn.ModuleDict({f"{sizes[0]}x{sizes[0]}_conv": conv(inputs + context, width, 3)})
        skips, now = [width], width
        for level, (size, mult) in enumerate(zip(sizes, c.channel_mult, strict=True)):
            if level:
                self.enc[f"{size}x{size}_down"] = blocks[level](now, now, resample="down")
                skips.append(now)
            for i in range(c.num_blocks):
                self.enc[f"{size}x{size}_block{i}"] = blocks[level](now, width * mult, attention=size in c.attn_resolutions)
                now = width * mult
                skips.append(now)

        self.dec = nn.ModuleDict()
        for level, (size, mult) in reversed(list(enumerate(zip(sizes, c.channel_mult, strict=True)))):
            if level == len(sizes) - 1:
                self.dec[f"{size}x{size}_in0"] = blocks[level](now, now, attention=True)
                self.dec[f"{size}x{size}_in1"] = blocks[level](now, now)
            else:
                self.dec[f"{size}x{size}_up"] = blocks[level](now, now, resample="up")
            for i in range(c.num_blocks + 1):
                attention = i == c.num_blocks and size in c.attn_resolutions
                self.dec[f"{size}x{size}_block{i}"] = blocks[level](now + skips.pop(), width * mult, attention=attention)
                now = width * mult
        self.dec[f"{sizes[0]}x{sizes[0]}_aux_norm"] = norm(now)
        self.dec[f"{sizes[0]}x{sizes[0]}_aux_conv"] = conv(now, inputs * c.heads, 3, gain=1e-5)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        noise: Float[Tensor, " n"],
        label: Float[Tensor, "n k"] | None = None,
        context: Float[Tensor, "n j r r"] | None = None,
    ) -> Float[Tensor, "n o h w"]:
        """Output ``F`` of shape ``(N, C, H, W)``, or ``(N, heads C, H, W)``.

        Arguments:
            x: The scaled input ``c_in z_sigma``.
            noise: The noise condition ``c_noise = log(sigma) / 4``, one per image.
            label: One-hot classes ``(N, K)``; a row of zeros, or None, means no class.
            context: What is joined to the folded input, if the network was built for it.
        """
        return self.last(self.features(x, noise, label, context)[1])

    def features(self, x: Tensor, noise: Tensor, label: Tensor | None, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network makes of its input at the coarsest resolution, and what its last layer reads."""
        e = self.embed(noise, label, x.dtype)
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        x, skips = x if context is None else torch.cat([x, context], dim=1), []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, e)
            skips.append(x)
        coarse = x
        for name, layer in self.dec.items():
            if "aux" not in name:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, e)
            if name.endswith("in1"):
                coarse = x
        return coarse, F.silu(self.dec[f"{self.grid}x{self.grid}_aux_norm"](x))

    def last(self, x: Tensor) -> Tensor:
        """The last layer, and the way back to pixels."""
        x = self.dec[f"{self.grid}x{self.grid}_aux_conv"](x)
        return F.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x

    @property
    def grid(self) -> int:
        """Resolution of the first and the last layer."""
        return self.config.resolution // self.config.patch

    def embed(self, noise: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The embedding ``e`` of noise level and class, ``(N, 4 model_channels)``."""
        half = self.config.model_channels // 2
        index = torch.arange(half, dtype=torch.float32, device=noise.device)
        frequency = (1 / 10000) ** (index / (half - 1))
        angle = noise.float()[:, None] * frequency
        e = torch.cat([angle.sin(), angle.cos()], dim=1).to(dtype)
        if self.map_label is not None:
            k = self.config.label_dim
            label = torch.zeros(len(noise), k, dtype=dtype, device=noise.device) if label is None else label
            e = e + self.map_label((label * math.sqrt(k)).to(dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))


class Block(nn.Module):
    """Residual block with optional resampling (factor 2) and optional single-head attention.

    Between its two convolutions lie ``inner`` channels, or as many as at its end.
    """

    def __init__(self, inputs: int, outputs: int, emb: int, inner: int = 0, resample: str = "", attention: bool = False) -> None:
        super().__init__()
        self.resample, inner = resample, inner or outputs
        self.norm0, self.conv0 = norm(inputs), conv(inputs, inner, 3)
        self.affine = linear(emb, inner)
        self.norm1, self.conv1 = norm(inner), conv(inner, outputs, 3, gain=1e-5)
        self.skip = conv(inputs, outputs, 1) if resample or inputs != outputs else None
        self.attention = attention
        if attention:
            self.norm2 = norm(outputs)
            self.qkv, self.proj = conv(outputs, 3 * outputs, 1, gain=math.sqrt(0.2)), conv(outputs, outputs, 1, gain=1e-5)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(self._resample(F.silu(self.norm0(x))))
        h = self.conv1(F.silu(self.norm1(h + self.affine(e)[:, :, None, None])))
        x = self._resample(x)
        x = ((x if self.skip is None else self.skip(x)) + h) * math.sqrt(0.5)
        return (x + self._attend(self.norm2(x))) * math.sqrt(0.5) if self.attention else x

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def _attend(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, c, 3, h * w).unbind(2)  # each (n, c, pixels); q, k, v interleave
        weight = (q.transpose(1, 2) @ k / math.sqrt(c)).softmax(dim=-1)
        return self.proj((v @ weight.transpose(1, 2)).reshape(n, c, h, w))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def conv(inputs: int, outputs: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    return initialise(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), gain)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return initialise(nn.Linear(inputs, outputs, bias=bias), 1.0)


def initialise(layer: Layer, gain: float) -> Layer:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
