"""The optimal denoiser against loops in float64, and the identities of a Gaussian mixture."""

import numpy as np
import pytest
import torch
from helpers import draw, mixture
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from rdc.denoise import Denoiser, OptimalDenoiser
from rdc.rng import randn
from rdc.schedule import sigma_to_alpha

counts = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
sigmas = st.floats(0.05, 50)
cases = st.tuples(st.integers(0, 10**6), counts, shapes, sigmas)


def build(case, queries=3):
    """Data, denoiser, noisy query points and sigma of a random case."""
    seed, count, shape, sigma = case
    x, y = mixture(seed, count, shape)
    z = 2 * draw((queries, *shape), seed + 1) - 1
    return x, y, OptimalDenoiser(x, y), z + sigma * randn(tuple(z.shape), seed, like=z), sigma


def reference(x, y, z_sigma, sigma, label):
    """Mean and log density of one noisy image by loops: ``label=None`` takes all images."""
    points = [2 * image.numpy().ravel() - 1 for image, c in zip(x, y.tolist(), strict=True) if label is None or c == label]
    query = z_sigma.numpy().ravel()
    a = np.array([-((query - p) ** 2).sum() / (2 * sigma**2) for p in points])
    log_density = logsumexp(a) - np.log(len(points)) - len(query) / 2 * np.log(2 * np.pi * sigma**2)
    weights = np.exp(a - logsumexp(a))
    return sum(w * p for w, p in zip(weights, points, strict=True)), log_density


@given(cases)
def test_against_loops(case):
    x, y, model, z, sigma = build(case)
    classes = range(len(case[1]))
    means, density = model.all_classes(z, sigma), model.log_density(z, sigma)
    posterior, free = model.posterior(z, sigma), model(z, sigma)
    frequency = np.array(case[1]) / len(y)
    for n in range(len(z)):
        expected = [reference(x, y, z[n], sigma, k) for k in classes]
        for k in classes:
            assert means[n, k].flatten().tolist() == pytest.approx(expected[k][0], abs=1e-9)
        logs = np.array([e[1] for e in expected])
        assert density[n].tolist() == pytest.approx(logs, rel=1e-9, abs=1e-9)
        joint = logs + np.log(frequency)
        assert posterior[n].tolist() == pytest.approx(np.exp(joint - logsumexp(joint)), abs=1e-9)
        assert free[n].flatten().tolist() == pytest.approx(reference(x, y, z[n], sigma, None)[0], abs=1e-9)


@given(cases)
def test_all_classes_is_one_call_per_label(case):
    *_, model, z, sigma = build(case)
    together = model.all_classes(z, sigma)
    for k in range(model.num_classes):
        one = model(z, sigma, torch.full((len(z),), k))
        assert torch.allclose(together[:, k], one, rtol=0, atol=1e-12)
    assert torch.allclose(model(z, sigma, torch.full((len(z),), -1)), model(z, sigma), rtol=0, atol=1e-12)


@given(cases)
def test_the_unconditional_denoiser_is_the_posterior_mixture(case):
    *_, model, z, sigma = build(case)
    mixed = torch.einsum("nk,nkchw->nchw", model.posterior(z, sigma), model.all_classes(z, sigma))
    assert torch.allclose(mixed, model(z, sigma), rtol=0, atol=1e-9)


@given(cases)
def test_the_score_is_the_gradient_of_the_log_density(case):
    *_, model, z, sigma = build(case)
    z = z.requires_grad_()
    density = model.log_density(z, sigma)
    prior = torch.tensor(model.counts, dtype=z.dtype).log() - np.log(sum(model.counts))
    targets = [(density[:, k], torch.full((len(z),), k)) for k in range(model.num_classes)]
    for value, label in [*targets, ((density + prior).logsumexp(dim=1), None)]:
        (slope,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
        assert torch.allclose(model.score(z, sigma, label), slope, rtol=1e-8, atol=1e-8 / sigma**2)


@given(cases)
def test_the_vp_form_of_the_paper_predicts_the_same_noise(case):
    x, y, model, z, sigma = build(case)
    alpha = float(sigma_to_alpha(torch.tensor(sigma, dtype=torch.float64)))
    x_t = alpha**0.5 * z  # the VP image
    for k in range(model.num_classes):
        points = 2 * x[y == k] - 1
        gap = x_t[:, None] - alpha**0.5 * points[None]
        s = (-gap.square().flatten(2).sum(2) / (2 * (1 - alpha))).softmax(dim=1)
        noise = torch.einsum("ni,nichw->nchw", s, gap) / (1 - alpha) ** 0.5  # Eq. 7
        ve = (z - model(z, sigma, torch.full((len(z),), k))) / sigma
        assert torch.allclose(noise, ve, rtol=0, atol=1e-8 * max(1, 1 / sigma))


@given(cases, st.floats(0, 1))
def test_moving_data_and_query_together_moves_the_mean(case, shift):
    x, y, _, z, sigma = build(case)
    a, b = OptimalDenoiser(x / 2, y), OptimalDenoiser(x / 2 + shift / 2, y)
    assert torch.allclose(a(z, sigma) + shift, b(z + shift, sigma), rtol=0, atol=1e-9)
    assert torch.allclose(a.log_density(z, sigma), b.log_density(z + shift, sigma), rtol=1e-9, atol=1e-9)


@given(cases)
def test_the_order_of_the_images_does_not_matter(case):
    x, y, model, z, sigma = build(case)
    other = OptimalDenoiser(x.flip(0), y.flip(0))
    assert torch.allclose(model.all_classes(z, sigma), other.all_classes(z, sigma), rtol=0, atol=1e-10)


def test_limits_of_high_and_low_noise():
    x, y = mixture(3, (4, 6, 2))
    model, z = OptimalDenoiser(x, y), 2 * draw((5, 1, 2, 3), 9) - 1
    points = 2 * x - 1
    means = torch.stack([points[y == k].mean(0) for k in range(3)])
    assert torch.allclose(model.all_classes(z, 1e5), means.expand(5, -1, -1, -1, -1), rtol=0, atol=1e-8)
    for k in range(3):
        mine = points[y == k]
        nearest = mine[torch.cdist(z.flatten(1), mine.flatten(1)).argmin(1)]
        assert torch.allclose(model(z, 0.005, torch.full((5,), k)), nearest, rtol=0, atol=1e-9)


def test_one_sigma_per_image():
    x, y = mixture(4)
    model, z = OptimalDenoiser(x, y), draw((3, 1, 2, 3), 5)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    for method in (model, model.all_classes, model.log_density, model.posterior, model.score):
        each = torch.cat([method(z[i : i + 1], float(sigma[i])) for i in range(3)])
        assert torch.allclose(method(z, sigma), each, rtol=1e-12, atol=1e-12)


def test_float32_exponents_on_real_images_are_as_good_as_documented(fashion_train, fashion_test):
    single = OptimalDenoiser(fashion_train.x[:2000], fashion_train.y[:2000])
    double = OptimalDenoiser(fashion_train.x[:2000].double(), fashion_train.y[:2000])
    z = 2 * fashion_test.x[:20] - 1
    for sigma in (0.1, 1.0, 20.0):
        noisy = z + sigma * randn(tuple(z.shape), 1, like=z)
        gap = (single.distances(noisy).double() - double.distances(noisy.double())).abs().max() / (2 * sigma**2)
        assert gap < 0.02


def test_it_is_a_denoiser():
    model = OptimalDenoiser(*mixture())
    assert isinstance(model, Denoiser) and model.num_classes == 3 and model.shape == (1, 2, 3)


def test_bad_input():
    x, y = mixture()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        OptimalDenoiser(2 * x, y)
    with pytest.raises(ValueError, match="every class"):
        OptimalDenoiser(x, 2 * y)
    with pytest.raises(ValueError, match="labels"):
        OptimalDenoiser(x, y - 1)
    model = OptimalDenoiser(x, y)
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            model(x, sigma)
    with pytest.raises(ValueError, match="one per image"):
        model(x, torch.ones(3, dtype=x.dtype))
