"""The command ``rdc train``."""

__all__ = ["train_command"]

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from rdc.cli.options import Device, Quiet, pick_device


def train_command(
    what: Annotated[
        Positional[Literal["denoiser", "multihead"]],
        arg(help="denoiser: a single-head network. multihead: all classes in one pass, distilled from a shipped denoiser."),
    ],
    data: Annotated[str | None, arg(help="Data set to train on; by default that of the recipe.")] = None,
    recipe: Annotated[
        str | None, arg(help="fashion-mini or, for denoiser, digits; by default the one for the data, else fashion-mini.")
    ] = None,
    out: Annotated[
        Path | None, arg(help="File to write; by default runs/<recipe>.safetensors, or runs/<recipe>-multihead.safetensors.")
    ] = None,
    steps: Annotated[int | None, arg(help="Optimiser steps; by default those of the recipe.")] = None,
    seed: int = 0,
    device: Device = "auto",
    threads: Annotated[int | None, arg(help="CPU threads.")] = None,
    save_seconds: Annotated[float, arg(help="Time between two saves of the state.")] = 60.0,
    quiet: Quiet = False,
) -> None:
    """Train a denoiser. Interrupted or killed, the same command continues where it stopped.

    For example:
      rdc train denoiser --data fashion
      rdc train denoiser --recipe digits --out runs/digits.safetensors --steps 500
      rdc train multihead --recipe fashion-mini
    """
    from rdc.distil import distil
    from rdc.recipes import MULTIHEAD, RECIPES
    from rdc.train import train_denoiser

    heads = what == "multihead"
    recipes = MULTIHEAD if heads else RECIPES
    name = recipe or ("digits" if data == "digits" else "fashion-mini")
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(recipes)}")
    config = MULTIHEAD[name].train if heads else RECIPES[name]
    if data is not None:
        config = replace(config, denoiser=replace(config.denoiser, data=data))
    config = replace(config, seed=seed, steps=config.steps if steps is None else steps)
    if threads:
        torch.set_num_threads(threads)
    path, place = out or Path("runs", f"{name}{'-multihead' * heads}.safetensors"), pick_device(device)
    if heads:
        path = distil(replace(MULTIHEAD[name], train=config), path, place, None, save_seconds, quiet)
    else:
        path = train_denoiser(config, path, place, None, save_seconds, quiet)
    print(f"wrote {path}")
