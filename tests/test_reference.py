"""The reference networks: what is shipped is what its card and record say, a recipe repeats, and a bad file is one line."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from model_card import measured, reference_card
from torch import Tensor

from rdc.attack import pgd
from rdc.classify.reference import KINDS, SHIPPED, load_reference, reference_network, shipped_references
from rdc.cli import main
from rdc.cli import train as cli_train
from rdc.data import load
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from rdc.evaluate import predict
from rdc.experiments.reference import ATTACKS, BALLS
from rdc.quantities import number
from rdc.runs.verdict import decide
from rdc.train import reference
from rdc.train.classifiers import reference_cnn
from rdc.train.loop import begin
from rdc.train.reference import RECIPES, AttackRecipe, Recipe, recipe_for, train_reference

TINY = Recipe("digits", epochs=1, batch=16, lr=3e-3, width=4, seed=3, attack=AttackRecipe("L2", "0.5", steps=2))
NAMES = sorted(f"{data}-{kind}" for data in RECIPES for kind in RECIPES[data])


def parts(name: str) -> tuple[str, str]:
    """Kind and data set."""
    kind = next(k for k in KINDS if name.endswith(f"-{k}"))
    return kind, name.removesuffix(f"-{kind}")


def test_recipes_cells_and_files_are_of_the_same_networks():
    assert NAMES == [name for name in shipped_references() if not name.startswith("cifar10-")]
    assert all(tuple(RECIPES[data]) == KINDS == cli_train.KINDS for data in RECIPES)
    for name in NAMES:
        kind, data = parts(name)
        path = SHIPPED / f"{name}.safetensors"
        _, meta = read_checkpoint(path, "reference network")
        assert meta["recipe"] == asdict(RECIPES[data][kind]) and meta["config"]["data"] == data == meta["recipe"]["data"]
        assert meta["images"] == len(load(data, "train"))
        assert (meta["licence"], meta["source"]) == ("MIT", reference.SOURCES[data])
        assert {"date", "versions", "device", "commit"} <= meta["environment"].keys()
        assert path.stat().st_size < 1e6 and path.with_suffix(".md").read_text(encoding="utf8") == reference_card(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_does_what_its_cells_say(name):
    """Clean images of the whole split bit by bit, PGD on the first 96; only the undefended networks are weak."""
    kind, data = parts(name)
    network, test, found = reference_network(kind, data), load(data), measured(kind, data)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    right = (predict(network, test.x, 100) == test.y).tolist()
    assert right == list(found["none"].outcome("clean").values())
    assert right[:96] == list(found["pgd"].outcome("clean").values())
    norm, eps = BALLS[data, kind]
    x_adv = pgd(network, test.x[:96], test.y[:96], norm=norm, eps=eps, seed=0, **ATTACKS["pgd"][1])
    now = dict(enumerate((predict(network, x_adv, 96) == test.y[:96]).tolist()))
    odd = sum(now[i] != was for i, was in found["pgd"].outcome("robust").items())
    assert odd <= 1  # none here; another processor rounds differently
    trained = RECIPES[data]["at-linf" if kind == "cnn" else kind].attack
    assert (trained.norm, number(trained.eps, "eps")) == (norm, number(eps, "eps"))


def test_adversarial_training_pays():
    for data in RECIPES:
        weak, strong = ([one.outcome("robust") for a, one in measured(kind, data).items() if a != "none"] for kind in KINDS[:2])
        weak, strong = ([all(bits) for bits in zip(*(o.values() for o in each), strict=True)] for each in (weak, strong))
        assert decide(strong, weak, broken=weak.count(False)).outcome == "holds"


def test_a_recipe_gives_the_same_bits_twice_and_writes_what_it_was(tmp_path):
    images, out = load("digits", "train")[:64], [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    before = torch.get_rng_state()
    one, two = (read_checkpoint(train_reference(TINY, path, images=images, quiet=True), "reference network") for path in out)
    assert torch.equal(before, torch.get_rng_state())
    assert one[0].keys() == two[0].keys() and all(torch.equal(one[0][k], two[0][k]) for k in one[0])
    assert one[1]["tensors_sha256"] == two[1]["tensors_sha256"]
    assert one[1]["recipe"] == asdict(TINY) and one[1]["images"] == 64 and "CC BY 4.0" in one[1]["source"]
    assert torch.equal(load_reference(out[0])(images.x[:5]), load_reference(out[1])(images.x[:5]))
    other = reference.train(replace(TINY, attack=None), images)
    assert not torch.equal(other.head.weight, load_reference(out[0]).head.weight)


def test_unknown_networks_and_recipes_are_named():
    assert torch.equal(reference_network("cnn", "fashion").head.weight, reference_network("cnn").head.weight)
    with pytest.raises(CheckpointError, match="no reference network 'resnet' for 'digits'; there are .*digits-at-l2, "):
        reference_network("resnet", "digits")
    with pytest.raises(CheckpointError, match="no reference network 'cnn' for 'cifar100'; there are .*digits-at-l2, "):
        reference_network("cnn", "cifar100")
    with pytest.raises(ValueError, match="unknown kind of reference network 'at'; there are cnn, at-linf, at-l2"):
        recipe_for("at", "digits")
    with pytest.raises(ValueError, match="no reference network for the data set 'cifar10'"):
        recipe_for("cnn", "cifar10")


def nan(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"][1] = float("nan")


def foreign(tensors: dict[str, Tensor]) -> None:
    tensors["conv1.weight"] = tensors["conv1.weight"][:, :, :2]


def short(tensors: dict[str, Tensor]) -> None:
    del tensors["head.bias"]


BAD = [(nan, "NaN or infinite, in head.bias"), (foreign, r"conv1.weight is \(\d+, 1, 2, 3\)"), (short, "head.bias is missing")]


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(tmp_path, spoil, says):
    tensors, meta = read_checkpoint(SHIPPED / "digits-cnn.safetensors", "reference network")
    spoil(tensors)
    write_checkpoint(tmp_path / "a.safetensors", tensors, **{k: v for k, v in meta.items() if k != "tensors_sha256"})
    with pytest.raises(CheckpointError, match=says) as error:
        load_reference(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_damaged_files_and_lying_headers_are_refused(tmp_path):
    data = bytearray((SHIPPED / "digits-cnn.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_reference(tmp_path / "a.safetensors")
    tensors, meta = read_checkpoint(SHIPPED / "digits-cnn.safetensors", "reference network")
    for config, says in (({"width": 0}, "width must be at least 1"), ({"width": 2.5}, "must be int"), ({"depth": 1}, "depth")):
        write_checkpoint(tmp_path / "b.safetensors", tensors, kind="reference network", config={**meta["config"], **config})
        with pytest.raises(CheckpointError, match=says):
            load_reference(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="not a reference network"):
        load_reference(Path(reference.__file__).parents[1] / "assets" / "checkpoints" / "digits.safetensors")


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_networks_that_are_trained_once_are_checked_when_read(tmp_path, spoil, says):
    images, path = load("digits", "train")[:32], tmp_path / "cnn.safetensors"
    options = {"images": images, "name": "digits", "epochs": 4}
    reference_cnn(path, **options)
    tensors, meta = read_checkpoint(path, "classifier")
    spoil(tensors)
    write_checkpoint(path, tensors, kind="classifier", config=meta["config"])
    with pytest.raises(CheckpointError, match=says):
        reference_cnn(path, **options)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model.weight", torch.full((2, 3), float("nan")), "NaN or infinite, in model.weight"),
        ("exp_avg_sq.weight", torch.full((2, 3), float("inf")), "NaN or infinite, in exp_avg_sq.weight"),
        ("average.weight", torch.zeros(1, 3), r"average.weight is \(1, 3\)"),  # copying would broadcast it
        ("exp_avg.weight", None, "exp_avg.weight is missing"),
        ("losses", None, "its header lacks losses"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, name, value, says):
    def fresh():
        layer = torch.nn.Linear(3, 2, bias=False)
        return layer, begin(layer, {"a": 1}, torch.optim.Adam)

    path, (layer, state) = tmp_path / "a.state", fresh()
    state.descend(layer(torch.ones(1, 3)).square().sum(), 0.1, 0.9)
    state.save(path)
    tensors, meta = read_checkpoint(path, "training state")
    found, numbers = {**tensors, name: value}, {k: v for k, v in meta.items() if k not in ("tensors_sha256", name)}
    write_checkpoint(path, {k: v for k, v in found.items() if v is not None}, **numbers)
    layer, state = fresh()
    before = layer.weight.detach().clone()
    with pytest.raises(CheckpointError, match=says) as error:
        state.resume(path)
    assert "\n" not in str(error.value) and torch.equal(layer.weight, before) and state.step == 0


def test_the_command(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rdc", "train", "classifier", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2
        return "".join(capsys.readouterr())

    out = tmp_path / "a.safetensors"
    monkeypatch.setitem(RECIPES["digits"], "at-l2", replace(TINY, epochs=1, batch=512))
    said = command("--recipe", "at-l2", "--data", "digits", "--out", out, "--device", "cpu", "--seed", 5, "--quiet")
    assert said == f"wrote {out}\n" and read_checkpoint(out, "reference network")[1]["recipe"]["seed"] == 5
    assert "fixes steps, threat and eps" in command("--recipe", "cnn", "--data", "digits", "--steps", 5)
    assert "no reference network for the data set 'cifar100'" in command("--recipe", "cnn", "--data", "cifar100")


def test_recipes_are_json():
    assert json.loads(json.dumps({d: {k: asdict(r) for k, r in of.items()} for d, of in RECIPES.items()}))["digits"]["cnn"]
