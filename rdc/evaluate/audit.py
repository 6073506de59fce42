"""An audit of an attack: is the robust accuracy that it measures on this model to be believed?

Every check asks for a fact that must hold if the attack is near its optimum and the model is what it seems. A check ends in
``pass``, ``warn`` (read the reason before you quote a number) or ``fail`` (the number says more about the attack than about
the model). Checks run from fast to slow and stop at the first ``fail``, unless everything is asked for. What a model raises, and
what it answers off the data, is a row like any other.

| :mod:`rdc.evaluate.checks`           the model as a function: the same answer however, and whenever, it is asked
| :mod:`rdc.evaluate.gradient_checks`  the gradient against itself and against finite differences
| :mod:`rdc.evaluate.attack_checks`    other attacks, on the images that the audited one left
| :mod:`rdc.evaluate.binarise`         the binarisation test

References:
    | On Evaluating Adversarial Robustness (Carlini et al., 2019), https://arxiv.org/abs/1902.06705
    | On Adaptive Attacks to Adversarial Example Defenses (Tramer et al., 2020), https://arxiv.org/abs/2002.08347
    | Increasing Confidence in Adversarial Robustness Evaluations (Zimmermann et al., 2022), https://arxiv.org/abs/2206.13991
"""

__all__ = ["Report", "audit"]

import html
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.budget import budget
from rdc.attack.pgd import pgd
from rdc.door import ask, check_images, check_labels, entry
from rdc.evaluate import checks, gradient_checks
from rdc.evaluate.attack_checks import attack_checks, check_attack, check_monotone, check_scale, check_unbounded
from rdc.evaluate.binarise import check_binarisation
from rdc.evaluate.bundled import other_images
from rdc.evaluate.case import Case, Count, Failed, Row, told
from rdc.evaluate.frozen import Memory
from rdc.randomness import owned_randomness

Check = Callable[[Case], Iterator[Row]]
HELD_OUT = 8  # other images


@dataclass(frozen=True)
class Report:
    """The rows of an audit. ``ok`` is true if none failed; the report prints as a table, also in a notebook.

    ``skipped`` names the checks that were not run after the first failure, ``images`` and ``calls`` say how many images were
    pushed through the model in how many calls, ``gradients`` how many of the images with a gradient, and ``audited`` how many
    images the model got right.
    """

    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()
    audited: int = 0
    images: int = 0
    gradients: int = 0
    calls: int = 0

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.verdict != "fail" for row in self.rows)

    @property
    def cost(self) -> str:
        """What was asked of the model, in one line."""
        each = self.images / max(self.audited, 1)
        return (
            f"{each:.0f} images pushed per audited image ({self.audited} audited, {self.images} pushed, "
            f"{self.gradients} with a gradient, {self.calls} model calls)"
        )

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{row.verdict:4}  {row.name:{width}}  {row.reason}" for row in self.rows]
        if self.skipped:
            lines.append(f"not run after the first failure: {', '.join(self.skipped)}")
        return "\n".join([*lines, self.cost] if self.audited else lines)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><b>{r.verdict}</b></td><td>{html.escape(r.name)}</td>"
            f'<td style="text-align:left">{html.escape(r.reason)}</td></tr>'
            for r in self.rows
        )
        return f"<table><thead><tr><th>verdict</th><th>check</th><th>reason</th></tr></thead><tbody>{cells}</tbody></table>"


@entry
def audit(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    norm: str = "Linf",
    eps: float = 8 / 255,
    steps: int = 20,
    attack: Callable[..., Tensor] = pgd,
    eot: int = 1,
    surrogate: nn.Module | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    queries: int = 50,
    seed: int = 0,
    everything: bool = False,
    quiet: bool = True,
) -> Report:
    """Audit the attack ``attack(model, ..., steps, eot)`` on these images.

    Arguments:
        model: Images in [0, 1] to logits ``(N, K)``.
        x: Images; those that the model gets wrong are left out.
        y: True labels.
        norm: ``Linf`` or ``L2``.
        eps: Radius in image units.
        steps: Gradient steps of the audited attack.
        attack: Takes the arguments of :func:`rdc.attack.pgd`.
        eot: Calls averaged by the audited attack.
        surrogate: Another classifier for the transfer attack; by default one made on the spot from images of the same shape.
        held_out: Other images of the same data and their labels; by default from the embedded data, if ``x`` comes from there.
        features: Representation for the binarisation test; by default the logits.
        queries: Queries of the black-box attack.
        seed: Seed of the random numbers.
        everything: Whether to go on after the first failure.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: for bad images, labels, radius or budget, and if the model gets every image wrong.
    """
    check_images(x)
    check_labels(y, len(x))
    given = budget(norm, eps, steps=steps, eot=eot, queries=queries)
    eps, steps, eot, queries = given.eps, given.steps, given.eot, given.queries
    if held_out is not None:
        check_images(held_out[0], tuple(x.shape[1:]))
        check_labels(held_out[1], len(held_out[0]))
    else:
        held_out = other_images(x, y, HELD_OUT)
    names = order(surrogate, held_out, features, queries)
    counted = Count()
    with warnings.catch_warnings(), owned_randomness(model, seed, "audit"), counted.of(model), Memory(model).held():
        warnings.simplefilter("ignore")
        try:
            first = ask(model, x[:2])  # before anything else
            keep = ask(model, x, y).argmax(dim=1) == y
        except Exception as error:
            row = Row("answers", "fail", f"the model does not answer on the images themselves: {told(error)}")
            rest = tuple(name for name in names if name != row.name)
            return Report((row,), rest, len(x), counted.images, counted.gradients, counted.calls)
        if not bool(keep.any()):
            raise ValueError("the model gets every image wrong; there is nothing to attack (are the labels those of the images?)")
        share = float(keep.float().mean())
        case = Case(model, x[keep], y[keep], norm, eps, steps, eot, attack, seed, share, (x[:2], first))
        rows, skipped = run(case, names, everything, quiet)
    return Report(rows, skipped, len(case), counted.images, counted.gradients, counted.calls)


def run(case: Case, names: dict[str, Check], everything: bool, quiet: bool) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows of the checks, and the names of those that were not run."""
    rows: list[Row] = []
    for name, check in tqdm(names.items(), disable=quiet, desc="audit", unit="check"):
        if rows and rows[-1].verdict == "fail" and not everything:
            break
        try:
            rows.extend(check(case))
        except Failed as error:
            rows.append(Row(name, "fail", str(error)))
        except ModuleNotFoundError:  # a package that is not installed says nothing about the model
            raise
        except Exception as error:  # whatever the model or the attack does is a finding
            rows.append(Row(name, "fail", f"raised {told(error)}"))
    return tuple(rows), tuple(names)[len(rows) :]


def order(
    surrogate: nn.Module | None,
    held_out: tuple[Tensor, Tensor] | None,
    features: Callable[[Tensor], Tensor] | None,
    queries: int,
) -> dict[str, Check]:
    """The checks by name, from fast to slow."""
    first: dict[str, Check] = {
        "repeats": checks.check_repeats,
        "random state": checks.check_random_state,
        "autograd": checks.check_modes,
        "training mode": checks.check_training,
        "batch": checks.check_batch,
        "answers": checks.check_answers,
        "logits": checks.check_logits,
        "grey levels": checks.check_grid,
        "gradient": gradient_checks.check_gradient,
        "same gradient": gradient_checks.check_same_gradient,
        "gradient noise": gradient_checks.check_gradient_noise,
        "loss noise": gradient_checks.check_loss_noise,
        "audited attack": check_attack,
        "slope": gradient_checks.check_slope,
        "held out": lambda case: checks.check_held_out(case, held_out),
        "unbounded eps": check_unbounded,
        "monotone in eps": check_monotone,
        "logit scale": check_scale,
    }
    last: dict[str, Check] = {
        "binarisation": lambda case: check_binarisation(case, features),
        "memory": checks.check_memory,
    }
    return {**first, **attack_checks(surrogate, queries), **last}
