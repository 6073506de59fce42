"""Guides against each other and finite differences; samplers against closed forms, a literal DDPM step and each other."""

from dataclasses import replace

import pytest
import torch
from helpers import mixture, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from test_guide_classifier import tiny

from rdc.attack.norms import norm_of
from rdc.denoise.base import to_model
from rdc.denoise.optimal import OptimalDenoiser
from rdc.guide.guides import ClassifierGuide, DiffusionGuide, PosteriorGuide, RatioGuide, log_gradient
from rdc.guide.plan import FORMS, SamplingPlan, edm_path, step_variance, vp_path
from rdc.guide.sampling import Run, sample
from rdc.rng import randn
from rdc.schedule import sigma_to_alpha, vp_alphas

F64 = torch.float64
SHAPE = (1, 2, 3)
METHODS = ["euler", "heun", "ancestral"]


def optimal(seed=0, counts=(3, 5, 2)):
    return OptimalDenoiser(*mixture(seed, counts, SHAPE))


def noisy(n=9, seed=1):
    """Noisy images of the mixture at levels from 0.2 to 5, and wanted classes."""
    x, _ = mixture(0, (3, 5, 2), SHAPE)
    sigma = torch.logspace(-0.7, 0.7, n, dtype=F64)
    z = to_model(x[:n]) + sigma[:, None, None, None] * randn((n, *SHAPE), seed).double()
    return z, sigma, torch.arange(n) % 3


class Gaussian:
    """The denoiser of data N(0, s^2 I) of both of its classes: ``D = z s^2 / (s^2 + sigma^2)``."""

    one_pass, num_classes, shape = True, 2, SHAPE

    def __init__(self, s=0.7):
        self.s = s

    def __call__(self, z, sigma, label=None):
        return z * (self.s**2 / (self.s**2 + sigma**2)).reshape(-1, 1, 1, 1)

    def all_classes(self, z, sigma):
        return torch.stack([self(z, sigma)] * 2, dim=1)


class Point(Gaussian):
    """The denoiser of data that are one point."""

    def __call__(self, z, sigma, label=None):
        return torch.full_like(z, 0.3)


# Guides


def test_the_exact_posterior_is_the_ratio_of_the_scores():
    z, sigma, y = noisy()
    d = optimal()
    by_autograd, by_scores = PosteriorGuide(d)(z, sigma, y), RatioGuide(d)(z, sigma, y)
    assert torch.allclose(by_autograd, by_scores, rtol=1e-7, atol=1e-9) and by_scores.abs().max() > 0.1


def test_gradients_of_a_network_are_finite_differences():
    h, (z, sigma, y) = tiny().double(), noisy(4)
    z = z.repeat(1, 1, 4, 3)[:, :, :, :8]
    v, step = randn((4, 1, 8, 8), 3).double(), 1e-5

    def value(point, normalised):
        logits = h(point, sigma)
        return (logits.log_softmax(dim=1) if normalised else logits).gather(1, y[:, None])[:, 0]

    for normalised in (True, False):
        slope = (ClassifierGuide(h, normalised)(z, sigma, y) * v).sum(dim=(1, 2, 3))
        assert torch.allclose(
            slope, (value(z + step * v, normalised) - value(z - step * v, normalised)) / (2 * step), rtol=1e-6, atol=1e-8
        )


def test_the_diffusion_classifier_guides_as_the_exact_posterior_does():
    """For the optimal denoiser the bound is the density: up to the noise of its draws the gradient is that of the posterior."""
    z, sigma, y = noisy()
    d = optimal(counts=(3, 3, 3))  # equal priors
    exact, errors = PosteriorGuide(d)(z, sigma, y), []
    for draws in (1, 64):
        found = DiffusionGuide(d, count=16, draws=draws, chunk=100_000)(z, sigma, y)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.04 and errors[1] < errors[0] / 3


def test_each_image_takes_the_diffusion_classifier_of_its_own_level():
    z, sigma, y = noisy(3)
    guide = DiffusionGuide(optimal(), count=2)
    alone = torch.cat([guide(z[i : i + 1], sigma[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(guide(z, sigma, y), alone, rtol=1e-9)


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite for 2 of 2"):
        log_gradient(lambda z: (z.flatten(1)[:, :2] * 0).sqrt(), torch.zeros(2, *SHAPE), torch.tensor([0, 1]))


# Paths and plans


def test_paths_fall_to_zero():
    path = edm_path(5, 0.1, 10, 1.0)
    assert torch.allclose(path, torch.tensor([10, 7.525, 5.05, 2.575, 0.1, 0], dtype=F64))
    path = vp_path(1000)
    assert torch.allclose(sigma_to_alpha(path[:-1]), vp_alphas().flip(0)) and path[-1] == 0
    few = vp_path(11)
    assert len(few) == 12 and set(few.tolist()) <= set(path.tolist()) and few[0] == path[0] and few[-2] == path[-2]


def test_bad_plans_and_requests_give_one_line():
    for options, message in (
        ({"method": "fast"}, "unknown method 'fast'; there are euler, heun, ancestral"),
        ({"form": "x"}, "unknown form"),
        ({"variance": "x"}, "unknown variance"),
        ({"path": torch.tensor([1.0, 2.0, 0.0], dtype=F64)}, "strictly falling"),
        ({"path": torch.tensor([1.0, 0.5], dtype=F64)}, "then 0"),
        ({"form": "ddpm"}, "take method='ancestral'"),
    ):
        with pytest.raises(ValueError, match=message):
            SamplingPlan(**options)
    for call in (lambda: edm_path(1), lambda: edm_path(5, 2.0, 1.0), lambda: vp_path(1001)):
        with pytest.raises(ValueError, match="count"):
            call()
    y = torch.tensor([0, 1])
    for labels, seeds, message in ((y, [1], "1 seeds for 2"), (y[:0], [], "0 seeds for 0"), (y + 2, [1, 2], r"0\.\.\.2, got 2")):
        with pytest.raises(ValueError, match=message):
            sample(optimal(), labels, seeds)


# Laws of guided sampling


def never(*_):
    raise AssertionError("a guide was called")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("conditional", [True, False])
def test_scale_zero_is_unguided_to_the_bit(method, conditional):
    net, plan = tiny_network(), SamplingPlan(edm_path(4), method, conditional=conditional)
    y, seeds = torch.tensor([0, 1, 2]), [3, 4, 5]
    free = sample(net, y, seeds, plan, keep=True)
    none = sample(net, y, seeds, plan, never, scale=0, keep=True)
    assert torch.equal(free.z, none.z) and torch.equal(free.estimates, none.estimates)
    assert not torch.equal(free.z, sample(net, y, seeds, plan, ClassifierGuide(tiny()), scale=0.5).z)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variance", ["posterior", "bound"])
def test_the_exact_posterior_at_scale_one_is_the_conditional_denoiser(method, variance):
    d, y, seeds = optimal(), torch.tensor([0, 1, 2, 1]), [1, 2, 3, 4]
    plan = SamplingPlan(edm_path(12), method, variance=variance)
    right = sample(d, y, seeds, plan, dtype=F64)
    found = sample(d, y, seeds, replace(plan, conditional=False), PosteriorGuide(d), scale=1, dtype=F64)
    assert torch.allclose(found.z, right.z, atol=1e-9)
    assert not torch.allclose(right.z, sample(d, y, seeds, replace(plan, conditional=False), dtype=F64).z, atol=1e-2)


def test_score_form_pointwise():
    """``D + sigma^2 grad log p(y | z) = D_y`` at single points, at every level."""
    d, (z, sigma, y) = optimal(), noisy()
    guided = d(z, sigma, None) + sigma[:, None, None, None] ** 2 * PosteriorGuide(d)(z, sigma, y)
    assert torch.allclose(guided, d(z, sigma, y), atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_classifier_free_guidance_mixes_two_denoisers(method):
    """On a conditional denoiser a ratio guide of scale w gives ``(1 + w) D_y - w D``; without a label ``(1 - w) D + w D_y``."""
    d, y, seeds, w, plan = optimal(), torch.tensor([0, 1, 2]), [1, 2, 3], 0.7, SamplingPlan(edm_path(6), method)

    class Mixed(Gaussian):
        def __call__(self, z, sigma, label=None):
            mixed = (1 + w) * d(z, sigma, y) - w * d(z, sigma, None)
            return mixed if label is not None else (1 - w) * d(z, sigma, None) + w * d(z, sigma, y)

    mixed = Mixed()
    mixed.num_classes = 3
    for conditional in (True, False):
        plan = replace(plan, conditional=conditional)
        found, right = sample(d, y, seeds, plan, RatioGuide(d), w, dtype=F64), sample(mixed, y, seeds, plan, dtype=F64)
        assert torch.allclose(found.z, right.z, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_depends_on_its_seed_alone(method):
    net, guide, plan = tiny_network().double(), ClassifierGuide(tiny().double()), SamplingPlan(edm_path(4), method)
    y, seeds = torch.tensor([0, 1, 2, 0, 1]), [7, 8, 9, 10, 11]
    whole = sample(net, y, seeds, plan, guide, 0.5, dtype=F64, keep=True)
    order = torch.tensor([3, 0, 4])
    part = sample(net, y[order], [seeds[i] for i in order], plan, guide, 0.5, batch=2, dtype=F64, keep=True)
    assert torch.allclose(whole.z[order], part.z, atol=1e-9)
    assert torch.allclose(whole.estimates[order], part.estimates, atol=1e-9)
    assert not torch.allclose(part.z[0], sample(net, y[order[:1]], [12], plan, guide, 0.5, dtype=F64).z[0], atol=1e-2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = sample(net, y, seeds, plan, guide, 0.5, dtype=F64)
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(again.z, whole.z)


# Samplers against closed forms


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_flow_of_gaussian_data(method, order):
    """``z(sigma) = z_0 sqrt((s^2 + sigma^2) / (s^2 + sigma_0^2))``; the error falls with the order of the method."""
    d, errors = Gaussian(), []
    start = 20 * torch.stack([randn(SHAPE, seed, "sample", "start", 0) for seed in (1, 2)]).double()
    right = start * d.s / (d.s**2 + 400) ** 0.5
    for count in (40, 80):
        found = sample(d, torch.tensor([0, 1]), [1, 2], SamplingPlan(edm_path(count, 1e-4, 20.0), method), dtype=F64)
        errors.append(float((found.z - right).norm() / right.norm()))
    assert errors[1] < 0.1 and 2**order * 0.8 < errors[0] / errors[1] < 2**order * 1.3


@pytest.mark.parametrize("method", METHODS)
def test_data_that_are_one_point_are_found(method):
    found = sample(Point(), torch.tensor([0, 1]), [1, 2], SamplingPlan(edm_path(3), method), dtype=F64, keep=True)
    assert torch.allclose(found.z, torch.full((2, *SHAPE), 0.3, dtype=F64)) and found.estimates.shape == (2, 3, *SHAPE)
    assert torch.allclose(found.x, torch.full((2, *SHAPE), 0.65, dtype=F64))


@given(sigma=st.floats(0.05, 100), part=st.floats(0.05, 0.95))
def test_the_variances_are_exact_for_a_point_and_for_a_unit_gaussian(sigma, part):
    """Of a variance ``s^2 + sigma^2`` a step must leave ``s^2 + sigma'^2``: s = 0 for ``posterior``, s = 1 for ``bound``."""
    below = part * sigma
    ratio = (below / sigma) ** 2
    assert ratio**2 * sigma**2 + step_variance(sigma, below, "posterior") == pytest.approx(below**2, rel=1e-9)
    factor = ratio + (1 - ratio) / (1 + sigma**2)  # D = z / (1 + sigma^2)
    left = factor**2 * (1 + sigma**2) + step_variance(sigma, below, "bound")
    assert left == pytest.approx(1 + below**2, rel=1e-9)


def literal_ddpm(d, guide, y, seeds, path, variance, scale):
    """The paper's Eq. 4 and ``mean + s Sigma grad``, in its own coordinates x_t, with noise predictor and alphas."""
    sigma, alpha = path, torch.cat([sigma_to_alpha(path[:-1]), torch.ones(1, dtype=F64)])
    x = torch.stack([randn(SHAPE, s, "sample", "start", 0) for s in seeds]).double() * (1 - alpha[0]).sqrt()
    for i in range(len(path) - 1):
        now, then = alpha[i], alpha[i + 1]
        z, level = x / now.sqrt(), sigma[i].expand(len(x))
        noise = (x - now.sqrt() * d(z, level, y)) / (1 - now).sqrt()
        beta = 1 - now / then
        mean = (then / now).sqrt() * (x - beta / (1 - now).sqrt() * noise)
        size = beta * (1 - then) / (1 - now) if variance == "posterior" else beta
        mean = mean + scale * size * guide(z, level, y) / now.sqrt()  # gradient with respect to x_t
        eps = torch.stack([randn(SHAPE, s, "sample", "step", i) for s in seeds]).double()
        x = mean + size.sqrt() * eps if then < 1 else mean
    return x


@pytest.mark.parametrize("variance", ["posterior", "bound"])
def test_the_ddpm_form_is_the_papers_step(variance):
    d, y, seeds, path = optimal(), torch.tensor([0, 1, 2]), [1, 2, 3], vp_path(20)
    plan = SamplingPlan(path, "ancestral", "ddpm", variance)
    found = sample(d, y, seeds, plan, PosteriorGuide(d), 1.5, dtype=F64)
    assert torch.allclose(found.z, literal_ddpm(d, PosteriorGuide(d), y, seeds, path, variance, 1.5), atol=1e-8)


@pytest.mark.parametrize("variance", ["posterior", "bound"])
@pytest.mark.parametrize("below", [0.3, 0.9, 0.99])
def test_the_ddpm_form_moves_less_than_the_score_form(variance, below):
    """In a step from 2 to ``2 below`` the ratio of the moves is the stated one: below 1, and 1 for small steps."""
    d, y, level, down = optimal(), torch.tensor([0, 1, 2, 0]), 2.0, 2.0 * below
    z, moves = level * randn((4, *SHAPE), 5).double(), []
    for form in ("score", "ddpm"):
        plan = SamplingPlan(torch.tensor([level, down, 0.0], dtype=F64), "ancestral", form, variance, conditional=False)
        ends = [Run(d, y, [1, 2, 3, 4], plan, guide, 1.0) for guide in (RatioGuide(d), None)]
        ends = [run.ancestral(z, *run.look(z, level), level, down, 0) for run in ends]
        moves.append(ends[0] - ends[1])
    stated = below**2 * (5 / (1 + down**2)) ** 0.5 if variance == "posterior" else ((1 + down**2) / 5) ** 0.5
    assert torch.allclose(moves[1], stated * moves[0], rtol=1e-9) and moves[0].abs().max() > 0.01
    assert stated < 1 and (below < 0.9 or 1 - stated < 2 * (1 - below))


@pytest.mark.parametrize("variance", ["posterior", "bound"])
def test_both_forms_agree_in_the_limit_of_many_steps(variance, monkeypatch):
    """Without the noise of the steps the chains are smooth: twice as many steps halve the difference of the two forms."""
    draw = Run.noise
    monkeypatch.setattr(Run, "noise", lambda run, what, i: draw(run, what, 0) * (what == "start"))
    d, y, seeds, gaps = optimal(), torch.tensor([0, 1, 2, 0]), [1, 2, 3, 4], []
    for count in (50, 100):
        plan = SamplingPlan(edm_path(count, 0.5), "ancestral", "score", variance, conditional=False)
        both = [sample(d, y, seeds, replace(plan, form=form), RatioGuide(d), 0.5, dtype=F64, keep=True) for form in FORMS]
        gaps.append(float((both[0].estimates[:, -1] - both[1].estimates[:, -1]).norm()))
    assert 1.6 < gaps[0] / gaps[1] < 2.5


def test_estimates_end_at_the_image_and_guidance_raises_the_posterior():
    d, y, seeds = optimal(), torch.tensor([0, 1, 2] * 4), list(range(12))
    plan = SamplingPlan(edm_path(20), conditional=False)
    rows = []
    for scale in (0.0, 0.5, 2.0):
        found = sample(d, y, seeds, plan, PosteriorGuide(d), scale, dtype=F64, keep=True)
        rows.append(float(d.posterior(found.z, 0.3).gather(1, y[:, None]).mean()))
    assert rows[0] < rows[1] < rows[2]
    free = sample(d, y, seeds, plan, dtype=F64, keep=True)
    assert bool((norm_of(free.estimates[:, -1] - free.z, "L2") < 1e-6).all())


def test_clipping_keeps_estimates_in_range():
    class Far(Gaussian):
        def __call__(self, z, sigma, label=None):
            return 3 * z

    y = torch.tensor([0])
    clipped = sample(Far(), y, [1], SamplingPlan(edm_path(3), "euler", clip=True), keep=True).estimates
    free = sample(Far(), y, [1], SamplingPlan(edm_path(3), "euler"), keep=True).z
    assert float(clipped.abs().max()) == 1 and float(free.abs().max()) > 1
