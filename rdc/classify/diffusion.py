r"""The diffusion classifier of Theorem 3.1: any denoiser, any levels, exact gradients, flat memory.

.. math::
    f_k(x) = \log \pi_k - \sum_{t=1}^T w_t\, \frac1R \sum_{r=1}^R \lVert z - D(z + \sigma_t \epsilon_{t r}, \sigma_t,
    k) \rVert^2, \qquad z = 2x - 1 .

The noise is a fixed function of the seed, the same for every image: the classifier is one deterministic function of the
image, and what it says about an image does not depend on the rest of the batch.

The gradient takes two passes. The first, without autograd, gives the logits, hence the gradient of the loss with respect to
the logits; the second runs the network again, on the same noise, only for the classes whose entry is not zero. Both passes
go through the evaluations (level, image, class) in chunks, so that memory is that of one chunk.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Theorem 3.1, Eq. 6
    | https://arxiv.org/abs/2305.15241
"""

__all__ = ["NOISES", "DiffusionClassifier"]

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rdc.data import check_images
from rdc.denoise.base import Denoiser, to_model
from rdc.rng import randn
from rdc.schedule import Levels

NOISES = ("shared", "per_class", "fresh", "antithetic")


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
        seed: Owner of the noise.
        chunk: Number of network evaluations at a time.
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
        chunk: int = 256,
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"unknown noise {noise!r}; there are {', '.join(NOISES)}")
        if reduce not in ("sum", "mean"):
            raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
        if draws < 1 or chunk < 1 or (noise == "antithetic" and draws % 2):
            raise ValueError(f"draws and chunk must be positive, and draws even for antithetic noise; got {draws}, {chunk}")
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
        """Logits ``(N, K)``, differentiable once with respect to ``x``.

        Raises:
            ValueError: if ``x`` is not a non-empty float batch of the denoiser's shape in [0, 1].
        """
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        logits = -_WeightedLoss.apply(to_model(x), self, self.calls)
        if self.reduce == "mean":
            logits = logits / x[0].numel()
        return logits if self.prior is None else logits + self.prior.log().to(logits)

    def losses(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k t"]:
        """Unweighted losses ``|z - D|^2``, averaged over draws, for every class and level, ``(N, K, T)``; no gradient.

        Summed with any weights over the last axis they give minus the logits: one run answers many questions.
        """
        check_images(x, self.denoiser.shape)
        self.calls += self.noise == "fresh"
        z, count = to_model(x), len(self.levels)
        total = torch.zeros(len(x) * self.num_classes * count, dtype=torch.float64, device=x.device)
        pairs = torch.ones(len(x), self.num_classes, dtype=torch.bool, device=x.device)
        with torch.no_grad():
            for image, label, draw in self._plan(pairs):
                cell = (image[:, None] * self.num_classes + self._columns(label)) * count + (draw // self.draws)[:, None]
                total.index_add_(0, cell.flatten(), self._errors(z[image], label, draw, self.calls).double().flatten())
        return (total / self.draws).reshape(len(x), self.num_classes, count).to(x.dtype)

    def _plan(self, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Chunks of evaluations ``(image, class, draw)``; the class is None when one pass serves all classes.

        ``pairs`` ``(N, K)`` marks the (image, class) pairs that are wanted. The draw ``t R + r`` is the slowest index, so
        that a chunk holds few draws of noise.
        """
        image, label = pairs.nonzero(as_tuple=True)
        if self._one_pass:
            image, label = pairs.any(dim=1).nonzero(as_tuple=True)[0], None
        width = max(1, self.chunk // self.num_classes) if self._one_pass else self.chunk
        total = len(image) * len(self.levels) * self.draws
        for start in range(0, total, width):
            flat = torch.arange(start, min(start + width, total), device=pairs.device)
            row = flat % len(image)
            yield image[row], None if label is None else label[row], flat // len(image)

    def _columns(self, label: Tensor | None) -> Tensor:
        """Classes of the rows of a chunk, ``(n, 1)``, or all of them, ``(1, K)``."""
        device = self.levels.sigma.device if label is None else label.device
        return torch.arange(self.num_classes, device=device)[None] if label is None else label[:, None]

    def _errors(self, z: Tensor, label: Tensor | None, draw: Tensor, call: int) -> Tensor:
        """``|z - D|^2`` of a chunk, ``(n, 1)``, or ``(n, K)`` if ``label`` is None."""
        sigma = self.levels.sigma.to(z)[draw // self.draws]
        z_sigma = z + sigma[:, None, None, None] * self._eps(z, label, draw, call)
        if label is None:
            estimate, z = self.denoiser.all_classes(z_sigma, sigma), z[:, None]
        else:
            estimate, z = self.denoiser(z_sigma, sigma, label)[:, None], z[:, None]
        return (estimate - z).square().flatten(2).sum(dim=2)

    def _eps(self, z: Tensor, label: Tensor | None, draw: Tensor, call: int) -> Tensor:
        """Noise of a chunk: a function of seed, level, draw and, for ``per_class``, class."""
        code = draw * self.num_classes + label if self.noise == "per_class" else draw
        values, inverse = code.unique(return_inverse=True)
        eps = torch.stack([self._one_eps(int(v), call) for v in values])
        return eps.to(z)[inverse]

    def _one_eps(self, code: int, call: int) -> Tensor:
        draw, label = divmod(code, self.num_classes) if self.noise == "per_class" else (code, 0)
        level, r = divmod(draw, self.draws)
        level = 0 if self.share_levels else level
        if self.noise == "antithetic":
            return (-1) ** r * randn(self.denoiser.shape, self.seed, call, level, r // 2, label)
        return randn(self.denoiser.shape, self.seed, call, level, r, label)


class _WeightedLoss(torch.autograd.Function):
    """``sum_t w_t mean_r |z - D|^2`` for every image and class, ``(N, K)``, with the two-pass gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, model: DiffusionClassifier, call: int) -> Tensor:
        ctx.save_for_backward(z)
        ctx.model, ctx.call = model, call
        k = model.num_classes
        total = torch.zeros(len(z) * k, dtype=torch.float64, device=z.device)
        weight = model.levels.weight.to(z.device) / model.draws
        for image, label, draw in model._plan(torch.ones(len(z), k, dtype=torch.bool, device=z.device)):
            error = model._errors(z[image], label, draw, call).double() * weight[draw // model.draws][:, None]
            total.index_add_(0, (image[:, None] * k + model._columns(label)).flatten(), error.flatten())
        return total.reshape(len(z), k).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        model = ctx.model
        total = torch.zeros(z.shape, dtype=torch.float64, device=z.device)
        weight = model.levels.weight.to(z.device) / model.draws
        for image, label, draw in model._plan(grad != 0):
            factor = grad[image[:, None], model._columns(label)].double() * weight[draw // model.draws][:, None]
            with torch.enable_grad():
                part = z[image].requires_grad_()
                error = model._errors(part, label, draw, ctx.call)
                (slope,) = torch.autograd.grad(error, part, factor.to(error.dtype))
            total.index_add_(0, image, slope.double())
        return total.to(z.dtype), None, None
