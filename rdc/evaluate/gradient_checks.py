"""Checks of an audit that look at the gradient: whether there is one, whether it is one, and whether it is that of the loss."""

__all__ = ["check_gradient", "check_gradient_noise", "check_loss_noise", "check_same_gradient", "check_slope"]

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rdc.attack.losses import margin
from rdc.attack.norms import ascend, project
from rdc.autograd import value_and_gradient
from rdc.door import ask, logits_of
from rdc.evaluate.case import Case, Failed, Row, told
from rdc.rng import rand

DIRECTIONS = 2  # of finite differences at each point


def slope(model: nn.Module, x: Tensor, y: Tensor, eot: int = 1) -> Float[Tensor, "n c h w"]:
    """The gradient of the margin.

    Raises:
        Failed: if there is none.
    """
    try:
        return value_and_gradient(lambda p: margin(logits_of(model, p), y), x, eot)[1]
    except Exception as error:
        raise Failed(told(error)) from error


def margins(case: Case, x: Tensor) -> Float[Tensor, " n"]:
    """The margin of the frozen model."""
    return margin(case.logits(x), case.y)


def check_gradient(case: Case) -> Iterator[Row]:
    """The gradient of the margin exists, is finite and is not zero."""
    gradient = slope(case.frozen, case.points(), case.y)
    dead = int((gradient.flatten(1) == 0).all(dim=1).sum())
    verdict = "pass" if dead == 0 else "warn" if dead <= 0.05 * len(case) else "fail"
    yield Row("gradient", verdict, f"exactly zero for {dead} of {len(case)} images")


def check_same_gradient(case: Case) -> Iterator[Row]:
    """The gradient of an image is the same when it is asked for again, and when the image is alone."""
    x, y = case.points()[:4], case.y[:4]
    first = slope(case.frozen, x, y)
    again = slope(case.frozen, x, y)
    free = first if case.random else slope(case.model, x, y)
    apart = min(float(F.cosine_similarity(first.flatten(1), g.flatten(1), dim=1).amin()) for g in (again, free))
    alone = torch.cat([slope(case.model, a, b, 4 if case.random else 1) for a, b in zip(x.split(1), y.split(1), strict=True)])
    many = slope(case.model, x, y, 4) if case.random else first
    cosine = F.cosine_similarity(alone.flatten(1), many.flatten(1), dim=1)
    size = (alone.flatten(1).norm(dim=1) / many.flatten(1).norm(dim=1).clamp(min=1e-300)).log().abs()
    odd = bool((cosine < 0.3).all()) if case.random else bool(((cosine < 0.99) | (size > 0.05)).any())
    if apart < 0.99:
        yield Row("same gradient", "fail", f"two gradients at one point differ (cosine {apart:.2f}), and the logits do not")
    elif odd:
        text = f"cosine {float(cosine.amin()):.3f}, length up to {float(size.amax().exp()):.3g} times"
        text = f"the gradient of an image alone is another than in a batch ({text})"
        yield Row("same gradient", "fail", text)
    else:
        yield Row("same gradient", "pass", "the same gradient at a second call, and for an image alone")


def check_slope(case: Case) -> Iterator[Row]:
    """Finite differences: the loss changes as the gradient says, along the gradient and along random directions.

    Both at random points of the ball and where the audited attack ended. Along the gradient the step is a quarter of the radius,
    as long as an attack's; the random directions include those pixels that the gradient calls irrelevant.
    """
    places = {"at random points": case.points(), "where the attack ended": case.adversarial.clamp(0, 1)}
    for place, start in places.items():
        gradient = slope(case.frozen, start, case.y)
        rises, ratio = along_gradient(case, start, gradient)
        fit, blind = along_random(case, start, gradient)
        text = f"{place} a step of eps/4 raises the loss on {100 * rises:.0f} % of images, by {ratio:.2f} of the forecast"
        if rises < 0.7 or not 0.1 <= ratio <= 10:
            yield Row("slope", "fail", text)
            return
        if fit < 0.7:
            fault = f"{place} random steps change the loss otherwise than the gradient says (correlation {fit:.2f})"
            yield Row("slope", "fail", fault)
            return
        if blind > 0.3:
            fault = f"{place} pixels of zero gradient do {100 * blind:.0f} % of what the others do: the gradient is masked"
            yield Row("slope", "fail", fault)
            return
    yield Row("slope", "pass" if 0.3 <= ratio <= 3 else "warn", text)


def along_gradient(case: Case, start: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Share of images whose loss rises along the gradient, and the rise as a share of the forecast (median)."""
    step = case.eps / 4
    up, down = (project(start + s * step * ascend(gradient, case.norm), start, case.norm, step) for s in (1, -1))
    rise = margins(case, up) - margins(case, down)
    predicted = ((up - down) * gradient).flatten(1).sum(dim=1)
    counted = predicted > 0
    if not bool(counted.any()):
        return 0.0, 0.0
    return float((rise > 0)[counted].float().mean()), float((rise / predicted)[counted].median())


def along_random(case: Case, start: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Correlation of measured and forecast changes, and the share of the change by pixels without gradient.

    The steps are small signs, a fiftieth of the radius, and central differences take the even part of the loss out.
    """
    step = case.eps / 50 if case.norm == "Linf" else case.eps / 50 / case.x[0].numel() ** 0.5
    forecast, measured = [], []
    for draw in range(DIRECTIONS):
        sign = (2 * rand(start.shape, case.seed, "direction", draw, like=start) - 1).sign()
        up, down = (start + step * sign).clamp(0, 1), (start - step * sign).clamp(0, 1)
        forecast.append(((up - down) * gradient).flatten(1).sum(dim=1))
        measured.append(margins(case, up) - margins(case, down))
    a, b = torch.stack(forecast).double(), torch.stack(measured).double()
    unit = a.square().mean(dim=0).sqrt().clamp(min=1e-300)  # images weigh alike
    a, b = a / unit, b / unit
    fit = float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-300))
    dead = gradient.abs() <= 1e-6 * gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    if not bool(dead.any()):
        return fit, 0.0
    up, down = (torch.where(dead, start + s * step * sign, start).clamp(0, 1) for s in (1, -1))
    blind = (margins(case, up) - margins(case, down)).abs().double()
    return fit, float((blind / torch.stack(measured).abs().double().mean(dim=0).clamp(min=1e-300)).median())


def check_gradient_noise(case: Case, draws: int = 4) -> Iterator[Row]:
    """Gradients of a randomised model agree between draws."""
    if not case.random:
        yield Row("gradient noise", "pass", "deterministic: every gradient is the same")
        return
    slopes = [slope(case.model, case.points(), case.y, case.eot).flatten(1) for _ in range(draws)]
    pairs = [F.cosine_similarity(a, b, dim=1) for i, a in enumerate(slopes) for b in slopes[:i]]
    cosine = float(torch.stack(pairs).mean())
    verdict = "fail" if cosine < 0.3 else "pass" if cosine > 0.7 else "warn"
    yield Row("gradient noise", verdict, f"cosine between draws {cosine:.2f} at EOT {case.eot}")


def check_loss_noise(case: Case, draws: int = 3) -> Iterator[Row]:
    """The loss differs more between two points an attack step apart than between two draws at one point."""
    if not case.random:
        yield Row("loss noise", "pass", "deterministic: the loss has no noise")
        return
    near = project(case.points(), case.x, case.norm, case.eps / 4)
    here, there = (torch.stack([margin(ask(case.model, p), case.y) for _ in range(draws)]) for p in (case.x, near))
    noise = float(here.std(dim=0).median())
    step = float((there.mean(dim=0) - here.mean(dim=0)).abs().median())
    verdict = "pass" if noise <= step else "warn"
    text = f"noise {noise:.2g} against differences of {step:.2g} between points eps/4 apart"
    yield Row("loss noise", verdict, text if verdict == "pass" else text + ": average losses before comparing them")
