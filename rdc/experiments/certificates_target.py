"""How many draws does it take to tell whether an image is certified at a radius?

10 000 may be made, of which 2 000 are: what they leave open counts as if it took all.
"""

from itertools import product

from rdc.experiments._bases import CHOSEN, DRAWS

TARGETS, STOPPING = (0.125, 0.25, 0.5), ("sequence", "split")
SIZES = {**DRAWS, "n": 10_000, "known": 2000}

ROWS = tuple(
    CHOSEN.row("certify", {**SIZES, "target": target, "stopping": stopping}, n=50, block=10, target=target, stopping=stopping)
    for target, stopping in product(TARGETS, STOPPING)
)
