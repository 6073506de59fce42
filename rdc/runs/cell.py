"""Cells, the units of work of an experiment, and the lines that keep what came out.

A :class:`Row` says what is measured: a task on a model, on some test images. It is made of *cells*, blocks of at most ``block``
images, which are computed one by one, anywhere. A row is data: two rows with the same :meth:`Row.spec` are the same measurement,
whatever their places in tables.

A :class:`Line` keeps a cell: counts, one bit an image for every yes-or-no outcome, means, and where it comes from. Whether it
still holds says its ``code``, the hash of the definitions that decided it, and its ``weights``, those of the checkpoints that it
used.
"""

__all__ = ["Cell", "Line", "Outcome", "Row", "pack", "unpack"]

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rdc.runs.rowfile import misfit

Json = Any
OPTIONAL = ("bits", "means", "counts", "values", "words")  # fields that a line without them has not
#: Fields of a line with their types, as :func:`rdc.runs.rowfile.misfit` reads them.
SCHEMA: dict[str, Any] = {
    "spec": {
        "task": str, "data": str, "model": str, "options": dict, "attack": (str, type(None)), "arguments": dict, "seed": int,
    },
    "images": list,
    "code": str,
    "weights": {str: str},
    "bits": {str: str},
    "means": {str: float},
    "counts": {str: int},
    "values": {str: list},
    "words": {str: str},
    "provenance": {
        "commit": str, "date": str, "device": str, "python": str, "seconds": (float, type(None)), "versions": {str: str},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measurement, as data.

    Attributes:
        model: Name of a model of :mod:`rdc.models`.
        options: Its options.
        attack: Name of an attack; None for clean images.
        arguments: Those of the attack.
        data: Name of a data set.
        n: How many test images.
        start: The first of them.
        block: Images of a cell.
        seed: Seed of attack and verdicts.
        task: What is done: a function of :mod:`rdc.tasks`.
        about: What a reader wants to know besides: tables, names. It decides nothing.
        priority: Rows with a smaller number are computed first.
    """

    model: str
    options: Mapping[str, Json] = field(default_factory=dict)
    attack: str | None = None
    arguments: Mapping[str, Json] = field(default_factory=dict)
    data: str = "fashion-mini"
    n: int = 96
    start: int = 0
    block: int = 16
    seed: int = 0
    task: str = "attack"
    about: Mapping[str, Json] = field(default_factory=dict)
    priority: int = 0

    def spec(self) -> dict[str, Json]:
        """Return what decides the numbers of an image."""
        kept = ("task", "data", "model", "options", "attack", "arguments", "seed")
        found: dict[str, Json] = json.loads(json.dumps({name: _plain(getattr(self, name)) for name in kept}))
        return found

    def key(self) -> str:
        """Return the spec in one line."""
        return key_of(self.spec())

    def cells(self) -> Iterator["Cell"]:
        """Yield the blocks of the images, cut at multiples of the block size."""
        at, stop = self.start, self.start + self.n
        while at < stop:
            following = min(stop, (at // self.block + 1) * self.block)
            yield Cell(self, at, following)
            at = following


@dataclass(frozen=True)
class Cell:
    """The images ``start...stop - 1`` of a row."""

    row: Row
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Outcome:
    """What a task found out about the images of a cell.

    Attributes:
        bits: A yes or no for each image, by name: ``clean`` and ``robust`` say that it was right.
        means: Means over the images, by name.
        counts: Other counts, by name.
        values: A number for each image, or None where there is none, by name.
        words: What was found, in words, by name.
    """

    bits: Mapping[str, Sequence[bool]]
    means: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A cell that was computed.

    Attributes:
        spec: Of its row.
        images: ``[start, stop]``.
        code: Hash of the code that decided it.
        weights: Hashes of the checkpoints, by name.
        bits: Outcomes packed by :func:`pack`, by name.
        means: Means over the images.
        counts: How many of each outcome, and other counts.
        values: A number for each image, or None.
        words: What was found, in words.
        provenance: Commit, date, device, Python, seconds, versions.
    """

    spec: dict[str, Json]
    images: tuple[int, int]
    code: str
    weights: dict[str, str]
    bits: dict[str, str]
    means: dict[str, float]
    counts: dict[str, int]
    values: dict[str, list[float | None]]
    words: dict[str, str]
    provenance: dict[str, Json]

    @classmethod
    def of(cls, cell: Cell, outcome: Outcome, code: str, weights: Mapping[str, str], provenance: Mapping[str, Json]) -> "Line":
        """Return the line of a cell.

        Raises:
            ValueError: if an outcome has not one bit for each image.
        """
        for name, given in [*outcome.bits.items(), *outcome.values.items()]:
            if len(given) != len(cell):
                raise ValueError(f"{name} has {len(given)} outcomes for {len(cell)} images")
        counts = {**{name: sum(map(bool, bits)) for name, bits in outcome.bits.items()}, **outcome.counts}
        packed = {name: pack(bits) for name, bits in outcome.bits.items()}
        means = {name: float(value) for name, value in outcome.means.items()}
        values = {name: list(given) for name, given in outcome.values.items()}
        images, words = (cell.start, cell.stop), dict(outcome.words)
        return cls(cell.row.spec(), images, code, dict(weights), packed, means, counts, values, words, dict(provenance))

    @property
    def key(self) -> str:
        """The spec in one line."""
        return key_of(self.spec)

    @property
    def fingerprint(self) -> str:
        """A hash of spec, images, code and weights; two lines that share it hold the same numbers."""
        text = json.dumps([self.spec, self.images, self.code, self.weights], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def outcome(self, name: str) -> dict[int, bool]:
        """Return an outcome by the index of the image."""
        start, stop = self.images
        return dict(zip(range(start, stop), unpack(self.bits[name], stop - start), strict=True))

    def value(self, name: str) -> dict[int, float | None]:
        """Return the numbers of a name by the index of the image."""
        return dict(zip(range(*self.images), self.values[name], strict=True))

    def numbers(self) -> Outcome:
        """Return what came out, without words."""
        bits = {name: list(self.outcome(name).values()) for name in self.bits}
        return Outcome(bits, self.means, self.counts, self.values)

    def dump(self) -> str:
        """Return the line as JSON; fields that hold nothing are left out."""
        found = asdict(self)
        return json.dumps({k: v for k, v in found.items() if v or k not in OPTIONAL}, sort_keys=True)

    @classmethod
    def load(cls, text: str) -> "Line":
        """Return the line that JSON holds.

        Raises:
            ValueError: if a field is missing, too many, of another type, or disagrees with another, in one line.
        """
        value = json.loads(text)
        value = {**{name: {} for name in OPTIONAL}, **value} if isinstance(value, dict) else value
        fault = misfit(value, SCHEMA)
        known = {*SCHEMA, *SCHEMA["spec"], *SCHEMA["provenance"]}
        more = [] if fault else sorted({*value, *value["spec"], *value["provenance"]} - known)
        if fault or more:
            raise ValueError(fault or f"a cell has no {more[0]}")
        images = value["images"]
        if len(images) != 2 or not all(type(i) is int for i in images) or not 0 <= images[0] < images[1]:
            raise ValueError(f"images of a cell are the first and the one past the last, not {images}")
        for name, given in value["values"].items():
            if len(given) != images[1] - images[0] or not all(v is None or type(v) in (int, float) for v in given):
                raise ValueError(f"{name} is not {images[1] - images[0]} numbers")
        line = cls(**{**value, "images": (images[0], images[1])})
        for name, packed in line.bits.items():
            if sum(unpack(packed, images[1] - images[0])) != line.counts.get(name):
                raise ValueError(f"the bits of {name} are not {line.counts.get(name)} of {images[1] - images[0]}")
        return line


def key_of(spec: Mapping[str, Json]) -> str:
    """Return a spec in one line, the same for every order of its fields."""
    return json.dumps(spec, sort_keys=True)


def pack(bits: Sequence[bool]) -> str:
    """Return bits as hexadecimal digits, the first image in the highest bit of the first digit.

    >>> pack([True, False, False, False, True])
    '88'
    """
    padded = [*map(bool, bits), *[False] * (-len(bits) % 4)]
    return "".join(f"{sum(bit << (3 - k) for k, bit in enumerate(padded[i : i + 4])):x}" for i in range(0, len(padded), 4))


def unpack(text: str, n: int) -> list[bool]:
    """Return the first ``n`` bits of :func:`pack`.

    Raises:
        ValueError: if the text holds other than ``n`` bits.

    >>> unpack("88", 5)
    [True, False, False, False, True]
    """
    if len(text) != -(-n // 4):
        raise ValueError(f"{n} images take {-(-n // 4)} digits, got {text!r}")
    bits = [bool(int(digit, 16) >> (3 - k) & 1) for digit in text for k in range(4)]
    if any(bits[n:]):
        raise ValueError(f"{text!r} holds more than {n} bits")
    return bits[:n]


def _plain(value: Json) -> Json:
    """Mappings as dicts."""
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value
