"""AutoAttack, as published by its authors (package ``pyautoattack``), behind an adapter that contains its side effects.

The package reseeds the global random state, ends with ``sys.settrace(None)``, needs contiguous images, takes nine target
classes whatever the model has, exceeds its bound by rounding, and cannot resume. The adapter runs it on one batch after the
other inside a forked random state, restores the trace function, leaves its resume file alone and shrinks what it returns to
the exact bound. It decides on one call of the model; for a randomised model judge the returned images again
(:func:`rdc.evaluate.robust_accuracy`).

In the package an image's random numbers depend on its company: a batch draws one tensor, and shrinks as its images are broken.
Here all images of a batch share each draw (:class:`SharedDraws`), the one that an image alone would get. So what becomes of an
image depends on neither its batch nor its place in it, and is what the package by itself makes of it alone, with the same seed.

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690
"""

__all__ = ["autoattack"]

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from rdc.attack.budget import Budget, budget
from rdc.attack.losses import check_classes
from rdc.attack.norms import project
from rdc.door import Door, check_images, check_labels, entry
from rdc.quantities import count
from rdc.rng import whole

VERSIONS = ("standard", "rand", "custom")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@entry
def autoattack(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float | str = 8 / 255,
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    steps: int = 100,
    queries: int = 5000,
    eot: int | None = None,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    batch: int = 64,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Return adversarial images within the ball; images that no attack breaks come back unchanged.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``, K >= 4 for the targeted attacks.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels.
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: Radius in image units.
        version: ``standard`` (APGD-CE, APGD-T, FAB-T, Square), ``rand`` (APGD-CE and APGD-DLR with EOT 20) or ``custom``.
        attacks: For ``custom``: of ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``, ``fab-t``, ``square``.
        steps: Iterations of APGD and FAB.
        queries: Queries of Square.
        eot: Calls averaged in APGD; by default 20 for ``rand`` and 1 otherwise.
        seed: Seed of the random numbers.
        index: Taken as by the other attacks, and not needed: all images get the same random numbers.
        batch: Images attacked together; it decides nothing beyond rounding. Of a model that draws random numbers take 1.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad options, on a model with too few classes for one of the attacks, and on what :class:`rdc.door.Door`
            raises, at the first call and at every later one.
    """
    check_images(x)
    check_labels(y, len(x))
    effort = budget(norm, eps, norms=("Linf", "L2", "L1"), steps=steps, queries=queries, eot=1 if eot is None else eot)
    size, seed = count(batch, "batch"), whole(seed)
    if version not in VERSIONS or (version == "custom") != (attacks is not None):
        raise ValueError(
            f"version must be one of {', '.join(VERSIONS)}, with attacks exactly for custom; got {version!r}, {attacks}"
        )
    if not set(attacks or ()) <= set(ATTACKS):
        raise ValueError(f"attacks must be of {', '.join(ATTACKS)}; got {', '.join(attacks or ())}")
    found = []
    with Door(model) as door:
        with torch.random.fork_rng():
            classes = door.ask(x[:1], y.amax().reshape(1)).shape[1]
        parts = list(zip(x.split(size), y.split(size), strict=True))
        for images, labels in tqdm(parts, disable=quiet, desc=f"autoattack {norm} {effort.eps:.4g}", unit="batch"):
            draws = SharedDraws(door)
            tool = prepare(Asked(draws), images, norm, effort.eps, version, attacks, seed)
            configure(tool, classes, effort, None if eot is None else effort.eot)
            with contained(), draws:
                adversarial, _ = tool.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
            found.append(project(adversarial.detach(), images, norm, effort.eps))
    return torch.cat(found)


class SharedDraws(TorchFunctionMode):
    """Within it all images of a batch share each random draw, and every draw is made on the CPU in float32.

    Images have four dimensions, and so has a draw of numbers for each image: only those of the first image are drawn, as if it
    were alone. The model's own draws, if it makes any, are left as they are.

    Arguments:
        door: The attacked model.
    """

    def __init__(self, door: Door) -> None:
        super().__init__()
        self.door, self.asking = door, False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.asking or func not in (torch.rand, torch.randn, torch.randn_like):
            return func(*args, **(kwargs or {}))
        like = args[0] if func is torch.randn_like else None
        shape = tuple(args[0] if like is None else like.shape)
        one = (1, *shape[1:]) if len(shape) == 4 else shape
        draw = torch.rand if func is torch.rand else torch.randn
        drawn = draw(one, dtype=torch.float32, device="cpu").expand(shape).clone()
        return drawn if like is None else drawn.to(like)

    def logits(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of the model, which draws by itself."""
        self.asking = True
        try:
            return self.door(x)
        finally:
            self.asking = False


class Asked(nn.Module):
    """The attacked model as the package wants it; the door is no part of its state."""

    def __init__(self, draws: SharedDraws) -> None:
        super().__init__()
        self.draws = draws

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits."""
        return self.draws.logits(x)


def prepare(model: nn.Module, x: Tensor, norm: str, eps: float, version: str, attacks: Sequence[str] | None, seed: int) -> Any:
    """Return an ``AutoAttack``."""
    from pyautoattack import AutoAttack

    chosen = None if attacks is None else list(attacks)
    return AutoAttack(model, norm=norm, eps=eps, seed=seed % 2**31, version=version, attacks=chosen, device=x.device)


def configure(tool: Any, num_classes: int, effort: Budget, eot: int | None) -> None:
    """Set the budget of the attacks, and as many target classes as the model has."""
    for attack in tool.attacks_to_run:
        if attack in ("apgd-t", "apgd-dlr"):
            check_classes("dlr", int(attack == "apgd-t"), num_classes)
    tool.apgd.n_iter = tool.apgd_targeted.n_iter = tool.fab.n_iter = effort.steps
    tool.apgd.n_iter_orig = tool.apgd_targeted.n_iter_orig = effort.steps  # what L1 divides among its radii
    tool.square.n_queries = effort.queries
    tool.apgd_targeted.n_target_classes = min(tool.apgd_targeted.n_target_classes, num_classes - 1)
    tool.fab.n_target_classes = min(tool.fab.n_target_classes, num_classes - 1)
    if eot is not None:
        tool.apgd.eot_iter = tool.apgd_targeted.eot_iter = eot


@contextmanager
def contained() -> Iterator[None]:
    """Keep global random state, trace function and warnings as they were; advice of the package is not printed."""
    trace, logger = sys.gettrace(), logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        sys.settrace(trace)
