"""The recipes of the baselines, frozen, and the run that follows one.

``rdc train classifier --recipe trades-linf --data fashion-mini`` repeats a shipped network: the same weights on the same machine,
the same up to rounding on another. Weights of losses are those of the papers, the attack is that of ``at-linf`` and ``at-l2``
(:data:`rdc.train.reference.RECIPES`). On Fashion-MNIST a network starts as that reference network, after its 16 epochs (JEM as
``cnn``), and goes on for one or two with another loss, or with other images: adversarial fine-tuning (Jeddi et al., 2020,
https://arxiv.org/abs/2012.13628), because time was short. Nothing was tried, nothing was chosen on test images.

Images of the denoiser are sampled once, by class and seed, with a flow of a few steps (:mod:`rdc.guide.sampling`); half of each
batch is theirs, as in Gowal et al. (2021), https://arxiv.org/abs/2110.09468.
"""

__all__ = ["BaselineRecipe", "generated_images", "objective_of", "recipe_for", "train", "train_baseline"]

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack import pgd
from rdc.classify.baselines import BASELINES, KIND
from rdc.classify.reference import NetworkConfig, build_network, reference_network
from rdc.data import Images, load
from rdc.denoise.checkpoints import write_checkpoint
from rdc.guide.plan import SamplingPlan, edm_path
from rdc.guide.sampling import sample
from rdc.models.parts import find_denoiser
from rdc.quantities import number
from rdc.rng import generator
from rdc.runs.record import environment
from rdc.train.denoiser import batch_indices, placed, sent
from rdc.train.jem import Langevin, jem_objective
from rdc.train.objectives import climbed, divergence, mart_loss, trades_loss
from rdc.train.reference import SOURCES, AttackRecipe

#: Beta of TRADES, lambda of MART.
WEIGHTS = {"trades": 6.0, "mart": 5.0}
#: The loss of a step, ``objective(model, x, y, step)``.
Objective = Callable[[nn.Module, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class BaselineRecipe:
    """Everything that decides the weights, up to rounding; it is stored with them."""

    data: str  # data set; its train split is used, all of it
    loss: str  # at, trades, mart or jem
    attack: AttackRecipe | None = None  # inner attack; its loss is that of the method
    epochs: int = 6  # passes over the images
    batch: int = 128  # images a step
    lr: float = 5e-3  # first learning rate of Adam; it falls linearly to zero
    width: int = 16  # of the network
    depth: int = 0  # of a wide residual network; 0: the CNN
    start: str = ""  # reference network whose weights come first; none: random ones
    weight: float = 0.0  # beta of TRADES, lambda of MART
    generated: int = 0  # images of the denoiser; half of each batch if there are any
    langevin: Langevin | None = None  # of JEM
    seed: int = 0  # owner of all random numbers


#: The balls of adversarial training, as for ``at-linf`` and ``at-l2``.
BALLS = {
    "fashion-mini": {"linf": AttackRecipe("Linf", "8/255"), "l2": AttackRecipe("L2", "1")},
    "digits": {"linf": AttackRecipe("Linf", "0.15"), "l2": AttackRecipe("L2", "1")},
}
#: By data set: what differs from the defaults, of all, of the wide network, and of the energy-based model; and generated images.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "fashion-mini": {
        "all": {"epochs": 2, "lr": 2e-3},
        "wide": {"depth": 10, "width": 2, "epochs": 8, "lr": 5e-3},
        "jem": {"epochs": 1, "lr": 1e-3, "langevin": Langevin(steps=10), "start": "cnn"},
        "generated": {"generated": 2000},
    },
    "digits": {
        "all": {"batch": 64, "lr": 5e-3},
        "wide": {"depth": 10, "width": 1},
        "jem": {"lr": 1e-3, "langevin": Langevin(steps=5, buffer=1000)},
        "generated": {"generated": 300},
    },
}


def recipe_for(kind: str, data: str) -> BaselineRecipe:
    """Return the recipe of a baseline.

    Arguments:
        kind: One of ``rdc.classify.baselines.BASELINES``.
        data: ``digits`` or ``fashion-mini``.

    Raises:
        ValueError: if there is none.
    """
    if data not in SIZES:
        raise ValueError(f"no baseline for the data set {data!r}; there are recipes for {', '.join(SIZES)}")
    if kind not in BASELINES:
        raise ValueError(f"unknown baseline {kind!r}; there are {', '.join(BASELINES)}")
    sizes, (method, norm, *more) = SIZES[data], [*kind.split("-"), ""]
    given = {"attack": BALLS[data].get(norm), "weight": WEIGHTS.get(method, 0.0), **sizes["all"]}
    given |= {"start": f"at-{norm}"} if data == "fashion-mini" and method != "wrn" and norm else {}
    given |= {"wrn": sizes["wide"], "jem": sizes["jem"]}.get(method, {})
    given |= sizes["generated"] if "generated" in more else {}
    return BaselineRecipe(data, "at" if method == "wrn" else method, **given)


def objective_of(recipe: BaselineRecipe, shape: tuple[int, ...]) -> Objective:
    """Return the loss of a step for images of a shape.

    Raises:
        ValueError: if there is no such loss, or it lacks its attack or its dynamics.
    """
    if recipe.loss == "jem" and recipe.langevin is not None:
        return jem_objective(shape, recipe.langevin, recipe.seed)
    if recipe.loss not in ("at", "trades", "mart") or recipe.attack is None:
        raise ValueError(f"no loss {recipe.loss!r} with attack {recipe.attack} and Langevin dynamics {recipe.langevin}")
    given, radius = recipe.attack, number(recipe.attack.eps, "eps")

    def moved(model: nn.Module, x: Tensor, rise: Callable[[Tensor], Tensor], step: int) -> Tensor:
        return climbed(model, x, rise, given.norm, radius, given.steps, step)

    def at(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        return F.cross_entropy(model(pgd(model, x, y, **asdict(given), schedule="linear", seed=step)), y)

    def trades(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        clean = model(x)
        return trades_loss(clean, model(moved(model, x, partial(divergence, clean.detach()), step)), y, recipe.weight)

    def mart(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        rise = partial(F.cross_entropy, target=y, reduction="none")
        return mart_loss(model(x), model(moved(model, x, rise, step)), y, recipe.weight)

    return {"at": at, "trades": trades, "mart": mart}[recipe.loss]


def generated_images(data: str, n: int, seed: int = 0, device: str | torch.device = "cpu", quiet: bool = True) -> Images:
    """Return images sampled from the shipped denoiser of a data set, classes in turn: Heun's method with 12 levels.

    Image ``i`` follows from ``(seed, i)`` alone. On one core 2 000 images of ``fashion-mini`` take minutes.
    """
    classes, place = load(data, "train").classes, torch.device(device)
    y = torch.arange(n, device=place) % len(classes)
    found = find_denoiser("single-head", data, place)
    seeds = [generator("generated", seed, i).initial_seed() for i in range(n)]
    return Images(sample(found, y, seeds, SamplingPlan(edm_path(12)), quiet=quiet).x, y, classes)


def train(
    recipe: BaselineRecipe,
    images: Images,
    device: str | torch.device = "cpu",
    quiet: bool = True,
    generated: Images | None = None,
) -> nn.Module:
    """Train a network by a recipe; nothing is written, the global random state is neither read nor changed.

    Arguments:
        recipe: What decides the weights.
        images: Training images.
        device: Where to train.
        quiet: Whether to hide the progress bars.
        generated: Images of the denoiser; by default they are sampled, if the recipe has any.

    Raises:
        ValueError: if the images do not fill one batch, or the recipe has no loss.
    """
    place, steps = torch.device(device), recipe.epochs * len(images) // recipe.batch
    if steps < 1:
        raise ValueError(f"{recipe.epochs} epochs of {len(images)} images do not fill one batch of {recipe.batch}")
    if recipe.generated and generated is None:
        generated = generated_images(recipe.data, recipe.generated, recipe.seed, place, quiet)
    network = build_network(config_of(recipe, images), recipe.seed).to(place)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster
    if recipe.start:
        network.load_state_dict(reference_network(recipe.start, recipe.data).state_dict())
    objective, sources = objective_of(recipe, tuple(images.x.shape[1:])), [images, *([generated] if generated else [])]
    sources, part = [placed(source, place) for source in sources], recipe.batch // len(sources)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    for step in tqdm(range(steps), disable=quiet, desc="train baseline", unit="step"):
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / steps)
        taken = [(s, sent(batch_indices(len(s), part, step, recipe.seed), place)) for s in sources]
        x, y = (torch.cat([getattr(s, name)[index] for s, index in taken]) for name in ("x", "y"))
        loss = objective(network, x, y, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def config_of(recipe: BaselineRecipe, images: Images) -> NetworkConfig:
    """Return the network of a recipe for some images."""
    channels, high, _ = images.x.shape[1:]
    return NetworkConfig(channels, high, len(images.classes), recipe.depth, recipe.width, recipe.data)


def train_baseline(
    recipe: BaselineRecipe,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    quiet: bool = False,
    generated: Images | None = None,
) -> Path:
    """Train a network by a recipe and write it, with recipe, time, versions, commit and source of the data.

    A run takes minutes and starts anew if it was killed. Arguments and errors are those of :func:`train`; by default the images
    are the train split of ``recipe.data``.
    """
    images, start = load(recipe.data, "train") if images is None else images, time.monotonic()
    network = train(recipe, images, device, quiet, generated)
    write_checkpoint(
        out, network.state_dict(), kind=KIND, config=asdict(config_of(recipe, images)), recipe=asdict(recipe), images=len(images),
        seconds=round(time.monotonic() - start, 1), environment=environment(), licence="MIT",
        source=SOURCES.get(recipe.data, recipe.data),
    )  # fmt: skip
    return out
