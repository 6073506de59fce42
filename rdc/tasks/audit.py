"""The task *audit*: is the robust accuracy that PGD measures on the images of a cell to be believed?"""

__all__ = ["audit", "roots", "toy", "weights"]

from dataclasses import replace

from rdc.runs.cell import Cell, Outcome, Row
from rdc.tasks import attack


def audit(cell: Cell, device: str = "cpu") -> Outcome:
    """Audit PGD on the images of a cell: the verdict and the reason of every check in words, and how many failed.

    The arguments of the row are those of :func:`rdc.evaluate.audit.audit`; no check is left out. The surrogate of the transfer
    attack is the reference CNN of the data.
    """
    from rdc.evaluate.audit import audit as audited
    from rdc.quantities import number

    row = cell.row
    x, y, _ = attack.test_images(row.data, cell.start, cell.stop, device)
    model, network = (attack.made(name, row.data, device, attack.key(o)) for name, o in ((row.model, row.options), ("cnn", {})))
    given = {**row.arguments, "eps": number(row.arguments["eps"], "eps", low=0)}
    report = audited(model, x, y, surrogate=network, seed=row.seed, everything=True, **given)
    counts = {"audited": report.audited, "pushed": report.images}
    counts |= {verdict: sum(one.verdict == verdict for one in report.rows) for verdict in ("pass", "warn", "fail")}
    return Outcome({}, counts=counts, words={one.name: f"{one.verdict}: {one.reason}" for one in report.rows})


def roots(row: Row) -> list[str]:
    """Return what decides a row besides its task: the builders of its model and of the surrogate."""
    return [attack.builder(row.model), attack.builder("cnn")]


def weights(row: Row) -> dict[str, str]:
    """Return the hashes of the checkpoints that a row uses, by name."""
    return {**attack.weights(row), **attack.weights(Row("cnn", data=row.data))}


def toy(row: Row) -> Row:
    """Return a row at toy size."""
    return replace(attack.toy(replace(row, arguments={})), arguments={**row.arguments, "steps": 1, "queries": 2, "eps": "0.1"})
