"""A comparison of two sides, or of one with a bound, as data; and its numbers on the images that both sides have.

Where a side says what its ``mean`` is of, numbers are compared in the place of outcomes.
"""

__all__ = ["Evidence", "attacks_one_defence", "before", "compared"]

from dataclasses import dataclass, replace
from pathlib import Path

from rdc.findings.side import Side, attacks_of, breaks, numbers, outcomes, tally
from rdc.runs.verdict import Comparison, Means

ATTACK = ("attack", "gradient", "eot")  # words of an attack, not of a defence


@dataclass(frozen=True)
class Evidence:
    """A comparison: ``a`` is claimed to be larger than ``b``, or than ``bound``; the other arguments are those of ``decide``."""

    a: Side
    b: Side | None = None
    bound: float | None = None
    equal: float | None = None
    effect: float | None = None


def compared(one: Evidence, folder: str | Path | None = None) -> tuple[Comparison, tuple[str, ...]] | None:
    """Return the comparison on the images that both sides have, and the attacks behind it; None if a side has none.

    An attack that broke nothing is no evidence, on either side. Where two attacks on one defence are compared, it is enough that
    one of them broke images, for then the other one is the weak one.
    """
    if one.a.mean:
        found = means(one, folder)
        return None if found is None else (Comparison(*found, one.bound, one.equal, one.effect), ())
    a, b = outcomes(one.a, folder), None if one.b is None else outcomes(one.b, folder)
    images = shared(a, b)
    if not images:
        return of_counts(one, folder)
    sides = [side for side in (one.a, one.b) if side is not None]
    attacks = tuple(dict.fromkeys(name for side in sides for name in attacks_of(side, folder)))
    weakest = max if attacks_one_defence(one) else min
    broken = weakest((breaks(side, folder) for side in sides if attacks_of(side, folder)), default=None)
    right = [a[i] for i in images]
    other = None if b is None else [b[i] for i in images]
    return Comparison(right, other, one.bound, one.equal, one.effect, broken), attacks


def shared(a: dict[int, bool], b: dict[int, bool] | None) -> list[int]:
    """Return the images that both sides have."""
    return [i for i in a if b is None or i in b]


def of_counts(one: Evidence, folder: str | Path | None = None) -> tuple[Comparison, tuple[str, ...]] | None:
    """Return the comparison of two rows of which only counts are stored, as if they were of different images."""
    a, b = tally(one.a, folder), None if one.b is None else tally(one.b, folder)
    if a is None or (one.b is not None and b is None):
        return None
    return Comparison(a, b, one.bound, one.equal, one.effect), ()


def before(one: Evidence, folder: str | Path | None = None) -> str:
    """Return in words how many of the images of a comparison are right before the attacks; empty if nobody attacks."""
    sides = [side for side in (one.a, one.b) if side is not None]
    if one.a.mean or not any(side.outcome == "robust" and attacks_of(side, folder) for side in sides):
        return ""
    images = shared(outcomes(one.a, folder), None if one.b is None else outcomes(one.b, folder))
    clean = [outcomes(replace(side, outcome="clean"), folder) for side in sides]
    if not images or not all(i in right for right in clean for i in images):
        return ""
    right = dict.fromkeys(str(sum(right[i] for i in images)) for right in clean)
    return f"before the attack {' and '.join(right)} were right"


def attacks_one_defence(one: Evidence) -> bool:
    """Return whether the sides of a comparison differ in their attack alone."""
    if one.b is None or one.a.experiment != one.b.experiment:
        return False
    a, b = ({k: v for k, v in side.where.items() if k not in ATTACK} for side in (one.a, one.b))
    return a == b


def means(one: Evidence, folder: str | Path | None = None) -> tuple[Means, Means | None] | None:
    """Return the numbers of both sides, of the repetitions that both have; None if a side has none."""
    a, b = numbers(one.a, folder), None if one.b is None else numbers(one.b, folder)
    if one.a.mean == "rows":
        return (Means(list(a.values()), False), None if b is None else Means(list(b.values()), False)) if a and b != {} else None
    shared = [i for i in a if b is None or i in b]
    other = None if b is None else Means([b[i] for i in shared])
    return (Means([a[i] for i in shared]), other) if len(shared) > 1 else None
