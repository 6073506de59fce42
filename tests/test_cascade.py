"""Laws of sifting with one classifier and refining with another."""

import math

import pytest
import torch
from torch import Tensor

from rdc.certify import APNDC, EPNDC, certify
from rdc.data import load
from rdc.denoise import OptimalDenoiser
from rdc.early_exit import Cascade

SIGMA = 0.4


@pytest.fixture(scope="module")
def parts() -> tuple[EPNDC, EPNDC, Tensor]:
    train = load("digits", "train")
    denoiser = OptimalDenoiser(train.x[:150].double(), train.y[:150])
    x = load("digits").x[:30].double()
    x = x + SIGMA * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return EPNDC(denoiser, SIGMA, count=2), EPNDC(denoiser, SIGMA, count=6, seed=1), x


def test_an_infinite_gap_gives_the_slow_classifier(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, x = parts
    wanted = slow(x)
    found = Cascade(fast, slow, math.inf, 10)(x)
    torch.testing.assert_close(found, wanted - wanted.amax(dim=1, keepdim=True), rtol=1e-9, atol=1e-7)


def test_no_gap_gives_the_fast_one_and_costs_no_more(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, x = parts
    model = Cascade(fast, slow, 0.0)
    assert model(x).argmax(dim=1).tolist() == fast(x).argmax(dim=1).tolist()
    assert (model.spent, model.seen) == (len(x) * fast.evaluations, len(x))


def test_survivors_are_the_near_ones_and_at_most_keep(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, _ = parts
    logits = torch.tensor([[0.0, -0.5, -0.9, -0.2, -3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    logits = torch.nn.functional.pad(logits, (0, 5), value=-9.0)
    assert Cascade(fast, slow, 1.0, 3).survivors(logits).nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 2]]
    assert Cascade(fast, slow, 0.0, 3).survivors(logits).sum(dim=1).tolist() == [1, 1]


def test_what_is_spent_is_what_is_evaluated(parts: tuple[EPNDC, EPNDC, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow, x = parts
    model, asked = Cascade(fast, slow, 20.0, 4), []
    forward = OptimalDenoiser.forward
    monkeypatch.setattr(OptimalDenoiser, "forward", lambda self, z, *a: (asked.append(len(z)), forward(self, z, *a))[1])
    two = torch.full((len(x), 10), -1.0, dtype=x.dtype).index_fill(1, torch.tensor([2, 7]), 0.0)
    monkeypatch.setattr(fast, "forward", lambda *_: two)
    model.gap = 0.5
    model(x)
    assert sum(asked) == len(x) * 2 * 6 * 2  # two classes, six levels, mirror images
    assert model.spent == sum(asked) + len(x) * fast.evaluations


def test_the_others_keep_the_order_of_the_fast_one(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, x = parts
    model = Cascade(fast, slow, 5.0, 3)
    logits, found = fast(x), model(x)
    alive = model.survivors(logits)
    assert bool((found.masked_fill(alive, -math.inf).amax(1) <= found.masked_fill(~alive, math.inf).amin(1) - 1).all())
    a, b = (v.masked_fill(alive, math.inf).sort(dim=1).indices[:, : 10 - 3] for v in (logits, found))
    assert a.tolist() == b.tolist()


def test_an_answer_does_not_depend_on_the_batch(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, x = parts
    model = Cascade(fast, slow, 10.0, 3)
    torch.testing.assert_close(torch.cat([model(part) for part in x.split(7)]), model(x), rtol=1e-9, atol=1e-7)


def test_fresh_noise_follows_the_index(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    _, slow, x = parts
    fresh = [APNDC(slow.denoiser, SIGMA, count=3, noise="fresh"), EPNDC(slow.denoiser, SIGMA, count=3, noise="fresh")]
    model, index = Cascade(*fresh, 30.0, 5), torch.arange(100, 130)
    backwards = torch.arange(29, -1, -1)
    torch.testing.assert_close(model(x[backwards], index[backwards])[backwards], model(x, index), rtol=1e-9, atol=1e-7)


def test_it_can_be_certified(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, _ = parts
    found = certify(Cascade(fast, slow), load("digits").x[0].double(), sigma=SIGMA, n0=20, n=60)
    assert found.k <= found.n == 60


def test_bad_input_is_refused(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, _ = parts
    with pytest.raises(ValueError, match="same noise"):
        Cascade(EPNDC(slow.denoiser, 0.5), slow)
    with pytest.raises(ValueError, match="keep"):
        Cascade(fast, slow, keep=0)


def test_a_cascade_may_be_the_fast_one(parts: tuple[EPNDC, EPNDC, Tensor]) -> None:
    fast, slow, x = parts
    last = EPNDC(slow.denoiser, SIGMA, count=12, seed=2)
    alone, inner = Cascade(fast, slow, 3.0, 4), Cascade(fast, slow, 3.0, 4)
    model = Cascade(inner, last, 2.0, 2)
    before, found = alone(x), model(x)
    assert Cascade(inner, last, 0.0)(x).argmax(dim=1).tolist() == before.argmax(dim=1).tolist()  # no gap: the inner one
    asked = model.survivors(before).sum(dim=1)
    assert inner.spent - alone.spent == alone.spent  # inner was called twice
    assert model.spent == alone.spent + int(asked[asked > 1].sum()) * 12 * 2  # levels, mirror images
    clear = asked == 1
    assert bool(clear.any()) and not bool(clear.all())
    assert found[clear].argmax(dim=1).tolist() == before[clear].argmax(dim=1).tolist()
    wanted = last(x).masked_fill(~model.survivors(before), -math.inf)
    assert found[~clear].argmax(dim=1).tolist() == wanted[~clear].argmax(dim=1).tolist()


def test_the_one_step_estimate_of_apndc_is_counted(parts: tuple[EPNDC, EPNDC, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow, x = parts
    model, asked = Cascade(fast, APNDC(slow.denoiser, SIGMA, count=3), 2.0, 4), []
    two = torch.full((len(x), 10), -9.0, dtype=x.dtype).index_fill(1, torch.tensor([2, 7]), 0.0)
    two[:4, 7] = -9.0  # clear: not refined
    monkeypatch.setattr(fast, "forward", lambda *_: two)
    forward = OptimalDenoiser.forward
    monkeypatch.setattr(OptimalDenoiser, "forward", lambda self, z, *a: (asked.append(len(z)), forward(self, z, *a))[1])
    model(x)
    assert sum(asked) == (len(x) - 4) * (2 * 3 + 1)
    assert model.spent == sum(asked) + len(x) * fast.evaluations
