"""Guides by name, as tables call them: what the shipped checkpoints of a data set give."""

__all__ = ["CLASSIFIERS", "checkpoint_files", "load_guide"]

from functools import cache
from pathlib import Path

import torch

from rdc.denoise.checkpoints import load_denoiser, locate, shipped
from rdc.guide.classifier import classifier_file, load_classifier
from rdc.guide.guides import ClassifierGuide, DiffusionGuide, Guide, RatioGuide

#: Time-dependent classifiers that are shipped, for Fashion-MNIST.
CLASSIFIERS = ("vanilla", "robust", "wide")


def heads_of(data: str) -> str:
    """Return the denoiser of a data set that is fastest with all classes: one with many heads, if there is one."""
    return f"{data}-multihead" if f"{data}-multihead" in shipped() else data


def checkpoint_files(name: str, data: str) -> dict[Path, str]:
    """Return the files behind a guide with their kinds, without the denoiser that is guided."""
    if name in CLASSIFIERS:
        return {classifier_file(name, data): "classifier"}
    denoisers = {"classifier-free": data, "diffusion classifier": heads_of(data)}
    return {locate(denoisers[name]): "denoiser"} if name in denoisers else {}


@cache
def load_guide(name: str, data: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Guide | None:
    """Return a guide: ``none``, one of :data:`CLASSIFIERS`, ``classifier-free``, ``diffusion classifier``, or that of a path.

    The diffusion classifier has two levels above that of the image.

    Raises:
        CheckpointError: if there is no such file.
    """
    if name == "none":
        return None
    if name == "classifier-free":
        return RatioGuide(load_denoiser(data, device, dtype))
    if name == "diffusion classifier":
        return DiffusionGuide(load_denoiser(heads_of(data), device, dtype), count=2, chunk=2560)
    return ClassifierGuide(load_classifier(classifier_file(name, data), device, dtype, data))
