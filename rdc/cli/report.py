"""The commands ``rdc report`` and ``rdc verify``: tables of stored results, and whether they come out again."""

__all__ = ["report_command", "verify_command"]

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from rdc.cli.options import Device, pick_device, writable
from rdc.experiments import experiment, names
from rdc.quantities import number
from rdc.runs.cell import Outcome, Row
from rdc.runs.record import book_folder, write_atomic
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store
from rdc.runs.verify import verify
from rdc.tasks import code_of, measure, weights_of

Names = Annotated[Positional[tuple[str, ...]], arg(help="Names of experiments; by default all.")]


def report_command(
    what: Names = (),
    form: Annotated[Literal["markdown", "csv", "figure"], arg(name="format", help="figure needs --out.")] = "markdown",
    folder: Annotated[Path | None, arg(help="Folder of the results; by default that of the book.")] = None,
    out: Annotated[Path | None, arg(help="File to write; by default the terminal.")] = None,
) -> None:
    """Print what experiments have found: one line a row, with counts, 95 % intervals, and whether today's code decided it.

    For example:
      rdc report rdc-gradient
      rdc report rdc-suite --format csv --out suite.csv
    """
    place, out = results_folder(folder), None if out is None else writable(out)
    lines = [line for name in (what or names()) for line in table(name, place)]
    if form == "figure":
        if out is None:
            raise ValueError("a figure goes into a file; give --out, for instance report.svg")
        return draw(lines, out)
    text = as_csv(lines) if form == "csv" else as_markdown(lines)
    print(text, end="") if out is None else write_atomic(out, text.encode())
    return None


def results_folder(folder: Path | None) -> Path:
    """Return a folder of results, by default that of the book.

    Raises:
        ValueError: if there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give --folder the one that 'rdc experiment run --out' wrote")
    return book_folder("results") if folder is None else folder


def table(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return the lines of an experiment that have results; what stands in several of its tables is one line."""
    rows, store = {row.key(): row for row in experiment(name).rows}, Store.read(folder / f"{name}.jsonl")
    return [line_of(name, row, store.of(row), store) for row in rows.values() if store.of(row).n]


def line_of(name: str, row: Row, found: Found, store: Store) -> dict[str, Any]:
    """Return the line of a row: clean and robust images with the interval of these, and whatever else was measured in words.

    Images that nobody attacked are not called robust.
    """
    clean, robust = counted(found, "clean"), counted(found, "robust") if row.attack else None
    current = store.of(row, code_of(row), weights_of(row)).n
    return {
        "experiment": name, "data": row.data, "model": row.model, "options": words(row.options), "task": row.task,
        "attack": row.attack or "", "arguments": words(row.arguments), "seed": row.seed, "first": row.start, "n": found.n,
        "clean": clean.correct if clean else "",
        "robust": robust.correct if robust else "", "low": round(robust.low, 4) if robust else "",
        "high": round(robust.high, 4) if robust else "", "other": others(found), "of today's code": current,
    }  # fmt: skip


def counted(found: Found, name: str) -> Accuracy | None:
    """Return how often an outcome is yes; None if it was not measured."""
    measured = any(name in line.counts for line in found.lines.values())
    return found.accuracy(name) if measured else None


def others(found: Found) -> str:
    """Return how many images of the row have other outcomes, the sums of what was counted in cells, and the means, in words."""
    lines = list({id(line): line for line in found.lines.values()}.values())
    names = dict.fromkeys(k for line in lines for k in line.counts if k not in ("clean", "robust"))
    whole = {name: sum(line.counts.get(name, 0) for line in lines if name not in line.bits) for name in names}
    totals = {name: sum(found.outcome(name).values()) + count for name, count in whole.items()}
    means = {name: found.mean(name) for name in dict.fromkeys(k for line in lines for k in line.means)}
    return ", ".join([*(f"{k} {v}" for k, v in totals.items()), *(f"{k} {v:.4g}" for k, v in means.items() if v is not None)])


def words(options: Any) -> str:
    """Return options in a few words: of a list its entries, of an attack in a list its name."""
    return " ".join(f"{k}={word(v)}" for k, v in options.items())


def word(value: Any) -> str:
    """Return a value of an option as a word; a list or a dictionary within brackets."""
    if isinstance(value, dict):
        return str(value["name"]) if "name" in value else f"({words(value)})"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(word, value))})"
    return str(value)


def as_csv(lines: list[dict[str, Any]]) -> str:
    """Return a table as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def as_markdown(lines: list[dict[str, Any]]) -> str:
    """Return a table as Markdown; nothing was run if it is empty."""
    if not lines:
        return "no results yet; rdc experiment run makes them\n"
    heads = list(lines[0])
    body = ["| " + " | ".join(str(line[h]) for h in heads) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *body]) + "\n"


def draw(lines: list[dict[str, Any]], out: Path) -> None:
    """Draw robust accuracies with their intervals.

    Raises:
        ValueError: if there is none.
    """
    import matplotlib

    lines = [line for line in lines if line["robust"] != ""]
    if not lines:
        raise ValueError("no robust accuracy was measured in these experiments, so that there is nothing to draw")

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 0.8 + 0.28 * len(lines)), layout="constrained")
    value = [line["robust"] / line["n"] for line in lines]
    below = [v - line["low"] for v, line in zip(value, lines, strict=True)]
    above = [line["high"] - v for v, line in zip(value, lines, strict=True)]
    ax.errorbar(value, range(len(lines)), xerr=[below, above], fmt="o", color="#0072b2", capsize=2)
    titles = [f"{one['data']}: {one['model']} {one['options']} | {one['attack']} {one['arguments']}" for one in lines]
    ax.set(xlim=(0, 1), xlabel="robust accuracy (fraction of images), 95 % interval")
    ax.set_yticks(range(len(lines)), titles)
    ax.invert_yaxis()
    ax.tick_params(axis="y", labelsize=7)
    fig.savefig(out)
    plt.close(fig)


def verify_command(
    what: Names = (),
    share: Annotated[float, arg(help="Part of the cells that took no longer than --seconds, above 0 and at most 1.")] = 0.1,
    seconds: Annotated[float, arg(help="Cells that took longer are left out.")] = 60.0,
    device: Device = "auto",
    folder: Annotated[Path | None, arg(help="Folder of the results; by default that of the book.")] = None,
    seed: int = 0,
) -> None:
    """Compute a random part of the cheap cells again, and compare image by image.

    Raises:
        RuntimeError: if an image of a cell that today's code decided has another outcome.
        ValueError: if an experiment or the folder is not there, or a number is out of range.
    """
    number(share, "--share", low=0, high=1, strict=True)
    number(seconds, "--seconds", low=0)
    place, device = results_folder(folder), str(pick_device(device))
    stores = [(experiment(name), Store.read(place / f"{name}.jsonl")) for name in what or names()]
    chosen = (verify(one.rows, store, lambda *_: Outcome({}), device, share, seconds, seed) for one, store in stores)
    print(f"{sum(1 for checks in chosen for _ in checks)} cells are computed again", flush=True)
    wrong = 0
    for one, store in stores:
        rows = {row.key(): row for row in one.rows}
        for check in verify(one.rows, store, measure, device, share, seconds, seed):
            row, (start, stop) = rows[check.line.key], check.line.images
            today = check.line.code == code_of(row) and check.line.weights == weights_of(row)
            wrong += len(check.differs) if today else 0
            age = "" if today else ", decided by other code or weights"
            agree = f"{stop - start - len(check.differs)}/{stop - start} agree{age}"
            print(f"{one.name} {row.model} {row.attack or ''} images {start}...{stop - 1}: {agree}", flush=True)
    if wrong:
        raise RuntimeError(f"{wrong} images of cells of today's code come out otherwise")
