"""The recipes of the shipped classifiers, which ``rdc train classifier`` repeats, and short ones for comparisons of threats."""

__all__ = ["GUIDES", "short_guide"]

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rdc.data import load
from rdc.denoise.unet import UNetConfig
from rdc.guide.classifier import ClassifierConfig
from rdc.guide.threat import Threat
from rdc.train.guides import GuideConfig, train_guide

FASHION_ENCODER = UNetConfig(
    resolution=28,
    channels=1,
    label_dim=0,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=2,
    attn_resolutions=(7,),
    patch=2,
)
DIGITS_ENCODER = UNetConfig(
    resolution=8, channels=1, label_dim=0, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=()
)
FASHION = GuideConfig(
    ClassifierConfig(FASHION_ENCODER, 10, sigma_data=0.7, data="fashion"), steps=3_000, lr=2e-3, warmup=200, precision="bf16"
)
DIGITS = GuideConfig(
    ClassifierConfig(DIGITS_ENCODER, 10, sigma_data=0.75, data="digits"), steps=1_000, batch=64, lr=2e-3, warmup=100, ema=0.99
)

#: By data set, then ``vanilla`` or ``robust``: as many steps for both. The attack is the paper's, L2 0.5 with 7 steps, as its
#: code reads it.
GUIDES = {
    "fashion-mini": {"vanilla": FASHION, "robust": replace(FASHION, threat=Threat())},
    "digits": {"vanilla": DIGITS, "robust": replace(DIGITS, threat=Threat())},
}


def short_guide(
    data: str,
    threat: Mapping[str, Any] | None,
    seed: int,
    steps: int,
    batch: int,
    device: str = "cpu",
    folder: Path = Path("runs", "guides"),
) -> Path:
    """Return the file of a short training of a guide; it is trained and kept if it is not there.

    That for ``fashion-mini`` is trained on all of Fashion-MNIST.

    Arguments:
        data: Name of a recipe of :data:`GUIDES`.
        threat: Arguments of :class:`rdc.guide.threat.Threat`; None for vanilla training.
        seed: Of the training.
        steps: Optimiser steps.
        batch: Images of a step.
        device: Where to train.
        folder: Where it is kept.
    """
    own = None if threat is None else Threat(**threat)
    short: dict[str, Any] = {"steps": steps, "batch": batch, "warmup": steps // 10, "ema": 0.99, "probe_every": steps}
    config = replace(GUIDES[data]["vanilla"], threat=own, seed=seed, **short)
    name = "vanilla" if own is None else "-".join(f"{value}" for value in vars(own).values())
    path = folder / f"{data}-{name}-{seed}-{steps}x{batch}.safetensors"
    return path if path.exists() else train_guide(config, path, device, held_out=load(data)[:50], quiet=True)
