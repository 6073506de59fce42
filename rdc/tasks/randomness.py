"""The task *randomness*: how random, how smooth and how large are the gradients of a model, and how noisy are its losses?"""

__all__ = ["randomness", "roots", "toy", "weights"]

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack


def randomness(cell: Cell, device: str = "cpu") -> Outcome:
    """Measure the gradients of a model on test images that the reference CNN gets right: image i of the row is the i-th of these.

    Arguments of the row: ``repeats``, gradients of each image; ``eot``, how many are averaged; ``eps`` and ``steps`` of the path
    of an attack, of which a step is 2 eps / steps; ``draws`` of the noise of losses.

    Returns:
        Means of what :mod:`rdc.analyse` measures, without those for which no signal was seen. ``cosine m``, ``predicted m``: of
        two means of m gradients of the margin to a fixed rival, measured and in closed form. ``half eot``, ``largest share`` (of
        the draw with the longest gradient in the energy of all), ``distance m``, ``noise common``, ``noise independent``: medians
        over images. ``cosine margin``: of the margin, whose rival is free. ``mean absolute``. ``path cosine k``, ``lipschitz``:
        along the path, the noise held fixed. Of each image ``log2 half eot`` and ``mean absolute``; None where it is not finite.
    """
    from rdc.quantities import number

    row, given = cell.row, cell.row.arguments
    model = attack.made(row.model, row.data, device, attack.key(row.options))
    x, y = right_images(cell, device)
    eps, steps = number(given["eps"], "eps", low=0), int(given["steps"])
    means, each = random(model, x, y, given["repeats"], given["eot"], (2 * eps / steps, given["draws"]), row.seed)
    means |= smooth(model, x, y, eps, steps, row.seed)
    values = {name: [v if math.isfinite(v) else None for v in found.tolist()] for name, found in each.items()}
    return Outcome({}, {name: value for name, value in means.items() if math.isfinite(value)}, values=values)


def right_images(cell: Cell, device: str) -> tuple[Tensor, Tensor]:
    """Return the images of a cell among those that the reference CNN gets right.

    Raises:
        ValueError: if there are fewer.
    """
    from rdc.data import load
    from rdc.evaluate import predict

    test = load(cell.row.data, "test")
    x, y = test.x.to(device), test.y.to(device)
    index = (predict(attack.made("cnn", cell.row.data, device, ()), x) == y).nonzero()[cell.start : cell.stop, 0]
    if len(index) < len(cell):
        raise ValueError(f"the reference CNN gets fewer than {cell.stop} test images of {cell.row.data} right")
    return x[index], y[index]


def random(
    model: nn.Module, x: Tensor, y: Tensor, repeats: int, eot: Sequence[int], loss: tuple[float, int], seed: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return how alike gradients are that are taken again and again, and how noisy losses, ``loss``: after a step, in draws.

    Means, and numbers of each image.
    """
    from rdc.analyse import (
        eot_cosine,
        gradient_cosine,
        linearised_distance,
        loss_noise,
        margin_to,
        repeated_gradients,
        runner_up,
        signal_to_noise,
    )

    g = repeated_gradients(model, x, y, repeats, loss=margin_to(runner_up(model, x, y)), seed=seed)
    free = repeated_gradients(model, x, y, max(2, repeats // 4), seed=seed)
    found, energy, counts = signal_to_noise(g), g.double().square().flatten(2).sum(2), [m for m in eot if repeats // m >= 2]
    noise = loss_noise(model, x, (x + loss[0] * g.mean(0).sign()).clamp(0, 1), y, loss[1], seed=seed)
    distance = {m: linearised_distance(model, x, y, eot=m, seed=seed) for m in (1, 4)}
    each = {"log2 half eot": found.half_eot.log2(), "mean absolute": g.abs().flatten(2).mean(dim=(0, 2))}
    return {
        **{f"cosine {m}": float(v) for m, v in zip(counts, eot_cosine(g, counts).mean(1), strict=True)},
        **{f"predicted {m}": float(found.cosine(m).nanmean()) for m in counts},
        "cosine margin": float(gradient_cosine(free).mean()),
        "half eot": float(found.half_eot.median()),
        "largest share": float((energy.max(0).values / energy.sum(0)).median()),
        "mean absolute": float(g.abs().mean()),
        **{f"distance {m}": float(d[d > 0].median()) for m, d in distance.items()},
        "noise common": float(noise.ratio().median()),
        "noise independent": float(noise.ratio(common=False).median()),
    }, each


def smooth(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, seed: int) -> dict[str, float]:
    """Return how the gradient changes along the path of an attack, the noise held fixed."""
    from rdc.analyse import ascent_path, gradients_along, lipschitz, path_cosine
    from rdc.randomness import known_noise

    fixed = known_noise(model, seed)
    path = ascent_path(fixed, x, y, eps=eps, steps=steps, seed=seed)
    slopes = gradients_along(fixed, path, y, seed=seed)
    change = lipschitz(path, slopes)
    cosines = {f"path cosine {k}": float(v) for k, v in enumerate(path_cosine(slopes).mean(1))}
    return cosines | {"lipschitz first": float(change[0].nanmedian()), "lipschitz": float(change.nanmedian())}


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builders of its model and of the reference CNN."""
    return [attack.builder(row.model), attack.builder("cnn")]


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name: of its model, and of the CNN that chooses its images."""
    return {**attack.weights(row), **attack.weights(Row("cnn", data=row.data))}


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    arguments = {**row.arguments, "repeats": 2, "eot": [1], "steps": 1, "draws": 2}
    return replace(attack.toy(replace(row, arguments={})), arguments=arguments)
