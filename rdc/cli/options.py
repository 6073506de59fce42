"""What the commands share: options, and what they stand for."""

__all__ = [
    "Block",
    "Count",
    "Data",
    "Device",
    "Model",
    "Quiet",
    "Start",
    "first_images",
    "pick_device",
]

from typing import Annotated

import torch
from tyro.conf import arg

Quiet = Annotated[bool, arg(aliases=["-q"], help="No progress bar.")]
Model = Annotated[
    str,
    arg(
        help="A model by name ('rdc models' lists them: dc, rdc, lm-cnn, diffpure, optimal, ...), a shipped checkpoint, a "
        ".safetensors file, or module:function, a function of one's own that returns an nn.Module from images in [0, 1] to "
        "logits."
    ),
]
Data = Annotated[str, arg(help="digits, fashion-mini, fashion, cifar10-20, cifar10, ..., or folder:PATH (rdc.data.load).")]
Count = Annotated[int, arg(aliases=["--count"], help="How many test images.")]
Start = Annotated[int, arg(help="The first of them.")]
Block = Annotated[int, arg(help="Images taken together; a kill loses the blocks in flight.")]
Device = Annotated[str, arg(help="auto, cpu, cuda, ...")]


def first_images(data: str, n: int, start: int = 0, option: str = "--n") -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``n`` test images and their labels, from the image ``start`` on."""
    from rdc.data import load

    images = load(data, "test")
    if not 0 <= start < len(images):
        raise ValueError(f"--start must lie in 0...{len(images) - 1}, got {start}")
    if not 1 <= n <= len(images) - start:
        raise ValueError(f"{option} must lie in 1...{len(images) - start}, got {n}")
    return images.x[start : start + n], images.y[start : start + n]


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
