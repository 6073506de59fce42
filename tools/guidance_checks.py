"""What tools/guidance.py asks of the guides themselves: alignment with the exact direction, targeted ascent.

Every piece is kept in runs/guidance/ as soon as it is done.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from guidance_networks import RUNS, Judges
from guidance_samples import HEADS, SINGLE, build, digest, guide_path, weights
from torch import Tensor
from tqdm import tqdm

from rdc.data import Images, load
from rdc.denoise.base import from_model, to_model
from rdc.denoise.checkpoints import locate
from rdc.denoise.optimal import OptimalDenoiser
from rdc.evaluate import Accuracy, predict
from rdc.guide.align import alignment, alignment_table, climb, direction
from rdc.guide.guides import Guide
from rdc.guide.metrics import bootstrap
from rdc.rng import randn
from rdc.runs.record import unfold, write_atomic

CLASSIFIERS = ("vanilla", "robust")
LEVELS = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0)
RADII, STARTS = (3.0, 6.0, 12.6), (0.02, 0.3)  # model units; 12.6 is the paper's 100 at 3 x 128 x 128, by pixel


def kept(settings: dict[str, Any], run: Callable[[], Any]) -> Any:
    """A piece of work, done once; what is returned went through JSON."""
    path = RUNS / digest(settings) / "answer.json"
    if not path.exists():
        content = {"settings": settings, "answer": run()}
        write_atomic(path, json.dumps(content, indent=1, default=unfold).encode())
    return json.loads(path.read_text(encoding="utf8"))["answer"]


def source(guide: str) -> str:
    """Which network a guide is: the start of its hash."""
    path = guide_path(guide)
    if path:
        return weights(path, "classifier")
    return weights(locate(SINGLE if guide == "classifier-free" else HEADS), "denoiser")


@cache
def exact() -> OptimalDenoiser:
    """The optimal denoiser of the train split of fashion-mini, in float64."""
    images = load("fashion-mini", "train")
    return OptimalDenoiser(images.x.double(), images.y)


def in_float(guide: Guide) -> Guide:
    """A guide that sees float32, as it does when it samples."""
    return lambda z, sigma, y: guide(z.float(), sigma.float(), y).to(z.dtype)


def alignment_rows(guide: str, towards: str, n: int, levels: tuple[float, ...] = LEVELS) -> list[dict[str, Any]]:
    """Cosines with the direction of the optimal denoiser, towards the true class or the next one, on test images."""
    settings = {"part": "alignment", "guide": guide, "weights": source(guide), "to": towards, "n": n, "levels": levels}

    def run() -> list[dict[str, Any]]:
        images = load("fashion-mini")[:n]
        y = images.y if towards == "true class" else (images.y + 1) % len(images.classes)
        found = alignment_table({guide: in_float(build(guide, torch.float32))}, exact(), images.x.double(), y, levels)
        return [
            {"classifier": guide, "towards": towards, "sigma": r["sigma"], "images": n, "with direction": r["n"],
             "score": {"value": r["cosine"], "low": r["low"], "high": r["high"]}, "strength": r["strength"]}
            for r in found
        ]  # fmt: skip

    return kept(settings, run)


def alignment_pair(sigma: float, towards: str, n: int, a: str = "robust", b: str = "vanilla") -> dict[str, Any]:
    """Cosine of guide ``a`` less that of ``b`` on the same noisy images, where there is a direction."""
    settings = {"part": "alignment pair", "weights": [source(g) for g in (b, a)], "sigma": sigma, "to": towards, "n": n}

    def run() -> dict[str, Any]:
        images = load("fashion-mini")[:n]
        y = images.y if towards == "true class" else (images.y + 1) % len(images.classes)
        eps = torch.stack([randn(tuple(images.x.shape[1:]), 0, "align", i) for i in range(n)])
        z, level = (to_model(images.x) + sigma * eps).double(), torch.full((n,), sigma, dtype=torch.float64)
        found = {g: alignment(in_float(build(g, torch.float32)), exact(), z, level, y).cosine for g in (b, a)}
        change = found[a] - found[b]
        mean = bootstrap(lambda c: float(c.mean()), change[~change.isnan()])
        answer = {"a": a, "b": b, "towards": towards, "sigma": sigma, "n": int((~change.isnan()).sum())}
        return {**answer, "value": mean.value, "low": mean.low, "high": mean.high}

    return kept(settings, run)


def alignment_part(n: int, few: int) -> dict[str, Any]:
    """Four guides; the diffusion classifier on fewer images."""
    todo = [(g, to) for to in ("true class", "another class") for g in (*CLASSIFIERS, "classifier-free", "diffusion classifier")]
    rows = []
    for guide, towards in tqdm(todo, desc="alignment", unit="guide"):
        rows += alignment_rows(guide, towards, few if guide == "diffusion classifier" else n)
    pairs = [alignment_pair(sigma, to, n) for to in ("true class", "another class") for sigma in LEVELS]
    return {"exact": "optimal denoiser of the 10 000 train images of fashion-mini, float64", "rows": rows, "differences": pairs}


def targeted_row(guide: str, start: float, r: float, n: int, judges: Judges) -> dict[str, Any]:
    """Ascent of the next class from noisy test images at a low level."""
    settings = {"part": "targeted", "guide": guide, "weights": source(guide), "sigma": start, "radius": r, "n": n}

    def run() -> dict[str, Any]:
        images = load("fashion-mini")[:n]
        found = climbed(build(guide, torch.float32), images, start, r)
        moved, z, y = found
        reached = predict(judges.judge, from_model(moved).clamp(0, 1), 250) == y
        cosine = along(exact(), moved - z, z, y)
        mean = bootstrap(lambda c: float(c.mean()), cosine)
        before = predict(judges.judge, from_model(z).clamp(0, 1), 250) == y
        return {
            "guide": guide, "sigma": start, "radius": r, "steps": 7, "n": n, "reached": Accuracy.of(int(reached.sum()), n),
            "before": Accuracy.of(int(before.sum()), n), "alignment": {"value": mean.value, "low": mean.low, "high": mean.high},
        }  # fmt: skip

    return kept(settings, run)


def climbed(guide: Guide, images: Images, start: float, r: float) -> tuple[Tensor, Tensor, Tensor]:
    """Result of the ascent, where it began, and the targets: for each image the class after its own."""
    z, y = to_model(images.x), (images.y + 1) % len(images.classes)
    z = z + start * torch.stack([randn(tuple(z.shape[1:]), 0, "targeted", i) for i in range(len(z))])
    return climb(guide, z, torch.full((len(z),), start), y, r), z, y


def along(denoiser: OptimalDenoiser, change: Tensor, z: Tensor, y: Tensor, sigma: float = 1.0) -> Tensor:
    """Cosine of a change of the image with the way to class y as the optimal denoiser sees it at a level that smooths it."""
    wanted = direction(denoiser, z.double(), torch.full((len(z),), sigma, dtype=torch.float64), y)
    return torch.nn.functional.cosine_similarity(change.flatten(1).double(), wanted.flatten(1), dim=1)


def targeted_part(judges: Judges, n: int, few: int) -> dict[str, Any]:
    """Guides, starts and radii."""
    todo = [(g, s, r) for g in (*CLASSIFIERS, "diffusion classifier") for s in STARTS for r in RADII]
    count = {"diffusion classifier": few}
    rows = [targeted_row(g, s, r, count.get(g, n), judges) for g, s, r in tqdm(todo, desc="targeted", unit="row")]
    return {"rows": rows}
