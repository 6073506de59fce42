"""Which defence keeps the most images under threats that it was not made for, each judged by the union of its gradients?

Fashion-MNIST, the first test images; Linf 8/255, L2 1.0 and StAdv. Likelihood maximisation as released, fixed noise that the
attacker knows. The gradient that breaks the most comes first; the next meets the images that are left.
"""

from itertools import product
from typing import Any

from rdc.runs.cell import Row

#: The attack and its radius, the same for all gradients of a defence.
THREATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Linf": ({"norm": "Linf", "eps": "8/255"}, {"attack": "pgd", "steps": 20}),
    "L2": ({"norm": "L2", "eps": "1.0"}, {"attack": "pgd", "steps": 20}),
    "StAdv": ({"eps": "0.05"}, {"attack": "stadv", "steps": 30}),
}
LM = {"lm": "released", "steps": 5}
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cnn": ({}, ()),
    "at-linf": ({}, ()),
    "at-l2": ({}, ()),
    "dc": ({}, ()),
    "rdc": (LM, ("smoothed 0.3", "exact", "bpda")),
    "lm-cnn": (LM, ("smoothed 0.3", "bpda")),
    "diffpure": ({}, ("exact", "bpda")),
    "diffpure-dc": ({}, ("exact", "bpda")),
    "lm-at": (LM, ("smoothed 0.3", "bpda")),
}


def row(model: str, threat: str) -> Row:
    """Return a row of a model under a threat."""
    options, gradients = MODELS[model]
    ball, attack = THREATS[threat]
    attacks = [{"name": g, "gradient": g, **attack} for g in gradients] or [{"name": attack["attack"], **attack}]
    about = {"model": model, "threat": threat}
    arguments = {**ball, "attacks": attacks}
    return Row(model, options, "union", arguments, n=256, task="union", about=about, priority=[*MODELS].index(model))


ROWS = tuple(row(model, threat) for model, threat in product(MODELS, THREATS))
