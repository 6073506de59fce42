"""How many images do the reference networks keep, in the ball of their training, and the undefended ones in that of at-linf?

PGD with 20 steps on the margin; the same with 50 steps, then towards each of the nine wrong classes; Square, which asks for no
gradient. The last rows count clean images of the whole test split.
"""

from itertools import product
from typing import Any

from rdc.runs.cell import Row

BALLS = {
    ("fashion-mini", "at-linf"): ("Linf", "8/255"),
    ("fashion-mini", "at-l2"): ("L2", "1"),
    ("digits", "at-linf"): ("Linf", "0.15"),
    ("digits", "at-l2"): ("L2", "1"),
}
BALLS |= {(data, "cnn"): BALLS[data, "at-linf"] for data in ("fashion-mini", "digits")}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {"steps": 20, "loss": "margin"}),
    "targeted": ("pgd", {"steps": 50, "loss": "margin", "targets": 9}),
    "square": ("square", {"queries": 1000}),
}
TEST = {"fashion-mini": 1000, "digits": 400}

ROWS = (
    *(
        Row(
            model, {}, kind, {**arguments, "norm": norm, "eps": eps}, data, block=96,
            about={"data": data, "model": model, "attack": name},
        )
        for ((data, model), (norm, eps)), (name, (kind, arguments)) in product(BALLS.items(), ATTACKS.items())
    ),
    *(
        Row(model, data=data, n=TEST[data], block=200, about={"data": data, "model": model, "attack": "none"})
        for data, model in BALLS
    ),
)  # fmt: skip
