"""The blind comparison: its images, the order that hides which is which, its statistics, and what the page may not do."""

import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess

import blind_pairs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from rdc.denoise.checkpoints import read_checkpoint
from rdc.guide.classifier import SHIPPED, shipped_classifiers

ROOT = blind_pairs.ROOT
SCRIPT, MARKUP = ROOT / "_static" / "blind.js", ROOT / "book" / "blind" / "widget.html"
NODE = shutil.which("node")
N = len(blind_pairs.SEEDS)


# The tool


@given(pairs=st.integers(1, 60), columns=st.integers(1, 12), size=st.integers(1, 4))
def test_every_image_lies_in_its_own_cell(pairs, columns, size):
    cells, images = blind_pairs.places(pairs), torch.arange(pairs * 2 * size * size).reshape(pairs, 2, size, size)
    assert sorted(cells.flatten().tolist()) == list(range(2 * pairs))
    sprite = blind_pairs.sprite_of(images, cells, columns)
    assert sprite.shape == (math.ceil(2 * pairs / columns) * size, columns * size)
    for i in range(pairs):
        for side in (0, 1):
            assert torch.equal(blind_pairs.tile(sprite, int(cells[i, side]), size), images[i, side])


@given(st.lists(st.booleans(), max_size=70))
def test_the_seal_opens(bits):
    assert blind_pairs.unseal(blind_pairs.seal(bits), len(bits)) == bits


def test_the_description_names_the_guided_image_only_under_the_seal():
    cells = torch.tensor([[3, 0], [1, 2], [5, 4]])  # plain, guided
    found = blind_pairs.describe(cells, [0, 1, 12], [f"class {k}" for k in range(10)])
    assert found["pairs"] == [
        {"class": "class 0", "seed": 0, "cells": [0, 3]},
        {"class": "class 1", "seed": 1, "cells": [1, 2]},
        {"class": "class 2", "seed": 12, "cells": [4, 5]},
    ]
    assert blind_pairs.unseal(found["sealed"], 3) == [True, False, True]


def test_places_tell_nothing_about_the_side():
    """The guided image lies first about as often as the plain one, and both lie all over the sprite."""
    cells = blind_pairs.places(N)
    first = int((cells[:, 1] < cells[:, 0]).sum())
    assert binomtest(first, N).pvalue > 0.05
    top = int((cells[:, 1] < N).sum())  # guided images in the upper half; hypergeometric with mean N / 2
    assert abs(top - N / 2) < 3 * math.sqrt(N / 8)


def test_the_difference_of_pairs_is_the_mean_over_pixels():
    images = torch.tensor([[[[0, 0]], [[2, 4]]], [[[9, 0]], [[0, 0]]], [[[255, 255]], [[0, 0]]]], dtype=torch.uint8)
    assert blind_pairs.unlikeness(images) == {"median": 4.5, "max": 255.0}


# What it made


def test_the_page_holds_all_pairs_and_says_where_they_come_from():
    record, content = blind_pairs.read_pairs(), blind_pairs.SPRITE.read_bytes()
    assert [pair["seed"] for pair in record["pairs"]] == list(range(12))
    names = [pair["class"] for pair in record["pairs"]]
    assert len(set(names)) == 10
    assert sorted(c for pair in record["pairs"] for c in pair["cells"]) == list(range(24))
    with Image.open(blind_pairs.SPRITE) as image:
        assert image.mode == "L" and image.size == (28 * record["columns"], 28 * record["rows"]) and not image.info
    source = record["provenance"]
    assert source["sprite_sha256"] == hashlib.sha256(content).hexdigest()
    assert source["environment"]["commit"] and source["guide"]["scale"] > 0
    assert len(content) + blind_pairs.PAGE.stat().st_size < 150_000


@pytest.mark.parametrize("guided", [False, True])
def test_the_images_are_those_of_the_shipped_classifier(guided):
    """The pair that differs most, sampled again, tells the sides apart; another processor may round a grey level differently."""
    record, sprite = blind_pairs.read_pairs(), blind_pairs.read_sprite()
    source = record["provenance"]
    guide = source["guide"]
    path = SHIPPED / f"{guide['name']}.safetensors"
    assert guide["name"] in shipped_classifiers()
    assert read_checkpoint(path, "classifier")[1]["tensors_sha256"] == guide["tensors_sha256"]
    tiles = torch.stack([torch.stack([blind_pairs.tile(sprite, c) for c in pair["cells"]]) for pair in record["pairs"]]).int()
    unlike = tiles.diff(dim=1).abs().flatten(1).float().mean(dim=1)
    assert source["difference"] == {"median": round(float(unlike.median()), 2), "max": round(float(unlike.max()), 2)}
    seed = int(unlike.argmax())
    own = 0 if blind_pairs.unseal(record["sealed"], N)[seed] == guided else 1
    image = blind_pairs.guided(path, guided * guide["scale"], [seed], source["sampler"], source["conditional"])[0].int()
    assert unlike.min() > 3, "pairs that nobody can tell apart"
    far = [int((image - there).abs().max()) for there in tiles[seed]]
    assert far[own] <= 3 < far[1 - own]


# The page


def test_the_script_finds_its_parts():
    script, markup = SCRIPT.read_text(encoding="utf8"), MARKUP.read_text(encoding="utf8")
    assert set(re.findall(r'part\("(\w+)"\)', script)) == set(re.findall(r'data-part="(\w+)"', markup))
    assert set(re.findall(r'data-answer="(\w+)"', markup)) == {"left", "right", "none"}
    for name in re.findall(r'getElementById\("([\w-]+)"\)', script):
        assert f'id="{name}"' in markup + blind_pairs.HEAD
    assert all("aria-label" in tag for tag in re.findall(r"<button[^>]*data-answer[^>]*>", markup))


def test_nothing_is_stored_sent_or_loaded():
    words = "localStorage|sessionStorage|indexedDB|cookie|fetch|XMLHttpRequest|sendBeacon|WebSocket|EventSource|caches|import"
    text = "".join(p.read_text(encoding="utf8") for p in (SCRIPT, MARKUP, SCRIPT.with_suffix(".css")))
    code = re.sub(r"//.*|/\*.*?\*/", "", text)
    assert not re.findall(rf"\b({words})\b|https?:|src=|<form|innerHTML|eval\(", code)
    assert re.findall(r"url\(([^)]*)\)", code) == ['"blind.png"']


needs_node = pytest.mark.skipif(NODE is None, reason="the page's arithmetic is checked with node, which is not installed here")


def answer(code: str, *data: object) -> object:
    """The value of a JavaScript expression in which ``b`` is the page's script and ``data`` the arguments."""
    program = f"const b = require({json.dumps(str(SCRIPT))}), data = {json.dumps(data)}; console.log(JSON.stringify({code}))"
    return json.loads(subprocess.run([NODE, "-e", program], capture_output=True, text=True, check=True).stdout)


@needs_node
def test_the_intervals_and_p_values_are_scipys():
    counts = [(k, n) for n in range(1, N + 1) for k in range(n + 1)]
    found = answer("data[0].map(([k, n]) => [...b.wilson(k, n), b.signTest(k, n - k)])", counts)
    for (k, n), (low, high, p) in zip(counts, found, strict=True):
        exact = binomtest(k, n)
        interval = exact.proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert p == pytest.approx(exact.pvalue, rel=1e-10)


@needs_node
def test_every_order_is_equally_likely():
    """The choices of a shuffle of n are n! equally likely ones; each order must come out once."""
    draws = list(itertools.product(*[[(j + 0.5) / m for j in range(m)] for m in (5, 4, 3, 2)]))
    found = answer("data[0].map((draw) => { const d = [...draw]; return b.shuffled(5, () => d.shift()); })", draws)
    assert sorted(found) == sorted(map(list, itertools.permutations(range(5))))
    assert answer("b.shuffled(40, Math.random)") != list(range(40))


@needs_node
@pytest.mark.parametrize("count", [8, 13, 40])
def test_the_tally_opens_the_seal(count):
    cells = blind_pairs.places(count)
    data = blind_pairs.describe(cells, range(count), list("abcdefghij"))
    given_ = [{"pair": i, "cell": None if i % 5 == 4 else int(cells[i, min(i % 3, 1)])} for i in range(count)]
    right = sum(i % 5 != 4 and i % 3 != 0 for i in range(count))
    none = sum(i % 5 == 4 for i in range(count))
    assert answer("b.unseal(data[0].sealed, data[0].pairs.length)", data) == blind_pairs.unseal(data["sealed"], count)
    assert answer("b.tally(data[1], data[0])", data, given_) == {
        "right": right,
        "wrong": count - right - none,
        "none": none,
    }
