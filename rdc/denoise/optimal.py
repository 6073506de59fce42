r"""The optimal denoiser of a finite data set, in closed form (Theorem 3.2 of Chen et al., 2024).

If :math:`z` is one of the images :math:`z_1, \dots, z_{N_y}` of class y with equal probability, then
:math:`z_\sigma = z + \sigma \epsilon` has the density of a Gaussian mixture, and everything about it is exact:

.. math::
    \log p_\sigma(z_\sigma \mid y) &= \operatorname{logsumexp}_i a_i - \log N_y - \tfrac D2 \log(2 \pi \sigma^2),
    \qquad a_i = -\lVert z_\sigma - z_i \rVert^2 / (2 \sigma^2) \\
    D(z_\sigma, \sigma, y) &= \textstyle\sum_i \operatorname{softmax}(a)_i\, z_i, \qquad
    \nabla \log p_\sigma(z_\sigma \mid y) = (D - z_\sigma) / \sigma^2.

In VP form the same denoiser predicts the noise :math:`\sum_i s_i (x_t - \sqrt{\alpha_t} z_i) / \sqrt{1 - \alpha_t}` (Eq. 7
of the paper).

Squared distances come from one matrix product, :math:`\lVert z \rVert^2 - 2 z \cdot z_i + \lVert z_i \rVert^2`, about
the mean image: in float32 their error is a few 1e-4 for 28x28 images, so exponents are good to 0.02 for sigma above
0.1. Use float64 data for more.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Theorem 3.2
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["OptimalDenoiser"]

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.data import check_images, check_labels
from rdc.denoise.base import expand_sigma, to_model


class OptimalDenoiser(nn.Module):
    """Posterior mean, density and score of a finite data set.

    Arguments:
        x: Images ``(N, C, H, W)`` in [0, 1], float32 or float64.
        y: Labels ``(N,)``, every class 0...K-1 at least once.
    """

    def __init__(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> None:
        super().__init__()
        check_images(x)
        check_labels(y, len(x))
        if not bool(torch.bincount(y).gt(0).all()):
            raise ValueError("every class 0...K-1 needs at least one image")
        order = torch.argsort(y, stable=True)
        flat = to_model(x[order]).flatten(1)
        self.shape = tuple(x.shape[1:])
        self.counts = torch.bincount(y).tolist()
        self.register_buffer("center", flat.mean(dim=0))
        self.register_buffer("points", flat - self.center)
        self.register_buffer("squares", self.points.square().sum(dim=1))

    center: Tensor
    points: Tensor
    squares: Tensor
    one_pass = True  # all classes cost about as much as one

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.counts)

    def distances(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m"]:
        """Squared distances ``|z - z_i|^2`` to all images, grouped by class, ``(N, M)``."""
        flat = z.flatten(1) - self.center
        return (flat.square().sum(1, keepdim=True) + self.squares - 2 * flat @ self.points.T).clamp(min=0)

    def log_density(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k"]:
        """Exact ``log p_sigma(z | y)`` for every class, ``(N, K)``, in nats, model units."""
        sigma = expand_sigma(sigma, z).flatten()[:, None]
        exponents = -self.distances(z) / (2 * sigma**2)
        sums = torch.stack([a.logsumexp(dim=1) - math.log(a.shape[1]) for a in exponents.split(self.counts, dim=1)], dim=1)
        return sums - 0.5 * self.points.shape[1] * torch.log(2 * math.pi * sigma**2)

    def posterior(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k"]:
        """Exact ``p(y | z_sigma)`` with the class frequencies of the data as prior, ``(N, K)``."""
        counts = torch.tensor(self.counts, dtype=z.dtype, device=z.device)
        return torch.softmax(self.log_density(z, sigma) + torch.log(counts / counts.sum()), dim=1)

    def score(
        self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float, label: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """``grad log p_sigma(z | y) = (D - z) / sigma^2``; without label the gradient of the whole data's density."""
        return (self(z, sigma, label) - z) / expand_sigma(sigma, z) ** 2

    def forward(
        self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float, label: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """``E[z | z_sigma, y]``; with ``label=None`` (or -1 for single images) over all images of the data set."""
        exponents = -self.distances(z) / (2 * expand_sigma(sigma, z).flatten()[:, None] ** 2)
        if label is not None:
            classes = torch.arange(self.num_classes, device=z.device).repeat_interleave(
                torch.tensor(self.counts, dtype=torch.int64, device=z.device)
            )
            other = (classes[None] != label[:, None]) & (label[:, None] >= 0)
            exponents = exponents.masked_fill(other, -math.inf)
        mean = exponents.softmax(dim=1) @ self.points + self.center
        return mean.reshape(z.shape)

    def all_classes(self, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, "*n"] | float) -> Float[Tensor, "n k c h w"]:
        """``E[z | z_sigma, y]`` for every class, ``(N, K, C, H, W)``, from one distance product."""
        exponents = -self.distances(z) / (2 * expand_sigma(sigma, z).flatten()[:, None] ** 2)
        groups = zip(exponents.split(self.counts, dim=1), self.points.split(self.counts), strict=True)
        means = [a.softmax(dim=1) @ points + self.center for a, points in groups]
        return torch.stack(means, dim=1).reshape(len(z), self.num_classes, *self.shape)
