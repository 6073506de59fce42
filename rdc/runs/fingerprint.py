"""What decides a run's numbers: its configuration, written down so that two runs can be compared, and its random draws.

A description is plain JSON. Tensors enter as a hash, everything else by value. Left out is what cannot change a number
beyond rounding: device, hooks, ``training``, counters of calls, and how many things are computed at a time.
"""

__all__ = ["describe", "describe_attack", "differences", "digest", "plain"]

import functools
import hashlib
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Names of attributes and options that do not decide numbers.
IGNORED = frozenset({"calls", "chunk", "batch", "batch_size", "quiet", *vars(nn.Module())})
#: Arguments of an attack that the evaluation sets itself.
SET_BY_RUN = frozenset({"seed", "index"})


def describe(model: nn.Module) -> dict[str, Any]:
    """Class, plain attributes, hash of all parameters and buffers, and the same of every submodule."""
    return {**_weights(model), **_module(model, ())}


def describe_attack(attack: Callable[..., Any]) -> dict[str, Any]:
    """The function behind an attack and every option, defaults included, of a function or a ``functools.partial``."""
    given: dict[str, Any] = {}
    if isinstance(attack, functools.partial):
        given, positional, attack = dict(attack.keywords), attack.args, attack.func
        given |= {f"argument {i + 1}": value for i, value in enumerate(positional)}
    inner = plain(attack)
    options: dict[str, Any] = {}
    if inspect.isroutine(attack):
        defaults = {p.name: p.default for p in inspect.signature(attack).parameters.values() if p.default is not p.empty}
        options = {k: plain(v) for k, v in {**defaults, **given}.items() if k not in IGNORED | SET_BY_RUN}
    else:
        options = {k: plain(v) for k, v in given.items() if k not in IGNORED}
    return {**(inner if isinstance(inner, dict) else {"function": inner}), **options}


def digest(*tensors: Tensor) -> str:
    """Hash of dtypes, shapes and values; of one tensor with its dtype and shape in words."""
    total = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    words = f"{str(tensors[0].dtype)[6:]} {tuple(tensors[0].shape)} " if len(tensors) == 1 else ""
    return words + total.hexdigest()


def plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Any value as JSON; ``above`` holds the objects that contain it, so that a cycle ends."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return digest(torch.from_numpy(value)) if isinstance(value, np.ndarray) else plain(value.item())
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, (torch.dtype, bytes, complex, range, slice, Path)):
        return str(value)
    if id(value) in above:
        return "(itself)"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v, above) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, above) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v, above) for v in value), key=repr)
    if isinstance(value, nn.Module):
        return {**_weights(value), **_module(value, above)}
    if isinstance(value, functools.partial):
        return describe_attack(value)
    if isinstance(value, type) or inspect.isroutine(value):
        return _function(value, above)
    return {"class": _name(type(value)), **_attributes(value, above)}


def _weights(model: nn.Module) -> dict[str, str]:
    tensors = [*model.parameters(), *model.buffers()]
    empty = torch.empty(0, dtype=torch.float32, device="cpu")  # the hash of a record starts with it
    return {"tensors": f"{len(tensors)} {digest(empty, *tensors)}"} if tensors else {}


def _module(model: nn.Module, above: tuple[int, ...]) -> dict[str, Any]:
    """A module without its tensors, which are hashed once for the whole tree."""
    above = (*above, id(model))
    inner = {k: "(itself)" if id(m) in above else _module(m, above) for k, m in model.named_children()}
    return {"class": _name(type(model)), **_attributes(model, above), **inner}


def _attributes(value: Any, above: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of an object that decide numbers; cached properties follow from the others."""
    slots = {k: getattr(value, k) for k in getattr(type(value), "__slots__", ()) if hasattr(value, k)}
    known = {**slots, **getattr(value, "__dict__", {})}
    cached = {k for c in type(value).__mro__ for k, v in vars(c).items() if isinstance(v, functools.cached_property)}
    kept = {k: v for k, v in known.items() if k not in IGNORED | cached and not isinstance(v, (torch.device, torch.Generator))}
    return {k: plain(v, above) for k, v in kept.items()}


def _function(value: Any, above: tuple[int, ...]) -> Any:
    """The name of a function or class; of a nameless or inner function also its code and what it refers to."""
    owner = getattr(value, "__self__", None)
    if inspect.ismethod(value) and owner is not None:
        return {"function": _name(value), "self": plain(owner, above)}
    if not isinstance(value, types.FunctionType) or "<" not in value.__qualname__:
        return _name(value)
    body = repr((value.__code__.co_code, [c for c in value.__code__.co_consts if not isinstance(c, types.CodeType)]))
    cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    inner = {k: plain(c.cell_contents, above) for k, c in cells.items()}
    return {"function": _name(value), "code": hashlib.blake2b(body.encode(), digest_size=8).hexdigest(), **inner}


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """One short text ``key: old -> new`` for every entry in which two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        parts = [differences(old.get(k, "(none)"), new.get(k, "(none)"), f"{at}.{k}" if at else k) for k in keys]
        return [line for part in parts for line in part]
    return [] if old == new else [f"{at}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
