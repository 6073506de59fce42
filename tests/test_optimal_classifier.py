"""The fast optimal classifier against plain formulas: loops in numpy, the direct form, and 10 000 real images."""

import numpy as np
import pytest
import torch
from helpers import draw, mixture
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist
from scipy.special import softmax

from rdc.classify import DiffusionClassifier, NearestNeighbor, OptimalClassifier, ReleasedOptimalClassifier
from rdc.classify.optimal import compress
from rdc.denoise import OptimalDenoiser
from rdc.schedule import Levels, levels, vp_alphas

counts = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


def stein(x_data, y_data, x, found, eps):
    """``E |z - D|^2`` by Stein's identity, summed with the weights, by loops in float64: minus the logits."""
    z_data, z = (2 * t.double().flatten(1).numpy() - 1 for t in (x_data, x))
    logits = np.zeros((len(z), int(y_data.max()) + 1))
    for k in range(logits.shape[1]):
        points = z_data[y_data.numpy() == k]
        for n, query in enumerate(z):
            d = ((query - points) ** 2).sum(1)
            for sigma, weight in zip(found.sigma.tolist(), found.weight.tolist(), strict=True):
                losses = []
                for e in eps:
                    s = softmax(-((query + sigma * e - points) ** 2).sum(1) / (2 * sigma**2))
                    losses.append(s @ d - sigma * (s @ (points @ e) - e @ query))
                logits[n, k] -= weight * np.mean(losses)
    return logits


@given(st.integers(0, 10**6), counts, st.floats(0.1, 5), st.integers(1, 8))
def test_it_is_the_stein_form(seed, count, split, levels_count):
    x, y = mixture(seed, count)
    found = levels("elbo", levels_count, sigma_min=0.2, sigma_max=5)
    model = OptimalClassifier(x, y, found, seed=seed, draws=4, split=split)
    query = draw((3, 1, 2, 3), seed + 1)
    expected = stein(x, y, query, found, model.eps.numpy())
    assert model(query).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_stein_form_is_the_direct_form_on_average():
    """The two agree in expectation, not draw by draw: the difference has mean zero within its standard error."""
    x, y = mixture(2, (4, 3, 5))
    found, query = levels("elbo", 4, sigma_min=0.4, sigma_max=4), draw((4, 1, 2, 3), 3)
    runs = []
    for seed in range(12):
        fast = OptimalClassifier(x, y, found, seed=seed, draws=400)
        direct = DiffusionClassifier(OptimalDenoiser(x, y), found, noise="antithetic", draws=400, seed=seed, chunk=10_000)
        runs.append(fast(query) - direct(query))
    gap = torch.stack(runs)
    mean, error = gap.mean(0), gap.std(0) / len(runs) ** 0.5
    assert bool((mean.abs() < 5 * error).all())
    assert bool((error < 0.02 * direct(query).abs()).all())  # so that a difference of 10 % would be seen


@given(st.integers(0, 100))
def test_the_order_and_the_origin_of_the_images_do_not_matter(seed):
    x, y = mixture(seed)
    query, found = draw((2, 1, 2, 3), seed + 1), levels("edm", 5)
    model = OptimalClassifier(x / 2, y, found)
    order = torch.arange(len(y) - 1, -1, -1)
    assert torch.allclose(model(query / 2), OptimalClassifier(x[order] / 2, y[order], found)(query / 2), rtol=1e-10)
    assert torch.allclose(model(query / 2), OptimalClassifier(x / 2 + 0.4, y, found)(query / 2 + 0.4), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("split", [0.1, 1.0, 10.0])
def test_the_gradient(split):
    x, y = mixture(4)
    model = OptimalClassifier(x, y, levels("elbo", 5, sigma_min=0.3, sigma_max=5), draws=4, split=split, chunk=2)
    query = (0.1 + 0.8 * draw((3, 1, 2, 3), 5)).requires_grad_()
    assert torch.autograd.gradcheck(model, (query,), eps=1e-6, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(NearestNeighbor(x, y), (query,), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(ReleasedOptimalClassifier(x, y, steps=4), (query,), eps=1e-6, atol=1e-5)


def test_the_chunk_and_the_batch_do_not_matter():
    x, y = mixture(6)
    query, found = draw((7, 1, 2, 3), 7), levels("elbo", 40)
    one = OptimalClassifier(x, y, found, chunk=1)(query)
    assert torch.allclose(OptimalClassifier(x, y, found, chunk=100)(query), one, rtol=1e-12)
    assert torch.allclose(OptimalClassifier(x, y, found, chunk=3)(query[2:4]), one[2:4], rtol=1e-12)


@given(st.integers(8, 16), st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.sampled_from(["elbo", "edm", "vp-derived"]))
def test_compressed_levels_integrate_cubics_exactly(nodes, coefficients, kind):
    found = levels(kind, 500)
    small = compress(found, nodes)
    assert len(small) == nodes
    center = found.sigma.log().mean()
    f = lambda sigma: sum(c * (sigma.log() - center) ** p for p, c in enumerate(coefficients))  # noqa: E731
    scale = float((found.weight * sum((found.sigma.log() - center).abs() ** p for p in range(4))).sum())
    assert float((small.weight * f(small.sigma)).sum()) == pytest.approx(
        float((found.weight * f(found.sigma)).sum()), abs=1e-9 * scale
    )


def test_compressed_levels_integrate_the_spline_through_the_nodes():
    found = levels("elbo", 300)
    small = compress(found, 12)
    f = lambda sigma: sigma**2 / (1 + sigma**2)  # noqa: E731
    spline = CubicSpline(small.sigma.log().numpy(), f(small.sigma).numpy(), bc_type="not-a-knot")
    expected = found.weight.numpy() @ spline(found.sigma.log().numpy())
    assert float((small.weight * f(small.sigma)).sum()) == pytest.approx(expected, rel=1e-9)
    assert compress(found, 300) is found and compress(found[:5], 8) is not small


def explicit(train, query, found, eps):
    """The Stein form with a softmax over all images in float64, at the given levels, without any shortcut."""
    points, z = 2 * train.x.double().flatten(1) - 1, 2 * query.double().flatten(1) - 1
    points, z, own = points - points.mean(0), z - points.mean(0), z - points.mean(0)
    d, e, own = torch.cdist(z, points, compute_mode="donot_use_mm_for_euclid_dist").square(), points @ eps.T, own @ eps.T
    logits = torch.zeros(len(z), 10, dtype=torch.float64)
    for k in range(10):
        mine = (train.y == k).nonzero()[:, 0]
        base, proj = d[:, mine, None], e[None, mine]
        for sigma, weight in zip(found.sigma.tolist(), found.weight.tolist(), strict=True):
            s = torch.softmax(proj / sigma - base / (2 * sigma**2), dim=1)
            loss = (s * base).sum(1) - sigma * ((s * proj).sum(1) - own)
            logits[:, k] -= weight * loss.mean(1)
    return logits


def test_on_ten_thousand_images_the_shortcuts_do_not_show(fashion_train, fashion_test):
    """Factorised softmax, 64 nearest images, float32: at the nodes, against all images and the same noise."""
    query = fashion_test.x[:20]
    model = OptimalClassifier(fashion_train.x, fashion_train.y, levels("elbo", 1000), draws=4)
    expected = explicit(fashion_train, query, model.nodes, model.eps.double())
    found = model(query).double()
    assert float(((found - expected) / expected).abs().max()) < 1e-3
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_sixteen_nodes_stand_for_hundreds_of_levels(fashion_train, fashion_test):
    """Compression against the sum over all levels, on a part of the data that affords it."""
    part = fashion_train[:1000]
    found, query = levels("elbo", 300), fashion_test.x[:200]
    quick = OptimalClassifier(part.x, part.y, found)(query)
    whole = OptimalClassifier(part.x, part.y, found, nodes=300, nearest=100)(query)
    assert float(((quick - whole) / whole).abs().max()) < 1e-2
    assert float((quick.argmax(1) == whole.argmax(1)).float().mean()) >= 0.995


def test_more_draws_do_not_change_the_verdict(fashion_train, fashion_test):
    query = fashion_test.x[:200]
    few, many = (OptimalClassifier(fashion_train.x, fashion_train.y, levels("elbo", 1000), draws=r)(query) for r in (8, 64))
    assert float((few.argmax(1) == many.argmax(1)).float().mean()) >= 0.98


def test_random_state_is_left_alone():
    x, y = mixture()
    before = torch.get_rng_state()
    a, b = (OptimalClassifier(x, y, levels("elbo", 4), seed=3)(x) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(a, OptimalClassifier(x, y, levels("elbo", 4), seed=4)(x), rtol=1e-6)


@given(st.integers(0, 10**6), counts)
def test_nearest_neighbour_against_scipy(seed, count):
    x, y = mixture(seed, count)
    query = draw((4, 1, 2, 3), seed + 1)
    d = cdist(2 * query.flatten(1).numpy() - 1, 2 * x.flatten(1).numpy() - 1, "sqeuclidean")
    expected = -np.stack([d[:, y.numpy() == k].min(1) for k in range(len(count))], axis=1)
    assert NearestNeighbor(x, y, chunk=3)(query).numpy() == pytest.approx(expected, abs=1e-10)


def test_at_low_noise_the_elbo_classifier_is_the_nearest_neighbour():
    x, y = mixture(8, (5, 5, 5))
    query = draw((20, 1, 2, 3), 9)
    found = levels("elbo", 200, sigma_min=0.005, sigma_max=1.0)
    assert torch.equal(OptimalClassifier(x, y, found, nodes=200)(query).argmax(1), NearestNeighbor(x, y)(query).argmax(1))


@given(st.integers(0, 10**6), counts, st.sampled_from([1, 5, 10]))
def test_the_released_formula_by_loops(seed, count, steps):
    x, y = mixture(seed, count)
    query = draw((2, 1, 2, 3), seed + 1)
    model = ReleasedOptimalClassifier(x, y, steps=steps, seed=seed, chunk=1)
    alphas = vp_alphas().numpy()[[1000 * i // steps - 1 for i in range(1, steps + 1)]]
    expected = np.zeros((2, len(count)))
    for n, image in enumerate(query.flatten(1).numpy()):
        for k in range(len(count)):
            points = x[y == k].flatten(1).numpy()
            for alpha, eps in zip(alphas, model.eps.numpy(), strict=True):
                sigma = np.sqrt(1 - alpha)
                gap = np.sqrt(alpha) * (image - points) + sigma * eps
                s = softmax(-(gap**2).sum(1) / (2 * sigma))
                expected[n, k] -= alpha / sigma**2 * (s**2 @ ((image - points) ** 2).sum(1)) / steps
    assert model(query).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


COROLLARY = {"divisor": "variance", "square": "sum", "units": "model"}


@given(st.integers(0, 10**6), counts, st.sampled_from([1, 5]))
def test_with_all_three_switched_it_is_the_corollary(seed, count, steps):
    """Against the denoiser of the theorem at the levels and with the noise of the formula: ``alpha / sigma^2 |z - D|^2``."""
    x, y = mixture(seed, count)
    query = draw((2, 1, 2, 3), seed + 1)
    model, denoiser, z = ReleasedOptimalClassifier(x, y, steps, seed, **COROLLARY), OptimalDenoiser(x, y), 2 * query - 1
    expected = torch.zeros(2, len(count), dtype=torch.float64)
    for alpha, eps in zip(vp_alphas()[[1000 * i // steps - 1 for i in range(1, steps + 1)]].tolist(), model.eps, strict=True):
        level = ((1 - alpha) / alpha) ** 0.5
        found = denoiser.all_classes(z + level * eps.reshape(1, 1, 2, 3), level)
        expected -= (found - z[:, None]).square().flatten(2).sum(2) / level**2 / steps
    assert model(query).numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("one", COROLLARY.items(), ids=lambda item: item[0])
def test_each_place_of_the_released_formula_matters(one):
    x, y = mixture(3, (4, 5, 6))
    query, released = draw((5, 1, 2, 3), 4), ReleasedOptimalClassifier(x, y, 5)
    changed = ReleasedOptimalClassifier(x, y, 5, **dict([one]))
    assert float((changed(query) / released(query) - 1).abs().min()) > 1e-6
    restored = ReleasedOptimalClassifier(x, y, 5, divisor="sigma", square="each", units="image")
    assert torch.equal(restored(query), released(query))
    with pytest.raises(ValueError, match=f"unknown {one[0]} 'x'; there are "):
        ReleasedOptimalClassifier(x, y, 5, **{one[0]: "x"})


@given(st.integers(0, 10**6))
def test_a_set_where_each_class_has_one_image_knows_neither_divisor_nor_square(seed):
    x, y = mixture(seed, (1, 1, 1))
    query = draw((2, 1, 2, 3), seed + 1)
    pairs = [(d, s) for d in ("sigma", "variance") for s in ("each", "sum")]
    all_of_them = [ReleasedOptimalClassifier(x, y, 4, divisor=d, square=s)(query) for d, s in pairs]
    assert all(torch.allclose(found, all_of_them[0], rtol=1e-9) for found in all_of_them)


def test_bad_input():
    x, y = mixture()
    found = levels("elbo", 4)
    for draws in (0, 1, 3):
        with pytest.raises(ValueError, match="draws must be even"):
            OptimalClassifier(x, y, found, draws=draws)
    with pytest.raises(ValueError, match="every class"):
        OptimalClassifier(x, y + (y > 0), Levels(found.sigma, found.weight))
    for model in (OptimalClassifier(x, y, found), NearestNeighbor(x, y), ReleasedOptimalClassifier(x, y, steps=2)):
        for bad in (x[:0], x + 1, x * torch.nan, draw((2, 1, 3, 3))):
            with pytest.raises(ValueError, match="images"):
                model(bad)
