"""Evaluations of the network a second, bare and inside everything that is made of it, each as a ratio to the bare one.

All timings alternate in one run. An evaluation is one image through the network at one level for one class, forward; a gradient
counts its forward evaluations only.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import alternate, row
from rdc.attack.losses import margin
from rdc.certify import EPNDC, certify
from rdc.classify import RDC, DiffusionClassifier, LikelihoodMaximization
from rdc.data import load
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.edm import EDM, build
from rdc.denoise.multihead import MultiHead
from rdc.rng import randn
from rdc.schedule import levels
from rdc.train.denoiser import Run, edm_objective, placed
from rdc.train.recipes import RECIPES

#: A function to time, and the evaluations of one call.
Work = tuple[Callable[[], object], int]


def throughput(rounds: int, device: torch.device, name: str) -> dict[str, Any]:
    """Measure everything in turns: on a GPU 4 096 evaluations at a time of 64 images, on the CPU 64 of two images."""
    chunk, count, t, draws = (64, 2, 4, 16) if device.type == "cpu" else (4096, 64, 16, 1024)
    dtype, test = fast_dtype(device), load("fashion-mini", "test")
    x, y = test.x[:count].to(device), test.y[:count].to(device)
    network, heads = load_denoiser(name, device, dtype), load_denoiser(f"{name}-multihead", device, dtype)
    lm, smoothed = LikelihoodMaximization(network), EPNDC(network, 0.5, count=t)
    single, multi = (DiffusionClassifier(n, levels("elbo", t), chunk=chunk) for n in (network, heads))
    works: dict[str, Work] = {
        "bare network": bare(network, chunk),
        "DC": (lambda: asked(single, x), single.evaluations * count),
        "DC, gradient of the margin": (lambda: slope(single, x, y), single.evaluations * count),
        "multi-head DC": (lambda: asked(multi, x), multi.evaluations * count),
        "multi-head DC, gradient of the margin": (lambda: slope(multi, x, y), multi.evaluations * count),
        "LM": (lambda: asked(lm, x), lm.steps * count),
        "RDC": (lambda: asked(RDC(lm, single), x), (lm.steps + single.evaluations) * count),
        "certify": (lambda: certify(smoothed, x[0], sigma=0.25, n0=8, n=draws, batch=chunk), smoothed.evaluations * (8 + draws)),
        "training": training(device, min(chunk, 1024)),
    }  # fmt: skip
    if compiler(device):
        works["bare network, compiled"] = bare(load_denoiser(name, device, dtype, compile=True), chunk)
    seconds = alternate(*(run for run, _ in works.values()), rounds=rounds)
    rates = {key: evaluations / s for (key, (_, evaluations)), s in zip(works.items(), seconds, strict=True)}
    more = {"dtype": str(dtype), "device": str(device), "chunk": chunk}
    return {
        f"evaluations a second, {key}": row(rate, ratio_to_bare=rate / rates["bare network"], **more)
        for key, rate in rates.items()
    }


def bare(denoiser: EDM | MultiHead, chunk: int) -> Work:
    """One evaluation of the raw network for each of ``chunk`` images."""
    parameter = next(denoiser.parameters())
    z = randn((chunk, *denoiser.shape), 0, like=parameter)
    noise = torch.zeros(chunk, device=z.device)
    label = torch.eye(denoiser.num_classes, device=z.device)[torch.arange(chunk, device=z.device) % denoiser.num_classes]

    def run() -> Tensor:
        with torch.no_grad():
            return denoiser.model(z, noise, label)

    return run, chunk


def asked(model: torch.nn.Module, x: Tensor) -> Tensor:
    """What a model answers, without a graph."""
    with torch.no_grad():
        return model(x)


def slope(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the margin loss, as an attack takes it."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(margin(model(point), y).sum(), point)[0]


def training(device: torch.device, batch: int) -> Work:
    """One step of training, forward and backward, on a batch of its own recipe."""
    config = replace(RECIPES["fashion-mini"], batch=batch, precision="fp32" if device.type == "cpu" else "bf16")
    images = placed(load("fashion-mini", "train"), device)
    run = Run(config, {}, build(config.denoiser).to(device), edm_objective)
    return lambda: run.advance(images), batch


def compiler(device: torch.device) -> bool:
    """Whether :func:`torch.compile` can work here: on the CPU it needs a C++ compiler."""
    return device.type == "cuda" or any(map(shutil.which, ("g++", "clang++")))
