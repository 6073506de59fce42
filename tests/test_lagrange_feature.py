"""Lagrange and feature attacks: PGD at weight zero, a union that gains, the nearest point in closed form, the wrong sign."""

import numpy as np
import pytest
import torch
from helpers import Linear, draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from rdc.attack import feature, lagrange, pgd
from rdc.attack.feature import choose
from rdc.attack.losses import margin
from rdc.attack.norms import norm_of
from rdc.classify import DiffusionClassifier
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.denoise.optimal import OptimalDenoiser
from rdc.schedule import levels

norms = st.sampled_from(["Linf", "L2"])
radii = st.floats(1e-4, 0.9)
seeds = st.integers(0, 10**6)
losses = st.sampled_from(["ce", "margin", "dlr"])
dtypes = st.sampled_from([torch.float32, torch.float64])


def linear(seed=0, classes=3, dtype=torch.float64, shape=(1, 3, 3)):
    return Linear((draw((classes, *shape), seed) - 0.5).to(dtype), 0.1 * (draw((classes,), seed + 1) - 0.5).to(dtype))


def inside(x_adv, x, norm, eps):
    size = norm_of(x_adv.double() - x.double(), norm)
    return bool((size <= eps * (1 + 1e-12)).all() and (x_adv >= 0).all() and (x_adv <= 1).all())


def energy(x):
    """A penalty: the squared norm."""
    return x.square().flatten(1).sum(1)


# ------------------------------------------------------------------------------------------------- diffusion loss


@given(seeds, st.sampled_from(["elbo", "edm", "vp"]), st.integers(1, 3))
@settings(max_examples=6)
def test_for_one_class_the_diffusion_loss_is_minus_the_logit(seed, kind, count):
    """The independent oracle: with one class, conditional and unconditional are the same, and so is the noise."""
    x, _ = mixture(seed, (6,))
    denoiser, ladder = OptimalDenoiser(x, torch.zeros(6, dtype=torch.int64)), levels(kind, count)
    points = draw((3, 1, 2, 3), seed + 1).requires_grad_()
    logit = DiffusionClassifier(denoiser, ladder, seed=seed)(points)[:, 0]
    loss = diffusion_loss(denoiser, ladder, seed)(points)
    assert torch.allclose(loss, -logit, rtol=1e-9)
    slope, expected = torch.autograd.grad(loss.sum(), points)[0], torch.autograd.grad(-logit.sum(), points)[0]
    assert torch.allclose(slope, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def test_a_trained_kind_of_network_gives_a_gradient():
    penalty = diffusion_loss(tiny_network(), levels("edm", 3))
    x = draw((2, 1, 8, 8), 0, torch.float32).requires_grad_()
    (slope,) = torch.autograd.grad(penalty(x).sum(), x)
    with torch.no_grad():
        there, alone = penalty(x), torch.cat([penalty(x[i : i + 1]) for i in range(2)])
    assert torch.allclose(there, alone, rtol=1e-4)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        rise = (penalty((x + step).clamp(0, 1)) - penalty((x - step).clamp(0, 1))).sum()
    assert float(rise) == pytest.approx(2 * float((slope * step).sum()), rel=0.2)


def test_images_of_the_data_have_a_smaller_loss_than_noise():
    x, y = mixture(0, (5, 5), (1, 3, 3))
    penalty = diffusion_loss(OptimalDenoiser(x, y), levels("edm", 4))
    assert float(penalty(x).max()) < float(penalty(draw((10, 1, 3, 3), 9)).min())


# ------------------------------------------------------------------------------------------------- Lagrange


@pytest.mark.filterwarnings("ignore:most gradients")  # where the loss is flat, for both
@given(seeds, norms, losses, st.integers(1, 6), radii)
@settings(max_examples=12)
def test_weight_zero_is_pgd(seed, norm, loss, steps, eps):
    model, x, y = linear(seed), draw((5, 1, 3, 3), seed), torch.arange(5) % 3
    options = {"norm": norm, "eps": eps, "steps": steps, "loss": loss, "seed": seed, "index": torch.arange(5) + 3}
    assert torch.equal(lagrange(model, x, y, energy, weights=(0,), **options), pgd(model, x, y, schedule="linear", **options))


@given(seeds, norms, losses, radii, dtypes)
@settings(max_examples=15)
def test_lagrange_stays_in_the_ball(seed, norm, loss, eps, dtype):
    model, x, y = linear(seed, 3, dtype), draw((4, 1, 3, 3), seed, dtype), torch.tensor([0, 1, 2, 0])
    x_adv = lagrange(model, x, y, energy, (0, 1, 10), norm, eps, steps=4, loss=loss, seed=seed)
    assert x_adv.dtype == dtype and inside(x_adv, x, norm, eps)
    wrong = model(x).argmax(1) != y
    assert torch.equal(x_adv[wrong], x[wrong])


@given(seeds, norms)
@settings(max_examples=8)
def test_a_union_breaks_what_any_prefix_breaks(seed, norm):
    model, x = linear(seed), draw((6, 1, 3, 3), seed)
    y = model(x).argmax(1)
    few, more = (lagrange(model, x, y, energy, w, norm, 0.1, steps=5, seed=seed) for w in ((0,), (0, 1, 10)))
    broken = model(few).argmax(1) != y
    assert torch.equal(more[broken], few[broken])
    assert bool((model(more).argmax(1) != y)[broken].all())


@given(seeds, norms)
@settings(max_examples=6)
def test_lagrange_treats_each_image_alone_and_repeats(seed, norm):
    model, x, y = linear(seed), draw((4, 1, 3, 3), seed), torch.tensor([0, 1, 2, 0])
    before = torch.get_rng_state()
    together, again = (lagrange(model, x, y, energy, (0, 1), norm, 0.05, steps=4, seed=seed) for _ in range(2))
    alone = [
        lagrange(model, x[i : i + 1], y[i : i + 1], energy, (0, 1), norm, 0.05, steps=4, seed=seed, index=torch.tensor([i]))
        for i in range(4)
    ]
    assert torch.equal(together, again) and torch.equal(together, torch.cat(alone))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_penalty_of_what_breaks_falls_to_its_minimum():
    """The sign of Eq. 10 for the attacker, a small penalty: where the loss is flat the optimum over the ball is known."""

    class Fooled(nn.Module):
        """Wrong everywhere but at the images themselves."""

        def forward(self, x):
            same = (x.detach() - clean).abs().amax(dim=(1, 2, 3)) < 1e-12
            return torch.stack([2.0 * same, 1.0 * ~same, -1.0 + 0 * same], 1) + 0 * energy(x)[:, None]

    clean, y = 0.3 + 0.4 * draw((3, 1, 3, 3), 1), torch.zeros(3, dtype=torch.int64)
    for norm in ("Linf", "L2"):
        found = lagrange(Fooled(), clean, y, energy, (1.0,), norm, 0.1, steps=60)
        size = clean.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        best = clean - 0.1 if norm == "Linf" else clean * (1 - 0.1 / size)
        assert bool((energy(found) <= energy(best) + 0.01 * (energy(clean) - energy(best))).all())


@pytest.mark.filterwarnings("ignore:most gradients")  # of plain PGD
def test_a_defence_that_cleans_is_broken_by_the_penalty_only():
    """The defence trusts only images near the data: far from it, it answers with the right class whatever the logits say."""
    data = torch.tensor([0.2, 0.8], dtype=torch.float64)[:, None, None, None].expand(2, 1, 3, 3).contiguous()
    steer = torch.zeros(1, 3, 3, dtype=torch.float64)
    steer[0, 0, 0] = 1.0

    def roughness(x):
        return (x - x.mean(dim=(2, 3), keepdim=True)).square().flatten(1).sum(1)

    class Trusting(nn.Module):
        """Class 1 above one half at the corner; rough images are called class 0."""

        def forward(self, x):
            score = ((x[:, 0, 0, 0] - 0.5) + 0 * (x * steer).flatten(1).sum(1)) * 10
            score = torch.where(roughness(x).detach() > 1e-3, -1 + 0 * score, score)
            return torch.stack([-score, score], 1)

    x, y = 0 * data[:1] + 0.45, torch.zeros(1, dtype=torch.int64)
    plain = lagrange(Trusting(), x, y, roughness, (0,), eps=0.1, steps=40, loss="margin")
    union = lagrange(Trusting(), x, y, roughness, (0, 1, 10, 100), eps=0.1, steps=40, loss="margin")
    assert int(Trusting()(plain).argmax(1)) == 0
    assert int(Trusting()(union).argmax(1)) == 1


def test_lagrange_bad_input():
    model, x, y = linear(), draw((2, 1, 3, 3), 0), torch.tensor([0, 1])
    y = model(x).argmax(1)
    for options, message in (
        ({"weights": ()}, "weights must be"),
        ({"weights": (0, -1)}, "weights must not be negative, got -1"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"norm": "L1"}, "unknown norm 'L1'"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"eot": 0}, "eot must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            lagrange(model, x, y, energy, **options)
    with pytest.raises(ValueError, match="one number for each of"):
        lagrange(model, x, y, lambda z: energy(z).sum(), weights=(1,))
    with pytest.raises(ValueError, match="penalty is not finite"):
        lagrange(model, x, y, lambda z: energy(z) / 0, weights=(1,))


# ------------------------------------------------------------------------------------------------- feature


class Fixed(nn.Module):
    """Never wrong about class 0, and differentiable."""

    def forward(self, x):
        return torch.stack([3 + 0 * energy(x), 0 * energy(x)], 1)


def nearest(a, x, goal, eps):
    """``argmin |A (x + d) - goal|`` over ``|d| <= eps`` by the secular equation of the trust region."""
    a, r = a.numpy(), (goal - a @ x).numpy()
    values, vectors = np.linalg.eigh(a.T @ a)
    g = vectors.T @ (a.T @ r)

    def step(mu):
        return vectors @ (g / (values + mu))

    inner = np.linalg.lstsq(a, r, rcond=None)[0]
    if np.linalg.norm(inner) <= eps:
        return inner
    return step(brentq(lambda mu: np.linalg.norm(step(mu)) - eps, 1e-12, 1e6))


@given(seeds, st.floats(0.02, 0.2), st.integers(3, 9))
@settings(max_examples=5)
def test_on_linear_features_the_attack_reaches_the_nearest_point(seed, eps, rows):
    a = draw((rows, 9), seed) - 0.5
    x, target = 0.4 + 0.2 * draw((1, 1, 3, 3), seed + 1), draw((1, 1, 3, 3), seed + 2)
    y = torch.zeros(1, dtype=torch.int64)
    found = feature(Fixed(), x, y, lambda z: z.flatten(1) @ a.T, target, "L2", eps, steps=150, seed=seed)
    goal = a @ target.flatten()

    def distance(z):
        return float((a @ z.flatten() - goal).norm())

    best = distance(x.flatten() + torch.from_numpy(nearest(a, x.flatten(), goal, eps)))
    assert best - 1e-9 <= distance(found) <= best + 0.02 * (distance(x) - best) + 1e-3


@given(seeds, norms, radii, dtypes, st.sampled_from(["correct", "released"]), st.sampled_from([None, "ce", "margin", "dlr"]))
@settings(max_examples=15)
def test_feature_stays_in_the_ball(seed, norm, eps, dtype, variant, loss):
    model, x, y = linear(seed, 3, dtype), draw((4, 1, 3, 3), seed, dtype), torch.tensor([0, 1, 2, 0])
    x_adv = feature(model, x, y, norm=norm, eps=eps, steps=4, variant=variant, loss=loss, seed=seed)
    assert x_adv.dtype == dtype and inside(x_adv, x, norm, eps)
    wrong = model(x).argmax(1) != y
    assert torch.equal(x_adv[wrong], x[wrong])


@given(seeds, norms, st.sampled_from(["correct", "released"]))
@settings(max_examples=10)
def test_with_given_targets_feature_treats_each_image_alone(seed, norm, variant):
    model, x, y = linear(seed), draw((4, 1, 3, 3), seed), torch.tensor([0, 1, 2, 0])
    targets = draw((4, 1, 3, 3), seed + 1) if variant == "correct" else None
    options = {"norm": norm, "eps": 0.05, "steps": 4, "variant": variant, "seed": seed}
    before = torch.get_rng_state()
    together, again = (feature(model, x, y, target_images=targets, **options) for _ in range(2))
    alone = [
        feature(
            model,
            x[i : i + 1],
            y[i : i + 1],
            target_images=None if targets is None else targets[i : i + 1],
            index=torch.tensor([i]),
            **options,
        )
        for i in range(4)
    ]
    assert torch.equal(together, again) and torch.equal(together, torch.cat(alone))
    assert torch.equal(torch.get_rng_state(), before)


@given(seeds)
def test_targets_have_another_label_and_do_not_depend_on_the_order(seed):
    x, y, index = draw((8, 1, 2, 2), seed), torch.tensor([0, 1, 2, 0, 1, 0, 0, 2]), torch.arange(8) + 10
    found = choose(x, y, index, seed)
    place = (found[:, None] == x[None]).flatten(2).all(2).double().argmax(1)
    assert bool((y[place] != y).all())
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.equal(choose(x[order], y[order], index[order], seed), found[order])
    assert len({tuple(choose(x, y, index, s)[0].flatten().tolist()) for s in range(30)}) == 4  # every candidate has its turn


def test_matching_the_logits_of_another_class_changes_the_prediction():
    model, x = linear(0), draw((6, 1, 3, 3), 3)
    y = model(x).argmax(1)
    assert len(y.unique()) > 1
    found = feature(model, x, y, norm="Linf", eps=0.6, steps=100, restarts=2)
    assert bool((model(found).argmax(1) != y).all())


class Errors(nn.Module):
    """Logits that are minus mean squared errors, close to each other as those of a diffusion classifier are."""

    def __init__(self, centers):
        super().__init__()
        self.centers = centers

    def forward(self, x):
        return -(x[:, None] - self.centers).square().flatten(2).mean(2)


@given(seeds, norms, st.sampled_from([None, "ce"]))
@settings(max_examples=5)
def test_the_released_variant_raises_every_logit(seed, norm, loss):
    """The target is positive and the logits are negative: every class becomes more likely, the right one as well."""
    model = Errors(0.2 + 0.02 * draw((4, 1, 3, 3), seed))
    x = 0.5 + 0.3 * draw((3, 1, 3, 3), seed + 1)
    y = model(x).argmax(1)
    released = feature(model, x, y, norm=norm, eps=0.1, variant="released", loss=loss)
    assert bool((model(released) > model(x)).all())
    if loss is None:
        honest = pgd(model, x, y, norm=norm, eps=0.1)
        assert float(margin(model(released), y).mean()) < float(margin(model(honest), y).mean())


def test_the_released_variant_raises_the_mean_logit_of_a_diffusion_classifier():
    """In the units of the released code. Classes that are far apart trade: the mean rises, not each of them."""
    x, y = mixture(1, (3, 3, 3), (1, 3, 3))
    model = DiffusionClassifier(OptimalDenoiser(x, y), levels("edm", 2), reduce="mean")
    points = (x + 0.3 * (draw(tuple(x.shape), 7) - 0.5)).clamp(0, 1)
    right = model(points).argmax(1) == y
    points, y = points[right], y[right]
    assert len(y) > 3 and bool((model(points) < 0).all())
    found = feature(model, points, y, eps=0.05, steps=10, variant="released")
    assert float(model(found).mean()) > float(model(points).mean())
    assert float((model(found) - 0.12).square().mean()) < float((model(points) - 0.12).square().mean())


def test_feature_bad_input():
    model, x = linear(), draw((2, 1, 3, 3), 0)
    y = torch.tensor([0, 1])
    for options, message in (
        ({"eps": -1.0}, "eps must not be negative"),
        ({"norm": "L1"}, "unknown norm 'L1'"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"variant": "other"}, "unknown variant 'other'"),
        ({"variant": "released", "target_images": x}, "leave out what differs"),
        ({"variant": "released", "restarts": 2}, "leave out what differs"),
        ({"target_images": 2 * x + 1}, "images must lie in"),
        ({"features": lambda z: z.sum()}, "features must be a tensor"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            feature(model, x, y, **options)
    with pytest.raises((ValueError, TypeError), match="a target image for each of 2|target_images"):
        feature(model, x, y, target_images=x[:1])
    with pytest.raises(ValueError, match="no image of a class other than 0"):
        feature(model, x, torch.tensor([0, 0]))
