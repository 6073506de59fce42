"""What is left of likelihood maximisation under attack: results/rdc.json, the record of three chapters.

    python tools/rdc_attacks.py [--shard 0 --shards 2] [--tables gradient,suite] [--collect] [--cost]

Every job is one model under one attack with one kind of gradient, on the first n test images of fashion-mini, in pieces of 16
images. A piece is a function of its job alone: pieces lie in runs/rdc/<shard>.jsonl, killed runs go on, and several shards share
the work. Whenever a shard is done, all complete jobs are collected into the record; --collect does only that.

The verdict on a model with fixed noise is one call, and the attacker knows the noise. A model with fresh noise is judged by 20
new calls: broken if at least half of them are wrong ("draws"), or if one is ("resubmit").
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdc.attack import pgd, stadv
from rdc.attack.feature import feature
from rdc.attack.lagrange import lagrange
from rdc.checkpoints import load_denoiser
from rdc.classify import RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.classify.likelihood_loss import diffusion_loss
from rdc.data import load
from rdc.denoise import fast_dtype
from rdc.evaluate import Accuracy
from rdc.noise import levels
from rdc.records import write_atomic, write_record
from rdc.train_classifier import train_classifier

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "runs" / "rdc"
PIECE, DRAWS, COUNT, SIGMA_MIN, FLOW = 16, 20, 8, 0.1, 0.05
RELEASED = {"method": "adam", "step_size": 0.1, "budget": None, "sigma": (0.4, 0.6)}


@dataclass(frozen=True)
class Job:
    """One row of the record: a model, an attack on it, and how many images."""

    table: str
    model: str  # CNN, LM+CNN, DC, RDC, DiffPure+CNN, DiffPure+DC; "single-head" behind it: the slow network
    gradient: str = "plain"  # plain, bpda, exact, smoothed W; transfer: that of the classifier without the process
    lm: tuple[tuple[str, Any], ...] = ()  # arguments of LikelihoodMaximization
    name: str | None = None  # what this likelihood maximisation is called
    noise: str = "fixed"  # fixed and known, or fresh
    eot: int = 1
    attack: str = "pgd"
    norm: str = "Linf"
    eps: float = 8 / 255
    steps: int = 20
    n: int = 48
    draws: int = 1  # of the diffusion classifier
    coupling: str = "shared"

    def key(self) -> str:
        """The job in one line, without table, name and n: what two tables share is one piece of work."""
        return key_of(asdict(self))


def key_of(fields: dict[str, Any]) -> str:
    """What decides the numbers of a piece, in one line."""
    return json.dumps({k: v for k, v in fields.items() if k not in ("table", "name", "n")}, sort_keys=True)


def rdc(table: str, gradient: str, name: str = "released", model: str = "RDC", steps: int = 5, **more: Any) -> Job:
    """A job on likelihood maximisation; keywords that the job does not know belong to likelihood maximisation."""
    own = {k: more.pop(k) for k in list(more) if k in Job.__dataclass_fields__}
    lm = tuple(sorted({**RELEASED, "steps": steps, **more}.items()))
    return Job(table, model, gradient, lm, name, **own)


def jobs() -> list[Job]:
    """All jobs, the most important first."""
    found = [Job("gradient", "DC", n=96), Job("gradient", "CNN", n=96)]
    for steps, gradient in product((5, 1), ("bpda", "exact", "smoothed 0.1", "smoothed 0.3", "smoothed 1", "transfer")):
        found.append(rdc("gradient", gradient, steps=steps, n=96))
    found += [rdc("gradient", g, attack="pgd-60") for g in ("smoothed 0.1", "smoothed 0.3")]
    found += [Job("gradient", m, eps=16 / 255) for m in ("DC", "CNN")]
    found += [rdc("gradient", g, eps=16 / 255) for g in ("bpda", "exact", "smoothed 0.3", "transfer")]
    found += suite()
    for eot, gradient in product((1, 5), ("bpda", "exact", "smoothed 0.3")):
        found += [rdc(t, gradient, noise="fresh", eot=eot, n=32 if eot == 1 else 16) for t in ("gradient", "eot")]
    for gradient in ("bpda", "exact", "smoothed 0.3"):
        found.append(rdc("gradient", gradient, "mi-fgsm", method="sign", step_size=None, budget=8 / 255))
    found += sweeps() + other_attacks()
    for draws, coupling in ((1, "shared"), (2, "shared"), (4, "shared"), (1, "per_class")):
        found.append(Job("epsilon", "DC", draws=draws, coupling=coupling))
    found.append(Job("gradient", "DC single-head", n=16))
    found += [rdc("gradient", g, model="RDC single-head", n=16) for g in ("bpda", "smoothed 0.3")]
    return found


def suite() -> list[Job]:
    """Six defences under three threats, each under the gradients that may be strongest."""
    found = []
    for norm, eps in (("Linf", 8 / 255), ("L2", 1.0), ("StAdv", FLOW)):
        attack = {"attack": "stadv", "steps": 30} if norm == "StAdv" else {}
        same = {"norm": norm, "eps": eps, **attack}
        found += [Job("suite", "CNN", **same), Job("suite", "DC", **same)]
        for model, gradient in product(("RDC", "LM+CNN"), ("bpda", "smoothed 0.3")):
            found.append(rdc("suite", gradient, model=model, **same))
        found += [Job("suite", m, g, **same) for m, g in product(("DiffPure+CNN", "DiffPure+DC"), ("exact", "bpda"))]
    return found


def sweeps() -> list[Job]:
    """Budget, steps, noise range, optimiser at about equal displacement, one or all levels."""
    found, two = [], ("bpda", "smoothed 0.3")
    for budget, g in product((2, 4, 8, 16, 32), two):
        found.append(rdc("budget", g, "mi-fgsm", method="sign", step_size=None, budget=budget / 255, n=32))
    for steps, g in product((1, 2, 5, 10), two):
        found.append(rdc("steps", g, steps=steps, n=32))
    for sigma, g in product(((0.1, 0.2), (0.4, 0.6), (0.8, 1.2)), two):
        found.append(rdc("sigma", g, sigma=sigma, n=32))
    for method, g in product(("literal", "mean-l1", "sign", "rmsprop"), ("exact", "smoothed 0.3")):
        if method not in ("literal", "mean-l1") or g == "exact":
            found.append(rdc("optimiser", g, method, method=method, step_size=STEP_SIZES[method], n=32))
    found += [rdc("optimiser", g, "adam", n=32) for g in ("exact", "smoothed 0.3")]
    for g in two:
        found.append(rdc("timesteps", g, n=32))
        found.append(rdc("timesteps", g, "released, all", timesteps="all", count=4, n=32))
    return found


#: Step sizes at which five steps of each method move an image about as far (mean L2) as the released Adam does.
STEP_SIZES = {"literal": 7.25, "mean-l1": 0.00924, "sign": 0.068, "rmsprop": 0.0272}


def other_attacks() -> list[Job]:
    """Lagrange and feature."""
    found = [rdc("lagrange", g, attack="lagrange") for g in ("bpda", "smoothed 0.3")]
    found += [rdc("feature", g, attack="feature") for g in ("bpda", "smoothed 0.3")]
    return found


@cache
def parts(single: bool) -> tuple[nn.Module, nn.Module, Any]:
    """Denoiser, reference network and images."""
    denoiser = load_denoiser("fashion-mini" if single else "fashion-mini-multihead", dtype=fast_dtype())
    network = train_classifier(load("fashion-mini", "train"), 6, batch=64, lr=5e-3, width=16, seed=0)
    return denoiser, network, load("fashion-mini")


def build(job: Job) -> nn.Module:
    """The defence of a job."""
    single = job.model.endswith("single-head")
    denoiser, network, _ = parts(single)
    chosen = levels("elbo", COUNT, sigma_min=SIGMA_MIN)
    noise = "fresh" if job.noise == "fresh" else job.coupling
    dc = DiffusionClassifier(denoiser, chosen, noise=noise, draws=job.draws, chunk=256 if single else 2560)
    back = network if "CNN" in job.model else dc
    name = job.model.removesuffix(" single-head")
    if name in ("CNN", "DC"):
        return back
    if name.startswith("DiffPure"):
        return DiffPure(Purify(denoiser, steps=10, noise=job.noise), back, gradient=job.gradient)
    lm = LikelihoodMaximization(denoiser, **{**dict(job.lm), "noise": job.noise})
    if job.gradient == "transfer":
        return RDC(lm, back)
    if job.gradient.startswith("smoothed"):
        return RDC(lm.smoothed(float(job.gradient.split()[1])), back, gradient="exact")
    return RDC(lm, back, gradient=job.gradient)


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
    steps = 60 if job.attack == "pgd-60" else job.steps
    return pgd(model, x, y, norm=job.norm, eps=job.eps, steps=steps, loss="margin", **own)


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
        "start": start,
        "clean": clean,
        "broken": broken,
        "draws": draws,
        "moved": moved,
        "seconds": seconds,
    }


def stored() -> dict[tuple[str, int], dict[str, Any]]:
    """All pieces that exist; a torn last line is left out."""
    found = {}
    for path in sorted(ROWS.glob("*.jsonl")):
        for line in path.read_text(encoding="utf8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[key_of(json.loads(row["job"])), row["start"]] = row
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


COSTS = {
    "CNN": Job("cost", "CNN"),
    "LM+CNN": rdc("cost", "bpda", model="LM+CNN"),
    "LM+CNN, all": rdc("cost", "bpda", "released, all", model="LM+CNN", timesteps="all", count=COUNT),
    "DiffPure+CNN": Job("cost", "DiffPure+CNN", "exact"),
    "DC single-head": Job("cost", "DC single-head"),
    "DC": Job("cost", "DC"),
    "RDC single-head": rdc("cost", "bpda", model="RDC single-head"),
    "RDC": rdc("cost", "bpda"),
}


def costs(n: int = 16, rounds: int = 3) -> list[dict[str, Any]]:
    """Seconds an image to classify, the best of several rounds in turns, and network evaluations: forward, and with gradient."""
    models, found = {name: build(job) for name, job in COSTS.items()}, []
    x = parts(False)[2].x[:n]
    best = dict.fromkeys(models, float("inf"))
    with torch.no_grad():
        for _, (name, model) in product(range(rounds), models.items()):
            clock = time.perf_counter()
            model(x)
            best[name] = min(best[name], (time.perf_counter() - clock) / n)
    for name, model in models.items():
        back = getattr(model, "classifier", model)
        forward = getattr(back, "evaluations", 1) + getattr(getattr(model, "purify", None), "evaluations", 0)
        steps = model.lm.evaluations if hasattr(model, "lm") else 0
        row = {"table": "cost", "model": name, "nfe": [forward, steps], "seconds_an_image": best[name], "n": n, "rounds": rounds}
        found.append({**row, "N": getattr(getattr(model, "lm", None), "steps", None), "threads": torch.get_num_threads()})
    return found


SAME = ("table", "model", "lm", "N", "budget", "sigma", "timesteps", "noise", "norm", "eps", "protocol", "draws", "coupling")


def unions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every defence, threat and number of images that met several gradients: an image survives if it survives all."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([[row[k] for k in SAME], row["clean"].n]), []).append(row)
    found = []
    for group in groups.values():
        if len({row["gradient"] for row in group}) < 2:
            continue
        wrong = sorted({i for row in group for i in row["wrong"]})
        n = group[0]["clean"].n
        own = {"gradient": "union", "attack": "+".join(sorted({r["attack"] for r in group})), "eot": max(r["eot"] for r in group)}
        counts = {"robust": Accuracy.of(n - len(wrong), n), "wrong": wrong, "seconds": sum(r["seconds"] for r in group)}
        found.append({**group[0], **own, **counts, "of": sorted({r["gradient"] for r in group})})
    return found


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
        "purify_steps": 10,
        "unfinished_jobs": left,
    }
    write_record(ROOT / "results" / "rdc.json", config, {"rows": rows + unions(rows) + timings}, seconds)
    print(f"{len(rows)} rows recorded, {left} jobs unfinished")


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
