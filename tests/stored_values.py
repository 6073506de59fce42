"""Numbers of the first edition: what every classifier, defence and attack said, on small inputs, before the code was rebuilt.

``python tests/stored_values.py`` writes ``tests/data/stored_values.safetensors`` from the code at hand. The stored file was made
at commit 1b70fdf and is not to be made again: a test compares today's code with it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rdc.attack import lagrange, pgd, stadv
from rdc.attack.losses import margin
from rdc.attack.norms import random_start
from rdc.autograd import value_and_gradient
from rdc.certify import APNDC, EPNDC, certify
from rdc.certify.lipschitz_certificate import lipschitz_certify, losses
from rdc.classify import RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, OptimalClassifier, Purify
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.classify.score_gradient import pathwise_gradient, score_gradient
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import load_denoiser
from rdc.early_exit import Cascade, Leader, Paired, Race, Round, Threshold
from rdc.early_exit.sift import calibrate, sift
from rdc.schedule import levels

PATH = Path(__file__).parent / "data" / "stored_values.safetensors"
Values = Iterator[tuple[str, Tensor]]


def both(name: str, model: nn.Module, x: Tensor, y: Tensor) -> Values:
    """Logits and the gradient of the margin."""
    with torch.no_grad():
        yield f"{name} logits", model(x)
    yield f"{name} gradient", value_and_gradient(lambda p: margin(model(p), y), x)[1]


def diffusion() -> Values:
    """Diffusion classifiers."""
    test, net, heads = load("digits"), load_denoiser("digits"), load_denoiser("fashion-mini-multihead")
    x, y, grid = test.x[:3], test.y[:3], levels("elbo", 3, sigma_min=0.1)
    prior = torch.linspace(1, 2, 10)
    options = {
        "shared": {},
        "per class": {"noise": "per_class"},
        "antithetic": {"noise": "antithetic", "draws": 2, "seed": 5},
        "share levels": {"share_levels": True, "draws": 2},
        "mean and prior": {"reduce": "mean", "prior": prior / prior.sum()},
    }
    for name, more in options.items():
        yield from both(f"dc {name}", DiffusionClassifier(net, grid, chunk=16, **more), x, y)
    yield "dc losses", DiffusionClassifier(net, grid, draws=2).losses(x)
    fresh = DiffusionClassifier(net, grid, noise="fresh", seed=2)
    yield "dc fresh", torch.stack([fresh(x), fresh(x)])
    train, wear = load("digits", "train"), load("fashion-mini")
    optimal = OptimalDenoiser(train.x[:60].double(), train.y[:60])
    yield from both("dc optimal", DiffusionClassifier(optimal, grid), x.double(), y)
    yield from both("dc heads", DiffusionClassifier(heads, grid), wear.x[:2], wear.y[:2])
    yield from both("dc heads per class", DiffusionClassifier(heads, grid[:1], noise="per_class"), wear.x[:1], wear.y[:1])
    yield from both("optimal", OptimalClassifier(train.x[:60].double(), train.y[:60], grid), x.double(), y)
    yield from both("diffusion loss", Loss(diffusion_loss(net, grid, 1)), x, torch.zeros_like(y))
    for baseline in ("pairs", "others", "none"):
        yield f"score {baseline}", score_gradient(net, 2 * x - 1, grid, y, 4, baseline)
    yield "pathwise", pathwise_gradient(net, 2 * x - 1, grid, y, 4)


class Loss(nn.Module):
    """A loss of images as two logits."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        """``(loss, 0)``."""
        value = self.loss(x)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def noised() -> Values:
    """Noised classifiers, their sieves and certificates."""
    test, net, train = load("digits"), load_denoiser("digits"), load("digits", "train")
    x, y = test.x[:2], test.y[:2]
    forms = [("fixed", "path", 4), ("fixed", "shared", 3), ("specific", "path", 3), ("specific", "per_class", 2)]
    for form, coupling, count in [*forms, ("quadrature", "shared", 3), ("released", "shared", 8)]:
        more = {"weight": "edm-released", "sigma_data": 0.5} if form == "released" else {}
        model = EPNDC(net, 0.25, count=count, form=form, coupling=coupling, antithetic=coupling != "path", seed=1, **more)
        yield from both(f"epndc {form} {coupling}", model, x, y)
        yield f"epndc {form} {coupling} losses", model.losses(x)
    model = EPNDC(net, 0.25, count=2, noise="fresh")
    yield "epndc fresh", torch.stack([model(x), model(x), model(x, torch.tensor([7, 1]))])
    yield "epndc likelihood", EPNDC(net, 0.25, count=3, form="fixed").log_likelihood(x)
    for variant in ("ensemble", "correct", "condition-on-y"):
        for released in (False, True):
            weight = "edm-released" if released else "elbo"
            options = {"released": released, "weight": weight, "antithetic": not released, "sigma_data": 0.5}
            model = APNDC(net, 0.25, count=4, variant=variant, **options)
            yield from both(f"apndc {variant} {released}", model, x, y)
    clean, exact = DiffusionClassifier(net, levels("elbo", 6), chunk=16), EPNDC(net, 0.25, count=6, form="fixed")
    spread = calibrate(exact, test.x[10:14])
    yield "calibrated", torch.tensor(spread, dtype=torch.float64)
    for name, of, rule in [
        ("leader", clean, Leader(pilot=2)),
        ("paired", exact, Paired(spread, warmup=2)),
        ("threshold", exact, Threshold(1.0, 3, 2, 2)),
    ]:
        found = sift(of, x, rule, seed=3)
        yield f"sift {name}", torch.cat([found.logits.double(), found.evaluations[:, None].double()], dim=1)
    some = [OptimalDenoiser(train.x[:n].double(), train.y[:n]) for n in (100, 150)]
    first, full = (EPNDC(d, 0.25, count=4, form="fixed", antithetic=False) for d in some)
    noisy = test.x[:8].double() + 0.25 * torch.linspace(-1, 1, 8 * 64, dtype=torch.float64).reshape(8, 1, 8, 8)
    rounds = [Round((0, 3), (0.5, 2.0), gap=4.0, keep=4), Round((1, 2), (1.0, 1.5), carry=0.5)]
    yield "race", Race(first, full, rounds)(noisy)
    yield "cascade", Cascade(first, full, gap=3.0, keep=3)(noisy)
    yield "lipschitz losses", torch.from_numpy(losses(clean, x[0], 3, 0, 4))
    for form in ("local", "global"):
        one = lipschitz_certify(clean, x[0], n0=4, n=8, form=form)
        yield f"lipschitz {form}", torch.tensor([one.candidate, one.margin, one.margin_low, one.radius], dtype=torch.float64)
    certificates = certify(EPNDC(net, 0.25, count=3), x, n0=5, n=40, seed=4)
    yield "certificates", torch.tensor([[c.candidate, c.k, c.radius] for c in certificates], dtype=torch.float64)


def defended() -> Values:
    """Likelihood maximisation, purification, and attacks."""
    test, net = load("digits"), load_denoiser("digits")
    x, y = test.x[:3], test.y[:3]
    dc = DiffusionClassifier(net, levels("elbo", 3, sigma_min=0.1))
    readings = {name: r for name, r in READINGS.items() if name != "clamped"} | {"released": READINGS["clamped"]}
    for name, reading in readings.items():
        lm = LikelihoodMaximization(net, **{**reading, "steps": 2, "seed": 3}, count=3)
        yield f"lm {name}", lm(x)
        if name != "expectation":
            lm = lm.frozen(3)
            yield from both(f"rdc {name} exact", RDC(lm, dc, "exact"), x, y)
            yield f"lm {name} smoothed", value_and_gradient(lambda p, lm=lm: margin(dc(lm.smoothed(0.3)(p)), y), x)[1]
    for sampler in ("ddpm", "sde"):
        yield from both(f"diffpure {sampler}", DiffPure(Purify(net, steps=3, sampler=sampler), dc, "exact"), x, y)
    for norm, eps in (("Linf", 0.1), ("L2", 0.5)):
        yield f"start {norm}", random_start(x, norm, eps, torch.arange(3), 2, 1)
        yield f"pgd {norm} ce", pgd(dc, x, y, norm, eps, steps=3, loss="ce", scale="auto", schedule="linear")
    yield "lagrange", lagrange(dc, x, y, diffusion_loss(net, levels("elbo", 3)), weights=(0, 1), eps=0.1, steps=2, loss="margin")
    yield "stadv", stadv(dc, x, y, eps=0.2, steps=3)


def values() -> dict[str, Tensor]:
    """All numbers, by name."""
    return {name: value.detach().contiguous() for part in (diffusion, noised, defended) for name, value in part()}


if __name__ == "__main__":
    with partial(torch.random.fork_rng)():
        save_file(values(), PATH)
    print(f"wrote {PATH}")
