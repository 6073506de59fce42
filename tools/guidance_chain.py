"""The part ``chain`` of tools/guidance.py: the paper's chain with its own 250 steps, beside that with 25, on the same seeds.

Does the scale mean the same with another number of steps? A step of the DDPM form moves the mean by a share of what the score
form moves it (:func:`share`), and that share is 1 less something of the order of the step. So the scale has a limit that depends
on no number of steps, the one of the score form; but with few steps the same scale guides less.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

from guidance_networks import Judges
from guidance_rows import compared, differences, row
from guidance_samples import PLANS, Setting
from tqdm import tqdm

from rdc.guide.plan import Plan, step_variance

SHORT, LONG, LEVELS = "ddpm", "ddpm250", (0.1, 0.3, 1.0, 3.0, 10.0)
PAIRS = (("vanilla", "none"), ("robust", "none"), ("robust", "vanilla"))


def share(plan: Plan, sigma: float) -> float:
    """The DDPM form's move of the mean over the score form's, in the step of a plan that begins next above a level."""
    path = plan.path.tolist()
    above, below = min((s, b) for s, b in zip(path[:-1], path[1:], strict=True) if s >= sigma)
    moved = step_variance(above, below, plan.variance) * ((1 + above**2) / (1 + below**2)) ** 0.5
    return moved / (above**2 - below**2)


def chain_part(judges: Judges, scale_of: Callable[[str, str], float], first: int, repeats: int, n: int) -> dict[str, Any]:
    """Without a guide, vanilla, robust, at the scales chosen with few steps; and what more steps change."""
    scales = {"none": 0.0} | {guide: scale_of(guide, SHORT) for guide in ("vanilla", "robust")}
    todo = [Setting(guide, s, plan) for plan, (guide, s) in product((SHORT, LONG), scales.items())]
    rows = [row(judges, setting, first, repeats, n) for setting in tqdm(todo, desc="chain", unit="row")]
    short, long = rows[: len(scales)], rows[len(scales) :]
    across = [{**d, "plan b": SHORT} for a, b in zip(long, short, strict=True) for d in differences(a, b)]
    shares = [{"plan": p, "sigma": s, "steps": len(PLANS[p].path) - 1, "share": share(PLANS[p], s)}
              for p, s in product((SHORT, LONG), LEVELS)]  # fmt: skip
    return {"rows": rows, "differences": compared(rows, PAIRS), "across": across, "shares": shares}
