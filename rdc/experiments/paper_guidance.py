"""Do robust guides make better images with the networks and at the sizes of the paper on guidance?

Tables 1 and 6 on ImageNet at 128 x 128: the published denoiser, its own classifier, and the robust one of the authors; 50 images
of each class, 250 steps. Tables 4 and 5 on CIFAR-10, with classifiers that the released code trains; the denoiser is another
network than those that are read here, and the published one of Karras et al. takes its place. The variance of a step is not the
learned one.
"""

from typing import Any

from rdc.experiments._paper import ADM, CONDITIONAL, REFERENCE, ROBUST, VANILLA
from rdc.runs.cell import Row

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Norm and radius of a training, in the units of the released code, images in [-1, 1]; steps of its attack.
THREATS, STEPS = (("l2", "0.25"), ("l2", "0.5"), ("l2", "1.0"), ("linf", "4_255"), ("linf", "8_255")), (5, 7, 9)
CIFAR = (0.0625, 0.125, 0.25, 0.5)


def robust(norm: str, eps: str, steps: int) -> str:
    """Return the file of a classifier that the released code trained on CIFAR-10."""
    return f"cifar10-{norm}-{eps}-{steps}.pt"


def row(table: str, data: str, guide: str, file: str | None, scale: float, **more: Any) -> Row:
    """Return a row: one set of images, whose noise is that of the others."""
    imagenet = data == "imagenet-128"
    options = {"denoiser": ADM if imagenet else CONDITIONAL, "classifier": file, "scale": scale, "steps": 250}
    given = {
        "images": 50_000 if imagenet else 10_000, "features": "inception:network", "folder": "runs/paper-guidance",
        "reference": REFERENCE if imagenet else "cifar10",
    }  # fmt: skip
    about = {"table": table, "guide": guide, "scale": scale, "data": data, "measure": "samples"}
    return Row(guide, options, None, given, data, n=1, block=1, task="sampled", about=about, **more)


CHOSEN = {"vanilla": (VANILLA, 0.5), "robust": (ROBUST, 1.0)}
OWN = {"vanilla": "cifar10-vanilla.pt", "robust": robust("l2", "0.5", 7)}

ROWS = (
    row("1, 6", "imagenet-128", "none", None, 0.0),
    *(row("1, 6", "imagenet-128", guide, file, scale) for guide, (file, scale) in CHOSEN.items()),
    *(row("6", "imagenet-128", g, f, s, priority=2) for g, (f, chosen) in CHOSEN.items() for s in SCALES if s != chosen),
    row("5", "cifar10", "none", None, 0.0),
    *(row("4, 5" if (g, s) == ("robust", 0.25) else "5", "cifar10", g, f, s) for g, f in OWN.items() for s in CIFAR),
    *(
        row("4", "cifar10", "robust", robust(norm, eps, steps), 0.25, priority=1)
        for steps in STEPS
        for norm, eps in THREATS
        if (norm, eps, steps) != ("l2", "0.5", 7)
    ),
)
