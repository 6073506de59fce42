"""Diffusion classifiers that are compared with each other: by how their network was trained, by weights, by time steps."""

import copy
from typing import Annotated, Literal

import torch
from torch import nn

from rdc.models.parts import DenoiserName, diffusion_classifier, find_denoiser
from rdc.models.registry import model

#: Those of :func:`rdc.classify.weightings.weightings`.
Weighting = Literal[
    "ELBO (main)", "ELBO, with the lower levels", "EDM", "EDM, up to 3", "EDM as released", "VP, w = 1", "VP, w printed",
    "VP, w derived",
]  # fmt: skip


@model("dc-trained")
def dc_trained(
    data: str,
    device: torch.device,
    *,
    recipe: Annotated[str, "a name of rdc.train.comparisons"] = "patch 4, width 64",
    steps: int | None = None,
    levels: int = 4,
    sigma_min: float | None = 0.1,
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier of a network that is trained on the spot, by a recipe that exists for comparisons.

    steps: optimiser steps (none: those of the recipe). levels, sigma_min, ... are those of dc.
    """
    from rdc.train.comparisons import trained

    network = copy.deepcopy(trained(recipe, data, steps, device))
    return diffusion_classifier(network, "elbo", levels, (sigma_min, None), "shared", draws, seed, chunk)


@model("dc-weighted")
def dc_weighted(
    data: str,
    device: torch.device,
    *,
    weighting: Weighting = "ELBO (main)",
    levels: int = 16,
    denoiser: DenoiserName = "single-head",
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier on one grid of noise levels, whatever its weights: all weightings see the same losses.

    The grid is that of dc with so many levels, and the levels below them down to 0.01.
    """
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.classify.weightings import weightings
    from rdc.schedule import Levels

    grid, weights = weightings(levels)
    return DiffusionClassifier(find_denoiser(denoiser, data, device), Levels(grid, weights[weighting]), seed=seed, chunk=chunk)


@model("dc-first")
def dc_first(
    data: str,
    device: torch.device,
    *,
    levels: int = 8,
    denoiser: DenoiserName = "single-head",
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier on the first time steps of VP, with weight one; dc with kind vp has them spread over all steps."""
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.schedule import levels as levels_of

    return DiffusionClassifier(find_denoiser(denoiser, data, device), levels_of("vp", levels, "first"), seed=seed, chunk=chunk)


@model("dc-mean")
def dc_mean(
    data: str,
    device: torch.device,
    *,
    denoiser: DenoiserName = "heads",
    levels: int = 8,
    sigma_min: float | None = 0.1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier with the mean over pixels in the place of the sum, as in the released code.

    The logits are those of dc, whose options these are, divided by the number of pixels: the same decisions.
    """
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.schedule import levels as levels_of

    chosen = levels_of("elbo", levels, sigma_min=sigma_min)
    return DiffusionClassifier(find_denoiser(denoiser, data, device), chosen, reduce="mean", seed=seed, chunk=chunk)


@model("sbgc")
def sbgc(
    data: str,
    device: torch.device,
    *,
    denoiser: DenoiserName = "single-head",
    steps: int = 8,
    sigma_min: float = 0.1,
    sigma_max: float = 80.0,
    draws: int = 1,
    seed: int = 0,
    chunk: int = 16,
) -> nn.Module:
    """The score-based generative classifier of Zimmermann et al. (2021): the likelihood of each class by the probability flow.

    steps of Heun from sigma_min to sigma_max (model units); draws of the random signs that estimate the divergence (0: exact);
    chunk is the number of images at a time. In float32: log-likelihoods are differences of large numbers.
    """
    from rdc.classify.flow import FlowClassifier, flow_grid

    network = copy.deepcopy(find_denoiser(denoiser, data, device)).float()
    return FlowClassifier(network, flow_grid(steps, sigma_min, sigma_max), draws, seed, chunk)
