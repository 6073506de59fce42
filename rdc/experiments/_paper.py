"""What the campaigns on the papers' own data share: the published denoisers, and the images that are attacked."""

from typing import Any

from rdc.runs.cell import Row

#: Checkpoints of Karras et al. (2022), converted by ``rdc convert``, in the folder of the run: DDPM++ with and without labels.
CONDITIONAL = "edm-cifar10-32x32-cond-vp.safetensors"
UNCONDITIONAL = "edm-cifar10-32x32-uncond-vp.safetensors"
IMAGES = 512  # the first ones of the test split


Settings = dict[str, Any]


def row(
    table: str, reading: str, model: str, attack: str | None, given: Settings, options: Settings, block: int, **more: Any
) -> Row:
    """Return a row on CIFAR-10: the table that it stands for, and whether it is read from the paper or from the code."""
    about = {"table": table, "reading": reading, "model": model, "attack": attack, **given, **options}
    return Row(model, options, attack, given, "cifar10", IMAGES, block=block, about=about, **more)
