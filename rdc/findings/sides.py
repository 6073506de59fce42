"""What the claims of *Robust Classification via a Single Diffusion Model* compare, and the pages that look at them."""

from itertools import product
from typing import Any

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
