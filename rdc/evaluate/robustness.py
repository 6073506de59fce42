r"""Accuracy and robust accuracy with their counts and 95 % intervals, in rows that can be resumed and extended.

A randomised model has no single verdict about an image. With :math:`w` wrong ones of :math:`k` fresh draws, four protocols say
when an image counts as right:

| ``once``      one verdict after the attack is right (what most published evaluations do)
| ``draws``     fewer than half of the fresh verdicts are wrong, :math:`2 w < k`
| ``resubmit``  the worst of k resubmissions: none of them is wrong, :math:`w = 0`
| ``known``     the attacker knows the noise: the attack runs on the frozen model, and the same frozen model judges

For a deterministic model they coincide. Under every protocol a clean image that is wrong counts as broken.

Images are attacked in fixed blocks by index, those with the same ``index // block`` together, as
``attack(model, x, y, seed=seed + attempt, index=index)``; the attacks of :mod:`rdc.attack` draw from seed and index, so that an
image's row does not depend on its company, workers, order or resume point, beyond rounding (which a sign step enlarges at pixels
whose gradient is zero). A randomised model is attacked image by image, and all its draws meanwhile follow from seed and index
(:func:`rdc.randomness.owned_randomness`). One by one is also attacked what draws by the place in the batch (``share="image"`` of
likelihood maximisation).

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

from rdc.door import Door, check_images, check_labels, entry
from rdc.evaluate.attack_spec import Attack, Given, listed
from rdc.evaluate.protocols import PROTOCOLS, SCHEMA, Block, Judge, Row, Verdict, together
from rdc.quantities import count
from rdc.randomness import known_noise, randomness
from rdc.rng import whole
from rdc.runs.rowfile import fill, pieces
from rdc.runs.rowfile import read_rows as read_rows
from rdc.runs.statistics import Accuracy as Accuracy

DRAWS = 20  # fresh verdicts about an image of a randomised model


@entry
def predict(model: nn.Module, x: Float[Tensor, "n c h w"], batch: int = 64, quiet: bool = True) -> Int64[Tensor, " n"]:
    """Return the predicted classes of images in [0, 1], asked ``batch`` at a time.

    Raises:
        ValueError: if the images are none, or the model returns no finite logits (:class:`rdc.door.Door`).
    """
    check_images(x)
    return classes(model, x, None, batch, quiet)


def classes(model: nn.Module, x: Tensor, y: Tensor | None, batch: int, quiet: bool = True) -> Tensor:
    """Return the predicted classes; the labels must be among those of the model."""
    size = count(batch, "batch")
    labels = [None] * len(x) if y is None else y.split(size)
    with Door(model, attacked=False) as door:
        parts = tqdm(x.split(size), disable=quiet, desc="classify", unit="batch")
        return torch.cat([door.ask(part, known).argmax(dim=1) for part, known in zip(parts, labels, strict=False)])


@entry
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
    """Return the accuracy on images ``x`` with labels ``y``.

    With ``rows`` (a file), or any ``options``, it is :func:`robust_accuracy` under no attack: one row per image, resumable, with
    its ``workers``, ``protocol``, ``draws``, ``seed``, ``index``, ``block`` and ``config``. Otherwise each image is judged once,
    in batches.
    """
    if rows is not None or options:
        return robust_accuracy(model, x, y, {}, rows=rows, quiet=quiet, **options)
    check_images(x)
    check_labels(y, len(x))
    return Accuracy.of(int((classes(model, x, y, batch, quiet) == y).sum()), len(y))


@entry
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
    block: int = 64,
    protocol: str = "draws",
    attempts: int = 1,
    seed: int = 0,
    index: Int64[Tensor, " n"] | None = None,
    config: dict[str, Any] | None = None,
    quiet: bool = True,
    norm: str | None = None,
    eps: float | str | None = None,
    x_adv: Tensor | Sequence[Tensor] | None = None,
    **options: Any,
) -> Accuracy:
    """Return the accuracy under the strongest of several attacks: an image counts only if no attack broke it.

    Killed at any instant and called again with the same ``rows``, it continues, and ends with the same rows. Called with other
    images (more of them, or another part) and the same ``rows``, it adds theirs; the result counts the images of this call.

    Arguments:
        model: The attacked model, images in [0, 1] to logits ``(N, K)``.
        x: The clean images; a wrong clean prediction counts as broken.
        y: True labels.
        attack: What to try, one or several: adversarial images, ``pgd``, ``autoattack``, ``stadv`` or ``square``, or a callable
            ``attack(model, x, y, seed=..., index=...) -> x_adv`` such as ``functools.partial(pgd, eps=0.1)``. A dict names them.
            It gets the images of a block together and must treat each by itself, as those of :mod:`rdc.attack` do.
        draws: Fresh verdicts about each image; by default 20 for a randomised model and 1 for a deterministic one, which is one
            whose first calls agree bit for bit. Give it for a model whose answer rarely changes; images are then taken alone.
        batch: Images at a time, where adversarial images are given and no file of rows.
        rows: File of rows, one JSON line per image (:mod:`rdc.runs.rowfile`); None keeps them in memory.
        workers: Processes that share the blocks; model and attacks must then be picklable.
        block: Images attacked together, those with the same ``index // block``. A kill loses at most the blocks in flight.
            Images of a randomised model, and of one whose noise follows the place in the batch, are taken alone.
        protocol: Which of ``once``, ``draws``, ``resubmit`` and ``known`` is returned; the rows hold all of them.
        attempts: An attack is repeated with other seeds until most verdicts are wrong; the attempt with most wrong verdicts is
            kept, and judged again on other draws, so that the choice does not flatter it.
        seed: Seed of all random numbers.
        index: Identity of each image, by default its position.
        config: What else is to be in the header of the file, and to agree when it is continued.
        quiet: Whether to hide the progress bar.
        norm: For attacks given by name; by default theirs.
        eps: Radius in image units, for attacks given by name; by default theirs. A number, or text such as ``8/255``.
        x_adv: Another name for ``attack`` where it is images.
        options: Further options of attacks given by name.

    Raises:
        ValueError: for bad input, a file of another run, or a protocol that these attacks cannot answer.
        OSError: if the file cannot be written; the rows so far are intact.
        RuntimeError: if a worker died; the rows so far are kept.
    """
    check_images(x)
    check_labels(y, len(x))
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    draws = None if draws is None else count(draws, "draws")
    workers, block, attempts, seed = count(workers, "workers"), count(block, "block"), count(attempts, "attempts"), whole(seed)
    ids = identities(index, len(y))
    attack = x_adv if attack is None else attack
    if attack is None:
        raise ValueError("no attack; give adversarial images, a name, a callable, or a list of them")
    chosen = listed(attack, ids, {"norm": norm, "eps": eps, **options})
    batched = rows is None and workers == 1 and protocol != "known" and all(isinstance(a, Given) for a in chosen.values())
    if batched:
        batch = 1 if by_place(model) else batch
        draws = (DRAWS if randomness(model, x[:1], seed, 8)[0] else 1) if draws is None else draws
        return judge_images(model, x, y, [a.images for a in chosen.values() if isinstance(a, Given)], draws, batch, protocol)
    judge = judge_of(model, Block(x, y, ids), chosen, draws, attempts, seed, block)
    header = {**judge.config(), **({"run": config} if config else {})}
    result = fill(judge, judge.digests(), rows, header, SCHEMA, judge.block, workers, quiet)
    return counted([row["right"] for row in result], protocol)


def judge_of(
    model: nn.Module, images: Block, attacks: dict[str, Attack], draws: int | None, attempts: int, seed: int, block: int
) -> Judge:
    """Return what makes the rows of some images, one by one if the model is randomised or its noise follows the place in a batch.

    A randomised model is asked 20 times unless told otherwise.
    """
    random, counters = randomness(model, images.x[:1], seed, max(8, draws or 0))
    draws = (DRAWS if random else 1) if draws is None else draws
    freezable = random and not randomness(known_noise(model, seed), images.x[:1], seed)[0]
    size = 1 if random or draws > 1 or by_place(model) else block
    return Judge(model, images, attacks, draws, attempts, seed, size, random, freezable, counters)


def by_place(model: nn.Module) -> bool:
    """Return whether the noise of an image is that of its place in the batch, which an attack may change."""
    return any(getattr(module, "share", None) == "image" for module in model.modules())


@entry
def judged(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[str, Attack], seed: int, index: Tensor, block: int
) -> list[Row]:
    """Return the rows of :func:`robust_accuracy`, in the order of the images, without a file."""
    judge, ids = judge_of(model, Block(x, y, index), attacks, None, 1, seed, block), index.tolist()
    rows = {row["index"]: row for part in pieces(ids, judge.block) for row in judge(part)}
    return [rows[i] for i in ids]


def identities(index: Tensor | None, n: int) -> Tensor:
    """Return the index of each image, on the CPU; by default its position."""
    ids = torch.arange(n, device="cpu") if index is None else index.cpu()
    if ids.shape != (n,) or ids.is_floating_point() or len(ids.unique()) < n:
        raise ValueError(f"index must hold {n} different numbers, one per image")
    return ids


def judge_images(model: nn.Module, x: Tensor, y: Tensor, images: list[Tensor], draws: int, batch: int, protocol: str) -> Accuracy:
    """Return the verdict on given images, in batches; a randomised model draws as it does by itself."""
    alive = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for candidate in [x, *images]:
        wrong = torch.stack([classes(model, candidate, y, batch) != y for _ in range(1 if protocol == "once" else draws)])
        alive &= ~wrong.any(dim=0) if protocol == "resubmit" else wrong.float().mean(dim=0) < 0.5
    return Accuracy.of(int(alive.sum()), len(y))


def counted(right: list[dict[str, bool]], protocol: str) -> Accuracy:
    """Return the accuracy under one protocol."""
    if not right:
        raise ValueError("no rows yet")
    if not all(protocol in r for r in right):
        raise ValueError(
            "protocol 'known' needs attacks that can be run again, not given images, on a model whose noise can be fixed"
        )
    return Accuracy.of(sum(r[protocol] for r in right), len(right))


def rows_of(rows: str | Path, index: Tensor | None) -> tuple[dict[str, Any], list[Row]]:
    """Return configuration and rows of a file, by default all, otherwise those of some images."""
    config, found = read_rows(rows, SCHEMA)
    kept = None if index is None else set(index.tolist())
    return config, [row for row in found if kept is None or row["index"] in kept]


def protocols(rows: str | Path, index: Int64[Tensor, " n"] | None = None) -> dict[str, Accuracy]:
    """Return the robust accuracy under every protocol that was measured, of the rows so far.

    Arguments:
        rows: File of rows.
        index: The images that count; by default all of the file.
    """
    right = [row["right"] for row in rows_of(rows, index)[1]]
    return {p: counted(right, p) for p in PROTOCOLS if all(p in r for r in right)}


def attack_table(rows: str | Path, protocol: str = "draws", index: Int64[Tensor, " n"] | None = None) -> dict[str, Accuracy]:
    """Return the robust accuracy under each attack alone and, as ``union``, under the strongest for each image.

    Arguments:
        rows: File of rows.
        protocol: One of ``once``, ``draws``, ``resubmit`` and ``known``.
        index: The images that count; by default all of the file.
    """
    config, found = rows_of(rows, index)

    def right(row: Row, name: str) -> dict[str, bool]:
        fields = ("once", "wrong", "draws", "known")
        verdicts = [Verdict(*(v[f] for f in fields)).right() for v in (row["verdict"], row["attacks"][name])]
        return together(verdicts)

    table = {name: counted([right(row, name) for row in found], protocol) for name in config["attacks"]}
    return {**table, "union": counted([row["right"] for row in found], protocol)}
