"""Check a built book: nothing loads from elsewhere, what loads exists, figures and tables are described, no page is too big."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LOADS = dict.fromkeys("script img iframe source video audio embed track".split(), "src") | {"object": "data"}
LINKS = {"stylesheet", "preload", "modulepreload", "icon", "manifest"}
OUTSIDE = ("http:", "https:", "//")
FORWARD = re.compile(r"""<meta\s+http-equiv=["']?refresh["']?\s+content=["']\d+;\s*url=([^"']+)""", re.IGNORECASE)
CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")
LIMIT = 2_000_000  # bytes a page
MADE = ("genindex.html", "prf-prf.html", "py-modindex.html")  # by Sphinx, as are the tables of the interface


class Page(HTMLParser):
    """Collects what one page loads, and its figures without alt text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.bare: list[str] = []
        self.tables, self.captions = 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one tag."""
        a = {k: v or "" for k, v in attrs}
        self.tables, self.captions = self.tables + (tag == "table"), self.captions + (tag == "caption")
        url = a.get(LOADS.get(tag, ""))
        if tag == "link" and LINKS & set(a.get("rel", "").split()):
            url = a.get("href")
        if url:
            self.loads.append(url)
        if tag == "img" and (not a.get("alt", "").strip() or a["alt"].endswith((".png", ".svg", ".jpg"))):
            self.bare.append(url or "?")
        self.loads += CSS.findall(a.get("style", ""))


def target(file: Path) -> Path | None:
    """Return the page to which this one sends its readers on at once, if it does."""
    found = FORWARD.search(file.read_text(encoding="utf8"))
    return file.parent / unquote(found[1].split("#")[0]) if found else None


def check_page(file: Path) -> list[str]:
    """The problems of one page, in words."""
    page, text = Page(), file.read_text(encoding="utf8")
    page.feed(text)
    outside = [u for u in page.loads if u.startswith(OUTSIDE)]
    local = [u for u in page.loads if not u.startswith((*OUTSIDE, "data:", "#"))]
    found = [f"loads {u} from elsewhere" for u in outside]
    found += [f"loads {u}, which is not there" for u in local if not (file.parent / unquote(re.split(r"[?#]", u)[0])).exists()]
    found += [f"sends readers to {to}, which is not there" for to in [target(file)] if to and not to.is_file()]
    found += [f"has no alt text for {u[:60]}" for u in page.bare]
    if page.tables > page.captions and file.name not in MADE and file.parent.name != "api":
        found.append(f"has {page.tables - page.captions} tables without a caption")
    if len(text.encode()) > LIMIT:
        found.append(f"is {len(text.encode()) / 1e6:.1f} MB; the limit is {LIMIT / 1e6:.0f} MB")
    return [f"{file}: {what}" for what in found]


def check(folder: Path) -> list[str]:
    """The problems of all pages and style sheets under ``folder``."""
    pages = sorted(f for f in folder.rglob("*.html") if "_static" not in f.parts)  # there lie templates of the theme
    if not pages:
        return [f"{folder}: no pages"]
    found = [line for f in pages for line in check_page(f)]
    for f in sorted(folder.rglob("*.css")):
        found += [f"{f}: loads {u} from elsewhere" for u in CSS.findall(f.read_text(encoding="utf8"))]
    return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems))
    sys.exit(bool(problems))
