"""The claims of *Robust Classification via a Single Diffusion Model* on CIFAR-10, the data of the paper; our own networks."""

__all__ = ["CLAIMS", "colour", "defence"]

from typing import Any

from rdc.experiments.cifar10 import MEDIUM, SMALL
from rdc.findings.claim import Claim
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side
from rdc.findings.sides import MARGIN, THREE

PAGE, SCALE = "notebooks/14_papers_data", "CIFAR-10, 32x32, networks of ours, trained mostly on JPEG copies"
BOTH = (SMALL, MEDIUM)


def colour(
    model: str = "RDC", gradient: Any = THREE, network: str = SMALL, N: int = 5, eps: str = "8/255", lm: str = "released",
    noise: str = "fixed",
) -> Side:  # fmt: skip
    """A defence under PGD with 20 steps, Linf; RDC with a reading of LM, under the union of its gradients."""
    words = {"model": model, "what": "attacked", "eps": eps, "noise": noise}
    words |= {"gradient": gradient, "N": N, "lm": lm} if model == "RDC" else {"gradient": "plain"}
    return Side("cifar10" if network == SMALL else "cifar10-medium", words)


def defence(model: str, threat: str = "Linf", outcome: str = "robust", attacks: Any = ("gradients", "all")) -> Side:
    """A defence of the suite under a threat, all gradients and attacks that were tried."""
    return Side("cifar10-suite", {"model": model, "threat": threat, "attacks": attacks}, outcome)


CLAIMS = (
    Claim(
        "A7c", "Table 1", "The diffusion classifier stays accurate under StAdv, on CIFAR-10.",
        "right after the attack against right before it, less five points, with a small denoiser",
        (Evidence(defence("dc", "StAdv"), defence("dc", "StAdv", "clean"), bound=MARGIN),), page=PAGE, scale=SCALE,
    ),
    Claim(
        "A8c", "Table 1", "RDC is more robust than adversarial training against the threat of the training, on CIFAR-10.",
        "RDC (LM as released) under the gradients that were run, two of our denoisers, against a network trained for Linf 8/255 "
        "in minutes, under restarts, nine targets, APGD and Square",
        tuple(Evidence(colour(network=n), defence("at-linf"), effect=0.0477) for n in BOTH), page=PAGE, scale=SCALE,
    ),
    Claim(
        "A9c", "Section 4.3", "RDC keeps its robustness against threats that it was not made for, on CIFAR-10.",
        "RDC under three gradients against the network trained for Linf, under L2 0.5 and StAdv",
        tuple(Evidence(defence("rdc", threat), defence("at-linf", threat)) for threat in ("L2", "StAdv")),
        page=PAGE, scale=SCALE,
    ),
    Claim(
        "A10c", "Table 1", "Likelihood maximisation in front of an undefended network makes it more robust, on CIFAR-10.",
        "the strongest gradient on LM + CNN against the CNN alone, Linf 8/255",
        (Evidence(defence("lm-cnn"), defence("cnn")),), page=PAGE, scale=SCALE,
    ),
    Claim(
        "A16c", "Table 2", "BPDA is as strong as the exact gradient, on CIFAR-10, the data of the claim.",
        "RDC keeps as many images under the exact gradient as under BPDA, less five points; LM as released with two denoisers, "
        "and clamped with the small one",
        tuple(
            Evidence(colour(gradient="exact", network=n, lm=lm), colour(gradient="bpda", network=n, lm=lm), bound=MARGIN)
            for n, lm in ((SMALL, "released"), (MEDIUM, "released"), (SMALL, "clamped"))
        ),
        page=PAGE, scale=SCALE,
    ),
    Claim(
        "A16d", "Section 4.4", "BPDA suffices for evaluating RDC, on CIFAR-10.",
        "RDC keeps as many images under all gradients that were run as under BPDA alone, less five points; two of our denoisers",
        tuple(Evidence(colour(network=n), colour(gradient="bpda", network=n), bound=MARGIN) for n in BOTH),
        page=PAGE, scale=SCALE,
    ),
    Claim(
        "A22c", "Table 5", "DiffPure gains by a diffusion classifier behind it, and RDC is more robust than both, on CIFAR-10.",
        "DiffPure + DC against DiffPure + CNN, and RDC against DiffPure + DC; Linf 8/255, all gradients that were tried",
        (
            Evidence(defence("diffpure-dc"), defence("diffpure")),
            Evidence(defence("rdc"), defence("diffpure-dc")),
        ),
        page=PAGE, scale=SCALE,
    ),
    Claim(
        "A31c", "Table 1", "Likelihood maximisation makes the diffusion classifier far more robust, by 40 points, on CIFAR-10.",
        "RDC (LM as released) under all gradients that were run against DC, at least 20 points, with two denoisers of ours",
        tuple(Evidence(colour(network=n), colour("DC", network=n), bound=0.2, effect=0.4) for n in BOTH),
        page=PAGE, scale=SCALE,
    ),
)  # fmt: skip
