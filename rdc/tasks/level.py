"""The task *level*: is a classifier of noisy images right about the images of a cell, and under attack?"""

__all__ = ["level", "roots", "toy", "weights"]

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rdc.attack.pgd import pgd
from rdc.data import Images, load
from rdc.evaluate.audit import audit
from rdc.evaluate.robustness import predict
from rdc.guide.classifier import AtLevel, classifier_file, load_classifier
from rdc.guide.named import CLASSIFIERS
from rdc.guide.threat import Threat, level_outcomes
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import aligned, guided


def level(cell: Cell, device: str = "cpu") -> Outcome:
    """Say of each image whether the classifier is right: ``clean``, and ``trained`` after the attack of the training.

    Arguments: ``sigma``, the noise level; ``threat``, those of :class:`rdc.guide.threat.Threat`. With ``pgd``, its steps and
    restarts, images are attacked in blocks of ``group``, each with a noise of its own that the attacker knows: then ``clean`` and
    ``robust`` are at that noise. The attacker changes the clean image, in [0, 1], by half the radius of the threat. With
    ``audit`` PGD is audited on these images in the place of that: its checks are ``words``.

    The model is a classifier of :mod:`rdc.guide.named`, ``trained``, or ``exact posterior``, Bayes' rule for the training images.

    Raises:
        ValueError: if a cell is no block of images.
    """
    row, given = cell.row, cell.row.arguments
    images, group, threat = load(row.data)[cell.start : cell.stop], cell.start // given["group"], Threat(**given["threat"])
    if cell.start % given["group"] or len(cell) > given["group"]:
        raise ValueError(f"the images {cell.start} to {cell.stop} are no block of {given['group']}")
    if given.get("audit"):
        return checked(row, images, group, radius(threat, given["sigma"]) / 2, device)
    exact = row.model == "exact posterior"
    model = aligned.exact(row.data, device, torch.float32).log_density if exact else network(row, device)
    _, clean, right = level_outcomes(model, images, given["sigma"], threat, group, 25 if exact else 200, device)
    found = {"clean": clean.tolist(), "trained": right.tolist()}
    return Outcome(found | (by_pgd(row, images, group, radius(threat, given["sigma"]) / 2, device) if "pgd" in given else {}))


def by_pgd(row: Row, images: Images, group: int, eps: float, device: str) -> dict[str, list[bool]]:
    """Return who is right at one noise, clean and under PGD."""
    x, y = images.x.to(device), images.y.to(device)
    model = AtLevel(network(row, device), row.arguments["sigma"], group)
    x_adv = pgd(model, x, y, norm="L2", eps=eps, seed=group, **row.arguments["pgd"])
    clean, robust = (predict(model, points) == y for points in (x, x_adv))
    return {"clean": clean.tolist(), "robust": (clean & robust).tolist()}


def checked(row: Row, images: Images, group: int, eps: float, device: str) -> Outcome:
    """Return the checks of an audit of PGD; the surrogate is the vanilla classifier, or the robust one for that."""
    x, y, sigma = images.x.to(device), images.y.to(device), row.arguments["sigma"]
    model, rival = (AtLevel(network(r, device), sigma, group) for r in (row, rival_of(row)))
    steps = row.arguments["pgd"]["steps"]
    report = audit(model, x, y, "L2", eps, steps=steps, surrogate=rival, queries=50, everything=True)
    failed = sum(one.verdict == "fail" for one in report.rows)
    return Outcome({}, counts={"failed": failed}, words={one.name: f"{one.verdict}: {one.reason}" for one in report.rows})


def rival_of(row: Row) -> Row:
    """Return the row of the surrogate of an audit: of a classifier that was trained on the spot that classifier itself."""
    other = replace(row, model="robust" if row.model == "vanilla" else "vanilla", options={})
    return row if row.model == "trained" else other


def radius(threat: Threat, sigma: float) -> float:
    """Return the radius of a threat at a level, model units."""
    return float(threat.radius_at(torch.tensor(sigma, dtype=torch.float64, device="cpu")))


def network(row: Row, device: str) -> Any:
    """Return the classifier of a row."""
    own = row.model == "trained" or "training seed" in row.options
    path = guided.source(replace(row, model="trained")) if own else classifier_file(row.model, row.data)
    return load_classifier(path, device)


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    return guided.of_guide(row) | (guided.of_guide(rival_of(row)) if row.arguments.get("audit") else {})


def toy(row: Row) -> Row:
    """Return a row at toy size: the classifier of a short training, PGD of one step, two digits, or ten for an audit."""
    n = 10 if row.arguments.get("audit") else 2
    given: Mapping[str, Any] = {**row.arguments, "sigma": 0.3, "group": n}
    given = {**given, "pgd": {"steps": 1, "restarts": 1}} if "pgd" in given else given
    own = guided.TRAINED if row.model in (*CLASSIFIERS, "trained") else {}
    return replace(row, model="trained" if own else row.model, options=own, arguments=given, data="digits", n=n, block=n)
