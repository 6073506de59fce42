"""The findings of the book in its pages, out of the stored results.

``{kept}`rdc-bpda` `` is how many images a defence of the headline keeps; ``{headline}`` draws the figure, for both themes;
``{findings}`` is the table of all claims, which _static/findings.js filters.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from rdc.findings.figure import headline, save_headline

THEMES = {"light": "#222222", "dark": "#dddddd"}
PAPERS = {"A": "rdc", "B": "ndc", "C": "guidance"}


class Kept(SphinxRole):
    """The role; its text is a name of :func:`rdc.findings.figure.headline`."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Look the counts up; an unknown name is a warning, which fails the build."""
        found = headline(Path(self.env.srcdir, "results"))
        if self.text not in found:
            return [], [self.inliner.reporter.warning(f"no defence {self.text!r} in the headline", line=self.lineno)]
        return [nodes.inline(text=f"{found[self.text].correct} of {found[self.text].n}", classes=["result"])], []


def figures(app: Sphinx) -> None:
    """Draw the headline for the light and the dark theme, transparent, before the pages are read."""
    for theme, color in THEMES.items():
        save_headline(Path(app.srcdir, "_static", f"headline-{theme}.svg"), Path(app.srcdir, "results"), color)


class Findings(SphinxDirective):
    """The table, one row a claim."""

    def run(self) -> list[nodes.Node]:
        """Make the rows; each has classes by paper and verdict."""
        source = Path(self.env.srcdir, "results", "claims.json")
        self.env.note_dependency(str(source))
        claims = json.loads(source.read_text(encoding="utf8"))
        table = nodes.table(classes=["findings"], ids=["findings-table"])
        group = nodes.tgroup(cols=4)
        table += [nodes.title(text=f"{len(claims)} claims, judged by one rule"), group]
        group += [nodes.colspec(colwidth=w) for w in (7, 33, 12, 48)]
        head = nodes.row()
        head += [nodes.entry("", nodes.paragraph(text=t)) for t in ("id", "claim", "verdict", "evidence")]
        group += [nodes.thead("", head), nodes.tbody("", *map(self.row, claims))]
        return [table]

    def row(self, claim: dict[str, Any]) -> nodes.row:
        """One claim."""
        interval = "" if claim["low"] is None else f" Interval [{claim['low']:+.2f}, {claim['high']:+.2f}]."
        evidence = nodes.paragraph(text=claim["sentence"] + interval + " ")
        if claim["page"]:
            link = addnodes.pending_xref(
                "", nodes.inline(text="Page"), refdomain="std", reftype="doc", reftarget=f"/{claim['page']}", refexplicit=True,
                refdoc=self.env.docname, refwarn=True,
            )  # fmt: skip
            evidence += [link, nodes.Text(". ")]
        if claim["record"]:
            evidence += nodes.literal(text=claim["record"])
        cells = (nodes.strong(text=claim["id"]), nodes.inline(text=f"{claim['claim']} ({claim['place']})"))
        verdict = nodes.inline(text=claim["verdict"], classes=["verdict"])
        row = nodes.row(classes=[f"paper-{PAPERS[claim['id'][0]]}", f"verdict-{claim['verdict'].replace(' ', '-')}"])
        row += [nodes.entry("", nodes.paragraph("", "", one)) for one in (*cells, verdict)]
        row += nodes.entry("", evidence)
        return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("kept", Kept())
    app.add_directive("findings", Findings)
    app.connect("builder-inited", figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
