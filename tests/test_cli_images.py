"""Images as the commands take them: folders are checked whole, classes take turns, changed images go with unchanged models."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import run
from test_data_files import noise, records, write

from rdc.cli.images import in_turns, order_of, read, trained_on
from rdc.cli.options import first_images, tidy
from rdc.data import DataError, Images
from rdc.rng import generator


@pytest.fixture
def own(tmp_path):
    """Two classes of coloured images of 6x6, named after their content."""
    for split, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("apple", "pear")):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", np.full((6, 6, 3), 100 * k + 10 * i, dtype=np.uint8))
    return tmp_path


def first_bytes(x):
    """The first pixel of each image."""
    return (255 * x[:, 0, 0, 0]).round().int().tolist()


def test_classes_take_turns(own):
    assert first_bytes(read(f"folder:{own}", "test").x) == [0, 10, 100, 110]
    x, y = first_images(f"folder:{own}", 3)
    assert y.tolist() == [0, 1, 0] and first_bytes(x) == [0, 100, 10]
    x, y = first_images(f"folder:{own}", 2, start=2)
    assert y.tolist() == [0, 1] and first_bytes(x) == [10, 110]


@pytest.mark.parametrize("seed", range(5))
def test_any_first_images_are_balanced_as_far_as_there_are_any(seed):
    y = torch.randint(4, (40,), generator=generator("turns", seed)).sort().values
    found = in_turns(Images(torch.arange(40.0).reshape(-1, 1, 1, 1), y, list("abcd")))
    assert sorted(found.x.flatten().tolist()) == list(range(40))
    assert torch.equal(y[found.x.flatten().long()], found.y)
    total = torch.bincount(y, minlength=4)
    for n in range(1, 41):
        seen = torch.bincount(found.y[:n], minlength=4)
        assert all(seen[a] >= min(total[a], seen.max() - 1) for a in range(4))


def test_other_data_keep_their_order_and_rows_say_which_it_is():
    assert [bool(order_of(data)) for data in ("folder:a", "restricted-imagenet:64", "digits", "cifar10-c:fog:3")] == [1, 1, 0, 0]
    assert first_images("digits", 20)[1].tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize("grey", ["train", "test"])
def test_one_coloured_split_makes_both_coloured(tmp_path, grey):
    for split in ("train", "test"):
        for name in "ab":
            write(tmp_path / split / name / "0.png", noise(6, 6) if split == grey else noise(6, 6, 3))
    for split in ("train", "test"):
        x = read(f"folder:{tmp_path}", split).x
        assert x.shape == (2, 3, 6, 6) and x.is_contiguous()
        if split == grey:
            assert torch.equal(x[:, :1].expand_as(x), x)


def test_grey_images_stay_grey(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            write(tmp_path / split / name / "0.png", noise(6, 6))
    assert read(f"folder:{tmp_path}", "test").x.shape == (2, 1, 6, 6)


def with_alpha(path, mode, alpha):
    pixels = np.full((6, 6, len(mode)), 255, dtype=np.uint8)
    pixels[0, 0, -1] = alpha
    write(path, pixels)


def without(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


ODD = {
    "transparent red": (lambda p: with_alpha(p / "test" / "pear" / "9.png", "RGBA", 0), "test/pear/9.png is partly transparent"),
    "transparent grey": (lambda p: with_alpha(p / "train" / "pear" / "9.png", "LA", 254), "train/pear/9.png is partly transp"),
    "a transparent shade": (
        lambda p: Image.fromarray(np.zeros((6, 6), dtype=np.uint8)).save(p / "test" / "pear" / "9.png", transparency=0),
        "test/pear/9.png is partly transparent; save it without",
    ),
    "another size": (
        lambda p: [write(p / "train" / c / f"{i}.png", noise(8, 8, 3)) for c in ("apple", "pear") for i in range(3)],
        "train/apple/0.png is of 8 x 8 pixels, the test images of 6 x 6; both must be alike",
    ),
    "an empty class": (lambda p: (p / "train" / "plum").mkdir(), "there is no image in the class .*train/plum; put some there"),
    "no test": (lambda p: (p / "test").rename(p / "val"), r"has no folder test; it must hold train/<class>/\*\.png and test/"),
    "no splits": (
        lambda p: [(p / "test").rename(p / "a"), (p / "train").rename(p / "b")],
        r"has no folder test; it must hold train/<class>/\*\.png and test/<class>",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_folders_are_named(own, case):
    make, says = ODD[case]
    make(own)
    with pytest.raises(DataError, match=says) as error:
        read(f"folder:{own}", "test")
    assert "\n" not in str(error.value)


def test_alpha_that_hides_nothing_is_dropped(own):
    with_alpha(own / "test" / "pear" / "9.png", "RGBA", 255)
    x = read(f"folder:{own}", "test").x
    assert x.shape == (5, 3, 6, 6) and bool((x[-1] == 1).all())


def test_a_folder_of_the_home_has_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert tidy("folder:~/imgs") == "folder:imgs"
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    assert tidy("folder:~/imgs") == f"folder:{os.path.normpath(tmp_path / 'imgs')}"


def test_cifar100_beside_cifar10(tmp_path, monkeypatch):
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "cifar-100-binary").mkdir()
    records(3).tofile(tmp_path / "test_batch.first1000.bin")
    records(5, 2, 100).tofile(tmp_path / "cifar-100-binary" / "test.first5.bin")
    assert len(read("cifar10", "test")) == 3
    found = read("cifar100", "test")
    assert len(found.classes) == 100 and found.y.tolist() == records(5, 2, 100)[:, 1].tolist()


def test_corrupted_images_go_with_the_models_of_the_clean_ones(monkeypatch, capsys, tmp_path):
    from rdc.data import cifar

    assert [trained_on(data) for data in ("cifar10-c:fog:3", "cifar10", "folder:a")] == ["cifar10", "cifar10", "folder:a"]
    monkeypatch.setattr(cifar, "SEVERITY", 2)
    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    np.save(tmp_path / "fog.npy", noise(10, 32, 32, 3))
    np.save(tmp_path / "labels.npy", noise(10, top=10))
    for model in ("cifar10-small", "dc"):
        options = ["--model", model, "--data", "cifar10-c:fog:3", "--n", "2", "--levels", "1", "-q"]
        code, out, err = run(monkeypatch, capsys, "accuracy", *options)
        assert (code, err) == (0, "") and re.match(rf"{model} on cifar10-c:fog:3: [012]/2 = ", out)
