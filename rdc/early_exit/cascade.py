r"""Sift with one classifier, refine with another: the fast one names the classes worth a slow evaluation.

Let :math:`s_y` be the logits of a fast classifier, for instance a noised classifier on a multi-head network, whose evaluations
serve all classes. Only the classes within ``gap`` of the best,

.. math:: \{\, y : s_y > \max_j s_j - \mathrm{gap} \,\}, \qquad \text{the best } \mathrm{keep} \text{ of them},

are evaluated by the slow one. Where one class is left, nothing more is evaluated. With an infinite gap and all classes kept the
answer is that of the slow classifier, with a gap of 0 that of the fast one.

The fast one may be a cascade itself: then few levels settle the clear images, more levels those that are left, and many the
last doubtful ones.

The result is one more base classifier, and smoothing certifies it as it is: that it does not always answer like the slow one
costs no guarantee.
"""

__all__ = ["Cascade", "numbered", "survivors"]

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rdc.certify.noised import APNDC, EPNDC


class Cascade(nn.Module):
    """Noisy images to logits ``(N, K)``: those of ``slow`` for the classes that ``fast`` leaves.

    The other classes follow more than one nat below the last of these, in the order of ``fast``. ``spent`` and ``seen`` count
    network evaluations and images over all calls; an evaluation of either network counts as one.

    Arguments:
        fast: Looks at all classes; a noised classifier, or a cascade.
        slow: Looks at those that are left.
        gap: Largest distance from the best fast logit, nats for ``weight="elbo"``.
        keep: Largest number of classes that are left.

    Raises:
        ValueError: if the classifiers have different classes or noise levels, or a number is out of range.
    """

    def __init__(self, fast: "EPNDC | APNDC | Cascade", slow: EPNDC | APNDC, gap: float = 1.0, keep: int = 3) -> None:
        super().__init__()
        if fast.num_classes != slow.num_classes or fast.tau != slow.tau:
            raise ValueError("fast and slow must be classifiers of the same classes at the same noise")
        if not (gap >= 0 and keep >= 1):
            raise ValueError(f"gap must not be negative and keep be positive, got {gap}, {keep}")
        self.fast, self.slow, self.gap, self.keep = fast, slow, gap, keep
        self.spent = self.seen = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.slow.num_classes

    @property
    def tau(self) -> float:
        """Standard deviation of the noise in the image, model units."""
        return self.slow.tau

    def survivors(self, logits: Float[Tensor, "n k"]) -> Tensor:
        """Which classes are left, ``(N, K)``; the best one always is."""
        return survivors(logits, self.gap, self.keep)

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits less the largest; no gradient. Arguments and errors as for :class:`rdc.certify.noised.EPNDC`."""
        with torch.no_grad():
            index = numbered(x, index, self.seen)
            before = self.fast.spent if isinstance(self.fast, Cascade) else 0
            logits = self.fast(x, index)
            alive = self.survivors(logits)
            image, label = (alive & (alive.sum(dim=1, keepdim=True) > 1)).nonzero(as_tuple=True)
            total = torch.zeros_like(logits)
            if len(image):
                total[image, label] = -self.refined(x, index, image, label).to(x)
        last = total.masked_fill(~alive, math.inf).amin(dim=1, keepdim=True)
        total = torch.where(alive, total, last - 1 + logits - logits.amax(dim=1, keepdim=True))
        self.seen += len(x)
        first = self.fast.spent - before if isinstance(self.fast, Cascade) else len(x) * self.fast.evaluations
        once = self.slow.evaluations - self.slow.engine.evaluations  # the one-step estimate of APNDC
        self.spent += first + len(image) * len(self.slow.steps) * self.slow.engine.draws + len(image.unique()) * once
        return total - total.amax(dim=1, keepdim=True)

    def refined(self, x: Tensor, index: Tensor, image: Tensor, label: Tensor) -> Tensor:
        """Sums of the slow losses of single classes, ``(M,)``."""
        rows = image.unique()
        batch, t = self.slow.batch(x[rows], index[rows]), len(self.slow.steps)
        place = torch.searchsorted(rows, image).repeat(t)
        level = torch.arange(t, device=x.device).repeat_interleave(len(image))
        return batch.some(place, label.repeat(t), level).reshape(t, len(image)).sum(dim=0)


def survivors(logits: Float[Tensor, "n k"], gap: float, keep: int) -> Bool[Tensor, "n k"]:
    """Which classes are less than ``gap`` behind the best, ``keep`` of them at most; the best one always is."""
    order = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return (order == 0) | ((logits > logits.amax(dim=1, keepdim=True) - gap) & (order < keep))


def numbered(x: Tensor, index: Tensor | None, seen: int) -> Int64[Tensor, " n"]:
    """Numbers of images: as given, or in the order in which they come, so that all stages give an image the same fresh noise.

    Raises:
        ValueError: if ``x`` is no batch.
    """
    if not torch.is_tensor(x) or x.ndim != 4:
        raise ValueError(
            f"noisy images must be a batch (N, C, H, W), got {tuple(x.shape) if torch.is_tensor(x) else type(x).__name__}"
        )
    return torch.arange(seen, seen + len(x), device="cpu") if index is None else index
