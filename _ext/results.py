"""Numbers out of the files in results/, so that prose never types one.

``{res}`bench:results.rate:.1f%``` is one of results/bench.json. ``{row}`clean-accuracy:0:clean.correct``` is one of the first row
of an experiment: an outcome with its Accuracy, ``counts``, ``n``, or ``options`` and ``about`` of the row.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from rdc.experiments import experiment
from rdc.runs.store import Store


def record(folder: Path, text: str) -> tuple[Path, Any, str]:
    """The file of ``name:key``, its content, and the key."""
    name, _, rest = text.partition(":")
    return (path := folder / f"{name}.json"), json.loads(path.read_text(encoding="utf8")), rest


def row(folder: Path, text: str) -> tuple[Path, Any, str]:
    """The file of ``name:row:key``, what is known of the row, and the key."""
    name, number, rest = text.split(":", 2)
    found = Store.read(path := folder / f"{name}.jsonl").of(experiment(name).rows[int(number)])
    lines = {id(line): line for line in found.lines.values()}.values()
    counts = {key: sum(line.counts[key] for line in lines) for key in next(iter(lines)).counts}
    rates = {key: asdict(found.accuracy(key)) for key in ("clean", "robust") if key in counts}
    return path, {"n": found.n, "options": found.row.options, "about": found.row.about, "counts": counts, **rates}, rest


class Result(SphinxRole):
    """A role; ``read`` finds the file, its content, and ``key.key:format``."""

    def __init__(self, read: Callable[[Path, str], tuple[Path, Any, str]]) -> None:
        super().__init__()
        self.read = read

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Look the value up; a missing one is a warning, which fails the build."""
        try:
            source, value, rest = self.read(Path(self.env.srcdir, "results"), self.text)
            self.env.note_dependency(str(source))
            path, _, form = rest.partition(":")
            for key in path.split("."):
                value = value[int(key)] if isinstance(value, list) else value[key]
            text = format(value, form)
        except (OSError, LookupError, StopIteration, TypeError, ValueError) as err:
            message = self.inliner.reporter.warning(f"no result {self.text!r}: {err!r}", line=self.lineno)
            return [nodes.literal(text=self.text)], [message]
        return [nodes.inline(text=text, classes=["result"])], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("res", Result(record))
    app.add_role("row", Result(row))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
