"""Exact expectations over the noise of images of two pixels: a sum over a grid, for laboratories in which nothing is random."""

__all__ = ["gaussian_grid"]

import torch
from jaxtyping import Float64
from torch import Tensor


def gaussian_grid(count: int = 37, end: float = 6.0) -> tuple[Float64[Tensor, "m 1 1 2"], Float64[Tensor, " m"]]:
    """Return nodes ``(count^2, 1, 1, 2)`` and weights for two independent standard normal numbers.

    Arguments:
        count: Nodes of each number; the trapezoidal rule converges faster than any power of it.
        end: They lie between ``-end`` and ``end``.
    """
    line = torch.linspace(-end, end, count, dtype=torch.float64, device="cpu")
    density = torch.exp(-(line**2) / 2)
    return torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2), torch.outer(density, density).flatten() / density.sum() ** 2
