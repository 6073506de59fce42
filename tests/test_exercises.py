"""The exercises of the pages: their form, and both answers of their checks.

A page has three exercises or more, each with minutes and difficulty, a hint, a stub, a check and a solution that runs.
A check takes numbers of any type, as many digits as its solution prints, and says "not yet" to a wrong form instead of failing.
"""

import ast
import contextlib
import functools
import io
import math
import warnings
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
import torch
from exercises import ANSWERS, exercises, run_checked, take_answers, with_second_checks, wrong_answers

from rdc.notebook import close_to
from rdc.schedule import vp_alphas, vp_weights

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@functools.cache
def stored(page):
    """A page with its outputs."""
    return nbformat.read(page, 4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_three_exercises_in_the_form(page):
    lacking = {e.label: e.missing for e in exercises(stored(page))}
    assert len(lacking) >= 3 and not any(lacking.values()), lacking


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_check_was_run_after_stub_and_solution(page):
    nb = stored(page)
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


def float32(values):
    """A tensor of single precision."""
    return torch.tensor(values, dtype=torch.float32)


def double(values):
    """A tensor of double precision."""
    return torch.tensor(values, dtype=torch.float64)


def numpy32(values):
    """An array of single precision, or a number of it."""
    return np.float32(values)


def scalars(values):
    """A list of single tensors."""
    return [torch.tensor(v) for v in values]


FORMS = (list, tuple, float32, double, numpy32, np.array, scalars)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_an_answer_may_have_any_form(form):
    right, wrong = [0.25, -1.5], [0.25, 1.5]
    assert close_to(form(right), right, 1e-3) and close_to(right, form(right), 1e-3)
    assert not any(close_to(form(v), right, 1e-3) for v in (wrong, right[:1], [*right, 1.0]))
    assert close_to(dict(enumerate(form(right))), dict(enumerate(right)), 1e-3)


def test_what_is_not_an_answer():
    for answer in (None, "2", [None, 2], [[1, 2], [1]], {}, {"a": 2}, float("nan"), [2, 2], object()):
        assert not close_to(answer, 2, 0.1)
    for answer in (None, 2, [2], {}, {"b": 2}, {"a": None}, {"a": 2, "b": 2}, {"a": 3}):
        assert not close_to(answer, {"a": 2}, 0.1)
    assert close_to(torch.tensor([2.05], requires_grad=True), 2, 0.1) and close_to(2, [2], 0)
    assert close_to([1, 10], [1.1, 11], [0.2, 2]) and not close_to([1, 10], [1.1, 11], [2, 0.2])


def said(check, space):
    """What a check prints, or how it fails."""
    with contextlib.redirect_stdout(io.StringIO()) as out, warnings.catch_warnings(action="ignore"):
        try:
            exec(check, dict(space))
        except Exception as err:
            return f"{type(err).__name__}: {err}"
    return out.getvalue().strip()


# what each check says to right answers, all of which were refused or failed once, and to wrong ones, some of which passed
TOLD = {
    ("02b_likelihood", "ex-diffusion-gaussian"): (
        [{"loss_at_two": 0.16, "log_density": v} for v in (-0.9189, -0.919, -0.92)],
        [{"loss_at_two": a, "log_density": b}
         for a, b in ((0.16, 0.9189), (0.16, -1.4189), (0.2, -0.919), (0.04, -0.919), (0.16, [1, 2]))],
    ),
    ("02d_weights", "ex-diffusion-reweight"): (
        [{"left": f(v), "right": f(v)} for f in FORMS for v in ([-0.679, -0.750], [-0.68, -0.75], [-0.679237, -0.74966])],
        [{"left": v, "right": v} for v in ([-0.679], [-0.679, -0.75, 0.0], -0.679, [0.679, 0.75], [-0.75, -0.679], "two")],
    ),
    ("04b_levels_and_weights", "ex-dc-calibration"): (
        [{"best_temperature": f(2.8), "confidence": {"before": f(0.95), "after": f(0.8)}} for f in (float, float32, np.float32)],
        [{"best_temperature": t, "confidence": {"before": b, "after": a}}
         for t, b, a in ((3.9, 0.95, 0.8), (2.8, 0.99, 0.8), (2.8, 0.95, 0.71), (2.8, 0.8, 0.95), (2.8, None, 0.8))],
    ),
    ("09e_factors", "ex-cert-factors"): (
        [{"by_levels": 15.5, "by_sifting": s, "by_both": b} for s, b in ((11 / 3, 15.5 * 11 / 3), (3.67, 56.8), (3.67, 56.83))],
        [{"by_levels": 15.5, "by_sifting": s, "by_both": b} for s, b in ((5, 77.5), (3.67, 19.2), (3.67, None), (3.67, [1, 2]))],
    ),
    ("08b_loss_and_size", "ex-gradients-unit"): (
        [{"size_factor": s, "distance_factor": 255} for s in (10 / 255, 0.039, np.float32(0.0392))],
        [{"size_factor": s, "distance_factor": d} for s, d in ((0.039, None), (None, 255), (10, 255), (0.039, 1 / 255))],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("page", "label"), TOLD, ids=lambda word: word)
def test_checks_that_were_wrong(page, label):
    _, parts = cells_alone(ROOT / "notebooks" / f"{page}.ipynb")
    space, (right, wrong) = {"close_to": close_to, "torch": torch, "np": np}, TOLD[page, label]
    assert not [names for names in right if said(parts[label][1], space | names) != "right"]
    assert not [names for names in wrong if said(parts[label][1], space | names) != "not yet"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_checks_of_vectors_take_any_form_and_length(form):
    _, parts = cells_alone(ROOT / "notebooks" / "02b_likelihood.ipynb")
    space = {"close_to": close_to, "vp_weights": vp_weights, "vp_alphas": vp_alphas, "math": math}
    space |= {"truth": double([0.0, 0.1]), "ceiling": double([-1.0, -1.0]), "low": 1.0, "high": 2.0}
    weights = vp_weights(vp_alphas(), "derived").double()
    short = (space["truth"] - space["ceiling"] - 2 * math.log(2)).tolist()
    for name, label, values in (("ours", "vp", weights[1:].tolist()), ("shortfall", "learned", [round(v, 2) for v in short])):
        check = parts[f"ex-diffusion-{label}"][1]
        assert said(check, space | {name: form(values)}) == "right"
        for other in ([*values, 0.0], values[:-1], values[::-1], [-v for v in values]):
            assert said(check, space | {name: form(other)}) == "not yet"


SLOW = {"ex-guide-chance", "ex-lm-energy", "ex-guide-best", "ex-lm-stairs"}  # checks that simulate
EXACT = {"ex-gradients-bits-count"}  # a power of two, to all digits
TENSORS = {"ex-first-attack-dual"}  # no numbers are asked for


def test_no_check_fails_on_numbers_of_another_type():
    """Of the checks that need nothing else of their page: half an answer, other types, the solution with four digits."""
    wrong, solved = {}, 0
    for page in PAGES:
        imports, parts = cells_alone(page)
        start = {"seed": 0}
        exec(imports, start)
        for label, (stub, check, solution) in parts.items():
            space = dict(start)
            if label in SLOW | TENSORS or not runs(stub, space) or said(check, space) != "not yet":
                continue
            names = [k for k in space.keys() - start.keys() if is_empty(space[k])]
            half = [{k: changed(space[k], lambda _: 0.5)} for k in names]
            whole = [{k: changed(space[k], lambda _, f=f: f(0.5)) for k in names} for f in (float, np.float32, float32)]
            answers = [said(check, space | given) for given in half + whole]
            lacking = any("NameError" in said_ for said_ in answers)  # it needs more of its page
            wrong[label] = [] if lacking else [said_ for said_ in answers if said_ != "not yet"]
            if lacking or not runs(solution, space) or said(check, space) != "right":
                continue
            solved += 1
            forms = [np.float32, float32] + [four_digits] * (label not in EXACT)
            answers = [said(check, space | {k: changed(space[k], only_numbers(f)) for k in names}) for f in forms]
            wrong[label] += [f"the solution: {said_}" for said_ in answers if said_ != "right"]
    assert not {label: found for label, found in wrong.items() if found}
    assert len(wrong) > 110 and solved > 80, (len(wrong), solved)


@functools.cache
def cells_alone(page):
    """The imports of a page, and stub, check and solution of its exercises."""
    nb = stored(page)
    code = [ast.parse(c.source) for c in nb.cells if c.cell_type == "code"]
    lines = [node for tree in code for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    parts = {e.label: [nb.cells[i].source for i in (e.stub, e.check, e.solution[0])] for e in exercises(nb)}
    return compile(ast.Module(lines, []), str(page), "exec"), parts


def runs(source, space):
    """Whether a cell runs with these names; it adds its own."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(source, space)
    except Exception:
        return False
    return True


def is_empty(value):
    """Whether a stub leaves a value, or an element of it, to the reader."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return any(v is None for v in inside)


def changed(value, change):
    """A value, or each element of it, changed."""
    if isinstance(value, dict):
        return {k: changed(v, change) for k, v in value.items()}
    return type(value)(changed(v, change) for v in value) if isinstance(value, list | tuple) else change(value)


def four_digits(value):
    """A number as one writes it down."""
    return value if float(value).is_integer() else float(f"{float(value):.4g}")


def only_numbers(change):
    """A change that leaves alone what is not a number."""
    return lambda v: change(v) if isinstance(v, int | float | np.floating) and not isinstance(v, bool) else v
