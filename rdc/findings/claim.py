"""A claim as data, and what the stored cells say of it by the one rule of :mod:`rdc.runs.verdict`.

A claim rests on comparisons (:class:`Evidence`) of two sides on the same images, or of one with a bound. A :class:`Side` is the
rows of an experiment whose words (``Row.about``) are the wanted ones: an image counts as right if it is right in *all* of them,
so that the rows of several attacks on one model are their union. Where a side says what its ``mean`` is of, numbers are compared
in the place of outcomes. A claim may instead be settled by a derivation: then it names
the test that checks it.
"""

__all__ = ["Claim", "Evidence", "Finding", "Proof", "Side", "judge", "outcomes", "rate"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rdc.experiments import experiment
from rdc.runs.needed import MOST, needed, size
from rdc.runs.record import book_folder
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store
from rdc.runs.verdict import Comparison, Means, Verdict, counts, decide_all, discordant

NOT_RUN = "not run"
ATTACK = ("attack", "gradient", "eot")  # words of an attack, not of a defence


@dataclass(frozen=True)
class Side:
    """Images and whether each is right (or, in general, whether an outcome is yes).

    Attributes:
        experiment: Name of an experiment.
        where: Words of its rows; a tuple stands for any of its members.
        outcome: Name of the outcome. A name that is not an outcome but a number for each image counts as yes above ``above``.
        above: For numbers.
        also: Another outcome that must be yes.
        mean: Compare means: over ``units`` (the repetitions or images that both sides have; each has the mean of its numbers in
            the rows), or over ``rows`` (each has the mean over its units; they are runs with other seeds, and not paired).
    """

    experiment: str
    where: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = "robust"
    above: float = 0.0
    also: str = ""
    mean: str = ""


@dataclass(frozen=True)
class Evidence:
    """A comparison: ``a`` is claimed to be larger than ``b``, or than ``bound``; the other arguments are those of ``decide``."""

    a: Side
    b: Side | None = None
    bound: float | None = None
    equal: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Proof:
    """A derivation that settles a claim, ``outcome``, and the test that checks it: ``tests/test_x.py::test_y``."""

    outcome: str
    test: str


@dataclass(frozen=True)
class Claim:
    """A statement of one of the papers.

    Attributes:
        id: Letter of the paper and number.
        place: Where it stands.
        text: What is claimed, in one sentence.
        how: By what it is judged, or why nothing was run.
        evidence: Comparisons that decide it together.
        proof: A derivation that settles it.
        page: The page of the book where it is treated.
        scale: Data and models behind the comparisons.
    """

    id: str
    place: str
    text: str
    how: str
    evidence: tuple[Evidence, ...] = ()
    proof: Proof | None = None
    page: str = ""
    scale: str = "Fashion-MNIST, 28x28"


@dataclass(frozen=True)
class Finding:
    """A claim with its verdict; the fields are those of the published list, see :func:`judge`."""

    claim: Claim
    verdict: str
    record: str
    n: int
    low: float | None
    high: float | None
    attack: str
    reason: str
    parts: tuple[Verdict, ...] = ()
    more: str = ""
    needed: int | None = None

    def entry(self) -> dict[str, Any]:
        """Return what is written to ``results/claims.json``."""
        c = self.claim
        sentence = f"{c.how[0].upper()}{c.how[1:]}: {self.reason}." + (f" {self.more}." if self.more else "")
        return {
            "id": c.id, "place": c.place, "claim": c.text, "verdict": self.verdict, "record": self.record, "n": self.n,
            "low": self.low, "high": self.high, "needed": self.needed, "scale": c.scale if c.evidence else "",
            "attack": self.attack, "sentence": sentence, "page": c.page,
        }  # fmt: skip


def judge(claim: Claim, folder: str | Path | None = None) -> Finding:
    """Return what is known of a claim.

    ``low`` and ``high`` bound the rate or the difference of the comparison that decides. Comparisons with rows that were not run
    are left out; without any the claim is *not run*. What is not decided has ``needed``, the images that would decide it if the
    rates stay as they are (:func:`rdc.runs.needed.needed`), unless more than ``MOST`` would be.

    Arguments:
        claim: The claim.
        folder: Where the results are; by default those of the book.
    """
    if claim.proof is not None:
        return Finding(claim, claim.proof.outcome, claim.proof.test, 0, None, None, "", "a derivation, which the test checks")
    made = [(one, found) for one in claim.evidence if (found := compared(one, folder)) is not None]
    if not made:
        return Finding(claim, NOT_RUN, "", 0, None, None, "", "no stored result decides it")
    verdict, parts = decide_all([comparison for _, (comparison, _) in made])
    decisive = [part.outcome for part in parts].index(verdict.outcome)
    comparison, attacks = made[decisive][1]
    names = dict.fromkeys(side.experiment for one, _ in made for side in (one.a, one.b) if side is not None)
    record = ", ".join(f"results/{name}.jsonl" for name in names)
    reason = counted(comparison) + (", and the attack broke nothing" if comparison.broken == 0 else "")
    if len(parts) > 1:
        alike = sum(part.outcome == verdict.outcome for part in parts)
        reason = f"in {alike} of {len(parts)} comparisons the verdict is '{verdict.outcome}', among them {reason}"
    low, high = verdict.interval
    open_ = verdict.outcome == "not decided"
    more, images = missing([found for _, (found, _) in made], comparison) if open_ else ("", None)
    return Finding(
        claim, verdict.outcome, record, size(comparison), low, high, ", ".join(attacks), reason, tuple(parts), more, images
    )  # fmt: skip


def missing(comparisons: Sequence[Comparison], decisive: Comparison) -> tuple[str, int | None]:
    """Return in words, and as a number of the decisive comparison, how many images would decide a claim that is not decided."""
    times, units = needed(comparisons), "repetitions" if isinstance(decisive.a, Means) else "images"
    if times is not None:
        n = times * size(decisive)
        number = f" ({n})" if len({size(c) for c in comparisons}) == 1 else ""
        return f"If these numbers stayed as they are, {times} times as many {units}{number} would decide it", n
    if any(c.broken == 0 for c in comparisons):
        return f"No number of {units} would decide it, because an attack broke nothing", None
    return f"If these numbers stayed as they are, {MOST} {units} would not decide it", None


def counted(comparison: Comparison) -> str:
    """Return the numbers behind a comparison in words."""
    if isinstance(comparison.a, Means):
        means = [float(np.mean(s.values)) for s in (comparison.a, comparison.b) if isinstance(s, Means)]
        return f"{' against '.join(f'{m:.3g}' for m in means)}, means of {len(comparison.a.values)}"
    (k, n), b = counts(comparison.a), comparison.b
    if b is None:
        return f"{k} of {n} images"
    only_a, only_b = discordant(comparison)
    return f"{k} against {counts(b)[0]} of {n} images, {only_a} right only in the first and {only_b} only in the second"


def compared(one: Evidence, folder: str | Path | None = None) -> tuple[Comparison, tuple[str, ...]] | None:
    """Return the comparison on the images that both sides have, and the attacks behind it; None if a side has none.

    An attack that broke nothing is no evidence, on either side. Where two attacks on one defence are compared, it is enough that
    one of them broke images, for then the other one is the weak one.
    """
    if one.a.mean:
        found = means(one, folder)
        return None if found is None else (Comparison(*found, one.bound, one.equal, one.effect), ())
    a, b = outcomes(one.a, folder), None if one.b is None else outcomes(one.b, folder)
    images = [i for i in a if b is None or i in b]
    if not images:
        return None
    sides = [side for side in (one.a, one.b) if side is not None]
    attacks = tuple(dict.fromkeys(name for side in sides for name in attacks_of(side, folder)))
    weakest = max if attacks_one_defence(one) else min
    broken = weakest((breaks(side, folder) for side in sides if attacks_of(side, folder)), default=None)
    right = [a[i] for i in images]
    other = None if b is None else [b[i] for i in images]
    return Comparison(right, other, one.bound, one.equal, one.effect, broken), attacks


def attacks_one_defence(one: Evidence) -> bool:
    """Return whether the sides of a comparison differ in their attack alone."""
    if one.b is None or one.a.experiment != one.b.experiment:
        return False
    a, b = ({k: v for k, v in side.where.items() if k not in ATTACK} for side in (one.a, one.b))
    return a == b


def means(one: Evidence, folder: str | Path | None = None) -> tuple[Means, Means | None] | None:
    """Return the numbers of both sides, of the repetitions that both have; None if a side has none."""
    a, b = numbers(one.a, folder), None if one.b is None else numbers(one.b, folder)
    if one.a.mean == "rows":
        return (Means(list(a.values()), False), None if b is None else Means(list(b.values()), False)) if a and b != {} else None
    shared = [i for i in a if b is None or i in b]
    other = None if b is None else Means([b[i] for i in shared])
    return (Means([a[i] for i in shared]), other) if len(shared) > 1 else None


def numbers(side: Side, folder: str | Path | None = None) -> dict[int, float]:
    """Return the number of each unit, mean over the rows, or of each row, mean over the units."""
    rows = rows_of(side, folder)
    if side.mean == "rows":
        return {i: of_row(found, side.outcome) for i, found in enumerate(rows)}
    parts = [{i: v for i, v in found.value(side.outcome).items() if v is not None} for found in rows]
    shared = [i for i in (parts[0] if parts else {}) if all(i in part for part in parts)]
    return {i: float(np.mean([part[i] for part in parts])) for i in shared}


def of_row(found: Found, name: str) -> float:
    """Return the mean over the units of a row: of numbers, or the rate of an outcome."""
    values = [v for v in found.value(name).values() if v is not None]
    return float(np.mean(values)) if values else found.accuracy(name).value


def outcomes(side: Side, folder: str | Path | None = None) -> dict[int, bool]:
    """Return whether each image is right in all rows of a side, of the images that all of them have."""
    parts = [answers(found, side) for found in rows_of(side, folder)]
    shared = [i for i in (parts[0] if parts else {}) if all(i in part for part in parts)]
    return {i: all(part[i] for part in parts) for i in shared}


def answers(found: Found, side: Side) -> dict[int, bool]:
    """Return the outcome of a side in one row."""
    bits = found.outcome(side.outcome)
    bits = bits or {i: v > side.above for i, v in found.value(side.outcome).items() if v is not None}
    more = found.outcome(side.also) if side.also else dict.fromkeys(bits, True)
    return {i: yes and more[i] for i, yes in bits.items() if i in more}


def breaks(side: Side, folder: str | Path | None = None) -> int:
    """Return how many images that were right the strongest attack of a side broke."""
    rows = [{id(line): line.counts for line in found.lines.values()}.values() for found in rows_of(side, folder)]
    return max(sum(counts["clean"] - counts["robust"] for counts in row) for row in rows)


def attacks_of(side: Side, folder: str | Path | None) -> list[str]:
    """Return the attacks of the rows of a side that were run."""
    return [found.row.attack for found in rows_of(side, folder) if found.row.attack is not None and side.outcome == "robust"]


def rows_of(side: Side, folder: str | Path | None = None) -> list[Found]:
    """Return what is known of the rows of a side that were run."""
    place = book_folder("results") if folder is None else Path(folder)
    store = stored(place / f"{side.experiment}.jsonl")
    rows = [row for row in experiment(side.experiment).rows if fits(row.about, side.where)]
    return [found for row in rows if (found := store.of(row)).n]


def fits(about: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether the words of a row are the wanted ones."""
    return all(about.get(k) in v if isinstance(v, tuple) else about.get(k) == v for k, v in where.items())


def stored(path: Path) -> Store:
    """Return the lines of a file, read once for each state of it."""
    return _stored(path, path.stat().st_mtime_ns if path.exists() else 0)


@cache
def _stored(path: Path, _: int) -> Store:
    return Store.read(path)


def rate(side: Side, folder: str | Path | None = None) -> Accuracy | None:
    """Return how many images of a side are right; None if it was not run."""
    found = outcomes(side, folder)
    return Accuracy.of(sum(found.values()), len(found)) if found else None
