"""Records: what is written is read back, whole or not at all."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.evaluate import Accuracy
from rdc.runs import record
from rdc.runs.record import book_folder, read_record, record_path, stored_record, write_atomic, write_record

texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=8)
@given(st.dictionaries(texts, values, max_size=4), values)
def test_round_trip(tmp_path_factory, config, results):
    path = tmp_path_factory.mktemp("records") / "a" / "b.json"
    assert write_record(path, config, results, 1.23456) == path
    record = read_record(path)
    assert record["config"] == config and record["results"] == results and record["seconds"] == 1.2


def test_dataclasses_and_tensors_are_unfolded(tmp_path):
    write_record(tmp_path / "a.json", {"seed": 0}, {"clean": Accuracy.of(3, 4), "sigma": torch.tensor([1.0, 2.0])}, 0.1)
    results = read_record(tmp_path / "a.json")["results"]
    assert Accuracy(**results["clean"]) == Accuracy.of(3, 4) and results["sigma"] == [1.0, 2.0]


def test_the_environment_is_told(tmp_path):
    write_record(tmp_path / "a.json", {}, {}, 0.0)
    found = read_record(tmp_path / "a.json")["environment"]
    assert found["versions"]["torch"] == torch.__version__ and {"date", "python", "device", "commit"} <= found.keys()


def test_the_device_is_that_of_the_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {torch.device(device or 'cuda:3').index}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {device: record.environment(device)["device"] for device in (None, "cuda:1", "cuda:0", "cpu")}
    assert [found.pop(device) for device in (None, "cuda:1", "cuda:0")] == ["GPU 3", "GPU 1", "GPU 0"]
    assert found["cpu"].startswith("CPU")


@pytest.mark.parametrize("what", ["replace", "chmod", "content"])
def test_a_failing_write_leaves_the_old_record_and_no_other_file(tmp_path, monkeypatch, what):
    if what == "content":
        old = tmp_path / "a.json"
        write_atomic(old, b"[1]")
        with pytest.raises(TypeError):
            write_atomic(old, "text")
    else:
        old = write_record(tmp_path / "a.json", {}, [1], 0.0)
        monkeypatch.setattr(os, what, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_record(old, {}, [2], 0.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    content = json.loads(old.read_text())
    assert content == [1] or content["results"] == [1]


def test_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cannot record a set"):
        write_record(tmp_path / "a.json", {}, {1, 2}, 0.0)
    assert not list(tmp_path.iterdir())


def test_read_errors(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"list\.json is not a record \(it holds list, no object\)"):
        read_record(tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"no record .*absent\.json.*run the notebook") as error:
        read_record(tmp_path / "absent.json")
    assert "\n" not in str(error.value)
    (tmp_path / "broken.json").write_text('{"results": ')
    with pytest.raises(ValueError, match=r"broken\.json is not a record.*git checkout"):
        read_record(tmp_path / "broken.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.json is not a record"):
        read_record(tmp_path / "bytes.json")


@pytest.mark.parametrize("path", ["results/bench.json", "../results/bench.json"])
def test_records_of_the_book_are_found_from_everywhere(path, tmp_path, monkeypatch):
    here = read_record(path)
    monkeypatch.chdir(tmp_path)
    assert stored_record(path) == read_record(path) == here
    assert record_path(path) == book_folder("results") / "bench.json" and record_path(path).is_absolute()
    assert stored_record("results/never-made.json") == {}


def test_a_folder_of_records_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("elsewhere/bench.json", tmp_path / "none" / "bench.json"):
        with pytest.raises(ValueError, match=r"no folder .* with a record bench\.json; give results/bench\.json") as error:
            stored_record(path)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "rdc" / "runs" / "record.py"))
    with pytest.raises(ValueError, match="the folder results of the book is not at"):
        stored_record("results/bench.json")
    (tmp_path / "results").mkdir()  # of somebody else: this is no source tree
    with pytest.raises(ValueError, match="the folder results of the book is not at"):
        stored_record("results/bench.json")
    (tmp_path / "rdc" / "book" / "results").mkdir(parents=True)
    assert stored_record("results/bench.json") == {}
