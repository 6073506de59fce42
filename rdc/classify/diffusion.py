r"""The diffusion classifier of Theorem 3.1: any denoiser, any levels, exact gradients, flat memory.

.. math::
    f_k(x) = \log \pi_k - \sum_{t=1}^T w_t\, \frac1R \sum_{r=1}^R \lVert z - D(z + \sigma_t \epsilon_{t r}, \sigma_t,
    k) \rVert^2, \qquad z = 2x - 1 .

The noise is a fixed function of the seed, the same for every image: the classifier is one deterministic function of the
image, and what it says about an image does not depend on the rest of the batch.

Losses and their flat-memory gradient come from :mod:`rdc.classify.denoising_loss`.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Theorem 3.1, Eq. 6
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["NOISES", "DiffusionClassifier"]

import copy
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.classify.denoising_loss import Losses, Samples, denoising_losses
from rdc.denoise.base import Denoiser, to_model
from rdc.door import check_images
from rdc.noise_source import Noise
from rdc.quantities import count
from rdc.schedule import Levels

NOISES = ("shared", "per_class", "fresh", "antithetic")
LARGEST = 2**28  # bytes of noise that are kept at a time


class DiffusionClassifier(nn.Module):
    """Images in [0, 1] to logits ``(N, K)``: minus the weighted denoising losses.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        levels: Noise levels and weights.
        noise: ``shared``: the same noise for all classes. ``per_class``: another one for each class. ``antithetic``:
            shared, and draws come in pairs ``eps, -eps``. ``fresh``: shared, and new at every call.
        reduce: ``sum`` over pixels, as in the theorem, or ``mean``, as in the released code.
        draws: Number R of noise draws per level; even for ``antithetic``.
        share_levels: Whether all levels take the same noise.
        prior: Class probabilities ``(K,)``; uniform if None.
        seed: Seed of the noise.
        chunk: Network evaluations at a time; None lets the device decide. It changes no number beyond rounding.

    Raises:
        ValueError: on an unknown name, a number out of its range, or a prior that is none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        levels: Levels,
        noise: str = "shared",
        reduce: str = "sum",
        seed: int = 0,
        draws: int = 1,
        share_levels: bool = False,
        prior: Float[Tensor, " k"] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"unknown noise {noise!r}; there are {', '.join(NOISES)}")
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
        Noise(seed, draws, noise == "antithetic")  # raises if they do not fit
        if chunk is not None:
            count(chunk, "chunk")
        if prior is not None and (prior.shape != (denoiser.num_classes,) or not bool((prior > 0).all())):
            raise ValueError(f"prior needs {denoiser.num_classes} positive probabilities")
        self.denoiser, self.levels = denoiser, levels
        self.noise, self.reduce, self.seed, self.draws = noise, reduce, seed, draws
        self.share_levels, self.prior, self.chunk = share_levels, prior, chunk
        self.calls = 0

    def frozen(self, seed: int) -> "DiffusionClassifier":
        """This classifier with the noise of ``seed`` at every call (``fresh`` becomes ``shared``) and the same denoiser."""
        found = copy.copy(self)
        found.noise, found.seed, found.calls = "shared" if self.noise == "fresh" else self.noise, seed, 0
        found.__dict__.pop("_drawn", None)
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.denoiser.num_classes

    @property
    def evaluations(self) -> int:
        """Network evaluations for the logits of one image: T R K, or T R when one pass serves all classes."""
        return len(self.levels) * self.draws * (1 if self._one_pass else self.num_classes)

    @property
    def _one_pass(self) -> bool:
        return self.denoiser.one_pass and self.noise != "per_class"

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits ``(N, K)``, differentiable once with respect to ``x``.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        logits = -self._table(x, self.levels.weight).sum(dim=2).to(x.dtype)
        if self.reduce == "mean":
            logits = logits / x[0].numel()
        return logits if self.prior is None else logits + self.prior.log().to(logits)

    def losses(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k t"]:
        """Return the unweighted losses ``|z - D|^2``, averaged over draws, for every class and level, ``(N, K, T)``; no gradient.

        Summed with any weights over the last axis they give minus the logits: one run answers many questions.
        """
        with torch.no_grad():
            return self._table(x, torch.ones_like(self.levels.weight)).to(x.dtype)

    def batch(self, x: Float[Tensor, "n c h w"]) -> Losses:
        """Return the weighted losses of a batch as they can be evaluated, one by one or all; fresh noise is drawn once for it."""
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        z = to_model(x)
        return self._losses(z, self.levels.weight, range(len(self.levels)))

    def _table(self, x: Tensor, weight: Tensor) -> Tensor:
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        z = to_model(x)
        each = z[0].numel() * 4 * self.draws * (self.num_classes if self.noise == "per_class" else 1)
        size = max(1, LARGEST // each)
        parts = [range(i, min(i + size, len(weight))) for i in range(0, len(weight), size)]
        return torch.cat([denoising_losses(self._losses(z, weight, part)) for part in parts], dim=2)

    def _losses(self, z: Tensor, weight: Tensor, part: range) -> Losses:
        samples, sigma = self._samples(z, part)
        weight = weight[part.start : part.stop].to(z.device)
        return Losses(self.denoiser, sigma, weight, samples, z, z[:, None], chunk=self.chunk)

    def _samples(self, z: Tensor, part: range) -> tuple[Samples, Tensor]:
        """Noise and levels where the data are; fixed noise is drawn once."""
        noise = Noise(self.seed, self.draws, self.noise == "antithetic", self.noise == "per_class", self.share_levels)
        key = noise, self.calls, part, z.device, z.dtype
        if key not in self._drawn:
            self._drawn.clear()
            sigma = self.levels.sigma[part.start : part.stop].to(z)
            eps = noise.table(self.denoiser.shape, [(self.calls,)], part, self.num_classes).to(z)
            signs = 2 if noise.antithetic else 1
            added = sigma[:, None, None, None] * eps
            self._drawn[key] = Samples(added, None, signs, per_class=noise.per_class), sigma
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[object, tuple[Samples, Tensor]]:
        return {}
