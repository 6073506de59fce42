"""Serve MathJax from the book itself, so that formulas render without a network.

Copies one self-contained file (MathJax 3, SVG output, all TeX packages, Apache-2.0) out of the installed
``sphinx-mathjax-offline`` distribution.
"""

from importlib.metadata import files
from pathlib import Path
from shutil import copyfile
from typing import Any

from sphinx.application import Sphinx

NAME = "tex-svg-full.js"


def copy(app: Sphinx, error: Exception | None) -> None:
    """Put the script among the book's static files."""
    if error is None and app.builder.format == "html":
        source = next(f for f in files("sphinx-mathjax-offline") or [] if f.name == NAME)
        to = Path(app.outdir, "_static", "mathjax", NAME)
        to.parent.mkdir(parents=True, exist_ok=True)
        copyfile(str(source.locate()), to)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.config.mathjax_path = f"mathjax/{NAME}"
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
