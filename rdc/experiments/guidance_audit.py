"""At which noise levels is a robust classifier of noisy images robust, at which radius, and is the attack to be believed?

PGD with two restarts on the noisy image, in blocks of 25 with a noise that the attacker knows, at the paper's radius and at 4 and
6 times that; ``trained`` is the attack of the training. Beside them the exact posterior of the training images.
"""

from itertools import product
from typing import Any

from rdc.experiments._guidance import LEVELS
from rdc.runs.cell import Row

PGD = {"steps": 20, "restarts": 2}
SIZES = {  # times the paper's radius: who, on how many images
    1: {"vanilla": 300, "robust": 300, "wide": 200},
    4: {"vanilla": 100, "robust": 100},
    6: {"vanilla": 200, "robust": 200, "wide": 200},
}


def attacked(guide: str, times: int, sigma: float, n: int, group: int, **more: Any) -> Row:
    """Return a row of a classifier under attack."""
    arguments = {"sigma": sigma, "threat": {"eps": 0.5 * times}, "group": group, **more}
    words = {"measure": "audit" if "audit" in more else "noisy", "guide": guide, "sigma": sigma, "times": times}
    return Row(guide, {}, None, arguments, n=n, block=group, task="level", about=words)


CASES = [(guide, times, sigma, n) for times, who in SIZES.items() for sigma, (guide, n) in product(LEVELS, who.items())]

ROWS = (
    *(attacked(*case, 25, pgd=PGD) for case in CASES),
    *(attacked("exact posterior", times, sigma, 50, 50) for times, sigma in product((1, 6), LEVELS[3:])),
    *(attacked(guide, times, sigma, 10, 25, pgd=PGD, audit=True) for guide, times, sigma, _ in CASES if times != 4),
)
