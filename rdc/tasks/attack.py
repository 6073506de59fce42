"""The task *attack*: which images of a cell does a model keep under an attack, and which before it?"""

__all__ = ["ATTACKS", "attack", "make_attack", "roots", "toy", "weights"]

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from rdc.runs.cell import Cell, Outcome, Row

#: Attacks by name, and the function behind each.
ATTACKS = {
    "pgd": "rdc.attack.pgd:pgd",
    "autoattack": "rdc.attack.autoattack:autoattack",
    "square": "rdc.attack.blackbox:square",
    "stadv": "rdc.attack.stadv:stadv",
    "feature": "rdc.attack.feature:feature",
    "lagrange": "rdc.attack.lagrange:lagrange",
}
#: What a toy run has in place of the real sizes: of arguments of attacks, and of options of models.
TOY = {"steps": 1, "restarts": 1, "queries": 2, "eot": 1, "targets": 0}
TOY_OPTIONS = {"levels": 2, "steps": 1, "count": 2, "draws": 2}


def attack(cell: Cell, device: str = "cpu") -> Outcome:
    """Attack the images of a cell, and say which are right: ``clean``, and ``robust`` after the attack.

    Of a randomised model these are by the majority of 20 fresh verdicts, and ``robust once``, ``robust resubmit`` and
    ``robust known`` follow the other protocols (:mod:`rdc.evaluate`). With the argument ``on``,
    ``{"model": ..., "options": ...}``, another model is attacked, and this one judges. For likelihood maximisation
    ``displacement L2`` and ``displacement Linf`` are
    the mean changes of clean images, in image units.
    """
    from rdc.evaluate.robustness import judged

    row = cell.row
    x, y, index = test_images(row.data, cell.start, cell.stop, device)
    model, arguments = made(row.model, row.data, device, key(row.options)), dict(row.arguments)
    other = arguments.pop("on", None)
    attacks: dict[str, Any] = {}
    if row.attack is not None:
        attacks[row.attack] = make_attack(row.attack, row.data, device, arguments)
        if other is not None:
            rival = made(other["model"], row.data, device, key(other.get("options", {})))
            attacks[row.attack] = partial(on_another, attacks[row.attack], rival)
    rows = judged(model, x, y, attacks, seed=row.seed, index=index, block=row.block)
    return Outcome(verdicts(rows), displacement(model, x, row.seed))


def test_images(data: str, start: int, stop: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return some test images, their labels and indices.

    Raises:
        ValueError: if the data set has fewer.
    """
    from rdc.data import load

    test = load(data, "test")
    if stop > len(test):
        raise ValueError(f"{data} has {len(test)} test images, not {stop}")
    return test.x[start:stop].to(device), test.y[start:stop].to(device), torch.arange(start, stop, device="cpu")


@cache
def made(model: str, data: str, device: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    """Build a model once in a process."""
    from rdc.models import build

    return build(model, data, device, **dict(options))


def key(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return options as something that can be a key."""
    return tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items()))


def make_attack(name: str, data: str, device: str, arguments: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Return an attack by name, with its arguments bound.

    Of ``lagrange`` the argument ``penalty``, ``{"denoiser": ..., "levels": ..., "sigma_min": ...}``, is the diffusion loss that
    it keeps small. The targets of ``feature`` are training images, so that they do not depend on the images of a cell.

    Raises:
        ValueError: if there is no such attack, or it has no such argument.
    """
    function, given = attack_function(name), dict(arguments)
    if unknown := sorted(given.keys() - inspect.signature(function).parameters.keys()):
        raise ValueError(f"{name} has no argument {', '.join(map(repr, unknown))}")
    if name == "lagrange":
        given["penalty"] = lagrange_penalty(data, device, **given["penalty"])
    if name == "feature":
        return partial(towards_training_images, function, data, **given)
    return partial(function, **given)


def attack_function(name: str) -> Callable[..., Tensor]:
    """Return the function of an attack.

    Raises:
        ValueError: if there is none.
    """
    import importlib

    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; there are {', '.join(ATTACKS)}")
    module, _, attribute = ATTACKS[name].partition(":")
    function: Callable[..., Tensor] = getattr(importlib.import_module(module), attribute)
    return function


def lagrange_penalty(data: str, device: str, denoiser: str, levels: int, sigma_min: float) -> Callable[[Tensor], Tensor]:
    """Return the diffusion loss of a denoiser."""
    from rdc.classify.diffusion_loss import diffusion_loss
    from rdc.models.parts import find_denoiser
    from rdc.schedule import levels as levels_of

    return diffusion_loss(
        find_denoiser(denoiser, data, torch.device(device)), levels_of("elbo", levels, sigma_min=sigma_min)
    )  # fmt: skip


def towards_training_images(
    function: Callable[..., Tensor], data: str, model: nn.Module, x: Tensor, y: Tensor, seed: int, index: Tensor, **own: Any
) -> Tensor:
    """Run an attack towards a training image of another class for each image, drawn by seed and index."""
    from rdc.data import load
    from rdc.rng import randint

    train, chosen = load(data, "train"), []
    for label, i in zip(y.tolist(), index.tolist(), strict=True):
        others = (train.y != label).nonzero()[:, 0]
        chosen.append(others[randint(len(others), (), "feature target", seed, i)])
    targets = train.x[torch.stack(chosen)].to(x.device)
    return function(model, x, y, target_images=targets, seed=seed, index=index, **own)


def on_another(function: Callable[..., Tensor], rival: nn.Module, model: nn.Module, *images: Tensor, **own: Any) -> Tensor:
    """Attack ``rival`` in place of ``model``."""
    return function(rival, *images, **own)


def verdicts(rows: list[dict[str, Any]]) -> dict[str, list[bool]]:
    """Return the outcomes of the rows of :func:`rdc.evaluate.robustness.judged`."""
    from rdc.evaluate.protocols import Verdict

    clean = [2 * row["verdict"]["wrong"] < row["verdict"]["draws"] for row in rows]
    found = {"clean": clean, "robust": [row["right"]["draws"] for row in rows]}
    if any(row["verdict"]["draws"] > 1 for row in rows):
        unattacked = [Verdict(*(row["verdict"][f] for f in ("once", "wrong", "draws", "known"))).right() for row in rows]
        for name in ("once", "resubmit", "known"):
            if all(name in row["right"] for row in rows):
                found[f"clean {name}"] = [right[name] for right in unattacked]
                found[f"robust {name}"] = [row["right"][name] for row in rows]
    return found


def displacement(model: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    """Return how far likelihood maximisation moves clean images, if the model has one; noise that is fresh is that of a seed."""
    from rdc.evaluate.robustness import by_place
    from rdc.randomness import known_noise

    move = getattr(model, "lm", None)
    if move is None:
        return {}
    move = known_noise(move, seed) if getattr(move, "noise", None) == "fresh" else move
    with torch.no_grad():
        moved = torch.cat([move(part) for part in x.split(1 if by_place(model) else len(x))])  # as they are judged
        change = (moved - x).double().flatten(1)
    return {
        "displacement L2": float(change.norm(dim=1).mean()),
        "displacement Linf": float(change.abs().amax(dim=1).mean()),
    }


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builders of its models, and its attack."""
    models = [row.model, *([row.arguments["on"]["model"]] if "on" in row.arguments else [])]
    return [*map(builder, models), *([] if row.attack is None else [ATTACKS[row.attack]])]


def builder(model: str) -> str:
    """Return where the function that makes a model is."""
    from rdc.models import entry

    make = entry(model).make
    make = getattr(make, "func", make)
    return f"{make.__module__}:{make.__qualname__}"


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    from rdc.models.weights import checkpoints_of

    found = dict(checkpoints_of(row.model, row.data, row.options))
    if "on" in row.arguments:
        other = row.arguments["on"]
        found |= checkpoints_of(other["model"], row.data, other.get("options", {}))
    if row.attack == "lagrange":
        found |= checkpoints_of("dc", row.data, {"denoiser": row.arguments["penalty"]["denoiser"]})
    return found


def toy(row: Row) -> Row:
    """Return a row at toy size: at most two digits, one step, two levels."""
    from rdc.models import options_of

    known = options_of(row.model)
    fewer = {*row.options, *({"levels", "steps"} & known.keys())}
    own = {**row.options, **{name: value for name, value in TOY_OPTIONS.items() if name in fewer}}
    own |= {name: "single-head" for name in ("denoiser", "unconditional") if str(own.get(name)).endswith(".safetensors")}
    given = {**row.arguments, **{name: value for name, value in TOY.items() if name in row.arguments}}
    given |= {"version": "custom", "attacks": ["apgd-dlr"]} if given.get("version") == "standard" else {}
    n = 1 if own.get("noise") == "fresh" else 2  # each is judged twenty times
    return replace(row, data="digits", n=n, start=0, block=n, options=own, arguments=given)
