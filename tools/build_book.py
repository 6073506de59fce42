"""Render the book: collect its sources in one folder, run Jupyter Book there, check the pages.

python tools/build_book.py               with the notebooks that `make book` executed (_build/executed)
python tools/build_book.py --committed   with the outputs that are stored in notebooks/
python tools/build_book.py --instructor  with these, and the notes of course/instructor.md
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_html
import yaml
from run_notebooks import find

ROOT = Path(__file__).parents[1]
FILES = ("_toc.yml", "references.bib", "finding.bib", "CHANGELOG.md")
FOLDERS = ("book", "_ext", "_static", "results", "examples")
NOTES = "\n  - caption: For instructors\n    chapters:\n      - file: book/instructor\n"


def repository() -> str:
    """The address of the repository, from the metadata of the package (``urls`` in pyproject.toml); empty if none is set."""
    urls = dict(line.split(", ", 1) for line in importlib.metadata.metadata("rdc").get_all("Project-URL") or [])
    return urls.get("Repository", "")


def config(text: str, url: str) -> str:
    """Return the settings of the book with the buttons that lead to the repository ``url``; as they are if it is empty."""
    if not url:
        return text
    settings: dict[str, Any] = yaml.safe_load(text)
    settings["repository"] = {"url": url, "branch": "main"}
    settings["html"] |= {f"use_{kind}_button": True for kind in ("repository", "issues", "edit_page")}
    hosts = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
    settings["launch_buttons"] = {"notebook_interface": "jupyterlab", **hosts}
    return yaml.safe_dump(settings, sort_keys=False)


def copy(source: Path, to: Path) -> None:
    """Copy a file unless the copy has the same bytes, so that Sphinx reads again only what changed."""
    if not to.exists() or to.read_bytes() != source.read_bytes():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


def with_notes(folder: Path) -> dict[Path, Path]:
    """What the edition for instructors adds: its notes, and a table of contents that lists them, written to ``folder``."""
    contents = folder / "_toc.yml"
    folder.mkdir(parents=True, exist_ok=True)
    contents.write_text((ROOT / "_toc.yml").read_text(encoding="utf8").rstrip() + NOTES, encoding="utf8")
    return {Path("_toc.yml"): contents, Path("book", "instructor.md"): ROOT / "course" / "instructor.md"}


def stage(executed: Path, to: Path, more: dict[Path, Path] | None = None) -> None:
    """Make ``to`` hold the sources of the book with the notebooks of ``executed`` and the files ``more``, and nothing else."""
    wanted = {Path(f): ROOT / f for f in FILES}
    for folder in FOLDERS:
        wanted |= {f.relative_to(ROOT): f for f in (ROOT / folder).rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    for py in find([]):
        source = executed / f"{py.stem}.ipynb"
        if not source.exists():
            sys.exit(f"error: {source} is missing; run: python tools/run_notebooks.py {py.stem}")
        wanted[Path("notebooks", source.name)] = source
    wanted |= more or {}
    settings = to / "_config.yml"
    for old in [f for f in to.rglob("*") if f.is_file() and f != settings and f.relative_to(to) not in wanted]:
        old.unlink()
    for name, source in wanted.items():
        copy(source, to / name)
    text = config((ROOT / settings.name).read_text(encoding="utf8"), repository())
    if not settings.exists() or settings.read_text(encoding="utf8") != text:
        settings.write_text(text, encoding="utf8")


def build(source: Path, out: Path) -> Path:
    """Render ``source`` into ``out/_build/html`` with warnings as errors; the folder of the pages."""
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    options = ["--path-output", str(out), "-W", "-n", "--keep-going"]
    run = subprocess.run(start + options, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode:
        shutil.rmtree(out / "_build" / ".doctrees", ignore_errors=True)  # or the next run would not repeat the warnings
        lines = re.sub(r"\x1b\[[\d;]*m", "", run.stdout).splitlines()
        bad = [line for line in lines if "WARNING" in line or "ERROR" in line]
        sys.exit("\n".join([*(bad or lines), "error: the book did not build; the lines above say why"]))
    return out / "_build" / "html"


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--committed", action="store_true", help="use the stored outputs; the pages go to _build/committed")
    ap.add_argument("--instructor", action="store_true", help="add the notes; the pages go to _build/instructor")
    build_dir, args = ROOT / "_build", ap.parse_args()
    name = "instructor" if args.instructor else "committed" if args.committed else ""
    executed, out = (ROOT / "notebooks", build_dir / name) if name else (build_dir / "executed", ROOT)
    staged = build_dir / name / "stage"
    print("Rendering the book ...", flush=True)
    stage(executed, staged, with_notes(build_dir / name) if args.instructor else None)
    pages = build(staged, out)
    if problems := check_html.check(pages):
        sys.exit("\n".join(["error: the pages have problems", *problems]))
    print(f"The book is ready. Open {pages / 'index.html'}")
