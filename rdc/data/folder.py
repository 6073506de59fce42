"""Images in folders: a reader's own, one folder a class, and Restricted ImageNet out of the folders of ImageNet.

``PATH/train/<class>/*.png`` and ``PATH/test/<class>/*.png``, PNG or JPEG (``.jpg``, ``.jpeg``), all of one size and square. The
classes are the names of the folders, sorted; images come class after class, sorted by name. They have one channel
if all of the split are grey. Commands look at both splits and take the classes in turns (``rdc.cli.images``).

Restricted ImageNet joins 9 runs of the 1 000 classes of ImageNet, whose folders ``train/<wnid>`` and ``val/<wnid>`` count in
sorted order.

References:
    | Robustness May Be at Odds with Accuracy (Tsipras et al., 2019), appendix A.1
    | https://arxiv.org/abs/1805.12152
"""

__all__ = ["RESTRICTED", "image_folder", "restricted_imagenet"]

import warnings
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rdc.data.idx import DataError

ENDINGS = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MOST = 1024  # pixels a side of a reader's own image
IMAGENET = 1000
#: The first and the last class of ImageNet that each class of Restricted ImageNet joins.
RESTRICTED = {
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}

Arrays = tuple[UInt8[np.ndarray, "n c h w"], UInt8[np.ndarray, " n"], list[str]]


def image_folder(folder: Path, split: str) -> Arrays:
    """Return images, labels and class names of a split of a reader's own images.

    The classes are those of the training images where there are any, so that a label means the same in both splits.

    Raises:
        DataError: if there are no images, one of them cannot be read, is no square or of another size than the first, or lies
            in a class that the training images do not have.
    """
    classes = subfolders(folder / ("train" if (folder / "train").is_dir() else split))
    places = subfolders(folder / split)
    if unknown := [p.name for p in places if p.name not in {c.name for c in classes}]:
        raise DataError(f"{folder / split} has the class {unknown[0]!r}, and {folder / 'train'} has not")
    names = [c.name for c in classes]
    if not 2 <= len(names) <= 256:
        raise DataError(f"{folder} must hold between 2 and 256 classes, a folder each, got {len(names)}")
    images, labels, size = [], [], None
    for place in places:
        for file in files_in(place):
            with opened(file) as image:
                size = size or image.size
                if size[0] != size[1] or size[0] > MOST:
                    raise DataError(f"{file} must be a square of at most {MOST} pixels a side, got {size[0]} x {size[1]}")
                if image.size != size:
                    now, before = (" x ".join(map(str, pair)) for pair in (image.size, size))
                    raise DataError(f"{file} is of {now} pixels, the images before it of {before}")
                images.append(pixels(file, image, "L" if image.mode in ("1", "L") else "RGB"))
            labels.append(names.index(place.name))
    if not images:
        raise DataError(f"there is no image in {folder / split}; put *.png or *.jpg into a folder for each class")
    if len({image.ndim for image in images}) == 2:
        images = [np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image for image in images]
    return channels_first(images), np.array(labels, dtype=np.uint8), names


def restricted_imagenet(folder: Path, split: str, side: int) -> Arrays:
    """Return the images of Restricted ImageNet, the shorter side resized to ``side`` and the middle square cut out.

    Arguments:
        folder: Holds ``train`` and ``val``, each with the 1 000 folders of ImageNet.
        split: ``train`` or ``test``, which is ImageNet's ``val``.
        side: Pixels of a side.

    Raises:
        DataError: if folders are missing or an image cannot be read.
    """
    place = folder / {"test": "val"}.get(split, split)
    found = subfolders(place)
    if len(found) != IMAGENET:
        raise DataError(f"{place} must hold the {IMAGENET} folders of ImageNet, n01440764 and so on, got {len(found)}")
    images, labels = [], []
    for label, (first, last) in enumerate(RESTRICTED.values()):
        for file in chain.from_iterable(files_in(kind) for kind in found[first : last + 1]):
            with opened(file) as image:
                images.append(middle(pixels(file, image, "RGB"), side))
            labels.append(label)
    if not images:
        raise DataError(f"there is no image of a class of Restricted ImageNet in {place}")
    return channels_first(images), np.array(labels, dtype=np.uint8), list(RESTRICTED)


def channels_first(images: list[UInt8[np.ndarray, "..."]]) -> UInt8[np.ndarray, "n c h w"]:
    """Stack grey images ``(H, W)`` or coloured ones ``(H, W, 3)``."""
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else np.moveaxis(stacked, 3, 1)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones do not count."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_in(folder: Path) -> Iterator[Path]:
    """The images in a folder, sorted by name; hidden files do not count, others are an error."""
    for file in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if file.suffix.lower() not in ENDINGS:
            raise DataError(f"{file} is no image that is read here, only {', '.join('*' + e for e in ENDINGS)}; take it out")
        yield file


def opened(file: Path) -> Any:
    """Open an image: its header is read, its pixels are not."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs pillow; install it with 'pip install pillow'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"cannot read the image {file} ({one_line(error)}); take it out or replace it") from error


def pixels(file: Path, image: Any, mode: str) -> UInt8[np.ndarray, "..."]:
    """The pixels of an opened image, ``(H, W)`` in mode ``L`` and ``(H, W, 3)`` in mode ``RGB``."""
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{file} has more than 8 bits a pixel (mode {image.mode}); save it with 8")
    try:
        return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, zlib.error) as error:
        raise DataError(f"cannot read the image {file} ({one_line(error)}); take it out or replace it") from error


def middle(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    """The middle square of an image whose shorter side is resized to ``side`` (bicubic, antialiased)."""
    from PIL import Image

    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    whole = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return whole[top : top + side, left : left + side]


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
