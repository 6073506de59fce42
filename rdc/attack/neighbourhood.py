r"""Gradients of the neighbourhood of an image, for models whose own gradient misleads or does not exist.

The logits :math:`f` of a model, smoothed by noise, are :math:`\bar f(x) = \mathbb E_\delta f(x + \delta)`. They have a gradient
that sees further than the point: it does not notice waves finer than the noise, and exists where that of :math:`f` does not. With
:math:`\delta \sim \mathcal N(0, w^2)` it is, by Stein's identity,

.. math:: \nabla \bar f(x) = \mathbb E\, \nabla f(x + \delta)
   = \mathbb E\, \frac{f(x + \delta) - f(x - \delta)}{2 w^2}\, \delta .

The middle form averages gradients; the right one asks for none, and takes quantised inputs and detached steps as they are. Noise
comes in pairs :math:`\pm\delta`: of a quadratic function each pair gives the middle form exactly.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
    | Random Gradient-Free Minimization of Convex Functions (Nesterov and Spokoiny, 2017)
    | https://doi.org/10.1007/s10208-015-9296-2
    | Evolution Strategies (Salimans et al., 2017): antithetic pairs, https://arxiv.org/abs/1703.03864
"""

__all__ = ["FORMS", "Neighbourhood", "named_gradient"]

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rdc.door import unchecked
from rdc.quantities import count, number
from rdc.randomness import known_noise
from rdc.rng import randn, whole

FORMS = ("neighbourhood", "zeroth")
DRAWS = {"neighbourhood": 32, "zeroth": 128}  # of a gradient that is given by its name


class Neighbourhood(nn.Module):
    """A model with its own logits, bit for bit, and the gradient of its Gaussian-smoothed logits; see the module.

    Any attack can be run against it, also one of another library. The points are clipped into [0, 1]. All images share the noise
    of a call, which is a function of the seed and of the number of the call, so that no image depends on its batch.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        width: Standard deviation w of the noise, in image units: at least as wide as what is to be overlooked.
        draws: Points asked at each gradient, in pairs: even. The zeroth-order form needs about as many as there are pixels.
        seed: Seed of the noise.
        form: ``neighbourhood`` averages gradients, ``zeroth`` differences of logits.

    Raises:
        ValueError: on bad options.
    """

    def __init__(
        self, model: nn.Module, width: float = 0.05, draws: int = 32, seed: int = 0, form: str = "neighbourhood"
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown gradient {form!r}; there are exact, {', '.join(FORMS)}")
        if count(draws, "draws", least=2) % 2:
            raise ValueError(f"draws come in pairs, got {draws}")
        self.model, self.form = model, form
        self.width, self.draws, self.seed = number(width, "width", low=0, strict=True), int(draws), whole(seed)
        self.calls = 0

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the model."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.model(x)
        self.calls += 1
        return _Smoothed.apply(x, self, self.calls)  # type: ignore[no-untyped-call]

    def frozen(self, seed: int) -> "Neighbourhood":
        """Return the same around the model whose noise is known."""
        return Neighbourhood(known_noise(self.model, seed), self.width, self.draws, self.seed, self.form)

    def product(self, x: Tensor, grad: Tensor, call: int) -> Tensor:
        """Return the product of a row for each image, ``(N, K)``, with the Jacobian of the smoothed logits."""
        total = torch.zeros_like(x)
        for delta, up, down in self._pairs(x, call):
            if self.form == "neighbourhood":
                total = total + self._slope(up, grad) + self._slope(down, grad)
            else:
                with torch.no_grad():
                    rise = ((self.model(up) - self.model(down)) * grad).sum(dim=1)
                total = total + rise.reshape(-1, 1, 1, 1).to(x.dtype) * delta / self.width**2
        return total / self.draws

    def _pairs(self, x: Tensor, call: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the noise ``(C, H, W)`` of a call, and both points of each image."""
        for draw in range(self.draws // 2):
            delta = self.width * randn(x.shape[1:], "neighbourhood", self.seed, call, draw, like=x)
            yield delta, (x + delta).clamp(0, 1), (x - delta).clamp(0, 1)

    def _slope(self, x: Tensor, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            logits = self.model(point)
            slope = torch.autograd.grad(logits, point, grad, allow_unused=True)[0] if logits.requires_grad else None
        if slope is None:
            raise ValueError("no gradient reaches the images (a detached step?); take the form 'zeroth', which needs none")
        return slope


class _Smoothed(torch.autograd.Function):
    """The logits forward, the product with the smoothed Jacobian backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, around: Neighbourhood, call: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.around, ctx.call = around, call
        return around.model(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with unchecked():
            return ctx.around.product(x.detach(), grad, ctx.call), None, None


def named_gradient(model: nn.Module, name: str, seed: int = 0) -> nn.Module:
    """Return the model with the gradient of a name: ``exact``, ``neighbourhood`` or ``zeroth``.

    Raises:
        ValueError: if there is no such gradient.
    """
    return model if name == "exact" else Neighbourhood(model, draws=DRAWS.get(name, 2), seed=seed, form=name)
