"""The audit flags every planted defence, passes honest models, and its parts obey their laws."""

import itertools
import random
from functools import partial

import audit_zoo
import numpy as np
import pytest
import torch
from helpers import Linear, draw
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.classify import OptimalClassifier
from rdc.classify.reference import reference_network
from rdc.data import Images, load
from rdc.defend.broken import broken_defences
from rdc.door import ask
from rdc.evaluate.audit import Report, audit
from rdc.evaluate.binarise import binarise
from rdc.evaluate.case import Case, Row
from rdc.evaluate.checks import check_random_state
from rdc.evaluate.frozen import frozen
from rdc.models import build
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

EPS = 0.1
pytestmark = pytest.mark.filterwarnings("ignore:the model returns probabilities")
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
    """A CNN trained on adversarial images, that of the package."""
    return reference_network("at-linf", "digits")


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


def failures(report: Report) -> set[str]:
    return {row.name for row in report.rows if row.verdict == "fail"}


def test_an_attack_that_does_nothing_fails(plain, images):
    def lazy(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return x

    names = failures(audit(plain, *images, eps=EPS, attack=lazy, everything=True))
    assert {"unbounded eps", "binarisation", "APGD"} <= names


def test_an_attack_that_leaves_the_ball_is_found(plain, images):
    def wide(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return pgd(model, x, y, **{**options, "eps": 2 * EPS})

    def bright(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return pgd(model, x, y, **options) + EPS * (x > 1 - EPS)

    for attack in (wide, bright):
        report = audit(plain, *images, eps=EPS, attack=attack)
        assert report.rows[-1].name == "audited attack" and not report.ok, str(report)


@pytest.mark.parametrize("ignored", [{"eps": EPS / 4}, {"steps": 1, "step_size": EPS / 20}])
def test_an_attack_that_does_not_use_its_budget_is_found(plain, images, ignored):
    def attack(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return pgd(model, x, y, **{**options, **ignored})

    assert not audit(plain, *images, eps=EPS, attack=attack).ok


@pytest.mark.parametrize("returned", [None, "x[:1]", "nan"])
def test_an_attack_that_returns_no_images_is_a_row(plain, images, returned):
    def attack(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> object:
        return {None: None, "x[:1]": x[:1], "nan": x * float("nan")}[returned]

    assert failures(audit(plain, *images, eps=EPS, attack=attack)) == {"audited attack"}


def test_an_attack_that_raises_is_a_row(plain, images):
    def attack(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        raise RuntimeError("out of luck")

    report = audit(plain, *images, eps=EPS, attack=attack)
    assert not report.ok and "out of luck" in str(report)


def test_an_attack_that_sees_the_scale_is_found(plain, images):
    """Cross-entropy without rescaling: at 1e3 the softmax saturates and the attack stops."""
    report = audit(plain, *images, eps=EPS / 2, steps=10, attack=partial(pgd, loss="ce"), everything=True)
    assert {row.name: row.verdict for row in report.rows}["logit scale"] != "pass", str(report)


def test_an_audit_stops_at_its_first_failure_unless_all_is_asked_for(plain, images):
    model = broken_defences(plain)["quantised-input"]
    short, whole = (audit(model, *images, eps=EPS, everything=everything) for everything in (False, True))
    assert [row.verdict for row in short.rows].count("fail") == 1 and short.rows[-1].verdict == "fail"
    assert [row.name for row in whole.rows] == [*(row.name for row in short.rows), *short.skipped] and not whole.skipped
    assert short.images < whole.images and f"not run after the first failure: {short.skipped[0]}" in str(short)


def test_what_is_counted_is_what_the_model_sees(plain, images):
    seen = []
    handle = plain.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        report = audit(plain, *images, eps=EPS)
    finally:
        handle.remove()
    assert (report.calls, report.images) == (len(seen), sum(seen)) and 0 < report.gradients < report.images
    assert f"{report.images / report.audited:.0f} images pushed per audited image" in str(report)


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


def test_a_defence_that_restarts_the_global_generator_does_not_pass_for_deterministic(images):
    class Reseeded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(torch.initial_seed())
            return x.flatten(1)[:, :10] + torch.randn(len(x), 10)

    x, y = images
    model = Reseeded()
    with torch.random.fork_rng():
        assert torch.equal(model(x), model(x))  # two calls do not tell
        row = next(check_random_state(Case(model, x, y, "Linf", EPS, 1, 1, pgd, 0)))
        assert row.verdict == "fail" and "global random state" in row.reason


@pytest.fixture(scope="module")
def eight(digits: Images) -> tuple[Tensor, Tensor]:
    """Eight test images of digits."""
    return digits.x[:8], digits.y[:8]


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Images that the model gets wrong in most of nine verdicts."""
    return int((sum((ask(model, x).argmax(1) != y).int() for _ in range(9)) > 4).sum())


@pytest.mark.filterwarnings("ignore:most gradients")  # what is planted
@pytest.mark.parametrize("name", audit_zoo.PLANTED)
def test_a_planted_defence_has_a_gap_and_is_flagged(eight, name):
    x, y = eight
    planted = audit_zoo.PLANTED[name]
    torch.manual_seed(0)  # some draw from the global generator
    if not planted.unattackable:
        inside = wrong(planted.build(), pgd(planted.attacked(), x, y, eps=planted.eps, targets=9), y)
        try:
            default = wrong(defence := planted.build(), pgd(defence, x, y, eps=audit_zoo.EPS), y)
        except (ValueError, RuntimeError):
            default = 0  # the attack cannot run: it breaks nothing
        assert inside >= default + 2, f"no gap: {inside} from the inside, {default} by PGD"
    report = audit(planted.build(), x, y, eps=audit_zoo.EPS)
    assert not report.ok, str(report)
    assert [row.verdict for row in report.rows].count("fail") == 1, "it stops at its first failure"


@pytest.mark.parametrize("name", audit_zoo.HONEST)
def test_an_honest_model_passes_within_the_budget(eight, name):
    report = audit(audit_zoo.HONEST[name](), *eight, eps=audit_zoo.EPS)
    assert report.ok, str(report)
    assert report.images <= 400 * report.audited, report.cost


def test_there_are_thirty_broken_and_ten_honest_models():
    assert len(audit_zoo.PLANTED) >= 30 and len(audit_zoo.HONEST) >= 10


@pytest.mark.parametrize("name", ["adversarially trained", "smoothed, own generator"])
def test_the_budget_holds_where_every_image_survives(eight, name):
    report = audit(audit_zoo.HONEST[name](), *eight, eps=0.01)
    assert report.ok and report.images <= 400 * report.audited, str(report)


@pytest.mark.parametrize("draw", [audit_zoo.own, audit_zoo.counted, audit_zoo.counted_by_buffer])
def test_a_randomised_model_is_frozen_and_left_as_it_was(eight, draw):
    model, (x, _) = audit_zoo.Smoothed(audit_zoo.cnn(), draw), eight
    model(x)
    state, still = model.source.get_state(), frozen(model)
    assert not torch.equal(model(x), model(x))
    model.calls, model.count[...] = 1, 1
    model.source.set_state(state)
    assert torch.equal(still(x), still(x))
    assert model.calls == 1 and int(model.count) == 1 and torch.equal(model.source.get_state(), state)


def test_noise_that_a_model_has_fixed_is_not_drawn_again(eight):
    """A deterministic model with another seed than the audit's is audited as it is."""
    (x, y), model = eight, build("dc", "digits", seed=5, levels=2)
    case = Case(model, x[:2], y[:2], "Linf", EPS, 1, 1, pgd, 0)
    assert not case.random and torch.equal(case.frozen(x[:2]), model(x[:2]))
    assert not torch.equal(frozen(model, 0)(x[:2]), model(x[:2]))


def test_frozen_reaches_what_hides_in_lists_dicts_and_objects(eight):
    class Holder:
        def __init__(self) -> None:
            self.source, self.numbers = torch.Generator().manual_seed(1), np.random.default_rng(2)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.holder, self.clock = {"list": [random.Random(3), [0]]}, Holder(), itertools.count()

        def forward(self, x: Tensor) -> Tensor:
            drawn, tally = self.kept["list"]
            tally[0] += 1
            numbers = [drawn.random(), self.holder.numbers.random(), next(self.clock), tally[0]]
            return x.flatten(1)[:, :4] + torch.tensor(numbers) + torch.randn(4, generator=self.holder.source)

    model, (x, _) = Hidden(), eight
    assert not torch.equal(model(x), model(x))
    still = frozen(model)
    assert torch.equal(still(x), still(x))
