"""Weights on disk: safetensors with the configuration and a hash of the tensors, written atomically, no pickle.

A checkpoint holds named tensors and one JSON header ``{"kind", "config", "tensors_sha256", ...}``.
"""

__all__ = ["CheckpointError", "load_denoiser", "read_checkpoint", "write_checkpoint"]

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rdc.denoise.edm import EDM, EDMConfig, build
from rdc.denoise.multihead import MultiHead, build_multihead
from rdc.denoise.unet import UNetConfig
from rdc.runs.record import write_atomic

ASSETS = Path(__file__).parents[1] / "assets" / "checkpoints"
#: One network serves the data set and its subset.
ALIASES = {"fashion": "fashion-mini", "fashion-multihead": "fashion-mini-multihead"}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or for something else; the message says which and what to do."""


def load_denoiser(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    data: str | None = None,
) -> EDM | MultiHead:
    """Load a trained denoiser, ready for evaluation (no parameter requires a gradient).

    Arguments:
        name: A shipped checkpoint (``digits``, ``fashion-mini``, ``fashion-mini-multihead``) or the path of a
            ``.safetensors`` file. A multi-head network comes back as :class:`rdc.denoise.MultiHead`.
        device: Where the network shall live.
        dtype: Type of the network's parameters; inputs and outputs keep their own (see :class:`rdc.denoise.EDM`).
        data: If given, the data set that the checkpoint must be for; ``fashion-mini`` is part of ``fashion``.

    Raises:
        CheckpointError: if the file is missing, damaged, not a denoiser, or for another data set.
    """
    path = locate(name)
    tensors, meta = read_checkpoint(path, "denoiser")
    config = parse_config(meta["config"], path)
    if data is not None and config.data.removesuffix("-mini") != data.removesuffix("-mini"):
        raise CheckpointError(
            f"{path} is a denoiser for data set {config.data!r}, not {data!r}; train one with 'rdc train denoiser'"
        )
    denoiser = build_multihead(config) if config.multihead else build(config)
    try:
        denoiser.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own configuration: {str(error).splitlines()[-1].strip()}") from error
    return denoiser.to(device=device, dtype=dtype).eval().requires_grad_(False)


def locate(name: str | Path) -> Path:
    """The file of a shipped checkpoint, or the path itself.

    Raises:
        CheckpointError: if it is neither a shipped checkpoint nor a ``.safetensors`` file.
    """
    name = ALIASES.get(str(name), name)
    path = ASSETS / f"{name}.safetensors" if str(name) in shipped() else Path(name)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"unknown checkpoint {str(name)!r}; there are {', '.join(shipped())}, or give a .safetensors file")
    return path


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(p.stem for p in ASSETS.glob("*.safetensors"))


def save_denoiser(path: Path, denoiser: EDM | MultiHead, tensors: dict[str, Tensor] | None = None, **info: Any) -> None:
    """Write the parameters of a denoiser (or ``tensors`` in their place) with its configuration and ``info``."""
    tensors = denoiser.model.state_dict() if tensors is None else tensors
    write_checkpoint(path, tensors, kind="denoiser", config=asdict(denoiser.config), **info)


def parse_config(config: dict[str, Any], path: Path) -> EDMConfig:
    """The configuration of a denoiser from the JSON header of its checkpoint."""
    try:
        unets = {key: config[key] for key in ("unet", "branch") if config.get(key)}
        parsed = {
            key: UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in u.items()}) for key, u in unets.items()
        }
        return EDMConfig(**{**config, **parsed})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a configuration that this version does not know: {error}") from error


def parse_unet(config: dict[str, Any]) -> UNetConfig:
    """The configuration of a network; JSON has lists where it has tuples."""
    return UNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint of a given kind, after checking its hash.

    The file is read once, so that one that is replaced meanwhile is the old or the new one.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}; the shipped ones are {', '.join(shipped())}")
    try:
        data = path.read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header.get("__metadata__", {}).get("rdc", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({error}); restore it or train again") from error
    if meta.get("kind") != kind:
        raise CheckpointError(f"{path} holds {meta.get('kind') or 'something else'}, not a {kind}")
    if meta["tensors_sha256"] != tensors_sha256(tensors):
        raise CheckpointError(f"{path} is damaged: its tensors do not have the sha256 {meta['tensors_sha256']}; restore it")
    return tensors, meta


def write_checkpoint(path: Path, tensors: dict[str, Tensor], **meta: Any) -> None:
    """Write tensors and header to a temporary file and rename it: the file is whole or absent."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"rdc": json.dumps({**meta, "tensors_sha256": tensors_sha256(tensors)})}
    write_atomic(path, save(tensors, header))


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
