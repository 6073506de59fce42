"""A model of one's own on the command line: what is loaded, and one line for each mistake."""

import sys

import pytest
import torch
from torch import nn

from rdc.models import build
from rdc.models.user import load_user_model, names_user_model

CPU = torch.device("cpu")
SOURCE = """
from torch import nn

class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

made = Model().train()

def make():
    return Model()

def number():
    return 7

def wants(width):
    return Model()

def breaks():
    raise KeyError("weights are missing")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module, as the current one."""
    (tmp_path / "defence_of_my_own.py").write_text(SOURCE)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "inner.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("defence_of_my_own", "own_package", "own_package.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "name", ["defence_of_my_own:make", "defence_of_my_own:Model", "defence_of_my_own:made", "own_package.inner:make"]
)
def test_a_function_a_class_or_a_module_is_loaded_from_the_current_folder(folder, name):
    model = build(name, "digits")
    assert isinstance(model, nn.Module) and not model.training
    assert model(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:make", "ModuleNotFoundError"),
        ("defence_of_my_own:nothing", "AttributeError"),
        ("defence_of_my_own:number", "gives int, no nn.Module"),
        ("defence_of_my_own:wants", "TypeError"),
        ("defence_of_my_own:breaks", "weights are missing"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_give(folder, name, says):
    with pytest.raises(ValueError, match=says) as caught:
        load_user_model(name, CPU)
    assert "\n" not in str(caught.value) and "module:function" in str(caught.value) and name in str(caught.value)


def test_fresh_noise_is_not_ours_to_give(folder):
    with pytest.raises(ValueError, match="its own noise"):
        build("defence_of_my_own:make", "digits", noise="fresh")


def test_only_a_module_and_an_object_name_a_model():
    assert names_user_model("a.b:c.d") and names_user_model("a:b")
    assert not any(map(names_user_model, ("optimal", "a/b.safetensors", "C:\\weights", "a:", ":b", "a:b:c", "fashion-mini")))
