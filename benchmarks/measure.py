"""Timings that take turns, rows of the record, and a record to which single parts can be added."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rdc.runs.record import environment, read_record, write_record

FIRST = ("trained", "naive", "optimal")  # the parts of a record that does not name them


def alternate(*runs: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of each of several functions that take turns, after one warm-up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(rounds):
        for run, times in zip(runs, seconds, strict=True):
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row(value: float, limit: float | None = None, at_most: bool = True, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """One number of the record, its limit and whether it keeps it."""
    met = None if limit is None else bool(value <= limit if at_most else value >= limit)
    return {"value": value, "limit": limit, "limit_is": "at most" if at_most else "at least", "met": met, **more}


def merge(path: Path, config: dict[str, Any], found: dict[str, dict[str, Any]], seconds: float, every: bool) -> Path:
    """Write the rows of the parts that were run; unless ``every`` part was, those of the others stay as they are.

    ``config["parts"]`` says of each part with which options, when and on which machine and commit it was measured.
    """
    old: dict[str, Any] = {"results": {}, "config": {"parts": {}}}
    if path.exists() and not every:
        old = read_record(path)
    parts = old["config"].get("parts")
    if parts is None:
        parts = {name: {**old["config"], "environment": old["environment"]} for name in FIRST}
    parts = {**parts, **{name: {**config, "environment": environment()} for name in found}}
    rows = {key: value for part in found.values() for key, value in part.items()}
    return write_record(path, {**config, "parts": parts}, {**old["results"], **rows}, seconds)
