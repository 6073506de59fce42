"""Gradients of the neighbourhood: the model's own logits, the gradient of the smoothed ones, and what they break."""

from functools import partial

import pytest
import torch
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import pgd
from rdc.attack.neighbourhood import FORMS, Neighbourhood
from rdc.defend.broken import DetachedPreprocessing, QuantisedInput, ShatteredGradient
from rdc.evaluate.robustness import judged

seeds = st.integers(0, 10**6)
SHAPE = (1, 3, 3)


class Quadratic(nn.Module):
    """Logits ``x^T A_k x + w_k x``."""

    def __init__(self, seed: int, classes: int = 4) -> None:
        super().__init__()
        self.a, self.w = draw((classes, 9, 9), seed) - 0.5, draw((classes, 9), seed + 1) - 0.5

    def forward(self, x):
        z = x.flatten(1)
        return torch.einsum("ni,kij,nj->nk", z, self.a, z) + z @ self.w.T


def product(model, x, v):
    point = x.clone().requires_grad_()
    return torch.autograd.grad((model(point) * v).sum(), point)[0]


@given(seeds, st.sampled_from(FORMS))
def test_the_logits_are_those_of_the_model_bit_for_bit(seed, form):
    model, x = Quadratic(seed), draw((3, *SHAPE), seed)
    around = Neighbourhood(model, 0.1, 4, seed, form)
    assert torch.equal(around(x), model(x)) and torch.equal(around(x.requires_grad_()), model(x))


@given(seeds, st.floats(0.001, 0.02), st.sampled_from([2, 6]))
def test_pairs_give_the_gradient_of_a_quadratic_exactly(seed, width, draws):
    """Away from the faces of [0, 1]: odd moments cancel within a pair, and the gradient of a quadratic is affine."""
    model, x, v = Quadratic(seed), 0.4 + 0.2 * draw((3, *SHAPE), seed), draw((3, 4), seed + 2) - 0.5
    assert torch.allclose(product(Neighbourhood(model, width, draws, seed), x, v), product(model, x, v), rtol=1e-9, atol=1e-12)


@given(seeds, st.booleans())
@settings(max_examples=5)
def test_the_zeroth_order_form_has_the_gradient_as_its_mean(seed, linear):
    """Of a pair it is the gradient times ``d d^T / w^2``, whose mean is the identity: within five deviations of it."""
    model = Linear(draw((4, *SHAPE), seed) - 0.5, torch.zeros(4).double()) if linear else Quadratic(seed)
    x, v, draws = 0.4 + 0.2 * draw((3, *SHAPE), seed), draw((3, 4), seed + 2) - 0.5, 2000
    exact, found = product(model, x, v), product(Neighbourhood(model, 0.02, draws, seed, "zeroth"), x, v)
    size = exact.flatten(1).square().sum(1).reshape(-1, 1, 1, 1)
    assert bool(((found - exact).square() <= 25 * (size + exact.square()) / (draws / 2)).all())


@given(seeds, st.sampled_from(FORMS))
def test_the_noise_belongs_to_seed_and_call_and_not_to_the_batch(seed, form):
    model, x, v = Quadratic(seed), draw((3, *SHAPE), seed), draw((3, 4), seed + 2)

    def run(images, weights, own=seed):
        around = Neighbourhood(model, 0.1, 2, own, form)
        return [product(around, images, weights) for _ in range(2)]

    together, alone = run(x, v), [run(x[i : i + 1], v[i : i + 1]) for i in range(3)]
    for call in range(2):
        assert torch.allclose(together[call], torch.cat([one[call] for one in alone]), rtol=1e-12, atol=1e-14)
    if form == "zeroth":
        assert not torch.equal(together[0], together[1]) and not torch.equal(run(x, v, seed + 1)[0], together[0])


def test_the_frozen_one_is_around_the_model_whose_noise_is_known():
    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.rand(len(x), 9)

    around = Neighbourhood(Noisy(), 0.2, 4, 3, "zeroth").frozen(5)
    assert torch.equal(around(torch.zeros(2, *SHAPE)), around(torch.zeros(2, *SHAPE)))
    assert (around.width, around.draws, around.seed, around.form) == (0.2, 4, 3, "zeroth")


def victim():
    """A linear network, and images that it gets right."""
    x = draw((40, 1, 8, 8), 7, torch.float32)
    model = Linear(draw((4, 1, 8, 8), 5, torch.float32) - 0.5, torch.zeros(4))
    return model, x, model(x).argmax(1)


def broken(model, x, y, **options):
    """How many images pgd breaks."""
    return int((model(pgd(model, x, y, eps=0.05, steps=5, **options)).argmax(1) != y).sum())


CASES = [(ShatteredGradient, "neighbourhood"), (ShatteredGradient, "zeroth"), (QuantisedInput, "zeroth")]


@pytest.mark.filterwarnings("ignore:most gradients")
@pytest.mark.parametrize(("defence", "gradient"), CASES)
def test_a_defence_that_hides_its_gradient_is_broken(defence, gradient):
    """Nearly as many images as of the network itself, where plain pgd leaves most."""
    model, x, y = victim()
    hidden = defence(model)
    bare, plain, found = broken(model, x, y), broken(hidden, x, y), broken(Neighbourhood(hidden, 0.05, 256, form=gradient), x, y)
    assert bare > 30 and plain < 5 and found >= 0.6 * bare


def test_a_detached_step_is_no_obstacle_to_the_zeroth_order():
    model, x, y = victim()
    hidden = DetachedPreprocessing(model)
    for gradient, message in (("exact", "rdc.attack.neighbourhood"), ("neighbourhood", "take the form 'zeroth'")):
        with pytest.raises(ValueError, match=message):
            pgd(hidden, x, y, eps=0.05, steps=2, gradient=gradient)
    assert broken(Neighbourhood(hidden, 0.05, 256, form="zeroth"), x, y) >= 0.6 * broken(model, x, y) > 18


def test_a_row_does_not_depend_on_the_attacks_before_it():
    model, x, y = victim()
    around, index, attack = Neighbourhood(model, 0.1, 4), torch.arange(6), partial(pgd, norm="L2", eps=0.3, steps=3)
    rows = [judged(around, x[at], y[at], {"pgd": attack}, 0, index[at], 1) for at in (index, index[3:])]
    sizes = [[row["attacks"]["pgd"]["size"]["Linf"] for row in found] for found in rows]
    assert around.calls > 0 and sizes[0][3:] == sizes[1] and min(sizes[1]) > 0


def test_bad_options():
    for options, message in (
        ({"form": "first"}, "unknown gradient 'first'; there are exact, neighbourhood, zeroth"),
        ({"draws": 3}, "draws come in pairs, got 3"),
        ({"draws": 0}, "draws must be at least 2, got 0"),
        ({"width": 0.0}, "width must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Neighbourhood(Quadratic(0), **options)
