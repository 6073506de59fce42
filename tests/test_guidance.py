"""The experiments on guidance: cells are what their parts say, reading is paired, the stored scales are those of the sweep."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import mixture
from test_guide_classifier import tiny
from torch import nn

from rdc.attack.pgd import pgd
from rdc.classify.reference import reference_network
from rdc.data import Images, load
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.optimal import OptimalDenoiser
from rdc.evaluate import predict
from rdc.experiments import experiment
from rdc.experiments._guidance import CHOSEN, FRESH, SWEEP
from rdc.guide import FeatureNetwork, PosteriorGuide, RatioGuide, SamplingPlan, Threat, frechet_distance, level_table, sample
from rdc.guide.align import alignment_table, direction
from rdc.guide.classifier import AtLevel
from rdc.guide.plan import PLANS, evaluations, share
from rdc.guide.plan import vp_path as vp
from rdc.guide.reading import alone, boot, chosen, difference, mean, one, paired, pick
from rdc.notebook import attacks_table, differences_table, samples_table, stored_found
from rdc.rng import randn
from rdc.runs.cell import Cell, Line, Outcome, Row
from rdc.runs.statistics import Accuracy, repeated
from rdc.runs.store import Found
from rdc.tasks import aligned, guided, level, measure, targeted, toy
from rdc.train.judges import METRICS, Judges, balanced
from rdc.train.judges import measure as measured

BARE = {"commit": "", "date": "", "device": "", "python": "", "seconds": 2.0, "versions": {}}


def found(row: Row, values=None, bits=None, counts=None) -> Found:
    """A row with what came out."""
    (line,) = [Line.of(Cell(row, 0, row.n), Outcome(bits or {}, values=values or {}, counts=counts or {}), "", {}, BARE)]
    return Found(row, dict.fromkeys(range(row.n), line))


def made(guide: str, scale: float, values: list[float], first: int = 0) -> Found:
    about = {"measure": "samples", "guide": guide, "scale": scale, "plan": "heun", "conditional": True, "images": 10}
    about["dtype"] = "fast"
    row = Row(guide, {}, None, {"images": 10, "first": first}, n=len(values), block=1, task="guided", about=about)
    return found(row, {name: values for name in METRICS})


# Cells


def test_a_cell_of_samples_is_what_its_parts_say():
    row = toy(next(r for r in experiment("guidance-main").rows if r.model == "classifier-free"))
    row = replace(row, n=2, options={**row.options, "scale": 0.5})
    (_, second) = row.cells()
    outcome = measure(second)
    assert set(outcome.values) == set(METRICS) and all(len(v) == 1 for v in outcome.values.values())
    y, first = torch.arange(10), row.arguments["first"] + guided.APART
    denoiser, features = load_denoiser("digits"), FeatureNetwork("cnn", reference_network("cnn", "digits"))
    x = sample(denoiser, y, range(first, first + 10), PLANS["heun"], RatioGuide(denoiser), 0.5).x
    x = (255 * x).round() / 255
    assert outcome.values["frechet"][0] == pytest.approx(frechet_distance(features(load("digits").x), features(x)), rel=1e-6)
    seen = predict(reference_network("at-linf", "digits"), x) == y
    assert outcome.values["agreement"][0] == pytest.approx(float(seen.double().mean()))


def test_a_cell_of_a_noisy_classifier_is_what_its_parts_say(monkeypatch):
    digits = load("digits")
    few = Images(digits.x[:40], digits.y[:40] % 3, ["a", "b", "c"])
    monkeypatch.setattr(level, "load", lambda *_: few)
    monkeypatch.setattr(level, "network", lambda *_: tiny())
    arguments = {"sigma": 0.3, "threat": {"eps": 1.0}, "group": 20, "pgd": {"steps": 3, "restarts": 1}}
    row = Row("robust", {}, None, arguments, n=40, block=20, task="level")
    outcome, part = measure(Cell(row, 20, 40)), few[20:40]
    (wanted,) = level_table(tiny(), part, (0.3,), Threat(eps=1.0), seed=1)
    assert sum(outcome.bits["trained"]) == wanted["adversarial"]
    model, eps = AtLevel(tiny(), 0.3, seed=1), float(Threat(eps=1.0).radius_at(torch.tensor(0.3).double())) / 2
    x_adv = pgd(model, part.x, part.y, norm="L2", eps=eps, steps=3, restarts=1, seed=1)
    clean = predict(model, part.x) == part.y
    assert outcome.bits["clean"] == clean.tolist()
    assert outcome.bits["robust"] == (clean & (predict(model, x_adv) == part.y)).tolist()
    with pytest.raises(ValueError, match="no block of 20"):
        measure(Cell(row, 10, 30))
    audit = measure(Cell(replace(row, arguments={**arguments, "audit": True}, n=20), 0, 20))
    assert audit.counts["failed"] == sum(w.startswith("fail") for w in audit.words.values()) and len(audit.words) > 5


def test_bayes_rule_survives_what_the_noise_hides_and_not_what_it_does_not(monkeypatch):
    x, y = mixture(0, (30, 30), (1, 2, 2))
    monkeypatch.setattr(aligned, "exact", lambda *_: OptimalDenoiser(x.float(), y))
    monkeypatch.setattr(level, "load", lambda *_: Images(x.float(), y, ["a", "b"]))
    threats = [{"sigma": 0.3, "threat": {"eps": eps}, "group": 60} for eps in (0.005, 10.0)]
    rows = [Row("exact posterior", {}, None, threat, n=60, task="level") for threat in threats]
    little, much = (measure(Cell(row, 0, 60)).bits for row in rows)
    assert little["clean"] == much["clean"] and sum(little["trained"]) >= sum(little["clean"]) - 2 and not any(much["trained"])


def test_a_cell_of_alignments_is_the_table_by_image():
    row = replace(toy(next(r for r in experiment("guidance-gradients").rows if r.model == "classifier-free")), n=4, block=4)
    row = replace(row, arguments={"sigma": 0.3, "towards": "another class"})
    values = measure(Cell(row, 0, 4)).values
    digits, guide = load("digits")[:4], aligned.in_float(RatioGuide(load_denoiser("digits")))
    (wanted,) = alignment_table({"": guide}, aligned.exact("digits"), digits.x.double(), (digits.y + 1) % 10, (0.3,))
    cosines = [v for v in values["cosine"] if v is not None]
    assert len(cosines) == wanted["n"] > 1
    assert (boot(cosines).value, boot(cosines).low) == pytest.approx((wanted["cosine"], wanted["low"]), rel=1e-6)
    again = measure(Cell(row, 2, 4)).values["cosine"]
    assert again == pytest.approx(values["cosine"][2:], rel=1e-4), "an image does not depend on its block"


def test_ascent_stays_inside_and_is_aligned_with_the_way_to_the_class():
    x, y = mixture(0, (4, 4, 4), (1, 2, 3))
    denoiser = OptimalDenoiser(x, y)
    for r in (0.1, 0.5):
        moved, z, target = targeted.climbed(PosteriorGuide(denoiser), Images(x, y, ["a", "b", "c"]), 0.5, r)
        assert (moved - z).flatten(1).norm(dim=1).max() <= r * (1 + 1e-9) and bool((target == (y + 1) % 3).all())
        level = torch.full((len(z),), 0.5, dtype=torch.float64)
        way = direction(denoiser, z, level, target)
        assert torch.allclose(targeted.along(denoiser, way, z, target, 0.5), torch.ones(len(z)).double())
        assert targeted.along(denoiser, moved - z, z, target, 0.5).mean() > 0.9


def test_real_images_are_balanced_and_new_in_each_repetition():
    y = torch.arange(10).repeat(6)
    parts = [balanced(y, 20, r) for r in range(3)]
    assert all(torch.bincount(y[p]).tolist() == [2] * 10 for p in parts) and len(torch.cat(parts).unique()) == 60
    with pytest.raises(ValueError, match="not 4 times 2"):
        balanced(y, 20, 3)


class Flat(nn.Module):
    """A network whose layer ``head`` reads the first three pixels, and which sees the class in the fourth."""

    def __init__(self):
        super().__init__()
        self.head = nn.Identity()

    def forward(self, x):
        flat = x.flatten(1)
        self.head(flat[:, :3])
        return nn.functional.one_hot((10 * flat[:, 3]).round().long().clamp(0, 9), 10).float()


def test_images_of_reference_are_perfect():
    x, y = randn((60, 1, 2, 2), 0).sigmoid(), torch.arange(60) % 10
    x[:, 0, 1, 1] = y / 10
    features = {role: FeatureNetwork(role, Flat()) for role in ("plain", "robust")}
    judges = Judges(features, {role: f(x) for role, f in features.items()}, Flat())
    perfect, wrong = measured(judges, x, y), measured(judges, x, (y + (y == 3)) % 10)
    assert tuple(perfect) == METRICS
    assert perfect["frechet"] < 1e-10 and perfect["precision"] == perfect["recall"] == perfect["agreement"] == 1
    assert wrong["agreement"] == pytest.approx(0.9) and wrong["frechet"] == perfect["frechet"]


# Plans


def test_the_scale_of_the_ddpm_form_has_a_limit_that_knows_no_number_of_steps():
    for sigma in (0.3, 1.0, 3.0):
        less = [(1 - share(replace(PLANS["ddpm"], path=vp(count)), sigma)) * count for count in (100, 250, 1000)]
        assert 0 < min(less) and max(less) < 1.25 * min(less)  # the share lacks something of the order of the step
    assert share(PLANS["ddpm"], 1.0) < 0.8 < 0.95 < share(PLANS["ddpm250"], 1.0) < 1
    assert [evaluations(PLANS[p]) for p in ("ddpm", "ddpm250", "heun")] == [25, 250, 17]


class Still:
    """A denoiser that takes every image for what it is."""

    one_pass, num_classes, shape = False, 10, (1, 2, 3)

    def __call__(self, z, sigma, label=None):
        return z

    def all_classes(self, z, sigma):
        return torch.stack([z] * 10, dim=1)


def test_the_share_is_what_a_step_of_the_sampler_does():
    plan, moved = SamplingPlan(torch.tensor([2.0, 1.5, 0.0]).double(), "ancestral"), []
    for form in ("ddpm", "score"):
        runs = [
            sample(Still(), torch.tensor([0]), [0], replace(plan, form=form), lambda z, *_: torch.ones_like(z), s, keep=True)
            for s in (0.0, 1.0)
        ]
        moved.append(float((runs[1].estimates[0, 1] - runs[0].estimates[0, 1]).mean()))
    assert moved[0] / moved[1] == pytest.approx(share(replace(plan, form="ddpm"), 2.0), rel=1e-4)


# Reading


def test_differences_are_paired_and_need_the_same_seeds():
    values = [0.3, 1.4, -0.2, 0.9]
    a, b = made("a", 1.0, [v + 1 for v in values]), made("b", 1.0, values)
    gap = difference(a, b, "frechet")
    assert (gap.low, gap.value, gap.high) == pytest.approx((1, 1, 1))
    assert mean(a, "frechet") == repeated([v + 1 for v in values])
    with pytest.raises(ValueError, match="only rows of the same seeds"):
        difference(a, made("b", 1.0, values, first=5), "frechet")
    assert mean(made("a", 1.0, [0.5, 1.0]), "agreement") == Accuracy.of(15, 20)


def test_the_scale_is_that_of_the_smallest_distance_above_zero():
    rows = [made("g", s, [v, v]) for s, v in ((0.0, 1.0), (2.0, 3.0), (1.0, 3.0), (4.0, 5.0))]
    assert chosen(rows).row.about["scale"] == 1.0 and chosen(rows[1:2]).row.about["scale"] == 2.0
    assert one(rows, scale=4.0) is rows[3] and pick(rows, scale=(1.0, 4.0)) == [rows[2], rows[3]]
    with pytest.raises(ValueError, match="no scale"):
        chosen(rows[:1])
    with pytest.raises(ValueError, match="4 rows have the words"):
        one(rows, guide="g")


def test_pairs_are_counted_from_images_or_from_kept_counts():
    row = Row("a", {}, None, {}, n=4, block=4, task="level", about={"guide": "a", "sigma": 1.0})
    other = replace(row, model="b", about={"guide": "b", "sigma": 1.0})
    a = found(row, bits={"robust": [True, True, True, False]})
    b = found(other, bits={"robust": [False, False, True, True]})
    assert alone(a, b, "robust") == (2, 1, 4) and paired(a, b, "robust").value == pytest.approx(0.25)
    kept = found(row, counts={"robust": 3, "robust only here, beside b": 2, "robust only there, beside b": 1})
    bare = found(other, counts={"robust": 2})
    assert alone(kept, bare, "robust") == (2, 1, 4) and paired(kept, bare, "robust") == paired(a, b, "robust")
    with pytest.raises(ValueError, match="no counts of pairs"):
        alone(bare, kept, "robust")


# What is stored


def test_the_scales_are_those_that_the_sweep_chose():
    sweep = stored_found("guidance-scales")
    for (guide, plan, conditional), scale in CHOSEN.items():
        tried = pick(sweep, guide=guide, plan=plan, conditional=conditional)
        assert scale == (0 if guide == "none" else chosen(tried).row.about["scale"]), guide


def test_sweep_and_judgement_use_other_seeds():
    seeds = [{first + guided.APART * r + i for r in range(10) for i in range(1000)} for first in (SWEEP, FRESH)]
    assert not seeds[0] & seeds[1] and len(seeds[0]) == 10_000


def test_a_cheap_cell_comes_out_again():
    rows = [r for r in experiment("guidance-gradients").rows if r.model == "vanilla" and r.about["measure"] == "alignment"]
    (stored,) = [f for f in stored_found("guidance-gradients") if f.row == next(r for r in rows if r.arguments["sigma"] == 0.3)]
    again = aligned.aligned(Cell(stored.row, 0, 10)).values["cosine"]
    assert again == pytest.approx([stored.value("cosine")[i] for i in range(10)], abs=1e-4)


def test_every_stored_row_has_its_table():
    assert len(samples_table(stored_found("guidance-scales")).data) == 31
    main = pick(stored_found("guidance-main"), measure="samples")
    assert {"nfe", "seconds per image"} <= set(samples_table(main, cost=True).data)
    two = [one(main, guide=g, plan="ddpm") for g in ("robust", "none")]
    assert differences_table([tuple(two)]).data["difference of"].tolist() == ["robust - none"]
    attacked = pick(stored_found("guidance-audit"), measure="noisy")
    assert len(attacks_table(attacked).data) == len(attacked) == 54
    assert samples_table(main, brief=True).data.shape[1] == differences_table([tuple(two)], brief=True).data.shape[1] == 6
    assert json.dumps(samples_table([]), default=str) == '"not run here"'
