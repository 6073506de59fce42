"""Do the rules of sift-and-refine keep the answer, on more images than those of the experiment certificates-sift?

One noisy copy of each of the first 512 test images; the rules are made from the thirty after them.
"""

from itertools import product

from rdc.experiments._bases import apndc, epndc

BASES = (epndc(0.25, 16, "single-head"), apndc(0.25, 32, "single-head"))

ROWS = tuple(
    base.row("sift", {"images": "test", "rule": rule, "calibrate": 30}, n=512, block=64, rule=rule)
    for base, rule in product(BASES, ("Threshold", "Leader", "Paired"))
)
