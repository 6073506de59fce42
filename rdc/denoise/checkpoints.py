"""Weights on disk: safetensors with the configuration and a hash of the tensors, written atomically, no pickle.

A checkpoint holds named tensors and one JSON header ``{"kind", "config", "tensors_sha256", ...}``.
"""

__all__ = ["CheckpointError", "load_denoiser", "read_checkpoint", "write_checkpoint"]

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rdc.denoise.base import compiled
from rdc.denoise.configuration import from_json
from rdc.denoise.edm import EDM, EDMConfig, build
from rdc.denoise.multihead import MultiHead, build_multihead
from rdc.runs.record import write_atomic

ASSETS = Path(__file__).parents[1] / "assets" / "checkpoints"
#: One network serves the data set and its subset.
ALIASES = {"fashion": "fashion-mini", "fashion-multihead": "fashion-mini-multihead"}
PART = re.compile("-(mini|20)$")  # of the name of a subset
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What safetensors and json raise on bytes that are no checkpoint.
MALFORMED = (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError)

Config = TypeVar("Config")
Network = TypeVar("Network", bound=torch.nn.Module)


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or for something else; the message says which and what to do."""


def load_denoiser(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    data: str | None = None,
    compile: bool = False,
) -> EDM | MultiHead:
    """Load a trained denoiser, ready for evaluation (no parameter requires a gradient).

    Arguments:
        name: A shipped checkpoint (``digits``, ``fashion-mini``, ``fashion-mini-multihead``, ``cifar10-small``) or the path of a
            ``.safetensors`` file. A multi-head network comes back as :class:`rdc.denoise.MultiHead`.
        device: Where the network shall live.
        dtype: Type of the network's parameters; inputs and outputs keep their own (see :class:`rdc.denoise.EDM`).
        data: If given, the data set that the checkpoint must be for; ``fashion-mini`` is part of ``fashion``, ``cifar10-20`` of
            ``cifar10``.
        compile: Whether to compile the network (:func:`rdc.denoise.compiled`).

    Raises:
        CheckpointError: if the file is missing, damaged, not a denoiser, or for another data set, or if its weights do not
            fit its configuration or are not finite.
    """
    path = locate(name)
    tensors, meta = read_checkpoint(path, "denoiser")
    config = parsed(EDMConfig, meta["config"], path)
    if data is not None and PART.sub("", config.data) != PART.sub("", data):
        raise CheckpointError(
            f"{path} is a denoiser for data set {config.data!r}, not {data!r}; train one with 'rdc train denoiser'"
        )
    denoiser = filled(lambda: build_multihead(config) if config.multihead else build(config), tensors, path)
    denoiser = denoiser.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return compiled(denoiser) if compile else denoiser


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


def filled(make: Callable[[], Network], tensors: dict[str, Tensor], path: Path, part: str = "model") -> Network:
    """Return the network that ``make`` builds, its attribute ``part`` (empty: all of it) filled with ``tensors``.

    It is built without memory first, so that a header that lies about its size costs nothing.

    Raises:
        CheckpointError: if no network can be built, or the tensors do not fit it (:func:`check_fit`).
    """
    try:
        with torch.device("meta"):
            wanted = make().get_submodule(part).state_dict()
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path} has a configuration of which no network can be built: {one_line(error)}") from error
    check_fit(wanted, tensors, path)
    network = make()
    network.get_submodule(part).load_state_dict(tensors)
    return network


def check_fit(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    """Check that ``tensors``, read from ``path``, can take the place of those ``wanted``; any two types of floats can.

    Raises:
        CheckpointError: if a tensor is missing, left over, or of another shape or type; if an entry is NaN or infinite.
    """
    misfit = f"{path} does not fit its own configuration: the tensor"
    if names := sorted(wanted.keys() ^ tensors.keys()):
        raise CheckpointError(
            f"{misfit} {names[0]} is {'left over' if names[0] in tensors else 'missing'}, of {len(names)} in all"
        )
    for name, tensor in tensors.items():
        want = wanted[name]
        if tensor.shape != want.shape or (tensor.dtype not in FLOATS if want.dtype in FLOATS else tensor.dtype != want.dtype):
            given, due = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, want))
            raise CheckpointError(f"{misfit} {name} is {given}, not {due}")
        if not bool(torch.isfinite(tensor.to(want.dtype)).all()):
            raise CheckpointError(f"{path} holds weights that are NaN or infinite, in {name}; restore it or train again")


def parsed(kind: type[Config], stored: Any, path: Path) -> Config:
    """Return a configuration from the JSON header of a checkpoint (:func:`rdc.denoise.configuration.from_json`).

    Raises:
        CheckpointError: if a field is unknown, or of another type or range.
    """
    try:
        return from_json(kind, stored)
    except ValueError as error:
        raise CheckpointError(f"{path} has a configuration that this version does not know: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the last line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and header of a checkpoint of a given kind, after checking its hash.

    The file is read once, so that one that is replaced meanwhile is the old or the new one.

    Raises:
        CheckpointError: if the file is missing, unreadable or damaged, or of another kind.
    """
    try:
        if not path.exists():
            raise CheckpointError(f"no checkpoint {path}; the shipped ones are {', '.join(shipped())}")
        data = path.read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        if "rdc" not in header.get("__metadata__", {}):
            raise CheckpointError(f"{path} holds something else, not a {kind} of this package")
        meta = json.loads(header["__metadata__"]["rdc"])
    except CheckpointError:
        raise
    except (*MALFORMED, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({one_line(error)}); restore it or train again") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict) or not isinstance(meta.get("tensors_sha256"), str):
        raise CheckpointError(f"{path} is not a readable checkpoint (its header lacks config or tensors_sha256); train again")
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
        digest.update(t.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
