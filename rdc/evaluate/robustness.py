r"""Accuracy and robust accuracy with their counts and 95 % intervals; image by image, so that a run can be resumed.

A randomised model has no single verdict about an image. With :math:`w` wrong ones of :math:`k` fresh draws, four protocols say
when an image counts as right:

| ``once``      one verdict after the attack is right (what most published evaluations do)
| ``draws``     fewer than half of the fresh verdicts are wrong, :math:`2 w < k`
| ``resubmit``  the worst of k resubmissions: none of them is wrong, :math:`w = 0`
| ``known``     the attacker knows the noise: the attack runs on the frozen model, and the same frozen model judges

For a deterministic model they coincide. Under every protocol a clean image that is wrong counts as broken.

An image is attacked alone, with ``index=[i]`` and ``seed + attempt``, and all random draws of the model meanwhile follow from
seed and ``i`` (:func:`rdc.randomness.owned_randomness`): its row does not depend on batch, workers, order or resume point.

References:
    | Towards Better Adversarial Purification via Adversarial Denoising Diffusion Training (Liu et al., 2024)
    | https://arxiv.org/abs/2404.14309 (the attacker who knows the noise); see also https://arxiv.org/abs/2505.22839
"""

__all__ = ["PROTOCOLS", "Accuracy", "accuracy", "attack_table", "predict", "protocols", "read_rows", "robust_accuracy"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.data import check_images, check_labels
from rdc.evaluate.attack_spec import Attack, Given, listed
from rdc.evaluate.protocols import PROTOCOLS, Judge, Row, Verdict, together
from rdc.randomness import randomness
from rdc.runs.rowfile import fill
from rdc.runs.rowfile import read_rows as read_rows
from rdc.runs.statistics import Accuracy as Accuracy

DRAWS = 20  # fresh verdicts about an image of a randomised model


def predict(model: nn.Module, x: Float[Tensor, "n c h w"], batch: int = 64, quiet: bool = True) -> Int64[Tensor, " n"]:
    """Predicted classes, ``batch`` images at a time."""
    with torch.no_grad():
        parts = tqdm(x.split(batch), disable=quiet, desc="classify", unit="batch")
        return torch.cat([model(part).argmax(dim=1) for part in parts])


def accuracy(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    batch: int = 64,
    quiet: bool = True,
    *,
    rows: str | Path | None = None,
    **options: Any,
) -> Accuracy:
    """Accuracy on images ``x`` with labels ``y``.

    With ``rows`` (a file), or any ``options``, it is :func:`robust_accuracy` under no attack: one row per image, resumable, with
    its ``workers``, ``protocol``, ``draws``, ``seed``, ``index`` and ``config``. Otherwise each image is judged once, in batches.
    """
    if rows is not None or options:
        return robust_accuracy(model, x, y, {}, rows=rows, quiet=quiet, **options)
    check_images(x)
    check_labels(y, len(x))
    return Accuracy.of(int((predict(model, x, batch, quiet) == y).sum()), len(y))


def robust_accuracy(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    attack: Tensor | str | Attack | Sequence[Tensor | str | Attack] | Mapping[str, Tensor | str | Attack] | None = None,
    draws: int | None = None,
    batch: int = 64,
    *,
    rows: str | Path | None = None,
    workers: int = 1,
    protocol: str = "draws",
    attempts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    config: dict[str, Any] | None = None,
    quiet: bool = True,
    norm: str | None = None,
    eps: float | None = None,
    x_adv: Tensor | Sequence[Tensor] | None = None,
    **options: Any,
) -> Accuracy:
    """Accuracy under the strongest of several attacks: an image counts only if no attack broke it.

    Killed at any instant and called again with the same ``rows``, it continues, and ends with the same rows.

    Arguments:
        model: The attacked model, images in [0, 1] to logits ``(N, K)``.
        x: The clean images; a wrong clean prediction counts as broken.
        y: True labels.
        attack: What to try, one or several: adversarial images, ``pgd``, ``autoattack``, ``stadv`` or ``square``, or a callable
            ``attack(model, x, y, seed=..., index=...) -> x_adv`` such as ``functools.partial(pgd, eps=0.1)``. A dict names them.
        draws: Fresh verdicts about each image; by default 20 for a randomised model and 1 for a deterministic one, which is one
            whose first calls agree bit for bit. Give it for a model whose answer rarely changes.
        batch: Images at a time, where adversarial images are given and no file of rows; otherwise images are taken alone.
        rows: File of rows, one JSON line per image; None keeps them in memory.
        workers: Processes that share the images; model and attacks must then be picklable.
        protocol: Which of ``once``, ``draws``, ``resubmit`` and ``known`` is returned; the rows hold all of them.
        attempts: An attack is repeated with other seeds until most verdicts are wrong; the attempt with most wrong verdicts is
            kept, and judged again on other draws, so that the choice does not flatter it.
        seed: Owner of all random numbers.
        index: Identity of each image, by default its position.
        config: What else is to be in the header of the file, and to agree when it is continued.
        quiet: Whether to hide the progress bar.
        norm: For attacks given by name; by default theirs.
        eps: Radius in image units, for attacks given by name; by default theirs.
        x_adv: Another name for ``attack`` where it is images.
        options: Further options of attacks given by name.

    Raises:
        ValueError: for bad input, a file of another run, or a protocol that these attacks cannot answer.
        OSError: if the file cannot be written; the rows so far are intact.
        RuntimeError: if a worker died; the rows so far are kept.
    """
    from rdc.randomness import known_noise

    check_images(x)
    check_labels(y, len(x))
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if min(workers, attempts, batch, 1 if draws is None else draws) < 1:
        raise ValueError(f"workers, attempts, batch and draws must be positive, got {workers}, {attempts}, {batch}, {draws}")
    ids = torch.arange(len(x)) if index is None else index.cpu()
    if ids.shape != y.shape or len(ids.unique()) < len(ids):
        raise ValueError(f"index must hold {len(y)} different numbers, one per image")
    attack = x_adv if attack is None else attack
    if attack is None:
        raise ValueError("no attack; give adversarial images, a name, a callable, or a list of them")
    chosen = listed(attack, ids, {"norm": norm, "eps": eps, **options})
    batched = rows is None and workers == 1 and protocol != "known" and all(isinstance(a, Given) for a in chosen.values())
    random, counters = (False, ()) if batched and draws is not None else randomness(model, x[:1], seed, max(8, draws or 0))
    draws = (DRAWS if random else 1) if draws is None else draws
    if batched:
        return judge_images(model, x, y, [a.images for a in chosen.values() if isinstance(a, Given)], draws, batch, protocol)
    freezable = random and not randomness(known_noise(model, seed), x[:1], seed)[0]
    judge = Judge(model, x.detach().clone(), y.clone(), ids, chosen, draws, attempts, seed, random, freezable, counters)
    result = fill(judge, ids.tolist(), rows, {**judge.config(), **({"run": config} if config else {})}, workers, quiet)
    return count([row["right"] for row in result], protocol)


def judge_images(model: nn.Module, x: Tensor, y: Tensor, images: list[Tensor], draws: int, batch: int, protocol: str) -> Accuracy:
    """Verdicts on given images, in batches; a randomised model draws as it does by itself."""
    alive = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for candidate in [x, *images]:
        wrong = torch.stack([predict(model, candidate, batch) != y for _ in range(1 if protocol == "once" else draws)])
        alive &= ~wrong.any(dim=0) if protocol == "resubmit" else wrong.float().mean(dim=0) < 0.5
    return Accuracy.of(int(alive.sum()), len(y))


def count(right: list[dict[str, bool]], protocol: str) -> Accuracy:
    """Accuracy under one protocol."""
    if not right:
        raise ValueError("no rows yet")
    if not all(protocol in r for r in right):
        raise ValueError(
            "protocol 'known' needs attacks that can be run again, not given images, on a model whose noise can be fixed"
        )
    return Accuracy.of(sum(r[protocol] for r in right), len(right))


def protocols(rows: str | Path) -> dict[str, Accuracy]:
    """Robust accuracy under every protocol that was measured, of the rows so far."""
    right = [row["right"] for row in read_rows(rows)[1]]
    return {p: count(right, p) for p in PROTOCOLS if all(p in r for r in right)}


def attack_table(rows: str | Path, protocol: str = "draws") -> dict[str, Accuracy]:
    """Robust accuracy under each attack alone, and, as ``union``, under the strongest for each image, of the rows so far."""
    config, found = read_rows(rows)

    def right(row: Row, name: str) -> dict[str, bool]:
        fields = ("once", "wrong", "draws", "known")
        verdicts = [Verdict(*(v[f] for f in fields)).right() for v in (row["verdict"], row["attacks"][name])]
        return together(verdicts)

    table = {name: count([right(row, name) for row in found], protocol) for name in config["attacks"]}
    return {**table, "union": count([row["right"] for row in found], protocol)}
