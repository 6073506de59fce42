r"""Is the identity a fair stand-in for the Jacobian of a process, as BPDA takes it to be?

With :math:`v` the gradient of a loss at the processed image :math:`f(x)`, BPDA uses :math:`v`, and the exact gradient is
:math:`J^\top v`. What the process passes on of a change :math:`\delta` is

.. math::
    \tau(\delta) = \frac{\langle f(x + \delta) - f(x), \delta \rangle}{\|\delta\|^2} ,

which is 1 for the identity, near 0 for a projection that the change leads away from, and negative for a process that answers with
a larger change the other way.

References:
    | Obfuscated Gradients Give a False Sense of Security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420
"""

__all__ = ["pulled_back", "transmission"]

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.attack.losses import margin


def pulled_back(
    process: Callable[[Tensor], Tensor], model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    r"""Return :math:`v`, the gradient of the margin of ``model`` at the processed images, and :math:`J^\top v`.

    Arguments:
        process: Images to images, differentiable.
        model: Images to logits.
        x: Images.
        y: Labels.
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        out = process(point)
        there = out.detach().requires_grad_()
        (v,) = torch.autograd.grad(margin(model(there), y).sum(), there)
        return v, torch.autograd.grad(out, point, v)[0]


def transmission(
    process: Callable[[Tensor], Tensor], x: Float[Tensor, "n c h w"], direction: Float[Tensor, "n c h w"], length: float
) -> float:
    r"""Return :math:`\tau` for the change ``length * direction``, cut where it leaves [0, 1]; the mean over images.

    Arguments:
        process: Images to images.
        x: Images.
        direction: Direction of the change of each image.
        length: Of the step along it.
    """
    there = (x + length * direction).clamp(0, 1)
    with torch.no_grad():
        change, delta = process(there) - process(x), there - x
    return float(((change * delta).flatten(1).sum(1) / delta.square().flatten(1).sum(1)).mean())
