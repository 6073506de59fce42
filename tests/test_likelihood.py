"""Likelihood maximisation against its formula, torch's optimisers and finite differences, and the promises of RDC."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import Counting, draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack.norms import norm_of
from rdc.autograd import BPDA, value_and_gradient
from rdc.certify import APNDC, Carlini
from rdc.classify import CNN, RDC, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.defend.likelihood import READINGS, midpoints
from rdc.defend.lm_updates import METHODS, into_ball, memory_size, update
from rdc.defend.preprocessed import one_denoising_step
from rdc.denoise import OptimalDenoiser
from rdc.randomness import known_noise, randomness
from rdc.rng import generator, randn
from rdc.runs.fingerprint import describe
from rdc.schedule import Levels, levels

X, Y = mixture(1, (4, 3, 5))
OPTIMAL = OptimalDenoiser(X, Y)
FEW = levels("elbo", 3, sigma_min=0.3, sigma_max=3.0)
INSIDE = 0.25 + 0.5 * draw((3, 1, 2, 3), 2)  # away from the walls
seeds = st.integers(0, 10**6)
methods = st.sampled_from(METHODS)


def lm(method="sign", denoiser=OPTIMAL, **options):
    return LikelihoodMaximization(denoiser, method, **options)


def jacobian(f, image):
    """Of one image, ``(D, D)``."""
    found = torch.autograd.functional.jacobian(lambda p: f(p[None])[0], image)
    return found.reshape(image.numel(), image.numel())


def inner_gradient(model, z, n, call=0):
    """Gradient in model units of the loss of step ``n``, from the streams of the noise, one evaluation after the other."""
    key, z = (model.seed, "likelihood", call, n), z.detach().requires_grad_()
    total = torch.zeros((), dtype=z.dtype)
    label = None if model.label is None else torch.full((len(z),), model.label)
    if model.timesteps == "all":
        found = model.sigma if isinstance(model.sigma, Levels) else midpoints(*model.sigma, model.count)
        draws = [(float(s), float(w), (*key, t)) for t, (s, w) in enumerate(zip(found.sigma, found.weight, strict=True))]
    elif isinstance(model.sigma, Levels):
        t = int(torch.randint(len(model.sigma), (), generator=generator(*key, "level")))
        draws = [(float(model.sigma.sigma[t]), float(model.sigma.weight[t]), key)]
    else:
        u = float(torch.rand((), generator=generator(*key, "level"), dtype=torch.float64))
        draws = [(model.sigma[0] + (model.sigma[1] - model.sigma[0]) * u, 1.0, key)]
    for sigma, weight, stream in draws:
        estimate = model.denoiser(z + sigma * randn(tuple(z.shape[1:]), *stream, like=z), sigma, label)
        total = total + weight * (z - estimate).square().sum()
    (slope,) = torch.autograd.grad(total, z)
    return slope / z[0].numel() if model.method in ("adam", "rmsprop") else slope


def by_hand(model, x):
    """Algorithm 1 with a momentum, one image at a time, ball and walls by coordinates (Linf) or by scaling (L2)."""
    rows = []
    for image in x.split(1):
        z0 = 2 * image - 1
        z, m = z0.clone(), torch.zeros_like(z0)
        for n in range(model.steps):
            g = inner_gradient(model, z, n)
            m = model.momentum * m - g / (g.abs().mean() if model.method == "mean-l1" else g.abs().sum())
            z = z + model.step_size * (m.sign() if model.method == "sign" else m)
            z = within(model, z, z0)
        rows.append((z + 1) / 2)
    return torch.cat(rows)


def within(model, z, z0):
    if model.budget is not None and model.norm == "Linf":
        z = z0 + (z - z0).clamp(-2 * model.budget, 2 * model.budget)
    elif model.budget is not None:
        z = z0 + (z - z0) * min(1.0, 2 * model.budget / float((z - z0).norm()))
    return z.clamp(-1, 1)


def by_torch(model, x):
    """The same loss under torch's optimiser; an image at a time."""
    rows, kind = [], {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[model.method]
    for image in x.split(1):
        z0 = 2 * image - 1
        z = z0.clone().requires_grad_()
        optimiser = kind([z], lr=model.step_size)
        for n in range(model.steps):
            z.grad = inner_gradient(model, z, n)
            optimiser.step()
            z.data = within(model, z.data, z0)
        rows.append((z.detach() + 1) / 2)
    return torch.cat(rows)


# ------------------------------------------------------------------------------------------------- the value


@settings(max_examples=10)
@given(seeds, methods, st.sampled_from(["Linf", "L2"]), st.sampled_from([None, 0.02, 0.2]), st.sampled_from([None, 1]))
def test_it_is_the_algorithm(seed, method, norm, budget, label):
    options = {"momentum": 0.7, "timesteps": "all" if seed % 2 else "one", "sigma": FEW if seed % 3 else (0.3, 0.9), "count": 3}
    model = lm(method, budget=budget, norm=norm, step_size=0.05, steps=4, label=label, seed=seed, **options)
    x = draw((3, 1, 2, 3), seed)
    expected = (by_torch if method in ("adam", "rmsprop") else by_hand)(model, x)
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["adam", "rmsprop"])
def test_single_precision_is_torchs_optimiser_too(method):
    x = draw((2, 1, 8, 8), 3, torch.float32)
    model = lm(method, tiny_network(), budget=None, steps=5)
    assert torch.allclose(model(x), by_torch(model, x), rtol=0, atol=2e-5)
    assert float((model(x) - x).abs().max()) > 0.04


@settings(max_examples=15)
@given(seeds, methods, st.sampled_from(["Linf", "L2"]), st.sampled_from([0.0, 0.01, 0.1, 0.7]), st.booleans())
def test_the_result_is_in_the_ball_and_in_range(seed, method, norm, budget, single):
    x = draw((3, 1, 2, 3), seed, torch.float32 if single else torch.float64).mul(1.4).sub(0.2).clamp(0, 1)
    found = lm(method, OptimalDenoiser(X.to(x), Y), budget=budget, norm=norm, step_size=0.3, seed=seed)(x)
    assert bool(((found >= 0) & (found <= 1)).all()) and found.dtype == x.dtype
    assert float(norm_of(found - x, norm).max()) <= budget + (1e-6 if single else 1e-14)


def images_of_cifar_size():
    x = 0.3 + 0.4 * draw((6, 3, 32, 32), 5)
    return OptimalDenoiser(draw((20, 3, 32, 32), 6), torch.arange(20) % 2), x


def test_algorithm_1_to_the_letter_moves_an_image_by_at_most_one_and_a_half_in_l1():
    """gamma (1 + ... + N) = 1.5 for gamma = 0.1 in image units, N = 5, mu = 1: 0.125/255 a pixel of 3072."""
    denoiser, x = images_of_cifar_size()
    for reading in (READINGS["printed"], {**READINGS["printed"], "sigma": (0.4, 0.6)}):
        assert reading["step_size"] == 2 * 0.1
        moved = LikelihoodMaximization(denoiser, **reading)(x) - x
        assert float(norm_of(moved, "L1").max()) <= 1.5 + 1e-9 and float(norm_of(moved, "L1").min()) > 0.1
        assert float(moved.abs().max()) < 8 / 255  # the budget never acts
    same = lm("literal", denoiser, step_size=0.2, sigma=(0.5, 0.5), steps=1)(x) - x
    assert torch.allclose(norm_of(same, "L1"), torch.full((6,), 0.1, dtype=x.dtype))  # one step is gamma in L1


def test_the_released_reading_moves_every_pixel_in_its_first_step():
    denoiser, x = images_of_cifar_size()
    one = LikelihoodMaximization(denoiser, **{**READINGS["released"], "steps": 1})
    g, moved = inner_gradient(one, 2 * x - 1, 0), 255 * (one(x) - x)
    assert torch.allclose(moved, -12.75 * g / (g.abs() + 1e-8), rtol=0, atol=1e-6)
    plain = g.abs() > 1e-5
    assert float((moved.abs() - 12.75)[plain].abs().max()) < 0.02 and float(plain.double().mean()) > 0.9
    assert float(norm_of(LikelihoodMaximization(denoiser, **READINGS["released"])(x) - x, "Linf").min()) > 12.75 / 255


def transcribed(denoiser, x, steps, sigmas, noises):
    """The released procedure, in plain torch: Adam on the mean loss in [-1, 1], nothing clamped before the end."""
    z = (2 * x - 1).clone().requires_grad_()
    adam, path = torch.optim.Adam([z], lr=0.1), []
    for n in range(steps):
        adam.zero_grad()
        ((denoiser(z + sigmas[n] * noises[n], sigmas[n].expand(len(z)), None) - z) ** 2).mean(dim=(1, 2, 3)).sum().backward()
        adam.step()
        path.append((z.detach().clamp(-1, 1) + 1) / 2)
    return path


@pytest.mark.parametrize("share", ["batch", "image"])
def test_the_released_reading_is_the_released_procedure(share):
    """An independent transcription with the same noise; the reading that clamps each step leaves it at the second step."""
    denoiser, x = OptimalDenoiser(draw((20, 1, 6, 6), 6), torch.arange(20) % 2), draw((3, 1, 6, 6), 5)
    lm = LikelihoodMaximization(denoiser, **{**READINGS["released"], "share": share, "seed": 7})
    draws = [next(iter(lm._draws(2 * x - 1, 0, (0, 1, 2) if share == "image" else None, n))) for n in range(5)]
    sigmas = [s.reshape(-1, 1, 1, 1) if s.ndim else s for s, _, _ in draws]
    assert all(bool((0.4 <= s).all() & (s <= 0.6).all()) for s in sigmas)
    if share == "image":
        assert len({float(e[i, 0, 0, 0]) for _, _, e in draws for i in range(3)}) == 15
        alone = lm(x[2:], torch.tensor([2]))
        assert torch.allclose(alone, lm(x)[2:], rtol=0, atol=1e-12)

    def plain(steps):
        if share == "batch":
            return transcribed(denoiser, x, steps, sigmas, [e for _, _, e in draws])
        each = [
            transcribed(denoiser, x[i : i + 1], steps, [s[i] for s, _, _ in draws], [e[i] for _, _, e in draws]) for i in range(3)
        ]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]

    for steps in range(1, 6):
        found = LikelihoodMaximization(denoiser, **{**READINGS["released"], "share": share, "seed": 7, "steps": steps})(x)
        assert float((found - plain(steps)[-1]).abs().max()) < 1e-6
        clamped = LikelihoodMaximization(denoiser, **{**READINGS["clamped"], "share": share, "seed": 7, "steps": steps})(x)
        gap = float((found - clamped).abs().max())
        assert gap < 1e-12 if steps == 1 else gap > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_without_walls_the_gradient_is_exact_too(method):
    denoiser, x = OptimalDenoiser(draw((8, 1, 2, 3), 6), torch.arange(8) % 2), 0.05 + 0.9 * draw((1, 1, 2, 3), 9)
    model = lm(method, denoiser, steps=3, step_size=0.02, budget=None, clip="end", sigma=(0.5, 0.6))
    point = x.clone().requires_grad_()
    weight = draw((1, 1, 2, 3), 11)
    (slope,) = torch.autograd.grad((model(point) * weight).sum(), point)
    for i in range(6):
        step = torch.zeros(6, dtype=x.dtype)
        step[i] = 1e-6
        step = step.reshape(1, 1, 2, 3)
        numeric = float(((model(x + step) - model(x - step)) * weight).sum() / 2e-6)
        assert math.isclose(numeric, float(slope.flatten()[i]), rel_tol=1e-4, abs_tol=1e-6)


def test_an_answer_that_was_not_trained_is_not_asked_for():
    conditional = tiny_network()
    conditional.config = replace(conditional.config, unlabelled=False)
    z = draw((1, 1, 8, 8), dtype=torch.float32)
    for make in (lambda: conditional(z, 1.0, None), lambda: LikelihoodMaximization(conditional), lambda: Purify(conditional),
                 lambda: Carlini(conditional, conditional, 0.25), lambda: diffusion_loss(conditional, levels("elbo", 2)),
                 lambda: APNDC(conditional, 0.25)):  # fmt: skip
        with pytest.raises(ValueError, match="labels only"):
            make()
    assert conditional(z, 1.0, torch.tensor([1])).shape == z.shape
    with pytest.raises(ValueError, match="labels only"):
        conditional(z.repeat(2, 1, 1, 1), 1.0, torch.tensor([1, -1]))
    assert APNDC(conditional, 0.25, unconditional=tiny_network(1)).num_classes == 3
    none = tiny_network(num_classes=0)
    assert none.unlabelled and none(z, 1.0).shape == z.shape
    with pytest.raises(ValueError, match="unconditional"):
        none(z, 1.0, torch.tensor([0]))


@pytest.mark.parametrize("sigma", [(0.4, 0.6), levels("elbo", 5)])
def test_an_image_with_noise_of_its_own_does_not_depend_on_its_batch(sigma):
    denoiser, x = OptimalDenoiser(draw((8, 1, 2, 3), 6), torch.arange(8) % 2), draw((5, 1, 2, 3), 9)
    index, kept = torch.tensor([4, 0, 7, 2, 9]), range(0, 5, 2)
    model = LikelihoodMaximization(denoiser, sigma=sigma, share="image")
    whole, part = model(x, index), model(x[kept], index[kept])
    assert torch.equal(whole[kept], part)
    assert not torch.allclose(model(x), whole), "the place in the batch is another identity"
    assert {key[1] for key in model._kept} == {(0, 1, 2, 3, 4)}, "the noise of one batch is kept"
    defence = RDC(model, DiffusionClassifier(denoiser, levels("elbo", 3)))
    assert torch.equal(defence(x, index)[kept], defence(x[kept], index[kept]))


def test_default_steps():
    assert lm("sign", steps=4, budget=0.1).step_size == 2 * 0.1 / 4
    assert {lm(method).step_size for method in METHODS if method != "sign"} == {0.1}
    moved = lm("sign", steps=1, budget=0.02)(INSIDE) - INSIDE
    assert torch.allclose(moved.abs(), torch.tensor(0.02).double())


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_the_loss(method):
    """Normalised updates do not see it; Adam and RMSprop see it against 1e-8."""
    heavy = Levels(FEW.sigma, 64 * FEW.weight)
    a, b = (lm(method, sigma=found, step_size=0.02, budget=None)(INSIDE) for found in (FEW, heavy))
    assert torch.allclose(a, b, rtol=0, atol=1e-5 if method in ("adam", "rmsprop") else 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_step_lowers_the_loss_it_descends(method):
    model = lm(method, steps=1, step_size=1e-4, timesteps="all", count=4)
    x = draw((8, 1, 2, 3), 7).clamp(0.01, 0.99)
    after = model(x)
    assert bool((model.loss(after) < model.loss(x)).all())
    five = lm(method, steps=5, step_size=1e-3, timesteps="all", count=6)
    before, end = (sum(five.loss(p, n) for n in range(5)) for p in (x, five(x)))
    assert bool((end < before).all())
    density = [OPTIMAL.log_density(2 * p - 1, 0.5) for p in (x, five(x))]
    assert all(bool(d.isfinite().all()) for d in density) and not torch.equal(*density)


def test_an_image_at_a_fixed_point_stays():
    """One point of data: D = z_1 everywhere, the loss is |z - z_1|^2, its gradient 2 (z - z_1)."""
    denoiser = OptimalDenoiser(X[:1], torch.zeros(1, dtype=torch.int64))
    for method in METHODS:
        model = lm(method, denoiser, step_size=1e-3)
        point = X[:1].clone().requires_grad_()
        found = model(point)
        (slope,) = torch.autograd.grad(found.sum(), point)
        assert torch.allclose(found, X[:1], atol=1e-4) and bool(slope.isfinite().all())
    model, x = lm("mean-l1", denoiser, steps=1, step_size=0.01, budget=None), draw((2, 1, 2, 3), 4)
    change = -(x - X[:1]) / (x - X[:1]).abs().flatten(1).mean(1).reshape(-1, 1, 1, 1) * 0.005
    assert torch.allclose(model(x), (x + change).clamp(0, 1), atol=1e-12)
    assert torch.allclose(model.loss(x), 4 * (x - X[:1]).square().flatten(1).sum(1))


# ------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("timesteps", ["one", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_the_exact_gradient_equals_finite_differences(method, timesteps):
    model = lm(method, steps=3, step_size=0.02, budget=None, timesteps=timesteps, count=2, momentum=0.5)
    model = RDC(model, DiffusionClassifier(OPTIMAL, FEW), "exact")
    assert torch.autograd.gradcheck(model, (INSIDE[:1].clone().requires_grad_(),), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["literal", "mean-l1", "adam"])
def test_finite_differences_of_a_network(method):
    network, v = tiny_network().double(), draw((1, 1, 8, 8), 9)
    model = lm(method, network, steps=3, step_size=0.5 if method == "literal" else 0.02, norm="L2", budget=0.2)
    x, direction = 0.25 + 0.5 * draw((1, 1, 8, 8), 3), draw((1, 1, 8, 8), 4) - 0.5
    found = (value_and_gradient(lambda p: (model(p) * v).flatten(1).sum(1), x)[1] * direction).sum()
    h = 1e-5
    with torch.no_grad():
        difference = ((model(x + h * direction) - model(x - h * direction)) * v).sum() / (2 * h)
    assert torch.allclose(found, difference, rtol=1e-4)
    assert not torch.allclose(found, (v * direction).sum(), rtol=1e-2)  # nor is it BPDA's


@pytest.mark.parametrize("width", [0.0, 0.5])
@pytest.mark.parametrize("timesteps", ["one", "all"])
def test_the_gradient_of_one_released_step_is_the_identity_where_the_inner_gradient_is_large(timesteps, width):
    """In closed form I - lr eps / (|g| + eps)^2 H, with gradient g and Hessian H of the loss; a width adds to eps."""
    exact = lm("adam", steps=1, budget=None, timesteps=timesteps, count=3)
    model = exact.smoothed(width)
    for image in INSIDE:
        loss = lambda z: model.loss((z[None] + 1) / 2)[0]  # noqa: E731
        z = 2 * image - 1
        g = inner_gradient(model, z[None], 0)[0].flatten()
        h = torch.autograd.functional.hessian(loss, z).reshape(6, 6)
        eps = 1e-8 + width * g.abs().mean()
        expected = torch.eye(6).double() - 0.1 * eps / (g.abs() + eps)[:, None] ** 2 * h
        found = jacobian(model, image)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9) and not torch.equal(found, torch.eye(6).double())
        found, far = jacobian(model.smoothed(0.0), image), g.abs() > 0.05
        assert torch.allclose(found[far], torch.eye(6).double()[far], rtol=0, atol=1e-6) and bool(far.any())


CASES = {  # method, steps, step size, budget: whether the Jacobian is the identity
    "sign": ("sign", 5, None, 8 / 255, True),
    "sign without a ball": ("sign", 5, 0.05, None, True),
    "rmsprop, one step": ("rmsprop", 1, 1e-4, None, True),
    "adam, longer than the ball": ("adam", 1, 0.1, 8 / 255, True),
    "mean-l1, longer than the ball": ("mean-l1", 1, 10.0, 8 / 255, True),
    "adam": ("adam", 5, 0.02, None, False),
    "rmsprop": ("rmsprop", 5, 1e-3, None, False),
    "literal": ("literal", 1, 0.1, None, False),
    "mean-l1": ("mean-l1", 1, 0.02, None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_where_the_exact_gradient_is_bpda(case):
    method, steps, step_size, budget, identity = CASES[case]
    model, v = lm(method, steps=steps, step_size=step_size, budget=budget), draw((3, 1, 2, 3), 8)
    classifier = DiffusionClassifier(OPTIMAL, FEW)
    exact, bpda = (value_and_gradient(lambda p, g=g: RDC(model, classifier, g)(p)[:, 0], INSIDE)[1] for g in ("exact", "bpda"))
    error = max(float((jacobian(model, image) - torch.eye(6)).abs().max()) for image in INSIDE)
    product = value_and_gradient(lambda p: (model(p) * v).flatten(1).sum(1), INSIDE)[1]
    if identity:
        assert error < 1e-4 and torch.allclose(exact, bpda, rtol=1e-4, atol=1e-4) and torch.allclose(product, v, atol=1e-4)
        assert method != "sign" or (error == 0 and torch.allclose(product, v, rtol=0, atol=1e-15))
    else:
        assert error > 0.01 and float((exact - bpda).norm() / bpda.norm()) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_a_smoothed_gradient_changes_no_value(method):
    exact, v = lm(method, steps=3, step_size=0.01, budget=None), draw((3, 1, 2, 3), 8)
    slopes = []
    for width in (0.0, 0.3, 30.0):
        model, x = exact.smoothed(width), INSIDE.clone().requires_grad_()
        assert torch.equal(model(x).detach(), exact(INSIDE)) and torch.equal(model(INSIDE), exact(INSIDE))
        slopes.append(torch.autograd.grad((model(x) * v).sum(), x)[0])
    unchanged = method in ("literal", "mean-l1")
    assert all(torch.allclose(slopes[0], slope, rtol=1e-9, atol=1e-12) is unchanged for slope in slopes[1:])
    assert bool(slopes[1].isfinite().all()) and exact.width == 0


def test_a_smoothed_sign_is_a_gradient_step_in_the_limit():
    """One step of -g / (|g| + w mean |g|) with the mean held constant, by hand."""
    model, image = lm("sign", steps=1, step_size=0.05, budget=None).smoothed(2.0), INSIDE[0]
    z = 2 * image - 1
    g = inner_gradient(model, z[None], 0)[0].flatten()
    m, total = g / g.abs().sum(), g.abs().sum()
    h = torch.autograd.functional.hessian(lambda z: model.loss((z[None] + 1) / 2)[0], z).reshape(6, 6)
    normalised = h / total - g[:, None] * (g.sign() @ h)[None] / total**2  # of m in z
    eps = 2 * m.abs().mean()
    expected = torch.eye(6).double() - 0.05 * (eps / (m.abs() + eps) ** 2)[:, None] * normalised
    assert torch.allclose(jacobian(model, image), expected, rtol=0, atol=1e-9)


def test_a_wall_stops_the_gradient_and_a_ball_does_not():
    z0 = torch.tensor([-1.0, 0.0, 0.99, 0.5]).reshape(1, 1, 2, 2).requires_grad_()
    far = torch.tensor([-0.1, 0.3, 0.3, 0.01]).reshape(1, 1, 2, 2)
    found = into_ball(z0 + far, z0, 0.1, "Linf").clamp(-1, 1)
    assert torch.allclose(found, torch.tensor([-1.0, 0.2, 1.0, 0.51]).reshape(1, 1, 2, 2))
    assert torch.equal(torch.autograd.grad(found.sum(), z0)[0].flatten(), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    with torch.no_grad():
        assert torch.allclose(into_ball(0.9 * far, torch.zeros_like(far), 0.1, "L2"), far * (0.2 / far.norm()))
        assert torch.equal(into_ball(far, torch.zeros_like(far), None, "L2"), far)


@given(seeds, methods, st.integers(0, 3))
def test_updates_at_gradients_that_are_zero(seed, method, zeros):
    """Pixels outside the field of view: value that of torch, derivative in the gradient the limit, 1 / eps for Adam."""
    g = draw((1, 1, 1, 4), seed) + 0.1
    g[..., :zeros] = 0
    memory = tuple(torch.zeros_like(g) for _ in range(memory_size(method)))
    found = jacobian(lambda p: update(method, p, memory, 0)[0], g[0])
    assert bool(found.isfinite().all())
    if method in ("adam", "rmsprop"):
        slope = torch.zeros(4, dtype=g.dtype)
        slope[zeros:] = -1e-8 / (g.flatten()[zeros:] * (1 if method == "adam" else 0.1) + 1e-8) ** 2
        slope[:zeros] = -1e8
        assert torch.allclose(found, torch.diag(slope), rtol=1e-6, atol=1e-5)
    still = update(method, torch.zeros_like(g), memory, 0)[0]
    assert not still.any()


@pytest.mark.parametrize("method", ["adam", "rmsprop"])
def test_images_with_no_gradient_at_all_in_single_precision(method):
    class Still(nn.Module):
        """D depends on the left half alone and is right about the rest: half of the gradients are exactly zero."""

        one_pass, num_classes, shape = True, 2, (1, 2, 4)

        def forward(self, z, sigma, label=None):
            return torch.cat([z[..., :2].tanh() * 0.3, torch.zeros_like(z[..., 2:])], dim=-1)

        def all_classes(self, z, sigma):
            return self(z, sigma)[:, None].expand(-1, 2, -1, -1, -1)

    denoiser, x = Still(), torch.full((1, 1, 2, 4), 0.5)
    slope = value_and_gradient(lambda p: lm(method, denoiser, step_size=1e-3)(p).flatten(1).sum(1), x)[1]
    assert bool(slope.isfinite().all())


# ------------------------------------------------------------------------------------------------- memory


class Kept:
    """A tensor that autograd keeps; ``alive`` counts the bytes, ``most`` their maximum."""

    alive, most = 0, 0

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # with its graph, a saved output would keep itself alive
        self.size = tensor.numel() * tensor.element_size()
        Kept.alive += self.size
        Kept.most = max(Kept.most, Kept.alive)

    def __del__(self):
        Kept.alive -= self.size


def kept(model, x, backward=True):
    """Bytes kept after the forward pass, and the most at any time of forward and backward pass."""
    Kept.alive = Kept.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda k: k.tensor):
        out = model(x)
        left = Kept.alive
        if backward:
            out.sum().backward()
    return left, Kept.most


@pytest.mark.parametrize("method", ["sign", "adam"])
def test_a_further_step_costs_images_and_a_further_level_nothing(method):
    network, x = tiny_network(), draw((2, 1, 8, 8), 1, torch.float32)
    image = x.numel() * 4
    found = {n: kept(lm(method, network, steps=n, budget=None, step_size=0.01), x.clone().requires_grad_()) for n in (1, 4)}
    assert found[4][0] - found[1][0] == 3 * (2 + memory_size(method)) * image
    assert found[4][1] - found[1][1] <= 3 * (2 + memory_size(method)) * image and found[1][1] > 100 * image
    some, many = (
        kept(lm(method, network, steps=1, timesteps="all", count=n, budget=None, step_size=0.01), x.clone().requires_grad_())
        for n in (2, 5)
    )
    assert many[0] == some[0] and many[1] <= some[1] + 12 * image and some[1] < 1.2 * found[1][1]


def test_a_prediction_needs_no_second_derivative_and_keeps_nothing():
    network, x = tiny_network(), draw((2, 1, 8, 8), 1, torch.float32)
    with torch.no_grad():
        one, five = (kept(lm("adam", network, steps=n), x, backward=False) for n in (1, 5))
    exact = kept(lm("adam", network, steps=1), x.clone().requires_grad_(), backward=False)
    assert one[0] == five[0] == 0 and five[1] <= one[1] and exact[1] > 1.5 * one[1]
    assert not lm("adam", network)(x).requires_grad
    through = kept(RDC(lm("adam", network), nn.Flatten(), "bpda"), x.clone().requires_grad_(), backward=False)
    assert through[1] <= one[1]


@pytest.mark.parametrize("timesteps", ["one", "all"])
def test_evaluations_are_what_is_evaluated(timesteps):
    counting = Counting(OPTIMAL)
    for sigma in (FEW, (0.3, 0.4)):
        model = lm(denoiser=counting, sigma=sigma, timesteps=timesteps, steps=4, count=5)
        counting.reset()
        with torch.no_grad():
            model(INSIDE)
        assert counting.evaluations == counting.with_grad == 3 * model.evaluations
        assert model.evaluations == 4 * ((3 if sigma is FEW else 5) if timesteps == "all" else 1)


# ------------------------------------------------------------------------------------------------- noise and batches


@pytest.mark.parametrize("reading", READINGS)
def test_readings_run_and_an_image_does_not_depend_on_its_batch(reading):
    model = LikelihoodMaximization(OPTIMAL, **READINGS[reading]).frozen(3)
    x = draw((3, 1, 2, 3), 11)
    state = torch.get_rng_state()
    together = model(x)
    assert torch.equal(model(x), together) and torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([model(image) for image in x.split(1)])
    assert torch.allclose(alone, together, rtol=0, atol=1e-10)
    assert torch.allclose(model(x.flip(0)), together.flip(0), rtol=0, atol=1e-10)
    again = LikelihoodMaximization(OPTIMAL, **{**READINGS[reading], "noise": "fixed", "seed": 3})
    assert torch.equal(again(x), together) and not torch.equal(model.frozen(4)(x), together)


def test_fixed_and_fresh_noise():
    x = INSIDE
    fixed, fresh = lm("adam", budget=None), lm("adam", budget=None, noise="fresh")
    assert torch.equal(fixed(x), fixed(x)) and not torch.equal(fresh(x), fresh(x))
    other = lm("adam", budget=None, noise="fresh")
    assert torch.equal(other(x), other.frozen(0)(x)) is False  # call 1 is not the fixed noise
    fresh.calls = other.calls = 0
    assert torch.equal(fresh(x), other(x)) and torch.equal(fresh(x), other(x))  # a seed decides all calls
    assert torch.equal(fresh.frozen(0)(x), fixed(x)) and fresh.noise == "fresh" and fresh.calls == 2


def test_steps_have_noise_of_their_own():
    model = lm("literal", steps=3)
    sigmas = [float(next(model._draws(INSIDE, 0, None, n))[0]) for n in range(200)]
    assert len(set(sigmas)) == 200 and 0.4 <= min(sigmas) < 0.42 and 0.58 < max(sigmas) <= 0.6
    among = lm("literal", sigma=FEW)
    found = [float(next(among._draws(INSIDE, 0, None, n))[0]) for n in range(100)]
    assert {found.count(float(s)) > 20 for s in FEW.sigma} == {True}
    draws = itertools.chain(*(lm(timesteps="all", sigma=FEW)._draws(INSIDE, c, None, n) for c in (0, 1) for n in (0, 1)))
    assert len({float(eps.sum()) for _, _, eps in draws}) == 12


def test_all_levels_are_the_mean_of_single_ones():
    """A range of one level: the midpoints are that level, and the loss is the mean over draws of noise."""
    model = lm("literal", sigma=(0.5, 0.5), timesteps="all", count=3)
    z = 2 * INSIDE - 1
    each = [
        (z - OPTIMAL(z + 0.5 * randn((1, 2, 3), 0, "likelihood", 0, 0, t, like=z), 0.5)).square().flatten(1).sum(1)
        for t in range(3)
    ]
    assert torch.allclose(model.loss(INSIDE), sum(each) / 3)
    u = midpoints(0.4, 0.6, 2)
    assert torch.allclose(u.sigma, torch.tensor([0.45, 0.55]).double()) and torch.equal(
        u.weight, torch.tensor([0.5, 0.5]).double()
    )


# ------------------------------------------------------------------------------------------------- RDC


def defence(gradient="bpda", noise="fixed", denoiser=OPTIMAL, **options):
    inner = LikelihoodMaximization(denoiser, "adam", noise=noise, **options)
    surrogate = one_denoising_step(OPTIMAL, 0.5) if gradient == "denoise" else None
    return RDC(inner, DiffusionClassifier(denoiser, FEW, noise="fresh" if noise == "fresh" else "shared"), gradient, surrogate)


@pytest.mark.parametrize("gradient", ["bpda", "exact", "denoise"])
def test_the_value_of_every_gradient_is_the_defence(gradient):
    model, x = defence(gradient), draw((3, 1, 2, 3), 4)
    expected = model.classifier(model.lm(x))
    assert torch.equal(model(x), expected) and torch.equal(model(x.clone().requires_grad_()).detach(), expected)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_the_gradients_are_those_of_their_names():
    x = INSIDE
    at = defence().lm(x)
    slope = value_and_gradient(lambda p: defence().classifier(p)[:, 1], at)[1]
    found = {g: value_and_gradient(lambda p, g=g: defence(g)(p)[:, 1], x)[1] for g in ("bpda", "denoise", "exact")}
    assert torch.allclose(found["bpda"], slope)
    step = one_denoising_step(OPTIMAL, 0.5)
    pulled = value_and_gradient(lambda p: (BPDA(defence().lm, step)(p) * slope).flatten(1).sum(1), x)[1]
    assert torch.allclose(found["denoise"], pulled) and not torch.allclose(pulled, slope)
    assert bool(found["exact"].isfinite().all())


@pytest.mark.parametrize("gradient", ["bpda", "exact"])
def test_known_noise_freezes_both_parts(gradient):
    model, x = defence(gradient, "fresh"), draw((3, 1, 2, 3), 4)
    assert not torch.equal(model(x), model(x))
    frozen = known_noise(model, 5)
    assert isinstance(frozen, RDC) and frozen.gradient == gradient and frozen.lm.denoiser is OPTIMAL
    first = frozen(x)
    assert torch.equal(frozen(x), first) and not torch.equal(known_noise(model, 6)(x), first)
    assert torch.equal(first, model.classifier.frozen(5)(model.lm.frozen(5)(x)))
    assert model.lm.noise == "fresh" and model.classifier.noise == "fresh" and not torch.equal(model(x), model(x))


def test_an_evaluation_sees_the_randomness():
    x = draw((2, 1, 2, 3), 4)
    assert randomness(defence(), x) == (False, ()) and randomness(defence(noise="fresh").frozen(1), x) == (False, ())
    random, counters = randomness(defence(noise="fresh"), x)
    assert random and set(counters) == {"lm", "classifier"}
    a, b = describe(defence()), describe(RDC(lm("sign"), DiffusionClassifier(OPTIMAL, FEW)))
    assert a == describe(defence()) and a != b


def test_a_network_in_half_precision_and_a_classifier_without_noise():
    network, x = tiny_network().to(torch.bfloat16), draw((2, 1, 8, 8), 0, torch.float32)
    for gradient in ("bpda", "exact"):
        model = RDC(lm("adam", network, budget=None, steps=2), CNN((1, 8, 8), 10, width=4), gradient)
        slope = value_and_gradient(lambda p, m=model: m(p)[:, 0], x)[1]
        assert slope.dtype == torch.float32 and bool(slope.isfinite().all()) and slope.any()
        assert torch.equal(model.frozen(0)(x), model(x))


# ------------------------------------------------------------------------------------------------- errors

BAD = {
    "method": ({"method": "sgd"}, "unknown method 'sgd'; there are literal, sign"),
    "norm": ({"norm": "L1"}, "unknown norm 'L1'; there are Linf, L2"),
    "noise": ({"noise": "shared"}, "unknown noise 'shared'; there are fixed, fresh"),
    "timesteps": ({"timesteps": "two"}, "unknown timesteps 'two'; there are one, all"),
    "steps": ({"steps": 0}, "steps and count must be positive, momentum not negative; got 0"),
    "count": ({"count": 0}, "steps and count must be positive"),
    "momentum": ({"momentum": -0.1}, "momentum not negative; got 5, 16, -0.1"),
    "budget": ({"budget": -0.1}, "budget must not be negative"),
    "step size": ({"step_size": 0.0}, "step_size positive"),
    "nan": ({"step_size": float("nan")}, "step_size positive"),
    "sign": ({"budget": None}, "sign steps without a budget need a step_size"),
    "label": ({"label": 3}, "label must be None or lie in 0...2, got 3"),
    "sigma": ({"sigma": (0.6, 0.4)}, "range of sigma is empty or not positive"),
    "zero": ({"sigma": (0.0, 0.4)}, "range of sigma is empty or not positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_one_line(case):
    options, message = BAD[case]
    with pytest.raises(ValueError) as error:
        LikelihoodMaximization(OPTIMAL, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_images_and_gradients():
    with pytest.raises(ValueError, match="images must lie in"):
        lm()(INSIDE + 1)
    with pytest.raises(ValueError, match="the model takes"):
        lm()(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match="width must not be negative, got -1"):
        lm().smoothed(-1.0)
    with pytest.raises(ValueError, match="unknown gradient 'identity'"):
        RDC(lm(), nn.Flatten(), "identity")
    with pytest.raises(ValueError, match="a surrogate belongs to gradient='denoise'"):
        RDC(lm(), nn.Flatten(), "denoise")
