"""The task *unseen*: how often is a model right on test images that the book's own test images do not hold?"""

__all__ = ["roots", "toy", "unseen", "weights"]

from dataclasses import replace

from rdc.data.unseen import unseen as unseen_images
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack

weights = attack.weights


def unseen(cell: Cell, device: str = "cpu") -> Outcome:
    """Classify images of :func:`rdc.data.unseen.unseen`, on which choices are made.

    The count ``parameters`` is that of the denoiser.
    """
    from rdc.evaluate import predict

    row, images = cell.row, unseen_images(cell.stop)[slice(cell.start, cell.stop)]
    model = attack.made(row.model, row.data, device, attack.key(row.options))
    right = predict(model, images.x.to(device)).cpu() == images.y
    return Outcome({"clean": right.tolist()}, counts={"parameters": sum(p.numel() for p in model.parameters())})


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builder of its model."""
    return [attack.builder(row.model)]


def toy(row: Row) -> Row:
    """Return a row at toy size, on test images of the digits: all of Fashion-MNIST does not come with the package."""
    return attack.toy(replace(row, task="attack"))
