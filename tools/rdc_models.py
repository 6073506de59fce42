"""The defences of tools/rdc_attacks.py, built from a job, and what they cost."""

import time
from functools import cache
from itertools import product
from typing import Any

import torch
from rdc_jobs import Job, rdc
from torch import nn

from rdc.classify import RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.data import load
from rdc.denoise import fast_dtype
from rdc.denoise.checkpoints import load_denoiser, locate, read_checkpoint
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier

COUNT, SIGMA_MIN, PURIFY_STEPS = 8, 0.1, 10


@cache
def parts(single: bool) -> tuple[nn.Module, nn.Module, Any]:
    """Denoiser, reference network and images."""
    denoiser = load_denoiser("fashion-mini" if single else "fashion-mini-multihead", dtype=fast_dtype())
    network = train_classifier(load("fashion-mini", "train"), 6, batch=64, lr=5e-3, width=16, seed=0)
    return denoiser, network, load("fashion-mini")


def build(job: Job) -> nn.Module:
    """The defence of a job."""
    single = job.model.endswith("single-head")
    denoiser, network, _ = parts(single)
    chosen = levels("elbo", COUNT, sigma_min=SIGMA_MIN)
    noise = "fresh" if job.noise == "fresh" else job.coupling
    dc = DiffusionClassifier(denoiser, chosen, noise=noise, draws=job.draws, chunk=256 if single else 2560)
    back = network if "CNN" in job.model else dc
    name = job.model.removesuffix(" single-head")
    if name in ("CNN", "DC"):
        return back
    if name.startswith("DiffPure"):
        return DiffPure(Purify(denoiser, steps=PURIFY_STEPS, noise=job.noise), back, gradient=job.gradient)
    lm = LikelihoodMaximization(denoiser, **{**dict(job.lm), "noise": job.noise})
    if job.gradient == "transfer":
        return RDC(lm, back)
    if job.gradient.startswith("smoothed"):
        return RDC(lm.smoothed(float(job.gradient.split()[1])), back, gradient="exact")
    return RDC(lm, back, gradient=job.gradient)


@cache
def weights(model: str) -> str:
    """Which network decides the numbers of a model: the start of the hash of its checkpoint.

    The likelihood maximisation and the purification in front of a CNN use the unconditional head only, which is the teacher.
    """
    if model == "CNN":
        return ""
    teacher = model.endswith(("single-head", "+CNN"))
    return read_checkpoint(locate("fashion-mini" if teacher else "fashion-mini-multihead"), "denoiser")[1]["tensors_sha256"][:12]


COSTS = {
    "CNN": Job("cost", "CNN"),
    "LM+CNN": rdc("cost", "bpda", model="LM+CNN"),
    "LM+CNN, all": rdc("cost", "bpda", "released, all", model="LM+CNN", timesteps="all", count=COUNT),
    "DiffPure+CNN": Job("cost", "DiffPure+CNN", "exact"),
    "DC single-head": Job("cost", "DC single-head"),
    "DC": Job("cost", "DC"),
    "RDC single-head": rdc("cost", "bpda", model="RDC single-head"),
    "RDC": rdc("cost", "bpda"),
}


def costs(n: int = 16, rounds: int = 3) -> list[dict[str, Any]]:
    """Seconds an image to classify, the best of several rounds in turns, and network evaluations: forward, and with gradient."""
    models, found = {name: build(job) for name, job in COSTS.items()}, []
    x = parts(False)[2].x[:n]
    best = dict.fromkeys(models, float("inf"))
    with torch.no_grad():
        for _, (name, model) in product(range(rounds), models.items()):
            clock = time.perf_counter()
            model(x)
            best[name] = min(best[name], (time.perf_counter() - clock) / n)
    for name, model in models.items():
        back = getattr(model, "classifier", model)
        forward = getattr(back, "evaluations", 1) + getattr(getattr(model, "purify", None), "evaluations", 0)
        steps = model.lm.evaluations if hasattr(model, "lm") else 0
        row = {"table": "cost", "model": name, "nfe": [forward, steps], "seconds_an_image": best[name], "n": n, "rounds": rounds}
        found.append({**row, "N": getattr(getattr(model, "lm", None), "steps", None), "threads": torch.get_num_threads()})
    return found
