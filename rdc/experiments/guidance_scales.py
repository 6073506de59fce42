"""With which scale does each guide make the best images?

Repetitions of 200 images on seeds of their own; the scale with the smallest mean Frechet distance is the one that other
experiments take. While the largest scale of the wide guide was the best, twice as much was tried.
"""

from itertools import product

from rdc.experiments._guidance import SWEEP, made

SCALES = {("heun", True): (0.25, 0.5, 1.0, 2.0), ("heun", False): (1.0, 2.0, 4.0), ("ddpm", True): (1.0, 3.0)}
WIDE = {("heun", True): (0.25, 0.5, 1.0, 2.0), ("heun", False): (1.0, 2.0, 4.0, 8.0)}

ROWS = (
    *(made("none", 0.0, *how, first=SWEEP) for how in SCALES),
    *(made(g, s, *how, first=SWEEP) for how, scales in SCALES.items() for g, s in product(("vanilla", "robust"), scales)),
    *(made("classifier-free", s, first=SWEEP) for s in (0.5, 1.0)),
    *(made("wide", s, *how, first=SWEEP) for how, scales in WIDE.items() for s in scales),
)
