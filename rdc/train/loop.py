r"""The loop of a training run that can be killed at any moment: what changes in it, how it is kept, and when.

A run is its :class:`State` and a function that takes one step. The state lies in one file, which is written whole or not at all;
:func:`train_to` reads it, takes steps, and writes it from time to time. If step i draws its random numbers from generators keyed
by i (:mod:`rdc.rng`), a run that was killed and called again ends with the same bits as one that was not, on the same machine.

Kept are the trained parameters, their moving average with decay
:math:`\min(\beta, (1 + i) / (10 + i))` at step i, the moments of Adam, and the numbers for the training curve.

References:
    | Adam: A Method for Stochastic Optimization (Kingma and Ba, 2015), https://arxiv.org/abs/1412.6980
"""

__all__ = ["State", "begin", "difference", "state_path", "train_to"]

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rdc.denoise.checkpoints import CheckpointError, check_fit, read_checkpoint, write_checkpoint
from rdc.quantities import count, number

KIND = "training state"
REPORT = 50  # steps between two entries of the loss


@dataclass(eq=False)
class State:
    """Everything that changes during a training run; :func:`begin` makes one.

    Attributes:
        recipe: Whatever decides the run, as JSON; a stored state with another one is refused.
        weights: The parameters that training changes, by name.
        average: Their moving average; parameters that stay as they are lie here, too.
        optimizer: Adam or AdamW over ``weights``.
        step: Steps taken.
        seconds: Time that they took, over all pieces of the run.
        losses: ``(step, loss)`` every 50 steps.
        more: Further lists to keep, by name.
    """

    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: list[Any] = field(default_factory=list)
    more: dict[str, list[Any]] = field(default_factory=dict)

    def descend(self, loss: Tensor, rate: float, decay: float) -> Tensor:
        """Take one step of the optimiser at learning rate ``rate``, and of the average with decay at most ``decay``.

        Returns the loss without its graph, where it is: nobody waits for its value.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_([self.average[k] for k in self.weights], [p.detach() for p in self.weights.values()], 1 - decay)
        self.step += 1
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        numbers = {"step": self.step, "seconds": self.seconds, "losses": self.losses, **self.more}
        write_checkpoint(path, dict(self.tensors()), kind=KIND, config=self.recipe, **numbers)

    def resume(self, path: Path) -> None:
        """Continue from the state stored at ``path``, if there is one.

        Raises:
            CheckpointError: if it belongs to a run with another recipe, cannot be read, or does not fit the network; if a
                weight or a moment is NaN or infinite.
        """
        if not path.exists():
            return
        tensors, meta = read_checkpoint(path, KIND)
        if meta["config"] != self.recipe:
            changes = difference(meta["config"], self.recipe)
            raise CheckpointError(f"{path} is a run with another configuration ({changes}); delete it or give another --out")
        if missing := sorted({"step", "seconds", "losses", *self.more} - meta.keys()):
            raise CheckpointError(f"{path} is not a state of this run: its header lacks {', '.join(missing)}; delete it")
        for parameter in self.weights.values():  # the optimiser allocates its moments at its first step only
            zero = torch.zeros_like(parameter)
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device="cpu"),
                "exp_avg": zero,
                "exp_avg_sq": zero.clone(),
            }
        check_fit(dict(self.tensors()), tensors, path)
        self.step, self.seconds, self.losses = meta["step"], meta["seconds"], meta["losses"]
        self.more = {name: meta[name] for name in self.more}
        for name, tensor in self.tensors():
            tensor.copy_(tensors[name])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state that training changes, by name."""
        for name, parameter in self.weights.items():
            yield f"model.{name}", parameter.detach()
            yield f"average.{name}", self.average[name]
            for key, value in self.optimizer.state[parameter].items():
                yield f"{key}.{name}", value


def begin(
    model: nn.Module, recipe: dict[str, Any], optimizer: Callable[[list[Tensor]], torch.optim.Optimizer], **more: list[Any]
) -> State:
    """The state before the first step.

    Arguments:
        model: The network in its first state; parameters that require no gradient are not trained.
        recipe: Whatever decides the run; must be JSON, up to tuples.
        optimizer: Makes Adam or AdamW from a list of parameters.
        more: Further lists to keep, by name.
    """
    weights: dict[str, Tensor] = {k: v for k, v in model.named_parameters() if v.requires_grad}
    average = {k: v.detach().clone() for k, v in model.named_parameters()}
    return State(json.loads(json.dumps(recipe)), weights, average, optimizer(list(weights.values())), more=more)


def train_to(
    steps: int,
    state: State,
    advance: Callable[[], Tensor],
    out: Path,
    save_seconds: float = 60.0,
    quiet: bool = False,
    after: Callable[[], None] = lambda: None,
    minutes: float | None = None,
) -> bool:
    """Continue a run up to step ``steps``; its state lies beside ``out`` meanwhile and remains there, for the caller to remove.

    Arguments:
        steps: Where to stop, at least 1.
        state: The run; what is stored is read into it first.
        advance: Takes one step (:meth:`State.descend`) and returns its loss, whose value is read every 50 steps only.
        out: The file that the run is for, see :func:`state_path`.
        save_seconds: Time between two saves of the state; none is written before it has passed.
        quiet: Whether to hide the progress bar.
        after: What else happens after each step, its time included: a measurement for the curve, say.
        minutes: Time after which the run stops, whatever its step, and its state is written; by default it does not.

    Returns:
        Whether the run has taken all its steps.

    Raises:
        ValueError: if there is no step to take.
        CheckpointError: if the stored state belongs to a run with another recipe, or cannot be read.
    """
    count(steps, "steps")
    state.resume(state_path(out))
    saved = clock = time.monotonic()
    end = math.inf if minutes is None else clock + 60 * number(minutes, "minutes", low=0, strict=True)
    with tqdm(total=steps, initial=state.step, disable=quiet, unit="step", desc=f"train {out.stem}") as bar:
        while state.step < steps and clock < end:
            loss = advance()
            if state.step % REPORT == 0:
                value = float(loss)
                bar.set_postfix_str(f"loss {value:.4f}")
                state.losses.append((state.step, round(value, 6)))
            after()
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            bar.update()
            if now - saved > save_seconds or now >= end:
                state.save(state_path(out))
                saved = now
    return state.step == steps


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run lies."""
    return out.with_name(out.name + ".state")


def difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str:
    """The entries in which two nested configurations differ, as ``name: old -> new``."""
    rows = []
    for key in sorted(a.keys() | b.keys()):
        old, new = copy.copy(a.get(key)), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            rows.append(difference(old, new, f"{prefix}{key}."))
        elif old != new:
            rows.append(f"{prefix}{key}: {old} -> {new}")
    return ", ".join(r for r in rows if r)
