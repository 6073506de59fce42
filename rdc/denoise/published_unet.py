r"""The U-Nets of the published checkpoints: DDPM++ and NCSN++ (Song et al., 2021) and ADM (Dhariwal and Nichol, 2021).

Names and shapes of the parameters are those of the checkpoints of Karras et al. (2022), who write all three in one form. With the
embedding ``e`` of noise level and class, and ``r`` for a change of resolution by a factor of two, a block computes

    h = conv1(silu(norm1(conv0(r(silu(norm0(x)))) + affine(e))))                  DDPM++, NCSN++
    h = conv1(silu((1 + scale) norm1(conv0(r(silu(norm0(x))))) + shift)),         ADM, with (scale, shift) = affine(e)
    x = s (skip(r(x)) + h)          then, optionally,     x = s (x + attention(x))

where ``s`` is :math:`\sqrt{1/2}`, and 1 in ADM. ``r`` filters by (1, 1), and by (1, 3, 3, 1) in NCSN++, along both axes. NCSN++
has random Fourier features of the noise level, and a second path of filtered images, which joins the encoder at each resolution.

:class:`rdc.denoise.UNet` is the DDPM++ of the networks of the book.

References:
    | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
    | https://arxiv.org/abs/2011.13456
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), section 3
    | https://arxiv.org/abs/2105.05233
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), appendix F
    | https://arxiv.org/abs/2206.00364
"""

__all__ = ["FORMS", "Fixed", "Form", "PublishedUNet"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.denoise.unet import UNetConfig, conv, linear


@dataclass(frozen=True)
class Form:
    """What the networks differ in.

    Attributes:
        scale: The factor ``s`` behind each sum.
        eps: That of the group norms.
        adaptive: Whether a block is scaled and shifted by the embedding, and the class joins it last; else it is shifted only.
        taps: The filter of a change of resolution.
        fourier: Whether the noise level is seen through random Fourier features, twice as many; else through fixed frequencies.
        residual: Whether filtered images join the encoder.
        head: Channels of an attention head, where fewer channels have no attention; 0 for a fixed number of heads.
        heads: That number.
    """

    scale: float = math.sqrt(0.5)
    eps: float = 1e-6
    adaptive: bool = False
    taps: tuple[int, ...] = (1, 1)
    fourier: bool = False
    residual: bool = False
    head: int = 0
    heads: int = 1


#: The forms by name.
FORMS = {
    "ddpm++": Form(),
    "ncsn++": Form(taps=(1, 3, 3, 1), fourier=True, residual=True),
    "adm": Form(scale=1.0, eps=1e-5, adaptive=True, head=64),
    "adm with 4 heads": Form(scale=1.0, eps=1e-5, adaptive=True, heads=4),
}


class Fixed(nn.Module):
    """Numbers that follow a network to its device, and keep their own type when it is cast to another."""

    def __init__(self, persistent: bool = True, **numbers: Tensor) -> None:
        super().__init__()
        for name, value in numbers.items():
            self.register_buffer(name, value, persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        for name, value in self._buffers.items():
            assert value is not None
            self._buffers[name] = value.to(fn(value).device)
        return self


class PublishedUNet(nn.Module):
    """Maps a scaled noisy image, a noise condition and a one-hot class to the raw network output ``F``.

    Raises:
        ValueError: if the form is unknown, the image cannot be halved as often as it must be, or the configuration asks for what
            only :class:`rdc.denoise.UNet` has.
    """

    def __init__(self, config: UNetConfig, form: str) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown network {form!r}; there are {', '.join(FORMS)}")
        c, f = config, FORMS[form]
        self.config, self.form = config, f
        if c.patch > 1 or c.heads > 1 or c.inner or c.resolution % 2 ** (len(c.channel_mult) - 1):
            raise ValueError(f"{form} has one head, no patches, no inner channels and levels of half the size each, got {c}")
        width, emb, mapped = c.model_channels, 4 * c.model_channels, c.model_channels * (2 if f.fourier else 1)
        self.map_noise = Fixed(freqs=torch.zeros(width, dtype=torch.float32, device="cpu")) if f.fourier else None
        self.map_label = linear(c.label_dim, emb if f.adaptive else mapped, bias=not f.adaptive) if c.label_dim else None
        self.map_augment = linear(c.augment_dim, mapped, bias=False) if c.augment_dim else None
        self.map_layer0, self.map_layer1 = linear(mapped, emb), linear(emb, emb)

        block = partial(PublishedBlock, form=f, emb=emb)
        levels = [(c.resolution // 2**level, width * mult) for level, mult in enumerate(c.channel_mult)]
        now, images = levels[0][1] if f.adaptive else width, c.channels
        self.enc, skips = nn.ModuleDict({f"{c.resolution}x{c.resolution}_conv": conv(c.channels, now, 3)}), [now]
        for level, (size, wide) in enumerate(levels):
            if level:
                self.enc[f"{size}x{size}_down"] = block(now, now, resample="down")
                skips.append(now)
            if level and f.residual:
                self.enc[f"{size}x{size}_aux_residual"] = FilteredConv(images, now, f.taps)
                images = now
            for i in range(c.num_blocks):
                self.enc[f"{size}x{size}_block{i}"] = block(now, wide, attention=size in c.attn_resolutions)
                now = wide
                skips.append(now)

        self.dec = nn.ModuleDict()
        for size, wide in reversed(levels):
            if size == levels[-1][0]:
                self.dec[f"{size}x{size}_in0"] = block(now, now, attention=True)
                self.dec[f"{size}x{size}_in1"] = block(now, now)
            else:
                self.dec[f"{size}x{size}_up"] = block(now, now, resample="up")
            for i in range(c.num_blocks + 1):
                attention = size in c.attn_resolutions and (f.adaptive or i == c.num_blocks)
                self.dec[f"{size}x{size}_block{i}"] = block(now + skips.pop(), wide, attention=attention)
                now = wide
        if f.adaptive:
            self.out_norm, self.out_conv = norm(now, f.eps), conv(now, c.channels, 3)
        else:
            self.dec[f"{c.resolution}x{c.resolution}_aux_norm"] = norm(now, f.eps)
            self.dec[f"{c.resolution}x{c.resolution}_aux_conv"] = conv(now, c.channels, 3)

    def forward(
        self, x: Float[Tensor, "n c h w"], noise: Float[Tensor, " n"], label: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Output ``F``, as :meth:`rdc.denoise.UNet.forward`."""
        e, images = self.embed(noise, label, x.dtype), x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("residual"):
                x = skips[-1] = images = (x + layer(images)) * self.form.scale
            else:
                x = layer(x) if name.endswith("conv") else layer(x, e)
                skips.append(x)
        for name, layer in self.dec.items():
            if "aux" not in name:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, e)
        if self.form.adaptive:
            return self.out_conv(F.silu(self.out_norm(x)))
        last = f"{self.config.resolution}x{self.config.resolution}_aux"
        return self.dec[f"{last}_conv"](F.silu(self.dec[f"{last}_norm"](x)))

    def embed(self, noise: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The embedding ``e`` of noise level and class, ``(N, 4 model_channels)``; angles are in float32 at least."""
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        angle = noise[:, None] * self.frequencies(noise)
        e = torch.cat([angle.cos(), angle.sin()] if self.form.adaptive else [angle.sin(), angle.cos()], dim=1).to(dtype)
        k = self.config.label_dim
        label = torch.zeros(len(noise), k, dtype=dtype, device=noise.device) if label is None else label.to(dtype)
        if self.map_label is not None and not self.form.adaptive:
            e = e + self.map_label(label * math.sqrt(k))
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None and self.form.adaptive:
            e = e + self.map_label(label)
        return F.silu(e)

    def frequencies(self, noise: Tensor) -> Tensor:
        """Those of the noise condition, in radians, in the type of ``noise``; from 1 to 1/10000, in ADM not quite."""
        if self.map_noise is not None:
            return 2 * math.pi * self.map_noise.get_buffer("freqs").to(noise.dtype)
        half = self.config.model_channels // 2
        index = torch.arange(half, dtype=noise.dtype, device=noise.device)
        return (1 / 10000) ** (index / (half if self.form.adaptive else half - 1))


class PublishedBlock(nn.Module):
    """Residual block with optional change of resolution and optional attention."""

    def __init__(self, inputs: int, outputs: int, form: Form, emb: int, resample: str = "", attention: bool = False) -> None:
        super().__init__()
        self.form, self.resample = form, resample
        self.heads = 0 if not attention else outputs // form.head if form.head else form.heads
        self.norm0, self.conv0 = norm(inputs, form.eps), conv(inputs, outputs, 3)
        self.affine = linear(emb, 2 * outputs if form.adaptive else outputs)
        self.norm1, self.conv1 = norm(outputs, form.eps), conv(outputs, outputs, 3)
        projects = inputs != outputs or (resample and not form.adaptive)
        self.skip = conv(inputs, outputs, 1) if projects else None
        if self.heads:
            self.norm2, self.qkv, self.proj = norm(outputs, form.eps), conv(outputs, 3 * outputs, 1), conv(outputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h, e = self.conv0(self.resampled(F.silu(self.norm0(x)))), self.affine(e)[:, :, None, None]
        if self.form.adaptive:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + e)
        x = self.resampled(x)
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(F.silu(h))) * self.form.scale
        return (x + self.attended(self.norm2(x))) * self.form.scale if self.heads else x

    def resampled(self, x: Tensor) -> Tensor:
        """The input at the resolution of the output."""
        if not self.resample:
            return x
        filters, pad = lowpass(self.form.taps, x), len(self.form.taps) // 2 - 1
        if self.resample == "down":
            return F.conv2d(x, filters, stride=2, padding=pad, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * filters, stride=2, padding=pad, groups=x.shape[1])

    def attended(self, x: Tensor) -> Tensor:
        """Attention of all pixels to all, by head; the channels of q, k and v interleave."""
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n * self.heads, c // self.heads, 3, h * w).unbind(2)
        weight = (q.transpose(1, 2) @ k / math.sqrt(c // self.heads)).softmax(dim=-1)
        return self.proj((v @ weight.transpose(1, 2)).reshape(n, c, h, w))


class FilteredConv(nn.Conv2d):
    """A 3x3 convolution, filtered and halved; it also sees what lies half a filter outside the image, where the input is zero."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[int, ...]) -> None:
        super().__init__(inputs, outputs, 3, padding=len(taps) // 2)
        self.taps = taps

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=self.padding)
        x = F.conv2d(x, lowpass(self.taps, x), stride=2, groups=self.out_channels)
        return x if self.bias is None else x + self.bias[:, None, None]


def lowpass(taps: tuple[int, ...], x: Tensor) -> Tensor:
    """The filter of each channel of ``x``, ``(C, 1, k, k)``, with sum 1."""
    row = torch.tensor(taps, dtype=x.dtype, device=x.device) / sum(taps)
    return torch.outer(row, row).expand(x.shape[1], 1, -1, -1)


def norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)
