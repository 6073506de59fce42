"""The rows of a block of images: attacked, and judged by verdicts under the protocols of :mod:`rdc.evaluate`.

A deterministic model is attacked with a whole block. Of a randomised model each image is attacked by itself, with all randomness
derived from seed and image: in a block its noise would depend on its company.
"""

__all__ = ["PROTOCOLS", "SCHEMA", "Judge", "Verdict", "together"]

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rdc.attack.norms import norm_of
from rdc.door import Door, ask, check_images
from rdc.evaluate.attack_spec import Attack, Given
from rdc.randomness import known_noise, owned_randomness
from rdc.runs.fingerprint import describe, describe_attack, digest

PROTOCOLS = ("once", "draws", "resubmit", "known")
Row = dict[str, Any]
VERDICT = {"once": bool, "wrong": int, "draws": int, "known": (bool, type(None))}
#: The fields of a row (:mod:`rdc.runs.rowfile`).
SCHEMA: dict[str, Any] = {
    "label": int,
    "clean": int,
    "verdict": VERDICT,
    "attacks": {str: {**VERDICT, "size": {"Linf": float, "L2": float}, "seconds": float}},
    "right": {"once": bool, "draws": bool, "resubmit": bool, str: bool},
    "seconds": float,
}


@dataclass(frozen=True)
class Verdict:
    """What a model says of one image: right in the first call, ``wrong`` of ``draws``, right where the noise is known."""

    once: bool
    wrong: int
    draws: int
    known: bool | None

    @property
    def broken(self) -> bool:
        """Whether at least half of the draws are wrong."""
        return 2 * self.wrong >= self.draws

    def right(self) -> dict[str, bool]:
        """Return the four protocols; ``known`` only where it was measured."""
        found = {"once": self.once, "draws": not self.broken, "resubmit": self.wrong == 0}
        return found if self.known is None else {**found, "known": self.known}


@dataclass(frozen=True)
class Block:
    """Some images with labels and indices."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, at: Sequence[int]) -> "Block":
        """Return the images at some positions."""
        part = torch.tensor(at, dtype=torch.int64, device="cpu")
        return Block(self.x[part], self.y[part], self.index[part])


@dataclass(frozen=True)
class Judge:
    """Makes the rows of some images; a row is a function of its image only.

    The fields are those of :func:`rdc.evaluate.robust_accuracy`.
    """

    model: nn.Module
    images: Block
    attacks: dict[str, Attack]
    draws: int
    attempts: int
    seed: int
    block: int
    random: bool
    freezable: bool
    counters: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """Return what decides the rows."""
        return {
            "attacks": {name: describe_attack(a) for name, a in self.attacks.items()},
            "seed": self.seed,
            "draws": self.draws,
            "attempts": self.attempts,
            "block": self.block,
            "random": self.random,
            "protocols": list(PROTOCOLS),
            "model": describe(self.model),
        }

    def digests(self) -> dict[int, str]:
        """Return the digest of each image and its label, by index."""
        x, y = self.images.x.cpu(), self.images.y.cpu()
        return {int(i): digest(x[n], y[n]) for n, i in enumerate(self.images.index)}

    def __call__(self, positions: Sequence[int]) -> list[Row]:
        """Return the rows: prediction and verdicts on each clean image and under every attack."""
        start, block = time.perf_counter(), self.images.take(positions)
        with Door(self.model):  # in evaluation mode also where an attack asks the model by itself
            said, clean = self.clean(block)
            found = {name: self.attacked(name, block, clean) for name in self.attacks}
        seconds = round((time.perf_counter() - start) / len(block), 4)
        rows = []
        for n, (i, label) in enumerate(zip(block.index.tolist(), block.y.tolist(), strict=True)):
            attacks = {name: {**vars(verdicts[n]), **more[n]} for name, (verdicts, more) in found.items()}
            right = together([clean[n].right(), *(verdicts[n].right() for verdicts, _ in found.values())])
            row = {"index": i, "image": digest(block.x[n], block.y[n]), "label": label, "clean": said[n]}
            rows.append({**row, "verdict": vars(clean[n]), "attacks": attacks, "right": right, "seconds": seconds})
        return rows

    def clean(self, block: Block) -> tuple[list[int], list[Verdict]]:
        """Return predictions (of the first call) and verdicts on the clean images."""
        seen = self.predictions(self.model, block.x, block, "clean")
        verdicts = self.verdicts(seen, block)
        if self.freezable:
            said = self.predictions(self.frozen(), block.x, block, "known", draws=1)
            known = [s == [label] for s, label in zip(said, block.y.tolist(), strict=True)]
            verdicts = [replace(v, known=k) for v, k in zip(verdicts, known, strict=True)]
        return [s[0] for s in seen], verdicts

    def attacked(self, name: str, block: Block, clean: list[Verdict]) -> tuple[list[Verdict], list[dict[str, Any]]]:
        """Return verdicts after an attack, with sizes of the changes and seconds.

        Images that a deterministic model gets wrong as they are are left alone.
        """
        start, points, verdicts = time.perf_counter(), list(block.x), list(clean)
        todo = [n for n, v in enumerate(clean) if self.random or v.wrong < v.draws]
        if todo:
            for n, (point, verdict) in zip(todo, self.search(self.model, name, block.take(todo), self.draws), strict=True):
                points[n], verdicts[n] = point, verdict
        if self.random:
            verdicts = [replace(v, known=self.known(name, block, clean)) for v in verdicts]
        change = torch.stack([point.double() - x.double() for point, x in zip(points, block.x, strict=True)])
        sizes = zip(*(norm_of(change, norm).tolist() for norm in ("Linf", "L2")), strict=True)
        seconds = round((time.perf_counter() - start) / len(block), 4)
        return verdicts, [{"size": {"Linf": a, "L2": b}, "seconds": seconds} for a, b in sizes]

    def known(self, name: str, block: Block, clean: list[Verdict]) -> bool | None:
        """Return whether the frozen model stays right on one image when attacked itself; None where that cannot be tried."""
        if not self.freezable or isinstance(self.attacks[name], Given):
            return None
        return bool(clean[0].known) and not self.search(self.frozen(), name, block, 1)[0][1].broken

    def search(self, model: nn.Module, name: str, block: Block, draws: int) -> list[tuple[Tensor, Verdict]]:
        """Return for each image the best of the attempts, and what the model says of it; a broken one is not tried again."""
        best: dict[int, tuple[Tensor, Verdict]] = {}
        todo = list(range(len(block)))
        for attempt in range(1 if isinstance(self.attacks[name], Given) else self.attempts):
            part = block.take(todo)
            x_adv = self.run(model, name, part, attempt)
            verdicts = self.verdicts(self.predictions(model, x_adv, part, name, attempt, draws=draws), part)
            for n, point, verdict in zip(todo, x_adv, verdicts, strict=True):
                if n not in best or verdict.wrong > best[n][1].wrong:
                    best[n] = point, verdict
            todo = [n for n in todo if not best[n][1].broken]
            if not todo:
                break
        if draws > 1 and attempt > 0:
            points = torch.stack([best[n][0] for n in range(len(block))])
            again = self.verdicts(self.predictions(model, points, block, name, "again", draws=draws), block)
            best = dict(enumerate(zip(points, again, strict=True)))
        return [best[n] for n in range(len(block))]

    def run(self, model: nn.Module, name: str, block: Block, attempt: int) -> Tensor:
        """Return what one run of an attack found, checked."""
        x, y, index = block.x.clone(), block.y.clone(), block.index.clone()
        with self.owned(model, "attack", name, int(index[0]), attempt):
            x_adv = self.attacks[name](model, x, y, seed=self.seed + attempt, index=index)
        if not torch.is_tensor(x_adv) or x_adv.shape != x.shape:
            got = tuple(x_adv.shape) if torch.is_tensor(x_adv) else type(x_adv).__name__
            raise ValueError(f"attack {name} must return images {tuple(x.shape)}, got {got}")
        check_images(x_adv)
        return x_adv.detach()

    def predictions(
        self, model: nn.Module, x: Tensor, block: Block, *key: int | str, draws: int | None = None
    ) -> list[list[int]]:
        """Return what the model says of each image, each time with random numbers of its own."""
        first, found = int(block.index[0]), []
        for draw in range(self.draws if draws is None else draws):
            with self.owned(model, "verdict", first, *key, draw):
                found.append(ask(model, x, block.y).argmax(dim=1))
        said: list[list[int]] = torch.stack(found, dim=1).tolist()
        return said

    def verdicts(self, predictions: list[list[int]], block: Block) -> list[Verdict]:
        """Return the verdicts that belong to some predictions."""
        found = []
        for said, label in zip(predictions, block.y.tolist(), strict=True):
            wrong = sum(p != label for p in said)
            known = wrong == 0 if not self.random and wrong in (0, len(said)) else None
            found.append(Verdict(said[0] == label, wrong, len(said), known))
        return found

    def owned(self, model: nn.Module, *key: int | str) -> AbstractContextManager[None]:
        """All randomness from ``(seed, *key)``; a frozen model has no counter to set."""
        return owned_randomness(model, self.seed, *key, counters=self.counters if model is self.model else ())

    def frozen(self) -> nn.Module:
        """Return the deterministic model that an attacker faces who knows the noise."""
        return known_noise(self.model, self.seed)


def together(right: list[dict[str, bool]]) -> dict[str, bool]:
    """Return whether an image is right under all of them, for each protocol that all of them know."""
    return {p: all(r[p] for r in right) for p in PROTOCOLS if all(p in r for r in right)}
