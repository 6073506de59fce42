"""The gradient without the network's Jacobian: exact by quadrature, unbiased by Monte Carlo, its variance as computed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import draw, mixture, tiny_network
from hypothesis import given
from hypothesis import strategies as st

from rdc.classify import DiffusionClassifier
from rdc.classify.score_gradient import BASELINES, baselines, integrand, pathwise_gradient, score_gradient
from rdc.denoise.optimal import OptimalDenoiser
from rdc.schedule import Levels, alpha_to_sigma, levels


def one_level(sigma: float, weight: float = 1.0) -> Levels:
    """A single level."""
    return Levels(torch.tensor([sigma], dtype=torch.float64), torch.tensor([weight], dtype=torch.float64))


@dataclass
class Pointwise:
    """A denoiser of one class, given as a function of the noisy image."""

    function: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, int, int]
    num_classes: int = 1
    one_pass: bool = True

    def __call__(self, z, sigma, label=None):
        return self.function(z)

    def all_classes(self, z, sigma):
        return self.function(z)[:, None]


def gaussian(count=100):
    """Nodes and weights of a standard normal expectation."""
    eps = torch.linspace(-9, 9, count * 8 + 1, dtype=torch.float64)
    return eps, torch.softmax(-(eps**2) / 2, dim=0)


@given(
    seed=st.integers(0, 99), sigma=st.floats(0.2, 3), at=st.floats(-1.5, 1.5), labelled=st.booleans(), baseline=st.floats(-5, 5)
)
def test_in_one_dimension_it_is_the_derivative_of_the_loss(seed, sigma, at, labelled, baseline):
    """By quadrature, against autograd of the expected loss and against its central difference, for any constant baseline."""
    denoiser = OptimalDenoiser(*mixture(seed, shape=(1, 1, 1)))
    eps, density = gaussian()
    label = torch.full((len(eps),), seed % 3) if labelled else None

    def error(z):
        return z.reshape(1, 1, 1, 1) - denoiser(z + sigma * eps.reshape(-1, 1, 1, 1), sigma, label)

    def loss(z):
        return (density * error(z).flatten().square()).sum()

    z = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(loss(z), z)
    found = error(z).detach()
    size = found.flatten().square() - baseline
    value = (density * integrand(found, size, eps.reshape(-1, 1, 1, 1), torch.tensor(sigma, dtype=torch.float64)).flatten()).sum()
    step = 1e-5
    difference = (loss(z + step) - loss(z - step)).detach() / (2 * step)
    assert float(value) == pytest.approx(float(exact), abs=1e-9, rel=1e-9)
    assert float(value) == pytest.approx(float(difference), abs=1e-6, rel=1e-6)


def test_the_formula_of_the_paper_is_this_one_with_weight_one_over_sigma_squared():
    """Eq. 15 in its own units: noise prediction, ``x_t = sqrt(alpha) x + sqrt(1 - alpha) eps``."""
    alpha = torch.tensor(0.7, dtype=torch.float64)
    sigma = alpha_to_sigma(alpha)
    denoiser, x, eps = OptimalDenoiser(*mixture(0)), draw((4, 1, 2, 3), 1), draw((4, 1, 2, 3), 2) * 4 - 2
    x_t = alpha.sqrt() * x + (1 - alpha).sqrt() * eps
    noise = (x_t / alpha.sqrt() - denoiser(x_t / alpha.sqrt(), sigma)) / sigma  # the noise prediction of a denoiser
    log_p = x.clone().requires_grad_()
    exponent = -(x_t - alpha.sqrt() * log_p).square().sum() / (2 * (1 - alpha))
    (score,) = torch.autograd.grad(exponent, log_p)
    size = (noise - eps).square().flatten(1).sum(1)
    paper = score * size[:, None, None, None] + (noise - eps) * 2 * (alpha / (1 - alpha)).sqrt()
    error = x - denoiser(x + sigma * eps, sigma)
    ours = integrand(error, error.square().flatten(1).sum(1), eps, sigma) / sigma**2
    assert torch.allclose(ours, paper, rtol=1e-12, atol=1e-12)


def six_dimensions():
    """A denoiser, two images, two levels and labels."""
    denoiser, z = OptimalDenoiser(*mixture(1)), 2 * draw((2, 1, 2, 3), 2) - 1
    both = Levels(torch.tensor([0.5, 1.2], dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64))
    return denoiser, z, both, torch.tensor([0, 2])


@pytest.fixture(scope="module")
def exact():
    """Their gradient through the denoiser, from far more noise."""
    return pathwise_gradient(*six_dimensions(), draws=1000, seed=99)


@pytest.mark.parametrize("baseline", BASELINES)
def test_it_is_unbiased(baseline, exact):
    """In six dimensions with two levels, within 4 standard errors of the gradient through the denoiser."""
    runs = torch.stack([score_gradient(*six_dimensions(), 20, baseline, seed) for seed in range(60)])
    error = (runs.mean(0) - exact) / (runs.std(0) / math.sqrt(len(runs)))
    assert float(error.abs().max()) < 4
    assert float(error.square().mean()) < 2
    assert float(exact.norm()) > 5 * float((runs.std(0) / math.sqrt(len(runs))).norm())  # there is something to be wrong about


@pytest.mark.parametrize(("a", "sigma"), [(0.7, 0.5), (0.3, 2.0)])
def test_mean_and_variance_for_a_linear_denoiser(a, sigma):
    """Pairs of the score: ``4 a^2 (1 - a)^2 (n + 1) |z|^2`` against ``2 a^2 (1 - a)^2 n sigma^2`` through the network."""
    shape, n, z = (1, 2, 3), 6, 2 * draw((1, 1, 2, 3), 3) - 1
    denoiser, level = Pointwise(lambda u: a * u, shape), one_level(sigma)
    exact = 2 * (1 - a) ** 2 * z

    def moments(gradient):
        runs = torch.stack([gradient(seed) for seed in range(800)])
        assert torch.allclose(runs.mean(0), exact, atol=float(4 * (runs.var(0) / len(runs)).max().sqrt() + 1e-6))
        return float(runs.var(0).sum())

    score = moments(lambda seed: score_gradient(denoiser, z, level, None, 2, "pairs", seed))
    path = moments(lambda seed: pathwise_gradient(denoiser, z, level, None, 2, False, seed))
    factor = 2 * a**2 * (1 - a) ** 2
    assert score == pytest.approx(factor * 2 * (n + 1) * float(z.square().sum()), rel=0.2)
    assert path == pytest.approx(factor * n * sigma**2, rel=0.2)
    assert moments(lambda seed: pathwise_gradient(denoiser, z, level, None, 2, True, seed)) < 1e-12
    for baseline in ("others", "none"):
        assert moments(lambda seed, kind=baseline: score_gradient(denoiser, z, level, None, 2, kind, seed)) > 1.5 * score


def test_its_variance_is_large_for_a_network():
    """Through a network of 64 pixels the pathwise gradient has less than a tenth of the variance, and a baseline helps."""
    denoiser, z, level = tiny_network(), 2 * draw((2, 1, 8, 8), 4, torch.float32) - 1, one_level(0.5)
    found = {}
    for kind in (*BASELINES, "path"):
        estimate = pathwise_gradient if kind == "path" else score_gradient
        runs = [estimate(denoiser, z, level, None, 2, kind == "path" or kind, seed) for seed in range(30)]
        found[kind] = float(torch.stack(runs).var(0).sum())
    assert found["pairs"] > 10 * found["path"]
    assert found["none"] > 2 * found["pairs"]


@pytest.mark.parametrize(("noise", "antithetic"), [("antithetic", True), ("shared", False)])
def test_the_pathwise_gradient_is_that_of_the_classifier(noise, antithetic):
    denoiser, x = tiny_network(), draw((2, 1, 8, 8), 5, torch.float32)
    model = DiffusionClassifier(denoiser, levels("elbo", 3), noise=noise, seed=7, draws=4)
    point, label = x.clone().requires_grad_(), torch.tensor([1, 2])
    (slope,) = torch.autograd.grad(model(point).gather(1, label[:, None]).sum(), point)
    found = pathwise_gradient(denoiser, 2 * x - 1, levels("elbo", 3), label, 4, antithetic, 7)
    assert torch.allclose(-2 * found, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


def test_the_first_term_alone_is_the_gradient_of_another_function():
    """Score distillation: ``2 E(z - D) = -2 sigma^2 grad E log p_sigma(z + sigma eps)``, not the gradient of the loss."""
    denoiser, (eps, density), sigma = OptimalDenoiser(*mixture(3, shape=(1, 1, 1))), gaussian(), 0.4
    z = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    points = z + sigma * eps.reshape(-1, 1, 1, 1)
    counts = torch.tensor(denoiser.counts, dtype=torch.float64)
    log_density = (denoiser.log_density(points, sigma) + (counts / counts.sum()).log()).logsumexp(1)
    (slope,) = torch.autograd.grad((density * log_density).sum(), z, retain_graph=True)
    error = z - denoiser(points, sigma).flatten()
    (exact,) = torch.autograd.grad((density * error.square()).sum(), z)
    first = float(2 * (density * error.detach()).sum())
    assert first == pytest.approx(-2 * sigma**2 * float(slope), rel=1e-9)
    assert abs(first - float(exact)) > 0.1 * abs(first)


def test_each_image_alone_and_no_gradient_is_asked_for():
    denoiser, z = OptimalDenoiser(*mixture(1)), 2 * draw((3, 1, 2, 3), 2) - 1
    label, state = torch.tensor([0, 1, 2]), torch.random.get_rng_state()
    rounded = Pointwise(lambda u: u.mul(4).round().div(8), denoiser.shape)  # its derivative is zero
    for kind in BASELINES:
        whole = score_gradient(denoiser, z, levels("elbo", 3), label, 4, kind, 1)
        alone = score_gradient(denoiser, z[1:2], levels("elbo", 3), label[1:2], 4, kind, 1)
        assert torch.allclose(whole[1:2], alone, rtol=1e-12) and not whole.requires_grad
        assert torch.equal(whole, score_gradient(denoiser, z, levels("elbo", 3), label, 4, kind, 1))
        assert not torch.equal(whole, score_gradient(denoiser, z, levels("elbo", 3), label, 4, kind, 2))
    assert bool(score_gradient(rounded, z, levels("elbo", 3), None, 4).abs().sum() > 0)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("draws", "baseline", "says"), [(3, "pairs", "even"), (1, "others", "at least 2"), (2, "mean", "unknown")]
)
def test_bad_input(draws, baseline, says):
    with pytest.raises(ValueError, match=says):
        score_gradient(OptimalDenoiser(*mixture(0)), draw((1, 1, 2, 3), 1), levels("elbo", 2), None, draws, baseline)


@given(seed=st.integers(0, 99), constant=st.floats(-100, 100), kind=st.sampled_from(["pairs", "others"]))
def test_a_baseline_takes_out_a_constant_and_leaves_the_mean(seed, constant, kind):
    """``pairs`` does not see which of the two draws has the sign, ``others`` does not see the draw's own loss."""
    size = draw((6, 3), seed)
    assert torch.allclose(baselines(size + constant, kind), baselines(size, kind) + constant, atol=1e-12)
    changed = size.clone()
    changed[2:4] = size[2:4].flip(0) if kind == "pairs" else size[2:4] + torch.tensor([[1.0], [0.0]])
    assert torch.allclose(baselines(changed, kind)[2], baselines(size, kind)[2])
