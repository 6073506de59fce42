r"""The one rule by which a claim is decided, and nothing else decides one.

A claim compares two rates on the *same* images (paired), two rates on different images, or a rate with a bound; or the same with
means of numbers (:class:`Means`), one a repetition, in the place of rates. With the
difference :math:`d` that is claimed to be positive, and its interval at the level :math:`1 - \alpha`:

| *holds*          the exact test rejects :math:`d \le 0` in favour of the claim, two-sided :math:`p < \alpha`; with a ``bound``
                   the whole interval lies above it; with ``equal`` it lies within :math:`\pm` that margin
| *does not hold*  the same on the other side: the opposite is significant; with a ``bound`` the whole interval lies below it,
                   whatever the sign; with ``equal`` it lies outside
| *refuted*        neither, but the claimed size ``effect`` lies beyond the interval: there may be an effect, not this one
| *not decided*    the rest, and every comparison with an attack that broke nothing, unless the other side is another attack on
                   the same defence, which broke images

The tests: McNemar's exact test (a sign test of the images on which the two differ), and Fisher's exact test. The intervals:
Tango's score interval for paired differences, Newcombe's hybrid score for unpaired ones, and Clopper and Pearson's for a rate
(:mod:`rdc.runs.intervals`). An exact test is stricter than the interval beside it, which may leave out 0 all the same. Means
have Student's test and interval: of the differences, repetition by repetition, where these are paired, else of two samples with
one variance, so that one run can be compared with several seeds of another (the interval is that of prediction).
Several comparisons of one claim are corrected together by Holm (:func:`decide_all`), tests and intervals alike.

References:
    | Note on the sampling error of the difference between correlated proportions (McNemar, 1947)
    | A simple sequentially rejective multiple test procedure (Holm, 1979)
"""

__all__ = ["OUTCOMES", "Comparison", "Means", "Verdict", "decide", "decide_all"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom, binomtest, fisher_exact
from scipy.stats import t as student

from rdc.runs.intervals import newcombe, tango

#: What a comparison may say of a claim.
OUTCOMES = ("holds", "does not hold", "refuted", "not decided")
LEVEL = 0.05


@dataclass(frozen=True)
class Means:
    """Numbers of repetitions (seeds, or images), of which the mean is compared.

    Attributes:
        values: One number a repetition.
        paired: Whether those of the other side are of the same repetitions, in the same order.
    """

    values: Sequence[float]
    paired: bool = True


#: One outcome an image, or ``(k, n)``; or numbers.
Rate = Sequence[bool] | tuple[int, int] | Means


@dataclass(frozen=True)
class Verdict:
    """What a comparison says of a claim.

    Attributes:
        outcome: One of :data:`OUTCOMES`.
        p: Two-sided p value, not corrected: of the exact test, or, where the interval decides, the level at which it begins to.
        value: The rate, or the difference of the rates.
        interval: Its confidence interval at the level that the correction asks for.
        reason: Why, in words.
    """

    outcome: str
    p: float
    value: float
    interval: tuple[float, float]
    reason: str

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.outcome}: {self.value:+.3f} [{low:+.3f}, {high:+.3f}], p = {self.p:.2g} ({self.reason})"


@dataclass(frozen=True)
class Comparison:
    """A claim about two rates, or about one.

    Arguments:
        a: The rate that is claimed to be larger: one outcome an image, or ``(k, n)``.
        b: The other rate, of the same form; outcomes are of the same images. None to compare ``a`` with ``bound``.
        bound: The claim is ``a - b > bound``, or ``a > bound``; 0 by default.
        equal: The claim is ``|a - b| <= equal`` in the place of it.
        effect: The size of the difference (of the rate) that the source states.
        broken: Images that the attack behind the comparison broke, if there is one; one that broke none decides nothing.

    Raises:
        ValueError: for outcomes of different images, counts that are none, or claims that exclude each other.
    """

    a: Rate
    b: Rate | None = None
    bound: float | None = None
    equal: float | None = None
    effect: float | None = None
    broken: int | None = None

    def __post_init__(self) -> None:
        numbers = isinstance(self.a, Means) or isinstance(self.b, Means)
        if numbers:
            _check_means(self.a, self.b)
        for rate in (self.a, self.b):
            if rate is not None and not numbers:
                k, n = counts(rate)
                if not 0 <= k <= n or n < 1:
                    raise ValueError(f"a rate is outcomes, or k of n with 0 <= k <= n and n >= 1; got {k} of {n}")
        if self.b is None and (self.bound is None or self.equal is not None):
            raise ValueError("one rate is compared with a bound; give bound=, or a second rate")
        if self.b is not None and not numbers and paired(self.a) != paired(self.b):
            raise ValueError("give both rates as outcomes of the same images, or both as counts")
        if self.b is not None and not numbers and paired(self.a) and counts(self.a)[1] != counts(self.b)[1]:
            raise ValueError(f"outcomes of the same images are needed, got {counts(self.a)[1]} and {counts(self.b)[1]}")
        if self.equal is not None and (self.bound is not None or not self.equal > 0):
            raise ValueError("equal is a positive margin, and comes without a bound")


def decide(
    a: Rate,
    b: Rate | None = None,
    *,
    bound: float | None = None,
    equal: float | None = None,
    effect: float | None = None,
    broken: int | None = None,
    level: float = LEVEL,
) -> Verdict:
    """Decide one claim; the arguments are those of :class:`Comparison`.

    >>> print(decide([True] * 9 + [False], [False] * 8 + [True, False]).outcome)
    holds
    >>> print(decide((15, 32), bound=0.72, effect=0.72).outcome)
    does not hold
    """
    return _decided(Comparison(a, b, bound, equal, effect, broken), level)


def decide_all(comparisons: Sequence[Comparison], level: float = LEVEL) -> tuple[Verdict, list[Verdict]]:
    """Decide a claim that consists of several comparisons, corrected together by Holm, and each of them.

    The claim does not hold if one comparison does not; otherwise it is refuted if one is; otherwise it is open if one is; and it
    holds if all do.

    Raises:
        ValueError: if there is no comparison.
    """
    if not comparisons:
        raise ValueError("a claim needs a comparison")
    alone = [_decided(c, level) for c in comparisons]
    order, found, open_ = sorted(range(len(alone)), key=lambda i: alone[i].p), list(alone), True
    for rank, i in enumerate(order):
        share = level / (len(alone) - rank) if open_ else level / len(alone)
        found[i] = _decided(comparisons[i], share)
        open_ = open_ and found[i].outcome in ("holds", "does not hold")
    outcomes = [v.outcome for v in found]
    worst = next(o for o in ("does not hold", "refuted", "not decided", "holds") if o in outcomes)
    telling = found[outcomes.index(worst)]
    words = ", ".join(f"{outcomes.count(o)} {o}" for o in OUTCOMES if o in outcomes)
    return replace(telling, reason=f"{words} of {len(found)}; {telling.reason}" if found[1:] else telling.reason), found


def _decided(c: Comparison, level: float) -> Verdict:
    """One comparison at a level."""
    value, what, exact = _measured(c)
    interval = _interval(c, level)
    p = exact if exact is not None else _touching(c)
    if c.broken == 0:
        return Verdict("not decided", p, value, interval, "the attack broke nothing")
    outcome = _outcome(c, interval) if exact is None else "" if p >= level else "holds" if value > 0 else "does not hold"
    if not outcome:
        beyond = c.effect is not None and not interval[0] <= c.effect <= interval[1]
        outcome = "refuted" if beyond else "not decided"
    return Verdict(outcome, p, value, interval, what)


def _outcome(c: Comparison, interval: tuple[float, float]) -> str:
    """What an interval says of a claim with a bound or a margin; empty if nothing."""
    low, high = interval
    if c.equal is not None:
        return "holds" if -c.equal <= low and high <= c.equal else "does not hold" if low > c.equal or high < -c.equal else ""
    bound = c.bound or 0.0
    return "holds" if low > bound else "does not hold" if high < bound else ""


def _touching(c: Comparison) -> float:
    """The p value of a claim that is decided by its interval: the level at which the interval begins to decide, by bisection."""
    if c.b is None and not isinstance(c.a, Means):  # where the interval of Clopper and Pearson ends at the bound
        k, n = counts(c.a)
        return min(1.0, 2 * min(float(binom.sf(k - 1, n, c.bound)), float(binom.cdf(k, n, c.bound))))
    low, high = 1e-12, 1 - 1e-12
    if not _outcome(c, _interval(c, high)):
        return 1.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _outcome(c, _interval(c, middle)) else (middle, high)
    return high


def _measured(c: Comparison) -> tuple[float, str, float | None]:
    """Value, the numbers behind it in words, and the p value of the exact test; None if the interval decides."""
    by_interval = c.equal is not None or bool(c.bound)
    if isinstance(c.a, Means):
        value, error, degrees = _difference(c)
        p = 2 * float(student.sf(abs(value) / error, degrees)) if error else float(not value)
        return value, f"{len(c.a.values)} repetitions", None if by_interval else p
    k_a, n_a = counts(c.a)
    if c.b is None:
        return k_a / n_a, f"{k_a} of {n_a}", None
    k_b, n_b = counts(c.b)
    if paired(c.a):
        only_a, only_b = discordant(c)
        p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
        words = f"{only_a} right only in the first, {only_b} only in the second, of {n_a}"
        return (k_a - k_b) / n_a, words, None if by_interval else p
    p = float(fisher_exact([[k_a, n_a - k_a], [k_b, n_b - k_b]]).pvalue)
    return k_a / n_a - k_b / n_b, f"{k_a} of {n_a} against {k_b} of {n_b}", None if by_interval else p


def _interval(c: Comparison, level: float) -> tuple[float, float]:
    """The interval of the rate or the difference at ``1 - level``."""
    if isinstance(c.a, Means):
        value, error, degrees = _difference(c)
        half = float(student.isf(level / 2, degrees)) * error
        return value - half, value + half
    k_a, n_a = counts(c.a)
    if c.b is None:
        ends = binomtest(k_a, n_a).proportion_ci(1 - level, method="exact")
        return float(ends.low), float(ends.high)
    if paired(c.a):
        return tango(*discordant(c), n_a, level)
    return newcombe(k_a, n_a, *counts(c.b), level)


def _check_means(a: Rate, b: Rate | None) -> None:
    """Raise ValueError unless numbers can be compared: two of them, or paired ones, or one with several."""
    if not isinstance(a, Means) or not (b is None or isinstance(b, Means)):
        raise ValueError("numbers are compared with numbers, not with outcomes or counts")
    if b is not None and a.paired != b.paired:
        raise ValueError("both sides are of the same repetitions, or none is")
    if b is not None and a.paired and len(a.values) != len(b.values):
        raise ValueError(f"numbers of the same repetitions are needed, got {len(a.values)} and {len(b.values)}")
    sizes = [len(side.values) for side in (a, b) if side is not None]
    if min(sizes) < 1 or max(sizes) < 2:
        raise ValueError(f"a spread needs two numbers of a side, got {' and '.join(map(str, sizes))}")


def _difference(c: Comparison) -> tuple[float, float, int]:
    """Mean (difference) of numbers, its standard error, and the degrees of freedom."""
    a = np.asarray(c.a.values if isinstance(c.a, Means) else (), dtype=float)
    b = np.asarray(c.b.values, dtype=float) if isinstance(c.b, Means) else None
    if b is None or (isinstance(c.a, Means) and c.a.paired):
        d = a if b is None else a - b
        return float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d)), len(d) - 1
    degrees = len(a) + len(b) - 2
    pooled = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / degrees
    return float(a.mean() - b.mean()), math.sqrt(float(pooled) * (1 / len(a) + 1 / len(b))), degrees


def discordant(c: Comparison) -> tuple[int, int]:
    """How many images only the first, and only the second, gets right."""
    a, b = c.a, c.b or ()
    if isinstance(a, Means) or isinstance(b, Means):
        raise ValueError("numbers are not right or wrong")
    only_a = sum(bool(p) and not q for p, q in zip(a, b, strict=True))
    return only_a, only_a - counts(a)[0] + counts(b)[0]


def paired(rate: Rate) -> bool:
    """Whether a rate is given as outcomes, one an image, and not as counts."""
    return not (isinstance(rate, tuple) and len(rate) == 2 and not any(isinstance(v, bool) for v in rate))


def counts(rate: Rate) -> tuple[int, int]:
    """``(k, n)`` of a rate."""
    if isinstance(rate, Means):
        raise ValueError("numbers have no counts")
    return (sum(map(bool, rate)), len(rate)) if paired(rate) else (int(rate[0]), int(rate[1]))
