"""The laws behind tools/certificates.py: stored answers give the same certificates, a sample of draws tells the count."""

from pathlib import Path

import certify_answers
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
