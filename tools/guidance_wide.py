"""The part ``wide`` of tools/guidance.py: a guide that was trained at six times the radius, put to the questions of the others.

Its threat is L2 3.0 where that of the robust guide is 0.5; all else is the same. Scales come from the seeds of the sweep, metrics
from fresh ones, alignment and ascent as in ``alignment`` and ``targeted``, and the attacks are those of ``audit``, at both radii.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from guidance_audit import THREAT, attacked, audit_row, paired, radius
from guidance_checks import LEVELS, RADII, STARTS, alignment_pair, alignment_rows, kept, targeted_row
from guidance_networks import Judges
from guidance_rows import chosen, compared, row
from guidance_samples import TRAINED, Setting, guide_path, weights
from tqdm import tqdm

from rdc.data import load
from rdc.denoise.checkpoints import read_checkpoint
from rdc.denoise.optimal import OptimalDenoiser
from rdc.evaluate import Accuracy
from rdc.guide.threat import level_table

NAME = "wide"
PAIRS = tuple((NAME, other) for other in ("none", "vanilla", "robust"))
TOWARDS = ("true class", "another class")
Scales = dict[tuple[str, bool], tuple[float, ...]]


def factor() -> float:
    """How many times the paper's radius it was trained at, as its file says."""
    recipe = read_checkpoint(guide_path(NAME), "classifier")[1]["recipe"]
    if replace(THREAT, eps=recipe["threat"]["eps"]) != type(THREAT)(**recipe["threat"]):
        raise ValueError(f"{guide_path(NAME)} was trained with {recipe['threat']}, not with another eps alone")
    return recipe["threat"]["eps"] / THREAT.eps


def swept(judges: Judges, scales: Scales, first: int, repeats: int, n: int) -> list[dict[str, Any]]:
    """Every scale of ``scales``; while the largest is the best, twice as much, four times at most: gradients may be shorter."""
    rows = []
    for (plan, conditional), some in tqdm(scales.items(), desc="wide, scales", unit="setting"):
        found, todo = [], list(some)
        while todo:
            found += [row(judges, Setting(NAME, s, plan, conditional), first, repeats, n) for s in todo]
            best = chosen(found, NAME, plan, conditional)
            todo = [2 * best] if max(r["scale"] for r in found) == best < 4 * max(some) else []
        rows += found
    return rows


def compared_rows(
    judges: Judges, scales: Scales, pick: Callable[[str, str, bool], float], first: int, repeats: int, n: int
) -> list[dict[str, Any]]:
    """Without a guide and with each of three, at the scales chosen for each."""
    todo = []
    for plan, conditional in scales:
        todo += [Setting("none", 0.0, plan, conditional)]
        todo += [Setting(g, pick(g, plan, conditional), plan, conditional) for g in TRAINED]
    return [row(judges, s, first, repeats, n) for s in tqdm(todo, desc="wide, main", unit="row")]


def aligned(n: int) -> dict[str, Any]:
    """Cosines with the exact direction, and differences from the vanilla and the robust guide on the same images."""
    rows = [r for towards in TOWARDS for r in alignment_rows(NAME, towards, n)]
    pairs = [alignment_pair(sigma, to, n, NAME, b) for b in ("vanilla", "robust") for to in TOWARDS for sigma in LEVELS]
    return {"rows": rows, "differences": pairs}


@cache
def posterior() -> OptimalDenoiser:
    """The optimal denoiser of the train split of fashion-mini; its posterior is what Bayes' rule makes of these images."""
    images = load("fashion-mini", "train")
    return OptimalDenoiser(images.x, images.y)


def bayes(sigma: float, times: float, n: int) -> dict[str, Any]:
    """The exact posterior under the attack of the training: what is possible at a level where classes overlap."""
    settings = {"part": "attacked posterior", "sigma": sigma, "eps": times * THREAT.eps, "n": n}

    def run() -> dict[str, Any]:
        threat = replace(THREAT, eps=times * THREAT.eps)
        found = level_table(posterior().log_density, load("fashion-mini")[:n], (sigma,), threat, batch=25)[0]
        counts = {"clean": found["clean"], "training attack": found["adversarial"]}
        how = {"guide": "exact posterior", "sigma": sigma, "eps": times * radius(sigma), "norm": "L2", "steps": threat.steps}
        return {**how, **{k: vars(Accuracy.of(v, n)) for k, v in counts.items()}}

    return kept(settings, run)


def audited_rows(groups: int, size: int, steps: int, restarts: int, audited: int) -> dict[str, Any]:
    """All three under attack at both radii and every level; the attack of the first noise is audited; pairs by McNemar."""
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "pairs": []}
    todo = [(times, sigma) for times in (1.0, factor()) for sigma in LEVELS]
    for times, sigma in tqdm(todo, desc="wide, audit", unit="level"):
        each = {
            g: [attacked(g, sigma, k, size, steps, restarts, 0 if k else audited, times) for k in range(groups)] for g in TRAINED
        }
        how = {"sigma": sigma, "times": times, "eps": times * radius(sigma), "norm": "L2", "steps": steps, "restarts": restarts}
        found["rows"] += [audit_row(g, how, e, audited) for g, e in each.items()]
        found["rows"] += [{**bayes(sigma, times, 2 * size), "times": times}] if sigma >= 1 else []
        for what in ("robust", "clean"):
            right = {g: [v for e in parts for v in e[what]] for g, parts in each.items()}
            found["pairs"] += [
                {"a": NAME, "b": b, "of": what, **how, **paired(right[NAME], right[b])} for b in ("vanilla", "robust")
            ]
    return found


def wide_part(
    judges: Judges, scales: Scales, scale_of: Callable[[str, str, bool], float], sweep: int, fresh: int, repeats: int, n: int,
    images: int, groups: int, size: int, steps: int, restarts: int, audited: int,
) -> dict[str, Any]:  # fmt: skip
    """All of it."""
    rows = swept(judges, scales, sweep, repeats, n)

    def pick(guide: str, plan: str, conditional: bool) -> float:
        return chosen(rows, NAME, plan, conditional) if guide == NAME else scale_of(guide, plan, conditional)

    picked = [{"guide": NAME, "plan": p, "conditional": c, "scale": pick(NAME, p, c)} for p, c in scales]
    main = compared_rows(judges, scales, pick, fresh, repeats, n)
    trained = {"weights": weights(guide_path(NAME), "classifier"), "times the radius": factor()}
    return {
        "guide": trained, "scales": rows, "chosen": picked, "main": main, "differences": compared(main, PAIRS),
        "targeted": [targeted_row(NAME, s, r, images, judges) for s in STARTS for r in RADII],
        "alignment": aligned(images), "audit": audited_rows(groups, size, steps, restarts, audited),
    }  # fmt: skip
