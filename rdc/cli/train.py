"""The command ``rdc train``."""

__all__ = ["train_command"]

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from tyro.conf import Positional, arg

from rdc.cli.images import read
from rdc.cli.options import Device, Quiet, pick_device, tidy, writable
from rdc.data import Images, check_name
from rdc.denoise.unet import UNetConfig
from rdc.quantities import count, number

if TYPE_CHECKING:
    from rdc.denoise.edm import EDMConfig

#: Recipes of reference networks, :data:`rdc.train.reference.RECIPES`; of CIFAR-10 :data:`rdc.train.colour.COLOUR`.
KINDS = ("cnn", "at-linf", "at-l2")
#: Those of the baselines, :func:`rdc.train.baselines.recipe_for`.
MORE = ("trades-linf", "trades-l2", "mart-linf", "mart-l2", "at-linf-generated", "at-l2-generated", "wrn-linf", "jem")


def train_command(
    what: Annotated[
        Positional[Literal["denoiser", "multihead", "classifier"]],
        arg(
            help="denoiser: a single-head network. multihead: all classes in one pass, distilled from a shipped denoiser. "
            "classifier: a time-dependent classifier for guidance, or, with one of their recipes, a reference CNN."
        ),
    ],
    data: Annotated[str | None, arg(help="Data set to train on; by default that of the recipe.")] = None,
    recipe: Annotated[
        str | None,
        arg(
            help="fashion-mini or, for denoiser and classifier, digits; by default the one for the data, else fashion-mini. "
            "For denoiser also cifar10-medium, that for cifar10 and cifar100; for denoiser and multihead cifar10-small. "
            "For classifier also the reference networks cnn, at-linf and at-l2, and the baselines " + ", ".join(MORE) + "."
        ),
    ] = None,
    out: Annotated[
        Path | None, arg(help="File to write; by default runs/<recipe or folder>.safetensors, with what it is in its name.")
    ] = None,
    threat: Annotated[
        Literal["none", "released", "paper", "image", "scaled"],
        arg(help="For classifier: radius rule of adversarial training (L2, 7 steps, early stopping); none: vanilla."),
    ] = "released",
    eps: Annotated[str, arg(help="For classifier: size of the attack, in units of the rule; a number or a fraction.")] = "0.5",
    steps: Annotated[int | None, arg(help="Optimiser steps; by default those of the recipe.")] = None,
    seed: int = 0,
    device: Device = "auto",
    threads: Annotated[int | None, arg(help="CPU threads.")] = None,
    save_seconds: Annotated[float, arg(help="Time between two saves of the state.")] = 60.0,
    compile: Annotated[
        bool, arg(help="For denoisers and networks of cifar10: compile the network; pays for long runs on a GPU.")
    ] = False,
    minutes: Annotated[
        float | None,
        arg(help="For the same: stop after that time and write what there is; the same command continues."),
    ] = None,
    teacher: Annotated[str | None, arg(help="Denoiser to follow, if not that of the recipe; cifar10-small needs one.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a denoiser or a classifier. Interrupted or killed, the same command continues where it stopped.

    A reference network or a baseline takes a few minutes and starts anew, but for those of cifar10.

    For example:
      rdc train denoiser --data fashion
      rdc train denoiser --recipe digits --out runs/digits.safetensors --steps 500
      rdc train multihead --recipe fashion-mini
      rdc train classifier --threat none
      rdc train classifier --recipe at-linf --data fashion-mini
      rdc train classifier --recipe at-linf --data cifar10 --device cuda
    """
    size, save_seconds = number(eps, "--eps", low=0), number(save_seconds, "--save-seconds", low=0)
    if threads is not None:
        torch.set_num_threads(count(threads, "--threads"))
    data = None if data is None else tidy(data)
    if data is not None:
        check_name(data)
    if what != "denoiser" and data is not None and data.startswith("folder:"):
        own = f"for images of your own: rdc train denoiser --data {data}"
        raise ValueError(f"rdc train {what} has recipes for its own data only; {own}")
    attacked = {"--threat": threat != "released", "--eps": size != 0.5}
    long = {"--compile": compile, "--minutes": minutes is not None}
    taught = {"--teacher": teacher is not None}
    if what == "classifier" and recipe in KINDS + MORE:
        refuse(recipe, taught)
        colour = data == "cifar10" and recipe in KINDS
        if steps is not None or any(attacked.values()) or (not colour and any(long.values())):
            raise ValueError(f"the recipe {recipe} fixes steps, threat and eps; leave them out, and --compile and --minutes")
        if colour:
            return train_colour_command(recipe, out, seed, device, quiet, compile, minutes, save_seconds)
        return train_reference_command(data or "fashion-mini", recipe, out, seed, device, quiet)
    if what == "classifier":
        refuse("a classifier for guidance", long | taught)
        if threat == "none" and size != 0.5:
            print("without a threat the training makes nothing of --eps; left out")
        return train_guide_command(data, recipe, out, threat, size, steps, seed, device, save_seconds, quiet)
    from rdc.train.denoiser import train_counted
    from rdc.train.heads import distil
    from rdc.train.recipes import MULTIHEAD, RECIPES, SMALLER

    heads = what == "multihead"
    distilled = MULTIHEAD if heads else SMALLER
    name = recipe or standard_recipe(what, data)
    if name not in (known := [*({} if heads else RECIPES), *distilled]):
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(known)}")
    refuse(f"the {what} {name}", attacked | ({} if name in distilled else taught))
    config = distilled[name].train if name in distilled else RECIPES[name]
    config = replace(config, seed=seed, steps=config.steps if steps is None else count(steps, "steps"))
    taught_by = teacher or distilled[name].teacher if name in distilled else ""
    if name in distilled and not taught_by:
        raise ValueError(f"the recipe {name} needs --teacher: the denoiser that it follows")
    named = data or config.denoiser.data
    path, place = target(out, f"{name}{'-multihead' * heads}", named), pick_device(device)
    images = read(named, "train")
    if heads:
        fixed(name, {each: one.train.denoiser.unet for each, one in distilled.items()}, named, images)
    elif data is not None:
        config = replace(config, denoiser=fitting(config.denoiser, images))
    config = replace(config, denoiser=replace(config.denoiser, data=named))
    if name in distilled:
        whole = replace(distilled[name], train=config, teacher=taught_by)
        path = distil(whole, path, place, images, save_seconds, quiet, compile=compile, minutes=minutes)
    else:
        path = train_counted(config, path, images, place, save_seconds, quiet, compile, minutes)
    print(f"wrote {path}")


def standard_recipe(what: str, data: str | None) -> str:
    """The recipe of a denoiser or a classifier for guidance that goes with a data set, if none is named."""
    kind, colour = (data or "").partition(":")[0], "cifar10-small" if what == "multihead" else "cifar10-medium"
    return {"digits": "digits", "cifar10": colour, "cifar100": colour}.get(kind, "fashion-mini")


def target(out: Path | None, name: str, data: str) -> Path:
    """Return the file that a training is to write, by default ``runs/NAME.safetensors``, or one named after a folder of images.

    Raises:
        ValueError: if it cannot be written, or is a checkpoint for other data.
    """
    name = Path(os.path.abspath(data.partition(":")[2])).name if data.startswith("folder:") else name
    path = writable(out or Path("runs", f"{name}.safetensors"), ".safetensors")
    if (found := data_of(path)) not in (None, data):
        raise ValueError(f"{path} is there already, a checkpoint for {found!r}, not {data!r}; give another --out")
    return path


def data_of(path: Path) -> str | None:
    """Return the data set that a checkpoint is for; None if there is none, or it does not say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            found = json.loads(file.metadata()["rdc"])["config"]["data"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def refuse(what: str, given: dict[str, bool]) -> None:
    """Raise if an option was given of which a training makes nothing."""
    if unused := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"the training of {what} makes nothing of {', '.join(unused)}; leave that out")


def fitting(denoiser: "EDMConfig", images: Images) -> "EDMConfig":
    """The configuration for other images: they decide the size of one, its channels and the classes."""
    channels, size, classes = shape_of(images)
    return replace(denoiser, unet=replace(denoiser.unet, channels=channels, resolution=size, label_dim=classes))


def fixed(name: str, known: Mapping[str, UNetConfig], data: str, images: Images, classes: int = 10) -> None:
    """Check that a recipe, whose network stays as it is, is for some images.

    Raises:
        ValueError: if it is not, with a recipe among ``known`` that is.
    """
    size = shape_of(images)
    there = [each for each, unet in known.items() if size == (unet.channels, unet.resolution, classes)]
    if name not in there:
        what = f"{size[0]} x {size[1]} x {size[1]}, {size[2]} classes"
        better = f"--recipe {there[0]} does" if there else f"of {', '.join(known)} none does"
        raise ValueError(f"the recipe {name} does not fit {data} ({what}); {better}")


def shape_of(images: Images) -> tuple[int, int, int]:
    """Channels, size and classes of images."""
    return images.x.shape[1], images.x.shape[3], len(images.classes)


def train_reference_command(
    data: str, kind: str, out: Path | None, seed: int, device: str, quiet: bool
) -> None:
    """``rdc train classifier`` with the recipe of a reference network or a baseline."""
    from rdc.train import baselines, reference

    place = pick_device(device)
    if kind in MORE:
        baseline = replace(baselines.recipe_for(kind, data), seed=seed)
        path = target(out, f"{data}-{kind}", data)
        baselines.train_baseline(baseline, path, place, None, quiet)
    else:
        recipe = replace(reference.recipe_for(kind, data), seed=seed)
        path = target(out, f"{data}-{kind}", data)
        reference.train_reference(recipe, path, place, None, quiet)
    print(f"wrote {path}")


def train_colour_command(
    kind: str,
    out: Path | None,
    seed: int,
    device: str,
    quiet: bool,
    compile: bool,
    minutes: float | None,
    save_seconds: float,
) -> None:
    """``rdc train classifier`` with the recipe of a network of CIFAR-10."""
    from rdc.train.colour import COLOUR, train_colour

    recipe, path = replace(COLOUR[kind], seed=seed), target(out, f"cifar10-{kind}", "cifar10")
    print(f"wrote {train_colour(recipe, path, pick_device(device), None, quiet, compile, minutes, save_seconds)}")


def train_guide_command(
    data: str | None,
    recipe: str | None,
    out: Path | None,
    threat: str,
    eps: float,
    steps: int | None,
    seed: int,
    device: str,
    save_seconds: float,
    quiet: bool,
) -> None:
    """``rdc train classifier``."""
    from rdc.guide.threat import Threat
    from rdc.train.guide_recipes import GUIDES
    from rdc.train.guides import train_guide

    name, which = recipe or ("digits" if data == "digits" else "fashion-mini"), "vanilla" if threat == "none" else "robust"
    if name not in GUIDES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(GUIDES)}")
    config = GUIDES[name][which]
    config = replace(config, seed=seed, steps=config.steps if steps is None else count(steps, "steps"))
    config = config if which == "vanilla" else replace(config, threat=Threat(radius=threat, eps=eps))
    named = data or config.classifier.data
    path, images = target(out, f"{name}-{which}", named), read(named, "train")
    fixed(name, {each: kinds[which].classifier.encoder for each, kinds in GUIDES.items()}, named, images)
    config = replace(config, classifier=replace(config.classifier, data=named))
    print(f"wrote {train_guide(config, path, pick_device(device), images, None, save_seconds, quiet)}")
