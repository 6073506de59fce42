"""At which noise levels does a diffusion classifier know the class, and how steep is what it knows?"""

from typing import Any

from rdc.runs.cell import Row

LEVELS: dict[str, Any] = {"levels": 8, "sigma_min": 0.05}


def taken_apart(denoiser: str, draws: int) -> Row:
    """Return the row of a denoiser; several draws come in pairs."""
    own = {**LEVELS, **({"denoiser": denoiser} if denoiser != "heads" else {})}
    own |= {"noise": "antithetic", "draws": draws} if draws > 1 else {}
    about = {"denoiser": "trained" if denoiser == "heads" else denoiser, "draws": draws}
    return Row("dc", own, n=64, task="information", about=about)


ROWS = (taken_apart("heads", 1), taken_apart("heads", 4), taken_apart("optimal", 2))
