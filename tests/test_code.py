"""The code that decides a number: what a definition depends on, and that only this changes its digest."""

import ast
import hashlib
import sys
from pathlib import Path

import pytest

from rdc.runs.code import Program, bare, dumped, names, package_program

FILES = {
    "__init__.py": "from house.attack import strong as strong\n",
    "attack.py": '''
"""Attacks."""
import house.tools as tools
from house import numbers
from house.tools import step

SCALE = 2

def weak(x):
    """Weak."""
    return x + numbers.small(x)

def strong(x):
    """Strong."""
    # twice
    return step(step(x)) * SCALE

def lazy(x):
    from .tools import late
    return late(x)

def other(x):
    return tools.step(x)
''',
    "tools.py": '''
import math

LIMIT = 1
LIMIT = LIMIT + 1

def step(x):
    return min(x + 1, LIMIT)

def late(x):
    return math.sin(x)

class Base:
    """A base."""
    def act(self):
        return LIMIT

class Child(Base):
    def act(self):
        """Act."""
        return keep(late(1))

def keep(x):
    return x
''',
    "numbers/__init__.py": "if True:\n    def small(x):\n        return 0\n",
}


def house(folder: Path, **changes: tuple[str, str]) -> Program:
    """A package on disk, with ``new`` for ``old`` in some files."""
    for name, text in FILES.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        old, new = changes.get(path.relative_to(folder / "house").with_suffix("").as_posix(), ("", ""))
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
    return Program(folder / "house", "house", ("house.records",))


def test_a_closure_holds_what_is_named_and_nothing_else(tmp_path):
    program = house(tmp_path)
    assert program.closure("house.attack:weak") == [("house.attack", "weak"), ("house.numbers", "small")]
    deep = [("house.attack", "SCALE"), ("house.attack", "strong"), ("house.tools", "LIMIT"), ("house.tools", "step")]
    assert program.closure("house.attack:strong") == deep == program.closure("house:strong"), "re-exports are followed"
    assert program.closure("house.attack:lazy") == [("house.attack", "lazy"), ("house.tools", "late")]
    assert program.closure("house.attack:other") == [("house.attack", "other"), *deep[2:]]
    assert {name for _, name in program.closure("house.tools:Child")} == {"Child", "Base", "LIMIT", "keep", "late"}
    with pytest.raises(ValueError, match="no house.attack:none"):
        program.closure("house.attack:none")


CHANGES = {  # what is changed, and whose digests change
    "a step": ({"tools": ("min(x + 1, LIMIT)", "min(x + 2, LIMIT)")}, {"strong", "other"}),
    "an assignment that is read": ({"tools": ("LIMIT + 1", "LIMIT + 2")}, {"strong", "other"}),
    "a function that only one needs": ({"tools": ("math.sin", "math.cos")}, {"lazy"}),
    "one in a condition": ({"numbers/__init__": ("return 0", "return 1")}, {"weak"}),
    "one's own body": ({"attack": ("* SCALE", "/ SCALE")}, {"strong"}),
    "a docstring": ({"attack": ("Strong.", "Very strong.")}, set()),
    "a docstring of a class": ({"tools": ("A base.", "The base.")}, set()),
    "a comment": ({"attack": ("# twice", "# two times")}, set()),
    "a blank line": ({"attack": ("SCALE = 2\n", "\n\nSCALE = 2\n")}, set()),
    "what nobody names": ({"tools": ("return x\n", "return -x\n")}, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_exactly_what_depends_on_a_change_has_another_digest(tmp_path, name):
    changes, expected = CHANGES[name]
    before, after = house(tmp_path / "before"), house(tmp_path / "after", **changes)
    roots = ("weak", "strong", "lazy", "other")
    assert {r for r in roots if before.digest(f"house.attack:{r}") != after.digest(f"house.attack:{r}")} == expected


def test_a_script_depends_on_what_it_imports(tmp_path):
    before, after = house(tmp_path / "a"), house(tmp_path / "b", tools=("math.sin", "math.cos"))
    for source, same in (("from house.attack import strong\nstrong(1)", True), ("import house.attack as a\na.lazy(1)", False)):
        assert (before.digest_source(source) == after.digest_source(source)) is same


def test_ignored_modules_do_not_count(tmp_path):
    program = house(tmp_path, attack=("def weak(x):", "from house.records import note\n\ndef weak(x):\n    note(x)"))
    (tmp_path / "house" / "records.py").write_text("def note(x):\n    return None\n")
    assert ("house.records", "note") not in program.closure("house.attack:weak")


def test_names_come_with_their_attributes():
    found = list(names(ast.parse("a.b.c(d) + e[f].g")))
    assert sorted(found) == [["a", "b", "c"], ["d"], ["e"], ["f"]]


def test_a_definition_that_moves_leaves_the_digest(tmp_path):
    """Where a definition lives decides nothing, and neither does the import that brings it."""
    before = house(tmp_path / "a").digest("house.attack:lazy")
    folder = tmp_path / "b" / "house"
    house(tmp_path / "b")
    (folder / "late.py").write_text("import math\n\ndef late(x):\n    return math.sin(x)\n")
    text = (folder / "attack.py").read_text()
    (folder / "attack.py").write_text(text.replace("from .tools import late", "from house.late import late"))
    moved = Program(folder, "house")
    assert ("house.late", "late") in moved.closure("house.attack:lazy")
    assert moved.digest("house.attack:lazy") == before


def test_a_docstring_alone_leaves_a_body():
    (node,) = ast.parse('def f():\n    """Text."""').body
    assert ast.unparse(bare(node)) == "def f():\n    pass"


def test_attacks_of_the_package_depend_on_their_parts_only():
    """PGD needs its losses, norms and the door, and knows nothing of a defence, of Square or of records."""
    found = package_program().closure("rdc.attack:pgd")
    assert {("rdc.attack.losses", "margin"), ("rdc.attack.norms", "project"), ("rdc.door", "Door")} <= set(found)
    assert not [m for m, _ in found if m.startswith(("rdc.defend", "rdc.runs", "rdc.attack.blackbox", "rdc.certify"))]


def test_a_digest_is_the_same_in_every_version_of_python():
    source = "class A[int]: pass" if sys.version_info >= (3, 12) else "pass"  # that a type parameter counts, where there are any
    assert ("type_params=[]" not in dumped(ast.parse(source))) and ("TypeVar" in dumped(ast.parse(source))) == (source != "pass")
    everything = ast.parse("@a\nasync def f(x: int = 1, *, y=None) -> str:\n    return f'{x!r:>{y}} {x}'\nclass A(B): z = ()")
    known = "FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='x', annotation=Name(id='int', ctx=Load()))]"
    assert known in dumped(everything)
    assert hashlib.sha256(dumped(everything).encode()).hexdigest()[:16] == "e60acca42d9b96c2"
