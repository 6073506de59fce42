"""The experiments of the book: every row is well formed, runs at toy size, and its stored results are whole."""

import csv
import io
import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import rdc
from rdc.classify import DiffusionClassifier
from rdc.cli import main
from rdc.cli.experiment import in_blocks, merge_folders
from rdc.cli.findings import findings_command
from rdc.cli.forecast import Forecast
from rdc.cli.report import line_of, others, verify_command, words
from rdc.data import load
from rdc.defend.likelihood import READINGS
from rdc.denoise import checkpoints
from rdc.experiments import Experiment, experiment, names
from rdc.guide.named import load_guide
from rdc.models import build, entry
from rdc.models.weights import checkpoints_of
from rdc.runs.campaign import Campaign, campaign_state, run_campaign
from rdc.runs.cell import Cell, Line, Outcome, Row, pack
from rdc.runs.code import Program, package_program
from rdc.runs.record import book_folder, environment
from rdc.runs.store import Store
from rdc.runs.table import entries, results, unions
from rdc.runs.verify import verify
from rdc.tasks import FREE, TASKS, beside, certify, code_of, measure, noisy, ood, toy, weights_of
from rdc.tasks.attack import ATTACKS, attack_function, key, made, make_attack

EVERY = [(name, row) for name in names() for row in experiment(name).rows]
ATTACKED = [(name, row) for name, row in EVERY if row.task == "attack"]
#: A denoiser of the digits as it is shipped, but with 8 channels in place of 32, trained for 3 000 steps.
NARROW = Path(__file__).parent / "data" / "narrow.safetensors"
KEPT = (made, certify.base, noisy.answers, beside.drawn, beside.replies, ood.of_reference, load_guide)  # what a process keeps
SMALL = Row("dc", {"levels": 2}, "pgd", {"eps": "0.1", "steps": 2}, data="digits", n=4, block=2)


def once(rows):
    """Rows with different specs."""
    return list({row.key(): row for _, row in rows}.values())


@pytest.mark.parametrize("name", names())
def test_an_experiment_asks_a_question(name):
    found = experiment(name)
    assert found.question.endswith("?") and found.rows and found.name == name
    with pytest.raises(ValueError, match="unknown experiment 'none'"):
        experiment("none")


def test_every_row_names_what_there_is():
    for name, row in ATTACKED:
        entry(row.model).checked(dict(row.options))
        if row.attack is not None:
            make_attack(row.attack, row.data, "cpu", {k: v for k, v in row.arguments.items() if k != "on"})
        assert row.about, name


def small(row):
    """The row at toy size; one image of an attacked defence that draws its noise anew, since all of its images run alone."""
    found, reading = toy(row), READINGS.get(row.options.get("lm"), {})
    return replace(found, n=1, block=1) if row.task == "attack" and reading.get("noise") == "fresh" else found


def kind(value):
    """What a row or a part of it is, whatever its numbers: rows of one kind run the same code."""
    if isinstance(value, Row):
        return kind({name: found for name, found in value.spec().items() if name != "seed"})
    if isinstance(value, dict):
        return tuple((name, kind(value[name])) for name in sorted(value))
    if isinstance(value, list):
        return tuple(dict.fromkeys(map(kind, value)))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number or isinstance(value, str) and re.fullmatch(r"[\d.]+(/\d+)?", value) else value


@cache
def toys():
    """The rows of every experiment at toy size; of a kind that several have, the first."""
    first = {}
    for name, row in EVERY:
        first.setdefault(kind(one := small(row)), (name, one))
    return {name: tuple(row for of, row in first.values() if of == name) for name in names()}


@pytest.fixture
def narrow(monkeypatch, request):
    """A fast denoiser of the digits, where a test only asks whether a row runs; but for rows that build on the shipped one."""
    if "name" not in request.fixturenames or request.getfixturevalue("name") not in ("heads", "guidance-main"):
        monkeypatch.setitem(checkpoints.ALIASES, "digits", str(NARROW))
    for held in KEPT:
        held.cache_clear()
    yield
    for held in KEPT:
        held.cache_clear()


def test_every_row_has_a_toy():
    found = {kind(row) for rows in toys().values() for row in rows}
    assert len(found) > 400 and found == {kind(small(row)) for _, row in EVERY}


def test_rows_of_a_kind_differ_in_numbers():
    one = replace(SMALL, options={"levels": 2, "sigma_min": 0.1}, arguments={"eps": "8/255", "steps": 2})
    two = replace(one, seed=1, n=3, options={"sigma_min": 1, "levels": 9}, arguments={"steps": 1, "eps": "0.1"})
    assert kind(one) == kind(two)
    for other in ({"options": {"levels": 2, "sigma_min": None}}, {"options": {"levels": 2}}, {"attack": "stadv"}, {"data": "x"}):
        assert kind(replace(one, **other)) != kind(one)


@pytest.mark.slow
def test_models_can_be_made_of_rows_that_another_one_of_their_kind_stands_for(narrow):
    run = {row.key() for rows in toys().values() for row in rows}
    left = [row for row in once((name, small(row)) for name, row in ATTACKED) if row.key() not in run]
    assert left and all(made(row.model, row.data, "cpu", key(row.options)) is not None for row in left)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_row_runs_at_toy_size(tmp_path, name, few_verdicts, narrow):
    rows = toys()[name]
    campaign = Campaign(rows, measure, code_of, weights_of)
    assert run_campaign(campaign, tmp_path / "toy.jsonl") == (len(rows), 0)
    store = Store.read(tmp_path / "toy.jsonl")
    for row in (row for row in rows if row.task == "attack"):
        found = store.of(row)
        clean, robust = found.outcome("clean"), found.outcome("robust")
        assert list(clean) == list(range(row.n)) and all(clean[i] >= robust[i] for i in clean), "an attack cannot help"
        assert (found.mean("displacement L2") is not None) == row.model.startswith(("rdc", "lm-"))
    assert run_campaign(campaign, tmp_path / "toy.jsonl") == (0, 0)


def test_a_cell_is_what_its_parts_say():
    """The outcome of a cell is that of model, attack and judge made by hand."""
    from rdc.attack import pgd
    from rdc.data import load
    from rdc.denoise.checkpoints import load_denoiser
    from rdc.evaluate import predict
    from rdc.schedule import levels

    model = DiffusionClassifier(load_denoiser("digits"), levels("elbo", 2, sigma_min=0.1))
    test = load("digits", "test")
    x, y, index = test.x[2:4], test.y[2:4], torch.arange(2, 4)
    x_adv = pgd(model, x, y, eps=0.1, steps=2, index=index)
    found = measure(list(SMALL.cells())[1])
    right = predict(model, x) == y
    assert found.bits["clean"] == right.tolist()
    assert found.bits["robust"] == (right & (predict(model, x_adv) == y)).tolist()
    assert set(found.bits) == {"clean", "robust"}, "a deterministic model has one verdict"


def test_a_randomised_model_is_judged_by_all_protocols():
    found = measure(next(replace(SMALL, options={"levels": 2, "noise": "fresh"}, n=1, block=1).cells()))
    assert {f"{kind}{p}" for kind in ("clean", "robust") for p in ("", " once", " resubmit", " known")} == set(found.bits)


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
def test_how_far_likelihood_maximisation_moves_does_not_depend_on_what_ran_before(noise, few_verdicts, narrow):
    row = replace(SMALL, model="rdc", options={"levels": 2, "steps": 2, "lm_noise": noise}, attack=None, arguments={}, n=2)
    first, second = (measure(Cell(row, 0, 2)).means for _ in range(2))
    other = measure(Cell(replace(row, seed=1), 0, 2)).means
    assert first == second and first["displacement L2"] > 0 and (other == first) == (noise == "fixed")
    x, lm = load("digits").x[:2], made(row.model, row.data, "cpu", key(row.options)).lm
    moved = (lm.frozen(0) if noise == "fresh" else lm)(x)
    assert first["displacement L2"] == pytest.approx(float((moved - x).double().flatten(1).norm(dim=1).mean()))


def test_images_with_noise_by_place_are_moved_as_they_are_judged_one_by_one(narrow):
    row = replace(SMALL, model="rdc", options={"levels": 2, "steps": 2, "share": "image"}, attack=None, arguments={}, n=2)
    both = measure(Cell(row, 0, 2)).means
    alone = [measure(Cell(row, i, i + 1)).means for i in range(2)]
    assert both == {name: pytest.approx((alone[0][name] + alone[1][name]) / 2) for name in both} and len(both) == 2


def test_another_model_can_be_attacked():
    """Images made against a model that nothing moves break nothing; made against itself they are those of the plain attack."""
    own = {**SMALL.arguments, "on": {"model": "dc", "options": {"levels": 2}}}
    assert measure(next(replace(SMALL, arguments=own).cells())).bits == measure(next(SMALL.cells())).bits
    assert weights_of(replace(SMALL, model="optimal", options={}, arguments=own)) == checkpoints_of("dc", "digits", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "guess"}, "unknown task 'guess'"), ({"attack": "hope"}, "unknown attack 'hope'"),
        ({"model": "none"}, "unknown model 'none'"), ({"options": {"size": 3}}, "dc has no option 'size'"),
        ({"arguments": {"radius": 1}}, "pgd has no argument 'radius'"), ({"start": 10_000}, "digits has .* test images"),
    ],
)  # fmt: skip
def test_a_row_with_a_mistake_is_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        measure(next(replace(SMALL, **change).cells()))


def test_code_of_a_row_is_that_of_its_parts():
    """Rows differ in code where task, models or attacks differ, and not by sizes."""
    same = [SMALL, replace(SMALL, n=2), replace(SMALL, options={"levels": 4}), replace(SMALL, arguments={"eps": "0.2"})]
    assert len({code_of(row) for row in same}) == 1
    others = [replace(SMALL, attack=a) for a in ATTACKS if a != "pgd"] + [replace(SMALL, model=m) for m in ("rdc", "cnn", "1-nn")]
    assert len({code_of(row) for row in [SMALL, *others]}) == 1 + len(others)
    assert all(callable(attack_function(name)) for name in ATTACKS)


def test_a_changed_line_makes_exactly_its_cells_stale(tmp_path):
    root = tmp_path / "rdc"
    shutil.copytree(Path(rdc.__file__).parent, root, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    rows = [row for _, row in ATTACKED]
    unchanged = Program(root, "rdc", package_program().ignored)
    before = [code_of(row, unchanged) for row in rows]
    for path, old, new, stale in (
        ("attack/stadv.py", "steps: int = 100", "steps: int = 101", lambda attack, model: attack == "stadv"),
        ("defend/lm_updates.py", "def update(", "def update(  # by name\n    ", lambda *_: False),
        ("attack/pgd.py", "Return adversarial images", "Give adversarial images", lambda *_: False),
        ("defend/purify.py", "steps: int = 10", "steps: int = 11", lambda attack, model: model.startswith("diffpure")),
    ):
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))
        changed = Program(root, "rdc", package_program().ignored)
        for row, was in zip(rows, before, strict=True):
            assert (code_of(row, changed) != was) == stale(row.attack, row.model), (path, row)
        (root / path).write_text(text)


@pytest.mark.parametrize("path", sorted(book_folder("results").glob("*.jsonl")), ids=lambda path: path.stem)
def test_stored_cells_belong_to_their_experiment(path):
    """Every line is whole, and a row of the experiment wants it; no image is stored twice with the same code."""
    found, seen = experiment(path.stem), set()
    wanted = {row.key() for row in found.rows}
    for line in Store.read(path).lines:
        assert line.key in wanted, line.key
        cells = {(line.key, line.code, i) for i in range(*line.images)}
        assert not cells & seen
        seen |= cells
    assert path.stat().st_size < 15e6


def test_entries_are_derived_when_read(tmp_path, narrow):
    """Two attacks on two images each, and their union by hand."""
    rows = [replace(SMALL, n=2, about={"gradient": g, "attack": "pgd", "eot": 1}, seed=s) for g, s in (("a", 0), ("b", 1))]
    campaign = Campaign(tuple(rows), measure, code_of, weights_of)
    run_campaign(campaign, tmp_path / "x.jsonl")
    found = results("x", rows, tmp_path)
    assert [one["gradient"] for one in found] == ["a", "b"] and all(one["protocol"] == "known" for one in found)
    (both,) = unions(found)
    assert both["wrong"] == sorted({*found[0]["wrong"], *found[1]["wrong"]})
    assert both["robust"]["correct"] == 2 - len(both["wrong"]) and both["gradient"] == "union"
    assert list(entries(Store().of(rows[0]))) == []


def test_the_command_runs_reports_and_merges(tmp_path, capsys, monkeypatch, narrow):
    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rdc", "experiment", *words])
        main()
        return capsys.readouterr().out

    assert "rdc-gradient" in command("list") and "stale" in command("status", "dc-noise")
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert "2 cells done, 0 left" in command("run", "dc-noise", "--toy", "--out", a, "-q", "--device", "cpu")
    assert "0 cells done, 2 left" in command("run", "dc-noise", "--toy", "--out", b, "-q", "--minutes", "0", "--device", "cpu")
    assert "2 cells in" in command("merge", a, b, "--out", c)
    with pytest.raises(SystemExit):
        command("run", "dc-noise", "--toy")
    assert "--toy is for runs into a folder of their own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("merge", str(tmp_path / "none"))
    assert "no results in" in capsys.readouterr().err
    for says in ("--workers must be at least 1, got 0", "--minutes must not be negative, got -1"):
        with pytest.raises(SystemExit):
            command("run", "dc-noise", "--out", b, says.split()[0], says.split()[-1])
        assert says in capsys.readouterr().err
    for wrong in ("1/1", "2", "a/b"):
        with pytest.raises(SystemExit):
            command("run", "dc-noise", "--shard", wrong)
        assert "--shard must be I/N" in capsys.readouterr().err


def test_a_folder_of_ones_own_can_leave_the_results_of_the_book_alone(tmp_path, capsys, monkeypatch):
    """What the book has is said, and not written as an empty file; --anew computes it."""

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rdc", "experiment", *words])
        main()
        return capsys.readouterr().out

    (tmp_path / "book").mkdir()
    row = replace(SMALL, n=2)
    monkeypatch.setattr("rdc.cli.experiment.book_folder", lambda name: tmp_path / "book")
    monkeypatch.setattr("rdc.cli.experiment.experiment", lambda name: Experiment("nearest", "Is it?", (row,)))
    monkeypatch.setattr("rdc.cli.experiment.measure", lambda cell, device: Outcome({"clean": [True] * (cell.stop - cell.start)}))
    monkeypatch.setattr("rdc.cli.experiment.with_forecast", lambda name, campaign, paths, left: campaign)
    mine, words = tmp_path / "mine", ("run", "nearest", "-q", "--device", "cpu")
    assert "1 cells done, 0 left" in command(*words)
    said = command(*words, "--out", str(mine))
    assert "the book has 2 images of today's code" in said and "0 cells done, 0 left" in said and not [*mine.iterdir()]
    said = command(*words, "--out", str(mine), "--anew")
    assert "the book has" not in said and "1 cells done, 0 left" in said and (mine / "nearest.jsonl").stat().st_size
    with pytest.raises(SystemExit):
        command(*words, "--anew")
    assert "--anew leaves the results of the book as they are; give --out" in capsys.readouterr().err


@pytest.fixture
def refused(capsys, monkeypatch):
    """What a command that is refused with code 2 says, and prints nothing else."""

    def told(*words) -> str:
        monkeypatch.setattr(sys, "argv", ["rdc", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        return err

    return told


def stored(folder, row, name="dc-noise"):
    """A folder of results of one experiment, with one cell of a row."""
    line = Line.of(Cell(row, 0, 1), Outcome({"clean": [True]}), "code", {}, environment() | {"seconds": 1.0})
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text(line.dump() + "\n")
    return folder


def test_nothing_is_merged_if_a_folder_is_not_what_it_should_be(tmp_path, monkeypatch, refused):
    """A folder without results, one of another experiment, and, for the book, one with cells of --toy."""
    row, book = experiment("dc-noise").rows[0], tmp_path / "book"
    monkeypatch.setattr("rdc.cli.experiment.book_folder", lambda name: book)
    run, small, odd = stored(tmp_path / "run", row), stored(tmp_path / "small", toy(row)), stored(tmp_path / "odd", row, "zz")
    for folder, says in (
        (tmp_path / "typo", f"no results in {tmp_path / 'typo'}; give the folders of some runs, nothing was merged"),
        (odd, f"{odd / 'zz.jsonl'} is of no experiment ('rdc experiment list' lists them); take it out, nothing was merged"),
        (small, f"{small} holds cells of --toy, which are not for the book; give --out"),
    ):
        assert refused("experiment", "merge", run, folder) == f"rdc: {says}\n" and not book.exists()
    merge_folders([run], None)
    merge_folders([run, small], tmp_path / "other")
    assert [len(Store.read(folder / "dc-noise.jsonl").lines) for folder in (book, tmp_path / "other")] == [1, 2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run dc-noise --toy --out {} --block 0", "--toy sets the size of a cell; leave out --block"),
        ("run dc-noise --toy --out {} --block 4", "--toy sets the size of a cell; leave out --block"),
        ("status dc-noise --out {}/none", "there is no folder {}/none; give --out that of a run"),
        ("status dc-noise --out {}/file", "there is no folder {}/file; give --out that of a run"),
    ],
)
def test_an_experiment_is_not_begun_with_an_option_that_counts_for_nothing(tmp_path, refused, words, says):
    (tmp_path / "file").write_text("")
    assert refused("experiment", *words.format(tmp_path).split()) == f"rdc: {says.format(tmp_path)}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("experiment status rdc-gradent", "experiment 'rdc-gradent'; did you mean rdc-gradient? (rdc experiment list)\n"),
        ("report xyzzy", "experiment 'xyzzy'; see rdc experiment list\n"),
        ("models RDCC", "model 'RDCC'; did you mean rdc? (rdc models)\n"),
        ("models fashion-mimi", "model 'fashion-mimi'; did you mean fashion-mini? (rdc models)\n"),
        ("findings a1 a2x", "claim 'a2x'; did you mean A2? (rdc findings)\n"),
    ],
)
def test_of_an_unknown_name_the_nearest_are_said(refused, words, says):
    assert refused(*words.split()) == f"rdc: unknown {says}"


def test_a_claim_may_be_written_in_small_letters(capsys):
    findings_command(("a8", "C3A1", "A8"))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]] == ["A8", "C3a1", "A8"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--share 2", "--share must lie in (0, 1], got 2"), ("--share -1", "--share must lie in (0, 1], got -1"),
        ("--share 0", "--share must lie in (0, 1], got 0"), ("--seconds -1", "--seconds must not be negative, got -1"),
    ],
)  # fmt: skip
def test_nothing_is_verified_with_a_number_out_of_range(refused, words, says):
    assert refused("verify", "dc-noise", *words.split()) == f"rdc: {says}\n"


def test_verify_says_first_how_many_cells_it_computes(tmp_path, monkeypatch, capsys):
    rows = experiment("dc-noise").rows[:2]
    lines = [stored(tmp_path, row).joinpath("dc-noise.jsonl").read_text() for row in rows for _ in range(3)]
    (tmp_path / "dc-noise.jsonl").write_text("".join(lines))
    asked = []
    monkeypatch.setattr("rdc.cli.report.measure", lambda cell, device: asked.append(cell) or Outcome({"clean": [True]}))
    verify_command(("dc-noise",), share=0.5, device="cpu", folder=tmp_path)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "3 cells are computed again" and len(asked) == len(rest) == 3


def test_a_forecast_is_made_where_cells_are_missing_and_takes_its_share_of_the_time(tmp_path, monkeypatch, capsys, narrow):
    """Its time counts: a run of a minute has no more than what the forecast left of it."""
    asked, given, clock = [], [], [0.0]

    def slow(name, rows, device, seconds):
        asked.append(seconds)
        clock[0] += 45
        return Forecast("forecast", {})

    def took(campaign, path, known, minutes, *more):
        given.append(minutes)
        return run_campaign(campaign, path, known, None)

    monkeypatch.setattr("rdc.cli.experiment.forecast", slow)
    monkeypatch.setattr("rdc.cli.experiment.run_campaign", took)
    monkeypatch.setattr("rdc.cli.experiment.time.monotonic", lambda: clock[0])
    words = ["rdc", "experiment", "run", "dc-noise", "--toy", "--out", str(tmp_path), "-q", "--device", "cpu"]
    for more in (["--minutes", "0"], ["--minutes", "1"], []):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        main()
        (tmp_path / "dc-noise.jsonl").unlink() if more == ["--minutes", "0"] else None
    assert asked == [6.0] and given == [0.0, 0.25, None] and capsys.readouterr().out.count("forecast\n") == 1


def test_another_block_is_for_rows_that_may_be_cut_anywhere():
    """The others keep the cells on which their results depend, so that the same spec has the same numbers."""
    for _, row in EVERY:
        (other,) = in_blocks([row], 128)
        assert other == (replace(row, block=128) if row.task in FREE else row)
    assert {row.task for _, row in EVERY} - FREE == {"audit", "certify", "guided", "heads", "level", "randomness", "sampled"}
    assert in_blocks([SMALL], None) == (SMALL,) and FREE < set(TASKS)
    with pytest.raises(ValueError, match="--block must be at least 1, got 0"):
        in_blocks([SMALL], 0)


@pytest.mark.parametrize("task", sorted(FREE))
def test_a_free_task_says_the_same_of_an_image_in_any_cell(task, narrow):
    small = replace(toy(next(row for _, row in EVERY if row.task == task)), n=2, block=2)
    (whole,), parts = ([measure(cell) for cell in replace(small, block=b).cells()] for b in (2, 1))
    for name, bits in whole.bits.items():
        assert list(bits) == [bit for part in parts for bit in part.bits[name]]
    for name, values in whole.values.items():
        alone = [value for part in parts for value in part.values[name]]
        assert [v is None for v in values] == [v is None for v in alone]
        assert [v or 0 for v in values] == pytest.approx([v or 0 for v in alone], rel=1e-3, abs=1e-4)
    for name, mean in whole.means.items():
        assert mean == pytest.approx(sum(part.means[name] for part in parts) / 2)


def test_stored_cells_come_out_again(tmp_path, narrow):
    """What was computed is verified; an edited bit is found, and told to be of today's code."""
    path = tmp_path / "x.jsonl"
    rows = [replace(SMALL, n=2, block=1, seed=i) for i in range(4)]
    run_campaign(Campaign(tuple(rows), measure, code_of, weights_of), path)
    checks = list(verify(rows, Store.read(path), measure, share=1.0))
    assert len(checks) == len(Store.read(path).lines) == 8 and not any(check.differs for check in checks)
    assert len(list(verify(rows, Store.read(path), measure, share=0.3))) == 2
    assert list(verify(rows, Store.read(path), measure, seconds=-1.0)) == []
    first, *rest = Store.read(path).lines
    flipped = [not bit for bit in first.outcome("robust").values()]
    odd = replace(first, bits={**first.bits, "robust": pack(flipped)}, counts={**first.counts, "robust": sum(flipped)})
    path.write_text("".join(line.dump() + "\n" for line in [odd, *rest]))
    assert [check.differs for check in verify(rows, Store.read(path), measure, share=1.0)] == [(0,)] + [()] * 7


def test_a_report_counts_the_images_of_its_row():
    """A row of two images in a cell of four; what is counted of a cell as a whole has no images."""
    outcome = Outcome({"clean": [True] * 4, "robust known": [True, False, True, True]}, counts={"pass": 5})
    line = Line.of(Cell(SMALL, 0, 4), outcome, "code", {}, {"seconds": 1.0})
    store = Store()
    store.add(line)
    assert others(store.of(replace(SMALL, n=2))) == "robust known 1, pass 5"
    assert others(store.of(SMALL)) == "robust known 3, pass 5"


@pytest.mark.parametrize("command", ["report", "findings", "verify"])
def test_a_folder_of_results_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setattr(sys, "argv", ["rdc", command, "--folder", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith(f"rdc: there is no folder {tmp_path / 'none'}; give --folder")


def test_reports_hold_every_row_that_was_run(capsys, monkeypatch, tmp_path):
    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rdc", *words])
        main()
        return capsys.readouterr().out

    store = Store.read(book_folder("results") / "dc-noise.jsonl")
    run = [row for row in experiment("dc-noise").rows if store.of(row).n]
    text = command("report", "dc-noise")
    assert text.count("\n") == 2 + len(run) and "| dc |" in text
    lines = list(csv.DictReader(io.StringIO(command("report", "dc-noise", "--format", "csv"))))
    assert [int(line["robust"]) for line in lines] == [store.of(row).accuracy("robust").correct for row in run]
    command("report", "dc-noise", "--format", "figure", "--out", str(tmp_path / "a.svg"))
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert "no results yet" in command("report", "dc-noise", "--folder", str(tmp_path))


def test_a_report_tells_data_sets_apart_and_calls_nothing_robust_that_nobody_attacked():
    rows = [replace(SMALL, n=2, data=data, attack=attack) for data in ("digits", "fashion-mini") for attack in ("pgd", None)]
    store = Store()
    for row in rows:
        store.add(Line.of(Cell(row, 0, 2), Outcome({"clean": [True] * 2, "robust": [True] * 2}), "", {}, {"seconds": 1}))
    lines = [line_of("nearest", row, store.of(row), store) for row in rows]
    assert len({(line["data"], line["attack"]) for line in lines}) == 4
    assert [line["robust"] for line in lines] == [2, "", 2, ""] and {line["clean"] for line in lines} == {2}
    assert words({"a": [{"name": "x", "steps": 3}, {"name": "y"}], "b": {"c": 1}, "d": [1, 2]}) == "a=(x, y) b=(c=1) d=(1, 2)"


def test_states_count_images():
    campaign = Campaign((SMALL,), measure, lambda row: "now", weights_of)
    (state,) = campaign_state(campaign, Store())
    assert (state.done, state.stale, state.missing) == (0, 0, 4)


def test_checkpoints_are_those_of_the_options():
    """What is trained on the spot, or follows from the data, has none."""
    assert set(checkpoints_of("dc", "fashion-mini", {})) == {"fashion-mini-multihead"}
    assert set(checkpoints_of("dc", "fashion-mini", {"denoiser": "single-head"})) == {"fashion-mini"}
    assert checkpoints_of("optimal", "digits", {}) == checkpoints_of("1-nn", "digits", {}) == {}
    assert set(checkpoints_of("digits", "digits", {})) == {"digits"}
    assert checkpoints_of("dc", "digits", {"denoiser": "optimal"}) == {}
    assert build("dc", "digits", levels=2)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


PENALTY = {"penalty": {"denoiser": "single-head", "levels": 8, "sigma_min": 0.1}}


@pytest.mark.parametrize(
    ("row", "networks"),
    [
        (Row("dc", task="randomness"), ["multihead", "cnn"]),
        (Row("dc-trained", {"recipe": "x"}, task="heads"), [""]),
        (Row("robust", arguments={"judges": "fashion"}, task="targeted"), ["robust"]),
        (Row("robust", arguments={"judges": "reference"}, task="targeted"), ["robust", "at-linf"]),
        (Row("robust", arguments={"judges": "reference"}, task="guided"), ["robust", "cnn", "at-l2", "at-linf"]),
        (Row("robust", task="level"), ["robust"]),
        (Row("robust", arguments={"audit": True}, task="level"), ["robust", "vanilla"]),
        (Row("vanilla", arguments={"audit": True}, task="level"), ["vanilla", "robust"]),
        (Row("trained", arguments={"audit": True}, task="level"), []),
        (Row("dc", attack="lagrange", arguments=PENALTY), ["multihead", ""]),
        (Row("dc", {"denoiser": "single-head"}, "lagrange", PENALTY), [""]),
        (Row("", {"denoiser": "fashion-mini"}, arguments={"features": "cnn"}, task="sampled"), ["", "cnn"]),
        (Row("", {"denoiser": "fashion-mini"}, arguments={"features": "my_file:network"}, task="sampled"), [""]),
    ],
)
def test_networks_beside_that_of_the_model_are_checkpoints_too(row, networks):
    """Those that choose the images, are compared with, judge, are the rival, or make a penalty or features."""
    found = weights_of(row)
    assert set(found) == {f"fashion-mini-{name}".rstrip("-") for name in networks} and "missing" not in found.values()
