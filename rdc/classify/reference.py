"""The reference networks of the book: for each data set one undefended network and two that were trained against an attack.

| ``cnn``      cross-entropy on clean images
| ``at-linf``  adversarial training in an Linf ball (Madry et al., 2018)
| ``at-l2``    the same in an L2 ball

Those of the digits and of Fashion-MNIST are CNNs and come with the package; :mod:`rdc.train.reference` holds the recipes that
made them. Those of CIFAR-10 are wide residual networks (:mod:`rdc.train.colour`). What they withstand is in the experiments
``reference`` and ``cifar10-suite``, and on the card beside each file.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
"""

__all__ = [
    "KINDS",
    "NetworkConfig",
    "build_network",
    "load_reference",
    "reference_network",
    "save_reference",
    "shipped_references",
]

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdc.classify.networks import CNN
from rdc.classify.wide_resnet import WideResNet
from rdc.denoise.checkpoints import ASSETS, CheckpointError, filled, parsed, read_checkpoint, write_checkpoint
from rdc.quantities import count

KIND = "reference network"
KINDS = ("cnn", "at-linf", "at-l2")
SHIPPED = ASSETS.parent / "references"
#: Data sets with a recipe for each kind, and those that the networks of another one serve.
DATA = ("digits", "fashion-mini", "cifar10")
SERVED = {"fashion": "fashion-mini", "cifar10-20": "cifar10"}


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
    """Return a network in its first state; the global random state is left as it was.

    Raises:
        ValueError: if a size is not positive, there are fewer than two classes, or there is no network of that depth.
    """
    channels, side, width = (count(getattr(config, name), name) for name in ("channels", "resolution", "width"))
    shape, classes = (channels, side, side), count(config.num_classes, "num_classes", least=2)
    return WideResNet(shape, classes, config.depth, width, seed) if config.depth else CNN(shape, classes, width, seed)


def reference_file(kind: str, data: str) -> Path:
    """Return where the file of a network is, or would be."""
    return SHIPPED / f"{SERVED.get(data, data)}-{kind}.safetensors"


def reference_network(kind: str, data: str = "fashion-mini", device: str | torch.device = "cpu") -> nn.Module:
    """Load a network that comes with the package, in evaluation mode, its parameters frozen.

    Arguments:
        kind: ``cnn``, ``at-linf`` or ``at-l2``.
        data: ``digits``, ``fashion-mini`` (also for ``fashion``) or ``cifar10`` (also for ``cifar10-20``).
        device: Where the network shall live.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, 10)``.

    Raises:
        CheckpointError: if there is no such network, with the command that makes its file if there is one; if the file is damaged
            (its hash is checked).
    """
    path, known = reference_file(kind, data), SERVED.get(data, data)
    if not path.exists() and kind in KINDS and known in DATA:
        raise CheckpointError(f"no file {path}; 'rdc train classifier --recipe {kind} --data {known} --out {path}' makes it")
    if not path.exists():
        shipped = ", ".join(shipped_references()) or "none"
        raise CheckpointError(f"no reference network {kind!r} for {data!r}; there are {shipped}")
    return load_reference(path, device)


def load_reference(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a network from a file of :func:`save_reference`, float32, in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: if the file is missing, damaged or something else, or if its weights do not fit its configuration or are
            NaN or infinite.
    """
    path = Path(path)
    tensors, meta = read_checkpoint(path, KIND)
    config = parsed(NetworkConfig, meta["config"], path)
    return filled(lambda: build_network(config), tensors, path, part="").to(device).eval().requires_grad_(False)


def save_reference(path: Path, network: CNN | WideResNet, data: str, half: bool = False, **info: Any) -> None:
    """Write a network with its configuration and ``info``, JSON, whole or not at all.

    Arguments:
        path: A ``.safetensors`` file.
        network: The network.
        data: Data set it was trained on.
        half: Whether the weights are stored in float16, which rounds them.
        info: What else its header shall say.
    """
    wide = (network.depth, network.widen) if isinstance(network, WideResNet) else (0, network.conv1.out_channels)
    config = NetworkConfig(*network.shape[:2], network.num_classes, *wide, data)
    tensors = {name: value.half() if half else value for name, value in network.state_dict().items()}
    write_checkpoint(path, tensors, kind=KIND, config=asdict(config), **info)


def shipped_references() -> list[str]:
    """Names ``data-kind`` of the networks that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
