"""Networks to compare a defence with, trained once and shipped: what a file holds, and how it is read.

| ``trades-linf``, ``trades-l2``  TRADES (Zhang et al., 2019)
| ``mart-linf``, ``mart-l2``      MART (Wang et al., 2020)
| ``at-linf-generated``, ``at-l2-generated``  adversarial training, half of each batch sampled from our own denoiser
| ``wrn-linf``                    a wide residual network, adversarially trained (Zagoruyko and Komodakis, 2016)
| ``jem``                         a classifier that is also an energy-based model (Grathwohl et al., 2020)

:mod:`rdc.train.baselines` holds the recipes; the experiment ``baselines`` says what the networks withstand. The CNN of all of
them is that of :mod:`rdc.classify.reference`.
"""

__all__ = ["BASELINES", "SHIPPED", "baseline_network", "load_baseline", "shipped_baselines"]

from pathlib import Path

import torch
from torch import nn

from rdc.classify.reference import NetworkConfig, build_network
from rdc.denoise.checkpoints import ASSETS, CheckpointError, filled, parsed, read_checkpoint

KIND = "baseline"
BASELINES = (
    "trades-linf", "trades-l2", "mart-linf", "mart-l2", "at-linf-generated", "at-l2-generated", "wrn-linf", "jem",
)  # fmt: skip
SHIPPED = ASSETS.parent / "baselines"


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
