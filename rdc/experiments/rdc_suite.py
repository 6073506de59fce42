"""Which of seven defences keeps the most images under three threats, each under the gradient that is strongest against it?"""

from itertools import product
from typing import Any

from rdc.experiments._rows import lm, row

THREATS: tuple[dict[str, Any], ...] = ({"norm": "Linf", "eps": "8/255"}, {"norm": "L2", "eps": "1.0"}, {"attack": "stadv"})

ROWS = tuple(
    found
    for threat in THREATS
    for found in (
        *(row("suite", m, **threat) for m in ("CNN", "AT", "DC")),
        *(lm("suite", g, model=m, **threat) for m, g in product(("RDC", "LM+CNN"), ("bpda", "smoothed 0.3"))),
        *(row("suite", m, g, **threat) for m, g in product(("DiffPure+CNN", "DiffPure+DC"), ("exact", "bpda"))),
    )
)
