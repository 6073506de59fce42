"""Which radii do EPNDC and APNDC certify on CIFAR-10 with the published denoiser, as printed and as released?

The table of certified accuracies of Chen et al. (2024): 10 000 draws of three noises, and 126 nodes, not all of which
are evaluated. Printed are the sums of the paper, released those of the code. ImageNet-64, whose denoiser is an ADM, is left out.
"""

from typing import Any

from rdc.experiments._bases import DRAWS, SIGMAS
from rdc.experiments._paper import CONDITIONAL, row

BASES: dict[tuple[str, str], dict[str, Any]] = {
    ("epndc", "printed"): {"form": "fixed", "levels": 124, "antithetic": False},
    ("epndc", "released"): {"form": "released", "levels": 126, "antithetic": False},
    ("apndc", "printed"): {"variant": "condition-on-y", "levels": 124},
    ("apndc", "released"): {"variant": "condition-on-y", "levels": 124, "released": True},
}

ROWS = tuple(
    row("certified", reading, model, None, {**DRAWS, "n": 10_000, "sigma": sigma},
        {"sigma": sigma, "denoiser": CONDITIONAL, **options}, 1, task="certify", priority=i)
    for i, sigma in enumerate(SIGMAS)
    for (model, reading), options in BASES.items()
)  # fmt: skip
