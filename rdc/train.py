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

__all__ = ["TrainConfig", "edm_loss", "fit", "train_denoiser"]

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rdc.checkpoints import CheckpointError, read_checkpoint, save_denoiser, write_checkpoint
from rdc.data import Images, load
from rdc.denoise.base import to_model
from rdc.denoise.edm import EDM, EDMConfig, build, coefficients
from rdc.denoise.multihead import MultiHead
from rdc.rng import generator, randn

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


def train_denoiser(
    config: TrainConfig,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    save_seconds: float = 60.0,
    quiet: bool = False,
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

    Raises:
        CheckpointError: if ``<out>.state`` belongs to a run with another configuration.
    """
    images = load(config.denoiser.data, "train") if images is None else images
    run = Run(config, asdict(config), build(config.denoiser, config.seed).to(device), edm_objective)
    return fit(run, out, images, save_seconds, quiet)


def fit(run: "Run", out: Path, images: Images, save_seconds: float = 60.0, quiet: bool = False) -> Path:
    """Advance a run to its last step, saving its state beside ``out`` meanwhile, and write the averaged weights to ``out``."""
    run.resume(state_path(out))
    steps = run.config.steps
    saved, clock = time.monotonic(), time.monotonic()
    with tqdm(total=steps, initial=run.step, disable=quiet, unit="step", desc=f"train {out.stem}") as bar:
        while run.step < steps:
            loss = run.advance(images)
            run.seconds += time.monotonic() - clock
            clock = time.monotonic()
            bar.update()
            if run.step % 50 == 0:
                bar.set_postfix_str(f"loss {loss:.4f}")
                run.losses.append((run.step, round(loss, 6)))
            if clock - saved > save_seconds:
                run.save(state_path(out))
                saved = clock
    info = {"recipe": run.recipe, "seconds": round(run.seconds, 1), "losses": run.losses, "images": len(images)}
    save_denoiser(out, run.denoiser, run.average, **info)
    state_path(out).unlink(missing_ok=True)
    return out


class Run:
    """Everything that changes during a training run: weights, their average, the optimiser, the step.

    Arguments:
        config: The recipe.
        recipe: What is stored with the weights, and must agree when a run is continued: the recipe and whatever else decides.
        denoiser: The network in its first state.
        loss: What a step minimises.
    """

    def __init__(self, config: TrainConfig, recipe: dict[str, Any], denoiser: EDM | MultiHead, loss: Loss) -> None:
        self.config, self.recipe, self.denoiser, self.loss = config, json.loads(json.dumps(recipe)), denoiser, loss
        self.average = {k: v.detach().clone() for k, v in self.denoiser.model.named_parameters()}
        self.trained = [(k, v) for k, v in self.denoiser.model.named_parameters() if v.requires_grad]
        self.optimizer = torch.optim.Adam([v for _, v in self.trained], lr=config.lr, betas=(0.9, 0.99))
        self.step, self.seconds, self.losses = 0, 0.0, []

    def advance(self, images: Images) -> float:
        """One optimiser step; returns the loss of its batch."""
        c, device = self.config, next(self.denoiser.parameters()).device
        index = batch_indices(len(images), c.batch, self.step, c.seed)
        z, label = to_model(images.x[index]).to(device), images.y[index]
        hidden = torch.rand(c.batch, generator=generator(c.seed, "hide", self.step)) < c.label_dropout
        label = label.masked_fill(hidden, -1).to(device)
        sigma = stratified_sigma(c, self.step).to(device)
        eps = randn(tuple(z.shape), c.seed, "noise", self.step, like=z)
        for group in self.optimizer.param_groups:
            group["lr"] = c.lr * schedule(self.step, c.steps, c.warmup)
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=c.precision == "bf16"):
            loss = self.loss(self.denoiser, z, label, sigma, eps, self.step).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        decay = min(c.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([self.average[k] for k, _ in self.trained], [p.detach() for _, p in self.trained], 1 - decay)
        self.step += 1
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write the state of the run, whole or not at all."""
        tensors = dict(self.tensors())
        write_checkpoint(
            path,
            tensors,
            kind="training state",
            config=self.recipe,
            step=self.step,
            seconds=self.seconds,
            losses=self.losses,
        )

    def resume(self, path: Path) -> None:
        """Continue from the state stored at ``path``, if there is one."""
        if not path.exists():
            return
        tensors, meta = read_checkpoint(path, "training state")
        if meta["config"] != self.recipe:
            changes = difference(meta["config"], self.recipe)
            raise CheckpointError(f"{path} is a run with another configuration ({changes}); delete it or change --out")
        self.step, self.seconds, self.losses = meta["step"], meta["seconds"], meta["losses"]
        self.prepare_optimizer()
        for name, tensor in self.tensors():
            tensor.copy_(tensors[name])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state that training changes, by name."""
        for name, parameter in self.trained:
            yield f"model.{name}", parameter.detach()
            yield f"average.{name}", self.average[name]
            for key, value in self.optimizer.state[parameter].items():
                yield f"{key}.{name}", value

    def prepare_optimizer(self) -> None:
        """Let Adam allocate its moments, so that a stored state can be copied into them."""
        for _, parameter in self.trained:
            zero = torch.zeros_like(parameter)
            self.optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": zero, "exp_avg_sq": zero.clone()}


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
    u = torch.rand(config.batch, generator=generator(config.seed, "sigma", step), dtype=torch.float64)
    quantile = (torch.arange(config.batch) + u) / config.batch
    log_sigma = config.p_mean + config.p_std * torch.special.ndtri(quantile.clamp(1e-9, 1 - 1e-9))
    return log_sigma.exp().float().reshape(-1, 1, 1, 1)


def batch_indices(n: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of a step's images: consecutive pieces of one permutation of the data after the other."""
    position = torch.arange(step * batch, (step + 1) * batch)
    index = torch.empty(batch, dtype=torch.long)
    for epoch in (position // n).unique().tolist():
        here = position // n == epoch
        index[here] = torch.randperm(n, generator=generator(seed, "order", epoch))[position[here] % n]
    return index


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to zero."""
    return min((step + 1) / max(warmup, 1), 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + ".state")


def difference(a: dict, b: dict, prefix: str = "") -> str:
    """The entries in which two nested configurations differ, as ``name: old -> new``."""
    rows = []
    for key in sorted(a.keys() | b.keys()):
        old, new = copy.copy(a.get(key)), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            rows.append(difference(old, new, f"{prefix}{key}."))
        elif old != new:
            rows.append(f"{prefix}{key}: {old} -> {new}")
    return ", ".join(r for r in rows if r)
