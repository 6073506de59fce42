r"""Rules of sift and refine: which classes are dropped, after which losses have been seen.

A classifier here is a table of losses :math:`\ell_{y, t} \ge 0` for one image, its noise being fixed; the full classifier takes
:math:`\arg\min_y \sum_t \ell_{y, t}`. A rule looks at few entries and says which classes survive; all levels of these are then
evaluated. What was evaluated once is not evaluated again.

| :class:`Threshold`  as released: levels in ascending order, a class is dropped when its sum is above the smallest one by an
                      absolute number, until ten classes are left. No guarantee, and the number must be chosen anew for each
                      weight, noise level and data set
| :class:`Leader`     with probability at least :math:`1 - \alpha` the answer is that of the full classifier
| :class:`Paired`     the same, if paired differences are symmetric around their mean: an approximation, with fewer evaluations

**Leader.** A few levels choose a leader b, whose losses are all evaluated. Levels :math:`t_1, t_2, \dots` are drawn with
probability :math:`q_t = \ell_{b, t} / \sum_t \ell_{b, t}`. If the full classifier's winner is y
and not b, then :math:`\sum_t \ell_{y, t} \le \sum_t \ell_{b, t}`, so that for :math:`0 \le \lambda_i < 1`, chosen before
:math:`t_i` is seen,

.. math:: W_y = \prod_i \Bigl( 1 + \lambda_i \Bigl( \frac{\ell_{y, t_i}}{\ell_{b, t_i}} - 1 \Bigr) \Bigr), \qquad
    \mathbb E_{t} \frac{\ell_{y, t}}{\ell_{b, t}} = \frac{\sum_t \ell_{y, t}}{\sum_t \ell_{b, t}} \le 1,

is a non-negative supermartingale, and it reaches :math:`1 / \alpha` with probability at most alpha (Ville). There y is dropped.
Only the winner can be dropped wrongly, and there is one leader: the number of classes does not enter. A class whose evaluated
losses alone exceed the leader's total is dropped without any risk.

**Paired.** Levels are drawn with probabilities q from calibration; :math:`X_i = (\ell_{y, t_i} - \ell_{b, t_i}) / (q_{t_i} T)`.
After a warm-up that chooses b and :math:`\rho = \sum X^2`, let :math:`S = \sum X` and :math:`V = \sum X^2` be sums over the
draws since; y is dropped when

.. math:: 2 \sqrt{\rho / (\rho + V)}\, \exp\Bigl( \frac{S^2}{2 (V + \rho)} \Bigr)\, \Phi\Bigl( \frac S{\sqrt{V + \rho}} \Bigr)
    \ge \frac 1 \alpha .

References:
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
    | Estimating means of bounded random variables by betting (Waudby-Smith and Ramdas, 2024), https://arxiv.org/abs/2010.09686
    | Boundary crossing probabilities for sums with a mixture over half a line (Robbins, 1970)
"""

__all__ = ["Leader", "Paired", "Rule", "Sifted", "Table", "Threshold", "sift_table"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

TINY = 1e-300
Evaluate = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Threshold:
    """The released heuristic; ``value`` in the units of the losses, see :func:`rdc.early_exit.sift.released`.

    Attributes:
        value: Largest distance from the smallest sum of losses.
        levels: Number of levels of the sieve, evenly spread over all of them, in ascending order of noise.
        stop: No class is dropped any more when at most so many are left.
        keep: How many of the survivors are refined, the best ones; None for all.
    """

    value: float
    levels: int = 50
    stop: int = 10
    keep: int | None = 10


@dataclass(frozen=True)
class Leader:
    """Betting against one leader: wrong with probability at most ``alpha``.

    Attributes:
        alpha: Probability that the answer is not that of the full classifier.
        pilot: Number of levels that choose the leader.
        cap: Largest bet.
        rounds: Number of draws, in multiples of the number of levels.
    """

    alpha: float = 0.05
    pilot: int = 4
    cap: float = 0.95
    rounds: int = 4


@dataclass(frozen=True)
class Paired:
    """Self-normalised sums of paired differences: wrong with a probability of about ``alpha``.

    Attributes:
        proposal: Probabilities of the levels, from :func:`rdc.early_exit.sift.calibrate`. With equal ones
            differences are skewed and errors frequent.
        alpha: Probability of error aimed at.
        warmup: Draws that choose the leader and the scale.
        rounds: Number of draws, in multiples of the number of levels.
    """

    proposal: Sequence[float]
    alpha: float = 0.05
    warmup: int = 4
    rounds: float = 1.0


Rule = Threshold | Leader | Paired


@dataclass(frozen=True, eq=False)
class Sifted:
    """What was decided, and what it took.

    Attributes:
        label: Class of every image, ``(N,)``.
        survivors: Classes that were not dropped, ``(N, K)``.
        logits: Minus the sum of losses of the survivors, -inf for the others, ``(N, K)``; 0 for a survivor that is alone.
        evaluations: Network evaluations of every image, ``(N,)``.
        full: Network evaluations of the full classifier for one image.
    """

    label: Int64[Tensor, " n"]
    survivors: Bool[Tensor, "n k"]
    logits: Float64[Tensor, "n k"]
    evaluations: Int64[Tensor, " n"]
    full: int

    @property
    def saved(self) -> float:
        """Fraction of the full classifier's evaluations that were not needed."""
        return 1 - float(self.evaluations.double().mean()) / self.full


class Table:
    """Losses ``(N, K, T)`` that are evaluated when somebody asks.

    Arguments:
        evaluate: ``(image (M,), class (M,) or None, level (M,))`` to losses ``(M, 1)``, or ``(M, K)`` without class.
        shape: N, K and T.
        one_pass: Whether an evaluation serves all classes; ``evaluate`` is then asked without class.
        cost: Network evaluations of one entry, and those that an image takes anyway.
    """

    def __init__(
        self, evaluate: Evaluate, shape: tuple[int, int, int], one_pass: bool = False, cost: tuple[int, int] = (1, 0)
    ) -> None:
        self.evaluate, self.shape, self.one_pass, self.cost = evaluate, shape, one_pass, cost
        self.values = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self.seen = torch.zeros(shape, dtype=torch.bool, device="cpu")
        self.sums, self.counts = (
            torch.zeros(shape[:2], dtype=torch.float64, device="cpu"),
            torch.zeros(shape[:2], dtype=torch.int64, device="cpu"),
        )
        self.entries = torch.zeros(shape[0], dtype=torch.int64, device="cpu")

    def rows(self, classes: Bool[Tensor, "n k"]) -> Float64[Tensor, "n k t"]:
        """All levels of some classes; what is unknown is 0."""
        image, label, level = (classes[:, :, None] & ~self.seen).nonzero(as_tuple=True)
        self._fill(image, label, level)
        return self.values

    def column(self, classes: Bool[Tensor, "n k"], level: Int64[Tensor, " n"]) -> Float64[Tensor, "n k"]:
        """The losses of some classes at one level for each image, ``(N, K)``; what is unknown is 0."""
        each = torch.arange(len(level), device="cpu")
        image, label = (classes & ~self.seen[each, :, level]).nonzero(as_tuple=True)
        self._fill(image, label, level[image])
        return self.values[each, :, level]

    def _fill(self, image: Tensor, label: Tensor, level: Tensor) -> None:
        if len(image) == 0:
            return
        if self.one_pass:
            image, level = torch.stack([image, level]).unique(dim=1)
            found = self.evaluate(image, None, level).to(self.values)
            self.values[image, :, level], self.seen[image, :, level] = found, True
            self.sums.index_add_(0, image, found)
            self.counts.index_add_(0, image, torch.ones_like(found, dtype=torch.int64))
        else:
            found = self.evaluate(image, label, level).to(self.values)[:, 0]
            self.values[image, label, level], self.seen[image, label, level] = found, True
            self.sums.index_put_((image, label), found, accumulate=True)
            self.counts.index_put_((image, label), torch.ones_like(image), accumulate=True)
        self.entries += torch.bincount(image, minlength=self.shape[0])


def sift_table(table: Table, rule: Rule, generators: Sequence[torch.Generator]) -> Sifted:
    """Sift and refine a table of losses; ``generators`` are the sources of randomness, one for each image.

    Raises:
        ValueError: if the rule does not fit the table.
    """
    n, k, t = table.shape
    steps: dict[type, Callable[..., Tensor]] = {Threshold: by_threshold, Leader: by_leader, Paired: by_pairs}
    alive = steps[type(rule)](table, rule, generators)
    several = alive & (alive.sum(dim=1, keepdim=True) > 1)
    total = table.rows(several).sum(dim=2)
    logits = torch.where(several, -total, 0.0).masked_fill(~alive, -math.inf)
    each, anyway = table.cost
    full = t * (1 if table.one_pass else k) * each + anyway
    return Sifted(logits.argmax(dim=1), alive, logits, table.entries * each + anyway, full)


def by_threshold(table: Table, rule: Threshold, generators: Sequence[torch.Generator]) -> Bool[Tensor, "n k"]:
    """Survivors of :class:`Threshold`."""
    n, k, t = table.shape
    check(rule.value > 0 and rule.levels >= 1 and rule.stop >= 1 and (rule.keep is None or rule.keep >= 1), rule)
    alive, total = torch.ones(n, k, dtype=torch.bool, device="cpu"), torch.zeros(n, k, dtype=torch.float64, device="cpu")
    for level in spread(rule.levels, t):
        busy = (alive.sum(dim=1) > rule.stop)[:, None]
        total = total + table.column(alive & busy, torch.full((n,), level, dtype=torch.int64, device="cpu")) * (alive & busy)
        best = total.masked_fill(~alive, math.inf).amin(dim=1, keepdim=True)
        alive &= ~busy | (total - best <= rule.value)
    order = total.masked_fill(~alive, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return alive & (order < (k if rule.keep is None else max(rule.keep, 1)))


def by_leader(table: Table, rule: Leader, generators: Sequence[torch.Generator]) -> Bool[Tensor, "n k"]:
    """Survivors of :class:`Leader`."""
    n, k, t = table.shape
    check(0 < rule.alpha < 1 and rule.pilot >= 1 and 0 < rule.cap < 1 and rule.rounds >= 1, rule)
    pilot = spread(rule.pilot, t)
    everyone, each = torch.ones(n, k, dtype=torch.bool, device="cpu"), torch.arange(n, device="cpu")
    for level in pilot:
        table.column(everyone, torch.full((n,), level, dtype=torch.int64, device="cpu"))
    best = table.values[:, :, pilot].sum(dim=2).argmin(dim=1)
    first = nn.functional.one_hot(best, k).bool()
    leader = table.rows(first)[each, best].clamp(min=TINY)  # (N, T)
    if bool((table.values < 0).any()):
        raise ValueError("a loss is negative; the guarantee of Leader needs whole losses, which are not")
    draws = sampled(leader, rule.rounds * t, generators)
    ratio, q = table.values[:, :, pilot] / leader[:, None, pilot] - 1, leader[:, None, pilot]
    bets = [(q * ratio**i).sum(dim=2) / q.sum(dim=2) * len(pilot) for i in (1, 2)]  # what the pilot suggests to bet
    wealth, alive, limit = (
        torch.zeros(n, k, dtype=torch.float64, device="cpu"),
        everyone,
        leader.sum(dim=1, keepdim=True) * (1 + 1e-12),
    )
    for level in draws.T:
        alive = alive & (first | (table.sums <= limit))  # beyond it no doubt is left
        open_ = alive & ~first & (table.counts < t)
        if not bool(open_.any()):
            break
        gain = table.column(open_, level) / leader[each, level][:, None] - 1
        stake = (bets[0] / bets[1].clamp(min=TINY)).clamp(0, rule.cap)
        wealth = wealth + torch.where(open_, torch.log1p(stake * gain.clamp(min=-1)), 0.0)
        bets = [b + torch.where(open_, gain**i, 0.0) for i, b in enumerate(bets, 1)]
        alive = alive & ~(open_ & (wealth >= -math.log(rule.alpha)))
    return alive


def by_pairs(table: Table, rule: Paired, generators: Sequence[torch.Generator]) -> Bool[Tensor, "n k"]:
    """Survivors of :class:`Paired`."""
    n, k, t = table.shape
    q = torch.as_tensor(rule.proposal, dtype=torch.float64, device="cpu")
    check(0 < rule.alpha < 1 and rule.warmup >= 1 and rule.rounds > 0, rule)
    if tuple(q.shape) != (t,) or not bool((q > 0).all()):
        raise ValueError(f"the proposal needs {t} positive probabilities, one for each level; see calibrate")
    q = q / q.sum()
    draws = sampled(q.expand(n, t), rule.warmup + math.ceil(rule.rounds * t), generators)
    everyone = torch.ones(n, k, dtype=torch.bool, device="cpu")
    start = [table.column(everyone, level) / (q[level] * t)[:, None] for level in draws.T[: rule.warmup]]
    best = torch.stack(start).sum(dim=0).argmin(dim=1, keepdim=True)
    first = torch.zeros(n, k, dtype=torch.bool, device="cpu").scatter(1, best, True)
    scale = torch.stack([(loss - loss.gather(1, best)) ** 2 for loss in start]).sum(dim=0).clamp(min=TINY)
    total, square, alive = torch.zeros_like(scale), torch.zeros_like(scale), everyone.clone()
    for level in draws.T[rule.warmup :]:
        open_ = alive & ~first
        busy = open_.any(dim=1, keepdim=True)
        if not bool(busy.any()):
            break
        loss = table.column(open_ | (first & busy), level) / (q[level] * t)[:, None]
        gap = torch.where(open_, loss - loss.gather(1, best), 0.0)
        total, square = total + gap, square + gap**2
        alive &= ~(open_ & (evidence(total, square, scale) >= -math.log(rule.alpha)))
    return alive


def evidence(total: Tensor, square: Tensor, scale: Tensor) -> Tensor:
    """Log of the one-sided normal mixture ``2 sqrt(rho / (rho + V)) exp(S^2 / (2 (V + rho))) Phi(S / sqrt(V + rho))``."""
    v = square + scale
    return math.log(2) + 0.5 * (scale / v).log() + total**2 / (2 * v) + torch.special.log_ndtr(total / v.sqrt())


def sampled(weights: Tensor, count: int, generators: Sequence[torch.Generator]) -> Int64[Tensor, "n m"]:
    """``count`` levels for every image, drawn with probabilities proportional to ``weights`` ``(N, T)``."""
    rows = zip(weights, generators, strict=True)
    return torch.stack([torch.multinomial(w, count, replacement=True, generator=g) for w, g in rows])


def spread(count: int, levels: int) -> list[int]:
    """At most ``count`` levels of 0...levels-1, evenly spread, in ascending order."""
    return sorted(
        set(torch.linspace(0, levels - 1, min(count, levels), dtype=torch.float32, device="cpu").round().long().tolist())
    )


def check(fits: bool, rule: Rule) -> None:
    """Refuse a rule with a number that is out of range."""
    if not fits:
        raise ValueError(f"a number is out of its range in {rule}")
