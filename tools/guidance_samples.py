"""Guided samples of tools/guidance.py, kept in runs/guidance/.

An image follows from its setting and its seed; images are drawn in batches of fixed size and kept as bytes, as real images are.
So a killed run continues at the last batch, the first n images of a larger run are those of a smaller one, and two settings
share the noise of each image: their differences are paired.
"""

import hashlib
import io
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from guidance_networks import RUNS
from torch import Tensor

from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser, locate, read_checkpoint
from rdc.guide.classifier import SHIPPED, load_classifier
from rdc.guide.guides import ClassifierGuide, DiffusionGuide, Guide, RatioGuide
from rdc.guide.plan import Plan, edm_path, vp_path
from rdc.guide.sampling import sample
from rdc.runs.record import write_atomic

BATCH, APART = 100, 10_000  # images drawn together; seeds between two repetitions
HEADS, SINGLE = "fashion-mini-multihead", "fashion-mini"
TRAINED = ("vanilla", "robust", "wide")  # shipped classifiers
#: The paper's chain and form of guidance, with fewer steps and with its 250; and a flow that is better with fewer evaluations.
PLANS = {
    "ddpm": Plan(vp_path(25), "ancestral", "ddpm", "posterior", clip=True),
    "ddpm250": Plan(vp_path(250), "ancestral", "ddpm", "posterior", clip=True),
    "heun": Plan(edm_path(9), "heun", "score"),
}


@dataclass(frozen=True)
class Setting:
    """How images are made.

    Attributes:
        guide: ``none``, one of ``TRAINED``, ``classifier-free``, ``diffusion classifier``, or a file of weights.
        scale: Of the guide; its unit depends on the form.
        plan: One of ``PLANS``.
        conditional: Whether the denoiser knows the class.
        dtype: Of denoiser and guide; by default the fast one.
    """

    guide: str = "none"
    scale: float = 0.0
    plan: str = "heun"
    conditional: bool = True
    dtype: str = ""

    def key(self) -> str:
        """A name of settings and weights, for a folder."""
        p = PLANS[self.plan]
        how = [[round(s, 6) for s in p.path.tolist()], p.method, p.form, p.variance, p.clip]
        names = [locate(SINGLE)] + ([locate(HEADS)] if self.guide == "diffusion classifier" else [])
        trained = [weights(p, "denoiser") for p in names]
        trained += [weights(path, "classifier")] if (path := guide_path(self.guide)) else []
        return digest([asdict(self), how, trained, str(self.type())])

    def type(self) -> torch.dtype:
        """Of the networks."""
        return getattr(torch, self.dtype) if self.dtype else fast_dtype()

    def cost(self) -> dict[str, int]:
        """Evaluations of the denoiser for an image, those for classifier-free guidance too, and gradients of the guide."""
        p = PLANS[self.plan]
        looks = 2 * len(p.path) - 3 if p.method == "heun" else len(p.path) - 1
        free = self.guide == "classifier-free"
        return {"nfe": looks * (3 if free else 1), "guide gradients": 0 if free or self.guide == "none" else looks}


def digest(what: Any) -> str:
    """A short hash of JSON."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@cache
def weights(path: Path, kind: str) -> str:
    """The start of the hash of a network."""
    return read_checkpoint(path, kind)[1]["tensors_sha256"][:12]


def guide_path(guide: str) -> Path | None:
    """The file of a classifier that guides."""
    if guide in TRAINED:
        return SHIPPED / f"fashion-mini-{guide}.safetensors"
    return RUNS / "threats" / guide if guide.endswith(".safetensors") else None


@cache
def build(guide: str, dtype: torch.dtype) -> Guide | None:
    """A guide by name."""
    if guide == "none":
        return None
    if guide == "classifier-free":
        return RatioGuide(load_denoiser(SINGLE, dtype=dtype))
    if guide == "diffusion classifier":
        return DiffusionGuide(load_denoiser(HEADS, dtype=dtype), count=2, chunk=2560)
    return ClassifierGuide(load_classifier(guide_path(guide) or guide, dtype=dtype, data="fashion-mini"))


def labels(n: int, classes: int = 10) -> Tensor:
    """Wanted classes: they take turns."""
    return torch.arange(n) % classes


def draw(setting: Setting, seeds: range) -> Tensor:
    """Images in [0, 1] for some seeds."""
    dtype, plan = setting.type(), PLANS[setting.plan]
    plan = Plan(plan.path, plan.method, plan.form, plan.variance, setting.conditional, plan.clip)
    y = labels(len(seeds))
    return sample(load_denoiser(SINGLE, dtype=dtype), y, seeds, plan, build(setting.guide, dtype), setting.scale, BATCH).x


def drawn(setting: Setting, first: int, n: int) -> tuple[Tensor, float]:
    """The ``n`` images of the seeds from ``first``, rounded to bytes, and processor time per image; stored ones are read.

    Raises:
        ValueError: if ``n`` is no multiple of the classes, so that they would not be equally frequent.
    """
    if n < 1 or n % 10:
        raise ValueError(f"the number of images must be a multiple of 10, the number of classes, got {n}")
    path = RUNS / "samples" / setting.key() / f"{first}.npz"
    x, spent = np.zeros((0, 1, 28, 28), np.uint8), np.zeros(0)
    if path.exists():
        with np.load(path) as stored:
            x, spent = stored["x"], stored["seconds"]
    whole = len(x) - len(x) % BATCH if len(x) < n else len(x)
    x, spent = x[:whole], spent[:whole]
    while len(x) < n:
        clock, seeds = time.process_time(), range(first + len(x), first + min(len(x) + BATCH, n))
        new = (255 * draw(setting, seeds)).round().to(torch.uint8).numpy()
        each = (time.process_time() - clock) / len(seeds)
        x, spent = np.concatenate([x, new]), np.concatenate([spent, np.full(len(seeds), each)])
        buffer = io.BytesIO()
        np.savez(buffer, x=x, seconds=spent)
        write_atomic(path, buffer.getvalue())
    return torch.from_numpy(x[:n]).float() / 255, float(spent[:n].mean())
