"""The task *laboratory*: how likelihood maximisation under the optimal denoiser changes the exact likelihoods of images."""

__all__ = ["SIGMAS", "laboratory", "roots", "toy", "weights"]

from dataclasses import replace

import torch
from torch import Tensor

from rdc.analyse.laboratory import QUANTITIES, first_wrong, likelihoods
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import aligned, attack

SIGMAS = (0.1, 0.2, 0.5, 1.0)  # of the densities, model units


def laboratory(cell: Cell, device: str = "cpu") -> Outcome:
    """Maximise the likelihood of images, and say by how many nats each quantity of :mod:`rdc.analyse.laboratory` rises.

    The options of the row are those of :class:`rdc.defend.likelihood.LikelihoodMaximization` and its ``reading``. Arguments:
    ``images``, ``clean``, ``border`` or ``adversarial``; ``train``, how many training images the optimal denoiser has; ``levels``
    of its classifier; ``eps`` and ``steps`` of PGD. There is no number for an image that the classifier gets wrong before the
    attack, or, where it is attacked, right after it. ``loss`` is the rise of the loss that is descended, on other noise;
    ``right after`` is 1 where the classifier is right after it.
    """
    from rdc.classify.diffusion import DiffusionClassifier
    from rdc.defend.likelihood import READINGS, LikelihoodMaximization
    from rdc.evaluate import predict
    from rdc.schedule import levels

    given, options = dict(cell.row.arguments), dict(cell.row.options)
    x, y, index = attack.test_images(cell.row.data, cell.start, cell.stop, device)
    optimal = aligned.exact(cell.row.data, device, torch.float32, given["train"])
    model = DiffusionClassifier(optimal, levels("elbo", given["levels"], sigma_min=0.1), seed=cell.row.seed, chunk=2560)
    member = predict(model, x) == y
    if given["images"] != "clean":
        x_adv = attack.make_attack("pgd", cell.row.data, device, {"eps": given["eps"], "steps": given["steps"]})(
            model, x, y, seed=cell.row.seed, index=index
        )
        member &= predict(model, x_adv) != y
        x = x_adv if given["images"] == "adversarial" else torch.where(
            member.reshape(-1, 1, 1, 1), first_wrong(model, x, x_adv, y), x
        )  # fmt: skip
    if "elbo levels" in options:
        options["sigma"] = levels("elbo", options.pop("elbo levels"), sigma_min=0.1)
    known = {**READINGS[options.pop("reading")], **options} if "reading" in options else options
    lm = LikelihoodMaximization(optimal, seed=cell.row.seed, **known)
    other = LikelihoodMaximization(optimal, seed=cell.row.seed + 1, **{**known, "noise": "fixed"})
    moved = lm(x)
    found = {"right after": (predict(model, moved) == y).double()}
    found["loss"] = torch.stack([other.loss(moved, n) - other.loss(x, n) for n in range(lm.steps)]).mean(dim=0)
    for sigma in SIGMAS:
        before, after = (likelihoods(optimal, at, y, sigma) for at in (x, moved))
        found |= {f"{name}, sigma {sigma:g}": after[name] - before[name] for name in QUANTITIES}
    return Outcome({"member": member.tolist()}, values={name: only(value, member) for name, value in found.items()})


def only(value: Tensor, member: Tensor) -> list[float | None]:
    """Return the numbers of members, and None for the others."""
    return [round(float(v), 6) if m else None for v, m in zip(value.detach().tolist(), member.tolist(), strict=True)]


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task."""
    return ["rdc.attack.pgd:pgd"]


def weights(row: Row) -> dict[str, str]:
    """Return no checkpoint: everything follows from the data."""
    return {}


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    small = {**row.arguments, "train": 100, "levels": 2, "steps": 2, "eps": "0.3"}
    return replace(row, data="digits", n=4, block=4, arguments=small)
