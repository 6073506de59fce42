r"""Sift with one classifier, refine with another: the cheap one names the classes worth a dear evaluation.

Let :math:`s_y` be the logits of a cheap classifier, for instance a noised classifier on a multi-head network, whose evaluations
serve all classes. Only the classes within ``gap`` of the best,

.. math:: \{\, y : s_y > \max_j s_j - \mathrm{gap} \,\}, \qquad \text{the best } \mathrm{keep} \text{ of them},

are evaluated by the dear one. Where one class is left, nothing more is evaluated. With an infinite gap and all classes kept the
answer is that of the dear classifier, with a gap of 0 that of the cheap one.

The cheap one may be a cascade itself: then few levels settle the clear images, more levels those that are left, and many the
last doubtful ones.

The result is one more base classifier, and smoothing certifies it as it is: that it does not always answer like the dear one
costs no guarantee.
"""

__all__ = ["Cascade", "numbered", "survivors"]

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rdc.certify.noised import APNDC, EPNDC


class Cascade(nn.Module):
    """Noisy images to logits ``(N, K)``: those of ``dear`` for the classes that ``cheap`` leaves.

    The other classes follow more than one nat below the last of these, in the order of ``cheap``. ``spent`` and ``seen`` count
    network evaluations and images over all calls; an evaluation of either network counts as one.

    Arguments:
        cheap: Looks at all classes; a noised classifier, or a cascade.
        dear: Looks at those that are left.
        gap: Largest distance from the best cheap logit, nats for ``weight="elbo"``.
        keep: Largest number of classes that are left.

    Raises:
        ValueError: if the classifiers have different classes or noise levels, or a number is out of range.
    """

    def __init__(self, cheap: "EPNDC | APNDC | Cascade", dear: EPNDC | APNDC, gap: float = 1.0, keep: int = 3) -> None:
        super().__init__()
        if cheap.num_classes != dear.num_classes or cheap.tau != dear.tau:
            raise ValueError("cheap and dear must be classifiers of the same classes at the same noise")
        if not (gap >= 0 and keep >= 1):
            raise ValueError(f"gap must not be negative and keep be positive, got {gap}, {keep}")
        self.cheap, self.dear, self.gap, self.keep = cheap, dear, gap, keep
        self.spent = self.seen = 0

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.dear.num_classes

    @property
    def tau(self) -> float:
        """Standard deviation of the noise in the image, model units."""
        return self.dear.tau

    def survivors(self, logits: Float[Tensor, "n k"]) -> Tensor:
        """Which classes are left, ``(N, K)``; the best one always is."""
        return survivors(logits, self.gap, self.keep)

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits less the largest; no gradient. Arguments and errors as for :class:`rdc.certify.noised.EPNDC`."""
        with torch.no_grad():
            index = numbered(x, index, self.seen)
            before = self.cheap.spent if isinstance(self.cheap, Cascade) else 0
            logits = self.cheap(x, index)
            alive = self.survivors(logits)
            image, label = (alive & (alive.sum(dim=1, keepdim=True) > 1)).nonzero(as_tuple=True)
            total = torch.zeros_like(logits)
            if len(image):
                total[image, label] = -self.refined(x, index, image, label).to(x)
        last = total.masked_fill(~alive, math.inf).amin(dim=1, keepdim=True)
        total = torch.where(alive, total, last - 1 + logits - logits.amax(dim=1, keepdim=True))
        self.seen += len(x)
        first = self.cheap.spent - before if isinstance(self.cheap, Cascade) else len(x) * self.cheap.evaluations
        once = self.dear.evaluations - self.dear.engine.evaluations  # the one-step estimate of APNDC
        self.spent += first + len(image) * len(self.dear.steps) * self.dear.engine.draws + len(image.unique()) * once
        return total - total.amax(dim=1, keepdim=True)

    def refined(self, x: Tensor, index: Tensor, image: Tensor, label: Tensor) -> Tensor:
        """Sums of the dear losses of single classes, ``(M,)``."""
        rows = image.unique()
        job, t = self.dear.job(x[rows], index[rows]), len(self.dear.steps)
        place = torch.searchsorted(rows, image).repeat(t)
        level = torch.arange(t, device=x.device).repeat_interleave(len(image))
        return job.losses(place, label.repeat(t), level).reshape(t, len(image)).sum(dim=0)


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
    return torch.arange(seen, seen + len(x)) if index is None else index
