"""Does likelihood maximisation raise the exact likelihood of an image, that of its true class, and the log-odds of it?

Fashion-MNIST; the optimal denoiser of 2 000 training images, and the first 960 test images.
"""

from itertools import product
from typing import Any

from rdc.runs.cell import Row

IMAGES = ("clean", "border", "adversarial")
CASES: dict[str, dict[str, Any]] = {
    "small steps": {"method": "sign", "budget": 2 / 255},
    "mi-fgsm": {"reading": "mi-fgsm"},
    "mi-fgsm, eta = eps": {"method": "sign", "budget": 24 / 255},
    "all ELBO levels": {"method": "sign", "elbo levels": 16, "timesteps": "all"},
    "released": {"reading": "clamped"},
}
SIZES = {"train": 2000, "levels": 8, "eps": "24/255", "steps": 10}

ROWS = tuple(
    Row("optimal", options, None, {"images": kind, **SIZES}, n=960, block=60, task="laboratory", about={"LM": lm, "images": kind})
    for (lm, options), kind in product(CASES.items(), IMAGES)
)
