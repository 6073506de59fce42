"""Campaigns on the papers' own data: what they need is named, what they cost is counted, and they run on random weights."""

import importlib.util
import sys
from dataclasses import replace

import pytest

from rdc.cli import main
from rdc.cli.forecast import evaluations, files_of, forecast
from rdc.denoise.checkpoints import save_denoiser
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.unet import UNetConfig
from rdc.experiments import experiment
from rdc.experiments._paper import CONDITIONAL, UNCONDITIONAL
from rdc.models.weights import checkpoints_of
from rdc.runs.cell import Row
from rdc.tasks import measure, toy

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
    dc = Row("dc", {"levels": 8, "denoiser": "x.safetensors"})
    assert evaluations(dc, 10) == 2 * 80
    assert evaluations(replace(dc, attack="pgd", arguments={"steps": 20, "restarts": 2}), 10) == 160 + 3 * 80 * 40
    rdc = Row("rdc", {"levels": 8, "steps": 5, "gradient": "exact"}, "autoattack", {"steps": 10, "version": "custom",
              "attacks": ["apgd-dlr"]})  # fmt: skip
    assert evaluations(rdc, 10) == 2 * (80 + 15) + 10 * (240 + 45)
    bound = Row("epndc", {"levels": 4, "antithetic": False}, None, {"n0": 10, "n": 90}, task="certify")
    assert evaluations(bound, 10) == 40 * 100


def test_a_forecast_says_evaluations_and_hours(here):
    rows = experiment("paper-ndc").rows
    line = forecast("paper-ndc", rows, "cpu", seconds=0.0)
    total = sum(row.n * evaluations(row, 10) for row in rows)
    assert f"paper-ndc: {total:.3g} network evaluations at most" in line and "hours at" in line
    assert forecast("x", [Row("dc")], "cpu") is None and files_of([Row("dc", {"denoiser": "heads"})]) == []


@FOOLBOX
@pytest.mark.parametrize("name", ["paper-rdc", "paper-ndc"])
def test_the_rows_run_on_random_weights_and_the_twenty_images(here, name):
    """One row of each model and reading, with two levels and one step, on one image; attacks where they are one run of APGD."""
    rows = [row for row in experiment(name).rows if row.arguments.get("version") != "standard"]
    kept = {(row.model, row.about["reading"], row.attack): row for row in rows}
    for row in kept.values():
        small = toy(row)
        files = {key: value for key, value in row.options.items() if key in ("denoiser", "unconditional")}
        small = replace(small, data="cifar10-20", n=1, block=1, options={**small.options, **files})
        (cell,) = small.cells()
        assert measure(cell).bits
