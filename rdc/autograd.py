"""Derivatives by other means than a plain graph: stand-ins for a backward pass, and passes that keep no graph.

| :func:`value_and_gradient`  of an objective that treats each image alone, averaged over calls
| :class:`BPDA`               a process forward, the Jacobian of a stand-in backward
| :func:`iterate`             a step again and again, at the memory of one step and an image for each
| :func:`chunked`             a function of a batch in pieces, at the memory of one piece

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
"""

__all__ = ["BPDA", "chunked", "iterate", "value_and_gradient"]

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rdc.door import full_precision

Process = Callable[[Tensor], Tensor]


def value_and_gradient(
    objective: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n c h w"],
    eot: int = 1,
    see: Callable[[Tensor], None] | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Return the value ``(N,)`` of an objective that treats each image alone, and its gradient, both averaged over ``eot`` calls.

    Both are computed in full float32 (:func:`rdc.door.full_precision`).

    Arguments:
        objective: Images to numbers ``(N,)``.
        x: Images, or whatever else they are made of.
        eot: Calls averaged.
        see: Called with each gradient. By default one that is not finite raises at once, which waits for the device.

    Raises:
        ValueError: if autograd does not reach the images, or the gradient is not finite.
    """
    if eot < 1:
        raise ValueError(f"eot must be positive, got {eot}")
    total, slope = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
    for _ in range(eot):
        with torch.inference_mode(False), torch.enable_grad(), full_precision():
            point = x.detach().clone().requires_grad_()
            value = objective(point)
            gradient = torch.autograd.grad(value.sum(), point, allow_unused=True)[0] if value.requires_grad else None
        if gradient is None:
            raise ValueError(
                "no gradient reaches the images (a detached step?); wrap that step in rdc.autograd.BPDA, or the model in "
                "rdc.attack.neighbourhood"
            )
        (see or _finite)(gradient)
        total, slope = total + value.detach().to(x.dtype) / eot, slope + gradient / eot
    return total, slope


def _finite(gradient: Tensor) -> None:
    if not bool(gradient.isfinite().all()):
        count = int((~gradient.isfinite()).flatten(1).any(1).sum())
        raise ValueError(f"the gradient is not finite for {count} of {len(gradient)} images")


class BPDA(nn.Module):
    """``process(x)`` forward; backward the Jacobian of ``surrogate`` at ``x``, by default the identity.

    The process runs without autograd, so that it may be anything: quantisation, sampling, an optimisation.

    Arguments:
        process: Images to images of the same shape.
        surrogate: A differentiable stand-in, images to images; the identity if None.

    Raises:
        ValueError: if process and stand-in return images of different shapes.
    """

    def __init__(self, process: Process, surrogate: Process | None = None) -> None:
        super().__init__()
        self.process, self.surrogate = process, surrogate

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Processed images."""
        with torch.no_grad():
            value = self.process(x.detach())
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        stand_in = x if self.surrogate is None else self.surrogate(x)
        if stand_in.shape != value.shape:
            raise ValueError(f"the process returns {tuple(value.shape)}, its stand-in {tuple(stand_in.shape)}")
        return value + (stand_in - stand_in.detach())


def iterate(step: Callable[[Tensor, int], Tensor], x: Tensor, steps: int, recompute: bool = True) -> Tensor:
    """``x_{i+1} = step(x_i, i)`` for i = 0...steps-1, differentiable once in ``x`` (and in nothing else).

    A step is always called with autograd on and an image that requires a gradient, so it may contain a gradient itself, as an
    optimisation does: ``x - lr * torch.autograd.grad(loss(x), x, create_graph=True)[0]``. A step that draws noise must derive
    it from ``i``.

    With ``recompute`` only the images ``x_i`` are kept and each step runs a second time in the backward pass: memory is that
    of one step plus ``steps`` images, time at most twice; the gradient is the same.
    """
    for i in range(steps):
        if not (torch.is_grad_enabled() and x.requires_grad):
            x = run_step(step, x, i)
        elif recompute:
            x = _Step.apply(x, step, i)  # type: ignore[no-untyped-call]
        else:
            x = step(x, i)
    return x


def run_step(step: Callable[[Tensor, int], Tensor], x: Tensor, i: int) -> Tensor:
    """One step whose graph is thrown away."""
    with torch.enable_grad():
        return step(x.detach().requires_grad_(), i).detach()


class _Step(torch.autograd.Function):
    """A step that keeps its image and no graph, and runs again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Callable[[Tensor, int], Tensor], i: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.step, ctx.i = step, i
        return run_step(step, x, i)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = ctx.step(point, ctx.i)
        (slope,) = torch.autograd.grad(value, point, grad)
        return slope, None, None


def chunked(f: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """``f(x)`` computed ``size`` rows at a time, forward and backward; ``f`` must treat the rows one by one.

    Peak memory is that of one piece; the gradient costs one more forward pass and is defined once.
    """
    return _Chunked.apply(x, f, size)  # type: ignore[no-untyped-call]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], size: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.f, ctx.size = f, size
        return torch.cat([f(part) for part in x.split(size)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        slopes = []
        for part, g in zip(x.split(ctx.size), grad.split(ctx.size), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                slopes.extend(torch.autograd.grad(ctx.f(part), part, g))
        return torch.cat(slopes), None, None
