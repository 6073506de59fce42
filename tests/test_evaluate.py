"""Counts, Wilson intervals and the union of attacks."""

import math

import pytest
import torch
from helpers import Linear, draw
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.evaluate import Accuracy, accuracy, predict, robust_accuracy

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@given(st.integers(1, 5000), st.data())
def test_the_wilson_interval(n, data):
    k = data.draw(st.integers(0, n))
    found, p = Accuracy.of(k, n), k / n
    center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert (found.correct, found.n, found.value) == (k, n, p)
    assert found.low == pytest.approx(center - half, abs=1e-12) and found.high == pytest.approx(center + half, abs=1e-12)
    assert f"{k}/{n}" in str(found)


class Sees(nn.Module):
    """Predicts class 1 where the first pixel exceeds one half."""

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], dim=1)


def images(values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def test_accuracy_counts():
    x, y = images([0.1, 0.9, 0.2, 0.8]), torch.tensor([0, 1, 1, 1])
    assert (accuracy(Sees(), x, y).correct, accuracy(Sees(), x, y, batch=3).n) == (3, 4)
    assert predict(Sees(), x, batch=3).tolist() == [0, 1, 0, 1]


def test_an_image_counts_only_if_no_attack_broke_it():
    x, y = images([0.1, 0.9, 0.9, 0.2, 0.3]), torch.tensor([0, 1, 1, 1, 0])
    first, second = images([0.9, 0.9, 0.9, 0.9, 0.3]), images([0.1, 0.1, 0.9, 0.9, 0.3])
    assert robust_accuracy(Sees(), x, y, [first, second]).correct == 2  # the fourth is wrong before any attack
    assert robust_accuracy(Sees(), x, y, first).correct == 3
    assert robust_accuracy(Sees(), x, y, second).correct == 3
    assert robust_accuracy(Sees(), x, y, []).correct == accuracy(Sees(), x, y).correct == 4


@given(st.integers(0, 1000), st.integers(1, 9))
def test_more_attacks_never_help_and_batches_do_not_matter(seed, batch):
    model = Linear(draw((3, 1, 2, 2), seed) - 0.5)
    x, y = draw((9, 1, 2, 2), seed + 1), torch.arange(9) % 3
    attacks = [draw((9, 1, 2, 2), seed + i) for i in (2, 3, 4)]
    found = [robust_accuracy(model, x, y, attacks[:i], batch=batch).correct for i in range(4)]
    assert found == sorted(found, reverse=True)
    expected = torch.stack([model(images).argmax(1) == y for images in [x, *attacks]]).all(0).sum()
    assert found[-1] == int(expected)


class Flickers(nn.Module):
    """Right in two of three calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tensor([[0.0, 1.0]]).repeat(len(x), 1) * (1 if self.calls % 3 else -1)


def test_a_random_model_is_judged_by_the_majority():
    x, y = images([0.5, 0.5]), torch.tensor([1, 1])
    assert robust_accuracy(Flickers(), x, y, x, draws=3).correct == 2
    assert robust_accuracy(Flickers(), x, y, [x, x], draws=1).correct == 0  # the third call is wrong


def test_bad_input():
    with pytest.raises(ValueError, match="images"):
        accuracy(Sees(), images([2.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="labels"):
        accuracy(Sees(), images([1.0]), torch.tensor([-1]))
