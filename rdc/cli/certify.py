"""The command ``rdc certify``: certificates of the first test images, by randomized smoothing of a base classifier."""

__all__ = ["certify_command"]

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from tyro.conf import arg

from rdc.cli.flags import ModelFlags, left_out, options_for, source_of
from rdc.cli.images import order_of, trained_on
from rdc.cli.options import HOW_MANY, Block, Data, Start, first_images, pick_device, tidy
from rdc.quantities import count as whole_number
from rdc.quantities import number

#: Bases that may be given any of the options SHARED, so that one command line is of them all.
ANY, SHARED = ("apndc", "epndc", "carlini", "cohen", "dc"), ("denoiser", "levels", "network", "epochs")
#: Radii at which the certified accuracy is printed, image units.
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


def certify_command(
    model: Annotated[
        str,
        arg(
            help="Base classifier: apndc or epndc (noised diffusion classifiers), carlini (denoise, then a network), cohen (a "
            "network trained with noise), cascade, race; dc or any other model ('rdc models'), on clipped images; or "
            "module:function, a function of one's own that returns an nn.Module from noisy images, not clipped, to logits."
        ),
    ] = "apndc",
    data: Data = "fashion-mini",
    sigma: Annotated[str, arg(help="Smoothing noise, images in [0, 1]: a number or a fraction.")] = "0.25",
    n0: Annotated[int, arg(help="Noise draws that choose the class.")] = 100,
    n: Annotated[int, arg(help="Noise draws that bound its probability; with a target the most.")] = 10_000,
    alpha: Annotated[str, arg(help="Probability that a radius is too large, for each image.")] = "0.001",
    target: Annotated[str | None, arg(help="Stop as soon as it is clear whether this radius can be certified.")] = None,
    stopping: Annotated[
        Literal["sequence", "split"] | None,
        arg(help="With a target, what keeps the guarantee: a confidence sequence (by default), or a split alpha."),
    ] = None,
    count: Annotated[int, arg(help=HOW_MANY)] = 10,
    start: Start = 0,
    block: Block = 8,
    defence: ModelFlags = ModelFlags(),  # noqa: B008
    network: Annotated[
        Path | None,
        arg(help="File of the network of carlini and cohen, trained if it does not exist; by default runs/cnn-<data>..."),
    ] = None,
    epochs: Annotated[int | None, arg(help="Passes over the train split in training that network; by default 10.")] = None,
    batch: Annotated[int | None, arg(help="Noisy images at a time; by default 64, fewer if each takes many evaluations.")] = None,
    rows: Annotated[Path | None, arg(help="File of rows, one an image; the same command continues it, also for more.")] = None,
    workers: Annotated[int, arg(help="Processes that share the blocks.")] = 1,
    seed: int = 0,
    device: Annotated[str, arg(help="auto, cpu, cuda, ...")] = "auto",
    quiet: Annotated[bool, arg(aliases=["-q"], help="No progress bar.")] = False,
) -> None:
    """Certify images by randomized smoothing and print the certified accuracy, with its 95 % interval.

    For example:
      rdc certify --model apndc --sigma 0.25 --n 1000 --count 5
      rdc certify --model carlini --sigma 0.5 --target 0.5 --count 50 --rows runs/c.jsonl --workers 2
      rdc certify --model cascade -s gap=2 --sigma 0.25 --n 1000 --count 5
      rdc certify --model epndc --denoiser optimal --data digits --levels 8 --n 500 --count 5
    """
    from rdc.certify.clopper_pearson import check_alpha, reach
    from rdc.certify.rows import certified_accuracy, certify_rows

    noise, level = number(sigma, "--sigma", low=0, strict=True), number(alpha, "--alpha")
    asked = None if target is None else number(target, "--target", low=0, strict=True)
    for name, value in {"--n": n, "--n0": n0, "--batch": batch, "--block": block, "--workers": workers}.items():
        if value is not None:
            whole_number(value, name)
    check_alpha(level)
    if stopping is not None and asked is None:
        raise ValueError("--stopping says how to stop at a target; give --target, or leave it out")
    data = tidy(data)
    (x, y), place = first_images(data, count, start, "--count"), pick_device(device)
    asked_for = {"network": None if network is None else str(network), "epochs": epochs}
    given = defence.given() | {k: v for k, v in asked_for.items() if v is not None}
    base = find_base(model, data, given, noise, seed, place, quiet)
    size = batch_size(base) if batch is None else batch
    if not quiet:
        tell_cost(evaluations(base), n0 + n, count)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = rows or Path(folder, "rows.jsonl")
        found = certify_rows(
            base, x.to(place), y.to(place), path, sigma=noise, n0=n0, n=n, alpha=level, seed=seed,
            target=asked, stopping=stopping or "sequence", batch=size, block=block, workers=workers,
            index=torch.arange(start, start + count, device="cpu"),
            config={"model": model, "data": data, **order_of(data), **source_of(model)}, quiet=quiet,
        )  # fmt: skip
    text = f"{model}, sigma {noise:g}, n0 {n0}, n {n}, alpha {level:g}"
    limit = reach(n, noise, level)
    radii = [0.0, asked] if asked is not None else [r for r in RADII if r <= limit]
    for radius, share in certified_accuracy(found, radii).items():
        print(f"certified {share}  (radius {radius:g}; {text})")
    calls = sum(row["certificate"]["calls"] for row in found) / len(found)
    abstained = sum(row["certificate"]["label"] < 0 for row in found)
    print(
        f"{abstained} abstentions; {calls:.0f} noisy images an image{'' if target else f'; {n} draws reach {limit:.3f} at most'}"
    )
    print(f"{time.perf_counter() - began:.1f} s")


def evaluations(base: nn.Module) -> int:
    """Return the network evaluations of a base classifier for one noisy image; 1 if it does not say."""
    known = getattr(base, "evaluations", getattr(getattr(base, "network", None), "evaluations", 1))
    return int(known) if isinstance(known, (int, float)) else 1


def tell_cost(each: int, draws: int, count: int) -> None:
    """Say how much there is to do, where that is not plain: ``--draws`` multiplies ``--n``."""
    if each > 1:
        text = f"{each:,} network evaluations a noisy image, at most {draws:,} noisy images an image"
        print(f"{text}: at most {each * draws * count:,}", file=sys.stderr)


def batch_size(base: nn.Module) -> int:
    """Return so many noisy images that the progress bar moves: at most 64, and at most 4 096 evaluations at a time."""
    return max(1, min(64, 4096 // evaluations(base)))


def find_base(
    model: str, data: str, given: dict[str, Any], sigma: float, seed: int, device: torch.device, quiet: bool
) -> nn.Module:
    """Return the base classifier of a name, for the noise that is certified.

    Raises:
        ValueError: if it was to be built, or exists, for another noise.
    """
    from rdc.models import base_classifier, is_noisy

    if is_noisy(model) and (own := noise_of(model, given)) not in (None, sigma):
        raise ValueError(f"--sigma is {sigma:g}, and this {model} is for the noise {own:g}; they must agree")
    if model in ANY:
        given = left_out(model, given, SHARED)
    noise = {"sigma": sigma} if is_noisy(model) else {}
    return base_classifier(model, trained_on(data), device, **options_for(model, given, seed=seed, quiet=quiet, **noise))


def noise_of(model: str, given: dict[str, Any]) -> float | None:
    """Return the noise that options name, or for which the rounds of a race were learned; None for that of the command line."""
    from rdc.models.noisy import RACE

    if model == "race":
        return float(json.loads(RACE.read_text(encoding="utf8"))["sigma"])
    return number(given["sigma"], "sigma") if "sigma" in given else None
