"""Attacks that need no gradient of the model: random search, another model's adversarial images, and plain noise.

A gradient attack that does worse than one of these has a gradient that misleads (Athalye et al., 2018).

References:
    | Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search (Andriushchenko et al., 2020)
    | https://arxiv.org/abs/1912.00049
    | Transferability in Machine Learning (Papernot et al., 2016), https://arxiv.org/abs/1605.07277
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
"""

__all__ = ["square", "transfer", "uniform_noise"]

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Worst, standing, worse
from rdc.attack.autoattack import autoattack
from rdc.attack.budget import budget, identities
from rdc.attack.norms import random_start
from rdc.attack.pgd import pgd
from rdc.door import Door, check_images, check_labels, entry


@entry
def square(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    queries: int = 1000,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    batch: int = 64,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Run the Square attack of AutoAttack, by its adapter; images that it does not break come back unchanged.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``; no gradient is asked for.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: Radius in image units.
        queries: Calls of the model an image.
        seed: Seed of the random numbers, which all images share.
        index: Taken as by the other attacks, and not needed.
        batch: Images attacked together; it decides nothing beyond rounding.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad options, and in L2 and L1 for images of less than five rows, which it cannot tile.
    """
    check_images(x)
    if norm in ("L2", "L1") and x.shape[2] < 5:
        raise ValueError(f"Square tiles images in {norm} with fifths of their height; {x.shape[2]} rows are too few, it needs 5")
    options: dict[str, Any] = {"queries": queries, "seed": seed, "index": index, "batch": batch, "quiet": quiet}
    with torch.no_grad():
        return autoattack(model, x, y, norm, eps, version="custom", attacks=["square"], **options)


@entry
def transfer(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    surrogate: nn.Module,
    attack: Callable[..., Tensor] = pgd,
    **options: Any,
) -> Float[Tensor, "n c h w"]:
    """Return what an attack finds on another model, where it has a larger margin on this one than the image itself.

    So an image that fools the model is returned if there is one, and one that is misclassified as it is comes back unchanged.
    An attack leaves alone what the surrogate gets wrong by itself: take a surrogate that is accurate.

    Arguments:
        model: The attacked model; no gradient is asked for.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        surrogate: The model that the attack sees.
        attack: ``attack(surrogate, x, y, **options)``.
        **options: Options of the attack, ``norm``, ``eps``, ``seed`` and ``index`` among them.
    """
    check_images(x)
    check_labels(y, len(x))
    x_adv = attack(surrogate, x, y, **options)
    if x_adv.shape != x.shape:
        raise ValueError(f"the attack returned images of shape {tuple(x_adv.shape)} for {tuple(x.shape)}")
    with Door(model) as door:
        broken, value = standing(door, x, y)
        better = ~broken & worse(*standing(door, x_adv, y), broken, value)
    return torch.where(better.reshape(-1, 1, 1, 1), x_adv, x)


@entry
def uniform_noise(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    queries: int = 100,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Return the best of ``queries`` random points of the ball, by the margin: a floor that every attack must beat.

    The points are those of :func:`rdc.attack.norms.random_start`. An image is done at its first success.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``; no gradient is asked for.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units.
        queries: Random points an image.
        seed: Seed of the random numbers.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.
    """
    check_images(x)
    check_labels(y, len(x))
    effort, ids = budget(norm, eps, queries=queries), identities(index, len(x))
    with Door(model) as door:
        worst = Worst(x.clone(), *standing(door, x, y))
        for query in tqdm(range(effort.queries), disable=quiet, desc=f"noise {norm} {effort.eps:.4g}", unit="query"):
            todo = worst.todo
            if not len(todo):
                break
            found = random_start(x[todo], norm, effort.eps, ids[todo.cpu()], seed, query)
            worst.offer(found, *standing(door, found, y[todo]), todo)
    return worst.point
