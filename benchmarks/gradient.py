"""The gradient of the diffusion classifier around a trained network: seconds, memory, and against its plain form."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import alternate, row
from rdc.attack.losses import margin
from rdc.autograd import value_and_gradient
from rdc.classify import DiffusionClassifier
from rdc.classify.denoising_loss import denoising_error
from rdc.data import load
from rdc.denoise import fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.noise_source import Noise
from rdc.schedule import levels

IMAGES, LEVELS, CHUNK = 4, 16, 32
MEMORY_LEVELS = (8, 32, 126)


def gradient(rounds: int, device: torch.device, name: str) -> dict[str, Any]:
    """One attack step in the fast precision; the speed-up over the plain form in float32 on the CPU; peak memory."""
    test = load("fashion-mini", "test")
    x, y = test.x[:IMAGES], test.y[:IMAGES]
    dtype = fast_dtype(device)
    fast = DiffusionClassifier(load_denoiser(name, device, dtype), levels("elbo", LEVELS), chunk=CHUNK)
    there, labels = x.to(device), y.to(device)
    (step,) = alternate(lambda: value_and_gradient(lambda p: margin(fast(p), labels), there), rounds=rounds)
    more = {"levels": LEVELS, "chunk": CHUNK, "images_a_batch": IMAGES}
    found = {"seconds an attack step and image": row(step / IMAGES, loss="margin", dtype=str(dtype), **more)}
    single = DiffusionClassifier(load_denoiser(name), levels("elbo", LEVELS), chunk=CHUNK)

    def ours() -> Tensor:
        return value_and_gradient(lambda p: margin(single(p), y), x)[1]

    forms = {
        "gradient: plain form / two-pass, fp32 CPU": (False, 1.5),
        "gradient: K T at once / two-pass, fp32 CPU": (True, None),
    }
    runs = [lambda at_once=at_once: plain(single, x, y, at_once) for at_once, _ in forms.values()]
    two, *others = alternate(ours, *runs, rounds=rounds)
    for (key, (at_once, limit)), run, seconds in zip(forms.items(), runs, others, strict=True):
        expected = run()
        error = float((ours() - expected).abs().max() / expected.abs().max())
        note = "autograd through every class, one image at a time; a batch is "
        note += "all levels and classes of an image" if at_once else "all levels of an image and a class"
        note = {"plain_form": note, "relative_difference": error, "device": "cpu", "dtype": "torch.float32"}
        found[key] = row(seconds / two, limit, at_most=False, loss="margin", **note, **more)
    return {**found, **memory(name)}


def plain(model: DiffusionClassifier, x: Tensor, y: Tensor, at_once: bool = False) -> Tensor:
    """The gradient of the margin as the formula stands: autograd through the T levels of every class, image after image.

    A batch is the levels of one class, or the levels of all classes; the graph of an image is kept until its backward pass.
    """
    slopes, count = [], len(model.levels)
    cells = torch.arange(count * model.num_classes)
    eps = Noise(model.seed).table(model.denoiser.shape, [(0,)], range(count), 1)[0, 0].to(x)
    for image, true in zip(x.split(1), y.split(1), strict=True):
        point = image.clone().requires_grad_()
        errors = []
        for part in cells.split(len(cells) if at_once else count):
            label, level = part // count, part % count
            z, sigma = to_model(point).expand(len(part), -1, -1, -1), model.levels.sigma.to(x)[level]
            errors.append(denoising_error(model.denoiser, z, sigma, eps[level], label))
        logits = -(torch.cat(errors).reshape(model.num_classes, count) * model.levels.weight.to(x)).sum(1)
        slopes.append(torch.autograd.grad(margin(logits[None], true).sum(), point)[0])
    return torch.cat(slopes)


def memory(name: str) -> dict[str, Any]:
    """Peak resident memory of a fresh process that takes one gradient with few, more and many levels."""
    more = {"chunk": CHUNK, "images_a_batch": IMAGES, "dtype": "torch.float32", "device": "cpu"}
    peaks = {count: peak_of("dc", count, name) for count in MEMORY_LEVELS}
    found = {f"peak memory of a gradient, T = {t}, MiB": row(p, above_the_model=p - base) for t, (p, base) in peaks.items()}
    found |= ratio("peak memory", peaks[MEMORY_LEVELS[-1]], peaks[MEMORY_LEVELS[0]], MEMORY_LEVELS[-1], MEMORY_LEVELS[0], more)
    for kind in ("epndc", "apndc"):
        found |= ratio(f"peak memory of {kind.upper()}", peak_of(kind, 64, name), peak_of(kind, 4, name), 64, 4, more)
    return found


def ratio(
    what: str, many: tuple[float, float], few: tuple[float, float], t_many: int, t_few: int, more: dict[str, Any]
) -> dict[str, Any]:
    """The row of a ratio of peaks, each ``(peak, before the gradient)``."""
    above = (many[0] - many[1]) / (few[0] - few[1])
    return {f"{what}, T = {t_many} / T = {t_few}": row(many[0] / few[0], 1.1, ratio_above_the_model=above, **more)}


def peak_of(kind: str, count: int, name: str) -> tuple[float, float]:
    """Peak of a fresh process in MiB, and the peak before its gradient."""
    command = [sys.executable, "-m", "benchmarks.memory", str(count), str(IMAGES), str(CHUNK), name, kind]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    peak, before = json.loads(run.stdout)
    return peak, before
