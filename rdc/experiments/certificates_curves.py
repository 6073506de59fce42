"""How many images does each base classifier certify, at which radius?

More images where APNDC is compared with EPNDC.
"""

from rdc.experiments._bases import CHOSEN, DRAWS, SIGMAS, Base, apndc, carlini, cascade, cohen, epndc
from rdc.runs.cell import Row


def curve(base: Base, n: int, images: int = 30) -> Row:
    """Return certificates of some images with n draws."""
    return base.row("certify", {**DRAWS, "n": n}, n=images, block=10)


COMPARED = (cohen(0.25), carlini(0.25), apndc(0.25, 8), epndc(0.25, 4))
EACH = [(cohen(s), carlini(s), cascade(s), apndc(s, 8)) for s in SIGMAS]
OTHERS = [base for base in [*(b for bases in EACH for b in bases), CHOSEN] if base not in COMPARED]
ROWS = (*(curve(base, 400, 90) for base in COMPARED), *(curve(base, 400) for base in OTHERS), curve(CHOSEN, 2000))
