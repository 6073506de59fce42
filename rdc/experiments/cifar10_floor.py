"""From which noise level on should a diffusion classifier of CIFAR-10 look, if it is attacked?

Five levels up to 4, PGD-20 on the margin, Linf 8/255. The floor is the one with the most images right after the attack among test
images 512 to 639, of equals the one with more right before it; all floors are judged on the first 256 as well, and the pages cite
those.
"""

from typing import Any

from rdc.experiments.cifar10 import NETWORKS, PGD, SMALL, SMOOTHED
from rdc.runs.cell import Row

FLOORS = (0.33, 0.5, 0.75, 1.0, 1.5, 2.0)


def floored(floor: float, start: int, n: int, gradient: str | None = None, priority: int = 0) -> Row:
    """Return a floor on some images, behind likelihood maximisation if a gradient through it is given."""
    about = {"model": "DC" if gradient is None else "RDC", "what": "screened" if start else "judged", "floor": floor,
             "network": SMALL, "gradient": gradient or "plain"}  # fmt: skip
    own = {} if gradient is None else {"lm": "released", "steps": 5, "gradient": gradient}
    options = {"denoiser": NETWORKS[SMALL], "levels": 5, "sigma_min": floor, "sigma_max": 4.0, **own}
    return Row("dc" if gradient is None else "rdc", options, "pgd", PGD, data="cifar10", n=n, start=start, block=8, about=about,
               priority=priority)  # fmt: skip


JUDGED: dict[str, Any] = {"start": 0, "n": 256}
ROWS = (
    *(floored(floor, 512, 128, priority=-1) for floor in FLOORS),
    *(floored(floor, **JUDGED) for floor in FLOORS),
    *(floored(floor, **JUDGED, gradient=g) for floor in (1.0, 1.5) for g in ("exact", SMOOTHED)),
)
