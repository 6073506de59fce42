"""The budget of an attack: what is a number is taken as one, whatever its type, and no effort is an error."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdc.attack.budget import budget, identities

COUNTS = {"steps": 1, "restarts": 1, "eot": 1, "queries": 1, "targets": 0}


@given(st.sampled_from(list(COUNTS)), st.integers(-3, 9), st.sampled_from([int, np.int64, np.uint8, torch.tensor, str]))
def test_an_effort_is_counted_whatever_its_type_and_none_is_an_error(name, value, kind):
    least = COUNTS[name]
    given_value = kind(max(value, 0) if kind is np.uint8 else value)
    if int(given_value) >= least:
        found = getattr(budget(**{name: given_value}), name)
        assert found == int(given_value) and type(found) is int
    else:
        with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {int(given_value)}$"):
            budget(**{name: given_value})


@given(st.sampled_from(list(COUNTS)), st.sampled_from([1.0, 2.5, True, None, "many", "", torch.ones(2), np.float64(1)]))
def test_what_is_no_count_is_an_error(name, value):
    with pytest.raises(ValueError, match=name):
        budget(**{name: value})


@given(st.integers(0, 255), st.integers(1, 255))
def test_a_radius_is_the_same_as_a_number_and_as_text(a, b):
    exact = float(Fraction(a, b))
    for value in (f"{a}/{b}", exact, np.float64(exact), torch.tensor(exact, dtype=torch.float64), repr(exact)):
        assert budget("L2", value).eps == exact
    assert budget("L2", np.float32(exact)).eps == float(np.float32(exact))


@pytest.mark.parametrize("name", ["eps", "step_size", "scale"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "eight", "1/0", True, [1.0]])
def test_what_is_no_size_is_an_error(name, value):
    with pytest.raises(ValueError, match=name) as error:
        budget(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["step_size", "scale"])
def test_a_step_and_a_scale_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        budget(**{name: 0})
    assert getattr(budget(**{name: "1/4"}), name) == 0.25
    assert budget(scale="auto").scale == "auto" and budget().step_size is None


def test_norms_are_named_and_bytes_are_noticed():
    with pytest.raises(ValueError, match="unknown norm 'L1'; there are Linf, L2"):
        budget("L1", 1.0)
    assert budget("L1", 12, norms=("L1",)).norm == "L1"
    with pytest.warns(UserWarning, match="did you mean 8/255"):
        budget("Linf", 8)
    assert budget("L2", 8).eps == 8


def test_identities_are_positions_unless_they_are_given():
    assert identities(None, 3).tolist() == [0, 1, 2] and identities(torch.tensor([7, 5]), 2).tolist() == [7, 5]
    with pytest.raises(ValueError, match=r"one number for each of 3 images, got shape \(2,\)"):
        identities(torch.tensor([7, 5]), 3)
