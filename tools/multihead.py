"""Multi-head diffusion against its teacher, and the ways to train heads: results/multihead.json.

    python tools/multihead.py [--images 500] [--steps 700] [--attacked 60] [--workers 2] [--part heads|digits]

``heads``: the shipped multi-head network of fashion-mini and its teacher classify the same images, with the same levels and
noise, in turns of 50 images: with the levels of the book, and from the lowest level that the heads do best with on other images.
``digits``: small networks of 8x8, all with the same number of optimiser steps and the same batch, are trained in the ways of
appendix B.1 and compared with the shipped single-head network. Those lie in runs/multihead/; killed, the same command continues.

Reference: Robust Classification via a Single Diffusion Model (Chen et al., 2024), Algorithm 2, appendix B.1
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from network_sizes import unseen_images
from scipy.stats import binomtest
from torch import Tensor

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import EDM, MultiHead, fast_dtype
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import CheckpointError, load_denoiser, read_checkpoint
from rdc.denoise.edm import EDMConfig
from rdc.denoise.unet import UNetConfig
from rdc.evaluate import Accuracy, accuracy, predict
from rdc.rng import randn
from rdc.runs.record import read_record, write_record
from rdc.schedule import levels
from rdc.train.denoiser import TrainConfig, stratified_sigma, train_denoiser
from rdc.train.heads import DistilConfig, distil
from rdc.train.recipes import RECIPES

ROOT = Path(__file__).parents[1]
RUNS, RECORD = ROOT / "runs" / "multihead", ROOT / "results" / "multihead.json"
SEED, EPS, PGD_STEPS, COUNT, DRAWS, SIGMA_MIN = 0, 0.06, 10, 4, 2, 0.1
COUNT_FASHION, UNSEEN, RANGES = 16, 600, (0.1, 0.2, 0.35, 0.5)  # levels, images to choose the range on, lowest levels
SIGMAS = (0.2, 0.5, 1.0, 2.0, 5.0)  # where the heads are compared, model units

PLAIN = UNetConfig(8, 1, 10, 32, (1, 2), 1, ())  # the network of the shipped denoiser of the digits
WIDE = replace(PLAIN, label_dim=0, heads=11)  # the same, with a wider last layer
BRANCH = UNetConfig(8, 1, 0, 48, (1,), 1, (), patch=2, heads=10)


def recipes(steps: int) -> dict[str, DistilConfig | TrainConfig]:
    """What is trained on the digits, by name; all with the same steps, batch and learning rate."""
    train = TrainConfig(
        EDMConfig(PLAIN, 0.75, "digits"), steps=steps, batch=32, lr=2e-3, warmup=50, ema=0.99, p_mean=-0.2, p_std=1.4, seed=SEED
    )
    wide = replace(train, denoiser=EDMConfig(WIDE, 0.75, "digits"))
    branch = replace(train, denoiser=EDMConfig(PLAIN, 0.75, "digits", BRANCH))
    return {
        "single head": train,
        "wide, distilled": DistilConfig(wide, "distil", "digits"),
        "wide, distilled, reweighted": DistilConfig(wide, "distil", "digits", gamma=0.05),
        "wide, from scratch": DistilConfig(wide, "denoise"),
        "wide, cross-entropy": DistilConfig(wide, "cross-entropy", levels=COUNT),
        "branch, distilled": DistilConfig(branch, "distil", "digits"),
        "branch, distilled, reweighted": DistilConfig(branch, "distil", "digits", gamma=0.05),
    }


def trained(name: str, recipe: DistilConfig | TrainConfig) -> Path:
    """The checkpoint of a recipe, trained if it is not there yet."""
    path = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
    try:
        if read_checkpoint(path, "denoiser")[1]["recipe"] == json.loads(json.dumps(asdict(recipe))):
            return path
    except CheckpointError:
        pass
    train = distil if isinstance(recipe, DistilConfig) else train_denoiser
    return train(recipe, path, save_seconds=20, quiet=True)


def classifier(denoiser: EDM | MultiHead) -> DiffusionClassifier:
    """The classifier of the digits: the levels that the cross-entropy was trained on."""
    return DiffusionClassifier(denoiser, levels("elbo", COUNT, sigma_min=SIGMA_MIN), seed=SEED, draws=DRAWS, chunk=640)


def validation_loss(denoiser: EDM | MultiHead, images: Images, train: TrainConfig) -> float:
    """``lambda(sigma) |D(z_sigma, sigma, y) - z|^2 / D`` of the true class, over the noise levels of training."""
    total, z = [], to_model(images.x)
    for draw in range(4):
        sigma = stratified_sigma(replace(train, batch=len(images)), draw)[torch.randperm(len(images), generator=order(draw))]
        eps = randn(tuple(z.shape), SEED, "validation", draw)
        weight = (sigma**2 + 0.75**2) / (sigma * 0.75) ** 2
        with torch.no_grad():
            error = denoiser(z + sigma * eps, sigma.flatten(), images.y) - z
        total.append((weight * error.square()).mean())
    return float(torch.stack(total).mean())


def order(draw: int) -> torch.Generator:
    """Which image gets which noise level."""
    return torch.Generator().manual_seed(draw)


def heads_at(denoiser: EDM | MultiHead, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """``D(z_sigma, sigma, k)`` for every class, and its difference to the unconditional one, ``(N, K, D)`` each."""
    z_sigma = z + sigma * randn(tuple(z.shape), SEED, "heads", str(sigma))
    with torch.no_grad():
        every, free = denoiser.all_classes(z_sigma, sigma), denoiser(z_sigma, sigma)
    return every.flatten(2), (every - free[:, None]).flatten(2)


def mean_cosine(v: Tensor) -> float:
    """Mean cosine between the rows of two classes, over images and pairs of classes."""
    unit = F.normalize(v, dim=2)
    k = v.shape[1]
    return float(((unit.sum(1).square().sum(1) - k) / (k * (k - 1))).mean())


def evaluated(name: str, recipe: DistilConfig | TrainConfig | None, attacked: int) -> dict[str, Any]:
    """One row of the record: accuracy, robust accuracy, denoising loss and how alike the heads are."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    path = "digits" if recipe is None else trained(name, recipe)
    exact, teacher = load_denoiser(path), load_denoiser("digits")
    model = classifier(load_denoiser(path, dtype=fast_dtype()))
    train, test = load("digits", "train"), load("digits", "test")
    x, y = test.x[:attacked], test.y[:attacked]
    x_adv = pgd(model, x, y, eps=EPS, steps=PGD_STEPS, seed=SEED)
    clean, robust = predict(model, test.x) == test.y, predict(model, x_adv) == y
    z, rows = to_model(test.x[:100]), []
    for sigma in SIGMAS:
        (own, difference), (_, wanted) = heads_at(exact, z, sigma), heads_at(teacher, z, sigma)
        error = (difference - wanted).square().mean() / wanted.square().mean()
        rows.append({"sigma": sigma, "cosine of D": mean_cosine(own), "cosine of differences": mean_cosine(difference),
                     "error of differences": float(error)})  # fmt: skip
    return {
        "name": name,
        "form": None if recipe is None else name.split(",")[0],
        "parameters": sum(p.numel() for p in exact.parameters()),
        "train": accuracy(model, train.x[:200], train.y[:200]),
        "test": Accuracy.of(int(clean.sum()), len(test)),
        "robust": Accuracy.of(int((clean[:attacked] & robust).sum()), attacked),
        "wrong": (~clean).nonzero()[:, 0].tolist(),
        "broken": (~(clean[:attacked] & robust)).nonzero()[:, 0].tolist(),
        "evaluations": model.evaluations,
        "validation loss": validation_loss(exact, test, RECIPES["digits"]),
        "heads": rows,
        "seconds": round(time.perf_counter() - start, 1),
    }


def digits(steps: int, attacked: int, workers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """All rows of the digits, ``workers`` at a time on one thread each."""
    jobs: dict[str, DistilConfig | TrainConfig | None] = {"teacher": None, **recipes(steps)}
    config = {
        "data": "digits", "steps": steps, "batch": 32, "seed": SEED, "levels": COUNT, "draws": DRAWS, "sigma_min": SIGMA_MIN,
        "attack": f"PGD-{PGD_STEPS}, margin, Linf", "eps": EPS, "attacked": attacked,
        "recipes": {k: v and asdict(v) for k, v in jobs.items()},
    }  # fmt: skip
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        first = sorted(jobs, key=lambda name: name != "wide, cross-entropy")  # the longest one first
        futures = {name: pool.submit(evaluated, name, jobs[name], attacked) for name in first}
        rows = []
        for name in jobs:
            rows.append(futures[name].result())
            r = rows[-1]
            print(f"{r['name']:30s} test {r['test']}, robust {r['robust']}, loss {r['validation loss']:.3f}, {r['seconds']} s",
                  flush=True)  # fmt: skip
    return {"rows": rows}, config


def pair(sigma_min: float) -> dict[str, DiffusionClassifier]:
    """Teacher and multi-head network as classifiers on the same levels; a chunk is 256 passes of either."""
    chosen = levels("elbo", COUNT_FASHION, sigma_min=sigma_min)
    return {
        name: DiffusionClassifier(load_denoiser(name, dtype=fast_dtype()), chosen, seed=SEED, chunk=chunk)
        for name, chunk in (("fashion-mini", 256), ("fashion-mini-multihead", 2560))
    }


def ranges(count: int) -> list[dict[str, Any]]:
    """Accuracy of both by the lowest noise level, on test images of Fashion-MNIST that are not in fashion-mini."""
    images, rows = unseen_images(count), []
    for sigma_min in RANGES:
        found = {name: accuracy(model, images.x, images.y) for name, model in pair(sigma_min).items()}
        rows.append({"sigma_min": sigma_min, **found})
        print(f"lowest level {sigma_min}: " + ", ".join(f"{k} {v}" for k, v in found.items()), flush=True)
    return rows


def compare(count: int, sigma_min: float) -> dict[str, Any]:
    """Teacher and multi-head network on the same images of fashion-mini in turns."""
    images, models = load("fashion-mini"), pair(sigma_min)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    answers: dict[str, list[Tensor]] = {name: [] for name in models}
    for model in models.values():
        predict(model, images.x[:10])
    for i, start in enumerate(range(0, count, 50)):
        x = images.x[start : min(start + 50, count)]
        for name in list(models)[:: 1 if i % 2 else -1]:
            clock = time.perf_counter()
            answers[name].append(predict(models[name], x))
            seconds[name].append((time.perf_counter() - clock) / len(x))
        print(f"{start + len(x)} of {count} images", flush=True)
    y = images.y[:count]
    right = {name: torch.cat(parts) == y for name, parts in answers.items()}
    teacher, heads = (right[name] for name in models)
    table = {
        name: {
            "accuracy": Accuracy.of(int(right[name].sum()), count),
            "seconds an image": statistics.median(seconds[name]),
            "passes an image": model.evaluations,
            "chunk": model.chunk,
            "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        }
        for name, model in models.items()
    }
    lost, won = int((teacher & ~heads).sum()), int((heads & ~teacher).sum())
    a, b = (torch.cat(answers[name]) for name in models)
    speed = table["fashion-mini"]["seconds an image"] / table["fashion-mini-multihead"]["seconds an image"]
    points = 100 * (lost - won) / count
    return {
        "sigma_min": sigma_min,
        "models": table,
        "only the teacher right": lost,
        "only the heads right": won,
        "McNemar p": binomtest(lost, lost + won).pvalue if lost + won else 1.0,
        "same answer": Accuracy.of(int((a == b).sum()), count),
        "times faster": {"value": speed, "at least": 5, "met": speed >= 5},
        "points lost": {"value": points, "at most": 2, "met": points <= 2},
    }


def fashion(count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The comparison over all levels, and over those that the heads do best with on other images."""
    table = ranges(UNSEEN)
    chosen = max(table, key=lambda row: row["fashion-mini-multihead"].correct)["sigma_min"]
    results = {"ranges": table, "chosen": chosen, "comparisons": [compare(count, s) for s in dict.fromkeys((SIGMA_MIN, chosen))]}
    config = {"data": "fashion-mini", "images": count, "unseen": UNSEEN, "levels": "elbo", "count": COUNT_FASHION,
              "sigma_max": 20.0, "seed": SEED, "precision": str(fast_dtype()), "threads": torch.get_num_threads()}  # fmt: skip
    return results, config


def store(part: str, run: Callable[[], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Run one part and write it into the record; the other part stays as it is."""
    old: dict[str, Any] = read_record(RECORD) if RECORD.exists() else {"results": {}, "config": {}, "seconds": 0.0}
    start = time.perf_counter()
    results, config = run()
    seconds = time.perf_counter() - start
    config = {**old["config"], part: {**config, "seconds": round(seconds, 1)}}
    write_record(RECORD, config, {**old["results"], part: results}, sum(c["seconds"] for c in config.values()))


def main() -> None:
    """Both parts, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="test images of fashion-mini")
    parser.add_argument("--steps", type=int, default=700, help="optimiser steps of each network for the digits")
    parser.add_argument("--attacked", type=int, default=60, help="test images of the digits that are attacked")
    parser.add_argument("--workers", type=int, default=2, help="networks for the digits at a time")
    parser.add_argument("--part", choices=("heads", "digits"), help="only this part")
    o = parser.parse_args()
    if o.part in (None, "heads"):
        store("heads", lambda: fashion(o.images))
        found = read_record(RECORD)["results"]["heads"]
        print(json.dumps([{k: v for k, v in c.items() if k != "models"} for c in found["comparisons"]], indent=1))
    if o.part in (None, "digits"):
        store("digits", lambda: digits(o.steps, o.attacked, o.workers))


if __name__ == "__main__":
    main()
