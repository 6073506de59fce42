"""The task *precision*: does a gradient that is computed in fewer bits still point where that in float32 points?"""

__all__ = ["precision", "roots", "toy", "weights"]

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack

weights = attack.weights


def precision(cell: Cell, device: str = "cpu") -> Outcome:
    """Compare the gradients of the margin of a model, its denoisers in the type ``dtype`` of the row, with those in float32.

    Of each image: ``cosine`` of the two, ``same sign``, the share of the pixels where they have one, and ``change``, the largest
    difference of two logits over the spread of those in float32. ``same class`` says whether the answer is the same.
    """
    from rdc.door import entry

    row = cell.row
    x, y, _ = attack.test_images(row.data, cell.start, cell.stop, device)
    model = attack.made(row.model, row.data, device, attack.key(row.options))
    coarse = in_type(model, getattr(torch, row.arguments["dtype"]))
    exact, rough = (entry(slope)(one, x, y) for one in (model, coarse))
    cosine = F.cosine_similarity(exact[1].flatten(1), rough[1].flatten(1))
    signs = (exact[1].sign() == rough[1].sign()).flatten(1).double().mean(1)
    change = (exact[0] - rough[0]).abs().amax(1) / exact[0].std(dim=1)
    values = {"cosine": cosine.tolist(), "same sign": signs.tolist(), "change": change.tolist()}
    return Outcome({"same class": (exact[0].argmax(1) == rough[0].argmax(1)).tolist()}, values=values)


def in_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model whose denoisers compute in another type."""
    from rdc.denoise.edm import EDM
    from rdc.denoise.multihead import MultiHead

    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, (EDM, MultiHead)):
            module.to(dtype)
    return found


def slope(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and the gradients of the margin, in float64."""
    from rdc.attack.losses import margin
    from rdc.door import Door

    with Door(model) as door:
        point = x.requires_grad_()
        logits = door(point, y)
        (gradient,) = torch.autograd.grad(margin(logits, y).sum(), point)
    return logits.detach().double(), gradient.double()


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builder of its model."""
    return [attack.builder(row.model)]


def toy(row: Row) -> Row:
    """Return a row at toy size: two digits."""
    return replace(attack.toy(replace(row, task="attack")), task="precision")
