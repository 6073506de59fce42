"""Readers of data that do not come with the package, on made-up files: records, arrays, folders of images, archives."""

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from rdc.data import CIFAR10, DataError, check_name, load
from rdc.data.cifar import BINARY, read_records
from rdc.data.download import Archive, download
from rdc.data.folder import RESTRICTED, image_folder, middle, restricted_imagenet
from rdc.rng import generator


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path_factory):
    """No data of this machine."""
    monkeypatch.delenv("RDC_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def noise(*shape, seed=0, top=256):
    """Bytes below ``top``."""
    return torch.randint(top, shape, generator=generator("files", seed), dtype=torch.uint8).numpy()


def records(n, labels=1, classes=10, seed=0):
    """``n`` records with ``labels`` label bytes."""
    return np.concatenate([noise(n, labels, seed=seed, top=classes), noise(n, 3072, seed=seed + 1)], axis=1)


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


# CIFAR-10 and CIFAR-100


@pytest.mark.parametrize(("name", "train", "test"), [("cifar10", "data_batch_1", "test_batch"), ("cifar100", "train", "test")])
def test_records_become_images_and_labels(tmp_path, name, train, test):
    kind = BINARY[name]
    for seed, stem in enumerate((train, test)):
        records(7, kind.labels, kind.count, seed=10 * seed).tofile(tmp_path / f"{stem}.bin")
    for seed, split in enumerate(("train", "test")):
        rows, images = records(7, kind.labels, kind.count, seed=10 * seed), load(name, split, tmp_path)
        assert images.x.shape == (7, 3, 32, 32) and images.x.dtype == torch.float32 and images.x.is_contiguous()
        assert images.y.tolist() == rows[:, kind.labels - 1].tolist() and images.y.dtype == torch.int64
        assert torch.equal(images.x.flatten(1), torch.from_numpy(rows[:, kind.labels :] / np.float32(255)))
        assert len(images.classes) == kind.count


def test_several_batches_and_parts_of_batches_are_joined_in_order(tmp_path):
    home = tmp_path / "cifar-10-batches-bin"
    home.mkdir()
    names = ["data_batch_3.bin", "data_batch_1.first4.bin", "data_batch_2.bin"]
    for seed, name in zip((3, 1, 2), names, strict=True):
        records(4, seed=seed).tofile(home / name)
    images = load("cifar10", "train", tmp_path)  # the archive's own folder inside
    assert images.y.tolist() == [int(y) for seed in (1, 2, 3) for y in records(4, seed=seed)[:, 0]]
    assert images.classes == list(CIFAR10)


def test_a_whole_file_stands_for_its_parts_and_two_parts_for_nothing(tmp_path):
    records(2, seed=1).tofile(tmp_path / "test_batch.first2.bin")
    records(3, seed=2).tofile(tmp_path / "test_batch.bin")
    assert len(load("cifar10", "test", tmp_path)) == 3
    (tmp_path / "test_batch.bin").rename(tmp_path / "test_batch.last3.bin")
    with pytest.raises(DataError, match=r"several parts of test_batch\.bin .*test_batch\.first2\.bin, test_batch\.last3\.bin"):
        load("cifar10", "test", tmp_path)


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(3073)), elements=st.integers(0, 9)))
def test_records_survive_a_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "a.bin"
    rows.tofile(path)
    images, labels = read_records(path, 1, 10)
    assert np.array_equal(np.concatenate([labels[:, None], images.reshape(len(rows), -1)], axis=1), rows)


@given(st.binary(max_size=3200))
def test_any_bytes_are_records_or_give_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("records") / "a.bin"
    path.write_bytes(data)
    try:
        read_records(path, 1, 10)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(data) == 3073 and data[0] < 10


ODD_RECORDS = {
    "empty": (b"", "its 0 bytes are not n records of 3073 bytes"),
    "one byte less": (records(2).tobytes()[:-1], "6145 bytes"),
    "a label that is none": (b"\x0a" + bytes(3072), "the label 10, and there are 10 classes"),
    "a page": (b"<html>404</html>", "16 bytes"),
    "pickle": (pickle.dumps({"data": noise(2, 3072)}), "not n records"),
}


@pytest.mark.parametrize("case", ODD_RECORDS)
def test_odd_records_are_named(tmp_path, case):
    data, message = ODD_RECORDS[case]
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        load("cifar10", "test", tmp_path)
    assert "test_batch.bin" in one_line(error)


def test_without_files_one_line_says_which_and_where(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"put data_batch_1\*\.bin, .*into a folder and set RDC_DATA .*cifar-10-binary") as error:
        load("cifar10", "train", tmp_path)
    assert str(tmp_path) in one_line(error)
    records(5).tofile(tmp_path / "test_batch.first5.bin")
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    assert len(load("cifar10")) == 5
    with pytest.raises(DataError, match="data_batch_1"):  # the other split is not there
        load("cifar10", "train")


def test_names_of_cifar100(tmp_path):
    records(2, 2, 100).tofile(tmp_path / "test.bin")
    assert load("cifar100", "test", tmp_path).classes[:2] == ["0", "1"]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"fine_{k}" for k in range(100)))
    assert load("cifar100", "test", tmp_path).classes[99] == "fine_99"
    (tmp_path / "fine_label_names.txt").write_text("apple")
    with pytest.raises(DataError, match="holds 1 names, not 100"):
        load("cifar100", "test", tmp_path)


@pytest.mark.parametrize("name", ["cifar10-c", "cifar10-c:fog", "folder", "folder:", "mnist:3", "cifar10:1", ""])
def test_names_that_are_none(name):
    with pytest.raises(DataError, match="unknown data set.*folder:PATH") as error:
        check_name(name)
    one_line(error)


# CIFAR-10-C


def test_a_corruption_at_a_severity(tmp_path, monkeypatch):
    from rdc.data import cifar

    monkeypatch.setattr(cifar, "SEVERITY", 4)
    images, labels = noise(20, 32, 32, 3), noise(20, top=10)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    found = load("cifar10-c:fog:3", folder=tmp_path)
    assert found.y.tolist() == labels[8:12].tolist()
    assert torch.equal((255 * found.x).round().byte(), torch.from_numpy(images[8:12]).permute(0, 3, 1, 2))
    for name, message in {"fog:6": "1...5, got 6", "snow:1": "no snow.npy in .*: fog, labels", "fog:x": "'x'"}.items():
        with pytest.raises(DataError, match=message) as error:
            load(f"cifar10-c:{name}", folder=tmp_path)
        one_line(error)
    with pytest.raises(DataError, match="unknown split 'train'"):
        load("cifar10-c:fog:3", "train", tmp_path)
    np.save(tmp_path / "snow.npy", images.astype(np.float32))
    with pytest.raises(DataError, match="should hold bytes of shape"):
        load("cifar10-c:snow:1", folder=tmp_path)


class Flag:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_an_array_of_objects_is_not_unpickled(tmp_path, monkeypatch):
    flag = tmp_path / "flag"
    np.save(tmp_path / "labels.npy", noise(50_000, top=10))
    np.save(tmp_path / "fog.npy", np.array([Flag(flag)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"fog\.npy is damaged or another file") as error:
        load("cifar10-c:fog:1", folder=tmp_path)
    assert one_line(error) and not flag.exists()


# A reader's own images


def write(path: Path, pixels, **options):
    """Write an image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def own(tmp_path):
    """Two classes of coloured images of 6x6."""
    for split, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("apple", "pear")):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", noise(6, 6, 3, seed=10 * k + i))
    return tmp_path


def test_a_folder_of_images(own):
    train, test = load(f"folder:{own}", "train"), load(f"folder:{own}", "test")
    assert train.classes == test.classes == ["apple", "pear"] and train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.x.shape == (4, 3, 6, 6) and test.x.dtype == torch.float32 and test.x.is_contiguous()
    for image, seed in zip(train.x, (0, 1, 2, 10, 11, 12), strict=True):
        assert torch.equal((255 * image).round().byte(), torch.from_numpy(noise(6, 6, 3, seed=seed)).permute(2, 0, 1))


def test_grey_images_have_one_channel_and_mixed_ones_three(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    for name in ("a", "b"):
        write(folder / "test" / name / "1.png", noise(6, 6))
    assert load(f"folder:{folder}").x.shape == (2, 1, 6, 6)
    write(own / "test" / "apple" / "9.png", noise(6, 6, seed=9))
    mixed = load(f"folder:{own}")
    assert mixed.x.shape == (5, 3, 6, 6) and torch.equal(mixed.x[2, 0], mixed.x[2, 2])


def test_a_class_without_test_images_keeps_the_labels_of_training(own):
    for file in (own / "test" / "apple").iterdir():
        file.unlink()
    (own / "test" / "apple").rmdir()
    assert load(f"folder:{own}").y.tolist() == [1, 1]


def test_jpeg_images_and_hidden_files(own):
    write(own / "test" / "pear" / "9.JPG", np.full((6, 6, 3), 200, dtype=np.uint8), quality=95)
    (own / "test" / "pear" / ".DS_Store").write_bytes(b"x")
    (own / "test" / ".cache").mkdir()
    assert (load(f"folder:{own}").x[-1] * 255 - 200).abs().max() <= 2


ODD_IMAGES = {
    "another size": (lambda p: write(p, noise(6, 7, 3)), r"odd.png is of 7 x 6 pixels, the images before it of 6 x 6"),
    "text": (lambda p: p.with_suffix(".txt").write_text("x"), r"odd\.txt is no image that is read here"),
    "a gif in disguise": (lambda p: write(p, noise(6, 6), format="GIF"), "cannot read the image .*odd.png"),
    "truncated": (lambda p: p.write_bytes(write(p, noise(6, 6, 3)).read_bytes()[:60]), "cannot read the image .*odd.png"),
    "empty": (lambda p: p.write_bytes(b""), "cannot read the image .*odd.png"),
    "16 bits": (lambda p: write(p, noise(6, 6).astype(np.uint16)), "more than 8 bits"),
    "a folder": (lambda p: p.mkdir(), "cannot read the image .*odd.png"),
    "huge": (lambda p: p.write_bytes(huge()), "cannot read the image .*odd.png"),
    "another class": (lambda p: write(p.parents[1] / "plum" / "1.png", noise(6, 6, 3)), "has the class 'plum', .*train has not"),
}


def huge() -> bytes:
    """A PNG whose header says 60 000 x 60 000 pixels."""
    import zlib

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (60_000).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(9)))


@pytest.mark.parametrize("case", ODD_IMAGES)
def test_odd_images_are_named(own, case):
    make, message = ODD_IMAGES[case]
    make(own / "test" / "pear" / "odd.png")
    with pytest.raises(DataError, match=message) as error:
        load(f"folder:{own}")
    one_line(error)
    assert len(load(f"folder:{own}", "train")) == 6


def test_folders_without_images(tmp_path):
    for make, message in (
        (lambda: None, "no folder"),
        (lambda: (tmp_path / "test" / "a").mkdir(parents=True), "between 2 and 256 classes.*got 1"),
        (lambda: (tmp_path / "test" / "b").mkdir(), "no image in"),
        (lambda: write(tmp_path / "test" / "a" / "1.png", noise(4, 5, 3)), "must be a square"),
    ):
        make()
        with pytest.raises(DataError, match=message) as error:
            image_folder(tmp_path, "test")
        one_line(error)


# Restricted ImageNet


def test_restricted_imagenet_joins_runs_of_classes(tmp_path):
    for k in range(1000):
        (tmp_path / "val" / f"n{k:08}").mkdir(parents=True)
    with pytest.raises(DataError, match="no image of a class of Restricted ImageNet"):
        restricted_imagenet(tmp_path, "test", 8)
    for seed, k in enumerate((150, 151, 268, 269, 30, 319)):
        write(tmp_path / "val" / f"n{k:08}" / "a.JPEG", noise(20, 24, 3, seed=seed), quality=95)
    images = load("restricted-imagenet:8", folder=tmp_path)
    assert images.classes == list(RESTRICTED) and images.x.shape == (4, 3, 8, 8)
    assert [images.classes[k] for k in images.y] == ["dog", "dog", "frog", "insect"]
    (tmp_path / "val" / "n00000999").rmdir()
    with pytest.raises(DataError, match="must hold the 1000 folders of ImageNet.*got 999"):
        load("restricted-imagenet:8", folder=tmp_path)
    with pytest.raises(DataError, match="'0' in the name"):
        load("restricted-imagenet:0", folder=tmp_path)


def test_the_classes_of_restricted_imagenet_do_not_overlap():
    runs = sorted(RESTRICTED.values())
    assert all(a[1] < b[0] for a, b in zip(runs, runs[1:], strict=False)) and all(a <= b for a, b in runs)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_the_middle_of_an_image(height, width, side):
    ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3))
    found = middle(np.ascontiguousarray(ramp), side)
    assert found.shape == (side, side, 3)
    if width % 2 == side % 2 and height == side <= width:  # no resizing: exactly the middle columns
        left = (width - side) // 2
        assert np.array_equal(found, ramp[:, left : left + side])


# Archives


def packed(tmp_path, members):
    """A ``.tar.gz`` with members ``{name: bytes or a link's target}``, and what describes it."""
    path = tmp_path / "made-up.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            out.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return Archive(path.as_uri(), "sha256", hashlib.sha256(path.read_bytes()).hexdigest(), "inside")


def test_an_archive_is_checked_and_only_its_plain_files_are_unpacked(tmp_path):
    bad = {"../escape.bin": b"x", "/absolute.bin": b"x", "inside/../up.bin": b"x", "inside/deep/a.bin": b"x", "inside/l": "a.bin"}
    archive, out = packed(tmp_path, {"inside/a.bin": b"1", "inside/b.txt": b"2", **bad}), tmp_path / "out"
    assert download(archive, out) == out / "inside"
    assert {p.name: p.read_bytes() for p in (out / "inside").iterdir()} == {"a.bin": b"1", "b.txt": b"2"}
    assert sorted(p.name for p in out.iterdir()) == ["inside"] and not (tmp_path / "escape.bin").exists()


def test_a_download_that_fails_leaves_nothing(tmp_path):
    archive, out = packed(tmp_path, {"inside/a.bin": b"1"}), tmp_path / "out"
    text = tmp_path / "text.tar.gz"
    text.write_bytes(b"<html>")
    cases = {
        "damaged or another file: its sha256 is": replace(archive, digest="0" * 64),
        "cannot download .*put absent.tar.gz or its files into": replace(archive, url=(tmp_path / "absent.tar.gz").as_uri()),
        "is no archive": replace(archive, url=text.as_uri(), digest=hashlib.sha256(b"<html>").hexdigest()),
    }
    for message, case in cases.items():
        with pytest.raises(DataError, match=message) as error:
            download(case, out)
        assert one_line(error) and not list(out.iterdir())


def test_cifar10_is_fetched_when_asked_to(tmp_path, monkeypatch):
    archive = replace(packed(tmp_path, {"inside/test_batch.bin": records(3).tobytes()}), inside="inside")
    monkeypatch.setitem(BINARY, "cifar10", replace(BINARY["cifar10"], archive=archive))
    with pytest.raises(DataError, match="download=True"):
        load("cifar10", folder=tmp_path / "data")
    assert len(load("cifar10", folder=tmp_path / "data", download=True)) == 3
    (tmp_path / "made-up.tar.gz").unlink()
    assert len(load("cifar10", folder=tmp_path / "data", download=True)) == 3  # what is there is not fetched again
