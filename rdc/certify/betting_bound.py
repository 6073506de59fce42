r"""A lower bound for the common mean of bounded independent numbers, from their values alone.

Bet against the hypothesis that the mean is m: start with 1 and stake a fraction on every number before it is seen,

.. math:: W_i(m) = \prod_{j \le i} \big( 1 + \lambda_j (X_j - m) \big), \qquad 0 \le \lambda_j \le c / m,\; c < 1 .

*Proof.* If every number has a mean of at most m, given those before it, and each stake depends on these only, W is positive and a
supermartingale, so that by Ville's inequality it ever reaches 1 / alpha with probability at most alpha. W falls in m, hence all m
below the smallest that is not rejected are rejected, and that one is above the mean with probability at most alpha. ∎

The stakes :math:`\lambda_j = \min(\sqrt{2 \log(1 / \alpha) / (n V_{j - 1})}, c / m)`, with V the variance so far, make the bound
adapt to the variance: the error is about :math:`\sqrt{2 V \log(1 / \alpha) / n}`, and at least about
:math:`m \log(1 / \alpha) / (c n)` for a mean m.

References:
    | Estimating Means of Bounded Random Variables by Betting (Waudby-Smith and Ramdas, 2024), https://arxiv.org/abs/2010.09686
"""

__all__ = ["mean_lower"]

import math

import numpy as np

from rdc.certify.clopper_pearson import check_alpha

CAUTION = 0.9  # c


def mean_lower(values: np.ndarray, alpha: float) -> np.ndarray:
    """Lower bounds for means, each too high with probability at most ``alpha``.

    Arguments:
        values: Independent numbers in [0, 1] with one mean along the first axis, ``(n, ...)``; further axes are further means.
        alpha: Probability of error of each bound; ``1 - mean_lower(1 - values, alpha)`` is an upper bound.

    Returns:
        Bounds ``(...)`` in [0, 1].

    Raises:
        ValueError: if a number is outside [0, 1] or there is none.
    """
    check_alpha(alpha)
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 0 or len(x) == 0 or not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError("a bound for a mean needs at least one value, and all of them in [0, 1]")
    stakes, threshold = predictable_stakes(x, alpha), -math.log(alpha)
    low, high = np.zeros(x.shape[1:]), x.mean(axis=0)
    for _ in range(40):
        middle = (low + high) / 2
        capped = np.minimum(stakes, CAUTION / np.maximum(middle, 1e-300))
        rejected = np.log1p(capped * (x - middle)).cumsum(axis=0).max(axis=0) >= threshold
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return low


def predictable_stakes(x: np.ndarray, alpha: float) -> np.ndarray:
    """The stakes before they are capped: each from the numbers before it, ``(n, ...)``."""
    n = len(x)
    i = np.arange(1, n + 1).reshape(-1, *[1] * (x.ndim - 1))
    mean = (0.5 + x.cumsum(axis=0)) / (i + 1)
    variance = (0.25 + ((x - mean) ** 2).cumsum(axis=0)) / (i + 1)
    before = np.concatenate([np.full_like(x[:1], 0.25), variance[:-1]])
    return np.sqrt(2 * -math.log(alpha) / (n * before))
