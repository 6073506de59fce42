"""The time-dependent classifier, the attack of its training with a closed-form optimum, and a training run that can be killed."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import draw, mixture, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rdc.attack.norms import norm_of
from rdc.data import Images, load
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import CheckpointError, read_checkpoint, save_denoiser, write_checkpoint
from rdc.denoise.edm import coefficients
from rdc.denoise.optimal import OptimalDenoiser
from rdc.denoise.unet import UNetConfig
from rdc.guide.classifier import (
    SHIPPED,
    AtLevel,
    ClassifierConfig,
    TimeClassifier,
    build_classifier,
    classifier_file,
    load_classifier,
    save_classifier,
    shipped_classifiers,
)
from rdc.guide.threat import RADII, STEPS, Threat, level_table, perturb
from rdc.rng import randn
from rdc.train import guides as robust
from rdc.train.denoiser import state_path
from rdc.train.guide_recipes import GUIDES, short_guide
from rdc.train.guides import GuideConfig, train_guide

NET = ClassifierConfig(UNetConfig(8, 1, 0, 8, (1, 2), 1, ()), 3, 0.6, "digits")
SMALL = GuideConfig(
    replace(NET, num_classes=10), Threat(steps=2), steps=8, batch=16, lr=2e-3, warmup=3, probe_every=4, probe_levels=(0.3, 2.0)
)


def tiny(seed=0):
    """A classifier in which no layer is nearly zero."""
    h = build_classifier(NET, seed)
    for i, parameter in enumerate(h.parameters()):
        if parameter.ndim > 1:
            parameter.data = randn(tuple(parameter.shape), "weights", seed, i) / parameter[0].numel() ** 0.5
    return h.eval().requires_grad_(False)


class Affine(nn.Module):
    """``h(z) = W z + b``, the same at every level; its second logit is always zero."""

    def __init__(self, weight, bias=0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, z, sigma):
        first = z.flatten(1) @ self.weight + self.bias
        return torch.stack([first, torch.zeros_like(first)], dim=1)


# The network


def test_the_input_is_scaled_and_the_noise_level_enters():
    h, z = tiny().double(), randn((4, 1, 8, 8), 1).double()
    sigma = torch.tensor([0.1, 0.5, 2.0, 9.0]).double()
    c_in = coefficients(sigma, 0.6)[2]
    by_hand = h.model(c_in.reshape(-1, 1, 1, 1) * z, sigma.log() / 4)
    assert torch.allclose(h(z, sigma), by_hand, rtol=1e-12) and h(z, sigma).dtype == torch.float64
    assert not torch.allclose(h(z, sigma), h(z, 2 * sigma), rtol=1e-3)
    assert torch.allclose(h(z, 0.5)[1], h(z, sigma)[1], rtol=1e-12)


def test_a_row_does_not_depend_on_the_batch():
    h, z, sigma = tiny().double(), randn((5, 1, 8, 8), 2).double(), torch.tensor([0.1, 0.3, 1.0, 4.0, 20.0]).double()
    alone = torch.cat([h(z[i : i + 1], sigma[i : i + 1]) for i in range(5)])
    assert torch.allclose(h(z, sigma), alone, atol=1e-12)


@pytest.mark.parametrize("name", GUIDES)
def test_shipped_sizes(name):
    c = GUIDES[name]["robust"].classifier
    h = build_classifier(c)
    assert h(torch.zeros(2, *h.shape), torch.tensor([0.1, 5.0])).shape == (2, 10)
    assert sum(p.numel() for p in h.parameters()) * 4 < 8e6 and h.num_classes == c.num_classes
    vanilla = GUIDES[name]["vanilla"]
    assert replace(vanilla, threat=Threat()) == GUIDES[name]["robust"]  # nothing else differs


def test_bad_input_gives_one_line():
    h = tiny()
    for z, sigma, message in (
        (torch.zeros(2, 1, 7, 8), 1.0, r"shape \(1, 7, 8\), the classifier takes \(1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), 0.0, "sigma must be positive"),
        (torch.zeros(2, 1, 8, 8), torch.ones(3), "one per image"),
    ):
        with pytest.raises(ValueError, match=message):
            h(z, sigma)
    with pytest.raises(ValueError, match="label_dim 0 and at least two"):
        build_classifier(replace(NET, encoder=replace(NET.encoder, label_dim=3)))


def test_one_level_is_a_classifier_of_clean_images():
    h, x = tiny(), draw((3, 1, 8, 8), 4).float()
    model = AtLevel(h, 0.7, seed=3)
    eps = randn((1, 8, 8), 3, "level")
    assert torch.allclose(model(x), h(2 * x - 1 + 0.7 * eps, 0.7), atol=1e-6)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)
    assert not torch.allclose(model(x), model.frozen(4)(x), atol=1e-3)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model(x + 1)


# The attack


@given(rule=st.sampled_from(sorted(RADII)), eps=st.floats(0.01, 2), sigma=st.floats(0.02, 50))
def test_the_radius_in_the_papers_coordinates(rule, eps, sigma):
    """``x_t = sqrt(alpha) z_sigma``: the rules are constant, sqrt(alpha) and sqrt(1 - alpha) there."""
    alpha = 1 / (1 + sigma**2)
    on_x_t = float(Threat(eps=eps, radius=rule).radius_at(torch.tensor(sigma, dtype=torch.float64))) * math.sqrt(alpha)
    expected = {"paper": 2, "released": 1, "image": 2 * math.sqrt(alpha), "scaled": math.sqrt(1 - alpha)}[rule]
    assert on_x_t == pytest.approx(eps * expected, rel=1e-9)


def test_the_step_rules_are_those_printed():
    assert 0.5 * STEPS["main"](7) == pytest.approx(0.083, abs=5e-4)  # section 5.1
    assert [round(0.5 * STEPS["appendix"](n), 3) for n in (5, 7, 9)] == [0.25, 0.179, 0.139]  # appendix E, 2.5 eps / steps


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("step", sorted(STEPS))
def test_the_optimum_of_a_linear_classifier(norm, step):
    """The attack ends at ``-r d(w)`` after full steps: the change that lowers w z most."""
    weight, z = randn((12,), 5).double(), randn((6, 1, 3, 4), 6).double()
    sigma, y = torch.linspace(0.1, 5, 6).double(), torch.zeros(6, dtype=torch.long)
    threat = Threat(norm, 0.5, 7, "released", step, stop=False)
    found = perturb(Affine(weight), z, sigma, y, threat) - z
    direction = weight.sign() if norm == "Linf" else weight / weight.norm()
    best = -threat.radius_at(sigma)[:, None] * direction
    assert torch.allclose(found.flatten(1), best, rtol=1e-9)
    assert torch.allclose(norm_of(found, norm), threat.radius_at(sigma), rtol=1e-9)


def test_an_image_stops_when_it_is_fooled():
    """With ``w z`` a step lowers the margin by its length: image i needs ceil(margin / step) steps, and takes no more."""
    weight = torch.zeros(4, dtype=torch.float64)
    weight[0] = 1.0
    margins = torch.tensor([-0.3, 0.05, 0.15, 0.25, 5.0], dtype=torch.float64)
    z = torch.zeros(5, 1, 2, 2, dtype=torch.float64)
    z[:, 0, 0, 0] = margins
    threat, y = Threat("L2", 1.0, 10, "scaled", "main"), torch.zeros(5, dtype=torch.long)  # sigma 0.6: radius 0.6, step 0.1
    found = perturb(Affine(weight), z, 0.6, y, threat)
    assert torch.allclose((margins - found[:, 0, 0, 0]), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.6]).double(), atol=1e-12)
    assert torch.equal(found[0], z[0])  # wrong from the start: not attacked
    full = perturb(Affine(weight), z, 0.6, y, replace(threat, stop=False))
    assert torch.allclose(margins - full[:, 0, 0, 0], torch.full((5,), 0.6).double(), atol=1e-12)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_a_network_is_attacked_image_by_image_within_the_radius(norm):
    h, z, y = tiny(), randn((6, 1, 8, 8), 7), torch.arange(6) % 3
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0, 8.0])
    h.requires_grad_(True)
    threat = Threat(norm, 0.3, 4, "paper")
    found = perturb(h, z, sigma, y, threat)
    assert all(p.grad is None for p in h.parameters()) and not found.requires_grad
    assert bool((norm_of(found - z, norm) <= threat.radius_at(sigma) * (1 + 1e-4)).all())
    alone = torch.cat([perturb(h, z[i : i + 1], sigma[i : i + 1], y[i : i + 1], threat) for i in range(6)])
    assert torch.allclose(found, alone, atol=1e-4)
    loss = nn.functional.cross_entropy
    assert loss(h(found, sigma), y) > loss(h(z, sigma), y)


def test_the_exact_posterior_loses_less_than_its_certificate_allows():
    """|grad of log odds| = |D_1 - D_0| / sigma^2 <= diameter / sigma^2: an attack of radius r moves them by r times that."""
    x, y = mixture(3, (4, 4), (1, 2, 2))
    exact = OptimalDenoiser(x, y)
    z, sigma = to_model(x) + 0.8 * randn(tuple(x.shape), 8).double(), 0.8
    found = perturb(exact.log_density, z, sigma, y, Threat("L2", 0.4, 7, "scaled", stop=False))
    odds = [exact.log_density(point, sigma).diff(dim=1) for point in (z, found)]
    diameter = torch.pdist(to_model(x).flatten(1)).max()
    moved = (odds[1] - odds[0]).abs().max()
    assert 0.01 < moved <= 0.4 * 0.8 * diameter / sigma**2 + 1e-9


def test_the_paper_s_radius_in_image_units_defeats_bayes_rule(digits):
    """What the exact posterior of the digits makes of the attack, at moderate noise: no classifier can be asked for more."""
    train, images = load("digits", "train"), digits[:60]
    exact = OptimalDenoiser(train.x.double(), train.y).log_density
    images = Images(images.x.double(), images.y, images.classes)
    tables = {r: level_table(exact, images, (1.0,), Threat("L2", 0.5, 5, r))[0] for r in ("released", "paper")}
    clean = {row["clean"] for row in tables.values()}
    assert len(clean) == 1 and tables["paper"]["adversarial"] < tables["released"]["adversarial"] < min(clean)
    assert tables["paper"]["adversarial"] < min(clean) / 2


def test_a_bad_threat_gives_one_line():
    for options, message in (
        ({"norm": "L1"}, "unknown norm 'L1'"),
        ({"radius": "large"}, "unknown radius 'large'; there are paper, released, image, scaled"),
        ({"step": "long"}, "unknown step"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"steps": 0}, "steps at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Threat(**options)


# Training

SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from rdc.data import load
from rdc.train import guides as robust
advance = robust.Fit.advance
def slow(run, images):
    time.sleep(0.2)  # time to be killed in
    return advance(run, images)
robust.Fit.advance = slow
images, config = load("digits", "test"), {config}
robust.train_guide(config, Path(sys.argv[1]), images=images, held_out=images[:10], save_seconds=0.0, quiet=True)
"""
NAMES = "from rdc.denoise.unet import UNetConfig\nfrom rdc.guide.classifier import ClassifierConfig\n"
NAMES += "from rdc.train.guides import GuideConfig\nfrom rdc.guide.threat import Threat\n"


def without_time(path):
    return {k: v for k, v in json.loads(path.with_suffix(".json").read_text()).items() if k != "seconds"}


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, digits):
    out, whole, config = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors", replace(SMALL, steps=20)
    process = subprocess.Popen([sys.executable, "-c", NAMES + SCRIPT.format(config=repr(config)), str(out)])
    deadline = time.monotonic() + 60
    while not state_path(out).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(0).random())
    process.kill()
    assert process.wait() == -signal.SIGKILL and not out.exists(), "the run was over before it was killed"
    assert 1 <= read_checkpoint(state_path(out), "training state")[1]["step"] < 20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process
    try:
        for path in (whole, out):
            train_guide(config, path, images=digits, held_out=digits[:10], quiet=True)
    finally:
        torch.set_num_threads(threads)
    a, b = (read_checkpoint(path, "classifier")[0] for path in (out, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert without_time(out) == without_time(whole)
    assert not state_path(out).exists()


def stop_at(monkeypatch, step):
    """Make training stop with an exception when it is about to take this step."""
    advance = robust.Fit.advance

    def stop(run, images):
        if run.step == step:
            raise KeyboardInterrupt
        return advance(run, images)

    monkeypatch.setattr(robust.Fit, "advance", stop)


def test_a_state_of_another_recipe_is_refused(tmp_path, monkeypatch, digits):
    out = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train_guide(SMALL, out, images=digits, held_out=digits[:4], save_seconds=0.0, quiet=True)
    with pytest.raises(CheckpointError, match=r"threat\.eps: 0\.5 -> 0\.25"):
        train_guide(replace(SMALL, threat=Threat(steps=2, eps=0.25)), out, images=digits, quiet=True)
    with pytest.raises(CheckpointError, match="another configuration.*threat"):
        train_guide(replace(SMALL, threat=None), out, images=digits, quiet=True)


def test_a_run_leaves_weights_curve_and_no_trace(tmp_path, digits):
    torch.manual_seed(5)
    before, out = torch.get_rng_state(), tmp_path / "a.safetensors"
    train_guide(SMALL, out, images=digits, held_out=digits[:20], quiet=True)
    assert torch.equal(before, torch.get_rng_state()) and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", out.name]
    h = load_classifier(out, data="digits")
    assert not any(p.requires_grad for p in h.parameters()) and h.config == SMALL.classifier
    found = without_time(out)
    assert [entry["step"] for entry in found["curve"]] == [4, 8] and found["recipe"]["threat"]["eps"] == 0.5
    levels = found["curve"][-1]["levels"]
    assert [row["sigma"] for row in levels] == [0.3, 2.0] and all(row["adversarial"] <= row["clean"] <= 20 for row in levels)
    assert levels == level_table(h, digits[:20], SMALL.probe_levels, SMALL.probe)


def test_the_table_counts_and_does_not_depend_on_the_batch(digits):
    h, images = tiny(), Images(draw((7, 1, 8, 8), 9).float(), torch.arange(7) % 3, list("abc"))
    whole = level_table(h, images, (0.2, 1.0), Threat(steps=2))
    parts = level_table(h, images, (0.2, 1.0), Threat(steps=2), batch=3)
    for a, b in zip(whole, parts, strict=True):
        assert a == {**b, "loss": pytest.approx(b["loss"], abs=1e-5)}
    eps = torch.stack([randn((1, 8, 8), 0, "held out", i) for i in range(7)])
    right = (h(to_model(images.x) + eps, 1.0).argmax(dim=1) == images.y).sum()
    assert whole[1]["clean"] == int(right) and whole[1]["n"] == 7


def test_robust_training_drops_what_the_attack_can_flip():
    """One pixel tells the classes apart by far, 15 by less than the radius: only vanilla training uses those (Tsipras et al.)."""
    y = torch.arange(200) % 2
    z = torch.full((200, 1, 4, 4), 0.08) * (2 * y - 1)[:, None, None, None]
    z[:, 0, 0, 0] = 0.9 * (2 * y - 1)
    images = Images((z + 1) / 2, y, ["a", "b"])
    net = replace(NET, encoder=replace(NET.encoder, resolution=4), num_classes=2)
    config = replace(SMALL, classifier=net, steps=150, batch=32, lr=0.05, warmup=1, weight_decay=0.0, p_mean=-5.0, p_std=0.1)
    found = {}
    for threat in (None, Threat("Linf", 0.1, 3, "image")):  # 0.2 in model units
        h = TimeClassifier(NoLevel(), net)
        run = robust.Fit(replace(config, threat=threat), h)
        while run.step < config.steps:
            run.advance(images)
        weight = (h.model.layer.weight[1] - h.model.layer.weight[0]).detach()
        found[threat is None] = float(weight[1:].mean() / weight[0])
    assert found[True] > 0.5 and abs(found[False]) < 0.1


class NoLevel(nn.Module):
    """A linear network that does not look at the noise level."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 2)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x, noise):
        return self.layer(x.flatten(1))


def test_a_short_training_is_kept_by_its_settings(tmp_path):
    paths = [
        short_guide("digits", threat, seed, 1, 2, folder=tmp_path)
        for threat, seed in ((None, 0), (None, 1), ({"eps": 0.1}, 0), ({"eps": 0.1, "stop": False}, 0))
    ]
    assert len(set(paths)) == 4 and all(path.exists() for path in paths)
    recipe = read_checkpoint(paths[3], "classifier")[1]["recipe"]
    assert Threat(**recipe["threat"]) == Threat(eps=0.1, stop=False) and (recipe["steps"], recipe["batch"]) == (1, 2)
    written = paths[0].stat().st_mtime_ns
    assert short_guide("digits", None, 0, 1, 2, folder=tmp_path) == paths[0] and paths[0].stat().st_mtime_ns == written


# Files


def test_save_and_load(tmp_path):
    h, z = tiny(), randn((2, 1, 8, 8), 1)
    save_classifier(tmp_path / "a.safetensors", h)
    assert torch.equal(load_classifier(tmp_path / "a.safetensors")(z, 1.0), h(z, 1.0))
    with pytest.raises(CheckpointError, match="'digits', not 'fashion'"):
        load_classifier(tmp_path / "a.safetensors", data="fashion")
    with pytest.raises(CheckpointError, match="unknown classifier 'robust'; there are .* or give a .safetensors file"):
        load_classifier("robust")
    save_denoiser(tmp_path / "b.safetensors", tiny_network())
    with pytest.raises(CheckpointError, match="holds denoiser, not a classifier"):
        load_classifier(tmp_path / "b.safetensors")


def test_the_file_of_a_classifier_is_shipped_or_a_path():
    wanted = SHIPPED / "fashion-mini-robust.safetensors"
    assert classifier_file("robust", "fashion-mini") == classifier_file("fashion-mini-robust") == wanted
    for other in (("robust", None), ("robust", "digits"), ("runs/own.safetensors", "fashion-mini")):
        assert classifier_file(*other) == Path(other[0])
    assert classifier_file(wanted, "fashion-mini") == wanted


@pytest.mark.parametrize("name", shipped_classifiers())
def test_shipped_classifiers_load(name):
    h = load_classifier(name)
    assert h(torch.zeros(2, *h.shape), torch.tensor([0.1, 5.0])).shape == (2, h.num_classes)
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < 8e6


def test_a_classifier_of_another_version_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    config = {**asdict(NET), "new": 1}
    write_checkpoint(path, {"w": torch.ones(1)}, kind="classifier", config=config)
    with pytest.raises(CheckpointError, match="does not know.*new"):
        load_classifier(path)
    write_checkpoint(path, {"w": torch.ones(1)}, kind="classifier", config=asdict(NET))
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_classifier(path)
