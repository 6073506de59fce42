"""What a slow reference would certify, from a stratified sample of the draws that a fast base classifier has answered.

A reference takes more than 1 200 evaluations for each draw of an image. It is therefore asked about some draws: those that the
fast classifier answered otherwise, as many with the smallest margins, and the rest. Its count, and so its radius, is estimated
from the three shares; the interval of 95 % adds the Wilson intervals of the strata (MOVER). It is asked about the candidate and
the ``RIVALS`` classes that the fast classifier holds most likely for this draw.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from certify_answers import noisy
from certify_bases import build, save
from certify_settings import RUNS, SEED, Base
from torch import Tensor, nn

from rdc.certify import APNDC, EPNDC
from rdc.certify.monte_carlo import code
from rdc.evaluate import Accuracy
from rdc.rng import generator

RIVALS, STRATA, ALPHA, N0 = 3, (16, 16, 8), 0.001, 100


class OutOfDraws(Exception):
    """More draws are needed than are known."""


class Lookup(nn.Module):
    """A base classifier whose logits for the draws of one image are known."""

    def __init__(self, table: np.ndarray, image: int) -> None:
        super().__init__()
        self.table, self.first = torch.from_numpy(table), code("certify", image, 0)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Logits of draws by their numbers."""
        if int(index.max()) - self.first >= len(self.table):
            raise OutOfDraws
        return self.table[index - self.first]


def strata(table: np.ndarray, candidate: int) -> list[np.ndarray]:
    """Draws after the first n0: not the candidate, as many of the candidate's with the smallest margins, the rest."""
    draws = np.arange(N0, len(table))
    lead = table[draws, candidate] - np.delete(table[draws], candidate, axis=1).max(axis=1)
    wrong, right = draws[lead < 0], draws[lead >= 0]
    right = right[np.argsort(lead[lead >= 0], kind="stable")]
    cut = min(len(right), max(len(wrong), STRATA[1]))
    return [wrong, right[:cut], right[cut:]]


def sampled(groups: Sequence[np.ndarray], index: int) -> list[np.ndarray]:
    """The draws of each stratum that the reference is asked about."""

    def some(group: np.ndarray, size: int, i: int) -> np.ndarray:
        order = torch.randperm(len(group), generator=generator(SEED, "strata", index, i)).numpy()
        return np.sort(group[order[:size]])

    return [some(group, size, i) for i, (group, size) in enumerate(zip(groups, STRATA, strict=True))]


def agrees(model: EPNDC | APNDC, x: Tensor, table: np.ndarray, candidate: int) -> np.ndarray:
    """Whether the reference answers ``candidate``, for noisy images and the fast classifier's logits."""
    rivals = np.argsort(-np.where(np.arange(table.shape[1]) == candidate, -np.inf, table), axis=1)[:, :RIVALS]
    shortlist = torch.from_numpy(np.concatenate([np.full((len(x), 1), candidate), rivals], axis=1))
    t = len(model.levels)
    with torch.no_grad():
        batch = model.batch(x)
        image, place, level = torch.cartesian_prod(torch.arange(len(x)), torch.arange(RIVALS + 1), torch.arange(t)).T
        loss = batch.some(image, shortlist[image, place], level).reshape(len(x), RIVALS + 1, t).sum(dim=2)
    return (loss.argmin(dim=1) == 0).numpy()


def asked(
    b: Base, against: Base, model: EPNDC | APNDC | None, image: Tensor, index: int, table: np.ndarray, candidate: int
) -> np.ndarray:
    """Rows ``(draw, stratum, whether the reference answers the candidate)``, stored."""
    path = RUNS / b.key() / f"reference-{against.key()}-{index}-{len(table)}.npy"
    if path.exists():
        return np.load(path)
    rows, model = [], model or build(against)
    for i, group in enumerate(sampled(strata(table, candidate), index)):
        for part in np.split(group, range(8, len(group), 8)):
            if len(part):
                x = torch.cat([noisy(image, b.sigma, index, range(d, d + 1)) for d in part.tolist()])
                rows += [(d, i, a) for d, a in zip(part, agrees(model, x, table[part], candidate), strict=True)]
    save(path, np.array(rows))
    return np.array(rows)


def estimated(groups: Sequence[np.ndarray], rows: np.ndarray) -> tuple[float, float, float]:
    """The reference's count of the candidate: estimate, and the ends of its 95 % interval."""
    parts = []
    for i, group in enumerate(groups):
        if len(group):
            said = rows[rows[:, 1] == i, 2]
            share = Accuracy.of(int(said.sum()), len(said))
            parts.append(len(group) * np.array([share.value, share.value - share.low, share.high - share.value]))
    middle = sum(p[0] for p in parts)
    n = sum(len(g) for g in groups)
    return middle, max(0.0, middle - math.hypot(*(p[1] for p in parts))), min(n, middle + math.hypot(*(p[2] for p in parts)))
