"""Purification by diffusion: its schedule, both samplers against exact posteriors, its gradient, its noise."""

import math

import pytest
import torch
from helpers import Counting, Linear, draw, mixture, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.classify import CNN, DiffPure, DiffusionClassifier, Purify
from rdc.defend.preprocessed import one_denoising_step
from rdc.defend.purify import SAMPLERS, vp_beta, vp_integral
from rdc.denoise.optimal import OptimalDenoiser
from rdc.randomness import known_noise
from rdc.rng import randn
from rdc.schedule import levels, sigma_to_alpha, vp_alphas

times = st.floats(0.01, 1)


def gradient(f, x, v=None):
    point = x.clone().requires_grad_()
    out = f(point)
    return torch.autograd.grad((out if v is None else out * v).sum(), point)[0]


class Pixelwise:
    """Every pixel is drawn by itself, in model units from the points ``mu`` (equally likely) plus ``N(0, s^2)``."""

    one_pass, num_classes = True, 1

    def __init__(self, mu, s, shape=(1, 100, 100)):
        self.mu, self.s, self.shape = torch.tensor(mu, dtype=torch.float64), s, shape

    def weights(self, z, variance):
        return (-((z[..., None] - self.mu) ** 2) / (2 * (self.s**2 + variance))).softmax(-1)

    def __call__(self, z, sigma, label=None):
        variance = torch.as_tensor(sigma, dtype=z.dtype).reshape(-1, 1, 1, 1, 1) ** 2
        means = (self.s**2 * z[..., None] + variance * self.mu) / (self.s**2 + variance)
        return (self.weights(z, variance) * means).sum(-1)

    def all_classes(self, z, sigma):
        return self(z, sigma)[:, None]


def flat(value, shape=(1, 100, 100)):
    return torch.full((1, *shape), value, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- the schedule


@given(times)
def test_the_integral_of_beta(t):
    assert math.isclose(t * (vp_beta(0.0) + vp_beta(t)) / 2, vp_integral(t))  # a trapezium: beta is linear
    sigma = Purify(Pixelwise([0.0], 1.0), t).sigma
    assert math.isclose(sigma_to_alpha(torch.tensor(sigma, dtype=torch.float64)).item(), math.exp(-vp_integral(t)), rel_tol=1e-9)


def test_noise_levels_of_the_published_times_and_the_discrete_chain():
    assert [round(Purify(Pixelwise([0.0], 1.0), t).sigma, 2) for t in (0.1, 0.125)] == [0.34, 0.43]
    assert abs(math.exp(-vp_integral(0.1)) - float(vp_alphas()[99])) < 2e-3  # 1000 steps of the linear schedule


# ------------------------------------------------------------------------------------------------- samplers


@given(times, st.integers(1, 6), st.integers(0, 10**6))
def test_data_of_one_image_returns_that_image(t, steps, seed):
    only = draw((1, 1, 2, 3), seed)
    purify = Purify(OptimalDenoiser(only, torch.zeros(1, dtype=torch.int64)), t, steps, seed=seed)
    x = draw((2, 1, 2, 3), seed + 1)
    assert torch.allclose(purify(x), only.expand(2, -1, -1, -1), atol=1e-14)
    assert gradient(purify, x).abs().max() < 1e-14  # and the image is forgotten


def test_euler_returns_the_only_image_up_to_its_last_noise():
    errors = []
    for steps in (100, 400, 1600):
        out = Purify(Pixelwise([0.1], 0.0), 0.1, steps, "sde")(flat(0.5))
        errors.append(float((2 * out - 1 - 0.1).square().mean().sqrt()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 4 * math.sqrt(0.1 * 0.1 / 1600)


@given(times, st.integers(1, 6), st.floats(0.05, 2), st.integers(0, 100))
def test_ancestral_sampling_of_gaussian_data_has_the_exact_posterior_mean_for_any_number_of_steps(t, steps, s, seed):
    """The slope in the image is that of ``E[z_0 | z_t]``, ``s^2 / (s^2 + sigma^2)``; the data are narrow: nothing is clipped."""
    purify = Purify(Pixelwise([0.0], 1e-3 * s, (1, 3, 3)), t, steps, seed=seed)
    slope = gradient(purify, flat(0.5, (1, 3, 3)))
    share = (1e-3 * s) ** 2 / ((1e-3 * s) ** 2 + purify.sigma**2)
    assert torch.allclose(slope, torch.full_like(slope, share), rtol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gaussian_data_is_sampled_from_its_posterior(sampler):
    """Given x, ``z_t / sqrt(alpha)`` is ``N(z, sigma^2)``, and what returns is normal with known mean and variance."""
    s, z = 0.2, 0.3
    purify = Purify(Pixelwise([0.0], s), 0.1, 400, sampler)
    out = 2 * purify(flat((z + 1) / 2)) - 1
    share = s**2 / (s**2 + purify.sigma**2)
    variance = (share * purify.sigma) ** 2 + share * purify.sigma**2
    assert abs(float(out.mean()) - share * z) < 4 * math.sqrt(variance / out.numel()) + 2e-3
    assert abs(float(out.var()) / variance - 1) < 0.07


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mixture_is_sampled_from_its_posterior(sampler):
    """The share of pixels that return to each point is ``E p(point | z_t)``, here by quadrature over the noise."""
    denoiser = Pixelwise([-0.5, 0.1, 0.4], 0.0)
    purify = Purify(denoiser, 0.1, 300, sampler, seed=1)
    out = 2 * purify(flat(0.6)) - 1
    found = torch.stack([((out - m).abs() < 0.12).double().mean() for m in denoiser.mu])
    eps = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    mass = (-(eps**2) / 2).exp() / (-(eps**2) / 2).exp().sum()
    exact = (denoiser.weights(0.2 + purify.sigma * eps, torch.tensor(purify.sigma**2)) * mass[:, None]).sum(0)
    assert exact.min() > 0.01 and torch.allclose(found, exact, atol=4 * 0.5 / 100)
    assert abs(float(out.mean()) - float(exact @ denoiser.mu)) < 4 * 0.4 / 100


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_short_times_change_nothing(sampler):
    denoiser, x = Pixelwise([-0.5, 0.4], 0.3), flat(0.6)
    errors = [float((Purify(denoiser, t, 5, sampler)(x) - x).abs().max()) for t in (1e-2, 1e-4, 1e-6, 1e-8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3


def test_one_ancestral_step_is_one_denoising():
    seen, x = Counting(tiny_network()), draw((2, 1, 8, 8), 0, torch.float32)
    purify = Purify(seen, 0.2, 1, seed=3)
    out = purify(x)
    assert torch.allclose(out, ((seen.inner(seen.inputs[0], purify.sigma) + 1) / 2).clamp(0, 1), atol=1e-6)
    noise = (seen.inputs[0] - (2 * x - 1)) / purify.sigma
    assert torch.allclose(noise[0], noise[1], atol=1e-5) and 0.7 < float(noise.std()) < 1.3  # the same for every image


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_gradient_is_exact(sampler):
    x, y = mixture(1)
    purify = Purify(OptimalDenoiser(0.3 + 0.4 * x, y), 0.2, 6, sampler, seed=2)
    point = draw((2, 1, 2, 3), 5).requires_grad_()
    out = purify(point)
    assert bool(((out > 0) & (out < 1)).any()) and gradient(purify, point.detach()).abs().max() > 1e-3
    assert torch.autograd.gradcheck(purify, (point,), eps=1e-6, atol=1e-7)


def test_a_gradient_runs_each_step_twice_and_keeps_one_image_a_step():
    inner, x = Counting(tiny_network()), draw((2, 1, 8, 8), 0, torch.float32)
    kept = []
    for steps in (2, 5):
        purify = Purify(inner, 0.2, steps)
        inner.reset()
        purify(x)
        assert inner.evaluations == 2 * purify.evaluations == 2 * steps
        inner.reset()
        out = purify(x.clone().requires_grad_())
        kept.append(sum(1 for _ in held(out.grad_fn)))
        torch.autograd.grad(out.sum(), leaf(out.grad_fn).variable)
        assert inner.evaluations == 2 * 2 * steps and inner.largest == 2
    assert kept[1] - kept[0] == 3


def held(node):
    """Tensors that the steps in a chain of operations hold."""
    while node is not None:
        yield from getattr(node, "saved_tensors", ())
        node = node.next_functions[0][0] if node.next_functions else None


def leaf(node):
    """The end of a chain of operations."""
    while node.next_functions:
        node = node.next_functions[0][0]
    return node


def test_the_defence_and_its_gradients_by_name():
    x, y = mixture(1)
    denoiser, point = OptimalDenoiser(x, y), draw((2, 1, 2, 3), 5)
    purify, classifier = Purify(denoiser, 0.2, 4, seed=2), Linear(draw((3, 1, 2, 3), 9))
    v, inner = draw((2, 3), 8), purify(point)
    at = gradient(classifier, inner, v)
    step = one_denoising_step(denoiser, purify.sigma)
    expected = {"exact": gradient(purify, point, at), "bpda": at, "denoise": gradient(step, point, at)}
    for name, slope in expected.items():
        model = DiffPure(purify, classifier, name)
        assert torch.equal(model(point), classifier(inner))
        assert torch.equal(model(point.clone().requires_grad_()), classifier(inner))
        assert torch.allclose(gradient(model, point, v), slope, atol=1e-13)
    other = DiffPure(purify, classifier, "denoise", lambda p: p**2)
    assert torch.allclose(gradient(other, point, v), 2 * point * at)


# ------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_has_an_owner(sampler):
    x = draw((3, 1, 8, 8), 0, torch.float32)
    before = torch.get_rng_state()
    fixed = Purify(tiny_network(), 0.2, 3, sampler, seed=4)
    fresh = Purify(fixed.denoiser, 0.2, 3, sampler, noise="fresh", seed=4)
    assert torch.equal(fixed(x), fixed(x)) and not torch.equal(fresh(x), fresh(x))
    assert not torch.equal(Purify(fixed.denoiser, 0.2, 3, sampler, seed=5)(x), fixed(x))
    assert torch.equal(known_noise(fresh, 4)(x), fixed(x)) and fresh.noise == "fresh" and fresh.calls == 2
    again = Purify(fixed.denoiser, 0.2, 3, sampler, noise="fresh", seed=4)
    third = Purify(fixed.denoiser, 0.2, 3, sampler, noise="fresh", seed=4)
    third.calls = 1
    assert not torch.equal(again(x), fixed(x)) and torch.equal(again(x), third(x))  # the second call of two objects
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_every_step_has_its_own_noise_and_fresh_noise_is_new_in_all_steps(noise, monkeypatch):
    keys = []
    monkeypatch.setattr("rdc.noise_source.randn", lambda shape, *key, like: keys.append(key) or randn(shape, *key, like=like))
    purify, x = Purify(tiny_network(), 0.2, 3, noise=noise), draw((1, 1, 8, 8), 0, torch.float32)
    purify(x)
    assert len(set(keys)) == len(keys) == 4
    purify(x)
    assert len(set(keys)) == len(keys) == (8 if noise == "fresh" else 4)
    gradient(purify, x)  # the backward pass has the noise of its own call, without drawing it again
    assert len(set(keys)) == len(keys) == (12 if noise == "fresh" else 4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    purify, x = Purify(Pixelwise([-0.5, 0.4], 0.2, (1, 3, 4)), 0.2, 5, sampler), draw((4, 1, 3, 4), 1)
    v = draw((4, 1, 3, 4), 2)
    whole, slope = purify(x), gradient(purify, x, v)
    for i in range(4):
        assert torch.equal(purify(x[i : i + 1])[0], whole[i])
        assert torch.equal(gradient(purify, x[i : i + 1], v[i : i + 1])[0], slope[i])


def test_freezing_a_defence_freezes_purification_and_classifier():
    denoiser, x = tiny_network(), draw((2, 1, 8, 8), 0, torch.float32)
    classifier = DiffusionClassifier(denoiser, levels("elbo", 3), noise="fresh")
    for name in ("exact", "bpda", "denoise"):
        model = DiffPure(Purify(denoiser, 0.1, 2, noise="fresh"), classifier, name)
        assert not torch.equal(model(x), model(x))
        frozen = known_noise(model, 7)
        assert isinstance(frozen, DiffPure) and frozen.gradient == name
        expected = classifier.frozen(7)(model.purify.frozen(7)(x))
        assert torch.equal(frozen(x), expected) and torch.equal(frozen(x), expected)
        assert model.purify.noise == "fresh" and not torch.equal(model(x), model(x))
        assert gradient(frozen, x).isfinite().all()
    network = CNN((1, 8, 8), 10, width=4).eval()
    frozen = DiffPure(Purify(denoiser, 0.1, 2, noise="fresh"), network).frozen(3)
    assert torch.equal(frozen(x), network(Purify(denoiser, 0.1, 2, seed=3)(x)))


# ------------------------------------------------------------------------------------------------- errors

BAD = {
    "t 0": ({"t": 0.0}, r"t must lie in \(0, 1\], got 0.0"),
    "t nan": ({"t": math.nan}, r"t must lie in \(0, 1\], got nan"),
    "steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "sampler": ({"sampler": "ddim"}, "unknown sampler 'ddim'; there are ddpm, sde"),
    "noise": ({"noise": "shared"}, "noise must be 'fixed' or 'fresh', got 'shared'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        Purify(Pixelwise([0.0], 1.0), **options)
    assert "\n" not in str(error.value)


def test_bad_images_and_gradients():
    purify = Purify(tiny_network())
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        purify(2 * torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="unknown gradient 'straight'; there are exact, bpda, denoise"):
        DiffPure(purify, nn.Flatten(), "straight")
    with pytest.raises(ValueError, match="a surrogate belongs to gradient='denoise'"):
        DiffPure(purify, nn.Flatten(), "exact", lambda x: x)
