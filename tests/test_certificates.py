"""The laws behind tools/certificates.py: stored answers give the same certificates, a sample of draws tells the count."""

import hashlib
import json
from pathlib import Path

import certify_answers
import certify_bases
import certify_reference
import certify_settings
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdc.certify import EPNDC, certify
from rdc.data import load
from rdc.denoise import OptimalDenoiser


class Linear(nn.Module):
    """Logits that are linear in the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Brightness of ten stripes."""
        return x.flatten(1).unfold(1, 6, 6)[:, :10].mean(dim=2)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> certify_settings.Base:
    monkeypatch.setattr(certify_answers, "RUNS", tmp_path)
    return certify_settings.Base("Cohen", 0.3)


@pytest.mark.parametrize("options", [{}, {"target": 0.2}, {"target": 0.2, "stopping": "split"}])
def test_stored_answers_give_the_same_certificate(base: certify_settings.Base, options: dict) -> None:
    x, index = load("digits").x[3], 3
    certify_answers.logits(base, x, index, 57, Linear())
    table = certify_answers.logits(base, x, index, 300, Linear())  # continues what is stored
    known = {"sigma": 0.3, "n0": 50, "n": 250, "alpha": 0.01, "seed": certify_settings.SEED, "index": index, **options}
    assert certify(certify_reference.Lookup(table, index), x, **known) == certify(Linear(), x, **known)


def test_the_estimate_of_the_count_covers_the_truth() -> None:
    rng, hits, spread = np.random.default_rng(0), 0, []
    for trial in range(200):
        lead = rng.normal(1.0, 1.0, 1100)
        table = np.stack([lead, np.zeros(1100)], axis=1).astype(np.float32)
        said = lead + rng.normal(0, 0.5, 1100) > 0  # what the reference would answer
        groups = certify_reference.strata(table, 0)
        rows = [(d, i, said[d]) for i, g in enumerate(certify_reference.sampled(groups, trial)) for d in g]
        middle, low, high = certify_reference.estimated(groups, np.array(rows))
        hits += low <= said[certify_reference.N0 :].sum() <= high
        spread.append(middle - said[certify_reference.N0 :].sum())
    assert hits >= 185  # 95 % of 200, less three standard deviations
    assert abs(np.mean(spread)) < 4 * np.std(spread) / 200**0.5


def test_strata_share_the_draws() -> None:
    table = np.random.default_rng(1).normal(size=(400, 10)).astype(np.float32)
    groups = certify_reference.strata(table, 4)
    assert sorted(np.concatenate(groups)) == list(range(certify_reference.N0, 400))
    assert set(groups[0]) == {d for d in range(certify_reference.N0, 400) if table[d].argmax() != 4}
    assert not set(groups[0]) & set(groups[1])


def test_a_shortlist_of_all_classes_gives_the_answer_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify_reference, "RIVALS", 9)
    train = load("digits", "train")
    model = EPNDC(OptimalDenoiser(train.x[:200], train.y[:200]), 0.5, count=4)
    x = load("digits").x[:6] + 0.5 * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    for candidate in (0, 3):
        found = certify_reference.agrees(model, x, np.random.default_rng(2).normal(size=(6, 10)), candidate)
        assert found.tolist() == (logits.argmax(dim=1) == candidate).tolist()


class Counted:
    """Losses that follow from the image; dies at the batch ``until``."""

    def __init__(self, until: int | None = None) -> None:
        self.seen, self.until = 0, until

    def losses(self, x: Tensor, index: Tensor) -> Tensor:
        """Brightness by class and level, and the index."""
        if self.seen == self.until:
            raise KeyboardInterrupt
        self.seen += 1
        grid = torch.arange(30, dtype=torch.float64).reshape(10, 3)
        return x.double().mean(dim=(1, 2, 3))[:, None, None] * grid + index[:, None, None]


def test_losses_continue_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify_bases, "others", lambda count: load("digits")[:count])
    found = []
    for folder, deaths in (("whole", [None]), ("broken", [2, None])):
        monkeypatch.setattr(certify_bases, "RUNS", tmp_path / folder)
        for until in deaths:
            monkeypatch.setattr(certify_bases, "build", lambda _, until=until: Counted(until))
            try:
                found.append(certify_bases.losses(certify_settings.epndc(0.3, 3), range(7, 20), size=5))
            except KeyboardInterrupt:
                continue
    assert found[0].shape == (13, 10, 3) and torch.equal(*found)
    assert found[0][:, 0, 0].tolist() == list(range(7, 20))


def test_settings_that_are_new_do_not_change_the_names_of_old_answers() -> None:
    old = {"base": "EPNDC", "sigma": 0.25, "levels": 8, "denoiser": "heads", "form": "quadrature", "antithetic": True,
           "coupling": "shared", "noise": "fixed"}  # fmt: skip
    weights = certify_settings.read_checkpoint(certify_settings.locate("fashion-mini-multihead"), "denoiser")[1]["tensors_sha256"]
    wanted = hashlib.sha256(json.dumps([old, weights[:12]]).encode()).hexdigest()[:16]
    assert certify_settings.epndc(0.25, 8).key() == wanted
    races = certify_settings.RACES
    assert len({b.key() for b in races}) == len(races)
