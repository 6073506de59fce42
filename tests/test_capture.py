"""Exact ascent of the likelihood: the rate of the log-odds, cells that it never leaves, and where the simple story is wrong."""

import pytest
import torch
from helpers import draw, mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.analyse.capture import captured, labels_of, log_odds, log_odds_rate
from rdc.denoise import OptimalDenoiser
from rdc.rng import randn

cases = st.tuples(st.integers(0, 10**6), st.sampled_from([(1, 1), (2, 1), (3, 4), (2, 2, 3)]), st.floats(0.1, 1.0))


def made(case, queries=6, shape=(1, 1, 2)):
    """A mixture in float64, and points near it with labels."""
    seed, counts, sigma = case
    optimal = OptimalDenoiser(*mixture(seed, counts, shape))
    z = 2 * draw((queries, *shape), seed + 1) - 1 + 0.3 * randn((queries, *shape), seed, like=optimal.points)
    return optimal, z, torch.arange(queries) % len(counts), sigma


def plane(points, labels):
    """The optimal denoiser of points of the plane in model units."""
    return OptimalDenoiser((torch.tensor(points).double().reshape(-1, 1, 1, 2) + 1) / 2, torch.tensor(labels))


def at(*point):
    """One point of the plane."""
    return torch.tensor(point).double().reshape(1, 1, 1, 2)


def ascent(optimal, z, sigma, steps=400, eta=0.05):
    """The path of exact ascent, from z on."""
    path = [z]
    for _ in range(steps):
        path.append(path[-1] + eta * (optimal(path[-1], sigma) - path[-1]))
    return torch.stack(path)


@given(cases)
def test_the_log_odds_are_those_of_the_posterior(case):
    optimal, z, y, sigma = made(case)
    p = optimal.posterior(z, sigma).gather(1, y[:, None])[:, 0]
    assert torch.allclose(log_odds(optimal, z, y, sigma).sigmoid(), p, rtol=1e-9)


@given(cases)
def test_the_rate_is_the_derivative_along_the_score(case):
    optimal, z, y, sigma = made(case)
    point = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_odds(optimal, point, y, sigma).sum(), point)
    wanted = (slope * optimal.score(z, sigma)).flatten(1).sum(1)
    found = log_odds_rate(optimal, z, y, sigma)
    assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-7 * float(1 + wanted.abs().max()))


@given(cases)
def test_at_the_border_the_class_with_the_longer_score_wins(case):
    optimal, z, _, sigma = made(case, queries=40)
    y = torch.zeros(len(z), dtype=torch.int64)
    value = log_odds(optimal, z, y, sigma)
    low, high = z[value.argmin()][None], z[value.argmax()][None]
    if not float(value.min()) < 0 < float(value.max()):
        return
    for _ in range(60):  # bisection to the border
        middle = (low + high) / 2
        low, high = (middle, high) if float(log_odds(optimal, middle, y[:1], sigma)) < 0 else (low, middle)
    s, s_y = optimal.score(low, sigma), optimal.score(low, sigma, y[:1])
    s_r = 2 * s - s_y
    own, rest = float(s_y.square().sum()), float(s_r.square().sum())
    found = float(log_odds_rate(optimal, low, y[:1], sigma))
    assert found == pytest.approx((own - rest) / 2, rel=1e-6, abs=1e-6 * (own + 1))


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (2, 2), (2, 2, 3)]), st.floats(0.02, 0.4), st.floats(0.05, 1))
@settings(max_examples=30)
def test_what_is_captured_stays_and_keeps_its_class(seed, counts, sigma, eta):
    """Against the path itself, whatever the length of its steps; the bounds of the proof hold along it."""
    optimal, z, _, _ = made((seed, counts, sigma), queries=20)
    found = captured(optimal, z, sigma)
    assert torch.equal(found.label, labels_of(optimal)[optimal.distances(z).argmin(1)])
    path = ascent(optimal, z[found.holds], sigma, 40, eta)
    for point in path[::5]:
        if len(point):
            nearest = optimal.distances(point).argmin(1)
            assert torch.equal(nearest, optimal.distances(path[0]).argmin(1))
            p = optimal.posterior(point, sigma)
            p.scatter_(1, found.label[found.holds][:, None], 0.0)
            assert bool((p.amax(1) < 0.5).all()) and bool((captured(optimal, point, sigma).holds).all())


def test_at_little_noise_nearly_everything_is_captured_and_at_much_noise_nothing():
    optimal, z, _, _ = made((0, (3, 4), 0.1), queries=200)
    little, much = captured(optimal, z, 0.01), captured(optimal, z, 1.0)
    assert int(little.holds.sum()) > 180 and not much.holds.any()
    assert bool((little.share[little.holds] > 0).all()) and bool((little.share <= 1).all())
    assert int(captured(optimal, z, 0.05).holds.sum()) <= int(little.holds.sum())


def test_the_log_odds_fall_as_long_as_the_rival_is_not_behind():
    """One image each: they fall if and only if (x_k - x_y) . (x_k - z) > 0; else they rise, and stay below zero."""
    optimal, y, sigma = plane([[0.0, 0.0], [1.0, 0.0]], [1, 0]), torch.tensor([0]), 0.05
    for z, falls in ((at(0.3, 0.1), True), (at(0.1, 0.4), True), (at(-0.3, 0.1), False)):
        assert bool(((at(0.0, 0.0) - at(1.0, 0.0)) * (at(0.0, 0.0) - z)).sum() > 0) == falls
        odds = torch.stack([log_odds(optimal, p, y, sigma) for p in ascent(optimal, z, sigma, 80)])
        assert bool((odds.diff(dim=0) < 0).all()) == falls and bool((odds.diff(dim=0) > 0).all()) != falls
        assert float(odds.max()) < 0 and float(odds[-1]) == pytest.approx(-1 / (2 * sigma**2), rel=0.05)


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_near_a_border_a_wrong_image_can_be_repaired(sigma):
    """The nearest image is wrong, the log-odds are below zero, and the ascent ends at the right one: two images pull apart."""
    optimal = plane([[0.0, 0.7], [0.0, -0.7], [1.0, 0.0]], [1, 1, 0])
    z, y = at(0.2549, 0.0), torch.tensor([0])
    found = captured(optimal, z, sigma)
    assert int(found.label) == 1 and not bool(found.holds) and float(log_odds(optimal, z, y, sigma)) < 0
    end = ascent(optimal, z, sigma, 2000)[-1]
    assert float(log_odds(optimal, end, y, sigma)) > 0 and int(captured(optimal, end, sigma).label) == 0


def test_sign_steps_can_leave_a_cell():
    """However small they are: they do not lead straight to the image. The score itself, from the same point, does."""
    optimal, sigma, z = plane([[0.0, 0.0], [0.5, -0.6]], [1, 0]), 0.05, at(0.865, 0.25)
    start = captured(optimal, z, sigma)
    assert bool(start.holds) and int(start.label) == 1
    assert int(captured(optimal, ascent(optimal, z, sigma)[-1], sigma).label) == 1
    for _ in range(400):
        z = z + 0.01 * (optimal(z, sigma) - z).sign()
    assert int(captured(optimal, z, sigma).label) == 0
