"""Rows of certificates: killed at any instant they continue, whatever batch and workers; the base classifiers; `rdc certify`."""

import io
import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from helpers import Linear, draw, tiny_network
from scipy.stats import norm
from torch import nn

from rdc.certify import certify
from rdc.certify.baselines import Carlini, Clipped, Cohen
from rdc.certify.rows import certified_accuracy, certify_rows
from rdc.classify import CNN, DiffusionClassifier
from rdc.cli import main
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.denoise.checkpoints import CheckpointError
from rdc.runs.rowfile import read_rows
from rdc.schedule import levels
from rdc.train.classifiers import reference_cnn, train_classifier

N = 12
SETTINGS = {"sigma": 0.2, "n0": 10, "n": 60, "alpha": 0.01, "seed": 3}
BLOCK = 2


def images(n=N):
    x = draw((n, 1, 3, 3), 1)
    return x, Linear(draw((3, 1, 3, 3), 5) - 0.5)(x).argmax(1)


class Timed(Linear):
    """A linear model with a pause in every call, which decides no number: it is an attribute of the class."""

    pause = 0.0

    def forward(self, x):
        time.sleep(self.pause)
        return super().forward(x)


def run(path, pause=0.0, **options):
    torch.set_num_threads(1)
    Timed.pause = pause
    return certify_rows(Timed(draw((3, 1, 3, 3), 5) - 0.5), *images(), path, **{"block": BLOCK, **SETTINGS, **options})


def rows_of(path):
    """The lines of a file without times."""
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    path = tmp_path_factory.mktemp("rows") / "whole.jsonl"
    run(path)
    return path


def test_a_row_is_the_certificate_of_its_image(whole):
    x, y = images()
    model = Linear(draw((3, 1, 3, 3), 5) - 0.5)
    config, rows = read_rows(whole)
    assert [row["index"] for row in rows] == list(range(N)) and config["certify"] == {**SETTINGS, "target": None}
    assert config["block"] == BLOCK
    for i in (0, 7):
        found = certify(model, x[i], index=i, **SETTINGS)
        assert rows[i]["certificate"] == vars(found) and rows[i]["label"] == int(y[i])
        assert rows[i]["right"] == (found.label == int(y[i]))
    assert any(row["right"] for row in rows)


@pytest.mark.parametrize("options", [{"batch": 7}, {"workers": 2}])
def test_batch_and_workers_change_nothing(tmp_path, whole, options):
    run(tmp_path / "other.jsonl", **options)
    assert rows_of(tmp_path / "other.jsonl") == rows_of(whole)


@pytest.mark.parametrize("options", [{}, {"target": 0.1}, {"target": 0.1, "stopping": "split"}])
def test_the_block_decides_no_number(options):
    """Draws of several images share batches; each image's certificate is the one that it gets alone."""
    found = [[row["certificate"] for row in run(None, block=block, batch=13, **options)] for block in (1, 5, 64)]
    assert found[0] == found[1] == found[2] and len({c["k"] for c in found[0]}) > 1


def test_killed_it_continues_and_ends_with_the_same_rows(tmp_path, whole):
    path, context, kills = tmp_path / "killed.jsonl", multiprocessing.get_context("forkserver"), 0
    context.set_forkserver_preload(["rdc.evaluate", "rdc.classify", "pytest"])
    while kills < 3:
        process = context.Process(target=run, args=(path, 0.01))
        process.start()
        before, deadline = len(rows_of(path)) if path.exists() else 0, time.monotonic() + 30
        while process.is_alive() and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= before + 2:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        kills += 1
    assert 1 < path.read_bytes().count(b"\n") < N + 1
    run(path)
    assert rows_of(path) == rows_of(whole)
    content = path.read_bytes()
    for size in (3, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:size])
        run(path)
        assert rows_of(path) == rows_of(whole)


def test_another_run_is_refused_and_rows_depend_on_the_seed(tmp_path, whole):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole.read_bytes())
    for options, says in (({"sigma": 0.3}, "certify.sigma: 0.2 -> 0.3"), ({"target": 0.1}, "certify.target: null -> 0.1")):
        with pytest.raises(ValueError, match=f"holds another run: {says}"):
            run(path, **options)
    assert path.read_bytes() == whole.read_bytes()
    assert [r["certificate"]["k"] for r in run(None, seed=4)] != [r["certificate"]["k"] for r in read_rows(whole)[1]]
    early = run(None, target=0.05, stopping="split")
    assert {r["certificate"]["met"] for r in early} <= {True, False} and early[0]["certificate"]["stopping"] == "split"


def test_the_bar_shows_draws_the_radius_and_the_time_left(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    found = run(None, quiet=False, batch=20)
    last = stream.getvalue().split("\r")[-1]
    assert "840/840" in last and "draw/s" in last and f"radius {found[-1]['certificate']['radius']:.3f}" in last


def test_certified_accuracy_counts_what_is_right_and_reaches(whole):
    rows = [
        {"right": right, "certificate": {"radius": radius}}
        for right, radius in ((True, 0.5), (True, 0.2), (False, 0.9), (True, 0.0))
    ]
    found = certified_accuracy(rows, [0.0, 0.2, 0.21, 0.6])
    assert [(a.correct, a.n) for a in found.values()] == [(3, 4), (2, 4), (1, 4), (0, 4)]
    assert certified_accuracy(whole, [0.0])[0.0].n == N
    with pytest.raises(ValueError, match="no rows yet"):
        certified_accuracy([], [0.0])


class Jittery(nn.Module):
    """Draws from the global generator."""

    def forward(self, x):
        return torch.randn(len(x), 3)


def test_bad_input_is_refused():
    x, y = images(2)
    with pytest.raises(ValueError, match="draws random numbers of its own; let it derive them from the keyword 'index'"):
        certify_rows(Jittery(), x, y)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        run(None, workers=0)
    with pytest.raises(ValueError, match="index must hold 12 different"):
        run(None, index=torch.zeros(12).long())


# ------------------------------------------------------------------------------------------------- base classifiers


def test_carlini_denoises_once_at_twice_the_noise_and_the_network_sees_the_box():
    denoiser, network, x = tiny_network(), CNN((1, 8, 8), 3, width=4), draw((3, 1, 8, 8), 0, torch.float32) * 3 - 1
    model = Carlini(denoiser, network, 0.25)
    estimate = (denoiser(2 * x - 1, 0.5) + 1) / 2
    assert estimate.min() < 0 and torch.equal(model.denoised(x), estimate.clamp(0, 1))
    assert torch.equal(model(x), network(estimate.clamp(0, 1)))
    with pytest.raises(ValueError, match="sigma must be positive"):
        Carlini(denoiser, network, 0.0)


def test_the_estimate_of_carlini_is_the_posterior_mean():
    """For two images of one pixel the mean under the posterior is a hyperbolic tangent."""
    data = OptimalDenoiser(torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1), torch.tensor([0, 1]))
    x = torch.linspace(-1, 2, 7).double().reshape(-1, 1, 1, 1)
    expected = (1 + torch.tanh((x - 0.5) / (2 * 0.3**2))) / 2
    assert torch.allclose(Carlini(data, Clipped(nn.Identity()), 0.3).denoised(x), expected)


def test_networks_without_the_check_and_with_clipping():
    network, x = CNN((1, 8, 8), 3, width=4), draw((3, 1, 8, 8), 0, torch.float32)
    assert torch.equal(network.layers(x), network(x)) and torch.equal(Cohen(network)(x), network(x))
    far = 3 * x - 1
    assert torch.equal(Clipped(network)(far), network(far.clamp(0, 1))) and not torch.equal(
        Cohen(network)(far), Clipped(network)(far)
    )
    diffusion = DiffusionClassifier(tiny_network(), levels("elbo", 2))
    assert torch.equal(Clipped(diffusion)(far), diffusion(far.clamp(0, 1)))


def test_training_with_noise_repeats_and_helps_on_noisy_images():
    train, torch_state = load("digits", "train")[:640], torch.get_rng_state()
    clean, noisy, again = (train_classifier(train, 8, batch=32, width=8, seed=1, noise=noise) for noise in (0.0, 0.5, 0.5))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(noisy.parameters(), again.parameters(), strict=True))
    test = load("digits", "test")
    x = test.x + 0.5 * torch.randn(test.x.shape, generator=torch.Generator().manual_seed(0))
    losses = [F.cross_entropy(model.layers(x), test.y) for model in (noisy, clean)]
    assert losses[0] < 0.9 * losses[1]
    for bad in ({"noise": -0.1}, {"noise": 0.1, "attack": lambda *a, **k: a[1]}):
        with pytest.raises(ValueError, match="noise must not be negative and comes without an attack"):
            train_classifier(train, 1, **bad)


def test_a_reference_network_is_trained_once_and_read_afterwards(tmp_path):
    train, path = load("digits", "train")[:160], tmp_path / "sub" / "cnn.safetensors"
    first = reference_cnn(path, train, "digits", noise=0.25, epochs=1, seed=2)
    before = path.read_bytes()
    again = reference_cnn(path, train, "digits", noise=0.25, epochs=1, seed=2)
    assert path.read_bytes() == before and torch.equal(first(train.x[:5]), again(train.x[:5]))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    with pytest.raises(CheckpointError, match="is a network of .*0.25.*, not of .*0.5"):
        reference_cnn(path, train, "digits", noise=0.5, epochs=1, seed=2)


# ------------------------------------------------------------------------------------------------- the command line


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of ``rdc certify arguments``."""
    monkeypatch.setattr(sys, "argv", ["rdc", "certify", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


SMALL = ["--denoiser", "optimal", "--data", "digits", "--levels", "2", "--n0", "4", "--n", "20", "--alpha", "0.05", "-q"]


@pytest.mark.parametrize("model", ["apndc", "epndc", "dc", "carlini", "cohen"])
def test_each_base_classifier_on_the_command_line(monkeypatch, capsys, tmp_path, model):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, "--model", model, *SMALL, "--count", "2", "--epochs", "1")
    assert (code, err) == (0, "")
    assert f"(radius 0; {model}, sigma 0.25, n0 4, n 20, alpha 0.05)" in out and "/2 = " in out
    assert f"24 noisy images an image; 20 draws reach {0.25 * norm.ppf(0.05 ** (1 / 20)):.3f} at most" in out
    file = {"carlini": ["cnn-digits.safetensors"], "cohen": ["cnn-digits-noise-0.25.safetensors"]}.get(model, [])
    assert [p.name for p in tmp_path.glob("runs/*")] == file


def test_rows_of_the_command_line_continue(monkeypatch, capsys, tmp_path):
    rows = tmp_path / "a.jsonl"
    arguments = ["--model", "dc", *SMALL, "--sigma", "0.1", "--target", "0.05", "--count", "2", "--rows", rows]
    code, out, err = command(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "") and "(radius 0.05; dc, sigma 0.1" in out
    before = rows.read_text()
    assert command(monkeypatch, capsys, *arguments)[0] == 0 and rows.read_text() == before
    code, _, err = command(monkeypatch, capsys, *arguments, "--stopping", "split")
    assert code == 2 and "certify.stopping: sequence -> split" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "fashion-minis"], "unknown model 'fashion-minis'; there are 1-nn, apndc"),
        (["--sigma", "0"], "--sigma must be positive, got 0"),
        (["--sigma", "much"], "--sigma must be a number or a fraction such as 8/255"),
        (["--target", "-1/4"], "--target must be positive"),
        (["--n0", "0"], "--n0 must be at least 1, got 0"),
        (["--alpha", "2"], "alpha must lie in (0, 1)"),
        (["--count", "0"], "--count must lie in 1...400, got 0"),
        (["--model", "dc", "--target", "1", "--count", "1"], "20 draws that all succeed do not reach the target"),
        (["--denoiser", "nothing"], "unknown checkpoint 'nothing'"),
        (["--sigma", "1/4", "-s", "sigma=0.5"], "--sigma is 0.25, and this apndc is for the noise 0.5; they must agree"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(monkeypatch, capsys, arguments, says):
    code, _, err = command(monkeypatch, capsys, *SMALL, *arguments)
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith("rdc: ") and says in err


def test_a_base_for_another_noise_is_refused(monkeypatch, capsys):
    """The rounds of a race were learned for one noise; the noise may be said twice."""
    code, _, err = command(monkeypatch, capsys, "--model", "race", "--sigma", "0.5")
    assert code == 2 and err == "rdc: --sigma is 0.5, and this race is for the noise 0.25; they must agree\n"
    code, _, err = command(monkeypatch, capsys, *SMALL, "--count", "1", "--sigma", "1/4", "-s", "sigma=0.25")
    assert (code, err) == (0, "")


def test_the_help_shows_an_example(monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "--help")
    assert code == 0 and "For example:\n  rdc certify " in out


def test_the_cost_is_said_before_it_is_paid(capsys):
    """Draws of the inner noise multiply those of the certificate; a batch is so small that the bar moves."""
    from rdc.cli.certify import batch_size, evaluations, tell_cost
    from rdc.models import base_classifier

    base = base_classifier("apndc", "digits", denoiser="optimal", levels=4, draws=50)
    assert evaluations(base) == base.evaluations == 201 and batch_size(base) == 20
    assert evaluations(nn.Linear(1, 1)) == 1 and batch_size(nn.Linear(1, 1)) == 64
    tell_cost(201, 110, 2)
    assert "201 network evaluations a noisy image, at most 110 noisy images an image: at most 44,220" in capsys.readouterr().err
