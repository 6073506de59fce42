r"""Whether a guide's gradient points where it should: a score in the place of a look, and Appendix B of the paper.

For the optimal denoiser

.. math:: \sigma^2\, \nabla \log p(y \mid z_\sigma) = D(z_\sigma, \sigma, y) - D(z_\sigma, \sigma),

the step from what the noisy image looks like to what it would look like as class y. The *alignment* of a guide is the cosine of
its gradient with this direction, image by image; its *strength* is the ratio of the lengths,
:math:`\sigma^2 \lVert g \rVert / \lVert D_y - D \rVert`, which the scale s has to make up for. Where the noise is so low that the
exact posterior is certain of y there is no direction left, and no score.

Appendix B of the paper: adding :math:`g(z)` to all logits changes neither loss nor accuracy, but the gradients. That is so for
raw logits. Guidance takes :math:`\nabla \log \operatorname{softmax}`, in which g cancels, and so it does in the adversarial loss
and its attack: the observation does not tell vanilla from robust training.

References:
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), section 5.1, appendix B
    | https://arxiv.org/abs/2208.08664
    | Rethinking the Role of Gradient-Based Attribution Methods (Srinivas and Fleuret, 2020), https://arxiv.org/abs/2006.09128
"""

__all__ = ["Alignment", "Shifted", "alignment", "alignment_table", "climb", "direction", "shift_effect"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.attack.norms import ascend
from rdc.denoise.base import Denoiser, to_model
from rdc.guide.guides import Guide, log_gradient
from rdc.guide.metrics import bootstrap
from rdc.guide.threat import Threat, into_ball, perturb
from rdc.rng import randn

CERTAIN = 1e-6  # below this length, relative to |D|, D_y - D is rounding error or close to it


@dataclass(frozen=True, eq=False)
class Alignment:
    """Per image: ``cosine`` with the exact direction, and ``strength``; NaN where there is no direction."""

    cosine: Float[Tensor, " n"]
    strength: Float[Tensor, " n"]


def direction(
    denoiser: Denoiser, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"], y: Int64[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """``D(z, sigma, y) - D(z, sigma)``."""
    with torch.no_grad():
        return denoiser(z, sigma, y) - denoiser(z, sigma, None)


def alignment(
    guide: Guide, denoiser: Denoiser, z: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"], y: Int64[Tensor, " n"]
) -> Alignment:
    """Cosine and strength of a guide's gradients towards classes ``y``.

    Arguments:
        guide: What is judged.
        denoiser: What is right: the optimal denoiser of the data, in float64; or a trained one, as an approximation.
        z: Noisy images, model units.
        sigma: Their noise levels.
        y: Classes: the true ones, or targets.
    """
    right, found = direction(denoiser, z, sigma, y).flatten(1).double(), guide(z, sigma, y).flatten(1).double()
    with torch.no_grad():
        scale = denoiser(z, sigma, None).flatten(1).double().norm(dim=1)
    length = right.norm(dim=1)
    there = length > CERTAIN * scale
    strength = sigma.double() ** 2 * found.norm(dim=1) / length
    nothing = torch.full_like(length, torch.nan)
    cosine = F.cosine_similarity(found, right, dim=1, eps=1e-300)
    return Alignment(torch.where(there, cosine, nothing), torch.where(there, strength, nothing))


def alignment_table(
    guides: Mapping[str, Guide],
    denoiser: Denoiser,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    levels: tuple[float, ...],
    seed: int = 0,
    batch: int = 50,
    repeats: int = 200,
) -> list[dict[str, Any]]:
    """Mean alignment of each guide at each noise level, on the same noisy images.

    Image i takes the noise of stream ``(seed, "align", i)``, the same at all levels. The images should not be among those of the
    optimal denoiser: at low noise it would know them.

    Arguments:
        guides: What is judged, by name.
        denoiser: What is right.
        x: Images in [0, 1], in the dtype of the denoiser.
        y: Classes towards which the gradients are taken.
        levels: Noise levels, model units.
        seed: Owner of noise and bootstrap.
        batch: Images at a time.
        repeats: Resamples of the interval.

    Returns:
        Rows ``{"guide", "sigma", "n", "cosine", "low", "high", "strength"}``: ``n`` images have a direction; the mean of their
        cosines with its 95 % bootstrap interval, and the median of their strengths. The last four are None if n < 2.
    """
    z, rows = to_model(x), []
    eps = torch.stack([randn(tuple(x.shape[1:]), seed, "align", i, like=x) for i in range(len(x))])
    for sigma in levels:
        for name, guide in guides.items():
            parts = []
            for noisy, label in zip((z + sigma * eps).split(batch), y.split(batch), strict=True):
                level = torch.full((len(noisy),), sigma, dtype=noisy.dtype, device=noisy.device)
                parts.append(alignment(guide, denoiser, noisy, level, label))
            cosine, strength = torch.cat([p.cosine for p in parts]), torch.cat([p.strength for p in parts])
            there = ~cosine.isnan()
            row: dict[str, Any] = {
                "guide": name,
                "sigma": sigma,
                "n": int(there.sum()),
                "cosine": None,
                "low": None,
                "high": None,
                "strength": None,
            }
            if row["n"] > 1:
                found = bootstrap(lambda c: float(c.mean()), cosine[there], repeats=repeats, seed=seed)
                row |= {"cosine": found.value, "low": found.low, "high": found.high, "strength": float(strength[there].median())}
            rows.append(row)
    return rows


def climb(
    guide: Guide,
    z: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, " n"],
    y: Int64[Tensor, " n"],
    radius: float,
    steps: int = 7,
) -> Float[Tensor, "n c h w"]:
    r"""Targeted ascent of ``log p(y | z)`` within :math:`\lVert \delta \rVert_2 \le R` (Fig. 4), steps of ``2.5 R / steps``.

    The paper takes R = 100 at t = 0 for images of 3 x 128 x 128 and names no unit; ours is model units.
    """
    wide, point = torch.full((len(z), 1, 1, 1), radius, dtype=z.dtype, device=z.device), z
    for _ in range(steps):
        moved = point - z + 2.5 * radius / steps * ascend(guide(point, sigma, y), "L2")
        point = z + into_ball(moved, "L2", wide)
    return point


class Shifted(nn.Module):
    """The classifier of Appendix B: all logits plus one function ``shift(z)`` of the image, ``(N,)``."""

    def __init__(self, classifier: Callable[[Tensor, Tensor], Tensor], shift: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.shift = classifier, shift

    def forward(self, z: Tensor, sigma: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        return self.classifier(z, sigma) + self.shift(z)[:, None]


def at_level(classifier: Callable[[Tensor, Tensor], Tensor], sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """A classifier of noisy images as a function of the image."""
    return lambda z: classifier(z, sigma)


def shift_effect(
    classifier: Callable[[Tensor, Tensor], Tensor],
    shift: Callable[[Tensor], Tensor],
    z: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, " n"],
    y: Int64[Tensor, " n"],
    threat: Threat,
) -> dict[str, float]:
    """What adding ``shift`` to all logits changes, relative to what was there: raw gradient, log-softmax gradient, attack, loss.

    Returns:
        ``raw``, ``log_softmax`` and ``attack``: length of the change over length of what it changes (gradient of logit y, of log
        softmax y, and the perturbation that the attack finds); ``loss``: relative change of the adversarial loss.
    """
    found = []
    for h in (classifier, Shifted(classifier, shift)):
        raw, normal = (log_gradient(at_level(h, sigma), z, y, n) for n in (False, True))
        point = perturb(h, z, sigma, y, threat)
        with torch.no_grad():
            found.append((raw, normal, point - z, F.cross_entropy(h(point, sigma), y)))
    names = ("raw", "log_softmax", "attack", "loss")
    return {n: float((b - a).norm() / a.norm()) for n, a, b in zip(names, *found, strict=True)}
