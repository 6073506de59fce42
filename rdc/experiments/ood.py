"""Do bits per dimension tell corrupted images from clean ones, and how often are classifiers right about them?

Fashion-MNIST. The bits are those of the density at a noise of 0.1 (model units), without a label: by the probability flow of the
trained denoiser and of the optimal one, by the bound, and for the optimal one exact. They are ranked among those of 128 clean
images that are not corrupted here. The flow of the optimal denoiser is stiff off the data and has not converged in 32 steps: of
those rows only ``exact`` and ``elbo`` are used.
"""

from typing import Any

from rdc.data.corruptions import CORRUPTIONS
from rdc.runs.cell import Row

DENOISERS: dict[str, dict[str, Any]] = {"trained": {"steps": 6}, "optimal": {"denoiser": "optimal", "steps": 32}}
CLASSIFIERS = ("cnn", "at-linf", "dc")
URGENT = {3: 0, 5: 1, 1: 2, 2: 3, 4: 3}  # severities by priority
REFERENCE = {"reference": [512, 640]}


def rows(model: str, options: dict[str, Any], arguments: dict[str, Any], words: dict[str, Any], urgent: int) -> tuple[Row, ...]:
    """The rows of one model: clean images, digits where there are bits, and all corruptions."""
    plain = [("none", 0), *([("digits", 0)] if arguments else [])]
    cases = plain + [(name, severity) for severity in URGENT for name in CORRUPTIONS]
    return tuple(
        Row(
            model, options, None, {**arguments, "corruption": name, "severity": severity}, n=128, block=128, task="ood",
            about={**words, "corruption": name, "severity": severity}, priority=URGENT.get(severity, 0) + urgent,
        )
        for name, severity in cases
    )  # fmt: skip


ROWS = (
    *(row for name, options in DENOISERS.items() for row in rows("sbgc", options, REFERENCE, {"density": name}, 0)),
    *(row for name in CLASSIFIERS for row in rows(name, {}, {}, {"model": name}, 0)),
)
