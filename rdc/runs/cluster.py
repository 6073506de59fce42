"""Cells on many machines: Ray as the executor of a campaign, for whoever has the extra ``cluster`` installed.

The process that started the run alone writes. It keeps a few tasks more in flight than there is room for, so that no worker
waits and no queue grows. A task whose worker died is tried again elsewhere; if the whole cluster is gone the run ends, and the
same command continues it: what is lost is what was in flight.
"""

__all__ = ["on_ray"]

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

Row = dict[str, Any]
Work = Callable[[Sequence[int]], list[Row]]
RETRIES = 3  # of a task whose worker died
AHEAD = 2  # tasks in flight for each that can run


def on_ray(
    work: Work, todo: Iterable[Sequence[int]], address: str | None = None, cpus: float = 1, gpus: float = 0, threads: int = 0
) -> Generator[list[Row], None, None]:
    """Yield the rows of each block of positions, in the order in which the tasks end.

    Arguments:
        work: Picklable; its modules must be importable on every machine.
        todo: Blocks; the next is asked for when there is room.
        address: Of a cluster, or ``auto`` for the one that runs here; None starts one on this machine for the run.
        cpus: Cores of a task.
        gpus: GPUs of a task: 0.25 lets four tasks share one.
        threads: Threads of a task; 0 for as many as cores.

    Raises:
        ModuleNotFoundError: without Ray.
        ValueError: if the cluster has no room for a task, or ``work`` raises a ValueError.
        RuntimeError: if it raises something else, a task died again and again, or the cluster is gone; what was yielded counts.
    """
    import ray

    with closing_cluster(address):
        room = min(ray.cluster_resources().get(kind, 0) // need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need)
        if room < 1:
            raise ValueError(f"the cluster has no room for a task of {cpus} cores and {gpus} GPUs: {ray.cluster_resources()}")
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(task)
        shared, waiting = ray.put(work), iter(todo)
        flying: list[Any] = []
        with closing(refill(remote, shared, waiting, threads or int(cpus))) as tasks:
            try:
                while True:
                    flying += [one for _, one in zip(range(AHEAD * int(room) - len(flying)), tasks, strict=False)]
                    if not flying:
                        return
                    (ready, *_), flying = ray.wait(flying, num_returns=1)
                    kind, value = ray.get(ready)
                    if kind != "rows":
                        raise (ValueError if kind == "ValueError" else RuntimeError)(value)
                    yield value
            except ray.exceptions.RayError as error:
                text = " ".join(str(error).split())[:200]
                raise RuntimeError(f"the cluster failed ({text}); what was done is kept, the same command continues") from None


def refill(remote: Any, shared: Any, waiting: Iterator[Sequence[int]], threads: int) -> Generator[Any, None, None]:
    """Yield tasks, each started when it is asked for."""
    for positions in waiting:
        yield remote.remote(shared, tuple(positions), threads)


def task(work: Work, positions: Sequence[int], threads: int) -> tuple[str, Any]:
    """Do a block on a worker; a failure comes back as its name and one line."""
    import torch

    torch.set_num_threads(max(1, threads))
    try:
        return "rows", work(positions)
    except Exception as error:  # noqa: BLE001, whatever it is, the run reports it
        return type(error).__name__, f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def closing_cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, and leave it; one that was started for this ends."""
    import ray

    ray.init(
        address=address, include_dashboard=None if address else False, log_to_driver=False, configure_logging=False,
        **({} if address else {"object_store_memory": 100 * 2**20}),
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
