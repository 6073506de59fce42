r"""Networks of other parameterisations, seen as the raw network of an :class:`rdc.denoise.EDM`.

A network that predicts noise, or a score, gives the denoiser

.. math:: D(z_\sigma, \sigma, y) = z_\sigma \pm \sigma F(c_\text{in} z_\sigma, c_\text{noise}(\sigma), y),

with a minus sign for noise. With :math:`s^2 = \sigma^2 + \sigma_d^2` and the scaled input :math:`u = z_\sigma / s` of EDM, the
raw network of EDM that gives the same denoiser is

.. math:: F_\text{EDM}(u, \sigma, y) = \bigl( \sigma u \pm s F(c_\text{in} s u, c_\text{noise}(\sigma), y) \bigr) / \sigma_d.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1 and appendix C
    | https://arxiv.org/abs/2206.00364
    | Improved Denoising Diffusion Probabilistic Models (Nichol and Dhariwal, 2021), eq. 17
    | https://arxiv.org/abs/2102.09672
"""

__all__ = ["STEPS", "Parameterisation", "Reparameterised", "log_sigma_of", "schedule_of"]

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.denoise.published_unet import Fixed

#: Of Karras et al.; VP and VE of Song et al.; and VP in 1000 steps, with a linear or a cosine schedule.
Parameterisation = Literal["edm", "vp", "ve", "ddpm-linear", "ddpm-cosine"]
STEPS = 1000
BETA_MIN, BETA_D = 0.1, 19.9


def schedule_of(kind: str) -> Tensor:
    r"""The products :math:`\bar\alpha_t`, ``(1000,)``, float64: ``linear`` (Ho et al., 2020) or ``cosine``.

    Raises:
        ValueError: if there is no such schedule.
    """
    if kind == "linear":
        betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64, device="cpu")
    elif kind == "cosine":
        t = torch.arange(STEPS + 1, dtype=torch.float64, device="cpu") / STEPS
        falling = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1 - falling[1:] / falling[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"unknown schedule {kind!r}; there are linear and cosine")
    return (1 - betas).cumprod(0)


def log_sigma_of(alphas_cumprod: Tensor) -> Tensor:
    r""":math:`\log \sigma_t`, with :math:`\sigma_t^2 = (1 - \bar\alpha_t) / \bar\alpha_t`, which must rise with t; float64."""
    alphas = alphas_cumprod.detach().cpu().double()
    found = ((1 - alphas) / alphas).log() / 2
    if found.ndim != 1 or len(found) < 2 or not bool(found.isfinite().all() & (found.diff() > 0).all()):
        raise ValueError("the products of a schedule must fall from below 1 to above 0")
    return found


class Reparameterised(nn.Module):
    """The raw network of EDM that gives the denoiser of another network.

    Arguments:
        network: ``network(x, c_noise, one_hot)``.
        kind: Its parameterisation, one of those of :data:`Parameterisation` but ``edm``.
        sigma_data: That of the EDM around it, which cancels.
        schedule: The products of the steps of a VP network, in place of those that ``kind`` names. Between two steps the
            condition is linear in the logarithm of the noise level, and it stays at the first and the last step beyond them.
    """

    def __init__(self, network: nn.Module, kind: str, sigma_data: float = 0.5, schedule: Tensor | None = None) -> None:
        super().__init__()
        if kind == "edm" or kind not in get_args(Parameterisation):
            raise ValueError(f"unknown parameterisation {kind!r}; there are {', '.join(get_args(Parameterisation)[1:])}")
        self.network, self.kind, self.sigma_data = network, kind, sigma_data
        if kind.startswith("ddpm"):
            alphas = schedule_of(kind.removeprefix("ddpm-")) if schedule is None else schedule
            self.steps = Fixed(persistent=False, log_sigma=log_sigma_of(alphas))

    def forward(
        self, u: Float[Tensor, "n c h w"], noise: Float[Tensor, " n"], label: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """``F_EDM``, for the condition ``noise = log(sigma) / 4`` of EDM; computed in float32 at least, but for the network."""
        dtype = u.dtype
        log_sigma = 4 * noise.to(torch.promote_types(noise.dtype, torch.float32))
        u = u.to(log_sigma.dtype)
        sigma = log_sigma.exp()[:, None, None, None]
        total = (sigma**2 + self.sigma_data**2).sqrt()
        scale, sign = (1.0, 1) if self.kind == "ve" else ((sigma**2 + 1).rsqrt(), -1)
        found = self.network((scale * total * u).to(dtype), self.condition(log_sigma), label)
        return ((sigma * u + sign * total * found.to(u.dtype)) / self.sigma_data).to(dtype)

    def condition(self, log_sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The condition ``c_noise`` of the network: ``log(sigma / 2)``, or the time of VP in steps."""
        if self.kind == "ve":
            return log_sigma - math.log(2)
        if self.kind == "vp":
            time = ((BETA_MIN**2 + 2 * BETA_D * (2 * log_sigma).exp().log1p()).sqrt() - BETA_MIN) / BETA_D
            return (STEPS - 1) * time
        table = self.steps.get_buffer("log_sigma").to(log_sigma.dtype)
        above = torch.searchsorted(table, log_sigma.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + ((log_sigma - low) / (high - low)).clamp(0, 1)
