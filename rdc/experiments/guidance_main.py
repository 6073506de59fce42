"""Does a guide make better images, and a robust one better images than a vanilla one?

Sixteen repetitions of 200 images on fresh seeds, each guide at the scale that the sweep chose for it; fewer beside the slow
diffusion classifier and in 32 bits; real images in the place of generated ones; and the chain of the paper with its 250 steps.
"""

from rdc.experiments._guidance import CHOSEN, made
from rdc.runs.cell import Row

HEUN = {guide: scale for (guide, *how), scale in CHOSEN.items() if how == ["heun", True] and guide != "wide"}
DDPM = {guide: scale for (guide, *how), scale in CHOSEN.items() if how == ["ddpm", True]}
REAL = {"images": 200, "judges": "fashion"}

ROWS = (
    *(made(guide, scale, plan, conditional, n=16) for (guide, plan, conditional), scale in CHOSEN.items()),
    *(made(guide, scale, images=100) for guide, scale in HEUN.items()),
    made("diffusion classifier", CHOSEN["robust", "heun", True], images=100),
    *(made(guide, HEUN[guide], images=100, dtype="float32") for guide in ("vanilla", "robust")),
    *(made(guide, scale, "ddpm250", n=3) for guide, scale in DDPM.items()),
    *(
        Row(
            "real images", {"split": split}, None, REAL, n=8, block=1, task="guided",
            about={"measure": "real", "guide": f"real images, {title}", "images": 200},
        )
        for split, title in (("train", "train"), ("unseen", "test, not of fashion-mini"))
    ),
)  # fmt: skip
