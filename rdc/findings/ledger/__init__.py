"""Where the papers and their released code differ, as data, and what each difference is worth here.

An :class:`Entry` says what the paper states, what the released code does, which argument of ours chooses between the two, and
what was measured: an :class:`Effect` of two rows of stored results, or why there is none. *As released* means what the code does
at the commit that was read; it does not say that this code gave the published number.
"""

__all__ = ["COMMITS", "SECTIONS", "Effect", "Entry", "effect", "entries", "pair", "tally"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rdc.findings.evidence import Evidence, compared
from rdc.findings.side import Side, rate, rows_of
from rdc.runs.verdict import Comparison, Means, Verdict, counts, decide

#: The code that was read, by the letter of its paper: repository, commit and its date.
COMMITS: Mapping[str, tuple[str, str, str]] = {
    "RDC": ("huanranchen/DiffusionClassifier", "8a82504", "2025-03-07"),
    "NDC": ("huanranchen/NoisedDiffusionClassifiers", "410b09f", "2024-02-02"),
    "Guidance": ("bahjat-kawar/enhancing-diffusion-robust", "9d27f33", "2023-04-17"),
}
#: The parts of the ledger, by the prefix of their ids.
SECTIONS: Mapping[str, str] = {
    "P": "Which code belongs to which number",
    "DC": "The diffusion classifier",
    "OPT": "The optimal classifier",
    "LM": "Likelihood maximisation",
    "ATT": "Attacks and evaluation",
    "MH": "Multi-head diffusion",
    "EXP": "Other experiments",
    "NDC": "Noised diffusion classifiers",
    "LIP": "The Lipschitz certificate",
    "GUI": "Guidance",
}


@dataclass(frozen=True)
class Effect:
    """Two measurements and what they are called: ``before`` as the one source says, ``after`` as the other does."""

    before: tuple[str, Side]
    after: tuple[str, Side]


@dataclass(frozen=True)
class Entry:
    """One difference.

    Attributes:
        id: Letters of the section and number.
        size: ``H`` or ``M``: how much it can move a published number, or hinder who runs the code again (high, medium).
        title: What it is about.
        paper: What the paper states, and where.
        code: What the released code does, and where.
        switch: The argument of ours that chooses; empty if there is none.
        effects: What was measured.
        note: What settles it besides, or why nothing was measured.
        page: Page of the book that treats it.
    """

    id: str
    size: str
    title: str
    paper: str
    code: str
    switch: str = ""
    effects: tuple[Effect, ...] = ()
    note: str = ""
    page: str = ""


def entries() -> dict[str, Entry]:
    """Return all entries by their id, in order."""
    from rdc.findings.ledger import attacks, certified, classifiers, guidance, maximisation

    parts = (classifiers.ENTRIES, maximisation.ENTRIES, attacks.ENTRIES, certified.ENTRIES, guidance.ENTRIES)
    return {entry.id: entry for part in parts for entry in part}


def effect(one: Effect, folder: str | Path | None = None) -> str:
    """Return what was measured in a sentence: both numbers, how many images, the difference and its 95 % interval.

    Images of both sides are compared as pairs; where a record has counts alone, as two samples; where it has a mean alone, the
    two means stand without an interval. A side that was not measured says by which command it is.

    Arguments:
        one: The two measurements.
        folder: Where the results are; by default those of the book.
    """
    (first, a), (second, b) = one.before, one.after
    if verdict_of := difference(a, b, folder):
        verdict, (left, right) = verdict_of
        low, high = verdict.interval
        if a.mean:
            return f"{first} {left}, {second} {right}; difference {-verdict.value:+.3g} [{-high:+.3g}, {-low:+.3g}]"
        points = [f"{round(-100 * value):+d}" for value in (verdict.value, high, low)]
        return f"{first} {left}, {second} {right}; difference {points[0]} points [{points[1]}, {points[2]}]"
    left, right = mean(a, folder), mean(b, folder)
    if left and right:
        return f"{first} {left}, {second} {right}, without an interval"
    name, side = one.after if rows_of(a, folder) else one.before
    return f"{name} not measured yet, `rdc experiment run {side.experiment}`"


def pair(entry: str, before: str, after: str, words: tuple[str, str], outcome: str = "robust", **more: str) -> Effect:
    """Return two rows of the experiment *ledger*, by their sides, and what they are called."""
    sides = (Side("ledger", {"entry": entry, "side": side, **more}, outcome) for side in (before, after))
    first, second = zip(words, sides, strict=True)
    return Effect(first, second)


def difference(a: Side, b: Side, folder: str | Path | None) -> tuple[Verdict, tuple[str, str]] | None:
    """Return the difference of two sides and the numbers of each in words; None if a side has no outcomes."""
    found = compared(Evidence(a, b), folder)
    if found is None and (left := tally(a, folder)) and (right := tally(b, folder)):
        found = Comparison(left, right), ()
    if found is None:
        return None
    comparison, _ = found
    words = tuple(in_words(side) for side in (comparison.a, comparison.b))
    return decide(comparison.a, comparison.b), (words[0], words[1])


def in_words(rate: object) -> str:
    """Return counts or a mean in words."""
    if isinstance(rate, Means):
        return f"{sum(rate.values) / len(rate.values):.3g} (mean of {len(rate.values)})"
    k, n = counts(rate)  # type: ignore[arg-type]
    return f"{k} of {n}"


def tally(side: Side, folder: str | Path | None = None) -> tuple[int, int] | None:
    """Return how many images of a side are right, of how many; from counts where a record has no outcome of each image."""
    if (found := rate(side, folder)) is not None:
        return found.correct, found.n
    rows = rows_of(side, folder)
    if len(rows) != 1 or any(side.outcome not in line.counts for line in rows[0].lines.values()):
        return None
    accuracy = rows[0].accuracy(side.outcome)
    return accuracy.correct, accuracy.n


def mean(side: Side, folder: str | Path | None) -> str:
    """Return a mean over the images of one row in words; empty if it was not measured."""
    rows = rows_of(side, folder)
    value = rows[0].mean(side.outcome) if len(rows) == 1 else None
    written = "" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{written} (mean of {rows[0].n} images)" if written else ""
