"""The loop of training: stopped anywhere, any number of times, it ends with the same bits; what it keeps, and in which format."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.denoise.checkpoints import CheckpointError, read_checkpoint, tensors_sha256, write_checkpoint
from rdc.rng import randn
from rdc.train import loop as training_loop
from rdc.train.loop import State, begin, state_path, train_to

STEPS, RECIPE, SAVE = 60, {"rate": 0.1, "sizes": (2, 3)}, State.save


class Toy:
    """A linear layer that follows noisy targets, one stream of noise for each step; its bias is not trained."""

    def __init__(self, recipe=RECIPE, adam=torch.optim.Adam):
        self.model = nn.Linear(3, 2)
        self.model.weight.data, self.model.bias.data = randn((2, 3), "toy"), torch.ones(2)
        self.model.bias.requires_grad_(False)
        self.state = begin(self.model, recipe, lambda weights: adam(weights, lr=0.1, betas=(0.9, 0.99)), curve=[])

    def advance(self):
        x = randn((4, 3), "toy", self.state.step)
        loss = (self.model(x) - x[:, :2] + randn((4, 2), "noise", self.state.step)).square().mean()
        return self.state.descend(loss, 0.1 / (1 + self.state.step), 0.95)

    def measure(self):
        if self.state.step % 20 == 0:
            self.state.more["curve"].append({"step": self.state.step, "norm": float(self.state.average["weight"].norm())})

    def run(self, out, steps=STEPS, advance=None, save_seconds=60.0):
        train_to(steps, self.state, advance or self.advance, out, save_seconds, True, self.measure)
        return self.state


def same(a: State, b: State) -> bool:
    """Whether two states agree to the bit, time apart."""
    x, y = dict(a.tensors()), dict(b.tensors())
    numbers = [(s.recipe, s.step, [list(e) for e in s.losses], s.more) for s in (a, b)]
    return numbers[0] == numbers[1] and x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@settings(max_examples=15)
@given(stops=st.lists(st.integers(0, STEPS - 1), max_size=4), every=st.integers(1, 30), adamw=st.booleans())
def test_stopped_anywhere_it_ends_with_the_same_bits(tmp_path_factory, stops, every, adamw):
    """Stopped before or within a step, with a state that was saved some steps ago."""
    out, adam = tmp_path_factory.mktemp("run") / "a.safetensors", torch.optim.AdamW if adamw else torch.optim.Adam
    saves = []
    for i, stop in enumerate(stops):
        toy = Toy(adam=adam)
        start = saved_step(out)

        def advance(toy=toy, stop=stop, i=i):
            if toy.state.step == stop and i % 2:
                raise KeyboardInterrupt
            loss = toy.advance()
            if toy.state.step > stop:
                raise KeyboardInterrupt  # the step was taken, and is lost
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(State, "save", lambda s, path: SAVE(s, path) if s.step % every == 0 else None)
            if start <= stop:
                with pytest.raises(KeyboardInterrupt):
                    toy.run(out, advance=advance, save_seconds=0.0)
        saves.append(saved_step(out))
    assert saves == sorted(saves)
    assert same(Toy(adam=adam).run(out), Toy(adam=adam).run(out.with_name("whole")))


def saved_step(out):
    return read_checkpoint(state_path(out), training_loop.KIND)[1]["step"] if state_path(out).exists() else 0


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training_loop import Toy
Toy().run(Path(sys.argv[1]), steps=10**6, save_seconds=0.0)
"""


def test_a_killed_process_leaves_a_state_that_continues(tmp_path):
    """Killed while it does nothing but step and save: the file is whole, and continuing it is as if nothing had happened."""
    out = tmp_path / "a.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(tests=str(Path(__file__).parent)), str(out)])
    deadline = time.monotonic() + 60
    try:
        while saved_step(out) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1 * random.Random(0).random())
    finally:
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    assert code == -signal.SIGKILL
    step = saved_step(out)
    assert step >= 20
    assert same(Toy().run(out, step + 60), Toy().run(tmp_path / "whole", step + 60))


def test_the_format_is_that_of_earlier_states(tmp_path):
    """A state written by hand, in the format of the first release, is what the loop itself writes, and continues."""
    out, toy = tmp_path / "a.safetensors", Toy()
    toy.run(out, 50)
    toy.state.save(state_path(out))
    tensors, meta = read_checkpoint(state_path(out), "training state")
    assert meta.keys() == {"kind", "config", "step", "seconds", "losses", "curve", "tensors_sha256"}
    assert meta["config"] == {"rate": 0.1, "sizes": [2, 3]} and meta["step"] == 50
    assert meta["losses"] == [[step, round(loss, 6)] for step, loss in toy.state.losses] and len(meta["losses"]) == 1
    assert [entry["step"] for entry in meta["curve"]] == [20, 40]
    moments = toy.state.optimizer.state[toy.model.weight]
    by_hand = {
        "model.weight": toy.model.weight.detach(),
        "average.weight": toy.state.average["weight"],
        "step.weight": moments["step"],
        "exp_avg.weight": moments["exp_avg"],
        "exp_avg_sq.weight": moments["exp_avg_sq"],
    }
    assert meta["tensors_sha256"] == tensors_sha256(by_hand) and tensors.keys() == by_hand.keys()
    other = tmp_path / "b.safetensors"
    numbers = {key: meta[key] for key in ("step", "seconds", "losses", "curve")}
    write_checkpoint(state_path(other), by_hand, kind="training state", config=meta["config"], **numbers)
    assert state_path(other).read_bytes() == state_path(out).read_bytes()
    assert same(Toy().run(other), Toy().run(tmp_path / "whole"))


def test_the_average_is_the_sum_that_its_decay_says(tmp_path):
    """``a_n = sum_i (1 - d_i) w_i prod_{j > i} d_j``; what is not trained stays."""
    toy, weights = Toy(), []
    expected, decays = toy.state.average["weight"].double(), [min(0.95, (1 + i) / (10 + i)) for i in range(STEPS)]

    def advance():
        loss = toy.advance()
        weights.append(toy.model.weight.detach().double().clone())
        return loss

    toy.run(tmp_path / "a.safetensors", advance=advance)
    for d, w in zip(decays, weights, strict=True):
        expected = d * expected + (1 - d) * w
    assert torch.allclose(toy.state.average["weight"].double(), expected, atol=1e-6)
    assert torch.equal(toy.state.average["bias"], torch.ones(2)) and torch.equal(toy.model.bias, torch.ones(2))


def test_a_step_is_that_of_the_optimiser_at_the_given_rate():
    """Adam's first step moves every weight by the rate, against the sign of its gradient."""
    toy = Toy()
    before = toy.model.weight.detach().clone()
    loss = toy.model.weight.square().sum()
    assert float(toy.state.descend(loss, 0.03, 0.9)) == pytest.approx(float(before.square().sum()))
    assert torch.allclose(toy.model.weight - before, -0.03 * before.sign(), atol=1e-6) and toy.state.step == 1


def test_time_is_counted_over_all_pieces_and_decides_the_saves(tmp_path, monkeypatch):
    """With a clock that a step advances by a second: a save every third step, and a second a step, in two pieces."""
    now, saved = [0.0], []
    monkeypatch.setattr(training_loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(State, "save", lambda s, path: (saved.append(s.step), SAVE(s, path)))
    out = tmp_path / "a.safetensors"

    def piece(until):
        toy = Toy()

        def advance():
            if toy.state.step == until:
                raise KeyboardInterrupt
            now[0] += 1.0
            return toy.advance()

        with pytest.raises(KeyboardInterrupt):
            toy.run(out, advance=advance, save_seconds=2.5)

    piece(10)
    assert saved == [3, 6, 9] and read_checkpoint(state_path(out), training_loop.KIND)[1]["seconds"] == 9.0
    now[0] += 1000.0  # between the pieces
    piece(40)
    assert saved[3:] == list(range(12, 40, 3)) and read_checkpoint(state_path(out), training_loop.KIND)[1]["seconds"] == 39.0


def test_a_finished_run_takes_no_step_and_another_recipe_is_refused(tmp_path):
    out = tmp_path / "a.safetensors"
    Toy().run(out).save(state_path(out))

    def advance():
        raise AssertionError("there is no step left")

    assert Toy().run(out, advance=advance).step == STEPS
    with pytest.raises(CheckpointError, match=r"another configuration \(rate: 0\.1 -> 0\.2\); delete it or give another --out"):
        Toy({**RECIPE, "rate": 0.2}).run(out)
    assert state_path(out).exists()
