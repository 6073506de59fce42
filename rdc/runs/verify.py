"""Compute some stored cells again, and say where the outcome is another."""

__all__ = ["Check", "verify"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isclose

from rdc.rng import randint
from rdc.runs.cell import Cell, Line, Outcome, Row
from rdc.runs.store import Store


@dataclass(frozen=True)
class Check:
    """A stored line and what came out now.

    Attributes:
        line: The line.
        differs: Indices of images about which anything that both say differs.
    """

    line: Line
    differs: tuple[int, ...]


def verify(
    rows: Sequence[Row],
    store: Store,
    measure: Callable[[Cell, str], Outcome],
    device: str = "cpu",
    share: float = 0.1,
    seconds: float = 60.0,
    seed: int = 0,
) -> Iterator[Check]:
    """Compute a random part of the cheap lines again.

    Arguments:
        rows: Of the experiment.
        store: Its lines.
        measure: What makes a cell.
        device: Where to compute.
        share: Part of the lines, at least one.
        seconds: Lines that took longer are left out.
        seed: Seed of the choice.
    """
    known = {row.key(): row for row in rows}
    cheap = [line for line in store.lines if line.key in known and (line.provenance["seconds"] or 0) <= seconds]
    if not cheap:
        return
    order = sorted(range(len(cheap)), key=lambda i: int(randint(2**62, (), "verify", seed, i)))
    for i in sorted(order[: max(1, round(share * len(cheap)))]):
        line, row = cheap[i], known[cheap[i].key]
        found = measure(Cell(row, *line.images), device)
        yield Check(line, differences(line, found))


def differences(line: Line, found: Outcome) -> tuple[int, ...]:
    """Return the images of a line about which a new outcome says something else; all of them if a count, mean or word differs."""
    odd: set[int] = set()
    for name in line.bits.keys() & found.bits.keys():
        odd |= {i for (i, was), now in zip(line.outcome(name).items(), found.bits[name], strict=True) if was != bool(now)}
    for name in line.values.keys() & found.values.keys():
        odd |= {i for (i, was), now in zip(line.value(name).items(), found.values[name], strict=True) if not alike(was, now)}
    counts = any(line.counts[name] != found.counts[name] for name in line.counts.keys() & found.counts.keys())
    means = any(not alike(line.means[name], found.means[name]) for name in line.means.keys() & found.means.keys())
    words = any(line.words[name] != found.words[name] for name in line.words.keys() & found.words.keys())
    return tuple(range(*line.images)) if counts or means or words else tuple(sorted(odd))


def alike(a: float | None, b: float | None) -> bool:
    """Return whether two numbers agree to rounding, or are both none."""
    return a is b if a is None or b is None else isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
