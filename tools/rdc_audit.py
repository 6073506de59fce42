"""Audit the attacks of tools/rdc_attacks.py: are their numbers on DC and RDC to be believed? results/rdc_audit.json.

    python tools/rdc_audit.py [--n 10] [--steps 10] [--queries 50]

The same defence is audited with each gradient that an attacker may take through likelihood maximisation. The record is written
again after each case.
"""

import argparse
import time
from pathlib import Path

from rdc_jobs import Job, rdc
from rdc_models import build, parts

from rdc.evaluate.audit import audit
from rdc.runs.record import write_record

CASES = {
    "DC": Job("audit", "DC"),
    "RDC, smoothed 0.3": rdc("audit", "smoothed 0.3"),
    "RDC, bpda": rdc("audit", "bpda"),
    "RDC, exact": rdc("audit", "exact"),
}


def main() -> None:
    """One report for each case."""
    parser = argparse.ArgumentParser()
    for name, value in (("--n", 10), ("--steps", 10), ("--queries", 50)):
        parser.add_argument(name, type=int, default=value)
    args, start, results = parser.parse_args(), time.perf_counter(), {}
    _, network, images = parts(False)
    for name, job in CASES.items():
        report = audit(
            build(job), images.x[: args.n], images.y[: args.n], steps=args.steps, surrogate=network, queries=args.queries,
            everything=True,
        )
        results[name] = {"ok": report.ok, "pushed": report.images, "rows": [vars(row) for row in report.rows]}
        print(f"{name}\n{report}", flush=True)
        config = {"eps": 8 / 255, "norm": "Linf", "seed": 0, "denoiser": "fashion-mini-multihead", **vars(args)}
        write_record(Path(__file__).parents[1] / "results" / "rdc_audit.json", config, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
