"""The command ``rdc audit``: is the robust accuracy that an attack measures to be believed?"""

__all__ = ["audit_command"]

import sys
from importlib import import_module
from typing import Annotated, Literal

import torch
from tyro.conf import arg

from rdc.cli.attack import RADII
from rdc.cli.flags import ModelFlags, build_model
from rdc.cli.options import Count, Data, Device, Model, Quiet, first_images, pick_device, radius_of, tidy


def audit_command(
    model: Model = "fashion-mini",
    data: Data = "fashion-mini",
    norm: Literal["Linf", "L2"] = "Linf",
    eps: Annotated[str | None, arg(help="Radius in units of images in [0, 1]; by default 8/255 for Linf, 0.5 for L2.")] = None,
    n: Count = 8,
    steps: Annotated[int, arg(help="Gradient steps of the audited attack.")] = 20,
    eot: Annotated[int, arg(help="Gradients averaged at each step.")] = 1,
    queries: Annotated[int, arg(help="Queries of the black-box attack.")] = 50,
    all: Annotated[bool, arg(help="Go on after the first check that fails.")] = False,
    defence: ModelFlags = ModelFlags(),  # noqa: B008
    seed: int = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Audit the PGD attack on a classifier: is its number to be believed? Exit code 1 if a check fails.

    Checks run from fast to slow, and stop at the first that fails.

    For example:
      rdc audit --model fashion-mini --n 4 --levels 8
      rdc audit --model optimal --data digits --eps 0.1 --n 10
      rdc audit --model broken-quantised-input --n 4
      rdc audit --model mymodule:make_model --data digits --eps 0.15 --all
    """
    from rdc.evaluate.audit import audit

    import_module("pyautoattack")  # the last checks need it: say so at once
    data = tidy(data)
    radius, place = radius_of(RADII[norm] if eps is None else eps, norm), pick_device(device)
    classifier, (x, y) = build_model(model, data, defence, seed, place), first_images(data, n)
    report = audit(
        classifier, x.to(place), y.to(place), norm, radius, steps, eot=eot, held_out=other_images(data, place),
        queries=queries, seed=seed, everything=all, quiet=quiet,
    )  # fmt: skip
    print(report)
    print("no check failed" if report.ok else "a check failed: do not quote the number before you know why")
    sys.exit(0 if report.ok else 1)


def other_images(data: str, device: torch.device, n: int = 8) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The last ``n`` training images and their labels; None if the data have no training images."""
    from rdc.cli.images import in_turns, read, takes_turns, trained_on
    from rdc.data import DataError

    try:
        images = read(trained_on(data), "train")
    except DataError:
        return None
    images = in_turns(images) if takes_turns(data) else images
    return images.x[-n:].to(device), images.y[-n:].to(device)
