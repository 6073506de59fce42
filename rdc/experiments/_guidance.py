"""Rows of the experiments on guidance, with the words of their tables."""

from typing import Any

from rdc.runs.cell import Row

SWEEP, FRESH = 1_000_000, 2_000_000  # first seeds: scales are chosen on those of the sweep
LEVELS = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0)
TOWARDS = ("true class", "another class")
#: The chosen scales, by guide, plan, and whether the denoiser knows the class: those with the smallest mean Frechet distance.
CHOSEN = {
    ("none", "heun", True): 0.0, ("vanilla", "heun", True): 0.5, ("robust", "heun", True): 0.5, ("wide", "heun", True): 1.0,
    ("classifier-free", "heun", True): 0.5,
    ("none", "heun", False): 0.0, ("vanilla", "heun", False): 2.0, ("robust", "heun", False): 2.0, ("wide", "heun", False): 4.0,
    ("none", "ddpm", True): 0.0, ("vanilla", "ddpm", True): 1.0, ("robust", "ddpm", True): 1.0,
}  # fmt: skip


def made(
    guide: str, scale: float, plan: str = "heun", conditional: bool = True, *, first: int = FRESH, images: int = 200, n: int = 8,
    dtype: str = "", about: dict[str, Any] | None = None, **training: Any,
) -> Row:  # fmt: skip
    """Return a row of guided samples: ``n`` repetitions of ``images``; with the options of a short training, of that guide."""
    options = {**training, "scale": scale, "plan": plan, "conditional": conditional, **({"dtype": dtype} if dtype else {})}
    words = {"guide": guide, "scale": scale, "plan": plan, "conditional": conditional, "dtype": dtype or "fast", "images": images}
    arguments = {"images": images, "first": first, "judges": "fashion"}
    own = {**words, "measure": "samples", **(about or {})}
    return Row(guide, options, None, arguments, n=n, block=1, task="guided", about=own)


def pointed(guide: str, sigma: float, towards: str, n: int = 100, about: dict[str, Any] | None = None, **training: Any) -> Row:
    """Return a row of alignments with the exact direction."""
    words = {"measure": "alignment", "guide": guide, "sigma": sigma, "towards": towards, **(about or {})}
    return Row(guide, training, None, {"sigma": sigma, "towards": towards}, n=n, block=50, task="aligned", about=words)
