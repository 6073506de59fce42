"""The task *targeted*: does ascent of another class make an image of that class? See :func:`rdc.guide.align.climb`."""

__all__ = ["along", "climbed", "roots", "targeted", "toy", "weights"]

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rdc.data import Images, load
from rdc.denoise.base import from_model, to_model
from rdc.evaluate.robustness import predict
from rdc.guide.align import climb, direction
from rdc.guide.guides import Guide
from rdc.guide.named import load_guide
from rdc.rng import randn
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import aligned, guided
from rdc.train.judges import judges


def targeted(cell: Cell, device: str = "cpu") -> Outcome:
    """Climb the probability of the next class from noisy test images: ``before`` and ``reached`` say that a judge sees it.

    ``alignment`` is the cosine of the change with the way to that class, as the optimal denoiser sees it at the level 1, which
    smooths it. Arguments: ``sigma``, the level of the start; ``radius`` in model units; ``judges``.
    """
    row, given = cell.row, cell.row.arguments
    guide = load_guide(guided.source(row), row.data, torch.float32, device)
    images = load(row.data)[cell.start : cell.stop]
    moved, z, y = climbed(aligned.in_float(guide), images, given["sigma"], given["radius"], cell.start, device)
    judge = judges(given["judges"], row.data, device).judge
    before, reached = (predict(judge, from_model(points).clamp(0, 1), 250) == y for points in (z, moved))
    cosine = along(aligned.exact(row.data, device), moved - z, z, y)
    bits = {"before": before.tolist(), "reached": reached.tolist()}
    return Outcome(bits, values={"alignment": aligned.optional(cosine)})


def climbed(
    guide: Guide, images: Images, start: float, radius: float, first: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of the ascent, where it began, and the targets: for each image the class after its own."""
    z, y = to_model(images.x), ((images.y + 1) % len(images.classes)).to(device)
    noise = torch.stack([randn(tuple(z.shape[1:]), 0, "targeted", first + i) for i in range(len(z))])
    z = (z + start * noise).to(device)
    return climb(guide, z, torch.full((len(z),), start, dtype=z.dtype, device=device), y, radius), z, y


def along(denoiser: Any, change: Tensor, z: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    """Return the cosine of a change of the image with the way to class y as the optimal denoiser sees it at a level."""
    level = torch.full((len(z),), sigma, dtype=torch.float64, device=z.device)
    wanted = direction(denoiser, z.double(), level, y)
    return torch.nn.functional.cosine_similarity(change.flatten(1).double(), wanted.flatten(1), dim=1)


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    return guided.of_guide(row) | guided.of_judges(row, "judge")


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    return replace(aligned.toy(row), arguments={"sigma": 0.3, "radius": 3.0, "judges": "reference"})
