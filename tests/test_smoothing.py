"""Certificates against the truth: half-spaces in closed form, the optimal classifier in one and two dimensions by quadrature."""

import math

import numpy as np
import pytest
import torch
from helpers import Linear, draw
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from torch import nn

from rdc.certify import Certificate, certify, clopper_pearson, predict
from rdc.certify.clopper_pearson import radius, radius_from_counts, reach
from rdc.certify.confidence_sequence import Plan
from rdc.classify import CNN, DiffusionClassifier
from rdc.denoise import OptimalDenoiser
from rdc.rng import randn, randn_each
from rdc.schedule import levels

SIGMA = 0.25


class HalfSpaces(nn.Module):
    """Two classes with a plane between them, ``offset`` in image units away from the grey image."""

    def __init__(self, offset=0.2, shape=(1, 2, 3)):
        super().__init__()
        self.offset, self.shape, self.seen = offset, shape, []

    def forward(self, x):
        self.seen.append(x.clone())
        along = (x - 0.5).flatten(1).sum(dim=1) / math.sqrt(math.prod(self.shape))
        return torch.stack([along + self.offset, torch.zeros_like(along)], dim=1)


GREY = torch.full((1, 2, 3), 0.5, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- counts and radii


@pytest.mark.parametrize("n", [1, 10, 100, 10_000])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_counts_give_the_bound_and_radius_of_scipy_and_of_cohen(n, alpha):
    for k in sorted({0, 1, n // 2, (3 * n) // 4, n - 1, n}):
        low = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        assert clopper_pearson(k, n, alpha) == pytest.approx(low, abs=1e-10)
        expected = 0.5 * norm.ppf(low) if low > 0.5 else 0.0  # sigma Phi^-1(p_A), or abstention
        assert radius_from_counts(k, n, 0.5, alpha) == pytest.approx(expected, abs=1e-10)
    assert clopper_pearson(0, n, alpha) == 0.0
    assert clopper_pearson(n, n, alpha) == pytest.approx(alpha ** (1 / n), abs=1e-12)
    assert reach(n, 0.5, alpha) == pytest.approx(max(0.0, 0.5 * norm.ppf(alpha ** (1 / n))), abs=1e-10)


def test_arrays_of_counts_and_abstention_at_one_half():
    k = np.arange(101)
    low = clopper_pearson(k, 100, 0.01)
    assert low.shape == (101,) and np.all(np.diff(low) > 0)
    assert np.allclose(radius_from_counts(k, 100, 1.0, 0.01), [radius_from_counts(int(i), 100, 1.0, 0.01) for i in k])
    assert radius(0.5, 1.0) == 0.0 and radius(0.4, 1.0) == 0.0 and 0 < radius(0.5 + 1e-9, 1.0) < 1e-8


def test_wrong_with_probability_at_most_alpha_at_every_p():
    """All n + 1 outcomes; and multiplied counts, which are no counts, are wrong a hundred times as often."""
    n, alpha, k = 200, 0.001, np.arange(201)
    for p in (0.55, 0.8413, 0.95, 0.9987):
        assert binom.pmf(k, n, p)[clopper_pearson(k, n, alpha) > p].sum() <= alpha
        assert p > 0.95 or binom.pmf(k, n, p)[clopper_pearson(10 * k, 10 * n, alpha) > p].sum() > 100 * alpha


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_impossible_counts_are_refused(k, n, alpha):
    with pytest.raises(ValueError, match="counts must satisfy|alpha must lie"):
        clopper_pearson(k, n, alpha)


# ------------------------------------------------------------------------------------------------- certify


def test_the_counts_are_those_of_the_noise_and_no_draw_serves_twice():
    """Every draw is unit Gaussian noise of its own; the plane at distance d is met with probability Phi(d / sigma)."""
    model = HalfSpaces(0.2)
    found = certify(model, GREY, sigma=SIGMA, n0=50, n=3000, alpha=0.001, seed=3, batch=64)
    noise = (torch.cat(model.seen) - GREY) / SIGMA
    assert len(noise) == found.calls == 3050 and len(noise.unique(dim=0)) == 3050
    assert abs(noise.mean()) < 5 / math.sqrt(noise.numel()) and noise.std() == pytest.approx(1, abs=0.03)
    answers = model(noise * SIGMA + GREY).argmax(1)
    assert found.candidate == int(answers[:50].bincount().argmax()) == 0
    assert (found.k, found.n) == (int((answers[50:] == 0).sum()), 3000)
    assert found.p_low == clopper_pearson(found.k, 3000, 0.001)
    assert found.radius == radius_from_counts(found.k, 3000, SIGMA, 0.001)
    assert 0.1 < found.radius < 0.2 and found.label == 0
    assert found.holds(0, found.radius) and not found.holds(1, 0.0) and not found.holds(0, 0.2)


@pytest.mark.parametrize("options", [{}, {"target": 0.1}, {"target": 0.1, "stopping": "split"}])
def test_batch_order_and_company_change_nothing(options):
    model = Linear(draw((3, 1, 2, 3), 4) - 0.5)
    x = draw((4, 1, 2, 3), 1)
    settings = {"sigma": SIGMA, "n0": 20, "n": 500, "alpha": 0.01, "seed": 5, **options}
    together = certify(model, x, **settings)
    assert isinstance(together, list) and len({c.k for c in together}) > 1
    assert certify(model, x, batch=7, **settings) == certify(model, x, batch=1000, **settings) == together
    alone = [certify(model, image, index=i, batch=1 + 40 * i, **settings) for i, image in enumerate(x)]
    assert alone == together and certify(model, x[2:3], index=[2], **settings) == together[2]
    assert certify(model, x.flip(0), index=[3, 2, 1, 0], **settings) == together[::-1]
    assert certify(model, x, **{**settings, "seed": 6}) != together


@given(st.integers(0, 2**40), st.integers(1, 5), st.sampled_from([(3,), (1, 4, 5), (2, 3, 4)]))
def test_noise_made_at_once_is_that_of_each_stream(seed, n, shape):
    keys, like = [(seed, "smoothing", i) for i in range(n)], torch.zeros(1, dtype=torch.float64)
    assert torch.equal(randn_each(shape, keys, like=like), torch.stack([randn(shape, *k, like=like) for k in keys]))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    certify(HalfSpaces(), GREY, n=20, n0=5)
    assert torch.equal(before, torch.get_rng_state())


class Always(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class Alternating(nn.Module):
    """Class 0 where the first pixel of the noisy image is above 1/2: half of the draws."""

    def forward(self, x):
        up = (x.flatten(1)[:, 0] > 0.5).float()
        return torch.stack([up, 1 - up, -torch.ones_like(up)], 1)


def test_all_draws_agree_none_do_and_a_tie():
    always = certify(Always([0.0, 2.0, 1.0]), GREY, sigma=0.5, n0=10, n=100, alpha=0.001)
    assert (always.label, always.k, always.n) == (1, 100, 100)
    assert always.radius == reach(100, 0.5, 0.001) and always.met is None and always.stopping == "fixed"
    tie = certify(Alternating(), GREY, sigma=0.5, n0=11, n=100, alpha=0.001)
    assert (tie.label, tie.radius) == (-1, 0.0) and tie.candidate in (0, 1) and 30 < tie.k < 70
    assert certify(Always([1.0, 1.0]), GREY, n0=3, n=100).candidate == 0  # equal logits: the first


class Switching(nn.Module):
    """Class 1 for the first ``n0`` draws, class 0 afterwards: the estimate must not see the first."""

    def __init__(self, n0):
        super().__init__()
        self.left = n0

    def forward(self, x):
        first = torch.arange(len(x)) < self.left
        self.left -= len(x)
        return 2 * torch.stack([(~first).float(), first.float()], 1)


def test_the_draws_that_choose_do_not_count():
    found = certify(Switching(40), GREY, n0=40, n=60)
    assert (found.candidate, found.k, found.label, found.radius) == (1, 0, -1, 0.0)


def test_a_target_is_met_or_given_up_early_and_the_full_radius_does_not_depend_on_it():
    near, far = HalfSpaces(0.7), HalfSpaces(0.1)
    for stopping in ("sequence", "split"):
        common = {"sigma": SIGMA, "n0": 20, "n": 10_000, "alpha": 0.001, "target": 0.25, "stopping": stopping}
        yes, no = certify(near, GREY, **common), certify(far, GREY, **common)
        assert yes.met and yes.label == 0 and 0.25 <= yes.radius <= 0.7 and yes.n < 100 and yes.stopping == stopping
        assert no.met is False and no.radius < 0.25 and no.n < 1000
        assert yes.calls == 20 + yes.n and len(torch.cat(near.seen)) == yes.calls
        near.seen.clear()
        plan = Plan(stopping, 10_000, norm.cdf(1), 0.001)
        assert yes.n in plan.looks and yes.p_low >= plan.p


def test_progress_is_told_after_every_batch():
    told = []
    found = certify(HalfSpaces(), GREY, n0=10, n=50, batch=20, progress=lambda made, r: told.append((made, r)))
    assert [made for made, _ in told] == [30, 50, 60] and told[-1][1] == found.radius


# ------------------------------------------------------------------------------------------------- random base classifiers


class Keyed(nn.Module):
    """Takes ``index``, and answers by it."""

    def __init__(self):
        super().__init__()
        self.codes = []

    def forward(self, x, index):
        self.codes += index.tolist()
        return 2 * torch.stack([index % 5 != 0, index % 5 == 0], 1).float()


def test_a_base_classifier_with_noise_of_its_own_gets_a_number_for_each_draw():
    found, codes = [], []
    for batch in (3, 64):
        model = Keyed()
        found.append(certify(model, torch.stack([GREY, GREY]), n0=10, n=40, batch=batch))
        predict(model, GREY, n=30, batch=batch)
        codes.append(model.codes)
    assert found[0] == found[1] and codes[0] == codes[1] and len(set(codes[0])) == 130
    with torch.no_grad():
        other = Keyed()
        certify(other, GREY, index=1, n0=10, n=40)
    assert other.codes == [c for c in codes[0] if c >= 2**32]  # those of the image with index 1


def test_noise_that_is_new_at_every_call_is_fixed_once_for_all_draws():
    """Within a batch it would be shared: the draws would depend on each other, and the result on the batch."""
    x, y = draw((6, 1, 1, 2), 2), torch.tensor([0, 1, 2, 0, 1, 2])

    class Clipped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def frozen(self, seed):
            return Clipped(self.inner.frozen(seed))

        def forward(self, x):
            return self.inner(x.clamp(0, 1))

    fresh, shared = (
        Clipped(DiffusionClassifier(OptimalDenoiser(x, y), levels("elbo", 4), noise, seed=7)) for noise in ("fresh", "shared")
    )
    settings = {"sigma": 0.1, "n0": 10, "n": 60, "alpha": 0.01, "seed": 7}
    expected = certify(shared, x[:2], **settings)
    assert certify(fresh, x[:2], batch=9, **settings) == certify(fresh, x[:2], batch=64, **settings) == expected
    del Clipped.frozen
    with pytest.raises(ValueError, match="Clipped draws noise at every call and has no frozen"):
        certify(fresh, x[0], **settings)


# ------------------------------------------------------------------------------------------------- predict


def test_prediction_is_wrong_rarely_and_abstains_where_classes_are_close():
    assert predict(HalfSpaces(0.3), GREY, sigma=SIGMA, n=100) == 0
    assert predict(HalfSpaces(-0.3), torch.stack([GREY, GREY]), sigma=SIGMA, n=100) == [1, 1]
    assert predict(Alternating(), GREY, n=100) == -1
    assert predict(Always([0.0, 1.0]), GREY, n=3, alpha=0.001) == -1  # three draws can decide nothing at this level
    assert predict(Always([0.0, 1.0]), GREY, n=11, alpha=0.001) == 1  # 2 / 2^11 < 0.001
    assert predict(Always([0.0, 1.0]), GREY, n=10, alpha=0.001) == -1
    x = torch.full((400, 1, 2, 3), 0.5, dtype=torch.float64)
    found = np.array(predict(HalfSpaces(0.02), x, sigma=SIGMA, n=30, alpha=0.05, batch=30))
    assert (found == 1).sum() <= binom.ppf(1 - 1e-4, 400, 0.05) and (found == -1).any() and (found == 0).any()


# ------------------------------------------------------------------------------------------------- exact ground truth


class Bayes(nn.Module):
    """The optimal classifier of noisy images: argmax of the exact log density at tau = 2 sigma, in model units."""

    def __init__(self, x, y, sigma):
        super().__init__()
        self.data, self.tau = OptimalDenoiser(x, y), 2 * sigma

    def forward(self, x):
        return self.data.log_density(2 * x - 1, self.tau)


def intervals(model, low=-3.0, high=4.0, count=14_001):
    """The regions of a classifier of one pixel: their ends and classes, ends found to 1e-13."""

    def answer(t):
        return model(torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1)).argmax(1).numpy()

    grid = np.linspace(low, high, count)
    classes = answer(grid)
    ends = []
    for i in np.flatnonzero(np.diff(classes)):
        a, b = grid[i], grid[i + 1]
        for _ in range(45):
            m = (a + b) / 2
            a, b = (m, b) if answer([m])[0] == classes[i] else (a, m)
        ends.append(a)
    starts = np.flatnonzero(np.r_[True, np.diff(classes) != 0])
    return np.array(ends), classes[starts]


def smoothed(ends, classes, t, sigma, k):
    """Exact probabilities of the classes under noise, ``(len(t), K)``."""
    cdf = norm.cdf((ends[None] - np.atleast_1d(t)[:, None]) / sigma)
    mass = np.diff(np.c_[np.zeros(len(cdf)), cdf, np.ones(len(cdf))], axis=1)
    return np.stack([mass[:, classes == c].sum(axis=1) for c in range(k)], axis=1)


def true_radius_1d(ends, classes, t, sigma, label, k):
    """Distance from t to the nearest point with another smoothed class; 0 if it has another one itself."""

    def lead(u):
        p = smoothed(ends, classes, u, sigma, k)[0]
        return p[label] - np.delete(p, label).max()

    if lead(t) <= 0:
        return 0.0
    found = []
    for direction in (-1, 1):
        steps = np.linspace(0, 4, 801)[1:]
        first = next((s for s in steps if lead(t + direction * s) <= 0), None)
        if first is not None:
            found.append(brentq(lambda s, d=direction: lead(t + d * s), first - 0.005, first, xtol=1e-12))
    return min(found, default=math.inf)


def repeated(model, x, sigma, n0, n, alpha, runs, seed, target=None, stopping="sequence"):
    """``certify``, ``runs`` times at once: labels and radii from the same rules, on answers to one tensor of noise."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.standard_normal((runs * (n0 + n), *x.shape)))
    answers = model(x + sigma * noise).argmax(1).reshape(runs, n0 + n).numpy()
    k = max(2, answers.max() + 1)
    candidate = np.stack([(answers[:, :n0] == c).sum(1) for c in range(k)], 1).argmax(1)
    hits = np.cumsum(answers[:, n0:] == candidate[:, None], axis=1)
    if target is None:
        low = clopper_pearson(hits[:, -1], n, alpha)
    else:
        plan, running, low = Plan(stopping, n, norm.cdf(target / sigma), alpha), np.ones(runs, bool), np.zeros(runs)
        for look, made in enumerate(plan.looks):
            at = hits[:, made - 1]
            ends = running & (plan.met(at, look) | plan.futile(at, look))
            low[ends] = plan.lower(at[ends], look)
            running &= ~ends
        assert not running.any()
    return candidate, radius(low, sigma), hits[:, -1] / n


def one_pixel(seed, counts):
    """A one-pixel data set."""
    x = draw((sum(counts), 1, 1, 1), seed)
    return x, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@pytest.mark.parametrize("target", [None, "sequence", "split"])
@pytest.mark.parametrize(("seed", "counts", "sigma"), [(0, (1, 1), 0.25), (3, (2, 3, 2), 0.1), (11, (2, 2, 3), 0.05)])
def test_the_radius_is_at_most_the_true_one_with_the_stated_confidence_1d(seed, counts, sigma, target):
    """1000 repetitions against the exact radius; a smoothed classifier of two half-lines makes the bound sharp."""
    alpha, runs = 0.05, 1000
    x, y = one_pixel(seed, counts)
    model, k = Bayes(x, y, sigma), len(counts)
    ends, classes = intervals(model)
    for i in (0, len(x) - 1):
        p = smoothed(ends, classes, float(x[i]), sigma, k)[0]
        truth = {c: true_radius_1d(ends, classes, float(x[i]), sigma, c, k) for c in range(k)}
        ask = (
            None if target is None else min(sigma * max(norm.ppf(p.max()), 0.1), 0.8 * reach(400, sigma, alpha))
        )  # at the edge: claims are wrong
        label, found, share = repeated(model, x[i], sigma, 20, 400, alpha, runs, i, ask, target or "sequence")
        allowed = np.array([truth[c] for c in label])
        wrong = ((found > allowed) & (found > 0)).sum()
        assert wrong <= binom.ppf(1 - 1e-4, runs, alpha)
        assert (found > 0).any() or p.max() < 0.6
        if len(ends) == 1:  # half-lines: the radius is sigma Phi^-1(p), and a share in the place of its bound is often too high
            assert truth[int(p.argmax())] == pytest.approx(sigma * norm.ppf(p.max()), abs=1e-9)
            assert (radius(np.minimum(share, 1 - 1e-9), sigma) > allowed).mean() > 0.3
        else:
            assert truth[int(p.argmax())] >= sigma * norm.ppf(p.max()) - 1e-9


def test_the_radius_is_at_most_the_true_one_with_the_stated_confidence_2d():
    """Two pixels: the class probabilities by quadrature on a grid, the radius over all points of the plane around an image."""
    alpha, runs, sigma = 0.05, 1000, 0.15
    x, y = draw((6, 1, 1, 2), 8), torch.tensor([0, 1, 2, 0, 1, 2])
    model = Bayes(x, y, sigma)
    axis = np.linspace(-0.8, 1.8, 521)
    points = torch.from_numpy(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 1, 2))
    region = model(points).argmax(1).numpy().reshape(len(axis), len(axis))
    kernel = norm.pdf((axis[:, None] - axis[None]) / sigma) / sigma * (axis[1] - axis[0])
    mass = np.stack([kernel @ (region == c) @ kernel.T for c in range(3)])
    top = mass.argmax(0)
    distance = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    for i in range(3):
        near = np.unravel_index(np.linalg.norm(distance - x[i].numpy().ravel(), axis=-1).argmin(), top.shape)
        centre = distance[near]  # the grid point nearest to the image is the image of this test
        image = torch.from_numpy(centre.copy()).reshape(1, 1, 2)
        away = np.linalg.norm(distance - centre, axis=-1)
        label, found, _ = repeated(model, image, sigma, 20, 300, alpha, runs, i)
        truth = np.array([away[top != c].min() for c in range(3)])[label]
        assert (found > truth + 2 * (axis[1] - axis[0])).sum() <= binom.ppf(1 - 1e-4, runs, alpha)
        assert found.max() > 0.02
        share = (label == top[near]).mean()
        assert share > 0.8
        one = Draws2d(model, image, sigma)
        assert np.abs(one - mass[(slice(None), *near)]).max() < 0.02


def Draws2d(model, image, sigma, n=20_000):  # noqa: N802
    """Class probabilities by simulation, to check the quadrature."""
    noise = torch.from_numpy(np.random.default_rng(9).standard_normal((n, 1, 1, 2)))
    return np.bincount(model(image + sigma * noise).argmax(1).numpy(), minlength=3) / n


def test_the_repetitions_of_these_tests_are_those_of_certify():
    """The rules of ``repeated`` on the noise of ``certify`` give its certificates."""
    x, y = one_pixel(3, (2, 3, 2))
    model = Bayes(x, y, 0.1)
    radii = []
    for seed in range(30):
        found = certify(model, x[0], sigma=0.1, n0=20, n=100, alpha=0.05, seed=seed)
        assert isinstance(found, Certificate) and found.radius == radius_from_counts(found.k, 100, 0.1, 0.05)
        radii.append(found.radius)
    _, expected, _ = repeated(model, x[0], 0.1, 20, 100, 0.05, 2000, 1)
    assert abs(np.mean(radii) - expected.mean()) < 5 * expected.std() / math.sqrt(30)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"alpha": 1.0}, "alpha must lie in"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n0": 0}, "n0 must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"target": 0.0}, "target must be positive"),
        ({"target": 1.0, "n": 10_000}, "do not reach the target at alpha 0.001; it takes about"),
        ({"target": 0.1, "stopping": "peek"}, "unknown stopping"),
        ({"index": [1, 2]}, "index must hold 1 different"),
        ({"index": -1}, "index must lie in"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        certify(HalfSpaces(), GREY, **{"n": 100, **options})


def test_bad_images_and_logits_are_refused():
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        certify(HalfSpaces(), GREY + 1)
    with pytest.raises(ValueError, match="NaN for 4 of 4 images"):
        certify(Always([math.nan, 1.0]), GREY, n0=4)
    with pytest.raises(ValueError, match=r"must return logits \(4, K\)"):
        certify(lambda x: x.flatten(1)[:, 0], GREY, n0=4)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        certify(CNN((1, 8, 8), 3, width=2), draw((1, 8, 8), dtype=torch.float32), n0=4)  # a network that refuses noisy images
