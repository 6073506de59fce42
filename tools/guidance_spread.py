"""Does the threat model of a training matter more than its seed? The statistics of the part ``threats`` of tools/guidance.py.

A cell of Table 4 is one training, so that nothing inside a cell tells what another training of the same would give. That is what
the trainings of one threat model with several seeds are for. Three questions are asked of a metric:

| :func:`ratio_of_spreads`  do the cells differ more than the seeds? F test of two variances
| :func:`main_effects`      do the means over steps, or over threat models, differ? two-way analysis without repetition
| :func:`beside`            does one training lie outside of what seeds do? prediction interval of Student's t

All cells share seed 0: first weights, images and noise of the training. So their spread has less of chance in it than that of
the seeds, and a ratio below 1 is possible. With five seeds the variance of the seeds has four degrees of freedom: few.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from guidance_networks import GRID
from guidance_rows import METRICS, interval
from scipy.stats import f, t

from rdc.guide.threat import Threat

PAPER = Threat()
THREATS = tuple(dict.fromkeys((g.norm, g.eps) for g in sorted(GRID, key=lambda g: (g.norm, g.eps))))
STEPS = tuple(sorted({g.steps for g in GRID}))


def ratio_of_spreads(cells: Sequence[float], seeds: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """Standard deviations, their ratio with its interval, and the p of "cells differ more than seeds" (F test, one-sided).

    Raises:
        ValueError: if a set has fewer than two values, or the seeds do not differ.
    """
    if min(len(cells), len(seeds)) < 2 or not np.std(seeds) > 0:
        raise ValueError(f"a spread needs two values, and seeds that differ; got {len(cells)} cells and seeds {list(seeds)}")
    a, b = float(np.std(cells, ddof=1)), float(np.std(seeds, ddof=1))
    degrees = len(cells) - 1, len(seeds) - 1
    ends = f.ppf([(1 + level) / 2, (1 - level) / 2], *degrees) ** 0.5
    found = {"cells": a, "seeds": b, "value": a / b, "low": a / b / float(ends[0]), "high": a / b / float(ends[1])}
    return found | {"p": float(f.sf((a / b) ** 2, *degrees)), "degrees": list(degrees)}


def main_effects(table: Sequence[Sequence[float]], level: float = 0.95) -> dict[str, Any]:
    """Rows and columns of a table with one value a cell: mean less the mean of all, with intervals, and F tests.

    The error is what an additive model leaves, ``(R - 1)(C - 1)`` degrees of freedom: interaction and chance together.
    """
    values = np.asarray(table, dtype=float)
    mean, (r, c) = values.mean(), values.shape
    rows, columns = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    left, degrees = values - mean - rows[:, None] - columns[None], (r - 1) * (c - 1)
    error = float((left**2).sum()) / degrees
    found: dict[str, Any] = {"mean": float(mean), "error": math.sqrt(error), "degrees": degrees}
    for name, effects, size in (("rows", rows, c), ("columns", columns, r)):
        count = len(effects)
        half = float(t.ppf((1 + level) / 2, degrees)) * math.sqrt(error * (1 / size - 1 / values.size))
        ratio = size * float((effects**2).sum()) / (count - 1) / error
        found[name] = [{"value": float(e), "low": float(e) - half, "high": float(e) + half} for e in effects]
        found[f"{name} F"], found[f"{name} p"] = ratio, float(f.sf(ratio, count - 1, degrees))
    return found


def beside(value: float, seeds: Sequence[float], m: int = 1, level: float = 0.95) -> dict[str, float]:
    """One training less the mean of several, with the interval of prediction for one of m comparisons.

    An interval that holds 0 says that another seed of the same might have given this value.
    """
    n, alone = len(seeds), (1 - level) / m
    half = float(t.ppf(1 - alone / 2, n - 1)) * float(np.std(seeds, ddof=1)) * math.sqrt(1 + 1 / n)
    difference = value - float(np.mean(seeds))
    return {"value": difference, "low": difference - half, "high": difference + half}


def values_of(row: dict[str, Any], conditional: bool | None) -> dict[str, float]:
    """The numbers of a training: metrics with one of the two denoisers, or without any (None) what the classifier is itself."""
    if conditional is None:
        return {"clean": row["clean"]["value"], "robust": row["robust"]["value"], "alignment": row["alignment at"]["value"]}
    where = row if conditional else row["unconditional"]
    return {m: where[m]["value"] for m in METRICS}


def threat_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """A threat model of the record, to compare with others."""
    return tuple(row[k] for k in ("norm", "eps", "steps", "radius", "stop"))


def key_of(threat: Threat) -> tuple[Any, ...]:
    """The same of a threat model."""
    return threat.norm, threat.eps, threat.steps, threat.radius, threat.stop


def spreads(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that this module says of the rows of ``threats``; empty if cells or seeds are missing."""
    place = {(threat_key(r), r["training seed"]): i for i, r in enumerate(rows)}
    seeds = [i for (key, _), i in place.items() if key == key_of(PAPER)]
    cells = [[place.get((key_of(Threat(*threat, steps)), 0)) for steps in STEPS] for threat in THREATS]
    if len(seeds) < 2 or any(i is None for line in cells for i in line):
        return {}
    found, effects, single = [], [], []
    others, rivals = [i for i in range(len(rows)) if i not in seeds], {i for line in cells for i in line} - set(seeds)
    for conditional in (True, False, None):
        each = [values_of(r, conditional) for r in rows]
        for metric in each[0]:
            what = {"conditional": conditional, "metric": metric}
            table, again = [[each[i][metric] for i in line] for line in cells], [each[i][metric] for i in seeds]
            values = [v for line in table for v in line]
            if len(set(values)) > 1 and len(set(again)) > 1:  # counts of few images may be the same
                found.append({**what, **ratio_of_spreads(values, again)})
                effects.append({**what, **main_effects(table)})
            for i in others:
                alone, together = (beside(each[i][metric], again, m) for m in (1, 2 * len(rivals)))  # two denoisers
                single.append({**what, "row": i, **alone, "together": together})
    names = {"threats": [list(threat) for threat in THREATS], "steps": list(STEPS), "cells": cells, "seeds": seeds}
    return {**names, "spread": found, "effects": effects, "beside": single, "early stop": paired_seeds(rows, place)}


def paired_seeds(rows: list[dict[str, Any]], place: dict[Any, int]) -> list[dict[str, Any]]:
    """The paper's training without early stopping less that with it, seed by seed; empty with fewer than two such pairs."""
    unstopped = key_of(Threat(stop=False))
    pairs = [(i, place[key_of(PAPER), s]) for (key, s), i in place.items() if key == unstopped and (key_of(PAPER), s) in place]
    found = []
    for conditional in (True, False, None) if len(pairs) > 1 else ():
        both = [(values_of(rows[a], conditional), values_of(rows[b], conditional)) for a, b in pairs]
        found += [{"conditional": conditional, "metric": m, **interval([a[m] - b[m] for a, b in both])} for m in both[0][0]]
    return found
