"""The task *guided*: how good are images that a guide helped to make? Its "images" are repetitions with other seeds.

A row says in ``model`` who guides: a name of :mod:`rdc.guide.named`, ``trained`` for a short training, or ``real images``, which
are measured in the place of generated ones. Two rows with the same ``first`` share all noise: their differences are paired.
"""

__all__ = ["guided", "labels", "of_guide", "of_judges", "roots", "short", "source", "toy", "weights"]

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rdc.data import Images, load
from rdc.data.unseen import unseen
from rdc.denoise.base import fast_dtype
from rdc.denoise.checkpoints import load_denoiser, locate
from rdc.guide.named import CLASSIFIERS, checkpoint_files, load_guide
from rdc.guide.plan import PLANS
from rdc.guide.sampling import sample
from rdc.models.weights import checkpoints_of, digest_of
from rdc.runs.cell import Cell, Outcome, Row
from rdc.train.guide_recipes import short_guide
from rdc.train.judges import REFERENCE, balanced, judges, measure

APART, BATCH = 10_000, 100  # seeds between two repetitions; images that are drawn together
TRAINED = {"threat": None, "training seed": 0, "steps": 1, "batch": 2}


def guided(cell: Cell, device: str = "cpu") -> Outcome:
    """Make images with a guide, and measure each repetition by :data:`rdc.train.judges.METRICS`.

    Options: ``scale``, ``plan`` (one of :data:`rdc.guide.plan.PLANS`), ``conditional`` (whether the denoiser knows the class),
    ``dtype`` of the networks, by default the fast one; of real images ``split``, see ``real``. Arguments: ``images`` of a
    repetition, ``first``, the first seed of the first repetition, and ``judges``.
    """
    row, given = cell.row, cell.row.arguments
    by, n = judges(given["judges"], row.data, device), given["images"]
    each = []
    for repeat in range(cell.start, cell.stop):
        if row.model == "real images":
            images = real(row.options["split"], row.data)
            index = balanced(images.y, n, repeat)
            x, y = images.x[index], images.y[index]
        else:
            first, y = given["first"] + APART * repeat, labels(n)
            x = drawn(row, range(first, first + n), y, device)
        each.append(measure(by, x.to(device), y.to(device)))
    return Outcome({}, values={name: [one[name] for one in each] for name in each[0]})


def drawn(row: Row, seeds: range, y: Tensor, device: str = "cpu") -> Tensor:
    """Return guided images, rounded to bytes as real ones are, in [0, 1]."""
    own = row.options
    dtype = getattr(torch, own["dtype"]) if "dtype" in own else fast_dtype(device)
    plan = replace(PLANS[own["plan"]], conditional=own["conditional"])
    guide = load_guide(source(row, device), row.data, dtype, device)
    denoiser = load_denoiser(row.data, device, dtype)
    x = sample(denoiser, y.to(device), seeds, plan, guide, own["scale"], BATCH).x
    return (255 * x).round() / 255


def source(row: Row, device: str = "cpu") -> str:
    """Return the name of a guide, or the file of a short training, which is done if it must be."""
    return str(short_guide(row.data, **short(row.options), device=device)) if row.model == "trained" else row.model


def short(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a short training, as arguments of :func:`rdc.train.guide_recipes.short_guide`."""
    return {name.removeprefix("training "): options[name] for name in TRAINED}


def labels(n: int, classes: int = 10) -> Tensor:
    """Return wanted classes, which take turns."""
    return torch.arange(n, device="cpu") % classes


def real(split: str, data: str) -> Images:
    """Return the images of a split; of ``unseen`` the first test images of Fashion-MNIST that are not in ``fashion-mini``."""
    return unseen(8_000) if split == "unseen" else load(data, split)


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name; those of judges that are trained on the spot have none."""
    return of_guide(row) | of_judges(row, *REFERENCE)


def of_guide(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints of a guide and of the denoiser that it guides, by name."""
    files = checkpoint_files(row.model, row.data)
    if "plan" in row.options:
        files[locate(row.data)] = "denoiser"
    return {path.stem: digest_of(path, kind) for path, kind in files.items()}


def of_judges(row: Row, *roles: str) -> dict[str, str]:
    """Return the hashes of the reference networks that judge a row in some roles, by name."""
    if row.arguments.get("judges") != "reference":
        return {}
    return {name: found for role in roles for name, found in checkpoints_of(REFERENCE[role], row.data, {}).items()}


def toy(row: Row) -> Row:
    """Return a row at toy size: one repetition of a few digits, at the scale 1, and a guide that was trained for one step."""
    own: dict[str, Any] = {"split": "test"}
    if row.model != "real images":
        own = {"plan": "heun", "conditional": row.options["conditional"], "dtype": "float32"}
        own["scale"] = float(row.options["scale"] > 0)
    model = "trained" if row.model in CLASSIFIERS else row.model
    own |= TRAINED if model == "trained" else {}
    given = {**row.arguments, "images": 4 if model == "diffusion classifier" else 10, "judges": "reference"}
    return replace(row, model=model, options=own, arguments=given, data="digits", n=1)
