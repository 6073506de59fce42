"""What the course is made of: editions, plans, slides, the archive of a session, and the book as one page."""

import ast
import builtins
import json
import re
import sys
import zipfile
from pathlib import Path

import assignment
import build_book
import jupytext
import nbformat
import print_book
import pytest
import student_edition

ROOT = Path(__file__).parents[1]
SLIDES = ROOT / "course" / "slides"
sys.path.append(str(SLIDES))

import stored  # noqa: E402

PLAN = """## Session 1: a *start*

*Pages.* {doc}`/notebooks/01_a`,
{doc}`/notebooks/02_b`.

{doc}`/notebooks/03_c`

## Session 2: more
"""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_what_is_for_teachers_goes():
    text = "Before.\n<!-- <teachers> -->\nSecret.\n\nMore.\n<!-- </teachers> -->\nAfter.\n"
    assert student_edition.strip_text(text) == "Before.\nAfter.\n"
    with pytest.raises(ValueError, match="'<teachers>' is left"):
        student_edition.check("a.md", student_edition.strip_text("<!-- <teachers> -->\nSecret.\n"))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    student_edition.main(out := tmp_path_factory.mktemp("edition") / "student")
    return out


def test_the_student_edition_has_the_whole_package(student):
    def modules(root):
        return {path.relative_to(root) for path in (root / "rdc").rglob("*.py")}

    assert modules(student) == modules(ROOT)


def test_the_student_edition_speaks_of_nothing_that_it_lacks(student):
    assert not [name for name in student_edition.TEACHERS if (student / name).exists()]
    texts = [*(student / "book").rglob("*.md"), student / "README.md", student / "Makefile"]
    words = ("solution", "instructor", "teachers")
    assert not [f"{f.name}: {word}" for f in texts for word in words if word in f.read_text(encoding="utf8").lower()]
    made = set(re.findall(r"^(\w+): \$", (student / "Makefile").read_text(), re.M))
    assert made == {"book", "notebooks", "pdf", "poster", "wheel"}
    said = [t for f in texts for t in re.findall(r"(?:`|^\$ )make (\w+)", f.read_text(encoding="utf8"), re.M)]
    assert set(said) <= made | {"help"}


def stored_names(tree):
    """The names that code binds, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


@pytest.mark.parametrize("py", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_page_needs_its_solutions(py):
    """Without them every name is bound before it is used, and every number glued that the page pastes."""
    nb = student_edition.strip_notebook(jupytext.read(py))
    known, source = set(dir(builtins)), "\n".join(c.source for c in nb.cells)
    for cell in nb.cells:
        if cell.cell_type == "code":
            tree = ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.M))
            known.update(stored_names(tree))
            loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            assert loaded <= known, cell.source.splitlines()[0]
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    pasted = {key for key in re.findall(r"\{glue:text\}`([\w-]+)", source)}
    whole = "\n".join(c.source for c in jupytext.read(py).cells if c.cell_type == "code")
    assert not [key for key in pasted if f'"{key}"' in whole and f'"{key}"' not in code]


def test_the_edition_for_instructors_adds_the_notes_and_nothing_else(tmp_path):
    more = build_book.with_notes(tmp_path)
    contents = more.pop(Path("_toc.yml")).read_text(encoding="utf8")
    assert contents.startswith((ROOT / "_toc.yml").read_text(encoding="utf8").rstrip()) and contents.count("book/instructor") == 1
    assert list(more) == [Path("book", "instructor.md")]
    assert "instructor" not in (ROOT / "_toc.yml").read_text(encoding="utf8") and not (ROOT / "book" / "instructor.md").exists()


# Plans


@pytest.mark.parametrize(("name", "sessions"), [("four", 4), ("ten", 10)])
def test_every_session_has_pages_that_exist(name, sessions):
    plan = (ROOT / "book" / "course" / f"{name}.md").read_text(encoding="utf8")
    for number in range(1, sessions + 1):
        _, pages = assignment.session(plan, number)
        assert pages and all((ROOT / "notebooks" / f"{page}.py").exists() for page in pages)
    with pytest.raises(ValueError, match=f"no session {sessions + 1}"):
        assignment.session(plan, sessions + 1)


def test_every_session_of_the_module_lasts_90_minutes():
    plan = (ROOT / "book" / "course" / "four.md").read_text(encoding="utf8")
    tables = re.split(r"^## Session", plan, flags=re.M)[1:]
    assert [sum(map(int, re.findall(r"^\| (\d+) \|", table, re.M))) for table in tables] == [90] * 4


def test_the_long_course_reads_every_chapter():
    plan = (ROOT / "book" / "course" / "ten.md").read_text(encoding="utf8")
    chapters = {py.stem[:2] for py in NOTEBOOKS}
    assert chapters == {page[:2] for page in re.findall(r"/notebooks/(\w+)", plan)}


def test_a_session_is_read_from_the_plan():
    assert assignment.session(PLAN, 1) == ("Session 1: a *start*", ["01_a", "02_b"])


# The archive


def test_the_archive_of_a_session(tmp_path, monkeypatch):
    student = tmp_path / "student"
    (student / "book" / "course").mkdir(parents=True)
    (student / "book" / "course" / "four.md").write_text(PLAN)
    (student / "notebooks").mkdir()
    code = nbformat.v4.new_code_cell("print(1)", execution_count=7, outputs=[nbformat.v4.new_output("stream", text="1\n")])
    for page in ("01_a", "02_b", "03_c"):
        nbformat.write(nbformat.v4.new_notebook(cells=[code]), student / "notebooks" / f"{page}.ipynb")
    monkeypatch.setattr(assignment.subprocess, "run", lambda command, check: (Path(command[-2]) / "rdc-1.whl").touch())
    with zipfile.ZipFile(assignment.main(1, tmp_path)) as archive:
        top = "session-1"
        assert {n for n in archive.namelist() if not n.endswith("/")} == {f"{top}/{n}" for n in
            ("01_a.ipynb", "02_b.ipynb", "rdc-1.whl", "README.md")}  # fmt: skip
        cell = json.loads(archive.read(f"{top}/01_a.ipynb"))["cells"][0]
        assert cell["outputs"] == [] and cell["execution_count"] is None
        said = archive.read(f"{top}/README.md").decode()
        assert "rdc run 01" in said and "rdc-1.whl[" in said


# Slides


def decks():
    return sorted(SLIDES.glob("session*.md"))


def test_there_is_a_deck_for_every_session():
    plan = (ROOT / "book" / "course" / "four.md").read_text(encoding="utf8")
    titles = [re.search(r"^# (.*)$", deck.read_text(encoding="utf8"), re.M)[1] for deck in decks()]
    wanted = [f"Session {n}: {title[0].lower()}{title[1:]}" for n, title in enumerate(titles, 1)]
    assert [assignment.session(plan, n)[0] for n in range(1, 5)] == wanted


@pytest.mark.parametrize("deck", decks(), ids=lambda p: p.stem)
def test_a_deck_is_short_has_notes_and_shows_what_is_stored(deck):
    text = deck.read_text(encoding="utf8")
    slides = re.split(r"^##? ", text, flags=re.M)[1:]
    assert 10 <= len(slides) <= 15 and all("{revealjs-notes}" in slide for slide in slides)
    figures = re.findall(r"^:::\{stored\} (\S+)$", text, re.M)
    assert len(figures) >= 2
    for name in figures:
        if name not in stored.PANELS:
            picture, alt = stored.figure(name)
            assert picture.startswith(b"\x89PNG") and alt
    for role, look in {"glued": stored.number, "verdict": stored.verdict, "kept": stored.kept}.items():
        assert all(look(name) for name in re.findall(rf"\{{{role}\}}`([^`]+)`", text))


def test_what_is_not_stored_is_refused():
    with pytest.raises(KeyError):
        stored.figure("fig-of-nothing")
    with pytest.raises(KeyError):
        stored.number("nothing:.1f")


# The book as one page

PAGE = """<html><head><link href="../_static/a.css" rel="stylesheet"></head><body>
<nav class="bd-links"><a class="internal" href="#">A</a><a class="internal" href="../notebooks/01.html">B</a>
<a class="internal" href="api.html">C</a></nav>
<article class="bd-article"><h1 id="top">{title}<a class="headerlink" href="#top">#</a></h1>{body}</article></body></html>"""


def test_links_of_the_one_page_work(tmp_path):
    for name, body in {
        "book/index": '<a href="../notebooks/01.html#top">1</a><img src="../_images/a.png"><a href="https://example.org/#x">2</a>',
        "notebooks/01": '<details class="dropdown"><p>3</p></details><a href="#top">4</a><a href="../book/index.html">5</a>',
        "book/api": "",
    }.items():
        file = tmp_path / f"{name}.html"
        file.parent.mkdir(exist_ok=True)
        file.write_text(PAGE.format(title=name, body=body))
    text = print_book.one_page(tmp_path)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 4
    links = re.findall(r'href="#([^"]+)"', text)
    assert sorted(links) == ["book-index--", "book-index--", "notebooks-01--", "notebooks-01--top", "notebooks-01--top"]
    assert set(links) <= set(ids)
    assert 'src="_images/a.png"' in text and 'href="_static/a.css"' in text and 'href="https://example.org/#x"' in text
    assert '<details class="dropdown" open="">' in text and "headerlink" not in text and "api" not in text


def test_without_a_browser_nothing_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(print_book.shutil, "which", lambda name: None)
    assert not print_book.print_page(tmp_path / "a.html", tmp_path / "a.pdf")
