"""Compute some stored cells again, and say where the outcome is another."""

__all__ = ["Check", "verify"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rdc.rng import randint
from rdc.runs.agreement import differences
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
