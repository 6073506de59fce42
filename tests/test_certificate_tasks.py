"""The tasks behind the certificates: a cell is what its parts say, and what is read from it has a closed form."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rdc.certify import EPNDC, certify, lipschitz_certify, radius_from_counts
from rdc.certify.results import certified, kept, radii, stopped
from rdc.certify.stratified import answers_candidate, estimated, sample, strata
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.early_exit.sift import Leader
from rdc.early_exit.sift import sift as sift_by_hand
from rdc.experiments import experiment
from rdc.experiments._bases import CHOSEN, epndc
from rdc.models import base_classifier, build
from rdc.models.weights import checkpoints_of
from rdc.notebook import show_verdicts, stored_cells
from rdc.runs.cell import Cell, Line, Outcome, Row
from rdc.runs.statistics import Accuracy
from rdc.runs.store import Found, Store
from rdc.runs.verdict import decide
from rdc.tasks import measure, toy, weights_of

SMALL = replace(epndc(0.25, 2, "optimal").row("certify", {"n0": 8, "n": 60, "alpha": 0.05}, n=3, block=3), data="digits")
NOTHING = {"commit": "none", "date": "2026-01-01", "device": "none", "python": "3", "seconds": 1.0, "versions": {}}
DIGITS = load("digits")


def found(row: Row, outcome: Outcome | None = None) -> Found:
    """What is known of a row of one cell, which is computed if no outcome is given."""
    cell = Cell(row, 0, row.n)
    return Store([], {row.key(): [Line.of(cell, outcome or measure(cell), "code", {}, NOTHING)]}).of(row)


def by_hand(row: Row, **options):
    """Certificates of the images of a row by the library."""
    model = base_classifier(row.model, "digits", **row.options)
    return certify(model, DIGITS.x[: row.n], sigma=0.25, n0=8, n=60, alpha=0.05, **options)


def test_a_certificate_is_what_the_library_says() -> None:
    outcome, certificates = measure(Cell(SMALL, 0, 3)), by_hand(SMALL)
    for name in ("candidate", "k", "n"):
        assert outcome.values[name] == [getattr(c, name) for c in certificates], name
    assert outcome.bits["right"] == [c.label == int(y) for c, y in zip(certificates, DIGITS.y, strict=False)]
    read = found(SMALL, outcome)
    assert radii(read).tolist() == [c.radius for c in certificates]
    for at in (0.0, 0.2, 0.3):
        assert certified(read, at) == [c.holds(int(y), at) for c, y in zip(certificates, DIGITS.y, strict=False)]


@pytest.mark.parametrize("stopping", ["sequence", "split"])
def test_with_a_target_too_and_what_is_open_says_so(stopping: str) -> None:
    given = {**SMALL.arguments, "target": 0.3, "stopping": stopping}
    certificates = by_hand(SMALL, target=0.3, stopping=stopping)
    whole = measure(Cell(replace(SMALL, arguments=given), 0, 3)).values
    assert whole["met"] == [float(c.met) for c in certificates] and whole["n"] == [c.n for c in certificates]
    known = max(c.n for c in certificates) - 1
    short = measure(Cell(replace(SMALL, arguments={**given, "known": known}), 0, 3)).values
    for c, met, n in zip(certificates, short["met"], short["n"], strict=True):
        assert (met, n) == ((float(c.met), c.n) if c.n <= known else (None, 60))
    assert None in short["met"]


def beside(row: Row, reference: dict, **more) -> Row:
    given = {"sigma": 0.25, "n0": 8, "n": 60, "strata": [16, 16, 8], "reference": reference, **more}
    return replace(row, task="beside", arguments=given)


def test_beside_itself_a_classifier_keeps_everything() -> None:
    """Asked about its own draws, it answers as it did: the estimate of its count is the count, whatever the sample."""
    own = {"model": SMALL.model, "options": dict(SMALL.options)}
    first = measure(Cell(row := beside(SMALL, own), 0, 3))
    assert first.values["k"] == [float(c.k) for c in by_hand(SMALL)] == first.values["reference k"]
    ends = [first.values[f"reference k{end}"] for end in ("", " low", " high")]
    assert all(low <= k <= high for k, low, high in zip(*ends, strict=True))
    read = kept(found(row, first), 0.05)
    assert (read.same_label.correct, read.within.correct, read.median, read.worst, read.factor) == (3, 3, 1.0, 1.0, 1.0)
    other = {"model": "cascade", "options": {"sigma": 0.25, "levels": 2, "fast": "optimal", "slow": "optimal"}}
    second = measure(Cell(beside(SMALL, own, **{"draws of": other}), 0, 3))
    assert second.values["k"] == second.values["reference k"]
    assert 4 <= second.means["passes"] <= 4 + 1e-9


def test_what_is_kept_has_a_closed_form() -> None:
    row, n = CHOSEN.row("beside", {"n0": 1, "n": 100, "strata": [1, 1, 1], "reference": CHOSEN.named()}, n=3, block=3), 100
    counts = {"k": [100, 90, 40], "reference k": [100, 95, 41]}
    counts |= {"reference k low": [90, 80, 20], "reference k high": [100, 99, 60]}
    outcome = Outcome({}, {"passes": 10, "reference passes": 1240}, values={"candidate": [0, 1, 2], "asked": [3, 3, 3], **counts})
    read = kept(found(row, outcome))
    ratio = radius_from_counts(90, n, 0.25, 0.001) / radius_from_counts(95, n, 0.25, 0.001)
    assert read.same_label == Accuracy.of(3, 3) and read.within == Accuracy.of(2, 3) == read.within_high
    assert (read.factor, read.worst, read.median) == (124.0, pytest.approx(ratio), pytest.approx((1 + ratio) / 2))
    told = Outcome({}, {"passes": 10, "reference passes": 1240, "median ratio": 0.9, "worst ratio": 0.5},
                   {"same label": 3, "within 5 %": 2, "within 5 %, upper end": 1})  # fmt: skip
    read = kept(found(row, told))
    assert read.within_high == Accuracy.of(1, 3) and read.worst == 0.5 and not len(read.radius)
    asked = CHOSEN.row("certify", {"n0": 1, "n": 999, "alpha": 0.001, "target": 0.25, "known": 50}, n=3, block=3)
    draws = stopped(found(asked, Outcome({}, values={"n": [20, 999, 30], "met": [1.0, None, 0.0]})), found(row, outcome))
    assert draws.met == Accuracy.of(1, 2) and draws.answered == 2 and draws.calls.tolist() == [21, 1000, 31]
    assert draws.clear.tolist() == [True, True, True] and draws.factor == pytest.approx(3000 / 1052)


def test_the_estimate_of_the_count_covers_the_truth() -> None:
    rng, hits, spread = np.random.default_rng(0), 0, []
    for trial in range(200):
        lead = rng.normal(1.0, 1.0, 1000)
        said = lead + rng.normal(0, 0.5, 1000) > 0  # what the reference would answer
        groups = strata(np.stack([lead, np.zeros(1000)], axis=1), 0, 16)
        some = sample(groups, (16, 16, 8), 0, trial)
        middle, low, high = estimated([*map(len, groups)], [*map(len, some)], [int(said[s].sum()) for s in some])
        hits += low <= said.sum() <= high
        spread.append(middle - said.sum())
    assert hits >= 185  # 95 % of 200, less three standard deviations
    assert abs(np.mean(spread)) < 4 * np.std(spread) / 200**0.5


def test_all_asked_is_known_and_nothing_asked_is_an_error() -> None:
    assert estimated([5, 0, 7], [5, 0, 7], [2, 0, 7])[0] == pytest.approx(9)
    with pytest.raises(ValueError, match="a stratum of 5 draws was not asked about"):
        estimated([5, 7], [0, 7], [0, 7])


def test_strata_share_the_draws() -> None:
    table = np.random.default_rng(1).normal(size=(300, 10))
    groups = strata(table, 4, 16)
    assert sorted(np.concatenate(groups)) == list(range(300))
    assert set(groups[0]) == set(np.flatnonzero(table.argmax(axis=1) != 4))


def test_a_shortlist_of_all_classes_gives_the_answer_of_the_reference() -> None:
    train = load("digits", "train")
    model = EPNDC(OptimalDenoiser(train.x[:200], train.y[:200]), 0.5, count=4)
    x = DIGITS.x[:6] + 0.5 * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for candidate in (0, 3):
        said = answers_candidate(model, x, np.random.default_rng(2).normal(size=(6, 10)), candidate, 9)
        assert said.tolist() == (model(x).argmax(dim=1) == candidate).tolist()


def test_noisy_images_by_hand() -> None:
    from rdc.tasks.noisy import noisy_images

    own = {"model": SMALL.model, "options": dict(SMALL.options)}
    row = replace(SMALL, task="noisy", arguments={"sigma": 0.25, "images": "test", "reference": own})
    outcome = measure(Cell(row, 0, 3))
    x, y = noisy_images("digits", "test", 0.25, "cpu", 0, 3)
    said = base_classifier(row.model, "digits", **row.options)(x).argmax(dim=1)
    assert outcome.bits == {"right": (said == y).tolist(), "agrees": [True] * 3} and outcome.means == {"passes": 4.0}
    assert torch.equal(noisy_images("digits", "test", 0.25, "cpu", 1, 3)[0], x[1:]), "noise follows the image"


def test_a_sifted_cell_by_hand() -> None:
    from rdc.tasks.noisy import noisy_images

    row = replace(toy(next(r for r in experiment("certificates-sift").rows if r.about["rule"] == "Leader")), n=3, block=3)
    outcome, model = measure(Cell(row, 0, 3)), build(row.model, "digits", **row.options)
    x, _ = noisy_images("digits", "test", 0.25, "cpu", 0, 3)
    said = sift_by_hand(model, x, Leader(), 0)  # type: ignore[arg-type]
    assert outcome.means["saved"] == said.saved
    assert outcome.bits["agrees"] == (said.label == model(x).argmax(dim=1)).tolist()


def test_a_lipschitz_cell_by_hand() -> None:
    row = toy(experiment("certificates-lipschitz").rows[0])
    outcome, model = measure(Cell(row, 0, 2)), build("dc", "digits", **row.options)
    for i in range(2):
        for form in ("local", "global"):
            one = lipschitz_certify(model, DIGITS.x[i], n=row.arguments["n"], alpha=0.001, index=i, form=form)  # type: ignore[arg-type]
            assert outcome.values[f"radius {form}"][i] == one.radius
        assert (outcome.values["margin low"][i], outcome.values["candidate"][i]) == (one.margin_low, one.candidate)


def test_a_race_needs_no_results(tmp_path, monkeypatch) -> None:
    """Its rounds come with the package; gaps and classes are options."""
    monkeypatch.chdir(tmp_path)
    model = build("race")
    sizes = [len(r.levels) for r in model.rounds]
    assert sizes == [4, 4, 6, 10, 20] and [r.gap for r in model.rounds] == [3.0, 1.0, 0.8, 0.5, 0.0]
    assert [r.keep for r in build("race", gaps=(2, 1, 1, 1), keep=(2, 2, 2, 2)).rounds] == [2, 2, 2, 2, 1]
    assert set(checkpoints_of("race", "fashion-mini", {})) == {"fashion-mini", "fashion-mini-multihead"}
    with pytest.raises(ValueError, match="no rounds of a race were learned for digits"):
        build("race", "digits")


def test_a_row_names_all_its_weights() -> None:
    row = experiment("certificates-full").rows[0]
    assert set(weights_of(row)) == {"fashion-mini", "fashion-mini-multihead"}


def test_a_chapter_reads_cells_and_says_what_is_missing(tmp_path) -> None:
    assert [f.n for f in stored_cells("certificates-lipschitz")] == [12]
    assert stored_cells("certificates-lipschitz", tmp_path) == []


def test_verdicts_are_shown_with_their_evidence() -> None:
    shown: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", shown.append)
        show_verdicts({"A claim": decide((9, 10), bound=0.2)})
    html = shown[0].to_html()
    assert "A claim" in html and ">holds<" in html and "+0.90 [+0.55, +1.00]" in html and "9 of 10" in html
