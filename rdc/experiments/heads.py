"""Which ways of training a network with heads give a classifier that is right, and robust?

Small networks for the digits, all with the same steps, batch and learning rate, beside the network that is shipped; four levels,
two draws. PGD with ten steps.
"""

from typing import Any

from rdc.runs.cell import Row
from rdc.train.comparisons import HEADS

LEVELS = {"levels": 4, "draws": 2}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "teacher": ("dc", {"denoiser": "single-head", **LEVELS}),
    **{name: ("dc-trained", {"recipe": name, **LEVELS}) for name in HEADS},
}

ROWS = tuple(
    row
    for name, (model, options) in NETWORKS.items()
    for row in (
        Row(model, options, data="digits", n=400, block=400, about={"network": name, "what": "clean"}),
        Row(
            model, options, "pgd", {"eps": "0.06", "steps": 10}, "digits", n=60, block=60,
            about={"network": name, "what": "robust"},
        ),
        Row(model, options, data="digits", n=400, block=400, task="heads", about={"network": name, "what": "heads"}),
    )
)  # fmt: skip
