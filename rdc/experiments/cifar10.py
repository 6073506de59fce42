"""How much of CIFAR-10 does a diffusion classifier recognise whose denoiser two CPU cores can use?

The images are the first of the test split, those that the papers attack. The range of the five levels was chosen on 56 training
images that the denoiser has not seen (its teacher has), that of the sixteen follows from it.
"""

from rdc.runs.cell import Row


def row(levels: int, low: float, n: int, block: int) -> Row:
    """Return a diffusion classifier with some levels from ``low`` on."""
    options = {"denoiser": "single-head", "levels": levels, "sigma_min": low, "sigma_max": 2.5}
    about = {"model": "DC", "what": "clean", "network": "cifar10-small", "levels": levels}
    return Row("dc", options, data="cifar10", n=n, block=block, about=about)


ROWS = (row(5, 0.33, 512, 32), row(16, 0.25, 512, 16))
