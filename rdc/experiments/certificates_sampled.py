"""How many evaluations does it take to keep the radius of 124 levels?

All settings are asked about those draws that the references were asked about, so that a few dozen draws an image tell them apart.
"""

from rdc.experiments._bases import DRAWS, RACES, STRATA, Base, cascade, epndc, published, reference
from rdc.runs.cell import Row

SLOW = (reference(), published())
SETTINGS = (
    *RACES,
    *(cascade(0.25, 8, gap, first) for gap, first in ((1.0, 3), (2.0, 3), (4.0, 3), (2.0, 4), (1.0, 8), (4.0, 8))),
    *(cascade(0.25, 3, gap) for gap in (1.0, 4.0)),
    *(epndc(0.25, t) for t in (4, 8, 16)),
    *(epndc(0.25, t, "single-head") for t in (3, 8)),
    reference(),
    reference(seed=1),
    published(),
)


def row(base: Base, slow: Base) -> Row:
    """Compare a setting with a slow classifier on the draws of a cascade; what is as slow as one is asked about three rivals."""
    as_slow = {"rivals": 3} if base.options.get("levels") == 124 else {}
    given = {"n0": DRAWS["n0"], "n": 2000, "strata": STRATA, "draws of": cascade(0.25).named()}
    return base.row("beside", {**given, **as_slow, "reference": slow.named(rivals=3)}, n=50, block=10, reference=slow.name)


ROWS = tuple(row(base, slow) for base in SETTINGS for slow in SLOW if slow != base)
