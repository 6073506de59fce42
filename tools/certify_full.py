"""Certificates with few evaluations against 124 levels of the single-head network: parts of tools/certificates.py."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from certify_answers import logits, noisy, spent
from certify_bases import build, passes, save
from certify_reference import ALPHA, N0, RIVALS, STRATA, Lookup, asked, estimated, sampled, strata
from certify_settings import INDEXED, RUNS, SEED, Base
from torch import Tensor, nn
from tqdm import tqdm

from rdc.certify import certify, radius_from_counts
from rdc.certify.monte_carlo import code
from rdc.data import Images
from rdc.evaluate import Accuracy


def full_part(bases: Sequence[Base], against: Base, images: Images, n: int) -> dict[str, Any]:
    """Radii at fixed n beside those of the reference ``against``."""
    rows, summary, model = [], [], build(against)
    for b in bases:
        fast = build(b)
        tables = [logits(b, x, i, N0 + n, fast) for i, x in enumerate(tqdm(images.x, desc=f"{b.base}: {n} draws"))]
        mine = [
            full_row(b, against, model, images, i, table, n) for i, table in enumerate(tqdm(tables, desc=f"{b.base}: reference"))
        ]
        rows += mine
        each = [spent(b, x, i, N0 + n) for i, x in enumerate(images.x)]
        cost = {"passes": float(np.mean(each)), "reference passes": passes(against, model)}
        factor = cost["reference passes"] / cost["passes"]
        learned = {"rounds": [asdict(r) for r in fast.rounds]} if b.base == "Race" else {}
        summary.append({**asdict(b), **cost, "factor": factor, **summed(mine), **learned})
    settings = {"sigma": bases[0].sigma, "n": n, "n0": N0, "alpha": ALPHA, "rivals": RIVALS, "strata": STRATA}
    return {**settings, "reference": asdict(against), "rows": rows, "summary": summary}


def full_row(b: Base, against: Base, model: nn.Module, images: Images, i: int, table: np.ndarray, n: int) -> dict[str, Any]:
    """One image: its certificate and what the reference's would be."""
    found = certify(Lookup(table, i), images.x[i], sigma=b.sigma, n0=N0, n=n, alpha=ALPHA, seed=SEED, index=i, batch=1000)
    groups = strata(table, found.candidate)
    said = asked(b, against, model, images.x[i], i, table, found.candidate)
    count = estimated(groups, said)
    middle, low, high = (radius_from_counts(round(k), n, b.sigma, ALPHA) for k in count)
    return {
        "base": b.base, "index": i, "label": found.label, "true": int(images.y[i]), "candidate": found.candidate,
        "k": found.k, "n": n, "radius": found.radius, "reference k": count[0], "reference radius": middle,
        "reference low": low, "reference high": high,
        "reference draws": len(said), "same label": (middle > 0) == (found.radius > 0),
    }  # fmt: skip


def sampled_part(made: Base, against: Sequence[Base], bases: Sequence[Base], images: Images, n: int) -> dict[str, Any]:
    """Other base classifiers on the draws that the references were asked about: all counts are estimates from the strata.

    So a few dozen draws an image tell which classifier keeps the radius, and what it costs, before any certificate is made.
    """
    rows = []
    for b in bases:
        mine, cost = {slow.base: [] for slow in against}, []
        model = build(b)
        for i, x in enumerate(tqdm(images.x, desc=f"{b.base} {b.denoiser or ''} {b.first or b.levels}")):
            table = logits(made, x, i, N0 + n)
            candidate = certify(
                Lookup(table, i), x, sigma=b.sigma, n0=N0, n=n, alpha=ALPHA, seed=SEED, index=i, batch=1000
            ).candidate
            groups, own = strata(table, candidate), answers(made, b, model, x, i, table, candidate)
            cost.append(sum(own[own[:, 1] == s, 3].mean() * len(g) / n for s, g in enumerate(groups) if len(g)))
            for slow in against:
                said = asked(made, slow, None, x, i, table, candidate)
                mine[slow.base].append(sampled_row(groups, own, said, n, b.sigma))
        rows += [sampled_summary(b, slow, float(np.mean(cost)), mine[slow.base]) for slow in against if slow != b]
    return {"sigma": made.sigma, "n": n, "n0": N0, "alpha": ALPHA, "references": [asdict(slow) for slow in against], "rows": rows}


def sampled_summary(b: Base, slow: Base, each: float, mine: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the record: a base classifier beside a reference."""
    settings = {k: v for k, v in asdict(b).items() if k != "sigma"}
    row = {**settings, "reference": slow.base, "passes": each, "factor": passes(slow, build(slow)) / each, **summed(mine)}
    print({k: str(v) for k, v in row.items()}, flush=True)
    return row


def sampled_row(groups: Sequence[np.ndarray], own: np.ndarray, said: np.ndarray, n: int, sigma: float) -> dict[str, Any]:
    """Estimated radii of a base classifier and of the reference, from what each answered."""
    mine, wanted = estimated(groups, own), estimated(groups, said)
    mine_r, middle, high = (radius_from_counts(round(k), n, sigma, ALPHA) for k in (mine[0], wanted[0], wanted[2]))
    return {"radius": mine_r, "reference radius": middle, "reference high": high, "same label": (middle > 0) == (mine_r > 0)}


def answers(made: Base, b: Base, model: nn.Module, x: Tensor, i: int, table: np.ndarray, candidate: int) -> np.ndarray:
    """Rows ``(draw, stratum, whether b answers the candidate, evaluations)`` for the draws of the strata, stored."""
    if b.denoiser == "single head" and b.levels > 100:  # as slow as a reference, and asked as one
        rows = asked(made, b, model, x, i, table, candidate)
        return np.concatenate([rows, np.full((len(rows), 1), passes(b, model))], axis=1)
    path = RUNS / b.key() / f"sampled-{i}-{len(table)}.npy"
    if not path.exists():
        groups = sampled(strata(table, candidate), i)
        save(path, np.concatenate([stratum(b, model, x, i, candidate, s, g) for s, g in enumerate(groups)]))
    return np.load(path)


def stratum(b: Base, model: nn.Module, x: Tensor, i: int, candidate: int, s: int, draws: np.ndarray) -> np.ndarray:
    """The rows of one stratum."""
    if not len(draws):
        return np.zeros((0, 4))
    before, noise = getattr(model, "spent", 0), torch.cat([noisy(x, b.sigma, i, range(d, d + 1)) for d in draws.tolist()])
    keyed = {"index": torch.tensor([code("certify", i, d) for d in draws.tolist()])} if b.base in INDEXED else {}
    with torch.no_grad():
        yes = (model(noise, **keyed).argmax(dim=1) == candidate).numpy()
    each = (model.spent - before) / len(draws) if hasattr(model, "spent") else passes(b, model)
    return np.stack([draws, np.full(len(draws), s), yes, np.full(len(draws), each)], axis=1).astype(float)


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
