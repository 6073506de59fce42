"""Models that draw random numbers: fix their noise, own it for a while, average it, or find out whether there is any."""

__all__ = ["EOT", "known_noise", "owned_randomness", "randomness"]

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.door import Door
from rdc.quantities import count
from rdc.rng import generator


@contextmanager
def owned_randomness(model: Any, *key: int | str, counters: tuple[str, ...] = ()) -> Iterator[None]:
    """Within the block the random draws of a model are a function of ``key`` alone; afterwards all is as it was.

    Seeded are the global states of torch, NumPy and Python, every ``torch.Generator`` that a module holds as an attribute,
    and the attribute ``calls`` of the submodules named in ``counters``, for models that derive their noise from it.
    """
    seed = generator("owned", *key).initial_seed()
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    streams = [v for m in modules for v in vars(m).values() if isinstance(v, torch.Generator)]
    counting = [model.get_submodule(name) for name in counters]
    before = [g.get_state() for g in streams], [m.calls for m in counting], random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)  # fast without
            random.seed(seed)
            np.random.seed(seed % 2**32)
            for stream in streams:
                stream.manual_seed(seed)
            for module in counting:
                module.calls = seed % 2**31
            yield
        finally:
            for stream, state in zip(streams, before[0], strict=True):
                stream.set_state(state)
            for module, calls in zip(counting, before[1], strict=True):
                module.calls = calls
            random.setstate(before[2])
            np.random.set_state(before[3])


def randomness(model: nn.Module, image: Tensor, seed: int = 0, calls: int = 8) -> tuple[bool, tuple[str, ...]]:
    """Return whether calls on the same image differ in any bit, and the submodules whose counter ``calls`` moves with them.

    Each call has its own seed, so that a model that restarts the global generator by itself does not pass for deterministic.
    A model whose answer rarely changes may pass: then more ``calls`` are needed.
    """
    names = tuple(n for n, m in model.named_modules() if isinstance(getattr(m, "calls", None), int))
    counters: list[Any] = [model.get_submodule(n) for n in names]
    before: list[int] = [counter.calls for counter in counters]
    seen: list[Tensor] = []
    with Door(model, attacked=False) as door:
        with owned_randomness(model, seed, "counters", counters=names):
            for counter, number in zip(counters, before, strict=True):
                counter.calls = number
            if names:
                door.ask(image)
            moving = tuple(n for n, number in zip(names, before, strict=True) if model.get_submodule(n).calls != number)
        for call in range(calls):
            with owned_randomness(model, seed, "differs", call, counters=moving):
                seen.append(door.ask(image))
            if not torch.equal(seen[0], seen[-1]):
                return True, moving
    return False, ()


class EOT(nn.Module):
    """Logits averaged over ``draws`` calls of a randomised model: a wrapper for attack tools that have no EOT of their own."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, count(draws, "draws")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the mean logits."""
        total: Any = 0
        for _ in range(self.draws):
            total = total + self.model(x)
        return total / self.draws


class _KnownNoise(nn.Module):
    """A copy of a model whose randomness starts at the same point at every call."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = copy.copy(model), seed

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        with torch.random.fork_rng():
            torch.random.manual_seed(self.seed)
            return self.model(x)


def known_noise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the deterministic classifier that an attacker faces who knows the noise: the same model, its randomness frozen.

    A model that owns its noise offers ``frozen(seed)``; for any other torch's global random state is fixed during each call
    and restored after it.
    """
    frozen = getattr(model, "frozen", None)
    return frozen(seed) if callable(frozen) else _KnownNoise(model, seed)
