"""What one answer of each defence costs, in network evaluations and in seconds, measured in turns: results/rdc_costs.json.

    python -m benchmarks.costs [--images 16] [--rounds 3]

Table 3 of *Robust Classification via a Single Diffusion Model* (Chen et al., 2024), at the sizes of this book.
"""

import argparse
import time
from itertools import product
from typing import Any

import torch
from torch import nn

from rdc.data import load
from rdc.models import build
from rdc.runs.record import book_folder, write_record

DEFENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("cnn", {}),
    "LM+CNN": ("lm-cnn", {"lm": "clamped"}),
    "LM+CNN, all": ("lm-cnn", {"lm": "clamped", "timesteps": "all", "count": 8}),
    "DiffPure+CNN": ("diffpure", {}),
    "DC single-head": ("dc", {"denoiser": "single-head"}),
    "DC": ("dc", {}),
    "RDC single-head": ("rdc", {"lm": "clamped", "denoiser": "single-head"}),
    "RDC": ("rdc", {"lm": "clamped"}),
}


def evaluations(model: nn.Module) -> tuple[int, int]:
    """Network evaluations of one answer: forward, and those with a gradient."""
    back = getattr(model, "classifier", model)
    forward = getattr(back, "evaluations", 1) + getattr(getattr(model, "purify", None), "evaluations", 0)
    return forward, model.lm.evaluations if hasattr(model, "lm") else 0


def costs(images: int, rounds: int) -> list[dict[str, Any]]:
    """Evaluations, and the best of several rounds in which the defences take turns."""
    models = {name: build(model, **options) for name, (model, options) in DEFENCES.items()}
    x, best = load("fashion-mini", "test").x[:images], dict.fromkeys(DEFENCES, float("inf"))
    with torch.no_grad():
        for _, (name, model) in product(range(rounds), models.items()):
            clock = time.perf_counter()
            model(x)
            best[name] = min(best[name], (time.perf_counter() - clock) / images)
    return [
        {
            "model": name, "nfe": evaluations(model), "seconds_an_image": best[name], "n": images, "rounds": rounds,
            "N": getattr(getattr(model, "lm", None), "steps", None), "threads": torch.get_num_threads(),
        }
        for name, model in models.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args, start = parser.parse_args(), time.perf_counter()
    rows = costs(args.images, args.rounds)
    config = {"data": "fashion-mini", "defences": DEFENCES}
    path = write_record(book_folder("results") / "rdc_costs.json", config, {"rows": rows}, time.perf_counter() - start)
    print("\n".join(f"{r['model']:16} {r['nfe']} {1000 * r['seconds_an_image']:8.2f} ms an image" for r in rows), path, sep="\n")


if __name__ == "__main__":
    main()
