"""Processes that share the blocks of a run: whoever is free takes the next; a kill loses one block of each."""

__all__ = ["parallel"]

import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from tqdm import tqdm

Row = dict[str, Any]
Work = Callable[[Sequence[int]], list[Row]]


def parallel(work: Work, todo: Iterable[Sequence[int]], workers: int) -> Generator[list[Row], None, None]:
    """Yield the rows of each block of positions, in the order in which the workers finish them.

    The next block is asked for when a worker is free. Each worker has its share of the threads. It ends when its pipe closes, and
    at once when this process is gone.

    Raises:
        ValueError: if ``work`` cannot be sent to another process, or raises a ValueError.
        RuntimeError: if it raises something else, or a worker died.
    """
    payload, waiting = packed(work), iter(todo)
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)  # one of two classes that share no base with Process
    threads, team = max(1, torch.get_num_threads() // workers), {}
    if method == "forkserver":
        context.set_forkserver_preload(["rdc.evaluate.robustness"])  # one import of torch for all
    try:
        for block in itertools.islice(waiting, workers):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, payload, threads), daemon=True)
            process.start()
            there.close()
            team[here] = process
            assign(here, block)
        busy = set(team)
        while busy:
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for pipe in ready:
                yield receive(pipe, team[pipe])  # and is written before its worker gets more: a kill loses one block each
                block = next(waiting, ())
                if block:
                    assign(pipe, block)
                else:
                    busy.discard(pipe)
    finally:
        for pipe, process in team.items():
            pipe.close()
            process.kill()
            process.join()


def packed(work: Work) -> bytes:
    """Return ``work`` as bytes; plain pickle copies tensors, so that no shared memory outlives a kill."""
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        text = f"with workers the model and the attacks must be picklable ({error}); define them in a module, or use workers=1"
        raise ValueError(text) from error


def assign(pipe: Connection, block: Sequence[int]) -> None:
    """Send a block; that a worker is dead shows when its answer is read."""
    with suppress(OSError):
        pipe.send(block)


def receive(pipe: Connection, process: Any) -> list[Row]:
    """Return the rows of a worker, or raise its failure."""
    try:
        kind, value = pipe.recv()
    except (EOFError, OSError):
        process.join(1)
        text = f"a worker died (exit code {process.exitcode}; -9 may mean that memory ran out); the rows so far are kept"
        raise RuntimeError(text) from None
    if kind == "rows":
        rows: list[Row] = value
        return rows
    raise (ValueError if kind == "ValueError" else RuntimeError)(value if kind == "ValueError" else f"{kind}: {value}")


def serve(pipe: Connection, payload: bytes, threads: int) -> None:
    """Work: positions in, rows out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=leave_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # by default a named semaphore, which would outlive a worker that is killed
    torch.set_num_threads(threads)
    try:
        work = pickle.loads(payload)
        while True:
            try:
                positions = pipe.recv()
            except (EOFError, OSError):
                return
            pipe.send(("rows", work(positions)))
    except Exception as error:  # noqa: BLE001, whatever it is, the parent reports it
        with suppress(OSError):
            pipe.send((type(error).__name__, " ".join(str(error).split())))


def leave_with_parent() -> None:
    """End this process, even in the middle of a block, when its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
