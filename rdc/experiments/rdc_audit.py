"""Is what PGD measures on RDC to be believed, whatever gradient it takes through likelihood maximisation?"""

from rdc.runs.cell import Row

GRADIENTS = ("smoothed 0.3", "bpda", "exact")
BUDGET = {"norm": "Linf", "eps": "8/255", "steps": 10, "queries": 50}

ROWS = (
    Row("dc", {}, None, BUDGET, n=10, block=10, task="audit", about={"attack on": "DC"}),
    *(
        Row(
            "rdc",
            {"lm": "released", "gradient": g},
            None,
            BUDGET,
            n=10,
            block=10,
            task="audit",
            about={"attack on": f"RDC, {g}"},
        )
        for g in GRADIENTS
    ),
)
