"""What is left of likelihood maximisation under attack: results/rdc.json, the record of three chapters.

    python tools/rdc_attacks.py [--shard 0 --shards 2] [--tables gradient,suite] [--collect] [--cost]

Every job is one model under one attack with one kind of gradient, on the first n test images of fashion-mini, in pieces of 16
images. A piece is a function of its job and the network alone: pieces lie in runs/rdc/<shard>.jsonl, killed runs go on, several
shards share the work, and pieces of another network are left out. Whenever a shard is done, all complete jobs are collected into
the record; --collect does only that.

The verdict on a model with fixed noise is one call, and the attacker knows the noise. A model with fresh noise is judged by 20
new calls: broken if at least half of them are wrong ("draws"), or if one is ("resubmit").
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch
from rdc_jobs import Job, jobs
from rdc_models import COUNT, SIGMA_MIN, build, costs, parts, weights
from rdc_record import DRAWS, PIECE, ROWS, collect, stored
from torch import Tensor, nn

from rdc.attack import autoattack, pgd, stadv
from rdc.attack.feature import feature
from rdc.attack.lagrange import lagrange
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.runs.record import write_atomic
from rdc.schedule import levels


def run(job: Job, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """The adversarial images of a piece."""
    own = {"seed": 0, "index": index, "eot": job.eot}
    model = model.classifier if job.gradient == "transfer" else model
    if job.attack == "stadv":
        return stadv(model, x, y, eps=job.eps, steps=job.steps, **own)
    if job.attack == "lagrange":
        penalty = diffusion_loss(parts(False)[0], levels("elbo", COUNT, sigma_min=SIGMA_MIN))
        return lagrange(model, x, y, penalty, norm=job.norm, eps=job.eps, steps=job.steps, loss="margin", **own)
    if job.attack == "feature":
        return feature(model, x, y, norm=job.norm, eps=job.eps, steps=job.steps, **own)
    if job.attack == "apgd":
        attacks, eot = ("apgd-ce", "apgd-dlr"), own.pop("eot")
        options = {"attacks": attacks, "steps": job.steps, "eot": eot, "batch": len(x), **own}
        return autoattack(model, x, y, norm=job.norm, eps=job.eps, version="custom", **options)
    more = {"pgd": {}, "pgd-60": {"steps": 60}, "pgd-restarts": {"restarts": 3}}[job.attack]
    return pgd(model, x, y, **{"norm": job.norm, "eps": job.eps, "steps": job.steps, "loss": "margin", **own, **more})


def wrong_calls(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> list[int]:
    """How many of ``draws`` calls get each image wrong."""
    with torch.no_grad():
        return torch.stack([model(x).argmax(dim=1) != y for _ in range(draws)]).sum(dim=0).tolist()


def piece(job: Job, start: int) -> dict[str, Any]:
    """Attack and judge 16 images."""
    images = parts(job.model.endswith("single-head"))[2]
    index = torch.arange(start, min(start + PIECE, job.n))
    x, y, model = images.x[index], images.y[index], build(job)
    draws = DRAWS if job.noise == "fresh" else 1
    clock = time.perf_counter()
    clean = wrong_calls(model, x, y, draws)
    x_adv = run(job, model, x, y, index)
    broken = wrong_calls(model, x_adv, y, draws)
    moved = {}
    if hasattr(model, "lm"):
        with torch.no_grad():
            change = (model.lm(x) - x).flatten(1)
        moved = {"L2": change.norm(dim=1).tolist(), "Linf": change.abs().amax(dim=1).tolist()}
    seconds = time.perf_counter() - clock
    return {
        "job": job.key(),
        "weights": weights(job.model),
        "start": start,
        "clean": clean,
        "broken": broken,
        "draws": draws,
        "moved": moved,
        "seconds": seconds,
    }


def main() -> None:
    """Work through the jobs of a shard, then collect."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--tables", default="", help="only these, comma-separated")
    parser.add_argument("--models", default="", help="only these, comma-separated")
    parser.add_argument("--n", type=int, default=0, help="fewer images, for a trial")
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--cost", action="store_true", help="measure the time to classify an image; wants an idle machine")
    args = parser.parse_args()
    ROWS.mkdir(parents=True, exist_ok=True)
    if args.cost:
        write_atomic(ROWS / "cost.json", json.dumps(costs()).encode())
    if args.collect or args.cost:
        return collect()
    have = stored()
    chosen = [j for j in jobs() if not args.tables or j.table in args.tables.split(",")]
    chosen = [j for j in chosen if not args.models or j.model in args.models.split(",")]
    chosen = [replace(j, n=min(j.n, args.n)) if args.n else j for j in chosen]
    units = list(dict.fromkeys((j.key(), s) for j in chosen for s in range(0, j.n, PIECE)))
    by_key = {j.key(): j for j in sorted(chosen, key=lambda j: j.n)}  # the one with most images of those that share a key
    mine = [u for i, u in enumerate(units) if i % args.shards == args.shard and u not in have]
    with (ROWS / f"{args.shard}.jsonl").open("a", encoding="utf8") as file:
        for done, (key, start) in enumerate(mine):
            job, clock = by_key[key], time.perf_counter()
            row = piece(job, start)
            file.write(json.dumps(row) + "\n")
            file.flush()
            kept = sum(w == 0 for w in row["broken"])
            steps = dict(job.lm).get("steps", "")
            what = f"{job.model} {job.name or ''} {job.gradient} {job.attack} {job.norm} {job.eps:.3f} {steps}"
            print(f"{done + 1}/{len(mine)} {what} {job.noise}: {kept} left, {time.perf_counter() - clock:.1f} s", flush=True)
    return collect()


if __name__ == "__main__":
    main()
