"""AutoAttack, as published by its authors (package ``pyautoattack``), behind an adapter that contains its side effects.

The package reseeds the global random state, ends with ``sys.settrace(None)``, needs contiguous images, takes nine target
classes whatever the model has, exceeds its bound by rounding, and cannot resume. The adapter runs it on one batch after the
other inside a forked random state, restores the trace function, leaves its resume file alone and shrinks what it returns to
the exact bound. It decides on one call of the model; for a randomised model judge the returned images again
(:func:`rdc.evaluate.robust_accuracy`).

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690
"""

__all__ = ["autoattack"]

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.losses import check_classes
from rdc.attack.norms import check_eps, project
from rdc.data import check_images, check_labels
from rdc.door import logits_of

VERSIONS = ("standard", "rand", "custom")
ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def autoattack(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float = 8 / 255,
    version: str = "standard",
    attacks: Sequence[str] | None = None,
    steps: int = 100,
    queries: int = 5000,
    eot: int | None = None,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    batch: int = 1,
    quiet: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Adversarial images within the ball; images that no attack breaks come back unchanged.

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
        seed: Owner of the random numbers.
        index: Identity of each image, by default its position; with ``batch=1`` its random numbers depend on nothing else.
        batch: Images attacked together. More is faster for a small network, and changes the random numbers only.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: on bad options, on a model with too few classes for one of the attacks, and on what
            :func:`rdc.door.logits_of` refuses, at the first call and at every later one.
    """
    check_images(x)
    check_labels(y, len(x))
    check_eps(norm, eps, ("Linf", "L2", "L1"))
    if version not in VERSIONS or (version == "custom") != (attacks is not None):
        raise ValueError(
            f"version must be one of {', '.join(VERSIONS)}, with attacks exactly for custom; got {version!r}, {attacks}"
        )
    if not set(attacks or ()) <= set(ATTACKS):
        raise ValueError(f"attacks must be of {', '.join(ATTACKS)}; got {', '.join(attacks or ())}")
    index = torch.arange(len(x)) if index is None else index
    classes, checked = count_classes(model, x, y), Checked(model)
    found = []
    parts = zip(x.split(batch), y.split(batch), index.split(batch), strict=True)
    for images, labels, ids in tqdm(list(parts), disable=quiet, desc=f"autoattack {norm} {eps:.4g}", unit="batch"):
        with contained():
            tool = prepare(checked, images, norm, eps, version, attacks, seed + 1_000_003 * int(ids[0]))
            configure(tool, classes, steps, queries, eot)
            adversarial, _ = tool.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
        found.append(project(adversarial.detach(), images, norm, eps))
    return torch.cat(found)


class Checked(nn.Module):
    """A model whose every answer is checked by :func:`rdc.door.logits_of`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return logits_of(self.model, x)


def count_classes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Number of logits, from one call that warns of probabilities and refuses labels that are too large."""
    with torch.random.fork_rng(), torch.no_grad():
        return logits_of(model, x[:1], y.amax().reshape(1)).shape[1]


def prepare(model: nn.Module, x: Tensor, norm: str, eps: float, version: str, attacks: Sequence[str] | None, seed: int) -> object:
    """An ``AutoAttack`` for one batch, with a seed of its own."""
    from pyautoattack import AutoAttack

    chosen = None if attacks is None else list(attacks)
    return AutoAttack(model, norm=norm, eps=eps, seed=seed % 2**31, version=version, attacks=chosen, device=x.device)


def configure(tool: object, num_classes: int, steps: int, queries: int, eot: int | None) -> None:
    """Budget of the attacks, and as many target classes as the model has."""
    for attack in tool.attacks_to_run:
        if attack in ("apgd-t", "apgd-dlr"):
            check_classes("dlr", int(attack == "apgd-t"), num_classes)
    tool.apgd.n_iter = tool.apgd_targeted.n_iter = tool.fab.n_iter = steps
    tool.square.n_queries = queries
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
