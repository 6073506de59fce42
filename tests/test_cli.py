"""The command line: examples in the help, one clear line and exit code 2 for every mistake, nothing half-written."""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import draw
from PIL import Image
from tqdm import tqdm

from rdc.attack import autoattack, lagrange, pgd, stadv
from rdc.cli import COMMANDS, main
from rdc.cli.attack import RADII, STANDARD
from rdc.cli.notebook import find_notebook
from rdc.cli.options import tidy
from rdc.denoise.checkpoints import load_denoiser, read_checkpoint, save_denoiser
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.multihead import MultiHead
from rdc.denoise.unet import UNetConfig
from rdc.quantities import number
from rdc.train import TrainConfig
from rdc.train.heads import DistilConfig
from rdc.train.recipes import MULTIHEAD, RECIPES, SMALLER

TINY = EDMConfig(UNetConfig(8, 1, 10, 16, (1,), 1, ()), sigma_data=0.7, data="digits")


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of ``rdc arguments``."""
    monkeypatch.setattr(sys, "argv", ["rdc", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def tiny(tmp_path):
    """An untrained denoiser for 8x8 digits."""
    path = tmp_path / "tiny.safetensors"
    save_denoiser(path, build(TINY))
    return path


def test_help_lists_the_commands(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("train", "accuracy", "attack", "audit", "certify", "models", "convert", "run"))


@pytest.mark.parametrize("command", ["train", "accuracy", "attack", "audit", "certify", "models", "convert", "run"])
def test_each_command_shows_an_example(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"For example:\n  rdc {command} " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["accuracy", "--data", "imagenet", "--model", "optimal"], "unknown data set 'imagenet'; there are digits, fashion-mini"),
        (["accuracy", "--model", "nothing"], "unknown model 'nothing'; there are 1-nn, apndc"),
        (["accuracy", "--model", "./mine.py:make"], "names a file; name its module, as Python imports it: mine:make"),
        (["accuracy", "--model", "absent.safetensors"], "no checkpoint absent.safetensors"),
        (["accuracy", "--model", "optimal", "--data", "digits", "--n", "0"], "--n must lie in 1...400, got 0"),
        (["accuracy", "--model", "optimal", "--data", "digits", "--levels", "0"], "levels of optimal must be at least 1, got 0"),
        (["accuracy", "--model", "optimal", "--data", "digits", "-s", "nodes=0"], "nodes of optimal must be at least 1, got 0"),
        (["accuracy", "--model", "optimal-released", "-s", "levels=0"], "levels of optimal-released must be at least 1, got 0"),
        (["accuracy", "--model", "1-nn", "--data", "digits", "-s", "chunk=0"], "chunk of 1-nn must be at least 1, got 0"),
        (["accuracy", "--model", "dc", "-s", "levels=-3"], "levels of dc must be at least 1, got -3"),
        (["accuracy", "--model", "sbgc", "-s", "draws=-1"], "draws of sbgc must be at least 0, got -1"),
        (["accuracy", "--model", "race", "-s", "gaps=1,2"], "gaps of race must be 4 numbers, got 2"),
        (["accuracy", "--model", "cascade", "-s", "first=0"], "first of cascade must be at least 1, got 0"),
        (["accuracy", "--model", "dc", "-s", "kind=vp", "--sigma-min", "0.5"], "have no range; leave out sigma_min"),
        (["certify", "--model", "epndc", "--stopping", "split"], "--stopping says how to stop at a target; give --target"),
        (["accuracy", "--device", "cuda:77"], "no device 'cuda:77' here"),
        (["accuracy", "--device", "hpu"], "no device 'hpu' here"),
        (["accuracy", "--device", "meta"], "no device 'meta' here (Tensor.item() cannot be called on meta tensors)"),
        (["attack", "--eps", "8/0"], "--eps must be a number or a fraction"),
        (["attack", "--attack", "square", "--steps", "5"], "square has no --steps; it has queries"),
        (["attack", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["attack", "--restarts", "0"], "--restarts must be at least 1, got 0"),
        (["attack", "--eot", "0", "--attack", "stadv"], "--eot must be at least 1, got 0"),
        (["attack", "--attack", "square", "--queries", "0"], "--queries must be at least 1, got 0"),
        (["attack", "--targets", "-1"], "--targets must be at least 0, got -1"),
        (["attack", "--model", "optimal", "--data", "digits", "--start", "400"], "--start must lie in 0...399, got 400"),
        (["attack", "--model", "optimal", "--data", "digits", "--start", "399", "--n", "2"], "--n must lie in 1...1, got 2"),
        (["attack", "--eps", "8"], "--eps 8 covers all of [0, 1]; images are in [0, 1], did you mean 8/255?"),
        (["audit", "--eps", "8"], "--eps 8 covers all of [0, 1]; images are in [0, 1], did you mean 8/255?"),
        (["attack", "--block", "0"], "--block must be at least 1"),
        (["attack", "--verdicts", "0"], "--verdicts must be at least 1, got 0"),
        (["attack", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["attack", "--attack", "stadv", "--norm", "L2"], "stadv has no --norm"),
        (["attack", "--attack", "autoattack", "--loss", "ce"], "autoattack has no --loss"),
        (["attack", "--queries", "5", "--attack", "lagrange"], "lagrange has no --queries"),
        (["attack", "--eps", "-1", "--model", "optimal", "--data", "digits", "--n", "2"], "--eps must not be negative"),
        (["run", "99"], "no notebook '99'"),
        (["convert", "nosuch.pkl", "out.safetensors"], "rdc: there is no file nosuch.pkl"),
        (["convert", "nosuch.pt", "out.safetensors"], "rdc: there is no file nosuch.pt"),
        (["train", "denoiser", "--recipe", "nothing"], "unknown recipe 'nothing'; there are fashion-mini, digits, cifar10-"),
        (["train", "denoiser", "--recipe", "cifar10-small"], "the recipe cifar10-small needs --teacher"),
        (["train", "classifier", "--recipe", "nothing"], "unknown recipe 'nothing'; there are fashion-mini, digits"),
        (["train", "multihead", "--recipe", "digits"], "unknown recipe 'digits'; there are fashion-mini"),
        (["train", "multihead", "--data", "imagenet"], "unknown data set 'imagenet'"),
        (["train", "classifier", "--minutes", "1", "--teacher", "x"], "makes nothing of --minutes, --teacher; leave that out"),
        (["train", "classifier", "--recipe", "cnn", "--teacher", "x"], "the training of cnn makes nothing of --teacher"),
        (["train", "denoiser", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["train", "denoiser", "--threads", "-3"], "--threads must be at least 1, got -3"),
        (["train", "denoiser", "--save-seconds", "-1"], "--save-seconds must not be negative, got -1"),
        (["train", "classifier", "--eps", "nan"], "--eps must be a number or a fraction such as 8/255, got 'nan'"),
        (["train", "multihead", "--data", "folder:a/"], "for images of your own: rdc train denoiser --data folder:a"),
        (["train", "classifier", "--data", "folder:a"], "rdc train classifier has recipes for its own data only; for images"),
        (["train", "classifier", "--recipe", "cnn", "--data", "folder:a"], "rdc train classifier has recipes for its own data"),
        (["train", "denoiser", "--recipe", "digits", "--eps", "3"], "the denoiser digits makes nothing of --eps"),
        (["train", "denoiser", "--data", "digits", "--teacher", "x"], "the denoiser digits makes nothing of --teacher"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(monkeypatch, capsys, arguments, says):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("rdc: ") and says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["accuracy", "--modle", "dc"], "unrecognized options: --modle, dc; see rdc accuracy --help"),
        (["accuracy", "--ep", "8/255"], "unrecognized options: --ep, 8/255; see rdc accuracy --help"),
        (["accuracy", "--n", "abc"], "error parsing --count/--n: invalid literal for int() with base 10: 'abc'; see"),
        (["attack", "--norm", "l2"], "invalid choice 'l2' for argument '--norm'. Expected one of ("),
        (["experiment", "rn"], "('list', 'status', 'run', 'merge'); see rdc experiment --help"),
        (["bogus"], "unrecognized options: bogus; see rdc --help"),
        ([], "expected one of {train, accuracy, "),
    ],
)
def test_a_typo_is_one_line(monkeypatch, capsys, arguments, says):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("rdc: ") and says in err and err.endswith("--help\n")


def test_a_reader_that_has_enough_ends_the_command_in_silence():
    words = "import sys; sys.argv = ['rdc', 'experiment', 'list']; from rdc.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_an_error_comes_after_an_open_bar(monkeypatch, capsys):
    bar = tqdm(total=3, desc="classify")
    code, _, err = run(monkeypatch, capsys, "accuracy", "--model", "nothing")
    assert code == 2 and bar.disable and re.search(r"0/3.*\nrdc: unknown model", err)


def test_an_interrupt_during_the_imports_is_silent():
    words = ["import sys", "class Stop:", " def find_spec(self, name, *_):", "  if name == 'torch': raise KeyboardInterrupt"]
    words += ["sys.meta_path.insert(0, Stop())", "from rdc.__main__ import run", "run()"]
    found = subprocess.run([sys.executable, "-c", "\n".join(words)], capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (130, b"", b"")


OWN = """
import torch
from torch import nn

class Stream(nn.Module):
    def __init__(self):
        super().__init__()
        self.stream, self.layer = torch.Generator().manual_seed(0), nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1)) + torch.randn(len(x), 10, generator=self.stream)

class Broken(nn.Module):
    error = AttributeError("no layer")

    def forward(self, x):
        raise self.error

class Interrupted(Broken):
    error = KeyboardInterrupt()

class Silent(Broken):
    error = ZeroDivisionError()
"""
ON_OWN = ["--data", "digits", "--n", "1", "--device", "cpu", "-q"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with models of a reader in the current folder."""
    (tmp_path / "models_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "models_of_mine"
    sys.modules.pop("models_of_mine", None)


def warn_twice() -> None:
    """Warn in two lines, twice."""
    for _ in range(2):
        warnings.warn("two\nlines", stacklevel=1)


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_line_and_comes_once(monkeypatch, capsys):
    before = warnings.showwarning
    monkeypatch.setitem(COMMANDS, "models", warn_twice)
    code, _, err = run(monkeypatch, capsys, "models")
    assert code == 0 and warnings.showwarning is before
    assert err == "rdc: warning: two lines\n"


def test_options_of_a_model_of_ones_own_are_not_ours_to_set(monkeypatch, capsys, own):
    code, out, err = run(monkeypatch, capsys, "accuracy", "--model", f"{own}:Stream", *ON_OWN, "--levels", "7", "--draws", "3")
    assert (code, err) == (0, "") and f"{own}:Stream makes nothing of levels, draws; left out\n" in out
    code, _, err = run(monkeypatch, capsys, "accuracy", "--model", f"{own}:Stream", *ON_OWN, "-s", "steps=3")
    assert code == 2 and err.endswith("its own noise; leave out steps\n")
    assert run(monkeypatch, capsys, "accuracy", "--model", f"{own}:Stream", *ON_OWN, "--noise", "shared")[0] == 0


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("Broken", 2, "rdc: the model raised AttributeError: no layer (at "),
        ("Silent", 2, "rdc: the model raised ZeroDivisionError (at "),
        ("Interrupted", 130, "rdc: interrupted; experiment run, and attack and certify with --rows, continue"),
    ],
)
def test_what_a_model_of_ones_own_raises_is_one_line(monkeypatch, capsys, own, name, code, says):
    for command in (["accuracy"], ["attack", "--steps", "1"]):
        found, _, err = run(monkeypatch, capsys, command[0], "--model", f"{own}:{name}", *ON_OWN, *command[1:])
        assert found == code and err.startswith(says) and err.count("\n") == 1
        assert code == 130 or re.search(r"models_of_mine\.py:\d+\)\n$", err), "it says where"


@pytest.mark.parametrize("ends", ["sys.exit('no weights')", "argparse.ArgumentParser().parse_args()"])
def test_a_module_that_ends_the_program_is_a_mistake_in_one_line(monkeypatch, capsys, own, tmp_path, ends):
    """For an audit, code 1 would mean that a check failed."""
    (tmp_path / f"{own}.py").write_text(f"import argparse, sys\n{ends}\n")
    code, _, err = run(monkeypatch, capsys, "audit", "--model", f"{own}:make", *ON_OWN)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("rdc: ") and f"{own}.py:2 ended the program" in last


@pytest.mark.parametrize("command", [["attack", "--steps", "1"], ["certify", "--count", "1", "--n", "20", "--n0", "5"]])
def test_rows_of_a_model_whose_file_has_changed_are_refused(monkeypatch, capsys, own, tmp_path, command):
    rows, file = tmp_path / "rows.jsonl", tmp_path / f"{own}.py"
    file.write_text(f"{OWN}\ndef make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    words = [w for w in ON_OWN if w not in ("--n", "1")] if command[0] == "certify" else ON_OWN
    command = [*command, "--model", f"{own}:make", *words, "--rows", rows]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert run(monkeypatch, capsys, *command)[0] == run(monkeypatch, capsys, *command)[0] == 0
    file.write_text(file.read_text() + "CONSTANT = 2\n")
    sys.modules.pop(own)
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 2 and f"{rows} holds another run: run.source: " in err and "Give another name" in err


def test_images_that_a_model_of_ones_own_does_not_take_are_named(monkeypatch, capsys, own):
    says = "rdc: the model does not take images of shape (1, 28, 28) of fashion-mini: mat1 and mat2 shapes cannot be multiplied"
    for command in (["accuracy"], ["attack", "--steps", "1"]):
        code, _, err = run(monkeypatch, capsys, *command, "--model", f"{own}:Stream", "--n", "1", "--device", "cpu", "-q")
        assert code == 2 and err.startswith(says) and err.count("\n") == 1


def test_a_protocol_that_cannot_be_measured_is_said(monkeypatch, capsys, own):
    """The others are printed: they were paid for."""
    words = ["attack", "--model", f"{own}:Stream", *ON_OWN, "--steps", "1", "--verdicts", "2"]
    code, out, err = run(monkeypatch, capsys, *words, "--protocol", "known")
    assert code == 2 and "(resubmit; pgd" in out and "attacked" not in out
    assert err.startswith("rdc: --protocol known was not measured") and err.endswith("there are once, draws, resubmit\n")
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "") and "attacked" in out


def test_a_checkpoint_for_other_data_is_refused(monkeypatch, capsys, tiny):
    code, _, err = run(monkeypatch, capsys, "accuracy", "--model", tiny, "--data", "fashion-mini")
    assert code == 2
    assert "is a denoiser for data set 'digits', not 'fashion-mini'" in err


def test_a_truncated_checkpoint_is_refused(monkeypatch, capsys, tiny):
    tiny.write_bytes(tiny.read_bytes()[:-100])
    code, _, err = run(monkeypatch, capsys, "accuracy", "--model", tiny, "--data", "digits")
    assert code == 2
    assert str(tiny) in err and len(err.strip().splitlines()) == 1


def test_unknown_parameters_and_profiles_of_a_notebook(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out.ipynb"
    code, _, err = run(monkeypatch, capsys, "run", "01", "-p", "stpes", "3", "--out", out)
    assert code == 2 and "unknown parameter 'stpes'" in err
    code, _, err = run(monkeypatch, capsys, "run", "01", "--profile", "huge", "--out", out)
    assert code == 2 and "unknown profile 'huge'; there are full, paper, tutorial" in err
    assert not out.exists()


def test_accuracy_and_attack_of_a_tiny_network(monkeypatch, capsys, tiny):
    common = ["--model", tiny, "--data", "digits", "--n", "2", "--levels", "2", "-q"]
    code, out, err = run(monkeypatch, capsys, "accuracy", *common)
    assert code == 0 and "/2 = " in out and err == ""
    code, out, err = run(monkeypatch, capsys, "attack", *common, "--steps", "2", "--eps", "0.1")
    assert code == 0 and "attacked" in out and err == ""


def test_training_resumes_on_the_command_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "digits.safetensors"
    code, text, err = run(monkeypatch, capsys, "train", "denoiser", "--data", "digits", "--steps", "2", "--out", out, "-q")
    assert code == 0 and f"wrote {out}" in text and err == ""
    assert [p.name for p in tmp_path.iterdir()] == ["digits.safetensors"]


def test_a_multihead_network_is_distilled_on_the_command_line(monkeypatch, capsys, tmp_path, tiny):
    """The options reach the recipe, and the branch form starts from the teacher's network and leaves it as it is."""
    branch = UNetConfig(8, 1, 0, 16, (1,), 1, (), patch=2, heads=10)
    recipe = DistilConfig(TrainConfig(replace(TINY, branch=branch), batch=4), teacher=str(tiny))
    monkeypatch.setitem(MULTIHEAD, "fashion-mini", recipe)
    out = tmp_path / "heads.safetensors"
    threads = torch.get_num_threads()
    options = ["--steps", "2", "--seed", "5", "--threads", "1", "--device", "cpu", "--out", out, "-q"]
    code, text, err = run(monkeypatch, capsys, "train", "multihead", *options)
    torch.set_num_threads(threads)
    assert code == 0 and f"wrote {out}" in text and err == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heads.safetensors", "tiny.safetensors"]
    stored = read_checkpoint(out, "denoiser")[1]["recipe"]
    assert (stored["train"]["steps"], stored["train"]["seed"], stored["teacher"]) == (2, 5, str(tiny))
    heads, teacher = load_denoiser(out), load_denoiser(tiny)
    assert isinstance(heads, MultiHead) and heads.num_classes == 10
    pairs = zip(heads.trunk().parameters(), teacher.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-2) for a, b in pairs)  # the teacher may have been read in bfloat16


def test_a_smaller_denoiser_is_cut_out_on_the_command_line(monkeypatch, capsys, tmp_path, tiny):
    """Stopped in time, the run leaves weights and its state, and the same command continues."""
    small = replace(TINY, unet=replace(TINY.unet, inner=(4,) * len(TINY.unet.channel_mult)))
    monkeypatch.setitem(SMALLER, "cifar10-small", DistilConfig(TrainConfig(small, batch=4), objective="pairs", gamma=5.0))
    out = tmp_path / "small.safetensors"
    command = ["train", "denoiser", "--recipe", "cifar10-small", "--teacher", tiny, "--steps", "3", "--out", out, "-q"]
    for minutes, left in ((["--minutes", "1e-6"], True), (["--minutes", "9"], False)):
        code, text, err = run(monkeypatch, capsys, *command, *minutes)
        assert code == 0 and f"wrote {out}" in text and err == ""
        assert (tmp_path / "small.safetensors.state").exists() == left
        assert read_checkpoint(out, "denoiser")[1].get("stopped") == (1 if left else None)
    assert load_denoiser(out).config.unet.inner == small.unet.inner


def test_images_of_ones_own_are_trained_on_judged_and_attacked(monkeypatch, capsys, tmp_path):
    for split in ("train", "test"):
        for k, name in enumerate(("dark", "light", "noisy")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = (40 * draw((8, 8, 3), 10 * k + i) + 100 * k).byte().numpy()
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    out, data = tmp_path / "own.safetensors", f"folder:{tmp_path}"
    training = ["train", "denoiser", "--data", data, "--recipe", "digits", "--steps", "2", "--out", out, "-q"]
    code, text, err = run(monkeypatch, capsys, *training)
    assert code == 0 and f"wrote {out}" in text and err == ""
    unet = load_denoiser(out, data=data).config.unet
    assert (unet.channels, unet.resolution, unet.label_dim) == (3, 8, 3)
    common = ["--model", out, "--data", data, "--n", "2", "--levels", "2", "-q"]
    code, text, err = run(monkeypatch, capsys, "accuracy", *common)
    assert code == 0 and "/2 = " in text and err == ""
    code, text, err = run(monkeypatch, capsys, "attack", *common, "--steps", "2", "--eps", "0.1")
    assert code == 0 and "attacked" in text and err == ""


@pytest.mark.parametrize(("threat", "radius"), [("none", None), ("scaled", "scaled")])
def test_a_classifier_for_guidance_is_trained_on_the_command_line(monkeypatch, capsys, tmp_path, threat, radius):
    out = tmp_path / "h.safetensors"
    size = [] if radius is None else ["--eps", "1/4"]
    options = ["--data", "digits", "--threat", threat, *size, "--steps", "2", "--seed", "3", "--out", out, "-q"]
    code, text, err = run(monkeypatch, capsys, "train", "classifier", *options)
    assert code == 0 and f"wrote {out}" in text and err == ""
    stored = read_checkpoint(out, "classifier")[1]["recipe"]
    assert (stored["steps"], stored["seed"]) == (2, 3)
    assert stored["threat"] is None if radius is None else (stored["threat"]["radius"], stored["threat"]["eps"]) == (radius, 0.25)


def test_a_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.safetensors"
    code, _, err = run(monkeypatch, capsys, "train", "denoiser", "--data", "digits", "--steps", "1", "--out", out, "-q")
    assert code == 2 and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("imgs", "cannot write imgs (it is a folder); give another --out"),
        ("mine.py/d.safetensors", "cannot write mine.py/d.safetensors (Not a directory); give another --out"),
        ("/proc/d.safetensors", "cannot write /proc/d.safetensors (No such file or directory); give another --out"),
        ("t1/d.pt", "--out t1/d.pt must end in .safetensors"),
    ],
)
@pytest.mark.parametrize("what", [["denoiser"], ["multihead"], ["classifier"], ["classifier", "--recipe", "cnn"]])
def test_a_training_that_could_not_be_written_does_not_start(monkeypatch, capsys, tmp_path, out, says, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    (tmp_path / "mine.py").write_text("")
    monkeypatch.setattr("rdc.data.load", None)
    assert run(monkeypatch, capsys, "train", *what, "--out", out, "-q") == (2, "", f"rdc: {says}\n")


@pytest.mark.parametrize(
    ("command", "option", "says"),
    [
        (["report", "rdc-gradient"], "--out", "cannot write {} (it is a folder); give another --out"),
        (["report", "rdc-gradient", "--format", "figure"], "--out", "cannot write {} (it is a folder); give another --out"),
        (["findings"], "--out", "cannot write {} (it is a folder); give another --out"),
        (["findings"], "--figure", "cannot write {} (it is a folder); give another --figure"),
    ],
)
def test_a_report_that_could_not_be_written_is_refused_at_once(monkeypatch, capsys, tmp_path, command, option, says):
    assert run(monkeypatch, capsys, *command, option, tmp_path) == (2, "", f"rdc: {says.format(tmp_path)}\n")


def test_results_that_could_not_be_written_are_refused_and_the_folder_of_a_figure_is_made(monkeypatch, capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr("rdc.cli.experiment.forecast", None)
    code, _, err = run(monkeypatch, capsys, "experiment", "run", "rdc-gradient", "--toy", "--out", file)
    assert (code, err) == (2, f"rdc: cannot write {file}/rdc-gradient.jsonl (Not a directory); give another --out\n")
    figure = tmp_path / "new" / "f.svg"
    assert run(monkeypatch, capsys, "report", "rdc-gradient", "--format", "figure", "--out", figure)[0] == 0 and figure.exists()


def folders_of_images(place, *names):
    """Write folders with two black and two white images each, train and test."""
    for name in names:
        for split in ("train", "test"):
            for k, label in enumerate(("black", "white")):
                (place / name / split / label).mkdir(parents=True)
                for i in range(2):
                    Image.new("L", (8, 8), 255 * k).save(place / name / split / label / f"{i}.png")


def test_a_training_is_named_after_its_folder_and_never_replaces_one_of_other_data(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    folders_of_images(tmp_path, "a", "b", "deep/a")
    training = ["train", "denoiser", "--recipe", "digits", "--steps", "1", "-q", "--data"]
    for name in ("a", "b", "b/", tmp_path / "b"):
        code, out, err = run(monkeypatch, capsys, *training, f"folder:{name}")
        assert (code, err) == (0, "") and out == f"wrote runs/{'a' if name == 'a' else 'b'}.safetensors\n"
    says = "rdc: runs/a.safetensors is there already, a checkpoint for 'folder:a', not 'folder:deep/a'; give another --out\n"
    assert run(monkeypatch, capsys, *training, "folder:deep/a") == (2, "", says)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("a", "./a", "a/", tmp_path / "a"):
        common = ["--model", "runs/a.safetensors", "--data", f"folder:{name}", "--n", "1", "--levels", "2", "-q"]
        for command in (["accuracy"], ["attack", "--steps", "1"]):
            assert run(monkeypatch, capsys, *command, *common)[0::2] == (0, "")


@pytest.mark.parametrize(
    ("data", "recipe", "shape"),
    [
        ("fashion-mini", "cifar10-medium", (1, 28, 10)),
        ("fashion-mini", "digits", (1, 28, 10)),
        ("digits", None, (1, 8, 10)),
        ("cifar10", None, (3, 32, 10)),
        ("cifar100", None, (3, 32, 100)),
    ],
)
def test_the_network_of_a_denoiser_fits_its_data(monkeypatch, capsys, tmp_path, data, recipe, shape):
    from rdc.train import denoiser as train

    monkeypatch.setenv("RDC_DATA", str(tmp_path))
    for name, labels in (("data_batch_1.bin", 1), ("train.bin", 2)):
        (tmp_path / name).write_bytes(bytes((labels + 3072) * 4))
    made = []
    monkeypatch.setattr(train, "fit", lambda run, out, images, *_: made.append((run.config, images)) or out)
    named = [] if recipe is None else ["--recipe", recipe]
    code, out, err = run(monkeypatch, capsys, "train", "denoiser", "--data", data, *named, "--out", tmp_path / "x.safetensors")
    assert (code, err) == (0, "")
    ((config, images),) = made
    unet = config.denoiser.unet
    assert (unet.channels, unet.resolution, unet.label_dim) == shape and config.denoiser.data == data
    assert images.x.shape[1:] == (shape[0], shape[1], shape[1])
    if recipe is None and shape[0] == 3:
        assert config.batch == RECIPES["cifar10-medium"].batch


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["multihead", "--data", "digits", "--recipe", "fashion-mini"], "not fit digits (1 x 8 x 8, 10 classes); of fashion-"),
        (["multihead", "--data", "fashion-mini", "--recipe", "cifar10-small", "--teacher", "x"], "classes); --recipe fash"),
        (["classifier", "--data", "fashion-mini", "--recipe", "digits"], "recipe digits does not fit fashion-mini (1 x 28 x 28"),
    ],
)
def test_a_recipe_whose_network_is_fixed_names_one_that_fits(monkeypatch, capsys, tmp_path, arguments, says):
    code, _, err = run(monkeypatch, capsys, "train", *arguments, "--out", tmp_path / "x.safetensors", "-q")
    assert code == 2 and says in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_convert_writes_a_safetensors_file_and_nothing_over_its_source(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("x.pkl", "x.safetensors"):
        (tmp_path / name).write_bytes(b"source")
    (tmp_path / "folder").mkdir()
    os.link("x.pkl", "linked.safetensors")
    for source, out, says in (
        ("x.pkl", "x.pkl", "OUT x.pkl must end in .safetensors"),
        ("x.pkl", "out.bin", "OUT out.bin must end in .safetensors"),
        ("x.pkl", "folder", "cannot write folder (it is a folder); give another OUT"),
        ("x.safetensors", "x.safetensors", "x.safetensors would be replaced by what is made of it; give another OUT"),
        ("x.pkl", "linked.safetensors", "x.pkl would be replaced by what is made of it; give another OUT"),
    ):
        assert run(monkeypatch, capsys, "convert", source, out) == (2, "", f"rdc: {says}\n")
    assert (tmp_path / "x.pkl").read_bytes() == (tmp_path / "x.safetensors").read_bytes() == b"source"
    code, _, err = run(monkeypatch, capsys, "convert", "x.pkl", "new.safetensors")
    assert code == 2 and err.startswith("rdc: x.pkl is no checkpoint of EDM: ") and not (tmp_path / "new.safetensors").exists()


def test_a_costly_model_is_refused_before_it_is_read(monkeypatch, capsys, tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02]r\x00\x00\x00\x40.")
    for model in (["--model", tmp_path / "x.pkl"], ["--model", "dc", "--denoiser", tmp_path / "x.pkl"]):
        code, _, err = run(monkeypatch, capsys, "accuracy", *model, "--data", "digits", "--n", "1", "-q")
        assert code == 2 and "x.pkl is refused, and nothing of it was run: it asks for 1,073,741,824 places" in err


def test_a_folder_has_one_name():
    here = os.getcwd()
    assert {tidy(f"folder:{name}") for name in ("imgs", "./imgs", "imgs/", f"{here}/imgs")} == {"folder:imgs"}
    assert [tidy(f"folder:{name}") for name in ("/data//imgs/", "../imgs/")] == ["folder:/data/imgs", "folder:../imgs"]
    assert tidy("digits") == "digits"


def test_a_folder_without_its_word_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("imgs", "digits"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="--data imgs is a folder of images; write folder:imgs"):
        tidy("imgs")
    assert tidy("digits") == "digits"
    assert tidy("no-such-data") == "no-such-data"


SMALL = ["--model", "optimal", "--data", "digits", "--levels", "4", "-q"]


def test_an_attack_with_rows_continues_and_refuses_another_run(monkeypatch, capsys, tmp_path):
    rows = tmp_path / "a.jsonl"
    command = ["attack", *SMALL, "--eps", "0.1", "--n", "3", "--steps", "3", "--rows", rows]
    code, out, _ = run(monkeypatch, capsys, *command)
    assert code == 0 and "clean " in out and "attacked " in out
    content = rows.read_text()
    assert len(content.splitlines()) == 4
    assert run(monkeypatch, capsys, *command)[0] == 0
    assert rows.read_text() == content
    code, _, err = run(monkeypatch, capsys, *command[:-3], "4", "--rows", rows)
    assert code == 2 and "steps" in err and len(err.strip().splitlines()) == 1
    assert rows.read_text() == content


def test_blocks_are_small_on_a_cpu_and_those_of_the_file_when_it_continues(monkeypatch, capsys, tmp_path):
    rows = tmp_path / "a.jsonl"
    command = ["attack", *SMALL, "--device", "cpu", "--eps", "0.1", "--steps", "1", "--rows", rows, "--n"]
    for n, more in (("17", []), ("40", []), ("40", ["--workers", "2"]), ("40", ["--block", "3"])):
        assert run(monkeypatch, capsys, *command, n, *more)[0] == 0
        assert json.loads(rows.read_text().splitlines()[0])["config"]["block"] == 3
    rows.write_text("")
    assert run(monkeypatch, capsys, *command, "20", "--workers", "2", "--targets", "0")[0] == 0
    assert json.loads(rows.read_text().splitlines()[0])["config"]["block"] == 2


def test_more_images_and_another_part_of_them_extend_a_file(monkeypatch, capsys, tmp_path):
    rows, at_once = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    common = ["attack", *SMALL, "--eps", "0.1", "--steps", "2", "--targets", "1", "--block", "4"]
    for images in (["--n", "3"], ["--count", "5"], ["--start", "8", "--n", "2"]):
        code, out, err = run(monkeypatch, capsys, *common, *images, "--rows", rows)
        assert (code, err) == (0, "") and f"/{images[-1]} = " in out
    for images in (["--start", "8", "--n", "2"], ["--n", "5"]):
        run(monkeypatch, capsys, *common, *images, "--rows", at_once)
    found = [[json.loads(line) for line in path.read_text().splitlines()[1:]] for path in (rows, at_once)]
    for one, other in zip(*found, strict=True):
        assert all(one[k] == other[k] for k in ("index", "image", "label", "clean", "verdict", "right"))
    assert [row["index"] for row in found[0]] == [0, 1, 2, 3, 4, 8, 9]


@pytest.mark.parametrize(
    ("attack", "more", "says"),
    [
        ("stadv", ["--steps", "2"], "stadv, flow, eps 0.05, steps 2, restarts 1, eot 1, loss margin"),
        ("square", ["--norm", "L1", "--queries", "2"], "square, L1, eps 12, queries 2"),
        ("square", ["--norm", "L2", "--eps", "1", "--queries", "2"], "square, L2, eps 1, queries 2"),
    ],
)
def test_attacks_by_name(monkeypatch, capsys, attack, more, says):
    code, out, _ = run(monkeypatch, capsys, "attack", *SMALL, "--attack", attack, *more, "--n", "2")
    assert code == 0 and "attacked " in out and says in out


class Stopped(ValueError):
    """Raised in the place of an evaluation."""


def bound(monkeypatch, capsys, *arguments):
    """Function and options of the attack that ``rdc attack arguments`` would evaluate."""
    seen = []

    def evaluation(model, x, y, attacks, *args, **options):
        seen.extend(attacks.values())
        raise Stopped

    monkeypatch.setattr("rdc.evaluate.robust_accuracy", evaluation)
    code, _, err = run(monkeypatch, capsys, "attack", "--data", "digits", "--levels", "2", "--n", "2", "-q", *arguments)
    assert code == 2 and "Stopped" in err
    return seen[0].func.__name__, seen[0].keywords


@pytest.mark.parametrize(
    ("attack", "norm", "standard"),
    [
        ("pgd", "Linf", {"eps": 8 / 255, "steps": 20, "restarts": 1, "eot": 1, "loss": "margin", "targets": 0}),
        ("pgd", "L2", {"eps": 0.5, "steps": 20, "restarts": 1, "eot": 1, "loss": "margin", "targets": 0}),
        ("autoattack", "Linf", {"eps": 8 / 255, "steps": 100, "queries": 5000, "eot": 1}),
        ("autoattack", "L1", {"eps": 12, "steps": 100, "queries": 5000, "eot": 1}),
        ("stadv", None, {"eps": 0.05, "steps": 100, "restarts": 1, "eot": 1, "loss": "margin"}),
        ("square", "L2", {"eps": 0.5, "queries": 5000}),
        ("lagrange", "L2", {"eps": 0.5, "steps": 20, "eot": 1, "loss": "margin"}),
    ],
)
def test_what_is_left_out_is_the_standard_of_the_attack_and_the_norm(monkeypatch, capsys, tiny, attack, norm, standard):
    arguments = ["--model", tiny, "--attack", attack, *(["--norm", norm] if norm else [])]
    name, options = bound(monkeypatch, capsys, *arguments)
    options.pop("penalty", None)
    assert name == attack and options == {**standard, "norm": norm or "flow"}


def test_what_is_given_replaces_the_standard(monkeypatch, capsys, tiny):
    given = ["--steps", "3", "--loss", "ce", "--eot", "2", "--eps", "1/10"]
    _, options = bound(monkeypatch, capsys, "--model", tiny, "--attack", "lagrange", *given)
    assert (options["steps"], options["loss"], options["eot"], options["eps"], options["norm"]) == (3, "ce", 2, 0.1, "Linf")
    _, options = bound(monkeypatch, capsys, "--model", tiny, "--attack", "autoattack", "--queries", "7", "--norm", "L2")
    assert (options["queries"], options["steps"], options["eps"]) == (7, 100, 0.5)


def test_the_radius_of_an_audit_depends_on_the_norm(monkeypatch, capsys):
    seen = []

    def audited(model, x, y, norm, eps, *args, **options):
        seen.append((norm, eps))
        raise Stopped

    monkeypatch.setattr("rdc.evaluate.audit.audit", audited)
    for norm in ("Linf", "L2"):
        run(monkeypatch, capsys, "audit", *SMALL, "--norm", norm, "--n", "2")
    assert seen == [("Linf", 8 / 255), ("L2", 0.5)]


def test_the_standards_are_those_of_the_functions_and_in_the_help(monkeypatch, capsys):
    functions = {"pgd": pgd, "autoattack": autoattack, "stadv": stadv, "lagrange": lagrange}
    for name, function in functions.items():
        assert STANDARD[name]["steps"] == inspect.signature(function).parameters["steps"].default
    assert STANDARD["autoattack"]["queries"] == inspect.signature(autoattack).parameters["queries"].default
    assert STANDARD["square"]["queries"] == STANDARD["autoattack"]["queries"]
    assert number(RADII["flow"], "eps") == inspect.signature(stadv).parameters["eps"].default
    _, out, _ = run(monkeypatch, capsys, "attack", "--help")
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())
    for option, says in (
        ("steps", "by default 20 for pgd, lagrange; 100 for autoattack, stadv."),
        ("queries", "by default 5000 for autoattack, square."),
        ("loss", "by default margin for pgd, stadv, lagrange."),
        ("eps", f"by default {RADII['Linf']} for Linf, {RADII['L2']} for L2, {RADII['L1']} for L1."),
        ("eps", f"For stadv the bound on the flow, by default {RADII['flow']}."),
    ):
        assert f"--{option} " in text and says in text


def test_lagrange_needs_a_denoiser_and_takes_one(monkeypatch, capsys, tiny):
    code, _, err = run(monkeypatch, capsys, "attack", *SMALL, "--attack", "lagrange", "--n", "2")
    assert code == 2 and "lagrange needs the diffusion loss" in err
    small = ["--data", "digits", "--levels", "2", "--n", "10", "--steps", "1", "-q"]
    assert run(monkeypatch, capsys, "attack", "--model", tiny, "--attack", "lagrange", *small)[0] == 0


def test_audit_prints_its_verdict(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "audit", *SMALL, "--eps", "0.1", "--n", "4", "--steps", "8", "--queries", "10")
    assert ("no check failed" in out) == (code == 0)
    assert all(name in out for name in ("gradient", "binarisation", "black box (Square)"))


@pytest.mark.parametrize(("name", "stem"), [("06", "06_likelihood_maximization"), ("06b", "06b_rdc_attacks"), ("10c", "10c_")])
def test_a_page_is_found_by_its_number_though_others_begin_with_it(name, stem):
    assert find_notebook(name).stem.startswith(stem)
