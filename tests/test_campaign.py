"""Cells, lines, stores and campaigns: nothing is lost, repeated or believed, whatever is killed or merged."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdc.rng import generator
from rdc.runs.campaign import Campaign, Clock, campaign_state, run_campaign
from rdc.runs.cell import Cell, Line, Outcome, Row, pack, unpack
from rdc.runs.store import Store, append, merge

ROWS = (
    Row("slow", {"levels": 4}, "pgd", {"eps": "8/255"}, n=10, block=4),
    Row("slow", {"levels": 4}, "pgd", {"eps": "8/255"}, n=6, block=4, about={"table": "the same, elsewhere"}),
    Row("fast", n=5, start=3, block=4, priority=-1),
)
BARE = {"commit": "c", "date": "2026-01-01", "device": "none", "python": "3", "seconds": 0.0, "versions": {}}


def measure(cell: Cell, device: str = "cpu", pause: float = 0.0) -> Outcome:
    """Bits and a mean that follow from row and image."""
    time.sleep(pause)
    robust = [generator("robust", cell.row.key(), i).initial_seed() % 2 == 0 for i in range(cell.start, cell.stop)]
    radii = [i / 7 if right else None for i, right in zip(range(cell.start, cell.stop), robust, strict=True)]
    bits = {"clean": [True] * len(cell), "robust": robust}
    return Outcome(bits, {"size": (cell.start + cell.stop) / 2}, values={"radius": radii})


def code(row: Row) -> str:
    """One hash for each model."""
    return f"code of {row.model}"


def weights(row: Row) -> dict[str, str]:
    """No checkpoints."""
    return {}


CAMPAIGN = Campaign(ROWS, measure, code, weights)


def line(cell: Cell, hash_: str = "code of slow") -> Line:
    """The line of a cell."""
    return Line.of(cell, measure(cell), hash_, {}, BARE)


def numbers(path: Path) -> list[str]:
    """The lines of a file without provenance, sorted."""
    return sorted(replace(found, provenance=BARE).dump() for found in Store.read(path).lines)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_survive_packing(bits):
    assert unpack(pack(bits), len(bits)) == bits
    assert len(pack(bits)) == -(-len(bits) // 4)


@pytest.mark.parametrize(("text", "n", "message"), [("8", 5, "2 digits"), ("8f", 5, "more than 5"), ("x0", 5, "invalid literal")])
def test_other_bits_are_not_believed(text, n, message):
    with pytest.raises(ValueError, match=message):
        unpack(text, n)


@given(st.integers(0, 30), st.integers(1, 40), st.integers(1, 9))
def test_cells_partition_the_images_at_multiples_of_the_block(start, n, block):
    cells = list(Row("m", start=start, n=n, block=block).cells())
    assert [i for cell in cells for i in range(cell.start, cell.stop)] == list(range(start, start + n))
    assert all(cell.start // block == (cell.stop - 1) // block for cell in cells)
    longer = list(Row("m", start=start, n=n + block, block=block).cells())
    assert [(c.start, c.stop) for c in cells[:-1]] == [(c.start, c.stop) for c in longer[: len(cells) - 1]]


def test_the_spec_is_what_decides_the_numbers():
    row = ROWS[0]
    for same in ({"n": 3}, {"start": 4}, {"about": {"table": "x"}}, {"priority": 3}, {"block": 2}):
        assert replace(row, **same).key() == row.key()
    assert replace(row, options={"a": 1, "b": 2}).key() == replace(row, options={"b": 2, "a": 1}).key()
    for other in ({"seed": 1}, {"data": "digits"}, {"arguments": {"eps": "4/255"}}, {"model": "b"}, {"task": "audit"}):
        assert replace(row, **other).key() != row.key()


def test_a_line_comes_back_as_it_was():
    found = line(next(ROWS[0].cells()))
    assert Line.load(found.dump()) == found
    assert found.outcome("robust") == dict(enumerate(measure(next(ROWS[0].cells())).bits["robust"]))


def edited(**changes):
    """A line as JSON, with other fields."""
    return json.dumps({**json.loads(line(next(ROWS[0].cells())).dump()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no object"), ("{}", "spec is missing"), ("{", "Expecting"), (edited(code=1), "code is 1"),
        (edited(images=[0]), "first"), (edited(images=[4, 0]), "first"), (edited(bits={"robust": "0", "clean": "f"}), "robust"),
        (edited(verdict="holds"), "no verdict"), (edited(provenance={"commit": "c"}), "date is missing"),
        (edited(counts={}), "bits of"), (edited(values={"radius": [1.0]}), "radius is not 4 numbers"),
        (edited(values={"radius": ["1", 1, 1, 1]}), "radius is not 4 numbers"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_message(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Line.load(text)
    path = tmp_path / "lines.jsonl"
    path.write_text(line(next(ROWS[0].cells())).dump() + "\n" + text + "\n")
    with pytest.raises(ValueError, match=r"lines.jsonl is damaged at line 2: .*; remove that line"):
        Store.read(path)


def test_a_line_that_is_no_text_is_one_message(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(line(next(ROWS[0].cells())).dump().encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"lines.jsonl is damaged at line 2: .*; remove that line"):
        Store.read(path)


def test_an_outcome_has_one_bit_an_image():
    with pytest.raises(ValueError, match="clean has 2 outcomes for 4 images"):
        Line.of(next(ROWS[0].cells()), Outcome({"clean": [True, False]}), "", {}, BARE)


def test_a_torn_line_is_left_out_and_cut(tmp_path):
    path, (first, second, _) = tmp_path / "lines.jsonl", map(line, ROWS[0].cells())
    append(path, first)
    whole = path.read_bytes()
    for cut in range(1, len(second.dump()), 97):
        path.write_bytes(whole + second.dump().encode()[:cut])
        assert Store.read(path).lines == [first]
        append(path, second)
        assert Store.read(path).lines == [first, second]
        path.write_bytes(whole)


def test_the_most_valuable_cells_come_first_and_none_twice():
    found = [(cell.row.model, cell.start) for cell in CAMPAIGN.cells()]
    assert found == [("fast", 3), ("fast", 4), ("slow", 0), ("slow", 4), ("slow", 4), ("slow", 8)]
    assert len({(cell.row.key(), cell.start, cell.stop) for cell in CAMPAIGN.cells()}) == 6  # images 4...7 and 4...5


def test_a_campaign_runs_once(tmp_path):
    out = tmp_path / "a" / "lines.jsonl"
    assert run_campaign(CAMPAIGN, out) == (6, 0)
    once = out.read_bytes()
    assert run_campaign(CAMPAIGN, out) == (0, 0) and out.read_bytes() == once
    assert run_campaign(CAMPAIGN, tmp_path / "b.jsonl", known=[out]) == (0, 0), "what another file holds is done"
    store = Store.read(out)
    for row in ROWS:
        found = store.of(row)
        assert found.complete and found.accuracy("clean").n == row.n
        assert found.outcome("robust") == {i: b for c in row.cells() for i, b in line(c).outcome("robust").items()}
        assert found.value("radius") == {i: i / 7 if right else None for i, right in found.outcome("robust").items()}
    assert store.of(ROWS[2]).mean("size") == pytest.approx((3.5 + 4 * 6) / 5)
    longer = replace(ROWS[2], n=12)
    assert run_campaign(replace(CAMPAIGN, rows=(longer,)), out) == (2, 0), "a row can be extended"
    assert store.of(ROWS[0]).mean("none") is None


def test_workers_and_merged_parts_equal_one_run(tmp_path):
    one, two, left, right = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "left", "right"))
    run_campaign(CAMPAIGN, one)
    run_campaign(CAMPAIGN, two, workers=2)
    assert numbers(one) == numbers(two)
    run_campaign(replace(CAMPAIGN, rows=ROWS[:1]), left)
    run_campaign(replace(CAMPAIGN, rows=ROWS[1:]), right)
    merged = [tmp_path / "lr.jsonl", tmp_path / "rl.jsonl", tmp_path / "again.jsonl"]
    assert merge([left, right], merged[0], ROWS) == merge([right, left], merged[1], ROWS) == len(CAMPAIGN.cells())
    assert merge([merged[0], left, merged[1]], merged[2], ROWS) == len(CAMPAIGN.cells()), "without duplicates"
    assert merged[0].read_bytes() == merged[1].read_bytes() == merged[2].read_bytes()
    assert numbers(merged[0]) == numbers(one)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_shards_share_the_cells(tmp_path, n):
    whole = [(c.row.key(), c.start, c.stop) for c in CAMPAIGN.cells()]
    parts = [replace(CAMPAIGN, shard=(i, n)) for i in range(n)]
    assert sorted((c.row.key(), c.start, c.stop) for part in parts for c in part.missing(Store())) == sorted(whole)
    for i, part in enumerate(parts):
        run_campaign(part, tmp_path / f"{i}.jsonl")
    merge([tmp_path / f"{i}.jsonl" for i in range(n)], tmp_path / "all.jsonl", ROWS)
    run_campaign(CAMPAIGN, tmp_path / "one.jsonl")
    assert numbers(tmp_path / "all.jsonl") == numbers(tmp_path / "one.jsonl")


def test_parts_that_disagree_are_not_merged(tmp_path):
    cell = next(ROWS[0].cells())
    append(tmp_path / "a.jsonl", line(cell))
    other = Outcome({"clean": [True] * 4, "robust": [not bit for bit in measure(cell).bits["robust"]]})
    append(tmp_path / "b.jsonl", Line.of(cell, other, "code of slow", {}, BARE))
    with pytest.raises(ValueError, match=r"b.jsonl, line 1 disagrees with .*a.jsonl, line 1 about images .* remove the line"):
        merge([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()
    with pytest.raises(ValueError, match="there is no"):
        merge([tmp_path / "d.jsonl"], tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("field", "changes"),
    [("values", {"radius": [0.2, None]}), ("values", {"radius": [0.123456789, 1.0]}), ("values", {"other": [0.123456789, None]}),
     ("means", {"size": 2.1}), ("counts", {"clean": 2, "failed": 4}), ("bits", {"clean": [True, False]})],
)  # fmt: skip
def test_parts_agree_to_rounding_and_no_further(tmp_path, field, changes):
    cell, paths = Cell(ROWS[0], 0, 2), (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    one = Outcome({"clean": [True, True]}, {"size": 2.0}, {"failed": 3}, {"radius": [0.123456789, None]})
    rounded = replace(one, means={"size": 2.0000001}, values={"radius": [0.123456790, None]})
    for path, outcome in zip(paths, (one, rounded), strict=True):
        append(path, Line.of(cell, outcome, "", {}, BARE))
    assert merge(paths, tmp_path / "c.jsonl") == merge(paths[::-1], tmp_path / "d.jsonl") == 1
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "d.jsonl").read_bytes()
    append(paths[1], Line.of(cell, replace(one, **{field: changes}), "", {}, BARE))
    with pytest.raises(ValueError, match="b.jsonl, line 2 disagrees with .*a.jsonl, line 1"):
        merge(paths, tmp_path / "c.jsonl")


def test_other_code_or_weights_make_exactly_their_rows_stale(tmp_path):
    out = tmp_path / "lines.jsonl"
    run_campaign(CAMPAIGN, out)
    for changed in (
        replace(CAMPAIGN, code=lambda row: code(row) + ("!" if row.model == "slow" else "")),
        replace(CAMPAIGN, weights=lambda row: {"net": "new"} if row.model == "slow" else {}),
    ):
        states = campaign_state(changed, Store.read(out))
        assert [(s.done, s.stale, s.missing) for s in states] == [(0, 10, 0), (0, 6, 0), (5, 0, 0)]
        assert {cell.row.model for cell in changed.missing(Store.read(out))} == {"slow"}
    states = campaign_state(CAMPAIGN, Store.read(tmp_path / "none.jsonl"))
    assert [(s.done, s.stale, s.missing) for s in states] == [(0, 0, 10), (0, 0, 6), (0, 0, 5)]


def test_a_run_ends_in_time_and_whole(tmp_path):
    slow = replace(CAMPAIGN, measure=partial(measure, pause=0.2), rows=(Row("m", n=40, block=1),))
    begin = time.monotonic()
    done, left = run_campaign(slow, tmp_path / "a.jsonl", minutes=0.02)
    assert 1 <= done <= 6 and done + left == 40 and time.monotonic() - begin < 5
    assert len(Store.read(tmp_path / "a.jsonl").lines) == done
    assert run_campaign(slow, tmp_path / "a.jsonl", minutes=0)[0] == 0
    clock = Clock(replace(CAMPAIGN, rows=(Row("m"),)), 10.0, BARE["device"])
    for cell, seconds in zip(Row("m", n=8, block=4).cells(), (800.0, 400.0), strict=True):
        clock.saw(Line.of(cell, measure(cell), "", {}, {**BARE, "seconds": seconds}))
    cells = [Cell(Row("m"), 0, 8), Cell(Row("m"), 8, 12), Cell(Row("unknown"), 0, 8)]
    assert list(clock.fitting(cells)) == [1, 2], "a cell that would end too late is passed over"


def test_a_clock_believes_its_own_device_and_scales_by_work():
    clean, attacked, other = Row("m"), Row("m", {}, "pgd", {}), Row("k", {}, "pgd", {})
    works = {clean.key(): 2.0, attacked.key(): 100.0, other.key(): 100.0}
    campaign = replace(CAMPAIGN, rows=(clean, attacked, other), work=lambda row: works[row.key()])
    line = Line.of(Cell(clean, 0, 4), measure(Cell(clean, 0, 4)), "", {}, {**BARE, "seconds": 8.0})

    def seconds(clock: Clock, row: Row) -> float:
        return clock.expected(Cell(row, 0, 4))

    clock = Clock(campaign, 10.0, "another device")
    clock.saw(line)
    assert [seconds(clock, row) for row in campaign.rows] == [0, 0, 0], "nothing is known"
    clock = Clock(campaign, 10.0, BARE["device"])
    clock.saw(line)
    assert [seconds(clock, row) for row in campaign.rows] == [8, 400, 0], "an attack costs more than a clean answer"
    clock = Clock(replace(campaign, pace=lambda row: 0.5), 10.0, BARE["device"])
    assert [seconds(clock, row) for row in campaign.rows] == [4, 200, 200], "what was measured beforehand"
    clock.saw(line)
    assert [seconds(clock, row) for row in campaign.rows] == [8, 400, 200]


def test_two_runs_do_not_share_a_file(tmp_path):
    out = tmp_path / "a.jsonl"
    with subprocess.Popen([sys.executable, __file__, out, "1.0"], stdout=subprocess.PIPE) as other:
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        with pytest.raises(OSError, match="another run is writing"):
            run_campaign(CAMPAIGN, out)
        os.kill(other.pid, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_twenty_kills_lose_and_repeat_nothing(tmp_path):
    """Whatever a killed run left behind counts, and what it did not is done once more."""
    out, dice, kept = tmp_path / "a.jsonl", random.Random(0), []
    long = replace(CAMPAIGN, rows=tuple(replace(row, n=40, block=1) for row in ROWS))
    for _ in range(20):
        child = os.fork()
        if child == 0:
            run_campaign(replace(long, measure=Killed(dice.randrange(4))), out)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        dice.randrange(4)
        found = [line.dump() for line in Store.read(out).lines]
        assert found[: len(kept)] == kept, "what was there stays"
        kept = found
        if dice.random() < 0.5:
            out.write_bytes(out.read_bytes() + b'{"spec": {"ta')
    assert 20 < len(kept) < len(long.cells())
    assert run_campaign(long, out) == (len(long.cells()) - len(kept), 0)
    run_campaign(long, tmp_path / "b.jsonl")
    assert numbers(out) == numbers(tmp_path / "b.jsonl")


class Killed:
    """Measures some cells, and is killed in the next."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, cell: Cell, device: str) -> Outcome:
        """The outcome, or the end."""
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return measure(cell)


if __name__ == "__main__":
    run_campaign(replace(CAMPAIGN, measure=partial(measure, pause=float(sys.argv[2]))), sys.argv[1])


def test_of_two_lines_the_newer_counts_whatever_its_images(tmp_path):
    """An old line of all images, then two new ones of some: merging keeps all, and reading takes the new ones."""
    row, old, new = replace(ROWS[0], n=4, block=4), {**BARE, "date": "2026-01-01"}, {**BARE, "date": "2026-02-01"}
    path = tmp_path / "a.jsonl"
    append(path, Line.of(Cell(row, 0, 2), Outcome({"clean": [True, True]}), "new", {}, new))
    append(path, Line.of(Cell(row, 2, 3), Outcome({"clean": [True]}), "new", {}, new))
    append(path, Line.of(Cell(row, 0, 4), Outcome({"clean": [False] * 4}), "old", {}, old))
    assert merge([path], path) == 3
    assert Store.read(path).of(row).outcome("clean") == {0: True, 1: True, 2: True, 3: False}
