"""What a campaign on the papers' data needs, and what it costs on this machine, before it starts."""

__all__ = ["Forecast", "calls", "evaluations", "files_of", "forecast", "work"]

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rdc.denoise.published import load_denoiser
from rdc.evaluate.robustness import DRAWS
from rdc.experiments._paper import ORIGINS, TRAINED
from rdc.models.user import names_user_model
from rdc.runs.cell import Row
from rdc.schedule import Levels
from rdc.tasks.attack import attack_function
from rdc.tasks.sampled import steps_of
from rdc.tasks.union import OWN
from rdc.train.recipes import RECIPES

#: A forward and a backward pass, in forward passes.
GRADIENT = 3
COUNTED = ("attack", "union", "certify", "sampled")  # tasks
FILES = ("denoiser", "unconditional", "classifier", "reference", "features")
KINDS = (".safetensors", ".pt", ".npz", ".py")
#: Attacks of a version of AutoAttack; each starts APGD once (in L1 five times), and ``custom`` five times.
VERSIONS = {"standard": ("apgd-ce", "apgd-t", "fab-t", "square"), "rand": ("apgd-ce", "apgd-dlr")}
STARTS, TARGETS, EOT = 5, 9, 20
#: Calls with which AutoAttack's package looks at a model, and those of :func:`rdc.randomness.randomness`, once a cell.
LOOKS, CHECK = 9, 9


def files_of(rows: Sequence[Row]) -> list[Path]:
    """The files that the options and arguments of some rows name, that of a module of the reader among them."""
    named = [str(given[name]) for row in rows for given in (row.options, row.arguments) for name in FILES if name in given]
    named = [f"{name.partition(':')[0].replace('.', '/')}.py" if names_user_model(name) else name for name in named]
    return [Path(name) for name in dict.fromkeys(named) if name.endswith(KINDS)]


def evaluations(row: Row, classes: int) -> float:
    """Return how many network evaluations an image of a row costs at most, with a gradient as three; roughly.

    The diffusion classifier evaluates each class at each level, likelihood maximisation takes a gradient a step, and so does an
    attack; images that are broken early cost less. A model with fresh noise is asked for 20 verdicts before and after an attack,
    which comes twice: the second time the attacker knows the noise. Of samples it is those of a set, the gradient of a guide
    counted as one of the denoiser.
    """
    if row.task == "sampled":
        steps, guided = steps_of(row)
        return float(steps * (1 + (GRADIENT if guided else 0)))
    cost = Cost.of(row.model, row.options, classes)
    if row.task == "certify":
        return cost.answer * (row.arguments["n0"] + row.arguments["n"])
    if row.task == "union":
        return sum(evaluations(one, classes) for one in (replace(row, task="attack", attack=None, arguments={}), *alone(row)))
    verdicts = DRAWS + 1 if cost.fresh else 1
    asked = CHECK * (1 + cost.fresh) / min(row.block, row.n) + verdicts * (1 if row.attack is None else 2)
    return cost.forward * asked + cost.moved + (1 + cost.fresh) * attacked(row, cost, classes)


@dataclass(frozen=True)
class Cost:
    """Evaluations of a classifier: of an answer, of what moves the image before it, ``through`` that; and is its noise fresh?"""

    answer: float
    moved: float
    through: int
    fresh: bool

    @classmethod
    def of(cls, model: str, options: Mapping[str, Any], classes: int) -> "Cost":
        """Return those of a model by name."""
        from rdc.models import options_of

        own = {name: option.default for name, option in options_of(model).items()} | dict(options)
        answer = float(classes * own.get("levels", 1) * own.get("draws", 1) * (2 if own.get("antithetic") else 1))
        answer += classes if "variant" in own else 0  # the one-step estimate of APNDC
        blind = own.get("gradient") in ("bpda", "transfer")  # else the attacker's gradient also goes through what moved the image
        steps, fresh = likelihood(own) if "lm" in own else (0, False)
        return cls(answer, float(GRADIENT * steps), 1 if blind else GRADIENT, fresh or own.get("noise") == "fresh")

    @property
    def forward(self) -> float:
        """Evaluations of the logits."""
        return self.answer + self.moved

    @property
    def gradient(self) -> float:
        """Evaluations of a gradient."""
        return GRADIENT * self.answer + self.through * self.moved


def likelihood(own: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the gradients of a likelihood maximisation by its options, and whether its noise is fresh."""
    from rdc.defend.likelihood import READINGS

    changed = {"timesteps": own.get("timesteps"), "sigma": own.get("sigma"), "noise": own.get("lm_noise")}
    found = READINGS[own["lm"]] | {name: value for name, value in changed.items() if value not in (None, "preset")}
    levels = len(found["sigma"]) if isinstance(found.get("sigma"), Levels) else own["count"]
    return own["steps"] * (levels if found.get("timesteps") == "all" else 1), found["noise"] == "fresh"


def alone(row: Row) -> list[Row]:
    """Return a row of the task attack for each attack of a union."""
    shared = {name: value for name, value in row.arguments.items() if name != "attacks"}
    found = []
    for member in row.arguments["attacks"]:
        options = {**row.options, **({"gradient": member["gradient"]} if "gradient" in member else {})}
        given = {**shared, **{name: value for name, value in member.items() if name not in OWN}}
        found.append(replace(row, task="attack", attack=member["attack"], options=options, arguments=given))
    return found


def attacked(row: Row, cost: Cost, classes: int) -> float:
    """Return the evaluations of the attack of a row, on its model or on another one."""
    if row.attack is None:
        return 0.0
    other, given = row.arguments.get("on"), {name: value for name, value in row.arguments.items() if name != "on"}
    on = cost if other is None else Cost.of(other["model"], other.get("options", {}), classes)
    asked, climbed = calls(row.attack, given, classes)
    penalty = given["penalty"]["levels"] * (asked + GRADIENT * climbed) if "penalty" in given else 0
    return on.forward * asked + on.gradient * climbed + penalty


def calls(attack: str, given: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """Return how often an attack asks a model about an image that it never breaks, at most: without a gradient, and with one."""
    from rdc.attack.neighbourhood import DRAWS as AROUND

    parameters = inspect.signature(attack_function(attack)).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(given)
    if attack == "square":
        return LOOKS + own["queries"] + 4, 0
    if attack == "autoattack":
        return autoattack_calls(own, classes)
    runs = len(own["weights"]) if attack == "lagrange" else own["restarts"] * (1 + min(own.get("targets", 0), classes - 1))
    asked, climbed, form = own["eot"] * (1 + 2 * runs), own["eot"] * runs * own["steps"], own.get("gradient", "exact")
    if form == "exact":
        return asked, climbed
    return (asked + climbed, AROUND[form] * climbed) if form == "neighbourhood" else (asked + (1 + AROUND[form]) * climbed, 0)


def autoattack_calls(own: Mapping[str, Any], classes: int) -> tuple[int, int]:
    """Return the calls of AutoAttack by its arguments, as its adapter and the package make them."""
    version, steps, wrong = own["version"], own["steps"], min(TARGETS, classes - 1)
    large = version == "standard" and own["norm"] == "L1"  # the package then divides the steps among three radii
    aims = min(STARTS, wrong) if large else wrong
    starts, eot = STARTS if large or version == "custom" else 1, own["eot"] or (EOT if version == "rand" else 1)
    climb = eot * (steps + (3 if large else 1))
    known = {
        "apgd-ce": (2, starts * climb), "apgd-dlr": (2, starts * climb), "apgd-t": (2 + aims, aims * climb),
        "fab": (2 + starts * (steps + 2), starts * steps * classes), "fab-t": (2 + wrong * (steps + 3), wrong * steps),
        "square": (own["queries"] + 4, 0),
    }  # fmt: skip
    asked, climbed = zip(*(known[name] for name in own["attacks"] or VERSIONS[version]), strict=True)
    return LOOKS + sum(asked), sum(climbed)


@dataclass(frozen=True)
class Forecast:
    """What a campaign costs on this machine.

    Attributes:
        line: The same in one line.
        speeds: Network evaluations a second, by the denoiser's file.
    """

    line: str
    speeds: Mapping[str, float]

    def pace(self, row: Row) -> float | None:
        """Return the seconds of a network evaluation of a row, if its denoiser was measured."""
        speed = self.speeds.get(str(row.options.get("denoiser")))
        return None if speed is None else 1 / speed


def work(row: Row, classes: int = 10) -> float | None:
    """Return how many network evaluations an image of a row costs at most, roughly; None for tasks whose cost nobody counts."""
    return evaluations(row, classes) if row.task in COUNTED and not names_user_model(row.model) else None


def forecast(name: str, rows: Sequence[Row], device: str | torch.device, seconds: float = 30.0) -> Forecast | None:
    """Return what the rows of an experiment cost on this machine; None if they name no file of a denoiser.

    Arguments:
        name: Of the experiment.
        rows: Its rows.
        device: Where they shall run.
        seconds: How long to measure the speed of the denoisers.

    Raises:
        ValueError: if files are missing, with their names and what to do, in one line.
    """
    files = files_of(rows)
    if not files:
        return None
    if missing := [str(path) for path in files if not path.exists()]:
        where: dict[str, list[str]] = {}
        for file in missing:
            where.setdefault(origin(file), []).append(file)
        told = "; ".join(f"{' and '.join(names)} ({origin})" for origin, names in where.items())
        raise ValueError(f"{name} needs {told}, in this folder")
    total, taken, speeds = 0.0, 0.0, dict[str, float]()
    denoisers = dict.fromkeys(str(row.options["denoiser"]) for row in rows if "denoiser" in row.options)
    for file in denoisers:
        denoiser = load_denoiser(file, device)
        speeds[file] = speed = measured(denoiser, torch.device(device), seconds / len(denoisers))
        mine = [row for row in rows if row.options.get("denoiser") == file]
        needed = sum(row.n * evaluations(row, denoiser.num_classes or 10) for row in mine)
        total, taken = total + needed, taken + needed / speed
    hours = f"{taken / 3600:,.0f} hours at {total / taken:,.1f} a second on this machine"
    return Forecast(f"{name}: {total:.3g} network evaluations at most, {hours}", speeds)


def origin(file: str) -> str:
    """Return where a file comes from."""
    recipe = Path(file).stem
    if recipe in RECIPES:
        return f"'rdc train denoiser --recipe {recipe} --out {file}' makes it"
    return ORIGINS.get(file, TRAINED if Path(file).match("cifar10-*.pt") else "yours")


def measured(denoiser: Any, device: torch.device, seconds: float) -> float:
    """Return the network evaluations a second."""
    batch = 4 if device.type == "cpu" else 256
    z = torch.zeros(batch, *denoiser.shape, dtype=torch.float32, device=device)
    label = torch.zeros(batch, dtype=torch.int64, device=device) if denoiser.num_classes else None
    done, begin = 0, 0.0
    with torch.no_grad():
        denoiser(z, 0.5, label)
        begin = time.perf_counter()
        while not done or time.perf_counter() - begin < seconds:
            denoiser(z, 0.5, label).sum().item()
            done += batch
    return done / (time.perf_counter() - begin)
