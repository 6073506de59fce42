"""Random numbers that depend on a key alone: the same on every device, in any order, in any batch, after any resume.

``generator(seed, "noise", step)`` is always the same stream, whatever was drawn before and wherever it runs. Numbers are drawn on
the CPU in float32 and then moved. A key consists of words and whole numbers; ``np.int64(3)`` is 3, and 3.0 is an error.
"""

__all__ = ["generator", "rand", "randint", "randn", "randn_each", "randperm", "whole"]

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def whole(value: Any, name: str = "a seed") -> int:
    """``value`` as an ``int``.

    Raises:
        ValueError: if it is no whole number: a float, a bool, a word, a tensor of several numbers.
    """
    if not isinstance(value, (bool, str, float)) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{name} must be a whole number, got {value!r}")


def generator(*key: Any) -> torch.Generator:
    """Return a generator seeded by a hash of ``key``; the global random state is neither read nor changed.

    Raises:
        ValueError: if an entry of the key is neither a word nor a whole number.
    """
    return torch.Generator(device="cpu").manual_seed(_seed(key))


def _seed(key: Sequence[Any]) -> int:
    canonical = tuple(part if isinstance(part, str) else whole(part, "an entry of a random key") for part in key)
    digest = hashlib.blake2b(repr(canonical).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**63


def randn(shape: Sequence[int], *key: Any, like: Tensor | None = None) -> Tensor:
    """Standard normal numbers of the stream ``key``, on the device and in the dtype of ``like``."""
    return _moved(torch.randn(tuple(shape), generator=generator(*key), dtype=torch.float32, device="cpu"), like)


def randn_each(shape: Sequence[int], keys: Sequence[Sequence[Any]], like: Tensor) -> Tensor:
    """Standard normal numbers ``(len(keys), *shape)``, entry i of the stream ``keys[i]`` as by :func:`randn`, moved at once."""
    pinned = like.device.type == "cuda"
    drawn = torch.empty((len(keys), *shape), dtype=torch.float32, device="cpu", pin_memory=pinned)
    source = torch.Generator(device="cpu")
    for row, key in zip(drawn, keys, strict=True):
        row.normal_(generator=source.manual_seed(_seed(key)))
    return drawn.to(device=like.device, non_blocking=pinned).to(like.dtype)


def rand(shape: Sequence[int], *key: Any, like: Tensor | None = None) -> Tensor:
    """Uniform numbers in [0, 1) of the stream ``key``, on the device and in the dtype of ``like``."""
    return _moved(torch.rand(tuple(shape), generator=generator(*key), dtype=torch.float32, device="cpu"), like)


def randint(high: int, shape: Sequence[int], *key: Any) -> Tensor:
    """Whole numbers in 0...high-1 of the stream ``key``, int64, on the CPU."""
    return torch.randint(high, tuple(shape), generator=generator(*key), dtype=torch.int64, device="cpu")


def randperm(n: int, *key: Any) -> Tensor:
    """A permutation of 0...n-1 from the stream ``key``, int64, on the CPU."""
    return torch.randperm(n, generator=generator(*key), dtype=torch.int64, device="cpu")


def _moved(drawn: Tensor, like: Tensor | None) -> Tensor:
    return drawn if like is None else drawn.to(device=like.device, dtype=like.dtype)
