"""One side of a comparison as data, and what the stored cells say of it.

A :class:`Side` is the rows of an experiment whose words (``Row.about``) are the wanted ones. An image counts as right if it is
right in *all* of them, so that the rows of several attacks on one model are their union.
"""

__all__ = ["Side", "attacks_of", "breaks", "fits", "numbers", "outcomes", "rate", "rows_of", "stored", "tally"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rdc.experiments import experiment
from rdc.runs.record import book_folder
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store


@dataclass(frozen=True)
class Side:
    """Images and whether each is right (or, in general, whether an outcome is yes).

    Attributes:
        experiment: Name of an experiment.
        where: Words of its rows; a tuple stands for any of its members.
        outcome: Name of the outcome. A name that is not an outcome but a number for each image counts as yes above ``above``.
        above: For numbers.
        also: Another outcome that must be yes.
        mean: Compare means: over ``units`` (the repetitions or images that both sides have; each has the mean of its numbers in
            the rows), or over ``rows`` (each has the mean over its units; they are runs with other seeds, and not paired).
    """

    experiment: str
    where: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = "robust"
    above: float = 0.0
    also: str = ""
    mean: str = ""


def outcomes(side: Side, folder: str | Path | None = None) -> dict[int, bool]:
    """Return whether each image is right in all rows of a side, of the images that all of them have."""
    parts = [answers(found, side) for found in rows_of(side, folder)]
    shared = [i for i in (parts[0] if parts else {}) if all(i in part for part in parts)]
    return {i: all(part[i] for part in parts) for i in shared}


def tally(side: Side, folder: str | Path | None = None) -> tuple[int, int] | None:
    """Return how many images of the one row of a side are right, and of how many, where only counts are stored."""
    rows = rows_of(side, folder)
    if len(rows) != 1 or not all(side.outcome in line.counts for line in rows[0].lines.values()):
        return None
    found = rows[0].accuracy(side.outcome)
    return found.correct, found.n


def answers(found: Found, side: Side) -> dict[int, bool]:
    """Return the outcome of a side in one row."""
    bits = found.outcome(side.outcome)
    bits = bits or {i: v > side.above for i, v in found.value(side.outcome).items() if v is not None}
    more = found.outcome(side.also) if side.also else dict.fromkeys(bits, True)
    return {i: yes and more[i] for i, yes in bits.items() if i in more}


def numbers(side: Side, folder: str | Path | None = None) -> dict[int, float]:
    """Return the number of each unit, mean over the rows, or of each row, mean over the units."""
    rows = rows_of(side, folder)
    if side.mean == "rows":
        return {i: of_row(found, side.outcome) for i, found in enumerate(rows)}
    parts = [{i: v for i, v in found.value(side.outcome).items() if v is not None} for found in rows]
    shared = [i for i in (parts[0] if parts else {}) if all(i in part for part in parts)]
    return {i: float(np.mean([part[i] for part in parts])) for i in shared}


def of_row(found: Found, name: str) -> float:
    """Return the mean over the units of a row: of numbers, or the rate of an outcome."""
    values = [v for v in found.value(name).values() if v is not None]
    return float(np.mean(values)) if values else found.accuracy(name).value


def rate(side: Side, folder: str | Path | None = None) -> Accuracy | None:
    """Return how many images of a side are right; None if it was not run."""
    found = outcomes(side, folder)
    return Accuracy.of(sum(found.values()), len(found)) if found else None


def breaks(side: Side, folder: str | Path | None = None) -> int:
    """Return how many images that were right the strongest attack of a side broke."""
    rows = [{id(line): line.counts for line in found.lines.values()}.values() for found in rows_of(side, folder)]
    return max(sum(counts["clean"] - counts["robust"] for counts in row) for row in rows)


def attacks_of(side: Side, folder: str | Path | None) -> list[str]:
    """Return the attacks of the rows of a side that were run."""
    return [found.row.attack for found in rows_of(side, folder) if found.row.attack is not None and side.outcome == "robust"]


def rows_of(side: Side, folder: str | Path | None = None) -> list[Found]:
    """Return what is known of the rows of a side that were run."""
    place = book_folder("results") if folder is None else Path(folder)
    store = stored(place / f"{side.experiment}.jsonl")
    rows = [row for row in experiment(side.experiment).rows if fits(row.about, side.where)]
    return [found for row in rows if (found := store.of(row)).n]


def fits(about: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether the words of a row are the wanted ones."""
    return all(about.get(k) in v if isinstance(v, tuple) else about.get(k) == v for k, v in where.items())


def stored(path: Path) -> Store:
    """Return the lines of a file, read once for each state of it."""
    return _stored(path, path.stat().st_mtime_ns if path.exists() else 0)


@cache
def _stored(path: Path, _: int) -> Store:
    return Store.read(path)
