"""Counts and repetitions with their intervals, and whether settings matter more than a seed does.

A setting that was tried once says nothing of what *another run of the same* would give. For that one setting is run with several
seeds, and three questions are asked:

| :func:`ratio_of_spreads`  do the settings differ more than the seeds? F test of two variances
| :func:`main_effects`      do the means of rows, or of columns, of a table differ? two-way analysis without repetition
| :func:`beside`            does one setting lie outside of what seeds do? prediction interval of Student's t
"""

__all__ = ["Accuracy", "Interval", "auroc", "beside", "main_effects", "ratio_of_spreads", "repeated"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, f, norm, t


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


@dataclass(frozen=True)
class Interval:
    """A value, the ends of its interval, and the number of repetitions or resamples behind it.

    >>> print(Interval(1.5, 1.25, 1.75, 4))
    1.500 [1.250, 1.750]
    """

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """Return the three numbers, each in the given format."""
        value, low, high = (format(v, spec or ".3f") for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


def repeated(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of independent repetitions (other seeds) and its interval by Student's t.

    Raises:
        ValueError: if there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two repetitions, got {len(values)}")
    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf((1 + level) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def beside(value: float, seeds: Sequence[float], level: float = 0.95) -> Interval:
    """Return one run less the mean of several with other seeds, with the interval of prediction.

    An interval that holds 0 says that another seed of the same might have given this value. It is that of Student's two-sample
    test with one value in the first sample.
    """
    n, difference = len(seeds), value - float(np.mean(seeds))
    half = float(t.ppf((1 + level) / 2, n - 1)) * float(np.std(seeds, ddof=1)) * math.sqrt(1 + 1 / n)
    return Interval(difference, difference - half, difference + half, n)


@dataclass(frozen=True)
class Ratio:
    """Two standard deviations, their ratio with its interval, and the p of "the first is larger" (F test, one-sided)."""

    cells: float
    seeds: float
    interval: Interval
    p: float
    degrees: tuple[int, int]


def ratio_of_spreads(cells: Sequence[float], seeds: Sequence[float], level: float = 0.95) -> Ratio:
    """Return how much settings differ beside seeds of one setting.

    All settings may share a seed; then their spread has less of chance in it than that of the seeds, and a ratio below 1 is
    possible.

    Raises:
        ValueError: if a set has fewer than two values, or the seeds do not differ.
    """
    if min(len(cells), len(seeds)) < 2 or not np.std(seeds) > 0:
        raise ValueError(f"a spread needs two values, and seeds that differ; got {len(cells)} cells and seeds {list(seeds)}")
    a, b = float(np.std(cells, ddof=1)), float(np.std(seeds, ddof=1))
    degrees = len(cells) - 1, len(seeds) - 1
    high, low = (float(v) for v in f.ppf([(1 + level) / 2, (1 - level) / 2], *degrees) ** 0.5)
    ratio = Interval(a / b, a / b / high, a / b / low, len(cells) + len(seeds))
    return Ratio(a, b, ratio, float(f.sf((a / b) ** 2, *degrees)), degrees)


@dataclass(frozen=True)
class Margin:
    """Means of the rows (or columns) of a table less the mean of all, with their intervals and the p of no difference."""

    effects: tuple[Interval, ...]
    F: float
    p: float


def main_effects(table: Sequence[Sequence[float]], level: float = 0.95) -> tuple[Margin, Margin]:
    """Return rows and columns of a table with one value a cell.

    The error is what an additive model leaves, ``(R - 1)(C - 1)`` degrees of freedom: interaction and chance together.
    """
    values: Any = np.asarray(table, dtype=float)
    mean, (r, c) = values.mean(), values.shape
    rows, columns = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    left, degrees = values - mean - rows[:, None] - columns[None], (r - 1) * (c - 1)
    error, found = float((left**2).sum()) / degrees, []
    for effects, size in ((rows, c), (columns, r)):
        count = len(effects)
        half = float(t.ppf((1 + level) / 2, degrees)) * math.sqrt(error * (1 / size - 1 / values.size))
        ratio = size * float((effects**2).sum()) / (count - 1) / error
        each = tuple(Interval(float(e), float(e) - half, float(e) + half, size) for e in effects)
        found.append(Margin(each, ratio, float(f.sf(ratio, count - 1, degrees))))
    return found[0], found[1]


def auroc(above: Sequence[float], below: Sequence[float], paired: bool = False, level: float = 0.95) -> Interval:
    """Return how often a number of ``above`` exceeds one of ``below``, equal ones counted half, with its interval.

    The variance is that of DeLong et al. (1988), https://doi.org/10.2307/2531595, on the scale of log-odds. Where the two are
    perfectly apart it is 0, and the interval is Wilson's for that many of that many.

    Arguments:
        above: Scores of what is to be found.
        below: Scores of the rest.
        paired: Whether the two are of the same images, in the same order.
        level: Of the interval.

    Raises:
        ValueError: with fewer than two numbers on a side, or numbers of different images.
    """
    a, b = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if min(len(a), len(b)) < 2 or (paired and len(a) != len(b)):
        raise ValueError(f"an AUROC needs two numbers a side, and as many if they are paired; got {len(a)} and {len(b)}")
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    value, rows, columns = float(wins.mean()), wins.mean(axis=1), wins.mean(axis=0)
    if value in (0.0, 1.0):
        n = min(len(a), len(b))
        ends = binomtest(round(value * n), n).proportion_ci(level, method="wilson")
        return Interval(value, float(ends.low), float(ends.high), n)
    variance = (
        np.var(rows + columns, ddof=1) / len(a) if paired else np.var(rows, ddof=1) / len(a) + np.var(columns, ddof=1) / len(b)
    )
    half = float(norm.isf((1 - level) / 2)) * math.sqrt(variance) / (value * (1 - value))
    middle = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(middle + sign * half))) for sign in (-1, 1))
    return Interval(value, low, high, min(len(a), len(b)))
