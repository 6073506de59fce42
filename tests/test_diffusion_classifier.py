"""The diffusion classifier against its formula written as a loop, and the promises it makes about batches, memory and noise."""

import pytest
import torch
from helpers import Counting, draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.classify import DiffusionClassifier
from rdc.classify.diffusion import NOISES
from rdc.denoise import OptimalDenoiser
from rdc.noise_source import Noise
from rdc.schedule import Levels, levels

X, Y = mixture(1, (4, 3, 5))
FEW = levels("elbo", 3, sigma_min=0.3, sigma_max=3.0)
KINDS = ["shared", "per_class", "fresh", "antithetic"]


def classifier(**options):
    """A classifier in float64 with the optimal denoiser."""
    options = {"draws": 2, "levels": FEW, **options}
    return DiffusionClassifier(options.pop("denoiser", OptimalDenoiser(X, Y)), **options)


def noise_of(model, level, r, label, call=0):
    """The noise of one evaluation, from the model's own streams."""
    noise = Noise(model.seed, model.draws, model.noise == "antithetic", model.noise == "per_class", model.share_levels)
    sign, sample = ((-1) ** r, r // 2) if noise.antithetic else (1, r)
    return sign * noise.eps(model.denoiser.shape, (call,), level, sample, label).double()


def naive(model, x, call=0):
    """The formula of the docstring, one evaluation after the other; differentiable, ``(N, K)``."""
    z, rows = 2 * x - 1, []
    for n in range(len(x)):
        row = []
        for k in range(model.num_classes):
            total = 0.0
            for t, (sigma, weight) in enumerate(zip(model.levels.sigma.tolist(), model.levels.weight.tolist(), strict=True)):
                for r in range(model.draws):
                    eps = noise_of(model, t, r, k, call)
                    estimate = model.denoiser(z[n : n + 1] + sigma * eps, sigma, torch.tensor([k]))
                    total = total + weight * (z[n : n + 1] - estimate).square().sum() / model.draws
            row.append(-total / (x[0].numel() if model.reduce == "mean" else 1))
        rows.append(torch.stack(row))
    logits = torch.stack(rows)
    return logits if model.prior is None else logits + model.prior.log()


@pytest.mark.parametrize("noise", KINDS)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("share_levels", [False, True])
def test_it_is_the_formula(noise, reduce, share_levels):
    model = classifier(noise=noise, reduce=reduce, share_levels=share_levels, chunk=7)
    x = draw((3, 1, 2, 3), 2)
    for call in (1, 2):
        found = model(x)
        expected = naive(model, x, call if noise == "fresh" else 0)
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.sampled_from(NOISES), st.integers(0, 9))
@settings(max_examples=15)
def test_it_is_the_formula_for_any_sizes(images, count, draws, chunk, noise, seed):
    draws = 2 * draws if noise == "antithetic" else draws
    model = classifier(levels=levels("edm", count), noise=noise, draws=draws, chunk=chunk, seed=seed)
    x = draw((images, 1, 2, 3), seed)
    assert torch.allclose(model(x), naive(model, x, model.calls), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("noise", KINDS)
def test_the_gradient_is_that_of_the_formula(noise):
    model = classifier(noise=noise, chunk=5, prior=torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    x, cotangent = draw((3, 1, 2, 3), 3).requires_grad_(), draw((3, 3), 4) - 0.5
    (found,) = torch.autograd.grad(model(x), x, cotangent)
    (expected,) = torch.autograd.grad(naive(model, x, model.calls), x, cotangent)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_the_gradient_agrees_with_finite_differences():
    model = classifier(chunk=4)
    x = (0.1 + 0.8 * draw((2, 1, 2, 3), 5)).requires_grad_()
    assert torch.autograd.gradcheck(model, (x,), eps=1e-6, atol=1e-6, rtol=1e-6)
    network = classifier(denoiser=tiny_network().double(), draws=1, levels=FEW[1:])
    x = (0.1 + 0.8 * draw((1, 1, 8, 8), 5)).requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[0, 1], x)
    direction = draw((1, 1, 8, 8), 6) - 0.5
    h = 1e-5
    numeric = (network(x.detach() + h * direction) - network(x.detach() - h * direction))[0, 1] / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize("noise", ["shared", "per_class", "antithetic"])
def test_an_image_is_judged_alone(noise, tiny_edm):
    x = draw((6, 1, 8, 8), 7, torch.float32)
    model = DiffusionClassifier(tiny_edm, levels("elbo", 4), noise=noise, draws=2)
    together, order = model(x), torch.tensor([4, 0, 5, 1, 3, 2])
    alone = torch.cat([model(x[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-5, atol=0)
    assert torch.allclose(model(x[order]), together[order], rtol=1e-5, atol=0)
    exact = classifier(noise=noise)
    x = draw((6, 1, 2, 3), 7)
    assert torch.allclose(exact(x), torch.cat([exact(x[i : i + 1]) for i in range(6)]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("noise", ["shared", "per_class", "antithetic"])
def test_the_chunk_does_not_matter(noise, tiny_edm):
    x = draw((3, 1, 8, 8), 8, torch.float32).requires_grad_()
    y = draw((3, 1, 2, 3), 8).requires_grad_()
    results, exact = [], []
    for chunk in (1, 7, 1000):
        model = DiffusionClassifier(tiny_edm, levels("elbo", 4), noise=noise, draws=2, chunk=chunk)
        logits = model(x)
        results.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]))
        logits = classifier(noise=noise, chunk=chunk)(y)
        exact.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), y)[0]))
    for (logits, slope), (double, steep) in zip(results[1:], exact[1:], strict=True):
        assert torch.allclose(logits, results[0][0], rtol=1e-5, atol=0)
        assert torch.allclose(slope, results[0][1], rtol=1e-4, atol=1e-5 * float(results[0][1].abs().max()))
        assert torch.allclose(double, exact[0][0], rtol=1e-12, atol=0)
        assert torch.allclose(steep, exact[0][1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("noise", KINDS)
def test_forward_runs_every_class_and_backward_only_those_of_the_loss(noise):
    counter = Counting(tiny_network())
    model = DiffusionClassifier(counter, FEW, noise=noise, draws=2, chunk=16)
    x = draw((4, 1, 8, 8), 9, torch.float32).requires_grad_()
    logits = model(x)
    each = 3 * 2
    assert counter.evaluations == 4 * each * 3 == 4 * model.evaluations and counter.with_grad == 0
    forward = torch.cat(counter.inputs)
    top = logits.topk(2, dim=1).values
    counter.reset()
    (top[:, 0] - top[:, 1]).sum().backward()
    assert counter.evaluations == counter.with_grad == 4 * each * 2
    known = {row.numpy().tobytes() for row in forward}
    assert all(row.numpy().tobytes() in known for row in torch.cat(counter.inputs))  # the same noise, bit by bit
    counter.reset()
    logits = model(x)
    counter.reset()
    logits[2, 1].backward()
    assert counter.evaluations == each


def test_a_zero_cotangent_costs_nothing():
    counter = Counting(tiny_network())
    model = DiffusionClassifier(counter, FEW)
    x = draw((2, 1, 8, 8), 9, torch.float32).requires_grad_()
    logits = model(x)
    counter.reset()
    (slope,) = torch.autograd.grad(logits, x, torch.zeros_like(logits))
    assert counter.evaluations == 0 and not slope.any()


def test_one_pass_denoisers_are_called_once_for_all_classes():
    counter = Counting(OptimalDenoiser(X, Y))
    model = classifier(denoiser=counter, draws=2)
    model(draw((4, 1, 2, 3), 1))
    assert model.evaluations == 6 and counter.evaluations == 4 * 6 * 3
    assert classifier(noise="per_class").evaluations == 18


@pytest.mark.parametrize("count", [2, 40])
def test_memory_is_that_of_a_chunk(count):
    for denoiser in (Counting(OptimalDenoiser(X, Y)), Counting(tiny_network())):
        model = DiffusionClassifier(denoiser, levels("elbo", count), chunk=12)
        x = draw((5, *denoiser.shape), 1, torch.float64 if denoiser.one_pass else torch.float32).requires_grad_()
        logits = model(x)
        most = 12 * (denoiser.num_classes if denoiser.one_pass else 1)  # a pass that serves all classes is one evaluation
        assert denoiser.largest <= most
        denoiser.reset()
        logits.sum().backward()
        kept = denoiser.one_pass and 5 * count <= 12  # then the graph of the forward pass
        assert denoiser.largest <= most and (denoiser.largest > 0) == (not kept)


def test_the_graph_keeps_nothing_but_the_images():
    saved = []
    model = classifier(levels=levels("elbo", 50))
    x = draw((2, 1, 2, 3), 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        model(x)
    assert sum(saved) <= 2 * x.numel()


def test_fresh_noise_changes_and_its_gradient_belongs_to_its_own_forward():
    model = classifier(noise="fresh")
    x = draw((2, 1, 2, 3), 10).requires_grad_()
    first, second = model(x), model(x)
    assert not torch.allclose(first, second, rtol=1e-3)
    for call, logits in ((1, first), (2, second)):  # backward after both forwards
        (found,) = torch.autograd.grad(logits[:, 2].sum(), x)
        (expected,) = torch.autograd.grad(naive(model, x, call)[:, 2].sum(), x)
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)
    again = classifier(noise="fresh")
    assert torch.equal(again(x), first) and torch.equal(again(x), second)  # a fixed sequence of the seed


@pytest.mark.parametrize("noise", KINDS)
def test_the_global_random_state_is_neither_read_nor_changed(noise):
    x = draw((2, 1, 2, 3), 11).requires_grad_()
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        logits = classifier(noise=noise)(x)
        logits.sum().backward()
        results.append(logits)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_seeds_give_different_noise():
    x = draw((2, 1, 2, 3), 11)
    assert torch.equal(classifier(seed=3)(x), classifier(seed=3)(x))
    assert not torch.allclose(classifier(seed=3)(x), classifier(seed=4)(x), rtol=1e-3)


@pytest.mark.parametrize("noise", ["shared", "per_class", "antithetic"])
def test_losses_are_the_logits_before_summing(noise):
    x = draw((3, 1, 2, 3), 12)
    model = classifier(noise=noise, chunk=5)
    losses = model.losses(x)
    assert losses.shape == (3, 3, 3) and not losses.requires_grad and bool((losses >= 0).all())
    assert torch.allclose(-losses @ FEW.weight, model(x), rtol=1e-12, atol=0)
    other = Levels(FEW.sigma, FEW.weight.flip(0) * 3)  # one run answers other weights
    assert torch.allclose(-losses @ other.weight, classifier(noise=noise, levels=other)(x), rtol=1e-12, atol=0)


def test_the_mean_is_the_sum_divided_by_the_number_of_pixels():
    x = draw((3, 1, 2, 3), 13)
    assert torch.allclose(classifier(reduce="mean")(x), classifier()(x) / 6, rtol=1e-14, atol=0)


def test_the_prior_is_added_and_its_scale_is_free():
    x, prior = draw((3, 1, 2, 3), 14), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    gap = classifier(prior=prior)(x) - classifier()(x)
    assert torch.allclose(gap, prior.log().expand(3, 3), rtol=0, atol=1e-10)
    uniform = classifier(prior=torch.full((3,), 1 / 3, dtype=torch.float64))
    assert torch.allclose(uniform(x).softmax(1), classifier()(x).softmax(1), rtol=1e-12)


def test_sharing_and_pairs_of_noise():
    shared, pairs, own = classifier(share_levels=True), classifier(noise="antithetic", draws=4), classifier(noise="per_class")
    assert torch.equal(noise_of(shared, 0, 1, 0), noise_of(shared, 2, 1, 0))
    assert not torch.equal(noise_of(classifier(), 0, 1, 0), noise_of(classifier(), 2, 1, 0))
    for r in (0, 2):
        assert torch.equal(noise_of(pairs, 1, r, 0), -noise_of(pairs, 1, r + 1, 0))
    assert not torch.equal(noise_of(pairs, 1, 0, 0).abs(), noise_of(pairs, 1, 2, 0).abs())
    assert not torch.equal(noise_of(own, 1, 0, 0), noise_of(own, 1, 0, 1))


def test_many_draws_agree_whatever_the_kind_of_noise():
    x = draw((2, 1, 2, 3), 15)
    exact = classifier(draws=2000, chunk=4096)(x)
    for noise in ("per_class", "antithetic"):
        assert torch.allclose(classifier(noise=noise, draws=2000, chunk=4096, seed=1)(x), exact, rtol=0.03)


def test_it_can_be_differentiated_once_only():
    x = draw((1, 1, 2, 3), 16).requires_grad_()
    logits = classifier()(x)
    for loss in (logits[0, 0], logits.square().sum()):
        with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
            torch.autograd.grad(loss, x, create_graph=True)[0].sum().backward()


BAD_OPTIONS = {
    "noise": ({"noise": "white"}, "unknown noise 'white'"),
    "reduce": ({"reduce": "max"}, "reduce must be"),
    "draws": ({"draws": 0}, "draws must be at least 1"),
    "odd": ({"draws": 3, "noise": "antithetic"}, "even"),
    "chunk": ({"chunk": 0}, "chunk must be at least 1"),
    "prior": ({"prior": torch.ones(2)}, "3 positive probabilities"),
    "zero prior": ({"prior": torch.tensor([1.0, 0.0, 0.0])}, "3 positive probabilities"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_bad_images():
    model, x = classifier(), draw((2, 1, 2, 3))
    for bad in (x[:0], x + 1, x * torch.nan, draw((2, 1, 3, 3)), draw((2, 3, 2, 3))):
        for call in (model, model.losses):
            with pytest.raises(ValueError, match="images"):
                call(bad)
