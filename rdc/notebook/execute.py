"""Run a notebook with other parameters, and write it whole or not at all."""

__all__ = ["NotebookError", "run_notebook", "write_notebook"]

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdc.notebook.parameters import check_values, declared, profile_values


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message names the cell."""


def run_notebook(notebook: str | Path, out: str | Path | None, parameters: Mapping[str, Any] | None = None,
                 profile: str | None = None, progress: bool = False) -> Any:  # fmt: skip
    """Execute ``notebook`` (``.py`` or ``.ipynb``) in its own folder, write it to ``out`` if given, and return it.

    A parameter that names a file of the folder of the caller, or ``folder:`` and a folder there, is given with its whole path.

    ``profile`` names a file of ``profiles/``; its keys that this notebook lacks are skipped, and ``parameters`` win over it.

    Raises:
        ValueError: if there is no such notebook or profile, or a parameter is unknown or of another type than it declares.
        NotebookError: if a cell fails, or papermill and jupytext are not installed.
    """
    try:
        import jupytext
        import papermill
        from papermill.exceptions import PapermillExecutionError
    except ImportError as err:
        raise NotebookError(f'running a notebook needs {err.name}; install it with: pip install "rdc[book]"') from None
    notebook = Path(notebook)
    if not notebook.is_file():
        raise ValueError(f"there is no notebook {notebook}")
    nb = jupytext.read(notebook)
    known = declared("\n".join(c.source for c in nb.cells if "parameters" in c.metadata.get("tags", [])))
    values = check_values({k: v for k, v in profile_values(profile).items() if k in known} | dict(parameters or {}), known)
    values = {name: from_here(value) for name, value in values.items()}
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        if not os.access(Path(out).parent, os.W_OK):
            raise ValueError(f"cannot write into the folder {Path(out).parent}")
    nb.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    try:
        quiet = ["--log-level=CRITICAL"]  # or the kernel warns about its TCP port on each start
        done = papermill.execute_notebook(nb, None, values, cwd=notebook.parent, progress_bar=progress, extra_arguments=quiet)
    except PapermillExecutionError as err:
        text = " ".join(f"{err.ename}: {err.evalue}".splitlines()[:1])
        line = next((s for s in err.source.splitlines() if s.strip() and not s.startswith("#")), "")
        raise NotebookError(f"{notebook}: cell In [{err.exec_count}], which starts with {line!r}, failed with {text}") from None
    except RuntimeError as err:  # the kernel died
        raise NotebookError(f"{notebook}: {err}") from None
    if out is not None:
        write_notebook(done, Path(out))
    return done


def from_here(value: Any) -> Any:
    """Return the whole path of a file, with an ending, that lies where the caller is, and of ``folder:PATH``; else the value."""
    if not isinstance(value, str):
        return value
    kind, _, path = value.partition(":")
    if kind == "folder" and os.path.isdir(os.path.expanduser(path)):
        return f"folder:{os.path.abspath(os.path.expanduser(path))}"
    return os.path.abspath(value) if os.path.splitext(value)[1] and os.path.isfile(value) else value


def write_notebook(nb: Any, out: Path) -> None:
    """Write ``nb`` to ``out`` at once: a reader sees the old file or the new one, never half of one."""
    import nbformat

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        nbformat.write(nb, part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
