"""Gradients by name: each equals the vector-Jacobian product it stands for, at the memory that is promised."""

import pytest
import torch
from helpers import draw, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.autograd import BPDA, iterate, value_and_gradient
from rdc.classify import CNN, DiffusionClassifier
from rdc.defend.preprocessed import GRADIENTS, Preprocessed, one_denoising_step
from rdc.randomness import EOT, known_noise
from rdc.schedule import levels

SHAPE = (1, 3, 4)
seeds = st.integers(0, 10**6)


def matrix(seed, rows=12):
    return draw((rows, 12), seed) - 0.5


def quantise(x):
    return (4 * x).round() / 4


def smooth(x):
    return torch.tanh(x) ** 2 + x.flip(3)


def product(f, x, v):
    """``v J_f(x)`` for each image, from the whole Jacobian."""
    rows = []
    for image, vector in zip(x, v, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda p: f(p[None])[0], image)
        rows.append(torch.tensordot(vector, jacobian, dims=vector.ndim))
    return torch.stack(rows)


def gradient(f, x, v):
    point = x.clone().requires_grad_()
    return torch.autograd.grad((f(point) * v).sum(), point)[0]


# ------------------------------------------------------------------------------------------------- value and gradient


@given(seeds, st.integers(1, 4))
def test_value_and_gradient_of_a_quadratic(seed, eot):
    x, a = draw((3, *SHAPE), seed), matrix(seed + 1)
    value, slope = value_and_gradient(lambda p: (p.flatten(1) @ a.T).square().sum(1), x, eot)
    z = x.flatten(1)
    assert torch.allclose(value, torch.einsum("ni,ij,nj->n", z, a.T @ a, z))
    assert torch.allclose(slope.flatten(1), 2 * z @ a.T @ a) and not x.requires_grad and not value.requires_grad


def test_value_and_gradient_averages_the_calls():
    factors = iter([1.0, 2.0, 6.0])
    x = draw((2, *SHAPE), 0)
    value, slope = value_and_gradient(lambda p: next(factors) * p.flatten(1).sum(1), x, 3)
    assert torch.allclose(value, 3 * x.flatten(1).sum(1)) and torch.allclose(slope, torch.full_like(x, 3))


def test_value_and_gradient_works_where_autograd_is_off():
    with torch.no_grad():
        assert torch.equal(
            value_and_gradient(lambda p: p.flatten(1).sum(1), draw((2, *SHAPE)))[1], torch.ones(2, *SHAPE).double()
        )


OBJECTIVES = {
    "detached": (lambda p: p.detach().flatten(1).sum(1), "no gradient reaches the images"),
    "other graph": (lambda p: torch.ones(2, requires_grad=True, dtype=torch.float64) * 2, "no gradient reaches the images"),
    "not finite": (lambda p: (p.flatten(1).sum(1) - p[:1].detach().sum()).sqrt(), "gradient is not finite for . of 2 images"),
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_a_gradient_that_is_none_is_refused(case):
    objective, message = OBJECTIVES[case]
    with pytest.raises(ValueError, match=message) as error:
        value_and_gradient(objective, draw((2, *SHAPE)))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="eot must be positive, got 0"):
        value_and_gradient(lambda p: p.flatten(1).sum(1), draw((2, *SHAPE)), 0)


# ------------------------------------------------------------------------------------------------- BPDA and pre-processing


@given(seeds)
def test_bpda_is_the_process_forward_and_its_stand_in_backward(seed):
    x, v = draw((3, *SHAPE), seed), draw((3, *SHAPE), seed + 1)
    for process in (quantise, smooth):
        assert torch.equal(BPDA(process)(x), process(x)) and torch.equal(BPDA(process, smooth)(x.requires_grad_()), process(x))
        x = x.detach()
        assert torch.equal(gradient(BPDA(process), x, v), v)
        assert torch.allclose(gradient(BPDA(process, smooth), x, v), product(smooth, x, v))
    assert torch.allclose(gradient(BPDA(smooth, smooth), x, v), gradient(smooth, x, v))
    assert not gradient(quantise, x, v).any()  # what the approximation is for


def test_bpda_hides_the_process_from_autograd_and_saves_the_stand_in_where_no_gradient_is_asked_for():
    graphs, calls = [], []

    def process(x):
        graphs.append((torch.is_grad_enabled(), x.requires_grad))
        return x

    def surrogate(x):
        calls.append(1)
        return x

    x = draw((1, *SHAPE))
    BPDA(process, surrogate)(x)
    with torch.no_grad():
        BPDA(process, surrogate)(x.clone().requires_grad_())
    assert not calls
    BPDA(process, surrogate)(x.clone().requires_grad_())
    assert calls == [1] and graphs == [(False, False)] * 3


def test_bpda_refuses_a_stand_in_of_another_shape():
    with pytest.raises(ValueError, match=r"the process returns \(1, 1, 3, 2\), its stand-in \(1, 1, 3, 4\)"):
        BPDA(lambda x: x[..., ::2])(draw((1, *SHAPE)).requires_grad_())


@given(seeds)
def test_a_defence_takes_the_gradient_of_its_process_by_name(seed):
    """With classifier ``f``: J_f at the processed image, times the Jacobian that the name stands for at the image."""
    a, x, v = matrix(seed, 5), draw((2, *SHAPE), seed + 1), draw((2, 5), seed + 2)

    class Classifier(nn.Module):
        def forward(self, x):
            return (x.flatten(1) @ a.T).sin()

    at = product(Classifier(), smooth(x), v)
    expected = {"exact": product(smooth, x, at), "bpda": at, "denoise": product(lambda p: p**3, x, at)}
    for name in GRADIENTS:
        model = Preprocessed(smooth, Classifier(), name, (lambda p: p**3) if name == "denoise" else None)
        assert torch.equal(model(x), Classifier()(smooth(x)))
        assert torch.allclose(gradient(model, x, v), expected[name])


def test_bad_names_of_gradients():
    with pytest.raises(ValueError, match="unknown gradient 'straight'; there are exact, bpda, denoise"):
        Preprocessed(smooth, nn.Flatten(), "straight")
    for name, surrogate in (("denoise", None), ("bpda", smooth), ("exact", smooth)):
        with pytest.raises(ValueError, match="a surrogate belongs to gradient='denoise' and to no other"):
            Preprocessed(smooth, nn.Flatten(), name, surrogate)


@pytest.mark.parametrize("label", [1, 2])
def test_one_denoising_step_is_the_denoiser_in_image_units(tiny_edm, label):
    x, v = draw((2, 1, 8, 8), 1, torch.float32), draw((2, 1, 8, 8), 2, torch.float32)
    step = one_denoising_step(tiny_edm, 0.5, label)
    sigma, labels = torch.full((2,), 0.5), torch.full((2,), label)
    assert torch.equal(step(x), (tiny_edm(2 * x - 1, sigma, labels) + 1) / 2)
    at_z = gradient(lambda z: tiny_edm(z, sigma, labels), 2 * x - 1, v)
    assert torch.allclose(gradient(step, x, v), at_z, atol=1e-5)  # the factors 2 and 1/2 cancel
    assert torch.allclose(gradient(BPDA(quantise, step), x, v), at_z, atol=1e-5)


# ------------------------------------------------------------------------------------------------- iterated optimisation


def plain_step(x, i):
    return x + 0.1 * torch.sin((i + 1) * x.flip(3)) * x


def likelihood_step(a):
    """A gradient step on a function of the image, as likelihood maximisation takes it."""

    def step(x, i):
        value = ((x.flatten(1) @ a.T).sin() * (i + 1)).sum() + x.pow(4).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return x - 0.05 * slope

    return step


@given(seeds, st.integers(0, 7), st.booleans())
def test_iterate_is_the_loop_and_so_is_its_gradient(seed, steps, inner):
    step = likelihood_step(matrix(seed)) if inner else plain_step
    x, v = draw((2, *SHAPE), seed + 1), draw((2, *SHAPE), seed + 2)

    def loop(point):
        for i in range(steps):
            point = step(point, i)
        return point

    expected = loop(x.clone().requires_grad_()).detach()
    for recompute in (True, False):
        assert torch.equal(iterate(step, x.clone().requires_grad_(), steps, recompute).detach(), expected)
        slope = gradient(lambda p, r=recompute: iterate(step, p, steps, r), x, v)
        assert torch.allclose(slope, gradient(loop, x, v), rtol=1e-12, atol=1e-14)
    with torch.no_grad():  # a prediction: the step still has its gradient, the result has none
        found = iterate(step, x, steps)
    assert torch.equal(found, expected) and not found.requires_grad
    assert not iterate(step, x, steps).requires_grad


class Kept:
    """A tensor that autograd keeps; the list holds the bytes of those that are alive."""

    def __init__(self, tensor, alive):
        self.tensor, self.alive = tensor, alive
        alive.append(tensor.numel() * tensor.element_size())

    def __del__(self):
        self.alive.remove(self.tensor.numel() * self.tensor.element_size())


def kept_bytes(step, steps, recompute, n=2):
    """Bytes that the forward pass leaves for the backward pass."""
    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: Kept(t, alive), lambda k: k.tensor):
        out = iterate(step, draw((n, *SHAPE)).requires_grad_(), steps, recompute)
    total = sum(alive)
    assert out.requires_grad
    return total


@pytest.mark.parametrize("inner", [True, False])
def test_a_further_step_keeps_one_image(inner):
    step, image = likelihood_step(matrix(0)) if inner else plain_step, 2 * 12 * 8
    sizes = [kept_bytes(step, steps, True) for steps in (1, 2, 5, 20)]
    assert sizes == [image, 2 * image, 5 * image, 20 * image]
    assert kept_bytes(step, 20, False) > 2 * sizes[-1]  # what is saved


def test_each_step_runs_twice():
    calls = []

    def step(x, i):
        calls.append(i)
        return plain_step(x, i)

    gradient(lambda p: iterate(step, p, 3), draw((1, *SHAPE)), torch.ones(1, *SHAPE))
    assert calls == [0, 1, 2, 2, 1, 0]


def test_an_attack_goes_through_an_iterated_defence_in_float64():
    """Finite differences of the whole defence agree with its gradient."""
    defence = Preprocessed(lambda x: iterate(likelihood_step(matrix(3)), x, 4), nn.Sequential(nn.Flatten()))
    x = draw((1, *SHAPE), 5).requires_grad_()
    assert torch.autograd.gradcheck(defence, (x,), eps=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------- randomised models


class Noisy(nn.Module):
    """Logits from a noisy image; the noise is that of the global random state."""

    def __init__(self):
        super().__init__()
        self.inner = CNN((1, 8, 8), 10, width=4)

    def forward(self, x):
        return self.inner((x + 0.3 * torch.randn_like(x)).clamp(0, 1))


def test_eot_is_the_mean_of_calls():
    model, x = Noisy(), draw((2, 1, 8, 8), 0, torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.stack([model(x) for _ in range(5)]).mean(0)
        torch.manual_seed(3)
        assert torch.allclose(EOT(model, 5)(x), expected, atol=1e-6)
        torch.manual_seed(3)
        slope = gradient(EOT(model, 5), x, torch.ones(2, 10))
        torch.manual_seed(3)
        assert torch.allclose(slope, sum(gradient(model, x, torch.ones(2, 10)) for _ in range(5)) / 5, atol=1e-6)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        EOT(model, 0)


def test_known_noise_makes_a_model_deterministic_and_leaves_the_random_state_alone():
    model, x = Noisy(), draw((2, 1, 8, 8), 0, torch.float32)
    before = torch.get_rng_state()
    frozen, other = known_noise(model, 4), known_noise(model, 5)
    first = frozen(x)
    assert torch.equal(frozen(x), first) and not torch.equal(other(x), first)
    v = torch.ones(2, 10)
    assert torch.equal(gradient(frozen, x, v), gradient(frozen, x, v))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        assert torch.equal(first, model(x))  # one draw of the same model
        assert not torch.equal(first, model(x))


def test_known_noise_of_the_diffusion_classifier():
    model = DiffusionClassifier(tiny_network(), levels("elbo", 3), noise="fresh", seed=9)
    x = draw((2, 1, 8, 8), 0, torch.float32)
    assert not torch.equal(model(x), model(x))
    frozen = known_noise(model, 7)
    assert isinstance(frozen, DiffusionClassifier) and frozen.denoiser is model.denoiser
    shared = DiffusionClassifier(model.denoiser, model.levels, noise="shared", seed=7)
    assert torch.equal(frozen(x), shared(x)) and torch.equal(frozen(x), frozen(x))
    assert not torch.equal(known_noise(model, 8)(x), frozen(x))
    assert (model.noise, model.seed) == ("fresh", 9) and not torch.equal(model(x), model(x))


@pytest.mark.parametrize("noise", ["shared", "per_class", "antithetic"])
def test_frozen_keeps_the_kind_of_a_fixed_noise(noise):
    model = DiffusionClassifier(tiny_network(), levels("elbo", 3), noise=noise, draws=2, seed=1)
    x = draw((2, 1, 8, 8), 0, torch.float32)
    assert torch.equal(model.frozen(1)(x), model(x)) and not torch.equal(model.frozen(2)(x), model(x))
