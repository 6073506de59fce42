"""Rows of results as a chapter reads them: what was measured, in the words of its tables, with numbers derived when read."""

__all__ = ["entry", "results", "unions"]

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdc.runs.cell import Row
from rdc.runs.record import book_folder
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store

Entry = dict[str, Any]
#: What two entries must share to be attacks on one defence under one threat.
SAME = (
    "table",
    "model",
    "lm",
    "N",
    "method",
    "budget",
    "sigma",
    "timesteps",
    "noise",
    "norm",
    "eps",
    "protocol",
    "draws",
    "coupling",
)


def results(name: str, rows: Iterable[Row], folder: str | Path | None = None) -> list[Entry]:
    """Return what is known of the rows of an experiment, those of randomised models under two protocols; nothing of empty rows.

    Arguments:
        name: Of the experiment, and of its file.
        rows: Its rows.
        folder: Where the file is; by default the book's results.
    """
    place = book_folder("results") if folder is None else Path(folder)
    store = Store.read(place / f"{name}.jsonl")
    return [made for row in rows for made in entries(store.of(row)) if row.n]


def entries(found: Found) -> Iterator[Entry]:
    """Yield the entries of a row: one of a deterministic model, by protocol of a randomised one."""
    if found.n:
        fresh = any("robust resubmit" in line.bits for line in found.lines.values())
        yield entry(found, "", "draws" if fresh else "known")
        if fresh:
            yield entry(found, " resubmit", "resubmit")


def entry(found: Found, which: str, protocol: str) -> Entry:
    """Return one entry: the words of the row, accuracies, the indices of images that are not right, means, seconds."""
    outcome = f"robust{which}"
    robust = found.outcome(outcome)
    means = {norm: found.mean(f"displacement {norm}") for norm in ("L2", "Linf")}
    return {
        **found.row.about,
        "protocol": protocol,
        "clean": asdict(found.accuracy(f"clean{which}")),
        "robust": asdict(found.accuracy(outcome)),
        "wrong": [i for i, right in robust.items() if not right],
        "images": list(robust),
        "displacement": None if means["L2"] is None else means,
        "seconds": found.seconds,
        "commits": sorted({str(line.provenance["commit"]) for line in found.lines.values()}),
    }


def unions(entries: Iterable[Entry]) -> list[Entry]:
    """Return the union of the attacks on each defence under each threat: right under all that met the same images.

    There is one for every set of images that an attack met, of all attacks that met at least these; none of one attack alone.
    """
    groups: dict[str, list[Entry]] = {}
    for one in entries:
        groups.setdefault(json.dumps([one.get(k) for k in SAME]), []).append(one)
    return [found for group in groups.values() for found in _unions_of(group)]


def _unions_of(group: list[Entry]) -> Iterator[Entry]:
    for images in sorted({tuple(one["images"]) for one in group}, key=len):
        met = [one for one in group if set(images) <= set(one["images"])]
        if len({(one["gradient"], one["attack"], one["eot"]) for one in met}) > 1:
            wrong = sorted({i for one in met for i in one["wrong"]} & set(images))
            base = next(one for one in met if len(one["images"]) == len(images))
            yield {
                **base, "gradient": "union", "attack": "+".join(sorted({one["attack"] for one in met})), "wrong": wrong,
                "eot": max(one["eot"] for one in met), "robust": asdict(Accuracy.of(len(images) - len(wrong), len(images))),
                "seconds": sum(one["seconds"] for one in met), "of": sorted({one["gradient"] for one in met}),
            }  # fmt: skip
