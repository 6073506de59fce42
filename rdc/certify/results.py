"""Radii, factors and shares from the counts that cells of certificates hold: all that follows from them is computed here."""

__all__ = ["Kept", "Stopped", "certified", "kept", "radii", "right_radii", "stopped"]

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from rdc.certify.clopper_pearson import radius_from_counts
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found

CLEAR = 0.2  # the share of the answers, as a radius, is not within 20 % of the target
WITHIN = 0.95


def radii(found: Found) -> np.ndarray:
    """Return the certified radii of the images of a row of the task *certify*; 0 where there is none."""
    given, counts = found.row.arguments, [v or 0 for v in found.value("k").values()]
    return np.asarray(radius_from_counts(np.array(counts, dtype=int), given["n"], given["sigma"], given["alpha"]))


def right_radii(found: Found) -> np.ndarray:
    """Return the radii, -1 where the smoothed class is wrong."""
    return np.where(list(found.outcome("right").values()), radii(found), -1.0)


def certified(found: Found, radius: float) -> list[bool]:
    """Return for each image whether it counts as certified: the right class, and a radius that is not smaller."""
    hits: list[bool] = (right_radii(found) >= radius).tolist()
    return hits


@dataclass(frozen=True)
class Kept:
    """A fast base classifier beside a reference.

    Attributes:
        passes: Its evaluations for a noisy image.
        reference_passes: Those of the reference.
        same_label: Images that both certify, or none.
        within: Images on which its radius is at most 5 % smaller.
        within_high: The same against the upper end of the reference's radius.
        median: Median ratio of the radii, where the reference certifies anything.
        worst: Smallest ratio.
        radius: Of each image, ``(N,)``; empty where only the counts are known.
        reference: Radius of the reference, with its 95 % interval, ``(N, 3)``; empty where only the counts are known.
    """

    passes: float
    reference_passes: float
    same_label: Accuracy
    within: Accuracy
    within_high: Accuracy
    median: float
    worst: float
    radius: np.ndarray
    reference: np.ndarray

    @property
    def factor(self) -> float:
        """How many times fewer evaluations."""
        return self.reference_passes / self.passes


def kept(found: Found, alpha: float = 0.001) -> Kept:
    """Return what a row of the task *beside* says: from its counts of each image, or of all where these were not kept.

    Raises:
        ValueError: if nothing is known of the row.
    """
    passes, slow = found.mean("passes"), found.mean("reference passes")
    if passes is None or slow is None:
        raise ValueError(f"nothing is known of {found.row.model} beside a reference")
    if not found.value("candidate"):
        same, within, high = (found.accuracy(name) for name in ("same label", "within 5 %", "within 5 %, upper end"))
        median, worst = (found.mean(name) or 0.0 for name in ("median ratio", "worst ratio"))
        return Kept(passes, slow, same, within, high, median, worst, np.zeros(0), np.zeros((0, 3)))
    both = radii_beside(found, alpha)
    own, middle, _, top = both.T
    n = len(own)
    ratios = own[middle > 0] / middle[middle > 0]
    shares = ((middle > 0) == (own > 0), own >= WITHIN * middle, own >= WITHIN * top)
    same, within, high = (Accuracy.of(int(share.sum()), n) for share in shares)
    return Kept(passes, slow, same, within, high, float(np.median(ratios)), float(ratios.min()), own, both[:, 1:])


def radii_beside(found: Found, alpha: float) -> np.ndarray:
    """Return the radii of a row, and of the reference with the ends of their intervals, ``(N, 4)``."""
    given, names = found.row.arguments, ("k", "reference k", "reference k low", "reference k high")
    counts = np.array([[round(v or 0) for v in found.value(name).values()] for name in names], dtype=int)
    return np.asarray(radius_from_counts(counts, given["n"], given["sigma"], alpha)).T


@dataclass(frozen=True)
class Stopped:
    """Draws until it is clear whether a target is reached.

    Attributes:
        calls: Noisy images of each certificate, ``(N,)``.
        most: Without stopping.
        clear: Images whose radius, estimated from the share of the answers, is well away from the target, ``(N,)``.
        answered: How many were answered.
        met: How many of these reach the target.
    """

    calls: np.ndarray
    most: int
    clear: np.ndarray
    answered: int
    met: Accuracy

    @property
    def factor(self) -> float:
        """How many times fewer draws, over all images."""
        return float(self.most / self.calls.mean())

    @property
    def factor_clear(self) -> float:
        """How many times fewer, over the clear images."""
        return float(self.most / self.calls[self.clear].mean())


def stopped(found: Found, full: Found) -> Stopped:
    """Return what a row of the task *certify* with a target says.

    Arguments:
        found: The row.
        full: The row of the task *beside* with the same classifier, images and noise, whose draws tell what is clear.
    """
    given = found.row.arguments
    share = np.array([*full.value("k").values()], dtype=float) / full.row.arguments["n"]
    radius = given["sigma"] * norm.ppf(np.minimum(share, 1 - 1e-9))
    target, n, met = given["target"], np.array([*found.value("n").values()], dtype=float), found.value("met").values()
    known = [bool(m) for m in met if m is not None]
    clear = ~(((1 - CLEAR) * target < radius) & (radius < (1 + CLEAR) * target))
    calls = given["n0"] + n
    return Stopped(calls, given["n0"] + given["n"], clear, len(known), Accuracy.of(sum(known), len(known)))
