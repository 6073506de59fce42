"""Measurements of gradients, losses and purifications against models whose answers are known."""

import math

import pytest
import torch
from helpers import Linear, draw, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.analyse import (
    SignalNoise,
    ascent_path,
    compression_rate,
    eot_cosine,
    gradient_cosine,
    gradient_lipschitz,
    gradients_along,
    jacobian_rms,
    linearised_distance,
    lipschitz,
    loss_noise,
    margin_to,
    path_cosine,
    repeated_gradients,
    runner_up,
    signal_to_noise,
    top_singular_value,
)
from rdc.attack.losses import cross_entropy, margin
from rdc.attack.norms import ascend
from rdc.classify import CNN, DiffusionClassifier, Purify
from rdc.rng import randn
from rdc.schedule import levels

SHAPE = (1, 3, 4)
seeds = st.integers(0, 10**6)


def labels(x):
    return torch.zeros(len(x), dtype=torch.int64)


class Noisy(nn.Module):
    """Margin for label 0: ``(s + C^(1/2) e_r) . x + tau h_r``, another r at every call."""

    def __init__(self, s, root, tau=0.0):
        super().__init__()
        self.s, self.root, self.tau, self.calls = s, root, tau, 0

    def forward(self, x):
        self.calls += 1
        slope = self.s + self.root * randn(tuple(self.s.shape), "slope", self.calls, like=x)
        value = (x * slope).flatten(1).sum(1) + self.tau * randn((1,), "height", self.calls, like=x)
        return torch.stack([torch.zeros_like(value), value], 1)


class Quadratic(nn.Module):
    """Margin for label 0: ``x A x / 2 + b . x``."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        flat = x.flatten(1)
        value = ((flat[:, None] * self.a).sum(2) * flat).sum(1) / 2 + (flat * self.b).sum(1)
        return torch.stack([torch.zeros_like(value), value], 1)


def quadratic(seed):
    a = draw((12, 12), seed) - 0.5
    return Quadratic(a + a.T, draw((12,), seed + 1))


class Scaled(nn.Module):
    def __init__(self, model, scale, shift):
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, x):
        return self.scale * self.model(x) + self.shift


# ------------------------------------------------------------------------------------------------- randomness


@given(seeds, st.integers(2, 6))
def test_the_cosine_is_the_mean_over_pairs(seed, count):
    gradients = draw((count, 3, *SHAPE), seed) - 0.5
    gradients[0, 1] = 0
    found = gradient_cosine(gradients)
    for i in range(3):
        pairs = [
            float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0, eps=1e-30))
            for j, a in enumerate(gradients[:, i])
            for b in gradients[:j, i]
        ]
        assert math.isclose(float(found[i]), sum(pairs) / len(pairs), abs_tol=1e-12)
    scales = 10 ** (6 * draw((count, 3, 1, 1, 1), seed + 1) - 3)
    assert torch.allclose(gradient_cosine(gradients * scales), found)


def test_a_model_with_fixed_noise_has_cosine_one_and_fresh_noise_less():
    x = draw((2, 1, 8, 8), 0, torch.float32)
    for noise in ("shared", "fresh"):
        model = DiffusionClassifier(tiny_network(), levels("elbo", 3), noise=noise)
        gradients = repeated_gradients(model, x, labels(x), repeats=3)
        assert gradients.shape == (3, 2, 1, 8, 8) and model.calls == 0
        if noise == "shared":
            assert torch.equal(gradients[0], gradients[1]) and torch.allclose(gradient_cosine(gradients), torch.ones(2))
            point = x.clone().requires_grad_()
            assert torch.equal(torch.autograd.grad(margin(model(point), labels(x)).sum(), point)[0], gradients[0])
        else:
            assert bool((gradient_cosine(gradients) < 0.999).all())


def test_repeated_gradients_are_a_function_of_their_seed_whatever_was_called_before():
    model = Noisy(draw(SHAPE, 0), draw(SHAPE, 1))
    x = draw((3, *SHAPE), 2)
    before = torch.get_rng_state()
    first = repeated_gradients(model, x, labels(x), 4)
    model(x)
    assert torch.equal(repeated_gradients(model, x, labels(x), 4), first) and model.calls == 1
    assert torch.equal(repeated_gradients(model, x, labels(x), 2), first[:2])
    assert torch.equal(repeated_gradients(model, x[1:2], labels(x[1:2]), 4), first[:, 1:2])
    assert not torch.equal(repeated_gradients(model, x, labels(x), 4, seed=1), first)
    assert len({g.sum().item() for g in first[:, 0]}) == 4 and torch.equal(torch.get_rng_state(), before)


def test_a_model_with_global_noise_is_measured_and_left_alone():
    class Dropped(nn.Module):
        def forward(self, x):
            return Linear(draw((3, *SHAPE), 1) - 0.5)(x * (torch.rand(SHAPE) > 0.5))

    x, before = draw((2, *SHAPE), 2), torch.get_rng_state()
    first = repeated_gradients(Dropped(), x, labels(x), 4)
    assert torch.equal(repeated_gradients(Dropped(), x, labels(x), 4), first) and float(gradient_cosine(first).max()) < 0.99
    assert torch.equal(torch.get_rng_state(), before)


def test_other_losses():
    model, x = Linear(draw((3, *SHAPE), 1)), draw((2, *SHAPE), 2)
    soft = model(x).softmax(1) - torch.eye(3, dtype=x.dtype)[0]
    expected = torch.einsum("nk,kchw->nchw", soft, model.weight)
    assert torch.allclose(repeated_gradients(model, x, labels(x), 1, loss=cross_entropy)[0], expected)


@given(seeds)
def test_a_fixed_rival_bounds_the_margin_from_below(seed):
    """Equality against the runner-up, which is no image's own class."""
    model, x = Linear(draw((4, *SHAPE), seed) - 0.5), draw((5, *SHAPE), seed + 1)
    logits, y = model(x), torch.arange(5) % 4
    rival = runner_up(model, x, y, calls=2)
    assert (rival != y).all() and torch.equal(margin_to(rival)(logits, y), margin(logits, y))
    for j in range(4):
        assert (margin_to(torch.full_like(y, j))(logits, y)[y != j] <= margin(logits, y)[y != j]).all()


def test_a_rival_that_is_free_to_change_adds_randomness():
    """Two rivals with opposite slopes and noisy offsets: against one of them the gradient is certain."""

    class Switching(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            slope, offset = x.flatten(1).sum(1), randn((2, 1), "offset", self.calls, like=x)
            return torch.stack([torch.zeros_like(slope), slope + offset[0], offset[1] - slope], 1)

    model, x = Switching(), draw((2, *SHAPE), 2) / 100
    y, before = labels(x), model.calls
    rival = runner_up(model, x, y)
    assert model.calls == before, "the model's own count of calls is left as it was"
    fixed, free = (gradient_cosine(repeated_gradients(model, x, y, 12, loss=loss)) for loss in (margin_to(rival), margin))
    assert torch.allclose(fixed, torch.ones_like(fixed)) and (free < 0.9).all()


def test_groups_of_gradients():
    gradients = draw((11, 2, *SHAPE), 0) - 0.4
    found = eot_cosine(gradients, (1, 3, 5))
    assert torch.equal(found[0], gradient_cosine(gradients))
    groups = torch.stack([gradients[i : i + 3].mean(0) for i in (0, 3, 6)])
    assert torch.allclose(found[1], gradient_cosine(groups))
    a, b = gradients[:5].mean(0).flatten(1), gradients[5:10].mean(0).flatten(1)
    assert torch.allclose(found[2], torch.nn.functional.cosine_similarity(a, b))


def test_cosine_after_eot_follows_the_closed_form():
    """Signal and covariance known: the estimates find them, and groups follow ``|s|^2 / (|s|^2 + tr(C) / m)``."""
    s, root = 0.3 * draw((1, 16, 16), 0), draw((1, 16, 16), 1)
    signal, noise = float(s.square().sum()), float(root.square().sum())
    x = draw((1, 1, 16, 16), 2)
    gradients = repeated_gradients(Noisy(s, root), x, labels(x), 320)
    found = signal_to_noise(gradients)
    assert abs(float(found.noise) / noise - 1) < 0.03 and abs(float(found.signal) / signal - 1) < 0.05
    assert math.isclose(float(found.half_eot), float(found.noise) / float(found.signal))
    sweep = (1, 2, 5, 10, 20, 40)
    exact = torch.tensor([signal / (signal + noise / m) for m in sweep], dtype=torch.float64)
    assert exact[0] < 0.15 and exact[-1] > 0.75
    assert torch.allclose(eot_cosine(gradients, sweep)[:, 0], exact, atol=0.03)
    assert torch.allclose(torch.cat([found.cosine(m) for m in sweep]), exact, atol=0.02)
    four = signal_to_noise(repeated_gradients(Noisy(s, root), x, labels(x), 80, eot=4))
    assert abs(4 * float(four.noise) / noise - 1) < 0.06


@given(seeds, st.integers(2, 7))
def test_the_signal_is_the_mean_inner_product_of_pairs(seed, count):
    gradients = draw((count, 2, *SHAPE), seed) - 0.4
    flat = gradients.flatten(2)
    gram = torch.einsum("rnd,snd->nrs", flat, flat)
    off = (gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))
    assert torch.allclose(signal_to_noise(gradients).signal, off, atol=1e-12)


def test_signal_and_noise_are_unbiased():
    """Three gradients of each of 4000 images with the same law."""
    s, root = draw(SHAPE, 0), 2 * draw(SHAPE, 1)
    found = signal_to_noise(s + root * randn((3, 4000, *SHAPE), "unbiased", like=s))
    for estimate, exact in ((found.signal, s.square().sum()), (found.noise, root.square().sum())):
        assert abs(float(estimate.mean() - exact)) < 4 * float(estimate.std()) / math.sqrt(4000)
    assert bool((found.signal < 0).any()) and bool((found.cosine(3) >= 0).all())
    assert bool(found.half_eot[found.signal <= 0].isinf().all())


def test_closed_form_at_its_ends():
    found = SignalNoise(torch.tensor([1.0, 1.0, -0.1]), torch.tensor([0.0, 3.0, 2.0]))
    assert torch.equal(found.cosine(), torch.tensor([1.0, 0.25, 0.0]))
    assert torch.equal(found.half_eot, torch.tensor([0.0, 3.0, math.inf]))
    assert torch.equal(found.cosine(3), torch.tensor([1.0, 0.5, 0.0]))


# ------------------------------------------------------------------------------------------------- magnitude


@given(seeds, st.sampled_from(["Linf", "L2"]))
def test_linearised_distance_is_exact_for_a_linear_model_of_two_classes(seed, norm):
    model, x = Linear(draw((2, *SHAPE), seed) - 0.5, draw((2,), seed + 1) - 0.5), draw((4, *SHAPE), seed + 2)
    y = (draw((4,), seed + 3) > 0.5).long()
    found = linearised_distance(model, x, y, norm)
    assert torch.equal(found > 0, model(x).argmax(1) == y)  # negative on the wrong side
    uphill = (2 * (1 - y) - 1).reshape(-1, 1, 1, 1) * (model.weight[1] - model.weight[0])
    boundary = x + found.reshape(-1, 1, 1, 1) * ascend(uphill, norm)
    assert margin(model(boundary), y).abs().max() < 1e-12


@given(seeds, st.floats(1e-4, 1e4), st.floats(-10, 10))
def test_linearised_distance_does_not_see_the_scale_of_the_logits(seed, scale, shift):
    model, x, y = Linear(draw((5, *SHAPE), seed) - 0.5), draw((4, *SHAPE), seed + 1), torch.tensor([0, 4, 2, 2])
    for norm in ("Linf", "L2"):
        found = linearised_distance(Scaled(model, scale, shift), x, y, norm)
        assert torch.allclose(found, linearised_distance(model, x, y, norm), rtol=1e-9 * max(1, 1 / scale), atol=1e-10)


def test_linearised_distance_of_a_flat_model_is_infinite_and_each_image_stands_alone():
    x = draw((3, *SHAPE), 1)
    flat = Linear(torch.zeros(2, *SHAPE).double(), torch.tensor([2.0, -1.0]).double())
    assert bool(linearised_distance(flat, x, labels(x)).isposinf().all())
    model = quadratic(0)
    assert torch.equal(linearised_distance(model, x, labels(x))[1:2], linearised_distance(model, x[1:2], labels(x[1:2])))


# ------------------------------------------------------------------------------------------------- smoothness


@given(seeds)
def test_smoothness_of_a_quadratic(seed):
    model, x, x_adv = quadratic(seed), draw((3, *SHAPE), seed + 2), draw((3, *SHAPE), seed + 3)
    path = torch.lerp(x[None], x_adv[None], torch.linspace(0, 1, 5, dtype=x.dtype).reshape(-1, 1, 1, 1, 1))
    gradients = gradients_along(model, path, labels(x))
    assert torch.allclose(gradients.flatten(2), path.flatten(2) @ model.a + model.b)
    change = (x_adv - x).flatten(1)
    exact = (change @ model.a).norm(dim=1) / change.norm(dim=1)
    start = (x.flatten(1) @ model.a + model.b).norm(dim=1)
    assert torch.allclose(lipschitz(path, gradients, relative=False), exact.expand(4, 3))
    assert torch.allclose(lipschitz(path, gradients), (exact / start).expand(4, 3))
    cosine = path_cosine(gradients)
    expected = torch.nn.functional.cosine_similarity(gradients[0].flatten(1), gradients[3].flatten(1))
    assert torch.allclose(cosine[0], torch.ones(3).double()) and torch.allclose(cosine[3], expected)


@given(seeds, st.sampled_from(["Linf", "L2"]))
def test_random_lipschitz_quotients_are_below_the_constant(seed, norm):
    model, x = quadratic(seed), draw((3, *SHAPE), seed + 2)
    found = gradient_lipschitz(model, x, labels(x), norm, 0.1, draws=6, relative=False)
    spectrum = torch.linalg.eigvalsh(model.a).abs()
    assert found.shape == (6, 3) and float(found.max()) <= float(spectrum.max()) * (1 + 1e-9)
    assert float(found.min()) >= float(spectrum.min()) * (1 - 1e-9)
    model.a = torch.eye(12).double() * 1.7
    assert torch.allclose(gradient_lipschitz(model, x, labels(x), norm, 0.1, 2, relative=False), torch.tensor(1.7).double())
    scaled = Scaled(model, 100.0, 0.0)
    assert torch.allclose(
        gradient_lipschitz(scaled, x, labels(x), norm, 0.1, 2), gradient_lipschitz(model, x, labels(x), norm, 0.1, 2)
    )


def test_smoothness_is_that_of_one_draw_of_the_noise():
    """The model is linear at every draw: noise does not pass for curvature."""
    model, x = Noisy(draw(SHAPE, 0), draw(SHAPE, 1), 1.0), draw((2, *SHAPE), 2)
    assert float(gradient_lipschitz(model, x, labels(x), "L2", 0.5).abs().max()) < 1e-12
    path = ascent_path(model, x, labels(x), "Linf", 0.1, 4)
    gradients = gradients_along(model, path, labels(x))
    assert torch.allclose(path_cosine(gradients), torch.ones(5, 2).double())
    assert torch.allclose(path[-1], (x + 0.1 * gradients[0].sign()).clamp(0, 1))  # a linear model's worst point


@given(seeds, st.sampled_from(["Linf", "L2"]))
def test_the_ascent_path_climbs_inside_the_ball(seed, norm):
    model, x = quadratic(seed), draw((2, *SHAPE), seed + 2)
    path = ascent_path(model, x, labels(x), norm, 0.05, 5, step_size=0.01)
    order = math.inf if norm == "Linf" else 2
    assert path.shape == (6, 2, *SHAPE) and torch.equal(path[0], x) and path.min() >= 0 and path.max() <= 1
    assert float(torch.linalg.vector_norm((path - x).flatten(2), order, dim=2).max()) <= 0.05
    first = torch.linalg.vector_norm((path[1] - x).flatten(1), order, dim=1)
    assert bool((first <= 0.01 + 1e-12).all())
    assert bool((margin(model(path[-1]), labels(x)) > margin(model(x), labels(x))).all())


# ------------------------------------------------------------------------------------------------- noise of losses


def test_noise_of_losses_and_of_their_differences():
    """``L = (s + c e) . x + tau h``: common noise leaves ``c |x' - x|``, independent noise the sum of both variances."""
    s, c, tau, x = draw(SHAPE, 0), 0.2, 3.0, draw((2, *SHAPE), 1)
    other = (x + 0.1 * draw((2, *SHAPE), 2)).clamp(0, 1)
    found = loss_noise(Noisy(s, torch.full(SHAPE, c).double(), tau), x, other, labels(x), draws=1000)
    variance = [c**2 * p.flatten(1).square().sum(1) + tau**2 for p in (x, other)]
    change = (other - x).flatten(1)
    near = 4 / math.sqrt(2 * 1000)
    assert torch.allclose(found.std / variance[0].sqrt(), torch.ones(2).double(), atol=near)
    assert torch.allclose(found.common_std / (c * change.norm(dim=1)), torch.ones(2).double(), atol=near)
    assert torch.allclose(found.independent_std / (variance[0] + variance[1]).sqrt(), torch.ones(2).double(), atol=near)
    expected = change @ s.flatten()
    assert bool(((found.difference - expected).abs() < 4 * c * change.norm(dim=1) / math.sqrt(1000)).all())
    assert torch.allclose(found.ratio() * found.difference.abs(), found.common_std)
    assert bool((found.ratio(common=False) > 10 * found.ratio()).all())


def test_a_deterministic_model_has_no_noise_and_losses_stand_alone():
    model, x = CNN((1, 8, 8), 10, width=4).eval(), draw((2, 1, 8, 8), 0, torch.float32)
    found = loss_noise(model, x, x.flip(3), labels(x), 3)
    assert not found.std.any() and not found.common_std.any() and not found.independent_std.any()
    noisy, x = Noisy(draw(SHAPE, 0), draw(SHAPE, 1), 1.0), draw((3, *SHAPE), 0)
    whole, one = (loss_noise(noisy, p, p.flip(3), labels(p), 4) for p in (x, x[1:2]))
    assert torch.equal(whole.at[:, 1:2], one.at) and torch.equal(whole.other[:, 1:2], one.other)
    assert torch.equal(loss_noise(noisy, x, x, labels(x), 4).common_std, torch.zeros(3).double())


# ------------------------------------------------------------------------------------------------- compression


class Drift(nn.Module):
    """``x + noise``, another one at every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + randn(SHAPE, "drift", self.calls, like=x)


class Map(nn.Module):
    """``A x + b``, each pixel a sum over its own row."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        return ((x.flatten(1)[:, None] * self.a).sum(2) + 0.3).reshape(x.shape)


class GaussianDenoiser:
    """Data ``N(0, s^2)`` in model units."""

    one_pass, num_classes, shape, s = True, 1, SHAPE, 0.01

    def __call__(self, z, sigma, label=None):
        return z * self.s**2 / (self.s**2 + sigma.reshape(-1, 1, 1, 1) ** 2)

    def all_classes(self, z, sigma):
        return self(z, sigma)[:, None]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_rates_that_are_known(norm):
    x = draw((3, *SHAPE), 0)
    ones = torch.ones(4, 3).double()
    assert torch.allclose(compression_rate(lambda x: x, x, norm=norm, eps=0.1, draws=4), ones)
    assert torch.allclose(compression_rate(Drift(), x, norm=norm, eps=0.1, draws=4), ones)  # the noise is common
    assert not compression_rate(lambda x: 0 * x + 0.5, x, norm=norm, eps=0.1, draws=4).any()
    gauss = Purify(GaussianDenoiser(), 0.2, 3, noise="fresh")
    share = gauss.denoiser.s**2 / (gauss.denoiser.s**2 + gauss.sigma**2)
    assert torch.allclose(compression_rate(gauss, x, norm=norm, eps=0.1, draws=4), share * ones, rtol=1e-6)
    assert torch.allclose(jacobian_rms(gauss, x, 4), share * ones[0], rtol=1e-6)
    assert gauss.calls == 0


@given(seeds)
def test_rates_of_a_linear_map(seed):
    a, x, other = draw((12, 12), seed) - 0.5, draw((3, *SHAPE), seed + 1), draw((3, *SHAPE), seed + 2)
    change = (other - x).flatten(1)
    exact = (change @ a.T).norm(dim=1) / change.norm(dim=1)
    assert torch.allclose(compression_rate(Map(a), x, other, draws=2), exact.expand(2, 3))
    values = torch.linalg.svdvals(a)
    assert float(compression_rate(Map(a), x, eps=0.1).max()) <= float(values[0]) * (1 + 1e-9)
    top, direction = top_singular_value(Map(a), x, 60)
    assert torch.allclose(top, values[0].expand(3), rtol=2e-2) and bool((top <= values[0] * (1 + 1e-9)).all())
    assert torch.allclose((direction.flatten(1) @ a.T).norm(dim=1), top, rtol=1e-6)
    assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(3).double())


def test_rms_of_singular_values():
    a, x = draw((12, 12), 1) - 0.5, draw((1, *SHAPE), 1)
    assert abs(float(jacobian_rms(Map(a), x, 1000)) / float(a.norm() / math.sqrt(12)) - 1) < 0.05
    assert math.isclose(float(jacobian_rms(Map(torch.eye(12).double() * 0.3), x, 1)), 0.3, rel_tol=1e-9)


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_jacobians_are_taken_inside_the_cube(edge):
    seen = []

    def process(x):
        seen.append((float(x.detach().min()), float(x.detach().max())))
        return x.pow(2)

    x = torch.full((2, *SHAPE), edge).double()
    rms, (top, _) = jacobian_rms(process, x, 3, 1e-3), top_singular_value(process, x, 3, 1e-3)
    assert torch.allclose(rms, torch.full((2,), 2 * edge).double(), atol=3e-3) and torch.allclose(top, rms, atol=3e-3)
    assert min(low for low, _ in seen) >= 0 and max(high for _, high in seen) <= 1


def test_compression_of_an_image_does_not_depend_on_its_batch():
    process, x = Map(draw((12, 12), 1)), draw((3, *SHAPE), 1)
    assert torch.equal(compression_rate(process, x)[:, 1:2], compression_rate(process, x[1:2]))
    assert torch.equal(jacobian_rms(process, x)[1:2], jacobian_rms(process, x[1:2]))
    assert torch.equal(top_singular_value(process, x)[0][1:2], top_singular_value(process, x[1:2])[0])


# ------------------------------------------------------------------------------------------------- errors

X = draw((2, *SHAPE))
Y = labels(X)
MODEL = quadratic(0)
BAD = {
    "repeats": (lambda: repeated_gradients(MODEL, X, Y, 0), "repeats must be positive, got 0"),
    "eot": (lambda: repeated_gradients(MODEL, X, Y, 2, 0), "eot must be positive, got 0"),
    "pair": (lambda: gradient_cosine(X[None]), "a pair needs at least two gradients, got 1"),
    "signal": (lambda: signal_to_noise(X[None]), "a pair needs at least two gradients, got 1"),
    "groups": (lambda: eot_cosine(torch.stack([X] * 5), (2, 3)), "EOT 3 needs at least 6 gradients for two groups, got 5"),
    "group": (lambda: eot_cosine(torch.stack([X] * 5), (0,)), "EOT 0 needs at least 2 gradients for two groups, got 5"),
    "norm": (lambda: linearised_distance(MODEL, X, Y, "L1"), "unknown norm 'L1'; there are Linf, L2"),
    "steps": (lambda: ascent_path(MODEL, X, Y, steps=0), "steps must be at least 1, got 0"),
    "draws": (lambda: gradient_lipschitz(MODEL, X, Y, draws=0), "draws and eps must be positive, got 0 and 0.03"),
    "eps": (lambda: compression_rate(lambda x: x, X, eps=0.0), "draws and eps must be positive, got 8 and 0"),
    "radius": (lambda: gradient_lipschitz(MODEL, X, Y, eps=-1.0), "eps must not be negative, got -1"),
    "losses": (lambda: loss_noise(MODEL, X, X, Y, 1), "a standard deviation needs at least two draws, got 1"),
    "shapes": (lambda: loss_noise(MODEL, X, X[:1], Y), "the points have different shapes"),
    "iterations": (lambda: top_singular_value(lambda x: x, X, 0), "iterations must be at least 1, got 0"),
    "detached": (lambda: top_singular_value(lambda x: x.detach(), X), "no gradient reaches the images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
