"""The command ``rdc convert``."""

__all__ = ["convert_command"]

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rdc.cli.options import writable
from rdc.denoise.unet import UNetConfig

#: The sizes of 128x128_diffusion.pt, which a state dict does not say.
ADM_128 = UNetConfig(128, 3, 1000, 256, (1, 1, 2, 3, 4), 2, (32, 16, 8))


def convert_command(
    path: Annotated[
        Positional[Path], arg(help="A checkpoint of EDM, *.pkl, not run, or 128x128_diffusion.pt of guided-diffusion.")
    ],
    out: Annotated[Positional[Path], arg(help="The .safetensors file to write.")],
    data: Annotated[
        str | None, arg(help="Name of its data set; by default cifar10 if that fits, and imagenet-128 for the second.")
    ] = None,
) -> None:
    """Write the network of a published checkpoint as a file of this package.

    Every other command reads it: rdc accuracy --model cifar10.safetensors --data cifar10.

    For example:
      rdc convert edm-cifar10-32x32-cond-vp.pkl cifar10.safetensors
      rdc convert 128x128_diffusion.pt adm-imagenet-128.safetensors
    """
    from rdc.denoise.adapters import convert_guided_diffusion
    from rdc.denoise.published import convert

    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    out = writable(out, ".safetensors", "OUT")
    if out.exists() and out.samefile(path):
        raise ValueError(f"{path} would be replaced by what is made of it; give another OUT")
    if path.suffix == ".pt":
        wrote = convert_guided_diffusion(path, out, ADM_128, heads=4, data=data or "imagenet-128")
    else:
        wrote = convert(path, out, data)
    print(f"wrote {wrote}")
