"""From the pieces of tools/rdc_attacks.py to results/rdc.json."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdc_jobs import Job, jobs, key_of
from rdc_models import COUNT, PURIFY_STEPS, SIGMA_MIN, weights

from rdc.evaluate import Accuracy
from rdc.runs.record import write_record

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "runs" / "rdc"
PIECE, DRAWS = 16, 20


def stored() -> dict[tuple[str, int], dict[str, Any]]:
    """All pieces that were made with today's networks; a torn last line is left out."""
    found = {}
    for path in sorted(ROWS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            fields = json.loads(row["job"])
            if row["weights"] == weights(fields["model"]):
                found[key_of(fields), row["start"]] = row
    return found


def counts(job: Job, pieces: list[dict[str, Any]], least: int) -> dict[str, Any]:
    """Clean and robust accuracy if an image is lost with ``least`` wrong calls; a wrong clean image counts as broken."""
    clean = [w < least for p in pieces for w in p["clean"]]
    right = [c and w < least for c, w in zip(clean, (w for p in pieces for w in p["broken"]), strict=True)]
    found = {"clean": Accuracy.of(sum(clean), job.n), "robust": Accuracy.of(sum(right), job.n)}
    return {**found, "wrong": [i for i, r in enumerate(right) if not r]}


def rows_of(job: Job, pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a complete job: one for each protocol."""
    lm = dict(job.lm)
    moved = {norm: [v for p in pieces for v in p["moved"].get(norm, [])] for norm in ("L2", "Linf")}
    displacement = {norm: sum(v) / len(v) for norm, v in moved.items()} if moved["L2"] else None
    base = {
        **{k: v for k, v in asdict(job).items() if k not in ("lm", "name", "n")},
        "lm": job.name,
        "method": lm.get("method"),
        "N": lm.get("steps"),
        "budget": lm.get("budget"),
        "sigma": list(lm["sigma"]) if "sigma" in lm else None,
        "timesteps": lm.get("timesteps", "one") if lm else None,
        "displacement": displacement,
        "seconds": round(sum(p["seconds"] for p in pieces), 1),
    }
    if job.noise == "fixed":
        return [{**base, "protocol": "known", **counts(job, pieces, 1)}]
    protocols = {"draws": (DRAWS + 1) // 2, "resubmit": 1}
    return [{**base, "protocol": p, **counts(job, pieces, least)} for p, least in protocols.items()]


SAME = ("table", "model", "lm", "N", "budget", "sigma", "timesteps", "noise", "norm", "eps", "protocol", "draws", "coupling")


def unions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every defence, threat and number n of images: an image survives if it survives all attacks that met at least n.

    A row with more images counts with its first n. Where only one attack was run there is no union.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row[k] for k in SAME]), []).append(row)
    return [found for group in groups.values() for found in unions_of(group)]


def unions_of(group: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The unions of one defence and threat, one for every n."""
    for n in sorted({row["clean"].n for row in group}):
        met = [row for row in group if row["clean"].n >= n]
        if len({(row["gradient"], row["attack"], row["eot"]) for row in met}) < 2:
            continue
        wrong = sorted({i for row in met for i in row["wrong"] if i < n})
        own = {"gradient": "union", "attack": "+".join(sorted({r["attack"] for r in met})), "eot": max(r["eot"] for r in met)}
        counts = {"robust": Accuracy.of(n - len(wrong), n), "wrong": wrong, "seconds": sum(r["seconds"] for r in met)}
        base = next(row for row in met if row["clean"].n == n)
        yield {**base, **own, **counts, "of": sorted({r["gradient"] for r in met})}


def collect() -> None:
    """Write every complete job into the record."""
    have, rows, seconds, left = stored(), [], 0.0, 0
    for job in jobs():
        starts = range(0, job.n, PIECE)
        pieces = [have[job.key(), s] for s in starts if (job.key(), s) in have]
        if len(pieces) < len(starts):
            left += 1
            continue
        rows += rows_of(job, pieces)
        seconds += sum(p["seconds"] for p in pieces)
    stored_costs = ROWS / "cost.json"
    timings = json.loads(stored_costs.read_text(encoding="utf8")) if stored_costs.exists() else []
    config = {
        "data": "fashion-mini",
        "denoiser": "fashion-mini-multihead",
        "levels": "elbo",
        "count": COUNT,
        "sigma_min": SIGMA_MIN,
        "draws": DRAWS,
        "seed": 0,
        "loss": "margin",
        "purify_steps": PURIFY_STEPS,
        "weights": {m: weights(m) for m in ("DC", "DC single-head")},
        "unfinished_jobs": left,
    }
    write_record(ROOT / "results" / "rdc.json", config, {"rows": rows + unions(rows) + timings}, seconds)
    print(f"{len(rows)} rows recorded, {left} jobs unfinished")
