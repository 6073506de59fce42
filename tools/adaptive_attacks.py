"""Adaptive attacks on the trained diffusion classifier: results/adaptive_attacks.json.

    python tools/adaptive_attacks.py [--fixed 20] [--fresh 8] [--workers 1]

With fixed, known noise: PGD, StAdv with the scale-free margin and as released, and Square. With fresh noise: PGD with and without
expectation over transformation, under the four protocols. Rows lie in runs/adaptive/; killed, the same command continues.
"""

import argparse
import time
from functools import partial
from pathlib import Path

from rdc.attack import pgd, square, stadv
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import Accuracy, attack_table, protocols, read_rows, robust_accuracy
from rdc.runs.record import write_record
from rdc.schedule import levels

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "runs" / "adaptive"
EPS, FLOW, COUNT, SEED, DRAWS = 8 / 255, 0.05, 16, 0, 20
FIXED = {
    "pgd": partial(pgd, eps=EPS, steps=20),
    "stadv": partial(stadv, eps=FLOW, steps=50),
    "stadv released": partial(stadv, eps=FLOW, steps=50, loss="released"),
    "square": partial(square, eps=EPS, queries=100),
}
FRESH = {"pgd": {"pgd": partial(pgd, eps=EPS, steps=20)}, "pgd, EOT 8": {"pgd": partial(pgd, eps=EPS, steps=10, eot=8)}}


def summary(path: Path) -> dict:
    """Clean accuracy, the table of attacks and the protocols of a file of rows."""
    _, rows = read_rows(path)
    clean = Accuracy.of(sum(r["clean"] == r["label"] for r in rows), len(rows))
    return {"clean": clean, "attacks": attack_table(path), "protocols": protocols(path)}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("--fixed", 20), ("--fresh", 8), ("--workers", 1)):
        parser.add_argument(name, type=int, default=value)
    options, start, results = parser.parse_args(), time.perf_counter(), {}
    images, denoiser = load("fashion-mini"), load_denoiser("fashion-mini", dtype=fast_dtype())
    ROWS.mkdir(parents=True, exist_ok=True)
    fixed = DiffusionClassifier(denoiser, levels("elbo", COUNT), seed=SEED)
    jobs = {"fixed noise": (fixed, FIXED, options.fixed)}
    fresh = DiffusionClassifier(denoiser, levels("elbo", COUNT), seed=SEED, noise="fresh")
    jobs |= {f"fresh noise, {name}": (fresh, attacks, options.fresh) for name, attacks in FRESH.items()}
    small = {"stadv released": FIXED["stadv released"]}
    means = DiffusionClassifier(denoiser, levels("elbo", COUNT), seed=SEED, reduce="mean")
    jobs["fixed noise, logits as means"] = (means, small, options.fixed)
    for name, (model, attacks, n) in jobs.items():
        path = ROWS / f"{name.replace(', ', '-').replace(' ', '-')}-{n}.jsonl"
        robust_accuracy(model, images.x[:n], images.y[:n], attacks, rows=path, workers=options.workers, seed=SEED, quiet=False)
        results[name] = summary(path)
        print(name, {k: str(v) for k, v in results[name]["attacks"].items()}, flush=True)
    config = {"data": "fashion-mini", "levels": "elbo", "count": COUNT, "seed": SEED, "eps": EPS, "flow": FLOW, "draws": DRAWS}
    write_record(ROOT / "results" / "adaptive_attacks.json", config, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
