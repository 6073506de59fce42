r"""A classifier for attacks of other libraries: Foolbox, torchattacks and ART take it as it is.

They climb the cross-entropy, and the logits of a diffusion classifier are nats over a whole image: their softmax is exactly 0 and
1, and its gradient exactly zero. The wrapped logits are

.. math:: \tilde f_k = 10\, \frac{f_k - f_{(1)}}{f_{(1)} - f_{(3)}},

with the spread of each image held constant in the gradient (:func:`rdc.attack.losses.rescale`): the same order of classes, on a
scale that losses can see. At ten nats the softmax is far from 1 in float32, and tells the nearest rival from the others: at one
nat its gradient runs to the mean of all classes.
"""

__all__ = ["Wrapped", "wrap"]

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.attack.losses import rescale
from rdc.door import Door, checking
from rdc.quantities import count

NATS = 10.0  # spread of the logits
ROUNDING = 1e-6  # by so much an image may leave [0, 1]


class Wrapped(nn.Module):
    """Images in [0, 1] to logits of spread 10, float32, in evaluation mode, a part of a batch at a time; see :func:`wrap`."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__()
        self.model, self.batch = model, count(batch, "batch")
        self.eval()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the rescaled logits, differentiable if ``x`` is.

        Raises:
            ValueError: if images leave [0, 1] by more than rounding, or the model returns what are no logits.
        """
        if checking() and not bool(((x >= -ROUNDING) & (x <= 1 + ROUNDING)).all()):
            low, high = (float(v) for v in x.detach().aminmax())
            raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}; undo the normalisation")
        inside = x + (x.clamp(0, 1) - x).detach()  # the gradient does not stop at the walls
        with Door(self.model, attacked=torch.is_grad_enabled()) as door:
            return torch.cat([NATS * rescale(door(part), "auto").float() for part in inside.split(self.batch)])


def wrap(model: nn.Module, batch: int = 256) -> Wrapped:
    """Return a classifier that other libraries can attack as it is.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``, for instance a :class:`rdc.classify.DiffusionClassifier`.
        batch: Images at a time.

    >>> from rdc.classify import CNN
    >>> import torch
    >>> wrap(CNN((1, 8, 8), 3))(torch.full((2, 1, 8, 8), 0.5)).shape
    torch.Size([2, 3])
    """
    return Wrapped(model, batch)
