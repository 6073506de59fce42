r"""Learn the rounds of a race: which levels say most about the sum of all, and with which weights.

From the losses of noisy images at all levels of both networks. For pairs of the best class and one not far behind, let m be the
difference of the full sums and d_t those of single levels. Levels are taken one by one, each time the one with which the weights
that minimize

.. math:: \sum_{\text{pairs}} \frac{\big(m - \sum_{t \in S} a_t d_t - b\, d^{(0)}\big)^2}{4 + m^2} + \rho \lVert a \rVert^2

leave the smallest error. Close pairs count most: far ones are decided anyway. The penalty keeps a few hundred images from being
learned by heart; it is ``ridge`` times the mean of the squares that a level has.
"""

__all__ = ["learn_rounds"]

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from rdc.early_exit.race import Round


def learn_rounds(
    first: Float64[Tensor, "n k t"],
    full: Float64[Tensor, "n k t"],
    sizes: Sequence[int],
    gaps: Sequence[float],
    keep: Sequence[int],
    near: float = 8.0,
    ridge: float = 0.03,
) -> tuple[Round, ...]:
    """Rounds for :class:`rdc.early_exit.race.Race`.

    Arguments:
        first: Losses of noisy images, other ones than those to be raced, by the network of the first round.
        full: The same by the classifier whose answer is wanted.
        sizes: Number of levels of the first round; then, for each other round, the number of levels of ``full`` so far.
        gaps: Of all rounds but the last, which leaves one class.
        keep: Largest number of classes that are left after these rounds.
        near: Largest difference of the sums for which a pair is learned from, in the unit of the logits.
        ridge: Penalty.

    Raises:
        ValueError: if shapes or numbers do not fit.
    """
    if first.shape != full.shape or not len(sizes) == len(gaps) + 1 == len(keep) + 1 >= 2:
        raise ValueError(f"losses of one shape and one gap and keep fewer than sizes are needed, got {first.shape}, {full.shape}")
    if not (0 < sizes[0] <= full.shape[2] and 0 < sizes[1] and sizes[-1] <= full.shape[2]) or sorted(set(sizes[1:])) != list(
        sizes[1:]
    ):
        raise ValueError(f"sizes must rise from the second on and be 1 to {full.shape[2]}, got {tuple(sizes)}")
    pairs = close_pairs(full, near)
    margin = differences(full, pairs).sum(dim=1)
    chosen, weights = greedy(differences(first, pairs), margin, sizes[0], ridge)
    rounds = [Round(tuple(chosen), tuple(weights), gap=gaps[0], keep=keep[0])]
    weight = torch.tensor(weights, dtype=first.dtype, device=first.device)
    start = torch.einsum("nkt,t->nk", first[:, :, chosen], weight)[:, :, None]
    each = torch.cat([differences(full, pairs), differences(start, pairs)], dim=1)
    order, _ = greedy(each, margin, sizes[-1], ridge, free=True)
    for i, (before, size) in enumerate(zip((0, *sizes[1:-1]), sizes[1:], strict=True)):
        found = regress(*moments(each, margin), order[:size], ridge, free=True)
        rule: dict[str, Any] = {"gap": gaps[i + 1], "keep": keep[i + 1]} if i + 1 < len(gaps) else {}
        rounds.append(Round(tuple(order[before:size]), tuple(found[:-1].tolist()), float(found[-1]), **rule))
    return tuple(rounds)


def close_pairs(full: Tensor, near: float) -> Tensor:
    """Rows (image, best class, another class whose sum is not more than ``near`` larger)."""
    total = full.sum(dim=2)
    best = total.argmin(dim=1)
    close = total - total.amin(dim=1, keepdim=True) < near
    close[torch.arange(len(total), device="cpu"), best] = False
    image, other = close.nonzero(as_tuple=True)
    if not len(image):
        raise ValueError(f"no two classes are within {near:g}; take more images or a larger near")
    return torch.stack([image, best[image], other], dim=1)


def differences(losses: Tensor, pairs: Tensor) -> Tensor:
    """By how much the other class loses more, for each pair and level."""
    image, best, other = pairs.T
    return losses[image, other] - losses[image, best]


def moments(each: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted squares and products of the differences, and their products with the margin."""
    weight = 1 / (4 + margin**2)
    return each.T @ (weight[:, None] * each), each.T @ (weight * margin)


def regress(gram: Tensor, cross: Tensor, chosen: Sequence[int], ridge: float, free: bool) -> Tensor:
    """Weights of the chosen levels; with ``free`` that of the last column of all, without penalty, follows."""
    columns = torch.tensor([*chosen, len(gram) - 1] if free else list(chosen), dtype=torch.int64, device="cpu")
    square = gram[columns][:, columns].clone()
    index = torch.arange(len(chosen), device="cpu")
    square[index, index] += ridge * square.diagonal()[index].mean()
    return torch.linalg.solve(square, cross[columns])


def greedy(each: Tensor, margin: Tensor, count: int, ridge: float, free: bool = False) -> tuple[list[int], list[float]]:
    """Levels one by one, each the one that leaves the smallest error, and the weights of all (of the free column too)."""
    gram, cross = moments(each, margin)
    levels = each.shape[1] - free
    chosen: list[int] = []

    def gain(t: int) -> float:
        columns = [*chosen, t, len(gram) - 1] if free else [*chosen, t]
        found = regress(gram, cross, [*chosen, t], ridge, free)
        return float(2 * found @ cross[columns] - found @ gram[columns][:, columns] @ found)

    for _ in range(count):
        chosen.append(max((t for t in range(levels) if t not in chosen), key=gain))
    return chosen, regress(gram, cross, chosen, ridge, free).tolist()
