"""Run a function over a batch in pieces, keeping no graph: the backward pass runs each piece again."""

__all__ = ["chunked"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def chunked(f: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """``f(x)`` computed ``size`` rows at a time, forward and backward; ``f`` must treat the rows one by one.

    Peak memory is that of one piece; the gradient costs one more forward pass and is defined once.
    """
    return _Chunked.apply(x, f, size)


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
