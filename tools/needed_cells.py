"""Which cells of a page some of its cells need: the page can be executed in part."""

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from typing import Any


def needed(nb: Any, wanted: Iterable[int]) -> list[int]:
    """The places of the code cells that the cells ``wanted`` need, those included.

    For each name that a cell uses: the last cell before it that binds the name, and those in between that may change its object.
    What a function uses is looked up where the function is defined, and again where it is used.
    """
    code = {i: c.source for i, c in enumerate(nb.cells) if c.cell_type == "code"}
    about = {i: (*names(source), changes(source)) for i, source in code.items()}
    todo = [(i, i) for i in {*wanted, *list(code)[:2]}]  # a cell, and the place from which its names are looked up
    seen = set(todo)
    while todo:
        i, place = todo.pop()
        for name in about[i][1] if i == place else about[i][2]:
            before = [k for k in code if k < place and k != i]
            binder = max((k for k in before if name in about[k][0]), default=-1)
            found = {(k, k) for k in before if k == binder or (k > binder >= 0 and name in about[k][3])}
            if binder >= 0 and about[binder][2]:
                found.add((binder, place))
            todo += found - seen
            seen |= found
    return sorted({i for i, _ in seen})


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The names that a cell binds at its top level, those that it needs from cells before, and those that its functions use."""
    top = symtable.symtable(source, "cell", "exec")
    used = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    later: set[str] = set()
    inner = list(top.get_children())
    while inner:
        table = inner.pop()
        later |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        inner += table.get_children()
    bound, free = set[str](), set[str]()
    for node in in_order(ast.parse(source)):
        (bound if isinstance(node.ctx, ast.Store) else free if node.id not in bound else set()).add(node.id)
    made = {s.get_name() for s in top.get_symbols() if s.is_imported() or s.is_namespace()}
    return bound | made, (free & (used | later)) - made | (later - bound - made), later


def in_order(node: ast.AST) -> Iterator[ast.Name]:
    """The names below a node in the order of their evaluation: what is assigned comes after the value."""
    first = ("iter", "value", "context_expr", "generators")
    fields = sorted(ast.iter_fields(node), key=lambda f: f[0] not in first)
    if isinstance(node, ast.Name):
        yield node
    for _, value in fields:
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from in_order(child)


def changes(source: str) -> set[str]:
    """Names whose object a cell may change: ``a[i] = ...``, ``a.b = ...``, ``a.f(...)`` as a statement."""
    return set(re.findall(r"^\s*(\w+)(?:\.[\w.]+\(|[\[.][^=\n]*?=[^=])", source, re.M))
