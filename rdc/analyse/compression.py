r"""By how much a process that maps images to images, a purification, contracts what an attacker adds.

.. math:: \rho(x, x') = \frac{|P(x') - P(x)|_2}{|x' - x|_2}

under the same draw of the noise of :math:`P`: 1 for the identity, 0 for a constant, below 1 where a change shrinks. For small
changes it is :math:`|J v|` with the Jacobian :math:`J` and the unit direction :math:`v`; over random directions its root mean
square is that of the D singular values of :math:`J`, and at most it is the largest of them. A mean over random directions says
little about the worst one: take an adversarial image, or the largest singular value.

References:
    | How Do Diffusion Models Improve Adversarial Robustness? (2025), which relates robustness under fixed randomness to such
    | a rate; https://arxiv.org/abs/2505.22839
"""

__all__ = ["compression_rate", "jacobian_rms", "top_singular_value"]

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rdc.analyse.gradients import moving_counters
from rdc.attack.budget import budget
from rdc.attack.norms import ascend, random_start
from rdc.autograd import value_and_gradient
from rdc.randomness import owned_randomness
from rdc.rng import randn

Process = Callable[[Tensor], Tensor]


def compression_rate(
    process: Process,
    x: Float[Tensor, "n c h w"],
    x_other: Float[Tensor, "n c h w"] | None = None,
    norm: str = "Linf",
    eps: float = 8 / 255,
    draws: int = 8,
    seed: int = 0,
) -> Float[Tensor, "draws n"]:
    """``|P(x') - P(x)| / |x' - x|``, L2, for each draw, ``(draws, N)``; both points of a draw see the same noise.

    Arguments:
        process: Images to images. One with fixed noise has the same noise in all draws.
        x: Images in [0, 1].
        x_other: Partners of the images, e.g. adversarial ones; by default a random point of the ball for each draw, made from
            the same random numbers for all images.
        norm: Of the ball of the random points.
        eps: Its radius, image units.
        draws: Number of draws of the noise, and of the random points.
        seed: Owner of both.

    Raises:
        ValueError: if draws or eps is not positive. The rate is NaN for an image that is its own partner.
    """
    eps = budget(norm, eps).eps
    if draws < 1 or eps == 0:
        raise ValueError(f"draws and eps must be positive, got {draws} and {eps:g}")
    counters, same, found = moving_counters(process, x, seed), torch.zeros(len(x), dtype=torch.int64, device=x.device), []
    for r in range(draws):
        other = random_start(x, norm, eps, same, seed, r) if x_other is None else x_other
        run = pinned(process, counters, seed, "compression", r)
        found.append(length(run(other) - run(x)) / length(other - x))
    return torch.stack(found).to(x.dtype)


def jacobian_rms(
    process: Process, x: Float[Tensor, "n c h w"], draws: int = 16, step: float = 1e-3, seed: int = 0
) -> Float[Tensor, " n"]:
    """Root mean square of the D singular values of the Jacobian, ``(N,)``: that of ``|J v|`` is ``|J|_F / sqrt(D)``.

    ``J v`` is a central difference of width ``step`` (L2, image units) along random unit directions v, the same for all
    images, at the image moved by at most ``step`` into the interior of [0, 1]. One draw of the noise serves all directions.
    """
    run = pinned(process, moving_counters(process, x, seed), seed, "jacobian")
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for r in range(draws):
        v = randn(tuple(x.shape[1:]), seed, "direction", r, like=x).expand_as(x)
        total += length(along(run, x, ascend(v, "L2"), step)).square() / draws
    return total.sqrt().to(x.dtype)


def top_singular_value(
    process: Process, x: Float[Tensor, "n c h w"], iterations: int = 10, step: float = 1e-3, seed: int = 0
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Estimate from below of the largest singular value of the Jacobian, ``(N,)``, and its unit direction.

    Power iteration ``v <- J^T J v``: ``J v`` by central differences as in :func:`jacobian_rms`, ``J^T u`` by autograd, so that
    the process must be differentiable. The value is ``|J v|`` for the direction that is returned.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    run = pinned(process, moving_counters(process, x, seed), seed, "jacobian")
    v = ascend(randn(tuple(x.shape[1:]), seed, "direction", 0, like=x).expand_as(x), "L2")
    for _ in range(iterations):
        u = along(run, x, v, step)
        _, back = value_and_gradient(partial(product, run, u), inside(x, step))
        v = torch.where(length(back).reshape(-1, 1, 1, 1) > 0, ascend(back, "L2"), v)
    return length(along(run, x, v, step)).to(x.dtype), v


def pinned(process: Process, counters: tuple[str, ...], *key: int | str) -> Process:
    """The process with the noise of ``key`` at every call."""

    def run(x: Tensor) -> Tensor:
        with owned_randomness(process, *key, counters=counters):
            return process(x)

    return run


def along(run: Process, x: Tensor, v: Tensor, step: float) -> Tensor:
    """``J v`` by a central difference."""
    middle = inside(x, step)
    with torch.no_grad():
        return (run(middle + step * v) - run(middle - step * v)) / (2 * step)


def product(run: Callable[[Tensor], Tensor], u: Tensor, point: Tensor) -> Tensor:
    """The inner product of ``run(point)`` and ``u``, for each image."""
    return (run(point) * u).flatten(1).sum(1)


def inside(x: Tensor, step: float) -> Tensor:
    """The nearest image from which a step of L2 length ``step`` stays in [0, 1]; a little more, for rounding."""
    return x.detach().clamp(1.001 * step, 1 - 1.001 * step)


def length(change: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """L2 norm of each, in float64."""
    return change.detach().double().flatten(1).norm(dim=1)
