"""Cells a minute of one and of two workers, as processes and on Ray, and what a large campaign would take: results/scaling.json.

    python -m benchmarks.scaling [--cells 16]

The rate counts from the first result to the last, without the start of the workers. One thread each. Ray is left out where it is
not installed.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rdc.experiments import experiment
from rdc.runs.campaign import Campaign, run_campaign
from rdc.runs.cell import Row
from rdc.runs.cluster import on_ray
from rdc.runs.record import book_folder, write_record
from rdc.runs.store import Store
from rdc.runs.workers import parallel
from rdc.tasks import code_of, measure, weights_of

IMAGES, METHODS, THREATS, BLOCK = 10_000, 12, 4, 64


def rate(execute: Callable[..., Iterator[Any]], cells: int, workers: int) -> tuple[float, list[str]]:
    """Cells a minute, and the numbers of all cells."""
    row = Row("dc", {"levels": 4}, "pgd", {"eps": "8/255", "steps": 10}, n=4 * cells, block=4)
    stamps: list[float] = []

    def stamped(work: Any, todo: Any) -> Iterator[Any]:
        for found in execute(work, todo):
            stamps.append(time.perf_counter())
            yield found

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cells.jsonl")
        run_campaign(Campaign((row,), measure, code_of, weights_of), path, execute=stamped)
        bare = {"commit": "", "date": "", "device": "", "python": "", "seconds": None, "versions": {}}
        numbers = sorted(replace(line, provenance=bare).dump() for line in Store.read(path).lines)
    return 60 * (cells - workers) / (stamps[-1] - stamps[workers - 1]), numbers


def plan() -> dict[str, Any]:
    """A campaign of 10 000 images, 12 methods and 4 threats, at what the suite took for an image, all its gradients together."""
    store = Store.read(book_folder("results") / "rdc-suite.jsonl")
    found = [store.of(row) for row in experiment("rdc-suite").rows]
    pairs = {(f.row.about["model"], f.row.about["norm"]): f.n for f in found}
    seconds = sum(f.seconds for f in found) / sum(pairs.values())
    total = IMAGES * METHODS * THREATS
    return {
        "images": IMAGES, "methods": METHODS, "threats": THREATS, "block": BLOCK, "seconds an image": seconds,
        "cells": -(-IMAGES // BLOCK) * METHODS * THREATS, "core days": total * seconds / 86_400,
        "bits, MB": total / 8 / 1e6,
    }  # fmt: skip


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=16)
    cells, start = parser.parse_args().cells, time.perf_counter()
    torch.set_num_threads(2)  # parallel() shares them: one thread for each of two workers
    rates, numbers = {}, []
    for workers in (1, 2):
        torch.set_num_threads(workers)
        rates[f"{workers} processes"], found = rate(partial(parallel, workers=workers), cells, workers)
        numbers.append(found)
    if importlib.util.find_spec("ray"):
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        for workers in (1, 2):
            rates[f"{workers} on Ray"], found = rate(partial(on_ray, cpus=2 / workers, threads=1), cells, workers)
            numbers.append(found)
    results = {
        "cells a minute": rates,
        "identical": all(found == numbers[0] for found in numbers),
        **{f"ratio, {kind}": rates[f"2 {kind}"] / rates[f"1 {kind}"] for kind in ("processes", "on Ray") if f"2 {kind}" in rates},
        "cells": cells,
        "plan": plan(),
    }
    print(results)
    write_record(book_folder("results") / "scaling.json", {"cells": cells, "block": 4}, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
