"""Sift and refine: rules that drop classes, their errors against what they promise, and what they save."""

import math

import pytest
import torch
from helpers import Counting, mixture, tiny_network

from rdc.certify.noised import APNDC, EPNDC
from rdc.classify import DiffusionClassifier
from rdc.denoise import OptimalDenoiser
from rdc.early_exit.sift import (
    Leader,
    Paired,
    SiftAndRefine,
    Table,
    Threshold,
    calibrate,
    released,
    sift,
    sift_table,
)
from rdc.rng import generator, randn
from rdc.schedule import levels

MANY_X, MANY_Y = mixture(3, (2,) * 12)
MANY = OptimalDenoiser(MANY_X, MANY_Y)


def table(losses, one_pass=False):
    """A table of given losses ``(N, K, T)``."""

    def evaluate(image, label, level):
        return losses[image, :, level] if label is None else losses[image, label, level][:, None]

    return Table(evaluate, tuple(losses.shape), one_pass)


def simulated(n, k, t, spread=0.3, shared=0.0, seed=0):
    """Losses with weights over two decades: class means that differ by ``spread``, noise, and a part that all classes share."""
    g = generator("losses", seed)
    weight = torch.logspace(0, -2, t, dtype=torch.float64)
    means = 1 + spread * torch.rand(n, k, 1, generator=g, dtype=torch.float64)
    noise = torch.rand(n, k, t, generator=g, dtype=torch.float64) - 0.5
    common = shared * torch.rand(n, 1, t, generator=g, dtype=torch.float64)
    return weight * (means + 0.3 * noise + common)


def sources(n, seed=0):
    return [generator("rule", seed, i) for i in range(n)]


def winners(losses):
    return losses.sum(dim=2).argmin(dim=1)


ALL = [Threshold(1e9, stop=1, keep=None), Paired([1.0] * 20, alpha=1e-300)]


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("one_pass", [False, True])
def test_the_table_evaluates_what_is_asked_for_and_only_once(one_pass):
    losses, asked = simulated(3, 4, 5), []

    def evaluate(image, label, level):
        asked.extend(zip(image.tolist(), [-1] * len(image) if label is None else label.tolist(), level.tolist(), strict=True))
        return losses[image, :, level] if label is None else losses[image, label, level][:, None]

    found = Table(evaluate, (3, 4, 5), one_pass)
    classes = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    column = found.column(classes, torch.tensor([2, 0, 4]))
    rows = torch.arange(3)
    assert torch.equal(column[classes], losses[rows, :, torch.tensor([2, 0, 4])][classes])
    assert len(asked) == (2 if one_pass else 6) and found.entries.tolist() == ([1, 0, 1] if one_pass else [2, 0, 4])
    assert torch.equal(found.rows(torch.ones(3, 4).bool()), losses)
    assert len(asked) == len(set(asked)) == (15 if one_pass else 60)
    assert torch.allclose(found.sums, losses.sum(2)) and found.counts.eq(5).all()


@pytest.mark.parametrize("rule", ALL, ids=["threshold", "paired"])
@pytest.mark.parametrize("one_pass", [False, True])
def test_without_drops_it_is_the_full_classifier(rule, one_pass):
    losses = simulated(6, 5, 20)
    found = sift_table(table(losses, one_pass), rule, sources(6))
    assert torch.equal(found.label, winners(losses)) and found.survivors.all() and found.saved == 0
    assert found.full == (20 if one_pass else 100) and found.evaluations.eq(found.full).all()
    assert torch.allclose(found.logits, -losses.sum(2))


# ------------------------------------------------------------------------------------------------ leader


def hard(n, t=24, kind="smooth"):
    """Two classes with sums that differ by 1e-6, such that the pilot levels of the rule prefer the wrong one, class 1."""
    g = generator("hard", kind)
    leader = torch.rand(t, generator=g, dtype=torch.float64) + 0.2
    ratio = torch.rand(t, generator=g, dtype=torch.float64) + 0.5
    if kind == "spiky":  # most levels are against the winner, a few very much for it
        ratio = torch.where(torch.arange(t) % 6 == 1, 0.05, 1.5) + 0.1 * torch.rand(t, generator=g, dtype=torch.float64)
    ratio[[0, 8, 15, 23]] += 1.0  # where the pilot looks
    winner = leader * ratio
    winner = winner * (leader.sum() / winner.sum()) * (1 - 1e-6)
    return torch.stack([winner, leader]).expand(n, 2, t)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["smooth", "spiky"])
def test_the_leader_rule_errs_with_probability_alpha_at_most(alpha, kind):
    n = 3000
    losses = hard(n, kind=kind)
    assert losses[0, 0, [0, 8, 15, 23]].sum() > losses[0, 1, [0, 8, 15, 23]].sum() and winners(losses)[0] == 0
    found = sift_table(table(losses), Leader(alpha=alpha), sources(n))
    wrong = float((found.label != 0).double().mean())
    assert wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / n)
    if alpha == 0.3 and kind == "spiky":
        assert wrong > 0.02  # the test is able to see errors


def test_the_number_of_classes_does_not_enter_the_leader_rule():
    """999 rivals that are as good as the leader: only the winner can be dropped wrongly."""
    n = 300
    losses = hard(n, kind="spiky")
    rivals = losses[:, 1:] * (1 + 1e-9 * torch.arange(1, 40, dtype=torch.float64))[None, :, None]
    found = sift_table(table(torch.cat([losses, rivals], dim=1)), Leader(alpha=0.1), sources(n))
    assert float((found.label != 0).double().mean()) <= 0.1 + 3 * math.sqrt(0.09 / n)


@pytest.mark.parametrize("one_pass", [False, True])
def test_without_betting_the_leader_rule_drops_only_what_is_worse(one_pass):
    losses = simulated(6, 5, 20)
    found = sift_table(table(losses, one_pass), Leader(alpha=1e-12), sources(6))
    total = losses.sum(dim=2)
    assert torch.equal(found.label, winners(losses))
    assert bool((total[~found.survivors] > total.amin(1, keepdim=True).expand_as(total)[~found.survivors]).all())


def test_a_thousand_classes():
    losses = simulated(8, 1000, 64, spread=1.0)
    found = sift_table(table(losses), Leader(alpha=0.05), sources(8))
    assert torch.equal(found.label, winners(losses))
    assert found.survivors[torch.arange(8), winners(losses)].all() and float(found.survivors.sum(1).double().mean()) < 100
    assert found.saved > 0.7 and found.full == 64_000
    fewer = sift_table(table(losses), Leader(alpha=0.5), sources(8))
    assert fewer.saved > found.saved


def test_a_class_beyond_the_total_of_the_leader_is_dropped_without_risk():
    losses = torch.ones(1, 3, 20, dtype=torch.float64)
    losses[0, 1] = 1.01
    losses[0, 2, 0] = 25.0
    found = sift_table(table(losses), Leader(alpha=1e-200), sources(1))
    assert found.survivors.tolist() == [[True, False, False]] and found.label.tolist() == [0]
    assert found.evaluations.tolist() == [20 + 20 + 4]  # all levels of two classes, four pilot levels of the third


def test_a_negative_loss_voids_the_guarantee():
    losses = simulated(2, 3, 8)
    losses[0, 1, 0] = -1.0
    with pytest.raises(ValueError, match="a loss is negative"):
        sift_table(table(losses), Leader(), sources(2))


# ------------------------------------------------------------------------------------------------ paired differences


def symmetric(n, t=24):
    """As above, with importance-weighted differences that are symmetric: q_t is proportional to their size."""
    g = generator("symmetric")
    size = torch.rand(t // 2, generator=g, dtype=torch.float64).repeat_interleave(2) + 0.1
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(t // 2)
    base = torch.full((t,), 5.0, dtype=torch.float64)
    return torch.stack([base + size * sign - 1e-9, base]).expand(n, 2, t), size / size.sum()


def test_the_paired_rule_errs_with_probability_alpha_where_differences_are_symmetric():
    n, alpha = 4000, 0.1
    losses, q = symmetric(n)
    found = sift_table(table(losses), Paired(q.tolist(), alpha=alpha, rounds=8), sources(n))
    wrong = float((found.label != 0).double().mean())
    assert 0.005 < wrong <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / n)


def test_the_paired_rule_errs_more_often_with_skewed_differences():
    """What its docstring warns of: equal probabilities, and one level that holds all that speaks for the winner."""
    n, t = 1000, 40
    losses = torch.ones(1, 2, t, dtype=torch.float64).repeat(n, 1, 1)
    losses[:, 0] += 0.1 + 0.02 * (torch.arange(t) % 2)
    losses[:, 0, 7] -= losses[:, 0].sum(1) - t + 1e-6
    assert losses[0, 0, 7] < 0 or winners(losses)[0] == 0
    found = sift_table(table(losses), Paired([1.0] * t, alpha=0.05), sources(n))
    assert float((found.label != 0).double().mean()) > 0.1


def test_paired_differences_do_not_mind_what_classes_share():
    """With a large shared loss the ratios of the leader rule are all close to one; differences stay what they are."""
    losses = simulated(8, 100, 64, spread=1.0, shared=20.0)
    q = (losses - losses.amin(dim=1, keepdim=True)).square().mean(dim=(0, 1)).sqrt()
    paired = sift_table(table(losses), Paired(q.tolist()), sources(8))
    leader = sift_table(table(losses), Leader(), sources(8))
    assert torch.equal(paired.label, winners(losses)) and torch.equal(leader.label, winners(losses))
    assert paired.saved > 0.6 and paired.saved > leader.saved + 0.1


def test_with_one_pass_only_levels_can_be_saved():
    losses = simulated(8, 10, 64, spread=3.0)
    q = (losses - losses.amin(dim=1, keepdim=True)).square().mean(dim=(0, 1)).sqrt()
    paired = sift_table(table(losses, one_pass=True), Paired(q.tolist()), sources(8))
    leader = sift_table(table(losses, one_pass=True), Leader(), sources(8))
    assert paired.full == leader.full == 64 and leader.saved == 0  # it evaluates its leader, hence all, at all levels
    assert paired.saved > 0.3 and torch.equal(paired.label, winners(losses))


# ------------------------------------------------------------------------------------------------ as released


def by_hand(losses, value, sieve, stop, keep):
    """The released procedure for one image, ``(K, T)``, as it is described: a loop over a shrinking set."""
    left, total = set(range(len(losses))), [0.0] * len(losses)
    for t in sieve:
        if len(left) <= stop:
            break
        for y in left:
            total[y] += float(losses[y, t])
        smallest = min(total[y] for y in left)
        left = {y for y in left if total[y] - smallest <= value}
    best = sorted(left, key=lambda y: (total[y], y))
    return set(best if keep is None else best[:keep])


@pytest.mark.parametrize("value", [0.05, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("keep", [None, 3, 10])
def test_the_threshold_rule_is_the_released_procedure(value, keep):
    losses = simulated(10, 30, 25)
    rule = Threshold(value, levels=7, stop=5, keep=keep)
    found = sift_table(table(losses), rule, sources(10))
    for i in range(10):
        expected = by_hand(losses[i], value, [0, 4, 8, 12, 16, 20, 24], 5, keep)
        assert set(found.survivors[i].nonzero().flatten().tolist()) == expected
        assert int(found.label[i]) == min(expected, key=lambda y: float(losses[i, y].sum()))


def test_an_absolute_threshold_depends_on_the_scale_of_the_losses():
    losses = simulated(20, 40, 64)
    recall = [
        float(found.survivors[torch.arange(20), winners(losses)].double().mean())
        for found in (sift_table(table(c * losses), Threshold(0.05, stop=1), sources(20)) for c in (0.1, 100.0))
    ]
    assert recall[0] == 1.0 and recall[1] < 0.9
    scaled = [sift_table(table(c * losses), Leader(), sources(20)) for c in (0.1, 100.0)]
    assert torch.equal(scaled[0].survivors, scaled[1].survivors)


def test_the_released_thresholds_in_the_units_of_a_model():
    """In the released code: mean over pixels, weight density times the step of a 1001-point grid."""
    model = APNDC(MANY, 0.25, count=124, weight="edm-released", released=True)
    rule = released(model)
    coarse = (3 - 0.5) / 125
    assert rule.value == pytest.approx(5e-5 * 6 * coarse / ((3 - 0.5) / 1000)) and (rule.levels, rule.keep) == (50, 10)
    assert released(model, "clean", steps=126).value == pytest.approx(5e-4 * 6) and released(model, "clean").keep is None
    with pytest.raises(ValueError, match="equally spaced"):
        released(APNDC(MANY, 0.25))
    with pytest.raises(ValueError, match="unknown setting"):
        released(model, "noisy")


# ------------------------------------------------------------------------------------------------ with classifiers

MODELS = [
    lambda d, **o: EPNDC(d, 0.1, count=20, **o),
    lambda d, **o: APNDC(d, 0.1, count=20, **o),
    lambda d, **o: DiffusionClassifier(d, levels("elbo", 20, sigma_min=0.2), draws=2, **o),
]


class Single:
    """The optimal denoiser, one class at a time."""

    one_pass = False
    num_classes, shape = MANY.num_classes, MANY.shape

    def __call__(self, z, sigma, label=None):
        return MANY(z, sigma, label)

    def all_classes(self, z, sigma):
        return MANY.all_classes(z, sigma)


def inputs(count):
    """Noisy images, clipped so that the clean classifier takes them too."""
    noise = torch.stack([randn(MANY.shape, "noisy", i) for i in range(count)]).double()
    return (MANY_X[torch.arange(count) % len(MANY_X)] + 0.1 * noise).clamp(0, 1)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("denoiser", [MANY, Single()], ids=["one pass", "single"])
def test_without_drops_it_is_the_classifier(make, denoiser):
    x = inputs(4)
    logits = make(denoiser)(x)
    for rule in ALL:
        model = make(denoiser)
        found = sift(model, x, rule)
        assert torch.equal(found.label, logits.argmax(1)) and found.full == model.evaluations
        assert torch.allclose(found.logits.softmax(1), logits.softmax(1), atol=1e-9)
    assert torch.equal(sift(make(denoiser), x, Leader(alpha=1e-12)).label, logits.argmax(1))


@pytest.mark.parametrize("make", MODELS)
def test_it_keeps_the_class_of_the_full_classifier(make):
    x = inputs(40)
    full = make(Single())(x).argmax(1)
    rules = [Leader(alpha=0.05), Paired(calibrate(make(Single()), inputs(64)[40:]), alpha=0.05)]
    for rule in rules:
        found = sift(make(Single()), x, rule)
        assert float((found.label == full).double().mean()) >= 0.95 and found.saved > 0.1


@pytest.mark.parametrize("make", MODELS)
def test_it_counts_what_the_network_does(make):
    counter = Counting(tiny_network())
    x = 0.8 * torch.rand(3, 1, 8, 8, generator=generator("x"))
    found = sift(make(counter), x, Leader(pilot=2))
    assert counter.evaluations == int(found.evaluations.sum())


@pytest.mark.parametrize("make", MODELS)
def test_an_image_is_sifted_alone(make):
    x, rule = inputs(6), Leader()
    whole = sift(make(Single()), x, rule)
    parts = [sift(make(Single()), x[i : i + 1], rule) for i in range(6)]
    assert torch.equal(whole.survivors, torch.cat([p.survivors for p in parts]))
    assert torch.equal(whole.evaluations, torch.cat([p.evaluations for p in parts]))
    index = torch.tensor([7, 7, 1, 2, 3, 2**40])
    keyed = [sift(make(Single()), x[i : i + 1], rule, index=index[i : i + 1]) for i in range(6)]
    assert torch.equal(sift(make(Single()), x, rule, index=index).evaluations, torch.cat([p.evaluations for p in keyed]))


def test_it_is_a_classifier():
    x, model = inputs(5), EPNDC(Single(), 0.1, count=20)
    module = SiftAndRefine(model, Leader())
    logits, found = module(x), sift(model, x, Leader())
    assert torch.equal(logits.argmax(1), found.label) and logits.dtype == x.dtype and not logits.isnan().any()
    assert module.evaluations == int(found.evaluations.sum())
    assert torch.equal(logits == -math.inf, ~found.survivors)
    fresh = SiftAndRefine(EPNDC(Single(), 0.1, count=20, noise="fresh"), Leader())
    index = torch.arange(5)
    assert torch.equal(fresh(x, index), fresh(x, index))


def test_calibration_gives_probabilities():
    q = torch.tensor(calibrate(EPNDC(MANY, 0.1, count=20), inputs(10)))
    assert q.shape == (20,) and bool((q > 0).all()) and float(q.sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Leader(alpha=0.0), "out of its range in Leader"),
        (Leader(cap=1.0), "out of its range"),
        (Threshold(0.0), "out of its range in Threshold"),
        (Paired([1.0] * 20, warmup=0), "out of its range in Paired"),
        (Paired([1.0] * 3), "needs 20 positive probabilities"),
    ],
)
def test_bad_rules(rule, message):
    with pytest.raises(ValueError, match=message):
        sift_table(table(simulated(2, 3, 20)), rule, sources(2))


def test_bad_classifiers():
    clean = DiffusionClassifier(MANY, levels("elbo", 4), reduce="mean")
    with pytest.raises(ValueError, match="without prior and with reduce='sum'"):
        sift(clean, inputs(2), Leader())
