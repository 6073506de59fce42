"""The task *aligned*: how well does a guide's gradient point where it should, image by image? See :mod:`rdc.guide.align`."""

__all__ = ["aligned", "exact", "in_float", "optional", "roots", "toy", "weights"]

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rdc.data import load
from rdc.denoise.base import to_model
from rdc.denoise.optimal import OptimalDenoiser
from rdc.guide.align import alignment
from rdc.guide.guides import Guide
from rdc.guide.named import CLASSIFIERS, load_guide
from rdc.rng import randn
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import guided


def aligned(cell: Cell, device: str = "cpu") -> Outcome:
    """Say the cosine with the exact direction and the strength, of noisy test images; None where there is no direction.

    Right is the optimal denoiser of the train split, in float64. Arguments: ``sigma``, the noise level, and ``towards``, the
    ``true class`` or ``another class``, which is the next in the list. Image i has the noise of stream ``(seed, "align", i)``.
    """
    row, given = cell.row, cell.row.arguments
    images = load(row.data)[cell.start : cell.stop]
    y = images.y if given["towards"] == "true class" else (images.y + 1) % len(images.classes)
    x = images.x.double()
    eps = torch.stack([randn(tuple(x.shape[1:]), row.seed, "align", i, like=x) for i in range(cell.start, cell.stop)])
    z = (to_model(x) + given["sigma"] * eps).to(device)
    sigma = torch.full((len(x),), given["sigma"], dtype=torch.float64, device=device)
    guide = in_float(load_guide(guided.source(row), row.data, torch.float32, device))
    found = alignment(guide, exact(row.data, device), z, sigma, y.to(device))
    return Outcome({}, values={"cosine": optional(found.cosine), "strength": optional(found.strength)})


@cache
def exact(data: str, device: str = "cpu", dtype: torch.dtype = torch.float64, first: int | None = None) -> Any:
    """Return the optimal denoiser of the train split, or of the first images of it."""
    images = load(data, "train")
    return OptimalDenoiser(images.x[:first].to(device, dtype), images.y[:first].to(device))


def in_float(guide: Guide | None) -> Guide:
    """Return a guide that sees float32, as it does when it samples.

    Raises:
        ValueError: if there is none.
    """
    if guide is None:
        raise ValueError("no guide has no gradient")
    return lambda z, sigma, y: guide(z.float(), sigma.float(), y).to(z.dtype)


def optional(values: Tensor) -> list[float | None]:
    """Return numbers, and None for NaN."""
    return [None if v != v else v for v in values.double().tolist()]


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    return guided.of_guide(row)


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    model = "trained" if row.model in CLASSIFIERS else row.model
    given = {**row.arguments, "sigma": 0.3}
    own = guided.TRAINED if model == "trained" else {}
    return replace(row, model=model, options=own, arguments=given, data="digits", n=2, block=2)
