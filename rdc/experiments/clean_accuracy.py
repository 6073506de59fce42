"""How often is the trained diffusion classifier right on the test images?

The range of the levels was chosen on 300 test images of Fashion-MNIST that are not in fashion-mini, by clean accuracy.
"""

from rdc.runs.cell import Row

ROWS = (
    Row("dc", {"denoiser": "single-head", "levels": 32, "draws": 2}, n=1000, block=100, about={"model": "DC"}),
)
