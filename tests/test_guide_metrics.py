"""The Frechet distance against closed forms and scipy, precision and recall against loops, intervals against theory."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import draw
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.classify.networks import CNN
from rdc.evaluate import Accuracy
from rdc.guide.metrics import FeatureNetwork, agreement, bootstrap, frechet_distance, inside, precision_recall
from rdc.rng import randn
from rdc.runs.statistics import repeated


def points(n, d, *key):
    return randn((n, d), "points", *key).double()


def with_moments(n, mean, root, *key):
    """Points whose sample mean and covariance are exactly ``mean`` and ``root root^T``."""
    z = points(n, len(mean), *key)
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / (n - 1))).T
    return mean + z @ root.T


# Frechet distance


@given(seed=st.integers(0, 1000), d=st.integers(1, 5))
def test_frechet_of_gaussians_that_commute(seed, d):
    """Same eigenvectors: ``d^2 = |m_1 - m_2|^2 + sum (s_1 - s_2)^2``."""
    axes = torch.linalg.qr(points(d, d, seed, "axes"))[0]
    s = [points(1, d, seed, i)[0].abs() + 0.1 for i in range(2)]
    m = [points(1, d, seed, "mean", i)[0] for i in range(2)]
    a, b = (with_moments(12, m[i], axes * s[i], seed, "z", i) for i in range(2))
    right = float((m[0] - m[1]).square().sum() + (s[0] - s[1]).square().sum())
    assert frechet_distance(a, b) == pytest.approx(right, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("d", [2, 10])
def test_frechet_against_scipy(d):
    a, b = points(50, d, 1) @ points(d, d, 2), 0.5 * points(70, d, 3) @ points(d, d, 4) + 1
    c = [np.cov(x.T.numpy()) for x in (a, b)]
    root = scipy.linalg.sqrtm(c[0] @ c[1])
    right = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(c[0] + c[1] - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(right, rel=1e-9)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_laws_of_the_frechet_distance(seed, scale):
    a, b = points(9, 4, seed, "a"), points(11, 4, seed, "b") * 2 + 0.3
    value = frechet_distance(a, b)
    turn = torch.linalg.qr(points(4, 4, seed, "turn"))[0]
    assert value > 0 and frechet_distance(b, a) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(a @ turn + 5, b @ turn + 5) == pytest.approx(value, rel=1e-7)
    assert frechet_distance(scale * a, scale * b) == pytest.approx(scale**2 * value, rel=1e-7)
    assert abs(frechet_distance(a, a)) < 1e-10 and abs(frechet_distance(a, a.flip(0))) < 1e-10


def test_singular_covariances_and_float32():
    """Fewer points than dimensions: a shift by v still costs ``|v|^2``; float32 features lose nothing beyond their rounding."""
    a, shift = points(5, 30, 1), torch.arange(30).double()
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-12)
    b = points(6, 30, 2)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a.float().double(), b.float().double()))


def test_bad_features_give_one_line():
    good = points(5, 3, 1)
    for a in (good[:1], good.masked_fill(good == good[0, 0], math.nan)):
        with pytest.raises(ValueError, match="at least two finite points"):
            frechet_distance(a, good)


# Precision and recall


def brute_force(real, generated, k):
    """As the paper writes it, one pair at a time."""

    def covered(point, manifold):
        for i, center in enumerate(manifold):
            others = sorted(math.dist(center, other) for j, other in enumerate(manifold) if j != i)
            if math.dist(point, center) <= others[k - 1]:
                return True
        return False

    a, b = real.tolist(), generated.tolist()
    return sum(covered(p, a) for p in b), sum(covered(p, b) for p in a)


@given(seed=st.integers(0, 1000), n=st.integers(5, 14), m=st.integers(5, 14), k=st.integers(1, 4), shift=st.floats(0, 3))
def test_precision_and_recall_by_brute_force(seed, n, m, k, shift):
    real, generated = points(n, 2, seed, "real"), points(m, 2, seed, "generated") * 0.7 + shift
    found = precision_recall(real, generated, k)
    assert (found.precision.correct, found.recall.correct) == brute_force(real, generated, k)
    assert (found.precision.n, found.recall.n) == (m, n)
    swapped = precision_recall(generated, real, k)
    assert (swapped.precision, swapped.recall) == (found.recall, found.precision)
    assert k == 1 or precision_recall(real, generated, k - 1).precision.correct <= found.precision.correct


def test_identical_and_disjoint_sets():
    a = points(40, 6, 1)
    same = precision_recall(a, a.flip(0))
    assert same.precision == same.recall == Accuracy.of(40, 40)
    apart = precision_recall(a, a + 1000)
    assert apart.precision == apart.recall == Accuracy.of(0, 40)


def test_one_mode_of_two_has_precision_without_recall():
    one, two = points(60, 4, 1), points(60, 4, 2) + 100
    found = precision_recall(torch.cat([one, two]), points(60, 4, 3) * 0.5)
    assert found.precision.value > 0.9 and found.recall.value <= 0.5
    widened = precision_recall(points(60, 4, 3) * 0.5, torch.cat([one, two]))
    assert widened.recall.value > 0.9 and widened.precision.value <= 0.5


def test_the_radius_leaves_the_point_itself_out():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    probes = torch.tensor([[-1.0], [-1.01], [11.0], [11.01], [5.0], [2.0]])
    assert inside(probes, line, 1).tolist() == [True, False, True, False, True, True]  # radii 1, 1, 2, 4


def test_a_bad_k_gives_one_line():
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"got {k}, 6 and 5"):
            precision_recall(points(6, 2, 1), points(5, 2, 2), k)


# Features and agreement


def test_features_are_what_the_named_layer_reads():
    net, x = CNN((1, 8, 8), 4, width=4, seed=1), draw((7, 1, 8, 8), 1).float()
    features = FeatureNetwork("a CNN", net, batch=3)(x)
    assert features.shape == (7, 16) and features.dtype == torch.float64
    assert torch.allclose(features @ net.head.weight.double().T + net.head.bias.double(), net(x).double(), atol=1e-6)
    assert not net.head._forward_pre_hooks
    with pytest.raises(ValueError, match="a CNN has no layer 'body'; there are conv1"):
        FeatureNetwork("a CNN", net, "body")(x)


def test_a_layer_that_does_not_run_once_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Identity()

        def forward(self, x):
            return self.head(self.head(x))

    with pytest.raises(ValueError, match="2 times for 3 images"):
        FeatureNetwork("twice", Twice())(torch.zeros(3, 1, 2, 2))


def test_agreement_counts():
    net, x = CNN((1, 8, 8), 4, width=4, seed=1), draw((9, 1, 8, 8), 1).float()
    said = net(x).argmax(dim=1)
    wanted = torch.where(torch.arange(9) < 6, said, (said + 1) % 4)
    assert agreement(net, x, wanted) == Accuracy.of(6, 9)


# Intervals


def test_the_bootstrap_of_a_mean_is_students_interval():
    values = points(400, 1, 7)[:, 0]
    found = bootstrap(lambda v: float(v.mean()), values, repeats=1000)
    half = 1.96 * float(values.std()) / 20
    assert found.value == float(values.mean()) and found.n == 1000
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_the_basic_bootstrap_takes_the_bias_of_the_frechet_distance_away():
    """Two samples of one Gaussian: the true distance is 0, the estimate is not, and the interval reaches below it."""
    a, b = points(150, 8, 1), points(150, 8, 2)
    found = bootstrap(frechet_distance, a, b, repeats=100)
    assert found.value > 0.1 and found.low < 0 < found.value and found.low < found.high < found.value
    again = bootstrap(frechet_distance, a, b, repeats=100, seed=0)
    assert again == found != bootstrap(frechet_distance, a, b, repeats=100, seed=1)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bootstrap(lambda v: float(v.mean()), points(10, 1, 1), repeats=3)
    assert torch.equal(before, torch.get_rng_state())


def test_repeated_covers_as_often_as_it_says():
    """Three seeds, as in the tables: 95 % of the intervals of normal values contain the mean."""
    draws = points(2000, 3, 9)
    hits = sum(i.low <= 0 <= i.high for i in (repeated(row.tolist()) for row in draws))
    assert abs(hits / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)
    found = repeated([1.0, 2.0, 3.0])
    assert found.value == 2 and found.high == pytest.approx(2 + 4.302653 / math.sqrt(3)) and found.n == 3


def test_bad_intervals_give_one_line():
    with pytest.raises(ValueError, match="at least two repetitions, got 1"):
        repeated([1.0])
    for options in ({"repeats": 1}, {"level": 1.0}):
        with pytest.raises(ValueError, match="at least 2 resamples"):
            bootstrap(lambda v: float(v.mean()), points(4, 1, 1), **options)
