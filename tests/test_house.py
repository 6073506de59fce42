"""The rules of the house, read from the source: which floor may import which, and what every random draw must name."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdc
from rdc import rng
from rdc.attack.norms import random_start

ROOT = Path(rdc.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = [
    {"rng", "noise_source", "quantities", "schedule", "autograd", "door", "randomness", "data"},
    {"runs"},
    {"denoise", "attack"},
    {"classify", "defend"},
    {"evaluate", "analyse"},
    {"certify", "early_exit", "guide"},
    {"train", "models", "tasks"},
    {"cli", "__main__", "notebook", "plots", "experiments", "findings"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS, 1) for name in names}
FORMER = {"noise.py", "checkpoints.py", "attack/audit.py"}  # former names: re-exports and nothing else


def name_of(path: Path) -> str:
    """The path of a module in the package."""
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every import of the package, those inside functions too."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "rdc" else [node.module or "."]
            names = ["." * node.level + names[0]] if node.level else names
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("rdc", ""))


def arrows_up(name: str, tree: ast.AST) -> list[str]:
    """What is wrong with the imports of the module at ``name``, one line each."""
    found, here = [], name.removesuffix(".py").split("/")[0]
    for line, target in imports(tree):
        there = (target.split(".") + [""])[1]
        if unknown := {here, there} - FLOOR.keys():
            found.append(f"{name}:{line}: {' and '.join(sorted(unknown))} stands on no floor (import of {target})")
        elif FLOOR[there] > FLOOR[here]:
            found.append(f"{name}:{line}: floor {FLOOR[here]} ({here}) imports floor {FLOOR[there]} ({target})")
    return found


def is_reexport(tree: ast.Module) -> bool:
    """Whether a module holds a docstring and ``from module import name as name``, and nothing else."""
    first, *rest = tree.body
    lines = [isinstance(n, ast.ImportFrom) and all(a.name == a.asname for a in n.names) for n in rest]
    return ast.get_docstring(tree) is not None and bool(lines) and all(lines)


def test_no_floor_imports_a_higher_one() -> None:
    found = [arrow for path in FILES if name_of(path) not in FORMER | {"__init__.py"}
             for arrow in arrows_up(name_of(path), ast.parse(path.read_text(encoding="utf8")))]  # fmt: skip
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", sorted(FORMER))
def test_a_former_name_holds_nothing_but_re_exports(name: str) -> None:
    assert is_reexport(ast.parse((ROOT / name).read_text(encoding="utf8")))


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("attack/pgd.py", "def f():\n    from rdc.evaluate import audit", "attack/pgd.py:2: floor 3 (attack) imports floor 5"),
        ("data.py", "import rdc.certify.rows", "floor 1 (data) imports floor 6 (rdc.certify.rows)"),
        ("runs/record.py", "from rdc import train", "floor 2 (runs) imports floor 7 (rdc.train)"),
        ("new.py", "from rdc.rng import generator", "new stands on no floor"),
        ("runs/record.py", "from . import rowfile", "stands on no floor"),
        ("train/loop.py", "from rdc.attack import pgd\nimport torch\nfrom rdc.train import recipes", None),
    ],
)
def test_an_arrow_that_runs_up_is_found(name: str, source: str, says: str | None) -> None:
    found = arrows_up(name, ast.parse(source))
    assert len(found) == 1 and says in found[0] if says else not found


@pytest.mark.parametrize("source", ["'''D.'''\nfrom a import b", "'''D.'''\nfrom a import b as b\nc = 1", "from a import b as b"])
def test_a_module_that_holds_more_is_no_re_export(source: str) -> None:
    assert not is_reexport(ast.parse(source)) and is_reexport(ast.parse("'''D.'''\nfrom a import b as b"))


# Random draws and new tensors

DRAWS = {"rand", "randn", "randint", "randperm", "multinomial", "normal", "bernoulli", "poisson"}
NO_TYPE = {"multinomial", "bernoulli", "poisson", "normal"}  # computed from a tensor, on its device and of its type
GLOBAL = {"rand_like", "randn_like", "randint_like", "manual_seed", "seed", "set_rng_state"}  # those that take no generator
TYPED = {"zeros", "ones", "full", "empty", "linspace", "logspace", "eye", "tensor", "as_tensor"}
TENSORS = TYPED | {"arange", "scalar_tensor"}
OPEN = {  # files whose calls do not name it all yet: this set shrinks to nothing
    "defend/broken.py",  # plants defences that use the global state, on purpose
}


def unnamed(tree: ast.AST) -> list[str]:
    """What each draw and each factory of ``torch`` does not name, one line each."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "torch"):
            continue
        name, given = node.func.attr, {k.arg for k in node.keywords}
        if name in GLOBAL:
            found.append(f"line {node.lineno}: torch.{name} uses the global state")
        wanted = {"generator"} if name in DRAWS else set()
        wanted |= {"device"} if name in TENSORS | DRAWS - NO_TYPE else set()
        wanted |= {"dtype"} if name in TYPED | DRAWS - NO_TYPE else set()
        if missing := wanted - given:
            found.append(f"line {node.lineno}: torch.{name} names no {', '.join(sorted(missing))}: {ast.unparse(node)}")
    return found


def test_every_draw_and_every_new_tensor_names_where_and_what_it_is() -> None:
    found = {name_of(path): unnamed(ast.parse(path.read_text(encoding="utf8"))) for path in FILES}
    bad = {name: lines for name, lines in found.items() if lines}
    assert not (new := bad.keys() - OPEN), "\n".join(f"{name}, {line}" for name in sorted(new) for line in bad[name])


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("torch.rand(3, generator=g)", "device, dtype"),
        ("torch.randn(3, dtype=d, device=x.device)", "generator"),
        ("torch.zeros(3, dtype=d)", "device"),
        ("torch.tensor([1.0], device=d)", "dtype"),
        ("torch.arange(3)", "device"),
        ("torch.multinomial(w, 3)", "generator"),
        ("torch.randn_like(x)", "global state"),
        ("torch.arange(3, device=d) + torch.randn(2, generator=g, dtype=t, device=d) + torch.zeros_like(x)", None),
    ],
)
def test_what_a_call_does_not_name_is_found(source: str, missing: str | None) -> None:
    found = unnamed(ast.parse(source))
    assert len(found) == 1 and missing in found[0] if missing else not found


@contextmanager
def elsewhere(kind: str) -> Iterator[None]:
    """Another default type, or a default device that holds no numbers."""
    if kind == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def drawn(norm: str, *key: str | int) -> list[torch.Tensor]:
    """Random numbers of each kind, as a function of a key."""
    x = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float32, device="cpu")
    index = torch.tensor([4, 1], dtype=torch.int64, device="cpu")
    start = random_start(x, norm, 0.1, index, *(part for part in key if isinstance(part, int)))
    return [rng.randn((3,), *key), rng.rand((3,), *key), rng.randint(9, (3,), *key), rng.randperm(5, *key), start]


KEYS = st.lists(st.text(max_size=3) | st.integers(0, 2**64), min_size=1, max_size=3)


@given(st.sampled_from(["float64", "meta"]), st.sampled_from(["Linf", "L2"]), KEYS)
def test_owned_numbers_do_not_depend_on_the_defaults_of_torch(kind: str, norm: str, key: list[str | int]) -> None:
    before = drawn(norm, *key)
    with elsewhere(kind):
        now = drawn(norm, *key)
    for a, b in zip(now, before, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)
