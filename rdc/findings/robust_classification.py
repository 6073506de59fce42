"""The claims of *Robust Classification via a Single Diffusion Model* (Chen et al., 2024): theory, Table 1 and its settings."""

__all__ = ["CLAIMS"]

from rdc.findings.claim import Claim, Proof
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side
from rdc.findings.sides import (
    ALL,
    ATTACKS,
    BASELINES,
    BESIDE,
    BY_PGD,
    DC,
    EIGHT,
    EXACT,
    FIVE,
    FLOOR,
    GAP,
    LOSS,
    MAIN,
    MARGIN,
    MOST,
    NEAREST,
    ONE_DRAW,
    OOD,
    OPTIMAL,
    PARTS,
    STEPS,
    STORED,
    lab,
    rdc,
    setting,
    strongest,
    suite,
    time_steps,
    trained,
    unseen,
)

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
)  # fmt: skip
