"""The task *nearest*: certified radii of the nearest-neighbour rule over the training images."""

__all__ = ["nearest", "roots", "toy", "weights"]

from dataclasses import replace

from rdc.certify.nearest import nearest_radius
from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack


def nearest(cell: Cell, device: str = "cpu") -> Outcome:
    """Say which images the rule gets right, and within which Linf and L2 radius it keeps that answer, image units."""
    from rdc.data import load

    x, y, _ = attack.test_images(cell.row.data, cell.start, cell.stop, device)
    train = load(cell.row.data, "train")
    points, labels = train.x.to(device), train.y.to(device)
    right = [int(labels[(points - one).flatten(1).norm(dim=1).argmin()]) == int(label) for one, label in zip(x, y, strict=True)]
    radii = {norm: nearest_radius(x, y, points, labels, norm).tolist() for norm in ("Linf", "L2")}
    return Outcome({"clean": right}, values={f"radius {norm}": [round(r, 6) for r in found] for norm, found in radii.items()})


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: nothing."""
    return []


def weights(row: Row) -> dict[str, str]:
    """Return no checkpoint: everything follows from the data."""
    return {}


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    return replace(row, data="digits", n=2, block=2)
