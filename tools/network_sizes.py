"""Train networks of several sizes for the same time and write accuracy against cost to results/network_sizes.json.

    python tools/network_sizes.py [--speed]


Each size is trained on Fashion-MNIST's train split for a number of steps that took about four minutes on two CPU cores, and
judged on 500 test images that are *not* in ``fashion-mini``: the choice of the network never sees the book's test images.
The shipped checkpoint (the chosen size, trained longer) is judged on the same images. Trained checkpoints lie in runs/sizes/.
Speeds are measured in turns, so that what else the machine does meets all of them; --speed measures them again and keeps
the recorded accuracies.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from rdc.classify import DiffusionClassifier
from rdc.data import Images, load
from rdc.denoise import EDMConfig, UNetConfig, fast_dtype
from rdc.denoise.checkpoints import load_denoiser
from rdc.evaluate import accuracy
from rdc.runs.record import read_record, write_record
from rdc.schedule import levels
from rdc.train import TrainConfig, train_denoiser
from rdc.train.recipes import FASHION_UNET, RECIPES

ROOT = Path(__file__).parents[1]
PIXELS = UNetConfig(resolution=28, channels=1, model_channels=16, channel_mult=(1, 2, 4), num_blocks=1, attn_resolutions=(7,))
PATCHES4 = replace(PIXELS, model_channels=64, channel_mult=(1,), num_blocks=2, attn_resolutions=(), patch=4)
SIZES = {"patch 1, width 16": (PIXELS, 800), "patch 2, width 32": (FASHION_UNET, 1400), "patch 4, width 64": (PATCHES4, 2500)}


def recipe(unet: UNetConfig, steps: int) -> TrainConfig:
    """The recipe of the comparison, the same for all sizes but for the number of steps."""
    config = EDMConfig(unet, sigma_data=0.7, data="fashion")
    return TrainConfig(config, steps=steps, lr=1e-3, warmup=200, p_mean=-0.4, precision="bf16")


def unseen_images(count: int) -> Images:
    """The first test images of Fashion-MNIST that ``fashion-mini`` does not hold."""
    known = {x.numpy().tobytes() for x in load("fashion-mini").x}
    test = load("fashion")
    index = [i for i in range(len(test)) if test.x[i].numpy().tobytes() not in known][:count]
    return test[torch.tensor(index)]


def speeds(paths: dict[str, Path | str], rounds: int = 7, batch: int = 256) -> dict[str, float]:
    """Evaluations of each bare network per second: the best of several rounds in which the networks take turns."""
    z, label, sigma = torch.randn(batch, 1, 28, 28), torch.arange(batch) % 10, torch.full((batch,), 0.5)
    networks = {name: load_denoiser(path, dtype=fast_dtype()) for name, path in paths.items()}
    best = dict.fromkeys(paths, 0.0)
    with torch.no_grad():
        for _ in range(rounds):
            for name, network in networks.items():
                start = time.perf_counter()
                network(z, sigma, label)
                best[name] = max(best[name], batch / (time.perf_counter() - start))
    return best


def judge(path: Path | str, images: Images) -> dict:
    """Accuracy with 16 ELBO levels, and parameters, of one checkpoint."""
    denoiser = load_denoiser(path, dtype=fast_dtype())
    classifier = DiffusionClassifier(denoiser, levels("elbo", 16), seed=0)
    parameters = sum(p.numel() for p in denoiser.parameters())
    return {"accuracy": accuracy(classifier, images.x, images.y, batch=50), "parameters": parameters}


def trained(name: str) -> Path:
    """The checkpoint of one size, trained if it is not there."""
    path = ROOT / "runs" / "sizes" / f"{name.replace(', ', '-').replace(' ', '')}.safetensors"
    unet, steps = SIZES[name]
    return path if path.exists() else train_denoiser(recipe(unet, steps), path)


def main(arguments: list[str]) -> None:
    start, record = time.perf_counter(), ROOT / "results" / "network_sizes.json"
    paths: dict[str, Path | str] = {**{name: trained(name) for name in SIZES}, "shipped": "fashion-mini"}
    steps = {**{name: size[1] for name, size in SIZES.items()}, "shipped": RECIPES["fashion-mini"].steps}
    if arguments == ["--speed"]:
        rows = read_record(record)["results"]
    else:
        images = unseen_images(500)
        rows = {name: {"steps": steps[name], **judge(path, images)} for name, path in paths.items()}
    for name, value in speeds(paths).items():
        rows[name]["evaluations_per_second"] = round(value)
        print(name, rows[name], flush=True)
    config = {"levels": "elbo", "count": 16, "seed": 0, "batch": 128, "images": "Fashion-MNIST test, not in fashion-mini"}
    write_record(record, config, rows, time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
