"""The experiments of the papers, one by one, and what this book has of each, read from the specs and the stored results.

Nothing here says what was done: an :class:`Item` names the experiments that answer it, the tests that prove it, or the command
that would run it with files that the reader has; :func:`status` looks what there is.
"""

__all__ = ["ITEMS", "Item", "State", "status"]

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rdc.experiments import experiment
from rdc.findings.certified import CERTIFIED, FACTORS, INNER, LIPSCHITZ, NOISED, SIFT
from rdc.findings.guidance import ALIGNED, GRADIENTS, METHODS, SAMPLES, TRAININGS
from rdc.findings.side import stored
from rdc.findings.sides import (
    AT_WORK,
    ATTACKS,
    BESIDE,
    DC,
    EXACT,
    OOD,
    OPTIMAL,
    PARTS,
    RANDOM,
    SIZE,
    TAUGHT,
)
from rdc.runs.record import book_folder

State = Literal["done here", "at our size", "needs files", "absent"]
RDC, NDC, FILES = "rdc experiment run paper-rdc", "rdc experiment run paper-ndc", "CIFAR-10 and the published EDM checkpoints"
GUIDE = "rdc experiment run paper-guidance"
GUIDES = "the published networks of guided-diffusion and the authors, a reference batch, and a network for features"
OWN = "CIFAR-10, the published EDM checkpoint, classifiers trained by the released code, and a network for features"
FOLDER = "rdc accuracy --model runs/mine.safetensors --data folder:PATH"
CERTIFY = "rdc certify --model epndc --denoiser runs/mine.safetensors --data folder:PATH"


@dataclass(frozen=True)
class Item:
    """An experiment of a paper.

    Attributes:
        id: Letter of the paper (R, G, N) and number.
        place: Where it stands.
        what: What it shows.
        experiments: Names of ours that answer it, with other networks, data or sizes.
        tests: Tests that prove or check it: files.
        command: What runs it with files that are not in the repository.
        files: Which files these are.
        claims: Claims of the Findings that it is about.
        note: What is left out.
        page: Page of the book.
    """

    id: str
    place: str
    what: str
    experiments: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    command: str = ""
    files: str = ""
    claims: tuple[str, ...] = ()
    note: str = ""
    page: str = ""


def status(item: Item, folder: str | Path | None = None) -> tuple[State, str]:
    """Return what there is of an item, and how much in Markdown: how many of the rows have results, or the tests.

    Arguments:
        item: The experiment.
        folder: Where the results are; by default those of the book.
    """
    place = book_folder("results") if folder is None else Path(folder)
    counted = []
    for name in item.experiments:
        store, rows = stored(place / f"{name}.jsonl"), experiment(name).rows
        begun = sum(store.of(row).n > 0 for row in rows)
        counted += [f"`{name}` {begun} of {len(rows)} rows"] if begun else []
    if counted:
        return "at our size", "; ".join(counted)
    if item.tests:
        return "done here", ", ".join(f"`{test}`" for test in item.tests)
    return ("needs files" if item.command else "absent"), ""


GUIDED = "notebooks/10d_gradient_argument"

ITEMS = (
    Item("R1", "Table 1", "Adversarial training and PAT under Linf, L2 and StAdv",
         ("reference", "rdc-suite", "baselines", "unseen"), claims=("A8", "A9"), note="small networks; no PAT", page=ATTACKS),
    Item("R2", "Table 1", "DiffPure under a stronger attack", ("union", "rdc-suite"), claims=("A32",), page=BESIDE),
    Item("R3", "Table 1", "The generative baselines SBGC, HybViT and JEM", ("flow", "baselines"), claims=("A6", "A6b"),
         note="no HybViT", page=OOD),
    Item("R4", "Table 1", "Likelihood maximisation before a network", ("union", "rdc-suite"), claims=("A10",), page=BESIDE),
    Item("R5", "Table 1", "The diffusion classifier", ("dc-settings", "rdc-gradient", "cifar10"), command=RDC, files=FILES,
         claims=("A7",), page=DC),
    Item("R6", "Table 1", "RDC (N+T)", ("rdc-gradient", "rdc-suite", "union", "cifar10"), command=RDC, files=FILES,
         claims=("A8", "A9", "A16b", "A31", "A31a"), note="the published network with heads was not released", page=ATTACKS),
    Item("R7", "Table 2", "BPDA, exact gradient and Lagrange attack", ("rdc-gradient", "rdc-attacks", "cifar10"),
         claims=("A16", "A16a", "A16c", "A16d", "A16e", "A17"), page=ATTACKS),
    Item("R8", "Figure 2a", "Cosines of gradients against averaging", ("gradient-randomness",), claims=("A18",), page=RANDOM),
    Item("R9", "Figure 2b", "Robust accuracy against the budget of LM", ("rdc-settings",), claims=("A13",), page=PARTS),
    Item("R10", "Figure 2c", "The first time steps, or evenly spaced ones", ("dc-settings",), claims=("A14",), page=DC),
    Item("R11", "Section 4.5", "More draws, shared noise", ("dc-noise", "gradient-randomness"), claims=("A15",), page=DC),
    Item("R12", "Section 3.3", "The optimal classifier under attack", ("optimal", "nearest"), claims=("A4", "A4a",
         "A5"), page=OPTIMAL),
    Item("R13", "Table 3", "Evaluations, seconds and accuracy of the variants", ("rdc-settings", "multihead"), claims=("A12",),
         note="costs are those of this machine", page=BESIDE),
    Item("R14", "Table 4", "Mean absolute gradients", ("gradient-randomness",), claims=("A19",), page=SIZE),
    Item("R15", "Table 5", "DiffPure, DiffPure and DC, RDC", ("union", "rdc-suite"), claims=("A22",), page=BESIDE),
    Item("R16", "Appendix B.2", "The attack on features", ("rdc-attacks",), claims=("A21",), page=ATTACKS),
    Item("R17", "Table 6", "Randomised defences, quoted from others", note="quotations; nothing to run"),
    Item("R18", "Table 7", "DiffPure with the sampler of EDM", note="`sampler=\"sde\"` and `\"ddpm\"` are built, EDM's is not"),
    Item("R19", "Appendix B.2", "Averaging over 1, 5 and 10 draws", ("rdc-gradient",), claims=("A20", "A29"), page=ATTACKS),
    Item("R20", "Appendix B.1", "Ways to train heads", ("heads", "multihead"), claims=("A23", "A24", "A25", "A25a"), page=TAUGHT),
    Item("R21", "Appendix B.3, Table 9", "Restricted ImageNet", command=FOLDER, claims=("A33",),
         note="LM with a second network is not built",
         files="the images in a folder for each class, and a denoiser of their size"),
    Item("R22", "Appendix B.4, Table 8", "CIFAR-100", command=FOLDER, claims=("A33",),
         note="the authors' checkpoint was not released",
         files="the images in a folder for each class, and a denoiser of their size"),
    Item("R23", "Appendix B.5, Figure 3", "Bits per dimension of corrupted images", ("ood",), claims=("A28", "A28a"),
         note="corruptions of our own", page=OOD),
    Item("R24", "Figure 4", "Samples of the network with heads", claims=("A26",), note="the chapter draws some, no record",
         page=AT_WORK),
    Item("R25", "Appendix A.4", "The diffusion loss as an energy", tests=("tests/test_energy.py",), claims=("A30",
         "A30a"), page=EXACT),
    Item("R26", "Appendix A.5", "The gradient without the Jacobian of the network", ("laboratory",),
         ("tests/test_score_gradient.py",), claims=("A27",), page=EXACT),
    Item("R27", "Theorems 3.1 and 3.2", "Bayes' classifier, the optimal denoiser",
         tests=("tests/test_elbo.py", "tests/test_optimal_denoiser.py"), claims=("A1", "A2", "A3"), page=OPTIMAL),
    Item("G1", "Table 1", "Precision, recall and Frechet distance", ("guidance-main",), command=GUIDE, files=GUIDES,
         claims=("C3a1", "C3a2", "C3a3", "C3b1", "C3c1", "C3f"), page=SAMPLES,
         note="features of a network for Fashion-MNIST; the command drops the learned variance of a step"),
    Item("G2", "Table 2", "Raters compare pairs", claims=("C8",), note="nobody was asked; try it yourself",
         page="book/blind"),
    Item("G3", "Table 3", "Frechet distance against iterations",
         note="one length of training; the authors' denoiser for CIFAR-10 is another network than those that are read here"),
    Item("G4", "Table 4", "Threat models of the training", ("guidance-threats",), command=GUIDE, files=OWN,
         claims=("C5", "C6a", "C6b"), note="the command has another denoiser than the authors", page=TRAININGS),
    Item("G5", "Table 5", "Frechet distance against the scale", ("guidance-scales",), command=GUIDE, files=OWN,
         claims=("C4a", "C4b", "C4c"), note="the command has another denoiser than the authors", page=SAMPLES),
    Item("G6", "Table 6", "Precision and recall against the scale, ImageNet", ("guidance-scales",), command=GUIDE, files=GUIDES,
         note="the command takes 10 000 images of each set for both", page="notebooks/10h_sample_numbers"),
    Item("G7", "Figures 2 and 5", "Pairs of one seed along the chain", command=GUIDE, files=GUIDES,
         note="pairs, not the chain; the command keeps its images, which share their seeds", page="book/blind"),
    Item("G8", "Figure 3", "Gradients at several noise levels", ("guidance-gradients",), claims=("C2a", "C2b"), page=ALIGNED),
    Item("G9", "Figure 4", "Targeted ascent within a large radius", ("guidance-gradients",), claims=("C7a", "C7b"),
         page=GRADIENTS),
    Item("G10", "Figures 6 to 8", "Failures, samples, the screen of the survey", note="pictures of the authors' networks"),
    Item("G11", "Appendix B", "Functions added to the logits", tests=("tests/test_guide_align.py",), claims=("C1",), page=GUIDED),
    Item("G12", "Section 5.1", "Training of the guide", ("guidance-audit", "guidance-threats"), claims=("C6a", "C6b"),
         note="short trainings; the published classifiers are read, not trained", page=METHODS),
    Item("N1", "Table 1", "Certified accuracy of APNDC, CIFAR-10", ("certificates-curves",), command=NDC, files=FILES,
         claims=("B3", "B5", "B9"), page=CERTIFIED),
    Item("N2", "Table 1", "EPNDC against APNDC", ("certificates-curves", "certificates-levels"), claims=("B3",), page=CERTIFIED),
    Item("N3", "Section 3.2", "The Lipschitz certificate", ("certificates-lipschitz",), ("tests/test_lipschitz.py",),
         claims=("B1", "B1a", "B1b"), page=LIPSCHITZ),
    Item("N4", "Section 3.2", "Measured and proved Lipschitz constants", ("gradient-randomness",), ("tests/test_lipschitz.py",),
         page=RANDOM),
    Item("N5", "Section 4", "Time steps and draws", ("certificates-levels", "certificates-sampled"), claims=("B8",),
         page=FACTORS),
    Item("N6", "Section 3.4", "Noise that the classes share", ("certificates-levels",), ("tests/test_noised.py",), claims=("B6",),
         page=INNER),
    Item("N7", "Section 3.4", "Sift and refine", ("certificates-sift",), claims=("B7",), page=SIFT),
    Item("N8", "Table 2", "Certified accuracy, ImageNet 64", command=CERTIFY,
         files="the images in a folder for each class, and a denoiser of their size"),
    Item("N9", "released code", "Clean accuracy on ImageNet, recall of the elimination", note="no images"),
    Item("N10", "Tables 1 and 2", "Baselines of the certificates", ("certificates-curves",), claims=("B4a", "B4b"),
         note="Cohen and Carlini; not SmoothAdv, MACER, Consistency, DensePure", page=CERTIFIED),
    Item("N11", "released code", "Learned weights of the time steps", note="weights are compared, not learned"),
    Item("N12", "released code", "The gap of the bound, and images off the data", tests=("tests/test_elbo.py",), claims=("A28",),
         note="the gap, not the images", page=OPTIMAL),
    Item("N13", "Theorems 3.1 to 3.3", "Bounds for noisy images, Lipschitz continuity",
         tests=("tests/test_noised.py", "tests/test_lipschitz.py"), claims=("B1", "B2"), page=NOISED),
)  # fmt: skip
