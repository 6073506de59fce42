"""Does a network with a head for each class, taught by a single-head one, classify as well as its teacher?

Teacher and heads on the same test images, with the same levels and noise: all levels, and those from the lowest level on that
the heads do best with on other images, which the first rows look for.
"""

from itertools import product

from rdc.runs.cell import Row

NETWORKS = {"teacher": "single-head", "heads": "heads"}
RANGES = (0.1, 0.2, 0.35, 0.5)  # lowest levels, model units
CHOSEN = 0.35


def row(what: str, network: str, sigma_min: float, **more: object) -> Row:
    """Return the row of a network and a lowest level."""
    options = {"denoiser": NETWORKS[network], "levels": 16, "sigma_min": sigma_min}
    return Row("dc", options, about={"what": what, "network": network, "from": sigma_min}, **more)  # type: ignore[arg-type]


ROWS = (
    *(row("chosen on", network, low, task="unseen", n=600, block=100) for low, network in product(RANGES, NETWORKS)),
    *(row("compared", network, low, n=500, block=100, priority=-1) for low, network in product((RANGES[0], CHOSEN), NETWORKS)),
)
