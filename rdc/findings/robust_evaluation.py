"""The claims of *Robust Classification via a Single Diffusion Model* on gradients, attacks, heads and likelihood."""

__all__ = ["CLAIMS"]

import math

from rdc.findings.claim import Claim, Proof
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side
from rdc.findings.sides import (
    ALL,
    AT_WORK,
    ATTACKS,
    BESIDE,
    EXACT,
    FLOOR,
    GAINS,
    MAIN,
    MARGIN,
    MOST,
    OOD,
    RANDOM,
    SIXTEEN,
    SIZE,
    TAUGHT,
    THREE,
    averaged,
    compared,
    corrupted,
    heads,
    lab,
    rdc,
    released,
    strongest,
)

CLAIMS = (
    Claim(
        "A16", "Table 2", "BPDA is as strong as the exact gradient.",
        "RDC under the exact gradient keeps as many images as under BPDA, less five points; five steps of LM",
        (
            Evidence(rdc(gradient="exact"), rdc(gradient="bpda"), bound=MARGIN),
            Evidence(rdc("clamped", gradient="exact"), rdc("clamped", gradient="bpda"), bound=MARGIN),
            Evidence(
                rdc("clamped", gradient="exact", eps=SIXTEEN), rdc("clamped", gradient="bpda", eps=SIXTEEN), bound=MARGIN,
            ),
        ),
        page=ATTACKS,
    ),
    Claim(
        "A16a", "Table 2", "… for one step of LM, as it was measured.",
        "the same with one step, where both gradients are blind to the steps of the sign",
        (Evidence(rdc("clamped", 1, "exact"), rdc("clamped", 1, "bpda"), bound=MARGIN),), page=ATTACKS,
    ),
    Claim(
        "A16b", "Section 4.4", "BPDA suffices for evaluating RDC.",
        "RDC (LM as released) under the union of the gradients keeps as many images as under BPDA, less five points",
        (Evidence(rdc(), rdc(gradient="bpda"), bound=MARGIN),), page=ATTACKS,
    ),
    Claim(
        "A16e", "Released code", "… with the weights of the released code, too.",
        "the same, LM as released; eight levels spread evenly, as there, but from 0.1 on",
        (Evidence(released("RDC", THREE), released("RDC", "bpda"), bound=MARGIN),), page=ATTACKS,
    ),
    Claim(
        "A17", "Table 2", "The Lagrange attack is no stronger than BPDA.",
        "RDC under the Lagrange attack keeps as many images as under PGD with the same gradient, less five points",
        tuple(
            Evidence(Side("rdc-attacks", {"attack": "lagrange", "gradient": g}), rdc("clamped", gradient=g), bound=MARGIN)
            for g in ("bpda", "smoothed 0.3")
        ),
        page=ATTACKS,
    ),
    Claim(
        "A18", "Figure 2a", "The gradients of DC and RDC are more than 640 times less random than those of DiffPure.",
        "how many gradients make noise and signal equal, in powers of two, DiffPure against each of the two, on images whose "
        "signal is seen",
        tuple(
            Evidence(averaged("DiffPure+CNN"), averaged(model), bound=math.log2(640), effect=math.log2(640))
            for model in ("DC", "RDC, BPDA")
        ),
        page=RANDOM,
    ),
    Claim(
        "A19", "Table 4", "Gradients of RDC are as large as those of adversarially trained networks.",
        "measured without an interval", page=SIZE,
    ),
    Claim(
        "A20", "Appendix B.2", "Averaging gradients over the noise (EOT) does not help an attacker.",
        "RDC with fresh noise under ten averaged gradients keeps as many images as under one, less five points",
        (
            Evidence(
                Side("rdc-gradient", {"table": "eot", "gradient": "smoothed 0.3", "eot": 10}),
                Side("rdc-gradient", {"table": "eot", "gradient": "smoothed 0.3", "eot": 1}), bound=MARGIN,
            ),
        ),
        page=ATTACKS,
    ),
    Claim(
        "A21", "Appendix B.2", "An attack on features is weaker than BPDA.",
        "RDC keeps more images under it than under PGD with the same gradient",
        tuple(
            Evidence(Side("rdc-attacks", {"attack": "feature", "gradient": g}), rdc("clamped", gradient=g))
            for g in ("bpda", "smoothed 0.3")
        ),
        page=ATTACKS,
    ),
    Claim(
        "A22", "Table 5", "DiffPure gains by a diffusion classifier behind it, and RDC is more robust than both.",
        "Linf 8/255: DiffPure + DC against DiffPure + CNN, the union of attacks; and RDC (LM as released) against DiffPure + DC, "
        "the exact gradient and BPDA, which both have met. RDC alone has met smoothed gradients",
        (
            Evidence(strongest("diffpure-dc"), strongest("diffpure")),
            Evidence(rdc(gradient=("exact", "bpda")), strongest("diffpure-dc", "after bpda")),
        ),
        page=BESIDE,
    ),
    Claim(
        "A23", "Appendix B.1", "Heads that are trained from scratch classify badly (by 33 points); they must be distilled.",
        "digits; a network with one head, and distilled heads, against heads from scratch with the same training",
        tuple(
            Evidence(heads(how, "clean"), heads("wide, from scratch", "clean"), effect=0.33)
            for how in ("single head", "wide, distilled")
        ),
        page=TAUGHT, scale="digits, 8x8",
    ),
    Claim(
        "A24", "Appendix B.1", "Heads trained with cross-entropy have no robustness.",
        "digits, images kept under PGD; distilled heads against ones of the same size trained with cross-entropy",
        (Evidence(heads("wide, distilled", "robust"), heads("wide, cross-entropy", "robust")),), page=TAUGHT, scale="digits, 8x8",
    ),
    Claim(
        "A25", "Appendix B.1", "Distilled heads keep the accuracy of their teacher.",
        "clean images; the shipped heads against their teacher at the same levels, less five points",
        tuple(Evidence(compared("heads", low), compared("teacher", low), bound=MARGIN) for low in (0.1, 0.35)), page=AT_WORK,
    ),
    Claim(
        "A25a", "Appendix B.1", "… and its robustness (80.07 and 75.67 %).",
        "digits, images kept under PGD; distilled heads against a single head, less five points",
        (Evidence(heads("wide, distilled", "robust"), heads("single head", "robust"), bound=MARGIN),), page=AT_WORK,
        scale="digits, 8x8",
    ),
    Claim("A26", "Figure 4", "The network with heads generates as well as its teacher.", "see the chapter", page=AT_WORK),
    Claim(
        "A27", "Appendix A.5", "Descending the diffusion loss moves an image towards higher likelihood.",
        "the exact log p(x) under the optimal denoiser rises for over 3/4 of the images, at every noise level",
        lab("log p(z)", ("small steps", *MAIN), ALL, MOST), page=EXACT,
    ),
    Claim(
        "A28", "Figure 3", "Bits per dimension tell blurred and noisy images from clean ones.",
        "the rank by bits among clean images rises by over a quarter from an image to its corruption, severities 3 and 5",
        tuple(Evidence(corrupted(name), corrupted("none"), bound=0.25) for name in ("gaussian-noise", "gaussian-blur")),
        page=OOD,
    ),
    Claim(
        "A28a", "Figure 3", "… but not fog and frost.", "the same, by less than a quarter, for corruptions of our own",
        tuple(Evidence(corrupted("none"), corrupted(name), bound=-0.25) for name in ("fog", "frost")), page=OOD,
    ),
    Claim(
        "A29", "Appendix B.2", "The robustness does not come from gradients that are random.",
        "RDC with noise that is fixed and known keeps as many images as with fresh noise under up to ten averaged gradients, "
        "less five points",
        (Evidence(rdc("clamped", gradient=THREE), rdc("clamped", gradient=THREE, noise="fresh", eot=(1, 5, 10)), bound=MARGIN),),
        page=ATTACKS,
    ),
    Claim(
        "A30", "Appendix A.4", "The diffusion loss is the energy of a model with nearly the same normaliser in all classes.",
        "with the weights of the bound the normalisers differ by half a nat a pixel at most",
        proof=Proof("holds", "tests/test_energy.py::test_with_the_weights_of_the_bound_classes_differ_by_less_than_half_a_nat"),
        page=EXACT,
    ),
    Claim(
        "A30a", "Released code", "… with a weight of 1, too.",
        "they differ by more, so that the softmax of the losses is another posterior",
        proof=Proof("does not hold", "tests/test_energy.py::test_with_other_weights_they_do_differ"), page=EXACT,
    ),
    Claim(
        "A31", "Table 1", "Likelihood maximisation makes the diffusion classifier more robust (Linf 8/255).",
        "RDC (LM as released) under all gradients against DC, under PGD and under the union of attacks",
        tuple(Evidence(a, b) for a, b in GAINS), page=FLOOR,
    ),
    Claim(
        "A31a", "Table 1", "… by 40 points.", "the same differences against at least 20 points",
        tuple(Evidence(a, b, bound=0.2, effect=0.4) for a, b in GAINS), page=FLOOR,
    ),
    Claim(
        "A31b", "beyond the paper", "… and still does, if the classifier has a floor under its levels.",
        "RDC against DC, both with levels from 1 on, which were chosen on other images; all attacks",
        (Evidence(strongest("rdc-floor"), strongest("dc-floor")),), page=FLOOR,
    ),
    Claim(
        "A32", "Footnote 1", "A stronger attack lowers DiffPure from 71.29 to 44.53 %.",
        "no attack of ours is the published one", page=BESIDE,
    ),
    Claim(
        "A33", "Tables 8 and 9", "RDC is robust on CIFAR-100 and on Restricted ImageNet, too.",
        "no network of ours is for these data; a reader's own images go through the same commands", page="book/experiments",
    ),
)  # fmt: skip
