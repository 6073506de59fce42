"""Diffusion classifiers of clean images."""

import torch
from torch import nn

from rdc.models.parts import Coupling, DenoiserName, Kind, diffusion_classifier, find_denoiser
from rdc.models.registry import model


@model("dc")
def dc(
    data: str,
    device: torch.device,
    *,
    denoiser: DenoiserName = "heads",
    levels: int = 8,
    kind: Kind = "elbo",
    sigma_min: float | None = 0.1,
    sigma_max: float | None = None,
    noise: Coupling = "shared",
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier of Chen et al. (2024), Theorem 3.1.

    denoiser: heads (shipped, all classes in one pass), single-head (shipped), optimal, a checkpoint or a .safetensors file.
    kind, levels and sigma_min ... sigma_max (model units; none: those of the kind) choose the noise levels. draws are those of
    the noise at each level, chunk the network evaluations at a time.
    """
    found = find_denoiser(denoiser, data, device)
    return diffusion_classifier(found, kind, levels, (sigma_min, sigma_max), noise, draws, seed, chunk)


@model("dc-floor")
def dc_floor(
    data: str,
    device: torch.device,
    *,
    denoiser: DenoiserName = "heads",
    levels: int = 8,
    sigma_min: float = 1.0,
    sigma_max: float | None = None,
    noise: Coupling = "shared",
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier without its low noise levels, as chosen for Fashion-MNIST under attack (experiment floor).

    The options are those of dc; the levels are those of the likelihood bound.
    """
    found = find_denoiser(denoiser, data, device)
    return diffusion_classifier(found, "elbo", levels, (sigma_min, sigma_max), noise, draws, seed, chunk)


def of_checkpoint(
    name: str,
    data: str,
    device: torch.device,
    *,
    levels: int = 16,
    kind: Kind = "elbo",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    noise: Coupling = "shared",
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The diffusion classifier of a shipped checkpoint or a .safetensors file, by default at 16 levels of the whole range.

    The options are those of dc.
    """
    found = find_denoiser(name, data, device)
    return diffusion_classifier(found, kind, levels, (sigma_min, sigma_max), noise, draws, seed, chunk)
