"""Claims: each comparison names rows that exist, verdicts are those of the one rule, and the published list is what comes out."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import poster
import pytest

from rdc.experiments import experiment
from rdc.findings import claims, judge, rate, write_claims
from rdc.findings.claim import Claim
from rdc.findings.evidence import Evidence, attacks_one_defence, compared
from rdc.findings.figure import headline, in_colour, save_figure
from rdc.findings.panels import PANELS
from rdc.findings.side import Side, fits, outcomes
from rdc.notebook import claims_table
from rdc.runs.cell import Line, Outcome
from rdc.runs.record import book_folder
from rdc.runs.store import append
from rdc.runs.verdict import OUTCOMES, decide

ROOT = book_folder("results").parent
EVERY = list(claims().values())
SIDES = [(c.id, side) for c in EVERY for one in c.evidence for side in (one.a, one.b) if side is not None]
BARE = {"commit": "", "date": "", "device": "", "python": "", "seconds": None, "versions": {}}


@pytest.fixture
def made(tmp_path):
    """Write outcomes of some rows of ``dc-noise``: by number of the row, which images are clean and robust."""

    def write(found: dict[int, tuple[list[bool], list[bool]]], values: dict[str, list[float | None]] | None = None) -> Path:
        for number, (clean, robust) in found.items():
            row = replace(experiment("dc-noise").rows[number], n=len(clean), block=len(clean))
            (cell,) = row.cells()
            outcome = Outcome({"clean": clean, "robust": robust}, values=values or {})
            append(tmp_path / "dc-noise.jsonl", Line.of(cell, outcome, "", {}, BARE))
        return tmp_path

    return write


def side(*draws: int) -> Side:
    return Side("dc-noise", {"draws": draws, "coupling": "shared"})


def test_ids_differ_and_places_and_pages_are_there():
    assert len({c.id for c in EVERY}) == len(EVERY)
    for c in EVERY:
        assert c.place and c.text.endswith(".") and c.how and not c.how.endswith(".")
        assert not c.page or (ROOT / f"{c.page}.py").exists() or (ROOT / f"{c.page}.md").exists(), c.page
        assert not (c.proof and c.evidence)


@pytest.mark.parametrize(("name", "one"), SIDES)
def test_a_side_names_rows_of_its_experiment(name, one):
    rows = [row for row in experiment(one.experiment).rows if fits(row.about, one.where)]
    assert rows, f"{name}: {one}"


def test_a_proof_is_a_test_that_exists():
    for c in EVERY:
        if c.proof is not None:
            path, _, name = c.proof.test.partition("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, c.proof
            assert c.proof.outcome in OUTCOMES


def test_the_published_list_is_what_the_results_say(tmp_path):
    write_claims(tmp_path / "claims.json")
    assert (tmp_path / "claims.json").read_text() == (book_folder("results") / "claims.json").read_text(), (
        "the results say something else now; run: rdc findings --out results/claims.json"
    )
    for entry in json.loads((tmp_path / "claims.json").read_text()):
        assert entry["verdict"] in (*OUTCOMES, "not run") and entry["sentence"].endswith(".")
        assert (entry["verdict"] == "not run") == (not entry["record"])


def test_a_side_is_the_union_of_its_rows(made):
    """An image counts where it is right in every row, of the images that all rows have."""
    folder = made({0: ([True] * 4, [True, True, False, True]), 1: ([True] * 3, [True, False, True])})
    assert outcomes(side(1), folder) == {0: True, 1: True, 2: False, 3: True}
    assert outcomes(side(1, 2), folder) == {0: True, 1: False, 2: False}
    assert rate(side(1, 2), folder).correct == 1 and rate(side(4), folder) is None


def test_a_claim_is_decided_by_the_rule_on_the_images_of_both(made):
    robust = [True] * 12
    folder = made({0: ([True] * 12, robust), 1: ([True] * 12, [False] * 10 + [True] * 2)})
    claim = Claim("X", "here", "One draw is better.", "one against two", (Evidence(side(1), side(2)),))
    found, alone = judge(claim, folder), decide(robust, [False] * 10 + [True] * 2)
    assert (found.verdict, found.n) == ("not decided", 12), "the attack on the first broke nothing"
    folder = made({0: ([True] * 12, [True] * 11 + [False])})
    found = judge(claim, folder)
    assert found.verdict == "holds" and alone.outcome == "holds"
    assert judge(replace(claim, evidence=(Evidence(side(2), side(1)),)), folder).verdict == "does not hold"
    nothing = judge(replace(claim, evidence=(Evidence(side(4), side(1)),)), folder)
    assert (nothing.verdict, nothing.n, nothing.record) == ("not run", 0, "")
    both = judge(replace(claim, evidence=(Evidence(side(4), side(1)), Evidence(side(1), side(2)))), folder)
    assert both.verdict == "holds" and len(both.parts) == 1, "comparisons without rows are left out"


def test_of_two_attacks_on_one_defence_the_one_that_broke_nothing_is_the_weak_one(tmp_path):
    words = {"network": "cifar10-small", "what": "attacked", "N": 5, "eps": "8/255", "lm": "released", "noise": "fixed"}
    bpda, exact = (Side("cifar10", {**words, "model": "RDC", "gradient": g}) for g in ("bpda", "exact"))
    for one, robust in ((bpda, [True] * 12), (exact, [False] * 10 + [True] * 2)):
        (row,) = (r for r in experiment("cifar10").rows if fits(r.about, one.where))
        (cell,) = replace(row, n=12, block=12).cells()
        append(tmp_path / "cifar10.jsonl", Line.of(cell, Outcome({"clean": [True] * 12, "robust": robust}), "", {}, BARE))
    claim = Claim("X", "here", "BPDA is as strong.", "one against the other", (Evidence(exact, bpda, bound=-0.05),))
    assert judge(claim, tmp_path).verdict == "does not hold"
    other = Side("cifar10", {**words, "model": "DC", "gradient": "plain", "lm": None})
    assert attacks_one_defence(claim.evidence[0]) and not attacks_one_defence(Evidence(bpda, other))


def test_numbers_count_as_yes_above_a_limit_and_images_without_are_left_out(made):
    folder = made({0: ([True] * 4, [True] * 4)}, {"rise": [1.0, -1.0, None, 2.0]})
    assert outcomes(Side("dc-noise", {"draws": 1, "coupling": "shared"}, "rise"), folder) == {0: True, 1: False, 3: True}
    high = Side("dc-noise", {"draws": 1, "coupling": "shared"}, "rise", above=1.5)
    assert outcomes(high, folder) == {0: False, 1: False, 3: True}
    comparison, attacks = compared(Evidence(high, bound=0.5), folder)
    assert comparison.broken is None and attacks == (), "no attack is behind a number"


def test_the_figure_of_the_readme_shows_the_counts_of_the_results():
    text = (ROOT / "book" / "headline.svg").read_text(encoding="utf8")
    counts = {f"{value.correct} of {value.n}" for value in (*headline().values(), *in_colour().values())}
    assert set(re.findall(r">(\d+ of \d+)<", text)) == counts, "run: rdc findings --figure book/headline.svg"


def test_the_bars_of_the_headline_are_of_the_same_images():
    assert len({value.n for value in headline().values()}) == 1
    assert len({value.n for value in in_colour().values()}) <= 1


def test_the_union_on_colour_needs_all_gradients(tmp_path):
    """Rows that were not run are left out; the others are of the same images."""

    def is_one(about):
        wanted = about["what"] == "attacked" and about["eps"] == "8/255" and about["N"] != 1
        return wanted and about["lm"] != "clamped" and about["noise"] == "fixed"

    rows = {r.about["gradient"]: r for r in experiment("cifar10").rows if is_one(r.about)}
    assert in_colour(tmp_path) == {}

    def write(gradient, robust):
        (cell,) = replace(rows[gradient], n=len(robust), block=len(robust)).cells()
        outcome = Outcome({"clean": [True] * len(robust), "robust": robust})
        append(tmp_path / "cifar10.jsonl", Line.of(cell, outcome, "", {}, BARE))

    write("plain", [False, True, True] * 13)
    write("bpda", [True] * 36)
    write("exact", [True, False, True] * 12)
    found = {name: (rate.correct, rate.n) for name, rate in in_colour(tmp_path).items()}
    assert found == {"dc": (24, 36), "rdc-exact": (24, 36), "rdc-bpda": (36, 36)}
    write("smoothed 0.3", [False, True, True] * 11)
    assert {name: (rate.correct, rate.n) for name, rate in in_colour(tmp_path).items()}["rdc-all"] == (11, 33)
    (tmp_path / "cifar10.jsonl").unlink()
    write("plain", [True] * 15)
    assert in_colour(tmp_path) == {}, "too few for a bar"


def test_a_figure_needs_all_its_results(tmp_path):
    with pytest.raises(ValueError, match="no results for cnn, dc, .*rdc experiment run"):
        headline(tmp_path)


def test_a_table_of_claims_shows_verdict_and_evidence():
    found = claims_table("A2", "A16b").data
    assert list(found[""]) == ["A2", "A16b"] and set(found["verdict"]) <= {*OUTCOMES, "not run"}
    assert found["evidence"].str.contains("BPDA").tolist() == [False, True]


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_shows_decided_claims_and_needs_their_results(tmp_path, name):
    panel = PANELS[name]
    assert panel.alt.endswith(".")
    assert {judge(claims()[one]).verdict for one in panel.claims} <= {"holds", "does not hold", "refuted"}
    save_figure(tmp_path / "panel.svg", panel.draw)
    assert (tmp_path / "panel.svg").read_text(encoding="utf8").count("<text") > 3
    with pytest.raises(ValueError, match="no results for"):
        save_figure(tmp_path / "none.svg", panel.draw, tmp_path)


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_for_a_telephone_says_the_same_and_needs_no_scrolling(tmp_path, name):
    """Pictures of up to 440 pixels are shown whole (_static/scroll.js)."""
    files = {narrow: tmp_path / f"{narrow}.svg" for narrow in (False, True)}
    for narrow, file in files.items():
        save_figure(file, PANELS[name].draw, narrow=narrow)
    small, wide = (files[narrow].read_text(encoding="utf8") for narrow in (True, False))
    said = [{word.strip() for word in re.findall(r"<text[^>]*>([^<]+)</text>", text)} for text in (small, wide)]
    words = [{word for word in each if word[0].isalpha()} for each in said]
    assert words[0] == words[1] and float(re.search(r'width="([\d.]+)pt"', small)[1]) * 4 / 3 <= 440


def test_a_verdict_has_its_evidence_at_hand():
    for entry in json.loads((book_folder("results") / "claims.json").read_text()):
        paths = [name.partition("::")[0] for name in entry["record"].split(", ") if name]
        assert all((ROOT / path).exists() for path in paths), entry["id"]
        assert paths or entry["verdict"] == "not run"


def test_the_poster_stands_alone_and_shows_the_verdicts():
    text = poster.page()
    assert len(text.encode()) < 2_000_000 and not re.search(r"(?:src|href)=.https?:|url\(.?https?:", text)
    shown = {one: judge(claims()[one]).verdict for panel in PANELS.values() for one in panel.claims}
    assert all(f"<b>{name}: {verdict}.</b>" in text for name, verdict in shown.items())
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text)) <= set(ids)


def test_pages_cite_claims_and_papers_that_exist():
    papers = set(re.findall(r"^@\w+\{(.+),$", (ROOT / "references.bib").read_text(encoding="utf8"), re.MULTILINE))
    pages = "".join(p.read_text(encoding="utf8") for p in (*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.py")))
    cited = {key for keys in re.findall(r"\{cite(?::t)?\}`([^`]+)`", pages) for key in keys.split(",")}
    named = set(re.findall(r"\{claim\}`([^`]+)`", pages))
    assert cited and cited <= papers, cited - papers
    assert named and named <= claims().keys(), named - claims().keys()
