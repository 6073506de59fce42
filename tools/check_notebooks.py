"""Re-execute the committed notebooks and compare marked outputs (nbval); what passed is not run again until it changes.

The check of an exercise runs twice: it must say "not yet" after the stub and "right" after the solution.
"""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from exercises import with_second_checks
from run_notebooks import ROOT, environment, find, imported, record

STAMPS = ROOT / "_build" / "nbval"
OPTIONS = "-p no:cacheprovider -o addopts= -o filterwarnings= -q --no-header --nbval-lax --nbval-current-env"
NBVAL = [*OPTIONS.split(), "--nbval-cell-timeout=600", "--nbval-sanitize-with=nbval_sanitize.cfg"]


def check(names: list[str]) -> int:
    """Run nbval on the named notebooks (all by default), the longest first, one on each core; the number of those that fail."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(find(names), key=lambda py: -(record(py.with_suffix(".ipynb")).get("seconds") or 0))
    surroundings, workers = environment(), min(os.cpu_count() or 1, len(notebooks))
    print(f"checking {len(notebooks)} notebooks, {workers} at a time", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(lambda py: check_one(py, surroundings), notebooks))


def check_one(py: Path, surroundings: str) -> bool:
    """Run nbval on a notebook on one thread, unless it passed before and nothing changed; whether it fails."""
    ipynb, passed = py.with_suffix(".ipynb"), STAMPS / py.stem
    decides = f"{surroundings} {imported(jupytext.read(py))}".encode()
    key = hashlib.sha256(ipynb.read_bytes() + (ROOT / "nbval_sanitize.cfg").read_bytes() + decides).hexdigest()
    if passed.exists() and passed.read_text() == key:
        print(f"{py.stem}: unchanged since it passed", flush=True)
        return False
    start, quiet = time.perf_counter(), os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    twice = STAMPS / ipynb.name
    nbformat.write(with_second_checks(nbformat.read(ipynb, 4)), twice)
    command = [sys.executable, "-m", "pytest", *NBVAL, str(twice.relative_to(ROOT))]
    run = subprocess.run(command, cwd=ROOT, env=quiet, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    verdict = "FAILED" if run.returncode else "passed"
    print(f"{run.stdout if run.returncode else ''}{py.stem}: {verdict} in {time.perf_counter() - start:.1f} s", flush=True)
    if not run.returncode:
        part = passed.with_suffix(".part")
        part.write_text(key)
        part.replace(passed)
    return run.returncode != 0


if __name__ == "__main__":
    if bad := check(sys.argv[1:]):
        sys.exit(f"error: {bad} notebooks failed")
