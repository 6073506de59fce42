"""From which noise level on should a diffusion classifier look, if it is attacked?

Chosen on test images 512 and above: the floor, the lowest of the ELBO levels, with the most images right after the attack (eight
levels up to 20, PGD-20 on the margin, Linf 8/255); of equals the one with more right before it, then the lowest. The rule was
written down before the rows were computed; the floors above 1.5 were added when the first 16 images favoured the highest one.
"""

from typing import Any

from rdc.runs.cell import Row

FLOORS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
PGD: dict[str, Any] = {"steps": 20, "norm": "Linf", "eps": "8/255"}


SINGLE = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
WIDTH = 1.001  # a range of one level


def screened(floor: float, **options: Any) -> Row:
    """Return a floor on the images that choose."""
    own = {} if floor == 0.1 else {"sigma_min": floor}
    about = {"what": "screened", "floor": floor, "levels": 8, "top": 20, "kind": "elbo", "draws": 1, **options}
    return Row("dc", {**own, **options}, "pgd", PGD, n=64, start=512, about=about)


def single(sigma: float, draws: int = 1) -> Row:
    """Return one level alone on the images that choose."""
    own = {"levels": 1, "sigma_min": sigma / WIDTH, "sigma_max": sigma * WIDTH, **({"draws": draws} if draws > 1 else {})}
    about = {"what": "single", "sigma": sigma, "levels": 1, "draws": draws}
    return Row("dc", own, "pgd", PGD, n=64, start=512, block=64, about=about)


ROWS = (
    *(single(sigma) for sigma in SINGLE),
    *(screened(floor) for floor in FLOORS),
)
