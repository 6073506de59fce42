"""How many images of CIFAR-10 does each base classifier certify, at which radius?

The first test images, noise 0.25 and 0.5 in image units, with cifar10-small; the noised diffusion classifiers ask its heads, one
pass a level. Few draws, so that a radius is a lower bound of what more of them would give; two cores can follow.
"""

from rdc.experiments._bases import DRAWS, Base
from rdc.runs.cell import Row

SIGMAS = (0.25, 0.5)
SINGLE = {"denoiser": "single-head"}


def curve(base: Base, n: int, images: int) -> Row:
    """Return certificates of some images with n draws."""
    return base.row("certify", {**DRAWS, "n": n}, n=images, block=8, data="cifar10")


def bases(sigma: float) -> tuple[tuple[Base, int, int], ...]:
    """Return the base classifiers for a noise, with draws and images."""
    noised = {"sigma": sigma, "levels": 4, "denoiser": "heads"}
    return (
        (Base("Carlini", "carlini", {"sigma": sigma, "network": "cnn", **SINGLE}, sigma), 1000, 128),
        (Base("EPNDC", "epndc", {**noised, "form": "quadrature"}, sigma), 1000, 64),
        (Base("APNDC", "apndc", {**noised, "variant": "ensemble"}, sigma), 1000, 64),
    )


ROWS = tuple(curve(*one) for sigma in SIGMAS for one in bases(sigma))
