"""Ascent of any objective over a ball: what the gradient attacks have in common.

Within a run nothing waits for the device: masks decide which candidate is kept, and faults and dead gradients are collected.
"""

__all__ = [
    "Climb",
    "Measured",
    "Slopes",
    "Worst",
    "adaptive_ascent",
    "ascent",
    "ball_step",
    "confirmed",
    "first_step",
    "mean_value",
    "standing",
    "worse",
]

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from rdc.attack.losses import LOSSES, check_classes
from rdc.attack.norms import ascend, project
from rdc.autograd import value_and_gradient
from rdc.door import Door

#: From a point and its gradient to the next point, by a step of a size: a number, or one for each image, ``(N, 1, 1, 1)``.
Step = Callable[[Tensor, Tensor, float | Tensor], Tensor]
FALL, LEAST, SHRINK, RISES, MOMENTUM = 0.22, 0.06, 0.03, 0.75, 0.75  # of APGD: first interval, shortest, its decrease; rho; alpha
CALLS = 8  # fresh calls that confirm a success


class Measured(NamedTuple):
    """What was seen at a point: misclassified, the value that ranks it, the objective, and its gradient if it was asked for."""

    broken: Bool[Tensor, " n"]
    value: Float[Tensor, " n"]
    objective: Float[Tensor, " n"]
    gradient: Tensor | None


#: From a point, ``(N, C, H, W)``, and whether its gradient is wanted, to what is seen there.
Measure = Callable[[Tensor, bool], Measured]


@dataclass
class Worst:
    """The worst candidate of each image so far: point, whether it is misclassified, and value."""

    point: Tensor
    broken: Tensor
    value: Tensor

    @property
    def todo(self) -> Int64[Tensor, " m"]:
        """Positions of the images that are not broken; to know them is to wait for the device."""
        return (~self.broken).nonzero()[:, 0]

    def offer(self, point: Tensor, broken: Tensor, value: Tensor, at: Tensor | slice = slice(None)) -> None:
        """Keep the candidates that are :func:`worse`; they belong to the images at the positions ``at``, by default to all."""
        better = worse(broken, value, self.broken[at], self.value[at])
        self.point[at] = torch.where(better.reshape(-1, 1, 1, 1), point, self.point[at])
        self.broken[at] = torch.where(better, broken, self.broken[at])
        self.value[at] = torch.where(better, value, self.value[at])


def worse(wrong: Bool[Tensor, " n"], value: Tensor, broken: Bool[Tensor, " n"], best: Tensor) -> Bool[Tensor, " n"]:
    """Return which images a candidate improves for the attacker: misclassified before right, then the larger value."""
    return (wrong & ~broken) | ((wrong == broken) & (value > best))


class Slopes:
    """What an attack notices of its gradients; it is looked at once, at the end.

    Arguments:
        door: The open model; a gradient that is not finite is its fault.
    """

    def __init__(self, door: Door) -> None:
        self.door, self.count = door, 0
        self._dead: list[Tensor] = []

    def see(self, gradient: Float[Tensor, "n ..."]) -> None:
        """Notice a gradient."""
        self.door.fault(~gradient.isfinite(), f"the gradient is not finite for some of {len(gradient)} images")
        self._dead.append((gradient == 0).flatten(1).all(dim=1).sum())
        self.count += len(gradient)

    def conclude(self, loss: str, scale: float | str = 1.0) -> None:
        """Warn if most gradients were exactly zero, and say what to do."""
        if not self.count or 2 * int(torch.stack(self._dead).sum()) <= self.count:
            return
        advice = "nothing was climbed; attack with gradient='neighbourhood' or 'zeroth', or without gradients (square)"
        if loss == "ce" and scale != "auto":
            advice = "the softmax saturates on logits of this size; take loss='margin' or scale='auto'"
        warnings.warn(f"most gradients of the loss {loss!r} are exactly zero: {advice}", stacklevel=4)


def identity(x: Tensor) -> Tensor:
    """Return the point, which is the image."""
    return x


@dataclass(frozen=True)
class Climb:
    """What one run climbs: ``score(logits of make(point), point)`` for each image, averaged over calls of the model.

    Arguments:
        door: The open model.
        slopes: Sees every gradient.
        y: True labels; an image is misclassified if the mean of its logits is.
        score: Logits ``(N, K)`` and point to the objective ``(N,)``.
        eot: Calls averaged.
        make: Point to images, e.g. a flow to warped images.
        rank: Logits to the value ``(N,)`` by which iterates are compared; by default the objective.
    """

    door: Door
    slopes: Slopes
    y: Tensor
    score: Callable[[Tensor, Tensor], Tensor]
    eot: int = 1
    make: Callable[[Tensor], Tensor] = identity
    rank: Callable[[Tensor], Tensor] | None = None

    def __call__(self, point: Tensor, gradient: bool) -> Measured:
        """Return what is seen at a point, with the gradient if it is wanted."""
        seen: list[Tensor] = []

        def objective(at: Tensor) -> Tensor:
            logits = self.door(self.make(at), self.y)
            seen.append(logits.detach())
            return self.score(logits, at)

        slope = None
        if gradient:
            climbed, slope = value_and_gradient(objective, point, self.eot, self.slopes.see)
        else:
            climbed = mean_value(objective, point, self.eot)
        value = climbed if self.rank is None else torch.stack([self.rank(logits) for logits in seen]).mean(0)
        return Measured(torch.stack(seen).mean(0).argmax(dim=1) != self.y, value, climbed, slope)


def mean_value(objective: Callable[[Tensor], Tensor], x: Float[Tensor, "n c h w"], eot: int) -> Float[Tensor, " n"]:
    """Return the value of :func:`rdc.autograd.value_and_gradient`, to the last bit, without the gradient."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for _ in range(eot):
            total = total + objective(x).to(x.dtype) / eot
    return total


def standing(
    door: Door, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], loss: str = "margin", eot: int = 1
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Return where an attack stands, without gradient: misclassified by the mean logits of ``eot`` calls, and the mean loss.

    What looks misclassified is :func:`confirmed`.
    """
    seen = [door.ask(x, y) for _ in range(eot)]
    check_classes(loss, 0, seen[0].shape[1])
    value = torch.stack([LOSSES[loss](logits, y) for logits in seen]).mean(0)
    return confirmed(door, x, y, torch.stack(seen).mean(0).argmax(dim=1) != y), value.to(x.dtype)


def confirmed(
    door: Door, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], broken: Bool[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Return which of the images that look misclassified are, by the mean logits of eight fresh calls.

    An attack ends with an image at its first success. One call of a randomised model is no success: an image that is wrong in a
    tenth of the calls would soon be left alone. A deterministic model says the same again.
    """
    at = broken.nonzero()[:, 0]
    if not len(at):
        return broken
    mean = torch.stack([door.ask(x[at], y[at]) for _ in range(CALLS)]).mean(0)
    return broken.index_put((at,), mean.argmax(dim=1) != y[at])


def first_step(eps: float, steps: int) -> float:
    """Return ``max(4 eps / steps, eps / 10)``: together, the steps of a run cross the ball."""
    return max(4 * eps / steps, eps / 10)


def ball_step(x: Float[Tensor, "n c h w"], norm: str, eps: float) -> Step:
    """Return the projected steepest step of a norm around the images ``x``."""

    def step(point: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        return project(point + size * ascend(gradient, norm), x, norm, eps)

    return step


def ascent(
    measure: Measure, step: Step, start: Float[Tensor, "n c h w"], steps: int, first: float, bar: tqdm
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the worst iterate of each image, its verdict and its value: misclassified before right, then the larger value.

    Arguments:
        measure: What is climbed.
        step: The next point, inside the ball.
        start: First point.
        steps: Number of steps; their size falls linearly from ``first`` to a tenth of it.
        first: First step.
        bar: Progress.
    """
    point, seen = start, measure(start, True)
    worst = Worst(start.clone(), seen.broken.clone(), seen.value.clone())
    for i in range(steps):
        point = step(point, known(seen), first * (1 - 0.9 * i / max(steps - 1, 1)))
        seen = measure(point, i < steps - 1)
        worst.offer(point, seen.broken, seen.value)
        bar.update()
    return worst.point, worst.broken, worst.value


def adaptive_ascent(
    measure: Measure, x: Float[Tensor, "n c h w"], norm: str, eps: float, start: Tensor, steps: int, first: float, bar: tqdm
) -> tuple[Float[Tensor, "n c h w"], Bool[Tensor, " n"], Float[Tensor, " n"]]:
    r"""Return the worst iterate of each image as :func:`ascent` does, with the steps of APGD (Croce and Hein, 2020).

    With z the plain step,

    .. math:: x^{(i+1)} = \Pi\big(x^{(i)} + \tfrac34 (z - x^{(i)}) + \tfrac14 (x^{(i)} - x^{(i-1)})\big).

    At checkpoints, which come ever more often, an image halves its step and goes back to its best point: if no more than three
    quarters of the steps since the last one raised its objective, or if neither its step nor its best point changed since.

    Arguments:
        measure: What is climbed.
        x: Centres of the balls.
        norm: ``Linf`` or ``L2``.
        eps: Radius.
        start: First point.
        steps: Number of steps.
        first: First step of every image.
        bar: Progress.
    """
    step, shape = ball_step(x, norm, eps), (-1, 1, 1, 1)
    seen = measure(start, True)
    worst = Worst(start.clone(), seen.broken.clone(), seen.value.clone())
    point = before = best = start
    slope, level, top, best_slope = known(seen), seen.objective, seen.objective, known(seen)
    size = torch.full((len(x), 1, 1, 1), first, dtype=x.dtype, device=x.device)
    rises, halved, top_before = torch.zeros_like(level), torch.ones_like(seen.broken), top
    interval, since = max(int(FALL * steps), 1), 0
    for i in range(steps):
        plain, old = step(point, slope, size), point
        weight = MOMENTUM if i else 1.0
        point = project(point + weight * (plain - point) + (1 - weight) * (point - before), x, norm, eps)
        before, seen = old, measure(point, i < steps - 1)
        worst.offer(point, seen.broken, seen.value)
        bar.update()
        if i == steps - 1:
            break
        rises, level, slope = rises + (seen.objective > level), seen.objective, known(seen)
        better = level > top
        top = torch.where(better, level, top)
        best, best_slope = (torch.where(better.reshape(shape), a, b) for a, b in ((point, best), (slope, best_slope)))
        since += 1
        if since == interval:
            halved = (rises <= RISES * interval) | (~halved & (top_before >= top))
            back = halved.reshape(shape)
            size = torch.where(back, size / 2, size)
            point, slope = torch.where(back, best, point), torch.where(back, best_slope, slope)
            level, rises, top_before = torch.where(halved, top, level), torch.zeros_like(rises), top
            interval, since = max(interval - max(int(SHRINK * steps), 1), int(LEAST * steps), 1), 0
    return worst.point, worst.broken, worst.value


def known(seen: Measured) -> Tensor:
    """Return the gradient, which was asked for."""
    assert seen.gradient is not None
    return seen.gradient
