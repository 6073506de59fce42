r"""Sampling from a denoiser, guided or not: deterministic and ancestral, by noise level, image by image reproducible.

A step goes from the level :math:`\sigma` to :math:`\sigma' < \sigma`, the last one to 0. With :math:`D = D(z, \sigma, y)`, a
guide :math:`g = \nabla \log p(y \mid z)` and a scale s there are two ways to guide:

| ``score``  the score is that of :math:`p(z \mid y) p(y \mid z)^s`, of :math:`p(z) p(y \mid z)^s` for a denoiser without a label:
             every D is replaced by :math:`\tilde D = D + s \sigma^2 g`
| ``ddpm``   the mean of the reverse step moves by :math:`s \Sigma \nabla_{x_t} \log p(y \mid x_t)` (Dhariwal and Nichol, the
             paper), in the paper's coordinates :math:`x_t = z / \sqrt{1 + \sigma^2}`

and three samplers:

| ``euler``, ``heun``  the probability flow :math:`dz / d\sigma = (z - \tilde D) / \sigma`, of first and second order; no noise
| ``ancestral``        :math:`z' = \tilde D + \frac{\sigma'^2}{\sigma^2} (z - \tilde D) + \sqrt{\Sigma_z}\, \epsilon`, the chain
                       of DDPM, with the variance by name

| ``posterior``  :math:`\Sigma_z = \sigma'^2 (\sigma^2 - \sigma'^2) / \sigma^2`, exact for data that are one point
| ``bound``      :math:`\Sigma_z = (1 + \sigma'^2)(\sigma^2 - \sigma'^2) / (1 + \sigma^2)`, exact for data
                 :math:`\mathcal N(0, I)`

These are :math:`\tilde\beta_t` and :math:`\beta_t` of DDPM, divided by :math:`\alpha_{t-1}`.

In a step, ``score`` moves z' by :math:`s (\sigma^2 - \sigma'^2)\, g`, ``ddpm`` by :math:`s \Sigma_z \sqrt{(1 + \sigma^2) /
(1 + \sigma'^2)}\, g`. Their ratio is :math:`\frac{\sigma'^2}{\sigma^2} \sqrt{\frac{1 + \sigma^2}{1 + \sigma'^2}}` for
``posterior`` and :math:`\sqrt{\frac{1 + \sigma'^2}{1 + \sigma^2}}` for ``bound``: below 1 by the order of the step. So the DDPM
form guides a little less, with ``posterior`` not at all in the last step, and both agree in the limit of many steps.

Scale 0 is unguided, to the bit. The noise of an image follows from its seed alone; other images of a batch change it by rounding
errors of the network only.

References:
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), Eq. 4 and section 3.1
    | https://arxiv.org/abs/2208.08664
    | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), algorithm 1, https://arxiv.org/abs/2105.05233
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), algorithm 1, Eq. 5
    | https://arxiv.org/abs/2206.00364
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
"""

__all__ = ["Samples", "sample"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from rdc.denoise.base import Denoiser, from_model
from rdc.guide.guides import Guide
from rdc.guide.plan import SamplingPlan, step_variance
from rdc.rng import randn


@dataclass(frozen=True, eq=False)
class Samples:
    """Results of :func:`sample`.

    Attributes:
        z: The images in model units, ``(N, C, H, W)``; not clipped.
        estimates: D at every level of the path, ``(N, T, C, H, W)``, if it was asked for: what the denoiser makes of the guided
            image so far, before the guidance of that step.
    """

    z: Float[Tensor, "n c h w"]
    estimates: Float[Tensor, "n t c h w"] | None

    @property
    def x(self) -> Float[Tensor, "n c h w"]:
        """The images in [0, 1], clipped."""
        return from_model(self.z).clamp(0, 1)


def sample(
    denoiser: Denoiser,
    y: Int64[Tensor, " n"],
    seeds: Sequence[int],
    plan: SamplingPlan | None = None,
    guide: Guide | None = None,
    scale: float = 1.0,
    batch: int = 100,
    keep: bool = False,
    dtype: torch.dtype = torch.float32,
    quiet: bool = True,
) -> Samples:
    """One image for each class and seed.

    Arguments:
        denoiser: Any denoiser; without ``plan.conditional`` one that answers without a label.
        y: Wanted classes.
        seeds: A seed for each image, the owner of all its noise.
        plan: How; by default 25 steps of Heun's method.
        guide: ``(z_sigma, sigma, y) -> grad log p(y | z_sigma)``, see :mod:`rdc.guide.guides`.
        scale: Factor s of the guide's gradient; with 0 the guide is not called.
        batch: Images at a time.
        keep: Whether to keep the intermediate estimates.
        dtype: Type of the images.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: if there are not as many seeds as classes, or none, or a class is not one of the denoiser's.
    """
    plan, seeds = SamplingPlan() if plan is None else plan, [int(seed) for seed in seeds]
    if not len(y) or len(seeds) != len(y):
        raise ValueError(f"sampling needs a seed for each class, got {len(seeds)} seeds for {len(y)} classes")
    if not 0 <= int(y.min()) <= int(y.max()) < denoiser.num_classes:
        raise ValueError(f"classes must lie in 0...{denoiser.num_classes - 1}, got {int(y.min())}...{int(y.max())}")
    guide, parts = None if scale == 0 else guide, []
    with tqdm(total=len(y) * (len(plan.path) - 1), disable=quiet, desc="sample", unit="step") as bar, torch.no_grad():
        for start in range(0, len(y), batch):
            part = slice(start, start + batch)
            run = Run(denoiser, y[part], seeds[part], plan, guide, scale)
            parts.append(run.through(dtype, keep, bar))
    z, estimates = zip(*parts, strict=True)
    return Samples(torch.cat(z), torch.cat(estimates) if keep else None)


@dataclass(frozen=True, eq=False)
class Run:
    """One batch on its way through the levels."""

    denoiser: Denoiser
    y: Tensor
    seeds: list[int]
    plan: SamplingPlan
    guide: Guide | None
    scale: float

    def through(self, dtype: torch.dtype, keep: bool, bar: tqdm) -> tuple[Tensor, Tensor | None]:
        """Images and estimates."""
        path = self.plan.path.tolist()
        z, kept = path[0] * self.noise("start", 0).to(device=self.y.device, dtype=dtype), []
        for i, (sigma, below) in enumerate(zip(path[:-1], path[1:], strict=True)):
            estimate, gradient = self.look(z, sigma)
            if self.plan.method == "ancestral":
                z = self.ancestral(z, estimate, gradient, sigma, below, i)
            else:
                z = self.flow(z, estimate, gradient, sigma, below)
            if keep:
                kept.append(estimate)
            bar.update(len(z))
        return z, torch.stack(kept, dim=1) if keep else None

    def noise(self, what: str, step: int) -> Tensor:
        """Noise ``(N, C, H, W)``, each image from its own seed."""
        return torch.stack([randn(self.denoiser.shape, seed, "sample", what, step) for seed in self.seeds])

    def look(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor | None]:
        """``D`` and ``s g`` at a point; the latter is None where nothing guides."""
        level = torch.full((len(z),), sigma, dtype=z.dtype, device=z.device)
        estimate = self.denoiser(z, level, self.y if self.plan.conditional else None)
        estimate = estimate.clamp(-1, 1) if self.plan.clip else estimate
        return estimate, None if self.guide is None else self.scale * self.guide(z, level, self.y)

    def flow(self, z: Tensor, estimate: Tensor, gradient: Tensor | None, sigma: float, below: float) -> Tensor:
        """A step of the flow: Euler's, or for ``heun`` with the mean of the slopes at both ends, except in the last step."""
        slope = (z - guided(estimate, gradient, sigma)) / sigma
        end = z + (below - sigma) * slope
        if self.plan.method == "euler" or below == 0:
            return end
        other = (end - guided(*self.look(end, below), below)) / below
        return z + (below - sigma) * (slope + other) / 2

    def ancestral(self, z: Tensor, estimate: Tensor, gradient: Tensor | None, sigma: float, below: float, i: int) -> Tensor:
        """A draw from the reverse step; none of its noise goes into the last one."""
        variance, ratio = step_variance(sigma, below, self.plan.variance), (below / sigma) ** 2
        if self.plan.form == "ddpm":
            mean = estimate + ratio * (z - estimate)
            if gradient is not None:
                mean = mean + variance * ((1 + sigma**2) / (1 + below**2)) ** 0.5 * gradient
        else:
            estimate = guided(estimate, gradient, sigma)
            mean = estimate + ratio * (z - estimate)
        return mean + variance**0.5 * self.noise("step", i).to(z) if below else mean


def guided(estimate: Tensor, gradient: Tensor | None, sigma: float) -> Tensor:
    """``D + sigma^2 s g``."""
    return estimate if gradient is None else estimate + sigma**2 * gradient
