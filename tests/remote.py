"""An accelerator that needs no hardware: tensors that carry values, live on device ``meta``, and mix with nothing on the CPU.

Within :class:`Accelerator` the device ``meta`` computes: a tensor there is a :class:`Remote`, which holds its values in a CPU
tensor that nobody else sees. What CUDA raises is raised here: two devices in one operation, a generator of the CPU for a draw
elsewhere, ``numpy()``. What CUDA allows is allowed: scalars of the CPU, CPU indices into a remote tensor, copies. What makes
the CPU wait for CUDA is counted: reading a value (:attr:`Accelerator.waits`), and sending one (:attr:`Accelerator.uploads`).
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

REMOTE = torch.device("meta")
aten = torch.ops.aten
#: Operations whose result has a size, or is a number, that depends on values: CUDA is waited for.
READING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
#: Operations that take an index or a list of tensors, for which a scalar of the CPU is as bad as any other tensor.
STRICT = {
    "cat",
    "stack",
    "gather",
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "index_select",
    "embedding",
    "mm",
    "bmm",
}
#: Operations that take indices, which may lie on the CPU.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Remote(Tensor):
    """A tensor on the accelerator."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "Remote":
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=REMOTE
        )
        made.values_here = values
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Remote({self.values_here})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else super().__format__(spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a remote tensor outside the accelerator")


class Accelerator(TorchDispatchMode):
    """Within the block the device ``meta`` computes; see the module.

    Attributes:
        waits: How often each operation made the CPU wait for a value.
        uploads: How often values were sent without ``non_blocking``, which makes CUDA wait as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._open = ExitStack()

    def forget(self) -> None:
        """Count from zero."""
        self.waits.clear()
        self.uploads.clear()

    def __enter__(self) -> "Accelerator":
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        for name in ("tensor", "as_tensor"):
            self._open.enter_context(mock.patch.object(torch, name, _sent(getattr(torch, name))))
        self._open.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        flat, spec = tree_flatten((args, kwargs))
        remote = any(isinstance(a, Remote) for a in flat)
        device = kwargs.get("device")
        target = remote if device is None else torch.device(device).type == "meta"
        if not remote and not target:
            return func(*args, **kwargs)
        self._check(func, name, args, kwargs, flat, remote, target)
        if remote and (name in READING or self._reads(name, args, kwargs, target)):
            self.waits[name] += 1
        if target and not remote and name == "_to_copy" and not kwargs.get("non_blocking"):
            self.uploads[name] += 1
        inner, inner_kwargs = tree_unflatten([_values(a) for a in flat], spec)
        if device is not None:
            inner_kwargs["device"] = torch.device("cpu")
        if name == "_to_copy":  # a copy, also where devices differ by name only
            inner_kwargs.pop("non_blocking", None)
        found = func(*inner, **inner_kwargs)
        if name.endswith("_") and not name.endswith("__") and not name.startswith("_foreach"):
            if torch.Tag.inplace_view in func.tags:  # unsqueeze_: the shape changes as well
                with no_dispatch():
                    func(*args, **kwargs)
            return args[0]
        if kwargs.get("out") is not None:
            return kwargs["out"]
        return tree_map(lambda t: Remote(t) if type(t) is Tensor else t, found) if target else found

    def _check(self, func: Any, name: str, args: Any, kwargs: Any, flat: list[Any], remote: bool, target: bool) -> None:
        """Raise what CUDA raises."""
        if target and any(isinstance(a, torch.Generator) for a in flat):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
        if not remote or name in ("_to_copy", "copy_"):
            return
        tensors = flat
        if name in INDEXING:
            if not isinstance(args[0], Remote):
                raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu) ({name})")
            tensors = [args[0], *tree_flatten(args[2:])[0]]
        bad = [a for a in tensors if isinstance(a, Tensor) and not isinstance(a, Remote) and (a.ndim > 0 or name in STRICT)]
        if bad and not name.startswith("_foreach"):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func}, "
                f"{tuple(bad[0].shape)} {bad[0].dtype} on the CPU)"
            )
        inplace = name.endswith("_") and not name.endswith("__")
        if inplace and isinstance(args[0], Tensor) and not isinstance(args[0], Remote):
            raise RuntimeError(f"output with device cpu doesn't match the device of the result ({name})")

    @staticmethod
    def _reads(name: str, args: Any, kwargs: Any, target: bool) -> bool:
        """Whether a copy comes back, or a mask becomes indices."""
        if name == "_to_copy":
            return not target
        if name == "copy_":
            return isinstance(args[1], Remote) and not isinstance(args[0], Remote)
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            fills = name.startswith("index_put") and args[2].numel() == 1 and len(masks) == len(args[1])
            return bool(masks) and not fills
        return False


def _sent(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` or ``torch.as_tensor``, which for ``meta`` forget the values before anybody is asked."""

    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
        if device is None or torch.device(device).type != "meta" or isinstance(data, Remote):
            return make(data, *args, device=device, **options)
        return make(data, *args, device="cpu", **options).to(REMOTE)

    return made


class _Autocast(torch.autocast):
    """``torch.autocast``, which does not know ``meta``."""

    def __init__(self, device_type: str, *args: Any, **options: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *args, **options)


def _values(a: Any) -> Any:
    return a.values_here if isinstance(a, Remote) else a


def moved(value: Any, device: torch.device | str) -> Any:
    """A tree of tensors, modules and whatever else has ``to``, on a device."""
    return tree_map(lambda v: v.to(device) if hasattr(v, "to") else v, value)


def on(accelerator: Accelerator, run: Callable[..., Any], *args: Any) -> Any:
    """``run`` on the accelerator, what it returns on the CPU."""
    with accelerator:
        return moved(run(*moved(args, REMOTE)), "cpu")
