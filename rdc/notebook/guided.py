"""Stored rows of guidance as tables that a notebook displays; what is said of them is computed when they are read."""

__all__ = ["attacks_table", "differences_table", "samples_table", "setting", "stored_found", "threat_name"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdc.guide.plan import PLANS, evaluations
from rdc.guide.reading import difference, mean
from rdc.notebook.stored import stored_cells
from rdc.runs.store import Found

METRICS = ("frechet", "frechet robust features", "precision", "recall", "agreement")
BRIEF = tuple(name for name in METRICS if "features" not in name)


def stored_found(*names: str, folder: str | Path | None = None) -> list[Found]:
    """Return the rows of some experiments that were run, in order.

    Arguments:
        names: Of the experiments.
        folder: Where the results are; by default the book's own.
    """
    return [found for name in names for found in stored_cells(name, folder)]


def setting(found: Found) -> str:
    """Return how images of a row are made: sampler, and whether the denoiser knows the class."""
    about = found.row.about
    return f"{about['plan']}, {'class known' if about['conditional'] else 'unconditional'}" if "plan" in about else "-"


def threat_name(threat: Mapping[str, Any] | None) -> str:
    """Return a threat model of a training in words."""
    if threat is None:
        return "vanilla"
    eps = f"{round(255 * threat['eps'])}/255" if threat["norm"] == "Linf" else f"{threat['eps']:g}"
    rule = "" if "radius" not in threat else f", {threat['radius']}"
    return f"{threat['norm']} {eps}, {threat['steps']} steps{rule}{'' if threat.get('stop', True) else ', no early stop'}"


def samples_table(rows: Sequence[Found], cost: bool = False, brief: bool = False) -> Any:
    """Return the metrics of guided samples with intervals over repetitions; with ``cost`` what an image took.

    Arguments:
        rows: Of an experiment that samples.
        cost: Add what an image took.
        brief: Only six columns: setting, guide with its scale, and the metrics in ``BRIEF``.
    """
    lines = []
    for found in rows:
        about = found.row.about
        line = {"setting": setting(found), "guide": about["guide"], "scale": f"{about.get('scale', 0):g}", "n": about["images"]}
        line |= {name: str(mean(found, name)) for name in METRICS}
        if cost:
            looks, free = evaluations(PLANS[about["plan"]]), about["guide"] == "classifier-free"
            line |= {"dtype": about["dtype"], "nfe": looks * (3 if free else 1)}
            line |= {"guide gradients": 0 if free or about["guide"] == "none" else looks}
            line |= {"seconds per image": f"{found.seconds / found.n / about['images']:.3f}"}
        if brief:
            name = f"{about['guide']}, {line['scale']}" if about.get("scale") else about["guide"]
            line = {"setting": line["setting"], "guide, scale": name} | {metric: line[metric] for metric in BRIEF}
        lines.append(line)
    return table(lines, "Guided samples, with intervals over repetitions")


def differences_table(pairs: Sequence[tuple[Found, Found]], brief: bool = False) -> Any:
    """Return the metrics of the first of each pair less those of the second, on the same seeds.

    Arguments:
        pairs: Rows of the same seeds.
        brief: Only six columns: setting, guides, and the metrics in ``BRIEF``.
    """
    lines = []
    for a, b in pairs:
        one, other = a.row.about, b.row.about
        what = f"{one['guide']} - {other['guide']}" if one["guide"] != other["guide"] else f"{one['guide']}"
        where = setting(a) if one["plan"] == other["plan"] else f"{one['plan']} - {other['plan']}"
        scales = f"{one['scale']:g} / {other['scale']:g}"
        lines.append(
            {"setting": where, "difference of": what, "scales": scales, "n": one["images"], "dtype": one["dtype"]}
            | {name: str(difference(a, b, name)) for name in METRICS}
        )
        if brief:
            lines[-1] = {name: lines[-1][name] for name in ("setting", "difference of", *BRIEF)}
    return table(lines, "Differences on the same seeds, the first guide less the second")


def attacks_table(rows: Sequence[Found]) -> Any:
    """Return how many images classifiers of noisy images get right, clean and attacked."""
    lines = []
    for found in rows:
        about, known = found.row.about, {name for line in found.lines.values() for name in line.counts}
        line = {"guide": about["guide"], "sigma": format(about["sigma"], "g"), "times the paper's radius": about.get("times", 1)}
        line |= {name: str(found.accuracy(name)) if name in known else "-" for name in ("clean", "robust", "trained")}
        lines.append(line)
    return table(lines, "Classifiers of noisy images, clean and attacked")


def table(lines: Sequence[Mapping[str, Any]], caption: str) -> Any:
    """Return lines as a table with a caption; a word in the place of one without lines."""
    import pandas as pd

    return pd.DataFrame(lines).style.hide(axis="index").set_caption(caption) if lines else "not run here"
