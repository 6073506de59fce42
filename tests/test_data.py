"""Data: what the files hold, and that nothing else is accepted."""

import gzip
import hashlib
import importlib.util
import inspect
import io
import shutil
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rdc.data import ASSETS, CIFAR10, SOURCES, DataError, check_images, check_labels, load, parse_idx, read_idx, write_idx

EMBEDDED = [(name, split) for name, source in SOURCES.items() if source.embedded for split in ("train", "test")]
FILES = [(name, file, digest) for name, source in SOURCES.items() if source.embedded for file, digest in source.files.items()]
SIZES = {("digits", "train"): 1397, ("digits", "test"): 400, ("fashion-mini", "train"): 10_000, ("fashion-mini", "test"): 1000}


@pytest.mark.parametrize(("name", "file", "digest"), FILES)
def test_the_unpacked_bytes_have_the_recorded_hash(name, file, digest):
    assert hashlib.sha256(gzip.decompress((ASSETS / file).read_bytes())).hexdigest() == digest


@pytest.mark.parametrize(("name", "split"), EMBEDDED)
def test_embedded_images(name, split):
    images = load(name, split)
    side = {"digits": 8, "fashion-mini": 28}[name]
    assert images.x.shape == (SIZES[name, split], 1, side, side) and images.x.dtype == torch.float32
    assert images.x.min() == 0 and images.x.max() == 1
    assert images.y.dtype == torch.int64 and images.y.unique().tolist() == list(range(10))
    assert len(images) == SIZES[name, split] and len(set(images.classes)) == 10


@pytest.mark.parametrize("name", ["digits", "fashion-mini"])
def test_first_test_images_hold_the_same_number_of_each_class(name):
    y = load(name, "test").y
    for m in range(1, int(torch.bincount(y).min()) + 1):
        assert torch.bincount(y[: 10 * m]).tolist() == [m] * 10


@pytest.mark.parametrize("name", ["digits", "fashion-mini"])
def test_train_and_test_share_no_image(name):
    train, test = ({row.tobytes() for row in load(name, split).x.numpy()} for split in ("train", "test"))
    assert not train & test


def test_a_slice_and_an_index_keep_images_and_labels_together():
    images = load("digits", "test")
    order = torch.tensor([5, 1, 7])
    part = images[order]
    assert len(part) == 3 and torch.equal(part.x, images.x[order]) and torch.equal(part.y, images.y[order])
    assert len(images[:4]) == 4 and images[:4].classes == images.classes


def test_fashion_mini_is_a_part_of_fashion(fashion):
    for split, whole in zip(("train", "test"), fashion, strict=True):
        assert len(whole) == {"train": 60_000, "test": 10_000}[split]
        pairs = {(row.tobytes(), int(label)) for row, label in zip(whole.x.numpy(), whole.y, strict=True)}
        mini = load("fashion-mini", split)
        assert all((row.tobytes(), int(label)) in pairs for row, label in zip(mini.x.numpy(), mini.y, strict=True))


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=6)))
def test_idx_round_trip(array):
    packed = write_idx(array)
    assert np.array_equal(parse_idx(gzip.decompress(packed), Path("a")), array) and packed == write_idx(array)


@given(st.binary(max_size=40))
def test_any_bytes_either_parse_or_give_a_data_error(data):
    try:
        array = parse_idx(data, Path("some.gz"))
    except DataError as error:
        assert "some.gz" in str(error)
    else:
        assert gzip.decompress(write_idx(array)) == data


def damaged(tmp_path, change):
    """A copy of the digits in which one file was changed, and the name of that file."""
    for file in SOURCES["digits"].files:
        shutil.copy(ASSETS / file, tmp_path / file)
    first = next(iter(SOURCES["digits"].files))
    change(tmp_path / first)
    return tmp_path / first


def flip(path):
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[100] ^= 1
    path.write_bytes(gzip.compress(bytes(data)))


def flip_packed(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


CHANGES = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "flipped byte": flip,
    "flipped packed byte": flip_packed,
    "empty": lambda p: p.write_bytes(b""),
    "not gzip": lambda p: p.write_bytes(b"<html>404</html>"),
    "other file": lambda p: shutil.copy(ASSETS / list(SOURCES["digits"].files)[1], p),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_file_is_named_with_its_hash_and_a_remedy(tmp_path, change):
    file = damaged(tmp_path, CHANGES[change])
    with pytest.raises(DataError) as error:
        load("digits", "train", folder=tmp_path)
    message = str(error.value)
    assert str(file) in message and SOURCES["digits"].files[file.name] in message
    assert "restore the file" in message and "\n" not in message
    load("digits", "test", folder=tmp_path)  # the other files are whole


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz.*RDC_DATA"):
        load("fashion", "train", folder=tmp_path)
    labels = list(SOURCES["digits"].files)[1]
    damaged(tmp_path, lambda p: (p.parent / labels).unlink())
    with pytest.raises(DataError, match=f"{labels}.*expected sha256.*restore"):
        load("digits", "train", folder=tmp_path)


def test_unknown_names():
    with pytest.raises(DataError, match="mnist.*digits, fashion-mini, fashion, cifar10-20"):
        load("mnist")
    with pytest.raises(DataError, match="valid.*train, test"):
        load("digits", "valid")


def test_a_file_with_the_right_hash_that_is_no_idx_file(tmp_path):
    data = b"\x00\x00\x0d\x01" + bytes(8)
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match=r"a\.gz is damaged or another file: it starts with"):
        read_idx(tmp_path / "a.gz", hashlib.sha256(data).hexdigest(), (8,))


def zeros(count: int) -> bytes:
    """A gzip stream of ``count`` MiB of zeros: one flushed block, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + (count - 1) * again + packer.flush()


DIGITS = list(SOURCES["digits"].files)[0]
HEAD = gzip.decompress((ASSETS / DIGITS).read_bytes())[:16]
LONGER = np.array([3_000_000, 8, 8], dtype=">u4").tobytes()
BOMBS = {
    "zeros": lambda whole: gzip.compress(b"") + zeros(1024),
    "the right header": lambda whole: gzip.compress(HEAD) + zeros(1024),
    "a header that promises more": lambda whole: gzip.compress(HEAD[:4] + LONGER) + zeros(1024),
    "after the whole file": lambda whole: whole + zeros(1024),
    "many members": lambda whole: gzip.compress(HEAD) + 1024 * gzip.compress(bytes(2**20)),
    "one byte more": lambda whole: whole + gzip.compress(b"0"),
    "garbage behind": lambda whole: whole + b"garbage",
    "one byte less": lambda whole: gzip.compress(gzip.decompress(whole)[:-1]),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_unpacks_to_more_is_found_out_in_little_memory(tmp_path, bomb):
    file = damaged(tmp_path, lambda p: p.write_bytes(BOMBS[bomb](p.read_bytes())))
    tracemalloc.start()
    with pytest.raises(DataError) as error:
        load("digits", "train", folder=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6 and str(file) in str(error.value) and "\n" not in str(error.value)


def test_the_bomb_of_these_tests_is_one():
    assert len(zeros(1024)) < 2e6
    with gzip.open(io.BytesIO(zeros(2))) as stream:
        assert stream.read(2**21) == bytes(2**21)


@given(data=st.data())
def test_any_change_of_the_packed_bytes_is_found_or_leaves_the_images(tmp_path_factory, data):
    array = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    packed = bytearray(write_idx(array))
    digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    position = data.draw(st.integers(0, len(packed) - 1))
    if data.draw(st.booleans()):
        packed[position] ^= data.draw(st.integers(1, 255))
    else:
        packed[position:] = data.draw(st.binary(max_size=40))
    path = tmp_path_factory.mktemp("idx") / "a.gz"
    path.write_bytes(packed)
    try:
        assert np.array_equal(read_idx(path, digest, array.shape), array)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)


FOOLBOX = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed")


def foolbox_folder():
    return Path(importlib.util.find_spec("foolbox").origin).parent / "data"


@FOOLBOX
def test_twenty_images_of_cifar10():
    before = set(sys.modules)
    images = load("cifar10-20")
    assert not {name for name in set(sys.modules) - before if name.startswith("foolbox")}  # found without running it
    assert images.x.shape == (20, 3, 32, 32) and images.x.dtype == torch.float32 and images.x.is_contiguous()
    assert images.x.min() == 0 and images.x.max() == 1 and torch.equal((255 * images.x).round() / 255, images.x)
    names = sorted(path.name for path in foolbox_folder().glob("cifar10_*"))
    assert [f"cifar10_{i:02}_{y}.png" for i, y in enumerate(images.y.tolist())] == names
    assert images.classes == list(CIFAR10) and len(images[:3]) == 3


@FOOLBOX
def test_pixels_of_cifar10_are_those_of_an_independent_reader():
    from matplotlib.image import imread

    images = load("cifar10-20", "test")
    files = sorted(foolbox_folder().glob("cifar10_*"))
    for image, file in zip(images.x, files, strict=True):
        assert torch.allclose(image, torch.from_numpy(imread(file)).permute(2, 0, 1)[:3], atol=1e-6)


@FOOLBOX
@pytest.mark.parametrize("damage", ["missing", "swapped", "truncated", "pixel"])
def test_damaged_images_of_cifar10_are_named(tmp_path, damage):
    from PIL import Image

    files = [Path(shutil.copy(file, tmp_path)) for file in sorted(foolbox_folder().glob("cifar10_*"))]
    load("cifar10-20", folder=tmp_path)
    if damage == "missing":
        files[3].unlink()
    elif damage == "swapped":
        shutil.copy(files[0], files[1])
    elif damage == "truncated":
        files[5].write_bytes(files[5].read_bytes()[:300])
    else:
        pixels = np.array(Image.open(files[7]))
        pixels[3, 4, 1] ^= 1
        Image.fromarray(pixels).save(files[7])
    with pytest.raises(DataError, match="pip install foolbox") as error:
        load("cifar10-20", folder=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_without_foolbox_the_images_of_cifar10_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(DataError, match="'cifar10-20' lies in the package foolbox; install it with 'pip install foolbox'"):
        load("cifar10-20")
    with pytest.raises(DataError, match="unknown split 'train' of cifar10-20; there are test"):
        load("cifar10-20", "train")


GOOD = torch.full((2, 1, 3, 3), 0.5)


def with_value(value):
    x = GOOD.clone()
    x[1, 0, 1, 1] = value
    return x


BAD_IMAGES = {
    "nan": (with_value(torch.nan), r"\[0, 1\]"),
    "infinite": (with_value(torch.inf), r"\[0, 1\]"),
    "above": (with_value(1.001), r"\[0, 1\]"),
    "below": (with_value(-1e-6), r"\[0, 1\]"),
    "bytes": ((GOOD * 255).to(torch.uint8), "divide bytes by 255"),
    "array": (GOOD.numpy(), "ndarray"),
    "empty": (GOOD[:0], "non-empty"),
    "one image": (GOOD[0], "batch"),
    "shape": (torch.zeros(2, 1, 3, 4), r"\(1, 3, 4\).*\(1, 3, 3\)"),
    "channels": (torch.zeros(2, 3, 3, 3), r"\(3, 3, 3\).*\(1, 3, 3\)"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_refused(case):
    x, message = BAD_IMAGES[case]
    check_images(GOOD, (1, 3, 3))
    with pytest.raises(ValueError, match=message) as error:
        inspect.unwrap(check_images)(x, (1, 3, 3))  # what a user meets, who has no type checker
    assert "\n" not in str(error.value)


BAD_LABELS = {
    "too few": torch.tensor([0]),
    "float": torch.tensor([0.0, 1.0]),
    "int32": torch.tensor([0, 1], dtype=torch.int32),
    "negative": torch.tensor([0, -1]),
    "too large": torch.tensor([0, 3]),
    "matrix": torch.zeros(2, 1, dtype=torch.int64),
    "list": [0, 1],
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_refused(case):
    check_labels(torch.tensor([0, 2]), 2, 3)
    with pytest.raises(ValueError, match="labels must"):
        inspect.unwrap(check_labels)(BAD_LABELS[case], 2, 3)
