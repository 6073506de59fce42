"""The laboratory: its likelihoods are those of the mixture, its border images lie at the border, its cells are what parts say."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import multivariate_normal

from rdc.analyse.laboratory import first_wrong, likelihoods
from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.defend.likelihood import READINGS, LikelihoodMaximization
from rdc.denoise import OptimalDenoiser
from rdc.evaluate import predict
from rdc.experiments import experiment
from rdc.rng import rand
from rdc.schedule import levels
from rdc.tasks import aligned, measure, toy


def test_likelihoods_are_those_of_a_mixture_of_gaussians():
    """Against scipy: unequal classes, one noise level, float64."""
    points, y = rand((5, 1, 2, 2), "points").double(), torch.tensor([0, 0, 0, 1, 1])
    optimal, x, label, sigma = OptimalDenoiser(points, y), rand((3, 1, 2, 2), "x").double(), torch.tensor([0, 1, 1]), 0.4
    found = likelihoods(optimal, x, label, sigma)
    normal = [multivariate_normal(2 * p.flatten() - 1, sigma**2) for p in points]
    density = torch.tensor([[one.pdf(2 * q.flatten() - 1) for one in normal] for q in x])
    constant = 0.5 * 4 * torch.log(torch.tensor(2 * torch.pi * sigma**2).double())  # of the Gaussian, the same for all
    whole, own = density.mean(1).log(), torch.stack([density[:, :3].mean(1), density[:, 3:].mean(1)], 1).log()
    shift = found["log p(z)"] - whole
    assert shift == pytest.approx(shift[0].expand(3).numpy(), abs=1e-9) and min(abs(shift[0]), abs(shift[0] - constant)) < 1e-9
    assert found["log p(z | y)"] - shift == pytest.approx(own.gather(1, label[:, None])[:, 0].numpy(), abs=1e-9)
    odds = own.gather(1, label[:, None])[:, 0] - own.gather(1, 1 - label[:, None])[:, 0]
    assert found["log-odds"] == pytest.approx(odds.numpy(), abs=1e-9)


def test_border_images_are_wrong_and_near_the_border():
    train, test = load("digits", "train"), load("digits", "test")
    model = DiffusionClassifier(OptimalDenoiser(train.x[:100], train.y[:100]), levels("elbo", 4, sigma_min=0.1))
    right = predict(model, test.x[:30]) == test.y[:30]
    x, y = test.x[:30][right], test.y[:30][right]
    x_adv = pgd(model, x, y, eps=0.3, steps=5)
    broken = predict(model, x_adv) != y
    x, x_adv, y = x[broken], x_adv[broken], y[broken]
    assert len(y) > 3
    edge = first_wrong(model, x, x_adv, y, steps=8)
    assert bool((predict(model, edge) != y).all())
    inside = edge - (x_adv - x) * 2**-8 * 1.01
    assert bool((predict(model, inside) == y).all()), "a step back, and they are right"


def test_a_cell_is_what_its_parts_say():
    row = next(r for r in experiment("laboratory").rows if r.about == {"LM": "released", "images": "adversarial"})
    row = replace(toy(row), n=12, block=12)
    (cell,) = row.cells()
    found = measure(cell)
    train, test = load("digits", "train"), load("digits", "test")
    optimal = OptimalDenoiser(train.x[:100], train.y[:100])
    model = DiffusionClassifier(optimal, levels("elbo", 2, sigma_min=0.1), seed=0)
    kept = aligned.exact("digits", "cpu", torch.float32, 100)
    assert torch.equal(kept(2 * test.x[:2] - 1, 0.5), optimal(2 * test.x[:2] - 1, 0.5)), "the one that tasks share"
    x, y = test.x[:12], test.y[:12]
    x_adv = pgd(model, x, y, eps=0.3, steps=2, index=torch.arange(12))
    member = (predict(model, x) == y) & (predict(model, x_adv) != y)
    assert found.bits["member"] == member.tolist() and member.any() and not member.all()
    lm = LikelihoodMaximization(optimal, seed=0, **READINGS["clamped"])
    change = likelihoods(optimal, lm(x_adv), y, 0.5)["log p(z)"] - likelihoods(optimal, x_adv, y, 0.5)["log p(z)"]
    values = found.values["log p(z), sigma 0.5"]
    assert [v is not None for v in values] == member.tolist()
    assert [v for v in values if v is not None] == pytest.approx(change[member].tolist(), rel=1e-4, abs=1e-4)
