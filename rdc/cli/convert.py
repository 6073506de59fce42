"""The command ``rdc convert``."""

__all__ = ["convert_command"]

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def convert_command(
    path: Annotated[Positional[Path], arg(help="A checkpoint of EDM, *.pkl; nothing of it is run.")],
    out: Annotated[Positional[Path], arg(help="The .safetensors file to write.")],
    data: Annotated[str, arg(help="Name of the data set that it is for.")] = "cifar10",
) -> None:
    """Write the network of a published EDM checkpoint as a file of this package.

    DDPM++ becomes one that every other command reads; NCSN++ and ADM are read by rdc.checkpoints.load_denoiser.

    For example:
      rdc convert edm-cifar10-32x32-cond-vp.pkl cifar10.safetensors
    """
    from rdc.denoise.published import convert

    print(f"wrote {convert(path, out, data)}")
