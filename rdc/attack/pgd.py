r"""Projected gradient descent (Madry et al., 2018), with restarts and expectation over transformation.

.. math:: x^{(i+1)} = \Pi_{\mathcal B(x, \epsilon) \cap [0, 1]}\big( x^{(i)} + \eta_i\, d(\nabla L(x^{(i)})) \big)

with :math:`d` the steepest direction of the norm (the sign for Linf). The step falls linearly from its first value to a
tenth of it. The iterate with the largest loss is returned, and images already broken are dropped.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
"""

__all__ = ["pgd"]

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.losses import LOSSES
from rdc.attack.norms import ascend, check_eps, project, random_start
from rdc.data import check_images, check_labels


def pgd(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "margin",
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Adversarial images within the ball; an image that the attack cannot break comes back at its largest loss.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units.
        steps: Gradient steps of a restart.
        step_size: First step; by default ``4 eps / steps``, and at least ``eps / 10``: together the steps cross the ball.
        restarts: Number of random starts.
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        loss: ``margin``, ``ce`` or ``dlr``.
        seed: Owner of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.
    """
    check_images(x)
    check_labels(y, len(x))
    check_eps(norm, eps)
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; there are {', '.join(LOSSES)}")
    index = torch.arange(len(x)) if index is None else index
    best, best_loss = x.clone(), evaluate(model, x, y, loss, eot)[0]
    first = max(4 * eps / max(steps, 1), eps / 10) if step_size is None else step_size
    with tqdm(total=restarts * steps, disable=quiet, desc=f"pgd {norm} {eps:.4g}", unit="step") as bar:
        for restart in range(restarts):
            todo = still_right(model, best, y)
            if not len(todo):
                break
            images, labels = x[todo], y[todo]
            start = random_start(images, norm, eps, index[todo.cpu()], seed, restart)
            found, value = climb(model, start, images, labels, norm, eps, steps, first, eot, loss, bar)
            better = value > best_loss[todo]
            best[todo[better]], best_loss[todo[better]] = found[better], value[better]
    return best


def climb(
    model: nn.Module,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: float,
    steps: int,
    first: float,
    eot: int,
    loss: str,
    bar: tqdm,
) -> tuple[Tensor, Tensor]:
    """One ascent from ``start``: the best iterate of each image and its loss."""
    x_adv, best = start, start.clone()
    best_loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    for i in range(steps + 1):
        value, gradient = evaluate(model, x_adv, y, loss, eot)
        better = value > best_loss
        best[better], best_loss[better] = x_adv[better], value[better]
        if i < steps:
            size = first * (1 - 0.9 * i / max(steps - 1, 1))
            x_adv = project(x_adv + size * ascend(gradient, norm), x, norm, eps)
            bar.update()
    return best, best_loss


def evaluate(model: nn.Module, x: Tensor, y: Tensor, loss: str, eot: int) -> tuple[Tensor, Tensor]:
    """Loss ``(N,)`` and its gradient ``(N, C, H, W)``, averaged over ``eot`` calls."""
    total, slope = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
    for _ in range(eot):
        point = x.detach().requires_grad_()
        with torch.enable_grad():
            value = LOSSES[loss](model(point), y)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        total, slope = total + value.detach() / eot, slope + gradient / eot
    return total, slope


def still_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Positions of the images that are still classified correctly."""
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).nonzero()[:, 0]
