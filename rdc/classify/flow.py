r"""The likelihood of an image by the probability flow of a denoiser, and the classifier that compares it between classes.

The density of noisy images is carried along by an ordinary differential equation, and its logarithm by the divergence of it,

.. math::
    \frac{dz}{d\sigma} = \frac{z - D(z, \sigma, y)}{\sigma}, \qquad
    \log p_a(z_a \mid y) = \log p_b(z_b \mid y) + n \log \tfrac ba
    - \int_a^b \operatorname{tr} \frac{\partial D}{\partial z}(z_\sigma, \sigma, y)\, \frac{d\sigma}\sigma ,

from a, the smallest noise level, to b, the largest, where :math:`p_b` is nearly :math:`\mathcal N(0, b^2 I)`. The n of the
divergence is integrated in closed form; Heun's steps in sigma and the trapezoid rule in :math:`\log \sigma` do the rest, with an
error of second order. The trace is exact, or the mean of :math:`v \cdot (\partial D / \partial z) v` over random signs v
(Hutchinson), the same for every image, class and level: the result is a deterministic function of the image.

References:
    | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), section 4.3 and appendix D
    | https://arxiv.org/abs/2011.13456
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eqs. 3 and 5
    | https://arxiv.org/abs/2206.00364
    | Score-Based Generative Classifiers (Zimmermann et al., 2021), https://arxiv.org/abs/2110.00473
"""

__all__ = ["FlowClassifier", "bits_per_dimension", "flow_grid", "flow_log_density", "probes"]

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from rdc.autograd import iterate
from rdc.denoise.base import Denoiser, to_model
from rdc.door import check_images
from rdc.quantities import count
from rdc.rng import rand


def flow_grid(steps: int, sigma_min: float = 0.02, sigma_max: float = 80.0, rho: float = 7.0) -> Float64[Tensor, " t"]:
    """Return the increasing noise levels of ``steps`` steps, model units: Eq. 5 of Karras et al. (2022), turned round.

    Raises:
        ValueError: if there is no step, or the range is empty.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"the range of sigma is empty: sigma_min {sigma_min}, sigma_max {sigma_max}")
    ends = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.linspace(*ends, count(steps, "steps") + 1, dtype=torch.float64, device="cpu") ** rho


def probes(shape: tuple[int, ...], number: int, seed: int, like: Tensor) -> Float[Tensor, "r ..."]:
    """Return vectors v for which the mean of ``v . J v`` is the trace of J, on average: random signs.

    With ``number`` 0 they are unit vectors, scaled, one for each dimension, and the mean is exact.
    """
    if number == 0:
        n = math.prod(shape)
        return (n**0.5 * torch.eye(n, dtype=like.dtype, device=like.device)).reshape(n, *shape)
    signs = [torch.where(rand(shape, seed, "flow", r) < 0.5, -1.0, 1.0) for r in range(number)]
    return torch.stack(signs).to(like)


def flow_log_density(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    sigma: Float64[Tensor, " t"],
    directions: Float[Tensor, "r c h w"],
    label: Int64[Tensor, " n"] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, " n"]:
    r"""Return ``log p_a(z | y)`` in nats, a the first noise level; differentiable once in z, at the memory of one step.

    An evaluation and a gradient at each level, and an evaluation more for each step.

    Arguments:
        denoiser: Any denoiser; its noise is that of the density, model units.
        z: Points, model units.
        sigma: Increasing noise levels, model units.
        directions: Those of :func:`probes`.
        label: Classes; None for the density of all images.
        prior: The log-density at the last level; by default that of :math:`\mathcal N(0, \sigma_T^2 I)`.
    """
    weight = trapezoid(sigma.log())
    levels, weights, n = sigma.tolist(), weight.tolist(), z[0].numel()
    further = torch.is_grad_enabled() and z.requires_grad

    def step(state: Tensor, i: int) -> Tensor:
        """Carry point and integral from level i to the next; the last level adds its part of the integral only."""
        point = state[:, :-1].reshape(z.shape)
        estimate = denoiser(point, levels[i], label)
        total = state[:, -1:] + weights[i] * trace(estimate, point, directions, further)[:, None]
        if i + 1 < len(levels):
            h, slope = levels[i + 1] - levels[i], (point - estimate) / levels[i]
            ahead = point + h * slope
            point = point + h / 2 * (slope + (ahead - denoiser(ahead, levels[i + 1], label)) / levels[i + 1])
        return torch.cat([point.flatten(1), total], dim=1)

    state = iterate(step, torch.cat([z.flatten(1), torch.zeros_like(z.flatten(1)[:, :1])], dim=1), len(levels))
    end = state[:, :-1].reshape(z.shape)
    last = normal(end, levels[-1]) if prior is None else prior(end)
    return last + n * math.log(levels[-1] / levels[0]) - state[:, -1]


def trapezoid(x: Tensor) -> Tensor:
    """Weights of the trapezoid rule on a grid."""
    half = x.diff() / 2
    return torch.cat([half, half.new_zeros(1)]) + torch.cat([half.new_zeros(1), half])


def trace(estimate: Tensor, point: Tensor, directions: Tensor, further: bool) -> Tensor:
    """The mean of ``v . J v`` over the directions v, with J the Jacobian of ``estimate``, ``(N,)``; ``further``: with a graph."""
    total = torch.zeros_like(point[:, 0, 0, 0])
    for v in directions:
        (slope,) = torch.autograd.grad(estimate, point, v.expand_as(estimate), retain_graph=True, create_graph=further)
        total = total + (slope * v).flatten(1).sum(dim=1)
    return total / len(directions)


def normal(z: Tensor, sigma: float) -> Tensor:
    """The log-density of a centred Gaussian of standard deviation sigma, in nats."""
    return -0.5 * z.flatten(1).square().sum(dim=1) / sigma**2 - 0.5 * z[0].numel() * math.log(2 * math.pi * sigma**2)


def bits_per_dimension(log_density: Float[Tensor, " n"], n: int) -> Float[Tensor, " n"]:
    """Return ``-log2 p / n`` of images with n values in 0...255, from the log-density in nats, model units."""
    return math.log2(255 / 2) - log_density / (n * math.log(2))


class FlowClassifier(nn.Module):
    """Images in [0, 1] to logits ``(N, K)``: the log-density of each class by the probability flow.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        sigma: Increasing noise levels, model units (:func:`flow_grid`).
        directions: How many random signs estimate the trace; 0 for the exact one.
        seed: Seed of the signs.
        chunk: Images at a time.
    """

    def __init__(
        self, denoiser: Denoiser, sigma: Float64[Tensor, " t"], directions: int = 1, seed: int = 0, chunk: int = 16
    ) -> None:
        super().__init__()
        self.denoiser, self.sigma, self.seed = denoiser, sigma, seed
        self.directions, self.chunk = count(directions, "directions", least=0), count(chunk, "chunk")

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits ``(N, K)``, differentiable once.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        return torch.cat([self.log_density(part, self._labels(len(part), x)) for part in x.split(self.chunk)])

    def log_density(self, x: Tensor, labels: Int64[Tensor, "n k"] | None = None) -> Float[Tensor, "n k"]:
        """Return ``log p(z | y)`` of some classes of each image, ``(N, K)``, or of all images together, ``(N, 1)``; nats."""
        k, label = (1, None) if labels is None else (labels.shape[1], labels.flatten())
        z = to_model(x).repeat_interleave(k, dim=0)
        signs = probes(tuple(x.shape[1:]), self.directions, self.seed, z)
        return flow_log_density(self.denoiser, z, self.sigma, signs, label).unflatten(0, (len(x), k))

    def _labels(self, n: int, like: Tensor) -> Tensor:
        return torch.arange(self.num_classes, device=like.device).expand(n, -1)
