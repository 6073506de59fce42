"""A small denoiser out of a large one: exact where nothing is lost, better the more is kept."""

from dataclasses import replace

import pytest
import torch
from helpers import draw
from model_card import smaller_card

from rdc.denoise.checkpoints import ASSETS, load_denoiser
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.unet import UNetConfig
from rdc.rng import randint, randn
from rdc.train.recipes import SMALLER
from rdc.train.shrink import choose, least_squares, pair_loss, shrink

SHAPE = UNetConfig(8, 2, 3, 16, (2, 2), 2, (4,))


def trained(shape=SHAPE, seed=0):
    """A network whose blocks all do something: weights of unit gain."""
    denoiser = build(EDMConfig(shape, data="toy"), seed)
    for name, p in denoiser.named_parameters():
        if p.ndim > 1:
            p.data = randn(tuple(p.shape), "trained", name) * (1.5 / p[0].numel()) ** 0.5
    return denoiser.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher():
    return trained()


@pytest.fixture(scope="module")
def noisy():
    sigma = 0.3 + draw((48,), dtype=torch.float32)
    return randn((48, 2, 8, 8), "noisy") * (1 + sigma[:, None, None, None]), sigma, randint(3, (48,), "label")


@torch.no_grad()
def error(student, teacher, noisy, seed=1):
    """Relative mean square on other images."""
    _, sigma, label = noisy
    z = randn((48, 2, 8, 8), "others", seed) * (1 + sigma[:, None, None, None])
    a, b = student(z, sigma, label), teacher(z, sigma, label)
    return float((a - b).square().mean() / b.var())


def test_a_network_of_the_same_shape_does_the_same(teacher, noisy):
    student = shrink(teacher, teacher.config, *noisy)
    assert error(student, teacher, noisy) < 1e-3


def test_the_same_shape_without_ridge_has_the_same_weights(teacher, noisy, monkeypatch):
    monkeypatch.setattr("rdc.train.shrink.RIDGE", 1e-9)
    student = shrink(teacher, teacher.config, *noisy)
    assert torch.allclose(student.model.enc["8x8_block0"].conv1.weight, teacher.model.enc["8x8_block0"].conv1.weight, atol=2e-2)
    assert error(student, teacher, noisy) < 1e-5


def test_more_channels_and_more_blocks_come_closer(teacher, noisy):
    def shrunken(blocks, *inner):
        return shrink(teacher, replace(teacher.config, unet=replace(SHAPE, num_blocks=blocks, inner=inner)), *noisy)

    narrow, wide, few = shrunken(2, 8, 8), shrunken(2, 24, 24), shrunken(1, 24, 24)
    untrained = error(trained(replace(SHAPE, inner=(8, 8)), seed=1), teacher, noisy)
    assert error(wide, teacher, noisy) < error(narrow, teacher, noisy) < untrained / 2
    assert error(wide, teacher, noisy) < error(few, teacher, noisy) < untrained / 2


MISFITS = [{"model_channels": 20}, {"num_blocks": 3}, {"inner": (64, 32)}, {"attn_resolutions": ()}, {"patch": 2}]


@pytest.mark.parametrize("change", MISFITS)
def test_a_student_that_does_not_fit_is_refused(teacher, noisy, change):
    with pytest.raises(ValueError, match="may differ in num_blocks and inner alone"):
        shrink(teacher, replace(teacher.config, unet=replace(SHAPE, **change)), *noisy)


def test_the_channels_that_make_a_target_are_chosen():
    x = randn((4, 8, 6, 6), "x")
    weight = torch.zeros(3, 8, 3, 3)
    weight[:, [1, 5, 6]] = randn((3, 3, 3, 3), "weight")
    goal = torch.nn.functional.conv2d(x, weight, torch.ones(3), padding=1)
    assert choose(x, goal, 3) == [1, 5, 6]
    found = least_squares([(x, 3)], goal)
    assert torch.allclose(found[:, :-1].reshape(weight.shape), weight, atol=1e-2) and torch.allclose(
        found[:, -1], torch.ones(3), atol=1e-2
    )


def test_the_loss_of_pairs(teacher):
    z, sigma, eps = randn((5, 2, 8, 8), "z"), torch.full((5, 1, 1, 1), 0.7), randn((5, 2, 8, 8), "eps")
    label = torch.tensor([0, 1, 2, 0, -1])
    assert pair_loss(teacher, z, label, sigma, eps, 0, teacher, 0, 5.0).abs().max() < 1e-9
    other = trained(seed=3)
    shifted = other
    shifted.model.dec["8x8_aux_conv"].bias.data += 0.1  # the same for all classes: the difference does not see it
    far, weighted = (pair_loss(shifted, z, label, sigma, eps, 0, teacher, 0, w) for w in (0.0, 5.0))
    assert torch.allclose(far, torch.full((5,), 0.01), rtol=1e-3) and torch.allclose(weighted, far, rtol=1e-3)


@pytest.mark.parametrize("name", SMALLER)
def test_a_shipped_small_denoiser_is_what_its_recipe_and_card_say(name):
    path = ASSETS / f"{name}.safetensors"
    assert path.stat().st_size < 8e6 and path.with_suffix(".md").read_text(encoding="utf8") == smaller_card(name)
    denoiser = load_denoiser(name, data="cifar10-20")
    assert denoiser.config == SMALLER[name].train.denoiser and denoiser.shape == (3, 32, 32)
    assert denoiser.unlabelled
