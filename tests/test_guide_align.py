"""Alignment is 1 for what is right and 0 for what is orthogonal; targeted ascent has a closed form; Appendix B, checked."""

import pytest
import torch
from helpers import draw, mixture
from test_guide_classifier import Affine, tiny

from rdc.attack.norms import norm_of
from rdc.denoise.base import to_model
from rdc.denoise.optimal import OptimalDenoiser
from rdc.guide.align import alignment, alignment_table, climb, direction, shift_effect
from rdc.guide.guides import ClassifierGuide, PosteriorGuide, RatioGuide
from rdc.guide.threat import Threat
from rdc.rng import randn

SHAPE = (1, 2, 3)
LEVELS = (0.5, 1.0, 2.0)


def setting(n=8):
    """An optimal denoiser, and noisy images that it does not know."""
    d = OptimalDenoiser(*mixture(0, (4, 4, 4), SHAPE))
    x, y = mixture(5, (3, 3, 3), SHAPE)
    sigma = torch.linspace(0.4, 3, n).double()
    return d, to_model(x[:n]) + sigma[:, None, None, None] * randn((n, *SHAPE), 1).double(), sigma, y[:n]


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_the_exact_posterior_is_aligned(factor):
    d, z, sigma, y = setting()
    for guide in (PosteriorGuide(d), RatioGuide(d)):
        found = alignment(lambda *a, guide=guide: factor * guide(*a), d, z, sigma, y)
        assert torch.allclose(found.cosine, torch.ones(8).double(), atol=1e-9)
        assert torch.allclose(found.strength, torch.full((8,), factor).double(), rtol=1e-7)


def test_signs_and_angles():
    d, z, sigma, y = setting()
    right = direction(d, z, sigma, y)
    other = randn(tuple(z.shape), 3).double()
    dot, size = (lambda a, b: (a * b).sum(dim=(1, 2, 3), keepdim=True)), right.square().sum(dim=(1, 2, 3), keepdim=True)
    orthogonal = other - dot(other, right) / size * right
    assert torch.allclose(alignment(lambda *_: -right, d, z, sigma, y).cosine, -torch.ones(8).double())
    assert alignment(lambda *_: orthogonal, d, z, sigma, y).cosine.abs().max() < 1e-12
    mixed = orthogonal / orthogonal.flatten(1).norm(dim=1)[:, None, None, None] + 2 * right / size.sqrt()
    assert torch.allclose(alignment(lambda *_: mixed, d, z, sigma, y).cosine, torch.full((8,), 2 / 5**0.5).double())


def test_where_the_posterior_is_certain_there_is_no_score():
    d, (x, y) = OptimalDenoiser(*mixture(0, (4, 4, 4), SHAPE)), mixture(0, (4, 4, 4), SHAPE)
    sigma = torch.full((12,), 1e-3).double()
    assert alignment(RatioGuide(d), d, to_model(x), sigma, y).cosine.isnan().all()
    two = OptimalDenoiser(torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1), torch.tensor([0, 1]))
    level = torch.tensor([2 / (2 * p) ** 0.5 for p in (10.0, 20.0, 30.0)]).double()  # the other class has exp(-p)
    at = torch.ones(3, 1, 1, 1).double()
    assert alignment(RatioGuide(two), two, at, level, torch.ones(3).long()).cosine.isnan().tolist() == [False, True, True]
    toward_another = alignment(RatioGuide(d), d, to_model(x), sigma, (y + 1) % 3)
    assert torch.allclose(toward_another.cosine, torch.ones(12).double())
    rows = alignment_table({"a": RatioGuide(d)}, d, x, y, (1e-3,))
    assert [(row["n"], row["cosine"], row["strength"]) for row in rows] == [(0, None, None)]


def test_the_table_averages_images_and_does_not_depend_on_the_batch():
    d, _, _, _ = setting()
    x, y = mixture(5, (3, 3, 3), SHAPE)
    h = Affine(randn((6,), 8).double())

    def three(z, sigma):
        return torch.cat([h(z, sigma), torch.zeros(len(z), 1).double()], dim=1)

    guides = {"exact": PosteriorGuide(d), "linear": ClassifierGuide(three)}
    rows = alignment_table(guides, d, x, y, LEVELS, repeats=20)
    assert [(r["guide"], r["sigma"]) for r in rows] == [(g, s) for s in LEVELS for g in guides]
    for row, part in zip(rows, alignment_table(guides, d, x, y, LEVELS, batch=4, repeats=20), strict=True):
        assert row.pop("guide") == part.pop("guide") and row == pytest.approx(part, rel=1e-9)
    eps = torch.stack([randn(SHAPE, 0, "align", i) for i in range(9)]).double()
    by_hand = alignment(guides["linear"], d, to_model(x) + 2 * eps, torch.full((9,), 2.0).double(), y)
    assert rows[-1]["cosine"] == pytest.approx(float(by_hand.cosine.mean())) and rows[-1]["n"] == 9
    assert rows[-1]["strength"] == pytest.approx(float(by_hand.strength.median()))
    assert all(r["cosine"] == pytest.approx(1) and r["strength"] == pytest.approx(1) for r in rows[::2])
    assert all(r["low"] < r["cosine"] < r["high"] < 1 for r in rows[1::2])


@pytest.mark.parametrize("steps", [3, 7])
def test_ascent_of_a_linear_classifier_ends_on_the_sphere(steps):
    """All gradients point along w: the end is ``z + R w / |w|``."""
    weight, z = randn((6,), 1).double(), randn((4, *SHAPE), 2).double()
    sigma, y = torch.full((4,), 0.1).double(), torch.zeros(4, dtype=torch.long)
    found = climb(ClassifierGuide(Affine(weight)), z, sigma, y, 1.7, steps) - z
    assert torch.allclose(found.flatten(1), (1.7 * weight / weight.norm()).expand(4, 6))


def test_ascent_raises_the_probability_within_the_radius():
    d, z, sigma, y = setting()
    target = (y + 1) % 3
    found = climb(PosteriorGuide(d), z, sigma, target, 1.0)
    assert bool((norm_of(found - z, "L2") <= 1 + 1e-9).all())
    before, after = (d.posterior(point, sigma).gather(1, target[:, None]) for point in (z, found))
    assert bool((after > before).all())
    assert torch.equal(climb(PosteriorGuide(d), z, sigma, target, 0.0), z)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("stop", [True, False])
def test_appendix_b(norm, stop):
    """Raw gradients change at will; log-softmax gradients, the attack and the adversarial loss stay: so does robust training."""
    h, z = tiny().double(), randn((6, 1, 8, 8), 4).double()
    sigma, y = torch.linspace(0.1, 3, 6).double(), torch.arange(6) % 3
    wave, place = 20 * draw((64,), 3) - 10, 100.0

    def shift(point):
        return place * (point.flatten(1) @ wave / 30).sin()

    found = shift_effect(h, shift, z, sigma, y, Threat(norm, 0.3, 5, stop=stop))
    assert found["raw"] > 10
    assert max(found["log_softmax"], found["loss"]) < 1e-9 and found["attack"] < 1e-7
