"""Does the threat model of the training of a guide matter more than its seed?

Short trainings: the fifteen threat models of the paper's Table 4 with one seed, the paper's own with five, and some beside; the
last ones, without early stopping on the other seeds, are pairs with those of the paper's own. Each guides a denoiser that knows
the class and one that does not, with the noise of the sweep; its gradient and its accuracy are measured at one noise level.
"""

from typing import Any

from rdc.experiments._guidance import CHOSEN, SWEEP, made, pointed
from rdc.runs.cell import Row

STEPS, BATCH, SIGMA = 300, 32, 0.3
SIZES = (("L2", 0.5), ("L2", 0.25), ("L2", 1.0), ("Linf", 4 / 255), ("Linf", 8 / 255))
GRID = [{"norm": norm, "eps": eps, "steps": steps} for steps in (7, 5, 9) for norm, eps in SIZES]
PAPER: dict[str, Any] = {"norm": "L2", "eps": 0.5, "steps": 7}
UNSTOPPED = {**PAPER, "stop": False}
BESIDE: list[dict[str, Any]] = [UNSTOPPED, {**PAPER, "eps": 3.0}, {**PAPER, "radius": "scaled"}, {**PAPER, "steps": 3}]
TRAININGS: list[tuple[dict[str, Any] | None, int]] = [
    (None, 0), (PAPER, 0), (PAPER, 1), *((t, 0) for t in BESIDE), *((t, 0) for t in GRID[1:]), *((PAPER, s) for s in (2, 3, 4)),
    *((UNSTOPPED, s) for s in (1, 2, 3, 4)),
]  # fmt: skip


def rows(threat: dict[str, Any] | None, seed: int) -> tuple[Row, ...]:
    """Return the rows of a training."""
    training: dict[str, Any] = {"threat": threat, "training seed": seed, "steps": STEPS, "batch": BATCH}
    words: dict[str, Any] = {"guide": "trained", "threat": threat, "training seed": seed}
    attack = {"sigma": SIGMA, "threat": {"steps": 20}, "group": 200}
    return (
        *(
            made("trained", CHOSEN["robust", "heun", conditional], "heun", conditional, first=SWEEP, n=3, about=words, **training)
            for conditional in (True, False)
        ),
        pointed("trained", SIGMA, "another class", 100, words, **training),
        Row(
            "trained", training, None, attack, n=200, block=200, task="level", about={**words, "measure": "noisy", "sigma": SIGMA}
        ),
    )


ROWS = tuple(row for training in TRAININGS for row in rows(*training))
