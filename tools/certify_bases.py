"""The base classifiers of tools/certificates.py, and their answers to noisy images, kept in runs/certify/.

A base classifier that answered a draw once is not asked again: ``certify`` makes its draws from the seed, the image and the
number of the draw, so that stored logits give the certificates of any n up to what is stored, of a target radius too, to the
same bits.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network_sizes import unseen_images
from torch import Tensor, nn

from rdc.certify import APNDC, EPNDC, Carlini, Cascade, Clipped, Cohen
from rdc.certify.baselines import reference_cnn
from rdc.certify.draws import code
from rdc.checkpoints import load_denoiser, locate, read_checkpoint
from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import fast_dtype
from rdc.noise import levels
from rdc.records import write_atomic
from rdc.rng import randn

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "certify"
SEED, SIGMAS = 0, (0.25, 0.5, 1.0)
INDEXED = ("EPNDC", "APNDC", "Cascade")
CHECKPOINTS = {"heads": "fashion-mini-multihead", "single head": "fashion-mini"}


@dataclass(frozen=True)
class Base:
    """A base classifier by its settings.

    Attributes:
        base: ``EPNDC``, ``APNDC``, ``Cascade`` (EPNDC with heads, then with the single head), ``Carlini``, ``Cohen`` or
            ``DC, clipped``.
        sigma: Smoothing noise, image units.
        levels: Noise levels T of a diffusion classifier.
        denoiser: ``heads`` or ``single head``.
        form: Form of EPNDC, variant of APNDC.
        antithetic: Whether each sample of inner noise comes with its mirror image.
        coupling: How classes and levels share inner noise.
        noise: Inner noise, ``fixed`` or ``fresh`` for every draw.
        gap: Of a cascade, nats.
        first: Levels of the heads of a cascade, where they are not those of the single head.
        seed: Owner of the inner noise, where it is not ``SEED``.
    """

    base: str
    sigma: float
    levels: int | None = None
    denoiser: str | None = None
    form: str | None = None
    antithetic: bool = False
    coupling: str = "shared"
    noise: str = "fixed"
    gap: float | None = None
    first: int | None = None
    seed: int | None = None

    def key(self) -> str:
        """A name of settings and weights, for files."""
        names = CHECKPOINTS.values() if self.base == "Cascade" else [CHECKPOINTS[self.denoiser]] if self.denoiser else []
        trained = [read_checkpoint(locate(name), "denoiser")[1]["tensors_sha256"][:12] for name in names]
        settings = {k: v for k, v in asdict(self).items() if k not in ("gap", "first", "seed") or v is not None}
        weights = trained[0] if len(trained) == 1 else trained or None
        return hashlib.sha256(json.dumps([settings, weights]).encode()).hexdigest()[:16]


def epndc(sigma: float, count: int, denoiser: str = "heads", form: str = "quadrature", mirror: bool = True, **more: Any) -> Base:
    """An exact-posterior classifier."""
    return Base("EPNDC", sigma, count, denoiser, form, mirror, **more)


def apndc(sigma: float, count: int, denoiser: str = "heads", form: str = "ensemble", **more: Any) -> Base:
    """An approximated-posterior classifier."""
    return Base("APNDC", sigma, count, denoiser, form, **more)


def cascade(sigma: float, count: int = 3, gap: float = 1.0, first: int | None = None) -> Base:
    """Heads first, then the single-head network for the classes within ``gap`` of the best, three at most."""
    return Base("Cascade", sigma, count, None, "quadrature", True, gap=gap, first=first)


def reference(sigma: float, published: bool = False, **more: Any) -> Base:
    """What a fast classifier is compared with: 124 levels, one evaluation for each class.

    EPNDC with the chain of its bound; or, as published, APNDC with 1 + 124 K evaluations.
    """
    if published:
        return apndc(sigma, 124, "single head", **more)
    return epndc(sigma, 124, "single head", "fixed", False, **more)


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
    """Network evaluations of the denoisers for one noisy image; for a cascade the mean over all it has seen."""
    if b.base in ("Carlini", "Cohen"):
        return int(b.base == "Carlini")
    if b.base == "Cascade":
        return model.spent / model.seen if model.seen else math.nan
    return (model.network if b.base == "DC, clipped" else model).evaluations


def others(count: int) -> Images:
    """Images to choose settings on: not in fashion-mini."""
    return unseen_images(count)


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
    """Logits and, in the last column, network evaluations: for a cascade the mean over draws that were made together."""
    path = RUNS / b.key() / f"{index}.npy"
    found = np.load(path) if path.exists() else np.zeros((0, 11), np.float32)
    if len(found) >= stop:
        return found[:stop]
    model, parts = model or build(b), [found]
    with torch.no_grad():
        for start in range(len(found), stop, 100):
            draws = range(start, min(start + 100, stop))
            x, before = noisy(image, b.sigma, index, draws), getattr(model, "spent", 0)
            keyed = {"index": torch.tensor([code("certify", index, d) for d in draws])} if b.base in INDEXED else {}
            value = model(x, **keyed).float()
            cost = (model.spent - before) / len(draws) if b.base == "Cascade" else passes(b, model)
            lead = value - value.amax(dim=1, keepdim=True)
            parts.append(np.concatenate([lead.numpy(), np.full((len(draws), 1), cost, np.float32)], axis=1))
    found = np.concatenate(parts)
    save(path, found)
    return found


def save(path: Path, array: np.ndarray) -> None:
    """Write an array, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())
