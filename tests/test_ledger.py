"""The ledger and the checklist: complete, each entry's rows and arguments exist, and the status is what the results say."""

import ast
import re

import pytest

from rdc.experiments import experiment, names
from rdc.findings import claims
from rdc.findings.checklist import ITEMS, status
from rdc.findings.ledger import SECTIONS, effect, entries
from rdc.findings.side import fits
from rdc.models import options_of
from rdc.runs.cell import Cell, Line, Outcome
from rdc.runs.record import book_folder

ROOT = book_folder("results").parent
EVERY = entries()
#: The differences that the ledger must have: those of high and of medium size.
WANTED = {
    "P": (1, 2, 3, 4), "DC": (1, 2, 3, 4, 5, 6, 7), "OPT": (1, 2, 3, 4), "LM": (1, 2, 3, 4, 5, 6, 7),
    "ATT": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), "MH": (1, 2, 3), "EXP": (1, 3), "NDC": (1, 2, 3, 4, 7, 8, 9, 10), "LIP": (1,),
    "GUI": (1, 2, 3, 5),
}  # fmt: skip
CHECKLIST = [*(f"R{i}" for i in range(1, 28)), *(f"G{i}" for i in range(1, 13)), *(f"N{i}" for i in range(1, 14))]


def test_every_difference_of_high_or_medium_size_is_there():
    assert not {f"{section}-{i}" for section, numbers in WANTED.items() for i in numbers} - EVERY.keys()
    assert all(entry.size in ("H", "M") and entry.id.rpartition("-")[0] in SECTIONS for entry in EVERY.values())


def test_the_page_shows_every_section():
    page = (ROOT / "book" / "ledger.md").read_text(encoding="utf8")
    assert re.findall(r"\{ledger\} (\w+)", page) == list(SECTIONS)


@pytest.mark.parametrize("entry", EVERY.values(), ids=EVERY)
def test_an_entry_is_measured_or_says_why_not(entry):
    assert entry.effects or entry.note, entry.id
    assert not entry.page or any((ROOT / f"{entry.page}.{end}").exists() for end in ("py", "md")), entry.page
    for one in entry.effects:
        for _, side in (one.before, one.after):
            assert any(fits(row.about, side.where) for row in experiment(side.experiment).rows), side
        text = effect(one)
        measured = re.search(r"\d+ of \d+.*points \[|mean of \d+", text)
        assert measured or text.endswith("not measured yet, `rdc experiment run ledger`"), text
    for file in re.findall(r"tests/\w+\.py", entry.note):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("entry", [e for e in EVERY.values() if "build(" in e.switch], ids=lambda e: e.id)
def test_a_model_of_a_switch_takes_its_arguments(entry):
    for call in re.findall(r"build\([^)]*\)", entry.switch):
        node = ast.parse(call).body[0].value
        name, given = node.args[0].value, {k.arg: k.value.value for k in node.keywords}
        assert given.keys() <= options_of(name).keys(), call


def test_an_effect_of_rows_that_were_not_run_says_so(tmp_path):
    assert effect(EVERY["DC-1"].effects[0], tmp_path) == "EDM: not measured yet, `rdc experiment run dc-settings`"


IN_LEDGER = [(e.id, one) for e in EVERY.values() for one in e.effects if one.before[1].experiment == "ledger"]


def test_the_experiment_ledger_has_no_row_that_no_entry_shows():
    sides = [side for _, one in IN_LEDGER for _, side in (one.before, one.after)]
    rows = experiment("ledger").rows
    assert all(sum(fits(row.about, side.where) for row in rows) == 1 for side in sides)
    assert all(any(fits(row.about, side.where) for side in sides) for row in rows)
    shown = {name for name, _ in IN_LEDGER}
    assert shown == {"DC-4", "OPT-1", "OPT-2", "OPT-3", "LM-6", "LM-11", "ATT-2", "NDC-4"}


@pytest.mark.parametrize(("name", "one"), IN_LEDGER, ids=[f"{name} {i}" for i, (name, _) in enumerate(IN_LEDGER)])
def test_an_effect_is_shown_as_soon_as_both_sides_are_there(tmp_path, name, one):
    """Made-up outcomes: the first of twenty images is right on the one side, the first eleven on the other."""
    (first, a), (second, b) = one.before, one.after
    (before,), (after,) = ([row for row in experiment("ledger").rows if fits(row.about, side.where)] for side in (a, b))
    left, right = {a.outcome: [i < 1 for i in range(20)]}, {b.outcome: [i < 11 for i in range(20)]}
    if before is after:
        write(tmp_path, (before, left | right))
    else:
        write(tmp_path, (before, left))
        assert effect(one, tmp_path) == f"{second} not measured yet, `rdc experiment run ledger`", name
        write(tmp_path, (before, left), (after, right))
    assert effect(one, tmp_path).startswith(f"{first} 1 of 20, {second} 11 of 20; difference +50 points ["), name


def write(folder, *measured):
    """A record of the first twenty images of some rows, with made-up outcomes."""
    stamp = {"commit": "", "date": "", "device": "", "python": "", "seconds": 1.0, "versions": {}}
    every = {"clean": [True] * 20, "robust": [True] * 20}
    lines = [Line.of(Cell(row, 0, 20), Outcome(every | bits), "0", {}, stamp).dump() for row, bits in measured]
    (folder / "ledger.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")


def test_the_checklist_has_every_experiment_once():
    assert sorted(item.id for item in ITEMS) == sorted(CHECKLIST)


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_an_item_names_what_exists(item):
    assert set(item.experiments) <= set(names()) and set(item.claims) <= claims().keys()
    assert all((ROOT / test).exists() for test in item.tests)
    assert not item.page or any((ROOT / f"{item.page}.{end}").exists() for end in ("py", "md")), item.page
    state, words = status(item)
    begun = [name for name in item.experiments if (ROOT / "results" / f"{name}.jsonl").exists()]
    assert (state == "at our size") == bool(begun) and all(name in words for name in begun), f"{item.id}: {begun}"
    assert state != "absent" or item.note, f"{item.id} is absent and does not say why"
    assert (state == "needs files") <= bool(item.command and item.files)
    assert words or state in ("needs files", "absent")


def test_without_results_nothing_is_at_our_size(tmp_path):
    assert {status(item, tmp_path)[0] for item in ITEMS} == {"done here", "needs files", "absent"}
