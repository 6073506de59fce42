"""What a campaign on the papers' data needs, and what it costs on this machine, before it starts."""

__all__ = ["evaluations", "files_of", "forecast"]

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rdc.denoise.checkpoints import load_denoiser
from rdc.runs.cell import Row

#: A forward and a backward pass, in forward passes.
GRADIENT = 3
FILES = ("denoiser", "unconditional")
#: Runs of APGD or searches in a version of AutoAttack, in gradients a step; its 5 000 queries cost a forward pass each.
RUNS = {"standard": 1 + 9 + 9, "rand": 2 * 20, "custom": 1}
QUERIES = {"standard": 5000}


def files_of(rows: Sequence[Row]) -> list[Path]:
    """The files of denoisers that the options of some rows name."""
    named = (str(row.options[name]) for row in rows for name in FILES if name in row.options)
    return [Path(name) for name in dict.fromkeys(named) if name.endswith(".safetensors")]


def evaluations(row: Row, classes: int) -> float:
    """Return how many network evaluations an image of a row costs at most, with a gradient as three; roughly.

    The diffusion classifier evaluates each class at each level, likelihood maximisation takes a gradient a step, and so does an
    attack; images that are broken early cost less.
    """
    from rdc.models import options_of

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
        seconds: How long to measure the speed of the first of the denoisers.

    Raises:
        ValueError: if files are missing, with their names and what to do, in one line.
    """
    files = files_of(rows)
    if not files:
        return None
    if missing := [str(path) for path in files if not path.exists()]:
        raise ValueError(
            f"{name} needs {' and '.join(missing)} in this folder: 'rdc convert' makes one from the .pkl of that name, "
            "published with Karras et al. (2022)"
        )
    denoiser = load_denoiser(files[0], device)
    total = sum(row.n * evaluations(row, denoiser.num_classes or 10) for row in rows)
    speed = measured(denoiser, torch.device(device), seconds)
    hours = f"{total / speed / 3600:,.0f} hours at {speed:,.1f} a second on this machine"
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
