r"""The Lagrange attack of Chen et al. (2024), Eq. 10: misclassified, and innocent in the eyes of a penalty.

A defence that first moves an image to higher likelihood leaves alone what is likely already. The attack therefore climbs

.. math:: L(f(x), y) - l\, P(x)

with :math:`L` an attack loss and :math:`P` the unconditional diffusion loss
(:func:`rdc.classify.diffusion_loss.diffusion_loss`), for several weights :math:`l` in turn. An image is broken if any weight
breaks it, as in the paper. Weight 0 is plain PGD, bit for bit.

The weight has a unit: that of the logits over that of the penalty. With both summed over pixels, as in the theory, 1 balances
them; logits that are means over D pixels would need weights D times smaller.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eq. 10, https://arxiv.org/abs/2305.15241
"""

__all__ = ["lagrange"]

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Worst, ascent, ball_step, check_budget, first_step, measured, standing
from rdc.attack.losses import LOSSES, check_loss
from rdc.attack.norms import check_eps, random_start
from rdc.data import check_images, check_labels


def lagrange(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    penalty: Callable[[Tensor], Tensor],
    weights: Sequence[float] = (0, 1, 10),
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 20,
    loss: str = "ce",
    eot: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Adversarial images within the ball, by the first weight that succeeds; one that none breaks has its largest loss.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1]; one that is misclassified as it is comes back unchanged.
        y: True labels.
        penalty: Images ``(N, C, H, W)`` to numbers ``(N,)`` that shall be small; differentiable, each image alone.
        weights: Weights of the penalty, tried in turn on what is not broken yet; number ``k`` takes the random start ``k``.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units.
        steps: Gradient steps for each weight.
        loss: ``ce``, as in Eq. 10, which vanishes in float32 once the right class leads by about 100; ``margin`` or ``dlr``.
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        seed: Owner of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad options, and if the penalty does not return one finite number an image.
    """
    check_images(x)
    check_labels(y, len(x))
    check_eps(norm, eps)
    check_budget(steps, 1, eot)
    loss = check_loss(loss, 1.0, 0)
    if not len(weights) or not all(0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights must be numbers that are not negative, got {tuple(weights)}")
    index = torch.arange(len(x)) if index is None else index
    worst = Worst(x.clone(), *standing(model, x, y, loss, eot))
    for k, weight in enumerate(weights):
        todo = worst.todo
        if not len(todo):
            break
        images, labels, ids = x[todo], y[todo], index[todo.cpu()]
        start = random_start(images, norm, eps, ids, seed, k)
        found = climb(model, start, images, labels, penalty, weight, norm, eps, steps, loss, eot, quiet)
        worst.offer(found, *standing(model, found, labels, loss, eot), todo)
    return worst.point


def climb(
    model: nn.Module,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    penalty: Callable[[Tensor], Tensor],
    weight: float,
    norm: str,
    eps: float,
    steps: int,
    loss: str,
    eot: int,
    quiet: bool,
) -> Tensor:
    """The ascent for one weight; of the misclassified iterates the one with the largest objective."""

    def score(logits: Tensor, point: Tensor) -> Tensor:
        value = LOSSES[loss](logits, y)
        return value - weight * checked(penalty(point), len(y)) if weight else value

    measure = partial(measured, model, lambda at: at, score, y, eot)
    with tqdm(total=steps, disable=quiet, desc=f"lagrange {weight:g} {norm} {eps:.4g}", unit="step") as bar:
        return ascent(measure, ball_step(x, norm, eps), start, steps, first_step(eps, steps), bar)[0]


def checked(value: Tensor, count: int) -> Tensor:
    """The penalty, if it is one finite number for each of ``count`` images."""
    if not torch.is_tensor(value) or tuple(value.shape) != (count,):
        got = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        raise ValueError(f"the penalty must return one number for each of {count} images, ({count},); got {got}")
    if not bool(value.detach().isfinite().all()):
        raise ValueError(f"the penalty is not finite for {int((~value.detach().isfinite()).sum())} of {count} images")
    return value
