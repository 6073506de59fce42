"""Pages that a headless Chromium opens for the tests, wherever one is found."""

import re
import subprocess
from html import unescape
from pathlib import Path

import pytest
from print_book import chromium

STATIC = Path(__file__).resolve().parents[1] / "_static"
CHROMIUM = chromium()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="pages are looked at in Chromium, which is not there")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def in_browser(folder: Path, scripts: list[str], program: str, body: str = "", place: str = "") -> str:
    """The body of a page after it has run scripts and a program, opened at a place."""
    loads = "".join(f'<script src="{(STATIC / name).as_uri()}"></script>' for name in scripts)
    page = folder / "page.html"
    page.write_text(f'<meta charset="utf-8"><body>{body}{loads}<script>{program}</script></body>', encoding="utf8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *QUIET, profile, "--virtual-time-budget=60000", "--dump-dom", page.as_uri() + place]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240).stdout
    return unescape(re.search(r"<body[^>]*>(.*)</body>", dom, re.DOTALL).group(1).strip())
