"""The command ``rdc train``."""

__all__ = ["train_command"]

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from tyro.conf import Positional, arg

from rdc.cli.options import Device, Quiet, pick_device
from rdc.quantities import count

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
            "For denoiser also cifar10-medium, for denoiser and multihead cifar10-small. "
            "For classifier also the reference networks cnn, at-linf and at-l2, and the baselines " + ", ".join(MORE) + "."
        ),
    ] = None,
    out: Annotated[
        Path | None, arg(help="File to write; by default runs/<recipe>.safetensors, with what it is in its name.")
    ] = None,
    threat: Annotated[
        Literal["none", "released", "paper", "image", "scaled"],
        arg(help="For classifier: radius rule of adversarial training (L2, 7 steps, early stopping); none: vanilla."),
    ] = "released",
    eps: Annotated[float, arg(help="For classifier: size of the attack, in the units of the rule.")] = 0.5,
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
    attacked = {"--threat": threat != "released", "--eps": eps != 0.5}
    long = {"--compile": compile, "--minutes": minutes is not None}
    taught = {"--teacher": teacher is not None}
    if what == "classifier" and recipe in KINDS + MORE:
        refuse(recipe, taught)
        colour = data == "cifar10" and recipe in KINDS
        if steps is not None or any(attacked.values()) or (not colour and any(long.values())):
            raise ValueError(f"the recipe {recipe} fixes steps, threat and eps; leave them out, and --compile and --minutes")
        if colour:
            return train_colour_command(recipe, out, seed, device, threads, quiet, compile, minutes, save_seconds)
        return train_reference_command(data or "fashion-mini", recipe, out, seed, device, threads, quiet)
    if what == "classifier":
        refuse("a classifier for guidance", long | taught)
        if threat == "none" and eps != 0.5:
            print("without a threat the training makes nothing of --eps; left out")
        return train_guide_command(data, recipe, out, threat, eps, steps, seed, device, threads, save_seconds, quiet)
    from rdc.train import train_denoiser
    from rdc.train.heads import distil
    from rdc.train.recipes import MULTIHEAD, RECIPES, SMALLER

    heads = what == "multihead"
    distilled = MULTIHEAD if heads else SMALLER
    name = recipe or ("digits" if data == "digits" else "fashion-mini")
    if name not in (known := [*({} if heads else RECIPES), *distilled]):
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(known)}")
    refuse(f"the {what} {name}", attacked | ({} if name in distilled else taught))
    config = distilled[name].train if name in distilled else RECIPES[name]
    if data is not None:
        config = replace(config, denoiser=fitting(config.denoiser, data))
    config = replace(config, seed=seed, steps=config.steps if steps is None else count(steps, "steps"))
    if threads:
        torch.set_num_threads(threads)
    path, place = out or Path("runs", f"{name}{'-multihead' * heads}.safetensors"), pick_device(device)
    if name in distilled:
        whole = replace(distilled[name], train=config, teacher=teacher or distilled[name].teacher)
        if not whole.teacher:
            raise ValueError(f"the recipe {name} needs --teacher: the denoiser that it follows")
        path = distil(whole, path, place, None, save_seconds, quiet, compile=compile, minutes=minutes)
    else:
        path = train_denoiser(config, path, place, None, save_seconds, quiet, compile, minutes)
    print(f"wrote {path}")


def refuse(what: str, given: dict[str, bool]) -> None:
    """Raise if an option was given of which a training makes nothing."""
    if unused := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"the training of {what} makes nothing of {', '.join(unused)}; leave that out")


def fitting(denoiser: "EDMConfig", data: str) -> "EDMConfig":
    """The configuration for other data; a reader's own images decide the size of an image, its channels and the classes."""
    if not data.startswith("folder:"):
        return replace(denoiser, data=data)
    from rdc.data import load

    images = load(data, "train")
    _, channels, size, _ = images.x.shape
    unet = replace(denoiser.unet, channels=channels, resolution=size, label_dim=len(images.classes))
    return replace(denoiser, data=data, unet=unet)


def train_reference_command(
    data: str, kind: str, out: Path | None, seed: int, device: str, threads: int | None, quiet: bool
) -> None:
    """``rdc train classifier`` with the recipe of a reference network or a baseline."""
    from rdc.train import baselines, reference

    if threads:
        torch.set_num_threads(threads)
    path, place = out or Path("runs", f"{data}-{kind}.safetensors"), pick_device(device)
    if kind in MORE:
        baselines.train_baseline(replace(baselines.recipe_for(kind, data), seed=seed), path, place, None, quiet)
    else:
        reference.train_reference(replace(reference.recipe_for(kind, data), seed=seed), path, place, None, quiet)
    print(f"wrote {path}")


def train_colour_command(
    kind: str,
    out: Path | None,
    seed: int,
    device: str,
    threads: int | None,
    quiet: bool,
    compile: bool,
    minutes: float | None,
    save_seconds: float,
) -> None:
    """``rdc train classifier`` with the recipe of a network of CIFAR-10."""
    from rdc.train.colour import COLOUR, train_colour

    if threads:
        torch.set_num_threads(threads)
    recipe, path = replace(COLOUR[kind], seed=seed), out or Path("runs", f"cifar10-{kind}.safetensors")
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
    threads: int | None,
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
    if data is not None:
        config = replace(config, classifier=replace(config.classifier, data=data))
    config = replace(config, seed=seed, steps=config.steps if steps is None else count(steps, "steps"))
    config = config if which == "vanilla" else replace(config, threat=Threat(radius=threat, eps=eps))
    if threads:
        torch.set_num_threads(threads)
    path = out or Path("runs", f"{name}-{which}.safetensors")
    print(f"wrote {train_guide(config, path, pick_device(device), None, None, save_seconds, quiet)}")
