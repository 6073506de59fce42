"""The laws behind tools/guidance.py: kept samples are those of an unbroken run, differences are paired, the scale is chosen."""

import json
import sys

import guidance
import guidance_audit
import guidance_checks
import guidance_networks
import guidance_rows
import guidance_samples
import numpy as np
import pytest
import torch
from helpers import Counting, mixture
from scipy.stats import binomtest, ttest_1samp
from test_guide_classifier import tiny
from torch import nn

from rdc.data import load
from rdc.denoise.optimal import OptimalDenoiser
from rdc.evaluate import Accuracy
from rdc.guide.guides import PosteriorGuide, RatioGuide
from rdc.guide.metrics import FeatureNetwork
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
    pairs = {(d["a"], d["b"], d["plan"]) for d in guidance.compared(rows)}
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
    assert guidance.chosen(rows, "robust", "heun", True) == 1.0
    assert guidance.chosen(rows, "robust", "ddpm", True) == 9.0 and guidance.chosen(rows, "robust", "heun", False) == 7.0
    with pytest.raises(ValueError, match="--part scales first"):
        guidance.chosen(rows, "none", "heun", True)


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
