r"""Randomized smoothing (Cohen et al., 2019): what a classifier answers most often under Gaussian noise cannot be changed nearby.

.. math:: g(x) = \arg\max_c\, \mathbb P_\delta\big( f(x + \delta) = c \big), \qquad \delta \sim \mathcal N(0, \sigma^2 I)

The class c is chosen from ``n0`` draws; ``k`` of ``n`` *other* draws answer c; their lower bound gives the radius
(:mod:`rdc.certify.clopper_pearson`). Two questions, by name:

| *full radius*    (``target=None``) all n draws and the bound of Clopper and Pearson
| *target radius*  is the radius at least ``target``? Draws until it is clear, n at most (:mod:`rdc.certify.confidence_sequence`)

sigma and all radii are in units of images in [0, 1]; noisy images are not clipped, so that the base classifier must take
images that leave [0, 1]. A denoiser sees noise of level :math:`\tau = 2 \sigma` (model units).

The noise of a draw follows from the seed, the index of the image and the number of the draw alone. A base classifier with
noise of its own is called as :mod:`rdc.certify.monte_carlo` says.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), Algorithms CERTIFY and PREDICT
    | https://arxiv.org/abs/1902.02918
"""

__all__ = ["Certificate", "certify", "clopper_pearson", "predict"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, norm
from torch import Tensor

from rdc.certify.clopper_pearson import check_alpha, radius
from rdc.certify.clopper_pearson import clopper_pearson as clopper_pearson
from rdc.certify.confidence_sequence import Plan
from rdc.certify.monte_carlo import Draws, settled
from rdc.data import check_images

ABSTAIN = -1


@dataclass(frozen=True)
class Certificate:
    """What was found about one image, with the counts behind it.

    Attributes:
        label: The smoothed class, -1 where the bound is not above 1/2.
        radius: No image within this L2 distance (image units) has another smoothed class; 0 where ``label`` is -1.
        candidate: The class that the first ``n0`` draws chose.
        k: How often it was answered in ...
        n: ... this many further draws; after early stopping fewer than were allowed.
        p_low: Lower bound for its probability.
        sigma: Noise, image units.
        alpha: Probability that the radius is too large.
        n0: Draws that chose the candidate.
        target: The radius that was asked for, or None.
        met: Whether ``radius >= target``; None where no target was given.
        stopping: ``fixed``, ``sequence`` or ``split``.
        calls: Noisy images that were classified, ``n0 + n``.
    """

    label: int
    radius: float
    candidate: int
    k: int
    n: int
    p_low: float
    sigma: float
    alpha: float
    n0: int
    target: float | None
    met: bool | None
    stopping: str
    calls: int

    def holds(self, label: int, radius: float) -> bool:
        """Whether this image counts as certified at a radius: the right label, and a radius that is not smaller."""
        return self.label == label and self.radius >= radius


def certify(
    model: Callable[..., Tensor],
    x: Float[Tensor, "*n c h w"],
    *,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    seed: int = 0,
    index: int | Sequence[int] | Tensor | None = None,
    batch: int = 64,
    target: float | None = None,
    stopping: str = "sequence",
    give_up: float = 0.01,
    progress: Callable[[int, float], Any] | None = None,
) -> Certificate | list[Certificate]:
    """The smoothed class of an image and a radius within which it does not change, wrong with probability at most ``alpha``.

    Arguments:
        model: Base classifier: noisy images ``(N, C, H, W)``, not clipped, to logits ``(N, K)``, each row by itself.
        x: One image, ``(C, H, W)`` or ``(1, C, H, W)``, or a batch of several, in [0, 1].
        sigma: Standard deviation of the smoothing noise, image units.
        n0: Draws that choose the class.
        n: Draws that bound its probability; with a target the most that may be made.
        alpha: Probability of error, for each image.
        seed: Owner of the noise.
        index: Identity of each image, by default its position.
        batch: Noisy images at a time; it decides no number.
        target: A radius, image units: stop as soon as it is clear whether it can be certified.
        stopping: How early stopping keeps the guarantee, ``sequence`` or ``split``; only with a target.
        give_up: With a target: probability of stopping with "no" although the class is probable enough for it.
        progress: Called after every batch with the draws made so far and the radius that they would certify.

    Returns:
        One certificate, or for several images a list of them.

    Raises:
        ValueError: for bad input, logits that are none, or a target that n draws cannot reach.
    """
    images, ids = checked(x, index, sigma, alpha, n0, n, batch)
    if target is not None and not target > 0:
        raise ValueError(f"target must be positive, got {target}")
    plan = None if target is None else Plan(stopping, n, float(norm.cdf(target / sigma)), alpha, give_up)
    model, found = settled(model, seed), []
    for image, i in zip(images, ids, strict=True):
        draws = Draws(model, image, sigma, seed, i, batch)
        candidate = int(np.bincount(np.concatenate(list(draws.answers(0, n0)))).argmax())
        told = progress or (lambda made, radius: None)
        asked = fixed(draws, candidate, n0, n, alpha, told) if plan is None else stopped(draws, candidate, n0, plan, told)
        k, made, p_low, met = asked
        reached = max(radius(p_low, sigma), target if met else 0.0)
        found.append(
            Certificate(
                label=candidate if p_low > 0.5 else ABSTAIN,
                radius=reached,
                candidate=candidate,
                k=k,
                n=made,
                p_low=p_low,
                sigma=sigma,
                alpha=alpha,
                n0=n0,
                target=target,
                met=met,
                stopping="fixed" if plan is None else stopping,
                calls=n0 + made,
            )
        )
    return found[0] if len(found) == 1 else found


def checked(
    x: Tensor, index: int | Sequence[int] | Tensor | None, sigma: float, alpha: float, n0: int, n: int, batch: int
) -> tuple[Tensor, list[int]]:
    """Images ``(N, C, H, W)`` and their indices."""
    images = x[None] if x.ndim == 3 else x
    check_images(images)
    check_alpha(alpha)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if min(n0, n, batch) < 1:
        raise ValueError(f"n0, n and batch must be positive, got {n0}, {n}, {batch}")
    ids = range(len(images)) if index is None else [index] if isinstance(index, int) else index
    ids = [int(i) for i in ids]
    if len(set(ids)) != len(images):
        raise ValueError(f"index must hold {len(images)} different numbers, one per image, got {ids}")
    if min(ids) < 0 or max(ids) >= 2**31 or n0 + n > 2**31:
        raise ValueError("index must lie in 0...2^31 - 1, and n0 + n be at most 2^31")
    return images, ids


def fixed(
    draws: Draws, label: int, n0: int, n: int, alpha: float, progress: Callable[[int, float], Any]
) -> tuple[int, int, float, None]:
    """All n draws: successes, draws, bound, and no verdict about a target."""
    for made, k in draws.count(label, n0, n0 + n):
        progress(n0 + made, radius(clopper_pearson(k, made, alpha), draws.sigma))
    return k, n, clopper_pearson(k, n, alpha), None


def stopped(draws: Draws, label: int, n0: int, plan: Plan, progress: Callable[[int, float], Any]) -> tuple[int, int, float, bool]:
    """Draws from look to look until the target is met or given up: successes, draws, bound, verdict."""
    k = made = 0
    for look, size in enumerate(plan.looks):
        *_, (_, more) = draws.count(label, n0 + made, n0 + size)
        k, made = k + more, size
        p_low, met = plan.lower(k, look), bool(plan.met(k, look))
        progress(n0 + made, radius(p_low, draws.sigma))
        if met or plan.futile(k, look):
            break
    return k, made, max(p_low, plan.p) if met else p_low, met  # bisection may end a rounding error below p


def predict(
    model: Callable[..., Tensor],
    x: Float[Tensor, "*n c h w"],
    *,
    sigma: float = 0.25,
    n: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    index: int | Sequence[int] | Tensor | None = None,
    batch: int = 64,
) -> int | list[int]:
    """The smoothed class of an image, or -1: an answer is another one than the smoothed class with probability <= ``alpha``.

    The class answered most often in n draws, unless the exact two-sided test of its count against that of the next class,
    with p = 1/2, has a p-value above ``alpha``. Arguments are those of :func:`certify`; its draws are others.
    """
    images, ids = checked(x, index, sigma, alpha, 1, n, batch)
    model, found = settled(model, seed), []
    for image, i in zip(images, ids, strict=True):
        counts = np.bincount(np.concatenate(list(Draws(model, image, sigma, seed, i, batch, "predict").answers(0, n))))
        top, second = np.sort(np.append(counts, 0))[::-1][:2].tolist()
        clear = binomtest(top, top + second, 0.5).pvalue <= alpha
        found.append(int(counts.argmax()) if clear else ABSTAIN)
    return found[0] if len(found) == 1 else found
