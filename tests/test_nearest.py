"""Certified radii of the nearest neighbour: exact for one image a class, never above the truth, never broken."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdc.attack import pgd
from rdc.certify.nearest import nearest_radius
from rdc.classify import NearestNeighbor
from rdc.data import load
from rdc.evaluate import predict
from rdc.experiments import experiment
from rdc.quantities import number
from rdc.rng import generator
from rdc.runs.record import book_folder
from rdc.runs.store import Store


def plane(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the plane as images of two pixels, with labels of three classes."""
    g = generator("plane", seed)
    points = torch.rand(n, 1, 1, 2, generator=g, dtype=torch.float64)
    return points, torch.arange(n) % 3


@given(seed=st.integers(0, 200))
def test_with_one_image_a_class_it_is_the_distance_from_the_border(seed):
    """For two stored points the border is a line, and both distances from it are closed forms."""
    points, _ = plane(seed, 2)
    x, _ = plane(seed + 1000, 4)
    labels = torch.tensor([0, 1])
    a, b = points.flatten(1)
    nearer = ((x.flatten(1) - a).norm(dim=1) > (x.flatten(1) - b).norm(dim=1)).long()
    normal = b - a
    gap = ((x.flatten(1) - (a + b) / 2) @ normal).abs()
    for norm, dual in (("L2", normal.norm()), ("Linf", normal.abs().sum())):
        assert nearest_radius(x, nearer, points, labels, norm) == pytest.approx((gap / dual).numpy(), abs=1e-12)
        assert not nearest_radius(x, 1 - nearer, points, labels, norm).any(), "no radius for a wrong answer"


@given(seed=st.integers(0, 100))
def test_no_point_of_the_ball_has_another_answer(seed):
    """Brute force in the plane: the answer is the same on a fine grid of the ball, and more candidates never hurt."""
    points, labels = plane(seed, 9)
    x, y = plane(seed + 500, 3)
    turns = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)
    for norm in ("L2", "Linf"):
        few, all_ = (nearest_radius(x, y, points, labels, norm, candidates=k) for k in (1, 3))
        assert (all_ >= few).all()
        direction = torch.stack([turns.cos(), turns.sin()], dim=1)
        direction = direction / (1.0 if norm == "L2" else direction.abs().amax(dim=1, keepdim=True))
        for image, label, radius in zip(x.flatten(1), y, all_, strict=True):
            for share in (0.5, 0.999):
                around = image + share * radius * direction
                nearest = labels[torch.cdist(around, points.flatten(1)).argmin(dim=1)]
                assert radius == 0 or bool((nearest == label).all())


def test_an_attack_never_breaks_what_is_certified_and_the_cells_say_so():
    """On Fashion-MNIST: the stored radii are those of the function, and PGD finds nothing inside."""
    train, test = load("fashion-mini", "train"), load("fashion-mini", "test")
    found = Store.read(book_folder("results") / "nearest.jsonl").of(experiment("nearest").rows[0])
    chosen = [i for i, r in found.value("radius Linf").items() if 0.02 < r < 0.05][:6]
    x, y = test.x[chosen], test.y[chosen]
    for norm in ("Linf", "L2"):
        radii = nearest_radius(x, y, train.x, train.y, norm)
        assert radii.tolist() == pytest.approx([found.value(f"radius {norm}")[i] for i in chosen], abs=1e-5)
    model = NearestNeighbor(train.x, train.y)
    least = float(min(found.value("radius Linf")[i] for i in chosen))
    assert bool((predict(model, pgd(model, x, y, eps=0.99 * least, steps=10)) == y).all())
    assert not bool((predict(model, pgd(model, x, y, eps=10 * least, steps=10)) == y).all()), "the attack finds something"


def test_a_stored_image_keeps_its_class_up_to_half_the_way_to_another():
    """Training and test set stored: a closed form, half a distance; on Fashion-MNIST above the radii of the usual benchmark."""
    train, test = load("fashion-mini", "train"), load("fashion-mini", "test")
    images, labels = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])
    x, y = test.x[:32], test.y[:32]
    for norm, radius in (("L2", 0.5), ("Linf", 8 / 255)):
        found = nearest_radius(x, y, images, labels, norm)
        for i in range(len(x)):
            others = images[labels != y[i]] - x[i]
            l2, l1 = others.flatten(1).norm(dim=1), others.flatten(1).abs().sum(1)
            half = l2 / 2 if norm == "L2" else l2**2 / (2 * l1)
            assert float(found[i]) >= (1 - 1e-4) * float(half.min()), "other images of the class may only help"
            assert float(half.min()) > radius
    model = NearestNeighbor(images, labels)
    assert bool((predict(model, pgd(model, x, y, eps=8 / 255, steps=10)) == y).all())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_stored_attack_finds_anything_inside_a_stored_radius(norm):
    """All attacks on 1-NN of the experiment ``baselines``, image by image, at every radius."""
    results = book_folder("results")
    radius = Store.read(results / "nearest.jsonl").of(experiment("nearest").rows[0]).value(f"radius {norm}")
    store, seen = Store.read(results / "baselines.jsonl"), 0
    for row in experiment("baselines").rows:
        if row.model == "1-nn" and row.about["norm"] == norm:
            kept = store.of(row).outcome("robust")
            eps = number(row.about["eps"], "eps")
            inside = [i for i in kept if (radius.get(i) or 0.0) > eps]
            assert all(kept[i] for i in inside), row
            seen += len(inside)
    assert seen > 50, "some images with a radius were attacked inside"


def test_ties_and_a_wrong_norm():
    points, labels = torch.tensor([0.25, 0.75], dtype=torch.float64).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    middle = torch.tensor([0.5]).double().reshape(1, 1, 1, 1)
    for norm, label in itertools.product(("L2", "Linf"), (0, 1)):
        assert float(nearest_radius(middle, torch.tensor([label]), points, labels, norm)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="norm must be Linf or L2, got 'L1'"):
        nearest_radius(middle, labels[:1], points, labels, "L1")
