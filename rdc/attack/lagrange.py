r"""The Lagrange attack of Chen et al. (2024), Eq. 10: misclassified, and innocent in the eyes of a penalty.

A defence that first moves an image to higher likelihood leaves alone what is likely already. The attack therefore climbs

.. math:: L(f(x), y) - l\, P(x)

with :math:`L` an attack loss and :math:`P` the unconditional diffusion loss
(:func:`rdc.classify.diffusion_loss.diffusion_loss`), for several weights :math:`l` in turn. An image is broken if any weight
breaks it, as in the paper. Weight 0, first, is PGD with linear steps and the same loss, bit for bit.

The weight has a unit: that of the logits over that of the penalty. With both summed over pixels, as in the theory, 1 balances
them; logits that are means over D pixels would need weights D times smaller.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eq. 10, https://arxiv.org/abs/2305.15241
"""

__all__ = ["lagrange"]

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Climb, Slopes, Worst, ascent, ball_step, first_step, standing
from rdc.attack.budget import budget, identities
from rdc.attack.losses import LOSSES, check_loss
from rdc.attack.norms import random_start
from rdc.door import Door, check_images, check_labels, entry
from rdc.quantities import number


@entry
def lagrange(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    penalty: Callable[[Tensor], Tensor],
    weights: Sequence[float] = (0, 1, 10),
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    steps: int = 20,
    loss: str = "ce",
    eot: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Return adversarial images within the ball, by the first weight that succeeds; one that none breaks has its largest loss.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1]; one that is misclassified as it is comes back unchanged.
        y: True labels.
        penalty: Images ``(N, C, H, W)`` to numbers ``(N,)`` that shall be small; differentiable, each image alone.
        weights: Weights of the penalty, tried in turn on what is not broken yet; number ``k`` takes the random start ``k``.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units, a number or text such as ``8/255``.
        steps: Gradient steps for each weight.
        loss: ``ce``, as in Eq. 10, which vanishes in float32 once the right class leads by about 100; ``margin`` or ``dlr``.
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        seed: Seed of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad options, and if the penalty does not return one finite number an image.
    """
    check_images(x)
    check_labels(y, len(x))
    given, loss, index = budget(norm, eps, steps=steps, eot=eot), check_loss(loss), identities(index, len(x))
    if not len(weights):
        raise ValueError("weights must be numbers that are not negative, got none")
    weights = [number(weight, "weights", low=0) for weight in weights]
    with Door(model) as door:
        worst, slopes = Worst(x.clone(), *standing(door, x, y, loss, given.eot)), Slopes(door)
        for k, weight in enumerate(weights):
            todo = worst.todo
            if not len(todo):
                break
            images, labels = x[todo], y[todo]
            start = random_start(images, norm, given.eps, index[todo.cpu()], seed, k)
            climb = Climb(door, slopes, labels, objective(door, labels, penalty, weight, loss), given.eot)
            step, first = ball_step(images, norm, given.eps), first_step(given.eps, given.steps)
            with tqdm(total=given.steps, disable=quiet, desc=f"lagrange {weight:g} {norm} {given.eps:.4g}", unit="step") as bar:
                found = ascent(climb, step, start, given.steps, first, bar)[0]
            worst.offer(found, *standing(door, found, labels, loss, given.eot), todo)
        slopes.conclude(loss)
    return worst.point


def objective(
    door: Door, y: Tensor, penalty: Callable[[Tensor], Tensor], weight: float, loss: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the attack loss of the logits minus the weighted penalty of the point; a penalty that is not finite is a fault."""

    def score(logits: Tensor, point: Tensor) -> Tensor:
        value = LOSSES[loss](logits, y)
        if not weight:
            return value
        cost = one_each(penalty(point), len(y))
        door.fault(~cost.detach().isfinite(), f"the penalty is not finite for some of {len(y)} images")
        return value - weight * cost

    return score


def one_each(value: Tensor, n: int) -> Tensor:
    """Return the penalty, if it is one number for each of ``n`` images."""
    if not torch.is_tensor(value) or tuple(value.shape) != (n,):
        got = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise ValueError(f"the penalty must return one number for each of {n} images, ({n},); got {got}")
    return value
