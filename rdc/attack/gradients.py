r"""Gradients that an attack may use, by name: exact, backward-pass approximation, and expectation over transformation.

A defence that first processes its input, ``x -> classifier(process(x))``, offers an attacker three gradients of the process:

| ``exact``    through every operation; an iterated process keeps only one image a step (:func:`iterate`)
| ``bpda``     the identity: the gradient at the processed image, moved unchanged to the image
| ``denoise``  the Jacobian of one denoising step at a noise level about as strong as the process

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
"""

__all__ = ["BPDA", "EOT", "GRADIENTS", "Preprocessed", "iterate", "known_noise", "one_denoising_step", "value_and_gradient"]

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

GRADIENTS = ("exact", "bpda", "denoise")
Process = Callable[[Tensor], Tensor]


def value_and_gradient(
    objective: Callable[[Tensor], Tensor], x: Float[Tensor, "n c h w"], eot: int = 1
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Value ``(N,)`` of an objective that treats each image alone and its gradient, both averaged over ``eot`` calls.

    Raises:
        ValueError: if autograd does not reach the images, or the gradient is not finite.
    """
    if eot < 1:
        raise ValueError(f"eot must be positive, got {eot}")
    total, slope = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
    for _ in range(eot):
        point = x.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(point)
            gradient = torch.autograd.grad(value.sum(), point, allow_unused=True)[0] if value.requires_grad else None
        if gradient is None:
            raise ValueError("no gradient reaches the images (a detached step?); wrap that step in rdc.attack.gradients.BPDA")
        if not bool(gradient.isfinite().all()):
            count = int((~gradient.isfinite()).flatten(1).any(1).sum())
            raise ValueError(f"the gradient is not finite for {count} of {len(x)} images")
        total, slope = total + value.detach().to(x.dtype) / eot, slope + gradient / eot
    return total, slope


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


def one_denoising_step(denoiser: nn.Module, sigma: float, label: int | None = None) -> Process:
    """``x -> D(z; sigma)`` in image units, with the noise level in model units: a surrogate of a purification.

    Only its Jacobian is used; no noise is added to the image.
    """

    def step(x: Tensor) -> Tensor:
        labels = None if label is None else torch.full((len(x),), label, dtype=torch.int64, device=x.device)
        return (denoiser(2 * x - 1, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), labels) + 1) / 2

    return step


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
            x = _Step.apply(x, step, i)
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


class Preprocessed(nn.Module):
    """The defence ``classifier(process(x))`` with the gradient of the process taken by name.

    Arguments:
        process: Images in [0, 1] to images in [0, 1].
        classifier: Images to logits.
        gradient: ``exact``, ``bpda`` (identity) or ``denoise`` (Jacobian of ``surrogate``).
        surrogate: For ``denoise``: usually :func:`one_denoising_step`.

    Raises:
        ValueError: on an unknown gradient, or a surrogate missing or given for another gradient.
    """

    def __init__(
        self, process: Process, classifier: nn.Module, gradient: str = "exact", surrogate: Process | None = None
    ) -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {gradient!r}; there are {', '.join(GRADIENTS)}")
        if (gradient == "denoise") != (surrogate is not None):
            raise ValueError("a surrogate belongs to gradient='denoise' and to no other")
        self.process = process if gradient == "exact" else BPDA(process, surrogate)
        self.classifier, self.gradient = classifier, gradient

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the processed images."""
        return self.classifier(self.process(x))


class EOT(nn.Module):
    """Logits averaged over ``draws`` calls of a randomised model: a wrapper for attack tools that have no EOT of their own."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"draws must be positive, got {draws}")
        self.model, self.draws = model, draws

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Mean logits."""
        total: Any = 0
        for _ in range(self.draws):
            total = total + self.model(x)
        return total / self.draws


class _KnownNoise(nn.Module):
    """A copy of a model whose randomness starts at the same point at every call."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = copy.copy(model), seed

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        with torch.random.fork_rng():
            torch.random.manual_seed(self.seed)
            return self.model(x)


def known_noise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The deterministic classifier that an attacker faces who knows the noise: the same model, its randomness frozen.

    A model that owns its noise offers ``frozen(seed)``; for any other torch's global random state is fixed during each call
    and restored after it.
    """
    frozen = getattr(model, "frozen", None)
    return frozen(seed) if callable(frozen) else _KnownNoise(model, seed)
