r"""Sift and refine: drop classes early, evaluate the rest in full. For many classes, at one evaluation for each class and level.

The rules are in :mod:`rdc.early_exit.sift_rules`; here they meet the classifiers. Which rule is of use depends on both:

| exact posterior          (:class:`~rdc.certify.noised.EPNDC`) ``Paired``. All classes share the noise of its target, so that
                           their losses are nearly equal, and ``Leader``, which compares ratios, saves nothing
| clean targets            (:class:`~rdc.certify.noised.APNDC`, :class:`rdc.classify.DiffusionClassifier`) ``Leader`` or
                           ``Paired``; ``Leader`` saves the more, the larger the ratios of losses are
| all classes in one pass  ``Paired``: dropping classes saves nothing, only a rule that ends before all levels are evaluated

For a smoothing certificate no guarantee is needed: a rule only changes which base classifier is certified.

References:
    | Diffusion Models are Certifiably Robust Classifiers (Chen et al., 2024), https://arxiv.org/abs/2402.02316
"""

__all__ = ["Leader", "Paired", "SiftAndRefine", "Sifted", "Table", "Threshold", "calibrate", "released", "sift", "sift_table"]

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.certify.noised import APNDC, EPNDC
from rdc.classify import DiffusionClassifier
from rdc.early_exit.sift_rules import TINY, Rule
from rdc.early_exit.sift_rules import Leader as Leader
from rdc.early_exit.sift_rules import Paired as Paired
from rdc.early_exit.sift_rules import Sifted as Sifted
from rdc.early_exit.sift_rules import Table as Table
from rdc.early_exit.sift_rules import Threshold as Threshold
from rdc.early_exit.sift_rules import sift_table as sift_table
from rdc.rng import generator


def lazily(model: EPNDC | APNDC | DiffusionClassifier, x: Tensor, index: Tensor | None = None) -> Table:
    """The losses of a classifier for a batch, evaluated on demand; its noise is fixed, or drawn once for this table."""
    shape, clean = (len(x), model.num_classes, len(model.levels)), isinstance(model, DiffusionClassifier)
    if clean and (model.prior is not None or model.reduce != "sum"):
        raise ValueError("sifting takes a DiffusionClassifier without prior and with reduce='sum'")
    batch = model.batch(x) if isinstance(model, DiffusionClassifier) else model.batch(x, index)

    def evaluate(image: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        on = None if label is None else label.to(x.device)
        return batch.some(image.to(x.device), on, level.to(x.device), whole=True).cpu()

    draws = batch.samples.draws
    once = 0 if isinstance(model, DiffusionClassifier) else model.evaluations - model.engine.evaluations
    return Table(evaluate, shape, batch.one_pass, (draws, once))


def sift(
    model: EPNDC | APNDC | DiffusionClassifier,
    x: Float[Tensor, "n c h w"],
    rule: Rule,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
) -> Sifted:
    """Classify images with as few evaluations as a rule allows.

    Arguments:
        model: The full classifier.
        x: Images as the classifier takes them, ``(N, C, H, W)``.
        rule: :class:`Threshold`, :class:`Leader` or :class:`Paired`.
        seed: Owner of the rule's random levels.
        index: A number for each image, from which its levels (and the classifier's fresh noise) follow. Without it all images
            take their levels from the same random numbers: what is said of an image does not depend on the batch.

    Raises:
        ValueError: for bad images, a rule that does not fit, or a classifier with a prior.
    """
    keys = [()] * len(x) if index is None else [(int(i),) for i in index]
    with torch.no_grad():
        return sift_table(lazily(model, x, index), rule, [generator(seed, "sift", *key) for key in keys])


class SiftAndRefine(nn.Module):
    """A classifier that sifts, to be certified by smoothing; no gradient.

    It returns the logits ``(N, K)`` of :class:`Sifted`, less the largest. ``evaluations`` counts those of all calls.
    """

    def __init__(self, model: EPNDC | APNDC | DiffusionClassifier, rule: Rule, seed: int = 0) -> None:
        super().__init__()
        self.model, self.rule, self.seed, self.evaluations = model, rule, seed, 0

    def forward(self, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
        """Logits ``(N, K)``; arguments and errors as for :func:`sift`."""
        found = sift(self.model, x, self.rule, self.seed, index)
        self.evaluations += int(found.evaluations.sum())
        return (found.logits - found.logits.amax(dim=1, keepdim=True)).to(x)


def calibrate(
    model: EPNDC | APNDC | DiffusionClassifier, x: Float[Tensor, "n c h w"], index: Int64[Tensor, " n"] | None = None
) -> tuple[float, ...]:
    """Probabilities of the levels for :class:`Paired`: the root mean squares of the differences to the best class.

    Arguments:
        model: The full classifier.
        x: Other images than those to be sifted, with the same noise.
        index: As for :func:`sift`.
    """
    with torch.no_grad():
        table = lazily(model, x, index)
        losses = table.rows(torch.ones(table.shape[:2], dtype=torch.bool, device="cpu"))
    best = losses.sum(dim=2).argmin(dim=1)
    gap = losses - losses[torch.arange(len(losses), device="cpu"), best][:, None]
    rms = gap.square().mean(dim=(0, 1)).sqrt()
    return tuple((rms.clamp(min=1e-3 * float(rms.max()) + TINY) / rms.sum()).tolist())


def released(model: EPNDC | APNDC, which: str = "noised", steps: int = 1001) -> Threshold:
    """The released settings, in the units of a model's losses: 5e-5 and the ten best (``noised``), 5e-4 and all (``clean``).

    Released losses are means over pixels, times the step of a grid of ``steps`` points from tau to 3, 1001 by default, whatever
    the grid of the sieve; so the threshold means something else for each setting of it.

    Raises:
        ValueError: if the name is unknown or the model's levels are not equally spaced, as the released ones are.
    """
    if which not in ("noised", "clean"):
        raise ValueError(f"unknown setting {which!r}; there are noised, clean")
    sigma = model.levels.sigma
    gaps = sigma.diff()
    if len(gaps) < 1 or not torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6):
        raise ValueError("the released thresholds are for equally spaced levels; make the model with placement='linear'")
    pixels = math.prod(model.denoiser.shape)
    first = float(sigma[0] - gaps[0])
    unit = pixels * float(gaps[0]) * (steps - 1) / (3 - first)
    return Threshold(5e-5 * unit, 50, 10, 10) if which == "noised" else Threshold(5e-4 * unit, 50, 10, None)
