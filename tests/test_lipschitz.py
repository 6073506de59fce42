"""The Lipschitz bound of the diffusion classifier is never exceeded, nearly reached, and the certificates from it are right."""

import math

import numpy as np
import pytest
import torch
from helpers import draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binom, norm
from torch import nn

from rdc.certify.betting_bound import mean_lower
from rdc.certify.lipschitz import Boxed, boxed, certified_radius, empirical_slope, lipschitz_constant
from rdc.certify.lipschitz_certificate import from_losses, lipschitz_certify, losses
from rdc.classify import DiffusionClassifier
from rdc.denoise import Denoiser, OptimalDenoiser
from rdc.schedule import Levels, levels

HERMITE, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


class Exact(nn.Module):
    """The diffusion classifier of images of one or two pixels with the exact expectation over the noise, by quadrature."""

    def __init__(self, denoiser, levels):
        super().__init__()
        self.denoiser, self.levels = denoiser, levels
        size = math.prod(denoiser.shape)
        grid = np.stack(np.meshgrid(*[HERMITE] * size, indexing="ij"), -1).reshape(-1, *denoiser.shape)
        mass = np.prod(np.stack(np.meshgrid(*[WEIGHTS] * size, indexing="ij"), -1), axis=-1).ravel()
        self.eps, self.mass = torch.from_numpy(grid), torch.from_numpy(mass / mass.sum())

    def m(self, x):
        """Normalised losses ``(N, K, T)``."""
        z, found = 2 * x - 1, []
        for s in self.levels.sigma.tolist():
            noisy = (z[:, None] + s * self.eps[None]).flatten(0, 1)
            g = (self.denoiser.all_classes(noisy, s).unflatten(0, (len(x), -1)) - z[:, None, None]).square().flatten(3).sum(3)
            found.append((g * self.mass[None, :, None]).sum(dim=1))
        return torch.stack(found, dim=2) / (4 * x[0].numel())

    def forward(self, x):
        return -4 * x[0].numel() * (self.m(x) * self.levels.weight).sum(dim=2)


def some_levels(seed, low=0.4, count=3):
    """Random levels, high enough for the quadrature."""
    u = draw((2, count), seed)
    return Levels(low + 1.5 * u[0].sort().values, 0.1 + u[1])


def two_pixels(seed, counts=(2, 3)):
    """Two classes of two pixels, often at the corners of the box, where slopes are largest."""
    x, y = mixture(seed, counts, (1, 1, 2))
    return (x + 0.5).floor().clamp(0, 1) if seed % 2 else x, y


# ------------------------------------------------------------------------------------------------- the constants


def test_the_constants_in_figures():
    """One level, against the sums written out: L and the constant of differences, sum and mean, and the other two formulas."""
    one, d = Levels(torch.tensor([0.5]).double(), torch.tensor([2.0]).double()), 3072
    assert lipschitz_constant(one, d, reduce="mean") == pytest.approx(2 * (8 / (math.sqrt(2 * math.pi) * 0.5) + 8 / math.sqrt(d)))
    assert lipschitz_constant(one, d) == pytest.approx(d * lipschitz_constant(one, d, reduce="mean"))
    assert lipschitz_constant(one, d) < lipschitz_constant(one, d, difference=True) <= 2 * lipschitz_constant(one, d)
    paper = lipschitz_constant(one, d, "paper", reduce="mean")
    assert paper == pytest.approx((1 + math.sqrt(2 / math.pi)) * 2 / 0.5)
    script = levels("edm-released", 125, sigma_min=0.5)
    ratio = lipschitz_constant(script, d, "paper") / lipschitz_constant(script, d, "released")
    assert ratio == pytest.approx(125)


class HalfSpace(nn.Module):
    """Class 0 is all white on one side of a plane through the white corner and all black on the other; class 1 the opposite."""

    one_pass = True

    def __init__(self, shape):
        super().__init__()
        self.shape, self.num_classes = shape, 2

    def all_classes(self, z, sigma):
        side = torch.where((z - 1).flatten(1).sum(1) > 0, -1.0, 1.0).reshape(-1, 1, 1, 1, 1)
        return torch.cat([side, -side], 1).to(z) * torch.ones_like(z)[:, None]

    def forward(self, z, sigma, label=None):
        return self.all_classes(z, sigma)[torch.arange(len(z)), label]


def test_a_half_space_reaches_nearly_the_bound_and_exceeds_the_constant_of_the_paper():
    """The example in closed form; the classifier of the package has the same logits, so that units and sums are the same."""
    shape, s = (3, 32, 32), 0.5
    d, one = math.prod(shape), Levels(torch.tensor([s]).double(), torch.ones(1).double())
    direction = torch.full(shape, -1 / math.sqrt(d)).double()  # into the box, image units, unit length

    def black(t):  # probability that classes 0 and 1 see a black image, at the image 1 + t direction
        return np.array([ndtr(-2 * t / s), ndtr(2 * t / s)])

    def m(t):
        pixel = 1 - 2 * t / math.sqrt(d)  # model units
        return (black(t) * (pixel + 1) ** 2 + (1 - black(t)) * (pixel - 1) ** 2) / 4

    bound, h = lipschitz_constant(one, d), 1e-5
    slope = np.abs(m(h) - m(0)) * 4 * d / h
    assert 0.95 * bound < slope.max() <= bound
    assert slope.max() / d > 1.7 * lipschitz_constant(one, d, "paper", reduce="mean")
    difference = abs(np.diff(m(h) - m(0))[0]) * 4 * d / h
    assert 0.9 * lipschitz_constant(one, d, difference=True) < difference <= lipschitz_constant(one, d, difference=True)
    model, draws = DiffusionClassifier(HalfSpace(shape), one, draws=400, chunk=100), 400
    x = (1 + 0.2 * direction)[None]
    error = 4 * d * np.sqrt(black(0.2) * (1 - black(0.2)) / draws)
    assert np.all(np.abs(model(x)[0].numpy() + 4 * d * m(0.2)) < 5 * error + 1e-6)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.booleans())
def test_no_slope_is_above_the_bound(seed, difference):
    """Steepest slopes on walks over the box, of the exact expectations of random data sets; and the local bound at each level."""
    x, y = two_pixels(seed)
    some = some_levels(seed)
    model = Exact(OptimalDenoiser(x, y), some)
    start = draw((3, 1, 1, 2), seed + 1)
    label = torch.zeros(3, dtype=torch.int64)
    slope = empirical_slope(model, start, label, 1 - label if difference else None, steps=4, size=0.15)
    assert bool((slope > 0).all()) and float(slope.max()) <= lipschitz_constant(some, 2, difference=difference)
    point = start.clone().requires_grad_()
    m = model.m(point)
    for k in range(2):
        for t, s in enumerate(some.sigma.tolist()):
            (g,) = torch.autograd.grad(m[:, k, t].sum(), point, retain_graph=True)
            at = m[:, k, t].detach().numpy()
            local = 2 * (norm.pdf(ndtri(at)) / s + np.sqrt(at / 2))
            assert np.all(g.flatten(1).norm(dim=1).numpy() <= local * (1 + 1e-6))


def test_walks_reach_a_known_slope_and_noise_does_not_inflate_it():
    """A linear logit has one slope; of a classifier with noise the slope is a product of two independent gradients."""

    class Slanted(nn.Module):
        def forward(self, x):
            return torch.stack([3 * x.flatten(1)[:, 0], 4 * x.flatten(1)[:, 1]], 1)

    x, label = draw((2, 1, 1, 2), 0), torch.tensor([0, 1])
    assert torch.allclose(empirical_slope(Slanted(), x, label), torch.tensor([3.0, 4.0]).double())
    assert torch.allclose(empirical_slope(Slanted(), x, label, 1 - label), torch.tensor([5.0, 5.0]).double())
    x, y = mixture(0, (2, 2), (1, 1, 2))
    some = some_levels(1)
    exact = empirical_slope(Exact(OptimalDenoiser(x, y), some), x[:1], y[:1], steps=1)
    noisy = DiffusionClassifier(OptimalDenoiser(x, y), some, "fresh", draws=4)
    many = torch.stack([empirical_slope(noisy, x[:1], y[:1], steps=1, seed=i) ** 2 for i in range(40)])
    assert abs(many.mean() - exact**2) < 4 * many.std() / math.sqrt(40) + 1e-6


def test_a_clipped_denoiser_stays_in_the_box_and_the_classifier_with_it():
    network, z = tiny_network(), 6 * draw((4, 1, 8, 8), 2, torch.float32) - 3
    inside = Boxed(network)
    assert isinstance(inside, Denoiser) and (inside.num_classes, inside.shape) == (3, (1, 8, 8)) and not inside.one_pass
    assert network(z, 1.0).abs().max() > 1 >= inside(z, 1.0).abs().max()
    assert torch.equal(inside.all_classes(z, 1.0), network.all_classes(z, 1.0).clamp(-1, 1))
    classifier = DiffusionClassifier(network, levels("elbo", 2, sigma_min=0.5), prior=torch.tensor([0.5, 0.3, 0.2]))
    x, clipped = draw((2, 1, 8, 8), 1, torch.float32), boxed(classifier)
    assert classifier.denoiser is network and isinstance(clipped.denoiser, Boxed)
    assert bool((clipped.losses(x) <= classifier.losses(x)).all()) and bool((clipped(x) >= classifier(x)).all())


# ------------------------------------------------------------------------------------------------- the radius


def one_pixel_truth(model, x, label):
    """Distance from x to the nearest image of one pixel in [0, 1] that another class gets, exactly."""

    def lead(t):
        f = model(torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)).numpy()
        return f[:, label] - np.delete(f, label, axis=1).max(axis=1)

    found = []
    for direction, end in ((-1, x), (1, 1 - x)):
        steps = np.linspace(0, end, 200)
        lost = np.flatnonzero(lead(x + direction * steps) <= 0)
        if len(lost):
            ends = steps[lost[0] - 1], steps[lost[0]]
            found.append(brentq(lambda s, d=direction: lead([x + d * s])[0], *ends))
    return min(found, default=math.inf)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_exact_margins_give_radii_below_the_true_one_in_both_forms(seed):
    x, y = mixture(seed, (2, 2), (1, 1, 1))
    some = some_levels(seed, 0.5, 2)
    model = Exact(OptimalDenoiser(x, y), some)
    compared = 0
    for i in range(len(x)):
        logits, m = model(x[i : i + 1])[0].numpy(), model.m(x[i : i + 1])[0].numpy()
        label = int(logits.argmax())
        truth = one_pixel_truth(model, float(x[i]), label)
        margin = logits[label] - logits[1 - label]
        constant = margin / lipschitz_constant(some, 1, difference=True)
        local = certified_radius(m[label], m[[1 - label]], some, 1)
        assert 0 < max(constant, local) <= truth
        assert margin / (2 * lipschitz_constant(some, 1)) <= min(constant, local)
        compared += math.isfinite(truth)
    assert compared


def test_the_radius_with_nothing_to_certify_with_everything_and_the_prior():
    one = Levels(torch.ones(2).double(), torch.ones(2).double())
    low, high = np.array([[0.2, 0.3]]), np.array([0.2, 0.3])
    assert certified_radius(high, low, one, 4) == 0.0
    assert 0 < certified_radius(high - 0.1, low, one, 4) < certified_radius(high - 0.15, low, one, 4)
    assert certified_radius(high, low, one, 4, offset=1e3) == 2.0  # sqrt(d): the whole box
    assert certified_radius(high - 0.1, low, one, 4, offset=-1e3) == 0.0
    both = np.array([[0.2, 0.3], [0.6, 0.6]])
    assert certified_radius(high - 0.1, both, one, 4) == certified_radius(high - 0.1, low, one, 4)
    with pytest.raises(ValueError, match="weights that are not negative"):
        lipschitz_constant(Levels(torch.ones(1).double(), -torch.ones(1).double()), 4)
    with pytest.raises(ValueError, match="unknown constant 'best'; there are rigorous, paper, released"):
        lipschitz_constant(one, 4, "best")


# ------------------------------------------------------------------------------------------------- confidence


@pytest.mark.parametrize("law", ["rare", "half", "narrow", "uniform"])
def test_bounds_of_means_are_wrong_with_probability_at_most_alpha(law):
    n, runs, alpha = 100, 2000, 0.05
    u = np.random.default_rng(1).random((n, runs))
    x, mean = {
        "rare": ((u < 0.02) * 1.0, 0.02),
        "half": ((u < 0.5) * 1.0, 0.5),
        "narrow": (0.5 + 0.02 * (u - 0.5), 0.5),
        "uniform": (u, 0.5),
    }[law]
    low, high = mean_lower(x, alpha), 1 - mean_lower(1 - x, alpha)
    for wrong in (low > mean, high < mean):
        assert wrong.sum() <= binom.ppf(1 - 1e-4, runs, alpha)
    assert np.all(low <= x.mean(0)) and np.all(high >= x.mean(0))
    hoeffding = math.sqrt(math.log(1 / alpha) / (2 * n))
    if law == "narrow":
        assert (x.mean(0) - low).max() < 0.4 * hoeffding  # it adapts to the variance
    assert (x.mean(0) - low).mean() < 1.4 * hoeffding


def test_bounds_of_means_refuse_what_is_not_bounded_and_need_no_variance():
    assert mean_lower(np.zeros(10), 0.05) == 0.0
    assert 0.9 < mean_lower(np.ones(100), 0.05) < 1
    for bad in (np.array([0.5, 1.1]), np.array([-0.1]), np.array([np.nan]), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"all of them in \[0, 1\]"):
            mean_lower(bad, 0.05)


@pytest.mark.parametrize("form", ["local", "global"])
def test_certificates_from_noise_are_below_the_true_radius_with_the_stated_confidence(form):
    """200 repetitions on one pixel, where the truth is known; a margin taken for exact is too large half the time."""
    x, y = mixture(4, (2, 2), (1, 1, 1))
    some, alpha, n, runs = some_levels(4, 0.5, 2), 0.05, 400, 200
    denoiser = OptimalDenoiser(x, y)
    exact = Exact(denoiser, some)
    m = exact.m(x[:1])[0].numpy()
    label = int(exact(x[:1])[0].argmax())
    truth = one_pixel_truth(exact, float(x[0]), label)
    z, rng = 2 * x[0] - 1, np.random.default_rng(3)
    tables = []
    for s in some.sigma.tolist():
        noisy = z + s * torch.from_numpy(rng.standard_normal((runs * n, 1, 1, 1)))
        tables.append((denoiser.all_classes(noisy, s) - z).square().flatten(2).sum(2) / 4)
    table = torch.stack(tables, dim=2).reshape(runs, n, 2, 2).numpy()
    found = np.array([from_losses(one, label, some, 1, alpha, form) for one in table])
    w = some.weight.numpy()
    margin = 4 * float(((m[1 - label] - m[label]) * w).sum())
    assert margin > 0
    assert (found[:, 0] > margin).sum() <= binom.ppf(1 - 1e-4, runs, alpha)
    assert (found[:, 1] > truth).sum() <= binom.ppf(1 - 1e-4, runs, alpha)
    assert (found[:, 1] > 0).mean() > 0.5  # and not all of them are zero
    naive = 4 * ((table[:, :, 1 - label] - table[:, :, label]).mean(1) * w).sum(1)
    assert 0.3 < (naive > margin).mean() < 0.7


def test_the_certificate_of_a_classifier():
    """Fresh noise for each draw, chosen and bounded on different ones; chunks do not matter; the losses are exact on average."""
    x, y = mixture(4, (2, 2), (1, 1, 1))
    some = some_levels(4, 0.5, 2)
    classifier = DiffusionClassifier(OptimalDenoiser(x, y), some, "fresh", chunk=3)
    found = lipschitz_certify(classifier, x[0], n0=20, n=300, alpha=0.05, seed=2, index=5)
    other = DiffusionClassifier(OptimalDenoiser(x, y), some, "shared", draws=2, seed=9)
    assert lipschitz_certify(other, x[0], n0=20, n=300, alpha=0.05, seed=2, index=5) == found
    assert lipschitz_certify(other, x[0], n0=2, n=5, seed=3).margin != lipschitz_certify(other, x[0], n0=2, n=5, seed=4).margin
    exact = Exact(OptimalDenoiser(x, y), some)
    logits = exact(x[:1])[0]
    assert found.label == found.candidate == int(logits.argmax()) and found.calls == 320 * 2
    assert 0 < found.radius <= one_pixel_truth(exact, float(x[0]), found.label)
    table = losses(other, x[0], 300, 1, 0)
    assert table.shape == (300, 2, 2) and len(np.unique(table[:, 0, 0])) == 300
    error = table.std(0) / math.sqrt(300)
    assert np.all(np.abs(table.mean(0) - exact.m(x[:1])[0].numpy()) < 5 * error + 1e-9)
    certain = lipschitz_certify(classifier, x[0], n0=20, n=300, alpha=0.05, form="global")
    assert certain.margin_low < certain.margin and certain.radius <= found.radius * 1.5
    prior = DiffusionClassifier(OptimalDenoiser(x, y), some, prior=torch.tensor([1e-9, 1 - 1e-9]))
    assert lipschitz_certify(prior, x[0], n0=5, n=50).label == 1
    mean = DiffusionClassifier(OptimalDenoiser(x, y), some, reduce="mean")
    assert lipschitz_certify(mean, x[0], n0=20, n=300, alpha=0.05, seed=2, index=5) == found  # one pixel: sum and mean agree


def test_bad_options_are_refused():
    x, y = mixture(4, (2, 2), (1, 1, 1))
    classifier = DiffusionClassifier(OptimalDenoiser(x, y), some_levels(4))
    for options, says in (
        ({"n": 0}, "n0 and n must be positive"),
        ({"form": "best", "n": 3}, "unknown form 'best'; there are local, global"),
        ({"alpha": 2.0, "n": 3}, "alpha must lie in"),
    ):
        with pytest.raises(ValueError, match=says):
            lipschitz_certify(classifier, x[0], n0=2, **options)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        lipschitz_certify(classifier, x[0] + 1)


def test_a_grid_has_the_moments_of_two_normal_numbers():
    from rdc.certify.grid import gaussian_grid

    nodes, weights = gaussian_grid()
    a, b = nodes.reshape(-1, 2).T
    moments = ((1 + 0 * a, 1), (a, 0), (a**2, 1), (a * b, 0), (a**4, 3), (a**2 * b**2, 1), ((2 * a).cos(), 0.1353352832))
    for value, expected in moments:
        assert float(weights @ value) == pytest.approx(expected, abs=1e-6)
