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

import math
import warnings
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.ascent import Worst, ascent, check_budget, first_step, measured, standing
from rdc.attack.losses import LOSSES, check_loss, margin
from rdc.attack.norms import round_down
from rdc.autograd import value_and_gradient
from rdc.data import check_images, check_labels
from rdc.rng import generator

RATE, SMOOTHNESS = 0.01, 0.05  # of the released configuration
COHERENCE, START = 0.1, 0.2  # of the default: c, and the size of the random start as a fraction of the bound


def stadv(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "flow",
    eps: float = 0.05,
    steps: int = 100,
    loss: str = "margin",
    eot: int = 1,
    smoothness: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Images warped by a flow within the bound: ``warp(x, flow_field(...))`` with the same options, which see."""
    return warp(x, flow_field(model, x, y, norm, eps, steps, loss, eot, smoothness, restarts, seed, index, quiet))


def flow_field(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "flow",
    eps: float = 0.05,
    steps: int = 100,
    loss: str = "margin",
    eot: int = 1,
    smoothness: float = 0.0,
    restarts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    quiet: bool = True,
) -> Float[Tensor, "n 2 h w"]:
    """Adversarial flow fields; that of an image misclassified as it is, is zero.

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
        seed: Owner of the random starts.
        index: Identity of each image, by default its position; its random numbers depend on nothing else.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad images, labels or options, and on what a model must not return.
    """
    check_images(x)
    check_labels(y, len(x))
    check_flow_options(norm, eps, steps, loss, eot, smoothness, restarts)
    loss = loss if loss == "released" else check_loss(loss, 1.0, 0)
    index = torch.arange(len(x)) if index is None else index
    broken, _ = standing(model, x, y, "margin" if loss == "released" else loss, eot)
    worst = Worst(x.new_zeros(len(x), 2, *x.shape[2:]), broken, x.new_full((len(x),), -torch.inf))
    bound = round_down(eps, x.dtype)
    with tqdm(total=restarts * steps, disable=quiet, desc=f"stadv {eps:.4g}", unit="step") as bar:
        for restart in range(restarts):
            todo = worst.todo
            if not len(todo):
                break
            images, labels = x[todo], y[todo]
            if loss == "released":
                worst.point[todo] = released(model, images, labels, bound, steps, eot, bar)
                break
            start = random_flow(images, bound, index[todo.cpu()], seed, restart)
            worst.offer(*climb(model, start, images, labels, bound, steps, loss, eot, smoothness, bar), todo)
    return worst.point


def check_flow_options(norm: str, eps: float, steps: int, loss: str, eot: int, smoothness: float, restarts: int) -> None:
    """Refuse what makes no sense; warn of a bound that is wider than a quarter of the image."""
    if norm != "flow":
        raise ValueError(f"unknown norm {norm!r}; stadv bounds the flow (norm='flow'), in units where the image spans [-1, 1]")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must not be negative, got {eps}")
    if not 0 <= smoothness < math.inf:
        raise ValueError(f"smoothness must not be negative, got {smoothness}")
    check_budget(steps, restarts, eot)
    if loss == "released" and (restarts != 1 or smoothness != 0):
        raise ValueError("the released attack has one start, the identity, and a smoothness of its own")
    if eps > 0.5:
        warnings.warn(f"a flow of {eps:g} moves pixels by {eps / 2:.0%} of the image; eps is no number of pixels", stacklevel=4)


def random_flow(x: Float[Tensor, "n c h w"], bound: float, index: Tensor, *key: int) -> Float[Tensor, "n 2 h w"]:
    """Uniform flows, small against the bound; that of image ``i`` is a function of ``(*key, index[i])``."""
    noise = [2 * torch.rand((2, *x.shape[2:]), generator=generator("flow", *key, int(i))) - 1 for i in index]
    return (START * bound * torch.stack(noise).to(x)).clamp(-bound, bound)


def climb(
    model: nn.Module,
    start: Tensor,
    x: Tensor,
    y: Tensor,
    bound: float,
    steps: int,
    loss: str,
    eot: int,
    smoothness: float,
    bar: tqdm,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sign ascent of one run: the worst flow of each image, its verdict and its objective."""
    first = first_step(bound, steps)

    def score(logits: Tensor, flow: Tensor) -> Tensor:
        value = LOSSES[loss](logits, y)
        return value - smoothness * variation(flow) if smoothness else value

    def step(flow: Tensor, gradient: Tensor, size: float) -> Tensor:
        scale = gradient.abs().flatten(1).mean(dim=1).reshape(-1, 1, 1, 1)
        relative = gradient / torch.where(scale > 0, scale, torch.ones_like(scale))
        rough = value_and_gradient(variation, flow)[1]
        weight = COHERENCE * max(2 * size - first, 0) / first if first else 0.0
        return (flow + size * (relative - weight * rough).sign()).clamp(-bound, bound)

    return ascent(partial(measured, model, partial(warp, x), score, y, eot), step, start, steps, first, bar)


def released(model: nn.Module, x: Tensor, y: Tensor, bound: float, steps: int, eot: int, bar: tqdm) -> Tensor:
    """The released recipe: margin and smoothness in one sum, Adam from the identity, the last iterate."""
    flow = x.new_zeros(len(x), 2, *x.shape[2:])
    adam = torch.optim.Adam([flow], lr=RATE)

    def score(logits: Tensor, u: Tensor) -> Tensor:
        return margin(logits, y) - SMOOTHNESS * variation(u)

    for _ in range(steps):
        gradient = measured(model, partial(warp, x), score, y, eot, flow)[2]
        assert gradient is not None  # it was asked for
        flow.grad = -gradient
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
