"""Base classifiers of randomized smoothing: noisy images, not clipped, to logits."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from rdc.models.parts import DenoiserName, Network, find_denoiser, reference_network, training_images
from rdc.models.registry import model

#: Rounds of a race that were learned, and from what.
RACE = Path(__file__).parents[1] / "assets" / "races" / "fashion-mini.json"
Weight = Literal["elbo", "edm", "edm-released"]
Form = Literal["quadrature", "fixed", "specific", "released"]
Placement = Literal["inverse", "log", "linear", "bridge"]
Noise = Literal["shared", "fixed", "fresh"]


@model("epndc", noisy=True)
def epndc(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    levels: int = 16,
    form: Form = "quadrature",
    weight: Weight = "elbo",
    coupling: Literal["shared", "per_class", "path"] = "shared",
    draws: int = 1,
    antithetic: bool = True,
    noise: Noise = "shared",
    sigma_max: float | None = None,
    placement: Placement | None = None,
    denoiser: DenoiserName = "single-head",
    sigma_data: float | None = None,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The exact-posterior noised diffusion classifier (EPNDC) of Chen et al. (2024), for noise sigma in image units.

    noise: shared (the same for every image) or fresh for every image. The other options are those of rdc.certify.noised.EPNDC,
    denoiser that of dc.
    """
    from rdc.certify.noised import EPNDC

    return EPNDC(
        find_denoiser(denoiser, data, device), sigma, count=levels, form=form, weight=weight, coupling=coupling, draws=draws,
        antithetic=antithetic, noise="fresh" if noise == "fresh" else "fixed", sigma_max=sigma_max, placement=placement,
        seed=seed, chunk=chunk, sigma_data=sigma_data,
    )  # fmt: skip


@model("apndc", noisy=True)
def apndc(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    levels: int = 16,
    variant: Literal["ensemble", "correct", "condition-on-y"] = "ensemble",
    weight: Weight = "elbo",
    released: bool = False,
    coupling: Literal["shared", "per_class"] = "shared",
    draws: int = 1,
    antithetic: bool = False,
    noise: Noise = "shared",
    sigma_max: float | None = None,
    placement: Placement | None = None,
    denoiser: DenoiserName = "single-head",
    unconditional: DenoiserName | None = None,
    sigma_data: float | None = None,
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The approximated-posterior noised diffusion classifier (APNDC) of Chen et al. (2024), for noise sigma in image units.

    unconditional: another denoiser for the one-step estimate. The other options are those of epndc and of
    rdc.certify.noised.APNDC.
    """
    from rdc.certify.noised import APNDC

    alone = None if unconditional is None else find_denoiser(unconditional, data, device)
    return APNDC(
        find_denoiser(denoiser, data, device), sigma, count=levels, variant=variant, weight=weight, released=released,
        unconditional=alone, coupling=coupling, draws=draws, antithetic=antithetic,
        noise="fresh" if noise == "fresh" else "fixed", sigma_max=sigma_max, placement=placement, seed=seed, chunk=chunk,
        sigma_data=sigma_data,
    )  # fmt: skip


@model("cohen", noisy=True)
def cohen(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    network: Annotated[str, "a file"] | None = None,
    epochs: int = 10,
    seed: int = 0,
    quiet: bool = True,
) -> nn.Module:
    """A CNN trained with noise sigma (Cohen et al., 2019).

    network is its file, by default runs/cnn-DATA-noise-SIGMA.safetensors, trained for some epochs if it is not there.
    """
    from rdc.certify.baselines import Cohen
    from rdc.train.classifiers import reference_cnn

    path = network or Path("runs", f"cnn-{data}-noise-{sigma:g}.safetensors")
    return Cohen(reference_cnn(path, training_images(data, "cohen"), data, sigma, epochs, seed, device, quiet))


@model("carlini", noisy=True)
def carlini(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    denoiser: DenoiserName = "single-head",
    unconditional: DenoiserName | None = None,
    network: Annotated[str, "one of cnn, at-linf, at-l2, or a file"] | None = None,
    epochs: int = 10,
    seed: int = 0,
    quiet: bool = True,
) -> nn.Module:
    """Denoise once, then a network for clean images (Carlini et al., 2023; denoised smoothing, Salman et al., 2020).

    network: cnn, at-linf or at-l2, or a file, by default runs/cnn-DATA.safetensors, trained for some epochs if it is not there.
    denoiser, or unconditional in its place, is asked without a label.
    """
    from rdc.certify.baselines import Carlini

    found = find_denoiser(denoiser if unconditional is None else unconditional, data, device)
    if network in get_args(Network):
        return Carlini(found, reference_network(network, data, device), sigma)  # type: ignore[arg-type]
    from rdc.train.classifiers import reference_cnn

    path = network or Path("runs", f"cnn-{data}.safetensors")
    return Carlini(found, reference_cnn(path, training_images(data, "carlini"), data, 0.0, epochs, seed, device, quiet), sigma)


@model("cascade", noisy=True)
def cascade(
    data: str,
    device: torch.device,
    *,
    sigma: float = 0.25,
    levels: int = 3,
    first: int | None = None,
    gap: float = 1.0,
    keep: int = 3,
    form: Form = "quadrature",
    antithetic: bool = True,
    fast: DenoiserName = "heads",
    slow: DenoiserName = "single-head",
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """Two EPNDC: a fast denoiser sifts the classes, a slow one judges those that are left.

    Left are at most keep classes, within gap nats of the best. fast and slow are denoisers as in dc; the fast one has first
    levels (none: as many as the slow one).
    """
    from rdc.early_exit.cascade import Cascade

    def stage(name: str, count: int) -> Any:
        return epndc(data, device, sigma=sigma, levels=count, form=form, antithetic=antithetic, denoiser=name, seed=seed,
                     chunk=chunk)  # fmt: skip

    return Cascade(stage(fast, first or levels), stage(slow, levels), gap=gap, keep=keep)


@model("race", noisy=True)
def race(
    data: str,
    device: torch.device,
    *,
    gaps: tuple[float, ...] = (3.0, 1.0, 0.8, 0.5),
    keep: tuple[int, ...] = (4, 3, 2, 2),
    chunk: int | None = None,
) -> nn.Module:
    """124 levels of EPNDC, most of them left out, for noise 0.25 on Fashion-MNIST; the first round with heads.

    gaps: how far behind the best a class stays in a round, nats; keep: how many stay at most. Levels and weights of the rounds
    were learned once; at another noise, or for other data, rounds must be learned first (rdc.early_exit.learn_rounds).
    """
    from rdc.early_exit.race import Race, Round

    if data not in ("fashion-mini", "fashion"):
        raise ValueError(f"no rounds of a race were learned for {data}, only for fashion-mini; see rdc.early_exit.learn_rounds")
    learned = json.loads(RACE.read_text(encoding="utf8"))
    rules: Any = [*zip(gaps, keep, strict=True), (0.0, 1)]
    rounds = [
        Round(tuple(one["levels"]), tuple(one["weights"]), one["carry"], *rule)
        for one, rule in zip(learned["rounds"], rules, strict=True)
    ]
    shared = {k: learned[k] for k in ("sigma", "levels", "form", "antithetic")}
    heads: Any = epndc(data, device, denoiser="heads", chunk=chunk, **shared)
    single: Any = epndc(data, device, denoiser="single-head", chunk=chunk, **shared)
    return Race(heads, single, rounds)
