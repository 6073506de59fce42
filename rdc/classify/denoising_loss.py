r"""The engine: every denoising loss of the package, over (image, class, level, draw), with the flat-memory gradient.

An item (image n, class k, level t, draw r) has the loss

.. math:: \ell_{nktr} = w_t \left( \lVert g \rVert^2 - 2\, g \cdot b \right), \qquad
    g = D(a_n + W_{tr}, \sigma_t, k) - c_{nk},

with weights w, a start a, a centre c, noise W that is added to the start and a shift b of the centre. What is called a classifier
is a choice of these:

| diffusion classifier  :math:`a = c = z`, :math:`W = \sigma_t \epsilon`, no shift (:class:`rdc.classify.DiffusionClassifier`)
| EPNDC                 :math:`a = c = z_\tau`, W and b of a Brownian bridge (:class:`rdc.certify.noised.EPNDC`)
| APNDC                 a and c from the denoised image (:class:`rdc.certify.noised.APNDC`)
| diffusion loss        :math:`a = c = z`, no class (:func:`rdc.classify.diffusion_loss.diffusion_loss`)

**Gradient.** It takes two passes: the first, without a graph, gives the losses, hence the gradient of whatever is made of them
with respect to each loss; the second runs the network again, on the same noise, for the (image, class) pairs whose gradient is
not zero. Both go through the evaluations in chunks, so that memory is that of one chunk, whatever the number of levels.

If one chunk holds everything its graph is kept and the second forward pass is skipped: for a network that answers for all classes
in one pass the graph of that pass, otherwise one graph for each pair, so that only those that are needed are run backward.

Sums over draws are in float64. Losses leave in float64.
"""

__all__ = ["Losses", "Samples", "chunk_size", "denoising_error", "denoising_gradient", "denoising_losses"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from rdc.denoise.base import Denoiser
from rdc.door import unchecked

BYTES_A_PIXEL = 2000  # of activations with their graph, for one pixel of one evaluation: a guess on the safe side
SMALLEST_GRAPH = 8  # rows of the graph of one pair, below which separate graphs are slower than a second pass


def denoising_error(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, ""] | Float[Tensor, " n"],
    eps: Float[Tensor, "*n c h w"],
    label: Int64[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """Return ``|z - D(z + sigma eps, sigma, y)|^2``, summed over pixels; differentiable as often as the denoiser is.

    Arguments:
        denoiser: Any :class:`rdc.denoise.Denoiser`.
        z: Images, model units.
        sigma: Noise level, model units: one, or one for each image.
        eps: Standard normal noise: one image of it, or one for each image.
        label: Class of each image; None for the unconditional denoiser.
    """
    sigma = sigma.expand(len(z))
    return (z - denoiser(z + sigma[:, None, None, None] * eps, sigma, label)).square().flatten(1).sum(dim=1)


def chunk_size(z: Tensor, given: int | None = None) -> int:
    """Evaluations at a time: as given, or as many as the free memory of the device of ``z`` holds.

    On a GPU half of what is free, at most 8 192; on the CPU 32, and fewer of large images.
    """
    if given is not None:
        return given
    each = BYTES_A_PIXEL * z[0].numel()
    if z.device.type == "cuda":
        return max(1, min(8192, torch.cuda.mem_get_info(z.device)[0] // 2 // each))
    return max(1, min(32, 2**31 // each))


@dataclass(frozen=True, eq=False)
class Samples:
    """The noise of a batch, in model units, where the data are.

    Attributes:
        added: W, the noise added to the starts, ``(G, R', T, C, H, W)``: R' independent draws of T levels.
        shift: b, the shift of the centres, of the same shape; None for none.
        signs: 2 if each draw comes with its mirror image, else 1.
        per_image: Whether the groups G belong to images; otherwise all images share one.
        per_class: Whether there is one for every class, class by class within an image.
    """

    added: Tensor
    shift: Tensor | None = None
    signs: int = 1
    per_image: bool = False
    per_class: bool = False

    @property
    def draws(self) -> int:
        """Draws R, mirror images included."""
        return self.added.shape[1] * self.signs

    def group(self, image: Tensor, label: Tensor | None, classes: int) -> Tensor:
        """The group of each evaluation."""
        row = image if self.per_image else torch.zeros_like(image)
        return row * classes + label if self.per_class and label is not None else row


@dataclass(frozen=True, eq=False)
class Losses:
    """A batch, ready to be evaluated: :func:`denoising_losses` of all items, :meth:`some` of some.

    Attributes:
        denoiser: Any denoiser.
        sigma: Noise levels, ``(T,)``, on the device and in the dtype of the start.
        weight: Weights w, ``(T,)``, float64, on the same device.
        samples: The noise.
        start: a, ``(N, C, H, W)``, model units.
        centre: c, ``(N, 1, C, H, W)``, or ``(N, K, C, H, W)`` if each class has its own.
        labelled: Whether the classes are asked for; otherwise there is one column, the unconditional answer.
        chunk: Evaluations at a time; None lets the device decide.
    """

    denoiser: Denoiser
    sigma: Tensor
    weight: Tensor
    samples: Samples
    start: Tensor
    centre: Tensor
    labelled: bool = True
    chunk: int | None = None

    @property
    def columns(self) -> int:
        """Classes K, or 1 without a label."""
        return self.denoiser.num_classes if self.labelled else 1

    @property
    def one_pass(self) -> bool:
        """Whether an evaluation serves all columns."""
        return not self.labelled or (self.denoiser.one_pass and not self.samples.per_class)

    @property
    def width(self) -> int:
        """Evaluations at a time: as given, or what suits the device, and twice as many where one serves all of few classes."""
        size = chunk_size(self.start, self.chunk)
        if self.one_pass and self.chunk is None:
            size = 2 * size // max(1, self.columns // 16)  # K images leave the network at once
        return max(1, size)

    def some(
        self, image: Int64[Tensor, " m"], label: Int64[Tensor, " m"] | None, level: Int64[Tensor, " m"], whole: bool = False
    ) -> Float64[Tensor, "m k"]:
        r"""Return the losses of M items, averaged over draws: ``(M, 1)``, or of all columns if ``label`` is None; no gradient.

        With ``whole`` :math:`w_t \lVert b \rVert^2` is added, so that no loss is negative.
        """
        m = len(image)
        total = torch.zeros(m, self.columns if label is None else 1, dtype=torch.float64, device=self.start.device)
        flat = torch.arange(m * self.samples.draws, device=self.start.device)
        with torch.no_grad():
            for part in flat.split(self.width):
                item = part % m
                at = image[item], None if label is None else label[item], level[item], part // m
                total.index_add_(0, item, self.errors(self.start[at[0]], self.centres(at[0], at[1]), *at, whole).double())
        return total * (self.weight[level] / self.samples.draws)[:, None]

    def centres(self, image: Tensor, label: Tensor | None) -> Tensor:
        """The centres of some evaluations, ``(M, 1 or K, C, H, W)``."""
        if label is None or self.centre.shape[1] == 1:
            return self.centre[image]
        return self.centre[image, label][:, None]

    def errors(
        self, start: Tensor, centre: Tensor, image: Tensor, label: Tensor | None, level: Tensor, draw: Tensor, whole: bool = False
    ) -> Tensor:
        """Losses of some evaluations, ``(M, 1)``, or of all columns, ``(M, K)``, from their starts and centres."""
        s = self.samples
        place = s.group(image, label, self.columns), draw // s.signs, level
        added, shift = s.added[place], None if s.shift is None else s.shift[place]
        if s.signs == 2:
            sign = (1 - 2 * (draw % 2)).to(added.dtype)[:, None, None, None]
            added, shift = sign * added, None if shift is None else sign * shift
        noisy, sigma = start + added, self.sigma[level]
        if not self.labelled:
            estimate = self.denoiser(noisy, sigma, None)[:, None]
        elif label is None:
            estimate = self.denoiser.all_classes(noisy, sigma)
        else:
            estimate = self.denoiser(noisy, sigma, label)[:, None]
        gap = estimate - centre
        if shift is None:
            return gap.square().flatten(2).sum(dim=2)
        error = (gap * (gap - 2 * shift[:, None])).flatten(2).sum(dim=2)
        return error + shift.square().flatten(1).sum(dim=1, keepdim=True) if whole else error

    def plan(self, image: Tensor, label: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """Chunks ``(image, label, level, draw)`` of all evaluations of some pairs; the level is the slowest index."""
        m, r = len(image), self.samples.draws
        total, width = m * len(self.sigma) * r, self.width
        for first in range(0, total, width):
            flat = torch.arange(first, min(first + width, total), device=image.device)
            row, turn = flat % m, flat // m
            yield image[row], None if label is None else label[row], turn // r, turn % r

    def pairs(self) -> tuple[Tensor, Tensor | None]:
        """All (image, class) pairs; the class is None where one pass serves all."""
        image = torch.arange(len(self.start), device=self.start.device)
        if self.one_pass:
            return image, None
        label = torch.arange(self.columns, device=image.device)
        return image.repeat_interleave(self.columns), label.repeat(len(image))

    def cells(self, image: Tensor, label: Tensor | None, level: Tensor) -> Tensor:
        """Places in the flat table ``(N, K, T)`` of some evaluations, ``(M, 1 or K)``."""
        column = torch.arange(self.columns, device=image.device)[None] if label is None else label[:, None]
        return (image[:, None] * self.columns + column) * len(self.sigma) + level[:, None]


def denoising_losses(losses: Losses) -> Float64[Tensor, "n k t"]:
    """Return the losses of all items, averaged over draws, ``(N, K, T)``; differentiable once in start and centre."""
    return _Table.apply(losses.start, losses.centre, losses, torch.is_grad_enabled())  # type: ignore[no-untyped-call]


def denoising_gradient(losses: Losses, label: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n c h w"]:
    """Return the gradient with respect to z, where start and centre are z, of one class of each image, summed over levels.

    No other class is evaluated. Without a label it is that of all columns.
    """
    total = torch.zeros_like(losses.start, dtype=torch.float64)
    factors = losses.weight / losses.samples.draws
    for g in _graphs(losses, torch.arange(len(total), device=total.device), label):
        factor = factors[g.level].to(g.error.dtype)[:, None].expand_as(g.error)
        for slope in torch.autograd.grad(g.error, (g.start, g.centre), factor):
            total.index_add_(0, g.image, slope.reshape(g.start.shape).double())
    return total.to(losses.start.dtype)


@dataclass(frozen=True, eq=False)
class _Graph:
    """Evaluations with their graph: errors as a function of starts and centres, and which they are."""

    error: Tensor
    start: Tensor
    centre: Tensor
    image: Tensor
    label: Tensor | None
    level: Tensor


class _Table(torch.autograd.Function):
    """The table and its two-pass gradient."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, centre: Tensor, losses: Losses, differentiable: bool) -> Tensor:
        ctx.losses, ctx.kept = losses, None
        image, label = losses.pairs()
        total = torch.zeros(len(start) * losses.columns * len(losses.sigma), dtype=torch.float64, device=start.device)
        if differentiable and any(ctx.needs_input_grad[:2]) and _fits(losses):
            ctx.kept = list(_graphs(losses, image, label, apart=not losses.one_pass))
            for g in ctx.kept:
                total.index_add_(0, losses.cells(g.image, g.label, g.level).flatten(), g.error.detach().double().flatten())
        else:
            for i, k, t, r in losses.plan(image, label):
                error = losses.errors(start[i], losses.centres(i, k), i, k, t, r)
                total.index_add_(0, losses.cells(i, k, t).flatten(), error.double().flatten())
        table = total.reshape(len(start), losses.columns, len(losses.sigma))
        return table * (losses.weight / losses.samples.draws)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        losses: Losses = ctx.losses
        a, c = torch.zeros_like(losses.start, dtype=torch.float64), torch.zeros_like(losses.centre, dtype=torch.float64)
        factors = (grad * (losses.weight / losses.samples.draws)).flatten()
        for g in _wanted(losses, (grad != 0).any(dim=2), ctx.kept):
            factor = factors[losses.cells(g.image, g.label, g.level)].to(g.error.dtype)
            to_start, to_centre = torch.autograd.grad(g.error, (g.start, g.centre), factor)
            a.index_add_(0, g.image, to_start.double())
            if g.label is None or c.shape[1] == 1:
                c.index_add_(0, g.image, to_centre.double())
            else:
                c.index_put_((g.image, g.label), to_centre[:, 0].double(), accumulate=True)
        ctx.kept = None
        return a.to(losses.start.dtype), c.to(losses.centre.dtype), None, None


def _fits(losses: Losses) -> bool:
    """Whether one chunk holds all evaluations, and graphs of pairs are not too small to be worth keeping apart."""
    rows = len(losses.sigma) * losses.samples.draws
    pairs = len(losses.start) * (1 if losses.one_pass else losses.columns)
    return pairs * rows <= losses.width and (losses.one_pass or rows >= SMALLEST_GRAPH)


def _graphs(losses: Losses, image: Tensor, label: Tensor | None, apart: bool = False) -> Iterator[_Graph]:
    """Evaluations of some pairs with their graphs, in chunks, or ``apart``, pair by pair."""
    size = 1 if apart else len(image)
    labels = [None] * len(image) if label is None else label.split(size)
    for some, classes in zip(image.split(size), labels, strict=False):
        for i, k, t, r in losses.plan(some, classes):
            with torch.enable_grad(), unchecked():  # the first pass has looked at the values
                start, centre = losses.start[i].requires_grad_(), losses.centres(i, k).requires_grad_()
                error = losses.errors(start, centre, i, k, t, r)
            yield _Graph(error, start, centre, i, k, t)


def _wanted(losses: Losses, pairs: Tensor, kept: list[_Graph] | None) -> Iterator[_Graph]:
    """The graphs of the pairs ``(N, K)`` that are marked: those that were kept, or new ones."""
    if losses.one_pass:
        pairs = pairs.any(dim=1)
        if kept is None:
            yield from _graphs(losses, pairs.nonzero()[:, 0], None)
        else:
            yield from kept
    elif kept is None:
        image, label = pairs.nonzero(as_tuple=True)
        yield from _graphs(losses, image, label)
    else:
        for graph, wanted in zip(kept, pairs.flatten().tolist(), strict=True):
            if wanted:
                yield graph
