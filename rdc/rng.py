"""Random numbers with an owner: a generator for every key, so that nothing depends on order, batch or resume point.

``generator(seed, "noise", step)`` is always the same stream, whatever was drawn before and wherever it runs. Numbers
are drawn on the CPU and then moved, so that a result does not depend on the device either.
"""

__all__ = ["generator", "randn"]

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A generator seeded by a hash of ``key``; it neither reads nor changes the global random state."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


def randn(shape: tuple[int, ...], *key: int | str, like: Tensor | None = None) -> Tensor:
    """Standard normal numbers of the stream ``key``, on the device and in the dtype of ``like``."""
    eps = torch.randn(shape, generator=generator(*key), dtype=torch.float32)
    return eps if like is None else eps.to(device=like.device, dtype=like.dtype)
