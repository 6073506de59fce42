"""Levels, noise and heads of the noised diffusion classifiers on images outside fashion-mini: a part of tools/certificates.py.

One noisy copy of each image, so that images are independent. ``agrees`` counts the same answers as 124 levels of the single-head
network, on the same noisy images.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from certify_bases import build, once, others, passes, save
from certify_settings import INDEXED, RACES, RUNS, SIGMAS, Base, apndc, cascade, epndc, reference
from torch import Tensor, nn
from tqdm import tqdm

from rdc.evaluate import Accuracy

MODELS: dict[float, list[Base]] = {
    s: [
        *(epndc(s, t, mirror=mirror) for t in (4, 8) for mirror in (False, True)),
        *(apndc(s, t) for t in (4, 8, 16)),
        *(cascade(s, 3, gap) for gap in (1.0, 4.0)),
        Base("Carlini", s, None, "single head"),
        Base("Cohen", s),
        Base("DC, clipped", s, 8, "heads"),
    ]
    for s in SIGMAS
}
#: Only at the first sigma: more levels, other noise, what heads alone and levels alone change, and the reference's other seed.
MORE = [
    *(epndc(0.25, t, mirror=mirror) for t in (2, 3, 6, 16) for mirror in (False, True)),
    *(epndc(0.25, t, form="fixed", mirror=False, coupling="path") for t in (8, 32)),
    *(apndc(0.25, t) for t in (2, 6, 32)),
    *(apndc(0.25, t, form="correct") for t in (8, 16)),
    *(cascade(0.25, t, gap) for t, gap in ((3, 0.5), (3, 2.0), (4, 1.0), (8, 1.0))),
    *(cascade(0.25, 8, gap, first=t) for t, gap in ((3, 1.0), (3, 2.0), (4, 2.0))),
    *RACES,
    epndc(0.25, 8, noise="fresh"),
    apndc(0.25, 8, noise="fresh"),
    *(epndc(0.25, t, "single head") for t in (3, 4, 8)),
    epndc(0.25, 8, "single head", coupling="per_class"),
    apndc(0.25, 8, "single head"),
    apndc(0.25, 8, "single head", coupling="per_class"),
    epndc(0.25, 124, form="fixed", mirror=False),
    epndc(0.25, 124, form="released", mirror=False),
    apndc(0.25, 124),
    apndc(0.25, 8, form="condition-on-y"),
    reference(0.25, seed=1),
]


def answers(b: Base, images: Tensor, size: int = 20, model: nn.Module | None = None) -> np.ndarray:
    """Classes of one noisy copy of each image, stored; those of cascade and race are not, so that they count what they spend."""
    path = RUNS / b.key() / "levels.npy"
    found = np.load(path) if path.exists() and b.base not in ("Cascade", "Race") else np.zeros(0, np.int64)
    if len(found) >= len(images):
        return found[: len(images)]
    model, starts = model or build(b), range(len(found), len(images), size)
    for start in tqdm(starts, desc=f"{b.base} {b.denoiser} {b.form} {b.levels}"):
        found = np.concatenate([found, classes(model, b, images[start : start + size], start)])
        save(path, found)
    return found


def classes(model: nn.Module, b: Base, x: Tensor, start: int) -> np.ndarray:
    """Classes of noisy copies of images ``start...``."""
    keyed = {"index": torch.arange(start, start + len(x))} if b.base in INDEXED else {}
    with torch.no_grad():
        return model(once(x, b.sigma, start), **keyed).argmax(dim=1).numpy()


def levels_part(count: int) -> dict[str, Any]:
    """Right answers of all settings, and agreement with the reference at the first sigma."""
    images, rows = others(count), []
    y, slow = images.y.numpy(), [reference(0.25), reference(0.25, published=True)]
    wanted = dict(zip(("EPNDC", "APNDC"), (answers(b, images.x) for b in slow), strict=True))
    wanted["Cascade"] = wanted["Race"] = wanted["EPNDC"]
    for b in [b for s in SIGMAS for b in MODELS[s]] + MORE + slow:
        model = build(b)
        found, same = answers(b, images.x, model=model), wanted.get(b.base) if b.sigma == 0.25 else None
        right = Accuracy.of(int((found == y).sum()), count)
        agrees = None if same is None else Accuracy.of(int((found == same).sum()), count)
        rows.append({**asdict(b), "passes": passes(b, model), "right": right, "agrees": agrees})
        print(b, rows[-1]["passes"], right, agrees, flush=True)
    return {"rows": rows, "images": count}
