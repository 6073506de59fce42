"""Write what the figures that move show, one file each in book/moving/: from stored results, or from models that are shipped.

    python scripts/make_moving.py [scale] [levels] [radius]

``scale`` reads results/guidance-scales.jsonl; ``levels`` denoises three test images, ``radius`` attacks
three digits. The figure of certificates needs no file: the browser computes it.
"""

import base64
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rdc.attack import pgd
from rdc.attack.losses import margin
from rdc.data import load
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import load_denoiser, locate, read_checkpoint
from rdc.experiments._rows import lm, row
from rdc.guide.reading import mean
from rdc.notebook.guided import METRICS
from rdc.notebook.stored import stored_cells
from rdc.rng import randn
from rdc.runs.cell import Row
from rdc.runs.record import write_atomic
from rdc.tasks.attack import key, made, test_images, weights

FOLDER = Path(__file__).parents[1] / "book" / "moving"
DATA, DIGITS = "fashion-mini", "digits"  # that are denoised, and attacked
RADII = (0, 0.05, 0.1, 0.15, 0.2, 0.3)  # Linf, image units
BUDGET = 0.15  # of likelihood maximisation: the radius of adversarial training
SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # model units
ATTACKED, DENOISED = 3, 3  # images
#: What is attacked, and through which gradient; the rows of the experiment rdc-suite, on digits.
SERIES: tuple[tuple[str, str, Row], ...] = (
    *((model, "pgd", replace(row("suite", model), data=DIGITS)) for model in ("CNN", "AT", "DC")),
    *(("RDC", g, replace(lm("suite", g, budget=BUDGET), data=DIGITS)) for g in ("bpda", "exact", "smoothed 0.3")),
)
MODELS = tuple({model: one for model, _, one in reversed(SERIES)}.items())[::-1]


def sprite(tiles: Tensor) -> str:
    """Images ``(rows, columns, H, W)`` in [0, 1] in one, as PNG in base 64."""
    rows, columns, h, w = tiles.shape
    grey = (255 * tiles.clamp(0, 1)).round().to(torch.uint8).transpose(1, 2).reshape(rows * h, columns * w)
    Image.fromarray(grey.numpy()).save(file := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def short(values: Tensor) -> Any:
    """Numbers with four digits."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.4g}"))


def scale() -> dict[str, Any]:
    """Metrics of guided samples by scale, with intervals over repetitions."""
    found = [one for one in stored_cells("guidance-scales") if one.row.about["plan"] == "heun"]
    rows = []
    for one in found:
        about, means = one.row.about, {name: mean(one, name) for name in METRICS}
        line = {"guide": about["guide"], "conditional": about["conditional"], "scale": about["scale"], "n": one.n}
        rows.append(line | {name: short(torch.tensor([m.value, m.low, m.high])) for name, m in means.items()})
    return {"images": found[0].row.about["images"], "rows": rows}


def denoised(i: int) -> tuple[Tensor, Tensor]:
    """Tiles ``(levels, 1 + K, H, W)``, the noisy image and one for each class, and squared errors ``(levels, K)``."""
    x, denoiser = load(DATA, "test").x[i : i + 1], load_denoiser(DATA)
    z, classes = to_model(x), torch.arange(10)
    noise = randn(z.shape, "moving figure", "levels", i)
    tiles, errors = [], []
    for sigma in SIGMAS:
        noisy = z + sigma * noise
        with torch.no_grad():
            found = denoiser(noisy.expand(10, -1, -1, -1), torch.full((10,), sigma), classes)
        tiles.append((torch.cat([noisy, found])[:, 0] + 1) / 2)
        errors.append((found - z).square().flatten(1).sum(dim=1))
    return torch.stack(tiles), torch.stack(errors)


def levels() -> dict[str, Any]:
    """Test images with noise, denoised as each class."""
    test = load(DATA, "test")
    found = [denoised(i) for i in range(DENOISED)]
    return {
        "classes": test.classes, "sigmas": SIGMAS, "labels": test.y[:DENOISED].tolist(),
        "errors": short(torch.stack([e for _, e in found])),
        "columns": 11, "sprite": sprite(torch.cat([t for t, _ in found])),
        "weights": {DATA: read_checkpoint(locate(DATA), "denoiser")[1]["tensors_sha256"]},
    }  # fmt: skip


def model_of(one: Row) -> torch.nn.Module:
    """The model of a row."""
    return made(one.model, one.data, "cpu", key(one.options))


def seen(one: Row, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which class a model says, and its margin: logit of the class less the largest other one."""
    with torch.no_grad():
        logits = model_of(one)(x)
    return logits.argmax(dim=1), -margin(logits, y)


def shaken(one: Row, x: Tensor, y: Tensor, eps: float, index: Tensor) -> Tensor:
    """Images moved by ``eps`` up or down in each pixel, at random."""
    noise = torch.stack([randn(x.shape[1:], "moving figure", "signs", int(i)) for i in index])
    return (x + eps * noise.sign()).clamp(0, 1)


def attacked(one: Row, x: Tensor, y: Tensor, eps: float, index: Tensor) -> Tensor:
    """Images under the attack of a row, at another radius."""
    return pgd(model_of(one), x, y, **{**one.arguments, "eps": eps}, index=index)


def by_radius(
    move: Callable[..., Tensor], judges: Sequence[Row], x: Tensor, y: Tensor, index: Tensor
) -> tuple[Tensor, list[Any]]:
    """Tiles ``(N, radii, H, W)``, and for each judge what it says and its margins, both ``(N, radii)``."""
    moved = [x if not r else move(judges[0], x, y, r, index) for r in RADII]
    found = [[seen(judge, one, y) for one in moved] for judge in judges]
    both = [(torch.stack([s for s, _ in one], 1).tolist(), short(torch.stack([m for _, m in one], 1))) for one in found]
    return torch.stack(moved, dim=1)[:, :, 0], both


def chosen() -> Tensor:
    """The first test images that all models get right."""
    x, y, index = test_images(DIGITS, 0, 16, "cpu")
    right = torch.stack([seen(one, x, y)[0] == y for _, one in MODELS]).all(dim=0)
    return index[right][:ATTACKED]


def radius() -> dict[str, Any]:
    """Verdicts and margins of four classifiers by radius, under random signs and under attack."""
    index, test = chosen(), load(DIGITS, "test")
    x, y = test.x[index], test.y[index]
    tiles, both = by_radius(shaken, [one for _, one in MODELS], x, y, index)
    rows, pictures = [], [tiles]
    for (name, _), (said, margins) in zip(MODELS, both, strict=True):
        rows.append({"model": name, "attack": "noise", "row": 0, "said": said, "margin": margins})
    for number, (name, gradient, one) in enumerate(SERIES, 1):
        print(name, gradient, flush=True)
        tiles, [(said, margins)] = by_radius(attacked, [one], x, y, index)
        pictures.append(tiles)
        rows.append({"model": name, "attack": gradient, "row": number, "said": said, "margin": margins})
    return {
        "classes": test.classes, "radii": RADII, "index": index.tolist(), "labels": y.tolist(),
        "series": rows, "columns": len(RADII), "rows": len(pictures),
        "sprite": sprite(torch.stack(pictures, dim=1).flatten(0, 1)),
        "weights": dict(sorted(item for _, one in MODELS for item in weights(one).items())),
    }  # fmt: skip


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {"scale": scale, "levels": levels, "radius": radius}


def text(content: dict[str, Any]) -> str:
    """The file, a value a line where that is short."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()) + "\n}\n"


if __name__ == "__main__":
    for wanted in sys.argv[1:] or FIGURES:
        write_atomic(FOLDER / f"{wanted}.json", text(FIGURES[wanted]()).encode())
