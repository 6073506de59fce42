"""From which noise level on should a diffusion classifier look, if it is attacked?

Chosen on test images 512 and above: the floor, the lowest of the ELBO levels, with the most images right after the attack (eight
levels up to 20, PGD-20 on the margin, Linf 8/255); of equals the one with more right before it, then the lowest. The
rule was written down before the rows were computed.
"""

from typing import Any

from rdc.runs.cell import Row

FLOORS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
EXACT = (0.1, 0.2, 1.0, 3.0)
PGD: dict[str, Any] = {"steps": 20, "norm": "Linf", "eps": "8/255"}


def screened(floor: float) -> Row:
    """Return a floor on the images that choose."""
    own = {} if floor == 0.1 else {"sigma_min": floor}
    return Row("dc", own, "pgd", PGD, n=64, start=512, about={"what": "screened", "floor": floor})


def exact(floor: float) -> Row:
    """Return a floor of the optimal classifier, the images and levels of :func:`screened`."""
    own = {"levels": 8, "sigma_min": floor}
    return Row("optimal", own, "pgd", PGD, n=64, start=512, block=64, about={"what": "exact", "floor": floor})


ROWS = (
    *(exact(floor) for floor in EXACT),
    *(screened(floor) for floor in FLOORS),
)
