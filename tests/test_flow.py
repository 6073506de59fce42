"""The probability flow: it carries the exact density of a mixture, at second order; its trace, its gradient, its classifier."""

import math

import pytest
import torch
from helpers import draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.classify.flow import FlowClassifier, bits_per_dimension, flow_grid, flow_log_density, probes, trapezoid
from rdc.denoise import OptimalDenoiser
from rdc.models import build
from rdc.rng import randn

SHAPE = (1, 1, 2)


def plane(seed=0, counts=(3, 2), queries=4):
    """A mixture in two dimensions, float64, and points near it."""
    optimal = OptimalDenoiser(*mixture(seed, counts, SHAPE))
    return optimal, 2 * draw((queries, *SHAPE), seed + 1) - 1 + 0.2 * randn((queries, *SHAPE), seed, like=optimal.points)


def errors(steps, label=None):
    """Errors of the flow against the closed form, by the number of steps, with the exact density at the end."""
    optimal, z = plane()
    prior = [torch.tensor(c).double().log() for c in optimal.counts]

    def exact(points, sigma):
        """The log-density of a class, or of all."""
        by_class = optimal.log_density(points, sigma)
        if label is not None:
            return by_class.gather(1, label[:, None])[:, 0]
        return (by_class + torch.stack(prior) - math.log(sum(optimal.counts))).logsumexp(1)

    found = []
    for t in steps:
        grid = flow_grid(t, 0.2, 20.0)
        value = flow_log_density(optimal, z, grid, probes(SHAPE, 0, 0, z), label, lambda end: exact(end, 20.0))
        found.append(float((value - exact(z, 0.2)).abs().max()))
    return found


@pytest.mark.parametrize("label", [None, torch.tensor([0, 1, 1, 0])])
def test_it_converges_to_the_density_of_the_mixture_at_second_order(label):
    coarse, fine, finest = errors((24, 48, 96), label)
    assert finest < 2e-3 and coarse / fine == pytest.approx(4, rel=0.2) and fine / finest == pytest.approx(4, rel=0.1)


def test_a_single_image_is_a_gaussian_whose_flow_is_a_straight_line():
    """D is constant, its trace 0: any grid is exact."""
    optimal = OptimalDenoiser(draw((1, *SHAPE), 3), torch.tensor([0]))
    z = randn((3, *SHAPE), 1, like=optimal.points)
    grid, signs = flow_grid(2, 0.1, 5.0), probes(SHAPE, 0, 0, z)
    value = flow_log_density(optimal, z, grid, signs, None, lambda e: optimal.log_density(e, 5.0)[:, 0])
    assert torch.allclose(value, optimal.log_density(z, 0.1)[:, 0], rtol=1e-12)


def test_at_a_large_level_the_end_is_nearly_a_gaussian():
    optimal, z = plane()
    grid, signs = flow_grid(32, 0.2, 80.0), probes(SHAPE, 0, 0, z)
    given_end = flow_log_density(optimal, z, grid, signs, torch.zeros(4).long(), lambda e: optimal.log_density(e, 80.0)[:, 0])
    assert float((flow_log_density(optimal, z, grid, signs, torch.zeros(4).long()) - given_end).abs().max()) < 0.05


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=20)
def test_signs_give_the_trace_on_average_and_exactly_in_one_dimension(seed, number):
    like = torch.zeros((), dtype=torch.float64)
    v = probes((1, 1, 1), number, seed, like)
    assert v.shape == (number, 1, 1, 1) and bool((v.abs() == 1).all())
    matrix = draw((6, 6), seed)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    assert float(((every @ matrix) * every).sum(1).mean()) == pytest.approx(float(matrix.trace()), rel=1e-12)
    unit = probes((1, 2, 3), 0, seed, like).flatten(1)
    assert float(((unit @ matrix) * unit).sum(1).mean()) == pytest.approx(float(matrix.trace()), rel=1e-12)


def test_signs_are_fair_and_keyed():
    like = torch.zeros((), dtype=torch.float32)
    v = probes((1, 64, 64), 4, 0, like)
    assert abs(float(v.mean())) < 4 / 128 and not torch.equal(v[0], v[1])
    assert torch.equal(v[:2], probes((1, 64, 64), 2, 0, like)) and not torch.equal(v[0], probes((1, 64, 64), 1, 1, like)[0])


def test_hutchinson_is_unbiased():
    """All four sign vectors of the plane, as directions, are the exact trace."""
    optimal, z = plane()
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).double().reshape(4, *SHAPE)
    grid = flow_grid(8, 0.2, 20.0)
    exact = flow_log_density(optimal, z, grid, probes(SHAPE, 0, 0, z))
    assert torch.allclose(flow_log_density(optimal, z, grid, signs), exact, rtol=1e-12)


def test_the_gradient_is_that_of_finite_differences_and_tends_to_the_score():
    optimal, z = plane()
    grid, signs = flow_grid(6, 0.2, 20.0), probes(SHAPE, 0, 0, z)

    def value(points):
        return flow_log_density(optimal, points, grid, signs, torch.tensor([0, 1, 1, 0]))

    assert torch.autograd.gradcheck(value, z.clone().requires_grad_())
    point, fine = z.clone().requires_grad_(), flow_grid(100, 0.2, 80.0)
    (slope,) = torch.autograd.grad(flow_log_density(optimal, point, fine, signs).sum(), point)
    assert torch.allclose(slope, optimal.score(z, 0.2), atol=0.1)


def test_the_classifier_decides_as_the_exact_density_and_does_not_mind_the_batch():
    x, y = mixture(2, (4, 3, 3), (1, 2, 2))
    optimal = OptimalDenoiser(x, y)
    model, images = FlowClassifier(optimal, flow_grid(96, 0.4, 80.0), 0, chunk=3), draw((5, 1, 2, 2), 5)
    logits, exact = model(images), optimal.log_density(2 * images - 1, 0.4)
    assert model.num_classes == 3 and torch.equal(logits.argmax(1), exact.argmax(1))
    assert float((logits - exact).abs().max()) < 0.15, "96 steps, and the end"
    assert torch.allclose(logits[[4, 2]], model(images[[4, 2]]), rtol=1e-12)


def test_a_network_has_a_density_and_a_gradient():
    network = tiny_network(num_classes=3)
    model = FlowClassifier(network, flow_grid(3, 0.1, 80.0), 2)
    x = draw((2, *network.shape), 1).float().requires_grad_()
    logits = model(x)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x)
    with torch.no_grad():
        assert torch.allclose(model(x), logits.detach(), rtol=1e-5) and model.log_density(x).shape == (2, 1)
    assert logits.shape == (2, 3) and bool(slope.isfinite().all()) and bool((slope != 0).any())


def test_bits():
    """A uniform density on [-1, 1]^n has eight bits of 256 values, less one part in 256 values of width 2/255."""
    n = 5
    assert float(bits_per_dimension(torch.tensor([-n * math.log(2.0)]), n)) == pytest.approx(math.log2(255))
    assert float(trapezoid(torch.tensor([0.0, 1.0, 4.0])) @ torch.tensor([1.0, 2.0, 5.0])) == pytest.approx(1.5 + 3 * 3.5)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: flow_grid(4, 2.0, 1.0), "the range of sigma is empty"),
        (lambda: flow_grid(0), "steps must be at least 1"),
        (lambda: build("sbgc", "digits", draws=-1), "directions must be at least 0"),
    ],
)
def test_bad_input_gives_one_line(what, words):
    with pytest.raises(ValueError, match=words):
        what()
