"""Certificates as rows of a file, one image a row: killed at any instant, the same call continues and ends with the same rows.

A row depends on its image, the seed and the settings only: not on the batch, the workers, the order or the resume point.
"""

__all__ = ["Certifier", "certified_accuracy", "certify_rows"]

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, arange, nn
from tqdm import tqdm

from rdc.certify.monte_carlo import settled, takes_index
from rdc.certify.smoothing import certify
from rdc.data import check_images, check_labels
from rdc.evaluate import Accuracy, read_rows
from rdc.randomness import randomness
from rdc.runs.fingerprint import describe, digest
from rdc.runs.rowfile import Row, RowFile
from rdc.runs.workers import parallel


@dataclass(frozen=True)
class Certifier:
    """Makes the row of one image, a function of its position only.

    Arguments:
        model: Base classifier.
        x: Images.
        y: Labels.
        index: Identity of each image.
        settings: Options of :func:`rdc.certify.smoothing.certify` that decide numbers.
        batch: Noisy images at a time.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    settings: dict[str, Any]
    batch: int

    def config(self) -> dict[str, Any]:
        """What decides the rows."""
        tensors = {"images": digest(self.x), "labels": digest(self.y), "index": digest(self.index)}
        return {"certify": self.settings, **tensors, "model": describe(self.model)}

    def __call__(self, position: int, bar: tqdm | None = None) -> Row:
        """The certificate of an image, its true label, and whether the smoothed class is right."""
        start, i, label = time.perf_counter(), int(self.index[position]), int(self.y[position])
        told = None if bar is None else partial(tell, bar, bar.n, i)
        found = certify(self.model, self.x[position], index=i, batch=self.batch, progress=told, **self.settings)
        return {
            "index": i,
            "label": label,
            "right": found.label == label,
            "certificate": asdict(found),
            "seconds": round(time.perf_counter() - start, 4),
        }


def tell(bar: tqdm, done: int, index: int, made: int, radius: float) -> None:
    """Show the radius that the draws so far would certify."""
    bar.set_postfix_str(f"image {index}: radius {radius:.3f}", refresh=False)
    bar.update(done + made - bar.n)


def certify_rows(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    rows: str | Path | None = None,
    *,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
    target: float | None = None,
    stopping: str = "sequence",
    give_up: float = 0.01,
    index: Int64[Tensor, " n"] | None = None,
    batch: int = 64,
    workers: int = 1,
    config: dict[str, Any] | None = None,
    quiet: bool = True,
) -> list[Row]:
    """One certificate an image, as rows ``{"index", "label", "right", "certificate", "seconds"}``.

    Arguments:
        model: Base classifier, see :func:`rdc.certify.smoothing.certify`, as are all options not named here.
        x: Images in [0, 1].
        y: True labels.
        rows: File of rows; None keeps them in memory.
        index: Identity of each image, by default its position.
        workers: Processes that share the images; the model must then be picklable.
        config: What else is to be in the header of the file, and to agree when it is continued.
        quiet: Whether to hide the progress bar: draws made, time left, and the radius so far.

    Raises:
        ValueError: for bad input, a file of another run, or a model that draws random numbers of its own.
        OSError: if the file cannot be written; the rows so far are intact.
        RuntimeError: if a worker died; the rows so far are kept.
    """
    check_images(x)
    check_labels(y, len(x))
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    ids = arange(len(x)) if index is None else index.cpu()
    if ids.shape != y.shape or len(ids.unique()) < len(ids):
        raise ValueError(f"index must hold {len(y)} different numbers, one per image")
    fixed = settled(model, seed)
    if not takes_index(fixed) and randomness(fixed, x[:1], seed)[0]:
        raise ValueError("the base classifier draws random numbers of its own; let it derive them from the keyword 'index'")
    settings = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "seed": seed, "target": target}
    settings |= {} if target is None else {"stopping": stopping, "give_up": give_up}
    work = Certifier(fixed, x.detach().clone(), y.clone(), ids, settings, batch)
    header = {**work.config(), **({"run": config} if config else {}), "n": len(x)}
    with RowFile(rows, header) as table:
        todo = [position for position, i in enumerate(ids.tolist()) if i not in table.rows]
        size, done = n0 + n, len(x) - len(todo)
        bar = tqdm(total=len(x) * size, initial=done * size, disable=quiet, desc="certify", unit="draw", unit_scale=True)
        with bar, closing(parallel(work, todo, workers) if workers > 1 else serial(work, todo, bar, quiet)) as found:
            for row in found:
                table.append(row)
                done += 1
                bar.set_postfix_str(f"image {row['index']}: radius {row['certificate']['radius']:.3f}", refresh=False)
                bar.update(done * size - bar.n)
        return table.finish()


def serial(work: Certifier, todo: Sequence[int], bar: tqdm, quiet: bool) -> Iterator[Row]:
    """Rows in this process, with the radius so far in the bar."""
    for position in todo:
        yield work(position, None if quiet else bar)


def certified_accuracy(rows: Sequence[Row] | str | Path, radii: Sequence[float]) -> dict[float, Accuracy]:
    """For each radius the images whose smoothed class is right and certified at that radius, with 95 % intervals.

    Arguments:
        rows: A file, also of a run that goes on, or its rows.
        radii: L2 radii in image units; 0 asks for the right class alone.

    Raises:
        ValueError: if there are no rows yet.
    """
    found = read_rows(rows)[1] if isinstance(rows, (str, Path)) else rows
    if not found:
        raise ValueError("no rows yet")
    certified = {r: sum(row["right"] and row["certificate"]["radius"] >= r for row in found) for r in radii}
    return {r: Accuracy.of(k, len(found)) for r, k in certified.items()}
