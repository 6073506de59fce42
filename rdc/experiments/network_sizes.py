"""Which size of network gives the best diffusion classifier after the same training time?

Each is trained for about four minutes on two CPU cores. The shipped network has the second size, trained for longer.
"""

from typing import Any

from rdc.runs.cell import Row
from rdc.train.comparisons import SIZES
from rdc.train.recipes import RECIPES

TASK: dict[str, Any] = {"task": "unseen", "n": 500, "block": 100}

ROWS = (
    *(
        Row("dc-trained", {"recipe": name, "levels": 16, "sigma_min": None}, **TASK, about={"network": name, "steps": steps})
        for name, (_, steps) in SIZES.items()
    ),
    Row(
        "dc", {"denoiser": "single-head", "levels": 16, "sigma_min": None}, **TASK,
        about={"network": "shipped", "steps": RECIPES["fashion-mini"].steps},
    ),
)  # fmt: skip
