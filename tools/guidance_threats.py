"""Table 4 of tools/guidance.py: short trainings of the guide by threat model, and what each is good for.

One training each, and the paper's own with several seeds: intervals over the seeds of the samples do not hold what another
training would change (:mod:`guidance_spread`).
"""

from typing import Any

import torch
from guidance_checks import exact, in_float
from guidance_networks import TRAININGS, Judges, Trained
from guidance_rows import METRICS, differences, row
from guidance_samples import Setting, build
from guidance_spread import spreads
from tqdm import tqdm

from rdc.data import load
from rdc.evaluate import Accuracy
from rdc.guide.align import alignment_table
from rdc.guide.classifier import load_classifier
from rdc.guide.threat import Threat, level_table

LEVEL, ATTACK = 0.3, Threat(steps=20)  # where, and by what, all are judged


def robustness(path: str, n: int) -> dict[str, Any]:
    """Accuracy at one noise level, clean and under the same attack for all."""
    found = level_table(load_classifier(path), load("fashion-mini")[:n], (LEVEL,), ATTACK)[0]
    counts = {"clean": found["clean"], "robust": found["adversarial"]}
    return {"sigma": LEVEL, **{k: vars(Accuracy.of(v, n)) for k, v in counts.items()}}


def aligned(path: str, n: int) -> dict[str, Any]:
    """Cosine with the exact direction to another class at that level."""
    images = load("fashion-mini")[:n]
    y = (images.y + 1) % len(images.classes)
    guide = in_float(build(path, torch.float32))
    found = alignment_table({"": guide}, exact(), images.x.double(), y, (LEVEL,))[0]
    return {"sigma": LEVEL, "n": n, "value": found["cosine"], "low": found["low"], "high": found["high"]}


def threats_part(
    judges: Judges, scale: float, alone: float, first: int, repeats: int, n: int, steps: int, batch: int, trainings: int
) -> dict[str, Any]:
    """A row for each of the first trainings: metrics with the denoiser that knows the class, and with one that does not."""
    rows, both = [], {True: [], False: []}
    for t in tqdm(TRAININGS[:trainings], desc="threats", unit="training"):
        path = str(t.fit(steps, batch))
        for conditional, s in ((True, scale), (False, alone)):
            both[conditional].append(row(judges, Setting(relative(path), s, "heun", conditional), first, repeats, n))
        known, free = both[True][-1], both[False][-1]
        rows.append({
            **threat_of(t), "train steps": steps, "batch": batch, "training seed": t.seed, "scale": scale, "n": n,
            "seeds": known["seeds"], **{m: known[m] for m in METRICS},
            "unconditional": {"scale": alone, **{m: free[m] for m in METRICS}},
            "alignment at": aligned(path, 100), **robustness(path, 200),
        })  # fmt: skip
    left = [threat_of(t) | {"training seed": t.seed} for t in TRAININGS[trainings:]]
    return {"rows": rows, "not run here": left, "differences": against_first(both), **spreads(rows)}


def relative(path: str) -> str:
    """The name of a file of weights, which is how a setting calls a guide."""
    return path.rsplit("/", 1)[-1]


def threat_of(t: Trained) -> dict[str, Any]:
    """A threat model by its settings; no norm for vanilla training."""
    names = {"norm": "norm", "eps": "eps", "steps": "steps", "radius": "radius", "stop": "stop"}
    return {k: None if t.threat is None else getattr(t.threat, name) for k, name in names.items()}


def against_first(both: dict[bool, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each training less the robust one of the paper, by metric, on the same seeds."""
    found, base = [], next(i for i, t in enumerate(TRAININGS) if t.threat == Threat() and t.seed == 0)
    for conditional, each in both.items():
        for i, r in enumerate(each):
            if i != base:
                found += [{**d, "row": i, "base": base, "conditional": conditional} for d in differences(r, each[base])]
    return found
