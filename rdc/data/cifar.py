"""CIFAR-10 and CIFAR-100 in their official binary versions, and CIFAR-10-C: records of bytes, no pickle.

A record is one label byte (CIFAR-100: the coarse and the fine label), then 3 072 bytes, the planes red, green and blue of an
image of 32x32. A file is whole or the first records of one, under the name of the whole one with more in it:
``test_batch.first1000.bin`` stands for ``test_batch.bin``. CIFAR-10-C is one array of bytes ``(50 000, 32, 32, 3)`` for each
corruption, severity 1 to 5 in blocks of 10 000, and their labels.

References:
    | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
    | https://www.cs.toronto.edu/~kriz/cifar.html
    | Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (Hendrycks and Dietterich, 2019)
    | https://zenodo.org/records/2535967
"""

__all__ = ["BINARY", "Binary", "corrupted", "read_binary", "read_records"]

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rdc.data.download import Archive
from rdc.data.idx import DataError

PIXELS = 3 * 32 * 32
SEVERITY = 10_000  # images of each severity of CIFAR-10-C


@dataclass(frozen=True)
class Binary:
    """A data set of binary records.

    Attributes:
        labels: Label bytes in a record; the last one counts.
        files: Names of the files of a split, without ``.bin``, by split.
        classes: Names of the classes, or the file that holds them, a line each.
        count: Number of classes.
        archive: Where the files come from.
    """

    labels: int
    files: dict[str, tuple[str, ...]]
    classes: tuple[str, ...] | str
    count: int
    archive: Archive


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TORONTO = "https://www.cs.toronto.edu/~kriz/"
BINARY = {
    "cifar10": Binary(
        1,
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        CIFAR10,
        10,
        Archive(
            TORONTO + "cifar-10-binary.tar.gz",
            "sha256",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            "cifar-10-batches-bin",
        ),
    ),
    "cifar100": Binary(
        2,
        {"train": ("train",), "test": ("test",)},
        "fine_label_names.txt",
        100,
        Archive(TORONTO + "cifar-100-binary.tar.gz", "md5", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
    ),
}


def read_records(path: Path, labels: int, count: int) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"]]:
    """Return images and labels of a file of records.

    Arguments:
        path: The file; any number of records but none.
        labels: Label bytes in a record; the last one counts.
        count: Number of classes.

    Raises:
        DataError: if the file cannot be read, is empty or ends within a record, or if a label is no class.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error})") from error
    size = labels + PIXELS
    if not len(data) or len(data) % size:
        raise DataError(f"{path} is damaged or another file: its {len(data)} bytes are not n records of {size} bytes")
    records = data.reshape(-1, size)
    if (most := records[:, labels - 1].max()) >= count:
        raise DataError(f"{path} is damaged or another file: it holds the label {most}, and there are {count} classes")
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]


def read_binary(name: str, split: str, folder: Path) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"], list[str]]:
    """Return images, labels and class names of a split of ``cifar10`` or ``cifar100``, of the files that are there.

    Raises:
        DataError: if none is there, or two parts of the same file; if one is not what it should be.
    """
    kind = BINARY[name]
    found = [path for stem in kind.files[split] if (path := part_of(folder, stem))]
    if not found:
        raise DataError(f"there is no {kind.files[split][0]}*.bin in {folder}")
    parts = [read_records(path, kind.labels, kind.count) for path in found]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, labels, class_names(kind, folder)


def part_of(folder: Path, stem: str) -> Path | None:
    """The file ``stem.bin``, or else its only part ``stem.*.bin``; None if there is neither."""
    whole, parts = folder / f"{stem}.bin", sorted(folder.glob(f"{stem}.*.bin"))
    if whole.exists() or not parts:
        return whole if whole.exists() else None
    if len(parts) > 1:
        raise DataError(f"{folder} holds several parts of {stem}.bin ({', '.join(p.name for p in parts)}); leave one")
    return parts[0]


def class_names(kind: Binary, folder: Path) -> list[str]:
    """The names of the classes; their numbers if the file with the names is not there."""
    if not isinstance(kind.classes, str):
        return list(kind.classes)
    path = folder / kind.classes
    if not path.exists():
        return [str(k) for k in range(kind.count)]
    names = path.read_text(encoding="utf8", errors="replace").split()
    if len(set(names)) != kind.count:
        raise DataError(f"{path} is damaged or another file: it holds {len(set(names))} names, not {kind.count}")
    return names


def corrupted(
    folder: Path, corruption: str, severity: int
) -> tuple[UInt8[np.ndarray, "n 3 32 32"], UInt8[np.ndarray, " n"], list[str]]:
    """Return images, labels and class names of CIFAR-10-C, the test images of one corruption at a severity of 1 to 5.

    Raises:
        DataError: if a file is missing or no array of that shape; if the severity is none.
    """
    if severity not in range(1, 6):
        raise DataError(f"the severity of a corruption lies in 1...5, got {severity}")
    part = slice(SEVERITY * (severity - 1), SEVERITY * severity)
    images = array(folder, corruption, (5 * SEVERITY, 32, 32, 3))[part]
    labels = array(folder, "labels", (5 * SEVERITY,))[part]
    if (most := labels.max()) >= len(CIFAR10):
        raise DataError(f"{folder / 'labels.npy'} is damaged or another file: it holds the label {most}")
    return np.moveaxis(images, 3, 1), labels, list(CIFAR10)


def array(folder: Path, name: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes of a given shape in ``name.npy``, mapped into memory."""
    path = folder / f"{name}.npy"
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.npy"))) or "none"
        raise DataError(f"there is no {path.name} in {folder}; the arrays there are: {there}")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or another file ({str(error).splitlines()[0]})") from error
    if getattr(found, "dtype", None) != np.uint8 or found.shape != shape:
        raise DataError(f"{path} is damaged or another file: it should hold bytes of shape {shape}")
    return found
