"""Exercises of the pages: their parts, and both answers of their checks.

An exercise has a stub (``# your code here``) and a check (``# check``) that prints "right" or "not yet". When a page is executed,
each check runs twice: after the stub, where it must say "not yet", and after the solution, where it must say "right".
"""

import re
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from rdc.notebook import run_notebook

ANSWERS = {"stub": "not yet", "solution": "right"}  # what a check prints after either
PARTS = "exercise-start|exercise-end|solution-start|solution-end|exercise"
MARK = re.compile(r"\{(" + PARTS + r")\}(?: *([\w-]+))?\n(?:.*?:label: ([\w-]+))?")
EFFORT = re.compile(r"\*\* \((\d+) minutes, (easy|medium|hard)\)")


@dataclass
class Exercise:
    """An exercise: its label and prose, and the places of its code cells in the notebook."""

    label: str
    text: str = ""
    stub: int | None = None
    check: int | None = None
    solution: list[int] = field(default_factory=list)
    code: list[int] = field(default_factory=list)  # all of them

    @property
    def minutes(self) -> int | None:
        """The minutes that it says."""
        return int(found[1]) if (found := EFFORT.search(self.text)) else None

    @property
    def missing(self) -> list[str]:
        """The parts of the form that it lacks."""
        parts = {"minutes and difficulty": EFFORT.search(self.text), "hint": "{hint}" in self.text or "} Hint" in self.text,
                 "stub": self.stub is not None, "check": self.check is not None, "solution": self.solution}  # fmt: skip
        return [name for name, there in parts.items() if not there]


def exercises(nb: Any) -> list[Exercise]:
    """The exercises of a notebook, in order."""
    found: list[Exercise] = []
    inside = ""  # "exercise", "solution" or neither
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            last = 0
            for mark in MARK.finditer(cell.source):
                if inside == "exercise":
                    found[-1].text += cell.source[last : mark.start()]
                last, (kind, _, label) = mark.end(), mark.groups()
                if kind.startswith("exercise") and kind != "exercise-end":
                    found.append(Exercise(label or ""))
                inside = {"exercise-start": "exercise", "solution-start": "solution"}.get(kind, "")
            if inside == "exercise":
                found[-1].text += cell.source[last:]
        elif inside:
            found[-1].code.append(i)
            if inside == "solution":
                found[-1].solution.append(i)
            elif cell.source.startswith("# check"):
                found[-1].check = i
            elif found[-1].stub is None:
                found[-1].stub = i
    return found


def with_second_checks(nb: Any) -> Any:
    """A copy in which each check runs again after the solution; both are marked, and hold what they must print, for nbval."""
    nb, added = deepcopy(nb), 0
    for e in exercises(nb):
        if e.check is None or not e.solution:
            continue
        first = nb.cells[e.check + added]
        second = deepcopy(first)
        second["id"] = f"{first.get('id', e.label)[:50]}-again"
        for cell, state in ((first, "stub"), (second, "solution")):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "nbval-check-output"]
            cell.metadata["exercise"] = [e.label, state]
            cell["outputs"] = [nbformat.v4.new_output("stream", name="stdout", text=ANSWERS[state] + "\n")]
        nb.cells.insert(max(e.solution) + 1 + added, second)
        added += 1
    return nb


def take_answers(nb: Any) -> dict[str, dict[str, str]]:
    """Remove the second checks from an executed notebook, and return what each check printed after stub and solution."""
    answers: dict[str, dict[str, str]] = {}
    for cell in [c for c in nb.cells if "exercise" in c.metadata]:
        label, state = cell.metadata.pop("exercise")
        cell.metadata["tags"].remove("nbval-check-output")
        answers.setdefault(label, {})[state] = "".join(o.get("text", "") for o in cell.outputs).strip()
        if state == "solution":
            nb.cells.remove(cell)
    return answers


def wrong_answers(answers: dict[str, dict[str, str]]) -> list[str]:
    """A line for each check that does not print what it must."""
    return [f"{label}: the check says {found.get(state)!r} after the {state}, not {want!r}"
            for label, found in answers.items() for state, want in ANSWERS.items() if found.get(state) != want]  # fmt: skip


def run_checked(py: Path, profile: str) -> Any:
    """Execute a page with each check twice; what they printed is in the metadata ``rdc``.

    Raises:
        NotebookError: if a cell fails.
        ValueError: if a check does not say "not yet" after the stub, or not "right" after the solution.
    """
    nb = with_second_checks(jupytext.read(py))
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        cell["outputs"] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{py.stem}.ipynb"
        nbformat.write(nb, copy)
        done = run_notebook(copy, None, profile=profile)
    answers = take_answers(done)
    if wrong := wrong_answers(answers):
        raise ValueError(f"{py.stem}: {'; '.join(wrong)}")
    done.metadata["rdc"] = {"exercises": answers}
    return done
