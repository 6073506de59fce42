"""Certificates for a target radius, stopped as soon as the question is answered: a part of tools/certificates.py."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from certify_answers import logits
from certify_reference import ALPHA, N0, Lookup, OutOfDraws
from certify_settings import SEED, Base
from scipy.stats import norm

from rdc.certify import certify
from rdc.data import Images
from rdc.evaluate import Accuracy

TARGETS, CLEAR = (0.125, 0.25, 0.5), 0.2  # clear: the share of the answers, as a radius, is not within 20 % of the target


def target_part(bases: Sequence[Base], images: Images, n: int, most: int) -> dict[str, Any]:
    """The first draws of certificates that may take ``most``, stopped as soon as it is clear whether the radius reaches a target.

    n draws are known. Where they do not answer the question, the certificate is counted as if it took all ``most``.
    """
    rows, summary = [], []
    for b in bases:
        tables = [logits(b, x, i, N0 + n) for i, x in enumerate(images.x)]
        for target, stopping in product(TARGETS, ("sequence", "split")):
            mine = [target_row(b, images, i, table, most, target, stopping) for i, table in enumerate(tables)]
            rows += mine
            summary.append(target_summary(b, mine, most, target, stopping))
            print({k: str(v) for k, v in summary[-1].items()}, flush=True)
    known = {"sigma": bases[0].sigma, "n": most, "known": n, "n0": N0, "alpha": ALPHA, "clear": CLEAR}
    return {**known, "rows": rows, "summary": summary}


def target_row(b: Base, images: Images, i: int, table: np.ndarray, most: int, target: float, stopping: str) -> dict[str, Any]:
    """One image: draws until the question is answered, and how clear it was."""
    known = {"sigma": b.sigma, "n0": N0, "alpha": ALPHA, "seed": SEED, "index": i, "batch": 50}
    full = certify(Lookup(table, i), images.x[i], n=len(table) - N0, **known)
    try:
        found = certify(Lookup(table, i), images.x[i], n=most, target=target, stopping=stopping, **known)
        answer = {"met": bool(found.met), "calls": found.calls, "answered": True}
    except OutOfDraws:
        answer = {"met": None, "calls": N0 + most, "answered": False}
    estimate = b.sigma * float(norm.ppf(min(full.k / full.n, 1 - 1e-9)))
    return {
        "base": b.base, "target": target, "stopping": stopping, "index": i, **answer,
        "label right": full.candidate == int(images.y[i]), "full radius": full.radius,
        "clear": not (1 - CLEAR) * target < estimate < (1 + CLEAR) * target,
    }  # fmt: skip


def target_summary(b: Base, rows: list[dict[str, Any]], most: int, target: float, stopping: str) -> dict[str, Any]:
    """Draws and factors over all images, and over those that are clearly in or out."""
    calls, clear = np.array([r["calls"] for r in rows]), np.array([r["clear"] for r in rows])
    answered = [r for r in rows if r["answered"]]
    return {
        "base": b.base, "target": target, "stopping": stopping, "images": len(rows), "answered": len(answered),
        "met": Accuracy.of(sum(r["met"] for r in answered), len(answered)),
        "median calls": float(np.median(calls)), "mean calls": float(calls.mean()), "clear": int(clear.sum()),
        "factor": (N0 + most) / float(calls.mean()),
        "factor on clear images": (N0 + most) / float(calls[clear].mean()) if clear.any() else None,
        "least factor on clear images": (N0 + most) / float(calls[clear].max()) if clear.any() else None,
    }  # fmt: skip
