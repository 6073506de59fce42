r"""How random and how large the gradients of a model are, in units that do not depend on the scale of its logits.

A randomised model gives another gradient :math:`g_r = s + n_r` at every call, with a mean :math:`s` and independent noise of
covariance :math:`C`. The mean of m calls (expectation over transformation, EOT m) has the same signal and the noise
:math:`C / m`, so that two such means have about the cosine

.. math:: \rho(m) = \frac{|s|^2}{|s|^2 + \operatorname{tr}(C) / m},

a ratio of expectations: close to the expected cosine when the dimension is high. It is one half at
:math:`m = \operatorname{tr}(C) / |s|^2`, and two models have the same curve up to the ratio of these two numbers. The
cosine is measured on disjoint groups of m gradients (:func:`eot_cosine`); the curve needs two gradients
(:func:`signal_to_noise`).

A model whose noise is fixed has cosine one: what is measured is what an attacker sees who calls the model again. A high
cosine does not exclude noisy losses; see :func:`rdc.analyse.loss_noise`.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), section 4.5, Figure 2(a), Table 4
    | https://arxiv.org/abs/2305.15241
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
"""

__all__ = [
    "Loss",
    "SignalNoise",
    "eot_cosine",
    "gradient_cosine",
    "linearised_distance",
    "moving_counters",
    "one_gradient",
    "repeated_gradients",
    "signal_to_noise",
]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.attack.budget import budget
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.autograd import value_and_gradient
from rdc.door import logits_of
from rdc.randomness import owned_randomness

#: Logits ``(N, K)`` and labels ``(N,)`` to a number for each image.
Loss = Callable[[Tensor, Tensor], Tensor]


def moving_counters(model: Any, x: Float[Tensor, "n c h w"], seed: int = 0) -> tuple[str, ...]:
    """Names of the submodules whose counter ``calls`` moves at a call, from which fresh noise is derived; one call tells."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    names = tuple(n for n, m in modules.items() if isinstance(getattr(m, "calls", None), int))
    if not names:
        return ()
    with torch.no_grad(), owned_randomness(model, seed, "counters", counters=names):
        before = [modules[n].calls for n in names]
        model(x[:1])
        return tuple(n for n, calls in zip(names, before, strict=True) if modules[n].calls != calls)


def one_gradient(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    key: tuple[int | str, ...],
    counters: tuple[str, ...],
    loss: Loss = margin,
    eot: int = 1,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Loss ``(N,)`` and its gradient, averaged over ``eot`` calls of the model, whose noise is a function of ``key``."""
    with owned_randomness(model, *key, counters=counters):
        return value_and_gradient(lambda point: loss(logits_of(model, point, y), y), x, eot)


def repeated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    repeats: int = 10,
    eot: int = 1,
    loss: Loss = margin,
    seed: int = 0,
) -> Float[Tensor, "r n c h w"]:
    """Independent gradients of a loss at the same images, ``(repeats, N, C, H, W)``, each the mean of ``eot`` calls.

    For a sweep over EOT take them once with ``eot=1`` and group them with :func:`eot_cosine`.

    Arguments:
        model: Images to logits; noise derived from a counter ``calls``, a generator or the global state is set by the seed.
        x: Images in [0, 1].
        y: True labels.
        repeats: Number of gradients.
        eot: Calls averaged for each.
        loss: Of logits and labels, for each image.
        seed: Owner of the noise of the calls.

    Raises:
        ValueError: if ``repeats`` or ``eot`` is not positive, or no gradient reaches the images.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be positive, got {repeats}")
    counters = moving_counters(model, x, seed)
    return torch.stack([one_gradient(model, x, y, (seed, "gradient", r), counters, loss, eot)[1] for r in range(repeats)])


def gradient_cosine(gradients: Float[Tensor, "r n c h w"]) -> Float[Tensor, " n"]:
    """Mean cosine of all pairs of different gradients of each image, ``(N,)``; a pair with a zero gradient counts 0.

    With unit vectors ``u_r`` it is ``(|sum u_r|^2 - sum |u_r|^2) / (R (R - 1))``.

    Raises:
        ValueError: for less than two gradients.
    """
    count = at_least_two(gradients)
    flat = gradients.flatten(2).double()
    size = flat.norm(dim=2, keepdim=True)
    unit = flat / torch.where(size > 0, size, torch.ones_like(size))
    pairs = unit.sum(0).square().sum(1) - unit.square().sum((0, 2))
    return (pairs / (count * (count - 1))).to(gradients.dtype)


def eot_cosine(gradients: Float[Tensor, "r n c h w"], eot: Sequence[int]) -> Float[Tensor, "m n"]:
    """Mean pairwise cosine of EOT-m gradients for every m in ``eot``, ``(len(eot), N)``, from single gradients.

    For each m the R gradients form ``R // m`` disjoint groups, whose means are independent draws of an EOT-m gradient. The
    estimates for different m use the same calls, so they are not independent of each other; the last ones rest on few groups.

    Raises:
        ValueError: if some m leaves less than two groups.
    """
    found = []
    for m in eot:
        if m < 1 or len(gradients) // m < 2:
            raise ValueError(f"EOT {m} needs at least {2 * max(m, 1)} gradients for two groups, got {len(gradients)}")
        groups = len(gradients) // m
        found.append(gradient_cosine(gradients[: groups * m].reshape(groups, m, *gradients.shape[1:]).mean(1)))
    return torch.stack(found)


@dataclass(frozen=True, eq=False)
class SignalNoise:
    """Unbiased estimates of ``|s|^2`` (may be negative) and ``tr(C)`` of each image's gradient, float64 ``(N,)``."""

    signal: Float[Tensor, " n"]
    noise: Float[Tensor, " n"]

    def cosine(self, eot: int = 1) -> Float[Tensor, " n"]:
        """``|s|^2 / (|s|^2 + tr(C) / m)``; a negative estimate of the signal counts as zero, no gradient at all as NaN."""
        signal = self.signal.clamp(min=0)
        return signal / (signal + self.noise / eot)

    @property
    def half_eot(self) -> Float[Tensor, " n"]:
        """``tr(C) / |s|^2``: how many calls make noise and signal equal, cosine one half; infinite if no signal is seen."""
        return torch.where(self.signal > 0, self.noise / self.signal, torch.full_like(self.noise, float("inf")))


def signal_to_noise(gradients: Float[Tensor, "r n c h w"]) -> SignalNoise:
    """``|mean|^2 - tr(C) / R``, the mean inner product of different gradients, and the trace of the sample covariance.

    Raises:
        ValueError: for less than two gradients.
    """
    count = at_least_two(gradients)
    flat = gradients.flatten(2).double()
    noise = flat.var(dim=0).sum(1)
    return SignalNoise(flat.mean(0).square().sum(1) - noise / count, noise)


def at_least_two(gradients: Tensor) -> int:
    """The number of gradients, if there are pairs."""
    if len(gradients) < 2:
        raise ValueError(f"a pair needs at least two gradients, got {len(gradients)}")
    return len(gradients)


def linearised_distance(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], norm: str = "Linf", eot: int = 1, seed: int = 0
) -> Float[Tensor, " n"]:
    r"""First-order distance to the decision boundary in image units, ``(N,)``: minus the margin over its gradient's size.

    :math:`(f_y - \max_{j \ne y} f_j) / |g|_*` with the dual norm of the gradient :math:`g` of the difference: L1 for ``Linf``,
    L2 for ``L2``. It is the distance at which a model that is linear around the image takes the runner-up class. Scaling or
    shifting the logits does not change it, so models with different losses can be compared: a large gradient of a large margin
    is a small one. Negative for a misclassified image; infinite where the gradient is zero.
    """
    budget(norm)
    value, gradient = one_gradient(model, x, y, (seed, "distance"), moving_counters(model, x, seed), margin, eot)
    size = norm_of(gradient.double(), {"Linf": "L1", "L2": "L2"}[norm])
    return (-value.double() / size).to(x.dtype)
