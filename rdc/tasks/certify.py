"""The task *certify*: counts behind the certificates of some images, by randomized smoothing of a base classifier."""

__all__ = ["asked", "base", "certify", "evaluations", "passes", "roots", "toy", "weights"]

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rdc.certify.monte_carlo import Draws, takes_index
from rdc.certify.smoothing import Settings, fixed, stopped
from rdc.door import Door
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack

#: Options of a model as a key.
Options = tuple[tuple[str, Any], ...]
#: What a toy run has in place of the real sizes: of options of models, and of arguments.
TOY_OPTIONS = {"levels": 6, "first": 2, "denoiser": "optimal"}  # six: the released form leaves out five
TOY = {"n0": 4, "n": 20, "known": 18, "target": 0.05, "calibrate": 2}


def certify(cell: Cell, device: str = "cpu") -> Outcome:
    """Count how often the smoothed class of each image is answered.

    Arguments of the row: ``sigma``, ``n0``, ``n`` and ``alpha`` as of ``rdc.certify.certify``. ``candidate`` is the class
    that the first ``n0`` draws chose, ``k`` how often it came in ``n`` others; ``right``, whether it is the true class and
    certified at a radius above 0; ``candidate right``, whether it is the true class.

    With ``target`` and ``stopping`` the draws stop as soon as it is clear whether that radius is reached, which ``met`` says;
    they stop at ``known``, too, where there may be more. There is no ``met`` if the question is open then, and ``n`` is all that
    may be made.
    """
    given, (x, y, index) = dict(cell.row.arguments), attack.test_images(cell.row.data, cell.start, cell.stop, device)
    known, model = given.pop("known", None), base(cell.row.model, attack.key(cell.row.options), cell.row.data, device)
    settings = Settings.of(
        given["sigma"], given["n0"], given["n"], given["alpha"], cell.row.seed, given.get("target"),
        given.get("stopping", "sequence"), 0.01, 500,
    )  # fmt: skip
    before, found = evaluations(model), []
    with Door(model, checked=False, attacked=False) as door:
        for image, i in zip(x, index.tolist(), strict=True):
            found.append(one(Draws(door, image[None], [i], settings.sigma, settings.seed, settings.batch), settings, known))
    chosen, sure = [one["candidate"] == label for one, label in zip(found, y.tolist(), strict=True)], [*map(certain, found)]
    bits = {"right": [a and b for a, b in zip(chosen, sure, strict=True)], "candidate right": chosen}
    return Outcome(bits, {"passes": passes(model, before)}, values={name: [one[name] for one in found] for name in found[0]})


def certain(found: dict[str, Any]) -> bool:
    """Take out whether an image is certified at all."""
    return bool(found.pop("certified"))


def one(draws: Draws, settings: Settings, known: int | None) -> dict[str, Any]:
    """Return the candidate of an image, its count, the draws, whether it is certified; with a target, whether that is met."""
    *_, (_, votes) = draws.tallies([(0, 0, settings.n0)])
    candidate, plan = int(votes[0].argmax()), settings.plan
    rounds = fixed(draws, [candidate], settings) if plan is None else stopped(draws, [candidate], settings, plan)
    looks = None if plan is None or known is None else sum(look <= known for look in plan.looks)
    for look, (_, (state,)) in enumerate(rounds, 1):
        k, n, low, met = state
        if plan is not None and look == looks and not met and not plan.futile(k, look - 1):
            return {"candidate": candidate, "k": None, "n": settings.n, "met": None, "certified": low > 0.5}
    answer = {} if plan is None else {"met": float(bool(met))}
    return {"candidate": candidate, "k": k, "n": n, **answer, "certified": low > 0.5}


@cache
def base(model: str, options: Options, data: str, device: str) -> nn.Module:
    """Build a base classifier once in a process."""
    from rdc.models import base_classifier

    return base_classifier(model, data, device, **dict(options))


def evaluations(model: nn.Module) -> tuple[int, int]:
    """Return the evaluations that a cascade or race has spent, and the images that it has seen, so far."""
    return int(getattr(model, "spent", 0)), int(getattr(model, "seen", 0))


def passes(model: nn.Module, before: tuple[int, int]) -> float:
    """Return the evaluations of the denoisers for a noisy image; of a cascade or race the mean over those since ``before``."""
    if hasattr(model, "spent"):
        spent, seen = (now - then for now, then in zip(evaluations(model), before, strict=True))
        return spent / seen if seen else math.nan
    inner: Any = getattr(model, "network", None)
    return float(getattr(model, "evaluations", getattr(inner, "evaluations", int(hasattr(model, "denoiser")))))


def asked(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
    """Return the logits of noisy images, whose numbers ``index`` go to a classifier that derives noise from them."""
    with torch.no_grad():
        logits: Tensor = model(x, index=index) if takes_index(model) else model(x)
    return logits


def models_of(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    """Return names and options of all models of a row."""
    others = [row.arguments[name] for name in ("reference", "draws of") if row.arguments.get(name)]
    return [(row.model, row.options), *((other["model"], other.get("options", {})) for other in others)]


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builders of its models."""
    return [attack.builder(model) for model, _ in models_of(row)]


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    from rdc.models.weights import checkpoints_of

    return {k: v for model, options in models_of(row) for k, v in checkpoints_of(model, row.data, options).items()}


def toy(row: Row) -> Row:
    """Return a row at toy size: two digits, six levels, a few draws."""

    def small(model: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if model == "race":  # its rounds were learned for other images
            return "cascade", {"sigma": 0.25, "levels": 2, "fast": "optimal", "slow": "optimal"}
        if model in ("cohen", "carlini"):  # trained on the spot
            return ("cnn", {}) if model == "cohen" else (model, {**options, "network": "cnn"})
        if model == "cascade":
            options = {**options, "fast": "optimal", "slow": "optimal"}
        return model, {**options, **{name: value for name, value in TOY_OPTIONS.items() if name in options}}

    model, options = small(row.model, row.options)
    given = {**row.arguments, **{name: value for name, value in TOY.items() if name in row.arguments}}
    for name in ("reference", "draws of"):
        if given.get(name):
            given[name] = dict(zip(("model", "options"), small(given[name]["model"], given[name]["options"]), strict=True))
    given |= {"images": "test"} if "images" in given else {}
    return replace(row, model=model, options=options, data="digits", n=2, start=0, block=2, arguments=given)
