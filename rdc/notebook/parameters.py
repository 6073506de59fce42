"""The parameters of a chapter: what its first cell declares, what a profile sets, and whether a value is of its type."""

__all__ = ["Parameter", "check_values", "declared", "profile_values", "profiles"]

import ast
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdc.quantities import number
from rdc.runs.record import book_folder

KINDS = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "tuple": tuple, "dict": dict, "None": None}
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    bool: "true or false",
    list: "a list",
    types.NoneType: "nothing",
}


@dataclass(frozen=True)
class Parameter:
    """A name of the parameters cell: its type, from its annotation or else from its default value."""

    name: str
    kind: Any
    default: Any


def declared(source: str) -> dict[str, Parameter]:
    """Return the parameters that a cell assigns, by name."""
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
            kind = eval(ast.unparse(statement.annotation), {"__builtins__": {}}, KINDS)  # of the notebook that is run anyway
            found[statement.target.id] = Parameter(statement.target.id, kind, _constant(statement.value))
        elif isinstance(statement, ast.Assign):
            value = _constant(statement.value)
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            found.update({name: Parameter(name, type(value), value) for name in names})
    return found


def check_values(values: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the values as the chapter takes them: a radius ``"8/255"`` is a number where its type is ``str | float``.

    Raises:
        ValueError: if a name is unknown, or a value is not of the declared type (a bool is no whole number), with one line.
    """
    if unknown := sorted(values.keys() - known.keys()):
        names = ", ".join(repr(name) for name in unknown)
        raise ValueError(f"unknown parameter {names}; there are {', '.join(sorted(known)) or 'none'}")
    return {name: fit(known[name].kind, value, f"parameter {name}") for name, value in values.items()}


def fit(kind: Any, value: Any, what: str) -> Any:
    """Return ``value`` as one of type ``kind``.

    Raises:
        ValueError: if it is none, with one line that names ``what``.
    """
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if set(parts) == {str, float}:
            return number(value, what)
        if types.NoneType in parts and value is None:
            return None
        fitting = [part for part in parts if type(value) is part]
        return fit((fitting or [p for p in parts if p is not types.NoneType])[0], value, what)
    if typing.get_origin(kind) is list:
        return [fit(parts[0], entry, f"an entry of {what}") for entry in fit(list, value, what)]
    if kind is list and isinstance(value, tuple):
        return list(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is not float and type(value) is kind:
        return value
    raise ValueError(f"{what} must be {WORDS.get(kind, getattr(kind, '__name__', kind))}, got {value!r}")


def profiles() -> Path:
    """Return the folder of the profiles."""
    return book_folder("profiles")


def profile_values(name: str | None) -> dict[str, Any]:
    """Return what a profile sets; nothing without a name.

    Raises:
        ValueError: if there is no such profile.
    """
    import yaml

    if name is None:
        return {}
    names = sorted(p.stem for p in profiles().glob("*.yaml"))
    if name not in names:
        raise ValueError(f"unknown profile {name!r}; there are {', '.join(names) or 'none'}")
    return yaml.safe_load((profiles() / f"{name}.yaml").read_text(encoding="utf8")) or {}


def _constant(node: ast.expr) -> Any:
    """The value of an expression of constants, such as ``8 / 255``."""
    return eval(compile(ast.Expression(node), "<parameters>", "eval"), {"__builtins__": {}})
