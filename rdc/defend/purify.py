r"""Purification by diffusion (DiffPure): noise an image up to a time, run the reverse process, then classify.

The forward process is the VP-SDE :math:`dz = -\tfrac12 \beta(t) z\, dt + \sqrt{\beta(t)}\, dw` with
:math:`\beta(t) = 0.1 + 19.9\, t`, so that

.. math::
    z_t = \sqrt{\alpha_t}\, z + \sqrt{1 - \alpha_t}\, \epsilon, \qquad
    \alpha_t = \exp\Bigl(-\int_0^t \beta\Bigr) = \exp(-0.1\, t - 9.95\, t^2), \qquad z = 2x - 1 .

A denoiser of this package looks at :math:`z_t / \sqrt{\alpha_t} = z + \sigma_t \epsilon` with
:math:`\sigma_t = \sqrt{(1 - \alpha_t) / \alpha_t}`: 0.34 at t = 0.1, 0.43 at t = 0.125. With
:math:`D = D(z_t / \sqrt{\alpha_t}, \sigma_t)` a step of the reverse process from t to s < t is

| ``ddpm``  :math:`z_s \sim p(z_s \mid z_t, z_0 = D)`, ancestral sampling; the last step, to s = 0, returns D itself
| ``sde``   Euler-Maruyama: :math:`z_s = z_t + (t - s)\, \beta_t\, (\tfrac12 z_t + \nabla \log p_t) + \sqrt{(t - s) \beta_t}\,
            \epsilon`, with :math:`\nabla \log p_t = (\sqrt{\alpha_t} D - z_t) / (1 - \alpha_t)`; the last step adds noise too

With an exact denoiser and infinitely many steps both sample the exact posterior :math:`p(z_0 \mid z_{t^*})`.

References:
    | Diffusion Models for Adversarial Purification (Nie et al., 2022), https://arxiv.org/abs/2205.07460
    | Score-Based Generative Modeling through SDEs (Song et al., 2021), https://arxiv.org/abs/2011.13456
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eqs. 6 and 7, https://arxiv.org/abs/2006.11239
"""

__all__ = ["SAMPLERS", "DiffPure", "Purify", "vp_beta", "vp_integral"]

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.autograd import iterate
from rdc.data import check_images
from rdc.defend.preprocessed import Preprocessed, one_denoising_step
from rdc.denoise.base import Denoiser, check_unlabelled, from_model, to_model
from rdc.noise_source import purify_noise
from rdc.randomness import known_noise
from rdc.rng import whole

SAMPLERS = ("ddpm", "sde")


def vp_beta(t: float) -> float:
    """``beta(t) = 0.1 + 19.9 t`` for t in [0, 1]."""
    return 0.1 + 19.9 * t


def vp_integral(t: float) -> float:
    """``B(t) = int_0^t beta = 0.1 t + 9.95 t^2``, so that ``alpha = exp(-B)`` and ``sigma^2 = exp(B) - 1``."""
    return 0.1 * t + 9.95 * t * t


class Purify(nn.Module):
    """Images in [0, 1] to purified images in [0, 1], with the exact gradient at the memory of one step plus ``steps`` images.

    The noise is the same for all images of a call, so that a result does not depend on the batch. The result is clipped to
    [0, 1] once, at the end.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`, used without a label.
        t: Time t* in (0, 1] up to which an image is diffused; see :attr:`sigma` for its noise level.
        steps: Steps of the reverse process, equally long in t. The paper's solver takes 1000 t*, with ``sde``.
        sampler: ``ddpm`` or ``sde``.
        noise: ``fixed``: the same at every call. ``fresh``: new at every call.
        seed: Seed of the noise.

    Raises:
        ValueError: for a time outside (0, 1], no steps, an unknown name, or a denoiser that was not trained without labels.
    """

    def __init__(
        self, denoiser: Denoiser, t: float = 0.1, steps: int = 10, sampler: str = "ddpm", noise: str = "fixed", seed: int = 0
    ) -> None:
        super().__init__()
        if not 0 < t <= 1:
            raise ValueError(f"t must lie in (0, 1], got {t}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
        if noise not in ("fixed", "fresh"):
            raise ValueError(f"noise must be 'fixed' or 'fresh', got {noise!r}")
        check_unlabelled(denoiser)
        self.denoiser, self.t, self.steps, self.sampler = denoiser, t, steps, sampler
        self.noise, self.seed, self.calls = noise, whole(seed), 0
        self._kept: tuple[object, list[Tensor]] = None, []  # noise of the last call, where the images were

    def frozen(self, seed: int) -> "Purify":
        """This process with the noise of ``seed`` at every call and the same denoiser."""
        found = copy.copy(self)
        found.noise, found.seed, found.calls = "fixed", whole(seed), 0
        return found

    @property
    def sigma(self) -> float:
        """Noise level at t*, model units: the standard deviation of the noise relative to the image."""
        return math.sqrt(math.expm1(vp_integral(self.t)))

    @property
    def evaluations(self) -> int:
        """Network evaluations for one image, without gradient; a gradient takes as many again, and their backward passes."""
        return self.steps

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Purified images, differentiable once with respect to ``x``.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        call, reverse = self.calls, {"ddpm": self._ancestral, "sde": self._euler}[self.sampler]
        whole, (first, *noise) = vp_integral(self.t), self._drawn(call, x)
        z = math.exp(-whole / 2) * to_model(x) + math.sqrt(-math.expm1(-whole)) * first

        def step(z: Tensor, i: int) -> Tensor:
            return reverse(z, self.t * (1 - i / self.steps), self.t * (1 - (i + 1) / self.steps), noise[i])

        return from_model(iterate(step, z, self.steps)).clamp(0, 1)

    def _drawn(self, call: int, x: Tensor) -> list[Tensor]:
        """Noise of the way there and of each step back, where the data are; drawn once, anew for each call if it is fresh."""
        key = self.seed, call, x.device, x.dtype
        if self._kept[0] != key:
            places = ("forward", *range(self.steps))
            self._kept = key, [purify_noise(self.denoiser.shape, self.seed, call, i, like=x) for i in places]
        return self._kept[1]

    def _estimate(self, z: Tensor, t: float) -> Tensor:
        """``E[z_0 | z_t]`` from the denoiser of the package."""
        whole = vp_integral(t)
        sigma = torch.full((len(z),), math.sqrt(math.expm1(whole)), dtype=z.dtype, device=z.device)
        return self.denoiser(z * math.exp(whole / 2), sigma, None)

    def _ancestral(self, z: Tensor, t: float, s: float, eps: Tensor) -> Tensor:
        """A draw from ``p(z_s | z_t, z_0 = D)``."""
        between, noise_t, noise_s = vp_integral(t) - vp_integral(s), -math.expm1(-vp_integral(t)), -math.expm1(-vp_integral(s))
        beta = -math.expm1(-between)  # 1 - alpha_t / alpha_s
        to_estimate = math.exp(-vp_integral(s) / 2) * beta / noise_t
        to_image = math.exp(-between / 2) * noise_s / noise_t
        return to_estimate * self._estimate(z, t) + to_image * z + math.sqrt(beta * noise_s / noise_t) * eps

    def _euler(self, z: Tensor, t: float, s: float, eps: Tensor) -> Tensor:
        """A step of Euler-Maruyama of the reverse SDE."""
        whole, length = vp_integral(t), (t - s) * vp_beta(t)
        score = (math.exp(-whole / 2) * self._estimate(z, t) - z) / -math.expm1(-whole)
        return z + length * (z / 2 + score) + math.sqrt(length) * eps


class DiffPure(nn.Module):
    """The defence ``classifier(purify(x))``.

    Arguments:
        purify: The purification.
        classifier: Images to logits: a network, or a diffusion classifier.
        gradient: ``exact``, ``bpda`` (identity) or ``denoise`` (Jacobian of ``surrogate``).
        surrogate: For ``denoise``; by default one denoising step at the noise level of t*.

    Raises:
        ValueError: for an unknown gradient, or a surrogate with another gradient than ``denoise``.
    """

    def __init__(
        self,
        purify: Purify,
        classifier: nn.Module,
        gradient: str = "exact",
        surrogate: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if gradient == "denoise" and surrogate is None:
            surrogate = one_denoising_step(purify.denoiser, purify.sigma)
        Preprocessed(purify, classifier, gradient, surrogate)  # refuses a bad name
        self.purify, self.classifier, self.gradient, self.surrogate = purify, classifier, gradient, surrogate

    def frozen(self, seed: int) -> "DiffPure":
        """The same defence with the noise of ``seed`` in purification and classifier."""
        return DiffPure(self.purify.frozen(seed), known_noise(self.classifier, seed), self.gradient, self.surrogate)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the purified images."""
        return Preprocessed(self.purify, self.classifier, self.gradient, self.surrogate)(x)
