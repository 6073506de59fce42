r"""Projected gradient descent (Madry et al., 2018), with restarts, target classes and expectation over transformation.

.. math:: x^{(i+1)} = \Pi_{\mathcal B(x, \epsilon) \cap [0, 1]}\big( x^{(i)} + \eta_i\, d(\nabla L(x^{(i)})) \big)

with :math:`d` the steepest direction of the norm (the sign for Linf). The step falls linearly from its first value to a
tenth of it. Of all iterates the worst is returned: a misclassified one before any other, then the one with the largest
untargeted loss. Images already broken are dropped.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
    | Synthesizing Robust Adversarial Examples (Athalye et al., 2018), https://arxiv.org/abs/1707.07397
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690: one target class after the other (APGD-T)
"""

__all__ = ["pgd"]

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Worst, ascent, ball_step, first_step
from rdc.attack.losses import LOSSES, TARGETED, check_classes, check_loss, rescale
from rdc.attack.norms import check_eps, random_start
from rdc.autograd import value_and_gradient
from rdc.data import check_images, check_labels
from rdc.door import logits_of


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
    targets: int = 0,
    scale: float | str = 1.0,
) -> Float[Tensor, "n c h w"]:
    """Adversarial images within the ball; an image that the attack cannot break comes back at its largest loss.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1]; one that is misclassified as it is comes back unchanged.
        y: True labels.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units.
        steps: Gradient steps of a restart.
        step_size: First step; by default ``4 eps / steps``, and at least ``eps / 10``: together the steps cross the ball.
        restarts: Number of random starts, of the untargeted run and of each target.
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        loss: ``margin`` (the margin of Carlini and Wagner, also called ``cw``), ``ce`` or ``dlr``.
        seed: Owner of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.
        targets: After the untargeted run, climb towards each of this many most likely wrong classes in turn (at most K - 1)
            with the targeted form of the loss; any wrong class is a success.
        scale: Factor on the logits before the loss; ``auto`` divides each image's logits by their spread, so that the result
            does not depend on the scale of the model (:func:`rdc.attack.losses.rescale`).
    """
    check_images(x)
    check_labels(y, len(x))
    check_eps(norm, eps)
    loss = check_loss(loss, scale, targets)
    index = torch.arange(len(x)) if index is None else index
    with torch.no_grad():
        clean = [logits_of(model, x, y) for _ in range(eot)]
    check_classes(loss, targets, clean[0].shape[1])
    goal = Goal(model, y, loss, scale, eot)
    worst = Worst(x.clone(), *goal.standing(clean))
    ranked = torch.stack(clean).mean(0).scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
    runs = [(restart, t) for t in range(min(targets, ranked.shape[1] - 1) + 1) for restart in range(restarts)]
    first = first_step(eps, steps) if step_size is None else step_size
    todo = worst.todo
    with tqdm(total=len(runs) * steps, disable=quiet, desc=f"pgd {norm} {eps:.4g}", unit="step") as bar:
        for restart, t in runs:
            if (restart, t) != runs[0]:
                todo = todo[still_right(model, worst.point[todo], y[todo])] if len(todo) else todo
            if not len(todo):
                break
            run = replace(goal, y=y[todo], target=ranked[todo, t - 1] if t else None)
            key = (seed, restart, t) if t else (seed, restart)
            start = random_start(x[todo], norm, eps, index[todo.cpu()], *key)
            worst.offer(*ascent(run.measure, ball_step(x[todo], norm, eps), start, steps, first, bar), todo)
    return worst.point


@dataclass(frozen=True)
class Goal:
    """What one run climbs: the loss of some images, untargeted or towards a class of each."""

    model: nn.Module
    y: Tensor
    loss: str
    scale: float | str
    eot: int
    target: Tensor | None = None

    def measure(self, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Whether each image is misclassified, its untargeted loss, and the gradient of what is climbed, over ``eot`` calls."""
        seen = []

        def objective(point: Tensor) -> Tensor:
            logits = logits_of(self.model, point, self.y)
            seen.append(logits.detach())
            scaled = rescale(logits, self.scale)
            return LOSSES[self.loss](scaled, self.y) if self.target is None else TARGETED[self.loss](scaled, self.y, self.target)

        if gradient:
            slope = value_and_gradient(objective, x, self.eot)[1]
            return *self.standing(seen), slope
        with torch.no_grad():
            for _ in range(self.eot):
                objective(x)
        return *self.standing(seen), None

    def standing(self, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """``(N,)`` misclassified by the mean logits, and the mean untargeted loss."""
        value = torch.stack([LOSSES[self.loss](rescale(logits, self.scale), self.y) for logits in seen]).mean(0)
        return torch.stack(seen).mean(0).argmax(dim=1) != self.y, value


def still_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Positions of the images that are still classified correctly."""
    with torch.no_grad():
        return (logits_of(model, x, y).argmax(dim=1) == y).nonzero()[:, 0]
