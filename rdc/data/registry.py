"""The data sets, and where their files lie.

References:
    | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017)
    | https://arxiv.org/abs/1708.07747
    | Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), https://doi.org/10.24432/C50P49
    | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
    | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

__all__ = ["Images", "check_name", "load"]

import hashlib
import importlib.util
import os
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdc.data.cifar import BINARY, CIFAR10, corrupted, read_binary
from rdc.data.download import download as fetch
from rdc.data.folder import image_folder, restricted_imagenet
from rdc.data.idx import DataError, read_idx

ASSETS = Path(__file__).parents[1] / "assets" / "data"
FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10_20_LABELS = (3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6)
CIFAR10_20 = "27ddb4ee8c4153e426b6bbf58adff848a2599c19488bf485bee8ad8e76707704"  # sha256 of the 20 x 32 x 32 x 3 bytes
VARIABLE, CACHE, DEBIAN = "RDC_DATA", "~/.cache/rdc", "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Images:
    """Images ``x`` ``(N, C, H, W)`` float32 in [0, 1], labels ``y`` ``(N,)`` int64 and the names of the classes."""

    x: Tensor
    y: Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor) -> "Images":
        return Images(self.x[index], self.y[index], self.classes)


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        files: ``{name: sha256 of the unpacked bytes}``, in the order train images, train labels, test images, test labels.
        counts: Number of images of the two splits.
        side: Height and width of an image.
        classes: Their names.
        scale: The byte that stands for 1.
        embedded: Whether the files come with the package.
    """

    files: dict[str, str]
    counts: tuple[int, int]
    side: int
    classes: tuple[str, ...]
    scale: float = 255.0
    embedded: bool = True


SOURCES = {
    "digits": Source(
        {
            "digits-train-images.idx3.gz": "3e0fdf9df094197b7adcfd904aef317d6db7463ce112761f4693f1f1d0cc9245",
            "digits-train-labels.idx1.gz": "c74aab7d04e7a3b7dcf461de03c670a580b2dcb84dfc4d49af8b04958c66b69a",
            "digits-test-images.idx3.gz": "ad5f1cc10fac7b1fdffe17364ce045978a501258b4211dfe58a7c337496d1d1a",
            "digits-test-labels.idx1.gz": "2e0e8968130b2f6e95667d5c172ff722d2e55b61e94e4564d214ebb2254150be",
        },
        (1397, 400),
        8,
        tuple("0123456789"),
        scale=16.0,
    ),
    "fashion-mini": Source(
        {
            "fashion-mini-train-images.idx3.gz": "c7084bb6d8547680a90d1b7e62eef652b321599dcc052cb47df709f6ae65b129",
            "fashion-mini-train-labels.idx1.gz": "2a4fb3eec0877aa3d4ab80d8f59374733af9b2b2966e8be0e50efe715f443a4d",
            "fashion-mini-test-images.idx3.gz": "c3db0aba26bbee2c4e140eeb7cc0c0aa8c78ca8883cb55c705307f1e83f145c9",
            "fashion-mini-test-labels.idx1.gz": "66e4c6deb5f2a061f7d8cd5ec53025fdb9dabb08265e449acb8cf64b8cd36cac",
        },
        (10_000, 1000),
        28,
        FASHION,
    ),
    "fashion": Source(
        {
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        (60_000, 10_000),
        28,
        FASHION,
        embedded=False,
    ),
}
SPLITS = ("train", "test")
#: Data sets by a name alone, and those whose name says more, as it is written.
NAMES = (*SOURCES, "cifar10-20", *BINARY)
PATTERNS = {
    "folder": "folder:PATH",
    "cifar10-c": "cifar10-c:CORRUPTION:SEVERITY",
    "restricted-imagenet": "restricted-imagenet:SIDE",
}
TEST_ONLY = ("cifar10-20", "cifar10-c")


def check_name(name: str) -> None:
    """Raise a :class:`DataError` if there is no data set of that name."""
    kind, _, rest = name.partition(":")
    more = rest and (kind == "folder" or 1 + rest.count(":") == PATTERNS.get(kind, "").count(":"))
    if name not in NAMES and not more:
        raise DataError(f"unknown data set {name!r}; there are {', '.join((*NAMES, *PATTERNS.values()))}")


def load(name: str, split: str = "test", folder: str | Path | None = None, download: bool = False) -> Images:
    """Return a data set.

    Arguments:
        name: ``digits``, ``fashion-mini``, ``fashion``, ``cifar10-20``, ``cifar10``, ``cifar100``,
            ``cifar10-c:CORRUPTION:SEVERITY`` (``cifar10-c:fog:3``), ``restricted-imagenet:SIDE`` (resized to that many pixels a
            side) or ``folder:PATH``, a reader's own images (:mod:`rdc.data.folder`).
        split: ``train`` or ``test``; of ``cifar10-20`` and ``cifar10-c`` only ``test``.
        folder: Where the files of a data set that is not embedded lie; otherwise the environment variable ``RDC_DATA`` and
            ``~/.cache/rdc/<name>`` are tried, in this order, and for ``fashion`` the folder of Debian's package.
        download: Whether to fetch ``cifar10`` or ``cifar100`` where its files are not found.

    Returns:
        Images in [0, 1]. In ``fashion-mini`` and ``digits`` the classes take turns, so that any first ``10 m`` images
        of the test split hold ``m`` of each class.

    Raises:
        DataError: if the name or split is unknown, or a file is missing or damaged.
    """
    check_name(name)
    kind, _, rest = name.partition(":")
    if split not in (splits := SPLITS[1:] if kind in TEST_ONLY else SPLITS):
        raise DataError(f"unknown split {split!r} of {name}; there are {', '.join(splits)}")
    if name == "cifar10-20":
        return cifar10_20(None if folder is None else Path(folder))
    if name in SOURCES:
        return from_idx(name, split, folder)
    if kind == "folder":
        return images_of(*image_folder(Path(rest).expanduser(), split))
    if name in BINARY:
        return images_of(*read_binary(name, split, binary_folder(name, split, folder, download)))
    if kind == "cifar10-c":
        corruption, severity = rest.split(":")
        place = find_folder(name, ["labels.npy"], "CIFAR-10-C", folder, "https://zenodo.org/records/2535967")
        return images_of(*corrupted(place, corruption, whole(severity, name)))
    place = find_folder(name, ["val"], "imagenet", folder, "https://www.image-net.org")
    return images_of(*restricted_imagenet(place, split, whole(rest, name)))


def images_of(pixels: np.ndarray, labels: np.ndarray, classes: list[str]) -> Images:
    """Images from bytes ``(N, C, H, W)``."""
    x = torch.from_numpy(np.divide(pixels, np.float32(255), dtype=np.float32))
    return Images(x.contiguous(), torch.from_numpy(labels.astype(np.int64)), classes)


def whole(text: str, name: str) -> int:
    """A positive whole number in the name of a data set."""
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise DataError(f"{text!r} in the name {name!r} must be a positive whole number")
    return int(text)


def from_idx(name: str, split: str, folder: str | Path | None) -> Images:
    """A data set of :data:`SOURCES`."""
    source = SOURCES[name]
    remedy = "on Debian: apt-get install dataset-fashion-mnist"
    base = ASSETS if source.embedded and folder is None else find_folder(name, list(source.files), "fashion", folder, remedy)
    which = SPLITS.index(split)
    (file, digest), (labels_file, labels_digest) = list(source.files.items())[2 * which : 2 * which + 2]
    images = read_idx(base / file, digest, (source.counts[which], source.side, source.side))
    labels = read_idx(base / labels_file, labels_digest, (source.counts[which],))
    x = torch.from_numpy(images.astype(np.float32) / np.float32(source.scale))[:, None]
    return Images(x, torch.from_numpy(labels.astype(np.int64)), list(source.classes))


def binary_folder(name: str, split: str, folder: str | Path | None, download: bool) -> Path:
    """Where the files of a split of ``cifar10`` or ``cifar100`` lie; a file may be a part, and so have more in its name."""
    kind, stems = BINARY[name], BINARY[name].files[split]
    remedy = f"{kind.archive.url}, or load({name!r}, download=True)"
    try:
        return find_folder(name, [f"{stem}*.bin" for stem in stems], kind.archive.inside, folder, remedy)
    except DataError:
        if not download:
            raise
        return fetch(kind.archive, Path(CACHE, name).expanduser() if folder is None else Path(folder))


def cifar10_20(folder: Path | None = None) -> Images:
    """Return the files ``cifar10_<number>_<label>.png`` of a folder, by default that of the installed package foolbox."""
    if folder is None:
        spec = importlib.util.find_spec("foolbox")  # finds the package without running it
        if spec is None or spec.origin is None:
            raise DataError("the data set 'cifar10-20' lies in the package foolbox; install it with 'pip install foolbox'")
        folder = Path(spec.origin).parent / "data"
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading the images of 'cifar10-20' needs pillow; install it with 'pip install pillow'") from error
    files = [folder / f"cifar10_{i:02}_{label}.png" for i, label in enumerate(CIFAR10_20_LABELS)]
    pixels = np.empty((len(files), 32, 32, 3), dtype=np.uint8)
    for file, image in zip(files, pixels, strict=True):
        try:
            with Image.open(file) as opened:  # reads the header only
                if opened.size != (32, 32):
                    raise ValueError(f"its size is {opened.size}, not (32, 32)")
                image[:] = np.asarray(opened.convert("RGB"))
        except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read the image {file} of 'cifar10-20' ({error}); run 'pip install foolbox'") from error
    if (found := hashlib.sha256(pixels.tobytes()).hexdigest()) != CIFAR10_20:
        raise DataError(
            f"the images cifar10_*.png in {folder} are not those expected: sha256 of the pixels {found}, not "
            f"{CIFAR10_20}; run 'pip install foolbox' (the images of release 3.3.4)"
        )
    y = torch.tensor(CIFAR10_20_LABELS, dtype=torch.int64, device="cpu")
    x = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2).contiguous()
    return Images(x, y, list(CIFAR10))


def find_folder(name: str, files: list[str], inside: str, folder: str | Path | None, remedy: str) -> Path:
    """Return the first candidate folder, itself or its folder ``inside``, that holds one of some files."""
    names = [str(folder)] if folder is not None else [os.environ.get(VARIABLE, ""), f"{CACHE}/{name.split(':')[0]}", DEBIAN]
    tried = [Path(n).expanduser() for n in names if n]
    for path in chain.from_iterable((path, path / inside) for path in tried):
        if any(next(path.glob(file), None) for file in files):
            return path
    raise DataError(
        f"data set {name!r}: {files[0]} is in none of {', '.join(map(str, tried))}; put {', '.join(files)} "
        f"into a folder and set {VARIABLE} to it ({remedy})"
    )
