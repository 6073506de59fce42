"""What the ELBO is for the optimal denoiser: an identity in continuous time, a bound for the chain on a grid.

With ``J(s) = E log p_s(x + s eps)`` and ``m(s) = E |D(x + s eps) - x|^2``,

    J(s_0) = J(s_T) + D log(s_T / s_0) - int m(s) s^-3 ds        for every x and every s_0 < s_T.

Everything is in float64; expectations over eps are trapezoid sums, which for smooth Gaussian integrands converge exponentially.
"""

import functools
import math

import numpy as np
import pytest
import torch
from helpers import mixture
from scipy.interpolate import CubicSpline

from rdc.denoise import OptimalDenoiser
from rdc.schedule import chain_levels, levels


def nodes(dim, half=8.0, step=0.05):
    """Nodes and weights of the standard normal distribution in ``dim`` dimensions, ``(M, dim)`` and ``(M,)``."""
    g = torch.arange(-half, half + step / 2, step, dtype=torch.float64)
    w = torch.exp(-(g**2) / 2)
    w = w / w.sum()
    grid = torch.cartesian_prod(*[g] * dim).reshape(-1, dim)
    return grid, torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(1)


class Toy:
    """A small mixture with its exact ``J`` and ``m`` at a point, for every class."""

    def __init__(self, x, y, step=0.05):
        self.model = OptimalDenoiser(x, y)
        self.dim = x[0].numel()
        self.eps, self.weight = nodes(self.dim, step=step)

    def noisy(self, point, sigma):
        return (point.flatten()[None] + sigma * self.eps).reshape(-1, *point.shape)

    def smoothed(self, point, sigma):
        """``J`` of every class, ``(K,)``."""
        return self.weight @ self.model.log_density(self.noisy(point, sigma), sigma)

    def error(self, point, sigma):
        """``m`` of every class, ``(K,)``."""
        gap = self.model.all_classes(self.noisy(point, sigma), sigma) - point[None, None]
        return self.weight @ gap.square().flatten(2).sum(2)

    def integral(self, point, low, high, count=60):
        """``int m s^-3 ds`` by Gauss-Legendre quadrature in log s."""
        u, w = np.polynomial.legendre.leggauss(count)
        a, b = math.log(low), math.log(high)
        s = np.exp((b - a) / 2 * u + (a + b) / 2)
        return sum((b - a) / 2 * wi * self.error(point, float(si)) / si**2 for wi, si in zip(w, s, strict=True))


def toys(step=0.02):
    line = torch.tensor([0.0, 0.35, 1.0, 0.2, 0.6], dtype=torch.float64).reshape(-1, 1, 1, 1)
    yield Toy(line, torch.tensor([0, 0, 0, 1, 1]), step)
    yield Toy(*mixture(7, (3, 4), (1, 1, 2)), step=0.2)


@pytest.mark.parametrize("toy", list(toys()), ids=["one dimension", "two dimensions"])
@pytest.mark.parametrize("where", [-0.7, 0.1, 0.9])
def test_the_continuous_elbo_is_an_identity(toy, where):
    point = torch.full(toy.model.shape, where, dtype=torch.float64)
    low, high = 0.15, 15.0
    bound = toy.smoothed(point, high) + toy.dim * math.log(high / low) - toy.integral(point, low, high)
    assert torch.allclose(bound, toy.smoothed(point, low), rtol=0, atol=1e-6)


@pytest.mark.parametrize("toy", list(toys()), ids=["one dimension", "two dimensions"])
def test_at_low_noise_the_gap_to_the_log_likelihood_is_the_same_for_all_classes(toy):
    """Theorem 3.1: the optimal classifier then is the exact posterior. The gap is D/2, not 0."""
    point = torch.full(toy.model.shape, 0.21, dtype=torch.float64)
    low = 0.01
    gap = toy.model.log_density(point[None], low)[0] - toy.smoothed(point, low)
    assert torch.allclose(gap, torch.full_like(gap, toy.dim / 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("toy", list(toys()), ids=["one dimension", "two dimensions"])
def test_the_gap_is_at_most_half_the_dimension(toy):
    for where in (-1.0, 0.0, 0.5):
        point = torch.full(toy.model.shape, where, dtype=torch.float64)
        for sigma in (0.1, 0.5, 2.0):
            gap = toy.model.log_density(point[None], sigma)[0] - toy.smoothed(point, sigma)
            assert bool((gap <= toy.dim / 2 + 1e-9).all())


def test_elbo_levels_integrate_the_error_of_the_optimal_model():
    toy = next(toys())
    point = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    found = levels("elbo", 200, sigma_min=0.15, sigma_max=15)
    total = sum(w * toy.error(point, s) for s, w in zip(found.sigma.tolist(), found.weight.tolist(), strict=True))
    assert torch.allclose(total, toy.integral(point, 0.15, 15.0), rtol=1e-4)


def test_the_tail_weight_completes_the_integral():
    toy = next(toys(step=0.1))
    point = torch.full((1, 1, 1), 0.1, dtype=torch.float64)
    whole = toy.integral(point, 0.15, 3000.0, count=200)
    errors = {}
    for high in (6.0, 12.0):
        for tail in (False, True):
            found = chain_levels(torch.logspace(math.log10(0.15), math.log10(high), 2401, dtype=torch.float64), "trapezoid", tail)
            total = sum(w * toy.error(point, s) for s, w in zip(found.sigma.tolist(), found.weight.tolist(), strict=True))
            errors[high, tail] = float((total - whole).abs().max())
    assert errors[12.0, True] < errors[12.0, False] / 20
    assert errors[6.0, False] / errors[12.0, False] == pytest.approx(4, rel=0.1)  # what is cut off: sigma_T^-2
    assert errors[6.0, True] > 8 * errors[12.0, True]  # with the tail: sigma_T^-4


LOW, HIGH = 0.25, 8.0
GRID = torch.linspace(-40, 40, 2001, dtype=torch.float64)


def atoms():
    """One class with the two images z = -1 and z = 1."""
    return Toy(torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1), torch.tensor([0, 0]), step=0.02)


def gauss(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@functools.cache
def log_chain(count):
    """Log density of ``x_0`` of the Markov chain with the optimal denoiser, by quadrature on GRID, as a function."""
    model, sigma = atoms().model, grid(count)
    density = gauss(GRID, 0.0, float(sigma[-1]) ** 2)
    for low, high in reversed(list(zip(sigma[:-1].tolist(), sigma[1:].tolist(), strict=True))):
        mean = model(GRID.reshape(-1, 1, 1, 1), high).flatten()
        mean = ((high**2 - low**2) * mean + low**2 * GRID) / high**2
        variance = low**2 * (high**2 - low**2) / high**2
        density = gauss(GRID[:, None], mean[None], variance) @ density * float(GRID[1] - GRID[0])
    return CubicSpline(GRID.numpy(), density.clamp(min=1e-300).log().numpy())


def grid(count):
    """Log-spaced noise levels, ``count`` steps."""
    return torch.logspace(math.log10(LOW), math.log10(HIGH), count + 1, dtype=torch.float64)


def elbo(toy, point, sigma):
    """The bound on the grid, constants included, with the prior N(0, sigma_T^2)."""
    found = chain_levels(sigma)
    loss = sum(w * float(toy.error(point, s)[0]) for s, w in zip(found.sigma.tolist(), found.weight.tolist(), strict=True))
    return -(float(point) ** 2) / (2 * HIGH**2) - 0.5 * math.log(2 * math.pi * math.e * LOW**2) - loss


@pytest.mark.parametrize("count", [2, 4, 8, 32])
@pytest.mark.parametrize("where", [-1.0, 0.0, 0.6, 2.0])
def test_a_grid_bounds_the_density_of_the_chain(count, where):
    toy, point = atoms(), torch.full((1, 1, 1), where, dtype=torch.float64)
    noisy = (where + LOW * toy.eps[:, 0]).numpy()
    mean_log = float(toy.weight @ torch.from_numpy(log_chain(count)(noisy)))
    assert elbo(toy, point, grid(count)) <= mean_log + 1e-4


@pytest.mark.parametrize(("count", "excess"), [(2, 3.3), (4, 1.3), (8, 0.53), (32, 0.12)])
def test_off_the_data_a_grid_can_exceed_the_density_of_the_data(count, excess):
    toy, point = atoms(), torch.zeros(1, 1, 1, dtype=torch.float64)
    assert elbo(toy, point, grid(count)) - float(toy.smoothed(point, LOW)[0]) == pytest.approx(excess, rel=0.05)


def test_on_the_data_a_grid_is_a_bound():
    toy = atoms()
    for count in (2, 8, 32):
        point = torch.ones(1, 1, 1, dtype=torch.float64)  # the other image is its mirror
        assert elbo(toy, point, grid(count)) <= float(toy.smoothed(point, LOW)[0])
