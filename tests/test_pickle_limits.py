"""Pickles that ask for much more than they are: refused in one line, fast, and without the memory that they ask for."""

import pickle
import struct
import time
import tracemalloc
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdc.denoise.checkpoints import CheckpointError
from rdc.denoise.pickle_limits import check_cost

PERSISTENT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def stretched(entries, stride=0):
    """A tensor of ``entries`` numbers, all of them the same two."""
    given = torch.zeros(2).untyped_storage().tolist(), 0, (entries,), (stride,), False, OrderedDict()
    return pickle.dumps(Call(torch._utils._rebuild_tensor_v2, *given))


def doubled(depth, make):
    """Each object holds the one before twice; ``make`` is the opcode of a pair."""
    first = b"\x80\x04)q\x00"
    return first + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + make + b"q" + bytes([i + 1]) for i in range(depth))


def nested_name():
    """A module of EDM whose class is called a list of lists of lists."""
    name = ["x"]
    for _ in range(7):
        name = [name] * 10
    return b"\x80\x04" + PERSISTENT + b"(" + pickle.dumps({"class_name": name, "state": {}}, protocol=4)[2:-1] + b"tR."


COSTLY = {
    "stride 0": (stretched(500_000_000), "its tensors have 500,000,000 entries, more than the file has bytes"),
    "memo": (b"\x80\x02]r" + struct.pack("<I", 1_000_000_000) + b".", "it asks for 1,000,000,000 places in the memo"),
    "tuples of tuples": (doubled(40, b"\x86") + b"}h\x28Ns.", "hold each other so often"),
    "tuples of tuples, twice the top": (b"\x80\x04)" + b"2\x86" * 40 + b"}q\x00N\x86.", "hold each other so often"),
    "a list in itself": (b"\x80\x04]q\x00h\x00a.", "holds itself"),
    "a name that is a list": (nested_name(), "a module whose class has no name"),
    "old calls": (b"(ios\nsystem\n.", "it has the opcode INST"),
}


@pytest.mark.parametrize("case", COSTLY)
def test_a_costly_pickle_is_refused_at_once(tmp_path, case):
    data, says = COSTLY[case]
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError, match=rf"x\.pkl is refused, and nothing of it was run: .*{says}") as error:
        check_cost(path)
    assert time.process_time() - began < 2 and tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_what_is_within_the_limits_is_taken(tmp_path):
    path, shared = tmp_path / "x.pkl", ("a", [1, 2, 3])
    for value in ({"a": [shared] * 50, ("b", 1): OrderedDict(c=torch.zeros(300))}, doubled(15, b"\x86") + b"."):
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=4))
        check_cost(path)


@given(st.recursive(st.integers() | st.text() | st.none() | st.floats() | st.binary(), lambda x: st.lists(x) | st.tuples(x, x)),
       st.integers(2, 5))  # fmt: skip
def test_a_plain_value_is_taken_in_every_protocol(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("limits") / "x.pkl"
    path.write_bytes(pickle.dumps({"value": value, "again": [value, value]}, protocol=protocol))
    check_cost(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("limits") / "x.pkl"
    path.write_bytes(data)
    try:
        check_cost(path)
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
