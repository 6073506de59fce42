"""The identity as a stand-in: linear processes have their own Jacobian and eigenvalues."""

import pytest
import torch

from rdc.analyse import pulled_back, transmission
from rdc.classify import NearestNeighbor
from rdc.rng import rand


def test_of_a_linear_process_the_gradient_is_its_transpose_and_the_share_its_eigenvalue():
    x, points = 0.4 + 0.2 * rand((3, 1, 2, 2), "x").double(), rand((6, 1, 2, 2), "points").double()
    y, model = torch.tensor([0, 1, 0]), NearestNeighbor(points, torch.tensor([0, 0, 0, 1, 1, 1]))
    a = torch.diag(torch.tensor([1.0, 0.5, 0.0, -0.5])).double()

    def process(p):
        return 0.5 + ((p - 0.5).flatten(1) @ a.T).reshape(p.shape)

    v, back = pulled_back(process, model, x, y)
    assert torch.allclose(back.flatten(1), v.flatten(1) @ a) and v.abs().sum() > 0 and not v.requires_grad
    for i, eigenvalue in enumerate((1.0, 0.5, 0.0, -0.5)):
        direction = torch.zeros(4, dtype=torch.float64)
        direction[i] = 1
        assert transmission(process, x, direction.reshape(1, 1, 2, 2).expand_as(x), 0.1) == pytest.approx(eigenvalue, abs=1e-9)


def test_the_identity_passes_on_all_and_walls_cut_the_change():
    x = torch.full((1, 1, 1, 2), 0.95, dtype=torch.float64)
    assert transmission(lambda p: p, x, torch.ones_like(x), 0.2) == pytest.approx(1.0)
    seen: list[torch.Tensor] = []
    transmission(lambda p: seen.append(p) or p, x, torch.ones_like(x), 0.2)
    assert float(max(p.max() for p in seen)) == 1.0
