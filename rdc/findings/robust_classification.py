"""The claims of *Robust Classification via a Single Diffusion Model* (Chen et al., 2024)."""

__all__ = ["CLAIMS"]

import math
from itertools import product
from typing import Any

from rdc.findings.claim import Claim, Proof
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side

EIGHT, SIXTEEN = 8 / 255, 16 / 255
THREE = ("bpda", "exact", "smoothed 0.3")  # gradients
MARGIN = -0.05  # "no stronger" and "no better" allow for five points
MOST = 0.75  # what "rises" means: for more than three quarters of the images
LEVELS = ("0.1", "0.2", "0.5", "1")
FIVE: dict[str, Any] = {"N": 5, "noise seed": 0, "attacks": "strong"}


def rdc(lm: str = "released", N: int = 5, gradient: Any = THREE, eps: float = EIGHT, noise: str = "fixed", eot: Any = 1) -> Side:
    """RDC under some gradients, PGD with 20 steps; the union if there are several."""
    words = {"table": "gradient", "model": "RDC", "lm": lm, "N": N, "gradient": gradient, "eps": eps, "noise": noise}
    return Side("rdc-gradient", {**words, "attack": "pgd", "norm": "Linf", "eot": eot})


def alone(model: str, eps: float = EIGHT) -> Side:
    """A model without likelihood maximisation under its own gradient."""
    return Side("rdc-gradient", {"table": "gradient", "model": model, "attack": "pgd", "eps": eps})


def trained(kind: str = "at-linf", attacks: Any = ("pgd", "targeted", "square")) -> Side:
    """A reference network under the union of PGD, nine targets and Square."""
    return Side("reference", {"data": "fashion-mini", "model": kind, "attack": attacks})


def strongest(model: str, outcome: str = "robust", **words: Any) -> Side:
    """A defence under the union of all its gradients, restarts and nine targets, Linf 8/255; LM as released."""
    return Side("union", {"model": model, **words}, outcome)


def released(model: str, gradient: Any) -> Side:
    """The diffusion classifier with the weights of the released code, alone or behind LM as released; PGD with 20 steps."""
    return Side("rdc-gradient", {"table": "weights", "model": model, "gradient": gradient})


def unseen(model: str, threat: str, outcome: str = "robust") -> Side:
    """A defence under a threat, all gradients that were tried; LM as released."""
    return Side("unseen", {"model": model, "threat": threat}, outcome)


def suite(model: str, norm: str = "Linf", outcome: str = "robust") -> Side:
    """A defence of the suite, all gradients that were tried."""
    return Side("rdc-suite", {"model": model, "norm": norm}, outcome)


def setting(**words: Any) -> Side:
    """A setting of likelihood maximisation, all gradients."""
    return Side("rdc-settings", words)


def time_steps(count: int, attack: str) -> Side:
    """The diffusion classifier with some time steps of VP, spread over all of them."""
    words = {"what": "time steps", "placement": "uniform", "steps": count, "attack": attack}
    return Side("dc-settings", words, "clean" if attack == "none" else "robust")


def heads(network: str, what: str) -> Side:
    """A small network for the digits, as a classifier."""
    return Side("heads", {"network": network, "what": what}, what)


def compared(network: str, low: float) -> Side:
    """The shipped heads or their teacher, with the levels from ``low`` on."""
    return Side("multihead", {"what": "compared", "network": network, "from": low}, "clean")


def lab(quantity: str, readings: tuple[str, ...], kinds: tuple[str, ...], bound: float) -> tuple[Evidence, ...]:
    """A quantity of the laboratory rises for more than ``bound`` of the images, at each noise level of the density."""
    cases = product(readings, kinds, LEVELS)
    return tuple(Evidence(Side("laboratory", {"LM": r, "images": k}, f"{quantity}, sigma {s}"), bound=bound) for r, k, s in cases)


def averaged(model: str) -> Side:
    """How many gradients make half the signal, of each image, as a power of two."""
    return Side("gradient-randomness", {"model": model, "levels": None}, "log2 half eot", mean="units")


def corrupted(name: str) -> Side:
    """The rank of the flow's bits of corrupted images among those of clean ones, trained denoiser, severities 3 and 5."""
    severity = 0 if name == "none" else (3, 5)
    return Side("ood", {"density": "trained", "corruption": name, "severity": severity}, "flow rank", mean="units")


ONE_DRAW = Side("dc-noise", {"draws": 1, "coupling": "shared"})
MAIN, ALL = ("mi-fgsm", "all ELBO levels", "released"), ("clean", "border", "adversarial")
OPTIMAL, GAP, NEAREST, STORED = (
    f"notebooks/03{page}" for page in ("_optimal_classifier", "c_likelihood_gap", "b_nearest_image", "d_stored_images")
)
LM, EXACT, ATTACKS, PARTS, BESIDE = (
    f"notebooks/06{page}"
    for page in ("_likelihood_maximization", "e_exact_likelihoods", "b_rdc_attacks", "c_rdc_parts", "g_beside_diffpure")
)
OOD, BY_PGD = "notebooks/13_out_of_distribution", {"data": "digits", "attack": "pgd"}
DC, STEPS, LOSS = (f"notebooks/04{page}" for page in ("_diffusion_classifier", "c_time_steps", "e_large_loss"))
HEADS, TAUGHT, AT_WORK = (f"notebooks/07{page}" for page in ("_multihead", "b_training_heads", "c_heads_at_work"))
RANDOM, SIZE = "notebooks/08_gradient_randomness", "notebooks/08b_loss_and_size"
FLOOR, BASELINES = "notebooks/12_floor", "notebooks/11_baselines"

GAINS = ((rdc(), alone("DC")), (strongest("rdc", **FIVE), strongest("dc")))  # with likelihood maximisation, and without

CLAIMS = (
    Claim(
        "A1", "Theorem 3.1", "Where the gap of the bound vanishes, the softmax of minus the losses is the class posterior.",
        "it suffices that the gap is the same for all classes, as it nearly is at low noise",
        proof=Proof("holds", "tests/test_elbo.py::test_at_low_noise_the_gap_to_the_log_likelihood_is_the_same_for_all_classes"),
        page=GAP,
    ),
    Claim(
        "A2", "Theorem 3.2", "The optimal denoiser of a finite set is the average of its images with softmax weights.",
        "an identity, checked against loops in float64",
        proof=Proof("holds", "tests/test_optimal_denoiser.py::test_against_loops"), page=OPTIMAL,
    ),
    Claim(
        "A3", "Corollary 3.3", "The optimal classifier has a closed form, and predicts the class that lies closest.",
        "at low noise it is the nearest neighbour; the closed form is checked against the definition",
        proof=Proof("holds", "tests/test_optimal_classifier.py::test_at_low_noise_the_elbo_classifier_is_the_nearest_neighbour"),
        page=NEAREST,
    ),
    Claim(
        "A4", "Section 3.3", "The optimal diffusion classifier of training and test set is 100 % robust (Linf 8/255, L2 0.5).",
        "at low noise no attack within half the way to the nearest image of another class can succeed, if the attacked image is "
        "stored, as it is there", page=STORED,
        proof=Proof("holds", "tests/test_nearest.py::test_a_stored_image_keeps_its_class_up_to_half_the_way_to_another"),
    ),
    Claim(
        "A4a", "beyond the paper", "… and on images that it has not stored.",
        "an optimal classifier of the training images alone, test images, under PGD, against a rate of 99 %",
        tuple(Evidence(Side("optimal", {"norm": norm}), bound=0.99) for norm in ("Linf", "L2")),
        page=STORED,
    ),
    Claim(
        "A5", "Section 3.3", "On adversarial images the trained model's loss is much larger than the optimal one's.",
        "compared on a few images in the chapter; no record has it", page=LOSS,
    ),
    Claim(
        "A6", "Table 1", "The diffusion classifier is far more robust than earlier generative classifiers: JEM.",
        "against a small joint energy-based model of our own, trained for one epoch; Linf 8/255, the union of attacks",
        (Evidence(strongest("dc"), Side("baselines", {"model": "jem", "eps": "8/255"})),), page=BASELINES,
    ),
    Claim(
        "A6b", "Table 1", "The diffusion classifier is far more robust than earlier generative classifiers: SBGC.",
        "against a classifier by the likelihoods of the probability flow of the same network, PGD with five steps; with all "
        "levels, and with those from 0.5 on for both",
        tuple(
            Evidence(Side("flow", {**BY_PGD, "model": f"DC{of}"}), Side("flow", {**BY_PGD, "model": f"flow{of}"}))
            for of in ("", ", from 0.5")
        ),
        page=OOD,
        scale="digits, 8x8",
    ),
    Claim(
        "A7", "Table 1", "The diffusion classifier stays accurate under StAdv.",
        "right after the attack against right before it, less five points",
        (Evidence(unseen("dc", "StAdv"), unseen("dc", "StAdv", "clean"), bound=MARGIN),), page=BESIDE,
    ),
    Claim(
        "A8", "Table 1", "RDC is more robust than adversarial training against the threat of the training (by 4.77 points).",
        "RDC (LM as released) under three gradients against a small network trained for Linf 8/255 under three attacks; and "
        "under five gradients, restarts and nine targets against that network under restarts, nine targets, APGD and Square",
        (
            Evidence(rdc(), trained(), effect=0.0477),
            Evidence(strongest("rdc", **FIVE), strongest("at-linf"), effect=0.0477),
        ),
        page=ATTACKS,
    ),
    Claim(
        "A8a", "beyond the paper", "… with a floor under its levels, which was chosen on other images.",
        "RDC and DC with levels from 1 on against that network, all attacks",
        tuple(Evidence(strongest(f"{model}-floor"), strongest("at-linf")) for model in ("rdc", "dc")), page=FLOOR,
    ),
    Claim(
        "A9", "Section 4.3", "RDC keeps its robustness against threats that it was not made for, adversarial training does not.",
        "RDC (LM clamped, another reading) against the network trained for Linf, under L2 1.0 (in the paper 0.5) and StAdv, BPDA "
        "and the smoothed gradient",
        (
            Evidence(suite("RDC", "L2"), suite("AT", "L2")),
            Evidence(suite("RDC", "StAdv"), suite("AT", "StAdv"), effect=0.8652),
        ),
        page=BESIDE,
    ),
    Claim(
        "A10", "Table 1", "Likelihood maximisation in front of an undefended network makes it more robust.",
        "LM as released in front of the CNN against the CNN alone, Linf 8/255, gradients, restarts and nine targets; the audit "
        "rejects attacks through LM, so that its side is an upper bound",
        (Evidence(strongest("lm-cnn", attacks="strong"), strongest("cnn", "after targets")),), page=BESIDE,
    ),
    Claim(
        "A10a", "Table 1", "… and keeps 71.68 % of the images.", "the share that the union of attacks leaves, Linf 8/255",
        (Evidence(strongest("lm-cnn", attacks="strong"), bound=0.7168),), page=BESIDE,
    ),
    Claim(
        "A11", "Section 3.4", "Likelihood maximisation raises log p(x) and with it log p(x | y) of the true class.",
        "the exact likelihoods under the optimal denoiser rise for over 3/4 of the images, at every noise level",
        lab("log p(z)", MAIN, ALL, MOST) + lab("log p(z | y)", MAIN, ALL, MOST), page=EXACT,
    ),
    Claim(
        "A11a", "Section 3.4", "… and therefore leads an adversarial image back to its class.",
        "the exact log-odds of the true class, of an optimal denoiser, rise for more than half of the adversarial images (radius "
        "24/255), at every noise level",
        lab("log-odds", MAIN, ("adversarial",), 0.5), page=EXACT,
    ),
    Claim(
        "A12", "Appendix B.2", "One random noise level a step makes RDC more robust than all levels (by 6.83 points).",
        "one level against the mean of four, BPDA and the smoothed gradient; the 2.34 against 71.68 % of LM before a network "
        "were not asked",
        (Evidence(setting(table="timesteps", timesteps="one"), setting(table="timesteps", timesteps="all"), effect=0.0683),),
        page=PARTS,
    ),
    Claim(
        "A13", "Figure 2b", "Robust accuracy rises with the budget of LM and then falls; 8/255 is good.",
        "a budget of 8/255 against 2/255 and against 32/255, BPDA and the smoothed gradient",
        tuple(Evidence(setting(table="budget", budget=EIGHT), setting(table="budget", budget=b / 255)) for b in (2, 32)),
        page=PARTS,
    ),
    Claim(
        "A14", "Figure 2c", "Fewer noise levels hardly change clean accuracy but hurt robust accuracy.",
        "eight time steps against 64 before an attack, less five points, and against two under PGD, Linf 2/255",
        (
            Evidence(time_steps(8, "none"), time_steps(64, "none"), bound=MARGIN),
            Evidence(time_steps(8, "pgd"), time_steps(2, "pgd")),
        ),
        page=STEPS,
    ),
    Claim(
        "A15", "Section 4.5", "More draws of the noise, or noise shared by the classes, make the classifier no more robust.",
        "with eight levels, where the paper has many more: one draw against four, and noise of each class against shared noise, "
        "less five points",
        (
            Evidence(ONE_DRAW, Side("dc-noise", {"draws": 4}), bound=MARGIN),
            Evidence(Side("dc-noise", {"coupling": "per_class"}), ONE_DRAW, bound=MARGIN),
        ),
        page=DC,
    ),
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
