r"""Where noise comes from: every key of a random stream behind a denoising loss, and the one noise object.

A stream is a function of its key alone (:mod:`rdc.rng`). The keys, with a *seed* in front:

| diffusion classifier   ``(call, level, draw, class)``; the call is 0 unless the noise is fresh
| noised classifier      ``(0, level, draw, class)``, or ``("row", row, level, draw, class)`` for noise that belongs to an image
| likelihood             ``("likelihood", call, step[, level])``, with ``"level"`` behind it for the noise level itself
| purification           ``("purify", call, "forward")`` and ``("purify", call, step)``
| smoothing              ``("smoothing", purpose, image, draw)``

The first two have one form, :class:`Noise`: what comes before the level is the *owner* of the draw.
"""

__all__ = ["Noise", "likelihood_generator", "likelihood_noise", "purify_noise"]

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rdc.quantities import count
from rdc.rng import generator, randn, whole

Key = tuple[int | str, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """Standard normal noise for the draws of a denoising loss.

    Arguments:
        seed: The seed.
        draws: Number R of draws for each level, mirror images included.
        antithetic: Whether draws come in pairs ``eps, -eps``; then R is even.
        per_class: Whether every class has noise of its own; otherwise classes share it.
        share_levels: Whether all levels have the same noise.

    Raises:
        ValueError: if the seed is no whole number, or the number of draws is not positive, or odd for pairs.
    """

    seed: int = 0
    draws: int = 1
    antithetic: bool = False
    per_class: bool = False
    share_levels: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole(self.seed))
        object.__setattr__(self, "draws", count(self.draws, "draws"))
        if self.antithetic and self.draws % 2:
            raise ValueError(f"antithetic noise comes in pairs; draws must be even, got {self.draws}")

    @property
    def samples(self) -> int:
        """Independent draws for each level: R, or R / 2 for pairs."""
        return self.draws // 2 if self.antithetic else self.draws

    def eps(self, shape: tuple[int, ...], owner: Key, level: int, sample: int, label: int) -> Tensor:
        """One independent draw of a shape, float32 on the CPU."""
        return randn(shape, self.seed, *owner, 0 if self.share_levels else level, sample, label if self.per_class else 0)

    def table(self, shape: tuple[int, ...], owners: list[Key], levels: range, classes: int) -> Float[Tensor, "g r t *shape"]:
        """The independent draws of some levels, ``(G, R', T, C, H, W)``, float32 on the CPU.

        The groups G are the owners, or with ``per_class`` the owners times the K classes, class by class.
        """
        labels = range(classes if self.per_class else 1)
        drawn = [
            self.eps(shape, owner, t, r, k) for owner in owners for k in labels for r in range(self.samples) for t in levels
        ]
        return torch.stack(drawn).reshape(len(owners) * len(labels), self.samples, len(levels), *shape)


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
