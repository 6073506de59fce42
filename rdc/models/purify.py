"""DiffPure in front of a network, or of the diffusion classifier."""

from typing import Literal

import torch
from torch import nn

from rdc.models.parts import Coupling, DenoiserName, Kind, Network, diffusion_classifier, find_denoiser, reference_network
from rdc.models.registry import model

Gradient = Literal["exact", "bpda", "denoise"]


@model("diffpure")
def diffpure(
    data: str,
    device: torch.device,
    *,
    gradient: Gradient = "exact",
    t: float = 0.1,
    steps: int = 10,
    sampler: Literal["ddpm", "sde"] = "ddpm",
    noise: Literal["shared", "fresh"] = "shared",
    network: Network = "cnn",
    denoiser: DenoiserName = "heads",
    unconditional: DenoiserName | None = None,
    seed: int = 0,
) -> nn.Module:
    """DiffPure (Nie et al., 2022): noise up to time t, the reverse process in some steps, then a network of the book.

    noise: shared (fixed, known to the attacker) or fresh at every call. denoiser, or unconditional in its place, is asked without
    a label. gradient: that of the purification, exact, the identity (bpda) or of one denoising step.
    """
    from rdc.defend.purify import DiffPure, Purify

    found = find_denoiser(denoiser if unconditional is None else unconditional, data, device)
    process = Purify(found, t, steps, sampler, "fixed" if noise == "shared" else noise, seed)
    return DiffPure(process, reference_network(network, data, device), gradient=gradient)


@model("diffpure-dc")
def diffpure_dc(
    data: str,
    device: torch.device,
    *,
    gradient: Gradient = "exact",
    t: float = 0.1,
    steps: int = 10,
    sampler: Literal["ddpm", "sde"] = "ddpm",
    denoiser: DenoiserName = "heads",
    unconditional: DenoiserName | None = None,
    levels: int = 8,
    kind: Kind = "elbo",
    sigma_min: float | None = 0.1,
    sigma_max: float | None = None,
    noise: Coupling = "shared",
    draws: int = 1,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """DiffPure, then the diffusion classifier.

    gradient ... sampler are those of diffpure, the others those of dc; fresh noise is fresh in both.
    """
    from rdc.defend.purify import DiffPure, Purify

    found = find_denoiser(denoiser, data, device)
    alone = found if unconditional is None else find_denoiser(unconditional, data, device)
    process = Purify(alone, t, steps, sampler, "fresh" if noise == "fresh" else "fixed", seed)
    back = diffusion_classifier(found, kind, levels, (sigma_min, sigma_max), noise, draws, seed, chunk)
    return DiffPure(process, back, gradient=gradient)
