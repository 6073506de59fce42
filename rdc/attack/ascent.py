"""Ascent of any objective over a ball, for the attacks whose objective is more than a loss of the logits."""

__all__ = ["ascent", "ball_step", "check_budget", "first_step", "measured", "standing"]

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.gradients import value_and_gradient
from rdc.attack.logits import logits_of
from rdc.attack.losses import LOSSES, check_classes
from rdc.attack.norms import ascend, project
from rdc.attack.pgd import worse

#: From a point, ``(N, C, H, W)``: whether each image is misclassified, the objective, and its gradient.
Measure = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def check_budget(steps: int, restarts: int, eot: int) -> None:
    """Refuse a negative number of steps, and less than one restart or call."""
    if steps < 0 or restarts < 1 or eot < 1:
        raise ValueError(f"steps must not be negative, restarts and eot at least 1; got {steps}, {restarts}, {eot}")


def first_step(eps: float, steps: int) -> float:
    """``max(4 eps / steps, eps / 10)``: together, the steps of a run cross the ball."""
    return max(4 * eps / max(steps, 1), eps / 10)


def standing(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], loss: str = "margin", eot: int = 1
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Where an attack stands, without gradient: misclassified by the mean logits of ``eot`` calls, and the mean loss."""
    with torch.no_grad():
        seen = [logits_of(model, x, y) for _ in range(eot)]
        check_classes(loss, 0, seen[0].shape[1])
        value = torch.stack([LOSSES[loss](logits, y) for logits in seen]).mean(0)
    return torch.stack(seen).mean(0).argmax(dim=1) != y, value.to(x.dtype)


def measured(
    model: nn.Module,
    make: Callable[[Tensor], Tensor],
    score: Callable[[Tensor, Tensor], Tensor],
    point: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    eot: int = 1,
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Verdict, objective and gradient of ``score(logits of make(point), point)``, over ``eot`` calls of the model.

    Arguments:
        model: Images to logits.
        make: Point to images, e.g. the identity or a flow to warped images.
        score: Logits ``(N, K)`` and point to the objective ``(N,)``.
        point: Where.
        y: True labels; an image is misclassified if the mean of its logits is.
        eot: Calls averaged.
    """
    seen = []

    def objective(at: Tensor) -> Tensor:
        logits = logits_of(model, make(at), y)
        seen.append(logits.detach())
        return score(logits, at)

    value, gradient = value_and_gradient(objective, point, eot)
    return torch.stack(seen).mean(0).argmax(dim=1) != y, value, gradient


def ascent(
    measure: Measure,
    step: Callable[[Tensor, Tensor, float], Tensor],
    start: Float[Tensor, "n c h w"],
    steps: int,
    first: float,
    bar: tqdm,
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """The worst iterate of each image, its verdict and its objective: misclassified before right, then the larger objective.

    Arguments:
        measure: What is climbed.
        step: ``step(point, gradient, size)``, the next point, inside the ball.
        start: First point.
        steps: Number of steps; their size falls linearly from ``first`` to a tenth of it.
        first: First step.
        bar: Progress.
    """
    point, best = start, start.clone()
    broken, best_value, gradient = measure(point)
    for i in range(steps):
        point = step(point, gradient, first * (1 - 0.9 * i / max(steps - 1, 1)))
        wrong, value, gradient = measure(point)
        better = worse(wrong, value, broken, best_value)
        best[better], broken[better], best_value[better] = point[better], wrong[better], value[better]
        bar.update()
    return best, broken, best_value


def ball_step(x: Float[Tensor, "n c h w"], norm: str, eps: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The projected steepest step of a norm around the images ``x``."""

    def step(point: Tensor, gradient: Tensor, size: float) -> Tensor:
        return project(point + size * ascend(gradient, norm), x, norm, eps)

    return step
