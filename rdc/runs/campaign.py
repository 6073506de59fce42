"""Campaigns: compute the cells of some rows that are missing, the most valuable first, until they are done or the time is up.

A kill loses the cells in flight. What a store has is not computed again, as long as the code and the weights that decided it are
those of today.
"""

__all__ = ["Campaign", "State", "campaign_state", "run_campaign"]

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rdc.runs.cell import Cell, Line, Outcome, Row
from rdc.runs.lock import hold
from rdc.runs.record import environment
from rdc.runs.store import Store, append
from rdc.runs.workers import parallel

#: ``execute(work, blocks)``: the results of ``work`` on each block of positions, as they come.
Execute = Callable[[Callable[[Sequence[int]], list[Any]], Iterator[Sequence[int]]], Generator[list[Any], None, None]]


def unknown(_: Row) -> None:
    """Say nothing of a row."""


@dataclass(frozen=True)
class Campaign:
    """Rows, and what makes their cells.

    Attributes:
        rows: The rows.
        measure: ``measure(cell, device) -> Outcome``; picklable, if workers are to share the cells.
        code: The hash of the code that decides a row.
        weights: The hashes of the checkpoints that a row uses.
        device: Where to compute.
        shard: ``(i, n)``: of each n cells only number i, for n runs that share the work; their results can be merged.
        work: The work of an image of a row, in a unit of one's own such as evaluations of a network; None where it is not known.
        pace: The seconds that a unit of it takes on this device, as far as somebody measured it.
    """

    rows: Sequence[Row]
    measure: Callable[[Cell, str], Outcome]
    code: Callable[[Row], str]
    weights: Callable[[Row], Mapping[str, str]]
    device: str = "cpu"
    shard: tuple[int, int] = (0, 1)
    work: Callable[[Row], float | None] = unknown
    pace: Callable[[Row], float | None] = unknown

    def cells(self) -> list[Cell]:
        """Return all cells: by priority, then by their first image, so that rows can be compared early; none twice."""
        found = [(row.priority, cell.start, i, cell) for i, row in enumerate(self.rows) for cell in row.cells()]
        known: dict[tuple[str, int, int], Cell] = {}
        for *_, cell in sorted(found, key=lambda entry: entry[:3]):
            known.setdefault((cell.row.key(), cell.start, cell.stop), cell)
        return list(known.values())

    def missing(self, store: Store) -> list[Cell]:
        """Return the cells of this shard that no line of today's code and weights holds."""
        marks, (first, step) = {row.key(): (self.code(row), self.weights(row)) for row in self.rows}, self.shard
        return [cell for cell in self.cells()[first::step] if not store.holds(cell, *marks[cell.row.key()])]


@dataclass(frozen=True)
class State:
    """How far a row is: images done with today's code and weights, done with others, and missing."""

    row: Row
    done: int
    stale: int
    missing: int


def campaign_state(campaign: Campaign, store: Store) -> list[State]:
    """Return how far each row is."""
    found = []
    for row in campaign.rows:
        done = store.of(row, campaign.code(row), campaign.weights(row)).n
        known = store.of(row).n
        found.append(State(row, done, known - done, row.n - known))
    return found


@dataclass
class Clock:
    """Time that is left, and what a cell is expected to take on this device.

    An image takes as long as the last one of its row did here. Where there is none, it takes its work times the pace at which
    the last row of its model went here, or that somebody measured; without either, as long as one of the same model and task.
    What other devices took says nothing.
    """

    campaign: Campaign
    minutes: float | None
    device: str
    _begin: float = field(default_factory=time.monotonic)
    _seconds: dict[str, float] = field(default_factory=dict)
    _paces: dict[str, float] = field(default_factory=dict)
    _rows: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = {row.key(): row for row in self.campaign.rows}

    @property
    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self._begin)

    def saw(self, line: Line) -> None:
        """Learn from a line, if this device made it."""
        seconds, row = line.provenance["seconds"], self._rows.get(line.key)
        if seconds is None or row is None or line.provenance["device"] != self.device:
            return
        each = seconds / (line.images[1] - line.images[0])
        self._seconds[line.key] = self._seconds[kind(row)] = each
        if work := self.campaign.work(row):
            self._paces[row.model] = each / work

    def expected(self, cell: Cell) -> float:
        """Return the seconds that a cell will take; 0 if nothing is known of it."""
        row, work = cell.row, self.campaign.work(cell.row)
        if (each := self._seconds.get(row.key())) is not None:
            return len(cell) * each
        pace = self._paces.get(row.model) or self.campaign.pace(row)
        each = work * pace if work and pace else self._seconds.get(kind(row), 0.0)
        return len(cell) * each

    def fitting(self, cells: Sequence[Cell]) -> Iterator[int]:
        """Yield the positions of the cells that can be expected to end in time, as long as there is any."""
        for position, cell in enumerate(cells):
            if self.left <= 0:
                return
            if self.expected(cell) <= self.left:
                yield position


def kind(row: Row) -> str:
    """Return what rows that take about the same time have in common."""
    return f"{row.model} {row.task} {row.attack}"


def run_campaign(
    campaign: Campaign,
    out: str | Path,
    known: Sequence[str | Path] = (),
    minutes: float | None = None,
    workers: int = 1,
    quiet: bool = True,
    execute: Execute | None = None,
) -> tuple[int, int]:
    """Compute missing cells and add their lines to a file; return how many were computed, and how many are left.

    Arguments:
        campaign: What to compute.
        out: File of lines, continued if it exists.
        known: Other files whose lines need not be computed again.
        minutes: Start no cell that is not expected to end in this time; None for no limit.
        workers: Processes that share the cells; this one alone writes.
        quiet: Whether to hide the progress bar.
        execute: Another executor than ``workers``, such as a ``partial`` of :func:`rdc.runs.cluster.on_ray`.

    Raises:
        ValueError: if a file is damaged.
        OSError: if the file cannot be written, or another run is writing to it.
    """
    with writing(Path(out)):
        store, here = Store.read(*known, out), environment(campaign.device)
        clock = Clock(campaign, minutes, here["device"])
        for line in store.lines:
            clock.saw(line)
        todo, done = campaign.missing(store), 0
        work = Work(campaign, tuple(todo), here)
        order: Iterator[Sequence[int]] = ((i,) for i in clock.fitting(todo))
        if execute is not None:
            parts = execute(work, order)
        else:
            parts = parallel(work, order, workers) if workers > 1 else (work(one) for one in order)
        with tqdm(total=len(todo), disable=quiet, desc="cells", unit="cell") as bar, closing(parts) as made:
            for lines in made:
                for value in lines:
                    line = Line.load(value["line"])
                    append(Path(out), line)
                    clock.saw(line)
                    done += 1
                    bar.set_postfix_str(f"{line.spec['model']} {line.spec['attack'] or ''} {line.images[0]}...")
                bar.update(len(lines))
    return done, len(todo) - done


@dataclass(frozen=True)
class Work:
    """Cells in, lines out."""

    campaign: Campaign
    cells: tuple[Cell, ...]
    environment: dict[str, Any]

    def __call__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the lines of the cells at some positions, as JSON."""
        return [{"line": self.line(self.cells[i]).dump()} for i in positions]

    def line(self, cell: Cell) -> Line:
        """Compute a cell."""
        c, begin = self.campaign, time.perf_counter()
        outcome = c.measure(cell, c.device)
        provenance = {**self.environment, "seconds": round(time.perf_counter() - begin, 2)}
        return Line.of(cell, outcome, c.code(cell.row), c.weights(cell.row), provenance)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold a file for one run.

    Raises:
        OSError: if another run holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            hold(file.fileno())
        except OSError:
            raise OSError(f"another run is writing to {path}; wait for it, or give another folder") from None
        yield
