r"""The optimal diffusion classifier of Corollary 3.3 over a whole training set: O(N (D + J R)) for D pixels, J nodes, R draws.

For a data set :math:`z_1, \dots, z_N` (by class) write :math:`d_i = \lVert z - z_i \rVert^2`, :math:`E_i = \epsilon \cdot z_i`
and :math:`\gamma = 1 / \sigma^2`. Up to terms that do not depend on i, the exponent of the softmax is
:math:`-\lVert z + \sigma \epsilon - z_i \rVert^2 / (2 \sigma^2) = -\tfrac12 \gamma d_i + \sqrt\gamma E_i`, so the weights are

.. math:: s_i \propto p_i\, u_i, \qquad p_i = e^{-\gamma d_i / 2}, \qquad u_i = e^{\sqrt\gamma E_i},

where p knows the image and not the noise, and u the noise and not the image. Stein's identity gives the loss without the
denoised image,

.. math::
    \mathbb E_\epsilon \lVert z - D \rVert^2
    = \mathbb E_\epsilon \Big[ \sum_i s_i d_i - \sigma \Big( \sum_i s_i E_i - \epsilon \cdot z \Big) \Big],

so one distance product per image, and per level one exponential and thin products ``(images, N) @ (N, draws)``, serve any
number of noise draws. At low noise, where u would overflow, only the nearest images of each class carry weight, and the
softmax is taken over those. The loss is smooth in :math:`\log \sigma`: with more levels than ``nodes`` it is computed at
``nodes`` of them and integrated through the interpolating cubic spline, which is a change of the weights only.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Corollary 3.3
    | https://arxiv.org/abs/2305.15241
    | Mutual Information and Minimum Mean-Square Error in Gaussian Channels (Guo, Shamai and Verdu, 2005)
    | https://arxiv.org/abs/cs/0412108
"""

__all__ = ["NearestNeighbor", "OptimalClassifier", "ReleasedOptimalClassifier"]

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.interpolate import make_interp_spline
from torch import Tensor, nn

from rdc.autograd import chunked
from rdc.data import check_images
from rdc.denoise.base import to_model
from rdc.denoise.optimal import OptimalDenoiser
from rdc.rng import randn
from rdc.schedule import Levels, vp_alphas


class OptimalClassifier(nn.Module):
    """Logits of the diffusion classifier whose denoiser is the optimal one of ``(x, y)``.

    The draws are antithetic and shared by classes, levels and images; the logits are a deterministic function of the image.
    Stein's form has little variance at low noise and much at high noise: for levels far above 10 take more draws, or
    the direct form, :class:`rdc.classify.DiffusionClassifier` of :class:`rdc.denoise.OptimalDenoiser`.

    Arguments:
        x: The data set D, images ``(N, C, H, W)`` in [0, 1].
        y: Its labels ``(N,)``; every class 0...K-1 at least once.
        levels: Noise levels and weights.
        seed: Owner of the noise.
        draws: Number R of noise draws, even.
        nodes: Number of levels at which the loss is computed; more levels are interpolated.
        nearest: Number of images of each class that are kept below ``split``.
        split: Noise level (model units) that separates the two ways of computing the softmax.
        chunk: Images at a time.
    """

    def __init__(
        self,
        x: Float[Tensor, "n c h w"],
        y: Int64[Tensor, " n"],
        levels: Levels,
        seed: int = 0,
        draws: int = 8,
        nodes: int = 16,
        nearest: int = 64,
        split: float = 1.25,
        chunk: int = 32,
    ) -> None:
        super().__init__()
        if draws < 2 or draws % 2:
            raise ValueError(f"draws must be even and at least 2, got {draws}")
        self.data = OptimalDenoiser(x, y)
        self.levels, self.nearest, self.split, self.chunk = levels, nearest, split, chunk
        self.nodes = compress(levels, nodes)
        half = randn((draws // 2, self.data.points.shape[1]), seed, "optimal", like=self.data.points)
        self.register_buffer("eps", torch.cat([half, -half]))
        projections = pad(self.data.points @ self.eps.T, self.data.counts, 0.0)  # E, (K, M, R)
        self.register_buffer("projections", projections)
        self.register_buffer("tables", torch.stack([table(projections, s) for s in self.wide] or [projections[:0]]))

    eps: Tensor
    projections: Tensor
    tables: Tensor

    @property
    def wide(self) -> list[float]:
        """The nodes at which all images enter the softmax."""
        return [s for s in self.nodes.sigma.tolist() if s >= self.split]

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.data.num_classes

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``, differentiable once.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the data's shape in [0, 1].
        """
        check_images(x, self.data.shape)
        return chunked(self._logits, to_model(x.to(self.data.points.dtype)), self.chunk).to(x.dtype)

    def _logits(self, z: Tensor) -> Tensor:
        own = (z.flatten(1) - self.data.center) @ self.eps.T  # eps . z, (B, R)
        d = pad(self.data.distances(z).T, self.data.counts, FAR).transpose(1, 2)  # (K, B, M)
        near, index = d.topk(min(self.nearest, d.shape[2]), dim=2, largest=False)
        e = torch.stack([self.projections[k][index[k]] for k in range(self.num_classes)])  # (K, B, nearest, R)
        base = near[..., :1]
        beyond, total = d - base, torch.zeros_like(near[..., 0])
        wide = 0
        for sigma, weight in zip(self.nodes.sigma.tolist(), self.nodes.weight.tolist(), strict=True):
            if sigma < self.split:
                mean_d, mean_e = means_nearest(near - base, e, sigma)
            else:
                mean_d, mean_e = means_all(beyond, self.tables[wide], sigma)
                wide += 1
            loss = base + mean_d - sigma * (mean_e - own)
            total = total + weight * loss.mean(dim=2)
        return -total.T


FAR = 1e12  # squared distance of a padding entry: its weight is zero


def pad(rows: Tensor, counts: list[int], value: float) -> Tensor:
    """Rows ``(N, ...)``, grouped by class, as ``(K, M, ...)`` with M the largest class, filled up with ``value``."""
    return nn.utils.rnn.pad_sequence(list(rows.split(counts)), batch_first=True, padding_value=value)


def table(e: Tensor, sigma: float) -> Tensor:
    """``[u, u E]`` for one level, ``(K, M, 2R)``, with u scaled to at most 1 in each class and draw."""
    u = torch.exp((e - e.amax(dim=1, keepdim=True)) / sigma)
    return torch.cat([u, u * e], dim=2)


def means_all(d: Tensor, table: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """``sum_i s_i d_i`` and ``sum_i s_i E_i``, both ``(K, B, R)``, from ``d`` ``(K, B, M)`` by the factorised softmax."""
    draws = table.shape[2] // 2
    p = torch.exp(d * (-0.5 / sigma**2))
    norm, sum_e = (p @ table).split(draws, dim=2)
    return (p * d) @ table[..., :draws] / norm, sum_e / norm


def means_nearest(d: Tensor, e: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The same with an explicit softmax over the nearest images: ``d`` ``(K, B, M)``, ``e`` ``(K, B, M, R)``."""
    s = torch.softmax(e / sigma - d[..., None] / (2 * sigma**2), dim=2)
    return torch.einsum("kbmr,kbm->kbr", s, d), (s * e).sum(dim=2)


def compress(levels: Levels, nodes: int) -> Levels:
    """At most ``nodes`` levels that integrate every cubic spline on them, in log sigma, as the given levels do."""
    if len(levels) <= nodes:
        return levels
    log_sigma = levels.sigma.log().numpy()
    knots = np.linspace(log_sigma.min(), log_sigma.max(), nodes)
    basis = make_interp_spline(knots, np.eye(nodes), k=3)(log_sigma)
    return Levels(torch.from_numpy(np.exp(knots)), torch.from_numpy(levels.weight.numpy() @ basis))


class NearestNeighbor(nn.Module):
    """Logits: minus the squared distance to the nearest image of each class, in model units."""

    def __init__(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], chunk: int = 64) -> None:
        super().__init__()
        self.data, self.chunk = OptimalDenoiser(x, y), chunk

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``."""
        check_images(x, self.data.shape)
        return chunked(self._logits, to_model(x.to(self.data.points.dtype)), self.chunk).to(x.dtype)

    def _logits(self, z: Tensor) -> Tensor:
        return -torch.stack([d.amin(dim=1) for d in self.data.distances(z).split(self.data.counts, dim=1)], dim=1)


#: What the released formula and the corollary say, in this order: divisor, square, units.
READINGS = (("sigma", "variance"), ("each", "sum"), ("image", "model"))


class ReleasedOptimalClassifier(nn.Module):
    r"""The formula of the released code (Chen et al., commit 8a82504), which differs from Corollary 3.3 in three places.

    .. math::
        f_y = -\tfrac1T \sum_t \tfrac{\alpha_t}{\sigma_t^2} \sum_i s_i^2 \lVert x - x_i \rVert^2, \qquad
        s = \operatorname{softmax}_i\big( -\lVert \sqrt{\alpha_t} (x - x_i) + \sigma_t \epsilon \rVert^2 / (2 \sigma_t) \big)

    The softmax divides by :math:`2 \sigma_t` instead of :math:`2 \sigma_t^2`; squares are summed instead of the square of the sum
    being taken; images stay in [0, 1]. For flat weights the loss is proportional to :math:`1 / N_y`. Each of the three can be
    switched to what the corollary says; with all of them it is the corollary.

    Arguments:
        x: The data set D, images in [0, 1].
        y: Its labels.
        steps: Number of the 1 000 VP time steps, systematic.
        seed: Owner of the noise, one draw, shared by all images.
        chunk: Images at a time.
        divisor: What the softmax divides by: ``sigma``, that is :math:`2 \sigma_t`, or ``variance``, :math:`2 \sigma_t^2`.
        square: ``each``: squares are summed. ``sum``: the square of the sum, :math:`\lVert \sum_i s_i (x - x_i) \rVert^2`.
        units: ``image``: [0, 1]. ``model``: [-1, 1].

    Raises:
        ValueError: on an unknown name.
    """

    def __init__(
        self,
        x: Float[Tensor, "n c h w"],
        y: Int64[Tensor, " n"],
        steps: int = 100,
        seed: int = 0,
        chunk: int = 8,
        divisor: str = "sigma",
        square: str = "each",
        units: str = "image",
    ) -> None:
        super().__init__()
        for what, name, known in zip(("divisor", "square", "units"), (divisor, square, units), READINGS, strict=True):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")
        self.data, self.chunk = OptimalDenoiser(x, y), chunk
        self.power, self.square, self.unit = 1 if divisor == "sigma" else 2, square, 2 if units == "image" else 1
        alpha = vp_alphas()
        self.alphas = alpha[
            (torch.arange(1, steps + 1, device="cpu") * len(alpha)).div(steps, rounding_mode="floor") - 1
        ].tolist()
        eps = randn((steps, self.data.points.shape[1]), seed, "released", like=self.data.points)
        self.register_buffer("eps", eps)
        self.register_buffer("points", pad(self.data.points / self.unit, self.data.counts, 0.0))  # (K, M, D)
        self.register_buffer("projections", self.points @ eps.T)  # (K, M, T)

    eps: Tensor
    points: Tensor
    projections: Tensor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``."""
        check_images(x, self.data.shape)
        return chunked(self._logits, to_model(x.to(self.data.points.dtype)), self.chunk).to(x.dtype)

    def _logits(self, z: Tensor) -> Tensor:
        own = (z.flatten(1) - self.data.center) / self.unit
        d = pad(self.data.distances(z).T / self.unit**2, self.data.counts, FAR).transpose(1, 2)  # |x - x_i|^2, (K, B, M)
        e, total = own @ self.eps.T, z.new_zeros(self.data.num_classes, len(z))
        for t, alpha in enumerate(self.alphas):
            sigma = (1 - alpha) ** 0.5
            cross = e[:, t, None] - self.projections[:, None, :, t]  # eps_t . (x - x_i)
            s = (-(alpha * d + 2 * alpha**0.5 * sigma * cross) / (2 * sigma**self.power)).softmax(dim=2)
            whole = self.square == "sum"
            loss = (own - s @ self.points).square().sum(dim=2) if whole else (s.square() * d).sum(dim=2)
            total = total - alpha / sigma**2 * loss / len(self.alphas)
        return total.T
