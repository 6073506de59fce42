"""The run-time type checker of the tests: beartype, where an int is also a float (PEP 484), with the axes of jaxtyping.

jaxtyping's own wrapper checks every parameter twice, and compiles two functions wherever one is defined. Here a value is checked
once, only functions that name axes remember them, and a function inside another one is compiled once.
"""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
FUNCTION = "__beartype_func"  # where its wrapper keeps what it wraps
AXES = jaxtyping.jaxtyped("context")
CHECKED: dict[tuple[str, str, types.CodeType], Callable[..., Any]] = {}  # two dataclasses may share the code of an __init__


def typed(defined: Any) -> Any:
    """What the import hook puts around each function and class; of a class, the ``__init__`` that a dataclass has."""
    if isinstance(defined, type):
        if dataclasses.is_dataclass(defined) and not hasattr(defined.__init__, "__wrapped__"):
            defined.__init__ = typed(defined.__init__)
        return defined
    place = defined.__module__, defined.__qualname__, defined.__code__
    checked = again(defined, CHECKED[place]) if place in CHECKED else CHECKED.setdefault(place, first(defined))
    axes = any(map(names_axes, defined.__annotations__.values()))
    if checked is defined:
        return defined

    @functools.wraps(defined)
    def called(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return defined(*args, **kwargs)
        if not axes:
            return checked(*args, **kwargs)
        with AXES:
            return checked(*args, **kwargs)

    return called


def first(defined: types.FunctionType) -> Callable[..., Any]:
    """beartype's wrapper; types in quotes that mean nothing where they stand, as ``"itertools.count[int]"``, are not checked."""
    own = defined.__annotations__
    if any(isinstance(hint, str) for hint in own.values()):
        defined.__annotations__ = {name: meant(hint, defined.__globals__) for name, hint in own.items()}
    return check(defined)


def meant(hint: Any, names: dict[str, Any]) -> Any:
    """A type, also where it stands in quotes."""
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except (NameError, AttributeError, TypeError):
        return Any


def again(defined: types.FunctionType, old: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper that beartype made when this function was first defined, around the function that it is now."""
    if FUNCTION not in (old.__kwdefaults__ or {}):  # there is nothing to check
        return defined
    new = types.FunctionType(old.__code__, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
    new.__kwdefaults__ = {**old.__kwdefaults__, FUNCTION: defined}
    return functools.wraps(defined)(new)


def names_axes(hint: Any) -> bool:
    """Whether a type is an array of jaxtyping, or holds one."""
    inner = [part for arg in get_args(hint) for part in (arg if isinstance(arg, list) else [arg])]
    array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return array or isinstance(hint, str) or any(map(names_axes, inner))


jaxtyping.jaxtyped = lambda typechecker: typed
