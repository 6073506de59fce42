r"""Noise levels: which sigmas a diffusion classifier looks at, and how much each counts.

For every kind below, the logit of class ``k`` is

.. math:: f_k(x) = -\sum_t w_t\, \mathbb E_\epsilon \lVert z - D(z + \sigma_t \epsilon, \sigma_t, k) \rVert^2, \qquad z = 2x - 1,

so a kind is nothing but pairs :math:`(\sigma_t, w_t)`: a density over sigma times the step of a quadrature rule.

==================  ==========================================================================================
``edm``             training weight of Karras et al., :math:`\lambda(\sigma) p(\sigma)\, d\sigma` with log-normal p
``edm-released``    the same as in the released code of Chen et al. (commit 8a82504): the exponent of p is
                    multiplied by :math:`P_\text{std}^2` where it should be divided, linear grid, left end points
``elbo``            the weight of the likelihood bound, :math:`\sigma^{-3} d\sigma`
``vp``              noise prediction with :math:`w_t = 1` on the linear VP schedule, mean over time steps
``vp-printed``      :math:`w_t` of Eq. (4) of the paper as printed, mean over time steps
``vp-derived``      :math:`w_t` as it follows from Eq. (3), sum over time steps: the likelihood bound of the VP chain
==================  ==========================================================================================

VP and VE describe the same noisy image: :math:`x_t = \sqrt{\alpha_t}\, z_\sigma` with
:math:`\sigma^2 = (1 - \alpha_t) / \alpha_t`, and a noise error is a denoising error,
:math:`\lVert \hat\epsilon - \epsilon \rVert^2 = \lVert D - z \rVert^2 / \sigma^2`.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Eqs. 1-6
    | https://arxiv.org/abs/2305.15241
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1
    | https://arxiv.org/abs/2206.00364
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
"""

__all__ = ["KINDS", "Levels", "alpha_to_sigma", "chain_levels", "levels", "sigma_to_alpha", "vp_alphas", "vp_weights"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

#: The kinds of levels.
KINDS = ("edm", "edm-released", "elbo", "vp", "vp-printed", "vp-derived")
P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels ``sigma`` (model units) and their weights, both float64 of shape ``(T,)``."""

    sigma: Float64[Tensor, " t"]
    weight: Float64[Tensor, " t"]

    def __post_init__(self) -> None:
        if self.sigma.ndim != 1 or self.sigma.shape != self.weight.shape or len(self.sigma) == 0:
            raise ValueError(
                f"levels need as many weights as sigmas, got {tuple(self.weight.shape)} and {tuple(self.sigma.shape)}"
            )
        if not bool((self.sigma > 0).all() & self.sigma.isfinite().all() & self.weight.isfinite().all()):
            raise ValueError("noise levels must be positive and finite, and their weights finite")

    def __len__(self) -> int:
        return len(self.sigma)

    def __getitem__(self, index: slice | Tensor) -> "Levels":
        return Levels(self.sigma[index], self.weight[index])


def levels(
    kind: str = "elbo",
    count: int = 16,
    placement: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float = SIGMA_DATA,
) -> Levels:
    r"""Return the noise levels of a kind (see the table above).

    Arguments:
        kind: One of :data:`KINDS`.
        count: Number of levels T.
        placement: For ``edm``, ``edm-released`` and ``elbo`` where the nodes lie: ``linear`` or ``log`` in sigma, or at
            ``quantile`` s of the log-normal p; the default is ``quantile`` for ``edm``, ``linear`` for
            ``edm-released`` and ``log`` for ``elbo``. For the VP kinds which of the 1 000 time steps are used:
            ``uniform`` (the default; systematic sampling) or ``first``.
        sigma_min: Lower end of the range; by default 0.05, and 1e-4 for ``edm-released``. Not for the VP kinds.
        sigma_max: Upper end; by default 20, and 3 for ``edm-released``. Not for the VP kinds.
        sigma_data: Standard deviation of the data in the weights of ``edm`` and ``edm-released``, that of the denoiser
            (``denoiser.sigma_data``); 0.5 as in Karras et al.

    Raises:
        ValueError: if a name is unknown, ``count`` is not positive or the range is empty.

    >>> levels("elbo", count=3, sigma_min=0.1, sigma_max=10).sigma
    tensor([0.2154, 1.0000, 4.6416], dtype=torch.float64)
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of levels {kind!r}; there are {', '.join(KINDS)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if kind.startswith("vp"):
        return _vp_levels(kind, count, placement or "uniform")
    released = kind == "edm-released"
    low = sigma_min if sigma_min is not None else (1e-4 if released else 0.05)
    high = sigma_max if sigma_max is not None else (3.0 if released else 20.0)
    if not 0 < low < high:
        raise ValueError(f"the range of sigma is empty: sigma_min {low}, sigma_max {high}")
    placement = placement or {"edm": "quantile", "edm-released": "linear", "elbo": "log"}[kind]
    u = (torch.arange(count, dtype=torch.float64, device="cpu") + (0.0 if released else 0.5)) / count
    sigma, step = _place(placement, low, high, u)
    return Levels(sigma, DENSITIES[kind](sigma, sigma_data) * step / count)


def log_normal(sigma: Tensor) -> Tensor:
    """Density of sigma when ``log sigma ~ N(P_mean, P_std^2)``, with the values of Karras et al. (2022)."""
    return torch.exp(-((sigma.log() - P_MEAN) ** 2) / (2 * P_STD**2)) / (sigma * P_STD * math.sqrt(2 * math.pi))


def log_normal_released(sigma: Tensor) -> Tensor:
    """The released form: ``/ 2 * P_std**2`` in the exponent, a log-normal of std 1/P_std and mass 1/P_std^2."""
    return torch.exp(-((sigma.log() - P_MEAN) ** 2) / 2 * P_STD**2) / (sigma * P_STD * math.sqrt(2 * math.pi))


def edm_lambda(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """``lambda(sigma) = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2``."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


#: Density over sigma of each kind, a function of sigma and sigma_d, which ``elbo`` does not know.
DENSITIES: dict[str, Callable[..., Tensor]] = {
    "edm": lambda sigma, sigma_data=SIGMA_DATA: edm_lambda(sigma, sigma_data) * log_normal(sigma),
    "edm-released": lambda sigma, sigma_data=SIGMA_DATA: edm_lambda(sigma, sigma_data) * log_normal_released(sigma),
    "elbo": lambda sigma, sigma_data=SIGMA_DATA: sigma**-3,
}


def _place(placement: str, low: float, high: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``sigma(u)`` for ``u`` in [0, 1] and the derivative ``d sigma / d u``."""
    if placement == "linear":
        return low + (high - low) * u, torch.full_like(u, high - low)
    if placement == "log":
        sigma = low * (high / low) ** u
        return sigma, sigma * math.log(high / low)
    if placement == "quantile":
        ends = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64, device="cpu").log() - P_MEAN) / P_STD)
        sigma = (P_MEAN + P_STD * torch.special.ndtri(ends[0] + (ends[1] - ends[0]) * u.clamp(min=1e-12))).exp()
        return sigma, (ends[1] - ends[0]) / log_normal(sigma)
    raise ValueError(f"unknown placement {placement!r}; there are linear, log, quantile")


def chain_levels(sigma: Tensor, rule: str = "chain", tail: bool = False) -> Levels:
    r"""ELBO levels on a given increasing grid :math:`\sigma_0 < \dots < \sigma_T`, by the rule of the sum.

    Arguments:
        sigma: The grid, T + 1 numbers.
        rule: ``chain``: the Markov chain's own weights :math:`\tfrac12 (\sigma_t^{-2} - \sigma_{t+1}^{-2})` at the
            right ends: a bound for the density of the *chain*. ``right``: the Riemann sum
            :math:`(\sigma_{t+1} - \sigma_t)\, \sigma_{t+1}^{-3}` of the released code. ``trapezoid``: trapezoid rule in
            :math:`-1 / (2 \sigma^2)`, which uses all T + 1 nodes.
        tail: Whether to add :math:`1 / (2 \sigma_T^2)` to the last weight, for the part of the integral beyond the grid.
    """
    sigma = sigma.to(torch.float64)
    if len(sigma) < 2 or not bool((sigma.diff() > 0).all()):
        raise ValueError("a grid of noise levels must have at least two increasing entries")
    step = 0.5 * (sigma[:-1] ** -2 - sigma[1:] ** -2)
    if rule == "trapezoid":
        weight = torch.zeros_like(sigma)
        weight[:-1] += step / 2
        weight[1:] += step / 2
    elif rule in ("chain", "right"):
        weight = step if rule == "chain" else sigma.diff() / sigma[1:] ** 3
        sigma = sigma[1:]
    else:
        raise ValueError(f"unknown rule {rule!r}; there are chain, right, trapezoid")
    if tail:
        weight = weight.clone()
        weight[-1] += 0.5 / sigma[-1] ** 2
    return Levels(sigma, weight)


def vp_alphas(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 2e-2) -> Float64[Tensor, " t"]:
    r"""Cumulative :math:`\alpha_t = \prod_{s \le t} (1 - \beta_s)`, t = 1...T, of the linear schedule of Ho et al. (2020)."""
    return torch.cumprod(1 - torch.linspace(beta_min, beta_max, steps, dtype=torch.float64, device="cpu"), dim=0)


def vp_weights(alpha: Tensor, which: str) -> Tensor:
    r"""Weights :math:`w_t` of the noise error :math:`\lVert \hat\epsilon - \epsilon \rVert^2` in Eq. (4), for t = 1...T.

    ``printed``: :math:`\sigma_t \alpha_{t-1} / (2 \tilde\sigma_t^2 (1 - \alpha_t) \alpha_t)`. ``derived`` from Eq. (3):
    :math:`\alpha_{t-1} \beta_t^2 / (2 \tilde\sigma_t^2 (1 - \alpha_t) \alpha_t)`, which has :math:`\beta_t^2` in the
    place of :math:`\sigma_t`. Here :math:`\tilde\sigma_t^2 = \beta_t (1 - \alpha_{t-1}) / (1 - \alpha_t)`; for t = 1,
    where that is zero, :math:`\beta_1`.
    """
    before = torch.cat([alpha.new_ones(1), alpha[:-1]])
    beta = 1 - alpha / before
    variance = beta * (1 - before) / (1 - alpha)
    variance[0] = beta[0]
    top = {"printed": (1 - alpha).sqrt(), "derived": beta**2}[which]
    return top * before / (2 * variance * (1 - alpha) * alpha)


def alpha_to_sigma(alpha: Tensor) -> Tensor:
    r"""VE noise level of a VP step: :math:`\sigma = \sqrt{(1 - \alpha) / \alpha}`."""
    return ((1 - alpha) / alpha).sqrt()


def sigma_to_alpha(sigma: Tensor) -> Tensor:
    r"""Cumulative VP factor of a VE noise level: :math:`\alpha = 1 / (1 + \sigma^2)`."""
    return 1 / (1 + sigma**2)


def _vp_levels(kind: str, count: int, placement: str) -> Levels:
    alpha = vp_alphas()
    if count > len(alpha):
        raise ValueError(f"the VP schedule has {len(alpha)} steps, cannot take {count}")
    if placement == "uniform":
        steps = (torch.arange(1, count + 1, device="cpu") * len(alpha)).div(count, rounding_mode="floor") - 1
    elif placement == "first":
        steps = torch.arange(count, device="cpu")
    else:
        raise ValueError(f"unknown placement {placement!r} of VP steps; there are uniform, first")
    sigma = alpha_to_sigma(alpha)[steps]
    if kind == "vp":
        weight = torch.full_like(sigma, 1 / count)
    elif kind == "vp-printed":
        weight = vp_weights(alpha, "printed")[steps] / count
    else:
        weight = vp_weights(alpha, "derived")[steps] * (len(alpha) / count)
    return Levels(sigma, weight / sigma**2)
