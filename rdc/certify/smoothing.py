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

from collections.abc import Callable, Iterator, Sequence
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
from rdc.door import Door, check_images, entry
from rdc.quantities import count, number
from rdc.rng import whole

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
        """Return whether this image counts as certified at a radius: the right label, and a radius that is not smaller."""
        return self.label == label and self.radius >= radius


@entry
def certify(
    model: Callable[..., Tensor],
    x: Float[Tensor, "*n c h w"],
    *,
    sigma: float | str = 0.25,
    n0: int = 100,
    n: int = 10_000,
    alpha: float | str = 0.001,
    seed: int = 0,
    index: int | Sequence[int] | Tensor | None = None,
    batch: int = 64,
    target: float | str | None = None,
    stopping: str = "sequence",
    give_up: float = 0.01,
    progress: Callable[[int, float], Any] | None = None,
) -> Certificate | list[Certificate]:
    """Return the smoothed class of an image and a radius within which it does not change.

    Each certificate is wrong with probability at most ``alpha``.

    Arguments:
        model: Base classifier: noisy images ``(N, C, H, W)``, not clipped, to logits ``(N, K)``, each row by itself.
        x: One image, ``(C, H, W)`` or ``(1, C, H, W)``, or several, in [0, 1]. Draws of several share batches.
        sigma: Standard deviation of the smoothing noise, image units; a number, or text such as ``1/4``, as are ``alpha`` and
            ``target``.
        n0: Draws that choose the class.
        n: Draws that bound its probability; with a target the most that may be made.
        alpha: Probability of error, for each image.
        seed: Seed of the noise.
        index: Identity of each image, by default its position.
        batch: Noisy images at a time; it decides no number.
        target: A radius, image units: stop as soon as it is clear whether it can be certified.
        stopping: How early stopping keeps the guarantee, ``sequence`` or ``split``; only with a target.
        give_up: With a target: level of the test that stops with "no" because the class seems not probable enough for it; running
            out of draws, or of a chance to meet the target, comes on top.
        progress: Called after every batch with the draws made so far and the mean radius that they would certify.

    Returns:
        One certificate, or for several images a list of them.

    Raises:
        ValueError: for bad input, logits that are none, or a target that n draws cannot reach.
    """
    images, ids = checked(x, index)
    settings = Settings.of(sigma, n0, n, alpha, seed, target, stopping, give_up, batch)
    with Door(settled(model, settings.seed), checked=False, attacked=False) as door:
        found = certificates(door, images, ids, settings, progress)
    return found[0] if len(found) == 1 else found


@dataclass(frozen=True)
class Settings:
    """The options of :func:`certify` that decide numbers, and the batch; ``plan`` where there is a target."""

    sigma: float
    n0: int
    n: int
    alpha: float
    seed: int
    target: float | None
    stopping: str
    batch: int
    plan: Plan | None

    @classmethod
    def of(
        cls, sigma: Any, n0: Any, n: Any, alpha: Any, seed: Any, target: Any, stopping: str, give_up: float, batch: Any
    ) -> "Settings":
        """Return the settings, checked."""
        noise, least = number(sigma, "sigma", low=0, strict=True), number(alpha, "alpha")
        check_alpha(least)
        first, most = count(n0, "n0"), count(n, "n")
        if first + most > 2**31:
            raise ValueError("n0 + n must be at most 2^31")
        asked = None if target is None else number(target, "target", low=0, strict=True)
        plan = None if asked is None else Plan(stopping, most, float(norm.cdf(asked / noise)), least, give_up)
        kind = "fixed" if plan is None else stopping
        return cls(noise, first, most, least, whole(seed), asked, kind, count(batch, "batch"), plan)


def checked(x: Tensor, index: int | Sequence[int] | Tensor | None) -> tuple[Tensor, list[int]]:
    """Return images ``(N, C, H, W)`` and their indices."""
    images = x[None] if x.ndim == 3 else x
    check_images(images)
    ids = range(len(images)) if index is None else [index] if isinstance(index, int) else index
    ids = [whole(i, "an index") for i in ids]
    if len(set(ids)) != len(images) or len(ids) != len(images):
        raise ValueError(f"index must hold {len(images)} different numbers, one per image, got {ids}")
    if min(ids) < 0 or max(ids) >= 2**31:
        raise ValueError("index must lie in 0...2^31 - 1")
    return images, ids


def certificates(
    door: Door, x: Tensor, ids: Sequence[int], settings: Settings, progress: Callable[[int, float], Any] | None = None
) -> list[Certificate]:
    """Return the certificates of some images, whose draws share batches."""
    draws = Draws(door, x, ids, settings.sigma, settings.seed, settings.batch)
    *_, (_, votes) = draws.tallies([(at, 0, settings.n0) for at in range(len(x))])
    candidates = votes.argmax(axis=1).tolist()
    rounds = fixed(draws, candidates, settings) if settings.plan is None else stopped(draws, candidates, settings, settings.plan)
    for made, state in rounds:
        if progress:
            radii = [radius(bound, settings.sigma) for _, _, bound, _ in state]
            progress(settings.n0 * len(x) + made, sum(radii) / len(radii))
    return [certificate(c, *found, settings) for c, found in zip(candidates, state, strict=True)]


def certificate(candidate: int, k: int, n: int, p_low: float, met: bool | None, settings: Settings) -> Certificate:
    """Return the certificate of an image from its counts."""
    reached = max(radius(p_low, settings.sigma), settings.target or 0.0) if met else radius(p_low, settings.sigma)
    return Certificate(
        label=candidate if p_low > 0.5 else ABSTAIN,
        radius=reached,
        candidate=candidate,
        k=k,
        n=n,
        p_low=p_low,
        sigma=settings.sigma,
        alpha=settings.alpha,
        n0=settings.n0,
        target=settings.target,
        met=met,
        stopping=settings.stopping,
        calls=settings.n0 + n,
    )


#: Of each image: successes, draws, bound, and whether the target is met (None without one).
State = list[tuple[int, int, float, bool | None]]


def fixed(draws: Draws, candidates: list[int], settings: Settings) -> Iterator[tuple[int, State]]:
    """Make all n draws of each image; after every batch yield the draws made and where each image stands."""
    requests = [(at, settings.n0, settings.n0 + settings.n) for at in range(len(candidates))]
    for made, votes in draws.tallies(requests):
        total = votes.sum(axis=1).tolist()
        hits = [int(votes[at, c]) for at, c in enumerate(candidates)]
        bounds = [clopper_pearson(k, n, settings.alpha) if n else 0.0 for k, n in zip(hits, total, strict=True)]
        yield made, [(k, n, float(low), None) for k, n, low in zip(hits, total, bounds, strict=True)]


def stopped(draws: Draws, candidates: list[int], settings: Settings, plan: Plan) -> Iterator[tuple[int, State]]:
    """Draw from look to look, each image until its target is met or given up; after every look yield where each image stands."""
    state: State = [(0, 0, 0.0, False)] * len(candidates)
    pending, before = list(range(len(candidates))), 0
    for look, size in enumerate(plan.looks):
        *_, (_, votes) = draws.tallies([(at, settings.n0 + before, settings.n0 + size) for at in pending])
        for at in pending:
            k = state[at][0] + int(votes[at, candidates[at]])
            p_low, met = float(plan.lower(k, look)), bool(plan.met(k, look))
            state[at] = k, size, max(p_low, plan.p) if met else p_low, met  # bisection may end a rounding error below p
        pending, before = [at for at in pending if not (state[at][3] or plan.futile(state[at][0], look))], size
        yield sum(n for _, n, _, _ in state), list(state)
        if not pending:
            return


@entry
def predict(
    model: Callable[..., Tensor],
    x: Float[Tensor, "*n c h w"],
    *,
    sigma: float | str = 0.25,
    n: int = 100,
    alpha: float | str = 0.001,
    seed: int = 0,
    index: int | Sequence[int] | Tensor | None = None,
    batch: int = 64,
) -> int | list[int]:
    """Return the smoothed class of an image, or -1.

    An answer is another one than the smoothed class with probability at most ``alpha``: it is the class answered most often in n
    draws, unless the exact two-sided test of its count against the next class's, with p = 1/2, has a p-value above ``alpha``.
    Arguments are those of :func:`certify`; its draws are others.
    """
    images, ids = checked(x, index)
    settings = Settings.of(sigma, 1, n, alpha, seed, None, "fixed", 0.0, batch)
    with Door(settled(model, settings.seed), checked=False, attacked=False) as door:
        draws = Draws(door, images, ids, settings.sigma, settings.seed, settings.batch, "predict")
        *_, (_, votes) = draws.tallies([(at, 0, settings.n) for at in range(len(images))])
    found = []
    for counts in votes:
        top, second = np.sort(counts)[::-1][:2].tolist()
        clear = binomtest(top, top + second, 0.5).pvalue <= settings.alpha
        found.append(int(counts.argmax()) if clear else ABSTAIN)
    return found[0] if len(found) == 1 else found
