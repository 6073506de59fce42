"""Tables out of data: ``{ledger} DC`` is a section of the ledger of papers and released code, ``{checklist} R`` the experiments
of a paper; ``{commits}`` names the code that was read; ``{planted}`` is what the audit says of the planted defences.

The cells are Markdown, which the page's own parser reads, so that formulas, code and links work in them.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rdc.experiments import experiment
from rdc.findings import claims, judge
from rdc.findings.checklist import ITEMS, Item, status
from rdc.findings.ledger import COMMITS, SECTIONS, Entry, effect, entries
from rdc.runs.cell import Row
from rdc.runs.store import Found, Store

SIZES = {"H": "high", "M": "medium"}


def table(title: str, widths: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A list-table in MyST; an empty line in a cell begins a paragraph."""
    lines = [f":::{{list-table}} {title}", ":header-rows: 1", f":widths: {widths}", ":class: findings", ""]
    for row in (head, *rows):
        for i, cell in enumerate(row):
            first, *rest = ("\N{EN DASH}" if cell in ("", "-") else cell).split("\n")
            lines += [f"{'* -' if not i else '  -'} {first}", *(f"    {line}" if line else "" for line in rest)]
    return "\n".join([*lines, ":::"])


def linked(page: str) -> str:
    """A link to a page of the book; empty if there is none."""
    return f" {{doc}}`Page </{page}>`." if page else ""


def results(directive: SphinxDirective) -> Path:
    """Return the folder of the results, on which the page depends from now on."""
    folder = Path(directive.env.srcdir, "results")
    for file in sorted(folder.glob("*.jsonl")):
        directive.env.note_dependency(str(file))
    return folder


def parsed(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    """Return a table in MyST as a part of the page."""
    box = nodes.container()
    directive.state.nested_parse(StringList(text.split("\n"), directive.env.docname), 0, box)
    return list(box.children)


class Ledger(SphinxDirective):
    """A section of the ledger."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One row an entry."""
        self.folder, name = results(self), self.arguments[0]
        found = [entry for entry in entries().values() if entry.id.rpartition("-")[0] == name]
        head = ("entry", "paper", "released code", "here")
        return parsed(self, table(SECTIONS[name], "20 21 28 31", head, [self.row(e) for e in found]))

    def row(self, entry: Entry) -> tuple[str, ...]:
        """The four cells."""
        measured = [f"{text[0].upper()}{text[1:]}." for text in (effect(one, self.folder) for one in entry.effects)]
        switch = f"Switch: {entry.switch}." if entry.switch not in ("", "-") else ""
        last = entry.note + linked(entry.page)
        here = "\n\n".join(filter(None, [switch, *measured, last.strip()]))
        return f"**{entry.id}** ({SIZES[entry.size]})\n\n{entry.title}", entry.paper, entry.code, here


class Checklist(SphinxDirective):
    """The experiments of one paper."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One row an experiment."""
        self.folder, name = results(self), self.arguments[0]
        found = [item for item in ITEMS if item.id[0] == name]
        head = ("id", "experiment", "status", "what there is")
        return parsed(self, table(f"{len(found)} experiments", "9 29 13 49", head, [self.row(item) for item in found]))

    def row(self, item: Item) -> tuple[str, ...]:
        """The four cells."""
        state, words = status(item, self.folder)
        judged = [f"{name} {judge(claims()[name], self.folder).verdict}" for name in item.claims]
        said = "".join(f"{part}. " for part in (words, item.note, ", ".join(judged)) if part)
        files = f"\n\nWith {item.files}:\n\n```console\n$ {item.command}\n```" if item.command else ""
        return f"**{item.id}**", f"{item.what} ({item.place})", state, f"{said}{linked(item.page)}{files}".strip()


class Planted(SphinxDirective):
    """What the audit says of each planted defence, from the stored words."""

    def run(self) -> list[nodes.Node]:
        """One row a model."""
        found = experiment("planted")
        store, head = Store.read(results(self) / "planted.jsonl"), ("model", "what it is", "checks that fail", "all checks")
        rows = [self.row(row, store.of(row)) for row in found.rows]
        return parsed(self, table(f"Audits of PGD, {found.rows[0].n} images", "22 22 40 16", head, rows))

    def row(self, row: Row, found: Found) -> tuple[str, ...]:
        """The four cells."""
        if not found.complete:
            return f"`{row.model}`", row.about["what"], "not run", "-"
        line = found.lines[row.start]
        reasons: dict[str, list[str]] = {}
        for check, said in line.words.items():
            if said.startswith("fail"):
                reasons.setdefault(said.partition(": ")[2].removeprefix("the attack raised "), []).append(f"*{check}*")
        words = "; ".join(f"{', '.join(checks)}: {reason}" for reason, checks in reasons.items()) or "none"
        tally = ", ".join(f"{line.counts[verdict]} {verdict}" for verdict in ("pass", "warn", "fail"))
        return f"`{row.model}`", row.about["what"], words, tally


class Commits(SphinxDirective):
    """Repositories, commits and dates in a list."""

    def run(self) -> list[nodes.Node]:
        """One line a paper."""
        rows = nodes.bullet_list()
        for paper, (repository, commit, date) in COMMITS.items():
            url = f"https://github.com/{repository}/tree/{commit}"
            link = nodes.reference(text=f"{repository}, commit {commit}", refuri=url)
            rows += nodes.list_item("", nodes.paragraph("", "", nodes.Text(f"{paper}: "), link, nodes.Text(f" of {date}")))
        return [rows]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    for name, kind in (("ledger", Ledger), ("checklist", Checklist), ("commits", Commits), ("planted", Planted)):
        app.add_directive(name, kind)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
