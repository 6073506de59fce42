"""The audit flags every planted defence, passes honest models, and its parts obey their laws."""

from functools import partial

import pytest
import torch
from helpers import Linear, draw
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.classify import OptimalClassifier
from rdc.data import Images, load
from rdc.defend.broken import broken_defences
from rdc.evaluate.audit import Report, audit
from rdc.evaluate.binarise import binarise
from rdc.evaluate.checks import Case, Row
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

EPS = 0.1
NAMES = [
    "tiny-logits",
    "saturated-softmax",
    "quantised-input",
    "shattered-gradient",
    "detached-preprocessing",
    "random-input",
    "reseeded-noise",
    "batch-leak",
]


@pytest.fixture(scope="module")
def images(digits: Images) -> tuple[Tensor, Tensor]:
    """Twenty test images of digits."""
    return digits.x[:20], digits.y[:20]


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """An undefended CNN."""
    return train_classifier(load("digits", "train"), epochs=8, width=16)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    """A CNN trained on adversarial images."""
    attack = partial(pgd, eps=EPS, steps=4, loss="ce")
    return train_classifier(load("digits", "train"), epochs=10, width=16, attack=attack)


def test_all_planted_defences_are_tested(plain):
    assert sorted(broken_defences(plain)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_planted_defence_is_flagged(plain, images, name):
    report = audit(broken_defences(plain)[name], *images, eps=EPS, steps=10, queries=50)
    assert not report.ok, str(report)


def test_an_undefended_network_passes(plain, images):
    assert (report := audit(plain, *images, eps=EPS, steps=10, queries=50)).ok, str(report)


def test_an_adversarially_trained_network_passes(robust, plain, images):
    report = audit(robust, *images, eps=EPS, steps=20, queries=50, surrogate=plain)
    assert report.ok, str(report)
    assert {row.name: row.verdict for row in report.rows}["transfer"] == "pass"


def test_adversarial_training_helps(robust, plain, images):
    left = [int((model(pgd(model, *images, eps=EPS)).argmax(1) == images[1]).sum()) for model in (plain, robust)]
    assert left[1] >= left[0] + 4


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 1.0)])
def test_the_optimal_classifier_passes(images, norm, eps):
    train = load("digits", "train")
    model = OptimalClassifier(train.x, train.y, levels("elbo", 6))
    report = audit(model, images[0][:10], images[1][:10], norm=norm, eps=eps, steps=20, queries=50)
    assert report.ok, str(report)


def test_an_attack_that_does_nothing_fails(plain, images):
    def lazy(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return x

    names = {row.name for row in audit(plain, *images, eps=EPS, attack=lazy, queries=50).rows if row.verdict == "fail"}
    assert {"unbounded eps", "binarisation", "black box (Square)"} <= names


def test_an_attack_that_sees_the_scale_is_found(plain, images):
    """Cross-entropy without rescaling: at 1e3 the softmax saturates and the attack stops."""
    report = audit(plain, *images, eps=EPS / 4, steps=10, attack=partial(pgd, loss="ce"), queries=20)
    assert {row.name: row.verdict for row in report.rows}["logit scale"] != "pass", str(report)


def test_an_audit_repeats_and_leaves_the_random_state_alone(plain, images):
    state = torch.random.get_rng_state()
    model = broken_defences(plain)["random-input"]
    first, second = (audit(model, *images, eps=EPS, steps=5, queries=20) for _ in range(2))
    assert str(first) == str(second)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_binarisation_plants_an_adversarial_example(norm):
    """On a linear map the readout separates, inner points are class 0, and the attack finds the other side."""
    model = Linear(draw((6, 30), 3) - 0.5)
    x = 0.2 + 0.6 * draw((1, 1, 5, 6), 4)
    binary = binarise(model, x, norm, 0.1, 60, (0, 0))
    assert binary is not None
    assert int(binary(x).argmax()) == 0
    x_adv = pgd(binary, x, torch.zeros(1, dtype=torch.int64), norm=norm, eps=0.1, steps=20)
    assert int(binary(x_adv).argmax()) == 1


def test_constant_features_cannot_be_binarised():
    assert binarise(lambda x: torch.ones(len(x), 4), draw((1, 1, 4, 4), 0).float(), "Linf", 0.1, 20, (0,)) is None


def test_a_report_prints_and_decides():
    rows = (Row("a", "pass", "fine"), Row("b", "warn", "x < y"))
    report = Report(rows)
    assert report.ok and not Report((*rows, Row("c", "fail", "no"))).ok
    assert "warn  b  x < y" in str(report)
    assert "x &lt; y" in report._repr_html_()


def test_bad_input(plain, images):
    x, y = images
    with pytest.raises(ValueError, match="every image wrong"):
        audit(plain, x, (y + 1) % 10)
    with pytest.raises(ValueError, match="negative"):
        audit(plain, x, y, eps=-1.0)
    with pytest.raises(ValueError, match="unknown norm"):
        audit(plain, x, y, norm="L0")
    with pytest.raises(ValueError, match="images must lie in"):
        audit(plain, 255 * x, y)


def test_a_defence_that_restarts_the_global_generator_counts_as_random(images):
    class Reseeded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(torch.initial_seed())
            return x.flatten(1)[:, :10] + torch.randn(len(x), 10)

    x, y = images
    model = Reseeded()
    with torch.random.fork_rng():
        assert torch.equal(model(x), model(x))  # two calls do not tell
        assert Case(model, x, y, "Linf", EPS, 1, 1, pgd, 0).random
        assert not Case(Linear(draw((3, 64), 3, torch.float32)), x, y, "Linf", EPS, 1, 1, pgd, 0).random
