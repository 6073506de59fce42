"""How many evaluations do the rules of sift-and-refine save with ten classes, and how often do they keep the answer?

One noisy copy of each of 30 test images of Fashion-MNIST that fashion-mini does not hold; the rules are made from 30 others.
"""

from itertools import product

from rdc.experiments._bases import apndc, epndc

BASES = (epndc(0.25, 16, "single-head"), apndc(0.25, 32, "single-head"), epndc(0.25, 16), apndc(0.25, 32))

ROWS = tuple(
    base.row("sift", {"images": "unseen", "rule": rule, "calibrate": 30}, n=30, block=30, rule=rule)
    for base, rule in product(BASES, ("Leader", "Paired", "Threshold"))
)
