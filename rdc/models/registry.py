"""The names of the models: each is one function with keyword options, written down under its name."""

__all__ = ["MODELS", "Model", "Option", "model"]

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from rdc.models.values import described, parsed

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Option:
    """An option of a model.

    Attributes:
        name: Of the keyword.
        default: Its standard value.
        kind: Its annotation.
    """

    name: str
    default: Any
    kind: Any

    def __str__(self) -> str:
        return f"{self.name}={shown(self.default)}"

    @property
    def values(self) -> str:
        """What it may be, in words."""
        return described(self.kind)


@dataclass(frozen=True)
class Model:
    """A model by its name.

    Attributes:
        name: ``rdc``, ``dc``, ...
        make: ``make(data, device, **options) -> nn.Module``.
        noisy: Whether it takes noisy images, not clipped: a base classifier of randomized smoothing.
    """

    name: str
    make: Builder
    noisy: bool = False

    @property
    def line(self) -> str:
        """What it is, in one line."""
        return self.text.splitlines()[0]

    @property
    def text(self) -> str:
        """What it is, with its options in words."""
        return inspect.getdoc(getattr(self.make, "func", self.make)) or self.name

    @property
    def options(self) -> dict[str, Option]:
        """Its options by name."""
        found = inspect.signature(self.make).parameters.values()
        return {p.name: Option(p.name, p.default, p.annotation) for p in found if p.kind is p.KEYWORD_ONLY}

    def checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options that were given, parsed.

        Raises:
            ValueError: on an option that there is not, or a value that it cannot have, in one line.
        """
        known = self.options
        if unknown := sorted(given.keys() - known.keys()):
            there = ", ".join(map(str, known.values())) or "none"
            raise ValueError(f"{self.name} has no option {', '.join(map(repr, unknown))}; it has {there}")
        return {name: parsed(value, known[name].kind, f"{name} of {self.name}") for name, value in given.items()}


#: All models with a name of their own; :func:`rdc.models.build` knows more.
MODELS: dict[str, Model] = {}


def model(name: str, noisy: bool = False) -> Callable[[Builder], Builder]:
    """Write a builder down under a name.

    Arguments:
        name: Of the model.
        noisy: Whether the model takes noisy images, not clipped.

    Raises:
        ValueError: if the name is taken.
    """

    def written(make: Builder) -> Builder:
        if name in MODELS:
            raise ValueError(f"there are two models {name!r}")
        MODELS[name] = Model(name, make, noisy)
        return make

    return written


def shown(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
