"""What an attack may do, parsed and checked once: the ball, and how often the model is asked."""

__all__ = ["BALLS", "Budget", "budget", "identities"]

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from rdc.quantities import count, number

BALLS = ("Linf", "L2")


@dataclass(frozen=True)
class Budget:
    """The ball of an attack and its effort, as :func:`budget` returns it: every number is one, and every effort is an effort."""

    norm: str
    eps: float
    steps: int
    restarts: int
    eot: int
    targets: int
    queries: int
    step_size: float | None
    scale: float | str


def budget(
    norm: Any = "Linf",
    eps: Any = 0.0,
    *,
    norms: tuple[str, ...] = BALLS,
    steps: Any = 1,
    restarts: Any = 1,
    eot: Any = 1,
    targets: Any = 0,
    queries: Any = 1,
    step_size: Any = None,
    scale: Any = 1.0,
) -> Budget:
    """Return a budget whose numbers are plain ones, from numbers of Python, NumPy or torch, or from text such as ``8/255``.

    An attack that takes no step and asks nothing breaks nothing, and its robust accuracy would mean nothing: it raises.

    Arguments:
        norm: The ball's norm, one of ``norms``.
        eps: Radius, not negative. An Linf radius above 1 covers everything, and brings a warning (8 for 8/255?).
        norms: What the attack knows.
        steps: Gradient steps, at least 1.
        restarts: Random starts, at least 1.
        eot: Calls averaged, at least 1.
        targets: Target classes, not negative.
        queries: Calls of the model, at least 1.
        step_size: First step, positive; None for the attack's own.
        scale: Factor on the logits, positive, or ``auto``.

    Raises:
        ValueError: with one line that names what was wrong.
    """
    if norm not in norms:
        raise ValueError(f"unknown norm {norm!r}; there are {', '.join(norms)}")
    radius = number(eps, "eps", low=0)
    if norm == "Linf" and radius > 1:
        text = f"eps={radius:g} covers all of [0, 1]; images are in [0, 1], did you mean {radius:g}/255?"
        warnings.warn(text, stacklevel=4)
    return Budget(
        norm,
        radius,
        count(steps, "steps"),
        count(restarts, "restarts"),
        count(eot, "eot"),
        count(targets, "targets", least=0),
        count(queries, "queries"),
        None if step_size is None else number(step_size, "step_size", low=0, strict=True),
        _scale(scale),
    )


def _scale(value: Any) -> float | str:
    if isinstance(value, str) and value == "auto":
        return "auto"
    try:
        return number(value, "scale", low=0, strict=True)
    except ValueError:
        raise ValueError(f"scale must be positive or 'auto', got {value!r}") from None


def identities(index: Int64[Tensor, " n"] | None, n: int) -> Int64[Tensor, " n"]:
    """Return the identity of each of ``n`` images on the CPU, where random numbers are drawn: by default its position.

    Raises:
        ValueError: if there is not one for each image.
    """
    if index is None:
        return torch.arange(n, dtype=torch.int64, device="cpu")
    if index.shape != (n,):
        raise ValueError(f"index must hold one number for each of {n} images, got shape {tuple(index.shape)}")
    return index.cpu()
