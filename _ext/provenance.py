"""``{nb-provenance}``: a table of when, where and in how long the stored outputs were made.

It is read from the notebooks' own metadata, which tools/run_notebooks.py writes. Each notebook page also gets a
one-line note under its title, with the number of the notebook, which is not that of the page, and the command that runs it.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

TOP = [":::{table} When, where and in how many seconds the stored outputs were made", ""]


def record(notebook: Path) -> dict[str, Any]:
    """What the notebook says about its outputs."""
    return json.loads(notebook.read_text(encoding="utf8"))["metadata"].get("rdc", {})


class Provenance(SphinxDirective):
    """The table, one row a notebook."""

    def run(self) -> list[nodes.Node]:
        """Write the table and the versions in Markdown and parse them."""
        rows, total, versions = [*TOP, "| notebook | date | device | seconds |", "|---|---|---|---:|"], 0.0, set()
        for f in sorted(Path(self.env.srcdir, "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(f))
            r = record(f)
            total += r.get("seconds", 0)
            versions.add(", ".join(f"{k} {v}" for k, v in r.get("versions", {}).items()))
            cells = [f"{{doc}}`/notebooks/{f.stem}`", *(str(r.get(k, "?")) for k in ("date", "device", "seconds"))]
            rows.append(f"| {' | '.join(cells)} |")
        rows.append(f"| all | | | {total:.1f} |")
        rows += ["", ":::", "", *(f"Versions: {v}.\n" for v in sorted(versions))]
        box = nodes.container()
        self.state.nested_parse(StringList("\n".join(rows).split("\n")), 0, box)
        return box.children


def note(app: Sphinx, doctree: nodes.document) -> None:
    """Say under the title of a notebook page which notebook it is, and where its outputs come from."""
    f = Path(app.env.doc2path(app.env.docname))
    r = record(f) if f.suffix == ".ipynb" else {}
    title = next(iter(doctree.findall(nodes.title)), None)
    if r and title is not None:
        number = f.stem.partition("_")[0]
        text = f". Outputs stored {r['date']} on {r['device']} in {r['seconds']:.0f} s (torch {r['versions'].get('torch', '?')})."
        name, command = nodes.emphasis(text=f"Notebook {number} \u00b7 "), nodes.literal(text=f"rdc run {number}")
        paragraph = nodes.paragraph("", "", name, command, nodes.emphasis(text=text), classes=["nb-provenance"])
        title.parent.insert(title.parent.index(title) + 1, paragraph)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("nb-provenance", Provenance)
    app.connect("doctree-read", note)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
