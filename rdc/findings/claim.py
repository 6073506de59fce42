"""A claim as data, and what the stored cells say of it by the one rule of :mod:`rdc.runs.verdict`.

A claim rests on comparisons (:class:`rdc.findings.evidence.Evidence`), judged together. It may instead be settled by a
derivation: then it names the test that checks it.
"""

__all__ = ["Claim", "Finding", "Proof", "judge"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdc.findings.evidence import Evidence, before, compared
from rdc.runs.needed import MOST, needed, size
from rdc.runs.verdict import Comparison, Means, Verdict, counts, decide_all, discordant, paired

NOT_RUN = "not run"


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
    evidence, (comparison, attacks) = made[decisive]
    names = dict.fromkeys(side.experiment for one, _ in made for side in (one.a, one.b) if side is not None)
    record = ", ".join(f"results/{name}.jsonl" for name in names)
    reason = counted(comparison) + (", and the attack broke nothing" if comparison.broken == 0 else "")
    reason += f" ({clean})" if (clean := before(evidence, folder)) else ""
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
    if not paired(comparison.a):
        return f"{k} of {n} against {counts(b)[0]} of {counts(b)[1]} images"
    only_a, only_b = discordant(comparison)
    return f"{k} against {counts(b)[0]} of {n} images, {only_a} right only in the first and {only_b} only in the second"
