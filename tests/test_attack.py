"""Attacks: inside the ball, independent of the batch, optimal where the optimum is known, and without side effects."""

import sys
import warnings
from functools import partial

import pytest
import torch
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import autoattack, lagrange, pgd, stadv, uniform_noise
from rdc.attack.ascent import CALLS
from rdc.attack.losses import LOSSES, TARGETED, cross_entropy, dlr, margin, rescale
from rdc.attack.norms import ascend, norm_of, project, random_start
from rdc.classify import CNN
from rdc.door import logits_of

norms = st.sampled_from(["Linf", "L2"])
radii = st.floats(1e-4, 1.5)
seeds = st.integers(0, 10**6)
DUAL = {"Linf": 1.0, "L2": 2.0}


def linear(seed=0, classes=2, dtype=torch.float64, shape=(1, 3, 3)):
    return Linear((draw((classes, *shape), seed) - 0.5).to(dtype), 0.1 * (draw((classes,), seed + 1) - 0.5).to(dtype))


def inside(x_adv, x, norm, eps):
    """Whether a change is within the ball, in exact arithmetic up to the rounding of float64, and the image in [0, 1]."""
    size = norm_of(x_adv.double() - x.double(), norm)
    return bool((size <= eps * (1 + 1e-12)).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


@given(
    seeds,
    st.sampled_from(["Linf", "L2", "L1"]),
    st.floats(1e-6, 20),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(0, 2),
)
@settings(max_examples=200)
def test_projections_lie_in_the_ball(seed, norm, eps, dtype, size):
    x = draw((4, 1, 28, 28), seed, dtype)
    x_adv = x + size * (draw((4, 1, 28, 28), seed + 1, dtype) - 0.5)
    found = project(x_adv, x, norm, eps)
    assert found.dtype == dtype and inside(found, x, norm, eps)
    assert torch.equal(project(found, x, norm, eps), found) and torch.equal(project(x, x, norm, eps), x)
    assert norm == "L1" or inside(random_start(x, norm, eps, torch.arange(4), seed), x, norm, eps)


@given(seeds, st.sampled_from(["L2", "L1"]), st.floats(0.5, 5), st.floats(1e-7, 1e-4))
def test_a_result_that_is_outside_by_rounding_is_shrunk_by_as_much(seed, norm, eps, excess):
    """The change keeps its direction and loses the excess and one rounding of each pixel."""
    x = 0.3 + 0.4 * draw((3, 1, 28, 28), seed, torch.float32)
    change = draw((3, 1, 28, 28), seed + 1, torch.float32) - 0.5
    change = 0.2 * change if norm == "L2" else change * (draw((3, 1, 28, 28), seed + 2, torch.float32) < 0.05)
    x_adv = x + change * (eps * (1 + excess) / norm_of(change, norm)).reshape(-1, 1, 1, 1)
    x_adv = x_adv.clamp(0, 1)
    found = project(x_adv, x, norm, eps)
    assert bool((norm_of(found.double() - x_adv.double(), norm) <= eps * excess + 28 * 28 * 2**-23).all())
    assert inside(found, x, norm, eps) and bool(((found - x) * (x_adv - x) >= 0).all())
    assert bool((found == x)[x_adv == x].all())


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
    tiny = ascend((1e-30 * gradient).float(), norm)  # its squares are zero in float32
    assert torch.allclose(tiny, step.float(), atol=1e-6)


@given(seeds, norms, radii, st.sampled_from(list(LOSSES)), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_pgd_stays_in_the_ball(seed, norm, eps, loss, steps, restarts, double):
    dtype = torch.float64 if double else torch.float32
    model, x, y = linear(seed, 4, dtype, (1, 8, 8)), draw((5, 1, 8, 8), seed, dtype), torch.arange(5) % 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eps > 1
        x_adv = pgd(model, x, y, norm, eps, steps=steps, restarts=restarts, loss=loss, seed=seed)
    assert x_adv.dtype == dtype and inside(x_adv, x, norm, eps)


@given(seeds, norms, st.integers(1, 2), st.sampled_from(list(LOSSES)), st.integers(0, 2), st.sampled_from([1.0, "auto"]))
@settings(max_examples=8)
def test_pgd_treats_each_image_alone(seed, norm, restarts, loss, targets, scale):
    model, x, y = linear(seed, 4), draw((5, 1, 3, 3), seed), torch.arange(5) % 4
    together = pgd(model, x, y, norm, 0.1, 4, restarts=restarts, loss=loss, seed=seed, targets=targets, scale=scale)
    alone = [
        pgd(
            model,
            x[i : i + 1],
            y[i : i + 1],
            norm,
            0.1,
            4,
            restarts=restarts,
            loss=loss,
            seed=seed,
            index=torch.tensor([i]),
            targets=targets,
            scale=scale,
        )
        for i in range(5)
    ]
    assert torch.equal(together, torch.cat(alone))


@given(seeds, norms, st.floats(0.01, 0.2), st.sampled_from([10, 20, 40]))
@settings(max_examples=8)
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
@settings(max_examples=6)
def test_a_larger_ball_is_no_safer(seed, norm):
    model, x, y = linear(seed), 0.3 + 0.4 * draw((4, 1, 3, 3), seed), torch.tensor([0, 1, 0, 1])
    values = [margin(model(pgd(model, x, y, norm, eps, steps=20)), y) for eps in (0.0, 0.02, 0.1, 0.2)]
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
@settings(max_examples=10)
def test_restarts_only_help(seed, norm):
    x, y = draw((6, 1, 3, 3), seed), torch.zeros(6, dtype=torch.int64)
    values = [margin(Wavy()(pgd(Wavy(), x, y, norm, 0.3, steps=4, restarts=r, seed=seed)), y) for r in (1, 2, 5)]
    assert bool((values[1] >= values[0]).all() and (values[2] >= values[1]).all())
    assert bool((values[0] >= margin(Wavy()(x), y)).all())


class Flat(nn.Module):
    """Logits that do not depend on the image, through a graph."""

    def forward(self, x):
        return torch.tensor([2.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :3]


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_zero_gradients_give_no_nan(norm, loss):
    x, y = draw((3, 1, 3, 3), 0, torch.float32), torch.zeros(3, dtype=torch.int64)
    for model in (Flat(), linear(0, 3, torch.float32)):
        if model.__class__ is Linear:
            model.weight = model.weight * 1e8  # saturated
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the zero gradients
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


@given(seeds, st.integers(4, 6))
def test_targeted_losses(seed, classes):
    f, y = 4 * draw((5, classes), seed) - 2, torch.arange(5) % 3
    j = (y + 1 + torch.arange(5) % (classes - 1)) % classes
    assert torch.allclose(TARGETED["ce"](f, y, j), f.softmax(1).gather(1, j[:, None])[:, 0].log())
    for name in ("margin", "dlr"):
        values = TARGETED[name](f, y, j)
        assert bool(((values > 0) == (f.gather(1, j[:, None]) > f.gather(1, y[:, None]))[:, 0]).all())
        for n in range(5):
            top = sorted(f[n].tolist(), reverse=True)
            size = 1.0 if name == "margin" else top[0] - (top[2] + top[3]) / 2
            assert float(values[n]) == pytest.approx(float(f[n, j[n]] - f[n, y[n]]) / size, rel=1e-9)
    assert torch.allclose(TARGETED["dlr"](3 * f + 1, y, j), TARGETED["dlr"](f, y, j))
    best = torch.stack([TARGETED["margin"](f, y, torch.full((5,), k)) for k in range(classes)]).scatter(0, y[None], -torch.inf)
    assert torch.equal(best.amax(0), margin(f, y))  # the untargeted margin is that of the nearest class


@given(seeds, st.integers(2, 6), st.floats(-12, 12), st.floats(-3, 3))
def test_automatic_scale_knows_no_scale(seed, classes, power, shift):
    f = draw((5, classes), seed)
    found = rescale(f, "auto")
    assert torch.allclose(rescale(10**power * (f + shift), "auto"), found, rtol=1e-6, atol=1e-6)
    top = found.sort(descending=True).values
    assert bool((top[:, 0] == 0).all() and (top[:, 0] - top[:, min(2, classes - 1)] <= 1 + 1e-12).all())
    assert torch.equal(rescale(f, 2.0), 2 * f)
    with torch.enable_grad():
        point = f.clone().requires_grad_()
        (slope,) = torch.autograd.grad(rescale(point, "auto").sum(), point)
    per_image = slope[:, :1]  # the spread is a constant
    top_class = f.argmax(1)
    assert torch.allclose(slope.scatter(1, top_class[:, None], per_image), per_image.expand_as(slope)) or classes == 2


@pytest.mark.parametrize("f", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0, -1e30], [5.0, 5.0], [1e-40, 0.0, 0.0], [1e30, -1e30, 0.0]])
def test_automatic_scale_of_ties_and_extremes_is_finite(f):
    point = torch.tensor([f], requires_grad=True)
    value = cross_entropy(rescale(point, "auto"), torch.tensor([0]))
    (slope,) = torch.autograd.grad(value.sum(), point)
    assert bool(value.isfinite().all() and slope.isfinite().all())


class Times(nn.Module):
    """A model whose logits are multiplied by a constant: the same classifier."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.mark.filterwarnings("ignore:most gradients")  # without the scale
def test_cross_entropy_with_automatic_scale_breaks_whatever_the_scale(cnn, digits):
    x, y = digits.x[:40], digits.y[:40]
    for model, eps in ((cnn[0], 0.06), (linear(0, 4, torch.float32, (1, 8, 8)), 0.01)):
        labels = y if model is cnn[0] else model(x).argmax(1)

        def broken(factor, scale, model=model, labels=labels, eps=eps):
            x_adv = pgd(Times(model, factor), x, labels, "Linf", eps, steps=10, loss="ce", scale=scale)
            return model(x_adv).argmax(1) != labels

        at_one = broken(1.0, "auto")
        assert 5 < int(at_one.sum()) < 35
        assert torch.equal(broken(1e-6, "auto"), at_one) and torch.equal(broken(1e4, "auto"), at_one)
        assert int(broken(1e4, 1.0).sum()) < int(at_one.sum())  # without it the loss saturates


class DeadEnd(nn.Module):
    """Class 1 is the best wrong class and can never win; class 2 wins in one corner of the ball, which class 1 does not see."""

    def forward(self, x):
        u = (x - 0.5).flatten(1) / 0.1
        return torch.stack([1 + 0 * u[:, 0], 0.9 + 0.05 * u[:, 0], 2.5 * u[:, 1] ** 25 - 1, 0 * u[:, 0] - 5], dim=1)


@pytest.mark.parametrize("loss", ["margin", "dlr", "ce"])
def test_targets_find_a_class_that_the_untargeted_loss_does_not_see(loss):
    x, y = torch.full((8, 1, 2, 2), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    for targets, found in ((0, 0), (1, 0), (2, 2), (3, 2), (9, 2)):
        if loss == "ce" and targets < 2:
            continue  # the cross-entropy sees every class
        x_adv = pgd(DeadEnd(), x, y, "Linf", 0.1, steps=10, loss=loss, targets=targets)
        assert DeadEnd()(x_adv).argmax(1).tolist() == [found] * 8 and inside(x_adv, x, "Linf", 0.1)


@given(seeds, norms, st.sampled_from(["margin", "ce", "dlr"]), st.integers(1, 3))
@settings(max_examples=10)
def test_targets_only_help_and_success_is_a_wrong_class(seed, norm, loss, targets):
    class Four(Wavy):
        def forward(self, x):
            return torch.cat([super().forward(x), 3 * x.flatten(1)[:, :1]], dim=1)

    x, y = draw((6, 1, 3, 3), seed), torch.zeros(6, dtype=torch.int64)
    plain, more = (Four()(pgd(Four(), x, y, norm, 0.3, 4, loss=loss, targets=t, seed=seed)).argmax(1) != y for t in (0, targets))
    assert bool((more | ~plain).all())


def test_cw_is_the_margin():
    model, x, y = linear(0, 4), draw((4, 1, 3, 3), 1), torch.tensor([0, 1, 2, 3])
    a, b = (pgd(model, x, y, steps=3, loss=loss, targets=1) for loss in ("cw", "margin"))
    assert torch.equal(a, b)


class Recording(nn.Module):
    """A model that remembers every image it sees."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.model(x)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_broken_images_are_dropped(loss):
    """One image is wrong from the start, one is broken by the first run, and one cannot be broken."""
    x = torch.tensor([0.4, 0.55, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1).repeat(1, 1, 2, 2)
    weight = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1).repeat(1, 1, 2, 2)
    model, y = Recording(Linear(weight)), torch.ones(3, dtype=torch.int64)
    x_adv = pgd(model, x, y, eps=0.1, steps=3, restarts=2, loss=loss, targets=1)
    first, second = [3] + CALLS * [1] + 4 * [2], CALLS * [1] + 4 * [1]  # each success is confirmed
    assert [len(images) for images in model.seen] == first + second + 4 * [1] + 4 * [1]
    assert torch.equal(x_adv[0], x[0]) and model.model(x_adv).argmax(1).tolist() == [0, 0, 1]


class Flattening(nn.Module):
    """For u < 0 class 1 wins; for large u class 0 does, and yet its cross-entropy is larger: three classes share the rest."""

    def forward(self, x):
        u = 10 * (x - 0.5).flatten(1)[:, 0]
        return torch.stack([0.5 - 0.4 * u, 0.5 - 0.5 * u, 2.5 * u - 2.5, 2.5 * u - 2.5], dim=1)


def test_a_misclassified_iterate_is_kept_before_one_with_a_larger_loss():
    x, y = torch.full((40, 1, 1, 1), 0.52, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)
    start = random_start(x, "Linf", 0.1, torch.arange(40), 0, 0)
    wrong = Flattening()(start).argmax(1) != y
    larger = cross_entropy(Flattening()(torch.full_like(x, 0.62)), y) > cross_entropy(Flattening()(start), y)
    x_adv = pgd(Flattening(), x, y, "Linf", 0.1, steps=8, loss="ce")
    broken = Flattening()(x_adv).argmax(1) != y
    assert int((wrong & larger).sum()) > 5 and bool((broken | ~wrong).all())


def test_pgd_leaves_the_random_state_alone_and_repeats():
    model, x, y = linear(0), draw((4, 1, 3, 3), 1), torch.tensor([0, 1, 0, 1])
    before = torch.get_rng_state()
    a, b, c = (pgd(model, x, y, "L2", 0.1, steps=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b) and not torch.equal(a, c)


class Moody(nn.Module):
    """A model that says the other class of two for an image in a quarter of its calls, and has no gradient to follow."""

    def __init__(self):
        super().__init__()
        self.source, self.asked = torch.Generator().manual_seed(0), []

    def forward(self, x):
        self.asked.append(len(x))
        flip = torch.where(torch.rand(len(x), generator=self.source, dtype=x.dtype) < 0.25, -1.0, 1.0)
        level = 1 + 0 * x.flatten(1).sum(dim=1)
        return torch.stack([level * flip, -level * flip], dim=1)


@pytest.mark.filterwarnings("ignore:most gradients")
@pytest.mark.parametrize("attack", [
    partial(pgd, eps=0.1, steps=2), partial(lagrange, penalty=lambda x: x.flatten(1).sum(1), eps=0.1, steps=2, weights=(0.0,)),
    partial(stadv, eps=0.2, steps=2), partial(uniform_noise, eps=0.1, queries=1),
])  # fmt: skip
def test_one_lucky_call_of_a_random_model_is_no_success(attack):
    """Of 40 images ten are wrong at the first call, by the mean of eight others a third of one: the rest is attacked."""
    model = Moody()
    attack(model, draw((40, 1, 2, 2), 3), torch.zeros(40, dtype=torch.int64))
    assert sorted(model.asked)[-2] >= 38


def test_restarts_go_on_after_a_lucky_call():
    model, y = Moody(), torch.zeros(8, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgd(model, draw((8, 1, 2, 2), 3), y, eps=0.1, steps=2, restarts=10)
    assert model.asked.count(1) + model.asked.count(2) < len(model.asked) and sum(size > 4 for size in model.asked) > 10 * 3


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_autoattack_takes_the_steps_that_it_is_told(norm):
    """Of a model that nothing breaks, calls rise with the steps; L1 divides them among its radii."""
    calls = []
    for steps in (4, 40):
        model = Recording(Linear(torch.zeros(3, 1, 4, 4), torch.tensor([9.0, 0, 0])))
        x, y = draw((2, 1, 4, 4), 3, torch.float32), torch.zeros(2, dtype=torch.int64)
        autoattack(model, x, y, norm, 0.1, "custom", ["apgd-ce"], steps=steps, queries=1)
        calls.append(len(model.seen))
    assert calls[1] > 5 * calls[0]


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


@pytest.mark.parametrize("eps", [0.3, 4.0])
def test_autoattack_l1(cnn, eps):
    model, x, y = cnn
    x_adv = autoattack(model, x, y, "L1", eps, version="custom", attacks=["apgd-ce", "square"], batch=3, **FAST)
    assert inside(x_adv, x, "L1", eps) and (eps == 0.3 or not torch.equal(x_adv, x))


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


ADAPTED = [("Linf", 0.02, "standard"), ("L2", 0.1, "standard"), ("Linf", 0.03, "rand"), ("L1", 0.6, "standard")]


@pytest.mark.parametrize(("norm", "eps", "version"), ADAPTED)
def test_the_adapter_adds_nothing_to_autoattack(digits, norm, eps, version):
    """In a batch an image gets what the package run bare makes of it alone, bit for bit, up to the shrink to the exact bound."""
    from pyautoattack import AutoAttack

    model, x = linear(3, 10, torch.float32, (1, 8, 8)), digits.x[: 4 if norm == "L1" else 8]
    y = model(x).argmax(1)
    found = autoattack(model, x, y, norm, eps, version, seed=5, batch=len(x), eot=2 if version == "rand" else None, **FAST)
    trace = sys.gettrace()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = []
        for image, label in zip(x.split(1), y.split(1), strict=True):
            bare = AutoAttack(model, norm=norm, eps=eps, seed=5, version=version, device=x.device)
            bare.apgd.n_iter = bare.apgd_targeted.n_iter = bare.fab.n_iter = FAST["steps"]
            bare.apgd.n_iter_orig = bare.apgd_targeted.n_iter_orig = FAST["steps"]
            bare.square.n_queries = FAST["queries"]
            if version == "rand":
                bare.apgd.eot_iter = 2
            parts.append(bare.run_standard_evaluation(image, label, batch_size=1)[0])
        expected = torch.cat(parts)
    sys.settrace(trace)
    assert torch.equal(found, project(expected, x, norm, eps))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    broken = model(found).argmax(1) != y
    assert torch.equal(model(found).argmax(1), model(expected).argmax(1)) and 0 < int(broken.sum())


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.02), ("L2", 0.1), ("L1", 0.6)])
def test_autoattack_treats_each_image_alone(norm, eps):
    """Of a model whose rows do not depend on each other: bit-equal alone, in any batch, and in any order."""
    model, x = linear(3, 5, torch.float32, (1, 5, 5)), 0.2 + 0.6 * draw((5, 1, 5, 5), 4, torch.float32)
    y = model(x).argmax(1)
    run = partial(autoattack, model, norm=norm, eps=eps, seed=2, **FAST)
    together, order = run(x, y), torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(together[:2], torch.cat([run(x[i : i + 1], y[i : i + 1]) for i in range(2)]))
    assert torch.equal(together[order], run(x[order], y[order], batch=2))
    assert 0 < int((model(together).argmax(1) != y).sum())


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
        ({"eps": float("nan")}, "eps must (not be negative|be a number)"),
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
    for options, message in (
        ({"loss": "hinge"}, "unknown loss 'hinge'; there are ce, margin, dlr and cw"),
        ({"scale": "automatic"}, "scale must be positive or 'auto', got 'automatic'"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"targets": -1}, "targets must be at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"eot": 0}, "eot must be at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be positive, got 0"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'; there are linear, adaptive"),
        ({"gradient": "straight"}, "unknown gradient 'straight'; there are exact, neighbourhood, zeroth"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd(model, x, y, **options)
    for options in ({"version": "plus"}, {"version": "custom"}, {"attacks": ["square"]}):
        with pytest.raises(ValueError, match="version must be one of"):
            autoattack(model, x, y, **options)
    with pytest.raises(ValueError, match="attacks must be of apgd-ce.*; got pgd"):
        autoattack(model, x, y, version="custom", attacks=["pgd"])


def test_losses_that_need_more_classes():
    x, y = draw((2, 1, 3, 3), 0, torch.float32), torch.tensor([0, 1])
    three, two = linear(0, 3, torch.float32), linear(0, 2, torch.float32)
    pgd(three, x, y, loss="dlr", steps=1), pgd(two, x, y, loss="ce", scale="auto", targets=1, steps=1)
    for model, targets, message in ((three, 1, "targeted loss 'dlr' needs at least 4"), (two, 0, "loss 'dlr' needs at least 3")):
        with pytest.raises(ValueError, match=message):
            pgd(model, x, y, loss="dlr", targets=targets)
    for model, attack, message in ((three, "apgd-t", "at least 4"), (two, "apgd-dlr", "at least 3")):
        with pytest.raises(ValueError, match=message):
            autoattack(model, x, y, version="custom", attacks=[attack])


class Answer(nn.Module):
    """A model that returns a wrong thing, from its n-th call on."""

    def __init__(self, change, after=0):
        super().__init__()
        self.inner, self.change, self.left = linear(0, 4, torch.float32), change, after

    def forward(self, x):
        self.left -= 1
        logits = self.inner(x)
        return logits if self.left >= 0 else self.change(logits)


def on_two_devices(_):
    raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!")


ANSWERS = {
    "nan": (lambda f: f.masked_fill(torch.ones_like(f, dtype=torch.bool), torch.nan), "the model returned NaN for . of ."),
    "vector": (lambda f: f[:, 0], r"must return logits \(., K\) for . images, got shape \(.,\)"),
    "tuple": (lambda f: (f, f), "must return logits .* got tuple"),
    "rows": (lambda f: torch.cat([f, f]), "must return logits"),
    "device": (on_two_devices, r"the model is on another device than the images \(cpu\); move one of them with .to\(\)"),
}


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("attack", [pgd, autoattack])
def test_a_bad_answer_of_the_model_gives_one_line(attack, case, after):
    x, y = draw((2, 1, 3, 3), 0, torch.float32), torch.tensor([0, 1])
    change, message = ANSWERS[case]
    y = linear(0, 4, torch.float32)(x).argmax(1)
    with pytest.raises(ValueError, match=message) as error:
        attack(Answer(change, after), x, y, eps=1e-4, steps=5)
    assert "\n" not in str(error.value)


def test_a_model_on_another_device_is_named_also_where_torch_does_not_say_so():
    """Convolutions complain about types; the message of any error on another device is replaced, no other is."""
    model, x = CNN((1, 8, 8), 10, width=4).to("meta"), draw((2, 1, 8, 8), 0, torch.float32)
    with pytest.raises(ValueError, match=r"the model \(meta\) is on another device than the images \(cpu\)"):
        logits_of(model, x)
    with pytest.raises(RuntimeError, match="expected input"):
        logits_of(nn.Conv2d(3, 4, 1), x)


@pytest.mark.parametrize("attack", [pgd, autoattack])
def test_labels_and_probabilities(attack):
    model, x = linear(0, 4, torch.float32), draw((2, 1, 3, 3), 0, torch.float32)
    with pytest.raises(ValueError, match="labels go beyond the 4 classes of the model"):
        attack(model, x, torch.tensor([0, 7]), steps=2)
    options = {"steps": 2} if attack is pgd else {"version": "custom", "attacks": ["apgd-ce"], "steps": 2}
    with pytest.warns(UserWarning, match="returns probabilities"):
        attack(Answer(lambda f: f.softmax(1)), x, torch.tensor([0, 1]), **options)
