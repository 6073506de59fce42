"""Networks that are trained to be compared with each other, by name: ways to train heads, and sizes of a network.

Those of :data:`HEADS` have the same steps, batch and learning rate, and, but for the last layer, the network of the shipped
denoiser of the digits. Those of :data:`SIZES` are trained for a number of steps that took about four minutes on two CPU cores.

Reference: Robust Classification via a Single Diffusion Model (Chen et al., 2024), Algorithm 2, appendix B.1
"""

__all__ = ["HEADS", "SIZES", "recipe", "trained"]

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.edm import EDM, EDMConfig
from rdc.denoise.multihead import MultiHead
from rdc.denoise.unet import UNetConfig
from rdc.train.denoiser import TrainConfig, train_denoiser
from rdc.train.heads import DistilConfig, distil
from rdc.train.recipes import DIGITS_UNET, FASHION_UNET

WIDE = replace(DIGITS_UNET, label_dim=0, heads=11)  # the same network, with a wider last layer
BRANCH = UNetConfig(8, 1, 0, 48, (1,), 1, (), patch=2, heads=10)
#: Form and objective of the networks with heads, by name.
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "single head": ("single", {}),
    "wide, distilled": ("wide", {"objective": "distil", "teacher": "digits"}),
    "wide, distilled, reweighted": ("wide", {"objective": "distil", "teacher": "digits", "gamma": 0.05}),
    "wide, from scratch": ("wide", {"objective": "denoise"}),
    "wide, cross-entropy": ("wide", {"objective": "cross-entropy", "levels": 4}),
    "branch, distilled": ("branch", {"objective": "distil", "teacher": "digits"}),
    "branch, distilled, reweighted": ("branch", {"objective": "distil", "teacher": "digits", "gamma": 0.05}),
}
PIXELS = UNetConfig(resolution=28, channels=1, model_channels=16, channel_mult=(1, 2, 4), num_blocks=1, attn_resolutions=(7,))
PATCHES = replace(PIXELS, model_channels=64, channel_mult=(1,), num_blocks=2, attn_resolutions=(), patch=4)
#: Network and optimiser steps of the sizes, by name.
SIZES = {"patch 1, width 16": (PIXELS, 800), "patch 2, width 32": (FASHION_UNET, 1400), "patch 4, width 64": (PATCHES, 2500)}


def recipe(name: str, data: str, steps: int | None = None) -> TrainConfig | DistilConfig:
    """Return a recipe.

    Arguments:
        name: One of :data:`HEADS`, for the digits, or of :data:`SIZES`.
        data: The data set to train on, all of it.
        steps: Optimiser steps, if not those of the comparison.

    Raises:
        ValueError: if there is none, in one line.
    """
    if name in SIZES:
        unet, usual = SIZES[name]
        config = TrainConfig(EDMConfig(unet, 0.7, "fashion"), steps or usual, lr=1e-3, warmup=200, p_mean=-0.4, precision="bf16")
        small = EDMConfig(replace(unet, resolution=8), 0.7, data)
        return config if data != "digits" else replace(config, denoiser=small, batch=32, precision="fp32")
    if name not in HEADS or data != "digits":
        raise ValueError(f"no recipe {name!r} for {data}; there are {', '.join(SIZES)}, and for the digits {', '.join(HEADS)}")
    form, given = HEADS[name]
    network = EDMConfig(WIDE if form == "wide" else DIGITS_UNET, 0.75, data, BRANCH if form == "branch" else None)
    config = TrainConfig(network, steps or 700, 32, 2e-3, warmup=50, ema=0.99, p_mean=-0.2, p_std=1.4)
    return config if form == "single" else DistilConfig(config, **given)


@cache
def trained(name: str, data: str, steps: int | None = None, device: str | torch.device = "cpu") -> EDM | MultiHead:
    """Train the network of a :func:`recipe`, once in a process, and return it in 32-bit numbers."""
    chosen = recipe(name, data, steps)
    source = (chosen.train if isinstance(chosen, DistilConfig) else chosen).denoiser.data
    with TemporaryDirectory() as folder:
        out, images = Path(folder, "network.safetensors"), load(source, "train")
        if isinstance(chosen, DistilConfig):
            distil(chosen, out, device, images, quiet=True)
        else:
            train_denoiser(chosen, out, device, images, quiet=True)
        return load_denoiser(out, device)
