r"""Radii in which the nearest-neighbour rule keeps its answer, in closed form.

An image :math:`x` of class :math:`y` with a stored image :math:`x_i` of this class keeps its answer under every
:math:`\|\delta\|_p < r_p`,

.. math::
    r_p = \max_i \min_j \frac{\|x - x_j\|_2^2 - \|x - x_i\|_2^2}{2 \|x_j - x_i\|_q}, \qquad 1/p + 1/q = 1,

where :math:`x_j` runs over all stored images of other classes: the perturbed image is nearer to :math:`x_i` than to :math:`x_j`
on one side of a plane, and :math:`r_p` is the distance from it. Every :math:`i` gives a valid radius; the largest of the nearest
few is taken. It is a lower bound of the true radius, since another image of the class may take over where :math:`x_i` loses.
"""

__all__ = ["nearest_radius"]

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

DUAL = {"Linf": 1.0, "L2": 2.0}


def nearest_radius(
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    points: Float[Tensor, "m c h w"],
    labels: Int64[Tensor, " m"],
    norm: str = "Linf",
    candidates: int = 8,
) -> Float[Tensor, " n"]:
    """Return the certified radius of each image, image units; 0 where the nearest neighbour has another class.

    Arguments:
        x: Images.
        y: True labels.
        points: Stored images.
        labels: Their labels.
        norm: ``Linf`` or ``L2``.
        candidates: How many of the nearest images of the class are tried.

    Raises:
        ValueError: for another norm.
    """
    if norm not in DUAL:
        raise ValueError(f"norm must be Linf or L2, got {norm!r}")
    stored = points.flatten(1)
    pairs = zip(x.flatten(1), y, strict=True)
    return torch.stack([_radius(one, labels == label, stored, DUAL[norm], candidates) for one, label in pairs])


def _radius(x: Tensor, same: Tensor, stored: Tensor, q: float, candidates: int) -> Tensor:
    """The radius of one image; ``same`` says which stored images have its label."""
    distance = (stored - x).square().sum(dim=1)
    own = distance.masked_fill(~same, math.inf).topk(min(candidates, int(same.sum())), largest=False).indices
    other, far = stored[~same], distance[~same]
    found = [((far - distance[i]) / (2 * (other - stored[i]).norm(q, dim=1))).amin() for i in own]
    return torch.stack(found).amax().clamp(min=0)
