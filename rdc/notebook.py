"""Notebooks: paste a value into the book, refuse unknown parameters, run one with other parameters.

The rest of the package does not need this module; only :func:`run_notebook` needs papermill and jupytext.
"""

__all__ = ["NotebookError", "check_parameters", "glue", "run_notebook", "write_notebook"]

import ast
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROFILES = Path(__file__).parents[1] / "profiles"
PASTE = "application/papermill.record/"  # the prefix that myst-nb looks for


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message names the cell."""


def glue(name: str, value: Any) -> None:
    """Store ``value`` as ``name`` in this notebook's outputs; array scalars become Python numbers, which format well."""
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    data, meta = get_ipython().display_formatter.format(value)
    record = {"scrapbook": {"name": name, "mime_prefix": PASTE}}
    display({PASTE + kind: text for kind, text in data.items()}, metadata={**meta, **record}, raw=True)


def check_parameters() -> None:
    """Raise ``ValueError`` if papermill set a name that the parameters cell lacks; call it in the first cell after that."""
    from IPython.core.getipython import get_ipython

    inputs = shell.user_ns["In"] if (shell := get_ipython()) else []
    for cell, injected in zip(inputs, inputs[1:], strict=False):
        if injected.startswith("# Parameters\n"):  # papermill's own cell, right after the parameters cell
            _refuse_unknown(_assigned(injected) - _profile_keys(), _assigned(cell))


def run_notebook(notebook: str | Path, out: str | Path | None, parameters: Mapping[str, Any] | None = None,
                 profile: str | None = None, progress: bool = False) -> Any:  # fmt: skip
    """Execute ``notebook`` (``.py`` or ``.ipynb``) in its own folder, write it to ``out`` if given, and return it.

    ``profile`` names a file of ``profiles/``; its keys that this notebook lacks are skipped, and ``parameters`` win over it.
    """
    try:
        import jupytext
        import papermill
        from papermill.exceptions import PapermillExecutionError
    except ImportError as err:
        raise NotebookError(f"running a notebook needs {err.name}; install it with: pip install -r requirements.txt") from None
    notebook = Path(notebook)
    if not notebook.is_file():
        raise ValueError(f"there is no notebook {notebook}")
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        if not os.access(Path(out).parent, os.W_OK):
            raise ValueError(f"cannot write into the folder {Path(out).parent}")
    nb = jupytext.read(notebook)
    known = _assigned("\n".join(c.source for c in nb.cells if "parameters" in c.metadata.get("tags", [])))
    _refuse_unknown(parameters or {}, known)
    values = {k: v for k, v in _profile(profile).items() if k in known} | dict(parameters or {})
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


def write_notebook(nb: Any, out: Path) -> None:
    """Write ``nb`` to ``out`` at once: a reader sees the old file or the new one, never half of one."""
    import nbformat

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        nbformat.write(nb, part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _assigned(source: str) -> set[str]:
    """The names that the top-level statements of ``source`` assign."""
    statements = [s for s in ast.parse(source).body if isinstance(s, ast.Assign | ast.AnnAssign)]
    return {n.id for s in statements for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _refuse_unknown(given: Iterable[str], known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        names = ", ".join(repr(name) for name in unknown)
        raise ValueError(f"unknown parameter {names}; there are {', '.join(sorted(known)) or 'none'}")


def _profile(name: str | None) -> dict[str, Any]:
    import yaml

    if name is None:
        return {}
    names = sorted(p.stem for p in PROFILES.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(names) or 'none'}")
    return yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf8")) or {}


def _profile_keys() -> set[str]:
    return {key for p in PROFILES.glob("*.yaml") for key in _profile(p.stem)}
