"""Radii and counts, parsed and checked in one place, for Python and for the command line alike."""

__all__ = ["count", "number"]

import math
from fractions import Fraction
from typing import Any

from rdc.rng import whole


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf, strict: bool = False) -> float:
    """A finite real number in ``[low, high]``, from a number or from text such as ``8/255``.

    Arguments:
        value: What was given: a number of Python, NumPy or torch, or text.
        name: What it is, for the message.
        low: Least value.
        high: Largest value.
        strict: Whether ``low`` itself is refused.

    Raises:
        ValueError: if it is none, with one line that names it.
    """
    try:
        found = float(Fraction(value)) if isinstance(value, str) else float(value)
        if isinstance(value, bool) or not math.isfinite(found):
            raise ValueError
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, RuntimeError):
        raise ValueError(f"{name} must be a number or a fraction such as 8/255, got {value!r}") from None
    if found < low or found > high or (strict and found == low):
        if math.isfinite(high):
            wanted = f"lie in {'(' if strict else '['}{low:g}, {high:g}]"
        elif low == 0:
            wanted = "be positive" if strict else "not be negative"
        else:
            wanted = f"be {'above' if strict else 'at least'} {low:g}"
        raise ValueError(f"{name} must {wanted}, got {found:g}")
    return found


def count(value: Any, name: str, least: int = 1) -> int:
    """A whole number that is not below ``least``, from a whole number or from digits.

    Raises:
        ValueError: if it is none, with one line that names it.
    """
    text = value.strip() if isinstance(value, str) else ""
    found = int(text) if text.removeprefix("-").isdecimal() else whole(value, name)
    if found < least:
        raise ValueError(f"{name} must be at least {least}, got {found}")
    return found
