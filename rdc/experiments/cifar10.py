"""How much of CIFAR-10 does a diffusion classifier recognise whose denoiser two CPU cores can use?

The images are the first of the test split, those that the papers attack. Range and number of the levels were chosen on training
images that the denoiser has not seen.
"""

from rdc.runs.cell import Row

ROWS = (
    Row(
        "dc",
        {"denoiser": "single-head", "levels": 5, "sigma_min": 0.33, "sigma_max": 2.5},
        data="cifar10",
        n=512,
        block=32,
        about={"model": "DC", "what": "clean", "network": "cifar10-small"},
    ),
)
