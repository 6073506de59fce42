"""The ``idx`` format of LeCun's MNIST pages: two zero bytes, the type, the number of dimensions, the sizes, the raw bytes.

A file is read as a stream and never past the size that is expected of it, so that a file which unpacks to gigabytes is found out
after kilobytes.
"""

__all__ = ["DataError", "parse_idx", "read_idx", "write_idx"]

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

MOST_DIMENSIONS = 8
UNSIGNED = b"\x00\x00\x08"


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message says which one and what to do."""


def read_idx(path: Path, sha256: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """Return an array of unsigned bytes from a gzipped ``idx`` file.

    Arguments:
        path: The file.
        sha256: That of its unpacked bytes.
        shape: That of the array, which decides how many bytes are unpacked at most.

    Raises:
        DataError: if the file cannot be read, is longer or shorter, or has another hash.
    """
    remedy = f"expected sha256 {sha256} of the unpacked bytes; restore the file ('git checkout', or download it again)"
    head, size, wrong = header(shape), math.prod(shape), f"{path} is damaged or another file:"
    try:
        with gzip.open(path) as stream:
            start = stream.read(len(head))
            body = stream.read(size + 1) if start == head else b""
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({error}); {remedy}") from error
    if start != head:
        raise DataError(f"{wrong} it starts with {start!r}, not with {head!r}; {remedy}")
    if len(body) != size:
        raise DataError(f"{wrong} it holds {'more' if len(body) > size else 'fewer'} than {size} bytes; {remedy}")
    data = head + body
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise DataError(f"{wrong} its sha256 is {found}; {remedy}")
    return parse_idx(data, path)


def parse_idx(data: bytes, path: Path) -> UInt8[np.ndarray, "..."]:
    """Return the array of unsigned bytes in the unpacked bytes of the ``idx`` file ``path``.

    Raises:
        DataError: if they are not that.
    """
    if len(data) < 4 or data[:3] != UNSIGNED or data[3] > MOST_DIMENSIONS or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an idx file of unsigned bytes: it starts with {data[:4]!r}")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=data[3], offset=4))
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path} says {shape} but holds {len(data) - start} bytes")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def write_idx(array: UInt8[np.ndarray, "..."]) -> bytes:
    """Return the gzipped ``idx`` bytes of an array of unsigned bytes, the same on every run."""
    return gzip.compress(header(array.shape) + np.ascontiguousarray(array).tobytes(), compresslevel=9, mtime=0)


def header(shape: tuple[int, ...]) -> bytes:
    """Return what stands before the bytes of an array."""
    return UNSIGNED + bytes([len(shape)]) + np.array(shape, dtype=">u4").tobytes()
