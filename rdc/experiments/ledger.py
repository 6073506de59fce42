"""What are differences between a paper and its released code worth, one at a time, where no other experiment has both sides?

Rows are named after the entries of the ledger (:mod:`rdc.findings.ledger`). Both sides see the same images. RDC is attacked
through blurred signs.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from rdc.runs.cell import Row

RADII = ("2/255", "8/255")
#: Reductions and losses of DC-4; the decision, and with it the margin's attack, does not depend on the reduction.
SCALES = {("sum", "ce"): "dc", ("mean", "ce"): "dc-mean", ("sum", "margin"): "dc"}
LM = {"lm": "released", "gradient": "smoothed 0.3"}
#: Corollary 3.3, by the switches of the released formula.
COROLLARY = {"divisor": "variance", "square": "sum", "units": "model"}
FORMULAS = {
    "corollary": COROLLARY,
    "OPT-1": {**COROLLARY, "divisor": "sigma"},
    "OPT-2": {**COROLLARY, "square": "each"},
    "OPT-3": {**COROLLARY, "units": "image"},
    "released": {},
}
EPNDC = {"sigma": 0.25, "levels": 124, "denoiser": "heads", "form": "fixed", "antithetic": False}
RELEASED = {"lm": "released"}
FRESH = {**LM, "noise": "fresh"}


def attacked(entry: str, side: str, model: str, options: Mapping[str, Any], eps: str = "8/255", n: int = 256, **more: str) -> Row:
    """Return a row under PGD, Linf; one whose images run alone comes last."""
    arguments, late = {"steps": 20, "norm": "Linf", "eps": eps, **more}, int(options.get("noise") == "fresh")
    return Row(model, options, "pgd", arguments, n=n, about={"entry": entry, "side": side, "eps": eps}, priority=late)


def asked(entry: str, side: str, model: str, options: Mapping[str, Any], sigma: float, **more: Any) -> Row:
    """Return a row of single answers, on noisy images; those of a batch come in twenties."""
    arguments = {"sigma": sigma, "images": "test", **more}
    return Row(model, options, None, arguments, n=240, block=20, task="noisy", about={"entry": entry, "side": side})


ROWS = (
    *(attacked("DC-4", f"{how}, {loss}", SCALES[how, loss], {}, eps, loss=loss) for eps, (how, loss) in product(RADII, SCALES)),
    attacked("LM", "released", "rdc", LM),
    attacked("LM", "label 0", "rdc", {**LM, "label": 0}),
    attacked("LM", "another seed", "rdc", {**LM, "seed": 1}),
    asked("LM-11", "batch", "rdc", RELEASED, 0.0),
    asked("LM-11", "image", "rdc", {**RELEASED, "share": "image"}, 0.0, reference={"model": "rdc", "options": RELEASED}),
    attacked("ATT-2", "fresh noise", "rdc", FRESH, n=48),
    *(attacked("OPT", name, "optimal-released", formula, n=128) for name, formula in FORMULAS.items()),
    *(asked("NDC-4", weight, "epndc", {**EPNDC, "weight": weight}, 0.25) for weight in ("elbo", "edm", "edm-released")),
)
