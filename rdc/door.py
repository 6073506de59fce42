"""The one door to a model: whoever wants logits of it asks here, and no number is made from what is no number.

A :class:`Door` opens a model for a while::

    with Door(model) as door:
        logits = door(x, y)

While it is open the model is in evaluation mode, whatever mode it was in; afterwards it is as it was, and its statistics have not
moved. The caller's autograd mode does not matter: ``no_grad`` and ``inference_mode`` end here. The model never gets the caller's
own tensor. What comes back is ``(N, K)`` with K >= 2, float32 or float64, and finite, or an error in one line says what it was.

Every entry computes in full float32 (:func:`full_precision`): an attack whose gradient is rounded is a weak one.

Checks cost no synchronisation: on the CPU a fault is raised at the call, on another device when the door closes. Inside the door
the values of images are not checked again (:func:`check_images`): every entry has checked them.
"""

__all__ = ["Door", "ask", "check_images", "check_labels", "checking", "entry", "full_precision", "logits_of", "unchecked"]

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
Model = Callable[..., Any]
#: Layers that answer otherwise in training than in evaluation.
MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
#: What a model raises that says by itself what is wrong, and how torch says that tensors are on two devices.
PASSED, SPEAKS = (ValueError, OSError), re.compile("device(?!-side)|weight type")
SMALL = 2**16  # entries of a buffer whose values are compared
_inside: ContextVar[bool] = ContextVar("inside the door", default=False)


class Door:
    """A model that is asked for logits; see the module.

    Arguments:
        model: Images to logits: a module, or any callable.
        checked: Whether the values of the images have been checked; if not, a model that minds them looks by itself.
        attacked: Whether the answers are climbed: then probabilities bring a warning.

    Raises:
        ValueError: at a call, or when the door closes, if the model is on another device than the images, returns anything but
            finite logits ``(N, K)``, K >= 2, is asked about labels that it does not have, or changes its statistics.
        RuntimeError: at a call, if the model raises one, or what is neither a ValueError nor an OSError, in one line.
    """

    def __init__(self, model: Model, checked: bool = True, attacked: bool = True) -> None:
        self.model, self.checked, self.attacked = model, checked, attacked
        self._faults: list[tuple[Tensor, str]] = []
        self._probabilities: list[Tensor] = []

    def __enter__(self) -> "Door":
        modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
        self._modes = [(m, m.training) for m in modules]
        modal = sorted({type(m).__name__ for m in modules if m.training and isinstance(m, MODAL)})
        if modal:
            text = f"{', '.join(modal)} of the model is in training mode; it is asked in evaluation mode (call model.eval())"
            warnings.warn(text, stacklevel=3)
        for module, _ in self._modes:
            module.training = False
        self._before = {name: _Snapshot(b) for name, b in self._statistics()}
        self._open = ExitStack()
        self._open.enter_context(torch.inference_mode(False))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        for module, training in self._modes:
            module.training = training
        if kind is None:
            self._settle()
            moved = [name for name, b in self._statistics() if name not in self._before or self._before[name].moved(b)]
            if moved:
                raise ValueError(f"the model changed its own statistics while it was asked: {', '.join(moved)}")

    def __call__(
        self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"] | None = None, **options: Any
    ) -> Float[Tensor, "n k"]:
        """Return the logits of images, differentiable if ``x`` is.

        Arguments:
            x: Images.
            y: Labels, which must be below K.
            **options: Passed on to the model.
        """
        token = _inside.set(self.checked)
        try:
            found = self.model(x.clone(), **options)
        except RuntimeError as error:
            raise self._explained(error, x) from error
        except PASSED:
            raise
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise RuntimeError(f"the model raised {text.removesuffix(':')}") from error
        finally:
            _inside.reset(token)
        return self._checked(_logits(found, len(x)), x, y)

    def ask(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"] | None = None, **options: Any) -> Float[Tensor, "n k"]:
        """Return the logits of images without a graph."""
        with torch.no_grad():
            return self(x.detach(), y, **options)

    def fault(self, where: Tensor, text: str) -> None:
        """Raise ``text`` if any entry of ``where`` is true: now on the CPU, elsewhere when the door closes."""
        self._faults.append((where.any(), text))
        if where.device.type == "cpu":
            self._settle()

    def _checked(self, logits: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        if logits.device != x.device:
            raise ValueError(f"the model returned logits on {logits.device} for images on {x.device}")
        values, n = logits.detach(), len(logits)
        if values.device.type == "cpu":
            if bool((bad := values.isnan().any(dim=1)).any()):
                raise ValueError(f"the model returned NaN for {int(bad.sum())} of {n} images")
            if bool((bad := values.isinf().any(dim=1)).any()):
                raise ValueError(f"the model returned infinite logits for {int(bad.sum())} of {n} images")
        else:
            self.fault(~values.isfinite(), f"the model returned NaN or infinite logits for some of {n} images")
        if y is not None:
            self.fault(y >= logits.shape[1], f"labels go beyond the {logits.shape[1]} classes of the model")
        if self.attacked:
            self._probabilities.append(((values >= 0).all() & ((values.sum(dim=1) - 1).abs() < 1e-4).all())[None])
        if values.device.type == "cpu":
            self._settle()
        return logits

    def _settle(self) -> None:
        """Raise the first fault, warn of probabilities."""
        faults, self._faults = self._faults, []
        probabilities, self._probabilities = self._probabilities, []
        if faults:
            for bad, (_, text) in zip(torch.stack([f for f, _ in faults]).tolist(), faults, strict=True):
                if bad:
                    raise ValueError(text)
        if probabilities and bool(torch.cat(probabilities).all()):
            text = "the model returns probabilities; attack its logits: a saturated softmax has no gradient"
            warnings.warn(text, stacklevel=5)

    def _statistics(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers that are no counters."""
        if isinstance(self.model, nn.Module):
            yield from ((name, b) for name, b in self.model.named_buffers() if b.is_floating_point())

    def _explained(self, error: RuntimeError, x: Tensor) -> Exception:
        tensors = [*self.model.parameters(), *self.model.buffers()] if isinstance(self.model, nn.Module) else []
        devices = {str(t.device) for t in tensors}
        if "same device" in str(error) or (SPEAKS.search(str(error)) and not devices <= {str(x.device)}):
            where = f" ({', '.join(sorted(devices))})" if devices else ""
            return ValueError(
                f"the model{where} is on another device than the images ({x.device}); move one of them with .to()"
            )
        if "nference tensor" in str(error):
            return ValueError("the model was made under torch.inference_mode; make it, or load it, outside")
        return error


class _Snapshot:
    """A buffer as it was: its values, or, if it is large, what torch counts of changes in place."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.version = buffer, _version(buffer)
        self.values = buffer.detach().clone() if buffer.numel() <= SMALL else None  # batch_norm changes values uncounted

    def moved(self, now: Tensor) -> bool:
        """Whether it is another tensor, or has other values."""
        if self.values is not None:
            return now.shape != self.values.shape or not bool(((now == self.values) | (now.isnan() & self.values.isnan())).all())
        return now is not self.buffer or _version(now) != self.version


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _logits(found: Any, n: int) -> Tensor:
    """What a model returned, if it has the shape and type of logits; half precision as float32."""
    wanted = f"the model must return logits ({n}, K) for {n} images"
    if not torch.is_tensor(found):
        parts = f" of {len(found)}" if isinstance(found, (tuple, list, dict)) else ""
        inside = hasattr(found, "logits") or (isinstance(found, dict) and "logits" in found)
        more = "; its entry 'logits' would do" if inside else ""
        raise ValueError(f"{wanted}, got {type(found).__name__}{parts}{more}")
    if found.ndim != 2 or len(found) != n:
        more = " (class labels?)" if found.ndim == 1 and not found.is_floating_point() else ""
        raise ValueError(f"{wanted}, got shape {tuple(found.shape)}{more}")
    if not found.is_floating_point():
        raise ValueError(f"{wanted}, got {str(found.dtype)[6:]} numbers")
    if found.shape[1] < 2:
        raise ValueError(f"{wanted} and K >= 2 classes, got K = {found.shape[1]}; a binary classifier f returns (-f, f)")
    return found if found.dtype in (torch.float32, torch.float64) else found.float()


def logits_of(model: Model, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"] | None = None) -> Float[Tensor, "n k"]:
    """Return the logits of images through a :class:`Door` of its own, differentiable if ``x`` is."""
    with Door(model) as door:
        return door(x, y)


def ask(
    model: Model, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"] | None = None, batch: int | None = None
) -> Float[Tensor, "n k"]:
    """Return the logits of images without a graph, ``batch`` images at a time."""
    with Door(model, attacked=False) as door:
        parts = zip(x.split(batch or len(x)), [None] * len(x) if y is None else y.split(batch or len(x)), strict=False)
        return torch.cat([door.ask(part, labels) for part, labels in parts])


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function an entry: its tensors are its own, without a graph, and the caller's autograd and TF32 modes end there."""

    @functools.wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.enable_grad(), full_precision():
            return function(*map(_own, args), **{k: _own(v) for k, v in kwargs.items()})

    entered.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return entered


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block a GPU multiplies float32 in float32, and not, as it does by default in convolutions, in TF32.

    TF32 keeps ten bits. For the answer of a network they are enough. The gradient through likelihood maximisation is made of
    gradients, and may point elsewhere in fewer bits (experiment ``precision``): an attack that follows it is weak, and the
    defence looks strong.
    """
    convolution, product = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolution.allow_tf32, product.allow_tf32
    convolution.allow_tf32 = product.allow_tf32 = False
    try:
        yield
    finally:
        convolution.allow_tf32, product.allow_tf32 = before


def _own(value: Any) -> Any:
    return value.detach().clone() if torch.is_tensor(value) else value


@contextmanager
def unchecked() -> Iterator[None]:
    """Within the block :func:`check_images` looks at types and shapes only: somebody has checked the values."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def checking() -> bool:
    """Whether values are still to be checked: not inside a door."""
    return not _inside.get()


def check_images(x: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raise unless ``x`` is a non-empty float batch ``(N, C, H, W)`` in [0, 1], of images of the given shape.

    Raises:
        ValueError: with one line that says what was wrong and what to do.
    """
    if not torch.is_tensor(x) or not x.is_floating_point():
        kind = x.dtype if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"images must be a float tensor in [0, 1], got {kind}; divide bytes by 255")
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"images must be a non-empty batch (N, C, H, W), got shape {tuple(x.shape)}")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"images have shape {tuple(x.shape[1:])}, the model takes {tuple(shape)}")
    if not checking():
        return
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1] and not be NaN, got values from {low:g} to {high:g}")


def check_labels(y: Tensor, count: int, num_classes: int | None = None) -> None:
    """Raise unless ``y`` holds ``count`` int64 labels in 0...K-1.

    Raises:
        ValueError: with one line that says what was wrong.
    """
    if not torch.is_tensor(y) or y.dtype != torch.int64 or tuple(y.shape) != (count,):
        got = f"{y.dtype} {tuple(y.shape)}" if torch.is_tensor(y) else type(y).__name__
        raise ValueError(f"labels must be an int64 tensor of shape ({count},), got {got}")
    low, high = (int(v) for v in y.aminmax())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise ValueError(f"labels must lie in 0...{'K-1' if num_classes is None else num_classes - 1}, got {low}...{high}")
