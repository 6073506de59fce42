r"""The network evaluations of a noised classifier: noise with an owner, chunks, one item or all of them.

An item (image n, class y, level t) has the loss

.. math:: w_t\, \mathbb E \big[ \lVert g \rVert^2 - 2\, g \cdot b_t \big], \qquad g = D(a_n + W_t, s_t, y) - c_n,

with a start a, a target c + b and noise :math:`(W_t, b_t)`. The part :math:`w_t \lVert b_t \rVert^2`, the same for all classes,
is left out.
"""

__all__ = ["Engine", "Job", "check_noisy"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from rdc.certify.bridge import Steps, walk
from rdc.denoise.base import Denoiser, to_model
from rdc.rng import randn


@dataclass(frozen=True, eq=False)
class Job:
    """A batch, ready to be evaluated.

    Attributes:
        engine: Denoiser, levels and noise.
        table: Samples of the noise ``(G, 2, R, T, C, H, W)``: what is added to the start and to the target.
        start: Images that the noise is added to, ``(N, C, H, W)``, model units.
        center: Targets, ``(N, 1, C, H, W)``, or ``(N, K, C, H, W)`` if each class has its own.
    """

    engine: "Engine"
    table: Tensor
    start: Tensor
    center: Tensor

    def losses(
        self,
        image: Int64[Tensor, " m"],
        label: Int64[Tensor, " m"] | None,
        level: Int64[Tensor, " m"],
        whole: bool = False,
    ) -> Float64[Tensor, "m k"]:
        """Losses of M items, averaged over draws: ``(M, 1)``, or of all classes, ``(M, K)``, if ``label`` is None.

        With ``whole`` nothing is left out, so that no loss is negative.
        """
        e = self.engine
        columns = e.denoiser.num_classes if label is None else 1
        total = torch.zeros(len(image), columns, dtype=torch.float64, device=self.start.device)
        for flat in torch.arange(len(image) * e.draws, device=image.device).split(e.width(label)):
            item, draw = flat % len(image), flat // len(image)
            found = self._errors(image[item], None if label is None else label[item], level[item], draw, whole)
            total = total.index_add(0, item, found.double())
        return total * (e.steps.levels.weight.to(total.device)[level] / e.draws)[:, None]

    def _errors(self, image: Tensor, label: Tensor | None, level: Tensor, draw: Tensor, whole: bool) -> Tensor:
        e = self.engine
        sign = (1 - 2 * (draw % e.signs))[:, None, None, None, None]
        added, shift = (sign * self.table[e.group(image, label), :, draw // e.signs, level]).unbind(1)
        sigma, noisy = e.steps.levels.sigma.to(self.start)[level], self.start[image] + added
        if label is None:
            gap = e.denoiser.all_classes(noisy, sigma) - self.center[image]
        else:
            column = label if self.center.shape[1] > 1 else torch.zeros_like(label)
            gap = (e.denoiser(noisy, sigma, label) - self.center[image, column])[:, None]
        error = (gap * (gap - 2 * shift[:, None])).flatten(2).sum(dim=2)
        return error + shift.square().flatten(1).sum(dim=1, keepdim=True) if whole else error

    def everything(self) -> Float64[Tensor, "n k t"]:
        """The losses of all items, ``(N, K, T)``."""
        n, k, t = len(self.start), self.engine.denoiser.num_classes, len(self.engine.steps)
        each = 1 if self.engine.one_pass else k
        flat = torch.arange(n * each * t, device=self.start.device)  # the level is the slowest index
        label = None if self.engine.one_pass else flat % k
        found = self.losses(flat // each % n, label, flat // (each * n))
        return found.reshape(t, n, k).permute(1, 2, 0)


class Engine:
    """Denoiser, steps and noise of a classifier; :class:`rdc.certify.noised.EPNDC` says what the arguments mean."""

    def __init__(
        self, denoiser: Denoiser, steps: Steps, coupling: str, draws: int, antithetic: bool, noise: str, seed: int, chunk: int
    ) -> None:
        if noise not in ("fixed", "fresh"):
            raise ValueError(f"unknown noise {noise!r}; there are fixed, fresh")
        if draws < 1 or chunk < 1:
            raise ValueError(f"draws and chunk must be positive, got {draws}, {chunk}")
        self.denoiser, self.steps, self.coupling, self.chunk = denoiser, steps, coupling, chunk
        self.samples, self.signs, self.seed, self.seen = draws, 1 + antithetic, seed, 0
        self.fixed = self._table([(0,)]) if noise == "fixed" else None

    @property
    def one_pass(self) -> bool:
        """Whether an evaluation serves all classes."""
        return self.denoiser.one_pass and self.coupling != "per_class"

    @property
    def draws(self) -> int:
        """Evaluations of one item."""
        return self.samples * self.signs

    @property
    def evaluations(self) -> int:
        """Evaluations of all items of an image."""
        return len(self.steps) * self.draws * (1 if self.one_pass else self.denoiser.num_classes)

    def width(self, label: Tensor | None) -> int:
        """Evaluations at a time."""
        return self.chunk if label is not None else max(1, self.chunk // self.denoiser.num_classes)

    def rows(self, x: Tensor, index: Tensor | None) -> list[int]:
        """The numbers from which the noise of each image follows; all the same where it is fixed."""
        check_noisy(x, self.denoiser.shape, index)
        if self.fixed is not None:
            return [0] * len(x)
        if index is None:
            self.seen += len(x)
            return list(range(self.seen - len(x), self.seen))
        return index.tolist()

    def job(self, rows: list[int], start: Tensor, center: Tensor) -> Job:
        """A batch around given images."""
        table = self._table([("row", row) for row in rows]) if self.fixed is None else self.fixed
        return Job(self, table.to(start), start, center)

    def losses(self, x: Tensor, index: Tensor | None, around: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """The losses of all items, ``(N, K, T)`` in float64; ``around`` gives start and center of noisy images in model units."""
        rows, size = self.rows(x, index), max(1, self.chunk // self.denoiser.num_classes)
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            parts = [slice(i, i + size) for i in range(0, len(x), size)]
            return torch.cat([self.job(rows[part], *around(to_model(x[part]))).everything() for part in parts])

    def group(self, image: Tensor, label: Tensor | None) -> Tensor:
        """Which samples an image and a class take: the first index of the table."""
        row = torch.zeros_like(image) if self.fixed is not None else image
        return row * self.denoiser.num_classes + label if self.coupling == "per_class" else row

    def _table(self, owners: list[tuple]) -> Tensor:
        labels = range(self.denoiser.num_classes) if self.coupling == "per_class" else [0]
        return torch.stack([self._samples(owner, label) for owner in owners for label in labels])

    def _samples(self, owner: tuple, label: int) -> Tensor:
        def sample(r: int) -> Tensor:
            return walk(self.steps, self.coupling, lambda t: randn(self.denoiser.shape, self.seed, *owner, t, r, label))

        return torch.stack([sample(r) for r in range(self.samples)], dim=1)


def check_noisy(x: Tensor, shape: tuple[int, ...], index: Tensor | None = None) -> None:
    """Refuse what is not a non-empty finite float batch ``(N, C, H, W)`` of the given shape, or an index that does not fit.

    Raises:
        ValueError: with one line that says what was wrong.
    """
    if not torch.is_tensor(x) or not x.is_floating_point() or x.ndim != 4 or len(x) == 0:
        got = f"{x.dtype} {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"noisy images must be a non-empty float batch (N, C, H, W), got {got}")
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"images have shape {tuple(x.shape[1:])}, the model takes {tuple(shape)}")
    if not bool(x.detach().isfinite().all()):
        bad = int((~x.detach().isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(f"noisy images must be finite; {bad} of {len(x)} are not")
    if index is not None and (tuple(index.shape) != (len(x),) or index.dtype != torch.int64):
        raise ValueError(f"index needs one int64 number for each of {len(x)} images, got {index.dtype} {tuple(index.shape)}")
