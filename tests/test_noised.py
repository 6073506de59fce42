"""Noised diffusion classifiers: below the density of the chain, equal to the exact density in the limit, and what noise does.

In one dimension expectations over the noise are sums over quantiles of the normal distribution, put in the place of random draws.
"""

import math

import numpy as np
import pytest
import torch
from helpers import Counting, draw, mixture, tiny_network
from hypothesis import given as for_all
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.stats import norm

from rdc.certify.bridge import FORMS, clean_steps, grid, noised_steps, walk
from rdc.certify.noised import APNDC, COUPLINGS, EPNDC, VARIANTS, check_noisy
from rdc.classify import DiffusionClassifier
from rdc.classify.denoising_loss import Samples
from rdc.denoise import EDMConfig, OptimalDenoiser, UNetConfig
from rdc.denoise.multihead import build_multihead
from rdc.rng import randn
from rdc.schedule import DENSITIES, edm_lambda, log_normal_released

X, Y = mixture(1, (4, 3, 5))
MODEL = OptimalDenoiser(X, Y)
LINE = OptimalDenoiser(
    torch.tensor([0.0, 0.35, 1.0, 0.2, 0.6], dtype=torch.float64).reshape(-1, 1, 1, 1), torch.tensor([0, 0, 0, 1, 1])
)


def noisy(count, sigma, seed=0, x=X):
    """Images of the mixture with smoothing noise, float64."""
    which = torch.arange(count) % len(x)
    return x[which] + sigma * torch.stack([randn(tuple(x.shape[1:]), "test", seed, i) for i in range(count)]).double()


def points(*values):
    """Images of one pixel."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def chain(denoiser, sigma, **options):
    """The chain with tau-independent variance, one path and no mirror images, where nothing else is said."""
    coupling = "shared" if options.get("form") == "quadrature" else "path"
    return EPNDC(denoiser, sigma, **{"form": "fixed", "antithetic": False, "coupling": coupling, "count": 16, **options})


def quantiles(count):
    """Quantiles of the normal distribution, scaled to variance 1."""
    q = torch.from_numpy(norm.ppf((np.arange(count) + 0.5) / count))
    return q / q.square().mean().sqrt()


def given(model, coupling, eps):
    """The classifier of one pixel with given noise, ``eps`` ``(R, T)``."""
    engine = model.engine
    table = walk(engine.steps, coupling, lambda t: eps[:, t].reshape(-1, 1, 1))  # (2, T, R, 1, 1)
    added, shift = table.transpose(1, 2)[:, None, :, :, None]  # (G, R, T, C, H, W) each
    samples = Samples(added, shift)
    engine._drawn_for = lambda x, index: samples
    engine.chunk = 10**6
    return model


def averaged(model, count=2001):
    """The classifier of one pixel with its noise replaced by ``count`` quantiles: expectations up to about 1e-4."""
    return given(model, "shared", quantiles(count)[:, None].expand(count, len(model.levels)))


def odds_error(logits, exact):
    """Root mean square error of the log odds of the two most likely classes."""
    top = exact.topk(2, dim=1).indices
    gap, true = (a.gather(1, top) for a in (logits, exact))
    return float(((gap[:, 0] - gap[:, 1]) - (true[:, 0] - true[:, 1])).square().mean().sqrt())


# ------------------------------------------------------------------------------------------------ weights


@for_all(st.floats(0.05, 1.0), st.floats(1.05, 4.0), st.floats(1.05, 4.0), st.integers(0, 99))
def test_the_weights_are_those_of_the_divergence_of_two_gaussians(tau, first, second, seed):
    """Bridge and chain written out: weight |D - pseudo target|^2 is |difference of means|^2 / (2 variance of the chain)."""
    s0, s1 = tau * first, tau * first * second
    u0, u1 = math.sqrt(s0**2 - tau**2), math.sqrt(s1**2 - tau**2)
    z, eps, d = draw((3, 5), seed) - 0.5
    z1 = z + u1 * eps
    bridge = ((s1**2 - s0**2) * z + u0**2 * z1) / u1**2
    chain = ((s1**2 - s0**2) * d + s0**2 * z1) / s1**2
    loss = float((d - (z - tau**2 / u1 * eps)).square().sum())
    between = float((bridge - chain).square().sum())
    fixed = noised_steps(tau, 2, "fixed", sigma_max=s1).levels  # any grid: the formula of one step
    assert float(fixed.weight.sum()) == pytest.approx(0.5 * (tau**-2 - s1**-2), rel=1e-12)
    weight = {"fixed": 0.5 * (s0**-2 - s1**-2), "specific": 0.5 * (s1**2 - s0**2) * (u1 / u0) ** 2 / s1**4}
    variance = {"fixed": s0**2 * (s1**2 - s0**2) / s1**2, "specific": u0**2 * (s1**2 - s0**2) / u1**2}
    for form in weight:
        assert weight[form] * loss == pytest.approx(between / (2 * variance[form]), rel=1e-9)


@pytest.mark.parametrize("placement", ["inverse", "log", "linear", "bridge"])
def test_weights_of_a_grid(placement):
    s = grid(0.5, 6, 9.0, placement)
    assert len(s) == 7 and float(s[0]) == 0.5 and float(s[-1]) == 9.0 and bool((s.diff() > 0).all())
    left, right = s[:-1], s[1:]
    u = (right**2 - 0.25).sqrt()
    fixed, specific = (noised_steps(0.5, 6, form, sigma_max=9.0, placement=placement) for form in ("fixed", "specific"))
    assert torch.allclose(fixed.levels.weight, 0.5 * (left**-2 - right**-2), rtol=1e-12)
    assert torch.allclose(specific.levels.weight[1:], 0.5 * (u[:-1] ** -2 - u[1:] ** -2) * u[1:] ** 4 / right[1:] ** 4, rtol=1e-9)
    assert float(specific.levels.weight[0]) == pytest.approx(float(u[0] ** 2 / (2 * right[0] ** 4)), rel=1e-12)
    for weight in ("edm", "edm-released"):
        found = noised_steps(0.5, 6, "fixed", weight, 9.0, placement).levels.weight
        assert torch.allclose(found, fixed.levels.weight * DENSITIES[weight](right) * right**3, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_quadrature_is_exact_for_polynomials_in_the_inverse_and_has_the_tail(count):
    found = noised_steps(0.5, count, "quadrature", sigma_max=10.0).levels
    assert bool((found.sigma > 0.5).all() & (found.sigma < 10).all() & (found.sigma.diff() > 0).all())
    weight = found.weight.clone()
    weight[-1] -= 0.5 / 100
    for power in range(2 * count - 1):  # s^-3 s^-p ds = r^(p+1) dr
        exact = (2.0 ** (power + 2) - 0.1 ** (power + 2)) / (power + 2)
        assert float((weight * found.sigma**-power).sum()) == pytest.approx(exact, rel=1e-10)


def test_the_released_epndc_is_its_coded_sum():
    """Coded: lambda p dt of the left end, times s'^2 u'^2 / (4 (s' - s)^2 u^2), times the distance of the two means."""
    tau, count = 0.5, 124
    s = torch.linspace(tau, 3, 126, dtype=torch.float64)[:-1]
    found = noised_steps(tau, count, "released", "edm-released")
    assert len(found) == 119 and torch.allclose(found.levels.sigma, s[6:], rtol=1e-12)
    left, right = s[5:-1], s[6:]
    density = edm_lambda(left) * log_normal_released(left) * (s[1] - s[0])
    coded = density * right**2 * (right**2 - tau**2) / 4 / (right - left) ** 2 / (left**2 - tau**2)
    assert torch.allclose(found.levels.weight, coded * ((right**2 - left**2) / right**2) ** 2, rtol=1e-9)


def test_the_released_apndc_takes_its_density_early():
    s = torch.linspace(0.5, 3, 126, dtype=torch.float64)
    for lag, count in ((0, 124), (1, 123)):
        found = clean_steps(0.5, 124, "edm-released", released=True, lag=lag)
        right, early = s[1 + lag : 125], s[: 124 - lag]
        assert len(found) == count and torch.allclose(found.sigma, right, rtol=1e-12)
        assert torch.allclose(found.weight, edm_lambda(right) * log_normal_released(early) * (s[1] - s[0]), rtol=1e-9)
    assert APNDC(MODEL, 0.25, count=124, released=True, weight="edm-released").evaluations == 125


# ------------------------------------------------------------------------------------------------ the bound

CELLS = torch.linspace(-40, 40, 1601, dtype=torch.float64)


def log_chain(steps, form):
    """Log density of ``z_tau`` under the Markov chain with the optimal denoiser, for every class, as functions."""
    s, left, tau = steps.levels.sigma.tolist(), steps.left.tolist(), steps.tau
    u = [math.sqrt(v**2 - tau**2) for v in s]
    functions = []
    for k in range(2):
        density = torch.exp(-(CELLS**2) / (2 * s[-1] ** 2)) / math.sqrt(2 * math.pi * s[-1] ** 2)
        for t in reversed(range(len(s))):
            low, high = left[t], s[t]
            mean = LINE.all_classes(CELLS.reshape(-1, 1, 1, 1), high)[:, k].flatten()
            mean = ((high**2 - low**2) * mean + low**2 * CELLS) / high**2
            variance = low**2 * (high**2 - low**2) / high**2
            if form == "specific":
                variance = u[t] ** 2 if t == 0 else (low**2 - tau**2) * (high**2 - low**2) / u[t] ** 2
            step = torch.exp(-((CELLS[:, None] - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
            density = step @ density * float(CELLS[1] - CELLS[0])
        functions.append(CubicSpline(CELLS.numpy(), density.clamp(min=1e-300).log().numpy()))
    return functions


WHERE = points(-0.4, 0.1, 0.5, 0.8, 1.3)


@pytest.mark.parametrize("form", ["fixed", "specific"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_it_bounds_the_density_of_the_chain(form, count):
    model = averaged(chain(LINE, 0.2, count=count, form=form, coupling="shared", sigma_max=8.0))
    bound = model.log_likelihood(WHERE)
    for k, density in enumerate(log_chain(model.steps, form)):
        true = torch.from_numpy(density((2 * WHERE - 1).flatten().numpy()))
        assert bool((bound[:, k] <= true + 1e-3).all())
        if count == 12 or (form == "fixed" and count > 1):
            assert bool((bound[:, k] >= true - 1.5).all())  # and it is no trivial bound


@pytest.mark.parametrize("form", ["fixed", "specific"])
def test_it_bounds_the_density_of_the_data_on_average_and_reaches_it(form):
    """Over z_tau ~ p_tau(. | y); the gap shrinks like 1 / T for the fixed form."""
    z = torch.linspace(-3.5, 3.5, 141, dtype=torch.float64).reshape(-1, 1, 1, 1)
    exact = LINE.log_density(z, 0.4)
    mass = exact.exp() / exact.exp().sum(dim=0)
    gaps = []
    for count in (4, 16, 64):
        model = averaged(chain(LINE, 0.2, count=count, form=form, coupling="shared", sigma_max=40.0), 401)
        gaps.append((mass * (exact - model.log_likelihood((z + 1) / 2))).sum(dim=0))
    assert all(bool((gap > 0).all()) for gap in gaps)
    assert bool((gaps[2] < 0.5 * gaps[1]).all()) and bool((gaps[1] < 0.6 * gaps[0]).all())
    if form == "fixed":
        assert torch.allclose(gaps[1] / gaps[2], torch.full((2,), 4.0, dtype=torch.float64), rtol=0.15)


def test_the_continuous_limit_is_the_exact_density():
    exact = LINE.log_density(2 * WHERE - 1, 0.4)
    model = averaged(chain(LINE, 0.2, count=24, form="quadrature", sigma_max=100.0), 4001)
    assert torch.allclose(model.log_likelihood(WHERE), exact, rtol=0, atol=2e-3)
    errors = [
        (averaged(chain(LINE, 0.2, count=c, coupling="shared", sigma_max=100.0)).log_likelihood(WHERE) - exact).abs().max()
        for c in (25, 100)
    ]
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.15)


def test_few_nodes_of_the_quadrature_do():
    exact = LINE.log_density(2 * WHERE - 1, 0.4)
    error = {}
    for form in ("fixed", "quadrature"):
        for count in (4, 8):
            model = averaged(chain(LINE, 0.2, count=count, form=form, coupling="shared", sigma_max=20.0))
            error[form, count] = odds_error(model(WHERE), exact)
    assert error["quadrature", 4] < 0.3 * error["fixed", 4]
    assert error["quadrature", 8] < 0.1 * error["fixed", 8] and error["quadrature", 8] < 0.01


@pytest.mark.parametrize("weight", ["edm", "edm-released"])
def test_other_weights_bound_nothing(weight):
    with pytest.raises(ValueError, match="bound no likelihood"):
        chain(LINE, 0.2, weight=weight).log_likelihood(WHERE)


# ------------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize("form", ["fixed", "specific"])
def test_a_path_has_the_expectation_of_independent_levels(form):
    """Two steps, all pairs of quantiles: the path's target has the pseudo target as its mean given the end of the step."""
    q = quantiles(150)
    model = chain(LINE, 0.2, count=2, form=form, coupling="path", sigma_max=3.0)
    model = given(model, "path", torch.cartesian_prod(q, q))
    marginal = averaged(chain(LINE, 0.2, count=2, form=form, coupling="shared", sigma_max=3.0))
    assert torch.allclose(model(WHERE[:2]), marginal(WHERE[:2]), rtol=2e-3, atol=2e-3)


def test_a_path_ends_with_the_right_variance_and_starts_anywhere():
    """Also where steps are left out: the released form begins above tau."""
    for form in ("fixed", "released"):
        steps = noised_steps(0.5, 12, form)
        end, shift = walk(steps, "path", lambda t: randn((1, 300, 300), "walk", t)).flatten(2)
        assert torch.allclose(end.square().mean(dim=1), steps.spread**2, rtol=0.02)
        slope = (end * shift).mean(dim=1) / end.square().mean(dim=1)  # E[shift | W] = -(tau^2 / u^2) W
        assert torch.allclose(slope, -(0.25 / steps.spread**2), rtol=0.05, atol=0.05)


def test_along_a_path_the_optimal_model_has_no_variance_in_the_limit():
    x = noisy(40, 0.25)
    exact = MODEL.log_density(2 * x - 1, 0.5)

    def mean_error(coupling, count):
        models = [chain(MODEL, 0.25, count=count, coupling=coupling, seed=s) for s in range(3)]
        return np.mean([odds_error(m(x), exact) for m in models])

    error = {(c, count): mean_error(c, count) for c in ("path", "shared") for count in (16, 64, 256)}
    assert error["path", 16] < error["shared", 64]
    assert error["path", 64] < 0.7 * error["path", 16] and error["path", 256] < 0.7 * error["path", 64]
    assert error["path", 256] < 0.35 * error["shared", 256]


def test_a_mirror_image_is_worth_more_than_another_draw():
    x = noisy(40, 0.25)
    exact = MODEL.log_density(2 * x - 1, 0.5)
    options = {"count": 32, "coupling": "shared"}
    pair = np.mean([odds_error(chain(MODEL, 0.25, antithetic=True, seed=s, **options)(x), exact) for s in range(4)])
    two = np.mean([odds_error(chain(MODEL, 0.25, draws=2, seed=s, **options)(x), exact) for s in range(4)])
    assert pair < 0.75 * two


def test_sharing_noise_between_classes_reduces_the_error():
    """Much where classes are closer than the noise, as images are."""
    close = OptimalDenoiser(0.4 + 0.2 * X, Y)
    x = noisy(40, 0.25, x=0.4 + 0.2 * X)
    exact = close.log_density(2 * x - 1, 0.5)

    def mean_error(coupling):
        return np.mean([odds_error(chain(close, 0.25, coupling=coupling, seed=s)(x), exact) for s in range(3)])

    assert mean_error("shared") < 0.5 * mean_error("per_class") and mean_error("path") < 0.5 * mean_error("shared")


def test_it_decides_as_bayes_rule_does():
    x = noisy(200, 0.25)
    exact = MODEL.posterior(2 * x - 1, 0.5)
    prior = torch.log(torch.tensor(MODEL.counts, dtype=torch.float64))
    found = (chain(MODEL, 0.25, count=400)(x) + prior).softmax(dim=1)
    assert float((found.argmax(1) == exact.argmax(1)).double().mean()) >= 0.97
    assert float((found - exact).abs().mean()) < 0.02


# ------------------------------------------------------------------------------------------------ relatives


def test_without_noise_it_is_the_clean_classifier():
    """tau -> 0: the losses of all levels far above tau are those of the diffusion classifier with the same noise."""
    x = X[:4] + 0.01
    model = chain(MODEL, 5e-6, count=12, coupling="shared", placement="log", sigma_max=10.0, seed=3)
    clean = DiffusionClassifier(MODEL, model.levels, seed=3).losses(x) * model.levels.weight
    assert torch.allclose(model.losses(x)[:, :, 5:], clean[:, :, 5:], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(chain(MODEL, 0.1, count=12, coupling="shared", seed=3)(x), clean.sum(2), rtol=1e-2)


def test_the_ensemble_is_the_clean_classifier_of_the_denoised_image():
    x = noisy(5, 0.25)
    model = APNDC(MODEL, 0.25, count=6, seed=4)
    clean = (MODEL(2 * x - 1, 0.5) + 1) / 2
    assert torch.allclose(model(x), DiffusionClassifier(MODEL, model.levels, seed=4)(clean), rtol=1e-10)


def test_the_ensemble_averages_the_exact_posterior_form():
    """f_y is E log p_tau(x') over x' ~ N(denoised, tau^2), less the same at sigma_max, up to a constant."""
    tau, high = 0.4, 6.0
    model = averaged(APNDC(LINE, 0.2, count=600, sigma_max=high), 801)
    center = LINE(2 * WHERE - 1, tau)
    eps = torch.from_numpy(norm.ppf((np.arange(2001) + 0.5) / 2001))

    def smoothed(sigma):
        return torch.stack([LINE.log_density((c + sigma * eps).reshape(-1, 1, 1, 1), sigma).mean(0) for c in center.flatten()])

    found = model(WHERE) - (smoothed(tau) - smoothed(high))
    assert torch.allclose(found[:, 0], found[:, 1], rtol=0, atol=0.02)
    assert float((smoothed(tau)[:, 0] - smoothed(tau)[:, 1]).abs().max()) > 0.5


def test_the_correct_form_only_removes_noise_of_the_target():
    """On average over z_tau its losses differ from those of EPNDC by the same number for all classes, level by level."""
    tau = 0.4
    z = torch.linspace(-4, 4, 161, dtype=torch.float64).reshape(-1, 1, 1, 1)
    counts = torch.tensor(LINE.counts, dtype=torch.float64)
    mass = LINE.log_density(z, tau).exp() @ (counts / counts.sum())
    mass = mass / mass.sum()
    exact = averaged(chain(LINE, 0.2, count=4, coupling="shared"), 801)
    losses = {}
    for variant in ("correct", "condition-on-y"):
        model = averaged(APNDC(LINE, 0.2, count=4, variant=variant), 801)
        gap = torch.einsum("n,nkt->kt", mass, model.losses((z + 1) / 2) - exact.losses((z + 1) / 2))
        losses[variant] = float((gap[0] - gap[1]).abs().max())
    assert losses["correct"] < 2e-3 and losses["condition-on-y"] > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("coupling", ["shared", "per_class"])
def test_apndc_is_its_formula(variant, coupling):
    x, tau = noisy(3, 0.25), 0.5
    model = APNDC(MODEL, 0.25, count=3, variant=variant, coupling=coupling, draws=2, seed=5, chunk=4)
    z, logits = 2 * x - 1, torch.zeros(3, 3, dtype=torch.float64)
    for k in range(3):
        label = torch.full((3,), k)
        target = MODEL(z, tau, label) if variant == "condition-on-y" else MODEL(z, tau)
        for t, (s, w) in enumerate(zip(model.levels.sigma.tolist(), model.levels.weight.tolist(), strict=True)):
            for r in range(2):
                eps = randn((1, 2, 3), 5, 0, t, r, k if coupling == "per_class" else 0).double()
                start, u = (target, s) if variant == "ensemble" else (z, math.sqrt(s**2 - tau**2))
                logits[:, k] -= w / 2 * (MODEL(start + u * eps, s, label) - target).square().flatten(1).sum(1)
    assert torch.allclose(model(x), logits, rtol=1e-10)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("antithetic", [False, True])
def test_epndc_is_its_formula(coupling, antithetic):
    """The losses written out, with the pseudo target or the path's own; they differ by a constant of each noise."""
    x, tau = noisy(3, 0.25), 0.5
    model = chain(MODEL, 0.25, count=3, coupling=coupling, draws=2, antithetic=antithetic, seed=6, chunk=5)
    z, logits = 2 * x - 1, torch.zeros(3, 3, dtype=torch.float64)
    signs = (1, -1) if antithetic else (1,)
    for k in range(3):
        for r in range(2):
            path = torch.zeros(1, 2, 3, dtype=torch.float64)
            for t in range(3):
                s, w, left = (float(v[t]) for v in (model.levels.sigma, model.levels.weight, model.steps.left))
                eps = randn((1, 2, 3), 6, 0, t, r, k if coupling == "per_class" else 0).double()
                before, path = path, path + math.sqrt(s**2 - left**2) * eps
                u = math.sqrt(s**2 - tau**2)
                added = path if coupling == "path" else u * eps
                for sign in signs:
                    if coupling == "path":  # the mean of the step that leads back to the path's earlier value
                        target = (s**2 * (z + sign * before) - left**2 * (z + sign * added)) / (s**2 - left**2)
                    else:
                        target = z - sign * tau**2 / u * eps
                    loss = (MODEL(z + sign * added, s, torch.full((3,), k)) - target).square().flatten(1).sum(1)
                    logits[:, k] -= w * (loss - (target - z).square().flatten(1).sum(1)) / (2 * len(signs))
    assert torch.allclose(model(x), logits, rtol=1e-9)


# ------------------------------------------------------------------------------------------------ promises

MAKERS = [
    lambda d, **o: EPNDC(d, 0.25, **o),
    lambda d, **o: EPNDC(d, 0.25, form="fixed", coupling="path", antithetic=False, **o),
    lambda d, **o: EPNDC(d, 0.25, coupling="per_class", antithetic=False, draws=2, **o),
    lambda d, **o: APNDC(d, 0.25, **o),
    lambda d, **o: APNDC(d, 0.25, variant="correct", antithetic=True, **o),
    lambda d, **o: APNDC(d, 0.25, variant="condition-on-y", **o),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_batch_and_chunk_do_not_matter(make, noise):
    x, index = noisy(7, 0.25), torch.tensor([5, 3, 2**40, 11, 0, 9, 8])
    whole = make(MODEL, count=4, noise=noise)(x, index)
    for chunk in (1, 5, 12):
        assert torch.allclose(make(MODEL, count=4, noise=noise, chunk=chunk)(x, index), whole, rtol=1e-11)
    model = make(MODEL, count=4, noise=noise)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.allclose(model(x[order], index[order]), whole[order], rtol=1e-11)
    assert torch.allclose(torch.cat([model(x[i : i + 1], index[i : i + 1]) for i in range(7)]), whole, rtol=1e-11)


@pytest.mark.parametrize("make", MAKERS)
def test_fresh_noise_belongs_to_the_image_and_fixed_noise_to_the_seed(make):
    x, state = noisy(2, 0.25)[[0, 0, 0]], torch.random.get_rng_state()
    fresh = make(MODEL, count=3, noise="fresh")
    first = fresh(x)
    assert not torch.allclose(first[0], first[1])
    assert torch.allclose(first[2:], make(MODEL, count=3, noise="fresh")(x[:1], torch.tensor([2])), rtol=1e-12)
    assert not torch.allclose(fresh(x), first)  # the next three
    again = make(MODEL, count=3, noise="fresh")
    assert torch.allclose(torch.cat([again(x[:1]), again(x[1:])]), first, rtol=1e-12)  # numbered in order
    fixed = make(MODEL, count=3)
    assert torch.equal(fixed(x), fixed(x)) and torch.allclose(fixed(x)[0], fixed(x)[1], rtol=1e-12)
    assert not torch.allclose(fixed(x), make(MODEL, count=3, seed=1)(x))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("make", [m for i, m in enumerate(MAKERS) if i != 2])
def test_classes_may_be_permuted(make):
    """Noise is shared by classes, so that names do not matter."""
    order = torch.tensor([2, 0, 1])
    other = OptimalDenoiser(X, order.argsort()[Y])  # its class j is class order[j]
    x = noisy(4, 0.25)
    assert torch.allclose(make(other, count=3)(x), make(MODEL, count=3)(x)[:, order], rtol=1e-10)


@pytest.mark.parametrize("make", MAKERS)
def test_it_counts_its_evaluations_and_takes_every_denoiser(make):
    counter = Counting(tiny_network())
    x = draw((3, 1, 8, 8), 9, torch.float32) * 1.4 - 0.2
    model = make(counter, count=3, chunk=10)
    logits = model(x)
    assert logits.shape == (3, 3) and logits.dtype == torch.float32 and counter.evaluations == 3 * model.evaluations
    assert counter.largest <= 10 and counter.with_grad == 0
    unet = UNetConfig(8, 1, 0, 8, (1, 2), 1, (4,), heads=4)
    heads = build_multihead(EDMConfig(unet, sigma_data=0.6, data="digits")).eval().requires_grad_(False)
    assert make(heads, count=3)(x).shape == (3, 3)
    alone = make(Single(heads), count=3)
    assert torch.allclose(make(heads, count=3)(x), alone(x), rtol=1e-3, atol=1e-3)
    if alone.engine.coupling != "per_class":
        assert make(heads, count=3).engine.evaluations * 3 == alone.engine.evaluations


class Single:
    """A multi-head network used one class at a time."""

    one_pass = False

    def __init__(self, inner):
        self.inner, self.num_classes, self.shape = inner, inner.num_classes, inner.shape

    def __call__(self, z, sigma, label=None):
        return self.inner(z, sigma, label)

    def all_classes(self, z, sigma):
        return self.inner.all_classes(z, sigma)


@pytest.mark.parametrize("make", [MAKERS[0], MAKERS[1], MAKERS[4]])
def test_it_is_differentiable(make):
    x = noisy(2, 0.25).requires_grad_()
    assert torch.autograd.gradcheck(make(MODEL, count=3), (x,), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_all_levels_lie_above_the_noise_of_the_input(sigma, form):
    found = EPNDC(MODEL, sigma, count=9, form=form).levels
    assert bool((found.sigma > 2 * sigma).all() & (found.weight > 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "B"}, "unknown form 'B'; there are fixed, specific, quadrature, released"),
        ({"weight": "vp"}, "unknown weight"),
        ({"coupling": "all"}, "unknown coupling"),
        ({"noise": "new"}, "unknown noise"),
        ({"form": "fixed", "placement": "middle"}, "unknown placement"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"count": 0}, "count must be at least 1"),
        ({"coupling": "path"}, "no chain"),
        ({"placement": "log"}, "own nodes"),
        ({"form": "released", "count": 5}, "leaves out its first 5"),
        ({"sigma_max": 0.5}, "up to sigma_max = 0.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EPNDC(MODEL, 0.25, **options)


def test_bad_input():
    model = EPNDC(MODEL, 0.25, count=2)
    with pytest.raises(ValueError, match="up to sigma_max"):
        EPNDC(MODEL, 0.0)
    with pytest.raises(ValueError, match="unknown variant"):
        APNDC(MODEL, 0.25, variant="paper")
    with pytest.raises(ValueError, match="unknown coupling 'path'"):
        APNDC(MODEL, 0.25, coupling="path")
    with pytest.raises(ValueError, match="the model takes"):
        model(draw((2, 1, 3, 3)))
    with pytest.raises(ValueError, match="1 of 2 are not"):
        model(torch.cat([X[:1], X[:1] * math.nan]))
    with pytest.raises(ValueError, match="index needs one int64"):
        check_noisy(X[:2], (1, 2, 3), torch.tensor([1]))
