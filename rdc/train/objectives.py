r"""Losses of adversarial training beyond the cross-entropy of what an attack finds: TRADES and MART.

With :math:`p = \mathrm{softmax} f(x)`, :math:`q = \mathrm{softmax} f(x')` and a point :math:`x'` of the ball around x,

.. math:: \mathrm{TRADES} = -\log p_y + \beta\, \mathrm{KL}(p \,\|\, q), \qquad x' \approx \arg\max \mathrm{KL}(p \,\|\, q),

.. math:: \mathrm{MART} = -\log q_y - \log\big(1 - \max_{k \ne y} q_k\big) + \lambda\, \mathrm{KL}(p \,\|\, q)\, (1 - p_y),
    \qquad x' \approx \arg\max -\log q_y .

Unlike :func:`rdc.attack.pgd`, the inner ascent moves images that are misclassified, too: MART is about them.

References:
    | Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al., 2019), Eq. 5 and algorithm 1
    | https://arxiv.org/abs/1901.08573
    | Improving Adversarial Robustness Requires Revisiting Misclassified Examples (Wang et al., 2020), Eqs. 8 to 11
    | https://openreview.net/forum?id=rklOg6EFwS
"""

__all__ = ["climbed", "divergence", "mart_loss", "trades_loss"]

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.attack.ascent import ball_step, first_step
from rdc.attack.norms import random_start


def divergence(clean: Float[Tensor, "n k"], moved: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return ``KL(softmax(clean) || softmax(moved))`` of each image, nats, at least 0."""
    p = clean.log_softmax(dim=1)
    return (p.exp() * (p - moved.log_softmax(dim=1))).sum(dim=1)


def trades_loss(
    clean: Float[Tensor, "n k"], moved: Float[Tensor, "n k"], y: Int64[Tensor, " n"], beta: float = 6.0
) -> Float[Tensor, ""]:
    """Return the loss of TRADES from logits of images and of moved images, averaged over them; gradients flow through both."""
    return F.cross_entropy(clean, y) + beta * divergence(clean, moved).mean()


def mart_loss(
    clean: Float[Tensor, "n k"], moved: Float[Tensor, "n k"], y: Int64[Tensor, " n"], weight: float = 5.0
) -> Float[Tensor, ""]:
    """Return the loss of MART from logits of images and of moved images, averaged over them; gradients flow through both.

    ``log(1 - q_k)`` is a difference of log-sum-exps, finite also where ``q_k`` rounds to 1.
    """
    rival = moved.scatter(1, y[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    others = moved.scatter(1, rival, -torch.inf).logsumexp(dim=1) - moved.logsumexp(dim=1)
    doubt = 1 - clean.softmax(dim=1).gather(1, y[:, None])[:, 0]
    boosted = F.cross_entropy(moved, y, reduction="none") - others
    return (boosted + weight * divergence(clean, moved) * doubt).mean()


def climbed(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    rise: Callable[[Tensor], Tensor],
    norm: str,
    eps: float,
    steps: int,
    seed: int,
) -> Float[Tensor, "n c h w"]:
    """Return points of the ball where a function of the logits is large: a random start, and steps that fall linearly.

    Arguments:
        model: Images in [0, 1] to logits.
        x: Centres.
        rise: Logits ``(N, K)`` to the objective of each image ``(N,)``.
        norm: ``Linf`` or ``L2``.
        eps: Radius, image units.
        steps: Gradient steps; the first is that of :func:`rdc.attack.pgd`.
        seed: Seed of the starts.
    """
    step, first = ball_step(x, norm, eps), first_step(eps, steps)
    point = random_start(x, norm, eps, torch.arange(len(x), device="cpu"), seed)
    for i in range(steps):
        at = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(rise(model(at)).sum(), at)
        point = step(point, slope, first * (1 - 0.9 * i / max(steps - 1, 1)))
    return point.detach()
