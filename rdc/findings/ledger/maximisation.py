"""Entries on likelihood maximisation (Algorithm 1 of the RDC paper)."""

__all__ = ["ENTRIES"]

from rdc.findings.ledger import Effect, Entry, pair
from rdc.findings.side import Side
from rdc.findings.sides import LM, PARTS, THREE, rdc, setting


def optimiser(title: str) -> Side:
    """RDC with an update, five steps that move an image as far as the released ones do, under the exact gradient."""
    return setting(table="optimiser", lm=title, gradient="exact")


def levels(low: float, high: float) -> tuple[str, Side]:
    """RDC with a range of noise levels, and what it is called."""
    return f"{low} to {high}:", setting(table="sigma", sigma=[low, high])


ENTRIES = (
    Entry(
        "LM-1", "H", "Algorithm 1 to the letter",
        "The gradient is divided by its L1 norm, step 0.1, momentum 1, five steps.",
        "Another update, see LM-2. With the printed one no pixel can move by more than a fraction of a grey level, so that "
        "the budget never acts.",
        "`lm=\"printed\"`; `lm=\"mean-l1\"`, `lm=\"mi-fgsm\"`: the readings with steps that are seen",
        (Effect(("steps by the size of the gradient:", optimiser("literal")), ("released Adam:", optimiser("adam"))),),
        "Both with steps that move an image equally far, exact gradient. `tests/test_likelihood.py` proves the bound on the "
        "printed one.",
        PARTS,
    ),
    Entry(
        "LM-2", "H", "Adam without a budget",
        "A ball of radius 8/255.",
        "Adam with rate 0.1 in [-1, 1]: the first step moves every pixel by 12.75/255. The code clamps the L2 distance at a "
        "radius larger than the diameter of the cube (`EDMLM.py`, lines 17 to 52); the authors say that the clamp is never "
        "reached (issue 2).",
        "`lm=\"released\"` or `lm=\"mi-fgsm\"`; `budget=`",
        (Effect(("signs in the budget:", rdc("mi-fgsm")), ("released:", rdc())),), "Linf 8/255, all gradients that were "
        "tried.", PARTS,
    ),
    Entry(
        "LM-3", "H", "A seed that is set inside",
        "More randomness smooths the landscape (Appendix B.2); averaging over 1, 5 or 10 draws gives one number.",
        "`set_seed(1)` at every call (`EDMLM.py`, line 26): the map is deterministic, and the generators of the attack start "
        "again with it, so that restarts begin at one point.",
        "`noise=\"fixed\"` or `\"fresh\"`, with generators of their own for attack and defence",
        (
            Effect(
                ("fixed noise:", rdc("clamped", gradient=THREE)),
                ("fresh noise, up to 10 averaged gradients:", rdc("clamped", gradient=THREE, noise="fresh", eot=(1, 5, 10))),
            ),
        ),
        "Linf 8/255, claim A29.", PARTS,
    ),
    Entry(
        "LM-4", "M", "The loss inside",
        "All time steps, with the weights of the bound (Eq. 8).", "One level, uniform in [0.4, 0.6], weight 1.",
        "`sigma=`",
        tuple(
            Effect(levels(0.4, 0.6), levels(*others)) for others in ((0.1, 0.2), (0.8, 1.2))
        ),
        "Linf 8/255, two gradients.", PARTS,
    ),
    Entry(
        "LM-5", "M", "All levels at each step",
        "LM (1+NT) keeps 2.34 %, one level 71.68 %.",
        "The method for all levels transforms the image twice, clamps [-1, 1] at 0, and stops with an error at its second "
        "step (`EDMLM.py`, lines 87 to 120).",
        "`timesteps=\"one\"` or `\"all\"`",
        (
            Effect(
                ("one level:", setting(table="timesteps", timesteps="one")),
                ("the mean of four:", setting(table="timesteps", timesteps="all")),
            ),
        ),
        "Linf 8/255, two gradients, claim A12.", PARTS,
    ),
    Entry(
        "LM-6", "M", "The class that VP is told",
        "The unconditional network.", "The conditional one with class 0, which is *airplane* (`DiffusionClassifier.py`, lines "
        "241 and 287).",
        "`build(\"rdc\", label=0)`",
        tuple(
            pair("LM", "released", "label 0", (f"{when} the attack, without a class:", "class 0:"), outcome)
            for when, outcome in (("before", "clean"), ("after", "robust"))
        ),
        "Linf 8/255, through blurred signs; class 0 is *T-shirt* here.", PARTS,
    ),
    Entry(
        "LM-7", "M", "Restricted ImageNet",
        "The same settings as for CIFAR-10.",
        "A second network, of 256 by 256 pixels, maximises, and the classifier sees 64 by 64 (`EDMRDCImageNet.py`, lines 35 "
        "to 38).",
        "", (), "Not measured: neither these networks nor the images are here.",
    ),
    Entry(
        "LM-10", "M", "Where the clamp is", "-",
        "Iterates may leave [-1, 1]; the result is clamped once, at the end.",
        "`lm=\"released\"` or `lm=\"clamped\"` (`clip=`)",
        (
            Effect(("clamped after each step:", rdc("clamped")), ("at the end:", rdc())),
            Effect(("the same under BPDA:", rdc("clamped", gradient="bpda")), ("at the end:", rdc(gradient="bpda"))),
        ),
        "Linf 8/255, three gradients.", LM,
    ),
    Entry(
        "LM-11", "M", "Noise for each image of a batch", "-",
        "A batch of noise is drawn after the seed is set, so that an image's noise depends on its place in the batch; "
        "evaluated alone, it is always the same.",
        "`share=\"batch\"` or `\"image\"`; with an index the noise belongs to the image and not to its place",
        (
            pair("LM-11", "batch", "image", ("clean, one noise:", "by the place in a batch of 20:"), "right"),
            pair("LM", "released", "another seed", ("attacked, one noise for all:", "another one for all:")),
        ),
        "Linf 8/255, through blurred signs; the other noise is that of another seed, of the classifier, too. An attack that asks "
        "about fewer and fewer images of a batch would move them to other places. `tests/test_likelihood.py` checks that an "
        "image does not depend on its batch.", LM,
    ),
)  # fmt: skip
