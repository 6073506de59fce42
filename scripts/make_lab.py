"""Write _static/lab/digits.js, what the laboratory in the browser computes with: stored digits, test digits, and fixed noise.

Bytes are in base 64: pixels as they are stored (0 to 16), noise as float32, little-endian.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rdc.attack.norms import random_start
from rdc.data import load
from rdc.noise_source import Noise, likelihood_generator, likelihood_noise
from rdc.schedule import levels

SCRIPT = Path(__file__).parents[1] / "_static" / "lab" / "digits.js"
SCALE, SHAPE, SEED, STEPS, TESTS = 16, (1, 8, 8), 0, 5, 20
LEVELS = levels("elbo", 8, sigma_min=0.1)  # of the diffusion classifier, as in rdc.models.build("dc")
RANGE = (0.4, 0.6)  # of the noise level of likelihood maximisation, as released
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49, licence CC BY 4.0, https://creativecommons.org/licenses/by/4.0/. "
    "The images are the training split of the package rdc and the first images of its test split; the pixels are unchanged."
)


def text(values: Tensor, dtype: torch.dtype) -> str:
    """The bytes of a tensor in base 64."""
    return base64.b64encode(values.to(dtype).contiguous().numpy().tobytes()).decode()


def likelihood_sigma(step: int) -> float:
    """The noise level of a step of likelihood maximisation with fixed noise."""
    u = torch.rand((), generator=likelihood_generator(SEED, 0, step), dtype=torch.float64)
    return float(RANGE[0] + (RANGE[1] - RANGE[0]) * u)


def contents() -> dict[str, Any]:
    """What the script holds."""
    train, test = load("digits", "train"), load("digits", "test")[:TESTS]
    pixels = (train.x * SCALE).to(torch.uint8)
    half = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    return {
        "source": SOURCE,
        "sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "side": SHAPE[1],
        "scale": SCALE,
        "images": text(pixels, torch.uint8),
        "labels": "".join(map(str, train.y.tolist())),
        "test": {"images": text(test.x * SCALE, torch.uint8), "labels": "".join(map(str, test.y.tolist()))},
        "levels": {
            "sigma": LEVELS.sigma.tolist(),
            "weight": LEVELS.weight.tolist(),
            "eps": text(Noise(SEED).table(SHAPE, [(0,)], range(len(LEVELS)), 1), torch.float32),
        },
        "likelihood": {
            "sigma": [likelihood_sigma(n) for n in range(STEPS)],
            "eps": text(torch.stack([likelihood_noise(SHAPE, SEED, 0, n) for n in range(STEPS)]), torch.float32),
        },
        "start": text(2 * random_start(half, "Linf", 0.5, torch.tensor([0]), SEED, 0) - 1, torch.float32),
    }


def script() -> str:
    """The text of the file."""
    head = '// Made by scripts/make_lab.py. Digits and noise for mathematics.js; source and licence stand inside.\n"use strict";'
    tail = 'if (typeof module === "object") module.exports = LAB_DATA;'
    return f"{head}\n\nconst LAB_DATA = {json.dumps(contents(), indent=1)};\n\n{tail}\n"


if __name__ == "__main__":
    SCRIPT.parent.mkdir(parents=True, exist_ok=True)
    SCRIPT.write_text(script(), encoding="utf8")
    print(SCRIPT, SCRIPT.stat().st_size)
