"""The engine against its formula written as a loop, in float64, whatever start, centre, noise and chunk."""

import pytest
import torch
from helpers import Counting, draw, mixture, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rdc.certify import APNDC, EPNDC
from rdc.classify.denoising_loss import Losses, Samples, denoising_losses
from rdc.denoise import OptimalDenoiser

DENOISER = OptimalDenoiser(*mixture(1, (4, 3, 5)))
SIGMA, WEIGHT = torch.tensor([0.4, 1.1]).double(), torch.tensor([2.0, 0.7]).double()


class Single(Counting):
    """One class at a time."""

    def __init__(self) -> None:
        super().__init__(DENOISER)
        self.one_pass = False


def normal(*shape: int, seed: int) -> Tensor:
    """Numbers around 0."""
    return 2 * draw(shape, seed) - 1


def batch(denoiser: object, kind: tuple[bool, bool, bool, bool, int], own: bool, chunk: int | None, start: Tensor) -> Losses:
    """A batch with noise, shift and centres of a kind."""
    per_class, per_image, shifted, labelled, signs = kind
    groups = (len(start) if per_image else 1) * (3 if per_class else 1)
    added, shift = (normal(groups, 2, 2, 1, 2, 3, seed=s) for s in (5, 6))
    samples = Samples(added, shift if shifted else None, signs, per_image, per_class)
    centre = normal(len(start), 3 if own and labelled else 1, 1, 2, 3, seed=7)
    return Losses(denoiser, SIGMA, WEIGHT, samples, start, centre, labelled, chunk)


def plain(b: Losses, start: Tensor, centre: Tensor) -> Tensor:
    """The formula, item after item."""
    s, found = b.samples, []
    for n in range(len(start)):
        for k in range(b.columns):
            for t in range(2):
                total = 0.0
                for r in range(s.draws):
                    g = (n if s.per_image else 0) * (3 if s.per_class else 1) + (k if s.per_class else 0)
                    sign = -1 if s.signs == 2 and r % 2 else 1
                    label = torch.tensor([k]) if b.labelled else None
                    noisy = start[n : n + 1] + sign * s.added[g, r // s.signs, t]
                    gap = DENOISER(noisy, float(SIGMA[t]), label)[0] - centre[n, k if centre.shape[1] > 1 else 0]
                    shift = 0.0 if s.shift is None else sign * s.shift[g, r // s.signs, t]
                    total = total + (gap.square() - 2 * gap * shift).sum()
                found.append(WEIGHT[t] * total / s.draws)
    return torch.stack(found).reshape(len(start), b.columns, 2)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1, 2])),
    st.booleans(),
    st.sampled_from([1, 5, 10**6, None]),
    st.booleans(),
)
def test_losses_and_gradients_are_those_of_the_formula(
    kind: tuple[bool, bool, bool, bool, int], own: bool, chunk: int | None, single: bool
) -> None:
    kind = (kind[0] and kind[3], *kind[1:])  # noise of a class needs classes
    start = normal(2, 1, 2, 3, seed=3).requires_grad_()
    b = batch(Single() if single else DENOISER, kind, own, chunk, start.detach())
    centre = b.centre.clone().requires_grad_()
    made = Losses(b.denoiser, b.sigma, b.weight, b.samples, start, centre, b.labelled, chunk)
    expected = plain(b, start, centre)
    found = denoising_losses(made)
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)
    cotangent = normal(*found.shape, seed=8) * (torch.arange(found.shape[1]) != 1)[:, None]
    wanted = torch.autograd.grad(expected, (start, centre), cotangent)
    slopes = torch.autograd.grad(found, (start, centre), cotangent)
    for slope, want in zip(slopes, wanted, strict=True):
        assert torch.allclose(slope, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [EPNDC, APNDC])
def test_the_gradient_of_many_levels_keeps_no_more_than_a_chunk(make: type[EPNDC] | type[APNDC]) -> None:
    """What autograd saves between the passes does not grow with the number of levels, nor do the batches."""
    saved = {}
    for count in (4, 64):
        counter, sizes = Counting(tiny_network()), []
        x = draw((2, 1, 8, 8), 1, torch.float32).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            logits = make(counter, 0.25, count=count, chunk=8)(x)
        saved[count] = sum(sizes)
        (logits[:, 0] - logits[:, 1]).sum().backward()
        assert counter.largest <= 8
    assert saved[64] <= 1.1 * saved[4]


def test_what_fits_into_one_chunk_is_evaluated_once() -> None:
    x = draw((2, 1, 8, 8), 1, torch.float32).requires_grad_()
    for chunk, again in ((10**6, 0), (8, 2 * 2 * 8)):
        counter = Counting(tiny_network())
        logits = EPNDC(counter, 0.25, count=8, antithetic=False, chunk=chunk)(x)
        assert counter.evaluations == 2 * 3 * 8
        (logits[:, 0] - logits[:, 1]).sum().backward()
        assert counter.evaluations == 2 * 3 * 8 + again
