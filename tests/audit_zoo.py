"""Planted defences and honest models for the audit.

A planted defence says what is broken; its ``inside`` is the model that an attacker who knows the mistake attacks instead, and
the images found there are judged by the defence itself. ``tests/test_audit.py`` checks the gap: default PGD on the defence breaks
fewer images than that, by at least two of eight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.classify import DiffusionClassifier, OptimalClassifier
from rdc.classify.networks import CNN
from rdc.classify.optimal import NearestNeighbor
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.randomness import EOT
from rdc.rng import rand, randn
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

EPS = 0.15


@cache
def cnn() -> CNN:
    """An undefended network."""
    return train_classifier(load("digits", "train"), epochs=10, width=12)


@cache
def hardened() -> CNN:
    """A network trained on adversarial images."""
    return train_classifier(load("digits", "train"), epochs=12, width=12, attack=partial(pgd, eps=EPS, steps=3, loss="ce"))


class Wrapped(nn.Module):
    """``answer(self, x)``, with a classifier ``self.f`` and a number ``self.calls`` of earlier calls."""

    def __init__(self, f: nn.Module, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.f, self.answer, self.calls = f, answer, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.answer(self, x)
        self.calls += 1
        return logits


@dataclass(frozen=True)
class Planted:
    """A broken defence: what it answers, and what an attacker from the inside attacks (by default the network)."""

    answer: Callable[..., Tensor]
    inside: Callable[..., Tensor] | None = None
    eps: float = EPS
    base: Callable[[], nn.Module] = cnn
    unattackable: bool = False  # on the audited images; the gap is on others

    def build(self) -> nn.Module:
        """The defence."""
        return Wrapped(self.base(), self.answer).eval()

    def attacked(self) -> nn.Module:
        """The model that the attacker from the inside attacks."""
        return self.base() if self.inside is None else Wrapped(self.base(), self.inside).eval()


PLANTED: dict[str, Planted] = {}


def planted(
    inside: Callable[..., Tensor] | None = None, eps: float = EPS, unattackable: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a broken defence under the name of its function."""

    def register(answer: Callable[..., Tensor]) -> Callable[..., Tensor]:
        PLANTED[answer.__name__] = Planted(answer, inside, eps, unattackable=unattackable)
        return answer

    return register


class Fake(torch.autograd.Function):
    """The identity, with a backward pass of somebody's choice."""

    @staticmethod
    def forward(ctx, x, rule):
        ctx.rule = rule
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.rule(grad), None


def fake(x: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """``x``, whose gradient is changed by ``rule``."""
    return Fake.apply(x, rule)


def noise(x: Tensor, *key: object) -> Tensor:
    """Normal numbers of the shape of ``x``."""
    return randn(x.shape, *key, like=x)


# The gradient lies; the answers are those of the network.


@planted()
def zero_gradient(self, x):
    """The gradient is multiplied by zero."""
    return self.f(fake(x, torch.zeros_like))


@planted()
def detached(self, x):
    """No gradient reaches the image."""
    return self.f(x.detach()) + 0 * x.sum()


@planted()
def no_graph(self, x):
    """The logits have no graph at all."""
    return self.f(x).detach()


@planted()
def wrong_sign(self, x):
    """The gradient points downhill."""
    return self.f(fake(x, torch.neg))


@planted()
def random_gradient(self, x):
    """The gradient is noise, the same at every call."""
    return self.f(fake(x, lambda g: noise(g, "random gradient") * g.norm()))


@planted()
def new_random_gradient(self, x):
    """The gradient is noise, another one at every call."""
    return self.f(fake(x, lambda g: noise(g, "new", self.calls) * g.abs().mean() + 0.01 * g))


@planted()
def masked_gradient(self, x):
    """Three quarters of the pixels have no gradient."""
    return self.f(fake(x, lambda g: g * (rand(g.shape[1:], "mask", like=g) > 0.75)))


@planted()
def shuffled_gradient(self, x):
    """The gradient of each pixel is that of another one."""
    return self.f(fake(x, lambda g: g.flip(3).roll(1, 2)))


@planted()
def flipped_half(self, x):
    """Half of the pixels have the wrong sign."""
    return self.f(fake(x, lambda g: g * (2 * (rand(g.shape[1:], "half", like=g) > 0.5).to(g) - 1)))


@planted()
def underflow(self, x):
    """The gradient is so small that it underflows."""
    return self.f(fake(x, lambda g: (g * 1e-30) * 1e-20))


@planted()
def nan_gradient(self, x):
    """The gradient is not a number."""
    return self.f(fake(x, lambda g: g * float("nan")))


@planted()
def alone_no_gradient(self, x):
    """An image alone has a random gradient; in a batch the true one is turned round."""
    return self.f(fake(x, lambda g: noise(g, "alone") if len(g) == 1 else -g))


@planted()
def batch_gradient(self, x):
    """In a batch every image has the gradient of its neighbour."""
    return self.f(fake(x, lambda g: g if len(g) == 1 else g.roll(1, 0)))


@planted()
def far_gradient(self, x):
    """Far from grey levels of the data (sixteenths) the gradient points downhill."""
    off = ((16 * x - (16 * x).round()).abs().mean(dim=(1, 2, 3), keepdim=True) > 0.1).to(x)
    return self.f(fake(x, lambda g: g * (1 - 2 * off)))


@planted()
def every_other_gradient(self, x):
    """Every second call has the wrong gradient, twice as large."""
    sign = 1.0 if self.calls % 2 else -1.0
    return self.f(fake(x, lambda g: sign * g))


# The preprocessing hides the gradient.


def rounded(x: Tensor, count: int = 8) -> Tensor:
    return (x * count).round() / count


@planted(lambda self, x: self.f(fake(x, lambda g: g)))
def quantised(self, x):
    """Images of nine grey levels: the derivative of rounding is zero."""
    return self.f(rounded(x))


@planted(lambda self, x: self.f(x))
def thermometer(self, x):
    """Smooth steps, so steep that their derivative is zero in floating point."""
    k = torch.arange(16, dtype=x.dtype, device=x.device) + 0.5
    return self.f(torch.sigmoid(3000 * (16 * x[..., None] - k)).mean(-1))


@planted()
def shattered(self, x):
    """A fine wave on the grey values: the gradient is large and points nowhere."""
    return self.f((x + 0.003 * (1e4 * x + 6 * noise(x[:1], "phase")).sin()).clamp(0, 1))


@planted()
def staircase_logits(self, x):
    """Logits rounded to whole numbers."""
    return self.f(x).round() + 1e-3 * self.f(x).detach()


@planted()
def sorted_pixels(self, x):
    """The image is looked up in a table of 256 grey levels."""
    table = torch.linspace(0, 1, 256, dtype=x.dtype, device=x.device)
    return self.f(table[(255 * x).round().long()] + 0 * x)


# The output hides the gradient.


@planted()
def saturated(self, x):
    """Probabilities that are exactly 0 and 1."""
    return (1e3 * self.f(x)).softmax(dim=1)


@planted()
def one_hot(self, x):
    """The predicted class and nothing else."""
    return F.one_hot(self.f(x).argmax(1), 10).to(x) + 0 * x.mean(dim=(1, 2, 3))[:, None]


@planted()
def squashed(self, x):
    """A hyperbolic tangent of large logits is constant in floating point."""
    f = self.f(x)
    return torch.tanh(1e3 * (f - f.topk(2, dim=1).values.mean(dim=1, keepdim=True)))


@planted()
def decoys(self, x):
    """The runner-up cannot win: it is capped just below the first, and the untargeted margin climbs nothing else."""
    f = self.f(x)
    order = f.argsort(dim=1, descending=True)
    decoy = (order[:, :1] + 1) % 10
    top = f.gather(1, order[:, :1])
    return f.scatter(1, decoy, top - 1e-3 - 0.01 * (x.flatten(1)[:, :1] - 0.5).abs())


@planted()
def bumpy(self, x):
    """A small wave on the predicted class along a random direction, so steep that it rules the gradient."""
    f = self.f(x)
    wave = 0.3 * (2000 * (x * noise(x[:1], "wave")).sum(dim=(1, 2, 3))).sin()
    return f + wave[:, None] * F.one_hot(f.detach().argmax(1), 10).to(f)


# The model knows who asks.


@planted()
def autograd_on(self, x):
    """With a gradient wanted it answers by another network: its own, turned upside down."""
    return self.f(x) if not x.requires_grad else self.f(x.flip(2))


@planted()
def grad_mode(self, x):
    """Where autograd is on the logits are those of a constant class plus noise of the image."""
    f = self.f(x)
    return f if not torch.is_grad_enabled() else f.roll(3, 1) * torch.tensor([1.0, -1.0] * 5)


@planted()
def batch_of_one(self, x):
    """An image alone is judged by the network, images in a batch give a useless gradient and the same class."""
    return self.f(x) if len(x) == 1 else self.f(x.detach()) + (x - x.detach()).flatten(1)[:, :10]


@planted()
def batch_mean(self, x):
    """Logits are mixed with those of the batch, and the gradient is that of the other images."""
    f = self.f(x)
    return f + 0.01 * (f.mean(dim=0, keepdim=True) - f) if len(x) == 1 else 0.99 * f.detach() + 0.01 * f.roll(1, 0)


@planted()
def odd_calls(self, x):
    """Every second call has slightly other logits, and a gradient downhill."""
    return self.f(x) if self.calls % 2 else 1.02 * self.f(fake(x, lambda g: -2 * g))


@planted()
def first_call(self, x):
    """Calls from the second on have no useful gradient, and slightly other logits."""
    return self.f(x) if self.calls == 0 else self.f(fake(x, torch.neg)) * 1.01


@planted()
def fourth_call(self, x):
    """After three calls the gradient points downhill and the logits change a little."""
    return self.f(x) if self.calls < 3 else self.f(fake(x, torch.neg)) * 1.01


@planted()
def by_the_clock(self, x):
    """Noise, and a gradient of random signs, by the microseconds of the clock."""
    t = time.perf_counter_ns() // 1000
    return self.f((fake(x, lambda g: g * noise(g, "sign", t)) + 0.05 * noise(x, "clock", t)).clamp(0, 1))


@planted()
def global_noise(self, x):
    """Noise, and a gradient of random signs, of the global generator."""
    return self.f((fake(x, lambda g: g * torch.randn_like(g)) + 0.1 * torch.randn_like(x)).clamp(0, 1))


@planted()
def reseeded(self, x):
    """Noise, and a gradient of random signs, of the global generator, which is restarted at each call."""
    torch.manual_seed(torch.initial_seed())
    z = torch.randn_like(x)
    return self.f((fake(x, lambda g: g * z) + 0.05 * z).clamp(0, 1))


@planted()
def own_noise(self, x):
    """Noise keyed by the number of the call, and a gradient of random signs by the same number."""
    z = noise(x, "own", self.calls)
    return self.f((fake(x, lambda g: g * z) + 0.1 * z).clamp(0, 1))


# The data are looked up.


@cache
def known() -> tuple[Tensor, Tensor]:
    """The test images and their labels."""
    test = load("digits", "test")
    return test.x, test.y


def looked_up(self, x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """One-hot labels of the nearest test image, and whether it is near."""
    images, labels = known()
    d = (x[:, None] - images.to(x)[None]).abs().amax(dim=(2, 3, 4))
    return F.one_hot(labels, 10).to(x)[d.argmin(1)], (d.amin(1) <= radius)[:, None]


@planted(unattackable=True)
def table_of_the_test_set(self, x):
    """Within the radius of a test image its label wins: robust on the test set, and nowhere else."""
    label, near = looked_up(self, x, 1.01 * EPS)
    f = self.f(x)
    return torch.where(near, f + 2 * (f.detach().amax(1) - f.detach().amin(1))[:, None] * label, f)


@planted()
def table_of_clean_images(self, x):
    """Clean images are looked up; all others are answered by a detector without a gradient."""
    label, near = looked_up(self, x, 1 / 512)
    return torch.where(near, 5 * label + 0 * x.mean(), self.f(rounded(x)))


# It works off the manifold, or for some perturbations, only.


@planted(eps=0.95 * EPS)
def corners(self, x):
    """Perturbations of the full radius on most pixels are undone: only the interior of the ball is attacked."""
    images, labels = known()
    nearest = images.to(x)[(x[:, None] - images.to(x)[None]).abs().amax(dim=(2, 3, 4)).argmin(1)]
    full = ((x - nearest).abs() > 0.97 * EPS).flatten(1).float().mean(1) > 0.15
    return self.f(torch.where(full[:, None, None, None], nearest + 0 * x, x))


@planted()
def nan_off_the_data(self, x):
    """Noisy images give NaN."""
    rough = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=(1, 2, 3)) > 0.28
    return torch.where(rough[:, None], torch.full_like(self.f(x), float("nan")), self.f(fake(x, torch.neg)))


@planted()
def raises_off_the_data(self, x):
    """An image with no black pixel raises."""
    if bool((x.flatten(1).amin(1) > 0.2).any()):
        raise RuntimeError("not a digit")
    return self.f(fake(x, torch.neg))


@planted()
def raises_for_gradients(self, x):
    """Whoever wants a gradient gets an exception."""
    if x.requires_grad:
        raise RuntimeError("no gradients here")
    return self.f(x)


# Honest models.


class Smoothed(nn.Module):
    """Mean logits over noisy copies; ``draw(self, shape)`` says where the noise comes from."""

    def __init__(self, f: nn.Module, draw: Callable[..., Tensor], copies: int = 8, sigma: float = 0.1) -> None:
        super().__init__()
        self.f, self.draw, self.copies, self.sigma, self.calls = f, draw, copies, sigma, 0
        self.source = torch.Generator().manual_seed(0)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.sigma * self.draw(self, (self.copies, *x.shape)).to(x)
        self.calls += 1
        self.count += 1
        return torch.stack([self.f((x + o).clamp(0, 1)) for o in offsets]).mean(dim=0)


def fixed(self, shape):
    """The same noise for every call and image."""
    return randn((shape[0], 1, *shape[2:]), "fixed")


def own(self, shape):
    """Noise of an own generator."""
    return torch.randn(shape, generator=self.source)


def counted(self, shape):
    """Noise keyed by the number of the call."""
    return randn(shape, "counted", self.calls)


def counted_by_buffer(self, shape):
    """Noise keyed by a buffer that counts."""
    return randn(shape, "buffer", int(self.count))


class Normed(nn.Module):
    """A linear model with a batch norm in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        train = load("digits", "train")
        x = train.x.flatten(1)
        self.norm = nn.BatchNorm1d(64)
        self.norm.running_mean, self.norm.running_var = x.mean(0), x.var(0) + 0.1
        f = (x - x.mean(0)) / (x.var(0) + 0.1).sqrt()
        target = F.one_hot(train.y, 10).float() - 0.1
        self.weight = nn.Parameter(10 * torch.linalg.solve(f.T @ f + 10 * torch.eye(64), f.T @ target))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(1)) @ self.weight


class Ensemble(nn.Module):
    """The mean of networks."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).mean(dim=0)


class Double(nn.Module):
    """The network in float64."""

    def __init__(self) -> None:
        super().__init__()
        inner = CNN((1, 8, 8), 10, 12)
        inner.load_state_dict(cnn().state_dict())
        self.f = inner.double().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x.double())


def few(n: int) -> tuple[Tensor, Tensor]:
    """The first training images."""
    train = load("digits", "train")
    return train.x[:n], train.y[:n]


def scaled(factor: float) -> nn.Module:
    """The network at another temperature."""
    return Wrapped(cnn(), lambda self, x: factor * self.f(x)).eval()


HONEST: dict[str, Callable[[], nn.Module]] = {
    "CNN": cnn,
    "adversarially trained": hardened,
    "linear with batch norm": lambda: Normed().eval(),
    "DC on the optimal denoiser": lambda: DiffusionClassifier(OptimalDenoiser(*few(300)), levels("elbo", 4), seed=0),
    "DC, fresh noise": lambda: DiffusionClassifier(OptimalDenoiser(*few(300)), levels("elbo", 4), noise="fresh", seed=0),
    "optimal": lambda: OptimalClassifier(*few(600), levels("elbo", 4)),
    "nearest image": lambda: NearestNeighbor(*few(1000)),
    "smoothed, fixed noise": lambda: Smoothed(cnn(), fixed, 4),
    "smoothed, own generator": lambda: Smoothed(hardened(), own, 4),
    "smoothed, counted": lambda: Smoothed(hardened(), counted, 4),
    "smoothed, counting buffer": lambda: Smoothed(cnn(), counted_by_buffer, 4, 0.05),
    "EOT": lambda: EOT(Smoothed(hardened(), own, 2), 2),
    "float64": Double,
    "prior": lambda: Wrapped(cnn(), lambda self, x: self.f(x) + torch.linspace(-0.5, 0.5, 10)).eval(),
    "ensemble": lambda: Ensemble(cnn(), hardened()),
    "warm": lambda: scaled(0.1),
    "cold": lambda: scaled(10.0),
    "clipped input": lambda: Wrapped(hardened(), lambda self, x: self.f((1.2 * (x - 0.5) + 0.5).clamp(0, 1))).eval(),
}
