r"""A race: few levels of a slow classifier, with its own noise, until one class is left.

A noised classifier sums losses over its levels, :math:`f_y = -\sum_t \ell_{y,t}`, and only :math:`\arg\max_y f_y` is wanted. Its
noise is fixed, so that f is one function of the image, and part of f is what this noise happened to be. A classifier with other
levels has other noise: however good, it answers otherwise where the classes are close. The race looks at levels of f itself and
predicts the sum,

.. math:: \hat f_y = -\sum_{t \in S} a_t\, \ell_{y,t} + b\, \hat f^{(0)}_y, \qquad
    \hat f^{(0)}_y = -\sum_{t \in S_0} a^{(0)}_t\, \ell^{(0)}_{y,t},

in rounds. The first looks at all classes with a cheap network, for instance a multi-head one, at some levels S_0 and *with the
noise of f*. Every further round adds levels of f to S, for the classes that are left; those that fall more than ``gap`` behind
the best are out. With all levels, weights 1 and b = 0 the prediction is f. :func:`rdc.early_exit.race_rounds.learn_rounds` finds
levels and weights.

The result is one more base classifier. Smoothing certifies it as it is: no certificate rests on its agreement with f.
"""

__all__ = ["Race", "Round"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from rdc.certify.noised import APNDC, EPNDC
from rdc.early_exit.cascade import numbered, survivors


@dataclass(frozen=True)
class Round:
    """One round of a race.

    Attributes:
        levels: Levels that are evaluated in this round, by their places in the classifier.
        weights: Of all levels so far, in the order in which they are evaluated; in the first round of its own levels.
        carry: Weight b of the first round's prediction; not used in the first round.
        gap: Distance from the best class up to which a class stays, in the unit of the logits. 0: the race ends here.
        keep: How many classes stay at most.
    """

    levels: tuple[int, ...]
    weights: tuple[float, ...]
    carry: float = 0.0
    gap: float = 0.0
    keep: int = 1


class Race(nn.Module):
    """Noisy images to logits ``(N, K)``, less the largest; no gradient.

    A class that is out follows more than one nat below the last one that stayed, in the order of the round that it lost.
    ``spent`` and ``seen`` count network evaluations and images over all calls; an evaluation of either network counts as one.

    Arguments:
        first: Evaluated in the first round, for all classes.
        full: The classifier whose answer is predicted; evaluated in the other rounds.
        rounds: The first one of ``first``, at least one more of ``full``.

    Raises:
        ValueError: if the classifiers differ in classes, noise or number of levels, or the rounds do not fit.
    """

    def __init__(self, first: EPNDC | APNDC, full: EPNDC | APNDC, rounds: Sequence[Round]) -> None:
        super().__init__()
        alike = [(m.num_classes, m.tau, len(m.levels)) for m in (first, full)]
        if alike[0] != alike[1]:
            raise ValueError(f"first and full must share classes, noise and number of levels, got {alike[0]} and {alike[1]}")
        check_rounds(rounds, len(full.levels))
        self.first, self.full, self.rounds = first, full, tuple(rounds)
        self.spent = self.seen = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.full.num_classes

    @property
    def tau(self) -> float:
        """Standard deviation of the noise in the image, model units."""
        return self.full.tau

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits; arguments and errors as for :class:`rdc.certify.noised.EPNDC`."""
        with torch.no_grad():
            index = numbered(x, index, self.seen)
            start = self.opening(x, index)
            lead = start - start.amax(dim=1, keepdim=True)
            alive = survivors(lead, self.rounds[0].gap, self.rounds[0].keep)
            rows = (alive.sum(dim=1) > 1).nonzero()[:, 0]
            if len(rows):
                lead[rows] = self.further(x[rows], index[rows], start[rows], lead[rows], alive[rows])
        self.seen += len(x)
        return lead.to(x.dtype)

    def opening(self, x: Tensor, index: Tensor) -> Float64[Tensor, "n k"]:
        """The prediction of the first round."""
        levels = torch.tensor(self.rounds[0].levels, device=x.device, dtype=torch.int64)
        weights = torch.tensor(self.rounds[0].weights, dtype=torch.float64, device=x.device)
        image, level = torch.cartesian_prod(torch.arange(len(x), device=x.device), levels).T
        engine, k = self.first.engine, self.num_classes
        label = None if engine.one_pass else torch.arange(k, device=x.device).repeat(len(image))
        each = 1 if engine.one_pass else k
        found = self.first.batch(x, index).some(image.repeat_interleave(each), label, level.repeat_interleave(each))
        once = self.first.evaluations - engine.evaluations
        self.spent += len(image) * each * engine.draws + len(x) * once
        return -torch.einsum("nlk,l->nk", found.reshape(len(x), len(levels), k), weights)

    def further(self, x: Tensor, index: Tensor, start: Tensor, lead: Tensor, alive: Bool[Tensor, "n k"]) -> Tensor:
        """The other rounds for images with several classes left, from the first prediction and its ranking."""
        batch, lead = self.full.batch(x, index), lead.clone()
        known: list[int] = []
        self.spent += len(x) * (self.full.evaluations - self.full.engine.evaluations)  # the one-step estimate of APNDC
        losses = torch.zeros(*alive.shape, len(self.full.levels), dtype=torch.float64, device=x.device)
        for r in self.rounds[1:]:
            image, label = (alive & (alive.sum(dim=1, keepdim=True) > 1)).nonzero(as_tuple=True)
            if not len(image):
                break
            levels, m = torch.tensor(r.levels, device=x.device, dtype=torch.int64), len(r.levels)
            found = batch.some(image.repeat(m), label.repeat(m), levels.repeat_interleave(len(image)))
            losses[image[:, None], label[:, None], levels] = found.reshape(m, len(image)).T
            self.spent += len(image) * m * self.full.engine.draws
            known += r.levels
            weights = torch.tensor(r.weights, dtype=torch.float64, device=x.device)
            value = torch.full_like(lead, -torch.inf)
            value[image, label] = r.carry * start[image, label] - losses[image, label][:, known] @ weights
            lead, alive = ranked(lead, value, image.unique()), alive.clone()
            alive[image.unique()] = survivors(value[image.unique()], r.gap, r.keep)
        return lead


def ranked(lead: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    """New logits of some images: those with a value first, the others more than one nat behind, as they were."""
    lead, mine = lead.clone(), value[rows] - value[rows].amax(dim=1, keepdim=True)
    inside = mine > -torch.inf
    last = mine.masked_fill(~inside, torch.inf).amin(dim=1, keepdim=True)
    lead[rows] = torch.where(inside, mine, last - 1 + lead[rows])
    return lead


def check_rounds(rounds: Sequence[Round], count: int) -> None:
    """Refuse rounds that cannot be run with ``count`` levels.

    Raises:
        ValueError: with one line that says what was wrong.
    """
    if len(rounds) < 2:
        raise ValueError(f"a race needs two rounds or more, got {len(rounds)}")
    for name, some in (("the first round", rounds[:1]), ("the other rounds", rounds[1:])):
        levels = [t for r in some for t in r.levels]
        if len(set(levels)) < len(levels) or not all(0 <= t < count for t in levels) or not all(r.levels for r in some):
            raise ValueError(f"levels of {name} must be different ones of 0...{count - 1}, at least one a round, got {levels}")
        totals = [sum(len(q.levels) for q in some[: i + 1]) for i in range(len(some))]
        if [len(r.weights) for r in some] != totals:
            raise ValueError(
                f"{name} must have {totals} weights, one for each level so far, got {[len(r.weights) for r in some]}"
            )
    if not all(r.gap >= 0 and r.keep >= 1 for r in rounds):
        raise ValueError("gap must not be negative and keep be positive")
