"""How random, how smooth and how large are the gradients of diffusion classifiers, of RDC and of DiffPure?

All noise is fresh. The last rows ask how the randomness falls with the number of noise levels.
"""

from typing import Any

from rdc.runs.cell import Row

FRESH = {"noise": "fresh"}
RDC = {"unconditional": "single-head", **FRESH}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("cnn", {}),
    "DC": ("dc", FRESH),
    "RDC, BPDA": ("rdc", {**RDC, "gradient": "bpda"}),
    "RDC, smoothed": ("rdc", {**RDC, "gradient": "smoothed 0.3"}),
    "RDC, exact": ("rdc", {**RDC, "gradient": "exact"}),
    "RDC mi-fgsm, exact": ("rdc", {**RDC, "gradient": "exact", "lm": "mi-fgsm"}),
    "LM+CNN, BPDA": ("lm-cnn", {**RDC, "gradient": "bpda"}),
    "LM+CNN, exact": ("lm-cnn", {**RDC, "gradient": "exact"}),
    "DiffPure+CNN": ("diffpure", RDC),
    "DiffPure+DC": ("diffpure-dc", RDC),
}
PATH = {"eps": "16/255", "steps": 5, "draws": 10}
LEVELS = (4, 8, 16, 32, 64)


def row(model: str, options: dict[str, Any], about: dict[str, Any], seed: int = 0, **arguments: Any) -> Row:
    """Return a row of sixteen images."""
    return Row(model, options, None, {**arguments, **PATH}, n=16, seed=seed, task="randomness", about=about)


ROWS = (
    *(row(*made, {"model": name}, repeats=24, eot=[1, 2, 4, 8]) for name, made in MODELS.items()),
    *(row("dc", {**FRESH, "levels": t}, {"model": "DC", "levels": t}, 1, repeats=4, eot=[1, 2]) for t in LEVELS),
)
