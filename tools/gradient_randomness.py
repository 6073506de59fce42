"""How random, smooth and noisy the gradients of all models are, on more images than the book: results/gradient_randomness.json.

    python tools/gradient_randomness.py [--n 16] [--repeats 24] [--device cpu]

The same measurements as in the chapter on gradient randomness: cosine of repeated gradients and its closed form, the sweep over
the number of noise levels, linearised distances, gradients along a path, and the noise of losses. Every noise is fresh.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from rdc.analyse import (
    ascent_path,
    eot_cosine,
    gradient_cosine,
    gradients_along,
    linearised_distance,
    lipschitz,
    loss_noise,
    margin_to,
    path_cosine,
    repeated_gradients,
    runner_up,
    signal_to_noise,
)
from rdc.classify import RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import predict
from rdc.randomness import known_noise
from rdc.runs.record import write_record
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

ROOT = Path(__file__).parents[1]
COUNT, EPS, STEPS, SEED, DRAWS, EPOCHS = 8, 16 / 255, 5, 0, 10, 5
LEVELS = (4, 8, 16, 32, 64)


def finite(value: float) -> float | None:
    """The number, or None where no signal was seen."""
    return value if math.isfinite(value) else None


def build(device: str) -> tuple[dict[str, nn.Module], Callable[[int], DiffusionClassifier], nn.Module]:
    """All models, a diffusion classifier by its number of levels, and the plain network."""
    dtype = fast_dtype(device)
    heads = load_denoiser("fashion-mini-multihead", device=device, dtype=dtype)
    trunk = load_denoiser("fashion-mini", device=device, dtype=dtype)
    cnn = train_classifier(load("fashion-mini", "train"), EPOCHS, batch=64, lr=1e-2, width=16, seed=SEED, device=device)

    def classifier(count: int) -> DiffusionClassifier:
        return DiffusionClassifier(heads, levels("elbo", count, sigma_min=0.1), noise="fresh", seed=SEED, chunk=2560)

    def likelihood(reading: str) -> LikelihoodMaximization:
        return LikelihoodMaximization(trunk, **{**READINGS[reading], "noise": "fresh", "seed": SEED})

    dc, lm, purify = classifier(COUNT), likelihood("released"), Purify(trunk, noise="fresh", seed=SEED)
    models = {
        "CNN": cnn,
        "DC": dc,
        "RDC, BPDA": RDC(lm, dc, "bpda"),
        "RDC, smoothed": RDC(lm.smoothed(0.3), dc, "exact"),
        "RDC, exact": RDC(lm, dc, "exact"),
        "RDC mi-fgsm, exact": RDC(likelihood("mi-fgsm"), dc, "exact"),
        "LM+CNN, BPDA": RDC(lm, cnn, "bpda"),
        "LM+CNN, exact": RDC(lm, cnn, "exact"),
        "DiffPure+CNN": DiffPure(purify, cnn),
        "DiffPure+DC": DiffPure(purify, dc),
    }
    return models, classifier, cnn


def randomness(name: str, model: nn.Module, x: Tensor, y: Tensor, repeats: int) -> dict:
    """Cosines, the two numbers behind them, and how evenly the draws share the energy; medians are over images."""
    loss = margin_to(runner_up(model, x, y))
    g = repeated_gradients(model, x, y, repeats, loss=loss, seed=SEED)
    free = repeated_gradients(model, x, y, max(2, repeats // 4), seed=SEED)
    found, energy = signal_to_noise(g), g.double().square().flatten(2).sum(2)
    eot = [m for m in (1, 2, 4, 8, 16) if repeats // m >= 2]
    direction = g.mean(0).sign()
    noise = loss_noise(model, x, (x + 2 * EPS / STEPS * direction).clamp(0, 1), y, DRAWS, seed=SEED)
    distance = {m: linearised_distance(model, x, y, eot=m, seed=SEED) for m in (1, 4)}
    return {
        "model": name,
        "eot": eot,
        "measured": eot_cosine(g, eot).mean(1),
        "predicted": [float(found.cosine(m).nanmean()) for m in eot],
        "cosine": float(gradient_cosine(g).mean()),
        "cosine_margin": float(gradient_cosine(free).mean()),
        "half_eot": finite(float(found.half_eot.median())),
        "largest_share": float((energy.max(0).values / energy.sum(0)).median()),
        "mean_absolute": float(g.abs().mean()),
        "distance": {m: float(d[d > 0].median()) for m, d in distance.items()},
        "noise_common": float(noise.ratio().median()),
        "noise_independent": float(noise.ratio(common=False).median()),
    }


def smoothness(name: str, model: nn.Module, x: Tensor, y: Tensor) -> dict:
    """Gradients along the path of an attack, the noise held fixed."""
    fixed = known_noise(model, SEED)
    path = ascent_path(fixed, x, y, eps=EPS, steps=STEPS, seed=SEED)
    slopes = gradients_along(fixed, path, y, seed=SEED)
    change = lipschitz(path, slopes)
    return {
        "model": name,
        "path_cosine": path_cosine(slopes).mean(1),
        "lipschitz_first": float(change[0].nanmedian()),
        "lipschitz": float(change.nanmedian()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    options, start = parser.parse_args(), time.perf_counter()
    models, classifier, cnn = build(options.device)
    test = load("fashion-mini", "test")
    x, y = test.x[: 4 * options.n].to(options.device), test.y[: 4 * options.n].to(options.device)
    right = (predict(cnn, x) == y).nonzero()[: options.n, 0]
    x, y = x[right], y[right]
    results: dict[str, list[dict]] = {"randomness": [], "levels": [], "smoothness": []}
    for name, model in models.items():
        results["randomness"].append(randomness(name, model, x, y, options.repeats))
        results["smoothness"].append(smoothness(name, model, x[: max(1, options.n // 2)], y[: max(1, options.n // 2)]))
        row = results["randomness"][-1]
        print(f"{name:20s} cosine {row['cosine']:.3f}, h {row['half_eot']:.3g}; {time.perf_counter() - start:.0f} s", flush=True)
    loss = margin_to(runner_up(models["DC"], x, y))
    for count in LEVELS:
        found = signal_to_noise(repeated_gradients(classifier(count), x, y, 4, loss=loss, seed=SEED + 1))
        results["levels"].append({"count": count, "half_eot": float(found.half_eot.median())})
    config = {"data": "fashion-mini", "n": len(x), "repeats": options.repeats, "levels": "elbo", "count": COUNT, "seed": SEED}
    config |= {"eps": EPS, "steps": STEPS, "draws": DRAWS, "epochs": EPOCHS, "reading": "released", "noise": "fresh"}
    write_record(ROOT / "results" / "gradient_randomness.json", config, results, time.perf_counter() - start)


if __name__ == "__main__":
    main()
