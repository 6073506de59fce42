"""Networks, weightings and gradients that are compared: the tasks and models behind the comparisons, by law and by hand."""

import json
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

import rdc.notebook.stored
from rdc.attack.losses import margin
from rdc.classify import DiffusionClassifier
from rdc.classify.weightings import on_grid, weightings
from rdc.data import Images, load
from rdc.data.unseen import unseen
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.multihead import MultiHead
from rdc.evaluate import Accuracy, predict
from rdc.models import build
from rdc.notebook import audits, gradients_table, stored_cells
from rdc.runs.cell import Row
from rdc.runs.record import book_folder
from rdc.schedule import levels
from rdc.tasks import measure, toy
from rdc.tasks.heads import SIGMAS, mean_cosine
from rdc.train.comparisons import HEADS, SIZES, recipe, trained


def test_a_weighting_keeps_the_weight_of_the_noise_error():
    grid, found = weightings(16)
    fine = levels("edm", 1000, "log", sigma_min=0.02, sigma_max=10.0)
    assert float((on_grid(fine, grid) * grid**2).sum()) == pytest.approx(float((fine.weight * fine.sigma**2).sum()))
    main = levels("elbo", 16, sigma_min=0.1)
    assert torch.equal(grid[:16], main.sigma) and torch.equal(found["ELBO (main)"][:16], main.weight)
    ratio = grid.sort().values.log().diff()
    assert torch.allclose(ratio, ratio[0].expand_as(ratio)) and 0.01 / 1.4 < float(grid.min()) <= 0.01 * 1.0001
    fine = found["ELBO, with the lower levels"]
    assert torch.allclose(fine[:16], main.weight, rtol=0.02), "the same density, by another rule"


def test_one_grid_gives_the_plain_classifier():
    x = load("digits").x[:3]
    plain, weighted = (build(m, "digits", denoiser="single-head", levels=3)(x) for m in ("dc", "dc-weighted"))
    assert torch.allclose(plain, weighted, rtol=1e-4)
    first = DiffusionClassifier(load_denoiser("digits"), levels("vp", 3, "first"))(x)
    assert torch.allclose(build("dc-first", "digits", levels=3)(x), first, rtol=1e-4)


def test_the_mean_over_pixels_is_the_sum_divided_by_their_number():
    x = load("digits").x[:6]
    total, mean = (build(m, "digits", denoiser="optimal", levels=3).double()(x.double()) for m in ("dc", "dc-mean"))
    assert torch.equal(mean, total / 64) and torch.equal(mean.argmax(1), total.argmax(1))
    assert build("dc-mean", "digits", levels=3, seed=4).reduce == "mean"


def test_unseen_images_are_those_that_are_left_out(monkeypatch):
    every, some = torch.rand(6, 1, 2, 2), torch.tensor([1, 4])
    sets = {"fashion": Images(every, torch.arange(6), []), "fashion-mini": Images(every[some], some, [])}
    monkeypatch.setattr("rdc.data.unseen.load", lambda name: sets[name])
    assert unseen(3).y.tolist() == [0, 2, 3] and torch.equal(unseen(4).x, every[torch.tensor([0, 2, 3, 5])])
    with pytest.raises(ValueError, match="fashion has 4 test images that fashion-mini does not hold, not 5"):
        unseen(5)
    monkeypatch.setattr("rdc.tasks.unseen.unseen_images", lambda count: load("digits")[:count])
    found = measure(next(Row("dc", {"levels": 2}, data="digits", n=4, block=4, task="unseen").cells()))
    right = predict(build("dc", "digits", levels=2), load("digits").x[:4]) == load("digits").y[:4]
    assert found.bits == {"clean": right.tolist()} and found.counts["parameters"] == 715_553


def test_recipes_are_those_of_their_form():
    for name in HEADS:
        network = trained(name, "digits", 1)
        assert isinstance(network, MultiHead) == (name != "single head")
        assert trained(name, "digits", 1) is network, "trained once in a process"
    assert {recipe(name, "fashion-mini").steps for name in SIZES} == {800, 1400, 2500}
    with pytest.raises(ValueError, match="no recipe 'deep' for digits; there are patch 1, width 16"):
        recipe("deep", "digits")
    with pytest.raises(ValueError, match="no recipe 'single head' for fashion"):
        recipe("single head", "fashion")


def test_the_shipped_network_differs_from_itself_by_nothing():
    row = Row("dc", {"denoiser": "single-head", "levels": 2}, data="digits", n=4, block=4, task="heads")
    found = measure(next(row.cells()))
    assert all(found.means[f"error of differences, sigma {s:g}"] == 0 for s in SIGMAS) and 0 <= found.counts["train"] <= 4
    assert found.means["cosine of D, sigma 0.2"] > found.means["cosine of D, sigma 5"]
    other = measure(next(toy(Row("dc-trained", {"recipe": "wide, from scratch"}, data="digits", n=2, task="heads")).cells()))
    assert other.means["error of differences, sigma 1"] > 0
    v = torch.randn(2, 4, 3, 3)
    pairs = [F.cosine_similarity(v[:, i].flatten(1), v[:, j].flatten(1)).mean() for i, j in combinations(range(4), 2)]
    assert mean_cosine(v) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-4)


def test_gradients_of_a_network_are_not_random():
    arguments = {"repeats": 4, "eot": [1, 2], "eps": "0.1", "steps": 2, "draws": 2}
    row = Row("cnn", {}, None, arguments, data="digits", n=3, block=3, task="randomness")
    outcome, cnn, test = measure(next(row.cells())), build("cnn", "digits"), load("digits")
    found, each = outcome.means, outcome.values
    index = (predict(cnn, test.x) == test.y).nonzero()[:3, 0]
    x = test.x[index].requires_grad_()
    (g,) = torch.autograd.grad(margin(cnn(x), test.y[index]).sum(), x)
    assert found["cosine 1"] == found["cosine 2"] == found["cosine margin"] == pytest.approx(1.0)
    assert found["half eot"] == found["noise common"] == pytest.approx(0.0, abs=1e-6)
    assert found["mean absolute"] == pytest.approx(float(g.abs().mean()), rel=1e-4) and found["path cosine 0"] == pytest.approx(1)
    assert each["mean absolute"] == pytest.approx(g.abs().flatten(1).mean(1).tolist(), rel=1e-4)
    assert all(v is None or v < -15 for v in each["log2 half eot"]), "no noise, up to rounding"
    fresh = measure(next(toy(Row("dc", {"noise": "fresh"}, None, arguments, n=1, task="randomness")).cells()))
    assert fresh.means["cosine 1"] < 0.9999 and fresh.means["noise independent"] > 0
    (own,) = fresh.values["log2 half eot"]
    assert (own is None) == ("half eot" not in fresh.means)
    assert own is None or 2**own == pytest.approx(fresh.means["half eot"])


def test_cells_of_an_experiment_are_found_by_their_words():
    (found,) = stored_cells("clean-accuracy")
    assert found.accuracy("clean").n == found.n == 1000
    assert [f.row.about["network"] for f in stored_cells("heads", what="clean")] == ["teacher", *HEADS]
    assert stored_cells("heads", what="nothing") == [] and stored_cells("heads", folder="nowhere") == []


def test_a_setting_has_a_line_and_each_gradient_a_column(monkeypatch):
    common = {"model": "RDC", "noise": "fixed", "protocol": "known", "eot": 1, "attack": "pgd", "norm": "Linf", "eps": 8 / 255}
    kept = {("bpda", 1): 9, ("exact", 1): 7, ("union", 1): 6, ("bpda", 5): 8, ("plain", None): 3}
    clean = vars(Accuracy.of(9, 10))
    rows = [
        common | {"N": n, "gradient": gradient, "clean": clean, "robust": vars(Accuracy.of(k, 10))}
        for (gradient, n), k in kept.items()
    ]
    shown = []
    monkeypatch.setattr(rdc.notebook.stored, "show_table", lambda lines, caption: shown.extend(lines))
    gradients_table(rows, "a caption", "N")
    assert shown == [
        {"N": "1", "clean": "9/10", "bpda": "9/10", "exact": "7/10", "all": "6/10"},
        {"N": "5", "clean": "9/10", "bpda": "8/10", "exact": None, "all": None},
        {"N": "-", "clean": "9/10", "bpda": None, "exact": None, "all": "3/10"},
    ]


@pytest.mark.parametrize("said, believed", [("warn: breaks 1 image", "yes"), ("fail: 0 of 4 found", "no")])
def test_an_audit_in_words(tmp_path, said, believed):
    stored = [json.loads(line) for line in (book_folder("results") / "rdc-audit.jsonl").read_text().splitlines()]
    first = next(line for line in stored if not line["spec"]["options"])
    words = {"batch": "pass: the same", "planted": said}
    (tmp_path / "rdc-audit.jsonl").write_text(json.dumps(first | {"words": words}) + "\n")
    expected = {"attack on": "DC", "checks passed": "1 of 2", "what was found": f"planted: {said[6:]}"}
    assert audits("rdc-audit", tmp_path) == [expected | {"to be believed": believed}]
