"""Likelihood maximisation in front of a classifier: RDC, and LM before a network."""

from typing import Annotated, Any, Literal

import torch
from torch import nn

from rdc.models.parts import Coupling, DenoiserName, Kind, Network, diffusion_classifier, find_denoiser, reference_network
from rdc.models.registry import model

Reading = Literal["released", "clamped", "printed", "mean-l1", "mi-fgsm", "expectation"]
#: What an option of the reading may be: ``preset``, that of the reading, or another one.
Preset = Literal["preset"]
Method = Literal["preset", "literal", "sign", "mean-l1", "adam", "rmsprop"]
Gradient = Annotated[str, "one of exact, bpda, denoise, transfer, smoothed, or smoothed W"]
WIDTH = 0.3  # of signs, where "smoothed" does not say


@model("rdc")
def rdc_(
    data: str,
    device: torch.device,
    *,
    lm: Reading = "released",
    gradient: Gradient = "exact",
    steps: int = 5,
    method: Method = "preset",
    step_size: float | None | Preset = "preset",
    budget: float | None | Preset = "preset",
    norm: Literal["Linf", "L2"] = "Linf",
    sigma: tuple[float, float] | Preset = "preset",
    timesteps: Literal["preset", "one", "all"] = "preset",
    count: int = 16,
    clip: Literal["preset", "each", "end"] = "preset",
    share: Literal["batch", "image"] = "batch",
    momentum: float = 1.0,
    label: int | None = None,
    lm_noise: Literal["preset", "fixed", "fresh"] = "preset",
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
    """The robust diffusion classifier (RDC) of Chen et al. (2024): likelihood maximisation, then the diffusion classifier.

    lm is a reading of Algorithm 1; method ... label and lm_noise replace parts of it (preset: as in the reading), in the units of
    rdc.defend.likelihood: step_size and sigma in model units, budget in image units. gradient: exact, bpda, denoise, smoothed W
    (blurred signs of width W, 0.3 if left out), or transfer (that of the diffusion classifier alone). unconditional: another
    denoiser for the likelihood. denoiser, levels, ... are those of dc. With noise fresh that of the likelihood is fresh, too.
    """
    found = find_denoiser(denoiser, data, device)
    back = diffusion_classifier(found, kind, levels, (sigma_min, sigma_max), noise, draws, seed, chunk)
    maximiser = likelihood(
        found if unconditional is None else find_denoiser(unconditional, data, device), lm, steps=steps, method=method,
        step_size=step_size, budget=budget, norm=norm, sigma=sigma, timesteps=timesteps, count=count, clip=clip, share=share,
        momentum=momentum, label=label, noise="fresh" if (noise, lm_noise) == ("fresh", "preset") else lm_noise, seed=seed,
    )  # fmt: skip
    return in_front(maximiser, back, gradient)


@model("lm-cnn")
def lm_cnn(
    data: str,
    device: torch.device,
    *,
    lm: Reading = "released",
    gradient: Gradient = "exact",
    steps: int = 5,
    method: Method = "preset",
    step_size: float | None | Preset = "preset",
    budget: float | None | Preset = "preset",
    norm: Literal["Linf", "L2"] = "Linf",
    sigma: tuple[float, float] | Preset = "preset",
    timesteps: Literal["preset", "one", "all"] = "preset",
    count: int = 16,
    clip: Literal["preset", "each", "end"] = "preset",
    share: Literal["batch", "image"] = "batch",
    momentum: float = 1.0,
    label: int | None = None,
    noise: Literal["preset", "shared", "fresh"] = "preset",
    denoiser: DenoiserName = "heads",
    unconditional: DenoiserName | None = None,
    seed: int = 0,
) -> nn.Module:
    """Likelihood maximisation, then the undefended CNN.

    The options are those of rdc; noise is that of the likelihood (shared: fixed).
    """
    found = find_denoiser(denoiser if unconditional is None else unconditional, data, device)
    maximiser = likelihood(
        found, lm, steps=steps, method=method, step_size=step_size, budget=budget, norm=norm, sigma=sigma, timesteps=timesteps,
        count=count, clip=clip, share=share, momentum=momentum, label=label, noise="fixed" if noise == "shared" else noise,
        seed=seed,
    )  # fmt: skip
    return in_front(maximiser, reference_network("cnn", data, device), gradient)


@model("lm-at")
def lm_at(
    data: str,
    device: torch.device,
    *,
    network: Network = "at-linf",
    lm: Reading = "released",
    gradient: Gradient = "exact",
    steps: int = 5,
    method: Method = "preset",
    step_size: float | None | Preset = "preset",
    budget: float | None | Preset = "preset",
    norm: Literal["Linf", "L2"] = "Linf",
    sigma: tuple[float, float] | Preset = "preset",
    timesteps: Literal["preset", "one", "all"] = "preset",
    count: int = 16,
    clip: Literal["preset", "each", "end"] = "preset",
    share: Literal["batch", "image"] = "batch",
    momentum: float = 1.0,
    label: int | None = None,
    noise: Literal["preset", "shared", "fresh"] = "preset",
    denoiser: DenoiserName = "heads",
    unconditional: DenoiserName | None = None,
    seed: int = 0,
) -> nn.Module:
    """Likelihood maximisation, then an adversarially trained CNN.

    The options are those of rdc; noise is that of the likelihood (shared: fixed).
    """
    found = find_denoiser(denoiser if unconditional is None else unconditional, data, device)
    maximiser = likelihood(
        found, lm, steps=steps, method=method, step_size=step_size, budget=budget, norm=norm, sigma=sigma, timesteps=timesteps,
        count=count, clip=clip, share=share, momentum=momentum, label=label, noise="fixed" if noise == "shared" else noise,
        seed=seed,
    )  # fmt: skip
    return in_front(maximiser, reference_network(network, data, device), gradient)


def likelihood(noise_model: Any, reading: str, **changes: Any) -> Any:
    """Likelihood maximisation in a published reading, but for the arguments in ``changes`` that are not ``preset``."""
    from rdc.defend.likelihood import READINGS, LikelihoodMaximization

    return LikelihoodMaximization(noise_model, **READINGS[reading] | {k: v for k, v in changes.items() if v != "preset"})


def in_front(maximiser: Any, classifier: nn.Module, gradient: str) -> nn.Module:
    """The classifier behind likelihood maximisation, with a gradient by name.

    Raises:
        ValueError: on an unknown gradient.
    """
    from rdc.defend.likelihood import RDC

    if gradient == "transfer":
        from rdc.defend.transfer import Transfer

        return Transfer(RDC(maximiser, classifier), classifier)
    if (width := width_of(gradient)) is not None:
        return RDC(maximiser.smoothed(width), classifier, gradient="exact")
    if gradient == "denoise":
        from rdc.defend.preprocessed import one_denoising_step

        level = 0.5 if not isinstance(maximiser.sigma, tuple) else sum(maximiser.sigma) / 2
        return RDC(maximiser, classifier, "denoise", one_denoising_step(maximiser.denoiser, level))
    if gradient not in ("exact", "bpda"):
        raise ValueError(f"gradient must be one of exact, bpda, denoise, transfer, smoothed, or smoothed W, got {gradient!r}")
    return RDC(maximiser, classifier, gradient=gradient)


def width_of(gradient: str) -> float | None:
    """The width in ``smoothed`` or ``smoothed W``; None for another gradient."""
    from rdc.quantities import number

    word, *rest = gradient.replace(":", " ").split()
    if word != "smoothed" or len(rest) > 1:
        return None
    return number(rest[0], "the width of the smoothed gradient", low=0) if rest else WIDTH
