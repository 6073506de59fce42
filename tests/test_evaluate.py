"""Counts, Wilson intervals, the union of attacks, and the four protocols for randomised models."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Linear, draw, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import load
from rdc.evaluate import PROTOCOLS, Accuracy, accuracy, attack_table, predict, protocols, read_rows, robust_accuracy
from rdc.evaluate.protocols import Block
from rdc.evaluate.robustness import judge_of
from rdc.models import build
from rdc.randomness import randomness
from rdc.runs.rowfile import pieces
from rdc.schedule import levels

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


@given(st.integers(1, 5000), st.data())
def test_the_wilson_interval(n, data):
    k = data.draw(st.integers(0, n))
    found, p = Accuracy.of(k, n), k / n
    center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert (found.correct, found.n, found.value) == (k, n, p)
    assert found.low == pytest.approx(center - half, abs=1e-12) and found.high == pytest.approx(center + half, abs=1e-12)
    assert f"{k}/{n}" in str(found)


class Sees(nn.Module):
    """Predicts class 1 where the first pixel exceeds one half."""

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], dim=1)


def images(values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def test_accuracy_counts():
    x, y = images([0.1, 0.9, 0.2, 0.8]), torch.tensor([0, 1, 1, 1])
    assert (accuracy(Sees(), x, y).correct, accuracy(Sees(), x, y, batch=3).n) == (3, 4)
    assert predict(Sees(), x, batch=3).tolist() == [0, 1, 0, 1]


def test_an_image_counts_only_if_no_attack_broke_it():
    x, y = images([0.1, 0.9, 0.9, 0.2, 0.3]), torch.tensor([0, 1, 1, 1, 0])
    first, second = images([0.9, 0.9, 0.9, 0.9, 0.3]), images([0.1, 0.1, 0.9, 0.9, 0.3])
    assert robust_accuracy(Sees(), x, y, [first, second]).correct == 2  # the fourth is wrong before any attack
    assert robust_accuracy(Sees(), x, y, first).correct == 3
    assert robust_accuracy(Sees(), x, y, second).correct == 3
    assert robust_accuracy(Sees(), x, y, []).correct == accuracy(Sees(), x, y).correct == 4


@given(st.integers(0, 1000), st.integers(1, 9))
def test_more_attacks_never_help_and_batches_do_not_matter(seed, batch):
    model = Linear(draw((3, 1, 2, 2), seed) - 0.5)
    x, y = draw((9, 1, 2, 2), seed + 1), torch.arange(9) % 3
    attacks = [draw((9, 1, 2, 2), seed + i) for i in (2, 3, 4)]
    found = [robust_accuracy(model, x, y, attacks[:i], batch=batch).correct for i in range(4)]
    assert found == sorted(found, reverse=True)
    expected = torch.stack([model(images).argmax(1) == y for images in [x, *attacks]]).all(0).sum()
    assert found[-1] == int(expected)


class Flickers(nn.Module):
    """Right in two of three calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tensor([[0.0, 1.0]]).repeat(len(x), 1) * (2 if self.calls % 3 else -2)


def test_a_random_model_is_judged_by_the_majority():
    x, y = images([0.5, 0.5]), torch.tensor([1, 1])
    assert robust_accuracy(Flickers(), x, y, x, draws=3).correct == 2
    assert robust_accuracy(Flickers(), x, y, [x, x], draws=1).correct == 0  # the third call is wrong


def test_bad_input():
    with pytest.raises(ValueError, match="images"):
        accuracy(Sees(), images([2.0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="labels"):
        accuracy(Sees(), images([1.0]), torch.tensor([-1]))


# ------------------------------------------------------------------------------------------------- image by image


class Coin(nn.Module):
    """Right (class 0) with probability ``1 - p``, whatever the image, by the global random state."""

    def __init__(self, p, source=torch.rand):
        super().__init__()
        self.p, self.source = p, source

    def forward(self, x):
        wrong = (self.source(len(x), 1) < self.p).to(x.dtype)
        return torch.cat([1 - wrong, wrong, -torch.ones_like(wrong)], dim=1) * 2.0


def same(model, x, y, seed=0, index=None):
    """The attack that does nothing."""
    return x.clone()


def far(model, x, y, seed=0, index=None):
    """White images."""
    return torch.ones_like(x)


def failing(model, x, y, seed=0, index=None):
    raise AssertionError("not to be run")


def flat(n):
    return torch.full((n, 1, 1, 1), 0.5), torch.zeros(n, dtype=torch.int64)


def without(row):
    """A row without its times."""
    if isinstance(row, dict):
        return {k: without(v) for k, v in row.items() if k != "seconds"}
    return [without(v) for v in row] if isinstance(row, list) else row


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5])
def test_protocols_of_a_coin_follow_the_binomial_law(tmp_path, p):
    n, k, path = 80, 5, tmp_path / "rows.jsonl"
    x, y = flat(n)
    robust_accuracy(Coin(p), x, y, {"same": same}, draws=k, rows=path)
    config, rows = read_rows(path)
    assert config["draws"] == k and len(rows) == n
    for verdicts in ([row["verdict"] for row in rows], [row["attacks"]["same"] for row in rows]):
        wrong = [v["wrong"] for v in verdicts]
        assert abs(sum(wrong) - n * k * p) < 4 * math.sqrt(n * k * p * (1 - p))  # binomial: mean ...
        variance = sum((w - k * p) ** 2 for w in wrong) / n  # ... and variance, so that draws are independent
        assert 0.55 < variance / (k * p * (1 - p)) < 1.6
    majority = sum(math.comb(k, w) * p**w * (1 - p) ** (k - w) for w in range(k + 1) if 2 * w < k)
    for name, q in {"once": 1 - p, "draws": majority, "resubmit": (1 - p) ** k}.items():
        share = q**2  # the clean image and the attacked one, independently
        found = protocols(path)[name]
        assert abs(found.correct - n * share) < 4 * math.sqrt(n * share * (1 - share)) + 0.5
        assert found == robust_accuracy(Coin(p), x, y, {"same": same}, draws=k, rows=path, protocol=name)
    known = [row["verdict"]["known"] for row in rows]
    assert len(set(known)) == 1 or p < 0.1  # one noise for all images: the frozen coin lies on one side


class Counted(nn.Module):
    """A deterministic model that counts its calls, outside its own attributes."""

    def __init__(self, inner, count):
        super().__init__()
        self.inner = inner
        inner.register_forward_hook(lambda *_: count.update(calls=count["calls"] + 1))

    def forward(self, x):
        return self.inner(x)


def test_for_a_deterministic_model_the_protocols_coincide_without_extra_work(tmp_path):
    count = {"calls": 0}
    model, path = Counted(Sees(), count), tmp_path / "rows.jsonl"
    x, y = images([0.1, 0.9, 0.2, 0.8]), torch.tensor([0, 1, 1, 1])
    found = robust_accuracy(model, x, y, far, rows=path)
    assert count["calls"] == 8 + 1 + 1  # a check of the model, the clean images and the attacked ones, each as one block
    assert found == Accuracy.of(2, 4) and set(protocols(path).values()) == {found} and len(protocols(path)) == 4
    config, rows = read_rows(path)
    assert config["draws"] == 1 and not config["random"]
    first, third = rows[0]["attacks"]["far"], rows[2]["attacks"]["far"]
    assert first["wrong"] == 1 and first["once"] is False and first["known"] is False
    assert first["size"] == {"Linf": pytest.approx(0.9), "L2": pytest.approx(0.9)}
    assert third["size"] == {"Linf": 0.0, "L2": 0.0} and rows[2]["clean"] == 0 and rows[2]["label"] == 1
    robust_accuracy(model, x, y, far, rows=path)
    assert read_rows(path) == (config, rows)


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_image_by_image_agrees_with_batches(seed, batch):
    model = Linear(draw((3, 1, 3, 3), seed) - 0.5)
    x, y = draw((6, 1, 3, 3), seed + 1), torch.arange(6) % 3
    attacks = {"one": partial(pgd, eps=0.02, steps=3), "two": partial(pgd, norm="L2", eps=0.1, steps=3)}
    given_images = [attack(model, x, y, seed=seed) for attack in attacks.values()]
    expected = robust_accuracy(model, x, y, given_images, batch=batch)
    assert robust_accuracy(model, x, y, attacks, seed=seed, protocol="known") == expected
    assert robust_accuracy(model, x, y, x_adv=given_images, protocol="known") == expected
    assert accuracy(model, x, y, protocol="resubmit") == accuracy(model, x, y)


def test_rows_of_a_random_model_depend_on_seed_and_index_alone(tmp_path):
    model, (x, y) = Coin(0.4), flat(6)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    paths = [tmp_path / f"{i}.jsonl" for i in range(4)]
    ids = torch.tensor([7, 3, 5, 1, 0, 9])
    robust_accuracy(model, x, y, same, rows=paths[0], index=ids)
    torch.manual_seed(5)
    robust_accuracy(model, x, y, same, rows=paths[1], index=ids, batch=2)
    robust_accuracy(model, x[:3], y[:3], same, rows=paths[2], index=ids[[5, 0, 3]])
    robust_accuracy(model, x, y, same, rows=paths[3], index=ids, seed=1)
    a, b, c, d = (without(read_rows(path)[1]) for path in paths)
    assert a == b != d and c == [row for row in a if row["index"] in (9, 7, 1)]
    torch.set_rng_state(states[0])
    robust_accuracy(model, x, y, same)
    assert torch.equal(torch.get_rng_state(), states[0]) and bool((np.random.get_state()[1] == states[1]).all())


def test_fresh_verdicts_are_the_default_for_a_random_model_only(tmp_path):
    x, y = flat(2)
    robust_accuracy(Coin(0.5), x, y, same, rows=tmp_path / "coin.jsonl")
    config, rows = read_rows(tmp_path / "coin.jsonl")
    assert config["random"] and config["draws"] == 20 and rows[0]["attacks"]["same"]["draws"] == 20
    robust_accuracy(Coin(0.0), x, y, same, rows=tmp_path / "fair.jsonl")
    assert read_rows(tmp_path / "fair.jsonl")[0]["draws"] == 1


class Sharp(nn.Module):
    """Wrong, with noise of its own seed, where the image is brighter than a random threshold; it can be frozen."""

    def __init__(self, seed=None):
        super().__init__()
        self.seed = seed

    def frozen(self, seed):
        return Sharp(seed)

    def threshold(self):
        stream = torch.default_generator if self.seed is None else torch.Generator().manual_seed(self.seed)
        return 0.5 + 0.5 * torch.rand(1, generator=stream)

    def forward(self, x):
        bright = x[:, 0, 0, 0] - self.threshold()
        return torch.stack([-bright, bright], dim=1)


def knowing(model, x, y, seed=0, index=None):
    """Goes just above the threshold that the next call has: useless against fresh noise, enough where the noise is known."""
    return torch.full_like(x, min(float(model.threshold()) + 1e-3, 1.0)) if model.seed is not None else x + 0.01


def test_an_attacker_who_knows_the_noise(tmp_path):
    path, x, y = tmp_path / "rows.jsonl", torch.full((4, 1, 1, 1), 0.2), torch.zeros(4, dtype=torch.int64)
    robust_accuracy(Sharp(), x, y, knowing, rows=path)
    found = protocols(path)
    assert [found[name].correct for name in ("once", "draws", "resubmit", "known")] == [4, 4, 4, 0]
    robust_accuracy(Sharp(), x, y, [x + 0.01], rows=tmp_path / "given.jsonl")
    assert set(protocols(tmp_path / "given.jsonl")) == {"once", "draws", "resubmit"}  # images cannot be made again
    for rows in (tmp_path / "given.jsonl", None):
        with pytest.raises(ValueError, match="protocol 'known' needs"):
            robust_accuracy(Sharp(), x, y, [x + 0.01], rows=rows, protocol="known", draws=20 if rows is None else None)


def lucky(model, x, y, seed=0, index=None):
    """Succeeds with the seed 3."""
    return torch.ones_like(x) * (1.0 if seed == 3 else 0.1 * seed)


def test_noise_that_follows_the_place_in_the_batch_does_not_depend_on_the_block():
    """The attack drops images that it broke, so that those left would have the noise of other places."""
    digits = load("digits")
    x, y = digits.x[:8], digits.y[:8]
    model = build("rdc", "digits", share="image", levels=2, steps=1, gradient="bpda")
    attack = {"pgd": partial(pgd, eps=0.1, steps=2)}
    judges = [judge_of(model, Block(x, y, torch.arange(8)), attack, None, 1, 0, block) for block in (1, 8)]
    assert [judge.block for judge in judges] == [1, 1] and not judges[0].random
    one, all_ = ([row for part in pieces(range(8), j.block) for row in j(part)] for j in judges)
    assert [row["right"] for row in one] == [row["right"] for row in all_]
    assert [row["attacks"]["pgd"]["size"] for row in one] == [row["attacks"]["pgd"]["size"] for row in all_]
    alone = [bool(predict(model, x[i : i + 1]) == y[i]) for i in range(8)]
    assert [row["verdict"]["once"] for row in all_] == alone and robust_accuracy(model, x, y, x).correct == sum(alone)
    assert judge_of(build("rdc", "digits", levels=2, steps=1), Block(x, y, torch.arange(8)), attack, None, 1, 0, 8).block == 8


def test_attempts_take_other_seeds_until_one_succeeds(tmp_path):
    x, y = images([0.0, 0.0]), torch.tensor([0, 0])
    assert [robust_accuracy(Sees(), x, y, lucky, attempts=k).correct for k in (1, 2, 3, 4, 9)] == [2, 2, 2, 0, 0]
    assert robust_accuracy(Sees(), x, y, lucky, attempts=1, seed=3).correct == 0
    robust_accuracy(Sees(), x, y, lucky, attempts=9, rows=tmp_path / "rows.jsonl")
    assert all(row["attacks"]["lucky"]["size"]["Linf"] == 1.0 for row in read_rows(tmp_path / "rows.jsonl")[1])


def test_choosing_among_attempts_does_not_flatter_the_attack(tmp_path):
    """The best of many equal attempts is judged again: an attack that does nothing leaves the law of the draws as it is."""
    p, k, n, path = 0.3, 5, 40, tmp_path / "rows.jsonl"
    x, y = flat(n)
    robust_accuracy(Coin(p), x, y, same, draws=k, attempts=6, rows=path)
    wrong = sum(row["attacks"]["same"]["wrong"] for row in read_rows(path)[1])
    assert abs(wrong - n * k * p) < 4 * math.sqrt(n * k * p * (1 - p))


def test_a_model_with_a_counter_for_its_noise_and_one_without(tmp_path):
    """The diffusion classifier derives fresh noise from a counter, and shared noise from the same counter at zero."""
    x, y = draw((3, 1, 8, 8), 0, torch.float32), torch.tensor([0, 1, 2])
    for noise, random in (("fresh", True), ("shared", False)):
        model = DiffusionClassifier(tiny_network(), levels("elbo", 2), noise=noise)
        rows = []
        for run in range(2):
            path = tmp_path / f"{noise}{run}.jsonl"
            robust_accuracy(model, x, y, partial(pgd, steps=1), draws=3 if random else None, rows=path)
            config, found = read_rows(path)
            rows.append(without(found))
            assert config["random"] == random and model.calls == 0
            model(x)  # its counter moves, or not
            model.calls = 0 if run else model.calls
            if random and not run:
                assert model.calls == 1
                model.calls = 0
        assert rows[0] == rows[1] and set(rows[0][0]["right"]) == {"once", "draws", "resubmit", "known"}
        if not random:
            assert [row["clean"] for row in found] == predict(model, x).tolist()


def test_a_defence_that_restarts_the_global_generator_is_random_all_the_same():
    class Reseeded(nn.Module):
        def forward(self, x):
            torch.manual_seed(torch.initial_seed())
            return x.flatten(1) + torch.randn(len(x), 9)

    x = draw((2, 1, 3, 3), 0, torch.float32)
    torch.manual_seed(3)
    assert torch.equal(Reseeded()(x), Reseeded()(x)) and randomness(Reseeded(), x[:1])[0]


def test_the_table_of_attacks_and_their_union(tmp_path):
    x, y, path = images([0.1, 0.9, 0.9, 0.2]), torch.tensor([0, 1, 1, 1]), tmp_path / "rows.jsonl"
    first, second = images([0.9, 0.9, 0.1, 0.2]), images([0.1, 0.1, 0.9, 0.9])
    assert robust_accuracy(Sees(), x, y, {"a": first, "b": second, "c": same}, rows=path).correct == 0
    counts = {name: value.correct for name, value in attack_table(path).items()}
    assert counts == {"a": 1, "b": 2, "c": 3, "union": 0}  # the fourth is wrong before any attack
    for protocol in PROTOCOLS:
        assert attack_table(path, protocol) == attack_table(path)
    robust_accuracy(Sees(), x, y, [first, second, same, same, partial(same)], rows=tmp_path / "names.jsonl")
    names = ["given", "given 2", "same", "same 2", "same 3"]
    assert list(read_rows(tmp_path / "names.jsonl")[0]["attacks"]) == names


def test_accuracy_in_rows(tmp_path):
    x, y = images([0.1, 0.9, 0.2, 0.8]), torch.tensor([0, 1, 1, 1])
    assert accuracy(Sees(), x, y, rows=tmp_path / "rows.jsonl").correct == 3
    assert [row["clean"] for row in read_rows(tmp_path / "rows.jsonl")[1]] == [0, 1, 0, 1]
    assert {k: v.correct for k, v in attack_table(tmp_path / "rows.jsonl").items()} == {"union": 3}


def test_an_attack_by_name():
    model, x = Linear(draw((3, 1, 3, 3), 1, torch.float32) - 0.5, torch.zeros(3)), draw((5, 1, 3, 3), 2, torch.float32)
    y = model(x).argmax(1)
    one = robust_accuracy(model, x, y, "pgd", norm="L2", eps=0.2, steps=4)
    assert one == robust_accuracy(model, x, y, partial(pgd, norm="L2", eps=0.2, steps=4))
    assert robust_accuracy(model, x, y, "pgd", eps=1.0).correct == 0 < robust_accuracy(model, x, y, "pgd", eps=1e-6).correct


@pytest.mark.parametrize(
    ("attack", "options", "text"),
    [
        ("fgsm", {}, "unknown attack 'fgsm'; there are pgd"),
        ("pgd", {"power": 3}, "pgd has no option power"),
        (same, {"eps": 0.1}, "option eps is for attacks given by name"),
        (None, {}, "no attack"),
        (same, {"protocol": "twice"}, "unknown protocol 'twice'; there are once, draws, resubmit, known"),
        (same, {"workers": 0}, "workers must be at least 1, got 0"),
        (same, {"attempts": 0}, "attempts must be at least 1, got 0"),
        (same, {"draws": 0}, "draws must be at least 1, got 0"),
        (same, {"block": 0}, "block must be at least 1, got 0"),
        (same, {"index": torch.tensor([1, 1])}, "index must hold 2 different numbers"),
        (lambda model, x, y: x, {}, "does not take seed and index"),
        (lambda model, x, y, **_: x[0], {}, "must return images"),
        (lambda model, x, y, **_: x + 2, {}, r"images must lie in \[0, 1\]"),
        (torch.zeros(3, 1, 1, 1), {}, "3 adversarial images for 2 images"),
        (torch.zeros(2, 1, 1, 1) - 1, {}, r"images must lie in \[0, 1\]"),
    ],
)
def test_bad_input_gets_one_line(attack, options, text):
    with pytest.raises(ValueError, match=text) as error:
        robust_accuracy(Sees(), images([0.1, 0.2]), torch.tensor([0, 0]), attack, **options)
    assert "\n" not in str(error.value)


def test_images_that_are_wrong_from_the_start_are_not_attacked():
    assert robust_accuracy(Sees(), images([0.1, 0.2]), torch.tensor([1, 1]), failing).correct == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"eot": -1}, "eot must be at least 1, got -1"),
        ({"targets": -1}, "targets must be at least 0, got -1"),
        ({"eps": "8/0"}, "eps must be a number or a fraction such as 8/255, got '8/0'"),
        ({"eps": -1}, "eps must not be negative, got -1"),
    ],
)
def test_an_attack_without_effort_is_no_attack(options, text):
    """It raises before the model is asked."""
    with pytest.raises(ValueError, match=text):
        robust_accuracy(nn.Identity(), images([0.1]), torch.tensor([0]), "pgd", **options)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_autograd_mode_does_not_matter(mode):
    model = Linear(draw((3, 1, 3, 3), 1, torch.float32) - 0.5)
    x = draw((6, 1, 3, 3), 2, torch.float32)
    y = model(x).argmax(1)
    expected = robust_accuracy(model, x, y, "pgd", eps="1/20", steps=3)
    with mode():
        x, y = x.clone(), y.clone()
        assert robust_accuracy(model, x, y, "pgd", eps=0.05, steps=3) == expected
        assert accuracy(model, x, y).correct == 6 and predict(model, x).tolist() == y.tolist()


def test_a_model_in_training_mode_is_asked_in_evaluation_mode_and_told_of():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(9, 3)).train()
    x, before = draw((6, 1, 3, 3), 2, torch.float32), [b.clone() for b in model.buffers()]
    with pytest.warns(UserWarning, match="BatchNorm2d of the model is in training mode"):
        y = predict(model, x)
    with pytest.warns(UserWarning, match="BatchNorm2d of the model is in training mode"):
        found = robust_accuracy(model, x, y, "pgd", eps=0.05, steps=2, block=4)
    assert model.training and all(map(torch.equal, before, model.buffers()))
    assert found == robust_accuracy(model.eval(), x, y, "pgd", eps=0.05, steps=2, block=5)


@pytest.mark.parametrize(("logits", "text"), [(torch.full((1, 2), torch.nan), "NaN"), (torch.zeros(2), "must return logits")])
def test_a_model_that_returns_nonsense(logits, text):
    class Nonsense(nn.Module):
        def forward(self, x):
            return logits

    with pytest.raises(ValueError, match=text):
        robust_accuracy(Nonsense(), images([0.1]), torch.tensor([0]), same)
