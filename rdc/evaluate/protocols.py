"""The row of one image: attacked alone, and judged by fresh verdicts under the protocols of :mod:`rdc.evaluate`."""

__all__ = ["PROTOCOLS", "Judge", "Verdict", "together"]

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rdc.data import check_images
from rdc.evaluate.attack_spec import Attack, Given
from rdc.randomness import owned_randomness
from rdc.runs.fingerprint import describe, describe_attack, digest

PROTOCOLS = ("once", "draws", "resubmit", "known")
Row = dict[str, Any]


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
        """The four protocols; ``known`` only where it was measured."""
        found = {"once": self.once, "draws": not self.broken, "resubmit": self.wrong == 0}
        return found if self.known is None else {**found, "known": self.known}


@dataclass(frozen=True)
class Judge:
    """Makes the row of one image, a function of its position only.

    The fields are those of :func:`rdc.evaluate.robust_accuracy`.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    index: Tensor
    attacks: dict[str, Attack]
    draws: int
    attempts: int
    seed: int
    random: bool
    freezable: bool
    counters: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """What decides the rows."""
        return {
            "attacks": {name: describe_attack(a) for name, a in self.attacks.items()},
            "seed": self.seed,
            "draws": self.draws,
            "attempts": self.attempts,
            "random": self.random,
            "protocols": list(PROTOCOLS),
            "images": digest(self.x),
            "labels": digest(self.y),
            "index": digest(self.index),
            "model": describe(self.model),
        }

    def __call__(self, position: int) -> Row:
        """The row: prediction and verdicts on the clean image and under every attack."""
        start = time.perf_counter()
        prediction, clean = self.clean(position)
        attacks = {name: self.attacked(name, position, clean) for name in self.attacks}
        verdicts = [clean, *(verdict for verdict, _ in attacks.values())]
        return {
            "index": int(self.index[position]),
            "label": int(self.y[position]),
            "clean": prediction,
            "verdict": vars(clean),
            "attacks": {name: {**vars(verdict), **more} for name, (verdict, more) in attacks.items()},
            "right": together([v.right() for v in verdicts]),
            "seconds": round(time.perf_counter() - start, 4),
        }

    def clean(self, position: int) -> tuple[int, Verdict]:
        """Prediction (of the first call) and verdict on the clean image."""
        seen = self.predictions(self.model, self.x[position][None], position, "clean")
        verdict = self.verdict(seen, position)
        if self.freezable:
            said = self.predictions(self.frozen(), self.x[position][None], position, "known", draws=1)
            verdict = replace(verdict, known=said[0] == int(self.y[position]))
        return seen[0], verdict

    def attacked(self, name: str, position: int, clean: Verdict) -> tuple[Verdict, dict[str, Any]]:
        """Verdict after an attack, size of the change and seconds; of a deterministic model wrong images are left alone."""
        from rdc.attack.norms import norm_of

        start, x = time.perf_counter(), self.x[position][None]
        x_adv, verdict = (
            (x, clean) if not self.random and clean.wrong == clean.draws else self.search(self.model, name, position, self.draws)
        )
        if self.random:
            verdict = replace(verdict, known=self.known(name, position, clean))
        size = {norm: float(norm_of(x_adv.double() - x.double(), norm)[0]) for norm in ("Linf", "L2")}
        return verdict, {"size": size, "seconds": round(time.perf_counter() - start, 4)}

    def known(self, name: str, position: int, clean: Verdict) -> bool | None:
        """Whether the frozen model stays right when it is attacked itself; None where that cannot be tried."""
        if not self.freezable or isinstance(self.attacks[name], Given):
            return None
        return bool(clean.known) and not self.search(self.frozen(), name, position, 1)[1].broken

    def search(self, model: nn.Module, name: str, position: int, draws: int) -> tuple[Tensor, Verdict]:
        """The best of the attempts, and what the model says of it."""
        best = None
        for attempt in range(1 if isinstance(self.attacks[name], Given) else self.attempts):
            x_adv = self.run(model, name, position, attempt)
            verdict = self.verdict(self.predictions(model, x_adv, position, name, attempt, draws=draws), position)
            if best is None or verdict.wrong > best[1].wrong:
                best = x_adv, verdict
            if verdict.broken:
                break
        if draws > 1 and attempt > 0:
            again = self.predictions(model, best[0], position, name, "again", draws=draws)
            best = best[0], self.verdict(again, position)
        return best

    def run(self, model: nn.Module, name: str, position: int, attempt: int) -> Tensor:
        """One run of an attack on one image, checked."""
        x, y, index = self.x[position][None], self.y[position][None], self.index[position][None]
        with self.owned(model, "attack", name, int(index), attempt):
            x_adv = self.attacks[name](model, x, y, seed=self.seed + attempt, index=index)
        if not torch.is_tensor(x_adv) or x_adv.shape != x.shape:
            got = tuple(x_adv.shape) if torch.is_tensor(x_adv) else type(x_adv).__name__
            raise ValueError(f"attack {name} must return images {tuple(x.shape)}, got {got}")
        check_images(x_adv)
        return x_adv.detach()

    def predictions(self, model: nn.Module, x: Tensor, position: int, *key: int | str, draws: int | None = None) -> list[int]:
        """What the model says of one image, each time with random numbers of its own."""
        from rdc.door import logits_of

        y, i, found = self.y[position][None], int(self.index[position]), []
        for draw in range(self.draws if draws is None else draws):
            with torch.no_grad(), self.owned(model, "verdict", i, *key, draw):
                found.append(int(logits_of(model, x, y).argmax(dim=1)))
        return found

    def verdict(self, predictions: list[int], position: int) -> Verdict:
        """The verdict that belongs to some predictions."""
        label = int(self.y[position])
        wrong = sum(p != label for p in predictions)
        known = wrong == 0 if not self.random and wrong in (0, len(predictions)) else None
        return Verdict(predictions[0] == label, wrong, len(predictions), known)

    def owned(self, model: nn.Module, *key: int | str) -> Any:
        """All randomness from ``(seed, *key)``; a frozen model has no counter to set."""
        return owned_randomness(model, self.seed, *key, counters=self.counters if model is self.model else ())

    def frozen(self) -> nn.Module:
        """The deterministic model that an attacker faces who knows the noise."""
        from rdc.randomness import known_noise

        return known_noise(self.model, self.seed)


def together(right: list[dict[str, bool]]) -> dict[str, bool]:
    """Right under all of them, for each protocol that all of them know."""
    return {p: all(r[p] for r in right) for p in PROTOCOLS if all(p in r for r in right)}
