"""The base classifiers of tools/certificates.py by their settings."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rdc.denoise.checkpoints import locate, read_checkpoint

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "certify"
SEED, SIGMAS = 0, (0.25, 0.5, 1.0)
INDEXED = ("EPNDC", "APNDC", "Cascade", "Race")
CHECKPOINTS = {"heads": "fashion-mini-multihead", "single head": "fashion-mini"}
LEARN = range(
    300, 600
)  # images outside fashion-mini from which the rounds of a race are learned; settings are compared on others
LATER = ("gap", "first", "seed", "sizes", "gaps", "keep")  # left out of the key where they are None


@dataclass(frozen=True)
class Base:
    """A base classifier by its settings.

    Attributes:
        base: ``EPNDC``, ``APNDC``, ``Cascade`` (EPNDC with heads, then with the single head), ``Race`` (levels of the reference,
            the first of them with heads), ``Carlini``, ``Cohen`` or ``DC, clipped``.
        sigma: Smoothing noise, image units.
        levels: Noise levels T of a diffusion classifier.
        denoiser: ``heads`` or ``single head``.
        form: Form of EPNDC, variant of APNDC.
        antithetic: Whether each sample of inner noise comes with its mirror image.
        coupling: How classes and levels share inner noise.
        noise: Inner noise, ``fixed`` or ``fresh`` for every draw.
        gap: Of a cascade, nats.
        first: Levels of the heads of a cascade, where they are not those of the single head.
        seed: Owner of the inner noise, where it is not ``SEED``.
        sizes: Of a race: levels of the heads, then of the single head up to each later round.
        gaps: Of a race, nats, for all rounds but the last.
        keep: Of a race, classes that are left at most after these rounds.
    """

    base: str
    sigma: float
    levels: int | None = None
    denoiser: str | None = None
    form: str | None = None
    antithetic: bool = False
    coupling: str = "shared"
    noise: str = "fixed"
    gap: float | None = None
    first: int | None = None
    seed: int | None = None
    sizes: tuple[int, ...] | None = None
    gaps: tuple[float, ...] | None = None
    keep: tuple[int, ...] | None = None

    def key(self) -> str:
        """A name of settings and weights, for files."""
        both = self.base in ("Cascade", "Race")
        names = CHECKPOINTS.values() if both else [CHECKPOINTS[self.denoiser]] if self.denoiser else []
        trained = [read_checkpoint(locate(name), "denoiser")[1]["tensors_sha256"][:12] for name in names]
        settings = {k: v for k, v in asdict(self).items() if k not in LATER or v is not None}
        if self.base == "Race":
            settings["learned from"] = [LEARN.start, LEARN.stop]
        weights = trained[0] if len(trained) == 1 else trained or None
        return hashlib.sha256(json.dumps([settings, weights]).encode()).hexdigest()[:16]


def epndc(sigma: float, count: int, denoiser: str = "heads", form: str = "quadrature", mirror: bool = True, **more: Any) -> Base:
    """An exact-posterior classifier."""
    return Base("EPNDC", sigma, count, denoiser, form, mirror, **more)


def apndc(sigma: float, count: int, denoiser: str = "heads", form: str = "ensemble", **more: Any) -> Base:
    """An approximated-posterior classifier."""
    return Base("APNDC", sigma, count, denoiser, form, **more)


def cascade(sigma: float, count: int = 3, gap: float = 1.0, first: int | None = None) -> Base:
    """Heads first, then the single-head network for the classes within ``gap`` of the best, three at most."""
    return Base("Cascade", sigma, count, None, "quadrature", True, gap=gap, first=first)


def race(sigma: float, sizes: tuple[int, ...], gaps: tuple[float, ...], keep: tuple[int, ...]) -> Base:
    """Levels of the reference, with its noise: ``sizes[0]`` with heads, then those of the single-head network."""
    return Base("Race", sigma, 124, None, "fixed", sizes=sizes, gaps=gaps, keep=keep)


#: Few rounds and wide ones; chosen on the images that the part "levels" uses.
RACES = tuple(
    race(0.25, (4, 4, 10, 20, 40), gaps, keep)
    for gaps, keep in (
        ((2.5, 1.0, 0.8, 0.5), (2, 2, 2, 2)),
        ((3.0, 1.0, 0.8, 0.5), (4, 3, 2, 2)),
        ((3.0, 2.0, 1.6, 1.0), (4, 3, 2, 2)),
    )
)


def reference(sigma: float, published: bool = False, denoiser: str = "single head", **more: Any) -> Base:
    """What a fast classifier is compared with: 124 levels, one evaluation for each class.

    EPNDC with the chain of its bound; or, as published, APNDC with 1 + 124 K evaluations.
    """
    if published:
        return apndc(sigma, 124, denoiser, **more)
    return epndc(sigma, 124, denoiser, "fixed", False, **more)
