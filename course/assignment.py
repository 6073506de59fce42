"""Zip a session for a learning platform: python course/assignment.py SESSION FOLDER

FOLDER/student is the student edition. The archive FOLDER/session-N.zip has the notebooks of a session of book/course/four.md
without outputs, the package as a wheel whose chapters have no solutions either, and a README.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext

README = """# {title}

1. Make an environment: `python3 -m venv .venv`
2. Install: `.venv/bin/pip install "./{wheel}[book,attacks]"` (data and weights are in it; on Linux without a GPU
   install PyTorch's CPU build first, it is much smaller)
3. Open the notebooks in a Jupyter editor, with the kernel of `.venv`, in this order: {pages}

Run a notebook once from top to bottom; no GPU is needed. Answer where a cell says `# your code here`, and run the cell below it:
`right`, or `not yet`. Hand in the notebooks, run from top to bottom once more, with your reasons in words.

`.venv/bin/rdc run {first}` runs a page without an editor, into `runs/`.
"""


def session(plan: str, number: int) -> tuple[str, list[str]]:
    """The title of a session of a plan, and the names of its pages."""
    found = re.search(rf"^## (Session {number}: .*?)\n(.*?)(?=^## |\Z)", plan, re.M | re.S)
    if found is None:
        raise ValueError(f"the plan has no session {number}")
    pages = re.search(r"\*Pages\.\*(.*?)\n\n", found[2], re.S)
    return found[1], re.findall(r"/notebooks/(\w+)", pages[1] if pages else "")


def clear(nb: Any) -> Any:
    """A notebook without its outputs."""
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nb.metadata.pop("rdc", None)
    return nb


def main(number: int, folder: Path) -> Path:
    """Write the archive, and return its path."""
    student = folder / "student"
    title, pages = session((student / "book" / "course" / "four.md").read_text(encoding="utf8"), number)
    with tempfile.TemporaryDirectory() as parent:
        made = Path(parent, f"session-{number}")
        made.mkdir()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "-w", made, student], check=True)
        shutil.rmtree(student / "build", ignore_errors=True)
        (wheel,) = made.glob("*.whl")
        for page in pages:
            jupytext.write(clear(jupytext.read(student / "notebooks" / f"{page}.ipynb")), made / f"{page}.ipynb")
        listed, first = ", ".join(f"`{page}`" for page in pages), pages[0].partition("_")[0]
        (made / "README.md").write_text(README.format(title=title, wheel=wheel.name, pages=listed, first=first), encoding="utf8")
        return Path(shutil.make_archive(str(folder.resolve() / made.name), "zip", parent, made.name))


if __name__ == "__main__":
    try:
        print(f"The assignment is in {main(int(sys.argv[1]), Path(sys.argv[2]))}")
    except (OSError, ValueError, subprocess.CalledProcessError) as err:
        sys.exit(f"error: {err}")
