"""Planted defences: as accurate as the plain model, robust against a careless attack, broken by the attack of their docstring."""

import pytest
import torch
from torch import nn

from rdc.attack import pgd
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.defend.preprocessed import Preprocessed
from rdc.evaluate import predict
from rdc.randomness import EOT
from rdc.train.classifiers import train_classifier

EPS = 20 / 255
NAMES = sorted(broken_defences(nn.Identity()))
pytestmark = pytest.mark.filterwarnings("ignore:the model returns probabilities")


@pytest.fixture(scope="module")
def world():
    """A model, images that it gets right, their labels, and how many of them survive PGD."""
    model = train_classifier(load("digits", "train"), 6, batch=64, lr=1e-2, width=8)
    test = load("digits", "test")
    x, y = test.x[:100], test.y[:100]
    return model, x, y, survivors(model, x, y, pgd(model, x, y, eps=EPS, steps=10))


def survivors(model, x, y, x_adv, seed=2):
    """Images right before and after an attack, judged after another global seed than the attack's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return int(((predict(model, x, 100) == y) & (predict(model, x_adv, 100) == y)).sum())


def careless(model, x, y, loss="margin"):
    """PGD after seeding the global generator, as attack tools do."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return pgd(model, x, y, eps=EPS, steps=10, loss=loss)


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_defence_keeps_most_of_the_clean_accuracy(world, name):
    model, x, y, _ = world
    defence = broken_defences(model)[name]
    assert survivors(defence, x, y, x) >= survivors(model, x, y, x) - 10


@pytest.mark.filterwarnings("ignore:most gradients")  # careless
@pytest.mark.parametrize(
    ("name", "loss"),
    [("tiny-logits", "ce"), ("saturated-softmax", "ce"), ("saturated-softmax", "margin"), ("quantised-input", "margin"),
     ("shattered-gradient", "margin")],
)  # fmt: skip
def test_a_careless_attack_is_fooled(world, name, loss):
    model, x, y, plain = world
    defence = broken_defences(model)[name]
    assert survivors(defence, x, y, careless(defence, x, y, loss)) >= plain + 6


def test_no_gradient_reaches_a_detached_defence(world):
    model, x, y, _ = world
    point = x.clone().requires_grad_()
    assert not broken_defences(model)["detached-preprocessing"](point).requires_grad


@pytest.mark.parametrize("name", ["quantised-input", "shattered-gradient", "detached-preprocessing"])
def test_the_identity_in_the_backward_pass_breaks_a_processed_input(world, name):
    model, x, y, plain = world
    defence = broken_defences(model)[name]
    x_adv = pgd(Preprocessed(defence.process, model, "bpda"), x, y, eps=EPS, steps=10)
    assert survivors(defence, x, y, x_adv) <= plain + 6


@pytest.mark.parametrize("name", ["tiny-logits", "saturated-softmax"])
def test_the_logits_break_a_rescaled_output(world, name):
    model, x, y, plain = world
    defence = broken_defences(model)[name]
    assert survivors(defence, x, y, pgd(model, x, y, eps=EPS, steps=10)) <= plain + 2


def test_averaging_over_seeds_breaks_reseeded_noise(world):
    """An attack that sees one seed believes more than eight other seeds confirm; one that sees ten breaks more under them."""
    model, x, y, _ = world
    zoo, seeds = broken_defences(model), range(2, 10)
    defence = zoo["reseeded-noise"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        averaged = pgd(EOT(zoo["random-input"], 10), x, y, eps=EPS, steps=10)
    fitted = careless(defence, x, y)
    left = [sum(survivors(defence, x, y, x_adv, seed) for seed in seeds) / len(seeds) for x_adv in (fitted, averaged)]
    assert left[0] >= survivors(defence, x, y, fitted, seed=1) + 2 and left[1] <= left[0] - 3


def test_reseeded_noise_passes_for_deterministic_and_is_not(world):
    model, x, _, _ = world
    defence = broken_defences(model)["reseeded-noise"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, again = defence(x[:5]), defence(x[:5])
        torch.manual_seed(2)
        other = defence(x[:5])
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_leak_depends_on_the_batch(world, name):
    model, x, _, _ = world
    defence = broken_defences(model)[name]
    if name in ("random-input", "reseeded-noise"):
        return
    with torch.no_grad():
        alone, together = defence(x[:1]), defence(x[:10])[:1]
    assert torch.allclose(alone, together, atol=1e-5 * float(together.abs().max())) != (name == "batch-leak")


def test_the_seed_owns_the_constants(world):
    model, x, _, _ = world
    a, b, c = (broken_defences(model, seed)["shattered-gradient"](x[:2]) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
