"""Ray as the executor of a campaign: the same lines, whoever dies."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from test_campaign import CAMPAIGN, measure, numbers

from rdc.runs.campaign import run_campaign
from rdc.runs.cell import Cell, Outcome
from rdc.runs.cluster import on_ray
from rdc.runs.store import Store

ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=os.pathsep.join(__import__("sys").path))


class Mortal:
    """Measures cells; the first time that it meets the cell at ``start`` its process is killed."""

    def __init__(self, marker: Path, start: int) -> None:
        self.marker, self.start = marker, start

    def __call__(self, cell: Cell, device: str) -> Outcome:
        """The outcome, or the end."""
        if cell.start == self.start and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(cell)


def test_a_killed_worker_costs_nothing(tmp_path):
    mortal = replace(CAMPAIGN, measure=Mortal(tmp_path / "marker", 4))
    run_campaign(mortal, tmp_path / "a.jsonl", execute=partial(on_ray, cpus=0.5))
    assert (tmp_path / "marker").exists(), "a worker was killed"
    run_campaign(CAMPAIGN, tmp_path / "b.jsonl")
    assert numbers(tmp_path / "a.jsonl") == numbers(tmp_path / "b.jsonl")


def test_a_killed_cluster_loses_what_was_in_flight(tmp_path):
    out = tmp_path / "a.jsonl"
    slow = replace(CAMPAIGN, measure=partial(measure, pause=0.5), rows=tuple(replace(r, n=20, block=2) for r in CAMPAIGN.rows))
    run = multiprocessing.get_context("spawn").Process(target=cluster_run, args=(slow, out))
    run.start()
    deadline = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)  # the head, the workers and the run
    run.join()
    kept = [line.dump() for line in Store.read(out).lines]
    assert 3 <= len(kept) < len(slow.cells())
    assert run_campaign(slow, out, execute=partial(on_ray, cpus=1)) == (len(slow.cells()) - len(kept), 0)
    assert [line.dump() for line in Store.read(out).lines][: len(kept)] == kept
    run_campaign(replace(slow, measure=measure), tmp_path / "b.jsonl")
    assert numbers(out) == numbers(tmp_path / "b.jsonl")


def cluster_run(campaign, out):
    """Run in a process group of its own."""
    os.setsid()
    run_campaign(campaign, out, execute=partial(on_ray, cpus=1))


def test_no_room_and_failures_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no room for a task of 1 cores and 1 GPUs"):
        run_campaign(CAMPAIGN, tmp_path / "a.jsonl", execute=partial(on_ray, gpus=1))
    broken = replace(CAMPAIGN, measure=partial(measure, pause=-1.0))
    with pytest.raises(ValueError, match="ValueError: sleep length"):
        run_campaign(broken, tmp_path / "b.jsonl", execute=on_ray)
