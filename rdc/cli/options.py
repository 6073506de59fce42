"""What the commands share: options, and what they stand for."""

__all__ = [
    "Block",
    "Count",
    "Data",
    "Device",
    "Levels",
    "Model",
    "Noise",
    "Quiet",
    "Start",
    "first_images",
    "make_classifier",
    "pick_device",
]

from typing import Annotated, Literal

import torch
from torch import nn
from tyro.conf import arg

from rdc.cli.user_model import load_user_model, names_user_model

Quiet = Annotated[bool, arg(aliases=["-q"], help="No progress bar.")]
Model = Annotated[
    str,
    arg(
        help="A shipped checkpoint, a .safetensors file, 'optimal' (the closed form over the train split), or module:function, "
        "a function of one's own that returns an nn.Module from images in [0, 1] to logits."
    ),
]
Data = Annotated[str, arg(help="digits, fashion-mini or fashion.")]
Count = Annotated[int, arg(aliases=["--count"], help="How many test images.")]
Start = Annotated[int, arg(help="The first of them.")]
Block = Annotated[int, arg(help="Images taken together; a kill loses the blocks in flight.")]
Levels = Annotated[int, arg(help="Number of noise levels.")]
Device = Annotated[str, arg(help="auto, cpu, cuda, ...")]
Noise = Annotated[Literal["shared", "fresh"], arg(help="shared: fixed, known to the attacker. fresh: new at every call.")]


def make_classifier(
    model: str, data: str, count: int, draws: int, seed: int, device: torch.device, noise: str = "shared"
) -> nn.Module:
    """The diffusion classifier of a checkpoint, the optimal one over the train split of the data, or a model of one's own."""
    from rdc.classify import DiffusionClassifier, OptimalClassifier
    from rdc.data import load
    from rdc.denoise import fast_dtype
    from rdc.denoise.checkpoints import load_denoiser
    from rdc.schedule import levels

    if names_user_model(model):
        if noise != "shared":
            raise ValueError("a model of one's own brings its own noise; leave out --noise fresh")
        return load_user_model(model, device)
    if model == "optimal":
        if noise != "shared":
            raise ValueError("the optimal classifier has fixed noise; leave out --noise fresh")
        train = load(data, "train")
        return OptimalClassifier(train.x, train.y, levels("elbo", count), seed=seed).to(device)
    denoiser = load_denoiser(model, device, fast_dtype(device), data=data)
    return DiffusionClassifier(denoiser, levels("elbo", count), noise=noise, seed=seed, draws=draws)


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
    """The named device; ``auto`` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros((), dtype=torch.float32, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {name!r} here ({str(error).splitlines()[0]})") from None
