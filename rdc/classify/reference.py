"""The reference networks of the book: for each small data set one undefended CNN and two that were trained against an attack.

| ``cnn``      cross-entropy on clean images
| ``at-linf``  adversarial training in an Linf ball (Madry et al., 2018)
| ``at-l2``    the same in an L2 ball

The weights come with the package; :mod:`rdc.train.reference` holds the recipes that made them. What they withstand is in
the experiment ``reference``, and on the card beside each file.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
"""

__all__ = ["CNNConfig", "KINDS", "load_reference", "reference_network", "save_reference", "shipped_references"]

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rdc.classify.networks import CNN
from rdc.denoise.checkpoints import ASSETS, CheckpointError, filled, parsed, read_checkpoint, write_checkpoint
from rdc.quantities import count

KIND = "reference network"
KINDS = ("cnn", "at-linf", "at-l2")
SHIPPED = ASSETS.parent / "references"


@dataclass(frozen=True)
class CNNConfig:
    """What it takes to build a :class:`rdc.classify.CNN`, and the data set it is for."""

    channels: int = 1  # of an image
    resolution: int = 28  # height and width, pixels
    num_classes: int = 10
    width: int = 32  # channels of the first layer
    data: str = ""


def build_cnn(config: CNNConfig, seed: int = 0) -> CNN:
    """Return a network in its first state; the global random state is left as it was.

    Raises:
        ValueError: if a size is not positive, or there are fewer than two classes.
    """
    sizes = {name: count(getattr(config, name), name) for name in ("channels", "resolution", "width")}
    classes = count(config.num_classes, "num_classes", least=2)
    return CNN((sizes["channels"], sizes["resolution"], sizes["resolution"]), classes, sizes["width"], seed)


def reference_network(kind: str, data: str = "fashion-mini", device: str | torch.device = "cpu") -> CNN:
    """Load a network that comes with the package, in evaluation mode, its parameters frozen.

    Arguments:
        kind: ``cnn``, ``at-linf`` or ``at-l2``.
        data: ``digits`` or ``fashion-mini``; that of ``fashion-mini`` serves ``fashion``, too.
        device: Where the network shall live.

    Returns:
        Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, 10)``.

    Raises:
        CheckpointError: if there is no such network, or its file is damaged (its hash is checked).
    """
    name = f"{'fashion-mini' if data == 'fashion' else data}-{kind}"
    if name not in shipped_references():
        known = ", ".join(shipped_references()) or "none"
        raise CheckpointError(f"no reference network {kind!r} for {data!r}; there are {known}")
    return load_reference(SHIPPED / f"{name}.safetensors", device)


def load_reference(path: str | Path, device: str | torch.device = "cpu") -> CNN:
    """Load a network from a file of :func:`save_reference`, in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: if the file is missing, damaged or something else, or if its weights do not fit its configuration or are
            NaN or infinite.
    """
    path = Path(path)
    tensors, meta = read_checkpoint(path, KIND)
    config = parsed(CNNConfig, meta["config"], path)
    return filled(lambda: build_cnn(config), tensors, path, part="").to(device).eval().requires_grad_(False)


def save_reference(path: Path, network: CNN, data: str, **info: Any) -> None:
    """Write a network with its configuration and ``info``, JSON, whole or not at all.

    Arguments:
        path: A ``.safetensors`` file.
        network: The network.
        data: Data set it was trained on.
        info: What else its header shall say.
    """
    channels, resolution, _ = network.shape
    config = CNNConfig(channels, resolution, network.num_classes, network.conv1.out_channels, data)
    write_checkpoint(path, network.state_dict(), kind=KIND, config=asdict(config), **info)


def shipped_references() -> list[str]:
    """Names ``data-kind`` of the networks that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
