"""Killed at any instant, an evaluation continues and ends with the same file; the file refuses what does not belong to it."""

import errno
import functools
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Linear, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rdc.attack import lagrange, pgd
from rdc.classify import CNN
from rdc.classify.diffusion_loss import diffusion_loss
from rdc.evaluate import attack_table, protocols, read_rows, robust_accuracy
from rdc.randomness import owned_randomness, randomness
from rdc.runs.fingerprint import describe, describe_attack, differences
from rdc.runs.rowfile import RowFile, fill, pieces
from rdc.schedule import levels

N = 40


def slow(model, x, y, log="", pause=0.0, seed=0, index=None):
    """A cheap attack that writes down every image that it begins, and the process that does it (not the frozen model's turn)."""
    if log and isinstance(model, Jittery):
        with open(log, "a") as file:
            file.write(f"{int(index)} {os.getpid()}\n")
        time.sleep(pause)
    return pgd(model, x, y, eps=0.05, steps=2, seed=seed, index=index)


class Jittery(nn.Module):
    """A linear model of noisy images: random, from the global generator."""

    def __init__(self, noise=0.2):
        super().__init__()
        self.inner, self.noise = Linear((draw((3, 1, 3, 3), 5, torch.float32) - 0.5), None), noise

    def forward(self, x):
        return self.inner(x + self.noise * torch.randn_like(x))


def evaluate(path, log="", pause=0.0, workers=1, model=None, n=N, **options):
    torch.set_num_threads(1)
    model, x = model or Jittery(), draw((n, 1, 3, 3), 1, torch.float32)
    with torch.no_grad():
        y = (model.inner if isinstance(model, Jittery) else model)(x).argmax(1)
    attack = functools.partial(slow, log=str(log), pause=pause)
    return robust_accuracy(model, x, y, attack, draws=4, rows=path, workers=workers, **options)


def without_seconds(path):
    """The file as text, with the times (and where the attack of the tests logs) taken out."""

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "log", "pause", "check")}
        return value

    return [json.dumps(strip(json.loads(line))) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    path = tmp_path_factory.mktemp("rows") / "whole.jsonl"
    evaluate(path)
    return path


@pytest.fixture(scope="module")
def children():
    """Processes that start from a server which has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rdc.evaluate", "rdc.classify", "pytest"])
    return context


def kill(process):
    """SIGKILL; whether it was still running."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def started(log):
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_twenty_times_it_ends_with_the_same_file(tmp_path, whole, children):
    moments, kills, mid, run = random.Random(0), 0, 0, 0
    while kills < 20:
        run += 1
        path, log, finished, before = tmp_path / f"{run}.jsonl", tmp_path / f"{run}.log", False, kills
        while not finished:
            count = len(started(log))
            process = children.Process(target=evaluate, args=(path, log, 0.005))
            process.start()
            if kills < 20:
                deadline, from_first = time.monotonic() + 20, moments.random() < 0.7  # else at any time, also while it starts
                while from_first and len(started(log)) == count and process.is_alive():
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
                process.join(0.3 * moments.random())
                kills += kill(process) if process.is_alive() else 0
            process.join()
            finished = process.exitcode == 0
            if not finished:
                done = len(read_rows(path)[1]) if path.exists() and path.stat().st_size else 0
                mid += 0 < done < N
                assert 0 <= len(started(log)) - done <= kills - before  # one image in flight is lost for each kill
        assert without_seconds(path) == without_seconds(whole)
        assert len(started(log)) <= N + kills - before
    assert mid >= 5, "hardly any kill hit the middle of a run"


def test_cut_at_any_byte_it_continues(tmp_path):
    """What a kill can leave is a prefix of the file: every line break, and cuts within the first rows and the header."""
    whole, path = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    small(whole)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    head, last = len(lines[0]), len(content) - len(lines[-1])
    for size in [0, 1, 5, head - 1, head, head + 1, head + len(lines[1]) - 1, head + len(lines[1]), last, last + 9, len(content)]:
        path.write_bytes(content[:size])
        small(path)
        assert without_seconds(path) == without_seconds(whole)
        assert path.read_bytes()[: max(size - len(lines[-1]), 0)] == content[: max(size - len(lines[-1]), 0)]


def test_a_finished_file_is_only_read(tmp_path):
    path, log = tmp_path / "done.jsonl", tmp_path / "log"
    first = evaluate(path, log)
    before = path.read_bytes()
    assert evaluate(path, log) == first == protocols(path)["draws"] and path.read_bytes() == before
    assert started(log) == list(range(N))  # each image once, none by the second call
    config, rows = read_rows(path)
    assert len(rows) == N and [row["index"] for row in rows] == list(range(N))


def test_workers_make_the_same_rows(tmp_path, whole, children):
    evaluate(tmp_path / "two.jsonl", workers=2)
    assert without_seconds(tmp_path / "two.jsonl") == without_seconds(whole)
    cnn, x = CNN((1, 8, 8), 4, width=4), draw((6, 1, 8, 8), 3, torch.float32)
    files = [tmp_path / f"cnn{workers}.jsonl" for workers in (1, 3)]
    for path, workers in zip(files, (1, 3), strict=True):
        robust_accuracy(cnn, x, cnn(x).argmax(1), "pgd", rows=path, workers=workers, steps=3, eps=0.1)
    assert without_seconds(files[0]) == without_seconds(files[1])


def gone(pid):
    """Whether a process has ended, also if no one has asked for its exit status yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z " in state.read_text()


def test_workers_leave_with_a_killed_parent(tmp_path, whole, children):
    path, log = tmp_path / "orphans.jsonl", tmp_path / "log"
    process = children.Process(target=evaluate, args=(path, log, 0.03, 2))
    process.start()
    deadline = time.monotonic() + 20
    while len(started(log)) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kill(process)
    pids = {int(line.split()[1]) for line in log.read_text().splitlines()}
    deadline = time.monotonic() + 5
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2 and all(map(gone, pids))
    done = len(read_rows(path)[1])
    assert len(started(log)) - 2 <= done < N  # one image in flight for each worker
    evaluate(path, log, 0.03)  # the pause is an option of this attack: it must agree
    assert without_seconds(path) == without_seconds(whole)


class Fatal(Jittery):
    """Kills the process that evaluates it, on images whose first pixel is dark; or raises."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if float(x[0, 0, 0, 0]) < 0.02 and multiprocessing.parent_process() is not None:
            if self.how == "dies":
                os._exit(7)
            raise (ValueError if self.how == "value" else KeyError)("a dark\nimage")
        return super().forward(x)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("dies", RuntimeError, r"a worker died \(exit code 7.*rows so far are kept"),
        ("value", ValueError, "^a dark image$"),
        ("key", RuntimeError, "KeyError"),
    ],
)
def test_a_failing_worker_ends_the_run_with_one_line(tmp_path, children, how, kind, text):
    path = tmp_path / "failed.jsonl"
    x = draw((8, 1, 3, 3), 1, torch.float32)
    x[5, 0, 0, 0] = 0.0
    with pytest.raises(kind, match=text) as error:
        robust_accuracy(Fatal(how), x, torch.zeros(8, dtype=torch.int64), {}, rows=path, workers=2, draws=2)
    assert "\n" not in str(error.value)
    found = [row["index"] for row in read_rows(path)[1]]
    assert 4 <= len(found) < 8 and 5 not in found


def test_what_cannot_be_sent_to_a_worker_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be picklable.*workers=1"):
        robust_accuracy(Jittery(), draw((2, 1, 3, 3), 1), torch.zeros(2).long(), lambda *_, **__: _[1], workers=2, draws=2)


# ------------------------------------------------------------------------------------------------- the file


def small(path, **options):
    return evaluate(path, n=3, **options)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"attempts": 2, "seed": 1}, ["seed: 0 -> 1", "attempts: 1 -> 2"]),
        ({"pause": 0.001}, ["attacks.slow.pause: 0.0 -> 0.001"]),
        ({"model": Jittery(0.3)}, ["model.noise: 0.2 -> 0.3"]),
        ({"config": {"data": "digits"}}, ["run: (none) -> "]),
    ],
)
def test_another_configuration_is_refused(tmp_path, options, parts):
    path = tmp_path / "rows.jsonl"
    small(path)
    before = path.read_bytes()
    with pytest.raises(ValueError) as error:
        small(path, **options)
    text = str(error.value)
    assert text.startswith(f"{path} holds another run: ") and "\n" not in text
    assert all(part in text for part in parts) and text.count(" -> ") == len(parts)
    assert path.read_bytes() == before
    small(path, protocol="resubmit", workers=1, batch=7, quiet=True)  # these decide no number


@pytest.mark.parametrize("content", [b"hello\n", b"\x00\xff", b"{}\n", b"[1]\n", b'{"config": 3}\n', b'{"index": 3}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="notes.txt is not a file of rows"):
        small(path)
    with pytest.raises(ValueError, match="notes.txt is not a file of rows"):
        read_rows(path)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="no rows in"):
        read_rows(tmp_path / "none.jsonl")


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    small(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{oops\n" + lines[2])
    with pytest.raises(ValueError, match="damaged at line 2"):
        small(path)


@pytest.mark.parametrize("partial", [False, True])
def test_a_full_disk_leaves_the_rows_and_one_line(tmp_path, monkeypatch, partial):
    path, reference, write, left = tmp_path / "rows.jsonl", tmp_path / "reference.jsonl", os.write, [3]
    small(reference)

    def full(file, line):
        left[0] -= 1
        if left[0] < 0:
            if partial:
                return write(file, line[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, line)

    with monkeypatch.context() as patch:
        patch.setattr("rdc.runs.rowfile.os.write", full)
        with pytest.raises(OSError, match="cannot write .*rows.jsonl: No space left on device; its 2 rows are intact") as error:
            small(path)
    assert "\n" not in str(error.value) and error.value.errno == errno.ENOSPC
    assert without_seconds(path) == without_seconds(reference)[:3]  # the header and two rows, and nothing of the third
    small(path)
    assert without_seconds(path) == without_seconds(reference)


def test_a_read_only_folder_gives_one_line(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr("rdc.runs.rowfile.os.open", refused)
        with pytest.raises(OSError, match="cannot open .*rows.jsonl: Permission denied$"):
            small(tmp_path / "rows.jsonl")
    with pytest.raises(OSError, match="cannot open .*: (Is a directory|Not a directory)"):
        small(tmp_path)


def test_only_one_run_writes(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowFile(path, {"a": 2}), pytest.raises(OSError, match="another run is writing to"):
        RowFile(path, {"a": 2})
    with RowFile(path, {"a": 2}) as table:
        table.append({"index": 0, "image": ""})


def test_rows_are_sorted_at_the_end(tmp_path):
    path = tmp_path / "rows.jsonl"
    images = {i: f"image {i}" for i in range(5, -1, -1)}
    with RowFile(path, {}, images=images) as table:
        table.append(*({"index": i, "image": image} for i, image in images.items()))
        rows = table.finish()
    assert [row["index"] for row in rows] == [row["index"] for row in read_rows(path)[1]] == list(range(6))


# ------------------------------------------------------------------------------------------------- extended, and checked


MODEL, IMAGES = Linear((draw((4, 1, 3, 3), 5, torch.float32) - 0.5), None), draw((20, 1, 3, 3), 1, torch.float32)


def part_of(path, ids, block=4, workers=1, **options):
    """One run over some images of a deterministic model, in any order."""
    at = torch.tensor(ids)
    x, attack = IMAGES[at], functools.partial(pgd, eps=0.05, steps=3)
    return robust_accuracy(MODEL, x, MODEL(x).argmax(1), attack, rows=path, index=at, block=block, workers=workers, **options)


@pytest.fixture(scope="module")
def all_at_once(tmp_path_factory):
    """The rows of all images from one run."""
    path = tmp_path_factory.mktemp("parts") / "all.jsonl"
    part_of(path, list(range(20)))
    return path


@settings(max_examples=15)
@given(st.data())
def test_however_a_run_is_extended_its_rows_are_the_same(tmp_path_factory, all_at_once, data):
    """Any parts of the images, overlapping or not, in any order, with kills between: the file of one run."""
    path = tmp_path_factory.mktemp("parts") / "parts.jsonl"
    parts = data.draw(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=12, unique=True), min_size=1, max_size=3))
    for ids in [*parts, list(range(20))]:
        if path.exists() and data.draw(st.booleans()):
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size))])
        assert part_of(path, ids).n == len(ids)
    assert without_seconds(path) == without_seconds(all_at_once)


def test_blocks_and_workers_decide_no_row(tmp_path, all_at_once):
    rows = without_seconds(all_at_once)[1:]
    for block, workers in ((1, 1), (7, 2), (64, 1)):
        path = tmp_path / f"{block}.jsonl"
        part_of(path, list(range(19, -1, -1)), block, workers)
        assert without_seconds(path)[1:] == rows
        with pytest.raises(ValueError, match=f"block: {block} -> 4"):
            part_of(path, [0])


def test_a_result_counts_the_images_of_its_call(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole, half = part_of(path, list(range(20))), part_of(path, list(range(8, 16)))
    assert (whole.n, half.n) == (20, 8) and half == part_of(tmp_path / "other.jsonl", list(range(8, 16)))
    assert protocols(path)["draws"] == whole and protocols(path, torch.arange(8, 16))["draws"] == half
    assert attack_table(path, index=torch.arange(8, 16))["union"] == half
    rows = read_rows(path)[1]
    assert half.correct == sum(row["right"]["draws"] for row in rows[8:16]) and 0 < whole.correct < 20


@given(st.lists(st.integers(-50, 200), unique=True), st.integers(1, 9), st.sets(st.integers(-50, 200)))
def test_pieces_are_the_missing_images_of_each_block(ids, block, done):
    found = pieces(ids, block, done)
    blocks = [{ids[p] // block for p in part} for part in found]
    assert all(len(b) == 1 for b in blocks) and len(set().union(*blocks, set())) == len(found)
    assert [ids[p] for part in found for p in part] == sorted(set(ids) - done)


def test_a_run_over_other_images_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    part_of(path, [3, 4])
    before = path.read_bytes()
    x = IMAGES[[4, 5]]
    with pytest.raises(ValueError, match="holds other images: image 4 of line 3 is not image 4 of this run; give another name"):
        changed = x + torch.tensor([1e-3, 0]).reshape(2, 1, 1, 1)
        attack = functools.partial(pgd, eps=0.05, steps=3)
        robust_accuracy(MODEL, changed.clamp(0, 1), MODEL(x).argmax(1), attack, rows=path, index=torch.tensor([4, 5]), block=4)
    assert path.read_bytes() == before


def leaves(value, at=()):
    """The places of all values of a row but its times."""
    if isinstance(value, dict):
        return [place for k, v in value.items() if k != "seconds" for place in leaves(v, (*at, k))]
    return [at]


@given(st.data())
def test_whatever_is_changed_in_a_row_is_noticed(tmp_path_factory, all_at_once, data):
    """A field edited, missing, or of another type, and a row that stands twice or comes from another file."""
    path = tmp_path_factory.mktemp("edited") / "rows.jsonl"
    lines = all_at_once.read_text().splitlines()
    number = data.draw(st.integers(1, 20))
    row = json.loads(lines[number])
    *above, name = data.draw(st.sampled_from(leaves(row)))
    inner = functools.reduce(lambda value, k: value[k], above, row)
    how = data.draw(st.sampled_from(["gone", "text", "null", "moved", "twice"]))
    if how == "gone":
        del inner[name]
    elif how == "twice":
        lines.append(lines[number])
    else:
        old = inner[name]
        moved = (not old) if isinstance(old, bool) else f"{old}0" if isinstance(old, str) else (old or 0) + 1
        inner[name] = {"text": "yes", "null": [None], "moved": moved}[how]
    lines[number] = lines[number] if how == "twice" else json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    at = len(lines) if how == "twice" else number + 1
    for read in (lambda: read_rows(path), lambda: part_of(path, list(range(20))), lambda: protocols(path)):
        with pytest.raises(ValueError, match=rf"rows.jsonl is damaged at line {at}: .*; remove that line to do its image again"):
            read()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row.pop("right"), "right is missing in it"),
        (lambda row: row["attacks"]["pgd"].pop("wrong"), "wrong is missing in attacks.pgd"),
        (lambda row: row["verdict"].update(once=1), "verdict.once is 1, not bool"),
        (lambda row: row.update(label=True), "label is true, not int"),
        (lambda row: row.update(attacks=[]), "attacks is no object"),
        (lambda row: row.update(clean=0.5), "clean is 0.5, not int"),
        (lambda row: row.update(clean=9), "the row of image 0 was edited or comes from another file"),
        (lambda row: row["right"].update(draws=not row["right"]["draws"]), "the row of image 0 was edited"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path, all_at_once, change, says):
    path, lines = tmp_path / "rows.jsonl", all_at_once.read_text().splitlines()
    row = json.loads(lines[1])
    change(row)
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=f"damaged at line 2: {says}") as error:
        protocols(path)
    assert "\n" not in str(error.value)


def test_rows_of_another_file_are_not_believed(tmp_path, all_at_once):
    """The same images under a weaker attack: its rows do not fit into the file of the stronger one."""
    path, weak = tmp_path / "rows.jsonl", tmp_path / "weak.jsonl"
    part_of(weak, list(range(20)), seed=1)
    lines = all_at_once.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], weak.read_text().splitlines()[-1]]) + "\n")
    with pytest.raises(ValueError, match="line 21: the row of image 19 was edited or comes from another file"):
        read_rows(path)


def test_a_file_of_the_first_format_gets_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"config": {"n": 1}}\n{"index": 0, "right": {"draws": true}}\n')
    for read in (lambda: read_rows(path), lambda: part_of(path, [0])):
        with pytest.raises(ValueError, match="is a file of rows of format 1, not 2; give another name"):
            read()


def late(model, x, y, seed=0, index=None):
    """Fails at the block that begins with image 8."""
    if int(index[0]) == 8:
        raise RuntimeError("late")
    return x


def test_a_failure_loses_the_block_in_flight_and_no_more(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(RuntimeError, match="late"):
        robust_accuracy(MODEL, IMAGES, MODEL(IMAGES).argmax(1), late, rows=path, block=4)
    assert [row["index"] for row in read_rows(path)[1]] == list(range(8))


def test_fill_makes_what_is_missing_in_blocks(tmp_path):
    seen = []

    def work(positions):
        seen.append(tuple(positions))
        return [{"index": 10 + p, "image": str(p)} for p in positions]

    images, path = {10 + p: str(p) for p in range(6)}, tmp_path / "rows.jsonl"
    fill(work, {i: images[i] for i in (10, 11, 12)}, path, {}, block=4)
    found = fill(work, images, path, {}, block=4)
    assert seen == [(0, 1), (2,), (3, 4, 5)] and [row["index"] for row in found] == list(images)
    assert fill(work, {12: "2"}, path, {}) == found[2:3]


# ------------------------------------------------------------------------------------------------- the description


def test_a_description_changes_with_what_decides_and_with_nothing_else():
    model = CNN((1, 8, 8), 4, width=4)
    before = describe(model)
    assert json.loads(json.dumps(before)) == before
    model(draw((2, 1, 8, 8), 0, torch.float32))
    model.eval().requires_grad_(False).register_forward_hook(lambda *_: None)
    model.calls, model.chunk = 3, 99
    assert describe(model) == before == describe(CNN((1, 8, 8), 4, width=4))
    with torch.no_grad():
        model.conv3.bias[0] += 1e-6
    (line,) = differences(before, describe(model))
    assert line.startswith("tensors: ") and differences(before, before) == []
    assert "strategy: (none) -> mean" in differences(before, {**before, "strategy": "mean"})
    for name, value in {"power": 2.0, "order": ("a", 1), "flag": True, "levels": levels("elbo", 3)}.items():
        model = CNN((1, 8, 8), 4, width=4)
        setattr(model, name, value)
        assert [line.split(":")[0] for line in differences(before, describe(model))] == [name]


def test_a_description_of_dataclasses_cycles_and_functions():
    model = CNN((1, 8, 8), 4, width=4)
    model.levels, model.me = levels("elbo", 3), types.SimpleNamespace(model=None)
    model.me.owner = model.me
    one = describe(model)
    model.levels = levels("elbo", 4)
    assert {line.split(":")[0] for line in differences(one, describe(model))} == {"levels.sigma", "levels.weight"}

    def made(power):
        return lambda x: x**power

    for attribute, (a, b) in {"f": (made(2), made(3)), "g": (pgd, slow)}.items():
        setattr(model, attribute, a)
        one = describe(model)
        setattr(model, attribute, b)
        assert differences(one, describe(model))
    model.f = made(3)
    one = describe(model)
    model.f = made(3)
    assert describe(model) == one


def test_the_description_of_an_attack_holds_its_defaults():
    found = describe_attack(functools.partial(pgd, eps=0.1, quiet=False, seed=3))
    assert found["function"] == "rdc.attack.pgd.pgd" and found["eps"] == 0.1 and found["steps"] == 20
    assert not {"seed", "index", "quiet", "batch"} & set(found)
    assert describe_attack(functools.partial(functools.partial(pgd, eps=0.2), eps=0.1)) == found


def test_owned_randomness_depends_on_its_key_and_leaves_no_trace():
    model = Jittery()
    model.stream, x = torch.Generator().manual_seed(3), draw((1, 1, 3, 3), 0, torch.float32)
    states = torch.get_rng_state(), model.stream.get_state(), np.random.get_state()[1].copy()
    seen = []
    for key in (1, 2, 1):
        with owned_randomness(model, "test", key):
            seen.append(
                torch.cat([model(x)[0], torch.rand(1, generator=model.stream), torch.tensor([random.random(), np.random.rand()])])
            )
    assert torch.equal(seen[0], seen[2]) and bool((seen[0] != seen[1]).all())
    assert torch.equal(states[0], torch.get_rng_state()) and torch.equal(states[1], model.stream.get_state())
    assert bool((states[2] == np.random.get_state()[1]).all())  # the type checker of the tests draws from Python's
    assert randomness(model, x) == (True, ()) and randomness(model.inner, x) == (False, ())


def test_the_tables_say_what_the_rows_say(whole):
    rows, found, table = read_rows(whole)[1], protocols(whole), attack_table(whole)
    assert set(found) == {"once", "draws", "resubmit", "known"} and set(table) == {"slow", "union"}
    for name, value in found.items():
        assert (value.correct, value.n) == (sum(row["right"][name] for row in rows), N)
    assert table["union"] == table["slow"] == found["draws"]  # one attack
    assert found["resubmit"].correct <= found["once"].correct


def test_a_diffusion_loss_goes_to_workers(tmp_path, tiny_edm):
    """As the penalty of an attack: it pickles to the same function, and workers make the same rows."""
    loss = diffusion_loss(tiny_edm, levels("elbo", 2), seed=3)
    x = draw((2, 1, 8, 8), 1, torch.float32)
    copied = pickle.loads(pickle.dumps(loss))
    point, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    assert torch.equal(copied(x), loss(x)) and bool((loss(x) > 0).all())
    slopes = [torch.autograd.grad(f(p).sum(), p)[0] for f, p in ((loss, point), (copied, other))]
    assert torch.equal(*slopes) and bool(slopes[0].abs().sum() > 0)
    model = Linear((draw((3, 1, 8, 8), 5, torch.float32) - 0.5), None)
    y, attack = model(x).argmax(1), functools.partial(lagrange, penalty=loss, steps=2, weights=(1,), loss="margin", eps=0.3)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, workers in ((one, 1), (two, 2)):
        robust_accuracy(model, x, y, attack, rows=path, workers=workers)
    assert without_seconds(one) == without_seconds(two)
    other = functools.partial(lagrange, penalty=diffusion_loss(tiny_edm, levels("elbo", 2), seed=4), steps=2, weights=(1,))
    with pytest.raises(ValueError, match="penalty.seed: 3 -> 4"):
        robust_accuracy(model, x, y, other, rows=one)


def test_workers_leave_no_semaphore_behind(tmp_path):
    """They are killed at the end; what they hold must not outlive them. The tracker complains when the parent ends."""
    code = """
import torch, functools
from rdc.attack import pgd
from rdc.classify import CNN
from rdc.evaluate import robust_accuracy
if __name__ == "__main__":
    x, model = torch.rand(3, 1, 8, 8), CNN((1, 8, 8), 3, width=4)
    robust_accuracy(model, x, model(x).argmax(1), functools.partial(pgd, steps=2), workers=2)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
