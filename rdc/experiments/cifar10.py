"""How many images of CIFAR-10 does RDC keep, as the attacker's gradient sees more of its likelihood maximisation?

The first images of the test split, those that the papers attack; Linf 8/255. The network is small enough for two CPU cores; the
range of the five levels was chosen on 56 training images that it has not seen (its teacher has), that of the sixteen follows from
it. "released" is the reading of the released code, "clamped" clamps after every step; noise is fixed, and the attacker
knows it, unless a row says that it is fresh.
"""

from typing import Any

from rdc.runs.cell import Row

#: Networks of the tables, and how the rows name their denoisers.
SMALL, MEDIUM, HEADS = "cifar10-small", "cifar10-medium", "cifar10-small-multihead"
NETWORKS = {SMALL: "single-head", MEDIUM: "cifar10-medium.safetensors", HEADS: "heads"}
RANGE: dict[str, Any] = {"levels": 5, "sigma_min": 0.33, "sigma_max": 2.5}
SIXTEEN: dict[str, Any] = RANGE | {"levels": 16, "sigma_min": 0.25}
#: Nine passes of the heads are less than a fifth of five levels of ten classes.
NINE: dict[str, Any] = RANGE | {"levels": 9}
PGD: dict[str, Any] = {"steps": 20, "norm": "Linf", "eps": "8/255"}
SMOOTHED = "smoothed 0.3"


def clean(network: str, levels: dict[str, Any], n: int, block: int, priority: int) -> Row:
    """Return a diffusion classifier that nobody attacks."""
    about = {"model": "DC", "what": "clean", "network": network, "levels": levels["levels"]}
    own = {"denoiser": NETWORKS[network], **levels}
    return Row("dc", own, data="cifar10", n=n, block=block, about=about, priority=priority)


def attacked(
    network: str, gradient: str | None = None, n: int = 512, priority: int = 0, N: int = 5, lm: str = "released",
    noise: str = "fixed", **more: Any,
) -> Row:  # fmt: skip
    """Return a diffusion classifier under attack, alone or, through a gradient, behind N steps of likelihood maximisation.

    Fresh noise is drawn anew at each call, for both; the verdict on an image is that of most of twenty answers.
    """
    given = PGD | more
    about = {"model": "DC" if gradient is None else "RDC", "what": "attacked", "network": network, "levels": 5,
             "gradient": gradient or "plain", "N": 0 if gradient is None else N, "lm": None if gradient is None else lm,
             "eps": given["eps"], "noise": noise}  # fmt: skip
    own = {} if gradient is None else {"lm": lm, "steps": N, "gradient": gradient}
    own |= {} if noise == "fixed" else {"noise": noise}
    options = {"denoiser": NETWORKS[network], **RANGE, **own}
    return Row("dc" if gradient is None else "rdc", options, "pgd", given, data="cifar10", n=n, block=8, about=about,
               priority=priority)  # fmt: skip


ROWS = (
    *(attacked(SMALL, g, priority=-3) for g in (None, "bpda", "exact", SMOOTHED)),
    *(clean(HEADS, levels, 1000, 32, -3) for levels in (RANGE, NINE)),
    *(clean(SMALL, levels, 1000, 32, -2) for levels in (RANGE, SIXTEEN)),
    *(attacked(SMALL, g, priority=-1, N=1) for g in ("bpda", "exact")),
    *(attacked(SMALL, g, n=128, priority=-1, lm="clamped") for g in ("bpda", "exact", SMOOTHED)),
    *(attacked(SMALL, g, n=256, priority=-1, eps="4/255") for g in (None, "bpda", "exact", SMOOTHED)),
    *(attacked(SMALL, g, n=64, noise="fresh") for g in ("bpda", "exact", SMOOTHED)),
)
