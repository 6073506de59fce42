"""Entries on robust classifier guidance."""

__all__ = ["ENTRIES"]

from typing import Any

from rdc.findings.guidance import METHODS, PAPER, SAMPLES
from rdc.findings.ledger import Effect, Entry
from rdc.findings.side import Side


def frechet(threat: dict[str, Any]) -> Side:
    """The Frechet distance of a guide after a short training, in three repetitions on the same seeds."""
    words = {"measure": "samples", "conditional": True, "threat": threat, "training seed": 0}
    return Side("guidance-threats", words, "frechet", mean="units")


ENTRIES = (
    Entry(
        "GUI-1", "H", "Functions added to the logits",
        "Adding one function to all logits changes the gradients and leaves the loss as it is (Section 3.2, Appendix B).",
        "The gradient that guides is that of the log-softmax (`classifier_sample.py`, lines 54 to 56), in which the function "
        "cancels.",
        "-", (), "Proved: `tests/test_guide_align.py` (claim C1).", "notebooks/10d_gradient_argument",
    ),
    Entry(
        "GUI-2", "M", "Units of the radius", "L2 0.5, and Linf 4/255 and 8/255 in Table 4; no units.",
        "Units of [-1, 1], half as much in [0, 1], and the same radius at every noise level (`classifier_rob_train.py`, "
        "lines 182 to 184).",
        "`Threat(radius=\"released\")`, `\"paper\"`, `\"image\"` or `\"scaled\"`",
        (Effect(("Frechet distance, as released:", frechet(PAPER)), ("radius by the "
        "noise:", frechet({**PAPER, "radius": "scaled"}))),),
        "Short trainings with one seed.", METHODS,
    ),
    Entry(
        "GUI-3", "M", "Two rules for the step", "0.083 for ImageNet, 2.5 times the radius over the steps for CIFAR-10.",
        "As the paper says, in two scripts.", "`Threat(step=\"main\")` or `\"appendix\"`",
        (Effect(("Frechet distance, 7 steps:", frechet(PAPER)), ("3 steps:", frechet({**PAPER, "steps": 3}))),),
        "The number of steps in the place of their size: with the first rule three steps do not reach the radius. Short "
        "trainings, one seed.", METHODS,
    ),
    Entry(
        "GUI-5", "M", "Schedule of the training", "240 000 iterations, learning rate from 3e-4 to 6e-5, batch 128.",
        "Decay to zero over 300 000 iterations, stopped at 240 000, which is the same; the batch counts for each process, "
        "and the defaults of the parser are others.",
        "`rdc train classifier --threat --eps --steps`", (), "Not measured: such a training is out of reach here.", SAMPLES,
    ),
)  # fmt: skip
