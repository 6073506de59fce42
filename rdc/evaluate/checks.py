"""Checks of an audit that look at the model as a function: its answers, on the data and off it, however it is asked."""

__all__ = [
    "check_answers",
    "check_batch",
    "check_grid",
    "check_held_out",
    "check_logits",
    "check_memory",
    "check_modes",
    "check_random_state",
    "check_repeats",
    "check_training",
]

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rdc.attack.pgd import pgd
from rdc.door import MODAL, ask
from rdc.evaluate.case import Case, Failed, Row, differs
from rdc.rng import rand

NEARLY = 1e-3  # of the spread of the logits: what kernels may change by rounding


def check_repeats(case: Case) -> Iterator[Row]:
    """Calls that follow each other agree, or differ as noise does: neither by the number of the call nor by the clock."""
    same = [differs(a, b) for a, b in zip(case.answers[1:], case.answers, strict=False)]
    count = len(case.answers)
    periods = [p for p in (2, 3, 4) if not any(differs(a, b) for a, b in zip(case.answers[p:], case.answers, strict=False))]
    once, again = (ask(case.frozen, case.probes) for _ in range(2))
    if not any(same) and case.first is not None and differs(ask(case.model, case.first[0]), case.first[1]):
        yield Row("repeats", "fail", "the first answer was another one than those that followed")
    elif not any(same):
        yield Row("repeats", "pass", f"{count} calls agree")
    elif periods:
        yield Row("repeats", "fail", f"the answer depends on the number of the call: it comes back every {periods[0]} calls")
    elif sum(same) == 1:
        yield Row("repeats", "fail", f"the answer changes once and for all after {same.index(True) + 1} of {count} calls")
    elif differs(once, again):
        text = "answers differ although every seed, generator and counter is fixed (the clock?): nobody can repeat its numbers"
        yield Row("repeats", "fail", text)
    else:
        yield Row("repeats", "pass", "randomised, and its noise can be fixed")


def check_random_state(case: Case) -> Iterator[Row]:
    """The model neither reads nor changes the global random state, which attack tools reseed."""
    with torch.random.fork_rng():
        logits = []
        for seed in (1, 1, 2):
            torch.random.manual_seed(seed)
            state = torch.random.get_rng_state()
            logits.append(ask(case.model, case.probes))
        moved = not torch.equal(state, torch.random.get_rng_state())
    if not differs(logits[0], logits[1]) and differs(logits[0], logits[2]):
        fault = "noise from the global random state: a tool that reseeds it (AutoAttack does) attacks one and judges another"
        yield Row("random state", "fail", fault)
    elif moved:
        yield Row("random state", "fail", "a call changes the global random state: it reseeds or draws from what attacks share")
    else:
        kind = "randomised, with noise of its own" if case.random else "deterministic"
        yield Row("random state", "pass", f"the model is {kind}")


def check_modes(case: Case) -> Iterator[Row]:
    """The answer does not depend on whether somebody wants a gradient."""
    still = case.logits(case.probes)
    points = {"a gradient": case.probes.clone().requires_grad_(), "autograd on": case.probes}
    changed = [name for name, x in points.items() if differs(case.differentiable(x).detach(), still, NEARLY)]
    if changed:
        yield Row("autograd", "fail", f"other logits with {' and '.join(changed)} than under no_grad: it knows who asks")
    else:
        yield Row("autograd", "pass", "the same logits with autograd on and off")


def check_batch(case: Case) -> Iterator[Row]:
    """The logits of an image depend neither on its neighbours, nor on its place, nor on being alone."""
    x = case.probes[1:4]
    orders = {"other images": torch.cat([x[:1], 1 - x[:1], x[:1].flip(3)]), "copies": x[:1].repeat(3, 1, 1, 1)}
    first = case.logits(x)[:1]
    changed = [name for name, batch in orders.items() if differs(case.logits(batch)[:1], first, NEARLY)]
    alone = [torch.cat([ask(case.model, part) for part in x.split(1)]) for _ in range(8 if case.random else 1)]
    many = [ask(case.model, x) for _ in range(8)] if case.random else [case.logits(x)]
    if case.random:
        noise = (torch.stack(alone).var(dim=0) + torch.stack(many).var(dim=0)).div(8).sqrt()
        gap = (torch.stack(alone).mean(dim=0) - torch.stack(many).mean(dim=0)).abs()
        odd = bool((gap > 6 * noise + NEARLY * float(many[0].max() - many[0].min())).any())
    else:
        odd = differs(alone[0], many[0], NEARLY) or differs(case.logits(x.flip(0)).flip(0), many[0], NEARLY)
    if changed:
        fault = f"{' and '.join(changed)} in the batch change the logits of an image: information leaks"
        yield Row("batch", "fail", fault)
    elif odd:
        yield Row("batch", "fail", "an image alone has other logits than in a batch, or in another place of it")
    else:
        yield Row("batch", "pass", "logits of an image do not depend on the rest of the batch")


def check_logits(case: Case) -> Iterator[Row]:
    """Logits are logits, on a scale that losses can see."""
    logits = ask(case.model, case.x)
    top = logits.topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median())
    sums = bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all())
    if sums:
        yield Row("logits", "fail", "the model returns probabilities: attack the logits, a saturated softmax has no gradient")
    elif gap < 1e-4:
        yield Row("logits", "fail", f"flat: median lead {gap:.1g}; losses that see the scale (CE, CW with a penalty) are blind")
    elif gap < 1e-2:
        yield Row("logits", "warn", f"flat: median lead {gap:.1g}; use losses that do not see the scale")
    elif gap > 50:
        zero = float((F.softmax(logits, dim=1).amax(dim=1) == 1).float().mean())
        text = f"median lead {gap:.0f}: softmax is exactly 1 for {100 * zero:.0f} % of images, so use the margin, not plain CE"
        yield Row("logits", "warn", text)
    else:
        yield Row("logits", "pass", f"median lead of the first class {gap:.2g}")


def check_answers(case: Case) -> Iterator[Row]:
    """The model answers everywhere in [0, 1], alone and in batches: it neither raises nor returns NaN."""
    x = case.x[:1]
    noise = rand((2, *x.shape[1:]), case.seed, "off the data", like=x)
    constants = torch.stack([torch.full_like(x[0], v) for v in (0.0, 0.5, 1.0)])
    batches = {
        "constant images": constants, "noise": noise, "random corners": noise.round(), "an inverted image": 1 - x,
        "a flipped image": x.flip(3), "a shifted image": x.roll((1, 1), (2, 3)), "the corners of the ball": _corners(case),
    }  # fmt: skip
    for name, batch in batches.items():
        try:
            ask(case.model, batch)
        except Exception as error:
            raise Failed(f"on {name}: {error}") from error
    yield Row("answers", "pass", f"finite logits on {', '.join(batches)}")


def _corners(case: Case) -> Tensor:
    """Images with every pixel moved by the radius (a pixel's share of it in L2)."""
    size = case.eps if case.norm == "Linf" else case.eps / case.x[0].numel() ** 0.5
    return (case.x[:2] + size * (2 * rand(case.x[:2].shape, case.seed, "corners", like=case.x) - 1).sign()).clamp(0, 1)


def check_grid(case: Case) -> Iterator[Row]:
    """Images that differ by less than anybody sees keep their class: the data are not looked up."""
    noise = 2 * rand(case.x.shape, case.seed, "grey", like=case.x) - 1
    moved = {"one grey level up": case.x + 1 / 255, "one down": case.x - 1 / 255, "noise of one grey level": case.x + noise / 255}
    counts = {name: int(case.wrong(x.clamp(0, 1), case.y, sure=True).sum()) for name, x in moved.items()}
    name, worst = max(counts.items(), key=lambda item: item[1])
    verdict = "pass" if worst == 0 else "warn" if worst <= max(1, 0.15 * len(case)) else "fail"
    text = f"{worst} of {len(case)} images wrong after {name}" if worst else "right one grey level away"
    yield Row("grey levels", verdict, text)


def check_held_out(case: Case, held_out: tuple[Tensor, Tensor] | None) -> Iterator[Row]:
    """Other images of the same data are classified as well, and are as hard to attack."""
    if held_out is None:
        yield Row("held out", "warn", "not run: give held_out=(x, y), other images of the same data")
        return
    x, y = held_out
    right = ~case.wrong(x, y)
    clean = int(right.sum())
    if _far_below(clean, len(y), len(case), round(len(case) / case.clean)):
        text = f"right on {clean} of {len(y)} other images, on the given ones {100 * case.clean:.0f} %: were they looked up?"
        yield Row("held out", "fail", text)
        return
    found = pgd(case.model, x[right], y[right], case.norm, case.eps, max(1, case.steps // 2), eot=case.eot, seed=case.seed)
    left, here = int((~case.wrong(found, y[right])).sum()), int((~case.base).sum())
    text = f"right on {clean} of {len(y)} other images, of which {left} survive PGD; of the audited {here} of {len(case)} do"
    yield Row("held out", "fail" if _far_below(left, clean, here, len(case)) else "pass", text)


def _far_below(a: int, n: int, b: int, m: int) -> bool:
    """Whether the share ``a / n`` is less than ``b / m`` by a half, or by three standard errors if that is more."""
    pooled = (a + b) / (n + m)
    return b / m - a / n > max(0.5, 3 * (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5)


def check_memory(case: Case) -> Iterator[Row]:
    """After all these calls the model answers as it did at first."""
    if case.random:
        yield Row("memory", "pass", "randomised: there is nothing to compare")
    elif differs(ask(case.model, case.probes), case.answers[0], NEARLY):
        yield Row("memory", "fail", "the model answers otherwise than before it was attacked: it remembers")
    else:
        yield Row("memory", "pass", "after the attacks the model answers as before")


def check_training(case: Case) -> Iterator[Row]:
    """Attack tools that switch a model to training see the same function; layers that are meant to change stay as they are."""
    modules = [(m, m.training) for m in case.model.modules() if not isinstance(m, MODAL)]
    with torch.random.fork_rng(), torch.no_grad():
        try:
            for module, _ in modules:
                module.training = True
            found = case.frozen(case.probes.clone())
        finally:
            for module, training in modules:
                module.training = training
    changed = differs(found, case.logits(case.probes), NEARLY)
    text = "other logits in training mode: a tool that calls train() attacks another model" if changed else "no effect"
    yield Row("training mode", "warn" if changed else "pass", text)
