"""Lines on disk: one file of JSON lines for each experiment, which any number of runs can add to and merge.

A run appends each line with one write and flushes it; a torn last line is left out when a file is read, and cut when it is
continued.
"""

__all__ = ["Found", "Store", "merge"]

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rdc.runs.agreement import differences
from rdc.runs.cell import Cell, Line, Row
from rdc.runs.record import write_atomic
from rdc.runs.statistics import Accuracy


@dataclass(frozen=True)
class Found:
    """What is known of a row: for each image the line that holds it.

    Attributes:
        row: The row.
        lines: Line of each image that was done, by its index.
    """

    row: Row
    lines: Mapping[int, Line]

    @property
    def n(self) -> int:
        """How many of its images were done."""
        return len(self.lines)

    @property
    def complete(self) -> bool:
        """Whether all were done."""
        return len(self.lines) == self.row.n

    def outcome(self, name: str) -> dict[int, bool]:
        """Return an outcome by the index of the image, in order; without those of lines that do not have it."""
        known = {id(line): line.outcome(name) for line in self.lines.values() if name in line.bits}
        return {i: known[id(self.lines[i])][i] for i in sorted(self.lines) if id(self.lines[i]) in known}

    def value(self, name: str) -> dict[int, float | None]:
        """Return the numbers of a name by the index of the image, in order; without those of lines that do not have it."""
        return {i: line.value(name)[i] for i, line in sorted(self.lines.items()) if name in line.values}

    def accuracy(self, name: str) -> Accuracy:
        """Return how often an outcome is yes, with its interval; from counts, where whole lines hold no bits of it.

        Raises:
            ValueError: if it was not measured.
        """
        bits = self.outcome(name)
        right, n = sum(bits.values()), len(bits)
        for line in {id(line): line for line in self.lines.values() if name not in line.bits and name in line.counts}.values():
            if all(self.lines.get(i) is line for i in range(*line.images)):
                right, n = right + line.counts[name], n + line.images[1] - line.images[0]
        if not n:
            raise ValueError(f"no outcome {name!r} of {self.row.model} was measured")
        return Accuracy.of(right, n)

    def mean(self, name: str) -> float | None:
        """Return a mean over the images, weighted by the size of the cells; None if it was not measured."""
        lines = list({id(line): line for line in self.lines.values() if name in line.means}.values())
        sizes = [sum(held is line for held in self.lines.values()) for line in lines]
        return sum(line.means[name] * size for line, size in zip(lines, sizes, strict=True)) / sum(sizes) if lines else None

    @property
    def seconds(self) -> float:
        """Time that it took."""
        return float(sum({id(line): line.provenance["seconds"] or 0 for line in self.lines.values()}.values()))


@dataclass
class Store:
    """The lines of a file, by the spec of their row; a line that comes later counts before one of the same images.

    Attributes:
        lines: All lines, in the order of the file.
    """

    lines: list[Line] = field(default_factory=list)
    _by_key: dict[str, list[Line]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, *paths: str | Path) -> "Store":
        """Return the lines of some files; one that does not exist has none.

        Raises:
            ValueError: if a line is damaged, with file and number.
        """
        store = cls()
        for path in map(Path, paths):
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            for number, written in enumerate(whole.splitlines(), 1):
                try:
                    store.add(Line.load(written.decode("utf8")))
                except ValueError as error:
                    text = f"{path} is damaged at line {number}: {error}; remove that line to do its cell again"
                    raise ValueError(text) from None
        return store

    def add(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)
        self._by_key.setdefault(line.key, []).append(line)

    def of(self, row: Row, code: str | None = None, weights: Mapping[str, str] | None = None) -> Found:
        """Return what is known of a row; with ``code`` and ``weights`` only what they decided."""
        found: dict[int, Line] = {}
        for line in self._by_key.get(row.key(), []):
            if (code is None or line.code == code) and (weights is None or line.weights == dict(weights)):
                for i in range(max(line.images[0], row.start), min(line.images[1], row.start + row.n)):
                    found[i] = line
        return Found(row, found)

    def holds(self, cell: Cell, code: str | None = None, weights: Mapping[str, str] | None = None) -> bool:
        """Return whether every image of a cell was done."""
        found = self.of(cell.row, code, weights).lines
        return all(i in found for i in range(cell.start, cell.stop))


def append(path: Path, line: Line) -> None:
    """Write a line behind the others, and flush it to disk; a torn line before it is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                size = file.read().rfind(b"\n") + 1
                file.truncate(size)
        file.write(line.dump().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def merge(paths: Iterable[str | Path], out: str | Path, order: Sequence[Row] = ()) -> int:
    """Write the lines of some files into one, each once, and return how many there are.

    Lines are sorted by the place of their row in ``order``, then by spec, date, images and fingerprint, so that the parts of a
    campaign give the same file in whatever order they come, and newer lines count before older ones. Of two lines with one
    fingerprint that with the earlier date is kept; their bits and counts must be the same, values and means to rounding.

    Raises:
        ValueError: if a file does not exist or is damaged, or two lines with one fingerprint disagree.
    """
    kept: dict[str, Line] = {}
    places: dict[str, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"there is no {path}")
        for number, line in enumerate(Store.read(path).lines, 1):
            other, at = kept.setdefault(line.fingerprint, line), f"{path}, line {number}"
            if not agree(other, line):
                text = f"{at} disagrees with {places[line.fingerprint]} about images {line.images} of {line.key}"
                raise ValueError(f"{text}; compute them again ('rdc verify'), remove the line that is wrong, and merge again")
            places.setdefault(line.fingerprint, at)
            kept[line.fingerprint] = min(other, line, key=lambda one: (str(one.provenance["date"]), one.dump()))
    place = {row.key(): i for i, row in reversed(list(enumerate(order)))}
    found = sorted(
        kept.values(), key=lambda one: (place.get(one.key, len(place)), one.key, dated(one), one.images, one.fingerprint)
    )
    write_atomic(Path(out), b"".join(line.dump().encode() + b"\n" for line in found))
    return len(found)


def agree(a: Line, b: Line) -> bool:
    """Return whether two lines of one cell hold the same numbers."""
    fields = ("bits", "values", "counts", "means")
    return all(getattr(a, name).keys() == getattr(b, name).keys() for name in fields) and not differences(a, b.numbers())


def dated(line: Line) -> str:
    """Return when a line was made."""
    return str(line.provenance["date"])
