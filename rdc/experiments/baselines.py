"""How many images do networks keep that were trained to be robust, and what does a defence have to be compared with?

All models on the same images: clean; PGD with 20 steps on the margin at five Linf and four L2 radii; at 8/255 also 50 steps, then
towards each of the nine wrong classes, and Square; and spatial changes. Randomised models are judged by the majority of 20 fresh
verdicts, under gradients averaged over eight draws.
"""

from dataclasses import replace
from typing import Any

from rdc.runs.cell import Row

LINF, L2 = ("2/255", "4/255", "8/255", "16/255", "0.1"), ("0.25", "0.5", "1.0", "2.0")
PGD = {"steps": 20, "loss": "margin"}
TARGETED = {"steps": 50, "loss": "margin", "targets": 9, "norm": "Linf", "eps": "8/255"}
SQUARE = {"queries": 1000, "norm": "Linf", "eps": "8/255"}
STADV = {"steps": 30, "eps": "0.05"}
#: Networks whose weights come with the package.
TRAINED = (
    "at-linf", "cnn", "at-l2", "trades-linf", "trades-l2", "mart-linf", "mart-l2", "at-linf-generated", "at-l2-generated",
    "wrn-linf", "jem",
)  # fmt: skip
WHOLE, BLOCK = 512, 128
FRESH = ("random-noise", "random-resize")


def row(model: str, attack: str, kind: str | None, given: dict[str, Any], n: int = WHOLE, priority: int = 0, **own: Any) -> Row:
    """Return a row: a model, an attack in words, and how it is made."""
    about = {"model": model, "attack": attack, "norm": given.get("norm", "StAdv" if kind == "stadv" else None),
             "eps": given.get("eps")}  # fmt: skip
    return Row(model, own, kind, given, n=n, block=BLOCK, about=about, priority=priority)


def curve(model: str, n: int = WHOLE, priority: int = 0, **more: Any) -> tuple[Row, ...]:
    """Return PGD at all radii."""
    balls = [("Linf", eps) for eps in LINF] + [("L2", eps) for eps in L2]
    return tuple(row(model, "pgd", "pgd", {**PGD, **more, "norm": norm, "eps": eps}, n, priority) for norm, eps in balls)


def others(model: str, n: int = WHOLE, priority: int = 2) -> tuple[Row, ...]:
    """Return the other attacks."""
    return (
        row(model, "targeted", "pgd", TARGETED, n, priority),
        row(model, "square", "square", SQUARE, n, priority),
        row(model, "stadv", "stadv", STADV, n, priority - 1),
    )


ROWS = (
    *(row(model, "none", None, {}, priority=-1) for model in (*TRAINED, "1-nn", "optimal")),
    *(found for i, model in enumerate(TRAINED) for found in (*curve(model), *others(model, priority=1 + (i > 0)))),
    *curve("1-nn", 256, 1),
    *curve("optimal", 256, 1),
    *(replace(one, block=16) for model in FRESH for one in curve(model, 48, 2, eot=8)[1:3]),
    *(replace(one, block=16) for one in curve("denoised-smoothing", 48, 2)[1:3]),
)
