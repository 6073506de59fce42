r"""Weightings of noise levels on one common grid, so that one table of denoising errors serves them all.

The logit of a class is :math:`-\sum_t w_t \lVert z - D \rVert^2` for every kind of levels (:mod:`rdc.schedule`); where all kinds
share their levels, only :math:`w` differs.
"""

__all__ = ["on_grid", "weightings"]

import math

import torch
from torch import Tensor

from rdc.schedule import Levels, levels

LOWEST, NODES = 0.01, 1000  # the lowest noise of the grid, model units; nodes of the fine rules


def on_grid(fine: Levels, sigma: Tensor) -> Tensor:
    """Return weights ``(T,)`` at the log-spaced levels ``sigma`` that stand for those of the rule ``fine``.

    Each node of the rule gives its weight of the *noise* error, which varies slowly, to the nearest level; nodes beyond the grid
    are left out.
    """
    ratio = float(sigma[1] / sigma[0])
    inside = fine[(fine.sigma < sigma.max() * ratio**0.5) & (fine.sigma > sigma.min() * ratio**-0.5)]
    cell = (inside.sigma.log()[:, None] - sigma.log()).abs().argmin(dim=1)
    return torch.zeros_like(sigma).index_add_(0, cell, inside.weight * inside.sigma**2) / sigma**2


def weightings(count: int, sigma_min: float = 0.1) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a grid of levels and the weights of each weighting on it, by name.

    The first ``count`` are those of the likelihood bound from ``sigma_min`` on, so that they meet the noise that the classifier
    with these levels alone meets; the others lie below them, in the same spacing, down to 0.01.

    >>> grid, found = weightings(16)
    >>> len(grid), len(found), float(found["ELBO (main)"][16:].sum())
    (24, 8, 0.0)
    """
    main = levels("elbo", count, sigma_min=sigma_min)
    first, ratio = float(main.sigma[0]), float(main.sigma[1] / main.sigma[0])
    below = 1 + math.ceil(math.log(first / LOWEST) / math.log(ratio))
    lower = first * ratio ** -torch.arange(1.0, below, dtype=torch.float64, device="cpu")
    grid = torch.cat([main.sigma, lower])
    low, high = float(grid.min()) * ratio**-0.5, float(grid.max()) * ratio**0.5
    fine = {
        "ELBO, with the lower levels": levels("elbo", NODES, sigma_min=low, sigma_max=high),
        "EDM": levels("edm", NODES, "log", sigma_min=low, sigma_max=high),
        "EDM, up to 3": levels("edm", NODES, "log", sigma_min=low, sigma_max=3.0),
        "EDM as released": levels("edm-released", NODES),
        "VP, w = 1": levels("vp", NODES),
        "VP, w printed": levels("vp-printed", NODES),
        "VP, w derived": levels("vp-derived", NODES),
    }
    own = torch.cat([main.weight, torch.zeros_like(lower)])
    return grid, {"ELBO (main)": own, **{name: on_grid(rule, grid) for name, rule in fine.items()}}
