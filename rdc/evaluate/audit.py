"""An audit of an attack: is the robust accuracy that it measures on this model to be believed?

Every check asks for a fact that must hold if the attack is near its optimum and the model is what it seems. A check ends in
``pass``, ``warn`` (read the reason before you quote a number) or ``fail`` (the number says more about the attack than about
the model). Checks of the model and of its gradient are in :mod:`rdc.evaluate.checks`, the binarisation test is in
:mod:`rdc.evaluate.binarise`; those that compare attacks are here. A stronger attack only runs on the images that the first left.

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
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from rdc.attack.blackbox import square, transfer, uniform_noise
from rdc.attack.norms import check_eps
from rdc.attack.pgd import pgd
from rdc.data import check_images, check_labels
from rdc.evaluate.binarise import check_binarisation
from rdc.evaluate.checks import (
    Case,
    Row,
    check_batch,
    check_eot,
    check_gradient,
    check_logits,
    check_loss_noise,
    check_random_state,
    check_slope,
    right,
)


@dataclass(frozen=True)
class Report:
    """The rows of an audit. ``ok`` is true if none failed; the report prints as a table, also in a notebook."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.verdict != "fail" for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        return "\n".join(f"{row.verdict:4}  {row.name:{width}}  {row.reason}" for row in self.rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><b>{r.verdict}</b></td><td>{html.escape(r.name)}</td>"
            f'<td style="text-align:left">{html.escape(r.reason)}</td></tr>'
            for r in self.rows
        )
        return f"<table><thead><tr><th>verdict</th><th>check</th><th>reason</th></tr></thead><tbody>{cells}</tbody></table>"


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
    features: Callable[[Tensor], Tensor] | None = None,
    queries: int = 200,
    seed: int = 0,
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
        surrogate: Another classifier for the transfer attack; without it that row is a warning.
        features: Representation for the binarisation test; by default the logits.
        queries: Queries of the black-box attacks.
        seed: Owner of the random numbers.
        quiet: Whether to hide the progress bar.

    Raises:
        ValueError: for bad images, labels or radius, and if the model gets every image wrong.
    """
    check_images(x)
    check_labels(y, len(x))
    check_eps(norm, eps)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.random.manual_seed(seed)
        keep = right(model, x, y)
        if not bool(keep.any()):
            raise ValueError("the model gets every image wrong; there is nothing to attack (are the labels those of the images?)")
        case = Case(model, x[keep], y[keep], norm, eps, steps, eot, attack, seed)
        parts = [*model_checks(features), *attack_checks(surrogate, queries)]
        rows = [row for check in tqdm(parts, disable=quiet, desc="audit", unit="check") for row in check(case)]
    return Report(tuple(rows))


Check = Callable[[Case], Iterator[Row]]


def model_checks(features: Callable[[Tensor], Tensor] | None) -> list[Check]:
    """Checks of the model, its gradient and its randomness."""
    first: list[Check] = [check_batch, check_random_state, check_logits, check_gradient, check_slope]
    return [*first, check_eot, check_loss_noise, lambda case: check_binarisation(case, features)]


def attack_checks(surrogate: nn.Module | None, queries: int) -> list[Check]:
    """Checks that compare the audited attack with others."""
    return [
        check_large_eps,
        check_monotone,
        lambda case: compare(case, "more steps", "three times the steps", steps=3 * case.steps),
        lambda case: compare(case, "restarts", "three restarts", restarts=3, seed=case.seed + 1),
        lambda case: compare(case, "other loss", "cross-entropy on rescaled logits", loss="ce", scale="auto"),
        check_rescaling,
        lambda case: check_black_box(case, queries),
        lambda case: check_transfer(case, surrogate),
    ]


def check_large_eps(case: Case) -> Iterator[Row]:
    """A ball that holds every image leaves nothing right."""
    whole = 1.0 if case.norm == "Linf" else float(case.x[0].numel()) ** 0.5
    left = int((~case.broken(eps=whole)).sum())
    verdict = "pass" if left == 0 else "warn" if left <= 0.1 * len(case) else "fail"
    yield Row("unbounded eps", verdict, f"{left} of {len(case)} images survive eps {whole:.3g}, which allows every image")


def check_monotone(case: Case) -> Iterator[Row]:
    """A larger ball breaks at least as many images."""
    counts = [int(case.base.sum()) if f == 1 else int(case.broken(eps=f * case.eps).sum()) for f in (0.5, 1, 2)]
    drop = max(counts[0] - counts[1], counts[1] - counts[2], 0)
    verdict = "pass" if drop == 0 else "warn" if drop <= case.slack else "fail"
    yield Row("monotone in eps", verdict, f"broken at eps/2, eps, 2 eps: {', '.join(map(str, counts))} of {len(case)}")


def compare(case: Case, name: str, what: str, **changes: Any) -> Iterator[Row]:
    """How many images that the audited attack left does a variation of it break?"""
    left = (~case.base).nonzero()[:, 0]
    if not len(left):
        yield Row(name, "pass", "the attack left no image")
        return
    more = int(case.broken(left, **changes).sum())
    verdict = "pass" if more == 0 else "warn" if more <= max(case.slack, 0.2 * len(case)) else "fail"
    yield Row(name, verdict, f"{what}: {more} more of {len(case)} broken, {int(case.base.sum())} before")


def check_rescaling(case: Case, most: int = 8) -> Iterator[Row]:
    """Logits times 1e-3 and 1e3 leave the outcome as it is."""
    some = torch.arange(min(most, len(case)), device=case.x.device)
    changed = [int((case.broken(some, model=Scaled(case.model, f)) != case.base[some]).sum()) for f in (1e-3, 1e3)]
    verdict = "pass" if max(changed) == 0 else "warn" if max(changed) <= 1 else "fail"
    yield Row("logit scale", verdict, f"logits x 1e-3, x 1e3: {changed[0]}, {changed[1]} of {len(some)} outcomes change")


def check_black_box(case: Case, queries: int) -> Iterator[Row]:
    """Attacks that see no gradient break nothing that the gradient left."""
    left = (~case.base).nonzero()[:, 0]
    options: dict[str, Any] = {"norm": case.norm, "eps": case.eps, "queries": queries, "seed": case.seed}
    for name, tool in (("black box (noise)", uniform_noise), ("black box (Square)", square)):
        more = 0 if not len(left) else int(case.judge(tool(case.model, case.x[left], case.y[left], **options), left).sum())
        verdict = "pass" if more == 0 else "warn" if more <= case.slack else "fail"
        yield Row(name, verdict, f"{queries} queries break {more} of the {len(left)} images that the attack left")


def check_transfer(case: Case, surrogate: nn.Module | None) -> Iterator[Row]:
    """Adversarial images of another model break nothing that the gradient left."""
    if surrogate is None:
        yield Row("transfer", "warn", "not run: give surrogate=, a classifier trained without the defence")
        return
    left = (~case.base).nonzero()[:, 0]
    options: dict[str, Any] = {"norm": case.norm, "eps": case.eps, "steps": case.steps, "seed": case.seed}
    more = 0
    if len(left):
        found = transfer(case.model, case.x[left], case.y[left], surrogate, **options)
        more = int(case.judge(found, left).sum())
    verdict = "pass" if more == 0 else "warn" if more <= case.slack else "fail"
    yield Row("transfer", verdict, f"images made on the surrogate break {more} of the {len(left)} images that the attack left")


class Scaled(nn.Module):
    """The logits of a model times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """``factor`` times the logits."""
        return self.model(x) * self.factor
