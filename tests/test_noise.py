"""Noise levels: each kind is an integral over sigma, and the quadrature is right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from rdc.schedule import (
    DENSITIES,
    KINDS,
    P_MEAN,
    P_STD,
    Levels,
    alpha_to_sigma,
    chain_levels,
    edm_lambda,
    levels,
    log_normal,
    log_normal_released,
    sigma_to_alpha,
    vp_alphas,
    vp_weights,
)

sigmas = st.floats(1e-3, 1e3)


def value(f, sigma):
    """A function of tensors at a number."""
    return float(f(torch.tensor(float(sigma), dtype=torch.float64)))


def error(sigma):
    """A denoising error of the usual shape: sigma^2 at low noise, constant at high noise."""
    return sigma**2 / (1 + sigma**2)


def integral(density, low, high):
    """``int density(s) error(s) ds`` by adaptive quadrature in log sigma."""
    f = lambda u: value(density, math.exp(u)) * error(math.exp(u)) * math.exp(u)  # noqa: E731
    return quad(f, math.log(low), math.log(high), epsabs=0, epsrel=1e-10, limit=500)[0]


def rule(found: Levels):
    """The same by a set of levels."""
    return float((found.weight * error(found.sigma)).sum())


@given(sigmas)
def test_ve_to_vp_and_back(sigma):
    s = torch.tensor(sigma, dtype=torch.float64)
    alpha = sigma_to_alpha(s)
    assert 0 < alpha < 1
    assert alpha_to_sigma(alpha) == pytest.approx(sigma, rel=1e-9)
    assert sigma_to_alpha(alpha_to_sigma(alpha)) == pytest.approx(float(alpha), rel=1e-12)


@given(sigmas, st.floats(-1, 1), st.floats(-4, 4))
def test_vp_and_ve_see_the_same_noisy_image(sigma, z, eps):
    alpha = value(sigma_to_alpha, sigma)
    x_t = math.sqrt(alpha) * z + math.sqrt(1 - alpha) * eps
    assert x_t / math.sqrt(alpha) == pytest.approx(z + sigma * eps, rel=1e-7, abs=1e-7)


def test_the_linear_schedule():
    beta = np.linspace(1e-4, 2e-2, 1000)
    assert np.allclose(vp_alphas().numpy(), [np.prod(1 - beta[:t]) for t in range(1, 1001)], rtol=1e-12, atol=0)


def test_the_log_normal_has_mass_one_and_the_released_one_has_not():
    for density, mass in ((log_normal, 1.0), (log_normal_released, 1 / 1.44)):
        f = lambda u, p=density: value(p, math.exp(u)) * math.exp(u)  # noqa: E731
        assert quad(f, -12, 10, epsabs=1e-12)[0] == pytest.approx(mass, abs=1e-9)


def test_the_log_normal_has_the_moments_of_its_name():
    f = lambda u: value(log_normal, math.exp(u)) * math.exp(u)  # noqa: E731
    mean = quad(lambda u: u * f(u), -12, 10)[0]
    assert mean == pytest.approx(P_MEAN, abs=1e-9)
    assert quad(lambda u: (u - mean) ** 2 * f(u), -12, 10)[0] == pytest.approx(P_STD**2, abs=1e-9)


def test_the_edm_weight_inverts_the_preconditioning():
    s = torch.logspace(-2, 2, 20, dtype=torch.float64)
    c_out = s * 0.5 / (s**2 + 0.25).sqrt()
    assert torch.allclose(edm_lambda(s) * c_out**2, torch.ones_like(s), rtol=1e-12)


@pytest.mark.parametrize("kind", ["edm", "elbo"])
@pytest.mark.parametrize("placement", ["linear", "log", "quantile"])
def test_every_placement_converges_to_the_same_integral(kind, placement):
    exact = integral(DENSITIES[kind], 0.05, 20)
    errors = [abs(rule(levels(kind, count, placement)) / exact - 1) for count in (2000, 4000)]
    assert errors[1] < 2e-4
    assert errors[1] <= max(errors[0] / 3.2, 1e-10)  # midpoints: second order or better


def test_the_released_levels_converge_with_first_order():
    exact = integral(DENSITIES["edm-released"], 1e-4, 3)
    errors = [abs(rule(levels("edm-released", count)) / exact - 1) for count in (4000, 8000)]
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # left end points


@pytest.mark.parametrize(("low", "high"), [(0.05, 20.0), (0.3, 2.0)])
def test_elbo_weights_integrate_the_inverse_cube(low, high):
    found = levels("elbo", 2000, sigma_min=low, sigma_max=high)
    assert float(found.weight.sum()) == pytest.approx(0.5 * (low**-2 - high**-2), rel=1e-4)
    assert torch.allclose(found.sigma.log().diff(), found.sigma.log().diff()[:1], rtol=1e-9)
    assert low < found.sigma[0] and found.sigma[-1] < high


def test_edm_quantiles_have_equal_probability():
    found = levels("edm", 50)
    cdf = torch.special.ndtr((found.sigma.log() - P_MEAN) / P_STD)
    assert torch.allclose(cdf.diff(), cdf.diff()[:1], rtol=1e-9)
    per_node = found.weight / edm_lambda(found.sigma)  # probability of a node
    assert torch.allclose(per_node, per_node[:1], rtol=1e-9)


def test_the_derived_vp_weight_is_half_the_relative_change_of_the_snr():
    alpha = vp_alphas()
    snr = alpha / (1 - alpha)
    assert torch.allclose(vp_weights(alpha, "derived")[1:], 0.5 * (snr[:-1] / snr[1:] - 1), rtol=1e-9)
    assert float(vp_weights(alpha, "derived")[0]) == pytest.approx(0.5 / float(alpha[0]), rel=1e-9)


def test_the_printed_vp_weight_has_sigma_in_the_place_of_beta_squared():
    alpha = vp_alphas()
    beta = 1 - alpha / torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
    ratio = vp_weights(alpha, "printed") / vp_weights(alpha, "derived")
    assert torch.allclose(ratio, (1 - alpha).sqrt() / beta**2, rtol=1e-9)


def test_vp_levels_weight_noise_errors():
    alpha = vp_alphas()
    sigma = alpha_to_sigma(alpha)
    assert torch.allclose(levels("vp", 1000).weight * sigma**2, torch.full_like(sigma, 1e-3), rtol=1e-12)
    assert torch.allclose(levels("vp-printed", 1000).weight * sigma**2, vp_weights(alpha, "printed") / 1000, rtol=1e-12)
    assert torch.allclose(levels("vp-derived", 1000).weight * sigma**2, vp_weights(alpha, "derived"), rtol=1e-12)
    assert torch.equal(levels("vp", 7, placement="first").sigma, sigma[:7])
    assert torch.equal(levels("vp", 10).sigma, sigma[99::100])


def test_the_derived_vp_weights_are_the_chain_on_the_vp_grid():
    sigma = alpha_to_sigma(vp_alphas())
    chain = chain_levels(sigma)
    found = levels("vp-derived", 1000)
    assert torch.equal(chain.sigma, found.sigma[1:]) and torch.allclose(chain.weight, found.weight[1:], rtol=1e-8)


grids = st.lists(st.floats(0.02, 1.0), min_size=2, max_size=12).map(lambda steps: np.cumsum(steps))


@given(grids)
def test_chain_weights_telescope(grid):
    first, last = float(grid[0]), float(grid[-1])
    for kind in ("chain", "trapezoid"):
        found = chain_levels(torch.from_numpy(grid), kind)
        assert float(found.weight.sum()) == pytest.approx(0.5 * (first**-2 - last**-2), rel=1e-9)
        with_tail = chain_levels(torch.from_numpy(grid), kind, tail=True)
        assert float(with_tail.weight.sum()) == pytest.approx(0.5 * first**-2, rel=1e-9)
        assert torch.equal(with_tail.weight[:-1], found.weight[:-1])
    assert len(chain_levels(torch.from_numpy(grid), "trapezoid")) == len(grid)


@given(grids)
def test_the_right_rule_is_smaller_than_the_chain_by_half_r_times_r_plus_one(grid):
    sigma = torch.from_numpy(grid)
    r = sigma[1:] / sigma[:-1]
    ratio = chain_levels(sigma, "chain").weight / chain_levels(sigma, "right").weight
    assert torch.allclose(ratio, r * (r + 1) / 2, rtol=1e-7)


@pytest.mark.parametrize(("kind", "order"), [("trapezoid", 2), ("right", 1), ("chain", 1)])
def test_orders_of_the_rules(kind, order):
    exact = integral(DENSITIES["elbo"], 0.1, 10)
    grids = [torch.logspace(-1, 1, count + 1, dtype=torch.float64) for count in (400, 800)]
    errors = [abs(rule(chain_levels(grid, kind)) - exact) for grid in grids]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 17])
def test_every_kind_gives_positive_weights_at_increasing_levels(kind, count):
    found = levels(kind, count)
    assert len(found) == count and found.sigma.dtype == found.weight.dtype == torch.float64
    assert bool((found.weight > 0).all()) and bool((found.sigma.diff() > 0).all())
    assert torch.equal(found[:1].sigma, found.sigma[:1]) and torch.equal(found[:1].weight, found.weight[:1])


BAD = {
    "kind": (lambda: levels("ddpm"), "unknown kind of levels 'ddpm'"),
    "count": (lambda: levels("elbo", 0), "count must be at least 1"),
    "range": (lambda: levels("elbo", sigma_min=3.0, sigma_max=2.0), "range of sigma is empty"),
    "zero": (lambda: levels("elbo", sigma_min=0.0), "range of sigma is empty"),
    "placement": (lambda: levels("elbo", placement="middle"), "unknown placement 'middle'"),
    "vp placement": (lambda: levels("vp", placement="log"), "unknown placement 'log'"),
    "vp count": (lambda: levels("vp", 1001), "1000 steps"),
    "rule": (lambda: chain_levels(torch.tensor([1.0, 2.0]), "left"), "unknown rule 'left'"),
    "short grid": (lambda: chain_levels(torch.tensor([1.0])), "at least two"),
    "falling grid": (lambda: chain_levels(torch.tensor([2.0, 1.0])), "increasing"),
    "lengths": (lambda: Levels(torch.ones(2).double(), torch.ones(1).double()), "weight"),
    "nan": (lambda: Levels(torch.ones(2).double(), torch.ones(2).double() * torch.nan), "finite"),
    "negative": (lambda: Levels(-torch.ones(2).double(), torch.ones(2).double()), "positive"),
    "none": (lambda: Levels(torch.ones(0).double(), torch.ones(0).double()), "as many weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("kind", ["edm", "edm-released"])
@pytest.mark.parametrize("spread", [0.25, 0.7])
def test_the_weights_of_edm_know_the_spread_of_the_data(kind, spread):
    """A weight is lambda_s(sigma) p(sigma) times the step: its ratio to the default is that of the lambdas."""
    own, default = levels(kind, 12, sigma_data=spread), levels(kind, 12)
    assert torch.equal(own.sigma, default.sigma)
    s = own.sigma
    ratio = (s**2 + spread**2) / (s * spread) ** 2 / ((s**2 + 0.25) / (0.5 * s) ** 2)
    assert torch.allclose(own.weight, default.weight * ratio, rtol=1e-12)
    assert torch.equal(levels("elbo", 5, sigma_data=spread).weight, levels("elbo", 5).weight)
