"""How many images of CIFAR-10 does RDC keep, as the attacker's gradient sees more of its likelihood maximisation?

The network is small enough for two CPU cores, the images are the first of the test split, those that the papers attack. The range
of the five levels was chosen on 56 training images that the denoiser has not seen (its teacher has), that of the sixteen follows
from it. "released" is the reading of the released code; noise is fixed, and the attacker knows it.
"""

from typing import Any

from rdc.runs.cell import Row

LEVELS: dict[str, Any] = {"denoiser": "single-head", "levels": 5, "sigma_min": 0.33, "sigma_max": 2.5}
SIXTEEN: dict[str, Any] = LEVELS | {"levels": 16, "sigma_min": 0.25}
PGD: dict[str, Any] = {"steps": 20, "norm": "Linf", "eps": "8/255"}


def clean(options: dict[str, Any], n: int, block: int, priority: int) -> Row:
    """Return a diffusion classifier that nobody attacks."""
    about = {"model": "DC", "what": "clean", "network": "cifar10-small", "levels": options["levels"]}
    return Row("dc", options, data="cifar10", n=n, block=block, about=about, priority=priority)


def attacked(gradient: str | None = None, n: int = 128, priority: int = 0) -> Row:
    """Return a diffusion classifier under attack, alone or, through a gradient, behind likelihood maximisation."""
    about = {"model": "DC" if gradient is None else "RDC", "what": "attacked", "network": "cifar10-small", "levels": 5,
             "gradient": gradient or "plain"}  # fmt: skip
    own = {} if gradient is None else {"lm": "released", "steps": 5, "gradient": gradient}
    return Row("dc" if gradient is None else "rdc", LEVELS | own, "pgd", PGD, data="cifar10", n=n, block=8, about=about,
               priority=priority)  # fmt: skip


ROWS = (
    *(attacked(g, priority=-2) for g in (None, "bpda", "exact")),
    attacked("smoothed 0.3", priority=-1),
    clean(LEVELS, 1000, 32, -1),
    clean(SIXTEEN, 512, 16, 0),
)
