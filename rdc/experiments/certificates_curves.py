"""How many images does each base classifier certify, at which radius?"""

from rdc.experiments._bases import CHOSEN, DRAWS, SIGMAS, Base, apndc, carlini, cascade, cohen, epndc
from rdc.runs.cell import Row


def curve(base: Base, n: int) -> Row:
    """Return certificates of 30 images with n draws."""
    return base.row("certify", {**DRAWS, "n": n}, n=30, block=10)


EACH = [(cohen(s), carlini(s), cascade(s), apndc(s, 8)) for s in SIGMAS]
ROWS = (*(curve(base, 400) for base in [*(b for bases in EACH for b in bases), epndc(0.25, 4), CHOSEN]), curve(CHOSEN, 2000))
