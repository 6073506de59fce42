"""At which noise levels does a diffusion classifier know the class, and how steep is what it knows?"""

from typing import Any

from rdc.runs.cell import Row

LEVELS: dict[str, Any] = {"levels": 16, "sigma_min": 0.05}
PAIRS: dict[str, Any] = {"noise": "antithetic", "draws": 8}

ROWS = (
    Row("dc", {**LEVELS, **PAIRS}, n=64, task="information", about={"denoiser": "trained", "draws": 8}),
    Row("dc", {**LEVELS, **PAIRS, "denoiser": "optimal"}, n=64, task="information", about={"denoiser": "optimal", "draws": 8}),
    Row("dc", LEVELS, n=64, task="information", about={"denoiser": "trained", "draws": 1}),
)
