"""The laws of the book's tools and of rdc.notebook."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import build_book
import check_access
import check_html
import jupytext
import nbformat
import pytest
import run_notebooks
import student_edition
import yaml
from browser import needs_chromium
from pybtex.database import parse_string

from rdc import notebook
from rdc.runs.code import Program

ROOT = Path(__file__).parents[1]

SOURCE = """
# %% tags=["parameters"]
n: int = 3
seed = 0

# %%
from rdc.notebook import check_parameters
check_parameters()
print(n + 1)
"""
BLOCKS = """# Page

:::{exercise}
:label: ex-a
Question A.
:::

:::{solution} ex-a
:class: dropdown
Answer A.
:::

::::{solution-start} ex-b
:class: dropdown
::::
Answer B.

```{note}
inside
```

::::{solution-end}
::::

The end.
"""


@pytest.fixture
def write(tmp_path):
    def write(source=SOURCE, name="nb.py"):
        (tmp_path / name).write_text(source)
        return tmp_path / name

    return write


def run_cli(code):
    """Run Python code in a fresh process: the sockets of a kernel outlive a test."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("source", ["py", "ipynb"])
def test_run_notebook_uses_parameters(write, tmp_path, source):
    py, out = write(), tmp_path / "runs" / "out.ipynb"
    if source == "ipynb":
        jupytext.write(jupytext.read(py), py := py.with_suffix(".ipynb"))
    done = run_cli(f"from rdc.notebook import run_notebook; run_notebook({str(py)!r}, {str(out)!r}, {{'n': 41}}, 'full')")
    assert done.returncode == 0, done.stderr
    nb = nbformat.read(out, 4)
    assert nb.cells[-1].outputs[0].text == "42\n"
    assert [p.name for p in out.parent.iterdir()] == ["out.ipynb"]


def test_unknown_names_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="^unknown parameter 'stpes'; there are n, seed$"):
        notebook.run_notebook(write(), tmp_path / "out.ipynb", {"stpes": 3})
    with pytest.raises(ValueError, match="unknown profile 'huge'; there are full, paper, tutorial"):
        notebook.run_notebook(write(), tmp_path / "out.ipynb", profile="huge")
    with pytest.raises(ValueError, match="there is no notebook"):
        notebook.run_notebook(tmp_path / "none.py", tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_papermill_itself_refuses_unknown_names(write, tmp_path):
    nb = jupytext.read(write())
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    jupytext.write(nb, tmp_path / "nb.ipynb")
    command = [sys.executable, "-m", "papermill", str(tmp_path / "nb.ipynb"), str(tmp_path / "o.ipynb"), "-p", "stpes", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unknown parameter 'stpes'; there are n, seed" in done.stderr


def test_a_failing_notebook_names_the_cell_and_leaves_nothing(write, tmp_path):
    py, out = write(SOURCE + "\n# %%\nprint(1)\n1 / 0\n"), tmp_path / "runs" / "out.ipynb"
    done = run_cli(f"from rdc.notebook import run_notebook; run_notebook({str(py)!r}, {str(out)!r})")
    assert "cell In [3], which starts with 'print(1)', failed with ZeroDivisionError: division by zero" in done.stderr
    assert list(out.parent.iterdir()) == []


def test_stamp_follows_code_profile_and_surroundings(write):
    def of(source, profile="tutorial", around="a"):
        return run_notebooks.stamp(jupytext.read(write(source)), profile, around)

    assert of(SOURCE) == of(SOURCE + "\n# %% [markdown]\n# Prose.\n")
    assert len({of(SOURCE), of(SOURCE + "n\n"), of(SOURCE, "full"), of(SOURCE, around="b")}) == 4


def test_a_notebook_depends_on_what_it_imports_and_reads(write, monkeypatch, tmp_path):
    """Not on docstrings, nor on code that it does not use."""
    shutil.copytree(run_notebooks.ROOT / "rdc", tmp_path / "rdc", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    source = SOURCE + "\n# %%\nfrom rdc.attack import pgd\nprint(pgd)\n"

    def parts(more=""):
        monkeypatch.setattr(run_notebooks, "program", lambda: Program(tmp_path / "rdc", "rdc"))
        return run_notebooks.imported(jupytext.read(write(source + more))).split()

    before, path = parts(), tmp_path / "rdc" / "attack" / "pgd.py"
    text = path.read_text()
    path.write_text(text.replace("Return adversarial images", "Give adversarial images", 1))
    (tmp_path / "rdc" / "attack" / "stadv.py").write_text("")
    assert parts() == before
    path.write_text(text.replace('loss: str = "margin"', 'loss: str = "ce"', 1))
    assert parts() != before
    path.write_text(text)
    assert len(before) == 1 and len(parts("\nrecord = 'results/bench.json'\n")) == 2


def test_student_edition_of_prose():
    text = student_edition.strip_text(BLOCKS)
    assert "Question A." in text and "The end." in text
    assert "Answer" not in text and "solution" not in text and "inside" not in text


def test_student_edition_of_a_notebook():
    md, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    head = ":::{exercise-end}\n:::\n\n:::{solution-start} ex-c\n:::\nAnswer C."
    tail = ":::{solution-end}\n:::\n\nBetween.\n\n:::{solution-start} ex-d\n:::"
    nb = nbformat.v4.new_notebook(cells=[code("kept"), md(head), code("answer_c"), md(tail), code("answer_d")])
    nb.cells += [md(":::{solution-end}\n:::"), md(BLOCKS), code("last")]
    sources = "\n".join(c.source for c in student_edition.strip_notebook(nb).cells)
    assert all(word in sources for word in ("kept", "{exercise-end}", "Between.", "Question A.", "last"))
    assert "nswer" not in sources and "solution" not in sources
    with pytest.raises(ValueError, match="without its solution-end"):
        student_edition.strip_notebook(nbformat.v4.new_notebook(cells=[md(head), code("answer_c")]))


def test_student_edition_of_this_book(tmp_path):
    student_edition.main(tmp_path / "student")
    files = [f for folder in ("book", "notebooks") for f in (tmp_path / "student" / folder).rglob("*") if f.is_file()]
    assert files
    assert not [f.name for f in files if "{solution" in f.read_text(encoding="utf8")]
    assert not (tmp_path / "student" / ".venv").exists()
    with pytest.raises(ValueError, match="exists"):
        student_edition.main(tmp_path / "student")


@pytest.mark.parametrize(
    "tag, problem",
    [
        ('<img src="a.png" alt="A curve">', None),
        ('<a href="https://example.org">a link is no load</a>', None),
        ('<img src="a.png">', "no alt text"),
        ('<img src="a.png" alt="../_images/0af3.png">', "no alt text"),
        ('<script src="https://example.org/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from elsewhere"),
        ('<p style="background: url(https://example.org/x)">', "from elsewhere"),
        ('<script src="missing.js?v=1"></script>', "not there"),
        ("<table><caption>Two</caption><tr><td>2</td></tr></table>", None),
        ("<table><tr><td>2</td></tr></table>", "1 tables without a caption"),
        ('<meta http-equiv="Refresh" content="0; url=page.html" />', None),
        ('<meta http-equiv="Refresh" content="0; url=book/index.html" />', "sends readers to"),
        ("x" * 2_000_001, "MB"),
    ],
)
def test_check_html(tmp_path, tag, problem):
    (tmp_path / "a.png").touch()
    (tmp_path / "page.html").write_text(f"<html><body>{tag}</body></html>")
    found = check_html.check(tmp_path)
    assert found == [] if problem is None else len(found) == 1 and problem in found[0]


def test_a_page_that_forwards_is_not_looked_at(tmp_path):
    """Chromium leaves it while it is looked at; whether that raises depends on how fast the next page loads."""
    (tmp_path / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=page.html" />')
    (tmp_path / "page.html").write_text("<p>stays</p>")
    assert check_access.pages(tmp_path, []) == [tmp_path / "page.html"]


FAULTS = {
    "a script fails": "<script>const a = 1</script><script>const a = 2</script>",
    "is 300 pixels wider than its place": """<div class="math" id="equation-a"><span class="eqno">(1.1)#</span>
        <mjx-container display="true" style="display: block; width: 200px; overflow: auto">
        <div style="width: 500px">x</div></mjx-container></div>""",
    "a printed line runs out of its box: printed": """<div class="cell_output" style="width: 9em; overflow: auto"><pre>
printed and very_long_without_a_place_to_break_it_____________________________</pre></div>""",
    "the word maximisation of a table is cut": """<table><caption>c</caption><tr>
        <td style="max-width: 3em; overflow-wrap: anywhere">maximisation</td></tr></table>""",
    "a figure of 1000 pixels is shown at 390": """<figure style="margin: 0"><img alt="Curves" style="width: 100%"
        src="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='1000' height='9'/%3E"></figure>""",
    "pixels wider than a telephone": '<div style="width: 700px">x</div>',
}


@needs_chromium
@pytest.mark.parametrize("what", ["", *FAULTS])
def test_check_access_names_what_is_cut_or_too_small(tmp_path, what):
    head = '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>t</title>'
    text = f'{head}<body style="margin: 0"><article>{FAULTS.get(what, "plain")}</article>'
    (tmp_path / "page.html").write_text(text, encoding="utf8")
    found = check_access.check(tmp_path, [])
    assert found == [] if not what else found and all(what in line for line in found)


def test_citations_that_would_be_alike_get_letters(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "_ext")
    import citation_years

    def years(text):
        entries = parse_string(text, "bibtex").entries
        citation_years.letter(entries.values())
        citation_years.letter(entries.values())  # a list that was kept
        return [one.fields["year"] for one in entries.values()]

    def work(key, authors, year):
        return f"@misc{{{key}, author = {{{authors}}}, year = {{{year}}}}}"

    many, other = "Chen, A and Dong, B and Su, C", "Chen, A and Shao, D and Zhu, E"
    assert years(work("a", many, 2024) + work("b", "Chen, A", 2024) + work("c", other, 2024)) == ["2024a", "2024", "2024b"]
    assert years(work("a", many, 2024) + work("b", other, 2023)) == ["2024", "2023"]
    listed = parse_string((ROOT / "references.bib").read_text(encoding="utf8"), "bibtex").entries
    citation_years.letter(listed.values())
    assert len({citation_years.cited(one) for one in listed.values()}) == len(listed)


def test_a_missing_executed_notebook_is_named(tmp_path):
    if run_notebooks.find([]):
        with pytest.raises(SystemExit, match="is missing; run: python tools/run_notebooks.py"):
            build_book.stage(tmp_path / "nowhere", tmp_path / "stage")


def test_the_repository_is_one_setting(monkeypatch):
    """Nothing but pyproject.toml names it: without it there are no buttons, with it the settings and the cell name it."""
    monkeypatch.syspath_prepend(ROOT / "_ext")
    import start_cell

    text = (ROOT / "_config.yml").read_text(encoding="utf8")
    plain, url = yaml.safe_load(text), "https://example.org/a/book"
    assert not plain["repository"]["url"] and "launch_buttons" not in plain and build_book.config(text, "") == text
    found = yaml.safe_load(build_book.config(text, url))
    buttons = {"use_repository_button", "use_issues_button", "use_edit_page_button"}
    assert found["repository"]["url"] == url and {k for k in found["html"] if found["html"][k] is True} == buttons
    assert {k: v for k, v in found.items() if k not in ("repository", "html", "launch_buttons")} == {
        k: v for k, v in plain.items() if k not in ("repository", "html")
    }
    assert url in start_cell.start_cell(url) and "wheel" in start_cell.start_cell("")
    named = build_book.repository()
    declared = re.findall(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf8"), re.M)
    assert declared == ([named] if named else [])
    for name in ("CITATION.cff", "finding.bib", "README.md"):
        assert not re.search("repository-code|rdc-book", (ROOT / name).read_text(encoding="utf8")), name


def test_containers_use_what_there_is():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf8"))
    assert container["postCreateCommand"] == "make .venv/.ready"
    makefile = (ROOT / "Makefile").read_text(encoding="utf8")
    assert "\n$(READY): " in makefile and "READY := $(VENV)/.ready" in makefile
    binder = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))["dependencies"]
    python = next(one.split("=")[1] for one in binder if isinstance(one, str) and one.startswith("python="))
    assert container["image"] == f"python:{python}" and {"pip": ["-r requirements.txt", "-e ."]} in binder


def test_no_registry_or_machine_path_in_the_configuration():
    for name in ("requirements.txt", "environment.yml", "Makefile"):
        assert not [line for line in (ROOT / name).read_text().splitlines() if "index-url" in line or "://" in line]
