"""Re-execute the committed notebooks and compare marked outputs (nbval); what passed is not run again until it changes.

The check of an exercise runs twice: it must say "not yet" after the stub and "right" after the solution.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path

os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # before torch is loaded

import forked_kernel
import jupytext
import nbformat
import pytest
from exercises import with_second_checks
from run_notebooks import ROOT, environment, find, imported, record

STAMPS = ROOT / "_build" / "nbval"
OPTIONS = "-p nbval.plugin -p no:cacheprovider -o addopts= -o filterwarnings= -q --no-header --nbval-lax --nbval-current-env"
SANITIZE = ROOT / "nbval_sanitize.cfg"
NBVAL = [*OPTIONS.split(), "--nbval-cell-timeout=600", f"--nbval-sanitize-with={SANITIZE}"]


def check(names: list[str]) -> int:
    """Run nbval on the named notebooks (all by default), the longest first, one on each core; the number of those that fail."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    surroundings, cores = environment(), os.cpu_count() or 1
    keys = {py: decides(py, surroundings) for py in find(names)}
    todo = [py for py, key in keys.items() if not (STAMPS / py.stem).exists() or (STAMPS / py.stem).read_text() != key]
    todo.sort(key=lambda py: -(record(py.with_suffix(".ipynb")).get("seconds") or 0))
    print(f"checking {len(todo)} notebooks, {cores} at a time; {len(keys) - len(todo)} passed and are unchanged", flush=True)
    if todo:
        forked_kernel.load()
    with multiprocessing.get_context("fork").Pool(cores, maxtasksperchild=1) as pool:
        return sum(pool.starmap(check_one, [(py, keys[py]) for py in todo], chunksize=1))


def decides(py: Path, surroundings: str) -> str:
    """The hash of what decides whether a notebook passes."""
    of = f"{surroundings} {imported(jupytext.read(py))}".encode()
    return hashlib.sha256(py.with_suffix(".ipynb").read_bytes() + SANITIZE.read_bytes() + of).hexdigest()


def check_one(py: Path, key: str) -> bool:
    """Run nbval on a notebook on one thread, and note that it passed; whether it fails."""
    ipynb, passed = py.with_suffix(".ipynb"), STAMPS / py.stem
    start, twice = time.perf_counter(), STAMPS / ipynb.name
    nbformat.write(with_second_checks(nbformat.read(ipynb, 4)), twice)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        failed = pytest.main([*NBVAL, f"--rootdir={ROOT}", str(twice)]) != 0
    verdict = "FAILED" if failed else "passed"
    print(f"{said.getvalue() if failed else ''}{py.stem}: {verdict} in {time.perf_counter() - start:.1f} s", flush=True)
    if not failed:
        part = passed.with_suffix(".part")
        part.write_text(key)
        part.replace(passed)
    return failed


if __name__ == "__main__":
    if bad := check(sys.argv[1:]):
        sys.exit(f"error: {bad} notebooks failed")
