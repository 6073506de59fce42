"""What may be given as an attack, one or several: images, a name, a callable, a list or a dict of them."""

__all__ = ["Attack", "Given", "listed"]

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rdc.attack.budget import budget
from rdc.door import check_images

NAMED = ("pgd", "autoattack", "stadv", "square")
BUDGET = ("eps", "steps", "restarts", "eot", "targets", "queries", "step_size", "scale")
Attack = Callable[..., Tensor]


@dataclass(frozen=True)
class Given:
    """An attack whose result is known: the images, by index."""

    images: Tensor
    index: Tensor

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, index: Tensor | None = None) -> Tensor:
        """Return the adversarial images of the given indices."""
        ids = self.index if index is None else index
        return self.images[[int((self.index == i).nonzero()[0, 0]) for i in ids]]


def listed(attack: Any, ids: Tensor, options: dict[str, Any]) -> dict[str, Attack]:
    """Return the attacks by name: a function's own name, ``given`` for images, with a number if it is not the first."""
    meant = [k for k, v in options.items() if v is not None]
    if meant and not any(isinstance(one, str) for one in several(attack)):
        raise ValueError(f"option {', '.join(meant)} is for attacks given by name; put it into functools.partial(attack, ...)")
    if isinstance(attack, Mapping):
        return {str(name): resolve(a, ids, options)[1] for name, a in attack.items()}
    found: dict[str, Attack] = {}
    for one in several(attack):
        name, function = resolve(one, ids, options)
        number = 1 + sum(key.split(" ")[0] == name for key in found)
        found[name if number == 1 else f"{name} {number}"] = function
    return found


def several(attack: Any) -> list[Any]:
    """Return one attack, or a list or dict of them, as a list."""
    if isinstance(attack, Mapping):
        return list(attack.values())
    return [attack] if torch.is_tensor(attack) or isinstance(attack, str) or callable(attack) else list(attack)


def resolve(attack: Any, ids: Tensor, options: dict[str, Any]) -> tuple[str, Attack]:
    """Return name and callable of one attack."""
    if torch.is_tensor(attack):
        check_images(attack)
        if len(attack) != len(ids):
            raise ValueError(f"{len(attack)} adversarial images for {len(ids)} images")
        return "given", Given(attack.detach().clone(), ids)
    if isinstance(attack, str):
        return attack, named(attack, {k: v for k, v in options.items() if v is not None})
    if not callable(attack):
        raise ValueError(f"an attack is images, a name or a callable, got {type(attack).__name__}")
    parameters = inspect.signature(attack).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters) and not {"seed", "index"} <= {p.name for p in parameters}:
        raise ValueError("an attack is called as attack(model, x, y, seed=..., index=...); this one does not take seed and index")
    inner = attack.func if isinstance(attack, functools.partial) else attack
    return getattr(inner, "__name__", type(inner).__name__), attack


def named(name: str, options: dict[str, Any]) -> Attack:
    """Return an attack of :mod:`rdc.attack` with those options, checked before anything runs."""
    import rdc.attack

    function = getattr(rdc.attack, name, None) if name in NAMED else None
    if not callable(function):
        raise ValueError(f"unknown attack {name!r}; there are {', '.join(NAMED)}")
    unknown = [k for k in options if k not in inspect.signature(function).parameters]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}")
    limits = {k: options[k] for k in BUDGET if k in options}
    found = budget("L2", **limits)  # of the norm the attack itself decides
    return functools.partial(function, **{**options, **{k: getattr(found, k) for k in limits}})
