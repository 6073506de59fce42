"""The task *heads*: how well does a network denoise, and how alike are its answers for different classes?"""

__all__ = ["SIGMAS", "heads", "mean_cosine", "roots", "toy", "weights"]

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.rng import randn, randperm
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack

SIGMAS = (0.2, 0.5, 1.0, 2.0, 5.0)  # where the answers are compared, model units
FEW, TRAIN = 100, 200  # test images on which they are, and training images that are classified


def heads(cell: Cell, device: str = "cpu") -> Outcome:
    """Compare the answers of a network for the classes, on the images of a cell, with those of the network that is shipped.

    Means: ``validation loss``; by noise level ``cosine of D`` and ``cosine of differences`` between two classes, and ``error of
    differences``, the squared error relative to the shipped network. The differences are those to the answer without a class.
    The count ``train`` is how many of 200 training images the classifier gets right.
    """
    from rdc.data import load
    from rdc.denoise.base import to_model
    from rdc.denoise.checkpoints import load_denoiser
    from rdc.evaluate import accuracy
    from rdc.models.parts import SHIPPED
    from rdc.train.comparisons import trained

    row, options = cell.row, cell.row.options
    x, y, _ = attack.test_images(row.data, cell.start, cell.stop, device)
    shipped: Any = load_denoiser(SHIPPED["single-head"][row.data], device)
    network: Any = trained(options["recipe"], row.data, options.get("steps"), device) if "recipe" in options else shipped
    z = to_model(x)
    means = {"validation loss": validation_loss(network, z, y, row.seed)}
    for sigma in SIGMAS:
        (own, difference), (_, wanted) = (answers(net, z[:FEW], sigma, row.seed) for net in (network, shipped))
        means[f"cosine of D, sigma {sigma:g}"] = mean_cosine(own)
        means[f"cosine of differences, sigma {sigma:g}"] = mean_cosine(difference)
        means[f"error of differences, sigma {sigma:g}"] = float((difference - wanted).square().mean() / wanted.square().mean())
    train = load(row.data, "train")[: min(TRAIN, len(cell))]
    model = attack.made(row.model, row.data, device, attack.key(options))
    right = accuracy(model, train.x.to(device), train.y.to(device)).correct
    return Outcome({}, means, {"train": right, "parameters": sum(p.numel() for p in network.parameters())})


@torch.no_grad()
def validation_loss(network: Any, z: Tensor, y: Tensor, seed: int, draws: int = 4) -> float:
    """Return ``lambda(sigma) |D(z_sigma, sigma, y) - z|^2 / D``, averaged over the noise levels of training."""
    from rdc.schedule import edm_lambda
    from rdc.train.denoiser import stratified_sigma
    from rdc.train.recipes import RECIPES

    config, losses = replace(RECIPES["digits"], batch=len(z)), []
    for draw in range(draws):
        sigma = stratified_sigma(config, draw)[randperm(len(z), seed, "levels", draw)].to(z)
        error = network(z + sigma * randn(tuple(z.shape), seed, "validation", draw, like=z), sigma.flatten(), y) - z
        losses.append((edm_lambda(sigma, network.config.sigma_data) * error.square()).mean())
    return float(torch.stack(losses).mean())


@torch.no_grad()
def answers(network: Any, z: Tensor, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``D(z_sigma, sigma, k)`` for every class, and its difference to the answer without one, ``(N, K, D)`` each."""
    z_sigma = z + sigma * randn(tuple(z.shape), seed, "heads", str(sigma), like=z)
    every, free = network.all_classes(z_sigma, sigma), network(z_sigma, sigma)
    return every.flatten(2), (every - free[:, None]).flatten(2)


def mean_cosine(v: Tensor) -> float:
    """Return the mean cosine over images and pairs of classes, of ``(N, K, ...)``."""
    unit, k = F.normalize(v.flatten(2).double(), dim=2), v.shape[1]
    return float(((unit.sum(1).square().sum(1) - k) / (k * (k - 1))).mean())


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builder of its model."""
    return [attack.builder(row.model)]


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name: of its model, and of the shipped network beside it."""
    return {**attack.weights(row), **attack.weights(Row("dc", {"denoiser": "single-head"}, data=row.data))}


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    return attack.toy(row)
