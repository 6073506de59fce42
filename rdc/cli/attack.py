"""The commands ``rdc accuracy`` and ``rdc attack``: how often a classifier is right, and under attack."""

__all__ = ["RADII", "STANDARD", "accuracy_command", "attack_command"]

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from tyro.conf import arg

from rdc.cli.flags import ModelFlags, build_model, source_of, takes
from rdc.cli.images import order_of
from rdc.cli.options import Count, Data, Device, Model, Quiet, Start, first_images, pick_device, radius_of, tidy
from rdc.quantities import count

#: Options of each attack and their standard values, used where an option is left out.
STANDARD: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 20, "restarts": 1, "eot": 1, "loss": "margin", "targets": 0},
    "autoattack": {"steps": 100, "queries": 5000, "eot": 1},
    "stadv": {"steps": 100, "restarts": 1, "eot": 1, "loss": "margin"},
    "square": {"queries": 5000},
    "lagrange": {"steps": 20, "eot": 1, "loss": "margin"},
}
#: Standard radii in image units, those of AutoAttack's authors for CIFAR-10; for ``flow`` the bound of stadv, with the image
#: spanning [-1, 1].
RADII = {"Linf": "8/255", "L2": "0.5", "L1": "12", "flow": "0.05"}


def told(what: str, option: str) -> str:
    """Help of an option of the attacks, with its standard values: ``what; by default 20 for pgd, lagrange; 100 for stadv``."""
    values = [options[option] for options in STANDARD.values() if option in options]
    parts = [
        f"{value} for {', '.join(name for name, options in STANDARD.items() if options.get(option) == value)}"
        for value in dict.fromkeys(values)
    ]
    return f"{what}; by default {'; '.join(parts)}."


def accuracy_command(
    model: Model = "fashion-mini",
    data: Data = "fashion-mini",
    n: Count = 100,
    start: Start = 0,
    defence: ModelFlags = ModelFlags(),  # noqa: B008
    seed: int = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Accuracy of a model on clean images, with its 95 % interval.

    For example:
      rdc accuracy --model fashion-mini --n 200
      rdc accuracy --model diffpure -s t=0.125 -s steps=25
      rdc accuracy --model optimal --data digits --n 400
    """
    from rdc.evaluate import accuracy

    place, data = pick_device(device), tidy(data)
    classifier, (x, y) = build_model(model, data, defence, seed, place), first_images(data, n, start)
    began = time.perf_counter()
    with takes(model, data, x):
        result = accuracy(classifier, x.to(place), y.to(place), batch=16, quiet=quiet)
    print(f"{model} on {data}: {result} in {time.perf_counter() - began:.1f} s")


def attack_command(
    model: Model = "fashion-mini",
    data: Data = "fashion-mini",
    attack: Annotated[
        Literal["pgd", "autoattack", "stadv", "square", "lagrange"], arg(help="stadv bounds a flow: it has no norm.")
    ] = "pgd",
    norm: Annotated[Literal["Linf", "L2", "L1"] | None, arg(help="By default Linf.")] = None,
    eps: Annotated[
        str | None,
        arg(
            help="Radius in units of images in [0, 1], a number or a fraction; by default 8/255 for Linf, 0.5 for L2, 12 for L1. "
            "For stadv the bound on the flow, by default 0.05."
        ),
    ] = None,
    n: Count = 16,
    start: Start = 0,
    block: Annotated[
        int | None,
        arg(help="Images taken together; a kill loses those in flight. By default as in --rows, or 64 on a GPU, less on a CPU."),
    ] = None,
    steps: Annotated[int | None, arg(help=told("Iterations", "steps"))] = None,
    queries: Annotated[int | None, arg(help=told("Queries of Square", "queries"))] = None,
    loss: Annotated[Literal["margin", "ce", "dlr"] | None, arg(help=told("What is climbed", "loss"))] = None,
    restarts: Annotated[int | None, arg(help=told("Random starts", "restarts"))] = None,
    eot: Annotated[int | None, arg(help=told("Gradients averaged at each step", "eot"))] = None,
    targets: Annotated[int | None, arg(help=told("Wrong classes climbed towards, one after the other", "targets"))] = None,
    defence: ModelFlags = ModelFlags(),  # noqa: B008
    verdicts: Annotated[int | None, arg(help="Fresh verdicts on each image; by default 20 for fresh noise.")] = None,
    protocol: Annotated[Literal["once", "draws", "resubmit", "known"], arg(help="Whose result is the headline.")] = "draws",
    rows: Annotated[Path | None, arg(help="File of rows, one an image; the same command continues it, also for more.")] = None,
    workers: Annotated[int, arg(help="Processes that share the blocks.")] = 1,
    seed: int = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Attack a model and print its robust accuracy, with its 95 % interval.

    For example:
      rdc attack --model fashion-mini --norm Linf --eps 8/255 --n 16
      rdc attack --model fashion-mini --attack autoattack --norm Linf --eps 8/255 --n 64 --rows runs/a.jsonl
      rdc attack --model rdc --lm released --gradient smoothed --eps 8/255 --n 64
      rdc attack --model optimal --attack square --norm L2 --eps 0.5 --n 8
    """
    from rdc.evaluate import protocols, robust_accuracy

    given = {"steps": steps, "queries": queries, "loss": loss, "restarts": restarts, "eot": eot, "targets": targets}
    ball, radius, options = attack_options(attack, norm, eps, given)
    for option, amount in {"--block": block, "--workers": workers, "--verdicts": verdicts}.items():
        if amount is not None:
            count(amount, option)
    place, data, reach = pick_device(device), tidy(data), radius_of(radius, ball)
    size = block or block_of(rows) or (64 if place.type == "cuda" else max(1, min(64, math.ceil(n / (8 * workers)))))
    classifier, (x, y) = build_model(model, data, defence, seed, place), first_images(data, n, start)
    chosen = make_attack(attack, classifier, ball, reach, options, seed)
    began, index = time.perf_counter(), torch.arange(start, start + n, device="cpu")
    with tempfile.TemporaryDirectory() as folder, takes(model, data, x):
        path = rows or Path(folder, "rows.jsonl")
        config = {"model": model, "data": data, **order_of(data), **source_of(model)}
        robust_accuracy(
            classifier, x.to(place), y.to(place), {attack: chosen}, verdicts, rows=path, workers=workers, seed=seed,
            block=size, index=index, config=config, quiet=quiet,
        )  # fmt: skip
        found, clean = protocols(path, index), clean_accuracy(path, index)
    text = ", ".join([attack, ball, f"eps {radius}", *(f"{name} {value}" for name, value in options.items())])
    print(f"clean    {clean}")
    for name, value in found.items():
        print(f"{'attacked' if name == protocol else '        '} {value}  ({name}; {text})")
    print(f"{time.perf_counter() - began:.1f} s")
    if protocol not in found:
        there = ", ".join(found)
        raise ValueError(f"--protocol {protocol} was not measured: the noise of this model cannot be fixed; there are {there}")


def block_of(rows: Path | None) -> int | None:
    """Return the size of the blocks of a file of rows that is to be continued; None if there is none."""
    from rdc.runs.rowfile import parse

    config = None if rows is None or not rows.is_file() else parse(rows.read_bytes(), rows).config
    return None if config is None else config.get("block")


def attack_options(attack: str, norm: str | None, eps: str | None, given: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return norm, radius and options of an attack: what was given, otherwise the standard of the attack and the norm.

    Raises:
        ValueError: if an option or a norm is given to an attack that has none.
    """
    standard = STANDARD[attack]
    foreign = [name for name, value in given.items() if value is not None and name not in standard]
    if attack == "stadv" and norm is not None:
        foreign.append("norm")
    if foreign:
        raise ValueError(f"{attack} has no {', '.join(f'--{name}' for name in foreign)}; it has {', '.join(standard)}")
    ball = "flow" if attack == "stadv" else norm or "Linf"
    options = {name: value if given[name] is None else given[name] for name, value in standard.items()}
    least = {"steps": 1, "queries": 1, "restarts": 1, "eot": 1, "targets": 0}
    options |= {name: count(options[name], f"--{name}", least[name]) for name in options if name in least}
    return ball, RADII[ball] if eps is None else eps, options


def make_attack(
    name: str, classifier: nn.Module, norm: str, eps: float, options: dict[str, Any], seed: int
) -> Callable[..., torch.Tensor]:
    """Return the attack of the command line with its options bound."""
    from rdc.attack import autoattack, lagrange, pgd, square, stadv
    from rdc.attack.budget import budget
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.classify.diffusion_loss import diffusion_loss

    if name != "stadv":
        budget(norm, eps, norms=("Linf", "L2", "L1") if name in ("autoattack", "square") else ("Linf", "L2"))
    if name != "lagrange":
        known: dict[str, Callable[..., torch.Tensor]] = {"pgd": pgd, "autoattack": autoattack, "stadv": stadv, "square": square}
        return partial(known[name], norm=norm, eps=eps, **options)
    diffusion = next((part for part in classifier.modules() if isinstance(part, DiffusionClassifier)), None)
    if diffusion is None:
        raise ValueError("lagrange needs the diffusion loss of a trained denoiser; give --model a checkpoint, dc or rdc")
    return partial(lagrange, penalty=diffusion_loss(diffusion.denoiser, diffusion.levels, seed), norm=norm, eps=eps, **options)


def clean_accuracy(path: Path, index: torch.Tensor) -> object:
    """Return the accuracy of the clean predictions of some images of a file of rows."""
    from rdc.evaluate import Accuracy, read_rows

    kept = set(index.tolist())
    rows = [row for row in read_rows(path)[1] if row["index"] in kept]
    return Accuracy.of(sum(row["clean"] == row["label"] for row in rows), len(rows))
