"""The command ``rdc experiment``: the experiments of the book, what is missing of them, and runs that fill it in."""

__all__ = ["experiment_command"]

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rdc.cli.forecast import forecast, work
from rdc.cli.options import Device, Quiet, pick_device, writable
from rdc.experiments import Experiment, experiment, names
from rdc.quantities import count, number
from rdc.runs.campaign import Campaign, campaign_state, run_campaign
from rdc.runs.cell import Row
from rdc.runs.cluster import on_ray
from rdc.runs.record import book_folder
from rdc.runs.store import Store, merge
from rdc.tasks import FREE, code_of, measure, toy, weights_of

#: Seconds that a forecast takes.
FORECAST = 30.0


def experiment_command(
    action: Annotated[Positional[Literal["list", "status", "run", "merge"]], arg(help="What to do.")],
    what: Annotated[
        Positional[tuple[str, ...]], arg(help="Names of experiments (by default all); for merge the folders of runs.")
    ] = (),
    minutes: Annotated[float | None, arg(help="Start nothing that is not expected to end in this time.")] = None,
    device: Device = "auto",
    workers: Annotated[int, arg(help="Processes that share the cells.")] = 1,
    ray: Annotated[
        str | None, arg(help="Address of a Ray cluster, auto for the one that runs here, or local to start one for this run.")
    ] = None,
    cpus: Annotated[float, arg(help="Cores of a task on Ray.")] = 1,
    gpus: Annotated[float, arg(help="GPUs of a task on Ray; 0.25 lets four share one.")] = 0,
    out: Annotated[
        Path | None, arg(help="Folder of the results; by default that of the book, whose cells are not computed again elsewhere.")
    ] = None,
    anew: Annotated[bool, arg(help="Compute the cells that the book has, too, as if it had none; needs --out.")] = False,
    block: Annotated[
        int | None,
        arg(
            help="Images of a cell; by default as the row says, which suits a CPU. A GPU is filled by more. Rows whose "
            "result depends on the size of a cell (of audits, certificates, guidance, ...) keep theirs."
        ),
    ] = None,
    shard: Annotated[str, arg(help="I/N: of N runs that share the work this is number I = 0...N-1.")] = "0/1",
    toy_size: Annotated[bool, arg(name="toy", help="Two images and one step, to try a campaign; needs --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """List the experiments of the book, say what is missing, run it, or merge what runs elsewhere have found.

    A run computes the missing cells, the most valuable first. Killed and started again, it continues; runs of several machines,
    each with a folder of its own, are merged. A cell is stale if the code or the weights that decided it are not those of today.

    For example:
      rdc experiment list
      rdc experiment status rdc-gradient
      rdc experiment run rdc-gradient --minutes 9 --device cuda --block 128 --out run1
      rdc experiment merge run1 run2
      rdc experiment run nearest --anew --out mine

    The experiments paper-... need published denoisers, and say which; before they start they print what they cost here.
    """
    if action == "merge":
        return merge_folders([Path(name) for name in what], out)
    count(workers, "--workers")
    if minutes is not None:
        number(minutes, "--minutes", low=0)
    chosen = [experiment(name) for name in (what or names())]
    if action == "list":
        return print("\n".join(f"{one.name:<16}{len(one.rows):>4} rows  {one.question}" for one in chosen))
    if toy_size and (out is None or action == "status"):
        raise ValueError("--toy is for runs into a folder of their own; give --out")
    if anew and out is None:
        raise ValueError("--anew leaves the results of the book as they are; give --out, a folder for the others")
    if toy_size and block is not None:
        raise ValueError("--toy sets the size of a cell; leave out --block")
    if action == "status" and out is not None and not out.is_dir():
        raise ValueError(f"there is no folder {out}; give --out that of a run")
    if workers > 1 and action == "run" and pick_device(device).type == "cuda":
        print("processes on one GPU take turns, and each waits for all others; one with a large --block is faster", flush=True)
    begin, execute = time.monotonic(), None
    if ray is not None:
        execute = partial(on_ray, address=None if ray == "local" else ray, cpus=cpus, gpus=gpus)
    for one in chosen:
        rows = tuple(map(toy, one.rows)) if toy_size else in_blocks(one.rows, block)
        campaign = Campaign(rows, measure, code_of, weights_of, str(pick_device(device)), shard_of(shard), work)
        *known, path = files(one.name, out, anew or toy_size)
        if action == "status":
            print_state(one, campaign, [*known, path])
            continue
        writable(path)
        if known and (there := sum(state.done for state in campaign_state(campaign, Store.read(*known)))):
            print(f"{one.name}: the book has {there} images of today's code, which are not computed again (--anew does)")
        campaign = with_forecast(one.name, campaign, [*known, path], left_of(minutes, begin))
        done, left = run_campaign(campaign, path, known, left_of(minutes, begin), workers, quiet, execute)
        if not done + left and path.exists() and not path.stat().st_size:
            path.unlink()
        print(f"{one.name}: {done} cells done, {left} left; {path}")
    return None


def left_of(minutes: float | None, begin: float) -> float | None:
    """Return the minutes that are left of those that a run has; None if it has no limit."""
    return None if minutes is None else minutes - (time.monotonic() - begin) / 60


def with_forecast(name: str, campaign: Campaign, paths: Sequence[Path], left: float | None) -> Campaign:
    """Print what a run costs on this machine, if a cell is missing, and return it with its pace, in a tenth of a short time."""
    if (left is not None and left <= 0) or not campaign.missing(Store.read(*paths)):
        return campaign
    found = forecast(name, campaign.rows, campaign.device, FORECAST if left is None else min(FORECAST, 6 * left))
    if found is None:
        return campaign
    print(found.line, flush=True)
    return replace(campaign, pace=found.pace)


def in_blocks(rows: Sequence[Row], block: int | None) -> tuple[Row, ...]:
    """Return rows with another number of images in a cell, if one is given; where it decides a result, a row keeps its own.

    Raises:
        ValueError: if it is not positive.
    """
    if block is None:
        return tuple(rows)
    size = count(block, "--block")
    return tuple(replace(row, block=size) if row.task in FREE else row for row in rows)


def shard_of(text: str) -> tuple[int, int]:
    """Return ``I/N`` as two numbers.

    Raises:
        ValueError: if it is not that.
    """
    first, slash, total = text.partition("/")
    if not (slash and first.isdigit() and total.isdigit() and int(first) < int(total)):
        raise ValueError(f"--shard must be I/N with I in 0...N-1, such as 0/4, got {text!r}")
    return int(first), int(total)


def files(name: str, out: Path | None, alone: bool) -> list[Path]:
    """Return the files of an experiment: that of the book, unless a run is for itself alone, and the one that the run writes."""
    book = book_folder("results") / f"{name}.jsonl"
    return [book] if out is None else [out / f"{name}.jsonl"] if alone else [book, out / f"{name}.jsonl"]


def print_state(one: Experiment, campaign: Campaign, paths: Sequence[Path]) -> None:
    """Print how far each row is."""
    states = campaign_state(campaign, Store.read(*paths))
    done, stale, missing = (sum(getattr(s, field) for s in states) for field in ("done", "stale", "missing"))
    print(f"{one.name}: {done} images done, {stale} stale, {missing} missing")
    for state in states:
        row = state.row
        words = " ".join(f"{k}={v}" for k, v in [*row.options.items(), *row.arguments.items()] if k not in ("attacks", "penalty"))
        print(f"  {state.done:>4} {state.stale:>4} {state.missing:>4}  {row.data} {row.model} {row.attack or ''} {words}")


def merge_folders(folders: Sequence[Path], out: Path | None) -> None:
    """Merge the results of some folders into those of the book, or into another folder.

    Raises:
        ValueError: if a folder has no results, a file is of no experiment, or cells of ``--toy`` would come into the book.
    """
    target = book_folder("results") if out is None else out
    paths = [path for folder in folders for path in folder.glob("*.jsonl")]
    empty = [str(folder) for folder in folders if folder not in {path.parent for path in paths}]
    if empty or not paths:
        raise ValueError(f"no results in {', '.join(empty) or 'no folder'}; give the folders of some runs, nothing was merged")
    if odd := [path for path in paths if path.stem not in names()]:
        raise ValueError(f"{odd[0]} is of no experiment ('rdc experiment list' lists them); take it out, nothing was merged")
    if out is None and (toys := [path.parent for path in paths if holds_toys(path)]):
        raise ValueError(f"{toys[0]} holds cells of --toy, which are not for the book; give --out")
    for name in sorted({path.stem for path in paths}):
        known = [p for p in (folder / f"{name}.jsonl" for folder in [target, *folders]) if p.exists()]
        total = merge(known, target / f"{name}.jsonl", experiment(name).rows)
        print(f"{name}: {total} cells in {target / f'{name}.jsonl'}")


def holds_toys(path: Path) -> bool:
    """Return whether a file of an experiment has cells of its rows at toy size."""
    rows = experiment(path.stem).rows
    small = {toy(row).key() for row in rows} - {row.key() for row in rows}
    return any(line.key in small for line in Store.read(path).lines)
