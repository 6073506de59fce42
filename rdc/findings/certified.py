"""The claims of *Diffusion Models are Certifiably Robust Classifiers* (Chen et al., 2024)."""

__all__ = ["CLAIMS"]


import numpy as np

from rdc.certify.clopper_pearson import radius_from_counts
from rdc.findings.claim import Claim, Proof
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side

MARGIN = -0.05  # "suffice" allows for five points
DRAWS, ALPHA = 400, 0.001  # of the certificates that are compared
RADII = {0.25: (0.25, 0.5), 0.5: (0.25, 0.5, 0.75), 1.0: (0.25, 0.5, 0.75)}  # of the paper, as far as the draws reach
SMOOTHING, NOISED, CERTIFIED = "notebooks/09_certification", "notebooks/09b_noised", "notebooks/09d_certified_accuracy"
FACTORS, SIFT, LIPSCHITZ = "notebooks/09e_factors", "notebooks/09f_sift", "notebooks/09g_lipschitz"
INNER = "notebooks/09h_inner_noise"


def needed(sigma: float, radius: float) -> int:
    """How many of the draws must have the class for a radius.

    >>> needed(0.25, 0.25)
    359
    """
    found = radius_from_counts(np.arange(DRAWS + 1), DRAWS, sigma, ALPHA)
    return int(np.argmax(found >= radius))


def certified(base: str, sigma: float, radius: float) -> Side:
    """Images whose class is right and certified within a radius, image units, by a base classifier of the curves."""
    return Side("certificates-curves", {"base": base, "sigma": sigma}, "k", above=needed(sigma, radius) - 1, also="right")


def noisy(base: str, levels: int, noise: str = "shared", **words: str) -> Side:
    """Whether the class of a noisy image is right, smoothing noise 0.25, by the network with one head."""
    about = {"base": base, "sigma": 0.25, "levels": levels, "denoiser": "single head", "noise": noise, **words}
    return Side("certificates-levels", about, "right")


def more(first: str, second: str) -> tuple[Evidence, ...]:
    """One base certifies more images than another, at each smoothing noise and radius."""
    cases = [(s, r) for s, radii in RADII.items() for r in radii]
    return tuple(Evidence(certified(first, s, r), certified(second, s, r)) for s, r in cases)


CLAIMS = (
    Claim(
        "B1", "Theorem 3.1", "The diffusion classifier is Lipschitz.",
        "no slope that was found exceeds the constant that is proved here; that of the released code is exceeded",
        proof=Proof("holds", "tests/test_lipschitz.py::test_no_slope_is_above_the_bound"), page=LIPSCHITZ,
    ),
    Claim(
        "B1a", "Released code", "… with the constant that it prints as the theoretical one.",
        "a half-space has a larger slope", page=LIPSCHITZ,
        proof=Proof(
            "does not hold",
            "tests/test_lipschitz.py::test_a_half_space_reaches_nearly_the_bound_and_exceeds_the_constant_of_the_paper",
        ),
    ),
    Claim(
        "B1b", "Theorem 3.1", "… and therefore certifiably robust without smoothing.",
        "images with a radius above zero, in the most of them: the margins are too small for the constant",
        (Evidence(Side("certificates-lipschitz", {}, "radius local", above=0.0), bound=0.5),), page=LIPSCHITZ,
    ),
    Claim(
        "B2", "Theorem 3.2", "The bound for noisy images (EPNDC) is a valid bound of their log-likelihood.",
        "it bounds the exact density of the data on average, and reaches it", page=NOISED,
        proof=Proof("holds", "tests/test_noised.py::test_it_bounds_the_density_of_the_data_on_average_and_reaches_it"),
    ),
    Claim(
        "B3", "Section 3.3", "APNDC certifies more than EPNDC at almost no extra cost.",
        "images certified at a smoothing noise of 0.25, at two radii, by 8 levels against 4 with mirror images, for nearly the "
        "same passes",
        tuple(Evidence(certified("APNDC", 0.25, r), certified("EPNDC", 0.25, r)) for r in RADII[0.25]), page=CERTIFIED,
    ),
    *(
        Claim(
            f"B4{letter}", "Tables 1 and 2", f"Noised diffusion classifiers certify more than {what}.",
            "images certified by APNDC, at every smoothing noise and radius that the draws reach", more("APNDC", rival),
            page=CERTIFIED,
        )
        for letter, rival, what in (
            ("a", "Carlini", "denoising before a classifier"), ("b", "Cohen", "a network trained on noise")
        )
    ),
    Claim(
        "B5", "Abstract", "One diffusion model certifies, without further data.",
        "APNDC certifies more than a tenth of the images, the share of a guess, at every smoothing noise and radius; whether "
        "more than others do is claim B4",
        tuple(Evidence(certified("APNDC", s, r), bound=0.1) for s, r in [(s, r) for s, radii in RADII.items() for r in radii]),
        page=CERTIFIED,
    ),
    Claim(
        "B6", "Section 3.4", "Noise that the classes share reduces the evaluations that are needed.",
        "the error of the logits' differences falls", page=INNER,
        proof=Proof("holds", "tests/test_noised.py::test_sharing_noise_between_classes_reduces_the_error"),
    ),
    Claim(
        "B7", "Section 3.4", "Sifting classes by a threshold keeps the answer.",
        "a threshold, chosen on other images, keeps the answer of all evaluations for more than 95 % of noisy images; with ten "
        "classes it saves next to nothing",
        tuple(
            Evidence(Side("certificates-kept", {"base": base, "rule": "Threshold"}, "agrees"), bound=0.95, effect=1.0)
            for base in ("EPNDC", "APNDC")
        ),
        page=SIFT,
    ),
    Claim(
        "B8", "Section 3.4", "A few noise levels suffice for certificates.",
        "of the classes that are said of noisy images, from which certificates are counted, as many are right with 8 levels as "
        "with 124, less five points; only counts are stored, so they are taken as if of different images",
        (
            Evidence(noisy("EPNDC", 8, noise="shared, mirror images"), noisy("EPNDC", 124, form="fixed"), bound=MARGIN),
            Evidence(noisy("APNDC", 8), noisy("APNDC", 124), bound=MARGIN),
        ),
        page=FACTORS,
    ),
    Claim(
        "B9", "Abstract", "Certified accuracies of 82.2, 70.7 and 54.5 % on CIFAR-10 at L2 radii of 0.25, 0.5 and 0.75.",
        "the published denoiser is not at hand; the command of the tables needs it", page="book/experiments",
    ),
)  # fmt: skip
