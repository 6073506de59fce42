"""Write the embedded data sets of rdc/assets/data, and print the SHA-256 of their unpacked bytes.

    python scripts/make_assets.py [FOLDER OF FASHION-MNIST]

``fashion-mini``: the first 1 000 training and the first 100 test images of each class of Fashion-MNIST, in the order
of the original files, with the classes taking turns. ``digits``: all images of ``sklearn.datasets.load_digits``; the
last 40 of each class are the test split (needs scikit-learn, which the book itself does not).
"""

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

from rdc.data import ASSETS, parse_idx, write_idx


def take_turns(labels: np.ndarray, start: int, stop: int | None) -> np.ndarray:
    """Indices of occurrences ``start:stop`` of each class: one of each class, then the next of each class, ..."""
    rows = [np.flatnonzero(labels == k)[start:stop] for k in range(10)]
    order = sorted((place, k, index) for k, row in enumerate(rows) for place, index in enumerate(row))
    return np.array([index for _, _, index in order])


def save(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images.idx3", images), ("labels.idx1", labels)):
        path = ASSETS / f"{name}-{kind}.gz"
        path.write_bytes(write_idx(array))
        print(hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest(), path.name, path.stat().st_size)


def fashion(folder: Path) -> None:
    for split, stem, count in (("train", "train", 1000), ("test", "t10k", 100)):
        images, labels = (
            parse_idx(gzip.decompress((folder / f"{stem}-{kind}-ubyte.gz").read_bytes()), folder)
            for kind in ("images-idx3", "labels-idx1")
        )
        index = take_turns(labels, 0, count)
        save(f"fashion-mini-{split}", images[index], labels[index])


def digits() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.images.astype(np.uint8), data.target
    test = take_turns(labels, -40, None)
    train = take_turns(labels, 0, -40)
    for split, index in (("train", train), ("test", test)):
        save(f"digits-{split}", images[index], labels[index])


if __name__ == "__main__":
    ASSETS.mkdir(parents=True, exist_ok=True)
    fashion(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist"))
    digits()
