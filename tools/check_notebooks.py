"""Re-execute the committed notebooks and compare marked outputs (nbval); what passed is not run again until it changes."""

import hashlib
import os
import subprocess
import sys
import time

import jupytext
from run_notebooks import ROOT, environment, find, imported, record

STAMPS = ROOT / "_build" / "nbval"
OPTIONS = "-p no:cacheprovider -o addopts= -o filterwarnings= -q --no-header --nbval-lax --nbval-current-env"
NBVAL = [*OPTIONS.split(), "--nbval-cell-timeout=600", "--nbval-sanitize-with=nbval_sanitize.cfg"]


def check(names: list[str]) -> int:
    """Run nbval on the named notebooks (all by default); the number of those that fail."""
    surroundings, failed, notebooks = environment(), 0, find(names)
    STAMPS.mkdir(parents=True, exist_ok=True)
    for i, py in enumerate(notebooks, 1):
        ipynb, passed = py.with_suffix(".ipynb"), STAMPS / py.stem
        decides = f"{surroundings} {imported(jupytext.read(py))}".encode()
        key = hashlib.sha256(ipynb.read_bytes() + (ROOT / "nbval_sanitize.cfg").read_bytes() + decides).hexdigest()
        if passed.exists() and passed.read_text() == key:
            print(f"[{i}/{len(notebooks)}] {py.stem}: unchanged since it passed", flush=True)
            continue
        seconds = record(ipynb).get("seconds")
        print(f"[{i}/{len(notebooks)}] {py.stem}: checking" + (f"; about {seconds:.0f} s" if seconds else ""), flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", "pytest", *NBVAL, str(ipynb.relative_to(ROOT))]
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        run = subprocess.run(command, cwd=ROOT, env=quiet, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if run.returncode:
            print(run.stdout, flush=True)
            failed += 1
        else:
            part = passed.with_suffix(".part")
            part.write_text(key)
            part.replace(passed)
        verdict = "FAILED" if run.returncode else "passed"
        print(f"[{i}/{len(notebooks)}] {py.stem}: {verdict} in {time.perf_counter() - start:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    if bad := check(sys.argv[1:]):
        sys.exit(f"error: {bad} notebooks failed")
