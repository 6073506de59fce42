"""Parameters and claims of the chapters: every value is checked against its declaration before a cell runs."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdc.notebook import cells, check_parameters, claim, needs, run_notebook
from rdc.notebook.execute import from_here
from rdc.notebook.parameters import check_values, declared, profile_values

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
KINDS = {
    "int": (st.integers(), lambda v: v),
    "float": (st.floats(allow_nan=False, allow_infinity=False), lambda v: v),
    "str": (st.text(), lambda v: v),
    "bool": (st.booleans(), lambda v: v),
    "list[int]": (st.lists(st.integers(), max_size=3), lambda v: v),
    "list[float]": (st.lists(st.floats(-9, 9), max_size=3), lambda v: v),
    "str | float": (st.fractions(0, 9).map(str), lambda v: int(v.split("/")[0]) / int((v + "/1").split("/")[1])),
}
OTHER = {  # what is of none of these types, by type
    "int": [3.5, 3.0, True, "3", None, [3]],
    "float": ["0.5", True, None, [0.5], float("nan"), float("inf")],
    "str": [3, 0.5, True, None, ["a"]],
    "bool": [0, 1, "yes", None],
    "list[int]": [3, [3.5], ["3"], [True], None, "34"],
    "list[float]": [0.5, [True], ["8/255"], None],
    "str | float": ["eight", "8/0", True, None, [8], float("nan")],
    "list[str | float]": ["8/255", ["eight"], [True], 8],
    "int | None": [3.5, "3", True],
}


def parameters(kind: str) -> dict[str, Any]:
    return declared(f"n: {kind} = 0  # how many\nseed = 0\n")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_value_of_the_declared_type_is_taken(kind: str, data: st.DataObject) -> None:
    strategy, meant = KINDS[kind]
    value = data.draw(strategy)
    assert check_values({"n": value}, parameters(kind)) == {"n": pytest.approx(meant(value)) if "float" in kind else value}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in OTHER.items() for value in values])
def test_a_value_of_another_type_gives_one_line(kind: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"^(an entry of )?parameter n must be .*, got ") as error:
        check_values({"n": value}, parameters(kind))
    assert "\n" not in str(error.value)


def test_a_whole_number_is_a_number_and_a_radius_a_fraction() -> None:
    found = check_values({"n": 3}, parameters("float"))["n"]
    assert found == 3 and isinstance(found, float)
    assert check_values({"n": ["8/255", 0.5]}, parameters("list[str | float]")) == {"n": [8 / 255, 0.5]}
    assert check_values({"n": None}, parameters("int | None")) == {"n": None}


def test_without_an_annotation_the_default_decides() -> None:
    assert check_values({"seed": 5}, parameters("int")) == {"seed": 5}
    with pytest.raises(ValueError, match="parameter seed must be a whole number, got True"):
        check_values({"seed": True}, parameters("int"))


def source(path: Path) -> str:
    return "\n".join(c.source for c in jupytext.read(path).cells if "parameters" in c.metadata.get("tags", []))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_the_chapters_declare_what_they_use(path: Path) -> None:
    known = declared(source(path))
    assert "list = " not in source(path), "say of what"
    assert len(known) == source(path).count(": ") - sum(
        line.split("#")[1].count(": ") for line in source(path).splitlines() if "#" in line
    )
    check_values({name: p.default for name, p in known.items()}, known)
    for profile in ("tutorial", "full", "paper"):
        check_values({k: v for k, v in profile_values(profile).items() if k in known}, known)


def cells_of(monkeypatch: pytest.MonkeyPatch, *inputs: str) -> dict[str, Any]:
    """A shell that has run these cells."""
    names: dict[str, Any] = {"In": ["", *inputs]}
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: SimpleNamespace(user_ns=names))
    return names


DECLARED = "n: int = 8\neps: str | float = 8 / 255\n"


def test_papermill_is_checked_and_radii_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    names = cells_of(monkeypatch, DECLARED, '# Parameters\nn = 3\neps = "16/255"\n', "check_parameters()")
    check_parameters()
    assert names["eps"] == 16 / 255 and names["n"] == 3
    cells_of(monkeypatch, DECLARED, "# Parameters\nn = 3.5\n")
    with pytest.raises(ValueError, match="parameter n must be a whole number, got 3.5"):
        check_parameters()
    cells_of(monkeypatch, DECLARED, "# Parameters\nm = 3\n")
    with pytest.raises(ValueError, match="unknown parameter 'm'; there are eps, n"):
        check_parameters()
    cells_of(monkeypatch, DECLARED, "check_parameters()")
    check_parameters()


@pytest.mark.parametrize("injected", ["", "# Parameters\nn = 8\n", "# Parameters\neps = 8 / 255\n"])
def test_a_claim_that_does_not_hold_raises_at_the_defaults(monkeypatch: pytest.MonkeyPatch, injected: str) -> None:
    cells_of(monkeypatch, DECLARED, injected)
    claim(True, "the sky is blue")
    with pytest.raises(AssertionError, match="this does not hold: the sky is green"):
        claim(False, "the sky is green")
    with pytest.raises(AssertionError, match=r"this does not hold: inspect.*\(1 > 2\)"):
        inspect.unwrap(claim)(1 > 2)  # what a reader meets, who has no type checker


def test_a_claim_at_other_sizes_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cells_of(monkeypatch, DECLARED, "# Parameters\nn = 2\n")
    claim(True, "the sky is blue")
    claim(False, "the sky is green")
    assert capsys.readouterr().out == "With n = 2 this does not hold: the sky is green\n"


def test_outside_a_notebook_a_claim_is_strict() -> None:
    with pytest.raises(AssertionError):
        claim(False)
    assert not list(cells._injected())


def test_what_is_too_small_is_said() -> None:
    needs(True, "n = 3 is too small")
    with pytest.raises(ValueError, match="^n = 3 is too small"):
        needs(False, "n = 3 is too small")


def test_a_wrong_type_stops_a_run_before_its_first_cell(tmp_path: Path) -> None:
    (tmp_path / "nb.py").write_text('# %% tags=["parameters"]\nn: int = 3\n\n# %%\nopen("touched", "w")\n')
    with pytest.raises(ValueError, match="parameter n must be a whole number, got 3.5"):
        run_notebook(tmp_path / "nb.py", tmp_path / "new" / "out.ipynb", {"n": 3.5})
    assert [p.name for p in tmp_path.iterdir()] == ["nb.py"]


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (["n_clean", "3.5"], "parameter n_clean must be a whole number, got 3.5"),
        (["seed", "yes"], "parameter seed must be a whole number, got True"),
        (["eps_l2", "[8/0]"], "an entry of parameter eps_l2 must be a number or a fraction such as 8/255, got '8/0'"),
        (["device", "3"], "parameter device must be a word, got 3"),
        (["n", "[1"], "is not a value"),
    ],
)
def test_the_command_line_says_what_is_wrong(given_: list[str], says: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from rdc.cli import main; main()",
        "run",
        "03d",
        "-p",
        *given_,
        "--out",
        str(tmp_path / "o.ipynb"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_of_the_callers_folder_is_given_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.safetensors").write_bytes(b"")
    (tmp_path / "fashion").write_bytes(b"")
    (tmp_path / "imgs").mkdir()
    assert from_here("net.safetensors") == str(tmp_path / "net.safetensors")
    assert from_here("folder:imgs") == f"folder:{tmp_path / 'imgs'}"
    for value in ("absent.safetensors", "fashion", "folder:absent", "8/255", 3, 0.5, None, ["net.safetensors"], 5000 * "x"):
        assert from_here(value) == value


def test_a_chapter_reads_a_file_of_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("found")
    page = '# %% tags=["parameters"]\nname: str = "b.txt"\n\n# %%\nprint(open(name).read())\n'
    (tmp_path / "book" / "nb.py").write_text(page)
    monkeypatch.chdir(tmp_path / "here")
    done = run_notebook(tmp_path / "book" / "nb.py", None, {"name": "a.txt"})
    assert any("found" in str(cell.get("outputs")) for cell in done.cells)
