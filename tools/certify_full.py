"""Certificates with few evaluations against 124 levels of the single-head network: parts of tools/certificates.py.

The reference (APNDC for a cascade) takes more than 1 200 evaluations for each draw of an image. It is therefore asked about a
stratified sample of the same draws: those that the fast classifier answered otherwise, as many with the smallest margins, and
the rest. Its count, and so its radius, is estimated from the three shares; the interval of 95 % adds the Wilson intervals of
the strata (MOVER). It is asked about the candidate and the ``RIVALS`` classes that the fast classifier holds most likely for
this draw.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import torch
from certify_bases import INDEXED, RUNS, SEED, Base, build, logits, noisy, passes, reference, save, spent
from scipy.stats import norm
from torch import Tensor, nn
from tqdm import tqdm

from rdc.certify import APNDC, EPNDC, certify, radius_from_counts
from rdc.certify.draws import code
from rdc.data import Images
from rdc.evaluate import Accuracy
from rdc.rng import generator

RIVALS, STRATA, ALPHA, N0 = 3, (16, 16, 8), 0.001, 100
TARGETS, CLEAR = (0.125, 0.25, 0.5), 0.2  # clear: the share of the answers, as a radius, is not within 20 % of the target


class OutOfDraws(Exception):
    """More draws are needed than are known."""


class Lookup(nn.Module):
    """A base classifier whose logits for the draws of one image are known."""

    def __init__(self, table: np.ndarray, image: int) -> None:
        super().__init__()
        self.table, self.first = torch.from_numpy(table), code("certify", image, 0)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Logits of draws by their numbers."""
        if int(index.max()) - self.first >= len(self.table):
            raise OutOfDraws
        return self.table[index - self.first]


def strata(table: np.ndarray, candidate: int) -> list[np.ndarray]:
    """Draws after the first n0: not the candidate, as many of the candidate's with the smallest margins, the rest."""
    draws = np.arange(N0, len(table))
    lead = table[draws, candidate] - np.delete(table[draws], candidate, axis=1).max(axis=1)
    wrong, right = draws[lead < 0], draws[lead >= 0]
    right = right[np.argsort(lead[lead >= 0], kind="stable")]
    cut = min(len(right), max(len(wrong), STRATA[1]))
    return [wrong, right[:cut], right[cut:]]


def sampled(groups: Sequence[np.ndarray], index: int) -> list[np.ndarray]:
    """The draws of each stratum that the reference is asked about."""

    def some(group: np.ndarray, size: int, i: int) -> np.ndarray:
        order = torch.randperm(len(group), generator=generator(SEED, "strata", index, i)).numpy()
        return np.sort(group[order[:size]])

    return [some(group, size, i) for i, (group, size) in enumerate(zip(groups, STRATA, strict=True))]


def agrees(model: EPNDC | APNDC, x: Tensor, table: np.ndarray, candidate: int) -> np.ndarray:
    """Whether the reference answers ``candidate``, for noisy images and the fast classifier's logits."""
    rivals = np.argsort(-np.where(np.arange(table.shape[1]) == candidate, -np.inf, table), axis=1)[:, :RIVALS]
    shortlist = torch.from_numpy(np.concatenate([np.full((len(x), 1), candidate), rivals], axis=1))
    t = len(model.levels)
    with torch.no_grad():
        job = model.job(x)
        image, place, level = torch.cartesian_prod(torch.arange(len(x)), torch.arange(RIVALS + 1), torch.arange(t)).T
        loss = job.losses(image, shortlist[image, place], level).reshape(len(x), RIVALS + 1, t).sum(dim=2)
    return (loss.argmin(dim=1) == 0).numpy()


def asked(b: Base, model: EPNDC | APNDC, image: Tensor, index: int, table: np.ndarray, candidate: int) -> np.ndarray:
    """Rows ``(draw, stratum, whether the reference answers the candidate)``, stored."""
    path = RUNS / b.key() / f"reference-{index}-{len(table)}.npy"
    if path.exists():
        return np.load(path)
    rows = []
    for i, group in enumerate(sampled(strata(table, candidate), index)):
        for part in np.split(group, range(8, len(group), 8)):
            if len(part):
                x = torch.cat([noisy(image, b.sigma, index, range(d, d + 1)) for d in part.tolist()])
                rows += [(d, i, a) for d, a in zip(part, agrees(model, x, table[part], candidate), strict=True)]
    save(path, np.array(rows))
    return np.array(rows)


def estimated(groups: Sequence[np.ndarray], rows: np.ndarray) -> tuple[float, float, float]:
    """The reference's count of the candidate: estimate, and the ends of its 95 % interval."""
    parts = []
    for i, group in enumerate(groups):
        if len(group):
            said = rows[rows[:, 1] == i, 2]
            share = Accuracy.of(int(said.sum()), len(said))
            parts.append(len(group) * np.array([share.value, share.value - share.low, share.high - share.value]))
    middle = sum(p[0] for p in parts)
    n = sum(len(g) for g in groups)
    return middle, max(0.0, middle - math.hypot(*(p[1] for p in parts))), min(n, middle + math.hypot(*(p[2] for p in parts)))


def full_part(bases: Sequence[Base], images: Images, n: int) -> dict[str, Any]:
    """Radii at fixed n beside those of the reference."""
    rows, summary = [], []
    for b in bases:
        model, fast = build(reference(b)), build(b)
        tables = [logits(b, x, i, N0 + n, fast) for i, x in enumerate(tqdm(images.x, desc=f"{b.base}: {n} draws"))]
        mine = [full_row(b, model, images, i, table, n) for i, table in enumerate(tqdm(tables, desc=f"{b.base}: reference"))]
        rows += mine
        each = [spent(b, x, i, N0 + n) for i, x in enumerate(images.x)]
        cost = {"passes": float(np.mean(each)), "reference passes": passes(reference(b), model)}
        factor = cost["reference passes"] / cost["passes"]
        summary.append({"base": b.base, "levels": b.levels, **cost, "factor": factor, **summed(mine)})
    settings = {"sigma": bases[0].sigma, "n": n, "n0": N0, "alpha": ALPHA, "rivals": RIVALS, "strata": STRATA}
    return {**settings, "reference": asdict(reference(bases[0])), "rows": rows, "summary": summary}


def full_row(b: Base, model: nn.Module, images: Images, i: int, table: np.ndarray, n: int) -> dict[str, Any]:
    """One image: its certificate and what the reference's would be."""
    found = certify(Lookup(table, i), images.x[i], sigma=b.sigma, n0=N0, n=n, alpha=ALPHA, seed=SEED, index=i, batch=1000)
    groups = strata(table, found.candidate)
    said = asked(b, model, images.x[i], i, table, found.candidate)
    count = estimated(groups, said)
    middle, low, high = (radius_from_counts(round(k), n, b.sigma, ALPHA) for k in count)
    return {
        "base": b.base, "index": i, "label": found.label, "true": int(images.y[i]), "candidate": found.candidate,
        "k": found.k, "n": n, "radius": found.radius, "reference k": count[0], "reference radius": middle,
        "reference low": low, "reference high": high,
        "reference draws": len(said), "same label": (middle > 0) == (found.radius > 0),
    }  # fmt: skip


def sampled_part(made: Base, bases: Sequence[Base], images: Images, n: int) -> dict[str, Any]:
    """Other base classifiers on the draws that the reference was asked about: both counts are estimates from the strata.

    So a few dozen draws an image tell which classifier keeps the radius, and what it costs, before any certificate is made.
    """
    rows, slow = [], build(reference(made))
    for b in bases:
        model, mine, cost = build(b), [], []
        for i, x in enumerate(tqdm(images.x, desc=f"{b.base} {b.denoiser or ''} {b.first or b.levels}")):
            table = logits(made, x, i, N0 + n)
            found = certify(Lookup(table, i), x, sigma=b.sigma, n0=N0, n=n, alpha=ALPHA, seed=SEED, index=i, batch=1000)
            said = asked(made, slow, x, i, table, found.candidate)
            row, spent_here = sampled_row(b, model, x, i, table, found.candidate, said)
            mine.append(row)
            cost.append(spent_here)
        each = float(np.mean(cost))
        settings = {k: v for k, v in asdict(b).items() if k != "sigma"}
        rows.append({**settings, "passes": each, "factor": passes(reference(made), slow) / each, **summed(mine)})
        print({k: str(v) for k, v in rows[-1].items()}, flush=True)
    return {"sigma": made.sigma, "n": n, "n0": N0, "alpha": ALPHA, "reference": asdict(reference(made)), "rows": rows}


def sampled_row(
    b: Base, model: nn.Module, x: Tensor, i: int, table: np.ndarray, candidate: int, said: np.ndarray
) -> tuple[dict[str, Any], float]:
    """Estimated radii of a base classifier and of the reference, and what a draw costs."""
    path, n = RUNS / b.key() / f"sampled-{i}-{len(table)}.npy", len(table) - N0
    if not path.exists():
        parts = [stratum(b, model, x, i, table, candidate, said[said[:, 1] == s]) for s in range(len(STRATA))]
        save(path, np.concatenate(parts))
    groups, own = strata(table, candidate), np.load(path)  # draw, stratum, yes, evaluations
    mine, wanted = estimated(groups, own), estimated(groups, said)
    mine_r, middle, high = (radius_from_counts(round(k), n, b.sigma, ALPHA) for k in (mine[0], wanted[0], wanted[2]))
    cost = sum(own[own[:, 1] == s, 3].mean() * len(g) / n for s, g in enumerate(groups) if len(g))
    label = (middle > 0) == (mine_r > 0)
    return {"radius": mine_r, "reference radius": middle, "reference high": high, "same label": label}, float(cost)


def stratum(b: Base, model: nn.Module, x: Tensor, i: int, table: np.ndarray, candidate: int, said: np.ndarray) -> np.ndarray:
    """Rows ``(draw, stratum, whether b answers the candidate, evaluations)`` for the draws of a stratum."""
    if not len(said):
        return np.zeros((0, 4))
    draws, before = said[:, 0].astype(int).tolist(), getattr(model, "spent", 0)
    noise = torch.cat([noisy(x, b.sigma, i, range(d, d + 1)) for d in draws])
    keyed = {"index": torch.tensor([code("certify", i, d) for d in draws])} if b.base in INDEXED else {}
    yes = agrees_in_parts(b, model, noise, keyed, table[draws], candidate)
    each = (model.spent - before) / len(draws) if b.base == "Cascade" else passes(b, model)
    return np.stack([said[:, 0], said[:, 1], np.array(yes), np.full(len(draws), each)], axis=1).astype(float)


def agrees_in_parts(
    b: Base, model: nn.Module, x: Tensor, keyed: dict[str, Tensor], table: np.ndarray, candidate: int
) -> list[bool]:
    """Whether a base classifier answers ``candidate``; the slow ones are asked about a shortlist, as the reference is."""
    if b.levels and b.levels > 100:
        return [a for i in range(0, len(x), 8) for a in agrees(model, x[i : i + 8], table[i : i + 8], candidate).tolist()]
    with torch.no_grad():
        return (model(x, **keyed).argmax(dim=1) == candidate).tolist()


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many images keep label and radius; ratios where the reference certifies anything."""
    kept = [r for r in rows if r["reference radius"] > 0]
    ratios = sorted(r["radius"] / r["reference radius"] for r in kept)
    certain = sum(r["radius"] >= 0.95 * r["reference high"] for r in rows)
    return {
        "images": len(rows),
        "same label": Accuracy.of(sum(r["same label"] for r in rows), len(rows)),
        "within 5 %": Accuracy.of(sum(r["radius"] >= 0.95 * r["reference radius"] for r in rows), len(rows)),
        "within 5 %, upper end": Accuracy.of(certain, len(rows)),
        "median ratio": float(np.median(ratios)) if ratios else None,
        "worst ratio": ratios[0] if ratios else None,
    }


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
