"""Leave out the scripts that run code of a page on a server elsewhere: Jupyter Book always loads them, and twice.

Their declarations would be an error on each page, and no page of this book has a button for them.
"""

from typing import Any

from sphinx.application import Sphinx

LEFT_OUT = "sphinx_thebe"


def leave_out(app: Sphinx) -> None:
    """Disconnect the extension, which was loaded before, from all that it would do; and drop its style sheet."""
    for listeners in list(app.events.listeners.values()):
        for one in [one for one in listeners if one.handler.__module__ == LEFT_OUT]:
            app.disconnect(one.id)
    sheets = app.registry.css_files
    sheets[:] = [sheet for sheet in sheets if sheet[0] != "sphinx-thebe.css"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    leave_out(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
