"""What a slow base classifier would certify, from a stratified sample of the draws that a fast one has answered.

The slow one takes more than a thousand evaluations for each draw. It is therefore asked about some draws: those that the fast
classifier answered otherwise, as many with the smallest margins, and the rest. Its count, and so its radius, is estimated from
the three shares; the interval of 95 % adds the Wilson intervals of the strata (MOVER, Zou and Donner, 2008). It is asked about
the candidate and the classes that the fast classifier holds most likely for this draw.
"""

__all__ = ["answers_candidate", "estimated", "sample", "strata"]

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rdc.certify.noised import APNDC, EPNDC
from rdc.rng import randperm
from rdc.runs.statistics import Accuracy


def strata(logits: np.ndarray, candidate: int, most: int) -> list[np.ndarray]:
    """Return the rows of three strata: not answered ``candidate``, as many with the smallest margins, the rest.

    Arguments:
        logits: Of the draws, ``(n, K)``.
        candidate: The class that is counted.
        most: The second stratum has at least so many, if there are.
    """
    lead = logits[:, candidate] - np.delete(logits, candidate, axis=1).max(axis=1)
    wrong, right = np.flatnonzero(lead < 0), np.flatnonzero(lead >= 0)
    right = right[np.argsort(lead[right], kind="stable")]
    cut = min(len(right), max(len(wrong), most))
    return [wrong, right[:cut], right[cut:]]


def sample(groups: Sequence[np.ndarray], sizes: Sequence[int], seed: int, index: int) -> list[np.ndarray]:
    """Return at most ``sizes`` members of each group, drawn without repetition by the seed and the index of the image."""

    def some(group: np.ndarray, size: int, i: int) -> np.ndarray:
        order = randperm(len(group), seed, "strata", index, i).numpy()
        return np.sort(group[order[:size]])

    return [some(group, size, i) for i, (group, size) in enumerate(zip(groups, sizes, strict=True))]


def answers_candidate(model: EPNDC | APNDC, x: Tensor, logits: np.ndarray, candidate: int, rivals: int) -> np.ndarray:
    """Return whether a classifier prefers ``candidate`` to its likeliest rivals, ``(N,)``.

    Arguments:
        model: The classifier.
        x: Noisy images ``(N, C, H, W)``.
        logits: Of another classifier, ``(N, K)``, which say what the rivals are.
        candidate: The class.
        rivals: How many.
    """
    order = np.argsort(-np.where(np.arange(logits.shape[1]) == candidate, -np.inf, logits), axis=1)[:, :rivals]
    shortlist = torch.from_numpy(np.concatenate([np.full((len(x), 1), candidate), order], axis=1)).to(x.device)
    sizes = (len(x), shortlist.shape[1], len(model.levels))
    image, place, level = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in sizes)).T
    with torch.no_grad():
        loss = model.batch(x).some(image, shortlist[image, place], level).reshape(sizes).sum(dim=2)
    first: np.ndarray = (loss.argmin(dim=1) == 0).cpu().numpy()
    return first


def estimated(sizes: Sequence[int], asked: Sequence[int], said: Sequence[int]) -> tuple[float, float, float]:
    r"""Return the estimate :math:`\sum_s N_s k_s / n_s` of a count, and the ends of its 95 % interval.

    Arguments:
        sizes: Draws :math:`N_s` of each stratum.
        asked: How many of them were asked about.
        said: How many of these were answered with the candidate.

    >>> estimated([50, 50], [50, 0], [20, 0])[0]
    Traceback (most recent call last):
    ...
    ValueError: a stratum of 50 draws was not asked about
    """
    parts = []
    for size, n, k in zip(sizes, asked, said, strict=True):
        if size and not n:
            raise ValueError(f"a stratum of {size} draws was not asked about")
        if size:
            share = Accuracy.of(k, n)
            parts.append(size * np.array([share.value, share.value - share.low, share.high - share.value]))
    middle, total = float(sum(p[0] for p in parts)), sum(sizes)
    low, high = (math.hypot(*(p[end] for p in parts)) for end in (1, 2))
    return middle, max(0.0, middle - low), min(float(total), middle + high)
