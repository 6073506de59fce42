"""Is what PGD measures on RDC to be believed, whatever gradient it takes through likelihood maximisation?"""

from itertools import product
from typing import Any

from rdc.runs.cell import Row

GRADIENTS = ("smoothed 0.3", "bpda", "exact")
BUDGET = {"norm": "Linf", "eps": "8/255", "steps": 10, "queries": 50}
#: RDC with the weights of the bound, and with those of the released code, as in the rows "weights" of experiment rdc-gradient.
WEIGHTS: dict[str, dict[str, Any]] = {"RDC": {}, "RDC with the weights of the code": {"kind": "edm-released"}}


def audited(name: str, model: str, options: dict[str, Any]) -> Row:
    """Return the audit of PGD on a model."""
    return Row(model, options, None, BUDGET, n=10, block=10, task="audit", about={"attack on": name})


ROWS = (
    audited("DC", "dc", {}),
    *(
        audited(f"{name}, {g}", "rdc", {"lm": "released", "gradient": g} | own)
        for (name, own), g in product(WEIGHTS.items(), GRADIENTS)
    ),
)
