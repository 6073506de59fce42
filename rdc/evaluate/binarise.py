r"""The binarisation test: hide an adversarial example where it must be found, and see whether the attack finds it.

Around an image draw inner points, uniform in a smaller ball, and one point on the boundary of the ball. A linear readout of
the model's features, :math:`g(x) = w^\top f(x) - b`, separates the boundary point from the inner ones. The binary classifier
:math:`(-g, g)` then *has* an adversarial example, so that an attack which finds none is too weak for these features.

References:
    | Increasing Confidence in Adversarial Robustness Evaluations (Zimmermann et al., 2022), https://arxiv.org/abs/2206.13991
"""

__all__ = ["Binarised", "binarise", "check_binarisation"]

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rdc.attack.norms import ascend, project
from rdc.door import ask
from rdc.evaluate.case import Case, Failed, Row, told
from rdc.rng import generator

Features = Callable[[Tensor], Tensor]


class Binarised(nn.Module):
    """Logits ``(-g, g)`` with ``g(x) = w . f(x) - b``: class 0 is the side of the inner points."""

    def __init__(self, features: Features, weight: Float[Tensor, " d"], bias: float) -> None:
        super().__init__()
        self.features, self.weight, self.bias = features, weight, bias

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:
        """Two logits for each image."""
        value = self.features(x).flatten(1) @ self.weight - self.bias
        return torch.stack([-value, value], dim=1)


def binarise(
    features: Features, x: Float[Tensor, "1 c h w"], norm: str, eps: float, inner: int, key: tuple[int, ...]
) -> Binarised | None:
    """The binary classifier around one image, or None if no linear readout separates the points.

    The readout is Fisher's discriminant with a little ridge; the threshold lies nine tenths of the way from the outermost
    inner point to the boundary point, so that chance does not find the other side.
    """
    source = generator("binarise", *key)
    noise = 2 * torch.rand((inner, *x.shape[1:]), generator=source, dtype=torch.float32, device="cpu") - 1
    corner = ascend(torch.randn(x.shape, generator=source, dtype=torch.float32, device="cpu"), norm)
    size = 1.0 if norm == "Linf" else float(x[0].numel() / 3) ** -0.5
    points = project(x + 0.5 * eps * size * noise.to(x), x.expand(inner, -1, -1, -1), norm, eps)
    boundary = project(x + eps * corner.to(x), x, norm, eps)
    with torch.no_grad():
        found = features(torch.cat([points, x, boundary])).flatten(1)
    f = found.double()
    centre, centred = f[:inner].mean(dim=0), f[:inner] - f[:inner].mean(dim=0)
    covariance = centred.T @ centred / inner
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
    if not bool(f.isfinite().all()) or not float(ridge.abs().max()) > 0:
        return None
    weight = torch.linalg.solve(covariance + ridge, f[-1] - centre)
    weight = weight / weight.norm().clamp(min=1e-300)
    values = f @ weight
    top, goal = float(values[:-1].max()), float(values[-1])  # the image itself among the inner points
    return Binarised(features, weight.to(found.dtype), top + 0.9 * (goal - top)) if goal > top else None


def one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of images, each asked for alone."""
    return torch.cat([model(part) for part in x.split(1)])


def check_binarisation(case: Case, features: Features | None = None, most: int = 4, inner: int = 30) -> Iterator[Row]:
    """The attack finds the planted adversarial example of nearly every image."""
    if case.random and features is None:
        features = partial(one_by_one, case.frozen)  # the noise of a batch is another one
    found, tried = 0, 0
    for i in range(min(most, len(case))):
        x = case.x[i : i + 1]
        model = binarise(features or case.model, x, case.norm, case.eps, inner, (case.seed, i))
        if model is None:
            continue
        tried += 1
        label = torch.zeros(1, dtype=torch.int64, device=x.device)
        try:
            x_adv = case.attack(model, x, label, norm=case.norm, eps=case.eps, steps=case.steps, seed=case.seed)
        except Exception as error:
            raise Failed(f"the attack raised {told(error)} on a readout of the features") from error
        found += int(ask(model, x_adv.detach().clamp(0, 1))[0].argmax() == 1)
    if tried == 0:
        yield Row("binarisation", "warn", "undecided: no readout of the features separates the planted points")
        return
    verdict = "pass" if found == tried else "warn" if found >= 0.5 * tried else "fail"
    yield Row("binarisation", verdict, f"finds {found} of {tried} planted adversarial examples")
