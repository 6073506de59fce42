"""Stored rows of guidance as a chapter reads them: means over repetitions, paired differences, chosen scales.

A row is a :class:`rdc.runs.store.Found`; its words (``row.about``) tell it from others. The cells hold the number of every
repetition and image; what is said of them is computed when they are read.
"""

__all__ = [
    "alone",
    "boot",
    "chosen",
    "difference",
    "mean",
    "mean_of",
    "numbers",
    "of_seeds",
    "one",
    "paired",
    "paired_means",
    "pick",
    "told",
]

from collections.abc import Sequence
from typing import Any

import torch

from rdc.guide.metrics import bootstrap
from rdc.runs.statistics import Accuracy, Interval, repeated
from rdc.runs.store import Found
from rdc.runs.verdict import Verdict, decide


def pick(rows: Sequence[Found], **words: Any) -> list[Found]:
    """Return the rows with these words; a tuple stands for any of its members."""

    def fits(found: Found) -> bool:
        about = found.row.about
        return all(about.get(k) in v if isinstance(v, tuple) else about.get(k) == v for k, v in words.items())

    return [found for found in rows if fits(found)]


def one(rows: Sequence[Found], **words: Any) -> Found:
    """Return the row with these words.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = pick(rows, **words)
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have the words {words}; one is wanted")
    return found[0]


def numbers(found: Found, name: str) -> dict[int, float]:
    """Return the number of each repetition or image that has one."""
    return {i: v for i, v in found.value(name).items() if v is not None}


def mean(found: Found, name: str) -> Interval | Accuracy:
    """Return the mean over repetitions with Student's interval; of ``agreement`` the counts of all images."""
    values = list(numbers(found, name).values())
    if name != "agreement":
        return repeated(values)
    n = found.row.arguments["images"]
    return Accuracy.of(round(sum(values) * n), n * len(values))


def mean_of(found: Found, name: str) -> float | None:
    """Return the mean of the numbers of a row, or the one that was kept without them."""
    values = numbers(found, name).values()
    return sum(values) / len(values) if values else found.mean(name)


def paired_means(a: Found, b: Found, name: str) -> tuple[float, int]:
    """Return the mean of ``a`` less ``b`` on the images for which both have a number, and how many these are."""
    mine, other = numbers(a, name), numbers(b, name)
    shared = [mine[i] - other[i] for i in mine if i in other]
    return sum(shared) / len(shared), len(shared)


def boot(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of numbers of images with its bootstrap interval."""
    return bootstrap(lambda c: float(c.mean()), torch.tensor(list(values), dtype=torch.float64, device="cpu"), seed=seed)


def difference(a: Found, b: Found, name: str) -> Interval:
    """Return the mean of ``a`` less that of ``b`` on the repetitions that both have, with Student's interval.

    Raises:
        ValueError: if the rows have other seeds or numbers of images, so that they are no pairs.
    """
    if a.row.arguments != b.row.arguments:
        raise ValueError(f"only rows of the same seeds and images can be compared, not {a.row.arguments} and {b.row.arguments}")
    mine, other = numbers(a, name), numbers(b, name)
    return repeated([mine[i] - other[i] for i in mine if i in other])


def chosen(rows: Sequence[Found], name: str = "frechet") -> Found:
    """Return the row above the scale 0 with the smallest mean; the smaller scale of two that are equal.

    Raises:
        ValueError: if nothing was tried.
    """
    tried = [found for found in rows if found.row.about["scale"] > 0]
    if not tried:
        raise ValueError("no scale was tried")
    return min(tried, key=lambda found: (mean(found, name).value, found.row.about["scale"]))


def of_seeds(rows: Sequence[Found], name: str) -> list[float]:
    """Return the mean of each row."""
    return [mean(found, name).value for found in rows]


def alone(a: Found, b: Found, name: str) -> tuple[int, int, int]:
    """Return how many images only ``a``, and only ``b``, gets right, and of how many, on the images of both.

    Of rows without an outcome for each image these are the counts that were kept: ``<name> only here, beside <guide of b>``.

    Raises:
        ValueError: if there is neither.
    """
    mine, other = a.outcome(name), b.outcome(name)
    shared = [i for i in mine if i in other]
    if shared:
        pairs = [(mine[i], other[i]) for i in shared]
        return sum(x > y for x, y in pairs), sum(x < y for x, y in pairs), len(pairs)
    lines = list({id(line): line for line in a.lines.values()}.values())
    here, there = (f"{name} only {where}, beside {b.row.about['guide']}" for where in ("here", "there"))
    if not lines or any(here not in line.counts for line in lines):
        raise ValueError(f"no images of {a.row.model} and {b.row.model} have the outcome {name!r}, and no counts of pairs")
    return sum(line.counts[here] for line in lines), sum(line.counts[there] for line in lines), a.n


def paired(a: Found, b: Found, name: str) -> Verdict:
    """Return the verdict of the one rule on "``a`` gets more images right than ``b``"."""
    here, there, n = alone(a, b, name)
    both = n - here - there
    return decide([True] * here + [False] * there + [False] * both, [False] * here + [True] * there + [False] * both)


def told(found: Interval) -> str:
    """Return whether an interval lies above 0, below it, or holds it."""
    return "more" if found.low > 0 else "less" if found.high < 0 else "not decided"
