"""The shape of the pages: short ones, with lines that are read without scrolling.

A page has at most 1 500 words, and 100 visible lines of code of 80 columns. Its exercises are not counted: they say how many
minutes they take, and their solutions are folded. The minutes at its head follow from the rule of book/how_to_read.md.
"""

import base64
import re
import struct
from pathlib import Path

import nbformat
import pytest
from exercises import exercises
from student_edition import strip_notebook

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"words": 1500, "visible lines": 100, "columns": 80}
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
SHOWN = 672  # pixels of a figure that fills the text, in a window of 1280
TYPE = 11  # points of the smallest type that pages and rdc.plots use, at 100 pixels an inch
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def counted(text):
    """Words of a text, without the lines of directives."""
    return sum(len(line.split()) for line in text.splitlines() if not line.startswith(":"))


def measured(page):
    """What a page has: words outside code, visible lines of code that are not empty, and columns of the longest of them."""
    nb = strip_notebook(nbformat.read(page, 4))
    asked = exercises(nb)
    cells = [c for i, c in enumerate(nb.cells) if not any(i in e.code for e in asked)]
    prose = [c.source for c in cells if c["cell_type"] == "markdown"]
    words = sum(map(counted, prose)) - sum(counted(e.text) for e in asked)
    code = [(c.source.splitlines(), set(c.metadata.get("tags", []))) for c in cells if c["cell_type"] == "code"]
    visible = [line for source, tags in code if not tags & HIDDEN for line in source if line.strip()]
    return {"words": words, "visible lines": len(visible), "columns": max(map(len, visible), default=0)}


def minutes(found):
    """Minutes of a first reading and one exercise, by the rule of book/how_to_read.md, to the nearest five."""
    return 5 * round((found["words"] / 100 + found["visible lines"] / 10 + 10) / 5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_how_long_it_takes(page):
    said = re.search(r"\*\*Time\*\* (\d+) minutes", page.read_text(encoding="utf8"))
    assert said and int(said[1]) == minutes(measured(page)) <= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short(page):
    over = {name: f"{value}, allowed {LIMITS[name]}" for name, value in measured(page).items() if value > LIMITS[name]}
    assert not over, f"{page.name} is too long; split it or fold its plumbing"


def figures(page):
    """Width in pixels of each figure of a page, and of the place where it is shown."""
    for cell in nbformat.read(page, 4).cells:
        image = cell.metadata.get("mystnb", {}).get("image", {})
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                wide = struct.unpack(">I", base64.b64decode(png)[16:20])[0]
                yield wide, min(wide, SHOWN * int(image.get("width", "100%").rstrip("%")) / 100)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_type_of_a_figure_has_nine_points_where_it_is_shown(page):
    """A point is 4/3 pixels of a page."""
    small = [(wide, shown) for wide, shown in figures(page) if TYPE * 100 / 72 * shown / wide < 9 * 4 / 3 - 0.05]
    assert not small, "figures (pixels, shown at) are drawn too large; reduce their figsize"


@pytest.mark.parametrize("source", [*(p.with_suffix(".py") for p in PAGES), ROOT / "rdc" / "plots.py"], ids=lambda p: p.stem)
def test_no_source_asks_for_smaller_type(source):
    sizes = re.findall(r"(?:font|label)size=([\d.]+)", source.read_text(encoding="utf8"))
    assert not [s for s in sizes if float(s) < TYPE]
