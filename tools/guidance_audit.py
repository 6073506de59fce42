"""Both classifiers of tools/guidance.py attacked at every noise level, with an audit of the attack.

The noise of a level is known to the attacker, who changes the clean image in [0, 1]: a change by delta moves the noisy image by
2 delta. ``training attack`` is that of the training, on the noisy image, with new noise for each image and nothing clipped.
"""

from dataclasses import replace
from typing import Any

import torch
from guidance_checks import CLASSIFIERS, LEVELS, kept, source
from guidance_samples import guide_path
from scipy.stats import binomtest
from tqdm import tqdm

from rdc.attack import pgd
from rdc.data import load
from rdc.evaluate import Accuracy, predict
from rdc.evaluate.audit import audit
from rdc.guide.classifier import AtLevel, load_classifier
from rdc.guide.threat import Threat, level_table

THREAT = Threat()  # of the shipped robust guide


def attacked(
    guide: str, sigma: float, group: int, size: int, steps: int, restarts: int, audited: int, factor: float = 1.0
) -> dict[str, Any]:
    """One level with one noise: verdicts on some images, clean and under PGD, and the audit of the attack."""
    given = {k: v for k, v in locals().items() if (k, v) != ("factor", 1.0)}
    settings = {"part": "audit", "weights": source(guide), **given}

    def run() -> dict[str, Any]:
        classifier, other = (load_classifier(guide_path(g)) for g in (guide, next(c for c in CLASSIFIERS if c != guide)))
        model, rival = (AtLevel(c, sigma, seed=group) for c in (classifier, other))
        images, eps = load("fashion-mini")[group * size : (group + 1) * size], factor * radius(sigma) / 2
        x_adv = pgd(model, images.x, images.y, norm="L2", eps=eps, steps=steps, restarts=restarts, seed=group)
        clean, robust = (predict(model, x) == images.y for x in (images.x, x_adv))
        table = level_table(classifier, images, (sigma,), replace(THREAT, eps=factor * THREAT.eps), seed=group)
        found = {"clean": clean, "robust": clean & robust, "training": table[0]["adversarial"]}
        if audited:
            few = images[:audited]
            report = audit(model, few.x, few.y, "L2", eps, steps=steps, surrogate=rival, queries=50, everything=True)
            found |= {"ok": report.ok, "checks": [vars(r) for r in report.rows]}
        return found

    return kept(settings, run)


def radius(sigma: float) -> float:
    """Of the threat at a level, model units."""
    return float(THREAT.radius_at(torch.tensor(sigma, dtype=torch.float64)))


def audit_part(groups: int, wide: int, size: int, steps: int, restarts: int, audited: int) -> dict[str, Any]:
    """All levels, both guides, several noises, the attack of the first audited; fewer at four times the radius, not audited."""
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "pairs": []}
    todo = [(factor, sigma) for factor in (1.0, 4.0) for sigma in LEVELS]
    for factor, sigma in tqdm(todo, desc="audit", unit="level"):
        count, some = (groups, audited) if factor == 1 else (wide, 0)
        each = {
            guide: [attacked(guide, sigma, g, size, steps, restarts, 0 if g else some, factor) for g in range(count)]
            for guide in CLASSIFIERS
        }
        how = {"sigma": sigma, "eps": factor * radius(sigma), "norm": "L2", "steps": steps, "restarts": restarts}
        found["rows"] += [audit_row(guide, how, e, some) for guide, e in each.items()]
        right = {guide: [v for e in parts for v in e["robust"]] for guide, parts in each.items()}
        found["pairs"].append({"a": "robust", "b": "vanilla", **how, **paired(right["robust"], right["vanilla"])})
    return found


def audit_row(guide: str, how: dict[str, Any], each: list[dict[str, Any]], audited: int) -> dict[str, Any]:
    """Accuracies over all noises, and the verdict on the attack of the first."""
    n = sum(len(e["clean"]) for e in each)
    counts = {"clean": sum(sum(e["clean"]) for e in each), "robust": sum(sum(e["robust"]) for e in each),
              "training attack": sum(e["training"] for e in each)}  # fmt: skip
    verdict = ("believed" if each[0]["ok"] else "rejected") if audited else "not audited"
    checks = [c for c in each[0].get("checks", []) if c["verdict"] != "pass"]
    ratio = how["eps"] / (how["sigma"] * 28)
    rest = {"noises": len(each), "eps over noise": ratio, "audited": audited, "verdict": verdict, "checks": checks}
    return {"guide": guide, **how, **{k: Accuracy.of(v, n) for k, v in counts.items()}, **rest}


def paired(a: list[bool], b: list[bool]) -> dict[str, Any]:
    """Difference of two accuracies on the same images with the interval of Agresti and Min, and McNemar's exact test."""
    only_a, only_b, n = sum(x > y for x, y in zip(a, b, strict=True)), sum(x < y for x, y in zip(a, b, strict=True)), len(a)
    more, less, count = only_a + 0.5, only_b + 0.5, n + 2
    middle, half = (more - less) / count, 1.96 * (more + less - (more - less) ** 2 / count) ** 0.5 / count
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    difference = {"value": (only_a - only_b) / n, "low": middle - half, "high": middle + half}
    return {"n": n, "only a": only_a, "only b": only_b, "difference": difference, "McNemar p": float(p)}
