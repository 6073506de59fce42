r"""The recipes of the reference networks of small data sets, frozen, and the run that follows one.

``rdc train classifier --recipe at-linf --data fashion-mini`` repeats a shipped network: the same weights on the same machine, the
same up to rounding on another. :func:`rdc.classify.reference.reference_network` loads the one that is shipped.

Adversarial training minimises the cross-entropy of the images that an attack finds (Madry et al., 2018),

.. math:: \min_\theta\, \mathbb E_{x, y}\, \mathrm{CE}\big(f_\theta(x_\text{adv}), y\big), \qquad
    x_\text{adv} \approx \arg\max_{\lVert x' - x \rVert \le \epsilon} L\big(f_\theta(x'), y\big),

with :func:`rdc.attack.pgd` for the inner problem: it leaves an image alone that is misclassified as it is, so that the network
learns the easy images first.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
"""

__all__ = ["RECIPES", "AttackRecipe", "Recipe", "recipe_for", "reference_network", "train_reference"]

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rdc.attack import pgd
from rdc.classify.networks import CNN
from rdc.classify.reference import reference_network as reference_network
from rdc.classify.reference import save_reference
from rdc.data import Images, load
from rdc.runs.record import environment
from rdc.train.classifiers import train_classifier

#: What the header of a file says about the data it was trained on.
SOURCES = {
    "fashion-mini": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist, MIT, copyright 2017 Zalando SE",
    "digits": "Optical Recognition of Handwritten Digits, UCI, https://doi.org/10.24432/C50P49, CC BY 4.0",
}


@dataclass(frozen=True)
class AttackRecipe:
    """The attack of adversarial training, by :func:`rdc.attack.pgd` with linear steps."""

    norm: str = "Linf"  # Linf or L2
    eps: str = "8/255"  # radius, image units
    steps: int = 4  # gradient steps; the first is 4 eps / steps
    loss: str = "ce"  # what it climbs: ce or margin


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, up to rounding; it is stored with them."""

    data: str  # data set; its train split is used, all of it
    epochs: int  # passes over the images
    batch: int  # images a step
    lr: float  # first learning rate of Adam; it falls linearly to zero
    width: int  # channels of the first layer
    seed: int = 0  # owner of the first weights and of the order of the images
    attack: AttackRecipe | None = None  # none: clean images


#: By data set and kind. Tried on the last 1 000 (digits: 300) training images, without training on them, were those of digits
#: and ``at-linf`` of fashion-mini: that with 12 epochs, and a wider network with 8. The others follow without a trial.
RECIPES = {
    "fashion-mini": {
        "cnn": Recipe("fashion-mini", epochs=16, batch=128, lr=5e-3, width=16),
        "at-linf": Recipe("fashion-mini", epochs=16, batch=128, lr=5e-3, width=16, attack=AttackRecipe("Linf", "8/255")),
        "at-l2": Recipe("fashion-mini", epochs=16, batch=128, lr=5e-3, width=16, attack=AttackRecipe("L2", "1")),
    },
    "digits": {
        "cnn": Recipe("digits", epochs=30, batch=32, lr=3e-3, width=32),
        "at-linf": Recipe("digits", epochs=60, batch=32, lr=3e-3, width=32, attack=AttackRecipe("Linf", "0.15")),
        "at-l2": Recipe("digits", epochs=60, batch=32, lr=3e-3, width=32, attack=AttackRecipe("L2", "1")),
    },
}


def recipe_for(kind: str, data: str) -> Recipe:
    """Return the recipe of a shipped network.

    Arguments:
        kind: ``cnn``, ``at-linf`` or ``at-l2``.
        data: ``digits`` or ``fashion-mini``.

    Raises:
        ValueError: if there is none.
    """
    if data not in RECIPES:
        raise ValueError(f"no reference network for the data set {data!r}; there are recipes for {', '.join(RECIPES)}")
    if kind not in RECIPES[data]:
        raise ValueError(f"unknown kind of reference network {kind!r}; there are {', '.join(RECIPES[data])}")
    return RECIPES[data][kind]


def train(recipe: Recipe, images: Images, device: str | torch.device = "cpu", quiet: bool = True) -> CNN:
    """Train a network by a recipe, on images of its data set; nothing is written.

    Raises:
        ValueError: if the images do not fill one batch, or the attack is none.
    """
    attack = None if recipe.attack is None else partial(pgd, **asdict(recipe.attack), schedule="linear")
    return train_classifier(
        images, recipe.epochs, recipe.batch, recipe.lr, recipe.width, recipe.seed, device, quiet, attack=attack
    )


def train_reference(
    recipe: Recipe, out: Path, device: str | torch.device = "cpu", images: Images | None = None, quiet: bool = False
) -> Path:
    """Train a network by a recipe and write it, with recipe, time, versions, commit and source of the data.

    A run takes a few minutes and starts anew if it was killed.

    Arguments:
        recipe: What decides the weights.
        out: Path of the ``.safetensors`` file to write.
        device: Where to train.
        images: Training images; by default the train split of ``recipe.data``.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: if the images do not fill one batch, or the recipe has no attack of :func:`rdc.attack.pgd`.
    """
    images, start = load(recipe.data, "train") if images is None else images, time.monotonic()
    network = train(recipe, images, device, quiet)
    info: dict[str, Any] = {"recipe": asdict(recipe), "images": len(images), "seconds": round(time.monotonic() - start, 1)}
    info |= {"environment": environment(), "licence": "MIT", "source": SOURCES.get(recipe.data, recipe.data)}
    save_reference(out, network, recipe.data, **info)
    return out
