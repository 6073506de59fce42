r"""Train a denoiser with the loss of Karras et al. (2022), so that it can be killed at any moment and resumed.

With :math:`\ln \sigma \sim \mathcal N(P_\text{mean}, P_\text{std}^2)` and
:math:`\lambda(\sigma) = (\sigma^2 + \sigma_d^2) / (\sigma \sigma_d)^2`,

.. math::
    \mathcal L = \mathbb E_{z, y, \sigma, \epsilon}\, \tfrac1D\, \lambda(\sigma)
    \lVert D(z + \sigma \epsilon, \sigma, y) - z \rVert^2,

evaluated in the network's own units, where every noise level has a target of unit variance. Within a batch the noise
levels are stratified (one in each quantile of the batch), and the class is dropped with a small probability, which
trains the unconditional denoiser as well.

Step ``i`` draws from generators keyed by ``(seed, i)``: a resumed run sees the same images, noise and weights, and ends
with the same bits on the same machine.

References:
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), table 1
    | https://arxiv.org/abs/2206.00364
"""

__all__ = ["TrainConfig", "edm_loss", "fit", "train_counted", "train_denoiser"]

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.data import Images, load
from rdc.denoise.base import compiled, to_model
from rdc.denoise.checkpoints import read_checkpoint, save_denoiser
from rdc.denoise.edm import EDM, EDMConfig, build, coefficients
from rdc.denoise.multihead import MultiHead
from rdc.rng import generator, rand, randn, randperm
from rdc.train.loop import KIND, begin, state_path, train_to
from rdc.train.loop import difference as difference

#: ``loss(denoiser, z, label, sigma, eps, step) -> (N,)``: what a step minimises, image by image; label -1 hides the class.
Loss = Callable[[Any, Tensor, Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of a training run; it is stored with the weights."""

    denoiser: EDMConfig = field(default_factory=EDMConfig)  # network and data set
    steps: int = 20_000  # optimiser steps
    batch: int = 128  # images a step
    lr: float = 1e-3  # peak learning rate; it warms up, then falls to zero along a cosine
    warmup: int = 500  # steps of linear warm-up
    ema: float = 0.999  # decay of the moving average of the weights
    p_mean: float = -1.2  # mean of log sigma
    p_std: float = 1.2  # standard deviation of log sigma
    label_dropout: float = 0.1  # probability of hiding the class
    precision: str = "fp32"  # fp32 or bf16 (mixed, master weights in fp32)
    seed: int = 0
    flip: bool = False  # whether half of the images are mirrored, left and right


def train_denoiser(
    config: TrainConfig,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    save_seconds: float = 60.0,
    quiet: bool = False,
    compile: bool = False,
    minutes: float | None = None,
) -> Path:
    """Train a denoiser and write its averaged weights to ``out``.

    The state of the run lies beside it as ``<out>.state`` until the run is done; the same call continues from there.

    Arguments:
        config: The recipe.
        out: Path of the ``.safetensors`` file to write.
        device: Where to train.
        images: Training images; by default the train split of ``config.denoiser.data``.
        save_seconds: Time between two saves of the state.
        quiet: Whether to hide the progress bar.
        compile: Whether to compile the network (:func:`rdc.denoise.compiled`); such a run has other bits, by rounding.
        minutes: When to stop (:func:`rdc.train.loop.train_to`).

    Raises:
        ValueError: if there is no step to take.
        CheckpointError: if ``<out>.state`` belongs to a run with another configuration.
    """
    images = load(config.denoiser.data, "train") if images is None else images
    network = replace(config.denoiser, unlabelled=config.denoiser.unet.label_dim == 0 or config.label_dropout > 0)
    run = Run(config, asdict(config), build(network, config.seed).to(device), edm_objective)
    return fit(run, out, images, save_seconds, quiet, compile, minutes)


def train_counted(
    config: TrainConfig,
    out: Path,
    images: Images,
    device: str | torch.device = "cpu",
    save_seconds: float = 60.0,
    quiet: bool = False,
    compile: bool = False,
    minutes: float | None = None,
) -> Path:
    """As :func:`train_denoiser`, and the number of images counts as part of the recipe: with another one a run does not go on.

    A state from before it was kept says nothing of it, and is believed.
    """
    network = replace(config.denoiser, unlabelled=config.denoiser.unet.label_dim == 0 or config.label_dropout > 0)
    recipe = {**asdict(config), "images": len(images)}
    if state_path(out).exists() and "images" not in read_checkpoint(state_path(out), KIND)[1]["config"]:
        del recipe["images"]
    run = Run(config, recipe, build(network, config.seed).to(device), edm_objective)
    return fit(run, out, images, save_seconds, quiet, compile, minutes)


def fit(
    run: "Run",
    out: Path,
    images: Images,
    save_seconds: float = 60.0,
    quiet: bool = False,
    compile: bool = False,
    minutes: float | None = None,
) -> Path:
    """Advance a run to its last step, saving its state beside ``out`` meanwhile, and write the averaged weights to ``out``.

    A run that stops before, after ``minutes``, writes the weights that it has, and leaves its state.
    """
    if compile:
        compiled(run.denoiser)
    state, images = run.state, placed(images, next(run.denoiser.parameters()).device)
    done = train_to(run.config.steps, state, lambda: run.advance(images), out, save_seconds, quiet, minutes=minutes)
    info = {"recipe": state.recipe, "seconds": round(state.seconds, 1), "losses": state.losses, "images": len(images)}
    save_denoiser(out, run.denoiser, state.average, **info, **({} if done else {"stopped": state.step}))
    if done:
        state_path(out).unlink(missing_ok=True)
    return out


class Run:
    """A training run of a denoiser: its recipe, its network, and its :class:`rdc.train.loop.State`.

    Arguments:
        config: The recipe.
        recipe: What is stored with the weights, and must agree when a run is continued: the recipe and whatever else decides.
        denoiser: The network in its first state.
        loss: What a step minimises.
    """

    def __init__(self, config: TrainConfig, recipe: dict[str, Any], denoiser: EDM | MultiHead, loss: Loss) -> None:
        self.config, self.denoiser, self.loss = config, denoiser, loss
        self.state = begin(denoiser.model, recipe, partial(torch.optim.Adam, lr=config.lr, betas=(0.9, 0.99)))

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.state.step

    def advance(self, images: Images) -> Tensor:
        """Take one optimiser step on images that lie where the network does; returns the loss of its batch."""
        c, device = self.config, images.x.device
        index = sent(batch_indices(len(images), c.batch, self.step, c.seed), device)
        hidden = sent(rand((c.batch,), c.seed, "hide", self.step) < c.label_dropout, device)
        z, label = to_model(images.x[index]), images.y[index].masked_fill(hidden, -1)
        if c.flip:
            mirrored = sent(rand((c.batch,), c.seed, "flip", self.step) < 0.5, device)
            z = torch.where(mirrored[:, None, None, None], z.flip(3), z)
        sigma = sent(stratified_sigma(c, self.step), device)
        eps = sent(randn(tuple(z.shape), c.seed, "noise", self.step), device)
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=c.precision == "bf16"):
            loss = self.loss(self.denoiser, z, label, sigma, eps, self.step).mean()
        return self.state.descend(loss, c.lr * schedule(self.step, c.steps, c.warmup), c.ema)


def edm_loss(denoiser: EDM, z: Tensor, label: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """``lambda(sigma) |D(z + sigma eps) - z|^2 / D`` for each image, shape ``(N,)``; ``sigma`` is ``(N, 1, 1, 1)``."""
    z_sigma = z + sigma * eps
    c_skip, c_out, c_in = coefficients(sigma, denoiser.config.sigma_data)
    target = (z - c_skip * z_sigma) / c_out
    return (denoiser.raw(c_in * z_sigma, sigma, label) - target).square().mean(dim=(1, 2, 3))


def edm_objective(denoiser: EDM, z: Tensor, label: Tensor, sigma: Tensor, eps: Tensor, step: int) -> Tensor:
    """:func:`edm_loss`, as a step of :func:`fit` calls it."""
    return edm_loss(denoiser, z, label, sigma, eps)


def stratified_sigma(config: TrainConfig, step: int) -> Tensor:
    """Log-normal noise levels ``(B, 1, 1, 1)``, one in each of B equal quantiles."""
    u = torch.rand(config.batch, generator=generator(config.seed, "sigma", step), dtype=torch.float64, device="cpu")
    quantile = (torch.arange(config.batch, device="cpu") + u) / config.batch
    log_sigma = config.p_mean + config.p_std * torch.special.ndtri(quantile.clamp(1e-9, 1 - 1e-9))
    return log_sigma.exp().float().reshape(-1, 1, 1, 1)


def batch_indices(n: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of a step's images: consecutive pieces of one permutation of the data after the other."""
    position = torch.arange(step * batch, (step + 1) * batch, device="cpu")
    index = torch.empty(batch, dtype=torch.int64, device="cpu")
    for epoch in (position // n).unique().tolist():
        here = position // n == epoch
        index[here] = randperm(n, seed, "order", epoch)[position[here] % n]
    return index


def placed(images: Images, device: torch.device) -> Images:
    """The images on a device, where training keeps all of them."""
    return Images(images.x.to(device), images.y.to(device), images.classes)


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, on its way there: neither waits for the other."""
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to zero."""
    return min((step + 1) / max(warmup, 1), 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))
