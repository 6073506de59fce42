r"""The Brownian bridge behind a noised input: which levels, weights and noise the bound of :mod:`rdc.certify.noised` takes.

A noisy image :math:`z_\tau = z + \tau \epsilon` is noised further, :math:`z_s = z_\tau + W_s`, with
:math:`W_s \sim \mathcal N(0, u_s^2 I)` and :math:`u_s^2 = s^2 - \tau^2`. Between two levels :math:`s < s'` the posterior
:math:`q(z_s \mid z_{s'}, z_\tau)` is a Brownian bridge,

.. math::
    \mathcal N\Bigl( \frac{(s'^2 - s^2)\, z_\tau + u_s^2\, z_{s'}}{u_{s'}^2},\; v_s I \Bigr), \qquad
    v_s = \frac{u_s^2 (s'^2 - s^2)}{u_{s'}^2}.

The model's step has the mean :math:`((s'^2 - s^2) D(z_{s'}, s', y) + s^2 z_{s'}) / s'^2`. Minus the divergence is a denoising
loss

.. math:: -w\, \lVert D(z_{s'}, s', y) - \tilde z \rVert^2, \qquad \tilde z = z_\tau - (\tau^2 / u_{s'}^2)\, W_{s'},

where the *pseudo target* :math:`\tilde z` stands in for the clean image: :math:`\mathbb E[\tilde z \mid z_{s'}]` is
:math:`\mathbb E[z \mid z_{s'}]`. The weight depends on the variance of the model's step:

| ``fixed``       :math:`s^2 (s'^2 - s^2) / s'^2`, that of the clean chain, which knows nothing of tau: the clean weight
                  :math:`\tfrac12 (s^{-2} - s'^{-2})`, and the first step, s = tau, is a step like all others
| ``specific``    :math:`v_s`: :math:`\tfrac12 (s'^2 - s^2) (u_{s'} / u_s)^2 s'^{-4}`; the first step, where v vanishes, gets
                  :math:`u_{s'}^2`, hence the weight :math:`u_{s'}^2 / (2 s'^4)`
| ``quadrature``  no chain: Gauss-Legendre nodes in 1/s for the continuous limit :math:`\int s^{-3} ds`, and the tail beyond
                  the last node
| ``released``    of the released code (commit 410b09f): equal steps in s up to 3, weight
                  :math:`\rho(s) (s' - s) \bigl( \tfrac{s + s'}{2 s'} \bigr)^2 (u_{s'} / u_s)^2`, the first five steps left out

Another density than :math:`s^{-3}` multiplies the weight by :math:`\rho(s') s'^3`.

References:
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
    | Derivations of the weights: the chapter on certification
"""

__all__ = ["FORMS", "WEIGHTS", "Steps", "clean_steps", "constant", "grid", "noised_steps", "walk"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rdc.schedule import DENSITIES, SIGMA_DATA, Levels, chain_levels, edm_lambda

FORMS = ("fixed", "specific", "quadrature", "released")
WEIGHTS = tuple(DENSITIES)
SKIPPED = 5  # first steps that the released form leaves out
PLACEMENTS = {"fixed": "inverse", "specific": "bridge", "released": "linear"}


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps from the level ``tau`` of the input upwards.

    Attributes:
        tau: Where the noise that is added begins; 0 for a clean input.
        levels: Right ends s' and weights of the steps.
        left: Left ends s, ``(T,)``; None where there is no chain.
        pseudo: Whether the noise also moves the target, to the pseudo target.
    """

    tau: float
    levels: Levels
    left: Float64[Tensor, " t"] | None
    pseudo: bool = True

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def left_ends(self) -> Float64[Tensor, " t"]:
        """Return the left ends; steps without a chain raise ``ValueError``."""
        if self.left is None:
            raise ValueError("these steps have no left ends: there is no chain")
        return self.left

    @property
    def spread(self) -> Float64[Tensor, " t"]:
        """``u = sqrt(s'^2 - tau^2)``, standard deviation of the noise added to the noisy image."""
        return (self.levels.sigma**2 - self.tau**2).sqrt()


def grid(tau: float, count: int, sigma_max: float = 20.0, placement: str = "inverse") -> Float64[Tensor, " t1"]:
    """Levels ``tau = s_0 < ... < s_T = sigma_max`` with T = ``count`` steps.

    Arguments:
        tau: Noise level of the input, model units.
        count: Number of steps T.
        sigma_max: Last level, model units.
        placement: Equal steps in 1/s (``inverse``), log s (``log``) or s (``linear``); ``bridge``: from ``s_1`` on equal steps in
            log u, with ``u_1 = tau / sqrt(2 T)``.

    Raises:
        ValueError: if the name is unknown, there is no step or ``sigma_max`` is not above ``tau``.
    """
    if not 0 < tau < sigma_max < math.inf:
        raise ValueError(f"levels must run from tau = 2 sigma = {tau:g} up to sigma_max = {sigma_max:g}; change one of the two")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    part = torch.arange(count + 1, dtype=torch.float64, device="cpu") / count
    if placement == "inverse":
        found = 1 / (1 / tau + (1 / sigma_max - 1 / tau) * part)
    elif placement == "log":
        found = tau * (sigma_max / tau) ** part
    elif placement == "linear":
        found = tau + (sigma_max - tau) * part
    elif placement == "bridge":
        last = math.sqrt(sigma_max**2 - tau**2)
        first = last if count == 1 else min(tau / math.sqrt(2 * count), last / 2)
        u = first * (last / first) ** (torch.arange(count, dtype=torch.float64, device="cpu") / max(count - 1, 1))
        found = torch.cat([u.new_zeros(1), u]).square().add(tau**2).sqrt()
    else:
        raise ValueError(f"unknown placement {placement!r}; there are inverse, log, linear, bridge")
    found[0], found[-1] = tau, sigma_max
    return found


def noised_steps(
    tau: float,
    count: int,
    form: str = "fixed",
    weight: str = "elbo",
    sigma_max: float | None = None,
    placement: str | None = None,
    sigma_data: float = SIGMA_DATA,
) -> Steps:
    """Return levels and weights of the bound for a noised input, in one of ``FORMS`` with one of the densities ``WEIGHTS``.

    ``sigma_max`` is 20 by default, and 3 for ``released``, whose grid has ``count + 1`` points below its end, as in the code:
    124 is its published setting, and leaves 119 steps.

    Raises:
        ValueError: if a name is unknown or the range is empty.
    """
    check_name("form", form, FORMS)
    check_name("weight", weight, WEIGHTS)
    sigma_max = sigma_max if sigma_max is not None else (3.0 if form == "released" else 20.0)
    if form == "quadrature":
        if placement is not None:
            raise ValueError("form 'quadrature' has its own nodes; leave placement out")
        return Steps(tau, reweighted(gauss_legendre(tau, count, sigma_max), weight, sigma_data), None)
    extra = 1 if form == "released" else 0
    s = grid(tau, count + extra, sigma_max, placement or PLACEMENTS[form])
    if form == "released":
        if count <= SKIPPED:
            raise ValueError(f"the released form leaves out its first {SKIPPED} steps; count must be larger, got {count}")
        return released_steps(tau, s[:-1], weight, sigma_data)
    left, right = s[:-1], s[1:]
    chain = chain_levels(s)
    if form == "specific":
        u = (right**2 - tau**2).sqrt()
        ratio = torch.cat([u.new_ones(1), u[1:] / u[:-1]])
        specific = 0.5 * (right**2 - left**2) * ratio**2 / right**4
        chain = Levels(right, specific)
    return Steps(tau, reweighted(chain, weight, sigma_data), left)


def released_steps(tau: float, s: Tensor, weight: str, sigma_data: float) -> Steps:
    """The steps of the released code on its grid; the density is taken at the left end."""
    left, right = s[SKIPPED:-1], s[SKIPPED + 1 :]
    ratio = (right**2 - tau**2) / (left**2 - tau**2)
    factor = ((left + right) / (2 * right)) ** 2 * ratio
    return Steps(tau, Levels(right, DENSITIES[weight](left, sigma_data) * (right - left) * factor), left)


def clean_steps(
    tau: float,
    count: int,
    weight: str = "elbo",
    sigma_max: float | None = None,
    placement: str | None = None,
    released: bool = False,
    lag: int = 0,
    sigma_data: float = SIGMA_DATA,
) -> Levels:
    r"""Levels of a clean diffusion classifier that begins at ``tau``: the weights of the chain, times :math:`\rho(s') s'^3`.

    ``released`` takes the grid and the rule of the released code instead: :math:`\lambda(s') p(s'') (s' - s)` with
    :math:`\rho = \lambda p`, where its density p is taken ``lag + 1`` nodes early, and the first ``lag`` steps are left out.

    Raises:
        ValueError: if a name is unknown or the range is empty.
    """
    check_name("weight", weight, WEIGHTS)
    if not released:
        return reweighted(chain_levels(grid(tau, count, sigma_max or 20.0, placement or "inverse")), weight, sigma_data)
    s = grid(tau, count + 1, sigma_max or 3.0, placement or "linear")[:-1]
    if count <= lag:
        raise ValueError(f"the released form leaves out {lag} steps; count must be larger, got {count}")
    right, early = s[1 + lag :], s[: len(s) - 1 - lag]
    density = DENSITIES[weight](early, sigma_data) / scale(early, weight, sigma_data) * scale(right, weight, sigma_data)
    return Levels(right, density * s.diff()[: len(right)])


def scale(s: Tensor, weight: str, sigma_data: float) -> Tensor:
    """The factor of the density that the released code takes at the level itself: ``lambda(s)`` for the EDM weights."""
    return s**-3 if weight == "elbo" else edm_lambda(s, sigma_data)


def reweighted(levels: Levels, weight: str, sigma_data: float) -> Levels:
    """Weights of the bound times ``rho(s) s^3``."""
    s = levels.sigma
    return levels if weight == "elbo" else Levels(s, levels.weight * DENSITIES[weight](s, sigma_data) * s**3)


def gauss_legendre(tau: float, count: int, sigma_max: float) -> Levels:
    """Gauss-Legendre nodes in 1/s for ``int_tau^sigma_max s^-3 ds``; the last one also stands for all s above ``sigma_max``."""
    grid(tau, count, sigma_max)
    x, w = (torch.from_numpy(a).flip(0) for a in np.polynomial.legendre.leggauss(count))
    half = (1 / tau - 1 / sigma_max) / 2
    inverse = half * x + (1 / tau + 1 / sigma_max) / 2
    weight = half * w * inverse  # s^-3 ds = r dr with r = 1/s
    weight[-1] += 0.5 / sigma_max**2
    return Levels(1 / inverse, weight)


def constant(steps: Steps, form: str, square: Tensor, dim: int) -> Tensor:
    r"""What the losses leave out of the bound: the part that is the same for all classes, ``(N,)``, in nats.

    With :math:`\ell(r) = r - 1 - \log r` and the prior :math:`\mathcal N(0, s_T^2)` it is
    :math:`-\lVert z_\tau \rVert^2 / (2 s_T^2) - \tfrac n2\, \ell(u_T^2 / s_T^2) - n \sum_t w_t \tau^4 / u_t^2` and, for
    ``fixed``, :math:`-\tfrac n2 \sum_{s > \tau} \ell(v_s / \hat v_s) - \tfrac n2 \log(2 \pi \hat v_\tau)`, with the variances
    :math:`v, \hat v` of the bridge and the chain; for ``specific`` :math:`-\tfrac n2 \log(2 \pi u_1^2)`. For ``quadrature`` all
    of it is :math:`-\tfrac n2 \log(2 \pi \tau^2)`.

    Arguments:
        steps: Steps with the weights of the bound.
        form: ``fixed``, ``specific`` or ``quadrature``.
        square: ``|z_tau|^2``, ``(N,)``.
        dim: Number n of pixels.
    """
    tau, u, s = steps.tau, steps.spread, steps.levels.sigma
    if form == "quadrature":
        return torch.full_like(square, -0.5 * dim * math.log(2 * math.pi * tau**2))
    ratio = float(u[-1] ** 2 / s[-1] ** 2)
    kl = 0.5 * (square / float(s[-1]) ** 2 + dim * (ratio - 1 - math.log(ratio)))
    pseudo = float((steps.levels.weight * tau**4 / u**2).sum())
    if form == "specific":
        return -kl - dim * pseudo - 0.5 * dim * math.log(2 * math.pi * float(u[0]) ** 2)
    left = steps.left_ends
    chain = left**2 * (s**2 - left**2) / s**2
    bridge = (left**2 - tau**2)[1:] * (s**2 - left**2)[1:] / u[1:] ** 2
    mismatch = bridge / chain[1:] - 1 - (bridge / chain[1:]).log()
    return -kl - dim * pseudo - 0.5 * dim * float(mismatch.sum()) - 0.5 * dim * math.log(2 * math.pi * float(chain[0]))


def walk(steps: Steps, coupling: str, eps: Callable[[int], Tensor]) -> Float[Tensor, "two t c h w"]:
    r"""One sample of the noise: what is added to the noisy image, :math:`W_{s'}`, and to the target; float64 ``(2, T, C, H, W)``.

    ``path``: :math:`W` is one Brownian path. The target then is not :math:`\tilde z`, the mean given the end of the step, but the
    value of the path, :math:`z_\tau + W_{s'} - s'^2 / (s'^2 - s^2)\, (W_{s'} - W_s)`, which has that mean. Otherwise the levels
    are independent.

    Arguments:
        steps: Levels, and for ``path`` their left ends.
        coupling: ``path``, or anything else.
        eps: Standard normal noise of the shape of an image for level 0...T-1, and for -1.
    """
    s, u, tau = steps.levels.sigma[:, None, None, None], steps.spread[:, None, None, None], steps.tau
    noise = torch.stack([eps(t) for t in range(len(steps))]).double()
    if coupling != "path":
        return torch.stack([u * noise, -(tau**2 / u) * noise if steps.pseudo else torch.zeros_like(noise)])
    ends = steps.left_ends
    left = ends[:, None, None, None]
    jump = (s**2 - left**2).sqrt() * noise
    path = jump.cumsum(dim=0)
    if float(ends[0]) > tau:
        path = path + math.sqrt(float(ends[0]) ** 2 - tau**2) * eps(-1).double()
    return torch.stack([path, path - s**2 / (s**2 - left**2) * jump])


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown name."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")
