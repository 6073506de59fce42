"""Networks of colour images: windows and attacks as defined, a step that is a function of its key, and files that are read."""

import sys
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_card import colour_card

from rdc.attack.norms import norm_of
from rdc.classify import reference
from rdc.classify.reference import KINDS, NetworkConfig, build_network, load_reference, save_reference
from rdc.classify.wide_resnet import WideResNet
from rdc.cli import main
from rdc.data import Images
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint
from rdc.models import build
from rdc.models.parts import _reference
from rdc.models.weights import checkpoints_of
from rdc.quantities import number
from rdc.rng import generator
from rdc.train.colour import COLOUR, PAD, Ascent, ColourRecipe, ColourRun, adversarial, cropped, noise, train_colour

TINY = ColourRecipe(epochs=2, width=1, depth=10, batch=16, precision="fp32", average=0.5)
ATTACKS = [Ascent(), Ascent("L2", "0.5", "0.25")]


def coloured(n: int = 64, side: int = 8) -> Images:
    """Random images, each brighter in the channel of its class."""
    y = torch.arange(n) % 3
    x = 0.6 * torch.rand(n, 3, side, side, generator=generator("coloured"))
    x[torch.arange(n), y] += 0.4
    return Images(x, y, ["red", "green", "blue"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of that of the shipped networks."""
    monkeypatch.setattr(reference, "SHIPPED", tmp_path)
    _reference.cache_clear()
    yield tmp_path
    _reference.cache_clear()


# Windows


@given(st.integers(0, 200), st.tuples(*[st.integers(-PAD, PAD)] * 2), st.booleans())
@settings(max_examples=25)
def test_a_window_is_one_of_the_padded_image_or_its_mirror(seed, corner, mirror):
    x = torch.rand(3, 2, 6, 7, generator=generator(seed))
    padded = F.pad(x, (PAD,) * 4, mode="reflect")
    window = padded[2:, :, PAD + corner[0] :, PAD + corner[1] :][:, :, :6, :7]
    found = cropped(x, torch.tensor([2]), torch.tensor([corner]), torch.tensor([mirror]))
    assert torch.equal(found, window.flip(3) if mirror else window)


def test_windows_of_a_batch_are_those_of_its_images_and_channels_lie_last():
    x, g = torch.rand(5, 3, 8, 8, generator=generator(0)), generator(1)
    index, corner = torch.randint(5, (9,), generator=g), torch.randint(-PAD, PAD + 1, (9, 2), generator=g)
    mirrored = torch.rand(9, generator=g) < 0.5
    found = cropped(x, index, corner, mirrored)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i in range(9):
        assert torch.equal(found[i : i + 1], cropped(x, index[i : i + 1], corner[i : i + 1], mirrored[i : i + 1]))


# The attack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.norm)
def test_the_attack_stays_in_the_ball_and_raises_the_loss(attack):
    images, model = coloured(16), WideResNet((3, 8, 8), 3, 10, 1)
    x_adv = adversarial(model, images.x, images.y, attack, 0, "start", 3)
    assert (norm_of(x_adv.double() - images.x.double(), attack.norm) <= number(attack.eps, "eps")).all()
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    before, after = (F.cross_entropy(model(x), images.y, reduction="none") for x in (images.x, x_adv))
    assert (after > before).double().mean() > 0.9
    assert torch.equal(x_adv, adversarial(model, images.x, images.y, attack, 0, "start", 3))
    assert not torch.equal(x_adv, adversarial(model, images.x, images.y, attack, 0, "start", 4))
    assert all(p.grad is None for p in model.parameters())


def test_the_start_is_uniform():
    found = noise(torch.zeros(100, 3, 7, 7), "uniform").double()
    assert found.abs().max() < 1 and len(found.unique()) == 256
    assert abs(found.mean()) < 0.02 and abs(found.square().mean() - 1 / 3) < 0.02


# The run


@pytest.mark.parametrize("attack", [None, *ATTACKS], ids=lambda a: a.norm if a else "clean")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_follows_from_its_seed_alone(attack, precision):
    recipe, images, before = replace(TINY, attack=attack, precision=precision), coloured(), torch.get_rng_state()

    def weights(seed: int) -> list[torch.Tensor]:
        run = ColourRun(replace(recipe, seed=seed), images)
        losses = [run.advance() for _ in range(2)]
        assert all(loss.isfinite() for loss in losses)
        return list(run.state.average.values())

    one, two, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("attack", [None, Ascent("Linf", "4/255", "2/255")], ids=["clean", "adversarial"])
def test_a_run_learns_and_its_file_holds_its_averaged_weights(tmp_path, attack):
    images, out = coloured(), tmp_path / "a.safetensors"
    recipe = replace(TINY, epochs=12, attack=attack, lr=1e-2)
    train_colour(recipe, out, images=images, quiet=True, source="made up", held_out=3)
    tensors, meta = read_checkpoint(out, "reference network")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert meta["config"] == asdict(NetworkConfig(3, 8, 3, 10, 1, "cifar10")) and meta["recipe"] == asdict(recipe)
    assert (meta["images"], meta["source"], meta["held_out"], "stopped" in meta) == (64, "made up", 3, False)
    network, first = load_reference(out), build_network(NetworkConfig(3, 8, 3, 10, 1))
    assert not network.training and {p.dtype for p in network.parameters()} == {torch.float32}
    before, after = (F.cross_entropy(n(images.x), images.y).item() for n in (first, network))
    assert after < 0.6 * before and not (tmp_path / "a.safetensors.state").exists()


def test_a_run_that_is_cut_goes_on_with_the_same_bits(tmp_path):
    images, (whole, cut) = coloured(), (tmp_path / f"{name}.safetensors" for name in "ab")
    train_colour(TINY, whole, images=images, quiet=True)
    train_colour(TINY, cut, images=images, quiet=True, minutes=1e-9)
    assert read_checkpoint(cut, "reference network")[1]["stopped"] == 1
    with pytest.raises(CheckpointError, match="images: 64 -> 60"):
        train_colour(TINY, cut, images=images[:60], quiet=True)
    train_colour(TINY, cut, images=images, quiet=True)
    one, two = (read_checkpoint(path, "reference network") for path in (whole, cut))
    assert one[1]["tensors_sha256"] == two[1]["tensors_sha256"] and "stopped" not in two[1]


def test_float16_is_read_as_float32_rounded_once(tmp_path):
    network = build_network(NetworkConfig(3, 8, 4, 10, 1), seed=2)
    save_reference(tmp_path / "a.safetensors", network, "cifar10", half=True)
    save_reference(tmp_path / "b.safetensors", load_reference(tmp_path / "a.safetensors"), "cifar10", half=True)
    one, two = (load_reference(tmp_path / f"{name}.safetensors").state_dict() for name in "ab")
    for name, value in network.state_dict().items():
        assert torch.equal(one[name], value.half().float()) and torch.equal(one[name], two[name])


def test_the_networks_of_the_recipes_are_small_files():
    assert tuple(COLOUR) == KINDS
    for recipe in COLOUR.values():
        network = build_network(NetworkConfig(3, 32, 10, recipe.depth, recipe.width))
        assert 2 * sum(p.numel() for p in network.parameters()) < 6e6


# By name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", ["cifar10", "cifar10-20"])
def test_a_network_that_is_not_there_is_one_line_with_the_command(folder, kind, data):
    says = f"'rdc train classifier --recipe {kind} --data cifar10 --out .*' makes it"
    with pytest.raises(CheckpointError, match=says) as error:
        build(kind, data)
    assert "\n" not in str(error.value)
    assert checkpoints_of(kind, data, {}) == {f"cifar10-{kind}": "missing"}


def test_a_network_that_is_there_is_found_by_every_model(folder):
    network = build_network(NetworkConfig(3, 32, 10, 10, 1), seed=3)
    for kind in ("cnn", "at-l2"):
        save_reference(folder / f"cifar10-{kind}.safetensors", network, "cifar10", half=True)
    x = torch.rand(2, 3, 32, 32, generator=generator(0))
    assert torch.equal(build("cnn", "cifar10")(x), build("at-l2", "cifar10-20")(x))
    small = {"denoiser": "single-head", "steps": 1}
    for name, options in (("lm-cnn", {}), ("lm-at", {"network": "at-l2"})):
        assert build(name, "cifar10", **small, **options)(x).shape == (2, 10)
        found = checkpoints_of(name, "cifar10", {**small, **options})
        assert found.keys() == {"cifar10-small", f"cifar10-{options.get('network', 'cnn')}"} and "missing" not in found.values()
    assert "cifar10-at-l2" in checkpoints_of("diffpure", "cifar10", {"denoiser": "single-head", "network": "at-l2"})


def test_the_card_says_on_what_it_was_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("model_card.REFERENCES", tmp_path)
    train_colour(TINY, tmp_path / "cifar10-cnn.safetensors", images=coloured(), quiet=True, source="64 made-up images")
    said = colour_card("cifar10-cnn")
    assert "64 images of the train split of `cifar10`: 64 made-up images" in said and "stored in float16" in said
    assert "| command | `rdc train classifier --recipe cnn --data cifar10 --device cuda` |" in said


def test_the_command(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rdc", "train", "classifier", "--quiet", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2
        return "".join(capsys.readouterr())

    out = tmp_path / "a.safetensors"
    monkeypatch.setitem(COLOUR, "at-l2", replace(TINY, attack=ATTACKS[1]))
    monkeypatch.setattr("rdc.train.colour.load", lambda data, split: coloured())
    assert command("--recipe", "at-l2", "--data", "cifar10", "--out", out, "--device", "cpu", "--seed", 5) == f"wrote {out}\n"
    assert read_checkpoint(out, "reference network")[1]["recipe"]["seed"] == 5
    assert "fixes steps, threat and eps" in command("--recipe", "cnn", "--data", "cifar10", "--steps", 5)
    assert "and --compile and --minutes" in command("--recipe", "cnn", "--data", "digits", "--minutes", 5)


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="1 epochs of 8 images do not fill one batch of 16"):
        ColourRun(replace(TINY, epochs=1), coloured(8))
    with pytest.raises(ValueError, match=r"depth of 6 n \+ 4, got 11"):
        ColourRun(replace(TINY, depth=11), coloured())
