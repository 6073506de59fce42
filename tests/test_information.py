"""Class information by level: the identity behind a floor, its bounds, and its two ends, in float64 on small data."""

import pytest
import torch

from rdc.analyse.information import averaged_log_odds, by_level, fastest, safe_radius
from rdc.certify.lipschitz import lipschitz_constant
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.experiments import experiment
from rdc.models import build
from rdc.rng import rand, randn
from rdc.schedule import Levels, levels
from rdc.tasks import measure, toy

SHAPE = (1, 2, 2)
POINTS, LABELS = rand((7, *SHAPE), "points").double(), torch.tensor([0, 0, 0, 1, 1, 2, 2])
OPTIMAL = OptimalDenoiser(POINTS, LABELS)
X, Y, J = rand((4, *SHAPE), "x").double(), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])


def log_odds(x, sigma, draws=2, seed=0):
    return averaged_log_odds(OPTIMAL, x, Y[: len(x)], J[: len(x)], sigma, draws, seed)


def slope(x, sigma, draws=2):
    point = x.clone().requires_grad_()
    return torch.autograd.grad(log_odds(point, sigma, draws).sum(), point)[0]


def test_the_levels_of_a_band_add_the_difference_of_the_averaged_log_odds():
    """The ELBO levels between two floors, by quadrature and many draws, against the closed form at the two ends."""
    low, high, draws = 0.4, 2.0, 600
    model = DiffusionClassifier(OPTIMAL, band(low, high, 24), noise="antithetic", draws=draws, share_levels=True, chunk=10_000)
    found = by_level(model, X, Y, J)
    expected = log_odds(X, low, draws) - log_odds(X, high, draws)
    assert found.margin.sum(1).numpy() == pytest.approx(expected.numpy(), abs=0.05 * float(expected.abs().max()))
    logits = model(X)
    margin = (logits.gather(1, Y[:, None]) - logits.gather(1, J[:, None]))[:, 0]
    assert found.margin.sum(1).numpy() == pytest.approx(margin.numpy(), abs=1e-9), "the parts are parts of the whole"


def band(low, high, count):
    """ELBO levels of a band whose weights add up: no mean over levels."""
    known = levels("elbo", count, sigma_min=low, sigma_max=high)
    return Levels(known.sigma, known.weight)


def test_slopes_are_those_of_each_level_alone():
    model = DiffusionClassifier(OPTIMAL, levels("elbo", 3, sigma_min=0.3, sigma_max=2.0), draws=2)
    found = by_level(model, X, Y, J)
    for t in range(3):
        weight = torch.zeros(3, dtype=torch.float64)
        weight[t] = model.levels.weight[t]
        alone = DiffusionClassifier(OPTIMAL, Levels(model.levels.sigma, weight), draws=2)
        point = X.clone().requires_grad_()
        logits = alone(point)
        margin = (logits.gather(1, Y[:, None]) - logits.gather(1, J[:, None]))[:, 0]
        gradient = torch.autograd.grad(margin.sum(), point)[0].flatten(1)
        assert torch.allclose(found.margin[:, t], margin) and torch.allclose(found.slopes["L1"][:, t], gradient.abs().sum(1))
        assert torch.allclose(found.slopes["L2"][:, t], gradient.norm(dim=1))


@pytest.mark.parametrize("end", ["images", "means"])
def test_both_ends_scale_with_the_inverse_square(end):
    """Nearest image of each class at a low floor, class means at a high one: margin, gradient, and their ratio."""
    sigma = 1e-3 if end == "images" else 1e3
    z, groups = (2 * X - 1).flatten(1), [(2 * POINTS[LABELS == k] - 1).flatten(1) for k in range(3)]
    if end == "images":
        centres = torch.stack([torch.stack([g[(g - one).norm(dim=1).argmin()] for g in groups]) for one in z])
    else:
        centres = torch.stack([g.mean(0) for g in groups]).expand(len(z), -1, -1)
    own, other = (centres[torch.arange(len(z)), k] for k in (Y, J))
    margin = ((z - other).square().sum(1) - (z - own).square().sum(1)) / 2
    found = sigma**2 * log_odds(X, sigma, draws=2 if end == "images" else 1000)
    assert found.numpy() == pytest.approx(margin.numpy(), abs=1e-4 if end == "images" else 0.06)
    expected = 2 * (own - other)  # image units
    assert (sigma**2 * slope(X, sigma)).flatten(1).numpy() == pytest.approx(expected.numpy(), abs=1e-2 if sigma > 1 else 1e-6)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 3.0])
def test_nothing_changes_faster_than_the_bounds(sigma):
    """Slopes and changes of slope of random pairs of points; and the bound of the certificate is far above."""
    a = (randn((1000, *SHAPE), "a") * 2).double().sigmoid()
    b = (a + 0.02 * randn(a.shape, "b").double()).clamp(0, 1)
    for y, j in ((0, 1), (1, 2), (2, 0)):
        rate, bend = fastest(OPTIMAL, y, j, sigma)
        labels = [torch.full((len(a),), k) for k in (y, j)]
        points = [p.clone().requires_grad_() for p in (a, b)]
        slopes = [torch.autograd.grad(averaged_log_odds(OPTIMAL, p, *labels, sigma, 2).sum(), p)[0].flatten(1) for p in points]
        assert float(slopes[0].norm(dim=1).max()) <= rate * (1 + 1e-9)
        change = (slopes[0] - slopes[1]).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
        assert float(change.max()) <= bend * (1 + 1e-9)
        whole = levels("elbo", 2000, sigma_min=sigma, sigma_max=1e4)
        whole = Levels(whole.sigma, whole.weight)
        stein = lipschitz_constant(whole, 4, difference=True)
        assert stein == pytest.approx(32 * ((2 / torch.pi) ** 0.5 / (3 * sigma**3) + 1 / (4 * sigma**2)), rel=2e-3)
        assert rate <= 2 * 2 * 2 / sigma**2 < stein, "two images of the box are 2 sqrt(d) apart at most"


def test_inside_the_safe_radius_no_image_is_wrong():
    """Points drawn on the sphere of the radius, and the plane case in closed form."""
    assert safe_radius(-1.0, 1.0, 1.0) == 0.0
    assert safe_radius(3.0, 2.0, 0.0) == pytest.approx(1.5)
    checked = 0
    for sigma in (1.0, 3.0):
        for x, y, j in zip(X, Y, J, strict=True):
            margin = averaged_log_odds(OPTIMAL, x[None], y[None], j[None], sigma, 2)
            point = x[None].clone().requires_grad_()
            gradient = torch.autograd.grad(averaged_log_odds(OPTIMAL, point, y[None], j[None], sigma, 2).sum(), point)[0]
            radius = safe_radius(float(margin), float(gradient.norm()), fastest(OPTIMAL, int(y), int(j), sigma)[1])
            away = randn((2000, *SHAPE), "sphere").double()
            away = torch.cat([away, -gradient])
            at = x + radius * away / away.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            if radius > 0:
                checked += 1
                n = len(at)
                assert float(averaged_log_odds(OPTIMAL, at, y.expand(n), j.expand(n), sigma, 2).min()) >= -1e-9
    assert checked >= 3


def test_a_cell_is_what_its_parts_say():
    row = toy(experiment("information").rows[0])
    (cell,) = row.cells()
    found, test = measure(cell), load("digits", "test")
    model = build("dc", "digits", "cpu", **row.options)
    x, y = test.x[: row.n], test.y[: row.n]
    with torch.no_grad():
        rival = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    parts = by_level(model, x, y, rival)
    for t, sigma in enumerate(parts.sigma.tolist()):
        for name, value in {"margin": parts.margin, **parts.slopes}.items():
            assert found.values[f"{name}, sigma {sigma:.3g}"] == pytest.approx(value[:, t].tolist(), rel=1e-4)
        assert found.bits[f"right, sigma {sigma:.3g}"] == (model.losses(x)[..., t].argmin(1) == y).tolist()
    assert found.bits["clean"] == (model(x).argmax(1) == y).tolist()
