"""What a campaign on the papers' data needs, and what it costs on this machine, before it starts."""

__all__ = ["evaluations", "files_of", "forecast"]

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rdc.denoise.published import load_denoiser
from rdc.experiments._paper import ORIGINS, TRAINED
from rdc.models.user import names_user_model
from rdc.runs.cell import Row
from rdc.tasks.sampled import steps_of

#: A forward and a backward pass, in forward passes.
GRADIENT = 3
FILES = ("denoiser", "unconditional", "classifier", "reference", "features")
KINDS = (".safetensors", ".pt", ".npz", ".py")
#: Runs of APGD or searches in a version of AutoAttack, in gradients a step; its 5 000 queries cost a forward pass each.
RUNS = {"standard": 1 + 9 + 9, "rand": 2 * 20, "custom": 1}
QUERIES = {"standard": 5000}


def files_of(rows: Sequence[Row]) -> list[Path]:
    """The files that the options and arguments of some rows name, that of a module of the reader among them."""
    named = [str(given[name]) for row in rows for given in (row.options, row.arguments) for name in FILES if name in given]
    named = [f"{name.partition(':')[0].replace('.', '/')}.py" if names_user_model(name) else name for name in named]
    return [Path(name) for name in dict.fromkeys(named) if name.endswith(KINDS)]


def evaluations(row: Row, classes: int) -> float:
    """Return how many network evaluations an image of a row costs at most, with a gradient as three; roughly.

    The diffusion classifier evaluates each class at each level, likelihood maximisation takes a gradient a step, and so does an
    attack; images that are broken early cost less. Of samples it is those of a set, the gradient of a guide counted as one of the
    denoiser.
    """
    from rdc.models import options_of

    if row.task == "sampled":
        steps, guided = steps_of(row)
        return float(steps * (1 + (GRADIENT if guided else 0)))
    own = {name: option.default for name, option in options_of(row.model).items()} | dict(row.options)
    answer = float(classes * own.get("levels", 1) * own.get("draws", 1) * (2 if own.get("antithetic") else 1))
    moved = GRADIENT * own["steps"] if "lm" in own else 0
    if row.task == "certify":
        return answer * (row.arguments["n0"] + row.arguments["n"])
    through = GRADIENT if own.get("gradient") == "exact" else 1  # the attacker's gradient also goes through what moved the image
    return 2 * (answer + moved) + attacked(row.arguments, row.attack, answer + moved, GRADIENT * answer + through * moved)


def attacked(given: Mapping[str, Any], attack: str | None, forward: float, gradient: float) -> float:
    """The evaluations of an attack, given those of an answer and of a gradient."""
    if attack is None:
        return 0.0
    version = given.get("version", "custom")
    runs = RUNS[version] * max(1, len(given.get("attacks", ()))) if attack == "autoattack" else given.get("restarts", 1)
    return gradient * given.get("steps", 100) * runs + (forward * QUERIES.get(version, 0) if attack == "autoattack" else 0)


def forecast(name: str, rows: Sequence[Row], device: str | torch.device, seconds: float = 30.0) -> str | None:
    """Return what the rows of an experiment cost on this machine, in one line; None if they name no file of a denoiser.

    Arguments:
        name: Of the experiment.
        rows: Its rows.
        device: Where they shall run.
        seconds: How long to measure the speed of the denoisers.

    Raises:
        ValueError: if files are missing, with their names and what to do, in one line.
    """
    files = files_of(rows)
    if not files:
        return None
    if missing := [str(path) for path in files if not path.exists()]:
        where: dict[str, list[str]] = {}
        for file in missing:
            where.setdefault(ORIGINS.get(file, TRAINED), []).append(file)
        told = "; ".join(f"{' and '.join(names)} ({origin})" for origin, names in where.items())
        raise ValueError(f"{name} needs {told}, in this folder")
    total, taken = 0.0, 0.0
    denoisers = dict.fromkeys(str(row.options["denoiser"]) for row in rows if "denoiser" in row.options)
    for file in denoisers:
        denoiser = load_denoiser(file, device)
        speed = measured(denoiser, torch.device(device), seconds / len(denoisers))
        mine = [row for row in rows if row.options.get("denoiser") == file]
        needed = sum(row.n * evaluations(row, denoiser.num_classes or 10) for row in mine)
        total, taken = total + needed, taken + needed / speed
    hours = f"{taken / 3600:,.0f} hours at {total / taken:,.1f} a second on this machine"
    return f"{name}: {total:.3g} network evaluations at most, {hours}"


def measured(denoiser: Any, device: torch.device, seconds: float) -> float:
    """Return the network evaluations a second."""
    batch = 4 if device.type == "cpu" else 256
    z = torch.zeros(batch, *denoiser.shape, dtype=torch.float32, device=device)
    label = torch.zeros(batch, dtype=torch.int64, device=device) if denoiser.num_classes else None
    done, begin = 0, 0.0
    with torch.no_grad():
        denoiser(z, 0.5, label)
        begin = time.perf_counter()
        while not done or time.perf_counter() - begin < seconds:
            denoiser(z, 0.5, label).sum().item()
            done += batch
    return done / (time.perf_counter() - begin)
