"""Attacks: inside the ball, independent of the batch, optimal where the optimum is known, and without side effects."""

import sys
import warnings

import pytest
import torch
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import autoattack, pgd
from rdc.attack.losses import LOSSES, cross_entropy, dlr, margin
from rdc.attack.norms import ascend, norm_of, project, random_start
from rdc.classify import CNN

norms = st.sampled_from(["Linf", "L2"])
radii = st.floats(1e-4, 1.5)
seeds = st.integers(0, 10**6)
DUAL = {"Linf": 1.0, "L2": 2.0}


def linear(seed=0, classes=2, dtype=torch.float64, shape=(1, 3, 3)):
    return Linear((draw((classes, *shape), seed) - 0.5).to(dtype), 0.1 * (draw((classes,), seed + 1) - 0.5).to(dtype))


def inside(x_adv, x, norm, eps):
    """Whether a change is within the ball, in exact arithmetic up to the rounding of float64, and the image in [0, 1]."""
    size = norm_of(x_adv.double() - x.double(), norm)
    radius = max(eps, float(torch.tensor(eps, dtype=x.dtype)))
    return bool((size <= radius * (1 + 1e-12)).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


@given(seeds, norms, radii, st.sampled_from([torch.float32, torch.float64]), st.floats(0, 2))
@settings(max_examples=200)
def test_projections_lie_in_the_ball(seed, norm, eps, dtype, size):
    x = draw((4, 1, 28, 28), seed, dtype)
    x_adv = x + size * (draw((4, 1, 28, 28), seed + 1, dtype) - 0.5)
    found = project(x_adv, x, norm, eps)
    assert found.dtype == dtype and inside(found, x, norm, eps)
    assert inside(random_start(x, norm, eps, torch.arange(4), seed), x, norm, eps)
    assert torch.equal(project(x, x, norm, eps), x)


@given(seeds, norms, radii)
def test_a_projection_is_the_nearest_point_of_the_ball(seed, norm, eps):
    """Away from the faces of [0, 1]: for Linf a clip, for L2 a scaling."""
    x = 0.4 + 0.2 * draw((3, 1, 3, 3), seed)
    eps = min(eps, 0.3)
    change = 2 * (draw((3, 1, 3, 3), seed + 1) - 0.5)
    if norm == "Linf":
        expected = x + change.clamp(-eps, eps)
    else:
        expected = x + change * (eps / norm_of(change, norm)).clamp(max=1).reshape(-1, 1, 1, 1)
    assert torch.allclose(project(x + change, x, norm, eps), expected, rtol=0, atol=1e-5 * eps)


@given(seeds, norms)
def test_the_steepest_direction_attains_the_dual_norm(seed, norm):
    gradient = draw((3, 1, 3, 3), seed) - 0.5
    step = ascend(gradient, norm)
    assert torch.allclose(norm_of(step, norm), torch.ones(3, dtype=torch.float64))
    dual = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
    assert torch.allclose((step * gradient).sum(dim=(1, 2, 3)), dual)
    assert not ascend(torch.zeros(2, 1, 3, 3), norm).any()


@given(seeds, norms, radii, st.sampled_from(list(LOSSES)), st.integers(0, 6), st.integers(1, 3), st.booleans())
def test_pgd_stays_in_the_ball(seed, norm, eps, loss, steps, restarts, double):
    dtype = torch.float64 if double else torch.float32
    model, x, y = linear(seed, 4, dtype, (1, 8, 8)), draw((5, 1, 8, 8), seed, dtype), torch.arange(5) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eps > 1
        x_adv = pgd(model, x, y, norm, eps, steps=steps, restarts=restarts, loss=loss, seed=seed)
    assert x_adv.dtype == dtype and inside(x_adv, x, norm, eps)


@given(seeds, norms, st.integers(1, 3), st.sampled_from(list(LOSSES)))
def test_pgd_treats_each_image_alone(seed, norm, restarts, loss):
    model, x, y = linear(seed, 3), draw((5, 1, 3, 3), seed), torch.arange(5) % 3
    together = pgd(model, x, y, norm, 0.1, steps=5, restarts=restarts, loss=loss, seed=seed)
    alone = [
        pgd(
            model,
            x[i : i + 1],
            y[i : i + 1],
            norm,
            0.1,
            steps=5,
            restarts=restarts,
            loss=loss,
            seed=seed,
            index=torch.tensor([i]),
        )
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(alone))


@given(seeds, norms, st.floats(0.01, 0.2), st.sampled_from([10, 20, 40]))
def test_on_a_linear_model_pgd_reaches_the_optimum(seed, norm, eps, steps):
    """The default steps reach the corner of an Linf ball; on an L2 sphere they turn towards it, steps of eps reach it."""
    model, x = linear(seed), 0.3 + 0.4 * draw((6, 1, 3, 3), seed + 2)
    y = model(x).argmax(1)
    w = model.weight[1 - y] - model.weight[y]
    clean, gain = margin(model(x), y), eps * torch.linalg.vector_norm(w.flatten(1), ord=DUAL[norm], dim=1)
    default, large = (margin(model(pgd(model, x, y, norm, eps, steps, size, seed=seed)), y) for size in (None, eps))
    assert torch.allclose(large, clean + gain, rtol=0, atol=1e-3 * float(gain.min()))
    if norm == "Linf":
        assert torch.allclose(default, clean + gain, rtol=0, atol=1e-9)
    assert bool((default >= clean + 0.9 * gain).all() and (default <= clean + gain * (1 + 1e-9)).all())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_robust_accuracy_on_a_linear_model_is_the_analytic_one(norm):
    model, x = linear(3), 0.3 + 0.4 * draw((200, 1, 3, 3), 4)
    y = model(x).argmax(1)
    w = model.weight[1 - y] - model.weight[y]
    robust = -margin(model(x), y) / torch.linalg.vector_norm(w.flatten(1), ord=DUAL[norm], dim=1)  # distance to the boundary
    for eps in (0.01, 0.05, 0.1):
        clear = (robust / eps - 1).abs() > 0.02  # the others lie on the boundary
        broken = model(pgd(model, x, y, norm, eps, steps=20)).argmax(1) != y
        assert torch.equal(broken[clear], (robust < eps)[clear])
        assert int(clear.sum()) > 180 and 0 < int(broken.sum()) < 200


@given(seeds, norms)
def test_a_larger_ball_is_no_safer(seed, norm):
    model, x, y = linear(seed), 0.3 + 0.4 * draw((4, 1, 3, 3), seed), torch.tensor([0, 1, 0, 1])
    values = [margin(model(pgd(model, x, y, norm, eps, steps=20)), y) for eps in (0.0, 0.02, 0.05, 0.1, 0.2)]
    for low, high in zip(values, values[1:], strict=False):
        assert bool((high >= low - 1e-12).all())


@given(seeds, norms, st.sampled_from(list(LOSSES)))
def test_a_ball_of_radius_zero_is_a_point(seed, norm, loss):
    model, x, y = linear(seed, 3), draw((4, 1, 3, 3), seed), torch.tensor([0, 1, 2, 1])
    assert torch.equal(pgd(model, x, y, norm, 0.0, steps=3, loss=loss), x)


class Wavy(nn.Module):
    """A model with many local optima."""

    def forward(self, x):
        s = torch.stack([torch.sin(9 * x.flatten(1) + k).sum(1) for k in range(3)], dim=1)
        return s + torch.tensor([9.0, 0.0, 0.0], dtype=x.dtype)


@given(seeds, norms)
def test_restarts_only_help(seed, norm):
    x, y = draw((6, 1, 3, 3), seed), torch.zeros(6, dtype=torch.int64)
    values = [margin(Wavy()(pgd(Wavy(), x, y, norm, 0.3, steps=4, restarts=r, seed=seed)), y) for r in (1, 2, 5)]
    assert bool((values[1] >= values[0]).all() and (values[2] >= values[1]).all())
    assert bool((values[0] >= margin(Wavy()(x), y)).all())


class Flat(nn.Module):
    """Logits that do not depend on the image, through a graph."""

    def forward(self, x):
        return torch.tensor([1.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :3]


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_zero_gradients_give_no_nan(norm, loss):
    x, y = draw((3, 1, 3, 3), 0, torch.float32), torch.zeros(3, dtype=torch.int64)
    for model in (Flat(), linear(0, 3, torch.float32)):
        if model.__class__ is Linear:
            model.weight = model.weight * 1e8  # saturated
        x_adv = pgd(model, x, y, norm, 0.1, steps=3, loss=loss)
        assert bool(x_adv.isfinite().all()) and inside(x_adv, x, norm, 0.1)


@given(seeds, st.integers(3, 6))
def test_losses(seed, classes):
    f, y = 4 * draw((5, classes), seed) - 2, torch.arange(5) % 3
    wrong = f.argmax(1) != y
    assert torch.equal(margin(f, y) > 0, wrong) and torch.equal(dlr(f, y) > 0, wrong)
    assert torch.allclose(cross_entropy(f, y), -f.softmax(1).gather(1, y[:, None])[:, 0].log())
    assert torch.allclose(dlr(3 * f + 1, y), dlr(f, y), rtol=1e-6)  # free of scale and shift
    for n in range(5):
        others = [float(f[n, k]) for k in range(classes) if k != y[n]]
        top = sorted(f[n].tolist(), reverse=True)
        assert float(margin(f, y)[n]) == pytest.approx(max(others) - float(f[n, y[n]]))
        assert float(dlr(f, y)[n]) == pytest.approx((max(others) - float(f[n, y[n]])) / (top[0] - top[2]), rel=1e-6)


def test_pgd_leaves_the_random_state_alone_and_repeats():
    model, x, y = linear(0), draw((4, 1, 3, 3), 1), torch.tensor([0, 1, 0, 1])
    before = torch.get_rng_state()
    a, b, c = (pgd(model, x, y, "L2", 0.1, steps=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b) and not torch.equal(a, c)


class Noisy(nn.Module):
    """A model whose gradient is right on average only: 3 f and -f by turns (and f where no gradient is asked for)."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = linear(0), 0

    def forward(self, x):
        if not torch.is_grad_enabled():
            return self.inner(x)
        self.calls += 1
        return self.inner(x) * (1 + 2 * (-1) ** self.calls)


def test_eot_averages_the_calls():
    x, plain = 0.3 + 0.4 * draw((6, 1, 3, 3), 2), linear(0)
    y = plain(x).argmax(1)
    exact = margin(plain(pgd(plain, x, y, "Linf", 0.05, steps=20)), y)
    averaged = pgd(Noisy(), x, y, "Linf", 0.05, steps=20, eot=2)
    assert torch.allclose(margin(plain(averaged), y), exact, atol=1e-9)


# ------------------------------------------------------------------------------------------------- AutoAttack

FAST = {"steps": 5, "queries": 20}


@pytest.fixture(scope="module")
def cnn(digits):
    model = CNN((1, 8, 8), 10, width=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.x), digits.y).backward()
        optimizer.step()
    model.requires_grad_(False).eval()
    return model, digits.x[:3], model(digits.x[:3]).argmax(1)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5), ("L2", 0.003)])
@pytest.mark.parametrize("batch", [1, 3])
def test_autoattack_stays_in_the_ball(cnn, norm, eps, batch):
    model, x, y = cnn
    assert inside(autoattack(model, x, y, norm, eps, batch=batch, **FAST), x, norm, eps)


def test_autoattack_l1(cnn):
    model, x, y = cnn
    x_adv = autoattack(model, x, y, "L1", 1.0, version="custom", attacks=["apgd-ce"], **FAST)
    assert bool((norm_of(x_adv - x, "L1") <= 1 + 1e-4).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


def test_autoattack_leaves_random_state_and_trace_alone(cnn):
    model, x, y = cnn

    def tracer(*_):
        return None

    before, old = torch.get_rng_state(), sys.gettrace()
    sys.settrace(tracer)
    try:
        a = autoattack(model, x, y, eps=0.05, seed=1, **FAST)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(old)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(autoattack(model, x, y, eps=0.05, seed=1, **FAST), a)


def test_autoattack_restores_the_state_when_the_model_fails(cnn):
    def fails(x):
        torch.rand(1)
        raise RuntimeError("out of memory")

    before = torch.get_rng_state()
    broken = CNN((1, 8, 8), 10, width=4)
    broken.forward = fails
    with pytest.raises(RuntimeError, match="out of memory"):
        autoattack(broken, cnn[1], cnn[2], **FAST)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.2), ("L2", 1.5)])
def test_the_adapter_adds_nothing_to_autoattack(cnn, norm, eps):
    from pyautoattack import AutoAttack

    model, x, y = cnn
    found = autoattack(model, x, y, norm, eps, seed=5, batch=3, version="custom", attacks=["apgd-ce", "square"], **FAST)
    trace = sys.gettrace()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = AutoAttack(model, norm=norm, eps=eps, seed=5, version="custom", attacks=["apgd-ce", "square"], device=x.device)
        bare.apgd.n_iter, bare.square.n_queries = FAST["steps"], FAST["queries"]
        expected, _ = bare.run_standard_evaluation(x, y, batch_size=3)
    sys.settrace(trace)
    assert torch.allclose(found, expected, rtol=0, atol=2e-6)
    assert torch.equal(model(found).argmax(1), model(expected).argmax(1))
    assert not torch.equal(found, x)


def test_autoattack_treats_each_image_alone(cnn):
    model, x, y = cnn
    together = autoattack(model, x, y, eps=0.05, **FAST)
    alone = [autoattack(model, x[i : i + 1], y[i : i + 1], eps=0.05, index=torch.tensor([i]), **FAST) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_autoattack_takes_images_in_any_layout(cnn):
    model, x, y = cnn
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    assert torch.allclose(autoattack(model, turned, y, eps=0.05, **FAST), autoattack(model, x, y, eps=0.05, **FAST), atol=1e-6)


@pytest.mark.parametrize("classes", [4, 10])
def test_autoattack_breaks_a_linear_model_with_few_classes(classes):
    model, x = linear(0, classes, torch.float32), 0.3 + 0.4 * draw((4, 1, 3, 3), 2, torch.float32)
    y = model(x).argmax(1)
    w = model.weight[None] - model.weight[y][:, None]
    worst = (model(x) - model(x).gather(1, y[:, None]) + 0.2 * w.flatten(2).abs().sum(2)).scatter(1, y[:, None], -torch.inf)
    x_adv = autoattack(model, x, y, eps=0.2, **FAST)
    assert torch.equal(model(x_adv).argmax(1) != y, worst.amax(1) > 0) and bool((worst.amax(1) > 0).any())


def test_images_that_no_attack_breaks_come_back_unchanged(cnn):
    model, x, y = cnn
    assert torch.equal(autoattack(model, x, y, eps=1e-6, **FAST), x)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("attack", [pgd, autoattack])
def test_bad_input(attack):
    model, x, y = linear(0, 4, torch.float32), draw((2, 1, 3, 3), 0, torch.float32), torch.tensor([0, 1])
    for options, message in (
        ({"eps": -0.1}, "eps must not be negative"),
        ({"eps": float("nan")}, "eps must not be negative"),
        ({"norm": "L0"}, "unknown norm 'L0'"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(model, x, y, **options)
    for labels in (y.float(), y[:1], y - 1):
        with pytest.raises((ValueError, TypeError), match="labels|int64|y"):
            attack(model, x, labels)
    with pytest.raises(ValueError, match="images"):
        attack(model, 2 * x + 1, y)
    with pytest.warns(UserWarning, match="did you mean 8/255"):
        attack(
            model, x, y, eps=8.0, **({"steps": 1} if attack is pgd else {"version": "custom", "attacks": ["apgd-ce"], "steps": 2})
        )


def test_unknown_losses_and_versions():
    model, x, y = linear(0, 4, torch.float32), draw((2, 1, 3, 3), 0, torch.float32), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        pgd(model, x, y, loss="hinge")
    for options in ({"version": "plus"}, {"version": "custom"}, {"attacks": ["square"]}):
        with pytest.raises(ValueError, match="version must be one of"):
            autoattack(model, x, y, **options)
