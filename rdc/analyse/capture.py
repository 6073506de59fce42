r"""Why exact likelihood maximisation does not repair an image: the log-odds along the ascent, and cells that it never leaves.

Let :math:`\pi = p(y \mid z)`, and :math:`s_y` and :math:`s_r` the scores of class y and of the rest. The score of all images is
:math:`s = \pi s_y + (1 - \pi) s_r`, and along the exact ascent :math:`\dot z = s` the log-odds
:math:`L = \log \pi - \log(1 - \pi)` change by

.. math:: \dot L = s \cdot (s_y - s_r) = \pi \lVert s_y \rVert^2 - (1 - \pi) \lVert s_r \rVert^2 + (1 - 2 \pi)\, s_y \cdot s_r,

for any densities. At the border, :math:`\pi = \tfrac12`, that is half of :math:`\lVert s_y \rVert^2 - \lVert s_r \rVert^2`: the
ascent leads to the class whose score is longer, whose images are *further* away.

For the optimal denoiser D of images :math:`z_i`, let :math:`z_k` be the nearest, :math:`d_i = \lVert z_i - z_k \rVert`, and
:math:`g_i(z) = \lVert z - z_i \rVert^2 - \lVert z - z_k \rVert^2`, which is affine, 0 at the border of the Voronoi cell of
:math:`z_k`, and :math:`d_i^2` at :math:`z_k`. If for a :math:`\theta` in (0, 1)

.. math::
    g_i(z) \ge \theta d_i^2 \;\text{ for all } i \ne k \qquad \text{and} \qquad
    \sum_{i \ne k} d_i\, e^{-\theta d_i^2 / 2 \sigma^2} \le \tfrac12 (1 - \theta) \min_{i \ne k} d_i ,

then every step :math:`z + \eta (D(z) - z)` with :math:`0 \le \eta \le 1`, and so every further one, keeps the first condition,
and with it :math:`z_k` the nearest image and :math:`p(y \mid z) \le \tfrac12 (1 - \theta)` for each class but that of
:math:`z_k`.

Proof: :math:`\lVert D - z_k \rVert \le \sum_i d_i e^{-g_i / 2 \sigma^2} =: r`. As :math:`g_i` is affine with slope
:math:`2 (z_k - z_i)`, it is after the step at least :math:`(1 - \eta) g_i(z) + \eta (d_i^2 - 2 d_i r) \ge \theta d_i^2`,
because :math:`2 r \le (1 - \theta) d_i`.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), section 3.4, https://arxiv.org/abs/2305.15241
    | Mean Shift, Mode Seeking, and Clustering (Cheng, 1995), https://doi.org/10.1109/34.400568
"""

__all__ = ["Capture", "captured", "log_odds", "log_odds_rate"]

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rdc.denoise.optimal import OptimalDenoiser

GRID = 64  # values of theta that are tried


class Capture(NamedTuple):
    """What holds an image.

    Attributes:
        label: Class of the nearest image, ``(N,)``.
        share: The largest theta of the first condition, ``(N,)``: 0 at the border of the cell, at most 1.
        holds: Whether both conditions hold for a theta, ``(N,)``: no ascent leads to another class.
    """

    label: Int64[Tensor, " n"]
    share: Float[Tensor, " n"]
    holds: Bool[Tensor, " n"]


def captured(optimal: OptimalDenoiser, z: Float[Tensor, "n c h w"], sigma: float) -> Capture:
    """Return which class holds each point, and whether exact ascent of the likelihood can leave it, by the conditions above.

    Arguments:
        optimal: The optimal denoiser of images of which no two are equal; float64 is advised.
        z: Points, model units.
        sigma: Noise level of the density, model units.
    """
    nearest = optimal.distances(z).argmin(dim=1)
    centre = optimal.points[nearest]
    squares = optimal.distances((centre + optimal.center).reshape(z.shape))  # d_i^2, (N, M)
    own = z.flatten(1) - optimal.center - centre
    affine = squares + 2 * ((centre * own).sum(dim=1, keepdim=True) - own @ optimal.points.T)  # g_i
    itself = torch.zeros_like(squares, dtype=torch.bool).scatter_(1, nearest[:, None], True)
    share = (affine / squares).masked_fill(itself, torch.inf).amin(dim=1).clamp(0, 1)
    least = squares.masked_fill(itself, torch.inf).amin(dim=1).sqrt()
    theta = share[:, None] * torch.linspace(0, 1, GRID + 1, dtype=z.dtype, device=z.device)[1:]
    terms = [(squares.sqrt() * torch.exp(-t[:, None] * squares / (2 * sigma**2))).sum(dim=1) for t in theta.T]
    fits = torch.stack(terms, dim=1) <= (1 - theta) / 2 * least[:, None]  # z_k itself adds nothing: its d is 0
    return Capture(labels_of(optimal)[nearest], share, (fits & (theta > 0)).any(dim=1))


def log_odds(
    optimal: OptimalDenoiser, z: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], sigma: float
) -> Float[Tensor, " n"]:
    """Return ``log p(y | z) - log(1 - p(y | z))`` with the class frequencies of the data as prior, in nats."""
    exponents, own = -optimal.distances(z) / (2 * sigma**2), labels_of(optimal)[None] == y[:, None]
    return exponents.masked_fill(~own, -torch.inf).logsumexp(1) - exponents.masked_fill(own, -torch.inf).logsumexp(1)


def log_odds_rate(
    optimal: OptimalDenoiser, z: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], sigma: float
) -> Float[Tensor, " n"]:
    """Return how fast the log-odds of y rise along the exact ascent, ``dz/dt`` the score, by the formula above."""
    exponents, own = -optimal.distances(z) / (2 * sigma**2), labels_of(optimal)[None] == y[:, None]
    flat = z.flatten(1) - optimal.center
    s_y, s_r = (
        (exponents.masked_fill(out, -torch.inf).softmax(dim=1) @ optimal.points - flat) / sigma**2 for out in (~own, own)
    )
    pi = log_odds(optimal, z, y, sigma).sigmoid()
    return pi * s_y.square().sum(1) - (1 - pi) * s_r.square().sum(1) + (1 - 2 * pi) * (s_y * s_r).sum(1)


def labels_of(optimal: OptimalDenoiser) -> Tensor:
    """The class of each image of the data, in their order."""
    counts = torch.tensor(optimal.counts, dtype=torch.int64, device=optimal.points.device)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
