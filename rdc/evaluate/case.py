"""What the checks of an audit share: the model, the images it gets right, the audited attack, and the count of what was asked."""

__all__ = ["Case", "Count", "Failed", "Row", "outcome"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from rdc.attack.norms import norm_of, random_start
from rdc.door import ask, logits_of
from rdc.evaluate.frozen import Frozen, frozen

VERDICTS = 5  # of a randomised model on one image
REPEATS = 8  # calls that tell whether a model is random


@dataclass(frozen=True)
class Row:
    """One line of the report; ``verdict`` is ``pass``, ``warn`` or ``fail``."""

    name: str
    verdict: str
    reason: str


class Failed(Exception):
    """A check that cannot go on, with its reason."""


def outcome(bad: float, slack: float) -> str:
    """``pass`` if nothing is bad, ``warn`` up to ``slack``, ``fail`` beyond."""
    return "pass" if bad <= 0 else "warn" if bad <= slack else "fail"


@dataclass
class Count:
    """How often a model is called, and with how many images, with and without a gradient."""

    calls: int = 0
    images: int = 0
    gradients: int = 0

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Count the calls of ``model`` within the block."""
        handle = model.register_forward_pre_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and torch.is_tensor(inputs[0]):
            x = inputs[0]
            self.calls, self.images = self.calls + 1, self.images + len(x)
            self.gradients += len(x) * (torch.is_grad_enabled() and x.requires_grad)


@dataclass(frozen=True, eq=False)
class Case:
    """A model, the images it gets right, and the attack that is audited."""

    model: nn.Module
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    norm: str
    eps: float
    steps: int
    eot: int
    attack: Callable[..., Tensor]
    seed: int
    clean: float = 1.0  # share of the given images that the model gets right
    first: tuple[Tensor, Tensor] | None = None  # what the model was asked first of all, and its answer
    found: dict[str, Tensor] = field(default_factory=dict)  # what the later attacks broke, by row

    def __len__(self) -> int:
        return len(self.y)

    @property
    def slack(self) -> int:
        """Images that may differ by chance."""
        return max(1, min(2, len(self) // 3), len(self) // 20)

    @cached_property
    def probes(self) -> Float[Tensor, "m c h w"]:
        """One of the images, two mixtures of images, and a point of the ball: where a model can change its mind."""
        mixed = 0.5 * (self.x[:2] + self.x.roll(1, 0)[:2])
        return torch.cat([self.x[:1], mixed, self.points()[-1:]])

    @cached_property
    def answers(self) -> list[Tensor]:
        """What the model, left to itself, answers about the probes when it is asked ``REPEATS`` times."""
        return [ask(self.model, self.probes) for _ in range(REPEATS)]

    @cached_property
    def random(self) -> bool:
        """Whether calls of the model on the same images differ by more than rounding."""
        return any(differs(a, self.answers[0]) for a in self.answers[1:])

    @cached_property
    def frozen(self) -> nn.Module:
        """The model with its randomness fixed; noise that a deterministic one has fixed already stays as it is."""
        return frozen(self.model, self.seed) if self.random else Frozen(self.model, self.seed)

    @cached_property
    def adversarial(self) -> Float[Tensor, "n c h w"]:
        """What the audited attack returns.

        Raises:
            Failed: if it raises, or returns what is no batch of finite images of the same shape.
        """
        return self.attacked()

    @cached_property
    def base(self) -> Bool[Tensor, " n"]:
        """Which images the audited attack breaks; an image outside the ball does not count."""
        return self.inside(self.adversarial) & self.wrong(self.adversarial, self.y)

    @property
    def standing(self) -> Int64[Tensor, " m"]:
        """Positions of the images that nothing has broken so far."""
        broken = self.base.clone()
        for more in self.found.values():
            broken |= more
        return (~broken).nonzero()[:, 0]

    def attacked(self, index: Tensor | None = None, model: nn.Module | None = None, **changes: Any) -> Tensor:
        """The audited attack on the images of ``index``, with some of its arguments changed."""
        index = torch.arange(len(self), device=self.x.device) if index is None else index
        options = {"norm": self.norm, "eps": self.eps, "steps": self.steps, "eot": self.eot, "seed": self.seed, **changes}
        x, y = self.x[index].clone(), self.y[index].clone()
        try:
            found = self.attack(self.model if model is None else model, x, y, index=index.cpu(), **options)
        except Exception as error:
            raise Failed(f"the attack raised {told(error)}") from error
        if not torch.is_tensor(found) or found.shape != x.shape or not bool(found.isfinite().all()):
            what = tuple(found.shape) if torch.is_tensor(found) else type(found).__name__
            raise Failed(f"the attack must return finite images {tuple(x.shape)}, got {what}")
        return found.detach()

    def inside(self, x_adv: Tensor, index: Tensor | None = None, eps: float | None = None) -> Bool[Tensor, " n"]:
        """Which images lie in their ball and in [0, 1], up to rounding."""
        x = self.x if index is None else self.x[index]
        size = norm_of((x_adv.double() - x.double()), self.norm)
        low, high = x_adv.flatten(1).amin(dim=1), x_adv.flatten(1).amax(dim=1)
        return (size <= (self.eps if eps is None else eps) * (1 + 1e-4) + 1e-6) & (low >= -1e-6) & (high <= 1 + 1e-6)

    def wrong(self, x: Tensor, y: Tensor, model: nn.Module | None = None, sure: bool = False) -> Bool[Tensor, " n"]:
        """Whether the model gets each image wrong; a randomised one in most of its verdicts, or, to be ``sure``, in all."""
        model, x = self.model if model is None else model, x.clamp(0, 1)
        verdicts = VERDICTS if self.random else 1
        votes = ask(model, x).argmax(dim=1) != y
        if verdicts == 1 or (sure and not bool(votes.any())):
            return votes
        rest = [ask(model, x).argmax(dim=1) != y for _ in range(verdicts - 1)]
        share = torch.stack([votes, *rest]).float().mean(dim=0)
        return share == 1 if sure else share > 0.5

    def points(self, draw: int = 77) -> Float[Tensor, "n c h w"]:
        """One random point of the ball around each image."""
        return random_start(self.x, self.norm, self.eps, torch.arange(len(self), device="cpu"), self.seed, draw)

    def logits(self, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        """Logits of the frozen model without a graph."""
        return ask(self.frozen, x)

    def differentiable(self, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m k"]:
        """Logits of the frozen model, with a graph if ``x`` has one."""
        return logits_of(self.frozen, x)


def differs(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"], share: float = 1e-5) -> bool:
    """Whether two tables of logits differ by more than ``share`` of their spread."""
    spread = float((b.amax(dim=1) - b.amin(dim=1)).max())
    return float((a - b).abs().max()) > share * spread


def told(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
