"""Configurations from JSON: a dataclass from an object, each field checked against its annotation."""

__all__ = ["from_json"]

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def from_json(kind: type[Config], stored: Any, at: str = "config") -> Config:
    """Return the dataclass ``kind`` from a JSON object.

    Arguments:
        kind: A dataclass of words, numbers, truth values, tuples of whole numbers and dataclasses, or of one of these or None.
        stored: What was read.
        at: Where it stood, for the message.

    Raises:
        ValueError: if a field is unknown, or of another type or range, with one line that names it.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"{at} must be an object, got {stored!r:.60}")
    hints, known = get_type_hints(kind), {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if extra := sorted(stored.keys() - known):
        raise ValueError(f"{at} has the field {', '.join(extra)}")
    return kind(**{name: _value(hints[name], value, f"{at}.{name}") for name, value in stored.items()})


def _value(kind: Any, stored: Any, at: str) -> Any:
    """A field of type ``kind``; a bool is no whole number, and a whole number is a float."""
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not types.NoneType)
        return None if stored is None else _value(kind, stored, at)
    if is_dataclass(kind):
        return from_json(kind, stored, at)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if isinstance(stored, list) and all(type(entry) is get_args(kind)[0] for entry in stored):
            return tuple(stored)
    elif kind is float:
        if type(stored) in (int, float) and math.isfinite(stored):
            return float(stored)
    elif type(stored) is kind:
        return stored
    raise ValueError(f"{at} must be {getattr(kind, '__name__', kind)}, got {stored!r:.60}")
