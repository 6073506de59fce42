"""Normalisers of the diffusion classifier as an energy-based model, in one dimension: closed forms, an identity, bounds."""

import math

import pytest
import torch
from helpers import mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.classify.energy import class_normalisers, energies
from rdc.denoise.optimal import OptimalDenoiser
from rdc.schedule import levels

GRID = torch.linspace(-4, 4, 801, dtype=torch.float64)


def pixels(*classes):
    """Optimal denoiser of images with one pixel, given in model units, class by class."""
    z = torch.tensor([value for values in classes for value in values], dtype=torch.float64).reshape(-1, 1, 1, 1)
    return OptimalDenoiser((z + 1) / 2, torch.arange(len(classes)).repeat_interleave(torch.tensor([len(c) for c in classes])))


@given(at=st.lists(st.floats(-0.9, 0.9), min_size=2, max_size=4), kind=st.sampled_from(["elbo", "edm", "vp"]))
@settings(max_examples=6)
def test_classes_of_one_image_have_the_same_normaliser(at, kind):
    """``E = (z - z_1)^2 sum w``: a Gaussian integral, for all weights."""
    found = levels(kind, 8)
    grid = GRID * 2.5
    expected = torch.full((len(at),), 0.5 * math.log(math.pi / float(found.weight.sum())), dtype=torch.float64)
    assert torch.allclose(class_normalisers(pixels(*[[a] for a in at]), found, grid, 65), expected, atol=1e-8)


def quadratic(sigma):
    """ELBO levels of a fine midpoint rule."""
    return levels("elbo", 96, sigma_min=sigma, sigma_max=40.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_energy_of_the_bound_is_a_difference_of_two_averaged_log_densities(seed):
    """Exact at every point, not on average: ``log(b/a) + E log p_b(z + b eps) - E log p_a(z + a eps)``."""
    denoiser, grid = OptimalDenoiser(*mixture(seed, shape=(1, 1, 1))), torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    low, high = 0.2, 40.0
    eps = torch.linspace(-8, 8, 513, dtype=torch.float64)
    density = torch.softmax(-(eps**2) / 2, dim=0)

    def average(sigma):
        points = (grid[:, None] + sigma * eps).reshape(-1, 1, 1, 1)
        return torch.einsum("e,gek->gk", density, denoiser.log_density(points, sigma).reshape(len(grid), len(eps), -1))

    expected = math.log(high / low) + average(high) - average(low)
    assert torch.allclose(energies(denoiser, quadratic(low), grid, 513), expected, rtol=2e-3, atol=2e-3)


def test_with_the_weights_of_the_bound_classes_differ_by_less_than_half_a_nat():
    """``log Z`` lies in ``[log(a sqrt(2 pi)), that + 1/2]``; at the lower end where images are far apart against a."""
    denoiser, a = pixels([-0.6, 0.6], [0.0], [-0.3, -0.1, 0.1, 0.3]), 0.1
    found = class_normalisers(denoiser, quadratic(a), GRID[200:601:2], 129)
    lower = math.log(a * math.sqrt(2 * math.pi))
    assert float((found - lower).min()) > -2e-3 and float((found - lower).max()) < 0.5
    assert float(found[1]) == pytest.approx(lower, abs=2e-3) and float(found[0]) == pytest.approx(lower, abs=0.02)
    assert float(found[2] - lower) > 0.2  # images two standard deviations apart: nearly a smooth density


def test_with_other_weights_they_do_differ():
    """Noise prediction with weight 1 on the VP schedule, in which the posterior without normalisers is another one."""
    denoiser = pixels([-0.6, 0.6], [0.0], [-0.3, -0.1, 0.1, 0.3])
    other = class_normalisers(denoiser, levels("vp", 24), 3 * GRID, 129)
    assert float(other.max() - other.min()) > 0.5
    values = -energies(denoiser, levels("vp", 24), torch.tensor([0.45], dtype=torch.float64), 129)
    left_out, bayes = values.softmax(1), (values - other).softmax(1)
    assert float((left_out - bayes).abs().max()) > 0.05


def test_a_mirrored_class_has_the_same_normaliser():
    found = class_normalisers(pixels([-0.7, -0.2, 0.5], [0.7, 0.2, -0.5]), levels("edm", 12), GRID, 129)
    assert float(found[0]) == pytest.approx(float(found[1]), abs=1e-9)


def test_bad_input():
    with pytest.raises(ValueError, match="one pixel"):
        class_normalisers(OptimalDenoiser(*mixture(0)), levels("elbo", 2), GRID)
    with pytest.raises(ValueError, match="increasing"):
        class_normalisers(pixels([0.0], [0.1]), levels("elbo", 2), GRID.flip(0))
    with pytest.raises(ValueError, match="nodes"):
        energies(pixels([0.0], [0.1]), levels("elbo", 2), GRID, 1)
