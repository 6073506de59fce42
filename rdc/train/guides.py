r"""Train a time-dependent classifier, vanilla or robust, so that it can be killed at any moment and resumed.

.. math:: \min_\phi\; \mathbb E_{(z, y), \sigma, \epsilon}\, \mathcal L_{CE}\big( h_\phi(A(z + \sigma \epsilon, \phi), \sigma),
    y \big) \qquad \text{(Eq. 5)}

with the attack A of :mod:`rdc.guide.threat`, or none. Noise levels are log-normal and stratified, one in each quantile of the
batch, as for the denoiser (:mod:`rdc.train`); the paper draws the time uniformly from the 1 000 steps of its schedule.

Step ``i`` draws from generators keyed by ``(seed, i)``: a resumed run sees the same images and noise and ends with the same bits
on the same machine. Beside the weights lies ``<name>.json``, the training curve: the loss, and from time to time the accuracy on
held-out images at several noise levels, clean and under attack.

References:
    | Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance (Kawar et al., 2022), Eq. 5
    | https://arxiv.org/abs/2208.08664
    | Decoupled Weight Decay Regularization (Loshchilov and Hutter, 2019), https://arxiv.org/abs/1711.05101
"""

__all__ = ["GuideConfig", "train_guide"]

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.data import Images, load
from rdc.denoise.base import to_model
from rdc.guide.classifier import ClassifierConfig, TimeClassifier, build_classifier, save_classifier
from rdc.guide.threat import Threat, level_table, perturb
from rdc.rng import randn
from rdc.runs.record import write_atomic
from rdc.train.denoiser import TrainConfig, batch_indices, placed, schedule, sent, stratified_sigma
from rdc.train.loop import begin, state_path, train_to


@dataclass(frozen=True)
class GuideConfig:
    """Recipe of a classifier; it is stored with the weights."""

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)  # network and data set
    threat: Threat | None = None  # the attack of robust training; None: vanilla
    steps: int = 5_000  # optimiser steps
    batch: int = 128  # images a step
    lr: float = 1e-3  # peak learning rate of AdamW; it warms up, then falls to zero along a cosine
    warmup: int = 200  # steps of linear warm-up
    weight_decay: float = 0.05
    ema: float = 0.999  # decay of the moving average of the weights
    p_mean: float = -0.2  # mean of log sigma
    p_std: float = 1.4  # standard deviation of log sigma
    precision: str = "fp32"  # fp32 or bf16 (mixed, master weights in fp32)
    seed: int = 0
    probe: Threat = field(default_factory=Threat)  # the attack of the curve
    probe_every: int = 500  # steps between two measurements
    probe_levels: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)  # their noise levels


def train_guide(
    config: GuideConfig,
    out: Path,
    device: str | torch.device = "cpu",
    images: Images | None = None,
    held_out: Images | None = None,
    save_seconds: float = 60.0,
    quiet: bool = False,
) -> Path:
    """Train a classifier and write its averaged weights to ``out`` and the training curve to ``<out>`` with suffix ``.json``.

    The state of the run lies beside them as ``<out>.state`` until the run is done; the same call continues from there.

    Arguments:
        config: The recipe.
        out: Path of the ``.safetensors`` file to write.
        device: Where to train.
        images: Training images; by default the train split of ``config.classifier.data``.
        held_out: Images of the curve; by default the first 200 of the test split.
        save_seconds: Time between two saves of the state.
        quiet: Whether to hide the progress bar.

    Raises:
        CheckpointError: if ``<out>.state`` belongs to a run with another configuration.
    """
    data = config.classifier.data
    images = load(data, "train") if images is None else images
    held_out = load(data, "test")[:200] if held_out is None else held_out
    run = Fit(config, build_classifier(config.classifier, config.seed).to(device))
    state, images = run.state, placed(images, torch.device(device))
    train_to(config.steps, state, lambda: run.advance(images), out, save_seconds, quiet, lambda: run.measure(held_out))
    info = {"recipe": state.recipe, "seconds": round(state.seconds, 1), "losses": state.losses, "curve": state.more["curve"]}
    write_atomic(out.with_suffix(".json"), (json.dumps(info, indent=1) + "\n").encode())
    save_classifier(out, run.classifier, state.average, images=len(images), **info)
    state_path(out).unlink(missing_ok=True)
    return out


class Fit:
    """A training run of a classifier: its recipe, its network, and its state, the curve included."""

    def __init__(self, config: GuideConfig, classifier: TimeClassifier) -> None:
        self.config, self.classifier = config, classifier
        optimizer = partial(torch.optim.AdamW, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        self.state = begin(classifier.model, asdict(config), optimizer, curve=[])

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.state.step

    def advance(self, images: Images) -> Tensor:
        """Take one optimiser step on images that lie where the network does; returns the loss of its batch."""
        c, device = self.config, images.x.device
        index = sent(batch_indices(len(images), c.batch, self.step, c.seed), device)
        z, y = to_model(images.x[index]), images.y[index]
        levels = TrainConfig(batch=c.batch, seed=c.seed, p_mean=c.p_mean, p_std=c.p_std)
        sigma = sent(stratified_sigma(levels, self.step), device)
        z, sigma = z + sigma * randn(tuple(z.shape), c.seed, "noise", self.step, like=z), sigma.flatten()
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=c.precision == "bf16"):
            z = z if c.threat is None else perturb(self.classifier, z, sigma, y, c.threat)
            loss = F.cross_entropy(self.classifier(z, sigma).float(), y)
        return self.state.descend(loss, c.lr * schedule(self.step, c.steps, c.warmup), c.ema)

    def measure(self, held_out: Images) -> None:
        """Add to the curve where a measurement is due."""
        if self.step % self.config.probe_every == 0 or self.step == self.config.steps:
            self.state.more["curve"].append({"step": self.step, "levels": self.probe(held_out)})

    def probe(self, held_out: Images) -> list[dict[str, Any]]:
        """The table of the averaged weights at this step."""
        c, device = self.config, next(self.classifier.parameters()).device
        frozen = build_classifier(c.classifier).to(device).eval().requires_grad_(False)
        frozen.model.load_state_dict(self.state.average)
        return level_table(frozen, held_out, c.probe_levels, c.probe, c.seed, device=device)
