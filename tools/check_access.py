"""Look at the pages of a built book in headless Chromium: findings of axe-core, errors of scripts, pages too wide or too long.

With everything unfolded no formula and no printed line may be wider than its place at a desk; no word of a table may be cut,
there or on a telephone; and no figure may be so small on a telephone that its type cannot be read.

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
UNFOLD = """document.querySelectorAll("details").forEach(one => one.open = true);
  document.querySelectorAll(".toggle-hidden").forEach(one => one.classList.remove("toggle-hidden"))"""
READY = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"  # what watches sizes has seen them
FORMULAS = """[...document.querySelectorAll("article mjx-container[display]")]
  .filter(f => f.scrollWidth > f.clientWidth + 1).map(f => {
  const name = f.closest("div.math")?.querySelector(".eqno")?.textContent.replace("#", ""), id = f.closest("[id]")?.id;
  return `equation ${name || "below"} of #${id} is ${f.scrollWidth - f.clientWidth} pixels wider than its place`;
})"""
PRINTED = """[...document.querySelectorAll("article .cell_output pre")].filter(p => p.scrollWidth > p.clientWidth + 1)
  .map(p => `a printed line runs out of its box: ${p.textContent.trim().slice(0, 50)}`)"""
CUT = r"""[...document.querySelectorAll("article table :is(td, th)")].filter(c => !c.closest(".lab")).flatMap(cell => {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), cut = [], range = document.createRange();
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (text.parentElement.closest("code, mjx-container, script, style")) continue;
    for (const word of text.data.matchAll(/[\p{L}\p{N}]+/gu)) {
      range.setStart(text, word.index); range.setEnd(text, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
      if (lines.size > 1) cut.push(`the word ${word[0]} of a table is cut`);
    }
  }
  return cut;
})"""
LEAST = 0.75  # of the pixels of a figure, or of the 672 that a desk shows: type of 9 points has 9 pixels on a telephone
SMALL = f"""[...document.querySelectorAll("article figure img")].filter(i => i.clientWidth && !i.closest(".lab, .blind"))
  .filter(i => i.clientWidth < {LEAST} * Math.min(i.naturalWidth, 672))
  .map(i => `a figure of ${{i.naturalWidth}} pixels is shown at ${{i.clientWidth}}: ${{i.alt.slice(0, 50)}}`)"""
KNOWN = ("citation-list",)  # classes of elements whose roles docutils writes


def serious(violation: dict[str, Any]) -> bool:
    """Whether a finding of axe keeps somebody from reading the page, and is ours to mend."""
    ours = [node for node in violation["nodes"] if not any(name in node["html"] for name in KNOWN)]
    return violation["impact"] in ("serious", "critical") and bool(ours)


def listen(page: Page) -> list[str]:
    """Return a list, which grows by the errors of scripts and those that they log."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(f"a script fails: {error}"))
    page.on("console", lambda said: found.append(f"a script logs: {said.text}") if said.type == "error" else None)
    return found


def look(page: Page, file: Path) -> list[str]:
    """Return the problems of one page, in words; print how long it is."""
    found = listen(page)
    page.set_viewport_size(DESK)
    page.goto(file.as_uri())
    page.evaluate("window.MathJax?.startup?.promise")  # formulas are set after the page is loaded
    found += [
        f"{v['id']}: {v['help']} ({len(v['nodes'])} times, first {v['nodes'][0]['html'][:100]})"
        for v in filter(serious, Axe().run(page, options=RULES)["violations"])
    ]
    screens = page.evaluate("document.documentElement.scrollHeight / innerHeight")
    columns = page.evaluate(WIDEST)
    page.evaluate(UNFOLD)
    page.evaluate(READY)
    found += [*page.evaluate(FORMULAS), *page.evaluate(PRINTED), *(f"{cut} at a desk" for cut in page.evaluate(CUT))]
    page.set_viewport_size(TELEPHONE)
    page.evaluate(READY)
    found += [*page.evaluate(SMALL), *(f"{cut} on a telephone" for cut in page.evaluate(CUT))]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    print(f"  {file.name}: {screens:.1f} screens", flush=True)
    most = SHEETS if file.parent.name == "api" or file.name in RECORDS else SCREENS
    found += [f"{screens:.1f} screens, more than {most}"] * (round(screens) > most)
    found += [f"a table of {columns} columns, more than {COLUMNS}"] * (columns > COLUMNS)
    return [f"{file}: {what}" for what in found + [f"{wide} pixels wider than a telephone"] * (wide > 0)]


def look_up(page: Page, file: Path, word: str = "noise") -> list[str]:
    """Return the problems of a search in the book, opened as a file: it finds pages, and logs no error."""
    found = listen(page)
    page.goto(f"{file.as_uri()}?q={word}")
    page.wait_for_function("/[0-9]/.test(document.querySelector('.search-summary')?.textContent)")
    hits = page.locator("ul.search > li").count()
    return [f"{file}: {what}" for what in found + [f"the search for {word} finds nothing"] * (not hits)]


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

        def tab() -> Page:
            page = browser.new_page()
            page.set_default_timeout(180_000)
            return page

        found = look_up(tab(), search) if (search := folder / "search.html").exists() and not wanted else []
        for file in pages(folder, wanted):
            page = tab()
            found += look(page, file)
            page.close()
        return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]).resolve(), sys.argv[2:])
    print("\n".join(problems))
    sys.exit(bool(problems))
