"""What a pickle would cost to read, found from its opcodes before: a few hundred bytes can ask for gigabytes or hours.

An abstract machine follows the opcodes with a node for every object: nothing is made, and nothing is called. Refused are
positions of the memo beyond those in use, tensors with more entries than the file has bytes (a stride of 0 repeats one),
containers that hold each other so often that they cannot be walked through, names of classes that are no text, and forms that the
writers of published files do not use.
"""

__all__ = ["check_cost"]

import math
import pickletools
from pathlib import Path
from typing import Any

from rdc.denoise.checkpoints import CheckpointError, one_line

#: Objects met on the way through all that hangs together, shared ones each time: published files have some ten thousand.
MOST = 5_000_000
REBUILD, PERSISTENT = ("torch._utils", "_rebuild_tensor_v2"), ("torch_utils.persistence", "_reconstruct_persistent_obj")
REFUSED = ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID")
ADDING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class Costly(ValueError):
    """A pickle would take more time or memory than fits its size, or has a form that published files do not have."""


class Node:
    """An object of a pickle: a number or a text, or what it is made of."""

    __slots__ = ("kind", "parts", "value")

    def __init__(self, kind: str = "", parts: "list[Node] | None" = None, value: Any = None) -> None:
        self.kind, self.parts, self.value = kind, parts or [], value


class Machine:
    """Follows the opcodes of a pickle of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size, self.entries, self.steps = size, 0, 0
        self.stack: list[Node | None] = []  # None is a mark
        self.made: list[Node] = []
        self.memo: dict[int, Node] = {}

    def step(self, opcode: Any, argument: Any) -> None:
        """Follow one opcode."""
        self.steps += 1
        name = opcode.name
        if name in REFUSED:
            raise Costly(f"it has the opcode {name}")
        if name == "MARK":
            self.stack.append(None)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.put(len(self.memo) if name == "MEMOIZE" else int(argument))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "DUP":
            self.stack.append(self.top())
        else:
            self.make(name, self.popped(opcode), bool(opcode.stack_after), argument)

    def put(self, index: int) -> None:
        """Keep the uppermost object."""
        if index > self.steps:
            raise Costly(f"it asks for {index:,} places in the memo")
        self.memo[index] = self.top()

    def top(self) -> Node:
        """The uppermost object."""
        found = self.stack[-1]
        if found is None:
            raise Costly("a mark is where an object should be")
        return found

    def popped(self, opcode: Any) -> list[Node]:
        """Take what an opcode consumes off the stack, lowest first."""
        before = [each.name for each in opcode.stack_before]
        found: list[Node | None] = []
        if "mark" in before:
            while (one := self.stack.pop()) is not None:
                found.append(one)
            before = before[: before.index("mark")]
        found += [self.stack.pop() for _ in before]
        return [self.known(one) for one in reversed(found)]

    def known(self, one: Node | None) -> Node:
        """An object that is no mark."""
        if one is None:
            raise Costly("a mark is where an object should be")
        return one

    def make(self, name: str, parts: list[Node], leaves: bool, argument: Any) -> None:
        """Put on the stack what an opcode makes."""
        if name in ADDING:
            parts[0].parts += parts[1:]
            self.stack.append(parts[0])
            return
        value = argument if type(argument) in (int, str) else None
        if name in ("GLOBAL", "STACK_GLOBAL"):
            value = tuple(argument.split(" ", 1) if name == "GLOBAL" else [part.value for part in parts])
            if not all(isinstance(part, str) for part in value):
                raise Costly("it asks for a name that is no text")
        elif name == "REDUCE" and parts[0].value == REBUILD:
            self.check_tensor(parts[1])
        elif name == "REDUCE" and parts[0].value == PERSISTENT:
            check_class(parts[1])
        if leaves:
            kind = "tuple" if "TUPLE" in name else "text" if "UNICODE" in name else name
            self.made.append(Node(kind, parts, value))
            self.stack.append(self.made[-1])

    def check_tensor(self, given: Node) -> None:
        """Check the arguments of a tensor: memory, offset, size and strides."""
        size = given.parts[2] if given.kind == "tuple" and len(given.parts) > 2 else Node()
        sides = [part.value for part in size.parts]
        if size.kind != "tuple" or any(type(side) is not int for side in sides):
            raise Costly("it has a tensor without a size")
        self.entries += max(0, math.prod(sides))
        if self.entries > self.size:
            raise Costly(f"its tensors have {self.entries:,} entries, more than the file has bytes")


def check_class(given: Node) -> None:
    """Check the arguments of a module of EDM's own: one dict, in which the name of the class is text."""
    known = given.parts[0] if given.kind == "tuple" and len(given.parts) == 1 else Node()
    pairs = zip(known.parts[::2], known.parts[1::2], strict=False)
    if known.kind not in ("EMPTY_DICT", "DICT") or any(k.value == "class_name" and v.kind != "text" for k, v in pairs):
        raise Costly("it has a module whose class has no name")


def check_walk(nodes: list[Node]) -> None:
    """Raise if the objects under one are met too often on the way through all of them, or one holds itself."""
    cost, open_ones = dict[int, int](), set[int]()
    todo = [(node, False) for node in nodes if node.parts]
    while todo:
        node, done = todo.pop()
        if done:
            open_ones.discard(id(node))
            cost[id(node)] = 1 + sum(cost.get(id(part), 1) for part in node.parts)
            if cost[id(node)] > MOST:
                raise Costly("its containers hold each other so often that they cannot be walked through")
        elif id(node) not in cost:
            if id(node) in open_ones:
                raise Costly("one of its containers holds itself")
            open_ones.add(id(node))
            todo.append((node, True))
            todo += [(part, False) for part in node.parts if part.parts and id(part) not in cost]


def check_cost(path: Path) -> None:
    """Check that a published ``.pkl`` file can be read in time and memory that fit its size; nothing of it is run.

    Raises:
        CheckpointError: if it cannot, or is no whole pickle, with one line.
    """
    data = path.read_bytes()
    machine = Machine(len(data))
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode, argument)
        check_walk(machine.made)
    except Costly as error:
        raise CheckpointError(f"{path} is refused, and nothing of it was run: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of EDM: {type(error).__name__}, {one_line(error)}"[:400]) from error
