"""Entries on attacks and evaluation, on the network with heads, and on other experiments of the RDC paper."""

__all__ = ["ENTRIES"]

from typing import Any

from rdc.findings.ledger import Effect, Entry
from rdc.findings.side import Side
from rdc.findings.sides import (
    AT_WORK,
    ATTACKS,
    BESIDE,
    HEADS,
    RANDOM,
    SIZE,
    TAUGHT,
    compared,
    heads,
    rdc,
    suite,
    trained,
)

AUDITED = "notebooks/05e_audit"


def on_rdc(attack: str, gradient: str = "smoothed 0.3") -> Side:
    """RDC under another attack than PGD."""
    return Side("rdc-attacks", {"attack": attack, "gradient": gradient})


def variant(attack: str) -> Side:
    """RDC under a variant of PGD, through blurred signs."""
    words = {"table": "gradient", "model": "RDC", "lm": "clamped", "N": 5, "gradient": "smoothed 0.3", "noise": "fixed"}
    return Side("rdc-gradient", {**words, "eps": 8 / 255, "attack": attack})


def random(model: str, quantity: str, **words: Any) -> Side:
    """A quantity of the gradients of a model."""
    return Side("gradient-randomness", {"model": model, **words}, quantity)


def purified(**words: Any) -> Side:
    """DiffPure before a network, under some gradients."""
    return Side("rdc-suite", {"model": "DiffPure+CNN", "norm": "Linf", **words})


def judged(protocol: str) -> Side:
    """RDC with fresh noise after an attack, judged by a protocol of :mod:`rdc.evaluate`."""
    return Side("ledger", {"entry": "ATT-2"}, f"robust {protocol}".strip())


SCRATCH = ("heads from scratch:", heads("wide, from scratch", "clean"))
ENTRIES = (
    Entry(
        "ATT-1", "H", "What AutoAttack stands for",
        "\"Evaluated with AutoAttack\" (Section 4.1).",
        "APGD on the DLR loss alone: no cross-entropy, no targets, no FAB, no Square (`tester/AutoAttack.py`, lines 19 to 43).",
        "`attacks=`; a robust accuracy here is that of the union of what was tried",
        (
            Effect(
                ("adversarial training under PGD:", trained(attacks="pgd")),
                ("with nine targets and Square:", trained()),
            ),
            Effect(("RDC under PGD:", variant("pgd")), ("under APGD on two losses:", variant("apgd"))),
        ),
        "Linf 8/255. RDC as clamped after each step, gradient through blurred signs.", ATTACKS,
    ),
    Entry(
        "ATT-2", "H", "One draw decides",
        "-",
        "An attack stops at the first success on one draw of the noise, and one other draw then judges; if that is right, "
        "the image counts as robust.",
        "`draws=` and `protocol=` of `rdc.evaluate.robust_accuracy`: a majority decides",
        tuple(
            Effect(("one draw judges:", judged("once")), (f"{name}:", judged(protocol)))
            for name, protocol in (
                ("a majority of twenty", ""), ("the worst of twenty", "resubmit"), ("an attacker who knows the noise", "known")
            )
        ),
        "RDC with fresh noise, Linf 8/255, through blurred signs. The page shows four ways to judge; `tests/test_evaluate.py` "
        "checks them against the binomial law.",
        AUDITED,
    ),
    Entry(
        "ATT-3", "M", "BPDA", "BPDA with the identity suffices (Section 4.4).",
        "As in the paper (`DiffusionLikelihoodMaximizer.py`), although the point where the gradient is taken has moved far.",
        "`gradient=\"bpda\"`, `\"exact\"` or `\"smoothed 0.3\"`",
        (
            Effect(("RDC under BPDA:", rdc(gradient="bpda")), ("exact:", rdc(gradient="exact"))),
            Effect(("RDC under BPDA:", rdc(gradient="bpda")), ("all three:", rdc())),
        ),
        "Linf 8/255, as released, claims A16 and A16b.", ATTACKS,
    ),
    Entry(
        "ATT-4", "M", "The exact gradient", "Table 2 compares it with BPDA, for one step of LM.",
        "Not in the release: its functions need the missing optimiser, or detach the graph.",
        "`gradient=\"exact\"`, in flat memory",
        (Effect(("one step, BPDA:", rdc("clamped", 1, "bpda")), ("exact:", rdc("clamped", 1, "exact"))),),
        "Linf 8/255, claim A16a.", ATTACKS,
    ),
    Entry(
        "ATT-5", "M", "The Lagrange attack", "Eq. 10, Table 2.",
        "Absent; an argument of that purpose adds zero (`DiffusionClassifier.py`, lines 258 to 269).", "`rdc.attack.lagrange`",
        (
            Effect(("PGD, BPDA:", rdc("clamped", gradient="bpda")), ("Lagrange:", on_rdc("lagrange", "bpda"))),
            Effect(("PGD, blurred signs:", rdc("clamped", gradient="smoothed 0.3")), ("Lagrange:", on_rdc("lagrange"))),
        ),
        "Linf 8/255, claim A17.", ATTACKS,
    ),
    Entry(
        "ATT-6", "H", "StAdv and the scale of the logits",
        "DC keeps all images under StAdv, RDC all but two of 512 (Table 1).",
        "The attack adds a penalty in fixed units to a margin that DC-4 makes a thousand times smaller, and returns its last "
        "iterate.",
        "`rdc.attack.stadv`: a loss without a scale, the best iterate",
        (
            Effect(("DC before StAdv:", suite("DC", "StAdv", "clean")), ("after it:", suite("DC", "StAdv"))),
            Effect(("RDC under BPDA:", Side("rdc-suite", {"model": "RDC", "norm": "StAdv", "gradient": "bpda"})),
                   ("all gradients that were tried:", suite("RDC", "StAdv"))),
        ),
        "Flow of 0.05. `tests/test_stadv.py` shows that small logits defeat the released attack and not ours.", BESIDE,
    ),
    Entry(
        "ATT-7", "M", "The baseline DiffPure", "PGD-200 with 10 averaged gradients, step 1/255, in Linf and L2.",
        "L2 only, 32 averaged gradients, no random start; the Linf run is not there (`DiffAttack.py`, lines 18 to 21).",
        "`build(\"diffpure\", t=0.1, gradient=\"exact\")`",
        (Effect(("BPDA:", purified(gradient="bpda")), ("exact:", purified(gradient="exact"))),),
        "DiffPure and a CNN, Linf 8/255.", BESIDE,
    ),
    Entry(
        "ATT-8", "M", "Randomness of gradients", "Cosines of ten gradients, mean of 100 images, also after averaging (Figure "
        "2a).",
        "One image, no averaging; the script of LM calls the map whose seed is set, so that its cosine is one "
        "(`ObfuscateGradient.py`).",
        "`noise=\"fresh\"`, `rdc.analyse`",
        (
            Effect(("cosine of two gradients, DiffPure + CNN:", random("DiffPure+CNN", "cosine 1")),
                   ("DC:", random("DC", "cosine 1", levels=None))),
            Effect(("RDC under BPDA:", random("RDC, BPDA", "cosine 1")), ("exact:", random("RDC, exact", "cosine 1"))),
        ),
        "", RANDOM,
    ),
    Entry(
        "ATT-9", "M", "The attack on features", "It keeps 90.04 % (Appendix B.2), more than the clean 89.85 %.",
        "It pulls the logits, which are negative losses, towards a small positive number, and so raises the likelihood of "
        "every class; 20 steps, without LM (`GuidedDiffusionClassifier.py`, lines 47 to 64).",
        "`rdc.attack.feature(variant=...)`",
        (Effect(("PGD, blurred signs:", rdc("clamped", gradient="smoothed 0.3")), ("features:", on_rdc("feature"))),),
        "Linf 8/255, claim A21. `tests/test_lagrange_feature.py` checks what the released variant does.", ATTACKS,
    ),
    Entry(
        "ATT-10", "M", "The size of gradients", "Table 4 compares mean absolute gradients.",
        "Commented out; the loss of the baselines is a mean over 32 images, that of RDC a mean over pixels: other units.",
        "`reduce=`; `rdc.analyse` has measures without units",
        (Effect(("mean absolute gradient, CNN:", random("CNN", "mean absolute")),
                ("RDC, BPDA:", random("RDC, BPDA", "mean absolute"))),),
        "Each in its own units, which is the point.", SIZE,
    ),
    Entry(
        "ATT-11", "M", "Which images", "512 random test images; the first 100 in ablations.",
        "Consecutive images; the demonstrations take 128 or 512.", "`Row(start=, n=)`", (),
        "Nothing to measure. At 512 images the 95 % interval of a rate is about eight points wide; every number here has its "
        "own.",
        AUDITED,
    ),
    Entry(
        "MH-1", "H", "Architecture of the heads", "The EDM network, with heads, taught by the conditional one (Appendix B.5).",
        "A deeper DDPM++ network of VP, with ten times the channels in its last convolution (`ncsnpp_multihead.py`).",
        "`denoiser=\"heads\"`",
        (
            Effect(("teacher:", compared("teacher", 0.1)), ("heads:", compared("heads", 0.1))),
            Effect(("teacher, levels from 0.35:", compared("teacher", 0.35)), ("heads:", compared("heads", 0.35))),
        ),
        "Clean images, networks of our size, claim A25.", AT_WORK,
    ),
    Entry(
        "MH-2", "M", "Levels of the heads", "As for DC.", "All 1 000 time steps of VP with weight 1, one noise for each step.",
        "`kind=\"vp\"`, `levels=1000`", (), "No stored rows with heads; DC-1 and DC-3 have the weights with one head.", HEADS,
    ),
    Entry(
        "MH-3", "M", "Training of the heads", "Algorithm 2, 100 epochs.", "Not released; the names of two files say 1 800 and "
        "3 050.",
        "`rdc.train`: distilled, from scratch, or with cross-entropy",
        (
            Effect(SCRATCH, ("distilled:", heads("wide, distilled", "clean"))),
            Effect(SCRATCH, ("one head:", heads("single head", "clean"))),
        ),
        "Digits, clean, claim A23.", TAUGHT,
    ),
    Entry(
        "EXP-1", "M", "Numbers that are no counts", "Among others 75.67, 89.85 and 58.40 % in Tables 1 and 9.",
        "-", "every accuracy comes with its count", (),
        "Arithmetic: no count of 512 images (or of 256 in Table 9) rounds to them.",
    ),
    Entry(
        "EXP-3", "M", "CIFAR-100", "Table 8: RDC and baselines on 128 images.",
        "A script for clean accuracy only; the checkpoints it names are not the published ones.", "`load(\"folder:PATH\")`", (),
        "Not measured: the networks are not here.",
    ),
)  # fmt: skip
