"""The task *beside*: what would a slow base classifier have certified on the draws of a fast one?"""

__all__ = ["beside", "roots", "toy", "weights"]

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdc.certify.monte_carlo import Draws, code
from rdc.certify.stratified import answers_candidate, estimated, sample, strata
from rdc.door import Door
from rdc.rng import randn_each
from rdc.runs.cell import Cell, Outcome
from rdc.tasks import attack
from rdc.tasks.certify import Options, asked, base, evaluations, passes, roots, toy, weights

BATCH = 100


class Setup(NamedTuple):
    """What decides the draws of an image, beside the classifiers."""

    data: str
    seed: int
    device: str
    sigma: float
    n0: int
    n: int
    strata: tuple[int, ...]


def beside(cell: Cell, device: str = "cpu") -> Outcome:
    """Ask a reference about a stratified sample of the draws of each image, see :mod:`rdc.certify.stratified`.

    Arguments of the row: ``sigma``, ``n0`` and ``n``; ``strata``, how many draws of each stratum are asked about; ``reference``,
    ``{"model", "options", "rivals"}``; ``draws of``, another classifier in the place of the row's own that makes the strata,
    where the row's own is asked about the sample only, and only about ``rivals`` of the candidate, if there is such an argument.

    For each image ``candidate``, and its count ``k`` among the n draws; ``asked``, how many of these the reference was asked
    about; and its count as it follows from them, ``reference k``, with its 95 % interval, ``reference k low`` and ``reference k
    high``. With ``draws of`` the count k is estimated, too.
    """
    row, given = cell.row, cell.row.arguments
    setup = Setup(row.data, row.seed, device, given["sigma"], given["n0"], given["n"], tuple(given["strata"]))
    own = (row.model, attack.key(row.options), given.get("rivals"))
    slow, fast = named(given["reference"]), named(given["draws of"]) if given.get("draws of") else own
    rows, cost = [], []
    for i in range(cell.start, cell.stop):
        found, (said, _) = drawn(fast, setup, i), replies(slow, fast, setup, i)
        size, asked_about = [*map(len, found.groups)], [*map(len, found.sampled)]
        k, spent = float(size[1] + size[2]), found.passes
        if fast != own:
            mine, spent = replies(own, fast, setup, i)
            k = estimated(size, asked_about, mine)[0]
        middle, low, high = estimated(size, asked_about, said)
        rows.append({"candidate": found.candidate, "k": k, "asked": sum(asked_about),
                     "reference k": middle, "reference k low": low, "reference k high": high})  # fmt: skip
        cost.append(spent)
    labels = attack.test_images(row.data, cell.start, cell.stop, "cpu")[1].tolist()
    right = [one["candidate"] == label for one, label in zip(rows, labels, strict=True)]
    means = {"passes": float(np.mean(cost)), "reference passes": passes(classifier(slow, setup), (0, 0))}
    return Outcome({"candidate right": right}, means, values={name: [one[name] for one in rows] for name in rows[0]})


#: Name, options, and rivals of the candidate that it is asked about, if not all.
Named = tuple[str, Options, int | None]


class Drawn(NamedTuple):
    """The draws of an image: logits ``(n, K)``, the class that others chose, strata, what is sampled, evaluations for a draw."""

    logits: np.ndarray
    candidate: int
    groups: list[np.ndarray]
    sampled: list[np.ndarray]
    passes: float


def named(other: Mapping[str, Any]) -> Named:
    """Return a classifier of a row as something that can be a key."""
    return other["model"], attack.key(other.get("options", {})), other.get("rivals")


def classifier(which: Named, setup: Setup) -> nn.Module:
    """Return a base classifier."""
    return base(*which[:2], setup.data, setup.device)


@lru_cache(maxsize=128)
def drawn(fast: Named, setup: Setup, i: int) -> Drawn:
    """Make all draws of an image, and the strata."""
    model, (x, _, _) = classifier(fast, setup), attack.test_images(setup.data, i, i + 1, setup.device)
    before, parts = evaluations(model), []
    with Door(model, checked=False, attacked=False) as door:
        draws = Draws(door, x, [i], setup.sigma, setup.seed, BATCH)
        for start in range(0, setup.n0 + setup.n, BATCH):
            part = [(0, d) for d in range(start, min(start + BATCH, setup.n0 + setup.n))]
            parts.append(draws.answers(torch.zeros(len(part), dtype=torch.int64, device=x.device), part).float().cpu().numpy())
    table = np.concatenate(parts)
    candidate = int(np.bincount(table[: setup.n0].argmax(axis=1), minlength=table.shape[1]).argmax())
    groups = strata(table[setup.n0 :], candidate, setup.strata[1])
    sampled = sample(groups, setup.strata, setup.seed, i)
    return Drawn(table[setup.n0 :], candidate, groups, sampled, passes(model, before))


@lru_cache(maxsize=1024)
def replies(which: Named, fast: Named, setup: Setup, i: int) -> tuple[list[int], float]:
    """Return how many sampled draws of each stratum get the candidate, and the evaluations for a draw, weighted by the strata."""
    model, found, yes, cost = classifier(which, setup), drawn(fast, setup, i), [], 0.0
    for group, some in zip(found.groups, found.sampled, strict=True):
        before, said = evaluations(model), 0
        for part in np.split(some, range(8, len(some), 8)):
            if len(part):
                x, index = noisy(setup, i, part)
                if which[2] is None:
                    said += int((asked(model, x, index).argmax(dim=1) == found.candidate).sum())
                else:
                    said += int(answers_candidate(model, x, found.logits[part], found.candidate, which[2]).sum())  # type: ignore[arg-type]
        yes.append(said)
        cost += passes(model, before) * len(group) / setup.n if len(some) else 0.0
    return yes, cost


def noisy(setup: Setup, i: int, draws: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the noisy images of some draws after the first n0, as :func:`rdc.certify.certify` makes them, and their numbers."""
    x, at = attack.test_images(setup.data, i, i + 1, setup.device)[0], [setup.n0 + int(d) for d in draws]
    noise = randn_each(tuple(x.shape[1:]), [(setup.seed, "smoothing", "certify", i, d) for d in at], like=x)
    return x + setup.sigma * noise, torch.tensor([code("certify", i, d) for d in at], dtype=torch.int64, device="cpu")
