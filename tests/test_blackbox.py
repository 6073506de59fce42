"""Attacks without gradients: they respect the ball, take models that have none, and never do worse than the image itself."""

import pytest
import torch
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import pgd, square, stadv, transfer, uniform_noise
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of

norms = st.sampled_from(["Linf", "L2"])
radii = st.floats(1e-4, 0.9)
seeds = st.integers(0, 10**6)
dtypes = st.sampled_from([torch.float32, torch.float64])


def linear(seed=0, classes=4, dtype=torch.float64, shape=(1, 5, 5)):
    return Linear((draw((classes, *shape), seed) - 0.5).to(dtype), 0.1 * (draw((classes,), seed + 1) - 0.5).to(dtype))


def inside(x_adv, x, norm, eps):
    size = norm_of(x_adv.double() - x.double(), norm)
    return bool((size <= eps * (1 + 1e-12)).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


class Opaque(nn.Module):
    """A model without gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with torch.no_grad():
            return self.inner(x.detach()).detach()


def attacks(surrogate):
    """The three attacks under one signature."""
    return {
        "square": lambda m, x, y, norm, eps, **o: square(m, x, y, norm, eps, queries=30, **o),
        "transfer": lambda m, x, y, norm, eps, **o: transfer(m, x, y, surrogate, norm=norm, eps=eps, steps=5, **o),
        "noise": lambda m, x, y, norm, eps, **o: uniform_noise(m, x, y, norm, eps, queries=8, **o),
    }


NAMES = ["square", "transfer", "noise"]


@pytest.mark.parametrize("name", NAMES)
@given(seeds, norms, radii, dtypes)
@settings(max_examples=8)
def test_in_the_ball_and_no_weaker_than_nothing(name, seed, norm, eps, dtype):
    model, x, y = linear(seed, dtype=dtype), draw((4, 1, 5, 5), seed, dtype), torch.arange(4)
    x_adv = attacks(linear(seed + 5, dtype=dtype))[name](model, x, y, norm, eps, seed=seed)
    assert x_adv.dtype == dtype and inside(x_adv, x, norm, eps)
    assert bool((margin(model(x_adv), y) >= margin(model(x), y)).all()) or name == "square"
    wrong = model(x).argmax(1) != y
    assert torch.equal(x_adv[wrong], x[wrong])
    assert bool((model(x_adv).argmax(1) != y)[wrong].all())


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_needed(name):
    model, x = linear(3), 0.3 + 0.4 * draw((6, 1, 5, 5), 4)
    y = model(x).argmax(1)
    run = attacks(model)[name]
    seen, unseen = run(model, x, y, "Linf", 0.3), run(Opaque(model), x, y, "Linf", 0.3)
    assert torch.equal(seen, unseen)
    assert int((model(unseen).argmax(1) != y).sum()) > 0
    with pytest.raises(ValueError, match="no gradient reaches the images"):
        pgd(Opaque(model), x, y)


@pytest.mark.parametrize("name", NAMES)
@given(seeds, norms)
@settings(max_examples=4)
def test_each_image_alone_repeats_and_leaves_the_random_state(name, seed, norm):
    model, x, y = linear(seed), draw((3, 1, 5, 5), seed), torch.arange(3)
    run = attacks(linear(seed + 1))[name]
    before = torch.get_rng_state()
    together, again = (run(model, x, y, norm, 0.1, seed=seed) for _ in range(2))
    alone = [run(model, x[i : i + 1], y[i : i + 1], norm, 0.1, seed=seed, index=torch.tensor([i])) for i in range(3)]
    assert torch.equal(together, again) and torch.equal(together, torch.cat(alone))
    assert torch.equal(torch.get_rng_state(), before)


@given(seeds, norms)
@settings(max_examples=6)
def test_more_noise_only_helps_and_a_gradient_beats_it(seed, norm):
    model, x = linear(seed, 2), 0.3 + 0.4 * draw((4, 1, 5, 5), seed)
    y = model(x).argmax(1)
    few, more = (margin(model(uniform_noise(model, x, y, norm, 0.1, queries=q, seed=seed)), y) for q in (2, 12))
    best = margin(model(pgd(model, x, y, norm, 0.1, steps=20, seed=seed)), y)
    assert bool((more >= few).all() and (best >= more - 1e-9).all())


def test_noise_finds_what_is_common():
    """Half of the ball is wrong: forty draws miss it with probability 2^-40."""

    class Half(nn.Module):
        def forward(self, x):
            score = x[:, 0, 0, 0] - 0.5
            return torch.stack([-score, score], 1)

    x = torch.full((20, 1, 5, 5), 0.5, dtype=torch.float64) - 1e-9
    found = uniform_noise(Half(), x, torch.zeros(20, dtype=torch.int64), "Linf", 0.1, queries=40)
    assert bool((found[:, 0, 0, 0] >= 0.5).all())


def test_transfer_from_the_model_itself_is_the_attack():
    model, x = linear(1), draw((5, 1, 5, 5), 2)
    y = model(x).argmax(1)
    assert torch.equal(transfer(model, x, y, model, eps=0.1, steps=5), pgd(model, x, y, eps=0.1, steps=5))
    assert torch.equal(transfer(model, x, y, model, stadv, steps=5), stadv(model, x, y, steps=5))


def test_transfer_from_the_opposite_changes_nothing():
    """The surrogate's attack moves every image away from the boundary: the image itself has the larger margin."""
    model, x = linear(1, 2), 0.3 + 0.4 * draw((5, 1, 5, 5), 2)
    y = model(x).argmax(1)
    shifted = Linear(-model.weight, torch.where(torch.arange(2) == 0, 50.0, 0.0).double())
    own = torch.zeros_like(y)  # what the surrogate says
    assert torch.equal(transfer(model, x[y == 0], own[y == 0], shifted, eps=0.1, steps=5), x[y == 0]) and int((y == 0).sum())


def test_bad_input():
    model, x, y = linear(0), draw((2, 1, 5, 5), 0), torch.tensor([0, 1])
    for run in (square, uniform_noise, lambda m, x, y, **o: transfer(m, x, y, m, **o)):
        with pytest.raises(ValueError, match="eps must not be negative"):
            run(model, x, y, eps=-1.0)
        with pytest.raises(ValueError, match="unknown norm 'L0'"):
            run(model, x, y, norm="L0")
        with pytest.raises(ValueError, match="labels"):
            run(model, x, y - 1)
        with pytest.raises(ValueError, match="images"):
            run(model, 2 * x + 1, y)
    for run in (square, uniform_noise):
        with pytest.raises(ValueError, match="queries must be at least 1"):
            run(model, x, y, queries=0)
    with pytest.raises(ValueError, match="needs 5"):
        square(model, x[:, :, :4], y, "L2")
    with pytest.raises(ValueError, match="the attack returned images of shape"):
        transfer(model, x, y, model, lambda m, x, y: x[:1])
