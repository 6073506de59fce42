r"""The attack of robust training: projected gradient ascent on the noisy image, which stops where the classifier is fooled.

.. math:: \delta \leftarrow \Pi_{\lVert \delta \rVert \le r(\sigma)} \big( \delta + \eta\, d(\nabla_{z_\sigma}
    \mathcal L_{CE}(h(z_\sigma + \delta, \sigma), y)) \big), \qquad \delta_0 = 0,

with :math:`d` the steepest direction of the norm. An image takes a step only while it is classified correctly, so that one that
is wrong from the start is not attacked at all; nothing is clipped to the range of images.

The threat model of the paper is :math:`\lVert \delta \rVert \le \epsilon` for the image :math:`x_t`, at every t. Our images are
:math:`z_\sigma = x_t \sqrt{1 + \sigma^2}` with :math:`z = 2x - 1`, hence the radius :math:`r(\sigma)`:

| ``paper``     :math:`2 \epsilon \sqrt{1 + \sigma^2}`: constant in :math:`x_t`, epsilon in the units of images in [0, 1], in
                which 0.5 and 8/255 are usual (the paper names no unit)
| ``released``  :math:`\epsilon \sqrt{1 + \sigma^2}`: the same with epsilon in the units of [-1, 1], as in the released code
| ``image``     :math:`2 \epsilon`: the change that epsilon makes to the clean image, at every level;
                :math:`\epsilon \sqrt{\alpha_t}` in :math:`x_t`, in the units of [0, 1]
| ``scaled``    :math:`\epsilon \sigma`: epsilon standard deviations of the noise; :math:`\epsilon \sqrt{1 - \alpha_t}` in
                :math:`x_t`

Why ``scaled``: the noise hides any fixed change :math:`\delta` equally well at every level. With even odds the best test between
:math:`\mathcal N(z, \sigma^2 I)` and :math:`\mathcal N(z + \delta, \sigma^2 I)` is right with probability
:math:`\Phi(\lVert \delta \rVert_2 / 2 \sigma) = \Phi(\epsilon / 2)`. It asks for nothing at low noise, where a robust classifier
of clean images must resist most. At high noise ``released`` is the same thing: :math:`\sqrt{1 + \sigma^2} \to \sigma`.

Step rules: ``main`` :math:`\eta = r / 6` (section 5.1: 0.083 for 0.5), with which seven steps just cross the radius, and
``appendix`` :math:`\eta = 2.5\, r / \text{steps}` (appendix E).

References:
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), sections 4.2, 5.1, app. E
    | https://arxiv.org/abs/2208.08664
    | Released code: ``radius="released"``, no random start, early stopping
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
"""

__all__ = ["Threat", "level_outcomes", "level_table", "perturb"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rdc.attack.budget import BALLS
from rdc.attack.norms import ascend, norm_of
from rdc.data import Images
from rdc.denoise.base import expand_sigma, to_model
from rdc.rng import randn

#: Radius on ``z_sigma`` (model units) from epsilon and the noise level.
RADII: dict[str, Callable[[float, Tensor], Tensor]] = {
    "paper": lambda eps, sigma: 2 * eps * (1 + sigma**2).sqrt(),
    "released": lambda eps, sigma: eps * (1 + sigma**2).sqrt(),
    "image": lambda eps, sigma: torch.full_like(sigma, 2 * eps),
    "scaled": lambda eps, sigma: eps * sigma,
}
#: Step size, as a fraction of the radius, from the number of steps.
STEPS: dict[str, Callable[[int], float]] = {"main": lambda steps: 1 / 6, "appendix": lambda steps: 2.5 / steps}


@dataclass(frozen=True)
class Threat:
    """A threat model and the attack on it.

    Raises:
        ValueError: if a name is unknown, epsilon is negative or there is no step.
    """

    norm: str = "L2"  # L2 or Linf
    eps: float = 0.5  # in the units of the radius rule
    steps: int = 7  # gradient steps at most
    radius: str = "released"  # one of RADII
    step: str = "appendix"  # one of STEPS
    stop: bool = True  # whether an image is left alone as soon as it is misclassified

    def __post_init__(self) -> None:
        for what, name, known in (("norm", self.norm, BALLS), ("radius", self.radius, RADII), ("step", self.step, STEPS)):
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")
        if not self.eps >= 0 or self.steps < 1:
            raise ValueError(f"eps must not be negative and steps at least 1, got {self.eps} and {self.steps}")

    def radius_at(self, sigma: Tensor) -> Tensor:
        """``r(sigma)``, model units, in the shape of ``sigma``."""
        return RADII[self.radius](self.eps, sigma)


def perturb(
    classifier: Callable[[Tensor, Tensor], Tensor],
    z: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, "*n"] | float,
    y: Int64[Tensor, " n"],
    threat: Threat,
) -> Float[Tensor, "n c h w"]:
    """Noisy images after the attack, each within ``r(sigma)`` of what it was; parameters get no gradient.

    Arguments:
        classifier: ``(z_sigma, sigma) -> logits``.
        z: Noisy images, model units.
        sigma: Noise level, one number or one per image.
        y: True labels.
        threat: What the attacker may do.
    """
    level = expand_sigma(sigma, z)
    radius, flat = threat.radius_at(level), level.flatten()
    point, todo = z.detach().clone(), torch.arange(len(z), device=z.device)
    for _ in range(threat.steps):
        here = point[todo].requires_grad_()
        with torch.enable_grad():
            logits = classifier(here, flat[todo])
            loss = F.cross_entropy(logits, y[todo], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, here)
        if threat.stop:
            right = logits.detach().argmax(dim=1) == y[todo]
            todo, here, gradient = todo[right], here[right], gradient[right]
            if not len(todo):
                break
        size = radius[todo] * STEPS[threat.step](threat.steps)
        moved = here.detach() + size * ascend(gradient, threat.norm) - z[todo]
        point[todo] = z[todo] + into_ball(moved, threat.norm, radius[todo])
    return point


def into_ball(delta: Float[Tensor, "n c h w"], norm: str, radius: Tensor) -> Float[Tensor, "n c h w"]:
    """The nearest change within the radius of each image, ``(N, 1, 1, 1)``."""
    if norm == "Linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    size = norm_of(delta, norm).reshape(-1, 1, 1, 1)
    return delta * (radius / size.clamp(min=1e-30)).clamp(max=1)


def level_outcomes(
    classifier: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    sigma: float,
    threat: Threat,
    seed: int = 0,
    batch: int = 200,
    device: str | torch.device = "cpu",
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Return the cross-entropy of each image at one noise level, and whether it is right, clean and under attack.

    Image i takes the noise of stream ``(seed, "held out", i)``, the same at all levels. Under attack counts what the classifier
    says of the result of the attack, its last step included. With the ``log_density`` of an optimal denoiser in the place of the
    classifier it is what Bayes' rule achieves (classes equally frequent): an attack may be too strong for that, too.
    """
    z, y, parts = to_model(images.x).to(device), images.y.to(device), []
    eps = torch.stack([randn(tuple(z.shape[1:]), seed, "held out", i, like=z) for i in range(len(z))])
    at = torch.tensor(sigma, dtype=z.dtype, device=z.device)
    for noisy, label in zip((z + sigma * eps).split(batch), y.split(batch), strict=True):
        found = perturb(classifier, noisy, sigma, label, threat)
        with torch.no_grad():
            logits, attacked = classifier(noisy, at), classifier(found, at)
        loss = F.cross_entropy(logits, label, reduction="none").double()
        parts.append((loss, logits.argmax(dim=1) == label, attacked.argmax(dim=1) == label))
    losses, clean, right = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return losses, clean, right


def level_table(
    classifier: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    levels: tuple[float, ...],
    threat: Threat,
    seed: int = 0,
    batch: int = 200,
    device: str | torch.device = "cpu",
) -> list[dict[str, Any]]:
    """Return cross-entropy and counts of right answers at each noise level, clean and under attack (``level_outcomes``).

    Returns:
        For each level ``{"sigma", "loss", "n", "clean", "adversarial"}``; the loss is in nats, mean over images.
    """
    rows = []
    for sigma in levels:
        loss, clean, right = level_outcomes(classifier, images, sigma, threat, seed, batch, device)
        counts = {"n": len(clean), "clean": int(clean.sum()), "adversarial": int(right.sum())}
        rows.append({"sigma": sigma, "loss": round(float(loss.mean()), 6), **counts})
    return rows
