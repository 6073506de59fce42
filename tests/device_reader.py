"""Where the tensors of a chapter lie, read from the source of its cells: what a GPU would refuse, without one.

A walk through the cells in order that keeps for each name where the tensors behind it lie: on the CPU, on the chapter's
``device``, or nowhere as far as the source tells (numbers, words). Tensors made without ``device`` or ``like`` and the images
of ``load`` are on the CPU. Three things are faults: an operation or a call in which the two meet (indices of the CPU may), a
tensor of the device in numpy or in a plot, and a device by its name (but ``"cpu"`` may be said). The functions of a chapter
are walked through at each call with what they are given. A function that is given a tensor must make its own ones where that
one is; one that the chapter does not call itself, but hands on, counts as given tensors of the device.
"""

import ast
from collections.abc import Sequence
from pathlib import Path

import jupytext

Place = frozenset[str]
CPU, DEVICE, NOWHERE = frozenset({"cpu"}), frozenset({"device"}), frozenset[str]()
MAKERS = {
    *("zeros", "ones", "full", "empty", "eye", "tensor", "as_tensor", "arange", "linspace", "logspace", "from_numpy"),
    *("rand", "randn", "randint", "randperm", "normal", "scalar_tensor", "tril_indices", "triu_indices"),
}  # fmt: skip
#: What gives numbers or words.
NUMBERS = {
    *("float", "int", "len", "bool", "str", "print", "round", "repr", "range", "isinstance", "glue", "claim"),
    *("alignment_table", "bootstrap", "frechet_distance", "item", "tolist", "numel", "size", "dim", "fast_dtype"),
}  # fmt: skip
ASKED = {"accuracy", "robust_accuracy", "agreement"}  # numbers as well, but model and images lie in one place
ABOUT = {"shape", "dtype", "ndim", "classes", "num_classes", "correct", "value"}  # attributes that are no tensors
DRAWN = {
    *("plot", "loglog", "semilogx", "semilogy", "errorbar", "imshow", "hist", "bar", "barh", "scatter", "fill_between"),
    *("quiver", "axhline", "axvline", "step", "contour", "contourf", "pcolormesh", "boxplot", "violinplot"),
}  # fmt: skip
FILLS = {"append", "extend", "setdefault", "update"}
#: Containers and what passes them on: parts in several places stay apart.
MIXES = FILLS | {"zip", "enumerate", "list", "tuple", "dict", "sorted", "partial", "get", "image_grid"}
#: On the device if any argument is: the package moves the others, or wants them on the CPU.
MOVES = {"random_start", "autoattack", "Levels", "DiffusionClassifier", "OptimalClassifier"}
LOADS = {"load", "load_denoiser", "load_classifier", "train_classifier", "train_denoiser", "distil"}  # the same, else on the CPU


def code(path: Path) -> list[str]:
    """The code cells of a chapter."""
    return [c.source for c in jupytext.read(path).cells if c.cell_type == "code"]


def device_faults(cells: Sequence[str]) -> list[str]:
    """What a GPU would refuse in cells that run one after the other, one line each."""
    trees = [ast.parse(cell) for cell in cells]
    reader = Reader({called(n) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)})
    for tree in trees:
        reader.visit(tree)
    return list(reader.faults)


def called(node: ast.Call) -> str:
    """The last part of the name of what a call calls."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def has_tensor(annotation: ast.expr | None) -> bool:
    return annotation is not None and "Tensor" in ast.unparse(annotation)


class Reader(ast.NodeVisitor):
    """The walk; ``faults`` in the order in which they were found."""

    def __init__(self, calls: set[str]) -> None:
        self.calls = calls  # what the chapter calls anywhere
        self.names: dict[str, Place] = {"device": DEVICE}
        self.attributes: dict[str, Place] = {}
        self.tables: set[str] = set()  # dictionaries: a loop over one gives its keys
        self.functions: dict[str, ast.FunctionDef] = {}
        self.open: set[str] = set()  # functions in the middle of a walk
        self.returned = NOWHERE
        self.faults: dict[str, None] = {}

    def fault(self, node: ast.AST, what: str) -> None:
        self.faults[f"{what}: {ast.unparse(node)[:150]}"] = None

    # Where an expression lies

    def where(self, node: ast.AST | None) -> Place:
        if node is None or isinstance(node, ast.Constant):
            return NOWHERE
        return getattr(self, f"of_{type(node).__name__.lower()}", self.of_parts)(node)

    def of_parts(self, node: ast.AST) -> Place:
        """A list or a table lies wherever its parts lie."""
        return self.of_all(list(ast.iter_child_nodes(node)))

    def of_all(self, nodes: Sequence[ast.AST]) -> Place:
        return NOWHERE.union(*map(self.where, nodes))

    def of_name(self, node: ast.Name) -> Place:
        return self.names.get(node.id, NOWHERE)

    def of_joinedstr(self, node: ast.JoinedStr) -> Place:
        self.of_parts(node)
        return NOWHERE

    def together(self, node: ast.AST, parts: Sequence[ast.AST]) -> Place:
        """An operation, whose parts lie in one place."""
        found = [self.where(part) for part in parts]
        if CPU in found and DEVICE in found:
            self.fault(node, "a tensor of the CPU meets the device")
            return DEVICE
        return NOWHERE.union(*found)

    def of_binop(self, node: ast.BinOp) -> Place:
        return self.together(node, [node.left, node.right])

    def of_compare(self, node: ast.Compare) -> Place:
        return self.together(node, [node.left, *node.comparators])

    def of_attribute(self, node: ast.Attribute) -> Place:
        found = self.where(node.value)
        return NOWHERE if node.attr in ABOUT else self.attributes.get(node.attr, found)

    def of_subscript(self, node: ast.Subscript) -> Place:
        value, index = self.where(node.value), self.where(node.slice)
        if value == CPU and index == DEVICE and ast.unparse(node.value) not in self.tables:
            self.fault(node, "an index of the device into the CPU")
        return value

    def of_ifexp(self, node: ast.IfExp) -> Place:
        self.where(node.test)
        return self.where(node.body) | self.where(node.orelse)

    def of_lambda(self, node: ast.Lambda) -> Place:
        before = self.names
        self.names = before | {a.arg: NOWHERE for a in node.args.args}
        found = self.where(node.body)
        self.names = before
        return found

    def of_listcomp(self, node: ast.ListComp | ast.DictComp) -> Place:
        before = self.names.copy()
        for part in node.generators:
            self.bind(part.target, part.iter, looped=True)
            self.of_all(part.ifs)
        if isinstance(node, ast.DictComp):
            self.where(node.key)
        found = self.where(node.value if isinstance(node, ast.DictComp) else node.elt)
        self.names = before
        return found

    of_generatorexp = of_setcomp = of_dictcomp = of_listcomp

    def of_dict(self, node: ast.Dict) -> Place:
        return self.of_all(node.values)

    def of_call(self, node: ast.Call) -> Place:
        name, given = called(node), [*node.args, *(k.value for k in node.keywords)]
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        named = {k.arg: k.value for k in node.keywords}
        module = ast.unparse(owner) if isinstance(owner, ast.Name) else ""
        if name == "cuda" and module != "torch" or "cuda" in [a.value for a in given if isinstance(a, ast.Constant)]:
            self.fault(node, "a device by its name")
        if module == "torch" and name in MAKERS or owner is None and name == "randn":
            return self.of_maker(node, named)
        inside = self.where(owner)
        if module in ("np", "norm") or owner is not None and name in DRAWN:
            drawn = node.args + [v for k, v in named.items() if k in ("yerr", "xerr", "height")]
            if any(DEVICE <= self.where(a) for a in drawn):
                self.fault(node, "numpy or a plot of a tensor of the device")
            return NOWHERE
        if owner is not None and name in ("to", "cpu"):
            home = name == "cpu" or any(isinstance(a, ast.Constant) and a.value == "cpu" for a in given)
            return CPU if home else self.of_all(given) or inside
        if owner is not None and name == "numpy":
            if DEVICE <= inside:
                self.fault(node, "numpy of a tensor of the device")
            return NOWHERE
        if name in self.functions and owner is None:
            return self.of_own(node)
        if name in NUMBERS:
            self.of_all(given)
            return NOWHERE
        if name in ASKED:
            self.together(node, given)
            return NOWHERE
        if owner is None and name in MOVES | LOADS:
            found = self.of_all(given)
            return DEVICE if DEVICE <= found else CPU if name in LOADS else found
        if name in MIXES:
            found = inside | self.of_all(given[name in ("get", "setdefault") :])
            if owner is not None and name in FILLS:
                self.keep(owner, found)
            return found
        if module == "torch":  # of a list of tensors
            given = [e for a in given for e in (a.elts if isinstance(a, (ast.List, ast.Tuple)) else [a])]
        return self.together(node, [node.func if owner is None else owner, *given])

    def of_maker(self, node: ast.Call, named: dict[str | None, ast.expr]) -> Place:
        """A new tensor lies where ``device`` or ``like`` says; one number may meet any tensor."""
        place = named.get("device", named.get("like"))
        if isinstance(place, ast.Constant):
            return CPU
        if place is not None:
            return self.where(place)
        if called(node) in ("tensor", "as_tensor") and not isinstance(node.args[0], (ast.List, ast.ListComp, ast.Tuple)):
            return self.where(node.args[0])
        return CPU

    def of_own(self, node: ast.Call) -> Place:
        """A function of the chapter, with what it is given here."""
        function = self.functions[called(node)]
        names = [a.arg for a in function.args.args]
        given = {n: self.where(a) for n, a in zip(names, node.args, strict=False)}
        given |= {k.arg: self.where(k.value) for k in node.keywords if k.arg}
        found = self.through(function, {n: NOWHERE for n in names} | given)
        plain = function.returns is not None and ast.unparse(function.returns) in ("float", "int", "str", "bool")
        return NOWHERE if plain else found

    def through(self, function: ast.FunctionDef, given: dict[str, Place], hidden: bool = False) -> Place:
        """Where a function's result lies; without what the chapter has on the CPU if that is ``hidden``."""
        if function.name in self.open:
            return NOWHERE
        before, outer = self.names, self.returned
        self.open.add(function.name)
        self.names = {k: v for k, v in before.items() if not (hidden and v == CPU)} | given
        self.returned = NOWHERE
        for statement in function.body:
            self.visit(statement)
        found, self.names, self.returned = self.returned, before, outer
        self.open.remove(function.name)
        return found

    # Statements

    def bind(self, target: ast.expr, value: ast.expr | None, looped: bool = False) -> None:
        """What an assignment or a loop leaves behind the names of its target."""
        if isinstance(target, ast.Tuple) and (parts := self.parts_of(value, len(target.elts), looped)):
            for one, part in zip(target.elts, parts, strict=True):
                self.bind(one, part, looped and isinstance(value, ast.Call) and called(value) != "items")
            return
        keys = looped and value is not None and ast.unparse(value) in self.tables
        self.put(target, NOWHERE if keys else self.where(value))

    @staticmethod
    def parts_of(value: ast.expr | None, count: int, looped: bool) -> Sequence[ast.expr]:
        """What each of ``count`` names is made from, where the source tells them apart."""
        parts: Sequence[ast.expr] = []
        if isinstance(value, ast.Tuple) and not looped:
            parts = value.elts
        elif isinstance(value, ast.Tuple):  # for name, v in (("a", a), ("b", b))
            rows = [row.elts for row in value.elts if isinstance(row, ast.Tuple) and len(row.elts) == count]
            parts = [ast.List(list(column)) for column in zip(*rows, strict=True)]
        elif isinstance(value, ast.Call) and called(value) in ("zip", "enumerate"):
            parts = value.args if called(value) == "zip" else [ast.Constant(0), *value.args]
        elif isinstance(value, ast.Call) and called(value) == "items" and isinstance(value.func, ast.Attribute):
            parts = [ast.Constant(""), value.func.value]
        return parts if len(parts) == count else []

    def put(self, target: ast.expr, found: Place) -> None:
        if isinstance(target, (ast.Subscript, ast.Attribute)):
            self.keep(target, found)
            return
        self.names |= {n.id: found for n in ast.walk(target) if isinstance(n, ast.Name) and n.id != "device"}

    def keep(self, target: ast.expr, found: Place) -> None:
        """Add to what a container or an attribute holds."""
        while isinstance(target, ast.Subscript) or isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute):
            target = target.value if isinstance(target, ast.Subscript) else target.func.value
        if isinstance(target, ast.Attribute):
            self.attributes[target.attr] = self.attributes.get(target.attr, NOWHERE) | found
        elif isinstance(target, ast.Name):
            self.names[target.id] = self.names.get(target.id, NOWHERE) | found

    def visit_Assign(self, node: ast.Assign) -> None:
        table = any(isinstance(n, (ast.Dict, ast.DictComp)) for n in (node.value, getattr(node.value, "left", None)))
        for target in node.targets:
            self.tables |= {ast.unparse(target)} if table else set()
            self.bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.tables |= {ast.unparse(node.target)} if ast.unparse(node.annotation).startswith("dict") else set()
        self.bind(node.target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.put(node.target, self.where(ast.BinOp(node.target, node.op, node.value)))

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, node.iter, looped=True)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_Return(self, node: ast.Return) -> None:
        self.returned |= self.where(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """As if it were given tensors of the device."""
        self.names.pop(node.name, None)
        if [a.arg for a in node.args.args[:1]] != ["self"]:
            self.functions[node.name] = node
        arguments = [*node.args.args, *node.args.kwonlyargs]
        given = {a.arg: DEVICE if has_tensor(a.annotation) else NOWHERE for a in arguments}
        self.through(node, given, hidden=node.name in self.calls)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.expr):
            self.where(node)
        else:
            super().generic_visit(node)
