"""Values of options: checked against an annotation, from Python objects and from text alike."""

__all__ = ["described", "parsed"]

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rdc.quantities import count, number

UNIONS = (Union, types.UnionType)
LEAST = -(2**63)


def parsed(value: Any, kind: Any, name: str) -> Any:
    """The value of an option, of the kind that its annotation says.

    Arguments:
        value: What was given: an object of that kind, or text: ``8/255``, ``true``, ``none``, ``0.4,0.6``.
        kind: ``int``, ``float``, ``bool``, ``str`` (annotated with words that say what it may be), ``None``, a ``Literal``, a
            ``tuple`` of these, or a union of these.
        name: What it is, for the message.

    Raises:
        ValueError: if it is none, in one line that says what it may be.
    """
    problem = None
    for member in members(kind):
        try:
            return single(value, member, name)
        except ValueError as error:
            problem = error
    if problem is not None and len(members(kind)) == 1 and kind in (int, float):
        raise problem
    raise ValueError(f"{name} must be {described(kind)}, got {value!r}") from None


def members(kind: Any) -> tuple[Any, ...]:
    """The kinds of a union: words before numbers before any text, so that ``none`` is None where None is allowed."""
    kinds: tuple[Any, ...] = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
    return tuple(sorted(kinds, key=lambda k: 2 if bare(k) is str else int(k is not type(None) and not is_words(k))))


def is_words(kind: Any) -> bool:
    """Whether a kind is a list of words."""
    origin: Any = get_origin(kind)
    return origin is Literal


def bare(kind: Any) -> Any:
    """A kind without the words that annotate it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def single(value: Any, kind: Any, name: str) -> Any:
    """The value, of a kind that is no union."""
    text = value.strip() if isinstance(value, str) else None
    if kind in (None, type(None)) and (value is None or text == "none"):
        return None
    if is_words(kind) and (text if text is not None else value) in get_args(kind):
        return text if text is not None else value
    if get_origin(kind) is tuple:
        return several(value, get_args(kind), name)
    if kind is bool and (isinstance(value, bool) or text in ("true", "false")):
        return value if isinstance(value, bool) else text == "true"
    if kind is int:
        return count(value, name, LEAST)
    if kind is float:
        return number(value, name)
    if bare(kind) is str and text:
        return text
    raise ValueError


def several(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """The values of a tuple, from a sequence or from text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise ValueError
    wanted = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
    if len(parts) != len(wanted):
        raise ValueError
    return tuple(single(part, kind, name) for part, kind in zip(parts, wanted, strict=True))


def described(kind: Any) -> str:
    """A kind in words: ``a number or none``, ``one of elbo, edm``.

    >>> described(float | None), described(Literal["Linf", "L2"]), described(tuple[float, float])
    ('a number or none', 'one of Linf, L2', '2 numbers such as 0.4,0.6')
    """
    words: list[str] = []
    rest: list[str] = []
    for member in get_args(kind) if get_origin(kind) in UNIONS else (kind,):
        if get_origin(member) is Literal:
            words += get_args(member)
        else:
            rest.append(simple(member))
    listed = [f"one of {', '.join(words)}"] if len(words) > 1 else words
    rest = sorted(rest + listed, key=lambda text: text == "none")
    return " or ".join(rest)


def simple(kind: Any) -> str:
    """A kind that is no union and no list of words."""
    if get_origin(kind) is Annotated:
        return str(get_args(kind)[1])
    if get_origin(kind) is tuple:
        many = get_args(kind)
        return f"{'' if many[-1] is Ellipsis else f'{len(many)} '}numbers such as 0.4,0.6"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}.get(kind, "none")
