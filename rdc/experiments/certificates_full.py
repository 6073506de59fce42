"""Which radius does a race certify, and which would 124 levels have certified on the same draws?"""

from rdc.experiments._bases import CHOSEN, DRAWS, STRATA, Base, published, reference
from rdc.runs.cell import Row


def row(slow: Base, images: int, n: int) -> Row:
    """Compare the race with a slow classifier, which is asked about the candidate and three rivals."""
    given = {"n0": DRAWS["n0"], "n": n, "strata": STRATA, "reference": slow.named(rivals=3)}
    return CHOSEN.row("beside", given, n=images, block=10, reference=slow.name)


ROWS = (row(reference(), 50, 2000), row(published(), 50, 2000), row(reference(), 10, 10_000))
