"""Is the attack to be believed that leaves so many images to a diffusion classifier with a floor, and to RDC above it?

The images and the budget of experiment rdc-audit; the defences of experiment union.
"""

from rdc.experiments.rdc_audit import BUDGET
from rdc.runs.cell import Row

RDC = {"lm": "released", "steps": 5, "sigma_min": 1.0}

ROWS = (
    Row("dc-floor", {}, None, BUDGET, n=10, block=10, task="audit", about={"attack on": "DC, floor"}),
    *(
        Row("rdc", {**RDC, "gradient": g}, None, BUDGET, n=10, block=10, task="audit", about={"attack on": f"RDC, floor, {g}"})
        for g in ("smoothed 0.3", "exact")
    ),
)
