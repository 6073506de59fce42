"""What the builders of models share: training images, denoisers, reference networks, the diffusion classifier."""

__all__ = ["diffusion_classifier", "find_denoiser", "reference_network", "training_images"]

import copy
from functools import cache
from typing import Annotated, Any, Literal

import torch
from torch import nn

from rdc.data import Images

#: Kinds of levels of a clean diffusion classifier (:mod:`rdc.schedule`).
Kind = Literal["elbo", "edm", "edm-released", "vp", "vp-printed", "vp-derived"]
Coupling = Literal["shared", "per_class", "antithetic", "fresh"]
#: Name of a denoiser, for :func:`find_denoiser`.
DenoiserName = Annotated[str, "heads, single-head, optimal, a checkpoint, a .safetensors or a .pkl file"]
#: Networks that come with the book.
Network = Literal["cnn", "at-linf", "at-l2"]
#: Shipped denoisers by data set: all classes in one pass, and one class at a time.
SHIPPED = {
    "heads": {
        "digits": "digits", "fashion-mini": "fashion-mini-multihead", "fashion": "fashion-mini-multihead",
        "cifar10": "cifar10-small-multihead", "cifar10-20": "cifar10-small-multihead",
    },
    "single-head": {
        "digits": "digits", "fashion-mini": "fashion-mini", "fashion": "fashion-mini",
        "cifar10": "cifar10-small", "cifar10-20": "cifar10-small",
    },
}  # fmt: skip


def training_images(data: str, what: str) -> Images:
    """The train split of a data set.

    Raises:
        ValueError: if it has none, with one line that names what needs it.
    """
    from rdc.data import load
    from rdc.data.registry import TEST_ONLY

    if data.split(":")[0] in TEST_ONLY:
        raise ValueError(f"there is no {what} for {data}: it has no training images")
    return load(data, "train")


def find_denoiser(name: str, data: str, device: torch.device) -> Any:
    """A denoiser in float32: in bfloat16 the gradient through an optimisation is noise (:func:`rdc.door.full_precision`).

    Arguments:
        name: ``heads`` (shipped, all classes in one pass where there is such a network), ``single-head`` (shipped), ``optimal``
            (the closed form over the train split), a shipped checkpoint, a ``.safetensors`` file, those of published networks
            included, or the ``.pkl`` file of one (:mod:`rdc.denoise.published`).
        data: The data set that it must be for.
        device: Where it shall live.

    Raises:
        ValueError: if there is none for the data set, or the file is missing, damaged or for another one.
    """
    from rdc.denoise.published import load_denoiser

    if name == "optimal":
        return optimal_denoiser(data, device)
    shipped = SHIPPED.get(name)
    if shipped is not None and data not in shipped:
        raise ValueError(f"no denoiser is shipped for {data}, only for {', '.join(shipped)}; give a .safetensors file")
    return load_denoiser(name if shipped is None else shipped[data], device, torch.float32, data=data)


def optimal_denoiser(data: str, device: torch.device) -> nn.Module:
    """The optimal denoiser of the train split."""
    from rdc.denoise.optimal import OptimalDenoiser

    train = training_images(data, "optimal denoiser")
    return OptimalDenoiser(train.x, train.y).to(device)


def diffusion_classifier(
    noise_model: Any,
    kind: Kind,
    count: int,
    sigma: tuple[float | None, float | None],
    noise: str,
    draws: int,
    seed: int,
    chunk: int | None,
) -> nn.Module:
    """The diffusion classifier of a denoiser, with ``count`` levels in the range ``sigma``."""
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.schedule import levels

    chosen = levels(kind, count, sigma_min=sigma[0], sigma_max=sigma[1])
    return DiffusionClassifier(noise_model, chosen, noise=noise, seed=seed, draws=draws, chunk=chunk)


def reference_network(kind: Network, data: str, device: torch.device) -> nn.Module:
    """An undefended (``cnn``) or adversarially trained network of the book.

    Raises:
        ValueError: if the data set has none, or its file is not there; the message says what makes it.
    """
    return copy.deepcopy(_reference(kind, data)).to(device)


@cache
def _reference(kind: Network, data: str) -> nn.Module:
    """The network, read once in a process."""
    from rdc.classify.reference import reference_network

    return reference_network(kind, data)
