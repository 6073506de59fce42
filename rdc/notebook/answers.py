"""Answers to the exercises of a chapter: whether they are the numbers that were asked for."""

__all__ = ["close_to"]

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def close_to(answer: object, wanted: Any, within: Any = 1e-3) -> bool:
    """Return whether an answer to an exercise is the wanted one: as many numbers, each at most ``within`` away.

    Arguments:
        answer: A number, or a list, tuple, array, tensor or dictionary of numbers of any type. Anything else is not an answer:
            None, words, another length, other keys.
        wanted: The numbers that are right.
        within: The largest distance, one for all or one for each.
    """
    if isinstance(wanted, Mapping):
        return (isinstance(answer, Mapping) and answer.keys() == wanted.keys()
                and close_to([answer[k] for k in wanted], list(wanted.values()), within))  # fmt: skip
    try:
        found, known, most = (_numbers(values) for values in (answer, wanted, within))
    except (TypeError, ValueError, RuntimeError):
        return False
    if known.numel() == found.numel() == 1:
        found = found.reshape(known.shape)
    return found.shape == known.shape and bool(((found - known).abs() <= most).all())


def _numbers(values: Any) -> Tensor:
    """The numbers in float64.

    Raises:
        TypeError: if something is not a number.
        ValueError: if something is not a number, or the shape is not regular.
        RuntimeError: if the shape is not regular.
    """
    if values is None or isinstance(values, str | bytes | Mapping):
        raise TypeError("not a number")
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    if isinstance(values, Iterable) and not isinstance(values, np.ndarray):
        return torch.stack([_numbers(v) for v in values])
    return torch.from_numpy(np.array(values, dtype=np.float64))
