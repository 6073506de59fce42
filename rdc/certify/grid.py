"""Exact expectations over noise and integrals over its level, for laboratories in which nothing is random."""

__all__ = ["averages", "gaussian_grid", "legendre"]

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rdc.denoise.optimal import OptimalDenoiser


def gaussian_grid(
    count: int = 37, end: float = 6.0, dims: int = 2
) -> tuple[Float64[Tensor, "m 1 1 dims"], Float64[Tensor, " m"]]:
    """Return nodes ``(count^dims, 1, 1, dims)`` and weights for independent standard normal numbers.

    Arguments:
        count: Nodes of each number; the trapezoidal rule converges faster than any power of it.
        end: They lie between ``-end`` and ``end``.
        dims: How many numbers.
    """
    line = torch.linspace(-end, end, count, dtype=torch.float64, device="cpu")
    density = torch.exp(-(line**2) / 2)
    points = torch.cartesian_prod(*[line] * dims).reshape(-1, 1, 1, dims)
    weights = torch.cartesian_prod(*[density / density.sum()] * dims).reshape(-1, dims).prod(dim=1)
    return points, weights


def averages(
    model: OptimalDenoiser, z: Float[Tensor, "1 1 dims"], sigma: float, count: int, end: float = 7.0
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    r"""Return :math:`\mathbb E\log p_\sigma(z + \sigma\epsilon \mid y)` and :math:`\mathbb E\lVert z - D_y(z + \sigma\epsilon)
    \rVert^2` for every class of the optimal denoiser, by :func:`gaussian_grid`.
    """
    eps, weights = (v.to(z) for v in gaussian_grid(count, end, z.shape[-1]))
    noisy = z + sigma * eps
    loss = (model.all_classes(noisy, sigma) - z).square().flatten(2).sum(dim=2)
    return weights @ model.log_density(noisy, sigma), weights @ loss


def legendre(low: float, high: float, count: int) -> tuple[list[float], Float64[Tensor, " count"]]:
    r"""Return nodes and weights of the rule of Gauss and Legendre for :math:`\int_{low}^{high} f(\sigma)\,d\sigma`, taken in
    :math:`\log\sigma`.
    """
    u, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(count))
    span = math.log(high / low)
    sigma = low * torch.exp(span * (u + 1) / 2)
    return sigma.tolist(), weights * sigma * span / 2
