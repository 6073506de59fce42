"""The run-time type checker of the tests finds what it is for, also in functions that are defined again and again."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typechecker import typed

WRONG = "violates type hint"


@typed
def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """A product, or with one row the wrong thing."""
    return a if len(a) == 1 else a @ b


def test_axes_are_those_of_one_call():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert product(torch.ones(5, 6), torch.ones(6, 7)).shape == (5, 7)
    for a, b in (((2, 3), (4, 3)), ((2, 3), (3,)), ((1, 3), (3, 4))):
        with pytest.raises(TypeError, match=WRONG):
            product(torch.ones(a), torch.ones(b))
    with pytest.raises(TypeError, match=WRONG):
        product(torch.ones(2, 3).int(), torch.ones(3, 4))


def test_an_inner_function_is_its_own_and_is_checked():
    def made(add: float) -> Any:
        @typed
        def inner(x: float, *, times: int = 2) -> int:
            return round(times * x + add, 9) if add else x

        return inner

    one, two, none = made(1), made(2), made(0)
    assert (one(2), two(2, times=3), two.__wrapped__(1)) == (5, 8, 4) and one.__name__ == two.__name__ == "inner"
    for call in (lambda: two("2"), lambda: one(2, times=0.5), lambda: one(0.5, times=1), lambda: none(0.5)):
        with pytest.raises(TypeError, match=WRONG):
            call()


def test_a_dataclass_is_checked_and_a_plain_function_is_left_alone():
    @typed
    @dataclass(frozen=True)
    class Point:
        x: float
        rows: Float[Tensor, "n n"]

    @typed
    @dataclass(frozen=True)
    class Words:
        x: str
        rows: str

    assert Point(1, torch.eye(2)).x == 1 and Words("a", "b").x == "a"
    for values in (("1", torch.eye(2)), (1.0, torch.ones(2, 3))):
        with pytest.raises(TypeError, match=WRONG):
            Point(*values)

    def plain(x):
        return x

    assert typed(plain) is plain
