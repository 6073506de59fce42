"""The experiments of the book as data: each module is one, a question and its rows; nothing is computed here.

>>> from rdc.experiments import experiment, names
>>> "rdc-gradient" in names(), experiment("rdc-gradient").rows[0].model
(True, 'dc')
"""

__all__ = ["Experiment", "experiment", "names", "unknown"]

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from rdc.runs.cell import Row


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: Its name, that of its module with dashes, and of its file of results.
        question: What it asks, in one sentence.
        rows: What it measures.
    """

    name: str
    question: str
    rows: tuple[Row, ...]


def names() -> list[str]:
    """Return the names of all experiments, sorted."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        ValueError: if there is none.
    """
    if name not in names():
        raise unknown("experiment", name, names(), "rdc experiment list")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return Experiment(name, " ".join(str(module.__doc__).split("\n\n")[0].split()), tuple(module.ROWS))


def unknown(kind: str, name: str, known: Iterable[str], command: str) -> ValueError:
    """Return the error that there is no such name, with the known ones nearest to it, and the command that lists all."""
    lower = {each.lower(): each for each in known}
    near = " or ".join(lower[each] for each in get_close_matches(name.lower(), lower, cutoff=0.75))
    return ValueError(f"unknown {kind} {name!r}; {f'did you mean {near}? ({command})' if near else f'see {command}'}")
