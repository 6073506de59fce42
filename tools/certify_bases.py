"""The base classifiers of tools/certificates.py, made from their settings."""

import io
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from certify_settings import CHECKPOINTS, LEARN, RUNS, SEED, Base, epndc, reference
from torch import Tensor, nn
from tqdm import tqdm

from rdc.certify import APNDC, EPNDC, Carlini, Clipped, Cohen
from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.data.unseen import unseen
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.early_exit import Cascade, Race, Round, learn_rounds
from rdc.rng import randn
from rdc.runs.record import write_atomic
from rdc.schedule import levels
from rdc.train.classifiers import reference_cnn


@cache
def denoiser(name: str) -> nn.Module:
    """A shipped checkpoint."""
    return load_denoiser(CHECKPOINTS[name], dtype=fast_dtype())


def network(noise: float) -> nn.Module:
    """The reference network, trained with noise or without."""
    path = RUNS / f"cnn-{noise:g}.safetensors"
    return reference_cnn(path, load("fashion-mini", "train"), "fashion-mini", noise, quiet=False)


def build(b: Base) -> nn.Module:
    """The base classifier of some settings."""
    if b.base == "Cohen":
        return Cohen(network(b.sigma))
    if b.base == "Cascade":
        return Cascade(build(epndc(b.sigma, b.first or b.levels)), build(epndc(b.sigma, b.levels, "single head")), gap=b.gap)
    if b.base == "Race":
        return Race(build(reference(b.sigma, denoiser="heads")), build(reference(b.sigma)), rounds(b))
    model = denoiser(b.denoiser)
    if b.base == "Carlini":
        return Carlini(model, network(0.0), b.sigma)
    chunk = 2560 if b.denoiser == "heads" else 256
    if b.base == "DC, clipped":
        return Clipped(DiffusionClassifier(model, levels("elbo", b.levels, sigma_min=0.1), seed=SEED, chunk=chunk))
    shared = {
        "count": b.levels,
        "antithetic": b.antithetic,
        "coupling": b.coupling,
        "noise": b.noise,
        "seed": SEED if b.seed is None else b.seed,
        "chunk": chunk,
    }
    if b.base == "EPNDC":
        return EPNDC(model, b.sigma, form=b.form, **shared)
    return APNDC(model, b.sigma, variant=b.form, **shared)


def passes(b: Base, model: nn.Module) -> float:
    """Network evaluations of the denoisers for one noisy image; for a cascade or race the mean over all it has seen."""
    if b.base in ("Carlini", "Cohen"):
        return int(b.base == "Carlini")
    if b.base in ("Cascade", "Race"):
        return model.spent / model.seen if model.seen else math.nan
    return (model.network if b.base == "DC, clipped" else model).evaluations


def rounds(b: Base) -> tuple[Round, ...]:
    """The rounds of a race, learned from other images than those on which settings are compared."""
    both = (losses(reference(b.sigma, denoiser=name), LEARN) for name in ("heads", "single head"))
    return learn_rounds(*both, b.sizes, b.gaps, b.keep)


def losses(b: Base, which: range, size: int = 20) -> Tensor:
    """Losses of one noisy copy of each of some images outside fashion-mini, ``(N, K, T)``, stored."""
    path = RUNS / b.key() / f"losses-{which.start}-{which.stop}.npy"
    found = np.load(path) if path.exists() else np.zeros((0, 10, b.levels))
    model, x = build(b), others(which.stop).x
    for start in tqdm(
        range(which.start + len(found), which.stop, size), desc=f"losses, {b.denoiser}", disable=len(found) == len(which)
    ):
        batch = x[start : min(start + size, which.stop)]
        with torch.no_grad():
            new = model.losses(once(batch, b.sigma, start), torch.arange(start, start + len(batch))).numpy()
        found = np.concatenate([found, new])
        save(path, found)
    return torch.from_numpy(found)


def once(x: Tensor, sigma: float, start: int) -> Tensor:
    """One noisy copy of each of the images ``start...``."""
    return x + sigma * torch.stack([randn(tuple(x.shape[1:]), 0, "levels", start + i) for i in range(len(x))])


def others(count: int) -> Images:
    """Images to choose settings on: not in fashion-mini."""
    return unseen(count)


def save(path: Path, array: np.ndarray) -> None:
    """Write an array, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())
