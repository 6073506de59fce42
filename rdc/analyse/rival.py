"""A margin whose rival is held fixed: what is left of a gradient's randomness when the class that it runs to may not change.

The margin ``max_{j != y} f_j - f_y`` may take another rival ``j`` at each call of a randomised model, and its gradient then
jumps whatever the noise within a class does. Against a fixed rival only that noise is left.
"""

__all__ = ["margin_to", "runner_up"]

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.randomness import known_noise


def runner_up(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], calls: int = 4, seed: int = 1000
) -> Int64[Tensor, " n"]:
    """The most likely wrong class of each image, from the mean logits of ``calls`` calls.

    The noise of call ``i`` is that of ``seed + i``.
    """
    with torch.no_grad():
        logits = torch.stack([known_noise(model, seed + call)(x) for call in range(calls)]).mean(0)
    return logits.scatter(1, y[:, None], -torch.inf).argmax(1)


def margin_to(rival: Int64[Tensor, " n"]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss ``f_j - f_y`` of logits ``(N, K)`` and labels ``(N,)`` for fixed rivals j, in the unit of the logits."""
    return lambda logits, y: (logits.gather(1, rival[:, None]) - logits.gather(1, y[:, None]))[:, 0]
