"""Campaigns on the papers' own data: what they need is named, what they cost is counted, and they run on random weights."""

import importlib.util
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import slow_networks
import torch
from helpers import draw
from torch import nn

from rdc.attack.autoattack import ATTACKS as AUTO
from rdc.cli import main
from rdc.cli.forecast import COUNTED, calls, evaluations, files_of, forecast, origin, work
from rdc.denoise.checkpoints import CheckpointError, save_denoiser
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.parameterisation import log_sigma_of, schedule_of
from rdc.denoise.published import PublishedConfig, build_published, save_published
from rdc.denoise.published import load_denoiser as load_any
from rdc.denoise.published_unet import PublishedUNet
from rdc.denoise.unet import UNetConfig
from rdc.experiments import experiment, names
from rdc.experiments._paper import CONDITIONAL, UNCONDITIONAL
from rdc.guide.published import SIZES, Encoder, load_published_classifier, names_of
from rdc.models.weights import checkpoints_of
from rdc.rng import randn
from rdc.runs.cell import Row
from rdc.tasks import measure, toy, weights_of
from rdc.tasks.attack import attack_function
from rdc.tasks.sampled import blocks

FOOLBOX = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with denoisers of random weights in the place of the published ones."""
    monkeypatch.chdir(tmp_path)
    for name, classes in ((CONDITIONAL, 10), (UNCONDITIONAL, 0)):
        config = EDMConfig(UNetConfig(32, 3, classes, 8, (1,), 1, (), patch=8), data="cifar10", unlabelled=classes == 0)
        save_denoiser(tmp_path / name, build(config))
    return tmp_path


@pytest.mark.parametrize("name", ["paper-rdc", "paper-ndc"])
def test_what_is_missing_is_said_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rdc", "experiment", "run", name, "--out", "x", "--device", "cpu"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err.strip()
    assert f"{name} needs {CONDITIONAL}" in said and "\n" not in said and (UNCONDITIONAL in said) == (name == "paper-rdc")
    assert checkpoints_of("dc", "cifar10", {"denoiser": CONDITIONAL}) == {CONDITIONAL.removesuffix(".safetensors"): "missing"}


def test_the_settings_stand_side_by_side():
    for name, readings in (("paper-rdc", {"printed", "mi-fgsm", "released"}), ("paper-ndc", {"printed", "released"})):
        rows = experiment(name).rows
        assert {row.about["reading"] for row in rows} == readings
        assert {row.data for row in rows} == {"cifar10"} and {row.n for row in rows} == {512}
        assert len({row.key() for row in rows}) == len(rows)


def test_the_cost_is_that_of_what_is_evaluated():
    """Beside the verdicts there are nine calls for each cell, which find out whether the model is random."""
    dc = Row("dc", {"levels": 8, "denoiser": "x.safetensors"}, n=9, block=9)
    assert evaluations(dc, 10) == (1 + 1) * 80
    pgd = replace(dc, attack="pgd", arguments={"steps": 20, "restarts": 2})
    assert evaluations(pgd, 10) == (1 + 2 + 5) * 80 + 3 * 80 * 40
    assert evaluations(replace(pgd, arguments={**pgd.arguments, "eot": 3, "targets": 2}), 10) == (3 + 3 * 13) * 80 + 3 * 80 * 360
    assert evaluations(replace(dc, attack="square", arguments={"queries": 50}), 10) == (3 + 63) * 80
    rdc = replace(dc, model="rdc", options={"levels": 8, "steps": 5, "gradient": "exact"}, attack="autoattack",
                  arguments={"steps": 10, "version": "custom", "attacks": ["apgd-dlr"]})  # fmt: skip
    assert evaluations(rdc, 10) == (3 + 11) * (80 + 15) + 15 + 5 * 11 * (240 + 45)
    bpda = replace(rdc, options={**rdc.options, "gradient": "bpda"})
    assert evaluations(rdc, 10) - evaluations(bpda, 10) == 55 * 2 * 15
    fresh = replace(rdc, options={**rdc.options, "lm": "mi-fgsm"})  # 20 verdicts and one more, and the attack comes twice
    assert evaluations(fresh, 10) == (2 + 2 * 21 + 2 * 11) * 95 + 15 + 2 * 55 * 285
    assert evaluations(replace(dc, model="rdc", options={"lm": "expectation", "levels": 1}), 1) == (2 + 21) * (1 + 240) + 240
    bound = Row("epndc", {"levels": 4, "antithetic": False}, None, {"n0": 10, "n": 90}, task="certify")
    assert evaluations(bound, 10) == 40 * 100 and evaluations(replace(bound, model="apndc"), 10) == 50 * 100
    members = [{"name": "a", "attack": "pgd", "steps": 3}, {"name": "b", "attack": "square", "queries": 5}]
    union = replace(dc, task="union", arguments={"eps": "0.1", "attacks": members})
    assert evaluations(union, 10) == (2 + 3 + 3) * 80 + 3 * 240 + (3 + 18) * 80
    given = {"weights": [0, 1], "steps": 5, "penalty": {"denoiser": "heads", "levels": 7, "sigma_min": 0.1}}
    assert evaluations(replace(dc, attack="lagrange", arguments=given), 10) == (3 + 5) * 80 + 10 * 240 + 7 * (5 + 3 * 10)


class Asked(nn.Module):
    """Ten classes with constant gradients; it counts the images that it is asked about, without gradient and with it."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = draw((10, 64), 1, torch.float32) - 0.5, [0, 0]

    def forward(self, x):
        """Return the logits."""
        self.seen[torch.is_grad_enabled() and x.requires_grad] += len(x)
        return (x - 0.5).flatten(1) @ self.weight.T


CUSTOM = [("autoattack", {"version": "custom", "attacks": [name], "steps": 4, "queries": 6}) for name in AUTO]
AROUND = ("neighbourhood", "zeroth")


@pytest.mark.parametrize(
    ("attack", "given"),
    [
        *CUSTOM,
        *(("autoattack", {"version": "standard", "steps": 4, "queries": 6, "norm": norm}) for norm in ("Linf", "L1")),
        *(("autoattack", {"version": "rand", "steps": 4, "eot": eot}) for eot in (None, 2)),
        ("square", {"queries": 6}),
        ("pgd", {"steps": 4, "restarts": 2, "eot": 3, "targets": 2}),
        *(("pgd", {"steps": 2, "gradient": form}) for form in AROUND),
        ("stadv", {"steps": 4, "restarts": 2, "eot": 3}),
        ("lagrange", {"steps": 4, "eot": 2, "penalty": lambda x: x.flatten(1).square().sum(1)}),
        ("feature", {"steps": 4, "restarts": 2, "eot": 3, "target_images": draw((1, 1, 8, 8), 5, torch.float32)}),
    ],
)
def test_an_attack_asks_no_more_often_than_its_forecast(attack, given):
    """Of an image that it does not break, where the gradients are those of the forecast; fab takes ten of one call."""
    model, x = Asked(), draw((1, 1, 8, 8), 3, torch.float32)
    y = model(x).argmax(dim=1)
    model.seen = [0, 0]
    attack_function(attack)(model, x, y, eps=1e-6, **given)
    (asked, climbed), (was, did) = calls(attack, given, 10), model.seen
    assert was <= asked and did <= climbed
    assert did == climbed or "fab" in given.get("attacks", ())
    assert asked - was <= 6 * (given.get("eot") or 1) * (1 + given.get("targets", 0))


def test_the_work_of_every_row_is_known_or_said_to_be_unknown():
    """An attack is more work than a clean answer of the same model, and the work of tasks that nobody counts is None."""
    for name in names():
        for row in experiment(name).rows:
            found = work(row)
            assert (found is None) == (row.task not in COUNTED) and (found is None or found > 0), (name, row.model)
    assert work(Row("dc", {}, "pgd", {"steps": 20})) > 20 * work(Row("dc"))


def test_a_forecast_says_evaluations_and_hours(here):
    rows = experiment("paper-ndc").rows
    found = forecast("paper-ndc", rows, "cpu", seconds=0.0)
    line = found.line
    assert found.speeds and all(found.pace(row) * found.speeds[row.options["denoiser"]] == pytest.approx(1) for row in rows[:2])
    total = sum(row.n * evaluations(row, 10) for row in rows)
    assert f"paper-ndc: {total:.3g} network evaluations at most" in line and "hours at" in line
    assert found.pace(Row("dc")) is None and forecast("x", [Row("dc")], "cpu") is None
    assert files_of([Row("dc", {"denoiser": "heads"})]) == []


def test_missing_files_of_guidance_are_said_with_their_origins(here):
    with pytest.raises(ValueError, match="needs adm-imagenet-128.safetensors .'rdc convert'.* inception.py .yours") as caught:
        forecast("paper-guidance", experiment("paper-guidance").rows, "cpu")
    said = str(caught.value)
    assert "\n" not in said and said.count("cifar10-l2-0.5-7.pt") == 1 and CONDITIONAL not in said


def test_a_network_of_a_recipe_is_said_to_be_trained_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "needs cifar10-medium.safetensors .'rdc train denoiser --recipe cifar10-medium --out cifar10-medium.safetensors' m"
    with pytest.raises(ValueError, match=said):
        forecast("cifar10-medium", experiment("cifar10-medium").rows, "cpu")
    assert "Kawar" in origin("cifar10-vanilla.pt") and origin("mine.safetensors") == "yours"


def test_the_cost_of_samples_is_that_of_their_steps():
    free, guided = (next(r for r in experiment("paper-guidance").rows if (r.model == "none") == one) for one in (True, False))
    assert evaluations(free, 1000) == 50_000 * 250 and evaluations(guided, 1000) == 4 * 50_000 * 250


def test_the_tables_of_guidance_are_complete():
    rows = experiment("paper-guidance").rows
    of = {t: [r for r in rows if t in r.about["table"].split(", ")] for t in "1456"}
    assert {t: len(found) for t, found in of.items()} == {"1": 3, "4": 15, "5": 9, "6": 11}
    assert len({r.key() for r in rows}) == len(rows) and {r.options["scale"] for r in of["4"]} == {0.25}
    assert {r.options["steps"] for r in rows} == {250}


def random_classifier(path, data="cifar10"):
    """A state dict of guided-diffusion with random weights, in its own names and shapes."""
    encoder = Encoder(*SIZES[data])
    tensors = {}
    for name, old in names_of(encoder).items():
        like = encoder.state_dict()[name]
        flat = "norm" not in name and old.endswith(("qkv.weight", "proj_out.weight", "qkv_proj.weight", "c_proj.weight"))
        value = randn(tuple(like.shape), "classifier", old) / max(1.0, float(np.prod(like.shape[1:]))) ** 0.5
        tensors[old] = value.flatten(1) if flat and value.ndim == 4 else value
        tensors[old] = tensors[old][..., None] if flat else tensors[old]
    torch.save(tensors, path)
    return {name: value.double().numpy() for name, value in tensors.items()}


def test_the_published_classifier_is_its_equations(tmp_path):
    p = random_classifier(tmp_path / "x.pt")
    classifier = load_published_classifier(tmp_path / "x.pt", dtype=torch.float64)
    time = np.array([400])
    sigma = log_sigma_of(schedule_of("linear"))[time].exp()
    x = randn((1, 3, 32, 32), "noisy").double()
    wanted = slow_networks.guided_classifier(p, x.numpy(), time)
    found = classifier(x * (1 + sigma**2).sqrt()[:, None, None, None], sigma)
    assert np.abs(found.numpy() - wanted).max() < 1e-9 and np.abs(wanted).max() > 0.1
    assert sum(v.numel() for v in classifier.parameters()) == 2_065_546  # counted in the released code
    with torch.device("meta"):
        assert sum(v.numel() for v in Encoder(*SIZES["imagenet-128"]).parameters()) == 42_568_040
    with pytest.raises(ValueError, match="images have shape .1, 32, 32.*takes .3, 32, 32"):
        classifier(x[:, :1], 1.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"time_embed.0.weight": None}, "no classifier of guided-diffusion"),
        ({"time_embed.0.weight": torch.zeros(9, 7)}, "7 channels wide; known are the classifiers for imagenet-128, cifar10"),
        ({"out.0.bias": None}, "the tensor out.0.bias is missing, of 1 in all"),
        ({"label_emb.weight": torch.zeros(1)}, "the tensor label_emb.weight is left over"),
        ({"out.0.bias": torch.zeros(5)}, "is .5,. torch.float32, not .128,."),
    ],
)
def test_other_state_dicts_are_no_classifiers(tmp_path, changes, says):
    random_classifier(tmp_path / "x.pt")
    stored = torch.load(tmp_path / "x.pt", weights_only=True) | changes
    torch.save({name: value for name, value in stored.items() if value is not None}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says) as said:
        load_published_classifier(tmp_path / "x.pt")
    assert "\n" not in str(said.value)


FEATURES = """
import torch
class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=3).mean(dim=2)
def network():
    return Mean()
"""


@FOOLBOX
def test_published_guides_run_on_random_weights_and_the_twenty_images(here, monkeypatch):
    """A small ADM and the classifier of the ablation; its images are kept, and a second run reads them."""
    config = PublishedConfig(EDMConfig(UNetConfig(32, 3, 10, 64, (1,), 1, ()), data="cifar10"), "adm", "ddpm-linear")
    save_published(here / "adm.safetensors", config, build_published(config).model.network.state_dict())
    random_classifier(here / "guide.pt")
    (here / "my_features.py").write_text(FEATURES)
    monkeypatch.syspath_prepend(here)
    np.savez(here / "real.npz", arr_0=np.arange(6 * 32 * 32 * 3, dtype=np.uint8).reshape(6, 32, 32, 3))
    free, row = (next(r for r in experiment("paper-guidance").rows if (r.model == "none") == one) for one in (True, False))
    found = []
    for each, reference in ((row, "cifar10-20"), (free, "real.npz")):
        options = {"denoiser": "adm.safetensors", "classifier": "guide.pt" if each is row else None, "scale": 5.0, "steps": 3}
        given = {"images": 6, "features": "my_features:network", "reference": reference, "folder": "kept"}
        small = replace(each, options=options, arguments=given, data="cifar10-20")
        (cell,) = small.cells()
        values = measure(cell).values
        assert {name: len(v) for name, v in values.items()} == {"frechet": 1, "precision": 1, "recall": 1}
        assert set(weights_of(small)) == ({"adm", "guide"} if each is row else {"adm"})
        found.append(torch.cat(list(blocks(small, 0, "cpu"))))
        assert found[-1].shape == (6, 3, 32, 32) and found[-1].dtype == torch.uint8
    assert (found[0] != found[1]).any(), "the guide does nothing"
    kept = sorted((here / "kept").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2 and measure(cell).values == values and [path.stat().st_mtime_ns for path in kept] == before
    more = replace(small, arguments={**small.arguments, "images": 8})
    assert sum(map(len, blocks(more, 0, "cpu"))) == 8, "a larger set does not take the last block of a smaller one"


def test_the_published_denoiser_of_imagenet_has_its_size():
    from rdc.cli.convert import ADM_128

    with torch.device("meta"):
        found = sum(p.numel() for p in PublishedUNet(ADM_128, "adm with 4 heads").parameters())
    learned = (ADM_128.model_channels * 9 + 1) * 3  # the variance, which is left out
    assert found + learned == 421_529_606, asdict(ADM_128)


def test_convert_reads_a_state_dict_of_guided_diffusion(tmp_path, monkeypatch, capsys):
    sizes = slow_networks.guided_shapes(5)
    torch.save({name: randn(shape, "guided", name) / 30 for name, shape in sizes.items()}, tmp_path / "x.pt")
    monkeypatch.setattr("rdc.cli.convert.ADM_128", UNetConfig(4, 2, 5, 128, (1, 1), 1, (2,)))
    monkeypatch.setattr(sys, "argv", ["rdc", "convert", str(tmp_path / "x.pt"), str(tmp_path / "x.safetensors")])
    main()
    assert "wrote" in capsys.readouterr().out
    denoiser = load_any(tmp_path / "x.safetensors", data="imagenet-128")
    assert denoiser.shape == (2, 4, 4) and denoiser.num_classes == 5
    (tmp_path / "x.pt").write_bytes(b"no state dict")
    with pytest.raises(SystemExit):
        main()
    assert "x.pt is no state dict" in capsys.readouterr().err


@FOOLBOX
@pytest.mark.parametrize("name", ["paper-rdc", "paper-ndc"])
def test_the_rows_run_on_random_weights_and_the_twenty_images(here, name, few_verdicts):
    """One row of each model and reading, with two levels and one step, on one image; attacks where they are one run of APGD."""
    rows = [row for row in experiment(name).rows if row.arguments.get("version") != "standard"]
    kept = {(row.model, row.about["reading"], row.attack): row for row in rows}
    for row in kept.values():
        small = toy(row)
        files = {key: value for key, value in row.options.items() if key in ("denoiser", "unconditional")}
        small = replace(small, data="cifar10-20", n=1, block=1, options={**small.options, **files})
        (cell,) = small.cells()
        assert measure(cell).bits
