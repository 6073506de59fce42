"""What an attack climbs: functions of logits ``(N, K)`` and labels ``(N,)`` that are larger the more wrong the model is.

References:
    | Towards Evaluating the Robustness of Neural Networks (Carlini and Wagner, 2017), https://arxiv.org/abs/1608.04644
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks
    | (Croce and Hein, 2020), https://arxiv.org/abs/2003.01690
"""

__all__ = ["LOSSES", "cross_entropy", "dlr", "margin"]

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
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
