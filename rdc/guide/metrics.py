r"""How good generated images are, in the features of a *named* network: Frechet distance, precision, recall, agreement.

With mean and covariance of the features of real and generated images,

.. math:: d^2 = \lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}\big( C_1 + C_2 - 2 (C_1 C_2)^{1/2} \big),

the squared 2-Wasserstein distance of two Gaussians. In the features of Inception it is called FID; in others it is not, and
numbers of different networks cannot be compared.

*Precision* is the fraction of generated images inside the manifold of the real ones, *recall* the fraction of real images inside
that of the generated ones. The manifold of a set is the union of balls around its points that reach to the k-th neighbour.

Intervals: the Frechet distance of n images is too large by O(1/n), and resampling adds the same bias once more. The *basic*
bootstrap, :math:`[2 \hat\theta - \theta^*_{hi}, 2 \hat\theta - \theta^*_{lo}]`, takes both away (its lower end may be negative).
Resampling a manifold makes duplicates, whose balls are points: for precision and recall the manifolds are kept and the counts get
Wilson intervals. :func:`rdc.runs.statistics.repeated` makes an interval of whole repetitions with other seeds, which covers
everything.

References:
    | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
    | Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al., 2019)
    | https://arxiv.org/abs/1904.06991
    | An Introduction to the Bootstrap (Efron and Tibshirani, 1993), chapter 13
"""

__all__ = [
    "FeatureNetwork",
    "Interval",
    "PrecisionRecall",
    "agreement",
    "bootstrap",
    "frechet_distance",
    "precision_recall",
]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from rdc.evaluate import Accuracy, predict
from rdc.rng import randint
from rdc.runs.statistics import Interval


@dataclass(frozen=True)
class FeatureNetwork:
    """What a named network makes of images before one of its layers, by default the last layer of :class:`rdc.classify.CNN`."""

    name: str  # stands in every record: which network, trained on what
    network: nn.Module
    layer: str = "head"
    batch: int = 250  # images at a time

    def __call__(self, x: Float[Tensor, "n c h w"]) -> Float64[Tensor, "n d"]:
        """Features of images in [0, 1].

        Raises:
            ValueError: if the network has no such layer, or does not run it once.
        """
        layers, seen = dict(self.network.named_modules()), []
        if self.layer not in layers:
            raise ValueError(f"{self.name} has no layer {self.layer!r}; there are {', '.join(filter(None, layers))}")
        hook = layers[self.layer].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(1)))
        try:
            with torch.no_grad():
                for part in x.split(self.batch):
                    self.network(part)
        finally:
            hook.remove()
        if len(seen) != math.ceil(len(x) / self.batch):
            raise ValueError(f"{self.name} runs its layer {self.layer!r} {len(seen)} times for {len(x)} images; name another")
        return torch.cat(seen).double()


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    r"""Squared distance :math:`d^2` of the Gaussians fitted to two sets of features, in float64; unbiased covariances.

    The trace of the root of :math:`C_1 C_2` is the sum of the singular values of :math:`C_1^{1/2} C_2^{1/2}`: nothing is rooted
    twice, and singular covariances do no harm.

    Raises:
        ValueError: if a set has fewer than two points, or one that is not finite.
    """
    for points in (a, b):
        if len(points) < 2 or not bool(points.isfinite().all()):
            raise ValueError(f"the Frechet distance needs at least two finite points in each set, got {len(a)} and {len(b)}")
    (mean_a, root_a, trace_a), (mean_b, root_b, trace_b) = moments(a), moments(b)
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    return float((mean_a - mean_b).square().sum() + trace_a + trace_b - 2 * cross)


def moments(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, root of the covariance, trace of the covariance."""
    mean = points.double().mean(dim=0)
    covariance = (points.double() - mean).T @ (points.double() - mean) / (len(points) - 1)
    value, vector = torch.linalg.eigh(covariance)
    return mean, vector * value.clamp(min=0).sqrt() @ vector.T, covariance.trace()


@dataclass(frozen=True)
class PrecisionRecall:
    """Counts and Wilson intervals; the manifolds count as given."""

    precision: Accuracy
    recall: Accuracy


def precision_recall(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = 3) -> PrecisionRecall:
    """Precision and recall with the k nearest neighbours, as in the paper (k = 3); both grow with k.

    Raises:
        ValueError: if k is less than 1 or a set has no more than k points.
    """
    if not 1 <= k < min(len(real), len(generated)):
        raise ValueError(f"k must lie between 1 and the smaller set's size less 1, got {k}, {len(real)} and {len(generated)}")
    inside_real, inside_generated = inside(generated, real, k), inside(real, generated, k)
    return PrecisionRecall(
        Accuracy.of(int(inside_real.sum()), len(generated)), Accuracy.of(int(inside_generated.sum()), len(real))
    )


def inside(points: Float[Tensor, "n d"], manifold: Float[Tensor, "m d"], k: int) -> Bool[Tensor, " n"]:
    """Which points lie within the distance of the k-th neighbour of some point of a set."""
    points, manifold = points.double(), manifold.double()
    radius = distances(manifold, manifold).kthvalue(k + 1, dim=1).values  # the nearest one is the point itself
    return torch.cat([(distances(part, manifold) <= radius).any(dim=1) for part in points.split(500)])


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances of all pairs; of a point to itself exactly 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def agreement(classifier: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], batch: int = 250) -> Accuracy:
    """How often a classifier that took no part sees in the generated images ``x`` the classes ``y`` that were asked for."""
    return Accuracy.of(int((predict(classifier, x, batch) == y).sum()), len(y))


def bootstrap(statistic: Callable[..., float], *sets: Tensor, repeats: int = 200, seed: int = 0, level: float = 0.95) -> Interval:
    """The basic bootstrap interval of ``statistic(*sets)``; each set is resampled along its first dimension.

    Raises:
        ValueError: if there are fewer than two resamples, or the level is not between 0 and 1.
    """
    if repeats < 2 or not 0 < level < 1:
        raise ValueError(f"the bootstrap needs at least 2 resamples and a level in (0, 1), got {repeats} and {level}")
    value = float(statistic(*sets))
    again = []
    for r in range(repeats):
        draws = [randint(len(s), (len(s),), seed, "bootstrap", i, r) for i, s in enumerate(sets)]
        again.append(float(statistic(*(s[draw.to(s.device)] for s, draw in zip(sets, draws, strict=True)))))
    found = torch.tensor(again, dtype=torch.float64, device="cpu")
    ends = [found.quantile((1 - level) / 2), found.quantile((1 + level) / 2)]
    return Interval(value, 2 * value - float(ends[1]), 2 * value - float(ends[0]), repeats)
