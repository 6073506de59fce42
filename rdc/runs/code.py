"""The code that decides a number: the definitions that a function refers to, directly or through others.

The unit is a *definition*: a function, a class or an assignment at the top of a module. A definition depends on every name in it
that stands for another definition of the package, followed through imports (also those inside functions) and re-exports. Its text
is its syntax tree without docstrings, so that comments, docstrings and layout do not count.

What is not followed: attributes of values (a method counts with its class, which something must have named to make the value),
names in strings, and other packages, whose versions a record keeps.
"""

__all__ = ["Program", "package_program"]

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: A definition: module and name; the name ``*`` is a whole module.
Definition = tuple[str, str]
WHOLE = "*"


@dataclass(frozen=True, eq=False)
class Module:
    """Top-level names of a module: the statements that define each, and where imported ones come from."""

    tree: ast.Module
    defined: dict[str, list[ast.stmt]]
    imported: dict[str, Definition]


@dataclass(frozen=True, eq=False)
class Program:
    """A package on disk.

    Attributes:
        root: Folder of the package.
        name: Its name.
        ignored: Modules whose definitions do not count, with all below them: they keep numbers, and make none.
    """

    root: Path
    name: str
    ignored: tuple[str, ...] = ()
    _modules: dict[str, Module | None] = field(default_factory=dict, repr=False)
    _texts: dict[Definition, str] = field(default_factory=dict, repr=False)
    _needs: dict[Definition, tuple[Definition, ...]] = field(default_factory=dict, repr=False)

    def digest(self, *roots: str) -> str:
        """Return a hash of all definitions that the roots, such as ``"rdc.attack.pgd:pgd"``, depend on.

        Raises:
            ValueError: if there is no such definition.
        """
        lines = sorted(f"{name} {self.text((module, name))}" for module, name in self.closure(*roots))
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()

    def closure(self, *roots: str) -> list[Definition]:
        """Return all definitions that the roots depend on, themselves among them, sorted.

        Raises:
            ValueError: if there is no such definition.
        """
        todo, seen = [self.find(root) for root in roots], set[Definition]()
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += self.needs(one)
        return sorted(seen)

    def digest_source(self, source: str) -> str:
        """Return a hash of all definitions that a script depends on, without the script."""
        tree = ast.parse(source)
        namespace = Module(tree, {}, dict(self._imports(tree.body, "__main__")))
        found = (f"{module}:{name}" for module, name in self._references(tree, namespace, "__main__"))
        return self.digest(*dict.fromkeys(found))

    def find(self, root: str) -> Definition:
        """Return the definition behind ``"module:name"``, where it is written."""
        module, _, name = root.partition(":")
        found = self._resolve(module, name or WHOLE)
        if found is None:
            raise ValueError(f"there is no {root} in {self.name}")
        return found

    def text(self, definition: Definition) -> str:
        """Return the syntax of a definition, without docstrings and imports."""
        if definition not in self._texts:
            self._texts[definition] = "\n".join(dumped(bare(node)) for node in self._nodes(definition))
        return self._texts[definition]

    def needs(self, definition: Definition) -> tuple[Definition, ...]:
        """Return the definitions that a definition names."""
        if definition not in self._needs:
            module = self._module(definition[0])
            assert module is not None
            found = [d for node in self._nodes(definition) for d in self._references(node, module, definition[0])]
            self._needs[definition] = tuple(dict.fromkeys(d for d in found if not self._is_ignored(d[0])))
        return self._needs[definition]

    def _is_ignored(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.ignored)

    def _nodes(self, definition: Definition) -> list[ast.stmt]:
        module = self._module(definition[0])
        if module is None:
            return []
        if definition[1] == WHOLE:
            return module.tree.body
        return module.defined[definition[1]]

    def _module(self, name: str) -> Module | None:
        """Return a module of the package, or None."""
        if name not in self._modules:
            self._modules[name] = None
            path = self._path(name)
            if path is not None:
                tree = ast.parse(path.read_text(encoding="utf8"))
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                self._modules[name] = Module(tree, defined(tree.body), dict(self._imports(flat(tree.body), package)))
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        head, *rest = name.split(".")
        if head != self.name:
            return None
        base = self.root.joinpath(*rest)
        candidates = (base / "__init__.py", base.with_suffix(".py")) if rest else (base / "__init__.py",)
        return next((path for path in candidates if path.is_file()), None)

    def _imports(self, body: Iterable[ast.AST], package: str) -> Iterator[tuple[str, Definition]]:
        """Yield ``local name -> definition`` for the import statements among some nodes."""
        for node in body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.split(".")[0]
                    yield alias.asname or whole, (whole, WHOLE)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
                module = ".".join(filter(None, [above, node.module or ""]))
                for alias in node.names:
                    yield alias.asname or alias.name, (module, alias.name)

    def _resolve(self, module: str, name: str) -> Definition | None:
        """Return where a name of a module is defined, following re-exports; None outside the package."""
        for _ in range(20):
            found = self._module(module)
            if found is None:
                return None
            if name == WHOLE or name in found.defined:
                return module, name
            if name in found.imported:
                module, name = found.imported[name]
            elif self._module(f"{module}.{name}") is not None:
                module, name = f"{module}.{name}", WHOLE
            else:
                return None
        return None

    def _references(self, node: ast.AST, module: Module, where: str) -> Iterator[Definition]:
        """Yield the definitions that the names in a node stand for."""
        package = where if (path := self._path(where)) and path.name == "__init__.py" else where.rpartition(".")[0]
        local = {**module.imported, **dict(self._imports(ast.walk(node), package))}
        for name in names(node):
            head, *rest = name
            if head in local:
                found = self._attribute(local[head], rest)
            else:
                found = (where, head) if head in module.defined else None
            if found is not None:
                yield found

    def _attribute(self, target: Definition, rest: list[str]) -> Definition | None:
        """Return what ``name.a.b`` stands for: as much of the chain as leads through modules."""
        found = self._resolve(*target)
        for part in rest:
            if found is None or found[1] != WHOLE:
                break
            found = self._resolve(found[0], part) or found
        return found


def names(node: ast.AST) -> Iterator[list[str]]:
    """Yield each name that is read in a node, with the attributes behind it: ``["torch", "nn", "Module"]``."""
    todo = [node]
    while todo:
        one = todo.pop()
        chain: list[str] = []
        inner = one
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield [inner.id, *reversed(chain)]
        else:
            todo.extend(ast.iter_child_nodes(one))


def flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those inside ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from flat(child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node)


def defined(body: Iterable[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Return the statements that define each name: functions, classes and assignments."""
    found: dict[str, list[ast.stmt]] = {}
    for node in flat(body):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and part.id != "__all__":
                    found.setdefault(part.id, []).append(node)
    return found


def bare(node: ast.stmt) -> ast.stmt:
    """Return a copy of a statement without its docstrings and the imports inside it."""
    copy = ast.parse(ast.unparse(node)).body[0]
    for inner in ast.walk(copy):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:]
        for name, value in ast.iter_fields(inner):
            if isinstance(value, list):
                setattr(inner, name, [one for one in value if not isinstance(one, (ast.Import, ast.ImportFrom))])
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not inner.body:
            inner.body = [ast.Pass()]
    return copy


def dumped(node: ast.AST) -> str:
    """Return the syntax of a node, alike in all versions: 3.12 added type parameters, 3.13 leaves out what is empty."""
    if sys.version_info >= (3, 13):
        text = ast.dump(node, show_empty=True)
    else:
        text = ast.dump(node)
    return text.replace(", type_params=[]", "")


@functools.cache
def package_program() -> Program:
    """Return the program of this package, as it is on disk; what keeps records and talks to the terminal does not count."""
    root = Path(__file__).parents[1]
    return Program(root, root.name, ("rdc.runs", "rdc.cli", "rdc.experiments", "rdc.plots", "rdc.notebook"))
