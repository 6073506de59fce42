"""The exercises of the pages: their form, and both answers of their checks.

A page has three exercises or more, each with minutes and difficulty, a hint, a stub, a check and a solution that runs.
"""

from pathlib import Path

import jupytext
import nbformat
import pytest
from exercises import ANSWERS, exercises, run_checked, take_answers, with_second_checks, wrong_answers

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_three_exercises_in_the_form(page):
    lacking = {e.label: e.missing for e in exercises(nbformat.read(page, 4))}
    assert len(lacking) >= 3 and not any(lacking.values()), lacking


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_check_was_run_after_stub_and_solution(page):
    nb = nbformat.read(page, 4)
    checked = [e for e in exercises(nb) if e.check is not None and e.solution]
    answers = nb.metadata["rdc"].get("exercises", {})
    assert set(answers) == {e.label for e in checked}, f"run: tools/run_notebooks.py {page.stem}"
    assert not wrong_answers(answers)
    assert all("".join(o["text"] for o in nb.cells[e.check].outputs).strip() == ANSWERS["stub"] for e in checked)


def block(label, solution, check="print('right' if answer == 4 else 'not yet')"):
    """An exercise in the percent format."""
    return f"""
# %% [markdown]
# :::{{exercise-start}}
# :label: {label}
# :::
# **Add** (5 minutes, easy). What is two and two?
#
# :::{{hint}}
# :class: dropdown
# Count.
# :::

# %%
# your code here
answer = None

# %%
# check
{check}

# %% [markdown]
# :::{{exercise-end}}
# :::
#
# :::{{solution-start}} {label}
# :class: dropdown
# :::

# %%
{solution}

# %% [markdown]
# :::{{solution-end}}
# :::
"""


HEAD = '# %% tags=["parameters"]\nseed = 0\n\n# %%\nfrom rdc.notebook import check_parameters\ncheck_parameters()\n'
PAGE = HEAD + block("ex-good", "answer = two + two").replace("\n\n# %%\n# check", "\ntwo = 2\n\n# %%\n# check")
BAD = {
    "ex-always": "print('right')",  # a check that cannot fail
    "ex-never": "print('not yet')",  # or that no answer passes
}


def test_the_parts_of_an_exercise():
    nb = jupytext.reads(PAGE, "py:percent")
    (found,) = exercises(nb)
    assert not found.missing and (found.label, found.minutes) == ("ex-good", 5)
    assert [nb.cells[i].source.split("\n")[0] for i in (found.stub, found.check)] == ["# your code here", "# check"]
    for text, part in {"(5 minutes, easy)": "minutes and difficulty", "{hint}": "hint", "# check": "check"}.items():
        assert exercises(jupytext.reads(PAGE.replace(text, "# or"), "py:percent"))[0].missing == [part]


def test_the_second_checks_come_and_go():
    nb = jupytext.reads(PAGE + block("ex-more", "answer = 4"), "py:percent")
    twice = with_second_checks(nb)
    marked = [c for c in twice.cells if "exercise" in c.metadata]
    assert [tuple(c.metadata["exercise"]) for c in marked] == [(e, s) for e in ("ex-good", "ex-more") for s in ANSWERS]
    answers = take_answers(twice)
    assert answers == {"ex-good": ANSWERS, "ex-more": ANSWERS} and not wrong_answers(answers)
    before, after = ([(c.source, c.metadata.get("tags", [])) for c in each.cells] for each in (nb, twice))
    assert before == after


def test_a_wrong_check_stops_the_page(tmp_path):
    page = tmp_path / "page.py"
    page.write_text(PAGE + "".join(block(label, "answer = 4", check) for label, check in BAD.items()))
    with pytest.raises(ValueError) as err:
        run_checked(page, "tutorial")
    assert "ex-always: the check says 'right' after the stub" in str(err.value)
    assert "ex-never: the check says 'not yet' after the solution" in str(err.value)
    assert "ex-good" not in str(err.value)
