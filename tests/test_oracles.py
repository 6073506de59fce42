"""Attacks against independent implementations, and on published weights and real images."""

import importlib.util
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rdc.attack import autoattack, pgd
from rdc.attack.norms import norm_of
from rdc.classify import cifar10_resnet18
from rdc.classify.reference import reference_network
from rdc.data import Images, load
from rdc.evaluate import predict
from rdc.train.classifiers import train_classifier

FOOLBOX = pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed")


@pytest.fixture(scope="module")
def cnn() -> tuple[nn.Module, Images]:
    """A network for the digits and 200 test images that it classifies correctly."""
    model = train_classifier(load("digits", "train"), epochs=8, width=8)
    test = load("digits", "test")
    right = (model(test.x).argmax(1) == test.y).nonzero()[:200, 0]
    return model, test[right]


@FOOLBOX
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # on import, from scipy
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.07), ("L2", 0.4)])
def test_pgd_agrees_with_foolbox(cnn, norm, eps):
    """Both climb the cross-entropy for 40 steps of the same mean length; the counts agree within the noise of the start.

    They differ in the random start, in the steps (ours fall from 0.1 to 0.01 eps, Foolbox's are all of one length) and in what
    they return (ours the worst iterate, Foolbox the last). That decides only about images whose boundary is at the edge of
    the ball. The tolerance is three standard deviations of a difference if every image in a band of 4 % of the radius around
    the edge, estimated from Foolbox's own counts at 0.96 and 1.04 eps, fell to either side by a toss of a coin. At Foolbox's
    own step, with which its L2 path is as long as the radius, it must not break more than we do.
    """
    import foolbox

    model, images = cnn
    kind = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def theirs(seed, radius, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _, (x_adv,), _ = kind(steps=40, **options)(wrapped, images.x, images.y, epsilons=[radius])
        assert bool((norm_of(x_adv - images.x, norm) <= radius * (1 + 1e-5)).all())
        return judge(x_adv)

    def judge(x_adv):
        logits = model(x_adv)
        return int((logits.argmax(1) != images.y).sum()), F.cross_entropy(logits, images.y).item()

    broken, loss = judge(pgd(model, images.x, images.y, norm, eps, steps=40, loss="ce"))
    same = [theirs(seed, eps, rel_stepsize=0.055) for seed in range(3)]
    band = theirs(0, 1.04 * eps, rel_stepsize=0.055)[0] - theirs(0, 0.96 * eps, rel_stepsize=0.055)[0]
    tolerance = 3 * (band / 4 * 2) ** 0.5
    assert 40 < broken < 160 and 1 < tolerance < 10  # a test that can tell attacks apart
    assert all(abs(broken - count) <= tolerance for count, _ in same)
    assert all(loss >= 0.99 * value for _, value in same)
    assert theirs(0, eps)[0] <= broken + tolerance


@FOOLBOX
@pytest.mark.slow
def test_apgd_breaks_a_published_network_on_real_images():
    """ResNet-18 for CIFAR-10, trained without a defence: 20 of 20 images right, none after APGD-CE at 8/255."""
    model, images = cifar10_resnet18(), load("cifar10-20")
    assert int((model(images.x).argmax(1) == images.y).sum()) == 20
    options = {"version": "custom", "attacks": ["apgd-ce"], "steps": 10, "batch": 20}
    start = time.process_time()
    x_adv = autoattack(model, images.x, images.y, "Linf", 8 / 255, **options)
    assert time.process_time() - start < 60
    assert int((model(x_adv).argmax(1) == images.y).sum()) == 0
    assert float((x_adv.double() - images.x.double()).abs().max()) <= float(torch.tensor(8 / 255))


def test_the_published_network_takes_images_as_they_are():
    """With images in [0, 1] it is sure and right; normalised in either usual way it is wrong on most."""
    pytest.importorskip("pyautoattack")
    if importlib.util.find_spec("foolbox") is None:
        pytest.skip("foolbox is not installed")
    model, images = cifar10_resnet18(), load("cifar10-20")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]))
    with torch.no_grad():
        plain, scaled, centred = (model(x) for x in (images.x, (images.x - mean) / std, 2 * images.x - 1))
    assert float(plain.softmax(1).gather(1, images.y[:, None]).mean()) > 0.9
    assert all(int((logits.argmax(1) == images.y).sum()) < 10 for logits in (scaled, centred))


def test_a_missing_or_damaged_network_gives_one_line(monkeypatch, tmp_path):
    from pyautoattack.examples import resnet

    shown = {}
    monkeypatch.setattr(resnet, "__file__", str(tmp_path / "resnet.py"))
    with pytest.raises(ValueError, match="model_test.pt is missing.*pip install pyautoattack") as shown["missing"]:
        cifar10_resnet18()
    (tmp_path / "model_test.pt").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="not what it should be.*pip install pyautoattack") as shown["damaged"]:
        cifar10_resnet18()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model_test.pt")
    with pytest.raises(ValueError, match="not what it should be.*pip install pyautoattack") as shown["other"]:
        cifar10_resnet18()
    monkeypatch.setitem(sys.modules, "pyautoattack.examples.resnet", None)
    monkeypatch.delattr(sys.modules["pyautoattack.examples"], "resnet")
    with pytest.raises(ValueError, match="is not installed; run 'pip install pyautoattack") as shown["none"]:
        cifar10_resnet18()
    assert not any("\n" in str(error.value) for error in shown.values())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "eps"), [("cnn", 0.4), ("cnn", 0.6), ("at-l2", 0.8)])
def test_targeted_pgd_in_l2_is_as_strong_as_targeted_apgd(kind, eps):
    """At equal steps towards all nine wrong classes, on the images 300...399 of the digits."""
    pytest.importorskip("pyautoattack")
    model, test = reference_network(kind, "digits"), load("digits", "test")
    x, y = test.x[300:], test.y[300:]
    options = {"version": "custom", "attacks": ["apgd-t"], "steps": 20, "batch": 100}
    ours, theirs = pgd(model, x, y, "L2", eps, steps=20, targets=9), autoattack(model, x, y, "L2", eps, **options)
    broken = [int((predict(model, found) != y).sum()) for found in (ours, theirs)]
    assert broken[0] >= broken[1] - 1 and 10 < broken[1] < 95, broken
