r"""Projected gradient descent (Madry et al., 2018), with restarts, target classes and expectation over transformation.

.. math:: x^{(i+1)} = \Pi_{\mathcal B(x, \epsilon) \cap [0, 1]}\big( x^{(i)} + \eta_i\, d(\nabla L(x^{(i)})) \big)

with :math:`d` the steepest direction of the norm (the sign for Linf). The step falls linearly from its first value to a
tenth of it, or adapts to each image as in APGD (:func:`rdc.attack.ascent.adaptive_ascent`). Of all iterates the worst is
returned: a misclassified one before any other, then the one with the largest untargeted loss. Images already broken are dropped,
once fresh calls confirm it (:func:`rdc.attack.ascent.confirmed`).

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690: adaptive steps, and one target class after the other (APGD-T)
"""

__all__ = ["pgd"]

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Climb, Slopes, Worst, adaptive_ascent, ascent, ball_step, confirmed, first_step
from rdc.attack.budget import budget, identities
from rdc.attack.losses import LOSSES, TARGETED, check_classes, check_loss, rescale
from rdc.attack.neighbourhood import named_gradient
from rdc.attack.norms import random_start
from rdc.door import Door, check_images, check_labels, entry

SCHEDULES = {"Linf": "linear", "L2": "adaptive"}
Score = Callable[[Tensor], Tensor]
Run = Callable[[Climb, Tensor, float, Tensor, int, tqdm], tuple[Tensor, Tensor, Tensor]]


@entry
def pgd(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "margin",
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
    targets: int = 0,
    scale: float | str = 1.0,
    schedule: str | None = None,
    gradient: str = "exact",
) -> Float[Tensor, "n c h w"]:
    """Return adversarial images within the ball; an image that the attack cannot break comes back at its largest loss.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1]; one that is misclassified as it is comes back unchanged.
        y: True labels.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units, a number or text such as ``8/255``.
        steps: Gradient steps of a restart.
        step_size: First step; by default ``4 eps / steps`` and at least ``eps / 10`` for linear steps, which together cross the
            ball, and ``2 eps`` for adaptive ones.
        restarts: Number of random starts, of the untargeted run and of each target.
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        loss: ``margin`` (the margin of Carlini and Wagner, also called ``cw``), ``ce`` or ``dlr``.
        seed: Seed of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.
        targets: After the untargeted run, climb towards each of this many most likely wrong classes in turn (at most K - 1)
            with the targeted form of the loss; any wrong class is a success.
        scale: Factor on the logits before the loss; ``auto`` divides each image's logits by their spread, so that the result
            does not depend on the scale of the model (:func:`rdc.attack.losses.rescale`).
        schedule: ``linear`` or ``adaptive`` steps; by default ``linear`` for Linf and ``adaptive`` for L2.
        gradient: ``exact``, or of the neighbourhood of each point: ``neighbourhood`` averages gradients, ``zeroth`` asks for none
            (:class:`rdc.attack.neighbourhood.Neighbourhood`, which may also be given as the model, with other settings).

    Raises:
        ValueError: on bad images, labels or options, and on what a model must not return (:class:`rdc.door.Door`).
    """
    check_images(x)
    check_labels(y, len(x))
    given = budget(norm, eps, steps=steps, restarts=restarts, eot=eot, targets=targets, step_size=step_size, scale=scale)
    eps, scale, loss = given.eps, given.scale, check_loss(loss)
    index, climb = identities(index, len(x)), climber(norm, schedule, given.step_size)
    with Door(named_gradient(model, gradient, seed)) as door:
        slopes, clean = Slopes(door), [door.ask(x, y) for _ in range(given.eot)]
        check_classes(loss, given.targets, clean[0].shape[1])
        rank, mean = untargeted(loss, scale, y), torch.stack(clean).mean(0)
        wrong = confirmed(door, x, y, mean.argmax(dim=1) != y)
        worst = Worst(x.clone(), wrong, torch.stack([rank(logits) for logits in clean]).mean(0))
        ranked = mean.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        runs = [(r, t) for t in range(min(given.targets, ranked.shape[1] - 1) + 1) for r in range(given.restarts)]
        todo = worst.todo
        with tqdm(total=len(runs) * given.steps, disable=quiet, desc=f"pgd {norm} {eps:.4g}", unit="step") as bar:
            for restart, t in runs:
                if (restart, t) != runs[0] and len(todo):
                    worst.broken[todo] = confirmed(door, worst.point[todo], y[todo], worst.broken[todo])
                    todo = worst.todo
                if not len(todo):
                    break
                rank = untargeted(loss, scale, y[todo])
                score = targeted(loss, scale, y[todo], ranked[todo, t - 1]) if t else rank
                measure = Climb(door, slopes, y[todo], of_logits(score), given.eot, rank=rank)
                key = (seed, restart, t) if t else (seed, restart)
                start = random_start(x[todo], norm, eps, index[todo.cpu()], *key)
                worst.offer(*climb(measure, x[todo], eps, start, given.steps, bar), todo)
        slopes.conclude(loss, scale)
    return worst.point


def untargeted(loss: str, scale: float | str, y: Tensor) -> Score:
    """Return the loss as a function of the logits alone."""
    return lambda logits: LOSSES[loss](rescale(logits, scale), y)


def targeted(loss: str, scale: float | str, y: Tensor, target: Tensor) -> Score:
    """Return the targeted form of the loss as a function of the logits alone."""
    return lambda logits: TARGETED[loss](rescale(logits, scale), y, target)


def climber(norm: str, schedule: str | None, step_size: float | None) -> Run:
    """Return the ascent of a schedule: from what is climbed, centres, radius, first points and steps to the worst iterates.

    Raises:
        ValueError: if there is no such schedule.
    """
    if schedule not in (None, *SCHEDULES.values()):
        raise ValueError(f"unknown schedule {schedule!r}; there are linear, adaptive")

    def linear(measure: Climb, x: Tensor, eps: float, start: Tensor, steps: int, bar: tqdm) -> tuple[Tensor, Tensor, Tensor]:
        first = first_step(eps, steps) if step_size is None else step_size
        return ascent(measure, ball_step(x, norm, eps), start, steps, first, bar)

    def adaptive(measure: Climb, x: Tensor, eps: float, start: Tensor, steps: int, bar: tqdm) -> tuple[Tensor, Tensor, Tensor]:
        first = 2 * eps if step_size is None else step_size
        return adaptive_ascent(measure, x, norm, eps, start, steps, first, bar)

    return linear if (schedule or SCHEDULES[norm]) == "linear" else adaptive


def of_logits(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a score of the logits as one of logits and point."""
    return lambda logits, _: score(logits)
