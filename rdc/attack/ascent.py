"""Ascent of any objective over a ball, for the attacks whose objective is more than a loss of the logits."""

__all__ = ["Worst", "ascent", "ball_step", "check_budget", "first_step", "measured", "standing", "worse"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.losses import LOSSES, check_classes
from rdc.attack.norms import ascend, project
from rdc.autograd import value_and_gradient
from rdc.door import logits_of

#: From a point, ``(N, C, H, W)``, and whether its gradient is wanted: whether each image is misclassified, the objective, and
#: the gradient (None if it is not wanted).
Measure = Callable[[Tensor, bool], tuple[Tensor, Tensor, Tensor | None]]


@dataclass
class Worst:
    """The worst candidate of each image so far: point, whether it is misclassified, and objective."""

    point: Tensor
    broken: Tensor
    value: Tensor

    @property
    def todo(self) -> Tensor:
        """Positions of the images that are not broken."""
        return (~self.broken).nonzero()[:, 0]

    def offer(self, point: Tensor, broken: Tensor, value: Tensor, at: Tensor | None = None) -> None:
        """Keep the candidates that are :func:`worse`; they belong to the images at the positions ``at``, by default to all."""
        at = torch.arange(len(broken), device=broken.device) if at is None else at
        part = at[better := worse(broken, value, self.broken[at], self.value[at])]
        self.point[part], self.broken[part], self.value[part] = point[better], broken[better], value[better]


def worse(wrong: Bool[Tensor, " n"], value: Tensor, broken: Bool[Tensor, " n"], best: Tensor) -> Bool[Tensor, " n"]:
    """Which images a candidate improves upon for the attacker: misclassified before right, then the larger objective."""
    return (wrong & ~broken) | ((wrong == broken) & (value > best))


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
    y: Int64[Tensor, " n"],
    eot: int,
    point: Float[Tensor, "n c h w"],
    gradient: bool = True,
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n c h w"] | None]:
    """Verdict, objective and gradient of ``score(logits of make(point), point)``, over ``eot`` calls of the model.

    With all but the last two arguments bound (``functools.partial``) it is a :data:`Measure`.

    Arguments:
        model: Images to logits.
        make: Point to images, e.g. the identity or a flow to warped images.
        score: Logits ``(N, K)`` and point to the objective ``(N,)``.
        y: True labels; an image is misclassified if the mean of its logits is.
        eot: Calls averaged.
        point: Where.
        gradient: Whether the gradient is wanted.
    """
    seen = []

    def objective(at: Tensor) -> Tensor:
        logits = logits_of(model, make(at), y)
        seen.append(logits.detach())
        return score(logits, at)

    value, slope = value_and_gradient(objective, point, eot) if gradient else (mean_value(objective, point, eot), None)
    return torch.stack(seen).mean(0).argmax(dim=1) != y, value, slope


def mean_value(objective: Callable[[Tensor], Tensor], x: Float[Tensor, "n c h w"], eot: int) -> Float[Tensor, " n"]:
    """The value of :func:`rdc.autograd.value_and_gradient`, to the last bit, without the gradient."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for _ in range(eot):
            total = total + objective(x).to(x.dtype) / eot
    return total


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
    point = start
    broken, value, gradient = measure(point, steps > 0)
    worst = Worst(start.clone(), broken, value)
    for i in range(steps):
        assert gradient is not None  # it was asked for
        point = step(point, gradient, first * (1 - 0.9 * i / max(steps - 1, 1)))
        broken, value, gradient = measure(point, i < steps - 1)
        worst.offer(point, broken, value)
        bar.update()
    return worst.point, worst.broken, worst.value


def ball_step(x: Float[Tensor, "n c h w"], norm: str, eps: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The projected steepest step of a norm around the images ``x``."""

    def step(point: Tensor, gradient: Tensor, size: float) -> Tensor:
        return project(point + size * ascend(gradient, norm), x, norm, eps)

    return step
