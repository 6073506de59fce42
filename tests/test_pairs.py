"""Every .ipynb says what its .py says, and its outputs come from that source."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from exercises import exercises
from run_notebooks import digest

ROOT = Path(__file__).parents[1]

PY = sorted((ROOT / "notebooks").glob("*.py"))
LINES = 400  # of code a page, without its exercises


def cells(nb):
    return [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in nb.cells]


def test_no_notebook_without_its_source():
    assert {p.stem for p in PY} == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("py", PY, ids=lambda p: p.stem)
def test_pair(py):
    text, nb = jupytext.read(py), nbformat.read(py.with_suffix(".ipynb"), 4)
    assert cells(text) == cells(nb), f"run: jupytext --to ipynb --update notebooks/{py.name}"


@pytest.mark.parametrize("py", PY, ids=lambda p: p.stem)
def test_outputs_are_of_this_source(py):
    nb = nbformat.read(py.with_suffix(".ipynb"), 4)
    assert nb.metadata["rdc"]["source_sha256"] == digest(jupytext.read(py)), f"run: make notebooks N={py.stem}"
    assert not [o for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]


@pytest.mark.parametrize("py", PY, ids=lambda p: p.stem)
def test_the_first_cell_knows_its_parameters(py):
    code = [c for c in jupytext.read(py).cells if c.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", []), "the first code cell is the parameters cell"
    assert "check_parameters()" in code[1].source, "the second one refuses unknown parameters"


@pytest.mark.parametrize("py", PY, ids=lambda p: p.stem)
def test_a_page_is_short(py):
    nb = jupytext.read(py)
    asked = [i for e in exercises(nb) for i in e.code]
    cells = [c for i, c in enumerate(nb.cells) if c.cell_type == "code" and i not in asked]
    code = [line for c in cells for line in c.source.splitlines() if line.strip()]
    assert len(code) <= LINES, f"{len(code)} lines of code; the limit is {LINES}"
