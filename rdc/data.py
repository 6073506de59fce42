"""Images and labels: two embedded data sets, and readers for the others.

Files are in the plain ``idx`` format of LeCun's MNIST pages (a header and raw bytes, gzipped) or PNG: no pickle is
involved, and everything is checked against a SHA-256 before use.

Data sets:
    | ``digits``        1 797 images of 8x8, the UCI optical digits as shipped by scikit-learn; embedded
    | ``fashion-mini``  10 000 + 1 000 images of Fashion-MNIST, 28x28; embedded
    | ``fashion``       all 70 000 images of Fashion-MNIST, from a folder on this machine
    | ``cifar10-20``    20 test images of CIFAR-10, 3x32x32, from the installed package foolbox: for smoke tests

References:
    | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017)
    | https://arxiv.org/abs/1708.07747
    | Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), https://doi.org/10.24432/C50P49
    | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
    | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

__all__ = ["DataError", "Images", "check_images", "check_labels", "load"]

import gzip
import hashlib
import importlib.util
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdc.door import check_images as check_images
from rdc.door import check_labels as check_labels

ASSETS = Path(__file__).parent / "assets" / "data"
FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_20 = "27ddb4ee8c4153e426b6bbf58adff848a2599c19488bf485bee8ad8e76707704"  # sha256 of the 20 x 32 x 32 x 3 bytes
FOLDERS = ("RDC_DATA", "~/.cache/rdc/fashion", "/usr/share/datasets/fashion-mnist")


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message says which one and what to do."""


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
    """Where a data set comes from: its files (``{name: sha256 of the unpacked bytes}``) and the scale of a byte.

    The files stand in the order train images, train labels, test images, test labels.
    """

    files: dict[str, str]
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
        FASHION,
    ),
    "fashion": Source(
        {
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        FASHION,
        embedded=False,
    ),
}
SPLITS = ("train", "test")
NAMES = (*SOURCES, "cifar10-20")


def load(name: str, split: str = "test", folder: str | Path | None = None) -> Images:
    """Load a data set.

    Arguments:
        name: ``digits``, ``fashion-mini``, ``fashion`` or ``cifar10-20``.
        split: ``train`` or ``test``; of ``cifar10-20`` only ``test``.
        folder: Where the files of a data set that is not embedded lie; otherwise the environment variable
            ``RDC_DATA``, ``~/.cache/rdc/fashion`` and the folder of Debian's package are tried, in this order.

    Returns:
        Images in [0, 1]. In ``fashion-mini`` and ``digits`` the classes take turns, so that any first ``10 m`` images
        of the test split hold ``m`` of each class.

    Raises:
        DataError: if the name or split is unknown, or a file is missing or damaged.
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    if split not in (splits := SPLITS if name in SOURCES else SPLITS[1:]):
        raise DataError(f"unknown split {split!r} of {name}; there are {', '.join(splits)}")
    if name not in SOURCES:
        return cifar10_20(None if folder is None else Path(folder))
    source = SOURCES[name]
    base = ASSETS if source.embedded and folder is None else find_folder(name, source, folder)
    first = 2 * SPLITS.index(split)
    images, labels = (read_idx(base / file, source.files[file]) for file in list(source.files)[first : first + 2])
    x = torch.from_numpy(images.astype(np.float32) / np.float32(source.scale))[:, None]
    return Images(x, torch.from_numpy(labels.astype(np.int64)), list(source.classes))


def cifar10_20(folder: Path | None = None) -> Images:
    """The files ``cifar10_<number>_<label>.png`` of a folder, by default that of the installed package foolbox."""
    if folder is None:
        spec = importlib.util.find_spec("foolbox")  # finds the package without running it
        if spec is None or spec.origin is None:
            raise DataError("the data set 'cifar10-20' lies in the package foolbox; install it with 'pip install foolbox'")
        folder = Path(spec.origin).parent / "data"
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading the images of 'cifar10-20' needs pillow; install it with 'pip install pillow'") from error
    files = sorted(folder.glob("cifar10_*.png"))
    try:
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")) for file in files])
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the images of 'cifar10-20' in {folder} ({error}); run 'pip install foolbox'") from error
    if (found := hashlib.sha256(pixels.tobytes()).hexdigest()) != CIFAR10_20:
        raise DataError(
            f"the {len(files)} images cifar10_*.png in {folder} are not those expected: sha256 of the pixels {found}, not "
            f"{CIFAR10_20}; run 'pip install foolbox' (the images of release 3.3.4)"
        )
    y = torch.tensor([int(file.stem.split("_")[2]) for file in files])
    x = torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2).contiguous()
    return Images(x, y, list(CIFAR10))


def find_folder(name: str, source: Source, folder: str | Path | None) -> Path:
    """The first candidate folder that holds the files of a data set."""
    names = [str(folder)] if folder is not None else [os.environ.get(FOLDERS[0], ""), *FOLDERS[1:]]
    tried = [Path(n).expanduser() for n in names if n]
    first = next(iter(source.files))
    for path in tried:
        if (path / first).exists():
            return path
    raise DataError(
        f"data set {name!r}: {first} is in none of {', '.join(map(str, tried))}; put {', '.join(source.files)} "
        "into a folder and set RDC_DATA to it (on Debian: apt-get install dataset-fashion-mnist)"
    )


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """An array of unsigned bytes from a gzipped ``idx`` file; ``sha256`` is that of its unpacked bytes."""
    remedy = f"expected sha256 {sha256} of the unpacked bytes; restore the file ('git checkout', or download it again)"
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}); {remedy}") from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise DataError(f"{path} is damaged or another file: its sha256 is {found}; {remedy}")
    return parse_idx(data, path)


def parse_idx(data: bytes, path: Path) -> np.ndarray:
    """Parse the unpacked bytes of an ``idx`` file of type unsigned byte."""
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an idx file of unsigned bytes: it starts with {data[:4]!r}")
    ndim = data[3]
    shape = tuple(np.frombuffer(data, dtype=">u4", count=ndim, offset=4).astype(int))
    body = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * ndim)
    if body.size != np.prod(shape):
        raise DataError(f"{path} says {shape} but holds {body.size} bytes")
    return body.reshape(shape)


def write_idx(array: np.ndarray) -> bytes:
    """The gzipped ``idx`` bytes of an array of unsigned bytes, the same on every run."""
    head = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return gzip.compress(head + np.ascontiguousarray(array, dtype=np.uint8).tobytes(), compresslevel=9, mtime=0)
