"""Is what PGD measures on RDC to be believed on CIFAR-10, too?

The reading, the levels and the images of experiment cifar10; the budget of experiment rdc-audit.
"""

from rdc.experiments.cifar10 import NETWORKS, RANGE, SMALL
from rdc.experiments.rdc_audit import BUDGET
from rdc.runs.cell import Row

ROWS = tuple(
    Row(
        "rdc", {"denoiser": NETWORKS[SMALL], **RANGE, "lm": "released", "steps": 5, "gradient": g}, None, BUDGET, data="cifar10",
        n=10, block=10, task="audit", about={"attack on": f"RDC, {g}"}, priority=i,
    )
    for i, g in enumerate(("exact", "bpda"))
)  # fmt: skip
