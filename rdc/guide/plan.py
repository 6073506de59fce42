r"""How to sample: the noise levels, the sampler, and the form and variance of its steps; see :mod:`rdc.guide.sampling`.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Eq. 5
    | https://arxiv.org/abs/2206.00364
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), section 3.2, https://arxiv.org/abs/2006.11239
"""

__all__ = ["PLANS", "SamplingPlan", "edm_path", "evaluations", "share", "step_variance", "vp_path"]

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from rdc.schedule import alpha_to_sigma, vp_alphas

METHODS, FORMS, VARIANCES = ("euler", "heun", "ancestral"), ("score", "ddpm"), ("posterior", "bound")


def edm_path(count: int = 25, sigma_min: float = 0.02, sigma_max: float = 80.0, rho: float = 7.0) -> Float64[Tensor, " t"]:
    """``count`` levels from ``sigma_max`` down to ``sigma_min``, equally spaced in ``sigma^(1/rho)``, and a last 0.

    Raises:
        ValueError: if there are fewer than two levels, or the range is empty.
    """
    if count < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"a path needs count >= 2 and 0 < sigma_min < sigma_max, got {count}, {sigma_min}, {sigma_max}")
    part = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), count, dtype=torch.float64, device="cpu") ** rho
    return torch.cat([part, part.new_zeros(1)])


def vp_path(count: int = 250) -> Float64[Tensor, " t"]:
    """``count`` of the 1 000 steps of the linear VP schedule, equally spaced from the last to the first, and a last 0.

    Raises:
        ValueError: if ``count`` is not between 2 and 1 000.
    """
    sigma = alpha_to_sigma(vp_alphas())
    if not 2 <= count <= len(sigma):
        raise ValueError(f"count must be between 2 and {len(sigma)}, got {count}")
    steps = torch.linspace(len(sigma) - 1, 0, count, dtype=torch.float64, device="cpu").round().long()
    return torch.cat([sigma[steps], sigma.new_zeros(1)])


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """How to sample.

    Raises:
        ValueError: if a name is unknown, the path does not fall to 0, or ``ddpm`` is asked for without noise.
    """

    path: Float64[Tensor, " t"] = field(default_factory=edm_path)  # falling levels, the last one 0
    method: str = "heun"  # euler, heun or ancestral
    form: str = "score"  # of the guidance: score or, for ancestral, ddpm
    variance: str = "posterior"  # of an ancestral step: posterior or bound
    conditional: bool = True  # whether the denoiser knows the class, as in the paper; else only the guide does
    clip: bool = False  # whether D is clipped to [-1, 1] before it is used, as in the released code

    def __post_init__(self) -> None:
        for what, known in (("method", METHODS), ("form", FORMS), ("variance", VARIANCES)):
            name = getattr(self, what)
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")
        if len(self.path) < 2 or not bool((self.path.diff() < 0).all()) or float(self.path[-1]) != 0:
            raise ValueError("a path is at least one level and then 0, strictly falling; take edm_path() or vp_path()")
        if self.form == "ddpm" and self.method != "ancestral":
            raise ValueError("the form 'ddpm' moves the mean of a step with noise: take method='ancestral', or form='score'")


def step_variance(sigma: float, below: float, which: str) -> float:
    """Variance of an ancestral step from ``sigma`` to ``below``, model units."""
    if which == "posterior":
        return below**2 * (sigma**2 - below**2) / sigma**2
    return (1 + below**2) * (sigma**2 - below**2) / (1 + sigma**2)


#: The paper's chain and form of guidance, with 25 steps and with its 250; and a flow that is better with fewer evaluations, and
#: whose images are a smooth function of their first noise, so that paired differences are smaller.
PLANS = {
    "ddpm": SamplingPlan(vp_path(25), "ancestral", "ddpm", "posterior", clip=True),
    "ddpm250": SamplingPlan(vp_path(250), "ancestral", "ddpm", "posterior", clip=True),
    "heun": SamplingPlan(edm_path(9), "heun", "score"),
}


def evaluations(plan: SamplingPlan) -> int:
    """Return how often the denoiser, and a guide, is asked for an image."""
    steps = len(plan.path) - 1
    return 2 * steps - 1 if plan.method == "heun" else steps


def share(plan: SamplingPlan, sigma: float) -> float:
    """Return the DDPM form's move of the mean over the score form's, in the step that begins at or next above a level.

    It is 1 less something of the order of the step, so that a scale has a limit that knows no number of steps, that of the score
    form; with few steps the same scale guides less.
    """
    path = plan.path.tolist()
    above, below = min((s, b) for s, b in zip(path[:-1], path[1:], strict=True) if s >= sigma)
    moved = step_variance(above, below, plan.variance) * ((1 + above**2) / (1 + below**2)) ** 0.5
    return moved / (above**2 - below**2)
