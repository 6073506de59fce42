"""The command ``rdc run``: a chapter with other parameters."""

__all__ = ["run_command"]

import re
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from rdc.cli.options import Quiet
from rdc.runs.record import book_folder


def run_command(
    notebook: Annotated[Positional[str], arg(help="Number or path of a notebook: 03, notebooks/03_optimal_classifier.py.")],
    profile: Annotated[str | None, arg(help="tutorial, full or paper.")] = None,
    p: Annotated[
        UseAppendAction[tuple[tuple[str, str], ...]],
        arg(aliases=["-p"], metavar="NAME VALUE", help="A parameter; may be repeated."),
    ] = (),
    out: Annotated[Path | None, arg(help="Executed notebook to write; by default runs/<name>.ipynb.")] = None,
    quiet: Quiet = False,
) -> None:
    """Run a chapter with other parameters.

    For example:
      rdc run 04 --profile full
      rdc run 03d -p n_attack 100 -p seed 1
    """
    from rdc.notebook import run_notebook

    path = find_notebook(notebook)
    target = out or Path("runs", f"{path.stem}.ipynb")
    run_notebook(path, target, {name: parse(value) for name, value in p}, profile, progress=not quiet)
    print(f"wrote {target}")


def parse(text: str) -> Any:
    """Return the value that ``text`` stands for in YAML, or the number that Python reads in it (``1e-3`` is none in YAML)."""
    import yaml

    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise ValueError(f"{text!r} is not a value: give a number, a word, or a list such as [1, 2]") from None
    except ValueError:
        return value


def find_notebook(name: str) -> Path:
    """Return the notebook of a number or path."""
    if Path(name).is_file():
        return Path(name)
    folder = book_folder("notebooks")
    found = sorted(folder.glob(f"{name}*.py")) if re.fullmatch(r"\w+", name) else []
    found = [path for path in found if path.stem.startswith(f"{name}_")] or found  # 06 is the page 06, not 06b
    if len(found) != 1:
        there = ", ".join(p.stem for p in sorted(folder.glob("*.py")))
        raise ValueError(f"no notebook {name!r}; there are {there or f'none in {folder}'}")
    return found[0]
