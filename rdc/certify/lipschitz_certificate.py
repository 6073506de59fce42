r"""The certificate without smoothing: the margin of a diffusion classifier against the Lipschitz bound of its logits.

The classifier that is certified takes the exact expectation over the noise, of losses of a denoiser clipped to the box
(:class:`rdc.certify.lipschitz.Boxed`). Its margin is estimated from n fresh independent draws of the noise of all levels, each
shared by the classes, and bounded with confidence by :func:`rdc.certify.betting_bound.mean_lower`, whose proof needs only that
the losses lie in an interval. The class is chosen from n0 other draws. Two forms, by name:

| ``global``  :math:`R = \underline M / L_\Delta`, with the margin :math:`M_j = f_y - f_j` over each rival bounded at level
              alpha / (K - 1): one number a draw, in which the noise that classes share cancels
| ``local``   :func:`rdc.certify.lipschitz.certified_radius`, with each of the K T losses bounded at level alpha / (K T)
"""

__all__ = ["FORMS", "LipschitzCertificate", "from_losses", "lipschitz_certify"]

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rdc.certify.betting_bound import mean_lower
from rdc.certify.clopper_pearson import check_alpha
from rdc.certify.lipschitz import Boxed, certified_radius, lipschitz_constant
from rdc.classify.denoising_loss import Losses, Samples, denoising_losses
from rdc.classify.diffusion import DiffusionClassifier
from rdc.data import check_images
from rdc.denoise.base import to_model
from rdc.noise_source import Noise
from rdc.rng import generator
from rdc.schedule import Levels

FORMS = ("local", "global")
LARGEST = 2**28  # bytes of noise at a time


@dataclass(frozen=True)
class LipschitzCertificate:
    """What was found about one image.

    Attributes:
        label: The class, -1 where no margin is certain.
        radius: No image of [0, 1] within this L2 distance has another class; 0 where ``label`` is -1.
        candidate: The class that the first ``n0`` draws chose.
        margin: Its mean margin over the best rival in the n draws, nats.
        margin_low: Lower bound for the margin.
        form: ``local`` or ``global``.
        alpha: Probability that the radius is too large.
        n0: Draws that chose the candidate.
        n: Draws behind the bound.
        calls: Evaluations of the denoiser, ``(n0 + n) T K``, or ``(n0 + n) T`` where one serves all classes.
    """

    label: int
    radius: float
    candidate: int
    margin: float
    margin_low: float
    form: str
    alpha: float
    n0: int
    n: int
    calls: int


def lipschitz_certify(
    classifier: DiffusionClassifier,
    x: Float[Tensor, "c h w"],
    *,
    n0: int = 16,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    index: int = 0,
    form: str = "local",
) -> LipschitzCertificate:
    """The class of one image and a radius in which it cannot change, wrong with probability at most ``alpha``.

    Arguments:
        classifier: Its denoiser (clipped here), levels, prior and ``reduce`` count; its noise and draws do not.
        x: One image in [0, 1].
        n0: Draws that choose the class.
        n: Draws that bound its margin.
        alpha: Probability of error.
        seed: Owner of the noise.
        index: Identity of the image.
        form: ``local`` or ``global``.

    Raises:
        ValueError: for bad input, or levels with a negative weight.
    """
    check_images(x[None], classifier.denoiser.shape)
    if min(n0, n) < 1:
        raise ValueError(f"n0 and n must be positive, got {n0}, {n}")
    table = losses(classifier, x, n0 + n, seed, index)
    w, size, prior = classifier.levels.weight.cpu().numpy(), x.numel(), log_prior(classifier)
    scale = 4 * (size if classifier.reduce == "sum" else 1)
    logits = prior - scale * (table * w).sum(axis=2)
    candidate = int(logits[:n0].mean(axis=0).argmax())
    margin_low, radius = from_losses(table[n0:], candidate, classifier.levels, size, alpha, form, prior, classifier.reduce)
    mean = logits[n0:].mean(axis=0)
    classes = 1 if classifier.denoiser.one_pass else classifier.num_classes
    return LipschitzCertificate(
        label=candidate if margin_low > 0 else -1,
        radius=radius,
        candidate=candidate,
        margin=float(mean[candidate] - np.delete(mean, candidate).max()),
        margin_low=margin_low,
        form=form,
        alpha=alpha,
        n0=n0,
        n=n,
        calls=(n0 + n) * len(w) * classes,
    )


def losses(classifier: DiffusionClassifier, x: Tensor, draws: int, seed: int, index: int) -> np.ndarray:
    """Normalised losses of the clipped denoiser, one draw of noise for every level each, ``(draws, K, T)`` in [0, 1]."""
    denoiser, levels = Boxed(classifier.denoiser), classifier.levels
    z, sigma, ones = to_model(x), levels.sigma.to(x), torch.ones_like(levels.weight).to(x.device)
    size, parts = max(1, LARGEST // (4 * x.numel() * len(levels))), []
    for first in range(0, draws, size):
        seeds = [generator(seed, "lipschitz", index, d).initial_seed() for d in range(first, min(first + size, draws))]
        eps = torch.cat([Noise(s).table(denoiser.shape, [(0,)], range(len(levels)), 1) for s in seeds]).to(x)
        start = z.expand(len(seeds), *x.shape)
        samples = Samples(sigma[:, None, None, None] * eps, per_image=True)
        with torch.no_grad():
            parts.append(denoising_losses(Losses(denoiser, sigma, ones, samples, start, start[:, None], chunk=classifier.chunk)))
    return (torch.cat(parts).cpu().numpy() / (4 * x.numel())).clip(0, 1)


def log_prior(classifier: DiffusionClassifier) -> np.ndarray:
    """``log pi``, ``(K,)``; zeros if it is uniform."""
    if classifier.prior is None:
        return np.zeros(classifier.num_classes)
    return classifier.prior.double().log().cpu().numpy()


def from_losses(
    table: np.ndarray,
    label: int,
    levels: Levels,
    size: int,
    alpha: float,
    form: str = "local",
    prior: np.ndarray | float = 0.0,
    reduce: str = "sum",
) -> tuple[float, float]:
    """Lower bound of the margin (nats) and radius (image units) of a class that was chosen from other draws.

    Arguments:
        table: Normalised losses of independent draws, ``(n, K, T)`` in [0, 1].
        label: The class y.
        levels: Noise levels and weights.
        size: Number d of pixels.
        alpha: Probability of error, shared equally by all bounds.
        form: ``local`` or ``global``.
        prior: Log probabilities of the classes, ``(K,)``.
        reduce: ``sum`` or ``mean`` over pixels.
    """
    check_alpha(alpha)
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
    n, k, t = table.shape
    w, scale = levels.weight.cpu().numpy(), 4 * (size if reduce == "sum" else 1)
    prior = np.broadcast_to(prior, (k,))
    offset = prior[label] - np.delete(prior, label)
    rivals = np.delete(table, label, axis=1)
    if form == "global":
        total = w.sum()
        share = ((rivals - table[:, [label]]) * w).sum(axis=2) / total  # in [-1, 1]
        low = 2 * mean_lower(((share + 1) / 2).clip(0, 1), alpha / (k - 1)) - 1
        margin = float((scale * total * low + offset).min())
        return margin, max(0.0, margin) / lipschitz_constant(levels, size, "rigorous", True, reduce)
    each = alpha / (k * t)
    upper, lower = 1 - mean_lower(1 - table[:, label], each), mean_lower(rivals, each)
    margin = float((scale * ((lower - upper) * w).sum(axis=1) + offset).min())
    return margin, certified_radius(upper, lower, levels, size, offset, reduce)
