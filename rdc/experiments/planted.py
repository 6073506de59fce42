"""Which check of the audit finds what is wrong with each planted defence, and does it let two honest networks pass?

Each planted defence stands before the reference CNN. No check is left out.
"""

from rdc.runs.cell import Row

HONEST = {"cnn": "an undefended network", "at-linf": "adversarial training"}
PLANTED = {
    "broken-tiny-logits": "logits times 1e-8",
    "broken-saturated-softmax": "probabilities that are 0 and 1",
    "broken-quantised-input": "32 grey levels",
    "broken-shattered-gradient": "a fine wave on the image",
    "broken-detached-preprocessing": "a blur outside autograd",
    "broken-random-input": "random shift, size and noise",
    "broken-reseeded-noise": "the same, seeded anew at every call",
    "broken-batch-leak": "logits centred by the batch",
}
BUDGET = {"norm": "Linf", "eps": "8/255", "steps": 10, "queries": 50}

ROWS = tuple(
    Row(name, {}, None, BUDGET, n=10, block=10, task="audit", about={"model": name, "what": what})
    for name, what in (HONEST | PLANTED).items()
)
