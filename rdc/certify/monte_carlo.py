r"""The answers of a base classifier to noisy copies of images, each draw with random numbers of its own.

A base classifier may be random. Certificates need draws that are independent, which they are if its noise is new for every
draw, or fixed once for all draws:

| a classifier that takes the keyword ``index`` ``(N,)``, a number that belongs to the image and the draw, derives its noise
  from it: new for every draw, and the same whatever else is in the batch
| a classifier with ``noise="fresh"``, new at every call for a whole batch, is frozen: fixed once
"""

__all__ = ["Draws", "Request", "settled"]

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rdc.door import Door
from rdc.rng import randn_each

#: Position of an image, first draw, and the one after the last.
Request = tuple[int, int, int]
Classifier = Callable[..., Tensor]


@dataclass(frozen=True)
class Draws:
    """The answers of a base classifier to noisy copies of some images.

    Arguments:
        door: The base classifier, asked properly.
        x: Images ``(M, C, H, W)``.
        index: Identity of each image.
        sigma: Standard deviation of the noise, image units.
        seed: Seed of the noise.
        batch: Noisy copies at a time, of one image or of several.
        purpose: ``certify`` or ``predict``, which have different noise.
    """

    door: Door
    x: Tensor
    index: Sequence[int]
    sigma: float
    seed: int
    batch: int
    purpose: str = "certify"

    def tallies(self, requests: Sequence[Request]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield after every batch the draws made so far, and how often each image got each class, ``(M, K)``.

        The answers are counted where the data are; each batch is waited for once.
        """
        wanted = [(at, draw) for at, start, stop in requests for draw in range(start, stop)]
        table: Tensor | None = None
        for first in range(0, len(wanted), self.batch):
            part = wanted[first : first + self.batch]
            at = torch.tensor([at for at, _ in part], dtype=torch.int64, device="cpu").to(self.x.device)
            logits = self.answers(at, part)
            if table is None:
                table = torch.zeros(len(self.x), logits.shape[1], dtype=torch.int64, device=self.x.device)
            table.index_put_((at, logits.argmax(dim=1)), torch.ones_like(at), accumulate=True)
            yield first + len(part), table.cpu().numpy().copy()

    def answers(self, at: Tensor, part: Sequence[tuple[int, int]]) -> Tensor:
        """Return the logits of some draws."""
        keys = [(self.seed, "smoothing", self.purpose, self.index[at], draw) for at, draw in part]
        noisy = self.x[at] + self.sigma * randn_each(tuple(self.x.shape[1:]), keys, like=self.x)
        if not takes_index(self.door.model):
            return self.door.ask(noisy)
        codes = [code(self.purpose, self.index[at], draw) for at, draw in part]
        return self.door.ask(noisy, index=torch.tensor(codes, dtype=torch.int64, device="cpu"))


def code(purpose: str, index: int, draw: int) -> int:
    """Return a number of its own for each purpose, image and draw, from which a random base classifier derives its noise."""
    return (2 * index + (purpose == "predict")) * 2**31 + draw


def takes_index(model: Classifier) -> bool:
    """Return whether a base classifier derives noise of its own from the keyword ``index``."""
    return "index" in inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters


def settled(model: Classifier, seed: int) -> Classifier:
    """Return the base classifier with its noise fixed once for all draws, if it would be new at every call, for a whole batch."""
    if not isinstance(model, nn.Module) or takes_index(model):
        return model
    if not any(getattr(m, "noise", None) == "fresh" for m in model.modules()):
        return model
    frozen = getattr(model, "frozen", None)
    if not callable(frozen):
        raise ValueError(
            f"{type(model).__name__} draws noise at every call and has no frozen(seed); fix the noise of the part that draws it"
        )
    fixed: Classifier = frozen(seed)
    return fixed
