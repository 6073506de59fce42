"""Certificates on images of fashion-mini: results/certificates.json, read by the chapter on certification.

    python tools/certificates.py [--part full --part sampled ...] [--images 50] [--n 2000] [--curve 400]

| ``levels``     right answers and agreement with 124 single-head levels, by number of levels and kind of noise
| ``full``       certificates of all images at fixed n, beside those of 124 single-head levels of EPNDC
| ``large``      the same as ``full`` with ``--most`` draws, for the first images only
| ``published``  the same as ``full`` beside those of APNDC, in the published setting of 1 + 124 K evaluations
| ``sampled``    other settings, on those draws that the references were asked about
| ``target``     the same draws, stopped early
| ``curves``     certified accuracy by radius for all base classifiers and three noises
| ``sift``       what the rules of sift and refine save
| ``lipschitz``  the certificate without smoothing

Answers are kept in runs/certify/; killed, the same command continues, and the seconds of a part are those of its last run.
Other parts of the record stay as they are.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from certify_answers import logits, noisy, spent
from certify_bases import build, denoiser, others
from certify_full import full_part, sampled_part
from certify_levels import levels_part
from certify_reference import ALPHA, N0, Lookup
from certify_settings import RACES, ROOT, SEED, SIGMAS, Base, apndc, cascade, epndc, reference
from certify_target import target_part
from torch import nn
from tqdm import tqdm

from rdc.certify import certified_accuracy, certify, lipschitz_certify, lipschitz_constant
from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import fast_dtype
from rdc.early_exit import Leader, Paired, Threshold
from rdc.early_exit.sift import calibrate, sift
from rdc.evaluate import Accuracy
from rdc.runs.record import read_record, write_record
from rdc.schedule import levels

RECORD = ROOT / "results" / "certificates.json"
CHOSEN = (RACES[1],)  # by the part "levels", on other images
MADE = cascade(0.25)  # its answers name the draws on which the part "sampled" compares all others
SAMPLED = (
    *RACES,
    *(cascade(0.25, 8, gap, first) for gap, first in ((1.0, 3), (2.0, 3), (4.0, 3), (2.0, 4), (1.0, 8), (4.0, 8))),
    *(cascade(0.25, 3, gap) for gap in (1.0, 4.0)),
    *(epndc(0.25, t) for t in (4, 8, 16)),
    *(epndc(0.25, t, "single head") for t in (3, 8)),
    reference(0.25),
    reference(0.25, seed=1),
    reference(0.25, published=True),
)
PARTS = ("levels", "full", "large", "published", "sampled", "target", "curves", "sift", "lipschitz")
RADII = tuple(round(0.05 * i, 2) for i in range(61))
LIPSCHITZ = {"kind": "elbo", "count": 8, "sigma_min": 0.5}


def curve_bases() -> list[Base]:
    """Base classifiers of the curves: settings as chosen, at each noise; plain EPNDC at the first only."""
    each = [(Base("Cohen", s), Base("Carlini", s, None, "single head"), cascade(s), apndc(s, 8)) for s in SIGMAS]
    return [b for bases in each for b in bases] + [epndc(SIGMAS[0], 4), *CHOSEN]


def seconds(b: Base, model: nn.Module, images: Images, count: int = 4, draws: int = 50) -> float:
    """Wall time of one draw, nothing stored, on the threads of this run."""
    batches = [noisy(images.x[i], b.sigma, i, range(draws)) for i in range(count)]
    with torch.no_grad():
        model(batches[0])
        start = time.perf_counter()
        for batch in batches:
            model(batch)
    return (time.perf_counter() - start) / (count * draws)


def curve(b: Base, images: Images, n: int) -> dict[str, Any]:
    """Certified accuracy at all radii that n draws can reach, and beyond."""
    model, points = build(b), []
    tables = [logits(b, x, i, N0 + n, model) for i, x in enumerate(tqdm(images.x, desc=f"{b.base} sigma {b.sigma:g}"))]
    for i, table in enumerate(tables):
        found = certify(Lookup(table, i), images.x[i], sigma=b.sigma, n0=N0, n=n, alpha=ALPHA, seed=SEED, index=i, batch=1000)
        points.append((int(found.label == int(images.y[i])), found.radius, found.label))
    each = [spent(b, x, i, N0 + n) for i, x in enumerate(images.x)]
    rows = [{"right": bool(right), "certificate": {"radius": r}} for right, r, _ in points]
    return {
        "base": b.base, "denoiser": b.denoiser, "sigma": b.sigma, "n": n, "images": len(images), "levels": b.levels,
        "passes": float(np.mean(each)), "calls": N0 + n, "abstained": sum(label < 0 for *_, label in points),
        "certified": [{"radius": r, **vars(a)} for r, a in certified_accuracy(rows, RADII).items()],
        "points": [p[:2] for p in points], "seconds": round((N0 + n) * seconds(b, model, images), 2),
    }  # fmt: skip


def curves_part(images: Images, n: int, most: int) -> dict[str, Any]:
    """All curves at one n, and that of the chosen one at the larger n, where the draws are stored anyway."""
    rows = [curve(b, images, n) for b in curve_bases()] + [curve(b, images, most) for b in CHOSEN]
    return {"n0": N0, "alpha": ALPHA, "rows": rows}


def sift_part(count: int) -> dict[str, Any]:
    """Evaluations saved, and answers kept, on one noisy copy of each of some images outside fashion-mini."""
    images, rows, s = others(2 * count), [], SIGMAS[0]
    x = torch.cat([noisy(image, s, i, range(1)) for i, image in enumerate(images.x)])
    for b in (epndc(s, 16, "single head"), apndc(s, 32, "single head"), epndc(s, 16), apndc(s, 32)):
        model = build(b)
        proposal = calibrate(model, x[count:])
        with torch.no_grad():
            full, losses = model(x[:count]).argmax(dim=1), model.losses(x[count:])
        gap = (losses.sum(dim=2) - losses.sum(dim=2).amin(dim=1, keepdim=True)).sort(dim=1).values
        rules = {"Leader": Leader(), "Paired": Paired(proposal)}
        rules |= {"Threshold": Threshold(float(gap[:, 1].quantile(0.9)), levels=8, stop=1, keep=None)}
        for name, rule in rules.items():
            found = sift(model, x[:count], rule, SEED)
            same = Accuracy.of(int((found.label == full).sum()), count)
            settings = {"base": b.base, "denoiser": b.denoiser, "rule": name, "sigma": s, "levels": b.levels}
            rows.append({**settings, "saved": found.saved, "agrees": same, "images": count})
            print(rows[-1], flush=True)
    return {"rows": rows}


def lipschitz_part(images: Images, n: int) -> dict[str, Any]:
    """Margins with their bounds, the radii they give, and the radius if the margin that was seen were exact."""
    chosen, size = levels(**LIPSCHITZ), images.x[0].numel()
    model, rows = DiffusionClassifier(denoiser("heads"), chosen, seed=SEED, chunk=2560), []
    constants = {k: lipschitz_constant(chosen, size, k) for k in ("rigorous", "paper", "released")}
    constants["difference"] = lipschitz_constant(chosen, size, "rigorous", difference=True)
    for i, x in enumerate(tqdm(images.x, desc="lipschitz")):
        both = {f: lipschitz_certify(model, x, n=n, alpha=ALPHA, seed=SEED, index=i, form=f) for f in ("global", "local")}
        found = both["global"]
        rows.append({
            "index": i, "label": found.label, "candidate": found.candidate, "true": int(images.y[i]),
            "margin": found.margin, "margin low": found.margin_low, "radius global": found.radius,
            "radius local": both["local"].radius, "radius if exact": max(0.0, found.margin) / constants["difference"],
        })  # fmt: skip
    right = [r for r in rows if r["candidate"] == r["true"]]
    positive = sum(r["label"] == r["true"] and max(r["radius global"], r["radius local"]) > 0 for r in rows)
    summary = {"right": Accuracy.of(len(right), len(rows)), "certified": Accuracy.of(positive, len(rows)),
               "median radius if exact": float(np.median([r["radius if exact"] for r in right]))}  # fmt: skip
    return {**LIPSCHITZ, "n": n, "alpha": ALPHA, "rows": rows, "constants": constants, "summary": summary}


def store(part: str, run: Callable[[], dict[str, Any]], settings: dict[str, Any]) -> None:
    """Run one part and write it into the record."""
    start, results = time.perf_counter(), run()
    old: dict[str, Any] = read_record(RECORD) if RECORD.exists() else {"results": {}, "config": {"parts": {}}}
    done = {**settings, "seconds": round(time.perf_counter() - start, 1)}
    parts = {**old["config"]["parts"], part: done}
    config = {"data": "fashion-mini", "seed": SEED, "precision": str(fast_dtype()), "parts": parts}
    write_record(RECORD, config, {**old["results"], part: results}, sum(p["seconds"] for p in parts.values()))


def main() -> None:
    """All parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--images", type=int, default=50, help="test images of fashion-mini")
    parser.add_argument("--n", type=int, default=2000, help="draws of a certificate in the part full")
    parser.add_argument("--most", type=int, default=10_000, help="most draws with a target; draws of the part large")
    parser.add_argument("--large", type=int, default=10, help="images of the part large")
    parser.add_argument("--curve", type=int, default=400, help="draws of a certificate in the curves")
    parser.add_argument("--others", type=int, default=300, help="images outside fashion-mini, to choose settings on")
    parser.add_argument("--margin", type=int, default=500, help="draws of the Lipschitz certificate")
    o = parser.parse_args()
    images, published = load("fashion-mini")[: o.images], reference(0.25, published=True)
    runs: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
        "levels": (lambda: levels_part(o.others), {"others": o.others}),
        "sift": (lambda: sift_part(o.others // 10), {"others": o.others // 5}),
        "lipschitz": (lambda: lipschitz_part(images, o.margin), {"images": o.images, "n": o.margin}),
        "full": (lambda: full_part(CHOSEN, reference(0.25), images, o.n), {"images": o.images, "n": o.n}),
        "large": (lambda: full_part(CHOSEN, reference(0.25), images[: o.large], o.most), {"images": o.large, "n": o.most}),
        "published": (lambda: full_part(CHOSEN, published, images, o.n), {"images": o.images, "n": o.n}),
        "sampled": (
            lambda: sampled_part(MADE, (reference(0.25), published), SAMPLED, images, o.n),
            {"images": o.images, "n": o.n},
        ),
        "target": (lambda: target_part(CHOSEN, images, o.n, o.most), {"images": o.images, "n": o.n, "most": o.most}),
        "curves": (lambda: curves_part(images, o.curve, o.n), {"images": o.images, "n": o.curve}),
    }
    for part in o.part or runs:
        store(part, *runs[part])


if __name__ == "__main__":
    main()
