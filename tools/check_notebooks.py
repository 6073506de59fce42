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
OPTIONS = "-p nbval.plugin -p no:cacheprovider -o addopts= -o filterwarnings= -q --no-header --nbval-lax --nbval-current-env"
SANITIZE = ROOT / "nbval_sanitize.cfg"
NBVAL = [*OPTIONS.split(), "--nbval-cell-timeout=600", f"--nbval-sanitize-with={SANITIZE}", f"--rootdir={ROOT}"]
QUIET = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def check(names: list[str]) -> int:
    """Run nbval on the named notebooks (all by default), the longest first, one on each core; the number of those that fail."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    surroundings, cores = environment(), os.cpu_count() or 1
    keys = {py: decides(py, surroundings) for py in find(names)}
    todo = [py for py, key in keys.items() if not (STAMPS / py.stem).exists() or (STAMPS / py.stem).read_text() != key]
    todo.sort(key=lambda py: -(record(py.with_suffix(".ipynb")).get("seconds") or 0))
    print(f"checking {len(todo)} notebooks, {cores} at a time; {len(keys) - len(todo)} passed and are unchanged", flush=True)
    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(lambda py: check_one(py, keys[py]), todo))


def decides(py: Path, surroundings: str) -> str:
    """The hash of what decides whether a notebook passes."""
    of = f"{surroundings} {imported(jupytext.read(py))}".encode()
    return hashlib.sha256(py.with_suffix(".ipynb").read_bytes() + SANITIZE.read_bytes() + of).hexdigest()


def check_one(py: Path, key: str) -> bool:
    """Run nbval on a notebook on one thread, and note that it passed; whether it fails."""
    ipynb, passed = py.with_suffix(".ipynb"), STAMPS / py.stem
    start, twice = time.perf_counter(), STAMPS / ipynb.name
    nbformat.write(with_second_checks(nbformat.read(ipynb, 4)), twice)
    command = [sys.executable, "-m", "pytest", *NBVAL, str(twice)]
    run = subprocess.run(command, env=os.environ | QUIET, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
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
