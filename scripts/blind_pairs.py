"""Make the pairs of the blind comparison: _static/blind.png, all images in one, and book/blind/pairs.html, what they are.

    python scripts/blind_pairs.py [--guide FILE] [--scale 4] [--sampler heun|ddpm|paper] [--unconditional]

A pair is one seed and one class, once without a guide, once guided by a robust classifier. Nothing is selected: seeds 0 to 11,
class seed mod 10. The images lie in the sprite in a random order of a fixed seed, the two of a pair are named in the order of
their places, and which of them is the guided one is written as one packed string: no reader learns it from the page by accident.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdc.data import load
from rdc.denoise.checkpoints import load_denoiser, locate, read_checkpoint
from rdc.guide.classifier import SHIPPED, load_classifier
from rdc.guide.guides import ClassifierGuide
from rdc.guide.plan import PLANS
from rdc.guide.sampling import sample
from rdc.rng import generator
from rdc.runs.record import environment, write_atomic

ROOT = Path(__file__).parents[1]
SPRITE, PAGE = ROOT / "_static" / "blind.png", ROOT / "book" / "blind" / "pairs.html"
HEAD, TAIL = '<script type="application/json" id="blind-data">\n', "\n</script>\n"  # a page on disk may not fetch a file
DATA, SEEDS, COLUMNS = "fashion-mini", range(12), 8
#: Those of the experiments on guidance, so that their choice of scales holds here; and the paper's chain with all its 250 steps.
SAMPLERS = {**PLANS, "paper": PLANS["ddpm250"]}


def classes_of(seeds: Sequence[int], num_classes: int = 10) -> Tensor:
    """The class of each seed: they take turns."""
    return torch.tensor([seed % num_classes for seed in seeds])


def guided(
    guide: Path, scale: float, seeds: Sequence[int], sampler: str = "heun", conditional: bool = True, quiet: bool = True
) -> Tensor:
    """Images ``(N, 28, 28)`` of the seeds as bytes, guided by the classifier in a file; not guided where the scale is 0."""
    classifier = ClassifierGuide(load_classifier(guide, data=DATA))
    plan = replace(SAMPLERS[sampler], conditional=conditional)
    images = sample(load_denoiser(DATA), classes_of(seeds), seeds, plan, classifier, scale, batch=40, quiet=quiet).x
    return (255 * images[:, 0]).round().to(torch.uint8)


def places(pairs: int) -> Tensor:
    """Where in the sprite image j of pair i lies, ``(N, 2)``: a random permutation, always the same."""
    return torch.randperm(2 * pairs, generator=generator("blind pairs", "places", pairs)).reshape(pairs, 2)


def sprite_of(images: Tensor, cells: Tensor, columns: int = COLUMNS) -> Tensor:
    """All images ``(N, 2, H, W)`` in one, ``(rows H, columns W)``, each in its cell."""
    n, two, h, w = images.shape
    tiles = torch.zeros(-(-n * two // columns) * columns, h, w, dtype=images.dtype)
    tiles[cells.flatten()] = images.flatten(0, 1)
    return tiles.reshape(-1, columns, h, w).transpose(1, 2).reshape(-1, columns * w)


def tile(sprite: Tensor, cell: int, size: int = 28) -> Tensor:
    """One image of a sprite."""
    row, column = divmod(cell, sprite.shape[1] // size)
    return sprite[row * size : (row + 1) * size, column * size : (column + 1) * size]


def seal(bits: Sequence[bool]) -> str:
    """Bits, eight a byte and the first one highest, in base 64."""
    return base64.b64encode(np.packbits(np.array(bits, dtype=bool)).tobytes()).decode()


def unseal(text: str, count: int) -> list[bool]:
    """The first ``count`` bits of what :func:`seal` wrote."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:count].astype(bool).tolist()


def describe(cells: Tensor, seeds: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The pairs for the page: class, seed and both cells in rising order; ``sealed`` says where the first is the guided one."""
    rows = zip(seeds, classes_of(seeds).tolist(), cells.tolist(), strict=True)
    pairs = [{"class": names[k], "seed": seed, "cells": sorted(both)} for seed, k, both in rows]
    return {"pairs": pairs, "sealed": seal((cells[:, 1] == cells.amin(dim=1)).tolist())}


def read_pairs(path: Path = PAGE) -> dict[str, Any]:
    """What a page of pairs says."""
    return json.loads(path.read_text(encoding="utf8").removeprefix(HEAD).removesuffix(TAIL))


def read_sprite(path: Path = SPRITE) -> Tensor:
    """The sprite as bytes."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image))


def png(sprite: Tensor) -> bytes:
    """A grey image as PNG."""
    file = io.BytesIO()
    Image.fromarray(sprite.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


def unlikeness(images: Tensor) -> dict[str, float]:
    """Mean difference of the two images of a pair ``(N, 2, H, W)``, in grey levels of 255: its median and maximum over pairs."""
    found = images.float().diff(dim=1).abs().mean(dim=(1, 2, 3))
    return {"median": round(float(found.median()), 2), "max": round(float(found.max()), 2)}


def provenance(args: argparse.Namespace, images: Tensor, content: bytes) -> dict[str, Any]:
    """Where the images come from, and how much those of a pair differ."""
    return {
        "made by": "scripts/blind_pairs.py",
        "selection": f"none: seeds 0 to {SEEDS[-1]}, class = seed modulo 10",
        "denoiser": {"name": DATA, "tensors_sha256": read_checkpoint(locate(DATA), "denoiser")[1]["tensors_sha256"]},
        "guide": {
            "name": args.guide.stem,
            "tensors_sha256": read_checkpoint(args.guide, "classifier")[1]["tensors_sha256"],
            "scale": args.scale,
        },
        "sampler": args.sampler,
        "conditional": not args.unconditional,
        "difference": unlikeness(images),
        "sprite_sha256": hashlib.sha256(content).hexdigest(),
        "environment": environment(),
    }


def text_of(record: dict[str, Any]) -> str:
    """The record as the page holds it, a pair a line."""
    pairs = ",\n".join(f"  {json.dumps(pair)}" for pair in record["pairs"])
    rest = json.dumps({k: v for k, v in record.items() if k != "pairs"}, indent=1)
    return f'{HEAD}{{\n "pairs": [\n{pairs}\n ],{rest.removeprefix("{")}{TAIL}'


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guide", type=Path, default=SHIPPED / f"{DATA}-wide.safetensors", help="classifier file")
    parser.add_argument("--scale", type=float, default=4.0, help="factor s of its gradient")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="heun")
    parser.add_argument("--unconditional", action="store_true", help="only the guide knows the class")
    parser.add_argument("--sprite", type=Path, default=SPRITE)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = options().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        how = {"sampler": args.sampler, "conditional": not args.unconditional, "quiet": False}
        sides = [guided(args.guide, scale, SEEDS, **how) for scale in (0.0, args.scale)]
        images, cells = torch.stack(sides, dim=1), places(len(SEEDS))
        content = png(sprite_of(images, cells))
        size = {"columns": COLUMNS, "rows": -(-cells.numel() // COLUMNS)}
        record = {**describe(cells, SEEDS, load(DATA).classes), **size, "provenance": provenance(args, images, content)}
        write_atomic(args.sprite, content)
        write_atomic(args.page, text_of(record).encode())
    except (ValueError, OSError) as error:
        sys.exit(f"blind_pairs: {error}")
    print(f"wrote {args.sprite} and {args.page}")


if __name__ == "__main__":
    main()
