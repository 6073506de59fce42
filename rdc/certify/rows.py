"""Certificates as rows of a file: killed at any instant, the same call continues and ends with the same rows.

A row depends on its image, the seed and the settings only, not on batch, block, workers, order or resume point.
"""

__all__ = ["SCHEMA", "Certifier", "certified_accuracy", "certify_rows"]

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn, tensor
from tqdm import tqdm

from rdc.certify.monte_carlo import settled, takes_index
from rdc.certify.smoothing import Settings, certificates
from rdc.door import Door, check_images, check_labels, entry
from rdc.evaluate import Accuracy, read_rows
from rdc.evaluate.robustness import identities
from rdc.quantities import count
from rdc.randomness import randomness
from rdc.runs.fingerprint import describe, digest
from rdc.runs.rowfile import Row, RowFile, pieces
from rdc.runs.workers import parallel

#: The fields of a row (:mod:`rdc.runs.rowfile`).
SCHEMA: dict[str, Any] = {
    "label": int,
    "right": bool,
    "certificate": {
        "label": int,
        "radius": float,
        "candidate": int,
        "k": int,
        "n": int,
        "p_low": float,
        "sigma": float,
        "alpha": float,
        "n0": int,
        "target": (float, type(None)),
        "met": (bool, type(None)),
        "stopping": str,
        "calls": int,
    },
    "seconds": float,
}


@dataclass(frozen=True)
class Certifier:
    """Makes the rows of some images; a row is a function of its image only.

    Arguments:
        model: Base classifier.
        x: Images.
        y: Labels.
        index: Identity of each image.
        settings: See :class:`rdc.certify.smoothing.Settings`.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    settings: Settings

    def digests(self) -> dict[int, str]:
        """Return the digest of each image and its label, by index."""
        x, y = self.x.cpu(), self.y.cpu()
        return {int(i): digest(x[n], y[n]) for n, i in enumerate(self.index)}

    def __call__(self, positions: Sequence[int], told: Callable[[int, float], Any] | None = None) -> list[Row]:
        """Return the certificate of each image, its true label, and whether the smoothed class is right."""
        start, part = time.perf_counter(), tensor(positions, device="cpu")
        x, y, ids = self.x[part], self.y[part], self.index[part].tolist()
        with Door(self.model, checked=False, attacked=False) as door:
            found = certificates(door, x, ids, self.settings, told)
        seconds = round((time.perf_counter() - start) / len(part), 4)
        return [
            {
                "index": i,
                "image": digest(image, label),
                "label": int(label),
                "right": one.label == int(label),
                "certificate": asdict(one),
                "seconds": seconds,
            }
            for i, image, label, one in zip(ids, x, y, found, strict=True)
        ]


def tell(bar: Any, done: int, made: int, radius: float) -> None:
    """Show the draws made, and the radius that they would certify."""
    bar.set_postfix_str(f"radius {radius:.3f}", refresh=False)
    bar.update(done + made - bar.n)


@entry
def certify_rows(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    rows: str | Path | None = None,
    *,
    sigma: float | str = 0.25,
    n0: int = 100,
    n: int = 10_000,
    alpha: float | str = 0.001,
    seed: int = 0,
    target: float | str | None = None,
    stopping: str = "sequence",
    give_up: float = 0.01,
    index: Int64[Tensor, " n"] | None = None,
    batch: int = 64,
    block: int = 8,
    workers: int = 1,
    config: dict[str, Any] | None = None,
    quiet: bool = True,
) -> list[Row]:
    """Return one certificate an image, as rows ``{"index", "image", "label", "right", "certificate", "seconds", "check"}``.

    Arguments:
        model: Base classifier, see :func:`rdc.certify.smoothing.certify`, as are all options not named here.
        x: Images in [0, 1].
        y: True labels.
        rows: File of rows; None keeps them in memory. Rows of images that it does not have are added.
        index: Identity of each image, by default its position.
        block: Images whose draws share batches, those with the same ``index // block``; a kill loses the blocks in flight.
        workers: Processes that share the blocks; the model must then be picklable.
        config: What else is to be in the header of the file, and to agree when it is continued.
        quiet: Whether to hide the progress bar: draws made, time left, and the radius so far.

    Raises:
        ValueError: for bad input, a file of another run, or a model that draws random numbers of its own.
        OSError: if the file cannot be written; the rows so far are intact.
        RuntimeError: if a worker died; the rows so far are kept.
    """
    check_images(x)
    check_labels(y, len(x))
    workers, block, ids = count(workers, "workers"), count(block, "block"), identities(index, len(y))
    settings = Settings.of(sigma, n0, n, alpha, seed, target, stopping, give_up, batch)
    fixed = settled(model, settings.seed)
    if not isinstance(fixed, nn.Module):
        raise ValueError(f"the base classifier must be an nn.Module, got {type(fixed).__name__}")
    if not takes_index(fixed) and randomness(fixed, x[:1], settings.seed)[0]:
        raise ValueError("the base classifier draws random numbers of its own; let it derive them from the keyword 'index'")
    said = {"sigma": settings.sigma, "n0": settings.n0, "n": settings.n, "alpha": settings.alpha, "seed": settings.seed}
    early = {} if settings.plan is None else {"stopping": stopping, "give_up": give_up}
    work = Certifier(fixed, x, y, ids, settings)
    header = {"certify": {**said, "target": settings.target, **early}, "block": block, "model": describe(fixed)}
    images, size = work.digests(), settings.n0 + settings.n
    with RowFile(rows, {**header, **({"run": config} if config else {})}, SCHEMA, images) as table:
        todo = pieces(list(images), block, table.rows)
        done = len(x) - sum(map(len, todo))
        bar = tqdm(total=len(x) * size, initial=done * size, disable=quiet, desc="certify", unit="draw", unit_scale=True)
        with bar, closing(parallel(work, todo, workers) if workers > 1 else serial(work, todo, bar)) as found:
            for made in found:
                table.append(*made)
                done += len(made)
                last = made[-1]
                bar.set_postfix_str(f"image {last['index']}: radius {last['certificate']['radius']:.3f}", refresh=False)
                bar.update(done * size - bar.n)
        return table.finish()


def serial(work: Certifier, todo: Sequence[Sequence[int]], bar: Any) -> Generator[list[Row], None, None]:
    """Yield rows made in this process, with the radius so far in the bar."""
    for positions in todo:
        yield work(positions, None if bar.disable else partial(tell, bar, bar.n))


def certified_accuracy(rows: Sequence[Row] | str | Path, radii: Sequence[float]) -> dict[float, Accuracy]:
    """Return, for each radius, the images whose smoothed class is right and certified at that radius, with 95 % intervals.

    Arguments:
        rows: A file, also of a run that goes on, or its rows.
        radii: L2 radii in image units; 0 asks for the right class alone.

    Raises:
        ValueError: if there are no rows yet.
    """
    found = read_rows(rows, SCHEMA)[1] if isinstance(rows, (str, Path)) else rows
    if not found:
        raise ValueError("no rows yet")
    certified = {r: sum(row["right"] and row["certificate"]["radius"] >= r for row in found) for r in radii}
    return {r: Accuracy.of(k, len(found)) for r, k in certified.items()}
