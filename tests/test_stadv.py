"""The spatial attack: warping against grid_sample and shifts, the bound on the flow, a closed-form optimum, and logit scale."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import flow_field, stadv, warp
from rdc.attack.losses import margin
from rdc.attack.norms import round_down
from rdc.attack.stadv import random_flow, variation
from rdc.classify import CNN

seeds = st.integers(0, 10**6)
sides = st.integers(2, 9)
dtypes = st.sampled_from([torch.float32, torch.float64])
losses = st.sampled_from(["margin", "ce", "dlr", "released"])


def random_warp(seed, h, w, size, dtype=torch.float64):
    return draw((3, 2, h, w), seed, dtype), size * (2 * draw((3, 2, h, w), seed + 1, dtype) - 1)


def linear(seed, classes=3, shape=(1, 5, 6), dtype=torch.float64):
    return Linear((draw((classes, *shape), seed) - 0.5).to(dtype))


def by_grid_sample(x, flow):
    """The oracle, which takes normalised coordinates."""
    rows, columns = (torch.arange(size, dtype=x.dtype) for size in x.shape[2:])
    grid = torch.stack(torch.meshgrid((2 * columns + 1) / len(columns) - 1, (2 * rows + 1) / len(rows) - 1, indexing="xy"), -1)
    return F.grid_sample(x, grid + flow.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


# ------------------------------------------------------------------------------------------------- warping


@given(seeds, sides, sides, dtypes)
def test_the_zero_flow_changes_no_bit(seed, h, w, dtype):
    x, flow = random_warp(seed, h, w, 0.0, dtype)
    assert torch.equal(warp(x, flow), x)


@given(seeds, sides, sides, st.floats(0.01, 3))
def test_warp_is_grid_sample(seed, h, w, size):
    x, flow = random_warp(seed, h, w, size)
    assert torch.allclose(warp(x, flow), by_grid_sample(x, flow), rtol=0, atol=1e-12)
    weight, slopes = draw(tuple(x.shape), seed + 2), []  # no displacement is a whole pixel, where there is a kink
    for f in (warp, by_grid_sample):
        u = flow.clone().requires_grad_()
        slopes.append(torch.autograd.grad((weight * f(x, u)).sum(), u)[0])
    assert torch.allclose(*slopes, rtol=0, atol=1e-9)


@given(seeds, st.integers(-2, 2), st.integers(-2, 2))
def test_a_flow_of_whole_pixels_is_a_shift(seed, down, right):
    x = draw((2, 1, 8, 16), seed, torch.float32)
    flow = torch.stack([torch.full((2, 8, 16), 2 * right / 16), torch.full((2, 8, 16), 2 * down / 8)], dim=1)
    shifted = torch.roll(x, (-down, -right), (2, 3))
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.equal(warp(x, flow)[inner], shifted[inner])


@given(seeds, sides, st.floats(0, 1), dtypes)
def test_warping_moves_values_and_makes_none(seed, side, size, dtype):
    x, flow = random_warp(seed, side, side, size, dtype)
    found = warp(x, flow)
    low, high = x.amin(dim=(2, 3)), x.amax(dim=(2, 3))
    slack = 4 * torch.finfo(dtype).eps
    assert bool((found.amin(dim=(2, 3)) >= low - slack).all() and (found.amax(dim=(2, 3)) <= high + slack).all())
    assert bool((found >= 0).all() and (found <= 1).all())
    constant = x[:, :, :1, :1].expand_as(x).contiguous()
    assert torch.equal(warp(constant, flow), constant)


@given(seeds, sides, sides)
def test_variation_by_a_loop(seed, h, w):
    _, flow = random_warp(seed, h, w, 1.0)
    expected = torch.zeros(3, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= a < h and 0 <= b < w:
                    expected += (flow[:, :, i, j] - flow[:, :, a, b]).norm(dim=1)
    assert torch.allclose(variation(flow), expected, rtol=0, atol=4e-5 * h * w)
    assert not variation(flow[:, :, :1, :1].expand_as(flow)).any()


# ------------------------------------------------------------------------------------------------- the attack


@given(seeds, st.floats(0, 0.5), losses, dtypes, st.floats(0, 0.1))
@settings(max_examples=12)
def test_the_flow_is_within_its_bound_and_the_image_in_its_range(seed, eps, loss, dtype, smoothness):
    model, x, y = linear(seed, dtype=dtype), draw((4, 1, 5, 6), seed, dtype), torch.tensor([0, 1, 2, 0])
    options = {"eps": eps, "steps": 5, "loss": loss, "smoothness": 0.0 if loss == "released" else smoothness}
    flow = flow_field(model, x, y, **options, seed=seed)
    assert flow.dtype == dtype and flow.shape == (4, 2, 5, 6)
    assert bool((flow.double().abs() <= eps).all())
    found = stadv(model, x, y, **options, seed=seed)
    assert torch.equal(found, warp(x, flow)) and bool((found >= 0).all() and (found <= 1).all())
    wrong = model(x).argmax(1) != y
    assert not flow[wrong].any() and torch.equal(found[wrong], x[wrong])


@given(st.floats(0, 10), dtypes)
def test_the_bound_is_rounded_towards_zero(eps, dtype):
    bound = round_down(eps, dtype)
    assert bound <= eps and float(torch.tensor(bound, dtype=dtype)) == bound
    assert float(torch.nextafter(torch.tensor(bound, dtype=dtype), torch.tensor(20.0, dtype=dtype))) > eps
    flow = random_flow(torch.zeros(2, 1, 3, 3, dtype=dtype), bound, torch.arange(2), 0)
    assert bool((flow.double().abs() <= eps).all())


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_on_a_ramp_the_attack_reaches_the_optimum(loss):
    """On ``x = a + s j`` a flow changes each pixel by ``s u W / 2``, so a linear model gains ``eps s W / 2 |w|_1``."""
    eps, slope = 0.1, 0.05
    weight = draw((2, 1, 6, 8), 5) - 0.5
    weight[..., 0] = weight[..., -1] = 0  # border columns cannot move out
    model = Linear(weight)
    x = (0.3 + slope * torch.arange(8, dtype=torch.float64)).expand(2, 1, 6, 8).contiguous()
    x[1] = 1 - x[1]
    y = model(x).argmax(1)
    clean, gain = margin(model(x), y), eps * slope * 4 * float((weight[0] - weight[1]).abs().sum())
    reached = margin(model(stadv(model, x, y, eps=eps, steps=30, loss=loss)), y)
    assert torch.allclose(reached, clean + gain, rtol=0, atol=1e-9)


@given(seeds, losses, st.integers(1, 2))
@settings(max_examples=12)
def test_each_image_is_treated_alone(seed, loss, restarts):
    model, x, y = linear(seed), draw((4, 1, 5, 6), seed), torch.tensor([0, 1, 2, 0])
    options = {"eps": 0.2, "steps": 4, "loss": loss, "restarts": 1 if loss == "released" else restarts, "seed": seed}
    together = stadv(model, x, y, **options)
    alone = [stadv(model, x[i : i + 1], y[i : i + 1], index=torch.tensor([i]), **options) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_repeats_and_leaves_the_random_state_alone():
    model, x = linear(0), draw((4, 1, 5, 6), 1)
    y, before = model(x).argmax(1), torch.get_rng_state()
    a, b, c = (stadv(model, x, y, eps=0.1, steps=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@given(seeds)
@settings(max_examples=10)
def test_restarts_and_a_wider_bound_only_help(seed):
    model, x = linear(seed), draw((4, 1, 5, 6), seed)
    y = model(x).argmax(1)
    value = [margin(model(stadv(model, x, y, eps=0.05, steps=3, restarts=r, seed=seed)), y) for r in (1, 3)]
    assert bool((value[1] >= value[0]).all())
    assert torch.equal(stadv(model, x, y, eps=0.0, steps=3), x)


@pytest.mark.filterwarnings("ignore:most gradients")  # it is the point
def test_smoothness_makes_the_flow_smooth():
    """On constant images the loss does not change, and what is left is the descent of the variation."""
    model, x = linear(0), torch.full((3, 1, 5, 6), 0.6, dtype=torch.float64)
    y = model(x).argmax(1)
    rough, smooth = (variation(flow_field(model, x, y, eps=0.1, steps=40, smoothness=s)) for s in (0.0, 1.0))
    assert bool((smooth < 0.2 * rough).all())


class Alternating(nn.Module):
    """Gradients that are right on average only: 3 f and -f by turns."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        if not torch.is_grad_enabled():
            return self.inner(x)
        self.calls += 1
        return self.inner(x) * (1 + 2 * (-1) ** self.calls)


def test_eot_averages_the_calls():
    model, x = linear(2, 2), draw((4, 1, 5, 6), 3)
    y = model(x).argmax(1)
    exact = flow_field(model, x, y, eps=0.1, steps=10)
    averaged = flow_field(Alternating(model), x, y, eps=0.1, steps=10, eot=2)
    assert torch.allclose(margin(model(warp(x, averaged)), y), margin(model(warp(x, exact)), y), atol=1e-9)


# ------------------------------------------------------------------------------------------------- scale of the logits


class Scaled(nn.Module):
    """A classifier times a number."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x):
        return self.inner(x) * self.factor


@pytest.fixture(scope="module")
def cnn(digits):
    """A small CNN that knows the digits, in float64 so that its results do not depend on the batch, and images it gets right."""
    model, train, labels = CNN((1, 8, 8), 10, width=8), digits.x[:200], digits.y[:200]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train), labels).backward()
        optimizer.step()
    model.requires_grad_(False).eval().double()
    x = train[:24].double()
    right = model(x).argmax(1) == labels[:24]
    assert int(right.sum()) > 20
    return model, x[right], labels[:24][right]


def survivors(model, x, y, **options):
    return float((model(stadv(model, x, y, **options)).argmax(1) == y).double().mean())


@given(st.integers(-20, 20), st.sampled_from(["margin", "dlr"]))
@settings(max_examples=4)
def test_a_power_of_two_changes_no_bit(cnn, power, loss):
    model, x, y = cnn
    options = {"eps": 0.1, "steps": 4, "loss": loss}
    assert torch.equal(stadv(Scaled(model, 2.0**power), x[:3], y[:3], **options), stadv(model, x[:3], y[:3], **options))


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_the_scale_of_the_logits_does_not_matter(cnn, factor):
    model, x, y = cnn
    a, b = (stadv(m, x[:4], y[:4], eps=0.1, steps=6) for m in (model, Scaled(model, factor)))
    assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_small_logits_defeat_the_released_attack_and_not_ours(cnn):
    model, x, y = cnn
    options = {"eps": 0.3, "steps": 20}
    released, small = (survivors(Scaled(model, f), x, y, loss="released", **options) for f in (1.0, 1e-4))
    ours, ours_small = (survivors(Scaled(model, f), x, y, **options) for f in (1.0, 1e-4))
    assert small >= released + 0.5
    assert ours == ours_small <= released


# ------------------------------------------------------------------------------------------------- bad input


def test_bad_input():
    model, x, y = linear(0, 3), draw((2, 1, 5, 6), 0), torch.tensor([0, 1])
    for options, message in (
        ({"eps": -0.1}, "eps must not be negative"),
        ({"eps": float("nan")}, "eps must be a number"),
        ({"norm": "Linf"}, "unknown norm 'Linf'"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"eot": 0}, "eot must be at least 1, got 0"),
        ({"smoothness": -1.0}, "smoothness must not be negative"),
        ({"loss": "released", "restarts": 2}, "released attack has one start"),
    ):
        with pytest.raises(ValueError, match=message):
            stadv(model, x, y, **options)
    with pytest.raises(ValueError, match="images"):
        stadv(model, 2 * x + 1, y)
    with pytest.raises(ValueError, match="labels"):
        stadv(model, x, y - 1)
    with pytest.raises(ValueError, match="labels go beyond the 3 classes"):
        stadv(model, x, y + 6)
    with pytest.raises(ValueError, match="no gradient reaches the images"):
        stadv(lambda_module(lambda z: model(z.detach())), x, model(x).argmax(1))
    with pytest.warns(UserWarning, match="no number of pixels"):
        stadv(model, x, y, eps=0.8, steps=1)


def lambda_module(f):
    module = nn.Module()
    module.forward = f
    return module
