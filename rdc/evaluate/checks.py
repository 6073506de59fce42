"""Checks of an audit that need no second attack: the model, its logits, its gradient and its randomness."""

__all__ = [
    "Case",
    "Row",
    "check_batch",
    "check_eot",
    "check_gradient",
    "check_logits",
    "check_loss_noise",
    "check_random_state",
    "check_slope",
    "right",
]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.attack.losses import margin
from rdc.attack.norms import ascend, project, random_start
from rdc.autograd import value_and_gradient
from rdc.randomness import known_noise, randomness

VERDICTS = 9  # of a randomised model on one image


@dataclass(frozen=True)
class Row:
    """One line of the report; ``verdict`` is ``pass``, ``warn`` or ``fail``."""

    name: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Case:
    """A model, the images it gets right, and the attack that is audited."""

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: str
    eps: float
    steps: int
    eot: int
    attack: Callable[..., Tensor]
    seed: int

    def __len__(self) -> int:
        return len(self.y)

    @property
    def slack(self) -> int:
        """Images that may differ by chance."""
        return max(1, len(self) // 20)

    @cached_property
    def random(self) -> bool:
        """Whether calls of the model on the same image differ, each with its own seed (:func:`rdc.randomness.randomness`)."""
        return randomness(self.model, self.x[:1], self.seed)[0]

    @cached_property
    def frozen(self) -> nn.Module:
        """The model with its randomness fixed; the model itself if it has none."""
        return known_noise(self.model, self.seed) if self.random else self.model

    @cached_property
    def base(self) -> Tensor:
        """Which images the audited attack breaks."""
        return self.broken()

    def broken(self, index: Tensor | None = None, model: nn.Module | None = None, **changes: object) -> Tensor:
        """Which images (of ``index``) the attack breaks, with some of its arguments changed; none if it cannot run."""
        index = torch.arange(len(self), device=self.x.device) if index is None else index
        options = {"norm": self.norm, "eps": self.eps, "steps": self.steps, "eot": self.eot, "seed": self.seed, **changes}
        model = self.model if model is None else model
        try:
            found = self.attack(model, self.x[index], self.y[index], index=index.cpu(), **options)
        except (ValueError, RuntimeError):
            return torch.zeros(len(index), dtype=torch.bool, device=index.device)
        return self.judge(found, index, model)

    def judge(self, x_adv: Tensor, index: Tensor, model: nn.Module | None = None) -> Tensor:
        """Whether the model gets each image wrong; a randomised model by majority."""
        return ~right(self.model if model is None else model, x_adv, self.y[index], VERDICTS if self.random else 1)

    def points(self) -> Tensor:
        """One random point of the ball around each image."""
        return random_start(self.x, self.norm, self.eps, torch.arange(len(self)), self.seed, 77)


def right(model: nn.Module, x: Tensor, y: Tensor, verdicts: int = 1) -> Tensor:
    """Whether most of the verdicts on each image are right."""
    with torch.no_grad():
        return torch.stack([model(x).argmax(dim=1) == y for _ in range(verdicts)]).float().mean(dim=0) > 0.5


def check_batch(case: Case) -> Iterator[Row]:
    """The logits of an image do not depend on its neighbours."""
    others = torch.cat([case.x[:1], 1 - case.x[:1], case.x[:1].flip(3)])
    same = torch.cat([case.x[:1]] * 3)
    with torch.no_grad():
        a, b = case.frozen(others)[0], case.frozen(same)[0]
    change, spread = float((a - b).abs().max()), float(a.max() - a.min())
    good = change <= 1e-3 * spread
    text = "logits of an image do not depend on the rest of the batch"
    fault = f"other images in the batch change the logits by {change:.2g} (their spread is {spread:.2g}): information leaks"
    yield Row("batch", "pass" if good else "fail", text if good else fault)


def check_random_state(case: Case) -> Iterator[Row]:
    """The model neither reads nor changes the global random state, which attack tools reseed."""
    with torch.random.fork_rng(), torch.no_grad():
        logits = []
        for seed in (1, 1, 2):
            torch.random.manual_seed(seed)
            state = torch.random.get_rng_state()
            logits.append(case.model(case.x[:1]))
        moved = not torch.equal(state, torch.random.get_rng_state())
    if torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2]):
        fault = "noise from the global random state: a tool that reseeds it (AutoAttack does) attacks one and judges another"
        yield Row("random state", "fail", fault)
    elif moved:
        yield Row("random state", "fail", "a call changes the global random state: it reseeds or draws from what attacks share")
    else:
        kind = "randomised, with noise of its own" if case.random else "deterministic"
        yield Row("random state", "pass", f"the model is {kind}")


def check_logits(case: Case) -> Iterator[Row]:
    """Logits are logits, on a scale that losses can see."""
    with torch.no_grad():
        logits = case.model(case.x)
    if not bool(logits.isfinite().all()):
        yield Row("logits", "fail", "not all logits are finite")
        return
    top = logits.topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    sums = bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all())
    if sums:
        yield Row("logits", "fail", "the model returns probabilities: attack the logits, a saturated softmax has no gradient")
    elif gap < 1e-2:
        yield Row("logits", "fail", f"flat: median lead {gap:.1g}; losses that see the scale (CE, CW with a penalty) are blind")
    elif gap > 50:
        zero = float((F.softmax(logits, dim=1).amax(dim=1) == 1).float().mean())
        text = f"median lead {gap:.0f}: softmax is exactly 1 for {100 * zero:.0f} % of images, so use the margin, not plain CE"
        yield Row("logits", "warn", text)
    else:
        yield Row("logits", "pass", f"median lead of the first class {gap:.2g}")


def check_gradient(case: Case) -> Iterator[Row]:
    """The gradient of the margin exists, is finite and is not zero."""
    try:
        _, gradient = value_and_gradient(lambda p: margin(case.frozen(p), case.y), case.points())
    except (ValueError, RuntimeError) as error:
        yield Row("gradient", "fail", str(error).splitlines()[0])
        return
    dead = int((gradient.flatten(1) == 0).all(dim=1).sum())
    verdict = "pass" if dead == 0 else "warn" if dead <= 0.05 * len(case) else "fail"
    yield Row("gradient", verdict, f"exactly zero for {dead} of {len(case)} images")


def check_slope(case: Case) -> Iterator[Row]:
    """A step along the gradient, as long as the attack's, raises the loss about as much as the gradient says."""
    start = case.points()
    try:
        _, gradient = value_and_gradient(lambda p: margin(case.frozen(p), case.y), start)
    except (ValueError, RuntimeError):
        yield Row("slope", "fail", "there is no gradient to follow")
        return
    step = case.eps / 4
    up, down = (project(start + s * step * ascend(gradient, case.norm), start, case.norm, step) for s in (1, -1))
    with torch.no_grad():
        rise = margin(case.frozen(up), case.y) - margin(case.frozen(down), case.y)
    predicted = ((up - down) * gradient).flatten(1).sum(dim=1)
    rises = float((rise > 0).float().mean())
    ratio = float((rise / predicted.clamp(min=torch.finfo(rise.dtype).tiny)).median())
    verdict = "fail" if rises < 0.8 or ratio < 0.1 else "pass" if 0.3 <= ratio <= 3 else "warn"
    text = f"a step of eps/4 raises the loss on {100 * rises:.0f} % of images, by {ratio:.2f} of the forecast (median)"
    yield Row("slope", verdict, text)


def check_eot(case: Case, draws: int = 4) -> Iterator[Row]:
    """Gradients agree between draws, or averaging more of them breaks no more images."""
    if not case.random:
        yield Row("gradient noise", "pass", "deterministic: every gradient is the same")
        return
    try:
        slopes = [
            value_and_gradient(lambda p: margin(case.model(p), case.y), case.x, case.eot)[1].flatten(1) for _ in range(draws)
        ]
    except (ValueError, RuntimeError) as error:
        yield Row("gradient noise", "fail", str(error).splitlines()[0])
        return
    pairs = [F.cosine_similarity(a, b, dim=1) for i, a in enumerate(slopes) for b in slopes[:i]]
    cosine = float(torch.stack(pairs).mean())
    left = (~case.base).nonzero()[:, 0]
    more = int(case.broken(left, eot=5 * case.eot).sum()) if len(left) else 0
    verdict = "fail" if cosine < 0.3 or more > case.slack else "pass" if cosine > 0.7 and more == 0 else "warn"
    text = f"cosine between draws {cosine:.2f} at EOT {case.eot}; five times the EOT breaks {more} more"
    yield Row("gradient noise", verdict, text)


def check_loss_noise(case: Case, draws: int = 8) -> Iterator[Row]:
    """The loss differs more between two points an attack step apart than between two draws at one point."""
    if not case.random:
        yield Row("loss noise", "pass", "deterministic: the loss has no noise")
        return
    near = project(case.points(), case.x, case.norm, case.eps / 4)
    with torch.no_grad():
        here, there = (torch.stack([margin(case.model(p), case.y) for _ in range(draws)]) for p in (case.x, near))
    noise = float(here.std(dim=0).median())
    step = float((there.mean(dim=0) - here.mean(dim=0)).abs().median())
    verdict = "pass" if noise <= step else "warn"
    text = f"noise {noise:.2g} against differences of {step:.2g} between points eps/4 apart"
    yield Row("loss noise", verdict, text if verdict == "pass" else text + ": average losses before comparing them")
