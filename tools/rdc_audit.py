"""Audit the attacks on DC and RDC: are their numbers to be believed? results/rdc_audit.json.

    python tools/rdc_audit.py [--n 10] [--steps 10] [--queries 50]

The same defence is audited with each gradient that an attacker may take through likelihood maximisation. The record is written
again after each case.
"""

import argparse
import time
from pathlib import Path

from rdc.data import load
from rdc.evaluate.audit import audit
from rdc.models import build
from rdc.runs.record import write_record

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "DC": ("dc", {}),
    "RDC, smoothed 0.3": ("rdc", {"lm": "clamped", "gradient": "smoothed 0.3"}),
    "RDC, bpda": ("rdc", {"lm": "clamped", "gradient": "bpda"}),
    "RDC, exact": ("rdc", {"lm": "clamped", "gradient": "exact"}),
}


def main() -> None:
    """One report for each case."""
    parser = argparse.ArgumentParser()
    for name, value in (("--n", 10), ("--steps", 10), ("--queries", 50)):
        parser.add_argument(name, type=int, default=value)
    args, start, results = parser.parse_args(), time.perf_counter(), {}
    network, images = build("cnn"), load("fashion-mini")
    for name, (model, options) in CASES.items():
        x, y, sizes = images.x[: args.n], images.y[: args.n], {"steps": args.steps, "queries": args.queries}
        report = audit(build(model, **options), x, y, surrogate=network, everything=True, **sizes)
        results[name] = {"ok": report.ok, "pushed": report.images, "rows": [vars(row) for row in report.rows]}
        print(f"{name}\n{report}", flush=True)
        config = {"eps": 8 / 255, "norm": "Linf", "seed": 0, "denoiser": "fashion-mini-multihead", **vars(args)}
        write_record(Path(__file__).parents[1] / "results" / "rdc_audit.json", config, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
