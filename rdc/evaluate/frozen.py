"""A model with all that it remembers held still: generators, counters and the global random states.

A randomised model draws from generators of its own, derives its noise from a counter of its calls, or uses a global state. Each
of them is found wherever it lies in the attributes of the modules (also in lists, dicts and plain objects), so that a randomised
model can be asked again and again under the same noise, and is left as it was found.
"""

__all__ = ["Frozen", "Memory", "frozen"]

import copy
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.randomness import owned_randomness

SCALARS = (int, float, str, bytes, type(None))
INTERNAL = {*vars(nn.Module())}
LARGEST = 2**16  # entries of a buffer that may be a counter
DEPTH = 3  # of objects within objects


class Memory:
    """What a model remembers besides its weights, as it is now.

    Held are whole-number buffers, numbers and words among the attributes, generators of torch, NumPy and Python and
    ``itertools.count``, in the modules and in the lists, dicts and plain objects that they hold.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], object]] = []
        self._seen: set[int] = set()
        for module in model.modules():
            self._attributes(vars(module), DEPTH)
            for buffer in module.buffers(recurse=False):
                if not buffer.is_floating_point() and not buffer.is_complex() and buffer.numel() <= LARGEST:
                    self._undo.append(partial(_put, buffer, buffer.detach().clone()))

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the model starts from this memory; afterwards it has the one that it came with."""
        with torch.no_grad():
            self.restore()
        try:
            yield
        finally:
            with torch.no_grad():
                self.restore()

    def _attributes(self, slots: dict[Any, Any], depth: int) -> None:
        """Every value of a dict of attributes; a name that appears later is removed again."""
        if id(slots) in self._seen:
            return
        self._seen.add(id(slots))
        plain = {k: v for k, v in slots.items() if isinstance(v, SCALARS) and k not in INTERNAL}
        counts = {k: copied for k, v in slots.items() if isinstance(v, itertools.count) and (copied := _copied(v)) is not None}
        names = set(slots)
        self._undo.append(partial(_reset, slots, names, plain))
        if counts:
            self._undo.append(lambda: slots.update({k: _copied(v) for k, v in counts.items()}))
        for key, value in slots.items():
            if key not in INTERNAL:
                self._value(value, depth)

    def _value(self, value: Any, depth: int) -> None:
        """A value that changes in place."""
        if isinstance(value, torch.Generator):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            self._undo.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif depth == 0 or isinstance(value, (nn.Module, Tensor, type, *SCALARS)):
            return
        elif isinstance(value, list):
            if all(isinstance(v, SCALARS) for v in value):
                self._undo.append(partial(value.__setitem__, slice(None), list(value)))
            else:
                for part in value:
                    self._value(part, depth - 1)
        elif isinstance(value, tuple):
            for part in value:
                self._value(part, depth - 1)
        elif isinstance(value, dict):
            self._attributes(value, depth - 1)
        elif hasattr(value, "__dict__") and not callable(value):
            self._attributes(vars(value), depth - 1)


def _reset(slots: dict[Any, Any], names: set[Any], plain: dict[Any, Any]) -> None:
    """Old numbers and words back, new ones away."""
    for key in [k for k, v in slots.items() if k not in names and isinstance(v, SCALARS)]:
        del slots[key]
    slots.update(plain)


def _put(buffer: Tensor, value: Tensor) -> None:
    if not torch.equal(buffer, value):
        buffer.copy_(value)


def _copied(count: "itertools.count[int]") -> "itertools.count[int] | None":
    """A copy, or None where Python no longer copies iterators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return copy.copy(count)
        except TypeError:
            return None


class Frozen(nn.Module):
    """The same model with the same memory and random numbers at every call: a function of the image, if it is one at all."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.model, self.seed, self._memory = model, seed, Memory(model)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits under the noise of the seed."""
        with self._memory.held(), owned_randomness(self.model, "frozen", self.seed):
            return self.model(x)


def frozen(model: nn.Module, seed: int = 0) -> nn.Module:
    """The deterministic model behind a randomised one: its own ``frozen(seed)`` if it offers that, otherwise :class:`Frozen`."""
    own = getattr(model, "frozen", None)
    return own(seed) if callable(own) else Frozen(model, seed)
