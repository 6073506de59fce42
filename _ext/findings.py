"""The findings of the book in its pages, out of the stored results.

``{kept}`rdc-bpda` `` is how many images a defence of the headline keeps; ``{claim}`A8` `` the verdict of a claim, with a link to
it; ``{finding} likelihood`` a picture of :mod:`rdc.findings.panels` for both themes and for telephones, with its claims unless it
is ``:bare:``; ``{findings}`` is the table of all claims, which _static/findings.js filters.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from rdc.findings.figure import headline, save_figure
from rdc.findings.panels import PANELS

THEMES = {"light": "#222222", "dark": "#dddddd"}
SHAPES = ("wide", "narrow")  # book.css shows the one that fits
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
    """Draw the pictures for the light and the dark theme, wide and narrow, transparent, before the pages are read."""
    for (theme, color), shape, (name, panel) in product(THEMES.items(), SHAPES, PANELS.items()):
        path = Path(app.srcdir, "_static", f"{name}-{theme}-{shape}.svg")
        save_figure(path, panel.draw, Path(app.srcdir, "results"), color, narrow=shape == "narrow")


def published(env: BuildEnvironment) -> dict[str, dict[str, Any]]:
    """Return the published list of claims by id."""
    source = Path(env.srcdir, "results", "claims.json")
    env.note_dependency(str(source))
    return {claim["id"]: claim for claim in json.loads(source.read_text(encoding="utf8"))}


def reference(name: str, text: str, docname: str) -> nodes.Node:
    """Return a link to the row of a claim."""
    return addnodes.pending_xref(
        "", nodes.inline(text=text), refdomain="std", reftype="ref", reftarget=f"claim-{name.lower()}", refexplicit=True,
        refdoc=docname, refwarn=True,
    )  # fmt: skip


class Claimed(SphinxRole):
    """The role; its text is the id of a claim."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Look the verdict up; an unknown claim is a warning, which fails the build."""
        found = published(self.env).get(self.text)
        if found is None:
            return [], [self.inliner.reporter.warning(f"no claim {self.text!r}", line=self.lineno)]
        return [reference(self.text, f"{self.text}: {found['verdict']}", self.env.docname)], []


class Finding(SphinxDirective):
    """A picture, light and dark, wide and narrow, and under it the claims that it shows."""

    required_arguments = 1
    option_spec: ClassVar[Any] = {"bare": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Make the images and the line below them."""
        name, known = self.arguments[0], published(self.env)
        panel, box = PANELS[name], nodes.container(classes=["finding"])
        for theme, shape in product(THEMES, SHAPES):
            classes = [f"only-{theme}", f"only-{shape}"]
            box += nodes.image(uri=f"/_static/{name}-{theme}-{shape}.svg", alt=panel.alt, classes=classes, candidates={})
        for claim in () if "bare" in self.options else [known[one] for one in panel.claims]:
            link = reference(claim["id"], f"{claim['id']}: {claim['verdict']}", self.env.docname)
            box += nodes.paragraph("", "", link, nodes.Text(f". {claim['sentence']}"), classes=["finding-claim"])
        return [box]


class Findings(SphinxDirective):
    """The table, one row a claim."""

    def run(self) -> list[nodes.Node]:
        """Make the rows; each has classes by paper and verdict."""
        claims = list(published(self.env).values())
        table = nodes.table(classes=["findings", "colwidths-given"], ids=["findings-table"])
        group = nodes.tgroup(cols=4)
        table += [nodes.title(text=f"{len(claims)} claims, judged by one rule"), group]
        group += [nodes.colspec(colwidth=w) for w in (9, 33, 13, 45)]
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
        for name in filter(None, claim["record"].split(", ")):
            evidence += [self.record(name), nodes.Text(" ")]
        cells = (nodes.strong(text=claim["id"]), nodes.inline(text=f"{claim['claim']} ({claim['place']})"))
        verdict = nodes.inline(text=claim["verdict"], classes=["verdict"])
        scale = claim["scale"].partition(",")[0].lower() or "derivation"
        classes = [f"paper-{PAPERS[claim['id'][0]]}", f"verdict-{claim['verdict'].replace(' ', '-')}", f"scale-{scale}"]
        row = nodes.row(classes=classes, ids=[self.label(claim["id"])])
        row += [nodes.entry("", nodes.paragraph("", "", one)) for one in (*cells, verdict)]
        row += nodes.entry("", evidence)
        return row

    def label(self, claim: str) -> str:
        """Return the anchor of a row, known to links of all pages."""
        name, domain = f"claim-{claim.lower()}", self.env.get_domain("std")
        domain.data["anonlabels"][name] = self.env.docname, name
        domain.data["labels"][name] = self.env.docname, name, claim
        return name

    def record(self, name: str) -> nodes.Node:
        """Return a record as a file to download; a test by its name."""
        if not name.startswith("results/"):
            return nodes.literal(text=name)
        return addnodes.download_reference("", "", nodes.literal(text=name), reftarget=f"/{name}", refdoc=self.env.docname)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("kept", Kept())
    app.add_role("claim", Claimed())
    app.add_directive("finding", Finding)
    app.add_directive("findings", Findings)
    app.connect("builder-inited", figures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
