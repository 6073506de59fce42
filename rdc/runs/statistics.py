"""Counts with their intervals."""

__all__ = ["Accuracy"]

from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``n`` images, the fraction ``value``, and its Wilson 95 % interval ``[low, high]``.

    >>> print(Accuracy.of(90, 100))
    90/100 = 90.0 % [82.6, 94.5]
    """

    correct: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, n: int) -> "Accuracy":
        """Return the fraction and its interval, from counts."""
        interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
        return cls(correct, n, correct / n, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.correct}/{self.n} = {100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
