"""How noisy the losses of a randomised model are, and the differences of losses by which an attack compares two points.

An attack keeps a point if its loss is larger. What matters is the noise of ``L(x') - L(x)``: with the same noise at both
points much of it cancels; with new noise at each call it does not. Gradients may agree while losses are noisy.
"""

__all__ = ["LossNoise", "loss_noise"]

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.analyse.gradients import Loss, moving_counters
from rdc.attack.losses import margin
from rdc.door import logits_of
from rdc.randomness import owned_randomness


@dataclass(frozen=True, eq=False)
class LossNoise:
    """Losses ``(draws, N)`` at two points, float64; each row is one draw of the noise, common to both points."""

    at: Float[Tensor, "r n"]
    other: Float[Tensor, "r n"]

    @property
    def std(self) -> Float[Tensor, " n"]:
        """Standard deviation of ``L(x)`` over the noise."""
        return self.at.std(dim=0)

    @property
    def difference(self) -> Float[Tensor, " n"]:
        """Mean of ``L(x') - L(x)``."""
        return (self.other - self.at).mean(dim=0)

    @property
    def common_std(self) -> Float[Tensor, " n"]:
        """Standard deviation of ``L(x') - L(x)`` under common noise."""
        return (self.other - self.at).std(dim=0)

    @property
    def independent_std(self) -> Float[Tensor, " n"]:
        """The same when each point has its own noise: the variances add."""
        return (self.at.var(dim=0) + self.other.var(dim=0)).sqrt()

    def ratio(self, common: bool = True) -> Float[Tensor, " n"]:
        """Standard deviation of one difference over the size of its mean; below one a comparison mostly tells the truth."""
        return (self.common_std if common else self.independent_std) / self.difference.abs()


def loss_noise(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    x_other: Float[Tensor, "m c h w"],
    y: Int64[Tensor, " n"],
    draws: int = 20,
    loss: Loss = margin,
    seed: int = 0,
) -> LossNoise:
    """Losses at ``x`` and ``x_other``, e.g. before and after a step of an attack, under ``draws`` draws of the noise.

    Raises:
        ValueError: for less than two draws, or points of different shapes.
    """
    if draws < 2:
        raise ValueError(f"a standard deviation needs at least two draws, got {draws}")
    if x.shape != x_other.shape:
        raise ValueError(f"the points have different shapes, {tuple(x.shape)} and {tuple(x_other.shape)}")
    counters = moving_counters(model, x, seed)

    def losses(point: Tensor, r: int) -> Tensor:
        with torch.no_grad(), owned_randomness(model, seed, "loss", r, counters=counters):
            return loss(logits_of(model, point, y), y).double()

    seen = [(losses(x, r), losses(x_other, r)) for r in range(draws)]
    return LossNoise(torch.stack([a for a, _ in seen]), torch.stack([b for _, b in seen]))
