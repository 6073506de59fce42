"""Models that are one network, and those that look at the training images only."""

from typing import Literal

import torch
from torch import nn

from rdc.models.parts import Kind, reference_network, training_images
from rdc.models.registry import model


@model("cnn")
def cnn(data: str, device: torch.device) -> nn.Module:
    """The undefended CNN of the book."""
    return reference_network("cnn", data, device)


@model("at-linf")
def at_linf(data: str, device: torch.device) -> nn.Module:
    """The CNN, adversarially trained in an Linf ball."""
    return reference_network("at-linf", data, device)


@model("at-l2")
def at_l2(data: str, device: torch.device) -> nn.Module:
    """The CNN, adversarially trained in an L2 ball."""
    return reference_network("at-l2", data, device)


@model("resnet18")
def resnet18(data: str, device: torch.device) -> nn.Module:
    """The undefended ResNet-18 for CIFAR-10 that comes with pyautoattack; for cifar10-20 only."""
    from rdc.classify.networks import cifar10_resnet18

    if data != "cifar10-20":
        raise ValueError(f"resnet18 is a network for cifar10-20, not for {data}; there is 'cnn'")
    return cifar10_resnet18().to(device)


@model("1-nn")
def one_nn(data: str, device: torch.device, *, chunk: int = 64) -> nn.Module:
    """The nearest training image of each class; chunk is the number of images at a time."""
    from rdc.classify.optimal import NearestNeighbor

    train = training_images(data, "1-nn")
    return NearestNeighbor(train.x, train.y, chunk).to(device)


@model("optimal")
def optimal(
    data: str,
    device: torch.device,
    *,
    levels: int = 16,
    kind: Kind = "elbo",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    draws: int = 8,
    nodes: int = 16,
    seed: int = 0,
) -> nn.Module:
    """The diffusion classifier of the optimal denoiser of the train split, in closed form.

    kind, levels and sigma_min ... sigma_max (model units; none: those of the kind) choose the noise levels, of which at most
    nodes are evaluated; draws is even.
    """
    from rdc.classify.optimal import OptimalClassifier
    from rdc.schedule import levels as levels_of

    train, chosen = training_images(data, "optimal"), levels_of(kind, levels, sigma_min=sigma_min, sigma_max=sigma_max)
    return OptimalClassifier(train.x, train.y, chosen, seed=seed, draws=draws, nodes=nodes).to(device)


@model("optimal-released")
def optimal_released(
    data: str,
    device: torch.device,
    *,
    levels: int = 100,
    divisor: Literal["sigma", "variance"] = "sigma",
    square: Literal["each", "sum"] = "each",
    units: Literal["image", "model"] = "image",
    seed: int = 0,
    chunk: int | None = None,
) -> nn.Module:
    """The formula of the released code for the optimal classifier, which differs from the theorem in three places.

    divisor, square and units (variance, sum, model) switch each of them to the theorem. chunk: images at a time (none: the
    device decides).
    """
    from rdc.classify.optimal import ReleasedOptimalClassifier

    train, size = training_images(data, "optimal-released"), (8 if device.type == "cpu" else 128) if chunk is None else chunk
    found = ReleasedOptimalClassifier(train.x, train.y, levels, seed, size, divisor, square, units)
    return found.to(device)
