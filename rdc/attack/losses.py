"""What an attack climbs: functions of logits ``(N, K)`` and labels ``(N,)`` that are larger the more wrong the model is.

With ``f_(1) >= f_(2) >= ...`` the sorted logits, each loss has an untargeted form and one that climbs towards a class j:

| ``margin``   ``max_{i != y} f_i - f_y``, the margin of Carlini and Wagner, also called ``cw``; ``f_j - f_y``
| ``ce``       ``-log softmax(f)_y``; ``log softmax(f)_j``
| ``dlr``      ``margin / (f_(1) - f_(3))``; ``(f_j - f_y) / (f_(1) - (f_(3) + f_(4)) / 2)``

References:
    | Towards Evaluating the Robustness of Neural Networks (Carlini and Wagner, 2017), https://arxiv.org/abs/1608.04644
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690
"""

__all__ = ["LOSSES", "TARGETED", "check_classes", "check_loss", "cross_entropy", "dlr", "margin", "rescale"]

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def cross_entropy(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``-log softmax(logits)_y``. Its gradient vanishes in float32 once the right class leads by about 100."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``max_{j != y} f_j - f_y``: positive exactly when the prediction is wrong; its gradient involves two classes."""
    true = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(dim=1) - true


def dlr(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Difference of logits ratio, ``(max_{j != y} f_j - f_y) / (f_(1) - f_(3))``: the margin, free of scale; K >= 3."""
    top = torch.topk(logits, 3, dim=1).values
    return margin(logits, y) / positive(top[:, 0] - top[:, 2])


def targeted_cross_entropy(
    logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """``log softmax(logits)_j``; the label does not enter."""
    return -cross_entropy(logits, target)


def targeted_margin(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``f_j - f_y``."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def targeted_dlr(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``(f_j - f_y) / (f_(1) - (f_(3) + f_(4)) / 2)``; K >= 4."""
    top = torch.topk(logits, 4, dim=1).values
    return targeted_margin(logits, y, target) / positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def positive(size: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """A divisor that is never zero: where it is, the numerator is constant and any number will do."""
    return torch.where(size > 0, size, torch.ones_like(size))


def rescale(logits: Float[Tensor, "n k"], scale: float | str = 1.0) -> Float[Tensor, "n k"]:
    """Logits times a factor; for ``auto`` each image's logits are divided by their own spread ``f_(1) - f_(3)``.

    The best three then differ by at most one, so that the cross-entropy is neither saturated nor flat, whatever the scale of
    the model. The spread is a constant of the gradient. For K = 2 it is ``f_(1) - f_(2)``; it is at least a thousandth of the
    whole range ``f_(1) - f_(K)``, and one where all logits are equal. The largest logit is moved to zero.
    """
    if scale != "auto":
        return logits * float(scale)
    values = logits.detach()
    top = torch.topk(values, min(3, logits.shape[1]), dim=1).values
    whole = values.amax(dim=1) - values.amin(dim=1)
    spread = torch.maximum(top[:, 0] - top[:, -1], 1e-3 * whole)
    spread = torch.where(spread > 1e6 * torch.finfo(spread.dtype).tiny, spread, torch.ones_like(spread))
    return (logits - top[:, :1]) / spread[:, None]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}
ALIASES = {"cw": "margin"}
CLASSES = {("dlr", False): 3, ("dlr", True): 4}


def check_loss(loss: str) -> str:
    """Return the loss's own name for a name or an alias.

    Raises:
        ValueError: if it is neither.
    """
    if (name := ALIASES.get(loss, loss)) not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; there are {', '.join(LOSSES)} and cw (= margin)")
    return name


def check_classes(loss: str, targets: int, classes: int) -> None:
    """Raise if a loss needs more classes than the model has."""
    need = CLASSES.get((loss, targets > 0), 2)
    if classes < need:
        kind = "targeted " if targets else ""
        raise ValueError(f"the {kind}loss {loss!r} needs at least {need} classes, the model has {classes}")
