"""The networks behind tools/guidance.py: two that make features, one that judges classes, and short trainings of guides.

All are kept in runs/guidance/, and made again where they are missing. The three CNNs are trained on all of Fashion-MNIST if this
machine has it, else on fashion-mini; their name says which.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rdc.attack import pgd
from rdc.classify import CNN
from rdc.data import DataError, Images, load
from rdc.denoise.checkpoints import read_checkpoint, write_checkpoint
from rdc.evaluate import accuracy, robust_accuracy
from rdc.guide.metrics import FeatureNetwork
from rdc.guide.threat import Threat
from rdc.train.classifiers import train_classifier
from rdc.train.guide_recipes import GUIDES
from rdc.train.guides import GuideConfig, train_guide

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "guidance"
EPS = 1.0  # of adversarial training of the features, L2, image units


@dataclass(frozen=True)
class Recipe:
    """A CNN: what it is called, and how it is trained."""

    name: str
    width: int
    epochs: int
    seed: int
    steps: int = 0  # of PGD in adversarial training; 0: plain


RECIPES = {
    "plain": Recipe("CNN", 24, 3, 11),
    "robust": Recipe("adversarially trained CNN", 24, 1, 12, steps=3),
    "judge": Recipe("independent CNN", 32, 2, 13),
}


def training_images() -> tuple[str, Images]:
    """The largest train split of Fashion-MNIST on this machine, and its name."""
    try:
        return "fashion", load("fashion", "train")
    except DataError:
        return "fashion-mini", load("fashion-mini", "train")


def cnn(which: str) -> tuple[str, CNN]:
    """A network of ``RECIPES``, frozen, and its full name; trained if it is not there."""
    recipe, path, (data, images) = RECIPES[which], RUNS / "networks" / f"{which}.safetensors", training_images()
    config = {**vars(recipe), "data": data}
    name = f"{recipe.name} of width {recipe.width}, {recipe.epochs} epochs of {data} train, seed {recipe.seed}"
    name += f", L2 {EPS:g} in {recipe.steps} steps" if recipe.steps else ""
    if not path.exists():
        attack = partial(pgd, norm="L2", eps=EPS, steps=recipe.steps, loss="ce") if recipe.steps else None
        options = {"width": recipe.width, "seed": recipe.seed, "quiet": False, "attack": attack}
        network = train_classifier(images, recipe.epochs, batch=128, **options)
        write_checkpoint(path, network.state_dict(), kind="reference CNN", config=config)
    tensors, meta = read_checkpoint(path, "reference CNN")
    if meta["config"] != config:
        raise ValueError(f"{path} is {meta['config']}, not {config}; delete it")
    network = CNN(tuple(images.x.shape[1:]), len(images.classes), recipe.width)
    network.load_state_dict(tensors)
    return name, network.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Judges:
    """What judges generated images: two feature networks with the features of the real images, and a classifier."""

    features: dict[str, FeatureNetwork]  # "plain" and "robust"
    real: dict[str, Tensor]
    judge: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, features: dict[str, FeatureNetwork], judge: Callable[[Tensor], Tensor], images: Images) -> "Judges":
        """With the features of some real images."""
        return cls(features, {name: f(images.x) for name, f in features.items()}, judge)


@cache
def judges() -> Judges:
    """Those of the record; real images are all test images of fashion-mini."""
    features = {which: FeatureNetwork(*cnn(which)) for which in ("plain", "robust")}
    return Judges.of(features, cnn("judge")[1], load("fashion-mini"))


def describe(n: int = 100) -> dict[str, Any]:
    """Names and accuracies of the networks: on the test images of fashion-mini, and on the first ones under PGD."""
    test, found = load("fashion-mini"), {}
    for which in RECIPES:
        name, network = cnn(which)
        x_adv = pgd(network, test.x[:n], test.y[:n], norm="L2", eps=EPS, steps=20)
        attacked = robust_accuracy(network, test.x[:n], test.y[:n], x_adv, draws=1)
        found[which] = {"name": name, "clean": accuracy(network, test.x, test.y), "robust": attacked, "eps": EPS, "norm": "L2"}
    return found


@dataclass(frozen=True)
class Trained:
    """A short training of a guide: its threat model, None for vanilla, and its seed."""

    threat: Threat | None = None
    seed: int = 0

    def name(self) -> str:
        """Of its file."""
        if self.threat is None:
            return f"vanilla-{self.seed}"
        t = self.threat
        return f"{t.norm}-{t.eps:.4g}-{t.steps}-{t.radius}{'' if t.stop else '-full'}-{self.seed}"

    def config(self, steps: int, batch: int) -> GuideConfig:
        """The recipe of the shipped guides, shortened."""
        recipe = GUIDES["fashion-mini"]["vanilla"]
        short = {"steps": steps, "batch": batch, "warmup": steps // 10, "ema": 0.99, "probe_every": steps}
        return replace(recipe, threat=self.threat, seed=self.seed, **short)

    def path(self, steps: int, batch: int) -> Path:
        """The weights."""
        return RUNS / "threats" / f"{self.name()}-{steps}x{batch}.safetensors"

    def fit(self, steps: int, batch: int) -> Path:
        """The weights, trained if they are not there."""
        path = self.path(steps, batch)
        if path.exists():
            return path
        return train_guide(self.config(steps, batch), path, images=training_images()[1], held_out=load("fashion-mini")[:50])


#: The threat models of Table 4, those with the most usual number of steps first.
GRID = tuple(
    Threat(norm, eps, steps)
    for steps in (7, 5, 9)
    for norm, eps in (("L2", 0.5), ("L2", 0.25), ("L2", 1.0), ("Linf", 4 / 255), ("Linf", 8 / 255))
)
#: Of the paper's own threat model: what another training of the same changes.
SEEDS = tuple(Trained(Threat(), seed) for seed in range(5))
#: What the text says of Table 4, and beyond it: no guide of its own, early stopping, a large radius, one that follows the noise.
BESIDE = (
    Trained(),
    Trained(Threat(stop=False)),
    Trained(Threat(eps=3.0)),
    Trained(Threat(radius="scaled")),
    Trained(Threat(steps=3)),
)
#: Without early stopping, for as many seeds: pairs with SEEDS.
UNSTOPPED = tuple(replace(s, threat=Threat(stop=False)) for s in SEEDS)
#: All short trainings, the most important first.
TRAININGS = tuple(dict.fromkeys((BESIDE[0], *SEEDS[:2], *BESIDE, *map(Trained, GRID), *SEEDS, *UNSTOPPED)))
