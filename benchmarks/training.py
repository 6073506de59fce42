"""Training beside forward and backward of the bare network, and how often the small network of CIFAR-10 can be asked.

All timings alternate in one run; images are uniform noise, whose content costs nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import alternate, row
from benchmarks.throughput import bare
from rdc.data import Images
from rdc.denoise.checkpoints import load_denoiser
from rdc.denoise.edm import EDM, build
from rdc.rng import rand, randn
from rdc.train.denoiser import Run, TrainConfig, edm_objective

NAME = "cifar10-small"
#: Evaluations a second that two cores must reach in bfloat16.
ENOUGH = 300.0
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def training(rounds: int, device: torch.device, batch: int = 64) -> dict[str, Any]:
    """Measure evaluations a second in both precisions, and a step of training as a ratio to forward and backward alone."""
    asked = {key: bare(load_denoiser(NAME, device, dtype), batch)[0] for key, dtype in PRECISIONS.items()}
    steps = {key: pair(key, device, batch) for key in PRECISIONS}
    works: list[Callable[[], object]] = [*asked.values(), *(run for two in steps.values() for run in two)]
    times = alternate(*works, rounds=rounds)
    more = {"checkpoint": NAME, "batch": batch, "device": str(device), "threads": torch.get_num_threads()}
    found = {}
    for key, seconds in zip(asked, times, strict=False):
        limit = ENOUGH if key == "bf16" and more["threads"] >= 2 else None
        found[f"{NAME}: evaluations a second, {key}"] = row(batch / seconds, limit, at_most=False, **more)
    for i, key in enumerate(steps):
        step, alone = times[len(asked) + 2 * i :][:2]
        found[f"{NAME}: training / forward and backward, {key}"] = row(step / alone, images_a_second=batch / step, **more)
    return found


def pair(precision: str, device: torch.device, batch: int) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """A whole step of training (images drawn, noise, loss, Adam, moving average), and forward and backward of its network."""
    network = load_denoiser(NAME, device).config
    config = TrainConfig(network, batch=batch, precision=precision, flip=True)
    run = Run(config, {}, build(network).to(device), edm_objective)
    x = rand((4 * batch, *run.denoiser.shape), 0, "benchmark", like=torch.empty(0, device=device))
    images = Images(x, torch.arange(len(x), device=device) % 10, tuple(map(str, range(10))))
    return lambda: run.advance(images), alone(build(network).to(device), batch, precision)


def alone(denoiser: EDM, batch: int, precision: str) -> Callable[[], None]:
    """Forward of the raw network on a batch that is there, and backward from the mean of its squares to all weights."""
    parameter = next(denoiser.parameters())
    z = randn((batch, *denoiser.shape), 0, like=parameter)
    noise = torch.zeros(batch, device=z.device)
    label = torch.eye(denoiser.num_classes, device=z.device)[torch.arange(batch, device=z.device) % denoiser.num_classes]

    def run() -> None:
        denoiser.zero_grad(set_to_none=True)
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = denoiser.model(z, noise, label).square().mean()
        loss.backward()

    return run
