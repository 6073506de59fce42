"""How many images does a diffusion classifier with a floor keep under PGD, on other images than those that chose the floor?

The floor was chosen in experiment floor. All other attacks on it, and likelihood maximisation before it, are rows of union; the
classifiers without a floor are in rdc-gradient, on the same images.
"""

from rdc.experiments._rows import row

ROWS = (row("floor", "DC floor", n=96), row("floor", "DC floor", "transfer", n=96))
