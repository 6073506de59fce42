"""How accurate and robust is the score-based generative classifier, which compares exact likelihoods, beside the diffusion classifier?

The same networks and the same images; PGD with ten steps and the exact gradient. Fashion-MNIST and the 8x8 digits.
"""

from typing import Any

from rdc.runs.cell import Row

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("sbgc", {}),
    "flow, from 0.02": ("sbgc", {"sigma_min": 0.02}),
    "flow, from 0.5": ("sbgc", {"sigma_min": 0.5}),
    "DC": ("dc", {"denoiser": "single-head"}),
    "DC, from 0.5": ("dc", {"denoiser": "single-head", "sigma_min": 0.5}),
}
DIGITS = tuple(
    row
    for title, (model, options) in MODELS.items()
    for row in (
        Row(model, options, data="digits", n=400, block=100, about={"data": "digits", "model": title, "attack": "none"}),
        Row(
            model, options, "pgd", {"eps": "0.06", "steps": 10}, "digits", n=96, block=16,
            about={"data": "digits", "model": title, "attack": "pgd"}, priority=1,
        ),
    )
)  # fmt: skip
FASHION = tuple(
    Row(*MODELS[title], n=64, block=16, about={"data": "fashion-mini", "model": title, "attack": "none"}, priority=2)
    for title in ("flow", "DC")
)

ROWS = DIGITS + FASHION
