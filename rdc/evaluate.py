"""Accuracy and robust accuracy, with their counts and 95 % intervals."""

__all__ = ["Accuracy", "accuracy", "robust_accuracy"]

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.stats import binomtest
from torch import Tensor, nn
from tqdm import tqdm

from rdc.data import check_images, check_labels


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``n`` images, the fraction ``value``, and its Wilson 95 % interval ``[low, high]``.

    >>> print(Accuracy.of(90, 100))
    90/100 = 90.0 % [82.6, 94.5]
    """

    correct: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, n: int) -> "Accuracy":
        """From counts."""
        interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
        return cls(correct, n, correct / n, float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.correct}/{self.n} = {100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def predict(model: nn.Module, x: Float[Tensor, "n c h w"], batch: int = 64, quiet: bool = True) -> Int64[Tensor, " n"]:
    """Predicted classes, ``batch`` images at a time."""
    with torch.no_grad():
        parts = tqdm(x.split(batch), disable=quiet, desc="classify", unit="batch")
        return torch.cat([model(part).argmax(dim=1) for part in parts])


def accuracy(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], batch: int = 64, quiet: bool = True
) -> Accuracy:
    """Accuracy on images ``x`` with labels ``y``."""
    check_images(x)
    check_labels(y, len(x))
    return Accuracy.of(int((predict(model, x, batch, quiet) == y).sum()), len(y))


def robust_accuracy(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    x_adv: list[Float[Tensor, "n c h w"]] | Float[Tensor, "n c h w"],
    draws: int = 1,
    batch: int = 64,
) -> Accuracy:
    """Accuracy under the strongest of several attacks: an image counts only if no attack broke it.

    Arguments:
        model: The attacked model.
        x: The clean images; a wrong clean prediction counts as broken.
        y: True labels.
        x_adv: The result of one attack, or of several.
        draws: Times that each image is judged; for a model with fresh noise it is broken if most verdicts are wrong.
        batch: Images at a time.
    """
    candidates = [x, *([x_adv] if torch.is_tensor(x_adv) else x_adv)]
    alive = torch.ones(len(y), dtype=torch.bool, device=y.device)
    for images in candidates:
        wrong = torch.stack([predict(model, images, batch) != y for _ in range(draws)]).float().mean(dim=0)
        alive &= wrong < 0.5
    return Accuracy.of(int(alive.sum()), len(y))
