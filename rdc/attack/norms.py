"""Balls of radius eps around images in [0, 1]: random points, steepest ascent, projection, and the size of a change."""

__all__ = ["ascend", "norm_of", "project", "random_start"]

import torch
from jaxtyping import Float
from torch import Tensor

from rdc.rng import generator


def norm_of(delta: Float[Tensor, "n c h w"], norm: str) -> Float[Tensor, " n"]:
    """Return the size of each perturbation."""
    order = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)


def project(x_adv: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"], norm: str, eps: float) -> Float[Tensor, "n c h w"]:
    """Return a point of the ball and of [0, 1] near ``x_adv``; the bound holds exactly, also after rounding.

    For Linf and L2 it is the nearest point of the ball. For L1, as for L2, the change is scaled: a point of the ball, not the
    nearest one, meant for results that are outside by a rounding error.
    """
    radius = round_down(eps, x.dtype)
    exact = x.double()  # the check is in float64, where differences of float32 numbers are exact
    if norm != "Linf":
        change = x_adv.double() - exact
        size = norm_of(change, norm).reshape(-1, 1, 1, 1)
        return torch.where(size > radius, shrink(change * (radius * (1 - 1e-9) / size.clamp(min=1e-300)), x), x_adv).clamp(0, 1)
    low, high = x - radius, x + radius
    low = torch.where(exact - low.double() > radius, torch.nextafter(low, x), low)
    high = torch.where(high.double() - exact > radius, torch.nextafter(high, x), high)
    return torch.minimum(torch.maximum(x_adv, low), high).clamp(0, 1)


def round_down(eps: float, dtype: torch.dtype) -> float:
    """Return the largest number of a dtype that is not above ``eps``: 8/255 in float32 would be a little more than 8/255."""
    nearest = torch.tensor(eps, dtype=dtype, device="cpu")
    return float(nearest if float(nearest) <= eps else torch.nextafter(nearest, torch.zeros_like(nearest)))


def shrink(change: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return ``x + change`` in the dtype of ``x``, every pixel rounded towards ``x``, so that no change grows."""
    moved = (x.double() + change).to(x.dtype)
    return torch.where((moved.double() - x.double()).abs() > change.abs(), torch.nextafter(moved, x), moved)


def ascend(gradient: Float[Tensor, "n c h w"], norm: str) -> Float[Tensor, "n c h w"]:
    """Return the direction of unit norm along which a linear function grows fastest; zero where the gradient is zero."""
    if norm == "Linf":
        return gradient.sign()
    exact = gradient.double()  # the square of a small float32 is zero
    size = norm_of(exact, norm).reshape(-1, 1, 1, 1)
    return (exact / torch.where(size > 0, size, torch.ones_like(size))).to(gradient.dtype)


def random_start(x: Float[Tensor, "n c h w"], norm: str, eps: float, index: Tensor, *key: int) -> Float[Tensor, "n c h w"]:
    """Return a random point of the ball around each image: uniform for Linf; for L2 a uniform direction and radius.

    Image ``i`` takes the stream ``(*key, index[i])``, so that its start does not depend on the batch it is in.
    """
    streams = [generator("start", *key, i) for i in index.tolist()]
    if norm == "Linf":
        noise = torch.stack([2 * torch.rand(x.shape[1:], generator=g, dtype=torch.float32, device="cpu") - 1 for g in streams])
        return project(x + eps * noise.to(x), x, norm, eps)
    noise = torch.stack([torch.randn(x.shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in streams]).to(x)
    radius = torch.stack([torch.rand((1, 1, 1), generator=g, dtype=torch.float32, device="cpu") for g in streams]).to(x)
    return project(x + eps * radius * ascend(noise, norm), x, norm, eps)
