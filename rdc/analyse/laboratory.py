r"""Exact likelihoods of images under the optimal denoiser of a finite data set, and how a process changes them.

With :math:`z = 2 x - 1`, the optimal denoiser of images of known classes knows :math:`\log p_\sigma(z \mid y)`, and with it

| ``log p(z)``      :math:`\log \sum_y p(y) p_\sigma(z \mid y)`
| ``log p(z | y)``  that of the true class
| ``log-odds``      :math:`\log p_\sigma(z \mid y) - \max_{k \ne y} \log p_\sigma(z \mid k)`, which decide the class
"""

__all__ = ["QUANTITIES", "first_wrong", "likelihoods"]

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rdc.attack.losses import margin
from rdc.denoise.optimal import OptimalDenoiser
from rdc.door import ask

QUANTITIES = ("log p(z)", "log p(z | y)", "log-odds")


def likelihoods(
    optimal: OptimalDenoiser, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], sigma: float
) -> dict[str, Float[Tensor, " n"]]:
    """Return the ``QUANTITIES`` of each image at one noise level.

    Arguments:
        optimal: The optimal denoiser of the data.
        x: Images in [0, 1].
        y: Labels.
        sigma: Noise level of the density, model units, above 0.
    """
    by_class = optimal.log_density(2 * x - 1, sigma)
    prior = torch.tensor(optimal.counts, dtype=by_class.dtype, device=by_class.device)
    return {
        "log p(z)": (by_class + (prior / prior.sum()).log()).logsumexp(dim=1),
        "log p(z | y)": by_class.gather(1, y[:, None])[:, 0],
        "log-odds": -margin(by_class, y),
    }


def first_wrong(
    model: nn.Module, x: Float[Tensor, "n c h w"], x_adv: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], steps: int = 6
) -> Float[Tensor, "n c h w"]:
    """Return misclassified images just beyond a border, on the straight lines from ``x`` to ``x_adv``, by bisection.

    Arguments:
        model: A classifier.
        x: Images that it gets right.
        x_adv: Images that it gets wrong.
        y: True labels.
        steps: Bisections; the error is the length of the line times ``2^-steps``.
    """
    low = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)
    high = torch.ones_like(low)
    for _ in range(steps):
        middle = (low + high) / 2
        crossed = (ask(model, torch.lerp(x, x_adv, middle)).argmax(dim=1) != y).reshape(-1, 1, 1, 1)
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    return torch.lerp(x, x_adv, high)
