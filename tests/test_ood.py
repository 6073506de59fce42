"""Corruptions and the task that shows them: what each does, keyed noise, ranks, and that a cell is what its parts say."""

from dataclasses import replace

import pytest
import torch
from helpers import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.data import load
from rdc.data.corruptions import CORRUPTIONS, SEVERITIES, clouds, corrupt, drawn
from rdc.experiments import experiment
from rdc.models import build
from rdc.runs.cell import Cell
from rdc.tasks import measure, toy
from rdc.tasks.ood import bits, rank, shown

DIGITS = load("digits").x[:6]


@given(st.sampled_from(sorted(CORRUPTIONS)), st.sampled_from(SEVERITIES), st.permutations(range(4)), st.integers(0, 9))
@settings(max_examples=30)
def test_it_depends_on_image_index_and_seed_alone(name, severity, order, seed):
    x = DIGITS[:4]
    whole = corrupt(x, name, severity, [7, 8, 9, 10], seed)
    some = corrupt(x[list(order)], name, severity, [7 + i for i in order], seed)
    assert torch.equal(some, whole[list(order)]) and whole.shape == x.shape and bool(((whole >= 0) & (whole <= 1)).all())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_is_further_away(name):
    x = load("fashion-mini").x[:8]
    far = [float((corrupt(x, name, s, range(8)) - x).square().mean()) for s in SEVERITIES]
    assert 0 < far[0] and far == sorted(far)


def test_what_each_does():
    x = draw((3, 2, 12, 12), 1) * 0.4 + 0.3
    assert torch.allclose(corrupt(x, "brightness", 1, range(3)), x + 0.05)
    low = corrupt(x, "contrast", 3, range(3))
    assert torch.allclose(low.mean((1, 2, 3)), x.mean((1, 2, 3))) and torch.allclose(low.std((1, 2, 3)), 0.45 * x.std((1, 2, 3)))
    even = torch.full((1, 1, 9, 9), 0.4).double()
    assert all(torch.allclose(corrupt(even, name, 5, [0]), even) for name in ("gaussian-blur", "pixelate"))
    large = torch.full((1, 1, 200, 200), 0.5)
    hit = corrupt(large, "impulse-noise", 5, [0])
    assert float((hit != 0.5).double().mean()) == pytest.approx(0.17, abs=0.01) and set(hit.unique().tolist()) == {0.0, 0.5, 1.0}
    assert float(corrupt(large, "gaussian-noise", 2, [0]).std()) == pytest.approx(0.08, rel=0.02)
    point = torch.zeros(1, 1, 15, 15).double()
    point[0, 0, 7, 7] = 1
    spread, at = corrupt(point, "gaussian-blur", 3, [0])[0, 0], torch.arange(15) - 7.0
    assert float(spread.sum()) == pytest.approx(1) and float((spread.sum(0) * at**2).sum()) == pytest.approx(1, rel=0.02)
    cloud = clouds(x, lambda like: drawn([(i,) for i in range(3)], like))
    assert cloud.shape == (3, 1, 12, 12) and bool((cloud.amin((1, 2, 3)) == 0).all()) and bool((cloud.amax((1, 2, 3)) == 1).all())


@pytest.mark.parametrize(
    ("name", "severity", "index", "words"),
    [("snow", 1, [0], "unknown corruption 'snow'"), ("fog", 0, [0], "1 to 5, not 0"), ("fog", 1, [0, 1], "1 images need as")],
)
def test_bad_input_gives_one_line(name, severity, index, words):
    with pytest.raises(ValueError, match=words):
        corrupt(DIGITS[:1], name, severity, index)


def test_ranks():
    assert rank(torch.tensor([0.0, 1.0, 2.5]), torch.tensor([1.0, 2.0])).tolist() == [0, 0.25, 1]


def test_the_bound_and_the_closed_form_of_one_image_agree():
    """The density of a single image is a Gaussian, and the bound is that of the image with noise on it."""
    from rdc.classify.flow import FlowClassifier, flow_grid
    from rdc.denoise import OptimalDenoiser

    x = draw((1, 1, 8, 8), 1)
    model = FlowClassifier(OptimalDenoiser(x, torch.tensor([0])), flow_grid(4, 0.1))
    found = bits(model, x)
    n = 64
    gap = float(found["elbo"] - found["exact"]) * n * torch.log(torch.tensor(2.0))
    assert float(gap) == pytest.approx(n / 2, rel=1e-6), "half a nat a dimension"
    assert float(found["flow"]) == pytest.approx(float(found["exact"]), abs=1e-3)


def row_of(**words):
    """A row of the experiment."""
    return next(r for r in experiment("ood").rows if all(r.about.get(k) == v for k, v in words.items()))


def test_a_cell_is_what_its_parts_say():
    row = replace(toy(row_of(model="cnn", corruption="fog", severity=3)), n=4, block=4)
    found = measure(Cell(row, 0, 4))
    right = build("cnn", "digits")(corrupt(DIGITS[:4], "fog", 3, range(4))).argmax(1) == load("digits").y[:4]
    assert found.bits["right"] == right.tolist()
    row = toy(row_of(density="optimal", corruption="fog", severity=3))
    model, values = build("sbgc", "digits", **row.options), measure(Cell(row, 0, 2)).values
    own, clean = bits(model, corrupt(DIGITS[:2], "fog", 3, range(2))), bits(model, load("digits").x[300:302])
    assert set(values) == {f"{name}{rest}" for name in ("flow", "elbo", "exact") for rest in ("", " rank")}
    assert values["exact"] == pytest.approx(own["exact"].tolist(), abs=1e-5)
    assert values["exact rank"] == pytest.approx(rank(own["exact"], clean["exact"]).tolist())


def test_digits_are_shown_at_the_size_of_the_others():
    x, y = shown("fashion-mini", "digits", 0, 2, 4, 0, "cpu")
    assert x.shape == (2, 1, 28, 28) and torch.equal(y, load("digits").y[2:4])
    with pytest.raises(ValueError, match="only a flow"):
        bits(build("cnn", "digits"), DIGITS)
