"""The jobs behind results/rdc.json: every defence, gradient and attack that tools/rdc_attacks.py runs, as data."""

import json
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

FLOW = 0.05  # bound of StAdv, fraction of the image's width
RELEASED = {"method": "adam", "step_size": 0.1, "budget": None, "sigma": (0.4, 0.6)}


@dataclass(frozen=True)
class Job:
    """One row of the record: a model, an attack on it, and how many images."""

    table: str
    model: str  # CNN, LM+CNN, DC, RDC, DiffPure+CNN, DiffPure+DC; "single-head" behind it: the slow network
    gradient: str = "plain"  # plain, bpda, exact, smoothed W; transfer: that of the classifier without the process
    lm: tuple[tuple[str, Any], ...] = ()  # arguments of LikelihoodMaximization
    name: str | None = None  # what this likelihood maximisation is called
    noise: str = "fixed"  # fixed and known, or fresh
    eot: int = 1
    attack: str = "pgd"
    norm: str = "Linf"
    eps: float = 8 / 255
    steps: int = 20
    n: int = 48
    draws: int = 1  # of the diffusion classifier
    coupling: str = "shared"

    def key(self) -> str:
        """The job in one line, without table, name and n: what two tables share is one piece of work."""
        return key_of(asdict(self))


def key_of(fields: dict[str, Any]) -> str:
    """What decides the numbers of a piece, in one line."""
    return json.dumps({k: v for k, v in fields.items() if k not in ("table", "name", "n")}, sort_keys=True)


def rdc(table: str, gradient: str, name: str = "released", model: str = "RDC", lm_steps: int = 5, **more: Any) -> Job:
    """A job on likelihood maximisation with ``lm_steps`` steps; other keywords that the job does not know belong to it as well.

    ``steps`` is the number of steps of the attack.
    """
    own = {k: more.pop(k) for k in list(more) if k in Job.__dataclass_fields__}
    lm = tuple(sorted({**RELEASED, "steps": lm_steps, **more}.items()))
    return Job(table, model, gradient, lm, name, **own)


def jobs() -> list[Job]:
    """All jobs, the most important first."""
    found = [Job("gradient", "DC", n=96), Job("gradient", "CNN", n=96)]
    for steps, gradient in product((5, 1), ("bpda", "exact", "smoothed 0.1", "smoothed 0.3", "smoothed 1", "transfer")):
        found.append(rdc("gradient", gradient, lm_steps=steps, n=96))
    stronger = ("pgd-60", "pgd-restarts", "apgd")
    found += [rdc("gradient", "smoothed 0.3", attack=a) for a in stronger] + [Job("gradient", "DC", attack=a) for a in stronger]
    found += [Job("gradient", m, eps=16 / 255) for m in ("DC", "CNN")]
    found += [rdc("gradient", g, eps=16 / 255) for g in ("bpda", "exact", "smoothed 0.3", "transfer")]
    found += suite()
    for gradient in ("bpda", "exact", "smoothed 0.3"):
        found.append(rdc("gradient", gradient, "mi-fgsm", method="sign", step_size=None, budget=8 / 255))
    found += sweeps() + other_attacks()
    for eot, gradient in ((1, "bpda"), (1, "exact"), (1, "smoothed 0.3"), (5, "bpda"), (5, "smoothed 0.3"), (10, "smoothed 0.3")):
        found += [rdc(t, gradient, noise="fresh", eot=eot, n=32 if eot == 1 else 16) for t in ("gradient", "eot")]
    for draws, coupling in ((1, "shared"), (2, "shared"), (4, "shared"), (1, "per_class")):
        found.append(Job("epsilon", "DC", draws=draws, coupling=coupling))
    found.append(Job("gradient", "DC single-head", n=16))
    found += [rdc("gradient", g, model="RDC single-head", n=16) for g in ("bpda", "smoothed 0.3")]
    return found


def suite() -> list[Job]:
    """Six defences under three threats, each under the gradients that may be strongest."""
    found = []
    for norm, eps in (("Linf", 8 / 255), ("L2", 1.0), ("StAdv", FLOW)):
        attack = {"attack": "stadv", "steps": 30} if norm == "StAdv" else {}
        same = {"norm": norm, "eps": eps, **attack}
        found += [Job("suite", "CNN", **same), Job("suite", "DC", **same)]
        for model, gradient in product(("RDC", "LM+CNN"), ("bpda", "smoothed 0.3")):
            found.append(rdc("suite", gradient, model=model, **same))
        found += [Job("suite", m, g, **same) for m, g in product(("DiffPure+CNN", "DiffPure+DC"), ("exact", "bpda"))]
    return found


def sweeps() -> list[Job]:
    """Budget, steps, noise range, optimiser at about equal displacement, one or all levels."""
    found, two = [], ("bpda", "smoothed 0.3")
    for budget, g in product((2, 4, 8, 16, 32), two):
        found.append(rdc("budget", g, "mi-fgsm", method="sign", step_size=None, budget=budget / 255, n=32))
    for steps, g in product((1, 2, 5, 10), two):
        found.append(rdc("steps", g, lm_steps=steps, n=32))
    for sigma, g in product(((0.1, 0.2), (0.4, 0.6), (0.8, 1.2)), two):
        found.append(rdc("sigma", g, sigma=sigma, n=32))
    for method, g in product(("literal", "mean-l1", "sign", "rmsprop"), ("exact", "smoothed 0.3")):
        if method not in ("literal", "mean-l1") or g == "exact":
            found.append(rdc("optimiser", g, method, method=method, step_size=STEP_SIZES[method], n=32))
    found += [rdc("optimiser", g, "adam", n=32) for g in ("exact", "smoothed 0.3")]
    for g in two:
        found.append(rdc("timesteps", g, n=32))
        found.append(rdc("timesteps", g, "released, all", timesteps="all", count=4, n=32))
    return found


#: Step sizes at which five steps of each method move an image about as far (mean L2) as the released Adam does.
STEP_SIZES = {"literal": 7.25, "mean-l1": 0.00924, "sign": 0.068, "rmsprop": 0.0272}


def other_attacks() -> list[Job]:
    """Lagrange and feature."""
    found = [rdc("lagrange", g, attack="lagrange") for g in ("bpda", "smoothed 0.3")]
    found += [rdc("feature", g, attack="feature") for g in ("bpda", "smoothed 0.3")]
    return found
