r"""A joint energy-based model: one network as classifier and as density (JEM, Grathwohl et al., 2020).

The logits define :math:`p(y \mid x) = \mathrm{softmax} f(x)` and :math:`\log p(x) = \operatorname{LSE} f(x) - \log Z`.
The loss is

.. math:: -\log p(y \mid x) - \operatorname{LSE} f(x + \tau \xi) + \operatorname{LSE} f(\tilde x),

whose last two terms have the gradient of :math:`-\log p(x)` if :math:`\tilde x` is a sample of the model. It comes from Langevin
dynamics with a step that does not match its noise, as published,

.. math:: \tilde x \leftarrow \tilde x + \tfrac{\alpha}{2} \nabla \operatorname{LSE} f(\tilde x) + \sigma \xi,

which goes on where it stopped, at an image of a buffer, or begins anew with uniform noise.

References:
    | Your Classifier is Secretly an Energy Based Model and You Should Treat it Like One (Grathwohl et al., 2020), algorithm 1
    | https://arxiv.org/abs/1912.03263
"""

__all__ = ["Langevin", "jem_objective"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.rng import rand, randint, randn


@dataclass(frozen=True)
class Langevin:
    """How samples are drawn; units are those of images in [0, 1], half of the paper's."""

    steps: int = 20
    step_size: float = 0.25  # alpha; the paper's 1 in images of [-1, 1]
    noise: float = 0.005  # sigma
    data_noise: float = 0.015  # tau
    buffer: int = 10000
    restart: float = 0.05  # probability of a new chain


def langevin(model: nn.Module, x: Float[Tensor, "n c h w"], how: Langevin, *key: int | str) -> Float[Tensor, "n c h w"]:
    """Return the images after some steps of Langevin dynamics, clipped to [0, 1] after each."""
    for step in range(how.steps):
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(at).logsumexp(dim=1).sum(), at)
        x = (at + how.step_size / 2 * slope + how.noise * randn(tuple(x.shape), *key, step, like=x)).clamp(0, 1)
    return x.detach()


def jem_objective(shape: tuple[int, ...], how: Langevin, seed: int) -> Callable[[nn.Module, Tensor, Tensor, int], Tensor]:
    """Return the loss of a step, ``loss(model, x, y, step)``; it owns the buffer of samples."""
    buffer = rand((how.buffer, *shape), seed, "jem buffer")

    def loss(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], step: int) -> Float[Tensor, ""]:
        place = randint(how.buffer, (len(x),), seed, "jem place", step)
        anew = rand((len(x), 1, 1, 1), seed, "jem restart", step) < how.restart
        start = torch.where(anew, rand((len(x), *shape), seed, "jem start", step), buffer[place]).to(x)
        sample = langevin(model, start, how, seed, "jem", step)
        buffer[place] = sample.to(buffer)
        noisy = (x + how.data_noise * randn(tuple(x.shape), seed, "jem data", step, like=x)).clamp(0, 1)
        density = model(sample).logsumexp(dim=1).mean() - model(noisy).logsumexp(dim=1).mean()
        return F.cross_entropy(model(x), y) + density

    return loss
