"""How many images, or repetitions, would decide a claim that is not decided, if rates and spreads stay as they are?

Every comparison is repeated as a whole, m times, and the rule of :mod:`rdc.runs.verdict` is asked again. It is an estimate from
what was seen, not a promise: rates of few images are themselves uncertain. Whoever adds images because a first look decided
nothing looks twice, and errs a little more often than the level of one test says; new images alone keep it.
"""

__all__ = ["MOST", "needed", "size"]

from collections.abc import Sequence
from dataclasses import replace

from rdc.runs.verdict import Comparison, Means, Rate, counts, decide_all, paired

MOST = 10_000  # images; whoever needs more than the whole test split shows an effect too small to matter


def needed(comparisons: Sequence[Comparison], most: int = MOST) -> int | None:
    """Return the smallest m for which the comparisons, each repeated m times, decide their claim.

    Arguments:
        comparisons: All comparisons of the claim.
        most: Images, or repetitions, that the largest of them may have.

    Returns:
        m, 1 for a claim that is decided; None if no m up to ``most`` images does it, as where an attack broke nothing.
    """
    largest = max(map(size, comparisons))
    low, high = 0, 1
    while not decides(comparisons, high):
        if high * largest >= most:
            return None
        low, high = high, min(2 * high, -(-most // largest))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(comparisons, middle) else (middle, high)
    return high


def size(comparison: Comparison) -> int:
    """Return how many images or repetitions a side has."""
    return len(comparison.a.values) if isinstance(comparison.a, Means) else counts(comparison.a)[1]


def decides(comparisons: Sequence[Comparison], times: int) -> bool:
    """Return whether the comparisons, each repeated some times, decide their claim."""
    larger = [replace(c, a=repeated(c.a, times), b=None if c.b is None else repeated(c.b, times)) for c in comparisons]
    return decide_all(larger)[0].outcome != "not decided"


def repeated(rate: Rate, times: int) -> Rate:
    """Return a rate of as many times the images, or repetitions, each as before."""
    if isinstance(rate, Means):
        return replace(rate, values=list(rate.values) * times)
    if paired(rate):
        return [bool(right) for right in rate] * times
    k, n = counts(rate)
    return k * times, n * times
