"""Laws of the door: what a model returns is finite logits or an error, and neither model nor caller is changed by asking."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rdc.autograd import value_and_gradient
from rdc.door import Door, ask, entry, logits_of
from rdc.quantities import count, number
from rdc.rng import generator, randn, whole

X = draw((3, 1, 4, 4), dtype=torch.float32)
Y = torch.tensor([0, 1, 2])


class Says(nn.Module):
    """A model that returns what a function makes of the images."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        """What it says."""
        return self.answer(x)


def logits(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :3]


BAD = {
    "NaN": lambda x: logits(x) * float("nan"),
    "infinite": lambda x: logits(x).log() * torch.tensor([1.0, 0.0, 1.0]) - float("inf"),
    "shape": lambda x: x[:, :3],
    "class labels": lambda x: logits(x).argmax(dim=1),
    "int64": lambda x: logits(x).long(),
    "tuple of 2": lambda x: (logits(x), None),
    "entry 'logits'": lambda x: {"logits": logits(x)},
    "K = 1": lambda x: logits(x)[:, :1],
    "shape (2, 3)": lambda x: logits(x)[1:],
    "beyond the 2 classes": lambda x: logits(x)[:, :2],
}


def raiser(error: BaseException, device: str = "cpu") -> nn.Module:
    """A model with a buffer somewhere, which raises."""

    def answer(x: Tensor) -> object:
        raise error

    model = Says(answer)
    model.register_buffer("held", torch.zeros(1, device=device))
    return model


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AttributeError("no attribute 'head'"), "AttributeError: no attribute 'head'"),
        (KeyError("a\nb"), r"KeyError: 'a\nb'"),
        (TypeError("two\n lines"), "TypeError: two lines"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x'"),
    ],
)
def test_what_a_model_raises_is_said_in_one_line(error: Exception, says: str) -> None:
    for call in (ask, logits_of):
        with pytest.raises(RuntimeError) as caught:
            call(raiser(error), X, Y)
        assert str(caught.value) == f"the model raised {says}" and caught.value.__cause__ is error


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("images must lie in [0, 1]"),
        OSError("no file"),
        KeyboardInterrupt(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_speaks_for_itself_is_left_alone(error: BaseException, device: str) -> None:
    """Also where a part of the model is on another device, which is not what was wrong."""
    with pytest.raises(type(error)) as caught:
        logits_of(raiser(error, device), X)
    assert caught.value is error


@pytest.mark.parametrize(
    "text",
    [
        "Tensor on device meta is not on the expected device cpu!",
        "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same",
        "Placeholder storage has not been allocated on MPS device!",
    ],
)
def test_a_message_about_devices_is_replaced_where_they_differ(text: str) -> None:
    with pytest.raises(ValueError, match=r"the model \(meta\) is on another device than the images \(cpu\)"):
        logits_of(raiser(RuntimeError(text), "meta"), X)
    with pytest.raises(RuntimeError) as caught:
        logits_of(raiser(RuntimeError(text)), X)
    assert str(caught.value) == text


@pytest.mark.parametrize("word", BAD)
def test_what_is_no_logits_is_named(word: str) -> None:
    for call in (ask, logits_of):
        with pytest.raises(ValueError, match=word.replace("(", r"\(").replace(")", r"\)")) as caught:
            call(Says(BAD[word]), X, Y)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_type_is_float32_or_float64(dtype: torch.dtype) -> None:
    found = ask(Says(lambda x: logits(x).to(dtype)), X)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def network() -> nn.Sequential:
    g = generator("door")
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3))
    net[3].weight.data = torch.randn(3, 16, generator=g)
    return net


@pytest.mark.parametrize("modes", [(True, True, True, True), (False, True, False, True), (False,) * 4])
def test_the_model_is_asked_in_evaluation_mode_and_is_as_it_was(modes: tuple[bool, ...]) -> None:
    net = network()
    for layer, mode in zip(net, modes, strict=True):
        layer.training = mode
    before, wanted = copy.deepcopy(net.state_dict()), copy.deepcopy(net).eval()(X)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert torch.equal(ask(net, X), wanted)
    assert bool(told) == any(modes[:2])
    assert tuple(layer.training for layer in net) == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_model_that_moves_its_statistics_is_found() -> None:
    net = network().eval()

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            self.net.train()
            return self.net(x)

    with pytest.raises(ValueError, match=r"running_mean"):
        ask(Stubborn(), X)
    assert not net.training


def test_the_caller_keeps_its_tensor_and_its_graph() -> None:
    def spoil(x: Tensor) -> Tensor:
        x -= 0.5
        return logits(x)

    x = X.clone().requires_grad_()
    found = logits_of(Says(spoil), x)
    assert torch.equal(x, X) and torch.autograd.grad(found.sum(), x)[0].sum() == 9
    assert not ask(Says(spoil), x).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_mode_of_the_caller_does_not_matter(mode: Callable) -> None:
    @entry
    def slope(x: Tensor) -> Tensor:
        point = x.requires_grad_()
        with Door(network().eval()) as door:
            return torch.autograd.grad(door(point).sum(), point)[0]

    wanted = slope(X)
    with mode():
        x = X * 1  # under inference_mode an inference tensor
        found = slope(x)
    assert torch.equal(found, wanted) and not found.is_inference() and not x.requires_grad


def test_an_entry_computes_in_full_float32_and_leaves_the_flags_as_they_were(monkeypatch) -> None:
    """By default a GPU multiplies in TF32, which spoils gradients of gradients."""

    def flags() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    @entry
    def look(x: Tensor, fails: bool = False) -> tuple[bool, bool]:
        if fails:
            raise ValueError("a failure")
        return flags()

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = flags()
    assert look(X) == (False, False)
    with pytest.raises(ValueError, match="a failure"):
        look(X, fails=True)
    assert flags() == before and before[0]


def test_a_gradient_is_taken_in_full_float32(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    def objective(x: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return x.square().flatten(1).sum(1)

    value_and_gradient(objective, X)
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_probabilities_are_told() -> None:
    with pytest.warns(UserWarning, match="probabilities"):
        logits_of(Says(lambda x: logits(x).softmax(dim=1)), X)
    ask(Says(lambda x: logits(x).softmax(dim=1)), X)  # a verdict does not mind


def test_the_same_in_parts() -> None:
    net = network().eval()
    torch.testing.assert_close(ask(net, X, Y, batch=2), ask(net, X, Y))


@given(st.integers(-(2**40), 2**40))
def test_a_seed_is_its_value_whatever_its_type(seed: int) -> None:
    wanted = randn((2,), seed, "x")
    for same in (np.int64(seed), torch.tensor(seed), torch.tensor([seed])[0]):
        assert torch.equal(randn((2,), same, "x"), wanted)
    for other in (float(seed), torch.tensor(float(seed)), np.float32(1), True, np.bool_(True), torch.tensor(True), None, (1,)):
        with pytest.raises(ValueError, match="whole number"):
            generator(other)


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_numbers_and_fractions(a: int, b: int) -> None:
    assert number(f"{a}/{b}", "eps") == a / b == number(np.float64(a / b), "eps")
    assert count(str(a + 1), "n") == count(np.int32(a + 1), "n") == a + 1 == whole(a + 1)


@pytest.mark.parametrize("bad", ["", "8/0", "nan", float("nan"), float("inf"), None, True, "1e", [1]])
def test_what_is_no_number_is_named(bad: object) -> None:
    with pytest.raises(ValueError, match="eps"):
        number(bad, "eps", low=0)
    with pytest.raises(ValueError, match="steps"):
        count(bad, "steps")


def test_ranges_are_kept() -> None:
    for value, limits in [(-1, {"low": 0}), (0, {"low": 0, "strict": True}), (2, {"high": 1, "low": 0})]:
        with pytest.raises(ValueError, match="eps must"):
            number(value, "eps", **limits)
    with pytest.raises(ValueError, match="at least 1"):
        count(0, "steps")
