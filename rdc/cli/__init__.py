"""The command line: ``rdc attack``, ``rdc experiment`` and others. A mistake ends in one line and code 2."""

__all__ = ["main"]

import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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


def main() -> None:
    """Entry point of the command ``rdc``."""
    if sys.argv[1:] == ["--version"]:
        print(f"rdc {importlib.metadata.version('rdc')}")
        return
    try:
        with plain_warnings():
            subcommand_cli_from_dict(
                COMMANDS, prog="rdc", description=__doc__.splitlines()[0], config=(FlagCreatePairsOff, OmitArgPrefixes)
            )
    except KeyboardInterrupt:
        print("rdc: interrupted; a training run, or an attack with --rows, continues with the same command", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        print(f'rdc: this needs the package {package}; install it with: pip install "rdc[{EXTRAS[package]}]"', file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, RuntimeError) as error:
        text = str(error).strip() or type(error).__name__
        print(f"rdc: {' '.join(text.splitlines())}", file=sys.stderr)
        sys.exit(2)


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
