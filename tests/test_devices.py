"""Every classifier, defence, attack and certificate on another device: nothing is left on the CPU, and the numbers agree.

With ``--device cuda`` the other device is a GPU, otherwise that of ``tests/remote.py``, which needs no hardware.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from helpers import Linear, draw, tiny_network
from remote import REMOTE, Accelerator, moved
from test_guide_classifier import NET, tiny
from test_multihead import heads
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from rdc import analyse, attack
from rdc.attack.feature import feature
from rdc.attack.lagrange import lagrange
from rdc.attack.stadv import flow_field, stadv
from rdc.certify import APNDC, EPNDC, certify, certify_rows, lipschitz_certify, predict
from rdc.certify.baselines import Carlini, Clipped, Cohen
from rdc.certify.lipschitz import boxed, empirical_slope
from rdc.certify.noised import VARIANTS
from rdc.classify import CNN, RDC, DiffPure, DiffusionClassifier, LikelihoodMaximization, Purify
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.classify.energy import class_normalisers
from rdc.classify.optimal import NearestNeighbor, OptimalClassifier, ReleasedOptimalClassifier
from rdc.classify.score_gradient import pathwise_gradient, score_gradient
from rdc.data import Images
from rdc.defend.broken import broken_defences
from rdc.defend.likelihood import READINGS
from rdc.defend.preprocessed import one_denoising_step
from rdc.defend.purify import SAMPLERS
from rdc.denoise.base import to_model
from rdc.denoise.edm import EDM
from rdc.denoise.multihead import MultiHead
from rdc.denoise.optimal import OptimalDenoiser
from rdc.early_exit import Cascade, Race, Round
from rdc.early_exit.sift import Leader, Paired, SiftAndRefine, Threshold
from rdc.evaluate import robust_accuracy
from rdc.evaluate.audit import audit
from rdc.guide.align import alignment_table, shift_effect
from rdc.guide.classifier import AtLevel
from rdc.guide.guides import ClassifierGuide, DiffusionGuide, PosteriorGuide, RatioGuide
from rdc.guide.metrics import agreement, frechet_distance, precision_recall
from rdc.guide.plan import SamplingPlan, edm_path
from rdc.guide.sampling import sample
from rdc.guide.threat import Threat, level_table
from rdc.randomness import EOT, known_noise
from rdc.schedule import levels
from rdc.train.classifiers import train_classifier
from rdc.train.denoiser import Run, TrainConfig, edm_objective, placed
from rdc.train.guides import Fit, GuideConfig
from rdc.train.heads import OBJECTIVES, DistilConfig, objective

Case = Callable[[torch.device], Any]
Elsewhere = tuple[AbstractContextManager[Any], torch.device]
CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
X = draw((4, *SHAPE), 3, torch.float32)
Y = torch.tensor([0, 1, 2, 1])
TRAIN = draw((12, *SHAPE), 4, torch.float32)
TRAIN_Y = torch.arange(12) % 3
SIGMA = 0.3


@pytest.fixture
def elsewhere(device: torch.device) -> Elsewhere:
    """The other device, and the block within which it is there."""
    return (Accelerator(), REMOTE) if device == CPU else (nullcontext(), device)


def agree(
    case: Case, elsewhere: tuple[AbstractContextManager[Any], torch.device], rtol: float = 1e-3, atol: float = 1e-4
) -> None:
    """Run a case here and there and compare all numbers of what it returns."""
    block, device = elsewhere
    here = case(CPU)
    with block:
        found = case(device)
        places = {t.device.type for t in tree_flatten(found)[0] if isinstance(t, Tensor)}
        there = moved(found, CPU)
    assert not places or device.type in places, "what it returned is on the CPU"
    for a, b in zip(tree_flatten(here)[0], tree_flatten(there)[0], strict=True):
        if isinstance(a, (Tensor, float)):
            torch.testing.assert_close(torch.as_tensor(b), torch.as_tensor(a), rtol=rtol, atol=atol)
        else:
            assert a == b


def cnn(device: torch.device) -> CNN:
    return CNN(SHAPE, 3, 4).to(device).eval().requires_grad_(False)


def edm(device: torch.device) -> Any:
    return tiny_network().to(device)


def optimum(device: torch.device) -> OptimalDenoiser:
    return OptimalDenoiser(TRAIN.to(device), TRAIN_Y.to(device))


def few(count: int = 3) -> Any:
    return levels("elbo", count, sigma_min=0.2)


def dc(device: torch.device, **options: Any) -> DiffusionClassifier:
    return DiffusionClassifier(edm(device), few(), **options)


def multihead(device: torch.device, **options: Any) -> DiffusionClassifier:
    return DiffusionClassifier(heads().to(device), few(), **options)


def lm(device: torch.device, **options: Any) -> LikelihoodMaximization:
    return LikelihoodMaximization(edm(device), **{"steps": 2, **options})


def fewer(reading: dict[str, Any]) -> dict[str, Any]:
    """The same with three levels, where every step looks at all of them."""
    return {**reading, "sigma": few()} if reading.get("timesteps") == "all" else reading


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device)


CLASSIFIERS: dict[str, Case] = {
    "cnn": cnn,
    "linear": lambda d: Linear(draw((3, *SHAPE), 5, torch.float32).to(d), torch.zeros(3).to(d)),
    **{f"dc {n}": lambda d, n=n: dc(d, noise=n) for n in ("shared", "per_class", "fresh")},
    "dc draws": lambda d: dc(d, draws=2, share_levels=True, chunk=5, reduce="mean"),
    "dc prior": lambda d: dc(d, prior=torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)),
    "dc prior there": lambda d: dc(d, prior=torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).to(d)),
    "dc optimum": lambda d: DiffusionClassifier(optimum(d), few(), noise="antithetic", draws=2),
    "multi-head": multihead,
    "multi-head chunks": lambda d: multihead(d, chunk=5, noise="antithetic", draws=2),
    "boxed": lambda d: boxed(dc(d)),
    "optimal": lambda d: OptimalClassifier(TRAIN.to(d), TRAIN_Y.to(d), levels("elbo", 10), nodes=4, nearest=2),
    "optimal moved": lambda d: OptimalClassifier(TRAIN, TRAIN_Y, levels("elbo", 10), nodes=4, nearest=2).to(d),
    "optimal released": lambda d: ReleasedOptimalClassifier(TRAIN.to(d), TRAIN_Y.to(d), steps=4),
    "1-nn": lambda d: NearestNeighbor(TRAIN.to(d), TRAIN_Y.to(d)),
    **{f"epndc {f}": lambda d, f=f: EPNDC(edm(d), SIGMA, count=3, form=f) for f in ("fixed", "quadrature")},
    "epndc path": lambda d: EPNDC(edm(d), SIGMA, count=3, form="fixed", coupling="path", antithetic=False),
    "epndc fresh": lambda d: EPNDC(edm(d), SIGMA, count=3, noise="fresh"),
    "epndc heads": lambda d: EPNDC(heads().to(d), SIGMA, count=3),
    **{f"apndc {v}": lambda d, v=v: APNDC(edm(d), SIGMA, count=3, variant=v) for v in VARIANTS},
    "apndc released": lambda d: APNDC(edm(d), SIGMA, count=3, released=True),
    "carlini": lambda d: Carlini(edm(d), cnn(d), SIGMA),
    "clipped": lambda d: Clipped(cnn(d)),
    "cohen": lambda d: Cohen(cnn(d)),
    **{f"rdc {g}": lambda d, g=g: RDC(lm(d), cnn(d), gradient=g) for g in ("exact", "bpda")},
    "rdc denoise": lambda d: RDC(lm(d), cnn(d), gradient="denoise", surrogate=one_denoising_step(edm(d), 0.4)),
    "rdc dc": lambda d: RDC(lm(d), dc(d)),
    **{f"lm {r}": lambda d, r=r: RDC(lm(d, **fewer(READINGS[r])), cnn(d), gradient="exact") for r in READINGS},
    "lm adam": lambda d: RDC(lm(d, method="adam"), cnn(d), gradient="exact"),
    "lm fresh": lambda d: RDC(lm(d, sigma=few(), timesteps="all", norm="L2", budget=0.5), cnn(d), gradient="exact"),
    **{f"diffpure {s}": lambda d, s=s: DiffPure(Purify(edm(d), steps=2, sampler=s), cnn(d)) for s in SAMPLERS},
    **{f"broken {n}": lambda d, n=n: broken_defences(cnn(d))[n] for n in broken_defences(nn.Identity())},
    **{
        f"sift {type(r).__name__}": lambda d, r=r: SiftAndRefine(dc(d), r)
        for r in (Threshold(1.0, levels=3, stop=1, keep=1), Leader(pilot=2), Paired([1.0] * 3, warmup=1))
    },
    "sift epndc": lambda d: SiftAndRefine(EPNDC(edm(d), SIGMA, count=3), Threshold(1.0, levels=3, stop=1, keep=1)),
    "cascade": lambda d: Cascade(EPNDC(edm(d), SIGMA, count=2), EPNDC(edm(d), SIGMA, count=3)),
    "race": lambda d: Race(
        EPNDC(edm(d), SIGMA, count=3),
        EPNDC(optimum(d), SIGMA, count=3),
        [Round((0, 2), (0.5, 2.0), gap=1.0, keep=2), Round((1,), (1.0,), keep=2)],
    ),
    "at level": lambda d: AtLevel(tiny().to(d), 0.5),
    "eot": lambda d: EOT(cnn(d), 2),
}
RANDOM = ("broken random-input", "broken reseeded-noise")


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits, and the gradient of their weighted sum where there is one."""
    point = x.clone().requires_grad_()
    logits = model(point)
    if not logits.requires_grad:
        return logits, None
    weight = torch.tensor([1.0, -0.5, 0.2], dtype=logits.dtype).to(x.device)
    return logits.detach(), torch.autograd.grad((logits[:, :3] * weight).sum(), point)[0]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_and_its_gradient(name: str, elsewhere: Elsewhere) -> None:
    def case(device: torch.device) -> Any:
        torch.manual_seed(0)
        return gradient(CLASSIFIERS[name](device), X.to(device))

    agree(case, elsewhere)


def test_the_accelerator_finds_planted_faults() -> None:
    x = draw((3, 2), 1)
    faults: dict[str, Callable[[Tensor], Any]] = {
        "arange of the CPU": lambda z: z + torch.arange(2),
        "a table left on the CPU": lambda z: torch.eye(3, dtype=z.dtype)[z[:, 0].long()],
        "gather": lambda z: z.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
        "index_add": lambda z: z.index_add(0, torch.arange(3), z),
        "a list of both": lambda z: torch.cat([z, torch.ones(3, 2)]),
        "a generator": lambda z: torch.rand(2, generator=torch.Generator(), device=z.device),
        "into the CPU": lambda z: torch.zeros(3, 2).add_(z),
        "a mask": lambda z: torch.where(torch.ones(3, 2) > 0, z, 0),
        "numpy": lambda z: z.numpy(),
    }
    with Accelerator():
        for name, fault in faults.items():
            try:
                fault(x.to(REMOTE))
            except (RuntimeError, TypeError):
                continue
            raise AssertionError(f"not found: {name}")


def test_the_accelerator_computes_what_the_cpu_computes_and_counts_what_waits() -> None:
    x, accelerator = draw((3, 2), 1), Accelerator()
    with accelerator:
        there = x.to(REMOTE)
        accelerator.forget()
        found = (there.exp() * torch.tensor(2.0) + torch.arange(2, device=REMOTE))[torch.tensor([2, 0])]
        assert not accelerator.waits and not accelerator.uploads
        assert found.sum().item() == found.cpu().sum() and bool((found > 0).all())
        there[there > 0.5] = 0.0
        assert accelerator.waits == {"_local_scalar_dense": 2, "_to_copy": 1}
        there[there > 0.5].sum()
        assert accelerator.waits["index"] == 1
        torch.tensor([1.0], device=REMOTE)
        assert accelerator.uploads == {"_to_copy": 1}
    torch.testing.assert_close(found.values_here, (x.exp() * 2 + torch.arange(2))[[2, 0]])


def test_nothing_is_there_outside_the_block() -> None:
    with Accelerator():
        there = X.to(REMOTE)
    with pytest.raises(RuntimeError, match="outside"):
        there + 1
    assert torch.zeros(2, device="meta").is_meta and type(torch.zeros(2, device="meta")) is Tensor


ATTACKS: dict[str, Callable[..., Any]] = {
    **{
        f"pgd {n}": lambda m, x, y, n=n, e=e: attack.pgd(m, x, y, n, e, steps=3, restarts=2)
        for n, e in (("Linf", 0.1), ("L2", 0.8))
    },
    "pgd targets": lambda m, x, y: attack.pgd(m, x, y, "Linf", 0.1, steps=2, targets=2),
    "pgd scale": lambda m, x, y: attack.pgd(m, x, y, "Linf", 0.1, steps=2, loss="ce", scale="auto", eot=2),
    "lagrange": lambda m, x, y: lagrange(m, x, y, lambda p: p.square().flatten(1).sum(1), (0, 1), steps=2),
    "stadv": lambda m, x, y: stadv(m, x, y, eps=0.1, steps=2, restarts=2, smoothness=0.1),
    "flow": lambda m, x, y: flow_field(m, x, y, eps=0.1, steps=2),
    "feature": lambda m, x, y: feature(m, x, y, lambda p: p.flatten(1), x.flip(0), steps=2),
    "square": lambda m, x, y: attack.square(m, x, y, "Linf", 0.1, queries=5),
    "autoattack": lambda m, x, y: attack.autoattack(m, x, y, "Linf", 0.1, "custom", ["apgd-ce", "square"], steps=2, queries=4),
    "transfer": lambda m, x, y: attack.transfer(m, x, y, m, eps=0.1, steps=2),
    "uniform": lambda m, x, y: attack.uniform_noise(m, x, y, "Linf", 0.1, queries=3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, elsewhere: Elsewhere) -> None:
    agree(lambda d: ATTACKS[name](cnn(d), X.to(d), Y.to(d)), elsewhere)


def noise_free(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """What an audit found, without times."""
    return [(r.name, r.verdict) for r in audit(model, x, y, eps=0.1, steps=2, queries=4, features=None).rows]


def answer(d: torch.device) -> Tensor:
    """Labels that the network gives."""
    return cnn(d)(X.to(d)).argmax(1)


GUIDE_X, GUIDE_SIGMA = to_model(X), torch.tensor([0.2, 0.5, 1.0, 2.0])
MEASURES: dict[str, Case] = {
    "audit": lambda d: noise_free(cnn(d), X.to(d), answer(d)),
    "robust accuracy": lambda d: robust_accuracy(cnn(d), X.to(d), Y.to(d), "pgd", steps=2, eps=0.1).value,
    "robust accuracy of a randomised model": lambda d: (
        robust_accuracy(known_noise(EOT(cnn(d), 2)), X.to(d), Y.to(d), "pgd", draws=2, steps=2, eps=0.1).value
    ),
    "certify": lambda d: certify(EPNDC(edm(d), SIGMA, count=2), X[0].to(d), sigma=SIGMA / 2, n0=4, n=20, alpha=0.01, batch=8).k,
    "predict": lambda d: predict(Clipped(cnn(d)), X[0].to(d), n=20, alpha=0.1),
    "certified rows": lambda d: [
        r["certificate"]["radius"] for r in certify_rows(Cohen(cnn(d)), X[:2].to(d), Y[:2].to(d), n0=4, n=20, alpha=0.01)
    ],
    "lipschitz": lambda d: lipschitz_certify(dc(d), X[0].to(d), n0=4, n=20, alpha=0.01).margin,
    "slope": lambda d: empirical_slope(boxed(dc(d)), X.to(d), Y.to(d), steps=2),
    "diffusion loss": lambda d: diffusion_loss(edm(d), few())(X.to(d)),
    "normalisers": lambda d: class_normalisers(edm_of_a_pixel(d), few(), torch.linspace(0, 1, 4).to(d), nodes=9),
    "score gradient": lambda d: score_gradient(edm(d), GUIDE_X.to(d), few(), Y.to(d), draws=4),
    "path-wise gradient": lambda d: pathwise_gradient(edm(d), GUIDE_X.to(d), few(), Y.to(d), draws=4),
    "compression": lambda d: analyse.compression_rate(lm(d), X.to(d), draws=2),
    "jacobian": lambda d: analyse.jacobian_rms(lm(d), X.to(d), draws=2),
    "singular value": lambda d: analyse.top_singular_value(lm(d), X.to(d), iterations=2)[0],
    "gradients": lambda d: analyse.repeated_gradients(cnn(d), X.to(d), Y.to(d), repeats=2),
    "cosine": lambda d: analyse.gradient_cosine(analyse.repeated_gradients(cnn(d), X.to(d), Y.to(d), repeats=2)),
    "linearised": lambda d: analyse.linearised_distance(cnn(d), X.to(d), Y.to(d)),
    "loss noise": lambda d: analyse.loss_noise(cnn(d), X.to(d), X.flip(0).to(d), Y.to(d), draws=2).at,
    "lipschitz of the gradient": lambda d: analyse.gradient_lipschitz(cnn(d), X.to(d), Y.to(d), draws=2),
    "path": lambda d: analyse.ascent_path(cnn(d), X.to(d), Y.to(d), steps=2),
    **{
        f"sample {m}": lambda d, m=m: (
            sample(edm(d), Y.to(d), [0, 1, 2, 3], SamplingPlan(edm_path(4), m), ClassifierGuide(tiny().to(d)), batch=3).z
        )
        for m in ("euler", "heun", "ancestral")
    },
    "ratio guide": lambda d: RatioGuide(edm(d))(GUIDE_X.to(d), GUIDE_SIGMA.to(d), Y.to(d)),
    "posterior guide": lambda d: PosteriorGuide(optimum(d))(GUIDE_X.to(d), GUIDE_SIGMA.to(d), Y.to(d)),
    "diffusion guide": lambda d: DiffusionGuide(edm(d), count=2)(GUIDE_X.to(d), GUIDE_SIGMA.to(d), Y.to(d)),
    "alignment": lambda d: alignment_table(
        {"g": ClassifierGuide(tiny().to(d))}, edm(d), X.to(d), Y.to(d), (0.5, 1.0), batch=3, repeats=4
    ),
    "shift": lambda d: shift_effect(
        tiny().to(d), lambda z: z.square().flatten(1).sum(dim=1), GUIDE_X.to(d), GUIDE_SIGMA.to(d), Y.to(d), Threat(steps=2)
    ),
    "levels": lambda d: level_table(tiny().to(d), Images(X, Y, ["a", "b", "c"]), (0.5,), Threat(steps=2), batch=3, device=d),
    "precision and recall": lambda d: precision_recall(X.flatten(1).to(d), X.flip(0).flatten(1).to(d) + 0.01).precision.value,
    "frechet": lambda d: frechet_distance(TRAIN.flatten(1)[:, :3].to(d), X.flatten(1)[:, :3].to(d)),
    "agreement": lambda d: agreement(cnn(d), X.to(d), Y.to(d), batch=3).value,
}


def edm_of_a_pixel(d: torch.device) -> OptimalDenoiser:
    """An optimal denoiser of images of one pixel."""
    return OptimalDenoiser(TRAIN[:, :, :1, :1].contiguous().to(d), TRAIN_Y.to(d))


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.filterwarnings("ignore")
def test_a_measure(name: str, elsewhere: Elsewhere) -> None:
    agree(MEASURES[name], elsewhere)


def trained(run: Any, d: torch.device) -> Any:
    """Losses and averaged weights of two steps."""
    images = placed(Images(TRAIN, TRAIN_Y, ["a", "b", "c"]), d)
    return [run.advance(images) for _ in range(2)], list(run.state.average.values())


def network_of_training(d: torch.device) -> EDM:
    return tiny_network().to(d).requires_grad_(True)


def students(d: torch.device) -> MultiHead:
    return heads().to(d).requires_grad_(True)


SMALL = TrainConfig(steps=4, batch=4, warmup=1)
ROBUST = GuideConfig(NET, Threat(steps=2), steps=4, batch=4, warmup=1)
TRAINERS: dict[str, Case] = {
    "denoiser": lambda d: trained(Run(SMALL, {}, network_of_training(d), edm_objective), d),
    **{
        f"heads {o}": lambda d, o=o: trained(Run(SMALL, {}, students(d), objective(DistilConfig(SMALL, o, subset=2), edm(d))), d)
        for o in OBJECTIVES
    },
    "classifier": lambda d: list(
        train_classifier(Images(TRAIN, TRAIN_Y, ["a", "b", "c"]), 1, 4, width=4, device=d, noise=0.1).parameters()
    ),
    "guide": lambda d: trained(
        Fit(GuideConfig(NET, Threat(steps=2), steps=4, batch=4, warmup=1), tiny().to(d).requires_grad_()), d
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer(name: str, elsewhere: Elsewhere) -> None:
    agree(TRAINERS[name], elsewhere, atol=3e-3)  # Adam divides by gradients that are nearly zero


def waits(run: Callable[[int], Any]) -> tuple[float, float]:
    """How often a step waits for a value of the accelerator, and how often one is sent, from runs of one and of four steps."""
    found = []
    for steps in (1, 4):
        with Accelerator() as accelerator:
            run(steps)
        found.append((accelerator.waits.total(), accelerator.uploads.total()))
    return (found[1][0] - found[0][0]) / 3, (found[1][1] - found[0][1]) / 3


def test_a_step_of_training_waits_for_nothing() -> None:
    def run(steps: int) -> None:
        fit = Run(SMALL, {}, network_of_training(REMOTE), edm_objective)
        images = placed(Images(TRAIN, TRAIN_Y, ["a", "b", "c"]), REMOTE)
        for _ in range(steps):
            fit.advance(images)

    assert waits(run)[0] == 0


def pushed(model: Callable[[torch.device], nn.Module]) -> Callable[[int], Tensor]:
    """PGD for some steps."""
    return lambda steps: attack.pgd(model(REMOTE), X.to(REMOTE), Y.to(REMOTE), eps=0.1, steps=steps)


@pytest.mark.parametrize(("model", "most"), [(cnn, 0), (dc, 2), (multihead, 0)])
def test_what_a_step_of_pgd_waits_for(model: Callable[[torch.device], nn.Module], most: int) -> None:
    assert waits(pushed(model))[0] <= most
