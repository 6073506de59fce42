"""What the commands share: options, and what they stand for."""

__all__ = [
    "HOW_MANY",
    "Block",
    "Count",
    "Data",
    "Device",
    "Model",
    "Quiet",
    "Start",
    "first_images",
    "pick_device",
    "radius_of",
    "tidy",
    "writable",
]

import os
import tempfile
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import arg

from rdc.data.registry import NAMES
from rdc.quantities import number

Quiet = Annotated[bool, arg(aliases=["-q"], help="No progress bar.")]
Model = Annotated[
    str,
    arg(
        help="A model by name ('rdc models' lists them: dc, rdc, lm-cnn, diffpure, optimal, ...), a shipped checkpoint, a "
        ".safetensors file, or module:function, a function of one's own that returns an nn.Module from images in [0, 1] to "
        "logits."
    ),
]
Data = Annotated[
    str,
    arg(
        help="digits, fashion-mini, fashion, cifar10-20, cifar10, ..., cifar10-c:CORRUPTION:SEVERITY (for the models of "
        "cifar10), or folder:PATH (rdc.data.load)."
    ),
]
HOW_MANY = "How many test images; of folder:PATH and restricted-imagenet by class in turns."
Count = Annotated[int, arg(aliases=["--count"], help=HOW_MANY)]
Start = Annotated[int, arg(help="The first of them.")]
Block = Annotated[int, arg(help="Images taken together; a kill loses the blocks in flight.")]
Device = Annotated[str, arg(help="auto, cpu, cuda, ...")]


def tidy(data: str) -> str:
    """Return the name of a data set, a ``folder:`` spelled in one way: below the current folder relative to it.

    Raises:
        ValueError: if it is the name of a folder without ``folder:``.
    """
    kind, colon, path = data.partition(":")
    if not colon and data not in NAMES and Path(data).is_dir():
        raise ValueError(f"--data {data} is a folder of images; write folder:{data}")
    if kind != "folder" or not path:
        return data
    path = os.path.expanduser(path)
    inside = os.path.relpath(path)
    return kind + colon + (os.path.normpath(path) if inside.startswith(os.pardir) else inside)


def writable(path: Path, ending: str = "", option: str = "--out") -> Path:
    """Return a file that is to be written, after a try in its folder, which is made.

    Raises:
        ValueError: if it cannot be written, or its name does not end as it must.
    """
    if path.is_dir():
        raise ValueError(f"cannot write {path} (it is a folder); give another {option}")
    if ending and path.suffix != ending:
        raise ValueError(f"{option} {path} must end in {ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        why = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"cannot write {path} ({why}); give another {option}") from None


def first_images(data: str, n: int, start: int = 0, option: str = "--n") -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``n`` test images and their labels, from the image ``start`` on.

    Images that lie class after class are taken by class in turns (:func:`rdc.cli.images.in_turns`), and counted in that order.
    """
    from rdc.cli.images import in_turns, read, takes_turns

    images = read(data, "test")
    images = in_turns(images) if takes_turns(data) else images
    if not 0 <= start < len(images):
        raise ValueError(f"--start must lie in 0...{len(images) - 1}, got {start}")
    most = len(images) - start
    if not 1 <= n <= most:
        raise ValueError(f"{option} must lie in 1...{most}, got {n}; {option} {most} takes all that there are")
    return images.x[start : start + n], images.y[start : start + n]


def radius_of(eps: str, norm: str) -> float:
    """The radius of an attack.

    Raises:
        ValueError: if it is none, or in Linf covers all images.
    """
    radius = number(eps, "--eps", low=0)
    if norm == "Linf" and radius > 1:
        raise ValueError(f"--eps {eps} covers all of [0, 1]; images are in [0, 1], did you mean {eps}/255?")
    return radius


def pick_device(name: str) -> torch.device:
    """The named device; ``auto`` is a GPU if there is one.

    Raises:
        ValueError: if no number can be kept there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.zeros((), dtype=torch.float32, device=name)
        place.item()  # meta has none
        return place.device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"no device {name!r} here ({str(error).splitlines()[0].partition('. ')[0]})") from None
