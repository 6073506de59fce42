r"""The spatial attack of Xiao et al. (2018): pixels move, their values stay.

A flow field :math:`u`, ``(N, 2, H, W)``, displaces every pixel, and the image is sampled bilinearly there:

.. math::
    \tilde x(i, j) = x\big(i + \tfrac H2 u_1(i, j),\; j + \tfrac W2 u_0(i, j)\big), \qquad \lVert u \rVert_\infty \le \epsilon .

Units: the image spans [-1, 1], so that ``eps`` is ``eps * W / 2`` pixels. The released evaluation of Chen et al. (2024) takes
0.05, which is 0.8 pixels for 32x32 images, 0.7 for 28x28 and 0.2 for 8x8. Outside the image its border pixels continue.

The default climbs the margin with sign steps of falling size from a small random flow, and keeps the worst iterate. The step
follows

.. math:: d = \nabla L / \overline{|\nabla L|} - c\, \nabla V(u)

with the mean over the pixels of an image and V the variation of the flow. The first term does not depend on the scale of the
logits. The second spreads the flow to where the image is flat and has no gradient of its own; c falls to zero half way, and what
is kept is decided by the loss alone. Without it (c = 0) the attack is weaker than the published one at the logits' usual scale.

``loss="released"`` is the published recipe: minimise ``f_y - max_{j != y} f_j + 0.05 * variation(u)`` with Adam (rate 0.01) from
the identity, and return the last iterate. The two terms have different units: for logits of order 1e-3, such as mean squared
errors, the second one wins, the flow is smoothed away, and the attack reports robustness that is not there.

References:
    | Spatially Transformed Adversarial Examples (Xiao et al., 2018), https://arxiv.org/abs/1801.02612
    | Robust Classification via a Single Diffusion Model (Chen et al., 2024), Table 1, https://arxiv.org/abs/2305.15241
"""

__all__ = ["flow_field", "stadv", "variation", "warp"]

import warnings
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Climb, Slopes, Worst, ascent, confirmed, first_step, known, standing
from rdc.attack.budget import budget, identities
from rdc.attack.losses import LOSSES, check_loss, margin
from rdc.attack.norms import round_down
from rdc.autograd import value_and_gradient
from rdc.door import Door, check_images, check_labels, entry
from rdc.quantities import number
from rdc.rng import generator

RATE, SMOOTHNESS = 0.01, 0.05  # of the released configuration
COHERENCE, START = 0.1, 0.2  # of the default: c, and the size of the random start as a fraction of the bound


@entry
def stadv(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "flow",
    eps: float | str = 0.05,
    steps: int = 100,
    loss: str = "margin",
    eot: int = 1,
    smoothness: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Return images warped by a flow within the bound: ``warp(x, flow_field(...))`` with the same options, which see."""
    return warp(x, flow_field(model, x, y, norm, eps, steps, loss, eot, smoothness, restarts, seed, index, quiet))


@entry
def flow_field(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "flow",
    eps: float | str = 0.05,
    steps: int = 100,
    loss: str = "margin",
    eot: int = 1,
    smoothness: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n 2 h w"]:
    """Return adversarial flow fields; that of an image misclassified as it is, is zero.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        norm: ``flow``: the L-infinity norm of the flow.
        eps: Bound on the flow, with the image spanning [-1, 1]: ``eps * W / 2`` pixels.
        steps: Gradient steps of a restart.
        loss: ``margin``, ``ce``, ``dlr``, or ``released`` (see above).
        eot: Calls of the model over which loss and gradient are averaged, for models with fresh noise.
        smoothness: Weight of the variation of the flow, subtracted from the loss; its unit is that of the loss, so take a
            scale-free one (``dlr``) with it. The released recipe has its own.
        restarts: Number of random starts; 1 for ``released``, which starts at the identity.
        seed: Seed of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad images, labels or options, and on what a model must not return.
    """
    check_images(x)
    check_labels(y, len(x))
    given = budget(norm, eps, norms=("flow",), steps=steps, restarts=restarts, eot=eot)
    weight, index = number(smoothness, "smoothness", low=0), identities(index, len(x))
    if loss == "released" and (given.restarts != 1 or weight != 0):
        raise ValueError("the released attack has one start, the identity, and a smoothness of its own")
    if given.eps > 0.5:
        text = f"a flow of {given.eps:g} moves pixels by {given.eps / 2:.0%} of the image; eps is no number of pixels"
        warnings.warn(text, stacklevel=3)
    loss = loss if loss == "released" else check_loss(loss)
    bound = round_down(given.eps, x.dtype)
    with Door(model) as door:
        slopes, (broken, _) = Slopes(door), standing(door, x, y, "margin" if loss == "released" else loss, given.eot)
        worst = Worst(x.new_zeros(len(x), 2, *x.shape[2:]), broken, x.new_full((len(x),), -torch.inf))
        with tqdm(total=given.restarts * given.steps, disable=quiet, desc=f"stadv {given.eps:.4g}", unit="step") as bar:
            for restart in range(given.restarts):
                if restart:
                    worst.broken = confirmed(door, warp(x, worst.point), y, worst.broken)
                todo = worst.todo
                if not len(todo):
                    break
                images, labels = x[todo], y[todo]
                measure = Climb(door, slopes, labels, objective(loss, labels, weight), given.eot, partial(warp, images))
                if loss == "released":
                    worst.point[todo] = released(measure, images.new_zeros(len(todo), 2, *x.shape[2:]), bound, given.steps, bar)
                    break
                start = random_flow(images, bound, index[todo.cpu()], seed, restart)
                worst.offer(*climb(measure, start, bound, given.steps, bar), todo)
        slopes.conclude(loss)
    return worst.point


def random_flow(x: Float[Tensor, "n c h w"], bound: float, index: Tensor, *key: int) -> Float[Tensor, "n 2 h w"]:
    """Return uniform flows, small against the bound; that of image ``i`` is a function of ``(*key, index[i])``."""
    streams, shape = [generator("flow", *key, i) for i in index.tolist()], (2, *x.shape[2:])
    noise = [2 * torch.rand(shape, generator=g, dtype=torch.float32, device="cpu") - 1 for g in streams]
    return (START * bound * torch.stack(noise).to(x)).clamp(-bound, bound)


def objective(loss: str, y: Tensor, smoothness: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of the logits minus the weighted variation of the flow; the released one has its own of both."""
    function, weight = (margin, SMOOTHNESS) if loss == "released" else (LOSSES[loss], smoothness)

    def score(logits: Tensor, flow: Tensor) -> Tensor:
        value = function(logits, y)
        return value - weight * variation(flow) if weight else value

    return score


def climb(measure: Climb, start: Tensor, bound: float, steps: int, bar: tqdm) -> tuple[Tensor, Tensor, Tensor]:
    """Return the worst flow of one run of sign ascent, its verdict and its objective."""
    first = first_step(bound, steps)

    def step(flow: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        scale = gradient.abs().flatten(1).mean(dim=1).reshape(-1, 1, 1, 1)
        relative = gradient / torch.where(scale > 0, scale, torch.ones_like(scale))
        rough = value_and_gradient(variation, flow, see=ignore)[1]
        weight = COHERENCE * max(2 * float(size) - first, 0) / first if first else 0.0
        return (flow + size * (relative - weight * rough).sign()).clamp(-bound, bound)

    return ascent(measure, step, start, steps, first, bar)


def ignore(gradient: Tensor) -> None:
    """Look at nothing: the variation of a flow has a finite gradient everywhere."""


def released(measure: Climb, flow: Tensor, bound: float, steps: int, bar: tqdm) -> Tensor:
    """Return the last iterate of the released recipe: margin and smoothness in one sum, Adam from the identity."""
    adam = torch.optim.Adam([flow], lr=RATE)
    for _ in range(steps):
        flow.grad = -known(measure(flow, True))
        adam.step()
        flow.clamp_(-bound, bound)
        bar.update()
    return flow


def variation(flow: Float[Tensor, "n 2 h w"], floor: float = 1e-5) -> Float[Tensor, " n"]:
    r"""The flow loss of Xiao et al., Eq. 4: :math:`\sum_p \sum_{q \in \mathcal N(p)} \lVert u(p) - u(q) \rVert_2` over the four
    neighbours, so that each pair counts twice.

    Each distance ``d`` enters as ``sqrt(d^2 + floor^2) - floor``, which has a gradient where neighbours agree.
    """
    pairs = [flow.diff(dim=2).square().sum(dim=1), flow.diff(dim=3).square().sum(dim=1)]
    across, down = (2 * ((squares + floor**2).sqrt() - floor).flatten(1).sum(dim=1) for squares in pairs)
    return across + down


def warp(x: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n c h w"]:
    """Images sampled bilinearly at displaced pixels, differentiable in the flow; the zero flow returns ``x`` bit for bit.

    It is ``grid_sample`` with border padding and ``align_corners=False``, computed in pixels: grid coordinates in [-1, 1] round,
    and would change an image that does not move.

    Arguments:
        x: Images ``(N, C, H, W)`` in [0, 1].
        flow: Displacements to the right (channel 0) and down (channel 1), where the image spans [-1, 1].
    """
    h, w = x.shape[2:]
    column = (torch.arange(w, dtype=x.dtype, device=x.device) + flow[:, 0] * (w / 2)).clamp(0, w - 1)
    row = (torch.arange(h, dtype=x.dtype, device=x.device)[:, None] + flow[:, 1] * (h / 2)).clamp(0, h - 1)
    left, top = column.detach().floor().long(), row.detach().floor().long()
    right, bottom = (left + 1).clamp(max=w - 1), (top + 1).clamp(max=h - 1)
    across, down = (column - left)[:, None], (row - top)[:, None]

    def at(i: Tensor, j: Tensor) -> Tensor:
        return x.flatten(2).gather(2, (i * w + j).flatten(1)[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)

    above = at(top, left) + across * (at(top, right) - at(top, left))
    below = at(bottom, left) + across * (at(bottom, right) - at(bottom, left))
    return (above + down * (below - above)).clamp(0, 1)
