"""The task *ood*: how likely are corrupted images, against clean ones, and how often is a classifier right about them?"""

__all__ = ["ood", "roots", "shown", "toy", "weights"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack

weights = attack.weights
LEVELS, LOWEST = 8, 0.1  # of the bound, and of the closed form; model units


def ood(cell: Cell, device: str = "cpu") -> Outcome:
    """Show a model the images of a cell, corrupted.

    Arguments: ``corruption``, a name of :mod:`rdc.data.corruptions`, ``none``, or ``digits``, the images of that data set at the
    size of these; ``severity``. A classifier is ``right`` or not. Of a flow (``sbgc``) with the argument ``reference``, ``[start,
    stop]`` of clean test images, there are bits per dimension without a label, ``flow``, and ``elbo``, those of the bound with
    eight levels, and of the optimal denoiser ``exact``, all of the density at a noise of 0.1; the ``rank`` of each is the share
    of the reference images that have fewer bits (half of equal ones): its mean is the AUROC.
    """
    row, given = cell.row, dict(cell.row.arguments)
    x, y = shown(row.data, given["corruption"], given.get("severity", 0), cell.start, cell.stop, row.seed, device)
    model = attack.made(row.model, row.data, device, attack.key(row.options))
    if "reference" not in given:
        from rdc.evaluate import predict

        return Outcome({"right": (predict(model, x) == y).tolist()})
    known = of_reference(row.model, row.data, device, attack.key(row.options), *given["reference"])
    found = bits(model, x)
    ranks = {f"{name} rank": rank(value, known[name]) for name, value in found.items()}
    return Outcome({}, values={name: [round(float(v), 6) for v in value] for name, value in {**found, **ranks}.items()})


def shown(data: str, corruption: str, severity: int, start: int, stop: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Return test images as a model sees them, and their labels."""
    from rdc.data.corruptions import corrupt

    if corruption == "digits":
        x, y, _ = attack.test_images("digits", start, stop, device)
        side = attack.test_images(data, 0, 1, device)[0].shape[-2:]
        return F.interpolate(x, size=side, mode="bilinear", align_corners=False).clamp(0, 1), y
    x, y, index = attack.test_images(data, start, stop, device)
    return (x if corruption == "none" else corrupt(x, corruption, severity, index.tolist(), seed)), y


def bits(model: nn.Module, x: Tensor) -> Mapping[str, Tensor]:
    """Return the bits per dimension of images, without a label, by name."""
    from rdc.classify.diffusion_loss import diffusion_loss
    from rdc.classify.flow import FlowClassifier, bits_per_dimension, normal
    from rdc.denoise.optimal import OptimalDenoiser
    from rdc.schedule import levels

    if not isinstance(model, FlowClassifier):
        raise ValueError("only a flow has bits per dimension; the model is sbgc")
    n, denoiser = x[0].numel(), model.denoiser
    with torch.no_grad():
        flow = torch.cat([model.log_density(part)[:, 0] for part in x.split(model.chunk)])
        loss = diffusion_loss(denoiser, levels("elbo", LEVELS, sigma_min=LOWEST), model.seed)(x)
        entropy = normal(torch.full_like(x[:1], LOWEST), LOWEST)  # E log N(a eps; 0, a^2)
        found = {"flow": flow, "elbo": entropy - loss}
        if isinstance(denoiser, OptimalDenoiser):
            sizes = torch.tensor(denoiser.counts, dtype=x.dtype, device=x.device)
            found["exact"] = (denoiser.log_density(2 * x - 1, LOWEST) + (sizes / sizes.sum()).log()).logsumexp(dim=1)
    return {name: bits_per_dimension(value, n).cpu() for name, value in found.items()}


def rank(values: Tensor, known: Tensor) -> Tensor:
    """Return the share of ``known`` below each value; equal ones count half."""
    below, equal = values[:, None] > known, values[:, None] == known
    return (below.double() + 0.5 * equal.double()).mean(dim=1)


@cache
def of_reference(
    model: str, data: str, device: str, options: tuple[tuple[str, Any], ...], start: int, stop: int
) -> Mapping[str, Tensor]:
    """Return the bits of clean images, computed once in a process."""
    return bits(attack.made(model, data, device, options), attack.test_images(data, start, stop, device)[0])


def roots(row: Row) -> Sequence[str]:
    """Return what decides a row besides its task: the builder of its model."""
    return [attack.builder(row.model)]


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    arguments = {**row.arguments, "severity": 3 if row.arguments["severity"] else 0}
    arguments |= {"reference": [300, 302]} if "reference" in row.arguments else {}
    small = attack.toy(replace(row, arguments={}))
    return replace(small, arguments=arguments)
