"""Is a diffusion classifier with more draws of its noise, or with a noise of its own for each class, harder to attack?"""

from rdc.experiments._rows import row

ROWS = (
    *(row("epsilon", "DC", draws=draws) for draws in (1, 2, 4)),
    row("epsilon", "DC", noise="per_class"),
)
