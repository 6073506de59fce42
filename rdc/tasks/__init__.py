"""What the cells of an experiment compute, and what decides them: each module is a task, and has a function of its name.

A module of a task ``name`` holds ``name(cell, device)``, which returns what came out; ``roots(row)``, the definitions that decide
a row besides it; ``weights(row)``, the hashes of the checkpoints behind it; and ``toy(row)``, the same row so small that it takes
a second.
"""

__all__ = ["FREE", "TASKS", "code_of", "measure", "toy", "weights_of"]

import importlib
from functools import cache
from types import ModuleType
from typing import cast

from rdc.runs.cell import Cell, Outcome, Row
from rdc.runs.code import Program, package_program

#: Tasks by name.
TASKS = (
    "aligned",
    "attack",
    "audit",
    "beside",
    "certify",
    "guided",
    "heads",
    "information",
    "laboratory",
    "level",
    "lipschitz",
    "nearest",
    "noisy",
    "ood",
    "precision",
    "randomness",
    "sampled",
    "sift",
    "targeted",
    "union",
    "unseen",
)
#: Those whose cells may be cut anywhere: what they say of an image does not depend on the others of its cell. The others say
#: something of a cell as a whole (audit, heads, randomness, and of early stops certify), want cells of one size (level), or count
#: sets of images (guided, sampled).
FREE = frozenset({
    "aligned", "attack", "beside", "information", "laboratory", "lipschitz", "nearest", "noisy", "ood", "precision", "sift",
    "targeted", "union", "unseen",
})  # fmt: skip


def measure(cell: Cell, device: str = "cpu") -> Outcome:
    """Compute a cell.

    Raises:
        ValueError: if there is no such task, data set, model or attack, or an option of theirs is unknown.
    """
    return cast(Outcome, getattr(module_of(cell.row), cell.row.task)(cell, device))


def module_of(row: Row) -> ModuleType:
    """Return the module of the task of a row.

    Raises:
        ValueError: if there is none.
    """
    if row.task not in TASKS:
        raise ValueError(f"unknown task {row.task!r}; there are {', '.join(TASKS)}")
    return importlib.import_module(f"{__name__}.{row.task}")


def code_of(row: Row, program: Program | None = None) -> str:
    """Return the hash of the code that decides a row: its task, what the task names as its roots, and what they refer to.

    Arguments:
        row: The row.
        program: Where the code is; by default the package as it is on disk.
    """
    module = module_of(row)
    return _code(program or package_program(), (f"{module.__name__}:{row.task}", *module.roots(row)))


@cache
def _code(program: Program, roots: tuple[str, ...]) -> str:
    return program.digest(*roots)


def weights_of(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    return cast(dict[str, str], module_of(row).weights(row))


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    return cast(Row, module_of(row).toy(row))
