"""Measure the speed of the package and write ``results/bench.json``.

Every number that has a limit is a ratio of two timings that alternate in the same run, the median of several rounds, so that
it depends little on the machine and on what else it does. Absolute times are recorded without a limit.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gradient import gradient
from benchmarks.lm_memory import lm_memory
from benchmarks.measure import alternate, merge, row
from benchmarks.throughput import throughput
from benchmarks.training import training
from rdc.attack.losses import margin
from rdc.classify import DiffusionClassifier, OptimalClassifier
from rdc.data import DataError, Images, load
from rdc.denoise import EDM, OptimalDenoiser, fast_dtype, to_model
from rdc.denoise.checkpoints import load_denoiser
from rdc.rng import generator, randn
from rdc.schedule import Levels, levels

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("trained", "naive", "optimal", "gradient", "lm", "throughput", "training")


def sixty_thousand(device: torch.device) -> tuple[Images, str]:
    """60 000 training images and where they come from: all of Fashion-MNIST, or copies of the embedded part with noise."""
    try:
        images, source = load("fashion", "train"), "fashion, train"
    except DataError:
        small = load("fashion-mini", "train")
        x = small.x.repeat(6, 1, 1, 1)
        x = (x + 0.05 * torch.randn(x.shape, generator=generator("benchmark"))).clamp(0, 1)
        images, source = Images(x, small.y.repeat(6), small.classes), "fashion-mini, train, six noisy copies (sigma 0.05)"
    return Images(images.x.to(device), images.y.to(device), images.classes), source


def optimal(rounds: int, count: int, device: torch.device) -> dict[str, Any]:
    """The optimal classifier over 60 000 images, against one distance product and against its definition."""
    data, source = sixty_thousand(device)
    test = load("fashion-mini", "test")
    x = test.x[:count].to(device)
    model = OptimalClassifier(data.x, data.y, levels("elbo", 1000))
    batch, points = to_model(x[:32]).flatten(1), model.data.points
    fast, product = alternate(lambda: model(x[:32]), lambda: batch @ points.T, rounds=rounds)
    found = {
        "forward / distance product": row(
            fast / product, 5.0, data=source, ms_an_image=1e3 * fast / 32, levels=1000, nodes=len(model.nodes)
        ),
    }
    logits = torch.cat([model(part) for part in x.split(64)]).double()
    oracle, error = direct(data, x, model)
    same = float((logits.argmax(1) == oracle.argmax(1)).double().mean())
    centered = [f - f.mean(1, keepdim=True) for f in (logits, oracle)]
    note = (
        "oracle: |z - D|^2 as defined, softmax over all images, 1000 levels through a cubic spline on "
        f"{ORACLE_NODES} nodes of its own, independent "
        f"antithetic noise, {ORACLE_DRAWS} draws"
    )
    found["agreement with the direct form"] = row(
        same, 0.995, at_most=False, images=count, oracle=note, differing=round((1 - same) * count)
    )
    found["relative error of logits, median"] = row(float(((logits - oracle) / oracle).abs().median()), 1e-2)
    found["relative error of logits, 99 %"] = row(float(((logits - oracle) / oracle).abs().flatten().quantile(0.99)))
    spread = float((centered[0] - centered[1]).abs().median() / centered[1].abs().median())
    found["error of logit differences / their size"] = row(spread, oracle_noise=error)
    return found


ORACLE_DRAWS, ORACLE_NODES = 2, 48


def direct(data: Images, x: Tensor, model: OptimalClassifier) -> tuple[Tensor, float]:
    """Logits by the definition, and the relative size of their Monte-Carlo error (from two seeds, on few images)."""
    from rdc.classify.optimal import compress

    nodes = compress(levels("elbo", 1000), ORACLE_NODES)
    runs = []
    denoiser = OptimalDenoiser(data.x, data.y)
    for seed in (101, 202):
        run = DiffusionClassifier(denoiser, nodes, noise="antithetic", draws=ORACLE_DRAWS, seed=seed, chunk=640)
        part = x if seed == 101 else x[:50]
        runs.append(torch.cat([run(images) for images in part.split(64)]).double())
    return runs[0], float(((runs[0][:50] - runs[1]) / runs[1]).abs().median() / 2**0.5)


def naive(model: OptimalDenoiser, x: Tensor, found: Levels, draws: int) -> Tensor:
    """The formula of Corollary 3.3 as it stands: for each level all differences ``z_sigma - z_i``, N x T x pixels."""
    z, points = to_model(x).flatten(1), model.points + model.center
    logits = z.new_zeros(len(z), model.num_classes)
    pairs = zip(found.sigma.tolist(), found.weight.tolist(), strict=True)
    for t, r, sigma, weight in [(t, r, s, w / draws) for t, (s, w) in enumerate(pairs) for r in range(draws)]:
        noisy = z + sigma * randn(tuple(z.shape[1:]), 0, t, r, like=z)
        s = -(noisy[:, None] - points[None]).square().sum(2) / (2 * sigma**2)
        for k, (a, images) in enumerate(zip(s.split(model.counts, 1), points.split(model.counts), strict=True)):
            mean = (a.softmax(1)[:, :, None] * images[None]).sum(1)
            logits[:, k] -= weight * (z - mean).square().sum(1)
    return logits


def against_naive(rounds: int, device: torch.device) -> dict[str, Any]:
    """The fast optimal classifier against the formula as it stands, N = 1000, T = 100, eight draws for both."""
    data = load("fashion-mini", "train")[:1000]
    x = load("fashion-mini", "test").x[:64].to(device)
    found = levels("elbo", 100)
    model = OptimalClassifier(data.x.to(device), data.y.to(device), found)
    plain = OptimalDenoiser(data.x.to(device), data.y.to(device))
    fast, eight, one = alternate(
        lambda: model(x), lambda: naive(plain, x[:1], found, 8), lambda: naive(plain, x[:1], found, 1), rounds=rounds
    )
    more = {"images_a_batch": 64, "N": 1000, "T": 100, "ms_an_image": 1e3 * fast / 64}
    return {
        "speed-up over N x T x pixels, 8 draws each": row(eight / (fast / 64), 500.0, at_most=False, **more),
        "speed-up over N x T x pixels, 8 draws against 1": row(one / (fast / 64), **more),
    }


def trained(rounds: int, device: torch.device, name: str) -> dict[str, Any]:
    """The classifier around a trained network: overhead, gradients, precision, layout."""
    dtype = fast_dtype(device)
    x, y = load("fashion-mini", "test").x[:4].to(device), load("fashion-mini", "test").y[:4].to(device)
    network = load_denoiser(name, device, dtype)
    found, sizes = {}, {}
    for chunk in (64, 128, 256, 512):
        (sizes[chunk],) = alternate(lambda c=chunk: bare(network, c, c), rounds=rounds)
        sizes[chunk] /= chunk
    chunk = min(sizes, key=lambda c: sizes[c])
    model = DiffusionClassifier(network, levels("elbo", 16), chunk=chunk)
    total = model.evaluations * len(x)
    forward, alone = alternate(lambda: model(x), lambda: bare(network, total, chunk), rounds=rounds)
    found["forward / bare network"] = row(
        forward / alone, 1.15, checkpoint=name, dtype=str(dtype), batch=chunk, evaluations=total
    )
    found["evaluations a second"] = row(total / forward)

    def slope(loss: Callable[[Tensor], Tensor]) -> Tensor:
        point = x.clone().requires_grad_()
        return torch.autograd.grad(loss(model(point)).sum(), point)[0]

    two, every = alternate(lambda: slope(lambda f: margin(f, y)), lambda: slope(lambda f: f.mean(1)), rounds=rounds)
    found["gradient: every class / margin loss"] = row(every / two, two_pass_forward_included=True, images_a_second=len(x) / two)
    single = load_denoiser(name, device, torch.float32)
    a, b = alternate(lambda: bare(single, 2 * chunk, chunk), lambda: bare(network, 2 * chunk, chunk), rounds=rounds)
    found[f"fp32 / {str(dtype).removeprefix('torch.')}"] = row(a / b)
    last = load_denoiser(name, device, dtype).to(memory_format=torch.channels_last)
    a, b = alternate(lambda: bare(network, 2 * chunk, chunk), lambda: bare(last, 2 * chunk, chunk), rounds=rounds)
    found["default layout / channels_last"] = row(a / b)
    return found


@torch.no_grad()
def bare(network: EDM, count: int, chunk: int) -> None:
    """``count`` evaluations of the raw network, ``chunk`` at a time."""
    parameter = next(network.parameters())
    z = randn((chunk, *network.shape), 0, like=parameter)
    noise = torch.zeros(chunk, device=parameter.device)
    label = torch.eye(network.num_classes, device=parameter.device)[torch.arange(chunk) % network.num_classes]
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        network.model(z[:n], noise[:n], label[:n])


def main() -> None:
    """Run the benchmarks, print them and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each kind (default 5)")
    parser.add_argument("--images", type=int, default=1000, help="test images compared with the direct form (default 1000)")
    parser.add_argument("--checkpoint", default="fashion-mini", help="trained denoiser (default fashion-mini)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts; the rows of the others stay as they are")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    device, start, found = torch.device(args.device), time.perf_counter(), {}
    runs = {
        "trained": lambda: trained(args.rounds, device, args.checkpoint),
        "naive": lambda: against_naive(args.rounds, device),
        "optimal": lambda: optimal(args.rounds, args.images, device),
        "gradient": lambda: gradient(args.rounds, device, args.checkpoint),
        "lm": lambda: lm_memory(args.checkpoint),
        "throughput": lambda: throughput(args.rounds, device, args.checkpoint),
        "training": lambda: training(args.rounds, device),
    }
    for name in args.only or PARTS:
        found[name] = runs[name]()
        for key, one in found[name].items():
            if "ratio_to_bare" in one:
                print(f"{key:75} {one['value']:10.4g}  {one['ratio_to_bare']:6.2f} of the bare network", flush=True)
                continue
            limit = f"  ({one['limit_is']} {one['limit']:g}: {'met' if one['met'] else 'MISSED'})" if one["limit"] else ""
            print(f"{key:50} {one['value']:10.4g}{limit}", flush=True)
    if not args.no_record:
        config = {"rounds": args.rounds, "images": args.images, "checkpoint": args.checkpoint, "seed": 0}
        every = set(found) == set(PARTS)
        print("wrote", merge(RESULTS / "bench.json", config, found, time.perf_counter() - start, every))


if __name__ == "__main__":
    main()
