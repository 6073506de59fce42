"""Entries on noised diffusion classifiers and their certificates."""

__all__ = ["ENTRIES"]

from typing import Any

from rdc.findings.certified import CERTIFIED, FACTORS, INNER, LIPSCHITZ, NOISED, SIFT, SMOOTHING
from rdc.findings.ledger import Effect, Entry, pair
from rdc.findings.side import Side


def noisy(outcome: str = "right", **words: Any) -> Side:
    """A base classifier on one noisy copy of each image, at smoothing noise 0.25."""
    return Side("certificates-levels", {"sigma": 0.25, **words}, outcome)


def heads(base: str, levels: int, form: str) -> Side:
    """A base classifier of the network with heads."""
    return noisy(base=base, levels=levels, form=form, denoiser="heads", noise="shared")


def sift(rule: str, base: str) -> Side:
    """The share of evaluations that a rule saves, ten classes and one head."""
    return Side("certificates-sift", {"rule": rule, "base": base, "denoiser": "single head"}, "saved")


ENTRIES = (
    Entry(
        "NDC-1", "H", "Three classifiers called APNDC",
        "A bound for the noisy image, with an approximate posterior.",
        "Three variants; the script that certifies takes the one that denoises once and then classifies the result "
        "(`APNDCEnsemble`, `NDC.py`, lines 182 to 209).",
        "`build(\"apndc\", variant=\"ensemble\")`, `\"correct\"` or `\"condition-on-y\"`",
        tuple(
            Effect((f"ensemble, {t} levels:", heads("APNDC", t, "ensemble")), ("correct:", heads("APNDC", t, "correct")))
            for t in (8, 16)
        ),
        "Noisy images, smoothing noise 0.25.", INNER,
    ),
    Entry(
        "NDC-2", "M", "One network or two", "One off-the-shelf diffusion model (Abstract).",
        "APNDC loads two, an unconditional and a conditional one (`APNDC_certify.py`, lines 29 to 31).",
        "`variant=\"condition-on-y\"` asks the conditional one for both",
        (
            Effect(("ensemble:", heads("APNDC", 8, "ensemble")), ("condition-on-y:", heads("APNDC", 8, "condition-on-y"))),
        ),
        "Noisy images, smoothing noise 0.25, 8 levels. Our network answers with and without a class.", INNER,
    ),
    Entry(
        "NDC-3", "H", "Levels that EPNDC leaves out", "All levels above the noise.",
        "The first five are left out, `count = 5` (`NDC.py`, lines 143 to 145); the first has an infinite weight, the others "
        "carry a large part of the loss.",
        "`build(\"epndc\", form=\"fixed\")` or `\"released\"`",
        (
            Effect(
                ("124 levels:", noisy(base="EPNDC", levels=124, form="fixed", denoiser="heads", noise="shared")),
                ("without the first five:", noisy(base="EPNDC", levels=124, form="released", denoiser="heads", noise="shared")),
            ),
        ),
        "Noisy images, smoothing noise 0.25.", NOISED,
    ),
    Entry(
        "NDC-4", "M", "The weights of EPNDC", "Those of the bound.",
        "Those of the bound times the EDM weight and the cube of the level.",
        "`build(\"epndc\", weight=\"elbo\")`, `\"edm\"` or `\"edm-released\"`",
        tuple(
            pair("NDC-4", "elbo", other, ("weights of the bound:", f"{name}:"), "right")
            for other, name in (("edm", "EDM"), ("edm-released", "EDM as released"))
        ),
        "Noisy images, smoothing noise 0.25, 124 levels. `tests/test_noised.py` checks that only the first bound a likelihood.",
        NOISED,
    ),
    Entry(
        "NDC-7", "H", "Sift and refine", "Sifting saves evaluations at no loss (Section 3.4).",
        "The sift denoises at level 0.5 whatever the smoothing noise, and a fixed threshold of 5e-5 stands in the place of "
        "the argument (`NDCSiftRefine.py`, lines 16 and 88).",
        "`rule=`: Threshold, Leader or Paired ({py:mod}`rdc.early_exit`)",
        tuple(
            Effect((f"saved by a threshold, {base}:", sift("Threshold", base)), ("by paired differences:", sift("Paired", base)))
            for base in ("EPNDC", "APNDC")
        ),
        "Shares of the evaluations; all rules kept the answer on these images. Thresholds chosen on other images.", SIFT,
    ),
    Entry(
        "NDC-8", "H", "Counts times ten", "-",
        "Scripts draw 10 000, 1 000 or, for ImageNet, 100, and then certify counts multiplied by 10 and 100; a comment at "
        "one of them says that this is not what the paper shows.",
        "none: a certificate here is of the draws that were made", (),
        "A formula, not an experiment: the page puts the radius of both counts side by side.", SMOOTHING,
    ),
    Entry(
        "NDC-9", "M", "What a certificate costs", "-",
        "More than twelve million evaluations for an image; a user reports half a day for one (issue 2 of the repository, "
        "2025-04-02, not answered in what was read).",
        "heads, few levels, `build(\"race\")`",
        (
            Effect(
                ("evaluations a draw, 124 levels:", Side("certificates-full", {"reference": "APNDC"}, "reference passes")),
                ("race:", Side("certificates-full", {"reference": "APNDC"}, "passes")),
            ),
        ),
        "The page compares the radii, too.", FACTORS,
    ),
    Entry(
        "NDC-10", "M", "Baselines of the certificates", "Denoising before a classifier, networks trained on noise.",
        "The network time is one step off, strided sampling takes the noise of the wrong step, ImageNet radii are in units "
        "of images of 256 pixels a side (`DiffPure/RS.py`, `ddim.py`).",
        "`build(\"carlini\")`, `build(\"cohen\")`",
        (
            Effect(("denoise, then a network:", noisy(base="Carlini")), ("trained on noise:", noisy(base="Cohen"))),
        ),
        "Noisy images, smoothing noise 0.25, as we build them.", CERTIFIED,
    ),
    Entry(
        "LIP-1", "H", "The Lipschitz constant", "Theorem 3.1.",
        "The mean over the levels of a bound in the place of their sum (`DiffusionAsClassifierDirectCertify.py`, lines 21 to "
        "30), and a margin from one draw of the noise.",
        "{py:mod}`rdc.certify.lipschitz`: another constant, and a confidence bound of the margin", (),
        "Proved: `tests/test_lipschitz.py` has a slope that exceeds the constant of the released code, and one that none exceeds "
        "(claims B1 and B1a).", LIPSCHITZ,
    ),
)  # fmt: skip
