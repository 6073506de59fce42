"""``{start-cell}``: the cell that installs the package in a session that has no checkout, from the repository or from a wheel."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FROM_REPOSITORY = '%pip install -q "rdc[attacks,book] @ git+{url}"'
FROM_WHEEL = """from pathlib import Path

(wheel,) = Path().glob("rdc-*.whl")  # uploaded to this folder
%pip install -q "{wheel}[attacks,book]\""""


def start_cell(url: str) -> str:
    """Return the cell for a book whose repository is at ``url``, which may be empty."""
    return FROM_REPOSITORY.format(url=url) if url else FROM_WHEEL


class StartCell(SphinxDirective):
    """The cell, to be copied."""

    def run(self) -> list[nodes.Node]:
        """Show it."""
        code = start_cell(self.config.html_theme_options.get("repository_url", ""))
        return [nodes.literal_block(code, code, language="ipython3")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("start-cell", StartCell)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
