"""What do weights, time steps and radius change for a diffusion classifier: how often is it right, and how often under PGD?

The weightings share one grid of levels. The time steps are those of VP with weight one, spread over all of them or the first.
"""

from itertools import product
from typing import Any, get_args

from rdc.models.comparisons import Weighting
from rdc.runs.cell import Row

DC: dict[str, Any] = {"denoiser": "single-head", "levels": 16}
PGD = {"steps": 15}
STEPS = (1, 2, 4, 8, 16, 32, 64)
THREATS = (("Linf", "2/255"), ("Linf", "8/255"), ("Linf", "16/255"), ("L2", "0.5"), ("L2", "1.5"))
BUDGET = {"version": "custom", "attacks": ["apgd-ce", "apgd-t", "square"], "steps": 8, "queries": 60}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {"CNN": ("cnn", {}), "DC": ("dc", DC)}


def steps(placement: str, count: int, attack: str | None = None, **more: Any) -> Row:
    """Return the row of a number of time steps."""
    words = {"what": "time steps", "placement": placement, "steps": count, "attack": attack or "none"}
    if placement == "first":
        return Row("dc-first", {"levels": count}, attack, about=words, **more)
    return Row("dc", {"denoiser": "single-head", "kind": "vp", "levels": count}, attack, about=words, **more)


def attacked(model: str, norm: str, eps: str, n: int = 32, what: str = "attacks") -> Row:
    """Return the row of a model under PGD."""
    words = {"what": what, "model": model, "norm": norm, "eps": eps, "attack": "pgd"}
    return Row(*MODELS[model], "pgd", {**PGD, "norm": norm, "eps": eps}, n=n, about=words)


PLACES = ("first", "uniform")

ROWS = (
    *(Row(*MODELS[m], n=300, block=100, about={"what": "clean", "model": m}) for m in MODELS),
    *(
        Row("dc-weighted", {"weighting": name}, n=300, block=100, about={"what": "weightings", "weighting": name})
        for name in get_args(Weighting)
    ),
    *(steps(place, count, n=50) for place, count in product(PLACES, STEPS)),
    *(steps(place, count, "pgd", arguments={**PGD, "eps": "2/255"}, n=32) for place, count in product(PLACES, (2, 8))),
    *(attacked(m, norm, eps) for (norm, eps), m in product(THREATS, MODELS)),
    attacked("CNN", "Linf", "8/255", 300, "more images"),
    Row(
        *MODELS["DC"], "autoattack", {**BUDGET, "norm": "Linf", "eps": "2/255"}, n=32,
        about={"what": "survivors", "model": "DC", "norm": "Linf", "eps": "2/255", "attack": "autoattack"},
    ),
)  # fmt: skip
