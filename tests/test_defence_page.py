"""The page for people with a defence of their own: its commands run as written, in an empty folder, and say what it says."""

import re
import shlex
import sys

import pytest

from rdc.cli import main
from rdc.evaluate import audit as _audit  # noqa: F401  (imported before the folder changes)
from rdc.experiments import experiment
from rdc.runs.record import book_folder
from rdc.runs.store import Store

PAGE = (book_folder("results").parent / "book" / "defence.md").read_text(encoding="utf8")
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for the file of the page."""
    (tmp_path / "mydefence.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mydefence", None)


def test_there_are_three():
    assert [line.split()[:2] for line in COMMANDS] == [["rdc", "accuracy"], ["rdc", "attack"], ["rdc", "audit"]]


@pytest.mark.filterwarnings("ignore:most gradients")  # which is what the page is about
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs_as_it_is_written(folder, monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    code = 0
    try:
        main()
    except SystemExit as done:
        code = done.code
    said = capsys.readouterr().out
    if "audit" in line:
        assert code == 1 and re.search(r"^fail +gradient +exactly zero", said, re.MULTILINE), said
        assert said.rstrip().endswith("do not quote the number before you know why")
    else:
        assert code == 0 and "mydefence" in said or "attacked" in said
        clean, attacked = (re.search(rf"^{word} +(\d+)/", said, re.MULTILINE) for word in ("clean", "attacked"))
        assert clean is None or attacked is None or clean.group(1) == attacked.group(1), "PGD finds nothing"


def test_the_audit_finds_every_planted_fault_and_none_in_honest_networks():
    store = Store.read(book_folder("results") / "planted.jsonl")
    for row in experiment("planted").rows:
        (line,) = {id(line): line for line in store.of(row).lines.values()}.values()
        failed = [check for check, said in line.words.items() if said.startswith("fail")]
        assert bool(failed) == row.model.startswith("broken-"), (row.model, failed)
