"""The command line: ``rdc attack``, ``rdc experiment`` and others. A mistake ends in one line and code 2."""

__all__ = ["main"]

import functools
import importlib.metadata
import io
import itertools
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes
from tyro.extras import subcommand_cli_from_dict

from rdc.cli.attack import accuracy_command, attack_command
from rdc.cli.audit import audit_command
from rdc.cli.certify import certify_command
from rdc.cli.convert import convert_command
from rdc.cli.experiment import experiment_command
from rdc.cli.findings import findings_command
from rdc.cli.models import models_command
from rdc.cli.notebook import run_command
from rdc.cli.report import report_command, verify_command
from rdc.cli.train import train_command

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train_command,
    "accuracy": accuracy_command,
    "attack": attack_command,
    "audit": audit_command,
    "certify": certify_command,
    "models": models_command,
    "convert": convert_command,
    "run": run_command,
    "experiment": experiment_command,
    "report": report_command,
    "verify": verify_command,
    "findings": findings_command,
}
#: Packages that only some commands need, and the extra that brings them.
EXTRAS = {
    "pyautoattack": "attacks",
    "ray": "cluster",
    "foolbox": "cifar",
    "PIL": "cifar",
    **dict.fromkeys(("papermill", "jupytext", "nbformat", "yaml", "IPython", "matplotlib", "seaborn", "pandas"), "book"),
}

INTERRUPTED = (
    "interrupted; experiment run, and attack and certify with --rows, continue with the same command; "
    "a training does from its last save (--save-seconds)"
)


def main() -> None:
    """Entry point of the command ``rdc``."""
    if sys.argv[1:] == ["--version"]:
        print(f"rdc {importlib.metadata.version('rdc')}")
        return
    try:
        with plain_warnings():
            parsed()()
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        stop(INTERRUPTED, 130)
    except SystemExit as ended:
        if place := foreign(ended):
            stop(f"{place} ended the program ({ended.code}); a module of a model must not, when it is imported or called", 2)
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        stop(f'this needs the package {package}; install it with: pip install "rdc[{EXTRAS[package]}]"', 2)
    except (ValueError, OSError, RuntimeError) as error:
        place = foreign(error.__cause__ or error)
        stop((str(error).strip() or type(error).__name__) + (f" (at {place})" if place else ""), 2)


def foreign(error: BaseException) -> str:
    """Return file and line of the innermost place of an error outside libraries, if it is not in this package, else nothing."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    places = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*libraries, "<"))]
    ours = str(Path(__file__).parents[1])
    return f"{places[-1].filename}:{places[-1].lineno}" if places and not places[-1].filename.startswith(ours) else ""


def stop(text: str, code: int) -> NoReturn:
    """Close open progress bars, say in one line why the command ends, and end it."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
    print(f"rdc: {' '.join(text.splitlines())}", file=sys.stderr)
    sys.exit(code)


def later(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function with the options and the help of a command, which binds them and does not call it."""

    @functools.wraps(command)
    def bound(*values: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *values, **options)

    return bound


def parsed() -> Callable[[], None]:
    """Return the command of the command line with its options, not yet called.

    Raises:
        ValueError: if there is none, or an option is wrong, with what tyro says in a box.
    """
    said, commands = io.StringIO(), {name: later(command) for name, command in COMMANDS.items()}
    try:
        with redirect_stderr(said):
            found: Callable[[], None] = subcommand_cli_from_dict(
                commands, prog="rdc", description=__doc__.splitlines()[0], config=(FlagCreatePairsOff, OmitArgPrefixes)
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        command = "".join(f"{word} " for word in sys.argv[1:2] if word in COMMANDS)
        raise ValueError(f"{first_sentence(said.getvalue())}; see rdc {command}--help") from None
    return found


def first_sentence(box: str) -> str:
    """Return what a box of tyro, of ASCII or not, says under its title and above the next line across."""
    lines = [line.strip(" │─╰╯|+") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]]
    body = itertools.dropwhile(lambda line: not line.strip("-"), lines)
    text = " ".join(itertools.takewhile(lambda line: line.strip("-"), body)).rstrip(".")
    return text[:1].lower() + text[1:]


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within the block a warning is one line without a path, and comes once."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            print(f"rdc: warning: {text}", file=sys.stderr)
        seen.add(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
