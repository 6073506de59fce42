"""Which radius does the Lipschitz bound certify without smoothing?"""

from rdc.runs.cell import Row

LEVELS = {"levels": 8, "sigma_min": 0.5, "denoiser": "heads"}
ROWS = (Row("dc", LEVELS, None, {"n": 300, "alpha": 0.001}, n=12, block=4, task="lipschitz", about={"base": "DC + Lipschitz"}),)
