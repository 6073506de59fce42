r"""Early stopping that keeps the guarantee: lower bounds for a probability that may be looked at again and again.

A bound of Clopper and Pearson that is computed after every batch, until it is high enough, is wrong far more often than
alpha. Two ways out, by name:

| ``sequence``  A confidence sequence. With S successes and F failures the mixture of likelihood ratios

.. math::
    M_n(p) = \frac{\int_p^1 q^{a + S - 1} (1 - q)^{b + F - 1} dq}{p^S (1 - p)^F \int_p^1 q^{a - 1} (1 - q)^{b - 1} dq}
           = \frac{B(a + S, b + F)\, \bar I_p(a + S, b + F)}{B(a, b)\, \bar I_p(a, b)\, p^S (1 - p)^F}

(:math:`\bar I = 1 - I` the upper tail of the beta distribution) is a supermartingale of mean at most 1 whenever the true
probability is at most p, since for every q > p the ratio gains at most 1 on average. By Ville's inequality it ever reaches 1 /
alpha with probability at most alpha. So the smallest p with :math:`M_n(p) < 1 / \alpha` is a lower bound at all n at once.

| ``split``     Clopper-Pearson at looks j = 1, 2, ... of a geometric schedule, with :math:`\alpha_j = \alpha / (j (j + 1))`,
                which sum to alpha

Stopping because a target cannot be reached any more, or will hardly be, claims nothing and costs nothing of alpha.

References:
    | Statistical Methods Related to the Law of the Iterated Logarithm (Robbins, 1970), https://doi.org/10.1214/aoms/1177696786
    | Confidence Sequences for Mean, Variance, and Median (Darling and Robbins, 1967), https://doi.org/10.1073/pnas.58.1.66
"""

__all__ = ["STOPPINGS", "Plan", "log_mixture", "sequence_lower", "split_alpha"]

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import betainc, betaincc, betaln

from rdc.certify.clopper_pearson import check_alpha, clopper_pearson

STOPPINGS = ("sequence", "split")
A, B = 1.0, 0.5  # prior of the mixture: most of its mass where nearly all draws agree
RATIO = 1.5  # of two looks of ``split``
STEP, GROWTH = 16, 0.05  # of the looks of ``sequence``


def log_mixture(k: Any, n: Any, p: Any, a: float = A, b: float = B) -> Any:
    """``log M_n(p)`` after k successes in n draws, for the hypothesis that the probability is at most p.

    Arguments:
        k: Successes; arrays broadcast.
        n: Draws, at least 0.
        p: Tested probability in (0, 1).
        a: First parameter of the beta prior, which is cut off below p.
        b: Second parameter.
    """
    k, n, p = (np.asarray(v, dtype=float) for v in (k, n, p))
    s, f = a + k, b + n - k
    tails = np.log(np.maximum(betaincc(s, f, p), 1e-300)) - np.log(betaincc(a, b, p))
    return betaln(s, f) - betaln(a, b) - k * np.log(p) - (n - k) * np.log1p(-p) + tails


def sequence_lower(k: Any, n: Any, alpha: float, a: float = A, b: float = B) -> Any:
    """Lower bound that holds at all n at once with probability ``1 - alpha``: the smallest p with ``M_n(p) < 1 / alpha``.

    ``log M`` falls in p below k / n, where the bound lies: bisection, from the side on which p is rejected.

    >>> round(sequence_lower(9900, 10_000, 0.001), 5)
    0.98512
    """
    check_alpha(alpha)
    k, n = np.broadcast_arrays(np.asarray(k, dtype=float), np.asarray(n, dtype=float))
    if not (np.all(k >= 0) and np.all(k <= n)):
        raise ValueError(f"counts must satisfy 0 <= k <= n, got k = {k}, n = {n}")
    low, high = np.zeros(k.shape), np.minimum(k / np.maximum(n, 1), 1 - 1e-16)
    for _ in range(60):
        middle = (low + high) / 2
        rejected = (middle > 0) & (log_mixture(k, n, np.clip(middle, 1e-300, 1 - 1e-16), a, b) >= -math.log(alpha))
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return float(low) if low.ndim == 0 else low


def split_alpha(alpha: float, look: Any) -> Any:
    """Share of alpha of look 1, 2, ...: ``alpha / (j (j + 1))``; the shares of all looks sum to alpha."""
    return alpha / (np.asarray(look) * (np.asarray(look) + 1.0))


@dataclass(frozen=True)
class Plan:
    """What is looked at, and when to stop, for the question whether a probability is at least ``p``; fixed before any draw.

    All methods take arrays of counts as well as numbers. ``look`` is the position in :attr:`looks`, from 0.

    Arguments:
        stopping: ``sequence`` or ``split``.
        n: Largest number of draws.
        p: The probability to be reached, in [1/2, 1).
        alpha: Probability of claiming it wrongly.
        give_up: Level at which too many failures end the draws: a bound for the probability of that alone if the probability is
            ``p`` or more. It does not count ends where no way is left; 0 stops only there.

    Raises:
        ValueError: for a value out of range, or if n draws cannot reach ``p`` even if all succeed.
    """

    stopping: str
    n: int
    p: float
    alpha: float
    give_up: float = 0.01

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.stopping not in STOPPINGS:
            raise ValueError(f"unknown stopping {self.stopping!r}; there are {', '.join(STOPPINGS)}")
        if not (self.n >= 1 and 0.5 <= self.p <= 1 and 0 <= self.give_up < 1):
            raise ValueError(f"n must be positive, p in [1/2, 1] and give_up in [0, 1); got {self.n}, {self.p}, {self.give_up}")
        if self.p == 1 or self.hopeless(0, -1):
            need = f"about {self.fewest}" if self.p < 1 else "more draws than there can be"
            raise ValueError(f"{self.n} draws that all succeed do not reach the target at alpha {self.alpha}; it takes {need}")

    @cached_property
    def fewest(self) -> int:
        """The fewest draws, all successful, that reach ``p``."""
        if self.stopping == "split":
            return math.ceil(math.log(self.alpha / 2) / math.log(self.p))
        low, high = 1, 2
        while log_mixture(high, high, self.p) < -math.log(self.alpha):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if log_mixture(middle, middle, self.p) >= -math.log(self.alpha) else (middle, high)
        return high

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Numbers of draws at which one looks, increasing, the last one n."""
        if self.stopping == "split":
            first = min(self.fewest, self.n)
            steps = max(1, math.floor(math.log(self.n / first) / math.log(RATIO))) if first < self.n else 0
            return tuple(sorted({round(first * (self.n / first) ** (j / max(steps, 1))) for j in range(steps + 1)}))
        found, at = [], 0
        while at < self.n:
            at = min(self.n, at + max(STEP, math.ceil(GROWTH * at)))
            found.append(at)
        return tuple(found)

    def lower(self, k: Any, look: int) -> Any:
        """Lower bound for the probability, valid at all looks at once, from k successes at a look."""
        if self.stopping == "split":
            return clopper_pearson(k, self.looks[look], float(split_alpha(self.alpha, look + 1)))
        return sequence_lower(k, self.looks[look], self.alpha)

    def met(self, k: Any, look: int) -> Any:
        """Whether the bound is at least ``p``."""
        return self._met(k, np.asarray(self.looks)[look], look)

    def _met(self, k: Any, n: Any, look: Any) -> Any:
        """The same without computing the bound: is ``p`` itself rejected, or k that improbable under ``p``?"""
        k = np.asarray(k)
        if self.stopping == "sequence":
            return log_mixture(k, n, self.p) >= -math.log(self.alpha)
        tail = np.where(k > 0, betainc(np.maximum(k, 1), n - k + 1, self.p), 1.0)  # P(Bin(n, p) >= k)
        return tail <= split_alpha(self.alpha, np.asarray(look) + 1)

    def hopeless(self, k: Any, look: int) -> Any:
        """Whether no later look can be met, even if all draws still to come succeed.

        Each success multiplies ``M_n(p)`` by the posterior mean of q > p over p, so that of ``sequence`` the last look decides.
        """
        ahead = np.arange(look + 1, len(self.looks))
        ahead = ahead[-1:] if self.stopping == "sequence" else ahead
        n = np.asarray(self.looks)[ahead]
        now = self.looks[look] if look >= 0 else 0
        later = np.asarray(k)[..., None] + (n - now)
        return ~np.any(self._met(later, n, ahead), axis=-1)

    def futile(self, k: Any, look: int) -> Any:
        """Whether to give up: no way is left, or failures are so many that p or more is rejected at level ``give_up``."""
        stop = self.hopeless(k, look)
        if self.give_up == 0:
            return stop
        n = self.looks[look]
        return stop | (log_mixture(n - np.asarray(k), n, 1 - self.p, B, A) >= -math.log(self.give_up))
