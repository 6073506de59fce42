"""Models to compare a defence with: losses by hand, networks that are what their files say, randomness that is owned."""

import math
import sys
from dataclasses import asdict, replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack.norms import norm_of
from rdc.classify.baselines import BASELINES, SHIPPED, baseline_network, load_baseline
from rdc.classify.reference import NetworkConfig, build_network
from rdc.classify.wide_resnet import WideResNet
from rdc.cli import train as cli_train
from rdc.data import Images, load
from rdc.defend.randomised import MeanOverNoise, RandomNoise, RandomResize
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint
from rdc.experiments.baselines import ROWS
from rdc.models import build
from rdc.randomness import randomness
from rdc.rng import generator
from rdc.runs.record import book_folder
from rdc.runs.store import Store
from rdc.train.baselines import objective_of, recipe_for, train, train_baseline
from rdc.train.jem import Langevin, langevin
from rdc.train.objectives import climbed, divergence, mart_loss, trades_loss


def logits(seed: int, n: int = 5, k: int = 4, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of images and of moved ones, float64, and labels."""
    g = generator("logits", seed)
    clean, moved = (size * torch.randn(n, k, generator=g, dtype=torch.float64) for _ in range(2))
    return clean.requires_grad_(), moved.requires_grad_(), torch.randint(k, (n,), generator=g)


# Losses


@given(st.integers(0, 500), st.floats(0, 10))
def test_trades_is_its_formula(seed, beta):
    clean, moved, y = logits(seed)
    p, q, total = clean.softmax(1).tolist(), moved.softmax(1).tolist(), 0.0
    for i, label in enumerate(y.tolist()):
        total += -math.log(p[i][label]) + beta * sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True))
    assert trades_loss(clean, moved, y, beta).item() == pytest.approx(total / 5, rel=1e-10)


@given(st.integers(0, 500), st.floats(0, 10))
def test_mart_is_its_formula(seed, weight):
    clean, moved, y = logits(seed)
    p, q, total = clean.softmax(1).tolist(), moved.softmax(1).tolist(), 0.0
    for i, label in enumerate(y.tolist()):
        rival = max(q[i][k] for k in range(4) if k != label)
        kl = sum(a * math.log(a / b) for a, b in zip(p[i], q[i], strict=True))
        total += -math.log(q[i][label]) - math.log(1 - rival) + weight * kl * (1 - p[i][label])
    assert mart_loss(clean, moved, y, weight).item() == pytest.approx(total / 5, rel=1e-10)


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_gradients_flow_through_both_and_are_those_of_differences(seed):
    clean, moved, y = logits(seed)
    for loss in (trades_loss, mart_loss):
        assert torch.autograd.gradcheck(lambda a, b, f=loss: f(a, b, y), (clean, moved))
        before, after = torch.autograd.grad(loss(clean, moved, y), (clean, moved))
        assert bool(before.any()) and bool(after.any())
    weights = [moved.softmax(1) - clean.softmax(1)]  # the gradient of the divergence in the moved logits, in closed form
    assert torch.allclose(torch.autograd.grad(divergence(clean, moved).sum(), moved)[0], weights[0], atol=1e-12)


def test_losses_of_sure_networks_are_finite_and_of_equal_images_are_cross_entropies():
    clean, moved, y = logits(1, size=1e4)
    assert all(bool(f(clean, moved, y).isfinite()) for f in (trades_loss, mart_loss))
    clean, _, y = logits(2)
    assert divergence(clean, clean).abs().max().item() < 1e-15
    assert torch.equal(trades_loss(clean, clean, y), F.cross_entropy(clean, y))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.8)])
def test_the_ascent_stays_in_the_ball_and_climbs(norm, eps):
    network, images = build_network(NetworkConfig(resolution=8, width=4)).double(), load("digits", "train")[:16]
    x = images.x.double()
    rise = [lambda out: F.cross_entropy(out, images.y, reduction="none"), lambda out: divergence(network(x).detach(), out)]
    for climb in rise:
        moved = climbed(network, x, climb, norm, eps, 5, 3)
        assert bool((norm_of(moved - x, norm) <= eps * (1 + 1e-9)).all()) and 0 <= float(moved.min()) <= float(moved.max()) <= 1
        assert bool((climb(network(moved)) > climb(network(x))).all())
        assert torch.equal(moved, climbed(network, x, climb, norm, eps, 5, 3))


def test_langevin_raises_the_density_and_owns_its_noise():
    network, x = build_network(NetworkConfig(resolution=8, width=4)), load("digits").x[:4]
    calm = Langevin(steps=10, noise=1e-6, step_size=1.0)
    moved = langevin(network, x, calm, 0, "test")
    assert bool((network(moved).logsumexp(1) > network(x).logsumexp(1)).all())
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert torch.equal(moved, langevin(network, x, calm, 0, "test"))
    assert not torch.equal(moved, langevin(network, x, calm, 1, "test"))


# Networks and recipes


def test_a_wide_residual_network_is_that_of_the_paper():
    """WRN-16-4 has 2.7 million parameters with three channels; the answer of an image depends on no other."""
    published = WideResNet((3, 32, 32), 10, 16, 4)
    assert round(sum(p.numel() for p in published.parameters()) / 1e6, 1) == 2.7
    convolutions = [m for m in published.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 16 - 3, "all but the linear layer, and the two first 1x1 bypasses, are counted in the depth"
    small, x = WideResNet((1, 8, 8), 10, 10, 1, seed=1).eval(), load("digits").x[:4]
    assert torch.allclose(small(x)[1:2], small(x[1:2]), atol=1e-5)
    with pytest.raises(ValueError, match=r"depth of 6 n \+ 4, got 15"):
        WideResNet((1, 8, 8), 10, 15)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_a_shipped_network_is_that_of_its_recipe(path):
    _, meta = read_checkpoint(path, "baseline")
    kind = path.stem.removeprefix(f"{meta['config']['data']}-")
    assert meta["recipe"] == asdict(recipe_for(kind, meta["config"]["data"]))
    assert meta["images"] == len(load(meta["config"]["data"], "train")) and path.stat().st_size < 1.5e6
    network = baseline_network(kind, meta["config"]["data"])
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("kind", ["trades-linf", "mart-l2", "at-linf-generated", "wrn-linf", "jem"])
def test_a_recipe_gives_the_same_bits_twice(tmp_path, kind):
    images, before = load("digits", "train")[:32], torch.get_rng_state()
    more = {"langevin": Langevin(steps=2, buffer=64)} if kind == "jem" else {}
    recipe = replace(recipe_for(kind, "digits"), epochs=1, batch=16, **more)
    generated = Images(images.x.flip(0), images.y.flip(0), images.classes) if recipe.generated else None
    path = train_baseline(recipe, tmp_path / "a.safetensors", images=images, quiet=True, generated=generated)
    again = train(recipe, images, generated=generated).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in load_baseline(path).state_dict().items())
    assert torch.equal(before, torch.get_rng_state())


def test_mistakes_are_one_line():
    assert cli_train.MORE == BASELINES
    with pytest.raises(ValueError, match="unknown baseline 'at'; there are trades-linf"):
        recipe_for("at", "digits")
    with pytest.raises(ValueError, match="no baseline for the data set 'cifar10'"):
        recipe_for("jem", "cifar10")
    with pytest.raises(CheckpointError, match="no baseline 'jem' for 'cifar10'"):
        baseline_network("jem", "cifar10")
    with pytest.raises(ValueError, match="do not fill one batch"):
        train(recipe_for("trades-linf", "digits"), load("digits", "train")[:4])
    with pytest.raises(ValueError, match="no loss 'at' with attack None"):
        objective_of(replace(recipe_for("trades-linf", "digits"), loss="at", attack=None), (1, 8, 8))


# Randomised models

NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
RANDOM = [RandomNoise(NETWORK, 0.2), RandomResize(NETWORK, 0.5), MeanOverNoise(NETWORK, 0.2, 3, "fresh")]


@pytest.mark.parametrize("model", RANDOM, ids=lambda model: type(model).__name__)
def test_fresh_changes_differ_and_frozen_ones_do_not_whatever_the_batch(model):
    x = load("digits").x[:3]
    assert randomness(model, x[:1])[0] and not randomness(model.frozen(5), x[:1])[0]
    frozen = model.frozen(5)
    assert torch.allclose(frozen(x)[2:], frozen(x[2:]), atol=1e-6) and not torch.allclose(frozen(x), model.frozen(6)(x))


def test_each_change_is_what_it_says():
    x = load("digits").x[:2]
    whole = RandomResize(nn.Flatten(), 1.0, "fixed")
    assert torch.allclose(whole(x), x.flatten(1), atol=1e-6), "the only size is the image's own"
    shares = {int((RandomResize(nn.Flatten(), 0.5, "fixed", s)(torch.ones(1, 1, 8, 8)) > 0.5).sum()) for s in range(60)}
    assert shares == {n * n for n in range(4, 9)}, "squares of all sizes from the least on, without loss at a border"
    noisy = torch.stack([RandomNoise(nn.Flatten(), 0.1, "fixed", s)(torch.full((1, 1, 8, 8), 0.5))[0] for s in range(100)])
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.05) and float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
    many = MeanOverNoise(NETWORK, 0.2, 4, "fixed", 1)
    assert torch.allclose(many(x).exp().sum(dim=1), torch.ones(2), atol=1e-5)
    quiet = MeanOverNoise(NETWORK, 1e-9, 4, "fixed", 1)
    assert torch.allclose(quiet(x), NETWORK(x).log_softmax(1), atol=1e-5)
    with pytest.raises(ValueError, match="noise must be 'fixed' or 'fresh', got 'shared'"):
        RandomNoise(NETWORK, 0.1, "shared")


# RobustBench


def test_a_network_of_robustbench_is_what_the_package_loads(monkeypatch, tmp_path):
    """A stand-in in place of the package: what it is asked for, and that its network is taken as it is."""
    asked, package, utils = [], ModuleType("robustbench"), ModuleType("robustbench.utils")

    def load_model(**given):
        asked.append(given)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    utils.load_model = load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    model = build("robustbench", "cifar10-20", network="Name2023_WRN-70-16", threat="L2", folder=str(tmp_path))
    assert asked == [{"model_name": "Name2023_WRN-70-16", "model_dir": str(tmp_path), "dataset": "cifar10", "threat_model": "L2"}]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10) and not model.training
    with pytest.raises(ValueError, match="no network for digits, only for cifar10 and cifar100"):
        build("robustbench", "digits")


def test_without_the_package_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(ValueError, match="RobustBench is not installed; run 'pip install robustbench'"):
        build("robustbench", "cifar10-20")


# What was measured


def test_adversarial_training_keeps_three_fifths_of_the_images():
    """PGD on all 512, and the union with the other attacks at 8/255 on the images that they were run on."""
    store = Store.read(book_folder("results") / "baselines.jsonl")
    rows = {row.about["attack"]: row for row in ROWS if row.model == "at-linf" and row.about["eps"] in (None, "8/255")}
    kept = {name: store.of(rows[name]).outcome("robust") for name in ("pgd", "targeted", "square")}
    assert len(kept["pgd"]) == 512 and sum(kept["pgd"].values()) >= 0.6 * 512, "else the training is weak"
    for bits in kept.values():
        assert sum(kept["pgd"][i] and right for i, right in bits.items()) >= 0.6 * len(bits)
