"""The wrapped classifier: the same answers on a scale that other libraries can attack."""

import pytest
import torch
from helpers import Linear, draw
from torch import Tensor, nn

from rdc.attack import pgd
from rdc.data import load
from rdc.door import ask
from rdc.evaluate import wrap


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_the_same_order_on_a_scale_that_a_softmax_can_see(factor: float) -> None:
    inner, x = Linear(factor * draw((5, 1, 3, 3), 1)), draw((7, 1, 3, 3), 2)
    found, plain = wrap(inner, batch=3)(x), inner(x)
    assert found.dtype == torch.float32 and torch.equal(found.argsort(dim=1), plain.argsort(dim=1))
    top = found.topk(3, dim=1).values
    torch.testing.assert_close(top[:, 0] - top[:, 2], torch.full((7,), 10.0))
    torch.testing.assert_close(found, wrap(Linear(inner.weight / factor))(x), rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_logits_over_the_spread() -> None:
    inner, x = Linear(draw((4, 1, 2, 2), 3)), draw((2, 1, 2, 2), 4).requires_grad_()
    plain = inner(x)
    spread = (plain.topk(3, dim=1).values[:, [0]] - plain.topk(3, dim=1).values[:, [2]]).detach()
    (wanted,) = torch.autograd.grad((10 * (plain[:, 1] - plain[:, 0]) / spread[:, 0]).sum(), x)
    found = wrap(inner)(x)
    torch.testing.assert_close(torch.autograd.grad((found[:, 1] - found[:, 0]).sum(), x)[0], wanted, rtol=1e-5, atol=1e-6)


def test_rounding_is_forgiven_and_another_range_is_not() -> None:
    model, x = wrap(Linear(draw((4, 1, 2, 2), 3))), torch.tensor([-5e-7, 1 + 5e-7, 0.5, 0.0]).reshape(1, 1, 2, 2)
    assert torch.equal(model(x), model(x.clamp(0, 1)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        model(2 * x - 1)


def test_a_model_in_training_mode_is_asked_in_evaluation_mode() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    model, x = wrap(net), draw((2, 1, 2, 2), dtype=torch.float32)
    net[1].train()
    with pytest.warns(UserWarning, match="Dropout"):
        first = model(x)
    with pytest.warns(UserWarning, match="Dropout"):
        assert torch.equal(first, model(x))


def broken(model: nn.Module, x: Tensor, y: Tensor) -> int:
    return int((ask(model, x).argmax(dim=1) != y).sum())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SciPy, when foolbox is imported
def test_foolbox_breaks_what_ours_breaks() -> None:
    """Its default projected gradient descent moves nothing on logits in nats; on the wrapped model it is an attack."""
    foolbox = pytest.importorskip("foolbox")
    train, test = load("digits", "train"), load("digits")
    means = torch.stack([train.x[train.y == k].mean(dim=0) for k in range(10)])
    model = Linear(1e4 * means, -5e3 * ((means - 0.5) ** 2).flatten(1).sum(dim=1)).eval()  # nearest mean, in very large nats
    right = ask(model, test.x).argmax(dim=1) == test.y
    x, y = test.x[right][:40], test.y[right][:40]
    attack, eps = foolbox.attacks.LinfPGD(steps=40), 0.2
    counts = []
    for target in (model, wrap(model)):
        with torch.random.fork_rng():
            torch.random.manual_seed(0)
            found = attack(foolbox.PyTorchModel(target, bounds=(0, 1)), x, y, epsilons=eps)[1]
        assert float((found - x).abs().max()) <= eps + 1e-5
        counts.append(broken(model, found.clamp(0, 1), y))
    ours = broken(model, pgd(model, x, y, eps=eps, steps=40), y)
    assert ours >= 20 and counts[1] >= ours - 2 and counts[0] <= ours // 2
