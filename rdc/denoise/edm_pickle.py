"""Checkpoints of EDM (``*.pkl``), read without running anything of them.

Such a file is a pickle of whole modules. A module of EDM's own is a call of
``torch_utils.persistence._reconstruct_persistent_obj`` on a dict with its state and the source of its class, which that function
would execute. Here every name that a pickle asks for is looked up in a short table: what rebuilds tensors and plain containers,
and stand-ins, made anew for every file, that keep the state of a module and can do nothing. A name that is not in it ends the
reading. The tensors are collected from the nested states by name.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
    | https://arxiv.org/abs/2206.00364
    | https://docs.python.org/3/library/pickle.html#restricting-globals
"""

__all__ = ["read_edm_pickle"]

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.denoise.checkpoints import CheckpointError, one_line

KEPT = ("_parameters", "_buffers", "_modules")
DROPPED = "resample_filter"  # a fixed buffer


class Refused(pickle.UnpicklingError):
    """A pickle asks for a name that is not in the table."""


class Reader(pickle.Unpickler):
    """An unpickler that knows a few names and runs nothing else."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.table = stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        if (module, name) in self.table:
            return self.table[module, name]
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return self.table["torch.nn", "Module"]
        raise Refused(f"it asks for {module}.{name}"[:200])

    def persistent_load(self, pid: Any) -> Any:
        """Nothing lies outside the file."""
        raise Refused("it refers to what is not in the file")


def stand_ins() -> dict[tuple[str, str], Any]:
    """The table of names, with stand-ins of its own: a file that tampers with them tampers with nothing else."""

    class Module:
        """Keeps the state of a module, and the name of its class."""

        name: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Dict(dict):  # type: ignore[type-arg]
        """A dict whose class had another name."""

        def __setstate__(self, state: Any) -> None:
            pass

    class Number:
        """A number of NumPy, or its type: a factor of a block, which follows from the kind of network."""

        def __init__(self, *given: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            pass

    def persistent(meta: Any) -> Any:
        found = Module()
        found.state, found.name = meta.get("state"), meta.get("class_name")
        return found

    def storage(data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def tensor(memory: Any, offset: int, size: Any, stride: Any, *more: Any) -> Tensor:
        size, stride = tuple(size), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if math.prod(size) else offset - 1
        made = torch.empty(0, dtype=memory.dtype, device="cpu")
        if min((offset, *size, *stride)) < 0 or last >= memory._untyped_storage.nbytes() // made.element_size():
            raise Refused("a tensor reaches beyond its memory")
        return made.set_(memory._untyped_storage, offset, size, stride).clone()

    def parameter(data: Tensor, *more: Any) -> Tensor:
        return data

    return {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): persistent,
        ("torch.nn", "Module"): Module,
        ("dnnlib.util", "EasyDict"): Dict,
        ("numpy", "dtype"): Number,
        ("numpy.core.multiarray", "scalar"): Number,  # the name before NumPy 2
        ("numpy._core.multiarray", "scalar"): Number,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.storage", "_load_from_bytes"): storage,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
    }


def read_edm_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the averaged network of a file, by name, and the keyword arguments with which it was made.

    Among these are ``precond`` and ``model_type``, the names of its class and of that of the network in it.

    Raises:
        CheckpointError: if the file is missing, no such pickle, or asks for anything else, with one line that names it.
    """
    try:
        found = Reader(io.BytesIO(path.read_bytes())).load()
        network = found["ema"]
        tensors = dict(collect(network.state, ""))
        names = {"precond": str(network.name), "model_type": str(network.state["_modules"]["model"].name)}
        arguments = {**network.state["_init_kwargs"], **names}
    except Refused as error:
        raise CheckpointError(f"{path} is refused, and nothing of it was run: {one_line(error)}") from error
    except Exception as error:  # whatever a made-up file can lead to
        raise CheckpointError(f"{path} is no checkpoint of EDM: {type(error).__name__}, {one_line(error)}"[:400]) from error
    return tensors, arguments


def collect(state: dict[str, Any], prefix: str) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of the state of a module and those inside it, by name; fixed filters are left out."""
    found = []
    for kind in KEPT:
        for name, value in state.get(kind, {}).items():
            if kind == "_modules" and value is not None:
                found += collect(value.state, f"{prefix}{name}.")
            elif isinstance(value, Tensor) and name != DROPPED:
                found.append((prefix + name, value))
    return found
