"""``{res}`table1:pgd.robust.value:.1%```: one number out of results/table1.json, so that prose never types a result."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole


class Result(SphinxRole):
    """The role; its text is ``file:key.key:format``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Look the value up; a missing one is a warning, which fails the build."""
        name, _, rest = self.text.partition(":")
        path, _, form = rest.partition(":")
        source = Path(self.env.srcdir, "results", f"{name}.json")
        self.env.note_dependency(str(source))
        try:
            value = json.loads(source.read_text(encoding="utf8"))
            for key in path.split("."):
                value = value[int(key)] if isinstance(value, list) else value[key]
            text = format(value, form)
        except (OSError, LookupError, TypeError, ValueError) as err:
            message = self.inliner.reporter.warning(f"no result {self.text!r}: {err!r}", line=self.lineno)
            return [nodes.literal(text=self.text)], [message]
        return [nodes.inline(text=text, classes=["result"])], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_role("res", Result())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
