r"""The updates of likelihood maximisation: five things that have been called "a step of size gamma along the gradient g".

Every update returns a change, in units of the step size, that is *added* to the image, and the memory it carries on.

==============  ======================================================================================================
``literal``     :math:`m \leftarrow \mu m - g / \lVert g \rVert_1`, change m: Algorithm 1 as printed
``mean-l1``     the same with the mean of :math:`|g|` in the place of the sum
``sign``        :math:`m \leftarrow \mu m - g / \lVert g \rVert_1`, change sign(m): momentum iterative FGSM
``adam``        Adam with :math:`\beta = (0.9, 0.999)` and :math:`\varepsilon = 10^{-8}`
``rmsprop``     RMSprop with :math:`\alpha = 0.99` and :math:`\varepsilon = 10^{-8}`
==============  ======================================================================================================

**The first steps of Adam and RMSprop are sign steps**: at n = 0 Adam changes a pixel by :math:`-g / (|g| + \varepsilon)` and
RMSprop by :math:`-g / (|g| / 10 + \varepsilon)`. The value is a sign as soon as :math:`|g| \gg \varepsilon`; the slope,
:math:`-\varepsilon / (|g| + \varepsilon)^2` for Adam, is small only where :math:`|g| \gg \sqrt\varepsilon = 10^{-4}`, and
reaches :math:`1 / \varepsilon` at g = 0. A sign step has slope zero always. No slope is softened here, unless a ``width`` is
asked for: then :math:`\varepsilon` is that multiple of the mean size of the root, and sign(m) is m / (\|m\| + the same of m).

The sums in ``literal``, ``mean-l1`` and ``sign`` run over the pixels of one image; an image whose gradient is zero does not
move. ``literal``, ``mean-l1`` and ``sign`` do not see the scale of g, the other two only against their :math:`\varepsilon`.

References:
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Algorithm 1, https://arxiv.org/abs/2305.15241
    | Boosting Adversarial Attacks with Momentum (Dong et al., 2018), https://arxiv.org/abs/1710.06081
    | Adam: A Method for Stochastic Optimization (Kingma and Ba, 2015), https://arxiv.org/abs/1412.6980
"""

__all__ = ["METHODS", "into_ball", "memory_size", "update"]

import torch
from jaxtyping import Float
from torch import Tensor

#: The updates.
METHODS = ("literal", "sign", "mean-l1", "adam", "rmsprop")
BETA1, BETA2, ALPHA, EPS = 0.9, 0.999, 0.99, 1e-8


def memory_size(method: str) -> int:
    """Images of memory that an update carries from step to step: two moments for Adam, one for all others."""
    return 2 if method == "adam" else 1


def update(
    method: str, g: Float[Tensor, "n c h w"], memory: tuple[Tensor, ...], n: int, momentum: float = 1.0, width: float = 0.0
) -> tuple[Float[Tensor, "n c h w"], tuple[Tensor, ...]]:
    """Change of the image per unit of step size, and the new memory; differentiable.

    Arguments:
        method: One of :data:`METHODS`.
        g: Gradient of the loss that falls.
        memory: :func:`memory_size` tensors of the shape of ``g``; zero at the first step.
        n: Number of the step, from 0.
        momentum: mu of ``literal``, ``sign`` and ``mean-l1``; the other two have none.
        width: Blur of the sign, relative to the mean size over the pixels of an image; ``literal`` and ``mean-l1`` have no sign.
    """
    if method == "adam":
        first, second = BETA1 * memory[0] + (1 - BETA1) * g, BETA2 * memory[1] + (1 - BETA2) * g.square()
        root = safe_sqrt(second) / (1 - BETA2 ** (n + 1)) ** 0.5
        return -first / ((1 - BETA1 ** (n + 1)) * (root + (EPS + blur(root, width)))), (first, second)
    if method == "rmsprop":
        second = ALPHA * memory[0] + (1 - ALPHA) * g.square()
        root = safe_sqrt(second)
        return -g / (root + (EPS + blur(root, width))), (second,)
    total = g.abs().flatten(1).sum(dim=1).reshape(-1, 1, 1, 1)
    size = total / g[0].numel() if method == "mean-l1" else total
    m = momentum * memory[0] - g / torch.where(size > 0, size, torch.ones_like(size))
    if method != "sign":
        return m, (m,)
    size = m.abs() + blur(m.abs(), width)
    return m / torch.where(size > 0, size, torch.ones_like(size)) if width else m.sign(), (m,)


def blur(size: Tensor, width: float) -> Tensor | float:
    """``width`` times the mean of each image, a constant for autograd, ``(N, 1, 1, 1)``; 0 without a width."""
    return width * size.detach().mean(dim=(1, 2, 3), keepdim=True) if width else 0.0


def safe_sqrt(v: Tensor) -> Tensor:
    """The square root, with derivative 0 instead of infinity at 0.

    Where a second moment is 0 all gradients were, and Adam's root is ``|g|`` times a number: it enters only in a product with
    g = 0, so that the derivative of the update comes out right whatever slope the root is given there.
    """
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, torch.ones_like(v)).sqrt(), torch.zeros_like(v))


def into_ball(
    z: Float[Tensor, "n c h w"], z0: Float[Tensor, "n c h w"], budget: float | None, norm: str
) -> Float[Tensor, "n c h w"]:
    """Return the point of the ball around ``z0`` nearest to ``z``; model units, differentiable in both.

    A pixel on the surface of an Linf ball moves with ``z0``.

    Arguments:
        z: Points.
        z0: Centres.
        budget: Radius in *image* units, half of that in model units; None for no ball.
        norm: ``Linf`` or ``L2``.
    """
    if budget is None:
        return z
    if norm == "Linf":
        return torch.minimum(torch.maximum(z, z0 - 2 * budget), z0 + 2 * budget)
    square = (z - z0).square().flatten(1).sum(dim=1).reshape(-1, 1, 1, 1)
    outside = square > (2 * budget) ** 2
    factor = 2 * budget * torch.where(outside, square, torch.ones_like(square)).rsqrt()
    return torch.where(outside, z0 + factor * (z - z0), z)
