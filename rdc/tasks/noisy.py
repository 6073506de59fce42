"""The task *noisy*: which noisy images does a base classifier get right, and on which does it answer as another one?"""

__all__ = ["noisy", "noisy_images", "roots", "toy", "weights"]

from functools import lru_cache

import torch
from torch import Tensor

from rdc.data import load
from rdc.data.unseen import unseen
from rdc.rng import randn
from rdc.runs.cell import Cell, Outcome
from rdc.tasks import attack
from rdc.tasks.certify import Options, asked, base, evaluations, passes, roots, toy, weights

BATCH = 20


def noisy(cell: Cell, device: str = "cpu") -> Outcome:
    """Classify one noisy copy of each image.

    Arguments of the row: ``sigma``; ``images``, ``test`` or ``unseen`` (:mod:`rdc.data.unseen`, on which settings are chosen);
    ``reference``, another base classifier. ``right`` is the true class, ``agrees`` the class that the reference says.
    """
    row, other = cell.row, cell.row.arguments.get("reference")
    given = row.data, row.arguments["images"], row.arguments["sigma"], device, cell.start, cell.stop
    before = evaluations(model := base(row.model, attack.key(row.options), row.data, device))
    said = answers(row.model, attack.key(row.options), *given)
    cost, truth = passes(model, before), noisy_images(*given)[1].tolist()
    bits = {"right": [a == b for a, b in zip(said, truth, strict=True)]}
    if other is not None:
        wanted = answers(other["model"], attack.key(other.get("options", {})), *given)
        bits["agrees"] = [a == b for a, b in zip(said, wanted, strict=True)]
    return Outcome(bits, {"passes": cost})


@lru_cache(maxsize=64)
def answers(model: str, options: Options, data: str, images: str, sigma: float, device: str, start: int, stop: int) -> list[int]:
    """Return the classes that a base classifier says."""
    found, (x, _) = base(model, options, data, device), noisy_images(data, images, sigma, device, start, stop)
    index = torch.arange(start, stop, device="cpu")
    parts = [asked(found, x[at : at + BATCH], index[at : at + BATCH]).argmax(dim=1) for at in range(0, len(x), BATCH)]
    return [int(label) for part in parts for label in part]


def noisy_images(data: str, images: str, sigma: float, device: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return one noisy copy of each of some images, not clipped, and the labels."""
    known = unseen(stop)[start:stop] if images == "unseen" else load(data, "test")[start:stop]
    x, y = known.x.to(device), known.y.to(device)
    noise = torch.stack([randn(tuple(x.shape[1:]), 0, "levels", i) for i in range(start, stop)])
    return x + sigma * noise.to(x), y
