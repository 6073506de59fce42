"""How accurate and robust is a classifier by the likelihoods of the probability flow, beside the diffusion classifier?

That is the score-based generative classifier. Both have the same networks and see the same images of Fashion-MNIST and of the 8x8
digits; PGD has ten steps and the exact gradient.
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
