"""The task *information*: what each noise level adds to the margin of a diffusion classifier, and how steep that is."""

__all__ = ["information", "roots", "toy", "weights"]

from typing import cast

import torch

from rdc.analyse.information import by_level
from rdc.classify.diffusion import DiffusionClassifier
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack
from rdc.tasks.attack import toy, weights


def information(cell: Cell, device: str = "cpu") -> Outcome:
    """Measure margin and gradient of each level (:mod:`rdc.analyse.information`) for the images of a cell.

    The rival is the wrong class with the largest logit. For a level of noise s, in three digits, ``margin, sigma s`` is in nats,
    ``L1, sigma s`` and ``L2, sigma s`` are the norms of its gradient in nats per unit of the image, and ``right, sigma s`` says
    whether this level alone names the class; ``clean``, whether all together do.
    """
    row = cell.row
    x, y, _ = attack.test_images(row.data, cell.start, cell.stop, device)
    model = cast(DiffusionClassifier, attack.made(row.model, row.data, device, attack.key(row.options)))
    with torch.no_grad():
        logits, losses = model(x), model.losses(x)
    found = by_level(model, x, y, logits.scatter(1, y[:, None], -torch.inf).argmax(1))
    bits, values = {"clean": (logits.argmax(1) == y).tolist()}, {}
    for t, sigma in enumerate(found.sigma.tolist()):
        bits[f"right, sigma {sigma:.3g}"] = (losses[..., t].argmin(1) == y).tolist()
        for name, value in {"margin": found.margin, **found.slopes}.items():
            values[f"{name}, sigma {sigma:.3g}"] = [float(f"{v:.6g}") for v in value[:, t].tolist()]
    return Outcome(bits, values=values)


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builder of its model."""
    return [attack.builder(row.model)]
