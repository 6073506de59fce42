"""Corrupted images: eight corruptions of our own, in the four families of CIFAR-10-C, at five severities.

| noise     ``gaussian-noise``; ``impulse-noise``, black and white pixels
| blur      ``gaussian-blur``
| weather   ``fog``, a bright cloud of 1/f noise in front; ``frost``, bright ridges of it; ``brightness``
| digital   ``contrast``, about the mean of the image; ``pixelate``

Each is a function of the image, the severity, the seed and the index of the image: the noise is the same at all severities, and
does not depend on the batch. The sizes are our own, for small images: results are not comparable with those on CIFAR-10-C.

References:
    | Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (Hendrycks and Dietterich, 2019)
    | https://arxiv.org/abs/1903.12261
"""

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rdc.door import check_images
from rdc.rng import randn_each

SEVERITIES = (1, 2, 3, 4, 5)
Noise = Callable[[Tensor], Tensor]  # standard normal numbers of the shape of images, by the key of each


def gaussian_noise(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Add noise of a standard deviation."""
    return x + size * noise(x)


def impulse_noise(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Set a fraction of the pixels to black or white."""
    at = torch.special.ndtr(noise(x))
    return torch.where(at < size / 2, 0.0, torch.where(at > 1 - size / 2, 1.0, x))


def gaussian_blur(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Average over a Gaussian of a standard deviation in pixels; beyond the border the last pixels go on."""
    reach = min(int(4 * size + 1), x.shape[-1])
    at = torch.arange(-reach, reach + 1, device=x.device).to(x.dtype)
    row = torch.softmax(-0.5 * (at / size) ** 2, dim=0)
    wide = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, row.reshape(1, 1, 1, -1)), row.reshape(1, 1, -1, 1))[:, 0].unflatten(0, x.shape[:2])


def clouds(x: Tensor, noise: Noise) -> Tensor:
    """Noise with a spectrum of 1/f, from 0 to 1 in each image, the same for all channels: ``(N, 1, H, W)``."""
    h, w = x.shape[-2:]
    f = torch.fft.fftfreq(h, device=x.device)[:, None].square() + torch.fft.rfftfreq(w, device=x.device).square()
    f[0, 0] = torch.inf  # the mean does not matter
    found = torch.fft.irfft2(torch.fft.rfft2(noise(x[:, :1]).float()) / f**0.75, s=(h, w)).to(x.dtype)
    low, high = found.amin((2, 3), keepdim=True), found.amax((2, 3), keepdim=True)
    return (found - low) / (high - low)


def fog(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Add clouds, and divide so that the image stays in [0, 1]."""
    return (x + size * clouds(x, noise)) / (1 + size)


def frost(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Mix with bright ridges, where the clouds are at their middle."""
    ridges = (1 - (2 * clouds(x, noise) - 1).abs()) ** 6
    return (1 - size) * x + size * ridges


def brightness(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Add a constant."""
    return x + size


def contrast(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Shrink the differences from the mean of the image by a factor."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + size * (x - mean)


def pixelate(x: Tensor, size: float, noise: Noise) -> Tensor:
    """Average over larger pixels: the image at a fraction of its resolution."""
    small = [max(1, round(size * side)) for side in x.shape[-2:]]
    return F.interpolate(F.interpolate(x, size=small, mode="area"), size=x.shape[-2:], mode="nearest")


#: Functions, and their sizes at severity 1 to 5.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, Noise], Tensor], tuple[float, ...]]] = {
    "gaussian-noise": (gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "impulse-noise": (impulse_noise, (0.01, 0.03, 0.06, 0.10, 0.17)),
    "gaussian-blur": (gaussian_blur, (0.5, 0.7, 1.0, 1.4, 2.0)),
    "fog": (fog, (0.2, 0.4, 0.7, 1.1, 1.8)),
    "frost": (frost, (0.15, 0.25, 0.35, 0.45, 0.6)),
    "brightness": (brightness, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "contrast": (contrast, (0.8, 0.6, 0.45, 0.3, 0.2)),
    "pixelate": (pixelate, (0.86, 0.71, 0.57, 0.43, 0.29)),
}


def corrupt(
    x: Float[Tensor, "n c h w"], name: str, severity: int, index: Sequence[int], seed: int = 0
) -> Float[Tensor, "n c h w"]:
    """Return corrupted images in [0, 1].

    Arguments:
        x: Images in [0, 1].
        name: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        index: A number for each image, which with the seed decides its noise.
        seed: Seed of the noise.

    Raises:
        ValueError: if there is no such corruption or severity, or not one number for each image.
    """
    check_images(x)
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"a severity is 1 to 5, not {severity}")
    if len(index) != len(x):
        raise ValueError(f"{len(x)} images need as many indices, got {len(index)}")
    function, sizes = CORRUPTIONS[name]
    keys = [(seed, "corruption", name, i) for i in index]
    return function(x, sizes[severity - 1], partial(drawn, keys)).clamp(0, 1)


def drawn(keys: Sequence[tuple[int | str, ...]], x: Tensor) -> Tensor:
    """Standard normal numbers of the shape of ``x``, one key an image."""
    return randn_each(tuple(x.shape[1:]), keys, like=x)
