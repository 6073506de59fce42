"""Which defence keeps the most images of CIFAR-10 under three threats, each judged by the union of its gradients?

The first test images; Linf 8/255, L2 0.5 and StAdv. Denoising is done by cifar10-small, whose five levels are those of experiment
cifar10; likelihood maximisation is the released one, all noise is fixed and the attacker knows it. The attacks run in turn on the
images that are left.
"""

from itertools import product
from typing import Any

from rdc.experiments.cifar10 import RANGE, SMOOTHED
from rdc.experiments.union import APGD, PGD
from rdc.runs.cell import Row

SQUARE: dict[str, Any] = {"attack": "square", "queries": 5000}
#: The ball, and the attack that is tried with each gradient.
THREATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Linf": ({"norm": "Linf", "eps": "8/255"}, PGD),
    "L2": ({"norm": "L2", "eps": "0.5"}, PGD),
    "StAdv": ({"eps": "0.05"}, {"attack": "stadv", "steps": 30}),
}
ONE: dict[str, Any] = {"denoiser": "single-head"}
DC, LM = ONE | RANGE, {"lm": "released", "steps": 5}
#: Options, and gradients in the order in which they are tried; no gradient is the model's own.
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cnn": ({}, ()),
    "at-linf": ({}, ()),
    "dc": (DC, ()),
    "rdc": (DC | LM, ("exact", SMOOTHED, "bpda")),
    "lm-cnn": (ONE | LM, (SMOOTHED, "exact", "bpda")),
    "lm-at": (ONE | LM, (SMOOTHED, "exact", "bpda")),
    "diffpure": (ONE, ("exact", "bpda")),
    "diffpure-dc": (DC, ("exact", "bpda")),
}
STRONG = ("cnn", "at-linf", "dc", "rdc")  # that meet further attacks in the Linf ball


def row(model: str, threat: str, n: int = 256) -> Row:
    """Return a row of a model under a threat."""
    options, gradients = MODELS[model]
    ball, attack = THREATS[threat]
    attacks = [{"name": g, "gradient": g, **attack} for g in gradients] or [{"name": attack["attack"], **attack}]
    return made(
        model, options, ball | {"attacks": attacks}, n, {"threat": threat, "attacks": "gradients"}, [*MODELS].index(model)
    )


def strongest(model: str, n: int = 256) -> Row:
    """Return a row of a model under all attacks in the Linf ball."""
    options, gradients = MODELS[model]
    own = {"gradient": gradients[0]} if gradients else {}
    first = [{"name": g, "gradient": g, **PGD} for g in gradients] or [{"name": "pgd", **PGD}]
    more = {"restarts": PGD | {"restarts": 3}, "targets": PGD | {"targets": 9}, "apgd": APGD, "square": SQUARE}
    attacks = [*first, *({"name": name, **own, **attack} for name, attack in more.items())]
    return made(model, options, THREATS["Linf"][0] | {"attacks": attacks}, n, {"threat": "Linf", "attacks": "all"}, -1)


def made(model: str, options: dict[str, Any], given: dict[str, Any], n: int, about: dict[str, Any], priority: int) -> Row:
    """Return a row of the task union."""
    return Row(model, options, "union", given, "cifar10", n, block=8, task="union", about={"model": model, **about},
               priority=priority)  # fmt: skip


ROWS = (
    *(strongest(model) for model in STRONG),
    *(row(model, threat) for model, threat in product(MODELS, THREATS)),
)
