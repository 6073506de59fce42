"""Read a record in a notebook: parts that may be missing, numbers in words, tables.

A chapter must read without its record, and with half of it. So a part that was not run is empty, and a table without rows is one
line that says what would make it.
"""

__all__ = ["Reading", "accuracy_of", "fields", "in_words"]

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdc.runs.record import record_path, stored_record
from rdc.runs.statistics import Accuracy

Row = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """A record as a chapter reads it.

    Attributes:
        record: Its content; empty where there is no file.
        name: Of its file.
        tool: The command that makes it.
    """

    record: Row
    name: str
    tool: str
    _ids: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @classmethod
    def of(cls, path: str | Path, tool: str) -> "Reading":
        """Of a file, which may be missing.

        Raises:
            ValueError: if its folder is not found, or it is there and no record.
        """
        path = record_path(path)
        return cls(stored_record(path), f"{path.parent.name}/{path.name}", tool)

    def part(self, name: str) -> Row:
        """A part, empty where it was not run."""
        return self.record.get("results", {}).get(name) or {}

    def rows(self, name: str) -> list[Row]:
        """The rows of a part."""
        return list(self.part(name).get("rows", []))

    def missing(self, name: str) -> str:
        """What to say of a part that was not run."""
        return f"not run here: the record has no part '{name}' yet ({self.tool})"

    def provenance(self) -> str:
        """Parts, date, device and commit."""
        if not self.record:
            return f"{self.name}: not run here"
        where = self.record["environment"]
        parts = ", ".join(self.record["results"]) or "no parts yet"
        return f"record: {parts}\n{where['date']}, {where['device']}, commit {where['commit']}"

    def show(self, rows: Sequence[Row], name: str = "") -> None:
        """Display a table; or, if it is empty, print what part was not run. Its HTML is the same in every run."""
        import pandas as pd
        from IPython.display import display

        if rows:
            styled = pd.DataFrame(rows).style.hide(axis="index").format(precision=3, na_rep="-")
            display(styled.set_uuid(f"t{next(self._ids)}"))
        else:
            print(self.missing(name))


def accuracy_of(entry: Row | None) -> Accuracy | None:
    """Counts with their interval, as a record holds them; None where there is nothing.

    >>> print(accuracy_of({"correct": 90, "n": 100, "value": 0.9, "low": 0.826, "high": 0.945}))
    90/100 = 90.0 % [82.6, 94.5]
    """
    return Accuracy(**{key: entry[key] for key in ("correct", "n", "value", "low", "high")}) if entry else None


def in_words(entry: Row | None, digits: int = 3) -> str:
    """An interval of a record in words; counts as accuracies; a dash where there is nothing.

    >>> in_words({"value": 1.5, "low": 1.25, "high": 1.75}, digits=2)
    '1.50 [1.25, 1.75]'
    """
    if not entry or entry.get("value") is None:
        return "-"
    if "correct" in entry:
        return str(accuracy_of(entry))
    ends = "" if entry.get("low") is None else f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
    return f"{entry['value']:.{digits}f}{ends}"


def fields(row: Row, *keys: str) -> Row:
    """Some fields of a row: numbers as they are, intervals in words, a dash where there is nothing.

    >>> fields({"n": 3, "value": {"value": 0.5, "low": None}}, "n", "value", "base")
    {'n': 3, 'value': '0.500', 'base': '-'}
    """
    found = {key: row.get(key) for key in keys}
    return {key: in_words(v) if isinstance(v, dict) else "-" if v is None else v for key, v in found.items()}
