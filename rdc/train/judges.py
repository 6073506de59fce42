"""What judges generated images: two networks that make features, and a classifier that took no part in making them.

``reference`` are the shipped reference networks of a data set: features of ``cnn`` and of ``at-l2``, agreement with ``at-linf``.
``fashion`` are three networks that are trained on the spot, on all of Fashion-MNIST, and kept in ``runs/judges``: those of the
first measurements of guidance. Numbers of different judges cannot be compared, so that a row of an experiment names its judges.
"""

__all__ = ["METRICS", "Judges", "balanced", "judges", "measure"]

from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rdc.attack.pgd import pgd
from rdc.classify.networks import CNN
from rdc.classify.reference import reference_network
from rdc.data import load
from rdc.denoise.checkpoints import read_checkpoint, write_checkpoint
from rdc.evaluate.robustness import predict
from rdc.guide.metrics import FeatureNetwork, frechet_distance, precision_recall
from rdc.train.classifiers import train_classifier

#: What is measured of a set of images, see :mod:`rdc.guide.metrics`.
METRICS = ("frechet", "frechet robust features", "precision", "recall", "precision robust features", "agreement")
#: The reference networks in the three roles.
REFERENCE = {"plain": "cnn", "robust": "at-l2", "judge": "at-linf"}
RUNS = Path("runs") / "judges"


@dataclass(frozen=True)
class JudgeRecipe:
    """A CNN that is trained on the spot, on all of Fashion-MNIST, in batches of 128."""

    name: str
    width: int
    epochs: int
    seed: int
    steps: int = 0  # of PGD in adversarial training, L2 1; 0: plain


RECIPES = {
    "plain": JudgeRecipe("CNN", 24, 3, 11),
    "robust": JudgeRecipe("adversarially trained CNN", 24, 1, 12, steps=3),
    "judge": JudgeRecipe("independent CNN", 32, 2, 13),
}


@dataclass(frozen=True, eq=False)
class Judges:
    """Two feature networks with the features of the real images, by name ``plain`` and ``robust``, and a classifier."""

    features: dict[str, FeatureNetwork]
    real: dict[str, Tensor]
    judge: nn.Module


@cache
def judges(which: str, data: str, device: str = "cpu") -> Judges:
    """Return the judges of a data set; the real images are all of its test split.

    Raises:
        ValueError: if there are no such judges, or the data they are trained on are missing.
    """
    if which not in ("reference", "fashion"):
        raise ValueError(f"unknown judges {which!r}; there are reference, fashion")
    nets = {role: network(role, which, data, device) for role in REFERENCE}
    features = {role: FeatureNetwork(f"{which}, {role}", nets[role]) for role in ("plain", "robust")}
    x = load(data).x.to(device)
    return Judges(features, {role: f(x) for role, f in features.items()}, nets["judge"])


@cache
def network(role: str, which: str, data: str, device: str = "cpu") -> nn.Module:
    """Return one of the networks, trained if it must be and is not there."""
    if which == "reference":
        return reference_network(REFERENCE[role], data, device)
    recipe, path = RECIPES[role], RUNS / f"{role}.safetensors"
    if not path.exists():
        attack = partial(pgd, norm="L2", eps=1.0, steps=recipe.steps, loss="ce") if recipe.steps else None
        images = load("fashion", "train")
        made = train_classifier(images, recipe.epochs, batch=128, width=recipe.width, seed=recipe.seed, attack=attack)
        write_checkpoint(path, made.state_dict(), kind="judge", config=asdict(recipe))
    tensors, _ = read_checkpoint(path, "judge")
    found = CNN((1, 28, 28), 10, recipe.width)
    found.load_state_dict(tensors)
    return found.to(device).eval().requires_grad_(False)


def measure(by: Judges, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return all :data:`METRICS` of a set of images in [0, 1] that should show the classes ``y``."""
    found = {}
    for role, features in by.features.items():
        made, behind = features(x), "" if role == "plain" else f" {role} features"
        both = precision_recall(by.real[role], made)
        found[f"frechet{behind}"] = frechet_distance(by.real[role], made)
        found |= {f"precision{behind}": both.precision.value, f"recall{behind}": both.recall.value}
    found["agreement"] = float((predict(by.judge, x, 250) == y).double().mean())
    return {name: found[name] for name in METRICS}


def balanced(y: Tensor, n: int, repeat: int) -> Tensor:
    """Return the positions of ``n`` images, as many of each class, others in each repetition.

    Raises:
        ValueError: if there are not as many.
    """
    classes = int(y.max()) + 1
    each = n // classes
    parts = [(y == k).nonzero()[:, 0][repeat * each : (repeat + 1) * each] for k in range(classes)]
    if min(len(p) for p in parts) < each:
        raise ValueError(f"there are not {repeat + 1} times {each} images of each class; take fewer")
    return torch.cat(parts)
