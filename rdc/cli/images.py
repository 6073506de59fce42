"""Images as the commands take them: a reader's own are checked as a whole, and come in an order whose first ones are a sample."""

__all__ = ["in_turns", "order_of", "read", "takes_turns", "trained_on"]

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rdc.data import Images
from rdc.data.cifar import BINARY, part_of
from rdc.data.folder import files_in, opened, subfolders
from rdc.data.idx import DataError
from rdc.data.registry import CACHE, VARIABLE

LAYOUT = "train/<class>/*.png and test/<class>/*.png (or .jpg)"
GREY = ("1", "L")
SPLITS = ("train", "test")
#: Data sets whose images come class after class.
SORTED = ("folder", "restricted-imagenet")
#: Data sets that are changed test images of another one, whose models they take.
CHANGED = {"cifar10-c": "cifar10"}


def trained_on(data: str) -> str:
    """The data set whose models judge the images of ``data``: ``cifar10`` for ``cifar10-c:fog:3``, otherwise itself."""
    return CHANGED.get(data.partition(":")[0], data)


def takes_turns(data: str) -> bool:
    """Whether a command takes the images of a data set by class in turns, because they come class after class."""
    return data.partition(":")[0] in SORTED


def order_of(data: str) -> dict[str, str]:
    """What the header of a file of rows says of the order of the images, where it is not that of the data set."""
    return {"order": "classes in turns"} if takes_turns(data) else {}


def in_turns(images: Images) -> Images:
    """Return the images with the classes in turns: the first of each class, then the second of each, and so on."""
    seen, turns = Counter[int](), []
    for position, label in enumerate(images.y.tolist()):
        turns.append((seen[label], label, position))
        seen[label] += 1
    return images[torch.tensor([position for *_, position in sorted(turns)], dtype=torch.int64, device="cpu")]


def read(data: str, split: str) -> Images:
    """Return a split of a data set; of a reader's own images both are looked at.

    A reader's own images are grey only if those of both splits are.

    Raises:
        DataError: as :func:`rdc.data.load`; and for a reader's own images if the folders are not as they should be, a class has
            no training image, the splits differ in size, or an image is partly transparent.
    """
    from rdc.data import load

    kind, _, rest = data.partition(":")
    if kind != "folder":
        return load(data, split, binary_home(data, split))
    folder = Path(rest).expanduser()
    check_layout(folder, split)
    images = load(data, split)
    coloured = check_images(folder, images.x.shape[-1], split)
    return replace(images, x=images.x.expand(-1, 3, -1, -1).contiguous()) if coloured else images


def binary_home(data: str, split: str) -> Path | None:
    """The folder that holds a file of ``cifar10`` or ``cifar100``: ``test_batch.bin`` beside it is none of ``cifar100``."""
    if data not in BINARY or split not in (kind := BINARY[data]).files:
        return None
    places = [Path(name).expanduser() for name in (os.environ.get(VARIABLE, ""), f"{CACHE}/{data}") if name]
    there = (path for place in places for path in (place, place / kind.archive.inside))
    return next((path for path in there if any(part_of(path, stem) for stem in kind.files[split])), None)


def check_layout(folder: Path, split: str) -> None:
    """Raise a :class:`DataError` if a folder of images has no such split, or a class of its training images is empty."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    if not (folder / split).is_dir():
        raise DataError(f"{folder} has no folder {split}; it must hold {LAYOUT}")
    for place in subfolders(folder / "train") if (folder / "train").is_dir() else ():
        if next(files_in(place), None) is None:
            raise DataError(f"there is no image in the class {place}; put some there, or take the folder away")


def check_images(folder: Path, side: int, split: str) -> bool:
    """Return whether an image of a folder is coloured, training and test images alike.

    Raises:
        DataError: if one of them is partly transparent, or those of the other split are not of ``side`` pixels, as those of
            ``split`` are.
    """
    coloured = False
    for part in (part for part in SPLITS if (folder / part).is_dir()):
        for file in (file for place in subfolders(folder / part) for file in files_in(place)):
            with opened(file) as image:
                if image.size != (side, side):
                    now = " x ".join(map(str, image.size))
                    raise DataError(f"{file} is of {now} pixels, the {split} images of {side} x {side}; both must be alike")
                check_opaque(file, image)
                coloured = coloured or image.mode not in GREY
    return coloured


def check_opaque(file: Path, image: Any) -> None:
    """Raise a :class:`DataError` if a pixel of an opened image is transparent: what would be seen behind it, nobody knows."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return
    try:
        least = image.convert("RGBA").getchannel("A").getextrema()[0]
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read the image {file} ({str(error).splitlines()[0]}); take it out or replace it") from error
    if least < 255:
        raise DataError(f"{file} is partly transparent; save it without transparency, on the background that it is to have")
