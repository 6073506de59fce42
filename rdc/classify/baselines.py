"""Networks to compare a defence with, trained once and shipped: what a file holds, and how it is read.

| ``trades-linf``, ``trades-l2``  TRADES (Zhang et al., 2019)
| ``mart-linf``, ``mart-l2``      MART (Wang et al., 2020)
| ``at-linf-generated``, ``at-l2-generated``  adversarial training, half of each batch sampled from our own denoiser
| ``wrn-linf``                    a wide residual network, adversarially trained (Zagoruyko and Komodakis, 2016);
                                  shipped for the digits only
| ``jem``                         a classifier that is also an energy-based model (Grathwohl et al., 2020)

:mod:`rdc.train.baselines` holds the recipes; the experiment ``baselines`` says what the networks withstand. The CNN of all of
them is that of :mod:`rdc.classify.reference`.
"""

__all__ = ["BASELINES", "SHIPPED", "NetworkConfig", "baseline_network", "build_network", "load_baseline", "shipped_baselines"]

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rdc.classify.networks import CNN
from rdc.classify.wide_resnet import WideResNet
from rdc.denoise.checkpoints import ASSETS, CheckpointError, filled, parsed, read_checkpoint

KIND = "baseline"
BASELINES = (
    "trades-linf", "trades-l2", "mart-linf", "mart-l2", "at-linf-generated", "at-l2-generated", "wrn-linf", "jem",
)  # fmt: skip
SHIPPED = ASSETS.parent / "baselines"


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a network, and the data set it is for."""

    channels: int = 1  # of an image
    resolution: int = 28  # height and width, pixels
    num_classes: int = 10
    depth: int = 0  # of a wide residual network; 0: the CNN
    width: int = 16  # channels of the CNN's first layer; the factor of a wide residual network
    data: str = ""


def build_network(config: NetworkConfig, seed: int = 0) -> nn.Module:
    """Return a network in its first state; the global random state is left as it was."""
    shape = (config.channels, config.resolution, config.resolution)
    if config.depth:
        return WideResNet(shape, config.num_classes, config.depth, config.width, seed)
    return CNN(shape, config.num_classes, config.width, seed)


def baseline_network(kind: str, data: str = "fashion-mini", device: str | torch.device = "cpu") -> nn.Module:
    """Load a network that comes with the package, in evaluation mode, its parameters frozen.

    Arguments:
        kind: One of ``BASELINES``.
        data: ``digits`` or ``fashion-mini``; that of ``fashion-mini`` serves ``fashion``, too.
        device: Where the network shall live.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, 10)``.

    Raises:
        CheckpointError: if there is no such network, or its file is damaged (its hash is checked).
    """
    name = f"{'fashion-mini' if data == 'fashion' else data}-{kind}"
    if name not in shipped_baselines():
        raise CheckpointError(f"no baseline {kind!r} for {data!r}; there are {', '.join(shipped_baselines()) or 'none'}")
    return load_baseline(SHIPPED / f"{name}.safetensors", device)


def load_baseline(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a network from a file of :func:`rdc.train.baselines.train_baseline`, in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: if the file is missing, damaged or something else, or if its weights do not fit its configuration or are
            NaN or infinite.
    """
    path = Path(path)
    tensors, meta = read_checkpoint(path, KIND)
    config = parsed(NetworkConfig, meta["config"], path)
    return filled(lambda: build_network(config), tensors, path, part="").to(device).eval().requires_grad_(False)


def shipped_baselines() -> list[str]:
    """Names ``data-kind`` of the networks that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
