r"""The diffusion classifier as an energy-based model (Chen et al., 2024, Appendix A.4), and what it leaves out.

With the diffusion loss as the energy of class y,

.. math:: E_y(z) = \sum_t w_t\, \mathbb E_\epsilon \lVert z - D(z + \sigma_t \epsilon, \sigma_t, y) \rVert^2, \qquad
    p(z \mid y) = \frac{e^{-E_y(z)}}{Z(y)}, \qquad Z(y) = \int e^{-E_y(z)}\, dz,

Bayes' rule for equally likely classes is :math:`p(y \mid z) \propto e^{-E_y(z)} / Z(y)`. The classifier drops :math:`Z(y)`: it is
Bayes' rule of this model only if :math:`Z` is the same for all classes, and that is a property of the weights.

For the optimal denoiser and the ELBO weights :math:`\sigma^{-3} d\sigma` on :math:`[a, b]`, in n dimensions,

.. math:: E_y(z) = n \log \tfrac ba + \mathbb E_\epsilon \log p_b(z + b \epsilon \mid y)
    - \mathbb E_\epsilon \log p_a(z + a \epsilon \mid y)

exactly, because :math:`\sigma^{-3} \mathbb E_\epsilon \lVert z - D \rVert^2 = n / \sigma + \tfrac{d}{d\sigma} \mathbb E_\epsilon
\log p_\sigma(z + \sigma \epsilon)`. For large b the middle term does not depend on y. The last one is a log-density averaged
over noise a. Jensen's inequality bounds the integral of its exponential by 1 from above. The log of a sum of exponentials is
convex, so that :math:`\mathbb E_\epsilon \log p_a(z + a \epsilon) \ge \log p_a(z) - \tfrac n2`, which bounds it from below.
In the limit of large b, and without the sum's error,

.. math:: \tfrac n2 \log(2 \pi a^2) \;\le\; \log Z(y) \;\le\; \tfrac n2 \log(2 \pi a^2) + \tfrac n2 .

The lower end is reached where the images of a class are far apart against a, the upper one where their density is smooth at
that scale. So classes differ by at most half a nat for each dimension: little for one pixel, no guarantee for many. Other
weights have no such bound.

In one dimension all integrals are sums, and :math:`Z` can be computed.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eqs. 11 and 12, https://arxiv.org/abs/2305.15241
    | Your Classifier is Secretly an Energy Based Model (Grathwohl et al., 2019), https://arxiv.org/abs/1912.03263
"""

__all__ = ["class_normalisers", "energies"]

import torch
from jaxtyping import Float
from torch import Tensor

from rdc.denoise.base import Denoiser
from rdc.schedule import Levels

WIDTH = 8.0  # the integral over the noise ends at 8 standard deviations


def energies(denoiser: Denoiser, levels: Levels, grid: Float[Tensor, " g"], nodes: int = 257) -> Float[Tensor, "g k"]:
    """Energies of every class at the points of a grid, by the trapezoid rule in the noise; no gradient.

    Arguments:
        denoiser: Of images with one pixel, shape ``(1, 1, 1)``.
        levels: Noise levels and weights.
        grid: Points z in model units; their dtype is that of the computation, take float64.
        nodes: Number of nodes of the rule in the noise, on [-8, 8].

    Raises:
        ValueError: if the images have more than one pixel, or there are fewer than two nodes.
    """
    if tuple(denoiser.shape) != (1, 1, 1):
        raise ValueError(f"the integral is over one pixel; this denoiser has images of shape {tuple(denoiser.shape)}")
    if nodes < 2:
        raise ValueError(f"nodes must be at least 2, got {nodes}")
    eps = torch.linspace(-WIDTH, WIDTH, nodes, dtype=grid.dtype, device=grid.device)
    density = torch.softmax(-0.5 * eps**2, dim=0)
    total = grid.new_zeros(len(grid), denoiser.num_classes)
    with torch.no_grad():
        for sigma, weight in zip(levels.sigma.to(grid), levels.weight.to(grid), strict=True):
            points = (grid[:, None] + sigma * eps).reshape(-1, 1, 1, 1)
            estimate = denoiser.all_classes(points, sigma.expand(len(points))).reshape(len(grid), nodes, -1)
            total += weight * torch.einsum("e,gek->gk", density, (grid[:, None, None] - estimate).square())
    return total


def class_normalisers(denoiser: Denoiser, levels: Levels, grid: Float[Tensor, " g"], nodes: int = 257) -> Float[Tensor, " k"]:
    r"""``log Z(y)`` of every class, in nats: the trapezoid rule over a grid that must reach to where :math:`e^{-E}` vanishes.

    Arguments:
        denoiser: Of images with one pixel.
        levels: Noise levels and weights.
        grid: Increasing points z in model units, at least two.
        nodes: See :func:`energies`.

    Raises:
        ValueError: if the grid does not increase, or what :func:`energies` refuses.
    """
    if len(grid) < 2 or not bool((grid.diff() > 0).all()):
        raise ValueError("the grid needs at least two points, in increasing order")
    value = -energies(denoiser, levels, grid, nodes)
    top = value.amax(dim=0)
    return top + torch.trapezoid((value - top).exp(), grid, dim=0).log()
