"""Laws of a race of classes over the levels of one classifier, and of learning its rounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rdc.certify import APNDC, EPNDC, certify
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.early_exit import Cascade, Race, Round, learn_rounds
from rdc.early_exit.race import ranked
from rdc.rng import generator

SIGMA, T = 0.4, 6
KEEP_ALL = {"gap": math.inf, "keep": 10}
Parts = tuple[EPNDC, EPNDC, Tensor]


@pytest.fixture(scope="module")
def parts() -> Parts:
    """Cheap: the optimal denoiser of few images. Full: that of more. Both with the same noise."""
    train, x = load("digits", "train"), load("digits").x[:30].double()
    x = x + SIGMA * torch.randn(x.shape, dtype=x.dtype, generator=generator("race"))
    some = [OptimalDenoiser(train.x[:n].double(), train.y[:n]) for n in (100, 150)]
    first, full = (EPNDC(d, SIGMA, count=T, form="fixed", antithetic=False) for d in some)
    return first, full, x


def whole(gap: float = math.inf, keep: int = 10) -> list[Round]:
    """All levels of both, in two rounds of the full one."""
    ones = (1.0,) * T
    return [Round((0, 3), (0.5, 2.0), gap=gap, keep=keep), Round((5, 1), (1.0, 1.0), **KEEP_ALL), Round((0, 2, 3, 4), ones)]


def test_with_all_levels_and_classes_it_is_the_full_classifier(parts: Parts) -> None:
    first, full, x = parts
    wanted = full(x)
    torch.testing.assert_close(Race(first, full, whole())(x), wanted - wanted.amax(dim=1, keepdim=True), rtol=1e-9, atol=1e-7)


def test_the_first_round_is_a_weighted_sum_and_can_end_it(parts: Parts) -> None:
    first, full, x = parts
    model, losses = Race(first, full, whole(gap=0.0)), first.losses(x)
    wanted = -(0.5 * losses[:, :, 0] + 2 * losses[:, :, 3])
    torch.testing.assert_close(model(x), wanted - wanted.amax(dim=1, keepdim=True), rtol=1e-9, atol=1e-7)
    assert model.spent == len(x) * 2 * (1 if first.engine.one_pass else 10)


def test_a_first_round_class_by_class_gives_the_same(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    first, full, x = parts
    rounds = whole(gap=2.0, keep=3)
    wanted = Race(first, full, rounds)(x)
    monkeypatch.setattr(OptimalDenoiser, "one_pass", not first.denoiser.one_pass)
    torch.testing.assert_close(Race(first, full, rounds)(x), wanted, rtol=1e-9, atol=1e-7)


def test_the_prediction_is_carried(parts: Parts) -> None:
    first, full, x = parts
    rounds = [Round((2,), (1.5,), **KEEP_ALL), Round((4, 1), (0.7, 0.2), carry=0.6)]
    a, b = first.losses(x), full.losses(x)
    wanted = -0.6 * 1.5 * a[:, :, 2] - 0.7 * b[:, :, 4] - 0.2 * b[:, :, 1]
    found = Race(first, full, rounds)(x)
    torch.testing.assert_close(found, wanted - wanted.amax(dim=1, keepdim=True), rtol=1e-9, atol=1e-7)


def test_classes_leave_round_by_round_and_do_not_come_back(parts: Parts) -> None:
    """Against a race that is run by hand from tables of all losses, image by image."""
    first, full, x = parts
    rounds = [Round((0, 3), (1.0, 2.0), gap=6.0, keep=4), Round((5,), (2.0,), 0.5, gap=1.0, keep=2), Round((1,), (1.0, 3.0), 0.1)]
    model, a, b = Race(first, full, rounds), first.losses(x), full.losses(x)
    found, spent, lengths = model(x), 0, set()
    for i in range(len(x)):
        start = -(a[i, :, [0, 3]] @ torch.tensor([1.0, 2.0], dtype=torch.float64))
        alive = [int(c) for c in start.argsort(descending=True)[:4] if start[c] > start.max() - 6]
        spent += 2 * (1 if first.engine.one_pass else 10)
        for r, known in zip(rounds[1:], ([5], [5, 1]), strict=True):
            if len(alive) > 1:
                spent += len(alive)
                value = {
                    c: float(r.carry * start[c] - b[i, c, known] @ torch.tensor(r.weights, dtype=torch.float64)) for c in alive
                }
                near = [c for c in alive if value[c] > max(value.values()) - r.gap]
                lengths.add(len(alive))
                alive = sorted(near or alive, key=lambda c: -value[c])[: r.keep]
        assert int(found[i].argmax()) == alive[0]
    assert model.spent == spent and model.seen == len(x)
    assert len(lengths) > 1  # some lost in the second round


def test_what_is_spent_is_what_is_evaluated(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    first, full, x = parts
    model, asked = Race(first, APNDC(full.denoiser, SIGMA, count=T), whole(gap=4.0, keep=3)), []
    forward, every = OptimalDenoiser.forward, OptimalDenoiser.all_classes
    monkeypatch.setattr(OptimalDenoiser, "forward", lambda self, z, *a: (asked.append(len(z)), forward(self, z, *a))[1])
    monkeypatch.setattr(OptimalDenoiser, "all_classes", lambda self, z, *a: (asked.append(len(z)), every(self, z, *a))[1])
    model(x)
    assert model.spent == sum(asked) > len(x) * 2


def test_an_answer_does_not_depend_on_the_batch(parts: Parts) -> None:
    first, full, x = parts
    model = Race(first, full, whole(gap=5.0, keep=3))
    torch.testing.assert_close(torch.cat([model(part) for part in x.split(7)]), model(x), rtol=1e-9, atol=1e-7)


def test_fresh_noise_follows_the_index(parts: Parts) -> None:
    _, full, x = parts
    some = [EPNDC(full.denoiser, SIGMA, count=T, form="fixed", antithetic=False, noise="fresh") for _ in range(2)]
    model, index, backwards = Race(*some, whole(gap=9.0)), torch.arange(100, 130), torch.arange(29, -1, -1)
    torch.testing.assert_close(model(x[backwards], index[backwards])[backwards], model(x, index), rtol=1e-9, atol=1e-7)
    wanted = some[1](x, index)
    torch.testing.assert_close(Race(*some, whole())(x, index), wanted - wanted.amax(1, keepdim=True), rtol=1e-9, atol=1e-7)


def test_without_numbers_images_are_counted_and_both_stages_agree_on_them(parts: Parts) -> None:
    _, full, x = parts
    some = [EPNDC(full.denoiser, SIGMA, count=T, form="fixed", antithetic=False, noise="fresh") for _ in range(2)]
    plain, given = (Race(*some, whole(gap=2.0)), Race(*some, whole(gap=2.0)))
    cascades = Cascade(*some, 2.0), Cascade(*some, 2.0)
    for one, other in ((plain, given), cascades):
        found = torch.cat([one(part) for part in x.split(8)])
        torch.testing.assert_close(found, other(x, torch.arange(len(x))), rtol=1e-9, atol=1e-7)


def test_it_can_be_certified(parts: Parts) -> None:
    first, full, _ = parts
    found = certify(Race(first, full, whole(gap=2.0)), load("digits").x[0].double(), sigma=SIGMA, n0=20, n=60)
    assert found.k <= found.n == 60


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_who_is_out_follows_behind_in_the_old_order(seed: int, inside: int) -> None:
    value, lead = torch.randn(2, 3, 10, dtype=torch.float64, generator=generator("ranked", seed))
    lead, out = lead - lead.amax(dim=1, keepdim=True), torch.randperm(10, generator=generator("out", seed))[inside:]
    value[:, out] = -math.inf
    rows = torch.tensor([0, 2])
    found = ranked(lead, value, rows)
    assert torch.equal(found[1], lead[1])
    kept = [c for c in range(10) if c not in out]
    assert (found[rows][:, kept].amin(1) - 1 >= found[rows][:, out].amax(1)).all() and (found[rows].amax(1) == 0).all()
    assert torch.equal(found[rows][:, kept].argsort(1), value[rows][:, kept].argsort(1))
    assert torch.equal(found[rows][:, out].argsort(1), lead[rows][:, out].argsort(1))


def test_bad_rounds_are_refused(parts: Parts) -> None:
    first, full, _ = parts
    good = whole()
    for rounds, match in (
        (good[:1], "two rounds"),
        ([good[0], Round((1, 1), (1.0, 1.0))], "different ones"),
        ([good[0], Round((T,), (1.0,))], "different ones"),
        ([good[0], Round((), ())], "at least one"),
        ([good[0], Round((0,), (1.0, 2.0))], "one for each"),
        ([good[0], Round((0,), (1.0,), keep=0)], "keep"),
    ):
        with pytest.raises(ValueError, match=match):
            Race(first, full, rounds)
    with pytest.raises(ValueError, match="share"):
        Race(EPNDC(first.denoiser, SIGMA, count=T + 1, form="fixed"), full, good)


# Learning


def table(n: int = 300, k: int = 4, t: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, k, t, dtype=torch.float64, generator=generator("losses", seed))


def test_levels_that_say_everything_are_found() -> None:
    """The sum of all levels is 3 times level 7 and twice level 2: these are found, with their weights."""
    full = table()
    full[:, :, 11] = 2 * full[:, :, 7] + full[:, :, 2] - full[:, :, [0, 1, 3, 4, 5, 6, 8, 9, 10]].sum(dim=2)
    _, last = learn_rounds(table(seed=1), full, (3, 2), (1.0,), (4,), ridge=1e-9)
    assert sorted(last.levels) == [2, 7]
    by_level = dict(zip(last.levels, last.weights, strict=True))
    assert by_level[7] == pytest.approx(3, abs=1e-6) and by_level[2] == pytest.approx(2, abs=1e-6) and abs(last.carry) < 1e-6


def test_all_levels_have_weight_one() -> None:
    _, middle, last = learn_rounds(table(seed=1), table(), (2, 5, 12), (1.0, 1.0), (4, 2), ridge=1e-12)
    assert sorted(middle.levels + last.levels) == list(range(12)) and len(middle.levels) == 5
    assert last.weights == pytest.approx([1.0] * 12, abs=1e-6) and abs(last.carry) < 1e-6
    assert (middle.gap, middle.keep, last.gap, last.keep) == (1.0, 2, 0.0, 1)


def test_a_first_network_that_is_the_full_one_is_carried() -> None:
    full = table()
    opening, last = learn_rounds(full, full, (12, 1), (1.0,), (4,), ridge=1e-12)
    assert opening.weights == pytest.approx([1.0] * 12, abs=1e-6)
    assert last.carry == pytest.approx(1.0, abs=1e-6) and last.weights[0] == pytest.approx(0.0, abs=1e-6)


def test_weights_are_those_of_weighted_least_squares() -> None:
    """Independent oracle: torch's least squares with the rows of the penalty appended."""
    first, full = table(seed=1), table()
    opening, _ = learn_rounds(first, full, (3, 4), (1.0,), (4,), near=5.0, ridge=0.1)
    total, rows = full.sum(dim=2), []
    for i in range(len(full)):
        b = int(total[i].argmin())
        near = [c for c in range(4) if c != b and total[i, c] < total[i, b] + 5]
        rows += [(first[i, c] - first[i, b], float(total[i, c] - total[i, b])) for c in near]
    x, m = torch.stack([d[list(opening.levels)] for d, _ in rows]), torch.tensor([m for _, m in rows], dtype=torch.float64)
    w = (4 + m**2) ** -0.5
    penalty = (0.1 * (w[:, None] * x).square().sum(dim=0).mean()) ** 0.5
    a = torch.cat([w[:, None] * x, penalty * torch.eye(3, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(a, torch.cat([w * m, torch.zeros(3, dtype=torch.float64)])).solution
    torch.testing.assert_close(torch.tensor(opening.weights, dtype=torch.float64), wanted, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_learned_is_refused() -> None:
    for sizes, gaps, keep in (
        ((2,), (), ()),
        ((2, 3), (1.0, 1.0), (3,)),
        ((2, 3, 3), (1.0, 1.0), (3, 2)),
        ((2, 13), (1.0,), (3,)),
    ):
        with pytest.raises(ValueError, match=r"sizes"):
            learn_rounds(table(seed=1), table(), sizes, gaps, keep)
    with pytest.raises(ValueError, match="within"):
        learn_rounds(table(seed=1), table(), (2, 3), (1.0,), (3,), near=1e-9)
