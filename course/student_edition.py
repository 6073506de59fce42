"""Copy the book for students: PYTHONPATH=tools python course/student_edition.py OUT

Exercises, hints and checks stay. What a solution holds, in prose or between the cells of a notebook, does not, nor what stands
between a line with ``<teachers>`` and one with ``</teachers>``, nor the notes and slides of ``course/``, nor the tests. Its
README is course/student.md. Nothing is written to OUT unless every solution could be taken out.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jupytext
from run_notebooks import digest

ROOT = Path(__file__).parents[1]
SKIP = "_build .git .ci .venv __pycache__ *.egg-info .*_cache .ipynb_checkpoints .hypothesis *.state".split()
RUNS = "runs"  # at the root what `rdc run` wrote; rdc/runs is a part of the package
TEACHERS = ("course", "tests", "benchmarks", "CONTRIBUTING.md")
PLAIN = re.compile(r"^(?P<f>:{3,}|`{3,})\s*\{solution\}.*?^(?P=f)\s*?$\n?", re.M | re.S)
GATED = re.compile(r"^(:{3,}|`{3,})\s*\{solution-start\}.*?^(:{3,}|`{3,})\s*\{solution-end\}\s*\n\2\s*?$\n?", re.M | re.S)
START = re.compile(r"^(:{3,}|`{3,})\s*\{solution-start\}", re.M)
END = re.compile(r"^(:{3,}|`{3,})\s*\{solution-end\}\s*\n\1\s*?$\n?", re.M)
ONLY = re.compile(r"^[^\n]*<teachers>.*?</teachers>[^\n]*\n?", re.M | re.S)


def strip_text(text: str) -> str:
    """Prose without its solutions, and without what is for teachers."""
    return PLAIN.sub("", GATED.sub("", ONLY.sub("", text)))


def strip_notebook(nb: Any) -> Any:
    """A notebook without its solutions: cells from a ``solution-start`` to its ``solution-end`` go, and so do plain blocks."""
    kept, inside = [], False
    for cell in nb.cells:
        text = cell.source if cell.cell_type == "markdown" else ""
        if inside:
            if not (end := END.search(text)):
                continue
            text, inside = text[end.end() :], False
        text = strip_text(text)
        if start := START.search(text):
            text, inside = text[: start.start()], True
        if cell.cell_type == "markdown":
            cell.source = text.strip("\n")
        if cell.source:
            kept.append(cell)
    if inside:
        raise ValueError("a solution-start without its solution-end")
    nb.cells = kept
    if "rdc" in nb.metadata:
        nb.metadata["rdc"]["source_sha256"] = digest(nb)
    return nb


def check(name: str, text: str) -> None:
    """Refuse text that still holds a solution."""
    if left := re.search(r"\{solution|</?teachers>", text):
        raise ValueError(f"{name}: {left[0]!r} is left; is its block closed?")


def main(out: Path) -> None:
    """Write the student edition to the folder ``out``, which must not exist."""
    if out.exists():
        raise ValueError(f"{out} exists; remove it first")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        skip = shutil.ignore_patterns(*SKIP, part.name, out.name)
        shutil.copytree(ROOT, part, ignore=lambda at, names: skip(at, names) | {RUNS} if Path(at) == ROOT else skip(at, names))
        (part / "course" / "student.md").rename(part / "README.md")
        for name in TEACHERS:
            shutil.rmtree(part / name) if (part / name).is_dir() else (part / name).unlink(missing_ok=True)
        for f in [*(part / "book").rglob("*.md"), part / "Makefile"]:
            text = strip_text(f.read_text(encoding="utf8"))
            check(f.name, text)
            f.write_text(text, encoding="utf8")
        for f in [*(part / "notebooks").glob("*.ipynb"), *(part / "notebooks").glob("*.py")]:
            nb = strip_notebook(jupytext.read(f))
            check(f.name, "\n".join(c.source for c in nb.cells))
            jupytext.write(nb, f)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]).resolve())
    except (OSError, ValueError) as err:
        sys.exit(f"error: {err}")
    print(f"The student edition is in {sys.argv[1]}")
