r"""The feature attack of Sabour et al. (2016): look, inside the model, like a real image of another class.

.. math:: \min_{x' \in \mathcal B(x, \epsilon) \cap [0, 1]} \lVert \phi(x') - \phi(x_\text{target}) \rVert_2^2

with :math:`\phi` a representation, by default the logits. Because what is matched is that of a real image, it also passes a
detector that looks at :math:`\phi`; hence its use against classifiers that judge by likelihood (Tramer et al., 2020).

``variant="released"`` is the form in the released code of Chen et al. (2024): PGD with 20 constant steps of ``eps / 8``, last
iterate, on the mean over classes of :math:`(f_k - 0.12)^2`, for every image the same target. The logits of a diffusion
classifier are minus its losses, :math:`f_k = -\ell_k < 0`. The target has the size of a loss (a mean over pixels) but not the
sign of a logit. All :math:`f_k` lie below it, so the attack pulls *all* of them up, the right one too, and the lowest hardest:
where the losses of the classes are close to each other it makes the image more likely under every class, and nowhere does it
ask for a change of the prediction.

References:
    | Adversarial Manipulation of Deep Representations (Sabour et al., 2016), https://arxiv.org/abs/1511.05122
    | On Adaptive Attacks to Adversarial Example Defenses (Tramer et al., 2020), https://arxiv.org/abs/2002.08347
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Appendix B.2, https://arxiv.org/abs/2305.15241
"""

__all__ = ["feature"]

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Climb, Slopes, Worst, ascent, ball_step, confirmed, first_step, known, standing
from rdc.attack.budget import budget, identities
from rdc.attack.losses import LOSSES, check_loss
from rdc.attack.norms import random_start
from rdc.door import Door, check_images, check_labels, entry
from rdc.rng import randint

VARIANTS = ("correct", "released")
RELEASED_TARGET, RELEASED_STEPS = 0.12, 8  # the constant; steps of the radius


@entry
def feature(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    features: Callable[[Tensor], Tensor] | None = None,
    target_images: Float[Tensor, "n c h w"] | None = None,
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    steps: int = 20,
    variant: str = "correct",
    loss: str | None = None,
    restarts: int = 1,
    eot: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Return images within the ball whose features are near those of the targets; of several iterates a misclassified one.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1]; one that is misclassified as it is comes back unchanged.
        y: True labels.
        features: Images to representations ``(N, ...)``, differentiable, each image alone; by default the model's logits.
        target_images: A target for each image. By default one of the batch with another label, drawn by ``(seed, index)``;
            the result then depends on which images are in the batch, and only then.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units, a number or text such as ``8/255``.
        steps: Gradient steps of a restart.
        variant: ``correct`` or ``released`` (see above), which has no features, targets and restarts of its own to choose.
        loss: ``margin``, ``ce`` or ``dlr``, added to minus the squared distance; none by default.
        restarts: Number of random starts.
        eot: Calls of the model over which everything is averaged, for models with fresh noise.
        seed: Seed of the random starts and of the choice of targets.
        index: Identity of each image, by default its position.
        quiet: Whether to hide the progress bar.
    """
    check_images(x)
    check_labels(y, len(x))
    given = budget(norm, eps, steps=steps, restarts=restarts, eot=eot)
    eps, loss, index = given.eps, None if loss is None else check_loss(loss), identities(index, len(x))
    check_variant(variant, features, target_images, given.restarts)
    first = first_step(eps, given.steps)
    with (
        Door(model) as door,
        tqdm(total=given.restarts * given.steps, disable=quiet, desc=f"feature {norm} {eps:.4g}", unit="step") as bar,
    ):
        slopes, (broken, _) = Slopes(door), standing(door, x, y, loss or "margin", given.eot)
        worst = Worst(x.clone(), broken, x.new_full((len(x),), -torch.inf))
        goal = x.new_full((len(x), 1), RELEASED_TARGET)
        if variant == "correct":
            goal = goals(door, features, choose(x, y, index, seed) if target_images is None else target_images, x, given.eot)
        for restart in range(given.restarts):
            if restart:
                worst.broken = confirmed(door, worst.point, y, worst.broken)
            todo = worst.todo
            if not len(todo):
                break
            images, labels = x[todo], y[todo]
            start = random_start(images, norm, eps, index[todo.cpu()], seed, restart)
            score = partial(closeness, features=features, goal=goal[todo], y=labels, loss=loss, mean=variant == "released")
            measure = Climb(door, slopes, labels, score, given.eot)
            if variant == "released":
                worst.point[todo] = constant_steps(measure, start, images, norm, eps, given.steps, bar)
                break
            worst.offer(*ascent(measure, ball_step(images, norm, eps), start, given.steps, first, bar), todo)
        slopes.conclude(loss or "distance of features")
    return worst.point


def check_variant(variant: str, features: object, target_images: object, restarts: int) -> None:
    """Raise on an unknown variant, and on choices that the released one does not have."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    if variant == "released" and (features is not None or target_images is not None or restarts != 1):
        raise ValueError("the released variant takes logits, a constant target and one start; leave out what differs")


def closeness(
    logits: Tensor,
    point: Tensor,
    features: Callable[[Tensor], Tensor] | None,
    goal: Tensor,
    y: Tensor,
    loss: str | None,
    mean: bool,
) -> Tensor:
    """Return minus the squared distance to the goal, ``(N,)``, a sum or a mean over features, plus a loss of the logits."""
    squares = ((logits if features is None else features(point)).flatten(1) - goal).square()
    value = -(squares.mean(dim=1) if mean else squares.sum(dim=1))
    return value if loss is None else value + LOSSES[loss](logits, y)


def goals(door: Door, features: Callable[[Tensor], Tensor] | None, targets: Tensor, x: Tensor, eot: int) -> Tensor:
    """Return the features ``(N, F)`` of the target images, averaged over ``eot`` calls."""
    check_images(targets, tuple(x.shape[1:]))
    if len(targets) != len(x):
        raise ValueError(f"there must be a target image for each of {len(x)} images, got {len(targets)}")
    with torch.no_grad():
        calls = [(features or door)(targets.clone()) for _ in range(eot)]
    if not torch.is_tensor(calls[0]) or calls[0].ndim < 2 or len(calls[0]) != len(x):
        raise ValueError(f"features must be a tensor (N, ...) for {len(x)} images")
    return torch.stack(calls).mean(0).flatten(1)


def choose(x: Tensor, y: Tensor, index: Tensor, seed: int) -> Tensor:
    """Return for each image another one of the batch with another label; the order of the batch does not matter."""
    order, y = index.argsort(), y.cpu()
    chosen = []
    for label, i in zip(y.tolist(), index.tolist(), strict=True):
        others = order[y[order] != label]
        if not len(others):
            raise ValueError(f"the batch holds no image of a class other than {label}; pass target_images")
        chosen.append(others[randint(len(others), (), "target", seed, i)])
    return x[torch.stack(chosen).to(x.device)]


def constant_steps(measure: Climb, start: Tensor, x: Tensor, norm: str, eps: float, steps: int, bar: tqdm) -> Tensor:
    """Return the last iterate of steps of ``eps / 8``."""
    point, step = start, ball_step(x, norm, eps)
    for _ in range(steps):
        point = step(point, known(measure(point, True)), eps / RELEASED_STEPS)
        bar.update()
    return point
