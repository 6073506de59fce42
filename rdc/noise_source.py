r"""Where the noise of the package comes from: the keys of all its streams, and :class:`Noise`, that of a table of losses.

Every draw is that of :func:`rdc.rng.randn` for one of these keys, an image ``(C, H, W)`` at a time:

| losses          ``(seed, *stream, level, sample, class)``; the stream of a classifier is its call, 0 if its noise is fixed, and
                  for noise that belongs to an image ``"row"`` and the image's number
| likelihood      ``(seed, "likelihood", call, step)``, with the level if a step takes all levels
| purification    ``(seed, "purify", call, step)``
| smoothing       ``(seed, "smoothing", purpose, index, draw)``
"""

__all__ = ["Noise", "Stream", "likelihood_generator", "likelihood_noise", "purify_noise", "smoothing_noise"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rdc.rng import generator, randn

Shape = tuple[int, ...]
Stream = tuple[int | str, ...]


@dataclass(frozen=True)
class Noise:
    """Noise of a table of losses: standard normal images by stream, class, level and draw.

    Attributes:
        seed: Seed of all streams.
        samples: Number S of independent samples.
        per_class: Whether each class has its own noise; otherwise it is shared.
        share_levels: Whether all levels take the same noise.
        antithetic: Whether each sample comes with its mirror image, so that there are 2 S draws.
    """

    seed: int = 0
    samples: int = 1
    per_class: bool = False
    share_levels: bool = False
    antithetic: bool = False

    @property
    def signs(self) -> int:
        """Draws of a sample: 2 with its mirror image."""
        return 2 if self.antithetic else 1

    @property
    def draws(self) -> int:
        """Number R of draws for each class and level."""
        return self.samples * self.signs

    def image(self, shape: Shape, stream: Stream, level: int, sample: int, label: int) -> Tensor:
        """Return one image of noise, float32 on the CPU."""
        return randn(shape, self.seed, *stream, 0 if self.share_levels else level, sample, label if self.per_class else 0)

    def tables(
        self, shape: Shape, streams: Sequence[Stream], num_classes: int, one: Callable[[Callable[[int], Tensor]], Tensor]
    ) -> Tensor:
        """Return all samples ``(G, S, ...)``, ``G = streams x classes``, or the streams alone if classes share.

        Arguments:
            shape: Shape of an image.
            streams: Streams, one for each group of images.
            num_classes: Number K of classes.
            one: Makes what is kept of one sample from a function of the level that returns its standard normal image.
        """
        labels = range(num_classes if self.per_class else 1)
        found = [
            one(lambda level, at=(stream, r, k): self.image(shape, at[0], level, at[1], at[2]))  # type: ignore[misc]
            for stream in streams
            for k in labels
            for r in range(self.samples)
        ]
        return torch.stack(found).unflatten(0, (len(streams) * len(labels), self.samples))


def likelihood_noise(
    shape: Shape, seed: int, call: int, step: int, level: int | None = None, like: Tensor | None = None
) -> Tensor:
    """Return the noise of a step of likelihood maximisation, at one of its levels if it takes several."""
    return randn(shape, seed, "likelihood", call, step, *(() if level is None else (level,)), like=like)


def likelihood_generator(seed: int, call: int, step: int) -> torch.Generator:
    """Return the generator of the random level of a step of likelihood maximisation."""
    return generator(seed, "likelihood", call, step, "level")


def purify_noise(shape: Shape, seed: int, call: int, step: int | str, like: Tensor | None = None) -> Tensor:
    """Return the noise of a step of purification; ``step`` is ``"forward"`` for the noise that is added at the beginning."""
    return randn(shape, seed, "purify", call, step, like=like)


def smoothing_noise(shape: Shape, seed: int, purpose: str, index: int, draw: int, like: Tensor | None = None) -> Tensor:
    """Return a draw of the noise that smooths an image, before it is scaled."""
    return randn(shape, seed, "smoothing", purpose, index, draw, like=like)
