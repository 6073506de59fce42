r"""Where class information lies: the margin of a diffusion classifier and its gradient, level by level, and what a floor does.

**What is left above a floor.** With :math:`z = 2x - 1`, :math:`\ell_k(z, \sigma) = \mathbb E \lVert z - D_k(z + \sigma \epsilon)
\rVert^2` and the exact posterior mean :math:`D_k(u) = u + \sigma^2 \nabla \log p_\sigma(u \mid k)`, the heat equation
:math:`\partial_\sigma \log p = \sigma (\Delta \log p + \lVert \nabla \log p \rVert^2)` and Stein's identity give

.. math:: \frac{d}{d \sigma}\, \mathbb E \log p_\sigma(z + \sigma \epsilon \mid k) = \sigma^{-3} \ell_k(z, \sigma) - d / \sigma .

The last term is that of every class, and the log-odds vanish as :math:`\sigma \to \infty`. So the margin of all ELBO levels from
s on is the log-odds of the noised image, averaged over the noise:

.. math:: \Lambda_s(z) = \int_s^\infty \sigma^{-3} (\ell_j - \ell_y)\, d\sigma
    = \mathbb E \log \frac{p_s(z + s \epsilon \mid y)}{p_s(z + s \epsilon \mid j)} .

**How fast it changes.** For every draw of the noise, hence for their mean, with :math:`C_k` the posterior covariance,

.. math:: \nabla_z \Lambda_s = s^{-2}\, \mathbb E [D_y - D_j], \qquad \nabla_z^2 \Lambda_s = s^{-4}\, \mathbb E [C_y - C_j] .

D lies in the convex hull of the images of its class, so :math:`\lVert \nabla_z \Lambda_s \rVert \le \delta_{yj} / s^2` with the
largest distance of two images of the classes, and :math:`\lVert \nabla_z^2 \Lambda_s \rVert \le \max(\delta_{yy}^2,
\delta_{jj}^2) / (4 s^4)`.

**Both ends.** If the nearest image :math:`z_k` of each class is the only one, :math:`s^2 \Lambda_s \to \tfrac12 (\lVert z - z_j
\rVert^2 - \lVert z - z_y \rVert^2)` and :math:`s^2 \nabla \Lambda_s \to z_y - z_j` as s falls to 0; as it grows the same holds
with the class means in their place. Margin and gradient both scale as :math:`s^{-2}`: a floor changes their ratio by changing
*which* images are compared, not by the factor.

References:
    | Mutual Information and Minimum Mean-Square Error in Gaussian Channels (Guo, Shamai and Verdu, 2005)
    | https://arxiv.org/abs/cs/0412108
    | Mismatched Estimation and Relative Entropy (Verdu, 2010), https://doi.org/10.1109/TIT.2010.2050800
"""

__all__ = ["ByLevel", "averaged_log_odds", "by_level", "fastest", "safe_radius"]

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from rdc.classify.denoising_loss import Losses, denoising_losses
from rdc.classify.diffusion import DiffusionClassifier
from rdc.denoise.base import to_model
from rdc.denoise.optimal import OptimalDenoiser
from rdc.noise_source import Noise


@dataclass(frozen=True, eq=False)
class ByLevel:
    """What each level adds to the margin ``f_y - f_j`` of each image; the margins of all levels sum to that of the classifier.

    Attributes:
        sigma: Noise levels, model units.
        margin: In nats.
        slopes: Norms of its gradient by name, nats per unit of the image: ``L2``, and ``L1``, the dual of Linf.
    """

    sigma: Float64[Tensor, " t"]
    margin: Float[Tensor, "n t"]
    slopes: dict[str, Float[Tensor, "n t"]]


def by_level(
    classifier: DiffusionClassifier, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], rival: Int64[Tensor, " n"]
) -> ByLevel:
    """Return margin and gradient of a classifier's levels one by one, with the noise that it has among all of them.

    Arguments:
        classifier: Any diffusion classifier, with a sum over pixels; its prior is left out.
        x: Images in [0, 1].
        y: Labels.
        rival: The class j of each image, the same at all levels.
    """
    point = x.detach().requires_grad_()
    margins, slopes = [], {1: list[Tensor](), 2: list[Tensor]()}
    with torch.enable_grad():
        whole = classifier.batch(point)
        for t in range(len(classifier.levels)):
            table = denoising_losses(at_level(whole, t))[..., 0]
            margin = (table.gather(1, rival[:, None]) - table.gather(1, y[:, None]))[:, 0]
            slope = torch.autograd.grad(margin.sum(), point, retain_graph=True)[0].flatten(1)
            margins.append(margin.detach().to(x.dtype))
            for p, found in slopes.items():
                found.append(slope.norm(p, dim=1))
    norms = {f"L{p}": torch.stack(found, dim=1) for p, found in slopes.items()}
    return ByLevel(classifier.levels.sigma, torch.stack(margins, dim=1), norms)


def at_level(losses: Losses, t: int) -> Losses:
    """The losses of one level, with its noise."""
    one = slice(t, t + 1)
    alone = replace(losses.samples, added=losses.samples.added[:, :, one])
    return replace(losses, sigma=losses.sigma[one], weight=losses.weight[one], samples=alone)


def averaged_log_odds(
    optimal: OptimalDenoiser,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    rival: Int64[Tensor, " n"],
    sigma: float,
    draws: int = 8,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    r"""Return :math:`\Lambda_s`, the margin of all ELBO levels from ``sigma`` on, in nats; differentiable in ``x``.

    Arguments:
        optimal: The optimal denoiser of the data.
        x: Images in [0, 1].
        y: Labels.
        rival: The class j of each image.
        sigma: The floor s, model units, above 0.
        draws: Noise draws, even: they come in pairs ``eps, -eps``, the same for all images.
        seed: Seed of the noise.
    """
    z, total = to_model(x), x.new_zeros(len(x))
    for eps in Noise(seed, draws, True).table(optimal.shape, [(0,)], range(1), 1)[0, :, 0].to(z):
        for sign in (1, -1):
            density = optimal.log_density(z + sign * sigma * eps, sigma)
            total = total + (density.gather(1, y[:, None]) - density.gather(1, rival[:, None]))[:, 0]
    return total / draws


def fastest(optimal: OptimalDenoiser, y: int, rival: int, sigma: float) -> tuple[float, float]:
    r"""Return bounds of :math:`\lVert \nabla_x \Lambda_s \rVert` and :math:`\lVert \nabla_x^2 \Lambda_s \rVert` in image units.

    They are :math:`2 \delta_{yj} / s^2` and :math:`\max(\delta_{yy}^2, \delta_{jj}^2) / s^4`, for every image and any draws.
    """
    groups = optimal.points.split(optimal.counts)
    across, *within = (float(torch.cdist(groups[a], groups[b]).amax()) for a, b in ((y, rival), (y, y), (rival, rival)))
    return 2 * across / sigma**2, max(within) ** 2 / sigma**4


def safe_radius(margin: float, slope: float, curvature: float) -> float:
    r"""Return the L2 radius within which a margin stays positive: the root of :math:`m = g r + \tfrac12 h r^2`; 0 for none.

    Arguments:
        margin: m, the margin at the image.
        slope: g, the norm of its gradient there.
        curvature: h, a bound of the norm of its Hessian everywhere.
    """
    if margin <= 0:
        return 0.0
    return 2 * margin / (slope + math.sqrt(slope**2 + 2 * curvature * margin))
