r"""How smooth a model is: by how much its gradient changes between points, under the same draw of its noise.

A local estimate of the Lipschitz constant of the gradient is :math:`|g(x') - g(x)|_2 / |x' - x|_2`. Divided by the size
:math:`|g(x)|_2` it is free of the scale of the logits: its inverse is the L2 distance, in image units, over which the gradient
changes by as much as itself. Any such quotient is a lower bound of the constant.
"""

__all__ = ["ascent_path", "gradient_lipschitz", "gradients_along", "lipschitz", "path_cosine"]

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.analyse.gradients import Loss, moving_counters, one_gradient
from rdc.attack.ascent import ball_step
from rdc.attack.budget import budget
from rdc.attack.losses import margin
from rdc.attack.norms import random_start


def ascent_path(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    loss: Loss = margin,
    eot: int = 1,
    seed: int = 0,
) -> Float[Tensor, "points n c h w"]:
    """The points that steepest ascent visits in the ball, ``(steps + 1, N, C, H, W)``; every step sees the same noise.

    ``step_size`` is in image units, by default ``2 eps / steps``.
    """
    allowed = budget(norm, eps, steps=steps)
    eps, steps = allowed.eps, allowed.steps
    counters, step, size = moving_counters(model, x, seed), ball_step(x, norm, eps), step_size or 2 * eps / steps
    path = [x.detach()]
    for _ in range(steps):
        path.append(step(path[-1], one_gradient(model, path[-1], y, (seed, "path"), counters, loss, eot)[1], size))
    return torch.stack(path)


def gradients_along(
    model: nn.Module,
    path: Float[Tensor, "points n c h w"],
    y: Int64[Tensor, " n"],
    loss: Loss = margin,
    eot: int = 1,
    seed: int = 0,
) -> Float[Tensor, "points n c h w"]:
    """Gradients of the loss at every point of a path, all under the same noise."""
    counters = moving_counters(model, path[0], seed)
    return torch.stack([one_gradient(model, point, y, (seed, "path"), counters, loss, eot)[1] for point in path])


def lipschitz(
    path: Float[Tensor, "points n c h w"], gradients: Float[Tensor, "points n c h w"], relative: bool = True
) -> Float[Tensor, "steps n"]:
    """``|g_{i+1} - g_i| / |x_{i+1} - x_i|`` of consecutive points, L2; ``relative``: also over ``|g_0|``, unit 1 / image unit.

    NaN where a path stands still.
    """
    change = gradients.double().diff(dim=0).flatten(2).norm(dim=2) / path.double().diff(dim=0).flatten(2).norm(dim=2)
    return (change / gradients[0].double().flatten(1).norm(dim=1) if relative else change).to(path.dtype)


def path_cosine(gradients: Float[Tensor, "points n c h w"]) -> Float[Tensor, "points n"]:
    """Cosine of the gradient at each point of a path with the gradient at its start; the first is 1, a zero gradient gives 0."""
    flat = gradients.flatten(2).double()
    size = flat.norm(dim=2) * flat[0].norm(dim=1)
    return ((flat * flat[0]).sum(2) / torch.where(size > 0, size, torch.ones_like(size))).to(gradients.dtype)


def gradient_lipschitz(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float = 8 / 255,
    draws: int = 8,
    relative: bool = True,
    loss: Loss = margin,
    eot: int = 1,
    seed: int = 0,
) -> Float[Tensor, "draws n"]:
    """``|g(x + d) - g(x)| / |d|``, L2, for random points of the ball inside [0, 1], ``(draws, N)``; see :func:`lipschitz`.

    All images take the same random numbers.
    """
    eps = budget(norm, eps).eps
    if draws < 1 or eps == 0:
        raise ValueError(f"draws and eps must be positive, got {draws} and {eps:g}")
    same = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    others = [random_start(x, norm, eps, same, seed, r) for r in range(draws)]
    first, *rest = gradients_along(model, torch.stack([x.detach(), *others]), y, loss, eot, seed)
    pairs = zip(others, rest, strict=True)
    return torch.cat([lipschitz(torch.stack([x, o]), torch.stack([first, g]), relative) for o, g in pairs])
