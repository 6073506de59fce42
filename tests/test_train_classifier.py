"""The reference network learns, twice to the same bits, and leaves the global random state alone."""

import pytest
import torch
import torch.nn.functional as F

from rdc.data import load
from rdc.train.classifiers import train_classifier


def test_loss_falls_and_runs_repeat():
    images = load("digits", "train")[:320]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    short, long, again = (train_classifier(images, epochs, batch=32, width=8, seed=4) for epochs in (1, 6, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert F.cross_entropy(long(images.x), images.y) < 0.7 * F.cross_entropy(short(images.x), images.y)
    assert all(torch.equal(a, b) for a, b in zip(long.parameters(), again.parameters(), strict=True))
    assert not long.training and not any(p.requires_grad for p in long.parameters())


def test_seed_matters_and_too_little_data_is_refused():
    images = load("digits", "train")[:32]
    one, two = (train_classifier(images, 1, batch=32, width=8, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.head.weight, two.head.weight)
    with pytest.raises(ValueError, match="do not fill one batch"):
        train_classifier(images, 1, batch=64)
