"""How many images does a diffusion classifier with a floor keep, alone and behind likelihood maximisation?

The floor was chosen on other images (experiment floor). The classifiers without one are in rdc-gradient, on the same images.
"""

from rdc.experiments._rows import lm, row

ROWS = (
    row("floor", "DC floor", n=48, priority=-2),
    *(lm("floor", g, "released", model="RDC floor", n=32, priority=-1) for g in ("exact", "smoothed 0.3", "bpda")),
    *(row("floor", "DC floor", attack=a, n=32, priority=-1) for a in ("apgd", "pgd-targets", "square")),
    row("floor", "DC floor", "transfer", n=32),
)
