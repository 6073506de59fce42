"""Peak resident memory of the exact gradient through likelihood maximisation, and of the plain graph beside it.

``python -m benchmarks.lm_memory STEPS IMAGES FORM CHECKPOINT`` takes one gradient in a fresh process and prints
``[peak, peak before the gradient]`` in MiB. FORM is ``steps`` (each step runs again in the backward pass) or ``graph`` (autograd
keeps the graph of all steps, as a plain loop does).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import row
from benchmarks.memory import peak
from rdc.autograd import iterate, value_and_gradient
from rdc.classify import LikelihoodMaximization
from rdc.data import load
from rdc.denoise import EDM
from rdc.denoise.checkpoints import load_denoiser
from rdc.rng import randn

IMAGES, STEPS = 16, 5


def through_lm(denoiser: EDM, x: torch.Tensor, steps: int, form: str) -> torch.Tensor:
    """Gradient of a fixed linear function of the images after ``steps`` Adam steps of the released size."""
    lm = LikelihoodMaximization(denoiser, "adam", steps=steps, step_size=0.1, budget=None)
    direction = randn(tuple(x.shape[1:]), 0, "direction", like=x)

    def keep(step: Any, state: torch.Tensor, count: int, recompute: bool = True) -> torch.Tensor:
        return iterate(step, state, count, recompute=False)

    with mock.patch("rdc.defend.likelihood.iterate", keep if form == "graph" else iterate):
        return value_and_gradient(lambda p: (lm(p) * direction).flatten(1).sum(dim=1), x)[1]


def lm_memory(name: str) -> dict[str, Any]:
    """Peaks of fresh processes for one and for five steps, and for five steps with the plain graph."""
    runs = {"N = 1": (1, "steps"), f"N = {STEPS}": (STEPS, "steps"), f"N = {STEPS}, plain graph": (STEPS, "graph")}
    found, peaks, above = {}, {}, {}
    for key, (steps, form) in runs.items():
        command = [sys.executable, "-m", "benchmarks.lm_memory", str(steps), str(IMAGES), form, name]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peaks[key], before = json.loads(run.stdout)
        above[key] = peaks[key] - before
        found[f"peak memory through LM, {key}, MiB"] = row(peaks[key], above_the_model=above[key])
    one, many, plain = runs
    more = {"images_a_batch": IMAGES, "method": "adam", "dtype": "torch.float32", "device": "cpu"}
    ratio = row(peaks[many] / peaks[one], 1.1, ratio_above_the_model=above[many] / above[one], **more)
    other = row(peaks[plain] / peaks[many], ratio_above_the_model=above[plain] / above[many], **more)
    return {**found, f"peak memory through LM, {many} / {one}": ratio, f"peak memory through LM, {plain} / {many}": other}


def main() -> None:
    """Take one gradient and print the peaks."""
    steps, images, form, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    x = load("fashion-mini", "test").x[:images]
    denoiser = load_denoiser(name)
    before = peak()
    through_lm(denoiser, x, steps, form)
    print(json.dumps([peak(), before]))


if __name__ == "__main__":
    main()
