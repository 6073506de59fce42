"""What slides show: figures and numbers out of the stored outputs of the notebooks and the results, by name.

``{stored} fig-name`` is a figure of a notebook, or a picture of :mod:`rdc.findings.panels`; ``{glued}`key:.1f` `` a number that a
notebook glued; ``{verdict}`A8` `` the verdict of a claim; ``{kept}`rdc-bpda` `` how many images a defence of the headline keeps.
"""

import ast
import base64
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from rdc.findings.figure import headline, save_figure
from rdc.findings.panels import PANELS

ROOT = Path(__file__).parents[2]
MADE = ROOT / "_build" / "slides-figures"
INK = "#222222"
RECORD = "application/papermill.record/text/plain"


@cache
def cells() -> list[dict[str, Any]]:
    """The code cells of all notebooks, with their stored outputs."""
    books = [json.loads(f.read_text(encoding="utf8")) for f in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return [cell for book in books for cell in book["cells"] if cell["cell_type"] == "code"]


def figure(name: str) -> tuple[bytes, str]:
    """The picture of a figure as PNG, and its alt text; KeyError if no notebook has it."""
    for cell in cells():
        shown = cell["metadata"].get("mystnb", {})
        if shown.get("figure", {}).get("name") == name:
            found = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
            return base64.b64decode("".join(found[-1])), shown["image"]["alt"]
    raise KeyError(name)


@cache
def glued() -> dict[str, Any]:
    """Every value that a notebook glued, by its key."""
    outputs = [o for cell in cells() for o in cell["outputs"] if "scrapbook" in o.get("metadata", {}) and RECORD in o["data"]]
    return {o["metadata"]["scrapbook"]["name"]: ast.literal_eval("".join(o["data"][RECORD])) for o in outputs}


def number(text: str) -> str:
    """The value of ``key:format``."""
    key, _, form = text.partition(":")
    return format(glued()[key], form)


def verdict(name: str) -> str:
    """The verdict of a claim."""
    claims = json.loads((ROOT / "results" / "claims.json").read_text(encoding="utf8"))
    return next(claim["verdict"] for claim in claims if claim["id"] == name)


def kept(name: str) -> str:
    """How many images a defence of the headline keeps."""
    found = headline()[name]
    return f"{found.correct} of {found.n}"


class Looked(SphinxRole):
    """A role that looks its text up; an unknown one is a warning, which fails the build."""

    def __init__(self, look: Callable[[str], str]) -> None:
        super().__init__()
        self.look = look

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return what was found."""
        try:
            return [nodes.inline(text=self.look(self.text))], []
        except (LookupError, StopIteration, ValueError) as err:
            return [], [self.inliner.reporter.warning(f"nothing is stored as {self.text!r}: {err!r}", line=self.lineno)]


class Stored(SphinxDirective):
    """A figure; the option ``width`` is a share of the slide."""

    required_arguments = 1
    option_spec = {"width": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write the picture to a file, and show it."""
        name = self.arguments[0]
        MADE.mkdir(parents=True, exist_ok=True)
        file = MADE / f"{name}.{'svg' if name in PANELS else 'png'}"
        if name in PANELS:
            save_figure(file, PANELS[name].draw, None, INK)
            alt = PANELS[name].alt
        else:
            picture, alt = figure(name)
            file.write_bytes(picture)
        uri = os.path.relpath(file, self.env.srcdir)
        return [nodes.image(uri=uri, alt=alt, width=self.options.get("width", "80%"))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("stored", Stored)
    for name, look in {"glued": number, "verdict": verdict, "kept": kept}.items():
        app.add_role(name, Looked(look))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
