"""The laws behind tools/guidance.py: kept samples are those of an unbroken run, differences are paired, the scale is chosen."""

import json
import sys
from dataclasses import replace

import guidance
import guidance_audit
import guidance_chain
import guidance_checks
import guidance_networks
import guidance_rows
import guidance_samples
import guidance_spread
import guidance_threats
import guidance_wide
import numpy as np
import pytest
import torch
from helpers import Counting, mixture
from scipy.stats import binomtest, f_oneway, ttest_1samp, ttest_ind, ttest_rel
from test_guide_classifier import tiny
from torch import nn

from rdc.data import load
from rdc.denoise.optimal import OptimalDenoiser
from rdc.evaluate import Accuracy
from rdc.guide.guides import PosteriorGuide, RatioGuide
from rdc.guide.metrics import FeatureNetwork
from rdc.guide.sampling import sample
from rdc.rng import randn

Setting = guidance_samples.Setting


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    for module in (guidance_samples, guidance_checks, guidance_networks):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return tmp_path


class Drawer:
    """In the place of sampling: images that follow from their seeds; dies before the batch ``until``."""

    def __init__(self, until=None):
        self.calls, self.until = [], until

    def __call__(self, setting, seeds):
        if len(self.calls) == self.until:
            raise KeyboardInterrupt
        self.calls.append(seeds)
        return torch.stack([randn((1, 28, 28), s).sigmoid() for s in seeds])


# Samples


def test_a_killed_run_continues_at_its_last_batch_to_the_same_images(monkeypatch, runs):
    monkeypatch.setattr(guidance_samples, "BATCH", 20)
    setting, other = Setting("none"), Setting("none", plan="ddpm")
    monkeypatch.setattr(guidance_samples, "draw", whole := Drawer())
    x, _ = guidance_samples.drawn(other, 500, 70)
    monkeypatch.setattr(guidance_samples, "draw", broken := Drawer(until=2))
    with pytest.raises(KeyboardInterrupt):
        guidance_samples.drawn(setting, 500, 70)
    monkeypatch.setattr(guidance_samples, "draw", rest := Drawer())
    again, _ = guidance_samples.drawn(setting, 500, 70)
    assert torch.equal(x, again) and broken.calls + rest.calls == whole.calls
    assert not list(runs.rglob(".*"))  # no temporary file is left


def test_fewer_images_are_the_first_ones_and_a_cut_batch_is_drawn_again(monkeypatch):
    monkeypatch.setattr(guidance_samples, "BATCH", 20)
    monkeypatch.setattr(guidance_samples, "draw", drawer := Drawer())
    few, seconds = guidance_samples.drawn(Setting(), 0, 30)
    many, _ = guidance_samples.drawn(Setting(), 0, 60)
    assert torch.equal(many[:30], few) and [len(c) for c in drawer.calls] == [20, 10, 20, 20] and seconds > 0
    assert torch.equal(guidance_samples.drawn(Setting(), 0, 40)[0], many[:40]) and len(drawer.calls) == 4
    assert torch.equal(255 * many, (255 * many).round())
    with pytest.raises(ValueError, match="multiple of 10"):
        guidance_samples.drawn(Setting(), 0, 25)


def test_settings_have_their_own_folders():
    some = [Setting(), Setting("none", plan="ddpm"), Setting(conditional=False), Setting(dtype="float32"),
            Setting("classifier-free", 1.0), Setting("classifier-free", 2.0), Setting("diffusion classifier", 1.0)]  # fmt: skip
    assert len({s.key() for s in some}) == len(some) and Setting().key() == Setting().key()


class TenGaussians:
    """The denoiser of ten classes ``N(m_y, 1)``, without label that of ``N(0, 1)``."""

    one_pass, num_classes, shape = True, 10, (1, 2, 3)

    def __call__(self, z, sigma, label=None):
        mean = torch.zeros(len(z)) if label is None else (label - 4.5) / 10
        level = sigma.reshape(-1, 1, 1, 1) ** 2
        return (z + level * mean.reshape(-1, 1, 1, 1)) / (1 + level)

    def all_classes(self, z, sigma):
        return torch.stack([self(z, sigma, torch.full((len(z),), k)) for k in range(10)], dim=1)


@pytest.mark.parametrize("plan", ["heun", "ddpm"])
@pytest.mark.parametrize("guide", ["none", "classifier-free"])
def test_an_image_follows_from_its_seed_and_costs_what_it_says(monkeypatch, plan, guide):
    denoiser = Counting(TenGaussians())
    monkeypatch.setattr(guidance_samples, "load_denoiser", lambda *_, **__: denoiser)
    monkeypatch.setattr(guidance_samples, "build", lambda name, _: RatioGuide(denoiser) if name == guide != "none" else None)
    setting = Setting(guide, 0.5, plan, dtype="float32")
    both = guidance_samples.draw(setting, range(40, 60))
    assert denoiser.evaluations == 20 * setting.cost()["nfe"]
    assert torch.allclose(guidance_samples.draw(setting, range(50, 60)), both[10:], atol=1e-4)
    assert (both[:10] - both[10:]).abs().max() > 0.1


def test_guides_share_the_noise_of_a_seed(monkeypatch):
    denoiser = TenGaussians()
    monkeypatch.setattr(guidance_samples, "load_denoiser", lambda *_, **__: denoiser)
    monkeypatch.setattr(guidance_samples, "build", lambda name, _: None if name == "none" else RatioGuide(denoiser))
    plain, zero, little = (
        guidance_samples.draw(Setting(g, s, dtype="float32"), range(10)) for g, s in (("none", 0.0), ("g", 0.0), ("g", 1e-3))
    )
    assert torch.equal(plain, zero) and 0 < (plain - little).abs().max() < 0.05


# Rows


class Flat(nn.Module):
    """A network whose layer ``head`` reads the first three pixels, and which sees the class in the fourth."""

    def __init__(self):
        super().__init__()
        self.head = nn.Identity()

    def forward(self, x):
        flat = x.flatten(1)
        self.head(flat[:, :3])
        return nn.functional.one_hot((10 * flat[:, 3]).round().long().clamp(0, 9), 10).float()


def judged(n=60, seed=0):
    """Images whose fourth pixel tells their class, and judges that have them as reference."""
    x, y = randn((n, 1, 2, 2), seed).sigmoid(), guidance_samples.labels(n)
    x[:, 0, 1, 1] = y / 10
    network = FeatureNetwork("pixels", Flat())
    features = {"plain": network, "robust": FeatureNetwork("pixels, squared", Flat())}
    return x, y, guidance_networks.Judges(features, {k: network(x) for k in features}, Flat())


def test_images_of_reference_are_perfect():
    x, y, judges = judged()
    found = guidance_rows.measure(judges, x, y)
    assert set(guidance_rows.METRICS) <= set(found)
    assert found["frechet"] < 1e-10 and found["precision"] == found["recall"] == found["agreement"] == 1
    wrong = guidance_rows.measure(judges, x, (y + (y == 3)) % 10)
    assert wrong["agreement"] == pytest.approx(0.9) and wrong["frechet"] == found["frechet"]


def test_a_row_has_students_intervals_and_pooled_counts(monkeypatch):
    x, y, judges = judged(20)
    monkeypatch.setattr(guidance_rows, "drawn", lambda s, first, n: ((x + 1e-6 * first).clamp(0, 1), 0.5))
    row = guidance_rows.row(judges, Setting(), 1000, 3, 20)
    low, high = ttest_1samp(row["frechet"]["values"], 0).confidence_interval(0.95)
    assert (row["frechet"]["low"], row["frechet"]["high"]) == pytest.approx((low, high)) and row["n"] == 20
    assert row["agreement"] == {**vars(Accuracy.of(60, 60)), "values": [1, 1, 1]} and row["seeds"] == [1000, 11000, 21000]
    assert json.loads(json.dumps(row)) == row  # a record holds it


def test_differences_are_paired():
    shared = np.random.default_rng(0).normal(size=4)
    common = {"plan": "heun", "conditional": True, "scale": 1.0, "n": 10, "seeds": [1, 2, 3, 4]}
    a, b = (
        {"guide": g, **common, **{m: {"values": list(shared + s)} for m in guidance_rows.METRICS}}
        for g, s in (("a", 1), ("b", 0))
    )
    found = guidance_rows.differences(a, b)
    assert [d["metric"] for d in found] == list(guidance_rows.METRICS)
    assert all((d["low"], d["value"], d["high"]) == pytest.approx((1, 1, 1)) for d in found)
    for change in ({"seeds": [1, 2, 3, 5]}, {"n": 20}):
        with pytest.raises(ValueError, match="a and b are not"):
            guidance_rows.differences(a, b | change)


def test_only_alike_rows_are_compared():
    base = {"plan": "heun", "conditional": True, "dtype": "float32", "n": 10, "seeds": [0, 1], "scale": 1.0}
    base |= {m: {"values": [0.0, 1.0]} for m in guidance_rows.METRICS}
    rows = [base | {"guide": g} for g in ("none", "vanilla", "robust")] + [base | {"guide": "robust", "plan": "ddpm"}]
    pairs = {(d["a"], d["b"], d["plan"]) for d in guidance_rows.compared(rows, guidance.PAIRS)}
    assert pairs == {(a, b, "heun") for a, b in (("vanilla", "none"), ("robust", "none"), ("robust", "vanilla"))}


def test_real_images_are_balanced_and_new_in_each_repetition():
    y = torch.arange(10).repeat(6)
    parts = [guidance_rows.balanced(y, 20, r) for r in range(3)]
    assert all(torch.bincount(y[p]).tolist() == [2] * 10 for p in parts) and len(torch.cat(parts).unique()) == 60
    with pytest.raises(ValueError, match="not 4 times 2"):
        guidance_rows.balanced(y, 20, 3)


# Scales


def test_the_scale_is_that_of_the_smallest_distance_above_zero():
    def tried(scale, value, **more):
        return {"guide": "robust", "plan": "heun", "conditional": True, "scale": scale, "frechet": {"value": value}, **more}

    rows = [tried(0.0, 1.0), tried(2.0, 3.0), tried(1.0, 3.0), tried(4.0, 5.0), tried(8.0, 0.1, guide="vanilla"),
            tried(9.0, 0.1, plan="ddpm"), tried(7.0, 0.1, conditional=False)]  # fmt: skip
    assert guidance_rows.chosen(rows, "robust", "heun", True) == 1.0
    assert (
        guidance_rows.chosen(rows, "robust", "ddpm", True) == 9.0 and guidance_rows.chosen(rows, "robust", "heun", False) == 7.0
    )
    with pytest.raises(ValueError, match="--part scales first"):
        guidance_rows.chosen(rows, "none", "heun", True)


def test_sweep_and_main_use_other_seeds():
    seeds = [
        {first + guidance_samples.APART * r + i for r in range(10) for i in range(1000)}
        for first in (guidance.SWEEP, guidance.FRESH)
    ]
    assert not seeds[0] & seeds[1] and len(seeds[0]) == 10_000
    tried = guidance.sweep()
    assert len(set(tried)) == len(tried)  # nothing is drawn twice


# Checks


def test_a_paired_difference_against_scipy_and_its_coverage():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        hard = rng.random(80)
        a, b = (rng.random(80) < p for p in (0.9 - 0.3 * hard, 0.8 - 0.5 * hard))
        found = guidance_audit.paired(a.tolist(), b.tolist())
        only = int((a & ~b).sum()), int((b & ~a).sum())
        assert found["McNemar p"] == binomtest(only[0], sum(only)).pvalue and (found["only a"], found["only b"]) == only
        assert found["difference"]["value"] == pytest.approx(a.mean() - b.mean())
        hits += found["difference"]["low"] <= 0.2 <= found["difference"]["high"]
    assert hits >= 181  # 95 % of 200, less three standard deviations
    assert guidance_audit.paired([True], [True])["McNemar p"] == 1


def test_a_piece_is_done_once_and_a_killed_one_leaves_nothing(runs):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guidance_checks.kept({"a": 1}, killed)
    assert not list(runs.iterdir())
    assert guidance_checks.kept({"a": 1}, lambda: [1.5, {"b": torch.ones(2)}]) == [1.5, {"b": [1, 1]}]
    assert guidance_checks.kept({"a": 1}, killed)[0] == 1.5
    with pytest.raises(KeyboardInterrupt):
        guidance_checks.kept({"a": 2}, killed)


def test_the_way_to_a_class_is_aligned_with_itself_and_ascent_stays_inside():
    x, y = mixture(0, (4, 4, 4), (1, 2, 3))
    denoiser = OptimalDenoiser(x, y)
    images = guidance_checks.Images(x, y, ["a", "b", "c"])
    for r in (0.1, 0.5):
        moved, z, target = guidance_checks.climbed(PosteriorGuide(denoiser), images, 0.5, r)
        assert (moved - z).flatten(1).norm(dim=1).max() <= r * (1 + 1e-9) and bool((target == (y + 1) % 3).all())
        level = torch.full((len(z),), 0.5, dtype=torch.float64)
        way = guidance_checks.direction(denoiser, z, level, target)
        assert torch.allclose(guidance_checks.along(denoiser, way, z, target, 0.5), torch.ones(len(z)).double())
        assert guidance_checks.along(denoiser, moved - z, z, target, 0.5).mean() > 0.9
        better = denoiser.posterior(moved, level).gather(1, target[:, None]) - denoiser.posterior(z, level).gather(
            1, target[:, None]
        )
        assert bool((better > 0).all())


def test_attacked_images_are_among_the_right_ones(monkeypatch, runs):
    calls = []

    def classifier(path):
        calls.append(path)
        return tiny()

    digits = load("digits")
    monkeypatch.setattr(guidance_audit, "load", lambda _: guidance_checks.Images(digits.x, digits.y % 3, ["a", "b", "c"]))
    monkeypatch.setattr(guidance_audit, "load_classifier", classifier)
    monkeypatch.setattr(guidance_audit, "source", lambda _: "tiny")
    found = guidance_audit.attacked("robust", 0.3, 1, 40, 3, 1, 0)
    assert sum(found["robust"]) <= sum(found["clean"]) and found["training"] <= sum(found["clean"]) and len(found["clean"]) == 40
    assert not any(r and not c for r, c in zip(found["robust"], found["clean"], strict=True))
    count, wide = len(calls), guidance_audit.attacked("robust", 0.3, 1, 40, 3, 1, 0, 4.0)
    assert sum(wide["robust"]) < sum(found["robust"]) and wide["clean"] == found["clean"] and len(calls) == 2 * count
    row = guidance_audit.audit_row("robust", {"sigma": 0.5, "eps": 1.4}, [found, wide], 0)
    assert row["clean"].n == 80 and row["verdict"] == "not audited" and row["eps over noise"] == pytest.approx(0.1)
    assert guidance_audit.attacked("robust", 0.3, 1, 40, 3, 1, 0) == found and len(calls) == 2 * count


# Threat models against seeds


def test_the_ratio_of_spreads_covers_its_truth_and_its_p_is_uniform_without_effect():
    rng, hits, small = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        cells, seeds = rng.normal(5, 1, 15), rng.normal(5, 1, 5)
        found = guidance_spread.ratio_of_spreads(cells, seeds)
        assert found["value"] == pytest.approx(np.std(cells, ddof=1) / np.std(seeds, ddof=1)) and found["degrees"] == [14, 4]
        hits, small = hits + (found["low"] <= 1 <= found["high"]), small + (found["p"] < 0.1)
        wide = guidance_spread.ratio_of_spreads(3 * cells, seeds)
        assert [wide[k] for k in ("low", "value", "high")] == pytest.approx([3 * found[k] for k in ("low", "value", "high")])
    assert 929 <= hits <= 971 and 71 <= small <= 129  # three standard deviations
    for cells, seeds in (([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="a spread needs two values"):
            guidance_spread.ratio_of_spreads(cells, seeds)


def test_one_of_two_equal_groups_gives_the_f_of_scipy():
    table = np.random.default_rng(1).normal(size=(4, 2))
    found = guidance_spread.main_effects(table)
    pair = ttest_rel(table[:, 0], table[:, 1])  # two columns: a paired t test
    assert found["columns F"] == pytest.approx(pair.statistic**2) and found["columns p"] == pytest.approx(pair.pvalue)
    low, high = pair.confidence_interval(0.95)
    half = [(e["high"] - e["low"]) / 2 for e in found["columns"]]
    assert half == pytest.approx([(high - low) / 4] * 2)  # a column's mean less the mean of both is half their difference


def test_main_effects_are_least_squares():
    table = np.random.default_rng(2).normal(size=(5, 3)) + np.arange(5)[:, None] + 2 * np.arange(3)
    found = guidance_spread.main_effects(table)
    rows, columns = (np.kron(a, b) for a, b in ((np.eye(5), np.ones((3, 1))), (np.ones((5, 1)), np.eye(3))))
    one, left = np.ones((15, 1)), {}
    for name, design in (("all", [one, rows, columns]), ("rows", [one, columns]), ("columns", [one, rows])):
        design = np.concatenate(design, axis=1)
        left[name] = ((table.ravel() - design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]) ** 2).sum()
    assert found["error"] ** 2 * 8 == pytest.approx(left["all"]) and found["degrees"] == 8
    for name, count in (("rows", 4), ("columns", 2)):
        assert found[f"{name} F"] == pytest.approx((left[name] - left["all"]) / count / (left["all"] / 8))
    moved = guidance_spread.main_effects(table + np.array([[10], [0], [0], [0], [-10]]))
    assert moved["columns"] == [pytest.approx(c) for c in found["columns"]] and moved["error"] == pytest.approx(found["error"])
    assert moved["rows"][0]["value"] == pytest.approx(found["rows"][0]["value"] + 10)
    alone = f_oneway(*(table - np.array([c["value"] for c in found["columns"]])))  # columns known: 10 degrees in place of 8
    assert found["rows F"] == pytest.approx(alone.statistic * 8 / 10)


def test_the_effects_of_a_table_without_any_are_covered():
    rng = np.random.default_rng(3)
    tables = [guidance_spread.main_effects(rng.normal(size=(5, 3))) for _ in range(600)]
    for name in ("rows", "columns"):
        inside = np.mean([e["low"] <= 0 <= e["high"] for found in tables for e in found[name]])
        assert inside == pytest.approx(0.95, abs=0.02) and np.mean([f[f"{name} p"] < 0.2 for f in tables]) == pytest.approx(
            0.2, abs=0.05
        )


def test_one_training_beside_several():
    rng = np.random.default_rng(4)
    one, several = 3.0, rng.normal(size=5)
    found, p = guidance_spread.beside(one, several), ttest_ind([one], several).pvalue  # pooled: the variance of the several
    edge = guidance_spread.beside(one, several, level=1 - p)
    assert edge["low"] == pytest.approx(0, abs=1e-9) and found["value"] == pytest.approx(one - several.mean())
    again = [guidance_spread.beside(v[0], v[1:]) for v in rng.normal(size=(2000, 6))]
    assert np.mean([a["low"] <= 0 <= a["high"] for a in again]) == pytest.approx(0.95, abs=0.015)
    assert guidance_spread.beside(one, several, 14)["low"] < found["low"]


def training(t, value):
    """A row of ``threats`` whose numbers all are one value, that of the second denoiser ten times as much."""
    metrics = {m: {"value": value, "values": [value]} for m in guidance_rows.METRICS}
    far = {m: {"value": 10 * value, "values": [10 * value]} for m in guidance_rows.METRICS}
    rest = {k: {"value": value} for k in ("clean", "robust", "alignment at")}
    return guidance_threats.threat_of(t) | {"training seed": t.seed, "unconditional": far} | metrics | rest


def test_spreads_find_cells_and_seeds_in_any_order():
    rng = np.random.default_rng(5)
    trainings = guidance_networks.TRAININGS
    worth = dict(zip(trainings, rng.normal(size=len(trainings)), strict=True))
    found = guidance_spread.spreads([training(t, v) for t, v in worth.items()])
    turned = guidance_spread.spreads([training(t, v) for t, v in reversed(worth.items())])
    cells = [worth[guidance_networks.Trained(t)] for t in guidance_networks.GRID]
    seeds = [worth[t] for t in guidance_networks.SEEDS]
    for d, e in zip(found["spread"], turned["spread"], strict=True):
        times = 10 if d["conditional"] is False else 1
        assert (d["cells"], d["seeds"]) == pytest.approx((times * np.std(cells, ddof=1), times * np.std(seeds, ddof=1)))
        assert d["p"] == pytest.approx(e["p"])
    assert len({i for line in found["cells"] for i in line}) == 15 and [len(line) for line in found["cells"]] == [3] * 5
    paper = found["cells"][found["threats"].index(["L2", 0.5])][found["steps"].index(7)]
    assert paper in found["seeds"] and len(found["beside"]) == 9 * (len(trainings) - 5) + 6 * (len(trainings) - 5)
    stop = next(d for d in found["early stop"] if d["conditional"] is None and d["metric"] == "clean")
    unstopped = [worth[t] for t in guidance_networks.UNSTOPPED]
    assert stop["values"] == pytest.approx([a - b for a, b in zip(unstopped, seeds, strict=True)])
    low, high = ttest_rel(unstopped, seeds).confidence_interval()
    assert (stop["low"], stop["high"]) == pytest.approx((low, high))
    assert guidance_spread.spreads([training(t, v) for t, v in list(worth.items())[:20]]) == {}
    assert not guidance_spread.spreads([training(t, v) for t, v in list(worth.items())[:24]])["early stop"]


def test_the_part_of_the_threats_says_of_its_rows_what_the_statistics_say(monkeypatch):
    def drawn(setting, first, n):
        x, _, _ = judged(n)
        return (x * (1 + 0.001 * len(setting.guide)) + 1e-6 * first).clamp(0, 1), 0.5

    monkeypatch.setattr(guidance_rows, "drawn", drawn)
    monkeypatch.setattr(guidance_networks.Trained, "fit", lambda t, *_: f"{t.name()}.safetensors")
    monkeypatch.setattr(guidance_threats, "load_classifier", lambda path: len(path))
    table = [{"clean": 3, "adversarial": 2}]
    monkeypatch.setattr(guidance_threats, "level_table", lambda h, *_: [{**table[0], "adversarial": h % 3}])
    monkeypatch.setattr(guidance_threats, "aligned", lambda *_: {"value": 0.5})
    found = guidance_threats.threats_part(judged()[2], 1.0, 2.0, 0, 2, 20, 3, 4, 24)
    again = guidance_spread.spreads(json.loads(json.dumps(found["rows"])))
    assert again and {k: found[k] for k in again} == again and len(found["rows"]) == 24 and len(found["not run here"]) == 4
    constant = {"clean", "alignment"}  # no spread to speak of
    assert not constant & {s["metric"] for k in ("spread", "effects") for s in found[k]}
    assert {d["value"] for d in found["beside"] if d["metric"] in constant} == {0.0}


# The chain


def test_the_scale_of_the_ddpm_form_has_a_limit_that_knows_no_number_of_steps():
    for sigma in (0.3, 1.0, 3.0):
        less = []
        for count in (100, 250, 1000):
            plan = replace(guidance_samples.PLANS["ddpm"], path=guidance_samples.vp_path(count))
            less.append((1 - guidance_chain.share(plan, sigma)) * count)
            assert 0 < less[-1] < count
        assert max(less) < 1.25 * min(less)  # the share lacks something of the order of the step
    short, long = (guidance_chain.share(guidance_samples.PLANS[p], 1.0) for p in ("ddpm", "ddpm250"))
    assert short < 0.8 < 0.95 < long < 1
    assert [len(guidance_samples.PLANS[p].path) - 1 for p in ("ddpm", "ddpm250")] == [25, 250]


class Pull:
    """A guide that pulls everywhere with the same force."""

    def __call__(self, z, sigma, y):
        return torch.ones_like(z)


def test_the_share_is_what_a_step_of_the_sampler_does():
    plan = replace(guidance_samples.PLANS["ddpm"], path=torch.tensor([2.0, 1.5, 0.0]).double(), clip=False)
    y, moved = torch.zeros(1, dtype=torch.long), []
    for form in ("ddpm", "score"):
        made = [sample(Still(), y, [0], replace(plan, form=form), Pull(), s, keep=True).estimates[0, 1] for s in (0.0, 1.0)]
        moved.append(float((made[1] - made[0]).mean()))
    assert moved[0] / moved[1] == pytest.approx(guidance_chain.share(plan, 2.0), rel=1e-4)


class Still(TenGaussians):
    """A denoiser that takes every image for what it is."""

    def __call__(self, z, sigma, label=None):
        return z


def test_the_chain_compares_guides_and_numbers_of_steps_on_the_same_seeds(monkeypatch):
    def drawn(setting, first, n):
        x, _, _ = judged(n)
        return (x + 0.01 * setting.scale + 0.1 * (setting.plan == "ddpm250") + 1e-6 * first).clamp(0, 1), 0.5

    monkeypatch.setattr(guidance_rows, "drawn", drawn)
    found = guidance_chain.chain_part(judged()[2], lambda guide, plan: {"vanilla": 1.0, "robust": 2.0}[guide], 1000, 3, 20)
    assert [(r["plan"], r["guide"], r["scale"]) for r in found["rows"]] == [
        (p, g, s) for p in ("ddpm", "ddpm250") for g, s in (("none", 0.0), ("vanilla", 1.0), ("robust", 2.0))
    ]
    assert len({tuple(r["seeds"]) for r in found["rows"]}) == 1 and found["rows"][3]["nfe"] == 250
    metrics = len(guidance_rows.METRICS)
    assert len(found["differences"]) == 2 * 3 * metrics and len(found["across"]) == 3 * metrics
    assert {(d["a"], d["b"], d["plan"], d["plan b"]) for d in found["across"]} == {
        (g, g, "ddpm250", "ddpm") for g in ("none", "vanilla", "robust")
    }


# The wide guide


def test_the_wide_guide_has_a_scale_of_its_own_and_shares_seeds_with_the_others(monkeypatch):
    def drawn(setting, first, n):
        x, _, _ = judged(n)
        worst = 0.0 if setting.guide == "none" else 0.01 * abs(setting.scale - 2.0)
        return (x + worst + 1e-6 * first).clamp(0, 1), 0.5

    monkeypatch.setattr(guidance_rows, "drawn", drawn)
    for name, value in (("audited_rows", {}), ("aligned", {}), ("targeted_row", {}), ("factor", 6.0), ("weights", "w")):
        monkeypatch.setattr(guidance_wide, name, lambda *_, value=value: value)
    scales = {("heun", True): (0.5, 2.0), ("heun", False): (2.0, 4.0)}
    found = guidance_wide.wide_part(judged(20)[2], scales, lambda *_: 1.0, 0, 5000, 2, 20, 0, 0, 0, 0, 0, 0)
    assert [c["scale"] for c in found["chosen"]] == [2.0, 2.0]
    tried = [(r["conditional"], r["scale"]) for r in found["scales"]]  # 4.0 because 2.0 was the best so far
    assert tried == [(True, 0.5), (True, 2.0), (True, 4.0), (False, 2.0), (False, 4.0)]
    assert [r["scale"] for r in found["main"]] == 2 * [0.0, 1.0, 1.0, 2.0]
    assert {tuple(r["seeds"]) for r in found["main"]} == {(5000, 15000)} and found["scales"][0]["seeds"] == [0, 10000]
    pairs = {(d["a"], d["b"], d["conditional"]) for d in found["differences"]}
    assert pairs == {("wide", b, c) for b in ("none", "vanilla", "robust") for c in (True, False)}


def test_the_pairs_of_the_wide_guide_are_of_the_same_images_and_noise(monkeypatch):
    right = {"vanilla": [True, False, False, True], "robust": [True, True, False, True], "wide": [True, True, True, False]}

    def attacked(guide, sigma, group, *_):
        return {"clean": [True] * 4, "robust": right[guide], "training": 4, "ok": True, "checks": []}

    monkeypatch.setattr(guidance_wide, "attacked", attacked)
    monkeypatch.setattr(guidance_wide, "factor", lambda: 6.0)
    monkeypatch.setattr(guidance_wide, "bayes", lambda sigma, times, n: {"guide": "exact posterior", "sigma": sigma})
    found = guidance_wide.audited_rows(2, 4, 1, 1, 1)
    levels = len(guidance_checks.LEVELS)
    assert len(found["pairs"]) == 2 * levels * 2 * 2
    pair = next(p for p in found["pairs"] if (p["b"], p["of"], p["times"]) == ("vanilla", "robust", 6.0))
    assert (pair["only a"], pair["only b"], pair["n"]) == (4, 2, 8)
    assert [p["difference"]["value"] for p in found["pairs"] if p["of"] == "clean"] == [0.0] * 4 * levels
    rows = [r for r in found["rows"] if r["guide"] == "wide"]
    assert {r["times"] for r in rows} == {1.0, 6.0} and all(r["robust"].correct == 6 for r in rows)
    assert rows[0]["eps"] * 6 == pytest.approx(rows[levels]["eps"])


def test_bayes_rule_survives_what_the_noise_hides_and_not_what_it_does_not(monkeypatch):
    x, y = mixture(0, (30, 30), (1, 2, 2))
    monkeypatch.setattr(guidance_wide, "posterior", lambda: OptimalDenoiser(x.float(), y))
    monkeypatch.setattr(guidance_wide, "load", lambda _: guidance_checks.Images(x.float(), y, ["a", "b"]))
    little, much = (guidance_wide.bayes(0.3, times, 60) for times in (0.01, 20.0))
    assert little["clean"] == much["clean"] and little["training attack"]["correct"] >= little["clean"]["correct"] - 2
    assert much["training attack"]["correct"] == 0 and much["eps"] == pytest.approx(2000 * little["eps"])


# Record and options


def test_a_part_joins_the_record_and_leaves_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guidance, "RECORD", tmp_path / "results" / "guidance.json")
    monkeypatch.setattr(guidance, "describe", lambda: {"judge": {"name": "a network"}})
    for part, value in (("scales", 1), ("audit", 2), ("scales", 3)):
        guidance.store(part, lambda value=value: {"rows": [value]}, {"n": value})
    record = json.loads(guidance.RECORD.read_text())
    assert record["results"] == {"scales": {"rows": [3]}, "audit": {"rows": [2]}}
    assert record["config"]["parts"]["audit"]["n"] == 2 and record["config"]["parts"]["scales"]["n"] == 3
    assert record["config"]["networks"] == {"judge": {"name": "a network"}} and "audit: done" in capsys.readouterr().out


def test_a_part_that_cannot_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(guidance, "RECORD", tmp_path / "guidance.json")
    monkeypatch.setattr(sys, "argv", ["guidance.py", "--part", "main"])
    with pytest.raises(SystemExit, match="run --part scales first"):
        guidance.main()
    assert not guidance.RECORD.exists()


def test_trainings_differ_in_their_files():
    files = {t.path(3, 4).name for t in guidance_networks.TRAININGS}
    assert len(files) == len(guidance_networks.TRAININGS) and all(f.endswith("-3x4.safetensors") for f in files)
    assert guidance_networks.TRAININGS[0].config(50, 4).threat is None
