"""Rows of results/guidance.json: what samples are worth, over repetitions with disjoint seeds, and paired differences."""

from collections.abc import Collection
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from guidance_networks import Judges
from guidance_samples import APART, PLANS, Setting, drawn, labels
from torch import Tensor

from rdc.data import Images
from rdc.evaluate import Accuracy, predict
from rdc.guide.metrics import frechet_distance, precision_recall, repeated

METRICS = ("frechet", "frechet robust features", "precision", "recall", "precision robust features", "agreement")


def measure(judges: Judges, x: Tensor, y: Tensor) -> dict[str, float]:
    """All metrics of one set of images."""
    found = {}
    for name, network in judges.features.items():
        features, real, behind = network(x), judges.real[name], "" if name == "plain" else f" {name} features"
        both = precision_recall(real, features)
        found[f"frechet{behind}"] = frechet_distance(real, features)
        found |= {f"precision{behind}": both.precision.value, f"recall{behind}": both.recall.value}
    return found | {"agreement": float((predict(judges.judge, x, 250) == y).double().mean())}


def summary(each: list[dict[str, float]], n: int) -> dict[str, Any]:
    """Intervals over repetitions; agreement from its counts."""
    found: dict[str, Any] = {m: interval([e[m] for e in each]) for m in METRICS if m != "agreement"}
    values = [e["agreement"] for e in each]
    counts = Accuracy.of(round(sum(values) * n), n * len(each))
    return found | {"agreement": {**vars(counts), "values": values}}


def interval(values: list[float]) -> dict[str, Any]:
    """Mean of repetitions, its interval by Student's t, and the values."""
    found = repeated(values)
    return {"value": found.value, "low": found.low, "high": found.high, "values": values}


def row(judges: Judges, setting: Setting, first: int, repeats: int, n: int) -> dict[str, Any]:
    """A setting with all its metrics over repetitions with disjoint seeds."""
    sets = [drawn(setting, first + APART * r, n) for r in range(repeats)]
    each = [measure(judges, x, labels(n)) for x, _ in sets]
    seconds = sum(s for _, s in sets) / repeats
    p = PLANS[setting.plan]
    how = {**asdict(setting), "dtype": str(setting.type()).removeprefix("torch."), "form": p.form, "method": p.method}
    seeds = [first + APART * r for r in range(repeats)]
    return {**how, "n": n, "seeds": seeds, **summary(each, n), **setting.cost(), "seconds per image": round(seconds, 4)}


def real_rows(judges: Judges, sets: dict[str, Images], repeats: int, n: int) -> list[dict[str, Any]]:
    """What real images get that are not those of reference: the floor of every metric at this n."""
    found = []
    for name, images in sets.items():
        each = []
        for r in range(repeats):
            index = balanced(images.y, n, r)
            each.append(measure(judges, images.x[index], images.y[index]))
        found.append({"guide": f"real images, {name}", "n": n, **summary(each, n)})
    return found


def balanced(y: Tensor, n: int, repeat: int) -> Tensor:
    """Positions of ``n`` images, as many of each class, others in each repetition."""
    each = n // int(y.max() + 1)
    parts = [(y == k).nonzero()[:, 0][repeat * each : (repeat + 1) * each] for k in range(int(y.max()) + 1)]
    if min(len(p) for p in parts) < each:
        raise ValueError(f"there are not {repeat + 1} times {each} images of each class; take fewer")
    return torch.cat(parts)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics of ``a`` less those of ``b``, repetition by repetition, on the same seeds.

    Raises:
        ValueError: if the seeds or numbers of images are not the same.
    """
    if (a["seeds"], a["n"]) != (b["seeds"], b["n"]):
        raise ValueError(f"only rows of the same seeds and n can be compared; those of {a['guide']} and {b['guide']} are not")
    names = {"a": a["guide"], "b": b["guide"], "plan": a["plan"], "conditional": a["conditional"], "n": a["n"]}
    names["scales"] = [a["scale"], b["scale"]]
    pairs = {m: [x - y for x, y in zip(a[m]["values"], b[m]["values"], strict=True)] for m in METRICS}
    return [{**names, "metric": m, **interval(values)} for m, values in pairs.items()]


def compared(rows: list[dict[str, Any]], pairs: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
    """Differences of all pairs of guides that share plan, denoiser, type, n and seeds."""
    found = []
    for a, b in product(rows, rows):
        alike = all(a[k] == b[k] for k in ("plan", "conditional", "dtype", "n"))
        if alike and (a["guide"], b["guide"]) in pairs:
            found += [{**d, "dtype": a["dtype"]} for d in differences(a, b)]
    return found


def chosen(rows: list[dict[str, Any]], guide: str, plan: str, conditional: bool) -> float:
    """The scale above 0 with the smallest Frechet distance.

    Raises:
        ValueError: if nothing was tried.
    """
    tried = [r for r in rows if (r["guide"], r["plan"], r["conditional"]) == (guide, plan, conditional) and r["scale"] > 0]
    if not tried:
        raise ValueError(f"no scale of {guide} with {plan} was tried; run --part scales first")
    return min(tried, key=lambda r: (r["frechet"]["value"], r["scale"]))["scale"]
