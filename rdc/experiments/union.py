"""How many images does each defence keep when every image is judged by the strongest of all attacks and gradients?

Fashion-MNIST, the first test images, Linf 8/255, fixed noise that the attacker knows. "released" is the reading of the released
code. The attacks run in turn on the images that are left: the gradients of likelihood maximisation first, then restarts, nine
targets, APGD and Square. A cell is stored when its last attack has ended; cells under all attacks hold few images, so that a core
stores one every few minutes.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from rdc.runs.cell import Row

PGD: dict[str, Any] = {"attack": "pgd", "steps": 20}
APGD: dict[str, Any] = {"attack": "autoattack", "steps": 20, "version": "custom", "attacks": ["apgd-ce", "apgd-t"]}
SQUARE: dict[str, Any] = {"attack": "square", "queries": 1000}


def pgd(gradient: str, name: str = "", **more: Any) -> dict[str, Any]:
    """PGD through a gradient of a defence."""
    return {"name": name or gradient, "gradient": gradient, **PGD, **more}


def plain(gradient: str | None = None) -> tuple[dict[str, Any], ...]:
    """The attacks of any model, through its own gradient or one of a defence."""
    own = {} if gradient is None else {"gradient": gradient}
    kinds = (
        ("restarts", PGD | {"restarts": 3}),
        ("targets", PGD | {"targets": 9}),
        ("apgd", APGD),
        ("square", SQUARE),
    )
    return tuple({"name": name, **own, **attack} for name, attack in kinds)


GRADIENTS = tuple(map(pgd, ("smoothed 0.3", "exact", "smoothed 0.1", "smoothed 1", "bpda")))
STRONG = (*GRADIENTS, *plain("smoothed 0.3")[:2])
ALL = (*GRADIENTS, *plain("smoothed 0.3"), pgd("exact", "targets, exact", targets=9))
PURIFIED = (*map(pgd, ("exact", "bpda", "denoise")), *plain("exact")[:2])
OWN = ({"name": "pgd", **PGD}, *plain())


def row(model: str, attacks: tuple[dict[str, Any], ...], n: int, about: dict[str, Any], priority: int = 0, **options: Any) -> Row:
    """Return a row of the union of attacks on a model."""
    arguments = {"norm": "Linf", "eps": "8/255", "attacks": list(attacks)}
    return Row(model, options, "union", arguments, n=n, task="union", about=about, block=16, priority=priority)


def lm(
    model: str,
    N: int,
    n: int,
    attacks: tuple[dict[str, Any], ...] = STRONG,
    seed: int = 0,
    priority: int = 0,
    title: str = "",
    **more: Any,
) -> Row:
    """Return a row of a defence with N steps of likelihood maximisation, a seed of its noise, other options."""
    own = {"lm": "released", "steps": N} | ({"seed": seed} if seed else {}) | more
    about = {"model": title or model, "N": N, "noise seed": seed, "attacks": "all" if attacks is ALL else "strong"}
    found = row(model, attacks, n, about, priority, **own)
    return replace(found, block=4) if attacks is ALL else found


ROWS = (
    *(row(m, OWN, 512, {"model": m, "attacks": "all"}, priority=-2) for m in ("cnn", "at-linf")),
    row("dc", OWN[:3], 512, {"model": "dc", "attacks": "strong"}, priority=-3),
    row("dc-floor", OWN, 256, {"model": "dc-floor", "attacks": "all"}, priority=-2),
    lm("rdc", 5, 512, priority=-3),
    lm("rdc", 5, 256, ALL, priority=-2, title="rdc-floor", sigma_min=1.0),
    *(lm("rdc", N, 256, priority=-1) for N in (1, 2, 10)),
    *(lm(m, 5, 256) for m in ("lm-cnn", "lm-at")),
    *(row(m, PURIFIED, 256, {"model": m, "attacks": "strong"}) for m in ("diffpure", "diffpure-dc")),
    lm("rdc", 5, 128, ALL, priority=1),
    lm("lm-cnn", 5, 128, ALL, priority=1),
    *(lm(m, 5, 256, GRADIENTS, seed) for m, seed in product(("rdc",), (1, 2, 3, 4))),
)
