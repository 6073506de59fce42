"""Answers of base classifiers to the draws of a certificate, kept in runs/certify/.

A base classifier that answered a draw once is not asked again: ``certify`` makes its draws from the seed, the image and the
number of the draw, so that stored logits give the certificates of any n up to what is stored, of a target radius too, to the
same bits.
"""

from collections.abc import Callable

import numpy as np
import torch
from certify_bases import build, passes, save
from certify_settings import INDEXED, RUNS, SEED, Base
from torch import Tensor

from rdc.certify.monte_carlo import code
from rdc.rng import randn


def noisy(image: Tensor, sigma: float, index: int, draws: range) -> Tensor:
    """The noisy copies of an image that :func:`rdc.certify.certify` makes."""
    noise = [randn(tuple(image.shape), SEED, "smoothing", "certify", index, d) for d in draws]
    return image + sigma * torch.stack(noise)


def logits(b: Base, image: Tensor, index: int, stop: int, model: Callable[..., Tensor] | None = None) -> np.ndarray:
    """Logits of the draws ``0...stop - 1`` of an image, ``(stop, K)`` float32, less the largest; stored ones are not repeated."""
    return answered(b, image, index, stop, model)[:, :-1]


def spent(b: Base, image: Tensor, index: int, stop: int) -> float:
    """Network evaluations for one of these draws, on average."""
    return float(answered(b, image, index, stop)[:, -1].mean())


def answered(b: Base, image: Tensor, index: int, stop: int, model: Callable[..., Tensor] | None = None) -> np.ndarray:
    """Logits and, in the last column, network evaluations: for cascade and race the mean over draws that were made together."""
    path = RUNS / b.key() / f"{index}.npy"
    found = np.load(path) if path.exists() else np.zeros((0, 11), np.float32)
    if len(found) >= stop:
        return found[:stop]
    model, known = model or build(b), len(found)
    with torch.no_grad():
        for start in range(known, stop, 100):
            draws = range(start, min(start + 100, stop))
            x, before = noisy(image, b.sigma, index, draws), getattr(model, "spent", 0)
            keyed = {"index": torch.tensor([code("certify", index, d) for d in draws])} if b.base in INDEXED else {}
            value = model(x, **keyed).float()
            cost = (model.spent - before) / len(draws) if hasattr(model, "spent") else passes(b, model)
            lead = value - value.amax(dim=1, keepdim=True)
            new = np.concatenate([lead.numpy(), np.full((len(draws), 1), cost, np.float32)], axis=1)
            found = np.concatenate([found, new])
            if (start - known) % 1000 == 900:
                save(path, found)
    save(path, found)
    return found
