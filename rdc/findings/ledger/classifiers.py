"""Entries on the diffusion classifier and its optimum: which code belongs to which number, weights, levels, scale, noise."""

__all__ = ["ENTRIES"]

from rdc.findings.ledger import Effect, Entry, pair
from rdc.findings.side import Side
from rdc.findings.sides import DC, LM, OPTIMAL


def weighting(name: str) -> tuple[str, Side]:
    """The classifier with a weighting, on one grid of levels, on clean images."""
    return f"{name}:", Side("dc-settings", {"what": "weightings", "weighting": name}, "clean")


def steps(count: int) -> tuple[str, Side]:
    """The classifier with some time steps of VP, on clean images."""
    words = {"what": "time steps", "placement": "uniform", "steps": count, "attack": "none"}
    return f"{count} time steps:", Side("dc-settings", words, "clean")


def floor(low: float) -> tuple[str, Side]:
    """The classifier with levels from ``low`` on, under PGD."""
    return f"from {low}:", Side("floor", {"what": "screened", "floor": low})


def noise(coupling: str, outcome: str) -> Side:
    """The classifier with one draw of its noise."""
    return Side("dc-noise", {"draws": 1, "coupling": coupling}, outcome)


def formulas(side: str, name: str) -> tuple[Effect, ...]:
    """The corollary against one place of the released formula, before and after an attack."""
    words = (("before the attack, the corollary:", "clean"), ("after it, the corollary:", "robust"))
    return tuple(pair("OPT", "corollary", side, (text, f"{name}:"), outcome) for text, outcome in words)


ENTRIES = (
    Entry(
        "P-1", "H", "Two diffusion classifiers",
        "Table 1 gives DC 35.94 % under Linf and names EDM as its network (Section 4.1).",
        "Two classifiers have the name: a VP one with weight 1 (`DiffusionClassifier.py`) and an EDM one (`EDMDC.py`). The "
        "authors say that the row was measured with NCSN++, and that the text was changed to EDM later (issue 3, 2024-04-26).",
        "`rdc.models.build(\"dc\", kind=\"vp\")` against `kind=\"edm-released\"`",
        (Effect(weighting("VP, w = 1"), weighting("EDM as released")),),
        "Clean images of one network of our size; the published checkpoints are not here.", DC,
    ),
    Entry(
        "P-2", "H", "Two procedures called likelihood maximisation",
        "Algorithm 1 takes momentum steps with a budget; its line 3 says one random time step.",
        "Adam on one random level, without a budget that acts. The authors describe an older version, all time steps with "
        "MI-FGSM, and a newer one, a single step with Adam (issue 2, 2024-03-24). Figure 2b fits the first, the main row the "
        "second.",
        "`lm=\"printed\"`, `\"mi-fgsm\"`, `\"expectation\"` or `\"released\"`",
        (), "The entries on likelihood maximisation below measure the parts.", LM,
    ),
    Entry(
        "P-3", "M", "Weights that were not released",
        "RDC (N+T), the main row, needs the network with heads.",
        "Neither its weights nor its training were released, and the conditional VP weights are missing; a missing file "
        "leaves random weights without a word (`DiffusionClassifier.py`, lines 350 to 355).",
        "`rdc train multihead`; a missing file is an error", (),
        "The row itself cannot be run without these weights.", "notebooks/07_multihead",
    ),
    Entry(
        "P-4", "M", "Scripts that do not start",
        "-",
        "An import of `DifferentiableAdam`, which is not in the repository, stops every script; it belongs to another paper "
        "and can be deleted, the authors say (issue 4, 2024-08-09). The VP class calls methods with arguments that they do "
        "not take.",
        "", (), "Nothing to measure. What is rebuilt here follows the code line by line, with tests.",
    ),
    Entry(
        "DC-1", "H", "Precedence of operators in the density of the levels",
        "The weight is called that of the ELBO; the EDM density is in the code alone.",
        "`** 2) / 2 * P_std**2` where the log-normal has `/ (2 * P_std**2)` (`EDMDC.py`, lines 40 and 212): a spread of "
        "1/1.2 in place of 1.2, hence lower noise.",
        "`kind=\"edm\"` or `\"edm-released\"` ({py:mod}`rdc.schedule`)",
        (Effect(weighting("EDM"), weighting("EDM as released")), Effect(weighting("EDM"), weighting("EDM, up to 3"))),
        "Clean images. The second line takes the released range of levels and the density as defined.", DC,
    ),
    Entry(
        "DC-2", "M", "Which levels, and how many",
        "T time steps of VP, evenly spaced; no range for EDM.",
        "`linspace(1e-4, 3, 1001)` by default, 126 nodes in the demonstrations.",
        "`levels=`, `sigma_min=`, `sigma_max=`, `placement=`",
        (Effect(steps(64), steps(8)), Effect(steps(64), steps(2))), "Clean images.", DC,
    ),
    Entry(
        "DC-3", "H", "Weights that are not those of the bound",
        "Equations 4 to 6 make the score a bound of $\\log p(x \\mid y)$; the printed weight has $\\sigma_t$ where "
        "$\\beta_t^2$ belongs.",
        "VP takes weight 1, EDM the training weight; the weights of the bound are in the repository of NDC only.",
        "`kind=\"elbo\"`, `\"vp\"`, `\"vp-printed\"`, `\"vp-derived\"`",
        (
            Effect(weighting("VP, w printed"), weighting("VP, w derived")),
            Effect(weighting("VP, w derived"), weighting("VP, w = 1")),
            Effect(weighting("ELBO (main)"), weighting("EDM as released")),
        ),
        "Clean images. `tests/test_noise.py` derives the weights.", DC,
    ),
    Entry(
        "DC-4", "H", "Mean or sum over pixels",
        "A squared norm, hence a sum over pixels.",
        "The mean (`EDMDC.py`, lines 70 and 105): logits smaller by the number of pixels. The decision is the same; losses "
        "with a scale (cross-entropy, the penalty of StAdv) see another model.",
        "`DiffusionClassifier(reduce=\"sum\")` or `\"mean\"`, `build(\"dc\")` or `build(\"dc-mean\")`",
        tuple(
            pair("DC-4", "sum, ce", other, (f"cross-entropy of the sum, Linf {eps}:", name), eps=eps)
            for eps in ("2/255", "8/255")
            for other, name in (("mean, ce", "of the mean:"), ("sum, margin", "the margin, of either:"))
        ),
        "PGD; the margin has no scale. The chapter attacks both; see also ATT-6.", DC,
    ),
    Entry(
        "DC-5", "H", "Noise that the attack does not share",
        "Sharing the noise between classes changes nothing (Section 4.5).",
        "The evaluation restarts its noise for each class (`DiffusionClassifierBase.py`, line 46), the pass of the attack "
        "does once (line 88): the attack sees another, noisier model, and a success on it need not be one.",
        "`noise=\"shared\"` or `\"per_class\"`",
        (
            Effect(("noise of each class, clean:", noise("per_class", "clean")), ("shared, clean:", noise("shared", "clean"))),
            Effect(("noise of each class, attacked:", noise("per_class", "robust")), ("shared:", noise("shared", "robust"))),
        ),
        "Linf 8/255, PGD. The chapter also runs the attack that does not share.", DC,
    ),
    Entry(
        "DC-6", "H", "Half precision in the backward pass",
        "Appendix B.2: gradients do not vanish.",
        "`use_fp16=True` since 2024-05-17, on CUDA only, without scaling the loss; an example of the authors of 2024-08-10 "
        "sets it to false (issue 3).",
        "", (), "Not measured: it happens on a GPU only, and on the published network. Here gradients are of 32 bits, or bf16 "
        "on request.",
    ),
    Entry(
        "DC-7", "M", "Two quadratures in one class",
        "-",
        "In the repository of NDC the evaluation pairs the weight of one node with the level of the next, the pass of the "
        "attack does not (`EDMDC.py`, lines 62 to 126).",
        "one engine evaluates and differentiates ({py:mod}`rdc.classify.denoising_loss`)", (),
        "`tests/test_denoising_loss.py` checks that both passes are of one function.", DC,
    ),
    Entry(
        "DC-8", "H", "Levels from 0.5",
        "Time steps over the whole range.",
        "The default begins at 1e-4. The authors' last word on DC under attack (issue 3, 2024-08-10) is a grid from 0.5 to "
        "3: larger time steps make it more robust, above 30 % on CIFAR-10.",
        "`sigma_min=0.5`",
        (Effect(floor(0.1), floor(0.5)), Effect(floor(0.1), floor(1.0))),
        "PGD, Linf 8/255, on the images that choose the floor, not those that judge it.", DC,
    ),
    Entry(
        "OPT-1", "M", "Temperature of the softmax",
        "Corollary 3.3 divides by $2\\sigma_t^2$.", "The code divides by $2\\sigma_t$ (`OptimalDiffusionClassifier.py`, line "
        "48).",
        "`build(\"optimal-released\", divisor=\"sigma\")` or `\"variance\"`", formulas("OPT-1", "2 sigma"),
        "Images that are not stored, PGD, Linf 8/255. `tests/test_optimal_classifier.py` checks both formulas by loops.",
        OPTIMAL,
    ),
    Entry(
        "OPT-2", "M", "Square of a sum, or sum of squares",
        "The norm of the weighted sum of differences.",
        "The weighted sum of norms (lines 52 and 53), which favours large classes at high noise.",
        "`build(\"optimal-released\", square=\"each\")` or `\"sum\"`", formulas("OPT-2", "sum of squares"),
        "As OPT-1. Nearly all the weight is on levels where both agree.", OPTIMAL,
    ),
    Entry(
        "OPT-3", "M", "Units of the images", "Images in [-1, 1].", "Images in [0, 1], so that every noise level is doubled.",
        "`build(\"optimal-released\", units=\"image\")` or `\"model\"`",
        (*formulas("OPT-3", "[0, 1]"), *formulas("released", "all three as released")), "As OPT-1.", OPTIMAL,
    ),
    Entry(
        "OPT-4", "H", "Which images are stored",
        "100 % robust, optimal over training and test set (Section 3.3).",
        "The stored images are the first 100 test images, which are also those that are attacked "
        "(`OptimaDiffusionClassifier.py`, lines 19 to 21).",
        "the images of the denoiser; here only training images are stored",
        tuple(
            Effect((f"before the attack, {norm} {eps}:", Side("optimal", {"norm": norm}, "clean")),
                   ("after it:", Side("optimal", {"norm": norm})))
            for norm, eps in (("Linf", "8/255"), ("L2", "0.5"))
        ),
        "Images that are not stored, claim A4.", OPTIMAL,
    ),
)  # fmt: skip
