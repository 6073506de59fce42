"""The claims of *Enhancing Diffusion-Based Image Synthesis with Robust Classifier Guidance* (Kawar et al., 2023)."""

__all__ = ["CLAIMS"]

from itertools import product
from typing import Any

from rdc.findings.claim import Claim, Proof
from rdc.findings.evidence import Evidence
from rdc.findings.side import Side

SETTINGS = (("heun", True), ("heun", False), ("ddpm", True))  # sampler, and whether the denoiser knows the class
LOW, TWO, HIGH = (0.02, 0.1, 0.3, 1.0, 3.0, 10.0), (0.02, 0.3), (3.0, 6.0, 12.6)
#: What a better guide has: a lower Frechet distance, a higher precision, and a lower recall, as in the paper's Table 1.
WANTED = {"frechet": -1, "precision": 1, "recall": -1}
PAPER = {"norm": "L2", "eps": 0.5, "steps": 7}
METHODS = "notebooks/10b_guidance_classifiers"
GRADIENTS, ALIGNED = "notebooks/10f_guide_gradients", "notebooks/10g_alignment"
SAMPLES, TRAININGS = "notebooks/10i_better_guides", "notebooks/10j_guide_trainings"
SAME = "differences on the same seeds, one training of each guide, at the scale that was chosen for it"
RISE = {"frechet": "lower Frechet distance", "precision": "higher precision", "recall": "lower recall"}


def made(guide: str, name: str, plan: str, conditional: bool, images: int = 200) -> Side:
    """A metric of guided samples."""
    words = {"guide": guide, "plan": plan, "conditional": conditional, "images": images, "dtype": "fast"}
    return Side("guidance-main", words, name, mean="units")


def better(a: str, b: str, name: str, sign: int, plan: str, conditional: bool, images: int = 200) -> Evidence:
    """Guide ``a`` has more than ``b`` of a metric, or for a negative sign less."""
    more, less = (a, b) if sign > 0 else (b, a)
    return Evidence(made(more, name, plan, conditional, images), made(less, name, plan, conditional, images))


def order(a: str, b: str, sign: int) -> str:
    """Return how two guides are compared, the side that is claimed to be larger first."""
    first, second = ("no guide" if guide == "none" else guide for guide in ((a, b) if sign > 0 else (b, a)))
    return f"{first} against {second}; {SAME}"


def aligned(guide: str, towards: str) -> tuple[Evidence, ...]:
    """The gradients of a guide are better aligned than vanilla ones, at every noise level."""

    def cosines(g: str, sigma: float) -> Side:
        words = {"measure": "alignment", "guide": g, "towards": towards, "sigma": sigma}
        return Side("guidance-gradients", words, "cosine", mean="units")

    return tuple(Evidence(cosines(guide, sigma), cosines("vanilla", sigma)) for sigma in LOW)


def climbed(guide: str, name: str) -> tuple[Evidence, ...]:
    """Ascent with a guide does better than with the vanilla one, at every start and radius."""

    def ascent(g: str, sigma: float, radius: float) -> Side:
        words = {"measure": "ascent", "guide": g, "judges": "reference", "sigma": sigma, "radius": radius}
        return Side("guidance-gradients", words, name, mean="units" if name == "alignment" else "")

    return tuple(Evidence(ascent(guide, s, r), ascent("vanilla", s, r)) for s, r in product(TWO, HIGH))


def swept(guide: str, plan: str, conditional: bool, scale: Any) -> Side:
    """The Frechet distance of a guide on the seeds of the sweep, mean over the scales."""
    return Side(
        "guidance-scales", {"guide": guide, "plan": plan, "conditional": conditional, "scale": scale}, "frechet", mean="units"
    )


def trained(name: str, threat: Any, seeds: Any, conditional: bool | None) -> Side:
    """A number of short trainings with some seeds."""
    words = {"measure": "noisy"} if conditional is None else {"measure": "samples", "conditional": conditional}
    return Side("guidance-threats", {**words, "threat": threat, "training seed": seeds}, name, mean="rows")


SCALES: dict[tuple[str, bool], tuple[float, ...]] = {
    ("heun", True): (0.25, 0.5, 1.0, 2.0), ("heun", False): (1.0, 2.0, 4.0), ("ddpm", True): (1.0, 3.0),
}  # fmt: skip
OTHERS = [
    {"norm": norm, "eps": eps, "steps": steps}
    for steps in (5, 7, 9)
    for norm, eps in (("L2", 0.25), ("L2", 0.5), ("L2", 1.0), ("Linf", 4 / 255), ("Linf", 8 / 255))
    if (norm, eps, steps) != ("L2", 0.5, 7)
]
SEEDS = (0, 1, 2, 3, 4)
NAMED, ROBUST = {"none": "no guide", "vanilla": "the vanilla one", "robust": "the robust one"}, "frechet robust features"

CLAIMS = (
    Claim(
        "C1", "Section 4.2, appendix B", "Training leaves the gradients that guide free, and adversarial training does not.",
        "a function that is added to all logits leaves the loss as it is and changes their gradients, but not that of the "
        "log-softmax, which guides: it cancels there, in the attack and in the adversarial loss",
        proof=Proof("does not hold", "tests/test_guide_align.py::test_appendix_b"),
        page="notebooks/10d_gradient_argument",
    ),
    *(
        Claim(
            f"C2{letter}", "Section 5.1, figure 3",
            f"Gradients of {which} are better aligned than vanilla ones, towards {'the ' * (to == 'true class')}{to}.",
            "cosines with the direction of the optimal denoiser on the same noisy images, at six noise levels",
            aligned(guide, to), page=ALIGNED,
        )
        for letter, (guide, which), to in (
            ("a", ("robust", "a robust classifier"), "true class"), ("b", ("robust", "a robust classifier"), "another class"),
            ("c", ("wide", "a classifier trained at six times the radius"), "true class"),
            ("d", ("wide", "a classifier trained at six times the radius"), "another class"),
        )
    ),
    *(
        Claim(
            f"C3{letter}{i}", "Section 5.2, table 1", f"The {a} guide has a {RISE[name]} than {NAMED[b]}.",
            order(a, b, sign),
            tuple(better(a, b, name, sign, *how) for how in SETTINGS if "wide" != a or how[0] == "heun"), page=SAMPLES,
        )
        for letter, (a, b) in zip("abcde", (("robust", "vanilla"), ("robust", "none"), ("vanilla", "none"), ("wide", "vanilla"),
                                            ("wide", "none")), strict=True)
        for i, (name, sign) in enumerate(WANTED.items(), 1)
    ),
    *(
        Claim(
            f"C3{letter}", "Section 5.2, table 1",
            f"With all 250 steps the {a} guide has a lower Frechet distance, a higher precision and a lower recall than "
            f"{NAMED[b]}.", SAME,
            tuple(better(a, b, name, sign, "ddpm250", True) for name, sign in WANTED.items()), page=SAMPLES,
        )
        for letter, (a, b) in zip("fgh", (("robust", "vanilla"), ("robust", "none"), ("vanilla", "none")), strict=True)
    ),
    Claim(
        "C4a", "Appendix E, table 5", "The robust guide has the lower Frechet distance, in the mean over scales.",
        "vanilla against robust, the mean over scales of each repetition of the sweep, on the same seeds",
        tuple(Evidence(swept("vanilla", *how, SCALES[how]), swept("robust", *how, SCALES[how])) for how in SETTINGS),
        page=SAMPLES,
    ),
    Claim(
        "C4b", "Appendix E, table 5", "The robust guide has the lower Frechet distance at every scale.",
        "vanilla against robust, the sweep, on the same seeds",
        tuple(Evidence(swept("vanilla", *how, s), swept("robust", *how, s)) for how in SETTINGS for s in SCALES[how]),
        page=SAMPLES,
    ),
    Claim(
        "C4c", "Section 5.2", "The robust guide is best at a scale of 1, where theory has it.",
        "the Frechet distance at each other scale of the sweep against that at 1, on the same seeds, the class known",
        tuple(Evidence(swept("robust", "heun", True, s), swept("robust", "heun", True, 1.0)) for s in (0.25, 0.5, 2.0)),
        page=SAMPLES,
    ),
    Claim(
        "C5", "Appendix E, table 4", "L2 0.5 with 7 steps is the best attack for the training.",
        "single short trainings with each other attack against five seeds of this one; within their spread nothing is decided",
        tuple(
            Evidence(trained("frechet", other, 0, how), trained("frechet", PAPER, SEEDS, how))
            for how, other in product((True, False), OTHERS)
        ),
        page=TRAININGS,
    ),
    Claim(
        "C6a", "Section 4.2", "Without early stopping of the attack the Frechet distance is higher.",
        "a short training without it against five seeds with it",
        tuple(
            Evidence(trained("frechet", {**PAPER, "stop": False}, SEEDS, how), trained("frechet", PAPER, SEEDS, how))
            for how in (True, False)
        ),
        page=TRAININGS,
    ),
    Claim(
        "C6b", "Section 4.2", "With early stopping of the attack the accuracy is higher, clean and attacked.",
        "five short trainings with it against one without, accuracy at one noise level",
        tuple(
            Evidence(trained(name, PAPER, SEEDS, None), trained(name, {**PAPER, "stop": False}, SEEDS, None))
            for name in ("clean", "trained")
        ),
        page=TRAININGS,
    ),
    *(
        Claim(
            f"C7{letter}", "Figure 4", f"Ascent of another class with {which} {what} than with a vanilla one.",
            "the same starts and radii" + (", an independent classifier judges" if name == "reached" else ""),
            climbed(guide, name), page=GRADIENTS,
        )
        for letter, ((guide, which), (name, what)) in zip("abcd", product(
            (("robust", "a robust classifier"), ("wide", "a classifier trained at six times the radius")),
            (("reached", "reaches it more often"), ("alignment", "makes a change that is better aligned")),
        ), strict=True)
    ),
    Claim("C8", "Section 5.2, table 2", "Raters prefer the samples of the robust guide.", "nobody was asked",
          page="book/blind"),
    *(
        Claim(
            f"C9{letter}", "beyond the paper", f"The {guide} guide improves the Frechet distance in robust features, too.",
            order(guide, "none", -1),
            tuple(better(guide, "none", ROBUST, -1, *how) for how in SETTINGS if "wide" != guide or how[0] == "heun"),
            page=SAMPLES,
        )
        for letter, guide in zip("abc", ("robust", "vanilla", "wide"), strict=True)
    ),
    *(
        Claim(
            f"C10{letter}", "beyond the paper", f"The {guide} guide has a lower Frechet distance than {NAMED[rival]}.",
            order(guide, rival, -1) + ", a denoiser that knows the class",
            (better(guide, rival, "frechet", -1, "heun", True, images),),
            page=SAMPLES,
        )
        for letter, (rival, (guide, images)) in zip(
            "abcd", product(("none", "robust"), (("diffusion classifier", 100), ("classifier-free", 200))), strict=True
        )
    ),
)  # fmt: skip
