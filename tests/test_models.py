"""The builder of models: every name builds, options are checked, and the numbers are those of objects made by hand."""

import inspect
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from helpers import tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.attack import pgd
from rdc.certify import APNDC, EPNDC, Carlini, Clipped, Cohen
from rdc.classify import (
    RDC,
    DiffPure,
    DiffusionClassifier,
    LikelihoodMaximization,
    NearestNeighbor,
    OptimalClassifier,
    Purify,
    ReleasedOptimalClassifier,
)
from rdc.cli import main
from rdc.data import load
from rdc.defend.broken import broken_defences
from rdc.defend.likelihood import READINGS
from rdc.defend.transfer import Transfer
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import load_denoiser, save_denoiser
from rdc.early_exit import Cascade
from rdc.experiments import experiment
from rdc.models import base_classifier, build, entry, names, options_of
from rdc.models.likelihood import Reading
from rdc.models.parts import Kind, _reference, find_denoiser, reference_network
from rdc.models.values import described, parsed
from rdc.quantities import number
from rdc.schedule import KINDS, levels
from rdc.train.classifiers import reference_cnn

CPU = torch.device("cpu")
DIGITS = load("digits").x[:2]
TINY = "tiny.safetensors"  # an untrained network
SMALL = {"levels": 2, "steps": 1, "count": 2, "epochs": 1, "denoiser": TINY, "fast": TINY, "slow": TINY}  # cheap values
ELSEWHERE = {"race": "fashion-mini", "resnet18": "cifar10-20", "robustbench": "cifar10-20"}  # not for digits


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """An empty folder, where networks that are trained are written, with an untrained denoiser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("models"))
        save_denoiser(Path(TINY), tiny_network(num_classes=10))
        patch.setattr("rdc.denoise.checkpoints.load_denoiser", cache(load_denoiser))  # read each once, for speed
        _reference.cache_clear()
        yield
    _reference.cache_clear()


def cheap(name):
    """Small settings of a model, on an untrained network."""
    return {k: v for k, v in SMALL.items() if k in options_of(name) and name not in ELSEWHERE}


@pytest.mark.parametrize("name", [*names(), "digits"])
def test_every_name_builds_a_model_with_finite_logits(name):
    data = ELSEWHERE.get(name, "digits")
    if name == "resnet18":
        pytest.importorskip("pyautoattack")
        pytest.importorskip("foolbox")
    x = load(data).x[:2]
    if name == "robustbench":
        pytest.skip("a package of the reader's; see test_baselines.py")
    model = build(name, data, **cheap(name))
    with torch.no_grad():
        logits = model(x)
    assert isinstance(model, nn.Module) and not model.training
    assert logits.shape == (2, 10) and bool(logits.isfinite().all())


@pytest.mark.parametrize(("name", "options"), [("rdc", {"levels": 1, "steps": 1}), ("epndc", {"levels": 1})])
def test_the_default_data_have_models(name, options):
    assert build(name, **options)(load("fashion-mini").x[:1]).shape == (1, 10)


# Equality with objects made by hand


def trained(noise):
    """The network of cohen or carlini, as they find it."""
    path = f"runs/cnn-digits-noise-{noise:g}.safetensors" if noise else "runs/cnn-digits.safetensors"
    return reference_cnn(path, load("digits", "train"), "digits", noise, 1)


ROWS = [row for name in ("rdc-gradient", "rdc-suite", "rdc-settings", "dc-noise") for row in experiment(name).rows]
LM = ("method", "step_size", "budget", "sigma", "timesteps", "count", "steps")


def distinct(key):
    """The first row of the experiments for each value of a key."""
    return list({str(key(row)): row for row in reversed(ROWS)}.values())


@pytest.mark.parametrize("name", ["dc", "rdc", "lm-cnn", "diffpure", "epndc"])
def test_models_are_in_float32_whatever_the_device_multiplies_fast(name, monkeypatch):
    """In bfloat16 the gradient through likelihood maximisation points elsewhere, and an attack with it is weak."""
    monkeypatch.setattr("rdc.denoise.base.fast_dtype", lambda device="cpu": torch.bfloat16)
    model = build(name, "digits", CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def small(row):
    """The options of a row, with the small network for the digits in the place of its own."""
    options = dict(row.options)
    return options | ({"denoiser": TINY} if "denoiser" in options_of(row.model) else {})


def by_hand(row):
    """The model of a row, made of the classes of the package."""
    options, model = dict(row.options), row.model
    denoiser, cnn = load_denoiser(TINY, dtype=torch.float32), reference_network("cnn", "digits", CPU)
    if model in ("cnn", "at-linf"):
        return reference_network(model, "digits", CPU)
    fresh, gradient = options.get("noise") == "fresh", options.get("gradient", "exact")
    coupling = options.get("noise", "shared")
    grid = levels(options.get("kind", "elbo"), 8, sigma_min=0.1)
    dc = DiffusionClassifier(denoiser, grid, noise=coupling, draws=options.get("draws", 1))
    if model == "dc":
        return dc
    back = cnn if model in ("lm-cnn", "diffpure") else dc
    if model.startswith("diffpure"):
        return DiffPure(Purify(denoiser, steps=10, noise="fresh" if fresh else "fixed"), back, gradient=gradient)
    changes = {name: options[name] for name in LM if name in options}
    if "budget" in changes:
        changes["budget"] = number(changes["budget"], "budget")
    noise = {"noise": "fresh"} if fresh else {"noise": options["lm_noise"]} if "lm_noise" in options else {}
    lm = LikelihoodMaximization(denoiser, **{**READINGS[options["lm"]], **changes, **noise})
    if gradient.startswith("smoothed"):
        return RDC(lm.smoothed(float(gradient.split()[1])), back, gradient="exact")
    return RDC(lm, back, gradient=gradient)


@pytest.mark.parametrize("row", distinct(lambda r: (r.model, r.options)), ids=lambda row: f"{row.model} {dict(row.options)}")
def test_the_defences_of_the_experiments_are_those_made_by_hand(row):
    ours, theirs = build(row.model, "digits", **small(row)), by_hand(row)
    with torch.no_grad():
        assert torch.equal(ours(DIGITS), theirs(DIGITS))


@pytest.mark.parametrize(
    "row", distinct(lambda r: (r.model, r.options.get("gradient"))), ids=lambda row: f"{row.model} {row.about['gradient']}"
)
def test_the_defences_of_the_experiments_have_the_gradients_of_those_made_by_hand(row):
    assert torch.equal(slope(build(row.model, "digits", **small(row))), slope(by_hand(row)))


def slope(model):
    """The gradient of a logit of each image."""
    x = DIGITS.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 3].sum(), x)[0]


@pytest.mark.parametrize("name", ["dc", "rdc", "lm-cnn", "diffpure", "diffpure-dc", "cascade", "optimal", "broken-batch-leak"])
def test_workers_can_have_a_model(name):
    gradients = {"rdc": ("denoise", "transfer"), "lm-cnn": ("smoothed",), "diffpure": ("denoise",), "diffpure-dc": ("denoise",)}
    for options in [{"gradient": gradient} for gradient in gradients.get(name, ())] or [{}]:
        model = build(name, "digits", **cheap(name), **options)
        copied = pickle.loads(pickle.dumps(model))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            before = model(DIGITS)
            torch.manual_seed(0)
            assert torch.equal(copied(DIGITS), before)


def test_a_transferred_gradient_leaves_the_logits_as_they_are():
    a, b = build("rdc", "digits", **cheap("rdc"), noise="fresh"), build("cnn", "digits")
    both = Transfer(a, b)
    x = DIGITS.clone().requires_grad_()
    frozen = both.frozen(3)
    with torch.no_grad():
        assert torch.equal(frozen(DIGITS), a.frozen(3)(DIGITS))
    assert torch.equal(frozen(x), a.frozen(3)(DIGITS)) and torch.equal(slope(frozen), slope(b))


def bases(net):
    """Base classifiers of the certificates: name, options, and the same by hand."""
    fast, slow = EPNDC(net, 0.5, count=3), EPNDC(net, 0.5, count=2)
    path = {"form": "fixed", "coupling": "path", "antithetic": False, "noise": "fresh"}
    return {
        "epndc": ({"levels": 4, "denoiser": TINY}, EPNDC(net, 0.5, count=4)),
        "epndc, path": ({"levels": 3, "denoiser": TINY, **path}, EPNDC(net, 0.5, count=3, **path)),
        "apndc": ({"levels": 3, "denoiser": TINY, "variant": "correct", "seed": 2},
                  APNDC(net, 0.5, count=3, variant="correct", seed=2)),
        "cascade": ({"levels": 2, "first": 3, "gap": 2.0, "fast": TINY, "slow": TINY}, Cascade(fast, slow, gap=2.0)),
        "carlini": ({"denoiser": TINY, "epochs": 1}, Carlini(net, trained(0.0), 0.5)),
        "cohen": ({"epochs": 1}, Cohen(trained(0.5))),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["epndc", "epndc, path", "apndc", "cascade", "carlini", "cohen"])
def test_the_base_classifiers_are_those_of_the_library(name):
    options, by_hand = bases(load_denoiser(TINY, dtype=torch.float32))[name]
    ours = base_classifier(name.split(",")[0], "digits", sigma=0.5, **options)
    x = DIGITS + 0.5 * torch.randn(DIGITS.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(x), by_hand(x))


def test_what_earlier_command_lines_built_is_the_same():
    denoiser, train = load_denoiser("digits", dtype=torch.float32), load("digits", "train")
    classifier = DiffusionClassifier(denoiser, levels("elbo", 16), noise="shared", seed=3, draws=2)
    assert torch.equal(build("digits", "digits", seed=3, draws=2)(DIGITS), classifier(DIGITS))
    optimal = OptimalClassifier(train.x, train.y, levels("elbo", 16), seed=3)
    assert torch.equal(build("optimal", "digits", seed=3)(DIGITS), optimal(DIGITS))
    clipped = base_classifier("dc", "digits", denoiser="optimal", levels=3, sigma_min="none")
    by_hand = Clipped(DiffusionClassifier(OptimalDenoiser(train.x, train.y), levels("elbo", 3)))
    assert torch.equal(clipped(2 * DIGITS), by_hand(2 * DIGITS))


def test_models_of_the_training_images_are_the_same():
    train = load("digits", "train")
    assert torch.equal(build("1-nn", "digits")(DIGITS), NearestNeighbor(train.x, train.y)(DIGITS))
    released = ReleasedOptimalClassifier(train.x, train.y, 10, seed=1)
    assert torch.equal(build("optimal-released", "digits", levels=10, seed=1)(DIGITS), released(DIGITS))


def test_the_classifier_with_a_floor_is_the_other_one_without_its_low_levels():
    floor = build("dc-floor", "digits")
    assert float(floor.levels.sigma.min()) > 1
    same = build("dc", "digits", sigma_min=1.0)
    with torch.no_grad():
        assert torch.equal(floor(DIGITS), same(DIGITS))
        assert torch.equal(build("dc-floor", "digits", levels=2, seed=1)(DIGITS),
                           build("dc", "digits", levels=2, sigma_min=1.0, seed=1)(DIGITS))  # fmt: skip


def test_another_denoiser_can_answer_without_a_label():
    own = load_denoiser(TINY, dtype=torch.float32)
    other = find_denoiser("optimal", "digits", CPU)
    cnn = reference_network("cnn", "digits", CPU)
    for name in ("rdc", "lm-cnn", "diffpure", "diffpure-dc", "apndc", "carlini"):
        model = build(name, "digits", unconditional="optimal", **cheap(name))
        plain = build(name, "digits", **cheap(name))
        assert not torch.equal(model(DIGITS), plain(DIGITS)), name
    carlini = build("carlini", "digits", unconditional="optimal", network="cnn", sigma="1/2")
    assert torch.equal(carlini(DIGITS), Carlini(other, cnn, 0.5)(DIGITS))
    assert not torch.equal(carlini(DIGITS), Carlini(own, cnn, 0.5)(DIGITS))
    assert torch.equal(build("cohen", "digits", epochs=1)(DIGITS), Cohen(trained(0.25))(DIGITS))


def test_the_planted_defences_are_all_there_with_their_defaults():
    planted = broken_defences(reference_network("cnn", "digits", CPU))
    assert {f"broken-{name}" for name in planted} == {name for name in names() if name.startswith("broken-")}
    for name, by_hand in planted.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = build(f"broken-{name}", "digits")(DIGITS)
            torch.manual_seed(0)
            assert torch.equal(ours, by_hand(DIGITS))


def test_a_network_of_the_book_is_one_object_for_each_caller():
    one, two = build("cnn", "digits"), build("cnn", "digits")
    assert one is not two and torch.equal(one(DIGITS), two(DIGITS))


# Options


def test_the_words_of_the_options_are_those_of_the_package():
    assert set(get_args(Reading)) == set(READINGS) and set(get_args(Kind)) == set(KINDS)


#: What another value needs beside it.
CONTEXT = {
    "path": {"form": "fixed"}, "antithetic": {"draws": 2}, "sign": {"step_size": 0.1}, "released": {"levels": 6},
    **dict.fromkeys(("inverse", "log", "linear", "bridge"), {"form": "fixed"}),
}  # fmt: skip


def alternatives(option, options):
    """Other values of an option of a model than its default."""
    if option.name in ("network", "epochs", "quiet"):
        network = "at-linf" if "at-linf" in option.values else "other.safetensors"
        return {"network": [network], "epochs": [1], "quiet": ["true"]}[option.name]
    if option.name == "recipe":
        return ["wide, distilled"]
    if option.name == "seed":
        return [0, 1] if "epochs" not in options else [0]
    if option.name in ("denoiser", "unconditional", "fast", "slow"):
        return [TINY]
    if option.name == "gradient":
        return ["bpda", "smoothed 0.2", "denoise", "transfer"] if "smoothed" in option.values else ["bpda", "denoise"]
    found = []
    for kind in get_args(option.kind) if get_origin(option.kind) is not Literal else [option.kind]:
        found += list(get_args(kind)) if get_origin(kind) is Literal else []
    if isinstance(option.default, bool):
        return [not option.default]
    if isinstance(option.default, int):
        return [option.default + 2]
    if isinstance(option.default, float):
        return [option.default / 2]
    if "2 numbers" in option.values:
        return ["0.2,0.3"]
    if "number" in option.values and not option.name.startswith("sigma"):
        return ["2"]
    other = {"sigma_min": ["1/4"], "sigma_max": ["10"], "sigma_data": [0.6]}
    return [word for word in found if word != option.default] or other[option.name]


@pytest.mark.parametrize("name", sorted(set(names()) - set(ELSEWHERE)))
def test_every_option_is_accepted(name):
    for option in options_of(name).values():
        for value in alternatives(option, options_of(name)):
            given = {**cheap(name), **CONTEXT.get(value if isinstance(value, str) else "", {}), option.name: value}
            known = {k: v for k, v in given.items() if k in options_of(name)}
            assert isinstance(build(name, "digits", **known), nn.Module), (option.name, value)


CHANGES = {
    "dc": {"levels": 1, "kind": "edm", "sigma_min": 0.3, "sigma_max": 5, "noise": "per_class", "draws": 2, "seed": 1},
    "rdc": {"lm": "mi-fgsm", "steps": 2, "method": "rmsprop", "step_size": 0.3, "budget": "2/255", "sigma": "0.1,0.2", "seed": 1,
            "timesteps": "all", "label": 3, "lm_noise": "fresh", "levels": 1},
    "diffpure": {"t": 0.2, "steps": 2, "sampler": "sde", "seed": 1, "noise": "fresh", "network": "at-linf"},
    "epndc": {"sigma": 0.5, "levels": 3, "form": "fixed", "weight": "edm", "coupling": "per_class", "draws": 2, "noise": "fresh",
              "antithetic": False, "sigma_max": 5, "placement": "log", "seed": 1},
    "apndc": {"variant": "correct", "released": True, "placement": "log", "antithetic": True},
    "cascade": {"levels": 3, "first": 1, "form": "fixed", "seed": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_options_change_the_logits(name):
    small = cheap(name) | {k: v for k, v in {"steps": 3, "count": 3}.items() if k in options_of(name)}
    with torch.no_grad():
        plain = build(name, "digits", **small)(DIGITS)
        for option, value in CHANGES[name].items():
            more = {"form": "fixed"} if option == "placement" and name == "epndc" else {}
            before = build(name, "digits", **small, **more)(DIGITS) if more else plain
            assert not torch.equal(build(name, "digits", **{**small, **more, option: value})(DIGITS), before), option


@pytest.mark.parametrize(
    ("name", "data", "options", "says"),
    [
        ("nothing", "digits", {}, "unknown model 'nothing'; there are 1-nn, apndc"),
        ("dc", "imagenet", {}, "unknown data set 'imagenet'; there are digits"),
        ("dc", "digits", {"levls": 3}, "dc has no option 'levls'; it has denoiser=heads, levels=8, kind=elbo, sigma_min=0.1"),
        ("cnn", "digits", {"levels": 3}, "cnn has no option 'levels'; it has none"),
        ("dc", "digits", {"levels": "many"}, "levels of dc must be"),
        ("dc", "digits", {"levels": 2.5}, "levels of dc must be"),
        ("dc", "digits", {"levels": 0}, "count must be at least 1, got 0"),
        ("dc", "digits", {"kind": "none"}, "kind of dc must be one of elbo, edm, edm-released, vp, vp-printed, vp-derived, got"),
        ("dc", "digits", {"denoiser": "nothing"}, "unknown checkpoint 'nothing'"),
        ("dc", "digits", {"denoiser": "fashion-mini"}, "is a denoiser for data set 'fashion', not 'digits'"),
        ("dc", "cifar100", {}, "no denoiser is shipped for cifar100, only for digits, fashion-mini, fashion"),
        ("cnn", "cifar100", {}, "no reference network 'cnn' for 'cifar100'; there are "),
        ("optimal", "cifar10-20", {}, "there is no optimal for cifar10-20: it has no training images"),
        ("resnet18", "digits", {}, "resnet18 is a network for cifar10-20, not for digits"),
        ("race", "digits", {}, "no rounds of a race were learned for digits"),
        ("rdc", "digits", {"gradient": "straight"}, "gradient must be one of exact, bpda"),
        ("rdc", "digits", {"gradient": "smoothed much"}, "the width of the smoothed gradient must be a number"),
        ("rdc", "digits", {"budget": "8/0"}, "budget of rdc must be a number or preset or none, got '8/0'"),
        ("rdc", "digits", {"sigma": "0.4"}, "sigma of rdc must be 2 numbers such as 0.4,0.6 or preset, got '0.4'"),
        ("apndc", "digits", {"released": "maybe"}, "released of apndc must be true or false, got 'maybe'"),
        ("absent.safetensors", "digits", {}, "no checkpoint absent.safetensors"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(name, data, options, says):
    with pytest.raises(ValueError) as caught:
        build(name, data, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@given(st.integers(-100, 100), st.integers(1, 255), st.booleans(), st.sampled_from(["Linf", "L2"]))
def test_text_stands_for_the_object(a, b, flag, word):
    assert parsed(f"{a}/{b}", float, "x") == a / b and parsed(str(a), int, "x") == a
    assert parsed(str(flag).lower(), bool, "x") is flag and parsed(word, Literal["Linf", "L2"] | None, "x") == word
    assert parsed(f"{a},{b}", tuple[float, float], "x") == (a, b) == parsed([a, b], tuple[float, float], "x")
    for none in ("none", None):
        assert parsed(none, float | None, "x") is None and parsed(none, str | None, "x") is None
    assert parsed(f"{a}", int | Literal["preset"], "x") == a and parsed("preset", float | Literal["preset"], "x") == "preset"
    for value, kind in ((flag, int), (flag, float), (word, int), ("", str), (None, int), (a + 0.5, int)):
        with pytest.raises(ValueError, match="x must"):
            parsed(value, kind, "x")


def test_every_builder_is_one_plain_function_with_a_line():
    for name in names():
        found = entry(name)
        assert inspect.isfunction(found.make) and found.line.endswith(".") and found.make.__qualname__ == found.make.__name__
        for option in found.options.values():
            assert parsed(option.default, option.kind, option.name) == option.default and described(option.kind)


# The command line


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of ``rdc arguments``."""
    monkeypatch.setattr(sys, "argv", ["rdc", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_the_command_lists_models_and_options(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "models")
    assert (code, err) == (0, "")
    listed = [line.split()[0] for line in out.split("\n\n")[0].splitlines()]
    assert listed == names()
    code, out, _ = run(monkeypatch, capsys, "models", "rdc")
    assert code == 0 and all(f"{option} " in out for option in options_of("rdc").values())
    code, _, err = run(monkeypatch, capsys, "models", "nothing")
    assert code == 2 and err.startswith("rdc: unknown model 'nothing'")


ON_DIGITS = ["--data", "digits", "--n", "2", "--device", "cpu", "-q"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("attack", ["--model", "rdc", "--lm", "released", "--gradient", "smoothed", "--eps", "8/255", "--denoiser", TINY]),
        ("attack", ["--model", "rdc", "--attack", "lagrange", "--steps", "1", "--steps-lm", "1", "--denoiser", TINY]),
        ("attack", ["--model", "diffpure", "--denoiser", TINY, "--steps", "1", "--steps-lm", "2", "--set", "t=0.2"]),
        ("accuracy", ["--model", "lm-cnn", "--steps-lm", "1", "--denoiser", "optimal"]),
        ("accuracy", ["--model", "optimal", "--levels", "2", "--noise", "shared"]),
        ("accuracy", ["--model", "digits", "--levels", "2", "--sigma-min", "1/5", "--draws", "2", "--noise", "antithetic"]),
    ],
)  # fmt: skip
def test_models_on_the_command_line(monkeypatch, capsys, command, arguments):
    code, out, err = run(monkeypatch, capsys, command, *ON_DIGITS, *arguments)
    assert (code, err) == (0, "") and "/2 = " in out


def test_the_options_of_the_command_line_reach_the_model(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("rdc.evaluate.accuracy", lambda model, *args, **options: seen.append(model))
    options = ["--lm", "mi-fgsm", "--gradient", "smoothed", "--steps-lm", "2", "--levels", "3", "--draws", "2"]
    options += ["--noise", "fresh", "--seed", "7", "-s", "count=5", "-s", "budget=4/255"]
    run(monkeypatch, capsys, "accuracy", *ON_DIGITS, "--model", "rdc", *options)
    (made,) = seen
    assert (made.lm.method, made.lm.width, made.lm.steps, made.lm.count, made.lm.budget) == ("sign", 0.3, 2, 5, 4 / 255)
    back = made.classifier
    assert (len(back.levels), back.draws, back.noise, back.seed, made.lm.seed, made.lm.noise) == (3, 2, "fresh", 7, 7, "fresh")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "cnn", "--lm", "released"], "cnn has no option 'lm'; it has none"),
        (["--model", "cascade", "--denoiser", "optimal"], "cascade has no option 'denoiser'; it has sigma=0.25, levels=3"),
        (["--model", "rdc", "-s", "budget"], "--set takes key=value, got 'budget'"),
        (["--model", "rdc", "--levels", "2", "-s", "levels=3"], "the option levels is given twice"),
        (["--model", "rdc", "-s", "nothing=3"], "rdc has no option 'nothing'; it has lm=released, gradient=exact, steps=5"),
        (["--model", "own_model:make", "--noise", "fresh"], "a model of one's own brings its own options and its own noise"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(monkeypatch, capsys, arguments, says):
    code, _, err = run(monkeypatch, capsys, "accuracy", *ON_DIGITS, *arguments)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1


CERTIFY = ["certify", "--data", "digits", "--count", "2", "--n0", "4", "--n", "20", "--alpha", "0.05", "--device", "cpu", "-q"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "cnn"],
        ["--model", "digits", "--levels", "2"],
        ["--model", "rdc", "--levels", "2", "--steps-lm", "1", "--denoiser", TINY],
        ["--model", "cascade", "-s", "gap=2", "--levels", "2", "-s", f"fast={TINY}", "-s", f"slow={TINY}"],
        ["--model", "carlini", "--network", "at-linf"],
    ],
)
def test_certificates_of_any_model(monkeypatch, capsys, arguments):
    code, out, err = run(monkeypatch, capsys, *CERTIFY, *arguments)
    assert (code, err) == (0, "") and "24 noisy images an image" in out


def test_a_base_classifier_of_ones_own_sees_images_that_are_not_clipped(monkeypatch, capsys, tmp_path):
    source = """
from torch import nn

class Model(nn.Module):
    def forward(self, x):
        outside = (x - x.clamp(0, 1)).abs().flatten(1).sum(1)
        return nn.functional.one_hot((outside > 0).long(), 10).float()

def make():
    return Model()
"""
    (tmp_path / "base_of_my_own.py").write_text(source)
    rows = tmp_path / "rows.jsonl"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, err = run(monkeypatch, capsys, *CERTIFY, "--model", "base_of_my_own:make", "--sigma", "1", "--rows", rows)
    sys.modules.pop("base_of_my_own", None)
    assert (code, err) == (0, "") and "24 noisy images an image" in out
    assert all('"label": 1, "radius": ' in line for line in rows.read_text().splitlines()[1:])


def test_an_attack_on_a_built_model_is_that_on_one_made_by_hand():
    row = next(r for r in ROWS if r.model == "rdc" and r.options["gradient"] == "smoothed 0.3")
    y = load("digits").y[:2]
    x_adv = [pgd(model, DIGITS, y, eps=0.1, steps=2) for model in (build("rdc", "digits", **small(row)), by_hand(row))]
    assert torch.equal(*x_adv)
