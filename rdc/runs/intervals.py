r"""Confidence intervals of the difference of two rates, by inverting a score test.

References:
    | Equivalence test and confidence interval for the difference in proportions for the paired-sample design (Tango, 1998)
    | Interval estimation for the difference between independent proportions (Newcombe, 1998)
"""

__all__ = ["newcombe", "tango"]

import math

from scipy.optimize import brentq
from scipy.stats import binomtest, norm

LEVEL = 0.05
BESIDE = 1e-9  # off the estimate, where the score is 0 by 0 if no images are left that decide


def tango(only_a: int, only_b: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    r"""Return the interval of the difference :math:`\Delta` of two rates on the same images, by their score test.

    It holds the :math:`\Delta` for which

    .. math:: |a - b - n \Delta| \le z \sqrt{n (2 \tilde q + \Delta (1 - \Delta))},

    where :math:`\tilde q` is the likeliest rate of images that only the second gets right, given :math:`\Delta`.

    Arguments:
        only_a: Images that only the first gets right, :math:`a`.
        only_b: Images that only the second gets right, :math:`b`.
        n: Images.
        level: One minus the confidence.
    """
    z, best = float(norm.isf(level / 2)), (only_a - only_b) / n

    def excess(difference: float) -> float:
        rate = likeliest(only_a, only_b, n, difference)
        spread = n * (2 * rate + difference * (1 - difference))
        return (only_a - only_b - n * difference) ** 2 - z * z * max(spread, 0.0)

    def end(furthest: float) -> float:
        near = best + math.copysign(BESIDE, furthest - best)
        if excess(furthest) <= 0:
            return furthest
        return best if excess(near) >= 0 else float(brentq(excess, near, furthest))

    return end(-1.0), end(1.0)


def likeliest(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Return the likeliest rate of images that only the second gets right, if that of the first is larger by ``difference``."""
    linear = (2 * n - only_a + only_b) * difference - only_a - only_b
    root = math.sqrt(max(linear**2 + 8 * n * only_b * difference * (1 - difference), 0.0))
    return max((root - linear) / (4 * n), 0.0, -difference)


def newcombe(k_a: int, n_a: int, k_b: int, n_b: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of the difference of two independent rates from their Wilson intervals (Newcombe's method 10)."""
    a, b = k_a / n_a, k_b / n_b
    (la, ua), (lb, ub) = (binomtest(k, n).proportion_ci(1 - level, method="wilson") for k, n in ((k_a, n_a), (k_b, n_b)))
    return (a - b) - math.hypot(a - la, ub - b), (a - b) + math.hypot(ua - a, b - lb)
