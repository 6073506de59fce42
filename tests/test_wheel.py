"""The wheel alone, in an empty folder, with nothing but what the package asks for: every command ends well or in one line."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from rdc.runs.record import book_folder

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("rdc", "notebooks", "profiles", "results", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "MANIFEST.in")
#: Hides the packages that the wheel does not ask for, as if they were not installed, unless a test has the extra of the book.
HIDE = """
import os, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if "RDC_EXTRA" not in os.environ and name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def distribution(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(names):
    """The distributions that some distributions ask for, themselves among them."""
    found, left = set(), [distribution(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        left += [distribution(re.match(r"[\w.-]+", line)[0]) for line in asked if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with the unpacked wheel, and the environment of a process that sees it and what it asks for."""
    made, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for part in map(ROOT.joinpath, PARTS):
        if part.is_dir():
            shutil.copytree(part, source / part.name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
        else:
            shutil.copy(part, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", made, source], check=True)
    (file,) = made.glob("rdc-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", made / "site", file], check=True)
    asked = [line for line in importlib.metadata.requires("rdc") if "extra ==" not in line]
    there = needed(re.match(r"[\w.-]+", line)[0] for line in asked)
    owners = importlib.metadata.packages_distributions()
    hidden = {name for name, of in owners.items() if name != "rdc" and not there & set(map(distribution, of))}
    (made / "site" / "sitecustomize.py").write_text(HIDE.format(hidden=hidden - {"pip", "setuptools", "_distutils_hack"}))
    return {**os.environ, "PYTHONPATH": str(made / "site"), "OMP_NUM_THREADS": "1"}


def rdc(wheel, tmp_path, command):
    return subprocess.run(
        [sys.executable, "-m", "rdc", *command.split()], cwd=tmp_path, env=wheel, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_the_package_is_that_of_the_wheel_and_brings_the_book(wheel, tmp_path):
    parts = ("notebooks", "profiles", "results")
    code = f"import rdc; from rdc.runs.record import book_folder; print(rdc.__file__, *map(book_folder, {parts}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=wheel, capture_output=True, text=True, check=True)
    file, *folders = map(Path, found.stdout.split())
    assert str(file).startswith(wheel["PYTHONPATH"])
    for folder, name, pattern in zip(folders, parts, ("*.py", "*.yaml", "*.json*"), strict=True):
        assert folder.is_relative_to(wheel["PYTHONPATH"])
        assert {p.name for p in folder.glob(pattern)} == {p.name for p in book_folder(name).glob(pattern)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "--version",
        "models",
        "experiment list",
        "experiment status dc-noise",
        "report nearest",
        "findings --out claims.json",
        "accuracy --data digits --model cnn --n 4",
        "attack --data digits --model dc --set levels=2 --n 2 --steps 1 -q",
    ],
)
def test_a_command_ends_well(wheel, tmp_path, command):
    found = rdc(wheel, tmp_path, command)
    assert found.returncode == 0 and found.stdout, found.stderr


@pytest.mark.slow
def test_a_page_runs_in_an_empty_folder(wheel, tmp_path):
    """It finds data, weights and stored results in the wheel; nothing else is written than the page."""
    found = rdc(wheel | {"RDC_EXTRA": "book"}, tmp_path, "run 08f -p n 1 -q")
    assert found.returncode == 0, found.stderr
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*.*")] == [Path("runs/08f_fewer_bits.ipynb")]
    cells = nbformat.read(tmp_path / "runs/08f_fewer_bits.ipynb", 4).cells
    assert all(c.execution_count for c in cells if c.cell_type == "code") and any(c.get("outputs") for c in cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("run 03", "book"),
        ("attack --data digits --model cnn --n 1 -q --attack autoattack", "attacks"),
        ("experiment run nearest --toy --ray local --out out", "cluster"),
        ("accuracy --data cifar10-20 --model cifar10-small --levels 1 --n 1", "cifar"),
    ],
)
def test_what_needs_an_extra_says_which_in_one_line(wheel, tmp_path, command, extra):
    found = rdc(wheel, tmp_path, command)
    lines = [line for line in found.stderr.strip().splitlines() if not line.startswith("cells:")]  # a bar of progress
    assert found.returncode == 2 and len(lines) == 1 and f"rdc[{extra}]" in lines[0], found.stderr
