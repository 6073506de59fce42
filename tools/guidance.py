"""Robust classifier guidance on fashion-mini: results/guidance.json, read by the chapter on guidance.

    python tools/guidance.py [--part scales|main|threats|alignment|audit|targeted|wide|chain|all] [--n 200] [--repeats 3]

| ``prepare``    trains the networks that judge, and the short trainings of ``threats``; nothing in the record
| ``scales``     every metric by scale and guide, on seeds of its own: the scales of the other parts are chosen here
| ``main``       no guide, vanilla, robust, classifier-free, diffusion classifier, on fresh seeds, with paired differences
| ``threats``    short robust trainings by norm, radius, steps and stopping rule
| ``alignment``  cosine of each guide's gradient with the exact direction
| ``audit``      both classifiers attacked at six noise levels, with an audit of the attack
| ``targeted``   ascent of another class, judged by an independent classifier
| ``wide``       scales, main, alignment and audit of a third guide, trained at six times the radius
| ``chain``      the paper's chain with its 250 steps, beside that with 25

The plans: ``ddpm`` is the paper's chain and form of guidance with 25 steps, ``ddpm250`` with all 250. ``heun`` is cheaper, 17
evaluations, and its images are a smooth function of their first noise, so that paired differences are smaller; the sweeps and
threats use it.

Samples and answers are kept in runs/guidance/; killed, the same command continues, and the seconds of a part are
processor time of its last run. Other parts of the record stay as they are.
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from guidance_audit import audit_part
from guidance_chain import chain_part
from guidance_checks import alignment_part, targeted_part
from guidance_networks import RECIPES, ROOT, TRAININGS, cnn, describe, judges
from guidance_rows import chosen, compared, differences, real_rows, row
from guidance_samples import HEADS, SINGLE, Setting
from guidance_threats import threats_part
from guidance_wide import wide_part
from tqdm import tqdm

from rdc.data import load
from rdc.data.unseen import unseen
from rdc.denoise import fast_dtype
from rdc.runs.record import read_record, write_record

RECORD = ROOT / "results" / "guidance.json"
SWEEP, FRESH = 1_000_000, 2_000_000  # first seeds
SCALES = {
    ("heun", True): (0.25, 0.5, 1.0, 2.0),
    ("heun", False): (1.0, 2.0, 4.0),
    ("ddpm", True): (1.0, 3.0),
}
WIDE = {k: v for k, v in SCALES.items() if k[0] == "heun"}  # where the third guide is compared
FREE = (0.5, 1.0)
PAIRS = (("vanilla", "none"), ("robust", "none"), ("robust", "vanilla"), ("classifier-free", "none"),
         ("classifier-free", "robust"), ("diffusion classifier", "none"), ("diffusion classifier", "robust"))  # fmt: skip


def sweep() -> list[Setting]:
    """What is tried: without a guide, then every scale of every guide."""
    found = []
    for (plan, conditional), scales in SCALES.items():
        found.append(Setting("none", 0.0, plan, conditional))
        found += [Setting(g, s, plan, conditional) for g, s in product(("vanilla", "robust"), scales)]
        if (plan, conditional) == ("heun", True):
            found += [Setting("classifier-free", s, plan, conditional) for s in FREE]
    return found


def scales_part(repeats: int, n: int) -> dict[str, Any]:
    """Tables 5 and 6."""
    rows = [row(judges(), s, SWEEP, repeats, n) for s in tqdm(sweep(), desc="scales", unit="row")]
    combinations = dict.fromkeys((r["guide"], r["plan"], r["conditional"]) for r in rows if r["scale"] > 0)
    picked = [{"guide": g, "plan": p, "conditional": c, "scale": chosen(rows, g, p, c)} for g, p, c in combinations]
    pairs = [differences(a, b) for a, b in product(rows, rows) if same_scale(a, b)]
    return {"rows": rows, "chosen": picked, "differences": [d for p in pairs for d in p]}


def same_scale(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two rows are robust and vanilla guidance with the same plan and scale."""
    alike = all(a[k] == b[k] for k in ("plan", "conditional", "scale"))
    return alike and (a["guide"], b["guide"]) == ("robust", "vanilla")


def scale_of(guide: str, plan: str = "heun", conditional: bool = True) -> float:
    """As chosen in the record."""
    results = read_record(RECORD)["results"] if RECORD.exists() else {}
    return chosen(results.get("scales", {"rows": []})["rows"], guide, plan, conditional)


def main_part(repeats: int, n: int, few: int) -> dict[str, Any]:
    """Table 1, on all images and on the first ones of each repetition, where the slow guide was run."""
    todo = []
    for plan, conditional in SCALES:
        guides = ["vanilla", "robust"] + (["classifier-free"] if (plan, conditional) == ("heun", True) else [])
        here = [Setting("none", 0.0, plan, conditional)]
        here += [Setting(g, scale_of(g, plan, conditional), plan, conditional) for g in guides]
        todo += [(s, n) for s in here]
        if (plan, conditional) == ("heun", True):
            slow = [Setting("diffusion classifier", s, plan) for s in (here[2].scale,)]
            exact = [Setting(s.guide, s.scale, plan, dtype="float32") for s in here[1:3]]
            todo += [(s, few) for s in (*here, *slow, *exact)]
    rows = [row(judges(), s, FRESH, repeats, size) for s, size in tqdm(todo, desc="main", unit="row")]
    return {"rows": rows, "real": floor(repeats, n), "differences": compared(rows, PAIRS)}


def floor(repeats: int, n: int) -> list[dict[str, Any]]:
    """Real images in the place of generated ones."""
    sets = {"train": load("fashion-mini", "train")}
    try:
        sets["test, not of fashion-mini"] = unseen(8_000)
    except ValueError as error:
        print(f"without images outside fashion-mini: {error}")
    return real_rows(judges(), sets, repeats, n)


def prepare(steps: int, batch: int, trainings: int) -> None:
    """Everything that needs no guide."""
    for which in RECIPES:
        print(cnn(which)[0], flush=True)
    for t in TRAININGS[:trainings]:
        print(t.fit(steps, batch), flush=True)


def store(part: str, run: Callable[[], dict[str, Any]], settings: dict[str, Any]) -> None:
    """Run one part and write it into the record."""
    start, results = time.process_time(), run()
    old: dict[str, Any] = read_record(RECORD) if RECORD.exists() else {"results": {}, "config": {"parts": {}}}
    done = {**settings, "seconds": round(time.process_time() - start, 1)}
    parts = {**old["config"]["parts"], part: done}
    seeds = {"sweep": SWEEP, "main": FRESH, "guides": 0}
    config = {"data": "fashion-mini", "denoiser": SINGLE, "multi-head": HEADS, "precision": str(fast_dtype()), "seeds": seeds,
              "networks": old["config"].get("networks") or describe(), "parts": parts}  # fmt: skip
    write_record(RECORD, config, {**old["results"], part: results}, sum(p["seconds"] for p in parts.values()))
    print(f"{part}: done in {done['seconds']:.0f} s of processor time", flush=True)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("prepare", "scales", "main", "threats", "alignment", "audit", "targeted", "wide", "chain", "all")
    parser.add_argument("--part", action="append", choices=names, help="may be repeated; by default all")
    for name, value, meaning in (
        ("n", 200, "images of a repetition"), ("repeats", 3, "repetitions of scales and threats"),
        ("main", 3, "repetitions of main"), ("few", 100, "images of a repetition with the slow guide"),
        ("trainings", 6, "how many of the short trainings"), ("steps", 300, "their steps"), ("batch", 32, "images of a step"),
        ("images", 100, "images of alignment and targeted"), ("slow", 40, "of these, for the slow guide"),
        ("groups", 12, "noises of the audit"), ("wide", 4, "noises at four times the radius"),
        ("size", 25, "images of each noise"), ("pgd", 20, "steps of PGD"),
        ("restarts", 2, "restarts of PGD"), ("audited", 10, "images of the audit"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=meaning)
    return parser


def main() -> None:
    """All parts, or some."""
    o = options().parse_args()
    torch.set_num_threads(1)
    runs: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
        "scales": (scales_part, {"repeats": o.repeats, "n": o.n}),
        "main": (main_part, {"repeats": o.main, "n": o.n, "few": o.few}),
        "alignment": (alignment_part, {"n": o.images, "few": o.slow}),
        "audit": (audit_part, {k: getattr(o, k) for k in ("groups", "wide", "size", "restarts", "audited")} | {"steps": o.pgd}),
        "targeted": (lambda **k: targeted_part(judges(), **k), {"n": o.images, "few": o.slow}),
        "threats": (
            lambda **k: threats_part(judges(), scale_of("robust"), scale_of("robust", conditional=False), SWEEP, **k),
            {k: getattr(o, k) for k in ("repeats", "n", "steps", "batch", "trainings")},
        ),
        "wide": (
            lambda **k: wide_part(judges(), WIDE, scale_of, SWEEP, FRESH, **k),
            {"repeats": o.main, "n": o.n, "images": o.images, "steps": o.pgd}
            | {k: getattr(o, k) for k in ("groups", "size", "restarts", "audited")},
        ),
        "chain": (lambda **k: chain_part(judges(), scale_of, FRESH, **k), {"repeats": o.repeats, "n": o.n}),
    }
    wanted = o.part or ["all"]
    try:
        if "prepare" in wanted or "all" in wanted:
            prepare(o.steps, o.batch, o.trainings)
        for part, (run, settings) in runs.items():
            if part in wanted or "all" in wanted:
                store(part, lambda run=run, settings=settings: run(**settings), settings)
    except (ValueError, OSError) as error:
        sys.exit(f"guidance: {error}")
    except KeyboardInterrupt:
        sys.exit("guidance: interrupted; the same command continues")


if __name__ == "__main__":
    main()
