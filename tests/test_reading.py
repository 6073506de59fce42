"""Laws of reading a record in a notebook: what is missing is said, what is there is not changed."""

import json
from pathlib import Path

import pytest

from rdc.evaluate import Accuracy
from rdc.runs.reading import Reading, accuracy_of, fields, in_words
from rdc.runs.record import write_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [{"base": "a", "right": vars(Accuracy.of(3, 4)), "gap": None}]
    write_record(tmp_path / "some.json", {"data": "digits"}, {"levels": {"rows": rows}, "full": None}, 1.0)
    return tmp_path / "some.json"


def test_a_part_that_was_not_run_is_empty_and_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading = Reading.of(path, "tools/some.py")
    assert reading.part("full") == reading.part("none") == {} and reading.rows("none") == []
    reading.show([], "none")
    assert capsys.readouterr().out == "not run here: the record has no part 'none' yet (tools/some.py)\n"


def test_without_a_file_everything_is_missing(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    reading = Reading.of(tmp_path / "results" / "none.json", "tools/some.py")
    assert reading.part("levels") == {} and reading.provenance() == "results/none.json: not run here"


def test_rows_and_provenance_are_those_of_the_file(path: Path) -> None:
    reading, content = Reading.of(path, "tools/some.py"), json.loads(path.read_text(encoding="utf8"))
    assert reading.rows("levels") == content["results"]["levels"]["rows"]
    first, second = reading.provenance().splitlines()
    assert first == "record: levels, full" and content["environment"]["commit"] in second


def test_a_table_has_the_same_html_in_every_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tables() -> list[str]:
        shown: list[str] = []
        monkeypatch.setattr("IPython.display.display", lambda styled: shown.append(styled.to_html()))
        reading = Reading.of(path, "tools/some.py")
        for _ in range(2):
            reading.show([{"a": 0.12345, "b": None}])
        return shown

    first, again = tables(), tables()
    assert first == again and first[0] != first[1]  # two tables of a page have different ids
    assert "0.123" in first[0] and ">-<" in first[0]


def test_words(path: Path) -> None:
    row = Reading.of(path, "tools/some.py").rows("levels")[0]
    assert accuracy_of(row["right"]) == Accuracy.of(3, 4) and accuracy_of(None) is None
    assert fields(row, "base", "right", "gap", "none") == {"base": "a", "right": str(Accuracy.of(3, 4)), "gap": "-", "none": "-"}
    assert in_words(None) == in_words({"value": None}) == "-" and in_words({"value": 2, "low": 1, "high": 3}, 0) == "2 [1, 3]"
