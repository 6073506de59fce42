"""The task *sift*: how many evaluations does a rule of sift-and-refine save, and how often does it keep the answer?"""

__all__ = ["roots", "sift", "toy", "weights"]

from typing import Any

import torch
from torch import Tensor, nn

from rdc.runs.cell import Cell, Outcome
from rdc.tasks import attack
from rdc.tasks.certify import base, roots, toy, weights
from rdc.tasks.noisy import noisy_images


def sift(cell: Cell, device: str = "cpu") -> Outcome:
    """Sift the classes of one noisy copy of each image.

    Arguments of the row: ``sigma`` and ``images`` as of :mod:`rdc.tasks.noisy`; ``rule``, ``Leader``, ``Paired`` or
    ``Threshold``; ``calibrate``, from how many images after those of the row the last two are made. ``agrees`` is the answer of
    the full classifier, and the mean ``saved`` the share of its evaluations that were not made.
    """
    from rdc.early_exit import sift as sift_rules

    row, given = cell.row, cell.row.arguments
    model, end = base(row.model, attack.key(row.options), row.data, device), row.start + row.n
    x, _ = noisy_images(row.data, given["images"], given["sigma"], device, cell.start, cell.stop)
    other, _ = noisy_images(row.data, given["images"], given["sigma"], device, end, end + given["calibrate"])
    found = sift_rules.sift(model, x, rule(given["rule"], model, other), row.seed)  # type: ignore[arg-type]
    with torch.no_grad():
        full = model(x).argmax(dim=1).cpu()
    return Outcome({"agrees": (found.label.cpu() == full).tolist()}, {"saved": found.saved})


def rule(name: str, model: nn.Module, other: Tensor) -> Any:
    """Return a rule; a threshold is the lead that nine of ten runners-up of other images do not exceed."""
    from rdc.early_exit.sift import Leader, Paired, Threshold, calibrate

    if name == "Leader":
        return Leader()
    if name == "Paired":
        return Paired(calibrate(model, other))  # type: ignore[arg-type]
    with torch.no_grad():
        total = model.losses(other).sum(dim=2)  # type: ignore[operator]
    lead = (total - total.amin(dim=1, keepdim=True)).sort(dim=1).values
    return Threshold(float(lead[:, 1].quantile(0.9)), levels=8, stop=1, keep=None)
