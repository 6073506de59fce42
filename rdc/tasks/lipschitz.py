"""The task *lipschitz*: margins of a diffusion classifier, and the radii that its Lipschitz bound gives without smoothing."""

__all__ = ["lipschitz", "roots", "toy", "weights"]

from rdc.certify.lipschitz_certificate import lipschitz_certify
from rdc.runs.cell import Cell, Outcome
from rdc.tasks import attack
from rdc.tasks.certify import roots, toy, weights


def lipschitz(cell: Cell, device: str = "cpu") -> Outcome:
    """Bound the margin of each image.

    Arguments of the row: ``n`` and ``alpha`` as of ``rdc.certify.lipschitz_certify``. ``candidate`` is the class, ``margin``
    its mean margin, ``margin low`` the lower bound of the global form (nats); ``radius global`` and ``radius local`` are those
    of the two forms; ``right`` says that the class is the true one.
    """
    given, (x, y, index) = cell.row.arguments, attack.test_images(cell.row.data, cell.start, cell.stop, device)
    model = attack.made(cell.row.model, cell.row.data, device, attack.key(cell.row.options))
    values: dict[str, list[float | None]] = {}
    for image, i in zip(x, index.tolist(), strict=True):
        known = {"n": given["n"], "alpha": given["alpha"], "seed": cell.row.seed, "index": i}
        both = {form: lipschitz_certify(model, image, form=form, **known) for form in ("global", "local")}  # type: ignore[arg-type]
        found = both["global"]
        numbers = {"candidate": found.candidate, "margin": found.margin, "margin low": found.margin_low}
        for name, number in {**numbers, **{f"radius {form}": one.radius for form, one in both.items()}}.items():
            values.setdefault(name, []).append(number)
    right = [c == label for c, label in zip(values["candidate"], y.tolist(), strict=True)]
    return Outcome({"right": right}, values=values)
