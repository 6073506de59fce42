"""How accurate and robust is a classifier by the likelihoods of the probability flow, beside the diffusion classifier?

That is the score-based generative classifier. Both have the same networks and see the same images of Fashion-MNIST and of the 8x8
digits. PGD has the exact gradient and only five steps, because a gradient of the flow takes seconds an image.
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


def row(data: str, title: str, n: int, priority: int, steps: int = 0) -> Row:
    """A model on clean images, or under PGD with so many steps."""
    model, options = MODELS[title]
    attack, arguments = ("pgd", {"eps": "0.06", "steps": steps}) if steps else (None, {})
    about = {"data": data, "model": title, "attack": attack or "none"}
    return Row(model, options, attack, arguments, data, n=n, block=8 if steps else 100, about=about, priority=priority)


ROWS = (
    *(row("digits", title, 100, 0) for title in MODELS),
    *(
        row("digits", title, 24, priority, 5)
        for title, priority in (("DC", 1), ("flow", 2), ("DC, from 0.5", 1), ("flow, from 0.5", 3))
    ),
    *(row("fashion-mini", title, 96, 1) for title in ("flow", "DC")),
)
