r"""How fast the logits of a diffusion classifier can change: a rigorous bound, and the certificate that follows from it.

With :math:`z = 2x - 1`, d pixels and :math:`g_t = \lVert D(z + \sigma_t \epsilon, \sigma_t, k) - z \rVert^2 / (4 d)` the logits
are :math:`f_k(x) = -4 d \sum_t w_t\, m_t`, :math:`m_t = \mathbb E g_t` (divided by d for ``reduce="mean"``).

**Assumptions.** Denoised images and images lie in the box :math:`[-1, 1]^d` (clip the network, :class:`Boxed`), so that
:math:`0 \le g_t \le 1`; the expectation over the noise is exact; :math:`w_t \ge 0`. D need not be continuous.

**Bound.** By Stein's identity, without a derivative of the network,

.. math:: \nabla_z m_t = \tfrac1{\sigma_t} \mathbb E[g_t \epsilon] - \tfrac1{2d} \mathbb E[D - z], \qquad
    \lVert \mathbb E[g \epsilon] \rVert \le \max_v \mathbb E (\epsilon \cdot v)_+ = \tfrac1{\sqrt{2 \pi}}, \quad
    \lVert D - z \rVert \le 2 \sqrt d ,

and in image units (one more factor 2) each logit and each difference of two have the Lipschitz constants

.. math:: L = 8 d \sum_t w_t \Big( \frac1{\sqrt{2 \pi}\, \sigma_t} + \frac1{\sqrt d} \Big), \qquad
          L_\Delta = 8 d \sum_t w_t \Big( \sqrt{\tfrac2\pi} \frac1{\sigma_t} + \frac1{\sqrt d} \Big) \le 2 L .

**Local form.** For a fixed target, m is a function with values in [0, 1] under Gaussian noise, whose :math:`\Phi^{-1}` is
:math:`1 / \sigma_t`-Lipschitz (Neyman-Pearson); moving the target by R changes :math:`\sqrt{m}` by at most
:math:`R / (2 \sqrt d)`. So for every z' within distance R of z (model units)

.. math::
    m_t(z') \le \min\Big(1, \Big( \sqrt{\Phi(\Phi^{-1}(m_t(z)) + R / \sigma_t)} + \tfrac{R}{2 \sqrt d} \Big)^2\Big), \qquad
    m_t(z') \ge \Big( \sqrt{\Phi(\Phi^{-1}(m_t(z)) - R / \sigma_t)} - \tfrac{R}{2 \sqrt d} \Big)_+^2 .

The constant that a released script prints as the theoretical one, :math:`(1 + \sqrt{2 / \pi}) \sum_t w_t / \sigma_t` for losses
averaged over pixels, is stated beside it (``paper``; the theorem as printed was not at hand); the script that certifies takes the
mean over levels in the place of the sum (``released``). Where images are [0, 1] and networks [-1, 1], neither is a bound.

References:
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
    | Released code, commit 410b09f, ``cert/Lipschitzness``
"""

__all__ = ["CONSTANTS", "Boxed", "boxed", "certified_radius", "empirical_slope", "lipschitz_constant"]

import copy
import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from rdc.classify.diffusion import DiffusionClassifier
from rdc.denoise.base import Denoiser
from rdc.schedule import Levels

CONSTANTS = ("rigorous", "paper", "released")


class Boxed(nn.Module):
    """A denoiser whose images are clipped to [-1, 1]; with true images in the box, its losses are no larger."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def one_pass(self) -> bool:
        """Whether all classes cost about as much as one."""
        return self.denoiser.one_pass

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        return self.denoiser.shape

    def forward(self, z: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """``D(z_sigma, sigma, y)``, clipped."""
        return self.denoiser(z, sigma, label).clamp(-1, 1)

    def all_classes(self, z: Tensor, sigma: Tensor | float) -> Tensor:
        """``D(z_sigma, sigma, y)`` for every class, clipped."""
        return self.denoiser.all_classes(z, sigma).clamp(-1, 1)


def boxed(classifier: DiffusionClassifier) -> DiffusionClassifier:
    """The same classifier with its denoiser clipped: the one for which the bounds of this module hold."""
    found = copy.copy(classifier)
    found._modules = dict(classifier._modules)
    found.denoiser = Boxed(classifier.denoiser)
    return found


def lipschitz_constant(levels: Levels, size: int, kind: str = "rigorous", difference: bool = False, reduce: str = "sum") -> float:
    """Lipschitz constant of a logit of :class:`rdc.classify.DiffusionClassifier`: nats per unit of L2 distance, images in [0, 1].

    Arguments:
        levels: Noise levels and weights of the classifier.
        size: Number d of pixels, channels included.
        kind: ``rigorous``, or the two formulas that are no bounds: ``paper`` and ``released``.
        difference: Whether for the difference of two logits, which has a smaller constant than twice that of one.
        reduce: ``sum`` or ``mean`` over pixels, that of the classifier.
    """
    if kind not in CONSTANTS:
        raise ValueError(f"unknown constant {kind!r}; there are {', '.join(CONSTANTS)}")
    w, s = checked(levels)
    scale = size if reduce == "sum" else 1
    if kind != "rigorous":
        total = (w / s).sum() if kind == "paper" else (w / s).mean()
        return float((1 + difference) * scale * (1 + math.sqrt(2 / math.pi)) * total)
    slope = math.sqrt(2 / math.pi) if difference else 1 / math.sqrt(2 * math.pi)
    return float(8 * scale * (w * (slope / s + 1 / math.sqrt(size))).sum())


def checked(levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    """Weights and levels as arrays.

    Raises:
        ValueError: if a weight is negative: then an upper bound for a loss is none for its term.
    """
    w, s = levels.weight.cpu().numpy(), levels.sigma.cpu().numpy()
    if not bool((w >= 0).all()):
        raise ValueError("the Lipschitz bound needs weights that are not negative")
    return w, s


def certified_radius(
    upper: np.ndarray, lower: np.ndarray, levels: Levels, size: int, offset: np.ndarray | float = 0.0, reduce: str = "sum"
) -> float:
    r"""The largest R (image units) at which the local form keeps a class ahead: :math:`\sum_t w_t (m^j_t - m^y_t) > 0` for all j.

    Arguments:
        upper: Upper bounds ``(T,)`` for the normalised losses m of the class y, at the image.
        lower: Lower bounds ``(J, T)`` for those of its rivals.
        levels: Noise levels and weights.
        size: Number d of pixels.
        offset: ``log pi_y - log pi_j``, ``(J,)`` or a number.
        reduce: ``sum`` or ``mean`` over pixels.

    Returns:
        The radius, by bisection, on the certified side; 0 if y is not ahead at the image itself. All images are within sqrt(d).
    """
    w, s = checked(levels)
    scale = 4 * (size if reduce == "sum" else 1)

    def ahead(radius: float) -> bool:
        step = 2 * radius  # model units
        high = np.minimum(1, (np.sqrt(ndtr(ndtri(upper) + step / s)) + step / (2 * math.sqrt(size))) ** 2)
        low = np.maximum(0, np.sqrt(ndtr(ndtri(lower) - step / s)) - step / (2 * math.sqrt(size))) ** 2
        return bool(np.all(scale * ((low - high) * w).sum(axis=-1) + offset > 0))

    low, high = 0.0, math.sqrt(size)
    if not ahead(low):
        return 0.0
    if ahead(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ahead(middle) else (low, middle)
    return low


def empirical_slope(
    classifier: nn.Module,
    x: Float[Tensor, "n c h w"],
    label: Int64[Tensor, " n"],
    other: Int64[Tensor, " n"] | None = None,
    steps: int = 10,
    size: float = 0.1,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """The steepest slope of a logit, or of the difference of two, met on a walk up and a walk down from each image.

    A logit estimated from few draws of noise is steeper than its expectation. For a classifier with ``frozen(seed)`` the
    squared norm is therefore the product of two gradients with independent noise, which is right on average.

    Arguments:
        classifier: Images to logits; take :func:`boxed` to compare with the bound.
        x: Where the walks start.
        label: The logit of each image.
        other: If given, the logit that is subtracted.
        steps: Steps of each walk.
        size: L2 length of a step, image units.
        seed: Owner of the noise.
    """
    frozen = getattr(classifier, "frozen", None)
    models = [frozen(2 * seed), frozen(2 * seed + 1)] if callable(frozen) else [classifier]
    best = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for direction in (1, -1):
        at = x
        for _ in range(steps):
            slopes = [gradient(model, at, label, other) for model in models]
            best = torch.maximum(best, (slopes[0] * slopes[-1]).flatten(1).sum(dim=1).clamp(min=0).sqrt())
            length = slopes[0].flatten(1).norm(dim=1).clamp(min=1e-30).reshape(-1, 1, 1, 1)
            at = (at + direction * size * slopes[0] / length).clamp(0, 1)
    return best


def gradient(model: nn.Module, x: Tensor, label: Tensor, other: Tensor | None) -> Tensor:
    """Gradient of a logit, or of a difference of two, with respect to each image."""
    point = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(point)
        value = logits.gather(1, label[:, None])
        value = value if other is None else value - logits.gather(1, other[:, None])
        return torch.autograd.grad(value.sum(), point)[0]
