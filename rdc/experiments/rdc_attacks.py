"""Do the Lagrange attack and an attack on features find what PGD does not find?"""

from itertools import product

from rdc.experiments._rows import lm

ROWS = tuple(lm(attack, g, attack=attack) for attack, g in product(("lagrange", "feature"), ("bpda", "smoothed 0.3")))
