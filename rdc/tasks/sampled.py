"""The task *sampled*: how good are images of a published denoiser that a published classifier guides? A unit is a whole set.

What the paper printed is measured in the features of Inception, against a set of real images; both are files of the reader.
Images are kept in blocks, so that a run that was stopped continues, and can be looked at.
"""

__all__ = ["roots", "sampled", "steps_of", "toy", "weights"]

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise.base import fast_dtype
from rdc.denoise.checkpoints import locate
from rdc.denoise.published import load_denoiser
from rdc.guide.classifier import classifier_file, load_classifier
from rdc.guide.guides import ClassifierGuide
from rdc.guide.metrics import FeatureNetwork, frechet_distance, precision_recall
from rdc.guide.plan import SamplingPlan, vp_path
from rdc.guide.published import load_published_classifier
from rdc.guide.sampling import sample
from rdc.models.user import load_user_model, names_user_model
from rdc.models.weights import checkpoints_of, file_digest
from rdc.rng import whole
from rdc.runs.cell import Cell, Outcome, Row
from rdc.runs.record import write_atomic
from rdc.tasks.guided import labels

BLOCK, BATCH = 500, 100  # images of a file; those that are drawn together
FEW = 10_000  # precision and recall take no more


def sampled(cell: Cell, device: str = "cpu") -> Outcome:
    """Make images by the chain of the paper, and measure them: ``frechet``, and ``precision`` and ``recall`` of the first 10 000.

    Options: ``denoiser`` and ``classifier`` (files; without the latter nobody guides), ``scale``, ``steps``. Arguments:
    ``images`` of a set, ``reference``, a data set or an ``.npz`` file with images ``arr_0`` ``(N, H, W, C)`` in bytes,
    ``features``, a network of the reader (``module:function``) or one of the book, and ``folder``, where images are kept. The
    variance of a step is that of DDPM: what some networks have learned of it is not read.
    """
    given, rows = cell.row.arguments, []
    features = network(given["features"], cell.row.data, device)
    real = torch.cat([features(part.to(device)) for part in real_images(given["reference"])])
    for number in range(cell.start, cell.stop):
        made = torch.cat([features(x.to(device).float() / 255) for x in blocks(cell.row, number, device)])
        both = precision_recall(real[:FEW], made[:FEW])
        rows.append((frechet_distance(real, made), both.precision.value, both.recall.value))
    names = ("frechet", "precision", "recall")
    return Outcome({}, values={name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def blocks(row: Row, number: int, device: str) -> Iterator[Tensor]:
    """Yield the images of a set in bytes, made if they are not there."""
    n = row.arguments["images"]
    key = hashlib.blake2b(f"{row.options} {of_images(row)} {number} {n}".encode(), digest_size=8).hexdigest()
    for start in range(0, n, BLOCK):
        seeds = range(n * number + start, n * number + min(n, start + BLOCK))
        if "folder" not in row.arguments:
            yield drawn(row, seeds, start, device)
            continue
        path = Path(row.arguments["folder"], key, f"{start:06d}.safetensors")
        if not path.exists():
            write_atomic(path, save({"x": drawn(row, seeds, start, device).cpu()}))
        yield load_file(path)["x"]


def drawn(row: Row, seeds: range, first: int, device: str) -> Tensor:
    """Return images in bytes, whose classes take turns from that of ``first`` on."""
    own = row.options
    denoiser = load_denoiser(own["denoiser"], device, fast_dtype(device))
    y = labels(first + len(seeds), denoiser.num_classes)[first:].to(device)
    guide = None if own.get("classifier") is None else ClassifierGuide(classifier(own["classifier"], device))
    plan = SamplingPlan(vp_path(own["steps"]), "ancestral", "ddpm", "posterior", clip=True)
    return (255 * sample(denoiser, y, seeds, plan, guide, own["scale"], BATCH).x).round().byte()


def classifier(name: str, device: str) -> Any:
    """Return a time-dependent classifier in float32: a state dict of guided-diffusion, or one of this package."""
    return load_published_classifier(name, device) if name.endswith(".pt") else load_classifier(name, device)


def network(name: str, data: str, device: str) -> Any:
    """Return what makes features of images in [0, 1]: a reader's network, or the last layer of a reference network."""
    if not names_user_model(name):
        return FeatureNetwork(name, reference_network(name, data, device))
    own = load_user_model(name, torch.device(device))

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([own(part).flatten(1).double() for part in x.split(BATCH)])

    return features


def real_images(name: str) -> Iterator[Tensor]:
    """Yield the images of a data set's test split, or of an ``.npz`` file, in [0, 1]."""
    if not name.endswith(".npz"):
        yield from load(name).x.split(BLOCK)
        return
    with np.load(name, allow_pickle=False) as file:
        stored = file["arr_0"]
    for start in range(0, len(stored), BLOCK):
        yield torch.from_numpy(stored[start : start + BLOCK]).movedim(3, 1).float() / 255


def steps_of(row: Row) -> tuple[int, bool]:
    """Return how many steps the images of a row take, all together, and whether each has the gradient of a guide."""
    return whole(row.arguments["images"]) * whole(row.options["steps"]), row.options.get("classifier") is not None


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the files that a row uses, by name; a file that is not here is ``missing``."""
    return {**of_images(row), **checkpoints_of(row.arguments["features"], row.data, {})}


def of_images(row: Row) -> dict[str, str]:
    """Return the hashes of the files that the images of a row are made with, by name."""
    guide = row.options.get("classifier")
    denoiser = Path(row.options["denoiser"])
    files = [denoiser if denoiser.suffix else locate(denoiser)] + ([classifier_file(guide)] if guide else [])
    return {path.stem: file_digest(path) if path.exists() else "missing" for path in files}


def toy(row: Row) -> Row:
    """Return a row at toy size: five steps of ten pieces of clothing, guided by a shipped classifier if it is guided."""
    guide = None if row.options.get("classifier") is None else "fashion-mini-robust"
    own = {"denoiser": "fashion-mini", "classifier": guide, "steps": 5, "scale": float(row.options["scale"] > 0)}
    given = {"images": 10, "reference": "fashion-mini", "features": "cnn"}
    return replace(row, model="guided" if guide else "none", options=own, arguments=given, data="fashion-mini", n=1, block=1)
