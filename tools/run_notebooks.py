"""Execute notebooks and store their outputs with where, when and with what they were made.

python tools/run_notebooks.py                         all of them, outputs stored in notebooks/*.ipynb
python tools/run_notebooks.py 03                      only the notebook that starts with 03
python tools/run_notebooks.py --out _build/executed   elsewhere; what has not changed since then is skipped
"""

import argparse
import datetime
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from exercises import run_checked

from rdc.notebook import NotebookError, profiles, write_notebook
from rdc.runs.code import Program

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "numpy", "scipy", "matplotlib", "pyautoattack")  # versions that the book prints


def digest(nb: Any) -> str:
    """Hash of what decides a notebook's outputs: the sources of its code cells, in order."""
    return hashlib.sha256("\0".join(c.source for c in nb.cells if c.cell_type == "code").encode()).hexdigest()


def environment() -> str:
    """Hash of what else decides them all: weights and data of the package, the installed versions, Python."""
    h = hashlib.sha256(platform.python_version().encode())
    for f in sorted(p for p in (ROOT / "rdc" / "assets").rglob("*") if p.is_file()):
        h.update(str(f.relative_to(ROOT)).encode() + hashlib.sha256(f.read_bytes()).digest())
    for name in sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions()):
        h.update(name.encode())
    return h.hexdigest()


@functools.cache
def program() -> Program:
    """The package, its plots and records too."""
    return Program(ROOT / "rdc", "rdc")


def imported(nb: Any) -> str:
    """Hash of the definitions of the package that a notebook refers to, and of the files in results/ that it names.

    A change of a docstring, or of what it does not use, is no change.
    """
    source = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    judged = "claims_table" in source or "rdc.findings" in source  # verdicts may rest on any result
    files = sorted(p for p in (ROOT / "results").iterdir() if p.stem in source or (judged and p.suffix == ".jsonl"))
    parts = [program().digest_source(source), *(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)]
    return " ".join(parts)


def stamp(nb: Any, profile: str, surroundings: str) -> str:
    """What an executed notebook depends on, in one hash: its code, what it uses, the profile's parameters, the environment."""
    parts = digest(nb), imported(nb), (profiles() / f"{profile}.yaml").read_text(encoding="utf8"), surroundings
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def device() -> str:
    """The machine in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"


def record(path: Path) -> dict[str, Any]:
    """The provenance stored in the notebook ``path``; empty if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf8"))["metadata"].get("rdc", {})
    except (OSError, ValueError, KeyError):
        return {}


def execute(py: Path, profile: str, surroundings: str) -> Any:
    """Run one notebook; cell ids are those of the stored ``.ipynb``, so that a second run gives a small diff."""
    start = time.perf_counter()
    nb = run_checked(py, profile)
    seconds = round(time.perf_counter() - start, 1)
    stored = py.with_suffix(".ipynb")
    ids = {c.source: c.id for c in nbformat.read(stored, 4).cells} if stored.exists() else {}
    used = set(ids.values())
    for i, cell in enumerate(nb.cells):
        fresh = f"c{i:03d}-{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}"
        cell["id"] = ids.pop(cell.source, fresh if fresh not in used else f"{fresh}-{i}")
        used.add(cell["id"])
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    nb.metadata.pop("papermill", None)
    nb.metadata["rdc"] |= {
        "source_sha256": digest(jupytext.read(py)),
        "stamp": stamp(jupytext.read(py), profile, surroundings),
        "seconds": seconds,
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "versions": {"python": platform.python_version()} | {k: v for k in SHOWN if (v := version(k))},
    }
    return nb


def version(name: str) -> str | None:
    """The installed version of ``name``, if it is there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find(names: list[str]) -> list[Path]:
    """The notebooks named by number, stem or path; all of them for no name."""
    every = sorted((ROOT / "notebooks").glob("*.py"))
    wanted = []
    for name in names:
        hits = [p for p in every if p.stem.startswith(Path(name).stem)]
        hits = [p for p in hits if p.stem.startswith(f"{Path(name).stem}_")] or hits  # 06 is the page 06, not 06b
        if not hits:
            raise SystemExit(f"no notebook {name!r}; there are {', '.join(p.stem for p in every) or 'none'}")
        wanted += hits
    return wanted or every


def store(py: Path, target: Path, profile: str, surroundings: str) -> float | str:
    """Run one notebook and write it; its seconds, or in words what was wrong."""
    try:
        nb = execute(py, profile, surroundings)
    except (NotebookError, ValueError) as err:
        return str(err)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_notebook(nb, target)
    return nb.metadata["rdc"]["seconds"]


def run_all(notebooks: list[Path], out: Path | None, profile: str) -> None:
    """Execute ``notebooks`` into the folder ``out`` (skipping what is current), or in place; show progress.

    Each core takes one on one thread, the longest first; a single one has all of them.

    Raises:
        NotebookError: if any failed, once the others have been stored.
    """
    surroundings = environment()
    target = {py: (out or py.parent) / f"{py.stem}.ipynb" for py in notebooks}
    guess = {py: (record(target[py]) or record(py.with_suffix(".ipynb"))).get("seconds") or 0 for py in notebooks}
    current = {py for py in notebooks if record(target[py]).get("stamp") == stamp(jupytext.read(py), profile, surroundings)}
    todo = sorted((py for py in notebooks if out is None or py not in current), key=lambda py: -guess[py])
    workers, wrong = min(os.cpu_count() or 1, len(todo)), []
    print(f"running {len(todo)} notebooks, {workers} at a time; {len(notebooks) - len(todo)} are unchanged", flush=True)
    if workers > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that start now
    with ProcessPoolExecutor(max(workers, 1), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(store, py, target[py], profile, surroundings): py for py in todo}
        for i, future in enumerate(as_completed(futures), 1):
            said, py, rest = future.result(), futures[future], sum(guess[p] for f, p in futures.items() if not f.done())
            wrong += [said] * isinstance(said, str)
            state = f"done in {said:.1f} s" if isinstance(said, float) else "FAILED"
            print(f"[{i}/{len(todo)}] {py.stem}: {state}; about {rest / workers:.0f} s left in all", flush=True)
    if wrong:
        raise NotebookError("\n".join(wrong))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("notebooks", nargs="*", help="numbers, names or paths; all if none is given")
    ap.add_argument("--out", type=Path, help="a folder for the executed notebooks (default: beside their sources)")
    ap.add_argument("--profile", default="tutorial", help="a file of profiles/ (default: tutorial)")
    args = ap.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        run_all(find(args.notebooks), args.out, args.profile)
    except (NotebookError, ValueError) as err:
        sys.exit(f"error: {err}")
