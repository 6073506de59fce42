"""The one place where an attack calls a classifier: what comes back is checked, and a mistake gets one line."""

__all__ = ["logits_of"]

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def logits_of(model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
    """``model(x)``, checked; differentiable if ``x`` is.

    Warns if every row is a probability distribution: a softmax hides the margin, and its gradient vanishes where it
    saturates.

    Raises:
        ValueError: if model and images are on different devices, if the result is not ``(N, K)`` or holds NaN, or if
            a label is not below K.
    """
    try:
        logits = model(x)
    except RuntimeError as error:
        devices = {str(t.device) for t in (*model.parameters(), *model.buffers())} if isinstance(model, nn.Module) else set()
        if "same device" not in str(error) and devices <= {str(x.device)}:
            raise
        where = f" ({', '.join(sorted(devices))})" if devices else ""
        raise ValueError(
            f"the model{where} is on another device than the images ({x.device}); move one of them with .to()"
        ) from error
    if not torch.is_tensor(logits) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise ValueError(f"the model must return logits ({len(x)}, K) for {len(x)} images, got {shape}")
    values = logits.detach()
    if bool(values.isnan().any()):
        raise ValueError(f"the model returned NaN for {int(values.isnan().any(1).sum())} of {len(x)} images in [0, 1]")
    if y is not None and int(y.max()) >= logits.shape[1]:
        raise ValueError(f"labels go up to {int(y.max())}, the model has {logits.shape[1]} classes")
    if bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-4).all()):
        warnings.warn("the model returns probabilities; attack its logits: a saturated softmax has no gradient", stacklevel=3)
    return logits
