"""Checks of an audit that compare attacks: what another attack breaks of the images that the audited one left.

Each runs on what all before it left. They fail as soon as together they broke more than chance explains.
"""

__all__ = ["attack_checks", "check_attack", "check_monotone", "check_scale", "check_unbounded"]

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.attack.autoattack import autoattack
from rdc.attack.blackbox import square, uniform_noise
from rdc.attack.neighbourhood import Neighbourhood
from rdc.attack.pgd import pgd
from rdc.door import ask
from rdc.evaluate.bundled import bundled_surrogate
from rdc.evaluate.case import Case, Failed, Row, outcome, told

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
TARGETS = 9


def check_attack(case: Case) -> Iterator[Row]:
    """What the audited attack returns lies in the ball and in [0, 1], and its budget matters to it."""
    outside = int((~case.inside(case.adversarial)).sum())
    once = case.attacked(steps=1)
    same = bool((once == case.adversarial).flatten(1).all(dim=1)[~case.base].all()) and not bool(case.base.all())
    if outside:
        yield Row("audited attack", "fail", f"{outside} of {len(case)} images lie outside the ball or outside [0, 1]")
    elif case.steps > 1 and same:
        yield Row("audited attack", "warn", f"{case.steps} steps end exactly where one does: does it use them?")
    else:
        yield Row("audited attack", "pass", f"breaks {int(case.base.sum())} of {len(case)}, all images within the ball")


def check_unbounded(case: Case) -> Iterator[Row]:
    """A ball that holds every image leaves nothing right."""
    whole = 1.0 if case.norm == "Linf" else float(case.x[0].numel()) ** 0.5
    found = case.attacked(eps=whole, steps=max(1, case.steps // 2))
    left = int((~case.wrong(found, case.y)).sum())
    verdict = "pass" if left == 0 else "warn" if left <= 0.1 * len(case) else "fail"
    yield Row("unbounded eps", verdict, f"{left} of {len(case)} images survive eps {whole:.3g}, which allows every image")


def check_monotone(case: Case) -> Iterator[Row]:
    """A smaller ball breaks nothing that this one leaves; a larger one breaks what this one does."""
    left, broken = case.standing, case.base.nonzero()[:, 0]
    less = more = 0
    if len(left):
        found = case.attacked(left, eps=0.75 * case.eps, steps=max(1, case.steps // 2))
        wrong = case.inside(found, left) & case.wrong(found, case.y[left], sure=True)
        case.found["monotone in eps"] = _at(case, left, wrong)
        less = int(wrong.sum())
    if len(broken):
        found = case.attacked(broken, eps=2 * case.eps)
        more = int((~case.wrong(found, case.y[broken])).sum())
    text = f"0.75 eps breaks {less} images that eps leaves; 2 eps leaves {more} that eps breaks"
    yield Row("monotone in eps", outcome(less + more, case.slack), text)


def check_scale(case: Case, most: int = 8) -> Iterator[Row]:
    """What the attack breaks it also breaks when the logits are a thousand times smaller or larger."""
    some = case.base.nonzero()[:most, 0]
    lost = []
    for factor in (1e-3, 1e3):
        model = Scaled(case.model, factor)
        found = case.attacked(some, model=model) if len(some) else case.x[some]
        lost.append(int((~case.wrong(found, case.y[some], model)).sum()) if len(some) else 0)
    text = f"logits x 1e-3, x 1e3: {lost[0]}, {lost[1]} of {len(some)} broken images are not found"
    yield Row("logit scale", outcome(max(lost), 1), text)


def attack_checks(surrogate: nn.Module | None, queries: int) -> dict[str, Callable[[Case], Iterator[Row]]]:
    """The comparisons by name, from fast to slow."""
    attacks: dict[str, Callable[[Case, Tensor], Attack]] = {
        "transfer": lambda case, left: _transferred(case, left, surrogate),
        "black box (noise)": lambda case, left: partial(uniform_noise, **_options(case, left), queries=5),
        "APGD": _apgd,
        "smoothed gradient": _smoothed,
        "more steps": _more,
        "targets": lambda case, left: _pgd(case, left, steps=_few(case, 4), targets=TARGETS, seed=case.seed + 2),
        "black box (Square)": lambda case, left: partial(
            square, **_options(case, left), queries=_queries(case, queries), batch=len(left)
        ),
    }
    return {name: partial(compare, name=name, make=make) for name, make in attacks.items()}


def compare(case: Case, name: str, make: Callable[[Case, Tensor], Attack]) -> Iterator[Row]:
    """How many of the images that are left does another attack break?"""
    left = case.standing
    before = len(case) - len(left) - int(case.base.sum())
    if not len(left):
        yield Row(name, "pass", "no image is left")
        return
    try:
        found = make(case, left)(case.model, case.x[left], case.y[left])
    except (ValueError, RuntimeError) as error:
        raise Failed(f"it cannot run: {told(error)}") from error
    wrong = case.inside(found, left) & case.wrong(found, case.y[left], sure=True)
    case.found[name] = _at(case, left, wrong)
    more = int(wrong.sum())
    text = f"breaks {more} of the {len(left)} images that are left"
    if more and before:
        text += f", with those before it {more + before}"
    yield Row(name, outcome(more and more + before, case.slack), text)


def _at(case: Case, left: Tensor, wrong: Tensor) -> Tensor:
    whole = torch.zeros_like(case.base)
    whole[left] = wrong
    return whole


def _few(case: Case, steps: int) -> int:
    return max(1, min(case.steps, steps))


def _queries(case: Case, queries: int) -> int:
    """Random search, which believes one verdict, is of little use against a randomised model: half of the queries."""
    return max(1, queries // 2) if case.random else queries


def _options(case: Case, left: Tensor) -> dict[str, Any]:
    return {"norm": case.norm, "eps": case.eps, "seed": case.seed, "index": left.cpu()}


def _pgd(case: Case, left: Tensor, **changes: Any) -> Attack:
    return partial(pgd, **{**_options(case, left), "steps": case.steps, "eot": case.eot, **changes})


def _more(case: Case, left: Tensor) -> Attack:
    """Twice the steps, of adaptive length; for a randomised model four times the draws."""
    if case.random:
        return _pgd(case, left, steps=max(1, case.steps // 2), eot=4 * case.eot, seed=case.seed + 3)
    return _pgd(case, left, steps=2 * case.steps, schedule="adaptive", seed=case.seed + 3)


def _apgd(case: Case, left: Tensor) -> Attack:
    """APGD on each loss that the number of classes allows; the package starts five times, three steps each."""
    classes = ask(case.model, case.x[:1]).shape[1]
    attacks = ["apgd-ce", "apgd-dlr"] if classes >= 4 else ["apgd-ce"]
    return partial(
        autoattack, **_options(case, left), version="custom", attacks=attacks, steps=_few(case, 3), eot=case.eot, batch=len(left)
    )  # fmt: skip


def _smoothed(case: Case, left: Tensor) -> Attack:
    """The gradient averaged over a neighbourhood as wide as half of the ball: sees through kinks and narrow valleys."""

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        width = case.eps / 2 if case.norm == "Linf" else case.eps / 2 / x[0].numel() ** 0.5
        smooth = Neighbourhood(model, width, draws=4, seed=case.seed)
        return _pgd(case, left, steps=_few(case, 4), seed=case.seed + 4)(smooth, x, y)

    return attack


def _transferred(case: Case, left: Tensor, surrogate: nn.Module | None) -> Attack:
    """Adversarial images of another classifier: of the one that is given, or of one made on the spot."""

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        classes = ask(model, x[:1]).shape[1]
        rival = bundled_surrogate(case.x, case.y, classes) if surrogate is None else surrogate
        return _pgd(case, left)(rival, x, y)

    return attack


class Scaled(nn.Module):
    """The logits of a model times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """``factor`` times the logits."""
        return self.model(x) * self.factor
