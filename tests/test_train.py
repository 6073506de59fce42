"""Training can be killed at any moment: the resumed run ends with the same bits. Checkpoints are whole or refused."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import tiny_network

from rdc.data import Images
from rdc.denoise import checkpoints
from rdc.denoise.base import to_model
from rdc.denoise.checkpoints import CheckpointError, load_denoiser, read_checkpoint, save_denoiser, shipped, write_checkpoint
from rdc.denoise.edm import EDMConfig, build, coefficients
from rdc.denoise.unet import UNetConfig
from rdc.rng import randn
from rdc.train import denoiser as train
from rdc.train.denoiser import (
    TrainConfig,
    batch_indices,
    difference,
    edm_loss,
    schedule,
    state_path,
    stratified_sigma,
    train_counted,
    train_denoiser,
)

SMALL = TrainConfig(EDMConfig(UNetConfig(8, 1, 10, 8, (1,), 1, ()), 0.7, "digits"), steps=12, batch=16, lr=2e-3, warmup=3)

SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from rdc.train import denoiser as train
from test_train import SMALL, replace
advance = train.Run.advance
def slow(run, images):
    time.sleep({pause})
    return advance(run, images)
train.Run.advance = slow
train.train_denoiser(replace(SMALL, steps=40), Path(sys.argv[1]), save_seconds=0.0, quiet=True)
"""


def run(out: Path, pause: float) -> subprocess.Popen:
    """A training run in a process of its own, which saves its state after every step."""
    return subprocess.Popen([sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent), pause=pause), str(out)])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path, "denoiser")[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole.safetensors", 0.0)
    out, moments, kills = tmp_path / "killed.safetensors", random.Random(0), 0
    for _ in range(2):
        process = run(out, 0.1)
        before, deadline = (state_path(out).stat().st_mtime if state_path(out).exists() else 0.0), time.monotonic() + 60
        while not (state_path(out).exists() and state_path(out).stat().st_mtime > before) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.4 * moments.random())
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL and not out.exists()
    assert kills == 2, "the run was over before it was killed"
    step = read_checkpoint(state_path(out), "training state")[1]["step"]
    assert 2 <= step < 40
    assert run(out, 0.0).wait(timeout=60) == 0 == whole.wait(timeout=60)
    assert same(weights(out), weights(tmp_path / "whole.safetensors"))
    assert not state_path(out).exists()


def interrupt(monkeypatch, steps):
    """Make training stop with an exception when it is about to take step ``steps``."""
    advance = train.Run.advance

    def stop(run, images):
        if run.step == steps:
            raise KeyboardInterrupt
        return advance(run, images)

    monkeypatch.setattr(train.Run, "advance", stop)


@pytest.mark.parametrize("steps", [1, 5, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, digits, steps):
    whole = train_denoiser(SMALL, tmp_path / "a.safetensors", images=digits, quiet=True)
    out = tmp_path / "b.safetensors"
    with monkeypatch.context() as patch:
        interrupt(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(SMALL, out, images=digits, save_seconds=0.0, quiet=True)
    assert not out.exists()
    assert read_checkpoint(state_path(out), "training state")[1]["step"] == steps
    train_denoiser(SMALL, out, images=digits, quiet=True)
    assert same(weights(out), weights(whole))


def test_a_state_of_another_configuration_is_refused(tmp_path, monkeypatch, digits):
    out = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(SMALL, out, images=digits, save_seconds=0.0, quiet=True)
    for other, message in (
        (replace(SMALL, lr=1e-3, seed=5), r"lr: 0\.002 -> 0\.001, seed: 0 -> 5"),
        (replace(SMALL, denoiser=replace(SMALL.denoiser, sigma_data=0.5)), r"denoiser\.sigma_data: 0\.7 -> 0\.5"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_denoiser(other, out, images=digits, quiet=True)
    assert state_path(out).exists()


def test_differences_are_named():
    assert difference({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == "b.c: 2 -> 4, e: None -> 5"


def test_the_loss_falls(tmp_path, digits):
    config = replace(SMALL, steps=150, batch=64, lr=5e-3, warmup=10)
    out = train_denoiser(config, tmp_path / "a.safetensors", images=digits, quiet=True)
    losses = [loss for _, loss in read_checkpoint(out, "denoiser")[1]["losses"]]
    assert len(losses) == 3 and losses == sorted(losses, reverse=True) and losses[-1] < 0.65
    denoiser, z = load_denoiser(out, data="digits"), to_model(digits.x[:100])
    sigma = torch.full((100, 1, 1, 1), 0.7)
    trained = edm_loss(denoiser, z, digits.y[:100], sigma, randn(tuple(z.shape), 9))
    assert float(trained.mean()) < 0.8  # 1 is what the untrained network has
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_the_loss_is_the_weighted_denoising_error():
    denoiser, z, eps = tiny_network().double(), randn((5, 1, 8, 8), 0).double(), randn((5, 1, 8, 8), 1).double()
    label, sigma = torch.tensor([0, 1, 2, -1, 0]), torch.tensor([0.05, 0.3, 1, 3, 20]).double()
    found = edm_loss(denoiser, z, label, sigma.reshape(-1, 1, 1, 1), eps)
    wide = sigma.reshape(-1, 1, 1, 1)
    error = (denoiser(z + wide * eps, sigma, label) - z).square().mean(dim=(1, 2, 3))
    weight = 1 / coefficients(sigma, denoiser.config.sigma_data)[1] ** 2
    assert torch.allclose(found, weight * error, rtol=1e-9)


def test_batches_are_permutations_and_noise_levels_are_stratified():
    index = torch.cat([batch_indices(10, 4, step, 0) for step in range(5)])
    assert sorted(index[:10].tolist()) == sorted(index[10:].tolist()) == list(range(10))
    assert batch_indices(3, 7, 2, 0).shape == (7,)
    config = replace(SMALL, batch=40)
    u = torch.special.ndtr((stratified_sigma(config, 3).flatten().double().log() - config.p_mean) / config.p_std)
    assert (u * 40).floor().tolist() == list(range(40))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(i, 100, 10) for i in range(101)]
    assert rates[0] == 0.1 and max(rates) <= 1 and rates[100] == pytest.approx(0)
    assert rates[:9] == sorted(rates[:9]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_training_leaves_the_random_state_alone(tmp_path, digits):
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(weights(train_denoiser(SMALL, tmp_path / f"{seed}.safetensors", images=digits, quiet=True)))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*states)


def stored(tmp_path: Path) -> Path:
    save_denoiser(tmp_path / "a.safetensors", tiny_network(), seconds=1.0)
    return tmp_path / "a.safetensors"


def test_round_trip(tmp_path):
    path, z = stored(tmp_path), randn((2, 1, 8, 8), 0)
    assert torch.equal(load_denoiser(path, data="digits")(z, 0.5), tiny_network()(z, 0.5))
    assert load_denoiser(path, dtype=torch.bfloat16)(z, 0.5).dtype == torch.float32
    assert read_checkpoint(path, "denoiser")[1]["seconds"] == 1.0


def test_shipped_checkpoints_load():
    assert "fashion-mini" in shipped()
    for name in shipped():
        _, meta = read_checkpoint(
            Path(__file__).parents[1] / "rdc" / "assets" / "checkpoints" / f"{name}.safetensors", "denoiser"
        )
        assert meta["config"]["data"] and load_denoiser(name).num_classes == 10


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def other_layout(path):
    tensors, meta = read_checkpoint(path, "denoiser")
    tensors.pop("map_label.weight")
    write_checkpoint(path, tensors, kind="denoiser", config=meta["config"])


def other_version(path):
    tensors, meta = read_checkpoint(path, "denoiser")
    write_checkpoint(path, tensors, kind="denoiser", config={**meta["config"], "new_option": 1})


DAMAGE = {
    "missing": (lambda p: p.unlink(), "no checkpoint"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a readable checkpoint"),
    "cut header": (lambda p: p.write_bytes(p.read_bytes()[:20]), "not a readable checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable checkpoint"),
    "flipped byte": (flip, "is damaged"),
    "other kind": (
        lambda p: write_checkpoint(p, {"a": torch.ones(2)}, kind="training state", config={}),
        "training state, not a denoiser",
    ),
    "other layout": (other_layout, "does not fit its own configuration.*map_label"),
    "other version": (other_version, "new_option"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_gives_one_clear_line(tmp_path, case):
    path, (change, message) = stored(tmp_path), DAMAGE[case]
    change(path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_denoiser(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_for_other_data_and_unknown_names(tmp_path):
    with pytest.raises(CheckpointError, match="'digits', not 'fashion-mini'.*rdc train denoiser"):
        load_denoiser(stored(tmp_path), data="fashion-mini")
    with pytest.raises(CheckpointError, match="unknown checkpoint 'fashion-maxi'.*fashion-mini"):
        load_denoiser("fashion-maxi")


def test_a_plain_safetensors_file_is_not_a_checkpoint(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="something else, not a denoiser"):
        load_denoiser(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["replace", "fsync", "chmod"])
def test_nothing_half_written_remains(tmp_path, monkeypatch, name):
    path = stored(tmp_path)
    content = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="disk full"):
        save_denoiser(path, tiny_network(seed=1))
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_first_loss_is_about_one():
    images = Images(
        torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10, list("0123456789")
    )
    run = train.Run(SMALL, {}, build(SMALL.denoiser, SMALL.seed), train.edm_objective)
    assert run.advance(images) == pytest.approx(1.0, abs=0.5)  # an untrained network predicts nothing


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    old, new = ({"weight": torch.full((3,), float(value))} for value in (1, 2))
    checkpoints.write_checkpoint(path, old, kind="some", config={}, step=1)

    def replaced(data):
        checkpoints.write_checkpoint(path, new, kind="some", config={}, step=2)
        return load(data)

    load = checkpoints.load
    monkeypatch.setattr(checkpoints, "load", replaced)
    tensors, meta = checkpoints.read_checkpoint(path, "some")
    assert torch.equal(tensors["weight"], old["weight"]) and meta["step"] == 1


COMPILED = """
import sys, warnings
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from helpers import tiny_network
from test_train import SMALL, weights
from rdc.denoise import compiled
from rdc.rng import randn
from rdc.train import train_denoiser
z, sigma, label = randn((3, 1, 8, 8), "compile"), torch.tensor([0.2, 1.0, 4.0]), torch.tensor([0, 2, -1])
torch.testing.assert_close(compiled(tiny_network())(z, sigma, label), tiny_network()(z, sigma, label), rtol=1e-4, atol=1e-5)
config, folder = replace(SMALL, steps=3), Path(sys.argv[1])
a, b = (weights(train_denoiser(config, folder / f"{{c}}.safetensors", quiet=True, compile=c)) for c in (False, True))
for name in a:
    torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-3)
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_network_answers_the_same_and_a_compiled_run_trains_the_same(tmp_path):
    """In a process of its own: the compiler cannot see through the type checker of the tests."""
    script = COMPILED.format(tests=str(Path(__file__).parent))
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_a_run_without_a_step_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train_denoiser(replace(SMALL, steps=0), tmp_path / "none.safetensors", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("counted", [True, False], ids=["a new state", "a state from before"])
def test_a_run_goes_on_with_as_many_images_only(tmp_path, monkeypatch, digits, counted):
    out = tmp_path / "a.safetensors"
    begin = partial(train_counted, SMALL, out, digits) if counted else partial(train_denoiser, SMALL, out, images=digits)
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            begin(save_seconds=0.0, quiet=True)
    if counted:
        with pytest.raises(CheckpointError, match=rf"images: {len(digits)} -> {len(digits) - 1}"):
            train_counted(SMALL, out, digits[:-1], quiet=True)
    train_counted(SMALL, out, digits, quiet=True)
    whole = train_denoiser(SMALL, tmp_path / "b.safetensors", images=digits, quiet=True)
    assert same(weights(out), weights(whole))
