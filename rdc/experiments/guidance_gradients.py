"""Do the gradients of a robust classifier point more towards the class that is asked for?

Cosines with the direction of the optimal denoiser, and targeted ascent from noisy test images, which an independent classifier
judges: that of the first measurements, of which counts are left, and a reference network. The slow diffusion classifier has
fewer images.
"""

from itertools import product

from rdc.experiments._guidance import LEVELS, TOWARDS, pointed
from rdc.runs.cell import Row

GUIDES = {"vanilla": 100, "robust": 100, "wide": 100, "classifier-free": 100, "diffusion classifier": 40}
STARTS, RADII = (0.02, 0.3), (3.0, 6.0, 12.6)  # model units; 12.6 is the paper's 100 at 3 x 128 x 128, by pixel

ROWS = (
    *(pointed(g, sigma, to, n) for to, (g, n), sigma in product(TOWARDS, GUIDES.items(), LEVELS)),
    *(
        Row(
            guide, {}, None, {"sigma": sigma, "radius": radius, "judges": judges}, n=n, block=100, task="targeted",
            about={"measure": "ascent", "guide": guide, "sigma": sigma, "radius": radius, "judges": judges},
        )
        for judges, (guide, n), sigma, radius in product(("fashion", "reference"), GUIDES.items(), STARTS, RADII)
        if guide != "classifier-free"
    ),
)  # fmt: skip
