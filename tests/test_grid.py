"""Quadrature: exact moments, closed-form integrals, and the score of a single image."""

import math

import pytest
import torch

from rdc.certify.grid import averages, gaussian_grid, legendre
from rdc.denoise import OptimalDenoiser


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_moments_of_a_normal(dims):
    points, weights = gaussian_grid(25, 7.0, dims)
    points = points.flatten(1)
    assert points.shape == (25**dims, dims)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(points.T @ (weights[:, None] * points), torch.eye(dims, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(weights @ points[:, 0] ** 4) == pytest.approx(3, abs=1e-7)


@pytest.mark.parametrize(("power", "exact"), [(-1, math.log(80)), (0, 19.75), (-3, (0.25**-2 - 20.0**-2) / 2)])
def test_powers_of_sigma_are_integrated(power, exact):
    sigma, weights = legendre(0.25, 20.0, 24)
    assert float(weights @ torch.tensor(sigma, dtype=torch.float64) ** power) == pytest.approx(exact, rel=1e-10)


def test_of_one_image_a_class_both_averages_are_closed_forms():
    """With one image the posterior is that image: the loss is |z - x|^2, and log p_sigma is quadratic."""
    images = torch.tensor([[0.2, 0.7], [0.9, 0.1]], dtype=torch.float64).reshape(2, 1, 1, 2)
    z, sigma = torch.tensor([[[0.3, -0.4]]], dtype=torch.float64), 0.6
    density, loss = averages(OptimalDenoiser(images, torch.tensor([0, 1])), z, sigma, 61)
    gap = (z - (2 * images - 1)).square().flatten(1).sum(dim=1)
    torch.testing.assert_close(loss, gap, atol=1e-9, rtol=0)
    expected = -(gap / sigma**2 + 2) / 2 - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(density, expected, atol=1e-7, rtol=0)
