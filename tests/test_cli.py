"""The command line: examples in the help, one clear line and exit code 2 for every mistake, nothing half-written."""

import sys

import pytest

from rdc.checkpoints import save_denoiser
from rdc.cli import main, parse_eps
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.unet import UNetConfig

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
    assert all(name in out for name in ("train", "accuracy", "attack", "audit", "run"))


@pytest.mark.parametrize("command", ["train", "accuracy", "attack", "audit", "run"])
def test_each_command_shows_an_example(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"For example:\n  rdc {command} " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["accuracy", "--data", "imagenet", "--model", "optimal"], "unknown data set 'imagenet'; there are digits, fashion-mini"),
        (["accuracy", "--model", "nothing"], "unknown checkpoint 'nothing'"),
        (["accuracy", "--model", "absent.safetensors"], "no checkpoint absent.safetensors"),
        (["accuracy", "--model", "optimal", "--data", "digits", "--n", "0"], "--n must lie in 1...400, got 0"),
        (["accuracy", "--model", "optimal", "--data", "digits", "--levels", "0"], "count must be at least 1"),
        (["accuracy", "--device", "cuda:77"], "no device 'cuda:77' here"),
        (["attack", "--eps", "8/0"], "--eps must be a number or a fraction"),
        (["attack", "--eps", "-1", "--model", "optimal", "--data", "digits", "--n", "2"], "eps must not be negative"),
        (["run", "99"], "no notebook '99'"),
        (["train", "denoiser", "--recipe", "nothing"], "unknown recipe 'nothing'; there are fashion-mini, digits"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(monkeypatch, capsys, arguments, says):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("rdc: ") and says in err


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
    assert code == 2 and "unknown profile 'huge'; there are full, tutorial" in err
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


def test_a_folder_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x.safetensors"
    code, _, err = run(monkeypatch, capsys, "train", "denoiser", "--data", "digits", "--steps", "1", "--out", out, "-q")
    assert code == 2 and len(err.strip().splitlines()) == 1


def test_parse_eps():
    assert parse_eps("8/255") == pytest.approx(8 / 255)
    assert parse_eps("0.5") == 0.5
    with pytest.raises(ValueError, match="fraction"):
        parse_eps("eight")


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


@pytest.mark.parametrize(("attack", "more"), [("stadv", ["--eps", "0.05"]), ("square", ["--norm", "L1", "--eps", "2"])])
def test_attacks_by_name(monkeypatch, capsys, attack, more):
    code, out, _ = run(monkeypatch, capsys, "attack", *SMALL, "--attack", attack, *more, "--n", "2", "--steps", "2")
    assert code == 0 and "attacked " in out


def test_lagrange_needs_a_denoiser_and_takes_one(monkeypatch, capsys, tiny):
    code, _, err = run(monkeypatch, capsys, "attack", *SMALL, "--attack", "lagrange", "--n", "2")
    assert code == 2 and "lagrange needs the diffusion loss" in err
    small = ["--data", "digits", "--levels", "2", "--n", "10", "--steps", "1", "-q"]
    assert run(monkeypatch, capsys, "attack", "--model", tiny, "--attack", "lagrange", *small)[0] == 0


def test_audit_prints_its_verdict(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "audit", *SMALL, "--eps", "0.1", "--n", "4", "--steps", "8", "--queries", "10")
    assert ("no check failed" in out) == (code == 0)
    assert all(name in out for name in ("gradient", "binarisation", "black box (Square)"))
