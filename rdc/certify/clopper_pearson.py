r"""From counts to a radius: the exact binomial bound and the radius of a smoothed classifier.

If a class is answered with probability at least p > 1/2 under Gaussian noise of standard deviation sigma, then the smoothed
classifier answers it everywhere within L2 distance

.. math:: R = \sigma\, \Phi^{-1}(p)

(Cohen et al., 2019, Theorem 1 with :math:`\overline{p_B} = 1 - \underline{p_A}`). From k of n independent draws the one-sided
bound of Clopper and Pearson is the p at which k or more successes have probability alpha: the alpha quantile of
:math:`\mathrm{Beta}(k, n - k + 1)`. It holds for an n that was fixed beforehand.

References:
    | Certified Adversarial Robustness via Randomized Smoothing (Cohen et al., 2019), https://arxiv.org/abs/1902.02918
    | The Use of Confidence or Fiducial Limits (Clopper and Pearson, 1934), https://doi.org/10.1093/biomet/26.4.404
"""

__all__ = ["check_alpha", "clopper_pearson", "radius", "radius_from_counts", "reach"]

from typing import Any

import numpy as np
from scipy.stats import beta, norm


def check_alpha(alpha: float) -> None:
    """Refuse an alpha outside (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")


def clopper_pearson(k: Any, n: Any, alpha: float) -> Any:
    """One-sided lower bound for a probability from k successes in n draws: too high with probability at most ``alpha``.

    Arguments:
        k: Successes, a number or an array.
        n: Draws, a number or an array that broadcasts with ``k``.
        alpha: Probability of error.

    Returns:
        A float for numbers, an array otherwise, in [0, 1); 0 where k = 0 and ``alpha ** (1 / n)`` where k = n.

    Raises:
        ValueError: unless ``0 <= k <= n``, ``n >= 1`` and ``0 < alpha < 1``.

    >>> round(clopper_pearson(9900, 10_000, 0.001), 6)
    0.986531
    """
    check_alpha(alpha)
    k, n = np.asarray(k), np.asarray(n)
    if not (np.all(k >= 0) and np.all(k <= n) and np.all(n >= 1)):
        raise ValueError(f"counts must satisfy 0 <= k <= n and n >= 1, got k = {k}, n = {n}")
    low = np.where(k == 0, 0.0, beta.ppf(alpha, np.maximum(k, 1), n - k + 1))
    return float(low) if low.ndim == 0 else low


def radius(p_low: Any, sigma: float) -> Any:
    """``sigma Phi^-1(p)``, in the units of sigma; 0 where ``p <= 1/2``, where nothing is certified."""
    p_low = np.asarray(p_low, dtype=float)
    found = np.where(p_low > 0.5, sigma * norm.ppf(np.maximum(p_low, 0.5)), 0.0)
    return float(found) if found.ndim == 0 else found


def radius_from_counts(k: Any, n: Any, sigma: float, alpha: float) -> Any:
    """Certified L2 radius of k of n draws, n fixed beforehand; 0 where the classifier abstains, ``p_low <= 1/2``.

    Counts must be counts: multiplying k and n by ten claims draws that were not made, and a bound that does not hold.

    >>> round(radius_from_counts(10_000, 10_000, sigma=0.25, alpha=0.001), 4)
    0.7996
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    return radius(clopper_pearson(k, n, alpha), sigma)


def reach(n: int, sigma: float, alpha: float) -> float:
    """The largest radius that n draws can certify, when all of them agree: ``sigma Phi^-1(alpha^(1/n))``.

    >>> [round(reach(n, 1.0, 0.001), 2) for n in (100, 1000, 10_000, 100_000)]
    [1.5, 2.46, 3.2, 3.81]
    """
    return radius_from_counts(n, n, sigma, alpha)
