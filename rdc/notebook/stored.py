"""The stored results of experiments, as a chapter reads them."""

__all__ = ["stored_rows"]

from pathlib import Path

from rdc.experiments import experiment
from rdc.runs.table import Entry, results, unions


def stored_rows(*names: str, folder: str | Path | None = None) -> list[Entry]:
    """Return the entries of some experiments, and the union of the attacks on each defence; nothing of what was not run.

    Arguments:
        names: Of the experiments.
        folder: Where the results are; by default the book's own.

    Raises:
        ValueError: if there is no such experiment, or its file is damaged.
    """
    found = [entry for name in names for entry in results(name, experiment(name).rows, folder)]
    return found + unions(found)
