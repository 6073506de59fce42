"""Look at the pages of a built book in headless Chromium: findings of axe-core, pages too wide for a telephone, or too long.

python tools/check_access.py FOLDER [PAGE ...]     PAGE is part of a name; without a Chromium it says so and ends well
"""

import sys
from pathlib import Path
from typing import Any

from axe_core_python.sync_playwright import Axe
from check_html import target
from playwright.sync_api import Page, sync_playwright
from print_book import chromium

DESK, TELEPHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}  # WCAG 2.2, AA
MADE = ("genindex.html", "py-modindex.html", "prf-prf.html", "search.html")  # by Sphinx
SCREENS, SHEETS, RECORDS = 12, 40, ("findings.html", "ledger.html")  # at most: of a page; of the interface, and of long tables
COLUMNS = 6  # at most, of a table that is not folded
WIDEST = """Math.max(0, ...[...document.querySelectorAll("article table")].filter(t => !t.closest("details:not([open]), .lab"))
  .flatMap(t => [...t.rows].map(row => [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0))))"""
KNOWN = ("citation-list",)  # classes of elements whose roles docutils writes


def serious(violation: dict[str, Any]) -> bool:
    """Whether a finding of axe keeps somebody from reading the page, and is ours to mend."""
    ours = [node for node in violation["nodes"] if not any(name in node["html"] for name in KNOWN)]
    return violation["impact"] in ("serious", "critical") and bool(ours)


def look(page: Page, file: Path) -> list[str]:
    """Return the problems of one page, in words; print how long it is."""
    page.set_viewport_size(DESK)
    page.goto(file.as_uri())
    page.evaluate("window.MathJax?.startup?.promise")  # formulas are set after the page is loaded
    found = [
        f"{v['id']}: {v['help']} ({len(v['nodes'])} times, first {v['nodes'][0]['html'][:100]})"
        for v in filter(serious, Axe().run(page, options=RULES)["violations"])
    ]
    screens = page.evaluate("document.documentElement.scrollHeight / innerHeight")
    columns = page.evaluate(WIDEST)
    page.set_viewport_size(TELEPHONE)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    print(f"  {file.name}: {screens:.1f} screens", flush=True)
    most = SHEETS if file.parent.name == "api" or file.name in RECORDS else SCREENS
    found += [f"{screens:.1f} screens, more than {most}"] * (round(screens) > most)
    found += [f"a table of {columns} columns, more than {COLUMNS}"] * (columns > COLUMNS)
    return [f"{file}: {what}" for what in found + [f"{wide} pixels wider than a telephone"] * (wide > 0)]


def pages(folder: Path, wanted: list[str]) -> list[Path]:
    """Return the pages under ``folder`` that stay when they are opened: one that sends its readers on cannot be looked at."""
    files = sorted(f for f in folder.rglob("*.html") if "_static" not in f.parts and f.name not in MADE)
    return [f for f in files if any(word in f.name for word in wanted or [""]) and target(f) is None]


def check(folder: Path, wanted: list[str]) -> list[str]:
    """Return the problems of the pages under ``folder``, in words."""
    if (path := chromium()) is None:
        print("There is no Chromium: access and width of the pages were left out")
        return []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root in a container
        page = browser.new_page()
        page.set_default_timeout(180_000)
        return [line for f in pages(folder, wanted) for line in look(page, f)]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]).resolve(), sys.argv[2:])
    print("\n".join(problems))
    sys.exit(bool(problems))
