"""Print a built book as one PDF whose links work: python tools/print_book.py PAGES OUT

The articles of the pages, in the order of the contents, become one page in PAGES; an anchor gets the name of its page, so that
no two are alike, and every link to a page of the book points to its anchor. Chromium prints it. Without a Chromium it says so.
"""

import shutil
import sys
from pathlib import Path
from posixpath import join, normpath

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
LEFT_OUT = "a.headerlink, button, script, .nb-provenance, .prev-next-footer, .tag_hide-cell, .lab, .findings-filter"
STYLE = """
body { max-width: 48rem; margin: 0 auto } article { break-before: page } h1, h2, h3 { break-after: avoid }
pre { white-space: pre-wrap; font-size: 0.75em } table { font-size: 0.8em } img, svg { max-width: 100% }
figure, tr, img { break-inside: avoid }
div.highlight, div.cell { overflow: visible !important } nav ol { columns: 2 } img.only-dark { display: none }
"""


def chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def place(page: str, href: str) -> str:
    """The path, from the root of the book, that a link of a page means; the page itself for an empty link."""
    return normpath(join(page.rpartition("/")[0], href)) if href else page


def order(folder: Path) -> list[str]:
    """The pages of a book, as its index lists them."""
    index = BeautifulSoup((folder / "book" / "index.html").read_text(encoding="utf8"), "html.parser")
    links = [a["href"] for a in index.select("nav.bd-links a.internal")]
    pages = dict.fromkeys(place("book/index.html", str(href).partition("#")[0]) for href in links)
    return [page for page in pages if "/api" not in page]  # hundreds of sheets, which nobody prints


def anchor(page: str, name: str = "") -> str:
    """The anchor of a place in the one page."""
    return f"{page.removesuffix('.html').replace('/', '-')}--{name}"


def article(folder: Path, page: str, pages: set[str]) -> Tag:
    """The article of a page with links and anchors of the one page, everything folded opened but hidden code."""
    soup = BeautifulSoup((folder / page).read_text(encoding="utf8"), "html.parser")
    found = soup.select_one("article.bd-article")
    assert found is not None
    for one in found.select(LEFT_OUT):
        one.decompose()
    for one in found.select("details.hide > summary, .tag_hide-input > details"):
        one.decompose()
    for one in found.select("[id]"):
        one["id"] = anchor(page, str(one["id"]))
    for one in found.select("details"):
        one["open"] = ""
    for one in found.select("[src]"):
        if not str(one["src"]).startswith("data:"):
            one["src"] = place(page, str(one["src"]))
    for one in found.select("a[href]"):
        href, _, name = str(one["href"]).partition("#")
        if "://" not in href and (target := place(page, href)) in pages:
            one["href"] = f"#{anchor(target, name)}"
    found["id"] = anchor(page)
    return found


def one_page(folder: Path) -> str:
    """The whole book as one page."""
    pages = order(folder)
    first = BeautifulSoup((folder / pages[0]).read_text(encoding="utf8"), "html.parser")
    head = first.head
    assert head is not None
    for one in head.select("[href], [src]"):
        for name in ("href", "src"):
            if one.has_attr(name) and "://" not in str(one[name]):
                one[name] = place("book/index.html", str(one[name]))
    articles = [article(folder, page, set(pages)) for page in pages]
    titles = [found.h1.get_text() if found.h1 else page for page, found in zip(pages, articles, strict=True)]
    contents = "".join(f'<li><a href="#{anchor(page)}">{title}</a></li>' for page, title in zip(pages, titles, strict=True))
    scripts = "".join(str(one) for one in first.select("script") if "athjax" in str(one) or "MathJax" in str(one))
    for one in head.select("script"):
        one.decompose()
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head>{head.decode_contents()}{scripts}'
        f"<style>{STYLE}</style></head><body><nav><h1>Contents</h1><ol>{contents}</ol></nav>"
        f"{''.join(map(str, articles))}</body></html>"
    )


def print_page(page: Path, out: Path) -> bool:
    """Print a page with Chromium once its formulas are set; whether there is a Chromium."""
    path = chromium()
    if path is None:
        return False
    with sync_playwright() as play:
        sheet = play.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()  # root in a container
        sheet.set_default_timeout(600_000)
        sheet.goto(page.resolve().as_uri(), wait_until="load")
        sheet.evaluate("window.MathJax?.startup ? MathJax.startup.promise.then(() => true) : true")
        sheet.pdf(path=out, format="A4", prefer_css_page_size=True, print_background=True)
    return True


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    (page := folder / "all.html").write_text(one_page(folder), encoding="utf8")
    out.unlink(missing_ok=True)
    print(f"wrote {out}" if print_page(page, out) else "There is no Chromium that prints; no PDF was made")
