r"""Defences that change an image at random before a network sees it, and the average of a network over noise.

| :class:`RandomNoise`     :math:`f(x + \sigma \epsilon)`, clipped to [0, 1]
| :class:`RandomResize`    :math:`f` of the image, shrunk to a random size and padded to its own with zeros (Xie et al., 2018,
                           enlarge it; shrinking leaves the network its size)
| :class:`MeanOverNoise`   :math:`\log \tfrac1n \sum_i \mathrm{softmax} f(x + \sigma \epsilon_i)` of a classifier of noisy images

A change is the same for all images of a call, so that a result does not depend on the batch. ``fresh`` changes are new at every
call, ``fixed`` ones the same; an attacker who knows them attacks ``frozen(seed)``. Against fresh ones the gradient must be
averaged (``eot``), and one verdict flatters the defence (:mod:`rdc.evaluate`).

References:
    | Mitigating Adversarial Effects Through Randomization (Xie et al., 2018), https://arxiv.org/abs/1711.01991
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), section 5.3, https://arxiv.org/abs/1802.00420
    | Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers (Salman et al., 2019), Eq. 6
    | https://arxiv.org/abs/1906.04584
"""

__all__ = ["MeanOverNoise", "RandomNoise", "RandomResize"]

import copy
import math
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.door import check_images
from rdc.quantities import count, number
from rdc.rng import randint, randn, whole


class _Randomised(nn.Module):
    """A network whose calls are numbered, if their random numbers are new each time."""

    def __init__(self, network: nn.Module, noise: str, seed: int) -> None:
        super().__init__()
        if noise not in ("fixed", "fresh"):
            raise ValueError(f"noise must be 'fixed' or 'fresh', got {noise!r}")
        self.network, self.noise, self.seed, self.calls = network, noise, whole(seed), 0

    def frozen(self, seed: int) -> Any:
        """Return this defence with the random numbers of ``seed`` at every call, and the same network."""
        found = copy.copy(self)
        found.noise, found.seed, found.calls = "fixed", whole(seed), 0
        return found

    def key(self, x: Tensor, what: str) -> tuple[int | str, ...]:
        """Return the key of a call's random numbers."""
        check_images(x)
        self.calls += self.noise == "fresh"
        return self.seed, what, self.calls


class RandomNoise(_Randomised):
    """Images in [0, 1] to logits of noisy ones, clipped to [0, 1].

    Arguments:
        network: Images in [0, 1] to logits.
        sigma: Standard deviation of the noise, image units.
        noise: ``fresh`` or ``fixed``.
        seed: Seed of the noise.

    Raises:
        ValueError: if the noise is not positive, or has another name.
    """

    def __init__(self, network: nn.Module, sigma: float | str = 0.1, noise: str = "fresh", seed: int = 0) -> None:
        super().__init__(network, noise, seed)
        self.sigma = number(sigma, "sigma", low=0, strict=True)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the noisy images."""
        eps = randn(tuple(x.shape[1:]), *self.key(x, "random noise"), like=x)
        return self.network((x + self.sigma * eps).clamp(0, 1))


class RandomResize(_Randomised):
    """Images in [0, 1] to logits of images that were shrunk and moved.

    Arguments:
        network: Images in [0, 1] to logits.
        least: Least size, as a share of the image's; sizes between are equally likely, and places for each.
        noise: ``fresh`` or ``fixed``.
        seed: Seed of sizes and places.

    Raises:
        ValueError: if the share is not in (0, 1], or the noise has another name.
    """

    def __init__(self, network: nn.Module, least: float = 0.85, noise: str = "fresh", seed: int = 0) -> None:
        super().__init__(network, noise, seed)
        self.least = number(least, "least", low=0, high=1, strict=True)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the changed images."""
        high, wide = x.shape[2:]
        key, smallest = self.key(x, "random resize"), max(1, math.ceil(self.least * high))
        size = smallest + int(randint(high - smallest + 1, (), *key, "size"))
        across = max(1, round(size * wide / high))
        down = int(randint(high - size + 1, (), *key, "down"))
        right = int(randint(wide - across + 1, (), *key, "right"))
        small = F.interpolate(x, (size, across), mode="bilinear", align_corners=False)
        return self.network(F.pad(small, (right, wide - across - right, down, high - size - down)).clamp(0, 1))


class MeanOverNoise(_Randomised):
    """Images in [0, 1] to the logarithm of the mean probabilities of noisy images, which are not clipped.

    Its prediction is that of the smoothed classifier of Cohen et al. (2019), with probabilities in place of votes, so that there
    is a gradient.

    Arguments:
        network: Noisy images to logits, for instance :class:`rdc.certify.baselines.Carlini`.
        sigma: Standard deviation of the noise, image units.
        draws: Noisy copies of each image.
        noise: ``fresh`` or ``fixed``.
        seed: Seed of the noise.

    Raises:
        ValueError: if noise or draws are not positive, or the noise has another name.
    """

    def __init__(
        self, network: nn.Module, sigma: float | str = 0.25, draws: int = 8, noise: str = "fixed", seed: int = 0
    ) -> None:
        super().__init__(network, noise, seed)
        self.sigma, self.draws = number(sigma, "sigma", low=0, strict=True), count(draws, "draws")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the log-probabilities."""
        eps = randn((self.draws, *x.shape[1:]), *self.key(x, "mean over noise"), like=x)
        noisy = x[:, None] + self.sigma * eps
        said = self.network(noisy.flatten(0, 1)).log_softmax(dim=1)
        return said.reshape(len(x), self.draws, -1).logsumexp(dim=1) - math.log(self.draws)
