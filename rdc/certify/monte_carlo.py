r"""The answers of a base classifier to noisy copies of an image, each draw with random numbers of its own.

A base classifier may be random. Certificates need draws that are independent, which they are if its noise is new for every
draw, or fixed once for all draws:

| a classifier that takes the keyword ``index`` ``(N,)``, a number that belongs to the image and the draw, derives its noise
  from it: new for every draw, and the same whatever else is in the batch
| a classifier with ``noise="fresh"``, new at every call for a whole batch, is frozen: fixed once
"""

__all__ = ["Draws", "settled"]

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rdc.rng import randn


@dataclass(frozen=True)
class Draws:
    """The answers of a base classifier to noisy copies of one image."""

    model: Callable[..., Tensor]
    x: Tensor
    sigma: float
    seed: int
    index: int
    batch: int
    purpose: str = "certify"

    def answers(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Classes of the draws ``start...stop - 1``, ``batch`` at a time."""
        for first in range(start, stop, self.batch):
            draws = range(first, min(first + self.batch, stop))
            noise = [randn(tuple(self.x.shape), self.seed, "smoothing", self.purpose, self.index, d, like=self.x) for d in draws]
            noisy = self.x + self.sigma * torch.stack(noise)
            yield answered(self.model, noisy, torch.tensor([code(self.purpose, self.index, d) for d in draws]))

    def count(self, label: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Draws made and how many of them answered ``label``, after every batch."""
        k = made = 0
        for found in self.answers(start, stop):
            k, made = k + int((found == label).sum()), made + len(found)
            yield made, k


def code(purpose: str, index: int, draw: int) -> int:
    """A number of its own for each purpose, image and draw, from which a random base classifier derives its noise."""
    return (2 * index + (purpose == "predict")) * 2**31 + draw


def answered(model: Callable[..., Tensor], noisy: Tensor, index: Tensor) -> np.ndarray:
    """The classes of noisy images, ``(N,)``."""
    with torch.no_grad():
        logits = model(noisy, index=index) if takes_index(model) else model(noisy)
    if not torch.is_tensor(logits) or logits.ndim != 2 or len(logits) != len(noisy):
        shape = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise ValueError(f"the base classifier must return logits ({len(noisy)}, K) for {len(noisy)} images, got {shape}")
    if bool(logits.isnan().any()):
        raise ValueError(f"the base classifier returned NaN for {int(logits.isnan().any(1).sum())} of {len(noisy)} noisy images")
    return logits.argmax(dim=1).cpu().numpy()


def takes_index(model: Callable[..., Tensor]) -> bool:
    """Whether a base classifier derives noise of its own from the keyword ``index``."""
    return "index" in inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters


def settled(model: Callable[..., Tensor], seed: int) -> Callable[..., Tensor]:
    """The base classifier with its noise fixed once for all draws, if it would be new at every call, for a whole batch."""
    if not isinstance(model, nn.Module) or takes_index(model):
        return model
    fresh = any(getattr(m, "noise", None) == "fresh" for m in model.modules())
    if fresh and not callable(getattr(model, "frozen", None)):
        raise ValueError(
            f"{type(model).__name__} draws noise at every call and has no frozen(seed); fix the noise of the part that draws it"
        )
    return model.frozen(seed) if fresh else model
